"""What a demo leaves behind when it is killed, and what it says of red gates; the whole demo itself is tested in e2e."""

import dagster as dg
import pytest

from beatsight_assets.dag import demo
from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.instance import open_instance
from beatsight_assets.dag.resources import Lake, progress_to
from beatsight_assets.errors import Busy, GateFailed
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Progress, Report


def test_killed_demo_does_not_block_the_next(settings: Settings) -> None:
    """A run whose process died keeps its pool slot for ever where no daemon runs; the next demo ends that run and takes the slot."""
    with open_instance(settings) as instance:
        job = build_defs(settings=settings).resolve_job_def("merge_job")
        run = instance.create_run_for_job(job, tags=demo.OWN_RUNS, status=dg.DagsterRunStatus.STARTED)
        storage = instance.event_log_storage
        storage.set_concurrency_slots("manifest", 1)
        assert storage.claim_concurrency_slot("manifest", run.run_id, "merged_manifest").is_claimed
        assert not storage.claim_concurrency_slot("manifest", "another", "merged_manifest").is_claimed
        with demo._alone(settings, instance):
            found = instance.get_run_by_id(run.run_id)
            assert found is not None and found.status == dg.DagsterRunStatus.FAILURE
            assert storage.claim_concurrency_slot("manifest", "another", "merged_manifest").is_claimed
            with pytest.raises(Busy), demo._alone(settings, instance):
                pass


def test_refusal_of_a_stage_is_the_description() -> None:
    """What a stage refused stands on the run's page in its own words, and is not tried again."""
    heard: list[str] = []

    def stage(settings: Settings, *, progress: Progress) -> Report:
        progress(f"working in {settings.profile}")
        raise GateFailed("a dataset is red", code="red-source", where="events/x.parquet")

    lake = Lake(data_root="/nowhere", profile="demo")
    with progress_to(heard.append), pytest.raises(dg.Failure) as refused:
        lake.perform(stage)
    assert refused.value.description == "red-source: a dataset is red (events/x.parquet)"
    assert (refused.value.allow_retries, heard) == (False, ["working in demo"])


def test_red_demo_says_why(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that stops names the step and the reason, is not passed, and keeps the times honest."""
    from beatsight_assets.render import stage

    def refuses(settings: Settings, options: object, *, progress: Progress) -> Report:
        raise GateFailed("no kit sounds", code="no-kit")

    monkeypatch.setattr(stage, "run", refuses)
    summary = demo.run_demo(settings)
    assert summary.failures == ("rendered_audio: no-kit: no kit sounds",)
    assert not summary.passed and summary.reports == {} and summary.seconds > 0
    assert summary.to_json()["passed"] is False
