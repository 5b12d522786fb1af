"""`beatsight events`: the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beatsight_assets.cli.common import (
    Session,
    command,
    emit,
    finish,
    manifest_path,
    manifest_target,
    other_target,
    read_manifest,
    verdict_lines,
    write_manifest,
)
from beatsight_assets.errors import ConfigError, InputError, NothingToDo

if TYPE_CHECKING:
    import polars as pl

    from beatsight_assets.taxonomy import Taxonomy

FILE = click.Path(path_type=Path)
OUTPUT_HELP = "File to write (.parquet or .jsonl), replaced whole; it may be an input."


def _taxonomy(session: Session, path: Path | None) -> Taxonomy:
    from beatsight_assets.taxonomy import Taxonomy

    if path is None:
        return Taxonomy.load(session.settings)
    if not path.is_file():
        raise InputError(f"{path} does not exist", code="missing-input", where="--taxonomy")
    return Taxonomy.at(path)


def _written(session: Session, target: Path | None, frame: pl.DataFrame, report: dict[str, Any]) -> dict[str, Any]:
    """The report with what was written; None: a dry run."""
    if target is None:
        return report | {"dry_run": True}
    receipt = write_manifest(session, target, frame)
    return report | {"output": {"path": str(target), "sha256": receipt.sha256, "rows": frame.height}}


def _where(target: Path | None) -> str:
    return "nothing was written (dry run)" if target is None else f"-> {target}"


@command("validate", help="Check a manifest (a name, or a .parquet or .jsonl file) against the schema.")
@click.argument("manifest")
@click.option("--techniques", "techniques_file", type=FILE, help="Technique catalogue (YAML, JSON, text) instead of the configured one.")
def validate_command(session: Session, manifest: str, techniques_file: Path | None) -> int:
    from beatsight_assets.manifest import techniques
    from beatsight_assets.manifest.validate import lines_of, validate

    names = techniques.read_names(techniques_file or session.settings.config_path("techniques"))
    _, frame = read_manifest(session, manifest)
    passed, report = validate(frame, session.settings, names)
    emit(session, report, "\n".join(lines_of(manifest, report)))
    return 0 if passed else 1


@command(
    "merge", help="Merge the events of all enabled datasets into manifest/merged.parquet, or the files named by --input into --output."
)
@click.option("--sources", help="Only these datasets, separated by commas.")
@click.option("--input", "inputs", multiple=True, help="A manifest (name or file); repeat it for each.")
@click.option("--output", type=FILE, help=OUTPUT_HELP)
@click.option("--validate", is_flag=True, help="Check the merged rows against the schema first; nothing is published when one breaks it.")
def merge_command(session: Session, sources: str | None, inputs: tuple[str, ...], output: Path | None, validate: bool) -> int:
    if not inputs:
        if output or validate:
            raise ConfigError("--output and --validate go with --input FILE", code="bad-option")
        from beatsight_assets.manifest.merge import MergeOptions, run

        names = tuple(session.settings.dataset(n.strip())[0] for n in sources.split(",")) if sources else None
        return finish(session, run(session.settings, MergeOptions(names), progress=session.progress))
    if output is None or sources:
        raise ConfigError("files are merged with --input FILE .. --output FILE, without --sources", code="bad-option")
    return _merge_files(session, inputs, manifest_target(session, output), validate)


def _merge_files(session: Session, inputs: tuple[str, ...], target: Path, validate: bool) -> int:
    from beatsight_assets import events
    from beatsight_assets.manifest.merge import conflict_message, merge_files
    from beatsight_assets.store import hash_file
    from beatsight_assets.taxonomy import Taxonomy

    paths = [manifest_path(session.settings, name) for name in inputs]
    result, tables = merge_files(paths)
    read = [{"path": str(p), "sha256": hash_file(p), "rows": n} for p, n in zip(paths, tables, strict=True)]
    report = {
        "inputs": read,
        "rows": result.frame.height,
        "collapsed": result.n_collapsed,
        "conflicts": [vars(c) for c in result.conflicts],
    }
    if result.conflicts:
        emit(session, report, f"id-conflict: {conflict_message(result.conflicts)}")
        return 1
    if validate:
        counts, violations = events.find_violations(result.frame, Taxonomy.load(session.settings))
        if broken := {rule: n for rule, n in counts.items() if n}:
            lines = [f"{sum(broken.values()):,} broken rules; nothing was published"]
            lines += [f"  row {v.row}: {v.field} is {v.value[:80]} ({v.rule})" for v in violations]
            emit(session, report | {"broken": broken, "problems": [vars(v) for v in violations]}, "\n".join(lines))
            return 1
    report = _written(session, target, result.frame, report)
    text = (
        f"{len(paths)} files, {sum(tables):,} rows - {result.n_collapsed:,} equal ones = {result.frame.height:,} events\n{_where(target)}"
    )
    emit(session, report, text)
    return 0


@command(
    "alias", help="Rename labels to their component; doubles within one event become one, the louder stays. A second run changes nothing."
)
@click.argument("manifest")
@click.option("--output", required=True, type=FILE, help=OUTPUT_HELP)
@click.option("--taxonomy", "taxonomy_file", type=FILE, help="Another taxonomy than the configured one.")
@click.option("--crash-mapping", type=FILE, help="File of crash-assign: which crash is `crash` and which `crash2`.")
@click.option("--max-unknown", type=click.IntRange(min=0), help="Exit 1 when more hits than this have an unknown label.")
@click.option("--dry-run", is_flag=True, help="Count, write nothing.")
def alias_command(
    session: Session,
    manifest: str,
    output: Path,
    taxonomy_file: Path | None,
    crash_mapping: Path | None,
    max_unknown: int | None,
    dry_run: bool,
) -> int:
    from beatsight_assets.manifest.aliases import with_canonical_labels
    from beatsight_assets.manifest.crash_mapping import read_mapping, with_crash_variants

    target = manifest_target(session, output)
    taxonomy = _taxonomy(session, taxonomy_file)
    crashes = read_mapping(crash_mapping) if crash_mapping else {}
    _, frame = read_manifest(session, manifest)
    changed, found = with_canonical_labels(frame, taxonomy)
    changed, n_crashes = with_crash_variants(changed, crashes)
    report = _written(session, None if dry_run else target, changed, found.to_json() | {"crashes_changed": n_crashes})
    n_unknown = sum(found.unknown.values())
    lines = [f"  {name} -> {to}: {n:,}" for name, where in found.relabelled.items() for to, n in where.items()]
    lines += [f"  unknown {name}: {n:,}" for name, n in found.unknown.items()]
    head = f"{sum(n for to in found.relabelled.values() for n in to.values()):,} hits renamed, {found.merged_duplicates:,} doubles merged, "
    lines += [f"  crashes changed by the mapping: {n_crashes:,}"] if crash_mapping else []
    emit(session, report, "\n".join([f"{head}{n_unknown:,} unknown", *lines, _where(None if dry_run else target)]))
    return 1 if max_unknown is not None and n_unknown > max_unknown else 0


@command("openness", help="Openness of closed and open hats (1 = fully open) from `openness_raw` and the curve of the device.")
@click.argument("manifest")
@click.option("--output", type=FILE, help=OUTPUT_HELP)
@click.option("--curves", "curves_file", type=FILE, help="Calibration file; each curve states raw_up_closes or raw_up_opens.")
@click.option("--device", help="Vendor/model of every event, such as Roland/TD-11; without it each event says so itself.")
@click.option("--dry-run", is_flag=True, help="Count, write nothing.")
def openness_command(
    session: Session, manifest: str, output: Path | None, curves_file: Path | None, device: str | None, dry_run: bool
) -> int:
    from beatsight_assets.manifest.openness import TD11_CURVE, measure_openness, read_curves, with_openness

    if output is None and not dry_run:
        raise ConfigError("give --output FILE or --dry-run", code="bad-option")
    target = None if dry_run or output is None else manifest_target(session, output)
    curves = {TD11_CURVE.device: TD11_CURVE} | (read_curves(curves_file) if curves_file else {})
    _, frame = read_manifest(session, manifest)
    changed, found = with_openness(frame, curves, device=device)
    figures = measure_openness(changed)
    report = _written(session, target, changed, found.to_json() | {"figures": vars(figures)})
    lines = [f"{found.changed:,} of {found.n_hats:,} hats got another openness"]
    lines += [f"  {curve}: {n:,} hits" for curve, n in found.by_curve.items()]
    lines += [f"  untouched: {found.without_raw:,} without a raw value, {found.without_curve:,} without a curve"]
    lines += [f"  median closed {_shown(figures.closed_median)}, open {_shown(figures.open_median)}", _where(target)]
    emit(session, report, "\n".join(lines))
    return 0


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@command("annotate", help="Canonical labels, openness and techniques: of the merged table (manifest/annotated.parquet), or of MANIFEST.")
@click.argument("manifest", required=False)
@click.option("--output", type=FILE, help=OUTPUT_HELP)
@click.option("--in-place", is_flag=True, help="Replace MANIFEST itself; rows of older tools are brought into today's shape.")
@click.option("--recompute", is_flag=True, help="Remove inferred techniques first.")
@click.option("--dry-run", is_flag=True, help="Count, write nothing.")
@click.option("--taxonomy", "taxonomy_file", type=FILE, help="Another taxonomy than the configured one.")
@click.option("--techniques-file", type=FILE, help="Technique catalogue (YAML, JSON, text) instead of the configured one.")
@click.option(
    "--crash-mapping", type=FILE, help="File of crash-assign. Without a MANIFEST that of the data root is used where it is there."
)
def annotate_command(
    session: Session,
    manifest: str | None,
    output: Path | None,
    in_place: bool,
    recompute: bool,
    dry_run: bool,
    taxonomy_file: Path | None,
    techniques_file: Path | None,
    crash_mapping: Path | None,
) -> int:
    from beatsight_assets.manifest import techniques
    from beatsight_assets.manifest.annotate import AnnotateOptions, annotate_events, run
    from beatsight_assets.manifest.crash_mapping import read_mapping

    if manifest is None:
        if output or in_place or dry_run or taxonomy_file or techniques_file or crash_mapping:
            raise ConfigError("these options go with a MANIFEST; without one the merged table is annotated", code="bad-option")
        return finish(session, run(session.settings, AnnotateOptions(recompute), progress=session.progress))
    if in_place == (output is not None) and not dry_run:
        raise ConfigError("give either --output FILE or --in-place", code="bad-option")
    path = manifest_path(session.settings, manifest)
    target = None if dry_run else manifest_target(session, path if output is None else output)
    names = techniques.read_names(techniques_file or session.settings.config_path("techniques"))
    taxonomy = _taxonomy(session, taxonomy_file)
    _, frame = read_manifest(session, manifest)
    crashes = read_mapping(crash_mapping) if crash_mapping else None
    found = annotate_events(frame, taxonomy, recompute=recompute, crashes=crashes)
    if strangers := techniques.count_strangers(found.frame, names):
        raise InputError(
            f"{', '.join(strangers)} on {sum(strangers.values()):,} events; not in the catalogue. Correct the events, or add the technique",
            code="unknown-technique",
            where=str(techniques_file or "configs/techniques.yaml"),
        )
    counts = {name: {"events": n, "sessions": s} for name, n, s, _ in found.technique_counts.iter_rows()}
    report = {"rows": found.frame.height, "techniques": counts, "aliases": found.aliases.to_json(), "openness": vars(found.openness)}
    report["crashes_changed"] = found.n_crashes_changed
    lines = [f"{found.frame.height:,} events, {int((found.frame['techniques'].list.len() > 0).sum()):,} with techniques"]
    lines += [f"  {name:<24} {c['events']:>9,} events {c['sessions']:>7,} sessions" for name, c in counts.items()]
    emit(session, _written(session, target, found.frame, report), "\n".join([*lines, _where(target)]))
    return 0


@command("hihat", help="Open hats that a closed or pedal hat follows within the window (inclusive): barks, per session.")
@click.argument("manifests", nargs=-1, required=True)
@click.option("--window", type=click.FloatRange(min=0.0, min_open=True, max=60.0), default=0.2, show_default=True, help="Seconds.")
@click.option("--output", type=FILE, help="Also write the report there as JSON.")
def hihat_command(session: Session, manifests: tuple[str, ...], window: float, output: Path | None) -> int:
    from beatsight_assets.manifest.hihat import measure_hihats
    from beatsight_assets.store import Store

    paths = [manifest_path(session.settings, name) for name in manifests]
    target = other_target(session, output, *paths) if output else None
    found = []
    for name in manifests:
        path, frame = read_manifest(session, name)
        found.append({"manifest": session.settings.store.rel(path)} | measure_hihats(frame, window_us=round(window * 1e6)))
    report = found[0] if len(found) == 1 else {"manifests": found}
    if target:
        Store(target.parent, remember=False).publish_json(target, report)
    lines = []
    for row in found:
        lines.append(
            f"{row['manifest']}: {row['bark_candidates']:,} of {row['total_open_events']:,} open hats are closed within {window:g} s, {row['total_sessions']:,} sessions"
        )
        lines += [f"  {s['bark_candidates']:>7,} of {s['open_events']:>7,}  {s['session_id']}" for s in row["top_sessions"]]
    emit(session, report, "\n".join(lines))
    return 0


@command(
    "crash-embed", help="What each crash sounds like: manifest/crash_embeddings.parquet of the merged table, or of MANIFEST into --output."
)
@click.argument("manifest", required=False)
@click.option("--output", type=click.Path(path_type=Path), help="File to write (.parquet), replaced whole; goes with MANIFEST.")
@click.option("--sample-rate", type=int, default=22_050, show_default=True, help="Audio is brought to it first.")
@click.option("--window-ms", type=float, default=800.0, show_default=True, help="Length of the window.")
@click.option("--pre-ms", type=float, default=120.0, show_default=True, help="Of it before the onset.")
@click.option("--mfcc", type=int, default=13, show_default=True, help="Cepstral coefficients.")
@click.option("--audio-root-map", multiple=True, metavar="SOURCE=FOLDER", help="Where the audio of a dataset lies; repeat it for each.")
def crash_embed_command(
    session: Session,
    manifest: str | None,
    output: Path | None,
    sample_rate: int,
    window_ms: float,
    pre_ms: float,
    mfcc: int,
    audio_root_map: tuple[str, ...],
) -> int:
    from beatsight_assets.events import Manifest
    from beatsight_assets.manifest import crash_embeddings as crashes
    from beatsight_assets.store import Store
    from beatsight_assets.taxonomy import Taxonomy

    options = crashes.EmbedOptions(sample_rate, window_ms, pre_ms, mfcc, crashes.read_roots(audio_root_map))
    settings = session.settings
    if (manifest is None) != (output is None):
        raise ConfigError("MANIFEST and --output FILE go together; without both the merged table is read", code="bad-option")
    if manifest is None or output is None:
        report = crashes.run(settings, options, progress=session.progress)
        finish(session, report)
        return 1 if report.figures["unread_files"] else 0
    source = manifest_path(settings, manifest)
    target = other_target(session, output, source)
    table = Manifest(source)
    if not table.n_rows:
        raise NothingToDo(f"{manifest} holds no event; nothing was written", code="nothing-to-do")
    rows = crashes.crash_events(table, Taxonomy.load(settings))
    if not rows.height:
        raise NothingToDo(f"{manifest} holds no crash; nothing was written", code="nothing-to-do")
    found = crashes.embed(rows, crashes.locate(rows, settings, options.audio_roots), settings, options, session.progress)
    lines = [f"{found.table.height:,} of {found.n_crashes:,} crash events have audio"]
    lines += [f"  {name}: {why}" for name, why in list(found.unread.items())[: crashes.LISTED]]
    if found.table.height:
        Store(target.parent, remember=False).publish_frame(target, found.table)
    report_ = {"crash_events": found.n_crashes, "embedded": found.table.height, "unread": found.unread, "output": str(target)}
    emit(session, report_, "\n".join([*lines, f"-> {output}" if found.table.height else "nothing was written"]))
    return 1 if found.unread or not found.table.height else 0


@command("crash-assign", help="Tell crash from crash2: manifest/crash_mapping.json of the merged table, or of MANIFEST into --output.")
@click.argument("manifest", required=False)
@click.option("--embeddings", type=FILE, help="Table of crash-embed; without it only variants and techniques tell.")
@click.option("--output", type=FILE, help="File to write (.json), replaced whole; goes with MANIFEST.")
@click.option("--min-events", type=click.IntRange(min=2), default=8, show_default=True, help="Crashes of a session to split it by sound.")
@click.option("--min-cluster", type=click.IntRange(min=1), default=3, show_default=True, help="Crashes on either side of a split.")
@click.option(
    "--min-gap-hz", type=click.FloatRange(min=0.0), default=200.0, show_default=True, help="Between the sides, or a quarter of the range."
)
def crash_assign_command(
    session: Session,
    manifest: str | None,
    embeddings: Path | None,
    output: Path | None,
    min_events: int,
    min_cluster: int,
    min_gap_hz: float,
) -> int:
    from beatsight_assets.events import Manifest
    from beatsight_assets.manifest import crash_mapping as mapping
    from beatsight_assets.manifest.crash_embeddings import EMBEDDINGS_SCHEMA, crash_events
    from beatsight_assets.store import Store
    from beatsight_assets.taxonomy import Taxonomy

    options = mapping.AssignOptions(min_events, min_cluster, min_gap_hz)
    settings = session.settings
    if (manifest is None) != (output is None) or (manifest is None and embeddings):
        raise ConfigError("MANIFEST, --output FILE and --embeddings go together; without them the merged table is read", code="bad-option")
    if manifest is None or output is None:
        return finish(session, mapping.run(settings, options, progress=session.progress))
    source = manifest_path(settings, manifest)
    target = other_target(session, output, source, *([embeddings] if embeddings and embeddings.exists() else []))
    sounds = mapping.read_embeddings(embeddings) if embeddings else EMBEDDINGS_SCHEMA.to_frame()
    table = Manifest(source)
    if not table.n_rows:
        raise NothingToDo(f"{manifest} holds no event; nothing was written", code="nothing-to-do")
    taxonomy = Taxonomy.load(settings)
    made = mapping.assign(crash_events(table, taxonomy), sounds, taxonomy, options)
    if not made.n_crashes:
        raise NothingToDo(f"{manifest} holds no crash; nothing was written", code="nothing-to-do")
    report = made.to_json()
    Store(target.parent, remember=False).publish_json(target, report)
    counts = ", ".join(f"{name} {n:,}" for name, n in sorted(made.methods.items())) or "none"
    emit(session, report, f"{made.methods.total():,} of {made.n_crashes:,} crash events are told apart ({counts})\n-> {output}")
    return 0


@command(
    "near-duplicates",
    help="Recordings that are the same sound in other bytes: of the merged table (for split), or of MANIFEST into --output.",
)
@click.argument("manifest", required=False)
@click.option("--output", type=FILE, help="File to write (.parquet), replaced whole; goes with MANIFEST.")
@click.option("--audio-root-map", multiple=True, metavar="SOURCE=FOLDER", help="Where the audio of a dataset lies; repeat it for each.")
def near_duplicates_command(session: Session, manifest: str | None, output: Path | None, audio_root_map: tuple[str, ...]) -> int:
    from beatsight_assets.manifest import near_duplicates
    from beatsight_assets.manifest.crash_embeddings import read_roots
    from beatsight_assets.store import Store

    options = near_duplicates.NearOptions(read_roots(audio_root_map))
    if (manifest is None) != (output is None):
        raise ConfigError("MANIFEST and --output FILE go together; without both the merged table is read", code="bad-option")
    if manifest is None or output is None:
        return finish(session, near_duplicates.run(session.settings, options, progress=session.progress))
    path = manifest_path(session.settings, manifest)
    target = other_target(session, output, path)
    found = near_duplicates.of_manifest(path, session.settings, options, progress=session.progress)
    if not found.fingerprints.height:
        raise NothingToDo(f"no audio of {manifest} could be heard; nothing was written", code="nothing-to-do")
    Store(target.parent, remember=False).publish_frame(target, found.pairs)
    report = {
        "recordings": found.fingerprints.height,
        "candidates": found.n_candidates,
        "pairs": found.pairs.to_dicts(),
        "unread": found.unread,
    }
    lines = [
        f"{found.fingerprints.height:,} recordings, {found.pairs.height:,} pairs of near duplicates, {len(found.unread):,} files unread"
    ]
    names = found.pairs.select("session_id_a", "session_id_b", "distance_db", "residual").head(50)
    lines += [f"  {d:5.2f} dB  residual {r:.3f}  {a} = {b}" for a, b, d, r in names.iter_rows()]
    emit(session, report, "\n".join([*lines, f"-> {output}"]))
    return 0


@command(
    "split",
    help="Assign every group to train, val or test: manifest/splits.parquet; or the groups of MANIFEST, into --output. With --check judge the table that is there.",
)
@click.argument("manifest", required=False)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--ratios", help="Shares of train, val and test.  [default: 0.8,0.1,0.1; with --check those of the table]")
@click.option("--check", "only_check", is_flag=True, help="Assign nothing: does the table still fit the manifest, and does nothing leak?")
@click.option("--splits", "table", type=FILE, help="The table to check.  [default: manifest/splits.parquet]")
@click.option("--output", type=FILE, help="File to write (.parquet), replaced whole; goes with MANIFEST.")
def split_command(
    session: Session, manifest: str | None, seed: int, ratios: str | None, only_check: bool, table: Path | None, output: Path | None
) -> int:
    from beatsight_assets.manifest import splits
    from beatsight_assets.stages import read_receipt
    from beatsight_assets.store import Store

    settings = session.settings
    is_own = manifest in (None, "annotated")
    if (output is not None and (only_check or is_own)) or (table is not None and not only_check):
        raise ConfigError("--output goes with MANIFEST, --splits with --check, and --check writes nothing", code="bad-option")
    known = read_receipt(settings, splits.STAGE) if only_check and table is None else None
    made_with = tuple(known.options["ratios"]) if known is not None else splits.RATIOS
    options = splits.SplitOptions(seed=seed, ratios=made_with if ratios is None else _ratios(ratios))
    if is_own and not only_check:
        return finish(session, splits.run(settings, options, progress=session.progress))
    path = manifest_path(settings, manifest or "annotated")
    if only_check:
        verdict = splits.check(settings, path, table or settings.layout.splits, options)
        lines = []
    else:
        if output is None:
            raise ConfigError("give --output FILE for the split table of MANIFEST, or --check", code="bad-option")
        target = other_target(session, output, path)
        found, verdict = splits.split_manifest(settings, path, options)
        Store(target.parent, remember=False).publish_frame(target, found)
        lines = [f"{found.height:,} groups", f"-> {output}"]
    emit(session, verdict.to_json(), "\n".join([*verdict_lines(verdict), *lines]))
    return 0 if verdict.passed else 1


def _ratios(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(r) for r in text.split(","))
        if not (min(train, val, test) >= 0.0 and abs(train + val + test - 1.0) < 1e-6):
            raise ValueError(text)
    except ValueError:
        raise ConfigError(f"--ratios is {text!r}; it must be three shares that sum to 1, such as 0.8,0.1,0.1", code="bad-option") from None
    return train, val, test


@command("compare", help="What changed from BASELINE to CANDIDATE: events, sessions, components, techniques.")
@click.argument("baseline")
@click.argument("candidate")
@click.option("--json-output", type=FILE, help="Write the whole comparison there as JSON.")
@click.option("--limit", type=click.IntRange(min=0), default=15, show_default=True, help="Lines per table on the screen.")
@click.option("--fail-on-drop", type=click.IntRange(min=0), help="Exit 1 when a component or technique lost more than this.")
def compare_command(session: Session, baseline: str, candidate: str, json_output: Path | None, limit: int, fail_on_drop: int | None) -> int:
    from beatsight_assets.manifest.compare import compare, drops
    from beatsight_assets.store import Store

    paths = [manifest_path(session.settings, name) for name in (baseline, candidate)]
    target = other_target(session, json_output, *paths) if json_output else None
    (_, before), (_, after) = (read_manifest(session, name) for name in (baseline, candidate))
    report = compare(before, after)
    if target:
        Store(target.parent, remember=False).publish_json(target, report)
    delta = report["delta"]
    lines = [f"{k.replace('_', ' ')}: {delta[k]['baseline']:,} -> {delta[k]['candidate']:,}" for k in ("total_events", "unique_sessions")]
    for kind in ("components", "techniques", "sessions"):
        rows = list(delta[kind].items())
        lines += [f"{kind}: {len(rows):,} changed"] if rows else []
        lines += [f"  {v['delta']:>+9,}  {name} ({v['baseline']:,} -> {v['candidate']:,})" for name, v in rows[:limit]]
    lost = {} if fail_on_drop is None else drops(delta, fail_on_drop)
    lines += [f"  FAIL  {name} lost {n:,}, limit {fail_on_drop:,}" for name, n in lost.items()]
    emit(session, report | {"dropped": lost}, "\n".join(lines))
    return 1 if lost else 0


@command("metrics", help="Counts and statistics of a manifest: reports/metrics/<manifest>_snapshot.json.")
@click.argument("manifest", default="annotated")
@click.option("--output", type=FILE, help="Write the snapshot there instead.")
def metrics_command(session: Session, manifest: str, output: Path | None) -> int:
    import polars as pl

    from beatsight_assets.manifest.compare import run, snapshot
    from beatsight_assets.store import Store, hash_file

    settings = session.settings
    if manifest == "annotated" and output is None:
        return finish(session, run(settings, progress=session.progress))
    target = other_target(session, output, manifest_path(settings, manifest)) if output else None
    path, frame = read_manifest(session, manifest)
    splits = settings.layout.splits
    table = pl.read_parquet(splits) if path == settings.layout.annotated and splits.is_file() else None
    report = {"manifest": settings.store.rel(path), "sha256": hash_file(path)} | snapshot(frame, table)
    place = target or settings.layout.report("metrics", f"{path.stem}_snapshot.json")
    Store(place.parent, remember=False).publish_json(place, report)
    lines = [f"{manifest}: {report['num_events']:,} events, {report['num_sessions']:,} sessions, {report['num_groups']:,} groups"]
    lines += [f"  {label:<20} {n:>9,}" for label, n in report["label_counts"].items()]
    emit(session, report, "\n".join([*lines, f"-> {output or settings.store.rel(place)}"]))
    return 0


@command(
    "export", help="Write a manifest in another form: events as JSON, JSONL or Parquet, hits as CSV; one session as label track or layers."
)
@click.argument("manifest")
@click.option("--output", required=True, type=FILE, help="File to write, replaced whole; svl: the folder of the layers.")
@click.option("--format", "form", help="csv, json, jsonl, parquet, audacity or svl.  [default: the suffix of --output]")
@click.option("--columns", help="Only these, separated by commas; for csv, json, jsonl and parquet.")
@click.option(
    "--where", "conditions", multiple=True, metavar="COLUMN=VALUE", help="Only events with this value; repeat it to narrow further."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first events.")
@click.option("--sample-rate", type=click.IntRange(4_000, 384_000), default=44_100, show_default=True, help="Of the audio: frames of svl.")
def export_command(
    session: Session,
    manifest: str,
    output: Path,
    form: str | None,
    columns: str | None,
    conditions: tuple[str, ...],
    limit: int | None,
    sample_rate: int,
) -> int:
    import polars as pl

    from beatsight_assets import events
    from beatsight_assets.manifest import forms
    from beatsight_assets.store import Store

    form = form or output.suffix.lstrip(".")
    if form not in forms.EXPORTS:
        raise ConfigError.unknown_choice("format", form, forms.EXPORTS, where="--format")
    source = manifest_path(session.settings, manifest)
    target = other_target(session, output, source)
    known = forms.CSV_COLUMNS if form == "csv" else () if form in ("audacity", "svl") else tuple(events.EVENT_SCHEMA)
    wanted = tuple(c.strip() for c in columns.split(",")) if columns is not None else known
    for name in wanted:
        if name not in known:
            raise ConfigError.unknown_choice("column", name, known, where="--columns")
    keep = [forms.condition(text) for text in conditions]
    table = events.Manifest(source)
    rows = table.table.filter(keep) if keep else table.table
    chosen = events.Manifest((rows if limit is None else rows.head(limit)).collect()) if keep or limit else table
    if not chosen.n_rows:
        raise NothingToDo(f"{manifest} holds no{' such' if keep else ''} event; nothing was written", code="nothing-to-do")
    splits = session.settings.layout.splits
    groups = pl.read_parquet(splits) if source == session.settings.layout.annotated and splits.is_file() else None
    receipts = forms.export(
        Store(target if form == "svl" else target.parent, remember=False), target, chosen, form, wanted, groups, sample_rate
    )
    report = {
        "events": chosen.n_rows,
        "format": form,
        "files": [{"path": str(r.path), "bytes": r.n_bytes, "sha256": r.sha256} for r in receipts],
    }
    emit(session, report, "\n".join([f"{chosen.n_rows:,} events", *(f"-> {r.path} ({r.n_bytes:,} bytes)" for r in receipts)]))
    return 0


@command("import", help="Events from another form: a CSV, JSON or Parquet, an Audacity label track, layers of Sonic Visualiser.")
@click.argument("file", type=FILE)
@click.option("--source-set", required=True, help="Dataset of rows that name none; rows of another are refused.")
@click.option("--output", type=FILE, help=OUTPUT_HELP + "  [default: events/<source-set>.parquet of the data root]")
@click.option("--format", "form", help="csv, json, jsonl, parquet, audacity or svl.  [default: the suffix of FILE; .txt is audacity]")
@click.option("--audio", type=FILE, help="Recording that a label track or layers belong to; its content is their group.")
@click.option("--session", "session_id", help="Name of their session.  [default: the name of the audio, else of FILE]")
@click.option("--dry-run", is_flag=True, help="Count, write nothing.")
def import_command(
    session: Session,
    file: Path,
    source_set: str,
    output: Path | None,
    form: str | None,
    audio: Path | None,
    session_id: str | None,
    dry_run: bool,
) -> int:
    from beatsight_assets import events
    from beatsight_assets.manifest import forms
    from beatsight_assets.store import Store, is_plain_path
    from beatsight_assets.taxonomy import Taxonomy

    settings = session.settings
    suffix = file.suffix.lower().lstrip(".")
    form = form or {"txt": "audacity", "": "svl" if file.is_dir() else ""}.get(suffix, suffix)
    if form not in forms.IMPORTS:
        raise ConfigError.unknown_choice("format", form, forms.IMPORTS, where="--format")
    if (audio or session_id) and form not in ("audacity", "svl"):
        raise ConfigError(f"--audio and --session go with label tracks and layers; {form} names its sessions", code="bad-option")
    if not is_plain_path(source_set) or "/" in source_set:
        raise ConfigError("a name of letters, digits, - and _ is due", code="bad-option", where="--source-set")
    if output is None and source_set in settings.datasets:
        raise ConfigError(
            f"{source_set} is read by `beatsight source ingest`. Give --output FILE or another --source-set", code="would-overwrite"
        )
    target = manifest_target(session, output) if output else settings.layout.events(source_set)
    quarantine = target.with_name(f"{target.stem}.quarantine.parquet") if output else settings.layout.quarantine(source_set)
    if audio is not None and not audio.is_file():
        raise InputError(f"{audio} does not exist", code="missing-input", where="--audio")
    taxonomy = Taxonomy.load(settings)
    found = forms.read_form(file, forms.ImportOptions(source_set, form, audio, session_id), taxonomy)
    counts, problems = events.find_violations(found.events, taxonomy)
    broken = {rule: n for rule, n in counts.items() if n}
    refused = found.quarantine
    report: dict[str, Any] = {
        "rows": found.n_read,
        "events": found.events.height,
        "unknown_labels": events.unknown_labels(found.events, taxonomy),
        "refused": refused.to_dicts(),
        "broken": broken,
        "problems": [vars(v) for v in problems],
    }
    lines = [f"{found.n_read:,} rows, {found.events.height:,} events, {refused.height:,} rows refused"]
    lines += [f"  unknown label {label}: {n:,} hits" for label, n in report["unknown_labels"].items()]
    lines += [f"  {row['code']}: {row['message']}" for row in refused.head(20).iter_rows(named=True)]
    lines += [f"  row {v.row}: {v.field} is {v.value[:80]} ({v.rule})" for v in problems]
    is_good = bool(found.events.height) and not broken
    if not dry_run and refused.height:
        Store(quarantine.parent, remember=False).publish_frame(quarantine, refused)
        report["quarantine"] = str(quarantine)
    if is_good and not dry_run:
        report = _written(session, target, found.events, report)
    emit(session, report, "\n".join([*lines, _where(target if is_good and not dry_run else None) if is_good else "nothing was written"]))
    return 0 if is_good and not refused.height else 1


@command("provenance", help="Does every event of a manifest trace back to files, a licence and an importer?")
@click.argument("manifest", default="merged")
@click.option("--baseline", type=FILE, help="JSON list of known problems {source_set, session_id, code}; only others fail.")
@click.option("--recompute-digests", is_flag=True, help="Read the files and compare them with what was ingested.")
@click.option("--markdown", type=FILE, help="Also write the figures as a Markdown table.")
def provenance_command(session: Session, manifest: str, baseline: Path | None, recompute_digests: bool, markdown: Path | None) -> int:
    from beatsight_assets.manifest import provenance
    from beatsight_assets.store import Store

    name = manifest if manifest in ("merged", "annotated") else str(manifest_path(session.settings, manifest))
    report = provenance.run(session.settings, provenance.AuditOptions(name, baseline, recompute_digests), progress=session.progress)
    if markdown is not None:
        path = session.settings.user_output(markdown)
        Store(path.parent, remember=False).publish(path, provenance.to_markdown(report).encode())
    return finish(session, report)
