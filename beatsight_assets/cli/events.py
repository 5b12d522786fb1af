"""`beatsight events`: the manifest."""

from __future__ import annotations

from pathlib import Path

import click

from beatsight_assets.cli.common import Session, command, emit, finish, manifest_path
from beatsight_assets.errors import ConfigError, NothingToDo


@command("validate", help="Check a manifest (a name, or a .parquet or .jsonl file) against the schema.")
@click.argument("manifest")
def validate_command(session: Session, manifest: str) -> int:
    from beatsight_assets import events
    from beatsight_assets.taxonomy import Taxonomy

    frame = events.read_events(manifest_path(session.settings, manifest))
    if frame.height == 0:
        raise NothingToDo(f"{manifest} holds no event", code="nothing-to-do")
    taxonomy = Taxonomy.load(session.settings)
    counts, violations = events.find_violations(frame, taxonomy)
    unknown = events.unknown_labels(frame, taxonomy)
    broken = {rule: n for rule, n in counts.items() if n}
    lines = [
        f"{manifest}: {frame.height:,} events, {sum(broken.values()):,} broken rules, {sum(unknown.values()):,} hits with unknown labels"
    ]
    lines += [f"  {rule}: {n:,}" for rule, n in broken.items()] + [f"    {v.rule} at {v.event_id}" for v in violations]
    payload = {
        "events": frame.height,
        "broken": broken,
        "unknown_labels": unknown,
        "examples": [{"rule": v.rule, "event_id": v.event_id} for v in violations],
    }
    emit(session, payload, "\n".join(lines))
    return 1 if broken or unknown else 0


@command("merge", help="Merge the events of all enabled datasets into manifest/merged.parquet.")
@click.option("--sources", help="Only these datasets, separated by commas.")
def merge_command(session: Session, sources: str | None) -> int:
    from beatsight_assets.manifest.merge import MergeOptions, run

    names = tuple(session.settings.dataset(n.strip())[0] for n in sources.split(",")) if sources else None
    return finish(session, run(session.settings, MergeOptions(names), progress=session.progress))


@command("annotate", help="Canonical labels, openness and techniques: manifest/annotated.parquet.")
@click.option("--recompute", is_flag=True, help="Remove inferred techniques first.")
def annotate_command(session: Session, recompute: bool) -> int:
    from beatsight_assets.manifest.annotate import AnnotateOptions, run

    return finish(session, run(session.settings, AnnotateOptions(recompute), progress=session.progress))


@command("split", help="Assign every group to train, val or test: manifest/splits.parquet.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--ratios", default="0.8,0.1,0.1", show_default=True, help="Shares of train, val and test.")
def split_command(session: Session, seed: int, ratios: str) -> int:
    from beatsight_assets.manifest.splits import SplitOptions, run

    try:
        train, val, test = (float(r) for r in ratios.split(","))
        if not (min(train, val, test) >= 0.0 and abs(train + val + test - 1.0) < 1e-6):
            raise ValueError(ratios)
    except ValueError:
        raise ConfigError(
            f"--ratios is {ratios!r}; it must be three shares that sum to 1, such as 0.8,0.1,0.1", code="bad-option"
        ) from None
    return finish(session, run(session.settings, SplitOptions(seed=seed, ratios=(train, val, test)), progress=session.progress))


@command("export", help="Write a manifest as JSON lines (one event each) or CSV (one hit each).")
@click.argument("manifest")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="File to write, replaced whole.")
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv"]), help="By default from the suffix of --output.")
def export_command(session: Session, manifest: str, output: Path, kind: str | None) -> int:
    from beatsight_assets import events
    from beatsight_assets.store import Store

    frame = events.read_events(manifest_path(session.settings, manifest))
    if frame.height == 0:
        raise NothingToDo(f"{manifest} holds no event; nothing was written", code="nothing-to-do")
    kind = kind or output.suffix.lstrip(".")
    if kind not in ("jsonl", "csv"):
        raise ConfigError.unknown_choice("format", kind, ("jsonl", "csv"), where="--format")
    data = events.to_jsonl(frame) if kind == "jsonl" else events.to_csv(frame)
    path = session.settings.user_output(output)
    receipt = Store(path.parent, remember=False).publish(path, data)
    emit(
        session,
        {"events": frame.height, "bytes": receipt.n_bytes, "sha256": receipt.sha256},
        f"{frame.height:,} events -> {output} ({receipt.n_bytes:,} bytes)",
    )
    return 0
