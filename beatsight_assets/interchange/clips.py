"""A sealed bundle as the writers see it: clips in an order that tells nothing, with their samples, and the events behind them.

Belongs here: the one place that knows how a bundle is opened, the order of clips, what is refused before it is written.
Does not belong here: any form.
"""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.audio import find_audio
from beatsight_assets.bundle.check import own_manifest
from beatsight_assets.bundle.plan import bundle_folder, manifest_digest
from beatsight_assets.bundle.read import open_bundle, read_wav_samples
from beatsight_assets.bundle.shard import wav_file
from beatsight_assets.errors import InputError
from beatsight_assets.events import SESSION_KEY, Manifest
from beatsight_assets.settings import Settings
from beatsight_assets.sources.pipeline import source_module
from beatsight_assets.store import printable, read_json
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import keyed_order

GATHERED_CLIPS = 262_144  # rows held at once: about 150 MB, and every table is read once for as many clips
CLIP_NAME = re.compile(r"[0-9a-f-]{32,36}")  # a UUID, or 32 digits of a digest: it becomes a file name
FOLDER = re.compile(r"[^A-Za-z0-9._-]")
LAYER_RATE_HZ = 44_100  # frames of layers made from a manifest, which has no rate
PLACE = ("part", "part_file", "offset_samples", "file", "audio_path")  # where a clip lies in the bundle: not what it is
FINDS = ("clip", "split", "part", "part_file", "offset_samples", "n_samples")  # columns by which `Clips.samples` finds a clip

Int16 = NDArray[np.int16]
Row = dict[str, Any]
Fact = tuple[Any, ...]  # what must survive a round trip


