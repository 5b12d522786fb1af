"""The clip family learns from a bundle: the batches are the cache's rows, drawn by weight, masked where a clip says nothing, in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from beatsight_assets import cli, sampling, store
from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.checklist.export import PostOptions, post_export
from beatsight_assets.errors import ConfigError, GateFailed
from beatsight_assets.features import clip_cache
from beatsight_assets.features.clip_cache import WarmOptions
from beatsight_assets.features.definitions import CLIP_FEATURE, clip_definition
from beatsight_assets.model import checkpoint, clip_family, train
from beatsight_assets.model.clip_family import ClipHyper, compute_loss, macro_f1
from beatsight_assets.model.clips import Batch, Clips, load_clips
from beatsight_assets.model.crossval import CrossvalOptions
from beatsight_assets.model.crossval import run as crossval
from beatsight_assets.model.network import ClipNetworkConfig, build_network, count_parameters
from beatsight_assets.model.train import TrainOptions
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets_tests.model.factories import make_root

FEATURE = clip_definition()
HYPER = ClipHyper(epochs=2, batch_size=8, clips_per_epoch=20, learning_rate=1e-3, threads=1)


class Stopped(Exception):
    """Stands for the power going off."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data root with a bundle of kicks, snares and hats, and its features; tests leave it alone."""
    settings = Settings(layout=DataLayout(tmp_path_factory.mktemp("clip_family") / "root"), profile="demo")
    make_root(settings, seconds=3.0)
    export(settings, BundleRequest("b", None, {"part_clips": 6, "shards": 2, "view": "drums18"}))
    clip_cache.run(settings, WarmOptions("b"))
    return settings


@pytest.fixture
def new_root(shared: Settings, tmp_path: Path) -> Callable[[], Settings]:
    """Copies of it."""
    made = iter(range(9))

    def make() -> Settings:
        root = tmp_path / f"root{next(made)}"
        shutil.copytree(shared.layout.root, root)
        return Settings(layout=DataLayout(root), profile="demo")

    return make


def options(**changes: Any) -> TrainOptions:
    """A training of seconds."""
    small = {"epochs": 2, "clips_per_epoch": 10, "batch_size": 4, **changes.pop("overrides", {})}
    return TrainOptions(**{"preset": "clip_demo", "run_name": "r", "bundle": "b", "overrides": small, "device": "cpu", **changes})


def products(settings: Settings) -> dict[str, str]:
    """Digests of what must be equal: the candidate, the last checkpoint's tensors, the log."""
    run, candidate = settings.layout.run_dir("r"), settings.layout.candidate("r")
    files = [*candidate.iterdir(), *(run / "checkpoints/epoch-0001").glob("*.safetensors"), run / "events.jsonl"]
    return {f"{p.parent.name}/{p.name}": store.hash_file(p) for p in files}


