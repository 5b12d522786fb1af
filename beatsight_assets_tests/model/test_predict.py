"""Predictions for the readiness gates."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from beatsight_assets.audio import write_wav
from beatsight_assets.errors import InputError
from beatsight_assets.model import predict, train
from beatsight_assets.model.predict import class_columns, cut_window, score_column
from beatsight_assets.readiness import boundary
from beatsight_assets.readiness.rows import read_samples
from beatsight_assets.settings import Settings
from beatsight_assets.store import Store
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.model.factories import RATE_HZ, SOURCE_SET, make_root, warm
from beatsight_assets_tests.model.test_train import options

TAXONOMY = Taxonomy.shipped()
VIEW = TAXONOMY.view("drums18")


def component(label: str, variant: str | None = None) -> dict[str, str | None]:
    """A component as an event holds it."""
    return {"label": label, "instrument_variant": variant}


def names(columns: list[int]) -> set[str]:
    """Classes of columns."""
    return {VIEW.classes[c] for c in columns}


def test_masked_classes_have_neither_label_nor_score() -> None:
    """An unspecified hat masks the hats; a source without toms masks the toms; the kick stays."""
    present, masked = class_columns(
        VIEW, TAXONOMY, [component("kick"), component("hihat_closed", "unspecified")], ["kick", "snare", "hihat"]
    )
    assert names(present) == {"kick"}
    assert {"hihat_closed", "hihat_open", "tom_mid", "crash"} <= names(masked) and "snare" not in names(masked)
    scores = score_column(np.full((2, 18), 0.5, dtype=np.float32), [masked, []], VIEW.classes)
    assert {s["label"] for s in scores[0]} == set(VIEW.classes) - names(masked) and len(scores[1]) == 18


def test_a_window_ends_in_silence_where_the_recording_does() -> None:
    """Zeros before the first and after the last sample; the length is always the same."""
    samples = np.arange(1, 6, dtype=np.float32)
    assert cut_window(samples, -2, 4).tolist() == [0, 0, 1, 2]
    assert cut_window(samples, 3, 4).tolist() == [4, 5, 0, 0]
    assert cut_window(samples, 9, 3).tolist() == [0, 0, 0]


def with_openset(settings: Settings, is_known: str = "false") -> None:
    """Two strangers and their listing."""
    store, folder = Store(settings.layout.root), settings.layout.raw(SOURCE_SET)
    tone = 0.3 * np.sin(2 * np.pi * 700 * np.arange(RATE_HZ // 2) / RATE_HZ)
    for name in ("a", "b"):
        store.publish(folder / f"openset/{name}.wav", write_wav(tone, RATE_HZ))
    store.publish(
        folder / "openset.csv", f"id,is_known,family,file\na,{is_known},tone,openset/a.wav\nb,false,tone,openset/b.wav\n".encode()
    )


def test_every_part_is_written_in_the_form_that_readiness_reads(settings: Settings) -> None:
    """val, test, boundary and openset: one row per sample, finite scores in 0..1, truth in the classes of the model, equal bytes on repeat."""
    frame = make_root(settings, seconds=5.0)
    warm(settings)
    with_openset(settings)
    train.run(settings, options(overrides={"epochs": 1}))
    boundary.run(settings)
    report = predict.run(settings)
    tables = {
        role.removeprefix("predictions_"): read_samples(settings.layout.root / report.output(role).path)
        for role in (a.role for a in report.outputs)
    }
    assert set(tables) == {"val", "test", "boundary", "openset"}
    test_events = frame.filter(pl.col("session_id").is_in(["audio/t4.wav", "audio/t5.wav"]))
    assert sorted(tables["test"]["event_id"]) == sorted(test_events["event_id"])
    for name, table in tables.items():
        assert table.height > 0, name
        scores = table.explode("scores").unnest("scores")
        assert scores["p"].is_between(0.0, 1.0).all() and scores["label"].n_unique() == 18
    assert tables["test"]["labels"].list.len().min() == 1 and tables["test"]["velocity_pred"].is_between(0, 1).all()
    assert set(tables["boundary"]["edge"]) == {"leading", "trailing"}
    known = tables["openset"].group_by("is_known").len().sort("is_known")
    assert known["len"].to_list() == [2, test_events.height]
    assert predict.run(settings).reused
    before = {a.role: a.sha256 for a in report.outputs}
    (settings.layout.receipts / "predictions.json").unlink()
    assert {a.role: a.sha256 for a in predict.run(settings).outputs} == before


def test_parts_without_input_are_left_out_and_named(settings: Settings) -> None:
    """No pack and no strangers: the report says so, and a bad listing is refused by name."""
    make_root(settings, seconds=2.0)
    warm(settings)
    train.run(settings, options(overrides={"epochs": 1}))
    assert predict.run(settings).facts["absent"] == ["boundary", "openset"]
    with_openset(settings, is_known="maybe")
    with pytest.raises(InputError, match="maybe"):
        predict.run(settings)
