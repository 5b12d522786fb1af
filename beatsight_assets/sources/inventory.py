"""What a multitrack archive holds over all its roots, track by track, drums or not: `reports/ingest/<dataset>_inventory.jsonl`.

Belongs here: listing and digesting the files of a dataset whose module says which folder is a session. Does not belong here: which tracks
become rows (the source module), damage (the ingest decodes what it uses; here `seconds` is what the header states).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from beatsight_assets import store
from beatsight_assets.audio import stated_duration_s
from beatsight_assets.errors import NothingToDo
from beatsight_assets.settings import Settings
from beatsight_assets.sources.names import NameRules, label_of, rules_of
from beatsight_assets.sources.trees import Tree
from beatsight_assets.sources.types import AUDIO_SUFFIXES, SourceModule
from beatsight_assets.stages import Outcome
from beatsight_assets.units import keyed_order

SHOWN = 20
Row = dict[str, Any]
FolderRule = Callable[[str, NameRules], str]


def folder_rule(module: SourceModule) -> FolderRule | None:
    """`session_folder` of a source module: (path of a track, name rules) -> path of the folder that is its session. None without one."""
    return getattr(module, "session_folder", None)


def list_sessions(
    settings: Settings,
    folder_of: FolderRule,
    options: Mapping[str, Any],
    trees: Sequence[Tree],
    *,
    hash_audio: bool,
    limit: int | None,
    seed: int = 0,
) -> list[Row]:
    """`{session_id, root, stems: [{path, label, rule, seconds, sha256}]}` of every session folder of every root, by root and path.

    `label` is null for what is no drum; `rule` then says why: `not_drums: <word>`, `unknown-label` or `ambiguous-file-name: <words>`.
    `seconds` is null where no header can be read, `sha256` under `--no-hash-audio`. `limit` : only so many sessions of each root, chosen by `seed`
    """
    rules = rules_of(options)
    rows: list[Row] = []
    for n_root, tree in enumerate(trees, 1):
        sessions: dict[str, list[str]] = {}
        for path in tree.candidates(AUDIO_SUFFIXES)[0]:
            sessions.setdefault(folder_of(path, rules) or path, []).append(path)
        names = sorted(sessions, key=lambda folder: keyed_order(seed, folder))[:limit]
        chosen = [(folder, sessions[folder]) for folder in sorted(names, key=str.encode)]
        paths = [path for _, files in chosen for path in files]
        digests = settings.store.sha256_all([tree.root / p for p in paths]) if hash_audio else [None] * len(paths)
        sha256 = {p: d if isinstance(d, str) else None for p, d in zip(paths, digests, strict=True)}
        for session_id, files in chosen:
            stems = []
            for path in files:
                said = label_of(PurePosixPath(path).stem, rules)
                why = said.rule if said.voice is not None else ": ".join(filter(None, (said.code or said.kind, said.rule)))
                seconds = stated_duration_s(tree.root / path)
                stems.append(
                    {
                        "path": store.printable(path),
                        "label": said.voice.label if said.voice else None,
                        "rule": why,
                        "seconds": round(seconds, 6) or None,
                        "sha256": sha256[path],
                    }
                )
            rows.append({"session_id": store.printable(session_id), "root": n_root, "stems": stems})
    return rows


def publish(settings: Settings, source_set: str, rows: Sequence[Row]) -> tuple[str, Path, int | None]:
    """Write the rows, one JSON object per line; returns the output as a stage lists it."""
    short = settings.datasets[source_set].short
    path = settings.layout.report("ingest", f"{short}_inventory.jsonl")
    content = b"".join(store.to_json_bytes(row, indent=None) for row in rows)
    return "inventory", settings.store.publish(path, content).path, len(rows)


def outcome(settings: Settings, source_set: str, rows: Sequence[Row]) -> Outcome:
    """The published inventory and what it amounts to.

    Raises
    ------
    NothingToDo `no-recordings`
    """
    if not rows:
        raise NothingToDo(f"the roots of {source_set} hold no audio file", code="no-recordings")
    stems = [stem for row in rows for stem in row["stems"]]
    copies: dict[str, set[Any]] = {}
    n_roots = Counter(stem["path"] for stem in stems)
    for stem in stems:
        copies.setdefault(stem["path"], set()).add(stem["sha256"])
    twice = {path for path, n in n_roots.items() if n > 1}
    words = Counter(stem["rule"] for stem in stems if stem["rule"].startswith("not_drums"))
    return Outcome(
        outputs=[publish(settings, source_set, rows)],
        figures={
            "sessions": len({row["session_id"] for row in rows}),
            "stems": len(stems),
            "drums": sum(stem["label"] is not None for stem in stems),
            "hashed": sum(stem["sha256"] is not None for stem in stems),
            "unreadable": sum(stem["seconds"] is None for stem in stems),
            "in_two_roots": len(twice),
            "in_two_roots_differing": sum(len(copies[path]) > 1 for path in twice),
            "hours": round(sum(stem["seconds"] or 0.0 for stem in stems) / 3600, 4),
        },
        facts={
            "labels": dict(Counter(s["label"] for s in stems if s["label"] is not None).most_common()),
            "not_drums": dict(words.most_common(SHOWN)),
            "unknown": [s["path"] for s in stems if s["rule"] == "unknown-label"][:SHOWN],
            "ambiguous": [s["path"] for s in stems if s["rule"].startswith("ambiguous")][:SHOWN],
        },
    )
