"""The store: whole files, digests, one writer, nothing outside the root (reliability.md U1, U5-U8, U10; R5, R6, R11, S1)."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from time import process_time

import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.errors import BeatSightError, Busy, ConfigError, InputError, StoreError
from beatsight_assets.settings import DataLayout
from beatsight_assets.store import Store
from beatsight_assets_tests.crash.sweep import leftovers, tree

REPOSITORY = Path(__file__).parent.parent
TOY = "beatsight_assets_tests.crash.test_store_sweep:toy"

# Relative paths that data could name. Every one must be refused.
PATH_ATTACKS = {
    "empty": "",
    "dot": ".",
    "parent": "..",
    "parent slash": "../",
    "parent file": "../outside.txt",
    "two parents": "../../outside.txt",
    "parent in the middle": "a/../../outside.txt",
    "parent that stays inside": "a/../b",
    "parent at the end": "a/..",
    "dot in the middle": "a/./b",
    "dot first": "./a",
    "double slash": "a//b",
    "slash at the end": "a/",
    "absolute": "/etc/passwd",
    "absolute root": "/",
    "double absolute": "//etc/passwd",
    "absolute dev": "/dev/null",
    "absolute proc": "/proc/self/mem",
    "home": "~",
    "home file": "~/.ssh/id_rsa",
    "other home": "~root/.bashrc",
    "backslash": "a\\b",
    "backslash parent": "..\\outside.txt",
    "backslash mixed": "a/..\\..\\outside.txt",
    "network share": "\\\\server\\share",
    "device namespace": "\\\\?\\C:\\x",
    "drive": "C:/windows",
    "drive relative": "C:x",
    "small drive": "d:x",
    "drive backslash": "C:\\windows",
    "nul": "a\0b",
    "nul at the end": "a.wav\0",
    "nul before suffix": "../x\0.wav",
    "newline": "a\nb",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "escape sequence": "a\x1b[2Jb",
    "bell": "a\x07",
    "delete": "a\x7f",
    "backspace": "a\x08\x08b",
    "next line": "a\x85b",
    "control sequence introducer": "a\x9b2J",
    "lone surrogate": "a\ud800b",
    "undecodable byte": "a\udcffb",
    "long name": "x" * 256,
    "long name in bytes": "é" * 128,
    "long name of emoji": "🥁" * 64,
    "long folder": "x" * 256 + "/a",
    "long path": "/".join(["x" * 200] * 21),
    "link out": "link_out",
    "through link out": "link_out/x",
    "through two links": "link_twice/x",
    "link up": "link_up/outside.txt",
    "link to absolute file": "link_file",
    "link to device": "link_device",
    "circle of links": "circle_a",
    "through circle": "circle_a/x",
    "circle of one": "circle_self",
    "link to the root itself": "link_root",
    "link to nothing outside": "link_dangling",
    "relative link out": "link_relative/x",
    "link behind a folder": "folder/link_up/outside.txt",
}

STORE_ATTACKS: dict[str, Callable[[Store, Path], object]] = {
    "publish beside the root": lambda s, bad: s.publish(bad, b"x"),
    "publish json": lambda s, bad: s.publish_json(bad, {}),
    "publish frame": lambda s, bad: s.publish_frame(bad, pl.DataFrame({"a": [1]})),
    "append": lambda s, bad: s.append_line(bad, {}),
    "remove": lambda s, bad: s.remove(bad),
    "lock": lambda s, bad: s.lock(bad, "x").__enter__(),
}

LAYOUT_ATTACKS: dict[str, Callable[[DataLayout, str], object]] = {
    "raw": lambda layout, bad: layout.raw(bad),
    "events": lambda layout, bad: layout.events(bad),
    "provenance": lambda layout, bad: layout.provenance(bad),
    "quarantine": lambda layout, bad: layout.quarantine(bad),
    "features": lambda layout, bad: layout.features(bad),
    "run": lambda layout, bad: layout.run_dir(bad),
    "candidate": lambda layout, bad: layout.candidate(bad),
    "report area": lambda layout, bad: layout.report(bad, "x.json"),
    "report name": lambda layout, bad: layout.report("health", bad),
    "resolve": lambda layout, bad: layout.resolve(bad),
}


@pytest.fixture
def keep(data_root: Path) -> Store:
    """A store on an empty root."""
    return Store(data_root)


@pytest.fixture
def prison(tmp_path: Path) -> Path:
    """A root full of links that lead out of it, beside a file that must not change."""
    root = tmp_path / "prison"
    (root / "folder").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "outside.txt").write_text("untouched")
    for name, target in {
        "link_out": outside,
        "link_twice": root / "link_out",
        "link_up": tmp_path,
        "link_file": tmp_path / "outside.txt",
        "link_device": Path("/dev/zero"),
        "circle_a": root / "circle_b",
        "circle_b": root / "circle_a",
        "circle_self": root / "circle_self",
        "link_root": root,
        "link_dangling": tmp_path / "not-there-yet",
        "link_relative": Path("../outside"),
        "folder/link_up": Path("../.."),
    }.items():
        (root / name).symlink_to(target)
    return root


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, failpoint: str) -> Iterator[None]:
    """One failpoint in this process."""
    store.failpoint("reset")
    monkeypatch.setenv("BEATSIGHT_FAILPOINT", failpoint)
    yield
    monkeypatch.delenv("BEATSIGHT_FAILPOINT")


def dead_pid() -> int:
    """Pid of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_publish_reports_what_it_wrote(keep: Store, data_root: Path) -> None:
    """U1: content, digest, size and mode 0644, in a folder that did not exist; no other file appears."""
    receipt = keep.publish(data_root / "a" / "b" / "c.bin", b"drums" * 1_000)
    assert (data_root / "a/b/c.bin").read_bytes() == b"drums" * 1_000
    assert (receipt.sha256, receipt.n_bytes) == (sha256(b"drums" * 1_000).hexdigest(), 5_000)
    assert stat.S_IMODE((data_root / "a/b/c.bin").stat().st_mode) == 0o644
    assert list(tree(data_root)) == ["a/b/c.bin"]


