"""Proofs about bundles that lie on disk, and what to do with them: audit, totals, what is missing, list, remove, archive.

Belongs here: everything that reads a bundle without making clips. Does not belong here: repairing (`export --resume`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from beatsight_assets import clock, store
from beatsight_assets.bundle import seal
from beatsight_assets.bundle.export import BundleRequest, bundle_lock, manifest_of, new_folder, settled_folder, wav_holds
from beatsight_assets.bundle.plan import bundle_folder, manifest_batches, manifest_digest, read_plan, read_signed
from beatsight_assets.bundle.read import Bundle, BundleIncomplete, open_bundle
from beatsight_assets.errors import BeatSightError, ConfigError, InputError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

STAGE = "bundle_digests"
VERSION = "1"
LISTED = 20
ARCHIVED = ("plan.json", "metadata.json", "components.json", "splits.json", "BUNDLE.json")


@dataclass(frozen=True)
class CheckOptions:
    """name : of the bundle; fast : trust files whose size and time did not change since they were hashed."""

    name: str
    fast: bool = False


def find_flips(settings: Settings, bundle: Bundle, *, fast: bool = False, progress: Progress = silent) -> list[str]:
    """What differs from what was sealed, one sentence each with shard, part and clip; empty for a sound bundle."""
    files, plan, found = settings.store, bundle.plan, []

    def digest(path: Path) -> str | None:
        return files.sha256(path, fresh=not fast) if path.is_file() else None

    for relpath, due in sorted(bundle.marker["files"].items()):
        path = plan.folder / relpath
        if relpath == "metadata.json" and path.is_file():
            metadata = read_signed(path, seal.RUN_DIGEST)
            now: str | None = "damaged" if metadata is None else seal.metadata_digest(metadata)
        else:
            now = digest(path)
        if now != due:
            found.append(f"{relpath} {'is absent' if now is None else 'is not what was sealed'}")
    if seal.content_digest(bundle.marker["files"]) != bundle.content_sha256:
        found.append("BUNDLE.json: content_sha256 is not that of its files")
    for shard in range(plan.n_shards):
        receipt = seal.read_shard(plan, shard)
        name = plan.shard_name(shard)
        progress(f"checking shard {shard + 1} of {plan.n_shards}")
        if receipt is None:
            found.append(f"shard {name}: SHARD.json is absent, damaged or of another plan")
            continue
        folder = plan.shard_folder(shard)
        bad = [w["name"] for w in receipt["files"] if digest(folder / w["name"]) != w["sha256"]]
        if "clips.parquet" in bad:
            found.append(f"shard {name}: clips.parquet is not what was sealed")
            continue
        clips = pl.read_parquet(
            folder / "clips.parquet", columns=["event_id", "clip", "split", "part", "offset_samples", "n_samples", "clip_sha256"]
        )
        for part in bad:
            found.append(f"shard {name}, part {part}: {_bad_clips(folder / part, clips.filter(pl.col('part') == part))}")
        if plan.options.layout == "wav":
            for event, split, clip, n, due in clips.select("event_id", "split", "clip", "n_samples", "clip_sha256").iter_rows():
                if not wav_holds(plan, split, clip, n, due):
                    found.append(f"shard {name}, clip {event}: its wav file is absent or not what was sealed")
    return found


def _bad_clips(path: Path, clips: pl.DataFrame) -> str:
    """Which clips of a damaged part differ."""
    if not path.is_file():
        return f"absent, {clips.height:,} clips"
    due = int(clips["n_samples"].cast(pl.Int64).sum()) * 2
    if path.stat().st_size != due:
        return f"{path.stat().st_size:,} bytes where {due:,} are due"
    samples = np.memmap(path, dtype="<i2", mode="r")
    bad = [
        event
        for event, offset, n, digest in clips.select("event_id", "offset_samples", "n_samples", "clip_sha256").iter_rows()
        if sha256(samples[offset : offset + n].tobytes()).hexdigest() != digest
    ]
    return f"{len(bad):,} clips differ: {', '.join(bad[:3])}"


def run(settings: Settings, options: CheckOptions, *, progress: Progress = silent) -> Report:
    """Stage `bundle_digests`, partition = name of the bundle: every digest of a sealed bundle, read anew unless `fast`.

    Raises
    ------
    BundleIncomplete
    """
    bundle = open_bundle(settled_folder(settings, options.name))
    with bundle.one_version():
        problems = find_flips(settings, bundle, fast=options.fast, progress=progress)
    again = f". Repair it: beatsight bundle export {options.name} --resume"
    marker = bundle.folder / "BUNDLE.json"
    verdict = Verdict(
        gate=STAGE,
        rules=(Rule.at_most("bundle_digests", float(len(problems)), 0.0, "files that are not what was sealed"),),
        reasons=tuple(Reason("flipped", text + again, f"bundles/{options.name}") for text in problems[:LISTED]),
        inputs=(Artifact("bundle", settings.store.rel(marker), settings.store.sha256(marker)),),
        support={"clips": bundle.marker["clips"]},
        profile=settings.profile,
    )
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        partition=options.name,
        options={"content_sha256": bundle.content_sha256, "problems": problems[:LISTED], "fast": options.fast},
        parents=[("bundle", marker)],
        work=lambda: Outcome(outputs=[], figures={"problems": len(problems), "clips": bundle.marker["clips"]}, verdicts=[verdict]),
    )


def own_manifest(settings: Settings, bundle: Bundle) -> Path:
    """The manifest that a bundle was made from, with the rows that it had then.

    Raises
    ------
    InputError `missing-input`, `manifest-changed`; ConfigError `missing-argument` : it lies outside of the data root
    """
    manifest = _manifest_of(settings, bundle)
    if not _has_its_rows(settings, bundle, manifest):
        raise InputError(
            f"is not the manifest that bundle {bundle.name} was made from. Export the bundle again",
            code="manifest-changed",
            where=settings.layout.shown(manifest),
        )
    return manifest


def _manifest_of(settings: Settings, bundle: Bundle) -> Path:
    manifest = manifest_of(settings, BundleRequest(bundle.name, mode="resume"), bundle.folder)
    if not manifest.is_file():
        raise InputError("the manifest of this bundle is not there any more", code="missing-input", where=manifest.name)
    return manifest


def _has_its_rows(settings: Settings, bundle: Bundle, manifest: Path) -> bool:
    """A manifest has the rows of the bundle: it is the very file that the export noted, or one with equal rows."""
    note = read_signed(bundle.folder / "history" / "request.json") or {}
    is_that_file = note.get("plan") == bundle.plan.identity and note.get("file_sha256") == settings.store.sha256(manifest)
    return is_that_file or manifest_digest(manifest) == bundle.plan.identity["manifest_sha256"]


def against_manifest(settings: Settings, name: str) -> dict[str, Any]:
    """Totals of a sealed bundle against the events of the manifest it was made from.

    Raises
    ------
    BundleIncomplete; InputError `missing-input` : the manifest is not there any more
    """
    bundle = open_bundle(settled_folder(settings, name))
    manifest = _manifest_of(settings, bundle)
    n_events = sum(batch.height for batch in manifest_batches(manifest))
    with bundle.one_version():
        totals = seal.add_up(settings.store, bundle.plan)
    found = seal.statistics(bundle.plan, totals)
    problems = seal.broken_identities(bundle.plan, totals, found)
    if n_events != found["total_events"]:
        problems.append(f"the manifest holds {n_events:,} events, the bundle accounts for {found['total_events']:,}")
    if not _has_its_rows(settings, bundle, manifest):
        problems.append(f"{settings.layout.shown(manifest)} has other rows than the bundle was made from. Export the bundle again")
    labels: Counter[str] = Counter()
    for counts in totals.labels.values():
        labels.update(counts)
    return {
        "manifest_events": n_events,
        "planned": found["planned_clips"],
        "written": found["written_clips"],
        "skipped": {k.removeprefix("skipped_"): v for k, v in found.items() if k.startswith("skipped_") and k != "skipped_total"},
        "per_source": {k: totals.source_clips[k] for k in sorted(totals.source_clips)},
        "per_label": dict(sorted(labels.items())),
        "problems": problems,
    }


def heal_list(settings: Settings, name: str) -> tuple[pl.DataFrame, list[str]]:
    """Planned events without a clip, and what does not fit: clips that no plan names, clips that stand twice.

    Raises
    ------
    BundleIncomplete : it was never planned
    """
    folder = settled_folder(settings, name)
    plan = read_plan(folder)
    if plan is None:
        raise BundleIncomplete(
            f"bundle {name} has no plan. Run: beatsight bundle export {name}", code="bundle-incomplete", where=f"bundles/{name}"
        )
    lost: list[pl.DataFrame] = []
    problems: list[str] = []
    for shard in range(plan.n_shards):
        planned = pl.read_parquet(plan.table(shard), columns=["event_id", "session_id", "source_set", "split", "audio_path", "onset_us"])
        path = plan.shard_folder(shard) / "clips.parquet"
        clips = pl.read_parquet(path, columns=["event_id"]) if path.is_file() else pl.DataFrame(schema={"event_id": pl.String})
        n_twice = clips.height - clips["event_id"].n_unique()
        n_strange = clips.join(planned, on="event_id", how="anti").height
        if n_twice:
            problems.append(f"shard {plan.shard_name(shard)}: {n_twice:,} clips stand twice")
        if n_strange:
            problems.append(f"shard {plan.shard_name(shard)}: {n_strange:,} clips are in no plan")
        receipt = seal.read_shard(plan, shard)
        codes = {(e["source_set"], e["audio_path"]): e["code"] for e in (receipt or {"lost": []})["lost"]}
        rows = planned.join(clips, on="event_id", how="anti")
        reasons = [
            codes.get((s, a), "not-made" if receipt is None else "past-audio-end")
            for s, a in rows.select("source_set", "audio_path").iter_rows()
        ]
        lost.append(rows.with_columns(reason=pl.Series(reasons, dtype=pl.String)))
    return pl.concat(lost), problems


def list_bundles(settings: Settings) -> list[dict[str, Any]]:
    """Every folder of bundles/ with what it holds."""
    root = settings.layout.bundles
    rows = []
    for folder in sorted(p for p in root.glob("*") if p.is_dir()) if root.is_dir() else []:
        n_bytes, n_files = _size(folder)
        clips = 0
        try:
            bundle = open_bundle(folder)
            state, clips = ("whole" if bundle.marker["complete"] else "incomplete"), bundle.marker["clips"]
        except BeatSightError as error:
            state = "unfinished" if error.code == "bundle-incomplete" else "damaged"
        rows.append(
            {
                "name": folder.name,
                "state": state,
                "clips": clips,
                "bytes": n_bytes,
                "files": n_files,
                "needed_by": _needed_by(settings, folder.name),
            }
        )
    return rows


def _size(folder: Path) -> tuple[int, int]:
    n_bytes = n_files = 0
    for here, _, names in os.walk(folder):
        for name in names:
            n_bytes += os.lstat(os.path.join(here, name)).st_size
            n_files += 1
    return n_bytes, n_files


def _needed_by(settings: Settings, name: str) -> str | None:
    """The promotion record or pointer that names the bundle, if there is one."""
    folder = settings.layout.promoted
    marker = settings.layout.bundle(name) / "BUNDLE.json"
    words = {f'"bundles/{name}/', f'"bundles/{name}"', f'"bundle": "{name}"'}
    if marker.is_file():
        found = store.read_json(marker)
        if isinstance(found, dict) and isinstance(found.get("content_sha256"), str):
            words.add(found["content_sha256"])
        words.add(settings.store.sha256(marker))
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else []:
        text = store.read_bytes(path, max_bytes=store.MAX_JSON_BYTES).decode(errors="replace")
        if any(word in text for word in words):
            return settings.layout.rel(path)
    return None


def remove(settings: Settings, name: str, *, apply: bool) -> dict[str, Any]:
    """Delete a bundle with its receipts, or say what would go.

    Raises
    ------
    ConfigError `unknown-bundle`; `bundle-needed` : a promotion record names it
    Busy
    """
    folder = bundle_folder(settings.layout, name)
    if not folder.is_dir():
        raise ConfigError.unknown_choice("bundle", name, [r["name"] for r in list_bundles(settings)] or ["none"])
    needed_by = _needed_by(settings, name)
    if needed_by is not None:
        raise ConfigError(f"bundle {name} is named by {needed_by}; a promoted model rests on it. It stays", code="bundle-needed")
    n_bytes, n_files = _size(folder)
    if apply:
        with bundle_lock(settings, name):
            for stage in ("bundle", "bundle_plan", STAGE):
                settings.store.remove(settings.layout.receipt(stage, name))
            settings.store.remove(settings.layout.quarantine(f"bundle.{name}"))
            for place in (new_folder(settings, name), folder):  # what an overwrite left must not take its place
                if place.exists():
                    settings.store.remove(place)
    return {"name": name, "bytes": n_bytes, "files": n_files, "applied": apply}


def archive(settings: Settings, name: str, date: str) -> dict[str, Any]:
    """Copy what a bundle was, without samples, to reports/archive/<date>/<name>, with an index of digests last.

    Raises
    ------
    BundleIncomplete
    ConfigError `bad-option` : the date is not YYYYMMDD
    """
    if not re.fullmatch(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", date):
        raise ConfigError(f"--date is {date!r}; it must be YYYYMMDD", code="bad-option")
    from beatsight_assets.bundle.verify import durations_csv, durations_of
    from beatsight_assets.stages import read_receipt, receipt_path

    bundle = open_bundle(settled_folder(settings, name))
    target = settings.layout.report("archive", f"{date}/{name}")
    with bundle.one_version():
        kept = {n: store.read_bytes(bundle.folder / n, max_bytes=store.MAX_JSON_BYTES) for n in ARCHIVED}
        for path in sorted((bundle.folder / "history").glob("*")):
            kept[f"history/{path.name}"] = store.read_bytes(path, max_bytes=store.MAX_JSON_BYTES)
    report = read_receipt(settings, "bundle", name)
    if report is not None:
        kept["summary.json"] = store.read_bytes(receipt_path(settings, "bundle", name), max_bytes=store.MAX_JSON_BYTES)
        kept["durations.csv"] = durations_csv(durations_of(report))
    index = {}
    for relpath, content in sorted(kept.items()):
        index[relpath] = settings.store.publish(target / relpath, content).sha256
    settings.store.publish_json(target / "INDEX.json", {"bundle": name, "content_sha256": bundle.content_sha256, "files": index})
    return {"folder": settings.layout.rel(target), "files": index}


@dataclass(frozen=True)
class ArchiveOptions:
    """name : of the bundle; date : YYYYMMDD, empty = today (UTC)."""

    name: str
    date: str = ""


def run_archive(settings: Settings, options: ArchiveOptions, *, progress: Progress = silent) -> Report:
    """Stage `bundle_archive`, partition = name of the bundle: `archive` with a receipt.

    Raises
    ------
    as `archive`
    """
    date = options.date or f"{clock.utc_now():%Y%m%d}"
    bundle = open_bundle(settled_folder(settings, options.name))

    def work() -> Outcome:
        progress(f"archiving {options.name}")
        found = archive(settings, options.name, date)
        index = settings.layout.resolve(found["folder"]) / "INDEX.json"
        return Outcome(outputs=[("archive", index, len(found["files"]))], figures={"files": len(found["files"])}, facts={"date": date})

    return run_stage(
        settings,
        "bundle_archive",
        version=VERSION,
        partition=options.name,
        options={"date": date, "content_sha256": bundle.content_sha256},
        parents=[("bundle", bundle.folder / "BUNDLE.json")],
        work=work,
    )
