"""Clips as batches: every clip once, with its own features and truth, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from beatsight_assets.bundle.read import open_bundle
from beatsight_assets.errors import ConfigError, GateFailed, InputError
from beatsight_assets.features import clip_cache
from beatsight_assets.features.clip_cache import WarmOptions
from beatsight_assets.features.definitions import clip_definition
from beatsight_assets.model.clips import Clips, in_db, load_clips
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets_tests.features.factories import make_bundle

FEATURE = clip_definition()


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data root with the bundle `b` and its features; tests leave it alone."""
    settings = Settings(layout=DataLayout(tmp_path_factory.mktemp("feed") / "root"), profile="demo")
    make_bundle(settings)
    clip_cache.run(settings, WarmOptions("b"))
    return settings


@pytest.fixture(scope="module")
def clips(warm: Settings) -> Clips:
    """Its clips of train and val."""
    return load_clips(warm, "b", ("train", "val"))


def test_every_clip_has_its_own_features_and_truth(warm: Settings, clips: Clips) -> None:
    """Against a plain walk over the bundle: the same clips, each with the float16 features of its samples and the classes of its row."""
    seen = 0
    by_event = {e: i for i, e in enumerate(clips.table["event_id"].to_list())}
    for split in ("train", "val"):
        for row, samples in open_bundle(warm.layout.at("bundles/b")).clips(split):
            i = by_event.pop(row["event_id"])
            expected = FEATURE.compute(np.array(samples)[None]).astype(np.float16)[0]
            assert np.array_equal(clips.stored(np.array([i]))[0], expected)
            assert [c for c, hit in zip(clips.classes, clips.target[i], strict=True) if hit] == row["labels"]
            assert [c for c, known in zip(clips.classes, clips.judged[i], strict=True) if not known] == (row["masked"] or [])
            seen += 1
    assert seen == len(clips) == 36 and not by_event


def test_batches_cover_an_epoch_once_and_equal_a_loop(clips: Clips) -> None:
    """36 clips in batches of 10: 10, 10, 10, 6; each clip once, with its features in dB, target and mask; held in memory they are equal."""
    order = clips.order(3, 1)
    found = list(clips.batches(order, 10))
    assert [len(b.rows) for b in found] == [10, 10, 10, 6]
    assert torch.cat([b.rows for b in found]).tolist() == order.tolist()
    assert sorted(order.tolist()) == list(range(36))
    held = list(clips.batches(order, 10, resident=clips.resident("cpu")))
    for batch, other in zip(found, held, strict=True):
        rows = batch.rows.numpy()
        assert batch.features.dtype == torch.float32 and torch.equal(batch.features, other.features)
        assert np.array_equal(batch.features.numpy(), clips.stored(rows).astype(np.float32))
        assert np.array_equal(batch.target.numpy(), clips.target[rows]) and np.array_equal(batch.judged.numpy(), clips.judged[rows])
    assert found[0].features.data_ptr() != found[1].features.data_ptr()  # a batch that was kept is not overwritten by the next


def test_orders_are_keyed(clips: Clips) -> None:
    """The same seed and epoch give the same order, others another; a choice of rows stays a choice of rows."""
    assert np.array_equal(clips.order(3, 1), clips.order(3, 1))
    assert not np.array_equal(clips.order(3, 1), clips.order(3, 2)) and not np.array_equal(clips.order(3, 1), clips.order(4, 1))
    assert sorted(clips.order(0, 0, np.array([5, 9, 2])).tolist()) == [2, 5, 9]


def test_weights_decide_about_the_draws(clips: Clips) -> None:
    """Groups are drawn by their weight, never with weight 0; a group without one stops the run."""
    groups = sorted(set(clips.group))
    weights = {g: float(n) for n, g in enumerate(groups)}
    drawn = np.concatenate([clips.order(0, epoch, weights=weights) for epoch in range(200)])
    share = {g: np.mean([clips.group[i] == g for i in drawn]) for g in groups}
    assert share[groups[0]] == 0.0
    total = sum(weights[g] for g in clips.group)
    for g in groups:
        assert share[g] == pytest.approx(weights[g] * clips.group.count(g) / total, abs=0.02)
    with pytest.raises(GateFailed):
        clips.order(0, 0, weights={groups[0]: 1.0})


