"""Stage `evaluation`: how well does the candidate hear recordings it never trained on?

Belongs here: figures on a split, overlap with training, rules and limits of the gate `evaluation`. Does not belong here: matching
(`scoring`), decoding (`decode`), calibration, boundary and open-set gates (`readiness`).

Hits come from `transcribe_features` with the stored threshold, the function that serves; what is judged is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.errors import ConfigError, GateFailed
from beatsight_assets.features.cache import index_path
from beatsight_assets.model.checkpoint import Model, load_model
from beatsight_assets.model.data import Recording, load_recordings
from beatsight_assets.model.decode import Detections, transcribe_features
from beatsight_assets.model.promote import previous_release
from beatsight_assets.model.scoring import (
    FINE_TOLERANCE_MS,
    Counts,
    Judged,
    count_hits,
    iter_by,
    judge_recording,
    match_onsets,
    pool,
    to_us,
)
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, read_receipt, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy, View
from beatsight_assets.units import rng_for
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

VERSION = "1"
STAGE = "evaluation"
GATE = "evaluation"
SCHEMA = "beatsight.evaluation/1"
COARSE_VIEW = "drums5"
SPLITS = ("val", "test")
N_RESAMPLES = 1_000  # spec/gates.md section 8
BOOTSTRAP_SEED = 2025
FIRST_RELEASE = "first-release"


@dataclass(frozen=True)
class EvaluateOptions:
    """Which candidate (default: the one trained last) and which split."""

    run: str | None = None
    split: str = "test"


@dataclass(frozen=True)
class Limits:
    """Limits of `evaluation` in configs/gates/<profile>.yaml; None = not judged."""

    pooled_f1: float | None = None
    pooled_f1_drums5: float | None = None
    pooled_precision: float | None = None
    pooled_recall: float | None = None
    class_recall: float | None = None
    min_class_hits: int = 20
    class_f1_drop: float | None = None
    pooled_f1_drop: float | None = None
    every_class: bool = False  # a class of the view with too few hits fails instead of being left out

    @staticmethod
    def read(settings: Settings) -> Limits:
        """The limits of the profile; the demo, which makes its own data, must have every class.

        Raises
        ------
        ConfigError : `unknown-choice`, a limit that this gate does not have
        """
        set_limits = {k: v for k, v in settings.gates.evaluation.model_dump().items() if v is not None}
        values = {"every_class": settings.profile == "demo", **set_limits}
        unknown = sorted(set(values) - set(Limits.__dataclass_fields__))
        if unknown:
            raise ConfigError.unknown_choice(
                "limit", unknown[0], Limits.__dataclass_fields__, where=f"configs/gates/{settings.profile}.yaml: evaluation"
            )
        return Limits(**values)

    def to_json(self) -> dict[str, Any]:
        """The limits that are set."""
        return {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True)
class Evaluation:
    """Everything counted on one split."""

    classes: tuple[str, ...]
    sessions: tuple[str, ...]
    counts: NDArray[np.int64]  # [shape=(n_recordings, n_classes, 3)] TP, FP, FN at 50 ms
    fine: NDArray[np.int64]  # the same at 20 ms
    coarse: NDArray[np.int64]  # in the classes of drums5, at 50 ms
    coarse_classes: tuple[str, ...]
    by: Mapping[str, Mapping[str, Counts]]
    velocity_mae: float | None
    openness_mae: float | None
    seconds: float
    tags: Sequence[Mapping[str, str]] = field(default_factory=tuple)

    @property
    def pooled(self) -> Counts:
        """All recordings and classes at 50 ms."""
        return pool(self.counts)

    def per_class(self) -> dict[str, Counts]:
        """Counts of each class at 50 ms, in the order of the classes."""
        return {name: pool(self.counts[:, i]) for i, name in enumerate(self.classes)}


def coarse_columns(view: View, coarse: View) -> NDArray[np.int64]:
    """Class of `coarse` for each class of `view` [shape=(n_classes,)], -1 where it has none.

    A class of the fine view goes where the components it stands for go (`ride_edge` counts as ride_bow, both are CY).
    """
    columns = []
    for name in view.classes:
        found = {coarse.class_of.get(component) for component, c in view.class_of.items() if c == name}
        columns.append(coarse.classes.index(only) if len(found) == 1 and (only := found.pop()) is not None else -1)
    return np.array(columns, dtype=np.int64)


def measure(model: Model, recordings: Sequence[Recording], view: View, coarse: View) -> Evaluation:
    """Transcribe every recording with the model's own threshold and count hits."""
    judged: list[Judged] = []
    velocity: list[NDArray[np.float64]] = []
    openness: list[NDArray[np.float64]] = []
    for recording in recordings:
        hits = transcribe_features(model, recording.features)
        judged.append(judge_recording(recording, hits))
        gaps = _matched_gaps(recording, hits)
        velocity.append(gaps[0])
        openness.append(gaps[1])
    columns = coarse_columns(view, coarse)
    coarsened = [Judged(j.truth.mapped(columns), j.heard.mapped(columns), j.tags) for j in judged]
    counts = count_hits(judged, len(view.classes))
    tags = [{**j.tags, "kit_id": r.kit_id} for j, r in zip(judged, recordings, strict=True)]
    by = {tag: {value: pool(counts[at]) for value, at in iter_by([Judged(j.truth, j.heard, t) for j, t in zip(judged, tags, strict=True)], tag)}
          for tag in ("source_set", "is_synthetic", "kit_id")}  # fmt: skip
    return Evaluation(
        classes=view.classes,
        sessions=tuple(r.session_id for r in recordings),
        counts=counts,
        fine=count_hits(judged, len(view.classes), FINE_TOLERANCE_MS),
        coarse=count_hits(coarsened, len(coarse.classes)),
        coarse_classes=coarse.classes,
        by=by,
        velocity_mae=_mean(velocity),
        openness_mae=_mean(openness),
        seconds=sum(r.n_frames for r in recordings) / model.definition.frames_per_s,
        tags=tags,
    )


