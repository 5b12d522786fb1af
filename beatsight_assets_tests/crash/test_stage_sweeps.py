"""Every stage without torch, and promotion, are killed at their failpoints and refused by the disk: R3, R4 and R6 on the real writers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.errors import BeatSightError, ConfigError, GateFailed, InputError
from beatsight_assets.features import cache
from beatsight_assets.features.definitions import definition
from beatsight_assets.manifest.merge import find_red_sources
from beatsight_assets.model import promote as promotion
from beatsight_assets.model.promote import PromoteOptions
from beatsight_assets.settings import Settings
from beatsight_assets.stages import all_receipts, is_intact, read_receipt
from beatsight_assets_tests.crash import writers
from beatsight_assets_tests.crash.sweep import Forked, SweepResult, scratch, sweep, tree

HERE = "beatsight_assets_tests.crash.writers"
EVERY_POINT = 10_000
SAMPLES = {"recording_features": EVERY_POINT}  # the cache is struck everywhere on every push
HISTORY = ("computed", "reused", "repaired")  # figures that tell how a run went, not what it made
FRAMES = definition("frames/1")


@pytest.fixture(scope="module")
def roots() -> Iterator[Callable[[str], Callable[[], Path]]]:
    """`roots(stage)` makes data roots in which version 1 went through everything and version 2 is due from that stage on."""
    with scratch() as base:
        first = base / "first"
        first.mkdir()
        writers.make_data(first)
        writers.run_to(first)
        numbers = count()

        def template(stage: str) -> Callable[[], Path]:
            made = base / f"template-{next(numbers)}"
            shutil.copytree(first, made)
            writers.change_data(made)
            writers.run_to(made, stage)
            return lambda: Path(shutil.copytree(made, base / f"root-{next(numbers)}"))

        yield template


def readers_view(root: Path) -> None:
    """Every receipt, table and document can be read whole; a dataset whose files and receipt do not agree is not merged."""
    settings = writers.settings_of(root)
    for receipt in all_receipts(settings):
        assert receipt.outputs
    for path in root.rglob("*.parquet"):
        pl.read_parquet(path)
    for path in root.rglob("*.npy"):
        cache.read_features(path)
    for folder in ("reports", "features", "receipts", "models"):
        for path in (root / folder).rglob("*.json"):
            store.read_json(path)
    events = read_receipt(settings, "events", "beatsight_demo")
    assert events is not None
    assert is_intact(settings, events) == (find_red_sources(settings, ["beatsight_demo"]) == {})


def without_history(root: Path) -> dict[str, str]:
    """`tree`, save that the receipt of the feature cache counts without what it tells of the run."""
    found = tree(root)
    path = root / "receipts" / "recording_features.json"
    if path.is_file():
        receipt = json.loads(path.read_bytes())
        receipt["figures"] = {k: v for k, v in receipt["figures"].items() if k not in HISTORY}
        found["receipts/recording_features.json"] = hashlib.sha256(store.to_json_bytes(receipt)).hexdigest()
    return found


def shown(stage: str, result: SweepResult, capsys: pytest.CaptureFixture[str]) -> SweepResult:
    """Print the figures, also when the test passes."""
    with capsys.disabled():
        print(f"\n  {stage}: {result}")
    return result


@pytest.mark.parametrize("stage", list(writers.STAGES))
def test_a_stage_killed_anywhere_resumes_to_equal_bytes(
    stage: str, roots: Callable[[str], Callable[[], Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """R3: a reader finds whole old or new files after each kill, also of the resume; resuming gives the bytes of an uninterrupted run."""
    with Forked(f"{HERE}:{stage}") as writer:
        result = sweep(
            writer, roots(stage), check_after_kill=readers_view, view=without_history, sample=SAMPLES.get(stage, 15), n_double=2
        )
    shown(stage, result, capsys)
    assert result.n_points >= 15
    assert {"publish.half", "publish.rename"} <= set(result.names)


@pytest.mark.parametrize("stage", list(writers.STAGES))
def test_a_disk_that_refuses_a_stage_ends_with_exit_3(
    stage: str, roots: Callable[[str], Callable[[], Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """R6: EIO and ENOSPC at the n-th write name the path and the bytes, leave no temporary file, and resuming gives equal bytes."""
    with Forked(f"{HERE}:{stage}") as writer:
        result = sweep(
            writer, roots(stage), actions=("eio", "enospc"), check_after_kill=readers_view, view=without_history, sample=6
        )
    assert shown(stage, result, capsys).n_points >= 12
