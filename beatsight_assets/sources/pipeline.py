"""From raw files to events, provenance, quarantine and a report: what every dataset shares.

The tables of the last ingest are its cache. A recording whose description and files are what they were takes its rows from there;
only the others are read. The result is byte for byte that of reading everything.

Recordings are worked on in the order of their session ids, so rows leave in the order of the table: memory holds a few hundred
thousand events, however many files there are.
"""

from __future__ import annotations

import ast
import importlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import blake2b, sha256
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import audio, events, store, workers
from beatsight_assets.errors import BeatSightError, ConfigError, InputError, NothingToDo, StoreError
from beatsight_assets.events import Hits, Session
from beatsight_assets.settings import Settings
from beatsight_assets.sources import inventory, misplaced
from beatsight_assets.sources.trees import FileState, Tree, find_roots
from beatsight_assets.sources.types import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, SourceModule
from beatsight_assets.stages import Outcome, Progress, Report, Table, is_intact, read_receipt, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import keyed_order
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

VERSION = "2"
CHUNK_RECORDINGS = 64  # per worker call: amortises the hand-over, keeps progress lively
BATCH_FILES = 4_096  # hashed per call: a file's way through the store takes a kilobyte
BATCH_EVENTS = 64_000  # per assembled frame: columns large enough to be fast, small enough to keep memory flat
SLOT_BITS = 27  # 16 MiB: of ten million ids one in 25 shares its slot with another
MIN_ONSETS_WITH_AUDIO_SHARE = 0.05  # design/reliability.md section 5: warning `onsets_in_file`
QUARANTINE_WARN_SHARE = 0.01  # design/reliability.md section 4
NOT_LISTED = "not-listed"  # a candidate that the source module never spoke of
PLUMBING = ("errors", "clock", "settings", "stages", "store", "verdict", "workers")  # moves rows and does not make them

_PROVENANCE_COLUMNS: dict[str, Any] = {
    "source_set": pl.String, "session_id": pl.String, "group_id": pl.String, "license_ref": pl.String, "sample_paths": pl.List(pl.String),
    "hashes": pl.List(pl.Struct({"path": pl.String, "sha256": pl.String, "bytes": pl.Int64})), "ingestion_module": pl.String,
    "code_version": pl.String, "taxonomy_version": pl.Int64, "note_map": pl.String, "processing_chain": pl.List(pl.String),
    "coverage": pl.List(pl.String), "event_count": pl.Int64, "hit_count": pl.Int64, "facts": pl.String, "issues": pl.String, "notes": pl.String,
    "content_key": pl.String,  # digest of all that the rows of this session depend on; null: read it again
}  # fmt: skip
PROVENANCE_SCHEMA = pl.Schema(_PROVENANCE_COLUMNS)
QUARANTINE_SCHEMA = pl.Schema(
    {"source_set": pl.String, "path": pl.String, "digest": pl.String, "stage": pl.String, "code": pl.String, "message": pl.String}
)

_SESSION_FIELDS = tuple(f.name for f in fields(Session))

Place = tuple[int, str]  # number of the root, POSIX path below it


@dataclass(frozen=True, slots=True)
class _Item:
    """A recording with the places of its files; `audio` is where its sound was found."""

    recording: Recording
    n_root: int
    audio: Place | None
    places: tuple[Place, ...] = ()

    @classmethod
    def of(cls, recording: Recording, n_root: int, audio: Place | None) -> _Item:
        own = tuple((n_root, f) for f in recording.files)
        return cls(recording, n_root, audio, own if audio is None or audio in own else (*own, audio))

    @property
    def session_id(self) -> str:
        return self.recording.session.session_id


@dataclass(frozen=True)
class _Job:
    """What a worker needs to read one recording."""

    root: Path
    recording: Recording
    audio: Path | None
    files: tuple[tuple[Path, FileState], ...]


@dataclass(frozen=True)
class _Read:
    """A reading, and what is wrong with its audio."""

    reading: Reading
    audio_rejected: Rejected | None = None


@dataclass
class _Found:
    """What the source module says is there, over all roots, with every candidate accounted for."""

    items: list[_Item] = field(default_factory=list)
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)
    skipped: dict[Place, str] = field(default_factory=dict)
    candidates: set[Place] = field(default_factory=set)
    listed: set[Place] = field(default_factory=set)  # files of any recording, also of one beyond --limit
    n_taken_once: int = 0


def source_module(name: str) -> SourceModule:
    """The module of a dataset by its name in configs/datasets.yaml: in this package, or with a dot any module that Python finds.

    Raises
    ------
    ConfigError `unknown-source-module` : not there, or without a SOURCE
    """
    try:
        module = importlib.import_module(name if "." in name else f"beatsight_assets.sources.{name}")
    except ModuleNotFoundError as error:
        place = "where Python looks for modules; is its package installed, or its folder in PYTHONPATH?"
        raise ConfigError(
            f"there is no source module {name!r} {place if '.' in name else 'in beatsight_assets/sources'}",
            code="unknown-source-module",
            where="configs/datasets.yaml",
        ) from error
    if not isinstance(getattr(module, "SOURCE", None), Source):
        raise ConfigError(f"{name!r} is no source module: it has no SOURCE", code="unknown-source-module", where="configs/datasets.yaml")
    return cast(SourceModule, module)


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
    names = [n for name in source.configs for n in (settings.config_names(name) if name.endswith("/") else (name,))]
    return config.options | ({"configs": {name: str(settings.config_path(name)) for name in names}} if names else {})


@lru_cache(maxsize=64)
def code_digest(module: str) -> str:
    """Digest of the code that turns the files of a source module into rows: rows made by other code are made again."""
    package = Path(__file__).parent.parent
    found: dict[str, bytes] = {}
    waiting = [f"sources.{module}", "sources.pipeline"]
    own = Path(source_module(module).__file__ or "") if "." in module else None  # a module of somebody else's package
    while waiting:
        name = waiting.pop()
        path = own if own and name == f"sources.{module}" else package.joinpath(*name.split(".")).with_suffix(".py")
        if name in found or name.partition(".")[0] in PLUMBING or not path.is_file():
            continue
        found[name] = path.read_bytes()
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package.name:
                base = (node.module or "").partition(".")[2]
                waiting += [base, *(f"{base}.{alias.name}".strip(".") for alias in node.names)]
    return blake2b(b"\0".join(name.encode() + b"\0" + found[name] for name in sorted(found)), digest_size=16).hexdigest()


