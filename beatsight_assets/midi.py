"""Standard MIDI files: bytes to note onsets in exact microseconds, and back.

Belongs here: chunks, events, running status, the tempo and meter maps, the semantic limits of `reliability.md` section 5.
Does not belong here: what a note number means (`taxonomy`), which files to read (`sources`), merging hits into events (`events`).

How the reader is fast: many files are read as one string of bytes, and no plain event is looked at alone. Bytes with the high bit set
(statuses, and first bytes of a delta of two) are the only landmarks; the number of bytes between two of them, modulo 3, says what the
second is, because every event under running status has three bytes. Rare events (meta, system exclusive, program change, damage) are
read one by one by `_read_slow_event`; between them everything is numpy.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.errors import InputError

DEFAULT_US_PER_QUARTER = 500_000  # 120 bpm: the standard's tempo until the first tempo event
TEMPO_RANGE_US = (10_000, 0xFFFFFF)  # 6,000 bpm (reliability.md section 5) to what three bytes hold, 3.6 bpm; its 6e7 cannot be stated
DAY_US = 86_400_000_000  # 24 h; an onset at or past it is not music
MAX_EVENTS = 2_000_000  # channel, meta and system events of one file, reliability.md section 5
MAX_TRACKS = 65_535  # what the header can announce
MAX_NOTES_PER_SECOND = 1_000  # 10 onsets per 10 ms, kept up over a whole second
MAX_METER_POWER = 7  # denominators 1 .. 128
FRAME_RATES = {24: (24, 1), 25: (25, 1), 29: (30_000, 1_001), 30: (30, 1)}  # SMPTE fps as a fraction; 29 means 29.97

TEXT = 0x01  # type of a text event

_CHANNEL = np.uint8(0x0F)
_CC_FOOT = 4  # controller of the hi-hat pedal
_FAR_TICK = 1 << 40  # behind every note: at 10 ms per quarter of 32,767 ticks a day has 2.8e11
_GUARD = b"\xff" * 8  # behind a track: no event can run into it
_NOT_PLAIN = frozenset(bytes((s,)) for s in (*range(0xC0, 0xE0), *range(0xF0, 0x100)))  # statuses without two data bytes
_SYSTEM_DATA = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # data bytes owned by system common bytes; the others own none


class MidiError(InputError):
    """A file that is not read; `code` is one of `spec/events.md` section 10."""


@dataclass(frozen=True, slots=True)
class Notes:
    """Note-ons with velocity > 0, sorted by (tick, track, position) [all shape=(n,)]."""

    tick: NDArray[np.int64]
    onset_us: NDArray[np.int64]  # microseconds from the start of the file, half up
    channel: NDArray[np.uint8]  # 0..15
    note: NDArray[np.uint8]  # 0..127
    velocity: NDArray[np.uint8]  # 1..127
    cc4: NDArray[np.int16]  # hi-hat pedal: last CC4 before the note on its channel, -1 before the first


@dataclass(frozen=True, slots=True)
class Aftertouch:
    """Polyphonic key pressure, same order as the notes [all shape=(n,)]; value 0..127."""

    tick: NDArray[np.int64]
    onset_us: NDArray[np.int64]
    channel: NDArray[np.uint8]
    note: NDArray[np.uint8]
    value: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tempos:
    """Tempo events as declared, sorted by tick; of several at one tick the last is in force."""

    tick: NDArray[np.int64]
    us_per_quarter: NDArray[np.int64]
    onset_us: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Meters:
    """Time signatures as declared, sorted by tick; denominator is the written one (4, 8 ..)."""

    tick: NDArray[np.int64]
    numerator: NDArray[np.int64]
    denominator: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MidiFile:
    """What a MIDI file says about hits. `division` is the raw header field: ticks per quarter, or SMPTE when negative."""

    notes: Notes
    aftertouch: Aftertouch
    tempos: Tempos
    meters: Meters
    format: int
    division: int
    tempo_declared: bool
    problems: tuple[str, ...]  # tolerated oddities, sorted, unique
    end_us: int  # onset of the last note; 0 without notes. Never the length of the container
    texts: tuple[str, ...]  # text events, in file order


def read_midi(data: bytes) -> MidiFile:
    """Read a format 0 or 1 file; a note-on without note-off is a note.

    Raises
    ------
    MidiError : codes empty-file, not-midi, truncated-midi, broken-midi, unsupported-midi, bad-time, resource-limit
    """
    (found,) = read_midis([data])
    if isinstance(found, MidiError):
        raise found
    return found


def read_midis(files: Sequence[bytes]) -> list[MidiFile | MidiError]:
    """`read_midi` of many files at once, a third of the work for files of a few kilobytes; an error stands in the place of its file."""
    heads: list[_Head | MidiError] = []
    pieces: list[bytes] = []
    n_bytes = 0
    for data in files:
        try:
            head = _Head(*_read_header(data))
            for start, end in _find_tracks(data, head.position, head.problems):
                head.bodies.append((n_bytes, data[start:end]))
                pieces += (head.bodies[-1][1], _GUARD)
                n_bytes += end - start + len(_GUARD)
            heads.append(head)
        except MidiError as error:
            heads.append(error)
    raw = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    marks = _Landmarks.of(raw)
    walked: list[list[_Walked] | MidiError] = []
    for one in heads:
        try:
            walked.append(one if isinstance(one, MidiError) else _walk_file(one, marks))
        except MidiError as error:
            walked.append(error)
    sound = [
        (head, tracks) for head, tracks in zip(heads, walked, strict=True) if isinstance(head, _Head) and not isinstance(tracks, MidiError)
    ]
    read = iter(_read_events(raw, marks, sound))
    return [tracks if isinstance(tracks, MidiError) else next(read) for tracks in walked]


def tempo_bpm_at(files: Sequence[MidiFile], tick: NDArray[np.int64], bounds: Sequence[int]) -> NDArray[np.float64]:
    """Beats per minute in force at ticks of many files [shape=(n,)]; 120 before the first tempo event.

    Parameters
    ----------
    tick : [shape=(n,)], those of file i are bounds[i] .. bounds[i + 1] and ascend
    """
    us = [us for file in files for us in (DEFAULT_US_PER_QUARTER, *file.tempos.us_per_quarter.tolist())]
    return (60e6 / np.array(us, dtype=np.int64)).take(_rows_in_force([file.tempos.tick for file in files], tick, bounds))


def meter_at(files: Sequence[MidiFile], tick: NDArray[np.int64], bounds: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(numerator, denominator) in force at ticks as in `tempo_bpm_at` [shape=(n,) each]; 0, 0 before the first time signature."""
    rows = [row for file in files for row in ((0, 0), *zip(file.meters.numerator.tolist(), file.meters.denominator.tolist(), strict=True))]
    numerator, denominator = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    row = _rows_in_force([file.meters.tick for file in files], tick, bounds)
    return numerator.take(row), denominator.take(row)


