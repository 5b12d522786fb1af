"""The MIDI reader against hand-made bytes, against mido, and against damaged files."""

from __future__ import annotations

import io
import math
import os
from fractions import Fraction
from functools import cache
from pathlib import Path

import mido
import numpy as np
import pytest

from beatsight_assets.midi import DAY_US, MidiError, MidiFile, bar_beat_at, meter_at, read_midi, read_midis, tempo_bpm_at, write_midi
from beatsight_assets.units import rng_for

SHARED = Path(os.environ.get("BEATSIGHT_SHARED_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
needs_data = pytest.mark.skipif(not (SHARED / "midi_misc").is_dir(), reason=f"no shared data below {SHARED}")
END = b"\x00\xff\x2f\x00"
SEMANTIC_CODES = {"truncated-midi", "broken-midi", "unsupported-midi", "bad-time", "not-midi", "empty-file", "resource-limit"}


def varint(value: int) -> bytes:
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def smf(*tracks: bytes, midi_format: int = 0, division: int = 480, announced: int | None = None) -> bytes:
    head = b"MThd" + (6).to_bytes(4, "big") + midi_format.to_bytes(2, "big")
    head += (len(tracks) if announced is None else announced).to_bytes(2, "big") + (division & 0xFFFF).to_bytes(2, "big")
    return head + b"".join(b"MTrk" + len(track).to_bytes(4, "big") + track for track in tracks)


def tempo(delta: int, us: int) -> bytes:
    return varint(delta) + b"\xff\x51\x03" + us.to_bytes(3, "big")


def meter(delta: int, numerator: int, power: int) -> bytes:
    return varint(delta) + bytes((0xFF, 0x58, 4, numerator, power, 24, 8))


def hit(delta: int, note: int = 36, velocity: int = 100, channel: int = 9) -> bytes:
    return varint(delta) + bytes((0x90 | channel, note, velocity))


def pedal(delta: int, value: int, channel: int = 9) -> bytes:
    return varint(delta) + bytes((0xB0 | channel, 4, value))


def refused(data: bytes) -> str:
    with pytest.raises(MidiError) as caught:
        read_midi(data)
    return caught.value.code


def rows(midi: MidiFile) -> list[tuple[int, int, int, int]]:
    notes = midi.notes
    return sorted(zip(notes.tick.tolist(), notes.channel.tolist(), notes.note.tolist(), notes.velocity.tolist(), strict=True))


def oracle(data: bytes) -> tuple[list[tuple[int, int, int, int]], list[float]]:
    """Rows and onsets in microseconds as mido and a plain walk over its tempo events see them."""
    midi = mido.MidiFile(file=io.BytesIO(data))
    found: list[tuple[int, int, int, int]] = []
    tempos = [(0, 500_000)]
    for track in midi.tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "set_tempo":
                tempos.append((tick, message.tempo))
            elif message.type == "note_on" and message.velocity > 0:
                found.append((tick, message.channel, message.note, message.velocity))
    tempos = [tempos[0], *sorted(tempos[1:], key=lambda row: row[0])]
    found.sort()
    onsets, now, segment = [], 0.0, 0
    for tick, *_ in found:
        while segment + 1 < len(tempos) and tempos[segment + 1][0] <= tick:
            now += (tempos[segment + 1][0] - tempos[segment][0]) * tempos[segment][1] / midi.ticks_per_beat
            segment += 1
        onsets.append(now + (tick - tempos[segment][0]) * tempos[segment][1] / midi.ticks_per_beat)
    return found, onsets


def assert_equals_mido(data: bytes, midi: MidiFile) -> None:
    expected, onsets = oracle(data)
    assert rows(midi) == expected
    np.testing.assert_allclose(np.sort(midi.notes.onset_us), np.sort(np.array(onsets)), rtol=0, atol=1.0)


def assert_makes_sense(midi: MidiFile) -> None:
    notes = midi.notes
    assert (np.diff(notes.tick) >= 0).all()
    assert (np.diff(notes.onset_us) >= 0).all()
    assert ((notes.onset_us >= 0) & (notes.onset_us < DAY_US)).all()
    assert ((notes.note <= 127) & (notes.velocity >= 1) & (notes.velocity <= 127) & (notes.channel <= 15)).all()
    assert ((notes.cc4 >= -1) & (notes.cc4 <= 127)).all()
    assert (midi.aftertouch.onset_us < DAY_US).all() and (midi.tempos.onset_us < DAY_US).all()
    n = 1_000
    assert len(notes.tick) <= n or (notes.onset_us[n:] - notes.onset_us[:-n] >= 1_000_000).all()
    assert midi.end_us == (notes.onset_us[-1] if len(notes.tick) else 0)


def test_a_tempo_change_moves_only_what_follows() -> None:
    """events.md case 1: every segment of the tempo map counts with its own tempo."""
    track = tempo(0, 500_000) + hit(0) + hit(480) * 3 + tempo(480, 1_000_000) + hit(0) + hit(480) * 3 + END
    midi = read_midi(smf(track))
    assert midi.notes.onset_us.tolist() == [0, 500_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000]
    assert midi.tempos.onset_us.tolist() == [0, 2_000_000]


def test_half_a_microsecond_rounds_up() -> None:
    """events.md case 3: onsets are exact rationals, rounded half up once."""
    assert read_midi(smf(tempo(0, 750_000) + hit(1393) + END)).notes.onset_us.tolist() == [2_176_563]


def test_velocity_zero_is_a_note_off() -> None:
    """events.md case 24."""
    assert rows(read_midi(smf(hit(0) + hit(10, velocity=0) + END))) == [(0, 9, 36, 100)]


def test_a_note_without_note_off_is_a_hit() -> None:
    """0 hits lost (performance.md P1)."""
    assert len(read_midi(smf(hit(0) + hit(0) + hit(5) + END)).notes.tick) == 3


def test_a_note_has_the_pedal_state_before_it_in_file_order_on_its_channel() -> None:
    """events.md section 4: last CC4 before the note, -1 before the first; a CC4 after its note at the same tick is too late."""
    track = hit(0) + pedal(0, 90) + hit(0) + pedal(5, 20, channel=3) + hit(0) + pedal(0, 0) + hit(0) + hit(0, channel=3) + hit(0, channel=4)
    assert read_midi(smf(track + END)).notes.cc4.tolist() == [-1, 90, 90, 0, 20, -1]


def test_tracks_merge_by_tick_then_track_then_position() -> None:
    """Order of a format 1 file; the tempo track rules all, the pedal of an earlier track is seen by a later one at the same tick."""
    first = tempo(480, 1_000_000) + pedal(0, 64) + hit(480, 1) + END
    second = hit(480, 2) + hit(0, 3) + hit(480, 4) + END
    midi = read_midi(smf(first, second, midi_format=1))
    assert midi.notes.note.tolist() == [2, 3, 1, 4]
    assert midi.notes.onset_us.tolist() == [500_000, 500_000, 1_500_000, 1_500_000]
    assert midi.notes.cc4.tolist() == [64, 64, 64, 64]


def test_poly_aftertouch_is_kept_with_its_time() -> None:
    """Chokes come from key pressure."""
    midi = read_midi(smf(hit(0, 49) + b"\x83\x60\xa9\x31\x40" + b"\x00\x31\x00" + END))
    assert (midi.aftertouch.onset_us.tolist(), midi.aftertouch.note.tolist(), midi.aftertouch.value.tolist()) == (
        [500_000] * 2,
        [49, 49],
        [64, 0],
    )
    assert midi.aftertouch.channel.tolist() == [9, 9]


def test_without_tempo_event_it_is_120_bpm_and_said() -> None:
    """events.md section 4 rule 2."""
    midi = read_midi(smf(hit(480) + END))
    assert (midi.notes.onset_us.tolist(), midi.tempo_declared) == ([500_000], False)
    assert tempo_bpm_at([midi], midi.notes.tick, [0, 1]).tolist() == [120.0]


@pytest.mark.parametrize(
    ("frames", "per_frame", "tick", "onset_us"),
    [(24, 4, 96, 1_000_000), (25, 40, 1, 1_000), (29, 100, 3_000, 1_001_000), (30, 80, 2_400, 1_000_000)],
    ids=["24 fps", "25 fps, milliseconds", "29 is 29.97 fps", "30 fps"],
)
def test_smpte_ticks_are_frames_whatever_the_tempo(frames: int, per_frame: int, tick: int, onset_us: int) -> None:
    """SMPTE division ignores tempo events."""
    midi = read_midi(smf(tempo(0, 16_777_215) + hit(tick) + END, division=-frames * 256 + per_frame))
    assert (midi.notes.onset_us.tolist(), midi.tempo_declared) == ([onset_us], False)
    assert bar_beat_at([midi], midi.notes.tick, [0, 1])[0].tolist() == [-1]


def test_bars_and_beats_follow_the_meter() -> None:
    """Bars count through meter changes, a change starts a new bar, the beat is the denominator's unit."""
    track = hit(0) + meter(240, 4, 2) + hit(0) + hit(719) + hit(1) + hit(1200) + meter(480, 6, 3) + hit(0) + hit(1200) + hit(240) + END
    midi = read_midi(smf(track))
    bars, beats = bar_beat_at([midi], midi.notes.tick, [0, 8])
    assert bars.tolist() == [-1, 0, 0, 0, 1, 2, 2, 3]
    assert beats.tolist() == [-1, 0, 1, 1, 0, 0, 5, 0]
    numerator, denominator = meter_at([midi], midi.notes.tick, [0, 8])
    assert numerator.tolist() == [0, 4, 4, 4, 4, 6, 6, 6] and denominator.tolist() == [0, 4, 4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty-file"),
        (b"RIFF" + smf(END), "not-midi"),
        (smf(END)[:12], "truncated-midi"),
        (smf(END)[:14], "truncated-midi"),
        (smf(END, midi_format=2), "unsupported-midi"),
        (smf(hit(0) + b"\x00\x99\x24"), "truncated-midi"),
        (smf(hit(0) + b"\x00"), "truncated-midi"),
        (smf(hit(0) + b"\x81"), "truncated-midi"),
        (smf(hit(0) + b"\x00\xf0\x05\x01"), "truncated-midi"),
        (smf(b"\x00\x24\x64" + END), "broken-midi"),
        (smf(hit(0) + b"\x00\x99\x90\x64" + END), "broken-midi"),
        (smf(hit(0) + b"\x00\x99\x24\xff" + END), "broken-midi"),
        (smf(b"\x80\x80\x80\x80\x00\x99\x24\x64" + END), "broken-midi"),
        (smf(hit(0) + END, division=0), "bad-time"),
        (smf(hit(0) + END, division=-100 * 256 + 4), "bad-time"),
        (smf(hit(0) + END, division=-25 * 256), "bad-time"),
        (smf(tempo(0, 9_999) + hit(0) + END), "bad-time"),
        (smf(hit(82_944_000) + END), "bad-time"),
        (smf(hit(0) * 1_001 + END), "bad-time"),
        (smf(END, midi_format=1) + b"MTrk\0\0\0\0" * 65_535, "resource-limit"),
    ],
    ids=[
        "no bytes",
        "no MThd",
        "cut in the header",
        "announced track is missing",
        "format 2",
        "cut in a note",
        "cut behind a delta",
        "cut in a delta",
        "cut in system exclusive",
        "data without a status",
        "status where the note is due",
        "status where the velocity is due",
        "delta of five bytes",
        "0 ticks per quarter",
        "100 frames per second",
        "0 ticks per frame",
        "tempo of 9999 us",
        "onset at 24 h",
        "1001 notes at once",
        "65,536 tracks",
    ],
)
def test_refused_with_its_code(data: bytes, code: str) -> None:
    """events.md section 4 rule 5 and reliability.md section 5: the code of each refusal."""
    assert refused(data) == code


def test_limits_are_inclusive_where_they_say_so() -> None:
    """The slowest tempo, the last microseconds of a day, 1,000 notes at once are accepted."""
    assert read_midi(smf(tempo(0, 16_777_215) + hit(0) + END)).tempos.us_per_quarter.tolist() == [16_777_215]
    assert read_midi(smf(hit(82_943_999) + END)).end_us == DAY_US - 1042
    assert len(read_midi(smf(hit(0) * 1_000 + END)).notes.tick) == 1_000


def test_more_events_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event limit covers all tracks together."""
    monkeypatch.setattr("beatsight_assets.midi.MAX_EVENTS", 10)
    assert len(read_midi(smf(hit(1) * 4 + END, hit(1) * 4 + END, midi_format=1)).notes.tick) == 8
    assert refused(smf(hit(1) * 4 + END, hit(1) * 5 + END, midi_format=1)) == "resource-limit"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (smf(hit(0) + hit(1)), "no-end-of-track"),
        (smf(hit(0) + hit(1) + b"\x00\xff\x2f"), "truncated-meta"),
        (smf(hit(0) + hit(1) + b"\x00\xff\x01\x20abc"), "truncated-meta"),
        (smf(hit(0) + b"\x00\xff\x01\x01a\x01\x24\x64" + END), "running-status-across-meta"),
        (smf(hit(0) + b"\x00\xf1\x10\x00\xf2\x10\x10\x00\xf3\x10\x00\xf5" + hit(1) + END), "undefined-message"),
        (smf(hit(0) + hit(1) + END, announced=7), "track-count"),
        (smf(hit(0) + hit(1) + END) + b"*", "chunk-length"),
        (smf(hit(0) + hit(1) + END).replace(b"MTrk\0\0\0", b"MTrk\0\0\1"), "chunk-length"),
        (smf(hit(0) + hit(1) + END).replace(b"MTrk", b"XFIH\0\0\0\1x" + b"MTrk"), "unknown-chunk"),
        (smf(hit(0) + hit(1) + END + hit(2)), "bytes-after-end-of-track"),
        (smf(hit(0) + hit(1) + b"\x00\xff\x58\x04\x00\x02\x18\x08" + END), "bad-meter"),
        (smf(hit(0) + hit(1) + b"\x00\xff\x51\x02\x07\xa1" + END), "bad-tempo"),
        (smf(hit(0) + hit(1) + tempo(268_000_000, 500_000) + END), "events-past-a-day"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tolerated_and_listed(data: bytes, problem: str) -> None:
    """events.md section 4 rule 4: the notes are read and the oddity is named."""
    midi = read_midi(data)
    assert problem in midi.problems
    assert midi.notes.onset_us.tolist() == [0, 1_042]


def random_track(rng: np.random.Generator, *, running: bool, with_tempo: bool) -> tuple[bytes, int]:
    """A legal track of 5..60 events of all kinds, and how many notes it has."""
    out, last, n_notes = bytearray(), -1, 0
    for _ in range(int(rng.integers(5, 60))):
        out += varint(int(rng.choice([0, 1, 20, 127, 128, 500, 16_383, 16_384])))
        kind = int(rng.integers(0, 12))
        if kind == 9:
            out += tempo(0, int(rng.integers(10_000, 2_000_000)))[1:] if with_tempo else b"\xff\x01\x03abc"
            last = -1
        elif kind == 10:
            out += bytes((0xF0, 3, *rng.integers(0, 128, 2).tolist(), 0xF7))
            last = -1
        elif kind == 11:
            out += meter(0, int(rng.integers(1, 13)), int(rng.integers(1, 5)))[1:]
            last = -1
        else:
            status = [0x90, 0x90, 0x90, 0x80, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0][kind] | int(rng.integers(0, 16))
            data = rng.integers(0, 128, 1 if kind in (6, 7) else 2).tolist()
            n_notes += status >> 4 == 9 and data[1] > 0
            out += bytes(data if running and status == last else (status, *data))
            last = status
    return bytes(out) + END, n_notes


@cache
def random_file(name: str) -> tuple[bytes, int]:
    rng = rng_for(11, "midi", name)
    n_tracks = int(rng.integers(1, 4))
    made = [random_track(rng, running=bool(rng.integers(0, 2)), with_tempo=i == 0) for i in range(n_tracks)]
    data = smf(*(track for track, _ in made), midi_format=int(n_tracks > 1), division=int(rng.choice([24, 96, 220, 480, 960, 32_767])))
    return data, sum(n for _, n in made)


def test_300_generated_files_equal_mido() -> None:
    """R8: rows and onsets of legal files, with and without running status."""
    n_notes = 0
    for i in range(300):
        data, expected = random_file(str(i))
        midi = read_midi(data)
        assert midi.problems == () and len(midi.notes.tick) == expected
        assert_equals_mido(data, midi)
        n_notes += expected
    assert n_notes > 4_000


def plain_track(rng: np.random.Generator) -> bytes:
    """Long rows of notes, pedal moves and pressure: statuses left out as often as is legal, now and then a text or a program change between."""
    out, last = bytearray(), -1
    deltas = [[0, 1, 20, 127], [128, 300, 16_383], [0, 1, 127, 128, 300, 16_384]][int(rng.integers(0, 3))]
    for _ in range(int(rng.integers(0, 200))):
        out += varint(int(rng.choice(deltas)))
        if rng.random() < 0.04:
            out += [b"\xff\x01\x03\x07\xa1\x20", b"\xf0\x02\x11\xf7", b"\xc9\x05", b"\xd9\x07"][int(rng.integers(0, 4))]
            last = -1
            continue
        status = int(rng.choice([0x99, 0x99, 0x99, 0x89, 0xB9, 0xA9, 0xE9]))
        data = (int(rng.choice([4, 36, 38, 46])), int(rng.integers(0, 128)))
        out += bytes(data if status == last and rng.random() < 0.9 else (status, *data))
        last = status
    return bytes(out) + END


def test_rows_of_plain_events_equal_mido() -> None:
    """R8: with and without running status, deltas of one to three bytes, interrupted by other events; several files and tracks at once."""
    files = []
    for i in range(150):
        rng = rng_for(13, "plain", str(i))
        n_tracks = int(rng.integers(1, 4))
        files.append(smf(*(plain_track(rng) for _ in range(n_tracks)), midi_format=int(n_tracks > 1)))
    for data, found in zip(files, read_midis(files), strict=True):
        assert isinstance(found, MidiFile) and found.problems == ()
        assert_equals_mido(data, found)


def columns_of(found: MidiFile | MidiError) -> list[object]:
    """All that a file says, in a form that can be compared."""
    if isinstance(found, MidiError):
        return [found.code, str(found)]
    tables = (found.notes, found.aftertouch, found.tempos, found.meters)
    columns = [getattr(table, name).tolist() for table in tables for name in table.__slots__]
    return [*columns, found.division, found.problems, found.end_us, found.texts]


def test_files_read_at_once_are_those_read_one_by_one() -> None:
    """A file, sound or damaged, says the same whatever is read with it; an error stands in its place."""
    files = [
        mutate(random_file(str(i % 50))[0], rng_for(14, "batch", str(i))) if i % 3 else random_file(str(i % 50))[0] for i in range(300)
    ]
    alone = []
    for data in files:
        try:
            alone.append(columns_of(read_midi(data)))
        except MidiError as error:
            alone.append(columns_of(error))
    assert [columns_of(found) for found in read_midis(files)] == alone
    assert read_midis([]) == []


def walked_maps(midi: MidiFile, tick: int) -> tuple[float, int, int, int, int]:
    """Tempo, meter, bar and beat at a tick by walking the file's maps from their start."""
    us, bar, at, numerator, denominator = 500_000, -1, 0, 0, 0
    for first, value in zip(midi.tempos.tick.tolist(), midi.tempos.us_per_quarter.tolist(), strict=True):
        us = value if first <= tick else us
    for row in zip(*(column.tolist() for column in (midi.meters.tick, midi.meters.numerator, midi.meters.denominator)), strict=True):
        if row[0] > tick:
            break
        bar = 0 if bar < 0 else bar + math.ceil(Fraction((row[0] - at) * denominator, 4 * midi.division * numerator))
        at, numerator, denominator = row
    if midi.division < 0 or not denominator:
        return 60e6 / us, numerator, denominator, -1, -1
    n_beats = (tick - at) * denominator // (4 * midi.division)
    return 60e6 / us, numerator, denominator, bar + n_beats // numerator, n_beats % numerator


def test_maps_of_many_files_at_once_are_those_walked_one_by_one() -> None:
    """Tempo, meter, bar and beat of a note are those of its own file, also where files without notes or maps lie between."""
    data = [mutate(random_file(str(i % 50))[0], rng_for(15, "maps", str(i))) if i % 3 else random_file(str(i % 50))[0] for i in range(200)]
    found = [file for file in read_midis([*data, smf(END), smf(hit(5) + END, division=-24 * 256 + 4)]) if isinstance(file, MidiFile)]
    tick = np.concatenate([file.notes.tick for file in found])
    bounds = np.cumsum([0, *(len(file.notes.tick) for file in found)]).tolist()
    due = [walked_maps(file, at) for file in found for at in file.notes.tick.tolist()]
    said = (tempo_bpm_at(found, tick, bounds), *meter_at(found, tick, bounds), *bar_beat_at(found, tick, bounds))
    assert list(zip(*(column.tolist() for column in said), strict=True)) == due
    assert len(due) > 1_000 and sum(len(file.meters.tick) > 1 for file in found) > 50
    assert len(tempo_bpm_at([], tick[:0], [0])) == len(bar_beat_at([], tick[:0], [0])[0]) == 0


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three of nine kinds of damage."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, n = int(rng.integers(0, len(out))), int(rng.integers(1, 12))
        kind = int(rng.integers(0, 9))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.integers(0, 256))
        elif kind == 2:
            del out[at : at + n]
        elif kind == 3:
            out[at:at] = rng.integers(0, 256, n).astype(np.uint8).tobytes()
        elif kind == 4:
            del out[max(1, at) :]
        elif kind == 5:
            out[at:at] = out[at : at + 4 * n]
        elif kind == 6:
            out[at : at + n] = bytes(min(n, len(out) - at))
        elif kind == 7:
            out[at : at + n] = b"\xff" * min(n, len(out) - at)
        else:
            out[min(at, 8 + at % 14) % len(out)] = int(rng.integers(0, 256))
        if not out:
            out = bytearray(b"M")
    return bytes(out)


