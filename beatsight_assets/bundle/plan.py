"""Which events become clips, and with which labels: pure columns, no audio is opened.

Belongs here: content options, the outcome of every event, windows and labels, the identity of a plan. Does not belong here: samples
(`cut`), files other than the plan's own (`export`).

A manifest is read in batches, spilled by shard into an unnamed file and planned shard by shard, so memory does not grow with it.
"""

from __future__ import annotations

import heapq
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b, sha256
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError, StoreError
from beatsight_assets.events import COMPONENT_STRUCT, DAY_BITS, DAY_S, EVENT_SCHEMA, REQUIRED, component_offsets_us, in_lists, read_events
from beatsight_assets.safejson import parse_json
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.stages import Progress, silent
from beatsight_assets.store import is_plain_path
from beatsight_assets.taxonomy import DRUM_MIX, UNSPECIFIED, Taxonomy, View
from beatsight_assets.units import keyed_order

SCHEMA = "beatsight.bundle-plan/1"
SLICER_VERSION = 2  # raised with every change of what a clip is: its samples, or what it says of a class
SPLITS = ("train", "val", "test")
LAYOUTS = ("shards", "wav")
MAX_WINDOW_MS = 10_000  # on either side of an onset
BATCH_ROWS = 50_000  # about 20 MB of events
CLIPS_PER_SHARD = 131_072  # beyond this a manifest gets more shards, so that a shard stays a unit of a few seconds and 60 MB of plan
OUTCOMES = ("not_a_hit", "no_components", "path_escape", "not_selected")  # settled while planning; the others when audio is decoded
UUID_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NAME_FORM = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

TARGET_STRUCT = pl.Struct({"label": pl.String, "velocity": pl.Float32, "dynamic_bucket": pl.String, "openness": pl.Float32})
HIT_STRUCT = pl.Struct({"label": pl.String, "offset_ms": pl.Float32, "velocity": pl.Float32, "openness": pl.Float32})
_PLAN_COLUMNS: dict[str, Any] = {
    "event_id": pl.String,
    "clip": pl.String,  # name of the clip: the event id where that is a UUID, else 32 digits of its sha256
    "session_id": pl.String,
    "group_id": pl.String,
    "source_set": pl.String,
    "split": pl.String,
    "is_synthetic": pl.Boolean,
    "negative_example": pl.Boolean,
    "audio_path": pl.String,
    "onset_us": pl.Int64,
    "pre_ms": pl.Float32,
    "post_ms": pl.Float32,
    "target": pl.List(TARGET_STRUCT),  # components of the event
    "hits": pl.List(HIT_STRUCT),  # every hit of the session inside the window, by time
    "labels": pl.List(pl.String),  # classes of the target
    "window_labels": pl.List(pl.String),  # classes of the hits
    "masked": pl.List(pl.String),  # classes about which this clip says nothing
    "label": pl.String,  # the class, where the target has exactly one
    "component_idx": pl.Int32,
    "techniques": pl.List(pl.String),
    "mix_context": pl.String,
}
PLAN_SCHEMA = pl.Schema(_PLAN_COLUMNS)
_MIX, _IN_VIEW, _INCLUDED, _EXCLUDED = 1, 2, 4, 8  # kinds of components
ORDER = ("split_rank", "source_set", "audio_path", "session_id", "onset_time", "event_id")
RECORDING = ("source_set", "audio_path", "session_id")


