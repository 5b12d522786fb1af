from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beatsight_assets.errors import GateFailed, InputError, NothingToDo
from beatsight_assets.events import EVENT_SCHEMA
from beatsight_assets.manifest import merge
from beatsight_assets.manifest.merge import MergeOptions, merge_frames
from beatsight_assets.testing.manifests import made_manifest
from beatsight_assets_tests.manifest.factory import event, frame, hit, random_events
from beatsight_assets_tests.manifest.lake import ingest_frame, make_lake


def kicks(*onsets: float, **fields: Any) -> pl.DataFrame:
    return frame([event(t, hit("kick", 0.5), **fields) for t in onsets])


def test_rows_are_conserved_and_sorted() -> None:
    """The union holds every row of every input once, sorted by dataset, session and onset."""
    parts = [random_events(300, source=s, seed=i) for i, s in enumerate(("b_set", "a_set", "c_set"))]
    merged = merge_frames(parts)
    assert (merged.n_collapsed, merged.conflicts) == (0, ())
    assert merged.frame.schema == EVENT_SCHEMA
    assert merged.frame.equals(pl.concat(parts).rechunk().sort(merge.ORDER))


def plain_merge(frames: list[pl.DataFrame]) -> tuple[list[dict[str, Any]], int, set[str]]:
    """The union row by row, as plain as `spec/events.md` section 3 says it: rows, how many collapsed, ids in conflict."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    n_collapsed = 0
    for table in frames:
        for row in table.iter_rows(named=True):
            known = by_id.setdefault(row["event_id"], [])
            if row in known:
                n_collapsed += 1
            else:
                known.append(row)
    rows = [row for found in by_id.values() for row in found]
    rows.sort(key=lambda r: (r["source_set"], r["session_id"], r["onset_time"], r["event_id"]))
    return rows, n_collapsed, {name for name, found in by_id.items() if len(found) > 1}


def test_equals_the_plain_loop_on_generated_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row the union of 20,000 events with copies, cut into overlapping unsorted tables, is what the plain loop says."""
    monkeypatch.setattr(merge, "PIECE_ROWS", 1_500)
    events = made_manifest(20_000, seed=1)
    tables = [
        events.filter(pl.col("source_set") == "made_kit"),
        events[3_000:12_000],
        events[11_000:].sample(fraction=1.0, shuffle=True, seed=3),
    ]
    rows, n_collapsed, conflicts = plain_merge(tables)
    assert n_collapsed > 5_000 and not conflicts
    found = merge_frames(tables)
    assert found.n_collapsed == n_collapsed
    assert found.frame.to_dicts() == rows


@pytest.mark.data
def test_groove_merges_as_the_plain_loop_says(groove_events: pl.DataFrame) -> None:
    """189,847 real events with a part of them given twice: the union is the table itself."""
    found = merge_frames([groove_events[100_000:], groove_events, groove_events[:50_000]])
    assert found.n_collapsed == groove_events.height - 100_000 + 50_000
    assert found.frame.equals(groove_events.sort(merge.ORDER))


def test_an_id_in_two_sessions_is_a_conflict() -> None:
    """Equal ids far apart are found too, and all conflicts are listed at once in manifest order."""
    one = kicks(1.0, 2.0)
    other = kicks(1.0, 2.0, session="z.mid").with_columns(event_id=one["event_id"])
    found = merge_frames([other, one])
    assert [(c.session_id, c.onset_time, c.n_rows) for c in found.conflicts] == [("a.mid", 1.0, 2), ("a.mid", 2.0, 2)]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_order_and_repetition_of_inputs_do_not_matter(picks: list[int], order: Any) -> None:
    """Merging is independent of input order and row order; rows = sum of inputs - collapsed; merging a result with its inputs gives it again."""
    parts = [random_events(60, source="set", seed=3, n_sessions=2), random_events(60, source="other", seed=4, n_sessions=2)]
    slices = [parts[i % 2][i * 7 :] for i in picks]
    once = merge_frames(slices)
    assert once.frame.height == sum(s.height for s in slices) - once.n_collapsed
    shuffled = []
    for part in slices:
        rows = list(range(part.height))
        order.shuffle(rows)
        shuffled.append(part[rows])
    order.shuffle(shuffled)
    assert merge_frames(shuffled).frame.equals(once.frame)
    assert merge_frames([once.frame, *shuffled]).frame.equals(once.frame)
    assert merge_frames([once.frame, once.frame]).frame.equals(once.frame)


