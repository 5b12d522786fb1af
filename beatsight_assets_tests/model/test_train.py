"""Training: presets, the loop, interruption and resume, what a run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from beatsight_assets import cli, events, sampling, store
from beatsight_assets.errors import ConfigError, GateFailed
from beatsight_assets.features.definitions import definition
from beatsight_assets.model import crossval, learn, train
from beatsight_assets.model.data import load_recordings
from beatsight_assets.model.family import learning_rate_at
from beatsight_assets.model.learn import Hyper
from beatsight_assets.model.train import TrainOptions
from beatsight_assets.readiness import annotation_alignment
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.model.factories import SOURCE_SET, make_root, warm

TINY: dict[str, Any] = {
    "epochs": 4, "batch_size": 4, "window_frames": 64, "audio_s_per_epoch": 8.0, "stem": (8, 8, 8), "width": 16, "dilations": (1, 2), "threads": 1,
}  # fmt: skip


class Stopped(Exception):
    """Stands for the power going off."""


def options(**changes: Any) -> TrainOptions:
    """A training of a second."""
    overrides = {**TINY, **changes.pop("overrides", {})}
    return TrainOptions(**{"preset": "demo", "run_name": "r", "overrides": overrides, "device": "cpu", **changes})


@pytest.fixture
def root(settings: Settings) -> Settings:
    """A data root that is ready for training."""
    make_root(settings, seconds=3.0)
    warm(settings)
    return settings


def stop_after(epoch: int) -> Any:
    """Progress that raises when that epoch has been reported."""

    def progress(text: str) -> None:
        if f"epoch {epoch} of" in text:
            raise Stopped

    return progress


def products(settings: Settings) -> dict[str, str]:
    """Digests of what must be equal: the candidate, the last checkpoint's tensors, the log."""
    run, candidate = settings.layout.run_dir("r"), settings.layout.candidate("r")
    files = [*candidate.iterdir(), *(run / "checkpoints/epoch-0003").glob("*.safetensors"), run / "events.jsonl"]
    return {p.name if p.parent == run else f"{p.parent.name}/{p.name}": store.hash_file(p) for p in files}


def history(settings: Settings) -> list[dict[str, float]]:
    """History of the run without seconds."""
    metrics = json.loads((settings.layout.run_dir("r") / "metrics.json").read_text())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in metrics["history"]]


def test_a_run_leaves_a_candidate_that_a_fresh_process_loads(root: Settings) -> None:
    """Files of model.md section 4, roles that promotion reads, rules `loadable` and `parity` green."""
    report = train.run(root, options(overrides={"augment": "light"}))
    rules = {r.name: r for r in report.verdicts[0].rules}
    assert rules["loadable"].passed and rules["parity"].passed and not rules["training_curve"].blocking
    assert {a.role for a in report.outputs} == {"model", "model_card", "probe"}
    assert report.facts["run"] == "r" and report.facts["family"] == "frame"
    run = root.layout.run_dir("r")
    for name in ("config.json", "environment.json", "metrics.json", "metrics.csv", "events.jsonl", "LATEST.json", "BEST.json"):
        assert (run / name).is_file(), name
    card = json.loads((root.layout.candidate("r") / "model.json").read_text())
    assert 0 < card["threshold"] < 1 and card["trained_on"]["kits"] == ["train_kit"] and len(card["network"]["classes"]) == 18
    assert train.run(root, options(overrides={"augment": "light"})).reused


def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(root: Settings, tmp_path: Path) -> None:
    """CPU: 4 epochs at once against 2, a kill, and 2 more; with augmentation, dropout and sampling weights."""
    train.run(root, options())
    whole, curve = products(root), history(root)
    root.store.remove(root.layout.run_dir("r"))
    root.store.remove(root.layout.candidate("r"))
    (root.layout.receipts / "candidate_model.json").unlink()
    with pytest.raises(Stopped):
        train.run(root, options(), progress=stop_after(2))
    assert not (root.layout.candidate("r") / "model.json").exists()
    train.run(root, options())
    assert products(root) == whole
    assert history(root) == curve


def test_resume_never_starts_over_and_arrives_at_the_same_bytes(root: Settings) -> None:
    """A run is a function of its configuration and data."""
    train.run(root, options())
    before = products(root)
    (root.layout.receipts / "candidate_model.json").unlink()
    train.run(root, options(resume="never"))
    assert products(root) == before


