"""One table of events from the tables of all datasets.

Belongs here: the union, rows that occur twice, and the guard that lets no dataset in whose own checks are not green.
Does not belong here: merging hits into events (`events.assemble`). Two tables that disagree about one instant are two truths: an error.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.errors import GateFailed, InputError, NothingToDo
from beatsight_assets.events import (
    EVENT_SCHEMA,
    PIECE_ROWS,
    SESSION_KEY,
    Manifest,
    empty_frame,
    find_repeats,
    parquet_metadata,
    session_starts,
)
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


@dataclass
class MergeFigures:
    """What a merge met on its way; complete when the last piece was taken.

    n_rows : rows of the result; n_collapsed : equal rows that became one
    sessions, groups : of each source set
    """

    n_rows: int = 0
    n_collapsed: int = 0
    sessions: Counter[str] = field(default_factory=Counter)
    groups: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


class IdConflict(GateFailed):
    """Event ids with unequal content. `conflicts` holds all of them, in the order of the manifest."""

    conflicts: tuple[Conflict, ...] = ()

    @classmethod
    def of(cls, conflicts: Sequence[Conflict]) -> IdConflict:
        error = cls(conflict_message(conflicts), code="id-conflict")
        error.conflicts = tuple(conflicts)
        return error


@dataclass(frozen=True)
class MergeResult:
    """A union in memory: sorted by ORDER, every id once unless it is in conflict; n_collapsed : equal rows that became one."""

    frame: pl.DataFrame
    n_collapsed: int
    conflicts: tuple[Conflict, ...]


def merge_frames(frames: Sequence[pl.DataFrame]) -> MergeResult:
    """Union of event tables in memory, see `merged_pieces`."""
    return _merged([Manifest(f) for f in frames])


def _merged(manifests: Sequence[Manifest]) -> MergeResult:
    figures, pieces = MergeFigures(), [empty_frame()]
    conflicts: tuple[Conflict, ...] = ()
    try:
        pieces += merged_pieces(manifests, figures)
    except IdConflict as error:
        conflicts = error.conflicts
    return MergeResult(pl.concat(pieces, rechunk=True), figures.n_collapsed, conflicts)


def merged_pieces(manifests: Sequence[Manifest], figures: MergeFigures) -> Iterator[pl.DataFrame]:
    """Union of event tables in pieces of whole sessions, sorted by ORDER; equal rows collapse; `figures` is filled on the way.

    The order of inputs does not matter; merging a table with itself gives the table. Inputs whose sessions stand in order are read once,
    a row group at a time; another one is sorted in memory first.

    Raises
    ------
    IdConflict : after the last piece, so that all conflicts are known; whoever publishes has not published yet
    """
    inputs = [m if m.in_order() else Manifest(m.read().sort(ORDER, maintain_order=True)) for m in manifests if m.n_rows]
    plan = list(_plan(inputs))
    readers = [m.parts([end for part in plan for of, end in part if of == i]) for i, m in enumerate(inputs)]
    hashes = []
    for part in plan:
        piece, n_collapsed = _collapsed(_sorted([next(readers[i]) for i, _ in part]))
        figures.n_rows += piece.height
        figures.n_collapsed += n_collapsed
        for name, _, group in piece.select(*SESSION_KEY, "group_id").filter(pl.Series(session_starts(piece))).iter_rows():
            figures.sessions[name] += 1
            figures.groups[name].add(group)
        hashes.append(piece["event_id"].hash().to_numpy())
        yield piece
    conflicts = _conflicts(inputs, hashes)
    if conflicts:
        raise IdConflict.of(conflicts)


def _plan(inputs: Sequence[Manifest]) -> Iterator[list[tuple[int, int]]]:
    """(input, end row) of each piece of the union: every session whole, with the rows that all inputs have of it."""
    if not inputs:
        return
    runs = pl.concat(
        [
            pl.DataFrame({**m.runs.to_dict(), "end": [*m.runs["row"].to_list()[1:], m.n_rows], "input": [i] * m.runs.height})
            for i, m in enumerate(inputs)
        ]
    ).sort(*SESSION_KEY, "input")
    starts = session_starts(runs)
    piece = ((runs["end"] - runs["row"]).cum_sum().to_numpy() - 1) // PIECE_ROWS
    piece = np.maximum.accumulate(piece[np.maximum.accumulate(np.where(starts, np.arange(runs.height), 0))])  # where its session begins
    ends = runs.with_columns(piece=pl.Series(piece)).group_by("piece", "input", maintain_order=True).agg(pl.col("end").max())
    for _, part in ends.group_by("piece", maintain_order=True):
        yield list(part.select("input", "end").iter_rows())


def _sorted(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One table in ORDER from parts whose sessions are; nothing is moved where the parts follow each other."""
    frame = pl.concat(parts)
    starts, onset, ids = session_starts(frame), frame["onset_time"].to_numpy(), frame["event_id"]
    begun = frame.select(SESSION_KEY).filter(pl.Series(starts)).select(pl.struct(SESSION_KEY).alias("key"))["key"]
    at = 1 + np.flatnonzero(~(onset[1:] > onset[:-1]) & ~starts[1:])  # rows that do not come after the one before by time alone
    if (
        begun.is_sorted()
        and begun.n_unique() == begun.len()
        and ((onset[at] == onset[at - 1]) & (ids.gather(at) >= ids.gather(at - 1)).to_numpy()).all()
    ):
        return frame
    order = frame.select(ORDER).with_row_index("row").sort(ORDER, maintain_order=True)["row"]
    return frame.rechunk()[order]  # gathering nested columns from many chunks is 15 times slower than from one


