"""`beatsight bundle`: training clips cut from the audio of a manifest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beatsight_assets.cli.common import Session, command, emit, finish, manifest_path
from beatsight_assets.errors import ConfigError
from beatsight_assets.verdict import shown

if TYPE_CHECKING:
    from beatsight_assets.bundle.summary import Section

CONTENT = (
    "layout",
    "sample_rate",
    "context",
    "pre_ms",
    "post_ms",
    "channel",
    "view",
    "limit",
    "seed",
    "val_ratio",
    "shards",
    "part_clips",
    "synthetic",
    "include_sources",
    "exclude_sources",
    "include_labels",
    "exclude_labels",
)


def _content_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that decide what a bundle holds; what is not given comes from the plan of the bundle, else from the defaults."""
    for option in (
        click.option("--layout", help="shards (parts of 4,096 clips) or wav (one file per clip).  [default: shards]"),
        click.option("--sample-rate", type=int, help="Of the clips, in Hz.  [default: 44100]"),
        click.option("--context", help="fixed: pre and post for every clip; event: the window of each source.  [default: fixed]"),
        click.option("--pre-ms", type=float, help="Before the onset.  [default: 80]"),
        click.option("--post-ms", type=float, help="After the onset.  [default: 200]"),
        click.option("--channel", help="mean, or the number of one channel.  [default: mean]"),
        click.option("--view", help="Classes of the taxonomy.  [default: drums18]"),
        click.option("--limit", type=int, help="At most so many clips, sampled over all sources by --seed."),
        click.option("--seed", type=int, help="Of --limit.  [default: 0]"),
        click.option("--val-ratio", type=float, help="Share of validation where no split table exists yet.  [default: 0.1]"),
        click.option("--shards", type=int, help="[default: 16, more for more than two million events]"),
        click.option("--part-clips", type=int, help="Clips per part.  [default: 4096]"),
        click.option("--synthetic", help="all, only or none of the rendered audio.  [default: all]"),
        click.option("--include-sources", multiple=True, metavar="SOURCE", help="Only these datasets; repeat it."),
        click.option("--exclude-sources", multiple=True, metavar="SOURCE"),
        click.option("--include-labels", multiple=True, metavar="LABEL", help="Only events with one of these; repeat it."),
        click.option("--exclude-labels", multiple=True, metavar="LABEL"),
    ):
        function = option(function)
    return function


