"""Asset `interchange`: a sealed bundle in the form of another program, read back before it counts.

Belongs here: what is common to all forms: the folder, SOURCE.json, the round trip. Does not belong here: any form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from beatsight_assets.bundle.plan import SPLITS
from beatsight_assets.errors import ConfigError, NothingToDo
from beatsight_assets.interchange import croissant, hf_parquet, lhotse, sessions, webdataset
from beatsight_assets.interchange.clips import Clips, Fact, fact, open_clips, open_events
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
    """A writer, and a reader that says of every item whether it came back as it is in the bundle; one that did not come back is false."""

    write: Callable[[Store, Path, Clips, Progress], list[Receipt]]
    read: Callable[[Path, Clips], Iterator[tuple[str, bool]]]
    has_samples: bool = False  # it can be made of a bundle only


def clip_form(
    write: Callable[[Store, Path, Clips, Progress], list[Receipt]], read: Callable[[Path, Clips], Iterator[tuple[str, Fact]]]
) -> Form:
    """A form of clips, whose reader gives what each of them says; compared by digests, so that millions of them fit."""

    def compare(folder: Path, clips: Clips) -> Iterator[tuple[str, bool]]:
        due = {
            row["clip"]: _digest(fact(split, row, row["clip_sha256"]))
            for split in SPLITS
            for rows in clips.rows(split)
            for row in rows.iter_rows(named=True)
        }
        for name, value in read(folder, clips):
            yield name, due.pop(name, None) == _digest(value)
        yield from ((name, False) for name in sorted(due))

    return Form(write, compare, has_samples=True)


def _digest(value: Fact) -> bytes:
    return blake2b(repr(value).encode(), digest_size=16).digest()


FORMS = {
    "webdataset": clip_form(webdataset.write, webdataset.read),
    "hf-parquet": clip_form(hf_parquet.write, hf_parquet.read),
    "croissant": clip_form(croissant.write, croissant.read),
    "lhotse": clip_form(lhotse.write, lhotse.read),
    "midi": Form(sessions.MIDI.write, sessions.MIDI.read),
    "audacity": Form(sessions.AUDACITY.write, sessions.AUDACITY.read),
    "svl": Form(sessions.SVL.write, sessions.SVL.read),
    "mirdata-index": Form(sessions.write_index, sessions.read_index),
    "jsonl": Form(sessions.write_jsonl, sessions.read_jsonl),
}


@dataclass(frozen=True)
class InterchangeOptions:
    """What is converted, and the form it gets: a key of FORMS.

    source : name of a bundle, or the file of a manifest where the form holds no samples
    """

    source: str | Path
    kind: str


def run(settings: Settings, options: InterchangeOptions, *, progress: Progress = silent) -> Report:
    """Write bundles/<bundle>/interchange/<kind>/ and read it back; files appear whole, SOURCE.json comes last.

    A manifest gets manifest/interchange/<its file name>/<kind>/.

    Raises
    ------
    ConfigError `unknown-choice` : no such form; `needs-bundle` : a form of samples, and a manifest
    BundleIncomplete : the bundle is not sealed
    InputError `bad-label`, `bad-bundle`, `bundle-changed`, `manifest-changed` : nothing is kept under SOURCE.json
    """
    if options.kind not in FORMS:
        raise ConfigError.unknown_choice("kind", options.kind, FORMS, where="--to")
    if isinstance(options.source, str):
        clips = open_clips(settings, options.source)
    elif FORMS[options.kind].has_samples:
        raise ConfigError(f"{options.kind} holds samples, and a manifest has none. Name a bundle", code="needs-bundle", where="--to")
    else:
        clips = open_events(settings, options.source)
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={clips.role: clips.name, "kind": options.kind, f"{clips.role}_sha256": clips.content_sha256},
        parents=[(clips.role, clips.source)] if clips.source.is_relative_to(settings.layout.root) else [],
        work=lambda: convert(settings, clips, options.kind, progress),
        partition=f"{clips.name}.{options.kind}",
    )


def convert(settings: Settings, clips: Clips, kind: str, progress: Progress = silent) -> Outcome:
    """One form of a bundle or a manifest, written and read back."""
    form, files = FORMS[kind], settings.store
    folder = clips.folder / kind
    marker = folder / "SOURCE.json"
    with files.lock(folder, f"{STAGE} {kind}"):
        files.remove(marker)
        n_items, wrong = 0, []
        with clips.one_version():
            made = form.write(files, folder, clips, progress)
            kept = {m.path for m in made}
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path not in kept and path.name != ".lock":
                    files.remove(path)
            for name, is_same in form.read(folder, clips) if made else ():
                n_items += 1
                wrong += [] if is_same else [name]
                progress(f"{kind}: {n_items:,} read back")
        if not n_items:
            raise NothingToDo(f"{clips.name} holds nothing that {kind} can say; nothing was written", code="nothing-to-do")
        said = {
            "schema": SCHEMA,
            "kind": kind,
            clips.role: clips.name,
            f"{clips.role}_sha256": clips.content_sha256,
            "sample_rate": clips.sample_rate,
            "classes": list(clips.classes),
            "licences": dict(clips.licences),
            "items": n_items,
            "files": [{"path": m.path.relative_to(folder).as_posix(), "sha256": m.sha256, "bytes": m.n_bytes} for m in made],
        }
        files.publish_json(marker, said)
    detail = f"of {n_items:,}, did not come back as they were" + (f"; first {wrong[0]}" if wrong else "")
    rule = Rule.at_most("roundtrip", float(len(wrong)), 0.0, detail)
    return Outcome(
        outputs=[("source", marker, n_items), *(("file", m.path, None) for m in made)],
        figures={"items": n_items, "files": len(made), "bytes": sum(m.n_bytes for m in made)},
        facts={"licences": dict(clips.licences)},
        verdicts=[Verdict(gate=GATE, rules=(rule,), support={"items": n_items}, profile=settings.profile)],
    )
