"""The event row: one instant of one session with everything that sounds at it.

Belongs here: the schema, turning hits into events (ids, merging, doubles, buckets), validation, Parquet and JSONL.
Does not belong here: what a note or a token means (taxonomy), dataset layouts (sources), inferred techniques (manifest).

Time is integer microseconds until the last step; `onset_time` is those microseconds over 10^6.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.errors import InputError
from beatsight_assets.store import is_plain_path, printable
from beatsight_assets.taxonomy import DRUM_MIX, HIHATS_WITH_OPENNESS, STRIKES, Taxonomy, Voice
from beatsight_assets.uuids import numbered_uuid5

VERSION = "1"
SCHEMA_NAME = "beatsight.events/1"
MERGE_WINDOW_US = 10_000  # spec/events.md section 3: inclusive, measured from the anchor, no chaining
LIMIT_SLACK = 1e-6  # so that 0.8 stored as f32 is still medium
DAY_S = 86_400.0
DAY_BITS = 37  # 2^37 microseconds are more than a day
BUCKET_LIMITS = (("ghost", 0.25), ("light", 0.50), ("medium", 0.80), ("accent", 1.0))
BUCKETS = ("ghost", "light", "medium", "accent", "unknown")
SPLITS = ("train", "val", "test")
MIX_CONTEXTS = ("full_mix", "drum_only", "close_mic", "overheads", "one_shot", "midi_only", "stem", "room", "unknown")
HUMAN_STROKES = "snare_strokes"  # in `extras.annotation_history`: a person marked the flams, drags and rolls of the snare; none is inferred
CLOSED_PEDAL = 90  # Roland TD-11: CC4 of a closed hat; 94.3 % of 35,142 closed hits of Groove have openness exactly 0 with it
NO_TEXT = 2**32 - 1
LIST_SEPARATOR = "\x1f"  # between names; no label and no technique holds it
MAX_LINE_BYTES = 1_000_000
PATHS = ("session_id", "audio_path", "midi_path")  # relative to the dataset root
PIECE_ROWS = 250_000  # one row group (`store.ROW_GROUP_ROWS`): about 100 MB with all columns

COMPONENT_STRUCT = pl.Struct(
    {
        "label": pl.String,
        "velocity": pl.Float32,
        "dynamic_bucket": pl.String,
        "openness": pl.Float32,
        "openness_raw": pl.Int32,
        "strike_position": pl.String,
        "instrument_variant": pl.String,
    }
)
CONTEXT_STRUCT = pl.Struct({"pre": pl.Float32, "post": pl.Float32})
_COLUMNS: dict[str, Any] = {
    "event_id": pl.String,
    "session_id": pl.String,
    "source_set": pl.String,
    "group_id": pl.String,
    "drummer_id": pl.String,
    "kit_id": pl.String,
    "is_synthetic": pl.Boolean,
    "audio_path": pl.String,
    "midi_path": pl.String,
    "onset_time": pl.Float64,
    "offset_time": pl.Float64,
    "tempo_bpm": pl.Float64,
    "meter": pl.String,
    "bar_index": pl.Int32,
    "beat_index": pl.Int32,
    "components": pl.List(COMPONENT_STRUCT),
    "techniques": pl.List(pl.String),
    "split_hint": pl.String,
    "context_ms": CONTEXT_STRUCT,
    "mix_context": pl.String,
    "negative_example": pl.Boolean,
    "metadata_ref": pl.String,
    "extras": pl.String,
}
EVENT_SCHEMA = pl.Schema(_COLUMNS)
EVENT_FIELDS, COMPONENT_FIELDS = tuple(EVENT_SCHEMA), tuple(COMPONENT_STRUCT.to_schema())  # read once: a schema is slow to walk
# (unit, meaning) of each column: the Columns panel of the UI and the README table are made from this.
COLUMN_DOCS: dict[str, tuple[str, str]] = {
    "event_id": ("uuid5", "of source set, session and onset in microseconds"),
    "session_id": ("path", "recording session inside its dataset"),
    "source_set": ("name", "dataset"),
    "group_id": ("prefix:key", "leakage unit: everything that shares the performance"),
    "drummer_id": ("name", "the same person has the same id in every dataset"),
    "kit_id": ("name", "kit, module or plugin"),
    "is_synthetic": ("bool", "audio rendered offline from MIDI"),
    "audio_path": ("path", "relative to the dataset root; says nothing about the file being there"),
    "midi_path": ("path", "relative to the dataset root"),
    "onset_time": ("s", "onset of the earliest hit, whole microseconds"),
    "offset_time": ("s", "end, only where the source states one"),
    "tempo_bpm": ("bpm", "in force at the onset"),
    "meter": ("n/d", "in force at the onset"),
    "bar_index": ("bars", "since the start, from 0"),
    "beat_index": ("beats", "in the bar, from 0"),
    "components": ("list", "hits: label, velocity 0..1, dynamic bucket, openness 0 closed .. 1 open, strike position, variant"),
    "techniques": ("list", "playing gestures of this event, sorted"),
    "split_hint": ("split", "official split of the dataset"),
    "context_ms": ("ms", "default window around the onset"),
    "mix_context": ("name", "what the audio contains"),
    "negative_example": ("bool", "window known to hold no hit"),
    "metadata_ref": ("ref", "provenance:<session_id>"),
    "extras": ("JSON", "label source, confidence, offsets of components, collapsed hits"),
}
REQUIRED = ("event_id", "session_id", "source_set", "group_id", "is_synthetic", "onset_time", "components", "techniques", "context_ms",
            "mix_context", "negative_example", "metadata_ref", "extras")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Session:
    """What is true of every event of one recording session."""

    session_id: str
    group_id: str
    drummer_id: str | None = None
    kit_id: str | None = None
    is_synthetic: bool = False
    audio_path: str | None = None
    midi_path: str | None = None
    split_hint: str | None = None
    context_ms: tuple[float, float] = (80.0, 200.0)
    mix_context: str = "drum_only"
    label_source: str = "midi"
    confidence: float = 1.0
    extras: Mapping[str, Any] = field(default_factory=dict)  # further keys of `extras` (stem, mic_position, channel, velocity_layer ..)


@dataclass(frozen=True)
class Hits:
    """Hits of one session as columns, in any order. All arrays have shape (n,).

    onset_us : int64, microseconds from the start of the audio, >= 0
    voice : int, index into `voices`
    velocity : float32 0..1, NaN where the source has none
    openness : float32 0 closed .. 1 open, NaN where unknown
    openness_raw : int32 pedal value as recorded, -1 where none
    tempo_bpm : float64, NaN where unknown; meter : int index into `meters`, -1 unknown; bar, beat : int32, -1 unknown
    stated : techniques stated for single hits, by index into the arrays
    offset_us : int64, end in microseconds where the source states one (stems: the end of the audio), -1 where not
    """

    voices: tuple[Voice, ...]
    onset_us: NDArray[np.int64]
    voice: NDArray[np.int64]
    velocity: NDArray[np.float32]
    openness: NDArray[np.float32] | None = None
    openness_raw: NDArray[np.int32] | None = None
    tempo_bpm: NDArray[np.float64] | None = None
    meters: tuple[str, ...] = ()
    meter: NDArray[np.int64] | None = None
    bar: NDArray[np.int32] | None = None
    beat: NDArray[np.int32] | None = None
    stated: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    offset_us: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.onset_us)

    @classmethod
    def single(cls, voice: Voice, onset_us: int = 0, offset_us: int = -1, velocity: float = math.nan) -> Hits:
        """One hit: a one-shot sample, or (with onset 0 and the end of the audio) the row of a whole stem."""
        return cls(
            (voice,),
            np.array([onset_us], np.int64),
            np.zeros(1, np.int64),
            np.array([velocity], np.float32),
            offset_us=np.array([offset_us], np.int64),
        )


@dataclass(frozen=True)
class Assembled:
    """Events of several sessions, and what assembling them did to each session's hits."""

    frame: pl.DataFrame
    n_hits: NDArray[np.int64]
    n_events: NDArray[np.int64]
    n_collapsed: NDArray[np.int64]
    n_openness_null: NDArray[np.int64]


