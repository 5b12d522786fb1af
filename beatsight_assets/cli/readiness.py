"""`beatsight readiness`: the gates of a release."""

from __future__ import annotations

import click

from beatsight_assets.cli.common import Session, command, finish
from beatsight_assets.errors import ConfigError


@command("boundary-pack", help="Hits near the edges of streaming windows, from held-out recordings.")
@click.option("--window-ms", type=float, default=2048.0, show_default=True)
@click.option("--hop-ms", type=float, default=512.0, show_default=True)
@click.option("--margin-ms", type=float, default=40.0, show_default=True)
@click.option("--max-per-edge", type=int, default=2000, show_default=True)
@click.option("--force", is_flag=True, help="Accept a margin of half a hop or more.")
def boundary_pack_command(session: Session, window_ms: float, hop_ms: float, margin_ms: float, max_per_edge: int, force: bool) -> int:
    from beatsight_assets.readiness.boundary import PackOptions, run

    options = PackOptions(window_ms=window_ms, hop_ms=hop_ms, margin_ms=margin_ms, max_per_edge=max_per_edge, force=force)
    return finish(session, run(session.settings, options, progress=session.progress))


@command("align", help="Do annotated onsets lie where the audio rises? One table and one verdict per dataset.")
@click.option("--annotations", "names", multiple=True, metavar="NAME", help="Dataset to measure; may be given several times.")
@click.option("--all", "every", is_flag=True, help="Every ingested dataset that has audio.")
def align_command(session: Session, names: tuple[str, ...], every: bool) -> int:
    from beatsight_assets.errors import NothingToDo
    from beatsight_assets.readiness.annotation_alignment import AlignmentOptions, run

    settings = session.settings
    if bool(names) == every:
        raise ConfigError("give --annotations NAME or --all", code="bad-option")
    if every:
        names = tuple(n for n, c in settings.datasets.items() if c.enabled and settings.layout.events(n).is_file())
    reports = [run(settings, AlignmentOptions(name), progress=session.progress) for name in names]
    if every:  # a dataset without audio has nothing to align, and says nothing against the others
        reports = [r for r in reports if r.figures["judged"]]
        if not reports:
            raise NothingToDo("no ingested dataset has a recording with audio and enough onsets", code="nothing-to-judge")
    return finish(session, *reports)


@command("run", help="Judge the candidate's predictions: boundary, open set, bootstrap, calibration.")
@click.option("--run", "name", help="Run to judge.  [default: the one that was predicted last]")
@click.option("--release", help="Name of the folder below reports/readiness.  [default: that of the run]")
def run_command(session: Session, name: str | None, release: str | None) -> int:
    from beatsight_assets.readiness.run import ReadinessOptions, run

    options = ReadinessOptions(run=name, release=release)
    return finish(session, run(session.settings, options, progress=session.progress))
