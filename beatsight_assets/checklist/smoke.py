"""A small bundle of a manifest, made, checked and judged before hours are spent on the whole one.

Belongs here: the limited export, its audit, its health, speed and what the full run would take. Does not belong here: the export itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import clock, store
from beatsight_assets.bundle import check
from beatsight_assets.bundle.export import BundleRequest, Exported, export, judge
from beatsight_assets.bundle.plan import manifest_batches
from beatsight_assets.bundle.read import Bundle, open_bundle
from beatsight_assets.bundle.verify import SPACE_ADVISED, SPACE_NEEDED, Verified, estimate, verify
from beatsight_assets.errors import ConfigError, GateFailed, NothingToDo
from beatsight_assets.events import EVENT_SCHEMA
from beatsight_assets.health import html
from beatsight_assets.health import report as health
from beatsight_assets.health.gates import HealthLimits
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE = "bundle_smoke"
VERSION = "2"
DEFAULT_LIMIT = 50_000  # spec/bundle.md section 10


@dataclass(frozen=True)
class SmokeOptions:
    """limit : clips, None = EXPORT_LIMIT, else 50,000; keep : leave the bundle there afterwards, as KEEP_SMOKE_OUTPUT=1 does."""

    manifest: Path | None = None
    limit: int | None = None
    keep: bool = False
    audio_root: str | None = None
    audio_root_maps: tuple[str, ...] = ()
    max_missing: int = 0


def from_environment(settings: Settings, options: SmokeOptions) -> SmokeOptions:
    """Options with what the environment says where none is given; an option wins.

    RAW_PRIMARY is the audio root. RAW_SECONDARY is a second place with the same folders, looked at where the first holds no file.

    Raises
    ------
    ConfigError `bad-option`
    """
    given = settings.smoke
    if options.limit is None and given.export_limit:
        if not given.export_limit.isdecimal() or int(given.export_limit) < 1:
            raise ConfigError(f"EXPORT_LIMIT is {given.export_limit!r}; it must be a whole number of at least 1", code="bad-option")
        options = replace(options, limit=int(given.export_limit))
    if given.keep_smoke_output not in ("", "0", "1"):
        raise ConfigError(f"KEEP_SMOKE_OUTPUT is {given.keep_smoke_output!r}; it must be 0 or 1", code="bad-option")
    root = options.audio_root or given.raw_primary or None
    maps = list(options.audio_root_maps)
    if given.raw_secondary:
        for source_set, config in settings.datasets.items():
            first = settings.raw_roots(source_set) if root is None else [Path(root) / config.raw_folder]
            maps += [f"{source_set}={place}" for place in (*first, Path(given.raw_secondary) / config.raw_folder)]
    keep = options.keep or given.keep_smoke_output == "1"
    return replace(options, limit=options.limit or DEFAULT_LIMIT, keep=keep, audio_root=root, audio_root_maps=tuple(maps))


def run(settings: Settings, options: SmokeOptions = SmokeOptions(), *, progress: Progress = silent) -> Report:
    """Stage `bundle_smoke`: reports/bundle/preflight/{smoke.json, health.json, health.html}; looks at the disk every time.

    The bundle goes again unless it is kept or a step failed.

    Raises
    ------
    as `export.export`; GateFailed `no-space` : the whole bundle would not fit; NothingToDo `nothing-to-do` : no event becomes a clip
    """
    options = from_environment(settings, options)
    manifest = options.manifest or settings.layout.annotated
    name = f".smoke-{store.hash_file(manifest)[:8]}"
    content = {"limit": options.limit}
    request = BundleRequest(name, manifest, content, "overwrite", options.audio_root, options.audio_root_maps, options.max_missing)
    whole = verify(settings, replace(request, content={}), probe="none", progress=progress)
    if whole.n_planned == 0:
        raise NothingToDo("no event of the manifest becomes a clip; nothing was written", code="nothing-to-do")
    sizes = _require_space(settings, whole)
    started_s = clock.monotonic_s()
    exported = export(settings, request, progress=progress)
    seconds = max(clock.monotonic_s() - started_s, 1e-3)
    found = _figures(exported, seconds, whole, sizes)
    bundle = open_bundle(exported.plan.folder)
    health_file = settings.layout.report("bundle", "preflight/health.json")
    steps = {
        "export": judge(settings, exported, options.max_missing).failures,
        "check": check.find_flips(settings, bundle, progress=progress),
        "health": _health(settings, bundle, manifest, health_file),
    }
    failures = [f"{step}: {text}" for step, texts in steps.items() for text in texts]
    keep = options.keep or bool(failures)
    target = settings.layout.report("bundle", "preflight/smoke.json")

    def work() -> Outcome:
        report = {**found, "limit": options.limit, "statistics": dict(exported.statistics), "steps": {k: not v for k, v in steps.items()}}
        settings.store.publish_json(target, {**report, "failures": failures, "kept": name if keep else None, "passed": not failures})
        if not keep:
            settings.store.remove(exported.plan.folder)
            settings.store.remove(settings.layout.quarantine(f"bundle.{name}"))
        ratio = sizes["bytes_free"] / max(sizes["bytes_shards"], 1)
        rules = (
            Rule.at_most("smoke_complete", float(len(failures)), 0.0, failures[0] if failures else "failures of export, check and health"),
            Rule.at_least("disk_headroom", min(ratio, 1e6), SPACE_ADVISED, "free space over what the whole bundle needs", blocking=False),
        )
        return Outcome(
            outputs=[("smoke", target, None), ("health", health_file, None), ("health_html", health_file.with_suffix(".html"), None)],
            figures=found,
            facts={"failures": failures, "kept": name if keep else None},
            verdicts=[
                Verdict(
                    gate=STAGE,
                    rules=rules,
                    inputs=(Artifact("manifest", settings.layout.shown(manifest), store.hash_file(manifest)),),
                    support={"clips": exported.statistics["written_clips"]},
                    profile=settings.profile,
                )
            ],
        )

    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"limit": options.limit, "keep": options.keep, "max_missing": options.max_missing, "found": found, "failures": failures},
        parents=[("manifest", manifest)] if manifest.is_relative_to(settings.layout.root) else [],
        work=work,
    )


def _require_space(settings: Settings, whole: Verified) -> dict[str, int]:
    """Sizes of the whole bundle; refuses when it would not fit."""
    sizes = estimate(settings, whole)
    needed, free = sizes["bytes_shards"] * SPACE_NEEDED, sizes["bytes_free"]
    if free < needed:
        raise GateFailed(
            f"the whole bundle needs about {needed / 1e9:,.2f} GB and {free / 1e9:,.2f} GB are free. Make room or move the data root",
            code="no-space",
        )
    return sizes


def _figures(exported: Exported, seconds: float, whole: Verified, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Speed of the smoke run, and what the whole would take at that speed."""
    n_clips = exported.statistics["written_clips"]
    n_bytes = exported.statistics["written_seconds"] * exported.plan.options.sample_rate * 2
    return {
        "clips": n_clips,
        "clips_per_s": round(n_clips / seconds, 1),
        "mb_per_s": round(n_bytes / seconds / 1e6, 2),
        "full_clips": whole.n_planned,
        "full_seconds": round(whole.n_planned * seconds / max(n_clips, 1), 1),
        "full_gb": round(sizes["bytes_shards"] / 1e9, 6),
    }


