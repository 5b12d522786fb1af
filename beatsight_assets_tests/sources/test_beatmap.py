"""Beatmaps as a source: what a map says, which audio it means, what is refused; golden facts of spec/sources.md section 12."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets import events
from beatsight_assets.audio import write_wav
from beatsight_assets.errors import ConfigError
from beatsight_assets.settings import Settings
from beatsight_assets.sources import Reading, Recording, Rejected, beatmap, ingest
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import rng_for
from beatsight_assets_tests.sources.test_slakh import mutated

TAXONOMY = Taxonomy.shipped()


def sound(pitch: float, seconds: float = 3.0) -> bytes:
    return write_wav(np.sin(np.arange(int(seconds * 8_000)) * pitch).astype(np.float32) / 2, 8_000)


SONG, STEM = sound(0.1), sound(0.2)
HITS = [
    {"time": 0, "component": "kick", "velocity": 0.9},
    {"time": 2.5, "component": "ride"},
    {"time": 1000.0005, "component": "snare", "lane": 2},
    {"time": 2000, "component": "gong", "velocity": 0.4, "duration": 100},
]


def document(**changes: Any) -> dict[str, Any]:
    """A map with every required key; `changes` go to the part that has the key."""
    obj: dict[str, Any] = {
        "version": "1.1.0",
        "metadata": {"title": "A", "artist": "B", "creator": "C", "difficulty": 2.0, "beatmapId": "x", "createdAt": "2026-01-01T00:00:00Z",
                     "modifiedAt": "2026-01-01T00:00:00Z"},
        "audio": {"filename": "song.wav", "hash": "sha256:" + sha256(SONG).hexdigest(), "duration": 3_000, "sampleRate": 8_000},
        "timing": {"bpm": 120.0, "offset": 0, "timeSignature": "4/4"},
        "drumKit": {"components": ["kick", "snare", "ride", "crash"]},
        "hitObjects": HITS,
    }  # fmt: skip
    for key, value in changes.items():
        place = next((obj[part] for part in ("audio", "timing", "metadata") if key in obj[part] or key.startswith("drumStem")), obj)
        place = obj["timing"] if key == "timingPoints" else obj if key in ("editor", "hitObjects", "version") else place
        place[key] = value
    return obj


def put(root: Path, name: str = "a/map.bsm", obj: Mapping[str, Any] | None = None, *, song: bytes | None = SONG) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document() if obj is None else obj))
    if song is not None:
        (path.parent / "song.wav").write_bytes(song)
    return path


def read_one(root: Path) -> Reading | Rejected:
    (found,) = beatmap.scan(root, {})
    return beatmap.read(root, found, TAXONOMY, {}) if isinstance(found, Recording) else found


def test_a_map_becomes_a_session(tmp_path: Path) -> None:
    """Times go half up to microseconds, no velocity stays unknown, an unknown component is kept and counted, lanes and lengths are ignored."""
    put(tmp_path)
    reading = read_one(tmp_path)
    assert isinstance(reading, Reading)
    session, hits = reading.session, reading.hits
    assert (session.session_id, session.audio_path, session.mix_context) == ("a/map.bsm", "a/song.wav", "full_mix")
    assert session.group_id == "audio:" + sha256(SONG).hexdigest() and session.midi_path is None
    assert hits.onset_us.tolist() == [0, 2_500, 1_000_001, 2_000_000]
    assert [hits.voices[v].label for v in hits.voice] == ["kick", "ride_bow", "snare", "gong"]
    np.testing.assert_array_equal(hits.velocity, np.array([0.9, np.nan, np.nan, 0.4], dtype=np.float32))
    assert reading.issues == {"unknown_label": 1} and hits.offset_us is None
    assert reading.coverage == ("kick", "snare", "ride_bow", "crash"), "the map's kit is what it could express"


@pytest.mark.parametrize("spelled", ["Song.WAV", "SONG.wav"])
def test_audio_is_found_as_the_disk_spells_it(tmp_path: Path, spelled: str) -> None:
    """Maps of systems that do not tell cases apart find their audio, and it must still be the audio they were made for."""
    path = put(tmp_path, song=None)
    (path.parent / spelled).write_bytes(SONG)
    reading = read_one(tmp_path)
    assert isinstance(reading, Reading) and reading.session.audio_path == f"a/{spelled}"
    (path.parent / spelled).write_bytes(STEM)
    refused = read_one(tmp_path)
    assert isinstance(refused, Rejected) and refused.code == "hash-mismatch"
    (path.parent / spelled).unlink()
    (path.parent / spelled).symlink_to("/etc/hostname")
    escaped = read_one(tmp_path)
    assert isinstance(escaped, Rejected) and escaped.code == "path-escape"


def test_an_umlaut_in_two_characters_is_the_same_name(tmp_path: Path) -> None:
    """A folder copied from a Mac: the map says one character, the disk has two."""
    path = put(tmp_path, obj=document(filename=unicodedata.normalize("NFC", "Größe.wav")), song=None)
    there = unicodedata.normalize("NFD", "Größe.wav")
    (path.parent / there).write_bytes(SONG)
    reading = read_one(tmp_path)
    assert isinstance(reading, Reading) and reading.session.audio_path == f"a/{there}"


def test_tempo_and_meter_come_from_the_timing_points(tmp_path: Path) -> None:
    """The point in force counts; before the first its values hold; a point without meter keeps the one before; odd meters are counted."""
    points = [{"time": 1000, "bpm": 90.0, "timeSignature": "7/8"}, {"time": 1500, "bpm": 180.0}, {"time": 500, "bpm": 60.5},
              {"time": 2000, "bpm": 100.0, "timeSignature": "many"}]  # fmt: skip
    hits = [{"time": t, "component": "kick"} for t in (0, 500, 980, 1000, 1480, 1500, 2000)]
    put(tmp_path, obj=document(timingPoints=points, hitObjects=hits))
    reading = read_one(tmp_path)
    assert isinstance(reading, Reading)
    frame = events.assemble("beatmap", [(reading.session, reading.hits)], TAXONOMY).frame
    assert frame["tempo_bpm"].to_list() == [60.5, 60.5, 60.5, 90.0, 90.0, 180.0, 100.0]
    assert frame["meter"].to_list() == ["4/4", "4/4", "4/4", "7/8", "7/8", "7/8", None]
    assert reading.issues == {"bad_value": 1}


@pytest.mark.parametrize(
    ("editor", "confidence", "machine"),
    [
        pytest.param(None, 0.9, False, id="no model took part"),
        pytest.param({"aiGenerationMetadata": {"manualEdits": True}}, 0.7, False, id="corrected by hand"),
        pytest.param({"aiGenerationMetadata": {"manualEdits": False}}, 0.5, True, id="heard by a model"),
    ],
)
def test_who_made_the_hits_is_never_lost(tmp_path: Path, editor: dict[str, Any] | None, confidence: float, machine: bool) -> None:
    """Machine labels carry confidence 0.5 and say so in every event, so that they cannot train the next model unnoticed."""
    put(tmp_path, obj=document() if editor is None else document(editor=editor))
    reading = read_one(tmp_path)
    assert isinstance(reading, Reading)
    frame = events.assemble("beatmap", [(reading.session, reading.hits)], TAXONOMY).frame
    assert {(json.loads(e)["confidence"], json.loads(e).get("machine_made", False)) for e in frame["extras"]} == {(confidence, machine)}
    assert reading.facts["machine_made"] is machine


def test_the_drum_stem_is_preferred_and_the_group_is_the_song(tmp_path: Path) -> None:
    """With a stem the audio is drums only; a map of the same song without it is in the same group; an absent stem falls back to the song."""
    with_stem = document(drumStem="stem.wav", drumStemHash="sha256:" + sha256(STEM).hexdigest())
    put(tmp_path, "a/one.bsm", with_stem)
    put(tmp_path, "a/two.bsm")
    (tmp_path / "a/stem.wav").write_bytes(STEM)
    one, two = (r for r in beatmap.scan(tmp_path, {}) if isinstance(r, Recording))
    assert (one.session.audio_path, one.session.mix_context) == ("a/stem.wav", "drum_only")
    assert (two.session.audio_path, two.session.mix_context) == ("a/song.wav", "full_mix")
    assert one.session.group_id == two.session.group_id and one.files == ("a/one.bsm", "a/song.wav", "a/stem.wav")
    (tmp_path / "a/stem.wav").unlink()
    one, _ = (r for r in beatmap.scan(tmp_path, {}) if isinstance(r, Recording))
    assert (one.session.audio_path, one.session.mix_context, one.files) == ("a/song.wav", "full_mix", ("a/one.bsm", "a/song.wav"))


def pascal(obj: Any) -> Any:
    if isinstance(obj, list):
        return [pascal(x) for x in obj]
    return {k[0].upper() + k[1:]: pascal(v) for k, v in obj.items()} if isinstance(obj, dict) else obj


def test_bs_is_the_same_in_pascal_case(tmp_path: Path) -> None:
    """A .bs file gives the same hits, audio and confidence as its .bsm twin."""
    obj = document(editor={"aiGenerationMetadata": {"manualEdits": False}}, timingPoints=[{"time": 0, "bpm": 99.0}])
    put(tmp_path / "m", "map.bsm", obj)
    put(tmp_path / "s", "map.bs", pascal(obj))
    ours, theirs = read_one(tmp_path / "m"), read_one(tmp_path / "s")
    assert isinstance(ours, Reading) and isinstance(theirs, Reading)
    assert theirs.session.session_id == "map.bs" and (theirs.session.group_id, theirs.session.confidence) == (ours.session.group_id, 0.5)
    for name in ("onset_us", "voice", "velocity", "tempo_bpm", "meter"):
        np.testing.assert_array_equal(getattr(ours.hits, name), getattr(theirs.hits, name))
    assert ours.hits.voices == theirs.hits.voices


CASES: dict[str, tuple[bytes, str]] = {
    "not json": (b"{", "bad-metadata"),
    "no hit objects": (json.dumps({k: v for k, v in document().items() if k != "hitObjects"}).encode(), "bad-metadata"),
    "another version": (json.dumps(document(version="2.0")).encode(), "bad-metadata"),
    "a key twice": (b'{"version": "1.0", "version": "1.1"}', "bad-metadata"),
    "time is NaN": (json.dumps(document(hitObjects=[{"time": float("nan"), "component": "kick"}])).encode(), "bad-metadata"),
    "another song": (json.dumps(document(hash="sha256:" + "0" * 64)).encode(), "hash-mismatch"),
    "audio escapes": (json.dumps(document(filename="../../../etc/passwd")).encode(), "path-escape"),
    "audio is absolute": (json.dumps(document(filename="/etc/passwd")).encode(), "path-escape"),
    "stem escapes": (json.dumps(document(drumStem="../../x.wav")).encode(), "path-escape"),
    "no hits": (json.dumps(document(hitObjects=[])).encode(), "no-events"),
    "empty file": (b"", "bad-metadata"),
    "bad bpm": (json.dumps(document(timingPoints=[{"time": 0, "bpm": 0}])).encode(), "bad-metadata"),
}


@pytest.mark.parametrize("case", list(CASES), ids=str)
def test_a_refused_map_is_one_row(settings: Settings, case: str) -> None:
    """Every refusal has its code, one row, and stops no other map."""
    content, code = CASES[case]
    root = settings.layout.raw("beatmaps")
    put(root, "a/good.bsm")
    put(root, "b/bad.bsm").write_bytes(content)
    report = ingest(settings, "beatmap")
    refused = pl.read_parquet(settings.layout.quarantine("beatmap"))
    assert refused.select("path", "code").rows() == [("b/bad.bsm", code)]
    f = report.figures
    assert (f["recordings"], f["candidates"]) == (1, 4) and f["candidates"] == f["used"] + f["rejected"] + f["out_of_scope"]


def test_without_its_audio_a_map_is_still_a_session(settings: Settings) -> None:
    """Absent audio is counted, the events stay."""
    put(settings.layout.raw("beatmaps"), song=None)
    report = ingest(settings, "beatmap")
    assert (report.figures["recordings"], report.figures["rejected"]) == (1, 0)
    (issues,) = pl.read_parquet(settings.layout.provenance("beatmap"))["issues"]
    assert json.loads(issues)["audio_absent"] == 1


def test_an_option_of_another_type_is_a_config_error(tmp_path: Path) -> None:
    """ "no" is no truth value."""
    with pytest.raises(ConfigError):
        list(beatmap.scan(tmp_path, {"include_generated": "no"}))


def test_mutated_maps_never_stop_a_run(settings: Settings) -> None:
    """500 damaged files: each is a session or exactly one row, no internal error, every file is accounted for."""
    rng = rng_for(12, "bsm")
    root = settings.layout.raw("beatmaps")
    put(root, "song.bsm")
    good = json.dumps(document(editor={"aiGenerationMetadata": {"manualEdits": True}}, timingPoints=[{"time": 0, "bpm": 99.0}])).encode()
    other = json.dumps(pascal(document())).encode()
    for n in range(500):
        (root / f"{n:03d}.{'bs' if n % 5 == 0 else 'bsm'}").write_bytes(mutated(other if n % 5 == 0 else good, rng))
    report = ingest(settings, "beatmap")
    refused = pl.read_parquet(settings.layout.quarantine("beatmap"))
    f = report.figures
    assert f["recordings"] + refused.height == 501 and refused["path"].n_unique() == refused.height == f["rejected"]
    assert set(refused["code"]) <= {"bad-metadata", "hash-mismatch", "path-escape", "no-events"}
    assert refused.height > 200 and f["recordings"] > 20, "the mutations do both"
    assert f["candidates"] == f["used"] + f["rejected"] + f["out_of_scope"] == 502


@pytest.mark.data
def test_golden_simple_beat(settings: Settings, shared_data: Path) -> None:
    """simple_beat.bsm: hash matches, 56 hits in 34 events, components, sizes, buckets and the id of its first event."""
    root = settings.layout.raw("beatmaps")
    root.parent.mkdir(parents=True)
    root.symlink_to(shared_data / "beatsight_formats")
    report = ingest(settings, "beatmap")
    assert (report.figures["recordings"], report.figures["hits"], report.figures["events"], report.figures["rejected"]) == (1, 56, 34, 0)
    frame = events.read_events(settings.layout.events("beatmap"))
    assert frame["event_id"][0] == "23932797-95f2-565d-aed9-f37788637c5e"
    first = [c["label"] for c in frame["components"][0].to_list()]
    assert first == ["kick", "hihat_closed", "crash"] and frame["onset_time"].max() == 7.75
    assert dict(frame["components"].list.len().value_counts().iter_rows()) == {1: 18, 2: 10, 3: 6}
    assert events.label_counts(frame) == {
        "hihat_closed": 32, "kick": 8, "snare": 8, "ride_bow": 4, "crash": 2, "tom_mid": 1, "tom_low": 1,
    }  # fmt: skip
    assert dict(events.hits_of(frame)["dynamic_bucket"].value_counts().iter_rows()) == {"medium": 37, "accent": 19}
    (row,) = pl.read_parquet(settings.layout.provenance("beatmap")).to_dicts()
    facts = json.loads(row["facts"])
    assert (facts["rate_hz"], facts["channels"], round(facts["duration_seconds"] * 44_100)) == (44_100, 1, 352_800)
    assert row["processing_chain"] == ["beatmap_import"] and row["group_id"] == "audio:" + row["hashes"][1]["sha256"]
