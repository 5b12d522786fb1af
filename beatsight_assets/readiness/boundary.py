"""Does a hit survive at the edge of a streaming window?

Belongs here: the pack of hits near window edges, figures and rules of predictions on it. Does not belong here: making predictions.
Window k covers the half-open span [k·hop, k·hop + window).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.audio import find_audio
from beatsight_assets.errors import ConfigError
from beatsight_assets.events import read_events
from beatsight_assets.readiness.rows import THRESHOLD, Decisions, asked_for, decide
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.units import Milliseconds, keyed_order
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

VERSION = "1"
GATE = "boundary"
PACK_GATE = "boundary_pack"
EDGES = ("leading", "trailing")
NO_AUDIO = ("stem", "midi_only")  # inventory and performances without audio: nothing to predict on


@dataclass(frozen=True)
class PackOptions:
    """Windows, margin and choice of rows (`spec/gates.md` section 6.1). Without `split`: everything that is not train."""

    window_ms: Milliseconds = 2048.0
    hop_ms: Milliseconds = 512.0
    margin_ms: Milliseconds = 40.0
    edges: tuple[str, ...] = EDGES
    max_per_edge: int = 2000
    include_labels: tuple[str, ...] = ()
    exclude_labels: tuple[str, ...] = ()
    split: str | None = None
    seed: int = 0
    force: bool = False

    def checked(self) -> PackOptions:
        """The options, if they can find an edge.

        Raises
        ------
        ConfigError `bad-option`, `unknown-choice`
        """
        for edge in self.edges:
            if edge not in EDGES:
                raise ConfigError.unknown_choice("edge", edge, EDGES)
        if not (self.window_ms > 0 and self.hop_ms > 0 and self.margin_ms >= 0 and self.max_per_edge >= 1):
            raise ConfigError("window, hop and max-per-edge must be positive and margin not negative", code="bad-option")
        if not self.force and self.margin_ms >= self.hop_ms / 2:
            raise ConfigError(
                f"margin {self.margin_ms:g} ms is not below half the hop ({self.hop_ms:g} ms). Use --force to mean it", code="bad-option"
            )
        if not self.force and self.window_ms < self.hop_ms:
            raise ConfigError(
                f"window {self.window_ms:g} ms is shorter than the hop {self.hop_ms:g} ms. Use --force to mean it", code="bad-option"
            )
        return self


@dataclass(frozen=True)
class EdgeHits:
    """Hits near an edge: position in the input, edge (0 leading, 1 trailing), window, distance to the edge in microseconds."""

    onset: NDArray[np.int64]
    edge: NDArray[np.int64]
    window: NDArray[np.int64]
    distance_us: NDArray[np.int64]
    n_uncovered: int


def find_edges(onset_us: NDArray[np.int64], options: PackOptions) -> EdgeHits:
    """Edges near onsets [shape=(n,), microseconds >= 0], looking at every window that contains each of them."""
    window, hop, margin = (round(ms * 1000) for ms in (options.window_ms, options.hop_ms, options.margin_ms))
    last = onset_us // hop
    first = np.maximum(0, (onset_us - window) // hop + 1)
    found: list[tuple[NDArray[np.int64], ...]] = []
    for back in range(-(-window // hop) + 1):
        k = last - back
        inside = k >= first
        for edge, distance in ((0, onset_us - k * hop), (1, k * hop + window - onset_us)):
            at = np.flatnonzero(inside & (distance <= margin))
            found.append((at, np.full(len(at), edge, dtype=np.int64), k[at], distance[at]))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    order = np.lexsort((columns[2], columns[1], columns[0]))
    onsets, edges, windows, distances = (c[order] for c in columns)
    return EdgeHits(onsets, edges, windows, distances, int(np.count_nonzero(last < first)))


def make_pack(frame: pl.DataFrame, options: PackOptions = PackOptions()) -> tuple[pl.DataFrame, int]:
    """(rows of the pack, onsets that no window contains).

    `frame` : events. Rows come by edge, session and onset; per edge at most `max_per_edge`: those with the smallest
    sha256(`<seed>:<sample_id>`).
    """
    options.checked()
    labels = pl.col("components").list.eval(pl.element().struct.field("label").unique(maintain_order=True))
    events = frame.filter((pl.col("components").list.len() > 0) & ~pl.col("mix_context").is_in(NO_AUDIO))
    if options.include_labels:
        events = events.filter(pl.any_horizontal([labels.list.contains(x) for x in options.include_labels]))
    for label in options.exclude_labels:
        events = events.filter(~labels.list.contains(label))
    events = events.with_columns(onset_us=(pl.col("onset_time") * 1e6).round().cast(pl.Int64)).sort("source_set", "session_id", "onset_us")
    edges = find_edges(events["onset_us"].to_numpy(), options)
    rows = (
        events[edges.onset]
        .select("event_id", "session_id", "source_set", "group_id", "components", "audio_path", "onset_us")
        .with_columns(
            labels=labels,
            window_index=pl.Series(edges.window),
            window_size_ms=pl.lit(options.window_ms),
            hop_size_ms=pl.lit(options.hop_ms),
            edge=pl.Series([EDGES[i] for i in edges.edge], dtype=pl.String),
            distance_ms=pl.Series(edges.distance_us) / 1000.0,
            onset_ms=pl.col("onset_us") / 1000.0,
        )
    )
    rows = rows.with_columns(sample_id=pl.concat_str("event_id", "edge", "window_index", separator=":")).filter(
        pl.col("edge").is_in(options.edges)
    )
    parts = []
    for edge in EDGES:
        part = rows.filter(pl.col("edge") == edge)
        if part.height > options.max_per_edge:
            keys = pl.Series([keyed_order(options.seed, s) for s in part["sample_id"]])
            chosen = keys.arg_sort()[: options.max_per_edge].sort()
            part = part[chosen]
        parts.append(part)
    columns = ["sample_id", "event_id", "session_id", "source_set", "group_id", "labels", "window_index", "window_size_ms", "hop_size_ms", "edge",
               "distance_ms", "onset_ms", "audio_path"]  # fmt: skip
    return pl.concat(parts).select(columns), edges.n_uncovered


def judge_pack(rows: pl.DataFrame, edges: Sequence[str] = EDGES, inputs: Sequence[Artifact] = (), profile: str = "dev") -> Verdict:
    """Verdict `boundary_pack`: an empty edge fails."""
    counts = {edge: rows.filter(pl.col("edge") == edge).height for edge in edges}
    rule = Rule.at_least("both_edges", float(min(counts.values())), 1.0, "rows of the smaller edge")
    return Verdict(PACK_GATE, (rule,), tuple(inputs), dict(counts), {"both_edges": 1}, support={"rows": rows.height}, profile=profile)


@dataclass(frozen=True)
class Rates:
    """Precision, recall and F1, 0..1; None where nothing was predicted or nothing was there."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: float

    @classmethod
    def of(cls, tp: float, fp: float, fn: float) -> Rates:
        return cls(
            tp / (tp + fp) if tp + fp else None,
            tp / (tp + fn) if tp + fn else None,
            2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
            tp + fn,
        )

    @classmethod
    def mean(cls, rates: Sequence[Rates]) -> Rates:
        """Mean over classes with support; a class of which nothing was predicted has precision 0."""
        rated = [r for r in rates if r.support]
        if not rated:
            return cls(None, None, None, 0.0)
        precision, recall, f1 = (sum(getattr(r, name) or 0.0 for r in rated) / len(rated) for name in ("precision", "recall", "f1"))
        return cls(precision, recall, f1, sum(r.support for r in rated))


