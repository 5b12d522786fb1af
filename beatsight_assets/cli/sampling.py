"""`beatsight sampling`: how often each group is drawn in training."""

from __future__ import annotations

from typing import Any

import click

from beatsight_assets.cli.common import Session, command, finish


@command("derive", help="Weights per group of the annotated manifest; options override the profile of configs/sampling.yaml.")
@click.option("--profile-name", help="Profile of configs/sampling.yaml.  [default: its `default`]")
@click.option("--exponent", type=float)
@click.option("--smoothing", type=float)
@click.option("--min-count", type=int)
@click.option("--max-per-group", type=int)
@click.option("--min-weight", type=float)
@click.option("--max-weight", type=float)
def derive_command(session: Session, profile_name: str | None, **overrides: Any) -> int:
    from beatsight_assets.sampling import SamplingOptions, run

    given = {k: v for k, v in overrides.items() if v is not None}
    return finish(session, run(session.settings, SamplingOptions(profile=profile_name, overrides=given), progress=session.progress))
