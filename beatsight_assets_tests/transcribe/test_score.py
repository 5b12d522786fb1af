"""Scoring one transcription against another."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from beatsight_assets.bsm import Lanes, MadeBy, Song, write_bsm
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import assemble, to_jsonl
from beatsight_assets.model.scoring import Counts
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.transcribe import Hit
from beatsight_assets.transcribe.labels import write_labels, write_midi
from beatsight_assets.transcribe.score import read_hits, score, score_hits
from beatsight_assets_tests.manifest.factory import event, frame, hit

TAXONOMY = Taxonomy.shipped()
PLAYED = [Hit(0, "kick", 0.5), Hit(500_000, "snare", 0.5), Hit(500_000, "hihat_closed", 0.5), Hit(1_000_000, "ride_bow", 0.5)]


def counts(reference: list[Hit], estimate: list[Hit], view: str = "drums18", tolerance_ms: float = 50.0) -> tuple[int, int, int]:
    found = score_hits(reference, estimate, TAXONOMY).overall(view, tolerance_ms)
    return found.tp, found.fp, found.fn


@pytest.mark.parametrize(
    ("shift_us", "at_20_ms", "at_50_ms"),
    [(0, 1, 1), (20_000, 1, 1), (20_001, 0, 1), (-50_000, 0, 1), (50_001, 0, 0)],
)
def test_tolerances_are_inclusive(shift_us: int, at_20_ms: int, at_50_ms: int) -> None:
    """A hit exactly 20 or 50 ms off counts, one microsecond more does not."""
    reference, estimate = [Hit(1_000_000, "kick")], [Hit(1_000_000 + shift_us, "kick")]
    assert counts(reference, estimate, tolerance_ms=20.0)[0] == at_20_ms
    assert counts(reference, estimate)[0] == at_50_ms


def test_matching_is_one_to_one_and_within_a_class() -> None:
    """A double is wrong, another drum is wrong, a missed hit is missed."""
    assert counts(PLAYED, [*PLAYED, Hit(10_000, "kick")]) == (4, 1, 0)
    assert counts(PLAYED, [Hit(0, "snare")]) == (0, 1, 4)
    assert counts(PLAYED, []) == (0, 0, 4)


def test_the_coarse_view_joins_what_is_one_hit_there() -> None:
    """Crash and ride struck together are one CY; in drums18 they are two."""
    reference = [Hit(0, "crash"), Hit(10_000, "ride_bow")]
    assert counts(reference, [Hit(0, "crash")]) == (1, 0, 1)
    assert counts(reference, [Hit(0, "crash")], "drums5") == (1, 0, 0)
    assert counts([Hit(0, "crash")], [Hit(0, "china")]) == (0, 1, 1)
    assert counts([Hit(0, "crash")], [Hit(0, "china")], "drums5") == (1, 0, 0)


def test_what_the_reference_cannot_know_is_not_counted() -> None:
    """Near an unspecified hi-hat no hi-hat is wrong; a class outside the coverage is never wrong."""
    reference = [Hit(0, "hihat_closed", None, None, "unspecified"), Hit(500_000, "kick")]
    assert counts(reference, [Hit(0, "hihat_open"), Hit(500_000, "kick")]) == (1, 0, 0)
    assert counts(reference, [Hit(300_000, "hihat_open"), Hit(500_000, "kick")]) == (1, 1, 0)
    narrow = score_hits([Hit(500_000, "kick")], [Hit(500_000, "kick"), Hit(0, "snare")], TAXONOMY, coverage=["kick"])
    assert narrow.overall("drums18") == Counts(1, 0, 0)


def test_labels_outside_the_view_are_counted_not_judged() -> None:
    """A gong is no error of either side, and it is not hidden."""
    found = score_hits([*PLAYED, Hit(0, "gong")], PLAYED, TAXONOMY)
    assert found.overall("drums18").f1 == 1.0 and found.outside == {"gong": 1}
    assert found.to_json()["outside_views"] == {"gong": 1}


def test_the_report_has_both_views_both_tolerances_and_every_class_that_occurs() -> None:
    """`transcribe score` reports F at 20 and 50 ms, per class and overall."""
    report = score_hits(PLAYED, [Hit(30_000, "kick"), *PLAYED[1:]], TAXONOMY).to_json()
    assert set(report["views"]) == {"drums18", "drums5"} and set(report["views"]["drums18"]) == {"20", "50"}
    assert report["views"]["drums18"]["50"]["overall"]["f1"] == 1.0
    assert report["views"]["drums18"]["20"]["overall"]["f1"] == pytest.approx(0.75)
    assert set(report["views"]["drums18"]["20"]["per_class"]) == {"kick", "snare", "hihat_closed", "ride_bow"}
    assert report["views"]["drums18"]["20"]["per_class"]["kick"]["f1"] == 0.0


def test_all_four_forms_say_the_same(tmp_path: Path, settings: Settings) -> None:
    """.bsm, .mid, .txt and .jsonl of the same hits score 1.0 against each other."""
    song, made_by = Song("t", "a", "c", "x.wav", "0" * 64, 2_000, 44_100, 120.0), MadeBy("m", "0" * 64, "frame", 1.0)
    rows = [event(0.0, hit("kick", 0.5)), event(0.5, hit("snare", 0.5), hit("hihat_closed", 0.5)), event(1.0, hit("ride", 0.5))]
    files = {
        "a.bsm": write_bsm(PLAYED, song, made_by, datetime(2026, 1, 1, tzinfo=UTC), taxonomy=TAXONOMY, lanes=Lanes.load(settings)),
        "a.mid": write_midi(PLAYED, TAXONOMY),
        "a.txt": write_labels(PLAYED),
        "a.jsonl": to_jsonl(frame(rows)),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for reference in files:
        for estimate in files:
            found = score(tmp_path / reference, tmp_path / estimate, TAXONOMY)
            assert found.overall("drums18", 20.0).f1 == 1.0, (reference, estimate)
            assert found.n_reference == found.n_estimate == 4


def test_a_hit_of_an_event_keeps_its_own_onset(tmp_path: Path) -> None:
    """Offsets of components inside an event are not lost on the way through JSONL."""
    row = event(0.5, "kick", "snare", extras={"offsets_us": [0, 8_000]})
    (tmp_path / "a.jsonl").write_bytes(to_jsonl(frame([row])))
    assert [(h.onset_us, h.label) for h in read_hits(tmp_path / "a.jsonl", TAXONOMY)] == [(500_000, "kick"), (508_000, "snare")]


def test_aliases_in_events_become_components_and_keep_what_they_leave_open(tmp_path: Path) -> None:
    """`hihat` in a manifest of another tool is a hat of unknown kind, not a closed one."""
    (tmp_path / "a.jsonl").write_bytes(to_jsonl(frame([event(0.5, "hihat"), event(0.6, "ride")])))
    assert read_hits(tmp_path / "a.jsonl", TAXONOMY) == [Hit(500_000, "hihat_closed", None, None, "unspecified"), Hit(600_000, "ride_bow")]


def test_what_cannot_be_a_transcription_is_refused(tmp_path: Path) -> None:
    """Another suffix is exit 2; no file, and a manifest of several sessions, are exit 3."""
    (tmp_path / "two.jsonl").write_bytes(to_jsonl(frame([event(0.0, "kick", session="a"), event(0.0, "kick", session="b")])))
    for name, kind, code in (
        ("x.wav", ConfigError, "unknown-choice"),
        ("absent.txt", InputError, "missing-input"),
        ("two.jsonl", InputError, "bad-manifest"),
    ):
        with pytest.raises(kind) as caught:
            read_hits(tmp_path / name, TAXONOMY)
        assert caught.value.code == code


def test_nothing_assembled_scores_nothing(tmp_path: Path) -> None:
    """Two empty transcriptions have no F, not a perfect one."""
    (tmp_path / "a.jsonl").write_bytes(to_jsonl(assemble("x", [], TAXONOMY).frame))
    assert score(tmp_path / "a.jsonl", tmp_path / "a.jsonl", TAXONOMY).overall("drums18").f1 is None
