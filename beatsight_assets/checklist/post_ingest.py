"""After ingest, before anything is built on it: is the manifest well-formed, healthy, and can it be drawn from?

Belongs here: the list `post-ingest` (`spec/tools.md` T26). Does not belong here: running steps (`steps`), any rule of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beatsight_assets import sampling
from beatsight_assets.checklist.steps import Step, of_reports, run_steps, run_tests
from beatsight_assets.errors import NothingToDo
from beatsight_assets.events import read_events
from beatsight_assets.health import report as health
from beatsight_assets.manifest import techniques, validate
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Progress, silent

TESTS = ("test_events.py", "test_taxonomy.py", "health")


@dataclass(frozen=True)
class PostIngestOptions:
    """manifest : None = the annotated one; has_tests : run our own tests of events and health; keep_going : after a failed step too."""

    manifest: Path | None = None
    has_tests: bool = True
    keep_going: bool = False


def post_ingest(settings: Settings, options: PostIngestOptions = PostIngestOptions(), *, progress: Progress = silent) -> dict[str, Any]:
    """Steps validate, health (by the limits of the profile), tests, sampling; reports/ingest/post_ingest.json. See `steps.run_steps`."""
    path = options.manifest or settings.layout.annotated

    def check_rows() -> tuple[bool, Any]:
        frame = read_events(path)
        if not frame.height:
            raise NothingToDo("the manifest holds no event", code="nothing-to-do", where=path.name)
        return validate.validate(frame, settings, techniques.read_names(settings.config_path("techniques")))

    def judge_health() -> tuple[bool, Any]:
        named = health.HealthOptions() if options.manifest is None else health.HealthOptions(path, path.stem)
        return of_reports(health.run(settings, named, progress=progress))

    def weigh() -> tuple[bool, Any]:
        if options.manifest is None:
            return of_reports(sampling.run(settings, progress=progress))
        target = settings.layout.report("sampling", f"{path.stem}_weights.json")
        weights, verdict = sampling.derive_file(settings, path, target)
        return verdict.passed, {"groups": len(weights.groups), "output": settings.layout.rel(target), "verdicts": [verdict.to_json()]}

    steps = [
        Step("validate", check_rows),
        Step("health", judge_health),
        *([Step("tests", lambda: run_tests(TESTS))] if options.has_tests else []),
        Step("sampling", weigh),
    ]
    target = settings.layout.report("ingest", "post_ingest.json")
    return run_steps(settings, steps, target, keep_going=options.keep_going, progress=progress)
