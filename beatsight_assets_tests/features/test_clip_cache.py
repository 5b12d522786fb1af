"""The cache of clip features: keyed by content, resumed part by part, repaired when damaged, equal for any number of workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beatsight_assets import cli, store
from beatsight_assets.bundle.read import BundleIncomplete, open_bundle
from beatsight_assets.errors import ConfigError, InputError, StoreError
from beatsight_assets.features import clip_cache as cache
from beatsight_assets.features.clip_cache import WarmOptions
from beatsight_assets.features.definitions import clip_definition
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets_tests.features.factories import make_bundle

CLIPS = clip_definition()
KILLED = """
import sys
from pathlib import Path
from beatsight_assets.features.clip_cache import WarmOptions, run
from beatsight_assets.settings import DataLayout, Settings
run(Settings(layout=DataLayout(Path(sys.argv[1])), profile="demo"), WarmOptions("b"))
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the sealed bundle `b`."""
    root = tmp_path_factory.mktemp("clips") / "root"
    make_bundle(Settings(layout=DataLayout(root), profile="demo"))
    return root


@pytest.fixture
def bundled(template: Path, tmp_path: Path) -> Settings:
    """A copy of it that a test may change."""
    shutil.copytree(template, tmp_path / "root")
    return Settings(layout=DataLayout(tmp_path / "root"), profile="demo")


@pytest.fixture(scope="session")
def clean(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed run leaves."""
    root = tmp_path_factory.mktemp("clean") / "root"
    shutil.copytree(template, root)
    settings = Settings(layout=DataLayout(root), profile="demo")
    cache.run(settings, WarmOptions("b"))
    return digests(settings)


