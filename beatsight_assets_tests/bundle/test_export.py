"""Resume, heal, overwrite: after any interruption the bundle is the one an uninterrupted run makes, and totals never inflate."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.bundle import check, read
from beatsight_assets.bundle import export as engine
from beatsight_assets.bundle.export import BundleRequest, export, new_folder
from beatsight_assets.bundle.plan import Plan
from beatsight_assets.bundle.read import BundleIncomplete, open_bundle
from beatsight_assets.errors import Busy, ConfigError, InputError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import read_receipt
from beatsight_assets.store import Store
from beatsight_assets_tests.bundle.conftest import content_of

LAYOUTS = ("shards", "wav")
CONTENT = {"part_clips": 50}  # several parts per split


def fresh(settings: Settings, name: str = "b", layout: str = "shards") -> engine.Exported:
    return export(settings, BundleRequest(name, None, {**CONTENT, "layout": layout}))


def again(settings: Settings, name: str = "b") -> engine.Exported:
    return export(settings, BundleRequest(name, mode="resume"))


def mtimes(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "history" not in p.parts}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resume_without_work_touches_nothing(made: Settings, layout: str) -> None:
    """A sealed bundle with nothing missing: run written 0, everything reused, no file touched, totals as they were."""
    first = fresh(made, layout=layout)
    before = mtimes(first.plan.folder)
    second = again(made)
    assert mtimes(first.plan.folder) == before
    assert second.run["run_statistics"]["written_clips"] == 0 and second.run["run_statistics"]["reused_clips"] == 207
    assert second.statistics == first.statistics and second.marker == first.marker


def test_both_layouts_hold_equal_clips(made: Settings) -> None:
    """The wav tree holds the samples, labels and digests of the parts."""
    parts, wavs = (open_bundle(fresh(made, layout, layout).plan.folder) for layout in LAYOUTS)
    by_event = {row["event_id"]: (row, samples.copy()) for row, samples in parts.clips()}
    for row, samples in wavs.clips():
        other, expected = by_event.pop(row["event_id"])
        assert np.array_equal(samples, expected) and row["clip_sha256"] == other["clip_sha256"] and row["hits"] == other["hits"]
        wav = wavs.folder / row["split"] / row["file"]
        assert wav.stat().st_size == 44 + 2 * row["n_samples"]
    assert not by_event
    for split in ("train", "val", "test"):
        entries = json.loads((wavs.folder / split / f"{split}_labels.json").read_text())
        assert [e["file"] for e in entries] == sorted(e["file"] for e in entries) and len(entries) == 69


def test_workers_change_no_byte(made: Settings) -> None:
    """Two processes make the bundle that one makes."""
    one = content_of(fresh(made, "one").plan.folder)
    two = content_of(fresh(replace(made, executor="processes", n_workers=2), "two").plan.folder)
    one.pop("BUNDLE.json"), two.pop("BUNDLE.json")  # they hold the name
    assert one == two


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flipped_bytes_are_found_and_repaired(made: Settings, rng: np.random.Generator, layout: str) -> None:
    """A flip anywhere is found by the check, which names the place, and a resume brings back every byte."""
    folder = fresh(made, layout=layout).plan.folder
    sound = content_of(folder)
    names = [n for n in sound if not n.startswith(("plan", "BUNDLE"))]
    for name in [str(n) for n in rng.choice(names, 5 if layout == "wav" else 12, replace=False)]:
        path = folder / name
        damaged = bytearray(sound[name])
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        assert check.find_flips(made, open_bundle(folder)), name
        again(made)
        assert content_of(folder) == sound, name
    assert check.find_flips(made, open_bundle(folder)) == []


def test_a_flip_in_a_part_names_the_clip(made: Settings) -> None:
    """The check names shard, part and the one clip that differs, and the command that repairs it."""
    folder = fresh(made).plan.folder
    part = open_bundle(folder).parts("train")[0]
    row = open_bundle(folder).table().filter(pl.col("part") == part.name, pl.col("split") == "train").row(3, named=True)
    content = bytearray(part.path.read_bytes())
    content[row["offset_samples"] * 2 + 100] ^= 1
    part.path.write_bytes(bytes(content))
    report = check.run(made, check.CheckOptions("b"))
    assert not report.passed
    text = report.verdicts[0].failures[1]
    assert part.name in text and row["event_id"] in text and "1 clips differ" in text and "--resume" in text


def test_audio_that_comes_back_heals(made: Settings, tmp_path: Path) -> None:
    """A missing file leaves the bundle incomplete; when it is back, a resume gives the bundle that had it from the start, counted as healed."""
    whole = content_of(fresh(made, "whole").plan.folder)
    audio = made.layout.raw("beatsight_demo") / "audio" / "take_0.wav"
    audio.rename(tmp_path / "away.wav")
    short = fresh(made)
    assert short.marker["complete"] is False and short.statistics["skipped_missing_audio"] == 69
    report = engine.run(made, BundleRequest("b", mode="resume"))
    assert not report.passed and engine.run(made, BundleRequest("b", mode="resume", max_missing=69)).passed
    (tmp_path / "away.wav").rename(audio)
    healed = again(made)
    assert healed.run["run_statistics"]["healed_clips"] == 69 and healed.run["run_statistics"]["written_clips"] == 0
    found = content_of(healed.plan.folder)
    assert {k: v for k, v in found.items() if k != "BUNDLE.json"} == {k: v for k, v in whole.items() if k != "BUNDLE.json"}
    assert healed.metadata["statistics"]["healed_clips"] == 69 and healed.statistics["written_clips"] == 207


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lost_clip_is_made_again_and_totals_stay(made: Settings, layout: str) -> None:
    """A part or wav that is gone is made again byte by byte, counted as healed, and no total grows."""
    first = fresh(made, layout=layout)
    sound = content_of(first.plan.folder)
    gone = next(p for p in sorted(first.plan.folder.rglob("*")) if p.suffix in (".pcm", ".wav"))
    gone.unlink()
    second = again(made)
    assert content_of(first.plan.folder) == sound and second.statistics == first.statistics
    n = second.run["run_statistics"]
    assert n["written_clips"] == 0 and n["healed_clips"] == (1 if layout == "wav" else min(50, n["healed_clips"])) > 0
    assert n["reused_clips"] + n["healed_clips"] == 207


def test_what_changed_since_the_plan_is_refused(made: Settings) -> None:
    """A moved onset, another option, another split table: exit 2 with the field, the old and the new value."""
    fresh(made)
    with pytest.raises(ConfigError, match=r"cannot resume b: sample_rate 44100 -> 48000; export under a new name or pass --overwrite"):
        export(made, BundleRequest("b", None, {"sample_rate": 48_000}, "resume"))
    frame = pl.read_parquet(made.layout.annotated)
    made.store.publish_frame(made.layout.annotated, frame.with_columns(pl.col("onset_time") + 0.001))
    with pytest.raises(ConfigError, match=r"manifest digest [0-9a-f]{8} -> [0-9a-f]{8}"):
        again(made)


def test_changed_audio_is_refused(made: Settings) -> None:
    """Clips of two versions of a file never meet in one bundle."""
    fresh(made)
    audio = made.layout.raw("beatsight_demo") / "audio" / "take_0.wav"
    content = bytearray(audio.read_bytes())
    content[5000] ^= 1
    audio.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match="audio-changed"):
        again(made)


def test_an_existing_bundle_needs_a_word(made: Settings) -> None:
    """Without --resume or --overwrite an existing bundle is left alone."""
    fresh(made)
    with pytest.raises(ConfigError, match="bundle-exists"):
        fresh(made)


def test_options_left_out_come_from_the_plan(made: Settings) -> None:
    """A resume that names nothing but the bundle uses the options of its plan."""
    export(made, BundleRequest("b", None, {"post_ms": 100.0}))
    shutil.rmtree(made.layout.at("bundles/b/shards/00"))
    done = again(made)
    assert done.plan.options.post_ms == 100.0 and done.statistics["written_clips"] == 207


def test_overwrite_keeps_the_old_one_readable(made: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an overwrite builds, readers see the old bundle; where two names cannot be exchanged in one step, a kill between is made good."""
    monkeypatch.setattr(store, "RENAME_EXCHANGE", 1 << 20)  # a flag that no kernel knows
    old = fresh(made)
    seen: list[str] = []
    point = store.failpoint

    def watch(name: str) -> str | None:
        if name == "shard.begin":
            seen.append(open_bundle(old.plan.folder).content_sha256)
        if name == "swap.between":
            raise KeyboardInterrupt
        return point(name)

    monkeypatch.setattr(store, "failpoint", watch)
    request = BundleRequest("b", None, {"post_ms": 100.0}, "overwrite")
    with pytest.raises(KeyboardInterrupt):
        export(made, request)
    monkeypatch.setattr(store, "failpoint", point)
    assert set(seen) == {old.marker["content_sha256"]}
    assert not old.plan.folder.exists() and (new_folder(made, "b") / "BUNDLE.json").is_file()
    assert again(made).plan.options.post_ms == 100.0
    assert open_bundle(old.plan.folder).plan.options.post_ms == 100.0 and not new_folder(made, "b").exists()


