"""A small bundle of a manifest, made, checked and judged before hours are spent on the whole one.

Belongs here: the limited export, its audit, speed and what the full run would take. Does not belong here: the export itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from beatsight_assets import clock, store
from beatsight_assets.bundle import check
from beatsight_assets.bundle.export import BundleRequest, estimate_bytes, export, judge
from beatsight_assets.bundle.plan import Plan
from beatsight_assets.bundle.read import open_bundle
from beatsight_assets.bundle.verify import verify
from beatsight_assets.errors import NothingToDo
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE = "bundle_smoke"
VERSION = "1"
DEFAULT_LIMIT = 50_000  # spec/bundle.md section 10


@dataclass(frozen=True)
class SmokeOptions:
    """limit : clips, None = 50,000; keep : leave the bundle there afterwards."""

    manifest: Path | None = None
    limit: int | None = None
    keep: bool = False
    audio_root: str | None = None
    audio_root_maps: tuple[str, ...] = ()
    max_missing: int = 0


def run(settings: Settings, options: SmokeOptions = SmokeOptions(), *, progress: Progress = silent) -> Report:
    """Stage `bundle_smoke`: reports/bundle/preflight/smoke.json; the bundle goes again unless it is kept or a step failed.

    Raises
    ------
    as `export.export`; NothingToDo `nothing-to-do` : no event becomes a clip
    """
    manifest = options.manifest or settings.layout.annotated
    limit = options.limit if options.limit is not None else DEFAULT_LIMIT
    target = settings.layout.report("bundle", "preflight/smoke.json")
    parents = [("manifest", manifest)] if manifest.is_relative_to(settings.layout.root) else []

    def work() -> Outcome:
        name = f".smoke-{sha256(store.hash_file(manifest).encode()).hexdigest()[:8]}"
        whole = verify(
            settings, BundleRequest(name, manifest, {}, "new", options.audio_root, options.audio_root_maps), probe="none", progress=progress
        )
        if whole.n_planned == 0:
            raise NothingToDo("no event of the manifest becomes a clip; nothing was written", code="nothing-to-do")
        request = BundleRequest(
            name, manifest, {"limit": limit}, "overwrite", options.audio_root, options.audio_root_maps, options.max_missing
        )
        started_s = clock.monotonic_s()
        exported = export(settings, request, progress=progress)
        seconds = max(clock.monotonic_s() - started_s, 1e-3)
        bundle = open_bundle(exported.plan.folder)
        flips = check.find_flips(settings, bundle)
        verdict = judge(settings, exported, options.max_missing)
        found = _figures(exported.plan, exported.statistics["written_clips"], seconds, whole.n_planned)
        failures = [*verdict.failures, *flips]
        settings.store.publish_json(
            target, {**found, "limit": limit, "statistics": dict(exported.statistics), "failures": failures, "passed": not failures}
        )
        if not options.keep and not failures:
            settings.store.remove(exported.plan.folder)
        rules = (Rule.at_most("smoke_complete", float(len(failures)), 0.0, "steps of the smoke run that failed"),)
        artifact = Artifact("report", settings.store.rel(target), settings.store.sha256(target))
        return Outcome(
            outputs=[("smoke", target, None)],
            figures=found,
            facts={"failures": failures, "kept": name if options.keep or failures else None},
            verdicts=[
                Verdict(
                    gate=STAGE,
                    rules=rules,
                    inputs=(artifact,),
                    support={"clips": exported.statistics["written_clips"]},
                    profile=settings.profile,
                )
            ],
        )

    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"limit": limit, "keep": options.keep, "max_missing": options.max_missing},
        parents=parents,
        work=work,
    )


def _figures(plan: Plan, n_clips: int, seconds: float, n_planned: int) -> dict[str, Any]:
    """Speed of the smoke run, and what the whole would take at that speed."""
    n_bytes = estimate_bytes(plan)
    return {
        "clips": n_clips,
        "clips_per_s": round(n_clips / seconds, 1),
        "mb_per_s": round(n_bytes / seconds / 1e6, 2),
        "full_clips": n_planned,
        "full_seconds": round(n_planned * seconds / max(n_clips, 1), 1),
        "full_gb": round(n_planned * n_bytes / max(n_clips, 1) / 1e9, 3),
    }
