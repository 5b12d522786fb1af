"""The small report frames that pandas checks: their columns and bounds are stated once, checked when the frame is made, and shown in the UI.

Belongs here: dagster-pandas types (design ruling 39). Does not belong here: event tables (`events.EVENT_SCHEMA`, polars).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import dagster as dg

from beatsight_assets import store
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Report

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """Kind `string` (each occurs once), `int` or `float`; bounds are inclusive. A figure may be absent if `nullable`."""

    kind: str
    meaning: str
    low: float = -inf
    high: float = inf
    nullable: bool = False

    @property
    def bounds(self) -> str:
        if self.kind == "string":
            return "occurs once"
        return f"{self.low:g} to {self.high:g}" if self.high < inf else f">= {self.low:g}"


def _count(meaning: str, low: int = 0) -> Column:
    return Column("int", meaning, low)


def _share(meaning: str) -> Column:
    return Column("float", meaning, 0.0, 1.0, nullable=True)


FRAMES: dict[str, dict[str, Column]] = {
    "manifest_health": {
        "class": Column("string", "class of the view"),
        "hits": _count("hits of the class"),
        "real": _count("of these, recorded"),
        "synthetic": _count("of these, rendered"),
        "sessions": _count("sessions that have it"),
        "groups": _count("leakage units that have it"),
    },
    "evaluation": {
        "class": Column("string", "class of the view"),
        "hits": _count("hits of the truth"),
        "precision": _share("of the hits that it reports, the share that is there"),
        "recall": _share("of the hits that are there, the share that it reports"),
        "f1": _share("harmonic mean of precision and recall"),
    },
    "bundle_plan": {
        "source": Column("string", "dataset"),
        "clips": _count("planned clips"),
        "seconds": Column("float", "their length [s]", 0.0),
    },
}  # by stage: its table for people is also a checked frame


def weight_columns(low: float, high: float) -> dict[str, Column]:
    """Columns of the weights frame: every group once, at least one event, weights from `low` to `high`."""
    return {
        "group": Column("string", "leakage unit"),
        "events": _count("events that count", 1),
        "weight": Column("float", "how often it is drawn, per event", low, high),
    }


def frame_of(columns: Mapping[str, Column], rows: Sequence[Sequence[Any]]) -> "pd.DataFrame":
    """Rows as a frame with the kinds of the columns; a row of another length is an error, absent figures are NaN."""
    import pandas as pd

    frame = pd.DataFrame([list(row) for row in rows], columns=list(columns))
    return frame.astype({name: float for name, column in columns.items() if column.kind == "float"})


def frame_type(columns: Mapping[str, Column]) -> dg.DagsterType:
    """What a frame must keep."""
    import dagster_pandas as dp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        found = []
        for name, c in columns.items():
            if c.kind == "string":
                found.append(dp.PandasColumn.string_column(name, non_nullable=True, unique=True))
            elif c.kind == "int":
                found.append(dp.PandasColumn.integer_column(name, min_value=int(c.low), non_nullable=True))
            else:
                found.append(
                    dp.PandasColumn.float_column(
                        name, min_value=c.low, max_value=c.high, non_nullable=not c.nullable, ignore_missing_vals=c.nullable
                    )
                )
        kind: dg.DagsterType = dp.create_dagster_pandas_dataframe_type("ReportFrame", "A small table of a report.", columns=found)
    return kind


def checked_schema(what: str, columns: Mapping[str, Column], rows: Sequence[Sequence[Any]]) -> dg.TableSchema:
    """The columns as the UI shows them, once the rows keep them.

    Raises
    ------
    dg.Failure : a row breaks a constraint; a step failure, because a wrong frame must not be judged at all
    """
    verdict = frame_type(columns).type_check(None, frame_of(columns, rows))  # type: ignore[arg-type]
    if not verdict.success:
        raise dg.Failure(f"the {what} frame breaks its type: {verdict.description}", allow_retries=False)
    return dg.TableSchema(
        [dg.TableColumn(n, c.kind, c.meaning, dg.TableColumnConstraints(nullable=c.nullable, other=[c.bounds])) for n, c in columns.items()]
    )


def columns_of(report: Report) -> dg.TableSchema | None:
    """Columns of a report's table if its stage has a frame; raises as `checked_schema`."""
    columns = FRAMES.get(report.stage)
    return checked_schema(report.stage, columns, report.table.rows) if columns and report.table and report.table.rows else None


def with_weights(settings: Settings, result: dg.MaterializeResult) -> dg.MaterializeResult:
    """Hold all published weights (the table for people has the heaviest) against their type, and show their columns."""
    report = store.read_json(settings.layout.report("sampling", "annotated_weights.json"))
    rows = [(name, group["count"], group["weight"]) for name, group in report["groups"].items()]
    columns = weight_columns(*(float(report["parameters"][k]) for k in ("min_weight", "max_weight")))
    return result._replace(metadata={**(result.metadata or {}), "dagster/column_schema": checked_schema("weights", columns, rows)})
