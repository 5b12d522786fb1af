"""Manifests of any size from a seed: what benchmarks measure on and property tests start from.

Belongs here: events that look like those of real datasets (long and short sessions, class skew, every technique, tempo and meter changes,
hats with a pedal, copies, groups that occur in several datasets). Does not belong here: audio, or anything worth training on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.events import EVENT_SCHEMA, Hits, Session, assemble, openness_from_pedal
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets.units import rng_for

BATCH_EVENTS = 200_000  # made at once; what a generator holds in memory
MEDIAN_SESSION_EVENTS = 160  # Groove: 189,847 events in 992 takes
SESSIONS_PER_GROUP = 3
SPLIT_OF_TEN = ("train",) * 8 + ("val", "test")
# Hits of Groove and E-GMD by share, rounded; the rare ones are raised so that a small table holds them too.
VOICES = (
    *(Voice(x) for x in ("kick", "snare", "rimshot", "cross_stick", "hihat_closed", "hihat_open", "hihat_pedal", "hihat_foot_splash")),
    *(Voice(x) for x in ("ride_bow", "ride_bell", "ride_edge", "crash", "crash2", "splash", "china", "tom_high", "tom_mid", "tom_low")),
    *(Voice("crash", "crash_3"), Voice("tom_low", "floor_2"), Voice("cowbell"), Voice("tambourine"), Voice("snare", techniques=("drag",))),
)
SHARES = (20, 22, 4.5, 2, 17, 3, 10, 0.6, 9, 1.2, 0.5, 1.3, 0.7, 0.4, 0.4, 2, 1.5, 2.2, 0.2, 0.3, 0.3, 0.2, 0.2)
HATS = ("hihat_closed", "hihat_open")


@dataclass(frozen=True)
class Dataset:
    """One made dataset: its name, what is true of all its sessions, and how many of the events it holds."""

    name: str
    share: float
    mix_context: str
    is_synthetic: bool = False
    has_official_split: bool = False
    has_pedal: bool = True
    shares_groups: bool = False  # its performances are those of the first dataset, recorded again


DATASETS = (
    Dataset("made_kit", 0.25, "drum_only", has_official_split=True),
    Dataset("made_copy", 0.35, "drum_only", shares_groups=True),
    Dataset("made_mix", 0.3, "full_mix", is_synthetic=True, has_pedal=False),
    Dataset("made_room", 0.1, "overheads"),
)


@dataclass(frozen=True)
class Planted:
    """Faults in every table, as one in so many events; 0 = none.

    repeated : a row stands twice, equal in every column
    same_content : a row stands twice under two ids
    negative : a window that holds no hit
    unknown : a hit carries a label that no taxonomy knows
    """

    repeated: int = 2_000
    same_content: int = 5_000
    negative: int = 500
    unknown: int = 0


def made_events(dataset: Dataset, n_events: int, *, seed: int = 0, planted: Planted = Planted()) -> Iterator[pl.DataFrame]:
    """At least `n_events` events of a dataset in pieces of whole sessions, sorted by session and onset; equal arguments give equal rows.

    3 million take about 20 s on one core and never more than one piece of memory.
    """
    taxonomy = Taxonomy.shipped()
    first = n_made = 0
    while n_made < n_events:
        n = min(BATCH_EVENTS, n_events - n_made)
        rng = rng_for(seed, "made_events", dataset.name, str(first))
        batch = _sessions(dataset, first, n, rng)
        frame = _with_faults(assemble(dataset.name, batch, taxonomy).frame, planted, rng)
        first += len(batch)
        n_made += frame.height
        yield frame


def made_manifest(n_events: int, *, seed: int = 0, datasets: Sequence[Dataset] = DATASETS, planted: Planted = Planted()) -> pl.DataFrame:
    """Events of several datasets as one table, sorted as a merged manifest is. For sizes that fit into memory."""
    parts = [
        piece
        for d in sorted(datasets, key=lambda d: d.name)
        for piece in made_events(d, round(n_events * d.share), seed=seed, planted=planted)
    ]
    return pl.concat(parts, rechunk=True) if parts else EVENT_SCHEMA.to_frame()


def made_provenance(sessions: pl.DataFrame) -> pl.DataFrame:
    """Provenance of sessions (source_set, session_id, group_id): digests of audio and MIDI, facts, issues.

    Sessions of one group and one name in two datasets hold equal MIDI content, so they are joined by a split.
    """
    stem = pl.col("session_id").str.strip_suffix(".mid")
    content = pl.col("group_id") + "/" + stem.str.split("/").list.last()
    key = pl.concat_str("source_set", "session_id").hash(seed=0).cast(pl.String)
    return sessions.select("source_set", "session_id", "group_id").with_columns(
        hashes=pl.concat_list(
            pl.struct(path=stem + ".wav", sha256=key.str.zfill(64), bytes=pl.lit(1, pl.Int64)),
        ),
        facts=pl.concat_str(pl.lit('{"duration_seconds":60.0,"midi_content":"'), content, pl.lit('"}')),
        issues=pl.lit("{}"),
    )


def _sessions(dataset: Dataset, first: int, n_events: int, rng: np.random.Generator) -> list[tuple[Session, Hits]]:
    lengths = np.clip(rng.lognormal(np.log(MEDIAN_SESSION_EVENTS), 0.8, n_events // 60 + 4), 12, 4_000).astype(np.int64)
    n = int(np.searchsorted(np.cumsum(lengths), n_events)) + 1
    lengths = lengths[:n]
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    which = np.repeat(np.arange(n), lengths)
    tempo, changes = _tempi(n, ends, total, which, rng)
    meter = np.repeat(np.where(rng.random(n) < 0.85, 0, rng.integers(1, 3, n)), lengths)
    meter = np.where(changes & (rng.random(total) < 0.3), (meter + 1) % 3, meter)
    step_us = 15e6 / tempo * rng.choice([1.0, 1.0, 2.0, 2.0, 4.0, 0.5, 0.25], total) + rng.normal(0.0, 4_000.0, total)
    rolled = np.add.outer(rng.choice(max(total - 6, 1), max(1, total // 2_000)), np.arange(6)).ravel() % total  # six strokes, 60 ms apart
    step_us[rolled] = 60_000.0
    clock = np.cumsum(np.maximum(step_us, 200.0)).astype(np.int64)
    starts = ends - lengths
    onset_us = clock - clock[starts][which]
    voice = rng.choice(len(VOICES), total, p=np.array(SHARES) / sum(SHARES))
    voice[rolled] = VOICES.index(Voice("snare"))
    raw = np.where(rng.random(total) < 0.6, 90, rng.integers(0, 91, total)).astype(np.int32)
    raw = np.where(np.isin(voice, [VOICES.index(Voice(x)) for x in HATS]) & dataset.has_pedal, raw, -1).astype(np.int32)
    velocity = np.where(rng.random(total) < 0.01, np.nan, np.clip(rng.normal(70, 30, total), 1, 127).round() / 127).astype(np.float32)
    # every fourth hit falls together with the one before: kick under hat, crash over kick
    together = np.flatnonzero((rng.random(total) < 0.25) & (onset_us > 0))
    onset_us[together] = onset_us[together - 1] + rng.integers(0, 5_000, together.size)
    extras: list[dict[str, Any]] = [{}, {"bleed_level": "low"}, {"bleed_level": "high", "loudness": {"LUFS_i": -20.5}}]
    batch = []
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        part = slice(start, end)
        batch.append((
            _session(dataset, first + i, extras[(first + i) % 3 if dataset.mix_context == "overheads" else 0]),
            Hits(voices=VOICES, onset_us=onset_us[part], voice=voice[part], velocity=velocity[part], openness=openness_from_pedal(raw[part]),
                 openness_raw=raw[part], tempo_bpm=tempo[part], meters=("4/4", "3/4", "7/8"), meter=meter[part],
                 bar=(np.arange(end - start) // 16).astype(np.int32), beat=(np.arange(end - start) // 4 % 4).astype(np.int32)),
        ))  # fmt: skip
    return batch


def _session(dataset: Dataset, number: int, extras: dict[str, Any]) -> Session:
    group = number // SESSIONS_PER_GROUP
    owner = DATASETS[0].name if dataset.shares_groups and group % 4 else dataset.name  # three of four performances are known already
    name = f"{dataset.name}/{number:07}.mid"
    return Session(
        name,
        f"{owner}:{group:06}",
        drummer_id=f"made:drummer{group % 10}",
        kit_id=f"{dataset.name}:kit{number % 12}",
        is_synthetic=dataset.is_synthetic,
        audio_path=name.replace(".mid", ".wav"),
        midi_path=name,
        split_hint=SPLIT_OF_TEN[group % 10] if dataset.has_official_split else None,
        mix_context=dataset.mix_context,
        label_source="rendered_midi" if dataset.is_synthetic else "midi",
        extras=extras,
    )


def _tempi(
    n: int, ends: NDArray[np.int64], total: int, which: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Tempo of every hit in bpm, NaN where unknown is never made; and from where on it has changed in its session."""
    base = rng.integers(70, 180, n).astype(np.float64)
    at = ends - rng.integers(1, 200, n)
    changes = (np.arange(total) >= at[which]) & (rng.random(n) < 0.1)[which]
    factor = rng.choice([1.5, 0.5, 4 / 3, 1.05], n)
    return np.where(changes, (base * factor)[which], base[which]), changes


