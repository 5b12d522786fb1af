"""`beatsight model`: train, judge, promote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from beatsight_assets import store
from beatsight_assets.cli.common import Session, command, emit, finish
from beatsight_assets.errors import ConfigError

TRAIN_HELP = """Train a candidate with the sampling weights: on whole recordings (family frame), or on the clips of --bundle with a preset of
family clip, such as `clip`.

Clips come out of the cache of `features warm NAME`; without it the features of each batch are computed. What a clip says nothing about counts
neither for nor against. No worker processes are started."""


@command("train", help=TRAIN_HELP)
@click.option("--bundle", metavar="NAME", help="Learn from the clips of this bundle; needs a preset of family clip.")
@click.option("--preset", default="baseline", show_default=True, help="File of configs/presets.")
@click.option("--run-name", help="Name of the run; by default made from family or bundle, preset and configuration.")
@click.option("--epochs", type=click.IntRange(min=1), help="Overrides the preset.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Overrides the preset.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Overrides the preset.")
@click.option("--seed", type=int, help="Overrides the preset.")
@click.option(
    "--follow-alignment",
    is_flag=True,
    default=None,
    help="Move the targets of each dataset by its constant of `readiness align`, to where its audio has the onsets.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="auto",
    show_default=True,
    help="Go on from the newest checkpoint of this run.",
)
@click.option("--tracker", type=click.Choice(["null", "jsonl"]), default="jsonl", show_default=True)
@click.option(
    "--sampling-weights", type=click.Path(path_type=Path), help="Weights file.  [default: reports/sampling/annotated_weights.json]"
)
def train_command(
    session: Session,
    bundle: str | None,
    preset: str,
    run_name: str | None,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int | None,
    follow_alignment: bool | None,
    device: str,
    resume: str,
    tracker: str,
    sampling_weights: Path | None,
) -> int:
    from beatsight_assets.model.train import TrainOptions, run

    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "seed": seed,
        "follow_alignment": follow_alignment,
    }
    overrides = {k: v for k, v in given.items() if v is not None}
    options = TrainOptions(
        preset=preset,
        run_name=run_name,
        overrides=overrides,
        device=device,
        resume=resume,
        tracker=tracker,
        sampling_weights=sampling_weights and sampling_weights.absolute(),
        bundle=bundle,
    )
    return finish(session, run(session.settings, options, progress=session.progress))


@command("evaluate", help="Match the candidate's hits against the annotations of held-out recordings, at 50 and 20 ms.")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
def evaluate_command(session: Session, split: str) -> int:
    from beatsight_assets.model.evaluate import EvaluateOptions, run

    return finish(session, run(session.settings, EvaluateOptions(split=split), progress=session.progress))


@command("predict", help="Write the predictions that readiness judges: val, test, boundary windows, open set.")
def predict_command(session: Session) -> int:
    from beatsight_assets.model.predict import run

    return finish(session, run(session.settings, progress=session.progress))


@command("describe", help="Layers, parameters, classes and thresholds of a model; by default of the promoted one.")
@click.argument("folder", required=False)
def describe_command(session: Session, folder: str | None) -> int:
    settings = session.settings
    if folder is None:
        if not settings.layout.current_model.is_file():
            raise ConfigError("no model is promoted. Name a folder below the data root, or run: beatsight demo", code="no-model")
        folder = f"models/promoted/{store.read_json(settings.layout.current_model)['release']}"
    card = store.read_json(settings.layout.resolve(folder) / "model.json")
    lines = [f"{folder}"] + [f"  {k:<18} {_short(v)}" for k, v in sorted(card.items())]
    emit(session, card, "\n".join(lines))
    return 0


@command("devices", help="Devices that training can use.")
def devices_command(session: Session) -> int:
    from beatsight_assets.model.train import describe_environment, find_device

    facts = describe_environment(find_device("auto"))
    emit(session, facts, "\n".join(f"{k:<16} {_short(v)}" for k, v in sorted(facts.items())))
    return 0


@command("promote", help="Publish the judged candidate as the served model; refuses unless every verdict is green and about it.")
@click.option("--release", help="Name of the release.  [default: <profile>-<first 8 of the model's sha256>]")
def promote_command(session: Session, release: str | None) -> int:
    from beatsight_assets.model.promote import PromoteOptions, run

    return finish(session, run(session.settings, PromoteOptions(release), progress=session.progress))


@command("crossval", help="Leave-one-group-out over the recordings with audio of one dataset: what a score on real audio is worth.")
@click.argument("source")
@click.option("--preset", default="real", show_default=True, help="File of configs/presets for the training on everything else.")
@click.option(
    "--tune-preset",
    default="real_tune",
    show_default=True,
    help="File of configs/presets for going on with the other recordings of SOURCE.",
)
@click.option("--device", default="auto", show_default=True)
def crossval_command(session: Session, source: str, preset: str, tune_preset: str, device: str) -> int:
    from beatsight_assets.model.crossval import CrossvalOptions, run

    source_set, _ = session.settings.dataset(source)
    options = CrossvalOptions(source_set=source_set, preset=preset, tune_preset=tune_preset, device=device)
    return finish(session, run(session.settings, options, progress=session.progress))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "..."
