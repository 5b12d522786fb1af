"""The whole platform on data it makes itself: render, ingest, and everything after, on the data root's own Dagster instance.

Belongs here: the order of the three runs and what is said at the end. Does not belong here: any work or limit.
"""

from dataclasses import dataclass
from typing import Any

import dagster as dg

from beatsight_assets import clock
from beatsight_assets.dag.assets.raw import RenderConfig
from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.checks.table import CHECKS
from beatsight_assets.dag.instance import open_instance
from beatsight_assets.dag.resources import progress_to
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Progress, Report, read_receipt, silent

DATASET = "beatsight_demo"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # progress is shown instead; the UI has the full log
MADE = tuple(dict.fromkeys(c.asset for c in CHECKS)) + ("predictions",)


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


def run_demo(settings: Settings, *, seed: int = 7, progress: Progress = silent) -> DemoSummary:
    """Render, ingest, then merge to transcriptions, each with its checks, in this process. What is unchanged is not done again.

    A red gate stops what rests on it; the summary names every gate that is not green.
    """
    started = clock.monotonic_s()
    defs = build_defs(settings=settings)
    failures: list[str] = []
    warned: list[str] = []
    n_checks = 0
    render = dg.RunConfig(ops={"rendered_audio": RenderConfig(seed=seed)}).to_config_dict()
    with open_instance(settings) as instance, progress_to(progress):
        for job, partition, config in (("render_job", DATASET, render), ("ingest_job", DATASET, {}), ("demo_job", None, {})):
            result = defs.resolve_job_def(job).execute_in_process(
                instance=instance, partition_key=partition, run_config={**QUIET, **config}, raise_on_error=False
            )
            evaluations = result.get_asset_check_evaluations()
            n_checks += len(evaluations)
            for found in evaluations:
                if not found.passed:
                    target = failures if found.blocking else warned
                    target.append(f"{found.asset_key.to_user_string()}/{found.check_name}: {found.description}")
            failures += _step_failures(result)
            if not result.success:
                break
    partitioned = ("rendered_audio", "events")
    reports = {name: read_receipt(settings, name, DATASET if name in partitioned else None) for name in MADE}
    return DemoSummary(
        {name: r for name, r in reports.items() if r is not None}, tuple(failures), tuple(warned), n_checks, clock.monotonic_s() - started
    )


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
