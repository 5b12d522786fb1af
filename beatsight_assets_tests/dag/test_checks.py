"""Answers of checks from receipts: what was not judged is no pass."""

import dagster as dg
import pytest

from beatsight_assets.dag.checks.judge import answer, answers, rules_of
from beatsight_assets.dag.checks.table import CHECKS, NO_LIMIT, NOT_REQUIRED, Check, blocking_keys, checks_of
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Report, receipt_path, run_stage
from beatsight_assets.verdict import Reason, Rule, Verdict

HEALTH = {c.name: c for c in checks_of("manifest_health")}
OPENSET = next(c for c in CHECKS if (c.asset, c.name) == ("readiness", "openset"))


def report_of(*verdicts: Verdict) -> Report:
    return Report("manifest_health", None, "1", {}, (), (), {}, {}, verdicts, None)


def health(*rules: Rule, reasons: tuple[Reason, ...] = ()) -> Report:
    return report_of(Verdict("health", rules, reasons=reasons))


CASES: dict[str, tuple[Check, Report, bool, str]] = {
    "one rule that holds": (HEALTH["duplication_rate"], health(Rule.at_most("duplication_rate", 0.0, 0.005)), True, "0, limit 0.005"),
    "one rule that fails": (HEALTH["duplication_rate"], health(Rule.at_most("duplication_rate", 0.1, 0.005)), False, "0.1, limit 0.005"),
    "two families, one bad rule": (
        HEALTH["class_counts"],
        health(Rule.at_least("min_class_count[kick]", 30, 20), Rule.at_least("min_counts[china]", 3, 5)),
        False,
        "min_counts[china] is 3, limit 5",
    ),
    "several bad rules are counted": (
        HEALTH["class_counts"],
        health(Rule.at_least("min_counts[a]", 1, 5), Rule.at_least("min_counts[b]", 1, 5)),
        False,
        "(and 1 more)",
    ),
    "many rules name the closest": (
        HEALTH["class_counts"],
        health(Rule.at_least("min_counts[a]", 90, 5), Rule.at_least("min_counts[b]", 6, 5)),
        True,
        "all 2 rules hold; nearest to its limit: min_counts[b] 6, limit 5",
    ),
    "a family without rules": (HEALTH["required_labels"], health(Rule.at_most("duplication_rate", 0.0, 0.005)), True, NO_LIMIT),
    "a reason against the verdict makes every check red": (
        HEALTH["duplication_rate"],
        health(Rule.at_most("duplication_rate", 0.0, 0.005), reasons=(Reason("no-events", "no event could be read"),)),
        False,
        "no-events: no event could be read",
    ),
    "no verdict": (HEALTH["duplication_rate"], report_of(), False, "nothing-to-judge"),
    "a required rule that is absent": (CHECKS[0], report_of(Verdict("render", ())), False, "nothing-to-judge"),
    "a waived rule says why": (
        HEALTH["duplication_rate"],
        health(Rule.waive("duplication_rate", "first-release")),
        True,
        "waived: first-release",
    ),
    "a rule that warns does not turn a blocking check red": (
        HEALTH["duplication_rate"],
        health(Rule.at_most("duplication_rate", 0.1, 0.0, blocking=False)),
        True,
        "0.1, limit 0",
    ),
    "a blocking rule that no check names is not lost": (
        HEALTH["events_present"],
        health(Rule.at_least("events_present", 5, 1), Rule.at_most("brand_new_rule", 2.0, 1.0)),
        False,
        "brand_new_rule is 2, limit 1",
    ),
    "a gate that is required and was not judged": (OPENSET, report_of(), False, "nothing-to-judge"),
}


@pytest.mark.parametrize("case", CASES)
def test_answer(case: str) -> None:
    """Each named situation gives the answer that a person expects."""
    check, report, passed, text = CASES[case]
    found = answer(check, report, required=("openset",))
    assert found.passed is passed and text in found.text


