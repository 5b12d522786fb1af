"""Report frames and their types (design ruling 39)."""

from typing import Any

import dagster as dg
import pytest

from beatsight_assets.dag.frames import FRAMES, checked_schema, columns_of, weight_columns, with_weights
from beatsight_assets.dag.metadata import describe
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Report, Table

GROUPS = {"a": {"count": 3, "weight": 0.5}, "b": {"count": 40, "weight": 0.05}}
ROWS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "manifest_health": (("kick", 9, 4, 5, 2, 2), ("snare", 0, 0, 0, 0, 0)),
    "evaluation": (("kick", 9, 0.9, 1.0, 0.947), ("snare", 0, None, None, None)),
    "bundle_plan": (("beatsight_demo", 207, 57.96),),
}
BAD: dict[str, tuple[Any, ...]] = {
    "manifest_health": ("crash", -1, 0, 0, 0, 0),
    "evaluation": ("crash", 3, 1.2, 0.5, 0.6),
    "bundle_plan": ("other", 3, -1.0),
}


def write(settings: Settings, groups: dict[str, dict[str, float]]) -> None:
    report = {"groups": groups, "parameters": {"min_weight": 0.05, "max_weight": 0.5}}
    settings.store.publish_json(settings.layout.report("sampling", "annotated_weights.json"), report)


def report_of(stage: str, rows: tuple[tuple[Any, ...], ...]) -> Report:
    return Report(stage, None, "1", {}, (), (), {}, {}, (), Table(tuple(FRAMES[stage]), rows))


def test_bounds_are_inclusive() -> None:
    """Weights at their bounds are valid."""
    assert checked_schema("weights", weight_columns(0.05, 0.5), [(n, g["count"], g["weight"]) for n, g in GROUPS.items()])


def test_good_weights_show_their_columns(settings: Settings) -> None:
    """The frame's columns, bounds and meaning are in the UI."""
    write(settings, GROUPS)
    found = with_weights(settings, dg.MaterializeResult(metadata={"groups": 2}))
    schema = found.metadata["dagster/column_schema"]  # type: ignore[index]
    assert [c.name for c in schema.columns] == ["group", "events", "weight"]
    assert schema.columns[2].constraints.other == ["0.05 to 0.5"]


@pytest.mark.parametrize(
    "bad", [{"count": 3, "weight": 0.51}, {"count": 0, "weight": 0.2}], ids=["weight above its bound", "group without events"]
)
def test_bad_weights_fail_the_step(settings: Settings, bad: dict[str, float]) -> None:
    """A frame that breaks its type is a failed step without retries, before any check judges it."""
    write(settings, {**GROUPS, "c": bad})
    with pytest.raises(dg.Failure, match="breaks its type") as failed:
        with_weights(settings, dg.MaterializeResult())
    assert failed.value.allow_retries is False


@pytest.mark.parametrize("stage", FRAMES)
def test_tables_of_classes_and_durations_are_frames(settings: Settings, stage: str) -> None:
    """Classes of the health report, scores by class and planned seconds show their columns; a row out of bounds or twice fails the step."""
    schema = describe(settings, report_of(stage, ROWS[stage]))["dagster/column_schema"]
    assert [c.name for c in schema.columns] == list(FRAMES[stage]) and all(c.description for c in schema.columns)
    for rows in ((*ROWS[stage], BAD[stage]), ROWS[stage] * 2):
        with pytest.raises(dg.Failure, match=f"the {stage} frame breaks its type"):
            columns_of(report_of(stage, rows))
