"""Trackers: where a run writes its numbers while it runs, and how they get to Weights & Biases afterwards.

Belongs here: the interface `start, log, artifact, finish`, its two kinds `null` and `jsonl`, and `sync`. Does not belong here: what is
measured. Callers never ask whether there is a tracker: the null tracker takes everything and does nothing.
A run keeps one log, `events.jsonl`. W&B is made from it when somebody asks: no training waits for a network, or loses numbers to one.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.safejson import parse_json
from beatsight_assets.settings import wandb_host
from beatsight_assets.store import MAX_JSON_BYTES, Store, hash_file, read_bytes, read_lines

KINDS = ("null", "jsonl")
MODES = ("online", "offline")


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


@dataclass(frozen=True)
class Upload:
    """Where runs go. mode `offline` writes W&B's own files to runs/<run>/wandb/, for `wandb sync` on a machine with a network."""

    project: str = "beatsight"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: str = "online"


def why_no_upload(target: Upload = Upload()) -> str | None:
    """What stands in the way of an upload: the package or a login; None when nothing does. The key itself is never read into anything."""
    if find_spec("wandb") is None:
        return "wandb is not installed. Run: pip install 'beatsight-assets[wandb]'"
    host, has_key = wandb_host()
    if target.mode == "offline" or has_key:
        return None
    try:
        known = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        known = None
    return None if known else f"there is no login for {host}. Run: wandb login, or set WANDB_API_KEY; or give --wandb-mode offline"


def sync(store: Store, runs: Mapping[str, Path], target: Upload = Upload(), *, dry_run: bool = False) -> list[dict[str, Any]]:
    """Bring the logs of runs to W&B; `synced.json` beside a log says which bytes of it went where, and what did is not sent again.

    Parameters
    ----------
    runs : folder of each run by its name

    Returns
    -------
    `{run, status, rows, message}` of each; status is uploaded, unchanged, waiting (dry run), no-log or failed

    Raises
    ------
    ConfigError `no-upload` : see `why_no_upload`
    """
    if (why := why_no_upload(target)) is not None and not dry_run:
        raise ConfigError(why, code="no-upload")
    found = []
    for name, folder in sorted(runs.items()):
        row = {"run": name, "status": "no-log", "rows": 0, "message": ""}
        found.append(row)
        path = folder / "events.jsonl"
        if not path.is_file():
            continue
        marker = {"log_sha256": hash_file(path), "project": target.project, "entity": target.entity, "mode": target.mode}
        if _read_marker(folder) == marker:
            row["status"] = "unchanged"
            continue
        try:
            rows, _ = read_lines(path)
        except InputError as error:  # a damaged log does not stop the others
            row |= {"status": "failed", "message": str(error)}
            continue
        row |= {"status": "waiting", "rows": sum(r["kind"] == "log" for r in rows)}
        if not dry_run:
            failure = _upload(name, rows, folder, target)
            row |= {"status": "failed" if failure else "uploaded", "message": failure}
            if not failure:
                store.publish_json(folder / "synced.json", marker)
    return found


def _read_marker(folder: Path) -> Any:
    path = folder / "synced.json"
    try:
        return parse_json(read_bytes(path, max_bytes=MAX_JSON_BYTES), where=path.name) if path.is_file() else None
    except InputError:
        return None  # damaged: the run is sent again


def _upload(name: str, rows: Sequence[Mapping[str, Any]], folder: Path, target: Upload) -> str:
    """One run under an id that its name decides, so that a log that grew goes on in the same place. What went wrong, or nothing."""
    import wandb

    quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True)
    try:
        run = wandb.init(
            project=target.project,
            entity=target.entity,
            group=target.group,
            tags=list(target.tags),
            name=name,
            id=sha256(name.encode()).hexdigest()[:16],
            resume="allow" if target.mode == "online" else None,
            mode="offline" if target.mode == "offline" else "online",
            dir=str(folder),
            config=next((dict(row["config"]) for row in rows if row["kind"] == "start"), {}),
            settings=quiet,
        )
        for row in rows:
            if row["kind"] == "log":
                run.log({k: v for k, v in row.items() if k not in ("kind", "step")}, step=row["step"])
        run.finish()
    except (wandb.Error, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
