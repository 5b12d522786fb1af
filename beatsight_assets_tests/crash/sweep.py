"""The one failpoint sweep: strike a writer at its n-th failpoint for n = 1, 2, 3, … until it finishes; look as a reader; resume; compare.

A writer is either a real command (`Command`, a new process each time) or a function of the data root (`Forked`, a child of a
warm process that has imported everything, about 15 ms each time). Every push samples, `BEATSIGHT_EXHAUSTIVE=1` strikes every point.
Does not belong here: what a particular writer writes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from beatsight_assets import clock, workers
from beatsight_assets.errors import BeatSightError
from beatsight_assets.store import TMP_NAME
from beatsight_assets.units import rng_for

REPOSITORY = Path(__file__).parent.parent.parent
OUR_BUG = 70  # sysexits.h EX_SOFTWARE: an exception that is not ours
SAMPLE = 40  # points per action on a push
MAX_POINTS = 100_000  # a writer that is still struck here never finishes
PATTERNS = {"kill": "*"}  # errors of the disk strike where we talk to the disk
DISK = "publish.*"
BOOKKEEPING = (".cache", ".lock")


@dataclass(frozen=True)
class Ran:
    """How one run ended: exit code (negative: signal), what it said, which failpoint struck."""

    code: int
    stderr: str

    @property
    def struck(self) -> str | None:
        """Name of the failpoint that struck."""
        found = re.search(r"^failpoint (\S+) \w+$", self.stderr, re.MULTILINE)
        return found.group(1) if found else None


class Writer(Protocol):
    """Runs on a data root, with or without a failpoint."""

    def __call__(self, root: Path, failpoint: str | None) -> Ran: ...


@dataclass(frozen=True)
class Command:
    """A real command; `{root}` in its arguments is the data root."""

    arguments: Sequence[str]

    def __call__(self, root: Path, failpoint: str | None) -> Ran:
        environment = {k: v for k, v in os.environ.items() if k != "BEATSIGHT_FAILPOINT"}
        if failpoint is not None:
            environment["BEATSIGHT_FAILPOINT"] = failpoint
        arguments = [a.replace("{root}", str(root)) for a in self.arguments]
        done = subprocess.run(arguments, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
        return Ran(done.returncode, done.stderr)


class Forked:
    """`module:function`, called with the data root in a forked child. Close it, or use it in a `with` block."""

    def __init__(self, function: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "beatsight_assets_tests.crash.sweep", function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **dict.fromkeys(workers.THREAD_VARIABLES, "1")},
        )

    def __call__(self, root: Path, failpoint: str | None) -> Ran:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"root": str(root), "failpoint": failpoint}) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, f"the warm process ended with code {self._server.wait()}"
        return Ran(**json.loads(answer))

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate("")


@dataclass
class SweepResult:
    """What was struck: points per action, how many an uninterrupted run passes, seconds."""

    n_struck: Counter[str] = field(default_factory=Counter)
    n_total: dict[str, int] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)
    n_double: int = 0
    seconds: float = 0.0

    @property
    def n_points(self) -> int:
        return sum(self.n_struck.values())

    def __str__(self) -> str:
        parts = [f"{action} {n} of {self.n_total[action]}" for action, n in sorted(self.n_struck.items())]
        double = f", {self.n_double} double kills" if self.n_double else ""
        return f"{self.n_points} points struck ({', '.join(parts)}){double} at {len(self.names)} places in {self.seconds:.1f} s"


def is_exhaustive() -> bool:
    """Every point instead of a sample."""
    return bool(os.environ.get("BEATSIGHT_EXHAUSTIVE"))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for many short-lived data roots: in memory where there is some, because what a killed process wrote is kept there too."""
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="beatsight-sweep-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield base
    finally:
        shutil.rmtree(base)