def _with_faults(frame: pl.DataFrame, planted: Planted, rng: np.random.Generator) -> pl.DataFrame:
    n = frame.height
    every = np.arange(n)

    def picked(one_in: int) -> NDArray[np.int64]:
        return np.sort(rng.choice(n, max(1, n // one_in), replace=False)) if one_in and n else np.empty(0, np.int64)

    negative = np.isin(every, picked(planted.negative))
    if negative.any():
        mask = pl.Series(negative)
        frame = frame.with_columns(
            components=pl.when(mask).then(pl.lit([], dtype=EVENT_SCHEMA["components"])).otherwise(pl.col("components")),
            techniques=pl.when(mask).then(pl.lit([], dtype=EVENT_SCHEMA["techniques"])).otherwise(pl.col("techniques")),
            negative_example=mask,
        )
    for at in picked(planted.unknown).tolist():
        row = frame["components"][at]
        if len(row):
            frame = frame.with_columns(_relabelled(frame["components"], at))
    twins = np.concatenate([every, picked(planted.repeated)])
    copies = picked(planted.same_content)
    order = np.concatenate([twins, copies])
    renamed = np.concatenate([np.zeros(twins.size, bool), np.ones(copies.size, bool)])
    by_time = np.argsort(order, kind="stable")
    frame = frame[order[by_time]]
    if not copies.size:
        return frame
    return frame.with_columns(
        event_id=pl.when(pl.Series(renamed[by_time]))
        .then(pl.col("event_id").str.replace("^.{8}", "ffffffff"))
        .otherwise(pl.col("event_id"))
    )


def _relabelled(components: pl.Series, at: int) -> pl.Series:
    rows = components[at].to_list()
    rows[0]["label"] = "gong"
    return pl.concat([components[:at], pl.Series("components", [rows], dtype=components.dtype), components[at + 1 :]]).alias("components")