def ingest(
    settings: Settings,
    name: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    hash_audio: bool = True,
    license_ref: str | None = None,
    ingestion_version: str | None = None,
    technique_names: Collection[str] | None = None,
    progress: Progress = silent,
) -> Report:
    """Raw files of one dataset -> events, provenance, quarantine and an ingest report, with the dataset's gates judged.

    Parameters
    ----------
    limit : only so many recordings, chosen by `seed`: for a look, never green
    hash_audio : without it audio is known by size and time of change, and its sha256 in provenance is null
    license_ref : licence in provenance instead of the source's own
    ingestion_version : the user's name for this reading, in provenance behind the version of the code
    technique_names : what events may be tagged with (rule `schema`); None = the configured catalogue

    Raises
    ------
    ConfigError `unknown-choice`, `missing-root` : no such dataset, or none of its roots exists
    NothingToDo `no-recordings` : the root holds nothing this source can read
    StoreError `io-error` : a raw folder cannot be listed
    """
    source_set, config = settings.dataset(name)
    work, meaning = _prepare(settings, source_set, hash_audio=hash_audio, license_ref=license_ref, ingestion_version=ingestion_version)
    work.limit, work.seed = limit, seed
    if technique_names is not None:
        work.technique_names = frozenset(technique_names)
    options = meaning | {
        "listing": [t.digest for t in (*work.trees, *work.companions)],
        "limit": limit if limit is None else [limit, seed],
        "techniques": sorted(work.technique_names),
        "max_reject_rate": config.max_reject_rate,
    }
    return run_stage(
        settings, "events", partition=source_set, version=VERSION, options=options, parents=(), work=lambda: work.run(progress)
    )


def take_inventory(
    settings: Settings, name: str, *, limit: int | None = None, seed: int = 0, hash_audio: bool = True, progress: Progress = silent
) -> Report:
    """Every track of a multitrack archive over all its roots, without reading a row of events; `ingest` writes the same list.

    Parameters
    ----------
    limit : only so many sessions of each root, chosen by `seed`

    Raises
    ------
    ConfigError `bad-option` : the dataset's module does not say which folder is a session; `unknown-choice`, `missing-root`
    NothingToDo `no-recordings`
    """
    source_set, _ = settings.dataset(name)
    work, meaning = _prepare(settings, source_set, hash_audio=hash_audio)
    if (folder_of := inventory.folder_rule(work.module)) is None:
        raise ConfigError(f"{source_set} has no session folders to list", code="bad-option", where="--inventory-only")

    def made() -> Outcome:
        progress(f"{source_set}: listing {sum(len(tree.files) for tree in work.trees):,} files below {len(work.trees)} root(s)")
        rows = inventory.list_sessions(settings, folder_of, work.options, work.trees, hash_audio=hash_audio, limit=limit, seed=seed)
        return inventory.outcome(settings, source_set, rows)

    options = {**meaning, "listing": [t.digest for t in work.trees], "limit": limit if limit is None else [limit, seed]}
    return run_stage(settings, "inventory", partition=source_set, version=VERSION, options=options, parents=(), work=made)


def _prepare(
    settings: Settings,
    source_set: str,
    *,
    hash_audio: bool = True,
    license_ref: str | None = None,
    ingestion_version: str | None = None,
) -> tuple[_Ingest, dict[str, Any]]:
    """An ingest that has walked its roots, and what besides the files decides its rows."""
    config = settings.datasets[source_set]
    roots = find_roots(settings, source_set)
    configured = settings.raw_roots(source_set)
    if not roots:
        raise ConfigError(
            f"{source_set} has no raw folder. Put the unpacked dataset at {configured[0]}, or set `roots` for it",
            code="missing-root",
            where="configs/datasets.yaml",
        )
    taxonomy = Taxonomy.load(settings)
    module = source_module(config.module)
    if module.SOURCE.many_roots and len(roots) < len(configured) and config.roots_needed == "all":
        absent = next(r for r in configured if r not in roots)
        raise ConfigError(
            f"{absent} holds a part of {source_set} and is not there. Mount it, or set `roots_needed: any`",
            code="missing-root",
            where="configs/datasets.yaml",
        )
    read_options = module_options(settings, source_set)
    trees = [Tree.at(r) for r in roots]
    companions = _companions(module, roots)
    meaning = {
        "module": config.module,
        "options": config.options,
        "taxonomy": taxonomy.digest,
        "configs": {name: store.hash_file(Path(path)) for name, path in read_options.get("configs", {}).items()},
        "code": code_digest(config.module),
        "hash_audio": hash_audio,
        "license_ref": license_ref,
        "ingestion_version": ingestion_version,
    }
    return _Ingest(settings, source_set, module, taxonomy, read_options, trees, companions, meaning), meaning


def _companions(module: SourceModule, roots: Sequence[Path]) -> list[Tree]:
    """The folders beside the first root that the module reads too."""
    return [Tree.at(r) for c in module.SOURCE.companions if (r := roots[0].parent / c).is_dir()]


def read_state(settings: Settings, source_set: str) -> str | None:
    """Digest of the listings of all roots of a dataset that its config needs, and of the folders beside them that it reads too.

    None when one of them is absent, empty (as the mount point of an absent disk is) or not readable: that is not a change.
    """
    configured, config = settings.raw_roots(source_set), settings.datasets[source_set]
    try:
        trees = {r: tree for r in find_roots(settings, source_set) if (tree := Tree.at(r)).files}
        beside = _companions(source_module(config.module), list(trees)) if trees else []
    except (StoreError, ConfigError):  # a module that is not there: the ingest says so
        return None
    if not trees or (len(trees) < len(configured) and config.roots_needed == "all"):
        return None
    digests = [tree.digest for tree in (*trees.values(), *beside)]
    return digests[0] if len(configured) + len(beside) == 1 else blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()


