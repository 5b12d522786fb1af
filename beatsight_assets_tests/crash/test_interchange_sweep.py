"""A form of a bundle is killed and refused by the disk while it replaces that of an older bundle: no torn archive, no false SOURCE.json."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from beatsight_assets import interchange, store
from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.stages import Report
from beatsight_assets_tests.crash import writers
from beatsight_assets_tests.crash.sweep import Forked, is_exhaustive, scratch, sweep

NAME = "b"
KINDS = ("webdataset", "midi") if is_exhaustive() else ("webdataset",)
ACTIONS = ("kill", "enospc") if is_exhaustive() else ("kill",)


def convert(root: Path) -> Report:
    """The form that the file `due` names."""
    return interchange.run(writers.settings_of(root), interchange.InterchangeOptions(NAME, (root / "due").read_text()))


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A data root whose bundle has changed since its forms were made."""
    with scratch() as folder:
        root = folder / "changed"
        root.mkdir()
        writers.make_data(root)
        writers.run_to(root, "recording_features")
        for rate, mode in ((22_050, "new"), (16_000, "overwrite")):
            export(writers.settings_of(root), BundleRequest(NAME, None, {"sample_rate": rate, "limit": 30}, mode=mode))
            if mode == "new":
                forms = [
                    interchange.run(writers.settings_of(root), interchange.InterchangeOptions(NAME, k)) for k in ("webdataset", "midi")
                ]
                kept = shutil.copytree(root / "bundles" / NAME / "interchange", folder / "kept")
                assert all(f.passed for f in forms)
        shutil.copytree(kept, root / "bundles" / NAME / "interchange", dirs_exist_ok=True)
        yield folder


def readers_view(root: Path) -> None:
    """Every archive is whole under its final name; where SOURCE.json stands, every file that it names is the one it names."""
    folder = root / "bundles" / NAME / "interchange" / (root / "due").read_text()
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) % 2 == 0
        assert path.stat().st_size % tarfile.RECORDSIZE == 0
    if (folder / "SOURCE.json").is_file():
        for file in store.read_json(folder / "SOURCE.json")["files"]:
            assert store.hash_file(folder / file["path"]) == file["sha256"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_killed_anywhere_comes_out_the_same(kind: str, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Old or new whole files after a kill, an I/O error or a full disk; repeating gives the bytes of an uninterrupted run."""
    (base / "changed" / "due").write_text(kind)
    numbers = count()
    with Forked("beatsight_assets_tests.crash.test_interchange_sweep:convert") as writer:
        result = sweep(
            writer,
            lambda: Path(shutil.copytree(base / "changed", base / f"{kind}-{next(numbers)}")),
            actions=ACTIONS,
            check_after_kill=readers_view,
            removed=("*/SOURCE.json",),
            sample=8,
            n_double=1,
        )
    with capsys.disabled():
        print(f"\n  interchange {kind}: {result}")
    assert result.n_points >= 8 and {"publish.half", "publish.rename"} <= set(result.names)
