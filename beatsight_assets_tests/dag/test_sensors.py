"""When something outside the graph starts a run: pure decisions by named cases, then the sensors around them."""

import os
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from beatsight_assets import store
from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.resources import Lake
from beatsight_assets.dag.sensors import RawCursor, merge_decision, merged_versions, roots_to_ingest
from beatsight_assets.settings import Settings
from beatsight_assets_tests.dag.toys import Toys

NOW = 1_000_000.0
OLD, FRESH = NOW - 3_600.0, NOW - 5.0
ROOT_CASES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str | None], list[str]]] = {
    "first look": ({}, {}, {"a": "1"}, []),
    "the second look sees the same": ({}, {"a": "1"}, {"a": "1"}, ["a"]),
    "the same listing again": ({"a": "1"}, {"a": "1"}, {"a": "1"}, []),
    "changed since the tick before": ({"a": "1"}, {"a": "1"}, {"a": "2"}, []),
    "changed and settled": ({"a": "1"}, {"a": "2"}, {"a": "2"}, ["a"]),
    "changed back before it settled": ({"a": "1"}, {"a": "2"}, {"a": "1"}, []),
    "unreadable": ({"a": "1"}, {"a": "2"}, {"a": None}, []),
    "an unreadable root does not hide another": ({}, {"b": "1"}, {"a": None, "b": "1"}, ["b"]),
    "two at once, by name": ({}, {"a": "1", "b": "1"}, {"b": "1", "a": "1"}, ["a", "b"]),
    "a launched root that is no dataset any more": ({"gone": "1"}, {"gone": "1", "a": "1"}, {"a": "1"}, ["a"]),
}
GREEN = ["green", "green"]
MERGE_CASES = {
    "nothing ingested yet": ({}, {}, {}, False),
    "first green dataset": ({"a": GREEN}, {"a": "1"}, {}, True),
    "same versions as the last merge": ({"a": GREEN}, {"a": "1"}, {"a": "1"}, False),
    "a new version": ({"a": GREEN}, {"a": "2"}, {"a": "1"}, True),
    "a second dataset arrives": ({"a": GREEN, "b": GREEN}, {"a": "1", "b": "1"}, {"a": "1"}, True),
    "one is red": ({"a": GREEN, "b": ["green", "red"]}, {"a": "1", "b": "1"}, {}, False),
    "one is pending": ({"a": ["pending", "green"]}, {"a": "1"}, {}, False),
    "one is stale": ({"a": ["stale"]}, {"a": "2"}, {"a": "1"}, False),
    "one was never judged": ({"a": ["never", "never"]}, {"a": "1"}, {}, False),
    "a dataset without checks is not green": ({"a": []}, {"a": "1"}, {}, False),
    "a dataset was disabled": ({"a": GREEN}, {"a": "1"}, {"a": "1", "b": "1"}, True),
    "a green dataset without receipt": ({"a": GREEN, "b": GREEN}, {"a": "1"}, {}, False),
    "red, but the others are new": ({"a": GREEN, "b": ["red"]}, {"a": "2", "b": "1"}, {"a": "1", "b": "1"}, False),
    "versions go back": ({"a": GREEN}, {"a": "1"}, {"a": "2"}, True),
}


@pytest.mark.parametrize("case", ROOT_CASES)
def test_roots_to_ingest(case: str) -> None:
    """A raw folder starts a run when it changed, is readable, and has settled."""
    launched, seen, now, expected = ROOT_CASES[case]
    assert roots_to_ingest(launched, seen, now) == expected


@pytest.mark.parametrize("case", MERGE_CASES)
def test_merge_decision(case: str) -> None:
    """A merge starts when all present datasets are green and something is new; the reason is never empty."""
    states, versions, last, expected = MERGE_CASES[case]
    decision = merge_decision(states, versions, last)
    assert decision.wanted is expected and decision.reason


