"""Stages `candidate_model` (family frame) and `baseline_model` (family clip): a preset and data in, a candidate with its run folder out.

Belongs here: presets, the loop, resume, what a run leaves, the rules about the candidate. Does not belong here: data and losses
(`frame_family`, `clip_family`), file formats (`checkpoint`), figures on the test split (`evaluate`).

A run killed at any moment goes on from its newest complete checkpoint. On the CPU (same versions, same number of threads) weights,
optimizer and history are then those of a run that was never interrupted, byte by byte.
"""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets import clock, store
from beatsight_assets.errors import ConfigError
from beatsight_assets.model import checkpoint, clip_family, frame_family
from beatsight_assets.model.clip_family import ClipHyper
from beatsight_assets.model.family import Learner, Plan, learning_rate_at
from beatsight_assets.model.learn import Hyper
from beatsight_assets.model.network import apply_clips, apply_network, count_parameters
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.tracking import tracker
from beatsight_assets.verdict import Artifact, Rule, Verdict

VERSION = "1"
PARITY_LIMIT = 1e-5  # spec/gates.md section 14
PARITY_CHUNK_FRAMES = 97  # a chunk length that no other code uses
FAMILIES: dict[str, type[Hyper] | type[ClipHyper]] = {"frame": Hyper, "clip": ClipHyper}


@dataclass(frozen=True)
class TrainOptions:
    """Which preset, and what a command changes in it.

    overrides : fields of the preset with other values; they count as part of the run's configuration
    resume : `auto` goes on from the newest complete checkpoint of this run, `never` starts over
    sampling_weights : weights file; None = reports/sampling/annotated_weights.json
    bundle : whose clips a preset of family clip learns from; family frame learns from whole recordings and takes none
    """

    preset: str = "baseline"
    run_name: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    resume: str = "auto"
    tracker: str = "jsonl"
    sampling_weights: Path | None = None
    bundle: str | None = None


def family_of(settings: Settings, preset: str) -> str:
    """`frame` or `clip`: what configs/presets/<name>.yaml trains.

    Raises
    ------
    ConfigError : `unknown-choice`, no such preset or family
    """
    if not settings.config_path(f"presets/{preset}").is_file():
        known = sorted(p.stem for p in settings.config_path("presets/demo").parent.glob("*.yaml"))
        raise ConfigError.unknown_choice("preset", preset, known, where="--preset")
    written = settings.config(f"presets/{preset}").data
    family = str(written.get("family", "frame")) if isinstance(written, dict) else "frame"
    if family not in FAMILIES:
        raise ConfigError.unknown_choice("family", family, FAMILIES, where=f"configs/presets/{preset}.yaml")
    return family


