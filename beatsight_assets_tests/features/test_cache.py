"""The feature cache: keyed by content, resumable, and red when it holds nothing."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.errors import InputError
from beatsight_assets.features import cache
from beatsight_assets.features.definitions import definition
from beatsight_assets.settings import Settings
from beatsight_assets_tests.model.factories import SOURCE_SET, make_root

FRAMES = definition("frames/1")


def digests(root: Path) -> dict[str, str]:
    """Digest of every file of the cache."""
    folder = root / "features"
    return {
        p.relative_to(folder).as_posix(): store.hash_file(p) for p in sorted(folder.rglob("*")) if p.suffix in (".npy", ".parquet", ".json")
    }


def test_every_recording_is_cached_and_indexed(settings: Settings) -> None:
    """One array per audio content, one index row per recording, all three rules green."""
    make_root(settings, seconds=1.0)
    report = cache.run(settings)
    index = pl.read_parquet(cache.index_path(settings, FRAMES))
    assert report.passed and [r.name for r in report.verdicts[0].rules] == ["feature_shape", "features_finite", "keyed_by_content"]
    assert index.columns == list(cache.INDEX_SCHEMA) and index.height == 6
    assert index["n_frames"].to_list() == [100] * 6
    assert sorted(index["split"].to_list()) == ["test", "test", "train", "train", "train", "val"]
    array = cache.read_features(settings.layout.resolve(index["feature_path"][0]))
    assert array.shape == (100, FRAMES.n_bands) and array.dtype == np.float16


def test_unchanged_work_is_skipped_and_new_audio_alone_is_computed(settings: Settings) -> None:
    """A second run does nothing; a renamed file keeps its array; a changed file gets another."""
    make_root(settings, seconds=1.0)
    cache.run(settings)
    assert cache.run(settings).reused
    folder = settings.layout.raw(SOURCE_SET) / "audio"
    (folder / "t0.wav").write_bytes((folder / "t1.wav").read_bytes())
    report = cache.run(settings)
    assert (report.figures["computed"], report.figures["reused"]) == (0, 5)


def test_the_same_bytes_for_any_number_of_workers(settings: Settings, tmp_path: Path) -> None:
    """Inline and two processes leave equal caches."""
    make_root(settings, seconds=1.0)
    cache.run(settings)
    first = digests(settings.layout.root)
    store.Store(settings.layout.root).remove(settings.layout.root / "features")
    cache.run(replace(settings, executor="processes", n_workers=2))
    assert digests(settings.layout.root) == first


def test_a_damaged_array_is_made_again_and_counted(settings: Settings) -> None:
    """A flipped byte in the cache is found by its digest, not believed."""
    make_root(settings, seconds=1.0)
    cache.run(settings)
    before = digests(settings.layout.root)
    victim = next(p for p in (settings.layout.root / "features").rglob("*.npy"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 0xFF
    victim.write_bytes(content)
    (settings.layout.receipts / "recording_features.json").unlink()
    report = cache.run(settings)
    assert report.figures["repaired"] == 1 and report.passed
    assert digests(settings.layout.root) == before


def test_absent_and_unreadable_audio_is_counted_and_stops_nothing(settings: Settings) -> None:
    """One recording without audio and one with a broken file: listed, counted, the rest is cached."""
    make_root(settings, seconds=1.0)
    folder = settings.layout.raw(SOURCE_SET) / "audio"
    (folder / "t0.wav").unlink()
    (folder / "t1.wav").write_bytes(b"RIFF....")
    report = cache.run(settings)
    assert (report.figures["audio_absent"], report.figures["audio_refused"], report.figures["recordings"]) == (1, 1, 4)
    assert report.facts["absent"] == ["audio/t0.wav"] and report.passed


def test_a_cache_of_nothing_is_not_green(settings: Settings) -> None:
    """Without any audio the verdict has nothing to judge and fails."""
    make_root(settings, seconds=1.0)
    for path in (settings.layout.raw(SOURCE_SET) / "audio").iterdir():
        path.unlink()
    report = cache.run(settings)
    assert not report.passed and report.verdicts[0].to_json()["reasons"][0]["code"] == "nothing-to-judge"


def test_stems_and_one_shots_are_no_recordings(settings: Settings) -> None:
    """What has no time line of hits gets no features."""
    frame = make_root(settings, seconds=1.0)
    stems = frame.with_columns(mix_context=pl.when(pl.col("session_id") == "audio/t0.wav").then(pl.lit("stem")).otherwise("mix_context"))
    settings.store.publish_frame(settings.layout.annotated, stems)
    assert "audio/t0.wav" not in cache.find_recordings(settings)["session_id"].to_list()


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    """A pickled array is never loaded; another dtype is no cache entry."""
    path = tmp_path / "x.npy"
    np.save(path, np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="not a readable array"):
        cache.read_features(path)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 2), dtype=np.float32))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="float16"):
        cache.read_features(path)
