"""Parquet as the library `datasets` knows it: Audio and ClassLabel columns, and a card that names every licence.

Belongs here: columns, the schema key `huggingface`, README.md. Does not belong here: the order of clips (`clips`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import polars as pl
import yaml

from beatsight_assets.audio import write_wav
from beatsight_assets.bundle.plan import SPLITS
from beatsight_assets.interchange.clips import Clips, Fact, Row, fact, samples_sha256
from beatsight_assets.stages import Progress
from beatsight_assets.store import Receipt, Store, printable

FILE_CLIPS = 16_384  # about 400 MB, as the hub likes them
GROUP_CLIPS = 256  # about 6 MB: what a viewer reads to show one row
LICENCES = {"CC0-1.0": "cc0-1.0", "CC-BY-3.0": "cc-by-3.0", "CC-BY-4.0": "cc-by-4.0", "CC-BY-SA-4.0": "cc-by-sa-4.0", "CC-BY-NC-4.0": "cc-by-nc-4.0",
            "CC-BY-NC-SA-4.0": "cc-by-nc-sa-4.0", "CC-BY-NC-ND-4.0": "cc-by-nc-nd-4.0", "MIT": "mit", "Apache-2.0": "apache-2.0"}  # fmt: skip
HIT = {"label": "string", "offset_ms": "float32", "velocity": "float32", "openness": "float32"}
PLAIN = {"clip": "string", "event_id": "string", "session_id": "string", "group_id": "string", "source_set": "string", "mix_context": "string",
         "onset_time": "float64", "duration_seconds": "float64", "pre_ms": "float32", "is_synthetic": "bool", "negative_example": "bool"}  # fmt: skip


def features(clips: Clips) -> dict[str, Any]:
    """Columns as `datasets.Features.from_dict` reads them."""
    classes = [{"names": list(clips.classes), "_type": "ClassLabel"}]
    return {
        "audio": {"sampling_rate": clips.sample_rate, "_type": "Audio"},
        "labels": classes,
        "masked": classes,
        "hits": [{name: _value(kind) for name, kind in HIT.items()}],
        "techniques": [_value("string")],
        **{name: _value(kind) for name, kind in PLAIN.items()},
    }


def _value(kind: str) -> dict[str, str]:
    return {"dtype": kind, "_type": "Value"}


def _schema(clips: Clips) -> Any:
    """The same as Arrow types, exactly those that `datasets` compares with: polars would write its large ones."""
    import pyarrow as pa

    plain = {"string": pa.string(), "float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_()}
    columns = {
        "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "labels": pa.list_(pa.int64()),
        "masked": pa.list_(pa.int64()),
        "hits": pa.list_(pa.struct({name: plain[kind] for name, kind in HIT.items()})),
        "techniques": pa.list_(pa.string()),
        **{name: plain[kind] for name, kind in PLAIN.items()},
    }
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features(clips)}}, sort_keys=True)})


def write(files: Store, folder: Path, clips: Clips, progress: Progress) -> list[Receipt]:
    """`data/<split>-00000-of-000NN.parquet` and README.md."""
    schema = _schema(clips)
    made: list[Receipt] = []
    sizes: dict[str, tuple[int, int]] = {}
    index = {name: i for i, name in enumerate(clips.classes)}
    for split in SPLITS:
        n_clips = clips.n_clips(split)
        n_files = -(-n_clips // FILE_CLIPS)
        waiting, first = clips.clips(split), len(made)
        for n in range(n_files):
            name = f"{split}-{n:05d}-of-{n_files:05d}.parquet"
            rows = (_row(row, write_wav(samples, clips.sample_rate), index) for row, samples in islice(waiting, FILE_CLIPS))
            made.append(files.publish(folder / "data" / name, partial(_write_parquet, rows, schema)))
            progress(f"hf-parquet: {name}")
        sizes[split] = (n_clips, sum(m.n_bytes for m in made[first:]))
    made.append(files.publish(folder / "README.md", card(clips, sizes).encode()))
    return made


def _row(row: Row, wav: bytes, index: dict[str, int]) -> Row:
    classes = {k: [index[c] for c in row[k]] for k in ("labels", "masked")}
    hits = [{k: h[k] for k in HIT} for h in row["hits"]]
    return {"audio": {"bytes": wav, "path": f"{row['clip']}.wav"}, **classes, "hits": hits, **{k: row[k] for k in ("techniques", *PLAIN)}}


def _write_parquet(rows: Iterator[Row], schema: Any, out: IO[bytes]) -> None:
    """Row group by row group, so that memory holds one."""
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetWriter(
        pa.PythonFile(out, "w"), schema, compression="zstd", compression_level=1, use_dictionary=["source_set"]
    ) as file:
        while group := list(islice(rows, GROUP_CLIPS)):
            file.write_table(pa.Table.from_pylist(group, schema=schema))


def card(clips: Clips, sizes: dict[str, tuple[int, int]]) -> str:
    """README.md: licences of all sources, splits and sizes as YAML, and the same for people."""
    known = sorted({LICENCES.get(name, "other") for name in clips.licences.values()})
    present = [s for s in SPLITS if sizes[s][0]]
    head = {
        "license": known,
        "task_categories": ["audio-classification"],
        "tags": ["drums", "automatic-drum-transcription"],
        "size_categories": [_size_category(sum(n for n, _ in sizes.values()))],
        "configs": [{"config_name": "default", "data_files": [{"split": _hub_split(s), "path": f"data/{s}-*.parquet"} for s in present]}],
        "dataset_info": {
            "splits": [{"name": _hub_split(s), "num_examples": sizes[s][0], "num_bytes": sizes[s][1]} for s in present],
            "dataset_size": sum(b for _, b in sizes.values()),
        },
    }
    yaml_text = yaml.safe_dump(head, sort_keys=True, allow_unicode=True)
    sources = "".join(f"| {printable(s)} | {printable(licence)} |\n" for s, licence in sorted(clips.licences.items()))
    splits = "".join(f"| {s} | {n:,} | {b:,} |\n" for s, (n, b) in sizes.items())
    return (
        f"---\n{yaml_text}---\n# {clips.name}\n\nOne clip per drum event, mono, 16 bit, {clips.sample_rate:,} Hz. `labels` are the classes that are struck at the"
        " event, `masked` those about which the clip says nothing, `hits` all hits inside the clip with their distance from the event.\n"
        f"Made from bundle `{clips.name}`, sha256 `{clips.content_sha256}`.\n\n"
        f"| source | licence |\n|---|---|\n{sources}\n| split | clips | bytes |\n|---|---|---|\n{splits}"
    )


def _hub_split(split: str) -> str:
    return "validation" if split == "val" else split


def _size_category(n: int) -> str:
    """The buckets that the card's schema knows."""
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M")):
        if n < limit:
            return name
    return "10M<n<100M"


def read(folder: Path, clips: Clips) -> Iterator[tuple[str, Fact]]:
    """Name and content of every clip in the Parquet files."""
    for path in sorted((folder / "data").glob("*.parquet")):
        table = pl.scan_parquet(path)
        for start in range(0, table.select(pl.len()).collect().item(), GROUP_CLIPS):
            for row in table.slice(start, GROUP_CLIPS).collect().iter_rows(named=True):
                said = row | {k: [clips.classes[i] for i in row[k]] for k in ("labels", "masked")}
                yield row["clip"], fact(path.name.partition("-")[0], said, samples_sha256(row["audio"]["bytes"], clips.sample_rate))
