"""What training sees: recordings with their truth, frame targets, windows and augmentation.

Belongs here: truth of a recording as arrays, masks of what a source cannot know, the keyed choice of windows, augmentation of
features. Does not belong here: the loss (`train`), spectrograms (`features`), which recording is in which split (`manifest`).

Every choice is keyed: windows by (seed, epoch), augmentation by (seed, step). Resume, worker count and order change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.audio import find_audio, read_mono
from beatsight_assets.errors import GateFailed, InputError
from beatsight_assets.events import hits_with_onsets, read_events
from beatsight_assets.features.cache import index_path, read_features
from beatsight_assets.features.definitions import FrameDefinition
from beatsight_assets.features.torchaudio_parts import torchaudio
from beatsight_assets.sampling import draw, draw_probabilities
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import UNSPECIFIED, Taxonomy, View
from beatsight_assets.units import rng_for

if TYPE_CHECKING:
    import torch

TARGET_SHAPE = ((-1, 0.4), (0, 1.0), (1, 0.6))  # frames around the onset -> target (design/model_plan.md, recipe)
CUT_FRAMES = 8  # windows start and end on this grid, so that the frames next to their cuts can be computed beforehand
MASK_FRAMES = 5  # an instant about which a class is unknown silences that class for 50 ms on both sides, the matching tolerance


@dataclass(frozen=True)
class Truth:
    """Hits of one recording in the classes of one view, sorted by onset; and what the annotation cannot say."""

    onset_s: NDArray[np.float64]  # [shape=(n_hits,)]
    class_index: NDArray[np.int64]  # [shape=(n_hits,)] column of the view's ordered classes
    velocity: NDArray[np.float32]  # 0..1, NaN where the source has none
    openness: NDArray[np.float32]  # 0 closed .. 1 open, NaN where it has none
    known: NDArray[np.bool_]  # [shape=(n_classes,)] False: the source cannot express the class, so silence proves nothing
    unknown_onset_s: NDArray[np.float64]  # [shape=(n_unknown,)] instants at which a class is neither there nor absent
    unknown_class: NDArray[np.int64]  # [shape=(n_unknown,)] the class it is


@dataclass(frozen=True)
class Recording:
    """One recording as training and evaluation see it."""

    session_id: str
    group_id: str
    sampling_group: str  # value of the field that the sampling weights group by
    source_set: str
    split: str
    kit_id: str
    is_synthetic: bool
    audio_sha256: str
    features: NDArray[np.float16]  # [shape=(n_frames, n_bands)]
    truth: Truth
    cuts: NDArray[np.float16] | None = None  # frames next to a cut every CUT_FRAMES [shape=(n_cuts, 6, n_bands)], see `compute_cuts`

    @property
    def n_frames(self) -> int:
        """Frames of features."""
        return len(self.features)


@dataclass(frozen=True)
class Frames:
    """Features and targets of all training recordings, laid end to end."""

    features: NDArray[np.float16]  # [shape=(n_frames, n_bands)]
    onset: NDArray[np.float16]  # 0..1 [shape=(n_frames, n_classes)]
    judged: NDArray[np.bool_]  # [shape=(n_frames, n_classes)] False: no loss
    velocity: NDArray[np.float16]  # [shape=(n_frames, n_classes)] NaN where there is no target
    openness: NDArray[np.float16]  # [shape=(n_frames,)] NaN where there is no target
    start: NDArray[np.int64]  # [shape=(n_recordings,)] first frame of each recording
    length: NDArray[np.int64]  # [shape=(n_recordings,)]
    group: tuple[str, ...]  # sampling group of each recording
    cuts: NDArray[np.float16] | None = None  # of all recordings end to end [shape=(n_cuts, 6, n_bands)]; None when no window is cut
    first_cut: NDArray[np.int64] | None = None  # [shape=(n_recordings,)]


def truth_of(hits: pl.DataFrame, view: View, taxonomy: Taxonomy, coverage: Sequence[str] | None) -> Truth:
    """Truth of one recording in the classes of a view (`spec/events.md` section 6, rules a to c).

    Parameters
    ----------
    hits : one row per hit, columns onset_s, label, velocity, openness, instrument_variant, in any order
    coverage : components and families the annotation can express; None = unknown, then every class counts as known
    """
    column = {name: i for i, name in enumerate(view.classes)}
    known = np.ones(len(view.classes), dtype=bool)
    if coverage is not None:
        known[:] = False
        known[[column[c] for c in view.covered(taxonomy, coverage)]] = True
    rows = hits.sort("onset_s", maintain_order=True)
    kept: list[tuple[float, int, float | None, float | None]] = []
    unknown: list[tuple[float, int]] = []
    for onset_s, label, velocity, openness, variant in rows.select(
        "onset_s", "label", "velocity", "openness", "instrument_variant"
    ).iter_rows():
        masked = view.masked_by_unspecified(taxonomy, label) if variant == UNSPECIFIED else ()
        unknown += [(onset_s, column[c]) for c in masked]
        if not masked and label in view.class_of:
            kept.append((onset_s, column[view.class_of[label]], velocity, openness))

    def numbers(values: Sequence[float | None]) -> NDArray[np.float32]:
        return np.array([np.nan if v is None else v for v in values], dtype=np.float32)

    return Truth(
        onset_s=np.round(np.array([k[0] for k in kept], dtype=np.float64) * 1e6) / 1e6,
        class_index=np.array([k[1] for k in kept], dtype=np.int64),
        velocity=numbers([k[2] for k in kept]),
        openness=numbers([k[3] for k in kept]),
        known=known,
        unknown_onset_s=np.array([u[0] for u in unknown], dtype=np.float64),
        unknown_class=np.array([u[1] for u in unknown], dtype=np.int64),
    )


def moved(truth: Truth, offset_ms: float) -> Truth:
    """Truth with every onset `offset_ms` later, none before 0."""
    if not offset_ms:
        return truth
    onset_s, unknown_s = (np.maximum(np.round((t + offset_ms / 1e3) * 1e6) / 1e6, 0.0) for t in (truth.onset_s, truth.unknown_onset_s))
    return replace(truth, onset_s=onset_s, unknown_onset_s=unknown_s)


def load_recordings(
    settings: Settings,
    feature: FrameDefinition,
    view: View,
    taxonomy: Taxonomy,
    splits: Sequence[str],
    *,
    group_field: str = "group_id",
    cut_splits: Sequence[str] = (),
    offsets_ms: Mapping[str, float] = MappingProxyType({}),
) -> list[Recording]:
    """Recordings of some splits with features and truth, in the order of the feature index.

    `group_field` is the event column that the sampling weights group by. Recordings of `cut_splits` get `cuts`, for which their audio is read.
    `offsets_ms` moves the truth of a source set to where its audio has the onsets: positive when the audio is later than the annotation.

    Raises
    ------
    InputError : `missing-input`, no feature index or an array is gone; `bad-features`, an array is not the one that was indexed
    """
    path = index_path(settings, feature)
    if not path.is_file():
        raise InputError("there is no feature index. Run: beatsight features warm", code="missing-input", where=settings.store.rel(path))
    index = pl.read_parquet(path).filter(pl.col("split").is_in(list(splits)))
    keys = ["source_set", "session_id"]
    events = read_events(settings.layout.annotated).join(index.select(keys), on=keys, how="semi")
    group_of = {
        (s, i): g or i
        for s, i, g in events.select(*keys, pl.col(group_field).alias("group")).unique(keys, keep="first", maintain_order=True).iter_rows()
    }
    by_session = {(str(s), str(i)): rows for (s, i), rows in hits_with_onsets(events).group_by(keys, maintain_order=True)}
    nothing = hits_with_onsets(events.clear())
    recordings = []
    for row in index.iter_rows(named=True):
        key = (row["source_set"], row["session_id"])
        array = settings.layout.resolve(row["feature_path"])
        if not array.is_file() or settings.store.sha256(array) != row["feature_sha256"]:
            raise InputError(
                "features are not those of the index. Run: beatsight features warm", code="bad-features", where=row["feature_path"]
            )
        recordings.append(
            Recording(
                session_id=row["session_id"],
                group_id=row["group_id"],
                sampling_group=group_of.get(key, row["session_id"]),
                source_set=row["source_set"],
                split=row["split"],
                kit_id=row["kit_id"] or "",
                is_synthetic=row["is_synthetic"],
                audio_sha256=row["audio_sha256"],
                features=read_features(array),
                truth=moved(truth_of(by_session.get(key, nothing), view, taxonomy, row["coverage"]), offsets_ms.get(key[0], 0.0)),
                cuts=_cuts(settings, feature, row) if row["split"] in cut_splits else None,
            )
        )
    return recordings


def _cuts(settings: Settings, feature: FrameDefinition, row: Mapping[str, Any]) -> NDArray[np.float16]:
    path = find_audio(settings.raw_roots(row["source_set"]), row["audio_path"])
    if path is None or settings.store.sha256(path) != row["audio_sha256"]:
        raise InputError(
            "audio is not that of the feature index. Run: beatsight features warm", code="bad-features", where=row["audio_path"]
        )
    samples = read_mono(path, feature.rate_hz).samples
    n_cuts = feature.n_frames(len(samples)) // CUT_FRAMES + 1
    offsets = rng_for(0, "cuts", row["audio_sha256"]).integers(0, feature.hop_samples, n_cuts)
    return feature.compute_cuts(samples, CUT_FRAMES, offsets).astype(np.float16)


def frame_targets(
    truth: Truth, n_frames: int, n_classes: int, frames_per_s: float
) -> tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.float16], NDArray[np.float16]]:
    """(onset, judged, velocity, openness) of one recording, as in `Frames`. Hits past the end of the features are left out."""
    onset = np.zeros((n_frames, n_classes), dtype=np.float16)
    velocity = np.full((n_frames, n_classes), np.nan, dtype=np.float16)
    openness = np.full(n_frames, np.nan, dtype=np.float16)
    frame = np.round(truth.onset_s * frames_per_s).astype(np.int64)
    inside = frame < n_frames
    for offset, value in TARGET_SHAPE:
        at = frame + offset
        fits = (at >= 0) & (at < n_frames)
        np.maximum.at(onset, (at[fits], truth.class_index[fits]), np.float16(value))
    velocity[frame[inside], truth.class_index[inside]] = truth.velocity[inside]
    open_known = inside & ~np.isnan(truth.openness)
    openness[frame[open_known]] = truth.openness[open_known]
    judged = np.broadcast_to(truth.known, (n_frames, n_classes)).copy()
    for at, index in zip(np.round(truth.unknown_onset_s * frames_per_s).astype(np.int64), truth.unknown_class, strict=True):
        judged[max(at - MASK_FRAMES, 0) : at + MASK_FRAMES + 1, index] = False
    return onset, judged, velocity, openness


def lay_frames(recordings: Sequence[Recording], n_classes: int, frames_per_s: float) -> Frames:
    """All recordings end to end, in the order given.

    Raises
    ------
    GateFailed : `nothing-to-train`, no recording
    """
    if not recordings:
        raise GateFailed("no recording of split train has features. Run the features stage, and check the splits", code="nothing-to-train")
    targets = [frame_targets(r.truth, r.n_frames, n_classes, frames_per_s) for r in recordings]
    length = np.array([r.n_frames for r in recordings], dtype=np.int64)
    cuts = [r.cuts for r in recordings if r.cuts is not None]
    has_cuts = len(cuts) == len(recordings)
    return Frames(
        features=np.concatenate([r.features for r in recordings]),
        onset=np.concatenate([t[0] for t in targets]),
        judged=np.concatenate([t[1] for t in targets]),
        velocity=np.concatenate([t[2] for t in targets]),
        openness=np.concatenate([t[3] for t in targets]),
        start=np.concatenate([[0], np.cumsum(length)[:-1]]),
        length=length,
        group=tuple(r.sampling_group for r in recordings),
        cuts=np.concatenate(cuts) if has_cuts else None,
        first_cut=np.concatenate([[0], np.cumsum([len(c) for c in cuts])[:-1]]).astype(np.int64) if has_cuts else None,
    )


def draw_windows(
    frames: Frames, weights: Mapping[str, float], n_windows: int, window_frames: int, *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Recording and first frame of each window of one epoch, int64 [shape=(n_windows, 2)].

    A recording that holds n windows stands for n clips; clips are drawn by `sampling` with probability w(group) / sum of w, with
    replacement (`spec/gates.md` section 11). A window starts anywhere in its recording, on the grid of `CUT_FRAMES`.

    Raises
    ------
    GateFailed : `group-without-weight`
    """
    n_clips = np.maximum(np.round(frames.length / window_frames), 1.0).astype(np.int64)
    slots = np.repeat(np.arange(len(n_clips)), n_clips)
    drawn = draw(draw_probabilities([frames.group[i] for i in slots], weights), n_windows, seed, epoch)
    recording = slots[drawn]
    room = np.maximum(frames.length[recording] - window_frames, 0) + 1
    place = rng_for(seed, "windows", str(epoch)).random(n_windows)
    return np.stack([recording, (place * room).astype(np.int64) // CUT_FRAMES * CUT_FRAMES], axis=1)


def cut_rows(frames: Frames, windows: NDArray[np.int64], window_frames: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Row of every frame of every window [shape=(n, window_frames)], and whether it lies inside its recording (else the row is a stand-in)."""
    at = windows[:, 1:] + np.arange(window_frames)
    inside = at < frames.length[windows[:, 0], None]
    return np.where(inside, frames.start[windows[:, 0], None] + at, 0), inside


def cut_places(
    frames: Frames, windows: NDArray[np.int64], window_frames: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """(cut before, cut after, whether the recording reaches the cut after) of each window, as rows of `Frames.cuts`."""
    if frames.first_cut is None:
        raise ValueError("these frames have no cuts")
    recording, start = windows[:, 0], windows[:, 1]
    before = frames.first_cut[recording] + start // CUT_FRAMES
    reaches = start + window_frames <= frames.length[recording]
    return before, np.where(reaches, before + window_frames // CUT_FRAMES, before), reaches


@dataclass(frozen=True)
class Augmentation:
    """How features are varied. All levels in dB; the parameters of one step depend on (seed, step) alone."""

    gain_db: float = 3.0  # ruling 15
    tilt_db: float = 6.0  # spectral tilt between lowest and highest band, uniform in +- this
    eq_db: float = 3.0  # smooth random curve over the bands, standard deviation
    noise_snr_db: float = 30.0  # ruling 15: noise at least this far below the window's level
    mask_bands: int = 8  # ruling 15
    mask_frames: int = 4  # ruling 15
    mix_share: float = 0.25  # of the windows get another window of the batch on top
    mix_db: float = -6.0  # the other window is between this and 0 dB
    detune_semitones: float = 0.0  # the whole kit tuned up or down by at most this
    cut_share: float = 1.0  # of the windows are heard as a stream is, silence before and after them: no edge in use looks otherwise


LIGHT = Augmentation()
NO_AUGMENTATION = Augmentation(0.0, 0.0, 0.0, float("inf"), 0, 0, 0.0, 0.0, 0.0, 0.0)
KITS = Augmentation(tilt_db=10.0, eq_db=5.0, detune_semitones=1.5)  # few kits to learn from: vary the kit itself
AUGMENTATIONS = {"light": LIGHT, "kits": KITS, "none": NO_AUGMENTATION}


@dataclass(frozen=True)
class StepPlan:
    """Random numbers of one step, drawn on the CPU so that every device varies the same way."""

    band_gain: NDArray[np.float32]  # linear [shape=(batch, n_bands)]
    noise: NDArray[np.float32]  # linear, relative to the window's mean magnitude [shape=(batch, n_bands)]
    mix: NDArray[np.float32]  # linear gain of the partner, 0 = none [shape=(batch,)]
    partner: NDArray[np.int64]  # [shape=(batch,)]
    keep_band: NDArray[np.float32]  # 0 or 1 [shape=(batch, n_bands)]
    keep_frame: NDArray[np.float32]  # 0 or 1 [shape=(batch, n_frames)]
    is_cut: NDArray[np.bool_]  # [shape=(batch,)]
    source_band: NDArray[np.float32] | None  # where each band is read from, in bands [shape=(batch, n_bands)]; None = where it is


def plan_step(augmentation: Augmentation, batch: int, n_frames: int, centres_hz: NDArray[np.float64], *, seed: int, step: int) -> StepPlan:
    """Draw one step's variation. `centres_hz` [shape=(n_bands,)] are the centres of the bands."""
    a, rng, n_bands = augmentation, rng_for(seed, "augment", str(step)), len(centres_hz)
    place = np.linspace(-0.5, 0.5, n_bands)
    knots = rng.normal(0.0, 1.0, (batch, 5)) * a.eq_db
    curve = np.stack([np.interp(place, np.linspace(-0.5, 0.5, 5), k) for k in knots])
    gain_db = rng.uniform(-1, 1, (batch, 1)) * a.gain_db + rng.uniform(-1, 1, (batch, 1)) * a.tilt_db * place + curve
    snr_db = a.noise_snr_db + rng.exponential(15.0, (batch, 1))
    partner = (np.arange(batch) + (rng.integers(1, batch) if batch > 1 else 0)) % batch
    mix = np.where(rng.random(batch) < a.mix_share, 10.0 ** (rng.uniform(a.mix_db, 0.0, batch) / 20.0), 0.0)
    keep_band, keep_frame = draw_masks(((n_bands, a.mask_bands), (n_frames, a.mask_frames)), batch, seed=seed, step=step)
    ratio = 2.0 ** (rng.uniform(-1, 1, (batch, 1)) * a.detune_semitones / 12.0)
    source = np.interp(np.log(centres_hz / ratio), np.log(centres_hz), np.arange(n_bands)) if a.detune_semitones else None
    as_f32 = np.float32
    return StepPlan(
        band_gain=(10.0 ** (gain_db / 20.0)).astype(as_f32),
        noise=np.broadcast_to(10.0 ** (-snr_db / 20.0), (batch, n_bands)).astype(as_f32),
        mix=mix.astype(as_f32),
        partner=partner,
        keep_band=keep_band,
        keep_frame=keep_frame,
        is_cut=rng.random(batch) < a.cut_share,
        source_band=None if source is None else source.astype(as_f32),
    )


def draw_masks(axes: Sequence[tuple[int, int]], batch: int, *, seed: int, step: int) -> list[NDArray[np.float32]]:
    """One mask per row of each axis, given as (size, longest mask): 0 where masked, else 1, float32 [shape=(batch, size)].

    torchaudio draws them where it can be imported; without it the same numbers are drawn here, and the masks are the same.
    """
    import torch

    library, masks = torchaudio(), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_for(seed, "masks", str(step)).integers(0, 2**63 - 1)))
        for size, longest in axes:
            if longest == 0:
                keep = torch.ones(batch, size)
            elif library is not None:
                keep = library.functional.mask_along_axis_iid(torch.ones(batch, size, 1), longest + 1, 0.0, 1)[..., 0]
            else:
                n = torch.rand(batch) * (longest + 1)
                first, at = (torch.rand(batch) * (size - n)).long()[:, None], torch.arange(size)
                keep = ((at < first) | (at >= first + n.long()[:, None])).float()
            masks.append(keep.numpy())
    return masks


def augment(features: torch.Tensor, plan: StepPlan) -> torch.Tensor:
    """Vary a batch of features [shape=(batch, n_frames, n_bands)], values `log1p(gain * magnitude)`.

    Gain, EQ, mixing and noise act on magnitudes; the spectral masks fill with the minimum, 0.
    """
    import torch

    def at(array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(features.device)

    if plan.source_band is not None:
        lower = np.minimum(plan.source_band.astype(np.int64), features.shape[2] - 2)
        share, index = at(plan.source_band - lower.astype(np.float32))[:, None, :], at(lower)[:, None, :].expand_as(features)
        features = torch.gather(features, 2, index) * (1.0 - share) + torch.gather(features, 2, index + 1) * share
    level = torch.expm1(features) * at(plan.band_gain)[:, None, :]
    noise = level.mean(dim=(1, 2), keepdim=True) * at(plan.noise)[:, None, :]
    level = level + at(plan.mix)[:, None, None] * level[at(plan.partner)] + noise
    return torch.log1p(level) * at(plan.keep_band)[:, None, :] * at(plan.keep_frame)[:, :, None]
