"""Recordings that are the same sound in other bytes: louder, shifted by some milliseconds, through a codec.

Belongs here: fingerprints, the search for close ones, the check on the waveforms, the stage `near_duplicates` (manifest/near_duplicates.parquet,
which `splits` joins groups by). Does not belong here: equal bytes (`splits`, by digest), decoding (`audio`).

A fingerprint is the modulation spectrum of 16 bands: it does not know when a sound begins or how loud it is. Close fingerprints are found
by sorting (cells of a grid, eight times), never by comparing all with all. What is close is then heard: the residual of one waveform
after the other, aligned, is small in every octave only if both are the same recording; two strokes on one drum are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import workers
from beatsight_assets.audio import AudioError, read_mono
from beatsight_assets.errors import NothingToDo
from beatsight_assets.events import Manifest
from beatsight_assets.manifest.crash_embeddings import locate
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.store import printable
from beatsight_assets.units import rng_for

STAGE = "near_duplicates"
VERSION = "1"
RATE_HZ = 16_000
WINDOW, HOP = 512, 128
BAND_EDGES_HZ = np.geomspace(80, 7_000, 17)
MODULATIONS_HZ = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
N_DIMENSIONS = (len(BAND_EDGES_HZ) - 1) * (len(MODULATIONS_HZ) - 1)
FLOOR = 1e-6  # of the largest value: what lies lower is noise of the codec
BLOCK_FRAMES = 8_192
MIN_TRANSFORM = 4_096
# On 204 real recordings, each in 11 other forms, codecs move a fingerprint by 0.35 dB (median) and at most 1.3 dB; distinct
# recordings lie 10 dB apart, strokes on one drum at times less than 1 dB.
MAX_DISTANCE_DB = 1.5
# Residual: same recording through MP3 or Vorbis at most 0.148 (99.5 % of them), two strokes of one kick at least 0.154.
MAX_RESIDUAL = 0.15
OCTAVES_HZ = np.array([125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 7000.0])
OCTAVE_FLOOR = 1e-5  # of the loudest octave
MAX_LAG_S = 0.2  # shift of 50 ms and the delay of encoders
FINE = 4  # steps per sample of the lag
HEARD_S = 60.0
GRID_AXES, GRID_CELL, N_GRIDS = 8, 16.0, 8
FIRST_LOOK = 16  # axes compared before all are
SAMPLED = 20_000  # fingerprints that the axes are computed from
LISTED = 50

PAIRS_SCHEMA = pl.Schema(
    {
        "cluster": pl.String(),  # smallest digest of all recordings that are joined
        **{f"{c}_{s}": pl.String() for s in "ab" for c in ("source_set", "session_id", "group_id", "audio_path", "sha256")},
        "distance_db": pl.Float64(),
        "residual": pl.Float64(),
    }
)


@dataclass(frozen=True)
class NearOptions:
    """audio_roots : {source_set: folder}, looked in before the configured ones."""

    audio_roots: Mapping[str, Path] = field(default_factory=dict)


def fingerprint(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Modulation spectrum of mono audio at 16 kHz, in dB of its sum: float32 [shape=(112,)], 16 bands of 7 modulations. Not for silence."""
    padded = np.concatenate([np.zeros(WINDOW, np.float32), samples, np.zeros(WINDOW, np.float32)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE_HZ)
    low, high = BAND_EDGES_HZ[:-1], np.maximum(BAND_EDGES_HZ[1:], BAND_EDGES_HZ[:-1] + RATE_HZ / WINDOW)
    bands = ((bins >= low[:, None]) & (bins < high[:, None])).astype(np.float32)
    blocks = [
        np.sqrt(bands @ (np.abs(np.fft.rfft(frames[i : i + BLOCK_FRAMES] * window, axis=1)) ** 2).T)
        for i in range(0, len(frames), BLOCK_FRAMES)
    ]
    envelopes = np.concatenate(blocks, axis=1)
    n = max(MIN_TRANSFORM, 1 << (envelopes.shape[1] - 1).bit_length())
    power = np.abs(np.fft.rfft(envelopes, n, axis=1)) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(n, HOP / RATE_HZ), MODULATIONS_HZ)
    sums = np.add.reduceat(power, edges, axis=1)[:, :-1]
    share = sums / sums.sum()
    return (10 * np.log10(share + FLOOR * share.max())).astype(np.float32).ravel()


