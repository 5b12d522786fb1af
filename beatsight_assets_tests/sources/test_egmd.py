"""E-GMD: one performance through many kits is one group, on trees made here and on the 66 real csv rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets import events, midi
from beatsight_assets.errors import InputError
from beatsight_assets.manifest import annotate, merge, splits
from beatsight_assets.settings import Settings
from beatsight_assets.sources import Reading, Recording, Rejected, egmd, groove, ingest
from beatsight_assets.taxonomy import Taxonomy

COLUMNS = (
    *("drummer", "session", "id", "style", "bpm", "beat_type", "time_signature", "duration", "split"),
    *("midi_filename", "audio_filename", "kit_name"),
)
GROOVE_COLUMNS = (
    *("drummer", "session", "id", "style", "bpm", "beat_type", "time_signature"),
    *("midi_filename", "audio_filename", "duration", "split"),
)
KIT_NUMBERS = (*range(1, 7), 8, *range(10, 20), *range(21, 27), 28, *range(31, 38), *range(41, 45), *range(51, 59))
Take = tuple[str, str, list[tuple[int, int, int]]]  # id, split, notes


def write_tables(root: Path, name: str, columns: Sequence[str], rows: list[dict[str, str]]) -> None:
    """A csv as the datasets bring it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / name).open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def row_of(take: Take, path: str, suffix: str) -> dict[str, str]:
    drummer, session, _ = take[0].split("/")
    facts = {"drummer": drummer, "session": f"{drummer}/{session}", "id": take[0], "style": "rock", "bpm": "120", "beat_type": "beat"}
    facts |= {"time_signature": "4-4", "duration": "2.5", "split": take[1]}
    return facts | {"midi_filename": path + suffix, "audio_filename": path + ".wav"}


def egmd_tree(root: Path, takes: Sequence[Take], numbers: Sequence[int] = KIT_NUMBERS) -> Path:
    """A dataset of the real layout: every take through every kit, its id in every row, MIDI bytes equal for all kits of a take."""
    rows = []
    for take in takes:
        for number in numbers:
            path = f"{take[0]}_rock_120_beat_4-4_{number}"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / f"{path}.midi").write_bytes(midi.write_midi(take[2], pedal=[(0, 90)]))
            rows.append(row_of(take, path, ".midi") | {"kit_name": f"Kit No. {number} (Wood)"})
    write_tables(root, "e-gmd-v1.0.0.csv", COLUMNS, rows)
    return root


def groove_tree(root: Path, takes: Sequence[Take]) -> Path:
    """The same takes as Groove has them."""
    rows = []
    for take in takes:
        path = f"{take[0]}_rock_120_beat_4-4"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{path}.mid").write_bytes(midi.write_midi(take[2], pedal=[(0, 90)]))
        rows.append(row_of(take, path, ".mid"))
    write_tables(root, "info.csv", GROOVE_COLUMNS, rows)
    return root


def notes(shift: int) -> list[tuple[int, int, int]]:
    return [(i * 250_000, n, 40 + shift + i) for i, n in enumerate((36, 42, 38, 46, 22, 26, 55, 57))]


TAKES: list[Take] = [
    ("drummer1/eval_session/1", "test", notes(0)),
    ("drummer1/session2/7", "train", notes(5)),
    ("drummer3/session1/2", "validation", notes(9)),
]


def test_a_row_says_kit_group_split_and_what_sounds(tmp_path: Path) -> None:
    """Columns are read by name: group as in Groove, kit by its name, the sound is the module's, nothing is rendered offline."""
    root = egmd_tree(tmp_path, TAKES[:1], numbers=(58,))
    (recording,) = egmd.scan(root, {})
    assert isinstance(recording, Recording)
    reading = egmd.read(root, recording, Taxonomy.shipped(), {})
    assert isinstance(reading, Reading)
    session = reading.session
    assert session.session_id == session.midi_path == "drummer1/eval_session/1_rock_120_beat_4-4_58.midi"
    assert session.audio_path == "drummer1/eval_session/1_rock_120_beat_4-4_58.wav"
    assert (session.group_id, session.drummer_id) == ("gmd:drummer1/eval_session/1", "gmd:drummer1")
    assert (session.kit_id, session.split_hint, session.is_synthetic) == ("Kit No. 58 (Wood)", "test", False)
    assert (session.label_source, session.confidence, reading.note_map) == ("midi", 1.0, "td11")
    assert reading.facts["sound"] == "drum_module" and recording.facts["duration_seconds"] == 2.5
    assert [reading.hits.voices[v].label for v in reading.hits.voice][4:] == ["hihat_closed", "hihat_open", "crash", "crash2"]


def test_percussion_pads_are_counted_not_guessed(tmp_path: Path) -> None:
    """Notes 39 and 54 are in no map: dropped and counted."""
    root = egmd_tree(tmp_path, [("drummer1/session1/1", "train", [(0, 36, 90), (10_000, 39, 90), (20_000, 54, 90)])], numbers=(1,))
    (recording,) = egmd.scan(root, {})
    assert isinstance(recording, Recording)
    reading = egmd.read(root, recording, Taxonomy.shipped(), {})
    assert isinstance(reading, Reading) and len(reading.hits) == 1 and reading.issues == {"unmapped_note": 2}


