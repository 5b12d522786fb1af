"""P19: `beatsight --help` against importing what the commands need."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import Result, alternate, wall_seconds

GOAL = 0.3


def run() -> list[Result]:
    """Answers per second of wall time."""

    def ours() -> None:
        subprocess.run([sys.executable, "-m", "beatsight_assets", "--help"], check=True, capture_output=True)

    def baseline() -> None:
        subprocess.run([sys.executable, "-c", "import dagster, torch, polars, librosa"], check=True, capture_output=True)

    ours()
    baseline()
    a, b = alternate(ours, baseline, rounds=5, clock=wall_seconds)
    return [
        Result(
            "P19 beatsight --help", "answers", 1, 1 / a, "importing the engine", 1 / b, b / a, None, f"< {GOAL} s", a < GOAL, {"seconds": a}
        )
    ]
