"""Training of the frame family on arrays: preset, loss, one epoch, a look at the validation split.

Belongs here: how a frame network learns. Does not belong here: windows and augmentation (`data`), the stage with its files and resume
(`train`), figures on the test split (`evaluate`).

On the CPU a run is a function of its options and data: equal bytes for the same versions and thread count, with or without interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from beatsight_assets.features.definitions import FrameDefinition
from beatsight_assets.model import decode
from beatsight_assets.model.checkpoint import Model
from beatsight_assets.model.data import AUGMENTATIONS, CUT_FRAMES, Frames, Recording, augment, cut_places, cut_rows, draw_windows, plan_step
from beatsight_assets.model.family import Schedule, step_seed, take_steps
from beatsight_assets.model.network import NetworkConfig, apply_network, build_network
from beatsight_assets.model.scoring import choose_threshold, judge_recording
from beatsight_assets.sampling import realised_shares

if TYPE_CHECKING:
    import torch

THRESHOLDS = tuple(round(0.04 + 0.02 * i, 2) for i in range(47))  # 0.04 .. 0.96
VELOCITY_WEIGHT = 0.3  # of the loss; one velocity per hit against 18 decisions per frame
OPENNESS_WEIGHT = 0.1
EDGE_FRAMES = 5  # 40 ms, the margin of the boundary gate, and the frame at its end
LEADING_WEIGHT = 4.0  # a stream's next window hears again, and whole, what this one reports at its edge; nobody repairs a miss.
TRAILING_WEIGHT = 14.0  # At the end less than 40 ms of a hit are heard: doubt is decided for the hit there, and only there


class Hyper(Schedule):
    """configs/presets/<name>.yaml of family frame: every number of a training. Unknown keys are errors."""

    family: Literal["frame"] = "frame"
    view: str = "drums18"
    feature: str = "frames/1"
    window_frames: int = Field(default=256, ge=32, multiple_of=CUT_FRAMES)
    audio_s_per_epoch: float = Field(gt=0.0)  # drawn with replacement; ruling 33: the cap that keeps CPU runs in their budget
    max_class_weight: float = Field(default=3.0, ge=1.5, le=3.0)
    augment: Literal["none", "light", "kits"] = "light"
    stem: tuple[int, ...] = (16, 24, 32)
    width: int = Field(default=64, ge=8)
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    kernel: int = Field(default=3, ge=1)
    follow_alignment: bool = (
        False  # targets lie where the audio of their dataset has the onsets (stage annotation_alignment), not where its people wrote them
    )

    def network(self, classes: tuple[str, ...], n_bands: int) -> NetworkConfig:
        """Shape of the network for these classes and bands."""
        return NetworkConfig(classes, n_bands, self.stem, self.width, self.dilations, self.kernel, self.dropout)

    def steps_per_epoch(self, frames_per_s: float) -> int:
        """Steps that hear `audio_s_per_epoch` of audio, to the next whole step."""
        return max(1, math.ceil(self.audio_s_per_epoch * frames_per_s / (self.batch_size * self.window_frames)))


def class_weights(frames: Frames, largest: float) -> NDArray[np.float32]:
    """Weight of a positive frame by class, 1.5 .. `largest`: the root of how much rarer it is than the median class, times 1.5."""
    counts = np.maximum((frames.onset == 1.0).sum(axis=0), 1).astype(np.float64)
    return np.clip(1.5 * np.sqrt(np.median(counts) / counts), 1.5, max(1.5, largest)).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Tensors of one step on the training device."""

    features: torch.Tensor
    onset: torch.Tensor
    judged: torch.Tensor
    velocity: torch.Tensor
    openness: torch.Tensor


class Feed:
    """The whole training set on the device, indexed there: no loader, no Python per window."""

    def __init__(self, frames: Frames, feature: FrameDefinition, device: str) -> None:
        import torch

        self.frames = frames
        self.centres_hz = feature.centres_hz
        self.device = torch.device(device)
        self.tensors = [
            torch.from_numpy(a).to(self.device) for a in (frames.features, frames.onset, frames.judged, frames.velocity, frames.openness)
        ]
        self.cuts = None if frames.cuts is None else torch.from_numpy(frames.cuts).to(self.device)

    def batch(self, windows: NDArray[np.int64], hyper: Hyper, step: int) -> Batch:
        """Windows [shape=(batch, 2)] as tensors, varied and mixed by the keyed plan of this step."""
        import torch

        rows, inside = cut_rows(self.frames, windows, hyper.window_frames)
        index, real = torch.from_numpy(rows).to(self.device), torch.from_numpy(inside).to(self.device)
        features, onset, judged, velocity, openness = (t[index] for t in self.tensors)
        features = torch.where(real[..., None], features.float(), 0.0)
        onset = torch.where(real[..., None], onset.float(), 0.0)
        velocity = torch.where(real[..., None], velocity.float(), torch.nan)
        openness = torch.where(real, openness.float(), torch.nan)
        plan = plan_step(AUGMENTATIONS[hyper.augment], len(features), hyper.window_frames, self.centres_hz, seed=hyper.seed, step=step)
        if self.cuts is not None and plan.is_cut.any():
            before, after, reaches = cut_places(self.frames, windows, hyper.window_frames)
            leading, trailing = np.flatnonzero(plan.is_cut), np.flatnonzero(plan.is_cut & reaches)
            features[leading, :3] = self.cuts[before[leading], 3:].float()
            features[trailing, -3:] = self.cuts[after[trailing], :3].float()
        features = augment(features, plan)
        partner = torch.from_numpy(plan.partner).to(self.device)
        mixed = torch.from_numpy(plan.mix > 0).to(self.device)[:, None, None]
        judged = torch.where(mixed, judged & judged[partner], judged)
        velocity = torch.where(mixed & (onset[partner] > onset), torch.nan, velocity)
        onset = torch.where(mixed, torch.maximum(onset, onset[partner]), onset)
        return Batch(features, onset, judged, velocity, openness)