def test_2000_damaged_files_are_refused_or_make_sense() -> None:
    """R7: no uncaught exception, no hang; what is accepted obeys the semantic limits and, without a remark, equals mido."""
    n_accepted = n_compared = 0
    for i in range(2_000):
        data = mutate(random_file(str(i % 50))[0], rng_for(12, "mutation", str(i)))
        try:
            midi = read_midi(data)
        except MidiError as error:
            assert error.code in SEMANTIC_CODES
            continue
        n_accepted += 1
        assert_makes_sense(midi)
        if midi.division > 0 and not midi.problems:
            try:
                theirs = mido.MidiFile(file=io.BytesIO(data))
            except (OSError, EOFError, ValueError, KeyError, IndexError, mido.midifiles.meta.KeySignatureError):
                continue
            if not any(message.type == "unknown_meta" for track in theirs.tracks for message in track):  # mido 1.3 drops their delta
                assert_equals_mido(data, midi)
                n_compared += 1
    assert n_accepted > 300 and n_compared > 100


def test_write_then_read_is_the_identity() -> None:
    """Notes, pedal, chokes, tempo and meter come back; equal input gives equal bytes."""
    rng = rng_for(13, "write")
    tempos = ((0, 500_000), (2_000_000, 416_667), (5_123_456, 612_345))
    notes = sorted((int(us), int(rng.integers(27, 88)), int(rng.integers(1, 128))) for us in rng.integers(0, 9_000_000, 200))
    options = {"pedal": [(1_000, 90), (2_000_000, 0)], "aftertouch": [(3_000_000, 49, 70)], "tempos": tempos}
    data = write_midi(notes, meters=((0, 4, 4), (2_000_000, 7, 8)), **options)  # type: ignore[arg-type]
    midi = read_midi(data)
    again = list(zip(midi.notes.onset_us.tolist(), midi.notes.note.tolist(), midi.notes.velocity.tolist(), strict=True))
    assert midi.problems == () and len(again) == 200
    assert max(abs(a[0] - b[0]) for a, b in zip(sorted(again), notes, strict=True)) <= 640
    assert sorted(row[1:] for row in again) == sorted(row[1:] for row in notes)
    assert midi.tempos.us_per_quarter.tolist() == [us for _, us in tempos]
    assert list(zip(midi.meters.numerator.tolist(), midi.meters.denominator.tolist(), strict=True)) == [(4, 4), (7, 8)]
    assert (midi.aftertouch.note.tolist(), midi.aftertouch.value.tolist()) == ([49], [70])
    second = read_midi(write_midi(again, meters=((0, 4, 4), (2_000_000, 7, 8)), **options))  # type: ignore[arg-type]
    assert rows(second) == rows(midi) and second.notes.onset_us.tolist() == midi.notes.onset_us.tolist()
    assert_equals_mido(data, midi)
    assert data == write_midi(list(reversed(notes)), meters=((0, 4, 4), (2_000_000, 7, 8)), **options)  # type: ignore[arg-type]


