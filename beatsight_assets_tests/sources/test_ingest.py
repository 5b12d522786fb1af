"""The shared ingest: counts add up, one bad file never stops a run, unchanged work is skipped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets import events, midi, sources
from beatsight_assets.audio import write_wav
from beatsight_assets.errors import ConfigError, InputError, NothingToDo
from beatsight_assets.settings import Settings
from beatsight_assets.sources import Recording, pipeline, rendered
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import keyed_order

HEADER = "take_id,midi_filename,audio_filename,kit_id,group,split,mix_context\n"


def click_track(onsets_us: list[int], seconds: float = 2.0) -> bytes:
    """A wav with a click at each onset: enough for an audio file that is not silent."""
    samples = np.zeros(int(seconds * 44_100), dtype=np.float32)
    for t in onsets_us:
        at = round(t * 44_100 / 1e6)
        samples[at : at + 200] = 0.5
    return write_wav(samples, 44_100)


@pytest.fixture
def demo(settings: Settings) -> Path:
    """Three small takes in the layout of a rendered dataset."""
    root = settings.layout.raw("beatsight_demo")
    (root / "midi").mkdir(parents=True)
    (root / "audio").mkdir()
    rows = []
    for name, split in (("a", "train"), ("b", "val"), ("c", "test")):
        onsets = [100_000, 600_000, 1_100_000]
        (root / f"midi/{name}.mid").write_bytes(midi.write_midi([(onsets[0], 36, 90), (onsets[1], 38, 100), (onsets[2], 42, 70)]))
        (root / f"audio/{name}.wav").write_bytes(click_track([*onsets, 1_500_000 + 1_000 * ord(name)]))
        rows.append(f"{name},midi/{name}.mid,audio/{name}.wav,kit_{name},{name},{split},drum_only")
    (root / "takes.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return root


def quarantine(settings: Settings) -> list[tuple[str, str]]:
    return pl.read_parquet(settings.layout.quarantine("beatsight_demo")).select("path", "code").rows()


def test_counts_add_up_on_a_clean_dataset(settings: Settings, demo: Path) -> None:
    """Files found = used + refused + out of scope, and every gate is green."""
    report = sources.ingest(settings, "demo")
    f = report.figures
    assert f["candidates"] == f["used"] + f["rejected"] + f["out_of_scope"] == 6
    assert (f["recordings"], f["events"], f["hits"]) == (3, 9, 9)
    assert report.passed
    stored = json.loads(settings.layout.report("ingest", "beatsight_demo.json").read_text())
    assert stored["labels"] == {"hihat_closed": 3, "kick": 3, "snare": 3}
    last = pl.read_parquet(settings.layout.events("beatsight_demo")).group_by("session_id").agg(pl.col("onset_time").max())
    assert stored["seconds"] == pytest.approx(last["onset_time"].sum(), abs=1e-6)


DAMAGE = {
    "empty midi": ("midi/b.mid", b"", "empty-file"),
    "text as midi": ("midi/b.mid", b"hello, this is no midi file", "not-midi"),
    "midi without hits": ("midi/b.mid", midi.write_midi([]), "no-events"),
    "midi of unknown notes": ("midi/b.mid", midi.write_midi([(0, 99, 90)]), "no-events"),
    "empty wav": ("audio/b.wav", b"", "empty-file"),
    "text as wav": ("audio/b.wav", b"RIFFxxxxWAVE is only claimed", "unreadable-audio"),
    "silent wav": ("audio/b.wav", write_wav(np.zeros(88_200, dtype=np.float32), 44_100), "silent-audio"),
}


@pytest.mark.parametrize("case", list(DAMAGE), ids=str)
def test_one_bad_file_is_one_row_and_stops_nothing(settings: Settings, demo: Path, case: str) -> None:
    """A damaged file becomes exactly one quarantine row; its neighbours are read; the counts still add up."""
    path, content, code = DAMAGE[case]
    (demo / path).write_bytes(content)
    report = sources.ingest(settings, "demo")
    assert quarantine(settings) == [(path, code)]
    f = report.figures
    assert f["candidates"] == f["used"] + f["rejected"] + f["out_of_scope"] == 6
    assert f["recordings"] == (2 if path.startswith("midi") else 3)
    ingest = report.verdict("ingest")
    assert ingest is not None
    accounted = ingest.rule("accounted")
    assert accounted is not None and not accounted.passed, "1 of 6 files is above the 5 % that max_reject_rate allows"


def test_a_repaired_file_takes_its_row_away(settings: Settings, demo: Path) -> None:
    """Quarantine says what is refused now, not what once was."""
    good = (demo / "midi/b.mid").read_bytes()
    (demo / "midi/b.mid").write_bytes(b"")
    sources.ingest(settings, "demo")
    (demo / "midi/b.mid").write_bytes(good)
    report = sources.ingest(settings, "demo")
    assert quarantine(settings) == []
    assert report.passed


def test_an_absent_take_is_listed_and_is_no_damage(settings: Settings, demo: Path) -> None:
    """A listed file that is not there is a row, and does not count as refused."""
    (demo / "midi/c.mid").unlink()
    report = sources.ingest(settings, "demo")
    assert quarantine(settings) == [("midi/c.mid", "missing-midi")]
    assert (report.figures["rejected"], report.figures["absent"]) == (0, 1)


def test_an_unchanged_dataset_is_not_read_again(settings: Settings, demo: Path) -> None:
    """The second run does nothing, and says so."""
    first = sources.ingest(settings, "demo")
    second = sources.ingest(settings, "demo")
    assert (first.reused, second.reused) == (False, True)
    assert first.digest == second.digest


def test_a_touched_file_gives_equal_bytes_and_a_changed_one_does_not(settings: Settings, demo: Path) -> None:
    """Digests follow content, not time stamps."""
    first = sources.ingest(settings, "demo")
    os.utime(demo / "midi/a.mid", (1, 1))
    touched = sources.ingest(settings, "demo")
    assert not touched.reused and touched.digest == first.digest
    (demo / "midi/a.mid").write_bytes(midi.write_midi([(100_000, 36, 91)]))
    assert sources.ingest(settings, "demo").digest != first.digest


def test_workers_change_no_byte(settings: Settings, demo: Path, tmp_path: Path) -> None:
    """Inline and two processes write equal files."""
    from dataclasses import replace
    from shutil import copytree

    from beatsight_assets.settings import DataLayout

    copytree(settings.layout.root, tmp_path / "two")
    other = replace(settings, layout=DataLayout(tmp_path / "two"), executor="processes", n_workers=2)
    one, two = sources.ingest(settings, "demo"), sources.ingest(other, "demo")
    assert one.outputs == two.outputs


def test_a_path_that_leaves_the_root_is_refused(settings: Settings, demo: Path) -> None:
    """No table can make us read outside the dataset."""
    text = (demo / "takes.csv").read_text().replace("midi/b.mid", "../../b.mid")
    (demo / "takes.csv").write_text(text)
    report = sources.ingest(settings, "demo")
    assert quarantine(settings) == [("../../b.mid", "path-escape")]
    assert report.figures["recordings"] == 2


def test_a_link_out_of_the_root_is_one_row(settings: Settings, demo: Path, tmp_path: Path) -> None:
    """A symbolic link is not followed out of the dataset."""
    outside = tmp_path / "outside.mid"
    outside.write_bytes(midi.write_midi([(0, 36, 90)]))
    (demo / "midi/z.mid").symlink_to(outside)
    sources.ingest(settings, "demo")
    assert ("midi/z.mid", "path-escape") in quarantine(settings)


def test_editor_leftovers_are_ignored(settings: Settings, demo: Path) -> None:
    """Icon files, hidden files and analysis leftovers are no candidates."""
    for name in ("Icon", ".DS_Store", "._a.mid", "midi/a.mid.asd", ".hidden.mid"):
        (demo / name).write_bytes(b"x")
    assert sources.ingest(settings, "demo").figures["candidates"] == 6


def test_a_missing_root_says_where_it_was_looked_for(settings: Settings) -> None:
    """Exit code 2 with the folder to fill."""
    with pytest.raises(ConfigError, match="raw/beatsight_demo") as failure:
        sources.ingest(settings, "demo")
    assert failure.value.code == "missing-root"


def test_an_empty_root_and_a_header_without_rows_are_not_empty_artefacts(settings: Settings, demo: Path) -> None:
    """Nothing to read is exit code 1 or 3, never an empty table with exit code 0."""
    (demo / "takes.csv").write_text(HEADER)
    with pytest.raises(NothingToDo):
        sources.ingest(settings, "demo")
    (demo / "takes.csv").unlink()
    with pytest.raises(InputError) as failure:
        sources.ingest(settings, "demo")
    assert failure.value.code == "missing-metadata"
    assert not settings.layout.events("beatsight_demo").exists()


def test_an_unknown_dataset_names_the_nearest(settings: Settings) -> None:
    """A typing error gets the right word back."""
    with pytest.raises(ConfigError, match="groove"):
        sources.ingest(settings, "grove")


def test_a_bug_in_a_source_is_a_row_and_turns_the_gate_red(settings: Settings, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is not ours becomes `internal-error`, the others are read, the run is not green."""
    from beatsight_assets.sources import rendered

    read = rendered.read

    def broken(root: Path, recording: sources.Recording, *rest: object) -> object:
        if recording.timeline == "midi/b.mid":
            raise RuntimeError("boom")
        return read(root, recording, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rendered, "read", broken)
    report = sources.ingest(settings, "demo")
    assert quarantine(settings) == [("midi/b.mid", "internal-error")]
    assert report.figures["recordings"] == 2
    assert not report.passed


