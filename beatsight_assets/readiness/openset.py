"""Is the model able to say "I do not know this sound"?

Belongs here: figures and rules of open-set rejection. Does not belong here: where predictions come from.
The score is the confidence that a sample is known; the positive class is *known*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.readiness.rows import asked_for, exploded_scores
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

GATE = "openset"
ACCEPTANCE = 0.95  # share of known samples that must be accepted where the false positive rate is read
SLACK = 1e-9
SCORE_FIELDS = ("max", "rejection")


@dataclass(frozen=True)
class OpenSetFigures:
    """Figures of `spec/gates.md` section 7, 0..1; None without samples of both kinds. Ties count one half."""

    auroc: float | None
    auprc: float | None
    fpr_at_95_tpr: float | None
    threshold_at_95_tpr: float | None
    fpr_by_family: Mapping[str, float]
    n_known: int
    n_unknown: int
    n_missing: int = 0
    n_ignored: int = 0


@dataclass(frozen=True)
class OpenSetLimits:
    """Limits; None is reported only."""

    auroc: float | None = None
    fpr_at_95_tpr: float | None = None
    min_known: int = 20
    min_unknown: int = 20


def confidences(predictions: pl.DataFrame, field: str = "max") -> pl.DataFrame:
    """`sample_id`, `s`: the largest class probability, or 1 - `rejection_score`.

    Raises
    ------
    ConfigError `unknown-choice`
    InputError `bad-rows` : a row lacks the field the whole file is judged by
    """
    if field not in SCORE_FIELDS:
        raise ConfigError.unknown_choice("score field", field, SCORE_FIELDS)
    if field == "rejection":
        scored = predictions.select("line", "sample_id", s=1.0 - pl.col("rejection_score"))
    else:
        best = exploded_scores(predictions).group_by("line").agg(s=pl.col("p").max())
        scored = predictions.select("line", "sample_id").join(best, on="line", how="left")
    lacking = scored.filter(pl.col("s").is_null())
    if lacking.height:
        name = "rejection_score" if field == "rejection" else "scores"
        raise InputError(f"line {lacking['line'][0]}: {name}: is missing; one field serves the whole file", code="bad-rows")
    return scored.select("sample_id", "s")


def measure(truth: pl.DataFrame, predictions: pl.DataFrame, field: str = "max") -> OpenSetFigures:
    """Figures of predictions [columns of SAMPLE_SCHEMA] against truth with `is_known`."""
    unsaid = truth.filter(pl.col("is_known").is_null())
    if unsaid.height:
        raise InputError(f"line {unsaid['line'][0]}: is_known: is missing", code="bad-rows")
    scored = confidences(predictions, field)
    joined = truth.select("sample_id", "is_known", "family").join(scored, on="sample_id", how="left")
    found = joined.filter(pl.col("s").is_not_null())
    return figures_of(
        found["is_known"].to_numpy(),
        found["s"].to_numpy(),
        families=found["family"].to_list(),
        n_missing=joined.height - found.height,
        n_ignored=scored.height - found.height,
    )


def figures_of(
    known: NDArray[np.bool_], scores: NDArray[np.float64], *, families: Sequence[str | None] = (), n_missing: int = 0, n_ignored: int = 0
) -> OpenSetFigures:
    """Figures of samples [shape=(n,)] in any order: equal scores are always taken together."""
    n_known, n_unknown = int(known.sum()), int((~known).sum())
    if not n_known or not n_unknown:
        return OpenSetFigures(None, None, None, None, {}, n_known, n_unknown, n_missing, n_ignored)
    values, place = np.unique(scores, return_inverse=True)
    per_value = np.stack([np.bincount(place, weights=w, minlength=len(values)) for w in (known, ~known)])[:, ::-1]  # high to low
    k, u = per_value
    accepted_known, accepted_unknown = np.cumsum(k), np.cumsum(u)
    wins = float(np.sum(k * (n_unknown - accepted_unknown)) + 0.5 * np.sum(k * u))
    precision = accepted_known / (accepted_known + accepted_unknown)
    at = int(np.argmax(accepted_known / n_known >= ACCEPTANCE - SLACK))
    threshold = float(values[::-1][at])
    by_family: dict[str, list[bool]] = {}
    for is_known, score, family in zip(known, scores, families, strict=bool(families)):
        if not is_known and family is not None:
            by_family.setdefault(family, []).append(bool(score >= threshold))
    return OpenSetFigures(
        auroc=wins / (n_known * n_unknown),
        auprc=float(np.sum(k / n_known * precision)),
        fpr_at_95_tpr=float(accepted_unknown[at] / n_unknown),
        threshold_at_95_tpr=threshold,
        fpr_by_family={name: sum(hits) / len(hits) for name, hits in sorted(by_family.items())},
        n_known=n_known,
        n_unknown=n_unknown,
        n_missing=n_missing,
        n_ignored=n_ignored,
    )


def judge(figures: OpenSetFigures, limits: OpenSetLimits, *, inputs: Sequence[Artifact] = (), profile: str = "dev") -> Verdict:
    """Verdict `openset`."""
    reasons = []
    if not figures.n_known or not figures.n_unknown:
        reasons.append(
            Reason("nothing-to-judge", f"{figures.n_known} known and {figures.n_unknown} unknown samples; both kinds are needed")
        )
    elif figures.n_known < limits.min_known or figures.n_unknown < limits.min_unknown:
        needed = f"{limits.min_known} known and {limits.min_unknown} unknown"
        reasons.append(Reason("too-few-samples", f"{figures.n_known} known and {figures.n_unknown} unknown samples; {needed} are needed"))
    if figures.n_missing:
        reasons.append(Reason("missing-prediction", f"{figures.n_missing} samples have no prediction"))
    rules = []
    if limits.auroc is not None:
        rules.append(Rule.at_least("auroc", figures.auroc, limits.auroc))
    if limits.fpr_at_95_tpr is not None:
        rules.append(Rule.at_most("fpr_at_95_tpr", figures.fpr_at_95_tpr, limits.fpr_at_95_tpr))
    flat = {name: getattr(figures, name) for name in ("auroc", "auprc", "fpr_at_95_tpr", "threshold_at_95_tpr")}
    support = {"known": figures.n_known, "unknown": figures.n_unknown, "missing": figures.n_missing, "ignored": figures.n_ignored}
    return Verdict(GATE, tuple(rules), tuple(inputs), flat, asked_for(limits), tuple(reasons), support, profile)
