"""Dagster's own home below the data root: made once, looked after, and served.

Belongs here: `init`, `doctor`, `dev`, opening the instance. Does not belong here: what runs on it (`demo`, jobs).
A fresh home that several processes open at once is broken for good (dagster #27390), so the first open happens under a lock.
"""

import fcntl
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NoReturn

import dagster as dg
from packaging.requirements import Requirement

from beatsight_assets.errors import ConfigError, StoreError
from beatsight_assets.settings import SHIPPED_CONFIGS, Settings
from beatsight_assets.store import printable

DISTRIBUTION = "beatsight-assets"
MIN_FREE_BYTES = 2 << 30  # 2 GiB: the demo with its audio, features and runs stays below 1
NETWORK_FILE_SYSTEMS = re.compile(r"^(nfs\d?|cifs|smb\w*|9p|afs|ceph|glusterfs|lustre|fuse\.(sshfs|rclone|s3fs|gcsfuse|davfs\w*))$")
SYNC_FOLDERS = re.compile(r"(dropbox|onedrive|google ?drive|icloud|nextcloud|syncthing)", re.IGNORECASE)


@dataclass(frozen=True)
class InitReport:
    """What `init` found or made."""

    home: Path
    is_new: bool
    databases: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.home} {'made' if self.is_new else 'is there'}, {len(self.databases)} databases whole"

    def to_json(self) -> dict[str, Any]:
        return {"home": str(self.home), "is_new": self.is_new, "databases": list(self.databases)}


@dataclass(frozen=True)
class Finding:
    """One thing that `doctor` looked at. `advice` says what to do when it is a problem."""

    name: str
    is_problem: bool
    found: str
    advice: str = ""

    @property
    def text(self) -> str:
        return f"{'PROBLEM' if self.is_problem else 'ok':8} {self.name}: {self.found}" + (f". {self.advice}" if self.is_problem else "")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "is_problem": self.is_problem, "found": self.found, "advice": self.advice if self.is_problem else ""}


def shipped(name: str) -> Path:
    """dagster.yaml or workspace.yaml as it ships: beside the configs in a wheel, at the top of a checkout."""
    inside = SHIPPED_CONFIGS / name
    return inside if inside.is_file() else SHIPPED_CONFIGS.parent / name


@contextmanager
def home_variable(settings: Settings) -> Iterator[None]:
    """DAGSTER_HOME is this data root's, here and in child processes; Dagster knows no other way to be told."""
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(settings.layout.dagster_home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["DAGSTER_HOME"]
        else:
            os.environ["DAGSTER_HOME"] = before


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of this data root, made on the first call."""
    init(settings)
    with home_variable(settings), dg.DagsterInstance.get() as instance:
        yield instance


@contextmanager
def _first_open(home: Path) -> Iterator[None]:
    """One process at a time; the others wait. The kernel frees the lock of a process that died."""
    home.mkdir(parents=True, exist_ok=True)
    fd = os.open(home / ".init.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def init(settings: Settings) -> InitReport:
    """Make the Dagster home of this data root, or see that it is whole. Any number of processes may call it at once.

    Raises
    ------
    StoreError `damaged-instance` : a database does not have exactly one schema version; `io-error` : the folder cannot be written
    """
    home = settings.layout.dagster_home
    try:
        with _first_open(home):
            is_new = not (home / "dagster.yaml").exists()
            if is_new:
                settings.store.publish(home / "dagster.yaml", shipped("dagster.yaml").read_bytes())
            if len(databases(home)) < 3 or not all(schema_versions(db) for db in databases(home)):
                with home_variable(settings), dg.DagsterInstance.get() as instance:
                    instance.get_runs_count()
            damaged = [f"{db.name} has {len(rows)} schema versions" for db in databases(home) if len(rows := schema_versions(db)) != 1]
    except OSError as error:
        raise StoreError(
            f"{home} cannot be used: {error.strerror}. It must be a local folder that you may write", code="io-error"
        ) from error
    if damaged:
        raise StoreError(f"{'; '.join(damaged)}. Repair it with: beatsight doctor --repair", code="damaged-instance", where=str(home))
    return InitReport(home, is_new, tuple(str(db.relative_to(home)) for db in databases(home)))


def databases(home: Path) -> list[Path]:
    """The three databases of a home: runs, events index, schedules. (Every run has one more, made by its own process alone.)"""
    return [
        p
        for p in (home / "history" / "runs.db", home / "history" / "runs" / "index.db", home / "schedules" / "schedules.db")
        if p.is_file()
    ]


def schema_versions(database: Path) -> list[str]:
    """Rows of alembic_version; a whole database has one."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return [row[0] for row in connection.execute("select version_num from alembic_version")]
        except sqlite3.OperationalError:
            return []


def repair(settings: Settings) -> list[str]:
    """Leave the newest schema version alone in a database that has several. Returns what was repaired; stop Dagster first."""
    home, repaired = settings.layout.dagster_home, []
    if not home.is_dir():
        return []
    with _first_open(home):
        heads = _schema_heads()
        for database in databases(home):
            found = schema_versions(database)
            if len(found) > 1 and set(found) & heads:
                keep = sorted(set(found) & heads)[0]
                with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
                    connection.execute("delete from alembic_version")
                    connection.execute("insert into alembic_version values (?)", (keep,))
                repaired.append(f"{database.relative_to(home)}: kept {keep} of {', '.join(sorted(found))}")
    return repaired


def _schema_heads() -> set[str]:
    """Newest schema versions of the installed Dagster."""
    from alembic.script import ScriptDirectory

    return set(ScriptDirectory(str(Path(dg.__file__).parent / "_core" / "storage" / "alembic")).get_heads())


def doctor(settings: Settings) -> list[Finding]:
    """Everything about this machine and data root that has broken an installation before. Changes nothing."""
    root = settings.layout.root
    found = [_python(), *_libraries(), _free_space(root), _writable(root), _file_system(settings.layout.dagster_home)]
    return found + _databases(settings.layout.dagster_home)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info[:2] < (3, 11), f"Python {version}", "Use Python 3.11 or newer")


