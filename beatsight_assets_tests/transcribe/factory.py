"""A model that really hears, without training: a frame network whose weights are set by hand, and songs that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beatsight_assets import audio, store
from beatsight_assets.features.definitions import definition
from beatsight_assets.model.checkpoint import save_model
from beatsight_assets.model.network import NetworkConfig, build_network
from beatsight_assets.settings import Settings
from beatsight_assets.store import Store
from beatsight_assets.taxonomy import Taxonomy

RATE_HZ = 44_100
TONES = {"kick": 60.0, "hihat_closed": 9_000.0}  # what stands for each drum in these songs
BANDS = {"kick": range(4), "hihat_closed": range(22, 25)}  # of the 27 that the pooled stem leaves
PROMOTED_AT = "2026-01-31T12:00:00+00:00"


def song(hits: Sequence[tuple[float, str, float]], duration_s: float = 4.0) -> NDArray[np.float32]:
    """Tones that start at (seconds, label, amplitude) with a 4 ms rise and die away."""
    samples = np.zeros(round(duration_s * RATE_HZ), dtype=np.float32)
    t = np.arange(round(0.15 * RATE_HZ)) / RATE_HZ
    for onset_s, label, amplitude in hits:
        at = round(onset_s * RATE_HZ)
        rise = np.minimum(t / 0.004, 1.0)
        tone = amplitude * np.sin(2 * np.pi * TONES[label] * t) * np.exp(-t / 0.03) * 0.5 * (1 - np.cos(np.pi * rise))
        samples[at : at + len(t)] += tone[: max(0, len(samples) - at)].astype(np.float32)
    return samples


def write_song(path: Path, hits: Sequence[tuple[float, str, float]], *, duration_s: float = 4.0) -> Path:
    """The song as a wav file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(audio.write_wav(song(hits, duration_s), RATE_HZ))
    return path


def save_listener(folder: Path, *, view: str = "drums18", kits: Sequence[str] = (), groups: Sequence[str] = ()) -> Path:
    """A candidate folder with a network that reports a rise of energy in the lowest bands as a kick, in the highest as a closed hat.

    kits, groups : what its card says it was trained on
    """
    import torch

    classes = Taxonomy.shipped().view(view).classes
    names = {"drums18": {"kick": "kick", "hihat_closed": "hihat_closed"}, "drums5": {"kick": "KD", "hihat_closed": "HH"}}[view]
    feature = definition("frames/1")
    network = build_network(NetworkConfig(classes, feature.n_bands, stem=(1,), width=2, dilations=()))
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        network.stem[0].weight[0, 0, :, 1] = torch.tensor([-1.0, 1.0, 0.0])  # this frame minus the one before
        network.stem[1].weight.fill_(1.0)
        network.heads.bias[: len(classes)] = -20.0
        for channel, (drum, bands) in enumerate(BANDS.items()):
            network.project.weight[channel, list(bands), 0] = 1.0 / len(bands)
            column = classes.index(names[drum])
            network.heads.weight[column, channel, 0] = 8.0
            network.heads.bias[column] = -8.0
            network.heads.weight[len(classes) + column, channel, 0] = 1.0  # velocity grows with the rise
            network.heads.bias[len(classes) + column] = -2.0
    card = {
        "family": "frame",
        "view": view,
        "feature": {"name": feature.name, "digest": feature.digest},
        "temperature": 1.0,
        "threshold": 0.5,
        "trained_on": {"kits": list(kits), "groups": list(groups)},
    }
    probes = np.zeros((8, 4, feature.n_bands), dtype=np.float32)
    save_model(Store(folder.parent), folder, network, card, probes)
    return folder


def promote(settings: Settings, release: str = "demo-1", **card: Sequence[str]) -> Path:
    """What promotion leaves behind for the listener: its folder with the record, and the pointer."""
    folder = save_listener(settings.layout.promoted / release, **card)  # type: ignore[arg-type]
    settings.store.publish_json(folder / "promotion.json", {"created_at": PROMOTED_AT})
    pointer = {
        "release": release,
        "family": "frame",
        "model_sha256": store.hash_file(folder / "model.safetensors"),
        "model_card_sha256": store.hash_file(folder / "model.json"),
    }
    settings.store.publish_json(settings.layout.current_model, pointer)
    return folder
