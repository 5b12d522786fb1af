"""Which gesture is being played: tags per event, found in the onset order of one session (`spec/events.md` section 9).

Belongs here: the rules of that table that look at events. Does not belong here: what only the source sees (chokes from aftertouch,
strokes an annotation names) and what the crash step decides; such tags stay on the events as they are.

Everything works on flat arrays over hits. A plain Python loop with the same rules is the oracle in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import safeyaml
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import HUMAN_STROKES
from beatsight_assets.safejson import parse_json
from beatsight_assets.settings import TechniqueConfig, TechniquesFile
from beatsight_assets.store import read_bytes

VERSION = "2"
MAX_CATALOGUE_BYTES = 1 << 20  # as YAML: a catalogue is a page
SLACK = 1e-6  # on velocity, openness and ratio, so that values stored as f32 and f64 agree
HALF_OPEN_FROM, HALF_OPEN_BELOW = 0.35, 0.8  # openness, 0 closed .. 1 open
BARK_WINDOW_US = 200_000  # open to closed, inclusive
ROLL_STROKES, ROLL_GAP_US = 5, 80_000
BURST_KICKS, BURST_GAP_US = 4, 130_000
DRAG_GAP_US, FLAM_GAP_US = 70_000, 50_000
GRACE_RATIO = 0.7  # a grace stroke is at most this share of the main stroke's velocity
LAYER_WINDOW_US = 30_000  # two cymbals of one family
TEMPO_TOLERANCE = 0.01  # a change up to 1 % is none; a ratio within 1 % of a simple one is that one
SIMPLE_RATIOS = np.array([1 / 2, 2 / 3, 3 / 4, 4 / 3, 3 / 2, 2.0])

LABEL_TAGS = {
    "rimshot": "rimshot",
    "cross_stick": "cross_stick",
    "hihat_pedal": "hihat_foot_chick",
    "hihat_foot_splash": "hihat_foot_splash",
    "ride_bell": "ride_bell_accent",
}
SNARE = ("snare", "rimshot")
DRUMS = (SNARE, ("tom_high",), ("tom_mid",), ("tom_low",))  # what counts as one drum for strokes
STROKES = ("drag", "flam", "roll")  # what people mark (`events.HUMAN_STROKES`)
LAYERED_FAMILIES = (("crash", "crash2"), ("china",), ("splash",))
LABELS = (  # every label a rule asks for
    *("kick", "snare", "rimshot", "cross_stick", "hihat_closed", "hihat_open", "hihat_pedal", "hihat_foot_splash", "ride_bell"),
    *("crash", "crash2", "splash", "china", "tom_high", "tom_mid", "tom_low"),
)

Index = NDArray[np.int64]
Tags = Iterator[tuple[str, Index]]


@dataclass(frozen=True)
class Timeline:
    """Events in (session, onset) order with their hits in flat columns; stem rows are left out, they are inventory and no gesture.

    row : position of each event in the frame [shape=(n_events,)]
    session : run number, equal for events of one session [shape=(n_events,)]
    onset_us : whole microseconds [shape=(n_events,)]
    meter, tempo : as in the manifest, in event order
    hit_event : which event a hit belongs to, rising [shape=(n_hits,)]
    hits : the structs of `components`, in the order of `hit_event`
    is_marked : a person marked the snare strokes of this session [shape=(n_events,)]
    """

    row: Index
    session: Index
    onset_us: Index
    meter: pl.Series
    tempo: pl.Series
    hit_event: Index
    hits: pl.Series
    is_marked: NDArray[np.bool_]

    @classmethod
    def of(cls, events: pl.DataFrame) -> Timeline:
        keys = events.select(
            pl.col("source_set"),
            pl.col("session_id"),
            (pl.col("onset_time") * 1e6).round().cast(pl.Int64).alias("onset_us"),
            pl.col("event_id"),
            pl.col("meter"),
            pl.col("tempo_bpm"),
            pl.col("mix_context").eq("stem").fill_null(False).alias("stem"),
            pl.col("extras").str.contains(f'"{HUMAN_STROKES}"', literal=True).fill_null(False).alias("marked"),
        ).with_row_index("row")
        keys = keys.filter(~pl.col("stem"))
        starts = _session_starts(keys)
        if not _is_ordered(keys, starts):
            keys = keys.sort("source_set", "session_id", "onset_us", "event_id")
            starts = _session_starts(keys)
        row = keys["row"].to_numpy().astype(np.int64)
        place = np.full(events.height, -1, dtype=np.int64)
        place[row] = np.arange(row.size)
        components = events["components"]
        hit_event = place[np.repeat(np.arange(events.height), components.list.len().to_numpy())]
        hits = components.explode(empty_as_null=False, keep_nulls=False)
        if row.size != events.height or not np.array_equal(row, np.arange(row.size)):
            order = np.argsort(hit_event, kind="stable")
            order = order[np.searchsorted(hit_event[order], 0) :]  # hits of stem rows have no event here
            hit_event, hits = hit_event[order], hits.rechunk().gather(order)
        onset_us, marked = keys["onset_us"].to_numpy(), keys["marked"].to_numpy()
        return cls(row, np.cumsum(starts) - 1, onset_us, keys["meter"], keys["tempo_bpm"], hit_event, hits, marked)

    @cached_property
    def label(self) -> NDArray[np.int16]:
        """Index into LABELS, -1 for a label no rule asks for [shape=(n_hits,)]."""
        codes = self.hits.struct.field("label").cast(pl.Enum(LABELS), strict=False).to_physical()
        return codes.cast(pl.Int16).fill_null(-1).to_numpy()

    @cached_property
    def velocity(self) -> NDArray[np.float64]:
        """0..1, NaN where unknown [shape=(n_hits,)]."""
        return self.hits.struct.field("velocity").cast(pl.Float64).fill_null(np.nan).to_numpy()

    def is_any(self, labels: tuple[str, ...]) -> NDArray[np.bool_]:
        """Which hits carry one of the labels [shape=(n_hits,)]."""
        found = self.label == LABELS.index(labels[0])
        for label in labels[1:]:
            found |= self.label == LABELS.index(label)
        return found

    def events_with(self, labels: tuple[str, ...]) -> Index:
        """Events holding one of the labels, each once, in order."""
        return _once(self.hit_event[self.is_any(labels)])


def find_techniques(events: pl.DataFrame) -> NDArray[np.uint32]:
    """Inferred tags of each row as bits in the order of INFERRED [shape=(n_rows,)]; independent of row order and of other sessions."""
    timeline = Timeline.of(events)
    tags = np.zeros(events.height, dtype=np.uint32)
    for rule in RULES:
        for name, index in rule(timeline):
            tags[timeline.row[index]] |= np.uint32(1 << INFERRED.index(name))
    return tags


def with_techniques(events: pl.DataFrame, *, recompute: bool = False) -> pl.DataFrame:
    """Events with inferred tags added to `techniques` (sorted, unique); running it twice changes nothing.

    recompute : first remove every tag this module can infer, stated ones of the same name included, save snare strokes that a person marked
    """
    bits = find_techniques(events)
    stated = events["techniques"].fill_null([])
    marked = events["extras"].str.contains(f'"{HUMAN_STROKES}"', literal=True).fill_null(False)
    combined = pl.DataFrame({"stated": stated.list.join("\n"), "bits": bits, "marked": marked})
    kinds = combined.unique(maintain_order=True).with_row_index("kind")
    lists = [_tag_list(text, value, recompute, kept) for text, value, kept in kinds.select("stated", "bits", "marked").iter_rows()]
    kind = combined.join(kinds, on=["stated", "bits", "marked"], how="left", maintain_order="left")["kind"]
    return events.with_columns(pl.Series("techniques", lists, dtype=pl.List(pl.String)).gather(kind))


def _tag_list(stated: str, bits: int, recompute: bool, is_marked: bool) -> list[str]:
    removed = set(INFERRED) - (set(STROKES) if is_marked else set()) if recompute else set()
    kept = {t for t in stated.split("\n") if t} - removed
    return sorted(kept | {name for i, name in enumerate(INFERRED) if bits >> i & 1})


def label_tags(t: Timeline) -> Tags:
    """Tags that follow from the label, the bucket or the openness of one hit."""
    for label, name in LABEL_TAGS.items():
        yield name, t.hit_event[t.label == LABELS.index(label)]
    ghost = t.hits.struct.field("dynamic_bucket").eq("ghost").fill_null(False).to_numpy()
    yield "ghost_note", t.hit_event[ghost & t.is_any(("snare", "rimshot"))]
    open_hit = np.flatnonzero(t.is_any(("hihat_open",)))
    openness = t.hits.struct.field("openness").gather(open_hit).cast(pl.Float64).fill_null(np.nan).to_numpy()
    half = (openness >= HALF_OPEN_FROM - SLACK) & (openness < HALF_OPEN_BELOW - SLACK)
    yield "hihat_half_open", t.hit_event[open_hit[half]]


def find_barks(t: Timeline, window_us: int = BARK_WINDOW_US) -> tuple[Index, Index]:
    """Open hats and the closings that choke them: the next hat event is closed or pedal and comes within the window, inclusive.

    A later closing never gets the same open hat (it is used, or it was already too far away), so only neighbours among
    the session's hat events can be a bark.
    """
    opened = np.zeros(t.row.size, dtype=bool)
    opened[t.events_with(("hihat_open",))] = True
    hats = t.events_with(("hihat_open", "hihat_closed", "hihat_pedal"))
    first, second = hats[:-1], hats[1:]
    near = (t.session[first] == t.session[second]) & (t.onset_us[second] - t.onset_us[first] <= window_us)
    bark = near & opened[first] & ~opened[second]
    return first[bark], second[bark]


def barks(t: Timeline) -> Tags:
    """Both events of each bark."""
    yield "hihat_bark", np.concatenate(find_barks(t))


def strokes(t: Timeline) -> Tags:
    """Rolls, then drags, then flams of each drum; a stroke is used once."""
    for drum in DRUMS:
        hit = np.flatnonzero(t.is_any(drum))
        if drum == SNARE:
            hit = hit[~t.is_marked[t.hit_event[hit]]]  # annotation beats inference
        event = t.hit_event[hit]
        first = np.flatnonzero(_changes(event))
        velocity = np.fmax.reduceat(t.velocity[hit], first) if first.size else t.velocity[hit]  # the louder of two hits in one event
        event = event[first]
        rolled = _in_run(t, event, ROLL_GAP_US, ROLL_STROKES)
        yield "roll", event[rolled]
        free = ~rolled
        for name, n_strokes, gap_us in (("drag", 3, DRAG_GAP_US), ("flam", 2, FLAM_GAP_US)):
            starts = _figures(t, event, velocity, free, n_strokes, gap_us)
            main = starts + n_strokes - 1
            graces = (starts[:, None] + np.arange(n_strokes - 1)).ravel()
            free[main] = free[graces] = False
            yield name, event[main]
            yield "grace_note", event[graces]


def kick_bursts(t: Timeline) -> Tags:
    """Runs of four or more kicks."""
    kicks = t.events_with(("kick",))
    yield "double_kick_burst", kicks[_in_run(t, kicks, BURST_GAP_US, BURST_KICKS)]


def layered_cymbals(t: Timeline) -> Tags:
    """Two different pieces of one cymbal family close together, in one event or in two."""
    for family in LAYERED_FAMILIES:
        hit = np.flatnonzero(t.is_any(family))
        event = t.hit_event[hit]
        variant = t.hits.struct.field("instrument_variant").gather(hit).rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
        piece = variant * len(LABELS) + t.label[hit]
        runs = np.cumsum(_changes(t.session[event]) | _changes(piece)) - 1  # neighbours of one piece in one session
        first = np.flatnonzero(_changes(runs))
        last = np.append(first[1:], hit.size) - 1
        near = np.zeros(hit.size, dtype=bool)
        for other, exists in ((first[runs] - 1, first[runs] > 0), (last[runs] + 1, last[runs] < hit.size - 1)):
            neighbour = event[np.where(exists, other, 0)]  # the nearest hit of another piece before or after
            same = t.session[neighbour] == t.session[event]
            near |= exists & same & (np.abs(t.onset_us[neighbour] - t.onset_us[event]) <= LAYER_WINDOW_US)
        yield "multi_cymbal_same_class", event[near]


def time_changes(t: Timeline) -> Tags:
    """Changes of meter and tempo against the last event of the session where it was known."""
    known = np.flatnonzero(t.meter.is_not_null().to_numpy())
    meter = t.meter.gather(known)
    if known.size:
        differs = (meter != meter.shift(1)).fill_null(False).to_numpy() & ~_changes(t.session[known])
        yield "variable_meter", known[differs]
    known = np.flatnonzero(t.tempo.is_not_null().to_numpy())
    bpm = t.tempo.gather(known).to_numpy()
    moved = 1 + np.flatnonzero((bpm[1:] != bpm[:-1]) & (t.session[known[1:]] == t.session[known[:-1]]))
    ratio = bpm[moved] / bpm[moved - 1]
    simple = (np.abs(ratio[:, None] / SIMPLE_RATIOS - 1.0) <= TEMPO_TOLERANCE + SLACK).any(axis=1)
    yield "metric_modulation", known[moved[simple]]
    yield "tempo_change", known[moved[~simple & (np.abs(ratio - 1.0) > TEMPO_TOLERANCE + SLACK)]]


RULES = (label_tags, barks, strokes, kick_bursts, layered_cymbals, time_changes)
INFERRED = (
    *sorted(LABEL_TAGS.values()),
    *("double_kick_burst", "drag", "flam", "ghost_note", "grace_note", "hihat_bark", "hihat_half_open", "metric_modulation"),
    *("multi_cymbal_same_class", "roll", "tempo_change", "variable_meter"),
)


def catalogue(file: TechniquesFile) -> Mapping[str, TechniqueConfig]:
    """Techniques by id, in file order.

    Raises
    ------
    ConfigError `bad-config` : an id or alias stands for two techniques, or the ids marked `inferred` are not those of INFERRED
    """
    owner: dict[str, str] = {}
    for technique in file.techniques:
        for name in (technique.id, *technique.aliases):
            known = owner.setdefault(name.casefold(), technique.id)
            if known != technique.id or (name == technique.id and [t.id for t in file.techniques].count(name) > 1):
                raise ConfigError(
                    f"{name!r} stands for {known} and {technique.id}; names are unique", code="bad-config", where="configs/techniques.yaml"
                )
    inferred = {t.id for t in file.techniques if t.inferred}
    if inferred != set(INFERRED):
        odd = ", ".join(sorted(inferred ^ set(INFERRED)))
        raise ConfigError(
            f"`inferred` must be true for what the platform finds itself, and only there: {odd}",
            code="bad-config",
            where="configs/techniques.yaml",
        )
    return {t.id: t for t in file.techniques}


def read_names(path: Path) -> tuple[str, ...]:
    """Technique ids of a catalogue file, in file order, each once: YAML, JSON (`{"techniques": [...]}` or a bare list, items text or
    objects with `id`) or text (one name per line, `#` starts a comment, blanks and hyphens become `_`). A folder: its techniques.yaml,
    else techniques.json, else techniques.txt.

    Raises
    ------
    ConfigError `missing-catalogue` : no such file, or nothing in it; `bad-config` : an item without a usable id
    """
    files = [path / f"techniques.{suffix}" for suffix in ("yaml", "json", "txt")] if path.is_dir() else [path]
    found = next((f for f in files if f.is_file()), None)
    where = path.name
    if found is None:
        raise ConfigError("there is no technique catalogue. Give a YAML, JSON or text file", code="missing-catalogue", where=where)
    if found.suffix in (".yaml", ".yml", ".json"):
        try:
            data = (
                parse_json(read_bytes(found, max_bytes=MAX_CATALOGUE_BYTES), where=found.name)
                if found.suffix == ".json"
                else safeyaml.read_yaml(found, name=found.name).data
            )
        except InputError as error:
            raise ConfigError(error.message, code="bad-config", where=error.where) from error
        items = data.get("techniques") if isinstance(data, dict) else data
        if not isinstance(items, list):
            raise ConfigError("a catalogue is a list, or an object with a list `techniques`", code="bad-config", where=found.name)
        names = [item.get("id") if isinstance(item, dict) else item for item in items]
    else:
        text = read_bytes(found, max_bytes=MAX_CATALOGUE_BYTES).decode("utf-8-sig", errors="replace")
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        names = [re.sub(r"[\s-]+", "_", line).lower() for line in lines if line]
    for i, name in enumerate(names):
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigError(f"item {i + 1} is {name!r}; an id is a lower-case word", code="bad-config", where=found.name)
    if not names:
        raise ConfigError("the technique catalogue is empty", code="missing-catalogue", where=found.name)
    return tuple(dict.fromkeys(str(name) for name in names))


def count_strangers(events: pl.DataFrame, known: Collection[str]) -> dict[str, int]:
    """Events by technique tag that is not in a catalogue, sorted by name."""
    tags = events["techniques"].explode(empty_as_null=False, keep_nulls=False)
    return dict(tags.filter(~tags.is_in(list(known))).value_counts().sort("techniques").iter_rows())


def _session_starts(keys: pl.DataFrame) -> NDArray[np.bool_]:
    """True at the first row of each run of one session [shape=(n,)]."""
    starts = keys.select(
        (pl.col("session_id").ne_missing(pl.col("session_id").shift(1))) | (pl.col("source_set").ne_missing(pl.col("source_set").shift(1)))
    )
    found = starts.to_series().to_numpy().copy()
    found[:1] = True
    return found


def _is_ordered(keys: pl.DataFrame, starts: NDArray[np.bool_]) -> bool:
    """Each session is one run and its onsets rise."""
    onset_us = keys["onset_us"].to_numpy()
    rises = bool((starts[1:] | (np.diff(onset_us) > 0)).all())
    return rises and keys.filter(starts).select("source_set", "session_id").n_unique() == int(starts.sum())


def _changes(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """True where a value differs from the one before; true for the first."""
    return np.append(np.ones(min(values.size, 1), dtype=bool), values[1:] != values[:-1])


def _once(rising: Index) -> Index:
    return rising[_changes(rising)]


def _close(t: Timeline, event: Index, gap_us: int) -> NDArray[np.bool_]:
    """Whether each event follows the one before in its session within the gap [shape=(n - 1,)]."""
    return (np.diff(t.onset_us[event]) <= gap_us) & (t.session[event[1:]] == t.session[event[:-1]])


def _in_run(t: Timeline, event: Index, gap_us: int, at_least: int) -> NDArray[np.bool_]:
    """Which of the events stand in a run of close neighbours that is long enough [shape=(n,)]."""
    if event.size == 0:
        return np.zeros(0, dtype=bool)
    run = np.cumsum(np.append(True, ~_close(t, event, gap_us))) - 1
    return np.bincount(run)[run] >= at_least


def _figures(t: Timeline, event: Index, velocity: NDArray[np.float64], free: NDArray[np.bool_], n_strokes: int, gap_us: int) -> Index:
    """First strokes of figures of `n_strokes`, taken left to right, that end in a main stroke louder than its graces."""
    n_places = max(event.size - n_strokes + 1, 0)
    good = np.ones(n_places, dtype=bool)
    close = _close(t, event, gap_us)
    main = velocity[n_strokes - 1 :][:n_places]
    for i in range(n_strokes):
        good &= free[i : i + n_places]
        if i < n_strokes - 1:
            good &= close[i : i + n_places] & (velocity[i : i + n_places] <= GRACE_RATIO * main + SLACK)  # NaN: unknown, no figure
    starts, next_free = [], 0
    for start in np.flatnonzero(good).tolist():
        if start >= next_free:
            starts.append(start)
            next_free = start + n_strokes
    return np.array(starts, dtype=np.int64)
