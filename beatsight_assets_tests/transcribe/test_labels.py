"""Label tracks and MIDI files of hits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets import midi
from beatsight_assets.errors import InputError
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.transcribe import Hit
from beatsight_assets.transcribe.labels import read_labels, read_midi, write_labels, write_midi

TAXONOMY = Taxonomy.shipped()
ONSETS = st.integers(0, 86_400_000_000 - 1)
LABELS = st.sampled_from(TAXONOMY.labels)


@given(st.lists(st.tuples(ONSETS, LABELS)))
def test_label_tracks_are_exact_to_the_microsecond(rows: list[tuple[int, str]]) -> None:
    """Audacity export and import keep every onset and label."""
    hits = [Hit(at, label) for at, label in rows]
    content = write_labels(hits)
    assert read_labels(content, TAXONOMY) == sorted(hits, key=lambda h: (h.onset_us, h.label))
    assert write_labels(read_labels(content, TAXONOMY)) == content


def test_a_label_track_is_three_fields_with_six_decimals() -> None:
    """The form that Audacity imports."""
    assert write_labels([Hit(1_500_001, "snare"), Hit(0, "kick", 0.5)]) == b"0.000000\t0.000000\tkick\n1.500001\t1.500001\tsnare\n"


def test_hand_made_label_tracks_are_read() -> None:
    """BOM, CRLF, regions, spectral lines, aliases, unknown words, control characters: read, and nothing dangerous stays."""
    text = "\ufeff0.5\t0.9\tBD\r\n\\\t100\t200\r\n\r\n0.25\t0.25\thi-hat\twith a tab\n0.1\t0.1\thh\n1\t1\tgo\u202eng\n"
    assert read_labels(text.encode(), TAXONOMY) == [
        Hit(100_000, "hihat_closed", None, None, "unspecified"),
        Hit(250_000, "hi-hat\\twith a tab"),
        Hit(500_000, "kick"),
        Hit(1_000_000, "go\\u202eng"),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0.1\t0.1\tkick\n0.2 0.2 kick\n", 2), ("0.1\t0.1\n", 1), ("0.1\t0.1\t \n", 1), ("-1\t0\tkick\n", 1), ("nan\t0\tkick\n", 1),
        ("1e3\t1e3\tkick\n", 1), ("86400\t86400\tkick\n", 1), ("0.5\t0.4\tkick\n", 1), ("0,5\t0,5\tkick\n", 1), ("1_0\t10\tkick\n", 1),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(text: str, line: int) -> None:
    """What is no label is exit 3 with its line."""
    with pytest.raises(InputError) as caught:
        read_labels(text.encode(), TAXONOMY, where="x.txt")
    assert (caught.value.code, caught.value.exit_code, caught.value.where) == ("bad-label", 3, f"x.txt:{line}")


@pytest.mark.parametrize("label", ["a\tb", "a\nb", "", "\u202e"])
def test_labels_with_control_characters_are_not_exported(label: str) -> None:
    """A label cannot forge a second line."""
    with pytest.raises(InputError):
        write_labels([Hit(0, label)])


@given(
    st.lists(
        st.tuples(
            st.integers(0, 600_000_000), LABELS, st.one_of(st.none(), st.floats(0, 1, width=32)), st.one_of(st.none(), st.integers(0, 90))
        ),
        max_size=60,
    ),
    st.integers(30, 280),
)
def test_midi_to_hits_to_midi_is_the_identity_on_components_and_ticks(
    rows: list[tuple[int, str, float | None, int | None]], bpm: int
) -> None:
    """Reading what was written and writing it again gives equal notes at equal ticks."""
    tempos = ((0, round(60e6 / bpm)),)
    hits = [Hit(at, label, velocity, None if cc4 is None else 1 - cc4 / 90) for at, label, velocity, cc4 in rows]
    first = midi.read_midi(write_midi(hits, TAXONOMY, tempos=tempos))
    again = midi.read_midi(write_midi(read_midi(write_midi(hits, TAXONOMY, tempos=tempos), TAXONOMY), TAXONOMY, tempos=tempos))
    assert (first.notes.tick.tolist(), first.notes.note.tolist()) == (again.notes.tick.tolist(), again.notes.note.tolist())
    assert sorted(first.notes.velocity.tolist()) == sorted(again.notes.velocity.tolist())
    assert not first.problems


def test_midi_keeps_velocity_openness_and_onset() -> None:
    """Velocity +- 1/127, openness +- 1/90, onset +- 1 tick; the pedal belongs to the hat it precedes."""
    hits = [Hit(0, "kick", 0.5), Hit(100_000, "hihat_open", 1.0, 0.9), Hit(300_000, "hihat_closed", 0.01, 0.0), Hit(400_000, "snare")]
    found = read_midi(write_midi(hits, TAXONOMY), TAXONOMY)
    assert [h.label for h in found] == [h.label for h in hits]
    for hit, read in zip(hits, found, strict=True):
        assert abs(hit.onset_us - read.onset_us) <= 521 / 2 + 1
        assert read.velocity == pytest.approx(64 / 127 if hit.velocity is None else hit.velocity, abs=1 / 127)
        assert (read.openness is None) == (hit.openness is None)
        if hit.openness is not None:
            assert read.openness == pytest.approx(hit.openness, abs=1 / 90)


def test_midi_has_no_note_for_a_label_outside_the_taxonomy() -> None:
    """A label that MIDI cannot say is an error, not another drum."""
    with pytest.raises(InputError, match="gong"):
        write_midi([Hit(0, "gong")], TAXONOMY)


@pytest.mark.data
def test_real_performances_survive_the_round_trip(shared_data: Path) -> None:
    """Takes of Groove MIDI, read as hits and written in our note map: equal components at equal ticks."""
    takes = sorted((shared_data / "groove_midi").rglob("*.mid"))[:20]
    assert takes
    for path in takes:
        source = midi.read_midi(path.read_bytes())
        hits = read_midi(path.read_bytes(), TAXONOMY, note_map="td11")
        tempos = list(zip(source.tempos.onset_us.tolist(), source.tempos.us_per_quarter.tolist(), strict=True))
        written = write_midi(hits, TAXONOMY, tempos=tempos, ticks_per_quarter=source.division)
        mapped = TAXONOMY.note_map("td11")
        ticks = [t for t, n in zip(source.notes.tick.tolist(), source.notes.note.tolist(), strict=True) if n in mapped]
        assert midi.read_midi(written).notes.tick.tolist() == ticks
        assert sorted((h.onset_us, h.label) for h in read_midi(written, TAXONOMY)) == sorted((h.onset_us, h.label) for h in hits)