def test_a_function_writes_in_blocks_and_any_buffer(keep: Store, data_root: Path) -> None:
    """What is hashed is what is stored, for bytes, arrays and blocks beyond 1 MiB."""

    def write(out: object) -> None:
        for block in (b"ab", bytearray(b"cd"), memoryview(b"x" * 3_000_000), memoryview(b"\1\0\2\0").cast("H")):
            assert out.write(block) == memoryview(block).nbytes  # type: ignore[attr-defined]

    receipt = keep.publish(data_root / "f.bin", write)
    stored = (data_root / "f.bin").read_bytes()
    assert stored == b"abcd" + b"x" * 3_000_000 + b"\1\0\2\0"
    assert receipt.sha256 == sha256(stored).hexdigest() == keep.sha256(data_root / "f.bin", fresh=True)


def test_a_bulk_file_is_stored_whole(keep: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose pages leave the cache while it is written holds the same bytes, and a disk that refuses on the way changes nothing."""
    pieces = [bytes([n]) * (store.BULK_BYTES // 2) for n in range(5)]
    receipt = keep.publish(data_root / "f.pcm", lambda out: [out.write(p) for p in pieces], is_bulk=True)
    assert (data_root / "f.pcm").read_bytes() == b"".join(pieces) and receipt.sha256 == sha256(b"".join(pieces)).hexdigest()

    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(StoreError) as caught:
        keep.publish(data_root / "f.pcm", lambda out: [out.write(p) for p in pieces[:2]], is_bulk=True)
    assert caught.value.code == "no-space" and receipt.sha256 == store.hash_file(data_root / "f.pcm")
    assert [p.name for p in data_root.iterdir() if p.is_file()] == ["f.pcm"]


def test_an_exception_of_the_writer_changes_nothing(keep: Store, data_root: Path) -> None:
    """U1: the old version stays, no temporary file is left, and the caller's exception arrives as it is."""
    keep.publish(data_root / "f.bin", b"old")

    def write(out: object) -> None:
        out.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep.publish(data_root / "f.bin", write)
    assert (data_root / "f.bin").read_bytes() == b"old"
    assert not leftovers(data_root)


def test_a_size_that_was_promised_and_not_met_is_an_error(keep: Store, data_root: Path) -> None:
    """A short write is an error, not a shorter file."""
    with pytest.raises(StoreError, match=r"^short-write: 4 bytes were stored where 5 were due.*f\.bin"):
        keep.publish(data_root / "f.bin", lambda out: out.write(b"1234"), expect_bytes=5)
    assert not (data_root / "f.bin").exists()


def test_a_disk_that_keeps_less_than_it_says_is_caught(keep: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R15, a lying store: half of a write is lost without an error, in a writer that promised no size."""
    with failing(monkeypatch, "publish.write:2:short"), pytest.raises(StoreError, match="short-write"):
        keep.publish(data_root / "f.bin", lambda out: [out.write(b"x" * 100) for _ in range(3)])
    assert not tree(data_root)
    assert not leftovers(data_root)


def test_an_error_after_the_rename_does_not_claim_the_old_version(keep: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U12: the message tells which version is in place."""
    keep.publish(data_root / "f.bin", b"old")
    with failing(monkeypatch, "publish.folder:1:eio"), pytest.raises(StoreError, match="new version is in place"):
        keep.publish(data_root / "f.bin", b"new")
    with failing(monkeypatch, "publish.rename:1:eio"), pytest.raises(StoreError, match="previous version is untouched"):
        keep.publish(data_root / "f.bin", b"newer")
    assert (data_root / "f.bin").read_bytes() == b"new"


def test_a_folder_that_is_a_file_is_a_store_error(keep: Store, data_root: Path) -> None:
    """No raw OSError leaves the store: a file stands where a folder is due, a folder stands where the file is due."""
    keep.publish(data_root / "a", b"x")
    (data_root / "folder").mkdir()
    for target in (data_root / "a" / "b", data_root / "a" / "b" / "c", data_root / "folder"):
        with pytest.raises(StoreError, match="io-error"):
            keep.publish(target, b"x")
    assert not leftovers(data_root)


def test_the_longest_names_can_be_published(keep: Store, data_root: Path) -> None:
    """A name of 252 bytes leaves room for a temporary name (counted in bytes, not in letters)."""
    for name in ("🥁" * 63, "é" * 126, "x" * 255):
        keep.publish(data_root / name, b"x")
    assert len(tree(data_root)) == 3


def test_publishing_over_a_link_replaces_the_link(keep: Store, data_root: Path) -> None:
    """U6: what a link points to is not written."""
    keep.publish(data_root / "real.txt", b"real")
    (data_root / "link.txt").symlink_to(data_root / "real.txt")
    keep.publish(data_root / "link.txt", b"new")
    assert (data_root / "real.txt").read_bytes() == b"real"
    assert not (data_root / "link.txt").is_symlink()


def test_space_is_checked_before_work(keep: Store, data_root: Path) -> None:
    """Step 2 of the recipe: more than the disk holds is refused before the first byte, with the figures and the next step."""
    called = []
    with pytest.raises(StoreError, match=r"^no-space: 1,000,000,000,000,000,000 bytes are needed .* are free\. Free some space"):
        keep.publish(data_root / "f.bin", called.append, estimate_bytes=10**18)
    assert not called


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """R6 on a real file system: at each of 19 fill levels the old version stays, nothing is left over, and with space it succeeds."""
    root = tmp_path / "small"
    root.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=512k", "none", str(root)], capture_output=True, check=False).returncode
    ):
        pytest.skip("a tmpfs cannot be mounted here; test_store_sweep strikes the same places with ENOSPC")
    try:
        keep = Store(root)
        keep.publish(root / "f.bin", b"old")
        for level in range(19):
            ballast = root / "ballast"
            ballast.write_bytes(b"x" * 4096 * (level + 1))
            with pytest.raises(StoreError, match=r"no-space: the disk is full \([\d,]+ bytes were to be written\)"):
                keep.publish(root / "f.bin", lambda out: [out.write(b"n" * 4096) for _ in range(200)])
            assert (root / "f.bin").read_bytes() == b"old"
            assert not leftovers(root)
            ballast.unlink()
        keep.publish(root / "f.bin", b"n" * 100_000)
        assert (root / "f.bin").stat().st_size == 100_000
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_equal_objects_and_frames_give_equal_bytes(keep: Store, data_root: Path) -> None:
    """U9: key order, time and place do not reach the content; metadata does."""
    a = keep.publish_json(data_root / "a.json", {"b": 1, "a": [1.5, None, "é"]})
    b = keep.publish_json(data_root / "b.json", {"a": [1.5, None, "é"], "b": 1})
    frame = pl.DataFrame({"onset_time": [0.1, 0.2], "component": ["kick", "snare"]})
    c = keep.publish_frame(data_root / "c.parquet", frame, metadata={"beatsight": "{}"})
    d = keep.publish_frame(data_root / "d.parquet", frame.clone(), metadata={"beatsight": "{}"})
    assert a.sha256 == b.sha256
    assert c.sha256 == d.sha256
    assert pl.read_parquet(data_root / "c.parquet").equals(frame)
    assert pl.read_parquet_metadata(data_root / "c.parquet")["beatsight"] == "{}"


def test_bytes_of_a_table_do_not_tell_how_it_was_held(keep: Store, data_root: Path) -> None:
    """A part of a longer table, a copy of its rows, and the same rows in pieces are one file, columns of lists included."""
    names = pl.Series([f"voice {i % 7}" for i in range(400_000)])
    longer = pl.DataFrame({"hits": names.reshape((100_000, 4)).arr.to_list()}).with_row_index("row")
    part = longer[:30_000]
    ways = {
        "part": [part],
        "copy": [part[list(range(30_000))]],
        "pieces": [part[:1], part[1:20_000], part[20_000:]],
        "chunks": [pl.concat([part[:5], part[5:]])],
    }
    digests = {way: keep.publish_frames(data_root / f"{way}.parquet", frames, part.schema).sha256 for way, frames in ways.items()}
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize(("value", "code"), [(float("nan"), "not-finite"), (float("inf"), "not-finite"), ("\ud800", "not-text")])
def test_json_that_nobody_could_read_is_not_written(keep: Store, data_root: Path, value: object, code: str) -> None:
    """A report contains no NaN, no Infinity and no text that UTF-8 cannot hold."""
    with pytest.raises(StoreError, match=f"^{code}: "):
        keep.publish_json(data_root / "a.json", {"x": [value]})
    assert not tree(data_root)


def test_readers_always_see_one_whole_version(keep: Store, data_root: Path) -> None:
    """U1, U8, R11: four writers replace one file 100 times while a reader reads: every read is one whole version, and the digest cache is right."""
    target = data_root / "f.bin"
    keep.publish(target, b"\0" * 65_536)
    done = threading.Event()
    torn = []

    def read() -> None:
        while not done.is_set():
            content = target.read_bytes()
            if len(content) != 65_536 or len(set(content)) != 1:
                torn.append(content[:8])

    def write(version: int) -> None:
        for n in range(25):
            keep.publish(target, bytes([version * 25 + n]) * 65_536)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(version,)) for version in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not torn
    assert not leftovers(data_root)
    assert keep.sha256(target) == keep.sha256(target, fresh=True) == sha256(target.read_bytes()).hexdigest()