def audio_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the audio lies, and how much of it may be missing."""
    for option in (
        click.option("--audio-root", metavar="DIR", help="Holds the raw folders of the datasets.  [default: raw/]"),
        click.option("--audio-root-map", multiple=True, metavar="SOURCE=DIR", help="Where one dataset lies; repeat it for fallback roots."),
        click.option("--max-missing", type=click.IntRange(min=0), default=0, show_default=True, help="Clips without audio to tolerate."),
    ):
        function = option(function)
    return function


def _style_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--force-rich", is_flag=True, help="Drawn tables and one moving line of progress, also off a terminal."),
        click.option("--disable-rich", is_flag=True, help="Plain lines, also on a terminal."),
    ):
        function = option(function)
    return function


def _given(session: Session, options: dict[str, Any]) -> dict[str, Any]:
    """Content options that stand on the command line."""
    given = {k: options[k] for k in CONTENT if options.get(k) not in (None, ())}
    for key in ("include_sources", "exclude_sources"):
        if key in given:
            given[key] = tuple(session.settings.dataset(name)[0] for name in given[key])
    return given


@command("export", help="Cut the clips of MANIFEST (default: annotated) into bundles/NAME. Killed? Repeat it with --resume.")
@click.argument("name")
@click.argument("manifest", required=False)
@click.option("--resume", is_flag=True, help="Go on with a bundle; what is gone or damaged is made again.")
@click.option("--overwrite", is_flag=True, help="Build it anew beside the old one, which stays readable to the end.")
@click.option("--verify-only", is_flag=True, help="Cut nothing; say what would be cut and what is missing.")
@click.option("--manifest-total", type=click.IntRange(min=1), help="Expected number of events, for the progress line.")
@click.option("--summary-json", type=click.Path(path_type=Path), help="Also write the report there, as --json prints it.")
@click.option("--expected-duration-csv", type=click.Path(path_type=Path), help="Also write seconds per source there.")
@click.option("--write-workers", type=click.IntRange(1, 256), help="The same as --workers.")
@_style_options
@audio_options
@_content_options
def export_command(
    session: Session,
    name: str,
    manifest: str | None,
    resume: bool,
    overwrite: bool,
    verify_only: bool,
    manifest_total: int | None,
    summary_json: Path | None,
    expected_duration_csv: Path | None,
    write_workers: int | None,
    force_rich: bool,
    disable_rich: bool,
    audio_root: str | None,
    audio_root_map: tuple[str, ...],
    max_missing: int,
    **content: Any,
) -> int:
    from beatsight_assets.bundle import summary, verify
    from beatsight_assets.bundle.export import BundleRequest, run
    from beatsight_assets.cli.common import text_of

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other. Give one of them", code="bad-option")
    is_rich = _is_rich(force_rich, disable_rich)
    session = replace(session if write_workers is None else session.with_workers(write_workers), live=is_rich)
    request = BundleRequest(
        name=name,
        manifest=manifest_path(session.settings, manifest) if manifest else None,
        content=_given(session, content),
        mode="resume" if resume else "overwrite" if overwrite else "new",
        audio_root=audio_root,
        audio_root_maps=audio_root_map,
        max_missing=max_missing,
        manifest_total=manifest_total,
    )
    if verify_only:
        return _verify(session, request, "header", summary_json, expected_duration_csv, is_rich)
    targets = [session.settings.user_output(p) if p else None for p in (summary_json, expected_duration_csv)]
    report = run(session.settings, request, progress=session.progress)
    payload = report.to_json() | {"reused": report.reused}
    verify.write_user_files(targets[0], payload, targets[1], verify.durations_of(report))
    _emit_tables(session, payload, summary.of_export(report.figures, report.facts), text_of(replace(report, figures={})), is_rich)
    return 0 if report.passed else 1


def _is_rich(force: bool, disable: bool) -> bool:
    """Whether tables are drawn and progress is one line: on a terminal, unless the user says otherwise."""
    if force and disable:
        raise ConfigError("--force-rich and --disable-rich exclude each other. Give one of them", code="bad-option")
    return force or (sys.stdout.isatty() and not disable)


def _emit_tables(session: Session, payload: Any, sections: Sequence[Section], words: str, is_rich: bool) -> None:
    """Tables, drawn or plain, and words below them; the log is always plain."""
    from beatsight_assets.bundle.summary import cell, plain

    def draw() -> None:
        from rich.console import Console
        from rich.table import Table

        console = Console(force_terminal=True, highlight=False)
        for title, table in sections:
            drawn = Table(title=title, title_justify="left", show_header=any(table.columns))
            for n, column in enumerate(table.columns):
                drawn.add_column(column, justify="right" if n else "left", overflow="fold")
            for row in table.rows:
                drawn.add_row(*(cell(value) for value in row))
            if table.rows:
                console.print(drawn)
        console.print(words, markup=False)

    if session.live and not session.quiet:
        click.echo("", err=True)  # below the line of progress
    emit(session, payload, "\n".join(filter(None, [plain(sections), words])), draw if is_rich else None)


@command("verify", help="What an export of MANIFEST (default: annotated) would cut, and what is missing. Writes nothing.")
@click.argument("manifest", required=False)
@click.option(
    "--probe", type=click.Choice(("none", "header", "decode")), default="header", show_default=True, help="How far each file is opened."
)
@click.option("--manifest-total", type=click.IntRange(min=1), help="Expected number of events, for the progress line.")
@click.option("--summary-json", type=click.Path(path_type=Path), help="Write the report there.")
@click.option("--expected-duration-csv", type=click.Path(path_type=Path), help="Write seconds per source there.")
@_style_options
@audio_options
@_content_options
def verify_command(
    session: Session,
    manifest: str | None,
    probe: str,
    manifest_total: int | None,
    summary_json: Path | None,
    expected_duration_csv: Path | None,
    force_rich: bool,
    disable_rich: bool,
    audio_root: str | None,
    audio_root_map: tuple[str, ...],
    max_missing: int,
    **content: Any,
) -> int:
    from beatsight_assets.bundle.export import BundleRequest

    is_rich = _is_rich(force_rich, disable_rich)
    request = BundleRequest(
        name="verify",
        manifest=manifest_path(session.settings, manifest) if manifest else None,
        content=_given(session, content),
        audio_root=audio_root,
        audio_root_maps=audio_root_map,
        max_missing=max_missing,
        manifest_total=manifest_total,
    )
    return _verify(replace(session, live=is_rich), request, probe, summary_json, expected_duration_csv, is_rich)


def _verify(session: Session, request: Any, probe: str, summary_json: Path | None, durations_csv: Path | None, is_rich: bool) -> int:
    from beatsight_assets.bundle import verify

    targets = [session.settings.user_output(p) if p else None for p in (summary_json, durations_csv)]
    found = verify.verify(session.settings, request, probe=probe, progress=session.progress)
    verify.write_user_files(targets[0], found.to_json(), targets[1], found.durations())
    _emit_tables(session, found.to_json(), found.sections(), "", is_rich)
    return 0 if found.passed(request.max_missing) else 1


@command("plan", help="Which clips NAME would hold, and how much room they take; the files of the plan are kept for the export.")
@click.argument("name", required=False)
@click.argument("manifest", required=False)
@click.option("--estimate", is_flag=True, help="Only print sizes; write nothing. NAME may be left out.")
@audio_options
@_content_options
def plan_command(
    session: Session,
    name: str | None,
    manifest: str | None,
    estimate: bool,
    audio_root: str | None,
    audio_root_map: tuple[str, ...],
    max_missing: int,
    **content: Any,
) -> int:
    from beatsight_assets.bundle import verify
    from beatsight_assets.bundle.export import BundleRequest

    if name is None and not estimate:
        raise ConfigError("name the bundle to plan, or give --estimate", code="missing-argument")
    request = BundleRequest(
        name=name or "estimate",
        manifest=manifest_path(session.settings, manifest) if manifest else None,
        content=_given(session, content),
        mode="resume" if name is not None and session.settings.layout.bundle(name).exists() else "new",
        audio_root=audio_root,
        audio_root_maps=audio_root_map,
        max_missing=max_missing,
    )
    if estimate:
        found = verify.verify(session.settings, request, probe="none", progress=session.progress)
        sizes = verify.estimate(session.settings, found, request.content.get("sample_rate", 44_100))
        lines = [f"{k:<20} {v:>18,}" for k, v in sizes.items()]
        needed = sizes[f"bytes_{found.layout}"]
        if sizes["bytes_free"] < verify.SPACE_ADVISED * needed:
            lines.append(f"notice: less than {verify.SPACE_ADVISED:g} times the {needed:,} bytes of the clips are free")
        emit(session, sizes, "\n".join(lines))
        return 0
    return finish(session, verify.run(session.settings, request, progress=session.progress))


@command("smoke", help="Export a limited bundle of MANIFEST, check it, judge it, say how long the whole would take, and remove it.")
@click.argument("manifest", required=False)
@click.option("--limit", type=click.IntRange(min=1), help="Clips.  [default: EXPORT_LIMIT or 50000]")
@click.option("--keep", is_flag=True, help="Keep the bundle.  [also: KEEP_SMOKE_OUTPUT=1]")
@audio_options
def smoke_command(
    session: Session,
    manifest: str | None,
    limit: int | None,
    keep: bool,
    audio_root: str | None,
    audio_root_map: tuple[str, ...],
    max_missing: int,
) -> int:
    from beatsight_assets.checklist import smoke

    options = smoke.SmokeOptions(
        manifest=manifest_path(session.settings, manifest) if manifest else None,
        limit=limit,
        keep=keep,
        audio_root=audio_root,
        audio_root_maps=audio_root_map,
        max_missing=max_missing,
    )
    return finish(session, smoke.run(session.settings, options, progress=session.progress))


@command("check", help="Is every byte of a bundle what it was sealed with? Names shard, part and clip of a flip.")
@click.argument("name")
@click.option("--fast", is_flag=True, help="Trust files whose size and time did not change.")
@click.option("--against-manifest", is_flag=True, help="Totals against the events of the manifest.")
def check_command(session: Session, name: str, fast: bool, against_manifest: bool) -> int:
    from beatsight_assets.bundle import check

    if against_manifest:
        totals = check.against_manifest(session.settings, name)
        lines = []
        for key, value in totals.items():
            counts = value if isinstance(value, dict) else {}
            lines += [f"{key:<28} {value:>14,}"] if isinstance(value, int) else [key] if counts else []
            lines += [f"  {name:<26} {n:>14,}" for name, n in counts.items()]
        emit(session, totals, "\n".join([*lines, *totals["problems"]]))
        return 1 if totals["problems"] else 0
    report = check.run(session.settings, check.CheckOptions(name, fast=fast), progress=session.progress)
    return finish(session, report)


@command("heal-list", help="Planned events without a clip, as JSON lines.")
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def heal_list_command(session: Session, name: str, output: Path) -> int:
    from beatsight_assets.bundle import check
    from beatsight_assets.store import Store

    target = session.settings.user_output(output)
    rows, problems = check.heal_list(session.settings, name)
    Store(target.parent, remember=False).publish(target, rows.write_ndjson().encode())
    emit(session, {"rows": rows.height, "problems": problems, "output": str(output)}, f"{rows.height:,} events without a clip -> {output}")
    return 1 if problems else 0


CONVERT_HELP = """A bundle in the form of another tool, below bundles/NAME/interchange; read back before it counts.

