"""Comparing a health report with the blessed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beatsight_assets import store
from beatsight_assets.errors import GateFailed, InputError
from beatsight_assets.health import compare
from beatsight_assets.health.compare import CompareOptions, bless, judge, measure
from beatsight_assets.settings import Settings


def health(
    counts: dict[str, int],
    *,
    unknown: int = 0,
    failing: tuple[str, ...] = (),
    holding: tuple[str, ...] = (),
    techniques: tuple[str, ...] = (),
    events: int = 10,
) -> dict[str, Any]:
    rules = [(n, False) for n in failing] + [(n, True) for n in holding]
    return {
        "schema": "beatsight.health/1",
        "summary": {"events_total": events},
        "per_class_counts": {k: {"total": n} for k, n in counts.items()},
        "unknown_labels": {"gong": unknown} if unknown else {},
        "technique_counts": {t: {"events": 1} for t in techniques},
        "gating_results": [{"name": n, "passed": p, "limit": 1.0} for n, p in rules],
        "passed": not failing,
    }


@pytest.mark.parametrize(("now", "max_drop", "passes"), [(75, 25, True), (74, 25, False), (100, 0, True), (99, 0, False), (140, 0, True)])
def test_class_drop(now: int, max_drop: int, passes: bool) -> None:
    """Max drop 25: 100 -> 75 passes, 100 -> 74 fails; any growth passes."""
    assert judge(measure(health({"kick": 100}), health({"kick": now})), max_drop=max_drop).passed is passes


def test_a_class_absent_from_one_side_counts_zero() -> None:
    """A vanished class is a drop, a new one is growth, an ignored one does not count."""
    found = measure(health({"kick": 5, "china": 2}), health({"kick": 5, "splash": 1}))
    assert [(d.label, d.delta) for d in found.class_deltas] == [("kick", 0), ("china", -2), ("splash", 1)]
    assert not judge(found).passed
    assert judge(measure(health({"kick": 5, "china": 2}), health({"kick": 5}), ["china"])).passed


def test_new_failures_count_and_standing_ones_do_not() -> None:
    """A rule that held or is new and fails now blocks; one that fails in both is listed."""
    before = health({"kick": 1}, failing=("old",), holding=("held",))
    found = measure(before, health({"kick": 1}, failing=("old", "held", "new")))
    assert (found.new_gate_failures, found.standing_failures) == (("held", "new"), ("old",))
    assert [r.name for r in judge(found).rules if not r.passed] == ["new_gate_failure[held]", "new_gate_failure[new]"]
    assert judge(measure(before, before)).passed


def test_more_unknown_labels_fail() -> None:
    """The candidate may not have more unknown labels than the baseline."""
    assert not judge(measure(health({"kick": 1}, unknown=1), health({"kick": 1}, unknown=2))).passed
    assert judge(measure(health({"kick": 1}, unknown=2), health({"kick": 1}, unknown=1))).passed


def test_lost_limits_and_techniques_are_printed_not_judged() -> None:
    """Ruling 4: a removed gate and a lost technique are in the diff and block nothing."""
    found = measure(health({"kick": 1}, holding=("gone",), techniques=("roll",)), health({"kick": 1}))
    verdict = judge(found)
    assert verdict.passed
    assert compare.to_json(found, verdict)["removed_gates"] == ["gone"]
    assert found.lost_techniques == ("roll",)


def test_an_empty_baseline_is_nothing_to_judge() -> None:
    """A baseline with zero events fails."""
    assert [r.code for r in judge(measure(health({}, events=0), health({"kick": 1}))).reasons] == ["nothing-to-judge"]


def publish(settings: Settings, name: str, found: dict[str, Any]) -> None:
    settings.store.publish_json(settings.layout.report("health", name), found)


def test_the_first_release_is_waived_and_later_ones_are_judged(settings: Settings) -> None:
    """Ruling 10: without CURRENT.json waived `first-release` with what would have been compared; with it and no baseline `no-baseline`."""
    publish(settings, "annotated_health.json", health({"kick": 3}))
    first = compare.run(settings).verdicts[0]
    assert (first.status, first.passed) == ("waived", True)
    assert all("first-release" in r.detail and "compared" in r.detail for r in first.rules)
    settings.store.publish_json(settings.layout.current_model, {"release": "r1"})
    later = compare.run(settings).verdicts[0]
    assert [r.code for r in later.reasons] == ["no-baseline"]
    bless(settings)
    assert compare.run(settings).passed
    publish(settings, "annotated_health.json", health({"kick": 2}))
    assert [r.name for r in compare.run(settings).verdicts[0].rules if not r.passed] == ["class_drop[kick]"]
    assert compare.run(settings, CompareOptions(max_drop=1)).passed
    assert compare.run(settings, CompareOptions(max_drop=1)).reused
    assert store.read_json(settings.layout.report("health", "annotated_diff.json"))["class_deltas"] == [
        {"label": "kick", "baseline": 3, "candidate": 2, "delta": -1, "passed": True}
    ]


def test_only_green_reports_are_blessed(settings: Settings) -> None:
    """A failing report needs --force and is marked."""
    publish(settings, "annotated_health.json", health({"kick": 3}, failing=("x",)))
    with pytest.raises(GateFailed):
        bless(settings)
    assert store.read_json(bless(settings, force=True))["blessed_by_force"] is True


def test_another_file_is_no_health_report(tmp_path: Path) -> None:
    """A file that is not a health report exits 3."""
    (tmp_path / "x.json").write_text('{"summary": {}}')
    with pytest.raises(InputError) as caught:
        compare.read_report(tmp_path / "x.json")
    assert caught.value.exit_code == 3
