"""Trackers: where a run writes its numbers while it runs.

Belongs here: the interface `start, log, artifact, finish` and its two kinds, `null` and `jsonl`. Does not belong here: what is measured.
Callers never ask whether there is a tracker: the null tracker takes everything and does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from beatsight_assets.errors import ConfigError
from beatsight_assets.store import Store, read_lines

KINDS = ("null", "jsonl")


class Tracker(Protocol):
    """What training writes to."""

    def start(self, config: Mapping[str, Any]) -> None: ...

    def log(self, step: int, **numbers: float) -> None: ...

    def artifact(self, path: Path, kind: str) -> None: ...

    def finish(self, status: str) -> None: ...


class NullTracker:
    """Takes everything, keeps nothing."""

    def start(self, config: Mapping[str, Any]) -> None:
        """Nothing."""

    def log(self, step: int, **numbers: float) -> None:
        """Nothing."""

    def artifact(self, path: Path, kind: str) -> None:
        """Nothing."""

    def finish(self, status: str) -> None:
        """Nothing."""


class JsonlTracker:
    """One JSON object per line in `events.jsonl`: `{kind: start|log|artifact|finish, ...}`.

    A run that is resumed goes on in the same file: rows of steps after `resume_step` come from the interrupted attempt and are dropped
    first, so an interrupted run ends with the rows of one that never stopped.
    """

    def __init__(self, store: Store, path: Path, *, resume_step: int | None = None) -> None:
        self._store = store
        self._path = path
        if resume_step is None:
            kept: list[Any] = []
        else:
            rows, _ = read_lines(path)
            kept = [r for r in rows if r["kind"] == "start" or (r["kind"] == "log" and r["step"] <= resume_step)]
        self._is_resumed = bool(kept)
        if path.exists():
            store.remove(path)
        for row in kept:
            store.append_line(path, row)

    def start(self, config: Mapping[str, Any]) -> None:
        """The configuration of the run; a resumed run has it already."""
        if not self._is_resumed:
            self._store.append_line(self._path, {"kind": "start", "config": dict(config)})

    def log(self, step: int, **numbers: float) -> None:
        """Numbers of one step or epoch."""
        self._store.append_line(self._path, {"kind": "log", "step": step, **numbers})

    def artifact(self, path: Path, kind: str) -> None:
        """A file that the run made, by its path below the data root."""
        self._store.append_line(self._path, {"kind": "artifact", "path": self._store.rel(path), "type": kind})

    def finish(self, status: str) -> None:
        """How the run ended; what was logged is then on the disk."""
        self._store.append_line(self._path, {"kind": "finish", "status": status})
        fd = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def tracker(kind: str, store: Store, path: Path, *, resume_step: int | None = None) -> Tracker:
    """The tracker of that kind.

    Raises
    ------
    ConfigError : `unknown-choice`
    """
    if kind == "null":
        return NullTracker()
    if kind == "jsonl":
        return JsonlTracker(store, path, resume_step=resume_step)
    raise ConfigError.unknown_choice("tracker", kind, KINDS, where="--tracker")
