"""Groove: the rules on a few takes made here, and the golden facts of spec/sources.md section 1 on the real files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets import events, midi
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.sources import Reading, Recording, Rejected, groove, ingest
from beatsight_assets.taxonomy import Taxonomy

HEADER = "drummer,session,id,style,bpm,beat_type,time_signature,midi_filename,audio_filename,duration,split\n"
DEVICES: Mapping[str, Any] = {"devices": {"drummer2": "td30_socal"}}
FUNK = "drummer1/eval_session/1_funk-groove1_138_beat_4-4.mid"


def row(name: str, *, split: str = "train", audio: bool = True, meter: str = "4-4", duration: str = "2.5") -> str:
    drummer, session, file = name.split("/")
    sound = name.replace(".mid", ".wav") if audio else ""
    return f"{drummer},{drummer}/{session},{drummer}/{session}/{file.partition('_')[0]},rock,120,beat,{meter},{name},{sound},{duration},{split}\n"


def take(root: Path, name: str, notes: list[tuple[int, int, int]], **options: Any) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(midi.write_midi(notes, **options))
    return name


def read_all(root: Path, options: Mapping[str, Any] = DEVICES) -> list[Reading]:
    taxonomy = Taxonomy.shipped()
    found = [groove.read(root, r, taxonomy, options) for r in groove.scan(root, options) if isinstance(r, Recording)]
    assert not any(isinstance(reading, Rejected) for reading in found)
    return [reading for reading in found if isinstance(reading, Reading)]


def names(reading: Reading) -> list[tuple[str, str | None]]:
    return [(reading.hits.voices[v].label, reading.hits.voices[v].strike) for v in reading.hits.voice.tolist()]


def test_a_take_says_who_played_what_when(tmp_path: Path) -> None:
    """Identity, group, split, audio place, confidence and csv facts of one take."""
    name = take(tmp_path, "drummer1/session1/1_rock_120_beat_4-4.mid", [(0, 36, 64), (500_000, 38, 127)])
    (tmp_path / "info.csv").write_text(HEADER + row(name, split="validation"))
    (reading,) = read_all(tmp_path)
    session = reading.session
    assert (session.session_id, session.midi_path, session.audio_path) == (name, name, name.replace(".mid", ".wav"))
    assert (session.group_id, session.drummer_id, session.kit_id) == ("gmd:drummer1/session1/1", "gmd:drummer1", "td11")
    assert (session.split_hint, session.confidence, session.is_synthetic, session.mix_context) == ("val", 1.0, False, "drum_only")
    recording = next(iter(groove.scan(tmp_path, DEVICES)))
    assert isinstance(recording, Recording)
    assert recording.facts == {"style": "rock", "beat_type": "beat", "bpm": 120.0, "duration_seconds": 2.5, "time_signature": "4/4"}
    assert recording.files == (name,) and names(reading) == [("kick", None), ("snare", "head")]


@pytest.mark.parametrize(("cc4", "openness"), [(66, 0.266667), (0, 1.0), (90, 0.0), (127, 0.0), (None, None)])
def test_openness_of_note_46(tmp_path: Path, cc4: int | None, openness: float | None) -> None:
    """events.md case 4: 90 is closed, 0 is open, no pedal seen is unknown."""
    pedal = [] if cc4 is None else [(0, cc4)]
    name = take(tmp_path, "drummer1/session1/1_rock_120_beat_4-4.mid", [(1_000, 46, 100)], pedal=pedal)
    (tmp_path / "info.csv").write_text(HEADER + row(name))
    hits = read_all(tmp_path)[0].hits
    assert hits.openness is not None
    assert hits.openness[0] == pytest.approx(openness, abs=1e-6) if openness is not None else np.isnan(hits.openness[0])


def test_notes_mean_what_the_module_means(tmp_path: Path) -> None:
    """events.md cases 5 and 7: the TD-11 notes that a General MIDI table gets wrong."""
    notes = [(i * 100_000, n, 100) for i, n in enumerate((22, 26, 55, 52, 58, 59))]
    name = take(tmp_path, "drummer1/session1/1_rock_120_beat_4-4.mid", notes, pedal=[(0, 90)])
    (tmp_path / "info.csv").write_text(HEADER + row(name))
    (reading,) = read_all(tmp_path)
    assert names(reading) == [
        ("hihat_closed", "edge"),
        ("hihat_open", "edge"),
        ("crash", "edge"),
        ("crash2", "edge"),
        ("tom_low", "rim"),
        ("ride_edge", "edge"),
    ]
    assert reading.hits.openness is not None and reading.hits.openness[0] == 0.0


def test_drummer2_opens_hats_with_the_pedal(tmp_path: Path) -> None:
    """events.md case 6: on the TD-30 kit CC4 decides; below 0.35 it is closed, without pedal it is open."""
    notes = [(i * 100_000, n, 100) for i, n in ((0, 46), (1, 46), (2, 26), (3, 46), (4, 36))]
    pedal = [(90_000, 69), (190_000, 0), (290_000, 58)]
    name = take(tmp_path, "drummer2/session3/1_rock_120_beat_4-4.mid", notes, pedal=pedal)
    (tmp_path / "info.csv").write_text(HEADER + row(name, audio=False))
    (reading,) = read_all(tmp_path)
    assert names(reading) == [("hihat_open", "bow"), ("hihat_closed", "bow"), ("hihat_open", "edge"), ("hihat_open", "bow"), ("kick", None)]
    np.testing.assert_allclose(reading.hits.openness, [np.nan, 0.233333, 1.0, 0.355556, np.nan], atol=1e-6)
    assert (reading.note_map, reading.session.kit_id, reading.session.confidence) == ("td30_socal", "td30", 0.8)
    assert (reading.session.audio_path, reading.session.mix_context) == (None, "midi_only")
    assert names(read_all(tmp_path, {})[0])[1] == ("hihat_open", "bow")


def test_a_choke_marks_the_last_stroke_of_its_cymbal(tmp_path: Path) -> None:
    """Poly aftertouch on both crash notes at once is one choke; value 0, other drums and far strokes are none."""
    chokes = [(1_100_000, 49, 60), (1_100_000, 55, 60), (2_000_000, 36, 60), (2_100_000, 49, 0), (9_000_000, 57, 60)]
    name = take(
        tmp_path,
        "drummer1/session1/1_rock_120_beat_4-4.mid",
        [(0, 49, 90), (1_000_000, 55, 90), (1_500_000, 36, 90), (3_000_000, 57, 90)],
        aftertouch=chokes,
    )
    (tmp_path / "info.csv").write_text(HEADER + row(name))
    assert read_all(tmp_path)[0].hits.stated == {1: ("cymbal_choke",)}


def test_csv_damage_is_normalised_counted_or_refused(tmp_path: Path) -> None:
    """Backslashes and cp949 are read, a date for a meter is counted, an absent file and an escaping path get a row each."""
    name = take(tmp_path, "drummer1/session1/1_rock_120_beat_4-4.mid", [(0, 36, 64)])
    lines = row(name, meter="4월 4일").replace(name, name.replace("/", "\\")) + row("drummer1/session1/2_rock_120_beat_4-4.mid")
    lines += row("drummer1/session1/3_rock_120_beat_4-4.mid").replace("drummer1/session1/3_rock_120_beat_4-4.mid", "../outside.mid")
    (tmp_path / "info.csv").write_bytes((HEADER + lines).encode("cp949"))
    take(tmp_path, "drummer3/session1/7_funk_90_fill_4-4.mid", [(0, 36, 64)])
    first, second, third, fourth = groove.scan(tmp_path, DEVICES)
    assert (
        isinstance(first, Recording) and first.timeline == name and first.issues == {"bad_value": 1} and "time_signature" not in first.facts
    )
    assert isinstance(second, Rejected) and second.code == "missing-midi" and second.is_absent
    assert isinstance(third, Rejected) and third.code == "path-escape"
    assert isinstance(fourth, Recording) and fourth.session.group_id == "gmd:drummer3/session1/7"
    assert (fourth.session.split_hint, fourth.session.drummer_id, fourth.session.audio_path) == (None, "gmd:drummer3", None)


def test_ingest_accounts_for_every_file(tmp_path: Path) -> None:
    """One good take, one damaged, one absent, one without drums: four outcomes, and the event row of the good one is exact."""
    raw = tmp_path / "data/raw/groove_midi"
    good = take(
        raw,
        "drummer1/session1/1_rock_120_beat_4-4.mid",
        [(0, 36, 60), (0, 36, 90), (8_333, 42, 90), (8_333, 22, 60), (500_000, 38, 20)],
        pedal=[(0, 90)],
    )
    bad = take(raw, "drummer1/session1/2_rock_120_beat_4-4.mid", [(0, 36, 60), (100_000, 36, 60)])
    (raw / bad).write_bytes((raw / bad).read_bytes()[:-9])
    empty = take(raw, "drummer1/session1/3_rock_120_beat_4-4.mid", [(0, 39, 60)])
    (raw / "info.csv").write_text(HEADER + row(good) + row(bad) + row(empty) + row("drummer1/session1/4_rock_120_beat_4-4.mid"))
    (raw / "drummer1/Icon").touch()
    settings = Settings(layout=DataLayout(tmp_path / "data"), profile="demo")
    report = ingest(settings, "groove")
    assert (report.figures["recordings"], report.figures["rejected"], report.figures["absent"], report.figures["candidates"]) == (
        1,
        2,
        1,
        3,
    )
    refused = pl.read_parquet(settings.layout.quarantine("groove_mididataset"))
    assert dict(zip(refused["path"], refused["code"], strict=True)) == {
        bad: "truncated-midi",
        empty: "no-events",
        "drummer1/session1/4_rock_120_beat_4-4.mid": "missing-midi",
    }
    frame = events.read_events(settings.layout.events("groove_mididataset"))
    assert (
        frame["onset_time"].to_list() == [0.0, 0.5]
        and frame["tempo_bpm"].to_list() == [120.0, 120.0]
        and frame["meter"].to_list() == ["4/4"] * 2
    )
    kick, hat = frame["components"][0].to_list()
    assert (kick["label"], round(kick["velocity"], 6), hat["strike_position"], hat["openness"]) == ("kick", 0.708661, "bow", 0.0)
    assert json.loads(frame["extras"][0])["collapsed_hits"] == 2
    assert frame["components"][1][0]["dynamic_bucket"] == "ghost"


Takes = list[tuple[Recording, Reading]]


@pytest.fixture(scope="module")
def takes(shared_data: Path) -> Takes:
    """All takes of the real folder."""
    root, taxonomy = shared_data / "groove_midi", Taxonomy.shipped()
    found: Takes = []
    for recording in groove.scan(root, DEVICES):
        if isinstance(recording, Recording):
            reading = groove.read(root, recording, taxonomy, DEVICES)
            assert isinstance(reading, Reading)
            found.append((recording, reading))
    return found


@pytest.fixture(scope="module")
def assembled(takes: Takes) -> events.Assembled:
    return events.assemble("groove_mididataset", [(r.session, r.hits) for _, r in takes], Taxonomy.shipped())


def labels_of(readings: list[Reading]) -> np.ndarray:
    return np.concatenate([np.array([v.label for v in r.hits.voices])[r.hits.voice] for r in readings])


def column(readings: list[Reading], name: str) -> np.ndarray:
    return np.concatenate([getattr(r.hits, name) for r in readings])


@pytest.mark.data
def test_golden_csv(takes: Takes, shared_data: Path) -> None:
    """Takes, splits, beat types, time signatures and seconds of the csv; 158 rows without their file."""
    scanned = list(groove.scan(shared_data / "groove_midi", DEVICES))
    absent = [r for r in scanned if isinstance(r, Rejected)]
    assert (len(scanned), len(takes), len(absent), {r.code for r in absent}) == (1_150, 992, 158, {"missing-midi"})
    facts = [recording.facts for recording, _ in takes]
    assert Counter(r.session.split_hint for r, _ in takes) == {"train": 782, "val": 111, "test": 99}
    assert Counter(f["beat_type"] for f in facts) == {"beat": 346, "fill": 646}
    assert Counter(f["time_signature"] for f in facts) == {"4/4": 982, "6/8": 5, "3/4": 4, "5/4": 1}
    assert sum(f["duration_seconds"] for f in facts) == pytest.approx(27_336.353, abs=5e-4)
    assert sum(r.session.audio_path is None for r, _ in takes) == 3
    assert len({r.session.group_id for r, _ in takes}) == 992
    table = groove.read_csv(shared_data / "groove_midi/info.csv", required=groove.COLUMNS)
    assert Counter(r["drummer"] for r in table if not r["audio_filename"]) == {"drummer2": 18, "drummer8": 42}


@pytest.mark.data
def test_golden_midi_agrees_with_the_csv(takes: Takes) -> None:
    """Each take has the csv's tempo and meter, no problem and no unmapped note."""
    for recording, reading in takes:
        assert reading.issues == {}
        assert 60e6 / reading.facts["tempo_map"][0][1] == pytest.approx(recording.facts["bpm"], abs=0.51)
        assert reading.facts["meters"] == [recording.facts["time_signature"]]
        assert reading.hits.bar is not None and reading.hits.bar.min() >= 0


