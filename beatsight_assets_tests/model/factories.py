"""A small data root for the tests of the model: short synthetic recordings, their events, splits, weights and features."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import events, sampling
from beatsight_assets.audio import write_wav
from beatsight_assets.events import Hits, Session
from beatsight_assets.features import cache
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets.units import rng_for

SOURCE_SET = "beatsight_demo"
RATE_HZ = 44_100
LABELS = ("kick", "snare", "hihat_closed")
SPLITS = ("train", "train", "train", "val", "test", "test")


def one_hit(label: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """150 ms of something that sounds like nothing else: low sine, broad noise, high noise."""
    t = np.arange(int(0.15 * RATE_HZ)) / RATE_HZ
    if label == "kick":
        return 0.8 * np.sin(2 * np.pi * 60 * t) * np.exp(-t / 0.04)
    noise = rng.normal(0, 1, len(t))
    if label == "snare":
        return 0.3 * noise * np.exp(-t / 0.03)
    return 0.3 * np.diff(noise, prepend=0.0) * np.exp(-t / 0.01)


def play(onsets_s: NDArray[np.float64], voices: NDArray[np.int64], seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A recording of these hits."""
    audio = np.zeros(int(seconds * RATE_HZ))
    for at, voice in zip(onsets_s, voices, strict=True):
        start = round(at * RATE_HZ)
        hit = one_hit(LABELS[voice], rng)[: len(audio) - start]
        audio[start : start + len(hit)] += hit
    return np.clip(audio, -0.99, 0.99)


def make_root(settings: Settings, *, seconds: float = 4.0, seed: int = 1, splits: tuple[str, ...] = SPLITS) -> pl.DataFrame:
    """Audio, manifest, splits, provenance and weights of one recording per entry of `splits`; returns the events."""
    taxonomy = Taxonomy.load(settings)
    batch = []
    for i, split in enumerate(splits):
        rng = rng_for(seed, "take", str(i))
        onsets_s = np.round(np.arange(0.1, seconds - 0.2, 0.19) + rng.uniform(0, 0.02), 6)
        voices = rng.integers(0, len(LABELS), len(onsets_s))
        settings.store.publish(
            settings.layout.raw(SOURCE_SET) / f"audio/t{i}.wav", write_wav(play(onsets_s, voices, seconds, rng), RATE_HZ)
        )
        session = Session(
            session_id=f"audio/t{i}.wav",
            group_id=f"demo:t{i}",
            kit_id=f"{split}_kit",
            is_synthetic=True,
            audio_path=f"audio/t{i}.wav",
            split_hint=split,
        )
        openness = np.where(voices == 2, 0.1, np.nan).astype(np.float32)
        hits = Hits(
            voices=tuple(Voice(label) for label in LABELS),
            onset_us=np.round(onsets_s * 1e6).astype(np.int64),
            voice=voices,
            velocity=rng.uniform(0.3, 0.9, len(voices)).astype(np.float32),
            openness=openness,
        )
        batch.append((session, hits))
    frame = events.assemble(SOURCE_SET, batch, taxonomy).frame
    publish_tables(settings, frame, {f"demo:t{i}": split for i, split in enumerate(splits)})
    return frame


def publish_tables(settings: Settings, frame: pl.DataFrame, split_of: dict[str, str]) -> None:
    """Manifest, splits, provenance with full coverage, and sampling weights."""
    layout, store = settings.layout, settings.store
    store.publish_frame(layout.annotated, frame)
    store.publish_frame(layout.splits, pl.DataFrame({"group_id": list(split_of), "split": list(split_of.values())}))
    sessions = frame.select("source_set", "session_id").unique(maintain_order=True)
    coverage = sessions.with_columns(coverage=pl.lit(list(Taxonomy.load(settings).labels), dtype=pl.List(pl.String)))
    store.publish_frame(layout.provenance(SOURCE_SET), coverage)
    sampling.run(settings)


def warm(settings: Settings) -> None:
    """The feature cache of the root."""
    cache.run(settings)
