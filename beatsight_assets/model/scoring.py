"""How well do hits fit a truth? One-to-one matching, precision, recall and F by class and pooled.

Belongs here: counting. Does not belong here: decoding (`decode`), the stage and the gate (`evaluate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.model.data import Recording
from beatsight_assets.model.decode import Detections
from beatsight_assets.units import Milliseconds

TOLERANCE_MS = 50.0  # the field's usual window (mir_eval's default)
FINE_TOLERANCE_MS = 20.0
KEY_STRIDE_US = 1_000_000_000_000  # 11.5 days between two (recording, class) keys: nothing matches across them
JOIN_US = 30_000  # two components of one coarser class within 30 ms are one hit of it


@dataclass(frozen=True)
class Counts:
    """Matched, wrong and missed hits."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def support(self) -> int:
        """Hits of the truth."""
        return self.tp + self.fn

    @property
    def precision(self) -> float | None:
        """Matched share of what was reported; None when nothing was."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else None

    @property
    def recall(self) -> float | None:
        """Matched share of the truth; None without any."""
        return self.tp / self.support if self.support else None

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None when there is neither truth nor report."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp + self.fp + self.fn else None

    def to_json(self) -> dict[str, float | int | None]:
        """Figures and counts."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "support": self.support,
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
        }


def match_onsets(
    truth_us: NDArray[np.int64], heard_us: NDArray[np.int64], tolerance_us: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Largest one-to-one matching of two sorted lists of instants whose partners lie at most `tolerance_us` apart (inclusive).

    Returns the positions (in truth, in heard) of the pairs. Walking both lists and pairing the earliest that fit is optimal, because every
    instant accepts an interval of the same width; the size equals that of mir_eval's bipartite matching (tested).
    """
    pairs: list[tuple[int, int]] = []
    i, j, left, right = 0, 0, truth_us.tolist(), heard_us.tolist()
    n_left, n_right = len(left), len(right)
    while i < n_left and j < n_right:
        gap = right[j] - left[i]
        if gap > tolerance_us:
            i += 1
        elif gap < -tolerance_us:
            j += 1
        else:
            pairs.append((i, j))
            i += 1
            j += 1
    matched = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


@dataclass(frozen=True)
class Onsets:
    """Instants by class: `us` [shape=(n,)] whole microseconds, `index` [shape=(n,)] class, in any order."""

    us: NDArray[np.int64]
    index: NDArray[np.int64]
    score: NDArray[np.float32] | None = None

    def mapped(self, columns: NDArray[np.int64]) -> Onsets:
        """Classes renamed by `columns` [shape=(n_classes,)] (-1 = dropped); hits of one class within 30 ms become the first of them."""
        index = columns[self.index]
        order = np.lexsort((self.us, index))
        order = order[index[order] >= 0]
        us, index = self.us[order], index[order]
        keep = np.ones(len(us), dtype=bool)
        last = -1
        for i in range(len(us)):
            if last >= 0 and index[i] == index[last] and us[i] - us[last] <= JOIN_US:
                keep[i] = False
            else:
                last = i
        return Onsets(us[keep], index[keep], None if self.score is None else self.score[order][keep])


@dataclass(frozen=True)
class Judged:
    """One recording ready for counting: truth and report in one set of classes, with what must not be counted taken out."""

    truth: Onsets
    heard: Onsets
    tags: Mapping[str, str] = field(default_factory=dict)


def drop_unknown(
    heard: Onsets, known: NDArray[np.bool_], unknown_us: NDArray[np.int64], unknown_index: NDArray[np.int64], tolerance_us: int
) -> Onsets:
    """Reported hits about which the truth says something: the class is known to the source, and no unspecified hit of its family is near."""
    keep = known[heard.index]
    for at, index in zip(unknown_us, unknown_index, strict=True):
        keep &= ~((heard.index == index) & (np.abs(heard.us - at) <= tolerance_us))
    return Onsets(heard.us[keep], heard.index[keep], None if heard.score is None else heard.score[keep])


def count_hits(recordings: Sequence[Judged], n_classes: int, tolerance_ms: Milliseconds = TOLERANCE_MS) -> NDArray[np.int64]:
    """Counts by recording and class, int64 [shape=(n_recordings, n_classes, 3)]: TP, FP, FN."""
    tolerance_us = round(tolerance_ms * 1000.0)
    counts = np.zeros((len(recordings), n_classes, 3), dtype=np.int64)
    for row, recording in zip(counts, recordings, strict=True):
        truth = np.sort(recording.truth.us + recording.truth.index * KEY_STRIDE_US)
        heard = np.sort(recording.heard.us + recording.heard.index * KEY_STRIDE_US)
        in_truth, _ = match_onsets(truth, heard, tolerance_us)
        row[:, 0] = np.bincount(truth[in_truth] // KEY_STRIDE_US, minlength=n_classes)
        row[:, 1] = np.bincount(heard // KEY_STRIDE_US, minlength=n_classes) - row[:, 0]
        row[:, 2] = np.bincount(truth // KEY_STRIDE_US, minlength=n_classes) - row[:, 0]
    return counts


def pool(counts: NDArray[np.int64]) -> Counts:
    """Sum of counts [shape=(..., 3)] over everything: the pooled (micro) figures."""
    tp, fp, fn = counts.reshape(-1, 3).sum(axis=0).tolist() if counts.size else (0, 0, 0)
    return Counts(tp, fp, fn)


def choose_threshold(recordings: Sequence[Judged], n_classes: int, thresholds: Sequence[float]) -> tuple[float, float]:
    """(threshold, pooled F) with the largest pooled F at 50 ms; of equals the one nearest to the middle of the equals.

    Hits need `score`. ONE threshold for all classes: per-class thresholds from few recordings overfit (design/model_plan.md).
    """
    figures = []
    for threshold in thresholds:
        kept = []
        for r in recordings:
            score = r.heard.score if r.heard.score is not None else np.ones(len(r.heard.us), dtype=np.float32)
            keep = score >= np.float32(threshold)
            kept.append(Judged(r.truth, Onsets(r.heard.us[keep], r.heard.index[keep])))
        figures.append(pool(count_hits(kept, n_classes)).f1 or 0.0)
    best = [i for i, f in enumerate(figures) if f >= max(figures) - 1e-12]
    chosen = best[len(best) // 2]
    return float(thresholds[chosen]), figures[chosen]


def iter_by(recordings: Sequence[Judged], tag: str) -> Iterator[tuple[str, list[int]]]:
    """(value, positions) for each value of a tag, sorted by value."""
    for value in sorted({r.tags[tag] for r in recordings}):
        yield value, [i for i, r in enumerate(recordings) if r.tags[tag] == value]


def to_us(onset_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Seconds as whole microseconds."""
    return np.round(onset_s * 1e6).astype(np.int64)


def judge_recording(recording: Recording, hits: Detections, tolerance_ms: Milliseconds = TOLERANCE_MS) -> Judged:
    """Truth and report of one recording in the classes of the model, without what the annotation cannot judge."""
    truth = recording.truth
    heard = Onsets(to_us(hits.onset_s), hits.class_index, hits.score)
    heard = drop_unknown(heard, truth.known, to_us(truth.unknown_onset_s), truth.unknown_class, int(tolerance_ms * 1000))
    tags = {
        "source_set": recording.source_set,
        "is_synthetic": "synthetic" if recording.is_synthetic else "real",
        "session_id": recording.session_id,
    }
    return Judged(Onsets(to_us(truth.onset_s), truth.class_index), heard, tags)
