"""Groove MIDI performances as audio: real playing on synthesised or sampled kits, with exact labels.

Belongs here: which takes on which kit, and writing them below `raw/groove_rendered` in the layout of `sources/rendered.py`.
Does not belong here: sound (`synth`, `sampled`), what Groove's notes mean (taxonomy).

Kits: every split has its own, so held-out takes are held-out kits too. The group is the Groove take id, so a performance and all its
renders stay in one split. A sampled kit is in the split that `kit_splits` of the one-shots names, as its own samples are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets import midi, store, workers
from beatsight_assets.audio import write_wav
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.render import sampled, synth
from beatsight_assets.render.demo import LABELS, NOTES, read_performance, to_csv
from beatsight_assets.sources import Recording, Rejected, groove
from beatsight_assets.stages import Progress
from beatsight_assets.store import Store, contain, read_bytes
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import keyed_order

FOLDER = "groove_rendered"
HATS_BY_SAY = ("hihat_open", "hihat_closed", "hihat_pedal", "hihat_foot_splash")  # whose pedal value counts when several sound at once
SAMPLED = "sampled"  # column kit_source
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
    sampled: sampled.KitRef | None = None  # None: synthesised from the kit id


@dataclass(frozen=True)
class SampledKits:
    """Sampled kits by split, and what is needed to read them."""

    by_split: Mapping[str, Sequence[sampled.KitRef]]
    options: Mapping[str, Any]  # of the one-shots
    refused: Mapping[str, str] = field(default_factory=dict)  # kit -> why it does not play

    @property
    def identity(self) -> dict[str, Any]:
        """What the renders depend on besides the files: tables, note maps and splits of the kits."""
        configs = {name: store.hash_file(Path(path)) for name, path in self.options.get("configs", {}).items()}
        return {"options": {k: v for k, v in self.options.items() if k != "configs"}, "configs": configs}

    @property
    def facts(self) -> dict[str, Any]:
        """Kits by split, and those that do not play."""
        return {"kits": {s: [r.kit_id for r in refs] for s, refs in self.by_split.items()}, "kits_refused": dict(self.refused)}


def plan(
    root: Path,
    options: Mapping[str, Any],
    *,
    minutes: float,
    n_kits: int,
    renders: int,
    seed: int,
    kits_from: SampledKits | None = None,
    recipe: str = "",
) -> list[Job]:
    """Takes in keyed order until `minutes` of music are reached, each on `renders` kits of its split.

    With `kits_from` a kit is a sampled kit in a drawn room (`<kit>-r<room>`); takes of a split without a kit are passed over.
    `recipe` : what else the sound depends on; it becomes part of the take ids, so that a render made otherwise is never taken for this one.

    Raises
    ------
    ConfigError `bad-option` : minutes, kits or renders are not positive
    """
    if minutes <= 0 or n_kits < 1 or renders < 1:
        raise ConfigError("minutes, kits and renders must be positive", code="bad-option", where="render groove")
    takes = [r for r in groove.scan(root, options) if isinstance(r, Recording)]
    takes.sort(key=lambda r: keyed_order(seed, r.session.session_id))
    jobs: list[Job] = []
    mark = blake2b(f"{seed}\x1f{recipe}".encode(), digest_size=4).hexdigest()
    total_s = 0.0
    for take in takes:
        if total_s >= minutes * 60:
            break
        seconds = min(float(take.facts.get("duration_seconds", MAX_TAKE_S)), MAX_TAKE_S)
        split = take.session.split_hint or "train"
        kits = _kits(split, max(2, round(n_kits * KITS_BY_SPLIT[split])), kits_from)
        chosen = sorted(kits, key=lambda k: keyed_order(seed, f"{take.session.session_id}/{k}"))[:renders]
        group = take.session.group_id.partition(":")[2]
        for kit_id in chosen:
            jobs.append(Job(f"{group.replace('/', '-')}-{kit_id}-{mark}", take, kit_id, group, split, seconds, kits[kit_id]))
            total_s += seconds
    return jobs


def _kits(split: str, n: int, kits_from: SampledKits | None) -> dict[str, sampled.KitRef | None]:
    """Ids of the `n` kits of a split, and the samples behind them."""
    if kits_from is None:
        return {f"groove_{split}_kit{k + 1}": None for k in range(n)}
    refs = kits_from.by_split.get(split, ())
    return {
        re.sub(r"[^A-Za-z0-9._-]+", "_", f"{refs[k % len(refs)].kit_id}-r{k // len(refs) + 1}"): refs[k % len(refs)]
        for k in range(n if refs else 0)
    }


def write(root: Path, target: Path, jobs: Sequence[Job], *, store: Store, taxonomy_path: Path, options: Mapping[str, Any], seed: int,
          n_workers: int, progress: Progress, kit_options: Mapping[str, Any] | None = None) -> tuple[dict[str, float | int], dict[str, Any]]:  # fmt: skip
    """Render every job; a take whose files are there already is kept, those of other takes go. Returns figures, and what sounds instead of what was played.

    `kit_options` : options of the one-shots, for sampled kits
    """
    by_kit: dict[str, list[Job]] = {}
    for job in jobs:
        by_kit.setdefault(job.kit_id, []).append(job)
    batches = [tuple(group[i : i + 16]) for group in by_kit.values() for i in range(0, len(group), 16)]
    known = {
        j.take_id for j in jobs if (target / "audio" / f"{j.take_id}.wav").is_file() and (target / "midi" / f"{j.take_id}.mid").is_file()
    }
    unmade = [tuple(j for j in batch if j.take_id not in known) for batch in batches]
    work = [(root, batch, taxonomy_path, dict(options), dict(kit_options or {}), seed) for batch in unmade if batch]
    n_done = len(known)
    replaced: Counter[str] = Counter()
    with workers.executor("processes", n_workers) as pool:
        for made in workers.ordered_map(pool, _render_batch, work, n_workers=n_workers):
            for take_id, midi_bytes, wav, instead in made:
                replaced.update(instead)
                store.publish(target / "midi" / f"{take_id}.mid", midi_bytes)
                store.publish(target / "audio" / f"{take_id}.wav", wav)
            n_done += len(made)
            progress(f"groove_rendered: {n_done} of {len(jobs)} renders")
    header = ("take_id", "midi_filename", "audio_filename", "kit_id", "group", "split", "style", "drummer", "mix_context", "kit_source")
    rows = [
        (j.take_id, f"midi/{j.take_id}.mid", f"audio/{j.take_id}.wav", j.kit_id, j.group, j.split, str(j.recording.facts.get("style", "")),
         j.recording.session.drummer_id, "drum_only", "synthesised" if j.sampled is None else SAMPLED)
        for j in jobs
    ]  # fmt: skip
    store.publish(target / "takes.csv", to_csv(header, rows))
    ids = {j.take_id for j in jobs}
    for stale in sorted({*target.glob("midi/*.mid"), *target.glob("audio/*.wav")}):
        if stale.stem not in ids:
            store.remove(stale)
    seconds = sum((target / "audio" / f"{j.take_id}.wav").stat().st_size / 2 / synth.RATE_HZ for j in jobs)
    figures: dict[str, float | int] = {
        "takes": len(jobs),
        "written": len(jobs) - len(known),
        "kept": len(known),
        "minutes": round(seconds / 60, 3),
        "kits": len(by_kit),
    }
    return figures, {"sounds_instead": dict(sorted(replaced.items()))} if replaced else {}


def _render_batch(
    work: tuple[Path, tuple[Job, ...], Path, dict[str, Any], dict[str, Any], int],
) -> list[tuple[str, bytes, bytes, Counter[str]]]:
    root, jobs, taxonomy_path, options, kit_options, seed = work
    taxonomy = Taxonomy.at(taxonomy_path)
    ref = jobs[0].sampled
    kit = synth.Kit.from_seed(jobs[0].kit_id, seed, wide=True)
    drums = None if ref is None else sampled.load_kit(ref, kit, kit_options, taxonomy)
    made = []
    for job in jobs:
        midi_bytes, instead = _as_beatsight(root, job, taxonomy, options, drums)
        played = read_performance(job.take_id, midi_bytes)
        args = (played.onsets_us, played.labels, played.velocities, played.openness)
        if drums is None:
            sound = synth.render(kit, *args, seed=seed, take_id=job.take_id)
        else:
            caught = midi.read_midi(midi_bytes).aftertouch
            chokes = [(us, LABELS[note]) for us, note in zip(caught.onset_us.tolist(), caught.note.tolist(), strict=True)]
            sound = sampled.render(drums, *args, chokes=chokes, seed=seed, take_id=job.take_id)
        made.append((job.take_id, midi_bytes, write_wav(sound, synth.RATE_HZ), instead))
    return made


def _as_beatsight(
    root: Path, job: Job, taxonomy: Taxonomy, options: Mapping[str, Any], drums: sampled.SampledKit | None
) -> tuple[bytes, Counter[str]]:
    """(the take's hits in the platform's own note map up to `job.seconds`, {"played -> sounding": hits}): one MIDI file says exactly what sounds.

    On a sampled kit what the kit lacks becomes its substitute or is left out, the pedal is that of the recorded hat, and cymbals caught by
    hand stay (aftertouch).
    """
    reading = groove.read(root, job.recording, taxonomy, options)
    if isinstance(reading, Rejected):
        raise InputError(reading.message, code=reading.code, where=job.recording.timeline)
    hits = reading.hits
    sounding = [v.label if drums is None else drums.sounding(v.label) for v in hits.voices]
    is_heard = np.array([label is not None for label in sounding])[hits.voice]
    early = hits.onset_us < job.seconds * 1e6
    instead = Counter(
        f"{hits.voices[v].label} -> {sounding[v] or 'left out'}" for v in hits.voice[early].tolist() if sounding[v] != hits.voices[v].label
    )
    kept = np.flatnonzero(early & is_heard)
    labels = [str(sounding[v]) for v in hits.voice[kept]]
    velocity = np.rint(hits.velocity[kept] * 127).astype(int)
    notes = [(int(t), NOTES[label], int(v)) for t, label, v in zip(hits.onset_us[kept], labels, velocity, strict=True)]
    raw = hits.openness_raw[kept] if hits.openness_raw is not None else np.full(len(kept), -1)
    hats = sorted(
        (int(t), HATS_BY_SAY.index(label), int(p) if drums is None else drums.pedal(label, int(p)))
        for t, p, label in zip(hits.onset_us[kept], raw, labels, strict=True)
        if taxonomy.family(label) == "hihat"
    )
    # One value per instant: of two hats that sound together the open one says how open, for that is what its label is about.
    pedal = sorted(dict(reversed([(t, p) for t, _, p in hats if p >= 0])).items())
    tempo = float(hits.tempo_bpm[0]) if hits.tempo_bpm is not None and len(hits) else 120.0
    caught = [] if drums is None else _caught(root, job, taxonomy, drums)
    return midi.write_midi(notes, pedal=pedal, aftertouch=caught, tempos=((0, round(60e6 / tempo)),)), instead


def _caught(root: Path, job: Job, taxonomy: Taxonomy, drums: sampled.SampledKit) -> list[tuple[int, int, int]]:
    """(microsecond, note, value) where the drummer caught a cymbal that sounds on this kit."""
    touched = midi.read_midi(read_bytes(contain(root, job.recording.timeline), max_bytes=groove.MAX_MIDI_BYTES)).aftertouch
    notes = taxonomy.note_map(groove.NOTE_MAP)
    until_us = (job.seconds + sampled.TAIL_S) * 1e6  # the last stroke may be caught while it rings out
    found = set()
    for us, note, value in zip(touched.onset_us.tolist(), touched.note.tolist(), touched.value.tolist(), strict=True):
        label = drums.sounding(notes[note].label) if note in notes and value > 0 and us < until_us else None
        if label in sampled.CYMBALS:
            found.add((us, NOTES[label], value))  # bow and edge of one crash report it both
    return sorted(found)