def test_gate_that_the_profile_does_not_require() -> None:
    """Absent or with nothing to judge it passes and says so; judged red it is red all the same."""
    nothing = report_of(Verdict("openset", (), reasons=(Reason("nothing-to-judge", "no sounds"),)))
    red = report_of(Verdict("openset", (Rule.at_least("auroc", 0.5, 0.9),)))
    assert [answer(OPENSET, r, ()).text for r in (report_of(), nothing)] == [NOT_REQUIRED] * 2
    assert answer(OPENSET, report_of(), ()).passed and not answer(OPENSET, red, ()).passed


def test_every_rule_is_judged_by_some_check() -> None:
    """Whatever rules a verdict has, the blocking ones are answered by exactly one check of its gate."""
    families = [family for c in checks_of("manifest_health") for family in c.families]
    rules = tuple(Rule(name, True, 1.0, 1.0) for name in (*(f"{family}[x]" for family in families), "unheard_of"))
    verdict = Verdict("health", rules)
    judged = [r.name for c in checks_of("manifest_health") for r in rules_of(c, verdict)]
    assert sorted(judged) == sorted(r.name for r in rules)


def make(settings: Settings, *rules: Rule) -> None:
    def work() -> Outcome:
        path = settings.layout.report("health", "toy.json")
        settings.store.publish_json(path, {"rules": len(rules)})
        return Outcome([("health", path, None)], verdicts=(Verdict("health", rules, profile="demo"),))

    run_stage(settings, "manifest_health", version="1", options={}, parents=(), work=work)


def results(settings: Settings) -> dict[str, dg.AssetCheckResult]:
    return {str(r.check_name): r for r in answers(settings, "manifest_health", None, list(HEALTH))}


def test_result_carries_values_and_limits_as_numbers(settings: Settings) -> None:
    """Every value and every limit has a history in the UI; a gate is an error, never a warning; the digest says what was judged."""
    make(
        settings,
        Rule.at_least("min_class_count[kick]", 30, 20),
        Rule.at_least("min_class_count[snare]", 25, 20),
        Rule.at_least("events_present", 55, 1),
    )
    found = results(settings)["class_counts"]
    assert found.passed and found.severity == dg.AssetCheckSeverity.ERROR
    assert {k: v.value for k, v in found.metadata.items() if isinstance(v, dg.FloatMetadataValue)} == {
        "min_class_count[kick] · value": 30.0,
        "min_class_count[kick] · limit": 20.0,
        "min_class_count[snare] · value": 25.0,
        "min_class_count[snare] · limit": 20.0,
    }
    assert {"digest", "all rules"} <= set(found.metadata)


def test_without_receipt_nothing_passes(settings: Settings) -> None:
    """No receipt, no pass; not even for checks whose limit is not set."""
    assert {r.passed for r in results(settings).values()} == {False}


def test_changed_product_is_stale(settings: Settings) -> None:
    """A verdict about other bytes is no verdict."""
    make(settings, Rule.at_least("events_present", 55, 1))
    assert results(settings)["events_present"].passed
    settings.layout.report("health", "toy.json").write_text("{}")
    assert {(r.passed, str(r.description).split(":")[0]) for r in results(settings).values()} == {(False, "stale")}


def test_foreign_receipt_is_no_pass(settings: Settings) -> None:
    """A receipt that cannot be understood says so and passes nothing."""
    settings.store.publish_json(receipt_path(settings, "manifest_health"), {"schema": "another/9"})
    assert {(r.passed, str(r.description).split(":")[0]) for r in results(settings).values()} == {(False, "bad-receipt")}


def test_warnings_are_never_gates() -> None:
    """Guards read the blocking checks and only those."""
    assert {c.key for c in CHECKS if c.blocking} == set(blocking_keys(*{c.asset for c in CHECKS}))
    assert len({c.key for c in CHECKS}) == len(CHECKS)