def openness_from_pedal(cc4: NDArray[np.integer[Any]], *, closed_at: int = CLOSED_PEDAL) -> NDArray[np.float32]:
    """Openness of the hi-hat from pedal values; negative values mean "no pedal seen" and give NaN.

    Parameters
    ----------
    cc4 : int [shape=(n,)], 0..127 as sent by the module (90 closed, 0 open on the TD-11), or -1
    closed_at : pedal value of a closed hat

    Returns
    -------
    float32 [shape=(n,)], 0 closed .. 1 fully open

    >>> openness_from_pedal(np.array([66, 0, 90, 127, -1])).tolist()
    [0.2666666805744171, 1.0, 0.0, 0.0, nan]
    """
    openness = np.clip(1.0 - cc4 / closed_at, 0.0, 1.0).astype(np.float32)
    return np.where(cc4 < 0, np.float32(np.nan), openness).astype(np.float32)


def bucket_ids(velocity: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index into `BUCKETS` for velocities 0..1; NaN is `unknown`."""
    exact = velocity.astype(np.float64)
    found = np.zeros(len(velocity), dtype=np.int64)
    for _, limit in BUCKET_LIMITS[:3]:
        found += exact > limit + LIMIT_SLACK
    return np.where(np.isnan(velocity), 4, found)


def event_id(source_set: str, session_id: str, onset_us: int) -> str:
    """Id of the event at `onset_us` microseconds of a session.

    >>> event_id("groove_mididataset", "drummer1/eval_session/1_funk-groove1_138_beat_4-4.mid", 2717)
    'd0c7e851-d761-5167-899e-d93dfcb1fb69'
    """
    return str(uuid5(_namespace(source_set), f"{session_id}:{onset_us}"))


def _namespace(source_set: str) -> UUID:
    return uuid5(NAMESPACE_URL, f"urn:beatsight:source:{source_set}")


def anchors(session: NDArray[np.int64], onset_us: NDArray[np.int64], window_us: int = MERGE_WINDOW_US) -> NDArray[np.bool_]:
    """Which hits open an event: the first hit, then every hit more than `window_us` after the last anchor of its session.

    Parameters
    ----------
    session, onset_us : int64 [shape=(n,)], sorted by (session, onset)
    """
    n = len(onset_us)
    opens = np.ones(n, dtype=bool)
    if n < 2:
        return opens
    opens[1:] = (session[1:] != session[:-1]) | (np.diff(onset_us) > window_us)
    # Between two certain breaks hits lie closer than the window; only clusters longer than the window need the walk.
    starts = np.flatnonzero(opens)
    ends = np.append(starts[1:], n)
    for i in np.flatnonzero(onset_us[ends - 1] - onset_us[starts] > window_us):
        anchor = onset_us[starts[i]]
        for j in range(starts[i] + 1, ends[i]):
            if onset_us[j] - anchor > window_us:
                opens[j] = True
                anchor = onset_us[j]
    return opens


def assemble(source_set: str, batch: Sequence[tuple[Session, Hits]], taxonomy: Taxonomy) -> Assembled:
    """Events of many sessions at once (`spec/events.md` section 3): hits within 10 ms of an anchor are one event, doubles collapse.

    Works on columns over the whole batch; sorted by session in batch order, then onset.

    Raises
    ------
    InputError `bad-time` : an onset is negative or not below one day
    """
    n_sessions = len(batch)
    sizes = np.array([len(h) for _, h in batch], dtype=np.int64)
    session = np.repeat(np.arange(n_sessions, dtype=np.int64), sizes)
    onset = _join(batch, lambda h: h.onset_us, np.int64, 0)
    if len(onset) and (onset.min() < 0 or onset.max() >= DAY_S * 1e6):
        worst = int(onset.min() if onset.min() < 0 else onset.max())
        where = batch[int(session[int(np.flatnonzero(onset == worst)[0])])][0].session_id
        raise InputError(f"onset {worst / 1e6} s is not within 0 .. 86,400 s. Are these milliseconds?", code="bad-time", where=where)
    velocity = _join(batch, lambda h: h.velocity, np.float32, np.nan)
    openness = _join(batch, lambda h: h.openness, np.float32, np.nan)
    raw = _join(batch, lambda h: h.openness_raw, np.int32, -1)

    voice, table = _coded([h.voices for _, h in batch], [h.voice for _, h in batch])
    labels = sorted({v.label for v in table}, key=lambda x: (taxonomy.order.get(x, len(taxonomy.order)), x))
    variants: list[str | None] = sorted({v.variant for v in table}, key=lambda x: (x is not None, x or ""))
    place_of = np.array([labels.index(v.label) * (len(variants) + 1) + variants.index(v.variant) for v in table] or [0], dtype=np.int64)
    place = place_of[voice]

    by_time = _order_by_time(session, onset, place)
    opens = anchors(session[by_time], onset[by_time])
    event = np.cumsum(opens) - 1
    n_events = int(opens.sum())
    n_in_event = np.bincount(event, minlength=n_events)
    # Doubles: within (event, label, variant) the loudest stays, on a tie the earlier; unknown velocity is the quietest.
    kept = by_time.copy()
    shared = np.flatnonzero((n_in_event > 1)[event])  # most events have one hit
    rivals = by_time[shared]
    kept[shared] = rivals[_order_of_rivals(event[shared], place[rivals], velocity[rivals])]
    key = place[kept]
    first = np.ones(len(kept), dtype=bool)
    first[1:] = opens[1:] | (key[1:] != key[:-1])
    kept_event, kept = event[first], kept[first]
    n_kept = np.bincount(kept_event, minlength=n_events)
    collapsed = n_in_event - n_kept
    at = by_time[opens]  # the anchor hit of each event
    event_session = session[at]
    event_onset = onset[at]
    offsets = np.concatenate([[0], np.cumsum(n_kept)])

    kept_voice = voice[kept]
    stated_bucket = np.array([BUCKETS.index(v.bucket) if v.bucket else -1 for v in table] or [-1], dtype=np.int64)[kept_voice]
    bucket = np.where(stated_bucket >= 0, stated_bucket, bucket_ids(velocity[kept]))
    has_openness = np.array([v.label in HIHATS_WITH_OPENNESS for v in table] or [False])[kept_voice]
    kept_openness = np.where(has_openness, openness[kept], np.float32(np.nan))
    n_null = (
        np.bincount(session[kept][has_openness & np.isnan(kept_openness)], minlength=n_sessions)
        if len(kept)
        else np.zeros(n_sessions, np.int64)
    )
    hits = pl.DataFrame(
        {
            "label": _gathered([v.label for v in table], kept_voice),
            "velocity": pl.Series(velocity[kept], nan_to_null=True),
            "dynamic_bucket": _gathered(list(BUCKETS), bucket),
            "openness": pl.Series(kept_openness, nan_to_null=True),
            "openness_raw": _known(raw[kept]),
            "strike_position": _gathered([v.strike for v in table], kept_voice),
            "instrument_variant": _gathered([v.variant for v in table], kept_voice),
        }
    )
    components = in_lists(hits.to_struct("hit"), n_kept)

    def per_event(pick: Any, dtype: Any, missing: Any) -> NDArray[Any]:
        return _join(batch, pick, dtype, missing)[at]

    meter, meters = _coded([h.meters for _, h in batch], [np.full(len(h), -1) if h.meter is None else h.meter for _, h in batch])
    meter = meter[at]
    tempo = per_event(lambda h: h.tempo_bpm, np.float64, np.nan)
    bar = per_event(lambda h: h.bar, np.int32, -1)
    beat = per_event(lambda h: h.beat, np.int32, -1)

    def told(pick: Any) -> pl.Series:
        return _gathered([pick(s) for s, _ in batch], event_session)

    columns: dict[str, pl.Series] = {
        "event_id": _event_ids(source_set, [s.session_id for s, _ in batch], event_session, event_onset),
        "session_id": told(lambda s: s.session_id),
        "source_set": _gathered([source_set], np.zeros(n_events, np.int64)),
        "group_id": told(lambda s: s.group_id),
        "drummer_id": told(lambda s: s.drummer_id),
        "kit_id": told(lambda s: s.kit_id),
        "is_synthetic": pl.Series([s.is_synthetic for s, _ in batch], dtype=pl.Boolean).gather(event_session),
        "audio_path": told(lambda s: s.audio_path),
        "midi_path": told(lambda s: s.midi_path),
        "onset_time": pl.Series(event_onset / 1e6),
        "offset_time": _known(per_event(lambda h: h.offset_us, np.int64, -1)) / 1e6,
        "tempo_bpm": pl.Series(tempo, nan_to_null=True),
        "meter": _gathered([*meters, None], np.where(meter < 0, len(meters), meter)),
        "bar_index": _known(bar),
        "beat_index": _known(beat),
        "components": components,
        "techniques": _techniques(batch, table, voice, kept_event, kept, event, by_time, n_events),
        "split_hint": told(lambda s: s.split_hint),
        "context_ms": pl.Series([{"pre": s.context_ms[0], "post": s.context_ms[1]} for s, _ in batch], dtype=CONTEXT_STRUCT).gather(
            event_session
        ),
        "mix_context": told(lambda s: s.mix_context),
        "negative_example": pl.Series(np.zeros(n_events, dtype=bool)),
        "metadata_ref": told(lambda s: f"provenance:{s.session_id}"),
        "extras": _extras(batch, event_session, onset[kept] - event_onset[kept_event], offsets, collapsed),
    }
    frame = pl.DataFrame(columns)
    if frame.schema != EVENT_SCHEMA:  # zero events have no component to take the types from
        frame = frame.cast(EVENT_SCHEMA)
    return Assembled(
        frame=frame,
        n_hits=sizes,
        n_events=np.bincount(event_session, minlength=n_sessions),
        n_collapsed=np.bincount(event_session, weights=collapsed, minlength=n_sessions).astype(np.int64),
        n_openness_null=n_null,
    )


def empty_frame() -> pl.DataFrame:
    """Zero events with the right schema."""
    return pl.DataFrame(schema=EVENT_SCHEMA)


def _join(batch: Sequence[tuple[Session, Hits]], pick: Any, dtype: Any, missing: Any) -> NDArray[Any]:
    told = [pick(h) for _, h in batch]
    if all(column is None for column in told):
        return np.full(sum(len(h) for _, h in batch), missing, dtype=dtype)
    return np.concatenate(
        [np.full(len(h), missing, dtype) if column is None else column for (_, h), column in zip(batch, told, strict=True)], dtype=dtype
    )


Named = TypeVar("Named")


def _coded(names: Sequence[tuple[Named, ...]], codes: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], list[Named]]:
    """Codes that count into a tuple of names of their own, joined to count into one list of all names; -1 stays -1."""
    found: dict[Named, int] = {}
    table: list[int] = []  # for each tuple -1, then its names
    starts: dict[int, int] = {}  # by identity: the sessions of a dataset share a tuple
    for own in names:
        if id(own) not in starts:
            table.append(-1)
            starts[id(own)] = len(table)
            table += [found.setdefault(name, len(found)) for name in own]
    start = np.repeat([starts[id(own)] for own in names], [len(code) for code in codes])
    return np.array(table, dtype=np.int64).take(start + np.concatenate(codes)) if codes else np.empty(0, np.int64), list(found)


def _order_by_time(session: NDArray[np.int64], onset_us: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order by (session, onset, place), equal ones as they come; `session` ascends. Most sessions bring their hits in order."""
    order = np.arange(len(session), dtype=np.int64)
    if ((np.diff(onset_us) < 0) & (session[1:] == session[:-1])).any():
        order = np.lexsort((onset_us, session))
    at = onset_us[order]
    is_tied = (at[1:] == at[:-1]) & (session[1:] == session[:-1])
    tied = np.flatnonzero(np.append(is_tied, False) | np.append(False, is_tied)) if len(at) else order
    rows = order[tied]
    order[tied] = rows[np.lexsort((place[rows], onset_us[rows], session[rows]))]
    return order


def _order_of_rivals(event: NDArray[np.int64], place: NDArray[np.int64], velocity: NDArray[np.float32]) -> NDArray[np.int64]:
    """Order by (event, place, loudest first), equal ones as they come; `event` ascends and few hits share a place."""
    key = event * (int(place.max(initial=0)) + 1) + place
    order = key.argsort(kind="stable")
    at = key[order]
    is_tied = at[1:] == at[:-1]
    tied = np.flatnonzero(np.append(is_tied, False) | np.append(False, is_tied)) if len(at) else order
    rows = order[tied]
    order[tied] = rows[np.lexsort((-np.nan_to_num(velocity[rows], nan=-1.0), key[rows]))]
    return order


def _gathered(values: Sequence[str | None], index: NDArray[np.int64]) -> pl.Series:
    """Repeated strings without a Python object per row."""
    if len(set(values)) == 1:
        return pl.Series(values[:1], dtype=pl.String).new_from_index(0, len(index))
    return pl.Series(list(values), dtype=pl.String).gather(index)


def _known(values: NDArray[np.integer[Any]]) -> pl.Series:
    """Whole numbers, negative ones as null."""
    series = pl.Series(values)
    return series.set(series < 0, None)


def _event_ids(source_set: str, sessions: Sequence[str], session: NDArray[np.int64], onset_us: NDArray[np.int64]) -> pl.Series:
    """`event_id` of many events: `session` counts into `sessions`."""
    return numbered_uuid5(_namespace(source_set).bytes, [f"{s}:" for s in sessions], session, onset_us)


def _techniques(
    batch: Sequence[tuple[Session, Hits]],
    table: Sequence[Voice],
    voice: NDArray[np.int64],
    kept_event: NDArray[np.int64],
    kept: NDArray[np.int64],
    event: NDArray[np.int64],
    by_time: NDArray[np.int64],
    n_events: int,
) -> pl.Series:
    """Stated techniques per event; almost all events have none, so only those that do are walked."""
    found: dict[int, set[str]] = {}
    telling = np.array([bool(v.techniques) for v in table] or [False])
    for e, v in zip(kept_event[telling[voice[kept]]].tolist(), voice[kept][telling[voice[kept]]].tolist(), strict=True):
        found.setdefault(e, set()).update(table[v].techniques)
    if any(h.stated for _, h in batch):
        event_of_hit = np.empty(len(by_time), dtype=np.int64)
        event_of_hit[by_time] = event
        start = 0
        for _, hits in batch:
            for i, names in hits.stated.items():
                found.setdefault(int(event_of_hit[start + i]), set()).update(names)
            start += len(hits)
    values = pl.Series([[], *(sorted(names) for names in found.values())], dtype=pl.List(pl.String))
    index = np.zeros(n_events, dtype=np.int64)
    index[list(found)] = 1 + np.arange(len(found))
    return values.gather(index)


def _extras(
    batch: Sequence[tuple[Session, Hits]],
    event_session: NDArray[np.int64],
    delta_us: NDArray[np.int64],
    offsets: NDArray[np.int64],
    collapsed: NDArray[np.int64],
) -> pl.Series:
    """JSON per event, keys sorted; most events share the text of their session."""
    parts = [_session_extras(s) for s, _ in batch]
    spread = np.zeros(len(collapsed), dtype=bool)
    if len(delta_us):
        spread = np.add.reduceat(delta_us != 0, offsets[:-1]) > 0
    n_hits = np.diff(offsets)
    deltas = pl.DataFrame({"event": pl.Series(np.repeat(np.arange(len(collapsed)), n_hits)).set_sorted(), "us": delta_us}).filter(
        np.repeat(spread, n_hits)
    )
    lists = deltas.group_by("event", maintain_order=True).agg("us")["us"].cast(pl.List(pl.String)).list.join(",")
    special = np.flatnonzero(spread | (collapsed > 0))
    before, between, behind = (_gathered([p[i] for p in parts], event_session[special]) for i in range(3))
    own = pl.DataFrame(
        {
            "before": before,
            "collapsed": _known(np.where(collapsed > 0, collapsed, -1)[special]).cast(pl.String),
            "between": between,
            "us": lists.gather(_known(np.where(spread, np.cumsum(spread) - 1, -1)[special])),
            "behind": behind,
        }
    )
    told = pl.concat_str(
        "before",
        pl.lit('"collapsed_hits":') + pl.col("collapsed"),
        "between",
        pl.format('"offsets_us":[{}]', "us"),
        "behind",
        separator=",",
        ignore_nulls=True,
    )
    made = own.select("{" + told + "}").to_series()
    shared = pl.Series([f"{{{','.join(filter(None, p))}}}" for p in parts], dtype=pl.String)
    index = event_session.copy()
    index[special] = len(parts) + np.arange(len(special))
    return pl.concat([shared, made]).gather(index)


def _session_extras(session: Session) -> tuple[str | None, str | None, str | None]:
    """Members of the JSON object that every event of a session has: before `collapsed_hits` in the order of keys, up to `offsets_us`, behind it."""
    known = {"confidence": session.confidence, "label_source": session.label_source, **session.extras}
    found: list[dict[str, Any]] = [{}, {}, {}]
    for key in sorted(known):
        found[(key > "collapsed_hits") + (key > "offsets_us")][key] = known[key]
    before, between, behind = (_EXTRAS_SHOWN.encode(members)[1:-1] if members else None for members in found)
    return before, between, behind


_EXTRAS_SHOWN = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


# ---- reading, writing, checking ----------------------------------------------------------------------------------------------


def parquet_metadata(taxonomy: Taxonomy, source_set: str = "") -> dict[str, str]:
    """Key-value metadata of every event table."""
    return {"schema": SCHEMA_NAME, "taxonomy_version": str(taxonomy.version), "source_set": source_set}


def read_events(path: Path) -> pl.DataFrame:
    """Events of a Parquet or JSONL manifest.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`, `bad-time`, `path-escape` : with file, line and field
    """
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise InputError("file does not exist. Run the step that writes it first", code="missing-input", where=str(path))
        return _read_jsonl(path)
    try:
        table = _scan(path)
        _refuse_nan(table, str(path))
        return table.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"not a readable Parquet file: {error}", code="bad-manifest", where=str(path)) from error


