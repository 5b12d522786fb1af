"""MDB Drums: the rules on takes made here, and the golden facts of spec/sources.md section 11 on the real files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets import audio, events, midi
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.sources import Reading, Recording, Rejected, ingest, mdb_drums
from beatsight_assets.taxonomy import Taxonomy

ROWS = "0.020000 \t KD \n0.020000 \t CHH \n0.5284545 \t SDG \n1.000000 \t SST \n"
BEATS = "0.5\t4\n1.0 \t 1\n1.5 \t 2\n"
TONE = audio.write_wav((0.5 * np.sin(np.arange(44_100 * 2) / 20)).astype(np.float32), 44_100)


def put(root: Path, name: str, content: str | bytes) -> str:
    path = root / "MDB Drums" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return f"MDB Drums/{name}"


def annotate(root: Path, title: str, rows: str | bytes = ROWS, *, classes: str = "", beats: str = "") -> str:
    if classes:
        put(root, f"annotations/class/MusicDelta_{title}_class.txt", classes)
    if beats:
        put(root, f"annotations/beats/MusicDelta_{title}_MIX.beats", beats)
    return put(root, f"annotations/subclass/MusicDelta_{title}_subclass.txt", rows)


def read_all(root: Path, options: Mapping[str, Any] | None = None) -> list[Reading | Rejected]:
    return [mdb_drums.read(root, r, Taxonomy.shipped(), options or {}) for r in mdb_drums.scan(root, {}) if isinstance(r, Recording)]


def read_one(root: Path, options: Mapping[str, Any] | None = None) -> Reading:
    reading = read_all(root, options)[0]
    assert isinstance(reading, Reading)
    return reading


def test_sessions_are_the_drum_track_and_the_full_mix_that_is_there(tmp_path: Path) -> None:
    """A drum track is a session with or without audio, a full mix only with it; both share the group and the split."""
    timeline = annotate(tmp_path, "Rock", classes="0.02 KD", beats=BEATS)
    annotate(tmp_path, "SwingJazz")
    drums, mix = (
        put(tmp_path, f"audio/{name}", TONE) for name in ("drum_only/MusicDelta_Rock_Drum.wav", "full_mix/MusicDelta_Rock_MIX.wav")
    )
    put(tmp_path, "audio/multi-tracks/MusicDelta_Rock/MusicDelta_Rock_STEMS/MusicDelta_Rock_STEM_01.wav", TONE)
    lonely = put(tmp_path, "audio/drum_only/MusicDelta_Reggae_Drum.wav", TONE)
    first, second, third, refused = mdb_drums.scan(tmp_path, {})
    assert isinstance(first, Recording) and isinstance(second, Recording) and isinstance(third, Recording) and isinstance(refused, Rejected)
    assert [r.session.session_id for r in (first, second)] == [drums, mix]
    assert [r.session.mix_context for r in (first, second, third)] == ["drum_only", "full_mix", "drum_only"]
    assert [r.session.group_id for r in (first, second, third)] == ["song:musicdelta|rock"] * 2 + ["song:musicdelta|swingjazz"]
    assert [r.session.split_hint for r in (first, second, third)] == ["train", "train", "test"]
    assert first.timeline == timeline and drums in first.files and len(first.files) == 4 and len(third.files) == 1
    assert (first.session.label_source, first.session.confidence, first.session.midi_path) == ("human", 0.95, None)
    assert (refused.path, refused.code) == (lonely, "missing-annotation")


def test_lines_become_hits_without_velocity(tmp_path: Path) -> None:
    """Blanks and tabs, decimal seconds half up, labels with variant, bucket and technique."""
    annotate(tmp_path, "Rock")
    hits = read_one(tmp_path).hits
    voices = [hits.voices[v] for v in hits.voice.tolist()]
    assert hits.onset_us.tolist() == [20_000, 20_000, 528_455, 1_000_000]
    assert [v.label for v in voices] == ["kick", "hihat_closed", "snare", "cross_stick"]
    assert (voices[2].bucket, voices[2].techniques) == ("ghost", ("ghost_note",)) and np.isnan(hits.velocity).all()


def test_every_subclass_code_has_a_component_and_a_class() -> None:
    """The 21 codes of events.md section 8, all canonical; rimshot is not among them, so it is masked and not negative."""
    taxonomy = Taxonomy.shipped()
    assert len(mdb_drums.LABELS) == 21 and set(mdb_drums.CLASS_OF) == set(mdb_drums.LABELS)
    assert {v.label for v in mdb_drums.LABELS.values()} <= set(taxonomy.labels) - {"rimshot"}


def test_bars_and_beats_come_from_the_last_beat(tmp_path: Path) -> None:
    """A pick-up is bar 0, position 1 opens the next bar; before the first beat both are unknown."""
    annotate(tmp_path, "Rock", "0.4 KD\n0.5 KD\n0.99 KD\n1.0 KD\n1.6 KD\n", beats=BEATS)
    hits = read_one(tmp_path).hits
    assert hits.bar is not None and hits.beat is not None
    assert (hits.bar.tolist(), hits.beat.tolist()) == ([-1, 0, 0, 1, 1], [-1, 3, 3, 0, 1])
    annotate(tmp_path, "Rock", "0.4 KD\n0.5 KD\n1.0 KD\n", beats="0.4 1\n0.9 2\n1.0 1\n")
    hits = read_one(tmp_path).hits
    assert hits.bar is not None and hits.bar.tolist() == [0, 0, 1]


def test_bad_lines_and_unknown_labels_are_counted(tmp_path: Path) -> None:
    """One bad line never loses the take; an unknown label is kept as read."""
    annotate(tmp_path, "Rock", "\ufeff0.5 KD\r\n-1 KD\r\nNaN KD\r\n1e3 KD\r\n86400 KD\r\n0.6\r\n0.7 KD x\r\n\r\n0.3 XYZ\r\n")
    reading = read_one(tmp_path)
    assert reading.issues == {"bad_time": 6, "unknown_label": 1}
    assert [reading.hits.voices[v].label for v in reading.hits.voice.tolist()] == ["XYZ", "kick"]


def test_the_class_file_is_a_cross_check(tmp_path: Path) -> None:
    """Equal times and classes are silent; every other onset counts as a disagreement."""
    annotate(tmp_path, "Rock", classes="0.02 KD\n0.02 HH\n0.5284545 SD\n1.0 OT\n")
    assert read_one(tmp_path).issues == {}
    annotate(tmp_path, "Rock", classes="0.02 KD\n0.02 HH\n0.5284 SD\n1.0 SD\n")
    assert read_one(tmp_path).issues == {"annotation_disagreement": 2}


def test_mdb_pp_fills_velocities_of_matched_hits_when_asked(tmp_path: Path) -> None:
    """Within 30 ms and one family; the rest stays unknown and counts. Never a second set of events."""
    root, second = tmp_path / "mdb_drums", tmp_path / "mdb_drums_pp/annotations/midi"
    annotate(root, "BebopJazz", "0.02 KD\n0.02 CHH\n0.5 SD\n1.0 SD\n")
    second.mkdir(parents=True)
    notes = [(40_000, 35, 127), (20_000, 46, 64), (531_000, 38, 90), (1_029_000, 37, 32), (1_500_000, 36, 1)]
    (second / "MusicDelta_Bebop_Drum.mid").write_bytes(midi.write_midi(notes, channel=0))
    reading = read_one(root, {"velocity_from": "mdb_pp"})
    np.testing.assert_allclose(reading.hits.velocity, [1.0, 64 / 127, np.nan, 32 / 127], atol=1e-6)
    assert reading.issues == {"annotation_disagreement": 3} and reading.facts["mdb_pp"] == "compared"
    assert np.isnan(read_one(root).hits.velocity).all()
    (second / "MusicDelta_Bebop_Drum.mid").write_bytes(midi.write_midi([(9_000_000 + us, n, v) for us, n, v in notes]))
    shifted = read_one(root, {"velocity_from": "mdb_pp"})
    assert shifted.facts["mdb_pp"] == "other time line" and np.isnan(shifted.hits.velocity).all()


def test_ingest_accounts_for_every_file(tmp_path: Path) -> None:
    """A good take, one without a usable line, one that is no text, audio without onsets, audio cut short."""
    raw = tmp_path / "data/raw/mdb_drums"
    annotate(raw, "Rock")
    put(raw, "audio/drum_only/MusicDelta_Rock_Drum.wav", TONE)
    cut = put(raw, "audio/full_mix/MusicDelta_Rock_MIX.wav", TONE[:-2_000])
    no_rows = annotate(raw, "Punk", "nothing here\n")
    no_text = annotate(raw, "Disco", b"\xff\xfe0.5 KD")
    lonely = put(raw, "audio/drum_only/MusicDelta_Reggae_Drum.wav", TONE)
    stem = put(raw, "audio/multi-tracks/MusicDelta_Rock/MusicDelta_Rock_RAW/MusicDelta_Rock_RAW_01_01.wav", TONE)
    settings = Settings(layout=DataLayout(tmp_path / "data"), profile="demo")
    report = ingest(settings, "mdb")
    refused = pl.read_parquet(settings.layout.quarantine("mdb_drums"))
    assert dict(zip(refused["path"], refused["code"], strict=True)) == {
        cut: "truncated-audio",
        no_rows: "no-events",
        no_text: "bad-encoding",
        lonely: "missing-annotation",
    }
    assert stem not in refused["path"].to_list()
    assert (report.figures["recordings"], report.figures["candidates"], report.figures["out_of_scope"]) == (2, 7, 1)
    frame = events.read_events(settings.layout.events("mdb_drums"))
    assert set(frame["mix_context"]) == {"drum_only", "full_mix"} and frame["meter"].is_null().all()


Takes = list[tuple[Recording, Reading]]
# title: onsets, events, first s, last s, audio s (0 = absent), beats
TRACKS: dict[str, tuple[int, int, float, float, float, int]] = {
    "80sRock": (103, 67, 0.010000, 34.790000, 36.9197, 66),
    "Beatles": (154, 144, 0.011610, 34.680000, 36.3735, 66),
    "BebopJazz": (635, 615, 0.040000, 102.130000, 0, 374),
    "Britpop": (257, 208, 0.010000, 36.020000, 36.7889, 68),
    "CoolJazz": (444, 381, 0.490000, 95.930000, 0, 177),
    "Disco": (993, 890, 0.270000, 124.642540, 0, 229),
    "FunkJazz": (318, 236, 0.011610, 48.015964, 0, 90),
    "Gospel": (500, 289, 9.420000, 74.896939, 0, 277),
    "Hendrix": (128, 114, 0.020000, 17.350000, 19.8439, 32),
    "Punk": (206, 150, 0.020000, 28.435737, 28.7625, 72),
    "Rock": (72, 66, 0.000000, 12.830000, 13.0912, 24),
    "Shadows": (180, 125, 0.021769, 33.230000, 33.4910, 62),
    "Zeppelin": (124, 102, 0.000000, 17.330000, 17.4750, 33),
}


@pytest.fixture(scope="module")
def takes(shared_data: Path) -> Takes:
    """All sessions of the real folder."""
    root = shared_data / "mdb_drums"
    recordings = [r for r in mdb_drums.scan(root, {}) if isinstance(r, Recording)]
    found = [(r, mdb_drums.read(root, r, Taxonomy.shipped(), {})) for r in recordings]
    return [(recording, reading) for recording, reading in found if isinstance(reading, Reading)]


@pytest.fixture(scope="module")
def assembled(takes: Takes) -> events.Assembled:
    return events.assemble("mdb_drums", [(r.session, r.hits) for _, r in takes], Taxonomy.shipped())


@pytest.mark.data
def test_golden_sessions(takes: Takes, assembled: events.Assembled, shared_data: Path) -> None:
    """13 drum tracks, 5 of them without audio, 3 full mixes; nothing refused, nothing collapsed."""
    assert len(takes) == 16 and all(isinstance(r, Recording) for r in mdb_drums.scan(shared_data / "mdb_drums", {}))
    drums = [i for i, (r, _) in enumerate(takes) if r.session.mix_context == "drum_only"]
    mixes = [str(r.facts["title"]) for r, _ in takes if r.session.mix_context == "full_mix"]
    assert (len(drums), mixes) == (13, ["Hendrix", "Rock", "Zeppelin"])
    assert sum(takes[i][0].session.audio_path not in takes[i][0].files for i in drums) == 5
    assert (int(assembled.n_hits[drums].sum()), int(assembled.n_events[drums].sum()), int(assembled.n_collapsed.sum())) == (4_114, 3_387, 0)
    assert assembled.frame.height == 3_669


@pytest.mark.data
@pytest.mark.parametrize("title", TRACKS)
def test_golden_tracks(takes: Takes, assembled: events.Assembled, shared_data: Path, title: str) -> None:
    """Onsets, events, first and last second, seconds of audio and beats of each track."""
    n_onsets, n_events, first_s, last_s, audio_s, n_beats = TRACKS[title]
    recording, reading = next((a, b) for a, b in takes if a.facts["title"] == title and a.session.mix_context == "drum_only")
    rows = assembled.frame.filter(pl.col("session_id") == recording.session.session_id)
    assert (len(reading.hits), rows.height, reading.facts["beats"]) == (n_onsets, n_events, n_beats)
    assert (rows["onset_time"][0], int(reading.hits.onset_us.max()) / 1e6) == pytest.approx((first_s, last_s), abs=1e-6)
    sound = shared_data / "mdb_drums" / str(recording.session.audio_path)
    info = audio.probe(sound) if sound.is_file() else None
    assert (info.duration_s if info else 0) == pytest.approx(audio_s, abs=1e-4)
    assert info is None or (info.n_channels, info.rate_hz, info.subtype) == (1, 44_100, "PCM_16")


@pytest.mark.data
def test_golden_labels(takes: Takes) -> None:
    """Components, subclasses and classes of all drum tracks; onsets, events and classes of the eight with audio."""
    drums = [(a, b) for a, b in takes if a.session.mix_context == "drum_only"]
    counts = Counter(b.hits.voices[v].label for _, b in drums for v in b.hits.voice.tolist())
    assert counts == {
        "snare": 1_403, "hihat_closed": 1_311, "kick": 759, "hihat_pedal": 254, "hihat_open": 126, "ride_bow": 107, "crash": 76,
        "tom_low": 34, "tambourine": 32, "ride_bell": 6, "tom_high": 4, "tom_mid": 2,
    }  # fmt: skip
    buckets = Counter((b.hits.voices[v].bucket, b.hits.voices[v].variant) for _, b in drums for v in b.hits.voice.tolist())
    assert (buckets["ghost", None], buckets[None, "brush"], buckets[None, "floor_low"], buckets[None, "floor_high"]) == (320, 286, 30, 4)
    heard = [(a, b) for a, b in drums if a.session.audio_path in a.files]
    code = {voice: mdb_drums.CLASS_OF[label] for label, voice in mdb_drums.LABELS.items()}
    every = Counter(b.hits.voices[v] for _, b in drums for v in b.hits.voice.tolist())
    assert {c: every[v] for c, v in mdb_drums.LABELS.items() if every[v]} == {
        "CHH": 1_311, "SD": 797, "KD": 759, "SDG": 320, "SDB": 286, "PHH": 254, "OHH": 126, "RDC": 107, "CRC": 76, "TMB": 32, "LFT": 30,
        "RDB": 6, "HIT": 4, "HFT": 4, "MHT": 2,
    }  # fmt: skip
    by_class: Counter[str] = Counter()
    for voice, n in every.items():
        by_class[code[voice]] += n
    assert by_class == {"HH": 1_691, "SD": 1_403, "KD": 759, "CY": 189, "TT": 40, "OT": 32}
    classes = Counter(code[b.hits.voices[v]] for _, b in heard for v in b.hits.voice.tolist())
    assert classes == {"KD": 343, "HH": 341, "SD": 311, "CY": 159, "TT": 38, "OT": 32} and sum(classes.values()) == 1_224
    assert sum(events.assemble("mdb_drums", [(b.session, b.hits) for _, b in heard], Taxonomy.shipped()).n_events) == 976


@pytest.mark.data
def test_golden_classes_agree(shared_data: Path, tmp_path: Path) -> None:
    """Without MDB++ beside it no annotation disagrees: class and subclass files have equal times and classes in all 13 tracks."""
    (tmp_path / "mdb_drums").symlink_to(shared_data / "mdb_drums")
    readings = read_all(tmp_path / "mdb_drums")
    assert len(readings) == 16 and all(isinstance(r, Reading) and r.issues == {} and r.facts["mdb_pp"] == "absent" for r in readings)


@pytest.mark.data
def test_golden_split_and_groups(takes: Takes) -> None:
    """MIREX 2017: four of the 13 takes are test, among them the Hendrix mix; 13 groups shared by all sessions of a take."""
    hints = {str(a.facts["title"]): a.session.split_hint for a, _ in takes}
    assert {t for t, s in hints.items() if s == "test"} == {"Beatles", "Gospel", "Hendrix", "Punk"} and set(hints.values()) == {
        "train",
        "test",
    }
    assert len({a.session.group_id for a, _ in takes}) == 13


@pytest.mark.data
def test_golden_first_events(assembled: events.Assembled) -> None:
    """events.md case 13: kick at 0 and hat 20 ms later are two events; the annotated ghost note has a bucket and no velocity."""
    rock = assembled.frame.filter(pl.col("session_id").str.ends_with("drum_only/MusicDelta_Rock_Drum.wav"))
    assert rock["onset_time"][:2].to_list() == [0.0, 0.02]
    assert [c[0]["label"] for c in rock["components"][:2].to_list()] == ["kick", "hihat_closed"]
    hits = events.hits_of(assembled.frame, "techniques")
    assert hits["velocity"].is_null().all() and set(hits["dynamic_bucket"]) == {"ghost", "unknown"}
    assert hits.filter(pl.col("dynamic_bucket") == "ghost")["techniques"].list.contains("ghost_note").all()


@pytest.mark.data
def test_golden_second_annotation(shared_data: Path, takes: Takes) -> None:
    """MDB++ of the 13 takes (the spec's 14th file, `Country` with 101 notes, is not in the folder); Disco lies on another time line."""
    files = [midi.read_midi(p.read_bytes()) for p in sorted((shared_data / "mdb_drums_pp/annotations/midi").glob("*.mid"))]
    assert (len(files), sum(len(f.notes.tick) for f in files)) == (13, 4_388 - 101)
    assert Counter(int(f.notes.channel[0]) for f in files) == {0: 8, 9: 5}
    assert Counter((f.format, f.division) for f in files) == {(0, 480): 10, (1, 220): 3}
    compared = {str(a.facts["title"]): b.facts["mdb_pp"] for a, b in takes}
    assert {t for t, state in compared.items() if state != "compared"} == {"Disco"} and len(compared) == 13