@dataclass(frozen=True)
class Scored:
    """Rates over some samples."""

    micro: Rates
    macro: Rates
    per_class: Mapping[str, Rates]
    n_samples: int


@dataclass(frozen=True)
class BoundaryFigures:
    """Rates over all samples and by edge."""

    overall: Scored
    edges: Mapping[str, Scored]
    n_missing: int
    n_ignored: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class BoundaryLimits:
    """Lowest recall, overall and on each edge."""

    macro_recall: float | None = None
    micro_recall: float | None = None


def measure(
    truth: pl.DataFrame, predictions: pl.DataFrame, *, thresholds: float | Mapping[str, float] = THRESHOLD, top_k: int | None = None
) -> BoundaryFigures:
    """Figures of predictions [columns of SAMPLE_SCHEMA] against the truth; a sample without a prediction counts as the empty set."""
    made = decide(truth, predictions, thresholds=thresholds, top_k=top_k)
    edge = made.samples["edge"].fill_null("").to_numpy()
    return BoundaryFigures(
        overall=_scored(made, np.ones(len(edge), dtype=bool)),
        edges={name: _scored(made, edge == name) for name in EDGES} if made.samples["edge"].is_not_null().any() else {},
        n_missing=len(made.missing),
        n_ignored=made.n_ignored,
        missing=made.missing[:3],
    )


