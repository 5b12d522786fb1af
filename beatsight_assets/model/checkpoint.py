"""Models and training states on disk: tensors in safetensors, everything else in JSON.

Belongs here: the one format of candidates, promoted models and training checkpoints, reading them back, proof that a fresh process can.
Does not belong here: what is trained (`train`), which candidate is released (`promote`). Nothing here loads a pickle.

A file set is complete when its JSON is there: tensors first, JSON last, and the JSON names the digest of every tensor file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError, StoreError
from beatsight_assets.features.definitions import FrameDefinition, clip_definition, definition
from beatsight_assets.model.network import ClipNetworkConfig, NetworkConfig, apply_clips, apply_network, build_network
from beatsight_assets.store import Store

if TYPE_CHECKING:
    import torch

MODEL_SCHEMA = "beatsight.model/1"
STATE_SCHEMA = "beatsight.checkpoint/1"
N_PROBES = 8  # ruling 14
PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Model:
    """A network of the frame family with all that is needed to use it, as read from a candidate or a promoted model."""

    network: torch.nn.Module
    family: str
    view: str
    classes: tuple[str, ...]  # ordered as the outputs, whatever today's taxonomy says
    definition: FrameDefinition
    temperature: float
    threshold: float
    digest: str  # sha256 of model.json, which names the digest of the weights: the identity of the model
    card: Mapping[str, Any]  # model.json


def to_tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """State of a network on the CPU, contiguous, without prefixes of wrappers."""
    state = {name.removeprefix("module.").removeprefix("_orig_mod."): t for name, t in network.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def probe_outputs(network: torch.nn.Module, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of each probe [shape=(n, ...)], one at a time on one CPU thread, where equal weights give equal bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if isinstance(network.config, ClipNetworkConfig):
            return np.concatenate([apply_clips(network, x[None]) for x in inputs])
        return np.stack([apply_network(network, x).onset for x in inputs])
    finally:
        torch.set_num_threads(threads)


def save_model(where: Store, folder: Path, network: torch.nn.Module, card: Mapping[str, Any], probes: NDArray[np.float32]) -> list[Path]:
    """Publish `model.safetensors`, `probe.safetensors` and, last, `model.json`.

    `card` holds everything of model.json but `schema`, `network`, `n_parameters` and `files`. `probes` [shape=(8, n_frames, n_bands)], or clips, are real
    features; their outputs are stored with them, so that any later reader can prove that it computes the same.
    """
    from safetensors.numpy import save as save_numpy
    from safetensors.torch import save

    weights, probe = folder / "model.safetensors", folder / "probe.safetensors"
    on_cpu = build_network(network.config)  # type: ignore[arg-type]
    on_cpu.load_state_dict(to_tensors(network))
    outputs = probe_outputs(on_cpu, probes)
    written = {
        weights.name: where.publish(weights, save(to_tensors(network))).sha256,
        probe.name: where.publish(probe, save_numpy({"inputs": np.ascontiguousarray(probes), "onset_logits": outputs})).sha256,
    }
    config: NetworkConfig | ClipNetworkConfig = network.config  # type: ignore[assignment]
    full = {
        **card,
        "schema": MODEL_SCHEMA,
        "network": config.to_json(),
        "n_parameters": sum(p.numel() for p in network.parameters()),
        "files": written,
    }
    where.publish_json(folder / "model.json", full)
    return [weights, probe, folder / "model.json"]


def read_tensors(path: Path, expected_sha256: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file after checking its digest.

    Raises
    ------
    StoreError : `digest-mismatch`, the file is not the one that was written
    InputError : `missing-input`, `bad-checkpoint`
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("file does not exist. Train the model again", code="missing-input", where=str(path)) from error
    found = sha256(content).hexdigest()
    if found != expected_sha256:
        raise StoreError(
            f"sha256 is {found[:12]}…, the JSON beside it says {expected_sha256[:12]}…", code="digest-mismatch", where=str(path)
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise InputError(f"not a safetensors file: {error}", code="bad-checkpoint", where=str(path)) from error


def load_network(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Network and model.json of a candidate or promoted model of either family.

    Raises
    ------
    StoreError : `digest-mismatch`
    InputError : `missing-input`, `bad-checkpoint` (another schema, a missing field, tensors that do not fit the network)
    ConfigError : `feature-mismatch`, the model was trained on another feature definition than the one of this name
    """
    path = folder / "model.json"
    card: dict[str, Any] = store.read_json(path)
    try:
        if card["schema"] != MODEL_SCHEMA:
            raise InputError(f"schema is {card['schema']!r}, this version reads {MODEL_SCHEMA!r}", code="bad-checkpoint", where=str(path))
        is_clip = card["family"] == "clip"
        feature = clip_definition(card["feature"]["name"]) if is_clip else definition(card["feature"]["name"])
        if feature.digest != card["feature"]["digest"]:
            raise ConfigError(
                f"the model was trained on {feature.name} {card['feature']['digest'][:12]}…, this version computes {feature.digest[:12]}…",
                code="feature-mismatch",
                where=str(path),
            )
        network = build_network(ClipNetworkConfig.from_json(card["network"]) if is_clip else NetworkConfig.from_json(card["network"]))
        network.load_state_dict(read_tensors(folder / "model.safetensors", card["files"]["model.safetensors"]))
    except (KeyError, TypeError, RuntimeError) as error:
        raise _no_model(path, error) from error
    return network.eval(), card