def _matched_gaps(recording: Recording, hits: Detections) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|velocity| and |openness| differences of the hits that match a hit of the truth, where the truth has them."""
    truth = recording.truth
    stride = 1_000_000_000_000
    left, right = to_us(truth.onset_s) + truth.class_index * stride, to_us(hits.onset_s) + hits.class_index * stride
    order, other = np.argsort(left, kind="stable"), np.argsort(right, kind="stable")
    i, j = match_onsets(left[order], right[other], 50_000)
    at, heard = order[i], other[j]
    gaps = [np.abs(truth.velocity[at] - hits.velocity[heard]), np.abs(truth.openness[at] - hits.openness[heard])]
    return tuple(g[~np.isnan(g)].astype(np.float64) for g in gaps)  # type: ignore[return-value]


def _mean(parts: Sequence[NDArray[np.float64]]) -> float | None:
    joined = np.concatenate(parts) if parts else np.empty(0)
    return float(joined.mean()) if len(joined) else None


@dataclass(frozen=True)
class Comparison:
    """Candidate against champion on the same recordings."""

    release: str
    difference: float  # pooled F of the candidate minus that of the champion
    lower: float  # 95 % bound of the paired bootstrap over recordings
    upper: float
    class_drops: Mapping[str, float]


def compare(candidate: Evaluation, champion: Evaluation, release: str) -> Comparison:
    """Paired bootstrap over recordings of the difference in pooled F (PCG64, 1,000 resamples, percentiles 2.5 and 97.5)."""
    n = len(candidate.counts)
    rows = rng_for(BOOTSTRAP_SEED, "evaluation").integers(0, n, (N_RESAMPLES, n)) if n else np.zeros((0, 0), dtype=np.int64)
    per = [e.counts.sum(axis=1) for e in (candidate, champion)]  # [n_recordings, 3]
    resampled = [_f1(p[rows].sum(axis=1)) for p in per]
    lower, upper = np.quantile(resampled[0] - resampled[1], [0.025, 0.975]) if n else (float("nan"), float("nan"))
    drops = {}
    before, now = champion.per_class(), candidate.per_class()
    for name, counts in now.items():
        old = before[name].f1 if name in before else None
        if old is not None and counts.support:
            drops[name] = old - (counts.f1 or 0.0)
    return Comparison(release, (candidate.pooled.f1 or 0.0) - (champion.pooled.f1 or 0.0), float(lower), float(upper), drops)


def _f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    tp, fp, fn = (counts[..., i].astype(np.float64) for i in range(3))
    return np.where(tp + fp + fn > 0, 2 * tp / np.maximum(2 * tp + fp + fn, 1.0), 0.0)


def judge(
    evaluation: Evaluation, limits: Limits, comparison: Comparison | None, *, inputs: Sequence[Artifact] = (), profile: str = "dev"
) -> Verdict:
    """Verdict `evaluation` of the frame family (`spec/gates.md` section 14; rulings 10, 11, 27)."""
    pooled, coarse = evaluation.pooled, pool(evaluation.coarse)
    if not pooled.support:
        return Verdict(
            GATE,
            (),
            tuple(inputs),
            reasons=(Reason("nothing-to-judge", "the split has no hits in the classes of the model"),),
            profile=profile,
        )
    rules: list[Rule] = []
    reasons: list[Reason] = []
    for name, value, limit in (
        ("pooled_f1", pooled.f1, limits.pooled_f1),
        ("pooled_f1_drums5", coarse.f1, limits.pooled_f1_drums5),
        ("pooled_precision", pooled.precision, limits.pooled_precision),
        ("pooled_recall", pooled.recall, limits.pooled_recall),
    ):
        if limit is not None:
            rules.append(Rule.at_least(name, value, limit))
    for name, counts in evaluation.per_class().items():
        rule = f"class_recall[{name}]"
        if limits.class_recall is None:
            continue
        if counts.support >= limits.min_class_hits:
            rules.append(Rule.above(rule, counts.recall, limits.class_recall, f"above {limits.class_recall:g}, {counts.support} hits"))
        elif limits.every_class:
            rules.append(
                Rule(
                    rule,
                    False,
                    counts.recall,
                    limits.class_recall,
                    f"too-few-samples: {counts.support} hits, {limits.min_class_hits} needed",
                )
            )
            reasons.append(Reason("too-few-samples", f"{name} has {counts.support} hits, {limits.min_class_hits} are needed"))
        else:
            rules.append(Rule.waive(rule, f"too-few-samples, {counts.support} of {limits.min_class_hits} hits", counts.recall))
    rules += _against_champion(limits, comparison)
    figures = flat_figures(evaluation)
    if comparison is not None:
        figures |= {
            "f1_difference": comparison.difference,
            "f1_difference_lower": comparison.lower,
            "f1_difference_upper": comparison.upper,
        }
    support = {name: counts.support for name, counts in evaluation.per_class().items()}
    return Verdict(
        GATE,
        tuple(rules),
        tuple(inputs),
        figures,
        limits.to_json(),
        tuple(reasons),
        {"recordings": len(evaluation.sessions), **support},
        profile,
    )


def _against_champion(limits: Limits, comparison: Comparison | None) -> list[Rule]:
    rules = []
    if limits.pooled_f1_drop is not None:
        name = "pooled_f1_against_champion"
        if comparison is None:
            rules.append(Rule.waive(name, FIRST_RELEASE))
        else:
            detail = f"lower 95 % bound against {comparison.release}, paired over recordings; above {-limits.pooled_f1_drop:g}"
            rules.append(Rule.above(name, comparison.lower, -limits.pooled_f1_drop, detail))
    if limits.class_f1_drop is not None:
        if comparison is None:
            rules.append(Rule.waive("class_f1_drop", FIRST_RELEASE))
        else:
            rules += [Rule.at_most(f"class_f1_drop[{c}]", drop, limits.class_f1_drop) for c, drop in comparison.class_drops.items()]
    return rules


def flat_figures(evaluation: Evaluation) -> dict[str, float]:
    """The figures that are plotted: pooled at 50 and 20 ms, by class, mean over recordings. Undefined ones are left out."""
    pooled, fine, coarse = evaluation.pooled, pool(evaluation.fine), pool(evaluation.coarse)
    means = [f for row in evaluation.counts if (f := pool(row).f1) is not None]
    found: dict[str, float | None] = {
        "pooled_f1": pooled.f1,
        "pooled_precision": pooled.precision,
        "pooled_recall": pooled.recall,
        "pooled_f1_20ms": fine.f1,
        "pooled_f1_drums5": coarse.f1,
        "mean_f1_over_recordings": float(np.mean(means)) if means else None,
        "velocity_mae": evaluation.velocity_mae,
        "openness_mae": evaluation.openness_mae,
        **{f"f1/{name}": counts.f1 for name, counts in evaluation.per_class().items()},
    }
    return {k: v for k, v in found.items() if v is not None}


def to_json(evaluation: Evaluation, model: Model, split: str, overlap: Mapping[str, Any], comparison: Comparison | None) -> dict[str, Any]:
    """evaluation.json."""
    per_class, coarse = evaluation.per_class(), {c: pool(evaluation.coarse[:, i]) for i, c in enumerate(evaluation.coarse_classes)}
    supported = [c for c in per_class.values() if c.support]
    return {
        "schema": SCHEMA,
        "model_sha256": model.card["files"]["model.safetensors"],
        "model_card_sha256": model.digest,
        "run": model.card["run"],
        "family": model.family,
        "feature": model.card["feature"],
        "view": model.view,
        "split": split,
        "threshold": model.threshold,
        "temperature": model.temperature,
        "tolerance_ms": 50.0,
        "n_recordings": len(evaluation.sessions),
        "audio_seconds": evaluation.seconds,
        "pooled": evaluation.pooled.to_json(),
        "pooled_20ms": pool(evaluation.fine).to_json(),
        "pooled_drums5": pool(evaluation.coarse).to_json(),
        "macro_f1": float(np.mean([c.f1 or 0.0 for c in supported])) if supported else None,
        "without_support": [name for name, c in per_class.items() if not c.support],
        "per_class": {name: c.to_json() for name, c in per_class.items()},
        "per_class_drums5": {name: c.to_json() for name, c in coarse.items()},
        "by": {tag: {value: c.to_json() for value, c in values.items()} for tag, values in evaluation.by.items()},
        "per_recording": [
            {"session_id": s, **{k: t[k] for k in ("source_set", "kit_id")}, **pool(row).to_json()}
            for s, t, row in zip(evaluation.sessions, evaluation.tags, evaluation.counts, strict=True)
        ],
        "velocity_mae": evaluation.velocity_mae,
        "openness_mae": evaluation.openness_mae,
        "overlap_with_training": dict(overlap),
        "against": None if comparison is None else {k: dict(v) if isinstance(v, Mapping) else v for k, v in vars(comparison).items()},
    }


def training_overlap(model: Model, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Kits and groups of these recordings that training heard too, and a sentence that says it (ruling 37)."""
    trained = model.card["trained_on"]
    kits = sorted({r.kit_id for r in recordings if r.kit_id} & set(trained["kits"]))
    groups = sorted({r.group_id for r in recordings} & set(trained["groups"]))
    synthetic = sum(r.is_synthetic for r in recordings)
    sources = ", ".join(sorted({r.source_set for r in recordings})) or "nothing"
    text = (
        f"{len(recordings)} recordings of {sources}, {synthetic} synthetic; "
        f"kits shared with training: {', '.join(kits) or 'none'}; takes shared with training: {len(groups)}"
    )
    return {"kits": kits, "groups": groups, "text": text}


