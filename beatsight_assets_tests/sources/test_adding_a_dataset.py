"""docs/adding_a_dataset.md is followed to the letter: its module, its entry, its commands."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl

from beatsight_assets import events
from beatsight_assets.settings import Settings
from beatsight_assets_tests.sources.idmt_layout import clip
from beatsight_assets_tests.sources.test_contract import SECTIONS
from beatsight_assets_tests.test_house import RULES, Module

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_dataset.md"


def blocks(kind: str) -> list[str]:
    """The fenced blocks of one kind on the page."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_can_be_followed(settings: Settings, tmp_path: Path) -> None:
    """A module outside this package and one config entry: the dataset is scanned, ingested, merged hits and all, and its faults are told."""
    package = tmp_path / "drum_club_data"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "club.py").write_text(blocks("python")[0])
    config = settings.layout.root / "configs" / "datasets.yaml"
    config.parent.mkdir()
    config.write_text(blocks("yaml")[0])
    takes = settings.layout.raw("club") / "takes"
    takes.mkdir(parents=True)
    (takes / "ann-1.csv").write_text("milliseconds,drum\n100,boom\n104,ts\n300.5,tschak\n500,bing\n")
    (takes / "ann-1.wav").write_bytes(clip())
    (takes / "bob-1.wav").write_bytes(clip())
    (takes / "bob-2.csv").write_text("milliseconds,drum\nsoon,boom\n")
    commands = [line.removeprefix("$ ").split() for line in blocks("console")[0].splitlines()]
    assert [c[:3] for c in commands] == [["beatsight", "source", "scan"], ["beatsight", "source", "ingest"]]
    environment = {
        **os.environ,
        "BEATSIGHT_DATA_ROOT": str(settings.layout.root),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    results = [
        subprocess.run([sys.executable, "-m", "beatsight_assets", *c[1:], "--json"], env=environment, capture_output=True, text=True)
        for c in commands
    ]
    assert json.loads(results[0].stdout)["recordings"] == 2, results[0].stderr
    assert results[1].returncode == 1, "one of four files is damaged, more than max_reject_rate allows"
    table = events.read_events(settings.layout.events("drum_club"))
    heard = [(r["onset_time"], [c["label"] for c in r["components"]]) for r in table.iter_rows(named=True)]
    assert heard == [(0.1, ["kick", "hihat_closed"]), (0.3005, ["snare"]), (0.5, ["bing"])]
    refused = pl.read_parquet(settings.layout.quarantine("drum_club"))
    assert refused.select("path", "code").rows() == [("takes/bob-1.wav", "missing-annotation"), ("takes/bob-2.csv", "bad-time")]
    provenance = pl.read_parquet(settings.layout.provenance("drum_club"))
    assert json.loads(provenance["issues"][0])["unknown_label"] == 1 and provenance["ingestion_module"].to_list() == ["club"]


def test_the_module_of_the_page_is_one_of_this_repository() -> None:
    """Copied into sources/ it keeps the rules of the house: postponed and complete annotations, docstrings, the four sections."""
    module = Module("beatsight_assets/sources/club.py", blocks("python")[0])
    assert [f"{line}: {what}" for rule in RULES for line, what in rule(module)] == []
    functions = [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef)]
    assert len(functions) == 2 and all(f.returns and all(a.annotation for a in f.args.args) for f in functions)
    assert all(re.search(rf"^{section}\s+\S", ast.get_docstring(module.tree) or "", re.MULTILINE) for section in SECTIONS)