def test_resume_with_other_options_is_refused(root: Settings) -> None:
    """Exit code 2 naming the field; only epochs may grow."""
    with pytest.raises(Stopped):
        train.run(root, options(), progress=stop_after(1))
    with pytest.raises(ConfigError) as caught:
        train.run(root, options(overrides={"learning_rate": 1e-5}))
    assert (caught.value.code, caught.value.where) == ("resume-mismatch", "learning_rate")
    report = train.run(root, options(overrides={"epochs": 5}))
    assert report.verdicts[0].support["epochs"] == 5


def test_stale_weights_stop_training(root: Settings) -> None:
    """A manifest that changed after its weights were derived: exit 2 `weights-for-another-manifest`, and no run folder; derived again it trains."""
    changed = events.read_events(root.layout.annotated)[:-1]
    root.store.publish_frame(root.layout.annotated, changed)
    with pytest.raises(ConfigError) as caught:
        train.run(root, options())
    assert (caught.value.code, caught.value.exit_code) == ("weights-for-another-manifest", 2)
    assert not root.layout.run_dir("r").exists()
    with pytest.raises(SystemExit) as ended:
        cli.main(["--profile", "demo", "--data-root", str(root.layout.root), "model", "train", "--preset", "demo", "--device", "cpu"])
    assert ended.value.code == 2
    sampling.run(root)
    warm(root)
    assert train.run(root, options(overrides={"epochs": 1})).passed


def test_weights_of_a_file_are_the_ones_drawn_from(root: Settings, tmp_path: Path) -> None:
    """Another weights file decides what is heard: weight 0 never, and the realised share and the file's digest are in the run's record."""
    derived = store.read_json(root.layout.report("sampling", "annotated_weights.json"))
    names = ["audio/t0.wav", "audio/t1.wav", "audio/t2.wav"]  # the sessions of split train
    for name, weight in zip(names, (3.0, 1.0, 0.0), strict=True):
        derived["groups"][name]["weight"] = weight
    path = tmp_path / "mine.json"
    path.write_bytes(store.to_json_bytes(derived))
    more = {"epochs": 1, "audio_s_per_epoch": 96.0}  # 150 windows of 64 frames
    train.run(root, options(overrides=more, sampling_weights=path))
    sampler = json.loads((root.layout.run_dir("r") / "metrics.json").read_text())["sampler"]
    assert sampler["weights_sha256"] == store.hash_file(path)
    assert set(sampler["realised_share_top20"]) == set(names[:2])
    assert sampler["realised_share_top20"][names[0]] == pytest.approx(0.75, abs=0.13)  # 3.7 standard deviations of 150 draws
    del derived["groups"][names[1]]
    path.write_bytes(store.to_json_bytes(derived))
    with pytest.raises(GateFailed) as caught:
        train.run(root, options(run_name="other", overrides=more, sampling_weights=path))
    assert (caught.value.code, caught.value.exit_code) == ("group-without-weight", 1)


def test_the_default_name_follows_from_configuration_and_data(root: Settings) -> None:
    """Same preset and data, same name; another seed, another run."""
    first = train.run(root, options(run_name=None, overrides={"epochs": 1})).facts["run"]
    second = train.run(root, options(run_name=None, overrides={"epochs": 1, "seed": 5})).facts["run"]
    assert first.startswith("frame_demo_") and len(first) == len("frame_demo_") + 8 and first != second


def test_presets_are_checked() -> None:
    """Every shipped preset loads; unknown presets, unknown options and impossible values are wrong usage."""
    settings = Settings(layout=DataLayout(Path("/nonexistent")), profile="demo")
    for name in ("demo", "warmup", "baseline", "long"):
        hyper, origin = train.load_preset(settings, name)
        assert hyper.family == "frame" and origin["epochs"] == "preset"
    with pytest.raises(ConfigError, match="demo"):
        train.load_preset(settings, "dmo")
    for overrides in ({"lr": 1.0}, {"dropout": 0.95}, {"learning_rate": 0.0}, {"epochs": 0}):
        with pytest.raises(ConfigError) as caught:
            train.load_preset(settings, "demo", overrides)
        assert caught.value.exit_code == 2


def test_nothing_to_train_or_to_validate_on_fails(settings: Settings) -> None:
    """A split without recordings is a failure, not an empty model."""
    make_root(settings, seconds=1.0, splits=("train", "test"))
    warm(settings)
    with pytest.raises(GateFailed) as caught:
        train.run(settings, options())
    assert caught.value.code == "nothing-to-validate"


