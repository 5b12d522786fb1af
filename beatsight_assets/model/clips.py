"""Clips of a bundle as batches: features, targets and masks, in a keyed order.

Belongs here: where a clip's features or samples lie, its truth in the classes of the bundle's view, the order of an epoch, batches. Does not belong here:
spectrograms (`features`), the loss and the network (`train`, `network`).

There are no worker processes: a batch is copied out of memory-mapped arrays, which is faster than handing it from one process to another;
where all features fit into the memory of the device, they are indexed there. Orders and draws depend on (seed, epoch) alone.
The cache is optional: where a part has no features there, those of every batch are computed from its samples, by the function that fills it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import store
from beatsight_assets.bundle.read import Bundle, Part
from beatsight_assets.errors import ConfigError, GateFailed, InputError
from beatsight_assets.features import clip_cache
from beatsight_assets.features.clip_cache import STEP_DB, WarmOptions
from beatsight_assets.features.definitions import CLIP_FEATURE, ClipDefinition, clip_definition
from beatsight_assets.sampling import draw, draw_probabilities
from beatsight_assets.settings import Settings
from beatsight_assets.units import rng_for

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Some clips, on one device."""

    rows: torch.Tensor  # int64 [shape=(batch,)] which clips
    features: torch.Tensor  # dB, float32 [shape=(batch, n_mels, n_frames)]
    target: torch.Tensor  # float32 0 or 1 [shape=(batch, n_classes)]
    judged: torch.Tensor  # bool [shape=(batch, n_classes)] False: no loss, no metric


