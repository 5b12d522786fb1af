"""`beatsight bundle`: what each command prints, writes and exits with (spec/tools.md rows T22, T30-T48, T99-T101, T125, T137)."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from beatsight_assets import clock
from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.bundle.plan import read_plan
from beatsight_assets.bundle.read import open_bundle
from beatsight_assets.bundle.summary import cell
from beatsight_assets.settings import Settings
from beatsight_assets_tests.bundle.conftest import SOURCE, Beatsight

SECONDS = 207 * 0.28  # of the clips of `made`
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?![\w.])")


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder; digests that the store remembers are no product."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and "cache" not in p.name}


def numbers(value: Any) -> Iterator[float]:
    """Every number in JSON."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def in_text(text: str) -> set[float]:
    return {float(found.replace(",", "")) for found in NUMBER.findall(text)}


def run_of(text: str) -> dict[str, float]:
    """The table `Run contribution` of a printed summary."""
    lines = text.split("Run contribution\n")[1].splitlines()
    rows = [line.split() for line in lines[: next(n for n, line in enumerate(lines) if not line.startswith("  "))]]
    return {name: float(value.replace(",", "")) for name, value in rows}


def test_the_log_holds_the_numbers_of_the_json(made: Settings, beatsight: Beatsight, tmp_path: Path) -> None:
    """T22, T34, T35, T40: --summary-json is what --json prints; the plain log, the text and the history hold every number of it."""
    log, summary = tmp_path / "e.log", tmp_path / "e.json"
    ended = beatsight("bundle", "export", "b", "--sample-rate", "44100", "--val-ratio", "0.1", "--log-file", log, "--summary-json", summary, "--json")  # fmt: skip
    found = json.loads(ended.out)
    assert ended.code == 0 and found == json.loads(summary.read_text())
    facts, figures = found["facts"], found["figures"]
    wanted = {"figures": figures, **{k: facts[k] for k in ("durations", "split_durations_seconds", "run_split_durations_seconds", "run_statistics", "root_hits")}}  # fmt: skip
    assert set(numbers(wanted)) <= in_text(log.read_text()) and pytest.approx(figures["written_seconds"]) == SECONDS
    named = {line.split()[0]: line.split()[1] for line in log.read_text().splitlines() if len(line.split()) == 2}
    assert {k: named[k] for k in figures if not k.startswith("run_")} == {
        k: cell(v) for k, v in figures.items() if not k.startswith("run_")
    }
    history = made.layout.at("bundles/b/history/run-0001.log").read_text()
    assert set(numbers(wanted)) <= in_text(history) and history in log.read_text()
    assert beatsight("bundle", "export", "b").code == 2 and beatsight("bundle", "export", "b", "--resume", "--overwrite").code == 2


def test_a_run_says_what_it_added(made: Settings, beatsight: Beatsight) -> None:
    """T32, T34, T43, T44: a resume that names only the bundle and the audio adds nothing, one that mends adds what it healed; then nothing is left."""
    assert run_of(beatsight("bundle", "export", "b").out)["written_clips"] == 207
    idle = run_of(beatsight("bundle", "export", "b", "--resume", "--audio-root", made.layout.at("raw")).out)
    assert {k: idle[k] for k in ("written_clips", "healed_clips", "reused_clips", "written_seconds")} == {
        "written_clips": 0, "healed_clips": 0, "reused_clips": 207, "written_seconds": 0}  # fmt: skip
    open_bundle(made.layout.at("bundles/b")).parts("train")[0].path.unlink()
    mended = run_of(beatsight("bundle", "export", "b", "--resume").out)
    assert mended["healed_clips"] > 0 and mended["healed_seconds"] == pytest.approx(mended["healed_clips"] * 0.28)
    rest = run_of(beatsight("bundle", "export", "b", "--resume").out)
    assert (rest["written_clips"], rest["healed_clips"]) == (0, 0)
    ended = beatsight("bundle", "export", "b", "--resume", "--sample-rate", "48000")
    assert ended.code == 2 and "sample_rate 44100 -> 48000" in ended.err


def test_tables_are_drawn_or_plain(made: Settings, beatsight: Beatsight, tmp_path: Path) -> None:
    """T34, T101: off a terminal plain, with --force-rich drawn and one moving line; the log stays plain; both words exclude each other."""
    plain = beatsight("bundle", "verify")
    drawn = beatsight("bundle", "verify", "--force-rich", "--log-file", tmp_path / "v.log")
    assert "│" in drawn.out and "\r" in drawn.err and "│" not in plain.out and "\r" not in plain.err
    assert (tmp_path / "v.log").read_text() == plain.out == beatsight("bundle", "verify", "--disable-rich").out
    assert in_text(plain.out) <= in_text(re.sub(r"\x1b\[[\d;]*m", "", drawn.out))
    assert beatsight("bundle", "verify", "--disable-rich", "--force-rich").code == 2
    ended = beatsight("bundle", "export", "b", "--force-rich", "--write-workers", "2", "--overwrite", "--manifest-total", "207")
    assert ended.code == 0 and "│" in ended.out and "train" in ended.out