def test_a_device_that_is_not_there_is_refused() -> None:
    """Asking for cuda without one exits 2; auto takes what there is."""
    import torch

    assert train.find_device("cpu") == "cpu"
    with pytest.raises(ConfigError):
        train.find_device("tpu")
    if not torch.cuda.is_available():
        assert train.find_device("auto") == "cpu"
        with pytest.raises(ConfigError) as caught:
            train.find_device("cuda")
        assert caught.value.code == "no-cuda"


def test_the_schedule_warms_up_and_comes_down() -> None:
    """Linear up, half a cosine down, the minimum after the end."""
    hyper = Hyper(epochs=1, audio_s_per_epoch=1.0, learning_rate=1.0, min_learning_rate=0.1, warmup_share=0.1)
    rates = [learning_rate_at(step, 100, hyper) for step in range(130)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0, abs=1e-3)
    assert int(np.argmax(rates)) in (9, 10) and (np.diff(rates[10:]) <= 1e-12).all()
    assert rates[100:] == [pytest.approx(0.1)] * 30


def test_the_cap_on_audio_per_epoch_holds() -> None:
    """Ruling 33: however much there is, an epoch hears no more than the preset says (to the next whole step)."""
    hyper = Hyper(epochs=1, batch_size=16, window_frames=256, audio_s_per_epoch=300.0, learning_rate=1.0)
    assert hyper.steps_per_epoch(100.0) == 8
    assert hyper.model_copy(update={"audio_s_per_epoch": 1.0}).steps_per_epoch(100.0) == 1


def test_masked_classes_do_not_move_the_loss() -> None:
    """What a source cannot know is neither positive nor negative."""
    import torch

    raw = torch.randn(2, 10, 2 * 3 + 2, requires_grad=True)
    judged = torch.ones(2, 10, 3, dtype=torch.bool)
    judged[..., 2] = False
    nothing = torch.full((2, 10, 3), torch.nan)
    batch = learn.Batch(raw, torch.zeros(2, 10, 3), judged, nothing, nothing[..., 0])
    learn.compute_loss(raw, batch, torch.ones(3)).backward()
    assert raw.grad is not None and not raw.grad[..., 2].any() and raw.grad[..., 0].all()
    assert not raw.grad[..., 3:7].any()


def test_training_follows_the_alignment_only_when_asked(root: Settings) -> None:
    """Off by default; on without a report it says what to run; on, the constant is in the run's configuration and every target moves by it."""
    assert "annotation_offsets_ms" not in train._plan(root, options()).config
    with pytest.raises(GateFailed, match="readiness align"):
        train.run(root, options(overrides={"follow_alignment": True}))
    frame = events.read_events(root.layout.annotated)
    early = frame.with_columns(((pl.col("onset_time") * 1e6 - 7_000).round() / 1e6).alias("onset_time"))
    root.store.publish_frame(root.layout.events(SOURCE_SET), early)
    found = annotation_alignment.run(root, annotation_alignment.AlignmentOptions(SOURCE_SET)).facts["offset"]
    assert found["n"] == 6 and found["offset_ms"] == pytest.approx(7, abs=3)
    plan = train._plan(root, options(overrides={"follow_alignment": True}))
    assert plan.config["annotation_offsets_ms"] == {SOURCE_SET: found["offset_ms"]}
    taxonomy = Taxonomy.load(root)
    there, later = (
        load_recordings(root, definition("frames/1"), taxonomy.view("drums18"), taxonomy, ("train", "val"), offsets_ms=o)
        for o in ({}, {SOURCE_SET: found["offset_ms"]})
    )
    for a, b in zip(there, later, strict=True):
        np.testing.assert_allclose(b.truth.onset_s - a.truth.onset_s, found["offset_ms"] / 1e3, atol=1e-6)
    preset = root.layout.root / "configs/presets/tiny.yaml"
    preset.parent.mkdir(parents=True)
    tiny = {**TINY, "epochs": 1, "learning_rate": 0.001}
    preset.write_text(json.dumps(tiny))
    words = ["--data-root", str(root.layout.root), "--profile", "demo", "model", "train", "--preset", "tiny", "--run-name", "r"]
    CliRunner().invoke(cli.build(), [*words, "--follow-alignment", "--device", "cpu"], standalone_mode=False, catch_exceptions=False)
    assert json.loads((root.layout.run_dir("r") / "config.json").read_text())["annotation_offsets_ms"] == {SOURCE_SET: found["offset_ms"]}
    preset.write_text(json.dumps({**tiny, "follow_alignment": True}))
    with pytest.raises(ConfigError, match="as they are"):
        crossval.run(root, crossval.CrossvalOptions(source_set=SOURCE_SET, preset="tiny"))
