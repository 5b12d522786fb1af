"""The export as a real command with real worker processes: random kills, two writers, a reader during a writer, a worker that dies.

What has to meet is made to meet, at a failpoint or between two openings of files: nothing here waits for luck or depends on the machine's speed.
"""

from __future__ import annotations

import builtins
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from beatsight_assets import clock, interchange
from beatsight_assets.bundle import check, seal
from beatsight_assets.bundle import export as engine
from beatsight_assets.bundle.export import BundleRequest
from beatsight_assets.bundle.read import Bundle, open_bundle
from beatsight_assets.errors import InputError
from beatsight_assets.features import clip_cache
from beatsight_assets.interchange.clips import Clips as FormClips
from beatsight_assets.model.clips import load_clips
from beatsight_assets.settings import Settings
from beatsight_assets.units import rng_for
from beatsight_assets_tests.crash import writers
from beatsight_assets_tests.crash.sweep import REPOSITORY, is_exhaustive, leftovers, scratch, tree
from beatsight_assets_tests.crash.test_bundle_sweep import content_view, whole_bundle

N_KILLED = 60 if is_exhaustive() else 2  # exports, each killed one to three times
LAST_POINT = 30  # of the places where an export is killed for certain: it passes more than twice as many
OPTIONS = ("--layout", "wav", "--shards", "4", "--post-ms", "90")
NewRoot = Callable[[], Path]


def start(root: Path, *arguments: str, failpoint: str = "") -> subprocess.Popen[str]:
    """`beatsight bundle export b` in a process group of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "BEATSIGHT_FAILPOINT"} | {"PYTHONPATH": str(REPOSITORY)}
    if failpoint:
        environment["BEATSIGHT_FAILPOINT"] = failpoint
    command = [sys.executable, "-m", "beatsight_assets", "--data-root", str(root), "--profile", "demo", "bundle", "export", "b", *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said on stderr."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


@pytest.fixture(scope="module")
def new_root() -> Iterator[NewRoot]:
    """Data roots with a manifest and its audio."""
    with scratch() as base:
        first = base / "first"
        first.mkdir()
        writers.make_data(first)
        writers.run_to(first, "manifest_health")
        numbers = count()
        yield lambda: Path(shutil.copytree(first, base / f"root-{next(numbers)}"))


@dataclass(frozen=True)
class Sound:
    """An export that nobody disturbed: its content, its digest, how long it took."""

    content: dict[str, str]
    digest: str
    seconds: float


@pytest.fixture(scope="module")
def sound(new_root: NewRoot) -> Sound:
    """An export that nobody disturbed."""
    root = new_root()
    started_s = clock.monotonic_s()
    code, said = ended(start(root, *OPTIONS))
    assert code == 0, said
    seconds, digest = clock.monotonic_s() - started_s, whole_bundle(root)
    assert digest is not None
    return Sound(content_view(root), digest, seconds)


def test_random_kills_of_the_command_lose_nothing(new_root: NewRoot, sound: Sound, capsys: pytest.CaptureFixture[str]) -> None:
    """U1, U2: the command with two workers, or one of them, is killed at a random place, its resumes (-9) at random moments of as long
    as it takes; the last resume equals a run that nobody disturbed.
    """
    rng = rng_for(7, "kill -9")
    n_moments = 0
    for _ in range(N_KILLED):
        root = new_root()
        code, said = ended(start(root, "--workers", "2", *OPTIONS, failpoint=f"*:{rng.integers(1, LAST_POINT + 1)}:kill"))
        assert code in (-signal.SIGKILL, 3), said
        assert whole_bundle(root) in (None, sound.digest)
        for moment in rng.uniform(0.0, sound.seconds, int(rng.integers(0, 3))):
            has_begun = (root / "bundles" / "b" / "history" / "request.json").is_file()
            process = start(root, "--workers", "2", *(("--resume",) if has_begun else OPTIONS))
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                n_moments += 1
            ended(process)
            assert whole_bundle(root) in (None, sound.digest)
        was_begun = (root / "bundles" / "b").is_dir()  # a process may be killed before it made anything
        code, said = ended(start(root, "--workers", "2", *(("--resume",) if was_begun else ()), *OPTIONS))
        assert code == 0, said
        assert content_view(root) == sound.content and leftovers(root) == []
        shutil.rmtree(root)
    with capsys.disabled():
        print(f"\n  {N_KILLED} exports with 2 workers, killed at {N_KILLED} places and {n_moments} moments: 0 lost, 0 torn, all equal")


def test_one_of_two_writers_is_turned_away(new_root: NewRoot, sound: Sound) -> None:
    """U8: of two commands on one bundle the second gets exit 2 and `busy` with the first one's pid, and the bundle is that of the first."""
    root = new_root()
    first = start(root, *OPTIONS, "--workers", "1", failpoint="shard.begin:2:stop")
    try:
        assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1]), "the first writer ended before it was stopped"
        before = tree(root)
        code, said = ended(start(root, *OPTIONS, "--overwrite"))
        assert code == 2 and "busy" in said and f'"pid": {first.pid}' in said, said
        assert tree(root) == before
        first.send_signal(signal.SIGCONT)
        code, said = ended(first)
        assert code == 0, said
    finally:
        first.kill()
    assert content_view(root) == sound.content and leftovers(root) == []


