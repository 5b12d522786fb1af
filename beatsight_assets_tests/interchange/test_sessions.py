"""Forms of sessions: what mido, Audacity, Sonic Visualiser and mirdata find is what the events say (`spec/bundle.md` section 11)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import mido
import numpy as np
import polars as pl
import pytest
from defusedxml import ElementTree

from beatsight_assets import events, interchange, midi, store
from beatsight_assets.bundle.plan import manifest_digest
from beatsight_assets.errors import ConfigError, InputError, NothingToDo
from beatsight_assets.events import Hits, Manifest, Session, assemble
from beatsight_assets.interchange import InterchangeOptions, sessions
from beatsight_assets.interchange import stage as engine
from beatsight_assets.interchange.clips import open_clips
from beatsight_assets.manifest import integrity
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import DRUM_MIX, Taxonomy, Voice
from beatsight_assets_tests.interchange.conftest import NAME

TAXONOMY = Taxonomy.shipped()
SOURCE = "beatsight_demo"
# spec/bundle.md section 11
BEATSIGHT_GM = {"kick": 36, "snare": 38, "rimshot": 40, "cross_stick": 37, "hihat_closed": 42, "hihat_open": 46, "hihat_pedal": 44,
                "hihat_foot_splash": 26, "ride_bow": 51, "ride_bell": 53, "ride_edge": 59, "crash": 49, "crash2": 57, "splash": 55, "china": 52,
                "tom_high": 48, "tom_mid": 45, "tom_low": 43, "cowbell": 56, "tambourine": 54, "clap": 39, "shaker": 70,
                "aux_percussion": 75}  # fmt: skip


def with_events(lake: Settings, frame: pl.DataFrame) -> engine.Clips:
    """The bundle as if it had been cut from these events."""
    tables = [pl.DataFrame({"source_set": frame["source_set"], "session_id": frame["session_id"]}).unique().lazy()]
    return replace(open_clips(lake, NAME), tables=tables, manifest=lambda: Manifest(frame))


def made_session(
    hits: list[tuple[int, str, float]], *, tempos: list[float] | None = None, meters: list[str] | None = None, name: str = "songs/t"
) -> pl.DataFrame:
    """Events of one session from (onset_us, label, velocity or NaN)."""
    order = tuple(dict.fromkeys(label for _, label, _ in hits))
    names = tuple(dict.fromkeys(meters or ["4/4"]))
    columns = Hits(
        voices=tuple(Voice(label) for label in order),
        onset_us=np.array([h[0] for h in hits], np.int64),
        voice=np.array([order.index(h[1]) for h in hits], np.int64),
        velocity=np.array([h[2] for h in hits], np.float32),
        tempo_bpm=np.array(tempos or [120.0] * len(hits)),
        meters=names,
        meter=np.array([names.index(m) for m in meters or ["4/4"] * len(hits)], np.int64),
    )
    return assemble(SOURCE, [(Session(session_id=name, group_id=f"g:{name}"), columns)], TAXONOMY).frame


def test_the_note_map_is_that_of_the_spec() -> None:
    """23 components, one note each."""
    assert {voice.label: note for note, voice in TAXONOMY.note_map("beatsight_gm").items()} == BEATSIGHT_GM


def test_mido_reads_what_the_events_say(lake: Settings) -> None:
    """Type 1, 960 ticks, tempo and meter in the first track with the note map as text, channel 10; onsets within a tick, velocities within 1/127."""
    hits = [(round(1e6 * t), label, v) for t, label, v in [(0.0, "kick", 1.0), (0.5, "snare", 0.3), (0.5, "crash2", 0.004), (1.234567, "hihat_foot_splash", 0.7),
            (2.0, "aux_percussion", float("nan")), (3.999999, "tom_mid", 0.5)]]  # fmt: skip
    frame = made_session(hits, tempos=[100.0, 100.0, 100.0, 173.21, 173.21, 60.0], meters=["4/4", "4/4", "4/4", "7/8", "7/8", "3/4"])
    (session,) = sessions.sessions(with_events(lake, frame))
    assert engine.convert(lake, with_events(lake, frame), "midi").verdicts[0].passed
    folder = lake.layout.at(f"bundles/{NAME}/interchange/midi")
    file = mido.MidiFile(folder / f"{session.stem}.mid")
    assert (file.type, file.ticks_per_beat, len(file.tracks)) == (1, 960, 2)
    conductor = [m for m in file.tracks[0] if m.type != "end_of_track"]
    assert [m.text for m in conductor if m.type == "text"] == ["beatsight note map beatsight_gm"]
    assert [m.tempo for m in conductor if m.type == "set_tempo"] == [600_000, round(60e6 / 173.21), 1_000_000]
    assert [(m.numerator, m.denominator) for m in conductor if m.type == "time_signature"] == [(4, 4), (7, 8), (3, 4)]
    assert not any(m.type == "note_on" for m in file.tracks[0])
    now, found = 0.0, []
    for message in file:
        now += message.time
        if message.type == "note_on" and message.velocity:
            assert message.channel == 9
            found.append((now, message.note, message.velocity))
    due = sorted((t / 1e6, BEATSIGHT_GM[label], 64 if v != v else max(1, round(127 * v))) for t, label, v in hits)
    assert [n for _, *n in sorted(found)] == [n for _, *n in due]
    assert np.allclose([t for t, *_ in sorted(found)], [t for t, *_ in due], atol=1.0 / 960)
    (told,) = store.read_json(folder / "sessions.json")
    assert told["unknown_velocity"] == [[2_000_000, "aux_percussion"]] and told["session_id"] == "songs/t" and told["hits"] == 6


def test_a_text_event_comes_back_and_changes_no_note() -> None:
    """Format 1 with a text holds the notes, tempos and meters of format 0."""
    notes = [(0, 36, 100), (500_000, 38, 90), (1_250_000, 42, 1)]
    tempos, meters = [(0, 500_000), (700_000, 300_000)], [(0, 4, 4), (500_000, 7, 8)]
    plain, told = (midi.read_midi(midi.write_midi(notes, tempos=tempos, meters=meters, text=t)) for t in (None, "so: ü"))
    assert (plain.format, plain.texts, told.format, told.texts) == (0, (), 1, ("so: ü",))
    assert not told.problems
    for part in ("notes", "tempos", "meters"):
        for name in ("tick", "note", "velocity", "us_per_quarter", "numerator"):
            assert np.array_equal(getattr(getattr(plain, part), name, 0), getattr(getattr(told, part), name, 0))


def test_layers_and_label_tracks_hold_every_hit(lake: Settings) -> None:
    """A frame per hit at the bundle's rate and a line per hit with 6 decimals, read as XML and as text."""
    assert engine.convert(lake, open_clips(lake, NAME), "svl").verdicts[0].passed
    assert engine.convert(lake, open_clips(lake, NAME), "audacity").verdicts[0].passed
    base = lake.layout.at(f"bundles/{NAME}/interchange")
    n_hits = 0
    for session in sessions.sessions(open_clips(lake, NAME)):
        points = {
            (path.stem, int(p.attrib["frame"]))
            for path in (base / "svl" / session.stem).glob("*.svl")
            for p in ElementTree.parse(path).iter("point")
        }
        lines = [line.split("\t") for line in (base / "audacity" / f"{session.stem}.txt").read_text().splitlines()]
        assert points == {(label, int(at * 44_100 / 1e6 + 0.5)) for at, label, *_ in session.hits}
        assert [(start, end, label) for start, end, label in lines] == [
            (f"{at / 1e6:.6f}",) * 2 + (label,) for at, label, *_ in session.hits
        ]
        n_hits += len(lines)
    assert n_hits > 200


