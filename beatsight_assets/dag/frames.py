"""The small report frames that pandas checks: their columns and bounds are stated once, checked when the frame is made, and shown in the UI.

Belongs here: dagster-pandas types (design ruling 39). Does not belong here: event tables (`events.EVENT_SCHEMA`, polars).
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from beatsight_assets import store
from beatsight_assets.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

WEIGHT_COLUMNS = {
    "group": ("string", "leakage unit"),
    "events": ("int", "events that count"),
    "weight": ("float", "how often it is drawn, per event"),
}


def weights_frame(report: Mapping[str, Any]) -> "pd.DataFrame":
    """The weights file as a frame: group, events, weight."""
    import pandas as pd

    rows = [(name, group["count"], float(group["weight"])) for name, group in report["groups"].items()]
    return pd.DataFrame(rows, columns=list(WEIGHT_COLUMNS))


def weights_type(low: float, high: float) -> dg.DagsterType:
    """Type of the weights frame: every group once, at least one event, weights from `low` to `high`."""
    import dagster_pandas as dp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        columns = [
            dp.PandasColumn.string_column("group", non_nullable=True, unique=True),
            dp.PandasColumn.integer_column("events", min_value=1, non_nullable=True),
            dp.PandasColumn.float_column("weight", min_value=low, max_value=high, non_nullable=True),
        ]
        kind: dg.DagsterType = dp.create_dagster_pandas_dataframe_type("WeightsFrame", "Sampling weight of every group.", columns=columns)
    return kind


def with_weights(settings: Settings, result: dg.MaterializeResult) -> dg.MaterializeResult:
    """Hold the published weights against their type, and show its columns.

    Raises
    ------
    dg.Failure : a weight or a group breaks its constraint; a step failure, because a wrong frame must not be judged at all
    """
    report = store.read_json(settings.layout.report("sampling", "annotated_weights.json"))
    low, high = (float(report["parameters"][k]) for k in ("min_weight", "max_weight"))
    verdict = weights_type(low, high).type_check(None, weights_frame(report))  # type: ignore[arg-type]
    if not verdict.success:
        raise dg.Failure(f"the weights frame breaks its type: {verdict.description}", allow_retries=False)
    bounds = {"group": ["occurs once"], "events": [">= 1"], "weight": [f"{low:g} to {high:g}"]}
    schema = dg.TableSchema(
        [
            dg.TableColumn(n, kind, text, dg.TableColumnConstraints(nullable=False, other=bounds[n]))
            for n, (kind, text) in WEIGHT_COLUMNS.items()
        ]
    )
    return result._replace(metadata={**(result.metadata or {}), "dagster/column_schema": schema})
