"""Gate openset: can the model say that it does not know a sound?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets.errors import InputError
from beatsight_assets.readiness import openset
from beatsight_assets.readiness.openset import OpenSetLimits
from beatsight_assets.readiness.rows import SAMPLE_SCHEMA, read_samples

PROD = OpenSetLimits(auroc=0.90, fpr_at_95_tpr=0.10)
KNOWN_20 = [0.99 - 0.02 * i for i in range(20)]
UNKNOWN_20 = [0.65 - 0.02 * i for i in range(20)]


def slow(known: list[bool], scores: list[float]) -> tuple[float, float, float]:
    """AUROC by counting pairs; AUPRC and FPR by trying every threshold from high to low."""
    good = [s for k, s in zip(known, scores, strict=True) if k]
    bad = [s for k, s in zip(known, scores, strict=True) if not k]
    auroc = sum((g > b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad))
    area, last, fpr = 0.0, 0.0, None
    for t in sorted(set(scores), reverse=True):
        tp, fp = sum(g >= t for g in good), sum(b >= t for b in bad)
        area += (tp / len(good) - last) * tp / (tp + fp)
        last = tp / len(good)
        if fpr is None and last >= 0.95:
            fpr = fp / len(bad)
    assert fpr is not None
    return auroc, area, fpr


@pytest.mark.parametrize(
    ("known", "scores", "expected"),
    [
        ([1, 1, 1, 0, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.7, 0.4, 0.6, 0.2, 0.3], (0.766667, 0.852857, 0.666667)),
        ([1, 0] * 4, [0.5] * 8, (0.5, 0.5, 1.0)),
        ([0] * 4 + [1] * 4, [0.5] * 8, (0.5, 0.5, 1.0)),
        ([1, 1, 1, 0, 0], [0.9, 0.8, 0.7, 0.3, 0.1], (1.0, 1.0, 0.0)),
        ([0, 0, 1, 1, 1], [0.9, 0.8, 0.3, 0.2, 0.1], (0.0, 0.477778, 1.0)),
        ([1] * 20 + [0] * 20, [round(s, 2) for s in KNOWN_20 + UNKNOWN_20], (0.98875, 0.986085, 0.10)),
    ],
)
def test_golden_figures(known: list[int], scores: list[float], expected: tuple[float, float, float]) -> None:
    """Section 7: every row of its table, and the slow definitions agree."""
    found = openset.figures_of(np.array(known, dtype=bool), np.array(scores))
    assert (found.auroc, found.auprc, found.fpr_at_95_tpr) == pytest.approx(expected, abs=1e-6)
    assert (found.auroc, found.auprc, found.fpr_at_95_tpr) == pytest.approx(slow([bool(k) for k in known], scores))


def test_last_row_of_the_table_passes_prod() -> None:
    """AUROC 0.98875 and FPR exactly 0.10 pass."""
    found = openset.figures_of(np.array([True] * 20 + [False] * 20), np.round(np.array(KNOWN_20 + UNKNOWN_20), 2))
    assert openset.judge(found, PROD).passed


def test_figures_do_not_depend_on_row_order(rng: np.random.Generator) -> None:
    """Random scores with many ties, shuffled, against the slow definitions."""
    known, scores = rng.random(200) < 0.4, rng.integers(0, 12, 200) / 12
    expected = slow(known.tolist(), scores.tolist())
    for _ in range(3):
        order = rng.permutation(200)
        found = openset.figures_of(known[order], scores[order])
        assert (found.auroc, found.auprc, found.fpr_at_95_tpr) == pytest.approx(expected)


def table(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame([{"line": i, **r} for i, r in enumerate(rows, 1)], schema=SAMPLE_SCHEMA, orient="row")


def sample(name: str, known: bool, p: float, family: str | None = None) -> dict[str, object]:
    return {"sample_id": name, "is_known": known, "family": family, "scores": [{"label": "kick", "p": p}, {"label": "snare", "p": 0.0}]}


def test_families_of_unknown_sounds_are_reported() -> None:
    """Per-family false positive rate at the threshold that accepts 95 % of the known."""
    rows = table([sample("a", True, 0.9), sample("b", True, 0.8), sample("c", False, 0.85, "click"), sample("d", False, 0.1, "tone")])
    found = openset.measure(rows, rows)
    assert (found.threshold_at_95_tpr, found.fpr_by_family) == (0.8, {"click": 1.0, "tone": 0.0})


def test_rejection_scores_need_one_field_for_the_whole_file() -> None:
    """Score 1 - rejection_score; a file in which some rows lack it is refused."""
    rows = table(
        [{"sample_id": "a", "is_known": True, "rejection_score": 0.1}, {"sample_id": "b", "is_known": False, "rejection_score": 0.9}]
    )
    assert openset.measure(rows, rows, "rejection").auroc == 1.0
    with pytest.raises(InputError, match="rejection_score"):
        openset.measure(rows, table([sample("a", True, 0.9), sample("b", False, 0.1)]), "rejection")


def test_too_few_missing_and_nothing() -> None:
    """19 known fail, a missing prediction fails, one kind alone is nothing to judge, a stray prediction is ignored."""
    rows = table([sample(f"k{i}", True, 0.9) for i in range(19)] + [sample(f"u{i}", False, 0.1) for i in range(20)])
    assert [r.code for r in openset.judge(openset.measure(rows, rows), PROD).reasons] == ["too-few-samples"]
    assert openset.judge(openset.measure(rows, rows), OpenSetLimits(auroc=0.9, min_known=2, min_unknown=2)).passed
    assert [r.code for r in openset.judge(openset.measure(rows, rows.head(38)), OpenSetLimits(min_known=2, min_unknown=2)).reasons] == [
        "missing-prediction"
    ]
    assert [r.code for r in openset.judge(openset.measure(rows.head(19), rows), PROD).reasons] == ["nothing-to-judge"]
    assert openset.measure(rows.head(30), rows).n_ignored == 9


def test_a_truth_that_does_not_say_is_refused() -> None:
    """A row without is_known is malformed input."""
    rows = table([sample("a", True, 0.9)]).with_columns(is_known=pl.lit(None, dtype=pl.Boolean))
    with pytest.raises(InputError, match="is_known"):
        openset.measure(rows, rows)


@pytest.mark.data
def test_example_files_of_the_seed(shared_data: Path) -> None:
    """The example files are read and separate; two rows are too few under prod."""
    folder = shared_data / "beatsight_formats/ai-pipeline/training/examples"
    truth, predictions = (read_samples(folder / f"openset_{name}_example.jsonl") for name in ("ground_truth", "predictions"))
    found = openset.measure(truth, predictions)
    assert (found.auroc, found.n_known, found.n_unknown) == (1.0, 1, 1)
    assert [r.code for r in openset.judge(found, PROD).reasons] == ["too-few-samples"]