@pytest.mark.data
def test_golden_events(assembled: events.Assembled) -> None:
    """Hits, events, collapsed hits, sizes and splits of events, components and buckets."""
    frame = assembled.frame
    assert (int(assembled.n_hits.sum()), frame.height, int(assembled.n_collapsed.sum())) == (228_457, 189_847, 169)
    sizes = frame["components"].list.len()
    assert int(sizes.sum()) == 228_288
    assert dict(sizes.value_counts().iter_rows()) == {1: 153_788, 2: 33_758, 3: 2_221, 4: 79, 5: 1}
    assert dict(frame["split_hint"].value_counts().iter_rows()) == {"train": 151_370, "val": 21_538, "test": 16_939}
    assert events.label_counts(frame) == {
        "kick": 41_280, "snare": 48_310, "rimshot": 9_859, "cross_stick": 4_166, "hihat_closed": 35_693, "hihat_open": 7_398,
        "hihat_pedal": 24_860, "ride_bow": 28_025, "ride_bell": 2_272, "ride_edge": 1_646, "crash": 1_762, "crash2": 2_613,
        "tom_high": 10_246, "tom_mid": 1_761, "tom_low": 8_397,
    }  # fmt: skip
    buckets = events.hits_of(frame)["dynamic_bucket"].value_counts()
    assert dict(buckets.iter_rows()) == {"ghost": 30_279, "light": 82_489, "medium": 68_631, "accent": 46_889}
    assert frame["event_id"].n_unique() == frame.height
    together = frame.select(labels=pl.col("components").list.eval(pl.element().struct.field("label")))

    def n_with(*labels: str) -> int:
        return together.filter(pl.sum_horizontal(pl.col("labels").list.contains(name) for name in labels) > 1).height

    assert (n_with("hihat_closed", "hihat_open"), n_with("snare", "rimshot", "cross_stick"), n_with("ride_bow", "ride_bell")) == (0, 12, 2)
    stated = frame["techniques"].explode(empty_as_null=False, keep_nulls=False).value_counts()
    assert dict(stated.iter_rows()) == {"cymbal_choke": 6}


