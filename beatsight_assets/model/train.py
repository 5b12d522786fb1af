"""Stage `candidate_model`: a preset and the training split in, a candidate with its run folder out.

Belongs here: which data, resume, what a run leaves, choosing threshold and temperature, the rules about the candidate. Does not belong
here: loss and schedule (`learn`), file formats (`checkpoint`), figures on the test split (`evaluate`).

A run killed at any moment goes on from its newest complete checkpoint. On the CPU (same versions, same number of threads) weights,
optimizer and history are then those of a run that was never interrupted, byte by byte.
"""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import clock, store
from beatsight_assets.errors import ConfigError, GateFailed
from beatsight_assets.features.cache import index_path
from beatsight_assets.features.definitions import FrameDefinition, definition
from beatsight_assets.model import checkpoint, learn
from beatsight_assets.model.data import AUGMENTATIONS, Recording, frame_targets, lay_frames, load_recordings
from beatsight_assets.model.decode import LOWEST_SCORE, SCORE_REACH_MS, scores_around, transcribe_features
from beatsight_assets.model.learn import Hyper
from beatsight_assets.model.network import apply_network, count_parameters
from beatsight_assets.model.scoring import choose_threshold, judge_recording
from beatsight_assets.readiness import annotation_alignment
from beatsight_assets.readiness.calibration import fit_temperature
from beatsight_assets.sampling import read_weights
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy, View
from beatsight_assets.tracking import tracker
from beatsight_assets.verdict import Artifact, Rule, Verdict

if TYPE_CHECKING:
    import torch

VERSION = "1"
STAGE = "candidate_model"
GATE = "candidate_model"
PARITY_LIMIT = 1e-5  # spec/gates.md section 14
PARITY_CHUNK_FRAMES = 97  # a chunk length that no other code uses
PROBE_FRAMES = 256


@dataclass(frozen=True)
class TrainOptions:
    """Which preset, and what a command changes in it.

    overrides : fields of the preset with other values; they count as part of the run's configuration
    resume : `auto` goes on from the newest complete checkpoint of this run, `never` starts over
    sampling_weights : weights file; None = reports/sampling/annotated_weights.json
    """

    preset: str = "baseline"
    run_name: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    resume: str = "auto"
    tracker: str = "jsonl"
    sampling_weights: Path | None = None


@dataclass(frozen=True)
class _Plan:
    """One run before it starts: what it is made of and what it is called."""

    run: str
    hyper: Hyper
    feature: FrameDefinition
    view: View
    taxonomy: Taxonomy
    device: str
    config: dict[str, Any]
    weights: Mapping[str, float]
    group_field: str
    weights_sha256: str
    inputs: tuple[tuple[str, Path], ...]


def load_preset(settings: Settings, name: str, overrides: Mapping[str, Any] | None = None) -> tuple[Hyper, dict[str, str]]:
    """configs/presets/<name>.yaml with overrides, and where each value comes from: default, preset or option.

    Raises
    ------
    ConfigError : `unknown-choice`, no such preset; `bad-config`, a value or key that training does not have
    """
    if not settings.config_path(f"presets/{name}").is_file():
        known = sorted(p.stem for p in settings.config_path("presets/demo").parent.glob("*.yaml"))
        raise ConfigError.unknown_choice("preset", name, known, where="--preset")
    written = settings.typed(f"presets/{name}", Hyper)
    unknown = sorted(set(overrides or {}) - set(Hyper.model_fields))
    if unknown:
        raise ConfigError.unknown_choice("training option", unknown[0], Hyper.model_fields, where="overrides")
    try:
        merged = Hyper.model_validate({**written.model_dump(), **(overrides or {})})
    except ValueError as error:
        raise ConfigError(f"an option has a value that training cannot use: {error}", code="bad-option") from error
    origin = {
        k: "option" if k in (overrides or {}) else "preset" if k in written.model_fields_set else "default" for k in Hyper.model_fields
    }
    return merged, origin


