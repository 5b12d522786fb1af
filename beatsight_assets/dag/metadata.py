"""What people see of a stage in the UI: figures with history, the table, a chart, files, digests.

Belongs here: the one translation of a `Report` into Dagster metadata. Does not belong here: any figure of its own.
"""

import base64
import html
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import dagster as dg

from beatsight_assets.dag import frames
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Report, Table
from beatsight_assets.verdict import shown

MAX_INLINE = 1_000  # characters: the UI folds longer Markdown behind "[Show Markdown]"
MAX_BARS = 24  # 18 bytes of path each: the SVG stays below 600 bytes, its data URI below MAX_INLINE
MAX_TABLE_ROWS = 48
PLOTTED = ("f1", "val_f1", "weight")  # columns that say more than a count beside them
EVENT_TABLES = ("events", "merged_manifest", "annotated_manifest")
INK = "#3d6fd6"
SVG = "http://www.w3.org/2000/svg"
MADE_NOW, REUSED = "in this run", "reused: nothing it rests on has changed"


def result(settings: Settings, report: Report) -> dg.MaterializeResult:
    """A stage's report as Dagster keeps it. Equal products have equal data versions, so children of unchanged work stay calm."""
    return dg.MaterializeResult(metadata=describe(settings, report), data_version=dg.DataVersion(report.digest))


def describe(settings: Settings, report: Report) -> dict[str, Any]:
    """Metadata of a report in the order in which the UI shows it: judgement, facts, table and charts, figures, files, what it rests on."""
    found: dict[str, Any] = {}
    for verdict in report.verdicts:
        found[f"verdict {verdict.gate}"] = verdict.status if verdict.passed else dg.MetadataValue.md(bullet_list(verdict.failures))
    facts = {k: v for k, v in report.facts.items() if v not in (None, "", {}, [])}
    found |= {k: rounded(v) if is_number(v) else _cell(v) for k, v in facts.items() if not isinstance(v, (list, tuple, dict))}
    if report.table and report.table.rows:
        found["table"] = dg.MetadataValue.md(markdown_table(report.table.columns, thinned(report.table.rows, MAX_TABLE_ROWS)))
        bars = bars_of(report.table)
        if bars:
            found["chart"] = dg.MetadataValue.md(small_chart(*bars))
            found["chart_full"] = dg.MetadataValue.md(full_chart(*bars))
    figures = {k: rounded(v) for k, v in report.figures.items() if is_number(v)}
    found |= {k: v for k, v in figures.items() if "/" not in k} | {k: v for k, v in figures.items() if "/" in k}
    for key, value in facts.items():
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            found[key] = dg.MetadataValue.md(bullet_list(value))
        elif isinstance(value, (list, tuple, dict)):
            found[key] = dg.MetadataValue.json(value)
    if report.outputs:
        found["path"] = dg.MetadataValue.path(str(settings.layout.root / report.outputs[0].path))
        files = [(a.role, a.path, a.rows, a.sha256[:12]) for a in report.outputs[:MAX_TABLE_ROWS]]
        found["files"] = dg.MetadataValue.md(markdown_table(("role", "below the data root", "rows", "sha256"), files))
        rows = next((a.rows for a in report.outputs if a.rows is not None), None)
        if rows is not None:
            found["dagster/row_count"] = rows
    schema = event_columns() if report.stage in EVENT_TABLES else frames.columns_of(report)
    if schema is not None:
        found["dagster/column_schema"] = schema
    found["digest"] = report.digest
    found["parents"] = dg.MetadataValue.json({f"{n}:{a.role}": {"path": a.path, "sha256": a.sha256} for n, a in enumerate(report.parents)})
    found["made"] = REUSED if report.reused else MADE_NOW
    return found


def event_columns() -> dg.TableSchema:
    """Columns of every event table with unit and meaning."""
    from beatsight_assets.events import COLUMN_DOCS, EVENT_SCHEMA, REQUIRED

    def column(name: str) -> dg.TableColumn:
        unit, text = COLUMN_DOCS[name]
        is_nested = EVENT_SCHEMA[name].is_nested()
        kind = "list" if is_nested else str(EVENT_SCHEMA[name]).lower()
        return dg.TableColumn(name, kind, f"{text} [{unit}]", dg.TableColumnConstraints(nullable=name not in REQUIRED))

    return dg.TableSchema([column(name) for name in EVENT_SCHEMA])


