"""Hits as Audacity label tracks and as MIDI files, both ways.

Belongs here: the two text-editor and sequencer forms of `spec/bundle.md` section 11. Does not belong here: MIDI bytes (`midi`), beatmaps
(`bsm`).
"""

from __future__ import annotations

from collections.abc import Sequence

from beatsight_assets import midi
from beatsight_assets.errors import InputError
from beatsight_assets.events import CLOSED_PEDAL
from beatsight_assets.manifest import forms
from beatsight_assets.sources.performance import read_performance
from beatsight_assets.store import printable
from beatsight_assets.taxonomy import HIHATS_WITH_OPENNESS, Taxonomy
from beatsight_assets.transcribe import Hit

NOTE_MAP = "beatsight"
TICKS_PER_QUARTER = 960
UNKNOWN_VELOCITY = 64  # of a hit without velocity: MIDI has no way to say so


def write_labels(hits: Sequence[Hit]) -> bytes:
    """An Audacity label track; see `forms.label_track`."""
    return forms.label_track([(h.onset_us, h.label) for h in hits])


def read_labels(content: bytes, taxonomy: Taxonomy, *, where: str = "") -> list[Hit]:
    """Hits of an Audacity label track; see `forms.read_label_track`."""
    return [Hit(us, voice.label, None, None, voice.variant) for us, voice in forms.read_label_track(content, taxonomy, where=where)]


def write_midi(
    hits: Sequence[Hit],
    taxonomy: Taxonomy,
    *,
    tempos: Sequence[tuple[int, int]] = ((0, midi.DEFAULT_US_PER_QUARTER),),
    meters: Sequence[tuple[int, int, int]] = ((0, 4, 4),),
    ticks_per_quarter: int = TICKS_PER_QUARTER,
) -> bytes:
    """A MIDI file on channel 10 with note map `beatsight`; CC4 before a hi-hat says how open it is (90 closed, 0 open).

    tempos : (onset_us, us per quarter); meters : (onset_us, numerator, denominator). They place the grid, never the hits.

    Raises
    ------
    InputError `bad-label` : the note map has no note for a label
    midi.MidiError : as `midi.write_midi`
    """
    note_of = {voice.label: number for number, voice in taxonomy.note_map(NOTE_MAP).items()}
    notes, pedal = [], []
    for hit in hits:
        if hit.label not in note_of:
            raise InputError(f"note map {NOTE_MAP} has no note for {printable(hit.label)[:80]!r}", code="bad-label")
        value = UNKNOWN_VELOCITY if hit.velocity is None else min(max(round(127 * hit.velocity), 1), 127)
        notes.append((hit.onset_us, note_of[hit.label], value))
        if hit.openness is not None and hit.label in HIHATS_WITH_OPENNESS:
            pedal.append((hit.onset_us, round(CLOSED_PEDAL * (1 - hit.openness))))
    return midi.write_midi(notes, pedal=pedal, tempos=tempos, meters=meters, ticks_per_quarter=ticks_per_quarter)


def read_midi(content: bytes, taxonomy: Taxonomy, *, note_map: str = NOTE_MAP) -> list[Hit]:
    """Hits of a drum MIDI file through a note map of the taxonomy; notes outside it are no hits.

    Raises
    ------
    ConfigError `unknown-choice` : no such note map
    midi.MidiError : as `midi.read_midi`
    """
    hits = read_performance(content, taxonomy, note_map).hits
    openness = [None] * len(hits) if hits.openness is None else [None if v != v else v for v in hits.openness.tolist()]
    rows = zip(hits.onset_us.tolist(), hits.voice.tolist(), hits.velocity.tolist(), openness, strict=True)
    return [Hit(at, hits.voices[v].label, velocity, is_open, hits.voices[v].variant) for at, v, velocity, is_open in rows]
