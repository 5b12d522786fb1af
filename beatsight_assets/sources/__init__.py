"""Reading datasets: one module per dataset says what is there and what it means; `ingest` does everything else.

A source module has, in this order: a docstring (layout, labels, group, traps), `SOURCE`, its tables, `scan`, `read`.

    scan(root, options) -> Iterator[Recording | Rejected | Skipped]   which recordings there are; reads tables, not takes
    read(root, recording, taxonomy, options) -> Reading | Rejected   one take's hits and facts

Walking, hashing, workers, batching, quarantine, publishing and the report are shared, here. Adding a dataset is one module,
one entry in configs/datasets.yaml and its tests.
"""

from __future__ import annotations

import importlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import polars as pl

from beatsight_assets import audio, events, store, workers
from beatsight_assets.errors import BeatSightError, ConfigError, InputError, NothingToDo
from beatsight_assets.events import Hits, Session
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, read_receipt, run_stage, silent
from beatsight_assets.store import is_below
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

VERSION = "1"
IGNORED_NAMES = ("Icon", "Icon\r", "desktop.ini", "__MACOSX")  # spec/sources.md section 0, rule 2
IGNORED_SUFFIXES = (".asd", ".reapeaks")
MIDI_SUFFIXES = (".mid", ".midi")
AUDIO_SUFFIXES = (".wav", ".flac", ".aif", ".aiff", ".ogg", ".mp3")
CHUNK_RECORDINGS = 64  # per worker call: amortises the hand-over, keeps progress lively
BATCH_HITS = 250_000  # per assembled frame: columns large enough to be fast, small enough to keep memory flat
MIN_ONSETS_WITH_AUDIO_SHARE = 0.05  # design/reliability.md section 5: warning `onsets_in_file`
QUARANTINE_WARN_SHARE = 0.01  # design/reliability.md section 4

_PROVENANCE_COLUMNS: dict[str, Any] = {
    "source_set": pl.String, "session_id": pl.String, "group_id": pl.String, "license_ref": pl.String, "sample_paths": pl.List(pl.String),
    "hashes": pl.List(pl.Struct({"path": pl.String, "sha256": pl.String, "bytes": pl.Int64})), "ingestion_module": pl.String,
    "code_version": pl.String, "taxonomy_version": pl.Int64, "note_map": pl.String, "processing_chain": pl.List(pl.String),
    "coverage": pl.List(pl.String), "event_count": pl.Int64, "hit_count": pl.Int64, "facts": pl.String, "issues": pl.String, "notes": pl.String,
}  # fmt: skip
PROVENANCE_SCHEMA = pl.Schema(_PROVENANCE_COLUMNS)
QUARANTINE_SCHEMA = pl.Schema(
    {"source_set": pl.String, "path": pl.String, "digest": pl.String, "stage": pl.String, "code": pl.String, "message": pl.String}
)


@dataclass(frozen=True)
class Source:
    """Facts about a dataset that do not depend on the copy at hand."""

    name: str
    licence: str
    citation: str
    url: str
    suffixes: tuple[str, ...]  # which files must be accounted for
    official_split: str = ""
    chain: tuple[str, ...] = ("midi_import",)
    options: tuple[str, ...] = ()  # keys of `options` in configs/datasets.yaml that the module knows
    configs: tuple[str, ...] = ()  # further config files it reads, by name: `options["configs"][name]` is the path, a change is seen
    companions: tuple[str, ...] = ()  # folders beside the root that are read too; a change there is a change of this dataset
    many_roots: bool = False  # every configured root holds a part of the dataset; else the first that exists is the dataset


@dataclass(frozen=True)
class Recording:
    """One session to read. Paths are POSIX, relative to the dataset root; `files` are those that exist and belong to it."""

    session: Session
    timeline: str  # the file that carries the onsets
    files: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    issues: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A file that was refused, as a value: one bad file never stops a run. `partners` are set aside with it."""

    path: str
    stage: str
    code: str
    message: str
    partners: tuple[str, ...] = ()

    @property
    def is_absent(self) -> bool:
        """Listed but not there: no damage to a file."""
        return self.code.startswith("missing-")


@dataclass(frozen=True)
class Skipped:
    """A file that is there and is no business of this dataset's events (a bass stem, a training clip), with the reason it is counted under."""

    path: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """What one recording says: hits, what its annotation could express, facts and counted remarks.

    `audio` : what decoding the session's audio found, when the module did that already
    """

    session: Session
    hits: Hits
    coverage: tuple[str, ...]
    note_map: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    issues: Mapping[str, int] = field(default_factory=dict)
    notes: str = ""
    audio: audio.AudioInfo | None = None


