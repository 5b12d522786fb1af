"""The evaluation gate: figures, limits, champion, overlap with training."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from beatsight_assets.errors import ConfigError, GateFailed
from beatsight_assets.model import evaluate, train
from beatsight_assets.model.evaluate import Comparison, EvaluateOptions, Evaluation, Limits, coarse_columns, compare, judge
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.model.factories import make_root, warm
from beatsight_assets_tests.model.test_train import options

TAXONOMY = Taxonomy.shipped()
LIMITS = Limits(pooled_f1=0.75, pooled_precision=0.6, pooled_recall=0.6, class_recall=0.25, class_f1_drop=0.03, pooled_f1_drop=0.01)


def evaluation(*recordings: list[tuple[int, int, int]], classes: tuple[str, ...] = ("kick", "snare")) -> Evaluation:
    """Counts by recording: one (TP, FP, FN) per class."""
    counts = np.array(recordings, dtype=np.int64).reshape(len(recordings), len(classes), 3)
    return Evaluation(
        classes=classes,
        sessions=tuple(f"s{i}" for i in range(len(recordings))),
        counts=counts,
        fine=counts,
        coarse=counts,
        coarse_classes=classes,
        by={},
        velocity_mae=None,
        openness_mae=None,
        seconds=1.0,
    )


def rule(verdict: Any, name: str) -> Any:
    """The rule of that name."""
    found = verdict.rule(name)
    assert found is not None, name
    return found


def test_figures_stand_beside_their_limits() -> None:
    """Pooled figures are micro averages; every limit of the profile has its rule; no champion waives the comparison, on record."""
    verdict = judge(evaluation([(80, 20, 10), (40, 10, 20)]), LIMITS, None)
    assert verdict.passed
    assert rule(verdict, "pooled_f1").value == pytest.approx(240 / 300)
    assert rule(verdict, "pooled_precision").value == 0.8 and rule(verdict, "pooled_recall").value == 0.8
    assert rule(verdict, "pooled_f1_against_champion").waived and rule(verdict, "class_f1_drop").waived
    assert "first-release" in rule(verdict, "class_f1_drop").detail


@pytest.mark.parametrize(("hits", "found", "passed"), [(20, 5, False), (20, 6, True), (100, 25, False), (100, 26, True)])
def test_class_recall_is_above_its_limit_not_at_it(hits: int, found: int, passed: bool) -> None:
    """0.25 fails at exactly 0.25."""
    verdict = judge(evaluation([(900, 0, 0), (found, 0, hits - found)]), LIMITS, None)
    assert rule(verdict, "class_recall[snare]").passed is passed


def test_a_class_with_too_few_hits() -> None:
    """Where every class is due (demo) 19 hits fail as too-few-samples; elsewhere the class is waived, on record."""
    few = evaluation([(900, 0, 0), (19, 0, 0)])
    strict, loose = judge(few, replace(LIMITS, every_class=True), None), judge(few, LIMITS, None)
    assert not strict.passed and [r.code for r in strict.reasons] == ["too-few-samples"]
    assert loose.passed and rule(loose, "class_recall[snare]").waived


def test_nothing_to_judge_is_no_pass() -> None:
    """A split without hits fails."""
    verdict = judge(evaluation(), LIMITS, None)
    assert not verdict.passed and verdict.to_json()["reasons"][0]["code"] == "nothing-to-judge"


def test_the_champion_is_compared_on_the_same_recordings() -> None:
    """Lower 95 % bound above -0.01 and no class down by more than .03 (gates.md 14, frame)."""
    good, bad = [(90, 10, 10), (90, 10, 10)], [(50, 50, 50), (90, 10, 10)]
    same = compare(evaluation(*[good] * 6), evaluation(*[good] * 6), "v1")
    worse = compare(evaluation(*[bad] * 6), evaluation(*[good] * 6), "v1")
    assert (same.difference, same.lower, same.upper) == (0.0, 0.0, 0.0)
    assert judge(evaluation(*[good] * 6), LIMITS, same).passed
    verdict = judge(evaluation(*[bad] * 6), LIMITS, worse)
    assert not rule(verdict, "pooled_f1_against_champion").passed
    assert not rule(verdict, "class_f1_drop[kick]").passed and rule(verdict, "class_f1_drop[snare]").passed
    assert worse == compare(evaluation(*[bad] * 6), evaluation(*[good] * 6), "v1")


def test_a_drop_of_exactly_three_points_passes() -> None:
    """The limit is at most .03."""
    at, over = (Comparison("v1", 0.0, 0.0, 0.0, {"kick": d}) for d in (0.03, 0.0301))
    assert judge(evaluation([(90, 0, 0), (90, 0, 0)]), LIMITS, at).passed
    assert not judge(evaluation([(90, 0, 0), (90, 0, 0)]), LIMITS, over).passed


def test_an_unknown_limit_is_a_config_error(settings: Settings) -> None:
    """A typo in configs/gates never removes a limit silently."""
    own = settings.layout.root / "configs/gates/demo.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(settings.config_path("gates/demo").read_text().replace("pooled_f1:", "poled_f1:"))
    with pytest.raises(ConfigError, match="poled_f1") as caught:
        Limits.read(settings)
    assert caught.value.code == "bad-config"


def test_fine_classes_count_as_the_coarse_class_of_their_components() -> None:
    """drums18 to drums5: cross stick is SD, ride is CY, the aux class has none."""
    fine, coarse = TAXONOMY.view("drums18"), TAXONOMY.view("drums5")
    found = dict(zip(fine.classes, coarse_columns(fine, coarse), strict=True))
    names = {c: coarse.classes[i] if i >= 0 else None for c, i in found.items()}
    assert names["cross_stick"] == "SD" and names["ride_bow"] == "CY" and names["tom_mid"] == "TT" and names["aux_percussion"] is None


def test_the_stage_judges_the_candidate_it_names(settings: Settings) -> None:
    """Weights are among the parents, the data behind the figure are named with their overlap, a second run is reused."""
    make_root(settings, seconds=3.0)
    warm(settings)
    with pytest.raises(GateFailed) as caught:
        evaluate.run(settings)
    assert caught.value.code == "no-candidate"
    candidate = train.run(settings, options(overrides={"epochs": 2}))
    report = evaluate.run(settings)
    assert candidate.output("model").sha256 in {a.sha256 for a in report.parents}
    found = json.loads((settings.layout.root / report.output("evaluation").path).read_text())
    assert found["n_recordings"] == 2 and found["pooled"]["support"] == sum(c["support"] for c in found["per_class"].values())
    assert found["overlap_with_training"] == {
        "kits": [],
        "groups": [],
        "text": "2 recordings of beatsight_demo, 2 synthetic; kits shared with training: none; takes shared with training: 0",
    }
    assert evaluate.run(settings).reused
    seen = evaluate.run(settings, EvaluateOptions(split="val"))
    assert seen.partition == "val" and seen.facts["split"] == "val"
    with pytest.raises(ConfigError):
        evaluate.run(settings, EvaluateOptions(split="train"))