def scan(settings: Settings, name: str) -> dict[str, Any]:
    """What an ingest would find, as figures and lists; nothing is written.

    Raises
    ------
    ConfigError, StoreError : as `ingest`
    """
    source_set, _ = settings.dataset(name)
    work, _ = _prepare(settings, source_set)
    found = work.scan()
    refused = {(n, r.path): r for n, r in reversed(found.rejected)}
    out_of_scope = found.candidates - found.listed - set(refused)
    return {
        "source_set": source_set,
        "roots": len(work.trees),
        "recordings": len(found.items),
        "with_audio": sum(item.audio is not None for item in found.items),
        "files": len(found.candidates),
        "out_of_scope": dict(sorted(Counter(found.skipped.get(c, NOT_LISTED) for c in out_of_scope).items())),
        "refused": [{"path": r.path, "code": r.code} for _, r in sorted(refused.items())],
        "note": None if found.items or refused else work.nothing_there(found),
    }


class _Ingest:
    """One ingest of one dataset."""

    def __init__(
        self,
        settings: Settings,
        source_set: str,
        module: SourceModule,
        taxonomy: Taxonomy,
        options: Mapping[str, Any],
        trees: Sequence[Tree],
        companions: Sequence[Tree],
        meaning: Mapping[str, Any],
    ) -> None:
        self.settings, self.source_set, self.module, self.taxonomy = settings, source_set, module, taxonomy
        self.config, self.options = settings.datasets[source_set], options
        self.trees, self.companions, self.meaning = trees, companions, meaning
        self.limit: int | None = None
        self.seed = 0
        self.technique_names = frozenset(technique.id for technique in settings.techniques.techniques)
        self.digests: dict[Place, str | BeatSightError | None] = {}
        self.fresh: list[bytes] = []  # provenance rows of each frame, compressed: a fifth of the memory
        self.kept_sessions: list[str] = []
        self.tally = Tally(taxonomy)

    # ---- what is there ----------------------------------------------------------------------------------------------------

    def scan(self) -> _Found:
        """Recordings of all roots; a session that an earlier root has too is taken once, or refused when its files differ."""
        found = _Found()
        by_session: dict[str, _Item] = {}
        n_roots = len(self.trees) if self.module.SOURCE.many_roots else 1
        for n_root, tree in enumerate(self.trees[:n_roots]):
            candidates, refused = tree.candidates(self.module.SOURCE.suffixes)
            found.candidates.update((n_root, c) for c in candidates)
            found.rejected += [(n_root, r) for r in refused]
            for one in self._listed(tree):
                if isinstance(one, Rejected):
                    found.rejected.append((n_root, one))
                elif isinstance(one, Skipped):
                    found.skipped[n_root, one.path] = one.reason
                else:
                    self._take(found, by_session, one, n_root)
        found.listed = {p for item in found.items for p in item.places}
        return found

    def _listed(self, tree: Tree) -> Iterator[Recording | Rejected | Skipped]:
        try:
            yield from self.module.scan(tree.root, self.options)
        except InputError as error:
            if error.code != "missing-metadata":
                raise
            more = misplaced.advice(self.module, tree, self.options)
            raise InputError(f"{error.message} {more}", code=error.code, where=error.where) from error

    def _take(self, found: _Found, by_session: dict[str, _Item], recording: Recording, n_root: int) -> None:
        recording = _with_one_spelling(recording)
        session_id = recording.session.session_id
        first = by_session.get(session_id)
        if first is None:
            item = by_session[session_id] = self._with_audio(recording, n_root)
            found.items.append(item)
        elif first.n_root == n_root:
            found.rejected.append(
                (n_root, Rejected(recording.timeline, "scan", "duplicate-session", f"session {session_id} is listed twice"))
            )
        else:
            differing = [f for f in recording.files if not self._is_same_file(f, first.n_root, n_root)]
            found.skipped.update({(n_root, f): "same-in-an-earlier-root" for f in recording.files if f not in differing})
            found.n_taken_once += not differing
            for f in differing:
                message = f"root {n_root + 1} and root {first.n_root + 1} hold different files of one session; the first is used"
                found.rejected.append((n_root, Rejected(f, "scan", "duplicate-session", message)))

    def _is_same_file(self, path: str, a: int, b: int) -> bool:
        if path not in self.trees[a].files or path not in self.trees[b].files:
            return False
        one, other = self.settings.store.sha256_all([self.trees[a].root / path, self.trees[b].root / path])
        return isinstance(one, str) and one == other

    def _with_audio(self, recording: Recording, n_root: int) -> _Item:
        """Where the sound of a recording lies: with it, else below the roots in their order, there with any audio suffix."""
        wanted = recording.session.audio_path
        if wanted is None or wanted in recording.files:
            return _Item.of(recording, n_root, None if wanted is None else (n_root, wanted))
        for n, tree in enumerate(self.trees):
            path = tree.find_audio(wanted)
            if path is not None:
                facts = {**recording.facts, "audio_root": n} if n != n_root else recording.facts
                moved = replace(recording, session=replace(recording.session, audio_path=path), facts=facts)
                return _Item.of(moved, n_root, (n, path))
        return _Item.of(recording, n_root, None)

    def nothing_there(self, found: _Found) -> str:
        """What to say when no root holds a recording: why its files were passed over, where it was looked and what belongs there."""
        passed = ", ".join(f"{reason} {n:,}" for reason, n in sorted(Counter(found.skipped.values()).items()))
        files = f"; passed over: {passed}" if passed else ""
        return f"nothing here is a recording of {self.source_set}{files}. {misplaced.advice(self.module, self.trees[0], self.options)}"

    # ---- what is new ------------------------------------------------------------------------------------------------------

    def digest_files(self, places: Sequence[Place]) -> None:
        """Digests of files, remembered ones without reading them; audio has none under `--no-hash-audio`."""
        for start in range(0, len(places), BATCH_FILES):
            part = places[start : start + BATCH_FILES]
            is_left_out = [not self.meaning["hash_audio"] and p[1].lower().endswith(AUDIO_SUFFIXES) for p in part]
            wanted = [p for p, out in zip(part, is_left_out, strict=True) if not out]
            self.digests |= {p: None for p, out in zip(part, is_left_out, strict=True) if out}
            self.digests |= zip(wanted, self.settings.store.sha256_all([self.path(p) for p in wanted]), strict=True)

    def path(self, place: Place) -> Path:
        return self.trees[place[0]].root / place[1]

    def state(self, place: Place) -> FileState:
        """As the walk saw it; a file beside the root is looked at now."""
        return self.trees[place[0]].files.get(place[1]) or FileState.of(self.path(place))

    def rest_digest(self, found: _Found) -> str:
        """Digest of the files that a reading may depend on without saying so: all that are no candidates, no recording's and no tables."""
        source = self.module.SOURCE
        paths = [
            tree.root / rel
            for n, tree in enumerate(self.trees[: None if source.many_roots else 1])
            for rel in sorted(tree.files)
            if not rel.lower().endswith(source.suffixes)
            and (n, rel) not in found.listed
            and not any(fnmatchcase(rel, t) for t in source.tables)
        ] + [tree.root / rel for tree in self.companions for rel in sorted(tree.files)]
        digests = self.settings.store.sha256_all(paths)
        lines = [f"{path.name}\0{d if isinstance(d, str) else '-'}" for path, d in zip(paths, digests, strict=True)]
        return blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()

    def key(self, item: _Item, rest: str) -> str:
        """Digest of all that the rows of a recording depend on, code and taxonomy left out (they stand in the receipt)."""
        r = item.recording
        files: list[Any] = []
        for place in item.places:
            digest = self.digests[place]
            state = None if digest is not None else self.state(place)
            files.append([place[1], digest if state is None else [state.n_bytes, state.mtime_ns]])
        said = [
            rest,
            {name: getattr(r.session, name) for name in _SESSION_FIELDS},
            r.timeline,
            files,
            dict(r.facts),
            dict(r.issues),
            item.audio and item.audio[1],
        ]
        return blake2b(json.dumps(said, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()

    # ---- the work ---------------------------------------------------------------------------------------------------------

    def run(self, progress: Progress) -> Outcome:
        """Read what is new, take the rest from the last tables, publish, judge."""
        found = self.scan()
        if not found.items and not found.rejected:
            raise NothingToDo(self.nothing_there(found), code="no-recordings")
        progress(f"{self.source_set}: {len(found.items):,} recordings listed, {len(found.rejected):,} refused while listing")
        items = sorted(found.items, key=lambda i: i.session_id)
        if self.limit is not None:
            chosen = sorted(items, key=lambda i: keyed_order(self.seed, i.session_id))[: self.limit]
            items = sorted(chosen, key=lambda i: i.session_id)
        self.digest_files(sorted({p for item in items for p in item.places}))
        unreadable = [(item, bad) for item in items if (bad := self._unreadable(item)) is not None]
        found.rejected += [bad for _, bad in unreadable]
        gone = {item.session_id for item, _ in unreadable}
        items = [item for item in items if item.session_id not in gone]
        rest = self.rest_digest(found)
        keys = {item.session_id: self.key(item, rest) for item in items}
        last = _Last.of(self.settings, self.source_set, self.meaning)
        partners: set[Place] = set()

        layout, keep = self.settings.layout, self.settings.store
        path = layout.events(self.source_set)
        keep.publish_frames(
            path,
            self._frames(items, keys, last, found, partners, progress),
            events.EVENT_SCHEMA,
            metadata=events.parquet_metadata(self.taxonomy, self.source_set),
        )
        kept = last.provenance.filter(pl.col("session_id").is_in(self.kept_sessions))
        provenance = pl.concat([kept, *(pl.read_ipc(rows) for rows in self.fresh)]).sort("session_id")
        quarantine = self._quarantine(found)
        outputs: list[tuple[str, Path, int | None]] = [
            ("events", path, self.tally.n_events),
            ("provenance", keep.publish_frame(layout.provenance(self.source_set), provenance).path, provenance.height),
            ("quarantine", keep.publish_frame(layout.quarantine(self.source_set), quarantine).path, quarantine.height),
        ]
        return self._outcome(found, items, provenance, outputs, partners)

    def _unreadable(self, item: _Item) -> tuple[int, Rejected] | None:
        for place in item.places:
            digest = self.digests[place]
            if isinstance(digest, BeatSightError):
                partners = tuple(f for f in item.recording.files if f != place[1])
                return place[0], Rejected(place[1], "read", digest.code, digest.message, partners)
        return None

    def _frames(
        self,
        items: Sequence[_Item],
        keys: Mapping[str, str],
        last: _Last,
        found: _Found,
        partners: set[Place],
        progress: Progress,
    ) -> Iterator[pl.DataFrame]:
        """Events in the order of session ids, some hundred thousand at a time; fills the provenance rows and the tally on the way."""
        new = [item for item in items if last.rows_of(item.session_id, keys[item.session_id]) is None]
        readings = self._readings(new)
        batch: list[tuple[_Item, _Read | slice]] = []
        n_waiting = 0
        for n_done, item in enumerate(items, 1):
            rows = last.rows_of(item.session_id, keys[item.session_id])
            result = rows if rows is not None else next(readings)
            if isinstance(result, Rejected):
                found.rejected.append((item.n_root, result))
                partners.update((item.n_root, p) for p in result.partners)
            else:
                if isinstance(result, slice):
                    self.kept_sessions.append(item.session_id)
                    n_waiting += result.stop - result.start
                else:
                    if result.audio_rejected and item.audio:
                        found.rejected.append((item.audio[0], result.audio_rejected))
                    n_waiting += len(result.reading.hits)
                batch.append((item, result))
            if n_waiting >= BATCH_EVENTS or (batch and n_done == len(items)):
                yield self._frame(batch, keys, last)
                batch, n_waiting = [], 0
                progress(f"{self.source_set}: {n_done:,} of {len(items):,} recordings, {len(new):,} of them new or changed")

    def _readings(self, items: Sequence[_Item]) -> Iterator[_Read | Rejected]:
        chunks = (items[i : i + CHUNK_RECORDINGS] for i in range(0, len(items), CHUNK_RECORDINGS))
        jobs = ((self.config.module, self.settings.config_path("taxonomy"), self.options, [self._job(i) for i in c]) for c in chunks)
        settings = self.settings
        with workers.executor(settings.executor if len(items) > CHUNK_RECORDINGS else "inline", settings.n_workers) as pool:
            for results in workers.ordered_map(pool, _read_chunk, jobs, n_workers=settings.n_workers):
                yield from results

    def _job(self, item: _Item) -> _Job:
        files = tuple((self.path(p), self.state(p)) for p in item.places)
        return _Job(self.trees[item.n_root].root, item.recording, None if item.audio is None else self.path(item.audio), files)

    def _frame(self, batch: Sequence[tuple[_Item, _Read | slice]], keys: Mapping[str, str], last: _Last) -> pl.DataFrame:
        """One frame of fresh and kept sessions in their order."""
        read = [(item, r) for item, r in batch if isinstance(r, _Read)]
        made = events.assemble(self.source_set, [(r.reading.session, r.reading.hits) for _, r in read], self.taxonomy)
        kept = [r for _, r in batch if isinstance(r, slice)]
        before = last.read(min(s.start for s in kept), max(s.stop for s in kept)) if kept else (0, made.frame.clear())
        pieces: list[pl.DataFrame] = []
        rows: list[dict[str, Any]] = []
        n_made, at, run = 0, 0, slice(0, 0)  # the run of kept rows that is not sliced off yet
        for item, result in batch:
            if isinstance(result, slice):
                if result.start != run.stop:
                    pieces.append(before[1][run.start - before[0] : run.stop - before[0]]) if run.stop > run.start else None
                    run = result
                run = slice(run.start, result.stop)
                continue
            if run.stop > run.start:
                pieces.append(before[1][run.start - before[0] : run.stop - before[0]])
                run = slice(0, 0)
            n = int(made.n_events[n_made])
            pieces.append(made.frame[at : at + n])
            rows.append(self._provenance(item, result, made, n_made, keys))
            at, n_made = at + n, n_made + 1
        if run.stop > run.start:
            pieces.append(before[1][run.start - before[0] : run.stop - before[0]])
        frame = made.frame if not kept else pl.concat(pieces)
        told = BytesIO()
        pl.DataFrame(rows, schema=PROVENANCE_SCHEMA).write_ipc(told, compression="zstd")
        self.fresh.append(told.getvalue())
        self.tally.add(frame, {item.session_id for item, _ in batch})
        return frame

    def _provenance(self, item: _Item, read: _Read, made: events.Assembled, n: int, keys: Mapping[str, str]) -> dict[str, Any]:
        reading, session = read.reading, read.reading.session
        issues = Counter(dict(reading.issues))
        issues.update({"collapsed_hits": int(made.n_collapsed[n]), "openness_null": int(made.n_openness_null[n])})
        return {
            "source_set": self.source_set,
            "session_id": session.session_id,
            "group_id": session.group_id,
            "license_ref": self.meaning["license_ref"] or self.module.SOURCE.licence,
            "sample_paths": [path for _, path in item.places],
            "hashes": [{"path": p[1], "sha256": self.digests[p], "bytes": self.state(p).n_bytes} for p in item.places],
            "ingestion_module": self.module.SOURCE.name,
            "code_version": VERSION + (f"+{named}" if (named := self.meaning["ingestion_version"]) else ""),
            "taxonomy_version": self.taxonomy.version,
            "note_map": reading.note_map,
            "processing_chain": list(self.module.SOURCE.chain),
            "coverage": list(reading.coverage),
            "event_count": int(made.n_events[n]),
            "hit_count": int(made.n_hits[n]),
            "facts": store.to_json_bytes(dict(reading.facts), indent=None).decode().strip(),
            "issues": store.to_json_bytes({k: v for k, v in sorted(issues.items()) if v}, indent=None).decode().strip(),
            "notes": reading.notes,
            "content_key": None if read.audio_rejected else keys[item.session_id],
        }

    def _quarantine(self, found: _Found) -> pl.DataFrame:
        """Exactly one row per refused file: the first reason wins."""
        rows: dict[Place, dict[str, Any]] = {}
        for n_root, r in found.rejected:
            place = (n_root, r.path)
            if place in rows:
                continue
            if place not in self.digests and r.code != "path-escape" and r.path in self.trees[n_root].files:
                self.digest_files([place])
            digest = self.digests.get(place)
            rows[place] = {
                "source_set": self.source_set,
                "path": store.printable(r.path),
                "digest": digest if isinstance(digest, str) else None,
                "stage": r.stage,
                "code": r.code,
                "message": store.printable(r.message),
            }
        return pl.DataFrame(list(rows.values()), schema=QUARANTINE_SCHEMA).sort(["path", "stage"], maintain_order=True)

    # ---- what it amounts to -----------------------------------------------------------------------------------------------

    def _outcome(
        self,
        found: _Found,
        items: Sequence[_Item],
        provenance: pl.DataFrame,
        outputs: list[tuple[str, Path, int | None]],
        partners: set[Place],
    ) -> Outcome:
        settings, tally = self.settings, self.tally
        damaged = {(n, r.path) for n, r in found.rejected if not r.is_absent}
        refused = {(n, r.path) for n, r in found.rejected}
        sessions = set(provenance["session_id"])
        used = ({p for item in items if item.session_id in sessions for p in item.places} & found.candidates) - refused
        out_of_scope = found.candidates - used - refused
        reasons = Counter(
            "with-a-refused-file" if c in partners else found.skipped.get(c) or ("beyond-limit" if c in found.listed else NOT_LISTED)
            for c in out_of_scope
        )
        unexplained = sorted(c[1] for c in out_of_scope if c in found.listed and c not in partners and c not in found.skipped)
        issues = events.sum_counts([_json_counts(text) for text in provenance["issues"]])
        labels = dict(sorted(tally.labels.items(), key=lambda kv: (-kv[1], kv[0])))
        codes = dict(sorted(Counter(r.code for r in {(n, r.path): r for n, r in reversed(found.rejected)}.values()).items()))
        note_ons = _note_ons(provenance)
        figures: dict[str, float | int] = {
            "recordings": provenance.height,
            "events": tally.n_events,
            "hits": int(provenance["hit_count"].sum()),
            "components": tally.n_components,
            "rejected": len(damaged),
            "absent": len(refused - damaged),
            "candidates": len(found.candidates),
            "used": len(used),
            "refused_files": len(refused & found.candidates),
            "out_of_scope": len(out_of_scope),
            "hours": round(tally.us / 3.6e9, 4),
        }
        with_audio = [item for item in items if item.session_id in sessions and item.recording.session.audio_path is not None]
        places = Counter(f"root {item.audio[0] + 1}" if item.audio else "absent" for item in with_audio)
        report = {
            **figures,
            "source_set": self.source_set,
            "seconds": round(tally.us / 1e6, 6),
            "licence": self.meaning["license_ref"] or self.module.SOURCE.licence,
            "labels": labels,
            "techniques": dict(sorted(tally.techniques.items(), key=lambda kv: (-kv[1], kv[0]))),
            "codes": codes,
            "issues": issues,
            "note_ons": note_ons,
            "out_of_scope_reasons": dict(sorted(reasons.items())),
            "not_listed_files": sorted(c[1] for c in out_of_scope if c not in found.skipped and c not in found.listed)[:20],
            "unexplained_files": unexplained[:20] if self.limit is None else [],
            "roots": len(self.trees),
            "taken_once": found.n_taken_once,
            "audio": dict(sorted(places.items())),
        }
        outputs.append(
            ("report", settings.store.publish_json(settings.layout.report("ingest", f"{self.source_set}.json"), report).path, None)
        )
        if (folder_of := inventory.folder_rule(self.module)) is not None:
            hash_audio = bool(self.meaning["hash_audio"])
            rows = inventory.list_sessions(
                settings, folder_of, self.options, self.trees, hash_audio=hash_audio, limit=self.limit, seed=self.seed
            )
            outputs.append(inventory.publish(settings, self.source_set, rows))
        figures["yardstick_events"] = _yardstick(settings, self.source_set, tally.n_events)
        verdict = self._judge(found, provenance, figures, issues, note_ons, damaged, unexplained if self.limit is None else [], outputs)
        return Outcome(
            outputs=outputs,
            figures=figures,
            facts={"codes": codes, "issues": issues, "labels": labels, "licence": report["licence"], "audio": report["audio"]},
            verdicts=(verdict,),
            table=Table(("component", "hits"), tuple(list(labels.items())[:12])),
        )

    def _judge(
        self,
        found: _Found,
        provenance: pl.DataFrame,
        figures: Mapping[str, float | int],
        issues: Mapping[str, int],
        note_ons: Mapping[str, int],
        damaged: set[Place],
        unexplained: Sequence[str],
        outputs: Sequence[tuple[str, Path, int | None]],
    ) -> Verdict:
        """The gates of one dataset partition (`design/dagster.md` section 1, row events)."""
        settings, tally = self.settings, self.tally
        n_files = max(1, len(found.candidates))
        share = len(damaged) / n_files
        most_refused = self.config.max_reject_rate
        strangers = {name: n for name, n in sorted(tally.techniques.items()) if name not in self.technique_names}
        n_repeated = tally.n_repeated_ids(settings.layout.events(self.source_set))
        n_without = max(tally.n_strangers, tally.n_sessions - provenance["session_id"].n_unique())
        n_unknown = sum(n for label, n in tally.labels.items() if self.taxonomy.canonical(label) is None)
        past = issues.get("past_audio_end", 0)
        n_internal = sum(r.code == "internal-error" for _, r in found.rejected)
        yields = tally.n_events / max(1, figures["yardstick_events"])
        n_listed = int(figures["recordings"]) + int(figures["absent"])
        n_lost_files = int(figures["candidates"] - figures["used"] - figures["refused_files"] - figures["out_of_scope"]) + len(unexplained)
        n_lost_hits = int(figures["hits"]) - issues.get("collapsed_hits", 0) - tally.n_components
        n_lost_notes = note_ons["note_ons"] - note_ons["hits"] - note_ons["unmapped"]
        against = [
            text
            for wrong, text in (
                (n_lost_files, f"files without an explanation: {abs(n_lost_files)}" + (f", first {unexplained[0]}" if unexplained else "")),
                (n_lost_hits, f"hits that are neither a component nor collapsed: {n_lost_hits}"),
                (n_lost_notes, f"note-ons that are neither a hit nor unmapped: {n_lost_notes}"),
                (n_internal, f"internal errors: {n_internal}"),
            )
            if wrong
        ]
        rules = (
            Rule.at_most(
                "schema",
                float(sum(tally.broken.values()) + sum(strangers.values())),
                0.0,
                "; ".join(
                    [f"{v.rule} at {v.event_id}" for v in tally.violations[:3]]
                    + [f"technique {name} of {n:,} events is not in the catalogue" for name, n in list(strangers.items())[:3]]
                )
                or "every row keeps the schema",
            ),
            Rule.at_most("event_ids_unique", float(n_repeated), 0.0, "repeated event ids"),
            Rule(
                "labels_known",
                n_unknown <= issues.get("unknown_label", 0),  # doubles of one unknown label were counted each and collapsed since
                float(n_unknown),
                float(issues.get("unknown_label", 0)),
                "labels outside the taxonomy are counted as unknown_label",
            ),
            Rule.at_most("provenance_complete", float(n_without), 0.0, "sessions without a provenance row"),
            Rule(
                "accounted",
                not against and share <= most_refused,
                round(share, 6),
                most_refused,
                f"{figures['candidates']} files = {figures['used']} used + {figures['refused_files']} refused + {figures['out_of_scope']} "
                f"out of scope; {figures['hits']} hits = {tally.n_components} components + {issues.get('collapsed_hits', 0)} collapsed"
                + "; refused share against max_reject_rate"
                + "".join(f"; {text}" for text in against),
            ),
            Rule(
                "complete",
                self.limit is None,
                None if self.limit is None else float(self.limit),
                None,
                "the whole dataset was read" if self.limit is None else "read with --limit: for a look, not for training",
            ),
            Rule.at_least(
                "listed_present", 1.0 - int(figures["absent"]) / max(1, n_listed), 0.99, "listed recordings that are there", blocking=False
            ),
            Rule.at_least("yield_vs_last_run", yields, 0.9, "events against the last ingest", blocking=False),
            Rule.at_most(
                "quarantine_share", round(share, 6), QUARANTINE_WARN_SHARE, "refused files, absent ones not counted", blocking=False
            ),
            Rule.at_most(
                "onsets_in_file",
                past / max(1, tally.n_events),
                MIN_ONSETS_WITH_AUDIO_SHARE,
                "events past the end of their audio",
                blocking=False,
            ),
        )
        nothing = f"no event could be read; {len(found.rejected)} files were refused or absent"
        reasons = () if tally.n_events else (Reason("no-events", nothing, self.source_set),)
        inputs = tuple(Artifact(role, settings.store.rel(path), settings.store.sha256(path), rows) for role, path, rows in outputs)
        return Verdict("ingest", rules, inputs=inputs, figures=dict(figures), reasons=reasons, profile=settings.profile)


class Tally:
    """What is counted of the events while they pass: the table is never in memory as a whole."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self.n_events = self.n_components = 0
        self.us = 0  # last onset of each session, summed; whole numbers, so that the sum does not depend on the order
        self.n_sessions = self.n_strangers = 0  # strangers: sessions that nobody asked for
        self.labels: Counter[str] = Counter()
        self.techniques: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.violations: list[events.Violation] = []
        self._met = np.zeros(1 << SLOT_BITS >> 3, dtype=np.uint8)  # a bit per slot: an id fell into it
        self._shared: list[NDArray[np.uint64]] = []  # slots into which several fell

    def add(self, frame: pl.DataFrame, sessions: set[str]) -> None:
        """Count a frame of these sessions, each of them whole."""
        if not frame.height:
            return
        counts, violations = events.find_violations(frame, self.taxonomy)
        self.broken.update(counts)
        self.violations = [*self.violations, *violations][:20]
        self.n_events += frame.height
        self.n_components += int(frame["components"].list.len().sum())
        self.labels.update(events.label_counts(frame))
        told = frame.select(pl.col("techniques").filter(pl.col("techniques").list.len() > 0).explode()).to_series()
        self.techniques.update(told.to_list())
        last = frame.group_by("session_id").agg(pl.col("onset_time").max())
        self.n_sessions += last.height
        self.n_strangers += len(set(last["session_id"]) - sessions)
        self.us += int(np.rint(last["onset_time"].to_numpy() * 1e6).sum())
        slots = np.sort(_slots(frame["event_id"]))
        byte, bit = slots >> np.uint64(3), np.uint8(1) << (slots & np.uint64(7)).astype(np.uint8)
        again = (self._met[byte] & bit) > 0
        again[1:] |= slots[1:] == slots[:-1]
        self._shared.append(slots[again])
        np.bitwise_or.at(self._met, byte, bit)

    def n_repeated_ids(self, path: Path) -> int:
        """Rows of the table whose event id occurred before, in memory that hardly grows with the table.

        Only ids that share a slot are looked at, by their hashes; only when two of these agree are the ids themselves compared.
        """
        shared = np.unique(np.concatenate(self._shared)) if self._shared else np.empty(0, np.uint64)
        if not len(shared):
            return 0
        ids = pl.scan_parquet(path).select("event_id")
        suspects = []
        for start in range(0, self.n_events, store.ROW_GROUP_ROWS):
            own = ids.slice(start, store.ROW_GROUP_ROWS).collect()["event_id"]
            suspects.append(own.hash().to_numpy()[np.isin(_slots(own), shared)])
        hashes = np.sort(np.concatenate(suspects))
        if not (hashes[1:] == hashes[:-1]).any():
            return 0
        every = ids.collect()["event_id"]
        return len(every) - every.n_unique()


def _slots(ids: pl.Series) -> NDArray[np.uint64]:
    """Slot of each id [shape=(n,)]: the front of its hash."""
    return ids.hash().to_numpy() >> np.uint64(64 - SLOT_BITS)


@dataclass(frozen=True)
class _Last:
    """The tables of the last ingest, as far as they may be used again. Rows of a session lie side by side, sessions in their order."""

    path: Path
    provenance: pl.DataFrame
    rows: Mapping[str, tuple[str, slice]]

    @classmethod
    def of(cls, settings: Settings, source_set: str, meaning: Mapping[str, Any]) -> _Last:
        """Nothing, unless the receipt was written by the same code under the same options and its files are those it names."""
        path, told = settings.layout.events(source_set), settings.layout.provenance(source_set)
        nothing = cls(path, pl.DataFrame(schema=PROVENANCE_SCHEMA), {})
        try:
            receipt = read_receipt(settings, "events", source_set)
            if receipt is None or receipt.version != VERSION or not is_intact(settings, receipt):
                return nothing
            if any(receipt.options.get(k) != v for k, v in json.loads(store.to_json_bytes(dict(meaning))).items()):
                return nothing
            provenance = pl.read_parquet(told)
            if provenance.schema != PROVENANCE_SCHEMA or pl.read_parquet_schema(path) != events.EVENT_SCHEMA:
                return nothing
        except (BeatSightError, pl.exceptions.PolarsError, OSError):
            return nothing
        stops = provenance["event_count"].cum_sum().to_list()
        names, keys = provenance["session_id"].to_list(), provenance["content_key"].to_list()
        starts = [0, *stops[:-1]]
        rows = {n: (k, slice(a, b)) for n, k, a, b in zip(names, keys, starts, stops, strict=True) if k is not None}
        return cls(path, provenance, rows)

    def rows_of(self, session_id: str, key: str) -> slice | None:
        """Rows of a session, if they were made from exactly what is there now."""
        known = self.rows.get(session_id)
        return known[1] if known is not None and known[0] == key else None

    def read(self, start: int, stop: int) -> tuple[int, pl.DataFrame]:
        """(start, the rows from there to stop)."""
        return start, pl.scan_parquet(self.path).slice(start, stop - start).collect()


def _with_one_spelling(recording: Recording) -> Recording:
    """Session and group in Unicode NFC, so that they do not depend on the system that copied the files; paths stay as they are on the disk."""
    session = recording.session
    if session.session_id.isascii() and session.group_id.isascii():
        return recording
    session_id, group_id = (unicodedata.normalize("NFC", name) for name in (session.session_id, session.group_id))
    return replace(recording, session=replace(session, session_id=session_id, group_id=group_id))


def _read_chunk(job: tuple[str, Path, Mapping[str, Any], Sequence[_Job]]) -> list[_Read | Rejected]:
    """Read some recordings; what goes wrong with one of them is a value. Runs in a worker process."""
    name, taxonomy_path, options, recordings = job
    module = source_module(name)
    taxonomy = Taxonomy.at(taxonomy_path)
    at_once = _read_at_once(module, taxonomy, options, recordings)
    return [_read_one(module, taxonomy, options, recording, at_once.get(i)) for i, recording in enumerate(recordings)]


def _read_at_once(
    module: SourceModule, taxonomy: Taxonomy, options: Mapping[str, Any], jobs: Sequence[_Job]
) -> dict[int, Reading | Rejected | Exception]:
    """Readings by number of the job, of modules that can read many recordings at once; what is not here is read alone."""
    read_many: Callable[..., Sequence[Reading | Rejected | Exception]] | None = getattr(module, "read_many", None)
    found: dict[int, Reading | Rejected | Exception] = {}
    if read_many is None or len(jobs) < 2:
        return found
    for root in dict.fromkeys(job.root for job in jobs):
        own = [i for i, job in enumerate(jobs) if job.root == root]
        with suppress(Exception):  # our bug strikes only its recording when they are read alone, and is shown there
            found |= zip(own, read_many(root, [jobs[i].recording for i in own], taxonomy, options), strict=True)
    return found


def _read_one(
    module: SourceModule, taxonomy: Taxonomy, options: Mapping[str, Any], job: _Job, known: Reading | Rejected | Exception | None
) -> _Read | Rejected:
    recording = job.recording
    partners = tuple(f for f in recording.files if f != recording.timeline)

    def refuse(code: str, message: str) -> Rejected:
        return Rejected(recording.timeline, "read", code, message, partners)

    try:
        reading = module.read(job.root, recording, taxonomy, options) if known is None else known
        if isinstance(reading, Exception):
            raise reading
        if isinstance(reading, Rejected):
            return replace(reading, partners=reading.partners or tuple(f for f in recording.files if f != reading.path))
        if reading.session.session_id != recording.session.session_id:
            return refuse("internal-error", "the source module gave the session another name while reading it. Please report this")
        if len(reading.hits) == 0:
            return refuse("no-events", "the file holds no drum hit. Is it the right channel or note map?")
        result = _with_audio_facts(job, reading)
        for path, state in job.files:
            if not FileState.of(path).is_same(state):
                return refuse("changed-while-reading", f"{path.name} was written while it was read. Wait until the copy is complete")
        return result
    except BeatSightError as error:
        return refuse(error.code, error.message)
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        return refuse("changed-while-reading", f"{name} vanished while the dataset was read. Wait until the copy is complete")
    except Exception as error:  # the worker's item boundary: our bug is shown as such and does not stop the others
        return refuse("internal-error", f"{type(error).__name__}: {error}. Please report this")


def _with_audio_facts(job: _Job, reading: Reading) -> _Read:
    """What the recording's audio can hold of its onsets."""
    recording, session = job.recording, reading.session
    facts, issues = dict(recording.facts) | dict(reading.facts), Counter(dict(recording.issues)) + Counter(dict(reading.issues))
    rejected: Rejected | None = None
    facts["audio_present"] = False
    if job.audio is not None and session.audio_path is not None:
        try:
            info = reading.audio or audio.probe(job.audio, silent_ok=True)
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
    found = {f: job.root / f for f in recording.files} | ({} if job.audio is None else {str(recording.session.audio_path): job.audio})
    empty = sorted(f for f, path in found.items() if f.lower().endswith(AUDIO_SUFFIXES) and not audio.has_content(path))
    if empty:
        facts["no_content"] = empty  # these files are equal to others by chance: their digests say nothing about who played
    return _Read(replace(reading, facts=facts, issues=dict(issues)), rejected)


def _content_digest(hits: Hits) -> str:
    """Digest of what was played (onset, component, variant, strike, velocity): equal for the same performance under two names."""
    names = [f"{v.label}/{v.variant}/{v.strike}" for v in hits.voices]
    rank = {name: i for i, name in enumerate(sorted(set(names)))}  # sorting numbers, not texts
    order = np.lexsort((hits.velocity, np.array([rank[name] for name in names])[hits.voice], hits.onset_us))
    content = sha256("\n".join([names[i] for i in hits.voice[order].tolist()]).encode())
    content.update(np.ascontiguousarray(hits.onset_us[order]).tobytes())
    content.update(np.ascontiguousarray(hits.velocity[order]).tobytes())
    return content.hexdigest()


def _note_ons(provenance: pl.DataFrame) -> dict[str, int]:
    """Note-ons of the MIDI recordings (those whose facts state them) and what became of them."""
    total = {"note_ons": 0, "hits": 0, "unmapped": 0}
    for facts, issues, n_hits in provenance.select("facts", "issues", "hit_count").iter_rows():
        stated = json.loads(facts).get("note_ons") if '"note_ons"' in facts else None
        if stated is not None:
            unmapped = json.loads(issues).get("unmapped_note", 0)
            total = {"note_ons": total["note_ons"] + stated, "hits": total["hits"] + n_hits, "unmapped": total["unmapped"] + unmapped}
    return total


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
