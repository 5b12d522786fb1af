"""What an export would cut, and what is missing: no clip is cut, and no file is opened twice.

Belongs here: verify-only, sizes, the durations table, the stage `bundle_plan`. Does not belong here: planning itself (`plan`).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import audio, store
from beatsight_assets.audio import AudioError
from beatsight_assets.bundle.export import BundleRequest, plan_only, read_sources
from beatsight_assets.bundle.plan import OUTCOMES, BundleOptions, Planner, count_rows, manifest_batches
from beatsight_assets.bundle.roots import AudioRoots, Missing, audio_roots
from beatsight_assets.bundle.summary import Section, formatted_duration
from beatsight_assets.events import read_events
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.store import Store
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import keyed_order
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE = "bundle_plan"
VERSION = "1"
LISTED = 20
SPACE_ADVISED = 1.5  # spec/tools.md T99: below this share of the estimate a notice, below 1.1 the export refuses
SPACE_NEEDED = 1.1
FEATURE_BYTES = 128 * 25 * 2  # float16, spec/bundle.md section 13
COLUMNS = (
    "event_id",
    "session_id",
    "source_set",
    "group_id",
    "audio_path",
    "onset_time",
    "components",
    "mix_context",
    "negative_example",
    "is_synthetic",
    "context_ms",
    "extras",
)
SHOWN_EXAMPLES = 5  # recordings without audio on a screen; the report holds 20
CSV_HEADER = "category,source_set,clips,seconds,formatted_duration"
FORMULA = ("=", "+", "-", "@")


@dataclass
class Verified:
    """What planning and looking for audio found, without cutting."""

    manifest: str
    layout: str = "shards"
    total_events: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)  # events by source
    seconds: Counter[str] = field(default_factory=Counter)  # by source
    label_counts: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)  # events by source
    examples: list[dict[str, Any]] = field(default_factory=list)
    root_hits: dict[str, int] = field(default_factory=dict)

    @property
    def n_planned(self) -> int:
        return sum(self.planned.values())

    @property
    def n_missing(self) -> int:
        return sum(self.missing.values())

    def passed(self, max_missing: int) -> bool:
        """Something is planned and no more than that many clips lack audio."""
        return self.n_planned > 0 and self.n_missing <= max_missing

    def to_json(self) -> dict[str, Any]:
        return {
            "manifest": self.manifest,
            "statistics": {
                "total_events": self.total_events,
                "planned_clips": self.n_planned,
                "resolved_audio": self.n_planned - self.n_missing,
                "missing_audio": self.n_missing,
                "missing_components": self.excluded["no_components"],
                "with_components": self.n_planned,
                "expected_seconds": round(sum(self.seconds.values()), 6),
            },
            "excluded": {k: self.excluded[k] for k in OUTCOMES},
            "label_counts": dict(sorted(self.label_counts.items(), key=lambda item: (-item[1], item[0]))),
            "missing_examples": self.examples,
            "missing_sources": dict(sorted(self.missing.items())),
            "expected_seconds_by_source": {k: round(v, 6) for k, v in sorted(self.seconds.items())},
            "root_hits": self.root_hits,
        }

    def durations(self) -> list[tuple[str, str, int, float]]:
        """Rows of the durations table: category, source, clips, seconds."""
        return _category("expected", {s: (n, self.seconds[s]) for s, n in self.planned.items()})

    def sections(self) -> list[Section]:
        """As tables that a person reads."""
        found = self.to_json()
        seconds = found["expected_seconds_by_source"]
        sources = tuple((source, n, seconds[source], formatted_duration(seconds[source])) for source, n in sorted(self.planned.items()))
        missing = tuple(
            (f"{e['source_set']}/{e['audio_path']}", e["reason"], tried) if n == 0 else ("", "", tried)
            for e in self.examples[:SHOWN_EXAMPLES]
            for n, tried in enumerate(e["tried"] or [""])
        )
        return [
            ("Totals", Table(("", ""), tuple(found["statistics"].items()))),
            ("Sources", Table(("source", "clips", "seconds", "duration"), sources)),
            ("Labels", Table(("", ""), tuple(found["label_counts"].items()))),
            ("Excluded", Table(("", ""), tuple((k, n) for k, n in found["excluded"].items() if n))),
            ("Files found per root", Table(("", ""), tuple(self.root_hits.items()))),
            ("Clips without audio", Table(("", ""), tuple(found["missing_sources"].items()))),
            ("Examples", Table(("recording", "reason", "tried"), missing)),
        ]


def _category(name: str, by_source: Mapping[str, tuple[int, float]]) -> list[tuple[str, str, int, float]]:
    rows = [(name, source, n, seconds) for source, (n, seconds) in sorted(by_source.items())]
    return [*rows, (name, "TOTAL", sum(r[2] for r in rows), sum(r[3] for r in rows))]


def durations_csv(rows: Sequence[tuple[str, str, int, float]]) -> bytes:
    """The durations table; a cell that a spreadsheet would compute gets an apostrophe."""
    lines = [CSV_HEADER]
    for category, source, clips, seconds in rows:
        shown = f"'{source}" if source.startswith(FORMULA) else source
        quoted = '"' + shown.replace('"', '""') + '"' if any(c in shown for c in ',"\n\r') else shown
        lines.append(f"{category},{quoted},{clips},{seconds:.6f},{formatted_duration(seconds)}")
    return ("\n".join(lines) + "\n").encode()


def durations_of(report: Report) -> list[tuple[str, str, int, float]]:
    """Rows of the durations table of an export: expected, total, run, run_healed."""
    found = report.facts["durations"]
    rows: list[tuple[str, str, int, float]] = []
    for category in ("expected", "total", "run", "run_healed"):
        rows += _category(category, {s: (int(n), float(seconds)) for s, (n, seconds) in found[category].items()})
    return rows


def write_user_files(summary: Path | None, payload: Any, durations: Path | None, rows: Sequence[tuple[str, str, int, float]]) -> None:
    """Files that the user asked for by name."""
    if summary is not None:
        Store(summary.parent, remember=False).publish_json(summary, payload)
    if durations is not None:
        Store(durations.parent, remember=False).publish(durations, durations_csv(rows))


def verify(settings: Settings, request: BundleRequest, *, probe: str = "header", progress: Progress = silent) -> Verified:
    """Settle every event, look for each recording once, open it as far as `probe` says (none, header, decode). Nothing is written.

    Raises
    ------
    ConfigError, InputError : as the plan of an export
    """
    manifest = request.manifest or settings.layout.annotated
    options = BundleOptions(**request.content)
    taxonomy = Taxonomy.load(settings)
    options.validate(taxonomy)
    sources = read_sources(settings, manifest, options)
    planner = Planner(options, taxonomy, sources.split_of, None, settings.generated_wanted)
    found = Verified(settings.layout.shown(manifest), options.layout)
    if options.limit is not None:
        smallest: list[tuple[str, str]] = []
        for batch in manifest_batches(manifest, COLUMNS):
            eligible = batch.filter(planner.classify(batch) == "planned")["event_id"].to_list()
            smallest = heapq.nsmallest(options.limit, [*smallest, *((keyed_order(options.seed, i), i) for i in eligible)])
        planner.selected = {i for _, i in smallest}
    n_expected = request.manifest_total or count_rows(manifest)
    files: list[pl.DataFrame] = []
    for batch in manifest_batches(manifest, COLUMNS):
        found.total_events += batch.height
        rows = batch.with_columns(outcome=planner.classify(batch))
        if planner.selected is not None:
            dropped = (pl.col("outcome") == "planned") & ~pl.col("event_id").is_in(list(planner.selected))
            rows = rows.with_columns(outcome=pl.when(dropped).then(pl.lit("not_selected")).otherwise("outcome"))
        found.excluded.update({k: n for k, n in rows.group_by("outcome").len().iter_rows() if k != "planned"})
        planned = rows.filter(pl.col("outcome") == "planned")
        if options.context == "fixed":
            seconds = pl.lit((options.pre_ms + options.post_ms) / 1000)
        else:
            seconds = (pl.col("context_ms").struct.field("pre").cast(pl.Float64) + pl.col("context_ms").struct.field("post")) / 1000
        files.append(
            planned.with_columns(seconds=seconds)
            .group_by("source_set", "audio_path")
            .agg(pl.len().alias("events"), pl.col("seconds").sum())
        )
        labels = planned["components"].list.eval(pl.element().struct.field("label")).explode(empty_as_null=False, keep_nulls=False)
        counts = dict(labels.alias("label").to_frame().group_by("label").len().iter_rows())
        named = planner.renamed(counts)
        for label, n in counts.items():
            found.label_counts[named[label][0] if label in named else label] += n
        progress(f"looked at {found.total_events:,} of {n_expected:,} events")
    table = pl.concat(files).group_by("source_set", "audio_path").agg(pl.col("events").sum(), pl.col("seconds").sum()) if files else None
    if table is not None:
        _resolve(settings, request, table.sort("source_set", "audio_path"), manifest, found, probe, progress)
    return found


def _resolve(
    settings: Settings, request: BundleRequest, table: pl.DataFrame, manifest: Path, found: Verified, probe: str, progress: Progress
) -> None:
    """Look for every recording once and note what is absent, with an event of each as example."""
    roots = audio_roots(settings, request.audio_root, request.audio_root_maps)
    absent: dict[tuple[str, str | None], Missing] = {}
    for n, (source, path, events, seconds) in enumerate(table.iter_rows(), 1):
        found.planned[source] += events
        found.seconds[source] += seconds
        place = _probed(roots, source, path or "", probe)
        if isinstance(place, Missing):
            found.missing[source] += events
            absent[source, path] = place
        if n % 1000 == 0:
            progress(f"looked for {n:,} of {table.height:,} recordings")
    found.root_hits = dict(sorted(roots.hits.items()))
    wanted = list(absent)[:LISTED]
    if not wanted:
        return
    keys = pl.DataFrame(wanted, schema={"source_set": pl.String, "audio_path": pl.String}, orient="row")
    events = (
        read_events(manifest)
        if manifest.suffix == ".jsonl"
        else pl.scan_parquet(manifest).select("event_id", "session_id", "source_set", "audio_path").collect()
    )
    first = events.join(keys, on=["source_set", "audio_path"], how="semi", nulls_equal=True).unique(
        ["source_set", "audio_path"], keep="first", maintain_order=True
    )
    for event_id, session_id, source, path in first.select("event_id", "session_id", "source_set", "audio_path").iter_rows():
        why = absent[source, path]
        found.examples.append(
            {
                "event_id": event_id,
                "session_id": session_id,
                "source_set": source,
                "audio_path": store.printable(path or ""),
                "reason": f"{why.code}: {why.message}",
                "tried": list(why.tried),
            }
        )


def _probed(roots: AudioRoots, source: str, path: str, probe: str) -> Path | Missing:
    place = roots.find(source, path)
    if isinstance(place, Missing) or probe == "none":
        return place
    try:
        if probe == "decode":
            audio.probe(place, silent_ok=True)
        elif audio.pcm16_place(place) is None and audio.stated_duration_s(place) <= 0:
            return Missing("unreadable-audio", "its header cannot be read", (path,))
    except AudioError as error:
        return Missing(error.code, error.message, (path,))
    return place


def estimate(settings: Settings, found: Verified, rate_hz: int = 44_100) -> dict[str, int]:
    """Room that a bundle takes, in bytes, by layout, and that of its features (spec/bundle.md section 13)."""
    samples = round(sum(found.seconds.values()) * rate_hz)
    clips = found.n_planned
    block = 4096
    each = -(-(44 + 2 * samples // max(clips, 1)) // block) * block
    return {
        "clips": clips,
        "bytes_shards": 2 * samples,
        "bytes_wav": clips * each,
        "bytes_features": clips * FEATURE_BYTES,
        "bytes_free": store.free_bytes(settings.layout.root),
    }


def run(settings: Settings, request: BundleRequest, *, progress: Progress = silent) -> Report:
    """Stage `bundle_plan`, partition = name of the bundle: the plan's files and reports/bundle/<name>_plan.json, with `audio_resolves` and `disk_budget`.

    Raises
    ------
    as `export.export`
    """
    manifest = request.manifest or settings.layout.annotated
    parents = [("manifest", manifest)] if manifest.is_relative_to(settings.layout.root) else []
    if settings.layout.splits.is_file():
        parents.append(("splits", settings.layout.splits))
    plan = plan_only(settings, request, progress=progress)
    content = asdict(plan.options)
    found = verify(
        settings, BundleRequest(request.name, manifest, content, "resume", request.audio_root, request.audio_root_maps), progress=progress
    )
    sizes = estimate(settings, found, plan.options.sample_rate)
    needed = sizes[f"bytes_{plan.options.layout}"]
    report_file = settings.layout.report("bundle", f"{request.name}_plan.json")

    def work() -> Outcome:
        settings.store.publish_json(report_file, found.to_json())
        ratio = sizes["bytes_free"] / max(needed, 1)
        rules = (
            Rule.at_most("audio_resolves", float(found.n_missing), float(request.max_missing), "planned clips without audio"),
            Rule.at_least("disk_budget", min(ratio, 1e6), SPACE_NEEDED, "free space over what the clips need"),
            Rule.at_least("disk_headroom", min(ratio, 1e6), SPACE_ADVISED, "free space over what the clips need", blocking=False),
        )
        artifact = Artifact("report", settings.store.rel(report_file), settings.store.sha256(report_file))
        return Outcome(
            outputs=[("report", report_file, None)],
            figures={
                "planned_clips": found.n_planned,
                "missing_audio": found.n_missing,
                "expected_seconds": round(sum(found.seconds.values()), 6),
                "bytes_needed": needed,
            },
            facts={"excluded": dict(found.excluded), "missing_examples": found.examples, "plan_sha256": plan.sha256},
            verdicts=[
                Verdict(
                    gate=STAGE,
                    rules=rules if found.n_planned else (),
                    inputs=(artifact,),
                    support={"planned_clips": found.n_planned},
                    profile=settings.profile,
                )
            ],
            table=Table(
                ("source", "clips", "seconds"), tuple((s, n, round(found.seconds[s], 2)) for s, n in sorted(found.planned.items()))
            ),
        )

    has_room = sizes["bytes_free"] >= SPACE_ADVISED * needed
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        partition=request.name,
        options={"plan_sha256": plan.sha256, "max_missing": request.max_missing, "missing": found.n_missing, "has_room": has_room},
        parents=parents,
        work=work,
    )
