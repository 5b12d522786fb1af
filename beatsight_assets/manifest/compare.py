"""What a manifest holds in a page of numbers, and what changed between two of them.

Belongs here: the snapshot kept per release (`manifest_metrics`) and the difference of two manifests (`manifest_diff`).
Does not belong here: judging a manifest (`health`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets.errors import NothingToDo
from beatsight_assets.events import hits_of, label_counts, read_events
from beatsight_assets.manifest.annotate import count_techniques
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent

STAGE = "manifest_metrics"
VERSION = "1"
QUANTILES = (5, 25, 50, 75, 95)  # percent
DIGITS = 9  # what is left of a f32, and independent of the order of summation
UNASSIGNED = "unassigned"

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
    sides = {"baseline": _census(baseline), "candidate": _census(candidate)}

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


def run(settings: Settings, options: SnapshotOptions = SnapshotOptions(), *, progress: Progress = silent) -> Report:
    """Publish reports/metrics/<name>_snapshot.json.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`
    NothingToDo `nothing-to-do` : zero events
    """
    manifest = options.manifest or settings.layout.annotated
    splits = settings.layout.splits if options.manifest is None and settings.layout.splits.is_file() else None

    def work() -> Outcome:
        events = read_events(manifest)
        if not events.height:
            raise NothingToDo("the manifest holds no event; nothing was written", code="nothing-to-do", where=settings.store.rel(manifest))
        progress(f"counting {events.height:,} events")
        found = snapshot(events, pl.read_parquet(splits) if splits else None)
        report = {"manifest": settings.store.rel(manifest), "sha256": settings.store.sha256(manifest)} | found
        target = settings.layout.report("metrics", f"{options.name}_snapshot.json")
        settings.store.publish_json(target, report)
        return Outcome(
            outputs=[("snapshot", target, None)],
            figures={k: found[k] for k in ("num_events", "num_sessions", "num_groups")},
            facts={k: v for k, v in report.items() if not k.startswith("num_")},
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
