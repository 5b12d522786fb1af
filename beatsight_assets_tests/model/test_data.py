"""Truth, masks, windows, augmentation."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest

from beatsight_assets import events
from beatsight_assets.errors import GateFailed, InputError
from beatsight_assets.events import hits_with_onsets
from beatsight_assets.features.cache import index_path
from beatsight_assets.features.definitions import definition
from beatsight_assets.features.torchaudio_parts import torchaudio
from beatsight_assets.model.data import (
    AUGMENTATIONS,
    Frames,
    Truth,
    augment,
    cut_rows,
    draw_masks,
    draw_windows,
    frame_targets,
    load_recordings,
    plan_step,
    truth_of,
)
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import rng_for
from beatsight_assets_tests.model.factories import make_root, warm

TAXONOMY = Taxonomy.shipped()
FRAMES_1 = definition("frames/1")


def hits(*rows: tuple[float, str, str | None]) -> pl.DataFrame:
    """Hits as (onset_s, label, variant)."""
    return pl.DataFrame(
        {
            "onset_s": [r[0] for r in rows],
            "label": [r[1] for r in rows],
            "velocity": [0.5] * len(rows),
            "openness": [None] * len(rows),
            "instrument_variant": [r[2] for r in rows],
        },
        schema={"onset_s": pl.Float64, "label": pl.String, "velocity": pl.Float32, "openness": pl.Float32, "instrument_variant": pl.String},
    )


def test_components_become_classes_of_the_view() -> None:
    """Ride edge counts as ride_bow, cowbell as aux_percussion, and hits come sorted by onset."""
    view = TAXONOMY.view("drums18")
    truth = truth_of(hits((0.2, "cowbell", None), (0.1, "ride_edge", None)), view, TAXONOMY, None)
    assert [view.classes[i] for i in truth.class_index] == ["ride_bow", "aux_percussion"]
    assert truth.onset_s.tolist() == [0.1, 0.2] and truth.known.all()


def test_what_a_source_cannot_express_is_unknown_not_absent() -> None:
    """A source that knows kick, snare and hihat says nothing about toms and cymbals (events.md 6c)."""
    view = TAXONOMY.view("drums18")
    truth = truth_of(hits((0.1, "kick", None)), view, TAXONOMY, ["kick", "snare", "hihat"])
    known = {c for c, k in zip(view.classes, truth.known, strict=True) if k}
    assert {"kick", "snare", "hihat_closed", "hihat_open"} <= known
    assert not known & {"tom_high", "crash", "ride_bow", "aux_percussion"}


def test_an_unspecified_hit_masks_its_family_in_fine_views_only() -> None:
    """IDMT's hat says `some hat`: HH in drums5, all hat classes unknown at that instant in drums18; a cymbal may be a ride (events.md 6b)."""
    rows = hits((0.1, "hihat_closed", "unspecified"), (0.5, "crash", "unspecified"))
    fine, coarse = TAXONOMY.view("drums18"), TAXONOMY.view("drums5")
    truth = truth_of(rows, fine, TAXONOMY, None)
    masked = {(round(t, 3), fine.classes[i]) for t, i in zip(truth.unknown_onset_s, truth.unknown_class, strict=True)}
    assert len(truth.onset_s) == 0
    assert {(0.1, "hihat_closed"), (0.1, "hihat_open"), (0.1, "hihat_pedal"), (0.5, "ride_bow"), (0.5, "crash2"), (0.5, "china")} <= masked
    assert (0.1, "snare") not in masked
    assert [coarse.classes[i] for i in truth_of(rows, coarse, TAXONOMY, None).class_index] == ["HH", "CY"]


def test_targets_are_soft_in_time_and_masked_where_unknown() -> None:
    """.4, 1, .6 around the frame; no loss on unknown classes and around unknown instants; velocity and openness only at onsets."""
    truth = Truth(
        onset_s=np.array([0.100]),
        class_index=np.array([0]),
        velocity=np.array([0.5], dtype=np.float32),
        openness=np.array([np.nan], dtype=np.float32),
        known=np.array([True, True, False]),
        unknown_onset_s=np.array([0.2]),
        unknown_class=np.array([1]),
    )
    onset, judged, velocity, openness = frame_targets(truth, 40, 3, 100.0)
    assert onset[9:12, 0].astype(float).round(3).tolist() == [0.4, 1.0, 0.6] and onset.sum() == onset[9:12, 0].sum()
    assert judged[:, 0].all() and not judged[:, 2].any()
    assert np.flatnonzero(~judged[:, 1]).tolist() == list(range(15, 26))
    assert velocity[10, 0] == 0.5 and np.isnan(velocity).sum() == velocity.size - 1 and np.isnan(openness).all()


