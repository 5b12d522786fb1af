"""The store's promises U1, U2 and U8 on a toy writer that does everything a real one does: parts, a table, deletion, index last, receipts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.stages import Outcome, read_receipt, run_stage
from beatsight_assets_tests.crash.sweep import Command, Forked, SweepResult, is_exhaustive, scratch, sweep

TOY = "beatsight_assets_tests.crash.test_store_sweep:toy"
DISK_ACTIONS = ("eio", "enospc", "edquot", "erofs", "short")


def toy(root: Path) -> None:
    """Two stages: parts, a table and an index from a recipe; then a summary of the index. The previous version goes index first."""
    settings = Settings(layout=DataLayout(root), profile="demo")
    recipe = root / "raw" / "recipe.json"
    folder = root / "toy"

    def make() -> Outcome:
        wanted = store.read_json(recipe)
        keep = settings.store
        keep.remove(folder / "INDEX.json")
        keep.remove(folder / "parts")
        parts = [folder / "parts" / f"{n}.bin" for n in range(wanted["n_parts"])]
        digests = {}
        for n, part in enumerate(parts):
            block = bytes([n, wanted["version"]]) * 2_000
            digests[part.name] = keep.publish(part, lambda out, block=block: [out.write(block) for _ in range(3)]).sha256
        table = pl.DataFrame({"part": sorted(digests), "version": [wanted["version"]] * len(digests)})
        digests["table.parquet"] = keep.publish_frame(folder / "table.parquet", table, metadata={"beatsight": "toy"}).sha256
        keep.publish_json(folder / "INDEX.json", digests)
        return Outcome([("part", p, None) for p in parts] + [("index", folder / "INDEX.json", None)], figures={"n_parts": len(parts)})

    def summarise() -> Outcome:
        target = root / "reports" / "toy" / "summary.json"
        settings.store.publish_json(target, {"n_files": len(store.read_json(folder / "INDEX.json"))})
        return Outcome([("summary", target, None)])

    run_stage(settings, "toy", version="1", options={}, parents=[("recipe", recipe)], work=make)
    run_stage(settings, "summary", version="1", options={}, parents=[("index", folder / "INDEX.json")], work=summarise)


def readers_view(root: Path) -> None:
    """Where there is an index, everything it names is whole and of its version; a receipt can always be read."""
    index = root / "toy" / "INDEX.json"
    settings = Settings(layout=DataLayout(root), profile="demo")
    for stage in ("toy", "summary"):
        read_receipt(settings, stage)
    if not index.exists():
        return
    for name, digest in json.loads(index.read_bytes()).items():
        path = root / "toy" / name if name.endswith(".parquet") else root / "toy" / "parts" / name
        assert sha256(path.read_bytes()).hexdigest() == digest, f"{name} is not what the index names"


@pytest.fixture(scope="module")
def new_root() -> Iterator[Callable[[], Path]]:
    """Data roots in which version 1 was made with three parts and version 2 with two is now due."""
    with scratch() as base:
        template = base / "template"
        recipe = template / "raw" / "recipe.json"
        recipe.parent.mkdir(parents=True)
        recipe.write_text('{"n_parts": 3, "version": 1}')
        toy(template)
        recipe.write_text('{"n_parts": 2, "version": 2}')
        numbers = count()
        yield lambda: Path(shutil.copytree(template, base / f"root-{next(numbers)}"))


def shown(result: SweepResult, capsys: pytest.CaptureFixture[str]) -> SweepResult:
    """Print the figures, also when the test passes."""
    with capsys.disabled():
        print(f"\n  toy writer: {result}")
    return result


def test_killed_anywhere_leaves_whole_files_and_resumes_to_equal_bytes(
    new_root: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """U1, U2, R1, R2: 0 torn, 0 lost, 0 temporary files left, equal bytes, also when the resume is killed."""
    with Forked(TOY) as writer:
        result = shown(sweep(writer, new_root, check_after_kill=readers_view, removed=["toy/*"], n_double=40), capsys)
    assert result.n_total["kill"] >= 40
    assert {"publish.open", "publish.write", "publish.half", "publish.fsync", "publish.rename", "publish.folder"} <= set(result.names)
    assert result.n_points >= (result.n_total["kill"] if is_exhaustive() else 40)


def test_a_disk_that_refuses_anywhere_ends_with_exit_3_and_changes_nothing(
    new_root: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """R6: EIO, ENOSPC, EDQUOT, EROFS and short writes end with exit 3, path and bytes in the message, no temporary file; resume equal."""
    with Forked(TOY) as writer:
        result = shown(sweep(writer, new_root, actions=DISK_ACTIONS, check_after_kill=readers_view, removed=["toy/*"], sample=15), capsys)
    assert result.n_points >= 40
    assert set(result.n_struck) == set(DISK_ACTIONS)


def test_a_real_command_is_struck_as_a_forked_one(new_root: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The two ways to run a writer agree: a fresh process at three points finds as many failpoints (a new interpreter each time)."""
    command = [sys.executable, "-m", "beatsight_assets_tests.crash.sweep", TOY, "{root}"]
    with Forked(TOY) as writer:
        for place in ("publish.rename:3", "publish.half:2", "summary.begin:1"):
            found = []
            for run in (writer, Command(command)):
                root = new_root()
                found.append((run(root, f"{place}:kill").struck, run(root, None).code))
            assert found[0] == found[1] == (place.partition(":")[0], 0)
    if is_exhaustive():
        shown(sweep(command, new_root, check_after_kill=readers_view, removed=["toy/*"]), capsys)
