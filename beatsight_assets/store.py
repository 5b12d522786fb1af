"""Publishing files whole, knowing their digests, staying inside the data root, one writer at a time.

Belongs here: the only code that gives a file its final name. Does not belong here: what is in the files.
A second way to give a file its final name is a defect (a test looks for it).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import sqlite3
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from beatsight_assets import clock
from beatsight_assets.errors import BeatSightError, Busy, ConfigError, InputError, StoreError
from beatsight_assets.safejson import parse_json

if TYPE_CHECKING:
    import polars as pl

HASH_THREADS = 2  # two already outrun a cold disk (design/performance.md, P11)
NAMING_S = 2.0  # a holder that was interrupted right after it took its lock has named itself by then
QUERY_ROWS = 500  # values of one SQL statement
ROW_GROUP_ROWS = 250_000  # design/performance.md: what one read takes into memory
BLOCK_BYTES = 1 << 20  # 1 MiB: large enough that hashing, not call overhead, sets the pace
BULK_BYTES = 1 << 24  # of a bulk file: synced and dropped from the cache together
SPARE_SPACE_RATIO = 1.1  # design/reliability.md section 2, step 2
MAX_NAME_BYTES = 255  # what ext4, xfs and apfs allow for one path component
MAX_PATH_BYTES = 4095  # PATH_MAX of Linux without its closing NUL
MAX_JSON_BYTES = 1 << 30  # 1 GiB: a bound on memory, far above the documents we write
TMP_NAME = re.compile(r"^\..+\.([1-9]\d{0,8})\.[0-9a-f]{8}\.tmp$", re.DOTALL)
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: control, format (bidirectional too), surrogate, line and paragraph ends
TMP_STEM_BYTES = 200  # leaves 55 bytes for the pid, the random part and the suffix
ERRNO_ACTIONS = {"eio": errno.EIO, "enospc": errno.ENOSPC, "edquot": errno.EDQUOT, "erofs": errno.EROFS}
SIGNAL_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
ACTIONS = ("short", *SIGNAL_ACTIONS, *ERRNO_ACTIONS)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
FAILPOINTS: set[str] = set()

_hits = 0
_hits_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `publish` wrote: final path, sha256 of the content, size in bytes."""

    path: Path
    sha256: str
    n_bytes: int


def failpoint(name: str) -> str | None:
    """Do nothing, unless `BEATSIGHT_FAILPOINT=name:n:kill|stop|short|eio|enospc|edquot|erofs` names this place and this is the n-th hit.

    The name is a pattern: `*` is any place, `publish.*` any step of a publish. A point that strikes says so on stderr (`failpoint <name> <action>`).
    A stopped process goes on when it is continued. Returns "short" when the caller should write less than it was given.

    Raises
    ------
    OSError : for the four actions that are named after an errno
    ConfigError `bad-failpoint` : the variable does not have this form
    """
    global _hits
    FAILPOINTS.add(name)
    wanted = os.environ.get("BEATSIGHT_FAILPOINT")
    if not wanted:
        _hits = 0
        return None
    pattern, _, rest = wanted.partition(":")
    number, _, action = rest.partition(":")
    if not number.isdigit() or action not in ACTIONS:
        choices = ", ".join(ACTIONS)
        raise ConfigError(f"{wanted!r} is not name:n:action with one of {choices}", code="bad-failpoint", where="BEATSIGHT_FAILPOINT")
    if not fnmatchcase(name, pattern):
        return None
    with _hits_lock:
        _hits += 1
        hit = _hits
    if hit != int(number):
        return None
    os.write(2, f"failpoint {name} {action}\n".encode())
    if action in SIGNAL_ACTIONS:
        os.kill(os.getpid(), SIGNAL_ACTIONS[action])
    if action in ERRNO_ACTIONS:
        raise OSError(ERRNO_ACTIONS[action], os.strerror(ERRNO_ACTIONS[action]), name)
    return action