def bar_beat_at(files: Sequence[MidiFile], tick: NDArray[np.int64], bounds: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(bar since the start, beat inside the bar) at ticks as in `tempo_bpm_at`, both from 0 [shape=(n,) each]; a beat is one denominator unit.

    A new time signature starts a new bar, also in the middle of one. -1, -1 before the first signature and for SMPTE files.
    """
    rows: list[tuple[int, int, int, int, int]] = []  # first tick, bar there, numerator, denominator, ticks of a whole note; 0 for unknown
    for file in files:
        rows.append((0, -1, 1, 0, 1))
        bar, whole = 0, 4 * file.division
        meters = list(zip(*(column.tolist() for column in (file.meters.tick, file.meters.numerator, file.meters.denominator)), strict=True))
        for i, (first, numerator, denominator) in enumerate(meters):
            if whole < 0:
                rows.append(rows[-1])
                continue
            if i:
                bar -= (meters[i - 1][0] - first) * meters[i - 1][2] // (whole * meters[i - 1][1])
            rows.append((first, bar, numerator, denominator, whole))
    row = _rows_in_force([file.meters.tick for file in files], tick, bounds)
    first_tick, first_bar, numerators, denominators, wholes = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    n_beats = (tick - first_tick.take(row)) * denominators.take(row) // wholes.take(row)
    n_bars = n_beats // numerators.take(row)
    beat = np.where(first_bar.take(row) < 0, -1, n_beats - n_bars * numerators.take(row))
    return (first_bar.take(row) + n_bars).astype(np.int32), beat.astype(np.int32)


def _rows_in_force(maps: Sequence[NDArray[np.int64]], tick: NDArray[np.int64], bounds: Sequence[int]) -> NDArray[np.int64]:
    """Row in force at each tick, of the maps of all files laid end to end with a row before each: what is so before the first event."""
    firsts = [first for ticks in maps for first in (-1, *ticks.tolist())]
    file_of_row = np.repeat(np.arange(len(maps)), [1 + len(ticks) for ticks in maps])
    file_of_tick = np.repeat(np.arange(len(maps)), np.diff(bounds))
    key = file_of_row * _FAR_TICK + np.minimum(np.array(firsts, dtype=np.int64) + 1, _FAR_TICK - 1)
    return key.searchsorted(file_of_tick * _FAR_TICK + tick + 1, side="right") - 1


def _read_header(data: bytes) -> tuple[int, int, int, int]:
    """(format, division, announced tracks, position of the first chunk)."""
    if not data:
        raise MidiError("the file has 0 bytes", code="empty-file")
    if data[:4] != b"MThd":
        raise MidiError(f"the file starts with {data[:4]!r}, not MThd", code="not-midi")
    length = int.from_bytes(data[4:8], "big")
    if len(data) < 14 or length < 6 or len(data) < 8 + length:
        raise MidiError(f"the header needs 14 bytes or more and is cut at {len(data)}", code="truncated-midi")
    midi_format = int.from_bytes(data[8:10], "big")
    if midi_format > 1:
        raise MidiError(f"format {midi_format}: only 0 (one track) and 1 (tracks in parallel) have one time line", code="unsupported-midi")
    return midi_format, int.from_bytes(data[12:14], "big", signed=True), int.from_bytes(data[10:12], "big"), 8 + length


def _find_tracks(data: bytes, position: int, problems: set[str]) -> list[tuple[int, int]]:
    """(start, end) of each MTrk body. A length that points at no chunk is replaced by the next MTrk or the end of the file."""
    found: list[tuple[int, int]] = []
    while len(data) - position >= 8:
        name, start = data[position : position + 4], position + 8
        end = start + int.from_bytes(data[position + 4 : position + 8], "big")
        if end != len(data) and not (end + 8 <= len(data) and data[end : end + 4].isalnum()):
            problems.add("chunk-length")
            following = data.find(b"MTrk", start)
            end = following if following >= 0 else len(data)
        if name == b"MTrk":
            found.append((start, end))
            if len(found) > MAX_TRACKS:
                raise MidiError(f"more than {MAX_TRACKS:,} tracks", code="resource-limit")
        else:
            problems.add("unknown-chunk")
        position = end
    if position < len(data):
        problems.add("trailing-bytes")
    return found


@dataclass(frozen=True, slots=True)
class _Head:
    """A file's header and its track bodies, with the place of each among the bytes of all files."""

    format: int
    division: int
    n_declared: int
    position: int
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    problems: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Landmarks:
    """Bytes with the high bit set, of all tracks [all shape=(n,)]: statuses, or first bytes of a delta of two.

    Behind a status come two data bytes, then events of three bytes under running status, then a delta that the next landmark starts or
    follows. Behind the first byte of a delta comes its second, then a status, or two data bytes and so on. So 2 bytes more than a multiple
    of 3 lead from a status to a delta, 1 more from a delta to a status, and 0 to one of the same kind.

    at : where; gap : bytes up to the next one; rest : gap modulo 3
    is_status : what it is if the bytes before it were plain; the walk corrects what stands behind an event that was not
    has_two : as a status, it is one with two data bytes
    turns : numbers of those with a rest; ends : numbers of those that no plain event can hold
    """

    at: NDArray[np.int64]
    gap: NDArray[np.int64]
    rest: NDArray[np.int64]
    is_status: NDArray[np.bool_]
    has_two: NDArray[np.bool_]
    turns: NDArray[np.int64]
    ends: list[int]

    @classmethod
    def of(cls, raw: NDArray[np.uint8]) -> _Landmarks:
        at = np.flatnonzero(raw > 0x7F)
        gap = np.diff(at, append=at[-1:] + 1) - 1
        rest = gap - gap // 3 * 3
        turns = np.flatnonzero(rest)
        is_status = np.repeat(np.append(False, rest[turns] == 1), np.diff(turns + 1, prepend=0, append=len(at)))
        byte = raw.take(at)
        has_two = (byte < 0xC0) | ((byte & 0xF0) == 0xE0)
        marks = cls(at, gap, rest, is_status, has_two, turns, [])
        marks.ends.extend(np.flatnonzero(~marks.is_plain(slice(None), is_status)).tolist())
        return marks

    def is_plain(self, own: slice, is_status: NDArray[np.bool_] | bool) -> NDArray[np.bool_]:
        """Whether the bytes up to the next landmark make plain events, if these are statuses or deltas."""
        gap, rest = self.gap[own], self.rest[own]
        return np.where(is_status, self.has_two[own] & (gap >= 2) & (rest != 1), (gap >= 1) & (rest != 2))

    def run(self, first: int, is_status: bool) -> int:
        """Number behind the last landmark that can be reached from one by plain events alone."""
        if self.is_status[first] == is_status:
            return self.ends[bisect_left(self.ends, first)]
        turn = int(self.turns[i]) if (i := int(self.turns.searchsorted(first))) < len(self.turns) else len(self.at) - 1
        own = slice(first, turn + 1)  # up to here all are of one kind, and were taken for the other
        wrong = np.flatnonzero(~self.is_plain(own, is_status))
        stop = first + int(wrong[0]) if len(wrong) else turn + 1
        self.is_status[first:stop] = is_status
        return stop

    def starts(self, runs: Sequence[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bytes at which the events of some runs start: of those with a landmark, and of those without one between them."""
        taken = np.zeros(len(self.at) + 1, dtype=np.int8)
        for first, stop in runs:
            taken[first] += 1
            taken[stop] -= 1
        own = np.flatnonzero(taken.cumsum(dtype=np.int8))
        at, gap, is_status = self.at.take(own), self.gap.take(own), self.is_status.take(own)
        is_delta_of_next = ~is_status & (gap == 1)
        start = at - is_status
        start[1:] -= is_delta_of_next[:-1]
        head = np.where(is_status, 3, 4)  # bytes from the landmark to the end of its event
        n_more = np.maximum(gap + 1 - head, 0) // 3
        more = np.flatnonzero(n_more)
        n_more = n_more.take(more)
        begin = (at + head).take(more) - 3 * (n_more.cumsum() - n_more)
        return start.compress(~is_delta_of_next), np.repeat(begin, n_more) + 3 * np.arange(n_more.sum())


@dataclass(frozen=True, slots=True)
class _Walked:
    """Where the events of a track are: plain ones by number of their landmarks (first, behind the last), the others by byte."""

    base: int
    runs: list[tuple[int, int]]
    lead: list[int]  # plain events without a landmark before them
    slow_at: list[int]
    slow: list[_SlowEvent]


def _walk_file(head: _Head, marks: _Landmarks) -> list[_Walked]:
    tracks = [_walk_track(base, body, marks, head.problems) for base, body in head.bodies]
    if not tracks and head.n_declared:
        raise MidiError(f"the header announces {head.n_declared} tracks and none follows", code="truncated-midi")
    if len(tracks) != head.n_declared:
        head.problems.add("track-count")
    return tracks


def _walk_track(base: int, body: bytes, marks: _Landmarks, problems: set[str]) -> _Walked:
    """Where the events of a track are."""
    track = _Walked(base, [], [], [], [])
    position, n_data, ended = 0, 0, False  # n_data: data bytes under running status, 0 before the first status
    while position < len(body):
        if not (body[position] < 0x80 and body[position + 1 : position + 2] in _NOT_PLAIN):
            plain = _walk_plain(base + position, track, marks, n_data) - base
            if plain > position:
                position, n_data = plain, 2
                continue
        event = _read_slow_event(body, position, n_data)
        track.slow_at.append(base + position)
        track.slow.append(event)
        if len(track.slow) > MAX_EVENTS:
            raise MidiError(f"more than {MAX_EVENTS:,} events", code="resource-limit")
        position, n_data, ended = event.end, event.n_data, event.meta == 0x2F
        if ended:
            break
    if not ended:
        problems.add("no-end-of-track")
    elif position < len(body):
        problems.add("bytes-after-end-of-track")
    problems.update(event.problem for event in track.slow if event.problem)
    return track


def _walk_plain(position: int, track: _Walked, marks: _Landmarks, n_data: int) -> int:
    """Take the plain events that start at a byte; the byte behind the last of them, or the same byte when there is none."""
    first = int(marks.at.searchsorted(position))
    n_lead, kind = divmod(int(marks.at[first]) - position, 3)
    if n_lead and n_data != 2:
        return position
    track.lead.extend(range(position, position + 3 * n_lead, 3))
    position += 3 * n_lead
    if kind == 2:  # neither a delta nor a status
        return position
    is_status = kind == 1
    if not is_status and marks.gap[first] > 1 and n_data != 2:
        return position
    stop = marks.run(first, is_status)
    if stop > first and marks.gap[stop - 1] == 1 and not marks.is_status[stop - 1]:
        stop -= 1  # the delta of what follows
    if stop == first:
        return position
    track.runs.append((first, stop))
    rest = int(marks.rest[stop - 1])
    return int(marks.at[stop]) - int(rest == 1 or (rest == 0 and marks.is_status[stop - 1]))


class _SlowEvent(NamedTuple):
    delta: int  # ticks
    status_at: int
    end: int  # first byte behind the event
    n_data: int  # data bytes under running status from here on
    meta: int = -1  # type of a meta event
    payload: bytes = b""
    problem: str = ""


def _read_slow_event(body: bytes, position: int, n_data: int) -> _SlowEvent:
    """Any event, byte by byte: the one place that knows meta, system and damaged ones."""
    delta, at = _read_varint(body, position)
    if at >= len(body):
        raise MidiError(f"the track ends inside a delta time at byte {position}", code="truncated-midi")
    status = body[at]
    if status == 0xFF:
        try:
            size, first = _read_varint(body, at + 2)
        except MidiError as error:
            if error.code == "broken-midi":
                raise
            size, first = len(body), at + 2
        if first + size > len(body):
            return _SlowEvent(delta, at, len(body), n_data, problem="truncated-meta")
        return _SlowEvent(delta, at, first + size, n_data, body[at + 1], body[first : first + size])
    if status in (0xF0, 0xF7):
        size, first = _read_varint(body, at + 1)
        if first + size > len(body):
            raise MidiError(f"the track ends inside a system exclusive message at byte {at}", code="truncated-midi")
        return _SlowEvent(delta, at, first + size, n_data)
    if status < 0x80 and not n_data:
        raise MidiError(f"data byte {status} at byte {at} of a track, and no status before it", code="broken-midi")
    first, problem = at + (status >= 0x80), ""
    if status >= 0xF0:
        end, problem = first + _SYSTEM_DATA.get(status, 0), "undefined-message"
    else:
        n_data = n_data if status < 0x80 else 1 if 0xC0 <= status < 0xE0 else 2
        end = first + n_data
    if max(body[first:end], default=0) > 0x7F:
        raise MidiError(f"a status byte where data is due, at byte {first} of a track", code="broken-midi")
    if end > len(body):
        raise MidiError(f"the track ends inside a channel event at byte {at}", code="truncated-midi")
    return _SlowEvent(delta, at, end, n_data, problem=problem)


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    """(value, position behind it) of a number of at most four bytes."""
    if position < len(body) and body[position] < 0x80:
        return body[position], position + 1
    value = 0
    for at in range(position, position + 4):
        if at >= len(body):
            raise MidiError(f"the track ends inside a number at byte {position}", code="truncated-midi")
        value = value << 7 | body[at] & 0x7F
        if body[at] < 0x80:
            return value, at + 1
    raise MidiError(f"a number of more than four bytes at byte {position} of a track", code="broken-midi")


def _read_events(raw: NDArray[np.uint8], marks: _Landmarks, files: Sequence[tuple[_Head, list[_Walked]]]) -> list[MidiFile | MidiError]:
    """Ticks, statuses and data of the events of all files at once, from where they start, and from them the files."""
    tracks = [track for _, walked in files for track in walked]
    is_start = np.zeros(len(raw), dtype=bool)
    for at in marks.starts([run for track in tracks for run in track.runs]):
        is_start[at] = True
    for track in tracks:
        is_start[track.lead] = True
        is_start[track.slow_at] = True
    starts = np.flatnonzero(is_start)
    track_bounds = starts.searchsorted([*(track.base for track in tracks), len(raw)])
    n_tracks = np.cumsum([0, *(len(walked) for _, walked in files)])
    slow = [event for track in tracks for event in track.slow]
    slow_number = starts.searchsorted([at for track in tracks for at in track.slow_at])
    delta = raw.take(starts).astype(np.int64)
    status_at = starts + 1
    long = np.flatnonzero(delta > 0x7F)
    delta[long] = (delta[long] & 0x7F) << 7 | raw.take(status_at[long])
    status_at[long] += 1
    delta[slow_number] = [event.delta for event in slow]
    status_at[slow_number] = [track.base + event.status_at for track in tracks for event in track.slow]
    tick = delta.cumsum()
    tick -= np.repeat(np.append(0, tick)[track_bounds[:-1]], np.diff(track_bounds))
    status = raw.take(status_at)
    explicit = status > 0x7F
    bounds = track_bounds[n_tracks]
    if not explicit.all():
        running = np.flatnonzero(~explicit)
        for n in running[status.take(running - 1) >= 0xF0].tolist():
            files[int(bounds.searchsorted(n, side="right")) - 1][0].problems.add("running-status-across-meta")
        is_channel = explicit & (status < 0xF0)
        status[running] = status.compress(is_channel).take(is_channel.cumsum().take(running) - 1)
    keep = np.flatnonzero((status >= 0x90) & (status < 0xC0))
    data_at = status_at.take(keep) + explicit.take(keep)
    rows = _Rows(tick.take(keep), status.take(keep), raw.take(data_at), raw.take(data_at + 1), keep.searchsorted(bounds))
    for n in np.flatnonzero(np.diff(n_tracks) > 1).tolist():
        rows.merge(slice(*rows.bounds[n : n + 2].tolist()))
    notes, note_bounds = rows.notes()
    touches, touch_bounds = rows.touches()
    slow_tick = tick.take(slow_number).tolist()
    made: list[MidiFile | MidiError] = []
    first = 0  # slow event of the file
    for n, (head, walked) in enumerate(files):
        end = first + sum(len(track.slow) for track in walked)
        if bounds[n + 1] - bounds[n] > MAX_EVENTS:
            made.append(MidiError(f"more than {MAX_EVENTS:,} events", code="resource-limit"))
            first = end
            continue
        metas = [(slow_tick[i], slow[i].meta, slow[i].payload) for i in range(first, end) if slow[i].meta in (TEXT, 0x51, 0x58)]
        first = end
        own, touched = slice(note_bounds[n], note_bounds[n + 1]), slice(touch_bounds[n], touch_bounds[n + 1])
        try:
            made.append(_made(head, metas, [column[own] for column in notes], [column[touched] for column in touches]))
        except MidiError as error:
            made.append(error)
    return made


@dataclass(slots=True)
class _Rows:
    """Note-ons, key pressure and controllers of all files; those of file n are the rows bounds[n] to bounds[n + 1]."""

    tick: NDArray[np.int64]
    status: NDArray[np.uint8]
    data0: NDArray[np.uint8]
    data1: NDArray[np.uint8]
    bounds: NDArray[np.int64]

    def merge(self, own: slice) -> None:
        """Bring the rows of a file with several tracks into the order of (tick, track, position)."""
        order = np.argsort(self.tick[own], kind="stable")
        for column in (self.tick, self.status, self.data0, self.data1):
            column[own] = column[own][order]

    def notes(self) -> tuple[tuple[NDArray[Any], ...], list[int]]:
        """Tick, channel, note, velocity and pedal state of the notes, and where those of each file begin."""
        kind = self.status & 0xF0
        at = np.flatnonzero((kind == 0x90) & (self.data1 > 0))
        bounds = at.searchsorted(self.bounds)
        own_first = np.repeat(self.bounds[:-1], np.diff(bounds))
        status = self.status.take(at)
        cc4 = np.full(len(at), -1, dtype=np.int16)
        is_pedal = (kind == 0xB0) & (self.data0 == _CC_FOOT)
        for of_channel in set(self.status.compress(is_pedal).tobytes()):
            is_move = is_pedal & (self.status == of_channel)
            moves = np.append(np.flatnonzero(is_move), -1)
            last = moves.take(is_move.cumsum().take(at) - 1)  # the move before each note, -1 before the first
            cc4 = np.where((status == of_channel - 0x20) & (last >= own_first), self.data1.take(last), cc4)
        return (self.tick.take(at), status & _CHANNEL, self.data0.take(at), self.data1.take(at), cc4), bounds.tolist()

    def touches(self) -> tuple[tuple[NDArray[Any], ...], list[int]]:
        """Tick, channel, note and value of the key pressures, and where those of each file begin."""
        at = np.flatnonzero((self.status & 0xF0) == 0xA0)
        columns = (self.tick.take(at), self.status.take(at) & _CHANNEL, self.data0.take(at), self.data1.take(at))
        return columns, at.searchsorted(self.bounds).tolist()


def _made(head: _Head, metas: Sequence[tuple[int, int, bytes]], notes: Sequence[NDArray[Any]], touches: Sequence[NDArray[Any]]) -> MidiFile:
    """A file from its maps and the columns of its notes and key pressures."""
    tempos, meters = _read_maps([meta for meta in metas if meta[1] != TEXT], head.problems)
    clock = _Clock.of(head.division, tempos)
    tick = notes[0]
    if len(tick) and clock.exact_us(int(tick[-1])) >= DAY_US:
        raise MidiError(f"the last onset is at {clock.exact_us(int(tick[-1])) / 1e6:.0f} s; it must be below 24 h", code="bad-time")
    onset_us = clock.onset_us(tick)
    if len(onset_us) > MAX_NOTES_PER_SECOND and (onset_us[MAX_NOTES_PER_SECOND:] - onset_us[:-MAX_NOTES_PER_SECOND] < 1_000_000).any():
        raise MidiError(f"more than {MAX_NOTES_PER_SECOND:,} notes within one second", code="bad-time")
    n_touches = _n_within_a_day(touches[0], clock, head.problems)
    touch_tick, *touched = (column[:n_touches] for column in touches)
    placed = [] if head.division < 0 else [(at, us, clock.exact_us(at)) for at, us in tempos]
    declared = [row for row in placed if row[2] < DAY_US]
    if len(declared) < len(placed):
        head.problems.add("events-past-a-day")
    return MidiFile(
        notes=Notes(tick, onset_us, *notes[1:]),
        aftertouch=Aftertouch(touch_tick, clock.onset_us(touch_tick), *touched),
        tempos=Tempos(*np.array(declared, dtype=np.int64).reshape(-1, 3).T),
        meters=meters,
        format=head.format,
        division=head.division,
        tempo_declared=bool(declared),
        problems=tuple(sorted(head.problems)),
        end_us=int(onset_us[-1]) if len(onset_us) else 0,
        texts=tuple(payload.decode(errors="replace") for _, kind, payload in metas if kind == TEXT),
    )


def _read_maps(metas: list[tuple[int, int, bytes]], problems: set[str]) -> tuple[list[tuple[int, int]], Meters]:
    """((tick, us per quarter) of the tempo events, meters), both by tick and then in file order."""
    tempos: list[tuple[int, int]] = []
    meters: list[tuple[int, int, int]] = []
    for tick, kind, payload in sorted(metas, key=lambda meta: meta[0]):
        if kind == 0x51 and len(payload) == 3:
            us = int.from_bytes(payload, "big")
            if not TEMPO_RANGE_US[0] <= us <= TEMPO_RANGE_US[1]:
                raise MidiError(
                    f"tempo of {us} us per quarter at tick {tick}; {TEMPO_RANGE_US[0]}..{TEMPO_RANGE_US[1]} is music", code="bad-time"
                )
            tempos.append((tick, us))
        elif kind == 0x58 and len(payload) >= 2 and payload[0] and payload[1] <= MAX_METER_POWER:
            meters.append((tick, payload[0], 1 << payload[1]))
        else:
            problems.add("bad-tempo" if kind == 0x51 else "bad-meter")
    return tempos, Meters(*np.array(meters, dtype=np.int64).reshape(-1, 3).T)


@dataclass(frozen=True, slots=True)
class _Clock:
    """Exact time: microsecond of tick t = (start + (t - first tick) * rate) / denominator, per segment of constant tempo."""

    first_tick: list[int]
    rate: list[int]
    start: list[int]  # Python integers: a damaged file can reach far beyond 64 bits
    denominator: int

    @classmethod
    def of(cls, division: int, tempos: list[tuple[int, int]]) -> _Clock:
        """Clock of a header field and (tick, us per quarter) ascending in tick; SMPTE time does not depend on tempo."""
        if division <= 0:
            frames, ticks_per_frame = -(division >> 8), division & 0xFF
            if frames not in FRAME_RATES or not ticks_per_frame:
                message = f"division {division & 0xFFFF:#06x} is neither 1..32767 ticks per quarter nor SMPTE 24, 25, 29, 30"
                raise MidiError(message, code="bad-time")
            per_second, over = FRAME_RATES[frames]
            return cls([0], [1_000_000 * over], [0], per_second * ticks_per_frame)
        ticks, rates, starts = [0], [DEFAULT_US_PER_QUARTER], [0]
        for tick, us in tempos:
            if tick > ticks[-1]:
                starts.append(starts[-1] + (tick - ticks[-1]) * rates[-1])
                ticks.append(tick)
                rates.append(us)
            rates[-1] = us
        return cls(ticks, rates, starts, division)

    def exact_us(self, tick: int) -> int:
        at = bisect_right(self.first_tick, tick) - 1
        return _half_up(self.start[at] + (tick - self.first_tick[at]) * self.rate[at], self.denominator)

    def onset_us(self, tick: NDArray[np.int64]) -> NDArray[np.int64]:
        """Microseconds, half up, of ascending ticks whose last lies within a day."""
        if not len(tick):
            return tick
        n = bisect_right(self.first_tick, int(tick[-1]))
        if n == 1:
            return (tick * (2 * self.rate[0]) + self.denominator) // (2 * self.denominator)
        at = np.searchsorted(np.array(self.first_tick[:n]), tick, side="right") - 1
        first, rate, start = (np.array(column[:n], dtype=np.int64)[at] for column in (self.first_tick, self.rate, self.start))
        return (2 * (start + (tick - first) * rate) + self.denominator) // (2 * self.denominator)

    def nearest_tick(self, us: int) -> int:
        """Tick nearest to a microsecond, half up: the inverse of `exact_us` as long as a tick is longer than one microsecond."""
        exact = us * self.denominator
        at = bisect_right(self.start, exact) - 1
        return self.first_tick[at] + _half_up(exact - self.start[at], self.rate[at])


def _half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _n_within_a_day(tick: NDArray[np.int64], clock: _Clock, problems: set[str]) -> int:
    """How many of ascending ticks lie below 24 h; what lies behind is junk at the end of a file whose notes are fine."""
    if not len(tick) or clock.exact_us(int(tick[-1])) < DAY_US:
        return len(tick)
    problems.add("events-past-a-day")
    return sum(clock.exact_us(at) < DAY_US for at in tick.tolist())


def write_midi(
    notes: Sequence[tuple[int, int, int]],
    *,
    pedal: Sequence[tuple[int, int]] = (),
    aftertouch: Sequence[tuple[int, int, int]] = (),
    tempos: Sequence[tuple[int, int]] = ((0, DEFAULT_US_PER_QUARTER),),
    meters: Sequence[tuple[int, int, int]] = ((0, 4, 4),),
    channel: int = 9,
    ticks_per_quarter: int = 480,
    text: str | None = None,
) -> bytes:
    """A format 0 file, equal bytes for equal input; every time is microseconds from the start and goes to the nearest tick.

    Parameters
    ----------
    notes : (onset_us, note, velocity 1..127); a note lasts a sixteenth, or until the same note is struck again
    pedal : (onset_us, CC4 value); it precedes a note at the same tick
    aftertouch : (onset_us, note, value), polyphonic; it follows a note at the same tick
    tempos : (onset_us, us per quarter), ascending; a change takes place at the tick nearest to it
    meters : (onset_us, numerator, denominator)
    text : what the file says about itself; with it the file has format 1, tempo and meter in a track of their own

    Raises
    ------
    MidiError : bad-time for a time, tempo or resolution out of range; bad-value for data or a meter out of range
    """
    _check_written(notes, pedal, aftertouch, tempos, meters)
    placed: list[tuple[int, int]] = []
    for onset_us, us in tempos:
        placed.append((_Clock.of(ticks_per_quarter, placed).nearest_tick(onset_us), us))
    clock = _Clock.of(ticks_per_quarter, placed)
    rows = [(tick, 1, b"\xff\x51\x03" + us.to_bytes(3, "big")) for tick, us in placed]
    for onset_us, numerator, denominator in meters:
        meter = bytes((0xFF, 0x58, 4, numerator, denominator.bit_length() - 1, 24, 8))
        rows.append((clock.nearest_tick(onset_us), 2, meter))
    rows += [(clock.nearest_tick(us), 3, bytes((0xB0 | channel, _CC_FOOT, value))) for us, value in pedal]
    struck = sorted((clock.nearest_tick(us), note, velocity) for us, note, velocity in notes)
    rows += [(tick, 4, bytes((0x90 | channel, note, velocity))) for tick, note, velocity in struck]
    rows += [(clock.nearest_tick(us), 5, bytes((0xA0 | channel, note, value))) for us, note, value in aftertouch]
    ends: dict[int, int] = {}
    for tick, note, _ in reversed(struck):
        until = min(tick + max(1, ticks_per_quarter // 4), ends.get(note, tick + ticks_per_quarter))
        if until > tick:
            rows.append((until, 0, bytes((0x80 | channel, note, 0))))
        ends[note] = tick
    tracks = [sorted(rows)]
    if text is not None:
        said = text.encode()
        maps = [row for row in tracks[0] if row[1] in (1, 2)]
        tracks = [[(0, 0, b"\xff\x01" + _varint(len(said)) + said), *maps], [row for row in tracks[0] if row[1] not in (1, 2)]]
    header = (len(tracks) - 1).to_bytes(2, "big") + len(tracks).to_bytes(2, "big") + ticks_per_quarter.to_bytes(2, "big")
    return b"MThd" + bytes((0, 0, 0, 6)) + header + b"".join(map(_track_chunk, tracks))


def _track_chunk(rows: Sequence[tuple[int, int, bytes]]) -> bytes:
    """One track of (tick, rank, event) in order."""
    body, now = bytearray(), 0
    for tick, _, event in rows:
        body += _varint(tick - now) + event
        now = tick
    body += b"\x00\xff\x2f\x00"
    return b"MTrk" + len(body).to_bytes(4, "big") + bytes(body)


def _check_written(
    notes: Sequence[tuple[int, int, int]],
    pedal: Sequence[tuple[int, int]],
    aftertouch: Sequence[tuple[int, int, int]],
    tempos: Sequence[tuple[int, int]],
    meters: Sequence[tuple[int, int, int]],
) -> None:
    for row in (*notes, *pedal, *aftertouch, *tempos, *meters):
        if not 0 <= row[0] < DAY_US:
            raise MidiError(f"time {row[0]} us must be 0 or more and below 24 h", code="bad-time")
    for us in (row[1] for row in tempos):
        if not TEMPO_RANGE_US[0] <= us <= TEMPO_RANGE_US[1]:
            raise MidiError(f"tempo of {us} us per quarter is outside {TEMPO_RANGE_US}", code="bad-time")
    for row in (*notes, *pedal, *aftertouch):
        if min(row[1:]) < 0 or max(row[1:]) > 0x7F:
            raise MidiError(f"{row[1:]} at {row[0]} us: data must be 0..127", code="bad-value")
    for onset_us, note, velocity in notes:
        if velocity == 0:
            raise MidiError(f"note {note} at {onset_us} us has velocity 0, which ends a note", code="bad-value")
    for _, numerator, denominator in meters:
        if not 0 < numerator < 256 or denominator not in [1 << power for power in range(MAX_METER_POWER + 1)]:
            raise MidiError(f"meter {numerator}/{denominator} cannot be written", code="bad-value")


def _varint(value: int) -> bytes:
    out = bytes((value & 0x7F,))
    while value := value >> 7:
        out = bytes((value & 0x7F | 0x80,)) + out
    return out
