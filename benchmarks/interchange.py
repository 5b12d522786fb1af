"""Archives and Parquet of a bundle against the loop that people write with tarfile and pyarrow: MB of samples per CPU second, writing alone.

Both sides read the same sealed bundle. Ours includes the keyed order of clips, what is refused in a label, sha256 and fsync of every file.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Result, alternate, growth, median

if TYPE_CHECKING:
    from beatsight_assets.bundle.read import Bundle

TAKES = 10
HITS = 800  # of each take
ROWS_PER_GROUP = 1_000


def _wav(samples: Any, rate_hz: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.tobytes())
    return out.getvalue()


def _with_tarfile(bundle: Bundle, folder: Path) -> None:
    """A tar per split, a wav and a JSON text per clip."""
    for split in ("train", "val", "test"):
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for row, samples in bundle.clips(split):
                for suffix, content in (("wav", _wav(samples, bundle.sample_rate)), ("json", json.dumps(row).encode())):
                    member = tarfile.TarInfo(f"{row['clip']}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def _with_pyarrow(bundle: Bundle, folder: Path) -> None:
    """A Parquet file per split, zstd as ours, a group of rows at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    index = {name: i for i, name in enumerate(bundle.components)}
    for split in ("train", "val", "test"):
        writer, rows = None, []

        def flush(split: str = split) -> None:
            nonlocal writer, rows
            table = pa.Table.from_pylist(rows, schema=None if writer is None else writer.schema)
            writer = writer or parquet.ParquetWriter(folder / f"{split}.parquet", table.schema, compression="zstd", compression_level=1)
            writer.write_table(table)
            rows = []

        for row, samples in bundle.clips(split):
            audio = {"bytes": _wav(samples, bundle.sample_rate), "path": f"{row['clip']}.wav"}
            classes = {k: [index[c] for c in row[k]] for k in ("labels", "masked")}
            rows.append({**row, **classes, "audio": audio})
            if len(rows) == ROWS_PER_GROUP:
                flush()
        if rows:
            flush()
        if writer is not None:
            writer.close()


def run() -> list[Result]:
    """MB of samples per CPU second, into empty folders."""
    from beatsight_assets.bundle.read import open_bundle
    from beatsight_assets.interchange.clips import open_clips
    from beatsight_assets.interchange.stage import FORMS
    from beatsight_assets.settings import DataLayout, Settings
    from beatsight_assets.stages import silent
    from beatsight_assets_tests.features.factories import make_bundle

    loops: dict[str, Callable[[Bundle, Path], None]] = {"webdataset": _with_tarfile, "hf-parquet": _with_pyarrow}
    results = []
    with tempfile.TemporaryDirectory() as name:
        sizes = []
        for part, hits in (("small", HITS // 10), ("whole", HITS)):
            settings = Settings(layout=DataLayout(Path(name) / part), profile="demo")
            make_bundle(settings, n_takes=TAKES, hits_per_take=hits, part_clips=4_096)
            bundle, clips = open_bundle(settings.layout.bundle("b")), open_clips(settings, "b")
            sizes.append((settings, bundle, clips, sum(p.n_bytes for p in bundle.parts()) / 1e6))
        small, whole = sizes
        megabytes = whole[3]
        for kind, loop in loops.items():

            def ours(of: Any, kind: str = kind) -> None:
                settings, _, clips, _ = of
                folder = clips.folder / kind
                FORMS[kind].write(settings.store, folder, clips, silent)
                shutil.rmtree(folder)

            def theirs(of: Any, loop: Callable[[Bundle, Path], None] = loop) -> None:
                with tempfile.TemporaryDirectory(dir=name) as out:
                    loop(of[1], Path(out))

            ours(small)  # imports
            theirs(small)
            a, b = alternate(partial(ours, whole), partial(theirs, whole))
            tenth = median(partial(ours, small))
            rate = megabytes / b
            results.append(Result(f"interchange {kind}", "MB", megabytes, megabytes / a, f"loop with {'tarfile' if kind == 'webdataset' else 'pyarrow'}", rate, b / a, growth(small[3], tenth, megabytes, a)))  # fmt: skip
    return results
