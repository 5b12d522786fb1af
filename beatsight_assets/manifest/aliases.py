"""One name per component: other names become canonical labels, and hits that thereby are the same hit twice become one.

Belongs here: relabelling and the doubles rule for a manifest. Does not belong here: which name means what (configs/taxonomy.yaml).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from beatsight_assets.events import COMPONENT_STRUCT, sum_counts
from beatsight_assets.taxonomy import DRUM_MIX, Taxonomy


@dataclass(frozen=True)
class AliasReport:
    """Counts of hits.

    relabelled : {name as read: {component: hits}}
    unknown : labels that are neither canonical nor an alias; they stay as they are
    """

    relabelled: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    merged_duplicates: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)
    unchanged: int = 0

    def __add__(self, other: AliasReport) -> AliasReport:
        """Counts of both."""
        names = sorted({*self.relabelled, *other.relabelled})
        return AliasReport(
            {n: sum_counts([self.relabelled.get(n, {}), other.relabelled.get(n, {})]) for n in names},
            self.merged_duplicates + other.merged_duplicates,
            sum_counts([self.unknown, other.unknown]),
            self.unchanged + other.unchanged,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "relabelled": {k: dict(v) for k, v in self.relabelled.items()},
            "merged_duplicates": self.merged_duplicates,
            "unknown": dict(self.unknown),
            "unchanged": self.unchanged,
        }


def with_canonical_labels(events: pl.DataFrame, taxonomy: Taxonomy) -> tuple[pl.DataFrame, AliasReport]:
    """Events with canonical labels, and what changed. A second run changes nothing.

    Only events that hold another name or one hit twice are touched; the others keep their components as stored.
    """
    components = events["components"]
    n_hits = components.list.len().to_numpy()
    event = np.repeat(np.arange(events.height), n_hits)
    hits = components.explode(empty_as_null=False, keep_nulls=False)
    label = hits.struct.field("label")
    counts = dict(label.value_counts().iter_rows())
    meaning = {name: taxonomy.canonical(name) for name in counts}
    renamed = {name: to for name, to in meaning.items() if to is not None and to != (name, None)}
    unknown = {name: counts[name] for name in sorted(counts) if meaning[name] is None and name != DRUM_MIX}
    relabelled = {name: {renamed[name][0]: counts[name]} for name in sorted(renamed)}
    touched = np.unique(event[label.is_in(list(renamed)).to_numpy()])

    twins = pl.DataFrame({"event": event, "label": label, "variant": hits.struct.field("instrument_variant")}).filter(
        pl.Series(n_hits[event] > 1)
    )
    doubled = twins.filter(twins.is_duplicated())["event"].to_numpy()
    touched = np.union1d(touched, doubled)
    n_changed = sum(counts[name] for name in renamed)
    if not touched.size:
        return events, AliasReport(relabelled, 0, unknown, len(hits))

    n_merged = 0
    changed, extras = [], []
    for found, text in zip(components.gather(touched).to_list(), events["extras"].gather(touched).to_list(), strict=True):
        kept, new_extras = _canonical_components(found, json.loads(text or "{}"), renamed, taxonomy)
        n_merged += len(found) - len(kept)
        changed.append(kept)
        extras.append(json.dumps(new_extras, sort_keys=True, separators=(",", ":")))
    pool = pl.concat([components, pl.Series("components", changed, dtype=pl.List(COMPONENT_STRUCT))]).rechunk()
    place = np.arange(events.height)
    place[touched] = events.height + np.arange(touched.size)
    frame = events.with_columns(
        pool.gather(place),
        pl.concat([events["extras"], pl.Series("extras", extras, dtype=pl.String)]).gather(place),
    )
    return frame, AliasReport(relabelled, n_merged, unknown, len(hits) - n_changed)


def _canonical_components(
    found: list[dict[str, Any]], extras: dict[str, Any], renamed: Mapping[str, tuple[str, str | None]], taxonomy: Taxonomy
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Components of one event in taxonomy order without doubles (the louder stays, on a tie the earlier), and its extras."""
    offsets = extras.get("offsets_us") or [0] * len(found)
    hits = []
    for i, (component, offset) in enumerate(zip(found, offsets, strict=False)):
        label, variant = renamed.get(component["label"], (component["label"], None))
        full = component | {"label": label, "instrument_variant": component["instrument_variant"] or variant}
        loud = -1.0 if component["velocity"] is None else component["velocity"]
        hits.append(((full["label"], full["instrument_variant"]), (-loud, offset, i), full, offset))
    best: dict[tuple[str, str | None], tuple[tuple[float, int, int], dict[str, Any], int]] = {}
    for key, rank, full, offset in hits:
        if key not in best or rank < best[key][0]:
            best[key] = (rank, full, offset)
    last = len(taxonomy.order)
    order = sorted(best, key=lambda k: (taxonomy.order.get(k[0], last), k[0], k[1] is not None, k[1] or ""))
    kept = [best[key] for key in order]
    collapsed = len(hits) - len(kept)
    new = {k: v for k, v in extras.items() if k != "offsets_us"}
    if any(offset for *_, offset in kept):
        new["offsets_us"] = [offset for *_, offset in kept]
    if collapsed:
        new["collapsed_hits"] = int(extras.get("collapsed_hits") or 0) + collapsed
    return [full for _, full, _ in kept], new