def tick(settings: Settings, name: str, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    sensor = build_defs(settings=settings).resolve_sensor_def(name)
    lake = Lake(data_root=str(settings.layout.root), profile=settings.profile)
    found = sensor(dg.build_sensor_context(instance=instance, cursor=cursor, resources={"lake": lake}))
    assert isinstance(found, (dg.SensorResult, dg.SkipReason))
    return found


def put(settings: Settings, text: str) -> Path:
    path = settings.layout.raw("groove_midi") / "info.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def told(found: dg.SensorResult | dg.SkipReason) -> str:
    assert isinstance(found, dg.SensorResult) and not found.run_requests and found.skip_reason is not None
    return str(found.skip_reason.skip_message)


def test_raw_files_sensor(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Seen, settled, the same again, changed, settled, unreadable, back: one run per settled change, with the digest in its key."""

    def look(cursor: str | None) -> dg.SensorResult:
        found = tick(settings, "raw_files_sensor", instance, cursor)
        assert isinstance(found, dg.SensorResult)
        return found

    put(settings, "one")
    seen = look(None)
    assert "Still changing: groove_mididataset." in told(seen)
    first = look(seen.cursor)
    assert [r.partition_key for r in first.run_requests or ()] == ["groove_mididataset"]
    again = look(first.cursor)
    assert "Still changing: none" in told(again)
    put(settings, "another text")
    unsettled = look(again.cursor)
    assert "Still changing: groove_mididataset." in told(unsettled)
    path = put(settings, "a third text")
    growing = look(unsettled.cursor)
    assert "Still changing: groove_mididataset." in told(growing)
    changed = look(growing.cursor)
    assert changed.run_requests and first.run_requests and changed.run_requests[0].run_key != first.run_requests[0].run_key
    stored, kept = path.stat(), path.read_bytes()
    path.unlink()
    gone = look(changed.cursor)
    assert "groove_mididataset" in told(gone).split("not readable:")[1]
    path.write_bytes(kept)
    os.utime(path, ns=(stored.st_atime_ns, stored.st_mtime_ns))
    back = look(look(gone.cursor).cursor)
    assert "Still changing: none" in told(back)


def test_a_cursor_of_the_version_before_is_understood() -> None:
    """What was launched by it is not launched again."""
    assert RawCursor.read('{"a": "1"}') == RawCursor({"a": "1"}, {})
    cursor = RawCursor({"a": "1"}, {"a": "2"})
    assert RawCursor.read(cursor.to_text()) == cursor and RawCursor.read(None) == RawCursor({}, {})


def test_nightly_integrity_looks_at_what_was_ingested(settings: Settings, instance: dg.DagsterInstance) -> None:
    """One run per ingested dataset, also when its raw folder is gone; which files are read changes with the day."""
    path = settings.layout.provenance("groove_mididataset")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    repository = build_defs(settings=settings).get_repository_def()
    schedule = repository.get_schedule_def("nightly_integrity")
    lake = Lake(data_root=str(settings.layout.root), profile=settings.profile)
    seeds = []
    for day in (1, 2):
        context = dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=datetime(2026, 1, day, 2, tzinfo=UTC),
            resources={"lake": lake},
            repository_def=repository,
        )
        requests = schedule.evaluate_tick(context).run_requests
        assert [r.partition_key for r in requests or ()] == ["groove_mididataset"] and requests
        config = requests[0].run_config["ops"]["raw_integrity"]["config"]
        assert config["recompute_digests"] is True
        seeds.append(config["seed"])
    assert seeds[0] != seeds[1]


def test_merge_sensor_asks_once(toys: Toys) -> None:
    """Red waits, green asks, asked is not asked again, merged is at rest."""
    toys.red = {"events[beatsight_demo]/schema"}
    toys.events("beatsight_demo")
    waiting = tick(toys.settings, "merge_sensor", toys.instance)
    assert isinstance(waiting, dg.SkipReason) and "beatsight_demo is red" in str(waiting.skip_message)
    toys.red = set()
    toys.events("beatsight_demo")
    asked = tick(toys.settings, "merge_sensor", toys.instance)
    assert isinstance(asked, dg.SensorResult) and len(asked.run_requests or ()) == 1
    assert isinstance(tick(toys.settings, "merge_sensor", toys.instance, asked.cursor), dg.SkipReason)
    toys.run("merged_manifest")
    assert list(merged_versions(toys.settings)) == ["beatsight_demo"]
    resting = tick(toys.settings, "merge_sensor", toys.instance)
    assert isinstance(resting, dg.SkipReason) and "exactly these versions" in str(resting.skip_message)


def test_failed_run_leaves_a_line(settings: Settings, instance: dg.DagsterInstance) -> None:
    """A red run is found in reports/failures.jsonl without the UI."""
    defs = build_defs(settings=settings)
    result = defs.resolve_job_def("merge_job").execute_in_process(instance=instance, raise_on_error=False)
    event = result.filter_events(lambda e: e.is_job_failure if hasattr(e, "is_job_failure") else e.is_failure and e.step_key is None)[-1]
    context = dg.build_run_status_sensor_context(
        sensor_name="failure_log",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=event,
        resources={"lake": Lake(data_root=str(settings.layout.root), profile="demo")},
    )
    defs.resolve_sensor_def("failure_log")(context.for_run_failure())
    lines, _ = store.read_lines(settings.layout.root / "reports" / "failures.jsonl")
    assert [(line["job"], line["steps"]) for line in lines] == [("merge_job", ["merged_manifest"])]
    assert set(lines[0]) == {"run_id", "job", "partition", "steps", "message", "at"}