def test_written_notes_end_before_the_next_of_their_kind() -> None:
    """A note-off never cuts a later hit; every hit has one unless it is doubled at one tick."""
    data = write_midi([(0, 36, 100), (1_042, 36, 90), (1_042, 36, 80), (500_000, 38, 1)])
    kinds = [(m.type, m.note) for m in mido.MidiFile(file=io.BytesIO(data)).tracks[0] if not m.is_meta]
    assert kinds == [("note_on", 36), ("note_off", 36), *[("note_on", 36)] * 2, ("note_off", 36), ("note_on", 38), ("note_off", 38)]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"notes": [(-1, 36, 100)]}, "bad-time"),
        ({"notes": [(0, 36, 0)]}, "bad-value"),
        ({"notes": [(0, 128, 1)]}, "bad-value"),
        ({"notes": [], "tempos": [(0, 1)]}, "bad-time"),
        ({"notes": [], "meters": [(0, 4, 3)]}, "bad-value"),
        ({"notes": [], "ticks_per_quarter": 0}, "bad-time"),
    ],
    ids=["negative time", "velocity 0", "note 128", "tempo of 1 us", "meter of thirds", "no resolution"],
)
def test_what_cannot_be_written_is_refused(arguments: dict[str, object], code: str) -> None:
    """The writer never makes a file that the reader would refuse or change."""
    with pytest.raises(MidiError) as caught:
        write_midi(**arguments)  # type: ignore[arg-type]
    assert caught.value.code == code


