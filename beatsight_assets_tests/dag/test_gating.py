"""Guards across runs: only green is green."""

import dagster as dg
import pytest

from beatsight_assets.dag import gating
from beatsight_assets.dag.checks import judge
from beatsight_assets.dag.checks.table import blocking_keys
from beatsight_assets_tests.dag.toys import Toys, made, refusals

DEMO, GROOVE = "beatsight_demo", "groove_mididataset"
BEFORE_TRAINING = (
    "merged_manifest",
    "crash_embeddings",
    "crash_mapping",
    "annotated_manifest",
    "near_duplicates",
    "splits",
    "manifest_health",
    "health_diff",
    "sampling_weights",
    "recording_features",
)
BEFORE_RELEASE = (*BEFORE_TRAINING, "candidate_model", "evaluation", "boundary_pack", "predictions", "readiness")


def states(toys: Toys, check: str = "schema") -> dict[str | None, str]:
    keys = [k for k in blocking_keys("events") if k.name == check]
    return {s.partition: s.state for s in gating.gate_states(toys.instance, keys, [DEMO, GROOVE])}


def test_nothing_made_is_refused(toys: Toys) -> None:
    """Guard G1 refuses when no dataset was ever made."""
    result = toys.run("merged_manifest")
    assert "no gate to rely on" in refusals(result, "merged_manifest") and made(result) == set()


def test_red_child_does_not_run(toys: Toys) -> None:
    """Inside one run a red blocking check keeps every child from running."""
    toys.events(DEMO)
    toys.red = {"splits/group_overlap"}
    result = toys.run(*BEFORE_TRAINING)
    assert not result.success
    assert made(result) == {"merged_manifest", "crash_embeddings", "crash_mapping", "annotated_manifest", "near_duplicates", "splits"}


def test_red_then_green_dataset(toys: Toys) -> None:
    """Guard G1 names a red dataset, and passes once it was made again and judged green."""
    toys.red = {f"events[{GROOVE}]/schema"}
    toys.events(DEMO, GROOVE)
    assert states(toys) == {DEMO: "green", GROOVE: "red"}
    result = toys.run("merged_manifest")
    assert refusals(result, "merged_manifest") == f"1 of 10 gates are not green: events[{GROOVE}]/schema is red"
    assert not result.filter_events(lambda e: e.is_step_up_for_retry)
    toys.red = set()
    toys.events(GROOVE)
    assert made(toys.run("merged_manifest")) == {"merged_manifest"}


def test_made_again_without_checks_is_stale(toys: Toys) -> None:
    """A pass about the materialization before is no pass."""
    toys.events(DEMO)
    toys.content[f"events[{DEMO}]"] = "2"
    toys.run("events", partition=DEMO, checks=False)
    assert states(toys) == {DEMO: "stale", GROOVE: "never"}
    assert "is stale" in refusals(toys.run("merged_manifest"), "merged_manifest")


def test_crashed_check_is_pending(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that died has judged nothing."""

    def dies(*_: object) -> object:
        raise RuntimeError("the check died")

    with monkeypatch.context() as patch:
        patch.setattr(judge, "load", dies)
        toys.events(DEMO)
    assert states(toys)[DEMO] == "pending"
    assert "is pending" in refusals(toys.run("merged_manifest"), "merged_manifest")


def test_events_replaced_by_hand(toys: Toys) -> None:
    """All states are green, but the file is not the one that was judged."""
    toys.events(DEMO)
    (toys.settings.layout.events(DEMO)).write_text("something else")
    assert states(toys)[DEMO] == "green"
    assert "is not the table that was judged" in refusals(toys.run("merged_manifest"), "merged_manifest")


def test_events_made_again_outside_dagster(toys: Toys) -> None:
    """The command line ingested another version after the checks: intact, but not what the check judged."""
    toys.events(DEMO)
    toys.content[f"events[{DEMO}]"] = "2"
    toys.work("events", DEMO)
    assert "is not the table that was judged" in refusals(toys.run("merged_manifest"), "merged_manifest")


def test_training_needs_every_gate(toys: Toys) -> None:
    """Guard G2: never, red, stale and green, without a single retry."""
    toys.events(DEMO)
    toys.run(*BEFORE_TRAINING[:-1])
    assert "recording_features/feature_shape is never" in refusals(toys.run("candidate_model"), "candidate_model")
    toys.red = {"recording_features/features_finite"}
    toys.run("recording_features")
    assert "recording_features/features_finite is red" in refusals(toys.run("candidate_model"), "candidate_model")
    toys.red = set()
    toys.run("recording_features", checks=False)
    assert "recording_features/feature_shape is stale" in refusals(toys.run("candidate_model"), "candidate_model")
    toys.run("recording_features")
    result = toys.run("candidate_model")
    assert made(result) == {"candidate_model"} and not result.filter_events(lambda e: e.is_step_up_for_retry)


def test_release_follows_the_digests(toys: Toys) -> None:
    """Guard G3: a merged manifest made again without checks stops promotion, by its state and by its digest (design ruling 32)."""
    toys.events(DEMO)
    assert toys.run(*BEFORE_RELEASE).success
    assert toys.run("promoted_model").success
    toys.content["merged_manifest"] = "2"
    toys.run("merged_manifest", checks=False)
    said = refusals(toys.run("promoted_model"), "promoted_model")
    assert "merged_manifest/conserves_rows is stale" in said
    assert "annotated_manifest: stale: it read another version of toys/merged_manifest.txt" in said
    toys.run("merged_manifest")
    said = refusals(toys.run("promoted_model"), "promoted_model")
    assert "gates are not green" not in said and "annotated_manifest: stale" in said
    assert toys.run(*BEFORE_RELEASE).success
    assert toys.run("promoted_model").success


def test_red_readiness_stops_the_release(toys: Toys) -> None:
    """Guard G3 refuses in a later run what a red readiness gate stopped in the first."""
    toys.events(DEMO)
    toys.red = {"readiness/openset"}
    result = toys.run(*BEFORE_RELEASE, "promoted_model")
    assert "readiness" in made(result) and "promoted_model" not in made(result)
    assert "readiness/openset is red" in refusals(toys.run("promoted_model"), "promoted_model")


def test_no_states_is_no_pass() -> None:
    """Nothing to rely on is a refusal, not an empty success."""
    with pytest.raises(dg.Failure, match="no gate to rely on") as refused:
        gating.require_green([])
    assert refused.value.allow_retries is False
