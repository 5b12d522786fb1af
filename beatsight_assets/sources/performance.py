"""From a MIDI performance to hits: shared by every source whose timeline is a MIDI file.

Belongs here: note map, openness, tempo, meter and cymbal chokes of one performance. Does not belong here: bytes (midi), layouts (the
source modules).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets import midi
from beatsight_assets.errors import BeatSightError
from beatsight_assets.events import Hits, openness_from_pedal
from beatsight_assets.store import contain, read_bytes
from beatsight_assets.taxonomy import HIHATS_WITH_OPENNESS, Taxonomy, Voice

CHOKE_REACH_US = 5_000_000  # spec/events.md section 9: the choked stroke lies at most 5 s before the aftertouch
CYMBAL = "cymbal"


@dataclass(frozen=True)
class Performance:
    """Hits of a MIDI file and what was noticed while reading it."""

    hits: Hits
    issues: Mapping[str, int]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NoteTable:
    """A note map as arrays: `voice_of` [shape=(128,)] gives the voice of a note or -1; the rest is by voice."""

    notes: Mapping[int, Voice]
    voices: tuple[Voice, ...]
    voice_of: NDArray[np.int64]
    is_hat: NDArray[np.bool_]
    has_openness: NDArray[np.bool_]
    stated: NDArray[np.float32]  # openness that the key itself states, NaN where it does not
    closed_pedal: int | None  # CC4 of a closed hat, None where the device is unknown
    order: NDArray[np.int64]
    cymbals: frozenset[str]


@lru_cache(maxsize=16)
def note_table(taxonomy: Taxonomy, name: str) -> NoteTable:
    """The arrays of a note map of the taxonomy, made once."""
    notes = taxonomy.note_map(name)
    voices = tuple(dict.fromkeys(notes.values()))
    voice_of = np.full(128, -1, dtype=np.int64)
    for number, voice in notes.items():
        voice_of[number] = voices.index(voice)
    return NoteTable(
        notes,
        voices,
        voice_of,
        np.array([taxonomy.family(v.label) == "hihat" for v in voices]),
        np.array([v.label in HIHATS_WITH_OPENNESS for v in voices]),
        np.array([np.nan if v.openness is None else v.openness for v in voices], dtype=np.float32),
        taxonomy.closed_pedal(name),
        np.array([taxonomy.order[v.label] for v in voices]),
        frozenset(taxonomy.family_members(CYMBAL)),
    )


def read_performance(data: bytes, taxonomy: Taxonomy, note_map: str) -> Performance:
    """Hits of a drum MIDI file through a note map of the taxonomy; every channel counts.

    Notes outside the map are dropped and counted as `unmapped_note`. Openness exists for hihat_closed and hihat_open only: what the key
    states, else the pedal where the map's device is known, else unknown. The raw pedal value is kept for all hats whose key states nothing.

    Raises
    ------
    midi.MidiError : codes of `midi.read_midi`
    """
    (found,) = read_performances([data], taxonomy, note_map)
    if isinstance(found, midi.MidiError):
        raise found
    return found


def read_performances(files: Sequence[bytes], taxonomy: Taxonomy, note_map: str) -> list[Performance | midi.MidiError]:
    """`read_performance` of many files at once, a third of the work for files of a few kilobytes; an error stands in the place of its file."""
    found = midi.read_midis(files)
    sound = [file for file in found if isinstance(file, midi.MidiFile)]
    if not sound:
        return [error for error in found if isinstance(error, midi.MidiError)]
    table = note_table(taxonomy, note_map)

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(file.notes, name) for file in sound])

    voice = table.voice_of[joined("note")]
    kept = np.flatnonzero(voice >= 0)
    bounds = kept.searchsorted(np.cumsum([0, *(len(file.notes.note) for file in sound)])).tolist()
    voice = voice.take(kept)
    tick, onset_us = joined("tick").take(kept), joined("onset_us").take(kept)
    velocity = (joined("velocity").take(kept) / 127.0).astype(np.float32)
    openness = table.stated[voice]
    is_unstated = np.isnan(openness)
    pedal = np.where(table.is_hat[voice] & is_unstated, joined("cc4").take(kept), -1).astype(np.int32)
    if table.closed_pedal is not None:
        heard = openness_from_pedal(np.where(table.has_openness[voice], pedal, -1), closed_at=table.closed_pedal)
        openness = np.where(is_unstated, heard, openness)
    tempo_bpm, (bar, beat) = midi.tempo_bpm_at(sound, tick, bounds), midi.bar_beat_at(sound, tick, bounds)
    numerator, denominator = midi.meter_at(sound, tick, bounds)
    packed_meter = numerator * 256 + denominator
    performances: list[Performance | midi.MidiError] = []
    n = 0
    for file in found:
        if isinstance(file, midi.MidiFile):
            own = slice(bounds[n], bounds[n + 1])
            meters, meter = _meters(packed_meter[own])
            hits = Hits(
                voices=table.voices,
                onset_us=onset_us[own],
                voice=voice[own],
                velocity=velocity[own],
                openness=openness[own],
                openness_raw=pedal[own],
                tempo_bpm=tempo_bpm[own],
                meters=meters,
                meter=meter,
                bar=bar[own],
                beat=beat[own],
                stated=_chokes(file, table, voice[own], onset_us[own]) if len(file.aftertouch.tick) else {},
            )
            performances.append(_performance(file, hits))
            n += 1
        else:
            performances.append(file)
    return performances


def read_takes(
    root: Path, takes: Sequence[str], taxonomy: Taxonomy, note_map: str, *, max_bytes: int
) -> list[Performance | BeatSightError | OSError]:
    """`read_performances` of files below a dataset root; what goes wrong with one of them stands in its place."""
    found: list[bytes | BeatSightError | OSError] = []
    for take in takes:
        try:
            found.append(read_bytes(contain(root, take), max_bytes=max_bytes))
        except (BeatSightError, OSError) as error:
            found.append(error)
    read = iter(read_performances([data for data in found if isinstance(data, bytes)], taxonomy, note_map))
    return [next(read) if isinstance(data, bytes) else data for data in found]


def _meters(packed: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the meters of a file's notes, and which is in force at each [shape=(n,)]; -1 before the first time signature."""
    is_one = len(packed) > 0 and (packed == packed[0]).all()  # almost all files; `unique` would sort for it
    found, meter = (packed[:1], np.zeros(len(packed), np.int64)) if is_one else np.unique(packed, return_inverse=True)
    names = tuple(f"{int(p) // 256}/{int(p) % 256}" for p in found)
    if len(found) and found[0] == 0:  # before the first time signature
        return names[1:], meter - 1
    return names, meter


