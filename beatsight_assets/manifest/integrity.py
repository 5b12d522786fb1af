"""Is the raw data there, whole and unchanged: presence of roots, checksum lists, sessions that no root holds (`spec/gates.md` section 3).

Belongs here: what disks lose. Does not belong here: what is in the files (`sources`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

from beatsight_assets import store
from beatsight_assets.errors import BeatSightError, ConfigError, InputError
from beatsight_assets.safejson import parse_json
from beatsight_assets.settings import Settings
from beatsight_assets.sources.trees import Tree, find_roots
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.verdict import Rule, Verdict

VERSION = "2"
STAGE = "raw_integrity"
GATE = "raw_integrity"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")  # everything after column 66 is the path: double blanks and `#` survive
MD5 = re.compile(r"[0-9a-f]{32}")
OF_MANY, OF_ONE = ("tracks", "multitracks"), ("metadata", "records")  # parts of an index: entries by id, and entries
MAX_LIST_BYTES = 1 << 30
SHOWN = 20


@dataclass(frozen=True)
class IntegrityOptions:
    """What to look at.

    verify_manifests : every file of the checksum list must be there, with the size that ingest saw
    recompute : read the files and compare their digests; remembered digests do not count, bit rot keeps size and time
    max_checks : of the listed files only this many, the same for equal `seed`
    no_extra : files that the list does not name are a failure
    checksums : a checksum list, or an index of mirdata (.json), instead of the one of the dataset
    """

    source_set: str
    verify_manifests: bool = False
    recompute: bool = False
    max_checks: int | None = None
    seed: int = 0
    no_extra: bool = False
    checksums: Path | None = None


def checksum_path(settings: Settings, source_set: str) -> Path:
    """Checksum list of a dataset: `checksum_manifest` of its config, else reports/ingest/checksums/<source_set>.txt."""
    stated = settings.datasets[source_set].checksum_manifest
    return settings.layout.at(stated) if stated else settings.layout.report("ingest", f"checksums/{source_set}.txt")


def write_checksums(settings: Settings, root: Path, output: Path, *, update: bool = False) -> dict[str, int]:
    """List the sha256 of every file below a folder, sorted by path bytes; the list itself and *.tmp are left out.

    `update` reads only files whose size or time of change is another than when they were last read.

    Raises
    ------
    StoreError `io-error` : a folder cannot be listed
    InputError : a file cannot be read; nothing is written
    """
    tree = Tree.at(root)
    names = sorted((n for n in tree.files if not n.endswith(".tmp") and (root / n).resolve() != output.resolve()), key=_path_bytes)
    paths = [root / n for n in names]
    n_known = settings.store.n_remembered(paths) if update else 0
    digests = settings.store.sha256_all(paths, fresh=not update)
    bad = next((d for d in digests if isinstance(d, BeatSightError)), None)
    if bad is not None:
        raise bad
    lines = b"".join(f"{digest}  ".encode() + _path_bytes(name) + b"\n" for digest, name in zip(digests, names, strict=True))
    store.Store(output.parent, remember=False).publish(output, lines)
    return {"files": len(names), "bytes": sum(tree.files[n].n_bytes for n in names), "read": len(names) - n_known}


def read_checksums(path: Path) -> dict[str, str]:
    """path -> sha256 of a checksum list.

    Raises
    ------
    InputError `missing-input`, `bad-checksum-line` : with the line number
    """
    found: dict[str, str] = {}
    for number, line in enumerate(store.read_bytes(path, max_bytes=MAX_LIST_BYTES).decode(errors="surrogateescape").split("\n"), 1):
        match = LINE.fullmatch(line)
        if match is not None:
            found[match[2]] = match[1]
        elif line:
            raise InputError("not `<64 hex digits>  <path>`", code="bad-checksum-line", where=f"{path.name}:{number}")
    return found


def md5_of(path: Path) -> str:
    """md5 (hex) of a file: what indexes of mirdata state.

    Raises
    ------
    InputError, StoreError : as `store.open_regular`
    """
    digest = md5(usedforsecurity=False)
    with store.open_regular(path) as file:
        while block := file.read(store.BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_mirdata_index(path: Path, prefixes: Sequence[str]) -> dict[str, str]:
    """path below a root of the dataset -> md5, of an index as mirdata writes it: `{tracks: {id: {name: [path, md5]}}, metadata: {name: ...}}`.

    Parameters
    ----------
    prefixes : the roots of the dataset as paths below the data root. An index of ours (`bundle convert --to mirdata-index`) counts its paths
        from there: if one of its paths lies in such a root, those that lie in none are of other datasets and are left out

    Raises
    ------
    InputError `missing-input`, `bad-metadata`; `bad-checksum-line` : an entry that is none, or one file with two digests; `path-escape`
    """
    index = parse_json(store.read_bytes(path, max_bytes=MAX_LIST_BYTES), where=path.name)

    def refuse(at: str, text: str, code: str = "bad-checksum-line") -> InputError:
        return InputError(f"{store.printable(at)[:120]}: {text}", code=code, where=path.name)

    def named(value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refuse(at, "an object is due")
        return value

    whole = named(index, "the index")
    if "tracks" not in whole and "multitracks" not in whole:
        raise refuse("the index", "neither tracks nor multitracks; it is none of mirdata")
    groups = [(f"{part} {i}", entries) for part in OF_MANY for i, entries in named(whole.get(part, {}), part).items()]
    groups += [(part, whole[part]) for part in OF_ONE if whole.get(part) is not None]
    found: dict[str, str] = {}
    for at, entries in groups:
        for name, entry in named(entries, at).items():
            if (at.startswith("multitracks ") and name == "tracks") or entry == [
                None,
                None,
            ]:  # ids of its tracks; a file that the dataset lacks
                continue
            if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry) and MD5.fullmatch(entry[1])):
                raise refuse(f"{at}, {name}", "not [path, md5]")
            relpath, digest = entry
            if not store.is_plain_path(relpath):
                raise refuse(f"{at}, {name}", f"{store.printable(relpath)[:120]!r} is no plain relative path", "path-escape")
            if found.setdefault(relpath, digest) != digest:
                raise refuse(f"{at}, {name}", f"{store.printable(relpath)[:120]} has two digests")
    below = {p.removeprefix(f"{root}/"): digest for p, digest in found.items() for root in prefixes if p.startswith(f"{root}/")}
    return below or found


def measure(settings: Settings, options: IntegrityOptions, progress: Progress = silent) -> dict[str, Any]:
    """What is there and what is missing, as figures; reads the disk every time."""
    source_set = options.source_set
    config = settings.datasets[source_set]
    trees: list[Tree] = []
    roots: list[dict[str, Any]] = []
    for n, root in enumerate(settings.raw_roots(source_set)):
        try:
            tree = Tree.at(root) if root.is_dir() else None
            state = "absent" if tree is None else "empty" if not tree.files else "present"
        except BeatSightError:
            tree, state = None, "unreadable"
        if tree is not None:
            trees.append(tree)
        n_bytes = sum(f.n_bytes for f in tree.files.values()) if tree else 0
        roots.append({"root": n + 1, "state": state, "files": len(tree.files) if tree else 0, "bytes": n_bytes})
    n_present = sum(r["state"] == "present" for r in roots)
    found: dict[str, Any] = {
        "source_set": source_set,
        "optional": config.optional,
        "roots_needed": config.roots_needed,
        "roots": roots,
        "root_ok": n_present == len(roots) if config.roots_needed == "all" else n_present > 0,
        "is_absent": all(r["state"] == "absent" for r in roots),
        "has_no_list": False,
        "listed": None,
    }
    if options.verify_manifests:
        path = options.checksums or checksum_path(settings, source_set)
        if path.is_file() or options.checksums or config.checksum_manifest is not None:
            progress(f"{source_set}: comparing with {path.name}")
            if path.suffix == ".json":
                home = settings.layout.root
                prefixes = [r.relative_to(home).as_posix() for r in settings.raw_roots(source_set) if r.is_relative_to(home)]
                listed, is_md5 = read_mirdata_index(path, prefixes), True
            else:
                listed, is_md5 = read_checksums(path), False
            found["listed"] = _compare(settings, options, path, listed, is_md5, trees)
        else:
            found["has_no_list"] = True
    return found


def _compare(
    settings: Settings, options: IntegrityOptions, path: Path, listed: dict[str, str], is_md5: bool, trees: Sequence[Tree]
) -> dict[str, Any]:
    chosen = sorted(listed)
    if options.max_checks is not None and options.max_checks < len(chosen):
        chosen = sorted(chosen, key=lambda p: (sha256(f"{options.seed}:{p}".encode(errors="surrogateescape")).digest(), p))
        chosen = sorted(chosen[: options.max_checks])
    places = {p: next((t for t in trees if p in t.files), None) for p in chosen}
    there = [(p, t) for p, t in places.items() if t is not None]
    sizes = _ingested_sizes(settings, options.source_set)
    resized = [p for p, t in there if sizes.get(p, t.files[p].n_bytes) != t.files[p].n_bytes]
    changed: list[str] = []
    if options.recompute:
        files = [t.root / p for p, t in there]
        digests = [_md5_or_error(f) for f in files] if is_md5 else settings.store.sha256_all(files, fresh=True)
        changed = [p for (p, _), digest in zip(there, digests, strict=True) if digest != listed[p]]
    own = path.resolve()
    every = {
        p for t in trees for p in t.files if not p.endswith(".tmp") and (p.rpartition("/")[2] != own.name or (t.root / p).resolve() != own)
    }
    unlisted = sorted(every - set(listed))
    missing = [p for p, t in places.items() if t is None]
    return {
        "lines": len(listed),
        "checked": len(chosen),
        "missing": len(missing),
        "resized": len(resized),
        "changed": len(changed),
        "unlisted": len(unlisted),
        "first": [store.printable(p) for p in (*missing, *resized, *changed)][:SHOWN],
        "first_unlisted": [store.printable(p) for p in unlisted[:SHOWN]],
    }


def _md5_or_error(path: Path) -> str | BeatSightError:
    try:
        return md5_of(path)
    except BeatSightError as error:
        return error


def _ingested_sizes(settings: Settings, source_set: str) -> dict[str, int]:
    """Sizes that the last ingest saw: a checksum list holds none."""
    import polars as pl

    path = settings.layout.provenance(source_set)
    if not path.is_file():
        return {}
    try:
        files = pl.read_parquet(path, columns=["hashes"]).explode("hashes", empty_as_null=False, keep_nulls=False).unnest("hashes")
    except pl.exceptions.PolarsError:
        return {}
    return dict(files.select("path", "bytes").iter_rows())


def run(settings: Settings, options: IntegrityOptions, *, progress: Progress = silent) -> Report:
    """Judge the raw data of one dataset; looks at the disk every time.

    Raises
    ------
    ConfigError `unknown-choice`
    InputError `missing-input`, `bad-checksum-line` : the configured checksum list is not there, or a line of it is damaged; for an index of
        mirdata also `bad-metadata`, `path-escape`
    """
    source_set, _ = settings.dataset(options.source_set)
    options = IntegrityOptions(**{**vars(options), "source_set": source_set})
    found = measure(settings, options, progress)
    target = settings.layout.report("ingest", f"integrity/{source_set}.json")

    def work() -> Outcome:
        path = settings.store.publish_json(target, found).path
        listed = found["listed"] or {}
        n_files = sum(r["files"] for r in found["roots"])
        return Outcome(
            outputs=[("report", path, None)],
            figures={
                "files": n_files,
                "bytes": sum(r["bytes"] for r in found["roots"]),
                **{k: listed[k] for k in ("lines", "checked", "missing", "resized", "changed", "unlisted") if k in listed},
            },
            facts={"roots": found["roots"], "first": listed.get("first", [])},
            verdicts=[
                Verdict(GATE, tuple(rules_of(found, no_extra=options.no_extra)), figures={"files": n_files}, profile=settings.profile)
            ],
        )

    identity = {k: v for k, v in vars(options).items() if k not in ("source_set", "checksums")}
    seen = sha256(store.to_json_bytes(found)).hexdigest()
    return run_stage(settings, STAGE, partition=source_set, version=VERSION, options={**identity, "found": seen}, parents=(), work=work)


def rules_of(found: dict[str, Any], *, no_extra: bool) -> list[Rule]:
    """root[set], listed_files[set], unlisted_files[set]."""
    name = found["source_set"]
    states = ", ".join(f"root {r['root']} {r['state']}" for r in found["roots"])
    if found["optional"] and found["is_absent"]:
        return [Rule.waive(f"root[{name}]", "optional, and absent")]
    n_bad = sum(r["state"] != "present" for r in found["roots"])
    rules = [Rule(f"root[{name}]", found["root_ok"], float(n_bad), 0.0 if found["roots_needed"] == "all" else None, states)]
    listed = found["listed"]
    if listed is not None:
        n_wrong = listed["missing"] + listed["resized"] + listed["changed"]
        text = f"checked {listed['checked']:,} of {listed['lines']:,}" + (f"; first: {listed['first'][0]}" if listed["first"] else "")
        extra = f"files that the list does not name{': ' + listed['first_unlisted'][0] if listed['first_unlisted'] else ''}"
        rules.append(Rule.at_most(f"listed_files[{name}]", float(n_wrong), 0.0, text))
        rules.append(Rule.at_most(f"unlisted_files[{name}]", float(listed["unlisted"]), 0.0, extra, blocking=no_extra))
    elif found["has_no_list"]:
        rules.append(Rule.waive(f"listed_files[{name}]", f"there is no checksum list. Write one: beatsight raw checksums {name}"))
    return rules


def chosen_datasets(settings: Settings, names: Sequence[str]) -> list[str]:
    """Datasets to look at: those named, else all enabled ones.

    Raises
    ------
    ConfigError `nothing-configured`
    """
    found = [settings.dataset(n)[0] for n in names] or [n for n, c in settings.datasets.items() if c.enabled]
    if not found:
        raise ConfigError(
            "no dataset is enabled in configs/datasets.yaml. Enable one, or name it",
            code="nothing-configured",
            where="configs/datasets.yaml",
        )
    return found


def presence(settings: Settings, source_set: str) -> dict[str, Any]:
    """Per configured root: whether it is there, sessions of the last ingest whose files it holds, files and bytes; and sessions that no
    root holds. `complete` : none is missing, and the roots that the dataset needs are there."""
    import polars as pl

    path = settings.layout.provenance(source_set)
    rows = pl.read_parquet(path, columns=["session_id", "sample_paths"]).rows() if path.is_file() else []
    configured = settings.raw_roots(source_set)
    trees = [(n, Tree.at(r)) for n, r in enumerate(configured, 1) if r in find_roots(settings, source_set)]
    absent = [n for n in range(1, len(configured) + 1) if n not in dict(trees)]
    held: dict[int, int] = dict.fromkeys((n for n, _ in trees), 0)
    missing: list[str] = []
    for session_id, files in rows:
        holders = [n for n, t in trees if any(f in t.files for f in files)]
        for n in holders:
            held[n] += 1
        if not all(any(f in t.files for _, t in trees) for f in files):
            missing.append(session_id)
    return {
        "source_set": source_set,
        "sessions": len(rows),
        "roots": [
            {"root": n, "sessions": held[n], "files": len(t.files), "bytes": sum(f.n_bytes for f in t.files.values())} for n, t in trees
        ],
        "absent_roots": absent,
        "complete": not missing and len(trees) > 0 and (not absent or settings.datasets[source_set].roots_needed == "any"),
        "missing": len(missing),
        "missing_sessions": [store.printable(m) for m in missing[:SHOWN]],
    }


def _path_bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
