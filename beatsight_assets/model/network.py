"""The networks of both families: features of a recording in, what sounds in each frame out; features of a clip in, what its hit is out.

Belongs here: architecture, receptive field, application to long recordings. Does not belong here: loss and training (`train`), peaks and
hits (`decode`), files (`checkpoint`).

Frame family: three convolution blocks over time and frequency (strides in frequency only), one projection, then residual blocks of dilated temporal
convolutions. Every output frame sees `receptive_frames` frames before and after itself and nothing else, so a recording can be cut
into chunks that overlap by that much and the result does not depend on the chunk length.
Clip family (`spec/model.md` section 2): four convolution blocks over a clip that is stretched to a square, their average, one linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.features.definitions import CLIP_FEATURE, clip_definition

if TYPE_CHECKING:
    import torch

CHUNK_FRAMES = 3_000  # 30 s at 100 frames/s: about 60 MB of activations, and within 2 % of the speed of longer chunks
STEM_KERNEL = 3
FIRST_KERNEL = 5  # bands that the first layer looks at: wider than its stride, so no band is seen by one output only
RARE_LOGIT = -4.0  # probability .018, about that of a hit of a common class in a frame
CLIP_CHANNELS = (32, 64, 128, 256)
CLIPS_AT_ONCE = 256  # applied: 130 MB of activations each for the first block
STRIDE = 3  # in frequency only: 81 bands -> 27 -> 9 -> 3; a third of the cost of convolving every band and pooling


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a frame network; stored in the checkpoint, equal configs give equal parameter names and shapes."""

    classes: tuple[str, ...]  # ordered: column j of every per-class output is classes[j]
    n_bands: int
    stem: tuple[int, ...] = (16, 24, 32)  # multiples of 8: 12 channels are twice as slow on a CPU
    width: int = 64
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    kernel: int = 3
    dropout: float = 0.1

    @property
    def receptive_frames(self) -> int:
        """Frames on each side that one output frame depends on."""
        return len(self.stem) * (STEM_KERNEL // 2) + sum(self.dilations) * (self.kernel // 2)

    def to_json(self) -> dict[str, object]:
        """The fields as plain JSON values."""
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in self.__dataclass_fields__}

    @staticmethod
    def from_json(fields: dict[str, object]) -> NetworkConfig:
        """The inverse of `to_json`."""
        return NetworkConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class ClipNetworkConfig:
    """Shape of a clip network: 388,800 + 257 parameters per class."""

    classes: tuple[str, ...]
    feature: str = CLIP_FEATURE
    dropout: float = 0.3

    def to_json(self) -> dict[str, object]:
        """The fields as plain JSON values."""
        return {"classes": list(self.classes), "feature": self.feature, "dropout": self.dropout}

    @staticmethod
    def from_json(fields: dict[str, object]) -> ClipNetworkConfig:
        """The inverse of `to_json`."""
        return ClipNetworkConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})  # type: ignore[arg-type]


class FrameOutputs(NamedTuple):
    """Raw outputs for one recording, one row per frame."""

    onset: NDArray[np.float32]  # logits [shape=(n_frames, n_classes)]
    velocity: NDArray[np.float32]  # 0..1 [shape=(n_frames, n_classes)], meaningful at onsets
    openness: NDArray[np.float32]  # 0 closed .. 1 open [shape=(n_frames,)], meaningful at hi-hat onsets
    any_onset: NDArray[np.float32]  # logits [shape=(n_frames,)]: some drum, whichever


@lru_cache(maxsize=1)
def _network_class() -> type:
    """The torch class; made on first use, so that importing this module does not import torch."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, width: int, kernel: int, dilation: int, dropout: float) -> None:
            super().__init__()
            self.conv = nn.Conv1d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
            self.norm = nn.BatchNorm1d(width)
            self.mix = nn.Conv1d(width, width, 1)
            self.drop = nn.Dropout(dropout)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.mix(self.drop(torch.relu(self.norm(self.conv(x)))))

    class FrameNet(nn.Module):
        feature_mean: torch.Tensor
        feature_std: torch.Tensor

        def __init__(self, config: NetworkConfig) -> None:
            super().__init__()
            self.config = config
            self.register_buffer("feature_mean", torch.zeros(()))
            self.register_buffer("feature_std", torch.ones(()))
            stem: list[nn.Module] = []
            n_in, n_bands = 1, config.n_bands
            for i, n_out in enumerate(config.stem):
                across = FIRST_KERNEL if i == 0 else STEM_KERNEL
                stem += [nn.Conv2d(n_in, n_out, (STEM_KERNEL, across), (1, STRIDE), (STEM_KERNEL // 2, across // 2), bias=False)]
                stem += [nn.BatchNorm2d(n_out), nn.ReLU()]
                n_in, n_bands = n_out, -(-n_bands // STRIDE)
            self.stem = nn.Sequential(*stem)
            self.project = nn.Conv1d(n_in * n_bands, config.width, 1)
            self.trunk = nn.Sequential(*[Residual(config.width, config.kernel, d, config.dropout) for d in config.dilations])
            self.heads = nn.Conv1d(config.width, 2 * len(config.classes) + 2, 1)
            start = torch.zeros(2 * len(config.classes) + 2)  # hits are rare: start where most frames are silent
            start[: len(config.classes)] = start[-1] = RARE_LOGIT
            self.heads.bias = nn.Parameter(start)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Features [shape=(batch, n_frames, n_bands)] -> raw outputs [shape=(batch, n_frames, 2 * n_classes + 2)].

            Columns: onset logits, velocity logits, openness logit, any-onset logit.
            """
            x = ((x - self.feature_mean) / self.feature_std).unsqueeze(1)
            x = self.stem(x)
            x = x.permute(0, 1, 3, 2).flatten(1, 2)
            x = torch.relu(self.project(x))
            return self.heads(torch.relu(self.trunk(x))).transpose(1, 2)

    return FrameNet


