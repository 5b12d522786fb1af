"""Samples of clips: a recording is opened once, and every clip is a window of it on the output rate.

Belongs here: mono fold, resampling, rounding to int16, padding, windows. Does not belong here: which windows (`plan`), files (`shard`).

A sample depends on the audio, its place and the options alone. Four ways in give equal samples: 16-bit PCM wav is memory-mapped, dense
files are decoded whole, sparse lossless ones are sought, and long ones are judged first and then decoded in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from beatsight_assets import audio
from beatsight_assets.audio import AudioError
from beatsight_assets.units import Decibels

WHOLE_CLIPS_PER_S = 1.8  # design/performance.md: with more clips than this per second of audio, decoding all of it is cheaper than seeking
CHUNK_CLIPS = 32  # clips gathered at once: 0.8 MB, which stays in the cache of a core
BLOCK_FRAMES = 1 << 15  # folded at once: 256 kB per line of float64, which stays in the cache
GAP_S = 1.0  # clips farther apart are gathered apart
LONG_SAMPLES = 1 << 25  # 64 MB of int16 (12 minutes at 44.1 kHz): longer recordings are not held whole
STEP_BACK_SAMPLES = 1 << 19  # clips with longer pre-rolls begin before their predecessor; 10 s are the longest, at 48 kHz
LOSSLESS_CONTAINERS = ("WAV", "WAVEX", "FLAC", "AIFF", "RF64", "W64")

Int16 = NDArray[np.int16]


@dataclass(frozen=True)
class Chunk:
    """Neighbouring clips of equal length."""

    samples: Int16  # [shape=(n_clips, n_samples)]
    pad_left: NDArray[np.int32]  # zeros before the recording begins
    pad_right: NDArray[np.int32]  # zeros after it ends
    n_clipped: NDArray[np.int32]  # samples that were beyond full scale


class Track(Protocol):
    """A recording as mono int16 on the output rate."""

    @property
    def end_us(self) -> float:
        """Where the audio ends."""

    @property
    def n_samples(self) -> int:
        """Length on the output rate."""

    def window(self, start: int, stop: int) -> Int16:
        """Samples start .. stop, both within the recording; asked for in rising order of `start`."""

    def over(self, start: int, stop: int) -> NDArray[np.int64]:
        """Places beyond full scale within start .. stop, sorted."""

    @property
    def fold_loss_db(self) -> Decibels:
        """How much quieter the mono fold is than the loudest channel, over what was read."""


class _Fold:
    """Mono from channels, and what folding costs."""

    def __init__(self, channel: str, where: str) -> None:
        self.channel = None if channel == "mean" else int(channel)
        self.where = where
        self._energy: NDArray[np.float64] | None = None
        self._mono = 0.0

    def __call__(self, block: NDArray[np.floating | np.int16]) -> NDArray[np.floating | np.int16]:
        """[shape=(n, n_channels)] -> [shape=(n,)] in the same unit, float64 where channels were averaged."""
        n_channels = block.shape[1]
        if self.channel is not None:
            if self.channel >= n_channels:
                raise AudioError(f"channel {self.channel} of {n_channels}", code="missing-channel", where=self.where)
            return block[:, self.channel]
        if n_channels == 1:
            return block[:, 0]
        lines = [block[:, c].astype(np.float64) for c in range(n_channels)]  # numpy adds along a short axis ten times slower
        energy_of = _exact_energy if block.dtype == np.int16 and n_channels == 2 else _energy
        energy = np.array([energy_of(line) for line in lines])
        mono = lines[0]
        for line in lines[1:]:
            mono += line
        mono /= n_channels
        self._energy = energy if self._energy is None else self._energy + energy
        self._mono += float(energy_of(mono))
        return mono

    @property
    def loss_db(self) -> Decibels:
        if self._energy is None or not self._energy.any():
            return 0.0
        loudest = float(self._energy.max())
        return min(-audio.FLOOR_DB, 10 * math.log10(loudest / self._mono)) if self._mono else -audio.FLOOR_DB


def _energy(line: NDArray[np.floating]) -> np.floating:
    """Sum of squares, added in the same order everywhere; BLAS libraries each have their own."""
    return np.square(line).sum()  # type: ignore[no-any-return]


def _exact_energy(line: NDArray[np.float64]) -> np.float64:
    """Sum of squares of 16-bit samples or means of two: quarters below 2^53 in all, so that any order of adding gives the same."""
    return np.dot(line, line)  # type: ignore[no-any-return]


def _rounded(mono: NDArray[np.floating | np.int16], scale: float) -> tuple[Int16, NDArray[np.int64]]:
    """int16 by rounding half to even, saturated; and the places that were beyond full scale."""
    if mono.dtype == np.int16:
        return mono.astype(np.int16, copy=False), np.empty(0, dtype=np.int64)
    whole = np.rint(mono if scale == 1.0 else mono * mono.dtype.type(scale))
    if not len(whole) or (whole.max() <= 32_767 and whole.min() >= -32_768):
        return whole.astype(np.int16), np.empty(0, dtype=np.int64)
    beyond = np.flatnonzero((whole > 32_767) | (whole < -32_768))
    return np.clip(whole, -32_768, 32_767).astype(np.int16), beyond


@dataclass
class _Mapped:
    """16-bit PCM wav on the output rate: pages are touched where clips lie, nothing is decoded."""

    frames: NDArray[np.int16]  # [shape=(n, n_channels)], mapped
    end_us: float
    fold: _Fold

    @property
    def n_samples(self) -> int:
        return len(self.frames)

    def window(self, start: int, stop: int) -> Int16:
        if self.frames.shape[1] == 1:
            return _rounded(self.fold(self.frames[start:stop]), 1.0)[0]
        mono = np.empty(stop - start, np.int16)
        for low in range(start, stop, BLOCK_FRAMES):
            block = self.frames[low : min(low + BLOCK_FRAMES, stop)]
            mono[low - start : low - start + len(block)] = np.rint(self.fold(block))  # half to even; a mean is never beyond full scale
        return mono

    def over(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.empty(0, dtype=np.int64)

    @property
    def fold_loss_db(self) -> Decibels:
        return self.fold.loss_db


@dataclass
class _Whole:
    """A recording that was decoded whole."""

    samples: Int16
    beyond: NDArray[np.int64]
    end_us: float
    fold: _Fold

    @property
    def n_samples(self) -> int:
        return len(self.samples)

    def window(self, start: int, stop: int) -> Int16:
        return self.samples[start:stop]

    def over(self, start: int, stop: int) -> NDArray[np.int64]:
        low, high = np.searchsorted(self.beyond, [start, stop])
        return self.beyond[low:high]

    @property
    def fold_loss_db(self) -> Decibels:
        return self.fold.loss_db


class _Sought:
    """A sparse lossless file on the output rate: only the windows are decoded."""

    def __init__(self, path: Path, fold: _Fold) -> None:
        self.path, self.fold = path, fold
        self.file = soundfile.SoundFile(path)
        self.n_samples = self.file.frames
        self.end_us = self.n_samples * 1e6 / self.file.samplerate
        self._beyond: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        self.window(self.n_samples - 1, self.n_samples)  # a file that was cut short lacks its last frame

    def window(self, start: int, stop: int) -> Int16:
        try:
            self.file.seek(start)
            block = self.file.read(stop - start, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            reason = str(error).rpartition(": ")[2]
            raise AudioError(f"decoding fails near frame {start:,}: {reason}", code="unreadable-audio", where=self.path.name) from error
        if len(block) != stop - start:
            raise AudioError(f"frames {start:,} .. {stop:,} are not all there", code="truncated-audio", where=self.path.name)
        if not np.isfinite(block).all():
            raise AudioError(f"NaN or infinity near frame {start:,}", code="non-finite-audio", where=self.path.name)
        samples, beyond = _rounded(self.fold(block), 32_768.0)
        self._beyond.append(beyond + start)
        return samples

    def over(self, start: int, stop: int) -> NDArray[np.int64]:
        places = np.unique(np.concatenate(self._beyond))
        return places[(places >= start) & (places < stop)]

    @property
    def fold_loss_db(self) -> Decibels:
        return self.fold.loss_db


class _Streamed:
    """A long recording, judged before: blocks pass by, only what clips still need is held."""

    def __init__(self, path: Path, info: audio.AudioInfo, rate_hz: int, fold: _Fold) -> None:
        self.fold = fold
        self.end_us = info.n_frames * 1e6 / info.rate_hz
        self.n_samples = info.n_frames if info.rate_hz == rate_hz else round(info.n_frames * rate_hz / info.rate_hz)
        self._blocks = _resampled(_folded(path, fold), info.rate_hz, rate_hz)
        self._held = np.empty(0, dtype=np.int16)
        self._base = 0
        self._beyond = np.empty(0, dtype=np.int64)

    def window(self, start: int, stop: int) -> Int16:
        parts, end = [self._held], self._base + len(self._held)
        while end < stop:
            block = next(self._blocks, None)
            if block is None:  # the resampler may give a sample less than the ratio says
                parts.append(np.zeros(stop - end, dtype=np.int16))
                break
            samples, beyond = _rounded(block, 32_768.0)
            self._beyond = np.concatenate([self._beyond, beyond + end])
            parts.append(samples)
            end += len(samples)
        held = np.concatenate(parts) if len(parts) > 1 else self._held
        keep = max(self._base, start - STEP_BACK_SAMPLES)
        self._held, self._base = held[keep - self._base :], keep
        return self._held[start - keep : stop - keep]

    def over(self, start: int, stop: int) -> NDArray[np.int64]:
        self._beyond = self._beyond[self._beyond >= self._base]
        return self._beyond[(self._beyond >= start) & (self._beyond < stop)]

    @property
    def fold_loss_db(self) -> Decibels:
        return self.fold.loss_db


def _folded(path: Path, fold: _Fold) -> Iterator[NDArray[np.floating | np.int16]]:
    for block in audio.read_blocks(path, silent_ok=True):
        yield fold(block)


def _resampled(blocks: Iterator[NDArray[np.floating | np.int16]], from_hz: int, to_hz: int) -> Iterator[NDArray[np.floating | np.int16]]:
    """Blocks through soxr's streaming interface; the length of blocks does not change a sample."""
    if from_hz == to_hz:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block.astype(np.float32))
    yield stream.resample_chunk(np.empty(0, dtype=np.float32), last=True)