@dataclass(frozen=True)
class BundleOptions:
    """Everything that decides about the content of a bundle, and nothing else.

    context : `fixed` cuts pre_ms and post_ms around every onset, `event` takes the window of each event's source
    channel : `mean`, or the number of one channel
    shards : None = 16 (2 in the demo), or as many as 131,072 events each need
    synthetic : `all`, `only` or `none` of the rendered audio
    val_ratio : share of validation for a manifest that has no split table yet
    """

    layout: str = "shards"
    sample_rate: int = 44_100
    context: str = "fixed"
    pre_ms: float = 80.0
    post_ms: float = 200.0
    channel: str = "mean"
    view: str = "drums18"
    min_audio_after_onset_ms: float = 20.0
    limit: int | None = None
    seed: int = 0
    val_ratio: float | None = None
    shards: int | None = None
    part_clips: int = 4096
    include_sources: tuple[str, ...] = ()
    exclude_sources: tuple[str, ...] = ()
    include_labels: tuple[str, ...] = ()
    exclude_labels: tuple[str, ...] = ()
    synthetic: str = "all"

    def to_json(self) -> dict[str, Any]:
        """As they stand in plan.json."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def of(known: Mapping[str, Any]) -> BundleOptions:
        """Options as `to_json` gave them."""
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return BundleOptions(**options)

    def validate(self, taxonomy: Taxonomy) -> None:
        """Raises ConfigError `bad-option` or `unknown-choice` for what no bundle can have."""
        for what, value, choices in (
            ("layout", self.layout, LAYOUTS),
            ("context", self.context, ("fixed", "event")),
            ("synthetic", self.synthetic, ("all", "only", "none")),
        ):
            if value not in choices:
                raise ConfigError.unknown_choice(what, value, choices)
        taxonomy.view(self.view)
        for label in (*self.include_labels, *self.exclude_labels):
            if label not in taxonomy.labels:
                raise ConfigError.unknown_choice("label", label, taxonomy.labels)
        if self.channel != "mean" and not (self.channel.isdecimal() and int(self.channel) < 64):
            raise ConfigError(f"--channel is {self.channel!r}; it must be mean or the number of a channel, 0..63", code="bad-option")
        limits = (
            ("--sample-rate", self.sample_rate, 4_000, 384_000),
            ("--pre-ms", self.pre_ms, 0, MAX_WINDOW_MS),
            ("--post-ms", self.post_ms, 1, MAX_WINDOW_MS),
            ("--limit", 1 if self.limit is None else self.limit, 1, 10**9),
            ("--val-ratio", self.val_ratio or 0.0, 0, 0.9),
            ("--shards", 1 if self.shards is None else self.shards, 1, 4096),
            ("--part-clips", self.part_clips, 1, 65_536),
        )
        for option, number, low, high in limits:
            if not low <= number <= high:
                raise ConfigError(f"{option} is {number:g}; it must lie within {low:g} .. {high:g}", code="bad-option")


@dataclass(frozen=True)
class Plan:
    """A plan as it lies on disk."""

    folder: Path  # of the bundle
    identity: Mapping[str, Any]  # plan.json
    sha256: str  # of plan.json

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def options(self) -> BundleOptions:
        """The content options of plan.json."""
        return BundleOptions.of(self.identity["options"])

    @property
    def n_shards(self) -> int:
        return int(self.identity["n_shards"])

    def table(self, shard: int) -> Path:
        """plan/<NN>.parquet."""
        return self.folder / "plan" / f"{self.shard_name(shard)}.parquet"

    def shard_folder(self, shard: int) -> Path:
        """shards/<NN>."""
        return self.folder / "shards" / self.shard_name(shard)

    def shard_name(self, shard: int) -> str:
        """Two digits or more."""
        return f"{shard:02d}"


@dataclass
class Counts:
    """What planning found; every event is in exactly one outcome."""

    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    planned_by_split: Counter[str] = field(default_factory=Counter)
    planned_by_source: Counter[str] = field(default_factory=Counter)
    seconds_by_split: Counter[str] = field(default_factory=Counter)
    seconds_by_source: Counter[str] = field(default_factory=Counter)
    unknown_labels: Counter[str] = field(default_factory=Counter)
    escaped: set[tuple[str, str]] = field(default_factory=set)  # source_set, audio_path of files that no root may hold

    def to_json(self) -> dict[str, Any]:
        """Sorted, seconds rounded to microseconds."""
        planned = sum(self.planned_by_split.values())
        return {
            "events": self.events,
            "planned_clips": planned,
            "excluded": {k: self.outcomes[k] for k in OUTCOMES},
            "planned_by_split": {s: self.planned_by_split[s] for s in SPLITS},
            "planned_by_source": dict(sorted(self.planned_by_source.items())),
            "seconds_by_split": {s: round(self.seconds_by_split[s], 6) for s in SPLITS},
            "seconds_by_source": {k: round(v, 6) for k, v in sorted(self.seconds_by_source.items())},
            "unknown_labels": dict(sorted(self.unknown_labels.items())),
            "escaped": [[source, store.printable(path)] for source, path in sorted(self.escaped)],
        }


def signed(obj: Mapping[str, Any], key: str = "digest") -> dict[str, Any]:
    """A document with the digest of everything else in it under `key`, so that a flipped byte makes it no document."""
    return {**obj, key: sha256(store.to_json_bytes(dict(obj))).hexdigest()}


def read_signed(path: Path, key: str = "digest") -> dict[str, Any] | None:
    """A document that `signed` made, without its digest; None when it is absent or a byte of it differs."""
    if not path.is_file():
        return None
    content = store.read_bytes(path, max_bytes=store.MAX_JSON_BYTES)
    try:
        found = parse_json(content, where=str(path))
    except InputError:
        return None
    if not isinstance(found, dict):
        return None
    found.pop(key, None)
    return found if store.to_json_bytes(signed(found, key)) == content else None


def require_name(name: str) -> str:
    """A bundle's name is one plain folder name.

    Raises
    ------
    ConfigError `bad-option`
    """
    if not NAME_FORM.fullmatch(name) or not is_plain_path(name):
        raise ConfigError(
            f"bundle name {store.printable(name)[:80]!r} must be 1 to 100 letters, digits, '_', '-' and '.'", code="bad-option"
        )
    return name


def bundle_folder(layout: DataLayout, name: str) -> Path:
    """bundles/<name>."""
    return layout.bundle(require_name(name))


def shard_of(source_set: str, audio_path: str, n_shards: int) -> int:
    """Shard of a recording: all clips of one file lie in one shard.

    >>> shard_of("beatsight_demo", "audio/take_0.wav", 16)
    8
    """
    digest = blake2b(f"{source_set}/{audio_path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % n_shards


def samples_of(milliseconds: float, rate_hz: int) -> int:
    """Length in samples, half up: 80 ms at 44,100 Hz are 3,528.

    >>> samples_of(80, 44_100), samples_of(200, 44_100), samples_of(0.5, 1_000)
    (3528, 8820, 1)
    """
    return int(np.floor(milliseconds * rate_hz / 1000 + 0.5))


def sample_of(onset_us: NDArray[np.int64], rate_hz: int) -> NDArray[np.int64]:
    """Sample at which an onset lies, half up, in whole numbers."""
    return (onset_us * rate_hz + 500_000) // 1_000_000


def clip_name(event_id: str) -> str:
    """Name of a clip: the event id where it is a UUID, else 32 digits of its sha256, so that no id can lead out of the folder.

    >>> clip_name("../../../x")
    '0274b71897ca7407bbf8a2f504dee4dc'
    """
    return event_id if UUID_FORM.fullmatch(event_id) else sha256(event_id.encode()).hexdigest()[:32]


class Planner:
    """Turns batches of events into planned clips; holds what does not change between shards."""

    def __init__(
        self,
        options: BundleOptions,
        taxonomy: Taxonomy,
        split_of: pl.DataFrame,
        coverage: pl.DataFrame | None = None,
        generated_wanted: Sequence[str] = (),
    ) -> None:
        """split_of : group_id, split; coverage : source_set, session_id, coverage (list of components and families, null = unknown).

        generated_wanted : datasets from which also hits that a model heard (`machine_made`) become clips
        """
        self.generated_wanted = list(generated_wanted)
        self.options = options
        self.taxonomy = taxonomy
        self.view: View = taxonomy.view(options.view)
        self.split_of = split_of.select("group_id", "split").unique("group_id", keep="first")
        self.coverage = coverage
        self.bit = {c: 1 << i for i, c in enumerate(self.view.classes)}
        self.every = (1 << len(self.view.classes)) - 1
        self.selected: set[str] | None = None  # ids that `limit` keeps

    def renamed(self, labels: Iterable[str]) -> dict[str, tuple[str, str | None]]:
        """Canonical (component, variant) of labels that the taxonomy knows."""
        found = {label: self.taxonomy.canonical(label) for label in labels}
        return {label: voice for label, voice in found.items() if voice is not None}

    def classify(self, frame: pl.DataFrame) -> pl.Series:
        """Outcome of every event before `limit`: not_a_hit, no_components, not_selected, path_escape, or planned."""
        labels = frame["components"].explode(empty_as_null=False, keep_nulls=False).struct.field("label")
        known = self.renamed(labels.unique().drop_nulls().to_list())
        o = self.options
        meaning = {DRUM_MIX: _MIX}
        for label, (component, _) in known.items():
            meaning[label] = (_MIX if label == DRUM_MIX else 0) | (_IN_VIEW if component in self.view.class_of else 0)
            meaning[label] |= (_INCLUDED if component in o.include_labels else 0) | (_EXCLUDED if component in o.exclude_labels else 0)
        held = pl.lit(_of_events(frame["components"], labels.replace_strict(meaning, default=0, return_dtype=pl.UInt8).to_numpy()))

        def holds(what: int) -> pl.Expr:
            """Some component of the event is of that kind."""
            return (held & what) != 0

        bad_paths = [p for p in frame["audio_path"].unique().drop_nulls().to_list() if not is_plain_path(p)]
        dropped = pl.lit(False)
        if o.include_sources:
            dropped |= ~pl.col("source_set").is_in(list(o.include_sources))
        if o.exclude_sources:
            dropped |= pl.col("source_set").is_in(list(o.exclude_sources))
        if o.include_labels:
            dropped |= ~holds(_INCLUDED)
        if o.exclude_labels:
            dropped |= holds(_EXCLUDED)
        if frame["extras"].str.contains("machine_made", literal=True).any():
            heard_by_a_model = (pl.col("extras").str.json_path_match("$.machine_made") == "true").fill_null(False)
            dropped |= heard_by_a_model & ~pl.col("source_set").is_in(self.generated_wanted)
        if o.synthetic != "all":
            dropped |= pl.col("is_synthetic") != (o.synthetic == "only")
        outcome = (
            pl.when((pl.col("mix_context") == "stem") | holds(_MIX) | pl.col("onset_time").is_null())
            .then(pl.lit("not_a_hit"))
            .when(~(holds(_IN_VIEW) | pl.col("negative_example")))
            .then(pl.lit("no_components"))
            .when(dropped)
            .then(pl.lit("not_selected"))
            .when(pl.col("audio_path").is_in(bad_paths))
            .then(pl.lit("path_escape"))
            .otherwise(pl.lit("planned"))
        )
        return frame.select(outcome.alias("outcome"))["outcome"]

    def plan_shard(self, events: pl.DataFrame, counts: Counts) -> pl.DataFrame:
        """Planned clips (`PLAN_SCHEMA`) of all events of some recordings; counts every event once.

        Raises
        ------
        InputError `unassigned-groups` : a planned event belongs to a group without a split; `bad-manifest` : an id stands twice
        """
        counts.events += events.height
        if events.height and events["event_id"].is_duplicated().any():
            twice = events.filter(pl.col("event_id").is_duplicated())["event_id"][0]
            raise InputError(f"event id {store.printable(twice)[:80]} stands in the manifest twice", code="bad-manifest")
        frame = events.with_columns(outcome=self.classify(events), audio_path=pl.col("audio_path").fill_null(""))
        if self.selected is not None:
            kept = frame["event_id"].is_in(list(self.selected))
            frame = frame.with_columns(
                outcome=pl.when((pl.col("outcome") == "planned") & ~kept).then(pl.lit("not_selected")).otherwise("outcome")
            )
        frame = frame.join(self.split_of, on="group_id", how="left", maintain_order="left")
        planned = pl.col("outcome") == "planned"
        homeless = frame.filter(planned & ~pl.col("split").is_in(SPLITS).fill_null(False))
        if homeless.height:
            raise InputError(
                f"{homeless['group_id'].n_unique():,} groups of the manifest have no split, first {store.printable(homeless['group_id'][0])!r}. "
                "Run: beatsight events split",
                code="unassigned-groups",
            )
        counts.escaped.update(frame.filter(pl.col("outcome") == "path_escape").select("source_set", "audio_path").unique().rows())
        counts.outcomes.update(dict(frame.group_by("outcome").len().iter_rows()))
        frame = (
            frame.filter(pl.col("onset_time").is_not_null())
            .with_columns(
                split_rank=pl.col("split").replace_strict({s: i for i, s in enumerate(SPLITS)}, default=len(SPLITS), return_dtype=pl.Int8),
                onset_us=(pl.col("onset_time") * 1e6).round().cast(pl.Int64),
            )
            .sort(ORDER)
            .with_columns(recording=pl.struct("split_rank", *RECORDING).rle_id())
        )
        frame = frame.with_columns(
            pre_ms=pl.lit(self.options.pre_ms, pl.Float32) if self.options.context == "fixed" else pl.col("context_ms").struct.field("pre"),
            post_ms=pl.lit(self.options.post_ms, pl.Float32)
            if self.options.context == "fixed"
            else pl.col("context_ms").struct.field("post"),
        )
        if self.options.context == "event":
            _require_windows(frame.filter(planned))
        clips = self._with_labels(frame, counts).filter(planned)
        seconds = (pl.col("pre_ms").cast(pl.Float64) + pl.col("post_ms")).sum() / 1000
        for column, n_clips, n_seconds in (
            ("split", counts.planned_by_split, counts.seconds_by_split),
            ("source_set", counts.planned_by_source, counts.seconds_by_source),
        ):
            for name, n, s in clips.group_by(column).agg(pl.len(), seconds.alias("seconds")).iter_rows():
                n_clips[name] += n
                n_seconds[name] += s
        return clips.select(pl.col(c).cast(t) for c, t in PLAN_SCHEMA.items())

    def _with_labels(self, frame: pl.DataFrame, counts: Counts) -> pl.DataFrame:
        """Target, hits of the window, and classes as positive, or masked, for every event of sorted recordings."""
        sounding = frame.with_row_index("row").filter(~pl.col("negative_example") & (pl.col("mix_context") != "stem"))
        hits = (
            sounding.select("row", "recording", "onset_us", "components", offset_us=component_offsets_us(sounding))
            .explode("components", "offset_us", empty_as_null=False, keep_nulls=False)
            .unnest("components")
            .filter(pl.col("label") != DRUM_MIX)
        )
        known = self.renamed(hits["label"].unique().to_list())
        unknown = hits.filter(~pl.col("label").is_in(list(known)))
        counts.unknown_labels.update(dict(unknown.group_by("label").len().iter_rows()))
        names = {label: component for label, (component, _) in known.items()}
        unspecified = [label for label, (_, variant) in known.items() if variant == UNSPECIFIED]
        hits = hits.filter(pl.col("label").is_in(list(known))).with_columns(
            vague=(pl.col("instrument_variant") == UNSPECIFIED).fill_null(False) | pl.col("label").is_in(unspecified),
            component=pl.col("label").replace_strict(names, return_dtype=pl.String) if names else pl.col("label"),
            at_us=pl.col("onset_us") + pl.col("offset_us"),
        )
        positive, masking = self._bits(hits)
        n = frame.height
        own_rows = hits["row"].to_numpy().astype(np.int64)
        target_bits = _or_at(own_rows, positive, n)

        # One number line for all recordings: a window never reaches into the next recording because onsets stay below 2^37 microseconds.
        line = hits["recording"].to_numpy().astype(np.int64) << DAY_BITS
        times = line + np.clip(hits["at_us"].to_numpy(), 0, (1 << DAY_BITS) - 1)
        by_time = np.argsort(times, kind="stable")
        times = times[by_time]
        base = frame["recording"].to_numpy().astype(np.int64) << DAY_BITS
        onset = frame["onset_us"].to_numpy()
        pre_us = np.round(frame["pre_ms"].to_numpy().astype(np.float64) * 1000).astype(np.int64)
        post_us = np.round(frame["post_ms"].to_numpy().astype(np.float64) * 1000).astype(np.int64)
        first = np.searchsorted(times, base + np.maximum(onset - pre_us, 0), side="left")
        last = np.searchsorted(times, base + np.minimum(onset + post_us, (1 << DAY_BITS) - 1), side="left")
        size = np.maximum(last - first, 0)
        event = np.repeat(np.arange(n), size)
        flat = by_time[np.repeat(first - np.cumsum(size) + size, size) + np.arange(int(size.sum()))]
        window_bits = _or_at(event, positive[flat], n)
        mask_bits = _or_at(event, masking[flat], n) | self._uncovered(frame)
        own_mask = _or_at(own_rows, masking, n)  # a target farther than the window reaches is still a target
        mask_bits |= own_mask
        mask_bits |= np.where(_is_marked_in_part(frame), self.every & ~target_bits, 0)

        inside = hits[flat].select(
            pl.struct(
                label="component",
                offset_ms=((pl.col("at_us") - pl.Series(onset[event])) / 1000).cast(pl.Float32),
                velocity="velocity",
                openness="openness",
            ).alias("hit")
        )["hit"]
        own = hits.select(
            pl.struct(label="component", velocity="velocity", dynamic_bucket="dynamic_bucket", openness="openness").alias("hit")
        )["hit"]
        single = (target_bits & (target_bits - 1) == 0) & (target_bits != 0)
        index = np.where(single, np.round(np.log2(np.maximum(target_bits, 1))).astype(np.int64), -1)
        classes = pl.Series(list(self.view.classes), dtype=pl.String)
        component_idx = pl.Series(index.astype(np.int32))
        component_idx = component_idx.set(component_idx < 0, None)
        return frame.with_columns(
            clip=_clip_names(frame["event_id"]),
            target=in_lists(own.cast(TARGET_STRUCT), np.bincount(own_rows, minlength=n)),
            hits=in_lists(inside.cast(HIT_STRUCT), size),
            labels=self._classes(target_bits),
            window_labels=self._classes(window_bits),
            masked=self._classes(mask_bits),
            label=classes.gather(component_idx),
            component_idx=component_idx,
        )

    def _bits(self, hits: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Class of each hit, and the classes it hides, as bits of the view's order."""
        positive: dict[tuple[str, bool], int] = {}
        masking: dict[tuple[str, bool], int] = {}
        pairs = hits.select("component", "vague").unique().rows()
        for component, vague in pairs:
            hidden = self.view.masked_by_unspecified(self.taxonomy, component) if vague else ()
            own = self.view.class_of.get(component)
            positive[component, vague] = self.bit[own] if own is not None and not hidden else 0
            masking[component, vague] = sum(self.bit[c] for c in hidden)
        table = pl.DataFrame(
            {
                "component": pl.Series([c for c, _ in pairs], dtype=pl.String),
                "vague": pl.Series([v for _, v in pairs], dtype=pl.Boolean),
                "positive": pl.Series([positive[p] for p in pairs], dtype=pl.Int64),
                "masking": pl.Series([masking[p] for p in pairs], dtype=pl.Int64),
            }
        )
        found = hits.select("component", "vague").join(table, on=["component", "vague"], how="left", maintain_order="left")
        return found["positive"].to_numpy(), found["masking"].to_numpy()

    def _uncovered(self, frame: pl.DataFrame) -> NDArray[np.int64]:
        """Classes that the source of each event cannot express."""
        if self.coverage is None or not self.coverage.height:
            return np.zeros(frame.height, dtype=np.int64)
        keys = ["source_set", "session_id"]
        known = frame.select(keys).join(self.coverage, on=keys, how="left", maintain_order="left")["coverage"]
        text = known.list.join("\x1f")
        bits: dict[str | None, int] = {None: 0}
        for found in text.unique().drop_nulls().to_list():
            covered = self.view.covered(self.taxonomy, found.split("\x1f") if found else ())
            bits[found] = self.every & ~sum(self.bit[c] for c in covered)
        mapped = text.replace_strict({k: v for k, v in bits.items() if k is not None}, default=0, return_dtype=pl.Int64)
        return mapped.fill_null(0).to_numpy().astype(np.int64)

    def _classes(self, bits: NDArray[np.int64]) -> pl.Series:
        """Lists of class names in the view's order."""
        distinct, place = np.unique(bits, return_inverse=True)
        lists = [[c for c in self.view.classes if self.bit[c] & int(b)] for b in distinct]
        return pl.Series(lists, dtype=pl.List(pl.String)).gather(place)


