"""What the clip family brings to a training: the clips of a bundle, fed from its feature cache, and a network that says what each hit is.

Belongs here: preset, loss, one epoch, a look at validation. Does not belong here: batches (`clips`), the loop (`train`), the network (`network`).

Clips are drawn by the sampling weights, keyed by (seed, epoch). What a clip says nothing about (its mask) counts neither for nor against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from beatsight_assets.bundle.check import own_manifest
from beatsight_assets.bundle.read import open_bundle
from beatsight_assets.errors import GateFailed
from beatsight_assets.features.clip_cache import index_path
from beatsight_assets.features.definitions import CLIP_FEATURE
from beatsight_assets.model import checkpoint
from beatsight_assets.model.clips import Batch, Clips, load_clips
from beatsight_assets.model.family import Finished, Learner, Plan, Schedule, step_seed, take_steps
from beatsight_assets.model.network import ClipNetworkConfig, build_network
from beatsight_assets.sampling import read_weights, realised_shares
from beatsight_assets.settings import Settings

if TYPE_CHECKING:
    import torch

STAGE = "baseline_model"
LEVEL_CLIPS = 4_096  # of the training split, keyed: mean and deviation of 13 million values
GPU_SHARE = 0.5  # of the free memory of a GPU that the features of a bundle may take


class ClipHyper(Schedule):
    """configs/presets/<name>.yaml of family clip: every number of a training. Unknown keys are errors."""

    family: Literal["clip"] = "clip"
    feature: str = CLIP_FEATURE
    target_mode: Literal["single", "multi"] = "single"  # one class per clip, or each class for itself
    clips_per_epoch: int = Field(ge=1)  # drawn; ruling 33: the cap that keeps CPU runs in their budget
    dropout: float = Field(default=0.3, ge=0.0, le=0.9)


def plan(settings: Settings, hyper: ClipHyper, name: str, weights_path: Path, device: str) -> Plan:
    """A run on the clips of a sealed bundle.

    Raises
    ------
    ConfigError, GateFailed : as `train.run`
    """
    where, marker = settings.store, settings.layout.bundle(name) / "BUNDLE.json"
    bundle = open_bundle(marker.parent)
    if not weights_path.is_file():
        raise GateFailed(f"there are no sampling weights ({where.rel(weights_path)}). Run: beatsight sampling derive", code="missing-input")
    group_field, weights = read_weights(weights_path, where.sha256(own_manifest(settings, bundle)))
    train, val = (load_clips(settings, name, (split,), group_field=group_field, definition=hyper.feature) for split in ("train", "val"))
    inputs = [("bundle", marker), ("sampling_weights", weights_path)]
    forms = {"train": train.form, "val": val.form}
    if "samples" not in forms.values():
        inputs.append(("feature_index", index_path(settings, train.feature, name)))
    return Plan(
        stage=STAGE,
        hyper=hyper,
        device=device,
        config={
            "hyper": hyper.model_dump(mode="json"),
            "data": {"bundle": bundle.content_sha256, "sampling_weights": where.sha256(weights_path)},
            "feature": {"name": train.feature.name, "digest": train.feature.digest, "forms": forms},
            "classes": list(train.classes),
            "bundle": name,
        },
        inputs=tuple(inputs),
        score="val_accuracy" if hyper.target_mode == "single" else "val_macro_f1",
        start=lambda: start(train, val, weights, hyper, str(bundle.plan.options.view), device),
        options={"bundle": name},
    )


def start(train: Clips, val: Clips, weights: Mapping[str, float], hyper: ClipHyper, view: str, device: str) -> Learner:
    """A network that has seen nothing yet, and how it learns from these clips.

    Raises
    ------
    GateFailed `nothing-to-train`, `nothing-to-validate`, `group-without-weight`
    """
    import torch

    is_single = hyper.target_mode == "single"
    (rows, left_out), (val_rows, _) = (c.single_target() if is_single else (np.arange(len(c)), {}) for c in (train, val))
    for found, code, split in ((rows, "nothing-to-train", "train"), (val_rows, "nothing-to-validate", "val")):
        if not len(found):
            raise GateFailed(f"no clip of split {split} has exactly one judged class. Give a preset of target_mode multi", code=code)
    torch.manual_seed(step_seed(hyper.seed, -1))
    network = build_network(ClipNetworkConfig(train.classes, hyper.feature, hyper.dropout))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.3 times faster on a CPU
    mean, std = _level(train, rows, hyper.seed)
    network.load_state_dict({"feature_mean": torch.tensor(mean), "feature_std": torch.tensor(std)}, strict=False)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=hyper.learning_rate, weight_decay=hyper.weight_decay)
    n_clips = min(hyper.clips_per_epoch, len(rows))
    n_steps = math.ceil(n_clips / hyper.batch_size)
    resident, val_resident = _held(train, device), _held(val, device)

    def learn(epoch: int, n_total_steps: int) -> tuple[float, dict[str, float]]:
        order = train.order(hyper.seed, epoch, rows, weights)[:n_clips]
        batches = train.batches(order, hyper.batch_size, device=device, resident=resident)

        def loss_of(_: int) -> torch.Tensor:
            batch = next(batches)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.startswith("cuda")):
                logits = network(batch.features)
            return compute_loss(logits.float(), batch, hyper.target_mode)

        loss = take_steps(network, optimizer, hyper, loss_of, epoch=epoch, n_steps=n_steps, n_total_steps=n_total_steps)
        return loss, realised_shares(train.group, order)

    def look() -> dict[str, float]:
        network.eval()
        total, logits = 0.0, []
        with torch.inference_mode():
            for batch in val.batches(val_rows, hyper.batch_size, device=device, resident=val_resident):
                logits.append(network(batch.features).float())
                total += float(compute_loss(logits[-1], batch, hyper.target_mode)) * len(batch.rows)
        found = torch.cat(logits).cpu().numpy()
        figures = {
            "val_loss": total / len(val_rows),
            "val_macro_f1": macro_f1(found, val.target[val_rows], val.judged[val_rows], is_single),
        }
        return figures | (
            {"val_accuracy": float(np.mean(_choice(found, val.judged[val_rows]) == val.single[val_rows]))} if is_single else {}
        )

    def finish() -> Finished:
        probe_rows = val_rows[np.arange(checkpoint.N_PROBES) % len(val_rows)]
        probes = next(val.batches(probe_rows, checkpoint.N_PROBES)).features.numpy()
        card = {
            "view": view,
            "target_mode": hyper.target_mode,
            "trained_on": _describe(train, rows),
            "validated_on": _describe(val, val_rows),
        }
        return Finished(card, probes, {"train_clips": len(rows), "clips_per_epoch": n_clips, **left_out})

    return Learner(
        network,
        optimizer,
        n_steps,
        learn,
        look,
        finish,
        f"{len(rows):,} clips for training ({train.form}), {len(val_rows):,} for validation ({val.form}), {hyper.epochs} epochs of {n_clips:,} "
        "clips each (the cap of the preset)",
        {"samples": {"train": len(rows), "val": len(val_rows), **left_out}, "target_mode": hyper.target_mode},
        {"mean": mean, "std": std},
        len({train.group[i] for i in rows}),
    )


def compute_loss(logits: torch.Tensor, batch: Batch, target_mode: str) -> torch.Tensor:
    """Cross-entropy over the judged classes of each clip, or binary cross-entropy over all judged decisions. Mean."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    if target_mode == "single":
        return cross_entropy(logits.masked_fill(~batch.judged, -torch.inf), batch.target.argmax(dim=1))
    losses = binary_cross_entropy_with_logits(logits, batch.target, reduction="none") * batch.judged
    return losses.sum() / batch.judged.sum().clamp(min=1)


