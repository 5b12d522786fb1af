"""Random flips over every file of a bundle: each is found by the check, and one resume brings back every byte."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.bundle import check
from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.bundle.read import BundleIncomplete, open_bundle
from beatsight_assets.errors import BeatSightError, ConfigError, InputError
from beatsight_assets.settings import Settings
from beatsight_assets_tests.crash.sweep import is_exhaustive

N_FLIPS = 300 if is_exhaustive() else 12
KINDS = ("*.pcm", "*.wav", "clips.parquet", "SHARD.json", "*_labels.json", "metadata.json", "components.json", "splits.json", "plan.json",
         "plan/*.parquet", "BUNDLE.json")  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but the records of invocations."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != "history"
    }


def flip(path: Path, rng: np.random.Generator) -> None:
    """One bit of a file changes as a disk changes it: neither size nor time tell."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    with path.open("r+b") as handle:
        handle.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def is_found(settings: Settings) -> bool:
    try:
        return not check.run(settings, check.CheckOptions("b")).passed
    except BundleIncomplete:
        return True


@pytest.mark.parametrize("layout", ["shards", "wav"])
def test_every_flip_is_found_and_repaired(
    made: Settings, rng: np.random.Generator, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """R15: N of N random flips over every kind of file, with size and time kept, are found and repaired, the plan included."""
    folder = export(made, BundleRequest("b", None, {"limit": 12, "part_clips": 3, "layout": layout})).plan.folder
    due = files_of(folder)
    kinds = [k for k in KINDS if any(folder.rglob(k) if "/" not in k else folder.glob(k))]
    n_found = n_repaired = 0
    for n in range(N_FLIPS):
        kind = kinds[n % len(kinds)]
        names = sorted(folder.glob(kind) if "/" in kind else folder.rglob(kind))
        flip(names[int(rng.integers(len(names)))], rng)
        n_found += is_found(made)
        export(made, BundleRequest("b", mode="resume"))
        found = files_of(folder)
        differing = {k for k in found if found[k] != due.get(k)} | (set(due) - set(found))
        assert differing <= {"metadata.json"}, (kind, differing)  # it tells what this run repaired
        n_repaired += not is_found(made)
    with capsys.disabled():
        print(f"\n  {layout}: {n_found} of {N_FLIPS} flips found, {n_repaired} repaired, over {len(kinds)} kinds of files")
    assert n_found == n_repaired == N_FLIPS


def test_a_plan_without_its_copy_is_an_error_and_never_another_bundle(made: Settings) -> None:
    """plan.json and its copy are both damaged: resuming says so with the next step, cuts nothing, and an overwrite gives the same clips."""
    done = export(made, BundleRequest("b", None, {"limit": 20}))
    folder = done.plan.folder
    for name in ("plan.json", "history/request.json"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"44100", b"48000"))
    before = files_of(folder)
    with pytest.raises(BeatSightError, match=r"damaged and there is no copy.*--overwrite") as refusal:
        export(made, BundleRequest("b", mode="resume"))
    assert refusal.value.exit_code == 3 and files_of(folder) == before
    with pytest.raises(BundleIncomplete):
        open_bundle(folder)
    again = export(made, BundleRequest("b", None, {"limit": 20}, "overwrite"))
    assert again.marker == done.marker


def test_a_damaged_table_of_the_plan_that_comes_out_differently_stops(made: Settings, rng: np.random.Generator) -> None:
    """A damaged table of the plan is made again only as it was: with another manifest in place the resume is refused."""
    folder = export(made, BundleRequest("b", None, {"limit": 20})).plan.folder
    flip(folder / "plan" / "00.parquet", rng)
    assert is_found(made)
    made.store.publish_frame(made.layout.annotated, pl.read_parquet(made.layout.annotated).head(100))
    with pytest.raises(ConfigError, match=r"cannot-resume: .*manifest digest"):
        export(made, BundleRequest("b", mode="resume"))


@pytest.mark.parametrize("layout", ["shards", "wav"])
def test_sound_clips_stay_when_the_audio_of_a_damaged_one_is_gone(made: Settings, layout: str) -> None:
    """A clip is damaged and its audio is away: nothing is deleted, the error names the audio; with the audio back one resume repairs it."""
    folder = export(made, BundleRequest("b", None, {"layout": layout})).plan.folder
    due = files_of(folder)
    row, _ = next(iter(open_bundle(folder).clips("train")))
    damaged = folder / "train" / row["file"] if layout == "wav" else next(iter(sorted(folder.rglob("train-0000.pcm"))))
    audio = made.layout.raw("beatsight_demo") / row["audio_path"]
    hidden = audio.with_suffix(".away")
    audio.rename(hidden)
    damaged.unlink()
    with pytest.raises(ConfigError, match=r"audio-changed.*is absent now.*Bring the old file back"):
        export(made, BundleRequest("b", mode="resume"))
    assert files_of(folder) == {k: v for k, v in due.items() if folder / k != damaged}
    hidden.rename(audio)
    export(made, BundleRequest("b", mode="resume"))
    assert {k: v for k, v in files_of(folder).items() if k != "metadata.json"} == {k: v for k, v in due.items() if k != "metadata.json"}


def test_an_overwrite_takes_nothing_over_from_one_that_was_killed(made: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of a killed overwrite do not leak into the next one."""
    export(made, BundleRequest("b", None, {"limit": 20}))
    point = store.failpoint

    def stop(name: str) -> str | None:
        if name == "shard.begin":
            raise KeyboardInterrupt
        return point(name)

    monkeypatch.setattr(store, "failpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        export(made, BundleRequest("b", None, {"limit": 20, "post_ms": 50.0}, "overwrite"))
    monkeypatch.setattr(store, "failpoint", point)
    assert export(made, BundleRequest("b", None, {"limit": 20}, "overwrite")).plan.options.post_ms == 200.0


def test_a_damaged_record_of_a_run_stops_nothing(made: Settings) -> None:
    """history/ is no content: a damaged record is passed over by the next resume."""
    folder = export(made, BundleRequest("b", None, {"limit": 20})).plan.folder
    (folder / "history" / "run-0001.json").write_bytes(b"{")
    assert export(made, BundleRequest("b", mode="resume")).run["run_statistics"]["reused_clips"] == 20


@pytest.mark.parametrize("layout", ["shards", "wav"])
def test_a_reader_is_never_given_two_versions(made: Settings, layout: str) -> None:
    """A bundle replaced after it was opened: clips begun before stay those of the old one, or the reader is told; nothing is mixed."""
    request = BundleRequest("b", None, {"limit": 20, "layout": layout})
    folder = export(made, request).plan.folder
    early, late = open_bundle(folder), open_bundle(folder)
    clips = early.clips()
    first = next(clips)
    export(made, BundleRequest("b", None, {"limit": 20, "layout": layout, "post_ms": 90.0}, "overwrite"))
    if layout == "shards":
        assert {len(samples) for _, samples in [first, *clips]} == {12_348}
    else:
        with pytest.raises(InputError, match=r"bundle-changed.*Open it again"):
            list(clips)
    with pytest.raises(InputError, match=r"bundle-changed.*Open it again"):
        list(late.clips())
    assert {len(samples) for _, samples in open_bundle(folder).clips()} == {3_528 + 3_969}
