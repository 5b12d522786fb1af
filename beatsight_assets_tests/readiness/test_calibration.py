"""Gate calibration: errors of probabilities, and the temperature."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.readiness import calibration
from beatsight_assets.readiness.calibration import CalibrationLimits, brier_score, expected_calibration_error, fit_temperature
from beatsight_assets.readiness.rows import SAMPLE_SCHEMA

P = np.array([0.05, 0.15, 0.35, 0.45, 0.55, 0.65, 0.85, 0.95, 0.95, 1.0])
Y = np.array([0, 0, 0, 1, 0, 1, 1, 1, 0, 1], dtype=bool)
HALF = np.arange(10) < 5


@pytest.mark.parametrize(("n_bins", "expected"), [(5, 0.165), (10, 0.305), (15, 0.305)])
def test_golden_errors(n_bins: int, expected: float) -> None:
    """Section 9: the ten-value case, by number of bins."""
    assert expected_calibration_error(P, Y, n_bins) == pytest.approx(expected, abs=1e-12)


def test_golden_brier_and_constant_cases() -> None:
    """Brier 0.18025; ten times .5 half true: 0 and 0.25; ten times .9 half true: 0.4."""
    assert brier_score(P, Y) == pytest.approx(0.18025)
    assert expected_calibration_error(np.full(10, 0.5), HALF) == 0.0
    assert brier_score(np.full(10, 0.5), HALF) == 0.25
    assert expected_calibration_error(np.full(10, 0.9), HALF) == pytest.approx(0.4)


def test_the_last_bin_is_closed() -> None:
    """p = 1.0 lies in the bin of 0.95, not in one of its own."""
    assert expected_calibration_error(np.array([1.0, 0.95]), np.array([False, True])) == pytest.approx(0.475)


def test_error_equals_a_slow_loop_over_bins(rng: np.random.Generator) -> None:
    """The vectorised sum equals the formula, bin by bin."""
    p, y = rng.random(500), rng.random(500) < 0.3
    slow = 0.0
    for b in range(15):
        inside = [(a, t) for a, t in zip(p, y, strict=True) if min(int(15 * a), 14) == b]
        if inside:
            slow += len(inside) / 500 * abs(np.mean([t for _, t in inside]) - np.mean([a for a, _ in inside]))
    assert expected_calibration_error(p, y) == pytest.approx(slow)


def table(p: np.ndarray, y: np.ndarray, **columns: object) -> pl.DataFrame:
    """One class, one row per decision."""
    rows = [
        {"line": i, "sample_id": f"s{i}", "labels": ["kick"] if t else [], "scores": [{"label": "kick", "p": float(a)}], **{k: v[i] if isinstance(v, list) else v for k, v in columns.items()}}
        for i, (a, t) in enumerate(zip(p, y, strict=True))
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=SAMPLE_SCHEMA, orient="row")


def test_every_scored_class_is_one_decision() -> None:
    """A sample with two scored classes counts twice; per class, bucket and bin are reported."""
    rows = pl.DataFrame(
        [{"line": 1, "sample_id": "a", "labels": ["kick"], "scores": [{"label": "kick", "p": 0.9}, {"label": "snare", "p": 0.1}], "dynamic_bucket": "ghost", "openness": 0.5}],
        schema=SAMPLE_SCHEMA, orient="row",
    )  # fmt: skip
    found = calibration.measure(rows)
    assert (found.n_decisions, found.n_positives) == (2, 1)
    assert found.per_class == {"kick": pytest.approx(0.1), "snare": pytest.approx(0.1)}
    assert set(found.per_bucket) == {"ghost"}
    assert len(found.per_openness) == 1
    assert sum(n for n, _, _ in found.bins) == 2


def test_single_label_models_also_get_top1_error() -> None:
    """One label each and probabilities that sum to 1: top-1 error of confidence against being right."""
    rows = pl.DataFrame(
        [{"line": i, "sample_id": f"s{i}", "labels": ["a" if i < 6 else "b"], "scores": [{"label": "a", "p": 0.9}, {"label": "b", "p": 0.1}]} for i in range(10)],
        schema=SAMPLE_SCHEMA, orient="row",
    )  # fmt: skip
    assert calibration.measure(rows).top1_ece == pytest.approx(0.3)
    assert calibration.measure(table(P, Y)).top1_ece is None


def test_limits_differ_between_val_and_test() -> None:
    """ECE 0.09 fails on val and passes on test."""
    p, y = np.full(200, 0.59), np.arange(200) < 100
    found = calibration.measure(table(p, y))
    assert found.ece == pytest.approx(0.09)
    verdict = calibration.judge({"val": found, "test": found}, CalibrationLimits(), first_release=True)
    assert {r.name: r.passed for r in verdict.rules} == {"ece_val": False, "ece_test": True, "brier_rise": True}


def test_few_positives_no_split_and_no_baseline() -> None:
    """Below 50 true decisions, without test, without a baseline after the first release: fail, each with its reason."""
    small, large = calibration.measure(table(P, Y)), calibration.measure(table(np.full(100, 1.0), np.ones(100, dtype=bool)))
    assert [r.code for r in calibration.judge({"val": small}, CalibrationLimits(ece_val=1, ece_test=None), first_release=True).reasons] == [
        "too-few-samples"
    ]
    lacking = calibration.judge({"val": large}, CalibrationLimits(), first_release=True)
    assert not lacking.rule("ece_test").passed  # type: ignore[union-attr]
    assert [r.code for r in calibration.judge({"val": large, "test": large}, CalibrationLimits()).reasons] == ["no-baseline"]
    assert [r.code for r in calibration.judge({}, CalibrationLimits(), first_release=True).reasons] == ["nothing-to-judge"]


def test_brier_may_not_rise() -> None:
    """More than 0.01 above the promoted release fails, exactly 0.01 passes."""
    found = calibration.measure(table(np.full(100, 0.9), np.ones(100, dtype=bool)))
    limits = CalibrationLimits(ece_val=None, ece_test=0.2)
    assert found.brier == pytest.approx(0.01)
    assert calibration.judge({"test": found}, limits, baseline_brier=0.0).passed
    assert not calibration.judge({"test": found}, limits, baseline_brier=-0.001).passed


def test_logits_are_recognised() -> None:
    """p outside 0..1 is malformed input (a sign of logits)."""
    with pytest.raises(InputError, match="logits"):
        calibration.measure(table(np.array([1.2]), np.array([True])))


def test_temperature_of_scaled_logits_is_the_scale(rng: np.random.Generator) -> None:
    """Labels drawn from sigmoid(z) and logits 2z: T is 2; halved logits: T is one half; softmax alike; masked logits are left out."""
    z = rng.normal(0.0, 2.0, (20_000, 3))
    y = rng.random(z.shape) < 1 / (1 + np.exp(-z))
    once = fit_temperature(z, y)
    assert once == pytest.approx(1.0, abs=0.05)
    assert fit_temperature(2 * z, y) == pytest.approx(2 * once, rel=1e-6)
    assert fit_temperature(z / 2, y) == pytest.approx(once / 2, rel=1e-6)
    masked = np.where(np.arange(3) == 1, np.nan, z)
    assert fit_temperature(masked, y) == pytest.approx(fit_temperature(z[:, [0, 2]], y[:, [0, 2]]))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    classes = (rng.random((len(z), 1)) > np.cumsum(p, axis=1)).sum(axis=1)
    assert fit_temperature(3 * z, classes) == pytest.approx(3.0, abs=0.15)


def test_temperature_needs_decisions() -> None:
    """Nothing to fit on is an error, not T = 1."""
    with pytest.raises(ConfigError):
        fit_temperature(np.full((2, 2), np.nan), np.zeros((2, 2), dtype=bool))


def test_fit_refuses_test_rows_and_mends_overconfidence(rng: np.random.Generator) -> None:
    """--fit takes split val only, and its temperature lowers the error."""
    z = rng.normal(0.0, 1.5, 3000)
    y = rng.random(3000) < 1 / (1 + np.exp(-z))
    p = 1 / (1 + np.exp(-3 * z))
    t = calibration.fit(table(p, y, split="val"))["temperature"]
    mended = 1 / (1 + np.exp(-(np.log(p) - np.log1p(-p)) / t))
    assert (expected_calibration_error(mended, y) or 0) < 0.03 < (expected_calibration_error(p, y) or 0)
    with pytest.raises(InputError, match="val only"):
        calibration.fit(table(p, y, split="test"))
