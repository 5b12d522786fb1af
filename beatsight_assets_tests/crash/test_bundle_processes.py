"""The export as a real command with real worker processes: random kills, two writers, a reader during a writer, a worker that dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from beatsight_assets.bundle import export as engine
from beatsight_assets.bundle.export import BundleRequest
from beatsight_assets.bundle.read import open_bundle
from beatsight_assets.errors import InputError
from beatsight_assets.units import rng_for
from beatsight_assets_tests.crash import writers
from beatsight_assets_tests.crash.sweep import REPOSITORY, is_exhaustive, leftovers, scratch
from beatsight_assets_tests.crash.test_bundle_sweep import content_view, whole_bundle

N_KILLS = 60 if is_exhaustive() else 3  # exports, each killed up to three times
OPTIONS = ("--layout", "wav", "--shards", "4", "--post-ms", "90")
NewRoot = Callable[[], Path]


def start(root: Path, *arguments: str, failpoint: str = "") -> subprocess.Popen[str]:
    """`beatsight bundle export b` in a process group of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "BEATSIGHT_FAILPOINT"} | {"PYTHONPATH": str(REPOSITORY)}
    if failpoint:
        environment["BEATSIGHT_FAILPOINT"] = failpoint
    command = [sys.executable, "-m", "beatsight_assets", "--data-root", str(root), "--profile", "demo", "bundle", "export", "b", *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said on stderr."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


@pytest.fixture(scope="module")
def new_root() -> Iterator[NewRoot]:
    """Data roots with a manifest and its audio."""
    with scratch() as base:
        first = base / "first"
        first.mkdir()
        writers.make_data(first)
        writers.run_to(first, "manifest_health")
        numbers = count()
        yield lambda: Path(shutil.copytree(first, base / f"root-{next(numbers)}"))


@pytest.fixture(scope="module")
def sound(new_root: NewRoot) -> tuple[dict[str, str], str]:
    """Content and digest of an export that nobody disturbed."""
    root = new_root()
    assert ended(start(root, *OPTIONS))[0] == 0
    digest = whole_bundle(root)
    assert digest is not None
    return content_view(root), digest


def test_random_kills_of_the_command_lose_nothing(
    new_root: NewRoot, sound: tuple[dict[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """U1, U2: the command with two workers is killed (-9) at random moments, its resume too; the last resume equals a run that nobody disturbed."""
    content, digest = sound
    rng = rng_for(7, "kill -9")
    n_killed = 0
    for _ in range(N_KILLS):
        root = new_root()
        for _ in range(int(rng.integers(1, 4))):
            has_begun = (root / "bundles" / "b" / "history" / "request.json").is_file()
            process = start(root, "--workers", "2", *(("--resume",) if has_begun else OPTIONS))
            try:
                process.wait(float(rng.uniform(0.2, 3.0)))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                n_killed += 1
            process.communicate()
            assert whole_bundle(root) in (None, digest)
        code, said = ended(start(root, "--workers", "2", "--resume", *OPTIONS))
        assert code == 0, said
        assert content_view(root) == content and leftovers(root) == []
        shutil.rmtree(root)
    with capsys.disabled():
        print(f"\n  {N_KILLS} exports with 2 workers, {n_killed} kills at random moments: 0 lost, 0 torn, all equal")


def test_one_of_two_writers_is_turned_away(new_root: NewRoot, sound: tuple[dict[str, str], str]) -> None:
    """U8: of two commands on one bundle one gets exit 2 and `busy` with the other's pid, and the bundle is that of one writer."""
    root = new_root()
    turned_away = 0
    while not turned_away:
        both = [start(root, *OPTIONS, "--overwrite") for _ in range(2)]
        ends = [ended(p) for p in both]
        assert sorted(code for code, _ in ends) in ([0, 0], [0, 2])  # [0, 0]: they missed each other
        turned_away = sum(code == 2 and "busy" in said and "pid" in said for code, said in ends)
    assert content_view(root) == sound[0]


def test_a_dead_worker_costs_its_shard_alone(new_root: NewRoot, sound: tuple[dict[str, str], str]) -> None:
    """A worker process killed in the middle: exit 3 names the shard, finished shards are kept, the resume goes on and is identical."""
    root = new_root()
    code, said = ended(start(root, *OPTIONS, "--workers", "2", failpoint="shard.split:1:kill"))
    assert code == 3 and "worker-died" in said and "shard 0" in said
    made = {p: p.stat().st_mtime_ns for p in root.glob("bundles/b/shards/*/SHARD.json")}
    code, said = ended(start(root, "--resume", "--workers", "2"))
    assert code == 0, said
    assert content_view(root) == sound[0] and leftovers(root) == []
    assert {p: p.stat().st_mtime_ns for p in made} == made


@pytest.mark.parametrize("layout", ["shards", "wav"])
def test_a_reader_sees_one_version_while_a_writer_overwrites(new_root: NewRoot, layout: str) -> None:
    """U8: clips read while the bundle is replaced again and again are all of one version, or the reader is told that it changed."""
    root = new_root()
    settings = writers.settings_of(root)
    requests = [BundleRequest("b", None, {"limit": 30, "post_ms": p, "layout": layout, "shards": 3}, "overwrite") for p in (60.0, 90.0)]
    engine.export(settings, requests[0])
    stopped = threading.Event()

    def write() -> None:
        for n in range(1, 7):
            engine.export(settings, requests[n % 2])
        stopped.set()

    writer = threading.Thread(target=write)
    writer.start()
    n_whole = 0
    lengths = {round((80 + p) * 44.1) for p in (60, 90)}
    while not stopped.is_set():
        try:
            seen = [len(samples) for _, samples in open_bundle(root / "bundles" / "b").clips()]
        except InputError as error:
            assert error.code == "bundle-changed", error
            continue
        assert len(seen) == 30 and len(set(seen)) == 1 and set(seen) <= lengths
        n_whole += 1
    writer.join()
    assert n_whole > 0