def _choice(logits: NDArray[np.float32], judged: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The likeliest of the judged classes of each clip."""
    return np.where(judged, logits, -np.inf).argmax(axis=1)


def macro_f1(logits: NDArray[np.float32], target: NDArray[np.bool_], judged: NDArray[np.bool_], is_single: bool) -> float:
    """Mean F1 over the classes that occur, judged decisions only; each [shape=(n, n_classes)]. 0.0 where none occurs."""
    said = np.zeros_like(judged)
    if is_single:
        said[np.arange(len(said)), _choice(logits, judged)] = True
    else:
        said = logits > 0.0
    said, truth = said & judged, target & judged
    right, n_said, n_true = (x.sum(axis=0) for x in (said & truth, said, truth))
    occurs = n_true > 0
    return float(np.mean(2.0 * right[occurs] / (n_said + n_true)[occurs])) if occurs.any() else 0.0


def _level(clips: Clips, rows: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Mean and standard deviation of training features in dB."""
    some = next(clips.batches(clips.order(seed, -1, rows)[:LEVEL_CLIPS], LEVEL_CLIPS)).features.numpy().astype(np.float64)
    return float(some.mean()), max(float(some.std()), 1e-6)


def _held(clips: Clips, device: str) -> torch.Tensor | None:
    """The features on a GPU where they fit; a CPU reads them where they lie."""
    import torch

    if not device.startswith("cuda") or clips.form == "samples":
        return None
    n_bytes = sum(a.nbytes for a in clips.arrays)
    return clips.resident(device) if n_bytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0] else None


def _describe(clips: Clips, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What a split is made of, so that overlap with other data can be told later (ruling 37)."""
    some = clips.table[rows]
    return {"clips": len(rows), **{f"{c}s": sorted(set(some[c].drop_nulls().to_list())) for c in ("source_set", "group_id")}}
