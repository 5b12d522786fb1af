"""Hits become events as spec/events.md sections 2, 3, 11 and 12 say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from beatsight_assets import events, midi
from beatsight_assets.errors import InputError
from beatsight_assets.events import EVENT_SCHEMA, Hits, Session, assemble
from beatsight_assets.sources.performance import read_performance
from beatsight_assets.taxonomy import Taxonomy, Voice

TAXONOMY = Taxonomy.shipped()
NAN = float("nan")


def hits(rows: list[tuple[str, int, float]], **voice: str) -> Hits:
    """(label, onset in microseconds, velocity) as columns."""
    names = list(dict.fromkeys(label for label, _, _ in rows))
    return Hits(
        voices=tuple(Voice(label, **voice) for label in names),
        onset_us=np.array([t for _, t, _ in rows], dtype=np.int64),
        voice=np.array([names.index(label) for label, _, _ in rows], dtype=np.int64),
        velocity=np.array([v for _, _, v in rows], dtype=np.float32),
    )


def frame_of(*rows: tuple[str, int, float]) -> pl.DataFrame:
    """Events of one session of source `x`."""
    return assemble("x", [(Session("a.mid", "g:a"), hits(list(rows)))], TAXONOMY).frame


def labels_of(frame: pl.DataFrame) -> list[list[str]]:
    return [[c["label"] for c in row] for row in frame["components"].to_list()]


@pytest.mark.parametrize(
    ("value", "bucket"), [(31, "ghost"), (32, "light"), (63, "light"), (64, "medium"), (101, "medium"), (102, "accent"), (127, "accent")]
)
def test_midi_velocity_falls_into_its_bucket(value: int, bucket: str) -> None:
    """Bucket limits of spec section 2."""
    assert events.BUCKETS[events.bucket_ids(np.array([value / 127], dtype=np.float32))[0]] == bucket


def test_bucket_of_point_eight_as_f32_is_medium_and_of_nothing_unknown() -> None:
    """1e-6 slack: a rounded 0.8 is still medium; no velocity is never invented."""
    assert events.bucket_ids(np.array([0.8, 0.25, 0.5, NAN], dtype=np.float32)).tolist() == [2, 0, 1, 4]


def test_hits_within_the_window_of_the_anchor_are_one_event_without_chaining() -> None:
    """Case 10: kick 0, crash 8 ms, snare 14 ms."""
    frame = frame_of(("kick", 0, 0.5), ("crash", 8_000, 0.5), ("snare", 14_000, 0.5))
    assert labels_of(frame) == [["kick", "crash"], ["snare"]]
    assert frame["onset_time"].to_list() == [0.0, 0.014]


@pytest.mark.parametrize(("gap_us", "n"), [(10_000, 1), (10_001, 2)], ids=["10,000 us is one event", "10,001 us are two"])
def test_the_merge_window_is_inclusive(gap_us: int, n: int) -> None:
    """Case 11."""
    assert frame_of(("kick", 0, 0.5), ("snare", gap_us, 0.5)).height == n


def test_offsets_of_components_are_kept_in_microseconds() -> None:
    """Case 12: IDMT hat at 0.08585, kick at 0.091791."""
    frame = frame_of(("hihat_closed", 85_850, NAN), ("kick", 91_791, NAN))
    assert frame["onset_time"].to_list() == [0.08585]
    assert labels_of(frame) == [["kick", "hihat_closed"]]
    assert json.loads(frame["extras"][0])["offsets_us"] == [5941, 0]


def test_doubles_collapse_and_the_louder_stays() -> None:
    """Case 8: note 36 twice at one tick with velocities 60 and 90."""
    frame = frame_of(("kick", 0, 60 / 127), ("kick", 0, 90 / 127))
    assert frame.height == 1
    assert frame["components"][0][0]["velocity"] == pytest.approx(0.708661, abs=1e-6)
    assert json.loads(frame["extras"][0])["collapsed_hits"] == 1


def test_on_a_tie_the_earlier_double_stays() -> None:
    """Collapsing never depends on input order."""
    one = frame_of(("kick", 0, 0.5), ("snare", 1_000, 0.5), ("snare", 4_000, 0.5))
    assert json.loads(one["extras"][0]) == {"collapsed_hits": 1, "confidence": 1.0, "label_source": "midi", "offsets_us": [0, 1000]}


def test_first_event_of_a_real_take_has_its_golden_id() -> None:
    """Case 14: ids are uuid5 of source, session and onset."""
    assert (
        events.event_id("groove_mididataset", "drummer1/eval_session/1_funk-groove1_138_beat_4-4.mid", 2717)
        == "d0c7e851-d761-5167-899e-d93dfcb1fb69"
    )
    assert events.event_id("beatmap", "shared/formats/simple_beat.bsm", 0) == "23932797-95f2-565d-aed9-f37788637c5e"
    frame = frame_of(("kick", 2717, 0.5))
    assert frame["event_id"][0] == events.event_id("x", "a.mid", 2717)


@pytest.mark.parametrize(
    ("note", "cc4", "label", "openness"),
    [(46, 66, "hihat_open", 0.266667), (46, 0, "hihat_open", 1.0), (46, 90, "hihat_open", 0.0), (46, 127, "hihat_open", 0.0), (46, None, "hihat_open", None),
     (22, 90, "hihat_closed", 0.0), (44, 45, "hihat_pedal", None)],
)  # fmt: skip
def test_openness_follows_the_pedal(note: int, cc4: int | None, label: str, openness: float | None) -> None:
    """Cases 4 and 5: 90 is closed, 0 open; the pedal itself has a raw value only."""
    data = midi.write_midi([(0, note, 100)], pedal=[(0, cc4)] if cc4 is not None else [])
    played = read_performance(data, TAXONOMY, "td11")
    component = assemble("x", [(Session("a.mid", "g:a"), played.hits)], TAXONOMY).frame["components"][0][0]
    assert component["label"] == label
    assert component["openness"] == (None if openness is None else pytest.approx(openness, abs=1e-6))
    assert component["openness_raw"] == cc4


def test_the_same_piece_struck_two_ways_at_once_is_one_hit() -> None:
    """Case 9: notes 42 (velocity 90) and 22 (velocity 60) are one closed hat, bow."""
    data = midi.write_midi([(0, 42, 90), (0, 22, 60)])
    played = read_performance(data, TAXONOMY, "td11")
    frame = assemble("x", [(Session("a.mid", "g:a"), played.hits)], TAXONOMY).frame
    assert [(c["label"], c["strike_position"]) for c in frame["components"][0]] == [("hihat_closed", "bow")]


def test_notes_outside_the_map_are_counted_not_dropped_in_silence() -> None:
    """`unmapped_note` counts what a map does not know."""
    played = read_performance(midi.write_midi([(0, 36, 90), (1000, 99, 60)]), TAXONOMY, "td11")
    assert dict(played.issues) == {"unmapped_note": 1}
    assert len(played.hits) == 1


def test_aftertouch_marks_the_choked_stroke() -> None:
    """A choke belongs to the last stroke of that cymbal within five seconds."""
    data = midi.write_midi([(0, 49, 90), (1_000_000, 49, 90), (1_000_000, 38, 90)], aftertouch=[(1_500_000, 49, 100), (1_600_000, 38, 100)])
    played = read_performance(data, TAXONOMY, "td11")
    frame = assemble("x", [(Session("a.mid", "g:a"), played.hits)], TAXONOMY).frame
    assert frame["techniques"].to_list() == [[], ["cymbal_choke"]]


def test_onset_outside_the_day_is_refused_with_the_session() -> None:
    """Milliseconds taken for seconds do not become events."""
    with pytest.raises(InputError, match="milliseconds") as failure:
        frame_of(("kick", 93_120_000_000, 0.5))
    assert (failure.value.code, failure.value.where) == ("bad-time", "a.mid")


def test_unknown_labels_are_kept_and_counted() -> None:
    """Nothing is dropped in silence."""
    frame = frame_of(("gong", 0, 0.5), ("kick", 0, 0.5))
    assert labels_of(frame) == [["kick", "gong"]]
    assert events.unknown_labels(frame, TAXONOMY) == {"gong": 1}


def _slow_events(rows: list[tuple[str, int, float]]) -> list[tuple[int, list[tuple[str, float]]]]:
    """The obviously right way: walk the hits in time."""
    ordered = sorted(rows, key=lambda r: (r[1], TAXONOMY.order[r[0]]))
    found: list[tuple[int, list[tuple[str, int, float]]]] = []
    for label, onset, velocity in ordered:
        if not found or onset - found[-1][0] > 10_000:
            found.append((onset, []))
        found[-1][1].append((label, onset, velocity))
    result = []
    for anchor, members in found:
        best: dict[str, tuple[float, int]] = {}
        for label, onset, velocity in members:
            if label not in best or (velocity, -onset) > (best[label][0], -best[label][1]):
                best[label] = (velocity, onset)
        result.append((anchor, [(label, best[label][0]) for label in sorted(best, key=TAXONOMY.order.__getitem__)]))
    return result


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["kick", "snare", "hihat_closed", "crash"]),
        st.integers(0, 200_000),
        st.integers(1, 127).map(lambda v: float(np.float32(v / 127))),
    ),
    min_size=1,
    max_size=60,
)


@given(ROWS, st.randoms(use_true_random=False))
def test_assembling_equals_the_slow_walk_in_any_order(rows: list[tuple[str, int, float]], shuffle: object) -> None:
    """Columns and loop agree, input order does not matter, every rule of the schema holds, ids are unique."""
    frame = frame_of(*rows)
    found = [
        (round(t * 1e6), [(c["label"], c["velocity"]) for c in cs])
        for t, cs in zip(frame["onset_time"], frame["components"].to_list(), strict=True)
    ]
    assert found == _slow_events(rows)
    counts, broken = events.find_violations(frame, TAXONOMY)
    assert broken == [] and sum(counts.values()) == 0
    assert frame["event_id"].n_unique() == frame.height
    mixed = list(rows)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    assert frame_of(*mixed).drop("extras").equals(frame.drop("extras"))


@given(ROWS)
def test_jsonl_round_trip_is_the_identity(rows: list[tuple[str, int, float]]) -> None:
    """Parquet and JSONL carry the same rows."""
    import tempfile

    frame = frame_of(*rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "e.jsonl")
        path.write_bytes(events.to_jsonl(frame))
        again = events.read_events(path)
    assert again.schema == EVENT_SCHEMA
    assert again.drop("components").equals(frame.drop("components"))
    a, b = events.hits_of(again, "event_id"), events.hits_of(frame, "event_id")
    assert a.drop("velocity").equals(b.drop("velocity"))
    assert np.abs(a["velocity"].to_numpy() - b["velocity"].to_numpy()).max() <= 1e-6


def test_two_sessions_in_one_batch_do_not_touch() -> None:
    """The end of one session and the start of the next are far apart, whatever their times."""
    rows = hits([("kick", 0, 0.5), ("snare", 5_000, 0.5)])
    found = assemble("x", [(Session("a", "g"), rows), (Session("b", "g"), rows)], TAXONOMY)
    assert found.n_events.tolist() == [1, 1]
    assert found.frame["session_id"].to_list() == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        ('{"session_id": "a", "event_id": "1", "onset_time": NaN, "components": []}', "bad-time", "nan"),
        ('{"session_id": "a", "event_id": "1", "onset_time": 1, "components": [], "tempo_bpm": Infinity}', "bad-manifest", "Infinity"),
        (
            '{"session_id": "a", "event_id": "1", "onset_time": 1, "components": [], "audio_path": "../../x.wav"}',
            "path-escape",
            "audio_path",
        ),
        ('{"session_id": "/a", "event_id": "1", "onset_time": 1, "components": []}', "path-escape", "session_id"),
        ('{"session_id": "a", "event_id": "1", "onset_time": 1, "components": [], "extras": 3}', "bad-manifest", "extras"),
        ('{"session_id": "a", "event_id": "1", "onset_time": -1, "components": []}', "bad-time", "-1"),
        ('{"session_id": "a", "event_id": "1", "onset_time": true, "components": []}', "bad-time", "True"),
        ('{"session_id": "a", "onset_time": 1, "components": []}', "bad-manifest", "event_id"),
        ('{"session_id": "a", "event_id": "1", "onset_time": 1, "components": [3]}', "bad-manifest", "components"),
        ("[1, 2]", "bad-manifest", "object"),
        ("{", "bad-manifest", "JSON"),
    ],
)
def test_bad_lines_are_refused_with_file_and_line(tmp_path: Path, line: str, code: str, word: str) -> None:
    """Case 25 and the empty cases of spec section 11."""
    path = tmp_path / "e.jsonl"
    path.write_text('{"session_id": "a", "event_id": "0", "onset_time": 0, "components": [{"label": "kick"}]}\n' + line + "\n")
    with pytest.raises(InputError, match=word) as failure:
        events.read_events(path)
    assert failure.value.code == code
    assert failure.value.where.endswith(":2")


def test_a_torn_last_line_is_an_error_with_its_number(tmp_path: Path) -> None:
    """An interrupted writer does not lose a row in silence."""
    path = tmp_path / "e.jsonl"
    path.write_text('{"session_id": "a", "event_id": "0", "onset_time": 0}\n{"session_id"')
    with pytest.raises(InputError, match="torn") as failure:
        events.read_events(path)
    assert failure.value.where.endswith(":2")


def test_rows_of_older_tools_are_upgraded() -> None:
    """`sample_id` stands in for the id, context is 80/200, unknown keys move into extras."""
    row = events.upgraded_row(
        {"session_id": "s", "sample_id": "7", "onset_time": 1, "components": [{"label": "kick", "velocity": 0.6}], "room_id": "r1"}
    )
    assert (row["event_id"], row["group_id"], row["context_ms"]) == ("7", "s", {"pre": 80.0, "post": 200.0})
    assert json.loads(row["extras"]) == {"room_id": "r1"}
    assert row["components"][0]["dynamic_bucket"] == "medium"


def test_validation_names_each_broken_rule() -> None:
    """A broken row is found by the rule it breaks."""
    frame = frame_of(("kick", 0, 0.5), ("snare", 50_000, 0.5))
    broken = frame.with_columns(
        onset_time=pl.Series([0.0, 90_000.0]),
        negative_example=pl.Series([True, False]),
        techniques=pl.Series([["b", "a"], []]),
        metadata_ref=pl.Series(["provenance:other", "provenance:a.mid"]),
    )
    counts, _ = events.find_violations(broken, TAXONOMY)
    assert {k for k, n in counts.items() if n} == {"onset_range", "negative_is_empty", "techniques_sorted", "metadata_ref"}


def test_a_repeated_row_is_a_broken_rule() -> None:
    """An id stands for one event: `events validate` counts every row that shares one."""
    frame = frame_of(("kick", 0, 0.5), ("snare", 50_000, 0.5))
    counts, _ = events.find_violations(pl.concat([frame, frame.head(1)]), TAXONOMY)
    assert {k: n for k, n in counts.items() if n} == {"event_ids_unique": 2}


def test_extras_of_a_session_stand_in_the_order_of_keys() -> None:
    """Members of the session before, between and behind the two that an event can have of its own."""
    own = {"channel": 3, "layer": "ä", "zone": [1]}
    sessions = [(Session(name, "g", extras=extras), hits([("kick", 0, 0.5), ("snare", 2_000, 0.5), ("kick", 3_000, 0.4), ("kick", 50_000, 1.0)]))
                for name, extras in (("a", own), ("b", {}), ("c", {"channel": 1}))]  # fmt: skip
    texts = assemble("x", sessions, TAXONOMY).frame["extras"].to_list()
    assert texts[:2] == [
        '{"channel":3,"collapsed_hits":1,"confidence":1.0,"label_source":"midi","layer":"ä","offsets_us":[0,2000],"zone":[1]}',
        '{"channel":3,"confidence":1.0,"label_source":"midi","layer":"ä","zone":[1]}',
    ]
    assert texts[2] == '{"collapsed_hits":1,"confidence":1.0,"label_source":"midi","offsets_us":[0,2000]}'
    assert texts[5] == '{"channel":1,"confidence":1.0,"label_source":"midi"}'


@pytest.mark.parametrize("rows", [1, 7, 50, 1_000])
@pytest.mark.parametrize("ends", [[100], [1, 2, 99, 100], [30, 30, 60, 100], []])
def test_parts_of_a_manifest_are_its_rows_between_the_ends(ends: list[int], rows: int) -> None:
    """Wherever pieces of reading end, each part holds the rows from the end before to its own."""
    frame = frame_of(*(("kick", 50_000 * i, 0.5) for i in range(100)))
    found = list(events.Manifest(frame).parts(ends, rows=rows))
    assert [part.height for part in found] == np.diff([0, *ends]).tolist()
    assert all(part.equals(frame[start:end]) for part, start, end in zip(found, [0, *ends], ends, strict=False))


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("row_group_rows", [1, 8, 100])
def test_pieces_hold_only_the_named_fields_of_hits_wherever_they_are_read_from(tmp_path: Path, rows: int, row_group_rows: int) -> None:
    """Table and file give the same rows: no hit, several hits, no list, null fields; row groups and pieces need not fit each other."""
    frame = frame_of(*(("kick" if i % 3 else "snare", 8_000 * i, 0.5) for i in range(40)))
    null, none = frame[:1].with_columns(components=None), frame[:1].with_columns(pl.col("components").list.head(0))
    frame = pl.concat([frame, null.cast(frame.schema), none, frame[3:9]])
    path = tmp_path / "events.parquet"
    frame.write_parquet(path, row_group_size=row_group_rows)
    columns, fields = ["session_id", "onset_time"], ["label", "openness"]
    expected = frame.select(
        *columns, pl.col("components").list.eval(pl.struct(pl.element().struct.field("label"), pl.element().struct.field("openness")))
    )
    for source in (path, frame):
        pieces = list(events.Manifest(source).pieces_with_hits(columns, fields, rows=rows))
        assert max(piece.height for piece in pieces) <= rows
        assert pl.concat(pieces).equals(expected)
        assert pl.concat(pieces).schema == expected.schema
    assert not list(events.Manifest(frame[:0]).pieces_with_hits(columns, fields))


def test_hits_are_found_however_a_writer_names_the_level_of_a_list(tmp_path: Path) -> None:
    """`components.list.element.label` of one writer is `components.list.item.label` of another; both are the schema's columns."""
    frame = frame_of(*(("kick", 50_000 * i, 0.5) for i in range(9)))
    path = tmp_path / "events.parquet"
    parquet.write_table(frame.to_arrow(), path, use_compliant_nested_type=False)
    assert "components.list.item.label" in [c.path for c in map(parquet.ParquetFile(path).schema.column, range(30))]
    (found,) = events.Manifest(path).pieces_with_hits(["session_id"], ["openness", "label"])
    (expected,) = events.Manifest(frame).pieces_with_hits(["session_id"], ["openness", "label"])
    assert found.equals(expected) and found["components"].dtype == expected["components"].dtype


def test_a_damaged_page_of_hits_is_a_bad_manifest(tmp_path: Path) -> None:
    """The footer is whole and the pages are not: the file is named, no stack of a library."""
    path = tmp_path / "events.parquet"
    frame_of(*(("kick", 50_000 * i, 0.5) for i in range(200))).write_parquet(path)
    manifest = events.Manifest(path)
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a readable Parquet file") as caught:
        list(manifest.pieces_with_hits(["session_id"], ["label"]))
    assert caught.value.code == "bad-manifest"
