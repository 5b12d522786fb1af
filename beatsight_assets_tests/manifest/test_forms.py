"""Manifests in other forms and back: nothing is lost, nothing runs, nothing is guessed (T2, T49, T54; bundle.md section 11)."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets.errors import InputError
from beatsight_assets.events import EVENT_SCHEMA, read_events, to_jsonl
from beatsight_assets.manifest import forms
from beatsight_assets.sources.idmt import read_points
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets_tests.manifest.factory import event, frame, hit, random_events

TAXONOMY = Taxonomy.shipped()
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12).filter(lambda s: s.strip())
HITS = st.lists(st.tuples(st.integers(0, 10**8), st.sampled_from(TAXONOMY.labels)), min_size=1, max_size=30)


def written(content: bytes, name: str) -> Path:
    """A file of that name in a folder of its own."""
    path = Path(tempfile.mkdtemp(), name)
    path.write_bytes(content)
    return path


@given(
    st.lists(
        st.tuples(st.integers(0, 8 * 10**9), NAMES, st.floats(0, 1, width=32), NAMES, st.none() | st.sampled_from(["4/4", "7/8"])),
        min_size=1,
    )
)
def test_csv_and_back_is_the_identity_on_its_columns(rows: list[tuple[int, str, float, str, str | None]]) -> None:
    """Any times, velocities and texts, also those that look like formulas or start with an apostrophe, come back as they were."""
    events = frame(
        [
            event(us / 1e6, hit(label, velocity), hit("kick"), group_id=group, meter=meter, techniques=["flam"], offset_time=us / 1e6 + 1)
            for us, label, velocity, group, meter in {r[0]: r for r in rows}.values()
        ]
    ).sort("onset_time")
    text = forms.to_csv(events)
    found = forms.read_csv(written(text, "a.csv"), "test_set")
    assert found.quarantine.height == 0 and forms.to_csv(found.events) == text
    assert found.events.select("event_id", "onset_time", "group_id").equals(events.select("event_id", "onset_time", "group_id"))
    assert not any(cell.startswith(forms.FORMULA_STARTS) for row in csv.reader(io.StringIO(text.decode())) for cell in row)


def test_csv_of_many_sessions_is_read_back() -> None:
    """5,000 drawn hits with null velocities, openness, techniques and tempi: equal text again, split from the table or the hint."""
    events = random_events(5_000).sort("session_id", "onset_time")
    groups = events.select("group_id").unique().with_columns(split=pl.lit("val"))
    text = forms.to_csv(events, groups)
    found = forms.read_csv(written(text, "a.csv"), "test_set")
    assert forms.to_csv(found.events) == text and set(found.events["split_hint"]) == {"val"}
    assert found.n_read == events["components"].list.len().sum()


BAD_ROWS = {
    "s.mid,nan,kick,0.5": ("bad-time", "onset_time 'nan'"),
    "s.mid,-1,kick,0.5": ("bad-time", "onset_time '-1'"),
    "s.mid,90000,kick,0.5": ("bad-time", "onset_time '90000'"),
    "s.mid,1.0,kick,loud": ("bad-metadata", "velocity 'loud'"),
    "s.mid,1.0,kick,inf": ("bad-metadata", "velocity 'inf'"),
    "s.mid,1.0,kick,1.5": ("bad-metadata", "velocity '1.5'"),
    "s.mid,1.0,,0.5": ("bad-metadata", "label is empty"),
    ",1.0,kick,0.5": ("bad-metadata", "session_id is empty"),
    "../x.mid,1.0,kick,0.5": ("path-escape", "session_id '../x.mid'"),
    "s.mid,1.0,kick": ("bad-metadata", "3 fields; 4 fields are due"),
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_a_bad_row_is_one_quarantine_row_with_its_line(line: str) -> None:
    """The other rows are read; the row refused is named by file, line, code, field and value."""
    code, message = BAD_ROWS[line]
    found = forms.read_csv(
        written(f"session_id,onset_time,label,velocity\ns.mid,0.5,kick,0.5\n{line}\ns.mid,2,snare,\n".encode(), "a.csv"), "x"
    )
    assert found.events["onset_time"].to_list() == [0.5, 2.0] and found.n_read == 3
    (row,) = found.quarantine.to_dicts()
    assert (row["path"], row["code"], row["stage"], row["source_set"]) == ("a.csv:3", code, "read", "x")
    assert row["message"].startswith(f"line 3: {message}")


def test_rows_of_one_event_must_agree() -> None:
    """A second hit of an event that names another meter is refused; without ids, session and instant make the event."""
    text = "event_id,session_id,onset_time,label,meter\na,s,1,kick,4/4\na,s,1,snare,7/8\n,s,2,kick,\n,s,2,snare,\n"
    found = forms.read_csv(written(text.encode(), "a.csv"), "x")
    assert found.quarantine["code"].to_list() == ["id-conflict"] and found.quarantine["path"].to_list() == ["a.csv:3"]
    assert [[c["label"] for c in cs] for cs in found.events["components"].to_list()] == [["kick"], ["kick", "snare"]]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "bad-metadata"),
        (b"session_id,onset_time\ns,1\n", "bad-metadata"),
        (b"session_id,onset_time,label,colour\ns,1,kick,red\n", "bad-metadata"),
        (b"session_id,onset_time,label,label\ns,1,kick,kick\n", "bad-metadata"),
        (b'session_id,onset_time,label\ns,1,"kick\n', "bad-metadata"),
        (b"session_id,onset_time,label\ns,1,ki\xffck\n", "bad-encoding"),
        (b"session_id,onset_time,label\ns,1," + b"k" * 1_000_001 + b"\n", "bad-metadata"),
    ],
)
def test_a_csv_that_is_none_is_refused_whole(text: bytes, code: str) -> None:
    """No header, unknown or missing columns, an open quote, other bytes than UTF-8, a huge line: an error with the place."""
    with pytest.raises(InputError) as caught:
        forms.read_csv(written(text, "a.csv"), "x")
    assert caught.value.code == code and "a.csv" in caught.value.where


def test_hostile_labels_are_refused_on_the_way_out_and_harmless_on_the_way_in() -> None:
    """Control characters leave in no line form; what comes in is escaped before anybody prints it."""
    hostile = frame([event(1.0, "ki\tck\x1b[31m")])
    for write in (forms.to_csv, forms.to_audacity, forms.to_svl):
        with pytest.raises(InputError, match="bad-label"):
            write(hostile)  # type: ignore[operator]
    with pytest.raises(InputError, match="bad-label"):
        forms.to_svl(frame([event(1.0, "../kick")]))
    labels = forms.read_label_track("0.5\t0.5\tki\x1b[31mck\u202e\n".encode(), TAXONOMY)
    cells = forms.read_csv(written(b"session_id,onset_time,label\ns,1,ki\x1b[31mck\n", "a.csv"), "x").events["components"][0]
    assert labels == [(500_000, Voice("ki\\x1b[31mck\\u202e"))] and cells[0]["label"] == "ki\\x1b[31mck"


@given(HITS)
def test_label_tracks_and_layers_come_back(hits: list[tuple[int, str]]) -> None:
    """Audacity: equal onsets to 1 us and equal labels. Sonic Visualiser: equal frames at the audio's rate, read by the reader of IDMT."""
    events = forms.events_of_hits([(us, Voice(label)) for us, label in hits], "x", "a.wav", TAXONOMY)
    due = forms.session_hits(events)
    assert [(us, v.label) for us, v in forms.read_label_track(forms.to_audacity(events), TAXONOMY)] == due
    for rate_hz in (8_000, 44_100, 48_000, 192_000):
        folder = Path(tempfile.mkdtemp())
        layers = forms.to_svl(events, rate_hz)
        for label, content in layers.items():
            (folder / f"{label}.svl").write_bytes(content)
        found = forms.read_svl(folder, TAXONOMY)
        frames = sorted((voice.label, round(us * rate_hz / 1e6)) for us, voice in found)
        assert frames == sorted((label, (2 * us * rate_hz + 10**6) // (2 * 10**6)) for us, label in due)
        assert sum(len(read_points(folder / f"{x}.svl", "x", "")[0]) for x in layers) == len(due)


def test_one_track_holds_one_session() -> None:
    """Two sessions in one label track would be one performance: refused, with the option that picks one."""
    with pytest.raises(InputError, match="--where session_id=a"):
        forms.to_audacity(frame([event(1.0, "kick"), event(1.0, "kick", session="b.mid")]))


@given(st.lists(st.tuples(st.integers(0, 10**9), st.text(min_size=1), st.none() | st.floats(0, 1, width=32)), max_size=8))
def test_json_in_columns_is_json(rows: list[tuple[int, str, float | None]]) -> None:
    """Any text, quotes and line ends too, stands in JSON and JSONL so that both readers give the same events; null fields are left out."""
    usable = [r for r in rows if r[1].encode("utf-8", "ignore").decode() == r[1]]
    events = frame(
        [event(us / 1e6, hit(text, v), event_id=str(n), group_id=text, extras={"note": text}) for n, (us, text, v) in enumerate(usable)]
    )
    lines, whole = to_jsonl(events), forms.to_json(events)
    assert b"null" not in lines.replace(b"\\", b"") or any("null" in t for _, t, _ in usable)
    one, other = read_events(written(lines, "a.jsonl")), forms.read_json(written(whole, "a.json"))
    assert one.equals(other) and one.drop("components", "extras").equals(events.drop("components", "extras"))
    assert one.schema == EVENT_SCHEMA and lines.count(b"\n") == len(usable)