LOCKER = """
import sys
from pathlib import Path
from beatsight_assets.errors import Busy
from beatsight_assets.store import Store
root = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with Store(root).lock(root / "events", "beatsight merge " + sys.argv[2]):
        print("won", flush=True)
        sys.stdin.readline()
        Store(root).publish(root / "events" / "winner.txt", sys.argv[2].encode())
except Busy as busy:
    print(f"busy {busy.exit_code} {busy}", flush=True)
"""


def start_lockers(root: Path) -> list[subprocess.Popen[str]]:
    """Four processes at the start line."""
    command = [sys.executable, "-c", LOCKER, str(root)]
    lockers = [subprocess.Popen([*command, str(n)], stdin=-1, stdout=-1, text=True, cwd=REPOSITORY) for n in range(4)]
    for locker in lockers:
        assert locker.stdout is not None
        assert locker.stdout.readline() == "ready\n"
    return lockers


def say(locker: subprocess.Popen[str]) -> None:
    """Let it go on."""
    assert locker.stdin is not None
    locker.stdin.write("\n")
    locker.stdin.flush()


def test_four_writers_one_winner(keep: Store, data_root: Path) -> None:
    """U8, R11: of 4 processes one writes, 3 say busy (exit 2) with the holder's pid and command; after a kill the lock is free."""
    lockers = start_lockers(data_root)
    for locker in lockers:
        say(locker)
    said = [locker.stdout.readline() for locker in lockers if locker.stdout is not None]
    (winner,) = (n for n, line in enumerate(said) if line == "won\n")
    for line in said[:winner] + said[winner + 1 :]:
        assert line.startswith("busy 2 busy: events is being written by")
        assert f'"pid": {lockers[winner].pid}' in line
        assert f'"command": "beatsight merge {winner}"' in line
    with pytest.raises(Busy), keep.lock(data_root / "events", "me"):
        pass
    say(lockers[winner])
    for locker in lockers:
        locker.communicate()
    assert (data_root / "events" / "winner.txt").read_text() == str(winner)
    with (
        keep.lock(data_root / "events", "me"),
        pytest.raises(Busy, match=f'"pid": {os.getpid()}'),
        keep.lock(data_root / "events", "also me"),
    ):
        pass


