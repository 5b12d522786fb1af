from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beatsight_assets.errors import ConfigError
from beatsight_assets.manifest.techniques import INFERRED, catalogue, with_techniques
from beatsight_assets.settings import TechniquesFile, load_settings
from beatsight_assets.testing.manifests import made_manifest
from beatsight_assets_tests.manifest.factory import event, frame, hit, random_events
from beatsight_assets_tests.manifest.technique_oracle import tags_of

BARK = ["hihat_bark"]
V = 1 / 127  # one step of MIDI velocity


def tags(*rows: dict[str, Any]) -> list[list[str]]:
    return with_techniques(frame(rows))["techniques"].to_list()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([event(1.0, "hihat_open"), event(1.2, "hihat_closed")], [BARK, BARK], id="16 closing after exactly 200 ms is a bark"),
        pytest.param([event(1.0, "hihat_open"), event(1.201, "hihat_closed")], [[], []], id="16 closing after 201 ms is none"),
        pytest.param(
            [event(1.0, "hihat_open"), event(1.1, "hihat_open"), event(1.15, "hihat_closed")],
            [[], BARK, BARK],
            id="17 only the last open hat barks",
        ),
        pytest.param(
            [event(1.0, "hihat_open"), event(1.05, "hihat_open"), event(1.1, "hihat_closed"), event(1.15, "hihat_closed")],
            [[], BARK, BARK, []],
            id="a used open hat is not replaced by an older one",
        ),
        pytest.param(
            [event(1.0, "hihat_open"), event(1.1, "hihat_open", "hihat_pedal"), event(1.15, "kick"), event(1.2, "hihat_pedal")],
            [[], ["hihat_bark", "hihat_foot_chick"], [], ["hihat_bark", "hihat_foot_chick"]],
            id="an event with an open hat never closes",
        ),
        pytest.param(
            [event(2.998438, "kick", "hihat_open"), event(3.1, "kick"), event(3.196875, "hihat_closed")],
            [BARK, [], BARK],
            id="18 a kick between is not tagged",
        ),
        pytest.param([], [], id="no rows, no tags"),
        pytest.param(
            [event(i, "kick", meter=m) for i, m in enumerate(["4/4", "4/4", "7/8", "7/8", "4/4"])],
            [[], [], ["variable_meter"], [], ["variable_meter"]],
            id="20 every change of meter is tagged",
        ),
        pytest.param(
            [event(i, "kick", meter=m) for i, m in enumerate(["4/4", None, "4/4", None, "3/4"])],
            [[], [], [], [], ["variable_meter"]],
            id="an unknown meter is no change",
        ),
        pytest.param([event(0.0, "crash"), event(0.025, "crash2")], [["multi_cymbal_same_class"]] * 2, id="21 two crashes 25 ms apart"),
        pytest.param([event(0.0, "crash"), event(0.031, "crash2")], [[], []], id="21 two crashes 31 ms apart"),
        pytest.param([event(0.0, "crash"), event(0.025, "crash")], [[], []], id="21 one crash struck twice"),
        pytest.param([event(0.0, "crash"), event(0.01, "crash2", session="b.mid")], [[], []], id="crashes of two sessions"),
        pytest.param(
            [event(0.0, hit("china"), hit("china", instrument_variant="china_2"))],
            [["multi_cymbal_same_class"]],
            id="two chinas in one event",
        ),
        pytest.param([event(0.0, "crash", "china", "splash")], [[]], id="cymbals of different families are not layered"),
        pytest.param(
            [event(0.0, hit("snare", 20 * V)), event(0.03, hit("snare", 100 * V))],
            [["ghost_note", "grace_note"], ["flam"]],
            id="22 a flam with a ghost grace",
        ),
        pytest.param([event(0.0, hit("snare", 90 * V)), event(0.03, hit("snare", 100 * V))], [[], []], id="22 equal strokes are no flam"),
        pytest.param(
            [event(0.0, hit("snare", 70 * V)), event(0.05, hit("rimshot", 100 * V))],
            [["grace_note"], ["flam", "rimshot"]],
            id="grace 70 against 100",
        ),
        pytest.param(
            [event(0.0, hit("snare", 20 * V)), event(0.05, hit("tom_high", 100 * V))], [["ghost_note"], []], id="a flam stays on one drum"
        ),
        pytest.param([event(0.0, hit("snare", None)), event(0.03, hit("snare", 100 * V))], [[], []], id="a flam needs known velocities"),
        pytest.param(
            [event(0.07 * i, hit("tom_low", v)) for i, v in enumerate([0.4, 0.4, 0.9])],
            [["grace_note"], ["grace_note"], ["drag"]],
            id="a drag of 70 ms gaps",
        ),
        pytest.param(
            [event(0.04 * i, hit("tom_low", v)) for i, v in enumerate([0.3, 0.3, 0.3, 0.3, 0.9])],
            [["roll"]] * 5,
            id="strokes of a roll are no flam",
        ),
        pytest.param([event(0.13 * i, "kick") for i in range(4)], [["double_kick_burst"]] * 4, id="four kicks at 130 ms"),
        pytest.param([event(0.13 * i, "kick") for i in range(3)], [[]] * 3, id="three kicks are no burst"),
        pytest.param(
            [event(i, hit("hihat_open", openness=o)) for i, o in enumerate([0.34, 0.35, 0.79, 0.8, None])],
            [[], ["hihat_half_open"], ["hihat_half_open"], [], []],
            id="half open from 0.35 to below 0.8",
        ),
        pytest.param([event(0.0, "hihat_pedal", mix_context="stem")], [[]], id="a stem row is inventory, no gesture"),
    ],
)
def test_each_rule_at_its_limit(rows: list[dict[str, Any]], expected: list[list[str]]) -> None:
    """Every rule of the table tags exactly the events it describes, at and beside its limit."""
    assert tags(*rows) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(120, 180, "metric_modulation"), (120, 178.5, "metric_modulation"), (120, 177, "tempo_change"), (120, 123, "tempo_change"), (118, 137, "tempo_change"),
     (120, 121, None), (120, 121.2, None), (120, 60, "metric_modulation")],
)  # fmt: skip
def test_tempo_ratios(first: float, second: float, expected: str | None) -> None:
    """Case 19: simple ratios within 1 % are metric modulations, other changes above 1 % are tempo changes."""
    found = tags(event(0, "kick", tempo_bpm=first), event(1, "kick", tempo_bpm=None), event(2, "kick", tempo_bpm=second))
    assert found == [[], [], [expected] if expected else []]


