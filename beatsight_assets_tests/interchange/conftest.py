"""A data root with one sealed bundle of 207 clips, shared by every form."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets_tests.bundle.conftest import finished_root

__all__ = ["finished_root"]
NAME = "b"


@pytest.fixture(scope="session")
def sealed_root(finished_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three takes with their bundle."""
    root = tmp_path_factory.mktemp("interchange") / "root"
    shutil.copytree(finished_root, root)
    export(Settings(layout=DataLayout(root), profile="demo"), BundleRequest(NAME, None, {"part_clips": 50}))
    return root


@pytest.fixture
def lake(sealed_root: Path, tmp_path: Path) -> Settings:
    """A copy of `sealed_root` that a test may change."""
    shutil.copytree(sealed_root, tmp_path / "lake")
    return Settings(layout=DataLayout(tmp_path / "lake"), profile="demo")
