"""The registry of feature definitions: the only place where a spectrogram is computed.

Belongs here: parameters, their digest and the pure function samples -> features. Does not belong here: reading audio (`audio`), files
of features (`features.cache`), anything that is learnt.

A definition never changes under its name: other numbers need another name, because caches, checkpoints and verdicts carry the digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.errors import ConfigError
from beatsight_assets.workers import blas_on_one_thread

BLOCK_FRAMES = (
    64  # frames per block of the transform: 64 x 2,048 float32 = 512 KiB stay in the second-level cache (512 frames are 20 % slower)
)


@dataclass(frozen=True)
class FrameDefinition:
    """Log-magnitude filterbank at 100 frames per second, for models that look at whole recordings.

    Frame i is centred on sample i * hop_samples; what lies outside the recording counts as zero. Bands are triangles whose corners are
    `bands_per_octave` log-spaced frequencies snapped to bins of the transform (corners that fall on one bin become one), each with area 1.
    A value is `log1p(gain * magnitude)`, where a full-scale sine has magnitude near 1 before the band average, rounded to float16: the
    cache loses nothing, and features with and without cache are equal bit by bit.
    """

    name: str
    rate_hz: int = 44_100
    hop_samples: int = 441  # 10 ms
    window_samples: int = 2_048  # 46 ms: 21.5 Hz per bin tell a kick from a low tom
    low_hz: float = 30.0
    high_hz: float = 17_000.0  # real cymbals carry energy up to there (model_plan.md)
    bands_per_octave: int = 12
    gain: float = 10_000.0  # the knee of the logarithm lies at -80 dB of full scale
    kind: str = "frames"
    values: str = "float16"

    @property
    def frames_per_s(self) -> float:
        """Frames per second of audio, 100 for `frames/1`."""
        return self.rate_hz / self.hop_samples

    @property
    def folder(self) -> str:
        """Name as one path component, e.g. `frames-1`."""
        return self.name.replace("/", "-")

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the parameters as compact JSON with sorted keys."""
        return _digest(self)

    @cached_property
    def corners(self) -> NDArray[np.int64]:
        """Bins [shape=(n_bands + 2,)] of the corners of the triangles, strictly increasing."""
        n = int(np.floor(np.log2(self.high_hz / self.low_hz) * self.bands_per_octave)) + 1
        hz = self.low_hz * 2.0 ** (np.arange(n + 1) / self.bands_per_octave)
        bins = np.unique(np.round(hz[hz <= self.high_hz] * self.window_samples / self.rate_hz).astype(np.int64))
        return bins[bins >= 1]

    @property
    def n_bands(self) -> int:
        """Number of bands, 81 for `frames/1`."""
        return len(self.corners) - 2

    @cached_property
    def centres_hz(self) -> NDArray[np.float64]:
        """Centre of each band in Hz [shape=(n_bands,)]."""
        return np.asarray(self.corners[1:-1] * (self.rate_hz / self.window_samples), dtype=np.float64)

    @cached_property
    def filterbank(self) -> NDArray[np.float32]:
        """Triangles, float32 [shape=(n_bins_used, n_bands)] with columns that sum to 1; row 0 is the bin of the first corner."""
        corners, first = self.corners, int(self.corners[0])
        bank = np.zeros((int(corners[-1]) - first, self.n_bands))
        bins = np.arange(first, int(corners[-1]))
        for band, (left, centre, right) in enumerate(zip(corners[:-2], corners[1:-1], corners[2:], strict=True)):
            rise, fall = (bins - left) / (centre - left), (right - bins) / (right - centre)
            bank[:, band] = np.clip(np.minimum(rise, fall), 0.0, None)
        return (bank / bank.sum(axis=0)).astype(np.float32)

    def n_frames(self, n_samples: int) -> int:
        """Frames of a recording: one per started hop, so the last sample lies within half a hop of a frame or before one. 0 for no samples."""
        return -(-n_samples // self.hop_samples)

    def compute(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of mono audio.

        Parameters
        ----------
        samples : float32 [shape=(n_samples,)] at `rate_hz`, full scale = 1

        Returns
        -------
        float32 [shape=(n_frames(n_samples), n_bands)], >= 0, every value exactly representable in float16. The value of a frame depends only
        on the `window_samples` around its centre.
        """
        n = self.n_frames(len(samples))
        padded = self._padded(samples, n)
        return self._transform(np.lib.stride_tricks.sliding_window_view(padded, self.window_samples)[:: self.hop_samples][:n])

    def compute_cuts(self, samples: NDArray[np.float32], every_frames: int, offset_samples: NDArray[np.int64]) -> NDArray[np.float32]:
        """What frames next to a cut look like when the recording ends or begins there: how windows of a stream differ from whole recordings.

        Parameters
        ----------
        samples : float32 [shape=(n_samples,)]
        every_frames : a cut at every so many frames, n_cuts = n_frames // every_frames + 1
        offset_samples : int [shape=(n_cuts,)], 0 .. hop - 1: how much earlier than at its frame the recording ends

        Returns
        -------
        float32 [shape=(n_cuts, 6, n_bands)]: the last three frames before a cut with silence behind it, then the first three from the cut on
        with silence before it. No other frame's window reaches across.
        """
        n, half, hop = self.n_frames(len(samples)), self.window_samples // 2, self.hop_samples
        n_cuts = n // every_frames + 1
        padded = self._padded(samples, n + 4)
        views = np.lib.stride_tricks.sliding_window_view(
            np.concatenate([np.zeros(3 * hop, dtype=np.float32), padded]), self.window_samples
        )[::hop]
        cut = np.arange(n_cuts) * every_frames
        place = np.arange(self.window_samples)
        parts = []
        for step in (-3, -2, -1, 0, 1, 2):
            frames = views[cut + step + 3].copy()
            at = half - step * hop  # where in its window the cut lies
            if step < 0:
                frames[place >= at - offset_samples[:, None]] = 0.0
            else:
                frames[:, :at] = 0.0
            parts.append(self._transform(frames))
        return np.stack(parts, axis=1)

    def _padded(self, samples: NDArray[np.float32], n: int) -> NDArray[np.float32]:
        """The samples with silence around them, so that `n` frames have whole windows."""
        half = self.window_samples // 2
        padded = np.zeros(max(n - 1, 0) * self.hop_samples + self.window_samples, dtype=np.float32)
        padded[half : half + len(samples)] = samples[: len(padded) - half]
        return padded

    def _transform(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of frames of samples [shape=(n, window_samples)]."""
        from scipy.fft import rfft

        used = slice(int(self.corners[0]), int(self.corners[-1]))
        window = (np.hanning(self.window_samples + 1)[:-1] * (4.0 / self.window_samples)).astype(np.float32)  # a full-scale sine peaks at 1
        out = np.empty((len(frames), self.n_bands), dtype=np.float32)
        with blas_on_one_thread():  # more threads add in another order: other bytes, and slower on small blocks
            for start in range(0, len(frames), BLOCK_FRAMES):
                block = frames[start : start + BLOCK_FRAMES] * window
                out[start : start + BLOCK_FRAMES] = np.abs(rfft(block, axis=1, overwrite_x=True)[:, used]) @ self.filterbank
        out *= np.float32(self.gain)
        np.log1p(out, out=out)
        return out.astype(np.float16).astype(np.float32)


GROUP_BANDS = 16
BATCH_CLIPS = 4  # clips per block of the transform: what one batch touches stays in the second-level cache (256 clips are 4 times slower)


@dataclass(frozen=True)
class ClipDefinition:
    """Log-mel spectrogram of one clip around an onset, for models that classify single hits (`spec/model.md` section 1).

    Frame i is centred on sample i * hop_samples of the clip; what lies outside the clip counts as zero. Bands are triangles on the Slaney
    mel scale with area normalisation. A value is `10 * log10(max(power, floor_power))` in dB: no maximum per clip, no scaling per row.
    """

    name: str
    rate_hz: int = 44_100
    pre_samples: int = 3_528  # 80 ms before the onset
    post_samples: int = 8_820  # 200 ms from the onset on
    hop_samples: int = 512
    window_samples: int = 2_048  # periodic Hann
    n_mels: int = 128
    low_hz: float = 30.0
    high_hz: float = 16_000.0
    floor_power: float = 1e-10  # -100 dB
    scale: str = "slaney"
    kind: str = "clips"
    values: str = "float32"

    @property
    def n_samples(self) -> int:
        """Samples of a clip, 12,348."""
        return self.pre_samples + self.post_samples

    @property
    def n_frames(self) -> int:
        """Frames of a clip, 25."""
        return self.n_samples // self.hop_samples + 1

    @property
    def shape(self) -> tuple[int, int]:
        """Of one clip's features: (128 bands, 25 frames)."""
        return self.n_mels, self.n_frames

    @property
    def floor_db(self) -> float:
        """The smallest value there is, -100.0."""
        return 10.0 * math.log10(self.floor_power)

    @property
    def folder(self) -> str:
        """Name as one path component."""
        return self.name

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the parameters as compact JSON with sorted keys."""
        return _digest(self)

    @cached_property
    def filterbank(self) -> NDArray[np.float32]:
        """Triangles, float32 [shape=(n_mels, n_bins_used)]; column 0 is `first_bin`."""
        corners = _slaney_hz(np.linspace(_slaney_mel(self.low_hz), _slaney_mel(self.high_hz), self.n_mels + 2))
        bins = np.arange(self.window_samples // 2 + 1) * (self.rate_hz / self.window_samples)
        left, centre, right = (corners[i : i + self.n_mels, None] for i in range(3))
        bank = np.clip(np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)), 0.0, None) * (2.0 / (right - left))
        used = np.flatnonzero(bank.any(axis=0))
        return np.ascontiguousarray(bank[:, used[0] : used[-1] + 1], dtype=np.float32)

    @cached_property
    def _groups(self) -> list[tuple[slice, slice, NDArray[np.float32]]]:
        """The filterbank in blocks of neighbouring bands, each with the bins it needs: a fifth of the products, for most weights are 0."""
        blocks = []
        for start in range(0, self.n_mels, GROUP_BANDS):
            rows = slice(start, start + GROUP_BANDS)
            used = np.flatnonzero(self.filterbank[rows].any(axis=0))
            bins = slice(int(used[0]), int(used[-1]) + 1)
            blocks.append((rows, bins, np.ascontiguousarray(self.filterbank[rows, bins])))
        return blocks

    @cached_property
    def first_bin(self) -> int:
        """Bin of the transform that the first column of the filterbank weighs."""
        return int(self.low_hz * self.window_samples / self.rate_hz) + 1

    @cached_property
    def column_weights(self) -> NDArray[np.float32]:
        """Linear interpolation in time, float32 [shape=(n_frames, 128)]: `features @ column_weights` is what a network reads.

        Column j reads frame clip((j + 0.5) * 25 / 128 - 0.5, 0, 24).
        """
        n_columns = self.n_mels
        at = np.clip((np.arange(n_columns) + 0.5) * self.n_frames / n_columns - 0.5, 0.0, self.n_frames - 1.0)
        return np.maximum(0.0, 1.0 - np.abs(np.arange(self.n_frames)[:, None] - at)).astype(np.float32)

    def cut(self, samples: NDArray[np.float32], onset_sample: int) -> NDArray[np.float32]:
        """The clip around an onset, float32 [shape=(n_samples,)]: the onset lies on sample `pre_samples`, zeros where the recording has none."""
        start = onset_sample - self.pre_samples
        clip = np.zeros(self.n_samples, dtype=np.float32)
        inside = samples[max(start, 0) : max(start + self.n_samples, 0)]
        clip[max(-start, 0) : max(-start, 0) + len(inside)] = inside
        return clip

    def compute(self, clips: NDArray[np.float32] | NDArray[np.int16]) -> NDArray[np.float32]:
        """Features of clips.

        Parameters
        ----------
        clips : [shape=(n_clips, n_samples)] at `rate_hz`; float32 with full scale = 1, or int16

        Returns
        -------
        float32 [shape=(n_clips, n_mels, n_frames)] in dB, >= floor_db. A clip's values do not depend, by a bit, on the clips beside it.
        """
        import torch  # its real transform takes 40 % of the time of scipy's; equal bits for every batch and every address

        half, last = self.window_samples // 2, self.first_bin + self.filterbank.shape[1]
        n, groups = min(BATCH_CLIPS, len(clips)), self._groups
        scale = np.float32(2.0**-15 if clips.dtype == np.int16 else 1.0)  # a power of two: nothing is rounded
        window = torch.from_numpy(np.hanning(self.window_samples + 1)[:-1].astype(np.float32) * scale)
        padded = torch.zeros((n, self.n_samples + self.window_samples))
        inside = padded.numpy()[:, half : half + self.n_samples]
        frames = padded.unfold(1, self.window_samples, self.hop_samples)[:, : self.n_frames]
        block = torch.empty(frames.shape)
        power, square = np.empty((2, n, self.n_frames, self.filterbank.shape[1]), dtype=np.float32)
        out = np.empty((len(clips), *self.shape), dtype=np.float32)
        with blas_on_one_thread(), _one_thread_of_torch():
            for start in range(0, len(clips), BATCH_CLIPS):
                some = clips[start : start + BATCH_CLIPS]
                m = len(some)
                inside[:m] = some
                torch.mul(frames[:m], window, out=block[:m])
                spectrum = torch.fft.rfft(block[:m], dim=2).numpy()[:, :, self.first_bin : last]
                np.square(spectrum.real, out=power[:m])
                power[:m] += np.square(spectrum.imag, out=square[:m])
                # One product per clip, always of one shape: the sum over bins is taken in the same order in every batch.
                for rows, bins, bank in groups:
                    np.matmul(bank, power[:m, :, bins].transpose(0, 2, 1), out=out[start : start + m, rows])
        np.maximum(out, np.float32(self.floor_power / 2.0), out=out)
        np.log(out, out=out)
        out *= np.float32(10.0 / math.log(10.0))
        return np.maximum(out, np.float32(self.floor_db), out=out)  # on the level: the floor is exactly -100.0


def _slaney_mel(hz: float) -> float:
    """Slaney's scale: linear up to 1 kHz (15 mel), then 27 steps for a factor of 6.4."""
    return hz * 3.0 / 200.0 if hz < 1_000.0 else 15.0 + 27.0 * math.log(hz / 1_000.0) / math.log(6.4)


def _slaney_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, mel * (200.0 / 3.0), 1_000.0 * 6.4 ** ((mel - 15.0) / 27.0))


@contextmanager
def _one_thread_of_torch() -> Iterator[None]:
    """Blocks of four clips are too small to share: two threads take ten times the CPU time of one."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _digest(feature: FrameDefinition | ClipDefinition) -> str:
    return hashlib.sha256(json.dumps(asdict(feature), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


CLIP_FEATURE = "logmel128-1"
_FRAMES: dict[str, Callable[[], FrameDefinition]] = {"frames/1": lambda: FrameDefinition("frames/1")}
_CLIPS: dict[str, Callable[[], ClipDefinition]] = {CLIP_FEATURE: lambda: ClipDefinition(CLIP_FEATURE)}


@lru_cache(maxsize=8)
def definition(name: str) -> FrameDefinition:
    """The definition of frames registered under `name`.

    Raises
    ------
    ConfigError : `unknown-feature`, no such name; the message lists those that exist
    """
    return _FRAMES.get(name, lambda: _unknown(name, "frames", _FRAMES))()


@lru_cache(maxsize=8)
def clip_definition(name: str = CLIP_FEATURE) -> ClipDefinition:
    """The definition of clips registered under `name`.

    Raises
    ------
    ConfigError : `unknown-feature`, no such name; the message lists those that exist
    """
    return _CLIPS.get(name, lambda: _unknown(name, "clips", _CLIPS))()


def _unknown(name: str, kind: str, known: Iterable[str]) -> NoReturn:
    raise ConfigError(
        f"feature definition {name} is not registered for {kind} (there is: {', '.join(sorted(known))})", code="unknown-feature"
    )
