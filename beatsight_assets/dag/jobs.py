"""What people and sensors start: every job selects assets with all their checks.

A job that spans datasets cannot hold `events` too: one run holds one partition.
"""

from typing import Any

import dagster as dg

from beatsight_assets import tracking
from beatsight_assets.dag.assets.model import GPU_TAGS, TrainConfig
from beatsight_assets.dag.resources import Lake
from beatsight_assets.errors import BeatSightError

MANIFEST = (
    "merged_manifest",
    "provenance_audit",
    "crash_embeddings",
    "crash_mapping",
    "annotated_manifest",
    "near_duplicates",
    "splits",
    "manifest_metrics",
    "manifest_diff",
    "manifest_health",
    "health_diff",
    "sampling_weights",
)
MODEL = ("recording_features", "candidate_model", "evaluation")
READINESS = ("boundary_pack", "predictions", "readiness")
RELEASE = ("promoted_model", "transcriptions")
PRESETS = {"train_warmup": "warmup", "train_baseline": "baseline", "train_long": "long"}


def train_with(preset: str) -> dict[str, TrainConfig]:
    """Configuration of the steps of a training with this preset."""
    return {"candidate_model": TrainConfig(preset=preset)}


def _job(name: str, description: str, *assets: str, config: dg.RunConfig | None = None, gpu: bool = False) -> Any:
    return dg.define_asset_job(
        name, dg.AssetSelection.assets(*assets), description=description, config=config, tags={"gpu": GPU_TAGS["gpu"]} if gpu else None
    )


@dg.op(description="One run of W&B for each training run whose log is new or grew.")
def upload_runs(context: dg.OpExecutionContext, lake: Lake) -> None:
    """What `beatsight tracking sync --all` does.

    Raises
    ------
    dg.Failure : the package or a login is missing, or an upload failed
    """
    settings = lake.settings
    try:
        found = tracking.sync(settings.store, settings.layout.logged_runs)
    except BeatSightError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    for row in found:
        context.log.info(f"{row['run']}: {row['status']}, {row['rows']:,} rows {row['message']}")
    if failed := [row["run"] for row in found if row["status"] == "failed"]:
        raise dg.Failure(f"{len(failed)} runs were not uploaded, first {failed[0]}")


@dg.job(description="Bring the logs of training runs to Weights & Biases.")
def tracking_sync_job() -> None:
    """One step; there is no asset in it, because what it makes lies elsewhere."""
    upload_runs()


JOBS = [
    tracking_sync_job,
    _job("render_job", "Render one dataset that the platform makes itself.", "rendered_audio"),
    _job("integrity_job", "Look at the raw data of one dataset.", "raw_integrity"),
    _job("ingest_job", "Look at the raw data of one dataset, and ingest it when that is whole.", "raw_integrity", "events"),
    _job("merge_job", "Merge all green datasets.", "merged_manifest"),
    _job("post_ingest_job", "From green datasets to a judged, split and weighted manifest.", *MANIFEST),
    _job("health_job", "Count and judge the manifest again.", "manifest_metrics", "manifest_health", "health_diff"),
    _job("verify_job", "Which clips would be cut, and what is missing.", "bundle_plan"),
    _job("smoke_job", "Export a limited bundle, check and judge it.", "bundle_plan", "bundle_smoke"),
    _job("export_job", "Cut all clips and seal the bundle. Choose all shards: one run makes them.", "bundle_plan", "clips", "bundle"),
    _job(
        "post_export_job",
        "Judge the sealed bundle and cache the features of its clips. Choose all shards.",
        "bundle_health",
        "feature_cache",
        "feature_index",
    ),
    _job("archive_job", "Keep what the bundle was under a date, without its samples.", "bundle_archive"),
    dg.define_asset_job(
        "digests_job",
        dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("bundle"), "bundle_digests")),
        description="Read every byte of the bundle.",
    ),
    *(
        _job(name, f"Train with preset {preset} and evaluate.", *MODEL, config=dg.RunConfig(ops=train_with(preset)), gpu=True)
        for name, preset in PRESETS.items()
    ),
    _job("readiness_job", "Is the candidate fit to serve?", *READINESS, gpu=True),
    _job("promote_job", "Promote the candidate, if every gate is green, and let it listen to the reference songs.", *RELEASE),
    _job(
        "demo_job",
        "Everything after ingest, from the merge to transcriptions.",
        *(*MANIFEST, *MODEL, *READINESS, *RELEASE),
        config=dg.RunConfig(ops=train_with("demo")),
        gpu=True,
    ),
]