def load_preset(settings: Settings, name: str, overrides: Mapping[str, Any] | None = None) -> tuple[Hyper | ClipHyper, dict[str, str]]:
    """configs/presets/<name>.yaml with overrides, and where each value comes from: default, preset or option.

    Raises
    ------
    ConfigError : `unknown-choice`, no such preset; `bad-config`, a value or key that training does not have
    """
    kind = FAMILIES[family_of(settings, name)]
    written = settings.typed(f"presets/{name}", kind)
    unknown = sorted(set(overrides or {}) - set(kind.model_fields))
    if unknown:
        raise ConfigError.unknown_choice("training option", unknown[0], kind.model_fields, where="overrides")
    try:
        merged = kind.model_validate({**written.model_dump(), **(overrides or {})})
    except ValueError as error:
        raise ConfigError(f"an option has a value that training cannot use: {error}", code="bad-option") from error
    origin = {
        k: "option" if k in (overrides or {}) else "preset" if k in written.model_fields_set else "default" for k in kind.model_fields
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


def _plan(settings: Settings, options: TrainOptions) -> Plan:
    hyper, origin = load_preset(settings, options.preset, options.overrides)
    weights, device = options.sampling_weights or settings.layout.report("sampling", "annotated_weights.json"), find_device(options.device)
    if isinstance(hyper, Hyper):
        if options.bundle is not None:
            raise ConfigError(
                f"preset {options.preset} is of family frame, which learns from whole recordings; leave --bundle out, or give a preset of "
                "family clip",
                code="bad-option",
                where="--bundle",
            )
        plan = frame_family.plan(settings, hyper, weights, device)
    else:
        if options.bundle is None:
            raise ConfigError(
                f"preset {options.preset} is of family clip, which learns from a bundle. Name one",
                code="missing-argument",
                where="--bundle",
            )
        plan = clip_family.plan(settings, hyper, options.bundle, weights, device)
    config = {"preset": options.preset, **plan.config}
    digest = sha256(store.to_json_bytes(config)).hexdigest()
    run = options.run_name or f"{options.bundle or hyper.family}_{options.preset}_{digest[:8]}"
    store.contain(settings.layout.runs, run)
    return replace(plan, run=run, config={**config, "origin": origin})


def run(settings: Settings, options: TrainOptions = TrainOptions(), *, progress: Progress = silent) -> Report:
    """Train, or go on training; publish `models/candidates/<run>/` and the run folder.

    Raises
    ------
    ConfigError : `unknown-choice`, `bad-config`, `bad-option`, `missing-argument`, `no-cuda`, `resume-mismatch`,
        `weights-for-another-manifest`; of a bundle: `feature-mismatch`, `window-too-short`
    GateFailed : `nothing-to-train`, `nothing-to-validate`, `group-without-weight`, `missing-input`; BundleIncomplete
    InputError : `bad-features`, `bad-bundle`, `manifest-changed`
    Busy : another process trains this run
    """
    plan = _plan(settings, options)
    return run_stage(
        settings,
        plan.stage,
        version=VERSION,
        options={
            "run": plan.run,
            **plan.options,
            "preset": options.preset,
            "hyper": plan.hyper.model_dump(mode="json"),
            "device": plan.device,
        },
        parents=plan.inputs,
        work=lambda: _work(settings, plan, options, progress),
    )


def _work(settings: Settings, plan: Plan, options: TrainOptions, progress: Progress) -> Outcome:
    import torch

    run_dir = settings.layout.run_dir(plan.run)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(plan.hyper.threads or len(os.sched_getaffinity(0)))
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(plan.device == "cpu")
    try:
        with settings.store.lock(run_dir, plan.stage):
            return _train(settings, plan, options, run_dir, progress)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(n_threads)


def _train(settings: Settings, plan: Plan, options: TrainOptions, run_dir: Path, progress: Progress) -> Outcome:
    hyper, where, learner = plan.hyper, settings.store, plan.start()
    network, optimizer, n_steps = learner.network, learner.optimizer, learner.n_steps
    progress(f"{plan.run}: {count_parameters(network):,} parameters on {plan.device}, {learner.words}")
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

    for epoch in range(first, hyper.epochs):
        began = clock.monotonic_s()
        loss, shares = learner.train(epoch, n_steps * total_epochs)
        row = {
            "epoch": epoch,
            "train_loss": loss,
            **learner.look(),
            "lr": learning_rate_at((epoch + 1) * n_steps - 1, n_steps * total_epochs, hyper),
            "seconds": clock.monotonic_s() - began,
        }
        history.append(row)
        log.log(epoch, **{k: v for k, v in row.items() if k not in ("epoch", "seconds")})
        best = _best(history, plan.score)
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
                "classes": plan.config["classes"],
                "feature_stats": learner.feature_stats,
                "shares": shares,
            },
        )
        where.publish_json(
            run_dir / "BEST.json", {"path": f"checkpoints/epoch-{best:04d}", "epoch": best, plan.score: history[best][plan.score]}
        )
        checkpoint.prune_states(where, run_dir, hyper.checkpoint_every, best)
        shown = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in row.items() if k.startswith("val_") or k == "threshold")
        progress(f"{plan.run}: epoch {epoch + 1} of {hyper.epochs}, loss {loss:.4f}, {shown}")

    best = _best(history, plan.score)
    network.load_state_dict(checkpoint.read_state_tensors(run_dir, best))
    network.to("cpu")
    finished = learner.finish()
    folder = settings.layout.candidate(plan.run)
    card = {
        "family": hyper.family,
        "run": plan.run,
        "feature": {k: plan.config["feature"][k] for k in ("name", "digest")},
        "feature_stats": learner.feature_stats,
        "data": plan.config["data"],
        "config_sha256": sha256(store.to_json_bytes(plan.config)).hexdigest(),
        "best_epoch": best,
        **finished.card,
    }
    weights, probe, card_path = checkpoint.save_model(where, folder, network, card, finished.probes)
    verdict = _judge(settings, plan, folder, history)
    log.artifact(card_path, "model")
    log.finish("done")
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    _publish_metrics(settings, plan, learner, run_dir, history, best, state_shares(run_dir))
    columns = ("epoch", *(k for k in rows[0] if k not in ("epoch", "lr")))
    return Outcome(
        outputs=[("model", weights, None), ("model_card", card_path, None), ("probe", probe, None)],
        figures={
            **finished.figures,
            "parameters": count_parameters(network),
            "best_epoch": best,
            "train_loss": rows[-1]["train_loss"],
            **{k: v for k, v in rows[best].items() if k.startswith("val_") and k not in finished.figures},
        },
        facts={
            "run": plan.run,
            "family": hyper.family,
            "preset": options.preset,
            "device": plan.device,
            "test_data": "test split, pooled over recordings",
        },
        verdicts=[verdict],
        table=Table(columns, tuple(tuple(r[c] if c == "epoch" else round(r[c], 5) for c in columns) for r in rows[-12:])),
    )


