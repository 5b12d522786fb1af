"""What both families of models share while they learn: schedule, steps, and what a family brings to the loop of `train`.

Belongs here: the learning rate, one step, the form in which a family is handed over. Does not belong here: losses and data (`learn`,
`frame_family`, `clip_family`), the stage with its files and resume (`train`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from beatsight_assets.units import rng_for

if TYPE_CHECKING:
    import torch


class Schedule(BaseModel):
    """Numbers of a training that both families have. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=2)
    learning_rate: float = Field(gt=0.0)
    min_learning_rate: float = Field(default=1e-5, gt=0.0)
    warmup_share: float = Field(default=0.15, ge=0.0, le=1.0)
    weight_decay: float = Field(default=1e-3, ge=0.0)
    clip_norm: float = Field(default=1.0, gt=0.0)
    dropout: float = Field(default=0.1, ge=0.0, le=0.9)
    seed: int = 1337
    threads: int = Field(default=0, ge=0)  # 0 = all cores; equal bytes need equal threads
    checkpoint_every: int = Field(default=1, ge=1)


def learning_rate_at(step: int, total: int, hyper: Schedule) -> float:
    """Linear warm-up over the first `warmup_share` of all steps, then a half cosine down to the minimum; the minimum after the end."""
    warm = max(1, int(total * hyper.warmup_share))
    if step < warm:
        return hyper.learning_rate * (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, total - warm))
    return hyper.min_learning_rate + 0.5 * (hyper.learning_rate - hyper.min_learning_rate) * (1.0 + math.cos(math.pi * done))


def step_seed(seed: int, step: int) -> int:
    """Seed of torch's generator (dropout) in one step: keyed, so that a resumed run needs no stored random state."""
    return int(rng_for(seed, "torch", str(step)).integers(0, 2**63 - 1))


def take_steps(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    hyper: Schedule,
    loss_of: Callable[[int], torch.Tensor],
    *,
    epoch: int,
    n_steps: int,
    n_total_steps: int,
) -> float:
    """The steps of one epoch; mean of the losses. `loss_of` gets the number of the step within the whole run."""
    import torch

    network.train()
    total = torch.zeros((), dtype=torch.float64)
    for step in range(epoch * n_steps, (epoch + 1) * n_steps):
        torch.manual_seed(step_seed(hyper.seed, step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, n_total_steps, hyper)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), hyper.clip_norm)
        optimizer.step()
        total += loss.detach().cpu()
    return float(total) / n_steps


@dataclass(frozen=True)
class Finished:
    """A family's words about the best epoch."""

    card: Mapping[str, Any]  # fields of model.json
    probes: NDArray[np.float32]  # see `checkpoint.save_model`
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Learner:
    """One run that is ready to learn.

    train : (epoch, steps of the whole run) -> mean loss, realised share of each sampling group
    look : figures on the validation split, `val_loss` and `score` among them
    finish : when the network has the weights of the best epoch, on the CPU
    """

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    n_steps: int  # of one epoch
    train: Callable[[int, int], tuple[float, dict[str, float]]]
    look: Callable[[], Mapping[str, float]]
    finish: Callable[[], Finished]
    words: str  # what it learns from, for people
    facts: Mapping[str, Any]  # of the data, for metrics.json
    feature_stats: Mapping[str, float]  # mean and std of the training features
    n_groups: int  # sampling groups in the training split


@dataclass(frozen=True)
class Plan:
    """One run before it starts: what it is made of and what it is called.

    config : what its identity is made of, and `origin`, where each number comes from
    score : the figure of `Learner.look` that chooses the epoch, the higher the better
    start : reads the data
    """

    stage: str
    hyper: Schedule
    device: str
    config: Mapping[str, Any]
    inputs: tuple[tuple[str, Path], ...]
    score: str
    start: Callable[[], Learner]
    options: Mapping[str, Any]  # of the receipt, beside those that both families have
    run: str = ""  # its name, which `train` makes from all this
