"""Workers: one result for any number of them, bounded, and honest when one dies (reliability.md U9, R14; safety row "processes")."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from beatsight_assets import clock, units
from beatsight_assets.errors import ConfigError, StoreError
from beatsight_assets.workers import IN_FLIGHT_PER_WORKER, THREAD_VARIABLES, executor, ordered_map

REPOSITORY = Path(__file__).parent.parent
LIMIT_S = 240.0  # only what is broken takes so long; a machine may be shared and slow


def draw(name: str) -> tuple[str, bytes]:
    """Work whose result depends on its item alone."""
    return name, units.rng_for(7, "draw", name).bytes(64)


def die_at_five(n: int) -> int:
    """The fifth item takes its process with it, as the kernel does when memory is short."""
    if n == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def refuse_five(n: int) -> int:
    """The fifth item is not accepted."""
    if n == 5:
        raise ConfigError("five is not accepted", code="bad-option", where="item 5")
    return n


def environment(_: int) -> dict[str, str | None]:
    """What a worker sees."""
    return {name: os.environ.get(name) for name in THREAD_VARIABLES}


def until(condition: Callable[[], bool]) -> bool:
    """Poll a condition with a limit."""
    start_s = clock.monotonic_s()
    while clock.monotonic_s() - start_s < LIMIT_S:
        if condition():
            return True
    return False


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_results_are_equal_and_in_order_for_any_number_of_workers(n_workers: int) -> None:
    """U9: inline and 1, 2, 4 processes give identical results in the order of the items."""
    names = [f"kick {n}" for n in range(50)]
    with executor("inline", 1) as pool:
        expected = list(ordered_map(pool, draw, names))
    with executor("processes", n_workers) as pool:
        assert list(ordered_map(pool, draw, names, n_workers=n_workers)) == expected
    assert [name for name, _ in expected] == names


def test_items_are_taken_as_they_are_needed() -> None:
    """Memory stays bounded: at most 4 items per worker are in flight, and inline items are taken one by one."""
    taken = []

    def items() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    with executor("processes", 2) as pool:
        for done, result in enumerate(ordered_map(pool, refuse_five, (n + 100 for n in items()), n_workers=2)):
            assert result == done + 100
            assert len(taken) <= done + IN_FLIGHT_PER_WORKER * 2
    taken.clear()
    with executor("inline", 1) as pool:
        for done, _ in enumerate(ordered_map(pool, refuse_five, (n + 100 for n in items()))):
            assert len(taken) == done + 1


@pytest.mark.parametrize(("kind", "n_workers"), [("inline", 1), ("processes", 2)])
def test_an_error_of_an_item_arrives_where_its_result_is_due(kind: str, n_workers: int) -> None:
    """Results before it arrive, its code and place survive the process boundary, what is not wanted any more is cancelled."""
    seen = []
    with executor(kind, n_workers) as pool, pytest.raises(ConfigError) as caught:
        for result in ordered_map(pool, refuse_five, range(1_000), n_workers=n_workers):
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]
    assert (caught.value.code, caught.value.where, caught.value.exit_code) == ("bad-option", "item 5", 2)


def test_a_killed_worker_is_an_error_that_names_the_item() -> None:
    """StoreError worker-died (exit 3) names the item and the next step; results before it arrived in order."""
    seen = []
    with executor("processes", 2) as pool, pytest.raises(StoreError) as caught:
        for result in ordered_map(pool, die_at_five, range(1_000), n_workers=2):
            seen.append(result)
    assert caught.value.code == "worker-died"
    assert caught.value.exit_code == 3
    named = str(caught.value).partition("worked on ")[2].partition(".")[0].split(" or ")
    assert "5" in named
    assert len(named) <= 2
    assert "fewer workers" in str(caught.value)
    assert seen == list(range(len(seen)))


def test_a_pool_that_broke_between_two_items_is_the_same_error() -> None:
    """The death may show when the next item is submitted: it is worker-died all the same, not the library's exception."""
    with executor("processes", 2) as pool:
        broken = pool.submit(die_at_five, 5)
        assert broken.exception(timeout=LIMIT_S) is not None
        with pytest.raises(StoreError, match="worker-died"):
            list(ordered_map(pool, die_at_five, range(3), n_workers=2))


def test_workers_use_one_thread_each_and_leave_our_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores and two workers are no place for sixteen BLAS threads; the caller's variables are as before."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    with executor("processes", 2) as pool:
        assert set(pool.submit(environment, 0).result().values()) == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "NUMBA_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    "start", ["import sys; from beatsight_assets.cli import main; sys.argv[1:] = ['--help']; main()", "import beatsight_assets.definitions"]
)
@pytest.mark.parametrize(("given", "found"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_commands_and_dagster_keep_numeric_libraries_on_one_thread(start: str, given: dict[str, str], found: str) -> None:
    """Whatever a user's shell says stands; without a word, libraries whose threads cost more than they bring get one. Nothing imported them before."""
    text = f"""
import atexit, os, sys
atexit.register(lambda: print(os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"], os.environ.get("POLARS_MAX_THREADS")))
from beatsight_assets import workers
before = workers.one_thread_per_call
def watched():
    assert not {{"numpy", "torch"}} & set(sys.modules)
    before()
workers.one_thread_per_call = watched
{start}
"""
    environment = {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES} | given
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [f"{found} 1 None"], done.stderr


def test_an_unknown_executor_is_named_with_its_choices() -> None:
    """ConfigError unknown-choice with the nearest word; Dask without an address is no executor."""
    with (
        pytest.raises(ConfigError, match=r"must be one of dask:ADDRESS, inline, processes\. Did you mean processes\?"),
        executor("process", 2),
    ):
        pass
    for kind in ("dask", "dask:"):
        with pytest.raises(ConfigError, match="unknown-choice"), executor(kind, 2):
            pass


PARENT = """
import os, signal
from beatsight_assets.workers import executor
if __name__ == "__main__":
    with executor("processes", 2) as pool:
        print(*(f.result() for f in [pool.submit(os.getpid), pool.submit(os.getpid)]), flush=True)
        for _ in range(2):
            pool.submit(signal.pause)
        signal.pause()
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks /proc which processes live")
def test_children_die_with_the_parent() -> None:
    """No orphans: workers that are busy are gone after their parent was killed."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert parent.stdout is not None
    children = {int(pid) for pid in parent.stdout.readline().split()}
    assert children
    assert parent.pid not in children
    assert all(Path(f"/proc/{pid}").exists() for pid in children)
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def living() -> set[int]:
        states = {}
        for pid in children:
            with suppress(FileNotFoundError, ProcessLookupError):
                states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return {pid for pid, state in states.items() if state not in "ZX"}

    are_gone = until(lambda: not living())
    orphans = living()
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    assert are_gone, f"{orphans} outlived their parent"
