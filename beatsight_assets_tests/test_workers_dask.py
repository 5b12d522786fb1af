"""A real Dask cluster of separate processes, reached by address: equal bytes, and a killed worker costs its own items only (row T126)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from beatsight_assets import sources, store, workers
from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.errors import ConfigError, StoreError
from beatsight_assets.features import cache
from beatsight_assets.settings import Settings
from beatsight_assets.workers import executor, ordered_map
from beatsight_assets_tests.crash import writers
from beatsight_assets_tests.features import test_cache
from beatsight_assets_tests.sources import lake
from beatsight_assets_tests.test_workers import LIMIT_S, draw, refuse_five, until

pytest.importorskip("distributed", reason="the extra [dask] is not installed")

REPOSITORY = Path(__file__).parent.parent
N_ITEMS = 60
DEADLY = 7


@dataclass
class Cluster:
    """A scheduler and its workers, one process each."""

    folder: Path
    scheduler: subprocess.Popen[bytes]
    address: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def start(cls, folder: Path) -> Cluster:
        """A scheduler on a free port of the loopback address."""
        said = folder / "scheduler.json"
        process = run("scheduler", folder, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(said))
        assert until(lambda: said.is_file() and said.read_text().endswith("}"))
        return cls(folder, process, json.loads(said.read_text())["address"])

    @property
    def kind(self) -> str:
        return f"dask:{self.address}"

    def add_worker(self, code: Path = REPOSITORY, **environ: str) -> subprocess.Popen[bytes]:
        """A worker without a nanny: when it is killed nobody starts it again."""
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder))
        self.workers.append(run("worker", self.folder, self.address, *options, code=code, **environ))
        return self.workers[-1]

    def settle(self, n: int) -> None:
        """Start workers until n live, and wait until the scheduler knows exactly those."""
        from distributed import Client

        self.workers = [w for w in self.workers if w.poll() is None]
        while len(self.workers) < n:
            self.add_worker()
        with Client(self.address, set_as_default=False, timeout=LIMIT_S) as client:
            assert until(lambda: len(client.nthreads()) == len(self.workers))

    @contextmanager
    def with_one_that_dies(self, failpoint: str) -> Iterator[None]:
        """In this block the only worker is one that a failpoint kills, so that it gets work for certain; then another takes its place."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        armed = self.add_worker(BEATSIGHT_FAILPOINT=failpoint)
        self.settle(1)

        def replace_it() -> None:
            armed.wait(LIMIT_S)
            self.add_worker()

        relief = threading.Thread(target=replace_it)
        relief.start()
        try:
            yield
            assert armed.wait(LIMIT_S) == -signal.SIGKILL
        finally:
            armed.kill()  # it is dead, unless something is wrong
            relief.join()

    def stop(self) -> None:
        """End what was started here."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def run(what: str, folder: Path, *options: str, code: Path = REPOSITORY, **environ: str) -> subprocess.Popen[bytes]:
    """A process of the cluster with this repository's code (or another's); what it says goes into a file."""
    env = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"} | environ
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *options]
    with (folder / f"{what}.log").open("ab") as log:
        return subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One scheduler for this module."""
    made = Cluster.start(tmp_path_factory.mktemp("dask"))
    yield made
    made.stop()


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """The scheduler with two living workers."""
    started.settle(2)
    return started


