"""Hits as Audacity label tracks and as MIDI files, both ways.

Belongs here: the two text-editor and sequencer forms of `spec/bundle.md` section 11. Does not belong here: MIDI bytes (`midi`), beatmaps
(`bsm`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from beatsight_assets import midi
from beatsight_assets.errors import InputError
from beatsight_assets.events import CLOSED_PEDAL, DAY_S
from beatsight_assets.sources.performance import read_performance
from beatsight_assets.store import UNPRINTABLE, printable
from beatsight_assets.taxonomy import HIHATS_WITH_OPENNESS, Taxonomy
from beatsight_assets.transcribe import Hit

NOTE_MAP = "beatsight"
TICKS_PER_QUARTER = 960
UNKNOWN_VELOCITY = 64  # of a hit without velocity: MIDI has no way to say so
SECONDS = re.compile(r"\d{1,6}(?:\.\d{1,18})?")


def write_labels(hits: Sequence[Hit]) -> bytes:
    """An Audacity label track: one point label per hit, `<start>\\t<end>\\t<label>` with 6 decimals, sorted; exact to 1 us.

    Raises
    ------
    InputError `bad-label` : a label holds a tab, a line end or another control character
    """
    lines = []
    for onset_us, label in sorted((h.onset_us, h.label) for h in hits):
        if not label or any(unicodedata.category(c) in UNPRINTABLE for c in label):
            raise InputError(f"label {printable(label)[:80]!r} cannot stand in a label track", code="bad-label")
        at = f"{onset_us // 1_000_000}.{onset_us % 1_000_000:06d}"
        lines.append(f"{at}\t{at}\t{label}\n")
    return "".join(lines).encode()


def read_labels(content: bytes, taxonomy: Taxonomy, *, where: str = "") -> list[Hit]:
    """Hits of an Audacity label track; a region counts from its start, aliases become components, other labels stay as they are.

    Lines that start with a backslash (the frequencies of a spectral selection) belong to the label before them and are skipped.

    Raises
    ------
    InputError `bad-label` : not UTF-8, not three fields, a time that is no number below 24 h; `where` names the line
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        n_lines = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"not UTF-8: {error.reason}", code="bad-label", where=f"{where}:{n_lines}") from error
    hits = []
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.rstrip("\r").split("\t", 2)
        if not line.strip() or line.startswith("\\"):
            continue
        place = f"{where}:{number}"
        if len(fields) != 3 or not fields[2].strip():
            raise InputError("a line is start, end and label with a tab between them", code="bad-label", where=place)
        start_us, end_us = (_microseconds(f.strip(), place) for f in fields[:2])
        if end_us < start_us:
            raise InputError(f"the label ends at {fields[1]} s, before its start at {fields[0]} s", code="bad-label", where=place)
        name = printable(fields[2].strip())
        label, variant = taxonomy.canonical(name) or (name, None)
        hits.append(Hit(start_us, label, None, None, variant))
    return sorted(hits, key=lambda h: (h.onset_us, h.label))


def _microseconds(text: str, where: str) -> int:
    if not SECONDS.fullmatch(text) or Decimal(text) >= Decimal(int(DAY_S)):
        raise InputError(f"time {printable(text)[:40]!r} is not a number of seconds below 86,400", code="bad-label", where=where)
    return int((Decimal(text) * 1_000_000).to_integral_value(ROUND_HALF_UP))


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
