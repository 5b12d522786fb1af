"""What starts because of the time. Times are UTC."""

from collections.abc import Iterator

import dagster as dg

from beatsight_assets.dag.assets.raw import IntegrityConfig
from beatsight_assets.dag.resources import Lake

NIGHTLY_READS = 2_000  # files per dataset and night whose bytes are read; another choice every night


def build_schedules(status: dg.DefaultScheduleStatus) -> list[dg.ScheduleDefinition]:
    """nightly_integrity 02:00, nightly_health 03:00, weekly_digests Sunday 05:00, tracking_sync 05:30 (off by default)."""

    @dg.schedule(
        job_name="integrity_job",
        cron_schedule="0 2 * * *",
        execution_timezone="UTC",
        default_status=status,
        description="Are the raw folders of every ingested dataset there, and a sample of their files unchanged?",
    )
    def nightly_integrity(context: dg.ScheduleEvaluationContext, lake: Lake) -> Iterator[dg.RunRequest]:
        """One run per enabled dataset that was ingested here: one that vanished since is what this is for."""
        day = context.scheduled_execution_time
        config = IntegrityConfig(recompute_digests=True, max_checks=NIGHTLY_READS, seed=day.toordinal())
        for name, dataset in lake.settings.datasets.items():
            if dataset.enabled and lake.settings.layout.provenance(name).is_file():
                yield dg.RunRequest(
                    partition_key=name,
                    run_key=f"{name}:{day.date().isoformat()}",
                    run_config=dg.RunConfig(ops={"raw_integrity": config}),
                )

    health = dg.ScheduleDefinition(
        name="nightly_health",
        job_name="health_job",
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        default_status=status,
        description="Judge the manifest again every night.",
    )
    digests = dg.ScheduleDefinition(
        name="weekly_digests",
        job_name="digests_job",
        cron_schedule="0 5 * * 0",
        execution_timezone="UTC",
        default_status=status,
        description="Read every byte of the bundle every week.",
    )
    uploads = dg.ScheduleDefinition(
        name="tracking_sync",
        job_name="tracking_sync_job",
        cron_schedule="30 5 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Bring the logs of new training runs to Weights & Biases. Off until somebody with a login turns it on.",
    )
    return [nightly_integrity, health, digests, uploads]