@needs_data
@pytest.mark.data
def test_slakh_tempo_map() -> None:
    """events.md case 2 and the MIDI reader golden of sources.md section 3."""
    midi = read_midi((SHARED / "slakh/babyslakh_16k/Track00007/MIDI/S00.mid").read_bytes())
    assert (midi.format, midi.division, len(midi.notes.tick)) == (1, 96, 1_794)
    assert midi.tempos.tick.tolist() == [0, 37_632, 37_776, 38_016]
    assert midi.tempos.onset_us.tolist() == [0, 237_575_912, 238_587_146, 241_848_016]
    assert (int(midi.notes.onset_us[0]), midi.end_us, int(midi.notes.tick[-1])) == (2_424_244, 238_587_146, 37_776)


@needs_data
@pytest.mark.data
def test_odd_files_have_their_verdict() -> None:
    """R9, sources.md section 14: notes or code of each odd MIDI file."""
    verdicts: dict[str, int | str] = {}
    for path in sorted((SHARED / "midi_misc/odd_or_malformed").rglob("*.mid")):
        try:
            verdicts[path.name] = len(read_midi(path.read_bytes()).notes.tick)
        except MidiError as error:
            verdicts[path.name] = error.code
    special = {
        "test-empty-file.mid": "empty-file",
        "test-not-a-midi-file.mid": "not-midi",
        "test-track-length.mid": 1,
        "empty.mid": 0,
        "RunTimeError_unexpected_EOF.mid": 6_085,
    }
    assert len(verdicts) == 15
    assert verdicts == {name: special.get(name, 8) for name in verdicts}


