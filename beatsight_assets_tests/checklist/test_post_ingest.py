"""`checklist post-ingest` (T26): the steps in order, their report, and how the list ends."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beatsight_assets import cli
from beatsight_assets.checklist.post_ingest import TESTS
from beatsight_assets.events import parquet_metadata, to_jsonl
from beatsight_assets.manifest import annotate
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.testing.manifests import Planted, made_manifest
from beatsight_assets_tests.manifest.factory import event, frame

Ran = Callable[..., tuple[int, dict[str, Any]]]
NAMES = ["validate", "health", "tests", "sampling"]


@pytest.fixture(scope="module")
def healthy() -> pl.DataFrame:
    """20,000 annotated events that keep every limit of the demo profile."""
    return annotate.annotate_events(made_manifest(20_000, planted=Planted(0, 0, 0)), Taxonomy.shipped()).frame


@pytest.fixture
def lake(settings: Settings, healthy: pl.DataFrame) -> Settings:
    """A data root whose annotated manifest and splits are in order."""
    layout = settings.layout
    settings.store.publish_frame(layout.annotated, healthy, metadata=parquet_metadata(Taxonomy.shipped()))
    groups = healthy.select("group_id").unique().sort("group_id").with_columns(split=pl.lit("train"))
    settings.store.publish_frame(layout.splits, groups)
    return settings


@pytest.fixture
def ran(data_root: Path, capsys: pytest.CaptureFixture[str]) -> Ran:
    """Runs `beatsight checklist post-ingest ... --json`; (exit code, the report)."""

    def run(*words: str | Path) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--profile", "demo", "--data-root", str(data_root), "checklist", "post-ingest", *map(str, words), "--json"])
        out = capsys.readouterr().out
        return int(ended.value.code or 0), json.loads(out) if out else {}

    return run


def states(found: dict[str, Any]) -> dict[str, str]:
    """{step: status}."""
    return {step["name"]: step["status"] for step in found["steps"]}


def test_a_good_manifest_passes_every_step(lake: Settings, data_root: Path, ran: Ran) -> None:
    """Exit 0; the report names each step with its status, seconds and report; weights and health lie where they always lie."""
    code, found = ran("--no-tests")
    assert code == 0 and found["passed"] and states(found) == dict.fromkeys(("validate", "health", "sampling"), "pass")
    assert json.loads((data_root / "reports/ingest/post_ingest.json").read_text()) == found
    assert all(step["seconds"] >= 0 and step["report"] for step in found["steps"])
    assert (data_root / "reports/health/annotated_health.json").is_file()
    assert (data_root / "reports/sampling/annotated_weights.json").is_file()


def test_the_first_failure_stops_the_list_unless_told_otherwise(lake: Settings, healthy: pl.DataFrame, ran: Ran) -> None:
    """A label that nobody knows: validate fails, the rest does not run, exit 1; --keep-going runs it, and health fails for itself."""
    odd = pl.concat([healthy, frame([event(1.0, "gong", session="odd", group_id="odd")])])
    lake.store.publish_frame(lake.layout.annotated, odd, metadata=parquet_metadata(Taxonomy.shipped()))
    code, found = ran("--no-tests")
    assert code == 1 and states(found) == {"validate": "fail", "health": "not-run", "sampling": "not-run"} and not found["passed"]
    assert found["steps"][0]["report"]["unknown_labels"] == {"gong": 1}
    code, found = ran("--no-tests", "--keep-going")
    assert code == 1 and states(found)["health"] == "fail" and states(found)["sampling"] != "not-run"


def test_any_manifest_can_be_asked_about(lake: Settings, healthy: pl.DataFrame, tmp_path: Path, ran: Ran) -> None:
    """--events takes a file, too small to be healthy: exit 1 with the limits that it misses; an empty one fails at once; none is exit 3."""
    few, none = tmp_path / "few.jsonl", tmp_path / "none.jsonl"
    few.write_bytes(to_jsonl(healthy.head(50)))
    code, found = ran("--events", few, "--no-tests", "--keep-going")
    assert code == 1 and states(found) == {"validate": "pass", "health": "fail", "sampling": "pass"}
    none.write_bytes(b"")
    code, found = ran("--events", none, "--no-tests")
    assert code == 1 and found["steps"][0]["report"]["error"] == "nothing-to-do"
    assert ran("--events", tmp_path / "absent.jsonl")[0] == 3


def test_without_tests_the_step_fails(lake: Settings, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where our tests are not installed the step `tests` fails and says how to go on; what is named in it exists here."""
    folder = Path(__file__).parent.parent
    assert all((folder / target).exists() for target in TESTS)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pytest" else find(name, *a))
    code, found = ran()
    assert code == 1 and [s["name"] for s in found["steps"]] == NAMES
    assert states(found) == {"validate": "pass", "health": "pass", "tests": "fail", "sampling": "not-run"}
    assert "--no-tests" in found["steps"][2]["report"]["message"]
