"""From the manifest to training clips, shard by shard."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import Field

from beatsight_assets.dag.assets import labels
from beatsight_assets.dag.automation import when_inputs_change
from beatsight_assets.dag.checks.table import TRAINING
from beatsight_assets.dag.resources import Lake
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Progress, Report, silent


class BundleConfig(dg.Config):
    """How the bundle is cut. Give all assets of one export the same."""

    layout: str = Field(default="shards", description="shards (parts of 4,096 clips) or wav (a file per clip).")
    max_missing: int = Field(default=0, description="Clips without audio to tolerate.")


class SmokeConfig(dg.Config):
    """How much of the manifest a smoke run cuts."""

    limit: int | None = Field(default=None, description="Clips; empty: 50,000.")


class InterchangeConfig(dg.Config):
    """Which form a bundle gets for other tools."""

    kind: str = Field(
        default="webdataset", description="webdataset, hf-parquet, lhotse, croissant and others: see `beatsight bundle convert --help`."
    )


class ArchiveConfig(dg.Config):
    """Under which date a bundle is archived."""

    date: str = Field(default="", description="YYYYMMDD; empty: today (UTC).")


class FeatureConfig(dg.Config):
    """How features are kept. Give both assets the same."""

    dtype: str = Field(default="float16", description="float32 loses nothing, float16 at most 0.03 dB, uint8 at most 0.33 dB.")


def shard_names(settings: Settings) -> list[str]:
    """Names of the shards, as folders have them."""
    return [f"{n:02d}" for n in range(2 if settings.profile == "demo" else 16)]


def cache_shards(settings: Settings, options: Any, shards: Sequence[int], *, progress: Progress = silent) -> Report:
    """Features of some shards (at least one), told as one report; every shard keeps its own receipt."""
    from beatsight_assets.features import clip_cache

    reports = clip_cache.run_shards(settings, options, shards, progress=progress)
    return replace(
        reports[-1],
        outputs=tuple(a for r in reports for a in r.outputs),
        parents=tuple(a for r in reports for a in r.parents),
        figures={name: sum(r.figures[name] for r in reports) for name in reports[-1].figures},
        reused=all(r.reused for r in reports),
    )


def build_bundle_assets(shards: dg.StaticPartitionsDefinition) -> list[Any]:
    """bundle_plan, clips[shard], bundle and what rests on it, feature_cache[shard], feature_index; one run makes all shards, and any run makes any of them."""
    n_shards = len(shards.get_partition_keys())

    def request(config: BundleConfig) -> Any:
        """Resume while the plan is true, else build anew beside the old bundle."""
        from beatsight_assets.bundle.export import BundleRequest

        return BundleRequest(TRAINING, None, {"layout": config.layout, "shards": n_shards}, "update", max_missing=config.max_missing)

    @dg.asset(
        deps=["annotated_manifest", "splits"],
        automation_condition=when_inputs_change(),
        **labels("bundle", "bundle.verify", "polars", "parquet", pool="bundle"),
    )
    def bundle_plan(lake: Lake, config: BundleConfig) -> dg.MaterializeResult:
        """Which events become clips, where their audio lies, and how much room they take."""
        from beatsight_assets.bundle import verify

        return lake.perform(verify.run, request(config))

    @dg.asset(deps=[bundle_plan], **labels("bundle", "checklist.smoke", "json", heavy=True, pool="bundle"))
    def bundle_smoke(lake: Lake, config: SmokeConfig) -> dg.MaterializeResult:
        """A limited bundle, exported, checked and judged; how long the whole would take."""
        from beatsight_assets.checklist import smoke

        return lake.perform(smoke.run, smoke.SmokeOptions(limit=config.limit))

    @dg.asset(
        deps=[bundle_plan],
        partitions_def=shards,
        backfill_policy=dg.BackfillPolicy.single_run(),
        **labels("bundle", "bundle.export", "wav", "parquet", heavy=True, pool="bundle"),
    )
    def clips(context: dg.AssetExecutionContext, lake: Lake, config: BundleConfig) -> dg.MaterializeResult:
        """Training clips of some recordings: a shard is made whole or not at all, and a finished one is kept."""
        from beatsight_assets.bundle import export

        return lake.perform(export.run_shards, request(config), [int(key) for key in context.partition_keys])

    @dg.asset(deps=[clips, bundle_plan], **labels("bundle", "bundle.export", "parquet", heavy=True, pool="bundle"))
    def bundle(lake: Lake, config: BundleConfig) -> dg.MaterializeResult:
        """The sealed bundle: totals counted from the shards, and the marker without which no reader opens it."""
        from beatsight_assets.bundle import export

        return lake.perform(export.run, request(config))

    @dg.asset(deps=[bundle], **labels("bundle", "interchange.stage", "wav", heavy=True, pool="bundle"))
    def interchange(lake: Lake, config: InterchangeConfig) -> dg.MaterializeResult:
        """The bundle in the form of another tool, read back before it counts."""
        from beatsight_assets.interchange import stage

        return lake.perform(stage.run, stage.InterchangeOptions(TRAINING, config.kind))

    @dg.asset(deps=[bundle], **labels("health", "health.report", "json", "html", pool="bundle"))
    def bundle_health(lake: Lake) -> dg.MaterializeResult:
        """Health of what the bundle was cut from, with its seconds; samples beyond full scale, clips without audio."""
        from beatsight_assets.checklist import export

        return lake.perform(export.bundle_health, TRAINING)

    @dg.asset(deps=[bundle], **labels("bundle", "bundle.check", "json", pool="bundle"))
    def bundle_archive(lake: Lake, config: ArchiveConfig) -> dg.MaterializeResult:
        """What the bundle was, without its samples, kept under a date: plan, metadata, durations, logs, and their digests."""
        from beatsight_assets.bundle import check

        return lake.perform(check.run_archive, check.ArchiveOptions(TRAINING, config.date))

    @dg.asset(
        deps=[bundle],
        partitions_def=shards,
        backfill_policy=dg.BackfillPolicy.single_run(),
        **labels("features", "features.clip_cache", "numpy", owner="model", heavy=True, pool="features"),
    )
    def feature_cache(context: dg.AssetExecutionContext, lake: Lake, config: FeatureConfig) -> dg.MaterializeResult:
        """Spectrograms of the clips of some shards, filed by the digest of their part; what is there and sound is kept."""
        from beatsight_assets.features import clip_cache

        options = clip_cache.WarmOptions(TRAINING, dtype=config.dtype)
        return lake.perform(cache_shards, options, [int(k) for k in context.partition_keys])

    @dg.asset(
        deps=[feature_cache, bundle], **labels("features", "features.clip_cache", "numpy", owner="model", heavy=True, pool="features")
    )
    def feature_index(lake: Lake, config: FeatureConfig) -> dg.MaterializeResult:
        """Which array belongs to which part of the bundle; every array is looked at."""
        from beatsight_assets.features import clip_cache

        return lake.perform(clip_cache.run, clip_cache.WarmOptions(TRAINING, dtype=config.dtype))

    return [bundle_plan, bundle_smoke, clips, bundle, interchange, bundle_health, bundle_archive, feature_cache, feature_index]
