"""Matching and counting, against mir_eval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets.model.scoring import Counts, Judged, Onsets, choose_threshold, count_hits, drop_unknown, match_onsets, pool

TIMES = st.lists(st.integers(0, 2_000).map(lambda t: t * 1_000), max_size=60).map(sorted)


def onsets(*pairs: tuple[int, int], score: list[float] | None = None) -> Onsets:
    """Onsets as (us, class)."""
    return Onsets(
        np.array([p[0] for p in pairs], dtype=np.int64),
        np.array([p[1] for p in pairs], dtype=np.int64),
        None if score is None else np.array(score, dtype=np.float32),
    )


@given(truth=TIMES, heard=TIMES, tolerance_ms=st.sampled_from([20, 50]))
def test_matching_is_as_large_as_that_of_mir_eval(truth: list[int], heard: list[int], tolerance_ms: int) -> None:
    """The walk over two sorted lists pairs as many hits as mir_eval's bipartite matching, and never twice."""
    import mir_eval

    left, right = match_onsets(np.array(truth, dtype=np.int64), np.array(heard, dtype=np.int64), tolerance_ms * 1_000)
    oracle = mir_eval.util.match_events(np.array(truth) / 1e6, np.array(heard) / 1e6, tolerance_ms / 1e3 + 1e-9)
    assert len(left) == len(oracle)
    assert len(set(left.tolist())) == len(left) and len(set(right.tolist())) == len(right)
    assert all(abs(truth[i] - heard[j]) <= tolerance_ms * 1_000 for i, j in zip(left, right, strict=True))


@pytest.mark.parametrize(("gap_us", "matched"), [(50_000, 1), (50_001, 0)])
def test_the_tolerance_is_inclusive_to_the_microsecond(gap_us: int, matched: int) -> None:
    """50 ms matches, 50.001 ms does not."""
    assert len(match_onsets(np.array([100_000]), np.array([100_000 + gap_us]), 50_000)[0]) == matched


def test_counts_are_by_recording_and_class() -> None:
    """A hit of another class, or of another recording, matches nothing."""
    counts = count_hits([Judged(onsets((0, 0), (500_000, 1)), onsets((10_000, 0), (500_000, 0))), Judged(onsets(), onsets((0, 1)))], 2)
    assert counts.tolist() == [[[1, 1, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]]
    assert (pool(counts).tp, pool(counts).fp, pool(counts).fn) == (1, 2, 1)


def test_undefined_figures_are_none() -> None:
    """Nothing reported has no precision, no truth has no recall; silence rightly reported is neither."""
    assert Counts(0, 0, 3).precision is None and Counts(0, 3, 0).recall is None
    assert Counts().f1 is None and Counts(0, 0, 3).f1 == 0.0 and Counts(2, 1, 1).f1 == pytest.approx(2 / 3)


def test_coarser_classes_join_hits_of_one_instant() -> None:
    """Snare and rimshot within 30 ms are one SD hit; a class without a coarse one vanishes."""
    found = onsets((0, 0), (20_000, 1), (60_000, 1), (0, 2), score=[0.9, 0.8, 0.7, 0.6]).mapped(np.array([0, 0, -1]))
    assert found.us.tolist() == [0, 60_000] and found.index.tolist() == [0, 0]
    assert found.score is not None and found.score.round(1).tolist() == pytest.approx([0.9, 0.7])


def test_what_the_annotation_cannot_say_is_not_counted() -> None:
    """Reports of unknown classes, and of a class near an unspecified hit of its family, are neither right nor wrong."""
    heard = onsets((0, 0), (0, 1), (500_000, 1), (900_000, 2))
    kept = drop_unknown(heard, np.array([True, True, False]), np.array([510_000]), np.array([1]), 50_000)
    assert list(zip(kept.us.tolist(), kept.index.tolist(), strict=True)) == [(0, 0), (0, 1)]


def test_one_threshold_is_chosen_for_all_classes() -> None:
    """The threshold with the largest pooled F; of equals the middle one."""
    recording = Judged(onsets((0, 0), (500_000, 1)), onsets((0, 0), (500_000, 1), (800_000, 1), score=[0.9, 0.7, 0.3]))
    threshold, f1 = choose_threshold([recording], 2, [0.2, 0.4, 0.5, 0.6, 0.8])
    assert (threshold, f1) == (0.5, 1.0)