@pytest.mark.data
def test_golden_hits_before_collapsing(takes: Takes) -> None:
    """Labels of all note-ons, and how many of one note lie close together."""
    counts = Counter(labels_of([r for _, r in takes]).tolist())
    expected = {"kick": 41_311, "snare": 48_340, "cross_stick": 4_168, "hihat_closed": 35_696, "hihat_open": 7_404, "hihat_pedal": 24_876}
    expected |= {"ride_bow": 28_075, "ride_edge": 1_647, "crash": 1_764, "crash2": 2_614, "tom_high": 10_273}
    assert {label: counts[label] for label in expected} == expected


@pytest.mark.data
def test_golden_notes(takes: Takes, shared_data: Path) -> None:
    """Note-ons of each of the 22 pads (events.md section 7), equal notes at one tick and less than 20 ms apart, the 12 messages of 6 chokes."""
    n_same = n_near = 0
    pads: Counter[int] = Counter()
    chokes: Counter[str] = Counter()
    for recording, _ in takes:
        file = midi.read_midi((shared_data / "groove_midi" / recording.timeline).read_bytes())
        notes = file.notes
        pads.update(notes.note.tolist())
        chokes.update([recording.timeline] * int((file.aftertouch.value > 0).sum()))
        order = np.lexsort((notes.tick, notes.note))
        repeats = np.diff(notes.note[order]) == 0
        n_same += int((repeats & (np.diff(notes.tick[order]) == 0)).sum())
        n_near += int((repeats & (np.diff(notes.onset_us[order]) < 20_000)).sum())
    assert (n_same, n_near) == (19, 652)
    assert pads == {
        36: 41_311, 38: 48_340, 40: 9_859, 37: 4_168, 42: 21_460, 22: 13_721, 46: 3_406, 26: 4_513, 44: 24_876, 51: 28_075, 59: 1_647,
        53: 2_272, 49: 193, 55: 1_571, 57: 1_736, 52: 878, 48: 9_620, 50: 653, 45: 1_540, 47: 221, 43: 8_164, 58: 233,
    }  # fmt: skip
    assert (len(chokes), chokes.total()) == (3, 12)