def test_an_index_as_mirdata_reads_it(lake: Settings) -> None:
    """Every track has audio and events below one data home with the md5 that the files have; mirdata's validator checks just that."""
    report = interchange.run(lake, InterchangeOptions(NAME, "mirdata-index"))
    assert report.passed and report.figures["items"] == 3
    index = json.loads((lake.layout.at(f"bundles/{NAME}/interchange/mirdata-index") / "index.json").read_text())
    assert set(index) == {"version", "tracks", "metadata"} and len(index["tracks"]) == 3
    entries = [entry for track in (*index["tracks"].values(), index["metadata"]) for entry in track.values()]
    assert len(entries) == 7
    for path, digest in entries:
        assert hashlib.md5((lake.layout.root / path).read_bytes(), usedforsecurity=False).hexdigest() == digest
    assert all(track["audio"][0].startswith("raw/") and track["audio"][0].endswith(".wav") for track in index["tracks"].values())
    path = lake.layout.at(f"bundles/{NAME}/interchange/mirdata-index/index.json")
    judged = integrity.run(lake, integrity.IntegrityOptions(SOURCE, verify_manifests=True, recompute=True, checksums=path))
    assert judged.passed and judged.figures["checked"] == 3  # `raw integrity --checksums` takes it


def test_jsonl_is_the_manifest(lake: Settings) -> None:
    """Rows and order are those of the Parquet form, for the digest that the bundle was sealed with and for whoever reads both."""
    report = interchange.run(lake, InterchangeOptions(NAME, "jsonl"))
    path = lake.layout.at(f"bundles/{NAME}/interchange/jsonl/events.jsonl")
    table = events.read_events(lake.layout.annotated)
    assert report.passed and report.figures["items"] == table.height
    assert (
        manifest_digest(path)
        == manifest_digest(lake.layout.annotated)
        == store.read_json(lake.layout.at(f"bundles/{NAME}/metadata.json"))["manifest_sha256"]
    )
    assert path.read_bytes() == events.to_jsonl(table)
    assert events.read_events(path)["event_id"].equals(table["event_id"])


