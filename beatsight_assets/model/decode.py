"""From network outputs to hits: the one function that evaluation, predictions and transcription call.

Belongs here: probabilities, peaks, their time, velocity and openness. Does not belong here: what a hit is worth (`evaluate`), files of
hits (`transcribe`). Whatever is judged has gone through `transcribe_features`, so what is served is what was judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.errors import ConfigError
from beatsight_assets.model.checkpoint import Model
from beatsight_assets.model.network import FrameOutputs, apply_network
from beatsight_assets.units import Milliseconds

PEAK_FRAMES = 2  # a peak is the largest of 5 frames, so two hits of one class are at least 30 ms apart (fastest rolls of the spec: 70 ms)
SCORE_REACH_MS = 30.0  # an event's score is the largest within this: two independent models heard MDB labels 10 ms off (model_plan.md)
LOWEST_SCORE = 0.02  # peaks below are never hits; candidates for choosing the threshold start here
HIHAT_CLASSES = frozenset({"hihat_closed", "hihat_open", "HH"})  # openness is a property of these hits (spec/events.md section 2)


@dataclass(frozen=True)
class Detections:
    """Hits of one recording in the classes of the model's view, sorted by (onset, class)."""

    classes: tuple[str, ...]
    onset_s: NDArray[np.float64]  # [shape=(n_hits,)], whole microseconds
    class_index: NDArray[np.int64]  # [shape=(n_hits,)] into `classes`
    score: NDArray[np.float32]  # calibrated probability, 0..1
    velocity: NDArray[np.float32]  # 0..1
    openness: NDArray[np.float32]  # 0 closed .. 1 open; NaN for everything but hi-hats

    @property
    def labels(self) -> list[str]:
        """Class name of each hit."""
        return [self.classes[i] for i in self.class_index]

    def above(self, threshold: float) -> Detections:
        """The hits whose score is at least `threshold`."""
        keep = self.score >= np.float32(threshold)
        return Detections(
            self.classes, self.onset_s[keep], self.class_index[keep], self.score[keep], self.velocity[keep], self.openness[keep]
        )


def to_probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Calibrated probabilities: the logistic function of logits / temperature."""
    return (1.0 / (1.0 + np.exp(-logits.astype(np.float32) / np.float32(temperature)))).astype(np.float32)


def pick_peaks(probability: NDArray[np.float32], lowest: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(frames, classes) of local maxima of at least `lowest`, sorted by (frame, class).

    A peak is above the `PEAK_FRAMES` frames before it and not below those after it: of a plateau the first frame is the peak.
    """
    n, n_classes = probability.shape
    padded = np.full((n + 2 * PEAK_FRAMES, n_classes), -1.0, dtype=np.float32)
    padded[PEAK_FRAMES : PEAK_FRAMES + n] = probability
    is_peak = probability >= np.float32(lowest)
    for distance in range(1, PEAK_FRAMES + 1):
        is_peak &= probability > padded[PEAK_FRAMES - distance : PEAK_FRAMES - distance + n]
        is_peak &= probability >= padded[PEAK_FRAMES + distance : PEAK_FRAMES + distance + n]
    frame, index = np.nonzero(is_peak)
    return frame, index


def refine_frames(logits: NDArray[np.float32], frame: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Position of each peak in frames, moved by at most half a frame to the vertex of the parabola through the peak and its neighbours."""
    last = len(logits) - 1
    before = logits[np.maximum(frame - 1, 0), index].astype(np.float64)
    at = logits[frame, index].astype(np.float64)
    after = logits[np.minimum(frame + 1, last), index].astype(np.float64)
    bend = before - 2.0 * at + after
    inner = (frame > 0) & (frame < last) & (bend < 0.0)
    shift = np.where(inner, 0.5 * (before - after) / np.where(inner, bend, -1.0), 0.0)
    return frame + np.clip(shift, -0.5, 0.5)


def decode_outputs(model: Model, outputs: FrameOutputs, *, lowest: float) -> Detections:
    """Every peak of at least `lowest` as a hit."""
    probability = to_probabilities(outputs.onset, model.temperature)
    frame, index = pick_peaks(probability, lowest)
    position = refine_frames(outputs.onset, frame, index)
    onset_s = np.maximum(np.round(position / model.definition.frames_per_s * 1e6), 0.0) / 1e6
    is_hat = np.array([name in HIHAT_CLASSES for name in model.classes])
    order = np.lexsort((index, onset_s))
    openness = np.where(is_hat[index], outputs.openness[frame], np.float32(np.nan)).astype(np.float32)
    return Detections(
        model.classes,
        onset_s[order],
        index[order],
        probability[frame, index][order],
        outputs.velocity[frame, index][order],
        openness[order],
    )


def transcribe_features(model: Model, features: NDArray[np.floating[Any]], *, lowest: float | None = None) -> Detections:
    """Hits of one recording from its features [shape=(n_frames, n_bands)].

    `lowest` None = the model's stored threshold; evaluation gives a lower one to look at the whole curve.
    """
    outputs = apply_network(model.network, features.astype(np.float32))
    return decode_outputs(model, outputs, lowest=model.threshold if lowest is None else lowest)


def transcribe_audio(model: Model, samples: NDArray[np.float32], rate_hz: int, *, lowest: float | None = None) -> Detections:
    """Hits of mono audio, float32 [shape=(n_samples,)], full scale = 1.

    Raises
    ------
    ConfigError : `wrong-rate`, the audio is not at the rate of the model's features; resample it first (`audio`)
    """
    if rate_hz != model.definition.rate_hz:
        raise ConfigError(f"audio is at {rate_hz} Hz, {model.definition.name} needs {model.definition.rate_hz} Hz", code="wrong-rate")
    return transcribe_features(model, model.definition.compute(samples), lowest=lowest)


def scores_around(
    values: NDArray[np.float32],
    onset_s: NDArray[np.float64],
    frames_per_s: float,
    reach_ms: Milliseconds = SCORE_REACH_MS,
    *,
    outside: float = 0.0,
) -> NDArray[np.float32]:
    """Largest value of each class within `reach_ms` of each instant, float32 [shape=(n_instants, n_classes)].

    `values` [shape=(n_frames, n_classes)] are probabilities or logits; `outside` stands for frames that the recording does not have.
    """
    reach = round(reach_ms / 1000.0 * frames_per_s)
    centre = np.round(onset_s * frames_per_s).astype(np.int64)
    best = np.full((len(onset_s), values.shape[1]), outside, dtype=np.float32)
    for offset in range(-reach, reach + 1):
        at = centre + offset
        fits = (at >= 0) & (at < len(values))
        best[fits] = np.maximum(best[fits], values[at[fits]])
    return best
