"""`beatsight health` with options: any manifest, limits of the command line, components and durations of a bundle, and what a score is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets import cli
from beatsight_assets.events import Hits, Session, assemble, read_events, to_jsonl
from beatsight_assets.health import honesty, html
from beatsight_assets.health.report import HealthOptions, assess
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets.testing.manifests import made_manifest, made_provenance

MANIFEST_ROWS = 400


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest outside of the data root."""
    path = tmp_path / "some.jsonl"
    path.write_bytes(to_jsonl(made_manifest(MANIFEST_ROWS).unique("event_id", keep="first", maintain_order=True)))
    return path


Health = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def health(data_root: Path, capsys: pytest.CaptureFixture[str]) -> Health:
    """`health("report", ...)`: exit code and JSON of `beatsight health`."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            cli.main(
                [
                    "--data-root",
                    str(data_root),
                    "--profile",
                    "demo",
                    "health",
                    str(arguments[0]),
                    "--json",
                    "--quiet",
                    *map(str, arguments[1:]),
                ]
            )
        out = capsys.readouterr().out
        return int(ended.value.code or 0), json.loads(out) if out.strip() else {}

    return run


def test_limits_of_the_command_line_replace_those_of_the_profile(health: Health, manifest: Path, tmp_path: Path) -> None:
    """Only the rules that were asked for are judged, by the values given; the report goes where it is asked to go."""
    output, page = tmp_path / "h.json", tmp_path / "h.html"
    code, found = health(
        "report", "--events", manifest, "--max-duplication-rate", 0.5, "--require-label", "kick", "--output", output, "--html-output", page
    )
    assert code == 0
    assert [r["name"] for r in found["gating_results"]] == ["events_present", "duplication_rate", "require_label[kick]"]
    assert json.loads(output.read_text()) == found and "<svg" in page.read_text()
    assert str(tmp_path) not in output.read_text() + page.read_text()


def test_a_missing_requirement_fails(health: Health, manifest: Path, tmp_path: Path) -> None:
    """A class, a technique or a count that is not reached is exit 1; a list file that lists nothing is exit 2."""
    (tmp_path / "none.txt").write_text("# nothing\n")
    (tmp_path / "some.txt").write_text("triple_flam_of_doom  # no such gesture\n")
    (tmp_path / "counts.json").write_text('{"kick": 1000000}')
    assert health("report", "--events", manifest, "--require-techniques-file", tmp_path / "some.txt")[0] == 1
    assert health("report", "--events", manifest, "--min-counts-json", tmp_path / "counts.json")[0] == 1
    assert health("report", "--events", manifest, "--require-techniques-file", tmp_path / "none.txt")[0] == 2
    assert health("report", "--events", manifest, "--max-duplication-rate", -1)[0] == 2


def test_no_limits_is_no_pass(health: Health, manifest: Path) -> None:
    """Without rules there is nothing to judge, and that is a fail that says so."""
    code, found = health("report", "--events", manifest, "--no-limits")
    assert code == 1 and found["status"] == "fail" and found["gating_results"] == []


def test_components_and_durations_of_a_bundle(health: Health, manifest: Path, tmp_path: Path) -> None:
    """A label outside of the bundle's components is unknown; durations are copied, numeric strings read; other shapes are exit 3."""
    (tmp_path / "c.json").write_text('{"classes": ["kick", {"id": "snare"}]}')
    (tmp_path / "m.json").write_text('{"split_durations_seconds": {"train": "12.5", "val": 3}}')
    code, found = health(
        "report",
        "--events",
        manifest,
        "--components",
        tmp_path / "c.json",
        "--dataset-metadata",
        tmp_path / "m.json",
        "--max-unknown-labels",
        0,
    )
    assert code == 1 and "crash" in found["unknown_labels"] and "kick" not in found["unknown_labels"]
    assert found["split_durations_seconds"] == {"train": 12.5, "val": 3.0} and found["summary"]["duration_seconds_total"] == 15.5
    (tmp_path / "bad.json").write_text('{"kits": 3}')
    assert health("report", "--events", manifest, "--components", tmp_path / "bad.json")[0] == 3


def test_an_empty_manifest_fails(health: Health, tmp_path: Path) -> None:
    """No event: every floor fails, exit 1; a manifest that is not there is exit 3."""
    (tmp_path / "empty.jsonl").write_text("")
    code, found = health("report", "--events", tmp_path / "empty.jsonl", "--min-class-count", 500)
    assert code == 1 and not any(r["passed"] for r in found["gating_results"])
    assert health("report", "--events", tmp_path / "absent.jsonl")[0] == 3