def open_track(path: Path, rate_hz: int, channel: str, n_clips: int, *, long_samples: int = LONG_SAMPLES) -> Track:
    """A recording, opened in the cheapest way for `n_clips` clips.

    Raises
    ------
    AudioError : as `audio.probe`, save that silence is no reason; `missing-channel`
    """
    fold = _Fold(channel, path.name)
    mapped = _map_wav(path)
    if mapped is not None and mapped[1] == rate_hz:
        frames, _ = mapped
        return _Mapped(frames, len(frames) * 1e6 / rate_hz, fold)
    header = _header(path)
    if header is not None:
        seconds = header.frames / header.samplerate
        is_exact = header.samplerate == rate_hz and header.format in LOSSLESS_CONTAINERS and "ADPCM" not in header.subtype
        if is_exact and header.frames > 0 and n_clips <= WHOLE_CLIPS_PER_S * seconds and _is_complete(path):
            return _Sought(path, fold)
        if header.frames > long_samples or seconds * rate_hz > long_samples:
            return _Streamed(path, audio.probe(path, silent_ok=True), rate_hz, fold)
    found = []
    blocks = audio.read_blocks(path, silent_ok=True)
    while True:
        try:
            found.append(fold(next(blocks)))
        except StopIteration as end:
            info: audio.AudioInfo = end.value
            break
    mono = np.concatenate(found)
    if info.rate_hz != rate_hz:
        mono = audio.resample(mono.astype(np.float32), info.rate_hz, rate_hz)
    samples, beyond = _rounded(mono, 32_768.0)
    return _Whole(samples, beyond, info.n_frames * 1e6 / info.rate_hz, fold)


