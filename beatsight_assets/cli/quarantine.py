"""`beatsight quarantine`: which files were refused, and why."""

from __future__ import annotations

from typing import Any

import click

from beatsight_assets.cli.common import Session, command, emit


def _rows(session: Session) -> list[dict[str, Any]]:
    import polars as pl

    return [row for path in session.settings.layout.quarantine_tables for row in pl.read_parquet(path).to_dicts()]


@command("list", help="One row per refused file of every dataset.")
@click.option("--stage", help="Only rows of this stage.")
@click.option("--code", help="Only rows with this code, such as truncated-midi.")
def list_command(session: Session, stage: str | None, code: str | None) -> int:
    rows = [r for r in _rows(session) if stage in (None, r["stage"]) and code in (None, r["code"])]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["code"]] = counts.get(row["code"], 0) + 1
    lines = [f"{r['source_set']:<22}{r['code']:<20}{r['path']}" for r in rows]
    lines.append(f"{len(rows):,} refused or absent files" + "".join(f", {c} {n:,}" for c, n in sorted(counts.items())))
    emit(session, {"rows": rows, "counts": counts}, "\n".join(lines))
    return 0


@command("show", help="Why one file was refused.")
@click.argument("source")
@click.argument("path")
def show_command(session: Session, source: str, path: str) -> int:
    source_set, _ = session.settings.dataset(source)
    found = [r for r in _rows(session) if r["source_set"] == source_set and r["path"] == path]
    text = "\n".join(f"{k:<10} {v}" for r in found for k, v in r.items()) or f"{path} of {source_set} is not in quarantine"
    emit(session, {"rows": found}, text)
    return 0 if found else 1
