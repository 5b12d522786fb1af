"""Do the annotated onsets lie where the audio rises?

Belongs here: how well annotations fit their audio when moved by -100 .. +100 ms. Does not belong here: delays between microphones.
The share of hits near a peak must not be judged alone: dense tracks reach 0.89 when 60 ms off.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.readiness.rows import asked_for
from beatsight_assets.units import Milliseconds
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

GATE = "annotation_alignment"
HOP = 64  # samples; 1.45 ms at 44,100 Hz
WINDOW = 512
SHIFTS_MS = np.arange(-100, 101)
NEAR_MS = 30.0
PEAK_SIGMA = 1.0


@dataclass(frozen=True)
class AlignmentFigures:
    """best_shift_ms : positive when the audio is later than the annotation; score_at_best in standard deviations of the onset strength;
    share_within_30ms : peaks above one standard deviation that have an annotated onset near them
    """

    best_shift_ms: Milliseconds | None
    score_at_best: float | None
    share_within_30ms: float | None
    n_onsets: int


@dataclass(frozen=True)
class AlignmentLimits:
    """Largest shift, lowest score at the best shift, fewest onsets to say anything."""

    max_shift_ms: Milliseconds = 15.0
    min_score: float = 1.6
    min_onsets: int = 8


def onset_strength(samples: NDArray[np.floating], rate_hz: int) -> NDArray[np.float64]:
    """Rise of the log mel spectrum, standardised; float64 [shape=(n_frames,)], frame i at sample i * 64. All zero for silence."""
    import librosa

    with warnings.catch_warnings():  # 512 samples leave some low mel bands empty: they stay constant and add nothing to the rise
        warnings.filterwarnings("ignore", message="Empty filters detected", category=UserWarning)
        rise = librosa.onset.onset_strength(y=np.asarray(samples, dtype=np.float32), sr=rate_hz, hop_length=HOP, n_fft=WINDOW).astype(
            np.float64
        )
    spread = rise.std()
    return (rise - rise.mean()) / spread if spread > 0 else np.zeros_like(rise)


def measure(samples: NDArray[np.floating], rate_hz: int, onsets_s: Sequence[float] | NDArray[np.float64]) -> AlignmentFigures:
    """Figures of annotated onsets [seconds] against mono audio [shape=(n_samples,)]. Equal onsets count once."""
    onsets = np.unique(np.asarray(onsets_s, dtype=np.float64))
    if not len(onsets) or len(samples) < WINDOW:
        return AlignmentFigures(None, None, None, len(onsets))
    strength = onset_strength(samples, rate_hz)
    frames = np.arange(len(strength))
    at = (onsets[:, None] + SHIFTS_MS[None, :] / 1000.0) * rate_hz / HOP
    score = np.interp(at, frames, strength).mean(axis=0)
    best = int(np.argmax(score))
    inner = strength[1:-1]
    peaks = (np.flatnonzero((inner > PEAK_SIGMA) & (inner >= strength[:-2]) & (inner > strength[2:])) + 1) * HOP / rate_hz
    near = np.minimum(np.abs(peaks - onsets[_left(onsets, peaks)]), np.abs(peaks - onsets[_right(onsets, peaks)]))
    share = float(np.mean(near <= NEAR_MS / 1000.0)) if len(peaks) else None
    return AlignmentFigures(float(SHIFTS_MS[best]), float(score[best]), share, len(onsets))


def _right(onsets: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum(np.searchsorted(onsets, times), len(onsets) - 1)


def _left(onsets: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.maximum(np.searchsorted(onsets, times) - 1, 0)


def judge(figures: AlignmentFigures, limits: AlignmentLimits, *, inputs: Sequence[Artifact] = (), profile: str = "dev") -> Verdict:
    """Verdict `annotation_alignment` of one recording."""
    shift = None if figures.best_shift_ms is None else abs(figures.best_shift_ms)
    few = figures.n_onsets < limits.min_onsets
    reasons = (Reason("nothing-to-judge", f"{figures.n_onsets} onsets; {limits.min_onsets} are needed"),) if few else ()
    rules = (
        Rule.at_most("best_shift_ms", shift, limits.max_shift_ms, f"best shift {figures.best_shift_ms} ms; positive: the audio is later"),
        Rule.at_least("score_at_best", figures.score_at_best, limits.min_score),
    )
    flat = {k: getattr(figures, k) for k in ("best_shift_ms", "score_at_best", "share_within_30ms")}
    return Verdict(GATE, rules, tuple(inputs), flat, asked_for(limits), reasons, {"onsets": figures.n_onsets}, profile)
