"""Lhotse: recordings and supervisions as jsonl.gz; a recording is a wav of some thousand clips back to back, a supervision is one clip of it.

Belongs here: the manifests and their audio. Does not belong here: the order of clips (`clips`).
"""

from __future__ import annotations

import gzip
import json
import wave
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from beatsight_assets.audio import write_wav
from beatsight_assets.bundle.plan import SPLITS
from beatsight_assets.interchange.clips import Clips, Fact, Row, fact, with_json
from beatsight_assets.stages import Progress
from beatsight_assets.store import Receipt, Store, to_json_bytes

PACK_CLIPS = 4_096  # about 100 MB, as a part of a bundle


def write(files: Store, folder: Path, clips: Clips, progress: Progress) -> list[Receipt]:
    """`recordings-<split>.jsonl.gz`, `supervisions-<split>.jsonl.gz`, `audio/<split>-000000.wav` and on; paths are relative to the folder."""
    made: list[Receipt] = []
    for split in SPLITS:
        recordings: list[Row] = []
        waiting = clips.clips(split, with_json)
        while pack := [samples for _, samples in islice(waiting, PACK_CLIPS)]:
            samples = np.concatenate(pack)
            name = _recording(split, len(recordings))
            made.append(files.publish(folder / "audio" / f"{name}.wav", write_wav(samples, clips.sample_rate)))
            recordings.append(
                {
                    "id": name,
                    "sources": [{"type": "file", "channels": [0], "source": f"audio/{name}.wav"}],
                    "sampling_rate": clips.sample_rate,
                    "num_samples": len(samples),
                    "duration": len(samples) / clips.sample_rate,
                    "channel_ids": [0],
                }
            )
            progress(f"lhotse: {name} {len(pack):,} clips")
        if recordings:
            made.append(_publish_lines(files, folder / f"recordings-{split}.jsonl.gz", (to_json_bytes(r, indent=None) for r in recordings)))
            made.append(_publish_lines(files, folder / f"supervisions-{split}.jsonl.gz", _supervisions(clips, split)))
    return made


def _recording(split: str, n: int) -> str:
    return f"{split}-{n:06d}"


def _supervisions(clips: Clips, split: str) -> Iterator[bytes]:
    """One line per clip, in the order in which the recordings hold them."""
    n = start = 0
    for rows in clips.rows(split):
        for row in with_json(rows).iter_rows(named=True):
            start = start if n % PACK_CLIPS else 0
            place = {
                "id": row["clip"],
                "recording_id": _recording(split, n // PACK_CLIPS),
                "start": start / clips.sample_rate,
                "duration": row["n_samples"] / clips.sample_rate,
                "channel": 0,
            }
            yield f'{json.dumps(place)[:-1]}, "custom": {row["json"]}}}\n'.encode()
            start += row["n_samples"]
            n += 1


def _publish_lines(files: Store, path: Path, lines: Iterable[bytes]) -> Receipt:
    """Gzip without a name or a time in it."""

    def save(out: IO[bytes]) -> None:
        with gzip.GzipFile("", "wb", 6, out, 0) as packed:
            packed.writelines(lines)

    return files.publish(path, save)


def read(folder: Path, clips: Clips) -> Iterator[tuple[str, Fact]]:
    """Name and content of every supervision, its samples from the recording that it names."""
    for split in SPLITS:
        path = folder / f"supervisions-{split}.jsonl.gz"
        opened: tuple[str, Any] = ("", np.empty(0, np.int16))
        for line in _lines(path) if path.is_file() else ():
            said = json.loads(line)
            if opened[0] != said["recording_id"]:
                with wave.open(str(folder / "audio" / f"{said['recording_id']}.wav")) as file:
                    opened = (said["recording_id"], np.frombuffer(file.readframes(file.getnframes()), "<i2"))
            start, length = (round(said[k] * clips.sample_rate) for k in ("start", "duration"))
            digest = sha256(opened[1][start : start + length].tobytes()).hexdigest()
            yield said["id"], fact(split, said["custom"], digest)


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        yield from file
