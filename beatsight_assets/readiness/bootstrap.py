"""How sure are the figures, and is the candidate strictly worse than the release before?

Belongs here: resampled confidence intervals, the release comparison. Does not belong here: the figures of the model evaluation.
The unit of resampling is the group when every row names one (takes are correlated), else the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.readiness.rows import THRESHOLD, Decisions, asked_for, decide
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

GATE = "bootstrap"
ITERATIONS = 1000
DIGITS = 12  # beyond them a sum depends on the order in which a BLAS adds
MIN_ITERATIONS = 100  # fewer cannot place a 2.5 % quantile
SEED = 2025
QUANTILES = (0.025, 0.975)
BATCH = 64  # resamples counted at once, so that memory does not grow with their number
METRICS = ("macro_f1", "micro_f1", "example_f1", "openness_mae", "velocity_mae")
FIRST_RELEASE = "first-release"


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval over resamples."""

    point_estimate: float
    mean: float
    ci_lower: float
    ci_upper: float
    n_units: int

    @classmethod
    def of(cls, point: float, resampled: NDArray[np.float64], n_units: int) -> Interval:
        """Quantiles by linear interpolation; resamples in which the metric is undefined are left out."""
        values = resampled[np.isfinite(resampled)]
        low, high = np.quantile(values, QUANTILES, method="linear") if len(values) else (point, point)
        mean = float(values.mean()) if len(values) else point
        return cls(round(point, DIGITS), round(mean, DIGITS), round(float(low), DIGITS), round(float(high), DIGITS), n_units)

    def to_json(self) -> dict[str, float | int]:
        return dict(vars(self))


@dataclass(frozen=True)
class BootstrapFigures:
    """Intervals by metric. `truth_sha256` says which truth they were measured on: others cannot be compared."""

    metrics: Mapping[str, Interval]
    unit: str
    n_rows: int
    n_units: int
    n_groups: int
    n_missing: int
    iterations: int
    seed: int
    truth_sha256: str

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "metrics": {name: interval.to_json() for name, interval in self.metrics.items()}}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any], where: str = "") -> BootstrapFigures:
        """Figures as a readiness report holds them.

        Raises
        ------
        InputError `bad-report`
        """
        try:
            return cls(**{**obj, "metrics": {name: Interval(**interval) for name, interval in obj["metrics"].items()}})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"this is no bootstrap report: {error!r}", code="bad-report", where=where) from error


@dataclass(frozen=True)
class BootstrapLimits:
    """How much worse a release may look, and how many rows and groups are needed to say so."""

    macro_f1_drop: float = 0.03
    openness_mae_rise: float = 0.02
    min_rows: int = 200
    min_groups: int = 10


def measure(
    truth: pl.DataFrame,
    predictions: pl.DataFrame,
    *,
    thresholds: float | Mapping[str, float] = THRESHOLD,
    iterations: int = ITERATIONS,
    seed: int = SEED,
    unit: str | None = None,
) -> BootstrapFigures:
    """Intervals of the metrics of predictions [columns of SAMPLE_SCHEMA] against the truth.

    Raises
    ------
    ConfigError `bad-option` : fewer than 100 iterations, or unit `group` where a row has none
    """
    table = _Table.of(truth, predictions, thresholds, unit)
    points, resampled = table.points(), table.resampled(iterations, seed)
    return BootstrapFigures(
        metrics={name: Interval.of(points[name], resampled[name], table.n_units) for name in points},
        unit=table.unit,
        n_rows=truth.height,
        n_units=table.n_units,
        n_groups=truth["group_id"].drop_nulls().n_unique(),
        n_missing=table.n_missing,
        iterations=iterations,
        seed=seed,
        truth_sha256=truth_digest(truth),
    )


def paired_difference(
    truth: pl.DataFrame,
    candidate: pl.DataFrame,
    baseline: pl.DataFrame,
    *,
    thresholds: tuple[float | Mapping[str, float], float | Mapping[str, float]] = (THRESHOLD, THRESHOLD),
    iterations: int = ITERATIONS,
    seed: int = SEED,
) -> dict[str, Interval] | None:
    """Intervals of candidate minus baseline over the same resamples; None unless both predicted every sample of the truth."""
    new, old = (_Table.of(truth, p, t, None) for p, t in zip((candidate, baseline), thresholds, strict=True))
    if new.n_missing or old.n_missing:
        return None
    points, points_old = new.points(), old.points()
    drawn, drawn_old = new.resampled(iterations, seed), old.resampled(iterations, seed)
    return {n: Interval.of(points[n] - points_old[n], drawn[n] - drawn_old[n], new.n_units) for n in points if n in points_old}