def test_a_bug_in_reading_many_at_once_strikes_nobody(settings: Settings, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reading of a row of recordings fails as a whole, each of them is read alone."""

    def broken(*_: object) -> list[object]:
        raise RuntimeError("boom")

    monkeypatch.setattr("beatsight_assets.sources.rendered.read_many", broken, raising=False)
    report = sources.ingest(settings, "demo")
    assert report.passed and report.figures["recordings"] == 3


def test_an_error_in_a_row_of_recordings_is_that_of_its_recording(settings: Settings, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a module hands back in the place of a recording is its row in quarantine; the others are read."""

    def many(root: Path, recordings: list[Recording], *rest: object) -> list[object]:
        bad = InputError("no drum in it", code="no-events")
        return [bad if r.timeline == "midi/b.mid" else rendered.read(root, r, *rest) for r in recordings]  # type: ignore[arg-type]

    monkeypatch.setattr("beatsight_assets.sources.rendered.read_many", many, raising=False)
    report = sources.ingest(settings, "demo")
    assert report.figures["recordings"] == 2 and quarantine(settings) == [("midi/b.mid", "no-events")]


@pytest.mark.parametrize("bits", [3, 27], ids=["slots shared by all", "slots of their own"])
def test_a_repeated_id_is_counted_wherever_it_stands(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """Ids that repeat inside a frame of the table and across two are counted; different ids never are."""
    monkeypatch.setattr("beatsight_assets.sources.pipeline.SLOT_BITS", bits)
    taxonomy = Taxonomy.shipped()
    hits = events.Hits.single(taxonomy.note_map("td11")[36])
    frames = [events.assemble("x", [(events.Session(f"{part}{i}", "g"), hits) for i in range(40)], taxonomy).frame for part in ("a", "b")]
    for names, n_repeated in (((0, 1), 0), ((0, 1, 0), 40), ((1, 0, 0, 1), 80)):
        tally = pipeline.Tally(taxonomy)
        for n in names:
            tally.add(frames[n], set(frames[n]["session_id"]))
        pl.concat([frames[n] for n in names]).write_parquet(tmp_path / "events.parquet")
        assert tally.n_repeated_ids(tmp_path / "events.parquet") == n_repeated
        assert (tally.n_sessions, tally.n_strangers) == (40 * len(names), 0)


def test_two_rows_for_one_session_are_refused_once(settings: Settings, demo: Path) -> None:
    """The first in order stays, the second is a row, no id collides."""
    with (demo / "takes.csv").open("a") as table:
        table.write("a2,midi/a.mid,audio/a.wav,kit_a,a,train,drum_only\n")
    report = sources.ingest(settings, "demo")
    assert quarantine(settings) == [("midi/a.mid", "duplicate-session")]
    assert report.figures["recordings"] == 3


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"options": {"group_prefx": "x:"}}, "group_prefix"), ({"module": "grove"}, "grove")],
    ids=["an option that the module does not know", "a module that is not there"],
)
def test_a_wrong_dataset_entry_is_a_config_error(settings: Settings, demo: Path, changes: dict[str, object], word: str) -> None:
    """A typing error in configs/datasets.yaml is exit code 2 with the right word, never a silent default."""
    from dataclasses import replace

    wrong = replace(settings)
    wrong.__dict__["datasets"] = settings.datasets | {"beatsight_demo": settings.datasets["beatsight_demo"].model_copy(update=changes)}
    with pytest.raises(ConfigError, match=word):
        sources.ingest(wrong, "demo")