def test_readers_refuse_what_is_not_sealed(made: Settings) -> None:
    """Without BUNDLE.json there is no bundle; the error names the command that finishes it."""
    folder = fresh(made).plan.folder
    (folder / "BUNDLE.json").unlink()
    with pytest.raises(BundleIncomplete, match="bundle export b --resume"):
        open_bundle(folder)


def test_a_second_writer_is_turned_away(made: Settings) -> None:
    """Two exporters of one bundle: the second gets `busy` and changes nothing."""
    with engine.bundle_lock(made, "b"), pytest.raises(Busy):
        export(replace(made), BundleRequest("b"))
    assert not made.layout.at("bundles/b").exists()


def test_a_damaged_file_takes_only_its_own_clips(made: Settings) -> None:
    """A file that breaks while its clips are written is left out whole, counted, and the others go on."""
    audio = made.layout.raw("beatsight_demo") / "audio" / "take_0.wav"
    audio.write_bytes(audio.read_bytes()[:-30_000])
    done = fresh(made)
    assert done.statistics["skipped_unreadable_audio"] == 69 and done.statistics["written_clips"] == 138
    rows, problems = check.heal_list(made, "b")
    assert rows.height == 69 and rows["reason"].unique().to_list() == ["truncated-audio"] and problems == []


