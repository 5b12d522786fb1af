"""The stage that measures a dataset: real tracks pass, moved and reversed annotations are caught, the constant of a dataset, training by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets.cli import main
from beatsight_assets.errors import ConfigError, GateFailed
from beatsight_assets.model.data import Truth, moved
from beatsight_assets.readiness import annotation_alignment as alignment
from beatsight_assets.readiness.annotation_alignment import AlignmentOptions
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.sources import ingest
from beatsight_assets.units import rng_for
from beatsight_assets_tests.sources.enst_layout import annotation, write_piece

HEARD = ("80sRock", "Beatles", "Britpop", "Hendrix", "Punk", "Rock", "Shadows", "Zeppelin")


def enst(settings: Settings, shifts_ms: dict[str, float]) -> None:
    """Pieces whose audio is later than their annotation by so many milliseconds."""
    root = settings.layout.raw("enst_drums")
    for number, (name, shift_ms) in enumerate(shifts_ms.items()):
        piece = f"{number:03}_phrase_{name}_simple_medium_sticks"
        onsets = np.round(np.cumsum(rng_for(number, name).uniform(0.2, 0.4, 12)) + 0.3, 3)
        path = write_piece(root, "drummer_1", piece, [(t + shift_ms / 1e3, "sd") for t in onsets], channels=("wet_mix",), seconds=6.0)
        (root / path).write_bytes(annotation([(t, "sd") for t in onsets]))
    ingest(settings, "enst")


def rows(settings: Settings, source_set: str) -> dict[str, dict[str, object]]:
    table = pl.read_parquet(alignment.table_path(settings, source_set))
    assert table.schema == alignment.ALIGNMENT_SCHEMA
    return {str(r["session_id"]).split("/")[-1]: r for r in table.iter_rows(named=True)}


def test_a_dataset_with_a_constant_and_one_bad_recording(settings: Settings) -> None:
    """Three recordings 6 ms late give the constant of the dataset; the one 60 ms late is flagged and is not part of it."""
    enst(settings, {"a": 6, "b": 6, "c": 6, "d": 60})
    report = alignment.run(settings, AlignmentOptions("enst"))
    found = rows(settings, "enst_drums")
    status = {name[11]: (r["status"], r["best_shift_ms"]) for name, r in found.items()}
    assert {k: v[0] for k, v in status.items()} == {"a": "fits", "b": "fits", "c": "fits", "d": "flagged"}
    assert status["d"][1] == pytest.approx(60, abs=4)
    offset = report.facts["offset"]
    assert offset["n"] == 3 and offset["offset_ms"] == pytest.approx(6, abs=4) and offset["spread_ms"] <= 1
    assert [f["session_id"][-40:] for f in report.facts["flagged"]] == ["mix/003_phrase_d_simple_medium_sticks.wav"[-40:]]
    verdict = report.verdict("annotation_alignment")
    assert verdict is not None and not report.passed and "best_shift_ms" in verdict.rules[0].detail
    stored = json.loads(settings.layout.report("alignment", "enst_drums.json").read_text())
    assert stored["offset"] == offset and (stored["judged"], stored["flagged"][0]["session_id"]) == (
        4,
        report.facts["flagged"][0]["session_id"],
    )
    assert alignment.run(settings, AlignmentOptions("enst_drums")).reused
    assert alignment.offsets_ms(settings, ["enst_drums"]) == {"enst_drums": offset["offset_ms"]}


def test_what_cannot_be_judged_is_said(settings: Settings) -> None:
    """Absent and unreadable audio and seven onsets have their own status; with nothing judged the gate fails; no constant from two."""
    enst(settings, {"a": 0, "b": 0, "c": 0, "d": 0})
    audio = sorted((settings.layout.raw("enst_drums") / "ENST-drums-public/drummer_1/audio/wet_mix").iterdir())
    text = sorted((settings.layout.raw("enst_drums") / "ENST-drums-public/drummer_1/annotation").iterdir())
    audio[0].unlink()
    audio[1].write_bytes(b"RIFF no wav")
    text[2].write_bytes(b"".join(text[2].read_bytes().splitlines(keepends=True)[:7]))
    ingest(settings, "enst")
    report = alignment.run(settings, AlignmentOptions("enst"))
    assert [r["status"] for r in rows(settings, "enst_drums").values()] == ["audio-absent", "audio-refused", "too-few-onsets", "fits"]
    assert report.passed and report.facts["offset"] == {"offset_ms": None, "n": 1, "spread_ms": None}
    assert alignment.offsets_ms(settings, ["enst_drums"]) == {"enst_drums": 0.0}
    audio[3].unlink()
    report = alignment.run(settings, AlignmentOptions("enst"))
    assert not report.passed and [r.code for v in report.verdicts for r in v.reasons] == ["nothing-to-judge"]


def test_offsets_are_those_of_the_events_at_hand(settings: Settings) -> None:
    """Without a report, or after the events changed, training is told what to run."""
    with pytest.raises(GateFailed, match="readiness align"):
        alignment.offsets_ms(settings, ["enst_drums"])
    enst(settings, {"a": 0})
    alignment.run(settings, AlignmentOptions("enst"))
    enst(settings, {"a": 0, "b": 0})
    with pytest.raises(GateFailed) as caught:
        alignment.offsets_ms(settings, ["enst_drums"])
    assert caught.value.code == "stale"


def test_targets_move_by_the_constant() -> None:
    """Onsets and unknown instants move together, to whole microseconds, never before 0; velocity and classes stay."""
    none = np.zeros(0)
    truth = Truth(
        np.array([0.002, 1.0]),
        np.array([0, 1]),
        np.array([0.5, np.nan]),
        np.array([np.nan] * 2),
        np.ones(2, bool),
        np.array([0.5]),
        np.array([1]),
    )
    later = moved(truth, 6.5)
    assert later.onset_s.tolist() == [0.0085, 1.0065] and later.unknown_onset_s.tolist() == [0.5065]
    assert moved(truth, -5.0).onset_s.tolist() == [0.0, 0.995]
    assert later.velocity is truth.velocity and later.class_index is truth.class_index and moved(truth, 0.0) is truth and not len(none)


def run_cli(data_root: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["--data-root", str(data_root), "--profile", "demo", *arguments])
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out + captured.err


def test_the_command_exits_by_what_was_found(settings: Settings, data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 when all fit, 1 when one is flagged or nothing can be judged, 2 without a dataset, 3 before the ingest."""
    assert run_cli(data_root, capsys, "readiness", "align")[0] == 2
    assert run_cli(data_root, capsys, "readiness", "align", "--all")[0] == 1
    assert run_cli(data_root, capsys, "readiness", "align", "--annotations", "enst")[0] == 3
    enst(settings, {"a": 2, "b": 2})
    code, text = run_cli(data_root, capsys, "readiness", "align", "--annotations", "enst")
    assert code == 0 and "flagged" in text
    enst(settings, {"a": 2, "b": 80})
    code, text = run_cli(data_root, capsys, "readiness", "align", "--all", "--json", "--quiet")
    assert code == 1 and json.loads(text)["facts"]["flagged"][0]["best_shift_ms"] == pytest.approx(80, abs=4)