def tree(root: Path) -> dict[str, str]:
    """sha256 of every file below a folder; temporary files, locks and the digest cache are no content."""
    found = {}
    for path in sorted(root.rglob("*")):
        rel = path.relative_to(root)
        if path.is_file() and not any(p in BOOKKEEPING or TMP_NAME.match(p) for p in rel.parts):
            found[rel.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(root: Path) -> list[str]:
    """Temporary files and folders below a folder."""
    return [p.relative_to(root).as_posix() for p in root.rglob("*") if TMP_NAME.match(p.name)]


def sweep(
    command: list[str] | Writer,
    root_factory: Callable[[], Path],
    *,
    actions: Sequence[str] = ("kill",),
    check_after_kill: Callable[[Path], None] | None = None,
    removed: Sequence[str] = (),
    passing: Sequence[str] = (),
    view: Callable[[Path], dict[str, str]] = tree,
    sample: int = SAMPLE,
    n_double: int = 0,
    seed: int = 7,
) -> SweepResult:
    """Strike a writer at its failpoints; afterwards every file is old or new, and resuming gives the bytes of an uninterrupted run.

    Parameters
    ----------
    command : arguments of a real command (`{root}` is the data root), or a writer
    root_factory : a new data root, equal each time; it is deleted after use
    actions : kill, and what the disk may do: eio, enospc, edquot, erofs, short
    check_after_kill : the reader's view; raises when what it finds is no whole version
    removed : patterns of paths that the writer deletes before it makes them again, so that a reader may find neither version
    passing : patterns of paths that hold other whole versions on the way (pointers, logs); `check_after_kill` judges them
    view : digest of every file that counts; `tree`, unless a file tells how much a run could reuse
    sample : points per action on a push
    n_double : random pairs (n, m): the run is killed at n, its resume at m, then it resumes again

    Raises
    ------
    AssertionError : names the failpoint, the action and what was wrong
    """
    writer: Writer = Command(command) if isinstance(command, list) else command
    started_s = clock.monotonic_s()
    result = SweepResult()
    clean = root_factory()
    before = view(clean)
    first = writer(clean, None)
    assert first.code == 0, f"the uninterrupted run failed: {first.stderr}"
    after = view(clean)
    named = tree(clean)  # also what `view` leaves out
    assert not leftovers(clean)
    shutil.rmtree(clean)

    def look(root: Path, label: str) -> None:
        seen = view(root)
        for rel in sorted({*seen, *before}):
            if any(fnmatch(rel, pattern) for pattern in passing):
                continue
            allowed = {before.get(rel), after.get(rel)} | ({None} if any(fnmatch(rel, pattern) for pattern in removed) else set())
            assert seen.get(rel) in allowed, f"{label}: {rel} is {'torn' if rel in seen else 'lost'}"
        if check_after_kill is not None:
            check_after_kill(root)

    def resume(root: Path, label: str) -> None:
        done = writer(root, None)
        assert done.code == 0, f"{label}: resuming failed with {done.code}: {done.stderr}"
        found = view(root)
        differing = sorted(rel for rel in {*found, *after} if found.get(rel) != after.get(rel))
        assert not differing, f"{label}: after resuming {differing[:5]} differ from an uninterrupted run"
        assert not leftovers(root), f"{label}: {leftovers(root)[:5]} are left after resuming"

    def strike(action: str, n: int) -> bool:
        root = root_factory()
        ran = writer(root, f"{PATTERNS.get(action, DISK)}:{n}:{action}")
        label = f"{ran.struck} {action} #{n}"
        if ran.struck is None:
            assert ran.code == 0, f"no failpoint struck and yet {ran.code}: {ran.stderr}"
        elif action == "kill":
            assert ran.code != 0, f"{label}: was not killed"
        elif not (action == "short" and ran.code == 0):  # "short" means nothing where nothing is written
            assert ran.code == 3, f"{label}: exit code {ran.code}, not 3: {ran.stderr}"
            assert re.search(r"\d bytes", ran.stderr), f"{label}: no bytes in {ran.stderr!r}"
            assert any(Path(rel).name in ran.stderr for rel in named), f"{label}: no file in {ran.stderr!r}"
            assert not leftovers(root), f"{label}: {leftovers(root)} are left"
        look(root, label)
        resume(root, label)
        shutil.rmtree(root)
        if ran.struck is None:
            return False
        result.n_struck[action] += 1
        result.names[ran.struck] += 1
        return True

    for action in actions:
        result.n_total[action] = n_total = _last_point(lambda n, action=action: strike(action, n))  # type: ignore[misc]
        seen = result.n_struck[action]
        rest = [n for n in range(1, n_total + 1) if n not in _gallop(n_total)]
        if not is_exhaustive() and len(rest) > sample - seen:
            rest = sorted(rng_for(seed, "sweep", action).choice(rest, max(0, sample - seen), replace=False).tolist())
        for n in rest:
            assert strike(action, n), f"{action} #{n} did not strike the second time: the writer does not repeat itself"

    pairs = rng_for(seed, "pairs").integers(1, result.n_total.get("kill", 1) + 1, (n_double, 2)).tolist()
    for n, m in pairs:
        root = root_factory()
        for place in (n, m):
            writer(root, f"*:{place}:kill")
            look(root, f"killed at {n} and {m} (seed {seed})")
        resume(root, f"killed at {n} and {m} (seed {seed})")
        shutil.rmtree(root)
    result.n_double = len(pairs)
    result.seconds = clock.monotonic_s() - started_s
    return result


def _gallop(n_total: int) -> set[int]:
    """The points that `_last_point` strikes on its way to `n_total`."""
    asked: set[int] = set()

    def strikes(n: int) -> bool:
        asked.add(n)
        return n <= n_total

    _last_point(strikes)
    return asked


def _last_point(strikes: Callable[[int], bool]) -> int:
    """The largest n that strikes, found by doubling and halving; every question is a point of the sweep."""
    n = 1
    while strikes(n):
        n *= 2
        assert n < MAX_POINTS, "the writer never finishes"
    known, beyond = n // 2, n
    while beyond - known > 1:
        middle = (known + beyond) // 2
        known, beyond = (middle, beyond) if strikes(middle) else (known, middle)
    return known


def call(function: Callable[[Path], object], root: Path) -> int:
    """Exit code of a writer function, told as the command line tells it."""
    try:
        function(root)
        return 0
    except BeatSightError as error:
        os.write(2, f"{error}\n".encode())
        return error.exit_code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return OUR_BUG


def _serve(function: Callable[[Path], object]) -> None:
    """Answer each line of stdin with a forked child's exit code and stderr."""
    for line in sys.stdin:
        order = json.loads(line)
        assert threading.active_count() == 1, "threads do not survive a fork; import less"
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.close(reader)
            if order["failpoint"] is not None:
                os.environ["BEATSIGHT_FAILPOINT"] = order["failpoint"]
            os._exit(call(function, Path(order["root"])))
        os.close(writer)
        with open(reader, "rb") as stream:
            stderr = stream.read().decode(errors="replace")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"code": code, "stderr": stderr}), flush=True)


def main(arguments: Sequence[str]) -> int:
    """`MODULE:FUNCTION` serves forks; `MODULE:FUNCTION ROOT` calls it once, as a command would."""
    module, _, name = arguments[0].partition(":")
    function: Callable[[Path], object] = getattr(importlib.import_module(module), name)
    if len(arguments) == 2:
        return call(function, Path(arguments[1]))
    _serve(function)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
