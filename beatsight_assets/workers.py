"""One executor for independent items: inline or local processes. Same code, same results, same order.

Rules: results are consumed in submission order; submitted functions are importable by name; every random choice is keyed by
the item, so the number of workers never changes a byte.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from typing import Any, TypeVar

from beatsight_assets.errors import ConfigError, StoreError

KINDS = ("inline", "processes")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS")
IN_FLIGHT_PER_WORKER = 4  # design/dagster.md section 8

Item = TypeVar("Item")
Result = TypeVar("Result")


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


@contextmanager
def executor(kind: str, n_workers: int) -> Iterator[Executor]:
    """Executor for independent items.

    Raises
    ------
    ConfigError `unknown-choice`
    """
    if kind == "inline" or (kind == "processes" and n_workers == 1):
        yield InlineExecutor()
    elif kind == "processes":
        _start_forkserver()
        with ProcessPoolExecutor(n_workers, mp_context=get_context("forkserver"), initializer=_start_worker) as pool:
            yield pool
    else:
        raise ConfigError.unknown_choice("executor", kind, KINDS)


def ordered_map(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, n_workers: int = 1) -> Iterator[Result]:
    """Results in the order of `items`, at most 4 x n_workers of them in flight. What is not wanted any more is cancelled.

    Raises
    ------
    StoreError `worker-died` : a worker process was killed; the message names the items that were being worked on, at most n_workers
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    limit = 1 if isinstance(pool, InlineExecutor) else IN_FLIGHT_PER_WORKER * n_workers
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= limit:
                yield _take(waiting)
        while waiting:
            yield _take(waiting)
    except BrokenProcessPool as error:
        unfinished = [item for item, future in waiting if not future.done() or future.exception() is not None]
        suspects = " or ".join(str(item)[:200] for item in unfinished[:n_workers]) or "the next item"
        raise StoreError(
            f"a worker process died while it worked on {suspects}. Was memory short? Repeat with fewer workers; finished items are kept",
            code="worker-died",
        ) from error
    finally:
        for _, future in waiting:
            future.cancel()


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
