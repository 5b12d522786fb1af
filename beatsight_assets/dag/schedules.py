"""What starts because of the time. Times are UTC."""

import dagster as dg


def build_schedules(status: dg.DefaultScheduleStatus) -> list[dg.ScheduleDefinition]:
    """nightly_health 03:00."""
    nightly = dg.ScheduleDefinition(
        name="nightly_health",
        job_name="health_job",
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        default_status=status,
        description="Judge the manifest again every night.",
    )
    return [nightly]
