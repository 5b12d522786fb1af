"""Has the manifest become worse than the one that was blessed?

Belongs here: the rules of `spec/gates.md` section 2 that ruling 4 keeps, blessing a report, the stage `health_diff`.
Does not belong here: the figures themselves (`report`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beatsight_assets import store
from beatsight_assets.errors import GateFailed, InputError
from beatsight_assets.health.report import SCHEMA
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

VERSION = "1"
GATE = "health_compare"
FIRST_RELEASE = "first-release"


@dataclass(frozen=True)
class CompareOptions:
    """How far a class may drop, and which labels do not count."""

    max_drop: int = 0
    ignore_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassDelta:
    """Hits of one class on both sides."""

    label: str
    baseline: int
    candidate: int

    @property
    def delta(self) -> int:
        return self.candidate - self.baseline


@dataclass(frozen=True)
class Comparison:
    """What changed from one health report to another."""

    class_deltas: tuple[ClassDelta, ...]
    new_gate_failures: tuple[str, ...]
    standing_failures: tuple[str, ...]
    removed_gates: tuple[str, ...]
    changed_limits: tuple[str, ...]
    lost_techniques: tuple[str, ...]
    unknown_label_delta: int
    baseline_events: int
    candidate_events: int


def read_report(path: Path) -> dict[str, Any]:
    """A health report.

    Raises
    ------
    InputError `missing-input`, `bad-metadata`, `bad-report` : not a health report
    """
    found = store.read_json(path)
    needed = ("summary", "per_class_counts", "unknown_labels", "gating_results", "technique_counts")
    if not isinstance(found, dict) or found.get("schema", SCHEMA) != SCHEMA or any(k not in found for k in needed):
        raise InputError("this is no health report. Write one with: beatsight health report", code="bad-report", where=str(path))
    return found


def measure(baseline: Mapping[str, Any], candidate: Mapping[str, Any], ignore_labels: Sequence[str] = ()) -> Comparison:
    """Differences of two health reports. A class that is absent from one side counts 0."""
    before, now = baseline["per_class_counts"], candidate["per_class_counts"]
    labels = [label for label in dict.fromkeys((*before, *now)) if label not in ignore_labels]
    old = {r["name"]: r for r in baseline["gating_results"]}
    new = {r["name"]: r for r in candidate["gating_results"]}
    failing = [name for name, r in new.items() if not r["passed"]]
    return Comparison(
        class_deltas=tuple(ClassDelta(x, before.get(x, {}).get("total", 0), now.get(x, {}).get("total", 0)) for x in labels),
        new_gate_failures=tuple(n for n in failing if n not in old or old[n]["passed"]),
        standing_failures=tuple(n for n in failing if n in old and not old[n]["passed"]),
        removed_gates=tuple(n for n in old if n not in new),
        changed_limits=tuple(
            f"{n}: {old[n]['limit']} -> {new[n]['limit']}" for n in old if n in new and old[n]["limit"] != new[n]["limit"]
        ),
        lost_techniques=tuple(t for t in baseline["technique_counts"] if t not in candidate["technique_counts"]),
        unknown_label_delta=sum(candidate["unknown_labels"].values()) - sum(baseline["unknown_labels"].values()),
        baseline_events=baseline["summary"]["events_total"],
        candidate_events=candidate["summary"]["events_total"],
    )


def judge(
    comparison: Comparison | None, *, max_drop: int = 0, first_release: bool = False, inputs: Sequence[Artifact] = (), profile: str = "dev"
) -> Verdict:
    """Verdict `health_compare`.

    `comparison` is None without a baseline. On a first release the rules are waived, and say what they would have found (ruling 10).
    """
    reasons: list[Reason] = []
    rules: list[Rule] = []
    if comparison is None:
        if first_release:
            would = "class counts, gate results and unknown labels would have been compared with reports/health/baseline.json"
            rules = [Rule.waive(name, f"{FIRST_RELEASE}; {would}") for name in ("class_drop", "new_gate_failure", "unknown_labels")]
        else:
            reasons.append(
                Reason("no-baseline", "no blessed report to compare with. Run: beatsight health bless", "reports/health/baseline.json")
            )
    elif comparison.baseline_events == 0:
        reasons.append(Reason("nothing-to-judge", "the baseline holds no event"))
    else:
        rules += [
            Rule.at_least(f"class_drop[{d.label}]", float(d.delta), float(-max_drop), f"{d.baseline:,} -> {d.candidate:,} hits")
            for d in comparison.class_deltas
        ]
        rules += [
            Rule(f"new_gate_failure[{n}]", False, None, None, "held in the baseline or is new, and fails now")
            for n in comparison.new_gate_failures
        ]
        rules.append(
            Rule.at_most("unknown_labels", float(comparison.unknown_label_delta), 0.0, "more hits with unknown labels than the baseline")
        )
        if first_release:
            rules = [Rule.waive(r.name, f"{FIRST_RELEASE}; {'holds' if r.passed else 'would fail'}: {r.detail}", r.value) for r in rules]
    figures: dict[str, Any] = {}
    if comparison is not None:
        figures = {
            "unknown_label_delta": comparison.unknown_label_delta,
            "new_gate_failures": len(comparison.new_gate_failures),
            "worst_class_delta": min((d.delta for d in comparison.class_deltas), default=None),
        }
    return Verdict(
        gate=GATE,
        rules=tuple(rules),
        inputs=tuple(inputs),
        figures=figures,
        limits={"max_drop": max_drop},
        reasons=tuple(reasons),
        support={"baseline_events": comparison.baseline_events, "candidate_events": comparison.candidate_events} if comparison else {},
        profile=profile,
    )


def to_json(comparison: Comparison | None, verdict: Verdict) -> dict[str, Any]:
    """The diff as a file."""
    report: dict[str, Any] = {"schema": "beatsight.health_diff/1", "passes": verdict.passed, "verdict": verdict.to_json()}
    if comparison is None:
        return report
    drops = {r.name: r.passed for r in verdict.family("class_drop")}
    return report | {
        "unknown_label_delta": comparison.unknown_label_delta,
        "new_gate_failures": list(comparison.new_gate_failures),
        "standing_failures": list(comparison.standing_failures),
        "removed_gates": list(comparison.removed_gates),
        "changed_limits": list(comparison.changed_limits),
        "lost_techniques": list(comparison.lost_techniques),
        "class_deltas": [
            {
                "label": d.label,
                "baseline": d.baseline,
                "candidate": d.candidate,
                "delta": d.delta,
                "passed": drops.get(f"class_drop[{d.label}]", True),
            }
            for d in comparison.class_deltas
        ],
    }


def assess(
    settings: Settings, options: CompareOptions, *, baseline: Path | None = None, candidate: Path | None = None, first_release: bool = False
) -> tuple[dict[str, Any], Verdict]:
    """Compare two health reports, wherever they lie; nothing is written. Without `baseline` the blessed one, where there is one.

    Raises
    ------
    InputError `missing-input`, `bad-report`
    """
    after = candidate or settings.layout.report("health", "annotated_health.json")
    before = baseline or settings.layout.report("health", "baseline.json")
    is_first = first_release or not settings.layout.current_model.is_file()
    has_baseline = baseline is not None or before.is_file()
    comparison = measure(read_report(before), read_report(after), options.ignore_labels) if has_baseline else None
    verdict = judge(comparison, max_drop=options.max_drop, first_release=is_first and baseline is None, profile=settings.profile)
    return to_json(comparison, verdict), verdict


def run(settings: Settings, options: CompareOptions = CompareOptions(), *, progress: Progress = silent) -> Report:
    """Publish reports/health/annotated_diff.json with the verdict `health_compare` on the newest health report.

    Raises
    ------
    InputError `missing-input`, `bad-report`
    """
    candidate = settings.layout.report("health", "annotated_health.json")
    baseline = settings.layout.report("health", "baseline.json")
    has_baseline = baseline.is_file()
    first_release = not settings.layout.current_model.is_file()
    parents = [("candidate", candidate)] + ([("baseline", baseline)] if has_baseline else [])

    def work() -> Outcome:
        comparison = measure(read_report(baseline), read_report(candidate), options.ignore_labels) if has_baseline else None
        inputs = [Artifact(role, settings.store.rel(p), settings.store.sha256(p)) for role, p in parents]
        verdict = judge(comparison, max_drop=options.max_drop, first_release=first_release, inputs=inputs, profile=settings.profile)
        target = settings.layout.report("health", "annotated_diff.json")
        settings.store.publish_json(target, to_json(comparison, verdict))
        progress(f"compared with the blessed report: {verdict.status}")
        deltas = comparison.class_deltas if comparison else ()
        return Outcome(
            outputs=[("health_diff", target, None)],
            figures={k: v for k, v in verdict.figures.items() if v is not None},
            facts={"failures": verdict.failures, "first_release": first_release},
            verdicts=[verdict],
            table=Table(("class", "baseline", "candidate", "delta"), tuple((d.label, d.baseline, d.candidate, d.delta) for d in deltas)),
        )

    return run_stage(
        settings,
        "health_diff",
        version=VERSION,
        options={
            "max_drop": options.max_drop,
            "ignore_labels": list(options.ignore_labels),
            "first_release": first_release,
            "profile": settings.profile,
        },
        parents=parents,
        work=work,
    )


def bless(settings: Settings, report: Path | None = None, *, force: bool = False) -> Path:
    """Make a passing report the baseline of later comparisons; returns reports/health/baseline.json.

    Raises
    ------
    GateFailed `not-green` : the report fails and `force` is not given; a forced one is marked
    InputError `missing-input`, `bad-report`
    """
    path = report or settings.layout.report("health", "annotated_health.json")
    found = read_report(path)
    if not found.get("passed") and not force:
        raise GateFailed(
            "the report does not pass its own gates. Mend the data, or bless it knowingly with --force", code="not-green", where=str(path)
        )
    target = settings.layout.report("health", "baseline.json")
    settings.store.publish_json(target, found | ({} if found.get("passed") else {"blessed_by_force": True}))
    return target
