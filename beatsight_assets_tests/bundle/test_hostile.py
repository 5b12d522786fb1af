"""Odd manifests, audio, names and folders: each ends with the right exit code and a message that helps, and nothing of the user's is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beatsight_assets.bundle.export import BundleRequest, export, run
from beatsight_assets.bundle.verify import verify
from beatsight_assets.cli import main
from beatsight_assets.errors import BeatSightError, ConfigError, InputError
from beatsight_assets.settings import Settings
from beatsight_assets_tests.crash.sweep import tree

FIFTH = pl.int_range(pl.len()) == 5


def changed(settings: Settings, **columns: Any) -> Path:
    """The annotated manifest with other values in its sixth row."""
    frame = pl.read_parquet(settings.layout.annotated)
    values = {k: pl.when(FIFTH).then(v if isinstance(v, pl.Expr) else pl.lit(v)).otherwise(k) for k, v in columns.items()}
    path = settings.layout.at("manifest/odd.parquet")
    settings.store.publish_frame(path, frame.with_columns(**values).cast(dict(frame.schema)))
    return path


@pytest.mark.parametrize(
    ("columns", "code", "says"),
    [
        ({"onset_time": float("nan")}, "bad-time", r"onset_time is \[nan\].*row 6.*events validate"),
        ({"onset_time": float("inf")}, "bad-time", "row 6"),
        ({"onset_time": -1.0}, "bad-time", "row 6"),
        ({"onset_time": 86_400.0}, "bad-time", "row 6"),
        ({"event_id": None}, "bad-manifest", "event_id has no value, first in row 6"),
        ({"source_set": None}, "bad-manifest", "source_set has no value"),
        ({"group_id": None}, "bad-manifest", "group_id has no value"),
        ({"context_ms": None}, "bad-manifest", "context_ms has no value"),
        ({"extras": "{no"}, "bad-manifest", "is not JSON"),
    ],
)
def test_rows_that_no_plan_can_be_made_of(made: Settings, columns: dict[str, Any], code: str, says: str) -> None:
    """A required field without a value and an onset that is no time end with exit 3, the rule, the row and the next step; no bundle appears."""
    with pytest.raises(InputError, match=says) as refusal:
        export(made, BundleRequest("b", changed(made, **columns)))
    assert refusal.value.code == code and not made.layout.at("bundles/b/plan.json").exists()


def test_an_event_without_an_onset_is_no_hit(made: Settings) -> None:
    """A row without an onset is counted as not a hit, when verified too, and is in no window."""
    request = BundleRequest("b", changed(made, onset_time=pl.lit(None, pl.Float64)))
    assert verify(made, request).excluded["not_a_hit"] == 1
    assert export(made, request).statistics["skipped_not_a_hit"] == 1


@pytest.mark.parametrize(("pre", "post"), [(1e9, 200.0), (-1.0, 200.0), (80.0, 0.0), (None, 200.0)])
def test_windows_of_events_have_bounds(made: Settings, pre: float | None, post: float) -> None:
    """--context event with a window that no clip can have ends with exit 3 and names the event and the way out."""
    path = changed(made, context_ms=pl.struct(pre=pl.lit(pre, pl.Float32), post=pl.lit(post, pl.Float32)))
    with pytest.raises(InputError, match=r"bad-manifest: context_ms of 1 events.*--context fixed"):
        export(made, BundleRequest("b", path, {"context": "event"}))
    assert export(made, BundleRequest("c", path, {"limit": 3})).statistics["written_clips"] == 3


@pytest.mark.parametrize("shards", [1, 16])
def test_an_id_that_stands_twice_is_refused_in_whichever_shards(made: Settings, shards: int) -> None:
    """One id with two recordings would be two clips of one name: exit 3 with the id, however the recordings are spread."""
    frame = pl.read_parquet(made.layout.annotated)
    first = frame.filter(pl.col("audio_path") == "audio/take_0.wav").head(1)
    path = made.layout.at("manifest/odd.parquet")
    twice = pl.concat([frame, *(first.with_columns(audio_path=pl.lit(f"audio/take_{n}.wav")) for n in (1, 2))])
    made.store.publish_frame(path, twice)
    with pytest.raises(InputError, match=f"{first['event_id'][0]} stands in the manifest twice"):
        export(made, BundleRequest("b", path, {"shards": shards, "layout": "wav"}))


@pytest.mark.parametrize("content", [b"junk", b"", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet(made: Settings, content: bytes) -> None:
    """A manifest that is no Parquet file ends with exit 3, by export and by verify."""
    path = made.layout.at("manifest/odd.parquet")
    path.write_bytes(content)
    for call in (export, verify):
        with pytest.raises(InputError, match="bad-manifest"):
            call(made, BundleRequest("b", path))


@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (os.mkfifo, "missing_audio"),
        (Path.mkdir, "missing_audio"),
        (lambda p: p.symlink_to("/dev/zero"), "path_escape"),
        (lambda p: p.symlink_to(p), "path_escape"),
        (lambda p: p.write_bytes(b""), "unreadable_audio"),
        (lambda p: p.write_text("hello"), "unreadable_audio"),
    ],
    ids=["fifo", "folder", "device", "circle", "empty", "text"],
)
def test_what_is_no_audio_costs_its_own_clips(made: Settings, make: Callable[[Path], object], outcome: str) -> None:
    """A FIFO, folder, device, circle of links, empty or text file in place of audio is never waited for; its clips are counted, the others cut."""
    audio = made.layout.raw("beatsight_demo") / "audio" / "take_0.wav"
    audio.unlink()
    make(audio)
    found = export(made, BundleRequest("b")).statistics
    assert (found[f"skipped_{outcome}"], found["skipped_total"], found["written_clips"]) == (69, 69, 138)


@pytest.mark.parametrize("name", ["../x", ".", "..", "", "/abs", "a/b", "x" * 300, "-x", "a b", "a\nb", "ü"])
def test_a_bundle_has_a_plain_name(made: Settings, name: str) -> None:
    """What is no plain name of 1 to 100 characters is wrong usage, and nothing is written anywhere."""
    before = tree(made.layout.root.parent)
    with pytest.raises(ConfigError, match="must be 1 to 100 letters"):
        export(made, BundleRequest(name))
    assert tree(made.layout.root.parent) == before


@pytest.mark.parametrize("mode", ["new", "resume", "overwrite", "update"])
def test_what_is_no_bundle_is_never_deleted(made: Settings, mode: str) -> None:
    """A file, a link or a folder of other things under bundles/ stays as it is in every mode: exit 2."""
    bundles = made.layout.at("bundles")
    (bundles / "stuff").mkdir(parents=True)
    (bundles / "stuff" / "precious.txt").write_text("x")
    (bundles / "file").write_text("x")
    (bundles / "link").symlink_to(bundles / "stuff")
    for name in ("stuff", "file", "link"):
        with pytest.raises(ConfigError, match="no-bundle"):
            export(made, BundleRequest(name, None, {"limit": 2}, mode))
    assert (bundles / "stuff" / "precious.txt").read_text() == (bundles / "file").read_text() == "x"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--audio-root-map", "nobody=/tmp"),
        ("--audio-root-map", "nobody"),
        ("--include-labels", "nobody"),
        ("--include-sources", "nobody"),
        ("--channel", "x"),
        ("--pre-ms", "nan"),
        ("--resume", "--overwrite"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_planned(
    made: Settings, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """Exit 2 names the value and the choices, and no bundle appears."""
    with pytest.raises(SystemExit) as end:
        main(["--data-root", str(made.layout.root), "--profile", "demo", "bundle", "export", "b", *arguments])
    said = capsys.readouterr().err
    assert end.value.code == 2 and ("must" in said or "exclude" in said)
    assert not made.layout.at("bundles/b/plan.json").exists()


def test_a_channel_that_no_file_has_is_counted(made: Settings) -> None:
    """--channel 5 on mono audio leaves every clip out as unreadable; the gate fails on the empty bundle and says where the events went."""
    report = run(made, BundleRequest("b", None, {"channel": "5"}))
    assert report.figures["skipped_unreadable_audio"] == 207 and report.figures["written_clips"] == 0
    said = report.verdicts[0].failures
    assert not report.passed and "207 unreadable_audio" in said[0] and "missing-channel: channel 5 of 1" in said[0]
    assert report.facts["unreadable"]["count"] == 207 and len(report.facts["unreadable"]["examples"]) == 3


@pytest.mark.parametrize("n_rows", [0, 1])
def test_tiny_manifests(made: Settings, n_rows: int) -> None:
    """No row and one row make a bundle that adds up."""
    path = made.layout.at("manifest/odd.parquet")
    made.store.publish_frame(path, pl.read_parquet(made.layout.annotated).head(n_rows))
    found = export(made, BundleRequest("b", path)).statistics
    assert found["total_events"] == found["written_clips"] == n_rows


def test_a_manifest_outside_the_data_root(made: Settings, tmp_path: Path) -> None:
    """It is planned from, never remembered by its path, and has to be named again to resume."""
    path = tmp_path / "own.parquet"
    path.write_bytes(made.layout.annotated.read_bytes())
    export(made, BundleRequest("b", path, {"limit": 3}))
    with pytest.raises(BeatSightError, match=r"outside the data root, 'own\.parquet'. Name it again"):
        export(made, BundleRequest("b", mode="resume"))
    assert export(made, BundleRequest("b", path, mode="resume")).run["run_statistics"]["reused_clips"] == 3
