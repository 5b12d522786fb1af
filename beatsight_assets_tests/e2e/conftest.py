"""One demo for all end-to-end tests: made once per worker by the real command, then copied (by hard links) for tests that change it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from beatsight_assets.settings import Settings, load_settings


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
    """A data root after `beatsight demo`, and what the command said."""
    root = tmp_path_factory.mktemp("demo") / "data"
    return root, beatsight(root, "demo")


@pytest.fixture
def demo_copy(demo: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the demo's root to break. Files are hard links: writers replace files, they never write into them."""
    shutil.copytree(demo[0], tmp_path / "data", copy_function=os.link, ignore=shutil.ignore_patterns(".cache", "*.db*", "dagster"))
    shutil.copytree(demo[0] / "dagster", tmp_path / "data" / "dagster")
    return tmp_path / "data"


@pytest.fixture
def settings_of() -> Callable[[Path], Settings]:
    """Settings of the demo profile on a root."""
    return lambda root: load_settings(root, "demo", {})
