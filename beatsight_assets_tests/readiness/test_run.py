"""Stage readiness: which gates run, what they read, what is written, and what happens when something is missing or broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError, NothingToDo
from beatsight_assets.readiness import run as stage
from beatsight_assets.readiness.bootstrap import BootstrapLimits
from beatsight_assets.readiness.boundary import BoundaryLimits
from beatsight_assets.readiness.calibration import CalibrationLimits
from beatsight_assets.readiness.openset import OpenSetLimits
from beatsight_assets.readiness.rows import read_limits
from beatsight_assets.readiness.run import ReadinessOptions, judge_files
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, run_stage
from beatsight_assets.units import rng_for

CLASSES = ("kick", "snare", "crash")


def predictions(name: str, n: int, share_right: float) -> pl.DataFrame:
    """n single-hit rows; wrong rows say nothing."""
    rng = rng_for(1, name)
    rows = []
    for i in range(n):
        label = CLASSES[i % 3]
        p = dict.fromkeys(CLASSES, 0.02) | ({label: 0.98} if i < share_right * n else {})
        edge = ("leading", "trailing")[int(rng.integers(2))]
        rows.append(
            {"sample_id": f"{name}{i}:{edge}:1", "event_id": f"{name}{i}", "session_id": "s", "group_id": f"g{i % 12}", "onset_time": float(i), "labels": [label],
             "scores": [{"label": c, "p": v} for c, v in p.items()]}
        )  # fmt: skip
    return pl.DataFrame(rows)


def unknown_sounds(n: int) -> pl.DataFrame:
    rows = [
        {
            "sample_id": f"o{i}",
            "is_known": i % 2 == 0,
            "family": "drum" if i % 2 == 0 else "tone",
            "labels": [],
            "scores": [{"label": "kick", "p": 0.9 - 0.8 * (i % 2)}],
        }
        for i in range(n)
    ]
    return pl.DataFrame(rows, schema_overrides={"labels": pl.List(pl.String)})


def publish(settings: Settings, run: str = "r1", *, right: float = 1.0, without: tuple[str, ...] = ()) -> None:
    """A candidate with predictions, of which a share is right."""
    folder = settings.layout.candidate(run)
    settings.store.publish(folder / "model.safetensors", f"weights of {run} {right}".encode())
    settings.store.publish_json(folder / "model.json", {"threshold": 0.5, "run": run, "right": right})
    for name in ("val", "test", "boundary"):
        if name not in without:
            settings.store.publish_frame(settings.layout.run_dir(run) / "predictions" / f"{name}.parquet", predictions(name, 240, right))
    if "openset" not in without:
        settings.store.publish_frame(settings.layout.run_dir(run) / "predictions" / "openset.parquet", unknown_sounds(80))


def promote(settings: Settings, run: str, release: str, previous: dict[str, str] | None = None) -> None:
    digest = settings.store.sha256(settings.layout.candidate(run) / "model.safetensors")
    settings.store.publish_json(settings.layout.promoted / release / "promotion.json", {"previous": previous})
    settings.store.publish_json(settings.layout.current_model, {"release": release, "model_sha256": digest})


def test_a_good_candidate_passes_and_every_verdict_names_its_digests(settings: Settings) -> None:
    """Demo: four gates pass; each verdict names the model, the weights and the predictions; one file per gate and one for the release."""
    publish(settings)
    report = stage.run(settings, ReadinessOptions(run="r1"))
    assert [(v.gate, v.status) for v in report.verdicts] == [(g, "pass") for g in ("boundary", "openset", "bootstrap", "calibration")]
    model = settings.store.sha256(settings.layout.candidate("r1") / "model.json")
    test = settings.store.sha256(settings.layout.run_dir("r1") / "predictions" / "test.parquet")
    for verdict in report.verdicts:
        assert model in {a.sha256 for a in verdict.inputs}
        assert any(a.role.startswith("predictions_") for a in verdict.inputs)
    assert test in {a.sha256 for a in report.verdict("bootstrap").inputs}  # type: ignore[union-attr]
    folder = settings.layout.report("readiness", "r1")
    summary = store.read_json(folder / "readiness.json")
    assert (summary["passed"], summary["model_sha256"]) == (True, model)
    for check in summary["checks"]:
        assert settings.store.sha256(settings.layout.root / check["report"]) == check["sha256"]
    assert stage.run(settings, ReadinessOptions(run="r1")).reused


def test_a_bad_candidate_fails_where_it_is_bad(settings: Settings) -> None:
    """Half of the hits missed: boundary and calibration fail, the summary fails."""
    publish(settings, right=0.5)
    report = stage.run(settings, ReadinessOptions(run="r1"))
    assert {v.gate: v.passed for v in report.verdicts} == {"boundary": False, "openset": True, "bootstrap": True, "calibration": False}
    assert store.read_json(settings.layout.report("readiness", "r1") / "readiness.json")["passed"] is False


def test_the_run_is_found_by_the_receipt_of_the_predictions(settings: Settings) -> None:
    """Without --run the last predicted candidate is judged; without any there is nothing to judge (exit 1)."""
    with pytest.raises(NothingToDo) as caught:
        stage.run(settings)
    assert caught.value.exit_code == 1
    publish(settings, "r7")
    path = settings.layout.run_dir("r7") / "predictions" / "test.parquet"
    run_stage(settings, "predictions", version="1", options={}, parents=[], work=lambda: Outcome([("test", path, 240)]))
    assert stage.run(settings).facts["run"] == "r7"


def test_a_required_gate_without_input_fails(settings: Settings) -> None:
    """No openset predictions: that gate fails `no-input`, the others run."""
    publish(settings, without=("openset",))
    report = stage.run(settings, ReadinessOptions(run="r1"))
    assert [r.code for r in report.verdict("openset").reasons] == ["no-input"]  # type: ignore[union-attr]
    assert [v.gate for v in report.verdicts if v.passed] == ["boundary", "bootstrap", "calibration"]


def test_prod_requires_alignment(settings: Settings) -> None:
    """Alignment needs several microphones: in prod it is required and fails `no-input`."""
    publish(settings)
    report = stage.run(Settings(layout=settings.layout, profile="prod"), ReadinessOptions(run="r1"))
    assert [r.code for r in report.verdict("alignment").reasons] == ["no-input"]  # type: ignore[union-attr]
    assert not report.passed


def test_one_broken_gate_leaves_the_others(settings: Settings) -> None:
    """A check that raises is fail/error with its message; the others still run."""
    publish(settings)
    bad = predictions("boundary", 10, 1.0).with_columns(sample_id=pl.lit("same"))
    settings.store.publish_frame(settings.layout.run_dir("r1") / "predictions" / "boundary.parquet", bad)
    report = stage.run(settings, ReadinessOptions(run="r1"))
    reason = report.verdict("boundary").reasons[0]  # type: ignore[union-attr]
    assert (reason.code, "occurs twice" in reason.message) == ("error", True)
    assert [v.gate for v in report.verdicts if v.passed] == ["openset", "bootstrap", "calibration"]


def test_skip_checks_and_halt(settings: Settings) -> None:
    """--skip is listed and fails, --checks narrows, --halt-on-first-failure leaves the rest not-run."""
    publish(settings, right=0.5)

    def statuses(**options: object) -> dict[str, str]:
        stage.run(settings, ReadinessOptions(run="r1", **options))  # type: ignore[arg-type]
        summary = store.read_json(settings.layout.report("readiness", "r1") / "readiness.json")
        assert summary["passed"] is False
        return {c["gate"]: c["status"] for c in summary["checks"]}

    assert statuses(skip=("openset",))["openset"] == "skipped"
    assert statuses(checks=("openset",)) == {"openset": "pass"}
    assert statuses(halt_on_first_failure=True) == {
        "boundary": "fail",
        "openset": "not-run",
        "bootstrap": "not-run",
        "calibration": "not-run",
    }
    with pytest.raises(ConfigError):
        statuses(checks=("bounday",))


def test_a_pack_row_without_prediction_fails_boundary(settings: Settings) -> None:
    """The pack is the truth: a row that nobody predicted is a missing prediction."""
    publish(settings)
    settings.store.publish(
        settings.layout.report("readiness", "boundary_pack") / "labels.jsonl",
        b'{"sample_id": "x:leading:0", "labels": ["kick"], "edge": "leading"}\n',
    )
    verdict = stage.run(settings, ReadinessOptions(run="r1")).verdict("boundary")
    assert [r.code for r in verdict.reasons] == ["missing-prediction"]  # type: ignore[union-attr]


def test_the_second_release_is_compared_with_the_first(settings: Settings) -> None:
    """From the second release on bootstrap and calibration judge against the champion, found by its digest; a worse one is blocked."""
    publish(settings, "r1")
    first = stage.run(settings, ReadinessOptions(run="r1"))
    assert first.verdict("bootstrap").rule("macro_f1_regression").waived  # type: ignore[union-attr]
    promote(settings, "r1", "drums-1")
    again = stage.run(settings, ReadinessOptions(run="r1"))
    assert again.reused  # judging the champion again changes nothing
    publish(settings, "r2", right=0.9)
    second = stage.run(settings, ReadinessOptions(run="r2"))
    rules = {r.name: r.passed for r in second.verdict("bootstrap").rules}  # type: ignore[union-attr]
    assert rules == {"support": True, "macro_f1_regression": False}
    assert not second.verdict("calibration").rule("brier_rise").passed  # type: ignore[union-attr]
    paired = store.read_json(settings.layout.report("readiness", "r2") / "bootstrap.json")["report"]["paired_difference"]
    assert paired["macro_f1"]["ci_upper"] < 0
    with pytest.raises(ConfigError):
        stage.run(settings, ReadinessOptions(run="r2", release="r1"))


def test_a_champion_that_was_never_judged_is_no_baseline(settings: Settings) -> None:
    """CURRENT.json names a model without a readiness report: fail `no-baseline`, never a silent waiver."""
    publish(settings, "r1")
    publish(settings, "r0", right=0.99)
    promote(settings, "r0", "old")
    report = stage.run(settings, ReadinessOptions(run="r1"))
    assert [r.code for r in report.verdict("bootstrap").reasons] == ["no-baseline"]  # type: ignore[union-attr]


def test_a_candidate_without_a_model_or_with_a_bad_name_is_refused(settings: Settings) -> None:
    """A missing model exits 3; a release name cannot leave the reports."""
    with pytest.raises(InputError) as caught:
        stage.run(settings, ReadinessOptions(run="nobody"))
    assert caught.value.code == "missing-input"
    publish(settings)
    with pytest.raises(ConfigError) as escape:
        stage.run(settings, ReadinessOptions(run="r1", release="../../x"))
    assert escape.value.code == "path-escape"


@pytest.mark.parametrize("profile", ["demo", "dev", "prod"])
def test_shipped_limits_are_read(settings: Settings, profile: str) -> None:
    """Every readiness section of every profile is spelled right, and its required gates are gates."""
    gates = Settings(layout=settings.layout, profile=profile).gates
    for gate, kind in (
        ("boundary", BoundaryLimits),
        ("openset", OpenSetLimits),
        ("bootstrap", BootstrapLimits),
        ("calibration", CalibrationLimits),
    ):
        read_limits(kind, gates.readiness[gate], profile)
    assert set(gates.required) <= set(stage.GATES)


@pytest.mark.data
@pytest.mark.parametrize(
    ("gate", "truth", "said", "passed"), [("boundary", "boundary_labels", "boundary_predictions", True), ("openset", "openset_ground_truth", "openset_predictions", False), ("bootstrap", "bootstrap_ground_truth", "bootstrap_predictions", True)]
)  # fmt: skip
def test_example_files_are_judged_by_the_profile(
    settings: Settings, shared_data: Path, gate: str, truth: str, said: str, passed: bool
) -> None:
    """Each example pair of the seed runs through its gate under demo limits; one known sample is too few for openset."""
    folder = shared_data / "beatsight_formats/ai-pipeline/training/examples"
    verdict = judge_files(settings, gate, folder / f"{truth}_example.jsonl", folder / f"{said}_example.jsonl", first_release=True)
    assert verdict.passed is passed
    assert len(verdict.inputs) == 2


def test_files_of_calibration_are_split_by_the_truth(settings: Settings, tmp_path: Path) -> None:
    """`readiness calibration` on two files: the truth says which split a row is in."""
    rows = predictions("x", 240, 1.0)
    rows.with_columns(split=pl.Series(np.where(np.arange(240) < 120, "val", "test"))).drop("scores").write_parquet(
        tmp_path / "truth.parquet"
    )
    rows.select("sample_id", "scores").write_parquet(tmp_path / "said.parquet")
    verdict = judge_files(settings, "calibration", tmp_path / "truth.parquet", tmp_path / "said.parquet", first_release=True)
    assert verdict.passed
    assert verdict.support["decisions_val"] == 360
