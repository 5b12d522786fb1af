"""How often an open hi-hat is choked: open to closed or pedal within a window, per session.

Belongs here: the figures of one manifest. Does not belong here: the rule of a bark (`techniques.find_barks`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from beatsight_assets.manifest.techniques import BARK_WINDOW_US, Timeline, find_barks

TOP = 20  # sessions named, most barks first


def measure_hihats(events: pl.DataFrame, *, window_us: int = BARK_WINDOW_US) -> dict[str, Any]:
    """Open events, barks among them, and the sessions with most of them; independent of row order.

    window_us : longest distance from open to closed, inclusive
    """
    timeline = Timeline.of(events)
    opened = timeline.events_with(("hihat_open",))
    first, _ = find_barks(timeline, window_us)
    keys = events.select("source_set", "session_id")
    n_sessions = keys.n_unique()
    tables = [
        keys[timeline.row[index]].group_by("source_set", "session_id").len().rename({"len": name})
        for name, index in (("open_events", opened), ("bark_candidates", first))
    ]
    top = (
        tables[1]
        .join(tables[0], on=["source_set", "session_id"], how="left")
        .sort(["bark_candidates", "source_set", "session_id"], descending=[True, False, False])
        .head(TOP)
        .select("source_set", "session_id", pl.col("open_events").cast(pl.Int64), pl.col("bark_candidates").cast(pl.Int64))
    )
    return {
        "window_seconds": window_us / 1e6,
        "total_sessions": n_sessions,
        "total_open_events": int(np.size(opened)),
        "bark_candidates": int(first.size),
        "bark_ratio": round(first.size / opened.size, 9) if opened.size else None,
        "top_sessions": top.to_dicts(),
    }