def load_model(folder: Path, *, device: str = "cpu") -> Model:
    """A candidate or promoted model of the frame family, ready to use.

    Raises
    ------
    as `load_network`; ConfigError : `wrong-family`
    """
    network, card = load_network(folder)
    path = folder / "model.json"
    if card["family"] != "frame":
        raise ConfigError(
            f"a model of family {card['family']} classifies clips and finds no onsets; give one of family frame",
            code="wrong-family",
            where=str(path),
        )
    config: NetworkConfig = network.config  # type: ignore[assignment]
    try:
        return Model(
            network=network.to(device),
            family=card["family"],
            view=card["view"],
            classes=config.classes,
            definition=definition(card["feature"]["name"]),
            temperature=float(card["temperature"]),
            threshold=float(card["threshold"]),
            digest=sha256(path.read_bytes()).hexdigest(),
            card=card,
        )
    except (KeyError, TypeError) as error:
        raise _no_model(path, error) from error


def _no_model(path: Path, error: Exception) -> InputError:
    return InputError(f"model.json and model.safetensors do not make a model: {error}", code="bad-checkpoint", where=str(path))


def load_probes(folder: Path, card: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(inputs, logits) stored with a model."""
    tensors = read_tensors(folder / "probe.safetensors", card["files"]["probe.safetensors"])
    return tensors["inputs"].numpy(), tensors["onset_logits"].numpy()


def probe_in_fresh_process(folder: Path) -> dict[str, Any]:
    """Load the model in a new Python process and run its probes there: `{equal, n_probes, max_difference}`, or `{error}`."""
    command = [sys.executable, "-m", "beatsight_assets.model.checkpoint", str(folder)]
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, cwd=root, check=False)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _probe(folder: Path) -> dict[str, Any]:
    network, card = load_network(folder)
    inputs, stored = load_probes(folder, card)
    found = probe_outputs(network, inputs)
    return {
        "equal": bool(found.tobytes() == stored.tobytes()),
        "n_probes": len(inputs),
        "max_difference": float(np.abs(found - stored).max()) if len(inputs) else 0.0,
    }


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    import torch

    flat = {}
    for index, fields in optimizer.state_dict()["state"].items():
        for name, value in fields.items():
            flat[f"{index:04d}.{name}"] = (
                (value if isinstance(value, torch.Tensor) else torch.tensor(value)).detach().cpu().contiguous().clone()
            )
    return flat


def save_state(
    where: Store, run_dir: Path, epoch: int, network: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> Path:
    """Publish `checkpoints/epoch-NNNN/` (tensors first, `state.json` last), then the pointer `LATEST.json`. Returns the folder."""
    from safetensors.torch import save

    folder = run_dir / "checkpoints" / f"epoch-{epoch:04d}"
    files = {
        "model.safetensors": where.publish(folder / "model.safetensors", save(to_tensors(network))).sha256,
        "optimizer.safetensors": where.publish(folder / "optimizer.safetensors", save(_optimizer_tensors(optimizer))).sha256,
    }
    receipt = where.publish_json(folder / "state.json", {**state, "schema": STATE_SCHEMA, "epoch": epoch, "files": files})
    pointer = {"path": folder.relative_to(run_dir).as_posix(), "sha256s": {**files, "state.json": receipt.sha256}}
    where.publish_json(run_dir / "LATEST.json", pointer)
    return folder


def newest_state(run_dir: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, torch.Tensor]], list[str]]:
    """(state, tensors by file, notices) of the newest complete checkpoint whose digests match; torn ones are skipped with a notice."""
    notices: list[str] = []
    for folder in sorted((run_dir / "checkpoints").glob("epoch-*"), reverse=True):
        try:
            state = store.read_json(folder / "state.json")
            if state["schema"] != STATE_SCHEMA:
                raise InputError(f"schema is {state['schema']!r}", code="bad-checkpoint")
            return state, {name: read_tensors(folder / name, digest) for name, digest in state["files"].items()}, notices
        except (InputError, StoreError, KeyError) as error:
            notices.append(f"{folder.name} is not complete and was skipped ({error})")
    return None, {}, notices


def read_state_tensors(run_dir: Path, epoch: int) -> dict[str, torch.Tensor]:
    """Weights of the checkpoint of that epoch.

    Raises
    ------
    InputError, StoreError : as `read_tensors`
    """
    folder = run_dir / "checkpoints" / f"epoch-{epoch:04d}"
    state = store.read_json(folder / "state.json")
    return read_tensors(folder / "model.safetensors", state["files"]["model.safetensors"])


def restore_state(network: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Put the tensors of `newest_state` back into a network and its optimizer."""
    network.load_state_dict(dict(tensors["model.safetensors"]))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors["optimizer.safetensors"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def prune_states(where: Store, run_dir: Path, keep_every: int, best_epoch: int | None) -> None:
    """Keep the newest two checkpoints, every `keep_every`-th and the best; `state.json` goes first, so a torn removal is no checkpoint."""
    folders = sorted((run_dir / "checkpoints").glob("epoch-*"))
    for folder in folders[:-2]:
        epoch = int(folder.name.removeprefix("epoch-"))
        if (epoch + 1) % keep_every == 0 or epoch == best_epoch:
            continue
        where.remove(folder / "state.json")
        where.remove(folder)


if __name__ == "__main__":
    print(json.dumps(_probe(Path(sys.argv[1]))))
