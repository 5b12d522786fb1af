"""The gates bite (design ruling 27): audio that lacks a class, and labels that are wrong, turn the demo red.

Slow, because each trains a model on the broken data with the demo's own preset and judges it by the demo's own limits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beatsight_assets import midi, sampling, sources
from beatsight_assets.audio import write_wav
from beatsight_assets.features import cache
from beatsight_assets.health import report as health
from beatsight_assets.manifest import annotate, merge, splits
from beatsight_assets.model import evaluate, train
from beatsight_assets.render import demo, stage, synth
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.sources.tables import read_csv
from beatsight_assets.stages import Report
from beatsight_assets.units import keyed_order, rng_for

pytestmark = pytest.mark.slow
LOST = "china"  # a class with hits of its own: it rarely sounds together with what could give it away


def judged(root: Path, damage: Callable[[Path], None]) -> tuple[Settings, Report]:
    """The path from demo data to the evaluation, by the functions that the assets call, with damage after rendering."""
    settings = Settings(layout=DataLayout(root), profile="demo", n_workers=1)
    stage.run(settings)
    damage(settings.layout.raw("beatsight_demo"))
    sources.ingest(settings, "demo")
    merge.run(settings)
    annotate.run(settings)
    splits.run(settings)
    health.run(settings)
    sampling.run(settings)
    cache.run(settings)
    train.run(settings, train.TrainOptions(preset="demo", tracker="null"))
    return settings, evaluate.run(settings)


def without_class(raw: Path) -> None:
    """Render every take again without one class; the labels still claim it."""
    for row in read_csv(raw / "takes.csv"):
        try:
            played = demo.read_performance(row["take_id"], (raw / row["midi_filename"]).read_bytes())
        except midi.MidiError:
            continue
        kept = np.array([label != LOST for label in played.labels])
        kit = synth.Kit.from_seed(row["kit_id"], 7)
        labels = [label for label in played.labels if label != LOST]
        sound = synth.render(
            kit, played.onsets_us[kept], labels, played.velocities[kept], played.openness[kept], seed=7, take_id=row["take_id"]
        )
        (raw / row["audio_filename"]).write_bytes(write_wav(sound, synth.RATE_HZ))


def with_shuffled_labels(raw: Path) -> None:
    """In a quarter of the files the notes change places: same onsets, same sounds, other labels."""
    rows = sorted(read_csv(raw / "takes.csv"), key=lambda r: keyed_order(1, r["take_id"]))
    for row in rows[: len(rows) // 4]:
        path = raw / row["midi_filename"]
        try:
            notes = midi.read_midi(path.read_bytes()).notes
        except midi.MidiError:
            continue
        shuffled = rng_for(1, "shuffle", row["take_id"]).permutation(notes.note)
        path.write_bytes(
            midi.write_midi([(int(t), int(n), int(v)) for t, n, v in zip(notes.onset_us, shuffled, notes.velocity, strict=True)])
        )


def test_a_class_that_is_not_in_the_audio_turns_the_evaluation_red(tmp_path: Path) -> None:
    """Labels claim chinas that nobody hears: the class is judged deaf, the demo is red."""
    settings, report = judged(tmp_path, without_class)
    verdict = report.verdict("evaluation")
    assert verdict is not None and not verdict.passed
    rule = verdict.rule(f"class_recall[{LOST}]")
    assert rule is not None and not rule.passed
    render = stage.matches_midi(settings, settings.layout.raw("beatsight_demo"), seed=0)
    assert render.gate == "render"


def test_shuffled_labels_in_a_quarter_of_the_files_turn_the_evaluation_red(tmp_path: Path) -> None:
    """Wrong labels cost the score its limit."""
    _, report = judged(tmp_path, with_shuffled_labels)
    verdict = report.verdict("evaluation")
    assert verdict is not None and not verdict.passed
    assert not all(r.passed for name in ("pooled_f1", "pooled_f1_drums5") for r in verdict.family(name))
