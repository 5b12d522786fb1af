"""Small datasets in the layout of a rendered one, and edits of them, for tests of the shared ingest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from beatsight_assets import midi
from beatsight_assets.audio import write_wav
from beatsight_assets.settings import DataLayout, Settings

NAME = "beatsight_demo"
HEADER = "take_id,midi_filename,audio_filename,kit_id,group,split,mix_context\n"


def take_bytes(seed: int, n_hits: int = 4) -> bytes:
    """A MIDI file that depends on the seed."""
    notes = [(100_000 * (i + 1) + 1_000 * (seed % 50), (36, 38, 42, 49)[(seed + i) % 4], 20 + (seed * 7 + i) % 100) for i in range(n_hits)]
    return midi.write_midi(notes)


def sound(seed: int, seconds: float = 0.6) -> bytes:
    """A short wav that depends on the seed."""
    samples = np.zeros(int(seconds * 8_000), dtype=np.float32)
    samples[10 + seed % 90 :: 800] = 0.5
    return write_wav(samples, 8_000)


def put_take(root: Path, name: str, seed: int, *, audio: bool = True) -> None:
    """One take of the dataset, without its row in the table."""
    for folder in ("midi", "audio"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / f"midi/{name}.mid").write_bytes(take_bytes(seed))
    if audio:
        (root / f"audio/{name}.wav").write_bytes(sound(seed))


def put_table(root: Path, names: list[str]) -> None:
    """The table of takes."""
    rows = [f"{n},midi/{n}.mid,audio/{n}.wav,kit,{n},train,drum_only\n" for n in names]
    (root / "takes.csv").write_text(HEADER + "".join(rows))


def at(settings: Settings, root: Path) -> Settings:
    """The same settings on another data root."""
    return replace(settings, layout=DataLayout(root))


def with_config(settings: Settings, **changes: object) -> Settings:
    """Settings whose demo dataset is configured otherwise."""
    changed = replace(settings)
    changed.__dict__["datasets"] = settings.datasets | {NAME: settings.datasets[NAME].model_copy(update=changes)}
    return changed
