"""Splits and counts once more, row by row and obviously right: on 20,000 generated events and on all real ones."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets.manifest import annotate, merge, splits
from beatsight_assets.manifest.compare import compare, snapshot
from beatsight_assets.manifest.techniques import with_techniques
from beatsight_assets.settings import Settings
from beatsight_assets.testing.manifests import DATASETS, made_manifest
from beatsight_assets_tests.manifest.lake import ingest_frame, make_lake

Rows = list[dict[str, Any]]
PROTECTION = {"train": 0, "val": 1, "test": 2}


def plain_splits(rows: Rows, content: Mapping[tuple[str, str], list[str]]) -> dict[str, str]:
    """Split of every group as gates.md section 12 says it: copies stay together, official splits first, else the published hash."""
    hints: dict[str, set[str]] = defaultdict(set)
    holds: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        hints[row["group_id"]] |= {row["split_hint"]} - {None}
        holds[row["group_id"]] |= set(content.get((row["source_set"], row["session_id"]), ()))
    found: dict[str, str] = {}
    for group in hints:
        if group in found:
            continue
        together, keys = {group}, set(holds[group])
        while more := {g for g in holds if g not in together and holds[g] & keys}:
            together |= more
            keys |= {k for g in more for k in holds[g]}
        official = [h for g in together for h in hints[g]]
        if official:
            split = max(official, key=PROTECTION.__getitem__)
        else:
            place = int(sha256(f"0:{min(together, key=str.encode)}".encode()).hexdigest()[:16], 16) / 2**64
            split = "train" if place < 0.8 else "val" if place < 0.9 else "test"
        found |= dict.fromkeys(together, split)
    return found


def plain_content(settings: Settings) -> dict[tuple[str, str], list[str]]:
    """What each session holds by its provenance: digests of its audio and MIDI files, and its MIDI content where it has a MIDI file."""
    content: dict[tuple[str, str], list[str]] = {}
    for path in sorted((settings.layout.root / "provenance").glob("*.parquet")):
        for row in pl.read_parquet(path).iter_rows(named=True):
            keys = [h["sha256"] for h in row["hashes"] if h["sha256"]]
            facts = json.loads(row["facts"])
            content[row["source_set"], row["session_id"]] = keys + ([facts["midi_content"]] if facts.get("midi_content") else [])
    return content


def run_chain(lake: Settings) -> tuple[Rows, dict[str, str], Mapping[str, float]]:
    """Merge, annotate and split; the annotated rows, the split table, the figures of its gate."""
    assert merge.run(lake).figures["rows"] and annotate.run(lake).figures["rows"]
    report = splits.run(lake)
    assert report.passed, report.verdicts
    rows = pl.read_parquet(lake.layout.annotated).to_dicts()
    return rows, dict(pl.read_parquet(lake.layout.splits, columns=["group_id", "split"]).iter_rows()), report.figures


def count_by_hand(rows: Rows, where: Mapping[str, str]) -> dict[str, float]:
    """The figures of the gate, counted over events."""
    events = Counter(where[row["group_id"]] for row in rows)
    spread: dict[str, dict[str, set[str]]] = {"drummer_id": defaultdict(set), "kit_id": defaultdict(set)}
    for row in rows:
        for name, found in spread.items():
            if row[name] is not None:
                found[row[name]].add(where[row["group_id"]])
    crossing = {name: sum(len(s) > 1 for s in found.values()) for name, found in spread.items()}
    return {f"events_{s}": events[s] for s in PROTECTION} | {
        "groups": len({row["group_id"] for row in rows}),
        "drummers_in_two_splits": crossing["drummer_id"],
        "kits_in_two_splits": crossing["kit_id"],
    }


def test_splits_of_generated_events_equal_the_plain_loop(tmp_path: Path) -> None:
    """20,000 events of four datasets that share takes: every group lies where the loop puts it, figures are those of a count by hand, no content crosses."""
    events = made_manifest(20_000, seed=2)
    lake = make_lake(tmp_path, {d.name: "" for d in DATASETS})
    for name, part in events.group_by("source_set", maintain_order=True):
        sessions = part["session_id"].unique(maintain_order=True).to_list()
        if name != ("made_kit",):
            part = part.with_columns(group_id=pl.col("source_set") + ":" + pl.col("session_id"))
        midi = {s: f"m{s.split('/')[-1]}" for i, s in enumerate(sessions) if i % 3 == 0}  # copies in other datasets
        audio = {s: f"a-{s}" if i % 5 else "a-shared" for i, s in enumerate(sessions)} if name == ("made_room",) else {}
        ingest_frame(lake, str(name[0]), part, midi=midi, audio=audio)
    rows, table, figures = run_chain(lake)
    content = plain_content(lake)
    expected = plain_splits(rows, content)
    assert len(rows) > 19_000 and set(Counter(expected.values())) == set(PROTECTION)
    assert len({k for keys in content.values() for k in keys}) < sum(len(keys) for keys in content.values()) - 20  # copies there are
    assert table == expected
    assert {k: figures[k] for k in count_by_hand(rows, table)} == count_by_hand(rows, table)
    holders: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for key in content.get((row["source_set"], row["session_id"]), ()):
            holders[key].add(table[row["group_id"]])
    assert all(len(found) == 1 for found in holders.values())


@pytest.mark.data
def test_splits_of_groove_equal_the_plain_loop(groove_lake: Settings) -> None:
    """All 189,847 real events: every take lies where the loop puts it, and the figures are those of a count by hand."""
    rows, table, figures = run_chain(groove_lake)
    assert len(rows) == 189_847
    assert table == plain_splits(rows, plain_content(groove_lake))
    assert {k: figures[k] for k in count_by_hand(rows, table)} == count_by_hand(rows, table)


def plain_snapshot(rows: Rows) -> dict[str, Any]:
    """Every figure of the snapshot by a loop over rows; numpy for the quantiles."""
    techniques: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        for name in row["techniques"]:
            techniques[name].append((row["source_set"], row["session_id"]))
    hits = [hit for row in rows for hit in row["components"]]
    return {
        "num_events": len(rows),
        "num_sessions": len({(row["source_set"], row["session_id"]) for row in rows}),
        "num_groups": len({row["group_id"] for row in rows}),
        "label_counts": dict(Counter(hit["label"] for hit in hits)),
        "technique_counts": {name: {"events": len(found), "sessions": len(set(found))} for name, found in techniques.items()},
        "source_set_counts": dict(Counter(row["source_set"] for row in rows)),
        "split_counts": dict(Counter(row["split_hint"] or "unassigned" for row in rows)),
        "velocity_stats": plain_stats([hit["velocity"] for hit in hits]),
        "openness_stats": plain_stats([hit["openness"] for hit in hits]),
    }


def plain_stats(values: list[float | None]) -> dict[str, Any]:
    known = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    figures = {f"p{q:02d}": float(np.quantile(known, q / 100)) for q in (5, 25, 50, 75, 95)}
    figures |= {"min": float(known.min()), "max": float(known.max()), "mean": float(known.mean())}
    return {"n": len(known)} | {k: pytest.approx(v, abs=1e-6) for k, v in figures.items()}


def plain_delta(before: Rows, after: Rows) -> dict[str, dict[str, dict[str, int]]]:
    """What two manifests differ in, by three counters."""

    def counted(rows: Rows) -> dict[str, Counter[str]]:
        return {
            "sessions": Counter(f"{row['source_set']}/{row['session_id']}" for row in rows),
            "components": Counter(hit["label"] for row in rows for hit in row["components"]),
            "techniques": Counter(name for row in rows for name in row["techniques"]),
        }

    old, new = counted(before), counted(after)
    found: dict[str, dict[str, dict[str, int]]] = {}
    for field in old:
        changed = {k: new[field][k] - old[field][k] for k in {*old[field], *new[field]} if new[field][k] != old[field][k]}
        order = sorted(changed, key=lambda k: (-abs(changed[k]), k))
        found[field] = {k: {"baseline": old[field][k], "candidate": new[field][k], "delta": changed[k]} for k in order}
    return found


def test_metrics_of_generated_events_equal_the_plain_loop() -> None:
    """20,000 events: snapshot and comparison hold what counters over rows hold, in the same order."""
    events = with_techniques(made_manifest(20_000, seed=6))
    rows = events.to_dicts()
    assert snapshot(events) == plain_snapshot(rows)
    fewer = [row for i, row in enumerate(rows) if i % 7 and row["session_id"] != rows[0]["session_id"]]
    delta = compare(events, pl.DataFrame(fewer, schema=events.schema))["delta"]
    expected = plain_delta(rows, fewer)
    assert {k: delta[k] for k in expected} == expected
    assert {k: list(delta[k]) for k in expected} == {k: list(v) for k, v in expected.items()}


@pytest.mark.data
def test_metrics_of_groove_equal_the_plain_loop(groove_events: pl.DataFrame) -> None:
    """All 189,847 real events: the snapshot holds what counters over rows hold."""
    events = with_techniques(groove_events)
    assert snapshot(events) == plain_snapshot(events.to_dicts())
