"""One take found twice, under any two names, is in one split and in the report of that step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets import midi
from beatsight_assets.audio import write_wav
from beatsight_assets.manifest import annotate, merge, splits
from beatsight_assets.settings import Settings
from beatsight_assets.sources import ingest
from beatsight_assets.stages import Report
from beatsight_assets_tests.sources.lake import put_table, put_take, sound
from beatsight_assets_tests.sources.test_beatmap import SONG
from beatsight_assets_tests.sources.test_egmd import egmd_tree, groove_tree
from beatsight_assets_tests.sources.test_slakh import UUID, drum, track

NOTES = [(i * 250_000, n, 60 + i) for i, n in enumerate((36, 42, 38, 46, 51, 36, 38))]
GROOVE = "groove_mididataset/drummer1/session1/1_rock_120_beat_4-4.mid"
TAKES_HEADER = "take_id,midi_filename,audio_filename,kit_id,group,split,mix_context,note_map\n"


def split(settings: Settings, *names: str) -> Report:
    """Ingest and split the datasets named."""
    for name in names:
        ingest(settings, name)
    merge.run(settings)
    annotate.run(settings)
    return splits.run(settings)


def demo_take(settings: Settings, content: bytes, note_map: str = "beatsight") -> None:
    root = settings.layout.raw("beatsight_demo")
    (root / "midi").mkdir(parents=True)
    (root / "midi/t.mid").write_bytes(content)
    (root / "takes.csv").write_text(f"{TAKES_HEADER}t,midi/t.mid,,kit,t,,midi_only,{note_map}\n")


def split_of(settings: Settings) -> dict[str, str]:
    return dict(pl.read_parquet(settings.layout.splits).select("group_id", "split").iter_rows())


def repeated(report: Report) -> list[tuple[str, list[str], list[str]]]:
    facts: list[dict[str, Any]] = report.facts["repeated"]
    return [(f["kind"], f["sessions"], f["groups"]) for f in facts]


def test_equal_bytes_under_two_names_and_two_note_maps_are_joined_and_reported(settings: Settings) -> None:
    """The MIDI file of a Groove test take, copied into another dataset and read there through another map, goes to test with it."""
    root = groove_tree(settings.layout.raw("groove_midi"), [("drummer1/session1/1", "test", NOTES)])
    demo_take(settings, (root / "drummer1/session1/1_rock_120_beat_4-4.mid").read_bytes())
    report = split(settings, "groove", "demo")
    assert split_of(settings) == {"demo:t": "test", "gmd:drummer1/session1/1": "test"}
    groups = ["demo:t", "gmd:drummer1/session1/1"]
    assert report.facts["joined"] == [{"groups": groups, "split": "test"}]
    assert repeated(report) == [("midi", ["beatsight_demo/midi/t.mid", GROOVE], groups)]
    assert (report.figures["repeated_content"], report.figures["repeated_across_datasets"]) == (1, 1)


def test_equal_playing_in_unequal_files_is_joined_and_reported(settings: Settings) -> None:
    """The same hits at another resolution are the same take."""
    groove_tree(settings.layout.raw("groove_midi"), [("drummer1/session1/1", "validation", NOTES)])
    demo_take(settings, midi.write_midi(NOTES, pedal=[(0, 90)], ticks_per_quarter=960), note_map="td11")
    report = split(settings, "groove", "demo")
    assert split_of(settings) == {"demo:t": "val", "gmd:drummer1/session1/1": "val"}
    assert [sessions for _, sessions, _ in repeated(report)] == [["beatsight_demo/midi/t.mid", GROOVE]]


def test_unequal_playing_is_not_joined(settings: Settings) -> None:
    """One velocity differs: two takes."""
    groove_tree(settings.layout.raw("groove_midi"), [("drummer1/session1/1", "test", NOTES)])
    demo_take(settings, midi.write_midi([*NOTES[:-1], (1_500_000, 38, 1)], pedal=[(0, 90)]), note_map="td11")
    report = split(settings, "groove", "demo")
    assert (report.figures["joined_groups"], report.figures["repeated_content"], report.facts["repeated"]) == (0, 0, [])


TICK = np.zeros(40, np.float32)
TICK[0] = 0.5
EQUAL_AUDIO = {
    "a recording": (sound(1), 2),
    "digital silence": (write_wav(np.zeros(16_000), 8_000), 0),
    "silence with an offset": (write_wav(np.full(16_000, 0.02), 8_000), 0),
    "5 ms": (write_wav(TICK, 8_000), 0),
    "an empty file": (b"", 0),
    "a download of zeros": (bytes(4_096), 0),
    "no frames": (write_wav(np.zeros(0), 8_000), 0),
}


@pytest.mark.parametrize("what", list(EQUAL_AUDIO), ids=str)
def test_equal_audio_joins_only_when_something_is_heard(settings: Settings, what: str) -> None:
    """Two takes with equal bytes of a recording are one; silence of one length, or what cannot be read, joins nobody and moves nobody."""
    content, n_joined = EQUAL_AUDIO[what]
    root = settings.layout.raw("beatsight_demo")
    for i in range(2):
        put_take(root, f"t{i}", i)
        (root / f"audio/t{i}.wav").write_bytes(content)
    put_table(root, ["t0", "t1"])
    table = (root / "takes.csv").read_text()
    (root / "takes.csv").write_text(table.replace("t1,train", "t1,test"))
    config = settings.datasets["beatsight_demo"].model_copy(update={"max_reject_rate": 1.0})
    settings.__dict__["datasets"] = settings.datasets | {"beatsight_demo": config}
    report = split(settings, "demo")
    assert (report.figures["joined_groups"], report.figures["repeated_content"]) == (n_joined, n_joined // 2)
    assert split_of(settings) == {"demo:t0": "test" if n_joined else "train", "demo:t1": "test"}


def test_a_take_in_groove_and_egmd_shares_its_group_and_is_reported(settings: Settings) -> None:
    """Nothing has to be joined where the sources know that two takes are one; the report names them all the same."""
    takes = [("drummer1/session1/1", "test", NOTES)]
    groove_tree(settings.layout.raw("groove_midi"), takes)
    egmd_tree(settings.layout.raw("egmd"), takes, numbers=(1, 58))
    report = split(settings, "groove", "egmd")
    assert split_of(settings) == {"gmd:drummer1/session1/1": "test"} and report.figures["joined_groups"] == 0
    ((kind, sessions, groups),) = repeated(report)
    assert (kind, len(sessions), groups) == ("midi", 3, ["gmd:drummer1/session1/1"])
    assert report.figures["repeated_across_datasets"] == 1


def test_two_renders_of_one_piece_are_one_group(settings: Settings) -> None:
    """Tracks with one UUID are one piece, whatever their plugins and their official splits; the most protected split wins and is counted."""
    root = settings.layout.raw("slakh2100")
    track(root / "train/Track00001", {"S00": drum()})
    track(root / "test/Track01900", {"S00": drum("pop_kit.nkm")})
    track(root / "train/Track00002", {"S00": drum()}, uuid="f" * 32, notes=NOTES, sound=SONG)
    report = split(settings, "slakh")
    assert split_of(settings) == {f"slakh:{UUID}": "test", f"slakh:{'f' * 32}": "train"}
    assert report.figures["split_conflict"] == 1
    sessions = ["slakh2100/test/Track01900/MIDI/S00.mid", "slakh2100/train/Track00001/MIDI/S00.mid"]
    assert ("midi", sessions, [f"slakh:{UUID}"]) in repeated(report)


def test_equal_sound_of_two_pieces_is_joined(settings: Settings) -> None:
    """Two UUIDs with one audio file byte for byte: the digest joins them."""
    root = settings.layout.raw("slakh2100")
    track(root / "test/Track01900", {"S00": drum()})
    track(root / "Track00002", {"S00": drum()}, uuid="f" * 32, notes=NOTES)
    report = split(settings, "slakh")
    assert set(split_of(settings).values()) == {"test"} and report.figures["joined_groups"] == 2
    assert [kind for kind, _, groups in repeated(report) if len(groups) == 2] == ["audio"]


def linked(settings: Settings, folder: str, target: Path) -> None:
    settings.layout.raw(folder).parent.mkdir(parents=True, exist_ok=True)
    settings.layout.raw(folder).symlink_to(target)


@pytest.mark.data
def test_golden_a_real_take_saved_by_another_program(settings: Settings, shared_data: Path, tmp_path: Path) -> None:
    """A Groove test take, opened and saved by a sequencer (other bytes, other resolution, a title), goes to test with its original."""
    import mido

    name = "drummer1/eval_session/1_funk-groove1_138_beat_4-4.mid"
    root = settings.layout.raw("groove_midi")
    (root / name).parent.mkdir(parents=True)
    (root / name).write_bytes((shared_data / "groove_midi" / name).read_bytes())
    header, row = (shared_data / "groove_midi/info.csv").read_text().splitlines()[:2]
    (root / "info.csv").write_text(f"{header}\n{row}\n")
    song = mido.MidiFile(root / name)
    song.ticks_per_beat *= 2
    song.tracks[0].insert(0, mido.MetaMessage("track_name", name="my groove"))
    for message in song.tracks[0]:
        message.time *= 2
    song.save(tmp_path / "saved.mid")
    demo_take(settings, (tmp_path / "saved.mid").read_bytes(), note_map="td11")
    report = split(settings, "groove", "demo")
    groups = ["demo:t", "gmd:drummer1/eval_session/1"]
    assert split_of(settings) == dict.fromkeys(groups, "test")
    assert repeated(report) == [("midi", ["beatsight_demo/midi/t.mid", f"groove_mididataset/{name}"], groups)]


@pytest.mark.data
def test_golden_slakh_is_there_twice(settings: Settings, shared_data: Path) -> None:
    """Track00001 of BabySlakh and of Slakh2100: one group, one split (train), the equal MIDI is reported."""
    linked(settings, "slakh2100", shared_data / "slakh")
    report = split(settings, "slakh")
    assert split_of(settings) == {"slakh:1a81ae092884234f3264e2f45927f00a": "train"}
    assert repeated(report) == [
        ("midi", ["slakh2100/babyslakh_16k/Track00001/MIDI/S01.mid", "slakh2100/slakh2100_flac_redux/train/Track00001/MIDI/S01.mid"],
         ["slakh:1a81ae092884234f3264e2f45927f00a"]),
    ]  # fmt: skip


@pytest.mark.data
def test_golden_mdb_drums_and_medleydb_are_one_song(settings: Settings, shared_data: Path) -> None:
    """Rock and Zeppelin lie in both datasets: equal groups, equal audio reported across them, nothing in two splits."""
    linked(settings, "mdb_drums", shared_data / "mdb_drums")
    linked(settings, "medleydb", shared_data / "medleydb")
    report = split(settings, "mdb", "medleydb")
    across = [
        groups for kind, sessions, groups in repeated(report) if kind == "audio" and len({s.partition("/")[0] for s in sessions}) == 2
    ]
    assert {g for groups in across for g in groups} == {"song:musicdelta|rock", "song:musicdelta|zeppelin"}
    assert report.figures["repeated_across_datasets"] == len(across) and all(len(groups) == 1 for groups in across)
    verdict = report.verdict("splits")
    assert verdict is not None
    for name in ("group_overlap", "audio_digest_overlap", "duplicate_midi_overlap"):
        rule = verdict.rule(name)
        assert rule is not None and rule.passed
