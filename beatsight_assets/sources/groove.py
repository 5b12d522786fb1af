"""Groove MIDI Dataset v1.0.0: 13.6 h of drumming by ten drummers on an electronic kit, as MIDI with hi-hat pedal.

Layout      info.csv and drummerN/{sessionM,eval_session}/<n>_<style>_<bpm>_<beat|fill>_<num>-<den>.mid, .wav beside it in the full release
Timing      format 0, 480 ppq, one tempo per take; onsets are what was played, not quantised
Labels      TD-11 notes; option `devices` names the drummers of another module: on `td30_socal` the pedal decides open or closed
Group       `gmd:` + id of info.csv (one id per take), the same key as in E-GMD
Traps       CC4 is 90 when CLOSED and 0 when open; controllers behind the last note stretch files by up to 277 s; 60 of 1,150 rows have
            no audio; spreadsheet programs turn the csv into cp949, `4-4` into a date and `/` into a backslash
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import LIMIT_SLACK, Hits, Session
from beatsight_assets.sources import AUDIO_SUFFIXES, MIDI_SUFFIXES, Reading, Recording, Rejected, Source, candidate_files
from beatsight_assets.sources.performance import read_takes
from beatsight_assets.sources.tables import read_csv
from beatsight_assets.store import contain, printable
from beatsight_assets.taxonomy import Taxonomy

SOURCE = Source(
    name="groove",
    licence="CC BY 4.0",
    citation="gillick2019",
    url="https://magenta.tensorflow.org/datasets/groove",
    suffixes=(*MIDI_SUFFIXES, *AUDIO_SUFFIXES),
    official_split="info.csv:split",
    tables=("info.csv",),
    options=("devices",),
)
NOTE_MAP = "td11"
KITS = {"td11": "td11", "td30_socal": "td30"}  # device -> kit_id
CONFIDENCE = {"td11": 1.0, "td30_socal": 0.8}  # no audio of drummer2 exists to check 57 and 48, unusually frequent there
TD30_CLOSED_BELOW = 0.35  # openness under which an open-hat note of the TD-30 kit is a closed hat (spec/events.md section 4)
SPLITS = {"train": "train", "validation": "val", "test": "test"}
COLUMNS = ("drummer", "id", "style", "bpm", "beat_type", "time_signature", "midi_filename", "audio_filename", "duration", "split")
MAX_MIDI_BYTES = 16 * 1024 * 1024  # the largest take has 0.1 MB


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected]:
    """Takes of info.csv in csv order, then MIDI files that it does not list, by path; a row without its file is `missing-midi`."""

    def to_session(timeline: str, row: Mapping[str, str]) -> Session:
        return _session(timeline, row["id"], row["drummer"], options)

    listed: set[str] = set()
    yield from listed_takes(root, "info.csv", COLUMNS, to_session, listed)
    yield from unlisted_takes(root, listed, to_session)


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
        device = _device(str(recording.session.drummer_id).removeprefix("gmd:"), options)
        hits = _with_pedal_hats(performance.hits) if device == "td30_socal" else performance.hits
        played = {voice.label for voice in performance.hits.voices}
        coverage = tuple(label for label in taxonomy.labels if label in played)
        facts = {**performance.facts, "device": device}
        readings.append(Reading(recording.session, hits, coverage, device, facts, performance.issues))
    return readings


def listed_takes(
    root: Path, table: str, columns: Sequence[str], to_session: Callable[[str, Mapping[str, str]], Session], listed: set[str]
) -> Iterator[Recording | Rejected]:
    """Takes of a csv of the Groove family in its order, read by column name; `listed` gets the path of every row.

    to_session : (MIDI path, row) -> who played what; audio, split and mix context are filled in here
    """
    rows = read_csv(root / table, required=columns)[::-1]
    spelled: dict[str, str] | None = (
        None  # path with its suffix in lower case -> path; made when a row's file is not there as it is written
    )
    while rows:
        row = rows.pop()  # a row is held until its take is made, and no longer
        timeline, audio = row["midi_filename"].replace("\\", "/"), row["audio_filename"].replace("\\", "/")
        try:
            is_present = contain(root, timeline).is_file()
            if not is_present:
                if spelled is None:
                    spelled = {_in_lower_case(path): path for path in candidate_files(root, MIDI_SUFFIXES)[0]}
                is_present = _in_lower_case(timeline) in spelled
                timeline = spelled.get(_in_lower_case(timeline), timeline)
            listed.add(timeline)
            has_audio = bool(audio) and contain(root, audio).is_file()
        except InputError as error:
            yield Rejected(printable(timeline), "scan", error.code, f"{table}: {error.message}")
            continue
        if not is_present:
            yield Rejected(
                timeline, "scan", "missing-midi", f"{table} lists a take whose MIDI file is absent. Complete the copy of the dataset"
            )
            continue
        facts, issues = _facts(row)
        session = replace(
            to_session(timeline, row),
            audio_path=audio or None,
            split_hint=SPLITS.get(row["split"]),
            mix_context="drum_only" if audio else "midi_only",
        )
        yield Recording(session, timeline, (timeline, audio) if has_audio else (timeline,), facts, issues)


def _in_lower_case(path: str) -> str:
    """A path with its suffix in lower case: copies by other systems hold .MID files."""
    stem, dot, suffix = path.rpartition(".")
    return stem + dot + suffix.lower()


def unlisted_takes(root: Path, listed: set[str], to_session: Callable[[str, Mapping[str, str]], Session]) -> Iterator[Recording]:
    """MIDI files that the csv does not list, by path: the take is their folder and first number, the split unknown."""
    for timeline in candidate_files(root, MIDI_SUFFIXES)[0]:
        if timeline not in listed:
            folder, _, name = timeline.rpartition("/")
            row = {"id": f"{folder}/{name.partition('_')[0]}", "drummer": timeline.partition("/")[0]}
            yield Recording(replace(to_session(timeline, row), mix_context="midi_only"), timeline, (timeline,))


def _session(timeline: str, take: str, drummer: str, options: Mapping[str, Any]) -> Session:
    device = _device(drummer, options)
    return Session(
        session_id=timeline,
        group_id=f"gmd:{take}",
        drummer_id=f"gmd:{drummer}",
        kit_id=KITS[device],
        midi_path=timeline,
        mix_context="midi_only",
        confidence=CONFIDENCE[device],
    )


def _device(drummer: str, options: Mapping[str, Any]) -> str:
    device = str(options.get("devices", {}).get(drummer, NOTE_MAP))
    if device not in KITS:
        raise ConfigError.unknown_choice(
            f"device of {drummer}", device, KITS, where="configs/datasets.yaml: groove_mididataset.options.devices"
        )
    return device


def _facts(row: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Style, bpm, beat type, time signature and duration as the csv states them; unreadable values are left out and counted."""
    facts: dict[str, Any] = {"style": row["style"], "beat_type": row["beat_type"]}
    for name, fact in (("bpm", "bpm"), ("duration", "duration_seconds")):
        if re.fullmatch(r"\d{1,6}(\.\d{1,9})?", row[name]):
            facts[fact] = float(row[name])
    if re.fullmatch(r"\d+-\d+", row["time_signature"], re.ASCII):
        facts["time_signature"] = row["time_signature"].replace("-", "/")
    n_bad = 5 - len(facts)
    return facts, {"bad_value": n_bad} if n_bad else {}


def _with_pedal_hats(hits: Hits) -> Hits:
    """TD-30 kit: notes 46 and 26 are closed hats while the pedal is down; without a pedal value they stay open."""
    closed = [replace(v, label="hihat_closed") if v.label == "hihat_open" else v for v in hits.voices]
    voices = tuple(dict.fromkeys((*hits.voices, *closed)))
    partner = np.array([voices.index(v) for v in closed], dtype=np.int64)
    openness = np.zeros(0, np.float32) if hits.openness is None else hits.openness
    return replace(hits, voices=voices, voice=np.where(openness < TD30_CLOSED_BELOW - LIMIT_SLACK, partner[hits.voice], hits.voice))