def is_number(value: Any) -> TypeGuard[float]:
    """A number that can be plotted."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def rounded(value: float) -> float:
    """A number as people read it: six significant digits are more than any measure here is good for; counts stay whole.

    Always a float: the UI plots the history of one kind of value, and a share that happens to be 1 must stay in its plot.
    """
    return float(value) if isinstance(value, int) else float(f"{value:.6g}")


def escape(text: str) -> str:
    """A name as Markdown shows it literally."""
    for sign, shown_as in (("\\", "\\\\"), ("|", "\\|"), ("[", "\\["), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(sign, shown_as)
    return text


def bullet_list(lines: Sequence[str]) -> str:
    """Lines as a Markdown list."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a Markdown table, numbers to the right."""
    numeric = [bool(rows) and all(is_number(r[i]) or r[i] is None for r in rows) for i in range(len(columns))]
    lines = [[escape(c) for c in columns], ["---:" if n else "---" for n in numeric]]
    lines += [[_cell(v) for v in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return shown(value) if isinstance(value, float) else escape(str(value))


def bars_of(table: Table) -> tuple[str, str, list[tuple[str, float]]] | None:
    """(name of the figures, name of the labels, bars): of a column in PLOTTED, else of the first with numbers; None when bars would not show it."""
    if len(table.rows) < 2:
        return None
    numeric = [c for i, c in enumerate(table.columns) if i and all(is_number(r[i]) and r[i] >= 0 for r in table.rows)]
    name = next((c for c in PLOTTED if c in numeric), numeric[0] if numeric else None)
    if name is None:
        return None
    column = table.columns.index(name)
    return name, table.columns[0], [(str(r[0]), float(r[column])) for r in thinned(table.rows, MAX_TABLE_ROWS)]


def thinned(rows: Sequence[Any], n: int) -> list[Any]:
    """At most `n` of the rows, evenly spaced, with the first and the last."""
    return list(rows) if len(rows) <= n else [rows[i * (len(rows) - 1) // (n - 1)] for i in range(n)]


def small_chart(figure: str, label: str, bars: Sequence[tuple[str, float]]) -> str:
    """Bars that the UI draws in place: a line of text and an SVG data URI, in all below MAX_INLINE characters."""
    drawn = thinned(bars, MAX_BARS)
    top = max(v for _, v in drawn) or 1.0
    step = 288 // len(drawn)
    path = "".join(f"M{i * step} 60v-{max(1, round(58 * v / top))}h{step - 2}V60z" for i, (_, v) in enumerate(drawn))
    svg = f'<svg xmlns="{SVG}" width="288" height="60"><path fill="{INK}" d="{path}"/></svg>'
    largest, least = max(drawn, key=lambda b: b[1]), min(drawn, key=lambda b: b[1])
    text = f"{figure[:40]} by {label[:40]}: {largest[0][:24]} {shown(largest[1])} … {least[0][:24]} {shown(least[1])}"
    chart = f"{escape(text)}\n\n{_image('bars', svg)}"
    return chart if len(chart) < MAX_INLINE else escape(text)  # the UI folds longer strings: the words alone say more than a link


def full_chart(figure: str, label: str, bars: Sequence[tuple[str, float]]) -> str:
    """The same bars with names and numbers; longer than MAX_INLINE, so the UI shows it behind a link."""
    top = max(v for _, v in bars) or 1.0
    lines = [f'<text x="0" y="14" font-weight="bold">{_xml(figure)} by {_xml(label)}</text>']
    for i, (name, value) in enumerate(bars):
        y, width = 24 + 20 * i, max(1, round(380 * value / top))
        lines.append(
            f'<text x="192" y="{y + 13}" text-anchor="end">{_xml(name)}</text><rect x="200" y="{y}" width="{width}" height="16" fill="{INK}"/>'
        )
        lines.append(f'<text x="{206 + width}" y="{y + 13}">{_xml(shown(value))}</text>')
    size = f'width="680" height="{30 + 20 * len(bars)}"'
    style = 'font-family="sans-serif" font-size="12" fill="#444"'
    return _image(
        "bars with names", f'<svg xmlns="{SVG}" {size} {style}><rect width="100%" height="100%" fill="#fff"/>{"".join(lines)}</svg>'
    )


def _image(name: str, svg: str) -> str:
    return f"![{name}](data:image/svg+xml;base64,{base64.b64encode(svg.encode('utf-8', 'replace')).decode()})"


def _xml(text: str) -> str:
    """A name as XML text: no markup, no control characters, 28 characters at most."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return html.escape(plain if len(plain) <= 28 else plain[:27] + "…")