def is_plain_path(relpath: str) -> bool:
    """A relative POSIX path without `.`, `..`, `~`, backslash, drive letter, control characters or names over 255 bytes."""
    try:
        n_bytes = [len(part.encode()) for part in relpath.split("/")]
    except UnicodeEncodeError:  # a lone surrogate has no bytes on disk
        return False
    return not (
        relpath.startswith("~")
        or "\\" in relpath
        or re.match(r"[A-Za-z]:", relpath) is not None
        or not ((relpath.isascii() and relpath.isprintable()) or all(unicodedata.category(c) != "Cc" for c in relpath))
        or any(part in ("", ".", "..") for part in relpath.split("/"))
        or max(n_bytes) > MAX_NAME_BYTES
        or sum(n_bytes) + len(n_bytes) > MAX_PATH_BYTES
    )


def contain(root: Path, relpath: str) -> Path:
    """Path of `relpath` below `root`.

    Raises
    ------
    InputError `path-escape` : not a plain relative path (see `is_plain_path`), or a symbolic link leads out of `root`
    """
    if is_plain_path(relpath):
        path = root / relpath
        if not _has_links(root, relpath.split("/")) or is_below(root, path):
            return path
    raise InputError(
        f"path {printable(relpath)[:200]!r} does not stay below its root. Give a relative POSIX path without '..'", code="path-escape"
    )


def is_below(root: Path, path: Path) -> bool:
    """`path` lies below `root` (and is not `root` itself) after following symbolic links."""
    if path.is_relative_to(root) and not _has_links(root, path.parts[len(root.parts) :]):
        return True
    try:
        found, ground = path.resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, a NUL, a name no file system takes
        return False
    return found != ground and found.is_relative_to(ground)


def _has_links(root: Path, parts: Sequence[str]) -> bool:
    """Whether a path needs resolving: a link or `..` on the way down from `root`, or nothing below it. Three calls instead of twenty."""
    here = str(root)
    for part in parts:
        here = f"{here}/{part}"
        if part == ".." or "\0" in part or os.path.islink(here):
            return True
    return not parts