def test_every_refused_file_is_one_row_of_the_quarantine(made: Settings) -> None:
    """A damaged file and a path out of its root are one row each, with code and stage; healed, the rows are gone."""
    audio = made.layout.raw("beatsight_demo") / "audio" / "take_0.wav"
    whole = audio.read_bytes()
    audio.write_bytes(whole[:-30_000])
    frame = pl.read_parquet(made.layout.annotated)
    outside = pl.when(pl.col("session_id").str.contains("take_1")).then(pl.lit("../x.wav")).otherwise("audio_path")
    manifest = made.layout.at("manifest/odd.parquet")
    made.store.publish_frame(manifest, frame.with_columns(audio_path=outside))
    done = export(made, BundleRequest("b", manifest))
    table = made.layout.at("quarantine/bundle.b.parquet")
    rows = {(r["code"], r["path"], r["stage"]) for r in pl.read_parquet(table).iter_rows(named=True)}
    assert rows == {("truncated-audio", "audio/take_0.wav", "bundle"), ("path-escape", "../x.wav", "bundle")}
    assert done.statistics["skipped_path_escape"] == 69
    audio.write_bytes(whole)
    export(made, BundleRequest("b", made.layout.annotated, mode="overwrite"))
    assert not table.exists()


def test_no_file_names_a_place_of_this_machine(made: Settings) -> None:
    """No artefact of a bundle holds the path of the data root."""
    folder = engine.run(made, BundleRequest("b", None, {"layout": "wav"})) and made.layout.at("bundles/b")
    root = str(made.layout.root).encode()
    assert [p for p in folder.rglob("*") if p.is_file() and root in p.read_bytes()] == []