def test_hits_at_the_edges_stay_inside() -> None:
    """A hit in the first frame loses its front, a hit past the end is left out."""
    truth = Truth(
        np.array([0.0, 0.5]),
        np.array([0, 0]),
        *(np.full(2, np.nan, dtype=np.float32),) * 2,
        np.array([True]),
        np.empty(0),
        np.empty(0, dtype=np.int64),
    )
    onset, *_ = frame_targets(truth, 20, 1, 100.0)
    assert onset[:, 0].astype(float).round(3).tolist() == [1.0, 0.6] + [0.0] * 18


def test_a_component_has_its_own_onset() -> None:
    """`offsets_us` of an event moves each component; events without it share the event's onset."""
    row = {"event_id": "e", "session_id": "s", "source_set": "x", "group_id": "g", "is_synthetic": False, "onset_time": 0.08585, "techniques": [],
           "components": [{"label": "kick"}, {"label": "hihat_closed"}], "context_ms": {"pre": 80.0, "post": 200.0}, "mix_context": "drum_only",
           "negative_example": False, "metadata_ref": "provenance:s", "extras": '{"offsets_us":[5941,0]}'}  # fmt: skip
    frame = pl.DataFrame([row, row | {"event_id": "f", "onset_time": 1.0, "extras": "{}"}], schema=events.EVENT_SCHEMA)
    found = hits_with_onsets(frame)
    assert found["onset_s"].to_list() == [0.091791, 0.08585, 1.0, 1.0]


def small_frames(lengths: tuple[int, ...], groups: tuple[str, ...]) -> Frames:
    """Recordings of these lengths with nothing in them."""
    n = sum(lengths)
    return Frames(
        features=np.zeros((n, 4), dtype=np.float16),
        onset=np.zeros((n, 2), dtype=np.float16),
        judged=np.ones((n, 2), dtype=bool),
        velocity=np.full((n, 2), np.nan, dtype=np.float16),
        openness=np.full(n, np.nan, dtype=np.float16),
        start=np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        length=np.array(lengths),
        group=groups,
    )


def test_weights_are_consumed_by_the_sampler() -> None:
    """gates.md 11: group A of 4 clips x 0.5 against group B of 16 clips x 0.25 is drawn 1/3 of the time."""
    frames = small_frames((400, 1_600), ("A", "B"))
    windows = draw_windows(frames, {"A": 0.5, "B": 0.25}, 9_000, 100, seed=1, epoch=0)
    assert abs(int((windows[:, 0] == 0).sum()) - 3_000) <= 140
    only = draw_windows(frames, {"A": 1.0, "B": 0.0}, 100, 100, seed=1, epoch=0)
    assert (only[:, 0] == 0).all()


def test_drawn_windows_have_the_distribution_of_the_weights() -> None:
    """40 recordings of unequal length and weight, 20,000 keyed draws: chi-square below its 99.9 % point for the weights, far above for equal ones."""
    rng = rng_for(3, "lengths")
    lengths = tuple((rng.integers(1, 30, 40) * 100).tolist())
    groups = tuple(f"g{i % 17}" for i in range(40))
    weights = {f"g{i}": float(w) for i, w in enumerate(rng.uniform(0.05, 0.5, 17))}
    drawn = np.bincount(draw_windows(small_frames(lengths, groups), weights, 20_000, 100, seed=5, epoch=2)[:, 0], minlength=40)

    def chi_square(weight_of: Mapping[str, float]) -> float:
        share = np.array([n * weight_of[g] for n, g in zip(lengths, groups, strict=True)])
        expected = 20_000 * share / share.sum()
        return float(((drawn - expected) ** 2 / expected).sum())

    assert chi_square(weights) < 72.06  # 39 degrees of freedom, 99.9 %
    assert chi_square(dict.fromkeys(weights, 1.0)) > 1_000


