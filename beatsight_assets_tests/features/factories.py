"""A small sealed bundle of noise: two shards, ten parts, every split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets import events
from beatsight_assets.audio import write_wav
from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.events import Hits, Session, assemble
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets.units import rng_for

SOURCE = "beatsight_demo"
RATE_HZ = 44_100
LABELS = ("kick", "snare", "hihat_closed", "crash")
SPLITS = ("train", "train", "train", "val", "test")


def make_bundle(settings: Settings, name: str = "b", *, hits_per_take: int = 9, n_takes: int = 5, **options: Any) -> Path:
    """Takes of noise with hits every 220 ms, exported in parts of six clips; returns the folder."""
    taxonomy = Taxonomy.load(settings)
    voices = tuple(Voice(label) for label in LABELS)
    batch = []
    for n in range(n_takes):
        onset_us = np.arange(hits_per_take) * 220_000
        index = rng_for(1, "labels", str(n)).integers(0, len(LABELS), hits_per_take)
        session = Session(session_id=f"t{n}", group_id=f"g{n}", audio_path=f"audio/t{n}.wav", is_synthetic=True, split_hint=SPLITS[n % 5])
        batch.append((session, Hits(voices, onset_us, index, np.full(hits_per_take, 0.5, np.float32))))
        noise = rng_for(1, "noise", str(n)).normal(0, 2_000, round((hits_per_take * 0.22 + 0.3) * RATE_HZ))
        settings.store.publish(settings.layout.raw(SOURCE) / f"audio/t{n}.wav", write_wav(noise.astype(np.int16), RATE_HZ))
    path = settings.layout.at("manifest/hand.parquet")
    settings.store.publish_frame(path, assemble(SOURCE, batch, taxonomy).frame, metadata=events.parquet_metadata(taxonomy))
    content = {"part_clips": 6, "shards": 2, "view": "drums18", **options}
    return export(settings, BundleRequest(name, path, content)).plan.folder