def note_and_die(job: tuple[str, int]) -> int:
    """Writes down that an item was worked on; one item takes its worker with it the first time."""
    folder, n = job
    descriptor = os.open(f"{folder}/ran", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{n} {os.getpid()}\n".encode())
    os.close(descriptor)
    if n == DEADLY and not Path(folder, "died").exists():
        Path(folder, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def wait_forever(_: int) -> None:
    """An item that is still worked on when the scheduler goes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    signal.sigwait([signal.SIGUSR1])


def test_results_are_those_of_inline_in_the_same_order(cluster: Cluster) -> None:
    """U9 on a cluster; an error of ours arrives with its code and place, and after it the next map works."""
    names = [f"kick {n}" for n in range(N_ITEMS)]
    with executor("inline", 1) as pool:
        expected = list(ordered_map(pool, draw, names))
    with executor(cluster.kind, 1) as pool:
        assert list(ordered_map(pool, draw, names)) == expected
        with pytest.raises(ConfigError) as caught:
            list(ordered_map(pool, refuse_five, range(N_ITEMS)))
        assert (caught.value.code, caught.value.where) == ("bad-option", "item 5")
        assert list(ordered_map(pool, draw, names[:3])) == expected[:3]


def test_a_killed_worker_costs_its_own_items(cluster: Cluster, tmp_path: Path) -> None:
    """All results are there; only what the dead worker had in hand or had not handed over was worked on twice."""
    with executor(cluster.kind, 1) as pool:
        done = list(ordered_map(pool, note_and_die, [(str(tmp_path), n) for n in range(N_ITEMS)]))
    assert done == list(range(N_ITEMS))
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    again = {int(n) for n, _ in ran if sum(n == other for other, _ in ran) > 1}
    victim = next(pid for n, pid in ran if int(n) == DEADLY)
    assert DEADLY in again
    assert again <= {int(n) for n, pid in ran if pid == victim}
    assert len(again) <= workers.IN_FLIGHT_PER_WORKER * 2
    assert sorted(w.poll() for w in cluster.workers if w.poll() is not None) == [-signal.SIGKILL]


def test_an_ingest_writes_the_same_bytes_on_every_executor(cluster: Cluster, settings: Settings, tmp_path: Path) -> None:
    """Events, provenance, quarantine and report of 150 takes, one of them damaged, inline, by two processes and on the cluster."""
    raw = settings.layout.raw("beatsight_demo")
    names = [f"t{n:03d}" for n in range(150)]
    for n, name in enumerate(names):
        lake.put_take(raw, name, n, audio=n < 8)
    lake.put_table(raw, names)
    (raw / "midi/t077.mid").write_bytes(b"MThd")
    outputs = []
    for kind in ("inline", "processes", cluster.kind):
        root = tmp_path / kind.partition(":")[0]
        shutil.copytree(settings.layout.root, root)
        report = sources.ingest(replace(lake.at(settings, root), executor=kind, n_workers=2), "demo")
        assert (report.figures["recordings"], report.figures["rejected"]) == (149, 1)
        outputs.append((report.outputs, report.figures))
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_worker_killed_while_it_writes_leaves_no_trace(cluster: Cluster, settings: Settings) -> None:
    """The feature cache whose worker dies before its first array has its name: another worker makes it, every byte is that of inline."""
    test_cache.make_root(settings, seconds=1.0)
    cache.run(settings)
    expected = test_cache.digests(settings.layout.root)
    store.Store(settings.layout.root).remove(settings.layout.root / "features")
    with cluster.with_one_that_dies("publish.rename:1:kill"):
        report = cache.run(replace(settings, executor=cluster.kind))
    assert report.passed and not report.reused
    assert test_cache.digests(settings.layout.root) == expected


def test_a_bundle_exported_by_a_cluster_that_loses_a_worker_is_the_same(cluster: Cluster, settings: Settings) -> None:
    """A worker dies with a shard all but done: another one makes that shard, every content file is that of inline."""
    writers.make_data(settings.layout.root)
    writers.run_to(settings.layout.root, "recording_features")
    content = {"shards": 4, "part_clips": 50}
    expected = export(settings, BundleRequest("one", None, content)).marker
    with cluster.with_one_that_dies("shard.end:1:kill"):
        made = export(replace(settings, executor=cluster.kind), BundleRequest("two", None, content)).marker
    assert made["shards"] == expected["shards"] and made["clips"] == expected["clips"] == 207


def test_a_worker_with_other_code_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Results of another version are not mixed in: exit 2 before any work, and it says which worker."""
    shutil.copytree(REPOSITORY / "beatsight_assets", tmp_path / "beatsight_assets", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    with (tmp_path / "beatsight_assets/units.py").open("a") as file:
        file.write("# another version\n")
    stranger = cluster.add_worker(code=tmp_path)
    cluster.settle(3)
    with pytest.raises(ConfigError, match="1 Dask workers have another version") as caught, executor(cluster.kind, 1):
        pass
    assert (caught.value.code, caught.value.exit_code) == ("other-code", 2)
    stranger.kill()
    stranger.wait()


def test_nobody_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that does not answer, has no worker, or goes away: an error with the next step, never a wait without end."""
    monkeypatch.setattr(workers, "CONNECT_S", 2.0)
    monkeypatch.setattr(workers, "WORKERS_S", 1.0)
    unheard = r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 .*dask scheduler"
    with pytest.raises(ConfigError, match=unheard) as caught, executor("dask:tcp://127.0.0.1:9", 1):
        pass
    assert (caught.value.code, caught.value.exit_code) == ("no-cluster", 2)
    made = Cluster.start(tmp_path)
    try:
        monkeypatch.setattr(workers, "CONNECT_S", LIMIT_S)
        with pytest.raises(ConfigError, match=r"has no worker\. Start one with: dask worker"), executor(made.kind, 1):
            pass
        made.settle(1)
        monkeypatch.setattr(workers, "CONNECT_S", 20.0)
        monkeypatch.setattr(workers, "WORKERS_S", LIMIT_S)
        with pytest.raises(StoreError, match="worker-died"), executor(made.kind, 1) as pool:
            results = ordered_map(pool, wait_forever, range(2))
            made.scheduler.kill()
            next(results)
    finally:
        made.stop()


def test_without_dask_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 with the pip command, never a bare ImportError."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'beatsight-assets\[dask\]'") as caught, executor("dask:tcp://127.0.0.1:9", 1):
        pass
    assert (caught.value.code, caught.value.exit_code) == ("missing-extra", 2)