class SourceModule(Protocol):
    """The shape of a module in this package."""

    SOURCE: Source

    def scan(self, root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]: ...

    def read(self, root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected: ...


@dataclass(frozen=True)
class _Read:
    """A reading with what the shared code found out about its files."""

    reading: Reading
    hashes: tuple[tuple[str, str, int], ...]
    audio_rejected: Rejected | None = None


def source_module(name: str) -> SourceModule:
    """The module of a dataset by its module name in configs/datasets.yaml."""
    try:
        return cast(SourceModule, importlib.import_module(f"beatsight_assets.sources.{name}"))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"there is no source module {name!r} in beatsight_assets/sources", code="unknown-source-module", where="configs/datasets.yaml"
        ) from error


def candidate_files(root: Path, suffixes: Sequence[str]) -> tuple[list[str], list[Rejected]]:
    """Files below `root` with one of the suffixes (any case), sorted by path bytes; links out of the root are refused.

    Hidden files, `__MACOSX`, `Icon` and editor leftovers are ignored (`spec/sources.md` section 0, rule 2).
    """
    found: list[str] = []
    refused: list[Rejected] = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in IGNORED_NAMES)
        for name in files:
            lower = name.lower()
            if name.startswith(".") or name in IGNORED_NAMES or lower.endswith(IGNORED_SUFFIXES) or not lower.endswith(tuple(suffixes)):
                continue
            path = os.path.join(folder, name)
            rel = os.path.relpath(path, root)
            if os.path.islink(path) and not is_below(root, Path(path)):
                refused.append(
                    Rejected(rel, "scan", "path-escape", "a symbolic link that leads out of the dataset root. Copy the file instead")
                )
            elif os.path.isfile(path):
                found.append(rel)
    return sorted(found, key=str.encode), refused


