"""The registry of feature definitions: the only place where a spectrogram is computed.

Belongs here: parameters, their digest and the pure function samples -> features. Does not belong here: reading audio (`audio`), files
of features (`features.cache`), anything that is learnt.

A definition never changes under its name: other numbers need another name, because caches, checkpoints and verdicts carry the digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.errors import ConfigError

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

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
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

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
        with _blas().limit(limits=1, user_api="blas"):  # more threads add in another order: other bytes, and slower on small blocks
            for start in range(0, len(frames), BLOCK_FRAMES):
                block = frames[start : start + BLOCK_FRAMES] * window
                out[start : start + BLOCK_FRAMES] = np.abs(rfft(block, axis=1, overwrite_x=True)[:, used]) @ self.filterbank
        out *= np.float32(self.gain)
        np.log1p(out, out=out)
        return out.astype(np.float16).astype(np.float32)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process; finding them takes 3 ms, limiting them 14 us."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@lru_cache(maxsize=1)
def _registry() -> dict[str, Callable[[], FrameDefinition]]:
    return {"frames/1": lambda: FrameDefinition("frames/1")}


@lru_cache(maxsize=8)
def definition(name: str) -> FrameDefinition:
    """The definition registered under `name`.

    Raises
    ------
    ConfigError : `unknown-feature`, no such name; the message lists those that exist
    """
    makers = _registry()
    if name not in makers:
        raise ConfigError(f"feature definition {name} is not registered (there is: {', '.join(sorted(makers))})", code="unknown-feature")
    return makers[name]()