def test_progress_counts_clips_of_each_split(made: Settings, beatsight: Beatsight, monkeypatch: pytest.MonkeyPatch) -> None:
    """T41, T47: one line per ten seconds off a terminal; clips, train, val and rate; --manifest-total stands in the line and nowhere else."""
    said: list[str] = []
    export(made, BundleRequest("b", manifest_total=500), progress=said.append)
    assert "reading the manifest: 207 of 500 events" in said
    assert re.fullmatch(r"207 of 207 clips, train 69, val 69, test 69, [\d,]+ clips/s, 0 s left", said[-1])
    assert export(made, BundleRequest("c")).plan.sha256 == read_plan(made.layout.at("bundles/b")).sha256  # type: ignore[union-attr]
    ticks = iter(n * 2.0 for n in range(10_000))  # each look at the clock two seconds later
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    lines = beatsight("bundle", "export", "d", "--shards", "16").err.splitlines()
    seconds = next(ticks)
    assert 1 < len(lines) <= seconds / 10 + 1
    assert not [line for line in beatsight("bundle", "verify", "--quiet").err.splitlines() if line]


def test_verify_writes_nothing_and_names_what_is_missing(made: Settings, beatsight: Beatsight, tmp_path: Path) -> None:
    """T30, T31, T45, T100: exit 1 on missing; tried paths and reason per example; labels of all events; only the files that were asked for."""
    audio = made.layout.raw(SOURCE) / "audio"
    (audio / "take_0.wav").rename(tmp_path / "away.wav")
    (audio / "take_1.wav").rename(tmp_path / "outside.wav")
    (audio / "take_1.wav").symlink_to(tmp_path / "outside.wav")
    before = tree(made.layout.root)
    maps = ("--audio-root-map", f"{SOURCE}={tmp_path / 'no'}", "--audio-root-map", f"demo={tmp_path}")
    table, summary = tmp_path / "v.csv", tmp_path / "v.json"
    ended = beatsight("bundle", "verify", *maps, "--expected-duration-csv", table, "--summary-json", summary, "--json", "--probe", "header")
    found = json.loads(ended.out)
    assert ended.code == 1 and tree(made.layout.root) == before and json.loads(summary.read_text()) == found
    assert found["statistics"] == {"total_events": 207, "planned_clips": 207, "resolved_audio": 69, "missing_audio": 138, "missing_components": 0,
                                   "with_components": 207, "expected_seconds": pytest.approx(SECONDS)}  # fmt: skip
    gone, outside = sorted(found["missing_examples"], key=lambda e: e["audio_path"])
    assert gone["reason"].startswith("missing-audio") and len(gone["tried"]) == 4 and gone["tried"][0].endswith("(the root is absent)")
    assert gone["tried"][2] == f"raw/{SOURCE}/audio/take_0.wav" and str(tmp_path) not in ended.out
    assert outside["reason"].startswith("path-escape") and set(gone) == {
        "event_id",
        "session_id",
        "source_set",
        "audio_path",
        "reason",
        "tried",
    }
    assert found["missing_sources"] == {SOURCE: 138} and sum(found["label_counts"].values()) >= 207
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows == [["category", "source_set", "clips", "seconds", "formatted_duration"],
                    ["expected", SOURCE, "207", f"{SECONDS:.6f}", "0:00:57.960"], ["expected", "TOTAL", "207", f"{SECONDS:.6f}", "0:00:57.960"]]  # fmt: skip
    assert beatsight("bundle", "verify", "--max-missing", "138").code == 0
    assert beatsight("bundle", "export", "b", "--verify-only", "--log-file", tmp_path / "x.log").code == 1
    assert "take_0.wav" in (tmp_path / "x.log").read_text() and not made.layout.at("bundles").exists()
    assert beatsight("bundle", "verify", "--audio-root-map", "nobody=x").code == 2 and beatsight("bundle", "verify", "no.parquet").code == 3


def test_a_limited_verification_looks_at_a_sample(made: Settings, beatsight: Beatsight) -> None:
    """T48, T100: --limit 40 plans 40 clips, the others are not selected; an export of the same limit makes just those."""
    found = json.loads(beatsight("bundle", "verify", "--limit", "40", "--json").out)
    assert (found["statistics"]["planned_clips"], found["excluded"]["not_selected"]) == (40, 167)
    figures = json.loads(beatsight("bundle", "export", "b", "--limit", "40", "--json").out)["figures"]
    assert (figures["written_clips"], figures["skipped_not_selected"], figures["skipped_total"]) == (40, 167, 167)


