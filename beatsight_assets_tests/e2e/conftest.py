"""One demo for all end-to-end tests: made once per worker by the real command, then copied (by hard links) for tests that change it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from beatsight_assets.settings import Settings, load_settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """While one worker makes the demo, in `test_demo`, another has work that does not wait for it: files that borrow the demo come last."""
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    borrowers = {item.path for item in here if "demo" in getattr(item, "fixturenames", ()) and item.path.name != "test_demo.py"}
    items.sort(key=lambda item: item.path in borrowers)


@dataclass(frozen=True)
class Done:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


def beatsight(
    root: Path, *arguments: str, cwd: Path | None = None, profile: str = "demo", environment: dict[str, str] | None = None
) -> Done:
    """Run the real command on a data root."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("BEATSIGHT_")} | {"TZ": "UTC"} | (environment or {})
    command = [sys.executable, "-m", "beatsight_assets", "--data-root", str(root), "--profile", profile, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=580)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A data root after `beatsight demo`, and what the command said. Workers share one: the first makes it, the others wait.

    Nothing writes into it, and no server runs on it: others copy it meanwhile.
    """
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared_demo"
    with _locked(shared):
        told = shared / "done.json"
        if not told.is_file():
            done = beatsight(shared / "data", "demo")
            told.write_text(json.dumps(asdict(done)))
    return shared / "data", Done(**json.loads(told.read_text()))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def copy_of(root: Path, target: Path, *, with_dagster: bool = True) -> Path:
    """A copy of a demo's root. Files are hard links: writers replace files, they never write into them, but for the databases of Dagster."""
    shutil.copytree(root, target, copy_function=os.link, ignore=shutil.ignore_patterns(".cache", "*.db*", "dagster"))
    if with_dagster:
        shutil.copytree(root / "dagster", target / "dagster")
    return target


@pytest.fixture
def demo_copy(demo: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the demo's root to break."""
    return copy_of(demo[0], tmp_path / "data")


@pytest.fixture
def settings_of() -> Callable[[Path], Settings]:
    """Settings of the demo profile on a root."""
    return lambda root: load_settings(root, "demo", {})