def test_one_class_per_clip(clips: Clips) -> None:
    """Of four clips - one class, two classes, a masked one, none - one is trained on in single mode, and each other is counted."""
    snare = clips.classes.index("snare")
    target, judged, single = clips.target[:4].copy(), np.ones_like(clips.judged[:4]), np.array([snare, -1, -1, -1])
    target[:] = False
    target[0, snare] = target[1, snare] = target[1, 0] = True
    judged[2, snare] = False
    some = replace(clips, table=clips.table[:4], target=target, judged=judged, single=single, array_of=clips.array_of[:4])
    rows, left_out = some.single_target()
    assert rows.tolist() == [0]
    assert left_out == {"excluded_multi_target": 1, "excluded_masked": 1, "excluded_out_of_view": 1}


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_every_form_gives_the_same_levels(warm: Settings, tmp_path: Path, dtype: str) -> None:
    """float32 is exact, uint8 within its stated error, in the tensor as in `decode`."""
    root = tmp_path / "root"
    shutil.copytree(warm.layout.root, root)
    settings = Settings(layout=DataLayout(root), profile="demo")
    clip_cache.run(settings, WarmOptions("b", dtype=dtype))
    other = load_clips(settings, "b", ("val",))
    batch = next(other.batches(np.arange(len(other)), 64))
    part = open_bundle(root / "bundles/b").parts("val")[0]
    expected = FEATURE.compute(np.fromfile(part.path, "<i2").reshape(-1, FEATURE.n_samples))
    assert np.abs(batch.features[: len(expected)].numpy() - expected).max() <= (0.0 if dtype == "float32" else 0.33)
    stored = other.stored(np.arange(len(other)))
    assert np.allclose(in_db(torch.from_numpy(stored), FEATURE).numpy(), clip_cache.decode(stored), atol=1e-5)


@pytest.fixture
def copied(warm: Settings, tmp_path: Path) -> Settings:
    """A data root of its own with the same bundle and features."""
    shutil.copytree(warm.layout.root, tmp_path / "root")
    return Settings(layout=DataLayout(tmp_path / "root"), profile="demo")


@pytest.mark.parametrize("what", ["no index", "a split was not warmed", "arrays were deleted"])
def test_without_a_cache_features_are_computed_from_the_samples(copied: Settings, clips: Clips, what: str) -> None:
    """The same clips, orders, targets and masks; features exact, so 0.05 dB or less from a float16 cache (above -80 dB), held in memory too."""
    if what == "no index":
        clip_cache.index_path(copied, FEATURE, "b").unlink()
    elif what == "a split was not warmed":
        clip_cache.run(copied, WarmOptions("b", splits=("train",)))
        shutil.rmtree(copied.layout.features(FEATURE.folder) / "shards/00")
    else:
        shutil.rmtree(copied.layout.features(FEATURE.folder) / "shards")
    other = load_clips(copied, "b", ("train", "val"))
    assert (clips.form, other.form) == ("float16", "samples")
    assert other.table.equals(clips.table) and np.array_equal(other.order(3, 1), clips.order(3, 1))
    resident = other.resident("cpu")
    order, exact = clips.order(3, 1), {}
    for row, samples in open_bundle(copied.layout.at("bundles/b")).clips():
        exact[row["event_id"]] = FEATURE.compute(np.array(samples)[None])[0]
    three = (clips.batches(order, 10), other.batches(order, 10), other.batches(order, 10, resident=resident))
    for cached, computed, held in zip(*three, strict=True):
        loud = computed.features > -80.0
        assert loud.float().mean() > 0.5 and (cached.features - computed.features)[loud].abs().max() <= 0.05
        assert torch.equal(computed.features, held.features)
        assert torch.equal(cached.target, computed.target) and torch.equal(cached.judged, computed.judged)
        for i, row in enumerate(computed.rows.tolist()):
            assert np.array_equal(computed.features[i].numpy(), exact[other.table["event_id"][row]])


def test_what_is_damaged_or_of_another_definition_is_not_fed(copied: Settings) -> None:
    """A damaged array, an index of another definition, a changed part, no such clips, an unknown group field: refused with the command to run."""
    with pytest.raises(GateFailed, match="no clip"):
        load_clips(copied, "b", ())
    with pytest.raises(ConfigError, match="kit"):
        load_clips(copied, "b", ("val",), group_field="kit")
    victim = next(copied.layout.root.glob("features/logmel128-1/shards/*/*.f16"))
    content = victim.read_bytes()
    victim.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(InputError, match="not the array of the index"):
        load_clips(copied, "b", ("train", "val", "test"))
    path = clip_cache.index_path(copied, FEATURE, "b")
    path.write_text(path.read_text().replace(FEATURE.digest, "0" * 64))
    with pytest.raises(ConfigError, match="features warm b"):
        load_clips(copied, "b", ("train",))
    path.unlink()
    part = open_bundle(copied.layout.bundle("b")).parts("val")[0]
    samples = part.path.read_bytes()
    part.path.write_bytes(bytes([samples[0] ^ 1]) + samples[1:])
    with pytest.raises(InputError, match="bundle export b --resume"):
        load_clips(copied, "b", ("val",))
