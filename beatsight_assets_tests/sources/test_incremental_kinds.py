"""Real files of every kind of source: an unchanged tree is not opened, and an edit changes the sessions it is about and no other.

Does not belong here: random edits of one generated layout (`test_incremental`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets import sources
from beatsight_assets.settings import Settings
from beatsight_assets_tests.sources.lake import at
from beatsight_assets_tests.sources.test_contract import opened

GROOVE = [f"drummer9/session1/{n}" for n in ("1_rock_100_beat_4-4.mid", "2_rock_100_beat_4-4.mid", "3_rock_100_beat_4-4.mid")]
BABY, FULL = "babyslakh_16k/Track00001", "slakh2100_flac_redux/train/Track00001"
MDB = "MDB Drums"
ROCK = tuple(f"{MDB}/audio/{name}.wav" for name in ("drum_only/MusicDelta_Rock_Drum", "full_mix/MusicDelta_Rock_MIX"))
MEDLEY = {t: f"Audio/MusicDelta_{t}/MusicDelta_{t}" for t in ("Rock", "Zeppelin")}
STEM = {
    "Rock": f"{MEDLEY['Rock']}_STEMS/MusicDelta_Rock_STEM_01.wav",
    "Zeppelin": f"{MEDLEY['Zeppelin']}_STEMS/MusicDelta_Zeppelin_STEM_02.wav",
}

Edit = Callable[[Path], object]


def put(path: str, origin: str) -> Edit:
    """One file with the bytes of another."""
    return lambda root: ((root / path).parent.mkdir(parents=True, exist_ok=True), (root / path).write_bytes((root / origin).read_bytes()))


def swap(path: str, old: str, new: str) -> Edit:
    """A text where it first stands in a file."""

    def edit(root: Path) -> None:
        text = (root / path).read_bytes()
        assert old.encode() in text
        (root / path).write_bytes(text.replace(old.encode(), new.encode(), 1))

    return edit


def remove(path: str) -> Edit:
    return lambda root: (root / path).unlink()


@dataclass(frozen=True)
class Kind:
    """Part of a real dataset; edits with the sessions that differ after them, and how many recordings are read for it."""

    short: str
    origin: str
    patterns: tuple[str, ...]
    edits: tuple[tuple[Edit, set[str], int], ...]


XML, SVL = "annotation_xml/RealDrum0{}_00#MIX.xml", "annotation_svl/{}#HH.svl"
MIX = "audio/RealDrum0{}_00#MIX.wav"
KINDS = {
    "MIDI and csv": Kind(
        "groove", "groove_midi", ("info.csv", "drummer9/session1/[123]_*"), (
            (put(GROOVE[0], GROOVE[1]), {GROOVE[0]}, 1),
            (put("drummer9/session1/4_rock_100_beat_4-4.mid", GROOVE[1]), {"drummer9/session1/4_rock_100_beat_4-4.mid"}, 1),
            (swap("info.csv", "drummer9/session1/2,rock", "drummer9/session1/2,disco"), {GROOVE[1]}, 1),
            (remove(GROOVE[2]), {GROOVE[2]}, 0),
        ),
    ),
    "XML and SVL": Kind(
        "idmt", "idmt_smt_drums_v2", ("annotation_*/*",), (
            (swap(XML.format(1), "<onsetSec>0.08585<", "<onsetSec>0.08685<"), {MIX.format(1)}, 1),
            (put(XML.format(2), XML.format(1)), {MIX.format(2)}, 1),
            (swap(SVL.format("RealDrum01_00"), "<point ", "<point  "), {MIX.format(1)}, 1),
            (swap(SVL.format("TechnoDrum01_00"), 'frame="16650"', 'frame="16651"'), {"audio/TechnoDrum01_00#HH.wav"}, 1),
            (remove(XML.format(2)), {MIX.format(2)}, 0),
        ),
    ),
    "YAML and stems": Kind(
        "medleydb", "medleydb", ("Audio/*/*.yaml", "Audio/*/*_STEMS/*_STEM_0[12].wav"), (
            (swap(f"{MEDLEY['Rock']}_METADATA.yaml", "has_bleed: 'no'", "has_bleed: 'yes'"), {STEM["Rock"]}, 1),
            (put(STEM["Rock"], STEM["Zeppelin"]), {STEM["Rock"]}, 1),
            (put(f"{MEDLEY['Rock']}_STEMS/MusicDelta_Rock_STEM_02.wav", STEM["Zeppelin"]), set(), 0),
            (remove(f"{MEDLEY['Zeppelin']}_METADATA.yaml"), {STEM["Zeppelin"]}, 0),
        ),
    ),
    "YAML, MIDI and stems": Kind(
        "slakh", "slakh", (f"{BABY}/**/*", f"{FULL}/**/*", "babyslakh_16k/Track00007/**/*"), (
            (swap(f"{BABY}/metadata.yaml", "session_kit_full.nkm", "pop_kit.nkm"), {f"{BABY}/MIDI/S01.mid"}, 1),
            (put(f"{FULL}/MIDI/S01.mid", "babyslakh_16k/Track00007/MIDI/S00.mid"), {f"{FULL}/MIDI/S01.mid"}, 1),
            (put(f"{BABY}/MIDI/S02.mid", f"{BABY}/MIDI/S03.mid"), set(), 0),
            (remove(f"{BABY}/stems/S01.wav"), {f"{BABY}/MIDI/S01.mid"}, 1),
            (remove(f"{FULL}/metadata.yaml"), {f"{FULL}/MIDI/S01.mid"}, 0),
        ),
    ),
    "text labels": Kind(
        "mdb", "mdb_drums", (f"{MDB}/annotations/*/*Rock_*", f"{MDB}/annotations/*/*Punk_*", f"{MDB}/audio/*/*Rock_*.wav", f"{MDB}/audio/*/*Punk_*.wav"), (
            (swap(f"{MDB}/annotations/subclass/MusicDelta_Rock_subclass.txt", "0.000000", "0.001000"), set(ROCK), 2),
            (remove(f"{MDB}/annotations/beats/MusicDelta_Rock_MIX.beats"), set(ROCK), 2),
            (remove(ROCK[1]), {ROCK[1]}, 0),
            (remove(f"{MDB}/audio/drum_only/MusicDelta_Punk_Drum.wav"), {f"{MDB}/audio/drum_only/MusicDelta_Punk_Drum.wav"}, 1),
        ),
    ),
    "JSON and audio": Kind(
        "beatmap", "beatsight_formats", ("shared/formats/*",), (
            (swap("shared/formats/simple_beat.bsm", '"time": 0,', '"time": 1,'), {"shared/formats/simple_beat.bsm"}, 1),
            (put("copy/a.bsm", "shared/formats/simple_beat.bsm"), {"copy/a.bsm"}, 1),
            (remove("shared/formats/simple_beat.wav"), {"shared/formats/simple_beat.bsm"}, 1),
        ),
    ),
    "wav only": Kind(
        "one_shots", "oneshots", ("TR-505/samples/*.wav", "MRK-2/samples/*.wav"), (
            (put("TR-505/samples/tr505-kick.wav", "TR-505/samples/tr505-snare.wav"), {"TR-505/samples/tr505-kick.wav"}, 1),
            (put("TR-505/samples/tr505-kick-2.wav", "TR-505/samples/tr505-snare.wav"), {"TR-505/samples/tr505-kick-2.wav"}, 1),
            (remove("TR-505/samples/tr505-kick-2.wav"), {"TR-505/samples/tr505-kick-2.wav"}, 0),
        ),
    ),
}  # fmt: skip


def by_session(settings: Settings, source_set: str) -> dict[str, tuple[object, ...]]:
    """What the tables say of each session."""
    frame = pl.read_parquet(settings.layout.events(source_set))
    rows = {str(k[0]): f.rows() for k, f in frame.partition_by("session_id", as_dict=True).items()}
    told = pl.read_parquet(settings.layout.provenance(source_set)).drop("content_key").rows(named=True)
    return {r["session_id"]: (tuple(map(str, r.values())), str(rows[r["session_id"]])) for r in told}


@pytest.mark.data
@pytest.mark.parametrize("name", KINDS)
def test_an_edit_changes_what_depends_on_it(settings: Settings, shared_data: Path, tmp_path: Path, name: str) -> None:
    """Unchanged: kept without opening a file of it. Changed, added, removed: these sessions differ, so many are read, all is as from scratch."""
    kind = KINDS[name]
    source_set, config = settings.dataset(kind.short)
    root = settings.layout.raw(config.raw_folder)
    for path in sorted(p for pattern in kind.patterns for p in (shared_data / kind.origin).glob(pattern) if p.is_file()):
        target = root / path.relative_to(shared_data / kind.origin)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    settings.__dict__["datasets"] = settings.datasets | {source_set: config.model_copy(update={"max_reject_rate": 1.0})}
    first = sources.ingest(settings, kind.short)
    before = by_session(settings, source_set)
    assert len(before) == first.figures["recordings"] > 0
    with opened() as paths:
        assert sources.ingest(settings, kind.short).reused
    assert not [p for p in paths if p.startswith(str(root))]
    for n, (edit, differing, n_read) in enumerate(kind.edits):
        edit(root)
        said: list[str] = []
        report = sources.ingest(settings, kind.short, progress=said.append)
        after = by_session(settings, source_set)
        assert {s for s in before.keys() | after.keys() if before.get(s) != after.get(s)} == differing, (name, n)
        assert [int(line.rpartition(", ")[2].split()[0]) for line in said if " new or changed" in line][-1:] == [n_read], (name, n)
        fresh = at(settings, tmp_path / f"fresh{n}")
        fresh.__dict__["datasets"] = settings.datasets
        fresh.layout.raw_root.mkdir(parents=True)
        fresh.layout.raw(config.raw_folder).symlink_to(root)
        assert sources.ingest(fresh, kind.short).digest == report.digest, (name, n)
        before = after