def _is_complete(path: Path) -> bool:
    """The container holds all the bytes its header announces; what does not is left to the whole decode, which says why."""
    return audio.promised_share(path) <= 1.0


def cut(track: Track, start: NDArray[np.int64], n_samples: int) -> Iterator[Chunk]:
    """Clips of `n_samples` samples that begin at `start`, in that order, padded with zeros beyond both ends of the recording.

    Parameters
    ----------
    start : int64 [shape=(n_clips,)], rising; negative where a clip begins before the recording
    """
    gap = np.diff(start) > n_samples + GAP_S * 44_100
    edges = np.flatnonzero(gap) + 1
    for group in np.split(np.arange(len(start)), edges):
        for low in range(0, len(group), CHUNK_CLIPS):
            at = start[group[low : low + CHUNK_CLIPS]]
            if len(at):
                yield _gather(track, at, n_samples)


def _gather(track: Track, start: NDArray[np.int64], n_samples: int) -> Chunk:
    begin, end = int(start[0]), int(start[-1]) + n_samples
    low, high = min(max(begin, 0), track.n_samples), min(max(end, 0), track.n_samples)
    if begin == low and end == high:
        line = track.window(low, high)
    else:
        line = np.zeros(end - begin, np.int16)
        if low < high:
            line[low - begin : high - begin] = track.window(low, high)
    samples = np.lib.stride_tricks.sliding_window_view(line, n_samples)[start - begin]
    beyond = track.over(low, high)
    n_clipped = np.searchsorted(beyond, start + n_samples) - np.searchsorted(beyond, start) if len(beyond) else np.zeros(len(start))
    return Chunk(
        samples=samples,
        pad_left=np.clip(-start, 0, n_samples).astype(np.int32),
        pad_right=np.clip(start + n_samples - track.n_samples, 0, n_samples).astype(np.int32),
        n_clipped=n_clipped.astype(np.int32),
    )


def _header(path: Path) -> soundfile._SoundFileInfo | None:
    try:
        return soundfile.info(str(path))
    except (soundfile.SoundFileError, RuntimeError, TypeError, OSError):
        return None  # the whole decode says what is wrong with it


def _map_wav(path: Path) -> tuple[NDArray[np.int16], int] | None:
    """Frames [shape=(n, n_channels)] and rate of a plain 16-bit PCM wav that is all there; None for anything else."""
    found = audio.pcm16_place(path)
    if found is None:
        return None
    frames = np.memmap(path, dtype="<i2", mode="r", offset=found.offset_bytes, shape=(found.n_frames, found.n_channels))
    return frames, found.rate_hz
