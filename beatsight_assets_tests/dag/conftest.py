"""Fixtures of the Dagster tests: an own instance for each test, never a shared home."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
import pytest
from dagster._core.storage.defs_state.base import DefsStateStorage

from beatsight_assets.settings import Settings
from beatsight_assets_tests.dag.toys import Toys

MEMORY = Path("/dev/shm")  # SQLite waits for the disk at every event; these databases need not outlive the test
CALM = {
    "telemetry": {"enabled": False},
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"},
}


@pytest.fixture(autouse=True)
def no_storage_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster keeps the storage of an instance as that of the process, and puts an older one back whenever the garbage collector closes a
    generator that it lost. Loading definitions asks it for state that this graph does not have, on a folder that is gone by then.
    """
    monkeypatch.setattr(DefsStateStorage, "get", staticmethod(lambda: None))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A real instance with SQLite in a temporary folder, so that one run sees what another left."""
    with (
        TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        dg.DagsterInstance.local_temp(folder, overrides=CALM) as found,
    ):
        yield found


@pytest.fixture
def toys(settings: Settings, instance: dg.DagsterInstance) -> Toys:
    """The real graph with toy work."""
    return Toys(settings, instance)
