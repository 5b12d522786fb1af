"""One executor for independent items: inline, local processes, or a Dask cluster by address. Same code, same results, same order.

Rules: results are consumed in submission order; submitted functions are importable by name; every random choice is keyed by
the item, so the number of workers never changes a byte. The machines of a cluster run this version of this package and see the
data root under the same path. Dask runs what its scheduler sends, so an address is as trusted as a shell on that machine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from hashlib import sha256
from importlib import metadata
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from beatsight_assets.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

DASK = "dask:"
KINDS = ("inline", "processes", f"{DASK}ADDRESS")
CONNECT_S = 20.0  # a scheduler that does not answer by then is not there
WORKERS_S = 20.0  # one that has no worker by then has none
NUMERIC = ("librosa", "numpy", "polars", "scipy", "soundfile", "soxr")  # libraries that a byte of a result can depend on
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS")
IN_FLIGHT_PER_WORKER = 4  # design/dagster.md section 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_thread_per_call() -> None:
    """Keep the numeric libraries on one thread, unless the environment says otherwise; to be called before numpy and torch are imported.

    Operations on a few thousand numbers, of which there are millions here, take ten times the CPU time on two threads, and their sums may
    differ with the number of cores. Stages scale by workers; training sets its own threads, and tables are read by as many as there are cores.
    """
    for name in THREAD_VARIABLES:
        if name != "POLARS_MAX_THREADS":
            os.environ.setdefault(name, "1")


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process; finding them takes 3 ms, limiting them 14 us."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blas_on_one_thread() -> AbstractContextManager[Any]:
    """Within it, matrix products take one thread, whatever the environment says; numpy must be imported before."""
    return _blas().limit(limits=1, user_api="blas")  # type: ignore[no-any-return]


class InlineExecutor(Executor):
    """Runs each call at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that already holds the result or the exception."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class DaskExecutor(Executor):
    """A Dask cluster. An item whose worker dies is given to another one, at most four times; finished items are not done again."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool = client.get_executor(pure=False)

    @property
    def n_workers(self) -> int:
        """Items that the cluster works on at once, as it is now."""
        return sum(self._client.nthreads().values())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future of the cluster's result."""
        return self._pool.submit(fn, *args, **kwargs)  # type: ignore[no-any-return]


def require_kind(kind: str, *, where: str = "") -> str:
    """The name of an executor, if it is one.

    Raises
    ------
    ConfigError `unknown-choice`
    """
    if kind not in KINDS[:2] and not (kind.startswith(DASK) and len(kind) > len(DASK)):
        raise ConfigError.unknown_choice("executor", kind, KINDS, where=where)
    return kind


@contextmanager
def executor(kind: str, n_workers: int) -> Iterator[Executor]:
    """Executor for independent items; `n_workers` is for local processes, a cluster has as many workers as it has.

    Raises
    ------
    ConfigError `unknown-choice`; `missing-extra` : Dask is not installed; `no-cluster` : nobody answers; `other-code` : a worker has another version
    """
    if kind == "inline" or (kind == "processes" and n_workers == 1):
        yield InlineExecutor()
    elif kind == "processes":
        _start_forkserver()
        with ProcessPoolExecutor(n_workers, mp_context=get_context("forkserver"), initializer=_start_worker) as pool:
            yield pool
    else:
        with _connect(require_kind(kind).removeprefix(DASK)) as client:
            yield DaskExecutor(client)


@contextmanager
def _connect(address: str) -> Iterator[Any]:
    """Client of a Dask scheduler whose workers would give the results that this machine gives."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError.missing_extra("Dask", "pip install 'beatsight-assets[dask]'") from error
    try:
        client = Client(address, set_as_default=False, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at {address} ({error}). Start one with: dask scheduler", code="no-cluster") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError as error:
            raise ConfigError(
                f"the Dask scheduler at {address} has no worker. Start one with: dask worker {address} --nthreads 1", code="no-cluster"
            ) from error
        own = code_digest()
        try:
            others = sorted(worker for worker, digest in client.run(code_digest).items() if digest != own)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"a Dask worker at {address} does not have this package ({error})", code="other-code") from error
        if others:
            raise ConfigError(
                f"{len(others)} Dask workers have another version of this package or of {', '.join(NUMERIC)} than this machine "
                f"(first: {others[0]}), so their results may differ. Install the same there",
                code="other-code",
            )
        yield client


def code_digest() -> str:
    """Digest of this package's code and of the versions of the libraries that results depend on."""
    package = Path(__file__).parent
    digest = sha256("".join(f"{name} {metadata.version(name)}\n" for name in NUMERIC).encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _worker_deaths() -> tuple[type[Exception], ...]:
    """What is raised when a worker, or the whole cluster, is gone. Dask's own are known once Dask is."""
    dask = sys.modules.get("distributed")
    return (
        (BrokenProcessPool, CancelledError)
        if dask is None
        else (BrokenProcessPool, CancelledError, dask.KilledWorker, dask.core.CommClosedError)
    )


def ordered_map(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, n_workers: int = 1) -> Iterator[Result]:
    """Results in the order of `items`, at most 4 for each worker in flight. What is not wanted any more is cancelled.

    Parameters
    ----------
    n_workers : of local processes; a cluster is asked how many it has

    Raises
    ------
    StoreError `worker-died` : a worker process was killed; the message names the items that were being worked on, at most n_workers.
        On a cluster: an item killed four workers in turn, or the scheduler is gone
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        limit = _in_flight(pool, n_workers)
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= limit:
                yield _take(waiting)
        while waiting:
            yield _take(waiting)
    except _worker_deaths() as error:
        unfinished = [item for item, future in waiting if not future.done() or future.exception() is not None]
        suspects = " or ".join(str(item)[:200] for item in unfinished[:n_workers]) or "the next item"
        raise StoreError(
            f"a worker process died while it worked on {suspects}. Was memory short? Repeat with fewer workers; finished items are kept",
            code="worker-died",
        ) from error
    finally:
        for _, future in waiting:
            future.cancel()


def _in_flight(pool: Executor, n_workers: int) -> int:
    """How many items may wait for their turn or their result."""
    if isinstance(pool, InlineExecutor):
        return 1
    return IN_FLIGHT_PER_WORKER * max(n_workers, pool.n_workers if isinstance(pool, DaskExecutor) else 1)


def _take(waiting: deque[tuple[Item, Future[Result]]]) -> Result:
    """The oldest result; it leaves the queue only when it is there, so that a failure can be named."""
    value = waiting[0][1].result()
    waiting.popleft()
    return value


def _start_forkserver() -> None:
    """Start the process that workers are forked from with one BLAS thread each: libraries read these variables when they are imported."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    """One BLAS thread per worker, also when the forkserver is older than this pool, and no orphans when the parent is killed.

    PR_SET_PDEATHSIG is no help: a worker's parent is the forkserver, which stays as long as one of its workers does.
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