@needs_data
@pytest.mark.data
def test_pretty_midi_example() -> None:
    """sources.md section 14: 420 tempo events, to the microsecond."""
    midi = read_midi((SHARED / "midi_misc/wellformed/pretty-midi/example.mid").read_bytes())
    assert (len(midi.tempos.tick), len(midi.notes.tick), int((midi.notes.channel == 9).sum())) == (420, 4_956, 888)
    assert (int(midi.notes.onset_us[0]), midi.end_us) == (3_333_332, 350_893_408)


def midi_files(folder: str) -> list[Path]:
    return sorted(path for path in (SHARED / folder).rglob("*") if path.suffix.lower() in (".mid", ".midi"))


@needs_data
@pytest.mark.data
@pytest.mark.parametrize("folder", ["midi_misc/wellformed", "slakh", "mdb_drums_pp"])
def test_real_files_equal_mido(folder: str) -> None:
    """R8: every well-formed file of the data folder; only the format 2 file is refused."""
    refusals: list[str] = []
    for path in midi_files(folder):
        data = path.read_bytes()
        try:
            midi = read_midi(data)
        except MidiError as error:
            refusals.append(f"{path.name} {error.code}")
            continue
        assert_makes_sense(midi)
        assert_equals_mido(data, midi)
    assert refusals == (["test-2-tracks-type-2.mid unsupported-midi"] if folder.startswith("midi_misc") else [])


@needs_data
@pytest.mark.data
@pytest.mark.parametrize("part", range(4))
def test_groove_files_equal_mido(part: int) -> None:
    """R8: all 992 Groove files, a quarter per test; no problems, no refusal."""
    for path in midi_files("groove_midi")[part::4]:
        data = path.read_bytes()
        midi = read_midi(data)
        assert midi.problems == () and midi.division == 480
        assert_equals_mido(data, midi)