@dataclass(frozen=True)
class Clips:
    """All clips of some splits, in the order of the bundle."""

    bundle_sha256: str
    feature: ClipDefinition
    classes: tuple[str, ...]
    table: pl.DataFrame  # event_id, session_id, group_id, source_set, split, clip_sha256, labels, masked
    group: tuple[str, ...]  # value of the field that the sampling weights group by
    target: NDArray[np.bool_]  # [shape=(n_clips, n_classes)]
    judged: NDArray[np.bool_]  # [shape=(n_clips, n_classes)] False: the clip says nothing about the class
    single: NDArray[np.int64]  # [shape=(n_clips,)] the class, where the target has exactly one and it is judged, else -1
    arrays: tuple[
        NDArray[Any], ...
    ]  # one per part, memory-mapped [shape=(n, n_mels, n_frames)]; int16 samples [shape=(n, n_samples)] uncached
    array_of: NDArray[np.int64]  # [shape=(n_clips,)]
    row_of: NDArray[np.int64]  # [shape=(n_clips,)] in its array

    def __len__(self) -> int:
        return len(self.array_of)

    @property
    def form(self) -> str:
        """How features are stored: float32, float16, uint8; `samples` where they are not and each batch is computed."""
        return "samples" if self.arrays[0].dtype == np.int16 else self.arrays[0].dtype.name

    def single_target(self) -> tuple[NDArray[np.int64], dict[str, int]]:
        """Clips that `target_mode: single` trains on, and how many fell out: several classes, a masked target, none of the view."""
        n_classes = self.target.sum(axis=1)
        several, none = n_classes > 1, n_classes == 0
        masked = ~several & (self.single < 0) & ~self.judged.all(axis=1) & ~self.table["negative_example"].to_numpy()
        left_out = {"excluded_multi_target": several, "excluded_masked": masked, "excluded_out_of_view": none & ~masked}
        return np.flatnonzero(self.single >= 0), {k: int(v.sum()) for k, v in left_out.items()}

    def stored(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Features as they are stored [shape=(n, n_mels, n_frames)], or samples, read in the order in which they lie on disk."""
        out = np.empty((len(rows), *self.arrays[0].shape[1:]), dtype=self.arrays[0].dtype)
        order = np.argsort(rows, kind="stable")
        arrays = self.arrays
        for i, array, row in zip(order.tolist(), self.array_of[rows[order]].tolist(), self.row_of[rows[order]].tolist(), strict=True):
            out[i] = arrays[array][row]
        return out

    def resident(self, device: str) -> torch.Tensor:
        """All features (or samples) as they are stored, on a device: hand them to `batches` where they fit."""
        import torch

        held = torch.empty((len(self), *self.arrays[0].shape[1:]), dtype=getattr(torch, self.arrays[0].dtype.name), device=device)
        ends = np.cumsum(np.bincount(self.array_of, minlength=len(self.arrays)))
        for array, end in zip(self.arrays, ends.tolist(), strict=True):
            held[end - len(array) : end] = torch.from_numpy(np.array(array)).to(device)
        return held

    def order(
        self, seed: int, epoch: int, rows: NDArray[np.int64] | None = None, weights: Mapping[str, float] | None = None
    ) -> NDArray[np.int64]:
        """Order of one epoch: a keyed permutation of the rows; with weights as many draws with replacement (`spec/gates.md` section 11).

        Raises
        ------
        GateFailed `group-without-weight`
        """
        chosen = np.arange(len(self)) if rows is None else rows
        if weights is None:
            return chosen[rng_for(seed, "clips", str(epoch)).permutation(len(chosen))]
        return chosen[draw(draw_probabilities([self.group[i] for i in chosen], weights), len(chosen), seed, epoch)]

    def batches(
        self, order: NDArray[np.int64], batch_size: int, *, device: str = "cpu", resident: torch.Tensor | None = None
    ) -> Iterator[Batch]:
        """Batches in that order; the last one may be smaller."""
        import torch

        target = torch.from_numpy(self.target.astype(np.float32)).to(device)
        judged = torch.from_numpy(self.judged).to(device)
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            rows = torch.from_numpy(some).to(device)
            stored = torch.from_numpy(self.stored(some)).to(device) if resident is None else resident[rows]
            yield Batch(rows, in_db(stored, self.feature), target[rows], judged[rows])


def in_db(stored: torch.Tensor, feature: ClipDefinition) -> torch.Tensor:
    """dB, float32, of stored values, on their device, equal to `clip_cache.decode`; of int16 samples their features."""
    import torch

    if stored.dtype == torch.int16:
        return torch.from_numpy(feature.compute(stored.cpu().numpy())).to(stored.device)
    if stored.dtype == torch.uint8:
        return stored.float() * np.float32(STEP_DB).item() - 100.0
    return stored.float()


def load_clips(
    settings: Settings, bundle: str, splits: Sequence[str], *, group_field: str = "session_id", definition: str = CLIP_FEATURE
) -> Clips:
    """Clips of some splits of a bundle, with the features of its cache where every part of them is there, else with their samples.

    Raises
    ------
    BundleIncomplete; ConfigError `feature-mismatch`, `window-too-short`, `unknown-choice` : clips do not have the group field
    GateFailed `nothing-to-train` : no clip in these splits
    InputError `bad-features` : an array is not the one of the index; `bad-bundle` : a part is not what was sealed
    """
    feature, opened = clip_definition(definition), clip_cache.opened(settings, WarmOptions(bundle, definition=definition))
    with opened.one_version():
        parts = clip_cache.chosen_parts(opened, splits)
        if not parts:
            raise GateFailed(f"bundle {bundle} has no clip in {', '.join(splits)}", code="nothing-to-train")
        return _clips(
            opened,
            feature,
            parts,
            _cached(settings, opened, feature, parts) or _samples(settings, opened, feature, parts),
            splits,
            group_field,
        )


def _cached(settings: Settings, bundle: Bundle, feature: ClipDefinition, parts: Sequence[Part]) -> tuple[NDArray[Any], ...]:
    """The arrays of all parts, or nothing where one of them is not cached."""
    path = clip_cache.index_path(settings, feature, bundle.name)
    command = f"Run: beatsight features warm {bundle.name}"
    if not path.is_file():
        return ()
    index = store.read_json(path)
    if index["digest"] != feature.digest:
        raise ConfigError(f"features were made by {index['definition']['name']}, not {feature.name}. {command}", code="feature-mismatch")
    entries, arrays, dtype = index["arrays"], [], str(index["dtype"])
    for part in parts:
        key = clip_cache.array_key(part.sha256, feature, dtype, clip_cache.first_sample(bundle, feature))
        array = clip_cache.array_path(settings, feature, part.shard, key, dtype)
        if key not in entries or not array.is_file():
            return ()
        arrays.append(clip_cache.read_array(array, part.n_clips, feature, dtype))
        if settings.store.sha256(array) != entries[key]["sha256"]:
            raise InputError(f"is not the array of the index. {command}", code="bad-features", where=settings.store.rel(array))
    return tuple(arrays)


def _samples(settings: Settings, bundle: Bundle, feature: ClipDefinition, parts: Sequence[Part]) -> tuple[NDArray[np.int16], ...]:
    arrays = []
    for part in parts:
        arrays.append(np.asarray(clip_cache.part_clips(bundle, feature, part)))
        if settings.store.sha256(part.path) != part.sha256:
            command = f"Run: beatsight bundle export {bundle.name} --resume"
            raise InputError(f"is not what the bundle was sealed with. {command}", code="bad-bundle", where=f"{part.shard:02d}/{part.name}")
    return tuple(arrays)


def _clips(
    bundle: Bundle,
    feature: ClipDefinition,
    parts: Sequence[Part],
    arrays: tuple[NDArray[Any], ...],
    splits: Sequence[str],
    group_field: str,
) -> Clips:
    columns = [
        "event_id",
        "session_id",
        "group_id",
        "source_set",
        "split",
        "clip_sha256",
        "labels",
        "masked",
        "component_idx",
        "negative_example",
    ]
    place = {(p.shard, p.name): n for n, p in enumerate(parts)}
    known = bundle.shard_table(parts[0].shard).collect_schema()
    if known.get(group_field) != pl.String:
        usable = [name for name, kind in known.items() if kind == pl.String]
        raise ConfigError.unknown_choice("group field of the sampling weights", group_field, usable, where=f"bundles/{bundle.name}")
    frames = []
    for shard in sorted({p.shard for p in parts}):
        rows = bundle.shard_table(shard).filter(pl.col("split").is_in(list(splits)))
        rows = rows.select(*dict.fromkeys([*columns, group_field]), "part", row=pl.col("offset_samples") // pl.col("n_samples"))
        in_shard = {name: n for (s, name), n in place.items() if s == shard}
        frames.append(rows.with_columns(array=pl.col("part").replace_strict(in_shard, return_dtype=pl.Int64)).collect())
    table = pl.concat(frames).sort("array", "row")
    classes = tuple(bundle.components)
    target, masked = (_multi_hot(table[name], classes) for name in ("labels", "masked"))
    one = table["component_idx"].fill_null(-1).cast(pl.Int64).to_numpy()
    hidden = masked[np.arange(len(one)), np.maximum(one, 0)]
    return Clips(
        bundle_sha256=bundle.content_sha256,
        feature=feature,
        classes=classes,
        table=table.select(columns),
        group=tuple(table[group_field].fill_null("").to_list()),
        target=target & ~masked,
        judged=~masked,
        single=np.where(hidden, -1, one),
        arrays=arrays,
        array_of=table["array"].to_numpy(),
        row_of=table["row"].to_numpy(),
    )


def _multi_hot(lists: pl.Series, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Lists of class names as columns [shape=(n, n_classes)]."""
    out = np.zeros((len(lists), len(classes)), dtype=bool)
    lengths = lists.list.len().fill_null(0).to_numpy()
    names = lists.explode(empty_as_null=False, keep_nulls=False)
    index = names.replace_strict({c: i for i, c in enumerate(classes)}, return_dtype=pl.Int64).to_numpy()
    out[np.repeat(np.arange(len(lists)), lengths), index] = True
    return out