class Manifest:
    """A manifest that is read in pieces: what a stage needs that must not hold three million events at once.

    A frame stands for a manifest too, so that everything that works on files works on tables.
    """

    def __init__(self, source: Path | pl.DataFrame) -> None:
        """
        Raises
        ------
        InputError `missing-input`, `bad-manifest`, `bad-time`, `path-escape` : see `read_events`
        """
        self.where = str(source) if isinstance(source, Path) else ""
        frame = read_events(source) if isinstance(source, Path) and source.suffix != ".parquet" else source
        self.file = frame if isinstance(frame, Path) else None
        self.table = _scan(frame) if isinstance(frame, Path) else frame.lazy()
        self.n_rows = int(self.table.select(pl.len()).collect().item())
        _refuse_nan(self.table, self.where)

    def pieces(self, columns: Sequence[str] | None = None, *, rows: int = PIECE_ROWS) -> Iterator[pl.DataFrame]:
        """All rows in order, at most `rows` at a time."""
        for start in range(0, self.n_rows, rows):
            yield self.read(start, min(start + rows, self.n_rows), columns)

    def pieces_with_hits(self, columns: Sequence[str], fields: Sequence[str], *, rows: int = PIECE_ROWS) -> Iterator[pl.DataFrame]:
        """As `pieces`, with `components` last, whose structs hold only `fields`, in the order of the schema.

        Polars decodes all seven fields of a component to read one; Arrow decodes those that are named: the labels of three million
        events cost a quarter of the time. The other columns are cheaper with polars, so each reads what it reads best.

        Raises
        ------
        InputError `bad-manifest` : the file is damaged
        """
        if self.file is None:
            names = [name for name in COMPONENT_STRUCT.to_schema() if name in fields]
            chosen = pl.col("components").list.eval(pl.struct(pl.element().struct.field(*names)))
            yield from (piece.with_columns(chosen) for piece in self.pieces([*columns, "components"], rows=rows))
            return
        from pyarrow import ArrowException, parquet

        start = 0
        try:
            with parquet.ParquetFile(self.file) as table:
                leaves = [
                    table.schema.column(i).path for i in range(len(table.schema.names))
                ]  # writers name the level of a list differently
                wanted = [path for path in leaves if path.startswith("components.") and path.rpartition(".")[2] in fields]
                for batch in table.iter_batches(rows, columns=wanted, use_threads=False):
                    hits = pl.DataFrame(pl.from_arrow(batch, rechunk=False))
                    yield self.read(start, start + hits.height, columns).hstack(hits)
                    start += hits.height
        except (ArrowException, OSError) as error:
            raise InputError(f"not a readable Parquet file: {error}", code="bad-manifest", where=self.where) from error

    def sessions(self, columns: Sequence[str] | None = None, *, rows: int = PIECE_ROWS) -> Iterator[pl.DataFrame]:
        """All rows in pieces that never cut a session: about `rows` at a time when each session is one run of rows, else the whole table."""
        begins = np.append(self.runs["row"].to_numpy(), self.n_rows)
        ends = begins[np.searchsorted(begins, np.arange(rows, self.n_rows, rows))]
        if self.runs.select(SESSION_KEY).is_duplicated().any():
            ends = ends[:0]
        start = 0
        for end in np.unique(np.append(ends, self.n_rows)).tolist() if self.n_rows else ():
            yield self.read(start, end, columns)
            start = end

    def parts(self, ends: Iterable[int], *, rows: int = PIECE_ROWS) -> Iterator[pl.DataFrame]:
        """Rows up to each of `ends`, from the end before; they rise. Every row group is decoded once, where `read` does it for each slice."""
        pieces, held, start = self.pieces(rows=rows), [empty_frame()], 0
        for end in ends:
            while sum(part.height for part in held) < end - start:
                held.append(next(pieces))
            joined = pl.concat(held)
            held[:] = joined[end - start :], joined[: end - start]
            del joined  # what is yielded is not kept
            start = end
            yield held.pop()

    @cached_property
    def runs(self) -> pl.DataFrame:
        """Runs of rows of one session: source_set, session_id, first row."""
        found, n_read, last = [], 0, (None, None)
        for piece in self.pieces(SESSION_KEY):
            starts = session_starts(piece)
            starts[:1] = piece.row(0) != last
            at = np.flatnonzero(starts)
            found.append(piece[at].with_columns(row=pl.Series(at + n_read, dtype=pl.Int64)))
            n_read += piece.height
            last = piece.row(-1)
        schema = {name: EVENT_SCHEMA[name] for name in SESSION_KEY} | {"row": pl.Int64()}
        return pl.concat([pl.DataFrame(schema=schema), *found], rechunk=True)

    def in_order(self) -> bool:
        """Sessions stand one after the other, sorted by name; nothing is said about the rows of a session."""
        keys = self.runs.select(pl.struct(SESSION_KEY).alias("key"))["key"]
        return bool(keys.is_sorted()) and not keys.is_duplicated().any()

    def read(self, start: int = 0, end: int | None = None, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Rows from `start` to before `end`.

        Raises
        ------
        InputError `bad-manifest` : the file is damaged
        """
        table = (self.table if columns is None else self.table.select(columns)).slice(start, None if end is None else end - start)
        try:
            return table.collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"not a readable Parquet file: {error}", code="bad-manifest", where=self.where) from error


SESSION_KEY = ("source_set", "session_id")


class TextCodes:
    """Texts as small numbers, equal for equal texts in every piece, and back. Null has the code NO_TEXT."""

    def __init__(self) -> None:
        self._dtype = pl.Categorical(pl.Categories.random("beatsight"))
        self._alive = pl.Series([""], dtype=self._dtype)  # polars forgets the numbers when nothing holds them
        self._n = 1

    def of(self, texts: pl.Series) -> NDArray[np.uint32]:
        """Codes [shape=(n,)]; given in order."""
        found = texts.cast(self._dtype).to_physical().cast(pl.UInt32)
        self._n = max(self._n, 1 + int(found.max() or 0))  # type: ignore[arg-type]
        return found.fill_null(NO_TEXT).to_numpy()

    def of_lists(self, lists: pl.Series) -> NDArray[np.uint32]:
        """Codes of lists of texts [shape=(n,)]: of their members with LIST_SEPARATOR between; few lists hold more than one."""
        texts = lists.list.first().fill_null("").set(lists.is_null(), None)
        longer = np.flatnonzero((lists.list.len() > 1).fill_null(False).to_numpy())
        return self.of(texts.scatter(longer, lists.gather(longer).list.join(LIST_SEPARATOR)))

    def names(self) -> dict[int, str | None]:
        """Every text by its code; the empty one is always among them."""
        codes = pl.Series(range(self._n), dtype=pl.UInt32)
        return {NO_TEXT: None, **dict(enumerate(codes.cat.to(self._dtype).cast(pl.String)))}


def instants(session: pl.Series, onset_us: pl.Series) -> NDArray[np.uint64]:
    """One number for session and onset [shape=(n,)], equal for equal pairs; it rises along a manifest whose session codes do.

    session : whole numbers below 2^27; onset_us : microseconds of a day, null counts as 0
    """
    numbers = session.to_numpy().astype(np.uint64)
    numbers <<= np.uint64(DAY_BITS)
    numbers |= onset_us.fill_null(0).to_numpy().view(np.uint64)
    return numbers


def find_repeats(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rows whose hash, or number, occurs more than once, rising: the only ones that can be equal."""
    ordered = hashes if (hashes[1:] >= hashes[:-1]).all() else np.sort(hashes)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not twice.size:
        return np.empty(0, np.int64)
    return np.flatnonzero(pl.Series(hashes).is_in(pl.Series(twice).implode()).to_numpy())


def session_starts(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """True at the first row of each run of one session [shape=(n,)]."""
    differs = [(pl.col(name).ne_missing(pl.col(name).shift(1))) for name in SESSION_KEY]
    found = frame.select(pl.any_horizontal(differs).alias("starts"))["starts"].to_numpy().copy()
    found[:1] = True
    return found


def _scan(path: Path) -> pl.LazyFrame:
    """A Parquet manifest whose columns are those of EVENT_SCHEMA; nothing but its footer is read."""
    if not path.is_file():
        raise InputError("file does not exist. Run the step that writes it first", code="missing-input", where=str(path))
    try:
        found = pl.read_parquet_schema(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"not a readable Parquet file: {error}", code="bad-manifest", where=str(path)) from error
    if list(found.items()) != list(EVENT_SCHEMA.items()):
        off = sorted(set(EVENT_SCHEMA.items()) ^ set(found.items()), key=str)[:3]
        raise InputError(f"columns are not those of {SCHEMA_NAME}; first differences: {off}", code="bad-manifest", where=str(path))
    return pl.scan_parquet(path)


def _refuse_nan(table: pl.LazyFrame, where: str) -> None:
    """An onset that is no number is refused wherever it is read; one column is looked at."""
    try:
        found = table.select(
            pl.col("onset_time").is_nan().arg_max().alias("row"), pl.col("onset_time").is_nan().any().alias("bad")
        ).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"not a readable Parquet file: {error}", code="bad-manifest", where=where) from error
    if found["bad"][0]:
        raise InputError("onset_time is NaN", code="bad-time", where=f"{where}: row {found['row'][0] + 1}")


def to_jsonl(frame: pl.DataFrame) -> bytes:
    """One compact object per line: keys in schema order, null fields left out, extras as an object, floats with at most 6 decimals.

    Raises
    ------
    InputError `bad-manifest` : extras hold no JSON object
    """
    return (json_texts(frame).str.join("\n").item() + "\n").encode() if frame.height else b""


def json_texts(frame: pl.DataFrame) -> pl.Series:
    """The JSON object of each event as text without line ends, made in columns; see `to_jsonl`. Any selection of the event columns will do."""
    if not frame.height:
        return pl.Series([], dtype=pl.String)
    texts = {name: _json_of(frame[name], name) for name in frame.columns}
    return frame.select(_json_object(texts).alias("line"))["line"]


def _json_of(values: pl.Series, name: str) -> pl.Series:
    """The JSON text of each value of an event column or a field of a component, null where it is null."""
    if name == "extras":
        return _mapped(values, _extras_text)
    if values.dtype == pl.String:
        if values.str.contains(r'["\\\x00-\x1f\x7f]').any():
            return _mapped(values, _json_text)
        return values.to_frame("x").select(pl.concat_str(pl.lit('"'), "x", pl.lit('"')))["literal"]
    if values.dtype.is_float():
        if values.is_infinite().any() or values.is_nan().any():
            raise InputError(f"{name} holds NaN or infinity", code="bad-manifest")
        return values.cast(pl.Float64).round(6).cast(pl.String)
    if isinstance(values.dtype, pl.Struct):
        fields = values.struct.unnest()
        objects = fields.select(_json_object({f: _json_of(fields[f], f) for f in fields.columns}))["literal"]
        return objects.set(values.is_null(), None)
    if isinstance(values.dtype, pl.List):
        n_items = values.list.len().fill_null(0).to_numpy()
        items = _json_of(values.explode(empty_as_null=False, keep_nulls=False), name)
        inner = in_lists(items, n_items).list.join(",")
        return inner.to_frame("x").select(pl.concat_str(pl.lit("["), "x", pl.lit("]")))["literal"].set(values.is_null(), None)
    return values.cast(pl.String)  # whole numbers and truth values


def _json_object(texts: Mapping[str, pl.Series]) -> pl.Expr:
    members = [pl.lit(f'"{name}":') + pl.lit(text.rechunk()) for name, text in texts.items()]
    return pl.concat_str(pl.lit("{"), pl.concat_str(members, separator=",", ignore_nulls=True), pl.lit("}"))


def _mapped(values: pl.Series, text_of: Callable[[str], str]) -> pl.Series:
    """Each text through a function that is called once for equal ones."""
    found = values.unique().drop_nulls()
    return values.replace_strict(found, pl.Series([text_of(v) for v in found], dtype=pl.String), default=None, return_dtype=pl.String)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _extras_text(text: str) -> str:
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if not isinstance(value, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"extras {text[:80]!r} are no JSON object: {error}", code="bad-manifest") from error
    return _json_text(_compact(value))


def _compact(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _compact(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_compact(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value


def _read_jsonl(path: Path) -> pl.DataFrame:
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        last = text.count(b"\n") + 1
        raise InputError("the last line is torn (no line end). Was the writer interrupted?", code="bad-manifest", where=f"{path}:{last}")
    rows = []
    constants: list[str] = []  # NaN and the infinities, which JSON does not have

    def constant(token: str) -> float:
        constants.append(token)
        return math.nan

    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"line of {len(line):,} bytes; at most {MAX_LINE_BYTES:,}", code="bad-manifest", where=where)
        constants.clear()
        try:
            row = json.loads(line, parse_constant=constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a JSON object: {error}", code="bad-manifest", where=where) from error
        if not isinstance(row, dict):
            raise InputError(f"a line must be a JSON object, not {type(row).__name__}", code="bad-manifest", where=where)
        rows.append(upgraded_row(row, where))
        if constants:
            raise InputError(f"not a JSON object: {constants[0]} is no JSON number", code="bad-manifest", where=where)
    try:
        return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row", strict=True)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"a field has another type than {SCHEMA_NAME} says: {error}", code="bad-manifest", where=str(path)) from error


def _no_constant(token: str) -> None:
    raise ValueError(f"{token} is no JSON number")


def upgraded_row(row: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A row in today's shape from one of an older tool: ids and context filled, unknown keys moved into extras (`spec/events.md` section 11).

    Raises
    ------
    InputError `bad-manifest`, `bad-time`, `path-escape`
    """
    session = row.get("session_id")
    identity = row.get("event_id", row.get("sample_id"))
    if not isinstance(session, str) or not isinstance(identity, str):
        raise InputError("session_id and event_id (or sample_id) must be strings", code="bad-manifest", where=where)
    onset = row.get("onset_time")
    if isinstance(onset, bool) or not isinstance(onset, (int, float)) or not 0 <= onset < DAY_S or not math.isfinite(onset):
        raise InputError(f"onset_time {onset!r} is not a number within 0 .. 86,400 s", code="bad-time", where=where)
    for name in PATHS:
        found = row.get(name)
        if found is not None and not (isinstance(found, str) and _is_plain(found)):
            shown = printable(str(found))[:80]
            raise InputError(f"{name} {shown!r} is no plain path below the dataset", code="path-escape", where=where)
    if not isinstance(row.get("extras") or {}, dict):
        raise InputError("extras must be an object", code="bad-manifest", where=where)
    extras = dict(row.get("extras") or {})
    extras |= {k: v for k, v in row.items() if k not in EVENT_FIELDS and k != "sample_id"}
    components = row.get("components", [])
    if not isinstance(components, list) or not all(isinstance(c, dict) and isinstance(c.get("label"), str) for c in components):
        raise InputError("components must be a list of objects with a label", code="bad-manifest", where=where)
    for name in ("velocity", "openness"):
        if strange := [c[name] for c in components if not _is_number(c.get(name), is_optional=True)]:
            raise InputError(f"{name} {strange[0]!r:.80} is no number", code="bad-manifest", where=where)
    techniques = row.get("techniques") or []
    if not isinstance(techniques, list) or not all(isinstance(t, str) for t in techniques):
        raise InputError("techniques must be a list of names", code="bad-manifest", where=where)
    context = row.get("context_ms")
    if isinstance(context, dict) and not all(_is_number(context.get(k)) for k in ("pre", "post")):
        raise InputError("context_ms must hold the numbers pre and post", code="bad-manifest", where=where)
    full: dict[str, Any] = {name: row.get(name) for name in EVENT_FIELDS}
    full |= {
        "event_id": identity,
        "group_id": row.get("group_id") or session,
        "source_set": row.get("source_set") or "unknown",
        "is_synthetic": row.get("is_synthetic", False),
        "onset_time": float(onset),
        "components": [_upgraded_component(c) for c in components],
        "techniques": sorted(set(techniques)),
        "context_ms": {"pre": 80.0, "post": 200.0} if not isinstance(context, dict) else {k: float(context[k]) for k in ("pre", "post")},
        "mix_context": row.get("mix_context") or "unknown",
        "negative_example": row.get("negative_example", False),
        "metadata_ref": row.get("metadata_ref") or f"provenance:{session}",
        "extras": _EXTRAS.encode(extras),
    }
    return full


_EXTRAS = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_is_plain = lru_cache(maxsize=4096)(is_plain_path)  # the rows of a session name the same files


def _is_number(value: Any, *, is_optional: bool = False) -> bool:
    return (value is None and is_optional) or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _upgraded_component(component: Mapping[str, Any]) -> dict[str, Any]:
    full = {name: component.get(name) for name in COMPONENT_FIELDS}
    if full["dynamic_bucket"] is None:
        velocity = full["velocity"]
        full["dynamic_bucket"] = BUCKETS[int(bucket_ids(np.array([np.nan if velocity is None else velocity], dtype=np.float32))[0])]
    return full


@dataclass(frozen=True)
class Violation:
    """A value that breaks a rule of the schema. `row` counts from 1; `field` of a hit is `components[i].name`."""

    rule: str
    event_id: str
    row: int
    field: str
    value: str


def find_violations(frame: pl.DataFrame, taxonomy: Taxonomy, *, limit: int = 20) -> tuple[dict[str, int], list[Violation]]:
    """Broken rules of `spec/events.md` section 11: counts per rule, and the first `limit` of them in row order.

    Labels outside the taxonomy are not violations (they are counted, see `label_counts`).
    """
    row = frame.with_row_index("row", offset=1)
    hits = row.select("row", "event_id", "components", i=pl.int_ranges(pl.col("components").list.len()))
    hits = hits.explode("components", "i", empty_as_null=False, keep_nulls=False).unnest("components")
    empty = pl.col("components").list.len() == 0
    several = row.select("row", "techniques").filter(pl.col("techniques").list.len() > 1)  # few; sorting a list for every event is slow
    unsorted = several.filter(pl.col("techniques") != pl.col("techniques").list.unique().list.sort())["row"]
    outside = {name: [p for p in frame[name].unique().drop_nulls() if not is_plain_path(p)] for name in PATHS}
    velocity, openness = pl.col("velocity"), pl.col("openness")
    fits = pl.coalesce(
        pl.when(velocity.is_null()).then(pl.col("dynamic_bucket").is_in(["unknown", "ghost"])),
        *(pl.when(velocity.cast(pl.Float64) <= top + LIMIT_SLACK).then(pl.col("dynamic_bucket") == name) for name, top in BUCKET_LIMITS),
    )
    # rule: (field shown, what breaks it)
    event_rules = {
        "event_ids_unique": ("event_id", pl.col("event_id").is_duplicated()),
        "required_fields": ("", pl.any_horizontal([pl.col(c).is_null() for c in REQUIRED])),
        "onset_range": ("onset_time", ~pl.col("onset_time").is_between(0.0, DAY_S, closed="left")),
        "onset_whole_microseconds": (
            "onset_time",
            ((pl.col("onset_time") * 1e6).round() / 1e6 - pl.col("onset_time")).abs() > 1e-9,
        ),
        "offset_after_onset": ("offset_time", pl.col("offset_time") <= pl.col("onset_time")),
        "negative_is_empty": ("negative_example", empty != pl.col("negative_example")),
        "techniques_sorted": ("techniques", pl.col("row").is_in(unsorted.implode())),
        "mix_context": ("mix_context", ~pl.col("mix_context").is_in(MIX_CONTEXTS)),
        "split_hint": ("split_hint", ~pl.col("split_hint").is_in(SPLITS)),
        **{f"plain_{name}": (name, pl.col(name).is_in(paths)) for name, paths in outside.items() if paths},
        "metadata_ref": ("metadata_ref", pl.col("metadata_ref") != pl.lit("provenance:") + pl.col("session_id")),
    }
    hit_rules = {
        "velocity_range": ("velocity", ~velocity.is_between(0.0, 1.0)),
        "openness_range": ("openness", ~openness.is_between(0.0, 1.0)),
        "openness_on_hats": ("openness", openness.is_not_null() & ~pl.col("label").is_in(HIHATS_WITH_OPENNESS)),
        "dynamic_bucket": ("dynamic_bucket", ~pl.col("dynamic_bucket").is_in(BUCKETS) | ~fits),
        "strike_position": ("strike_position", ~pl.col("strike_position").is_in(STRIKES)),
    }
    counts: dict[str, int] = {}
    violations: list[Violation] = []
    for table, rules in ((row, event_rules), (hits, hit_rules)):
        counts |= table.select(broken.fill_null(False).sum().alias(rule) for rule, (_, broken) in rules.items()).row(0, named=True)
        for rule, (column, broken) in rules.items():
            bad = table.filter(broken.fill_null(False)).head(limit) if counts[rule] else table.clear()
            for found in bad.iter_rows(named=True):
                name = column or next(c for c in REQUIRED if found[c] is None)
                place = f"components[{found['i']}].{name}" if "i" in found else name
                violations.append(Violation(rule, str(found["event_id"]), found["row"], place, json.dumps(found[name], default=str)))
    order = list(counts)
    return counts, sorted(violations, key=lambda v: (v.row, order.index(v.rule)))[:limit]


def find_wrong_ids(frame: pl.DataFrame, sources: Sequence[str]) -> pl.Series:
    """Rows (from 0) of these datasets whose event id is not the one that session and onset give."""
    rows = frame.select("source_set", "session_id", "event_id", onset_us=(pl.col("onset_time") * 1e6).round().cast(pl.Int64, strict=False))
    wrong = [pl.Series("row", [], dtype=pl.UInt32)]
    for source_set in sources:
        own = rows.with_row_index("row").filter(pl.col("source_set") == source_set).drop_nulls()
        names = own["session_id"].unique(maintain_order=True)
        session = own["session_id"].cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
        due = _event_ids(source_set, names.to_list(), session, own["onset_us"].to_numpy())
        wrong.append(own.filter(own["event_id"] != due)["row"])
    return pl.concat(wrong).sort()


def hits_of(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """One row per hit: the named event columns and the component's fields. Negative rows vanish."""
    return frame.select(*columns, "components").explode("components", empty_as_null=False, keep_nulls=False).unnest("components")


def with_hits(frame: pl.DataFrame, hits: pl.Series) -> pl.DataFrame:
    """Events with other component structs: as many as `frame["components"]` holds, in the same order."""
    n_hits = frame["components"].list.len().to_numpy()
    return frame.with_columns(in_lists(hits.cast(COMPONENT_STRUCT), n_hits).alias("components"))


def in_lists(values: pl.Series, sizes: NDArray[np.integer[Any]]) -> pl.Series:
    """Values in lists of `sizes` values each, in their order. Nothing is grouped or copied: lists are values and where each ends.

    >>> in_lists(pl.Series([1, 2, 3]), np.array([2, 0, 1])).to_list()
    [[1, 2], [], [3]]
    """
    import pyarrow as pa

    ends = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=ends[1:])
    items = values.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pl.Series(ends).to_arrow(), items)))


def hits_with_onsets(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per hit of an event table: source_set, session_id, onset_s and the fields of the component.

    A hit's own onset is that of its event plus its entry of `offsets_us`, where the event has them.
    """
    events = frame.filter(~pl.col("negative_example"))
    rows = events.select("source_set", "session_id", "onset_time", "components", offset_us=component_offsets_us(events))
    rows = rows.explode("components", "offset_us", empty_as_null=False, keep_nulls=False).unnest("components")
    return rows.with_columns(onset_s=((pl.col("onset_time") * 1e6).round() + pl.col("offset_us")) / 1e6).drop("onset_time", "offset_us")


def component_offsets_us(frame: pl.DataFrame) -> pl.Series:
    """Offset of each component from its event's onset in microseconds, a list as long as `components`; from `extras.offsets_us`, else zeros."""
    sizes = frame["components"].list.len().fill_null(0).to_numpy().astype(np.int64)
    stated = frame["extras"].str.contains('"offsets_us"', literal=True).arg_true()  # one event in five; only these are parsed
    texts = frame["extras"].gather(stated).str.json_path_match("$.offsets_us").str.strip_chars("[]").str.split(",")
    told = texts.list.eval(pl.element().str.strip_chars().cast(pl.Int64, strict=False).fill_null(0))
    fits = (told.list.len() == pl.Series(sizes[stated.to_numpy()])).fill_null(False)
    event = stated.filter(fits).to_numpy()
    first, n = (np.cumsum(sizes) - sizes)[event], sizes[event]
    offsets = np.zeros(int(sizes.sum()), dtype=np.int64)
    place = np.repeat(first - np.cumsum(n) + n, n) + np.arange(int(n.sum()))
    offsets[place] = told.filter(fits).explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return in_lists(pl.Series(offsets), sizes)


def label_counts(frame: pl.DataFrame) -> dict[str, int]:
    """Hits by label, `drum_mix` left out, most frequent first."""
    counted = hits_of(frame).filter(pl.col("label") != DRUM_MIX).group_by("label").len().sort(["len", "label"], descending=[True, False])
    return dict(counted.iter_rows())


def unknown_labels(frame: pl.DataFrame, taxonomy: Taxonomy) -> dict[str, int]:
    """Hits whose label is neither canonical nor an alias."""
    return {label: n for label, n in label_counts(frame).items() if taxonomy.canonical(label) is None}


def sum_counts(rows: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum of several {code: count}, without zeros, sorted by name."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row)
    return {k: total[k] for k in sorted(total) if total[k]}
