"""The weights frame and its type (design ruling 39)."""

import dagster as dg
import pytest

from beatsight_assets.dag.frames import weights_frame, weights_type, with_weights
from beatsight_assets.settings import Settings

GROUPS = {"a": {"count": 3, "weight": 0.5}, "b": {"count": 40, "weight": 0.05}}


def write(settings: Settings, groups: dict[str, dict[str, float]]) -> None:
    report = {"groups": groups, "parameters": {"min_weight": 0.05, "max_weight": 0.5}}
    settings.store.publish_json(settings.layout.report("sampling", "annotated_weights.json"), report)


def test_bounds_are_inclusive() -> None:
    """Weights at their bounds are valid."""
    assert weights_type(0.05, 0.5).type_check(None, weights_frame({"groups": GROUPS})).success


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
