"""A real daemon watches a raw folder while files are copied into it, changed, and taken away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from beatsight_assets.dag.instance import init, open_instance
from beatsight_assets.settings import Settings, load_settings
from beatsight_assets_tests.sources.lake import NAME, put_table, put_take

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 240.0  # only what is broken takes so long; a machine may be shared and slow


@dataclass
class Watch:
    """A running daemon and the instance it works on."""

    settings: Settings
    instance: dg.DagsterInstance
    process: subprocess.Popen[bytes]
    log: Path

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Poll a condition; the daemon's end or the limit is a failure with its log."""
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < deadline and self.process.poll() is None, f"{what}: not reached\n{self.log.read_text()[-4_000:]}"
            try:
                self.process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue

    def ticks(self) -> list[tuple[str, str, int]]:
        """(status, what it said, runs it asked for) of each tick of the sensor, oldest first."""
        states = [s for s in self.instance.all_instigator_state() if s.instigator_name == "raw_files_sensor"]
        found = [t for s in states for t in self.instance.get_ticks(s.instigator_origin_id, s.selector_id)]
        return [(t.status.value, t.tick_data.skip_reason or "", len(t.run_ids)) for t in reversed(found)]

    def looks(self, n: int) -> None:
        """Wait until the sensor has looked so many more times."""
        seen = len(self.ticks())
        self.until(lambda: len(self.ticks()) >= seen + n, f"{n} more looks")

    def runs(self) -> list[str]:
        return [r.status.value for r in self.instance.get_runs()]

    def is_at_rest(self, n_sessions: int) -> bool:
        """All was ingested, no run is left, and the sensor sees nothing new."""
        last = self.ticks()[-1:]
        return self.sessions() == n_sessions and set(self.runs()) == {"SUCCESS"} and bool(last) and "Still changing: none" in last[0][1]

    def sessions(self) -> int:
        path = self.settings.layout.provenance(NAME)
        return pl.read_parquet(path).height if path.is_file() else 0


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """`dagster-daemon run` on its own DAGSTER_HOME, looking every second."""
    root = tmp_path / "data"
    settings = load_settings(root, "demo", {})
    init(settings)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BEATSIGHT_")} | {
        "DAGSTER_HOME": str(settings.layout.dagster_home),
        "BEATSIGHT_DATA_ROOT": str(root),
        "BEATSIGHT_PROFILE": "demo",
        "BEATSIGHT_POLL_S": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    tool = Path(sys.executable).parent
    place = ["-w", str(REPOSITORY / "workspace.yaml")]
    subprocess.run(
        [tool / "dagster", "sensor", "start", "raw_files_sensor", *place], env=environment, cwd=tmp_path, check=True, capture_output=True
    )
    log = tmp_path / "daemon.log"
    with log.open("wb") as sink, open_instance(settings) as instance:
        process = subprocess.Popen([tool / "dagster-daemon", "run", *place], env=environment, cwd=tmp_path, stdout=sink, stderr=sink)
        try:
            yield Watch(settings, instance, process, log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def put_table_at_once(root: Path, names: list[str]) -> None:
    """The table of takes, old or new for whoever reads it meanwhile."""
    put_table(root.parent, names)
    os.replace(root.parent / "takes.csv", root / "takes.csv")


@pytest.mark.slow
def test_files_that_arrive_are_ingested_once_and_a_lost_disk_deletes_nothing(watch: Watch) -> None:
    """Copied while the daemon looks: the whole copy is ingested. Unmounted: a skip with a reason, no run. Changed: exactly one more run.

    How often the daemon looks at half a copy depends on the machine, so runs of a part are allowed here; `test_raw_files_sensor` counts them.
    Longer than ten seconds: a real daemon, its code server and two real runs in processes of their own.
    """
    root = watch.settings.layout.raw(NAME)
    names = [f"t{i}" for i in range(6)]
    arriving = root.with_name("arriving")
    for name, seed in (("t0", 0), ("t6", 60)):  # t6 gets its row later
        put_take(arriving, name, seed)
    put_table(arriving, names[:1])
    arriving.rename(root)
    for i, name in enumerate(names[1:], 1):
        put_take(root, name, i)
        put_table_at_once(root, names[: i + 1])
        if i in (1, 3):  # the daemon looks at half a copy
            watch.looks(1)
    watch.until(lambda: watch.is_at_rest(6), "the whole copy is ingested")
    n_runs = len(watch.runs())
    whole = watch.settings.layout.events(NAME).read_bytes()

    root.rename(root.with_name("unmounted"))
    watch.until(lambda: NAME in watch.ticks()[-1][1].partition("not readable:")[2], "a skip that names the root")
    root.mkdir()  # the mount point of an absent disk
    watch.looks(2)
    root.rmdir()
    root.with_name("unmounted").rename(root)
    watch.looks(2)
    assert len(watch.runs()) == n_runs and watch.settings.layout.events(NAME).read_bytes() == whole

    put_table_at_once(root, [*names, "t6"])
    watch.until(lambda: watch.is_at_rest(7), "the new take is ingested")
    watch.looks(2)
    assert len(watch.runs()) == n_runs + 1
    assert sum(n for _, _, n in watch.ticks()) == n_runs + 1
