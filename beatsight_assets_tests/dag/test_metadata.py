"""What people see of a stage in the UI."""

import base64
import re

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets.dag.metadata import MAX_BARS, MAX_INLINE, bars_of, describe, escape, full_chart, markdown_table, result, small_chart
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Artifact, Report, Table
from beatsight_assets.verdict import Reason, Rule, Verdict

TABLE = Table(("component", "hits"), (("kick", 412), ("snare", 380), ("a|b [c] <d>", 7)))
REPORT = Report(
    "merged_manifest",
    None,
    "1",
    {},
    (Artifact("merged", "manifest/merged.parquet", "ab" * 32, 799),),
    (Artifact("events", "events/x.parquet", "cd" * 32, None),),
    {"events": 799, "share": 0.5, "undefined": float("nan")},
    {"licence": "CC-BY-4.0", "is_first": True, "codes": {"bad": 1}, "nothing": None},
    (Verdict("merge", (Rule.at_least("a", 1, 2),), reasons=(Reason("x", "y"),)),),
    TABLE,
)


def test_description_is_complete(settings: Settings) -> None:
    """Figures are numbers, files and digests are there, the columns of an event table are explained, undefined numbers are left out."""
    found = describe(settings, REPORT)
    assert (found["events"], found["share"], "undefined" in found) == (799, 0.5, False)
    assert {type(found[name]) for name in ("events", "share")} == {float}, "a plot of the history is of one kind of value"
    assert found["dagster/row_count"] == 799
    assert found["path"].value == str(settings.layout.merged)
    assert found["digest"] == REPORT.digest
    assert found["parents"].value == {"0:events": {"path": "events/x.parquet", "sha256": "cd" * 32}}
    columns = {c.name: c for c in found["dagster/column_schema"].columns}
    assert columns["onset_time"].description.endswith("[s]") and columns["onset_time"].constraints.nullable is False
    assert "x: y" in found["verdict merge"].value
    assert found["is_first"] == "yes" and "nothing" not in found


def test_data_version_is_the_digest(settings: Settings) -> None:
    """Equal products have equal data versions, whenever they were made."""
    assert result(settings, REPORT).data_version.value == REPORT.digest


def test_names_cannot_break_the_table() -> None:
    """Names with signs of Markdown or HTML are shown, not obeyed."""
    text = markdown_table(TABLE.columns, TABLE.rows)
    assert text.splitlines()[1] == "| --- | ---: |"
    assert r"a\|b \[c] &lt;d>" in text and len(text.splitlines()) == 5
    assert escape("line\nbreak") == "line break"


@given(st.lists(st.tuples(st.text(max_size=60), st.floats(0, 1e12)), min_size=2, max_size=60), st.text(max_size=40))
def test_small_chart_stays_inline(bars: list[tuple[str, float]], name: str) -> None:
    """Whatever the names and numbers, the chart is below the length at which the UI folds it."""
    assert len(small_chart(name, "component", bars)) < MAX_INLINE


def test_small_chart_draws_every_bar() -> None:
    """The SVG has one bar per row, the tallest as high as the sheet."""
    chart = small_chart("hits", "component", [(str(i), float(i)) for i in range(MAX_BARS)])
    svg = base64.b64decode(re.search(r"base64,([^)]+)\)", chart)[1]).decode()  # type: ignore[index]
    assert svg.count("M") == MAX_BARS and "v-58h" in svg and "<script" not in svg


@given(st.lists(st.tuples(st.text(max_size=60), st.floats(0, 1e12)), min_size=2, max_size=60), st.text(max_size=40))
def test_full_chart_is_well_formed(bars: list[tuple[str, float]], name: str) -> None:
    """The chart behind the link is one well-formed image with every bar, whatever the names contain."""
    chart = full_chart(name, "class", bars)
    sheet = fromstring(base64.b64decode(re.search(r"base64,([^)]+)\)", chart)[1]))  # type: ignore[index]
    assert len(sheet.findall("{http://www.w3.org/2000/svg}rect")) == len(bars) + 1


@pytest.mark.parametrize(
    ("table", "plotted"),
    [
        (Table(("class", "hits", "f1"), (("kick", 9, 0.9), ("snare", 8, 0.8))), "f1"),
        (Table(("dataset", "events", "groups"), (("a", 9, 1), ("b", 8, 2))), "events"),
        (Table(("epoch", "train_loss", "val_f1"), tuple((i, 1.0, 0.5) for i in range(200))), "val_f1"),
        (Table(("name", "note"), (("a", "b"), ("c", "d"))), None),
        (Table(("name", "n"), (("a", 1),)), None),
        (Table(("name", "n"), (("a", 1), ("b", -1))), None),
    ],
    ids=["the score", "the first count", "a curve", "no numbers", "one row", "below zero"],
)
def test_what_bars_show(table: Table, plotted: str | None) -> None:
    """The chart shows the figure that says most; a table that bars would not show gets none."""
    bars = bars_of(table)
    assert (bars and bars[0]) == plotted
    assert bars is None or (bars[2][0][0], bars[2][-1][0]) == (str(table.rows[0][0]), str(table.rows[-1][0]))
