"""Trackers null and jsonl, and what brings their logs to W&B."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beatsight_assets import cli
from beatsight_assets.errors import ConfigError
from beatsight_assets.store import Store, read_lines
from beatsight_assets.tracking import NullTracker, Upload, sync, tracker, why_no_upload


def test_the_null_tracker_takes_everything_and_writes_nothing(tmp_path: Path) -> None:
    """Callers never ask whether there is a tracker."""
    null = tracker("null", Store(tmp_path), tmp_path / "events.jsonl")
    null.start({"a": 1})
    null.log(1, loss=0.5)
    null.artifact(tmp_path / "x", "model")
    null.finish("done")
    assert isinstance(null, NullTracker)
    assert list(tmp_path.iterdir()) == []


def test_jsonl_rows_are_in_order_and_paths_are_relative(tmp_path: Path) -> None:
    """One row per call, in the order of the calls, no absolute path."""
    out = tracker("jsonl", Store(tmp_path), tmp_path / "run" / "events.jsonl")
    out.start({"seed": 1})
    out.log(0, loss=1.0)
    out.artifact(tmp_path / "run" / "model.json", "model")
    out.finish("done")
    rows, torn = read_lines(tmp_path / "run" / "events.jsonl")
    assert [r["kind"] for r in rows] == ["start", "log", "artifact", "finish"]
    assert rows[2]["path"] == "run/model.json"
    assert not torn


def test_a_resumed_run_ends_with_the_rows_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Rows after the step resumed from are dropped, the start is written once."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    for path, steps in ((whole, range(4)), (cut, range(3))):
        out = tracker("jsonl", Store(tmp_path), path)
        out.start({"seed": 1})
        for step in steps:
            out.log(step, loss=float(step))
        if path is whole:
            out.finish("done")
    again = tracker("jsonl", Store(tmp_path), cut, resume_step=1)
    again.start({"seed": 1})
    for step in (2, 3):
        again.log(step, loss=float(step))
    again.finish("done")
    assert cut.read_bytes() == whole.read_bytes()


def test_a_fresh_run_does_not_continue_an_old_log(tmp_path: Path) -> None:
    """Without a resume step the log starts empty."""
    path = tmp_path / "events.jsonl"
    tracker("jsonl", Store(tmp_path), path).log(9, loss=9.0)
    tracker("jsonl", Store(tmp_path), path).log(0, loss=1.0)
    rows, _ = read_lines(path)
    assert [r["step"] for r in rows] == [0]


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    """A kind that does not exist is a wrong option, and the message lists those that do."""
    with pytest.raises(ConfigError, match="null"):
        tracker("neptune", Store(tmp_path), tmp_path / "x")


def log_of(folder: Path, name: str, steps: int) -> Path:
    """The log of a run of so many epochs."""
    out = tracker("jsonl", Store(folder), folder / name / "events.jsonl")
    out.start({"preset": "warmup", "data": {"bundle": "b"}})
    for step in range(steps):
        out.log(step, train_loss=1.0 / (step + 1))
    out.finish("done")
    return folder / name


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a login."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_runs_go_to_wandb_once(tmp_path: Path, nobody: None) -> None:
    """T103: the real library writes the run; what is there already is not sent again, a log that grew or a damaged mark is."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    offline = Upload(mode="offline", tags=("a",))
    runs = {"one": log_of(tmp_path, "one", 3), "none": tmp_path / "none"}
    (tmp_path / "none").mkdir()
    before = sorted(tmp_path.rglob("*"))
    waiting = sync(Store(tmp_path), runs, offline, dry_run=True)
    assert [(r["run"], r["status"], r["rows"]) for r in waiting] == [("none", "no-log", 0), ("one", "waiting", 3)]
    assert sorted(tmp_path.rglob("*")) == before

    def sent() -> tuple[str, int]:
        row = sync(Store(tmp_path), {"one": runs["one"]}, offline)[0]
        return str(row["status"]), len(list(runs["one"].glob("wandb/offline-run-*/run-*.wandb")))

    assert sent() == ("uploaded", 1) and sent() == ("unchanged", 1)
    Store(tmp_path).append_line(runs["one"] / "events.jsonl", {"kind": "log", "step": 3, "train_loss": 0.1})
    assert sent()[0] == "uploaded" and sent()[0] == "unchanged"
    (runs["one"] / "synced.json").write_text("{")
    assert sent()[0] == "uploaded"


def test_without_package_or_login_nothing_is_sent(tmp_path: Path, nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says what to do; a key in the environment is enough to try, and is written nowhere."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    runs = {"one": log_of(tmp_path, "one", 1)}
    with pytest.raises(ConfigError, match="wandb login") as caught:
        sync(Store(tmp_path), runs)
    assert caught.value.code == "no-upload"
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    assert why_no_upload() is None
    sync(Store(tmp_path), runs, Upload(mode="offline"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"f" * 40 in path.read_bytes()]
    monkeypatch.setattr("beatsight_assets.tracking.find_spec", lambda name: None)
    assert "pip install" in str(why_no_upload())


def test_a_failed_upload_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other runs still go; the failed one has no mark."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    runs = {name: log_of(tmp_path, name, 1) for name in ("bad", "good")}
    logged: list[Any] = []

    def init(**options: Any) -> Any:
        if options["name"] == "bad":
            raise wandb.Error("no network")
        return SimpleNamespace(log=lambda numbers, step: logged.append((step, numbers)), finish=lambda: None)

    monkeypatch.setattr(wandb, "init", init)
    found = {row["run"]: row for row in sync(Store(tmp_path), runs)}
    assert (found["bad"]["status"], found["bad"]["message"], found["good"]["status"]) == ("failed", "Error: no network", "uploaded")
    assert logged == [(0, {"train_loss": 1.0})]
    torn = log_of(tmp_path, "torn", 1)
    (torn / "events.jsonl").write_bytes(b"no json\n")
    found = {row["run"]: row["status"] for row in sync(Store(tmp_path), {"torn": torn, **runs})}
    assert found == {"bad": "failed", "good": "unchanged", "torn": "failed"}
    assert not (runs["bad"] / "synced.json").exists() and (runs["good"] / "synced.json").exists()


def test_the_command(data_root: Path, nobody: None, capsys: pytest.CaptureFixture[str]) -> None:
    """`tracking sync`: --all or names; exit 2 without either and without a login, 3 for a run that is not there; no name leads out of runs/."""
    log_of(data_root / "runs", "one", 2)

    def ran(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--data-root", str(data_root), "tracking", "sync", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out + err

    code, text = ran("--all", "--dry-run")
    assert code == 0 and "waiting" in text and "2 rows" in text
    assert [ran(*words)[0] for words in ((), ("one", "--all"), ("--all",), ("two", "--dry-run"), ("../x", "--dry-run"))] == [2, 2, 2, 3, 2]
