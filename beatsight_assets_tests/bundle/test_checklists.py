"""`checklist pre-export` and `post-export`: steps in order, the first failure stops them, and no step passes that did nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.checklist.steps import Step, run_steps, run_tests
from beatsight_assets.errors import InputError
from beatsight_assets.settings import Settings
from beatsight_assets_tests.bundle.conftest import Beatsight


@pytest.fixture
def only_demo(made: Settings) -> Settings:
    """`made` with the demo as the only dataset, and one that has to be there."""
    datasets = {"beatsight_demo": made.datasets["beatsight_demo"].model_dump(mode="json") | {"optional": False}}
    made.store.publish_json(made.layout.at("configs/datasets.yaml"), {"datasets": datasets})
    return made


def statuses(found: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in found["steps"]}


def test_steps_stop_at_the_first_failure(settings: Settings) -> None:
    """An error of ours is a failed step with its words; what follows did not run, or did with keep_going; the report is published."""
    called: list[str] = []

    def works(name: str) -> tuple[bool, Any]:
        called.append(name)
        if name == "b":
            raise InputError("the list is torn", code="bad-checksum-line", where="x:3")
        return True, {"n": 1}

    steps = [Step(name, lambda name=name: works(name)) for name in "abc"]  # type: ignore[misc]
    target = settings.layout.report("ingest", "list.json")
    found = run_steps(settings, steps, target)
    assert (statuses(found), called, found["passed"]) == ({"a": "pass", "b": "fail", "c": "not-run"}, ["a", "b"], False)
    assert found["steps"][1]["report"] == {"error": "bad-checksum-line", "message": "bad-checksum-line: the list is torn (x:3)"}
    assert json.loads(target.read_text()) == found and set(found["steps"][0]) == {"name", "status", "seconds", "report"}
    assert statuses(run_steps(settings, steps, target, keep_going=True)) == {"a": "pass", "b": "fail", "c": "pass"}
    assert run_steps(settings, [], target)["passed"] is False, "nothing done is no pass"


def test_our_own_tests_run_as_a_step() -> None:
    """A file of tests passes with pytest's own summary; one that is not there fails."""
    passed, report = run_tests(["test_units_errors.py"])
    assert passed and "passed" in report["summary"]
    passed, report = run_tests(["no_such_file.py"])
    assert not passed and report["exit_code"] != 0 and report["tail"]


def test_before_an_export_everything_is_looked_at(only_demo: Settings, beatsight: Beatsight) -> None:
    """Raw files, verdicts, audio, smoke: exit 0, all four in the report, the smoke bundle is gone."""
    ended = beatsight("checklist", "pre-export", "--limit", "20", "--json")
    found = json.loads(ended.out)
    assert ended.code == 0 and statuses(found) == dict.fromkeys(("raw_integrity", "verdicts", "verify", "smoke"), "pass")
    assert found["steps"][3]["report"]["figures"]["clips"] == 20
    assert json.loads((only_demo.layout.root / "reports/bundle/preflight/pre_export.json").read_text()) == found
    assert list(only_demo.layout.at("bundles").iterdir()) == []


def test_datasets_that_the_manifest_does_not_hold_do_not_stop_an_export(made: Settings, beatsight: Beatsight) -> None:
    """With every dataset of the shipped configuration enabled and only the demo there, the raw step looks at the demo alone."""
    found = json.loads(beatsight("checklist", "pre-export", "--limit", "20", "--json").out)
    assert statuses(found)["raw_integrity"] == "pass" and len(found["steps"][0]["report"]) > 0
    assert "groove" not in json.dumps(found["steps"][0])