def test_opening_during_a_swap_opens_the_new_one(made: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that is exchanged between the reading of BUNDLE.json and of plan.json is opened again, not called damaged."""
    first = fresh(made)
    read_plan, n_looks = read.read_plan, 0

    def read_plan_after_a_swap(folder: Path) -> Plan | None:
        nonlocal n_looks
        n_looks += 1
        if n_looks == 1:
            export(made, BundleRequest("b", None, {**CONTENT, "post_ms": 100.0}, "overwrite"))
        return read_plan(folder)

    monkeypatch.setattr(read, "read_plan", read_plan_after_a_swap)
    opened = open_bundle(first.plan.folder)
    assert n_looks == 2 and opened.plan.options.post_ms == 100.0


def test_a_manifest_that_is_replaced_while_it_is_planned_is_noticed(made: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No receipt says that the bundle rests on the new manifest, and no resume takes the new one for the old."""
    make_plan = engine.make_plan

    def make_plan_before_a_change(*args: Any, **kwargs: Any) -> Plan:
        plan = make_plan(*args, **kwargs)
        frame = pl.read_parquet(made.layout.annotated)
        made.store.publish_frame(made.layout.annotated, frame.with_columns(pl.col("onset_time") + 0.001))
        return plan

    monkeypatch.setattr(engine, "make_plan", make_plan_before_a_change)
    with pytest.raises(InputError, match=r"changed-while-reading.*annotated\.parquet"):
        engine.run(made, BundleRequest("b", None, CONTENT))
    assert read_receipt(made, "bundle", "b") is None
    with pytest.raises(ConfigError, match=r"cannot-resume: .*manifest digest"):
        again(made)


def test_update_resumes_or_overwrites(made: Settings) -> None:
    """Mode update keeps a bundle whose plan is true, and replaces one whose manifest changed."""
    first = fresh(made)
    kept = export(made, BundleRequest("b", mode="update"))
    assert kept.run["run_statistics"]["written_clips"] == 0
    frame = pl.read_parquet(made.layout.annotated)
    made.store.publish_frame(made.layout.annotated, frame.head(frame.height - 5))
    second = export(made, BundleRequest("b", mode="update"))
    assert second.statistics["total_events"] == first.statistics["total_events"] - 5
    assert open_bundle(first.plan.folder).marker == second.marker


def test_shards_made_alone_are_found_done(made: Settings) -> None:
    """Plan, shards one by one, then the export: it makes nothing and seals the same bundle."""
    whole = content_of(fresh(made, "whole").plan.folder)
    request = BundleRequest("b", None, CONTENT, "update")
    for shard in (1, 0):
        engine.cut_shards(made, request, [shard])
    done = export(made, request)
    assert done.run["run_statistics"]["shards_reused"] == 2
    found = content_of(done.plan.folder)
    assert {k: v for k, v in found.items() if k != "BUNDLE.json"} == {k: v for k, v in whole.items() if k != "BUNDLE.json"}


def test_a_promoted_models_bundle_stays(made: Settings) -> None:
    """Removing needs --apply, and a bundle that a promotion record names is never removed."""
    folder = fresh(made).plan.folder
    assert check.remove(made, "b", apply=False)["applied"] is False and folder.is_dir()
    made.store.publish_json(made.layout.promoted / "r1" / "PROMOTION.json", {"bundle": "b"})
    with pytest.raises(ConfigError, match="bundle-needed"):
        check.remove(made, "b", apply=True)
    made.store.remove(made.layout.promoted / "r1")
    check.remove(made, "b", apply=True)
    assert not folder.exists()


def test_an_archive_holds_what_the_bundle_was(made: Settings) -> None:
    """Plan, metadata, summary and durations are kept with their digests; samples are not."""
    engine.run(made, BundleRequest("b"))
    found = check.archive(made, "b", "20261126")
    folder = made.layout.root / found["folder"]
    assert {"plan.json", "metadata.json", "summary.json", "durations.csv"} <= set(found["files"])
    assert all(Store(made.layout.root).sha256(folder / n, fresh=True) == d for n, d in found["files"].items())
    lines = (folder / "durations.csv").read_text().splitlines()
    assert lines[0] == "category,source_set,clips,seconds,formatted_duration" and lines[-1] == "run_healed,TOTAL,0,0.000000,0:00:00.000"


def test_totals_against_the_manifest(made: Settings) -> None:
    """manifest events = written + skipped."""
    fresh(made)
    found = check.against_manifest(made, "b")
    assert found["manifest_events"] == found["written"] + sum(found["skipped"].values()) and found["problems"] == []
    path = made.layout.annotated
    made.store.publish_frame(
        path, pl.read_parquet(path).with_columns(pl.col("onset_time") + 0.001), metadata=pl.read_parquet_metadata(path)
    )
    (problem,) = check.against_manifest(made, "b")["problems"]  # as many rows, and not those
    assert "manifest/annotated.parquet has other rows" in problem


def test_a_resume_of_nothing_begins_nothing(made: Settings) -> None:
    """A mistyped name with --resume is exit 2 with the way out, and leaves nothing; a folder whose maker was killed at once is gone on with."""
    with pytest.raises(ConfigError, match="without --resume") as failure:
        again(made)
    assert (failure.value.code, failure.value.exit_code) == ("nothing-to-resume", 2) and not made.layout.bundle("b").exists()
    (made.layout.bundle("b") / "history").mkdir(parents=True)
    assert again(made).statistics["written_clips"] == 207


def test_metadata_names_the_manifest_and_no_machine(made: Settings, tmp_path: Path) -> None:
    """Below the data root a path from there, elsewhere the file name alone; no artefact holds the path of the machine."""
    inside, outside = made.layout.annotated, tmp_path / "elsewhere" / "mine.parquet"
    outside.parent.mkdir()
    outside.write_bytes(inside.read_bytes())
    for name, manifest, shown in (("a", None, "manifest/annotated.parquet"), ("b", inside, "manifest/annotated.parquet"), ("c", outside, "mine.parquet")):  # fmt: skip
        folder = export(made, BundleRequest(name, manifest, CONTENT)).plan.folder
        assert json.loads((folder / "metadata.json").read_text())["manifest"] == shown
        assert not [p for p in folder.rglob("*") if p.is_file() and str(tmp_path).encode() in p.read_bytes()]