def _check_resume(state: Mapping[str, Any], plan: Plan) -> None:
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


def _best(history: Sequence[Mapping[str, Any]], score: str) -> int:
    """Epoch with the highest score on the validation split; ties: lower loss, then earlier."""
    return int(min(history, key=lambda r: (-r[score], r["val_loss"], r["epoch"]))["epoch"])


def _judge(settings: Settings, plan: Plan, folder: Path, history: Sequence[Mapping[str, Any]]) -> Verdict:
    """`loadable`, `parity`, and the warning `training_curve` (ruling 5)."""
    network, card = checkpoint.load_network(folder)
    inputs, stored = checkpoint.load_probes(folder, card)
    if card["family"] == "clip":
        served, how = apply_clips(network, inputs), "all in one batch"
    else:
        served, how = (
            np.stack([apply_network(network, x, chunk_frames=PARITY_CHUNK_FRAMES).onset for x in inputs]),
            f"served in chunks of {PARITY_CHUNK_FRAMES} frames",
        )
    difference = float((np.abs(served - stored) / np.maximum(1.0, np.abs(stored))).max())
    fresh = checkpoint.probe_in_fresh_process(folder)
    equal = bool(fresh.get("equal", False))
    detail = fresh.get("error") or f"{fresh['n_probes']} inputs in a fresh process, largest difference {fresh['max_difference']:g}"
    falls = history[-1]["train_loss"] < history[0]["train_loss"] or len(history) == 1
    rises = len(history) == 1 or _best(history, plan.score) > 0
    ends = "ends below its start" if falls else "does not fall"
    curve = f"training loss {ends}; best epoch is {'not ' if rises else ''}the first"
    rules = (
        Rule("loadable", equal, float(equal), 1.0, detail),
        Rule.at_most("parity", difference, PARITY_LIMIT, f"stored logits against {how}, relative above 1"),
        Rule("training_curve", falls and rises, float(falls and rises), 1.0, curve, blocking=False),
    )
    names = [("model", folder / "model.safetensors"), ("model_card", folder / "model.json")]
    return Verdict(
        gate=plan.stage,
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


def state_shares(run_dir: Path) -> dict[str, float]:
    """Realised share of the sampling groups in the last epoch, largest first."""
    state, _, _ = checkpoint.newest_state(run_dir)
    return {} if state is None else dict(sorted(state["shares"].items(), key=lambda item: (-item[1], item[0]))[:20])


def _publish_metrics(
    settings: Settings,
    plan: Plan,
    learner: Learner,
    run_dir: Path,
    history: Sequence[Mapping[str, Any]],
    best: int,
    shares: Mapping[str, float],
) -> None:
    metrics = {
        "family": plan.hyper.family,
        "epochs": plan.hyper.epochs,
        "batch_size": plan.hyper.batch_size,
        "learning_rate": plan.hyper.learning_rate,
        "device": plan.device,
        "classes": plan.config["classes"],
        **learner.facts,
        "best_epoch": best,
        f"best_{plan.score}": history[best][plan.score],
        "best_validation_loss": min(r["val_loss"] for r in history),
        "final_train_loss": history[-1]["train_loss"],
        f"final_{plan.score}": history[-1][plan.score],
        "history": [dict(r) for r in history],
        "sampler": {
            "weights_sha256": plan.config["data"]["sampling_weights"],
            "groups": learner.n_groups,
            "realised_share_top20": dict(shares),
        },
    }
    settings.store.publish_json(run_dir / "metrics.json", metrics)
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(r) for r in history)
    settings.store.publish(run_dir / "metrics.csv", table.getvalue().encode())
