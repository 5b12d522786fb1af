"""Who judged what, when: the states of checks across runs, and the guards that rest on them.

Belongs here: the only calls into Dagster's event-log storage (pinned to 1.13, a test per state). Does not belong here: what a check
measures. A blocking check stops its children only inside its own run; these guards stop them in any later run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.event_api import PartitionKeyFilter

from beatsight_assets.settings import Settings
from beatsight_assets.stages import changed_outputs, read_receipt, trace

EVENTS = dg.AssetKey("events")


@dataclass(frozen=True)
class GateState:
    """State of one check on one partition: green, red, pending, stale or never."""

    check: dg.AssetCheckKey
    partition: str | None
    state: str

    @property
    def label(self) -> str:
        asset = self.check.asset_key.to_user_string()
        return f"{asset}[{self.partition}]/{self.check.name}" if self.partition else f"{asset}/{self.check.name}"


def gate_states(
    instance: dg.DagsterInstance, checks: Sequence[dg.AssetCheckKey], partitions: Sequence[str | None] = (None,)
) -> list[GateState]:
    """State of each check on each partition; partition None for an unpartitioned asset."""
    rows = instance.event_log_storage.get_asset_check_partition_info(list(checks))
    seen = {(row.check_key, row.partition_key): row for row in rows}
    return [GateState(check, part, _state(seen.get((check, part)))) for check in checks for part in partitions]


def _state(row: Any) -> str:
    if row is None:
        return "never"
    status = row.latest_execution_status.value
    if status == "PLANNED":  # queued, running, crashed, or lost in a ranged run
        return "pending"
    if status != "SUCCEEDED":
        return "red"
    made, judged = row.latest_materialization_storage_id, row.latest_target_materialization_storage_id
    return "green" if made is not None and made == judged else "stale"


def require_green(states: Sequence[GateState], also: Sequence[str] = ()) -> None:
    """Pass only when there is at least one state, all are green, and nothing else speaks against it.

    Raises
    ------
    dg.Failure : without retries; names every gate that is not green
    """
    if not states:
        raise dg.Failure("no gate to rely on: nothing upstream has been made and judged yet", allow_retries=False)
    bad = {s.label: s.state for s in states if s.state != "green"}
    if bad or also:
        text = [f"{len(bad)} of {len(states)} gates are not green: " + ", ".join(f"{k} is {v}" for k, v in bad.items())] if bad else []
        raise dg.Failure(
            ". ".join([*text, *also]),
            metadata={"gates": dg.MetadataValue.json(bad), "against": dg.MetadataValue.json(list(also))},
            allow_retries=False,
        )


def made_datasets(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Enabled datasets whose events Dagster has seen made."""
    made = instance.get_materialized_partitions(EVENTS)
    return [name for name, config in settings.datasets.items() if config.enabled and name in made]


def judged_digests(instance: dg.DagsterInstance, check: dg.AssetCheckKey, partitions: Sequence[str]) -> dict[str, str]:
    """Digest that the last evaluation of a check names, by partition."""
    found = {}
    for partition in partitions:
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([check], PartitionKeyFilter(key=partition)).get(check)
        evaluation = record.evaluation if record is not None else None
        if isinstance(evaluation, dg.AssetCheckEvaluation) and "digest" in evaluation.metadata:
            found[partition] = str(evaluation.metadata["digest"].value)
    return found


def require_datasets(instance: dg.DagsterInstance, settings: Settings, checks: Sequence[dg.AssetCheckKey]) -> None:
    """Guard G1: every blocking check of every made, enabled dataset is green, about the files that lie there now."""
    datasets = made_datasets(instance, settings)
    against = []
    for name, digest in judged_digests(instance, checks[0], datasets).items():
        report = read_receipt(settings, EVENTS.to_user_string(), name)
        if report is None or report.digest != digest or changed_outputs(settings, report):
            against.append(f"events[{name}] is not the table that was judged. Ingest it again")
    require_green(gate_states(instance, checks, datasets), against)


def require_stages(instance: dg.DagsterInstance, settings: Settings, checks: Sequence[dg.AssetCheckKey]) -> None:
    """Guards G2 and G3: all these checks are green, and the digests of the files lead unbroken back to the raw events."""
    stages = sorted({c.asset_key.to_user_string() for c in checks})
    against = [f"{link.name}: {problem}" for link in trace(settings, stages) for problem in link.problems]
    require_green(gate_states(instance, checks), against)
