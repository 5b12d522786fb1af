"""The job that brings the logs of training runs to W&B: one call of the command's function, and a readable failure."""

import dagster as dg
import pytest

from beatsight_assets import tracking
from beatsight_assets.dag.build import build_defs
from beatsight_assets.settings import Settings
from beatsight_assets.tracking import tracker


def run_of(settings: Settings) -> dg.ExecuteInProcessResult:
    """The job on this data root."""
    job = build_defs(settings=settings).resolve_job_def("tracking_sync_job")
    return job.execute_in_process(instance=dg.DagsterInstance.ephemeral(), raise_on_error=False)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """What the one step said when it failed."""
    return str(result.failure_data_for_node("upload_runs"))


def test_runs_are_uploaded_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run with a log is sent; one that fails turns the job red and names it, the others have their mark."""
    for name in ("bad", "good"):
        log = tracker("jsonl", settings.store, settings.layout.run_dir(name) / "events.jsonl")
        log.start({})
        log.log(0, train_loss=1.0)
    sent: list[str] = []

    def upload(name: str, *_: object) -> str:
        sent.append(name)
        return "no network" if name == "bad" else ""

    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    monkeypatch.setattr(tracking, "_upload", upload)
    result = run_of(settings)
    assert not result.success and "1 runs were not uploaded, first bad" in failure_of(result)
    assert not run_of(settings).success and sent == ["bad", "good", "bad"]


def test_without_a_login_the_job_says_so(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is the sentence that the command prints."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(settings.layout.root))
    result = run_of(settings)
    assert not result.success and "wandb login" in failure_of(result)