def find_device(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU when there is one.

    Raises
    ------
    ConfigError : `no-cuda`, cuda was asked for and there is none; `unknown-choice`
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise ConfigError.unknown_choice("device", name, ("auto", "cpu", "cuda"), where="--device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("cuda was asked for and this machine has no usable GPU. Give --device cpu", code="no-cuda", where="--device")
    return name


def _plan(settings: Settings, options: TrainOptions) -> _Plan:
    hyper, origin = load_preset(settings, options.preset, options.overrides)
    feature, taxonomy = definition(hyper.feature), Taxonomy.load(settings)
    layout, where = settings.layout, settings.store
    weights_path = options.sampling_weights or layout.report("sampling", "annotated_weights.json")
    inputs = (
        ("manifest", layout.annotated),
        ("splits", layout.splits),
        ("feature_index", index_path(settings, feature)),
        ("sampling_weights", weights_path),
    )
    for role, path in inputs:
        if not path.is_file():
            raise GateFailed(f"there is no {role} ({where.rel(path)}). Run the step that writes it first", code="missing-input")
    group_field, weights = read_weights(weights_path, where.sha256(layout.annotated))
    data = {role: where.sha256(path) for role, path in inputs}
    view = taxonomy.view(hyper.view)
    config: dict[str, Any] = {
        "preset": options.preset,
        "hyper": hyper.model_dump(mode="json"),
        "data": data,
        "feature": {"name": feature.name, "digest": feature.digest},
        "classes": list(view.classes),
        "taxonomy": taxonomy.to_json(),
    }
    if hyper.follow_alignment:
        known = pl.read_parquet(index_path(settings, feature), columns=["source_set"])["source_set"]
        config["annotation_offsets_ms"] = annotation_alignment.offsets_ms(settings, known.to_list())
    digest = sha256(store.to_json_bytes(config)).hexdigest()
    run = options.run_name or f"{hyper.family}_{options.preset}_{digest[:8]}"
    store.contain(layout.runs, run)
    return _Plan(
        run=run,
        hyper=hyper,
        feature=feature,
        view=view,
        taxonomy=taxonomy,
        device=find_device(options.device),
        config={**config, "origin": origin},
        weights=weights,
        group_field=group_field,
        weights_sha256=data["sampling_weights"],
        inputs=inputs,
    )


def run(settings: Settings, options: TrainOptions = TrainOptions(), *, progress: Progress = silent) -> Report:
    """Train, or go on training; publish `models/candidates/<run>/` and the run folder.

    Raises
    ------
    ConfigError : `unknown-choice`, `bad-config`, `bad-option`, `no-cuda`, `resume-mismatch`, `weights-for-another-manifest`
    GateFailed : `nothing-to-train`, `nothing-to-validate`, `group-without-weight`, `missing-input`
    Busy : another process trains this run
    """
    plan = _plan(settings, options)
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={
            "run": plan.run,
            "offsets_ms": plan.config.get("annotation_offsets_ms", {}),
            "preset": options.preset,
            "hyper": plan.hyper.model_dump(mode="json"),
            "device": plan.device,
        },
        parents=plan.inputs,
        work=lambda: _work(settings, plan, options, progress),
    )


def _work(settings: Settings, plan: _Plan, options: TrainOptions, progress: Progress) -> Outcome:
    import torch

    run_dir = settings.layout.run_dir(plan.run)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(plan.hyper.threads or len(os.sched_getaffinity(0)))
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(plan.device == "cpu")
    try:
        with settings.store.lock(run_dir, STAGE):
            return _train(settings, plan, options, run_dir, progress)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(n_threads)


def _train(settings: Settings, plan: _Plan, options: TrainOptions, run_dir: Path, progress: Progress) -> Outcome:
    import torch

    hyper, where = plan.hyper, settings.store
    cut_splits = ("train",) if AUGMENTATIONS[hyper.augment].cut_share > 0 else ()
    recordings = load_recordings(
        settings,
        plan.feature,
        plan.view,
        plan.taxonomy,
        ("train", "val"),
        group_field=plan.group_field,
        cut_splits=cut_splits,
        offsets_ms=plan.config.get("annotation_offsets_ms", {}),
    )
    train = [r for r in recordings if r.split == "train"]
    val = [r for r in recordings if r.split == "val"]
    if not val:
        raise GateFailed(
            "no recording of split val has features: nothing to choose the epoch and the threshold on", code="nothing-to-validate"
        )
    frames = lay_frames(train, len(plan.view.classes), plan.feature.frames_per_s)
    audio_s = len(frames.features) / plan.feature.frames_per_s
    n_steps = hyper.steps_per_epoch(plan.feature.frames_per_s)
    heard_s = n_steps * hyper.batch_size * hyper.window_frames / plan.feature.frames_per_s
    feature_stats = dict(zip(("mean", "std"), learn.feature_level(frames), strict=True))
    network, optimizer = learn.start_network(hyper.network(plan.view.classes, plan.feature.n_bands), frames, hyper, plan.device)
    progress(
        f"{plan.run}: {count_parameters(network):,} parameters on {plan.device}, {len(train)} recordings of {audio_s / 60:.1f} min for training, "
        f"{len(val)} for validation, {hyper.epochs} epochs that hear {heard_s:.0f} s of audio each (the cap of the preset)"
    )
    where.publish_json(run_dir / "config.json", plan.config)
    where.publish_json(run_dir / "environment.json", describe_environment(plan.device))

    history: list[dict[str, Any]] = []
    total_epochs = hyper.epochs
    first = 0
    state, tensors, notices = checkpoint.newest_state(run_dir) if options.resume == "auto" else (None, {}, [])
    for notice in notices:
        progress(notice)
    if state is not None:
        _check_resume(state, plan)
        checkpoint.restore_state(network, optimizer, tensors)
        history, first, total_epochs = list(state["history"]), int(state["epoch"]) + 1, int(state["total_epochs"])
        progress(f"{plan.run}: goes on after epoch {first}")
    log = tracker(options.tracker, where, run_dir / "events.jsonl", resume_step=first - 1 if state is not None else None)
    log.start(plan.config)

    feed = learn.Feed(frames, plan.feature, plan.device)
    positive = torch.from_numpy(learn.class_weights(frames, hyper.max_class_weight)).to(plan.device)
    targets = [frame_targets(r.truth, r.n_frames, len(plan.view.classes), plan.feature.frames_per_s) for r in val]
    for epoch in range(first, hyper.epochs):
        began = clock.monotonic_s()
        loss, shares = learn.train_epoch(
            network, optimizer, feed, plan.weights, positive, hyper, epoch=epoch, n_steps=n_steps, n_total_steps=n_steps * total_epochs
        )
        model = learn.as_model(network, plan.feature, plan.view.name)
        seen = learn.validate(model, val, targets)
        row = {
            "epoch": epoch,
            "train_loss": loss,
            "val_loss": seen.loss,
            "val_f1": seen.pooled_f1,
            "threshold": seen.threshold,
            "lr": learn.learning_rate_at((epoch + 1) * n_steps - 1, n_steps * total_epochs, hyper),
            "seconds": clock.monotonic_s() - began,
        }
        history.append(row)
        log.log(epoch, **{k: v for k, v in row.items() if k not in ("epoch", "seconds")})
        best = _best(history)
        checkpoint.save_state(
            where,
            run_dir,
            epoch,
            network,
            optimizer,
            {
                "step": (epoch + 1) * n_steps,
                "total_epochs": total_epochs,
                "best": best,
                "history": history,
                "config": plan.config,
                "classes": list(plan.view.classes),
                "feature_stats": feature_stats,
                "shares": shares,
            },
        )
        where.publish_json(
            run_dir / "BEST.json", {"path": f"checkpoints/epoch-{best:04d}", "epoch": best, "val_f1": history[best]["val_f1"]}
        )
        checkpoint.prune_states(where, run_dir, hyper.checkpoint_every, best)
        progress(
            f"{plan.run}: epoch {epoch + 1} of {hyper.epochs}, loss {loss:.4f}, validation F {seen.pooled_f1:.3f} at {seen.threshold:.2f}"
        )

    best = _best(history)
    network.load_state_dict(checkpoint.read_state_tensors(run_dir, best))
    network.to("cpu")
    threshold, temperature, val_f1 = calibrate(network, plan.feature, plan.view.name, val)
    folder = settings.layout.candidate(plan.run)
    card = {
        "family": hyper.family,
        "run": plan.run,
        "view": plan.view.name,
        "feature": {"name": plan.feature.name, "digest": plan.feature.digest},
        "feature_stats": feature_stats,
        "target_mode": "multi",
        "threshold": threshold,
        "temperature": temperature,
        "data": plan.config["data"],
        "config_sha256": sha256(store.to_json_bytes(plan.config)).hexdigest(),
        "trained_on": _describe_data(train),
        "validated_on": _describe_data(val),
        "best_epoch": best,
    }
    weights, probe, card_path = checkpoint.save_model(where, folder, network, card, _probes(val))
    verdict = _judge(settings, plan, folder, history)
    log.artifact(card_path, "model")
    log.finish("done")
    shown = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    _publish_metrics(settings, plan, run_dir, history, best, heard_s, frames.group, state_shares(run_dir))
    return Outcome(
        outputs=[("model", weights, None), ("model_card", card_path, None), ("probe", probe, None)],
        figures={
            "val_f1": val_f1,
            "threshold": threshold,
            "temperature": temperature,
            "parameters": count_parameters(network),
            "best_epoch": best,
            "train_loss": shown[-1]["train_loss"],
            "val_loss": shown[best]["val_loss"],
            "train_minutes": audio_s / 60.0,
            "audio_s_per_epoch": heard_s,
        },
        facts={
            "run": plan.run,
            "family": hyper.family,
            "preset": options.preset,
            "device": plan.device,
            "test_data": "test split, pooled over recordings",
        },
        verdicts=[verdict],
        table=Table(
            ("epoch", "train_loss", "val_loss", "val_f1", "threshold"),
            tuple(
                (r["epoch"], round(r["train_loss"], 5), round(r["val_loss"], 5), round(r["val_f1"], 4), r["threshold"]) for r in shown[-12:]
            ),
        ),
    )


def _check_resume(state: Mapping[str, Any], plan: _Plan) -> None:
    """Refuse to go on with other data, features, classes or options; only `epochs` may grow."""
    before, now = state["config"], plan.config
    pairs = [(name, before.get(name), now[name]) for name in ("feature", "classes", "data")]
    pairs += [(k, before["hyper"].get(k), v) for k, v in now["hyper"].items() if k != "epochs"]
    for name, old, new in pairs:
        if old != new:
            raise ConfigError(
                f"{name} was {str(old)[:80]} when this run began and is {str(new)[:80]} now. Give the run another name, or --resume never",
                code="resume-mismatch",
                where=name,
            )
    if now["hyper"]["epochs"] < state["epoch"] + 1:
        raise ConfigError(
            f"epochs was {before['hyper']['epochs']} and can only grow; {now['hyper']['epochs']} is asked for",
            code="resume-mismatch",
            where="epochs",
        )


def _best(history: Sequence[Mapping[str, Any]]) -> int:
    """Epoch with the highest validation F; ties: lower loss, then earlier."""
    return int(min(history, key=lambda r: (-r["val_f1"], r["val_loss"], r["epoch"]))["epoch"])


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


def _judge(settings: Settings, plan: _Plan, folder: Path, history: Sequence[Mapping[str, Any]]) -> Verdict:
    """`loadable`, `parity`, and the warning `training_curve` (ruling 5)."""
    model = checkpoint.load_model(folder)
    inputs, stored = checkpoint.load_probes(folder, model.card)
    served = np.stack([apply_network(model.network, x, chunk_frames=PARITY_CHUNK_FRAMES).onset for x in inputs])
    difference = float((np.abs(served - stored) / np.maximum(1.0, np.abs(stored))).max())
    fresh = checkpoint.probe_in_fresh_process(folder)
    equal = bool(fresh.get("equal", False))
    detail = fresh.get("error") or f"{fresh['n_probes']} inputs in a fresh process, largest difference {fresh['max_difference']:g}"
    falls = history[-1]["train_loss"] < history[0]["train_loss"] or len(history) == 1
    rises = len(history) == 1 or _best(history) > 0
    ends = "ends below its start" if falls else "does not fall"
    curve = f"training loss {ends}; best epoch is {'not ' if rises else ''}the first"
    rules = (
        Rule("loadable", equal, float(equal), 1.0, detail),
        Rule.at_most(
            "parity", difference, PARITY_LIMIT, f"stored logits against served in chunks of {PARITY_CHUNK_FRAMES} frames, relative above 1"
        ),
        Rule("training_curve", falls and rises, float(falls and rises), 1.0, curve, blocking=False),
    )
    names = [("model", folder / "model.safetensors"), ("model_card", folder / "model.json")]
    return Verdict(
        gate=GATE,
        rules=rules,
        inputs=tuple(Artifact(role, settings.store.rel(p), settings.store.sha256(p)) for role, p in names),
        figures={"parity": difference, "first_train_loss": history[0]["train_loss"], "last_train_loss": history[-1]["train_loss"]},
        limits={"parity": PARITY_LIMIT},
        support={"epochs": len(history), "probes": len(inputs)},
        profile=settings.profile,
    )


def describe_environment(device: str) -> dict[str, Any]:
    """Versions, processors and threads of this process; what a byte-equal repetition needs."""
    import torch

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: version(name) for name in ("torch", "numpy", "polars", "safetensors", "scipy", "soundfile", "soxr")},
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "gpu": torch.cuda.get_device_name(0) if device.startswith("cuda") else None,
        "cuda": torch.version.cuda,
    }