def children() -> set[str]:
    """Processes that this one started, by any of its threads."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread ended
            found.update((task / "children").read_text().split())
    return found


def weights_of(settings: Settings) -> dict[str, float]:
    """The derived weights."""
    path = settings.layout.report("sampling", "annotated_weights.json")
    return sampling.read_weights(path, store.hash_file(settings.layout.annotated))[1]


def test_the_network_is_that_of_the_specification() -> None:
    """388,800 + 257 parameters per class and 964 numbers of norms; the square it reads begins with the first frame and ends with the last."""
    for n_classes, n_parameters in ((12, 391_884), (5, 390_085), (18, 393_426)):
        network = build_network(ClipNetworkConfig(tuple(f"c{i}" for i in range(n_classes))))
        assert count_parameters(network) == n_parameters
        assert sum(b.numel() for name, b in network.named_buffers() if name.startswith("blocks")) == 964
    features = torch.randn(2, *FEATURE.shape)
    read = network.read(features)  # type: ignore[operator]
    assert read.shape == (2, 1, 128, 128) and network.eval()(features).shape == (2, 18)
    assert torch.equal(read[:, 0, :, 0], features[:, :, 0]) and torch.equal(read[:, 0, :, 127], features[:, :, 24])


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_the_trainer_sees_the_rows_of_the_cache(shared: Settings, mode: str) -> None:
    """What enters the network in an epoch is, clip by clip, the array row of the clip that was drawn; the loss is that of its labels; and no
    process is started."""
    train_clips, val = (load_clips(shared, "b", (s,)) for s in ("train", "val"))
    weights = weights_of(shared)
    learner = clip_family.start(train_clips, val, weights, HYPER.model_copy(update={"target_mode": mode}), "drums18", "cpu")
    seen: list[torch.Tensor] = []
    said: list[torch.Tensor] = []
    started: set[str] = set()
    before = children()

    def hear(_: torch.nn.Module, features: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        seen.append(features[0].clone())
        said.append(logits.detach().clone())
        started.update(children() - before)

    learner.network.register_forward_hook(hear)
    loss, shares = learner.train(1, 100)
    assert not started
    order = train_clips.order(HYPER.seed, 1, np.flatnonzero(train_clips.single >= 0) if mode == "single" else None, weights)[:20]
    assert [len(s) for s in seen] == [8, 8, 4]
    place = {e: i for i, e in enumerate(train_clips.table["event_id"].to_list())}
    index = store.read_json(clip_cache.index_path(shared, FEATURE, "b"))
    rows = {}  # event -> row of its array, from the index and the tables alone
    for shard in range(2):
        table = clip_cache.opened(shared, WarmOptions("b")).shard_table(shard).collect()
        for row in table.filter(table["split"] == "train").iter_rows(named=True):
            key = next(k for k, e in index["arrays"].items() if e["part"] == f"{shard:02d}/{row['part']}")
            array = np.fromfile(shared.layout.features(CLIP_FEATURE) / f"shards/{shard:02d}/{key}.f16", "<f2").reshape(-1, *FEATURE.shape)
            rows[place[row["event_id"]]] = (array[row["offset_samples"] // row["n_samples"]], row)
    for i, features in zip(order, torch.cat(seen), strict=True):
        assert np.array_equal(features.numpy(), rows[int(i)][0].astype(np.float32))
    classes = list(train_clips.classes)
    expected = []
    for start, logits in zip((0, 8, 16), said, strict=True):
        labels = [rows[int(i)][1] for i in order[start : start + 8]]
        if mode == "single":
            expected.append(cross_entropy(logits, torch.tensor([r["component_idx"] for r in labels])))
        else:
            target = torch.tensor([[float(c in r["labels"]) for c in classes] for r in labels])
            p = torch.sigmoid(logits)
            expected.append(-(target * p.log() + (1 - target) * (1 - p).log()).mean())
    assert loss == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
    assert shares == sampling.realised_shares(train_clips.group, order)


def test_masked_classes_count_neither_for_nor_against() -> None:
    """Their logits get no gradient, in either mode, and no decision about them enters the F of validation."""
    target, judged = torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool)
    target[:, 1], judged[:, 3] = 1.0, False
    for mode in ("single", "multi"):
        logits = torch.randn(3, 4, requires_grad=True)
        compute_loss(logits, Batch(torch.arange(3), torch.zeros(0), target, judged), mode).backward()
        assert logits.grad is not None and not logits.grad[:, 3].any() and logits.grad[:, :3].all()
    loud = np.array([[-1, 1, -1, 9.0]] * 3, dtype=np.float32)
    assert macro_f1(loud, target.numpy() > 0, judged.numpy(), is_single=False) == 1.0
    assert macro_f1(loud, target.numpy() > 0, judged.numpy(), is_single=True) == 1.0
    assert macro_f1(-loud, target.numpy() > 0, judged.numpy(), is_single=False) == 0.0


def test_a_run_leaves_a_candidate_and_learns(shared: Settings, new_root: Callable[[], Settings]) -> None:
    """Single mode on kicks, snares and hats: the loss falls, a fresh process loads the candidate, the record holds weights and shares; the
    candidate of the frame family is not touched, and what needs onsets refuses the model."""
    root = new_root()
    report = train.run(root, options(overrides={"epochs": 3, "clips_per_epoch": 32, "learning_rate": 2e-3}))
    rules = {r.name: r for r in report.verdicts[0].rules}
    assert report.stage == "baseline_model" and rules["loadable"].passed and rules["parity"].passed
    metrics = store.read_json(root.layout.run_dir("r") / "metrics.json")
    assert metrics["final_train_loss"] < 0.7 * metrics["history"][0]["train_loss"]
    assert metrics["best_val_accuracy"] >= 0.6  # a guess is right on a third
    assert metrics["sampler"]["weights_sha256"] == store.hash_file(root.layout.report("sampling", "annotated_weights.json"))
    assert metrics["sampler"]["groups"] == 3 and sum(metrics["sampler"]["realised_share_top20"].values()) == pytest.approx(1.0)
    card = json.loads((root.layout.candidate("r") / "model.json").read_text())
    bundle = store.read_json(root.layout.bundle("b") / "BUNDLE.json")
    assert card["data"]["bundle"] == bundle["content_sha256"] and len(card["network"]["classes"]) == 18
    assert not (root.layout.receipts / "candidate_model.json").exists()
    with pytest.raises(ConfigError, match="family clip"):
        checkpoint.load_model(root.layout.candidate("r"))
    assert train.run(root, options(overrides={"epochs": 3, "clips_per_epoch": 32, "learning_rate": 2e-3})).reused


def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(new_root: Callable[[], Settings]) -> None:
    """CPU: two epochs at once, the same in another root, and one epoch, a kill and the other; with dropout and weights. Another cache form in
    between is refused."""
    first, second = new_root(), new_root()
    train.run(first, options())

    def stop(text: str) -> None:
        if "epoch 1 of" in text:
            raise Stopped

    with pytest.raises(Stopped):
        train.run(second, options(), progress=stop)
    index = clip_cache.index_path(second, FEATURE, "b")
    hidden = index.rename(index.with_suffix(".hidden"))
    with pytest.raises(ConfigError) as caught:
        train.run(second, options())
    assert (caught.value.code, caught.value.where) == ("resume-mismatch", "feature")
    hidden.rename(index)
    train.run(second, options())
    assert products(second) == products(first)


def test_without_a_cache_a_run_learns_the_same(shared: Settings, new_root: Callable[[], Settings]) -> None:
    """Features computed from the samples, at most 0.05 dB from those of the cache: the first loss is equal within 1 %, and the run says so."""
    root = new_root()
    clip_cache.index_path(root, FEATURE, "b").unlink()
    said: list[str] = []
    train.run(root, options(overrides={"epochs": 1}), progress=said.append)
    assert "(samples)" in said[0]
    computed = store.read_json(root.layout.run_dir("r") / "metrics.json")
    assert computed["samples"] == {"train": 45, "val": 15, "excluded_multi_target": 0, "excluded_masked": 0, "excluded_out_of_view": 0}
    sets = [[load_clips(s, "b", (split,)) for split in ("train", "val")] for s in (shared, root)]
    one = HYPER.model_copy(update={"clips_per_epoch": 8})
    losses = [clip_family.start(*pair, weights_of(root), one, "drums18", "cpu").train(0, 100)[0] for pair in sets]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_weights_of_a_file_decide_what_is_drawn(new_root: Callable[[], Settings], tmp_path: Path) -> None:
    """Weights 3, 1 and 0 of three equal groups: shares .75, .25, none, recorded; stale weights and a group without one stop the run."""
    root = new_root()
    derived = store.read_json(root.layout.report("sampling", "annotated_weights.json"))
    names = ["audio/t0.wav", "audio/t1.wav", "audio/t2.wav"]  # the sessions of split train
    for name, weight in zip(names, (3.0, 1.0, 0.0), strict=True):
        derived["groups"][name]["weight"] = weight
    path = tmp_path / "mine.json"
    path.write_bytes(store.to_json_bytes(derived))
    train.run(root, options(overrides={"epochs": 1, "clips_per_epoch": 12}, sampling_weights=path))
    shares = store.read_json(root.layout.run_dir("r") / "metrics.json")["sampler"]["realised_share_top20"]
    clips = load_clips(root, "b", ("train",))
    weights = dict(zip(names, (3.0, 1.0, 0.0), strict=True))
    assert shares == sampling.realised_shares(clips.group, clips.order(1337, 0, None, weights)[:12])
    many = np.concatenate([clips.order(1337, epoch, None, weights) for epoch in range(200)])  # 9,000 draws
    assert np.mean([clips.group[i] == names[0] for i in many]) == pytest.approx(0.75, abs=0.02) and set(shares) <= set(names[:2])
    del derived["groups"][names[1]]
    path.write_bytes(store.to_json_bytes(derived))
    with pytest.raises(GateFailed) as caught:
        train.run(root, options(run_name="other", sampling_weights=path))
    assert caught.value.code == "group-without-weight"
    derived["manifest"]["sha256"] = "0" * 64
    path.write_bytes(store.to_json_bytes(derived))
    with pytest.raises(ConfigError) as stale:
        train.run(root, options(run_name="other", sampling_weights=path))
    assert stale.value.code == "weights-for-another-manifest"


def test_family_and_bundle_go_together(shared: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Clips without a bundle, recordings with one, a bundle that is not there, clips for crossval: refused with what to give instead."""
    for given, code in (({"bundle": None}, "missing-argument"), ({"preset": "demo", "overrides": {}}, "bad-option")):
        changed = options(**given) if "preset" not in given else TrainOptions(preset="demo", bundle="b", device="cpu")
        with pytest.raises(ConfigError) as caught:
            train.run(shared, changed)
        assert (caught.value.code, caught.value.where) == (code, "--bundle")
    with pytest.raises(ConfigError, match="family frame"):
        crossval(shared, CrossvalOptions(preset="clip"))
    root = ["--data-root", str(shared.layout.root), "--profile", "demo"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*root, "model", "train", "--preset", "clip_demo", "--bundle", "absent", "--device", "cpu"])
    assert ended.value.code == 1 and "there is no bundle absent. Run: beatsight bundle export absent" in capsys.readouterr().err
    assert not shared.layout.runs.exists()


