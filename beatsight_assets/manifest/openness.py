"""Is the hi-hat openness what it claims to be: in range, on hats only, and in agreement with the label?

Belongs here: figures about openness in a manifest. Does not belong here: turning pedal values into openness (`events.openness_from_pedal`),
and changing labels. A note that says open while the pedal says closed keeps its label and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from beatsight_assets.events import hits_of
from beatsight_assets.taxonomy import HIHATS_WITH_OPENNESS

OPEN_FROM = 0.35  # spec/events.md section 4: above it a hat that is labelled closed disagrees; an open one disagrees at 0
SLACK = 1e-6


@dataclass(frozen=True)
class OpennessFigures:
    """Hits of the hats. Medians are over known values, None where there are none."""

    n_closed: int
    n_open: int
    n_unknown: int
    n_conflicts: int  # open hits at 0 and closed hits above OPEN_FROM
    n_out_of_range: int  # below 0, above 1 or not a number
    n_not_on_hats: int  # values on components that have no openness
    closed_median: float | None
    open_median: float | None


def measure_openness(events: pl.DataFrame) -> OpennessFigures:
    """Figures over all hits of a manifest with canonical labels."""
    label, value = pl.col("label"), pl.col("openness")
    on_hat, is_open = label.is_in(HIHATS_WITH_OPENNESS), label == "hihat_open"
    conflict = (is_open & (value <= SLACK)) | ((label == "hihat_closed") & (value > OPEN_FROM + SLACK))
    figures = hits_of(events.select("components")).select(
        n_closed=(label == "hihat_closed").sum(),
        n_open=is_open.sum(),
        n_unknown=(on_hat & value.is_null()).sum(),
        n_conflicts=conflict.sum(),
        n_out_of_range=(value.is_not_null() & ~value.is_between(0.0, 1.0)).sum(),
        n_not_on_hats=(~on_hat & value.is_not_null()).sum(),
        closed_median=value.filter(label == "hihat_closed").median(),
        open_median=value.filter(is_open).median(),
    )
    return OpennessFigures(**figures.row(0, named=True))
