"""The demo, by the real command on a real Dagster instance: green, honest, repeatable; and a promotion that cannot be talked into.

One worker runs them all: they share a demo that takes about a minute and a half.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from beatsight_assets import midi, sources, stages
from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.instance import open_instance
from beatsight_assets.errors import BeatSightError, GateFailed, InputError
from beatsight_assets.manifest import merge
from beatsight_assets.model import promote
from beatsight_assets.settings import Settings
from beatsight_assets_tests.e2e.conftest import Done, beatsight

pytestmark = pytest.mark.slow
Roots = tuple[Path, Done]


def test_the_demo_is_green_and_says_what_it_built(demo: Roots) -> None:
    """From nothing to a promoted model; the closing words name gates, faults and next steps."""
    root, done = demo
    assert done.code == 0, done.out + done.err
    for word in (
        "The demo is green",
        "pooled F",
        "Planted faults",
        "truncated-midi 1",
        "split_conflict 1",
        "-> train",
        "transcribe run",
        "openset/auroc",
        "bundle training: 2,343 clips",
    ):
        assert word in done.out
    assert "epoch" in done.err and "takes" in done.err, "progress is visible all the way"
    assert (root / "models/promoted/CURRENT.json").is_file()
    assert (root / "bundles/training/BUNDLE.json").is_file()


def test_the_demo_data_is_what_ruling_25_asks_for(demo: Roots) -> None:
    """At least 24 takes, 6 kits for training, 2 kits only in test, 20 hits of each of 18 classes in val and test."""
    root, _ = demo
    render = json.loads((root / "receipts/rendered_audio/beatsight_demo.json").read_text())
    assert render["figures"]["takes"] >= 24
    assert 6.0 <= render["figures"]["minutes"] <= 9.0
    assert 35e6 <= render["figures"]["bytes"] <= 60e6
    splits = pl.read_parquet(root / "manifest/splits.parquet").select("group_id", "split")
    events = pl.read_parquet(root / "manifest/annotated.parquet").join(splits, on="group_id")
    kits = {s: set(k) for s, k in events.group_by("split").agg(pl.col("kit_id").unique()).iter_rows()}
    assert len(kits["train"]) >= 6 and len(kits["test"]) >= 2 and not kits["test"] & (kits["train"] | kits["val"])
    evaluation = json.loads((root / "receipts/evaluation.json").read_text())
    judged = [r for v in evaluation["verdicts"] for r in v["rules"] if r["name"].startswith("class_recall[")]
    assert len(judged) == 18 and all(r["passed"] for r in judged)


def test_every_gate_value_in_the_ui_is_a_number(demo_copy: Path, settings_of: Callable[[Path], Settings]) -> None:
    """Dagster keeps history plots of floats only."""
    with open_instance(settings_of(demo_copy)) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("evaluation"))
    assert event is not None and event.asset_materialization is not None
    assert isinstance(event.asset_materialization.metadata["pooled_f1"], dg.FloatMetadataValue)


def test_a_second_demo_does_almost_nothing(demo: Roots, demo_copy: Path) -> None:
    """What is unchanged is kept, byte for byte, and the command says so."""
    before = {r.stage: r.digest for r in _receipts(demo_copy)}
    done = beatsight(demo_copy, "demo")
    assert done.code == 0, done.out + done.err
    assert "Nothing had changed for" in done.out
    assert "epoch" not in done.err
    after = {r.stage: r.digest for r in _receipts(demo_copy)}
    assert {k: v for k, v in after.items() if k != "health_diff"} == {k: v for k, v in before.items() if k != "health_diff"}


def _receipts(root: Path) -> list[stages.Report]:
    return [stages.Report.from_json(json.loads(p.read_text())) for p in sorted((root / "receipts").rglob("*.json"))]


def _change_a_take(root: Path) -> None:
    """Raw data moves on: one training take is played differently."""
    path = root / "raw/beatsight_demo/midi/t02.mid"
    content = midi.write_midi([(500_000 * i, 36, 90) for i in range(1, 20)])
    path.unlink()  # a hard link: the original stays as it is
    path.write_bytes(content)


def test_promotion_refuses_when_events_moved_on_after_the_merge(demo_copy: Path, settings_of: Callable[[Path], Settings]) -> None:
    """The digest chain breaks at the merge, whatever the states of later checks are."""
    settings = settings_of(demo_copy)
    _change_a_take(demo_copy)
    sources.ingest(settings, "demo")
    with pytest.raises(GateFailed, match=r"merged_manifest: stale: it read another version of events/beatsight_demo.parquet"):
        promote.run(settings, promote.PromoteOptions("next"))
    assert not (settings.layout.promoted / "next").exists()


def test_promotion_refuses_a_merge_made_again_without_what_follows(demo_copy: Path, settings_of: Callable[[Path], Settings]) -> None:
    """A manifest re-made from newer events leaves the candidate resting on an older one: refused until everything after it is made again."""
    settings = settings_of(demo_copy)
    _change_a_take(demo_copy)
    sources.ingest(settings, "demo")
    merge.run(settings)
    with pytest.raises(GateFailed, match=r"annotated_manifest: stale: it read another version of manifest/merged.parquet"):
        promote.run(settings, promote.PromoteOptions("next"))


def test_promotion_in_dagster_refuses_a_merge_that_was_not_judged_again(demo_copy: Path, settings_of: Callable[[Path], Settings]) -> None:
    """The merge is materialised without its checks: Dagster still shows the old pass, the guard does not take it."""
    settings = settings_of(demo_copy)
    defs = build_defs(settings=settings)
    with open_instance(settings) as instance:
        merged = [defs.resolve_assets_def(name) for name in ("merged_manifest", "events", "rendered_audio")]
        selection = dg.AssetSelection.assets("merged_manifest").without_checks()
        again = dg.materialize(merged, instance=instance, selection=selection)
        assert again.success and not again.get_asset_check_evaluations()
        result = defs.resolve_job_def("promote_job").execute_in_process(instance=instance, raise_on_error=False)
        failures = result.filter_events(lambda e: e.is_step_failure)
    assert not result.success
    said = " ".join(str(e.step_failure_data.error) + str(e.step_failure_data.user_failure_data) for e in failures)
    assert "merged_manifest" in said and "stale" in said


def test_a_flipped_byte_in_the_candidate_is_found_before_anything_is_written(
    demo_copy: Path, settings_of: Callable[[Path], Settings]
) -> None:
    """Weights that are not those that were judged are never served."""
    settings = settings_of(demo_copy)
    weights = next((demo_copy / "models/candidates").rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.unlink()
    weights.write_bytes(bytes(content))
    with pytest.raises(InputError, match="not the file that was judged") as failure:
        promote.run(settings, promote.PromoteOptions("next"))
    assert failure.value.code == "digest-mismatch"
    assert not (settings.layout.promoted / "next").exists()


def test_a_demo_release_is_no_prod_release(demo_copy: Path) -> None:
    """Verdicts by the demo's limits do not promote under prod settings."""
    done = beatsight(demo_copy, "model", "promote", "--release", "prod-1", profile="prod")
    assert done.code == 1
    assert "judged by the limits of demo, this is prod" in done.err


