"""`beatsight checklist`: the steps around the long ones, in order, with one report."""

from __future__ import annotations

import click

from beatsight_assets.cli.bundle import audio_options
from beatsight_assets.cli.common import Session, command, emit, manifest_path


@command("post-ingest", help="Is the manifest well-formed, healthy, and can it be drawn from? Exit 1 when a step fails.")
@click.option("--events", "manifest", help="A manifest (name or file) instead of the annotated one.")
@click.option("--keep-going", is_flag=True, help="Do the other steps after a failed one too.")
@click.option("--no-tests", is_flag=True, help="Leave the step `tests` out.")
def post_ingest_command(session: Session, manifest: str | None, keep_going: bool, no_tests: bool) -> int:
    from beatsight_assets.checklist.post_ingest import PostIngestOptions, post_ingest
    from beatsight_assets.checklist.steps import text_of

    path = manifest_path(session.settings, manifest) if manifest else None
    result = post_ingest(session.settings, PostIngestOptions(path, not no_tests, keep_going), progress=session.progress)
    emit(session, result, text_of(result))
    return 0 if result["passed"] else 1


@command("pre-export", help="Raw files, green verdicts of health and splits, audio of every event, a smoke run. Exit 1 when a step fails.")
@click.argument("manifest", required=False)
@click.option("--limit", type=click.IntRange(min=1), help="Clips of the smoke run.  [default: EXPORT_LIMIT or 50000]")
@click.option("--keep-going", is_flag=True, help="Do the other steps after a failed one too.")
@audio_options
def pre_export_command(
    session: Session,
    manifest: str | None,
    limit: int | None,
    keep_going: bool,
    audio_root: str | None,
    audio_root_map: tuple[str, ...],
    max_missing: int,
) -> int:
    from beatsight_assets.checklist.export import pre_export
    from beatsight_assets.checklist.smoke import SmokeOptions
    from beatsight_assets.checklist.steps import text_of

    path = manifest_path(session.settings, manifest) if manifest else None
    options = SmokeOptions(path, limit, False, audio_root, audio_root_map, max_missing)
    result = pre_export(session.settings, options, keep_going=keep_going, progress=session.progress)
    emit(session, result, text_of(result))
    return 0 if result["passed"] else 1


@command(
    "post-export", help="What follows a sealed bundle: health, totals, tests, features, training, evaluation. Exit 1 when a step fails."
)
@click.argument("bundle")
@click.option("--steps", metavar="A,B,..", help="Of sync, health, snapshot, tests, cache, train, evaluate, analyze; run in this order.")
@click.option("--preset", default="warmup", show_default=True, help="Of the training: a file of configs/presets.")
@click.option("--keep-going", is_flag=True, help="Do the other steps after a failed one too.")
@click.option("--no-tests", is_flag=True, help="Leave the step `tests` out.")
def post_export_command(session: Session, bundle: str, steps: str | None, preset: str, keep_going: bool, no_tests: bool) -> int:
    from beatsight_assets.checklist.export import MISSING, STEPS, PostOptions, post_export
    from beatsight_assets.checklist.steps import text_of

    wanted = [s.strip() for s in steps.split(",")] if steps else None
    if no_tests:
        wanted = [s for s in wanted or STEPS if s != "tests" and (wanted or s not in MISSING)]
    result = post_export(session.settings, PostOptions(bundle, wanted, preset, keep_going), progress=session.progress)
    emit(session, result, text_of(result))
    return 0 if result["passed"] else 1
