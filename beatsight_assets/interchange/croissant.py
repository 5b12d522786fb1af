"""Croissant 1.0: what the files of a bundle are, for machines; the rows of all clips as one table beside it.

Belongs here: croissant.json and clips.parquet. Does not belong here: the samples, which stay in the bundle's parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from beatsight_assets.bundle.plan import SPLITS
from beatsight_assets.interchange.clips import Clips, Fact, fact
from beatsight_assets.stages import Progress
from beatsight_assets.store import Receipt, Store, hash_file, read_json

TABLE = "clips.parquet"
UP = "../../"  # from bundles/<name>/interchange/croissant to the bundle
BATCH_CLIPS = 4_096
CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/", "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty", "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/", "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
    "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}  # fmt: skip
TEXTS = ("clip", "event_id", "session_id", "group_id", "source_set", "split", "mix_context", "label", "clip_sha256", "part_file")
LISTS = ("labels", "window_labels", "masked", "techniques", "hit_labels")
FLOATS = ("onset_time", "duration_seconds", "pre_ms", "post_ms")
TYPES = {**dict.fromkeys((*TEXTS, *LISTS), "sc:Text"), **dict.fromkeys((*FLOATS, "hit_offsets_ms"), "sc:Float"),
         **dict.fromkeys(("is_synthetic", "negative_example"), "sc:Boolean"), **dict.fromkeys(("offset_samples", "n_samples"), "sc:Integer")}  # fmt: skip
REPEATED = (*LISTS, "hit_offsets_ms")
ABOUT = {
    "labels": "classes struck at the event of this clip",
    "window_labels": "classes struck inside the clip",
    "masked": "classes about which this clip says nothing: neither positive nor negative",
    "hit_labels": "component of every hit inside the clip, by time",
    "hit_offsets_ms": "time of every hit from the event, in milliseconds",
    "onset_time": "onset of the event in its recording, in seconds",
    "part_file": "file of 16-bit little-endian mono samples that holds the clip, from the folder of croissant.json; null where each clip is a wav",
    "offset_samples": "first sample of the clip in its part",
}


def write(files: Store, folder: Path, clips: Clips, progress: Progress) -> list[Receipt]:
    """`clips.parquet` and `croissant.json`, which names it and every part of the bundle with digest and size."""
    pieces = (_columns(rows) for split in SPLITS for rows in clips.rows(split))
    table = files.publish_frames(folder / "clips.parquet", pieces, _columns(clips.tables[0].collect().clear()).schema)
    progress("croissant: table of clips written")
    return [table, files.publish_json(folder / "croissant.json", _document(clips, table))]


def _columns(rows: pl.DataFrame) -> pl.DataFrame:
    hits = pl.col("hits").list
    return rows.with_columns(
        hit_labels=hits.eval(pl.element().struct.field("label")),
        hit_offsets_ms=hits.eval(pl.element().struct.field("offset_ms")),
        part_file=pl.lit(UP) + pl.col("part_file"),
    ).select(*TYPES)


def _document(clips: Clips, table: Receipt) -> dict[str, Any]:
    parts = [
        _file(UP + path, path, "application/octet-stream", digest, n_bytes, "16-bit little-endian mono samples, clips back to back")
        for path, digest, n_bytes in clips.parts
    ]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": clips.name,
        "description": f"Drum clips, mono, 16 bit, {clips.sample_rate} Hz; classes {', '.join(clips.classes)}. Bundle sha256 {clips.content_sha256}.",
        "license": sorted(set(clips.licences.values())),
        "url": f"urn:sha256:{clips.content_sha256}",
        "distribution": [_file(TABLE, TABLE, "application/x-parquet", table.sha256, table.n_bytes, "one row per clip"), *parts],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "clips", "name": "clips", "key": {"@id": "clips/clip"}, "field": [_field(n) for n in TYPES]}
        ],
    }


def _file(url: str, name: str, form: str, digest: str, n_bytes: int, about: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": about,
        "contentUrl": url,
        "contentSize": f"{n_bytes} B",
        "encodingFormat": form,
        "sha256": digest,
    }


def _field(name: str) -> dict[str, Any]:
    field = {
        "@type": "cr:Field",
        "@id": f"clips/{name}",
        "name": name,
        "dataType": TYPES[name],
        "source": {"fileObject": {"@id": TABLE}, "extract": {"column": name}},
    }
    return field | ({"description": ABOUT[name]} if name in ABOUT else {}) | ({"repeated": True} if name in REPEATED else {})


def read(folder: Path, clips: Clips) -> Iterator[tuple[str, Fact]]:
    """Name and content of every clip, through what the document says: the table it names, and samples at the places that stand there.

    A file whose digest or size is not the one stated gives no clip.
    """
    document = read_json(folder / "croissant.json")
    sound = set()
    for file in document["distribution"]:
        path = folder / file["contentUrl"]
        if f"{path.stat().st_size} B" == file["contentSize"] and hash_file(path) == file["sha256"]:
            sound.add(file["contentUrl"])
    for rows in pl.read_parquet(folder / TABLE).iter_slices(BATCH_CLIPS) if TABLE in sound else ():
        for row in rows.iter_rows(named=True):
            hits = [{"label": h, "offset_ms": at} for h, at in zip(row["hit_labels"], row["hit_offsets_ms"], strict=True)]
            digest = row["clip_sha256"]
            if row["part_file"] is not None and row["part_file"] in sound:
                samples = np.memmap(folder / row["part_file"], dtype="<i2", mode="r")[row["offset_samples"] :][: row["n_samples"]]
                digest = sha256(samples.tobytes()).hexdigest()
            elif row["part_file"] is not None:
                digest = ""
            yield row["clip"], fact(row["split"], row | {"hits": hits}, digest)