def candidate_folder(settings: Settings, run: str | None) -> Path:
    """Folder of the candidate of that run, by default the one trained last.

    Raises
    ------
    GateFailed : `no-candidate`
    """
    if run is None:
        receipt = read_receipt(settings, "candidate_model")
        if receipt is None:
            raise GateFailed("there is no candidate. Train one: beatsight model train", code="no-candidate")
        run = str(receipt.facts["run"])
    folder = settings.layout.candidate(run)
    if not (folder / "model.json").is_file():
        raise GateFailed(f"run {run} has no candidate. Train it to the end: beatsight model train", code="no-candidate")
    return folder


def run(settings: Settings, options: EvaluateOptions = EvaluateOptions(), *, progress: Progress = silent) -> Report:
    """Judge the candidate on a split; publish runs/<run>/evaluation/<split>/evaluation.json and reports/metrics/<run>.json.

    Raises
    ------
    ConfigError : `unknown-choice`, `feature-mismatch`
    GateFailed : `no-candidate`
    InputError : `missing-input`, `bad-checkpoint`
    """
    if options.split not in SPLITS:
        raise ConfigError.unknown_choice("split", options.split, SPLITS, where="--split")
    folder = candidate_folder(settings, options.run)
    model = load_model(folder)
    limits = Limits.read(settings)
    champion = previous_release(settings, model.card["files"]["model.safetensors"])
    parents = [
        ("model", folder / "model.safetensors"),
        ("model_card", folder / "model.json"),
        ("manifest", settings.layout.annotated),
        ("splits", settings.layout.splits),
        ("feature_index", index_path(settings, model.definition)),
    ]
    if champion is not None:
        parents.append(("champion", settings.layout.promoted / champion["release"] / "model.json"))
    return run_stage(
        settings,
        STAGE,
        partition=None if options.split == "test" else options.split,
        version=VERSION,
        options={"run": folder.name, "split": options.split, "profile": settings.profile, "limits": limits.to_json()},
        parents=parents,
        work=lambda: _work(settings, options.split, folder, model, limits, champion, progress),
    )


