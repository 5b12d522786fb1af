"""What a manifest holds in a page of numbers, and what changed between two of them.

Belongs here: the stages `manifest_metrics` (a snapshot; rule `drift` of gate `metrics`, which warns) and `manifest_diff` (what changed since
the version before; no gate), and the difference of any two manifests. Does not belong here: judging a manifest (`health`).

Both stages compare with what they wrote last about another version, and keep that in their file: done again, they say the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import store
from beatsight_assets.errors import InputError, NothingToDo
from beatsight_assets.events import Manifest, hits_of, label_counts
from beatsight_assets.manifest.annotate import count_techniques
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE, DIFF_STAGE = "manifest_metrics", "manifest_diff"
VERSION = "2"
MAX_DRIFT = 0.1  # share of the hits that would need another label to look like the version before
QUANTILES = (5, 25, 50, 75, 95)  # percent
DIGITS = 9  # what is left of a f32, and independent of the order of summation
UNASSIGNED = "unassigned"
COLUMNS = ("source_set", "session_id", "group_id", "split_hint", "components", "techniques")  # all that is counted

Counts = Mapping[str, int]


@dataclass(frozen=True)
class SnapshotOptions:
    """manifest : None = the annotated one; name : of the report file."""

    manifest: Path | None = None
    name: str = "annotated"


def number_stats(values: pl.Series) -> dict[str, float | int | None]:
    """n, p05 .. p95 (linear), min, max and mean of the known, finite values; None where there are none."""
    known = values.drop_nulls().cast(pl.Float64)
    known = known.filter(known.is_finite())
    figures = {f"p{q:02d}": known.quantile(q / 100, interpolation="linear") for q in QUANTILES}
    figures |= {"min": known.min(), "max": known.max(), "mean": known.mean()}  # type: ignore[dict-item]
    return {"n": known.len()} | {k: None if v is None else round(float(v), DIGITS) for k, v in figures.items()}


def with_split(events: pl.DataFrame, splits: pl.DataFrame | None) -> pl.DataFrame:
    """Events with a column `split`: that of their group in a split table, else their official one, else null. Same rows, same order."""
    if splits is None:
        return events.with_columns(split=pl.col("split_hint"))
    table = splits.select("group_id", assigned="split").unique("group_id", keep="first")
    return events.join(table, on="group_id", how="left", maintain_order="left").with_columns(
        split=pl.coalesce("assigned", "split_hint")
    ).drop("assigned")  # fmt: skip


def snapshot(events: pl.DataFrame, splits: pl.DataFrame | None = None) -> dict[str, Any]:
    """Counts and number statistics of a manifest; independent of row order."""
    hits = hits_of(events.select("components"))
    by_split = with_split(events.select("group_id", "split_hint"), splits)["split"].fill_null(UNASSIGNED)
    return {
        "num_events": events.height,
        "num_sessions": _n_sessions(events),
        "num_groups": events["group_id"].n_unique(),
        "label_counts": label_counts(events),
        "technique_counts": {t: {"events": n, "sessions": s} for t, n, s, _ in count_techniques(events).iter_rows()},
        "source_set_counts": _counted(events["source_set"]),
        "split_counts": _counted(by_split),
        "velocity_stats": number_stats(hits["velocity"]),
        "openness_stats": number_stats(hits["openness"]),
    }


def compare(baseline: pl.DataFrame, candidate: pl.DataFrame) -> dict[str, Any]:
    """Both manifests in counts, and what changed: only what differs is in `delta`, the largest change first, then by name."""
    return compare_censuses(_census(baseline), _census(candidate))


def compare_censuses(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> dict[str, Any]:
    """`compare` of two manifests that were counted before."""
    sides: dict[str, Any] = {"baseline": dict(baseline), "candidate": dict(candidate)}

    def changed(field: str) -> dict[str, dict[str, int]]:
        before, after = sides["baseline"][field], sides["candidate"][field]
        rows = {k: _change(before.get(k, 0), after.get(k, 0)) for k in {*before, *after}}
        return {k: rows[k] for k in sorted(rows, key=lambda k: (-abs(rows[k]["delta"]), k)) if rows[k]["delta"]}

    totals = {k: _change(sides["baseline"][k], sides["candidate"][k]) for k in ("total_events", "unique_sessions")}
    named = {"sessions": "session_counts", "components": "component_counts", "techniques": "technique_counts"}
    return sides | {"delta": totals | {name: changed(field) for name, field in named.items()}}


def drops(delta: Mapping[str, Mapping[str, Mapping[str, int]]], more_than: int) -> dict[str, int]:
    """Components and techniques that lost more than so many hits or events: {name: lost}."""
    rows = {**delta["techniques"], **delta["components"]}
    return {k: -v["delta"] for k, v in sorted(rows.items()) if -v["delta"] > more_than}


def drift(before: Counts, after: Counts) -> float:
    """How far two label counts are apart: half the sum of the differences of their shares, 0 equal .. 1 nothing in common.

    >>> drift({"kick": 50, "snare": 50}, {"kick": 100, "snare": 100}), drift({"kick": 3, "snare": 1}, {"kick": 1, "snare": 1})
    (0.0, 0.25)
    """
    n, m = max(sum(before.values()), 1), max(sum(after.values()), 1)
    return sum(abs(before.get(k, 0) / n - after.get(k, 0) / m) for k in sorted({*before, *after})) / 2


def run(settings: Settings, options: SnapshotOptions = SnapshotOptions(), *, progress: Progress = silent) -> Report:
    """Publish reports/metrics/<name>_snapshot.json. Rule `drift` (gate `metrics`) warns when the labels are distributed otherwise than before.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`
    NothingToDo `nothing-to-do` : zero events
    """
    manifest = options.manifest or settings.layout.annotated
    splits = settings.layout.splits if options.manifest is None and settings.layout.splits.is_file() else None
    target = settings.layout.report("metrics", f"{options.name}_snapshot.json")

    def work() -> Outcome:
        events = _read(settings, manifest, progress)
        found = snapshot(events, pl.read_parquet(splits) if splits else None)
        digest = settings.store.sha256(manifest)
        before = _before(target, digest, lambda last: {k: last[k] for k in ("sha256", "label_counts")})
        report = {"manifest": settings.store.rel(manifest), "sha256": digest, "previous": before} | found
        settings.store.publish_json(target, report)
        rule = (
            Rule.waive("drift", "there is no earlier snapshot")
            if before is None
            else Rule.at_most(
                "drift",
                round(drift(before["label_counts"], found["label_counts"]), DIGITS),
                MAX_DRIFT,
                "share of the hits by which the labels are distributed otherwise than before",
                blocking=False,
            )
        )
        artifact = Artifact("manifest", settings.store.rel(manifest), digest, events.height)
        return Outcome(
            outputs=[("snapshot", target, None)],
            figures={k: found[k] for k in ("num_events", "num_sessions", "num_groups")},
            facts={k: v for k, v in report.items() if not k.startswith("num_")},
            verdicts=[Verdict("metrics", (rule,), inputs=(artifact,), support={"events": events.height}, profile=settings.profile)],
            table=Table(("component", "hits"), tuple(list(found["label_counts"].items())[:24])),
        )

    return run_stage(
        settings,
        STAGE if options.manifest is None else f"metrics_{options.name}",
        version=VERSION,
        options={},
        parents=[("manifest", manifest), *([("splits", splits)] if splits else [])],
        work=work,
    )


@dataclass(frozen=True)
class DiffOptions:
    """`manifest_diff` has none: it is always about the annotated manifest."""


def run_diff(settings: Settings, options: DiffOptions = DiffOptions(), *, progress: Progress = silent) -> Report:
    """Publish reports/metrics/annotated_diff.json: the annotated manifest against the version this stage saw before, in counts. No gate.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`
    NothingToDo `nothing-to-do` : zero events
    """
    manifest = settings.layout.annotated
    target = settings.layout.report("metrics", "annotated_diff.json")

    def work() -> Outcome:
        census = _census(_read(settings, manifest, progress))
        digest = settings.store.sha256(manifest)
        before = _before(target, digest, lambda last: {"sha256": last["sha256"], **last["candidate"]})
        known = {k: v for k, v in (before or {}).items() if k != "sha256"} or census
        report = compare_censuses(known, census)
        document = {"manifest": settings.store.rel(manifest), "sha256": digest, "previous": before, "is_first": before is None} | report
        settings.store.publish_json(target, document)
        delta = report["delta"]
        changed = {k: len(delta[k]) for k in ("sessions", "components", "techniques")}
        return Outcome(
            outputs=[("diff", target, None)],
            figures={"events_delta": delta["total_events"]["delta"], "sessions_delta": delta["unique_sessions"]["delta"]}
            | {f"{k}_changed": n for k, n in changed.items()},
            facts={"previous_sha256": before["sha256"] if before else None, "components": delta["components"], "techniques": delta["techniques"]},
            table=Table(("component", "before", "after", "delta"), tuple((k, v["baseline"], v["candidate"], v["delta"]) for k, v in list(delta["components"].items())[:24])),
        )  # fmt: skip

    return run_stage(settings, DIFF_STAGE, version=VERSION, options={}, parents=[("manifest", manifest)], work=work)


def _read(settings: Settings, manifest: Path, progress: Progress) -> pl.DataFrame:
    table = Manifest(manifest)
    if not table.n_rows:
        raise NothingToDo("the manifest holds no event; nothing was written", code="nothing-to-do", where=settings.store.rel(manifest))
    progress(f"counting {table.n_rows:,} events")
    return table.read(columns=COLUMNS)


def _before(target: Path, digest: str, pick: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any] | None:
    """What to compare with: the last file, if it is about another version; else what that file compared with. None the first time."""
    try:
        last = store.read_json(target) if target.is_file() else None
        if not isinstance(last, dict):
            return None
        return last["previous"] if last["sha256"] == digest else pick(last)
    except (InputError, KeyError, TypeError):
        return None  # of another version of this tool, or torn: there is nothing to compare with


def _census(events: pl.DataFrame) -> dict[str, Any]:
    sessions = events.select(pl.concat_str("source_set", pl.lit("/"), "session_id").alias("name"))["name"]
    return {
        "total_events": events.height,
        "unique_sessions": _n_sessions(events),
        "session_counts": _counted(sessions),
        "component_counts": label_counts(events),
        "technique_counts": {t: n for t, n, *_ in count_techniques(events).iter_rows()},
    }


def _n_sessions(events: pl.DataFrame) -> int:
    return events.select("source_set", "session_id").n_unique()


def _counted(values: pl.Series) -> dict[str, int]:
    return dict(sorted(values.value_counts().iter_rows()))


def _change(before: int, after: int) -> dict[str, int]:
    return {"baseline": before, "candidate": after, "delta": after - before}
