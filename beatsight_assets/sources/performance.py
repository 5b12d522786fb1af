"""From a MIDI performance to hits: shared by every source whose timeline is a MIDI file.

Belongs here: note map, openness, tempo, meter and cymbal chokes of one performance. Does not belong here: bytes (midi), layouts (the
source modules).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from beatsight_assets import midi
from beatsight_assets.events import Hits, openness_from_pedal
from beatsight_assets.taxonomy import HIHATS_WITH_OPENNESS, Taxonomy, Voice

CHOKE_REACH_US = 5_000_000  # spec/events.md section 9: the choked stroke lies at most 5 s before the aftertouch
CYMBAL = "cymbal"


@dataclass(frozen=True)
class Performance:
    """Hits of a MIDI file and what was noticed while reading it."""

    hits: Hits
    issues: Mapping[str, int]
    facts: Mapping[str, Any]


def read_performance(data: bytes, notes: Mapping[int, Voice], taxonomy: Taxonomy) -> Performance:
    """Hits of a drum MIDI file through a note map; every channel counts.

    `notes` is a table of `taxonomy.note_map`. Notes outside it are dropped and counted as `unmapped_note`. Openness follows the
    TD-11 pedal formula (90 closed, 0 open) and exists for hihat_closed and hihat_open only; the raw pedal value is kept for all hats.

    Raises
    ------
    midi.MidiError : codes of `midi.read_midi`
    """
    file = midi.read_midi(data)
    voices = tuple(dict.fromkeys(notes.values()))
    table = np.full(128, -1, dtype=np.int64)
    for number, voice in notes.items():
        table[number] = voices.index(voice)
    voice_of = table[file.notes.note]
    kept = np.flatnonzero(voice_of >= 0)
    voice_of = voice_of[kept]
    n_unmapped = len(file.notes.note) - len(kept)
    is_hat = np.array([taxonomy.family(v.label) == "hihat" for v in voices] or [False])[voice_of]
    opens = np.array([v.label in HIHATS_WITH_OPENNESS for v in voices] or [False])[voice_of]
    pedal = np.where(is_hat, file.notes.cc4[kept], -1).astype(np.int32)
    tick = file.notes.tick[kept]
    numerator, denominator = midi.meter_at(file, tick)
    pairs = list(dict.fromkeys(zip(numerator.tolist(), denominator.tolist(), strict=True)))
    known = [p for p in pairs if p[0] > 0]
    code = {p: known.index(p) if p in known else -1 for p in pairs}
    bar, beat = midi.bar_beat_at(file, tick)
    hits = Hits(
        voices=voices,
        onset_us=file.notes.onset_us[kept],
        voice=voice_of,
        velocity=(file.notes.velocity[kept] / 127.0).astype(np.float32),
        openness=openness_from_pedal(np.where(opens, pedal, -1)),
        openness_raw=pedal,
        tempo_bpm=midi.tempo_bpm_at(file, tick),
        meters=tuple(f"{n}/{d}" for n, d in known),
        meter=np.array([code[p] for p in zip(numerator.tolist(), denominator.tolist(), strict=True)], dtype=np.int64),
        bar=bar,
        beat=beat,
        stated=_chokes(file, notes, voices, voice_of, file.notes.onset_us[kept], taxonomy),
    )
    facts = {
        "tempo_declared": file.tempo_declared,
        "tempo_map": [[int(t), int(us)] for t, us in zip(file.tempos.onset_us[:64], file.tempos.us_per_quarter[:64], strict=True)],
        "meters": list(hits.meters),
        "end_seconds": file.end_us / 1e6,
    }
    issues = {"unmapped_note": n_unmapped, "midi_problem": len(file.problems)}
    return Performance(hits, {k: v for k, v in issues.items() if v}, facts)


def _chokes(
    file: midi.MidiFile, notes: Mapping[int, Voice], voices: tuple[Voice, ...], voice_of: Any, onset_us: Any, taxonomy: Taxonomy
) -> dict[int, tuple[str, ...]]:
    """Hits that were choked: poly aftertouch > 0 on a cymbal marks the last stroke of that component, at most 5 s before."""
    cymbals = set(taxonomy.family_members(CYMBAL))
    label_of = np.array([taxonomy.order[v.label] for v in voices] or [0])[voice_of]
    stated: dict[int, tuple[str, ...]] = {}
    for at, note, value in zip(file.aftertouch.onset_us.tolist(), file.aftertouch.note.tolist(), file.aftertouch.value.tolist(), strict=True):
        voice = notes.get(note)
        if value == 0 or voice is None or voice.label not in cymbals:
            continue
        before = np.flatnonzero((label_of == taxonomy.order[voice.label]) & (onset_us <= at) & (onset_us >= at - CHOKE_REACH_US))
        if len(before):
            stated[int(before[-1])] = ("cymbal_choke",)
    return stated
