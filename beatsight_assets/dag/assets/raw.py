"""From raw folders to event tables."""

from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import Field

from beatsight_assets.dag.assets import labels
from beatsight_assets.dag.resources import Lake


class RenderConfig(dg.Config):
    """What the platform renders."""

    seed: int = Field(default=7, description="Equal seeds give equal bytes.")
    sessions: int | None = Field(default=None, description="Takes of the demo; empty: as many as its gates need.")


class IntegrityConfig(dg.Config):
    """How closely raw data is looked at."""

    verify_manifests: bool = Field(default=True, description="Every file of the checksum list must be there, where there is a list.")
    recompute_digests: bool = Field(default=False, description="And have the listed digest; reads the files.")
    max_checks: int | None = Field(default=None, description="Only so many files per dataset; empty: all.")
    seed: int = Field(default=0, description="Which files, when not all; equal seeds choose equal files.")


def build_raw_assets(datasets: dg.StaticPartitionsDefinition, rendered: dg.StaticPartitionsDefinition) -> list[Any]:
    """raw_files, rendered_audio, events; partitions are the datasets of configs/datasets.yaml, and those of them that we render."""

    @dg.observable_source_asset(partitions_def=datasets, group_name="raw", tags={"beatsight/cost": "cheap"})
    def raw_files(lake: Lake) -> dg.DataVersionsByPartition:
        """Raw folders by dataset, never written. The version is a digest of the listings; absent and unreadable folders have none."""
        from beatsight_assets.sources import read_state

        states = {name: read_state(lake.settings, name) for name in lake.settings.datasets}
        return dg.DataVersionsByPartition({name: state for name, state in states.items() if state is not None})

    every_folder = dg.AssetDep(raw_files, partition_mapping=dg.AllPartitionMapping())
    rendered_first = dg.AssetDep(
        "rendered_audio", partition_mapping=dg.StaticPartitionMapping({name: name for name in rendered.get_partition_keys()})
    )

    @dg.asset(deps=[every_folder], partitions_def=rendered, **labels("raw", "render.stage", "midi", "wav", heavy=True, pool="render"))
    def rendered_audio(context: dg.AssetExecutionContext, lake: Lake, config: RenderConfig) -> dg.MaterializeResult:
        """Audio that the platform renders itself from MIDI; afterwards an ordinary raw folder."""
        from beatsight_assets.render import stage

        options = stage.RenderOptions(source_set=context.partition_key, seed=config.seed)
        if config.sessions is not None:
            options = replace(options, sessions=config.sessions)
        return lake.perform(stage.run, options)

    @dg.asset(
        deps=[raw_files, rendered_first],
        partitions_def=datasets,
        **labels("raw", "manifest.integrity", "json", heavy=True, pool="ingest"),
    )
    def raw_integrity(context: dg.AssetExecutionContext, lake: Lake, config: IntegrityConfig) -> dg.MaterializeResult:
        """Are the raw folders of a dataset there, and the files that its checksum list names?"""
        from beatsight_assets.manifest import integrity

        options = integrity.IntegrityOptions(
            context.partition_key, config.verify_manifests, config.recompute_digests, config.max_checks, config.seed
        )
        return lake.perform(integrity.run, options)

    @dg.asset(
        deps=[raw_files, raw_integrity, rendered_first],
        partitions_def=datasets,
        **labels("ingest", "sources.pipeline", "polars", "parquet", heavy=True, pool="ingest"),
    )
    def events(context: dg.AssetExecutionContext, lake: Lake) -> dg.MaterializeResult:
        """Events of one dataset: every instant with its hits, with provenance, quarantine and an ingest report beside it."""
        from beatsight_assets import sources

        return lake.perform(sources.ingest, context.partition_key)

    return [raw_files, rendered_audio, raw_integrity, events]