def test_equals_the_plain_loop_on_generated_events() -> None:
    """Row by row the arrays say what the plain loop says, on and beside all limits and for 20,000 events of made datasets; every rule fires."""
    events = random_events(24_000)
    assert events.height > 5_000
    found = with_techniques(events)["techniques"].to_list()
    assert found == [sorted(t) for t in tags_of(events)]
    assert {t for row in found for t in row} == set(INFERRED)
    made = made_manifest(20_000, seed=9)
    stated = made["techniques"].to_list()
    assert with_techniques(made)["techniques"].to_list() == [sorted(a | set(b)) for a, b in zip(tags_of(made), stated, strict=True)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 5), st.randoms(use_true_random=False))
def test_row_order_does_not_matter(seed: int, n_sessions: int, order: Any) -> None:
    """Case 23: sessions interleaved in any order get the tags they get when grouped, and twice is the same as once."""
    events = random_events(200, seed=seed, n_sessions=n_sessions)
    expected = with_techniques(events)
    rows = list(range(events.height))
    order.shuffle(rows)
    shuffled = with_techniques(events[rows])
    assert shuffled.equals(expected[rows])
    assert with_techniques(shuffled).equals(shuffled)


def test_other_sessions_change_nothing() -> None:
    """Tags of a session do not depend on which other sessions stand in the table."""
    events = random_events(2_000, n_sessions=5)
    whole = with_techniques(events)
    alone = pl.concat([with_techniques(part) for part in events.partition_by("session_id", maintain_order=True)])
    assert alone.equals(whole)


@pytest.mark.data
def test_groove_counts(groove_events: pl.DataFrame) -> None:
    """sources.md section 1: the techniques of 189,847 real events, as counted there and as the plain loop says."""
    found = with_techniques(groove_events)
    counts = dict(found.select(pl.col("techniques").explode(empty_as_null=False)).to_series().value_counts().iter_rows())
    assert counts == {
        "hihat_foot_chick": 24_860, "ghost_note": 13_730, "rimshot": 9_859, "hihat_bark": 4_190, "cross_stick": 4_166, "roll": 2_302,
        "ride_bell_accent": 2_272, "hihat_half_open": 2_024, "grace_note": 1_014, "flam": 566, "drag": 224, "multi_cymbal_same_class": 56,
        "double_kick_burst": 9, "cymbal_choke": 6,
    }  # fmt: skip
    stated = [set(t) for t in groove_events["techniques"].to_list()]
    assert found["techniques"].to_list() == [sorted(a | b) for a, b in zip(tags_of(groove_events), stated, strict=True)]


def test_stated_tags_stay_unless_recomputed() -> None:
    """Tags on the events stay; --recompute takes back the inferred kind only, so a choke survives and a wrong flam goes."""
    rows = frame([event(0.0, "snare", techniques=["cymbal_choke", "flam"]), event(1.0, "rimshot", techniques=["snares_off"])])
    assert with_techniques(rows)["techniques"].to_list() == [["cymbal_choke", "flam"], ["rimshot", "snares_off"]]
    assert with_techniques(rows, recompute=True)["techniques"].to_list() == [["cymbal_choke"], ["rimshot", "snares_off"]]


def test_shipped_catalogue_is_complete(tmp_path: Any) -> None:
    """Everything the rules can tag stands in configs/techniques.yaml, marked as inferred, and names are unique."""
    known = catalogue(load_settings(tmp_path, environ={}).techniques)
    assert {t for t, entry in known.items() if entry.inferred} == set(INFERRED)
    assert {"cymbal_choke", "snares_off", "crash_dual_label", "swing_feel", "blast_beat", "polyrhythm"} <= set(known)


@pytest.mark.parametrize("change", [{"id": "Rimshot".lower()}, {"aliases": ("ROLL",)}, {"inferred": False}])
def test_bad_catalogue_is_refused(tmp_path: Any, change: dict[str, Any]) -> None:
    """A name for two techniques, or a wrong `inferred` flag, is a configuration error."""
    file = load_settings(tmp_path, environ={}).techniques
    flam = next(t for t in file.techniques if t.id == "flam")
    with pytest.raises(ConfigError, match=r"configs/techniques\.yaml"):
        catalogue(TechniquesFile(version=1, techniques=(*(t for t in file.techniques if t.id != "flam"), flam.model_copy(update=change))))
