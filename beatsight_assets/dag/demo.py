"""The whole platform on data it makes itself: render, ingest, and everything after, on the data root's own Dagster instance.

Belongs here: the order of the runs and what is said at the end. Does not belong here: any work or limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dagster as dg
from sqlalchemy.exc import OperationalError

from beatsight_assets import clock
from beatsight_assets.dag import metadata
from beatsight_assets.dag.assets.bundle import shard_names
from beatsight_assets.dag.assets.raw import RenderConfig
from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.checks.table import CHECKS
from beatsight_assets.dag.instance import open_instance
from beatsight_assets.dag.jobs import train_with
from beatsight_assets.dag.resources import progress_to
from beatsight_assets.errors import StoreError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Progress, Report, read_receipt, silent

if TYPE_CHECKING:
    from beatsight_assets.render.stage import RenderOptions

DATASET = "beatsight_demo"
OWN_RUNS = {"beatsight/demo": "true"}  # tag of runs that only a demo process carries out
QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}  # progress is shown instead; the UI has the full log
MADE = (*dict.fromkeys(c.asset for c in CHECKS), "predictions")
RECEIPT_OF = {c.asset: c.of for c in CHECKS if not c.stage} | dict.fromkeys(
    ("rendered_audio", "events"), DATASET
)  # partition of the receipt


@dataclass(frozen=True)
class DemoSummary:
    """What the demo made (by asset, in order), what speaks against it, and how long it took."""

    reports: dict[str, Report]
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    n_checks: int
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        made = {n: {"digest": r.digest, "reused": r.reused, "figures": dict(r.figures)} for n, r in self.reports.items()}
        return {
            "passed": self.passed,
            "assets": made,
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "checks": self.n_checks,
            "seconds": round(self.seconds, 1),
        }


def run_demo(settings: Settings, *, options: "RenderOptions | None" = None, progress: Progress = silent) -> DemoSummary:
    """Render, ingest, merge to transcriptions, then a bundle with its features, each with its checks, in this process. What is unchanged is kept.

    A red gate stops what rests on it; the summary names every check that is not green.

    Raises
    ------
    Busy : another demo runs on this data root
    """
    started = clock.monotonic_s()
    defs = build_defs(settings=settings)
    render = RenderConfig() if options is None else RenderConfig(seed=options.seed, sessions=options.sessions)
    shards = shard_names(settings)
    all_shards = {"dagster/asset_partition_range_start": shards[0], "dagster/asset_partition_range_end": shards[-1]}
    quiet = dg.RunConfig(loggers=QUIET)
    runs: tuple[tuple[str, str | None, dg.RunConfig, dict[str, str]], ...] = (
        ("render_job", DATASET, dg.RunConfig(ops={"rendered_audio": render}, loggers=QUIET), {}),
        ("ingest_job", DATASET, quiet, {}),
        ("demo_job", None, dg.RunConfig(ops=train_with("demo"), loggers=QUIET), {}),
        ("export_job", None, quiet, all_shards),
        ("post_export_job", None, quiet, all_shards),
    )
    failures: list[str] = []
    warned: list[str] = []
    n_checks = 0
    reused: set[str] = set()
    with open_instance(settings) as instance, _alone(settings, instance), progress_to(progress):
        for job, partition, config, tags in runs:
            try:
                result = defs.resolve_job_def(job).execute_in_process(
                    instance=instance, partition_key=partition, run_config=config, tags=OWN_RUNS | tags, raise_on_error=False
                )
            except OperationalError as error:
                raise StoreError(
                    f"the instance below dagster/ cannot be written: {error.orig}. Is the disk full?", code="no-space"
                ) from error
            _raise_what_is_no_verdict(result)
            for found in result.get_asset_check_evaluations():
                n_checks += 1
                if not found.passed:
                    target = failures if found.blocking else warned
                    target.append(f"{found.asset_key.to_user_string()}/{found.check_name}: {found.description}")
            for event in result.get_asset_materialization_events():
                said = event.materialization.metadata.get("made")
                if said is not None and said.value != metadata.MADE_NOW:
                    reused.add(event.materialization.asset_key.to_user_string())
            failures += _step_failures(result)
            if not result.success:
                break
    reports = {name: read_receipt(settings, name, RECEIPT_OF.get(name)) for name in MADE}
    made = {name: replace(report, reused=name in reused) for name, report in reports.items() if report is not None}
    return DemoSummary(made, tuple(failures), tuple(warned), n_checks, clock.monotonic_s() - started)


def _raise_what_is_no_verdict(result: dg.ExecuteInProcessResult) -> None:
    """Ctrl-C and a disk that refuses are not red gates: they end the demo with their own exit code."""
    for event in result.filter_events(lambda e: e.is_step_failure):
        error = event.step_failure_data.error
        names = [e.cls_name or "" for e in (error, error.cause if error else None) if e is not None]
        if any("Interrupt" in name for name in names):
            raise KeyboardInterrupt
        if error is not None and "StoreError" in names:
            said = (error.cause or error).message
            raise StoreError(" ".join(said.split()), code="no-space" if "no-space" in said else "io-error")


@contextmanager
def _alone(settings: Settings, instance: dg.DagsterInstance) -> Iterator[None]:
    """One demo at a time. Runs that a killed demo left behind are marked as failed and give their pool slots back: no daemon may be there to do it."""
    with settings.store.lock(settings.layout.dagster_home / "demo", "demo"):
        unfinished = [
            dg.DagsterRunStatus.NOT_STARTED,
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.STARTED,
            dg.DagsterRunStatus.CANCELING,
        ]
        for run in instance.get_runs(dg.RunsFilter(tags=OWN_RUNS, statuses=unfinished)):
            instance.report_run_failed(run, "the process of this demo was stopped")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        yield


def _step_failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """What went wrong in steps, other than red checks, which speak for themselves."""
    said = []
    for event in result.filter_events(lambda e: e.is_step_failure):
        failure: Any = event.step_failure_data
        user = failure.user_failure_data
        text = user.description if user is not None else (failure.error.cause or failure.error).message if failure.error else "failed"
        if "DagsterAssetCheckFailedError" not in (failure.error.cls_name or "" if failure.error else ""):
            said.append(f"{event.step_key}: {' '.join((text or 'failed').split())}")
    return said
