"""Extended Groove (E-GMD v1.0.0): the takes of Groove MIDI played through 43 kits of an electronic drum module, MIDI and audio.

Layout      e-gmd-v1.0.0.csv and <Groove's path without .mid>_<kit number>.midi, .wav beside it
Timing      as in Groove; the module was recorded again, so durations differ by some 0.05 s and no offset to Groove's audio is assumed
Labels      TD-11 notes; 39 and 54 (percussion pads) are in no map and counted as `unmapped_note`
Group       `gmd:` + id of the csv, the same key as in Groove: all kits of a take, here and there, are one performance
Traps       `id` repeats 43 times, it is no key; the columns stand in another order than in Groove; kit numbers are not 1..43
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from beatsight_assets.errors import InputError
from beatsight_assets.events import Session
from beatsight_assets.sources import AUDIO_SUFFIXES, MIDI_SUFFIXES, Reading, Recording, Rejected, Source
from beatsight_assets.sources.groove import COLUMNS, MAX_MIDI_BYTES, NOTE_MAP, listed_takes, unlisted_takes
from beatsight_assets.sources.performance import read_takes
from beatsight_assets.taxonomy import Taxonomy

TABLES = "e-gmd-*.csv"
SOURCE = Source(
    name="egmd",
    licence="CC BY 4.0",
    citation="callender2020",
    url="https://magenta.tensorflow.org/datasets/e-gmd",
    suffixes=(*MIDI_SUFFIXES, *AUDIO_SUFFIXES),
    official_split="e-gmd-v1.0.0.csv:split",
    tables=(TABLES,),
)


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected]:
    """Takes of the csv in csv order, then MIDI files that it does not list, by path; a row without its file is `missing-midi`.

    Raises
    ------
    InputError `missing-metadata`, `bad-metadata` : there is no csv, or more than one; and those of `tables.read_csv`
    """
    tables = sorted(path.name for path in root.glob(TABLES))
    if len(tables) != 1:
        code = "bad-metadata" if tables else "missing-metadata"
        found = f"found {', '.join(tables)}" if tables else "found none"
        raise InputError(f"the root of E-GMD holds one table {TABLES}, {found}. Is this the root of the dataset?", code=code, where=TABLES)
    listed: set[str] = set()
    yield from listed_takes(root, tables[0], (*COLUMNS, "kit_name"), _session, listed)
    yield from unlisted_takes(root, listed, _session)


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """Hits of one take through the TD-11 map; damaged MIDI raises with its code."""
    (found,) = read_many(root, [recording], taxonomy, options)
    if isinstance(found, Exception):
        raise found
    return found


def read_many(root: Path, recordings: Sequence[Recording], taxonomy: Taxonomy, options: Mapping[str, Any]) -> list[Reading | Exception]:
    """`read` of many takes at once; an error stands in the place of its take."""
    takes = read_takes(root, [recording.timeline for recording in recordings], taxonomy, NOTE_MAP, max_bytes=MAX_MIDI_BYTES)
    readings: list[Reading | Exception] = []
    for recording, performance in zip(recordings, takes, strict=True):
        if isinstance(performance, Exception):
            readings.append(performance)
            continue
        played = {voice.label for voice in performance.hits.voices}
        coverage = tuple(label for label in taxonomy.labels if label in played)
        facts = {**performance.facts, "sound": "drum_module"}
        readings.append(Reading(recording.session, performance.hits, coverage, NOTE_MAP, facts, performance.issues))
    return readings


def _session(timeline: str, row: Mapping[str, str]) -> Session:
    """kit_id is the name of the kit; a file that the csv does not list has none."""
    return Session(
        session_id=timeline,
        group_id=f"gmd:{row['id']}",
        drummer_id=f"gmd:{row['drummer']}",
        kit_id=row.get("kit_name") or None,
        midi_path=timeline,
    )