@lru_cache(maxsize=1)
def _clip_network_class() -> type:
    import torch
    from torch import nn

    class ClipNet(nn.Module):
        feature_mean: torch.Tensor
        feature_std: torch.Tensor
        columns: torch.Tensor

        def __init__(self, config: ClipNetworkConfig) -> None:
            super().__init__()
            self.config = config
            self.register_buffer("feature_mean", torch.zeros(()))
            self.register_buffer("feature_std", torch.ones(()))
            self.register_buffer("columns", torch.from_numpy(clip_definition(config.feature).column_weights), persistent=False)
            blocks: list[nn.Module] = []
            n_in = 1
            for n_out in CLIP_CHANNELS:
                last = nn.AdaptiveAvgPool2d(1) if n_out == CLIP_CHANNELS[-1] else nn.MaxPool2d(2)
                blocks += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(), last]
                n_in = n_out
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(n_in, len(config.classes)))

        def read(self, features: torch.Tensor) -> torch.Tensor:
            """What the blocks read [shape=(batch, 1, 128, 128)]: features interpolated linearly in time, at the level of the training split."""
            return (((features - self.feature_mean) / self.feature_std) @ self.columns).unsqueeze(1)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            """Features in dB [shape=(batch, n_mels, n_frames)] -> logits [shape=(batch, n_classes)]."""
            return self.head(self.blocks(self.read(features)))  # type: ignore[no-any-return]

    return ClipNet


def build_network(config: NetworkConfig | ClipNetworkConfig) -> torch.nn.Module:
    """A freshly initialised network; draws from torch's default generator, which the caller seeds."""
    kind = _clip_network_class() if isinstance(config, ClipNetworkConfig) else _network_class()
    network: torch.nn.Module = kind(config)
    return network


def count_parameters(network: torch.nn.Module) -> int:
    """Trainable numbers, without batch-norm buffers."""
    return sum(p.numel() for p in network.parameters())


def apply_network(network: torch.nn.Module, features: NDArray[np.float32], *, chunk_frames: int = CHUNK_FRAMES) -> FrameOutputs:
    """Outputs for one recording of any length.

    The recording is processed in chunks of `chunk_frames` with `receptive_frames` of context on both sides, so the result depends on the
    chunk length only by rounding (below 1e-5 in logits). What lies outside the recording counts as the network's own zero padding.
    """
    import torch

    config: NetworkConfig = network.config  # type: ignore[assignment]
    n, context, n_classes = len(features), config.receptive_frames, len(config.classes)
    raw = np.zeros((n, 2 * n_classes + 2), dtype=np.float32)
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        for start in range(0, n, chunk_frames):
            stop = min(start + chunk_frames, n)
            first, last = max(start - context, 0), min(stop + context, n)
            chunk = torch.from_numpy(np.ascontiguousarray(features[first:last], dtype=np.float32)).to(device)
            raw[start:stop] = network(chunk.unsqueeze(0))[0, start - first : stop - first].float().cpu().numpy()
    squashed = (1.0 / (1.0 + np.exp(-raw[:, n_classes : 2 * n_classes + 1]))).astype(np.float32)
    return FrameOutputs(raw[:, :n_classes], squashed[:, :n_classes], squashed[:, n_classes], raw[:, -1])


def apply_windows(network: torch.nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Onset logits of equally long windows, each a recording of its own: [shape=(n, n_frames, n_bands)] -> [shape=(n, n_frames, n_classes)]."""
    import torch

    config: NetworkConfig = network.config  # type: ignore[assignment]
    network.eval()
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(next(network.parameters()).device)
        return network(batch)[..., : len(config.classes)].float().cpu().numpy()  # type: ignore[no-any-return]


def apply_clips(network: torch.nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of clips: [shape=(n, n_mels, n_frames)] in dB -> [shape=(n, n_classes)]."""
    import torch

    device, parts = next(network.parameters()).device, []
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(features), CLIPS_AT_ONCE):
            parts.append(network(torch.from_numpy(features[start : start + CLIPS_AT_ONCE]).to(device)).float().cpu().numpy())
    return np.concatenate(parts)
