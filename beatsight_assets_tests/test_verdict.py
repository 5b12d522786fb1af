"""Verdicts: limits compared as written, nothing judged is a fail, equal inputs give equal digests (spec/gates.md section 0, U11)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from beatsight_assets import store
from beatsight_assets.errors import StoreError
from beatsight_assets.verdict import Artifact, Problem, Reason, Rule, Verdict, failures_of, finite, shown

COMPARISONS = [
    # rule, value, limit, passes
    (Rule.at_least, 0.95, 0.95, True),
    (Rule.at_least, 19 / 20, 0.95, True),
    (Rule.at_least, 0.95 - 5e-10, 0.95, True),
    (Rule.at_least, 0.95 - 2e-9, 0.95, False),
    (Rule.at_least, None, 0.0, False),
    (Rule.at_least, math.nan, 0.0, False),
    (Rule.at_least, math.inf, 0.95, True),
    (Rule.above, 0.9, 0.9, False),
    (Rule.above, 0.1 * 9, 0.9, False),
    (Rule.above, 0.9 + 5e-10, 0.9, False),
    (Rule.above, 0.9 + 2e-9, 0.9, True),
    (Rule.above, None, -1.0, False),
    (Rule.above, math.nan, -1.0, False),
    (Rule.at_most, 0.1, 0.1, True),
    (Rule.at_most, 0.3, 0.1 + 0.2, True),
    (Rule.at_most, 0.1 + 5e-10, 0.1, True),
    (Rule.at_most, 0.1 + 2e-9, 0.1, False),
    (Rule.at_most, None, 1.0, False),
    (Rule.at_most, math.nan, 1.0, False),
    (Rule.at_most, -math.inf, 1.0, True),
    (Rule.at_most, 0.0, 0.0, True),
]

GOOD = Rule.at_least("recall", 0.9, 0.8)
BAD = Rule.at_least("precision", 0.5, 0.8)
WARNING = Rule.at_most("share", 0.5, 0.1, blocking=False)
WAIVED = Rule.waive("against_previous", "first-release", 0.7)
REASON = Reason("stale-verdict", "the splits were made again", "manifest/splits.parquet")

STATUS = {
    # name: (rules, reasons, status, passed)
    "all hold": ((GOOD, GOOD), (), "pass", True),
    "one fails": ((GOOD, BAD), (), "fail", False),
    "a warning does not block": ((GOOD, WARNING), (), "pass", True),
    "nothing to judge": ((), (), "fail", False),
    "a reason is enough": ((GOOD,), (REASON,), "fail", False),
    "a reason alone": ((), (REASON,), "fail", False),
    "everything waived": ((WAIVED, WAIVED), (), "waived", True),
    "waived beside a pass": ((WAIVED, GOOD), (), "pass", True),
    "waived beside a fail": ((WAIVED, BAD), (), "fail", False),
    "waived with a reason": ((WAIVED,), (REASON,), "fail", False),
}


def verdict(*rules: Rule, **others: Any) -> Verdict:
    """A verdict of the gate `probe`."""
    return Verdict("probe", rules, **others)


@pytest.mark.parametrize(("kind", "value", "limit", "passes"), COMPARISONS, ids=lambda v: getattr(v, "__name__", repr(v)))
def test_limits_are_compared_as_written(kind: Any, value: float | None, limit: float, passes: bool) -> None:
    """Section 0.5: >= passes at its limit, > fails there, within 1e-9 is equal; what is missing or no number fails."""
    assert kind("x", value, limit).passed is passes


@pytest.mark.parametrize(("rules", "reasons", "status", "passed"), STATUS.values(), ids=STATUS.keys())
def test_status(rules: tuple[Rule, ...], reasons: tuple[Reason, ...], status: str, passed: bool) -> None:
    """U11, section 0.2: a gate that could not judge is not green; status, passed and the JSON agree, and survive the file."""
    found = verdict(*rules, reasons=reasons)
    read = Verdict.from_json(json.loads(store.to_json_bytes(found.to_json())))
    for v in (found, read):
        assert (v.status, v.passed) == (status, passed)
        assert (v.to_json()["status"], v.to_json()["passed"]) == (status, passed)
        assert bool(v.failures) is not passed


def test_nothing_to_judge_is_said() -> None:
    """Section 0.2: status fail with the reason nothing-to-judge."""
    assert verdict().to_json()["reasons"][0]["code"] == "nothing-to-judge"
    assert verdict().failures == ["nothing-to-judge"]


def test_passed_is_computed_and_never_believed() -> None:
    """A file that claims to have passed does not pass by claiming it."""
    obj = verdict(BAD).to_json() | {"passed": True, "status": "pass"}
    assert not Verdict.from_json(obj).passed


def test_the_json_has_the_fields_of_the_contract_and_comes_back() -> None:
    """Section 0: the table of fields; reading gives an equal verdict and an equal digest."""
    found = verdict(
        GOOD,
        BAD,
        WAIVED,
        inputs=(Artifact("splits", "manifest/splits.parquet", "0" * 64, 12),),
        figures={"recall": 0.9, "undefined": math.nan},
        limits={"recall": 0.8},
        support={"kick": 20},
        reasons=(REASON,),
        profile="demo",
    )
    obj = found.to_json()
    assert {
        "schema",
        "gate",
        "status",
        "passed",
        "inputs",
        "figures",
        "limits",
        "rules",
        "reasons",
        "support",
        "profile",
        "version",
    } <= set(obj)
    assert obj["figures"]["undefined"] is None
    assert obj["inputs"] == [{"role": "splits", "path": "manifest/splits.parquet", "sha256": "0" * 64, "rows": 12}]
    assert [set(rule) >= {"name", "passed", "value", "limit", "detail"} for rule in obj["rules"]] == [True] * 3
    read = Verdict.from_json(json.loads(store.to_json_bytes(obj)))
    assert read.to_json() == obj
    assert read.digest == found.digest


def test_the_digest_is_about_content() -> None:
    """Equal inputs give an equal digest, another figure or another input another one."""
    base = verdict(GOOD, inputs=(Artifact("a", "a", "1" * 64),))
    assert base.digest == verdict(Rule.at_least("recall", 0.9, 0.8), inputs=(Artifact("a", "a", "1" * 64),)).digest
    others = [verdict(GOOD), verdict(BAD, inputs=base.inputs), verdict(GOOD, inputs=(Artifact("a", "a", "2" * 64),))]
    assert len({base.digest, *(other.digest for other in others)}) == 4


def test_a_hidden_infinity_cannot_be_written() -> None:
    """Section 0.7: no NaN or Infinity token in a report; one that hides in depth is refused, not written."""
    with pytest.raises(StoreError, match="not-finite"):
        store.to_json_bytes(verdict(GOOD, support={"x": {"y": math.inf}}).to_json())


def test_failures_name_rule_value_and_limit() -> None:
    """A reader sees what failed, by how much, in which gate; warnings and passes are not among them."""
    found = verdict(GOOD, BAD, WARNING, reasons=(REASON,))
    assert found.failures == ["precision: 0.5, limit 0.8. at least 0.8", "stale-verdict: the splits were made again"]
    assert failures_of([found, verdict(GOOD)]) == [f"probe/{text}" for text in found.failures]


def test_rules_are_found_by_name_and_by_family() -> None:
    """`min_counts` finds `min_counts[kick]` and not `min_counts_total`."""
    rules = [Rule.at_least(name, 1.0, 1.0) for name in ("min_counts[kick]", "min_counts[snare]", "min_counts_total", "min_counts")]
    found = verdict(*rules)
    assert [rule.name for rule in found.family("min_counts")] == ["min_counts[kick]", "min_counts[snare]", "min_counts"]
    assert found.rule("min_counts_total") == rules[2]
    assert found.rule("nobody") is None


def test_figures_as_people_read_them() -> None:
    """Undefined is null in files and "none" for people; large figures have separators."""
    assert [finite(v) for v in (math.nan, -math.inf, 0.5, None, "x", 3)] == [None, None, 0.5, None, "x", 3]
    assert [shown(v) for v in (None, "high", 0.123456, 228457.0, 12)] == ["none", "high", "0.1235", "228,457", "12"]


def test_a_problem_names_file_line_and_field() -> None:
    """Section 0.6: a malformed row is named."""
    assert str(Problem("boundary.csv", 3, "recall", "NaN is no number")) == "boundary.csv:3: recall: NaN is no number"