@pytest.mark.data
def test_golden_openness(takes: Takes) -> None:
    """Pedal figures of both modules, per hit."""
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    td11 = [r for _, r in takes if r.note_map == "td11"]
    td30 = [r for _, r in takes if r.note_map == "td30_socal"]

    def openness(readings: list[Reading], label: str) -> np.ndarray:
        values = column(readings, "openness")[labels_of(readings) == label]
        return values[~np.isnan(values)].astype(np.float64)

    closed, opened = openness(td11, "hihat_closed"), openness(td11, "hihat_open")
    assert (len(closed), len(opened)) == (35_142, 6_443)
    np.testing.assert_allclose(np.quantile(closed, quantiles), [0, 0, 0, 0, 0.0556], atol=1e-3)
    np.testing.assert_allclose(np.quantile(opened, quantiles), [0, 0.2333, 0.6333, 0.9778, 1], atol=1e-3)
    assert [closed.mean(), (closed == 0).mean(), opened.mean(), (opened == 0).mean()] == pytest.approx(
        [0.0210, 0.9427, 0.5775, 0.0944], abs=1e-3
    )
    assert ((opened == 0).sum(), (closed > 0.35).sum()) == (608, 858), "labels stand, the pedal disagrees"
    closed, opened = openness(td30, "hihat_closed"), openness(td30, "hihat_open")
    assert (len(closed), len(opened)) == (515, 947)
    assert (np.median(closed), np.median(opened)) == pytest.approx((0.2, 1.0), abs=1e-3)
    every = [r for _, r in takes]
    labels, unknown, raw = labels_of(every), np.isnan(column(every, "openness")), column(every, "openness_raw")
    assert (int((unknown & (labels == "hihat_closed")).sum()), int((unknown & (labels == "hihat_open")).sum())) == (39, 14)
    pedal = raw[labels == "hihat_pedal"]
    assert int((pedal < 0).sum()) == 244
    np.testing.assert_allclose(np.quantile(pedal[pedal >= 0], quantiles), [0, 27, 60, 77, 90], atol=1e-3)