def test_stricter_limits_after_judging_are_not_promoted_past(demo_copy: Path, settings_of: Callable[[Path], Settings]) -> None:
    """Verdicts by limits that no longer hold are no verdicts."""
    settings = settings_of(demo_copy)
    own = demo_copy / "configs/gates/demo.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(settings.config_path("gates/demo").read_text().replace("pooled_f1: 0.75", "pooled_f1: 0.99"))
    with pytest.raises(GateFailed, match=r"evaluation: stale-limits: it was judged by other limits than configs/gates holds now"):
        promote.run(settings_of(demo_copy), promote.PromoteOptions("tight"))


def test_the_command_line_overwrites_no_input_and_no_product(demo_copy: Path) -> None:
    """A report or an export named onto a file of the data root is refused, save below reports/."""
    for place in ("raw/beatsight_demo/takes.csv", "manifest/annotated.parquet", "models/promoted/CURRENT.json"):
        before = (demo_copy / place).read_bytes()
        done = beatsight(demo_copy, "source", "list", "--report", str(demo_copy / place))
        assert (done.code, (demo_copy / place).read_bytes()) == (2, before)
        assert "would-overwrite" in done.err
    done = beatsight(demo_copy, "source", "list", "--report", str(demo_copy / "reports/sources.json"))
    assert done.code == 0 and (demo_copy / "reports/sources.json").is_file()


def test_promoting_again_changes_nothing_and_another_model_cannot_take_the_name(
    demo_copy: Path, settings_of: Callable[[Path], Settings]
) -> None:
    """A release name stands for one model."""
    settings = settings_of(demo_copy)
    release = json.loads(settings.layout.current_model.read_text())["release"]
    assert promote.run(settings, promote.PromoteOptions(release)).reused
    other = settings.layout.promoted / "taken"
    shutil.copytree(settings.layout.promoted / release, other)
    record = json.loads((other / "promotion.json").read_text()) | {"model_sha256": "0" * 64}
    (other / "promotion.json").unlink()
    (other / "promotion.json").write_text(json.dumps(record))
    with pytest.raises(BeatSightError) as failure:
        promote.run(settings, promote.PromoteOptions("taken"))
    assert (failure.value.code, failure.value.exit_code) == ("release-exists", 2)


def test_transcribing_a_take_of_an_unseen_kit(demo: Roots, tmp_path: Path) -> None:
    """The promoted model turns audio into .bsm, MIDI and a label track, and the score against the truth is what the gate promised."""
    root, _ = demo
    take = "t25"
    done = beatsight(root, "transcribe", "run", "--input", str(root / f"raw/beatsight_demo/audio/{take}.wav"), "--output", str(tmp_path / "out.bsm"),
                     "--format", "bsm,midi,audacity")  # fmt: skip
    assert done.code == 0, done.err
    assert {p.name for p in tmp_path.iterdir()} >= {"out.bsm", "out.mid", "out.txt"}
    document = json.loads((tmp_path / "out.bsm").read_text())
    assert document["version"] == "1.1.0" and len(document["hitObjects"]) > 20
    scored = beatsight(
        root, "--", "transcribe", "score", str(root / f"raw/beatsight_demo/midi/{take}.mid"), str(tmp_path / "out.mid"), "--json"
    )
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["views"]["drums5"]["50"]["overall"]["f1"] > 0.7


def test_raw_data_is_untouched_by_every_later_stage(demo: Roots) -> None:
    """After its data is made, the demo reads raw/ and nothing more: the listing is the one that ingest saw."""
    root, _ = demo
    receipt = json.loads((root / "receipts/events/beatsight_demo.json").read_text())
    assert receipt["options"]["listing"] == [sources.listing_digest(root / "raw/beatsight_demo")]
