"""What disks of users look like: a folder too many, a folder too few, linked folders, copies by other systems."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets.errors import InputError, NothingToDo
from beatsight_assets.settings import Settings
from beatsight_assets.sources import ingest, module_options, read_state, scan
from beatsight_assets.sources.kits import list_kits
from beatsight_assets.sources.trees import FileState, Tree
from beatsight_assets_tests.sources.lake import sound
from beatsight_assets_tests.sources.test_groove import HEADER, row, take
from beatsight_assets_tests.sources.test_one_shots import write

TAKE = "drummer1/session1/1_rock_120_beat_4-4.mid"


def put_groove(root: Path) -> Path:
    """One take of Groove in its native layout, with audio."""
    take(root, TAKE, [(0, 36, 64), (500_000, 38, 127)])
    (root / TAKE).with_suffix(".wav").write_bytes(sound(1))
    (root / "info.csv").write_text(HEADER + row(TAKE, split="test"))
    return root


@pytest.mark.parametrize("between", ["groove", "groove-v1.0.0-midionly/groove"])
def test_a_dataset_unpacked_too_deep_is_found_and_named(settings: Settings, between: str) -> None:
    """`raw/groove_midi/groove/info.csv` is what unpacking the archive gives: the error says what is wanted and which folder looks like it."""
    root = settings.layout.raw("groove_midi")
    put_groove(root / between)
    with pytest.raises(
        InputError, match=rf"(?s)Looked in {root}, where it should be: info.csv and .*{root / between} looks like it"
    ) as told:
        ingest(settings, "groove")
    assert told.value.code == "missing-metadata"


def test_a_root_inside_the_dataset_is_sent_up(settings: Settings) -> None:
    """One folder too deep: the parent holds the table and is named."""
    root = put_groove(settings.layout.raw("groove_midi"))
    settings.datasets["groove_mididataset"] = settings.datasets["groove_mididataset"].model_copy(
        update={"roots": (str(root / "drummer1"),)}
    )
    with pytest.raises(InputError, match=f"{root} looks like it"):
        ingest(settings, "groove")


def test_a_dataset_without_a_table_is_found_too(settings: Settings) -> None:
    """MUSDB below a folder of its archive: nothing is read, ingest and scan name the folder."""
    root = settings.layout.raw("musdb18_hq")
    wav = root / "musdb18hq/train/A - B/drums.wav"
    wav.parent.mkdir(parents=True)
    wav.write_bytes(sound(1))
    with pytest.raises(NothingToDo, match=f"{root / 'musdb18hq'} looks like it") as told:
        ingest(settings, "musdb")
    assert scan(settings, "musdb")["note"] == told.value.message
    assert scan(settings, "musdb")["recordings"] == 0


def test_another_release_is_named_by_what_was_passed_over(settings: Settings) -> None:
    """MUSDB18 as .stem.mp4 is not MUSDB18-HQ: the error counts the files and says why they are none."""
    for name in "ab":
        file = settings.layout.raw("musdb18_hq") / f"train/{name} - x.stem.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    with pytest.raises(NothingToDo, match=r"passed over: other_release 2\. Looked in"):
        ingest(settings, "musdb")


def test_another_folder_gets_no_advice_that_is_wrong(settings: Settings) -> None:
    """Nothing below or above looks like it: the error says only what is wanted."""
    root = settings.layout.raw("groove_midi")
    (root / "photos").mkdir(parents=True)
    (root / "photos/a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="where it should be") as told:
        ingest(settings, "groove")
    assert "looks like it" not in told.value.message


def test_suffixes_of_other_systems(settings: Settings) -> None:
    """.MID and .WAV belong to the row that says .mid and .wav: split, group and csv facts are kept, nothing is absent."""
    root = put_groove(settings.layout.raw("groove_midi"))
    for suffix in (".mid", ".wav"):
        (root / TAKE).with_suffix(suffix).rename((root / TAKE).with_suffix(suffix.upper()))
    report = ingest(settings, "groove")
    frame = pl.read_parquet(settings.layout.events("groove_mididataset"))
    assert (report.figures["recordings"], report.figures["absent"], report.figures["used"]) == (1, 0, 2)
    assert set(frame["split_hint"]) == {"test"} and set(frame["session_id"]) == {TAKE.replace(".mid", ".MID")}
    assert report.facts["audio"] == {"root 1": 1}


def test_a_table_saved_anew_by_a_spreadsheet(settings: Settings) -> None:
    """BOM and CRLF are read; semicolons and UTF-16 are refused with the cause."""
    root = put_groove(settings.layout.raw("groove_midi"))
    text = (root / "info.csv").read_text()
    (root / "info.csv").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    assert ingest(settings, "groove").figures["recordings"] == 1
    (root / "info.csv").write_text(text.replace(",", ";"))
    with pytest.raises(InputError, match="parted by ';'"):
        ingest(settings, "groove")
    (root / "info.csv").write_text(text, encoding="utf-16")
    with pytest.raises(InputError, match="as the dataset brings it"):
        ingest(settings, "groove")


def test_a_linked_folder_is_a_row_and_not_silence(settings: Settings, tmp_path: Path) -> None:
    """Audio behind a link out of the root: the takes are ingested without it, one row says why; a new link is a change of the folder."""
    root, away = settings.layout.raw("mdb_drums"), tmp_path / "other disk"
    for i in range(3):
        text = root / f"MDB Drums/annotations/subclass/MusicDelta_T{i}_subclass.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("0.100000 \t KD \n")
        wav = away / f"drum_only/MusicDelta_T{i}_Drum.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        wav.write_bytes(sound(i))
    before = read_state(settings, "mdb_drums")
    (root / "MDB Drums/audio").symlink_to(away)
    assert before != read_state(settings, "mdb_drums")
    (root / "same").symlink_to("MDB Drums")  # its files are read at their own place
    (root / "circle.wav").symlink_to("circle.wav")
    report = ingest(settings, "mdb")
    assert report.figures["recordings"] == 3 and report.facts["audio"] == {"absent": 3}
    rows = pl.read_parquet(settings.layout.quarantine("mdb_drums")).select("path", "stage", "code").rows()
    assert rows == [("MDB Drums/audio", "scan", "path-escape"), ("circle.wav", "scan", "path-escape")]


def test_a_kit_with_a_table_is_not_read_by_its_file_names(settings: Settings) -> None:
    """One folder too many, and the table and the split of a kit would count for nothing: an error names the folder to use."""
    root = settings.layout.raw("one_shots")
    write(root, "unzipped/MuldjordKit/36-Kick-1.wav")
    with pytest.raises(InputError, match="MuldjordKit is told in the configuration and lies in unzipped") as told:
        ingest(settings, "one_shots")
    assert told.value.code == "misplaced-kit"
    assert [kit.name for kit in list_kits(root / "unzipped", module_options(settings, "one_shots"))] == ["MuldjordKit"]


def test_a_root_that_is_a_kit_is_that_kit(settings: Settings) -> None:
    """The kit's own folder as the root, its samples in a folder of it: the kit keeps its name, its table and its split."""
    root = settings.layout.root / "TR-505"
    write(root, "samples/tr505-kick.wav")
    datasets = settings.datasets
    report = ingest(
        settings.with_datasets(datasets | {"one_shots": datasets["one_shots"].model_copy(update={"roots": (str(root),)})}), "one_shots"
    )
    frame = pl.read_parquet(settings.layout.events("one_shots"))
    assert report.passed and frame.select("session_id", "group_id", "kit_id", "split_hint").row(0) == (
        "samples/tr505-kick.wav", "kit:TR-505/kick", "TR-505", "val",
    )  # fmt: skip


