"""The one code location, assembled: assets, checks, jobs, sensors, schedules, the data root."""

import warnings

import dagster as dg

from beatsight_assets.dag.assets import manifest, model
from beatsight_assets.dag.assets.bundle import build_bundle_assets, shard_names
from beatsight_assets.dag.assets.raw import build_raw_assets
from beatsight_assets.dag.checks.judge import build_checks
from beatsight_assets.dag.jobs import JOBS
from beatsight_assets.dag.resources import Lake
from beatsight_assets.dag.schedules import build_schedules
from beatsight_assets.dag.sensors import build_sensors
from beatsight_assets.errors import ConfigError
from beatsight_assets.settings import Settings, load_settings

ROOT_VARIABLE = "BEATSIGHT_DATA_ROOT"


def settings_at_load() -> Settings:
    """Settings of the environment; without a data root the shipped configs, so that the graph can be looked at anywhere."""
    try:
        return load_settings()
    except ConfigError as error:
        if error.code != "no-data-root":
            raise
        return load_settings("data-root-is-not-set")


def build_defs(*, settings: Settings | None = None, executor: dg.ExecutorDefinition | None = None) -> dg.Definitions:
    """Definitions for given settings, or for those of the environment. Creates and reads nothing below the data root but its configs.

    Without `settings` the data root is read from BEATSIGHT_DATA_ROOT when a run starts, and a run without it names that variable.
    """
    known = settings or settings_at_load()
    root: str = str(settings.layout.root) if settings else dg.EnvVar(ROOT_VARIABLE)
    lake = Lake(data_root=root, profile=known.profile, executor=known.executor, n_workers=known.n_workers, model_path=known.model_path)
    is_prod = known.profile == "prod"
    datasets = dg.StaticPartitionsDefinition(list(known.datasets))
    rendered = dg.StaticPartitionsDefinition([name for name, config in known.datasets.items() if config.rendered])
    shards = dg.StaticPartitionsDefinition(shard_names(known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # observable sources (design ruling 24)
        warnings.simplefilter("ignore", dg.PreviewWarning)  # partitioned checks
        return dg.Definitions(
            assets=[*build_raw_assets(datasets, rendered), *manifest.ASSETS, *build_bundle_assets(shards), *model.ASSETS],
            asset_checks=build_checks({"events": datasets, "raw_integrity": datasets, "rendered_audio": rendered}),
            jobs=JOBS,
            sensors=build_sensors(dg.DefaultSensorStatus.RUNNING if is_prod else dg.DefaultSensorStatus.STOPPED, known.poll_s),
            schedules=build_schedules(dg.DefaultScheduleStatus.RUNNING if is_prod else dg.DefaultScheduleStatus.STOPPED),
            resources={"lake": lake},
            executor=executor or dg.in_process_executor,
        )
