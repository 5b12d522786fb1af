"""Errors and their exit codes, keyed randomness, and the clock."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets import clock
from beatsight_assets.errors import BeatSightError, Busy, ConfigError, GateFailed, InputError, NothingToDo, StoreError
from beatsight_assets.units import bucket, keyed_order, rng_for

GOLDEN_DRAWS = [77413, 531670, 681217]
EXIT_CODES = {ConfigError: 2, InputError: 3, StoreError: 3, Busy: 2, GateFailed: 1, NothingToDo: 1}


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items(), ids=lambda v: getattr(v, "__name__", str(v)))
def test_exit_codes(kind: type[BeatSightError], code: int) -> None:
    """U12: each branch has the exit code of style.md section 5."""
    error = kind("the rule and the value. Next step", code="some-code", where="events/x.parquet:3")
    assert isinstance(error, BeatSightError)
    assert error.exit_code == code
    assert str(error) == "some-code: the rule and the value. Next step (events/x.parquet:3)"


@pytest.mark.parametrize("kind", EXIT_CODES, ids=lambda v: v.__name__)
def test_errors_cross_process_boundaries(kind: type[BeatSightError]) -> None:
    """A worker's error arrives in the parent with class, code, message and place."""
    error = kind("message", code="some-code", where="here")
    for arrived in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(arrived) is kind
        assert (arrived.message, arrived.code, arrived.where, arrived.exit_code) == ("message", "some-code", "here", kind.exit_code)


def test_an_unknown_choice_names_the_nearest() -> None:
    """The message has the rule, the value, the choices in order and the likely cause."""
    error = ConfigError.unknown_choice("profile", "dmo", ("prod", "demo", "dev"), where="--profile")
    assert str(error) == "unknown-choice: profile is 'dmo'; it must be one of demo, dev, prod. Did you mean demo? (--profile)"
    assert "Did you mean" not in str(ConfigError.unknown_choice("profile", "zzzz", ("demo",)))


def test_a_missing_extra_says_how_to_install_it() -> None:
    """Never a bare ImportError."""
    error = ConfigError.missing_extra("wandb", "pip install beatsight-assets[wandb]")
    assert str(error) == "missing-extra: wandb is not installed. Install it with: pip install beatsight-assets[wandb]"


def test_randomness_is_keyed_by_what_it_is_about() -> None:
    """U9: golden values; words are not glued together; the order of calls does not matter."""
    assert rng_for(7, "velocity", "take 1").integers(0, 1_000_000, 3).tolist() == GOLDEN_DRAWS
    assert rng_for(7, "ab", "c").bytes(8) != rng_for(7, "a", "bc").bytes(8)
    assert rng_for(7, "a").bytes(8) != rng_for(8, "a").bytes(8)
    first = rng_for(7, "x").normal()
    rng_for(7, "y").normal(size=1_000)
    assert rng_for(7, "x").normal() == first


@given(st.integers(0, 2**63), st.text(max_size=30))
def test_a_group_has_one_place(seed: int, group: str) -> None:
    """A split never moves an old group: its place in 0..1 depends on seed and name alone."""
    assert 0.0 <= bucket(seed, group) < 1.0
    assert bucket(seed, group) == bucket(seed, group)
    assert len(keyed_order(seed, group)) == 64


def test_places_are_spread_evenly() -> None:
    """A share of 10 % gets 10 % of the groups (10,000 groups, four standard deviations)."""
    places = np.array([bucket(7, f"group {n}") for n in range(10_000)])
    shares = np.histogram(places, bins=10, range=(0.0, 1.0))[0] / 10_000
    assert np.all(np.abs(shares - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 10_000))


def test_the_clock_is_utc_in_whole_seconds() -> None:
    """Times in lock files and records can be compared anywhere."""
    now = clock.utc_now()
    assert now.utcoffset() == timedelta(0)
    assert now.microsecond == 0
    assert clock.monotonic_s() <= clock.monotonic_s()