@pytest.mark.data
def test_golden_drummers(takes: Takes, assembled: events.Assembled) -> None:
    """Files, hits and events per drummer."""
    table: dict[str, list[int]] = {}
    for (recording, _), n_hits, n_events in zip(takes, assembled.n_hits.tolist(), assembled.n_events.tolist(), strict=True):
        sums = table.setdefault(str(recording.session.drummer_id).removeprefix("gmd:drummer"), [0, 0, 0])
        sums[:] = [sums[0] + 1, sums[1] + n_hits, sums[2] + n_events]
    assert table == {
        "1": [494, 116_019, 96_645],
        "2": [3, 23_234, 17_977],
        "3": [98, 10_089, 8_228],
        "6": [15, 12_354, 10_681],
        "7": [342, 52_009, 44_162],
        "9": [30, 7_946, 6_233],
        "10": [10, 6_806, 5_921],
    }


SINGLE_FILES = {
    FUNK: (334, 27.769953, {"ride_bow": 126, "hihat_pedal": 123, "snare": 94, "kick": 54, "rimshot": 6, "crash2": 3, "crash": 1,
                            "cross_stick": 1, "tom_low": 1, "ride_bell": 1}),
    "drummer1/session1/1_funk_80_beat_4-4.mid": (633, 86.604688, {"hihat_closed": 400, "snare": 179, "kick": 120, "hihat_open": 30,
                                                                "hihat_pedal": 24, "cross_stick": 18, "rimshot": 1, "tom_low": 1}),
    "drummer2/session3/1_rock-shuffle_85_beat_4-4.mid": (1_925, 203.313134, {"hihat_closed": 256, "hihat_open": 11}),
    "drummer6/session3/4_rock_127_beat_4-4.mid": (900, 164.262814, {}),
}  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("name", SINGLE_FILES)
def test_golden_single_files(assembled: events.Assembled, name: str) -> None:
    """Events, last onset and components of single takes."""
    n_events, last_s, labels = SINGLE_FILES[name]
    frame = assembled.frame.filter(pl.col("session_id") == name)
    counts = events.label_counts(frame)
    assert frame.height == n_events
    assert frame["onset_time"][-1] == pytest.approx(last_s, abs=1e-6)
    assert {label: counts.get(label, 0) for label in labels} == labels
    if name == FUNK:
        assert counts == labels and frame["tempo_bpm"][0] == pytest.approx(137.999876, abs=1e-6)
    if name.startswith("drummer6"):
        assert frame["techniques"].explode(empty_as_null=False, keep_nulls=False).to_list() == ["cymbal_choke"] * 4