def _performance(file: midi.MidiFile, hits: Hits) -> Performance:
    """Hits of a file with the facts and remarks of it."""
    facts = {
        "tempo_declared": file.tempo_declared,
        "tempo_map": [[int(t), int(us)] for t, us in zip(file.tempos.onset_us[:64], file.tempos.us_per_quarter[:64], strict=True)],
        "meters": list(hits.meters),
        "end_seconds": file.end_us / 1e6,
        "note_ons": len(file.notes.note),
    }
    issues = {"unmapped_note": len(file.notes.note) - len(hits), "midi_problem": len(file.problems)}
    return Performance(hits, {k: v for k, v in issues.items() if v}, facts)


def _chokes(file: midi.MidiFile, table: NoteTable, voice_of: NDArray[np.int64], onset_us: NDArray[np.int64]) -> dict[int, tuple[str, ...]]:
    """Hits that were choked: poly aftertouch > 0 on a cymbal marks the last stroke of that component, at most 5 s before."""
    component = table.order[voice_of]
    stated: dict[int, tuple[str, ...]] = {}
    for at, note, value in zip(
        file.aftertouch.onset_us.tolist(), file.aftertouch.note.tolist(), file.aftertouch.value.tolist(), strict=True
    ):
        voice = table.notes.get(note)
        if value == 0 or voice is None or voice.label not in table.cymbals:
            continue
        same = component == table.order[table.voice_of[note]]
        before = np.flatnonzero(same & (onset_us <= at) & (onset_us >= at - CHOKE_REACH_US))
        if len(before):
            stated[int(before[-1])] = ("cymbal_choke",)
    return stated