def listing_digest(root: Path) -> str:
    """blake2b over the sorted lines `relpath NUL size NUL mtime_ns` of every file below a root: a listing, not the bytes."""
    lines = []
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if not n.startswith(".")]
        for name in files:
            if not name.startswith("."):
                stat = os.stat(os.path.join(folder, name))
                lines.append(f"{os.path.relpath(os.path.join(folder, name), root)}\0{stat.st_size}\0{stat.st_mtime_ns}")
    return blake2b("\n".join(sorted(lines)).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def module_options(settings: Settings, source_set: str) -> dict[str, Any]:
    """What `scan` and `read` get as options: those of configs/datasets.yaml, and where the config files lie that the module asks for.

    Raises
    ------
    ConfigError `unknown-choice` : an option that the module does not know
    """
    config = settings.datasets[source_set]
    source = source_module(config.module).SOURCE
    for key in config.options:
        if key not in source.options:
            raise ConfigError.unknown_choice("option", key, source.options, where=f"configs/datasets.yaml: {source_set}")
    return config.options | ({"configs": {name: str(settings.config_path(name)) for name in source.configs}} if source.configs else {})


def find_root(settings: Settings, source_set: str) -> Path | None:
    """First existing raw root of a dataset."""
    return next((r for r in settings.raw_roots(source_set) if r.is_dir()), None)


def ingest(settings: Settings, name: str, *, limit: int | None = None, progress: Progress = silent) -> Report:
    """Raw files of one dataset -> events, provenance, quarantine and an ingest report, with the dataset's gates judged.

    Raises
    ------
    ConfigError `unknown-choice`, `missing-root` : no such dataset, or none of its roots exists
    NothingToDo `no-recordings` : the root holds nothing this source can read
    """
    source_set, config = settings.dataset(name)
    root = find_root(settings, source_set)
    if root is None:
        raise ConfigError(
            f"{source_set} has no raw folder. Put the unpacked dataset at {settings.raw_roots(source_set)[0]}, or set `roots` for it",
            code="missing-root",
            where="configs/datasets.yaml",
        )
    taxonomy = Taxonomy.load(settings)
    module = source_module(config.module)
    read_options = module_options(settings, source_set)
    options = {
        "listing": [listing_digest(r) for r in (root, *(root.parent / c for c in module.SOURCE.companions)) if r.is_dir()],
        "module": config.module,
        "options": config.options,
        "configs": {name: store.hash_file(Path(path)) for name, path in read_options.get("configs", {}).items()},
        "taxonomy": taxonomy.digest,
        "limit": limit,
        "max_reject_rate": config.max_reject_rate,
    }
    return run_stage(
        settings,
        "events",
        partition=source_set,
        version=VERSION,
        options=options,
        parents=(),
        work=lambda: _ingest(settings, source_set, root, taxonomy, read_options, limit, progress),
    )


def _ingest(
    settings: Settings,
    source_set: str,
    root: Path,
    taxonomy: Taxonomy,
    options: Mapping[str, Any],
    limit: int | None,
    progress: Progress,
) -> Outcome:
    config = settings.datasets[source_set]
    module = source_module(config.module)
    candidates, refused = candidate_files(root, module.SOURCE.suffixes)
    rejected: list[Rejected] = list(refused)
    recordings: list[Recording] = []
    skipped: dict[str, str] = {}
    for found in module.scan(root, options):
        if isinstance(found, Rejected):
            rejected.append(found)
        elif isinstance(found, Skipped):
            skipped[found.path] = found.reason
        elif limit is None or len(recordings) < limit:
            recordings.append(found)
    rejected += _repeated_sessions(recordings)
    if not recordings and not rejected:
        raise NothingToDo(f"{root} holds nothing that {config.module} can read. Is this the folder of {source_set}?", code="no-recordings")
    progress(f"{source_set}: {len(recordings):,} recordings listed, {len(rejected):,} refused while listing")

    frames: list[pl.DataFrame] = []
    provenance: list[dict[str, Any]] = []
    batch: list[_Read] = []
    silent_set_aside: list[str] = []
    n_done = n_waiting = 0

    def flush() -> None:
        if batch:
            frames.append(_assemble(source_set, batch, taxonomy, module, provenance))
            batch.clear()

    chunks = [recordings[i : i + CHUNK_RECORDINGS] for i in range(0, len(recordings), CHUNK_RECORDINGS)]
    jobs = [(config.module, root, chunk, settings.config_path("taxonomy"), options) for chunk in chunks]
    with workers.executor(settings.executor, settings.n_workers) as pool:
        for results in workers.ordered_map(pool, _read_chunk, jobs, n_workers=settings.n_workers):
            for result in results:
                if isinstance(result, Rejected):
                    rejected.append(result)
                    silent_set_aside += result.partners
                    continue
                if result.audio_rejected:
                    rejected.append(result.audio_rejected)
                batch.append(result)
                n_waiting += len(result.reading.hits)
                if n_waiting >= BATCH_HITS:
                    flush()
                    n_waiting = 0
            n_done += len(results)
            progress(f"{source_set}: {n_done:,} of {len(recordings):,} recordings read")
    flush()

    frame = (pl.concat(frames) if frames else events.empty_frame()).sort(["session_id", "onset_time"], maintain_order=True)
    quarantine = _quarantine_frame(settings, source_set, root, rejected)
    refused_paths = {r.path for r in rejected}
    used = {path for row in provenance for path in row["sample_paths"]} - refused_paths
    listed = {path for r in recordings for path in r.files}
    out_of_scope = [c for c in candidates if c not in used and c not in refused_paths]
    partners = set(silent_set_aside)
    unexplained = [c for c in out_of_scope if c not in partners and limit is None and c in listed]
    layout, keep = settings.layout, settings.store
    outputs: list[tuple[str, Path, int | None]] = [
        (
            "events",
            keep.publish_frame(layout.events(source_set), frame, metadata=events.parquet_metadata(taxonomy, source_set)).path,
            frame.height,
        ),
        (
            "provenance",
            keep.publish_frame(layout.provenance(source_set), pl.DataFrame(provenance, schema=PROVENANCE_SCHEMA).sort("session_id")).path,
            len(provenance),
        ),
        ("quarantine", keep.publish_frame(layout.quarantine(source_set), quarantine).path, quarantine.height),
    ]
    n_absent = sum(r.is_absent for r in rejected)
    n_hits = sum(row["hit_count"] for row in provenance)
    issues = events.sum_counts([_json_counts(row["issues"]) for row in provenance])
    labels = events.label_counts(frame)
    techniques = (
        frame.select(pl.col("techniques").explode(empty_as_null=False, keep_nulls=False).alias("t"))
        .group_by("t")
        .len()
        .sort(["len", "t"], descending=[True, False])
    )
    codes = dict(sorted(Counter(r.code for r in rejected).items()))
    figures: dict[str, float | int] = {
        "recordings": len(provenance),
        "events": frame.height,
        "hits": n_hits,
        "rejected": len(rejected) - n_absent,
        "absent": n_absent,
        "candidates": len(candidates),
        "used": len(used & set(candidates)),
        "out_of_scope": len(out_of_scope),
        "hours": round(_hours(frame), 4),
    }
    report = {
        **figures,
        "source_set": source_set,
        "licence": module.SOURCE.licence,
        "labels": labels,
        "techniques": dict(techniques.iter_rows()),
        "codes": codes,
        "issues": issues,
        "out_of_scope_reasons": dict(sorted(Counter(skipped.get(c, "not-listed") for c in out_of_scope).items())),
        "unexplained_files": unexplained[:20],
    }
    outputs.append(("report", keep.publish_json(layout.report("ingest", f"{source_set}.json"), report).path, None))
    figures["yardstick_events"] = _yardstick(settings, source_set, frame.height)
    verdict = _judge(settings, source_set, frame, taxonomy, provenance, figures, issues, rejected, candidates, unexplained, outputs, limit)
    return Outcome(
        outputs=outputs,
        figures=figures,
        facts={"codes": codes, "issues": issues, "labels": labels, "licence": module.SOURCE.licence},
        verdicts=(verdict,),
        table=Table(("component", "hits"), tuple(list(labels.items())[:12])),
    )


def _read_chunk(job: tuple[str, Path, Sequence[Recording], Path, Mapping[str, Any]]) -> list[_Read | Rejected]:
    """Read some recordings; what goes wrong with one of them is a value. Runs in a worker process."""
    name, root, recordings, taxonomy_path, options = job
    module = source_module(name)
    taxonomy = Taxonomy.at(taxonomy_path)
    results: list[_Read | Rejected] = []
    for recording in recordings:
        partners = tuple(f for f in recording.files if f != recording.timeline)
        try:
            reading = module.read(root, recording, taxonomy, options)
            if isinstance(reading, Rejected):
                results.append(replace(reading, partners=reading.partners or partners))
            elif len(reading.hits) == 0:
                results.append(
                    Rejected(
                        recording.timeline,
                        "read",
                        "no-events",
                        "the file holds no drum hit. Is it the right channel or note map?",
                        partners,
                    )
                )
            else:
                results.append(_with_files(root, recording, reading))
        except BeatSightError as error:
            results.append(Rejected(recording.timeline, "read", error.code, error.message, partners))
        except Exception as error:  # the worker's item boundary: our bug is shown as such and does not stop the others
            results.append(
                Rejected(recording.timeline, "read", "internal-error", f"{type(error).__name__}: {error}. Please report this", partners)
            )
    return results


def _with_files(root: Path, recording: Recording, reading: Reading) -> _Read:
    """Digests of the recording's files, and what its audio can hold of its onsets."""
    session = reading.session
    facts, issues = dict(recording.facts) | dict(reading.facts), Counter(dict(recording.issues)) + Counter(dict(reading.issues))
    rejected: Rejected | None = None
    files = recording.files
    facts["audio_present"] = False
    if session.audio_path is not None and session.audio_path in files:
        try:
            info = reading.audio or audio.probe(root / session.audio_path, silent_ok=True)
            facts |= {"audio_present": True, "duration_seconds": info.duration_s, "rate_hz": info.rate_hz, "channels": info.n_channels}
            onsets = np.sort(reading.hits.onset_us)
            opens = events.anchors(np.zeros(len(onsets), dtype=np.int64), onsets)
            n_past = int((onsets[opens] >= round(info.duration_s * 1e6)).sum())
            if n_past:
                issues["past_audio_end"] += n_past
            if info.is_silent and n_past < opens.sum():
                raise audio.AudioError(
                    f"peak is {info.peak_dbfs:.0f} dBFS; a recording of drums is louder than -80 dBFS", code="silent-audio"
                )
        except BeatSightError as error:
            rejected = Rejected(session.audio_path, "audio", error.code, error.message)
            facts["audio_present"] = False
    if not facts["audio_present"]:
        issues["audio_absent"] += 1
    facts["midi_content"] = _content_digest(reading.hits)
    hashes = []
    for name in files:
        path = root / name
        size = path.stat().st_size
        hashes.append((name, store.hash_file(path), size))
        if path.stat().st_size != size:
            raise InputError("the file grew or shrank while it was read. Wait until the copy is complete", code="changed-while-reading")
    return _Read(replace(reading, facts=facts, issues=dict(issues)), tuple(hashes), rejected)


def _content_digest(hits: Hits) -> str:
    """Digest of what was played (onset, component, variant, strike, velocity): equal for the same performance under two names."""
    names = np.array([f"{v.label}/{v.variant}/{v.strike}" for v in hits.voices])[hits.voice]
    order = np.lexsort((hits.velocity, names, hits.onset_us))
    content = sha256("\n".join(names[order].tolist()).encode())
    content.update(np.ascontiguousarray(hits.onset_us[order]).tobytes())
    content.update(np.ascontiguousarray(hits.velocity[order]).tobytes())
    return content.hexdigest()


def _assemble(
    source_set: str, batch: Sequence[_Read], taxonomy: Taxonomy, module: SourceModule, provenance: list[dict[str, Any]]
) -> pl.DataFrame:
    assembled = events.assemble(source_set, [(r.reading.session, r.reading.hits) for r in batch], taxonomy)
    for i, item in enumerate(batch):
        reading, session = item.reading, item.reading.session
        issues = Counter(dict(reading.issues))
        issues.update({"collapsed_hits": int(assembled.n_collapsed[i]), "openness_null": int(assembled.n_openness_null[i])})
        provenance.append(
            {
                "source_set": source_set,
                "session_id": session.session_id,
                "group_id": session.group_id,
                "license_ref": module.SOURCE.licence,
                "sample_paths": [path for path, _, _ in item.hashes],
                "hashes": [{"path": p, "sha256": d, "bytes": n} for p, d, n in item.hashes],
                "ingestion_module": module.SOURCE.name,
                "code_version": VERSION,
                "taxonomy_version": taxonomy.version,
                "note_map": reading.note_map,
                "processing_chain": list(module.SOURCE.chain),
                "coverage": list(reading.coverage),
                "event_count": int(assembled.n_events[i]),
                "hit_count": int(assembled.n_hits[i]),
                "facts": store.to_json_bytes(dict(reading.facts), indent=None).decode().strip(),
                "issues": store.to_json_bytes({k: v for k, v in sorted(issues.items()) if v}, indent=None).decode().strip(),
                "notes": reading.notes,
            }
        )
    return assembled.frame


def _repeated_sessions(recordings: list[Recording]) -> list[Rejected]:
    """Refuse a second recording with the same session id; the first in scan order stays."""
    seen: set[str] = set()
    repeated = []
    for recording in list(recordings):
        if recording.session.session_id in seen:
            recordings.remove(recording)
            repeated.append(
                Rejected(recording.timeline, "scan", "duplicate-session", f"session {recording.session.session_id} is listed twice")
            )
        seen.add(recording.session.session_id)
    return repeated


def _quarantine_frame(settings: Settings, source_set: str, root: Path, rejected: Iterable[Rejected]) -> pl.DataFrame:
    """Exactly one row per refused file: the first reason wins."""
    rows: dict[str, dict[str, Any]] = {}
    for r in rejected:
        digest = store.hash_file(root / r.path) if r.code != "path-escape" and (root / r.path).is_file() else None
        rows.setdefault(
            r.path,
            {
                "source_set": source_set,
                "path": store.printable(r.path),
                "digest": digest,
                "stage": r.stage,
                "code": r.code,
                "message": store.printable(r.message),
            },
        )
    return pl.DataFrame(list(rows.values()), schema=QUARANTINE_SCHEMA).sort(["path", "stage"])


def _judge(
    settings: Settings,
    source_set: str,
    frame: pl.DataFrame,
    taxonomy: Taxonomy,
    provenance: Sequence[Mapping[str, Any]],
    figures: Mapping[str, float | int],
    issues: Mapping[str, int],
    rejected: Sequence[Rejected],
    candidates: Sequence[str],
    unexplained: Sequence[str],
    outputs: Sequence[tuple[str, Path, int | None]],
    limit: int | None,
) -> Verdict:
    """The gates of one dataset partition (`design/dagster.md` section 1, row events)."""
    counts, broken = events.find_violations(frame, taxonomy)
    n_broken = sum(counts.values())
    refused = [r for r in rejected if not r.is_absent]
    n_files = max(1, len(candidates))
    share = len({r.path for r in refused}) / n_files
    most_refused = settings.datasets[source_set].max_reject_rate
    n_ids = frame["event_id"].n_unique() if frame.height else 0
    without = set(frame["session_id"].unique().to_list()) - {p["session_id"] for p in provenance}
    n_unknown = sum(events.unknown_labels(frame, taxonomy).values())
    past = issues.get("past_audio_end", 0)
    internal = [r for r in refused if r.code == "internal-error"]
    yields = frame.height / max(1, figures["yardstick_events"])
    n_listed = int(figures["recordings"]) + int(figures["absent"])
    rules = (
        Rule.at_most(
            "schema", float(n_broken), 0.0, "; ".join(f"{v.rule} at {v.event_id}" for v in broken[:3]) or "every row keeps the schema"
        ),
        Rule.at_most("event_ids_unique", float(frame.height - n_ids), 0.0, "repeated event ids"),
        Rule(
            "labels_known",
            n_unknown <= issues.get("unknown_label", 0),  # doubles of one unknown label were counted each and collapsed since
            float(n_unknown),
            float(issues.get("unknown_label", 0)),
            "labels outside the taxonomy are counted as unknown_label",
        ),
        Rule.at_most("provenance_complete", float(len(without)), 0.0, "sessions without a provenance row"),
        Rule(
            "accounted",
            not unexplained and not internal and share <= most_refused,
            round(share, 6),
            most_refused,
            f"used + refused + out of scope = {figures['candidates']} files; refused share against max_reject_rate"
            + (f"; unexplained: {unexplained[0]}" if unexplained else "")
            + (f"; internal errors: {len(internal)}" if internal else ""),
        ),
        Rule(
            "complete",
            limit is None,
            None if limit is None else float(limit),
            None,
            "the whole dataset was read" if limit is None else "read with --limit: for a look, not for training",
        ),
        Rule.at_least(
            "listed_present", 1.0 - int(figures["absent"]) / max(1, n_listed), 0.99, "listed recordings that are there", blocking=False
        ),
        Rule.at_least("yield_vs_last_run", yields, 0.9, "events against the last ingest", blocking=False),
        Rule.at_most("quarantine_share", round(share, 6), QUARANTINE_WARN_SHARE, "refused files, absent ones not counted", blocking=False),
        Rule.at_most(
            "onsets_in_file",
            past / max(1, frame.height),
            MIN_ONSETS_WITH_AUDIO_SHARE,
            "events past the end of their audio",
            blocking=False,
        ),
    )
    reasons = (
        () if frame.height else (Reason("no-events", f"no event could be read; {len(rejected)} files were refused or absent", source_set),)
    )
    inputs = tuple(Artifact(role, settings.store.rel(path), settings.store.sha256(path), rows) for role, path, rows in outputs)
    return Verdict("ingest", rules, inputs=inputs, figures=dict(figures), reasons=reasons, profile=settings.profile)


def _yardstick(settings: Settings, source_set: str, n_events: int) -> int:
    """Events of the last ingest that was green and not itself far below its yardstick: a loss stays visible until it is made good."""
    last = read_receipt(settings, "events", source_set)
    verdict = last.verdict("ingest") if last else None
    if last is None or verdict is None:
        return n_events
    rule = verdict.rule("yield_vs_last_run")
    is_sound = verdict.passed and (rule is None or rule.passed)
    return int(last.figures["events"] if is_sound else last.figures.get("yardstick_events", n_events))


def _json_counts(text: str) -> dict[str, int]:
    return {k: int(v) for k, v in json.loads(text).items()}


def _hours(frame: pl.DataFrame) -> float:
    """Hours of music: the last onset of each session, summed."""
    if not frame.height:
        return 0.0
    return float(frame.group_by("session_id").agg(pl.col("onset_time").max())["onset_time"].sum() or 0.0) / 3600.0
