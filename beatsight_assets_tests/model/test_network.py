"""The frame network: receptive field, chunks, classes."""

from __future__ import annotations

import numpy as np
import pytest

from beatsight_assets.model.network import NetworkConfig, apply_network, apply_windows, build_network, count_parameters

CONFIG = NetworkConfig(classes=("a", "b", "c"), n_bands=81)


@pytest.fixture(scope="module")
def network() -> object:
    """A network with some statistics in its norms."""
    import torch

    torch.manual_seed(1)
    net = build_network(CONFIG)
    net.train()
    for _ in range(3):
        net(torch.rand(4, 64, 81) * 5)
    return net.eval()


def features(n_frames: int, seed: int = 1) -> np.ndarray:
    """Features of the right range."""
    return np.random.default_rng(seed).uniform(0, 6, (n_frames, 81)).astype(np.float32)


@pytest.mark.parametrize("chunk_frames", [1, 50, 97, 333, 10_000])
def test_the_result_does_not_depend_on_the_chunk_length(network: object, chunk_frames: int) -> None:
    """Ruling 30: chunks overlap by the receptive field, so a long recording sounds like a short one."""
    x = features(400 if chunk_frames > 1 else 60)
    whole = apply_network(network, x, chunk_frames=10_000)  # type: ignore[arg-type]
    parts = apply_network(network, x, chunk_frames=chunk_frames)  # type: ignore[arg-type]
    for a, b in zip(whole, parts, strict=True):
        assert np.abs(a - b).max() <= 1e-5


def test_the_receptive_field_is_what_it_says(network: object) -> None:
    """A changed frame moves outputs within `receptive_frames`, at its very edge too, and none beyond."""
    reach = CONFIG.receptive_frames
    x, y = features(300), features(300)
    y[150] += 3.0
    moved = np.abs(apply_network(network, x).onset - apply_network(network, y).onset).max(axis=1) > 0  # type: ignore[arg-type]
    at = np.flatnonzero(moved)
    assert (at[0], at[-1]) == (150 - reach, 150 + reach)


def test_windows_are_recordings_of_their_own(network: object) -> None:
    """A batch of windows gives what each of them gives alone: nothing outside a window is heard."""
    x = np.stack([features(40, s) for s in (1, 2, 3)])
    together = apply_windows(network, x)  # type: ignore[arg-type]
    for window, found in zip(x, together, strict=True):
        assert np.abs(apply_network(network, window).onset - found).max() <= 1e-5  # type: ignore[arg-type]


def test_outputs_have_one_column_per_class_and_stay_in_range(network: object) -> None:
    """Velocity and openness are 0..1, and no frame is lost."""
    out = apply_network(network, features(123))  # type: ignore[arg-type]
    assert out.onset.shape == out.velocity.shape == (123, 3) and out.openness.shape == out.any_onset.shape == (123,)
    for values in (out.velocity, out.openness):
        assert values.min() >= 0 and values.max() <= 1


def test_an_empty_recording_has_no_frames(network: object) -> None:
    """Zero frames in, zero frames out."""
    assert apply_network(network, features(0)).onset.shape == (0, 3)  # type: ignore[arg-type]


def test_the_config_survives_json_and_counts_its_parameters() -> None:
    """Equal JSON, equal network; the size is that of the plan, about 100 k for 18 classes."""
    config = NetworkConfig(classes=tuple(f"c{i}" for i in range(18)), n_bands=81)
    assert NetworkConfig.from_json(config.to_json()) == config
    assert 90_000 < count_parameters(build_network(config)) < 160_000
