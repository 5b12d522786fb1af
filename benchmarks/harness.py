"""What every benchmark shares: alternating runs, medians in CPU seconds, ratio, growth exponent, one table and one JSON file."""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS")
RESULTS = Path(__file__).parent / "results"


def pin_threads() -> None:
    """One thread per library: unpinned, one library looked five times slower than it is. Call before importing numpy."""
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"


@dataclass
class Result:
    """One stage's figures. `unit` is what the rates count, per CPU second."""

    stage: str
    unit: str
    size: float
    ours_per_s: float
    baseline: str = ""
    baseline_per_s: float | None = None
    ratio: float | None = None
    growth: float | None = None
    goal: str = ""
    met: bool | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """One row of the table."""
        met = "-" if self.met is None else "yes" if self.met else "NO"
        return (
            f"{self.stage:<22} {self.size:>12,.0f} {self.unit:<14} {_rate(self.ours_per_s):>12} {_rate(self.baseline_per_s):>12} "
            f"{'-' if self.ratio is None else f'{self.ratio:.1f}x':>8} {'-' if self.growth is None else f'{self.growth:.2f}':>7}  {self.goal:<28} {met}"
        )


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if value < 100 else f"{value:,.0f}"


HEADER = f"{'stage':<22} {'size':>12} {'unit':<14} {'ours/s':>12} {'baseline/s':>12} {'ratio':>8} {'growth':>7}  {'goal':<28} met"


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system CPU seconds of this process and its finished children."""
    before = _cpu_s()
    work()
    return _cpu_s() - before


def _cpu_s() -> float:
    """To the microsecond; os.times counts in hundredths of a second, which is all that a tenth of some inputs takes."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(s.ru_utime + s.ru_stime for s in spent)


def wall_seconds(work: Callable[[], object]) -> float:
    """Wall clock seconds."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def alternate(
    a: Callable[[], object], b: Callable[[], object], *, rounds: int = 3, clock: Callable[[Callable[[], object]], float] = cpu_seconds
) -> tuple[float, float]:
    """Median seconds of a and of b, measured in turns so that a busy machine hits both."""
    times_a, times_b = [], []
    for _ in range(rounds):
        times_a.append(clock(a))
        times_b.append(clock(b))
    return statistics.median(times_a), statistics.median(times_b)


def median(work: Callable[[], object], *, rounds: int = 3, clock: Callable[[Callable[[], object]], float] = cpu_seconds) -> float:
    """Median seconds."""
    return statistics.median(clock(work) for _ in range(rounds))


def growth(small_size: float, small_s: float, size: float, seconds: float) -> float:
    """Exponent of cost over size: 1 is linear."""
    return math.log(seconds / small_s) / math.log(size / small_size)


def shared_data() -> Path | None:
    """Folder of real data, if it is there."""
    folder = Path(os.environ.get("BEATSIGHT_SHARED_DATA") or Path(__file__).parent.parent.parent / "shared" / "data")
    return folder if folder.is_dir() else None


def save(results: list[Result]) -> Path:
    """Write all results as JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "latest.json"
    path.write_text(json.dumps([asdict(r) for r in results], indent=1, sort_keys=True) + "\n")
    return path