def _work(
    settings: Settings, split: str, folder: Path, model: Model, limits: Limits, champion: Mapping[str, Any] | None, progress: Progress
) -> Outcome:
    taxonomy = Taxonomy.load(settings)
    recordings = load_recordings(settings, model.definition, _view(taxonomy, model), taxonomy, (split,))
    progress(f"{folder.name}: transcribing {len(recordings)} recordings of split {split}")
    coarse = taxonomy.view(COARSE_VIEW)
    evaluation = measure(model, recordings, _view(taxonomy, model), coarse)
    comparison = None
    if champion is not None:
        rival = load_model(settings.layout.promoted / champion["release"])
        theirs = load_recordings(settings, rival.definition, _view(taxonomy, rival), taxonomy, (split,))
        comparison = compare(evaluation, measure(rival, theirs, _view(taxonomy, rival), coarse), champion["release"])
    overlap = training_overlap(model, recordings)
    target = settings.layout.run_dir(folder.name) / "evaluation" / split / "evaluation.json"
    report = to_json(evaluation, model, split, overlap, comparison)
    settings.store.publish_json(target, report)
    outputs: list[tuple[str, Path, int | None]] = [("evaluation", target, len(recordings))]
    if split == "test":
        metrics = settings.layout.report("metrics", f"{folder.name}.json")
        settings.store.publish_json(metrics, report)
        outputs.append(("metrics", metrics, None))
    names = [("model", folder / "model.safetensors"), ("model_card", folder / "model.json")]
    inputs = [Artifact(role, settings.store.rel(p), settings.store.sha256(p)) for role, p in names]
    inputs.append(Artifact("manifest", settings.store.rel(settings.layout.annotated), settings.store.sha256(settings.layout.annotated)))
    verdict = judge(evaluation, limits, comparison, inputs=inputs, profile=settings.profile)
    rows = tuple((name, c.support, _shown(c.precision), _shown(c.recall), _shown(c.f1)) for name, c in evaluation.per_class().items())
    return Outcome(
        outputs=outputs,
        figures=flat_figures(evaluation),
        facts={"run": folder.name, "split": split, "data": overlap["text"], "overlap": overlap, "family": model.family},
        verdicts=[verdict],
        table=Table(("class", "hits", "precision", "recall", "f1"), rows),
    )


def _view(taxonomy: Taxonomy, model: Model) -> View:
    """The model's view in the model's own class order, whatever the taxonomy's order is today.

    Raises
    ------
    ConfigError : `view-changed`, the taxonomy has other classes in this view than the model
    """
    view = taxonomy.view(model.view)
    if set(view.classes) != set(model.classes):
        raise ConfigError(
            f"view {model.view} has other classes than the model. Train again", code="view-changed", where="configs/taxonomy.yaml: views"
        )
    return View(view.name, model.classes, view.class_of)


def _shown(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