def truth_digest(truth: pl.DataFrame) -> str:
    """sha256 of what was to be found, independent of the order of rows."""
    rows = truth.select("sample_id", pl.col("labels").list.sort(), "openness", "velocity", "group_id").sort("sample_id")
    return sha256(store.to_json_bytes(rows.rows(), indent=None)).hexdigest()


@dataclass(frozen=True)
class _Table:
    """Sums per unit, from which every resample is a weighted sum.

    tp, fp, fn : float64 [shape=(n_units, n_classes)]; rows, example : float64 [shape=(n_units,)]
    errors : metric -> (sum of absolute errors, rows that state both) per unit
    """

    unit: str
    n_units: int
    n_missing: int
    has_support: NDArray[np.bool_]
    tp: NDArray[np.float64]
    fp: NDArray[np.float64]
    fn: NDArray[np.float64]
    rows: NDArray[np.float64]
    example: NDArray[np.float64]
    errors: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

    @classmethod
    def of(cls, truth: pl.DataFrame, predictions: pl.DataFrame, thresholds: float | Mapping[str, float], unit: str | None) -> _Table:
        made = decide(truth, predictions, thresholds=thresholds)
        grouped = made.samples["group_id"].is_not_null().all() and made.samples.height > 0
        unit = unit or ("group" if grouped else "row")
        if unit not in ("group", "row") or (unit == "group" and not grouped):
            raise ConfigError("unit must be row, or group when every row of the truth has a group_id", code="bad-option")
        names = made.samples["group_id" if unit == "group" else "sample_id"].to_numpy()
        kinds, place = np.unique(names.astype(str), return_inverse=True)

        def per_unit(values: NDArray[Any]) -> NDArray[np.float64]:
            total = np.zeros((len(kinds), *values.shape[1:]))
            np.add.at(total, place, values)
            return total

        tp, fp, fn = made.truth & made.predicted, made.predicted & ~made.truth, made.truth & ~made.predicted
        return cls(
            unit=unit,
            n_units=len(kinds),
            n_missing=len(made.missing),
            has_support=np.any(made.truth, axis=0),
            tp=per_unit(tp),
            fp=per_unit(fp),
            fn=per_unit(fn),
            rows=per_unit(np.ones(len(place))),
            example=per_unit(_example_f1(made)),
            errors={m: (per_unit(e), per_unit(there)) for m, (e, there) in _errors(made, predictions).items()},
        )

    def points(self) -> dict[str, float]:
        """Metrics of the full set; only those that are defined."""
        values = self._metrics(np.ones((1, self.n_units)))
        return {name: float(v[0]) for name, v in values.items() if np.isfinite(v[0])}

    def resampled(self, iterations: int, seed: int) -> dict[str, NDArray[np.float64]]:
        """Metrics of each resample [shape=(iterations,)]: units drawn with replacement by PCG64(seed)."""
        if iterations < MIN_ITERATIONS:
            raise ConfigError(f"iterations is {iterations}; at least {MIN_ITERATIONS} are needed", code="bad-option")
        rng = np.random.Generator(np.random.PCG64(seed))
        parts = []
        for start in range(0, iterations, BATCH):
            draws = [rng.integers(0, max(self.n_units, 1), self.n_units) for _ in range(min(BATCH, iterations - start))]
            parts.append(self._metrics(np.stack([np.bincount(d, minlength=self.n_units) for d in draws]).astype(np.float64)))
        return {name: np.concatenate([p[name] for p in parts]) for name in METRICS}

    def _metrics(self, counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Metrics when unit j occurs counts[i, j] times [shape=(n, n_units)]; NaN where undefined."""
        tp, fp, fn = counts @ self.tp, counts @ self.fp, counts @ self.fn
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = (2 * tp / (2 * tp + fp + fn))[:, self.has_support]
            defined = np.isfinite(f1)
            macro = np.where(defined, f1, 0.0).sum(axis=1) / defined.sum(axis=1)
            micro = 2 * tp.sum(1) / (2 * tp.sum(1) + fp.sum(1) + fn.sum(1))
            values = {"macro_f1": macro, "micro_f1": micro, "example_f1": counts @ self.example / (counts @ self.rows)}
            for name, (errors, there) in self.errors.items():
                values[name] = counts @ errors / (counts @ there)
        return values


def _example_f1(made: Decisions) -> NDArray[np.float64]:
    """F1 of each sample; empty truth and empty prediction agree, 1."""
    both = (made.truth & made.predicted).sum(axis=1)
    size = made.truth.sum(axis=1) + made.predicted.sum(axis=1)
    return np.where(size == 0, 1.0, 2 * both / np.maximum(size, 1))


def _errors(made: Decisions, predictions: pl.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    joined = made.samples.select("sample", "sample_id", "openness", "velocity").join(
        predictions.select("sample_id", "openness_pred", "velocity_pred"), on="sample_id", how="left", maintain_order="left"
    )
    found = {}
    for name in ("openness", "velocity"):
        error = (joined[f"{name}_pred"] - joined[name]).abs()
        found[f"{name}_mae"] = (error.fill_null(0.0).to_numpy(), error.is_not_null().to_numpy().astype(np.float64))
    return found


def judge(
    figures: BootstrapFigures,
    limits: BootstrapLimits,
    *,
    baseline: BootstrapFigures | None = None,
    first_release: bool = False,
    inputs: Sequence[Artifact] = (),
    profile: str = "dev",
) -> Verdict:
    """Verdict `bootstrap`: enough support, and no metric strictly worse than the release before.

    Strictly worse means that the intervals do not touch on the bad side and the points differ by more than the limit. On a first release the
    comparison is waived (ruling 10); without a baseline otherwise it fails as `no-baseline`.
    """
    reasons, rules, flags = [], [], []
    if not figures.n_rows or not figures.metrics:
        reasons.append(Reason("nothing-to-judge", "there is no row to resample"))
    if figures.n_missing:
        reasons.append(Reason("missing-prediction", f"{figures.n_missing} samples have no prediction"))
    groups = figures.n_groups or figures.n_units
    enough = figures.n_rows >= limits.min_rows and groups >= limits.min_groups
    rules.append(
        Rule(
            "support",
            enough,
            float(figures.n_rows),
            float(limits.min_rows),
            f"{figures.n_rows} rows in {groups} groups; {limits.min_groups} groups are needed",
        )
    )
    if not enough:
        reasons.append(
            Reason("too-few-samples", f"{figures.n_rows} rows in {groups} groups; {limits.min_rows} rows in {limits.min_groups} are needed")
        )
    drops = {"macro_f1": (-1.0, limits.macro_f1_drop), "openness_mae": (1.0, limits.openness_mae_rise)}
    if first_release:
        rules += [
            Rule.waive(f"{m}_regression", f"{FIRST_RELEASE}; the intervals would have been compared with the champion's") for m in drops
        ]
    elif baseline is None:
        reasons.append(Reason("no-baseline", "no bootstrap report of the promoted release to compare with"))
    elif baseline.truth_sha256 != figures.truth_sha256:
        reasons.append(
            Reason("not-comparable", "the promoted release was measured on another truth. Predict and judge it again on this one")
        )
    else:
        for metric, (sign, limit) in drops.items():
            rule, flagged = _regression(metric, sign, limit, baseline.metrics.get(metric), figures.metrics.get(metric))
            rules += [rule] if rule else []
            flags += [metric] if flagged else []
        lost = sorted(set(baseline.metrics) - set(figures.metrics))
        if lost:
            reasons.append(Reason("lost-metric", f"the candidate cannot compute {', '.join(lost)}, which the promoted release has"))
    flat = {
        f"{name}{suffix}": v
        for name, i in figures.metrics.items()
        for suffix, v in (("", i.point_estimate), ("_ci_lower", i.ci_lower), ("_ci_upper", i.ci_upper))
    }
    return Verdict(
        GATE,
        tuple(rules),
        tuple(inputs),
        flat,
        asked_for(limits),
        tuple(reasons),
        {"rows": figures.n_rows, "groups": figures.n_groups, "units": figures.n_units, "unit": figures.unit, "large_but_uncertain": flags},
        profile,
    )


def _regression(metric: str, sign: float, limit: float, before: Interval | None, now: Interval | None) -> tuple[Rule | None, bool]:
    """(rule, large but uncertain). `sign` is +1 when larger is worse."""
    if before is None or now is None:
        return None, False
    worse_by = sign * (now.point_estimate - before.point_estimate)
    disjoint = now.ci_lower > before.ci_upper if sign > 0 else now.ci_upper < before.ci_lower
    size = Rule.at_most(f"{metric}_regression", worse_by, limit)
    flagged = not size.passed and not disjoint
    detail = "intervals are disjoint on the bad side" if disjoint else "intervals touch" + (", large-but-uncertain" if flagged else "")
    return Rule(size.name, size.passed or not disjoint, worse_by, limit, detail), flagged
