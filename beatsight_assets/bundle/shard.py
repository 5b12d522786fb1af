"""One shard: every planned clip of some recordings cut, written and receipted. A pure function of the plan, the audio and nothing else.

Belongs here: parts, wav files, clips.parquet, SHARD.json. Does not belong here: deciding whether a shard has to be made (`export`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from beatsight_assets import store
from beatsight_assets.audio import FLOOR_DB, FOLD_LIMIT_DB, AudioError, write_wav
from beatsight_assets.bundle import cut
from beatsight_assets.bundle.plan import PLAN_SCHEMA, SPLITS, Plan, read_plan, sample_of, samples_of, signed
from beatsight_assets.bundle.roots import AudioRoots, Missing
from beatsight_assets.errors import BeatSightError, InputError
from beatsight_assets.store import Store
from beatsight_assets.workers import blas_on_one_thread

SCHEMA = "beatsight.shard/1"
Place = tuple[str, str]  # source_set, audio_path
BATCH_WAVS = 512  # written, then synced and named together
_CLIP_COLUMNS: dict[str, Any] = {
    **{k: t for k, t in PLAN_SCHEMA.items() if k != "onset_us"},
    "onset_time": pl.Float64,
    "part": pl.String,  # file name below the shard's folder; null in layout wav
    "offset_samples": pl.Int64,  # of the clip in its part
    "file": pl.String,  # relative to the split's folder; null in layout shards
    "n_samples": pl.Int32,
    "duration_seconds": pl.Float64,
    "pad_left": pl.Int32,
    "pad_right": pl.Int32,
    "peak_dbfs": pl.Float32,
    "rms_dbfs": pl.Float32,
    "clipped_samples": pl.Int32,
    "clip_sha256": pl.String,
    "audio_sha256": pl.String,
}
CLIPS_SCHEMA = pl.Schema(_CLIP_COLUMNS)


@dataclass(frozen=True)
class ShardJob:
    """Everything a worker needs to make one shard."""

    root: Path  # data root
    bundle: Path
    shard: int
    roots: AudioRoots

    def __str__(self) -> str:
        return f"shard {self.shard:02d} of {self.bundle.name}"


@dataclass(frozen=True)
class ShardResult:
    """What making a shard came to."""

    shard: int
    sha256: str  # of SHARD.json
    n_clips: int
    n_bytes: int
    split_clips: Mapping[str, int]
    root_hits: Mapping[str, int]


@dataclass
class _Made:
    """Columns of the clips as they are written."""

    rows: list[np.ndarray] = field(default_factory=list)  # places in the plan
    n_samples: list[np.ndarray] = field(default_factory=list)
    pad_left: list[np.ndarray] = field(default_factory=list)
    pad_right: list[np.ndarray] = field(default_factory=list)
    clipped: list[np.ndarray] = field(default_factory=list)
    peak: list[np.ndarray] = field(default_factory=list)
    rms: list[np.ndarray] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    audio: list[str] = field(default_factory=list)
    part: list[str | None] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)


@dataclass
class _Piece:
    """Cut clips on their way into a part."""

    rows: np.ndarray
    chunk: cut.Chunk
    audio_sha256: str


class _Feed:
    """Clips of one split in the order of the plan, recording by recording."""

    def __init__(self, pieces: Iterator[_Piece]) -> None:
        self._pieces = pieces
        self._next: _Piece | None = next(pieces, None)

    @property
    def is_empty(self) -> bool:
        return self._next is None

    def take(self, n_clips: int) -> Iterator[_Piece]:
        """Pieces of n_clips clips in all, fewer at the end."""
        while n_clips > 0 and self._next is not None:
            piece, n = self._next, len(self._next.rows)
            if n > n_clips:
                c = piece.chunk
                head, tail = slice(None, n_clips), slice(n_clips, None)
                first, rest = (
                    _Piece(piece.rows[s], cut.Chunk(c.samples[s], c.pad_left[s], c.pad_right[s], c.n_clipped[s]), piece.audio_sha256)
                    for s in (head, tail)
                )
                self._next = rest
                yield first
                return
            self._next = next(self._pieces, None)
            n_clips -= n
            yield piece


class _Damaged(Exception):
    """A recording turned out damaged when clips of it were written already; the shard is made again without it."""

    def __init__(self, place: Place, error: BeatSightError) -> None:
        super().__init__(place, error)
        self.place, self.error = place, error


class _Cutter:
    """Opens the recordings of a shard one after the other and remembers what fell out."""

    def __init__(self, job: ShardJob, plan: Plan, rows: pl.DataFrame, files: Store, damaged: Mapping[Place, BeatSightError]) -> None:
        self.job, self.options, self.rows, self.files, self.damaged = job, plan.options, rows, files, damaged
        self.lost: list[dict[str, Any]] = []
        self.used: list[dict[str, Any]] = []
        self.fold_loss: list[dict[str, Any]] = []
        self.onset_us = rows["onset_us"].to_numpy()
        rate = self.options.sample_rate
        window = rows.select("pre_ms", "post_ms")
        lengths = {pair: (samples_of(pair[0], rate), samples_of(pair[1], rate)) for pair in window.unique().rows()}
        self.pre, self.post = (np.array([lengths[p][i] for p in window.iter_rows()], dtype=np.int64) for i in (0, 1))
        self.start = sample_of(self.onset_us, rate) - self.pre

    def pieces(self, split: str) -> Iterator[_Piece]:
        """Clips of one split; a recording that cannot be used is noted in `lost` and passed over."""
        keys = self.rows.select("split", "source_set", "audio_path")
        runs = keys.with_columns(run=pl.struct(pl.all()).rle_id()).with_row_index("row")
        for _, source_set, audio_path, low, n in (
            runs.filter(pl.col("split") == split)
            .group_by("run", maintain_order=True)
            .agg(pl.col("source_set").first(), pl.col("audio_path").first(), pl.col("row").first(), pl.len())
            .iter_rows()
        ):
            yield from self._recording(source_set, audio_path, np.arange(low, low + n))

    def _recording(self, source_set: str, audio_path: str, rows: np.ndarray) -> Iterator[_Piece]:
        place = {"source_set": source_set, "audio_path": audio_path}
        found = self.job.roots.find(source_set, audio_path)
        if isinstance(found, Missing):
            code = "path-escape" if found.code == "path-escape" else "missing-audio"
            self.lost.append({**place, "code": code, "message": "", "sha256": None, "events": len(rows)})  # roots are no content
            return
        digest = None
        try:
            digest = self.files.sha256(found)
            if (source_set, audio_path) in self.damaged:
                raise self.damaged[source_set, audio_path]
            track = cut.open_track(found, self.options.sample_rate, self.options.channel, len(rows))
            has_sound = self.onset_us[rows] + round(self.options.min_audio_after_onset_ms * 1000) <= track.end_us
            kept = rows[has_sound]
            chunks = self._chunks(track, kept)
            first = next(chunks, None)  # a sought file may turn out damaged here, before anything of it is written
        except (AudioError, InputError) as error:
            code, message = error.code, error.message
            self.lost.append({**place, "code": code, "message": message, "sha256": digest, "events": len(rows)})
            return
        n_past = len(rows) - len(kept)
        self.used.append({**place, "sha256": digest, "clips": len(kept), "past_audio_end": n_past})
        if first is None:
            return
        yield _Piece(first[0], first[1], digest)
        try:
            for places, chunk in chunks:
                yield _Piece(places, chunk, digest)
        except (AudioError, InputError) as error:
            raise _Damaged((source_set, audio_path), error) from error
        if track.fold_loss_db > FOLD_LIMIT_DB:
            self.fold_loss.append({**place, "loss_db": round(track.fold_loss_db, 1)})

    def _chunks(self, track: cut.Track, rows: np.ndarray) -> Iterator[tuple[np.ndarray, cut.Chunk]]:
        window = self.pre[rows] * (1 << 32) + self.post[rows]
        for run in np.split(rows, np.flatnonzero(np.diff(window)) + 1):
            at = 0
            if not len(run):
                continue
            for chunk in cut.cut(track, self.start[run], int(self.pre[run[0]] + self.post[run[0]])):
                yield run[at : at + len(chunk.samples)], chunk
                at += len(chunk.samples)


def make_shard(job: ShardJob) -> ShardResult:
    """Cut and write one shard; SHARD.json comes last.

    Raises
    ------
    InputError `bad-bundle` : the plan is not there or not what plan.json says
    StoreError
    """
    files = Store(job.root)
    plan = read_plan(job.bundle)
    if plan is None:
        raise InputError("has no plan. Run the export again", code="bad-bundle", where=files.rel(job.bundle))
    table = plan.table(job.shard)
    if files.sha256(table) != plan.identity["tables"][plan.shard_name(job.shard)]["sha256"]:
        raise InputError("is not what plan.json names. Export with --overwrite", code="bad-bundle", where=files.rel(table))
    rows = pl.read_parquet(table)
    folder = plan.shard_folder(job.shard)
    store.failpoint("shard.begin")
    damaged: dict[Place, BeatSightError] = {}
    while True:
        cutter, made = _Cutter(job, plan, rows, files, damaged), _Made()
        try:
            with blas_on_one_thread():  # waking others for a dot product of one clip costs more than the product
                written = _write_clips(cutter, made, plan, folder)
            break
        except _Damaged as found:
            damaged[found.place] = found.error
    clips = _clips_table(rows, made, plan.options.sample_rate, plan.options.layout)
    _drop_leftovers(files, plan, folder, rows, clips, {str(w["name"]) for w in written})
    receipt = files.publish_frame(folder / "clips.parquet", clips)
    written.append({"name": "clips.parquet", "sha256": receipt.sha256, "bytes": receipt.n_bytes, "clips": clips.height})
    report = {
        "schema": SCHEMA,
        "shard": plan.shard_name(job.shard),
        "plan_sha256": plan.sha256,
        "layout": plan.options.layout,
        "planned": rows.height,
        "clips": clips.height,
        "files": written,
        "lost": cutter.lost,
        "audio": cutter.used,
        "fold_loss": cutter.fold_loss,
    }
    store.failpoint("shard.end")
    done = files.publish_json(folder / "SHARD.json", signed(report))
    n_bytes = int(clips["n_samples"].sum()) * 2
    counts = dict(clips.group_by("split").len().iter_rows())
    return ShardResult(job.shard, done.sha256, clips.height, n_bytes, {s: counts.get(s, 0) for s in SPLITS}, dict(job.roots.hits))


def _write_clips(cutter: _Cutter, made: _Made, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """All clips of a shard, split by split; what was written, for SHARD.json."""
    written: list[dict[str, Any]] = []
    for split in SPLITS:
        feed = _Feed(cutter.pieces(split))
        if plan.options.layout == "wav":
            _write_wavs(feed, cutter.rows["clip"], split, plan, cutter.files, made)
        else:
            written += _write_parts(feed, split, plan, folder, cutter.files, made)
        store.failpoint("shard.split")
    return written


def _drop_leftovers(files: Store, plan: Plan, folder: Path, rows: pl.DataFrame, clips: pl.DataFrame, kept: set[str]) -> None:
    """Remove what an earlier making of this shard wrote and this one did not: its audio is gone or damaged since."""
    for path in sorted(folder.glob("*.pcm")):
        if path.name not in kept:
            files.remove(path)
    if plan.options.layout == "wav" and clips.height < rows.height:
        for split, clip in rows.join(clips.select("clip"), on="clip", how="anti").select("split", "clip").iter_rows():
            path = plan.folder / split / wav_file(clip)
            if path.exists():
                files.remove(path)


def _write_parts(feed: _Feed, split: str, plan: Plan, folder: Path, files: Store, made: _Made) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = []
    while not feed.is_empty:
        name = f"{split}-{len(written):04d}.pcm"
        before = len(made.digests)

        def write(out: IO[bytes], name: str = name) -> None:
            offset = 0
            for piece in feed.take(plan.options.part_clips):
                _note(piece, made)
                n, length = piece.chunk.samples.shape
                made.part += [name] * n
                made.offset += range(offset, offset + n * length, length)
                offset += n * length
                out.write(memoryview(np.ascontiguousarray(piece.chunk.samples, dtype="<i2").data))

        receipt = files.publish(folder / name, write, is_bulk=True)
        written.append({"name": name, "sha256": receipt.sha256, "bytes": receipt.n_bytes, "clips": len(made.digests) - before})
    return written


def _write_wavs(feed: _Feed, clip_of: pl.Series, split: str, plan: Plan, files: Store, made: _Made) -> None:
    waiting: list[tuple[Path, bytes]] = []
    while not feed.is_empty:
        for piece in feed.take(BATCH_WAVS):
            _note(piece, made)
            made.part += [None] * len(piece.rows)
            made.offset += [0] * len(piece.rows)
            for name, samples in zip(clip_of.gather(piece.rows).to_list(), piece.chunk.samples, strict=True):
                waiting.append((plan.folder / split / wav_file(name), write_wav(samples, plan.options.sample_rate)))
        files.publish_batch(waiting)
        waiting.clear()


def wav_file(clip: str) -> str:
    """Path of a clip below its split's folder.

    >>> wav_file("a1b2")
    'audio/a1/a1b2.wav'
    """
    return f"audio/{clip[:2]}/{clip}.wav"


def _note(piece: _Piece, made: _Made) -> None:
    """Measure clips. Squares of 16-bit samples and their sums are whole numbers below 2^53, so that any order of adding gives the same."""
    samples = piece.chunk.samples
    made.rows.append(piece.rows)
    made.n_samples.append(np.full(len(samples), samples.shape[1], dtype=np.int32))
    made.pad_left.append(piece.chunk.pad_left)
    made.pad_right.append(piece.chunk.pad_right)
    made.clipped.append(piece.chunk.n_clipped)
    made.peak.append(np.maximum(samples.max(axis=1).astype(np.int32), -samples.min(axis=1).astype(np.int32)))
    energy = np.empty(len(samples))
    for n, row in enumerate(samples):
        wide = row.astype(np.float64)
        energy[n] = wide @ wide
        made.digests.append(sha256(row).hexdigest())
    made.rms.append(np.sqrt(energy / samples.shape[1]))
    made.audio += [piece.audio_sha256] * len(samples)


def _dbfs(level: np.ndarray) -> np.ndarray:
    floor = 10 ** (FLOOR_DB / 20)
    return np.round(20 * np.log10(np.maximum(level / 32_768, floor)), 3)


def _clips_table(rows: pl.DataFrame, made: _Made, rate_hz: int, layout: str) -> pl.DataFrame:
    """One row per written clip, in the order of the plan."""

    def joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
        return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype=dtype)

    n_samples = joined(made.n_samples, np.int32)
    frame = rows[joined(made.rows, np.int64)].with_columns(
        onset_time=pl.Series(rows["onset_us"].to_numpy()[joined(made.rows, np.int64)] / 1e6),
        part=pl.Series(made.part, dtype=pl.String),
        offset_samples=pl.Series(made.offset, dtype=pl.Int64),
        file=pl.concat_str(pl.lit("audio/"), pl.col("clip").str.slice(0, 2), pl.lit("/"), pl.col("clip"), pl.lit(".wav"))
        if layout == "wav"
        else pl.lit(None, pl.String),
        n_samples=pl.Series(n_samples),
        duration_seconds=pl.Series(n_samples / rate_hz),
        pad_left=pl.Series(joined(made.pad_left, np.int32)),
        pad_right=pl.Series(joined(made.pad_right, np.int32)),
        peak_dbfs=pl.Series(_dbfs(joined(made.peak, np.float64))),
        rms_dbfs=pl.Series(_dbfs(joined(made.rms, np.float64))),
        clipped_samples=pl.Series(joined(made.clipped, np.int32)),
        clip_sha256=pl.Series(made.digests, dtype=pl.String),
        audio_sha256=pl.Series(made.audio, dtype=pl.String),
    )
    return frame.select(pl.col(c).cast(t) for c, t in CLIPS_SCHEMA.items())
