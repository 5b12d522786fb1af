from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from beatsight_assets.render import grooves
from beatsight_assets.render.synth import COMPONENTS

IDS = [f"t{i}" for i in range(6)]
STYLES = list(grooves.STYLES)[:6]


def split(seed: int) -> list[grooves.Take]:
    return grooves.make_split("test", IDS, STYLES, seed=seed, min_hits=20, n_sections=7)


@pytest.fixture(scope="module")
def takes() -> list[grooves.Take]:
    return split(7)


def test_equal_seeds_play_the_same_and_others_do_not(takes: list[grooves.Take]) -> None:
    """Promise: takes are a function of their arguments."""
    assert split(7) == takes
    assert split(8) != takes


@pytest.mark.parametrize("seed", range(1, 11))
def test_six_takes_hold_twenty_hits_of_every_gate_component(seed: int) -> None:
    """Promise (ruling 25): whatever the seed, each of the 18 gate components occurs at least 20 times in six takes."""
    counts = Counter(hit.label for take in split(seed) for hit in take.hits)
    assert min(counts[name] for name in COMPONENTS[:18]) >= 20


def test_two_hands_can_play_it(takes: list[grooves.Take]) -> None:
    """Promise: never three hand strokes within 15 ms, never two strokes of one piece within 22 ms, hats and snare strokes never contradict."""
    for take in takes:
        for i, hit in enumerate(take.hits):
            near = [h for h in take.hits[i + 1 : i + 12] if h.onset_us - hit.onset_us < grooves.TOGETHER_US]
            assert sum(h.label not in grooves.FEET for h in (hit, *near)) <= 2 or hit.label in grooves.FEET
            for other in take.hits[i + 1 : i + 12]:
                gap = other.onset_us - hit.onset_us
                assert other.label != hit.label or gap >= grooves.SAME_DRUM_US
                for family in (grooves.HATS, grooves.SNARES):
                    pair = {hit.label, other.label}
                    assert not (len(pair) == 2 and pair <= family and gap < grooves.EXCLUSIVE_US)


def test_hits_are_valid_midi(takes: list[grooves.Take]) -> None:
    """Promise: sorted, not before zero, velocity 1..127, a pedal value for hats and for nothing else."""
    for take in takes:
        onsets = [h.onset_us for h in take.hits]
        assert onsets == sorted(onsets)
        assert onsets[0] >= 0
        for hit in take.hits:
            assert 1 <= hit.velocity <= 127
            assert (hit.cc4 is not None) == (hit.label in grooves.HATS)
            assert hit.cc4 is None or 0 <= hit.cc4 <= 90


def test_techniques_of_the_demo_occur(takes: list[grooves.Take]) -> None:
    """Promise: a 7/8 passage, 120 to 180 bpm, barks, two crashes at once, flams and ghost notes are played in six takes."""
    assert [m[1:] for m in takes[1].meters] == [(4, 4), (7, 8), (4, 4)]
    assert [us for _, us in takes[2].tempos] == [500_000, 333_333]
    found: Counter[str] = Counter()
    for take in takes:
        for a, b in pairwise([h for h in take.hits if h.label in grooves.HATS]):
            found["bark"] += a.label == "hihat_open" and b.label != "hihat_open" and b.onset_us - a.onset_us <= 200_000
        crashes = [h for h in take.hits if h.label in ("crash", "crash2")]
        found["double"] += sum(a.label != b.label and b.onset_us - a.onset_us <= 30_000 for a, b in pairwise(crashes))
        snares = [h for h in take.hits if h.label == "snare"]
        found["flam"] += sum(b.onset_us - a.onset_us <= 50_000 and a.velocity <= 0.7 * b.velocity for a, b in pairwise(snares))
        found["ghost"] += sum(h.velocity <= 31 for h in snares)
    assert all(found[name] >= 1 for name in ("bark", "double", "flam", "ghost")), found


def test_position_does_not_give_a_component_away(takes: list[grooves.Take]) -> None:
    """Promise: kick and snare fall on at least eight different sixteenths of the bar, so counting beats does not replace listening."""
    for label in ("kick", "snare"):
        places = {
            round((hit.onset_us - 120_000) / take.tempos[0][1] * 4) % 16 for take in takes[3:] for hit in take.hits if hit.label == label
        }
        assert len(places) >= 8
