"""Groove MIDI performances as audio: real playing on synthesised kits, with exact labels.

Belongs here: which takes on which kit, and writing them below `raw/groove_rendered` in the layout of `sources/rendered.py`.
Does not belong here: sound (`synth`), what Groove's notes mean (taxonomy).

Kits: every split has its own, so held-out takes are held-out kits too. The group is the Groove take id, so a performance and all its
renders stay in one split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets import midi, workers
from beatsight_assets.audio import write_wav
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.render import synth
from beatsight_assets.render.demo import NOTES, read_performance, to_csv
from beatsight_assets.sources import Recording, Rejected, groove
from beatsight_assets.stages import Progress
from beatsight_assets.store import Store
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import keyed_order

FOLDER = "groove_rendered"
MAX_TAKE_S = 120.0  # a longer take is cut here: one performance must not crowd out the others
KITS_BY_SPLIT = {"train": 1.0, "val": 0.25, "test": 0.25}  # share of the number of training kits, at least 2


@dataclass(frozen=True)
class Job:
    """One take on one kit."""

    take_id: str
    recording: Recording
    kit_id: str
    group: str
    split: str
    seconds: float


def plan(root: Path, options: Mapping[str, Any], *, minutes: float, n_kits: int, renders: int, seed: int) -> list[Job]:
    """Takes in keyed order until `minutes` of music are reached, each on `renders` kits of its split.

    Raises
    ------
    ConfigError `bad-option` : minutes, kits or renders are not positive
    """
    if minutes <= 0 or n_kits < 1 or renders < 1:
        raise ConfigError("minutes, kits and renders must be positive", code="bad-option", where="render groove")
    takes = [r for r in groove.scan(root, options) if isinstance(r, Recording)]
    takes.sort(key=lambda r: keyed_order(seed, r.session.session_id))
    jobs: list[Job] = []
    total_s = 0.0
    for take in takes:
        if total_s >= minutes * 60:
            break
        seconds = min(float(take.facts.get("duration_seconds", MAX_TAKE_S)), MAX_TAKE_S)
        split = take.session.split_hint or "train"
        kits = [f"groove_{split}_kit{k + 1}" for k in range(max(2, round(n_kits * KITS_BY_SPLIT[split])))]
        chosen = sorted(kits, key=lambda k: keyed_order(seed, f"{take.session.session_id}/{k}"))[:renders]
        group = take.session.group_id.partition(":")[2]
        for kit_id in chosen:
            jobs.append(Job(f"{group.replace('/', '-')}-{kit_id}", take, kit_id, group, split, seconds))
            total_s += seconds
    return jobs


def write(root: Path, target: Path, jobs: Sequence[Job], *, store: Store, taxonomy_path: Path, options: Mapping[str, Any], seed: int,
          n_workers: int, progress: Progress) -> dict[str, float | int]:  # fmt: skip
    """Render every job; a take whose files are there already is kept. Returns counts and minutes."""
    by_kit: dict[str, list[Job]] = {}
    for job in jobs:
        by_kit.setdefault(job.kit_id, []).append(job)
    batches = [tuple(group[i : i + 16]) for group in by_kit.values() for i in range(0, len(group), 16)]
    known = {
        j.take_id for j in jobs if (target / "audio" / f"{j.take_id}.wav").is_file() and (target / "midi" / f"{j.take_id}.mid").is_file()
    }
    work = [(root, tuple(j for j in batch if j.take_id not in known), taxonomy_path, dict(options), seed) for batch in batches]
    n_done = len(known)
    with workers.executor("processes", n_workers) as pool:
        for made in workers.ordered_map(pool, _render_batch, [w for w in work if w[1]], n_workers=n_workers):
            for take_id, midi_bytes, wav in made:
                store.publish(target / "midi" / f"{take_id}.mid", midi_bytes)
                store.publish(target / "audio" / f"{take_id}.wav", wav)
            n_done += len(made)
            progress(f"groove_rendered: {n_done} of {len(jobs)} renders")
    header = ("take_id", "midi_filename", "audio_filename", "kit_id", "group", "split", "style", "drummer", "mix_context")
    rows = [
        (j.take_id, f"midi/{j.take_id}.mid", f"audio/{j.take_id}.wav", j.kit_id, j.group, j.split, str(j.recording.facts.get("style", "")),
         j.recording.session.drummer_id, "drum_only")
        for j in jobs
    ]  # fmt: skip
    store.publish(target / "takes.csv", to_csv(header, rows))
    seconds = sum((target / "audio" / f"{j.take_id}.wav").stat().st_size / 2 / synth.RATE_HZ for j in jobs)
    return {
        "takes": len(jobs),
        "written": len(jobs) - len(known),
        "kept": len(known),
        "minutes": round(seconds / 60, 3),
        "kits": len(by_kit),
    }


def _render_batch(work: tuple[Path, tuple[Job, ...], Path, dict[str, Any], int]) -> list[tuple[str, bytes, bytes]]:
    root, jobs, taxonomy_path, options, seed = work
    taxonomy = Taxonomy.at(taxonomy_path)
    kit = synth.Kit.from_seed(jobs[0].kit_id, seed, wide=True)
    made = []
    for job in jobs:
        midi_bytes = _as_beatsight(root, job, taxonomy, options)
        played = read_performance(job.take_id, midi_bytes)
        audio = synth.render(kit, played.onsets_us, played.labels, played.velocities, played.openness, seed=seed, take_id=job.take_id)
        made.append((job.take_id, midi_bytes, write_wav(audio, synth.RATE_HZ)))
    return made


def _as_beatsight(root: Path, job: Job, taxonomy: Taxonomy, options: Mapping[str, Any]) -> bytes:
    """The take's hits in the platform's own note map, up to `job.seconds`, so that one MIDI file says exactly what sounds."""
    reading = groove.read(root, job.recording, taxonomy, options)
    if isinstance(reading, Rejected):
        raise InputError(reading.message, code=reading.code, where=job.recording.timeline)
    hits = reading.hits
    kept = np.flatnonzero(hits.onset_us < job.seconds * 1e6)
    labels = [hits.voices[v].label for v in hits.voice[kept]]
    velocity = np.rint(hits.velocity[kept] * 127).astype(int)
    notes = [(int(t), NOTES[label], int(v)) for t, label, v in zip(hits.onset_us[kept], labels, velocity, strict=True)]
    raw = hits.openness_raw[kept] if hits.openness_raw is not None else np.full(len(kept), -1)
    pedal = [
        (int(t), int(p))
        for t, p, label in zip(hits.onset_us[kept], raw, labels, strict=True)
        if p >= 0 and taxonomy.family(label) == "hihat"
    ]
    tempo = float(hits.tempo_bpm[0]) if hits.tempo_bpm is not None and len(hits) else 120.0
    return midi.write_midi(notes, pedal=pedal, tempos=((0, round(60e6 / tempo)),))
