"""Events for tests: single ones written by hand, and many drawn from a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from beatsight_assets.events import BUCKETS, COMPONENT_STRUCT, EVENT_SCHEMA, Hits, Session, assemble, bucket_ids, event_id
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets.units import rng_for


def hit(label: str, velocity: float | None = None, **fields: Any) -> dict[str, Any]:
    """One component; the bucket follows from the velocity."""
    bucket = BUCKETS[int(bucket_ids(np.array([np.nan if velocity is None else velocity], dtype=np.float32))[0])]
    return dict.fromkeys(COMPONENT_STRUCT.to_schema()) | {"label": label, "velocity": velocity, "dynamic_bucket": bucket} | fields


def event(onset_s: float, *hits: str | dict[str, Any], session: str = "a.mid", source: str = "test_set", **fields: Any) -> dict[str, Any]:
    """One event row; labels stand for hits without velocity."""
    row = dict.fromkeys(EVENT_SCHEMA) | {
        "event_id": event_id(source, session, round(onset_s * 1e6)),
        "session_id": session,
        "source_set": source,
        "group_id": f"g:{session}",
        "is_synthetic": False,
        "onset_time": onset_s,
        "components": [hit(h) if isinstance(h, str) else h for h in hits],
        "techniques": [],
        "context_ms": {"pre": 80.0, "post": 200.0},
        "mix_context": "drum_only",
        "negative_example": not hits,
        "metadata_ref": f"provenance:{session}",
        "extras": json.dumps(fields.pop("extras", {})),
    }
    return row | fields


def frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Rows as an event table."""
    return pl.DataFrame(list(rows), schema=EVENT_SCHEMA, orient="row")


VOICES = (
    *(Voice(x) for x in ("kick", "snare", "rimshot", "cross_stick", "hihat_closed", "hihat_open", "hihat_pedal", "hihat_foot_splash")),
    *(Voice(x) for x in ("ride_bow", "ride_bell", "crash", "crash2", "splash", "china", "tom_high", "tom_mid", "tom_low", "gong")),
    *(Voice("crash", "crash_5"), Voice("china", "china_2"), Voice("splash", "splash_2"), Voice("tom_low", "floor_2")),
)
WEIGHTS = np.array([6, 8, 2, 1, 4, 4, 3, 1, 2, 1, 1, 1, 1, 1, 2, 1, 2, 0.2, 1, 0.5, 0.5, 0.5])
GAPS_MS = (
    0,
    4,
    10,
    11,
    15,
    20,
    25,
    29,
    30,
    31,
    40,
    50,
    51,
    60,
    70,
    71,
    80,
    81,
    100,
    130,
    131,
    150,
    200,
    201,
    400,
)  # on and beside every limit


def random_events(n_hits: int, *, seed: int = 0, n_sessions: int = 20, source: str = "test_set") -> pl.DataFrame:
    """Events of several sessions whose gaps, velocities, tempi and meters lie on and beside the limits of the technique rules."""
    rng = rng_for(seed, "random_events", source)
    batch = []
    for s in range(n_sessions):
        n = n_hits // n_sessions
        tempi = np.array([120.0, 120.6, 121.2, 121.3, 180.0, 178.5, 177.0, 60.0, 90.0, 80.0, np.nan])
        batch.append(
            (
                Session(f"drummer/{s}.mid", f"g:{s // 2}"),
                Hits(
                    voices=VOICES,
                    onset_us=np.cumsum(rng.choice(GAPS_MS, n) * 1000 + rng.integers(-1, 2, n)).clip(0),
                    voice=rng.choice(len(VOICES), n, p=WEIGHTS / WEIGHTS.sum()),
                    velocity=np.where(rng.random(n) < 0.05, np.nan, rng.integers(1, 128, n) / 127).astype(np.float32),
                    openness=np.where(
                        rng.random(n) < 0.1, np.nan, rng.choice([0, 0.35, 0.3499995, 0.5, 0.7999995, 0.8, 0.9, 1.0], n)
                    ).astype(np.float32),
                    tempo_bpm=tempi[rng.integers(0, len(tempi), n // 40 + 1)].repeat(40)[:n],
                    meters=("4/4", "7/8", "3/4"),
                    meter=rng.integers(-1, 3, n // 60 + 1).repeat(60)[:n],
                ),
            )
        )
    return assemble(source, batch, Taxonomy.shipped()).frame
