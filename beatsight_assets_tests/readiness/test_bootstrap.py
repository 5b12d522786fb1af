"""Gate bootstrap: intervals, and the comparison with the release before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.readiness import bootstrap
from beatsight_assets.readiness.bootstrap import BootstrapFigures, BootstrapLimits, Interval
from beatsight_assets.readiness.rows import SAMPLE_SCHEMA, read_samples

DEMO = BootstrapLimits(min_rows=2, min_groups=1)


def table(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame([{"line": i, **r} for i, r in enumerate(rows, 1)], schema=SAMPLE_SCHEMA, orient="row")


def single(n: int, n_right: int, groups: int | None = None) -> pl.DataFrame:
    """n single-label rows over two classes, of which n_right are predicted right."""
    rows: list[dict[str, object]] = []
    for i in range(n):
        label, other = ("kick", "snare") if i % 2 else ("snare", "kick")
        said = label if i < n_right else other
        rows.append(
            {
                "sample_id": f"s{i:04d}",
                "labels": [label],
                "scores": [{"label": said, "p": 0.9}],
                "group_id": None if groups is None else f"g{i % groups}",
            }
        )
    return table(rows)


def test_quantiles_interpolate_linearly() -> None:
    """Values 1..1000 give 25.975 and 975.025."""
    found = Interval.of(500.0, np.arange(1, 1001, dtype=np.float64), 10)
    assert (found.ci_lower, found.ci_upper, found.mean) == (25.975, 975.025, 500.5)


def test_all_right_gives_intervals_of_one() -> None:
    """All predictions right: every interval is [1, 1]."""
    rows = single(50, 50)
    for interval in bootstrap.measure(rows, rows).metrics.values():
        assert (interval.point_estimate, interval.ci_lower, interval.ci_upper) == (1.0, 1.0, 1.0)


def test_160_of_200_rows() -> None:
    """160 right of 200 single-label rows: micro F1 0.8, interval 0.745..0.855 within 0.01."""
    rows = single(200, 160)
    micro = bootstrap.measure(rows, rows).metrics["micro_f1"]
    assert micro.point_estimate == 0.8
    assert (micro.ci_lower, micro.ci_upper) == pytest.approx((0.745, 0.855), abs=0.01)


def test_resamples_equal_a_slow_loop() -> None:
    """Macro, micro and example F1 of every resample equal those counted row by row; a class that no drawn row holds is left out."""
    rng = np.random.Generator(np.random.PCG64(5))
    rows = table([
        {"sample_id": f"s{i:02d}", "labels": [c for c in "ab" if rng.random() < 0.3] + ["c"] * (i == 0),
         "scores": [{"label": c, "p": float(rng.random()) * (c != "c" or i == 0)} for c in "abcd"], "group_id": f"g{i % 5}"}
        for i in range(30)
    ])  # fmt: skip
    found = bootstrap.measure(rows, rows, iterations=100, seed=9)
    truth = [set(x) for x in rows["labels"]]
    said = [{s["label"] for s in x if s["p"] >= 0.5} for x in rows["scores"]]
    names = sorted(set(rows["group_id"]))
    draw = np.random.Generator(np.random.PCG64(9))
    macro, micro, example = [], [], []
    for _ in range(100):
        picked = [i for u in draw.integers(0, 5, 5) for i in range(30) if rows["group_id"][i] == names[u]]
        scores, total = [], np.zeros(3)
        for c in "abcd":
            counts = np.array(
                [
                    sum(c in truth[i] and c in said[i] for i in picked),
                    sum(c not in truth[i] and c in said[i] for i in picked),
                    sum(c in truth[i] and c not in said[i] for i in picked),
                ]
            )
            total += counts
            if c != "d" and counts.sum():
                scores.append(2 * counts[0] / (2 * counts[0] + counts[1] + counts[2]))
        macro.append(np.mean(scores))
        micro.append(2 * total[0] / (2 * total[0] + total[1] + total[2]))
        example.append(
            np.mean([2 * len(truth[i] & said[i]) / (len(truth[i]) + len(said[i])) if truth[i] or said[i] else 1.0 for i in picked])
        )
    for name, values in (("macro_f1", macro), ("micro_f1", micro), ("example_f1", example)):
        assert found.metrics[name].ci_lower == pytest.approx(np.quantile(values, 0.025))
        assert found.metrics[name].mean == pytest.approx(np.mean(values))
    assert (found.unit, found.n_units) == ("group", 5)


def test_the_unit_is_the_group_when_every_row_names_one() -> None:
    """One row without a group makes the row the unit; asking for groups then is an error."""
    rows = single(20, 15, groups=4)
    assert bootstrap.measure(rows, rows).unit == "group"
    loose = rows.with_columns(group_id=pl.when(pl.col("sample_id") == "s0003").then(None).otherwise(pl.col("group_id")))
    assert bootstrap.measure(loose, loose).unit == "row"
    with pytest.raises(ConfigError):
        bootstrap.measure(loose, loose, unit="group")


def test_same_seed_same_bytes_whatever_the_row_order() -> None:
    """Equal rows in another order give equal figures; another seed does not."""
    rows = single(60, 45)
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=4)
    assert bootstrap.measure(rows, rows) == bootstrap.measure(shuffled, shuffled)
    assert bootstrap.measure(rows, rows) != bootstrap.measure(rows, rows, seed=1)


@pytest.mark.parametrize("iterations", [0, 99])
def test_fewer_than_100_iterations_are_refused(iterations: int) -> None:
    """--iterations 0 or < 100 exits 2."""
    rows = single(4, 4)
    with pytest.raises(ConfigError) as caught:
        bootstrap.measure(rows, rows, iterations=iterations)
    assert caught.value.exit_code == 2


def figures(truth: str = "t", **metrics: tuple[float, float, float]) -> BootstrapFigures:
    intervals = {name: Interval(point, point, low, high, 50) for name, (point, low, high) in metrics.items()}
    return BootstrapFigures(intervals, "group", 500, 50, 50, 0, 1000, 2025, truth)


@pytest.mark.parametrize(
    ("metric", "before", "now", "blocked", "flagged"),
    [
        ("macro_f1", (0.920, 0.910, 0.930), (0.880, 0.870, 0.890), True, False),
        ("macro_f1", (0.920, 0.910, 0.930), (0.895, 0.885, 0.905), False, False),
        ("macro_f1", (0.920, 0.880, 0.950), (0.870, 0.840, 0.900), False, True),
        ("macro_f1", (0.920, 0.910, 0.930), (0.950, 0.940, 0.960), False, False),
        ("openness_mae", (0.080, 0.075, 0.085), (0.110, 0.104, 0.116), True, False),
        ("openness_mae", (0.080, 0.075, 0.085), (0.098, 0.092, 0.104), False, False),
    ],
)
def test_release_gate(
    metric: str, before: tuple[float, float, float], now: tuple[float, float, float], blocked: bool, flagged: bool
) -> None:
    """Section 8: every row of its verdict table."""
    verdict = bootstrap.judge(figures(**{metric: now}), BootstrapLimits(), baseline=figures(**{metric: before}))
    assert verdict.passed is not blocked
    assert verdict.support["large_but_uncertain"] == ([metric] if flagged else [])


def test_the_comparison_is_waived_only_on_a_first_release() -> None:
    """No baseline: waived on the first release (on record), else no-baseline."""
    f1 = figures(macro_f1=(0.9, 0.8, 1.0))
    first = bootstrap.judge(f1, BootstrapLimits(), first_release=True)
    assert first.passed
    assert [r.name for r in first.rules if r.waived] == ["macro_f1_regression", "openness_mae_regression"]
    assert "first-release" in first.rule("macro_f1_regression").detail  # type: ignore[union-attr]
    later = bootstrap.judge(f1, BootstrapLimits())
    assert [r.code for r in later.reasons] == ["no-baseline"]


def test_another_truth_or_a_lost_metric_fails() -> None:
    """Different ground-truth digests are not comparable; a metric of the baseline that is gone fails."""
    before = figures(macro_f1=(0.9, 0.8, 1.0), openness_mae=(0.1, 0.05, 0.2))
    assert [r.code for r in bootstrap.judge(figures("other", macro_f1=(0.9, 0.8, 1.0)), BootstrapLimits(), baseline=before).reasons] == [
        "not-comparable"
    ]
    assert [r.code for r in bootstrap.judge(figures(macro_f1=(0.9, 0.8, 1.0)), BootstrapLimits(), baseline=before).reasons] == [
        "lost-metric"
    ]


def test_too_few_rows_nothing_and_missing_predictions() -> None:
    """Fewer than 200 rows or 10 groups fail under prod; no row is nothing to judge; a row without prediction fails."""
    small = single(199, 199, groups=10)
    assert [r.code for r in bootstrap.judge(bootstrap.measure(small, small), BootstrapLimits(), first_release=True).reasons] == [
        "too-few-samples"
    ]
    few = single(300, 300, groups=9)
    assert [r.code for r in bootstrap.judge(bootstrap.measure(few, few), BootstrapLimits(), first_release=True).reasons] == [
        "too-few-samples"
    ]
    enough = single(200, 200, groups=10)
    assert bootstrap.judge(bootstrap.measure(enough, enough), BootstrapLimits(), first_release=True).passed
    none = bootstrap.judge(bootstrap.measure(small.clear(), small), DEMO, first_release=True)
    assert "nothing-to-judge" in [r.code for r in none.reasons]
    assert "missing-prediction" in [
        r.code for r in bootstrap.judge(bootstrap.measure(small, small.head(10)), DEMO, first_release=True).reasons
    ]


def test_paired_difference_knows_more_than_two_intervals() -> None:
    """A model that errs on the same rows and four more is worse in every resample, while the single intervals overlap."""
    new, old = single(400, 380), single(400, 384)
    paired = bootstrap.paired_difference(new, new, old)
    assert paired is not None
    assert paired["micro_f1"].point_estimate == pytest.approx(-0.01)
    assert paired["micro_f1"].ci_upper <= 0.0
    assert bootstrap.measure(new, new).metrics["micro_f1"].ci_upper > bootstrap.measure(old, old).metrics["micro_f1"].ci_lower
    assert bootstrap.paired_difference(new, new, old.head(10)) is None


def test_figures_survive_their_file() -> None:
    """to_json and from_json are inverse; another JSON is refused."""
    rows = single(30, 20)
    found = bootstrap.measure(rows, rows)
    assert BootstrapFigures.from_json(found.to_json()) == found
    with pytest.raises(InputError):
        BootstrapFigures.from_json({"metrics": {}})


@pytest.mark.data
def test_example_files_of_the_seed(shared_data: Path) -> None:
    """Two-row example: macro F1 1.0, openness MAE 0.03, velocity MAE 0.045, fail too-few-samples under prod."""
    folder = shared_data / "beatsight_formats/ai-pipeline/training/examples"
    truth, predictions = (read_samples(folder / f"bootstrap_{name}_example.jsonl") for name in ("ground_truth", "predictions"))
    found = bootstrap.measure(truth, predictions)
    points = {name: interval.point_estimate for name, interval in found.metrics.items()}
    assert (points["macro_f1"], points["openness_mae"], points["velocity_mae"]) == pytest.approx((1.0, 0.03, 0.045))
    assert [r.code for r in bootstrap.judge(found, BootstrapLimits(), first_release=True).reasons] == ["too-few-samples"]
    assert bootstrap.judge(found, DEMO, first_release=True).passed
