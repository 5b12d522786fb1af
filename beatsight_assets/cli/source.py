"""`beatsight source`: datasets, their recordings, and reading them into events."""

from __future__ import annotations

from pathlib import Path

import click

from beatsight_assets.cli.common import Session, command, emit, finish, manifest_target, write_manifest
from beatsight_assets.errors import BeatSightError, ConfigError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Report

FILE = click.Path(path_type=Path)


@command("list", help="Datasets the platform knows and which of them are present.")
def list_command(session: Session) -> int:
    from beatsight_assets.sources import find_roots, source_module
    from beatsight_assets.stages import read_receipt

    rows = []
    for source_set, config in session.settings.datasets.items():
        roots = find_roots(session.settings, source_set)
        receipt = read_receipt(session.settings, "events", source_set)
        rows.append(
            {
                "source_set": source_set,
                "short": config.short,
                "enabled": config.enabled,
                "present": bool(roots),
                "events": receipt.figures["events"] if receipt else None,
                "licence": source_module(config.module).SOURCE.licence,
                "raw": [session.settings.store.rel(r) for r in roots or session.settings.raw_roots(source_set)],
            }
        )
    lines = [f"{'dataset':<29}{'short':<17}{'raw data':<10}{'events':>10}  licence"]
    lines += [
        f"{r['source_set']:<29}{r['short']:<17}{'present' if r['present'] else 'absent':<10}{'-' if r['events'] is None else format(r['events'], ','):>10}  {r['licence']}"
        for r in rows
    ]
    emit(session, {"datasets": rows}, "\n".join(lines))
    return 0


@command("scan", help="Recordings and files of one dataset, without writing anything.")
@click.argument("name")
@click.option(
    "--root", "roots", multiple=True, type=click.Path(path_type=Path), help="Look into this folder instead of the configured ones."
)
def scan_command(session: Session, name: str, roots: tuple[Path, ...]) -> int:
    from beatsight_assets.sources import scan

    settings = _with_roots(session.settings, (name,), roots)
    payload = scan(settings, name)
    lines = [
        f"{payload['source_set']}: {payload['recordings']:,} recordings, {payload['files']:,} files below {payload['roots']} root(s)",
        *(f"  out of scope, {reason}: {n:,}" for reason, n in payload["out_of_scope"].items()),
        f"  listed but refused or absent: {len(payload['refused']):,}",
        *(f"    {r['code']:<20} {r['path']}" for r in payload["refused"][:10]),
        *([payload["note"]] if payload["note"] else []),
    ]
    emit(session, payload, "\n".join(lines))
    return 0 if payload["recordings"] else 1


@command("ingest", help="Read a dataset into events, provenance and quarantine; unchanged datasets are skipped.")
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every enabled dataset whose raw folder is there.")
@click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Read from this folder instead of the configured ones; repeat it for parts of a dataset, or for where its audio lies.",
)
@click.option("--inventory-only", is_flag=True, help="Of a multitrack archive write reports/ingest/<name>_inventory.jsonl and no events.")
@click.option(
    *("--limit", "--max-files", "--max-sessions", "--max-tracks"),
    "limit",
    type=click.IntRange(min=1),
    help="Only N recordings, of an inventory N sessions, chosen by --seed: for a look, not for training.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of --limit.")
@click.option("--no-hash-audio", is_flag=True, help="Know audio by size and time of change: its sha256 in provenance stays empty.")
@click.option("--output-events", type=click.Path(path_type=Path), help="Also write the events there, as .parquet or .jsonl.")
@click.option("--output-provenance", type=click.Path(path_type=Path), help="Also write the provenance there, one JSON object per line.")
@click.option("--license-ref", metavar="TEXT", help="Licence to note in provenance instead of the dataset's own.")
@click.option("--techniques-file", type=FILE, help="Technique catalogue (YAML, JSON, text) instead of the configured one.")
@click.option("--ingestion-version", metavar="TEXT", help="Your name for this reading: noted in provenance behind the version of the code.")
def ingest_command(
    session: Session,
    names: tuple[str, ...],
    every: bool,
    roots: tuple[Path, ...],
    inventory_only: bool,
    limit: int | None,
    seed: int,
    no_hash_audio: bool,
    output_events: Path | None,
    output_provenance: Path | None,
    license_ref: str | None,
    techniques_file: Path | None,
    ingestion_version: str | None,
) -> int:
    from beatsight_assets.manifest.techniques import read_names
    from beatsight_assets.sources import find_root, ingest, take_inventory

    settings = session.settings
    if every:
        names = tuple(n for n, c in settings.datasets.items() if c.enabled and find_root(settings, n) is not None)
    if not names:
        raise ConfigError(
            "name a dataset, or give --all with at least one raw folder present. See: beatsight source list", code="no-dataset"
        )
    settings = _with_roots(settings, names, roots)
    technique_names = read_names(techniques_file) if techniques_file else None
    if (output_events or output_provenance) and len(names) != 1:
        raise ConfigError("--output-events and --output-provenance go with exactly one dataset", code="bad-option")
    targets = (output_events and manifest_target(session, output_events), output_provenance and settings.user_output(output_provenance))

    def step(name: str) -> Report:
        if inventory_only:
            return take_inventory(settings, name, limit=limit, seed=seed, hash_audio=not no_hash_audio, progress=session.progress)
        return ingest(
            settings,
            name,
            limit=limit,
            seed=seed,
            hash_audio=not no_hash_audio,
            license_ref=license_ref,
            ingestion_version=ingestion_version,
            technique_names=technique_names,
            progress=session.progress,
        )

    reports: list[Report] = []
    failed: dict[str, BeatSightError] = {}
    for name in [settings.dataset(n)[0] for n in names]:
        try:
            reports.append(step(name))
        except BeatSightError as error:
            if len(names) == 1:
                raise
            failed[name] = error  # one dataset that is empty or away does not stop the others
    if not inventory_only:
        _write_copies(session, settings.dataset(names[0])[0], *targets)
    return finish(session, *reports, failed=failed)


def _write_copies(session: Session, source_set: str, events_target: Path | None, provenance_target: Path | None) -> None:
    """What was just ingested, where and in the form the user wants it."""
    from beatsight_assets import store
    from beatsight_assets.events import read_events

    layout = session.settings.layout
    if events_target is not None:
        write_manifest(session, events_target, read_events(layout.events(source_set)))
    if provenance_target is not None:
        import json

        import polars as pl

        rows = pl.read_parquet(layout.provenance(source_set)).drop("content_key").to_dicts()
        lines = (store.to_json_bytes(r | {k: json.loads(r[k]) for k in ("facts", "issues")}, indent=None) for r in rows)
        store.Store(provenance_target.parent, remember=False).publish(provenance_target, b"".join(lines))


def _with_roots(settings: Settings, names: tuple[str, ...], roots: tuple[Path, ...]) -> Settings:
    """Settings in which one dataset lies elsewhere."""
    if not roots:
        return settings
    if len(names) != 1:
        raise ConfigError("--root goes with exactly one dataset", code="bad-option")
    source_set, config = settings.dataset(names[0])
    elsewhere = config.model_copy(update={"roots": tuple(str(r.absolute()) for r in roots)})
    return settings.with_datasets(settings.datasets | {source_set: elsewhere})
