"""When something outside the graph starts a run: pure decisions by named cases, then the sensors around them."""

import os
from pathlib import Path

import dagster as dg
import pytest

from beatsight_assets import store
from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.resources import Lake
from beatsight_assets.dag.sensors import RootState, merge_decision, merged_versions, read_root, roots_to_ingest
from beatsight_assets.settings import Settings
from beatsight_assets_tests.dag.toys import Toys

NOW = 1_000_000.0
OLD, FRESH = NOW - 3_600.0, NOW - 5.0
ROOT_CASES = {
    "first look at a settled root": ({}, {"a": RootState("1", OLD)}, ["a"]),
    "the same listing again": ({"a": "1"}, {"a": RootState("1", OLD)}, []),
    "changed and settled": ({"a": "1"}, {"a": RootState("2", OLD)}, ["a"]),
    "changed and still being copied": ({"a": "1"}, {"a": RootState("2", FRESH)}, []),
    "quiet for exactly the settle time": ({}, {"a": RootState("1", NOW - 30.0)}, ["a"]),
    "one tick short of the settle time": ({}, {"a": RootState("1", NOW - 29.9)}, []),
    "an unreadable root is not deleted data": ({"a": "1"}, {"a": None}, []),
    "an unreadable root does not hide another": ({}, {"a": None, "b": RootState("1", OLD)}, ["b"]),
    "two at once, by name": ({}, {"b": RootState("1", OLD), "a": RootState("1", OLD)}, ["a", "b"]),
    "a root that came back unchanged": ({"a": "1"}, {"a": RootState("1", OLD), "b": None}, []),
    "a file from the future waits": ({}, {"a": RootState("1", NOW + 60.0)}, []),
    "a launched root that is no dataset any more": ({"gone": "1"}, {"a": RootState("1", OLD)}, ["a"]),
    "no roots at all": ({"a": "1"}, {}, []),
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
    launched, now, expected = ROOT_CASES[case]
    assert roots_to_ingest(launched, now, NOW) == expected


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


def put(settings: Settings, text: str, *, age_s: float) -> Path:
    path = settings.layout.raw("groove_midi") / "info.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def test_raw_files_sensor(settings: Settings, instance: dg.DagsterInstance) -> None:
    """First, the same again, changed, unsettled, unreadable: one run per settled change, with the digest in its key."""
    put(settings, "one", age_s=3_600)
    first = tick(settings, "raw_files_sensor", instance)
    assert isinstance(first, dg.SensorResult) and first.run_requests
    assert [r.partition_key for r in first.run_requests] == ["groove_mididataset"]
    again = tick(settings, "raw_files_sensor", instance, first.cursor)
    assert isinstance(again, dg.SkipReason) and "Still changing: none" in str(again.skip_message)
    put(settings, "another text", age_s=1)
    unsettled = tick(settings, "raw_files_sensor", instance, first.cursor)
    assert isinstance(unsettled, dg.SkipReason) and "Still changing: groove_mididataset" in str(unsettled.skip_message)
    path = put(settings, "another text", age_s=3_600)
    changed = tick(settings, "raw_files_sensor", instance, first.cursor)
    assert isinstance(changed, dg.SensorResult) and changed.run_requests
    assert changed.run_requests[0].run_key != first.run_requests[0].run_key
    path.unlink()
    gone = tick(settings, "raw_files_sensor", instance, changed.cursor)
    assert isinstance(gone, dg.SkipReason) and "groove_mididataset" in str(gone.skip_message).split("not readable:")[1]


def test_listing_that_fails_is_not_empty(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed is None, like one that is absent or empty."""
    assert read_root(settings, "groove_mididataset") is None
    path = put(settings, "one", age_s=3_600)
    assert read_root(settings, "groove_mididataset") is not None

    def refuse(folder: object, onerror: object = None, **_: object) -> object:
        assert callable(onerror)
        return onerror(PermissionError(13, "Permission denied")) or iter(())

    monkeypatch.setattr(os, "walk", refuse)
    assert read_root(settings, "groove_mididataset") is None
    monkeypatch.undo()
    path.unlink()
    assert read_root(settings, "groove_mididataset") is None


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