def digests(settings: Settings) -> dict[str, str]:
    """Digest of every array and index."""
    folder = settings.layout.features("logmel128-1")
    return {p.relative_to(folder).as_posix(): store.hash_file(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "."}


def index(settings: Settings, bundle: str = "b") -> dict[str, dict[str, object]]:
    """Arrays of FEATURES.json."""
    found: dict[str, dict[str, object]] = json.loads(cache.index_path(settings, CLIPS, bundle).read_text())["arrays"]
    return found


def arrays(settings: Settings) -> list[Path]:
    """Every array."""
    return sorted(p for s in cache.SUFFIXES.values() for p in settings.layout.features("logmel128-1").glob(f"shards/*/*.{s}"))


def flip(path: Path) -> None:
    """One wrong byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def test_every_part_has_its_array(bundled: Settings) -> None:
    """One array per part with the features of its clips in order; key, shape and digest stand in the index; all rules green."""
    settings = bundled
    folder = settings.layout.at("bundles/b")
    report = cache.run(settings, WarmOptions("b"))
    assert report.passed and [r.name for r in report.verdicts[0].rules] == ["feature_shape", "features_finite", "keyed_by_content"]
    parts = open_bundle(folder).parts()
    found = index(settings)
    assert len(parts) == len(found) == report.figures["computed"] > 6 and report.figures["clips"] == 45
    for part in parts:
        key = sha256(f"{part.sha256}{CLIPS.digest}float16".encode()).hexdigest()
        path = settings.layout.at(f"features/logmel128-1/shards/{part.shard:02d}/{key}.f16")
        expected = CLIPS.compute(np.fromfile(part.path, "<i2").reshape(-1, 12_348))
        assert np.array_equal(cache.read_array(path, part.n_clips, CLIPS, "float16"), expected.astype(np.float16))
        assert found[key] == {"part": f"{part.shard:02d}/{part.name}", "sha256": store.hash_file(path), "shape": [part.n_clips, 128, 25]}


def test_a_second_run_does_nothing_and_a_renamed_bundle_computes_nothing(bundled: Settings) -> None:
    """Unchanged work is skipped; a bundle with equal parts under another name shares the arrays."""
    settings = bundled
    cache.run(settings, WarmOptions("b"))
    times = {p: p.stat().st_mtime_ns for p in arrays(settings)}
    assert cache.run(settings, WarmOptions("b")).figures["computed"] == 0
    assert cache.run(settings, WarmOptions("b")).reused
    make_bundle(settings, "other")
    report = cache.run(settings, WarmOptions("other"))
    assert (report.figures["computed"], report.figures["reused"], report.passed) == (0, len(times), True)
    assert {p: p.stat().st_mtime_ns for p in arrays(settings)} == times
    assert index(settings) == index(settings, "other")


@pytest.mark.parametrize("damage", ["flip", "torn", "gone"])
def test_a_damaged_array_is_made_again_and_counted(bundled: Settings, damage: str) -> None:
    """A flipped byte, a torn file or none: equal bytes afterwards, counted as repaired when something stood there."""
    settings = bundled
    cache.run(settings, WarmOptions("b"))
    before, victim = digests(settings), arrays(settings)[3]
    if damage == "flip":
        flip(victim)
    elif damage == "torn":
        victim.write_bytes(victim.read_bytes()[:-7])
    else:
        victim.unlink()
    report = cache.run(settings, WarmOptions("b"))
    assert (report.figures["computed"], report.figures["repaired"], report.passed) == (1, damage != "gone", True)
    assert digests(settings) == before


def test_the_same_bytes_for_any_number_of_workers(bundled: Settings, clean: dict[str, str]) -> None:
    """Inline and two processes leave equal arrays and an equal index."""
    settings = bundled
    cache.run(replace(settings, executor="processes", n_workers=2), WarmOptions("b"))
    assert digests(settings) == clean


@pytest.mark.parametrize("n", [1, 3, 7])
def test_a_failing_disk_costs_the_array_in_the_making(
    bundled: Settings, clean: dict[str, str], monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """The write that fails leaves nothing under a final name; the next run keeps what was finished and ends with the same bytes."""
    settings = bundled
    monkeypatch.setenv("BEATSIGHT_FAILPOINT", f"publish.rename:{n}:enospc")
    with pytest.raises(StoreError, match="space"):
        cache.run(settings, WarmOptions("b"))
    monkeypatch.delenv("BEATSIGHT_FAILPOINT")
    n_kept = len(arrays(settings))
    assert n - 3 <= n_kept < n or n_kept == n - 1
    report = cache.run(settings, WarmOptions("b"))
    assert report.figures["reused"] >= n_kept and report.figures["repaired"] == 0
    assert digests(settings) == clean


def test_a_killed_run_goes_on_where_it_was(bundled: Settings, clean: dict[str, str]) -> None:
    """kill -9 after the third part: its arrays are kept, what is touched meanwhile is not believed, the bytes are those of one run."""
    settings = bundled
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(settings.layout.root)],
        env={**os.environ, "BEATSIGHT_FAILPOINT": "features.part:3:kill"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -9, ended.stderr
    left = arrays(settings)
    assert len(left) == 3
    flip(left[0])
    report = cache.run(settings, WarmOptions("b"))
    assert (report.figures["reused"], report.figures["repaired"]) == (2, 1)
    assert digests(settings) == clean


def test_narrow_forms_are_within_their_stated_errors() -> None:
    """float16 is off by at most 0.05 dB above -80 dB; uint8 by at most 0.33 dB and 0.15 dB on average; silence and full scale survive."""
    rng = np.random.default_rng(3)
    clips = np.concatenate([rng.normal(0, level, (4, 12_348)) for level in (1e-4, 0.01, 0.3)])
    clips[0] = 0.0
    clips[1] = np.sign(np.sin(np.arange(12_348) / 200.0))
    values = CLIPS.compute(np.clip(clips, -1, 1).astype(np.float32))
    half, byte = (np.abs(cache.decode(cache.encode(values, d)) - values) for d in ("float16", "uint8"))
    assert half[values > -80].max() <= 0.035
    assert byte.max() <= 0.33 and 0.13 <= byte[values > -100].mean() <= 0.155
    assert not half[0].any() and not byte[0].any()
    assert np.array_equal(cache.decode(cache.encode(values, "float32")), values)


def test_halves_are_rounded_and_judged_as_numpy_does() -> None:
    """float16 by the fast ways: the nearest with ties to even, and of all 65,536 values those are sound that are finite and not below -100 dB."""
    feature = clip_definition()
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.sort(halves[np.isfinite(halves)]).astype(np.float32)
    between = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2, np.nextafter((finite[1:] + finite[:-1]) / 2, np.float32(np.inf))])
    assert np.array_equal(cache.encode(between, "float16").view(np.uint16), between.astype(np.float16).view(np.uint16))
    sound = np.array([cache.are_sound(feature, halves[i : i + 1]) for i in range(len(halves))])
    with np.errstate(invalid="ignore"):
        assert np.array_equal(sound, np.isfinite(halves) & (halves >= -100.0))


@pytest.mark.parametrize(("wide", "narrow"), [("float32", "float16"), ("float32", "uint8"), ("float16", "uint8")])
def test_converting_gives_the_bytes_of_computing(bundled: Settings, wide: str, narrow: str) -> None:
    """A narrower form made from a cached wider one equals the one computed from the samples; the wider one stays as it was."""
    settings = bundled
    cache.run(settings, WarmOptions("b", dtype=narrow))
    direct = digests(settings)
    settings.store.remove(settings.layout.at("features"))
    settings.store.remove(settings.layout.receipts)
    cache.run(settings, WarmOptions("b", dtype=wide))
    before = digests(settings)
    report = cache.run(settings, WarmOptions("b", dtype=narrow, convert=True))
    assert report.figures["computed"] == 0 and report.figures["converted"] == report.figures["arrays"] and report.passed
    after = digests(settings)
    assert direct.items() <= after.items()
    assert {k: v for k, v in before.items() if not k.endswith(".json")}.items() <= after.items()


def test_converting_never_invents(bundled: Settings) -> None:
    """Nothing wider is cached: refused, not computed; from narrow to wide: the same."""
    settings = bundled
    with pytest.raises(InputError, match="no wider form"):
        cache.run(settings, WarmOptions("b", convert=True))
    cache.run(settings, WarmOptions("b"))
    with pytest.raises(InputError, match="no wider form"):
        cache.run(settings, WarmOptions("b", dtype="float32", convert=True))


def test_only_the_splits_that_are_asked_for(bundled: Settings) -> None:
    """`--splits train val` caches no clip of test."""
    settings = bundled
    folder = settings.layout.at("bundles/b")
    report = cache.run(settings, WarmOptions("b", splits=("train", "val")))
    n = open_bundle(folder).table(["split"]).filter(split="test").height
    assert report.figures["clips"] == 45 - n and n > 0
    assert not any(str(e["part"]).split("/")[1].startswith("test") for e in index(settings).values())


def test_a_part_that_is_not_the_sealed_one_is_not_cached(bundled: Settings) -> None:
    """A flipped byte of samples never becomes features under the key of the good part."""
    settings = bundled
    folder = settings.layout.at("bundles/b")
    flip(open_bundle(folder).parts()[0].path)
    with pytest.raises(InputError, match="--resume"):
        cache.run(settings, WarmOptions("b"))


def test_bundles_with_another_window_or_rate_are_refused(bundled: Settings) -> None:
    """Less context, another rate, another layout, no bundle: refused before anything is written; more context is cut to the window."""
    settings = bundled
    make_bundle(settings, "short", pre_ms=60.0)
    make_bundle(settings, "slow", sample_rate=22_050)
    make_bundle(settings, "wavs", layout="wav")
    for name, code in (("short", "window-too-short"), ("slow", "feature-mismatch"), ("wavs", "feature-mismatch")):
        with pytest.raises(ConfigError) as refused:
            cache.run(settings, WarmOptions(name))
        assert refused.value.code == code
    with pytest.raises(BundleIncomplete):
        cache.run(settings, WarmOptions("none"))
    assert not settings.layout.at("features").exists()
    make_bundle(settings, "long", pre_ms=100.0, post_ms=250.0)
    cache.run(settings, WarmOptions("b"))
    assert cache.run(settings, WarmOptions("long")).passed
    by_part = {str(e["part"]): str(e["sha256"]) for e in index(settings).values()}
    assert by_part == {str(e["part"]): str(e["sha256"]) for e in index(settings, "long").values()}
    assert not set(index(settings)) & set(index(settings, "long"))


def test_prune_keeps_what_a_named_bundle_needs(bundled: Settings) -> None:
    """A dry run deletes nothing; with --apply the arrays and the index of other bundles go, shared ones stay, an unknown name stops it."""
    settings = bundled
    make_bundle(settings, "more", n_takes=7)
    cache.run(settings, WarmOptions("b"))
    mine = set(arrays(settings))
    cache.run(settings, WarmOptions("more"))
    everything = set(arrays(settings))
    assert len(everything) > len(mine)
    dry = cache.prune(settings, ["b"], apply=False)
    assert set(arrays(settings)) == everything and not dry["applied"] and dry["bytes"] > 0
    with pytest.raises(BundleIncomplete):
        cache.prune(settings, ["b", "gone"], apply=True)
    assert set(arrays(settings)) == everything
    assert cache.prune(settings, ["b"], apply=True)["files"] == dry["files"]
    assert set(arrays(settings)) == mine and not cache.index_path(settings, CLIPS, "more").exists()
    assert cache.run(settings, WarmOptions("b")).figures["computed"] == 0


def test_the_estimate_is_the_size(bundled: Settings) -> None:
    """clips x 128 x 25 x 2: 6,400 bytes a clip, 19.3 GB for 3,010,770; and what a warm cache takes."""
    settings = bundled
    assert cache.estimate_bytes(1, CLIPS, "float16") == 6_400
    assert cache.estimate_bytes(3_010_770, CLIPS, "float16") == 19_268_928_000
    report = cache.run(settings, WarmOptions("b"))
    assert report.figures["bytes"] == sum(p.stat().st_size for p in arrays(settings))


def test_the_commands_of_the_cache(bundled: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """estimate, warm, convert and prune from the command line: exit codes 0, 1 and 2, and what --json says."""

    def beatsight(*arguments: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--profile", "demo", "--data-root", str(bundled.layout.root), "features", *arguments, "--json"])
        out = capsys.readouterr().out
        return int(ended.value.code or 0), json.loads(out) if out.startswith("{") else {}

    assert beatsight("estimate", "--clips", "3010770") == (0, {"definition": "logmel128-1", "dtype": "float16", "clips": 3_010_770, "bytes": 19_268_928_000})  # fmt: skip
    code, said = beatsight("estimate", "b", "--dtype", "uint8", "--splits", "val")
    assert (code, said["bytes"]) == (0, 9 * 3_200)
    assert beatsight("estimate")[0] == 2 and beatsight("warm", "none")[0] == 1 and beatsight("warm", "b", "--dtype", "int4")[0] == 2
    code, said = beatsight("warm", "b", "--splits", "train", "--splits", "val")
    assert code == 0 and said["figures"]["clips"] == 36 and said["figures"]["computed"] == said["figures"]["arrays"]
    code, said = beatsight("convert", "b", "--splits", "val", "--dtype", "uint8")
    assert code == 0 and said["figures"]["converted"] == said["figures"]["arrays"]
    n_arrays = len(arrays(bundled))
    assert beatsight("prune", "--keep", "b")[1]["kept"] == n_arrays + 1 and len(arrays(bundled)) == n_arrays
    bundled.store.remove(bundled.layout.at("bundles/b"))
    make_bundle(bundled, "other", n_takes=1)
    code, said = beatsight("prune", "--keep", "other", "--apply")
    assert code == 0 and said["applied"] and len(said["files"]) >= n_arrays - 5 and not cache.index_path(bundled, CLIPS, "b").exists()