@dataclass(frozen=True)
class Clips:
    """What every writer gets. A manifest has no samples: forms of sessions need none.

    folder : where the forms go, one folder each
    role, source : `bundle` and its marker, or `manifest` and its file
    tables : one row per clip (`bundle.md` section 6) with `clip` as its name and `part_file` as its part's path below the bundle
    samples : int16 mono samples of a row [shape=(n_samples,)]
    parts : (path relative to the bundle, sha256, bytes) of the files that hold the samples
    licences : source_set -> licence
    manifest : the events that the clips were cut from
    find_audio : recording of (source_set, audio_path), None when it is not there
    one_version : what is read in this block is of the bundle that was opened, or it raises `bundle-changed`
    root : data root
    """

    name: str
    content_sha256: str
    folder: Path
    role: str
    source: Path
    sample_rate: int
    classes: Sequence[str]
    licences: Mapping[str, str]
    tables: Sequence[pl.LazyFrame]
    samples: Callable[[Row], Int16]
    parts: Sequence[tuple[str, str, int]]
    manifest: Callable[[], Manifest]
    find_audio: Callable[[str, str | None], Path | None]
    one_version: Callable[[], AbstractContextManager[None]]
    root: Path
    taxonomy: Taxonomy

    def n_clips(self, split: str) -> int:
        """Clips of a split."""
        return sum(t.filter(pl.col("split") == split).select(pl.len()).collect().item() for t in self.tables)

    def rows(self, split: str) -> Iterator[pl.DataFrame]:
        """Rows of a split in keyed order, some hundred thousand at a time.

        Raises
        ------
        InputError `bad-label`, `bad-bundle` : a name that cannot stand in a file of another program
        """
        found = [t.with_row_index("row").filter(pl.col("split") == split).select("row", "clip").collect() for t in self.tables]
        places = pl.concat([f.with_columns(table=pl.lit(n, pl.Int64)) for n, f in enumerate(found)])
        bad = places.filter(~pl.col("clip").str.contains(f"^(?:{CLIP_NAME.pattern})$"))["clip"]
        if len(bad):
            raise InputError(f"clip {printable(bad[0])[:80]!r} is no name of a clip", code="bad-bundle", where=f"bundles/{self.name}")
        key = pl.Series("key", [keyed_order(0, c) for c in places["clip"]], dtype=pl.String)
        order = places.with_columns(key).sort("key").drop("key", "clip").with_row_index("rank")
        for wanted in order.iter_slices(GATHERED_CLIPS):
            gathered = [
                self.tables[n].select(pl.all().gather(part["row"].to_numpy())).collect().with_columns(part["rank"])
                for (n,), part in sorted(wanted.group_by("table"))
            ]
            rows = pl.concat(gathered).sort("rank").drop("rank")
            require_plain_labels(_labels_of(rows))
            yield rows

    def clips(self, split: str, view: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> Iterator[tuple[Row, Int16]]:
        """Row and samples of every clip of a split in keyed order; `view` makes other columns of the rows, FINDS among them."""
        for rows in self.rows(split):
            for row in (rows if view is None else view(rows)).iter_rows(named=True):
                yield row, self.samples(row)


def open_clips(settings: Settings, name: str) -> Clips:
    """A sealed bundle of the data root.

    Raises
    ------
    BundleIncomplete : it is not finished
    InputError `manifest-changed` : when events are asked for and the manifest is another than the bundle was made from
    """
    bundle = open_bundle(bundle_folder(settings.layout, name))
    folders = [bundle.plan.shard_folder(s) for s in range(bundle.plan.n_shards)]
    tables = [
        bundle.shard_table(s).with_columns(part_file=pl.lit(f"{folder.relative_to(bundle.folder).as_posix()}/") + pl.col("part"))
        for s, folder in enumerate(folders)
    ]
    mapped: dict[Path, Int16] = {}

    def samples(row: Row) -> Int16:
        if row["part"] is None:
            return read_wav_samples(bundle.folder / row["split"] / wav_file(row["clip"]), row["n_samples"])
        path = bundle.folder / row["part_file"]
        if path not in mapped:
            mapped[path] = np.memmap(path, dtype="<i2", mode="r")
        return mapped[path][row["offset_samples"] : row["offset_samples"] + row["n_samples"]]

    parts = [
        ((folder / f["name"]).relative_to(bundle.folder).as_posix(), f["sha256"], f["bytes"])
        for folder in folders
        for f in read_json(folder / "SHARD.json")["files"]
        if f["name"].endswith(".pcm")
    ]
    return Clips(
        name=bundle.name,
        content_sha256=bundle.content_sha256,
        folder=bundle.folder / "interchange",
        role="bundle",
        source=bundle.folder / "BUNDLE.json",
        sample_rate=bundle.sample_rate,
        classes=bundle.components,
        licences=_licences(settings, tables),
        tables=tables,
        samples=samples,
        parts=parts,
        manifest=lambda: Manifest(own_manifest(settings, bundle)),
        find_audio=_finder(settings),
        one_version=bundle.one_version,
        root=settings.layout.root,
        taxonomy=Taxonomy.load(settings),
    )


def open_events(settings: Settings, path: Path) -> Clips:
    """A manifest as the forms of sessions see it: every session, no samples.

    Raises
    ------
    InputError : as `events.Manifest`
    """
    manifest, taxonomy = Manifest(path), Taxonomy.load(settings)
    tables = [manifest.table.select(SESSION_KEY)]
    name = FOLDER.sub("_", path.name)[-100:]

    def no_samples(row: Row) -> Int16:
        raise ValueError(f"{path.name} is a manifest and holds no samples")

    return Clips(
        name=name,
        content_sha256=manifest_digest(path),
        folder=settings.layout.manifest_forms(name),
        role="manifest",
        source=path,
        sample_rate=LAYER_RATE_HZ,
        classes=taxonomy.labels,
        licences=_licences(settings, tables),
        tables=tables,
        samples=no_samples,
        parts=(),
        manifest=lambda: manifest,
        find_audio=_finder(settings),
        one_version=nullcontext,
        root=settings.layout.root,
        taxonomy=taxonomy,
    )


def _finder(settings: Settings) -> Callable[[str, str | None], Path | None]:
    def find(source_set: str, audio_path: str | None) -> Path | None:
        return None if audio_path is None or source_set not in settings.datasets else find_audio(settings.raw_roots(source_set), audio_path)

    return find


def _licences(settings: Settings, tables: Sequence[pl.LazyFrame]) -> dict[str, str]:
    sources = sorted({s for t in tables for s in t.select("source_set").unique().collect().to_series()})
    return {s: _licence(settings, s) for s in sources if s in settings.datasets}


def _licence(settings: Settings, source_set: str) -> str:
    """What the provenance of a dataset states, else what its module does."""
    path = settings.layout.provenance(source_set)
    stated = sorted(pl.read_parquet(path, columns=["license_ref"])["license_ref"].drop_nulls().unique()) if path.is_file() else []
    return ", ".join(stated) or source_module(settings.datasets[source_set].module).SOURCE.licence


def with_json(rows: pl.DataFrame) -> pl.DataFrame:
    """FINDS, and as `json` all that a clip is, without where it lies; keys are sorted."""
    content = pl.struct(sorted(c for c in rows.columns if c not in PLACE)).struct.json_encode()
    return rows.select(*FINDS, json=content)


def fact(split: str, row: Row, digest: str) -> Fact:
    """What a form must give back of a clip: its split, samples, labels, mask, and every hit with its place."""
    return (
        split,
        digest,
        tuple(row["labels"]),
        tuple(row["masked"]),
        tuple((h["label"], float(np.float32(h["offset_ms"]))) for h in row["hits"]),
    )


def samples_sha256(content: bytes, rate_hz: int) -> str:
    """Digest of the samples of a 16-bit mono wav file, as `clip_sha256` is; read without the code that wrote it.

    Raises
    ------
    InputError `bad-audio` : another rate, width or number of channels
    """
    with wave.open(io.BytesIO(content)) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, rate_hz):
            raise InputError(f"{file.getparams()} is not 16-bit mono at {rate_hz} Hz", code="bad-audio")
        return sha256(file.readframes(file.getnframes())).hexdigest()


def _labels_of(rows: pl.DataFrame) -> set[str]:
    columns = [rows[c].explode() for c in ("labels", "window_labels", "masked", "techniques")]
    columns += [rows[c].explode().struct.field("label") for c in ("target", "hits")]
    return {label for column in columns for label in column.drop_nulls().unique()}


def require_plain_labels(labels: Iterable[str]) -> None:
    """Refuse labels that would break a line, a table or a terminal of another program; names of the taxonomy never do.

    Raises
    ------
    InputError `bad-label`
    """
    for label in labels:
        if not label or printable(label) != label:
            raise InputError(f"label {printable(label)[:80]!r} holds control characters and is not written", code="bad-label")
