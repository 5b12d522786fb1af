"""Models and training states on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beatsight_assets.errors import ConfigError, InputError, StoreError
from beatsight_assets.features.definitions import definition
from beatsight_assets.model import checkpoint
from beatsight_assets.model.network import NetworkConfig, build_network
from beatsight_assets.store import Store

FRAMES = definition("frames/1")
CARD = {
    "family": "frame",
    "run": "r",
    "view": "drums18",
    "feature": {"name": FRAMES.name, "digest": FRAMES.digest},
    "temperature": 1.25,
    "threshold": 0.4,
}


def saved(root: Path, **card: Any) -> Path:
    """An untrained model with its probes, below `root`."""
    import torch

    torch.manual_seed(1)
    network = build_network(NetworkConfig(("kick", "snare"), FRAMES.n_bands)).eval()
    probes = np.random.default_rng(1).uniform(0, 5, (8, 64, FRAMES.n_bands)).astype(np.float32)
    checkpoint.save_model(Store(root), root / "m", network, {**CARD, **card}, probes)
    return root / "m"


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Classes in their order, threshold, temperature, and the same outputs bit by bit."""
    folder = saved(tmp_path)
    model = checkpoint.load_model(folder)
    inputs, stored = checkpoint.load_probes(folder, model.card)
    assert (model.classes, model.threshold, model.temperature) == (("kick", "snare"), 0.4, 1.25)
    assert checkpoint.probe_outputs(model.network, inputs).tobytes() == stored.tobytes()


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    """Ruling 14: 8 inputs, bit-equal, in a process that never trained."""
    answer = checkpoint.probe_in_fresh_process(saved(tmp_path))
    assert answer == {"equal": True, "n_probes": 8, "max_difference": 0.0}


def test_saving_twice_gives_equal_bytes(tmp_path: Path) -> None:
    """No clock, no path, no order in the files."""
    first = {p.name: p.read_bytes() for p in saved(tmp_path / "a").iterdir()}
    second = {p.name: p.read_bytes() for p in saved(tmp_path / "b").iterdir()}
    assert first == second and set(first) == {"model.safetensors", "model.json", "probe.safetensors"}


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    """Exit code 3 `digest-mismatch`, before any tensor is used."""
    folder = saved(tmp_path)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(StoreError) as caught:
        checkpoint.load_model(folder)
    assert (caught.value.code, caught.value.exit_code) == ("digest-mismatch", 3)
    assert "digest-mismatch" in checkpoint.probe_in_fresh_process(folder)["error"]


def test_a_model_of_other_features_is_refused(tmp_path: Path) -> None:
    """Exit code 2 `feature-mismatch`, both digests named."""
    folder = saved(tmp_path, feature={"name": "frames/1", "digest": "0" * 64})
    with pytest.raises(ConfigError, match="000000000000.*" + FRAMES.digest[:12]) as caught:
        checkpoint.load_model(folder)
    assert caught.value.code == "feature-mismatch"


@pytest.mark.parametrize("field", ["network", "family", "threshold", "files"])
def test_a_card_without_a_field_is_refused(tmp_path: Path, field: str) -> None:
    """A missing field is an unreadable model, never a default."""
    folder = saved(tmp_path)
    card = json.loads((folder / "model.json").read_text())
    del card[field]
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(InputError) as caught:
        checkpoint.load_model(folder)
    assert caught.value.code == "bad-checkpoint"


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    """Weights that do not fit the network of the card are no model."""
    folder = saved(tmp_path)
    card = json.loads((folder / "model.json").read_text())
    card["network"]["width"] = 32
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="do not make a model"):
        checkpoint.load_model(folder)


def states(root: Path, epochs: int) -> Path:
    """A run folder with this many checkpoints."""
    import torch

    torch.manual_seed(1)
    network = build_network(NetworkConfig(("kick",), FRAMES.n_bands, stem=(8,), width=8, dilations=(1,)))
    optimizer = torch.optim.AdamW(network.parameters())
    for epoch in range(epochs):
        network(torch.rand(2, 16, FRAMES.n_bands)).square().mean().backward()
        optimizer.step()
        checkpoint.save_state(Store(root), root / "run", epoch, network, optimizer, {"history": [], "config": {}})
    return root / "run"


def test_the_newest_complete_checkpoint_is_used(tmp_path: Path) -> None:
    """A torn one is skipped with a notice, whether its JSON is missing or its tensors are damaged."""
    run = states(tmp_path, 4)
    (run / "checkpoints/epoch-0003/state.json").unlink()
    broken = run / "checkpoints/epoch-0002/optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    state, tensors, notices = checkpoint.newest_state(run)
    assert state is not None and state["epoch"] == 1 and set(tensors) == {"model.safetensors", "optimizer.safetensors"}
    assert [n.split()[0] for n in notices] == ["epoch-0003", "epoch-0002"]


def test_a_run_without_checkpoints_starts_at_the_beginning(tmp_path: Path) -> None:
    """No state, no tensors, no notice."""
    assert checkpoint.newest_state(tmp_path) == (None, {}, [])


def test_old_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    """Kept: the newest two, every n-th, the best."""
    run = states(tmp_path, 9)
    checkpoint.prune_states(Store(tmp_path), run, 3, 0)
    assert [int(p.name[-4:]) for p in sorted((run / "checkpoints").iterdir())] == [0, 2, 5, 7, 8]
