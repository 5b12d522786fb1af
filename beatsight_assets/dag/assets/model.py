"""From the manifest to a promoted model and what it hears."""

import dagster as dg
from pydantic import Field

from beatsight_assets.dag import gating
from beatsight_assets.dag.assets import labels
from beatsight_assets.dag.automation import when_inputs_change
from beatsight_assets.dag.checks.table import blocking_keys
from beatsight_assets.dag.resources import Lake

GPU_TAGS = {"gpu": "true", "dagster/max_runtime": "86400"}  # seconds; one at a time through the queue (dagster.yaml)
MANIFEST_GATES = ("merged_manifest", "annotated_manifest", "splits", "manifest_health", "sampling_weights", "recording_features")
RELEASE_GATES = (*MANIFEST_GATES, "health_diff", "candidate_model", "evaluation", "readiness")


class TrainConfig(dg.Config):
    """Which preset of configs/presets a training uses."""

    preset: str = Field(default="baseline", description="Name of a file in configs/presets: demo, warmup, baseline, long or your own.")


class PromoteConfig(dg.Config):
    """What a release is called."""

    release: str | None = Field(
        default=None, description="Folder below models/promoted; empty: profile and the first 8 characters of the model's sha256."
    )


@dg.asset(
    deps=["annotated_manifest", "splits"], **labels("features", "features.cache", "numpy", owner="model", heavy=True, pool="features")
)
def recording_features(lake: Lake) -> dg.MaterializeResult:
    """Spectrogram frames of every whole recording, filed by the digest of its audio and of the feature definition."""
    from beatsight_assets.features import cache

    return lake.perform(cache.run)


@dg.asset(
    deps=[recording_features, "sampling_weights", "manifest_health"],
    op_tags=GPU_TAGS,
    **labels("training", "model.train", "pytorch", owner="model", heavy=True, pool="gpu"),
)
def candidate_model(context: dg.AssetExecutionContext, lake: Lake, config: TrainConfig) -> dg.MaterializeResult:
    """A trained network with its threshold and temperature. Guard G2: everything it learns from is green and unchanged."""
    from beatsight_assets.model import train

    gating.require_stages(context.instance, lake.settings, blocking_keys(*MANIFEST_GATES))
    return lake.perform(train.run, train.TrainOptions(preset=config.preset))


@dg.asset(
    deps=[candidate_model, recording_features],
    op_tags=GPU_TAGS,
    **labels("training", "model.evaluate", "json", owner="model", heavy=True, pool="gpu"),
)
def evaluation(lake: Lake) -> dg.MaterializeResult:
    """The candidate on held-out recordings: precision, recall and F by class, hits matched within 50 ms."""
    from beatsight_assets.model import evaluate

    return lake.perform(evaluate.run)


@dg.asset(
    deps=["annotated_manifest", "splits"],
    automation_condition=when_inputs_change(),
    **labels("readiness", "readiness.boundary", "json", owner="model", pool="readiness"),
)
def boundary_pack(lake: Lake) -> dg.MaterializeResult:
    """Held-out hits whose time is moved to the edges of the decision window: the hard cases of timing."""
    from beatsight_assets.readiness import boundary

    return lake.perform(boundary.run)


@dg.asset(
    deps=[candidate_model, recording_features, boundary_pack],
    op_tags=GPU_TAGS,
    **labels("readiness", "model.predict", "parquet", owner="model", heavy=True, pool="gpu"),
)
def predictions(lake: Lake) -> dg.MaterializeResult:
    """What the candidate says about the boundary pack, about sounds that are no drums, and about held-out hits."""
    from beatsight_assets.model import predict

    return lake.perform(predict.run)


@dg.asset(deps=[predictions], **labels("readiness", "readiness.run", "json", owner="model", pool="readiness"))
def readiness(lake: Lake) -> dg.MaterializeResult:
    """Is the candidate fit to serve? Five gates, each with its figures and limits."""
    from beatsight_assets.readiness import run as stage

    return lake.perform(stage.run)


@dg.asset(deps=[evaluation, readiness, "health_diff"], **labels("promotion", "model.promote", "pytorch", owner="model", pool="promotion"))
def promoted_model(context: dg.AssetExecutionContext, lake: Lake, config: PromoteConfig) -> dg.MaterializeResult:
    """The model that serves. Guard G3: every gate is green, and the digests lead unbroken from the model to the raw events."""
    from beatsight_assets.model import promote

    gating.require_stages(context.instance, lake.settings, blocking_keys(*RELEASE_GATES))
    return lake.perform(promote.run, promote.PromoteOptions(release=config.release))


@dg.asset(deps=[promoted_model], **labels("promotion", "transcribe.stage", "midi", "json", owner="model", heavy=True, pool="promotion"))
def transcriptions(lake: Lake) -> dg.MaterializeResult:
    """The promoted model listens to the reference songs: .bsm, MIDI and label tracks."""
    from beatsight_assets.transcribe import stage

    return lake.perform(stage.run)


ASSETS = [recording_features, candidate_model, evaluation, boundary_pack, predictions, readiness, promoted_model, transcriptions]
