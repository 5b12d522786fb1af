"""The export of a bundle, killed and refused everywhere: R1, R2 and R6 of the reliability plan, for both layouts, new, overwritten and healed.

Does not belong here: real processes (`test_bundle_processes`), damaged bytes (`bundle/test_damage`).
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from beatsight_assets import store
from beatsight_assets.bundle import export as engine
from beatsight_assets.bundle import seal
from beatsight_assets.bundle.export import BundleRequest, new_folder
from beatsight_assets.bundle.read import BundleIncomplete, open_bundle
from beatsight_assets.stages import Report
from beatsight_assets_tests.crash import writers
from beatsight_assets_tests.crash.sweep import Forked, SweepResult, is_exhaustive, scratch, sweep, tree

DUE = "beatsight_assets_tests.crash.test_bundle_sweep:due"
CONTENT = {"limit": 24, "part_clips": 4, "post_ms": 90.0}  # several parts per split and shard
OLD = {"limit": 20, "part_clips": 4, "post_ms": 60.0}  # what lies there before an overwrite
CASES = [("new", "shards"), ("new", "wav"), ("overwrite", "shards"), ("overwrite", "wav"), ("heal", "shards"), ("heal", "wav")]
ON_PUSH = [("new", "shards"), ("overwrite", "wav"), ("heal", "shards")]  # finding the last point costs a dozen strikes each
NOT_CONTENT = ("bundles/*/history/*", "receipts/bundle/*")  # what one invocation did
for _name in ("soxr", "soundfile", "beatsight_assets.bundle.shard", "beatsight_assets.bundle.verify"):
    importlib.import_module(_name)  # once for all children

Factory = Callable[[], Path]


def due(root: Path) -> Report:
    """What the file `due` says: an export that is new, or goes on by its name alone; or an overwrite."""
    case, layout = (root / "due").read_text().split()
    settings = writers.settings_of(root)
    if case == "overwrite":
        return engine.run(settings, BundleRequest("b", None, {**CONTENT, "layout": layout}, "overwrite"))
    if settings.layout.at("bundles/b/history/request.json").is_file():
        return engine.run(settings, BundleRequest("b", mode="resume"))
    return engine.run(settings, BundleRequest("b", None, {**CONTENT, "layout": layout}))


def content_view(root: Path) -> dict[str, str]:
    """`tree` of the content: without what tells of invocations."""
    found = {rel: digest for rel, digest in tree(root).items() if not any(fnmatch(rel, pattern) for pattern in NOT_CONTENT)}
    for rel in found:
        if rel.startswith("bundles/") and rel.endswith("/metadata.json"):
            found[rel] = seal.metadata_digest(json.loads((root / rel).read_bytes()))
    return found


def whole_bundle(root: Path) -> str | None:
    """Digest of the bundle a reader finds, every clip looked at; None where there is none yet."""
    folder = root / "bundles" / "b"
    try:
        bundle = open_bundle(folder)
    except BundleIncomplete:
        return None
    n_clips = 0
    for row, samples in bundle.clips():
        assert sha256(samples.tobytes()).hexdigest() == row["clip_sha256"], f"{row['event_id']} has other samples than its row says"
        n_clips += 1
    assert n_clips == bundle.marker["clips"] == bundle.metadata["statistics"]["written_clips"]
    assert seal.metadata_digest(store.read_json(folder / "metadata.json")) == bundle.marker["files"]["metadata.json"]
    return bundle.content_sha256


@pytest.fixture(scope="module")
def writer() -> Iterator[Forked]:
    """A warm process that exports what is due."""
    with Forked(DUE) as warm:
        yield warm


@pytest.fixture(scope="module")
def factory() -> Iterator[Callable[[str, str], Factory]]:
    """`factory(case, layout)` makes data roots in which that export is due."""
    with scratch() as base:
        first = base / "first"
        first.mkdir()
        writers.make_data(first)
        writers.run_to(first, "manifest_health")
        numbers = count()

        @cache
        def template(case: str, layout: str) -> Factory:
            made = base / f"{case}-{layout}"
            shutil.copytree(first, made)
            settings = writers.settings_of(made)
            audio = settings.layout.raw("beatsight_demo") / "audio" / "take_0.wav"
            if case == "overwrite":
                engine.run(settings, BundleRequest("b", None, {**OLD, "layout": layout}))
            if case == "heal":
                audio.rename(made / "away.wav")
                engine.run(settings, BundleRequest("b", None, {**CONTENT, "layout": layout}))
                (made / "away.wav").rename(audio)
                damaged = sorted(p for p in settings.layout.at("bundles/b").rglob("*") if p.suffix in (".pcm", ".wav"))[-1]
                damaged.unlink()
            (made / "due").write_text(f"{case} {layout}")
            return lambda: Path(shutil.copytree(made, base / f"root-{next(numbers)}"))

        yield template


def strike(writer: Forked, make: Factory, case: str, **how: Any) -> SweepResult:
    """Sweep with a reader that looks after every strike: an overwrite is never without a bundle, and no bundle is ever a mixture."""
    settings = writers.settings_of(make())
    old = whole_bundle(settings.layout.root) if case == "overwrite" else None
    assert writer(settings.layout.root, None).code == 0
    allowed = {whole_bundle(settings.layout.root), old}
    shutil.rmtree(settings.layout.root)

    def look(root: Path) -> None:
        assert whole_bundle(root) in allowed

    passing = [f"bundles/{new_folder(settings, 'b').name}/*"]
    removed = ["bundles/b/BUNDLE.json", "bundles/b/*.wav", "bundles/b/*.pcm"] if case == "heal" else []
    return sweep(writer, make, check_after_kill=look, view=content_view, passing=passing, removed=removed, **how)


@pytest.mark.parametrize(("case", "layout"), CASES if is_exhaustive() else ON_PUSH)
def test_an_export_killed_anywhere_resumes_to_equal_bytes(
    case: str, layout: str, writer: Forked, factory: Callable[[str, str], Factory], capsys: pytest.CaptureFixture[str]
) -> None:
    """R1, R2: 0 torn, 0 lost, 0 doubled, totals as of one run; readers see the old or the new bundle whole; the resume may be killed too."""
    result = strike(writer, factory(case, layout), case, sample=8, n_double=40 if is_exhaustive() else 1)
    with capsys.disabled():
        print(f"\n  {case} {layout}: {result}")
    assert result.n_total["kill"] >= 80
    assert result.n_points == result.n_total["kill"] if is_exhaustive() else result.n_points >= 8


@pytest.mark.parametrize(("case", "layout"), CASES if is_exhaustive() else [("new", "wav")])
def test_a_disk_that_refuses_an_export_ends_with_exit_3(
    case: str, layout: str, writer: Forked, factory: Callable[[str, str], Factory], capsys: pytest.CaptureFixture[str]
) -> None:
    """R6: EIO, ENOSPC and short writes at the n-th write: exit 3 with path and bytes, no temporary file, and the resume is identical."""
    actions = ("eio", "enospc", "short") if is_exhaustive() else ("enospc",)
    result = strike(writer, factory(case, layout), case, actions=actions, sample=3)
    with capsys.disabled():
        print(f"\n  {case} {layout}: {result}")
    assert result.n_points >= 3
