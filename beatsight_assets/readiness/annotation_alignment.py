"""Do the annotated onsets lie where the audio rises?

Belongs here: how well annotations fit their audio when moved by -100 .. +100 ms, the stage that asks this of every recording of a dataset,
the constant by which a whole dataset is off. Does not belong here: delays between microphones.
The share of hits near a peak must not be judged alone: dense tracks reach 0.89 when 60 ms off.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import workers
from beatsight_assets.audio import AudioError, find_audio, read_mono
from beatsight_assets.errors import GateFailed
from beatsight_assets.events import hits_with_onsets, read_events
from beatsight_assets.readiness.rows import asked_for, read_limits
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, digest_of, read_receipt, run_stage, silent
from beatsight_assets.units import Milliseconds
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

GATE = STAGE = "annotation_alignment"
VERSION = "1"
SCHEMA = "beatsight.alignment/1"
HOP = 64  # samples; 1.45 ms at 44,100 Hz
WINDOW = 512
SHIFTS_MS = np.arange(-100, 101)
NEAR_MS = 30.0
PEAK_SIGMA = 1.0
MAX_AUDIO_S = 300.0  # of each recording: 0.4 GB of spectrum, and more onsets than a verdict needs
MIN_RECORDINGS = 3  # that fit, for a constant of their dataset
CONTEXTS = ("full_mix", "drum_only", "close_mic", "overheads", "room", "unknown")  # stems, samples and MIDI have no annotated time line
FITS, FLAGGED, FEW, ABSENT, REFUSED = "fits", "flagged", "too-few-onsets", "audio-absent", "audio-refused"
LISTED = 50  # flagged recordings named in the receipt; the table has all

_COLUMNS: dict[str, Any] = {
    "source_set": pl.String, "session_id": pl.String, "group_id": pl.String, "mix_context": pl.String, "audio_path": pl.String,
    "audio_sha256": pl.String, "n_onsets": pl.Int64, "best_shift_ms": pl.Float64, "score_at_best": pl.Float64, "share_within_30ms": pl.Float64,
    "status": pl.String, "why": pl.String,
}  # fmt: skip
ALIGNMENT_SCHEMA = pl.Schema(_COLUMNS)


@dataclass(frozen=True)
class AlignmentFigures:
    """best_shift_ms : positive when the audio is later than the annotation; score_at_best in standard deviations of the onset strength;
    share_within_30ms : peaks above one standard deviation that have an annotated onset near them
    """

    best_shift_ms: Milliseconds | None
    score_at_best: float | None
    share_within_30ms: float | None
    n_onsets: int


@dataclass(frozen=True)
class AlignmentLimits:
    """Largest shift, lowest score at the best shift, fewest onsets to say anything.

    In a full mix other instruments rise as well: the three of MDB Drums have 1.08, 1.27 and 1.47 at 0 .. 5 ms, and at most 0.90 reversed.
    """

    max_shift_ms: Milliseconds = 15.0
    min_score: float = 1.6
    min_score_full_mix: float = 1.0
    min_onsets: int = 8


def onset_strength(samples: NDArray[np.floating], rate_hz: int) -> NDArray[np.float64]:
    """Rise of the log mel spectrum, standardised; float64 [shape=(n_frames,)], frame i at sample i * 64. All zero for silence."""
    import librosa

    with warnings.catch_warnings():  # 512 samples leave some low mel bands empty: they stay constant and add nothing to the rise
        warnings.filterwarnings("ignore", message="Empty filters detected", category=UserWarning)
        rise = librosa.onset.onset_strength(y=np.asarray(samples, dtype=np.float32), sr=rate_hz, hop_length=HOP, n_fft=WINDOW).astype(
            np.float64
        )
    spread = rise.std()
    return (rise - rise.mean()) / spread if spread > 0 else np.zeros_like(rise)


def measure(samples: NDArray[np.floating], rate_hz: int, onsets_s: Sequence[float] | NDArray[np.float64]) -> AlignmentFigures:
    """Figures of annotated onsets [seconds] against mono audio [shape=(n_samples,)]. Equal onsets count once."""
    onsets = np.unique(np.asarray(onsets_s, dtype=np.float64))
    if not len(onsets) or len(samples) < WINDOW:
        return AlignmentFigures(None, None, None, len(onsets))
    strength = onset_strength(samples, rate_hz)
    frames = np.arange(len(strength))
    at = (onsets[:, None] + SHIFTS_MS[None, :] / 1000.0) * rate_hz / HOP
    score = np.interp(at, frames, strength).mean(axis=0)
    best = int(np.argmax(score))
    inner = strength[1:-1]
    peaks = (np.flatnonzero((inner > PEAK_SIGMA) & (inner >= strength[:-2]) & (inner > strength[2:])) + 1) * HOP / rate_hz
    near = np.minimum(np.abs(peaks - onsets[_left(onsets, peaks)]), np.abs(peaks - onsets[_right(onsets, peaks)]))
    share = float(np.mean(near <= NEAR_MS / 1000.0)) if len(peaks) else None
    return AlignmentFigures(float(SHIFTS_MS[best]), float(score[best]), share, len(onsets))


def _right(onsets: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum(np.searchsorted(onsets, times), len(onsets) - 1)


def _left(onsets: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.maximum(np.searchsorted(onsets, times) - 1, 0)


def judge(figures: AlignmentFigures, limits: AlignmentLimits, *, inputs: Sequence[Artifact] = (), profile: str = "dev") -> Verdict:
    """Verdict `annotation_alignment` of one recording."""
    shift = None if figures.best_shift_ms is None else abs(figures.best_shift_ms)
    few = figures.n_onsets < limits.min_onsets
    reasons = (Reason("nothing-to-judge", f"{figures.n_onsets} onsets; {limits.min_onsets} are needed"),) if few else ()
    rules = (
        Rule.at_most("best_shift_ms", shift, limits.max_shift_ms, f"best shift {figures.best_shift_ms} ms; positive: the audio is later"),
        Rule.at_least("score_at_best", figures.score_at_best, limits.min_score),
    )
    flat = {k: getattr(figures, k) for k in ("best_shift_ms", "score_at_best", "share_within_30ms")}
    return Verdict(GATE, rules, tuple(inputs), flat, asked_for(limits), reasons, {"onsets": figures.n_onsets}, profile)


@dataclass(frozen=True)
class AlignmentOptions:
    """Which dataset."""

    source_set: str


@dataclass(frozen=True)
class _Job:
    """One recording to measure: everything a worker process needs."""

    path: Path
    onset_s: NDArray[np.float64]


def table_path(settings: Settings, source_set: str) -> Path:
    """alignment/<source_set>.parquet."""
    return settings.layout.alignment(source_set)


def run(settings: Settings, options: AlignmentOptions, *, progress: Progress = silent) -> Report:
    """Measure every recording of a dataset against its audio: alignment/<source_set>.parquet and reports/alignment/<source_set>.json.

    A recording is flagged when its verdict (`judge`) is no pass; the gate fails when one is flagged, and when none could be judged.

    Raises
    ------
    InputError `missing-input` : the dataset was not ingested
    ConfigError `unknown-choice`, `bad-config` : the dataset or the limits
    """
    source_set, _ = settings.dataset(options.source_set)
    where = f"configs/gates/{settings.profile}.yaml: readiness.{GATE}"
    limits = read_limits(AlignmentLimits, settings.gates.readiness.get(GATE, {}), where)
    recordings = _recordings(settings, source_set)
    audio = [find_audio(settings.raw_roots(source_set), path) for path in recordings["audio_path"]]
    digests = [settings.store.sha256(path) if path else None for path in audio]
    return run_stage(
        settings,
        STAGE,
        partition=source_set,
        version=VERSION,
        options={"audio_sha256": sha256("".join(f"{d}\n" for d in digests).encode()).hexdigest(), "limits": asked_for(limits)},
        parents=[("events", settings.layout.events(source_set))],
        work=lambda: _work(
            settings, source_set, limits, recordings.with_columns(audio_sha256=pl.Series(digests, dtype=pl.String)), audio, progress
        ),
    )


def offsets_ms(settings: Settings, source_sets: Iterable[str]) -> dict[str, Milliseconds]:
    """By how much the audio of each dataset is later than its annotations; 0 where too few recordings fit to say.

    Raises
    ------
    GateFailed `missing-input`, `stale` : a dataset was not measured, or its events changed since
    """
    found = {}
    for source_set in sorted(set(source_sets)):
        report = read_receipt(settings, STAGE, source_set)
        again = f"Run: beatsight readiness align --annotations {source_set}"
        if report is None:
            raise GateFailed(f"{source_set} has no alignment report. {again}", code="missing-input", where=source_set)
        if any(digest_of(settings, settings.layout.root / a.path) != a.sha256 for a in report.parents):
            raise GateFailed(f"the events of {source_set} are not those that were measured. {again}", code="stale", where=source_set)
        found[source_set] = float(report.facts["offset"]["offset_ms"] or 0.0)
    return found


def constant_offset(shifts_ms: Sequence[float]) -> dict[str, float | int | None]:
    """Median of the best shifts of recordings that fit, with n and the median distance from it; no constant from fewer than 3."""
    if len(shifts_ms) < MIN_RECORDINGS:
        return {"offset_ms": None, "n": len(shifts_ms), "spread_ms": None}
    middle = float(np.median(shifts_ms))
    return {"offset_ms": middle, "n": len(shifts_ms), "spread_ms": float(np.median(np.abs(np.asarray(shifts_ms) - middle)))}


def _recordings(settings: Settings, source_set: str) -> pl.DataFrame:
    """Sessions that belong to audio with a time line, sorted, with the onsets of their hits [seconds]."""
    events = read_events(settings.layout.events(source_set)).filter(
        pl.col("audio_path").is_not_null() & pl.col("mix_context").is_in(CONTEXTS)
    )
    onsets = hits_with_onsets(events).group_by("session_id").agg(pl.col("onset_s").unique().sort())
    sessions = events.select("source_set", "session_id", "group_id", "mix_context", "audio_path").unique("session_id", keep="first")
    return sessions.join(onsets, on="session_id", how="inner").sort("session_id")


def _measure_file(job: _Job) -> AlignmentFigures | str:
    """Figures of one recording, or `code: message` when its audio cannot be read; runs in a worker process."""
    try:
        clip = read_mono(job.path, silent_ok=True)
    except AudioError as error:
        return f"{error.code}: {error.message}"
    samples = clip.samples[: round(MAX_AUDIO_S * clip.rate_hz)]
    return measure(samples, clip.rate_hz, job.onset_s[job.onset_s < len(samples) / clip.rate_hz])


def _work(
    settings: Settings, source_set: str, limits: AlignmentLimits, recordings: pl.DataFrame, audio: Sequence[Path | None], progress: Progress
) -> Outcome:
    rows: list[dict[str, Any]] = []
    present = [(row, path) for row, path in zip(recordings.iter_rows(named=True), audio, strict=True) if path]
    jobs = [_Job(path, np.array(row["onset_s"])) for row, path in present]
    with workers.executor(settings.executor, settings.n_workers) as pool:
        for i, found in enumerate(workers.ordered_map(pool, _measure_file, jobs, n_workers=settings.n_workers)):
            rows.append(_row(present[i][0], found, limits))
            progress(f"alignment {source_set}: {i + 1:,} of {len(jobs):,} recordings measured")
    rows += [{**row, "status": ABSENT} for row, path in zip(recordings.iter_rows(named=True), audio, strict=True) if not path]
    table = pl.DataFrame([{k: row.get(k) for k in ALIGNMENT_SCHEMA} for row in rows], schema=ALIGNMENT_SCHEMA).sort("session_id")
    fits, flagged = (table.filter(pl.col("status") == s) for s in (FITS, FLAGGED))
    offset = constant_offset(fits["best_shift_ms"].to_list())
    counts = Counter(table["status"].to_list())
    n_judged = fits.height + flagged.height
    figures: dict[str, float | int] = {
        "recordings": table.height, "judged": n_judged, "fits": fits.height, "flagged": flagged.height, "too_few_onsets": counts[FEW],
        "audio_absent": counts[ABSENT], "audio_refused": counts[REFUSED],
    }  # fmt: skip
    figures |= {k: v for k, v in offset.items() if v is not None and k != "n"}
    named = flagged.select("session_id", "best_shift_ms", "score_at_best", "why").head(LISTED).to_dicts()
    facts = {"offset": offset, "flagged": named, "limits": asked_for(limits)}
    path = settings.store.publish_frame(table_path(settings, source_set), table, metadata={"schema": SCHEMA, "source_set": source_set}).path
    report = settings.store.publish_json(
        settings.layout.report("alignment", f"{source_set}.json"), {"schema": SCHEMA, "source_set": source_set, **figures, **facts}
    ).path
    first = f"{named[0]['session_id']}: {named[0]['why']}" if named else "annotations lie where the audio rises"
    verdict = Verdict(
        GATE,
        (Rule.at_most("flagged", float(flagged.height), 0.0, first),) if n_judged else (),
        inputs=(Artifact("alignment", settings.store.rel(path), settings.store.sha256(path), table.height),),
        figures=figures,
        limits=asked_for(limits),
        reasons=()
        if n_judged
        else (Reason("nothing-to-judge", f"none of {table.height} recordings has audio and enough onsets", source_set),),
        support={"recordings": n_judged},
        profile=settings.profile,
    )
    worst = table.filter(pl.col("best_shift_ms").is_not_null()).sort("status", pl.col("best_shift_ms").abs(), descending=[True, True])
    return Outcome(
        outputs=[("alignment", path, table.height), ("report", report, None)],
        figures=figures,
        facts=facts,
        verdicts=(verdict,),
        table=Table(
            ("recording", "shift ms", "score", "status"),
            tuple(worst.select("session_id", "best_shift_ms", "score_at_best", "status").head(24).iter_rows()),
        ),
    )


def _row(recording: Mapping[str, Any], found: AlignmentFigures | str, limits: AlignmentLimits) -> dict[str, Any]:
    """A row of the table: figures, and what `judge` says of them."""
    if isinstance(found, str):
        return {**recording, "status": REFUSED, "why": found}
    is_mix = recording["mix_context"] == "full_mix"
    verdict = judge(found, replace(limits, min_score=limits.min_score_full_mix) if is_mix else limits)
    status = FITS if verdict.passed else FEW if verdict.reasons else FLAGGED
    return {**recording, **vars(found), "status": status, "why": "; ".join(verdict.failures) or None}
