"""What has to hold before hours are spent on an export, and what follows once a bundle is sealed.

Belongs here: which steps, in which order. Does not belong here: running them (`steps`), what each does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from beatsight_assets import tracking
from beatsight_assets.bundle import check
from beatsight_assets.bundle.export import BundleRequest, settled_folder
from beatsight_assets.bundle.read import open_bundle
from beatsight_assets.bundle.verify import verify
from beatsight_assets.checklist import smoke
from beatsight_assets.checklist.smoke import SmokeOptions
from beatsight_assets.checklist.steps import Step, of_reports, run_steps, run_tests
from beatsight_assets.errors import ConfigError
from beatsight_assets.events import Manifest
from beatsight_assets.health import report as health
from beatsight_assets.manifest import integrity
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Progress, Report, silent, trace

MAX_CHECKS = 2_000  # files of a checksum list, spec/tools.md T36
NEEDED = ("manifest_health", "splits")  # verdicts without which nothing is exported (T95)
TESTS = ("bundle", "features")
# Steps of which a part is not there yet: they do not run by themselves, and named they fail with these words.
MISSING = {
    "analyze": "there is no `model analyze` in this version",
}
NOT_OF_CLIPS = "`model evaluate` judges family frame; what a preset of family clip trained was judged on the validation clips of its bundle"
STEPS = ("sync", "health", "snapshot", "tests", "cache", "train", "evaluate", "analyze")


def pre_export(settings: Settings, options: SmokeOptions, *, keep_going: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Raw files of the datasets that the manifest holds, verdicts, audio of every event, a smoke run; reports/bundle/preflight/pre_export.json.

    Raises
    ------
    ConfigError `bad-option` : a variable of the smoke run is wrong
    """
    options = smoke.from_environment(settings, options)

    def raw() -> tuple[bool, Any]:
        manifest = options.manifest or settings.layout.annotated
        used = {name for piece in Manifest(manifest).pieces(["source_set"]) for name in piece["source_set"].unique()}
        known = integrity.chosen_datasets(settings, ())
        names = [name for name in known if name in used] or known
        wanted = [integrity.IntegrityOptions(name, True, max_checks=MAX_CHECKS) for name in names]
        return of_reports(*(integrity.run(settings, one, progress=progress) for one in wanted))

    def verdicts() -> tuple[bool, Any]:
        problems = [f"{link.name}: {text}" for link in trace(settings, NEEDED) for text in link.problems]
        return not problems, {"stages": list(NEEDED), "problems": problems}

    def audio() -> tuple[bool, Any]:
        request = BundleRequest("verify", options.manifest, {}, "new", options.audio_root, options.audio_root_maps)
        found = verify(settings, request, progress=progress)
        return found.passed(options.max_missing), found.to_json()

    steps = (
        Step("raw_integrity", raw),
        Step("verdicts", verdicts),
        Step("verify", audio),
        Step("smoke", lambda: of_reports(smoke.run(settings, options, progress=progress))),
    )
    target = settings.layout.report("bundle", "preflight/pre_export.json")
    return run_steps(settings, steps, target, keep_going=keep_going, progress=progress)


@dataclass(frozen=True)
class PostOptions:
    """steps : which of `STEPS`, in their order there; None = all that this version has. preset : of the training; one of family clip learns
    from the bundle, one of family frame from the recordings."""

    bundle: str
    steps: Sequence[str] | None = None
    preset: str = "warmup"
    keep_going: bool = False


def post_export(settings: Settings, options: PostOptions, *, progress: Progress = silent) -> dict[str, Any]:
    """What follows a sealed bundle; reports/bundle/<name>_post_export.json, with `left_out` for what this version lacks.

    Raises
    ------
    ConfigError `unknown-choice` : a step that is none
    BundleIncomplete
    """
    for name in options.steps or ():
        if name not in STEPS:
            raise ConfigError.unknown_choice("step", name, STEPS, where="--steps")
    open_bundle(settled_folder(settings, options.bundle))
    left_out = dict(MISSING) | ({"evaluate": NOT_OF_CLIPS} if _bundle_of(settings, options) else {})
    if not options.steps and (why := tracking.why_no_upload()) is not None:
        left_out["sync"] = why
    works: dict[str, Callable[[], tuple[bool, Any]]] = {
        "sync": lambda: _sync(settings),
        "health": lambda: of_reports(bundle_health(settings, options.bundle, progress=progress)),
        "snapshot": lambda: _snapshot(settings, options.bundle),
        "tests": lambda: run_tests(TESTS),
        "cache": lambda: _cache(settings, options.bundle, progress),
        "train": lambda: _train(settings, options, progress),
        "evaluate": lambda: _evaluate(settings, progress),
        **{name: _missing(name, why) for name, why in left_out.items()},
    }
    wanted = [s for s in STEPS if s in options.steps] if options.steps else [s for s in STEPS if s not in left_out]
    target = settings.layout.report("bundle", f"{options.bundle}_post_export.json")
    more = {"bundle": options.bundle, "left_out": {} if options.steps else left_out}
    steps = [Step(name, works[name]) for name in wanted]
    return run_steps(settings, steps, target, keep_going=options.keep_going, facts=more, progress=progress)


def _sync(settings: Settings) -> tuple[bool, Any]:
    found = tracking.sync(settings.store, settings.layout.logged_runs)
    return all(row["status"] != "failed" for row in found), {"runs": found}


def _missing(name: str, why: str) -> Callable[[], tuple[bool, Any]]:
    return lambda: (False, {"message": f"{why}. Leave {name} out of --steps"})


def _bundle_of(settings: Settings, options: PostOptions) -> str | None:
    """The bundle, where the preset trains on clips."""
    from beatsight_assets.model.train import family_of

    return options.bundle if family_of(settings, options.preset) == "clip" else None


def bundle_health(settings: Settings, name: str, *, progress: Progress = silent) -> Report:
    """Health of the manifest that a bundle was made from, with the clips and seconds that the bundle holds, under the name of the bundle.

    Raises
    ------
    BundleIncomplete; InputError `manifest-changed` : the manifest has other rows now, which say nothing of this bundle
    """
    bundle = open_bundle(settled_folder(settings, name))
    manifest, metadata = check.own_manifest(settings, bundle), bundle.folder / "metadata.json"
    options = health.HealthOptions(manifest, f"bundle_{name}", dataset_metadata=metadata, bundle=bundle.folder)
    return health.run(settings, options, progress=progress)


def _snapshot(settings: Settings, name: str) -> tuple[bool, Any]:
    found = check.against_manifest(settings, name)
    return not found["problems"], found


def _cache(settings: Settings, name: str, progress: Progress) -> tuple[bool, Any]:
    """Features of the clips, and those of whole recordings, which the step `train` reads."""
    from beatsight_assets.features import cache, clip_cache

    clips = clip_cache.run(settings, clip_cache.WarmOptions(name), progress=progress)
    return of_reports(clips, cache.run(settings, progress=progress))


def _train(settings: Settings, options: PostOptions, progress: Progress) -> tuple[bool, Any]:
    from beatsight_assets.model.train import TrainOptions, run

    return of_reports(run(settings, TrainOptions(preset=options.preset, bundle=_bundle_of(settings, options)), progress=progress))


def _evaluate(settings: Settings, progress: Progress) -> tuple[bool, Any]:
    from beatsight_assets.model.evaluate import run

    return of_reports(run(settings, progress=progress))
