"""`beatsight render`: MIDI performances as audio with exact labels."""

from __future__ import annotations

from pathlib import Path

import click

from beatsight_assets.cli.common import Session, command, finish


@command("demo", help="Write the demo dataset into raw/beatsight_demo.")
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--sessions", type=click.IntRange(min=4), help="Takes to make.  [default: 28]")
def demo_command(session: Session, seed: int, sessions: int | None) -> int:
    from beatsight_assets.render.stage import RenderOptions, run

    options = RenderOptions(seed=seed) if sessions is None else RenderOptions(seed=seed, sessions=sessions)
    return finish(session, run(session.settings, options, progress=session.progress))


@command("groove", help="Render Groove MIDI takes with several synthesised or sampled kits into raw/groove_rendered.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Music to render, in keyed order of takes.",
)
@click.option(
    "--kits",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Kits of the train split; val and test have their own, a quarter as many.",
)
@click.option("--renders", type=click.IntRange(min=1), default=1, show_default=True, help="Kits per take.")
@click.option(
    "--kits-from",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of sampled kits (such as raw/one_shots) to play on instead: real drums in drawn rooms. A kit plays in the split that "
    "kit_splits of one_shots names in configs/datasets.yaml; takes of a split without kit are left out.",
)
@click.option("--seed", type=int, default=7, show_default=True)
def groove_command(session: Session, minutes: float, kits: int, renders: int, kits_from: Path | None, seed: int) -> int:
    from beatsight_assets.render.stage import RenderOptions, run

    folder = None if kits_from is None else str(kits_from.absolute())
    options = RenderOptions(source_set="groove_rendered", seed=seed, minutes=minutes, kits=kits, renders=renders, kits_from=folder)
    return finish(session, run(session.settings, options, progress=session.progress))
