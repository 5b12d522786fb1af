"""Which crash is which: `crash` or `crash2` for crashes whose dataset does not say, from their names or their sound (`spec/tools.md` T5).

Belongs here: the three ways to tell, the stage `crash_mapping` (manifest/crash_mapping.json, rule `crash_coverage`, which warns), applying a
mapping to events. Does not belong here: how a crash sounds (`crash_embeddings`).
A dataset in which `crash2` occurs says itself which crash it means; its labels are never changed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import COMPONENT_STRUCT, Manifest
from beatsight_assets.manifest.crash_embeddings import CRASHES, crash_events
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.taxonomy import UNSPECIFIED, Taxonomy
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE = "crash_mapping"
VERSION = "1"
SCHEMA = "beatsight.crash_mapping/1"
GAP_SHARE = 0.25  # of the range of centroids: a gap this wide splits a session whatever it is in Hz
MIN_COVERAGE = 0.5  # of the crash events; below it the rule `crash_coverage` warns
TECHNIQUE = "crash_dual_label"
WORDS = {  # whole tokens of a variant or of a crash technique
    **dict.fromkeys(("1", "high", "bright", "primary"), "crash"),
    **dict.fromkeys(("2", "low", "dark", "secondary"), "crash2"),
}
STATED, VARIANT, BY_TECHNIQUE, CENTROID = "stated", "variant", "technique", "centroid"
CONFIDENCE = {VARIANT: 1.0, BY_TECHNIQUE: 0.9}


@dataclass(frozen=True)
class AssignOptions:
    """min_events : crashes of a session to split it; min_cluster : on either side; min_gap_hz : between the sides."""

    min_events: int = 8
    min_cluster: int = 3
    min_gap_hz: float = 200.0


@dataclass(frozen=True)
class Split:
    """Where a session's crashes fall into two: the lower `n_low` by centroid, the gap above them, what it is of the range."""

    n_low: int
    gap_hz: float
    share: float


@dataclass
class CrashMapping:
    """What was decided; `to_json` is the file."""

    n_crashes: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def coverage(self) -> float | None:
        return self.methods.total() / self.n_crashes if self.n_crashes else None

    def to_json(self) -> dict[str, Any]:
        summary = {
            "total_crash_events": self.n_crashes,
            "assigned_events": self.methods.total(),
            "coverage": self.coverage,
            "methods": dict(sorted(self.methods.items())),
        }
        return {"schema": SCHEMA, "summary": summary, "events": self.events, "sessions": self.sessions}


def label_of_words(text: str) -> str | None:
    """The crash that a variant or a technique names; None when it names none or both. Whole tokens: `note_52` is not `_2`, `yellow` not low.

    >>> label_of_words("crash_2"), label_of_words("Low-Crash"), label_of_words("note_52"), label_of_words("yellow"), label_of_words("high_low")
    ('crash2', 'crash2', None, None, None)
    """
    found = {WORDS[w] for w in re.split(r"[^a-z0-9]+", text.casefold()) if w in WORDS}
    return found.pop() if len(found) == 1 else None


def split_centroids(centroid_hz: np.ndarray[Any, Any], options: AssignOptions) -> Split | None:
    """The one split of a session's centroids [Hz, any order]: at the largest gap that leaves `min_cluster` on either side; None without one."""
    values = np.sort(np.asarray(centroid_hz, dtype=np.float64))
    if len(values) < max(options.min_events, 2 * options.min_cluster):
        return None
    gaps = np.diff(values)
    first, last = options.min_cluster - 1, len(values) - options.min_cluster
    at = first + int(np.argmax(gaps[first:last]))
    gap, spread = float(gaps[at]), float(values[-1] - values[0])
    if not gap > 0 or (gap < options.min_gap_hz - 1e-6 and gap < GAP_SHARE * spread - 1e-6):
        return None
    return Split(at + 1, gap, gap / spread)


