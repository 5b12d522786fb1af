"""`beatsight source`: datasets, their recordings, and reading them into events."""

from __future__ import annotations

from pathlib import Path

import click

from beatsight_assets.cli.common import Session, command, emit, finish
from beatsight_assets.errors import ConfigError


@command("list", help="Datasets the platform knows and which of them are present.")
def list_command(session: Session) -> int:
    from beatsight_assets.sources import find_root, source_module
    from beatsight_assets.stages import read_receipt

    rows = []
    for source_set, config in session.settings.datasets.items():
        root = find_root(session.settings, source_set)
        receipt = read_receipt(session.settings, "events", source_set)
        rows.append(
            {
                "source_set": source_set,
                "short": config.short,
                "enabled": config.enabled,
                "present": root is not None,
                "events": receipt.figures["events"] if receipt else None,
                "licence": source_module(config.module).SOURCE.licence,
                "raw": session.settings.store.rel(root) if root else f"raw/{config.raw_folder}",
            }
        )
    lines = [f"{'dataset':<22}{'short':<10}{'raw data':<10}{'events':>10}  licence"]
    lines += [
        f"{r['source_set']:<22}{r['short']:<10}{'present' if r['present'] else 'absent':<10}{'-' if r['events'] is None else format(r['events'], ','):>10}  {r['licence']}"
        for r in rows
    ]
    emit(session, {"datasets": rows}, "\n".join(lines))
    return 0


@command("scan", help="Recordings and files of one dataset, without writing anything.")
@click.argument("name")
def scan_command(session: Session, name: str) -> int:
    from beatsight_assets.sources import Recording, Rejected, candidate_files, find_root, module_options, source_module

    source_set, config = session.settings.dataset(name)
    root = find_root(session.settings, source_set)
    if root is None:
        raise ConfigError(f"{source_set} has no raw folder at {session.settings.raw_roots(source_set)[0]}", code="missing-root")
    module = source_module(config.module)
    found = list(module.scan(root, module_options(session.settings, source_set)))
    recordings = [f for f in found if isinstance(f, Recording)]
    refused = [f for f in found if isinstance(f, Rejected)]
    files, escaped = candidate_files(root, module.SOURCE.suffixes)
    refused += escaped
    payload = {
        "source_set": source_set,
        "recordings": len(recordings),
        "files": len(files),
        "refused": [{"path": r.path, "code": r.code} for r in refused],
    }
    text = f"{source_set}: {len(recordings):,} recordings, {len(files):,} files, {len(refused):,} listed but refused or absent"
    emit(session, payload, text)
    return 0 if recordings else 1


@command("ingest", help="Read a dataset into events, provenance and quarantine; unchanged datasets are skipped.")
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every enabled dataset whose raw folder is there.")
@click.option(
    "--root", "roots", multiple=True, type=click.Path(path_type=Path), help="Read from this folder instead of the configured one."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N recordings: for a look, not for training.")
def ingest_command(session: Session, names: tuple[str, ...], every: bool, roots: tuple[Path, ...], limit: int | None) -> int:
    from dataclasses import replace

    from beatsight_assets.sources import find_root, ingest

    settings = session.settings
    if every:
        names = tuple(n for n, c in settings.datasets.items() if c.enabled and find_root(settings, n) is not None)
    if not names:
        raise ConfigError(
            "name a dataset, or give --all with at least one raw folder present. See: beatsight source list", code="no-dataset"
        )
    if roots:
        if len(names) != 1:
            raise ConfigError("--root goes with exactly one dataset", code="bad-option")
        source_set, config = settings.dataset(names[0])
        settings = replace(settings)
        settings.__dict__["datasets"] = settings.datasets | {
            source_set: config.model_copy(update={"roots": tuple(str(r.absolute()) for r in roots)})
        }
    return finish(session, *(ingest(settings, name, limit=limit, progress=session.progress) for name in names))
