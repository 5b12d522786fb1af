"""Answers to checks, read from the receipt that the stage wrote.

Belongs here: the pure answer, and the one factory that makes Dagster checks of the table. Does not belong here: measuring.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from beatsight_assets.dag.checks.table import CHECKS, NOT_REQUIRED, TRAINING, Check, checks_of
from beatsight_assets.dag.metadata import MAX_INLINE, bullet_list, is_number, markdown_table, rounded
from beatsight_assets.dag.resources import Lake
from beatsight_assets.errors import InputError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Report, changed_outputs, digest_of, read_receipt, receipt_path
from beatsight_assets.verdict import Rule, Verdict, failures_of, shown

BUNDLE_DIGESTS = "bundle_digests"


@dataclass(frozen=True)
class Answer:
    """What a check says, in one line, about which rules."""

    passed: bool
    text: str
    rules: Sequence[Rule] = ()
    reasons: Sequence[str] = field(default_factory=tuple)


def answer(check: Check, report: Report, required: Sequence[str]) -> Answer:
    """Answer of a check from a receipt. What was never judged is no pass, unless the table or the profile says so."""
    verdict = report.verdict(check.gate)
    is_free = check.optional_gate and check.gate not in required
    if verdict is None:
        note = NOT_REQUIRED if is_free else check.no_verdict
        return Answer(note is not None, note or f"nothing-to-judge: the receipt holds no verdict {check.gate}")
    if is_free and not verdict.rules:
        return Answer(True, NOT_REQUIRED, (), failures_of([verdict]))
    rules = rules_of(check, verdict)
    reasons = [f"{r.code}: {r.message}" for r in verdict.reasons]
    if not rules and not reasons:
        return Answer(check.no_rules is not None, check.no_rules or "nothing-to-judge: the verdict holds no such rule")
    judged = [r for r in rules if r.blocking or not check.blocking]
    bad = [f"{r.name} is {shown(r.value)}, limit {shown(r.limit)}. {r.detail}" for r in judged if not r.passed] + reasons
    if bad:
        return Answer(False, bad[0] + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""), rules, bad)
    if all(r.waived for r in rules):
        return Answer(True, rules[0].detail, rules)
    if len(rules) == 1:
        return Answer(True, f"{shown(rules[0].value)}, limit {shown(rules[0].limit)}. {rules[0].detail}", rules)
    return Answer(True, f"all {len(rules)} rules hold{_closest(rules)}", rules)


def _closest(rules: Sequence[Rule]) -> str:
    """The rule that came nearest to its limit: where a person would look first."""
    judged = [(r.name, v, w) for r in rules if not r.waived and is_number(v := r.value) and is_number(w := r.limit) and w]
    if not judged:
        return ""
    name, value, limit = min(judged, key=lambda r: abs(r[1] - r[2]) / abs(r[2]))
    return f"; nearest to its limit: {name} {shown(value)}, limit {shown(limit)}"


def rules_of(check: Check, verdict: Verdict) -> list[Rule]:
    """Rules that answer a check. A blocking rule that no check of the gate names goes to the gate's first check, so none is lost."""
    if not check.families:
        return list(verdict.rules)
    found = [rule for family in check.families for rule in verdict.family(family)]
    same_gate = [c for c in CHECKS if (c.asset, c.gate) == (check.asset, check.gate)]
    if check == same_gate[0]:
        named = {rule.name for c in same_gate for family in c.families for rule in verdict.family(family)}
        found += [rule for rule in verdict.rules if rule.blocking and rule.name not in named]
    return found


def load(settings: Settings, asset: str, partition: str | None) -> Report | Answer:
    """The receipt of an asset, or the answer to all its checks when there is none, or when it is about other files."""
    try:
        report = read_receipt(settings, asset, partition)
    except InputError as error:
        return Answer(False, str(error))
    if report is None:
        return Answer(False, "nothing-to-judge: there is no receipt. Materialize the asset first")
    changed = changed_outputs(settings, report)
    if changed:
        return Answer(
            False, f"stale: {changed[0].path} is not what was judged. Materialize the asset again", reasons=[a.path for a in changed]
        )
    return report