def test_a_killed_holder_leaves_no_lock_and_no_temporary_files(keep: Store, data_root: Path) -> None:
    """U8: the kernel releases the lock of a killed process; the next holder deletes what the dead one left, and nothing else."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom beatsight_assets.store import Store\nr = Path(sys.argv[1])\n"
        "with Store(r).lock(r / 'events', 'x'):\n    Store(r).publish(r / 'events' / 'a.bin', b'x' * 100)\n"
    )
    environment = {**os.environ, "BEATSIGHT_FAILPOINT": "publish.half:1:kill"}
    killed = subprocess.run([sys.executable, "-c", code, str(data_root)], env=environment, cwd=REPOSITORY, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(leftovers(data_root)) == 1
    living = data_root / "events" / f".b.bin.{os.getpid()}.00c0ffee.tmp"
    living.write_bytes(b"being written")
    similar = data_root / "events" / "notes.tmp"
    similar.write_bytes(b"not ours")
    with keep.lock(data_root / "events", "me"):
        assert leftovers(data_root) == [living.relative_to(data_root).as_posix()]
    assert similar.exists()


def test_sweep_tells_a_dead_writer_from_a_reused_pid(keep: Store, data_root: Path) -> None:
    """A temporary file goes when its pid is dead, or belongs to a process that is younger than the file; folders too."""
    names = {
        f".a.{dead_pid()}.00000001.tmp": True,
        f".b.{os.getpid()}.00000002.tmp": False,
        ".c.999999999.00000003.tmp": True,
        ".d.0.00000004.tmp": False,  # no pid of ours
        "e.1.00000005.tmp": False,  # no leading dot
    }
    for name in names:
        (data_root / name).write_bytes(b"x")
    reused = data_root / f".f.{os.getpid()}.00000006.tmp"
    reused.write_bytes(b"x")
    os.utime(reused, (0, 0))  # written in 1970 by a process that had our pid
    folder = data_root / f".g.{dead_pid()}.00000007.tmp"
    (folder / "inside").mkdir(parents=True)
    assert keep.sweep(data_root) == 4
    assert {name for name in names if not (data_root / name).exists()} == {name for name, goes in names.items() if goes}
    assert not reused.exists()
    assert not folder.exists()


def test_the_first_file_into_a_folder_sweeps_it(keep: Store, data_root: Path) -> None:
    """U1: a writer that takes no lock on its target's folder leaves no temporary file of its dead predecessor either."""
    (data_root / f".a.{dead_pid()}.00000001.tmp").write_bytes(b"x")
    keep.publish(data_root / "b.bin", b"x")
    assert not leftovers(data_root)