def close_pairs(
    fingerprints: NDArray[np.float32], max_distance_db: float = MAX_DISTANCE_DB
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pairs of rows no further apart than `max_distance_db` (root mean square over the dimensions), sorted.

    Cells of a grid over the eight widest axes, shifted eight times: a pair is missed when a border lies between it each time.

    Returns
    -------
    int64 [shape=(n_pairs, 2)], first < second; float32 [shape=(n_pairs,)] in dB
    """
    n, n_dims = fingerprints.shape
    if n < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    sample = fingerprints[:: -(-n // SAMPLED)].astype(np.float64)
    centre = sample.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(sample.T))
    turned = (fingerprints - centre.astype(np.float32)) @ axes[:, ::-1].astype(np.float32)
    limit = max_distance_db**2 * n_dims
    found: list[NDArray[np.int64]] = []
    rng = rng_for(0, "near_duplicates")
    n_axes = min(GRID_AXES, n_dims)
    # Each axis takes the eight shifts in an order of its own: a small difference lies across a border in one or two grids, not in all.
    shifts = (np.argsort(rng.random((N_GRIDS, n_axes)), axis=0) + rng.random(n_axes)) * (GRID_CELL / N_GRIDS)
    for shift in shifts.astype(np.float32):
        cells = np.floor((turned[:, :n_axes] + shift) / GRID_CELL).astype(np.int64)
        odd = rng.integers(1, 2**63, n_axes, dtype=np.uint64) | np.uint64(1)
        keys = (cells.view(np.uint64) * odd).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        for first, second in _in_one_cell(keys[order]):
            a, b = order[first], order[second]
            for part in (slice(0, FIRST_LOOK), slice(FIRST_LOOK, None)):  # almost all fail at the first look
                near = ((turned[a, part] - turned[b, part]) ** 2).sum(axis=1) <= limit
                a, b = a[near], b[near]
            found.append(np.minimum(a, b) * n + np.maximum(a, b))
    codes = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    pairs = np.stack([codes // n, codes % n], axis=1)
    distance = np.sqrt(((fingerprints[pairs[:, 0]] - fingerprints[pairs[:, 1]]) ** 2).mean(axis=1))
    near = distance <= max_distance_db
    return pairs[near], distance[near]


def _in_one_cell(keys: NDArray[np.uint64], block: int = 200_000) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of all pairs of equal keys among sorted ones, in blocks."""
    at = np.flatnonzero(keys[1:] == keys[:-1])
    step = 1
    while at.size:
        for i in range(0, at.size, block):
            yield at[i : i + block], at[i : i + block] + step
        step += 1
        at = at[at + step < len(keys)]
        at = at[keys[at + step] == keys[at]]


def residual(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """What is left of one waveform when the other, aligned and scaled, is taken off it: mean over octaves, 0 equal .. 1 unrelated.

    Mono at 16 kHz. At most 60 s around the loudest sample are compared; the shift may be 200 ms.
    """
    peak = int(np.abs(a).argmax())
    start = max(0, peak - round(HEARD_S / 2 * RATE_HZ))
    x, y = (v[start : start + round(HEARD_S * RATE_HZ)].astype(np.float64) for v in (a, b))
    if not (x.any() and y.any()):
        return 1.0
    n = 1 << (len(x) + len(y) - 1).bit_length()
    bins = np.fft.rfftfreq(n, 1 / RATE_HZ)
    left, right = np.fft.rfft(x, n), np.fft.rfft(y, n)
    cross = left * right.conj()
    steep = (2 * np.sin(np.pi * bins / RATE_HZ)) ** 2  # the low end alone would look alike for any two kicks
    lags = np.fft.irfft(cross * steep, n * FINE)
    reach = round(MAX_LAG_S * RATE_HZ * FINE)
    lags = np.concatenate([lags[-reach:], lags[:reach]])
    best = int(np.abs(lags).argmax())
    aligned = (cross * np.exp(2j * np.pi * bins / RATE_HZ * ((best - reach) / FINE))).real * np.sign(lags[best])
    at = np.searchsorted(bins, OCTAVES_HZ)
    both, one, other = (np.add.reduceat(v, at)[:-1] for v in (aligned, np.abs(left) ** 2, np.abs(right) ** 2))
    heard = (
        np.minimum(one / one.max(), other / other.max()) > OCTAVE_FLOOR if one.max() > 0 and other.max() > 0 else np.zeros(len(one), bool)
    )
    if not heard.any():
        return 1.0
    alike = both[heard] / np.sqrt(one[heard] * other[heard])
    return float(np.sqrt(np.clip(1.0 - alike, 0.0, 1.0)).mean())


def recordings(manifest: Manifest) -> pl.DataFrame:
    """Sessions that belong to audio: source_set, session_id, group_id, audio_path; sorted."""
    columns = ["source_set", "session_id", "group_id", "audio_path"]
    found = [manifest.read(0, 0, columns), *(piece.unique() for piece in manifest.pieces(columns))]
    return pl.concat(found).drop_nulls("audio_path").unique().sort(columns)


@dataclass(frozen=True)
class Found:
    """pairs : PAIRS_SCHEMA; fingerprints : sha256, fingerprint of every audio that was heard; unread : {file: why}."""

    pairs: pl.DataFrame
    fingerprints: pl.DataFrame
    n_candidates: int
    unread: dict[str, str]


def find(
    sessions: pl.DataFrame, settings: Settings, options: NearOptions, *, known: Mapping[str, Sequence[float]] | None = None, progress: Progress = silent
) -> Found:  # fmt: skip
    """Pairs of sessions whose audio is the same sound in other bytes. Audio of equal bytes is one recording here; silence is none.

    Parameters
    ----------
    sessions : `recordings`
    known : {sha256: fingerprint} of an earlier run
    """
    places = locate(sessions, settings, options.audio_roots)
    files: dict[str, Path] = {}
    unread: dict[str, str] = {}
    digests: list[str | None] = []
    for source_set, name in sessions.select("source_set", "audio_path").iter_rows():
        path = places[source_set, name]
        if path is None:
            unread[printable(f"{source_set}/{name}")] = "no such file"
        digests.append(settings.store.sha256(path) if path else None)
        if path and digests[-1]:
            files.setdefault(str(digests[-1]), path)
    prints = {d: np.asarray(v, np.float32) for d, v in (known or {}).items() if d in files}
    new = sorted(set(files) - set(prints))
    with workers.executor(settings.executor, settings.n_workers) as pool:
        for i, made in enumerate(workers.ordered_map(pool, _fingerprint_file, [files[d] for d in new], n_workers=settings.n_workers)):
            if isinstance(made, str):
                unread[printable(files[new[i]].name)] = made
            elif made is not None:
                prints[new[i]] = made
            progress(f"near duplicates: {i + 1:,} of {len(new):,} files heard")
        order = sorted(prints)
        table = np.stack([prints[d] for d in order]) if order else np.empty((0, N_DIMENSIONS), np.float32)
        candidates, distances = close_pairs(table)
        jobs = [(files[order[a]], files[order[b]]) for a, b in candidates.tolist()]
        residuals = list(workers.ordered_map(pool, _residual_of_files, jobs, n_workers=settings.n_workers))
    same = [
        (order[a], order[b], float(d), r)
        for (a, b), d, r in zip(candidates.tolist(), distances.tolist(), residuals, strict=True)
        if r <= MAX_RESIDUAL
    ]
    pairs = _as_sessions(same, sessions.with_columns(sha256=pl.Series(digests, dtype=pl.String)))
    heard = pl.DataFrame({"sha256": order, "fingerprint": table.tolist()}, schema={"sha256": pl.String, "fingerprint": pl.List(pl.Float32)})
    return Found(pairs, heard, len(candidates), dict(sorted(unread.items())))


def _fingerprint_file(path: Path) -> NDArray[np.float32] | str | None:
    """The fingerprint of a file, None for silence, or `code: message` when it cannot be read; runs in a worker process."""
    try:
        clip = read_mono(path, RATE_HZ, silent_ok=True)
    except AudioError as error:
        return f"{error.code}: {error.message}"
    return None if clip.info.is_silent or not clip.samples.any() else fingerprint(clip.samples)


def _residual_of_files(job: tuple[Path, Path]) -> float:
    return residual(_samples(job[0]), _samples(job[1]))


@lru_cache(maxsize=16)
def _samples(path: Path) -> NDArray[np.float32]:
    return read_mono(path, RATE_HZ, silent_ok=True).samples


def _as_sessions(same: Iterable[tuple[str, str, float, float]], sessions: pl.DataFrame) -> pl.DataFrame:
    """Every pair of sessions of a pair of digests, with the smallest digest of all that hang together as `cluster`."""
    same = list(same)
    root: dict[str, str] = {}

    def top(x: str) -> str:
        while root.setdefault(x, x) != x:
            root[x] = root[root[x]]
            x = root[x]
        return x

    for a, b, *_ in same:
        low, high = sorted((top(a), top(b)))
        root[high] = low
    table = pl.DataFrame(
        [(top(a), a, b, d, round(r, 6)) for a, b, d, r in same],
        schema={"cluster": pl.String, "sha256_a": pl.String, "sha256_b": pl.String, "distance_db": pl.Float64, "residual": pl.Float64},
        orient="row",
    )
    for side in "ab":
        table = table.join(sessions.rename(lambda c, s=side: f"{c}_{s}"), on=f"sha256_{side}", how="inner")  # type: ignore[misc]
    return table.select(PAIRS_SCHEMA.names()).sort(PAIRS_SCHEMA.names()[:-2])


def content_keys(pairs: pl.DataFrame) -> pl.DataFrame:
    """Sessions of near duplicates as content that they share: source_set, session_id, group_id, kind `audio`, key (`splits.session_keys`)."""
    sides = [
        pairs.select(
            pl.col(f"source_set_{s}").alias("source_set"),
            pl.col(f"session_id_{s}").alias("session_id"),
            pl.col(f"group_id_{s}").alias("group_id"),
            kind=pl.lit("audio"),
            key=pl.lit("near:") + pl.col("cluster"),
        )
        for s in "ab"
    ]
    return pl.concat(sides).unique()


def repeated_events(events: pl.DataFrame, pairs: pl.DataFrame) -> int:
    """Events that near duplicates repeat: of each set of labels, all that the recordings of a cluster hold beyond the one that holds most."""
    members = content_keys(pairs).select("source_set", "session_id", "key").unique()
    rows = events.select("source_set", "session_id", "components").join(members, on=["source_set", "session_id"], how="inner")
    rows = rows.with_columns(labels=pl.col("components").list.eval(pl.element().struct.field("label")).list.sort().list.join(","))
    counts = rows.group_by("key", "labels", "source_set", "session_id").len()
    return int(counts.group_by("key", "labels").agg((pl.col("len").sum() - pl.col("len").max()).alias("n"))["n"].sum())


def run(settings: Settings, options: NearOptions = NearOptions(), *, progress: Progress = silent) -> Report:
    """manifest/merged.parquet -> manifest/near_duplicates.parquet and manifest/fingerprints.parquet; no gate judges it, `splits` joins by it.

    Raises
    ------
    InputError `missing-input` : nothing was merged yet
    """
    layout = settings.layout
    sessions = recordings(Manifest(layout.merged))
    places = locate(sessions, settings, options.audio_roots)
    digests = "".join(f"{s}/{p} {settings.store.sha256(at) if at else None}\n" for (s, p), at in places.items())
    cache = layout.near_duplicates.with_name("fingerprints.parquet")

    def work() -> Outcome:
        found = find(sessions, settings, options, known=_known(cache), progress=progress)
        settings.store.publish_frame(cache, found.fingerprints, metadata={"version": VERSION})
        settings.store.publish_frame(layout.near_duplicates, found.pairs)
        return Outcome(
            outputs=[
                ("near_duplicates", layout.near_duplicates, found.pairs.height),
                ("fingerprints", cache, found.fingerprints.height),
            ],
            figures={
                "sessions_with_audio": sessions.height,
                "recordings_heard": found.fingerprints.height,
                "unread_files": len(found.unread),
                "candidates": found.n_candidates,
                "pairs": found.pairs.height,
                "clusters": found.pairs["cluster"].n_unique(),
            },
            facts={"unread": dict(list(found.unread.items())[:LISTED])},
            table=Table(
                ("one", "other", "distance dB", "residual"),
                tuple(found.pairs.select("session_id_a", "session_id_b", "distance_db", "residual").head(24).iter_rows()),
            ),
        )

    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"audio_sha256": sha256(digests.encode()).hexdigest()},
        parents=[("merged", layout.merged)],
        work=work,
    )


def _known(cache: Path) -> dict[str, Any]:
    """Fingerprints of an earlier run of this version; a file that cannot be read is made again."""
    try:
        if pl.read_parquet_metadata(cache).get("version") != VERSION:
            return {}
        return dict(pl.read_parquet(cache).iter_rows())
    except (pl.exceptions.PolarsError, OSError):
        return {}


def of_manifest(path: Path, settings: Settings, options: NearOptions, *, progress: Progress = silent) -> Found:
    """`find` for the sessions of a manifest file.

    Raises
    ------
    NothingToDo `nothing-to-do` : no session belongs to audio
    """
    sessions = recordings(Manifest(path))
    if not sessions.height:
        raise NothingToDo("no event belongs to audio; nothing was written", code="nothing-to-do", where=str(path))
    return find(sessions, settings, options, progress=progress)