def as_result(check: Check, found: Answer, digest: str | None) -> dg.AssetCheckResult:
    """An answer as Dagster keeps it: every value and every limit is a number with a history, side by side (the UI sorts by name)."""
    described: dict[str, Any] = {}
    for rule in found.rules:
        described |= {
            f"{rule.name} · {what}": float(rounded(v)) for what, v in (("limit", rule.limit), ("value", rule.value)) if is_number(v)
        }
    if len(found.rules) > 1:
        described["all rules"] = dg.MetadataValue.md(rules_table(found.rules))
    if found.reasons:
        described["against"] = dg.MetadataValue.md(bullet_list(found.reasons))
    if digest:
        described["digest"] = digest
    severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=found.passed, asset_key=check.asset, check_name=check.name, severity=severity, description=found.text, metadata=described
    )


def rules_table(rules: Sequence[Rule]) -> str:
    """Rules as a table, failed ones first. What they share goes into the head, and explanations go where the UI would fold the table."""
    families = {r.name.partition("[")[0] for r in rules}
    is_one = len(families) == 1 and all("[" in r.name for r in rules)
    head = ("", families.pop() if is_one else "rule", "value", "limit", "detail")
    rows = []
    for rule in sorted(rules, key=lambda r: r.passed):
        name = rule.name.partition("[")[2][:-1] if is_one else rule.name
        rows.append(
            ("waived" if rule.waived else "pass" if rule.passed else "FAIL", name, shown(rule.value), shown(rule.limit), rule.detail)
        )
    full = markdown_table(head, rows)
    return full if len(full) < MAX_INLINE else markdown_table(head[:4], [r[:4] for r in rows])


def answers(settings: Settings, asset: str, partition: str | None, names: Iterable[str]) -> Iterator[dg.AssetCheckResult]:
    """Results of some checks of one asset; each receipt and its files are read once."""
    loaded: dict[tuple[str, str | None], Report | Answer] = {}
    for check in checks_of(asset):
        if check.name not in names:
            continue
        place = (check.stage or asset, check.of or partition)
        if place not in loaded:
            loaded[place] = _elsewhere(settings, check, *place) if check.stage else load(settings, *place)
        found = loaded[place]
        if isinstance(found, Answer):
            yield as_result(check, found, None)
        else:
            yield as_result(check, answer(check, found, settings.gates.required), found.digest)


def _elsewhere(settings: Settings, check: Check, stage: str, partition: str | None) -> Report | Answer:
    """The receipt of another stage than the asset's own: it may not exist yet, and it must be about the files that are there now."""
    if check.no_verdict is not None and not receipt_path(settings, stage, partition).is_file():
        return Answer(True, check.no_verdict)
    found = load(settings, stage, partition)
    if isinstance(found, Report):
        for parent in found.parents:
            if digest_of(settings, settings.layout.root / parent.path) != parent.sha256:
                return Answer(False, f"stale: {parent.path} is not what was judged. Judge it again")
    return found


def _read_every_byte(lake: Lake) -> None:
    """The one check that measures when it is asked: bytes rot between materializations, and no receipt shows it."""
    from beatsight_assets.bundle import check

    lake.perform(check.run, check.CheckOptions(TRAINING))


def build_checks(partitions: dict[str, dg.PartitionsDefinition]) -> list[dg.AssetChecksDefinition]:
    """One check function per asset of the table. Checks of a partitioned asset are partitioned like it."""
    return [_checks_of_asset(asset, partitions.get(asset)) for asset in dict.fromkeys(c.asset for c in CHECKS)]


def _checks_of_asset(asset: str, partitions: dg.PartitionsDefinition | None) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            c.name, asset=asset, description=c.must_hold, blocking=c.blocking, partitions_def=partitions, metadata={"gate": c.gate}
        )
        for c in checks_of(asset)
    ]

    @dg.multi_asset_check(name=f"{asset}_checks", specs=specs, can_subset=True, description=f"Verdicts of {asset}, read from its receipt.")
    def judge(context: dg.AssetCheckExecutionContext, lake: Lake) -> Iterator[dg.AssetCheckResult]:
        names = {key.name for key in context.selected_asset_check_keys}
        if BUNDLE_DIGESTS in names:
            _read_every_byte(lake)
        yield from answers(lake.settings, asset, context.partition_key if partitions else None, names)

    return judge
