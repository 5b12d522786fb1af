"""One table of events from the tables of all datasets.

Belongs here: the union, rows that occur twice, and the guard that lets no dataset in whose own checks are not green.
Does not belong here: merging hits into events (`events.assemble`). Two tables that disagree about one instant are two truths: an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from beatsight_assets.errors import GateFailed, InputError, NothingToDo
from beatsight_assets.events import empty_frame, parquet_metadata, read_events
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, digest_of, is_intact, read_receipt, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE = "merged_manifest"
VERSION = "1"
ORDER = ("source_set", "session_id", "onset_time", "event_id")  # the id last, so that the order of inputs never shows
SHOWN = 20  # conflicts named in the message; the report holds all


@dataclass(frozen=True)
class MergeOptions:
    """sources : names of datasets (either name); None = all enabled ones."""

    sources: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Conflict:
    """One event id with unequal content."""

    event_id: str
    source_set: str
    session_id: str
    onset_time: float
    n_rows: int


@dataclass(frozen=True)
class MergeResult:
    """frame : sorted by ORDER, every id once unless it is in conflict; n_collapsed : equal rows that became one."""

    frame: pl.DataFrame
    n_collapsed: int
    conflicts: tuple[Conflict, ...]


def merge_frames(frames: Sequence[pl.DataFrame]) -> MergeResult:
    """Union of event tables. The order of inputs does not matter; merging a table with itself gives the table."""
    filled = [f for f in frames if f.height]
    if not filled:
        return MergeResult(empty_frame(), 0, ())
    frame = pl.concat(sorted(filled, key=lambda f: tuple(f.row(0, named=True)[c] for c in ORDER)))
    if not _is_sorted(frame):
        order = frame.select(ORDER).with_row_index("row").sort(ORDER, maintain_order=True)["row"]
        frame = frame.rechunk()[order]  # gathering nested columns from many chunks is 15 times slower than from one
    repeated = _rows_with_repeated_id(frame["event_id"])
    if not repeated.size:
        return MergeResult(frame, 0, ())
    frame = frame.rechunk()
    ids = frame["event_id"].gather(repeated)
    repeated = repeated[ids.arg_sort().to_numpy()]  # equal ids side by side
    rows = frame[repeated]
    starts = rows["event_id"].ne_missing(rows["event_id"].shift(1)).to_numpy()
    first = np.maximum.accumulate(np.where(starts, np.arange(repeated.size), 0))
    kept = rows[first]
    same = np.ones(repeated.size, dtype=bool)
    for name in frame.columns:
        same &= rows[name].eq_missing(kept[name]).to_numpy()
    in_conflict = np.isin(first, first[~same])
    conflicts = tuple(
        Conflict(*row)
        for row in rows.filter(pl.Series(in_conflict))
        .group_by("event_id", "source_set", "session_id", "onset_time")
        .len()
        .sort(ORDER)
        .iter_rows()
    )
    keep = np.ones(frame.height, dtype=bool)
    keep[repeated[~starts & ~in_conflict]] = False
    return MergeResult(frame.filter(pl.Series(keep)), int((~keep).sum()), conflicts)


def merge_files(paths: Sequence[Path]) -> tuple[MergeResult, list[int]]:
    """Union of manifests of any form (`merge_frames`) and the rows of each; every file is read before anything can be written.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`
    NothingToDo `nothing-to-do` : zero rows in all of them
    """
    frames = [read_events(path) for path in paths]
    result = merge_frames(frames)
    if not result.frame.height:
        raise NothingToDo("the inputs hold no event; nothing was written", code="nothing-to-do")
    return result, [frame.height for frame in frames]


def _is_sorted(frame: pl.DataFrame) -> bool:
    rises = pl.lit(True)
    for name in reversed(ORDER):
        before = pl.col(name).shift(1)
        rises = (pl.col(name) > before) | ((pl.col(name) == before) & rises)
    return bool(frame.select(rises.fill_null(True).all()).item())


def _rows_with_repeated_id(ids: pl.Series) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows whose id occurs more than once. Works on hashes of the ids; only rows with equal hashes are compared as text."""
    hashes = ids.hash().to_numpy()
    ordered = np.sort(hashes)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not twice.size:
        return np.empty(0, dtype=np.int64)
    place = np.searchsorted(twice, hashes).clip(max=twice.size - 1)
    candidates = np.flatnonzero(twice[place] == hashes)
    return candidates[ids.gather(candidates).is_duplicated().to_numpy()]


def run(settings: Settings, options: MergeOptions = MergeOptions(), *, progress: Progress = silent) -> Report:
    """Merge the event tables of enabled datasets into manifest/merged.parquet.

    Raises
    ------
    GateFailed `red-source` : a dataset's receipt is absent, is about other files, or its verdict is not green
    GateFailed `id-conflict` : one id with unequal content; nothing is published
    NothingToDo `no-events` : no dataset has events
    InputError `missing-input` : a dataset named in `sources` has no events
    """
    enabled = [name for name, config in settings.datasets.items() if config.enabled]
    wanted = enabled if options.sources is None else sorted({settings.dataset(name)[0] for name in options.sources})
    present = sorted(name for name in wanted if settings.layout.events(name).is_file())
    absent = sorted(set(wanted) - set(present))
    if options.sources is not None and absent:
        raise InputError(f"no events of {', '.join(absent)}. Run: beatsight source ingest {absent[0]}", code="missing-input")
    if not present:
        raise NothingToDo("no dataset has events yet. Run: beatsight source ingest --all", code="no-events")
    _require_green(settings, present)
    missing = [
        name for name in absent if any(root.is_dir() for root in settings.raw_roots(name))
    ]  # its raw data lies here, its events do not
    limit = settings.gates.max_missing_datasets
    taxonomy = Taxonomy.load(settings)

    def work() -> Outcome:
        frames = []
        for name in present:
            progress(f"reading {settings.layout.rel(settings.layout.events(name))}")
            frames.append(read_events(settings.layout.events(name)))
        n_read = sum(f.height for f in frames)
        result = merge_frames(frames)
        if result.conflicts:
            raise GateFailed(conflict_message(result.conflicts), code="id-conflict")
        if not result.frame.height:
            raise NothingToDo("the event tables are empty. Look at quarantine/ for the reason", code="no-events")
        progress(f"writing {result.frame.height:,} events")
        settings.store.publish_frame(settings.layout.merged, result.frame, metadata=parquet_metadata(taxonomy))
        counts = [
            (name, f.height, f["session_id"].n_unique(), f["group_id"].n_unique(), settings.store.sha256(settings.layout.events(name)))
            for name, f in zip(present, frames, strict=True)
        ]
        n_rows = result.frame.height
        rules = (
            Rule(
                "conserves_rows",
                n_rows == n_read - result.n_collapsed,
                n_rows,
                n_read - result.n_collapsed,
                "rows = sum of inputs - collapsed",
            ),
            Rule.at_most("sources_expected", len(missing), limit, f"missing: {', '.join(missing)}" if missing else ""),
        )
        artifact = Artifact("merged", settings.layout.rel(settings.layout.merged), settings.store.sha256(settings.layout.merged), n_rows)
        return Outcome(
            outputs=[("merged", settings.layout.merged, n_rows)],
            figures={"rows": n_rows, "collapsed": result.n_collapsed, "sources": len(present), "missing_sources": len(missing)},
            facts={
                "inputs": [
                    {"path": settings.layout.rel(settings.layout.events(n)), "sha256": sha, "rows": rows} for n, rows, _, _, sha in counts
                ],
                "missing": missing,
                "no_raw_data": sorted(set(absent) - set(missing)),
                "left_out": sorted(set(enabled) - set(wanted)),
                "conflicts": [],
            },
            verdicts=[Verdict("merge", rules, inputs=(artifact,), support={"rows_read": n_read}, profile=settings.profile)],
            table=Table(("dataset", "events", "sessions", "groups"), tuple(row[:4] for row in counts)),
        )

    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"sources": present, "absent": absent, "missing": missing, "max_missing": limit, "taxonomy": taxonomy.digest},
        parents=[("events", settings.layout.events(name)) for name in present],
        work=work,
    )


def find_red_sources(settings: Settings, sources: Sequence[str]) -> dict[str, str]:
    """Datasets that may not be merged, with the reason: the domain half of guard G1."""
    red = {}
    for name in sources:
        receipt = read_receipt(settings, "events", name)
        path = settings.layout.events(name)
        if receipt is None:
            red[name] = "was never ingested here (no receipt)"
        elif not is_intact(settings, receipt) or digest_of(settings, path) not in {
            a.sha256 for a in receipt.outputs if a.path == settings.layout.rel(path)
        }:
            red[name] = "its files are not those its receipt names"
        elif not receipt.verdicts:
            red[name] = "nothing judged it"
        elif not receipt.passed:
            red[name] = "; ".join(f"{v.gate}/{text}" for v in receipt.verdicts if not v.passed for text in v.failures)
    return red


def _require_green(settings: Settings, sources: Sequence[str]) -> None:
    red = find_red_sources(settings, sources)
    if red:
        listed = "\n".join(f"  {name}: {why}" for name, why in red.items())
        raise GateFailed(
            f"{len(red)} of {len(sources)} datasets are not green:\n{listed}\nRun: beatsight source ingest {next(iter(red))}, "
            "or take the dataset out with `enabled: false` in configs/datasets.yaml",
            code="red-source",
        )


def conflict_message(conflicts: Sequence[Conflict]) -> str:
    """The first conflicts by place, and how many there are."""
    listed = "\n".join(
        f"  {c.source_set}/{c.session_id} at {c.onset_time:.6f} s ({c.event_id}, {c.n_rows} rows)" for c in conflicts[:SHOWN]
    )
    more = f"\n  and {len(conflicts) - SHOWN:,} more" if len(conflicts) > SHOWN else ""
    return f"{len(conflicts):,} event ids have unequal content; nothing was published:\n{listed}{more}"