def _health(settings: Settings, bundle: Bundle, manifest: Path, target: Path) -> list[str]:
    """Publish the health report of the events that became clips; what it says against them.

    Floors of classes and techniques are for the whole manifest (`health report` judges them there): a sample of it is smaller.
    """
    clips = bundle.table(["event_id", "group_id", "split"])
    kept = [batch.filter(pl.col("event_id").is_in(clips["event_id"].implode())) for batch in manifest_batches(manifest)]
    taxonomy = Taxonomy.load(settings)
    limits = HealthLimits.from_config(settings.gates.health, f"configs/gates/{settings.profile}.yaml")
    limits = replace(limits, min_class_count=None, min_counts={}, required_labels=(), required_techniques=(), min_technique_counts={})
    report = health.measure(
        pl.concat([EVENT_SCHEMA.to_frame(), *kept]),
        taxonomy,
        splits=clips.select("group_id", "split").unique("group_id"),
        dataset_metadata=health.read_durations(bundle.folder / "metadata.json"),
    )
    report["bundle"] = health.read_bundle(bundle.folder)
    verdict = health.judged(settings, report, limits, taxonomy, [("bundle", bundle.folder / "BUNDLE.json")])
    report |= {"schema": health.SCHEMA, "manifest": {"path": settings.layout.shown(manifest), "sha256": store.hash_file(manifest)}}
    report |= {"gating_results": [r.to_json() for r in verdict.rules], "status": verdict.status, "passed": verdict.passed}
    settings.store.publish_json(target, report)
    settings.store.publish(target.with_suffix(".html"), html.render(report, verdict).encode())
    return verdict.failures
