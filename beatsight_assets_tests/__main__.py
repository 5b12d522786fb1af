"""`python -m beatsight_assets_tests [STAGE ...]`: the whole suite in stages, with the time of each.

Sweeps sample on every push and exhaust with BEATSIGHT_EXHAUSTIVE=1 (`make test-all`). Stages do not need each other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

TESTS = "beatsight_assets_tests"
STAGES: dict[str, tuple[str, list[str]]] = {
    "unit": (
        "facts, properties, goldens, documents",
        ["--dist=worksteal", TESTS, "beatsight_assets", *(f"--ignore={TESTS}/{d}" for d in ("crash", "dag", "e2e"))],
    ),
    "crash": ("kill, full disk, torn files", ["--dist=worksteal", f"{TESTS}/crash"]),
    "dagster": ("graph, gates, guards, sensors", ["--dist=worksteal", f"{TESTS}/dag"]),
    "e2e": ("demo, red demos, browser", ["--dist=loadfile", f"{TESTS}/e2e"]),
}


def main(names: list[str]) -> int:
    """Run the stages named (default all) and print what each took; the exit code is 1 when one of them failed."""
    environment = {
        **os.environ,
        "TZ": "UTC",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "POLARS_MAX_THREADS": "2",
    }
    rows: list[tuple[str, str, float]] = []
    for name in names or list(STAGES):
        text, arguments = STAGES[name]
        print(f"== {name}: {text}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", *arguments], env=environment).returncode
        rows.append((name, "ok" if code == 0 else f"FAILED ({code})", time.monotonic() - started))
    print("\nstage        result        seconds")
    for name, result, seconds in rows:
        print(f"{name:<12} {result:<12} {seconds:>8.1f}")
    return 0 if all(result == "ok" for _, result, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