@pytest.mark.parametrize(
    "change",
    [
        {"components": [hit("kick", 0.6)]},
        {"components": [hit("kick", 0.5, instrument_variant="x")]},
        {"techniques": ["roll"]},
        {"extras": '{"stem":"kick"}'},
        {"tempo_bpm": 120.0},
        {"context_ms": {"pre": 80.0, "post": 100.0}},
    ],
)
def test_equal_ids_with_unequal_content_are_conflicts(change: dict[str, Any]) -> None:
    """A difference in any column, nested ones included, is a conflict and not a copy."""
    first = kicks(0.5, 1.0)
    other = frame([{**event(1.0, hit("kick", 0.5)), **change}])
    result = merge_frames([first, other, first])
    assert [(c.onset_time, c.n_rows) for c in result.conflicts] == [(1.0, 2)]
    assert result.n_collapsed == 2


def test_nothing_and_empty_tables() -> None:
    """Empty tables merge into an empty table of the right schema."""
    assert merge_frames([]).frame.schema == EVENT_SCHEMA
    assert merge_frames([frame([]), kicks(1.0)]).frame.height == 1


def test_stage_writes_the_union_and_is_reused(tmp_path: Path) -> None:
    """The stage publishes the union with its metadata and verdict; unchanged inputs are not merged again."""
    lake = make_lake(tmp_path, {"b_set": "", "a_set": ""})
    for name in ("b_set", "a_set"):
        ingest_frame(lake, name, random_events(200, source=name))
    report = merge.run(lake)
    stored = pl.read_parquet(lake.layout.merged)
    assert report.passed and not report.reused
    assert stored["source_set"].unique(maintain_order=True).to_list() == ["a_set", "b_set"]
    assert report.figures["rows"] == stored.height == sum(i["rows"] for i in report.facts["inputs"])
    assert pl.read_parquet_metadata(lake.layout.merged)["schema"] == "beatsight.events/1"
    assert merge.run(lake).reused
    digest = report.output("merged").sha256
    lake.layout.merged.unlink()
    assert merge.run(lake).output("merged").sha256 == digest


def test_red_source_is_refused(tmp_path: Path) -> None:
    """A dataset whose gate is red, or whose files changed after its gate, is not merged; the error names it and its rules."""
    lake = make_lake(tmp_path, {"good_set": "", "bad_set": ""})
    ingest_frame(lake, "good_set", random_events(100, source="good_set"))
    ingest_frame(lake, "bad_set", random_events(100, source="bad_set"), green=False)
    with pytest.raises(GateFailed, match=r"bad_set: ingest/schema") as caught:
        merge.run(lake)
    assert caught.value.code == "red-source" and "good_set:" not in caught.value.message
    assert not lake.layout.merged.exists()
    assert merge.run(lake, MergeOptions(sources=("good_set",))).passed

    ingest_frame(lake, "bad_set", random_events(100, source="bad_set"))
    assert merge.run(lake).figures["sources"] == 2
    lake.store.publish_frame(lake.layout.events("bad_set"), random_events(100, source="bad_set", seed=9))
    with pytest.raises(GateFailed, match=r"bad_set: its files are not those"):
        merge.run(lake)
    (lake.layout.receipts / "events" / "bad_set.json").unlink()
    with pytest.raises(GateFailed, match=r"bad_set: was never ingested"):
        merge.run(lake)


def test_conflict_publishes_nothing(tmp_path: Path) -> None:
    """Two truths about one instant stop the merge with exit code 1 and leave the previous table untouched."""
    lake = make_lake(tmp_path, {"a_set": ""})
    ingest_frame(lake, "a_set", kicks(1.0, 2.0, source="a_set"))
    before = merge.run(lake).output("merged").sha256
    ingest_frame(lake, "a_set", pl.concat([kicks(1.0, source="a_set"), kicks(1.0, 2.0, 3.0, source="a_set", meter="3/4")]))
    with pytest.raises(GateFailed, match=r"a_set/a\.mid at 1\.000000 s") as caught:
        merge.run(lake)
    assert (caught.value.code, caught.value.exit_code) == ("id-conflict", 1)
    assert lake.store.sha256(lake.layout.merged) == before


def test_absent_datasets(tmp_path: Path) -> None:
    """An enabled dataset whose raw data is here but which was not ingested fails the gate; without raw data it is only listed."""
    lake = make_lake(tmp_path, {"a_set": "", "b_set": "", "c_set": "", "d_set": "enabled: false"})
    with pytest.raises(NothingToDo):
        merge.run(lake)
    ingest_frame(lake, "a_set", kicks(1.0, source="a_set"))
    (tmp_path / "raw" / "c_set").rmdir()
    report = merge.run(lake)
    assert (report.facts["missing"], report.facts["no_raw_data"], report.passed) == (["b_set"], ["c_set"], False)
    (tmp_path / "raw" / "b_set").rmdir()
    assert merge.run(lake).passed
    with pytest.raises(InputError, match="no events of b_set"):
        merge.run(lake, MergeOptions(sources=("a_set", "b_set")))