def assign(crashes: pl.DataFrame, embeddings: pl.DataFrame, taxonomy: Taxonomy, options: AssignOptions = AssignOptions()) -> CrashMapping:
    """Decide every crash event that can be decided: its dataset says it, its variant, its technique, else the sound within its session.

    Parameters
    ----------
    crashes : `crash_embeddings.crash_events`; embeddings : event_id, spectral_centroid
    """
    made = CrashMapping()
    rows = []
    for key, source_set, session_id, _, _, components, techniques in crashes.iter_rows():
        hits = [
            (named[0], named[1] or c["instrument_variant"])
            for c in components
            if (named := taxonomy.canonical(c["label"])) and named[0] in CRASHES
        ]
        if hits := [h for h in hits if h[1] != UNSPECIFIED]:
            rows.append((key, source_set, session_id, hits, techniques))
    made.n_crashes = len(rows)
    telling = {source_set for _, source_set, _, hits, _ in rows if any(label == "crash2" for label, _ in hits)}
    centroid = dict(embeddings.filter(pl.col("spectral_centroid").is_finite()).select("event_id", "spectral_centroid").iter_rows())
    open_: dict[tuple[str, str], list[str]] = {}
    for key, source_set, session_id, hits, techniques in rows:
        if source_set in telling or len(hits) > 1:
            made.methods[STATED] += 1
            continue
        by_variant = label_of_words(hits[0][1] or "")
        by_technique = {label_of_words(t) for t in techniques if "crash" in t.casefold().split("_") and label_of_words(t)}
        if by_variant:
            _decide(made, key, by_variant, VARIANT, CONFIDENCE[VARIANT], session_id, f"variant {hits[0][1]}")
        elif len(by_technique) == 1:
            label = str(by_technique.pop())
            _decide(made, key, label, BY_TECHNIQUE, CONFIDENCE[BY_TECHNIQUE], session_id, "technique")
        else:
            open_.setdefault((source_set, session_id), []).append(key)
    for (source_set, session_id), keys in sorted(open_.items()):
        heard = [k for k in keys if k in centroid]
        values = np.array([centroid[k] for k in heard])
        found = split_centroids(values, options)
        made.sessions[f"{source_set}/{session_id}"] = {
            "events": len(keys), "embedded": len(heard), "split": None if found is None else vars(found) | {"gap_hz": round(found.gap_hz, 3), "share": round(found.share, 6)},
        }  # fmt: skip
        if found is None:
            continue
        low = {heard[i] for i in np.argsort(values, kind="stable")[: found.n_low]}
        for k in heard:
            note = f"centroid {centroid[k]:.0f} Hz, gap {found.gap_hz:.0f} Hz"
            _decide(made, k, "crash2" if k in low else "crash", CENTROID, round(min(1.0, found.share), 6), session_id, note)
    made.events = dict(sorted(made.events.items()))
    return made


def _decide(made: CrashMapping, key: str, label: str, method: str, confidence: float, session_id: str, notes: str) -> None:
    made.methods[method] += 1
    made.events[key] = {"label": label, "method": method, "confidence": confidence, "session_id": session_id, "notes": notes}


def read_mapping(path: Path) -> dict[str, str]:
    """{event_id: crash or crash2} of a mapping file.

    Raises
    ------
    InputError `missing-input`, `bad-metadata`
    """
    if not path.is_file():
        raise InputError("file does not exist. Run: beatsight events crash-assign", code="missing-input", where=str(path))
    found = store.read_json(path)
    events = found.get("events") if isinstance(found, dict) else None
    if not isinstance(events, dict) or not all(isinstance(v, dict) and v.get("label") in CRASHES for v in events.values()):
        raise InputError(
            "not a crash mapping: `events` must be {event_id: {label: crash or crash2, ..}}", code="bad-metadata", where=str(path)
        )
    return {key: value["label"] for key, value in events.items()}