def _libraries() -> list[Finding]:
    """Installed packages against what this distribution asks for, and against constraints.txt of a checkout."""
    try:
        wanted = [Requirement(text) for text in packages.requires(DISTRIBUTION) or []]
    except packages.PackageNotFoundError:
        return [Finding("libraries", True, f"{DISTRIBUTION} is not installed", "Run: make setup")]
    wrong = []
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = _installed(requirement.name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                wrong.append(f"{requirement.name} is {version or 'absent'}, needs {requirement.specifier}")
    pins = shipped("constraints.txt")
    lines = pins.read_text(encoding="utf-8").splitlines() if pins.is_file() else []
    pinned = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    other = [
        f"{n} {v} (pinned {p})"
        for n, p in pinned.items()
        if (v := _installed(n)) is not None and v.split("+")[0] != p.strip().split("+")[0]
    ]
    return [
        Finding("libraries", bool(wrong), "; ".join(wrong) or f"{len(wanted)} requirements hold", "Run: make setup"),
        Finding("pins", bool(other), "; ".join(other[:8]) or f"{len(pinned)} pinned versions hold", "Run: make setup"),
    ]


def _installed(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


def _nearest(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _free_space(root: Path) -> Finding:
    free = shutil.disk_usage(_nearest(root)).free
    return Finding(
        "free space", free < MIN_FREE_BYTES, f"{free / (1 << 30):.1f} GiB free", f"Free at least {MIN_FREE_BYTES >> 30} GiB at {root}"
    )


def _writable(root: Path) -> Finding:
    folders = [f for f in (root, *sorted(root.iterdir())) if f.is_dir() and f.name != "raw"] if root.is_dir() else [_nearest(root)]
    refused = [printable(f.name or str(f)) for f in folders if not os.access(f, os.W_OK | os.X_OK)]
    return Finding(
        "permissions",
        bool(refused),
        f"not writable: {', '.join(refused)}" if refused else f"{root} is writable",
        "Give yourself write access",
    )


def _file_system(home: Path) -> Finding:
    """SQLite needs real locks: no network drive, no folder that a program synchronises."""
    kind = _mount_kind(_nearest(home).resolve())
    synced = SYNC_FOLDERS.search(str(home))
    is_problem = NETWORK_FILE_SYSTEMS.match(kind) is not None or synced is not None
    text = f"{kind} file system" + (f", inside a synchronised folder ({synced[0]})" if synced else "")
    return Finding("file system", is_problem, text, "Put the data root on a local disk, or set BEATSIGHT_DAGSTER_PG_URL")


def _mount_kind(path: Path) -> str:
    """File system type of the mount that holds a path, `unknown` where /proc is not there."""
    best, kind = -1, "unknown"
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            point, name = line.split()[1:3]
            if path.is_relative_to(point.replace("\\040", " ")) and len(point) > best:
                best, kind = len(point), name
    return kind


def _databases(home: Path) -> list[Finding]:
    if not home.is_dir():
        return [Finding("dagster", False, "not made yet; `beatsight init` makes it")]
    found = []
    for database in databases(home):
        name = str(database.relative_to(home))
        try:
            with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
                whole = connection.execute("pragma quick_check").fetchone()[0]
            versions = schema_versions(database)
        except sqlite3.DatabaseError as error:
            found.append(
                Finding(
                    name, True, f"cannot be read: {error}", f"Move {home} away and run: beatsight init. Data and receipts are not in it"
                )
            )
            continue
        is_ok = whole == "ok" and len(versions) == 1
        text = "whole" if is_ok else f"quick_check says {whole}, schema versions: {', '.join(versions) or 'none'}"
        found.append(Finding(name, not is_ok, text, "Stop Dagster and run: beatsight doctor --repair"))
    return found or [Finding("dagster", False, "not made yet; `beatsight init` makes it")]


def dev(settings: Settings, *, port: int = 3000, host: str = "127.0.0.1") -> NoReturn:
    """Become `dagster dev` for this data root: the same process, so Ctrl-C and signals of the parent reach it.

    Raises
    ------
    ConfigError `bad-option` : not a port
    """
    if not 0 < port < 65_536:
        raise ConfigError(f"--port is {port}; it must lie in 1 to 65535", code="bad-option")
    init(settings)
    command, environment = dev_command(settings, port=port, host=host)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script's background job ignores it, and Dagster stops its children with it
    os.execve(command[0], command, environment)


def dev_command(settings: Settings, *, port: int, host: str) -> tuple[list[str], dict[str, str]]:
    """Argument list and environment of `dagster dev`: this data root, this profile."""
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(shipped("workspace.yaml")), "-h", host, "-p", str(port)]
    environment = dict(os.environ) | {
        "DAGSTER_HOME": str(settings.layout.dagster_home),
        "BEATSIGHT_DATA_ROOT": str(settings.layout.root),
        "BEATSIGHT_PROFILE": settings.profile,
        "BEATSIGHT_EXECUTOR": settings.executor,
        "BEATSIGHT_WORKERS": str(settings.n_workers),
    }
    return command, environment
