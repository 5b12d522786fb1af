"""What every test gets: UTC, no network, no settings from the developer's shell, and the few shared fixtures.

Does not belong here: factories (`beatsight_assets.testing`) and anything that one folder of tests needs alone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import settings as hypothesis_settings

from beatsight_assets.settings import DataLayout, Settings, load_settings
from beatsight_assets.units import rng_for

REPOSITORY = Path(__file__).parent.parent
OWN_VARIABLES = ("BEATSIGHT_SHARED_DATA", "BEATSIGHT_EXHAUSTIVE")

os.environ["TZ"] = "UTC"
time.tzset()

hypothesis_settings.register_profile("push", derandomize=True, deadline=None, database=None)
hypothesis_settings.register_profile("exhaustive", derandomize=True, deadline=None, database=None, max_examples=2_000)
hypothesis_settings.load_profile("exhaustive" if os.environ.get("BEATSIGHT_EXHAUSTIVE") else "push")


class NetworkRefused(RuntimeError):
    """A test tried to leave this machine."""


def is_loopback(family: int, address: Any) -> bool:
    """Unix sockets and the loopback address stay on this machine."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0])
    return host in ("", "localhost", "::1", "0.0.0.0", "::") or host.startswith("127.")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Sockets reach the loopback address only; a name that is not ours is not even looked up."""
    connect, connect_ex, sendto, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto, socket.getaddrinfo

    def guard(sock: socket.socket, address: Any) -> None:
        if not is_loopback(sock.family, address):
            raise NetworkRefused(f"a test tried to reach {address!r}")

    def guarded_connect(sock: socket.socket, address: Any) -> None:
        guard(sock, address)
        connect(sock, address)

    def guarded_connect_ex(sock: socket.socket, address: Any) -> int:
        guard(sock, address)
        return connect_ex(sock, address)

    def guarded_sendto(sock: socket.socket, data: Any, *rest: Any) -> int:
        guard(sock, rest[-1])
        return sendto(sock, data, *rest)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not is_loopback(socket.AF_INET, (name,)) and name != socket.gethostname():
            raise NetworkRefused(f"a test tried to look up {name!r}")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket.socket, "sendto", guarded_sendto)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No BEATSIGHT_* of the developer's shell reaches a test, save where the real data lies and how long to sweep."""
    for name in list(os.environ):
        if name.startswith("BEATSIGHT_") and name not in OWN_VARIABLES:
            monkeypatch.delenv(name)


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """An empty data root."""
    root = tmp_path / "data"
    root.mkdir()
    return root


@pytest.fixture
def settings(data_root: Path) -> Settings:
    """Settings of the demo profile on an empty data root, one inline worker."""
    return Settings(layout=DataLayout(data_root), profile="demo")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name only."""
    return rng_for(7, request.node.nodeid)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that use it carry the mark `data`."""
    folder = Path(os.environ.get("BEATSIGHT_SHARED_DATA") or REPOSITORY.parent / "shared" / "data").absolute()
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder} (set BEATSIGHT_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def groove_lake(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data root with nothing but the ingested Groove takes; tests leave events/ alone."""
    from beatsight_assets.sources import ingest

    root = tmp_path_factory.mktemp("groove")
    (root / "configs").mkdir()
    raw = shared_data / "groove_midi"
    (root / "configs" / "datasets.yaml").write_text(
        "datasets:\n  groove_mididataset:\n    {short: groove, raw_folder: groove_midi, module: groove, max_reject_rate: 1.0, "
        f'roots: ["{raw}"], options: {{devices: {{drummer2: td30_socal}}}}}}\n'
    )
    lake = load_settings(root, "dev", environ={})
    ingest(lake, "groove")
    return lake


@pytest.fixture(scope="session")
def groove_events(groove_lake: Settings) -> pl.DataFrame:
    """Events of the 992 Groove takes."""
    return pl.read_parquet(groove_lake.layout.events("groove_mididataset"))
