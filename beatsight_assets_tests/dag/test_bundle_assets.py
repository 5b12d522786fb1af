"""The bundle as assets: plan, shards in one run, seal, checks that read its receipts; a flipped byte turns the weekly check red."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from beatsight_assets import events, store
from beatsight_assets.bundle.read import open_bundle
from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.checks.judge import answers
from beatsight_assets.dag.checks.table import NOT_REQUIRED, TRAINING
from beatsight_assets.readiness import annotation_alignment
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.crash import writers

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
ALL_SHARDS = {"dagster/asset_partition_range_start": "00", "dagster/asset_partition_range_end": "01"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three takes, ingested, merged, annotated and split."""
    root = tmp_path_factory.mktemp("bundle_assets") / "root"
    root.mkdir()
    writers.make_data(root)
    writers.run_to(root, "recording_features")
    yield root


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Settings:
    shutil.copytree(finished, tmp_path / "own")
    return Settings(layout=DataLayout(tmp_path / "own"), profile="demo")


def run(settings: Settings, instance: dg.DagsterInstance, job: str, *, shards: bool = False) -> dg.ExecuteInProcessResult:
    found = build_defs(settings=settings).resolve_job_def(job)
    return found.execute_in_process(instance=instance, raise_on_error=False, run_config=QUIET, tags=ALL_SHARDS if shards else {})


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {e.check_name: e.passed for e in result.get_asset_check_evaluations()}


def test_one_run_makes_all_shards_and_seals(own: Settings, instance: dg.DagsterInstance) -> None:
    """The export job plans, cuts both shards in one run, seals, and every check of the bundle is green; a second run cuts nothing."""
    result = run(own, instance, "export_job", shards=True)
    assert result.success
    assert instance.get_materialized_partitions(dg.AssetKey("clips")) == {"00", "01"}
    judged = checks_of(result)
    assert judged == dict.fromkeys(judged, True)
    assert {
        "audio_resolves",
        "disk_budget",
        "bundle_complete",
        "bundle_counts",
        "clip_shape",
        "clip_digest_overlap",
        "bundle_digests",
    } <= set(judged)
    folder = own.layout.at(f"bundles/{TRAINING}")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.pcm")}
    assert open_bundle(folder).marker["clips"] == 207
    assert run(own, instance, "export_job", shards=True).success
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.pcm")} == before


def test_a_flipped_byte_turns_the_weekly_check_red(own: Settings, instance: dg.DagsterInstance) -> None:
    """The weekly job reads every byte; a flip is named with part and clip, and the next export repairs it."""
    run(own, instance, "export_job", shards=True)
    part = open_bundle(own.layout.at(f"bundles/{TRAINING}")).parts()[0]
    content = bytearray(part.path.read_bytes())
    content[1000] ^= 4
    part.path.write_bytes(bytes(content))
    result = run(own, instance, "digests_job")
    (found,) = result.get_asset_check_evaluations()
    assert not found.passed and part.name in str(found.metadata["against"].value)
    assert run(own, instance, "export_job", shards=True).success
    assert checks_of(run(own, instance, "digests_job")) == {"bundle_digests": True}


def test_missing_audio_holds_back_the_clips(own: Settings, instance: dg.DagsterInstance) -> None:
    """A recording that is not there turns the plan's check red, and no shard is cut in that run."""
    (own.layout.raw("beatsight_demo") / "audio" / "take_0.wav").unlink()
    result = run(own, instance, "export_job", shards=True)
    assert not result.success and checks_of(result)["audio_resolves"] is False
    assert not own.layout.at(f"bundles/{TRAINING}/shards").exists()


def test_the_week_has_its_audit() -> None:
    """weekly_digests runs on Sunday at 05:00."""
    defs = build_defs(settings=Settings(layout=DataLayout(Path("/nowhere")), profile="demo"))
    schedule = defs.resolve_schedule_def("weekly_digests")
    assert (schedule.cron_schedule, schedule.job_name) == ("0 5 * * 0", "digests_job")


def test_alignment_is_judged_from_its_own_receipt(own: Settings) -> None:
    """Never measured passes and says how to measure; measured it names the figure; about other events it is stale. It never blocks."""
    (first,) = answers(own, "events", "beatsight_demo", ["annotation_alignment"])
    assert first.passed and "readiness align" in str(first.description)
    report = annotation_alignment.run(own, annotation_alignment.AlignmentOptions("beatsight_demo"))
    (measured,) = answers(own, "events", "beatsight_demo", ["annotation_alignment"])
    assert measured.passed is report.passed and measured.severity is dg.AssetCheckSeverity.WARN
    path = own.layout.events("beatsight_demo")
    own.store.publish_frame(path, pl.read_parquet(path).head(10))
    (stale,) = answers(own, "events", "beatsight_demo", ["annotation_alignment"])
    assert not stale.passed and "stale" in str(stale.description)