def test_a_file_that_the_table_does_not_list_still_has_its_group(tmp_path: Path) -> None:
    """Without a row there is no split and no kit; the take is folder and first number, so the group holds."""
    root = egmd_tree(tmp_path, TAKES[:1], numbers=(1,))
    extra = root / "drummer1/eval_session/1_rock_120_beat_4-4_3.midi"
    extra.write_bytes(midi.write_midi([(0, 36, 90)]))
    listed, unlisted = egmd.scan(root, {})
    assert isinstance(listed, Recording) and isinstance(unlisted, Recording)
    assert unlisted.session.group_id == listed.session.group_id
    assert (unlisted.session.split_hint, unlisted.session.kit_id) == (None, None)


@pytest.mark.parametrize(("names", "code"), [((), "missing-metadata"), (("e-gmd-v1.0.0.csv", "e-gmd-v2.csv"), "bad-metadata")])
def test_no_table_or_two_is_an_error(tmp_path: Path, names: tuple[str, ...], code: str) -> None:
    """Which rows count is never guessed."""
    for name in names:
        (tmp_path / name).write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(InputError) as failure:
        list(egmd.scan(tmp_path, {}))
    assert failure.value.code == code


def test_all_kits_of_a_take_go_to_one_split_and_groove_goes_with_them(settings: Settings) -> None:
    """43 kits with one id each: ingest, merge and split keep every performance, also Groove's copy of it, on one side; it is reported."""
    egmd_tree(settings.layout.raw("egmd"), TAKES)
    groove_tree(settings.layout.raw("groove_midi"), TAKES[:2])
    report = ingest(settings, "egmd")
    assert (report.figures["recordings"], report.figures["rejected"]) == (3 * 43, 0)
    provenance = pl.read_parquet(settings.layout.provenance("extended_groove_mididataset"))
    assert provenance["group_id"].n_unique() == 3
    assert all(json.loads(facts)["sound"] == "drum_module" for facts in provenance["facts"])
    ingest(settings, "groove")
    merge.run(settings)
    annotate.run(settings)
    done = splits.run(settings)
    table = pl.read_parquet(settings.layout.splits)
    assert dict(table.select("group_id", "split").iter_rows()) == {f"gmd:{t[0]}": "val" if t[1] == "validation" else t[1] for t in TAKES}
    assert dict(table.select("group_id", "sessions").iter_rows()) == {f"gmd:{t[0]}": 43 + (t in TAKES[:2]) for t in TAKES}
    assert table.filter(pl.col("group_id") == "gmd:drummer1/session2/7")["source_sets"][0].to_list() == [
        "extended_groove_mididataset",
        "groove_mididataset",
    ]
    assert done.figures["kits_in_two_splits"] == 43 + 1, "the kits are the same in all splits, Groove's too, and the report says so"
    assert (done.figures["repeated_content"], done.figures["repeated_across_datasets"], done.figures["joined_groups"]) == (3, 2, 0)
    first = done.facts["repeated"][0]
    assert (first["kind"], first["n_sessions"], first["groups"]) == ("midi", 44, ["gmd:drummer1/eval_session/1"])
    verdict = done.verdict("splits")
    assert verdict is not None
    for name in ("group_overlap", "duplicate_midi_overlap"):
        rule = verdict.rule(name)
        assert rule is not None and rule.passed


def test_groove_and_egmd_give_one_take_one_key(tmp_path: Path) -> None:
    """The group of a performance is identical in both datasets, whatever the kit."""
    root, other = egmd_tree(tmp_path / "e", TAKES, numbers=(1, 58)), groove_tree(tmp_path / "g", TAKES)
    ours = {r.session.group_id for r in egmd.scan(root, {}) if isinstance(r, Recording)}
    assert ours == {r.session.group_id for r in groove.scan(other, {}) if isinstance(r, Recording)}


@pytest.mark.data
def test_golden_rows(shared_data: Path) -> None:
    """66 real rows, no MIDI: 66 `missing-midi`; 2 ids through 43 and 23 kits, kit numbers as in the real set, both ids in Groove's test split."""
    root = shared_data / "e_gmd/e-gmd-v1.0.0"
    found = list(egmd.scan(root, {}))
    assert [r.code for r in found if isinstance(r, Rejected)] == ["missing-midi"] * 66 and len(found) == 66
    with (root / "e-gmd-v1.0.0.excerpt.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS, "the generated tree has the real column order"
    assert [sum(r["id"] == f"drummer1/eval_session/{n}" for r in rows) for n in (1, 10)] == [43, 23]
    numbers = {int(r["midi_filename"].removesuffix(".midi").rpartition("_")[2]) for r in rows}
    assert numbers == set(KIT_NUMBERS) and len({r["kit_name"] for r in rows}) == 43
    in_groove = [r for r in groove.scan(shared_data / "groove_midi", {}) if isinstance(r, Recording)]
    hints = {r.session.group_id: r.session.split_hint for r in in_groove}
    assert {hints[f"gmd:{r['id']}"] for r in rows} == {"test"} == {r["split"] for r in rows}


@pytest.mark.data
def test_golden_ingest_without_midi(settings: Settings, shared_data: Path) -> None:
    """Ingest of the real rows: nothing to train on, 66 quarantine rows, no crash."""
    root = settings.layout.raw("egmd")
    root.parent.mkdir(parents=True)
    root.symlink_to(shared_data / "e_gmd/e-gmd-v1.0.0")
    report = ingest(settings, "egmd")
    assert (report.figures["recordings"], report.figures["absent"], report.figures["rejected"]) == (0, 66, 0)
    assert not report.passed
    assert events.read_events(settings.layout.events("extended_groove_mididataset")).height == 0
