"""`bundle smoke`: a limited bundle is made, checked, judged and removed, and what it says can be relied on (spec/bundle.md section 10)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.checklist import smoke
from beatsight_assets.settings import Settings, load_settings
from beatsight_assets_tests.bundle.conftest import Beatsight


def smoke_folders(settings: Settings) -> list[Path]:
    return sorted(settings.layout.at("bundles").glob(".smoke-*"))


def test_a_smoke_run_leaves_its_reports_and_nothing_else(made: Settings, beatsight: Beatsight) -> None:
    """Exit 0; smoke.json has speed and the size of the whole, health.json counts the clips' events; the bundle is gone; --keep leaves it."""
    ended = beatsight("bundle", "smoke", "--limit", "30", "--json")
    folder = made.layout.root / "reports/bundle/preflight"
    assert ended.code == 0 and sorted(p.name for p in folder.iterdir()) == ["health.html", "health.json", "smoke.json"]
    found, health = (json.loads((folder / f"{n}.json").read_text()) for n in ("smoke", "health"))
    assert (found["clips"], found["full_clips"], found["limit"], found["passed"]) == (30, 207, 30, True)
    assert found["full_gb"] == round(207 * 0.28 * 44_100 * 2 / 1e9, 6)
    assert found["clips_per_s"] > 0 and found["full_seconds"] == pytest.approx(207 / found["clips_per_s"], rel=0.1)
    assert (
        health["summary"]["events_total"] == health["bundle"]["clips"] == 30
        and health["passed"]
        and sum(health["duration_seconds_by_source"].values()) == 8.4
    )
    assert smoke_folders(made) == []
    assert beatsight("bundle", "smoke", "--limit", "30", "--keep").code == 0
    assert [f.name for f in smoke_folders(made)] == [f".smoke-{store.hash_file(made.layout.annotated)[:8]}"]
    assert beatsight("bundle", "smoke", "--limit", "31", "--keep").code == 0 and len(smoke_folders(made)) == 1


def test_a_failed_step_keeps_its_output(made: Settings, beatsight: Beatsight) -> None:
    """Audio that is gone: exit 1, the failure is named, the bundle stays; a repeated run looks at the disk again."""
    audio = made.layout.raw("beatsight_demo") / "audio" / "take_0.wav"
    audio.rename(audio.with_suffix(".away"))
    ended = beatsight("bundle", "smoke", "--json")
    assert ended.code == 1 and len(smoke_folders(made)) == 1
    report = json.loads(ended.out)
    assert (
        report["facts"]["failures"][0].startswith("export: bundle_complete: 69") and report["facts"]["kept"] == smoke_folders(made)[0].name
    )
    audio.with_suffix(".away").rename(audio)
    assert beatsight("bundle", "smoke").code == 0 and smoke_folders(made) == []


def test_unfit_events_fail_the_health_step(made: Settings, beatsight: Beatsight) -> None:
    """A label that the taxonomy does not know fails the smoke run by the limits of the profile."""
    frame = pl.read_parquet(made.layout.annotated)
    gong = pl.col("components").list.eval(pl.element().struct.with_fields(label=pl.lit("gong")))
    made.store.publish_frame(
        made.layout.annotated,
        frame.with_columns(pl.when(pl.int_range(pl.len()) == 3).then(pl.col("components").list.concat(gong)).otherwise("components")),
    )
    ended = beatsight("bundle", "smoke")
    assert ended.code == 1 and "max_unknown_labels" in ended.out and len(smoke_folders(made)) == 1


def test_too_little_room_is_refused_before_anything_is_cut(made: Settings, beatsight: Beatsight, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free space below 1.1 times what the whole bundle needs: exit 1, no bundle; from there on it runs."""
    needed = round(207 * 0.28 * 44_100) * 2
    free = [int(needed * 1.1) - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    ended = beatsight("bundle", "smoke", "--limit", "5")
    assert ended.code == 1 and "no-space" in ended.err and not made.layout.at("bundles").exists()
    free[0] += 2
    ended = beatsight("bundle", "smoke", "--limit", "5")
    assert ended.code == 0 and "disk_headroom" in ended.out and "warn" in ended.out


def test_the_environment_says_limit_and_roots(
    made: Settings, beatsight: Beatsight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXPORT_LIMIT, KEEP_SMOKE_OUTPUT, RAW_PRIMARY and after it RAW_SECONDARY; --limit wins; a wrong number is exit 2."""
    audio = made.layout.raw("beatsight_demo") / "audio"
    for place, names in (("one", ["take_0.wav"]), ("two", ["take_1.wav", "take_2.wav"])):
        (tmp_path / place / "beatsight_demo" / "audio").mkdir(parents=True)
        for name in names:
            (audio / name).rename(tmp_path / place / "beatsight_demo" / "audio" / name)
    assert beatsight("bundle", "smoke").code == 1
    made.store.remove(smoke_folders(made)[0])
    for name, value in (("EXPORT_LIMIT", "40"), ("RAW_PRIMARY", str(tmp_path / "one")), ("RAW_SECONDARY", str(tmp_path / "two"))):
        monkeypatch.setenv(name, value)
    ended = beatsight("bundle", "smoke", "--json")
    assert ended.code == 0 and json.loads(ended.out)["figures"]["clips"] == 40 and smoke_folders(made) == []
    monkeypatch.setenv("KEEP_SMOKE_OUTPUT", "1")
    ended = beatsight("bundle", "smoke", "--limit", "50", "--json")
    assert ended.code == 0 and json.loads(ended.out)["figures"]["clips"] == 50 and len(smoke_folders(made)) == 1
    monkeypatch.setenv("EXPORT_LIMIT", "many")
    ended = beatsight("bundle", "smoke")
    assert ended.code == 2 and "EXPORT_LIMIT is 'many'" in ended.err
    assert beatsight("bundle", "list").code == 0, "what another program means by the name stops no other command"


def test_without_a_limit_fifty_thousand_clips_are_made() -> None:
    """The number of the specification."""
    assert smoke.from_environment(load_settings("x", environ={}), smoke.SmokeOptions()).limit == 50_000
