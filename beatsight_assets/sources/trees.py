"""The files of a raw folder: one walk gives the listing, its digest, and what is a candidate.

Belongs here: finding files, choosing roots, looking up audio. Does not belong here: what is in a file (`pipeline`, the source modules).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from unicodedata import normalize

from beatsight_assets.audio import SUFFIXES
from beatsight_assets.errors import StoreError
from beatsight_assets.settings import Settings
from beatsight_assets.sources.types import AUDIO_SUFFIXES, Rejected
from beatsight_assets.store import is_below, printable

IGNORED_NAMES = ("Icon", "Icon\r", "desktop.ini", "__MACOSX")  # spec/sources.md section 0, rule 2
IGNORED_SUFFIXES = (".asd", ".reapeaks")


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells, without reading it, whether a file is the same as before."""

    n_bytes: int
    mtime_ns: int
    inode: int
    is_link: bool = False

    @classmethod
    def of(cls, path: str | Path) -> FileState:
        """State of a file now; follows links."""
        info = os.stat(path)
        return cls(info.st_size, info.st_mtime_ns, info.st_ino)

    def is_same(self, other: FileState) -> bool:
        """Nobody wrote the file meanwhile."""
        return (self.n_bytes, self.mtime_ns, self.inode) == (other.n_bytes, other.mtime_ns, other.inode)


@dataclass(frozen=True)
class Tree:
    """A raw folder as one walk saw it: every file that is not hidden, by POSIX path below the root."""

    root: Path
    files: dict[str, FileState]
    linked_folders: tuple[str, ...] = ()  # symbolic links to folders; what lies behind them is not walked

    @classmethod
    def at(cls, root: Path) -> Tree:
        """Walk a folder.

        Raises
        ------
        StoreError `io-error` : a folder cannot be listed, or a file vanished meanwhile: a listing that fails is not an empty listing
        """
        links: list[str] = []
        try:
            return cls(root, dict(_walk(str(root), "", links)), tuple(sorted(links)))
        except OSError as error:
            raise StoreError(
                f"{printable(str(error.filename or root))} cannot be listed: {error.strerror}. Is the disk mounted, or is somebody copying?",
                code="io-error",
                where=str(root),
            ) from error

    @cached_property
    def digest(self) -> str:
        """blake2b over the sorted lines `relpath NUL size NUL mtime_ns`: a listing, not the bytes."""
        lines = sorted(
            [*(f"{rel}\0{s.n_bytes}\0{s.mtime_ns}" for rel, s in self.files.items()), *(f"{rel}/" for rel in self.linked_folders)]
        )
        return blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()

    def candidates(self, suffixes: Sequence[str]) -> tuple[list[str], list[Rejected]]:
        """Files with one of the suffixes (any case), sorted by path bytes; links out of the root and unreadable names are refused.

        Hidden files, `__MACOSX`, `Icon` and editor leftovers are ignored (`spec/sources.md` section 0, rule 2).
        """
        found: list[str] = []
        refused = [
            Rejected(
                printable(rel),
                "scan",
                "path-escape",
                "a link to a folder outside the dataset root; files in it are not read. Put the folder here",
            )
            for rel in self.linked_folders
            if not _is_ignored(rel) and not is_below(self.root, self.root / rel)
        ]
        ends = tuple(suffixes)
        for rel, state in self.files.items():
            if not rel.lower().endswith(ends) or _is_ignored(rel):
                continue
            if state.is_link and not is_below(self.root, self.root / rel):
                refused.append(
                    Rejected(rel, "scan", "path-escape", "a symbolic link that leads out of the dataset root. Copy the file instead")
                )
            elif state.is_link and not (self.root / rel).is_file():
                continue
            elif not rel.isascii() and not _is_text(rel):
                refused.append(Rejected(printable(rel), "scan", "path-escape", "its name is not UTF-8. Rename the file"))
            else:
                found.append(rel)
        return sorted(found, key=str.encode), refused

    @cached_property
    def audio_by_stem(self) -> dict[str, dict[str, str]]:
        """path without suffix in Unicode NFC -> {suffix in lower case: path}, of audio files."""
        found: dict[str, dict[str, str]] = {}
        for rel in self.files:
            stem, _, suffix = rel.rpartition(".")
            if f".{suffix.lower()}" in AUDIO_SUFFIXES:
                found.setdefault(normalize("NFC", stem), {}).setdefault(suffix.lower(), rel)
        return found

    def find_audio(self, relpath: str) -> str | None:
        """The file of that name in any spelling of its suffix and umlauts, else with another audio suffix (the order of `audio.SUFFIXES`)."""
        if relpath in self.files:
            return relpath
        stem, _, suffix = relpath.rpartition(".")
        others = self.audio_by_stem.get(normalize("NFC", stem if f".{suffix.lower()}" in AUDIO_SUFFIXES else relpath), {})
        return next((others[s] for s in (suffix.lower(), *SUFFIXES) if s in others), None)


def _walk(folder: str, below: str, links: list[str]) -> Iterator[tuple[str, FileState]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{below}{entry.name}/", links)
                continue
            is_link = entry.is_symlink()
            try:
                info = entry.stat()
            except OSError as error:
                if not is_link or error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                info = entry.stat(follow_symlinks=False)  # a link to nothing, or to itself
            if is_link and stat.S_ISDIR(info.st_mode):
                links.append(f"{below}{entry.name}")
            if not stat.S_ISREG(info.st_mode) and not (is_link and not os.path.exists(entry.path)):
                continue  # a folder behind a link, a FIFO, a device
            yield f"{below}{entry.name}", FileState(info.st_size, info.st_mtime_ns, info.st_ino, is_link)


def _is_ignored(rel: str) -> bool:
    return rel.lower().endswith(IGNORED_SUFFIXES) or any(part in IGNORED_NAMES for part in rel.split("/"))


def _is_text(rel: str) -> bool:
    try:
        rel.encode()
    except UnicodeEncodeError:
        return False
    return True


def candidate_files(root: Path, suffixes: Sequence[str]) -> tuple[list[str], list[Rejected]]:
    """`Tree.candidates` of a folder; none where there is no folder."""
    return Tree.at(root).candidates(suffixes) if root.is_dir() else ([], [])


def listing_digest(root: Path) -> str:
    """`Tree.digest` of a folder."""
    return Tree.at(root).digest


def find_roots(settings: Settings, source_set: str) -> list[Path]:
    """Raw roots of a dataset that exist, in the order of its config."""
    return [r for r in settings.raw_roots(source_set) if r.is_dir()]


def find_root(settings: Settings, source_set: str) -> Path | None:
    """First existing raw root of a dataset."""
    return next(iter(find_roots(settings, source_set)), None)
