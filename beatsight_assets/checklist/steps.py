"""Steps in order: each passes or fails, the first failure stops the list unless the user wants all of it.

Belongs here: running steps and their report. Does not belong here: what a step does, and which list it stands in.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beatsight_assets import clock
from beatsight_assets.errors import BeatSightError, ConfigError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Progress, Report, silent

TESTS = "beatsight_assets_tests"
TAIL_CHARS = 2_000  # of the output of failed tests
PASS, FAIL, NOT_RUN = "pass", "fail", "not-run"


@dataclass(frozen=True)
class Step:
    """A name, and what it does: it hands back whether all is well, and its report as JSON."""

    name: str
    work: Callable[[], tuple[bool, Any]]


def run_steps(
    settings: Settings,
    steps: Sequence[Step],
    report_file: Path,
    *,
    keep_going: bool = False,
    facts: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run steps in order and publish `{steps: [{name, status, seconds, report}], passed}` with `facts`; status is pass, fail or not-run.

    An error of ours is a failed step. A step after the first failure does not run, save with `keep_going`.
    """
    found: list[dict[str, Any]] = []
    for step in steps:
        if not keep_going and any(row["status"] == FAIL for row in found):
            found.append({"name": step.name, "status": NOT_RUN, "seconds": 0.0, "report": None})
            continue
        progress(f"step {len(found) + 1} of {len(steps)}: {step.name}")
        started_s = clock.monotonic_s()
        try:
            passed, report = step.work()
        except BeatSightError as error:
            passed, report = False, {"error": error.code, "message": str(error)}
        seconds = round(clock.monotonic_s() - started_s, 3)
        found.append({"name": step.name, "status": PASS if passed else FAIL, "seconds": seconds, "report": report})
    result = {**(facts or {}), "steps": found, "passed": bool(found) and all(row["status"] == PASS for row in found)}
    settings.store.publish_json(report_file, result)
    return result


def of_reports(*reports: Report) -> tuple[bool, Any]:
    """What a step hands back that ran stages: one receipt, or several."""
    found = [r.to_json() | {"reused": r.reused} for r in reports]
    return bool(reports) and all(r.passed for r in reports), found[0] if len(found) == 1 else {"reports": found}


def run_tests(targets: Sequence[str]) -> tuple[bool, Mapping[str, Any]]:
    """Run our own tests, given below the package of tests, in a fresh interpreter.

    Raises
    ------
    ConfigError `no-tests` : they are not installed
    """
    spec = importlib.util.find_spec(TESTS)
    if spec is None or spec.origin is None or importlib.util.find_spec("pytest") is None:
        raise ConfigError("the tests are not installed here. Install the development extra, or give --no-tests", code="no-tests")
    folder = Path(spec.origin).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(folder / t) for t in targets)]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    words = done.stdout.strip().splitlines()
    report = {"targets": list(targets), "summary": words[-1] if words else "", "exit_code": done.returncode}
    return done.returncode == 0, report if done.returncode == 0 else report | {"tail": (done.stdout + done.stderr)[-TAIL_CHARS:]}


def text_of(result: Mapping[str, Any]) -> str:
    """As a person reads it: a line per step, and why the failed ones failed."""
    lines = []
    for row in result["steps"]:
        lines.append(f"  {row['status'].upper():<8} {row['name']:<14} {row['seconds']:>8.1f} s")
        if row["status"] == FAIL:
            lines += [f"           {reason}" for reason in _reasons(row["report"])[:10]]
    lines += [f"  LEFT OUT {name:<14} {why}" for name, why in result.get("left_out", {}).items()]
    return "\n".join([*lines, "passed" if result["passed"] else "NOT PASSED"])


def _reasons(report: Any) -> list[str]:
    """Why a step failed, out of whatever report it left."""
    if not isinstance(report, Mapping):
        return []
    found = [str(report[k]) for k in ("message", "summary") if k in report] + [str(p) for p in report.get("problems", ())]
    for verdict in report.get("verdicts", ()):
        found += [f"{r['name']}: {r['detail']}" for r in verdict["rules"] if r["blocking"] and not r["passed"]]
        found += [r["message"] for r in verdict["reasons"]]
    return found + [reason for inner in report.get("reports", ()) for reason in _reasons(inner)]
