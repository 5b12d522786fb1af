"""`beatsight tracking`: the logs of runs elsewhere."""

from __future__ import annotations

import click

from beatsight_assets.cli.common import Session, command, emit
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.tracking import MODES


@command("sync", help="Bring the logs of RUNS to Weights & Biases, each once; a log that grew goes on in its run.")
@click.argument("runs", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every run that keeps a log.")
@click.option("--dry-run", is_flag=True, help="Only say which runs wait.")
@click.option("--wandb-project", default="beatsight", show_default=True)
@click.option("--wandb-entity", help="Team or user.  [default: that of the login]")
@click.option("--wandb-group", envvar="WANDB_RUN_GROUP", help="[env WANDB_RUN_GROUP]")
@click.option("--wandb-tags", multiple=True, metavar="TAG", help="Repeat it.")
@click.option(
    "--wandb-mode",
    type=click.Choice(MODES),
    default="online",
    show_default=True,
    help="offline: files in runs/RUN/wandb, for `wandb sync` elsewhere.",
)
def sync_command(
    session: Session,
    runs: tuple[str, ...],
    every: bool,
    dry_run: bool,
    wandb_project: str,
    wandb_entity: str | None,
    wandb_group: str | None,
    wandb_tags: tuple[str, ...],
    wandb_mode: str,
) -> int:
    from beatsight_assets import tracking

    layout = session.settings.layout
    if bool(runs) == every:
        raise ConfigError("name runs, or give --all", code="missing-argument")
    folders = {name: layout.run_dir(name) for name in runs} if runs else layout.logged_runs
    for name, folder in folders.items():
        if not folder.is_dir():
            raise InputError(f"there is no run {name}", code="missing-input", where=layout.rel(folder))
    target = tracking.Upload(wandb_project, wandb_entity, wandb_group, wandb_tags, wandb_mode)
    found = tracking.sync(session.settings.store, folders, target, dry_run=dry_run)
    lines = [f"{row['status']:<10} {row['run']:<40} {row['rows']:>6,} rows  {row['message']}".rstrip() for row in found]
    emit(session, {"runs": found}, "\n".join(lines or ["no run keeps a log"]))
    return 1 if any(row["status"] == "failed" for row in found) else 0
