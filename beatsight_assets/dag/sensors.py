"""What starts because something outside the graph changed, and the pure decisions behind it.

Belongs here: raw folders -> ingest, events -> merge, failed runs -> a line. Does not belong here: changes inside the graph (`automation`).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg

from beatsight_assets import clock
from beatsight_assets.dag import gating
from beatsight_assets.dag.checks.table import blocking_keys
from beatsight_assets.dag.resources import Lake
from beatsight_assets.settings import Settings
from beatsight_assets.stages import read_receipt

SETTLE_S = 30.0  # a folder that changed this recently may still be copied
POLL_S = 60


@dataclass(frozen=True)
class RootState:
    """A raw folder as it is now. `digest` is of its listing."""

    digest: str
    newest_mtime_s: float


def roots_to_ingest(
    launched: Mapping[str, str], now: Mapping[str, RootState | None], clock_s: float, settle_s: float = SETTLE_S
) -> list[str]:
    """Datasets whose root changed since the last launch and has been quiet for `settle_s` seconds.

    A root that cannot be read is None and is never "changed": an unmounted disk must not look like deleted data.
    """
    return [
        name
        for name, root in sorted(now.items())
        if root is not None and launched.get(name) != root.digest and clock_s - root.newest_mtime_s >= settle_s
    ]


@dataclass(frozen=True)
class MergeDecision:
    """Whether to merge now, and why or why not."""

    wanted: bool
    reason: str


def merge_decision(states: Mapping[str, Sequence[str]], versions: Mapping[str, str], last_inputs: Mapping[str, str]) -> MergeDecision:
    """Merge when every present dataset is judged green and at least one is another version than the last merge read.

    Parameters
    ----------
    states : states of the blocking checks of each present, enabled dataset
    versions : sha256 of each one's events now
    last_inputs : the same, as the last merge read them; empty when there was none
    """
    if not states:
        return MergeDecision(False, "no dataset has been ingested yet")
    not_green = {
        name: next((s for s in found if s != "green"), "never") for name, found in states.items() if not found or set(found) != {"green"}
    }
    if not_green:
        return MergeDecision(False, "waiting for green checks: " + ", ".join(f"{n} is {s}" for n, s in sorted(not_green.items())))
    unknown = sorted(set(states) - set(versions))
    if unknown:
        return MergeDecision(False, f"no receipt of {', '.join(unknown)}")
    wanted = {name: versions[name] for name in states}
    if wanted == dict(last_inputs):
        return MergeDecision(False, "the last merge read exactly these versions")
    changed = sorted(name for name in {*wanted, *last_inputs} if wanted.get(name) != last_inputs.get(name))
    return MergeDecision(True, f"changed since the last merge: {', '.join(changed)}")


def read_root(settings: Settings, source_set: str) -> RootState | None:
    """A raw folder now; None when it is absent, unreadable or empty (as the mount point of an absent disk is)."""
    from beatsight_assets.sources import find_root, listing_digest

    root = find_root(settings, source_set)
    if root is None:
        return None
    try:
        newest = [os.stat(path).st_mtime for path in _walk(root)]
        return RootState(listing_digest(root), max(newest)) if newest else None
    except OSError:
        return None


def _walk(root: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error

    return [os.path.join(folder, name) for folder, _, names in os.walk(root, onerror=refuse) for name in names]


def _read_cursor(cursor: str | None) -> dict[str, str]:
    return dict(json.loads(cursor)) if cursor else {}


def build_sensors(status: dg.DefaultSensorStatus) -> list[dg.SensorDefinition]:
    """raw_files_sensor, merge_sensor, failure_log and the automation sensor."""

    @dg.sensor(job_name="ingest_job", minimum_interval_seconds=POLL_S, default_status=status)
    def raw_files_sensor(context: dg.SensorEvaluationContext, lake: Lake) -> dg.SensorResult | dg.SkipReason:
        """A raw folder that changed and has settled is ingested. An unreadable folder is a skip, never a deletion."""
        settings = lake.settings
        launched = _read_cursor(context.cursor)
        now = {name: read_root(settings, name) for name, config in settings.datasets.items() if config.enabled}
        due = roots_to_ingest(launched, now, clock.utc_now().timestamp())
        if not due:
            unsettled = [n for n, r in now.items() if r is not None and launched.get(n) != r.digest]
            unreadable = [n for n, r in now.items() if r is None]
            return dg.SkipReason(
                f"nothing new. Still changing: {', '.join(unsettled) or 'none'}. Not there or not readable: {', '.join(unreadable) or 'none'}"
            )
        found = {name: root.digest for name in due if (root := now[name]) is not None}
        requests = [dg.RunRequest(partition_key=name, run_key=f"{name}:{digest}") for name, digest in found.items()]
        return dg.SensorResult(run_requests=requests, cursor=json.dumps({**launched, **found}, sort_keys=True))

    @dg.sensor(job_name="merge_job", minimum_interval_seconds=POLL_S, default_status=status)
    def merge_sensor(context: dg.SensorEvaluationContext, lake: Lake) -> dg.SensorResult | dg.SkipReason:
        """Datasets that are all green, and not those of the last merge, are merged. One request per set of versions."""
        settings = lake.settings
        checks = blocking_keys("events")
        datasets = gating.made_datasets(context.instance, settings)
        states: dict[str, list[str]] = {name: [] for name in datasets}
        for state in gating.gate_states(context.instance, checks, datasets):
            states[str(state.partition)].append(state.state)
        versions, last_inputs = events_versions(settings, datasets), merged_versions(settings)
        decision = merge_decision(states, versions, last_inputs)
        asked = sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()
        if not decision.wanted:
            return dg.SkipReason(decision.reason)
        if context.cursor == asked:
            return dg.SkipReason(f"{decision.reason}; a merge of these versions was asked for before")
        context.log.info(decision.reason)
        return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=asked)

    @dg.run_failure_sensor(default_status=status, monitor_all_code_locations=False)
    def failure_log(context: dg.RunFailureSensorContext, lake: Lake) -> None:
        """One line per failed run in reports/failures.jsonl, so that a red run is found without the UI."""
        lake.settings.store.append_line(lake.settings.layout.root / "reports" / "failures.jsonl", failure_line(context))

    automation = dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(),
        default_status=status,
        description="Cheap assets follow their inputs, once these are green.",
    )
    return [raw_files_sensor, merge_sensor, failure_log, automation]


def failure_line(context: dg.RunFailureSensorContext) -> dict[str, Any]:
    """What is remembered of a failed run."""
    steps = context.get_step_failure_events()
    return {
        "run_id": context.dagster_run.run_id,
        "job": context.dagster_run.job_name,
        "partition": context.dagster_run.tags.get("dagster/partition"),
        "steps": [event.step_key for event in steps],
        "message": (context.failure_event.message or "").strip(),
        "at": clock.utc_now().isoformat(),
    }


def events_versions(settings: Settings, datasets: Sequence[str]) -> dict[str, str]:
    """sha256 of the events of each dataset, by its receipt."""
    reports = {name: read_receipt(settings, "events", name) for name in datasets}
    return {name: report.output("events").sha256 for name, report in reports.items() if report is not None}


def merged_versions(settings: Settings) -> dict[str, str]:
    """sha256 of the events that the last merge read, by dataset."""
    report = read_receipt(settings, "merged_manifest")
    tables = {settings.layout.rel(settings.layout.events(name)): name for name in settings.datasets}
    return {tables[a.path]: a.sha256 for a in report.parents if a.path in tables} if report is not None else {}