def test_order_of_system_calls(data_root: Path) -> None:
    """R5: each file is synced before it is renamed, its folder after it, and the index comes after every part: 0 violations."""
    strace = shutil.which("strace")
    trace = data_root.parent / "trace.txt"
    if strace is None:
        pytest.skip("strace is not installed")
    (data_root / "raw").mkdir()
    (data_root / "raw" / "recipe.json").write_text('{"n_parts": 3, "version": 1}')
    command = [strace, "-f", "-y", "-qq", "-s", "300", "-e", "trace=fsync,rename,renameat,renameat2", "-o", str(trace)]
    command += [sys.executable, "-m", "beatsight_assets_tests.crash.sweep", TOY, str(data_root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if not trace.exists() or not trace.stat().st_size:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    calls = [
        (match.group(1), *re.findall(r'["<](/[^">]+)[">]', match.group(2)))
        for line in trace.read_text().splitlines()
        if (match := re.match(r"\d+ +(fsync|rename\w*)\((.*)\) += 0", line))
    ]
    ours = [call for call in calls if call[1].startswith(str(data_root))]
    renames = [n for n, call in enumerate(ours) if call[0].startswith("rename") and "/.cache/" not in call[1]]
    assert len(renames) == 3 + 1 + 1 + 1 + 2  # parts, table, index, summary, two receipts
    for n in renames:
        _, tmp, target = ours[n]
        assert ours[n - 1] == ("fsync", tmp), f"{target} got its name before its content was on disk"
        assert ours[n + 1] == ("fsync", str(Path(target).parent)), f"the folder of {target} was not synced after the rename"
    order = [Path(ours[n][2]).relative_to(data_root).as_posix() for n in renames]
    assert order.index("toy/INDEX.json") > max(order.index(name) for name in order if name.startswith(("toy/parts", "toy/table")))
    assert order[-1] == "receipts/summary.json"


def test_new_folders_are_synced_from_the_top(data_root: Path) -> None:
    """R5: a folder's own name is on disk before a file in it is: the parents of new folders are synced."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = data_root.parent / "trace.txt"
    code = "import sys\nfrom pathlib import Path\nfrom beatsight_assets.store import Store\nr = Path(sys.argv[1])\nStore(r).publish(r/'a'/'b'/'c', b'')"
    command = [strace, "-f", "-y", "-qq", "-e", "trace=fsync,mkdir", "-o", str(trace), sys.executable, "-c", code, str(data_root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if not trace.exists() or not trace.stat().st_size:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    calls = re.findall(rf"(fsync|mkdir)\([^/]*{re.escape(str(data_root))}([/\w]*)", trace.read_text())
    assert calls[:4] == [("mkdir", "/a"), ("fsync", ""), ("mkdir", "/a/b"), ("fsync", "/a")]


@pytest.mark.parametrize("relpath", PATH_ATTACKS.values(), ids=PATH_ATTACKS.keys())
def test_paths_from_data_stay_inside(prison: Path, relpath: str) -> None:
    """S1, U7: refused with path-escape (exit 3), in one line that is safe on a terminal."""
    with pytest.raises(InputError) as caught:
        store.contain(prison, relpath)
    assert caught.value.code == "path-escape"
    assert store.printable(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize("attack", STORE_ATTACKS.values(), ids=STORE_ATTACKS.keys())
def test_the_store_writes_nowhere_else(prison: Path, attack: Callable[[Store, Path], object]) -> None:
    """S1, U6, U7: no act of the store reaches beyond the root, by `..`, by a link, or at the root itself; the parent stays as it was."""
    outside = prison.parent
    before = {p: p.lstat().st_mtime_ns for p in (outside / "outside.txt", outside / "outside")} | {
        "names": sorted(p.name for p in outside.iterdir())
    }
    for bad in (
        "../outside.txt",
        "../new",
        "link_up/new",
        "link_out/new",
        "folder/link_up/new",
        "link_dangling",
        "circle_a/x",
        "a/../../new",
        "",
    ):
        with pytest.raises(InputError, match=r"^path-escape: "):
            attack(Store(prison), prison / bad)
    assert before == {p: p.lstat().st_mtime_ns for p in (outside / "outside.txt", outside / "outside")} | {
        "names": sorted(p.name for p in outside.iterdir())
    }


@pytest.mark.parametrize("attack", LAYOUT_ATTACKS.values(), ids=LAYOUT_ATTACKS.keys())
def test_names_from_users_and_configs_stay_inside(prison: Path, attack: Callable[[DataLayout, str], object]) -> None:
    """S1: run names, dataset names and report names cannot leave their folder (path-escape, exit 2 or 3)."""
    for bad in ("../x", "a/../../x", "/etc/passwd", "../..", "x/../..", "a\\b", "a\0b", "a\nb", "x" * 300, "\ud800"):
        with pytest.raises((ConfigError, InputError), match=r"^path-escape: "):
            attack(DataLayout(prison), bad)


def test_there_are_enough_attacks() -> None:
    """S1: at least 60 attempts."""
    assert len(PATH_ATTACKS) >= 60


@pytest.mark.parametrize(
    "relpath", ["a", "a/b.wav", "01 Kick – Überlauf 🥁.wav", "...", "a..b/c", "-x", "x" * 255, "folder/new", "take:2", "a~"]
)
def test_ordinary_paths_are_accepted(prison: Path, relpath: str) -> None:
    """Odd names that people really use are no attack."""
    assert store.contain(prison, relpath) == prison / relpath


def test_only_regular_files_are_read(data_root: Path) -> None:
    """U4, U7: a FIFO does not hang, a device does not end, a folder is no file, a missing file says so, each with a code."""
    os.mkfifo(data_root / "fifo")
    for path, code in (
        (data_root / "fifo", "path-escape"),
        (Path("/dev/zero"), "path-escape"),
        (data_root, "path-escape"),
        (data_root / "x", "missing-input"),
    ):
        for read in (store.hash_file, store.read_json, Store(data_root).sha256):
            with pytest.raises(BeatSightError, match=f"^{code}: "):
                read(path)


def test_reading_is_bounded(data_root: Path) -> None:
    """U7: a sparse file of 1 TB is refused by its size; nothing of it is read."""
    with open(data_root / "huge.json", "wb") as handle:
        handle.truncate(10**12)
    with pytest.raises(InputError, match=r"^resource-limit: 1,000,000,000,000 bytes; at most 1,073,741,824 are read"):
        store.read_json(data_root / "huge.json")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a file whose size is not what it yields (Linux /proc)")
def test_a_file_that_yields_more_than_its_size_is_refused() -> None:
    """R15, a lying store: bytes read and size must agree."""
    for read in (store.hash_file, lambda p: store.read_bytes(p, max_bytes=100_000)):
        with pytest.raises(InputError, match="changed-while-reading"):
            read(Path("/proc/self/status"))


def test_the_digest_cache_notices_what_it_can_and_fresh_notices_all(keep: Store, data_root: Path) -> None:
    """U10: new content is noticed by size, mtime or inode; a flip that keeps all three is noticed by `fresh`, and remembered."""
    path = data_root / "f.bin"
    old = keep.publish(path, b"0123456789").sha256
    info = path.stat()
    with open(path, "r+b") as handle:
        handle.write(b"X")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert keep.sha256(path) == old
    new = sha256(b"X123456789").hexdigest()
    assert keep.sha256(path, fresh=True) == new
    assert keep.sha256(path) == new
    os.utime(path, ns=(0, 1))
    assert keep.sha256(path) == new
    (data_root / "other").write_bytes(b"0123456789")
    os.utime(data_root / "other", ns=(0, 1))
    (data_root / "other").rename(path)
    assert keep.sha256(path) == old


def test_the_digest_cache_is_only_a_convenience(keep: Store, data_root: Path) -> None:
    """Without a cache, and with a damaged one, digests are computed again; reading alone does not create it in a folder that is not there."""
    path = data_root / "f.bin"
    receipt = keep.publish(path, b"0123456789")
    cache = data_root / ".cache" / "digests.db"
    cache.write_bytes(b"this is no database" * 1_000)
    assert [keep.sha256(path) for _ in range(3)] == [receipt.sha256] * 3
    shutil.rmtree(data_root / ".cache")
    (data_root / ".cache").write_bytes(b"a file where the folder should be")
    assert keep.sha256(path) == receipt.sha256
    elsewhere = Store(data_root / "not-there")
    assert elsewhere.sha256(path) == receipt.sha256
    assert not elsewhere.root.exists()


def test_removing_a_folder_takes_it_away_at_once(keep: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U1 for deletion: a folder is there whole or not at all; what an interruption leaves is swept; links are not followed."""
    for n in range(3):
        keep.publish(data_root / "bundle" / f"{n}.bin", b"x")
    keep.publish(data_root / "kept.bin", b"x")
    (data_root / "bundle" / "link").symlink_to(data_root / "kept.bin")
    with failing(monkeypatch, "remove.renamed:1:eio"), pytest.raises(StoreError, match=r"^io-error: cannot be deleted.*\(bundle\)"):
        keep.remove(data_root / "bundle")
    assert not (data_root / "bundle").exists()
    assert list(tree(data_root)) == ["kept.bin"]
    keep.publish(data_root / "bundle" / "0.bin", b"x")
    keep.remove(data_root / "bundle")
    keep.remove(data_root / "kept.bin")
    keep.remove(data_root / "never-there.bin")
    keep.remove(data_root / "never" / "there.bin")
    assert not tree(data_root)


def test_logs_grow_by_whole_lines(keep: Store, data_root: Path) -> None:
    """A torn last line is reported by the reader and cut by the next writer; it never grows into a broken line in the middle."""
    path = data_root / "runs" / "metrics.jsonl"
    assert store.read_lines(path) == ([], False)
    keep.append_line(path, {"step": 1, "loss": 0.5})
    keep.append_line(path, {"loss": 0.4, "step": 2})
    assert path.read_bytes() == b'{"loss": 0.5, "step": 1}\n{"loss": 0.4, "step": 2}\n'
    with open(path, "ab") as handle:
        handle.write(b'{"loss": 0.3, "st')
    assert store.read_lines(path) == ([{"loss": 0.5, "step": 1}, {"loss": 0.4, "step": 2}], True)
    keep.append_line(path, {"step": 3})
    assert store.read_lines(path) == ([{"loss": 0.5, "step": 1}, {"loss": 0.4, "step": 2}, {"step": 3}], False)


def test_a_log_line_is_stored_whole_or_not_at_all(keep: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R6 for logs: short writes and full disks leave the log as it was, with exit code 3."""
    path = data_root / "metrics.jsonl"
    keep.append_line(path, {"step": 1})
    for action, code in (("short", "short-write"), ("enospc", "no-space"), ("eio", "io-error")):
        with failing(monkeypatch, f"append.write:1:{action}"), pytest.raises(StoreError, match=f"^{code}: ") as caught:
            keep.append_line(path, {"step": 2})
        assert caught.value.exit_code == 3
        assert path.read_bytes() == b'{"step": 1}\n'


def test_a_broken_log_line_is_named(data_root: Path) -> None:
    """InputError bad-metadata with file and line."""
    path = data_root / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": NaN}\n')
    with pytest.raises(InputError, match=r"bad-metadata.*metrics\.jsonl:2"):
        store.read_lines(path)


@pytest.mark.parametrize("value", ["", "x", "*:1", "*:x:kill", "*:1:explode", "*:-1:kill", "*:1:kill:2"])
def test_a_failpoint_that_is_misspelled_is_an_error(keep: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A sweep that strikes nothing because of a typing error must not look like a success; an empty variable is no failpoint."""
    monkeypatch.setenv("BEATSIGHT_FAILPOINT", value)
    if not value:
        keep.publish(data_root / "f", b"")
        return
    with pytest.raises(ConfigError, match=r"^bad-failpoint: "):
        keep.publish(data_root / "f", b"")


def test_failpoints_count_from_one_and_strike_once(keep: Store, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`name:n:action` strikes the n-th hit of that name only; hits are counted anew when the variable was unset."""
    for _ in range(2):
        with failing(monkeypatch, "publish.fsync:2:eio"):
            keep.publish(data_root / "a", b"1")
            with pytest.raises(StoreError):
                keep.publish(data_root / "a", b"2")
            keep.publish(data_root / "a", b"3")
    assert (data_root / "a").read_bytes() == b"3"


def test_printable_text_cannot_drive_a_terminal() -> None:
    """S5: control, bidirectional, zero-width and line-ending characters are escaped; letters stay."""
    assert store.printable("kick \x1b[31m\u202egnp.exe\u2028\x9b\ud800\u200b – Überlauf 🥁") == (
        "kick \\x1b[31m\\u202egnp.exe\\u2028\\x9b\\ud800\\u200b – Überlauf 🥁"
    )


def test_many_small_files_are_not_slow(keep: Store, data_root: Path) -> None:
    """The store's own work is under 5 ms of processor time per small file (2 ms measured with fsync on two cores, most of it the disk)."""
    names = count()
    before = process_time()
    for _ in range(50):
        keep.publish(data_root / f"{next(names)}.json", json.dumps({"n": 1}).encode())
    assert process_time() - before < 50 * 0.1  # twenty times what is due: a slow machine must not turn this red
