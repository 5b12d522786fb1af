"""P10: near duplicates among a million fingerprints, against an inverted-file index; one thread.

The fingerprints are drawn around those of real recordings (made takes without real data); among them lie pairs of one recording in two
forms (gain, shift, MP3, Vorbis), by which recall is counted. The index is what is used today: 1,024 cells by k-means, each fingerprint
compared with all of its 8 nearest cells, by matrix products.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from beatsight_assets.audio import AudioError, read_mono, resample
from beatsight_assets.manifest.near_duplicates import MAX_DISTANCE_DB, RATE_HZ, close_pairs, fingerprint
from benchmarks.harness import Result, cpu_seconds, growth, median, shared_data

N = 1_000_000
N_CELLS, N_PROBED = 1_024, 8
GOAL = 15.0
Floats = NDArray[np.float32]


def run(n: int = N) -> list[Result]:
    """Fingerprints per CPU second."""
    one, other = _pairs()
    rng = np.random.default_rng(7)
    table = np.concatenate([_drawn(one, n - 2 * len(one), rng), one, other])
    first = n - 2 * len(one)
    planted = {(first + i, first + len(one) + i) for i in range(len(one))}
    found: dict[str, set[tuple[int, int]]] = {}

    def keep(name: str, pairs: NDArray[np.int64]) -> None:
        late = pairs[pairs[:, 0] >= first]
        found[name] = {(a, b) for a, b in late.tolist()} & planted

    ours_s = median(lambda: keep("ours", close_pairs(table)[0]))
    index_s = cpu_seconds(lambda: keep("index", _indexed_pairs(table)))
    tenth = table[np.random.default_rng(1).permutation(n)[: n // 10]]
    small_s = median(lambda: close_pairs(tenth))
    recall = {name: len(pairs) / len(planted) for name, pairs in found.items()}
    met = index_s / ours_s >= GOAL and recall["ours"] >= 0.99
    return [
        Result(
            "P10 near duplicates", "fingerprints", n, n / ours_s, "inverted file, 1,024 cells, 8 probed", n / index_s, index_s / ours_s,
            growth(n / 10, small_s, n, ours_s), ">= 15x, recall >= .99", met,
            {"ours_cpu_s": ours_s, "index_cpu_s": index_s, "recall": recall["ours"], "index_recall": recall["index"],
             "planted_pairs": len(planted), "real_audio": shared_data() is not None},
        )
    ]  # fmt: skip


def _pairs() -> tuple[Floats, Floats]:
    """Fingerprints of recordings and of other forms of them; row i of both is one recording."""
    one, other = [], []
    for samples, rate_hz in _recordings():
        base = fingerprint(resample(samples, rate_hz, RATE_HZ))
        for form in _forms(samples, rate_hz):
            one.append(base)
            other.append(fingerprint(resample(np.ascontiguousarray(form, np.float32), rate_hz, RATE_HZ)))
    return np.stack(one), np.stack(other)


def _recordings() -> Iterator[tuple[Floats, int]]:
    folder = shared_data()
    for path in _every_fourth(folder) if folder else ():
        try:
            clip = read_mono(path)
        except AudioError:
            continue
        yield clip.samples, clip.rate_hz
    if folder is None:
        rng = np.random.default_rng(3)
        t = np.arange(RATE_HZ) / RATE_HZ
        for _ in range(100):
            tone = np.sin(2 * np.pi * rng.uniform(50, 3_000) * t) * rng.uniform(0, 1) + rng.normal(size=len(t)) * rng.uniform(0, 0.5)
            yield (0.2 * tone * np.exp(-t * rng.uniform(3, 40))).astype(np.float32), RATE_HZ


def _every_fourth(folder: Path) -> list[Path]:
    names = ("mdb_drums", "medleydb", "oneshots", "oneshots_multimic")
    return sorted(p for name in names for p in (folder / name).rglob("*") if p.suffix in (".wav", ".flac"))[::4]


def _forms(samples: Floats, rate_hz: int) -> Iterator[Floats]:
    yield samples * np.float32(0.25)
    for ms in (1, 23, 50):
        yield np.concatenate([np.zeros(round(ms * rate_hz / 1000), np.float32), samples])
    for form, subtype in (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")):
        file = io.BytesIO()
        soundfile.write(file, samples * min(1.0, 0.9 / float(np.abs(samples).max())), rate_hz, format=form, subtype=subtype)
        file.seek(0)
        yield soundfile.read(file, dtype="float32")[0]


def _drawn(real: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Fingerprints of recordings that do not exist: half of the spread of the real ones around each of them, half overall."""
    centre = real.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(real.T.astype(np.float64)))
    shape = (axes * np.sqrt(np.maximum(values, 0.0))).astype(np.float32) * np.float32(0.7)
    parts = []
    for start in range(0, n, 50_000):
        m = min(50_000, n - start)
        parts.append(centre + rng.standard_normal((m, real.shape[1]), dtype=np.float32) @ shape.T + 0.7 * (real[rng.integers(0, len(real), m)] - centre))  # fmt: skip
    return np.concatenate(parts).astype(np.float32)


def _indexed_pairs(table: Floats) -> NDArray[np.int64]:
    """Pairs within the limit by an inverted file: exact within the cells that are probed."""
    rng = np.random.default_rng(0)
    cells = table[rng.choice(len(table), N_CELLS, replace=False)].astype(np.float32)
    sample = table[rng.choice(len(table), min(len(table), 40_000), replace=False)]
    for _ in range(4):
        owner = np.argmin((cells**2).sum(axis=1) - 2 * sample @ cells.T, axis=1)
        sums = np.zeros_like(cells)
        np.add.at(sums, owner, sample)
        n = np.bincount(owner, minlength=N_CELLS)[:, None]
        cells = np.where(n > 0, sums / np.maximum(n, 1), cells).astype(np.float32)
    probed = np.concatenate([
        np.argpartition((cells**2).sum(axis=1) - 2 * table[i : i + 20_000] @ cells.T, N_PROBED, axis=1)[:, :N_PROBED] for i in range(0, len(table), 20_000)
    ])  # fmt: skip
    squares = (table**2).sum(axis=1)
    near = np.stack([((table - cells[probed[:, k]]) ** 2).sum(axis=1) for k in range(N_PROBED)], axis=1)
    home = probed[np.arange(len(table)), near.argmin(axis=1)]
    members = np.split(np.argsort(home, kind="stable"), np.cumsum(np.bincount(home, minlength=N_CELLS))[:-1])
    asking = np.argsort(probed.ravel(), kind="stable") // N_PROBED
    asks = np.split(asking, np.cumsum(np.bincount(probed.ravel(), minlength=N_CELLS))[:-1])
    limit = MAX_DISTANCE_DB**2 * table.shape[1]
    found: list[Any] = []
    for held, queries in zip(members, asks, strict=True):
        for i in range(0, len(queries), 4_096):
            q = queries[i : i + 4_096]
            apart = squares[q][:, None] + squares[held] - 2 * table[q] @ table[held].T
            a, b = np.nonzero(apart <= limit)
            found.append(np.stack([q[a], held[b]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