def test_a_dead_worker_costs_its_shard_alone(new_root: NewRoot, sound: Sound) -> None:
    """A worker process killed in its second shard: exit 3 names the shard, finished shards are kept, the resume goes on and is identical."""
    root = new_root()
    code, said = ended(start(root, *OPTIONS, "--workers", "2", failpoint="shard.begin:2:kill"))
    assert code == 3 and "worker-died" in said and "shard 0" in said, said
    made = {p: p.stat().st_mtime_ns for p in root.glob("bundles/b/shards/*/SHARD.json")}
    assert 1 <= len(made) < 4
    code, said = ended(start(root, "--resume", "--workers", "2"))
    assert code == 0, said
    assert content_view(root) == sound.content and leftovers(root) == []
    assert {p: p.stat().st_mtime_ns for p in made} == made


@contextmanager
def before_opening(folder: Path, act: Callable[[int], None]) -> Iterator[Callable[[], int]]:
    """Call `act(n)` before the n-th opening of a file below a folder in this block; what `act` opens does not count. Gives how many there were."""
    real_open, real_os_open = builtins.open, os.open
    n, is_acting = 0, False

    def look(path: object) -> None:
        nonlocal n, is_acting
        if not is_acting and str(path).startswith(f"{folder}/"):
            n, is_acting = n + 1, True
            act(n)
            is_acting = False

    def looking_open(path: Any, *args: Any, **kwargs: Any) -> Any:
        look(path)
        return real_open(path, *args, **kwargs)

    def looking_os_open(path: Any, *args: Any, **kwargs: Any) -> int:
        look(path)
        return real_os_open(path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", looking_open)
        patch.setattr(os, "open", looking_os_open)
        yield lambda: n


@pytest.mark.parametrize("n_swaps", [1, 2], ids=["replaced", "replaced-and-put-back"])
@pytest.mark.parametrize("layout", ["shards", "wav"])
def test_a_reader_sees_one_version_whenever_a_writer_replaces_it(new_root: NewRoot, layout: str, n_swaps: int) -> None:
    """U8: a bundle is replaced before the n-th file that a reader opens, for every n, and put back before the next one: what it read is of
    one version, or it is told that the bundle changed.
    """
    settings = writers.settings_of(new_root())
    folder = settings.layout.at("bundles/b")
    sizes = {60.0: 6, 90.0: 4}  # milliseconds after the onset -> clips
    versions = {(n, round((80 + post_ms) * 44.1)) for post_ms, n in sizes.items()}
    requests = [BundleRequest("b", None, {"limit": n, "post_ms": p, "layout": layout, "shards": 2}, "overwrite") for p, n in sizes.items()]
    turns = count()

    def replace() -> None:
        engine.export(settings, requests[next(turns) % 2])

    def read() -> str:
        bundle = open_bundle(folder)
        seen = [len(samples) for _, samples in bundle.clips()]
        assert len(set(seen)) == 1 and (len(seen), seen[0]) in versions, seen
        n_told = {bundle.metadata["statistics"]["written_clips"], bundle.table(["event_id"]).height}
        assert n_told | ({sum(p.n_clips for p in bundle.parts())} if layout == "shards" else set()) == {len(seen)}
        return "whole"

    ends: Counter[str] = Counter()
    replace()
    for place in count(1):
        with before_opening(folder, lambda n, place=place: replace() if place <= n < place + n_swaps else None) as n_opened:  # type: ignore[misc]
            try:
                ends[read()] += 1
            except InputError as error:
                assert error.code == "bundle-changed", error
                ends[error.code] += 1
        if n_opened() < place:
            break
    assert ends["whole"] >= 2 and ends["bundle-changed"] >= 6, ends


READERS: dict[str, tuple[tuple[object, str], Callable[[Settings], object]]] = {
    "digests": ((check, "find_flips"), lambda s: check.run(s, check.CheckOptions("b"))),
    "totals": ((seal, "add_up"), lambda s: check.against_manifest(s, "b")),
    "features": ((clip_cache, "part_clips"), lambda s: clip_cache.run_shard(s, clip_cache.WarmOptions("b"), 0)),
    "clips of a network": ((Bundle, "shard_table"), lambda s: load_clips(s, "b", ("train", "val", "test"))),
    "form": ((FormClips, "rows"), lambda s: interchange.run(s, interchange.InterchangeOptions("b", "webdataset"))),
}  # the step before which a writer replaces the bundle, and who takes it


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_a_bundle_notices_that_it_was_replaced(new_root: NewRoot, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """U8: digests, totals, features, training data and forms are of one version; replaced on the way, nothing is said about either."""
    settings = writers.settings_of(new_root())
    engine.export(settings, BundleRequest("b", None, {"limit": 20, "shards": 2}))
    needs_features = reader == "clips of a network"
    if needs_features:
        clip_cache.run(settings, clip_cache.WarmOptions("b"))
    (place, name), read = READERS[reader]
    step = getattr(place, name)

    def replaced_before(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        engine.export(settings, BundleRequest("b", None, {"limit": 12, "shards": 2}, "overwrite"))
        return step(*args, **kwargs)

    before = tree(settings.layout.root)
    monkeypatch.setattr(place, name, replaced_before)
    with pytest.raises(InputError) as refusal:
        read(settings)
    assert refusal.value.code == "bundle-changed"
    assert {p for p in set(tree(settings.layout.root)) - set(before) if not p.startswith("bundles/b/")} == set()
    assert not list(settings.layout.at("bundles/b").rglob("SOURCE.json"))
    if needs_features:
        clip_cache.run(settings, clip_cache.WarmOptions("b"))
    read(settings)
