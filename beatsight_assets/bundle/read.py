"""Reading a sealed bundle: tables, samples, clips. Readers never see a bundle that is not whole.

Belongs here: opening, places of samples. Does not belong here: repairing (`export`), proving (`check`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import store
from beatsight_assets.bundle.plan import Plan, read_plan
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
    """A sealed bundle."""

    plan: Plan
    marker: Mapping[str, Any]  # BUNDLE.json

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
        return list(store.read_json(self.folder / "components.json")["components"])

    @property
    def metadata(self) -> dict[str, Any]:
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
        return pl.concat([p if columns is None else p.select(columns) for p in parts]).collect()

    def parts(self, split: str | None = None) -> list[Part]:
        """Parts in order; none in layout `wav`."""
        found = []
        for shard in range(self.plan.n_shards):
            folder = self.plan.shard_folder(shard)
            for f in store.read_json(folder / "SHARD.json")["files"]:
                if f["name"].endswith(".pcm"):
                    found.append(Part(shard, f["name"], folder / f["name"], f["sha256"], f["clips"], f["bytes"]))
        return [p for p in found if split is None or p.split == split]

    def clips(self, split: str | None = None) -> Iterator[tuple[dict[str, Any], NDArray[np.int16]]]:
        """Row of clips.parquet and samples int16 [shape=(n_samples,)] of every clip, shard by shard.

        Raises
        ------
        InputError `bad-bundle` : a part or file is shorter than its clips
        """
        for shard in range(self.plan.n_shards):
            table = self.shard_table(shard)
            rows = (table if split is None else table.filter(pl.col("split") == split)).collect()
            folder = self.plan.shard_folder(shard)
            mapped: tuple[str, NDArray[np.int16]] = ("", np.empty(0, np.int16))
            for row in rows.iter_rows(named=True):
                if row["part"] is None:
                    yield row, read_wav_samples(self.folder / row["split"] / wav_file(row["clip"]), row["n_samples"])
                    continue
                if mapped[0] != row["part"]:
                    mapped = (row["part"], np.memmap(folder / row["part"], dtype="<i2", mode="r"))
                samples = mapped[1][row["offset_samples"] : row["offset_samples"] + row["n_samples"]]
                if len(samples) != row["n_samples"]:
                    raise InputError(
                        "ends before its clips do. Run: beatsight bundle export --resume",
                        code="bad-bundle",
                        where=f"{folder.name}/{row['part']}",
                    )
                yield row, samples


def open_bundle(folder: Path) -> Bundle:
    """A sealed bundle.

    Raises
    ------
    BundleIncomplete : it is not there, not sealed, or its plan is not the one it was sealed with; names the command that finishes it
    InputError `bad-bundle` : BUNDLE.json or plan.json is damaged
    """
    command = f"Run: beatsight bundle export {folder.name} --resume"
    if not (folder / "BUNDLE.json").is_file():
        raise BundleIncomplete(f"bundle {folder.name} is not finished. {command}", code="bundle-incomplete", where=f"bundles/{folder.name}")
    marker = store.read_json(folder / "BUNDLE.json")
    plan = read_plan(folder)
    if plan is None or not isinstance(marker, dict) or marker.get("plan_sha256") != plan.sha256:
        raise BundleIncomplete(
            f"bundle {folder.name} was sealed with another plan than lies there. {command}",
            code="bundle-incomplete",
            where=f"bundles/{folder.name}",
        )
    return Bundle(plan, marker)


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
