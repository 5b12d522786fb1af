"""From event tables to one annotated, split, judged and weighted manifest."""

import dagster as dg

from beatsight_assets.dag import frames, gating
from beatsight_assets.dag.assets import labels
from beatsight_assets.dag.automation import when_inputs_change
from beatsight_assets.dag.checks.table import blocking_keys
from beatsight_assets.dag.resources import Lake


@dg.asset(deps=["events"], **labels("manifest", "manifest.merge", "polars", "parquet", pool="manifest"))
def merged_manifest(context: dg.AssetExecutionContext, lake: Lake) -> dg.MaterializeResult:
    """One table of all enabled datasets. Guard G1: every dataset must be green, about the files that lie there now."""
    from beatsight_assets.manifest import merge

    gating.require_datasets(context.instance, lake.settings, blocking_keys("events"))
    return lake.perform(merge.run)


@dg.asset(
    deps=[merged_manifest],
    automation_condition=when_inputs_change(),
    **labels("manifest", "manifest.provenance", "polars", "json", pool="manifest"),
)
def provenance_audit(lake: Lake) -> dg.MaterializeResult:
    """Does every event trace back to files, a licence and an importer?"""
    from beatsight_assets.manifest import provenance

    return lake.perform(provenance.run)


@dg.asset(
    deps=[merged_manifest],
    automation_condition=when_inputs_change(),
    **labels("manifest", "manifest.crash_embeddings", "numpy", "parquet", heavy=True, pool="manifest"),
)
def crash_embeddings(lake: Lake) -> dg.MaterializeResult:
    """How every crash sounds: spectral figures of its first 0.8 seconds, where there is audio."""
    from beatsight_assets.manifest import crash_embeddings as stage

    return lake.perform(stage.run)


@dg.asset(
    deps=[merged_manifest, crash_embeddings],
    automation_condition=when_inputs_change(),
    **labels("manifest", "manifest.crash_mapping", "json", pool="manifest"),
)
def crash_mapping(lake: Lake) -> dg.MaterializeResult:
    """Which crash is the second one: by what the source says, else by its sound within the session."""
    from beatsight_assets.manifest import crash_mapping as stage

    return lake.perform(stage.run)


@dg.asset(
    deps=[merged_manifest, crash_mapping],
    automation_condition=when_inputs_change(),
    **labels("manifest", "manifest.annotate", "polars", "parquet", pool="manifest"),
)
def annotated_manifest(lake: Lake) -> dg.MaterializeResult:
    """The merged manifest with canonical labels, hi-hat openness and playing techniques."""
    from beatsight_assets.manifest import annotate

    return lake.perform(annotate.run)


@dg.asset(
    deps=[merged_manifest],
    automation_condition=when_inputs_change(),
    **labels("manifest", "manifest.near_duplicates", "numpy", "parquet", heavy=True, pool="manifest"),
)
def near_duplicates(lake: Lake) -> dg.MaterializeResult:
    """Recordings that are the same sound in other bytes; groups that share one stay in one split."""
    from beatsight_assets.manifest import near_duplicates as stage

    return lake.perform(stage.run)


@dg.asset(
    deps=[annotated_manifest, near_duplicates],
    automation_condition=when_inputs_change(),
    **labels("manifest", "manifest.splits", "polars", "parquet", pool="manifest"),
)
def splits(lake: Lake) -> dg.MaterializeResult:
    """Train, validation or test for every group; what shares a performance stays together."""
    from beatsight_assets.manifest import splits as stage

    return lake.perform(stage.run)


@dg.asset(
    deps=[annotated_manifest, splits],
    automation_condition=when_inputs_change(),
    **labels("manifest", "manifest.compare", "json", pool="manifest"),
)
def manifest_metrics(lake: Lake) -> dg.MaterializeResult:
    """Counts and statistics of the annotated manifest, kept for plots over time."""
    from beatsight_assets.manifest import compare

    return lake.perform(compare.run)


@dg.asset(
    deps=[annotated_manifest],
    automation_condition=when_inputs_change(),
    **labels("manifest", "manifest.compare", "json", pool="manifest"),
)
def manifest_diff(lake: Lake) -> dg.MaterializeResult:
    """What the annotated manifest gained and lost since its version before: events, sessions, components, techniques."""
    from beatsight_assets.manifest import compare

    return lake.perform(compare.run_diff)


@dg.asset(
    deps=[annotated_manifest, splits],
    automation_condition=when_inputs_change(),
    **labels("health", "health.report", "json", "html", pool="manifest"),
)
def manifest_health(lake: Lake) -> dg.MaterializeResult:
    """Health report of the annotated manifest, judged by the limits of the profile."""
    from beatsight_assets.health import report

    return lake.perform(report.run)


@dg.asset(deps=[manifest_health], automation_condition=when_inputs_change(), **labels("health", "health.compare", "json", pool="manifest"))
def health_diff(lake: Lake) -> dg.MaterializeResult:
    """The health report against that of the release before."""
    from beatsight_assets.health import compare

    return lake.perform(compare.run)


@dg.asset(
    deps=[annotated_manifest, splits], automation_condition=when_inputs_change(), **labels("sampling", "sampling", "json", pool="manifest")
)
def sampling_weights(lake: Lake) -> dg.MaterializeResult:
    """How often training draws each event: rare classes and techniques more often, repeated takes less."""
    from beatsight_assets import sampling

    return frames.with_weights(lake.settings, lake.perform(sampling.run))


ASSETS = [
    merged_manifest,
    provenance_audit,
    crash_embeddings,
    crash_mapping,
    annotated_manifest,
    near_duplicates,
    splits,
    manifest_metrics,
    manifest_diff,
    manifest_health,
    health_diff,
    sampling_weights,
]