def test_the_list_after_an_export_trains_on_its_bundle(new_root: Callable[[], Settings]) -> None:
    """`post-export b --preset tiny`, of family clip: the run is named after the bundle; evaluating, which is for the other family, never passes."""
    root = new_root()
    path = root.layout.root / "configs/presets/tiny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("{family: clip, epochs: 1, clips_per_epoch: 4, batch_size: 4, learning_rate: 1.0e-3, threads: 1}")
    found = post_export(root, PostOptions("b", ("train", "evaluate"), preset="tiny", keep_going=True))
    assert [s["status"] for s in found["steps"]] == ["pass", "fail"], found
    assert "family frame" in found["steps"][1]["report"]["message"]
    (run,) = root.layout.runs.iterdir()
    assert run.name.startswith("b_tiny_") and store.read_json(run / "config.json")["bundle"] == "b"


def test_presets_of_the_clip_family_are_checked() -> None:
    """They load, and a number of the other family is refused."""
    settings = Settings(layout=DataLayout(Path("/nonexistent")), profile="demo")
    for name in ("clip", "clip_demo"):
        hyper, origin = train.load_preset(settings, name)
        assert hyper.family == "clip" and origin["epochs"] == "preset" and origin["dropout"] == "default"
    with pytest.raises(ConfigError, match="window_frames"):
        train.load_preset(settings, "clip", {"window_frames": 64})


def test_clips_of_one_class_only_are_needed(shared: Settings) -> None:
    """A split in which every clip has two classes gives single mode nothing to choose the epoch on."""
    train_clips, val = (load_clips(shared, "b", (s,)) for s in ("train", "val"))
    none: Clips = replace(val, single=np.full(len(val), -1))
    with pytest.raises(GateFailed) as caught:
        clip_family.start(train_clips, none, weights_of(shared), HYPER, "drums18", "cpu")
    assert caught.value.code == "nothing-to-validate"