def test_what_lies_beside_a_root_is_watched_too(settings: Settings) -> None:
    """MDB Drums++ is read with MDB Drums: a change there is a change of the state that the sensor compares."""
    root = settings.layout.raw("mdb_drums")
    root.mkdir(parents=True)
    (root / "a.txt").write_text("x")
    states = [read_state(settings, "mdb_drums")]
    beside = root.parent / "mdb_drums_pp/a.mid"
    beside.parent.mkdir()
    beside.write_bytes(b"x")
    states.append(read_state(settings, "mdb_drums"))
    os.utime(beside, (5, 5))
    states.append(read_state(settings, "mdb_drums"))
    assert None not in states and len(set(states)) == 3


def test_names_of_a_mac_make_the_same_sessions(settings: Settings) -> None:
    """An umlaut in one character or in two: the same session, event and group ids, and the audio is found as the disk spells it."""
    ids = []
    for form in ("NFC", "NFD"):
        folder = settings.layout.raw("cambridge") / unicodedata.normalize(form, "Jürgen_Größe_Full")
        folder.mkdir(parents=True)
        (folder / "01_Kick.wav").write_bytes(sound(1))
        assert ingest(settings, "cambridge").facts["audio"] == {"root 1": 1}
        frame = pl.read_parquet(settings.layout.events("cambridge_multitrack"))
        ids.append(frame.select("event_id", "session_id", "group_id").row(0))
        (folder / "01_Kick.wav").unlink()
        folder.rmdir()
    assert ids[0] == ids[1] and unicodedata.is_normalized("NFC", ids[0][1])
    one, two = (unicodedata.normalize(form, "a/Größe.wav") for form in ("NFC", "NFD"))
    for wanted, there in ((one, two), (two, one)):
        assert Tree(settings.layout.root, {there: FileState(1, 1, 1)}).find_audio(wanted) == there
