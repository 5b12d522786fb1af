"""Telefunken drum sessions: one take recorded by many microphones; each file is inventory, labelled by its file name.

Layout      <session folder>/**/*.wav, .flac, .aif, .ogg; known from descriptions only, so that every word is data
Labels      from the file's own name, whole words only (configs/file_names.yaml; option `names` adds words for this dataset)
Group       `telefunken:<session folder>`: all microphones of a take together
Traps       `Bottom Mic` and `Room` are positions, not toms; a folder of which no name says anything is refused file by file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, candidate_files, names
from beatsight_assets.sources.stem_rows import named_reading, named_stems
from beatsight_assets.taxonomy import Taxonomy

SOURCE = Source(
    name="telefunken",
    licence="vendor terms",
    citation="",
    url="https://www.telefunken-elektroakustik.com",
    suffixes=AUDIO_SUFFIXES,
    chain=("multitrack_stems",),
    options=("names",),
    configs=(names.CONFIG,),
)
CONFIDENCE = 0.6  # layout and names come from descriptions


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """Every microphone whose name says what it stands at, by path; a folder that says nothing is told in the first of its refusals."""
    found = list(named_stems(candidate_files(root, SOURCE.suffixes)[0], names.rules_of(options), group_of, confidence=CONFIDENCE))
    speaking = {_folder(f.path if not isinstance(f, Recording) else f.timeline) for f in found if not isinstance(f, Rejected)}
    told: set[str] = set()
    for one in found:
        if isinstance(one, Rejected) and _folder(one.path) not in speaking | told:
            told.add(_folder(one.path))
            yield Rejected(one.path, one.stage, one.code, f"no file of folder {_folder(one.path)!r} says what it is; {one.message}")
        else:
            yield one


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """The row of one microphone."""
    return named_reading(root, recording, taxonomy)


def group_of(path: str) -> str:
    """All microphones of a take: its session folder, or the file itself when it lies in none."""
    return f"telefunken:{_folder(path)}"


def _folder(path: str) -> str:
    return path.partition("/")[0]