def _scored(made: Decisions, rows: NDArray[np.bool_]) -> Scored:
    truth, predicted, weight = made.truth[rows], made.predicted[rows], made.weight[rows]
    tp, fp, fn = ((weight @ m.astype(np.float64)) for m in (truth & predicted, predicted & ~truth, truth & ~predicted))
    per_class = {c: Rates.of(float(tp[i]), float(fp[i]), float(fn[i])) for i, c in enumerate(made.classes)}
    return Scored(
        Rates.of(float(tp.sum()), float(fp.sum()), float(fn.sum())), Rates.mean(list(per_class.values())), per_class, int(rows.sum())
    )


def judge(figures: BoundaryFigures, limits: BoundaryLimits, *, inputs: Sequence[Artifact] = (), profile: str = "dev") -> Verdict:
    """Verdict `boundary`: the asked recall overall and, when the samples name their edge, on each edge."""
    rules = []
    reasons = []
    if figures.overall.micro.support == 0:
        reasons.append(Reason("nothing-to-judge", "no sample has a label"))
    if figures.n_missing:
        reasons.append(Reason("missing-prediction", f"{figures.n_missing} samples have no prediction, first {', '.join(figures.missing)}"))
    for name, limit in asked_for(limits).items():
        kind = name.removesuffix("_recall")
        parts = {"": figures.overall, **{f"[{edge}]": s for edge, s in figures.edges.items()}}
        rules += [Rule.at_least(f"{name}{suffix}", getattr(s, kind).recall, limit, f"{s.n_samples} samples") for suffix, s in parts.items()]
    flat = {
        f"{kind}_{field}": getattr(getattr(figures.overall, kind), field)
        for kind in ("macro", "micro")
        for field in ("precision", "recall", "f1")
    }
    return Verdict(
        GATE,
        tuple(rules),
        tuple(inputs),
        flat,
        asked_for(limits),
        tuple(reasons),
        {
            "samples": figures.overall.n_samples,
            **{f"samples_{e}": s.n_samples for e, s in figures.edges.items()},
            "labels": figures.overall.micro.support,
            "missing": figures.n_missing,
            "ignored": figures.n_ignored,
        },
        profile,
    )


def run(settings: Settings, options: PackOptions = PackOptions(), *, progress: Progress = silent) -> Report:
    """Stage `boundary_pack`: publish reports/readiness/boundary_pack/labels.jsonl with the verdict of that name.

    Only recordings whose audio is at hand are packed; the others are counted as `recordings_without_audio`.

    Raises
    ------
    ConfigError `bad-option`, `unknown-choice`
    InputError `missing-input`, `bad-manifest`, `path-escape`
    """
    options.checked()
    manifest, splits = settings.layout.annotated, settings.layout.splits
    audible, n_silent = _audible(settings, manifest)

    def work() -> Outcome:
        frame = read_events(manifest).join(audible, on=["source_set", "audio_path"], how="semi")
        table = pl.read_parquet(splits).select("group_id", "split").unique("group_id", keep="first", maintain_order=True)
        wanted = pl.col("split") == options.split if options.split else pl.col("split") != "train"
        rows, n_uncovered = make_pack(frame.join(table.filter(wanted), on="group_id", how="semi"), options)
        progress(f"{rows.height:,} hits near an edge")
        target = settings.layout.report("readiness", "boundary_pack") / "labels.jsonl"
        settings.store.publish(target, rows.write_ndjson().encode())
        inputs = [
            Artifact(role, settings.store.rel(p), settings.store.sha256(p)) for role, p in (("manifest", manifest), ("splits", splits))
        ]
        verdict = judge_pack(rows, options.edges, inputs, settings.profile)
        return Outcome(
            outputs=[("boundary_pack", target, rows.height)],
            figures={**verdict.figures, "uncovered": n_uncovered, "recordings_without_audio": n_silent},
            facts={"failures": verdict.failures},
            verdicts=[verdict],
        )

    asked: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(options).items()}
    asked |= {"profile": settings.profile, "audio": sha256(audible.write_csv().encode()).hexdigest()}
    return run_stage(settings, PACK_GATE, version=VERSION, options=asked, parents=[("manifest", manifest), ("splits", splits)], work=work)


def _audible(settings: Settings, manifest: Path) -> tuple[pl.DataFrame, int]:
    """(`source_set`, `audio_path` of the recordings whose audio is at hand, sorted; how many are not)."""
    named = read_events(manifest).select("source_set", "audio_path").drop_nulls().unique().sort("source_set", "audio_path")
    present = [
        source_set in settings.datasets and find_audio(settings.raw_roots(source_set), path) is not None
        for source_set, path in named.iter_rows()
    ]
    return named.filter(pl.Series(present, dtype=pl.Boolean)), len(present) - sum(present)
