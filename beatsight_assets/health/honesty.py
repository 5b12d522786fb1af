"""What a score is worth: one simple classifier scored under three ways of splitting the same rows.

A row is a stretch of one take; its class is the style that the source states. Neighbouring stretches of a take are near copies, so a
split by row scores the memory of takes; a split by take scores styles as these drummers play them; a split by drummer scores styles.
Belongs here: the probe. Does not belong here: real models (`model`), how groups are split (`manifest.splits`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.taxonomy import DRUM_MIX, Taxonomy
from beatsight_assets.units import keyed_order

ROW_EVENTS = 16  # about two bars of eighths
MAX_SESSIONS = 600
MAX_ROWS = 3_000
N_FOLDS = 5
NEIGHBOURS = 3
MIN_DRUMMERS = 3
MIN_TAKES = 20
MIN_STYLE_TAKES = 5  # rarer styles are left out: they would be unknown to most folds
INTERVALS_S = (0.06, 0.09, 0.13, 0.18, 0.25, 0.35, 0.5, 0.8)
UNITS = ("row", "take", "drummer")


def probe(events: pl.DataFrame, provenance: pl.DataFrame, taxonomy: Taxonomy, *, seed: int = 0) -> dict[str, Any] | None:
    """Accuracy of the probe when rows, takes and drummers are held out; None where no source states styles and drummers.

    Parameters
    ----------
    events : source_set, session_id, group_id, drummer_id, onset_time, components, negative_example, mix_context
    provenance : source_set, session_id, facts (JSON with `style`)

    Returns
    -------
    `{task, rows, takes, drummers, styles, chance, accuracy: {row, take, drummer}}`; `chance` is the share of the most frequent style
    """
    keys = ["source_set", "session_id"]
    stated = provenance.select(
        *keys, style=pl.col("facts").str.json_path_match("$.style").str.split("/").list.first().str.to_lowercase()
    ).drop_nulls("style")
    sessions = (
        events.filter(pl.col("drummer_id").is_not_null() & (pl.col("mix_context") != "stem"))
        .select(*keys, "group_id", "drummer_id")
        .unique(keys, keep="first", maintain_order=True)
        .join(stated.unique(keys), on=keys, how="inner")
    )
    known = sessions.group_by("style").agg(pl.col("group_id").n_unique().alias("n")).filter(pl.col("n") >= MIN_STYLE_TAKES)["style"]
    sessions = sessions.filter(pl.col("style").is_in(known.to_list()))
    chosen = sorted(sessions.iter_rows(named=True), key=lambda s: keyed_order(seed, f"{s['source_set']}/{s['session_id']}"))[:MAX_SESSIONS]
    enough = len({s["drummer_id"] for s in chosen}) >= MIN_DRUMMERS and len({s["group_id"] for s in chosen}) >= MIN_TAKES
    if not enough or len({s["style"] for s in chosen}) < 2:
        return None
    chosen_frame = pl.DataFrame(chosen, schema=sessions.schema).with_row_index("session")
    rows, session = _rows(events.join(chosen_frame.select(*keys, "session"), on=keys, how="inner"), taxonomy)
    if len(rows) < 10 * N_FOLDS:
        return None
    names = [f"{chosen[s]['source_set']}/{chosen[s]['session_id']}#{n}" for n, s in enumerate(session)]
    if len(rows) > MAX_ROWS:
        kept = np.sort(np.array(sorted(range(len(rows)), key=lambda n: keyed_order(seed, names[n]))[:MAX_ROWS]))
        rows, session, names = rows[kept], session[kept], [names[n] for n in kept]
    style = np.array([chosen[s]["style"] for s in session])
    unit_of = {
        "row": names,
        "take": [chosen[s]["group_id"] for s in session],
        "drummer": [f"{chosen[s]['source_set']}/{chosen[s]['drummer_id']}" for s in session],
    }
    return {
        "task": f"style of {ROW_EVENTS} events by {NEIGHBOURS} nearest neighbours, {N_FOLDS} folds",
        "rows": len(rows),
        "takes": len(set(unit_of["take"])),
        "drummers": len(set(unit_of["drummer"])),
        "styles": len(set(style.tolist())),
        "chance": round(max(Counter(style.tolist()).values()) / len(style), 4),
        "accuracy": {unit: round(_accuracy(rows, style, unit_of[unit], seed), 4) for unit in UNITS},
    }


def _rows(events: pl.DataFrame, taxonomy: Taxonomy) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features of every stretch of events [shape=(n_rows, n_features)] and the session of each."""
    classes = taxonomy.view("drums18").classes
    class_of = taxonomy.view("drums18").class_of
    frame = (
        events.filter(~pl.col("negative_example") & pl.col("components").is_not_null())
        .sort("session", "onset_time")
        .with_columns(place=pl.int_range(pl.len()).over("session") // ROW_EVENTS, n=pl.len().over("session"))
        .filter(pl.col("place") < pl.col("n") // ROW_EVENTS)  # what is left over at the end of a take is no whole row
        .with_columns(row=pl.struct("session", "place").rle_id())
    )
    if not frame.height:
        return np.empty((0, 0)), np.empty(0, np.int64)
    n_rows = int(frame["row"].max()) + 1  # type: ignore[arg-type]
    session = frame.group_by("row", maintain_order=True).agg(pl.col("session").first())["session"].to_numpy().astype(np.int64)
    hits = frame.select("row", "components").explode("components", empty_as_null=False, keep_nulls=False).unnest("components")
    hits = hits.filter(pl.col("label") != DRUM_MIX)
    names = {label: class_of.get((taxonomy.canonical(label) or (label, None))[0], "") for label in hits["label"].unique().to_list()}
    index = hits["label"].replace_strict(
        {k: classes.index(v) if v in classes else len(classes) for k, v in names.items()}, return_dtype=pl.Int64
    )
    row = hits["row"].to_numpy().astype(np.int64)
    velocity = hits["velocity"].fill_null(0.5).fill_nan(0.5).to_numpy().astype(np.float64)
    width = len(classes) + 1
    played = np.bincount(row * width + index.to_numpy(), minlength=n_rows * width).reshape(n_rows, width) / ROW_EVENTS
    loud = np.bincount(row * width + index.to_numpy(), weights=velocity, minlength=n_rows * width).reshape(n_rows, width) / ROW_EVENTS
    onset = frame["onset_time"].to_numpy().reshape(n_rows, ROW_EVENTS)
    gaps = np.digitize(np.diff(onset, axis=1), INTERVALS_S)
    n_bins = len(INTERVALS_S) + 1
    steps = np.arange(n_rows)[:, None] * n_bins + gaps
    rhythm = np.bincount(steps.ravel(), minlength=n_rows * n_bins).reshape(n_rows, n_bins) / ROW_EVENTS
    return np.hstack([played, loud, rhythm]), session


def _accuracy(rows: NDArray[np.float64], style: NDArray[np.str_], unit: list[str], seed: int) -> float:
    """Share of rows whose style the nearest rows of other units name, each unit held out once."""
    ordered = sorted(set(unit), key=lambda u: keyed_order(seed, u))
    fold_of = {u: n % N_FOLDS for n, u in enumerate(ordered)}
    fold = np.array([fold_of[u] for u in unit])
    names, code = np.unique(style, return_inverse=True)
    right = 0
    for n in range(N_FOLDS):
        test, train = np.flatnonzero(fold == n), np.flatnonzero(fold != n)
        if not len(test) or len(train) < NEIGHBOURS:
            continue
        spread = rows[train].std(axis=0)
        scaled = (rows - rows[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        a, b = scaled[test], scaled[train]
        distance = (a**2).sum(axis=1)[:, None] - 2 * (a @ b.T) + (b**2).sum(axis=1)[None, :]
        nearest = code[train][np.argpartition(distance.round(9), NEIGHBOURS, axis=1)[:, :NEIGHBOURS]]
        votes = np.stack([(nearest == c).sum(axis=1) for c in range(len(names))], axis=1)
        right += int((votes.argmax(axis=1) == code[test]).sum())
    return right / len(rows)