def test_windows_are_keyed_by_seed_and_epoch() -> None:
    """Same key, same windows; another epoch, others; a group without weight is refused."""
    frames = small_frames((500, 700), ("A", "B"))
    weights = {"A": 1.0, "B": 1.0}
    first = draw_windows(frames, weights, 50, 64, seed=1, epoch=3)
    assert np.array_equal(first, draw_windows(frames, weights, 50, 64, seed=1, epoch=3))
    assert not np.array_equal(first, draw_windows(frames, weights, 50, 64, seed=1, epoch=4))
    with pytest.raises(GateFailed) as caught:
        draw_windows(frames, {"A": 1.0}, 5, 64, seed=1, epoch=0)
    assert caught.value.code == "group-without-weight"


def test_windows_never_cross_recordings() -> None:
    """Rows of a window belong to its recording; where a short recording ends they are marked."""
    frames = small_frames((500, 30), ("A", "B"))
    rows, inside = cut_rows(frames, np.array([[0, 400], [1, 0]]), 100)
    assert inside[0].all() and rows[0].tolist() == list(range(400, 500))
    assert inside[1].sum() == 30 and rows[1][:30].tolist() == list(range(500, 530))


def test_augmentation_is_keyed_and_none_changes_nothing() -> None:
    """The same step varies the same way; `none` is the identity up to rounding; masks fill with the minimum."""
    import torch

    x = torch.rand(4, 64, 81) * 5
    centres = FRAMES_1.centres_hz

    def vary(name: str, step: int) -> torch.Tensor:
        return augment(x, plan_step(AUGMENTATIONS[name], 4, 64, centres, seed=1, step=step))

    for name in ("light", "kits"):
        assert torch.equal(vary(name, 7), vary(name, 7)) and not torch.equal(vary(name, 7), vary(name, 8))
        assert torch.isfinite(vary(name, 7)).all() and vary(name, 7).min() >= 0
    assert torch.allclose(vary("none", 7), x, atol=1e-4)


def test_light_augmentation_is_that_of_the_ruling() -> None:
    """Ruling 15: noise at least 30 dB below, one mask of at most 8 bands and one of at most 4 frames."""
    for step in range(50):
        plan = plan_step(AUGMENTATIONS["light"], 8, 64, FRAMES_1.centres_hz, seed=1, step=step)
        assert (plan.noise <= 10 ** (-30 / 20) + 1e-6).all()
        assert ((plan.keep_band == 0).sum(axis=1) <= 8).all() and ((plan.keep_frame == 0).sum(axis=1) <= 4).all()


def test_masks_are_those_of_torchaudio_with_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ruling 17: where torchaudio cannot be imported, training draws the same masks; every length occurs, and nothing longer."""
    axes = ((81, 8), (64, 4), (32, 0))
    found = [draw_masks(axes, 64, seed=3, step=step) for step in range(20)]
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # as where it is not installed
    torchaudio.cache_clear()
    try:
        assert torchaudio() is None
        without = [draw_masks(axes, 64, seed=3, step=step) for step in range(20)]
    finally:
        torchaudio.cache_clear()
    for some, others in zip(found, without, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))
    bands, frames, none = (np.concatenate(m) for m in zip(*found, strict=True))
    assert set((bands == 0).sum(axis=1)) == set(range(9)) and set((frames == 0).sum(axis=1)) == set(range(5)) and none.all()
    assert (np.abs(np.diff(bands, axis=1)).sum(axis=1) <= 2).all()  # one run per row
    assert not np.array_equal(found[0][0], found[1][0])


def test_recordings_come_with_features_and_truth(settings: Settings) -> None:
    """Features, hits and sampling group of each recording of the asked splits; a changed array is refused."""
    frame = make_root(settings, seconds=2.0)
    warm(settings)
    view = TAXONOMY.view("drums18")
    found = load_recordings(settings, FRAMES_1, view, TAXONOMY, ("train", "val"), group_field="session_id")
    assert [r.split for r in found] == ["train", "train", "train", "val"]
    assert found[0].sampling_group == found[0].session_id and found[0].n_frames == 200
    wanted = frame.filter(pl.col("session_id") == found[0].session_id)["onset_time"].to_numpy()
    assert np.array_equal(np.unique(found[0].truth.onset_s), np.unique(wanted))
    victim = settings.layout.resolve(pl.read_parquet(index_path(settings, FRAMES_1))["feature_path"][0])
    victim.write_bytes(victim.read_bytes()[:-2] + b"\x00\x3c")
    with pytest.raises(InputError) as caught:
        load_recordings(settings, FRAMES_1, view, TAXONOMY, ("train",))
    assert caught.value.code == "bad-features"