def test_an_unknown_limit_is_a_config_error(settings: Settings) -> None:
    """A misspelt limit does not silently judge by the default."""
    enst(settings, {"a": 2})
    gates = settings.gates.model_dump(mode="json")
    gates["readiness"]["annotation_alignment"] = {"max_shift": 15.0}
    settings.store.publish_json(settings.layout.at("configs/gates/demo.yaml"), gates)
    with pytest.raises(ConfigError) as caught:
        alignment.run(Settings(layout=settings.layout, profile="demo"), AlignmentOptions("enst"))
    assert caught.value.code == "unknown-choice"


def real_copy(root: Path, shared_data: Path, change: str) -> Settings:
    """MDB Drums with annotations as they are, 60 ms later, or reversed in time."""
    settings = Settings(layout=DataLayout(root), profile="demo")
    raw = settings.layout.raw("mdb_drums")
    for title in HEARD:
        for kind in ("subclass", "class"):
            source = shared_data / f"mdb_drums/MDB Drums/annotations/{kind}/MusicDelta_{title}_{kind}.txt"
            target = raw / source.relative_to(shared_data / "mdb_drums")
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = [line.split() for line in source.read_text().splitlines() if line.strip()]
            last = max(float(t) for t, _ in lines)
            moved_lines = {"": lambda t: t, "later": lambda t: t + 0.06, "reversed": lambda t, last=last: last - t + 0.01}[change]
            target.write_text("".join(f"{moved_lines(float(t)):.6f} \t {label} \n" for t, label in lines))
        for name in (f"drum_only/MusicDelta_{title}_Drum.wav", f"full_mix/MusicDelta_{title}_MIX.wav"):
            source, target = shared_data / f"mdb_drums/MDB Drums/audio/{name}", raw / f"MDB Drums/audio/{name}"
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)  # a link out of the root would be refused
    ingest(settings, "mdb")
    return settings


@pytest.mark.data
def test_the_real_tracks_fit_as_they_are(tmp_path: Path, shared_data: Path) -> None:
    """Eight drum tracks within 4 ms with scores 1.90-4.61, three full mixes within 5 ms: 11 of 11 fit; the constant of MDB Drums is -1 ms."""
    settings = Settings(layout=DataLayout(tmp_path), profile="demo")
    settings.layout.at("raw").mkdir()
    settings.layout.raw("mdb_drums").symlink_to(shared_data / "mdb_drums")
    ingest(settings, "mdb")
    report = alignment.run(settings, AlignmentOptions("mdb"))
    assert report.passed
    assert {k: report.figures[k] for k in ("recordings", "fits", "flagged", "audio_absent")} == {
        "recordings": 16, "fits": 11, "flagged": 0, "audio_absent": 5
    }  # fmt: skip
    table = pl.read_parquet(alignment.table_path(settings, "mdb_drums")).filter(status="fits")
    drums = table.filter(mix_context="drum_only")
    assert drums["best_shift_ms"].abs().max() <= 4 and table["best_shift_ms"].abs().max() <= 5  # type: ignore[operator]
    assert (round(float(drums["score_at_best"].min()), 2), round(float(drums["score_at_best"].max()), 2)) == (1.90, 4.61)  # type: ignore[arg-type]
    assert report.facts["offset"] == {"offset_ms": -1.0, "n": 11, "spread_ms": 1.0}


@pytest.mark.data
@pytest.mark.parametrize("change", ["later", "reversed"])
def test_moved_and_reversed_annotations_are_caught(tmp_path: Path, shared_data: Path, change: str) -> None:
    """The same tracks with their onsets 60 ms later, or reversed in time: every drum track is flagged, and none gives a constant."""
    settings = real_copy(tmp_path, shared_data, change)
    report = alignment.run(settings, AlignmentOptions("mdb"))
    drums = pl.read_parquet(alignment.table_path(settings, "mdb_drums")).filter(mix_context="drum_only")
    assert drums["status"].to_list() == ["flagged"] * 8 and not report.passed
    if change == "later":
        assert report.figures["flagged"] == 11 and drums["best_shift_ms"].is_between(-64, -56).all()
        assert report.facts["offset"]["offset_ms"] is None