@pytest.mark.data
def test_golden_first_event(assembled: events.Assembled) -> None:
    """events.md case 14: one event row in full."""
    first = assembled.frame.filter(pl.col("session_id") == FUNK).row(0, named=True)
    assert (first["event_id"], first["onset_time"]) == ("d0c7e851-d761-5167-899e-d93dfcb1fb69", 0.002717)
    assert [(c["label"], round(c["velocity"], 6), c["dynamic_bucket"], c["strike_position"]) for c in first["components"]] == [
        ("kick", 0.503937, "medium", None),
        ("ride_bow", 0.433071, "light", "bow"),
        ("crash", 0.472441, "light", "edge"),
    ]


@pytest.mark.data
@pytest.mark.parametrize(("name", "n_backslash"), [("info.mksoo+pz-assign.csv", 1_150), ("info.cid2rrrr+LSTM_Drummer.csv", 0)])
def test_golden_damaged_csv(shared_data: Path, tmp_path: Path, name: str, n_backslash: int) -> None:
    """The two spreadsheet victims: cp949, backslash paths, meters turned into dates, all 1,150 rows usable."""
    data = (shared_data / "groove_midi_variants" / name).read_bytes()
    with pytest.raises(UnicodeDecodeError):
        data.decode()
    (tmp_path / "info.csv").write_bytes(data)
    rows = groove.read_csv(tmp_path / "info.csv", required=groove.COLUMNS)
    assert len(rows) == 1_150 and sum("\\" in r["midi_filename"] for r in rows) == n_backslash
    assert len({r["time_signature"] for r in rows}) == 5 and not any(re.fullmatch(r"\d+-\d+", r["time_signature"]) for r in rows)
    absent = list(groove.scan(tmp_path, DEVICES))
    assert [type(r) for r in absent] == [Rejected] * 1_150
    root = shared_data / "groove_midi"
    assert sum((root / r.path).is_file() for r in absent if isinstance(r, Rejected)) == 992