def _describe_data(recordings: Sequence[Recording]) -> dict[str, Any]:
    """What a split is made of: recordings, kits and groups, so that overlap with other data can be told later (ruling 37)."""
    return {
        "recordings": len(recordings),
        "source_sets": sorted({r.source_set for r in recordings}),
        "kits": sorted({r.kit_id for r in recordings if r.kit_id}),
        "groups": sorted({r.group_id for r in recordings}),
        "synthetic": sum(r.is_synthetic for r in recordings),
    }


def state_shares(run_dir: Path) -> dict[str, float]:
    """Realised share of the sampling groups in the last epoch, largest first."""
    state, _, _ = checkpoint.newest_state(run_dir)
    return {} if state is None else dict(sorted(state["shares"].items(), key=lambda item: (-item[1], item[0]))[:20])


def _publish_metrics(
    settings: Settings,
    plan: _Plan,
    run_dir: Path,
    history: Sequence[Mapping[str, Any]],
    best: int,
    heard_s: float,
    groups: Sequence[str],
    shares: Mapping[str, float],
) -> None:
    metrics = {
        "family": plan.hyper.family,
        "epochs": plan.hyper.epochs,
        "batch_size": plan.hyper.batch_size,
        "learning_rate": plan.hyper.learning_rate,
        "device": plan.device,
        "classes": list(plan.view.classes),
        "audio_s_per_epoch": heard_s,
        "best_epoch": best,
        "best_val_f1": history[best]["val_f1"],
        "best_validation_loss": min(r["val_loss"] for r in history),
        "final_train_loss": history[-1]["train_loss"],
        "final_val_f1": history[-1]["val_f1"],
        "history": [dict(r) for r in history],
        "sampler": {"weights_sha256": plan.weights_sha256, "groups": len(set(groups)), "realised_share_top20": dict(shares)},
    }
    settings.store.publish_json(run_dir / "metrics.json", metrics)
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(r) for r in history)
    settings.store.publish(run_dir / "metrics.csv", table.getvalue().encode())
