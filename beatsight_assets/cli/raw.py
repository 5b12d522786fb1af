"""`beatsight raw`: is the raw data there, whole and unchanged."""

from __future__ import annotations

from pathlib import Path

import click

from beatsight_assets.cli.common import Session, command, emit, text_of
from beatsight_assets.errors import ConfigError


@command("checksums", help="Write the sha256 of every file below a folder (or of a dataset) as a checksum list.")
@click.argument("root")
@click.option("--output", type=click.Path(path_type=Path), help="File to write; for a dataset by default where `raw integrity` looks.")
@click.option("--update", is_flag=True, help="Read only files whose size or time of change is new.")
def checksums_command(session: Session, root: str, output: Path | None, update: bool) -> int:
    from beatsight_assets.manifest import integrity
    from beatsight_assets.sources import find_root

    settings = session.settings
    folder = Path(root)
    if not folder.is_dir():
        source_set, _ = settings.dataset(root)
        found = find_root(settings, source_set)
        if found is None:
            raise ConfigError(f"{source_set} has no raw folder at {settings.raw_roots(source_set)[0]}", code="missing-root")
        folder = found
        output = output or integrity.checksum_path(settings, source_set)
    if output is None:
        raise ConfigError("give --output FILE for a folder that is no dataset", code="bad-option")
    target = settings.user_output(output)
    done = integrity.write_checksums(settings, folder.absolute(), target, update=update)
    text = f"{done['files']:,} files, {done['bytes']:,} bytes -> {output}" + (f"; {done['read']:,} new or changed" if update else "")
    emit(session, done | {"output": str(output)}, text)
    return 0


@command("integrity", help="Are the raw folders there, and the files that the checksum lists name?")
@click.argument("names", nargs=-1)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="List of datasets to use instead of configs/datasets.yaml.")
@click.option("--verify-manifests", is_flag=True, help="Every listed file must be there.")
@click.option("--recompute-digests", is_flag=True, help="And have the listed digest; reads the files.")
@click.option("--max-checks", type=click.IntRange(min=1), help="Only so many files per dataset, the same for equal --seed.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--checksums", type=click.Path(path_type=Path), help="A checksum list, or an index of mirdata (.json), instead of the dataset's."
)
@click.option("--no-extra", is_flag=True, help="Files that the list does not name are a failure.")
def integrity_command(
    session: Session,
    names: tuple[str, ...],
    config_file: Path | None,
    verify_manifests: bool,
    recompute_digests: bool,
    max_checks: int | None,
    seed: int,
    checksums: Path | None,
    no_extra: bool,
) -> int:
    from beatsight_assets.manifest import integrity
    from beatsight_assets.safeyaml import read_yaml
    from beatsight_assets.settings import DatasetsFile, checked

    settings = session.settings
    if config_file is not None:
        settings = settings.with_datasets(checked(read_yaml(config_file, name=config_file.name), DatasetsFile).datasets)
    is_listed = verify_manifests or recompute_digests or checksums is not None
    reports = []
    for name in integrity.chosen_datasets(settings, names):
        options = integrity.IntegrityOptions(name, is_listed, recompute_digests, max_checks, seed, no_extra, checksums)
        reports.append(integrity.run(settings, options, progress=session.progress))
    payload = {"passed": all(r.passed for r in reports), "datasets": [r.to_json() for r in reports]}
    settings.store.publish_json(settings.layout.report("ingest", "integrity.json"), payload)
    emit(session, payload, "\n".join(text_of(r) for r in reports))
    return 0 if payload["passed"] else 1


@command("presence", help="Sessions, files and bytes per root; exit 1 when a root or a session is gone.")
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every dataset that was ingested here.")
def presence_command(session: Session, names: tuple[str, ...], every: bool) -> int:
    from beatsight_assets.manifest import integrity

    settings = session.settings
    chosen = [settings.dataset(n)[0] for n in names]
    if every:
        chosen += [n for n in settings.datasets if settings.layout.provenance(n).is_file() and n not in chosen]
    if not chosen:
        raise ConfigError("name a dataset, or give --all with at least one that was ingested", code="no-dataset")
    found = [integrity.presence(settings, name) for name in chosen]
    lines = []
    for one in found:
        lines.append(f"{one['source_set']}: {one['sessions']:,} sessions, {one['missing']:,} of them in no root")
        lines += [f"  root {r['root']}: {r['sessions']:,} sessions, {r['files']:,} files, {r['bytes']:,} bytes" for r in one["roots"]]
        lines += [f"  root {n}: not there" for n in one["absent_roots"]]
        lines += [f"  missing: {name}" for name in one["missing_sessions"]]
    emit(session, {"datasets": found}, "\n".join(lines))
    return 0 if all(one["complete"] for one in found) else 1