def with_crash_variants(events: pl.DataFrame, mapping: Mapping[str, str]) -> tuple[pl.DataFrame, int]:
    """Events whose single crash has the label of the mapping, and how many changed; those get the technique `crash_dual_label`.

    Labels are canonical (`aliases`). A second run changes nothing.
    """
    rows = np.flatnonzero(events["event_id"].is_in(list(mapping)).to_numpy()) if mapping else np.empty(0, np.int64)
    changed, components, techniques = [], [], []
    for row, key, found, tags in zip(rows.tolist(), events["event_id"][rows], events["components"][rows].to_list(), events["techniques"][rows].to_list(), strict=True):  # fmt: skip
        crashes = [c for c in found if c["label"] in CRASHES]
        if len(crashes) == 1 and crashes[0]["label"] != mapping[key]:
            crashes[0]["label"] = mapping[key]
            changed.append(row)
            components.append(found)
            techniques.append(sorted({*tags, TECHNIQUE}))
    if not changed:
        return events, 0
    place = np.arange(events.height)
    place[changed] = events.height + np.arange(len(changed))
    pools = {
        "components": pl.Series(components, dtype=pl.List(COMPONENT_STRUCT)),
        "techniques": pl.Series(techniques, dtype=pl.List(pl.String)),
    }
    new = [pl.concat([events[name], more.alias(name)]).rechunk().gather(place) for name, more in pools.items()]
    return events.with_columns(new), len(changed)


def run(settings: Settings, options: AssignOptions = AssignOptions(), *, progress: Progress = silent) -> Report:
    """manifest/merged.parquet and manifest/crash_embeddings.parquet -> manifest/crash_mapping.json; gate `crash_mapping` warns.

    Raises
    ------
    InputError `missing-input` : nothing was merged or embedded yet
    ConfigError `bad-option`
    """
    check(options)
    layout = settings.layout
    taxonomy = Taxonomy.load(settings)

    def work() -> Outcome:
        made = assign(crash_events(Manifest(layout.merged), taxonomy), read_embeddings(layout.crash_embeddings), taxonomy, options)
        receipt = settings.store.publish_json(layout.crash_mapping, made.to_json())
        progress(f"{made.methods.total():,} of {made.n_crashes:,} crashes told apart")
        rule = (
            Rule.waive("crash_coverage", "there is no crash")
            if made.coverage is None
            else Rule.at_least("crash_coverage", made.coverage, MIN_COVERAGE, "share of the crashes that are told apart", blocking=False)
        )
        artifact = Artifact("crash_mapping", layout.rel(layout.crash_mapping), receipt.sha256)
        return Outcome(
            outputs=[("crash_mapping", layout.crash_mapping, None)],
            figures={"crash_events": made.n_crashes, "assigned": made.methods.total(), "sessions": len(made.sessions)},
            facts={"methods": dict(sorted(made.methods.items()))},
            verdicts=[Verdict("crash_mapping", (rule,), inputs=(artifact,), support={"events": made.n_crashes}, profile=settings.profile)],
        )

    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={**vars(options), "taxonomy": taxonomy.digest},
        parents=[("merged", layout.merged), ("crash_embeddings", layout.crash_embeddings)],
        work=work,
    )


def check(options: AssignOptions) -> None:
    """
    Raises
    ------
    ConfigError `bad-option`
    """
    if options.min_cluster < 1 or options.min_events < 2 or not options.min_gap_hz >= 0:
        raise ConfigError("at least 2 events, clusters of at least 1 and a gap of at least 0 Hz are due", code="bad-option")


def read_embeddings(path: Path) -> pl.DataFrame:
    """event_id and spectral_centroid of a table of embeddings.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`
    """
    if not path.is_file():
        raise InputError("file does not exist. Run: beatsight events crash-embed", code="missing-input", where=str(path))
    try:
        return pl.read_parquet(path, columns=["event_id", "spectral_centroid"])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"not a table of crash embeddings: {error}", code="bad-manifest", where=str(path)) from error
