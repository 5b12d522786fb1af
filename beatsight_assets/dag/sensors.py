"""What starts because something outside the graph changed, and the pure decisions behind it.

Belongs here: raw folders -> ingest, events -> merge, failed runs -> a line. Does not belong here: changes inside the graph (`automation`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import dagster as dg

from beatsight_assets import clock
from beatsight_assets.dag import gating
from beatsight_assets.dag.checks.table import blocking_keys
from beatsight_assets.dag.resources import Lake
from beatsight_assets.settings import Settings
from beatsight_assets.stages import read_receipt


def roots_to_ingest(launched: Mapping[str, str], seen: Mapping[str, str], now: Mapping[str, str | None]) -> list[str]:
    """Datasets whose roots changed since the last launch and are as the tick before saw them: nobody is copying.

    Roots that cannot be read are None and are never "changed": an unmounted disk must not look like deleted data.
    """
    return [name for name, state in sorted(now.items()) if state is not None and launched.get(name) != state and seen.get(name) == state]


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


@dataclass(frozen=True)
class RawCursor:
    """What the sensor remembers: per dataset the digest it launched, and the digest of the tick before."""

    launched: Mapping[str, str]
    seen: Mapping[str, str]

    @classmethod
    def read(cls, text: str | None) -> "RawCursor":
        """From a cursor; one of an older version holds only what was launched."""
        found = json.loads(text) if text else {}
        return cls(found["launched"], found["seen"]) if "launched" in found else cls(found, {})

    def to_text(self) -> str:
        return json.dumps({"launched": dict(self.launched), "seen": dict(self.seen)}, sort_keys=True)


def build_sensors(status: dg.DefaultSensorStatus, poll_s: int) -> list[dg.SensorDefinition]:
    """raw_files_sensor, merge_sensor, failure_log and the automation sensor."""

    raw_files = "A raw folder that changed and has settled is ingested. An unreadable folder is a skip, never a deletion."
    merge = "Datasets that are all green, and not those of the last merge, are merged. One request per set of versions."
    failures = "One line per failed run in reports/failures.jsonl, so that a red run is found without the UI."

    @dg.sensor(job_name="ingest_job", minimum_interval_seconds=poll_s, default_status=status, description=raw_files)
    def raw_files_sensor(context: dg.SensorEvaluationContext, lake: Lake) -> dg.SensorResult:
        from beatsight_assets.sources import read_state

        settings = lake.settings
        before = RawCursor.read(context.cursor)
        now = {name: read_state(settings, name) for name, config in settings.datasets.items() if config.enabled}
        readable = {name: state for name, state in now.items() if state is not None}
        due = roots_to_ingest(before.launched, before.seen, now)
        after = RawCursor({**before.launched, **{name: readable[name] for name in due}}, {**before.seen, **readable})
        if not due:
            unsettled = [name for name, state in readable.items() if after.launched.get(name) != state]
            unreadable = [name for name in now if name not in readable]
            reason = (
                f"nothing new that has settled. Still changing: {', '.join(unsettled) or 'none'}. "
                f"Not there or not readable: {', '.join(unreadable) or 'none'}"
            )
            return dg.SensorResult(skip_reason=reason, cursor=after.to_text())
        requests = [dg.RunRequest(partition_key=name, run_key=f"{name}:{readable[name]}") for name in due]
        return dg.SensorResult(run_requests=requests, cursor=after.to_text())

    @dg.sensor(job_name="merge_job", minimum_interval_seconds=poll_s, default_status=status, description=merge)
    def merge_sensor(context: dg.SensorEvaluationContext, lake: Lake) -> dg.SensorResult | dg.SkipReason:
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

    @dg.run_failure_sensor(default_status=status, monitor_all_code_locations=False, description=failures)
    def failure_log(context: dg.RunFailureSensorContext, lake: Lake) -> None:
        lake.settings.store.append_line(lake.settings.layout.reports / "failures.jsonl", failure_line(context))

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
