"""What a score on real audio is worth: leave one group out over the recordings of one dataset, training on everything else.

Belongs here: folds, the joint fine-tuning of each, the threshold from the other folds. Does not belong here: how a network learns
(`learn`), how hits are counted (`scoring`).

One network learns from all other training recordings (renders, mostly). For every group of the dataset a copy of it goes on with the same
recordings plus those of the other groups, and is judged on the group it never heard. The threshold of a group is the one that fits the
other groups best, each heard by the network that had not trained on it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from beatsight_assets.errors import ConfigError, NothingToDo
from beatsight_assets.features.cache import index_path
from beatsight_assets.features.definitions import FrameDefinition, definition
from beatsight_assets.model import decode, learn
from beatsight_assets.model.data import AUGMENTATIONS, Recording, lay_frames, load_recordings
from beatsight_assets.model.evaluate import coarse_columns
from beatsight_assets.model.network import apply_network, count_parameters
from beatsight_assets.model.scoring import (
    FINE_TOLERANCE_MS,
    Counts,
    Judged,
    Onsets,
    choose_threshold,
    count_hits,
    judge_recording,
    pool,
    to_us,
)
from beatsight_assets.model.train import find_device, load_preset
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy, View
from beatsight_assets.verdict import finite

if TYPE_CHECKING:
    import torch

VERSION = "1"
STAGE = "crossval"
REAL_SHARE = 0.45  # of the windows of a fine-tuning come from the dataset under test (design/model_plan.md: 40-50 %)
COARSE = "drums5"


@dataclass(frozen=True)
class CrossvalOptions:
    """The dataset whose groups are left out one by one, and the presets of the common and of the joint training."""

    source_set: str = "mdb_drums"
    preset: str = "real"
    tune_preset: str = "real_tune"
    mix_context: str = "drum_only"
    device: str = "auto"


@dataclass(frozen=True)
class _Heard:
    """A held-out recording: everything the network reported, in the classes of the model and in the coarse ones."""

    group: str
    session: str
    fine: Judged
    coarse: Judged


def run(settings: Settings, options: CrossvalOptions | None = None, *, progress: Progress = silent) -> Report:
    """Leave-one-group-out figures of one dataset: reports/metrics/crossval_<source_set>.json.

    Raises
    ------
    ConfigError `bad-option` : a preset with `follow_alignment`
    NothingToDo `nothing-to-judge` : the dataset has fewer than two groups with features, or there is nothing else to train on
    """
    options = options or CrossvalOptions()
    hyper, tune = (_frame_preset(settings, name) for name in (options.preset, options.tune_preset))
    if hyper.follow_alignment or tune.follow_alignment:
        raise ConfigError("crossval learns and judges by the annotations as they are. Leave follow_alignment out", code="bad-option")
    feature = definition(hyper.feature)
    identity = {**asdict(options), "hyper": hyper.model_dump(mode="json"), "tune": tune.model_dump(mode="json")}
    parents = (("annotated", settings.layout.annotated), ("splits", settings.layout.splits), ("features", index_path(settings, feature)))
    return run_stage(
        settings,
        STAGE,
        partition=options.source_set,
        version=VERSION,
        options=identity,
        parents=parents,
        work=lambda: _work(settings, options, hyper, tune, feature, progress),
    )


def _frame_preset(settings: Settings, name: str) -> learn.Hyper:
    hyper, _ = load_preset(settings, name)
    if not isinstance(hyper, learn.Hyper):
        raise ConfigError(f"preset {name} is of family {hyper.family}; crossval judges family frame", code="bad-option", where="--preset")
    return hyper


def _work(
    settings: Settings, options: CrossvalOptions, hyper: learn.Hyper, tune: learn.Hyper, feature: FrameDefinition, progress: Progress
) -> Outcome:
    import torch

    taxonomy = Taxonomy.load(settings)
    view, coarse = taxonomy.view(hyper.view), taxonomy.view(COARSE)
    device = find_device(options.device)
    if hyper.threads:
        torch.set_num_threads(hyper.threads)
    cuts = ("train", "val", "test") if AUGMENTATIONS[hyper.augment].cut_share > 0 else ()
    everything = load_recordings(settings, feature, view, taxonomy, ("train", "val", "test"), cut_splits=cuts)
    wanted = _sessions(settings, options)
    held = [r for r in everything if r.source_set == options.source_set and r.session_id in wanted]
    groups = sorted({r.group_id for r in held})
    base = [r for r in everything if r.split == "train" and r.source_set != options.source_set and r.group_id not in groups]
    if len(groups) < 2 or not base:
        raise NothingToDo(
            f"{options.source_set} has {len(groups)} groups with audio and there are {len(base)} other training recordings; 2 and 1 are needed",
            code="nothing-to-judge",
        )
    minutes = sum(r.n_frames for r in base) / feature.frames_per_s / 60
    progress(f"crossval: {len(base)} recordings ({minutes:.0f} min) for the common training, {len(groups)} groups of {options.source_set}")
    start = _learn(base, None, dict.fromkeys({r.sampling_group for r in base}, 1.0), hyper, feature, view, device, "common", progress)
    before = [h for r in held for h in (_hear(start, r, feature, view, coarse, hyper.view),)]
    heard = []
    for i, group in enumerate(groups):
        others = [r for r in held if r.group_id != group]
        weights = _weights(base, others, hyper)
        name = f"fold {i + 1} of {len(groups)}"
        network = _learn([*base, *others], start, weights, tune, feature, view, device, name, progress)
        heard += [_hear(network, r, feature, view, coarse, hyper.view) for r in held if r.group_id == group]
    result = {"joint": _count(heard, view, coarse), "renders_only": _count(before, view, coarse)}
    document = {
        "schema": "beatsight.crossval/1",
        "source_set": options.source_set,
        "mix_context": options.mix_context,
        "recordings": len(held),
        "groups": len(groups),
        "parameters": count_parameters(start),
        "train_minutes": round(minutes, 3),
        "train_kits": len({r.kit_id for r in base}),
        "overlap": "no take, kit or group of the judged recordings was trained on in its fold",
        "presets": {"common": hyper.model_dump(mode="json"), "joint": tune.model_dump(mode="json")},
        **result,
    }
    path = settings.store.publish_json(settings.layout.report("metrics", f"crossval_{options.source_set}.json"), document).path
    joint = result["joint"]
    figures = {
        f"{name}/{key}": finite(found[key])
        for name, found in result.items()
        for key in ("pooled_f1_drums5", "pooled_f1_drums5_20ms", "pooled_f1_drums18")
    }
    figures |= {f"joint/f1/{name}": c["f1"] for name, c in joint["per_class_drums5"].items() if c["f1"] is not None}
    rows = tuple((r["session"], r["drums5"]["f1"], r["drums18"]["f1"], r["threshold"]) for r in joint["per_recording"])
    return Outcome(
        outputs=[("crossval", path, len(held))],
        figures={k: float(v) for k, v in figures.items() if v is not None},
        facts={"groups": groups, "device": device},
        table=Table(("recording", "F drums5", "F drums18", "threshold"), rows),
    )


def _sessions(settings: Settings, options: CrossvalOptions) -> set[str]:
    import polars as pl

    frame = pl.read_parquet(settings.layout.annotated, columns=["source_set", "session_id", "mix_context"])
    rows = frame.filter((pl.col("source_set") == options.source_set) & (pl.col("mix_context") == options.mix_context))
    return set(rows["session_id"].unique().to_list())


def _weights(base: Sequence[Recording], others: Sequence[Recording], hyper: learn.Hyper) -> Mapping[str, float]:
    """One weight per sampling group, so that `REAL_SHARE` of the windows come from `others`."""

    def n_clips(recordings: Sequence[Recording]) -> int:
        return sum(max(1, round(r.n_frames / hyper.window_frames)) for r in recordings)

    real = REAL_SHARE / (1 - REAL_SHARE) * n_clips(base) / n_clips(others)
    return {r.sampling_group: 1.0 for r in base} | {r.sampling_group: real for r in others}


def _learn(
    recordings: Sequence[Recording], start: torch.nn.Module | None, weights: Mapping[str, float], hyper: learn.Hyper, feature: FrameDefinition,
    view: View, device: str, name: str, progress: Progress,
) -> torch.nn.Module:  # fmt: skip
    import torch

    frames = lay_frames(recordings, len(view.classes), feature.frames_per_s)
    n_steps = hyper.steps_per_epoch(feature.frames_per_s)
    if start is None:
        network, optimizer = learn.start_network(hyper.network(view.classes, feature.n_bands), frames, hyper, device)
    else:
        network = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(network.parameters(), lr=hyper.learning_rate, weight_decay=hyper.weight_decay)
    feed = learn.Feed(frames, feature, device)
    positive = torch.from_numpy(learn.class_weights(frames, hyper.max_class_weight)).to(device)
    for epoch in range(hyper.epochs):
        loss, _ = learn.train_epoch(
            network, optimizer, feed, weights, positive, hyper, epoch=epoch, n_steps=n_steps, n_total_steps=n_steps * hyper.epochs
        )
        progress(f"crossval: {name}, epoch {epoch + 1} of {hyper.epochs}, loss {loss:.4f}")
    network.eval()
    return network


def _hear(network: torch.nn.Module, recording: Recording, feature: FrameDefinition, view: View, coarse: View, view_name: str) -> _Heard:
    model = learn.as_model(network, feature, view_name)
    outputs = apply_network(network, recording.features.astype(np.float32))
    hits = decode.decode_outputs(model, outputs, lowest=decode.LOWEST_SCORE)
    fine = judge_recording(recording, hits)
    # In the coarse view a class that the source cannot name still counts: a second crash is a cymbal. MDB covers all five.
    columns = coarse_columns(view, coarse)
    everything = Onsets(to_us(hits.onset_s), hits.class_index, hits.score)
    return _Heard(recording.group_id, recording.session_id, fine, Judged(fine.truth.mapped(columns), everything, fine.tags))


def _above(judged: Judged, threshold: float, columns: Any = None) -> Judged:
    """Hits whose score reaches the threshold, mapped to coarser classes after that."""
    heard = judged.heard
    if heard.score is not None:
        keep = heard.score >= np.float32(threshold)
        heard = Onsets(heard.us[keep], heard.index[keep], heard.score[keep])
    return replace(judged, heard=heard if columns is None else heard.mapped(columns))


def _count(heard: Sequence[_Heard], view: View, coarse: View) -> dict[str, Any]:
    """Pooled, per class and per recording, each recording at the threshold that fits the other groups best."""
    columns = coarse_columns(view, coarse)
    chosen = {}
    for group in sorted({h.group for h in heard}):
        chosen[group], _ = choose_threshold([h.fine for h in heard if h.group != group], len(view.classes), learn.THRESHOLDS)
    fine = [_above(h.fine, chosen[h.group]) for h in heard]
    wide = [_above(h.coarse, chosen[h.group], columns) for h in heard]
    at_fine, at_wide = count_hits(fine, len(view.classes)), count_hits(wide, len(coarse.classes))
    close = count_hits(wide, len(coarse.classes), FINE_TOLERANCE_MS)
    return {
        "pooled_f1_drums5": pool(at_wide).f1,
        "pooled_f1_drums5_20ms": pool(close).f1,
        "pooled_precision_drums5": pool(at_wide).precision,
        "pooled_recall_drums5": pool(at_wide).recall,
        "pooled_f1_drums18": pool(at_fine).f1,
        "mean_f1_drums5": float(np.mean([pool(row).f1 or 0.0 for row in at_wide])),
        "per_class_drums5": {name: _shown(pool(at_wide[:, i])) for i, name in enumerate(coarse.classes)},
        "per_class_drums18": {name: _shown(pool(at_fine[:, i])) for i, name in enumerate(view.classes) if pool(at_fine[:, i]).support},
        "per_recording": [
            {"session": h.session, "threshold": chosen[h.group], "drums5": _shown(pool(at_wide[i])), "drums18": _shown(pool(at_fine[i]))}
            for i, h in enumerate(heard)
        ],
    }


def _shown(counts: Counts) -> dict[str, float | int | None]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in counts.to_json().items()}
