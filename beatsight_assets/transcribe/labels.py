"""Hits as Audacity label tracks and as MIDI files, both ways.

Belongs here: the two text-editor and sequencer forms of `spec/bundle.md` section 11. Does not belong here: MIDI bytes (`midi`), beatmaps
(`bsm`).
"""

from __future__ import annotations

from collections.abc import Sequence

from beatsight_assets import midi
from beatsight_assets.interchange.sessions import TICKS_PER_QUARTER, to_midi
from beatsight_assets.manifest import forms
from beatsight_assets.sources.performance import read_performance
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.transcribe import Hit

NOTE_MAP = "beatsight"


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
    rows = ((h.onset_us, h.label, h.velocity, h.openness) for h in hits)
    return to_midi(rows, taxonomy, NOTE_MAP, tempos=tempos, meters=meters, ticks_per_quarter=ticks_per_quarter)


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