def test_two_reports_compared_by_name(health: Health, manifest: Path, tmp_path: Path) -> None:
    """health compare works on any two reports; a dropped class is exit 1, a file that is no report exit 3."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    health("report", "--events", manifest, "--max-unknown-labels", 0, "--output", before)
    less = read_events(manifest).head(MANIFEST_ROWS // 2)
    (tmp_path / "less.jsonl").write_bytes(to_jsonl(less))
    health("report", "--events", tmp_path / "less.jsonl", "--max-unknown-labels", 0, "--output", after)

    assert health("compare", "--baseline", before, "--candidate", before)[0] == 0
    assert health("compare", "--baseline", before, "--candidate", after)[0] == 1
    assert health("compare", "--baseline", before, "--candidate", after, "--max-drop", 10_000)[0] == 0
    assert health("compare", "--baseline", manifest, "--candidate", after)[0] == 3


def test_hostile_labels_are_text(settings: Settings, tmp_path: Path) -> None:
    """A label that is markup appears as text; the page loads nothing and runs nothing."""
    frame = made_manifest(200).with_columns(
        components=pl.col("components").list.eval(pl.element().struct.with_fields(label=pl.lit("<script>alert(1)</script>")))
    )
    path = tmp_path / "hostile.parquet"
    frame.write_parquet(path)
    found, verdict = assess(settings, HealthOptions(manifest=path, no_limits=True))
    page = html.render(found, verdict)
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page.split("<main>")[1]


def styles(settings: Settings, *, n_drummers: int, takes_each: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Takes whose style no feature tells, but whose take any feature does."""
    voices = tuple(Voice(x) for x in ("kick", "snare", "hihat_closed", "ride_bow"))
    batch, rows = [], []
    for drummer in range(n_drummers):
        for take in range(takes_each):
            rng = np.random.default_rng(drummer * 1000 + take)
            mix = rng.dirichlet(np.full(4, 0.3))
            onset = np.cumsum(rng.integers(60_000, 400_000, 256)).astype(np.int64)
            name = f"d{drummer}/t{take}"
            session = Session(session_id=name, group_id=name, drummer_id=f"d{drummer}")
            batch.append((session, Hits(voices, onset, rng.choice(4, 256, p=mix), rng.random(256).astype(np.float32))))
            rows.append(("made", name, json.dumps({"style": ("rock", "jazz")[int(rng.integers(2))]})))
    provenance = pl.DataFrame(rows, schema=["source_set", "session_id", "facts"], orient="row")
    return assemble("made", batch, Taxonomy.load(settings)).frame, provenance


def test_memory_of_takes_is_told_from_knowledge(settings: Settings) -> None:
    """Where styles are random, a split by row still scores high and a split by take scores chance: the probe shows what a leak is worth."""
    events, provenance = styles(settings, n_drummers=4, takes_each=12)
    found = honesty.probe(events, provenance, Taxonomy.load(settings))
    assert found is not None and found["takes"] == 48 and found["drummers"] == 4
    assert found["accuracy"]["row"] > found["accuracy"]["take"] + 0.08
    assert abs(found["accuracy"]["take"] - 0.5) < 0.15
    shuffled = events.sample(fraction=1.0, shuffle=True, seed=3)
    assert honesty.probe(shuffled, provenance, Taxonomy.load(settings)) == found


def test_no_styles_no_figure(settings: Settings) -> None:
    """Sources without styles or drummers give no figure instead of a wrong one."""
    events = made_manifest(2_000)
    provenance = made_provenance(events.select("source_set", "session_id", "group_id").unique())
    assert honesty.probe(events, provenance, Taxonomy.load(settings)) is None


def test_what_a_score_is_worth_on_groove(groove_lake: Settings, groove_events: pl.DataFrame) -> None:
    """Real Groove: a split by row scores far above one by take, and that above one by drummer; the figures stand in the report and on the page."""
    provenance = pl.read_parquet(groove_lake.layout.provenance("groove_mididataset"))
    found = honesty.probe(groove_events, provenance, Taxonomy.load(groove_lake))
    assert found is not None
    accuracy = found["accuracy"]
    assert accuracy["row"] > accuracy["take"] + 0.15 and accuracy["take"] > accuracy["drummer"] + 0.05, found
