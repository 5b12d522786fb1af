"""Asset `interchange`: a sealed bundle in the form of another program, read back before it counts.

Belongs here: what is common to all forms: the folder, SOURCE.json, the round trip. Does not belong here: any form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from beatsight_assets.errors import ConfigError, NothingToDo
from beatsight_assets.interchange import croissant, hf_parquet, lhotse, webdataset
from beatsight_assets.interchange.clips import SPLITS, Clips, Fact, fact, open_clips
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.store import Receipt, Store
from beatsight_assets.verdict import Rule, Verdict

VERSION = "1"
STAGE = "interchange"
GATE = "roundtrip"
SCHEMA = "beatsight.interchange/1"


@dataclass(frozen=True)
class Form:
    """A writer, its reader, and what of the bundle must come back."""

    write: Callable[[Store, Path, Clips, Progress], list[Receipt]]
    read: Callable[[Path, Clips], Iterator[tuple[str, Fact]]]
    expected: Callable[[Clips], Iterator[tuple[str, Fact]]]


def _clip_facts(clips: Clips) -> Iterator[tuple[str, Fact]]:
    for split in SPLITS:
        for rows in clips.rows(split):
            for row in rows.iter_rows(named=True):
                yield row["clip"], fact(split, row, row["clip_sha256"])


FORMS = {
    "webdataset": Form(webdataset.write, webdataset.read, _clip_facts),
    "hf-parquet": Form(hf_parquet.write, hf_parquet.read, _clip_facts),
    "croissant": Form(croissant.write, croissant.read, _clip_facts),
    "lhotse": Form(lhotse.write, lhotse.read, _clip_facts),
}


@dataclass(frozen=True)
class InterchangeOptions:
    """Which bundle, and the form it gets: a key of FORMS."""

    bundle: str
    kind: str


def run(settings: Settings, options: InterchangeOptions, *, progress: Progress = silent) -> Report:
    """Write bundles/<bundle>/interchange/<kind>/ and read it back; files appear whole, SOURCE.json comes last.

    Raises
    ------
    ConfigError `unknown-choice` : no such form
    BundleIncomplete : the bundle is not sealed
    InputError `bad-label`, `bad-bundle`, `manifest-changed` : nothing is kept under SOURCE.json
    """
    if options.kind not in FORMS:
        raise ConfigError.unknown_choice("kind", options.kind, FORMS, where="--to")
    clips = open_clips(settings, options.bundle)
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"bundle": options.bundle, "kind": options.kind, "bundle_sha256": clips.content_sha256},
        parents=[("bundle", settings.layout.at(f"bundles/{options.bundle}/BUNDLE.json"))],
        work=lambda: convert(settings, clips, options.kind, progress),
        partition=f"{options.bundle}.{options.kind}",
    )


def convert(settings: Settings, clips: Clips, kind: str, progress: Progress = silent) -> Outcome:
    """One form of a bundle, written and read back."""
    form, files = FORMS[kind], settings.store
    folder = settings.layout.at(f"bundles/{clips.name}/interchange/{kind}")
    marker = folder / "SOURCE.json"
    with files.lock(folder, f"{STAGE} {kind}"):
        files.remove(marker)
        made = form.write(files, folder, clips, progress)
        kept = {m.path for m in made}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path not in kept and path.name != ".lock":
                files.remove(path)
        found = _compare(form, folder, clips, progress)
        if not found["expected"]:
            raise NothingToDo(f"bundle {clips.name} holds nothing that {kind} can say; nothing was written", code="nothing-to-do")
        said = {
            "schema": SCHEMA,
            "kind": kind,
            "bundle": clips.name,
            "bundle_sha256": clips.content_sha256,
            "sample_rate": clips.sample_rate,
            "classes": list(clips.classes),
            "licences": dict(clips.licences),
            "items": found["expected"],
            "files": [{"path": m.path.relative_to(folder).as_posix(), "sha256": m.sha256, "bytes": m.n_bytes} for m in made],
        }
        files.publish_json(marker, said)
    rule = Rule.at_most("roundtrip", float(found["wrong"]), 0.0, found["first"] or f"all {found['expected']:,} came back as they were")
    return Outcome(
        outputs=[("source", marker, found["expected"]), *(("file", m.path, None) for m in made)],
        figures={"items": found["expected"], "files": len(made), "bytes": sum(m.n_bytes for m in made)},
        facts={"licences": dict(clips.licences)},
        verdicts=[Verdict(gate=GATE, rules=(rule,), inputs=(), support={"items": found["expected"]}, profile=settings.profile)],
    )


def _compare(form: Form, folder: Path, clips: Clips, progress: Progress) -> dict[str, Any]:
    """How many items were written, how many of them did not come back as they were, and the first of those."""
    expected = {name: _digest(value) for name, value in form.expected(clips)}
    left, wrong = dict(expected), []
    for n, (name, value) in enumerate(form.read(folder, clips)):
        if left.pop(name, None) != _digest(value):
            wrong.append(f"{name} came back otherwise")
        if n % 10_000 == 0:
            progress(f"{folder.name}: {n:,} of {len(expected):,} read back")
    wrong += [f"{name} did not come back" for name in sorted(left)]
    return {"expected": len(expected), "wrong": len(wrong), "first": wrong[0] if wrong else ""}


def _digest(value: Fact) -> bytes:
    return blake2b(repr(value).encode(), digest_size=16).digest()