def test_roots_are_tried_in_the_order_given(made: Settings, beatsight: Beatsight, tmp_path: Path) -> None:
    """T37, T101: of two roots for one source the first that holds a file wins; hits per root count files; no path of the machine is written."""
    audio = made.layout.raw(SOURCE) / "audio"
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(audio, two / "audio")
    (one / "audio").mkdir(parents=True)
    (audio / "take_0.wav").rename(one / "audio" / "take_0.wav")
    (two / "audio" / "take_0.wav").write_bytes(b"never read")
    maps = ("--audio-root-map", f"{SOURCE}={one}", "--audio-root-map", f"demo={two}")
    hits = {f"<audio-root-map {SOURCE} 1>": 1, f"<audio-root-map {SOURCE} 2>": 2}
    assert json.loads(beatsight("bundle", "verify", *maps, "--json").out)["root_hits"] == hits
    ended = beatsight("bundle", "export", "b", *maps, "--json")
    assert ended.code == 0 and json.loads(ended.out)["facts"]["root_hits"] == hits
    made.layout.at("bundles/b/BUNDLE.json").unlink()
    shutil.rmtree(made.layout.at("bundles/b/shards/00"))
    text = beatsight("bundle", "export", "b", "--resume", *maps).out
    assert "Files found per root" in text and "<audio-root-map beatsight_demo 1>" in text
    written = {**tree(made.layout.at("bundles")), **tree(made.layout.at("reports")), **tree(made.layout.receipts)}
    assert not [name for name, content in written.items() if str(tmp_path).encode() in content]


def test_the_durations_of_an_export_are_a_table(made: Settings, beatsight: Beatsight, tmp_path: Path) -> None:
    """T31, T33: expected, total, run and run_healed, each with its TOTAL; a mended bundle shows what healed under run_healed."""
    table = tmp_path / "d.csv"
    beatsight("bundle", "export", "b", "--expected-duration-csv", table)

    def totals() -> dict[str, tuple[int, float]]:
        return {r["category"]: (int(r["clips"]), float(r["seconds"])) for r in csv.DictReader(table.read_text().splitlines()) if r["source_set"] == "TOTAL"}  # fmt: skip

    whole = (207, pytest.approx(SECONDS))
    assert totals() == {"expected": whole, "total": whole, "run": whole, "run_healed": (0, 0.0)}
    open_bundle(made.layout.at("bundles/b")).parts("val")[0].path.unlink()
    beatsight("bundle", "export", "b", "--resume", "--expected-duration-csv", table)
    n = totals()["run_healed"][0]
    assert totals() == {"expected": whole, "total": whole, "run": (0, 0.0), "run_healed": (n, pytest.approx(n * 0.28))} and n > 0
    metadata = json.loads(made.layout.at("bundles/b/metadata.json").read_text())
    assert (
        metadata["statistics"]["healed_clips"],
        metadata["run_statistics"]["healed_clips"],
        metadata["statistics"]["written_clips"],
    ) == (n, n, 207)
    assert metadata["run_split_durations_seconds"]["train"] == 0 and sum(metadata["split_durations_seconds"].values()) == whole[1]


def test_room_is_looked_at_before_a_clip_is_cut(made: Settings, beatsight: Beatsight, monkeypatch: pytest.MonkeyPatch) -> None:
    """T99: the estimate has the sizes of section 13; below 1.5 times it a notice, below 1.1 times the export refuses with exit 1."""
    sizes = json.loads(beatsight("bundle", "plan", "b", "--estimate", "--json").out)
    assert (sizes["clips"], sizes["bytes_shards"], sizes["bytes_features"]) == (207, 207 * 24_696, 207 * 6_400)
    assert sizes["bytes_wav"] == 207 * 28_672 and not made.layout.at("bundles").exists()
    free = [int(207 * 24_696 * 1.4)]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    assert "notice" in beatsight("bundle", "plan", "b", "--estimate").out
    assert beatsight("bundle", "plan", "--estimate", "--json").out == beatsight("bundle", "plan", "b", "--estimate", "--json").out
    assert beatsight("bundle", "plan").code == 2
    assert "disk_headroom" in beatsight("bundle", "plan", "b").out
    free[0] = int(207 * 24_696 * 1.1) - 1
    ended = beatsight("bundle", "export", "b", "--resume")
    assert ended.code == 1 and "no-space" in ended.err and not made.layout.at("bundles/b/shards").exists()
    free[0] += 2
    assert beatsight("bundle", "export", "b", "--resume").code == 0


