"""When the model says 80 %, is it right four times in five?

Belongs here: calibration errors of class decisions, fitting the temperature. Does not belong here: the loss, the choice of the threshold.
Every class is one decision per sample: probability p against truth y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.readiness.rows import asked_for, exploded_scores
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

GATE = "calibration"
N_BINS = 15  # spec/gates.md section 9
FIRST_RELEASE = "first-release"
TEMPERATURES = (0.05, 20.0)  # nets of this kind end between 0.5 and 3; beyond these bounds something else is wrong
GOLDEN = (5**0.5 - 1) / 2
SEARCH_STEPS = 60  # shrinks the bracket by 1e-12


@dataclass(frozen=True)
class Calibration:
    """Figures of one split. `n_positives` counts true decisions. `bins` holds (count, mean p, mean y) per bin of the reliability table."""

    ece: float | None
    ece_macro: float | None
    brier: float | None
    top1_ece: float | None
    per_class: Mapping[str, float]
    per_bucket: Mapping[str, float]
    per_openness: Mapping[str, float]
    bins: tuple[tuple[int, float | None, float | None], ...]
    n_decisions: int
    n_positives: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "per_class": dict(self.per_class), "bins": [list(b) for b in self.bins]}


@dataclass(frozen=True)
class CalibrationLimits:
    """Largest calibration error by split, and how much the Brier score may rise above the release before."""

    ece_val: float | None = 0.08
    ece_test: float | None = 0.10
    brier_rise: float = 0.01
    min_positives: int = 50


def bin_of(p: NDArray[np.float64], n_bins: int = N_BINS) -> NDArray[np.int64]:
    """Bin of each probability [shape=(n,)]: equal bins on 0..1, the last one closed."""
    return np.minimum((p * n_bins).astype(np.int64), n_bins - 1)


def expected_calibration_error(p: NDArray[np.float64], y: NDArray[np.bool_], n_bins: int = N_BINS) -> float | None:
    """ECE: mean over samples of |mean y - mean p| of their bin; empty bins count nothing. None without samples.

    >>> expected_calibration_error(np.full(10, 0.9), np.arange(10) < 5)
    0.4
    """
    if not len(p):
        return None
    place = bin_of(p, n_bins)
    gap = np.bincount(place, weights=y.astype(np.float64) - p, minlength=n_bins)
    return round(float(np.abs(gap).sum() / len(p)), 12)


def brier_score(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float | None:
    """Mean of (p - y)^2; None without samples."""
    return float(np.mean((p - y) ** 2)) if len(p) else None


def decisions(samples: pl.DataFrame) -> pl.DataFrame:
    """One row per sample and scored class: `sample_id`, `label`, `p`, `y`, `dynamic_bucket`, `openness`.

    Raises
    ------
    InputError `bad-rows` : p outside 0..1, a sign of logits
    """
    rows = exploded_scores(samples, "sample_id", "labels", "dynamic_bucket", "openness")
    outside = rows.filter(~pl.col("p").is_between(0.0, 1.0))
    if outside.height:
        line, label, p = outside.select("line", "label", "p").row(0)
        raise InputError(f"line {line}: scores.{label}: {p} is not within 0..1. Are these logits?", code="bad-rows")
    return rows.with_columns(y=pl.col("labels").fill_null([]).list.contains(pl.col("label"))).drop("labels")


def measure(samples: pl.DataFrame) -> Calibration:
    """Calibration of samples with truth and scores [columns of SAMPLE_SCHEMA]."""
    rows = decisions(samples)
    p, y = rows["p"].to_numpy(), rows["y"].to_numpy()
    per_class = _ece_by(rows, "label")
    place = bin_of(p)
    quartiles = (
        np.quantile(samples["openness"].drop_nulls().to_numpy(), [0.25, 0.5, 0.75]) if samples["openness"].is_not_null().any() else None
    )
    bins = []
    for b in range(N_BINS):
        inside = place == b
        n = int(inside.sum())
        bins.append((n, float(p[inside].mean()) if n else None, float(y[inside].mean()) if n else None))
    return Calibration(
        ece=expected_calibration_error(p, y),
        ece_macro=float(np.mean(list(per_class.values()))) if per_class else None,
        brier=brier_score(p, y),
        top1_ece=_top1_ece(rows, samples),
        per_class=per_class,
        per_bucket=_ece_by(rows, "dynamic_bucket"),
        per_openness={} if quartiles is None else _ece_by(_with_quartile(rows, quartiles), "quartile"),
        bins=tuple(bins),
        n_decisions=len(p),
        n_positives=int(y.sum()),
    )


def _ece_by(rows: pl.DataFrame, column: str) -> dict[str, float]:
    found = {}
    for (name,), part in sorted(rows.filter(pl.col(column).is_not_null()).group_by(column), key=lambda item: str(item[0][0])):
        ece = expected_calibration_error(part["p"].to_numpy(), part["y"].to_numpy())
        found[str(name)] = 0.0 if ece is None else ece
    return found


def _with_quartile(rows: pl.DataFrame, quartiles: NDArray[np.float64]) -> pl.DataFrame:
    place = np.searchsorted(quartiles, rows["openness"].to_numpy(), side="left") + 1
    return rows.with_columns(quartile=pl.lit("q") + pl.Series(place).cast(pl.String)).filter(pl.col("openness").is_not_null())


def _top1_ece(rows: pl.DataFrame, samples: pl.DataFrame) -> float | None:
    """ECE of the best class, for single-label models: every sample has one label and probabilities that sum to 1."""
    sums = rows.group_by("sample_id").agg(pl.col("p").sum())["p"]
    single = rows.height and bool((samples["labels"].list.len() == 1).all()) and bool(((sums - 1.0).abs() < 1e-6).all())
    if not single:
        return None
    best = rows.sort(["sample_id", "p", "label"], descending=[False, True, False]).group_by("sample_id", maintain_order=True).first()
    return expected_calibration_error(best["p"].to_numpy(), best["y"].to_numpy())


def judge(
    splits: Mapping[str, Calibration],
    limits: CalibrationLimits,
    *,
    baseline_brier: float | None = None,
    first_release: bool = False,
    inputs: Sequence[Artifact] = (),
    profile: str = "dev",
) -> Verdict:
    """Verdict `calibration` on `val` and `test`. `baseline_brier` is that of the promoted release on test."""
    rules, reasons = [], []
    n_positives = sum(c.n_positives for c in splits.values())
    if not any(c.n_decisions for c in splits.values()):
        reasons.append(Reason("nothing-to-judge", "there is no decision to calibrate"))
    elif n_positives < limits.min_positives:
        reasons.append(Reason("too-few-samples", f"{n_positives} true decisions; {limits.min_positives} are needed"))
    for name, limit in (("val", limits.ece_val), ("test", limits.ece_test)):
        if limit is not None:
            ece = splits[name].ece if name in splits else None
            rules.append(
                Rule.at_most(
                    f"ece_{name}",
                    ece,
                    limit,
                    f"split {name}, {splits[name].n_decisions:,} decisions" if name in splits else f"split {name} has no predictions",
                )
            )
    brier = splits["test"].brier if "test" in splits else None
    if first_release:
        rules.append(Rule.waive("brier_rise", f"{FIRST_RELEASE}; the Brier score would have been compared with the champion's", brier))
    elif baseline_brier is None:
        reasons.append(Reason("no-baseline", "no calibration report of the promoted release to compare with"))
    else:
        rise = None if brier is None else brier - baseline_brier
        rules.append(Rule.at_most("brier_rise", rise, limits.brier_rise, f"test Brier {brier} against {baseline_brier}"))
    flat = {f"{figure}_{name}": getattr(c, figure) for name, c in splits.items() for figure in ("ece", "ece_macro", "brier")}
    support = {f"{count}_{name}": getattr(c, f"n_{count}") for name, c in splits.items() for count in ("decisions", "positives")}
    return Verdict(GATE, tuple(rules), tuple(inputs), flat, asked_for(limits), tuple(reasons), support, profile)


def fit_temperature(logits: NDArray[np.floating[Any]], y: NDArray[Any]) -> float:
    """Temperature T that minimises the cross-entropy of logits / T: one scalar, found by golden section on log T.

    Parameters
    ----------
    logits : float [shape=(n, n_classes)] or any shape
    y : bool or 0/1 of the same shape (independent classes, sigmoid), or int [shape=(n,)] class indices (one class each, softmax).
        NaN logits (masked classes) are left out.

    Returns
    -------
    T in 0.05 .. 20

    Raises
    ------
    ConfigError `nothing-to-fit` : no decision is left
    """
    values = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(y)
    if truth.shape != values.shape:
        if not len(values):
            raise ConfigError("there is no decision to fit a temperature on", code="nothing-to-fit")
        right = np.take_along_axis(values, truth[:, None].astype(np.int64), axis=1)[:, 0]

        def loss(temperature: float) -> float:
            scaled = values / temperature
            top = scaled.max(axis=1)
            return float(np.mean(top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - right / temperature))

    else:
        there = np.isfinite(values)
        flat, positive = values[there], truth[there].astype(bool)
        if not len(flat):
            raise ConfigError("there is no decision to fit a temperature on", code="nothing-to-fit")
        signed = np.where(positive, -flat, flat)

        def loss(temperature: float) -> float:
            return float(np.mean(np.logaddexp(0.0, signed / temperature)))

    low, high = (float(np.log(t)) for t in TEMPERATURES)
    left, right_end = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    loss_left, loss_right = loss(np.exp(left)), loss(np.exp(right_end))
    for _ in range(SEARCH_STEPS):
        if loss_left <= loss_right:
            high, right_end, loss_right = right_end, left, loss_left
            left = high - GOLDEN * (high - low)
            loss_left = loss(np.exp(left))
        else:
            low, left, loss_left = left, right_end, loss_right
            right_end = low + GOLDEN * (high - low)
            loss_right = loss(np.exp(right_end))
    return float(np.exp((low + high) / 2))


def fit(samples: pl.DataFrame) -> dict[str, float]:
    """Temperature of predicted probabilities, fitted on rows of split val only: p becomes sigmoid(logit(p) / T).

    Raises
    ------
    InputError `not-val` : a row is of another split, or says none
    """
    other = samples.filter(pl.col("split").fill_null("none") != "val")
    if other.height:
        raise InputError(f"line {other['line'][0]}: split: is {other['split'][0]}; a temperature is fitted on val only", code="not-val")
    rows = decisions(samples)
    p = rows["p"].to_numpy().clip(1e-9, 1 - 1e-9)
    return {"temperature": fit_temperature(np.log(p) - np.log1p(-p), rows["y"].to_numpy())}