def _collapsed(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Rows in ORDER without those that equal the row before them in every column, and how many those were."""
    ids = frame["event_id"]
    twins = np.flatnonzero((ids == ids.shift(1)).fill_null(False).to_numpy())
    if not twins.size:
        return frame, 0
    runs = np.cumsum(np.append(True, np.diff(twins) > 1)) - 1
    first = twins[np.append(True, np.diff(twins) > 1)][runs] - 1  # of the rows with this id
    same = np.ones(twins.size, dtype=bool)
    known = np.union1d(twins, first)
    few = frame.filter(pl.Series(np.isin(np.arange(frame.height), known))).rechunk()
    rows, kept = few[np.searchsorted(known, twins)], few[np.searchsorted(known, first)]
    for name in frame.columns:
        same &= rows[name].eq_missing(kept[name]).to_numpy()
    keep = np.ones(frame.height, dtype=bool)
    keep[twins[same]] = False
    return frame.filter(pl.Series(keep)), int(same.sum())


def merge_files(paths: Sequence[Path]) -> tuple[MergeResult, list[int]]:
    """Union of manifests of any form (`merge_frames`) and the rows of each; every file is read before anything can be written.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`
    NothingToDo `nothing-to-do` : zero rows in all of them
    """
    manifests = [Manifest(path) for path in paths]
    if not any(m.n_rows for m in manifests):
        raise NothingToDo("the inputs hold no event; nothing was written", code="nothing-to-do")
    return _merged(manifests), [m.n_rows for m in manifests]


def _conflicts(inputs: Sequence[Manifest], hashes: Sequence[NDArray[np.uint64]]) -> list[Conflict]:
    """Ids that still stand in two rows; where in several sessions, the first is named.

    Works on hashes of the ids (8 bytes a row); only rows with equal hashes are read again.
    """
    together = np.concatenate([*hashes, np.empty(0, np.uint64)])
    twice = pl.Series(np.unique(together[find_repeats(together)]))
    if not twice.len():
        return []
    suspects = _sorted([p.filter(p["event_id"].hash().is_in(twice.implode())) for m in inputs for p in m.pieces()] + [empty_frame()])
    suspects = _collapsed(suspects)[0].select(ORDER)
    named = suspects.group_by("event_id", maintain_order=True).agg(pl.first("source_set", "session_id", "onset_time"), pl.len())
    return [Conflict(*row) for row in named.filter(pl.col("len") > 1).iter_rows()]


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
        manifests = {name: Manifest(settings.layout.events(name)) for name in present}
        n_read = sum(m.n_rows for m in manifests.values())
        progress(f"merging {n_read:,} events of {len(present)} datasets")
        if not n_read:
            raise NothingToDo("the event tables are empty. Look at quarantine/ for the reason", code="no-events")
        result = MergeFigures()
        pieces = merged_pieces(list(manifests.values()), result)
        settings.store.publish_frames(settings.layout.merged, pieces, EVENT_SCHEMA, metadata=parquet_metadata(taxonomy))
        counts = [
            (name, m.n_rows, result.sessions[name], len(result.groups[name]), settings.store.sha256(settings.layout.events(name)))
            for name, m in manifests.items()
        ]
        n_rows = result.n_rows
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