def alignment(own: Settings) -> dg.AssetCheckResult:
    annotation_alignment.run(own, annotation_alignment.AlignmentOptions("beatsight_demo"))
    (found,) = answers(own, "events", "beatsight_demo", ["annotation_alignment"])
    return found


def test_shifted_annotations_are_a_warning(own: Settings) -> None:
    """Annotations moved by 60 ms turn the check from a pass to a warning that names a recording and its shift; it blocks nothing."""
    assert alignment(own).passed
    path = own.layout.events("beatsight_demo")
    events = pl.read_parquet(path)
    own.store.publish_frame(path, events.with_columns(pl.col("onset_time") + 0.06))
    found = alignment(own)
    assert not found.passed and found.severity is dg.AssetCheckSeverity.WARN
    assert "flagged is 3, limit 0" in str(found.description) and "best shift -58" in str(found.description)


def test_a_source_without_audio_is_no_warning(own: Settings) -> None:
    """Where there is no audio there is nothing to judge, and the profile does not require it: no warning."""
    shutil.rmtree(own.layout.raw("beatsight_demo") / "audio")
    found = alignment(own)
    assert found.passed and found.description == NOT_REQUIRED


def test_progress_is_in_the_log_of_the_run(own: Settings, instance: dg.DagsterInstance) -> None:
    """Clips, rate and time left stand on the run's page."""
    result = run(own, instance, "export_job", shards=True)
    said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert [text for text in said if "clips/s" in text and "s left" in text]


def test_health_and_features_follow_the_bundle(own: Settings, instance: dg.DagsterInstance) -> None:
    """The post-export job judges the bundle and caches its clips in one run over all shards; made again it computes nothing."""
    assert not run(own, instance, "post_export_job", shards=True).success  # nothing is sealed yet
    assert run(own, instance, "export_job", shards=True).success
    result = run(own, instance, "post_export_job", shards=True)
    judged = checks_of(result)
    assert judged == dict.fromkeys(judged, True) and result.success
    assert {"clipped_share", "missing_audio", "class_counts", "feature_shape", "features_finite", "keyed_by_content"} <= set(judged)
    assert instance.get_materialized_partitions(dg.AssetKey("feature_cache")) == {"00", "01"}
    arrays = {p: p.stat().st_mtime_ns for p in own.layout.at("features").rglob("*.f16")}
    assert arrays
    assert run(own, instance, "post_export_job", shards=True).success
    assert {p: p.stat().st_mtime_ns for p in own.layout.at("features").rglob("*.f16")} == arrays


def test_a_red_bundle_holds_back_its_features(own: Settings, instance: dg.DagsterInstance) -> None:
    """A damaged part is found before features are made of it: the step names the part, and no index is published."""
    assert run(own, instance, "export_job", shards=True).success
    part = open_bundle(own.layout.at(f"bundles/{TRAINING}")).parts()[0]
    part.path.write_bytes(b"\0" * part.n_bytes)
    result = run(own, instance, "post_export_job", shards=True)
    failed = {e.step_key: str(e.step_failure_data.error) for e in result.filter_events(lambda e: e.is_step_failure)}
    assert set(failed) == {"feature_cache"} and part.name in failed["feature_cache"]
    assert not list(own.layout.at("features").rglob("FEATURES.json"))


def test_health_of_another_manifest_is_not_that_of_the_bundle(own: Settings, instance: dg.DagsterInstance) -> None:
    """Rows that changed after the export say nothing of the bundle: its health fails with `manifest-changed`; exported again it is judged."""
    assert run(own, instance, "export_job", shards=True).success
    path = own.layout.annotated
    later = events.read_events(path).with_columns(onset_time=pl.col("onset_time") + 0.001)
    own.store.publish_frame(path, later, metadata=events.parquet_metadata(Taxonomy.load(own)))
    result = run(own, instance, "post_export_job", shards=True)
    failed = {e.step_key: str(e.step_failure_data.error) for e in result.filter_events(lambda e: e.is_step_failure)}
    assert set(failed) == {"bundle_health"} and "manifest-changed" in failed["bundle_health"]
    assert run(own, instance, "export_job", shards=True).success and run(own, instance, "post_export_job", shards=True).success


def test_the_archive_keeps_what_the_bundle_was(own: Settings, instance: dg.DagsterInstance) -> None:
    """T44: the archive job leaves plan, metadata, durations and logs under the date of the day, with an index; never of an unfinished bundle."""
    assert not run(own, instance, "archive_job").success
    assert run(own, instance, "export_job", shards=True).success and run(own, instance, "archive_job").success
    (index,) = own.layout.reports.glob(f"archive/*/{TRAINING}/INDEX.json")
    kept = store.read_json(index)["files"]
    assert {"plan.json", "metadata.json", "summary.json", "durations.csv", "BUNDLE.json"} <= set(kept) and re.fullmatch(
        r"\d{8}", index.parts[-3]
    )
    assert all(store.hash_file(index.parent / name) == digest for name, digest in kept.items())
