"""Totals of a bundle from what lies on disk: components.json, splits.json, metadata.json, label lists, BUNDLE.json last.

Belongs here: adding up shards, the identities that must hold, the content digest. Does not belong here: making shards (`export`).
Nothing is ever incremented: each seal counts the shards again, so that no number of kills can change a total.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import polars as pl

from beatsight_assets import store
from beatsight_assets.bundle.plan import OUTCOMES, SPLITS, Plan, read_signed, signed
from beatsight_assets.bundle.shard import SCHEMA as SHARD_SCHEMA
from beatsight_assets.errors import StoreError
from beatsight_assets.store import Store
from beatsight_assets.taxonomy import View

SCHEMA = "beatsight.bundle/1"
LISTED = 20
UNREADABLE = "unreadable_audio"
RUN_DIGEST = "run_digest"  # of metadata.json: guards what is no content too
NOT_CONTENT = ("run_", "healed_")  # keys of metadata.json that tell of invocations
LABEL_ENTRY_DROPPED = ("part", "offset_samples", "clip", "audio_path")
HEX = "0123456789abcdef"


@dataclass
class Totals:
    """A bundle added up."""

    written: Counter[str] = field(default_factory=Counter)  # clips by split
    seconds: Counter[str] = field(default_factory=Counter)  # by split
    source_seconds: Counter[str] = field(default_factory=Counter)
    source_clips: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=lambda: {s: Counter() for s in SPLITS})
    lost: Counter[str] = field(default_factory=Counter)  # events by outcome: missing_audio, unreadable_audio, path_escape, past_audio_end
    missing: list[Mapping[str, Any]] = field(default_factory=list)
    missing_by_source: Counter[str] = field(default_factory=Counter)
    unreadable: list[Mapping[str, Any]] = field(default_factory=list)
    clipped_samples: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)  # files for quarantine: all that fell out, save what is absent
    fold_loss: list[Mapping[str, Any]] = field(default_factory=list)
    shards: list[dict[str, str]] = field(default_factory=list)

    @property
    def n_clips(self) -> int:
        return sum(self.written.values())


def read_shard(plan: Plan, shard: int) -> dict[str, Any] | None:
    """SHARD.json of a finished shard of this plan, None when there is none or a byte of it differs."""
    found = read_signed(plan.shard_folder(shard) / "SHARD.json")
    is_of_plan = found is not None and (found.get("schema"), found.get("plan_sha256")) == (SHARD_SCHEMA, plan.sha256)
    return found if is_of_plan else None


def add_up(files: Store, plan: Plan) -> Totals:
    """Totals over every shard.

    Raises
    ------
    StoreError `shard-missing` : a shard is not finished
    """
    totals = Totals()
    for shard in range(plan.n_shards):
        found = read_shard(plan, shard)
        if found is None:
            raise StoreError(
                f"shard {plan.shard_name(shard)} is not finished. Repeat with --resume", code="shard-missing", where=files.rel(plan.folder)
            )
        totals.shards.append({"id": plan.shard_name(shard), "sha256": files.sha256(plan.shard_folder(shard) / "SHARD.json")})
        for lost in found["lost"]:
            outcome = {"missing-audio": "missing_audio", "path-escape": "path_escape"}.get(lost["code"], UNREADABLE)
            totals.lost[outcome] += lost["events"]
            if outcome != "missing_audio":
                totals.refused.append(
                    {"path": lost["audio_path"], "digest": lost["sha256"], **{k: lost[k] for k in ("source_set", "code", "message")}}
                )
            if outcome == UNREADABLE:
                totals.unreadable.append({k: lost[k] for k in ("source_set", "audio_path", "code", "message", "events")})
            if outcome == "missing_audio":
                totals.missing.append({"source_set": lost["source_set"], "audio_path": lost["audio_path"], "events": lost["events"]})
                totals.missing_by_source[lost["source_set"]] += lost["events"]
        totals.lost["past_audio_end"] += sum(a["past_audio_end"] for a in found["audio"])
        totals.fold_loss += found["fold_loss"]
        clips = pl.read_parquet(
            plan.shard_folder(shard) / "clips.parquet",
            columns=["split", "source_set", "duration_seconds", "labels", "masked", "clipped_samples"],
        )
        for column, n, seconds in (
            ("split", totals.written, totals.seconds),
            ("source_set", totals.source_clips, totals.source_seconds),
        ):
            for name, count, duration in clips.group_by(column).agg(pl.len(), pl.col("duration_seconds").sum()).iter_rows():
                n[name] += count
                seconds[name] += duration
        counted = clips.select(
            "split", labels=pl.col("labels").list.set_difference("masked")
        )  # a masked class is neither positive nor negative
        for split, label, count in counted.explode("labels").drop_nulls("labels").group_by("split", "labels").len().iter_rows():
            totals.labels[split][label] += count
        totals.clipped_samples += int(clips["clipped_samples"].sum())
    return totals


def statistics(plan: Plan, totals: Totals) -> dict[str, Any]:
    """The lifetime block `statistics` of metadata.json, without what healed."""
    counts = plan.identity["counts"]
    excluded = {k: counts["excluded"][k] for k in OUTCOMES}
    excluded["path_escape"] += totals.lost["path_escape"]
    skipped = {f"skipped_{k}": n for k, n in excluded.items()}
    skipped |= {f"skipped_{k}": totals.lost[k] for k in ("missing_audio", UNREADABLE, "past_audio_end")}
    seconds = {s: round(totals.seconds[s], 6) for s in SPLITS}
    return {
        "total_events": counts["events"],
        "planned_clips": counts["planned_clips"],
        "written_clips": totals.n_clips,
        **{f"{s}_clips": totals.written[s] for s in SPLITS},
        **skipped,
        "skipped_total": sum(skipped.values()),
        "written_seconds": round(sum(totals.seconds.values()), 6),
        **{f"{s}_seconds": seconds[s] for s in SPLITS},
        "clipped_samples": totals.clipped_samples,
    }


def broken_identities(plan: Plan, totals: Totals, found: Mapping[str, Any]) -> list[str]:
    """Sums that do not hold; empty for a sound bundle."""
    fell_out = sum(totals.lost[k] for k in ("missing_audio", UNREADABLE, "past_audio_end", "path_escape"))
    problems = []
    if found["written_clips"] + found["skipped_total"] != found["total_events"]:
        problems.append(f"{found['written_clips']:,} written + {found['skipped_total']:,} skipped != {found['total_events']:,} events")
    if found["planned_clips"] != found["written_clips"] + fell_out:
        problems.append(f"{found['planned_clips']:,} planned != {found['written_clips']:,} written + {fell_out:,} that fell out")
    for name, sums in (("splits", totals.seconds), ("sources", totals.source_seconds)):
        if abs(sum(sums.values()) - found["written_seconds"]) > 1e-6 * max(1.0, found["written_seconds"]):
            problems.append(f"seconds of {name} are {sum(sums.values()):.6f}, written {found['written_seconds']:.6f}")
    return problems


def seal(
    files: Store,
    plan: Plan,
    totals: Totals,
    name: str,
    manifest_name: str,
    view: View,
    split_of: pl.DataFrame,
    run: Mapping[str, Any],
    healed: Mapping[str, Any],
) -> dict[str, Any]:
    """Write what stands beside the shards, BUNDLE.json last; a file whose content would not change is not touched. Returns BUNDLE.json.

    Parameters
    ----------
    totals : of `add_up`, whose shards nothing has changed since
    manifest_name : path of the manifest below the data root; of one that lies elsewhere only its file name
    run : blocks of metadata.json that start with `run_`
    healed : `healed_clips`, `healed_seconds`, `healed_duration_seconds_by_source` over all invocations

    Raises
    ------
    StoreError `counts-differ` : a sum does not hold, nothing is sealed
    """
    found = statistics(plan, totals)
    problems = broken_identities(plan, totals, found)
    if problems:
        raise StoreError(
            f"totals do not add up: {'; '.join(problems)}. Export with --overwrite", code="counts-differ", where=f"bundles/{name}"
        )
    folder, options = plan.folder, plan.options
    counts = {s: {c: totals.labels[s][c] for c in view.classes} for s in SPLITS}
    store.failpoint("seal.begin")
    content: dict[str, str] = {"plan.json": plan.sha256}
    content |= {f"plan/{k}.parquet": v["sha256"] for k, v in plan.identity["tables"].items()}
    content |= {f"shards/{s['id']}/SHARD.json": s["sha256"] for s in totals.shards}
    components = {
        "components": list(view.classes),
        "classes": list(view.classes),
        "num_classes": len(view.classes),
        "component_index": {c: i for i, c in enumerate(view.classes)},
        "counts": counts,
        "view": options.view,
        "taxonomy_sha256": plan.identity["taxonomy_sha256"],
    }
    content["components.json"] = _publish_changed(files, folder / "components.json", components)
    used = dict(split_of.sort("group_id").select("group_id", "split").iter_rows())
    content["splits.json"] = _publish_changed(files, folder / "splits.json", used)
    if options.layout == "wav":
        for split in SPLITS:
            path = folder / split / f"{split}_labels.json"
            content[f"{split}/{path.name}"] = _publish_labels(files, plan, split, path)
    durable = {
        "schema": SCHEMA,
        "name": name,
        "manifest": manifest_name,
        "manifest_sha256": plan.identity["manifest_sha256"],
        "plan_sha256": plan.sha256,
        "sample_rate": options.sample_rate,
        "layout": options.layout,
        "clip_fanout": 2 if options.layout == "wav" else 0,
        "val_ratio": options.val_ratio,
        "limit": options.limit,
        "total_events_processed": found["total_events"],
        "statistics": {**found, "healed_clips": healed["healed_clips"], "healed_seconds": healed["healed_seconds"]},
        "split_counts": {s: totals.written[s] for s in SPLITS},
        "label_counts": counts,
        "split_durations_seconds": {s: found[f"{s}_seconds"] for s in SPLITS},
        "duration_seconds_by_source": {k: round(v, 6) for k, v in sorted(totals.source_seconds.items())},
        "healed_duration_seconds_by_source": healed["healed_duration_seconds_by_source"],
        "missing": {
            "count": totals.lost["missing_audio"],
            "by_source": dict(sorted(totals.missing_by_source.items())),
            "examples": totals.missing[:LISTED],
        },
        "unreadable": {"count": totals.lost[UNREADABLE], "examples": totals.unreadable[:LISTED]},
        "fold_loss": totals.fold_loss[:LISTED],
    }
    path = folder / "metadata.json"
    if not (_same_content(path, durable) and not run["run_statistics"]["written_clips"] and not run["run_statistics"]["healed_clips"]):
        files.publish_json(path, signed({**durable, **run}, RUN_DIGEST))
    content["metadata.json"] = metadata_digest(durable)
    marker = {
        "schema": SCHEMA,
        "name": name,
        "layout": options.layout,
        "plan_sha256": plan.sha256,
        "content_sha256": content_digest(content),
        "files": content,
        "clips": totals.n_clips,
        "seconds": found["written_seconds"],
        "shards": totals.shards,
        "complete": totals.lost["missing_audio"] == 0,
    }
    store.failpoint("seal.end")
    _publish_changed(files, folder / "BUNDLE.json", signed(marker))
    return marker


def content_digest(content: Mapping[str, str]) -> str:
    """Digest over the names and digests of every content file; parts and wav files count through their SHARD.json."""
    return sha256("".join(f"{digest}  {path}\n" for path, digest in sorted(content.items())).encode()).hexdigest()


def metadata_digest(metadata: Mapping[str, Any]) -> str:
    """Digest of metadata.json without the keys, at any depth, that tell of invocations."""
    return sha256(store.to_json_bytes(_durable(metadata))).hexdigest()


def _durable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _durable(v) for k, v in value.items() if not k.startswith(NOT_CONTENT)}
    return [_durable(v) for v in value] if isinstance(value, list) else value


def _same_content(path: Path, durable: Mapping[str, Any]) -> bool:
    found = read_signed(path, RUN_DIGEST)
    return found is not None and metadata_digest(found) == metadata_digest(durable)


def _publish_changed(files: Store, path: Path, obj: Any) -> str:
    """Publish JSON unless the file holds just that; its digest."""
    content = store.to_json_bytes(obj)
    digest = sha256(content).hexdigest()
    if not (path.is_file() and files.sha256(path, fresh=True) == digest):
        files.publish(path, content)
    return digest


def _publish_labels(files: Store, plan: Plan, split: str, path: Path) -> str:
    """<split>_labels.json: entries sorted by file, gathered by the first digit of the clip so that memory holds a sixteenth of them."""

    def entries() -> Iterator[bytes]:
        first = True
        for digit in HEX:
            parts = []
            for shard in range(plan.n_shards):
                table = pl.scan_parquet(plan.shard_folder(shard) / "clips.parquet")
                wanted = table.filter((pl.col("split") == split) & pl.col("clip").str.starts_with(digit))
                parts.append(wanted.drop(LABEL_ENTRY_DROPPED).collect())
            rows = pl.concat(parts).sort("file")
            for piece in rows.iter_slices(4096):
                lines = piece.select(pl.struct([pl.col(c) for c in sorted(piece.columns)]).struct.json_encode().alias("row"))["row"]
                for line in lines:
                    yield (b"[\n" if first else b",\n") + str(line).encode()
                    first = False
        yield b"[]\n" if first else b"\n]\n"

    digest = sha256()
    for piece in entries():
        digest.update(piece)
    if path.is_file() and files.sha256(path, fresh=True) == digest.hexdigest():
        return digest.hexdigest()

    def write(out: IO[bytes]) -> None:
        _write_joined(out, entries())

    return files.publish(path, write).sha256


def _write_joined(out: IO[bytes], pieces: Iterable[bytes]) -> None:
    waiting: list[bytes] = []
    for piece in pieces:
        waiting.append(piece)
        if len(waiting) == 1024:
            out.write(b"".join(waiting))
            waiting.clear()
    out.write(b"".join(waiting))