@pytest.mark.parametrize("gate", ["manifest_health", "splits"])
def test_a_missing_or_stale_verdict_is_red(only_demo: Settings, beatsight: Beatsight, gate: str) -> None:
    """Without a receipt, or with one about another manifest, or by other limits, nothing is exported; the step that makes it is named."""
    receipt = only_demo.layout.root / f"receipts/{gate}.json"
    content = receipt.read_bytes()
    receipt.unlink()
    ended = beatsight("checklist", "pre-export")
    assert ended.code == 1 and f"never-run: {gate}" in ended.out and "NOT-RUN  smoke" in ended.out
    receipt.write_bytes(content)
    old = json.loads(content)
    parent = old["parents"][0]
    parent["sha256"] = "0" * 64
    receipt.write_text(json.dumps(old))
    ended = beatsight("checklist", "pre-export")
    assert ended.code == 1 and f"{gate}: stale: it read another version of {parent['path']}" in ended.out
    receipt.write_bytes(content)
    gates = json.loads((only_demo.layout.root / "configs/gates/demo.yaml").read_text())
    gates["splits"]["min_free_groups"] += 1
    (only_demo.layout.root / "configs/gates/demo.yaml").write_text(json.dumps(gates))
    ended = beatsight("checklist", "pre-export")
    assert ended.code == 1 and "stale-limits" in ended.out


def test_what_disks_lose_stops_the_list(only_demo: Settings, beatsight: Beatsight) -> None:
    """A raw folder that is gone fails the first step, a recording that is gone the third; --keep-going does the rest too."""
    raw = only_demo.layout.raw("beatsight_demo")
    audio = raw / "audio" / "take_0.wav"
    audio.rename(raw.parent / "away.wav")
    found = json.loads(beatsight("checklist", "pre-export", "--json").out)
    assert statuses(found) == {"raw_integrity": "pass", "verdicts": "pass", "verify": "fail", "smoke": "not-run"}
    assert found["steps"][2]["report"]["statistics"]["missing_audio"] == 69
    raw.rename(raw.parent / "gone")
    ended = beatsight("checklist", "pre-export", "--keep-going", "--json")
    assert ended.code == 1 and statuses(json.loads(ended.out)) == {
        "raw_integrity": "fail",
        "verdicts": "pass",
        "verify": "fail",
        "smoke": "fail",
    }


def test_after_an_export_the_steps_run_in_order(only_demo: Settings, beatsight: Beatsight) -> None:
    """Chosen steps run in the order of the list; health has the bundle's seconds, the snapshot its totals, the cache every recording."""
    export(only_demo, BundleRequest("b"))
    ended = beatsight("checklist", "post-export", "b", "--steps", "cache,snapshot,health", "--json")
    found = json.loads(ended.out)
    assert ended.code == 0 and list(statuses(found)) == ["health", "snapshot", "cache"]
    health = json.loads((only_demo.layout.root / "reports/health/bundle_b_health.json").read_text())
    assert sum(health["split_durations_seconds"].values()) == pytest.approx(207 * 0.28) and health["bundle"]["clips"] == 207
    assert {"clipped_share", "missing_audio"} <= {r["name"] for r in health["gating_results"]}
    totals = found["steps"][1]["report"]
    assert (totals["manifest_events"], totals["written"]) == (207, 207) and [
        r["stage"] for r in found["steps"][2]["report"]["reports"]
    ] == ["feature_index", "recording_features"]
    assert json.loads((only_demo.layout.root / "reports/bundle/b_post_export.json").read_text()) == found


def test_a_step_that_is_not_there_never_passes(only_demo: Settings, beatsight: Beatsight) -> None:
    """Named, it fails with the reason; an unknown step is exit 2 and names the known ones; no bundle is exit 1."""
    export(only_demo, BundleRequest("b"))
    ended = beatsight("checklist", "post-export", "b", "--steps", "analyze,snapshot")
    assert ended.code == 1 and "Leave analyze out of --steps" in ended.out and "PASS     snapshot" in ended.out
    ended = beatsight("checklist", "post-export", "b", "--steps", "helth")
    assert ended.code == 2 and "Did you mean health?" in ended.err
    assert beatsight("checklist", "post-export", "c").code == 1