def printable(text: str) -> str:
    """Text that is safe on a terminal: control and bidirectional characters are escaped."""

    def shown(c: str) -> str:
        return c.encode("unicode_escape", "surrogatepass").decode() if unicodedata.category(c) in UNPRINTABLE else c

    return "".join(map(shown, text))


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file opened for reading, without waiting for anybody.

    Raises
    ------
    InputError `missing-input`; `path-escape` : a folder, a FIFO, a socket or a device
    StoreError `io-error` : it is there and cannot be read
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("file does not exist. Run the step that writes it first", code="missing-input", where=str(path)) from error
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise InputError("is not a regular file", code="path-escape", where=str(path)) from error
        raise StoreError(f"cannot be opened: {error.strerror}", code="io-error", where=str(path)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputError("is not a regular file", code="path-escape", where=str(path))
    with open(fd, "rb", buffering=0) as handle:
        try:
            yield handle
        except OSError as error:
            raise StoreError(f"cannot be read: {error.strerror}", code="io-error", where=str(path)) from error


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Content of a regular file of at most `max_bytes`; nothing beyond that is read.

    Raises
    ------
    InputError : see `open_regular`; `resource-limit`, larger than allowed; `changed-while-reading`, fewer bytes than its size
    """
    with open_regular(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > max_bytes:
            raise InputError(f"{size:,} bytes; at most {max_bytes:,} are read", code="resource-limit", where=str(path))
        content = b"".join(iter(lambda: handle.read(BLOCK_BYTES), b"")) if size > BLOCK_BYTES else handle.read(size + 1)
    if len(content) != size:
        raise InputError(f"{len(content):,} bytes were read of {size:,}", code="changed-while-reading", where=str(path))
    return content


def hash_file(path: Path) -> str:
    """sha256 of a regular file's content, hex.

    Raises
    ------
    InputError : see `open_regular`; `changed-while-reading`, the bytes read are not as many as its size says before and after
    """
    with open_regular(path) as handle:
        return _hash(handle, path)


def _hash(handle: BinaryIO, path: Path) -> str:
    digest = hashlib.sha256()
    before = os.fstat(handle.fileno())
    n_bytes = 0
    while block := handle.read(BLOCK_BYTES):
        digest.update(block)
        n_bytes += len(block)
    after = os.fstat(handle.fileno())
    if n_bytes != after.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(
            f"{n_bytes:,} bytes were read of {after.st_size:,}. Repeat when nobody writes it", code="changed-while-reading", where=str(path)
        )
    return digest.hexdigest()


def to_json_bytes(obj: Any, *, indent: int | None = 1) -> bytes:
    """JSON with sorted keys and one trailing newline. NaN and Infinity are refused: a report never contains them.

    Raises
    ------
    StoreError `not-finite`; `not-text` : a string that UTF-8 cannot hold (a lone surrogate)
    """
    try:
        return (json.dumps(obj, sort_keys=True, ensure_ascii=False, indent=indent, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise StoreError(f"a text cannot be written as UTF-8 ({error.reason}); escape it with printable()", code="not-text") from error
    except ValueError as error:
        raise StoreError(f"a figure is not a finite number ({error}); write null with a reason instead", code="not-finite") from error


def read_json(path: Path) -> Any:
    """JSON of a file, at most 1 GiB.

    Raises
    ------
    InputError : see `open_regular`, `read_bytes` and `safejson.parse_json`
    """
    return parse_json(read_bytes(path, max_bytes=MAX_JSON_BYTES), where=str(path))


class _HashingFile(io.RawIOBase):
    """File object that hashes while writing, so content is read once."""

    def __init__(self, fd: int, *, is_bulk: bool = False) -> None:
        self._fd = fd
        self._is_bulk = is_bulk
        self._n_synced = 0
        self.digest = hashlib.sha256()
        self.n_bytes = 0
        self.failure: OSError | None = None  # what the disk said, whatever a writer between makes of it

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("writers use write(), so that what is hashed is what is stored")

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            due = (
                view[: len(view) // 2] if failpoint("publish.write") == "short" else view
            )  # "short" is a disk that claims more than it keeps
            written = 0
            while written < len(due):
                written += os.write(self._fd, due[written : written + BLOCK_BYTES])
            if self._is_bulk and self.n_bytes + written - self._n_synced >= BULK_BYTES:
                os.fdatasync(self._fd)
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self._n_synced = self.n_bytes + written
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(view)
        self.n_bytes += len(view)
        return len(view)


def _write_with(write: Callable[[IO[bytes]], object], out: _HashingFile) -> None:
    """Let a library write into `out`. What the disk said comes first: a library wraps it in an error of its own."""
    try:
        write(out)  # type: ignore[arg-type]
    except BaseException as error:
        if out.failure is not None and error is not out.failure:
            raise out.failure from error
        raise


class Store:
    """Everything below one root folder is read and written through this.

    `remember`: digests are kept in <root>/.cache. Without it nothing but what is published appears there: a folder of the user's.
    """

    def __init__(self, root: Path, *, remember: bool = True) -> None:
        self.root = root
        self.remember = remember
        self._swept: set[Path] = set()

    def publish(
        self,
        target: Path,
        write: bytes | Callable[[IO[bytes]], object],
        *,
        expect_bytes: int | None = None,
        estimate_bytes: int | None = None,
        is_bulk: bool = False,
    ) -> Receipt:
        """Give `target` new content so that readers see the old or the new version, whole, whatever happens meanwhile.

        Parameters
        ----------
        write : the content, or a function that writes it to the file object it is given
        expect_bytes : size it must have; for `bytes` it is known
        estimate_bytes : size it will have or less; free space is checked before work starts
        is_bulk : much is written and not read soon: its pages leave the cache as they reach the disk. Fresh pages for each cost seven times
            the writing itself, and would push out what others read

        Raises
        ------
        InputError `path-escape` : target is not below the root
        StoreError `no-space`, `io-error`, `short-write` : no temporary file is left; the message says which version is in place
        """
        self._require_below(target)
        content = write
        if isinstance(content, bytes):
            estimate_bytes = expect_bytes = len(content)
        tmp = _tmp_path(target)
        out = None
        is_new = False
        try:
            _make_folder(target.parent)
            self._sweep_once(target.parent)
            if estimate_bytes is not None:
                self._require_space(target, estimate_bytes)
            failpoint("publish.open")
            fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                out = _HashingFile(fd, is_bulk=is_bulk)
                if isinstance(content, bytes):
                    half = len(content) // 2
                    out.write(content[:half])
                    failpoint("publish.half")
                    out.write(content[half:])
                else:
                    _write_with(content, out)  # type: ignore[arg-type]
                    failpoint("publish.half")
                due = out.n_bytes if expect_bytes is None else expect_bytes
                if not os.fstat(fd).st_size == out.n_bytes == due:
                    raise StoreError(
                        f"{os.fstat(fd).st_size:,} bytes were stored where {due:,} were due. The previous version is untouched",
                        code="short-write",
                        where=self.rel(target),
                    )
                failpoint("publish.fsync")
                os.fsync(fd)
                os.fchmod(fd, 0o644)
                key = _cache_key(target, os.fstat(fd))
            finally:
                os.close(fd)
            failpoint("publish.rename")
            os.replace(tmp, target)
            is_new = True
            failpoint("publish.folder")
            sync_folder(target.parent)
        except OSError as error:
            _drop(tmp)
            n_bytes = estimate_bytes if estimate_bytes is not None else out.n_bytes if out is not None else 0
            raise _from_os(error, self.rel(target), n_bytes, is_new=is_new) from error
        except BaseException:
            _drop(tmp)
            raise
        digest = out.digest.hexdigest()
        self._cache_write(key, digest)
        return Receipt(target, digest, out.n_bytes)

    def publish_batch(self, contents: Sequence[tuple[Path, bytes]]) -> None:
        """`publish` many small files with one sync for all of them: one fsync per file would cost a factor of 60.

        Each file is old or new, whole, and all are on disk before the first gets its name. Whoever names them in a receipt does so afterwards.

        Raises
        ------
        InputError `path-escape`
        StoreError : as `publish`; no temporary file is left, files that had their name already keep it
        """
        made: list[tuple[Path, Path]] = []
        folders: dict[Path, None] = {}
        here, n_bytes = self.root, 0
        try:
            for target, content in contents:
                self._require_below(target)
                if target.parent not in folders:
                    _make_folder(target.parent)
                    self._sweep_once(target.parent)
                    folders[target.parent] = None
                here, n_bytes = target, len(content)
                failpoint("batch.open")
                tmp = _tmp_path(target)
                fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                made.append((tmp, target))
                try:
                    _HashingFile(fd).write(content)
                    if os.fstat(fd).st_size != len(content):
                        raise StoreError(
                            f"{os.fstat(fd).st_size:,} bytes were stored where {len(content):,} were due. The previous version is untouched",
                            code="short-write",
                            where=self.rel(target),
                        )
                    os.fchmod(fd, 0o644)
                finally:
                    os.close(fd)
            failpoint("batch.sync")
            _sync_file_system(self.root)
            while made:
                here = made[0][1]
                failpoint("batch.rename")
                os.replace(*made[0])
                made.pop(0)
            for folder in folders:
                failpoint("batch.folder")
                sync_folder(folder)
        except OSError as error:
            raise _from_os(error, self.rel(here), n_bytes, is_new=False) from error
        finally:
            for tmp, _ in made:
                _drop(tmp)

    def publish_json(self, target: Path, obj: Any) -> Receipt:
        """`publish` a JSON document with sorted keys; equal objects give equal bytes."""
        return self.publish(target, to_json_bytes(obj))

    def publish_frame(self, target: Path, frame: pl.DataFrame, *, metadata: Mapping[str, str] | None = None) -> Receipt:
        """`publish` a table as Parquet (zstd, 250 k rows per row group); equal frames give equal bytes."""
        return self.publish_frames(target, [frame], frame.schema, metadata=metadata)

    def publish_frames(
        self, target: Path, frames: Iterable[pl.DataFrame], schema: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
    ) -> Receipt:
        """`publish_frame` for a table that comes in pieces and is never whole in memory; where it was cut does not show in the bytes.

        `frames` is walked while the file is written, in this thread; what it raises is raised here and nothing is published.
        """

        def write(out: IO[bytes]) -> None:
            whole_blocks = io.BufferedWriter(out, BLOCK_BYTES)  # type: ignore[type-var]
            try:
                _sink(frames, schema, dict(metadata or {}), whole_blocks)
                whole_blocks.flush()
            finally:
                with suppress(OSError):  # known to `publish`; what is left over belongs to a file that will not be
                    whole_blocks.detach()
            failure: OSError | None = getattr(out, "failure", None)
            if failure is not None:  # the Parquet writer may forget what the disk said
                raise failure

        return self.publish(target, write)

    def append_line(self, target: Path, obj: Any) -> None:
        """Append one JSON line in a single write, after cutting what a killed writer left of its last line. For growing logs only.

        Raises
        ------
        InputError `path-escape`
        StoreError `no-space`, `io-error`, `short-write` : the log is as it was
        """
        self._require_below(target)
        line = to_json_bytes(obj, indent=None)
        try:
            _make_folder(target.parent)
            fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                end = _end_of_last_line(fd)
                os.ftruncate(fd, end)
                n_written = os.write(fd, line[: len(line) // 2] if failpoint("append.write") == "short" else line)
                if n_written != len(line):
                    os.ftruncate(fd, end)
                    raise StoreError(f"{n_written:,} of {len(line):,} bytes were stored", code="short-write", where=self.rel(target))
            finally:
                os.close(fd)
        except OSError as error:
            raise _from_os(error, self.rel(target), len(line), is_new=False) from error

    def remove(self, target: Path) -> None:
        """Delete a file or a folder below the root. A folder disappears at once for readers, then its content goes.

        Raises
        ------
        InputError `path-escape`
        StoreError `io-error`
        """
        self._require_below(target)
        try:
            if target.is_dir() and not target.is_symlink():
                tmp = _tmp_path(target)
                os.replace(target, tmp)
                failpoint("remove.renamed")
                _delete_tree(tmp)
            else:
                target.unlink(missing_ok=True)
            if target.parent.is_dir():
                sync_folder(target.parent)
        except OSError as error:
            raise StoreError(f"cannot be deleted: {error.strerror}", code="io-error", where=self.rel(target)) from error

    def put_in_place(self, made: Path, target: Path) -> None:
        """Give a finished folder its final name; the folder that had it before goes.

        The two change names in one step, so that there always is one. Where the system cannot do that, it takes two, and a kill in between
        leaves `made` whole under its old name.

        Raises
        ------
        InputError `path-escape`
        StoreError `io-error`
        """
        self._require_below(target)
        self._require_below(made)
        try:
            old = made
            failpoint("swap.begin")
            if not target.exists():
                os.replace(made, target)
            elif not _exchange(made, target):
                old = _tmp_path(target)
                os.replace(target, old)
                failpoint("swap.between")
                os.replace(made, target)
            sync_folder(target.parent)
            failpoint("swap.done")
            if old.exists():
                self.remove(old)
        except OSError as error:
            raise StoreError(f"cannot be renamed: {error.strerror}", code="io-error", where=self.rel(target)) from error

    def rel(self, path: Path) -> str:
        """POSIX path below the root; the only form in which paths are stored."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return path.as_posix()

    def sha256(self, path: Path, *, fresh: bool = False) -> str:
        """Digest of a file, remembered by (path, size, mtime_ns, inode).

        `fresh` reads the content whatever is remembered: bit rot keeps all four.

        Raises
        ------
        InputError : see `hash_file`
        """
        with open_regular(path) as handle:
            key = _cache_key(path, os.fstat(handle.fileno()))
            known = None if fresh else self._cache_read(key)
            if known is None:
                known = _hash(handle, path)
                self._cache_write(key, known)
        return known

    def sha256_all(self, paths: Sequence[Path], *, fresh: bool = False) -> list[str | BeatSightError]:
        """Digests of many files as `sha256` gives them, the unknown ones by two threads; a file that cannot be read is its error, as a value."""
        keys = _cache_keys(paths)
        known = {} if fresh else self._cache_read_all([k for k in keys if k is not None])
        found: dict[int, str | BeatSightError] = {n: known[k] for n, k in enumerate(keys) if k is not None and k in known}
        missing = [n for n in range(len(paths)) if n not in found]

        def digest(n: int) -> tuple[tuple[str, int, int, int], str] | BeatSightError:
            try:
                with open_regular(paths[n]) as handle:
                    return _cache_key(paths[n], os.fstat(handle.fileno()), keys[n]), _hash(handle, paths[n])
            except BeatSightError as error:
                return error

        # Handing over a file costs more than hashing a small one; 64 hand-overs keep the threads equally busy.
        step = max(1, len(missing) // 64)
        parts = [missing[i : i + step] for i in range(0, len(missing), step)]
        with ThreadPoolExecutor(HASH_THREADS if len(missing) > 1 else 1) as pool:
            made = [m for part in pool.map(lambda part: [digest(n) for n in part], parts) for m in part]
        self._cache_write_all([m for m in made if not isinstance(m, BeatSightError)])
        found |= {n: m if isinstance(m, BeatSightError) else m[1] for n, m in zip(missing, made, strict=True)}
        return [found[n] for n in range(len(paths))]

    def n_remembered(self, paths: Sequence[Path]) -> int:
        """How many of these files `sha256_all` would not read."""
        keys = [k for k in _cache_keys(paths) if k is not None]
        return sum(k in known for k in keys) if (known := self._cache_read_all(keys)) else 0

    @contextmanager
    def lock(self, folder: Path, command: str) -> Iterator[None]:
        """Hold `<folder>/.lock`. The kernel releases it when the process dies, so it cannot go stale.

        Raises
        ------
        Busy : another process holds it; the message names its pid and command
        InputError `path-escape`
        StoreError `io-error` : the lock cannot be taken at all (read-only, or a file system without locks)
        """
        self._require_below(folder)
        try:
            _make_folder(folder)
            fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"cannot be locked: {error.strerror}", code="io-error", where=self.rel(folder)) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(fd, 0)
                holder = {"pid": os.getpid(), "started": clock.utc_now().isoformat(), "command": command}
                os.pwrite(fd, to_json_bytes(holder, indent=None), 0)
                self.sweep(folder)
            except BlockingIOError:
                owner = printable(_read_holder(fd)) or "another process"
                raise Busy(f"{self.rel(folder)} is being written by {owner}. Wait for it, then repeat the command", code="busy") from None
            except OSError as error:
                raise StoreError(f"cannot be locked: {error.strerror}", code="io-error", where=self.rel(folder)) from error
            self._swept.clear()
            yield
        finally:
            os.close(fd)

    def sweep(self, folder: Path) -> int:
        """Delete what dead writers left directly in `folder`; returns how many. A temporary file of a living writer stays."""
        n_swept = 0
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.endswith(".tmp")]
        for entry in found:
            match = TMP_NAME.match(entry.name)
            if match is None or _is_writing(int(match.group(1)), Path(entry.path)):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
            n_swept += 1
        return n_swept

    def _sweep_once(self, folder: Path) -> None:
        """The first file that a run publishes into a folder clears what a killed run left there."""
        if folder not in self._swept:
            self.sweep(folder)
            self._swept.add(folder)

    def _require_below(self, target: Path) -> None:
        if not is_below(self.root, target):
            raise InputError(f"{printable(str(target))[:200]} is not below {self.root}", code="path-escape")

    def _require_space(self, target: Path, n_bytes: int) -> None:
        free = shutil.disk_usage(target.parent).free
        if free < SPARE_SPACE_RATIO * n_bytes:
            raise StoreError(
                f"{n_bytes:,} bytes are needed (with 10 % to spare) and {free:,} are free. Free some space, then repeat the command",
                code="no-space",
                where=self.rel(target),
            )

    def _cache(self) -> sqlite3.Connection:
        folder = self.root / ".cache"
        folder.mkdir(exist_ok=True)
        connection = sqlite3.connect(folder / "digests.db", timeout=10.0, isolation_level=None)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=off")  # rebuilt when it does not match, so it need not survive power loss
        connection.execute("create table if not exists digests(path text primary key, size int, mtime_ns int, inode int, sha256 text)")
        return connection

    def _cache_read(self, key: tuple[str, int, int, int]) -> str | None:
        if not (self.root / ".cache" / "digests.db").exists():
            return None
        rows = self._cache_run("select sha256 from digests where path=? and size=? and mtime_ns=? and inode=?", *key)
        return str(rows[0][0]) if rows else None

    def _cache_write(self, key: tuple[str, int, int, int], digest: str) -> None:
        self._cache_run("insert or replace into digests values(?,?,?,?,?)", *key, digest)

    def _cache_read_all(self, keys: Sequence[tuple[str, int, int, int]]) -> dict[tuple[str, int, int, int], str]:
        if not (self.root / ".cache" / "digests.db").exists():
            return {}
        found: dict[tuple[str, int, int, int], str] = {}
        for start in range(0, len(keys), QUERY_ROWS):
            part = keys[start : start + QUERY_ROWS]
            marks = ",".join("?" * len(part))
            query = f"select path, size, mtime_ns, inode, sha256 from digests where path in ({marks})"  # noqa: S608 only question marks
            rows = self._cache_run(query, *(k[0] for k in part))
            found |= {(str(r[0]), int(r[1]), int(r[2]), int(r[3])): str(r[4]) for r in rows}
        return found

    def _cache_write_all(self, digests: Sequence[tuple[tuple[str, int, int, int], str]]) -> None:
        for start in range(0, len(digests), QUERY_ROWS // 5):
            part = digests[start : start + QUERY_ROWS // 5]
            marks = ",".join(["(?,?,?,?,?)"] * len(part))
            self._cache_run(f"insert or replace into digests values {marks}", *(v for key, digest in part for v in (*key, digest)))  # noqa: S608

    def _cache_run(self, statement: str, *values: str | int) -> list[tuple[Any, ...]]:
        """Rows of a statement; none when the cache is off or cannot be used, for without it digests are computed again."""
        if not self.remember:
            return []
        try:
            connection = self._cache()
            try:
                return connection.execute(statement, values).fetchall()
            finally:
                connection.close()
        except sqlite3.OperationalError:  # locked, read-only or full
            return []
        except sqlite3.DatabaseError:  # damaged: start it again
            _drop(self.root / ".cache" / "digests.db")
            return []
        except OSError:
            return []


def read_lines(path: Path) -> tuple[list[Any], bool]:
    """Rows of a growing JSONL log, and whether it ends in a torn line, which is left out.

    Raises
    ------
    InputError `bad-metadata` : a whole line is not JSON as `safejson.parse_json` takes it
    """
    if not path.exists():
        return [], False
    whole, _, rest = read_bytes(path, max_bytes=MAX_JSON_BYTES).rpartition(b"\n")
    rows = [parse_json(line, where=f"{path}:{n}") for n, line in enumerate(whole.split(b"\n"), 1) if line]
    return rows, bool(rest)


def _read_holder(fd: int) -> str:
    """Who holds a lock file; its name follows the lock by some microseconds of its holder, so an empty file is looked at again."""
    started_s = clock.monotonic_s()
    while not (text := os.pread(fd, 4096, 0).decode(errors="replace").strip()) and clock.monotonic_s() - started_s < NAMING_S:
        os.sched_yield()
    return text


def sync_folder(folder: Path) -> None:
    """fsync a folder so that a new name survives power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(folder: Path) -> int:
    """Free space where a folder is or would be."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _sync_file_system(folder: Path) -> None:
    """Everything written to the file system of a folder is on disk when this returns."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:
            os.sync()
        elif syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(fd)


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents; each new name is on disk before anything is put into it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _delete_tree(folder: Path) -> None:
    """Delete a folder of which somebody else, sweeping, may delete parts at the same time."""

    def unless_gone(_: object, path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(info[1], FileNotFoundError):
            raise info[1]

    shutil.rmtree(folder, onerror=unless_gone)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step; False where the kernel or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(one))


def _tmp_path(target: Path) -> Path:
    stem = target.name.encode()[:TMP_STEM_BYTES].decode(errors="ignore")
    return target.parent / f".{stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def _drop(path: Path) -> None:
    with suppress(OSError):  # it was never made, or the disk is gone; the next writer's sweep takes it
        path.unlink()


def _end_of_last_line(fd: int) -> int:
    """Bytes up to and including the last newline."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _cache_key(path: Path, info: os.stat_result, known: tuple[str, int, int, int] | None = None) -> tuple[str, int, int, int]:
    """What a digest is remembered by; the path from the key the file had a moment ago, if that is at hand."""
    return (known[0] if known else str(path.resolve()), info.st_size, info.st_mtime_ns, info.st_ino)


def _cache_keys(paths: Sequence[Path]) -> list[tuple[str, int, int, int] | None]:
    """`_cache_key` of many files; folders are resolved once. None for what cannot be looked at."""
    folders: dict[str, str] = {}
    keys: list[tuple[str, int, int, int] | None] = []
    for path in paths:
        folder, name = os.path.split(path)
        try:
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                keys.append(_cache_key(path, os.stat(path)))
                continue
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            keys.append((f"{folders[folder]}/{name}", info.st_size, info.st_mtime_ns, info.st_ino))
        except (OSError, ValueError):
            keys.append(None)
    return keys


def _sink(frames: Iterable[pl.DataFrame], schema: Mapping[str, Any], metadata: dict[str, str], out: IO[bytes]) -> None:
    """Write frames as one Parquet file. The writer runs in a thread of its own and is fed whole row groups through a short queue."""
    from queue import Full, Queue

    from polars.io.plugins import register_io_source

    groups: Queue[pl.DataFrame | None] = Queue(maxsize=1)
    stopped = threading.Event()

    def feed(*_: object) -> Iterator[pl.DataFrame]:
        while (group := groups.get()) is not None:
            yield group
        if stopped.is_set():
            raise StoreError("what was to be written could not be made", code="io-error")

    def write() -> None:
        source = register_io_source(feed, schema=dict(schema), validate_schema=False)
        source.sink_parquet(
            out,
            compression="zstd",
            compression_level=1,  # 3 M events: 3.9 CPU s against 4.6 at level 3, for 3 % more bytes
            row_group_size=ROW_GROUP_ROWS,
            metadata=metadata,
            engine="streaming",
        )

    with ThreadPoolExecutor(1, "parquet") as pool:
        writing = pool.submit(write)

        def put(group: pl.DataFrame | None) -> None:
            while not writing.done():
                try:
                    groups.put(group, timeout=0.2)
                    return
                except Full:
                    continue

        stopped.set()
        try:
            for group in _row_groups(frames, schema):
                put(group)
                if writing.done():
                    break
            stopped.clear()
        finally:
            put(None)
    writing.result()


def _row_groups(frames: Iterable[pl.DataFrame], schema: Mapping[str, Any]) -> Iterator[pl.DataFrame]:
    """The rows of the frames in pieces of exactly ROW_GROUP_ROWS rows, the last one shorter; where pieces are cut does not depend on the frames."""
    import polars as pl

    waiting: list[pl.DataFrame] = []
    n_waiting, n_given = 0, 0
    for frame in frames:
        waiting.append(frame)
        n_waiting += frame.height
        if n_waiting >= ROW_GROUP_ROWS:
            joined = pl.concat(waiting)
            while joined.height >= ROW_GROUP_ROWS:
                yield _in_parts(joined[:ROW_GROUP_ROWS])
                n_given += 1
                joined = joined[ROW_GROUP_ROWS:]
            waiting, n_waiting = [joined], joined.height
    if n_waiting or not n_given:
        yield _in_parts(pl.concat(waiting) if waiting else pl.DataFrame(schema=dict(schema)))


def _in_parts(group: pl.DataFrame) -> pl.DataFrame:
    """A row group that the writer has to join first: of one that is a part of a longer column of lists it would cut smaller pages."""
    import polars as pl

    return pl.concat([group[:1], group[1:]])


def _from_os(error: OSError, where: str, n_bytes: int, *, is_new: bool) -> StoreError:
    state = "The new version is in place but may not survive a power loss" if is_new else "The previous version is untouched"
    due = f"{n_bytes:,} bytes were to be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"the disk is full ({due}). {state}; free some space and repeat the command", code="no-space", where=where)
    return StoreError(f"the disk refuses: {error.strerror or error} ({due}). {state}", code="io-error", where=where)


def _is_writing(pid: int, tmp: Path) -> bool:
    """The process is alive, and was started before its file was last written: else its pid has been given to another."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot_s = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        started_s = boot_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return fields[0] not in "ZX" and started_s <= tmp.stat().st_mtime + 2.0  # btime is in whole seconds and drifts with the clock
    except (OSError, StopIteration, IndexError, ValueError):
        return not Path("/proc/self").exists() and _exists(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
