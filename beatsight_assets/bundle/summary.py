"""What an export or a verification came to, as tables that a person reads: on a terminal, in the log, in the bundle's history.

Belongs here: which numbers stand in which table, and their plain form. Does not belong here: counting, printing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beatsight_assets.bundle.plan import SPLITS
from beatsight_assets.stages import Table

Section = tuple[str, Table]  # title, table


def formatted_duration(seconds: float) -> str:
    """Hours, minutes, seconds and milliseconds.

    >>> formatted_duration(0.56), formatted_duration(3661.28)
    ('0:00:00.560', '1:01:01.280')
    """
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"


def of_export(figures: Mapping[str, float | int], facts: Mapping[str, Any]) -> list[Section]:
    """Tables of an export, from the figures and facts of its report: all there is, and what this run added."""
    seconds, run_seconds = facts["split_durations_seconds"], facts["run_split_durations_seconds"]
    by_split = [(s, figures[f"{s}_clips"], seconds[s], formatted_duration(seconds[s]), run_seconds[s]) for s in SPLITS]
    total = sum(seconds.values())
    by_split.append(("TOTAL", figures["written_clips"], total, formatted_duration(total), sum(run_seconds.values())))
    durations = facts["durations"]
    none = (0, 0.0)
    by_source = []
    for source in sorted({*durations["expected"], *durations["total"]}):
        (n, s), (run_n, run_s), (healed_n, healed_s) = (durations[k].get(source, none) for k in ("total", "run", "run_healed"))
        by_source.append((source, n, s, formatted_duration(s), run_n, run_s, healed_n, healed_s))
    return [
        ("Totals", _pairs({k: v for k, v in figures.items() if not k.startswith("run_")})),
        ("Run contribution", _pairs(facts["run_statistics"])),
        ("Splits", Table(("split", "clips", "seconds", "duration", "seconds of this run"), tuple(by_split))),
        ("Sources", Table(("source", "clips", "seconds", "duration", "run clips", "run seconds", "healed clips", "healed seconds"), tuple(by_source))),
        ("Files found per root", _pairs(facts["root_hits"])),
    ]  # fmt: skip


def _pairs(values: Mapping[str, Any]) -> Table:
    return Table(("", ""), tuple(values.items()))


def cell(value: Any) -> str:
    """A cell as people read it: thousands apart, at most six decimals.

    >>> cell(2343), cell(656.04), cell(0.0), cell("kick")
    ('2,343', '656.04', '0', 'kick')
    """
    if isinstance(value, float):
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)


def plain(sections: Sequence[Section]) -> str:
    """Tables as plain text; those without rows are left out."""
    lines = []
    for title, table in sections:
        if not table.rows:
            continue
        rows = [tuple(cell(v) for v in row) for row in table.rows]
        rows = [table.columns, *rows] if any(table.columns) else rows
        widths = [max(len(row[n]) for row in rows) for n in range(len(table.columns))]
        lines.append(title)
        lines += ["  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in rows]  # fmt: skip
    return "\n".join(lines)
