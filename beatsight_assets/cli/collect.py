"""`beatsight collect`: own samples, marked by hand or taken over from beatmaps."""

from __future__ import annotations

import re
from dataclasses import asdict
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from beatsight_assets.cli.common import Session, command, emit
from beatsight_assets.errors import ConfigError

if TYPE_CHECKING:
    from beatsight_assets.sources.collected import Collected

BEATMAP_SUFFIXES = (".bsm", ".bs")


@command("add", help="Add one hit: LABEL (component or alias) at TIME seconds of AUDIO. Adding the same instant twice changes nothing.")
@click.argument("audio", type=click.Path(path_type=Path))
@click.argument("time")
@click.argument("label")
@click.option("--dry-run", is_flag=True, help="Check, write nothing.")
def add_command(session: Session, audio: Path, time: str, label: str, dry_run: bool) -> int:
    from beatsight_assets.sources.collected import add

    if not re.fullmatch(r"\d{1,6}(\.\d{1,18})?", time, re.ASCII):
        raise ConfigError(f"time {time!r:.40} is not a number of seconds, like 12.345", code="bad-option", where="TIME")
    onset_us = int((Decimal(time) * 1_000_000).to_integral_value(ROUND_HALF_UP))
    return _done(session, [(audio.name, add(session.settings, audio, onset_us, label, dry_run=dry_run))], dry_run)


@command("from-beatmap", help="Add the hits of beatmaps; the audio is the one each map names, beside it, or follows the map as AUDIO.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE.bsm [AUDIO] ...")
@click.option("--audio", type=click.Path(path_type=Path), help="Audio of the map; goes with one map.")
@click.option("--strict-hash", is_flag=True, help="Exit 1 when the audio is not the one that the map was made for; else that is a warning.")
@click.option("--dry-run", is_flag=True, help="Count, write nothing.")
def from_beatmap_command(session: Session, files: tuple[Path, ...], audio: Path | None, strict_hash: bool, dry_run: bool) -> int:
    from beatsight_assets.sources.collected import add_beatmap

    maps: list[tuple[Path, Path | None]] = []
    for path in files:
        if path.suffix.lower() in BEATMAP_SUFFIXES:
            maps.append((path, None))
        elif maps and maps[-1][1] is None:
            maps[-1] = (maps[-1][0], path)
        else:
            raise ConfigError(f"{path} is no .bsm file and follows none", code="bad-option", where="FILE")
    if audio is not None:
        if len(maps) != 1 or maps[0][1] is not None:
            raise ConfigError("--audio goes with exactly one beatmap and no AUDIO behind it", code="bad-option", where="--audio")
        maps = [(maps[0][0], audio)]
    found = [(path.name, add_beatmap(session.settings, path, sound, strict_hash=strict_hash, dry_run=dry_run)) for path, sound in maps]
    return _done(session, found, dry_run)


@command("stats", help="Collected hits by component against the minimum and the recommended number; exit 1 while a minimum is missed.")
def stats_command(session: Session) -> int:
    from beatsight_assets.sources.collected import stats

    wants = stats(session.settings)
    rows = [asdict(want) | {"missing": want.missing} for want in wants]
    lines = [f"{'component':<20}{'hits':>8}{'minimum':>10}{'recommended':>13}{'missing':>9}"]
    lines += [f"{w.label:<20}{w.count:>8,}{w.minimum:>10,}{w.recommended:>13,}{w.missing or '-':>9}" for w in wants]
    n_short = sum(w.missing > 0 for w in wants)
    lines.append(f"{n_short} of {len(wants)} components have less than their minimum" if n_short else "every component has its minimum")
    emit(session, {"components": rows, "below_minimum": n_short}, "\n".join(lines))
    return 1 if n_short else 0


@command("export", help="Cut every collected hit into bundles/NAME, one wav per clip; all hits of one audio go to one split.")
@click.argument("name")
@click.option("--resume", is_flag=True, help="Go on after a kill; what is gone or damaged is made again.")
@click.option("--overwrite", is_flag=True, help="Build it anew: more was collected since.")
def export_command(session: Session, name: str, resume: bool, overwrite: bool) -> int:
    from beatsight_assets.bundle.export import BundleRequest, run
    from beatsight_assets.cli.common import finish
    from beatsight_assets.errors import InputError
    from beatsight_assets.sources.collected import SOURCE_SET

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other. Give one of them", code="bad-option")
    manifest = session.settings.layout.events(SOURCE_SET)
    if not manifest.is_file():
        raise InputError(
            "nothing was collected yet. Run: beatsight collect add", code="missing-input", where=f"events/{SOURCE_SET}.parquet"
        )
    mode = "resume" if resume else "overwrite" if overwrite else "new"
    return finish(session, run(session.settings, BundleRequest(name, manifest, {"layout": "wav"}, mode), progress=session.progress))


def _done(session: Session, found: list[tuple[str, Collected]], dry_run: bool) -> int:
    """What was added, then the events of the collected samples, so that merge sees them; also after a run that was stopped in between."""
    from beatsight_assets.cli.common import text_of
    from beatsight_assets.sources import ingest
    from beatsight_assets.sources.collected import SOURCE_SET

    lines = []
    for name, result in found:
        lines.append(f"{name}: {result.n_added:,} added, {result.n_known:,} were there, {result.n_outside:,} outside the audio, "
                     f"{result.n_unknown:,} of unknown label -> {result.session_id}")  # fmt: skip
        lines += [f"  note: {warning}" for warning in result.warnings]
    payload: dict[str, object] = {"files": [{"file": name} | asdict(result) for name, result in found], "dry_run": dry_run}
    passed = True
    if dry_run:
        lines.append("nothing was written (dry run)")
    elif any((session.settings.raw_roots(SOURCE_SET)[0] / result.session_id).is_file() for _, result in found):
        report = ingest(session.settings, SOURCE_SET, progress=session.progress)
        payload["ingest"] = report.to_json()
        lines.append(text_of(report))
        passed = report.passed
    emit(session, payload, "\n".join(lines))
    return 0 if passed else 1
