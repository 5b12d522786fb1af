"""Reading a sealed bundle: tables, samples, clips. Readers never see a bundle that is not whole.

Belongs here: opening, places of samples. Does not belong here: repairing (`export`), proving (`check`).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import store
from beatsight_assets.bundle.plan import Plan, read_plan, read_signed
from beatsight_assets.bundle.shard import wav_file
from beatsight_assets.errors import GateFailed, InputError

HEADER_BYTES = 44


class BundleIncomplete(GateFailed):
    """A bundle that was not sealed, or whose plan is not the one it was sealed with. Exit code 1."""


@dataclass(frozen=True)
class Part:
    """One part of a bundle in layout `shards`: clips back to back, int16 little-endian."""

    shard: int
    name: str
    path: Path
    sha256: str
    n_clips: int
    n_bytes: int

    @property
    def split(self) -> str:
        return self.name.rpartition("-")[0]


@dataclass(frozen=True)
class Bundle:
    """A sealed bundle. What is read through it is of the version that was opened, or InputError `bundle-changed` is raised."""

    plan: Plan
    marker: Mapping[str, Any]  # BUNDLE.json
    identity: tuple[int, int] | None  # of BUNDLE.json: its content alone would not tell a bundle that was replaced and put back

    @property
    def folder(self) -> Path:
        return self.plan.folder

    @property
    def name(self) -> str:
        return str(self.marker["name"])

    @property
    def layout(self) -> str:
        return str(self.marker["layout"])

    @property
    def sample_rate(self) -> int:
        return self.plan.options.sample_rate

    @property
    def content_sha256(self) -> str:
        return str(self.marker["content_sha256"])

    @property
    def components(self) -> list[str]:
        """Classes in index order."""
        with self.one_version():
            return list(store.read_json(self.folder / "components.json")["components"])

    @property
    def metadata(self) -> dict[str, Any]:
        with self.one_version():
            found: dict[str, Any] = store.read_json(self.folder / "metadata.json")
        return found

    def shard_table(self, shard: int) -> pl.LazyFrame:
        """clips.parquet of one shard."""
        return pl.scan_parquet(self.plan.shard_folder(shard) / "clips.parquet")

    def table(self, columns: Sequence[str] | None = None, *, split: str | None = None) -> pl.DataFrame:
        """Clips of all shards in order, or those of one split."""
        parts = [self.shard_table(s) for s in range(self.plan.n_shards)]
        if split is not None:
            parts = [p.filter(pl.col("split") == split) for p in parts]
        with self.one_version():
            return pl.concat([p if columns is None else p.select(columns) for p in parts]).collect()

    def parts(self, split: str | None = None, *, shard: int | None = None) -> list[Part]:
        """Parts in order, or those of one split or shard; none in layout `wav`."""
        found = []
        with self.one_version():
            for number in range(self.plan.n_shards) if shard is None else (shard,):
                folder = self.plan.shard_folder(number)
                for f in store.read_json(folder / "SHARD.json")["files"]:
                    if f["name"].endswith(".pcm"):
                        found.append(Part(number, f["name"], folder / f["name"], f["sha256"], f["clips"], f["bytes"]))
        return [p for p in found if split is None or p.split == split]

    def clips(self, split: str | None = None) -> Iterator[tuple[dict[str, Any], NDArray[np.int16]]]:
        """Row of clips.parquet and samples int16 [shape=(n_samples,)] of every clip, shard by shard.

        Tables and parts are mapped before the first clip, so that a writer who replaces the bundle meanwhile changes nothing here.

        Raises
        ------
        InputError `bad-bundle` : a part or file is shorter than its clips; `bundle-changed` : it was replaced or repaired while it was read
        """
        opened = []
        with self.one_version():
            try:
                for shard in range(self.plan.n_shards):
                    folder = self.plan.shard_folder(shard)
                    parts = {p.name: np.memmap(p.path, dtype="<i2", mode="r") for p in self.parts(shard=shard)}
                    opened.append((folder, np.memmap(folder / "clips.parquet", dtype=np.uint8, mode="r"), parts))
            except (OSError, InputError, ValueError) as error:
                raise InputError(
                    f"cannot be read: {error}. {self._again}", code="bad-bundle", where=f"bundles/{self.folder.name}"
                ) from error
        for folder, table, mapped in opened:
            rows = pl.read_parquet(io.BytesIO(table.tobytes()))
            for row in rows.iter_rows(named=True) if split is None else rows.filter(pl.col("split") == split).iter_rows(named=True):
                if row["part"] is None:
                    yield row, self._wav(row)
                    continue
                samples = mapped[row["part"]][row["offset_samples"] : row["offset_samples"] + row["n_samples"]]
                if len(samples) != row["n_samples"]:
                    raise InputError(f"ends before its clips do. {self._again}", code="bad-bundle", where=f"{folder.name}/{row['part']}")
                yield row, samples

    @property
    def _again(self) -> str:
        return f"Run: beatsight bundle export {self.folder.name} --resume"

    def _wav(self, row: Mapping[str, Any]) -> NDArray[np.int16]:
        """Samples of one wav file: so many files cannot all be opened before, so each is compared with its row."""
        path = self.folder / row["split"] / wav_file(row["clip"])
        try:
            samples = read_wav_samples(path, row["n_samples"])
        except InputError:
            samples = np.empty(0, np.int16)
        if sha256(samples.tobytes()).hexdigest() == row["clip_sha256"]:
            return samples
        self.require_unchanged()
        raise InputError(f"is not what was sealed. {self._again}", code="bad-bundle", where=path.relative_to(self.folder).as_posix())

    def require_unchanged(self) -> None:
        """What was opened still is the bundle: an overwrite swaps BUNDLE.json with the folder, a repair removes it before anything else.

        Raises
        ------
        InputError `bundle-changed`
        """
        if _identity(self.folder / "BUNDLE.json") != self.identity:
            raise InputError(
                "was replaced or repaired while it was read. Open it again", code="bundle-changed", where=f"bundles/{self.folder.name}"
            )

    @contextmanager
    def one_version(self) -> Iterator[None]:
        """What is read in this block is of the bundle as it was opened; what fails because that is gone says so."""
        try:
            yield
        except Exception:
            self.require_unchanged()
            raise
        self.require_unchanged()


def open_bundle(folder: Path) -> Bundle:
    """A sealed bundle.

    Raises
    ------
    BundleIncomplete : `bundle-incomplete`, it is not there or not sealed; `bundle-damaged`, BUNDLE.json or the plan is not what was sealed;
        names the command that finishes it
    """
    again = f"Run: beatsight bundle export {folder.name} --resume"
    where = f"bundles/{folder.name}"
    while True:
        before = _identity(folder / "BUNDLE.json")
        marker = plan = None
        try:
            marker = read_signed(folder / "BUNDLE.json")
            plan = read_plan(folder)
        except InputError:
            plan = None  # damaged, or gone since it was seen
        if _identity(folder / "BUNDLE.json") != before:
            continue  # a writer swapped the bundle between the two files
        if marker is not None and plan is not None and marker.get("plan_sha256") == plan.sha256:
            return Bundle(plan, marker, before)
        if before is None and not folder.is_dir():
            made = f"there is no bundle {folder.name}. Run: beatsight bundle export {folder.name}"
            raise BundleIncomplete(made, code="bundle-incomplete", where=where)
        if before is None:
            raise BundleIncomplete(f"bundle {folder.name} is not finished. {again}", code="bundle-incomplete", where=where)
        what = "BUNDLE.json" if marker is None else "plan.json"
        raise BundleIncomplete(f"{what} of bundle {folder.name} is not what was sealed. {again}", code="bundle-damaged", where=where)


def _identity(path: Path) -> tuple[int, int] | None:
    """Inode and time of a file, None when it is absent: a file that was replaced by an equal one differs."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def wav_header(n_samples: int, rate_hz: int) -> bytes:
    """The 44 bytes before 16-bit mono samples in a wav file."""
    n_bytes = 2 * n_samples
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + n_bytes, b"WAVE", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16, b"data", n_bytes
    )


def read_wav_samples(path: Path, n_samples: int) -> NDArray[np.int16]:
    """Samples of a clip's wav file."""
    content = store.read_bytes(path, max_bytes=HEADER_BYTES + 2 * n_samples)
    return np.frombuffer(content[HEADER_BYTES:], dtype="<i2")