NAME may be a manifest (annotated, merged, or a .parquet or .jsonl file) where the form holds no samples: midi, audacity, svl, mirdata-index,
jsonl; then it is written below manifest/interchange."""


@command("convert", help=CONVERT_HELP)
@click.argument("name")
@click.option("--to", "kind", required=True, help="webdataset, hf-parquet, croissant, midi, jsonl, ...; a wrong name lists all.")
def convert_command(session: Session, name: str, kind: str) -> int:
    from beatsight_assets.interchange import stage

    settings = session.settings
    is_file = name.endswith((".parquet", ".jsonl")) or (name in ("annotated", "merged") and not settings.layout.bundle(name).is_dir())
    source = manifest_path(settings, name) if is_file else name
    return finish(session, stage.run(settings, stage.InterchangeOptions(source, kind), progress=session.progress))


@command("list", help="Bundles: clips, size, whether they are whole, and who needs them.")
def list_command(session: Session) -> int:
    from beatsight_assets.bundle import check

    rows = check.list_bundles(session.settings)
    lines = [
        f"{r['name']:<24} {r['state']:<11} {r['clips']:>12,} clips {r['bytes'] / 1e9:>9.3f} GB  {'needed by ' + r['needed_by'] if r['needed_by'] else ''}"
        for r in rows
    ]
    emit(session, {"bundles": rows}, "\n".join(lines) or "no bundle")
    return 0


@command("remove", help="Delete a bundle. Without --apply it only says what would go.")
@click.argument("name")
@click.option("--apply", is_flag=True, help="Really delete it.")
def remove_command(session: Session, name: str, apply: bool) -> int:
    from beatsight_assets.bundle import check

    found = check.remove(session.settings, name, apply=apply)
    text = f"{'deleted' if apply else 'would delete'} {name}: {found['files']:,} files, {shown(found['bytes'] / 1e9)} GB"
    emit(session, found, text + ("" if apply else ". Repeat with --apply"))
    return 0


@command("archive", help="Keep what a bundle was, without its samples: reports/archive/DATE/NAME.")
@click.argument("name")
@click.option("--date", required=True, metavar="YYYYMMDD")
def archive_command(session: Session, name: str, date: str) -> int:
    from beatsight_assets.bundle import check

    found = check.archive(session.settings, name, date)
    emit(session, found, f"{len(found['files'])} files -> {found['folder']}")
    return 0
