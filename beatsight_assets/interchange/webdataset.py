"""WebDataset: plain tars of about 1 GiB with `<clip>.wav` and `<clip>.json` for every clip.

Belongs here: the tars and their index. Does not belong here: the order of clips (`clips`).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from beatsight_assets.audio import write_wav
from beatsight_assets.bundle.plan import SPLITS
from beatsight_assets.interchange.clips import Clips, Fact, Int16, Row, fact, samples_sha256, with_json
from beatsight_assets.stages import Progress
from beatsight_assets.store import BLOCK_BYTES, Receipt, Store

SCHEMA = "beatsight.webdataset/1"
TAR_BYTES = 1 << 30
_MODE_AND_OWNER = b"0000644\0" + b"0000000\0" * 2
_NO_TIME = b"00000000000\0"
_REGULAR_FILE = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")  # type, no link, version, no names


def write(files: Store, folder: Path, clips: Clips, progress: Progress) -> list[Receipt]:
    """`<split>-000000.tar` and on, and `index.json`, which names them with digests and counts."""
    made: list[Receipt] = []
    shards: list[dict[str, Any]] = []
    for split in SPLITS:
        waiting = clips.clips(split, with_json)
        n_tars = 0
        while (first := next(waiting, None)) is not None:
            tar = _Tar(chain([first], waiting), clips.sample_rate)
            made.append(files.publish(folder / f"{split}-{n_tars:06d}.tar", tar.write))
            told = made[-1]
            shards.append({"name": told.path.name, "split": split, "clips": tar.n_clips, "bytes": told.n_bytes, "sha256": told.sha256})
            progress(f"webdataset: {told.path.name} {tar.n_clips:,} clips")
            n_tars += 1
    made.append(files.publish_json(folder / "index.json", {"schema": SCHEMA, "shards": shards}))
    return made


class _Tar:
    """Takes clips until the archive is full."""

    def __init__(self, clips: Iterator[tuple[Row, Int16]], rate_hz: int) -> None:
        self.clips, self.rate_hz = clips, rate_hz
        self.n_clips = 0

    def write(self, out: IO[bytes]) -> None:
        """The archive, in whole records of 10,240 bytes as tar writes them."""
        n_bytes, waiting = 0, bytearray()
        for row, samples in self.clips:
            for suffix, content in (("wav", write_wav(samples, self.rate_hz)), ("json", row["json"].encode())):
                waiting += _member(f"{row['clip']}.{suffix}", content)
            self.n_clips += 1
            if len(waiting) >= BLOCK_BYTES:
                out.write(waiting)
                n_bytes += len(waiting)
                waiting = bytearray()
            if n_bytes + len(waiting) >= TAR_BYTES:
                break
        waiting += b"\0" * (2 * tarfile.BLOCKSIZE)
        waiting += b"\0" * (-(n_bytes + len(waiting)) % tarfile.RECORDSIZE)
        out.write(waiting)


def _member(name: str, content: bytes) -> bytes:
    """Header and content of one file of an archive; nobody owns it and it has no time. The bytes of `tarfile` in a fifth of its time."""
    head = name.encode().ljust(100, b"\0") + _MODE_AND_OWNER + b"%011o\0" % len(content) + _NO_TIME
    total = sum(head) + 8 * ord(" ") + sum(_REGULAR_FILE)
    return b"".join((head, b"%06o\0 " % total, _REGULAR_FILE, content, b"\0" * (-len(content) % tarfile.BLOCKSIZE)))


def read(folder: Path, clips: Clips) -> Iterator[tuple[str, Fact]]:
    """Name and content of every clip in the archives."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            waiting: dict[str, bytes] = {}
            for member in tar:
                file = tar.extractfile(member)
                name, _, suffix = member.name.rpartition(".")
                waiting[suffix] = file.read() if file else b""
                if len(waiting) == 2:
                    row = json.loads(waiting["json"])
                    yield name, fact(path.name.rpartition("-")[0], row, samples_sha256(waiting["wav"], clips.sample_rate))
                    waiting = {}
