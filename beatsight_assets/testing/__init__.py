"""Small data that tests of this platform, and of what is built on it, start from.

Belongs here: a dataset of a few seconds and limits that it can keep. Does not belong here: data worth training on (`render`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.audio import write_wav
from beatsight_assets.midi import write_midi
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import rng_for

RATE_HZ = 44_100
HITS_PER_CLASS = 3
LEAD_S = 0.05  # silence before the first hit
TAIL_S = 0.15  # every hit rings out inside the file
DECAY_S = 0.015  # short, so that neighbouring hits stay apart
SPLITS = ("train", "val", "test")  # of the first three takes; all others are train


def tiny_dataset(settings: Settings, n_takes: int = 3, seconds: float = 2.0, seed: int = 7) -> Path:
    """Write raw/beatsight_demo in the layout of a rendered dataset: takes.csv, midi/, audio/; returns its folder.

    Every take has a group and a kit of its own and strikes every component three times, in an order that depends on the seed and the
    take alone. Equal arguments give equal bytes; an existing dataset is replaced file by file.

    Parameters
    ----------
    n_takes : at least 1; the first three are train, val and test, the others train
    seconds : length of a take, at least 0.5
    """
    root = settings.layout.raw("beatsight_demo")
    notes = sorted(Taxonomy.load(settings).note_map("beatsight")) * HITS_PER_CLASS
    lines = ["take_id,midi_filename,audio_filename,kit_id,group,split,mix_context"]
    for n in range(n_takes):
        name = f"take_{n}"
        rng = rng_for(seed, "tiny", name)
        onset_us = np.linspace(LEAD_S * 1e6, (seconds - TAIL_S) * 1e6, len(notes)).round().astype(np.int64)
        hits = list(zip(onset_us.tolist(), rng.permutation(notes).tolist(), rng.integers(40, 127, len(notes)).tolist(), strict=True))
        settings.store.publish(root / "midi" / f"{name}.mid", write_midi(hits))
        settings.store.publish(root / "audio" / f"{name}.wav", write_wav(_strikes(hits, seconds), RATE_HZ))
        split = SPLITS[n] if n < len(SPLITS) else "train"
        lines.append(f"{name},midi/{name}.mid,audio/{name}.wav,kit_{n},{name},{split},drum_only")
    settings.store.publish(root / "takes.csv", ("\n".join(lines) + "\n").encode())
    return root


def tiny_gates(settings: Settings) -> Path:
    """Write configs/gates/<profile>.yaml into the data root with limits that `tiny_dataset` keeps; the rules stay the same.

    Use it before the settings have read their limits. Returns the file.
    """
    gates = settings.gates.model_dump(mode="json")
    gates["health"] |= {"min_class_count": 1, "required_techniques": []}
    target = settings.layout.at(f"configs/gates/{settings.profile}.yaml")
    settings.store.publish_json(target, gates)
    settings.__dict__.pop("gates", None)  # read again
    return target


def _strikes(hits: list[tuple[int, int, int]], seconds: float) -> NDArray[np.float32]:
    """A decaying tone at each hit, its pitch from the note: float32 [shape=(n_samples,)] in -1..1."""
    samples = np.zeros(round(seconds * RATE_HZ))
    t = np.arange(round(4 * DECAY_S * RATE_HZ)) / RATE_HZ
    for onset_us, note, velocity in hits:
        tone = np.sin(2 * np.pi * 40.0 * note * t) * np.exp(-t / DECAY_S) * velocity / 256
        start = round(onset_us * RATE_HZ / 1e6)
        room = samples[start : start + len(tone)]
        room += tone[: len(room)]
    return np.clip(samples, -1.0, 1.0).astype(np.float32)
