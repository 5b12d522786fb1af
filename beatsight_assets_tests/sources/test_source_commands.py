"""`beatsight source` on the command line: copies of what was ingested, and the inventory."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from beatsight_assets.cli import build
from beatsight_assets.errors import ConfigError
from beatsight_assets.events import read_events
from beatsight_assets.settings import Settings
from beatsight_assets_tests.sources.lake import NAME, at, put_table, put_take
from beatsight_assets_tests.sources.test_named_sources import put


def call(settings: Settings, *arguments: str) -> int:
    done = CliRunner().invoke(build(), ["--data-root", str(settings.layout.root), *arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return int(done.return_value)


def test_copies_of_events_and_provenance(settings: Settings, tmp_path: Path) -> None:
    """T20: `--output-events` as JSONL or Parquet holds the rows of the table, `--output-provenance` a line per session with facts as an object."""
    root = settings.layout.raw(NAME)
    for i in range(2):
        put_take(root, f"t{i}", i)
    put_table(root, ["t0", "t1"])
    lines, table, told = tmp_path / "events.jsonl", tmp_path / "events.parquet", tmp_path / "provenance.jsonl"
    assert call(settings, "source", "ingest", "demo", "--output-events", str(lines), "--output-provenance", str(told)) == 0
    assert call(settings, "source", "ingest", "demo", "--output-events", str(table)) == 0
    made = read_events(settings.layout.events(NAME))
    assert made.equals(pl.read_parquet(table)) and made["event_id"].to_list() == read_events(lines)["event_id"].to_list()
    rows = [json.loads(line) for line in told.read_text().splitlines()]
    assert [r["session_id"] for r in rows] == ["midi/t0.mid", "midi/t1.mid"] and rows[0]["facts"]["note_ons"] == 4
    for arguments in (("--all", "--output-events", str(lines)), ("demo", "--output-events", str(tmp_path / "events.csv"))):
        put_take(settings.layout.raw("groove_rendered"), "t0", 0)
        with pytest.raises(ConfigError):
            call(settings, "source", "ingest", *arguments)


def test_an_inventory_on_the_command_line(settings: Settings, tmp_path: Path) -> None:
    """T13: two roots, one list, no events; a dataset without session folders is a wrong option."""
    for folder in ("a", "b"):
        put(tmp_path / folder, "X_Y/01_Kick.wav")
    roots = ("--root", str(tmp_path / "a"), "--root", str(tmp_path / "b"))
    assert call(settings, "source", "ingest", "cambridge", *roots, "--inventory-only") == 0
    lines = settings.layout.report("ingest", "cambridge_inventory.jsonl").read_text().splitlines()
    assert [json.loads(line)["root"] for line in lines] == [1, 2] and not settings.layout.events("cambridge_multitrack").exists()
    with pytest.raises(ConfigError, match="no session folders"):
        call(settings, "source", "ingest", "musdb", *roots[:2], "--inventory-only")


def test_one_empty_dataset_does_not_stop_the_others(settings: Settings, tmp_path: Path) -> None:
    """T20: with --all every dataset that can be read is; the others are named, on the page and in the JSON, and by the exit code."""
    settings.layout.raw("enst_drums").mkdir(parents=True)
    (settings.layout.raw("enst_drums") / "readme.txt").write_text("nothing yet")
    root = settings.layout.raw(NAME)
    put_take(root, "t0", 0)
    put_table(root, ["t0"])
    report = tmp_path / "report.json"
    assert call(settings, "source", "ingest", "--all", "--report", str(report)) == 1
    told = json.loads(report.read_text())
    assert [(r["partition"], r["figures"]["events"]) for r in told["reports"]] == [(NAME, 4)]
    assert [(f["name"], f["code"]) for f in told["failed"]] == [("enst_drums", "no-recordings")]
    with pytest.raises(ConfigError, match="must be one of"):
        call(settings, "source", "ingest", "demo", "nobody")
    assert call(settings, "source", "ingest", "musdb", "demo") == 2, "musdb is away"


def test_equal_results_from_two_working_directories(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T29: with relative paths from one folder and with others from another, every step writes equal bytes; a text list of techniques is read."""
    raw, home = tmp_path / "takes", tmp_path / "home"
    for i in range(4):
        put_take(raw, f"t{i}", i)
    put_table(raw, [f"t{i}" for i in range(4)])
    (tmp_path / "additional.txt").write_text("# one per line\nghost note\n\nHi-hat foot chick\n")
    written = []
    for n, (place, up) in enumerate(((home, ".."), (home / "deep" / "down", "../../.."))):
        place.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(place)
        base = ("--data-root", f"{up}/lake{n}", "--profile", "dev")

        def ended(*words: str, base: tuple[str, ...] = base) -> int:
            done = CliRunner().invoke(build(), [*base, *words, "--quiet"], standalone_mode=False, catch_exceptions=False)
            return int(done.return_value or 0)

        out = f"{up}/out{n}"
        codes = (
            ended("source", "ingest", "demo", "--root", f"{up}/takes", "--output-events", f"{out}/e.jsonl"),
            ended("events", "merge"),
            ended("events", "annotate"),
            ended("events", "annotate", f"{out}/e.jsonl", "--output", f"{out}/a.jsonl", "--techniques-file", f"{up}/additional.txt"),
            ended("raw", "checksums", f"{up}/takes", "--output", f"{out}/sums.txt"),
        )
        assert codes == (0, 0, 1, 0, 0)  # the gate of annotate misses hi-hat barks in takes this short
        assert not [p for p in place.iterdir() if p.name != "deep"]
        roots = (tmp_path / f"lake{n}", tmp_path / f"out{n}")
        files = {p.relative_to(r).as_posix(): p.read_bytes() for r in roots for p in r.rglob("*") if p.is_file()}
        written.append({name: content for name, content in files.items() if not name.startswith((".", "receipts/"))})  # receipts tell when
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content and not name.startswith(".")]
    assert written[0] == written[1] and {"events/beatsight_demo.parquet", "manifest/annotated.parquet", "a.jsonl", "sums.txt"} <= set(
        written[0]
    )
    (tmp_path / "lake0").rename(tmp_path / "moved")
    again = tmp_path / "again.json"
    assert call(at(settings, tmp_path / "moved"), "source", "ingest", "demo", "--root", str(raw), "--report", str(again)) == 0
    assert json.loads(again.read_text())["reused"], "a data root that was moved is kept"
