"""The technique rules once more, as slow and plain as they stand in spec/events.md section 9. Used as an oracle only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import polars as pl

SLACK = 1e-6


def tags_of(events: pl.DataFrame) -> list[set[str]]:
    """Inferred tags of every row, in row order."""
    return tags_of_rows(
        events.select("source_set", "session_id", "event_id", "onset_time", "components", "meter", "tempo_bpm", "mix_context").to_dicts()
    )


def tags_of_rows(rows: Sequence[dict[str, Any]]) -> list[set[str]]:
    """`tags_of` for rows that are objects already; each gets its onset in microseconds as `us`."""
    sessions: dict[tuple[str, str], list[tuple[int, str, int]]] = defaultdict(list)
    for i, row in enumerate(rows):
        row["us"] = round(row["onset_time"] * 1e6)
        if row["mix_context"] != "stem":
            sessions[row["source_set"], row["session_id"]].append((row["us"], row["event_id"], i))
    tags: list[set[str]] = [set() for _ in rows]
    for members in sessions.values():
        order = [i for _, _, i in sorted(members)]
        _tag_session([rows[i] for i in order], [tags[i] for i in order])
    return tags


def _tag_session(rows: Sequence[dict[str, Any]], tags: Sequence[set[str]]) -> None:
    by_label = {"rimshot": "rimshot", "cross_stick": "cross_stick", "hihat_pedal": "hihat_foot_chick", "hihat_foot_splash": "hihat_foot_splash",
                "ride_bell": "ride_bell_accent"}  # fmt: skip
    open_at, used = None, True
    meter = tempo = None
    for i, row in enumerate(rows):
        labels = {c["label"] for c in row["components"]}
        for c in row["components"]:
            if c["label"] in by_label:
                tags[i].add(by_label[c["label"]])
            if c["label"] in ("snare", "rimshot") and c["dynamic_bucket"] == "ghost":
                tags[i].add("ghost_note")
            if c["label"] == "hihat_open" and c["openness"] is not None and 0.35 - SLACK <= c["openness"] < 0.8 - SLACK:
                tags[i].add("hihat_half_open")
        if "hihat_open" in labels:
            open_at, used = i, False
        elif labels & {"hihat_closed", "hihat_pedal"} and open_at is not None and not used and row["us"] - rows[open_at]["us"] <= 200_000:
            tags[open_at].add("hihat_bark")
            tags[i].add("hihat_bark")
            used = True
        if row["meter"] is not None:
            if meter is not None and row["meter"] != meter:
                tags[i].add("variable_meter")
            meter = row["meter"]
        if row["tempo_bpm"] is not None:
            if tempo is not None and row["tempo_bpm"] != tempo:
                ratio = row["tempo_bpm"] / tempo
                if any(abs(ratio / q - 1) <= 0.01 + SLACK for q in (1 / 2, 2 / 3, 3 / 4, 4 / 3, 3 / 2, 2)):
                    tags[i].add("metric_modulation")
                elif abs(ratio - 1) > 0.01 + SLACK:
                    tags[i].add("tempo_change")
            tempo = row["tempo_bpm"]
    for drum in ({"snare", "rimshot"}, {"tom_high"}, {"tom_mid"}, {"tom_low"}):
        _tag_strokes(rows, tags, drum)
    kicks = [i for i, row in enumerate(rows) if any(c["label"] == "kick" for c in row["components"])]
    for run in _runs(rows, kicks, 130_000):
        if len(run) >= 4:
            for k in run:
                tags[kicks[k]].add("double_kick_burst")
    for family in ({"crash", "crash2"}, {"china"}, {"splash"}):
        for i, row in enumerate(rows):
            near = [r for r in rows[max(0, i - 4) : i + 5] if abs(r["us"] - row["us"]) <= 30_000]  # events lie more than 10 ms apart
            pieces = {(c["label"], c["instrument_variant"]) for r in near for c in r["components"] if c["label"] in family}
            mine = [(c["label"], c["instrument_variant"]) for c in row["components"] if c["label"] in family]
            if any(pieces - {piece} for piece in mine):
                tags[i].add("multi_cymbal_same_class")


def _runs(rows: Sequence[dict[str, Any]], members: Sequence[int], gap_us: int) -> list[list[int]]:
    runs: list[list[int]] = []
    for k, i in enumerate(members):
        if k and rows[i]["us"] - rows[members[k - 1]]["us"] <= gap_us:
            runs[-1].append(k)
        else:
            runs.append([k])
    return runs


def _tag_strokes(rows: Sequence[dict[str, Any]], tags: Sequence[set[str]], drum: set[str]) -> None:
    strokes: list[int] = []
    velocity: list[float | None] = []
    for i, row in enumerate(rows):
        found = [c["velocity"] for c in row["components"] if c["label"] in drum]
        if found:
            strokes.append(i)
            velocity.append(max((v for v in found if v is not None), default=None))
    free = [True] * len(strokes)
    for run in _runs(rows, strokes, 80_000):
        if len(run) >= 5:
            for k in run:
                free[k] = False
                tags[strokes[k]].add("roll")
    for name, n, gap_us in (("drag", 3, 70_000), ("flam", 2, 50_000)):
        k = 0
        while k + n <= len(strokes):
            us = [rows[strokes[k + j]]["us"] for j in range(n)]
            v = velocity[k : k + n]
            if (
                all(free[k : k + n])
                and all(b - a <= gap_us for a, b in pairwise(us))
                and all(x is not None for x in v)
                and all(x <= 0.7 * v[-1] + SLACK for x in v[:-1])  # type: ignore[operator]
            ):
                for j in range(n):
                    free[k + j] = False
                    tags[strokes[k + j]].add(name if j == n - 1 else "grace_note")
                k += n
            else:
                k += 1
