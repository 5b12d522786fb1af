"""Limits on a health report and how it stands against them.

Belongs here: the rules of `spec/gates.md` section 1, by name. Does not belong here: counting (`report`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beatsight_assets.errors import ConfigError
from beatsight_assets.taxonomy import View
from beatsight_assets.verdict import Artifact, Rule, Verdict

GATE = "health"
MAX_CLIPPED_SHARE = 0.001  # spec/gates.md section 1


@dataclass(frozen=True)
class HealthLimits:
    """Limits of one profile or command; None or empty: the rule is not asked for."""

    view: str | None = None
    max_duplication_rate: float | None = None
    min_class_count: int | None = None
    min_counts: Mapping[str, int] = field(default_factory=dict)
    required_labels: tuple[str, ...] = ()
    required_techniques: tuple[str, ...] = ()
    min_technique_counts: Mapping[str, int] = field(default_factory=dict)
    max_unknown_labels: int | None = None
    max_rejected_rows: int | None = None

    @classmethod
    def from_config(cls, values: Mapping[str, Any], where: str) -> HealthLimits:
        """Limits as a config file writes them.

        Raises
        ------
        ConfigError `unknown-choice` : a name that is no limit
        ConfigError `bad-config` : a value of the wrong kind or below 0
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ConfigError.unknown_choice("health limit", name, known, where=where)
            numbers = list(value.values()) if isinstance(value, Mapping) else [value] if name.startswith(("min_", "max_")) else []
            if any(isinstance(n, bool) or not isinstance(n, (int, float)) or not n >= 0 for n in numbers):
                raise ConfigError(f"{name} must be a number of at least 0, got {value!r}", code="bad-config", where=where)
        listed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**listed)

    def to_json(self) -> dict[str, Any]:
        """The limits that are asked for."""
        plain = {k: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v for k, v in vars(self).items()}
        return {k: v for k, v in plain.items() if v not in (None, [], {})}


def read_names(path: Path) -> tuple[str, ...]:
    """Names of a list file: one per line, `#` starts a comment, blanks and repeats ignored.

    Raises
    ------
    ConfigError `empty-requirement` : the file lists nothing
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list cannot be read: {error}", code="bad-option", where=str(path)) from error
    names = [line.split("#", 1)[0].strip() for line in lines]
    found = tuple(dict.fromkeys(n for n in names if n))
    if not found:
        raise ConfigError("the file requires nothing: it lists no name", code="empty-requirement", where=str(path))
    return found


def judge(
    report: Mapping[str, Any],
    limits: HealthLimits | None,
    *,
    view: View | None = None,
    labels: Sequence[str] = (),
    inputs: Sequence[Artifact] = (),
    profile: str = "dev",
) -> Verdict:
    """Verdict `health` on a report. Without limits there is no rule, and a verdict without rules fails as `nothing-to-judge`.

    Parameters
    ----------
    view : classes to count; a hit counts for the class its component belongs to
    labels : classes when there is no view (the taxonomy, in order)
    """
    summary = report["summary"]
    totals = {label: counts["total"] for label, counts in report["per_class_counts"].items()}
    rules = _rules(report, limits, class_totals(totals, view, labels)) if limits is not None else []
    return Verdict(
        gate=GATE,
        rules=tuple(rules),
        inputs=tuple(inputs),
        figures={k: v for k, v in summary.items() if not isinstance(v, Mapping)},
        limits=limits.to_json() if limits else {},
        support={"events": summary["events_total"], "hits": summary.get("hits_total", sum(totals.values()))},
        profile=profile,
    )


def class_totals(totals: Mapping[str, int], view: View | None, labels: Sequence[str]) -> dict[str, int]:
    """Hits by class, classes in order, observed labels that belong to no class last."""
    classes = dict.fromkeys(view.classes if view else labels, 0)
    for label, n in totals.items():
        name = view.class_of.get(label, label) if view else label
        classes[name] = classes.get(name, 0) + n
    return classes


def _rules(report: Mapping[str, Any], limits: HealthLimits, classes: Mapping[str, int]) -> list[Rule]:
    summary = report["summary"]
    n_events = summary["events_total"]
    rules = [Rule.at_least("events_present", float(n_events), 1.0)]
    if limits.max_duplication_rate is not None:
        rates = [summary["duplication_rate"], summary["content_duplication_rate"]]
        near = summary.get("near_duplication_rate")  # known only where recordings were listened to
        worst = None if None in rates else max(*rates, near or 0.0)
        told = "largest share of repeated ids, repeated content, and events of recordings that are there twice"
        rules.append(Rule.at_most("duplication_rate", worst, limits.max_duplication_rate, told))
    if limits.min_class_count is not None:
        rules += [
            Rule.at_least(f"min_class_count[{name}]", float(n), float(limits.min_class_count))
            for name, n in classes.items()
            if name not in limits.min_counts
        ]
    rules += [Rule.at_least(f"min_counts[{name}]", float(classes.get(name, 0)), float(n)) for name, n in limits.min_counts.items()]
    rules += [Rule.at_least(f"require_label[{name}]", float(classes.get(name, 0)), 1.0) for name in limits.required_labels]
    for name in dict.fromkeys((*limits.required_techniques, *limits.min_technique_counts)):
        n = report["technique_counts"].get(name, {}).get("events", 0)
        rules.append(Rule.at_least(f"require_technique[{name}]", float(n), float(max(1, limits.min_technique_counts.get(name, 1)))))
    for name, value, limit in (
        ("max_unknown_labels", sum(report["unknown_labels"].values()), limits.max_unknown_labels),
        ("max_rejected_rows", summary["rejected_rows"], limits.max_rejected_rows),
    ):
        if limit is not None:  # on an empty manifest nothing can be said, so the rule fails with `events_present`
            rules.append(Rule.at_most(name, float(value) if n_events or value else None, float(limit)))
    bundle = report.get("bundle")
    if bundle:
        rules.append(Rule.at_most("clipped_share", bundle["clipped_share"], MAX_CLIPPED_SHARE, "samples beyond full scale"))
        rules.append(Rule.at_most("missing_audio", float(bundle["missing_audio"]), 0.0, "planned clips without audio"))
    return rules
