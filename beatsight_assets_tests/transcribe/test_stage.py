"""The stage `transcriptions` on a small data root with songs the hand-made model knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets.errors import ConfigError, NothingToDo
from beatsight_assets.events import Hits, Session, assemble
from beatsight_assets.settings import Settings, load_settings
from beatsight_assets.sources import PROVENANCE_SCHEMA
from beatsight_assets.stages import read_receipt
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets.transcribe import stage
from beatsight_assets_tests.transcribe.factory import promote, write_song

LABELS = ("kick", "hihat_closed")
PLAYED = [(0.25 + 0.25 * i, LABELS[i % 2], 0.6) for i in range(14)]
SOURCES = (
    "datasets:\n  songs: {short: songs, raw_folder: songs, module: rendered}\n  real: {short: real, raw_folder: real, module: rendered}\n"
)


def make_lake(root: Path, takes: dict[str, tuple[str, str | None, str]], *, wrong: bool = False) -> Settings:
    """takes : {session: (source, kit, split)}. `wrong`: the annotation names other drums than are heard."""
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "datasets.yaml").write_text(SOURCES)
    settings = load_settings(root, "demo", environ={})
    names = ("snare", "china") if wrong else LABELS
    hits = Hits(
        voices=tuple(Voice(x) for x in names),
        onset_us=np.array([round(at * 1e6) for at, *_ in PLAYED], dtype=np.int64),
        voice=np.array([LABELS.index(label) for _, label, _ in PLAYED], dtype=np.int64),
        velocity=np.full(len(PLAYED), 0.6, dtype=np.float32),
    )
    frames = []
    for name in sorted({source for source, *_ in takes.values()}):
        sessions = [
            Session(f"midi/{s}.mid", f"g:{s}", kit_id=kit, is_synthetic=source == "songs", audio_path=f"audio/{s}.wav")
            for s, (source, kit, _) in takes.items()
            if source == name
        ]
        frames.append(assemble(name, [(s, hits) for s in sessions], Taxonomy.shipped()).frame)
        rows = [
            {"source_set": name, "session_id": s.session_id, "group_id": s.group_id, "coverage": list(Taxonomy.shipped().labels)}
            for s in sessions
        ]
        settings.store.publish_frame(settings.layout.provenance(name), pl.DataFrame(rows, schema=PROVENANCE_SCHEMA, orient="row"))
    for session, (source, _, split) in takes.items():
        if split == "test":
            write_song(settings.layout.raw(source) / "audio" / f"{session}.wav", PLAYED)
    settings.store.publish_frame(settings.layout.annotated, pl.concat(frames))
    splits = pl.DataFrame({"group_id": [f"g:{s}" for s in takes], "split": [split for *_, split in takes.values()]})
    settings.store.publish_frame(settings.layout.splits, splits)
    return settings


TAKES = {
    "t1": ("songs", "kit_a", "train"), "t2": ("songs", "kit_a", "test"), "t3": ("songs", "kit_new", "test"), "t4": ("songs", "kit_new", "test"),
    "t5": ("songs", "kit_new", "test"), "t6": ("songs", "kit_new", "test"),
}  # fmt: skip


def test_held_out_takes_are_transcribed_scored_and_judged(data_root: Path) -> None:
    """Two test takes of kits that training never heard: files, score, verdict, and what the figure is about."""
    settings = make_lake(data_root, TAKES)
    promote(settings, kits=["kit_a"], groups=["g:t1", "g:t6"])
    report = stage.run(settings)
    assert len(report.facts["data"]) == 2 and {d["kit"] for d in report.facts["data"]} == {"kit_new"}
    assert not {"midi/t2.mid", "midi/t6.mid"} & {d["take"] for d in report.facts["data"]}
    assert report.facts["read_as"] == "2 test takes (synthesised audio) of songs, takes not in training, of kits not in training"
    rule = report.verdicts[0].rule("onset_f_measure")
    assert rule is not None and rule.passed and not rule.blocking and (rule.value, rule.limit) == (1.0, 0.75)
    assert report.facts["read_as"] in rule.detail
    assert report.verdicts[0].gate == "transcription" and report.figures["onset_f_drums18"] == 1.0 == report.figures["onset_f_drums5"]
    folders = sorted((data_root / "reports" / "transcribe").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert sorted(p.name for p in folder.iterdir()) == ["score.json", "take.bsm", "take.mid", "take.txt"]
        score = json.loads((folder / "score.json").read_text())
        assert score["views"]["drums18"]["50"]["overall"]["f1"] == 1.0 and score["data"]["kit_in_training"] is False
        assert json.loads((folder / "take.bsm").read_text())["metadata"]["createdAt"] == "2026-01-31T12:00:00Z"
    roles = {a.role for a in report.parents}
    assert {"current", "model", "model_card", "promotion", "annotated", "splits", "provenance"} <= roles


def test_unchanged_work_is_skipped_and_a_new_model_is_heard(data_root: Path) -> None:
    """The receipt holds while model, manifest, audio and limits stay; another model, or a damaged output, runs it again."""
    settings = make_lake(data_root, TAKES)
    promote(settings, kits=["kit_a"])
    first = stage.run(settings)
    contents = {p: p.read_bytes() for p in (data_root / "reports" / "transcribe").rglob("*") if p.is_file()}
    assert stage.run(settings).reused
    next(iter(contents)).write_bytes(b"x")
    assert not stage.run(settings).reused
    assert {p: p.read_bytes() for p in contents} == contents
    for take in (data_root / "raw" / "songs" / "audio").iterdir():
        write_song(take, PLAYED[:-2])
    heard_less = stage.run(settings)
    assert not heard_less.reused and heard_less.figures["onset_f_drums18"] < 1.0
    promote(settings, "demo-2", kits=["kit_a", "other"])
    again = stage.run(settings)
    assert not again.reused and again.digest != heard_less.digest != first.digest and read_receipt(settings, "transcriptions") is not None


def test_a_deaf_model_is_a_warning_not_a_wall(data_root: Path) -> None:
    """F below the limit fails the rule, and does not block: the model serves already."""
    settings = make_lake(data_root, TAKES, wrong=True)
    promote(settings)
    report = stage.run(settings)
    rule = report.verdicts[0].rule("onset_f_measure")
    assert rule is not None and not rule.passed and rule.value == 0.0 and report.passed


def test_real_takes_come_beside_synthesised_ones(data_root: Path) -> None:
    """Where a real take is held out, a synthetic score never stands alone; an unknown kit is called unknown."""
    settings = make_lake(data_root, TAKES | {"r1": ("real", None, "test"), "r2": ("real", None, "test")})
    promote(settings, kits=["kit_a"])
    report = stage.run(settings)
    assert sorted(d["source_set"] for d in report.facts["data"]) == ["real", "songs"]
    assert "of unknown kits" in report.facts["read_as"]
    assert {d["kit_in_training"] for d in report.facts["data"]} == {None, False}


def test_known_kits_are_used_only_when_there_is_no_other_and_said_to_be_known(data_root: Path) -> None:
    """Overlap is never hidden."""
    settings = make_lake(data_root, {k: TAKES[k] for k in ("t1", "t2")})
    promote(settings, kits=["kit_a"])
    report = stage.run(settings)
    assert report.facts["read_as"].endswith("kits also in training") and report.facts["data"][0]["kit_in_training"] is True


def test_takes_that_training_heard_are_no_reference(data_root: Path) -> None:
    """A model that was trained on the test takes has nothing to show: exit 1, not a perfect score."""
    settings = make_lake(data_root, TAKES)
    promote(settings, groups=[f"g:{t}" for t in TAKES])
    with pytest.raises(NothingToDo, match="new to demo-1"):
        stage.run(settings)


def test_the_stage_hears_with_the_promoted_model_only(data_root: Path) -> None:
    """BEATSIGHT_ML_MODEL_PATH does not change what a release shows; without a release there is nothing to show."""
    settings = make_lake(data_root, TAKES)
    with pytest.raises(ConfigError) as caught:
        stage.run(settings)
    assert caught.value.code == "no-model"
    promote(settings, kits=["kit_a"])
    elsewhere = load_settings(data_root, "demo", environ={"BEATSIGHT_ML_MODEL_PATH": "models/nowhere"})
    assert stage.run(elsewhere).facts["model"] == "demo-1"
