"""How close is one transcription to another: onset F within 20 and 50 ms, by class and over all classes.

Belongs here: reading the four forms of a transcription, both sides in the classes of a view. Does not belong here: matching onsets
(`model.scoring`, the one matcher), limits (`stage`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import store
from beatsight_assets.bsm import read_bsm
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import hits_with_onsets, read_events
from beatsight_assets.model.data import truth_of
from beatsight_assets.model.evaluate import coarse_columns
from beatsight_assets.model.scoring import FINE_TOLERANCE_MS, TOLERANCE_MS, Counts, Judged, Onsets, count_hits, drop_unknown, pool, to_us
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.transcribe import Hit
from beatsight_assets.transcribe.labels import NOTE_MAP, read_labels, read_midi

MAX_BYTES = 64 * 1024 * 1024  # far above the transcription of two hours
TOLERANCES_MS = (FINE_TOLERANCE_MS, TOLERANCE_MS)
VIEWS = ("drums18", "drums5")  # the product's classes, and the five families
SUFFIXES = (".bsm", ".mid", ".midi", ".txt", ".jsonl", ".parquet")
HITS_SCHEMA = pl.Schema(
    {"onset_s": pl.Float64, "label": pl.String, "velocity": pl.Float32, "openness": pl.Float32, "instrument_variant": pl.String}
)


@dataclass(frozen=True)
class Score:
    """Counts by view, tolerance in ms and class; and how many hits each side had."""

    counts: Mapping[str, Mapping[float, Mapping[str, Counts]]]
    n_reference: int
    n_estimate: int
    outside: Mapping[str, int]  # hits of either side whose label no class of the first view stands for

    def overall(self, view: str, tolerance_ms: float = TOLERANCE_MS) -> Counts:
        """Counts over all classes of a view, pooled."""
        return sum(self.counts[view][tolerance_ms].values(), Counts())

    def to_json(self) -> dict[str, Any]:
        """Figures of every view: `{view: {"50": {overall, per_class}}}`. Classes that neither side has are left out."""
        views = {
            view: {
                f"{tolerance:g}": {
                    "overall": self.overall(view, tolerance).to_json(),
                    "per_class": {name: c.to_json() for name, c in by_class.items() if c != Counts()},
                }
                for tolerance, by_class in by_tolerance.items()
            }
            for view, by_tolerance in self.counts.items()
        }
        return {"views": views, "n_reference": self.n_reference, "n_estimate": self.n_estimate, "outside_views": dict(self.outside)}


def read_hits(path: Path, taxonomy: Taxonomy, *, note_map: str = NOTE_MAP) -> list[Hit]:
    """Hits of a .bsm, .mid, .txt (Audacity) or .jsonl (events of one session) file, with canonical labels.

    Raises
    ------
    ConfigError `unknown-choice` : another suffix, or no such note map
    InputError : `missing-input`, or what the reader of the form says
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError.unknown_choice("form of a transcription", suffix, SUFFIXES, where=path.name)
    if suffix in (".jsonl", ".parquet"):
        return _read_event_hits(path, taxonomy)
    content = store.read_bytes(path, max_bytes=MAX_BYTES)
    if suffix == ".bsm":
        return list(read_bsm(content, taxonomy, where=path.name).hits)
    return read_labels(content, taxonomy, where=path.name) if suffix == ".txt" else read_midi(content, taxonomy, note_map=note_map)


def score(reference: Path, estimate: Path, taxonomy: Taxonomy, *, views: Sequence[str] = VIEWS, note_map: str = NOTE_MAP) -> Score:
    """Score of one file against another; `note_map` is that of MIDI files on either side.

    Raises
    ------
    as `read_hits`; ConfigError `unknown-choice` : no such view
    """
    return score_hits(
        read_hits(reference, taxonomy, note_map=note_map), read_hits(estimate, taxonomy, note_map=note_map), taxonomy, views=views
    )


def score_hits(
    reference: Sequence[Hit],
    estimate: Sequence[Hit],
    taxonomy: Taxonomy,
    *,
    views: Sequence[str] = VIEWS,
    coverage: Sequence[str] | None = None,
) -> Score:
    """Score in each view; hits are matched one to one within their class.

    The first view counts every hit, as the gate `evaluation` does. In the others, hits of one class within 30 ms are one hit of it.
    What the reference cannot know is not counted: classes outside its `coverage`, and classes near a hit of which it names the family only.
    """
    base = taxonomy.view(views[0])
    truth = truth_of(_to_frame(reference), base, taxonomy, coverage)
    said = truth_of(_to_frame(estimate), base, taxonomy, None)
    real = Onsets(to_us(truth.onset_s), truth.class_index)
    heard = Onsets(to_us(said.onset_s), said.class_index)
    heard = drop_unknown(heard, truth.known, to_us(truth.unknown_onset_s), truth.unknown_class, int(TOLERANCE_MS * 1000))
    counts: dict[str, dict[float, dict[str, Counts]]] = {}
    for name in views:
        view = taxonomy.view(name)
        columns = coarse_columns(base, view)
        judged = Judged(real, heard) if name == base.name else Judged(real.mapped(columns), heard.mapped(columns))
        counts[name] = {
            tolerance: dict(zip(view.classes, map(pool, count_hits([judged], len(view.classes), tolerance)[0]), strict=True))
            for tolerance in TOLERANCES_MS
        }
    outside: dict[str, int] = {}
    for hit in (*reference, *estimate):
        if hit.label not in base.class_of:
            outside[hit.label] = outside.get(hit.label, 0) + 1
    return Score(counts, len(reference), len(estimate), dict(sorted(outside.items())))


def _to_frame(hits: Sequence[Hit]) -> pl.DataFrame:
    rows = [(h.onset_us / 1e6, h.label, h.velocity, h.openness, h.variant) for h in hits]
    return pl.DataFrame(rows, schema=HITS_SCHEMA, orient="row")


def _read_event_hits(path: Path, taxonomy: Taxonomy) -> list[Hit]:
    frame = read_events(path)
    sessions = frame["session_id"].unique().sort().to_list()
    if len(sessions) > 1:
        raise InputError(f"{len(sessions)} sessions; a transcription is one. Export one session", code="bad-manifest", where=path.name)
    hits = []
    rows = hits_with_onsets(frame).select("onset_s", "label", "velocity", "openness", "instrument_variant")
    for onset_s, label, velocity, openness, variant in rows.iter_rows():
        component, implied = taxonomy.canonical(label) or (label, None)
        hits.append(Hit(round(onset_s * 1e6), component, velocity, openness, variant or implied))
    return sorted(hits, key=lambda h: (h.onset_us, h.label))
