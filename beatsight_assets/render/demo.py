"""The demo data set: takes on synthesised kits as MIDI and WAV, strangers for the open-set check, three planted faults.

Belongs here: which takes there are, on which kit, in which split, and writing them below `raw/beatsight_demo`.
Does not belong here: playing (`grooves`), sound (`synth`, `distractors`), reading the set back (`sources`).

Layout    takes.csv, midi/<take>.mid, audio/<take>.wav (16 bit, mono, 44.1 kHz), openset.csv, openset/<id>.wav
Labels    note map `beatsight`, pedal in CC4 as on the TD-11; sound is rendered from the MIDI as read back, so labels are exact
Kits      no kit is in two splits
Faults    (ruling 26) one MIDI cut inside a channel event; one train take twice under two groups, the twin without split hint;
          one group of two takes with the hints train and test
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from beatsight_assets import midi, workers
from beatsight_assets.audio import write_wav
from beatsight_assets.errors import ConfigError
from beatsight_assets.events import openness_from_pedal
from beatsight_assets.render import distractors, grooves, synth
from beatsight_assets.store import Store
from beatsight_assets.units import rng_for

FOLDER = "beatsight_demo"
SESSIONS = 28  # takes before the planted ones: 16 train, 6 val, 6 test; about 7.5 minutes
SECTIONS_PER_TAKE = 7
KITS = {"train": 8, "val": 2, "test": 2}  # ruling 25: at least 6 for training, 2 that only the test split has
MIN_HITS = 22  # of each gate component in val and in test; ruling 25 asks for 20
FULL_MIX_EVERY = 3  # every third take has accompaniment
TAIL_S = 1.2  # audio after the last hit
OPENSET_PER_FAMILY = 10
STYLES = tuple(grooves.STYLES)
NOTES = {
    "kick": 36, "snare": 38, "rimshot": 40, "cross_stick": 37, "hihat_closed": 42, "hihat_open": 46, "hihat_pedal": 44,
    "hihat_foot_splash": 21, "ride_bow": 51, "ride_bell": 53, "ride_edge": 59, "crash": 49, "crash2": 57, "splash": 55, "china": 52,
    "tom_high": 48, "tom_mid": 45, "tom_low": 43, "cowbell": 56, "tambourine": 54, "clap": 39, "shaker": 70, "aux_percussion": 63,
}  # fmt: skip
LABELS = {note: label for label, note in NOTES.items()}


@dataclass(frozen=True)
class Row:
    """One line of takes.csv and how to make its files."""

    take: grooves.Take
    kit_id: str
    group: str
    split: str  # train, val, test, or empty: no hint
    mix_context: str  # drum_only or full_mix
    take_id: str
    damaged: bool = False


@dataclass(frozen=True)
class DemoSummary:
    """What `write_demo` made: counts, minutes of takes, bytes on disk, hits per split and component of the readable takes, faults in words."""

    n_takes: int
    minutes: float
    n_bytes: int
    n_written: int
    n_kept: int
    hits: Mapping[str, Mapping[str, int]]
    kits: Mapping[str, int]
    faults: tuple[str, ...]


def write_demo(
    root_raw: Path,
    *,
    store: Store,
    seed: int = 7,
    sessions: int = SESSIONS,
    n_workers: int = 2,
    progress: Callable[[str], None] = lambda _: None,
) -> DemoSummary:
    """Make the demo set below `root_raw / "beatsight_demo"`; files that are there with equal content are left alone, takes of an earlier, larger demo go.

    Raises
    ------
    ConfigError `bad-option` : fewer than 4 sessions (each split needs a take, and a take is duplicated)
    """
    if sessions < 4:
        raise ConfigError(f"sessions is {sessions}; it must be at least 4, so that every split has a take", code="bad-option")
    root = root_raw / FOLDER
    rows = plan_rows(sessions, seed)
    by_kit: dict[str, list[Row]] = {}
    for row in rows:
        by_kit.setdefault(row.kit_id, []).append(row)
    n_written = n_kept = n_bytes = 0
    durations: dict[str, float] = {}

    def put(name: str, data: bytes) -> None:
        nonlocal n_written, n_kept, n_bytes
        path, n_bytes = root / name, n_bytes + len(data)
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            n_kept += 1
        else:
            store.publish(path, data)
            n_written += 1

    jobs = [(seed, tuple(group)) for group in by_kit.values()]
    with workers.executor("processes", n_workers) as pool:
        for done in workers.ordered_map(pool, _make_files, jobs, n_workers=n_workers):
            for take_id, midi_bytes, wav_bytes in done:
                put(f"midi/{take_id}.mid", midi_bytes)
                put(f"audio/{take_id}.wav", wav_bytes)
                durations[take_id] = (len(wav_bytes) - 44) / 2 / synth.RATE_HZ
            progress(f"demo: {len(durations)} of {len(rows)} takes")
    strangers = [(f"{family}_{i:02d}", family) for family in distractors.FAMILIES for i in range(OPENSET_PER_FAMILY)]
    for name, family in strangers:
        put(f"openset/{name}.wav", write_wav(distractors.make(family, seed, f"openset/{name}"), synth.RATE_HZ))
    put("openset.csv", to_csv(("id", "is_known", "family", "file"), ((n, "false", f, f"openset/{n}.wav") for n, f in strangers)))
    put("takes.csv", _takes_csv(rows, durations))
    for stale in sorted({*root.glob("midi/t*.mid"), *root.glob("audio/t*.wav")}):
        if stale.stem not in durations:
            store.remove(stale)
    return DemoSummary(
        n_takes=len(rows),
        minutes=sum(durations.values()) / 60,
        n_bytes=n_bytes,
        n_written=n_written,
        n_kept=n_kept,
        hits=_count_hits(rows),
        kits=dict(KITS),
        faults=(
            f"damaged: midi/{rows[-4].take_id}.mid is cut inside a channel event",
            f"duplicate: {rows[-3].take_id} is {rows[-3].take.take_id} under another group, without a split hint",
            f"split conflict: {rows[-2].take_id} (train) and {rows[-1].take_id} (test) are one group",
        ),
    )


def plan_rows(sessions: int, seed: int) -> list[Row]:
    """Takes of all splits, then the four planted ones; ids are t01, t02, ..."""
    n_held_out = max(1, round(sessions * 3 / 14))
    sizes = {"train": max(2, sessions - 2 * n_held_out), "val": n_held_out, "test": n_held_out}
    rows: list[Row] = []
    for split, n_takes in sizes.items():
        first = len(rows) + 1
        ids = [f"t{first + i:02d}" for i in range(n_takes)]
        styles = [STYLES[(first + i) % len(STYLES)] for i in range(n_takes)]
        takes = grooves.make_split(split, ids, styles, seed=seed, min_hits=MIN_HITS, n_sections=SECTIONS_PER_TAKE)
        rows += [
            Row(
                take,
                f"{split}_kit{i % KITS[split] + 1}",
                take.take_id,
                split,
                "full_mix" if i % FULL_MIX_EVERY == 2 else "drum_only",
                take.take_id,
            )
            for i, take in enumerate(takes)
        ]
    n = len(rows)
    ids = [f"t{n + i:02d}" for i in range(1, 5)]
    extra = grooves.make_split("planted", (ids[0], *ids[2:]), ("rock",) * 3, seed=seed, min_hits=0, n_sections=5)
    twin = rows[2 if n > 4 else 0]
    rows.append(Row(extra[0], "train_kit1", ids[0], "train", "drum_only", ids[0], damaged=True))
    rows.append(replace(twin, take_id=ids[1], group=ids[1], split=""))
    rows += [
        Row(replace(take, take_id=ids[i]), f"test_kit{i - 1}", "pair", hint, "drum_only", ids[i])
        for i, take, hint in ((2, extra[1], "train"), (3, extra[2], "test"))
    ]
    return rows


def _make_files(job: tuple[int, tuple[Row, ...]]) -> list[tuple[str, bytes, bytes]]:
    """(take_id, MIDI bytes, WAV bytes) of the takes of one kit, so that its one-shots are made once."""
    seed, rows = job
    kit = synth.Kit.from_seed(rows[0].kit_id, seed)
    return [(row.take_id, *_make_take_files(row, kit, seed)) for row in rows]


def _make_take_files(row: Row, kit: synth.Kit, seed: int) -> tuple[bytes, bytes]:
    take = row.take
    notes = [(hit.onset_us, NOTES[hit.label], hit.velocity) for hit in take.hits]
    pedal = [(hit.onset_us, hit.cc4) for hit in take.hits if hit.cc4 is not None]
    midi_bytes = midi.write_midi(notes, pedal=pedal, tempos=take.tempos, meters=take.meters)
    played = read_performance(take.take_id, midi_bytes)
    bed = None
    if row.mix_context == "full_mix":
        peak = float(rng_for(seed, "bed-level", take.take_id).uniform(0.06, 0.2))
        bed = distractors.make_bed(seed, take.take_id, int(played.onsets_us[-1]) / 1e6 + 1.0, peak=peak)
    audio = synth.render(
        kit,
        played.onsets_us,
        played.labels,
        played.velocities,
        played.openness,
        seed=seed,
        take_id=take.take_id,
        tail_s=TAIL_S,
        accompaniment=bed,
    )
    if row.damaged:
        midi_bytes = _cut_inside_event(midi_bytes)
    return midi_bytes, write_wav(audio, synth.RATE_HZ)


def read_performance(take_id: str, midi_bytes: bytes) -> synth.Performance:
    """What the MIDI of a demo take says, quantised as it is: onsets, labels, velocity / 127, openness `1 - cc4 / 90` (nan before the first CC4)."""
    notes = midi.read_midi(midi_bytes).notes
    openness = openness_from_pedal(notes.cc4)
    return synth.Performance(
        take_id,
        notes.onset_us,
        [LABELS[int(n)] for n in notes.note],
        (notes.velocity / 127).astype(np.float32),
        openness.astype(np.float32),
    )


def _cut_inside_event(midi_bytes: bytes) -> bytes:
    """The file up to a note-on that has lost its velocity byte, two thirds in."""
    at = midi_bytes.index(b"\x99", len(midi_bytes) * 2 // 3)
    return midi_bytes[: at + 2]


def _count_hits(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Hits per split and component as training will see them: damaged takes and twins left out, the disputed group in test."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in KITS}
    for row in rows:
        if not row.damaged and row.split:
            counts["test" if row.group == "pair" else row.split].update(hit.label for hit in row.take.hits)
    return {split: {name: found[name] for name in synth.COMPONENTS} for split, found in counts.items()}


def _takes_csv(rows: Sequence[Row], durations: Mapping[str, float]) -> bytes:
    header = ("take_id", "midi_filename", "audio_filename", "kit_id", "group", "split", "style", "duration", "mix_context", "tempo")
    return to_csv(
        header,
        (
            (
                row.take_id, f"midi/{row.take_id}.mid", f"audio/{row.take_id}.wav", row.kit_id, row.group, row.split, row.take.style,
                f"{durations[row.take_id]:.6f}", row.mix_context, row.take.tempo_bpm,
            )
            for row in rows
        ),
    )  # fmt: skip


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A csv table with unix line ends; equal rows give equal bytes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().encode()