def test_bundles_are_listed_and_removed(made: Settings, beatsight: Beatsight) -> None:
    """T125: whole, unfinished and smoke bundles are listed; removing is a dry run by default; what a release needs stays (exit 2)."""
    beatsight("bundle", "export", "b")
    beatsight("bundle", "plan", "half")
    rows = {r["name"]: r for r in json.loads(beatsight("bundle", "list", "--json").out)["bundles"]}
    assert {n: (r["state"], r["clips"], r["needed_by"]) for n, r in rows.items()} == {
        "b": ("whole", 207, None),
        "half": ("unfinished", 0, None),
    }
    assert rows["b"]["bytes"] > 207 * 24_696
    ended = beatsight("bundle", "remove", "half")
    assert ended.code == 0 and "Repeat with --apply" in ended.out and made.layout.at("bundles/half").is_dir()
    assert beatsight("bundle", "remove", "half", "--apply").code == 0 and not made.layout.at("bundles/half").exists()
    made.store.publish_json(made.layout.current_model, {"release": "r1", "bundle": "b"})
    ended = beatsight("bundle", "remove", "b", "--apply")
    assert ended.code == 2 and "bundle-needed" in ended.err and made.layout.at("bundles/b").is_dir()
    assert beatsight("bundle", "remove", "half").code == 2


def test_a_flip_is_found_by_the_command(made: Settings, beatsight: Beatsight) -> None:
    """T137, T105: exit 0 on a sound bundle; a flip is exit 1 with shard, part and clip, although size and time are as before; totals add up."""
    beatsight("bundle", "export", "b")
    assert beatsight("bundle", "check", "b").code == 0 and beatsight("bundle", "check", "b", "--fast").code == 0
    ended = beatsight("bundle", "check", "b", "--against-manifest")
    assert ended.code == 0 and {"manifest_events", "planned", "written", "skipped", "per_source", "per_label"} <= set(ended.out.split())
    part = open_bundle(made.layout.at("bundles/b")).parts("test")[0]
    content = bytearray(part.path.read_bytes())
    content[30] ^= 4
    part.path.write_bytes(bytes(content))
    ended = beatsight("bundle", "check", "b")
    assert ended.code == 1 and f"shard {part.shard:02d}, part {part.name}: 1 clips differ" in ended.out
    assert beatsight("bundle", "check", "nosuch").code == 1


def test_an_archive_is_made_by_date(made: Settings, beatsight: Beatsight) -> None:
    """T44: metadata, summary, plan, durations, and the log of each run, with an index of digests; a wrong date is exit 2."""
    beatsight("bundle", "export", "b")
    found = json.loads(beatsight("bundle", "archive", "b", "--date", "20261126", "--json").out)
    assert found["folder"] == "reports/archive/20261126/b" and {"history/run-0001.log", "metadata.json", "summary.json", "durations.csv"} <= set(found["files"])  # fmt: skip
    assert beatsight("bundle", "archive", "b", "--date", "26-11-2026").code == 2


def test_the_wav_layout_has_the_files_of_the_old_tool(made: Settings, beatsight: Beatsight) -> None:
    """T42: label lists per split, components in the view's order, metadata; a clip's wav is 24,740 bytes."""
    assert beatsight("bundle", "export", "b", "--layout", "wav").code == 0
    folder = made.layout.at("bundles/b")
    entries = json.loads((folder / "train/train_labels.json").read_text())
    assert len(entries) == 69 and (folder / "train" / entries[0]["file"]).stat().st_size == 24_740
    components = json.loads((folder / "components.json").read_text())
    assert components["component_index"] == {c: n for n, c in enumerate(components["components"])} and components["num_classes"] == 18
    assert (folder / "val/val_labels.json").is_file() and (folder / "metadata.json").is_file()


def test_health_of_a_bundle_is_that_of_its_own_rows(made: Settings, beatsight: Beatsight) -> None:
    """T104: --bundle judges the manifest that the bundle was made from; a manifest that changed since is exit 3 with the way out."""
    beatsight("bundle", "export", "b")
    found = json.loads(beatsight("health", "report", "--bundle", "b", "--json").out)
    assert found["summary"]["events_total"] == 207 and found["bundle"]["clips"] == 207
    path = made.layout.annotated
    made.store.publish_frame(
        path, pl.read_parquet(path).with_columns(pl.col("onset_time") + 0.001), metadata=pl.read_parquet_metadata(path)
    )
    ended = beatsight("health", "report", "--bundle", "b")
    assert ended.code == 3 and "manifest-changed" in ended.err and "Export the bundle again" in ended.err
    assert beatsight("bundle", "check", "b", "--against-manifest").code == 1
    assert beatsight("health", "report", "--bundle", "nosuch").code == 1
