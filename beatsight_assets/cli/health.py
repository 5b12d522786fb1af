"""`beatsight health`: is the data fit to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from beatsight_assets.cli.common import Session, command, emit, finish, manifest_path
from beatsight_assets.errors import ConfigError

FILE = click.Path(path_type=Path)


def _limits(options: dict[str, Any]) -> Any:
    """Limits that stand on the command line; None when none does, then those of the profile apply."""
    from beatsight_assets import store
    from beatsight_assets.health.gates import HealthLimits, read_names

    given: dict[str, Any] = {
        k: options[k] for k in ("max_duplication_rate", "min_class_count", "max_unknown_labels") if options[k] is not None
    }
    for what in ("label", "technique"):
        names = list(options[f"require_{what}"])
        if options[f"require_{what}s_file"] is not None:
            names += read_names(options[f"require_{what}s_file"])
        if names:
            given[f"required_{what}s"] = list(dict.fromkeys(names))
    if options["min_counts_json"] is not None:
        counts = store.read_json(options["min_counts_json"])
        if not isinstance(counts, dict):
            raise ConfigError("--min-counts-json must hold one object {label: number}", code="bad-option")
        given["min_counts"] = counts
    return HealthLimits.from_config(given, "the options") if given else None


@command("report", help="Judge the annotated manifest, or --events, by the profile's limits or by those given; writes JSON and HTML.")
@click.option("--events", metavar="MANIFEST", help="A name, or a .parquet or .jsonl file.  [default: annotated, or that of --bundle]")
@click.option("--components", type=FILE, help="Labels that are allowed: a taxonomy or a bundle's components.json.")
@click.option("--dataset-metadata", type=FILE, help="metadata.json of a bundle: durations by split and source.")
@click.option("--bundle", metavar="NAME", help="Judge the clips of this bundle too.")
@click.option("--max-duplication-rate", type=float)
@click.option("--min-class-count", type=int, help="Hits that every class needs.")
@click.option("--min-counts-json", type=FILE, help="{label: number}, in place of the floor.")
@click.option("--max-unknown-labels", type=int)
@click.option("--require-label", multiple=True, help="Repeat it.")
@click.option("--require-labels-file", type=FILE, help="One name per line.")
@click.option("--require-technique", multiple=True, help="Repeat it.")
@click.option("--require-techniques-file", type=FILE, help="One name per line.")
@click.option("--no-limits", is_flag=True, help="No rule at all; the verdict is then a fail, with nothing to judge.")
@click.option("--output", type=FILE, help="The JSON.  [default: reports/health/annotated_health.json]")
@click.option("--html-output", type=FILE, help="The page.")
def report_command(
    session: Session, events: str | None, bundle: str | None, no_limits: bool, output: Path | None, html_output: Path | None, **options: Any
) -> int:
    from beatsight_assets.health import html, report
    from beatsight_assets.store import Store

    settings = session.settings
    limits = _limits(options)
    if limits is not None and no_limits:
        raise ConfigError("--no-limits and a limit exclude each other", code="bad-option")
    manifest = manifest_path(settings, events) if events not in (None, "annotated") else None
    if bundle and events is None:
        from beatsight_assets.bundle.check import own_manifest
        from beatsight_assets.bundle.read import open_bundle

        own = own_manifest(settings, open_bundle(settings.layout.bundle(bundle)))
        manifest = None if own == settings.layout.annotated else own
    asked = report.HealthOptions(
        manifest=manifest,
        limits=limits,
        no_limits=no_limits,
        components=options["components"],
        dataset_metadata=options["dataset_metadata"],
        bundle=settings.layout.bundle(bundle) if bundle else None,
    )
    if asked == report.HealthOptions() and output is None and html_output is None:
        return finish(session, report.run(settings, asked, progress=session.progress))
    targets = [(settings.user_output(p) if p else None) for p in (output, html_output)]
    found, verdict = report.assess(settings, asked, progress=session.progress)
    for target, content in zip(targets, (None, html.render(found, verdict).encode()), strict=True):
        if target is not None and content is None:
            Store(target.parent, remember=False).publish_json(target, found)
        elif target is not None and content is not None:
            Store(target.parent, remember=False).publish(target, content)
    lines = [f"health {verdict.status.upper()}: {found['summary']['events_total']:,} events, {len(found['per_class_counts'])} classes"]
    lines += [f"  {'ok  ' if r.passed else 'FAIL'} {r.name:<34} {r.value}  limit {r.limit}" for r in verdict.rules]
    lines += [f"  {text}" for text in verdict.failures if not verdict.rules]
    emit(session, found, "\n".join(lines))
    return 0 if verdict.passed else 1


@command("compare", help="Compare the health report with the blessed baseline, or --candidate with --baseline.")
@click.option("--baseline", type=FILE, help="A health report.  [default: the blessed one]")
@click.option("--candidate", type=FILE, help="A health report.  [default: that of the annotated manifest]")
@click.option("--max-drop", type=click.IntRange(min=0), default=0, show_default=True, help="Hits a class may lose.")
@click.option("--ignore-label", "ignore", multiple=True, help="A class that is not compared.")
@click.option("--first-release", is_flag=True, help="Without a baseline the comparison is waived, on record.")
@click.option("--json-output", type=FILE, help="Write the comparison there.")
def compare_command(
    session: Session,
    baseline: Path | None,
    candidate: Path | None,
    max_drop: int,
    ignore: tuple[str, ...],
    first_release: bool,
    json_output: Path | None,
) -> int:
    from beatsight_assets.health import compare
    from beatsight_assets.store import Store

    options = compare.CompareOptions(max_drop, ignore)
    target = session.settings.user_output(json_output) if json_output else None
    if baseline is None and candidate is None and target is None and not first_release:
        return finish(session, compare.run(session.settings, options, progress=session.progress))
    found, verdict = compare.assess(session.settings, options, baseline=baseline, candidate=candidate, first_release=first_release)
    if target is not None:
        Store(target.parent, remember=False).publish_json(target, found)
    emit(session, found, f"health_compare {verdict.status.upper()}\n" + "\n".join(f"  {text}" for text in verdict.failures))
    return 0 if verdict.passed else 1


@command("bless", help="Make the current report, or HEALTH_REPORT, the baseline; a failing one needs --force and is marked.")
@click.argument("health_report", required=False, type=FILE)
@click.option("--force", is_flag=True)
def bless_command(session: Session, health_report: Path | None, force: bool) -> int:
    from beatsight_assets.health.compare import bless

    path = bless(session.settings, health_report, force=force)
    emit(session, {"baseline": session.settings.store.rel(path)}, f"-> {session.settings.store.rel(path)}")
    return 0
