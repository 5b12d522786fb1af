"""The words of every source module: what a dataset is, what a recording is, what reading one says.

Belongs here: the forms of values. Does not belong here: finding files (`trees`), doing the work (`pipeline`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from beatsight_assets import audio
from beatsight_assets.events import Hits, Session
from beatsight_assets.taxonomy import Taxonomy

MIDI_SUFFIXES = (".mid", ".midi")
AUDIO_SUFFIXES = (".wav", ".flac", ".aif", ".aiff", ".ogg", ".mp3")


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
    configs: tuple[
        str, ...
    ] = ()  # further config files it reads, by name: `options["configs"][name]` is the path, a change is seen; `folder/` is all in it
    companions: tuple[str, ...] = ()  # folders beside the root that are read too; a change there is a change of this dataset
    tables: tuple[str, ...] = ()  # files (patterns) that only `scan` reads: a change there changes the recordings whose description changes
    many_roots: bool = False  # every configured root holds a part of the dataset; else the first that exists is the dataset


@dataclass(frozen=True, slots=True)
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
    """The shape of a source module."""

    __file__: str | None
    SOURCE: Source

    def scan(self, root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]: ...

    def read(self, root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected: ...