def _is_marked_in_part(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """Events of sessions in which somebody marked only some of the hits (`partial` in extras): what is not marked may sound nevertheless.

    A negative example of such a session was marked as one, and says what it says.
    """
    if not frame["extras"].str.contains("partial", literal=True).any():
        return np.zeros(frame.height, dtype=bool)
    partial = (pl.col("extras").str.json_path_match("$.partial") == "true").fill_null(False)
    return frame.select((partial & ~pl.col("negative_example")).alias("partial"))["partial"].to_numpy()


def _of_events(components: pl.Series, bits: NDArray[np.uint8]) -> pl.Series:
    """OR of the bits of each event's components."""
    size = components.list.len().fill_null(0).to_numpy()
    found = np.zeros(len(size), dtype=np.uint8)
    if len(bits):
        first = np.cumsum(size)[size > 0] - size[size > 0]
        found[size > 0] = np.bitwise_or.reduceat(bits, first.astype(np.int64))
    return pl.Series(found)


def _require_windows(frame: pl.DataFrame) -> None:
    """Windows of events are as long as those of the options may be."""
    sound = pl.col("pre_ms").is_between(0, MAX_WINDOW_MS) & pl.col("post_ms").is_between(1, MAX_WINDOW_MS)
    bad = frame.filter(~sound.fill_null(False))
    if bad.height:
        row = bad.row(0, named=True)
        raise InputError(
            f"context_ms of {bad.height:,} events is not within 0 .. {MAX_WINDOW_MS:,} before and 1 .. {MAX_WINDOW_MS:,} after the onset, "
            f"first {store.printable(row['event_id'])[:80]} with {row['pre_ms']} and {row['post_ms']}. Use --context fixed or mend the manifest",
            code="bad-manifest",
        )


def _or_at(row: NDArray[np.int64], bits: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """OR of the bits of each row; `row` need not be sorted."""
    found = np.zeros(n, dtype=np.int64)
    np.bitwise_or.at(found, row, bits)
    return found


def _clip_names(ids: pl.Series) -> pl.Series:
    is_uuid = ids.str.contains(f"^{UUID_FORM.pattern}$")
    if is_uuid.all():
        return ids
    return pl.Series([i if ok else clip_name(i) for i, ok in zip(ids.to_list(), is_uuid.to_list(), strict=True)], dtype=pl.String)


# Reading a manifest


def manifest_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Events of a manifest in batches of some ten thousand rows; of these columns where they are named.

    Raises
    ------
    InputError : as `events.read_events`
    """
    names = list(columns or EVENT_SCHEMA)
    n_rows = 0
    try:
        if path.suffix == ".jsonl" or not path.is_file() or pl.read_parquet_schema(path) != EVENT_SCHEMA:
            batches = read_events(path).select(names).iter_slices(BATCH_ROWS)
        else:
            batches = pl.scan_parquet(path).select(names).collect_batches(chunk_size=BATCH_ROWS, maintain_order=True)
        for batch in batches:
            _require_sound(batch, n_rows, path)
            n_rows += batch.height
            yield batch
    except pl.exceptions.PolarsError as error:
        raise InputError(f"not a readable Parquet file: {error}. Write it again", code="bad-manifest", where=str(path)) from error


def _require_sound(batch: pl.DataFrame, first_row: int, path: Path) -> None:
    """What no plan can be made of: a required field without a value, an onset that is no time of a day. An event without an onset is no hit."""

    def refuse(bad: pl.Series, code: str, rule: str) -> None:
        if (rows := bad.arg_true()).len():
            raise InputError(
                f"{rule}, first in row {first_row + rows[0] + 1:,}. Look for more: beatsight events validate", code=code, where=str(path)
            )

    for name in REQUIRED:
        if name in batch.columns and name != "onset_time" and batch[name].null_count():
            refuse(batch[name].is_null(), "bad-manifest", f"{name} has no value")
    if "onset_time" in batch.columns:
        onset = batch["onset_time"]
        bad = (onset.is_nan() | (onset < 0) | (onset >= DAY_S)).fill_null(False)
        refuse(bad, "bad-time", f"onset_time is {onset.filter(bad).head(1).to_list()}, not a time within 0 .. 86,400 s")


def _micro(expression: pl.Expr) -> pl.Expr:
    return (expression.cast(pl.Float64) * 1e6).round().cast(pl.Int64)


def canonical_rows(frame: pl.DataFrame) -> pl.Series:
    """One JSON text per event, equal for what is read from Parquet and from JSON lines: keys sorted, fractions as whole millionths."""
    struct = COMPONENT_STRUCT.to_schema()
    component = pl.struct(
        [
            (_micro(pl.element().struct.field(k)) if t.is_float() else pl.element().struct.field(k)).alias(k)
            for k, t in sorted(struct.items())
        ]
    )
    columns: dict[str, Any] = {name: _micro(pl.col(name)) if kind.is_float() else pl.col(name) for name, kind in EVENT_SCHEMA.items()}
    columns["components"] = pl.col("components").list.eval(component)
    columns["context_ms"] = pl.struct(
        post=_micro(pl.col("context_ms").struct.field("post")), pre=_micro(pl.col("context_ms").struct.field("pre"))
    )
    texts = frame["extras"].unique()
    plain = {text: _canonical_json(text) for text in texts.drop_nulls().to_list()}
    changed = {k: v for k, v in plain.items() if k != v}
    if changed:
        columns["extras"] = pl.col("extras").replace(changed)
    return frame.select(pl.struct([columns[k].alias(k) for k in sorted(columns)]).struct.json_encode().alias("row"))["row"]


def _canonical_json(text: str) -> str:
    """Keys sorted, at most six decimals, no nulls in objects: what reading and writing JSON lines makes of it."""

    def without_nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_nulls(v) for k, v in value.items() if v is not None}
        return [without_nulls(v) for v in value] if isinstance(value, list) else value

    try:
        value = json.loads(text, parse_float=_six_decimals)
    except ValueError as error:
        raise InputError(
            f"extras {store.printable(text)[:60]!r} is not JSON: {error}. Look for more: beatsight events validate", code="bad-manifest"
        ) from error
    return _ENCODER.encode(without_nulls(value) if "null" in text else value)


def _six_decimals(text: str) -> float:
    return round(float(text), 6)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_digest(frame: pl.DataFrame) -> list[str]:
    """Digest of each recording of a frame over its canonical rows; the frame holds whole recordings."""
    keys = pl.struct(pl.col("source_set"), pl.col("audio_path").fill_null(""))
    ordered = frame.sort("source_set", pl.col("audio_path").fill_null(""), "session_id", "onset_time", "event_id")
    run = ordered.select(keys.rle_id())[:, 0].to_numpy()
    digests = []
    state, current = sha256(), -1
    for start in range(0, ordered.height, BATCH_ROWS):
        rows = canonical_rows(ordered[start : start + BATCH_ROWS]).to_list()
        here = run[start : start + BATCH_ROWS]
        cuts = [0, *(np.flatnonzero(np.diff(here)) + 1).tolist(), len(rows)]
        for low, high in pairwise(cuts):
            if here[low] != current:
                if current >= 0:
                    digests.append(state.hexdigest())
                state, current = sha256(), int(here[low])
            state.update("\n".join(rows[low:high]).encode() + b"\n")
    if current >= 0:
        digests.append(state.hexdigest())
    return digests


class Spill:
    """Events sorted into shards in an unnamed file that the kernel removes with the process."""

    def __init__(self, file: IO[bytes], n_shards: int) -> None:
        self.file = file
        self.n_shards = n_shards
        self._pieces: dict[int, list[tuple[int, int]]] = {}

    def add(self, batch: pl.DataFrame) -> None:
        """Put every row with its shard."""
        keys = batch.select("source_set", pl.col("audio_path").fill_null("")).unique()
        table = keys.with_columns(shard=pl.Series([shard_of(s, a, self.n_shards) for s, a in keys.iter_rows()], dtype=pl.Int32))
        joined = batch.with_columns(path=pl.col("audio_path").fill_null("")).join(
            table.rename({"audio_path": "path"}), on=["source_set", "path"], how="left", maintain_order="left"
        )
        for (shard,), rows in joined.drop("path").partition_by("shard", as_dict=True, include_key=False).items():
            start = self.file.tell()
            rows.rechunk().write_ipc(self.file, compression="lz4")
            self._pieces.setdefault(int(str(shard)), []).append((start, self.file.tell() - start))

    def read(self, shard: int) -> pl.DataFrame:
        """All events of a shard."""
        parts = []
        for start, size in self._pieces.get(shard, []):
            self.file.seek(start)
            parts.append(pl.read_ipc(self.file.read(size)))
        return pl.concat(parts) if parts else pl.DataFrame(schema=EVENT_SCHEMA)


def _require_once(spill: Spill, ids: Sequence[NDArray[np.uint64]]) -> None:
    """An id that stands in two shards would give two clips one name."""
    ordered = np.sort(np.concatenate(ids))
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twice):
        return
    found: list[str] = []
    for shard in range(spill.n_shards):
        names = spill.read(shard)["event_id"]
        found += names.filter(names.hash().is_in(twice.tolist())).to_list()
    name, n = Counter(found).most_common(1)[0]
    if n > 1:  # else two ids with one hash
        raise InputError(f"event id {store.printable(name)[:80]} stands in the manifest twice", code="bad-manifest")


def n_shards_for(options: BundleOptions, n_events: int, profile: str) -> int:
    """Shards of a new plan."""
    if options.shards is not None:
        return options.shards
    return max(2 if profile == "demo" else 16, -(-n_events // CLIPS_PER_SHARD))


def manifest_digest(path: Path) -> str:
    """Digest over the canonical rows of a manifest, whatever form, order and batch size it is read in."""
    with tempfile.TemporaryFile() as file:
        n_rows = count_rows(path)
        spill = Spill(file, max(1, -(-n_rows // CLIPS_PER_SHARD)))
        for batch in manifest_batches(path):
            spill.add(batch)
        return _manifest_digest(content_digest(spill.read(shard)) for shard in range(spill.n_shards))


def _manifest_digest(parts: Iterable[Sequence[str]]) -> str:
    return sha256("\n".join(sorted(d for part in parts for d in part)).encode()).hexdigest()


def count_rows(path: Path) -> int:
    """Rows of a manifest, without reading them."""
    if path.suffix == ".parquet" and path.is_file():
        try:
            return int(pl.scan_parquet(path).select(pl.len()).collect().item())
        except pl.exceptions.PolarsError as error:
            raise InputError(f"not a readable Parquet file: {error}. Write it again", code="bad-manifest", where=str(path)) from error
    with store.open_regular(path) as handle:
        return sum(block.count(b"\n") for block in iter(lambda: handle.read(store.BLOCK_BYTES), b""))


@dataclass(frozen=True)
class Sources:
    """What a plan rests on besides the manifest: splits, what each session can express, the taxonomy; with their digests."""

    taxonomy: Taxonomy
    split_of: pl.DataFrame  # group_id, split
    coverage: pl.DataFrame  # source_set, session_id, coverage

    @property
    def splits_sha256(self) -> str:
        return sha256(self.split_of.select("group_id", "split").sort("group_id").write_ndjson().encode()).hexdigest()

    @property
    def coverage_sha256(self) -> str:
        return sha256(self.coverage.sort("source_set", "session_id").write_ndjson().encode()).hexdigest()


def read_coverage(settings: Settings) -> pl.DataFrame:
    """Coverage of every session with provenance."""
    keys = ["source_set", "session_id"]
    paths = [p for p in (settings.layout.provenance(s) for s in sorted(settings.datasets)) if p.is_file()]
    if not paths:
        return pl.DataFrame(schema={"source_set": pl.String, "session_id": pl.String, "coverage": pl.List(pl.String)})
    return pl.concat([pl.read_parquet(p, columns=[*keys, "coverage"]) for p in paths]).unique(keys, keep="first").sort(keys)


def environment() -> dict[str, str]:
    """Versions that clip bytes may depend on."""
    import soundfile
    import soxr

    return {
        "numpy": np.__version__,
        "soundfile": soundfile.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__version__,
    }


def make_plan(
    settings: Settings,
    folder: Path,
    manifest: Path,
    sources: Sources,
    options: BundleOptions,
    *,
    due: Plan | None = None,
    n_expected: int | None = None,
    progress: Progress = silent,
) -> Plan:
    """Plan every event of a manifest into `folder`: the tables first, plan.json last.

    Parameters
    ----------
    due : the plan whose tables are made again; they must come out as they were
    n_expected : events that the progress counts up to; None = rows of the manifest

    Raises
    ------
    InputError : `unassigned-groups`, `bad-manifest`, `missing-input`
    StoreError `plan-differs` : a table comes out differently than `due` says
    """
    options.validate(sources.taxonomy)
    planner = Planner(options, sources.taxonomy, sources.split_of, sources.coverage, settings.generated_wanted)
    counts = Counts()
    n_events = count_rows(manifest)
    n_shards = n_shards_for(options, n_events, settings.profile)
    target = Plan(folder, {"n_shards": n_shards}, "")
    digests: list[Sequence[str]] = []
    tables: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryFile() as file:
        spill = Spill(file, n_shards)
        n_rows = 0
        smallest: list[tuple[str, str]] = []
        for batch in manifest_batches(manifest):
            spill.add(batch)
            n_rows += batch.height
            progress(f"reading the manifest: {n_rows:,} of {n_expected or n_events:,} events")
            if options.limit is not None:
                eligible = batch.filter(planner.classify(batch) == "planned")["event_id"].to_list()
                smallest = heapq.nsmallest(options.limit, [*smallest, *((keyed_order(options.seed, i), i) for i in eligible)])
        if options.limit is not None:
            planner.selected = {i for _, i in smallest}
        ids: list[NDArray[np.uint64]] = []  # 8 bytes an event; ids themselves would be 60
        for shard in range(n_shards):
            events = spill.read(shard)
            ids.append(events["event_id"].hash().to_numpy())
            digests.append(content_digest(events))
            rows = planner.plan_shard(events, counts)
            receipt = settings.store.publish_frame(target.table(shard), rows)
            if due is not None and due.identity["tables"][target.shard_name(shard)]["sha256"] != receipt.sha256:
                raise StoreError(
                    "a table of the plan was damaged and comes out differently now. Export with --overwrite",
                    code="plan-differs",
                    where=settings.store.rel(target.table(shard)),
                )
            tables[target.shard_name(shard)] = {"sha256": receipt.sha256, "clips": rows.height}
            progress(f"planned shard {shard + 1} of {n_shards}: {sum(counts.planned_by_split.values()):,} clips")
        _require_once(spill, ids)
    identity = {
        "schema": SCHEMA,
        "manifest_sha256": _manifest_digest(digests),
        "splits_sha256": sources.splits_sha256,
        "coverage_sha256": sources.coverage_sha256,
        "generated_wanted": sorted(settings.generated_wanted),
        "taxonomy_sha256": sources.taxonomy.digest,
        "options": options.to_json(),
        "resampler": "soxr HQ",
        "slicer_version": SLICER_VERSION,
        "environment": environment(),
        "n_shards": n_shards,
        "tables": tables,
        "counts": counts.to_json(),
    }
    receipt = settings.store.publish_json(folder / "plan.json", signed(identity))
    return Plan(folder, identity, receipt.sha256)


def read_plan(folder: Path) -> Plan | None:
    """The plan of a bundle folder, None when it was never finished.

    Raises
    ------
    InputError `bad-bundle` : it is damaged or of another version
    """
    path = folder / "plan.json"
    if not path.is_file():
        return None
    identity = read_signed(path)
    if identity is None or identity.get("schema") != SCHEMA:
        raise InputError(
            f"is damaged or no {SCHEMA}. Repair it: beatsight bundle export {folder.name} --resume",
            code="bad-bundle",
            where=f"{folder.name}/plan.json",
        )
    return Plan(folder, identity, sha256(store.to_json_bytes(signed(identity))).hexdigest())