@pytest.mark.parametrize("change", ["lost", "moved", "other", "label"])
def test_jsonl_that_is_not_the_manifest_is_red(lake: Settings, change: str) -> None:
    """A line lost, two lines exchanged, an onset 1 us later, another component: each is told."""
    clips = open_clips(lake, NAME)
    engine.convert(lake, clips, "jsonl")
    path = lake.layout.at(f"bundles/{NAME}/interchange/jsonl/events.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if change == "lost":
        rows = rows[:-1]
    elif change == "moved":
        rows[3], rows[4] = rows[4], rows[3]
    elif change == "other":
        rows[5]["onset_time"] = round(rows[5]["onset_time"] + 1e-6, 6)
    else:
        rows[5]["components"][0]["label"] = "china"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = [name for name, same in engine.FORMS["jsonl"].read(path.parent, clips) if not same]
    assert wrong == {"lost": ["events.jsonl"], "moved": [rows[4]["event_id"], rows[3]["event_id"]]}.get(change, [rows[5]["event_id"]])


@pytest.mark.parametrize("kind", interchange.FORMS)
def test_a_manifest_has_the_forms_that_hold_no_samples(lake: Settings, kind: str) -> None:
    """Parquet and JSONL of one manifest give equal files; a form of samples is refused before anything is written."""
    jsonl = lake.layout.at("manifest/own.jsonl")
    lake.store.publish(jsonl, events.to_jsonl(events.read_events(lake.layout.annotated)))
    if engine.FORMS[kind].has_samples:
        with pytest.raises(ConfigError, match="needs-bundle"):
            interchange.run(lake, InterchangeOptions(jsonl, kind))
        assert not lake.layout.at("manifest/interchange").exists()
        return
    found = []
    for path in (lake.layout.annotated, jsonl):
        report = interchange.run(lake, InterchangeOptions(path, kind))
        folder = lake.layout.at(f"manifest/interchange/{path.name}/{kind}")
        assert report.passed and store.read_json(folder / "SOURCE.json")["manifest"] == path.name
        found.append(
            {p.name: store.hash_file(p) for p in folder.rglob("*") if p.is_file() and p.name not in ("SOURCE.json", "index.json", ".lock")}
        )
        assert interchange.run(lake, InterchangeOptions(path, kind)).reused
    assert found[0] == found[1] and found[0]


def test_names_of_files_are_safe_and_differ() -> None:
    """A session's name is a path of its dataset, or a stranger's: no file leaves the folder, no two sessions share one."""
    names = ["a/b", "a_b", "b", "../../x", "x\n", "ü" * 300, "a/b.mid", ".", "..", "/", "C:\\x"]
    stems = [sessions.SessionEvents(SOURCE, name, events.empty_frame()).stem for name in names]
    assert len(set(stems)) == len(names)
    assert all(store.is_plain_path(f"{stem}.mid") and stem.count("/") == 1 for stem in stems)


@pytest.mark.parametrize("kind", ["midi", "audacity", "svl", "mirdata-index"])
def test_a_hostile_label_is_refused_in_every_form_of_sessions(lake: Settings, kind: str) -> None:
    """Control characters in a label: InputError bad-label and no SOURCE.json."""
    frame = made_session([(0, "kick", 0.5)])
    hostile = frame.with_columns(
        components=pl.Series([[{**frame["components"][0][0], "label": "kick\tx\n"}]], dtype=frame.schema["components"])
    )
    with pytest.raises(InputError, match="bad-label"):
        engine.convert(lake, with_events(lake, hostile), kind)
    assert not (lake.layout.at(f"bundles/{NAME}/interchange/{kind}") / "SOURCE.json").exists()


def test_a_manifest_that_changed_is_refused(lake: Settings) -> None:
    """Forms of sessions are made from the very events that the bundle was cut from."""
    path = lake.layout.annotated
    frame = events.read_events(path)
    lake.store.publish_frame(path, frame.with_columns(onset_time=frame["onset_time"] + 0.001), metadata=events.parquet_metadata(TAXONOMY))
    with pytest.raises(InputError, match="manifest-changed"):
        interchange.run(lake, InterchangeOptions(NAME, "midi"))


def test_rows_of_whole_stems_are_no_hits(lake: Settings) -> None:
    """A drum_mix row has no onset: nothing is written for it, and a bundle of nothing else says so."""
    frame = made_session([(0, DRUM_MIX, float("nan"))])
    with pytest.raises(NothingToDo):
        engine.convert(lake, with_events(lake, frame), "midi")


def test_a_changed_file_of_a_session_is_red(lake: Settings) -> None:
    """A note moved by two ticks, a label line lost, a flipped byte of the events: each reader says no."""
    clips = open_clips(lake, NAME)
    first = next(sessions.sessions(clips))

    def path_of(kind: str, suffix: str) -> Path:
        engine.convert(lake, clips, kind)
        return lake.layout.at(f"bundles/{NAME}/interchange/{kind}/{first.stem}{suffix}")

    late = [(at + (2_000 if n == 5 else 0), *rest) for n, (at, *rest) in enumerate(first.hits)]
    moved = sessions.to_midi(
        late, TAXONOMY, "beatsight_gm", tempos=sessions.tempo_map(first.events)[0], text="beatsight note map beatsight_gm"
    )
    changes = {
        "midi": (".mid", lambda content: moved),
        "audacity": (".txt", lambda content: content.split(b"\n", 1)[1]),
        "mirdata-index": (".jsonl", lambda content: content.replace(b'"is_synthetic":true', b'"is_synthetic":false', 1)),
    }
    for kind, (suffix, change) in changes.items():
        path = path_of(kind, suffix)
        folder = lake.layout.at(f"bundles/{NAME}/interchange/{kind}")
        assert all(dict(engine.FORMS[kind].read(folder, clips)).values())
        before = path.read_bytes()
        path.write_bytes(change(before))
        assert path.read_bytes() != before
        assert not dict(engine.FORMS[kind].read(folder, clips))[first.stem], kind
