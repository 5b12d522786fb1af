"""P1: MIDI files to an event table, end to end, against mido + uuid5 + json; and the reader alone against mido.

Of the 0.28 CPU s that 40 times would leave for Groove's 992 files, the uuid5 of 190,000 events (0.09 s of SHA-1) and the Parquet
file (0.10 s even uncompressed) take two thirds: what each row must hold, not how MIDI is read, is the limit.
"""

from __future__ import annotations

import io
import json
import uuid

from benchmarks.harness import Result, alternate, cpu_seconds, growth, median, shared_data

GOAL = 40.0


def _files() -> tuple[list[bytes], str]:
    folder = shared_data()
    if folder is not None and (folder / "groove_midi").is_dir():
        return [p.read_bytes() for p in sorted((folder / "groove_midi").rglob("*.mid"))], "Groove MIDI, 992 files"
    from beatsight_assets import midi
    from beatsight_assets.units import rng_for

    made = []
    for i in range(200):
        rng = rng_for(1, "bench", str(i))
        onsets = sorted(rng.integers(0, 60_000_000, 250).tolist())
        made.append(
            midi.write_midi(
                [
                    (t, int(n), int(v))
                    for t, n, v in zip(onsets, rng.choice([36, 38, 42, 46, 51], 250), rng.integers(1, 127, 250), strict=True)
                ]
            )
        )
    return made, "200 generated files"


def _chunks(files: list[bytes]) -> list[list[bytes]]:
    """As many files at once as ingest reads at once."""
    from beatsight_assets.sources.pipeline import CHUNK_RECORDINGS

    return [files[i : i + CHUNK_RECORDINGS] for i in range(0, len(files), CHUNK_RECORDINGS)]


def _ours(files: list[bytes]) -> int:
    from beatsight_assets import events
    from beatsight_assets.sources.performance import Performance, read_performances
    from beatsight_assets.taxonomy import Taxonomy

    taxonomy = Taxonomy.shipped()
    read = [p for chunk in _chunks(files) for p in read_performances(chunk, taxonomy, "td11") if isinstance(p, Performance)]
    batch = [(events.Session(f"{i}.mid", f"g:{i}"), performance.hits) for i, performance in enumerate(read)]
    frame = events.assemble("bench", batch, taxonomy).frame
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=1)  # as the store writes
    return sum(len(h) for _, h in batch)


def _baseline(files: list[bytes]) -> int:
    """What people write: one pass with mido, one uuid and one JSON line per note."""
    import mido

    out, n = io.StringIO(), 0
    for i, data in enumerate(files):
        now, cc4 = 0.0, None
        for message in mido.MidiFile(file=io.BytesIO(data)):
            now += message.time
            if message.type == "control_change" and message.control == 4:
                cc4 = message.value
            elif message.type == "note_on" and message.velocity > 0:
                row = {"event_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{i}:{now:.6f}:{message.note}")), "onset_time": round(now, 6), "session_id": f"{i}.mid",
                       "components": [{"label": message.note, "velocity": message.velocity / 127, "openness": cc4}], "techniques": []}  # fmt: skip
                out.write(json.dumps(row) + "\n")
                n += 1
    return n


def _read_ours(files: list[bytes]) -> int:
    from beatsight_assets.midi import MidiFile, read_midis

    return sum(len(file.notes.note) for chunk in _chunks(files) for file in read_midis(chunk) if isinstance(file, MidiFile))


def _read_theirs(files: list[bytes]) -> int:
    import mido

    n = 0
    for data in files:
        now = 0.0
        for message in mido.MidiFile(file=io.BytesIO(data)):
            now += message.time
            n += message.type == "note_on" and message.velocity > 0
    return n


def run() -> list[Result]:
    """Hits per CPU second; a tenth of the files gives the growth."""
    files, name = _files()
    n_hits = _ours(files)
    assert _baseline(files) == n_hits, "both must find every hit"
    ours, theirs = alternate(lambda: _ours(files), lambda: _baseline(files))
    tenth = files[::10]
    small_hits = _ours(tenth)
    small = median(lambda: _ours(tenth), clock=cpu_seconds)
    ratio = theirs / ours
    read, read_mido = alternate(lambda: _read_ours(files), lambda: _read_theirs(files))
    small_read = median(lambda: _read_ours(tenth), clock=cpu_seconds)
    return [
        Result("P1 midi reader", "hits", n_hits, n_hits / read, "mido", n_hits / read_mido, read_mido / read,
               growth(small_hits, small_read, n_hits, read), f">= {GOAL:.0f}x", read_mido / read >= GOAL, {"input": name}),
        Result("P1 midi ingest", "hits", n_hits, n_hits / ours, "mido + uuid5 + json", n_hits / theirs, ratio, growth(small_hits, small, n_hits, ours),
               f">= {GOAL:.0f}x, 0 hits lost", ratio >= GOAL, {"input": name})
    ]  # fmt: skip