def test_an_unknown_drum_module_is_a_config_error(tmp_path: Path) -> None:
    """A drummer's device must be one whose notes are known."""
    from beatsight_assets.sources import groove

    (tmp_path / "info.csv").write_text(
        "drummer,session,id,style,bpm,beat_type,time_signature,midi_filename,audio_filename,duration,split\n"
        "drummer2,s,i,rock,100,beat,4-4,a.mid,,1.0,train\n"
    )
    (tmp_path / "a.mid").write_bytes(midi.write_midi([(0, 36, 90)]))
    with pytest.raises(ConfigError, match="td30_socal"):
        list(groove.scan(tmp_path, {"devices": {"drummer2": "td30"}}))


def test_a_limited_read_is_red(settings: Settings, demo: Path) -> None:
    """`--limit` is for a look: its events never pass for the dataset."""
    report = sources.ingest(settings, "demo", limit=1)
    verdict = report.verdict("ingest")
    assert verdict is not None
    rule = verdict.rule("complete")
    assert rule is not None and not rule.passed and not report.passed


def test_a_limited_read_is_a_keyed_sample(settings: Settings, demo: Path) -> None:
    """`--limit N --seed S` takes the N smallest of sha256(seed:session): more of one seed keeps what fewer took, another seed takes others."""

    def sessions(limit: int, seed: int) -> set[str]:
        sources.ingest(settings, "demo", limit=limit, seed=seed)
        return set(events.read_events(settings.layout.events("beatsight_demo"))["session_id"].unique())

    every = sessions(1_000, 0)
    drawn = {(n, seed): sessions(n, seed) for n in (1, 2) for seed in range(4)}
    assert all(found == set(sorted(every, key=lambda s: keyed_order(seed, s))[:n]) for (n, seed), found in drawn.items())
    assert len({frozenset(drawn[1, seed]) for seed in range(4)}) > 1


def test_a_loss_stays_visible_until_it_is_made_good(settings: Settings, demo: Path) -> None:
    """A second look at the same poor data does not make it the yardstick."""
    sources.ingest(settings, "demo")
    kept = (demo / "takes.csv").read_text()
    (demo / "takes.csv").write_text("\n".join(kept.splitlines()[:2]) + "\n")
    for touched in (1, 2):
        os.utime(demo / "takes.csv", (touched, touched))
        verdict = sources.ingest(settings, "demo").verdict("ingest")
        assert verdict is not None
        rule = verdict.rule("yield_vs_last_run")
        assert rule is not None and not rule.passed
