"""Trackers: null and jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest

from beatsight_assets.errors import ConfigError
from beatsight_assets.store import Store, read_lines
from beatsight_assets.tracking import NullTracker, tracker


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
