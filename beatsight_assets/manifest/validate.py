"""Does a manifest keep the rules of the schema, the taxonomy and the catalogue of techniques: `events validate`, and a step of checklists.

Belongs here: putting the findings together. Does not belong here: the rules (`events`, `taxonomy`, `techniques`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import polars as pl

from beatsight_assets import events
from beatsight_assets.manifest import techniques
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy

SHOWN = 20


def validate(frame: pl.DataFrame, settings: Settings, names: Collection[str]) -> tuple[bool, dict[str, Any]]:
    """Whether all rules hold and every label is known; and what was found, the first 20 problems with row, field, rule and value.

    names : of the techniques in the catalogue
    """
    taxonomy = Taxonomy.load(settings)
    counts, violations = events.find_violations(frame, taxonomy, limit=SHOWN)
    wrong_ids = events.find_wrong_ids(frame, list(settings.datasets))
    counts["event_id_recomputes"] = wrong_ids.len()
    for row in wrong_ids.head(SHOWN - len(violations)).to_list():
        found = str(frame["event_id"][row])
        violations.append(events.Violation("event_id_recomputes", found, row + 1, "event_id", f'"{found}"'))
    unknown = events.unknown_labels(frame, taxonomy)
    strangers = techniques.count_strangers(frame, names)
    counts["techniques_known"] = sum(strangers.values())
    broken = {rule: n for rule, n in counts.items() if n}
    report = {
        "events": frame.height,
        "broken": broken,
        "unknown_labels": unknown,
        "unknown_techniques": strangers,
        "problems": [vars(v) for v in violations],
    }
    return not (broken or unknown), report


def lines_of(name: str, report: dict[str, Any]) -> list[str]:
    """The findings as a person reads them."""
    broken, unknown = report["broken"], report["unknown_labels"]
    n_broken, n_unknown = sum(broken.values()), sum(unknown.values())
    lines = [f"{name}: {report['events']:,} events, {n_broken:,} broken rules, {n_unknown:,} hits with unknown labels"]
    lines += [f"  {rule}: {n:,}" for rule, n in broken.items()]
    lines += [f"    row {v['row']}: {v['field']} is {v['value'][:80]} ({v['rule']})" for v in report["problems"]]
    lines += [f"  unknown label {label}: {n:,} hits" for label, n in unknown.items()]
    return lines + [f"  technique {t}: {n:,} events; not in the catalogue" for t, n in report["unknown_techniques"].items()]
