"""`beatsight health`: is the data fit to train on."""

from __future__ import annotations

import click

from beatsight_assets.cli.common import Session, command, emit, finish


@command("report", help="Judge the annotated manifest by the profile's limits; writes JSON and HTML.")
def report_command(session: Session) -> int:
    from beatsight_assets.health.report import HealthOptions, run

    return finish(session, run(session.settings, HealthOptions(), progress=session.progress))


@command("compare", help="Compare the health report with the blessed baseline.")
@click.option("--max-drop", type=click.IntRange(min=0), default=0, show_default=True, help="Hits a class may lose.")
@click.option("--ignore-label", "ignore", multiple=True, help="A class that is not compared.")
def compare_command(session: Session, max_drop: int, ignore: tuple[str, ...]) -> int:
    from beatsight_assets.health.compare import CompareOptions, run

    return finish(session, run(session.settings, CompareOptions(max_drop, ignore), progress=session.progress))


@command("bless", help="Make the current report the baseline; a failing one needs --force and is marked.")
@click.option("--force", is_flag=True)
def bless_command(session: Session, force: bool) -> int:
    from beatsight_assets.health.compare import bless

    path = bless(session.settings, force=force)
    emit(session, {"baseline": session.settings.store.rel(path)}, f"-> {session.settings.store.rel(path)}")
    return 0
