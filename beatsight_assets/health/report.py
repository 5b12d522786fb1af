"""What is in a manifest: hits by class, dynamics, openness, techniques, duplicates, conflicts.

Belongs here: measuring a manifest and the stage `manifest_health`. Does not belong here: limits (`gates`), the page (`html`),
comparison with an earlier report (`compare`). `measure` knows no limits and reads no files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import events, store
from beatsight_assets.errors import InputError
from beatsight_assets.events import BUCKETS, EVENT_SCHEMA, find_repeats
from beatsight_assets.health import gates, honesty, html
from beatsight_assets.health.gates import HealthLimits
from beatsight_assets.manifest import near_duplicates
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.taxonomy import DRUM_MIX, HIHATS_WITH_OPENNESS, Taxonomy
from beatsight_assets.verdict import Artifact, Problem, Verdict

VERSION = "2"
SCHEMA = "beatsight.health/1"
MAX_EXAMPLES = 50
MAX_NAMED_ROWS = 20
OPENNESS_BINS = 10
CLOSED_ABOVE = 0.35  # a hat labelled closed that stands more open than this contradicts its label (spec/events.md section 4)
SLACK = 1e-6  # f32 against f64
RARE_EXTRAS = ('"loudness"', '"bleed_level"')
DURATION_FIELDS = ("split_durations_seconds", "run_split_durations_seconds", "duration_seconds_by_source", "run_duration_seconds_by_source")
NO_SPLIT = "unassigned"
COLUMNS = (  # of the events; what a report does not look at stays on the disk
    *("event_id", "source_set", "session_id", "group_id", "drummer_id", "kit_id", "is_synthetic", "onset_time"),
    *("techniques", "mix_context", "negative_example", "extras"),
)
OF_EVENTS = ("event", "session", "group", "is_synthetic")  # what a hit keeps of its event
COMPONENT_FIELDS = ("label", "velocity", "dynamic_bucket", "openness")
ROW_ERRORS = (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError, pl.exceptions.PolarsError)


@dataclass(frozen=True)
class HealthOptions:
    """What to report on and by which limits; without `limits` those of the profile. `bundle` is the folder of a sealed one."""

    manifest: Path | None = None
    name: str = "annotated"
    limits: HealthLimits | None = None
    no_limits: bool = False
    components: Path | None = None
    dataset_metadata: Path | None = None
    bundle: Path | None = None


def run(settings: Settings, options: HealthOptions = HealthOptions(), *, progress: Progress = silent) -> Report:
    """Publish reports/health/<name>_health.{json,html} with the verdict `health`.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`, `bad-metadata`
    ConfigError : limits that the profile spells wrong
    """
    limits = limits_of(settings, options)
    taxonomy = Taxonomy.load(settings)
    parents = _parents(settings, options)

    def work() -> Outcome:
        report, verdict = assess(settings, options, progress=progress)
        target = settings.layout.report("health", f"{options.name}_health.json")
        page = target.with_suffix(".html")
        settings.store.publish_json(target, report)
        settings.store.publish(page, html.render(report, verdict).encode())
        summary = report["summary"]
        counts = report["per_class_counts"]
        return Outcome(
            outputs=[("health", target, None), ("health_html", page, None)],
            figures={k: v for k, v in summary.items() if isinstance(v, (int, float))} | {"classes": len(counts)},
            facts={"failures": verdict.failures, "unknown_labels": report["unknown_labels"]},
            verdicts=[verdict],
            table=Table(
                ("class", "hits", "real", "synthetic", "sessions", "groups"),
                tuple((k, v["total"], v["real"], v["synthetic"], v["sessions"], v["groups"]) for k, v in counts.items()),
            ),
        )

    return run_stage(
        settings,
        "manifest_health" if options.name == "annotated" else f"health_{options.name}",
        version=f"{VERSION}.{html.VERSION}",
        options={"profile": settings.profile, "limits": limits.to_json() if limits else None, "taxonomy": taxonomy.digest},
        parents=parents,
        work=work,
    )


def limits_of(settings: Settings, options: HealthOptions) -> HealthLimits | None:
    """Limits of the options, else those of the profile; None when none are wanted."""
    if options.no_limits:
        return None
    return options.limits or HealthLimits.from_config(settings.gates.health, f"configs/gates/{settings.profile}.yaml")


def _parents(settings: Settings, options: HealthOptions) -> list[tuple[str, Path]]:
    """Every file that a report rests on, by role."""
    is_annotated = options.manifest is None
    provenance = settings.layout.provenance_tables if is_annotated else []
    parents = [("manifest", options.manifest or settings.layout.annotated)]
    parents += [("splits", settings.layout.splits)] if is_annotated else []
    near = settings.layout.near_duplicates
    parents += [("near_duplicates", near)] if is_annotated and near.is_file() else []
    parents += [(f"provenance:{p.stem}", p) for p in provenance]
    return parents + [(role, p) for role, p in (("components", options.components), ("dataset_metadata", options.dataset_metadata)) if p]


def assess(settings: Settings, options: HealthOptions, *, progress: Progress = silent) -> tuple[dict[str, Any], Verdict]:
    """The report of a manifest, wherever it lies, and the verdict on it; nothing is written.

    Raises
    ------
    as `run`
    """
    taxonomy = Taxonomy.load(settings)
    parents = _parents(settings, options)
    files = dict(parents)
    manifest = files["manifest"]
    progress(f"reading {_shown(settings, manifest)}")
    frame, rejected = read_manifest(manifest)
    progress(f"measuring {frame.height:,} events")
    provenance = [p for role, p in parents if role.startswith("provenance:")]
    table = pl.concat([pl.read_parquet(p) for p in provenance], how="diagonal_relaxed") if provenance else None
    report = measure(
        frame,
        taxonomy,
        splits=pl.read_parquet(files["splits"]) if "splits" in files else None,
        near=pl.read_parquet(files["near_duplicates"]) if "near_duplicates" in files else None,
        provenance=table,
        known=read_components(options.components) if options.components else None,
        dataset_metadata=read_durations(options.dataset_metadata) if options.dataset_metadata else None,
        rejected=rejected,
    )
    report |= {
        "schema": SCHEMA,
        "manifest": {"path": _shown(settings, manifest), "sha256": settings.store.sha256(manifest), "rows": frame.height},
        "taxonomy": taxonomy.to_json(),
        "split_honesty": honesty.probe(frame, table, taxonomy) if table is not None else None,
        "bundle": read_bundle(options.bundle) if options.bundle else None,
    }
    verdict = judged(settings, report, limits_of(settings, options), taxonomy, parents)
    report |= {"gating_results": [r.to_json() for r in verdict.rules], "status": verdict.status, "passed": verdict.passed}
    return report, verdict


def _shown(settings: Settings, path: Path) -> str:
    """A file as a report names it: no absolute path leaves the machine."""
    return settings.store.rel(path) if path.is_relative_to(settings.layout.root) else path.name


def read_bundle(folder: Path) -> dict[str, float]:
    """Clips, samples beyond full scale as a share, and clips without audio of a sealed bundle, from its metadata.json.

    Raises
    ------
    InputError `missing-input`, `bad-metadata`
    """
    found = store.read_json(folder / "metadata.json")
    try:
        figures, rate = found["statistics"], int(found["sample_rate"])
        n_samples = float(figures["written_seconds"]) * rate
        return {
            "clips": int(figures["written_clips"]),
            "clipped_share": round(figures["clipped_samples"] / n_samples, 9) if n_samples else 0.0,
            "missing_audio": int(figures["skipped_missing_audio"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"is no metadata of a bundle: {error!r}", code="bad-metadata", where=f"{folder.name}/metadata.json") from error


def judged(
    settings: Settings, report: Mapping[str, Any], limits: HealthLimits | None, taxonomy: Taxonomy, parents: Sequence[tuple[str, Path]]
) -> Verdict:
    """The verdict on a report, naming the files it rests on."""
    view = taxonomy.view(limits.view) if limits and limits.view else None
    rows = report["summary"]["events_total"]
    inputs = tuple(Artifact(r, _shown(settings, p), settings.store.sha256(p), rows if r == "manifest" else None) for r, p in parents)
    return gates.judge(report, limits, view=view, labels=taxonomy.labels, inputs=inputs, profile=settings.profile)


def read_manifest(path: Path) -> tuple[pl.DataFrame, list[Problem]]:
    """Events of a manifest and the rows that cannot be read. A malformed JSONL row is named, it never stops the report.

    Raises
    ------
    InputError `missing-input`, `bad-manifest` : the file as a whole cannot be read
    """
    if path.suffix != ".jsonl":
        pieces = list(events.Manifest(path).pieces_with_hits(COLUMNS, COMPONENT_FIELDS))
        return pl.concat(pieces) if pieces else _typed([]), []
    if not path.is_file():
        raise InputError("file does not exist. Run the step that writes it first", code="missing-input", where=str(path))
    rows: list[tuple[int, dict[str, Any]]] = []
    problems: list[Problem] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, events.upgraded_row(_json_object(line), f"{path}:{number}")))
        except (*ROW_ERRORS, InputError) as error:
            problems.append(Problem(path.name, number, "row", (error.message if isinstance(error, InputError) else str(error))[:200]))
    try:
        return _typed([row for _, row in rows]), problems
    except ROW_ERRORS:  # some field has another type: find the rows, keep the others
        good = []
        for number, row in rows:
            try:
                _typed([row])
                good.append(row)
            except ROW_ERRORS as error:
                problems.append(Problem(path.name, number, "row", str(error)[:200]))
        return _typed(good), sorted(problems, key=lambda p: p.line)


def _typed(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row", strict=True)


def _json_object(line: bytes) -> dict[str, Any]:
    def refuse(token: str) -> None:
        raise ValueError(f"{token} is no JSON number")

    row = json.loads(line, parse_constant=refuse)
    if not isinstance(row, dict):
        raise ValueError(f"a line must be a JSON object, not {type(row).__name__}")
    return row


def read_components(path: Path) -> tuple[str, ...]:
    """Labels of `{"components": [...]}`, `{"classes": ["a", {"id": "b"}]}` or a bare list.

    Raises
    ------
    InputError `bad-metadata` : any other shape
    """
    found = store.read_json(path)
    if isinstance(found, dict):
        found = found.get("components", found.get("classes"))
    names = [item.get("id", item.get("label")) if isinstance(item, dict) else item for item in found] if isinstance(found, list) else None
    if names is None or not all(isinstance(n, str) for n in names):
        raise InputError(
            'components must be {"components": [...]}, {"classes": [...]} or a list of names', code="bad-metadata", where=str(path)
        )
    return tuple(dict.fromkeys(str(n) for n in names))


def read_durations(path: Path) -> dict[str, dict[str, float]]:
    """Duration tables of a bundle's metadata.json in seconds; numeric strings are read as numbers.

    Raises
    ------
    InputError `bad-metadata` : a duration is no finite number
    """
    found = store.read_json(path)
    durations: dict[str, dict[str, float]] = {}
    for name in DURATION_FIELDS:
        table = found.get(name) if isinstance(found, dict) else None
        if table is None:
            continue
        try:
            durations[name] = {str(k): float(v) for k, v in sorted(table.items()) if not isinstance(v, bool)}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{name} must map names to seconds: {error}", code="bad-metadata", where=str(path)) from error
    return durations


def measure(
    frame: pl.DataFrame,
    taxonomy: Taxonomy,
    *,
    splits: pl.DataFrame | None = None,
    provenance: pl.DataFrame | None = None,
    known: Collection[str] | None = None,
    dataset_metadata: Mapping[str, Any] | None = None,
    rejected: Sequence[Problem] = (),
    near: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """Figures of a manifest (`spec/gates.md` section 1) as one JSON-able dict.

    Parameters
    ----------
    frame : events [columns of EVENT_SCHEMA]
    splits : `group_id`, `split`; adds hits by split
    provenance : rows of the sources; adds issues, durations and equal audio under two paths
    known : labels that are allowed; default: the taxonomy
    dataset_metadata : duration tables, copied
    rejected : rows that could not be read
    near : pairs of recordings that are one (`near_duplicates`); adds the share of events that they repeat
    """
    broken = frame.filter(pl.col("components").is_null())
    problems = [str(p) for p in rejected] + [f"{e}: components: null" for e in broken["event_id"].head(MAX_NAMED_ROWS)]
    if broken.height:  # a copy of millions of rows is made only where there is something to leave out
        frame = frame.filter(pl.col("components").is_not_null())
    frame = frame.with_row_index("event").with_columns(
        session=_session_codes(frame),
        group=pl.col("group_id").cast(pl.Categorical).to_physical(),
        onset_us=(pl.col("onset_time") * 1e6).round().cast(pl.Int64),
    )
    hits = _hits(frame, taxonomy)
    allowed = set(taxonomy.labels if known is None else known)
    labels = _counts(hits["label"])
    total = frame.height
    repeated_ids, examples_ids = _repeated_ids(frame)
    repeated_content, examples_content = _repeated_content(frame)
    negatives = int(frame["negative_example"].sum())
    synthetic = int(frame["is_synthetic"].sum())
    rare = frame["extras"].value_counts(name="n")  # few texts, many events: each text is looked at once
    rare = rare.filter(pl.col("extras").str.contains_any(list(RARE_EXTRAS)))
    duration = _duration(provenance, dataset_metadata)
    report: dict[str, Any] = {
        "summary": {
            "events_total": total,
            "events_real": total - synthetic,
            "events_synthetic": synthetic,
            "hits_total": hits.height,
            "unique_sessions": frame["session"].n_unique(),
            "unique_groups": frame["group"].n_unique(),
            "unique_drummers": frame["drummer_id"].drop_nulls().n_unique(),
            "unique_kits": frame["kit_id"].drop_nulls().n_unique(),
            "duplication_rate": repeated_ids / total if total else None,
            "content_duplication_rate": repeated_content / total if total else None,
            "near_duplication_rate": near_duplicates.repeated_events(frame, near) / total if near is not None and total else None,
            "negative_examples": {"positive": negatives, "non_negative": total - negatives},
            "rejected_rows": len(rejected) + broken.height,
            "duration_seconds_total": duration,
            "duration_hours_total": None if duration is None else duration / 3600.0,
        },
        "rejected_row_examples": problems[:MAX_NAMED_ROWS],
        "per_class_counts": _class_counts(hits, taxonomy),
        "dynamic_bucket_counts": _with_zeros(_counts(hits["dynamic_bucket"]), BUCKETS),
        "per_class_dynamic": _class_dynamics(hits, taxonomy),
        "openness_histogram": _openness_histogram(hits),
        "openness_missing": hits.filter(pl.col("label").is_in(HIHATS_WITH_OPENNESS) & pl.col("openness").is_null()).height,
        "velocity_stats": _stats(hits["velocity"]),
        "openness_stats": _stats(hits["openness"]),
        "loudness": {name: _stats(_extra(rare, f"loudness.{name}").cast(pl.Float64, strict=False)) for name in ("LUFS_i", "peak_dbfs")},
        "technique_counts": _technique_counts(frame),
        "crash_variant_counts": _crash_variants(hits),
        "crash_dual_label_assignments": frame.filter(pl.col("techniques").list.contains("crash_dual_label")).height,
        "bleed_level_distribution": _with_rest(_extra(rare, "bleed_level"), total),
        "mix_context_distribution": _counts_of_runs(frame["mix_context"]),
        "source_counts": _counts_of_runs(frame["source_set"]),
        "openness_conflicts": _openness_conflicts(hits),
        "exclusive_group_conflicts": _exclusive_conflicts(hits, taxonomy),
        "issues": _issues(provenance),
        "duplicates": {"event_ids": examples_ids, "content_keys": examples_content, "audio_files": _equal_audio(provenance)},
        "unknown_labels": {k: n for k, n in labels.items() if k not in allowed},
        "splits": _by_split(frame, hits, splits) if splits is not None else {},
    }
    return report | dict(dataset_metadata or {})


def _hits(frame: pl.DataFrame, taxonomy: Taxonomy) -> pl.DataFrame:
    """One row per hit with its canonical label; `drum_mix` is no class and vanishes."""
    names = pl.col("label", "dynamic_bucket").cast(pl.Categorical)  # a few names of millions: counted and compared as numbers
    hits = events.hits_of(frame, *OF_EVENTS).select(*OF_EVENTS, *COMPONENT_FIELDS).with_columns(names)
    if hits["label"].null_count():
        hits = hits.filter(pl.col("label").is_not_null())
    canonical = {name: (taxonomy.canonical(name) or (name, None))[0] for name in hits["label"].unique()}
    renamed = {k: v for k, v in canonical.items() if k != v}
    if renamed:
        hits = hits.with_columns(label=pl.col("label").replace(renamed))
    return hits.filter(pl.col("label") != DRUM_MIX) if DRUM_MIX in canonical.values() else hits


def _session_codes(frame: pl.DataFrame) -> pl.Series:
    """A number for each row that rows of one session share [shape=(n,)]. Rows of a session mostly stand together: names are compared by run."""
    starts = pl.Series(events.session_starts(frame))
    code = frame.select(pl.struct(events.SESSION_KEY).filter(starts).rank("dense").cast(pl.UInt32)).to_series()
    return code.gather(starts.cast(pl.UInt32).cum_sum() - 1)


def _counts(values: pl.Series) -> dict[str, int]:
    """How often each value occurs, the most frequent first; null is `unknown`."""
    return _ordered(values.cast(pl.Categorical).value_counts(name="n").iter_rows())


def _counts_of_runs(values: pl.Series) -> dict[str, int]:
    """As `_counts`, for values that seldom change from row to row."""
    runs = values.rle().struct.unnest().group_by("value").agg(pl.col("len").sum())
    return _ordered(runs.iter_rows())


def _ordered(counted: Iterable[tuple[Any, ...]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, n in counted:
        shown = "unknown" if name is None else name
        counts[shown] = counts.get(shown, 0) + n
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _with_zeros(counts: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    return {name: counts.get(name, 0) for name in names} | {k: n for k, n in counts.items() if k not in names}


def _with_rest(values: pl.Series, total: int) -> dict[str, int]:
    """Counts of values, and under `unknown` the rows that state none."""
    counts = _counts(values)
    rest = total - sum(counts.values())
    return counts | ({"unknown": counts.get("unknown", 0) + rest} if rest else {})


def _extra(rare: pl.DataFrame, path: str) -> pl.Series:
    """A field of `extras` as text, only where it is stated, once for each event that states it.

    rare : texts `extras`, and the number of events that hold each as `n`
    """
    key = path.split(".")[0]
    stated = rare.filter(pl.col("extras").str.contains(f'"{key}"', literal=True))
    found = stated.select("n", value=pl.col("extras").str.json_path_match(f"$.{path}")).drop_nulls("value")
    return found.select(pl.col("value").repeat_by("n").list.explode(empty_as_null=False))["value"]


def _in_order(labels: Collection[str], taxonomy: Taxonomy) -> list[str]:
    return sorted(labels, key=lambda label: (taxonomy.order.get(label, len(taxonomy.order)), label))


def _class_counts(hits: pl.DataFrame, taxonomy: Taxonomy) -> dict[str, dict[str, int]]:
    counted = hits.group_by("label").agg(
        total=pl.len(),
        synthetic=pl.col("is_synthetic").sum(),
        events=pl.col("event").n_unique(),
        sessions=pl.col("session").n_unique(),
        groups=pl.col("group").n_unique(),
    )
    rows = {r["label"]: r for r in counted.iter_rows(named=True)}
    return {
        label: {
            "total": rows[label]["total"],
            "real": rows[label]["total"] - rows[label]["synthetic"],
            **{k: rows[label][k] for k in ("synthetic", "events", "sessions", "groups")},
        }
        for label in _in_order(rows, taxonomy)
    }


def _class_dynamics(hits: pl.DataFrame, taxonomy: Taxonomy) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for label, bucket, n in hits.group_by("label", pl.col("dynamic_bucket").fill_null("unknown")).len().iter_rows():
        counted.setdefault(label, {})[bucket] = n
    return {label: _with_zeros(counted[label], BUCKETS) for label in _in_order(counted, taxonomy)}


def _openness_histogram(hits: pl.DataFrame) -> list[int]:
    """Hits in ten equal bins on 0..1, the last one closed."""
    values = hits["openness"].drop_nulls().cast(pl.Float64)
    # 1e-6 slack: 0.3 stored as f32 lies in the bin that 0.3 opens
    bins = ((values + SLACK) * OPENNESS_BINS).floor().clip(0, OPENNESS_BINS - 1).cast(pl.Int64)
    counted = dict(bins.value_counts().iter_rows())
    return [int(counted.get(i, 0)) for i in range(OPENNESS_BINS)]


def _stats(values: pl.Series) -> dict[str, float | int | None]:
    values = values.drop_nulls().cast(pl.Float64)
    values = values.filter(values.is_finite())
    figures: dict[str, float | int | None] = {"n": values.len()}
    for q in (5, 25, 50, 75, 95):
        figures[f"p{q:02d}"] = _rounded(values.quantile(q / 100, interpolation="linear"))
    return figures | {"min": _rounded(values.min()), "max": _rounded(values.max()), "mean": _rounded(values.mean())}


def _rounded(value: Any) -> float | None:
    """Nine digits: what is left of a f32, and independent of the order of summation."""
    return None if value is None else round(float(value), 9)


def _technique_counts(frame: pl.DataFrame) -> dict[str, dict[str, int]]:
    tags = frame.select("event", "session", "group", pl.col("techniques").alias("technique")).explode(
        "technique", empty_as_null=False, keep_nulls=False
    )
    counted = tags.group_by("technique").agg(
        events=pl.col("event").n_unique(), sessions=pl.col("session").n_unique(), groups=pl.col("group").n_unique()
    )
    return {r.pop("technique"): r for r in counted.sort("technique").iter_rows(named=True)}


def _crash_variants(hits: pl.DataFrame) -> dict[str, int]:
    crashes = hits.filter(pl.col("label").is_in(["crash", "crash2"]))
    return dict(sorted(_counts(crashes["label"]).items()))


def _openness_conflicts(hits: pl.DataFrame) -> dict[str, int]:
    openness = pl.col("openness").cast(pl.Float64)
    return {
        "open_at_zero": hits.filter((pl.col("label") == "hihat_open") & (openness <= SLACK)).height,
        "closed_above_0.35": hits.filter((pl.col("label") == "hihat_closed") & (openness > CLOSED_ABOVE + SLACK)).height,
    }


def _exclusive_conflicts(hits: pl.DataFrame, taxonomy: Taxonomy) -> dict[str, int]:
    """Events with two different members of an exclusive group."""
    found = {}
    for members in taxonomy.exclusive_groups:
        kinds = hits.filter(pl.col("label").is_in(members)).group_by("event").agg(n=pl.col("label").n_unique())
        found[" / ".join(members)] = kinds.filter(pl.col("n") > 1).height
    return found


def _repeated_ids(frame: pl.DataFrame) -> tuple[int, list[dict[str, Any]]]:
    suspects = frame["event_id"].gather(events.find_repeats(frame["event_id"].hash().to_numpy())).to_frame()
    repeated = suspects.group_by("event_id").len().filter(pl.col("len") > 1).sort("event_id")
    n_extra = int((repeated["len"] - 1).sum()) if repeated.height else 0
    return n_extra, [{"event_id": e, "rows": n} for e, n in repeated.head(MAX_EXAMPLES).iter_rows()]


def _repeated_content(frame: pl.DataFrame) -> tuple[int, list[dict[str, Any]]]:
    """Rows that repeat (session, onset, sorted labels) of another row. Labels are compared only where session and onset are equal."""
    again = find_repeats(events.instants(frame["session"], frame["onset_us"]))
    suspects = frame.select("source_set", "session_id", "onset_us", "components")[again].select(
        "source_set",
        "session_id",
        "onset_us",
        labels=pl.col("components").list.eval(pl.element().struct.field("label").sort()).list.join(" + "),
    )
    repeated = suspects.group_by("source_set", "session_id", "onset_us", "labels").len().filter(pl.col("len") > 1)
    repeated = repeated.sort("source_set", "session_id", "onset_us", "labels")
    n_extra = int((repeated["len"] - 1).sum()) if repeated.height else 0
    return n_extra, [
        {"session_id": s, "onset_time": us / 1e6, "labels": labels, "rows": n}
        for _, s, us, labels, n in repeated.head(MAX_EXAMPLES).iter_rows()
    ]


def _equal_audio(provenance: pl.DataFrame | None) -> list[dict[str, Any]]:
    """Files with equal sha256 under two paths."""
    if provenance is None or "hashes" not in provenance.columns:
        return []
    files = provenance.select("source_set", "hashes").explode("hashes", empty_as_null=False, keep_nulls=False).unnest("hashes")
    files = files.select("sha256", path=pl.concat_str("source_set", pl.lit("/"), "path")).drop_nulls().unique()
    twins = files.group_by("sha256").agg(pl.col("path").sort()).filter(pl.col("path").list.len() > 1).sort("sha256")
    return [{"sha256": digest, "paths": paths} for digest, paths in twins.head(MAX_EXAMPLES).iter_rows()]


def _issues(provenance: pl.DataFrame | None) -> dict[str, int]:
    if provenance is None or "issues" not in provenance.columns:
        return {}
    return events.sum_counts(json.loads(text) for text in provenance["issues"].drop_nulls())


def _duration(provenance: pl.DataFrame | None, dataset_metadata: Mapping[str, Any] | None) -> float | None:
    """Seconds of recordings: as stated by the bundle, else summed over the provenance facts that state it."""
    if dataset_metadata and "split_durations_seconds" in dataset_metadata:
        return float(sum(dataset_metadata["split_durations_seconds"].values()))
    if provenance is None or "facts" not in provenance.columns:
        return None
    stated = provenance.select(pl.col("facts").str.json_path_match("$.duration_seconds").cast(pl.Float64, strict=False))[
        "facts"
    ].drop_nulls()
    return _rounded(stated.sum()) if stated.len() else None


def _by_split(frame: pl.DataFrame, hits: pl.DataFrame, splits: pl.DataFrame) -> dict[str, dict[str, Any]]:
    table = splits.select("group_id", "split").unique("group_id", keep="first", maintain_order=True)
    where = (
        frame.select("event", "session", "group", "group_id")
        .join(table, on="group_id", how="left")
        .with_columns(pl.col("split").fill_null(NO_SPLIT))
    )
    rows = where.group_by("split").agg(events=pl.len(), sessions=pl.col("session").n_unique(), groups=pl.col("group").n_unique())
    by_split: dict[str, dict[str, Any]] = {r.pop("split"): r | {"classes": {}} for r in rows.sort("split").iter_rows(named=True)}
    counted = hits.select("event", "label").join(where.select("event", "split"), on="event").group_by("split", "label").len()
    for split, label, n in counted.sort("split", "label").iter_rows():
        by_split[split]["classes"][label] = n
    return by_split
