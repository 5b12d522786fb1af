from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import Manifest
from beatsight_assets.manifest import annotate, merge
from beatsight_assets.manifest.annotate import AnnotateOptions, Annotation, annotate_events, annotated_pieces
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.testing.manifests import made_manifest
from beatsight_assets_tests.manifest.factory import event, frame, hit, random_events
from beatsight_assets_tests.manifest.lake import ingest_frame, make_lake

BARK = [event(1.0, "hihat_open", source="a_set"), event(1.1, "hihat_closed", source="a_set"), event(2.0, "crash_1", source="a_set")]


def merged_lake(root: Path, events: pl.DataFrame) -> Settings:
    lake = make_lake(root, {"a_set": ""})
    ingest_frame(lake, "a_set", events)
    merge.run(lake)
    return lake


def test_stage_adds_labels_and_techniques(tmp_path: Path) -> None:
    """The annotated table has the merged rows with canonical labels and techniques; its verdict names its digest; it is reused."""
    lake = merged_lake(tmp_path, frame(BARK))
    report = annotate.run(lake)
    stored = pl.read_parquet(lake.layout.annotated)
    assert stored["event_id"].equals(pl.read_parquet(lake.layout.merged)["event_id"])
    assert stored["techniques"].to_list() == [["hihat_bark"], ["hihat_bark"], []]
    assert report.facts["aliases"]["relabelled"] == {"crash_1": {"crash": 1}}
    assert report.facts["techniques"] == {"hihat_bark": {"events": 2, "sessions": 1, "groups": 1}}
    verdict = report.verdict("annotate")
    assert verdict is not None and verdict.passed and verdict.inputs[0].sha256 == lake.store.sha256(lake.layout.annotated)
    assert [r.name for r in verdict.rules] == ["rows_unchanged", "labels_canonical", "openness_range", "required_techniques[hihat_bark]"]
    assert annotate.run(lake).reused
    assert not annotate.run(lake, AnnotateOptions(recompute=True)).reused


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([event(3.0, "gong", source="a_set")], "labels_canonical"),
        ([event(3.0, hit("kick", openness=0.5), source="a_set")], "openness_range"),
        ([event(3.0, hit("hihat_open", openness=1.5), source="a_set")], "openness_range"),
    ],
)
def test_gate_turns_red(tmp_path: Path, rows: list[dict[str, object]], rule: str) -> None:
    """An unknown label or an impossible openness turns exactly its rule red."""
    verdict = annotate.run(merged_lake(tmp_path, frame([*BARK, *rows]))).verdict("annotate")
    assert verdict is not None and [r.name for r in verdict.rules if not r.passed] == [rule]


def test_required_technique_that_never_occurs(tmp_path: Path) -> None:
    """A technique the profile requires and no event shows turns the gate red."""
    verdict = annotate.run(merged_lake(tmp_path, frame(BARK[:1]))).verdict("annotate")
    assert verdict is not None and [r.name for r in verdict.rules if not r.passed] == ["required_techniques[hihat_bark]"]


def test_unknown_technique_is_refused(tmp_path: Path) -> None:
    """A tag outside the catalogue is an error that names the tag; nothing is published."""
    lake = merged_lake(tmp_path, frame([event(1.0, "kick", source="a_set", techniques=["stick_twirl"])]))
    with pytest.raises(InputError, match="stick_twirl") as caught:
        annotate.run(lake)
    assert caught.value.code == "unknown-technique" and not lake.layout.annotated.exists()


def test_annotating_twice_is_annotating_once() -> None:
    """The annotated table, annotated again, is the same table."""
    once = annotate_events(random_events(2_000), Taxonomy.shipped()).frame
    assert annotate_events(once, Taxonomy.shipped()).frame.equals(once)


def test_a_limit_on_an_unknown_technique_is_a_configuration_error(tmp_path: Path) -> None:
    """Names in gate files must exist in the catalogue."""
    lake = merged_lake(tmp_path, frame(BARK))
    lake.gates.health["required_techniques"] = ["hihat_brak"]
    with pytest.raises(ConfigError, match="Did you mean hihat_bark"):
        annotate.run(lake)


def test_pieces_do_not_show() -> None:
    """Session by session or all at once, in order or shuffled: the same rows, the same counts."""
    events = made_manifest(6_000, seed=2).unique("event_id", maintain_order=True)
    whole = annotate_events(events, Taxonomy.shipped())
    found = Annotation()
    pieces = list(annotated_pieces(SmallPieces(events), Taxonomy.shipped(), found))
    assert len(pieces) > 5 and pl.concat(pieces).equals(whole.frame)
    assert found.technique_counts.equals(whole.technique_counts)
    assert (found.aliases, found.openness.figures()) == (whole.aliases, whole.openness)
    order = events.with_row_index("row").sample(fraction=1.0, shuffle=True, seed=1)["row"]
    shuffled = annotate_events(events[order], Taxonomy.shipped())
    assert shuffled.frame.equals(whole.frame[order]) and shuffled.technique_counts.equals(whole.technique_counts)


class SmallPieces(Manifest):
    """Pieces of about 500 rows."""

    def sessions(self, columns: Sequence[str] | None = None, *, rows: int = 500) -> Iterator[pl.DataFrame]:
        return super().sessions(columns, rows=rows)