def edge_weights(n_frames: int) -> NDArray[np.float32]:
    """Weight of a positive by its place in the window [shape=(n_frames,)], on top of that of its class."""
    weights = np.ones(n_frames, dtype=np.float32)
    weights[:EDGE_FRAMES], weights[-EDGE_FRAMES:] = LEADING_WEIGHT, TRAILING_WEIGHT
    return weights


def compute_loss(raw: torch.Tensor, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over judged decisions, plus velocity and openness where they are known.

    A frame counts for the class-agnostic head when a hit is known there, or when every class is judged.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    n = batch.onset.shape[-1]
    onset, velocity, openness, any_onset = raw[..., :n], raw[..., n : 2 * n], raw[..., 2 * n], raw[..., 2 * n + 1]
    judged = batch.judged.float()
    positive = weights * torch.from_numpy(edge_weights(onset.shape[1])).to(onset.device)[:, None]
    loss = (bce(onset, batch.onset, pos_weight=positive, reduction="none") * judged).sum() / judged.sum().clamp(min=1.0)
    some = batch.onset.amax(dim=-1)
    clear = (batch.judged.all(dim=-1) | (some > 0)).float()
    loss = loss + 0.2 * (bce(any_onset, some, reduction="none") * clear).sum() / clear.sum().clamp(min=1.0)
    for output, target, weight in ((velocity, batch.velocity, VELOCITY_WEIGHT), (openness, batch.openness, OPENNESS_WEIGHT)):
        known = ~torch.isnan(target)
        error = (torch.sigmoid(output) - torch.nan_to_num(target)).square() * known
        loss = loss + weight * error.sum() / known.sum().clamp(min=1)
    return loss


def as_model(network: torch.nn.Module, feature: FrameDefinition, view: str, *, temperature: float = 1.0, threshold: float = 0.5) -> Model:
    """A network in training, in the form that decoding takes."""
    config: NetworkConfig = network.config  # type: ignore[assignment]
    return Model(network, "frame", view, config.classes, feature, temperature, threshold, "", {})


@dataclass(frozen=True)
class Validation:
    """Figures of one look at the validation split."""

    loss: float
    pooled_f1: float
    threshold: float


def validate(model: Model, recordings: Sequence[Recording], targets: Sequence[tuple[NDArray[Any], ...]]) -> Validation:
    """Loss per judged decision, and the best pooled F at 50 ms over one shared threshold."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    total, n_judged, judged_recordings = 0.0, 0, []
    for recording, (onset, judged, *_) in zip(recordings, targets, strict=True):
        outputs = apply_network(model.network, recording.features.astype(np.float32))
        losses = bce(torch.from_numpy(outputs.onset), torch.from_numpy(onset.astype(np.float32)), reduction="none").numpy()
        total += float(losses[judged].sum(dtype=np.float64))
        n_judged += int(judged.sum())
        judged_recordings.append(judge_recording(recording, decode.decode_outputs(model, outputs, lowest=decode.LOWEST_SCORE)))
    threshold, f1 = choose_threshold(judged_recordings, len(model.classes), THRESHOLDS)
    return Validation(total / max(n_judged, 1), f1, threshold)


def train_epoch(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    feed: Feed,
    weights: Mapping[str, float],
    positive: torch.Tensor,
    hyper: Hyper,
    *,
    epoch: int,
    n_steps: int,
    n_total_steps: int,
) -> tuple[float, dict[str, float]]:
    """One epoch; mean loss and the realised share of each group."""
    import torch

    windows = draw_windows(feed.frames, weights, n_steps * hyper.batch_size, hyper.window_frames, seed=hyper.seed, epoch=epoch)

    def loss_of(step: int) -> torch.Tensor:
        at = (step - epoch * n_steps) * hyper.batch_size
        batch = feed.batch(windows[at : at + hyper.batch_size], hyper, step)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=feed.device.type == "cuda"):
            raw = network(batch.features)
        return compute_loss(raw.float(), batch, positive)

    loss = take_steps(network, optimizer, hyper, loss_of, epoch=epoch, n_steps=n_steps, n_total_steps=n_total_steps)
    return loss, realised_shares(feed.frames.group, windows[:, 0])


def feature_level(frames: Frames) -> tuple[float, float]:
    """Mean and standard deviation of all training features."""
    total = square = 0.0
    for start in range(0, len(frames.features), 100_000):
        block = frames.features[start : start + 100_000].astype(np.float64)
        total, square = total + float(block.sum()), square + float((block * block).sum())
    mean = total / frames.features.size
    return mean, math.sqrt(max(square / frames.features.size - mean * mean, 1e-12))


def start_network(config: NetworkConfig, frames: Frames, hyper: Hyper, device: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A network with keyed initial weights and the level of the training features, and its optimizer."""
    import torch

    torch.manual_seed(step_seed(hyper.seed, -1))
    network = build_network(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = feature_level(frames)
    network.load_state_dict({"feature_mean": torch.tensor(mean), "feature_std": torch.tensor(std)}, strict=False)
    network.to(device)
    return network, torch.optim.AdamW(network.parameters(), lr=hyper.learning_rate, weight_decay=hyper.weight_decay)
