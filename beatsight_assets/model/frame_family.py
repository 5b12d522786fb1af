"""What the frame family brings to a training: recordings, windows of them, threshold and temperature.

Belongs here: which data, looks at validation, the card of the best epoch. Does not belong here: the loop (`train`), the loss (`learn`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.errors import GateFailed
from beatsight_assets.features.cache import index_path
from beatsight_assets.features.definitions import FrameDefinition, definition
from beatsight_assets.model import checkpoint, learn
from beatsight_assets.model.data import AUGMENTATIONS, Recording, frame_targets, lay_frames, load_recordings
from beatsight_assets.model.decode import LOWEST_SCORE, SCORE_REACH_MS, scores_around, transcribe_features
from beatsight_assets.model.family import Finished, Learner, Plan
from beatsight_assets.model.learn import Hyper
from beatsight_assets.model.network import apply_network
from beatsight_assets.model.scoring import choose_threshold, judge_recording
from beatsight_assets.readiness import annotation_alignment
from beatsight_assets.readiness.calibration import fit_temperature
from beatsight_assets.sampling import read_weights
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch

STAGE = "candidate_model"
PROBE_FRAMES = 256


def inputs_of(settings: Settings, feature: FrameDefinition, weights: Path) -> tuple[tuple[str, Path], ...]:
    """Files that the data of a run are made of, by role.

    Raises
    ------
    GateFailed `missing-input`
    """
    layout = settings.layout
    inputs = (
        ("manifest", layout.annotated),
        ("splits", layout.splits),
        ("feature_index", index_path(settings, feature)),
        ("sampling_weights", weights),
    )
    for role, path in inputs:
        if not path.is_file():
            raise GateFailed(f"there is no {role} ({settings.store.rel(path)}). Run the step that writes it first", code="missing-input")
    return inputs


def plan(settings: Settings, hyper: Hyper, weights_path: Path, device: str) -> Plan:
    """A run on the recordings of the manifest; `train` adds name and preset.

    Raises
    ------
    ConfigError, GateFailed : as `train.run`
    """
    feature, taxonomy, where = definition(hyper.feature), Taxonomy.load(settings), settings.store
    view = taxonomy.view(hyper.view)
    inputs = inputs_of(settings, feature, weights_path)
    group_field, weights = read_weights(weights_path, where.sha256(settings.layout.annotated))
    config: dict[str, Any] = {
        "hyper": hyper.model_dump(mode="json"),
        "data": {role: where.sha256(path) for role, path in inputs},
        "feature": {"name": feature.name, "digest": feature.digest},
        "classes": list(view.classes),
        "taxonomy": taxonomy.to_json(),
    }
    if hyper.follow_alignment:
        known = pl.read_parquet(index_path(settings, feature), columns=["source_set"])["source_set"]
        config["annotation_offsets_ms"] = annotation_alignment.offsets_ms(settings, known.to_list())
    offsets_ms = config.get("annotation_offsets_ms", {})

    def read() -> tuple[list[Recording], list[Recording]]:
        cut_splits = ("train",) if AUGMENTATIONS[hyper.augment].cut_share > 0 else ()
        recordings = load_recordings(
            settings,
            feature,
            view,
            taxonomy,
            ("train", "val"),
            group_field=group_field,
            cut_splits=cut_splits,
            offsets_ms=offsets_ms,
        )
        return [r for r in recordings if r.split == "train"], [r for r in recordings if r.split == "val"]

    return Plan(
        stage=STAGE,
        hyper=hyper,
        device=device,
        config=config,
        inputs=inputs,
        score="val_f1",
        start=lambda: _start(*read(), weights, hyper, feature, view.classes, view.name, device),
        options={"offsets_ms": offsets_ms},
    )


def _start(
    train: Sequence[Recording],
    val: Sequence[Recording],
    weights: Mapping[str, float],
    hyper: Hyper,
    feature: FrameDefinition,
    classes: tuple[str, ...],
    view: str,
    device: str,
) -> Learner:
    import torch

    if not val:
        raise GateFailed(
            "no recording of split val has features: nothing to choose the epoch and the threshold on", code="nothing-to-validate"
        )
    frames = lay_frames(train, len(classes), feature.frames_per_s)
    audio_s = len(frames.features) / feature.frames_per_s
    n_steps = hyper.steps_per_epoch(feature.frames_per_s)
    heard_s = n_steps * hyper.batch_size * hyper.window_frames / feature.frames_per_s
    network, optimizer = learn.start_network(hyper.network(classes, feature.n_bands), frames, hyper, device)
    feed = learn.Feed(frames, feature, device)
    positive = torch.from_numpy(learn.class_weights(frames, hyper.max_class_weight)).to(device)
    targets = [frame_targets(r.truth, r.n_frames, len(classes), feature.frames_per_s) for r in val]

    def look() -> dict[str, float]:
        seen = learn.validate(learn.as_model(network, feature, view), val, targets)
        return {"val_loss": seen.loss, "val_f1": seen.pooled_f1, "threshold": seen.threshold}

    def finish() -> Finished:
        threshold, temperature, val_f1 = calibrate(network, feature, view, val)
        card = {
            "view": view,
            "target_mode": "multi",
            "threshold": threshold,
            "temperature": temperature,
            "trained_on": _describe_data(train),
            "validated_on": _describe_data(val),
        }
        figures = {
            "val_f1": val_f1,
            "threshold": threshold,
            "temperature": temperature,
            "train_minutes": audio_s / 60.0,
            "audio_s_per_epoch": heard_s,
        }
        return Finished(card, _probes(val), figures)

    return Learner(
        network,
        optimizer,
        n_steps,
        lambda epoch, n_total: learn.train_epoch(
            network, optimizer, feed, weights, positive, hyper, epoch=epoch, n_steps=n_steps, n_total_steps=n_total
        ),
        look,
        finish,
        f"{len(train)} recordings of {audio_s / 60:.1f} min for training, {len(val)} for validation, {hyper.epochs} epochs that hear "
        f"{heard_s:.0f} s of audio each (the cap of the preset)",
        {"audio_s_per_epoch": heard_s},
        dict(zip(("mean", "std"), learn.feature_level(frames), strict=True)),
        len(set(frames.group)),
    )


def calibrate(network: torch.nn.Module, feature: FrameDefinition, view: str, val: Sequence[Recording]) -> tuple[float, float, float]:
    """(threshold, temperature, pooled F) on validation recordings.

    The temperature is fitted on what the calibration gate judges: the largest logit of each class around each event. The threshold is
    then chosen on hits decoded with that temperature, so it is one in calibrated probability.
    """
    logits, truth = [], []
    for recording in val:
        onset = apply_network(network, recording.features.astype(np.float32)).onset
        at, present, judged = _instants(recording, onset.shape[1])
        around = scores_around(onset, at, feature.frames_per_s, SCORE_REACH_MS, outside=-np.inf)
        logits.append(np.where(judged, around, np.nan))
        truth.append(present)
    joined = np.concatenate(logits)
    temperature = round(fit_temperature(joined, np.concatenate(truth)), 6) if np.isfinite(joined).any() else 1.0
    model = learn.as_model(network, feature, view, temperature=temperature)
    heard = [judge_recording(r, transcribe_features(model, r.features, lowest=LOWEST_SCORE)) for r in val]
    threshold, f1 = choose_threshold(heard, len(model.classes), learn.THRESHOLDS)
    return threshold, temperature, f1


def _instants(recording: Recording, n_classes: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(onset_s, present, judged) of the distinct instants of a recording, the last two [shape=(n, n_classes)]."""
    truth = recording.truth
    at, place = np.unique(truth.onset_s, return_inverse=True)
    present = np.zeros((len(at), n_classes), dtype=bool)
    present[place, truth.class_index] = True
    judged = np.broadcast_to(truth.known, present.shape).copy()
    for onset_s, index in zip(truth.unknown_onset_s, truth.unknown_class, strict=True):
        judged[np.abs(at - onset_s) <= SCORE_REACH_MS / 1000.0, index] = False
    return at, present, judged


def _probes(val: Sequence[Recording]) -> NDArray[np.float32]:
    """Eight windows of validation features, spread over the recordings, short ones padded with silence."""
    windows = np.zeros((checkpoint.N_PROBES, PROBE_FRAMES, val[0].features.shape[1]), dtype=np.float32)
    for i in range(checkpoint.N_PROBES):
        recording = val[i % len(val)]
        start = (i // len(val)) * PROBE_FRAMES % max(1, recording.n_frames - PROBE_FRAMES + 1)
        cut = recording.features[start : start + PROBE_FRAMES]
        windows[i, : len(cut)] = cut
    return windows


def _describe_data(recordings: Sequence[Recording]) -> dict[str, Any]:
    """What a split is made of: recordings, kits and groups, so that overlap with other data can be told later (ruling 37)."""
    return {
        "recordings": len(recordings),
        "source_sets": sorted({r.source_set for r in recordings}),
        "kits": sorted({r.kit_id for r in recordings if r.kit_id}),
        "groups": sorted({r.group_id for r in recordings}),
        "synthetic": sum(r.is_synthetic for r in recordings),
    }
