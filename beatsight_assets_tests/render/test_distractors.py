from __future__ import annotations

import numpy as np
import pytest

from beatsight_assets.errors import InputError
from beatsight_assets.render import distractors


@pytest.mark.parametrize("family", distractors.FAMILIES)
def test_a_stranger_sounds_and_is_keyed(family: str) -> None:
    """Promise: each family makes finite sound with peak 0.7; equal keys give equal samples, other names other ones."""
    sound = distractors.make(family, 7, "a")
    assert np.all(np.isfinite(sound))
    assert np.max(np.abs(sound)) == pytest.approx(0.7, abs=1e-6)
    assert np.array_equal(sound, distractors.make(family, 7, "a"))
    assert not np.array_equal(sound, distractors.make(family, 7, "b"))


def test_the_five_families_of_ruling_27_are_there() -> None:
    """Promise (ruling 27): clicks, tones, bass, formant voices, noise bursts."""
    assert distractors.FAMILIES == ("click", "tone", "bass", "voice", "noise")


def test_an_unknown_family_is_refused() -> None:
    """Promise: a wrong name is an error that lists the right ones."""
    with pytest.raises(InputError, match="click"):
        distractors.make("drum", 7, "a")


def test_a_bed_lasts_as_long_as_asked() -> None:
    """Promise: accompaniment has the asked length and peak."""
    bed = distractors.make_bed(7, "take", 3.0, peak=0.2)
    assert bed.size == 3 * 44_100
    assert np.max(np.abs(bed)) == pytest.approx(0.2, abs=1e-6)
