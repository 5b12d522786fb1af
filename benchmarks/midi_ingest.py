"""P1: MIDI files on disk to an event table on disk, against mido + uuid5 + json; the reader alone against mido; and the whole command.

Of the 0.3 CPU s that 40 times would leave for Groove's 992 files, more than all goes into what no change of the code around it makes
smaller: SHA-1 of 190,000 ids (0.07 to 0.12 s: names over 46 bytes take two blocks), Parquet pages of 30 columns (0.10 s, and 0.03 to
0.05 for zstd), the bytes of 228,000 note-ons (0.11 s). The notes say what each stage costs, and what share of the whole command the
baseline has nothing of: listing and digests of files, checks of every row, provenance, quarantine, verdict, receipt.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from benchmarks.harness import Result, alternate, cpu_seconds, growth, median, shared_data

GOAL = 40.0
T = TypeVar("T")


def made_files() -> list[bytes]:
    """Stand-ins for real takes."""
    from beatsight_assets import midi
    from beatsight_assets.units import rng_for

    made = []
    for i in range(200):
        rng = rng_for(1, "bench", str(i))
        onsets = sorted(rng.integers(0, 60_000_000, 250).tolist())
        made.append(
            midi.write_midi(
                [
                    (t, int(n), int(v))
                    for t, n, v in zip(onsets, rng.choice([36, 38, 42, 46, 51], 250), rng.integers(1, 127, 250), strict=True)
                ]
            )
        )
    return made


@contextmanager
def _files() -> Iterator[tuple[Path, list[str], str]]:
    """A folder, MIDI files below it, and what they are."""
    folder = shared_data()
    if folder is not None and (folder / "groove_midi").is_dir():
        root = folder / "groove_midi"
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.mid"))
        yield root, names, f"Groove MIDI, {len(names)} files"
        return
    with tempfile.TemporaryDirectory() as made:
        files = made_files()
        for i, data in enumerate(files):
            Path(made, f"{i}.mid").write_bytes(data)
        yield Path(made), [f"{i}.mid" for i in range(len(files))], f"{len(files)} generated files"


def _chunks(names: Sequence[T]) -> list[Sequence[T]]:
    """As many files at once as ingest reads at once."""
    from beatsight_assets.sources.pipeline import CHUNK_RECORDINGS

    return [names[i : i + CHUNK_RECORDINGS] for i in range(0, len(names), CHUNK_RECORDINGS)]


def _ours(root: Path, names: Sequence[str], out: Path, spent: Counter[str] | None = None) -> int:
    """The stages of an ingest that make the table, published as the store does; `spent` gets their CPU seconds."""
    from beatsight_assets import events
    from beatsight_assets.settings import load_settings
    from beatsight_assets.sources.performance import Performance, read_performances
    from beatsight_assets.store import contain, read_bytes
    from beatsight_assets.taxonomy import Taxonomy

    last = time.process_time()

    def mark(stage: str) -> None:
        nonlocal last
        now = time.process_time()
        if spent is not None:
            spent[stage] += now - last
        last = now

    taxonomy, settings = Taxonomy.shipped(), load_settings(out, "demo", {})
    mark("set-up")
    batch = []
    for chunk in _chunks(names):
        data = [read_bytes(contain(root, name), max_bytes=1 << 24) for name in chunk]
        mark("files")
        read = read_performances(data, taxonomy, "td11")
        batch += [(events.Session(name, f"g:{name}"), p.hits) for name, p in zip(chunk, read, strict=True) if isinstance(p, Performance)]
        mark("MIDI and note map")
    frame = events.assemble("bench", batch, taxonomy).frame
    mark("events and ids")
    settings.store.publish_frames(settings.layout.events("bench"), [frame], events.EVENT_SCHEMA, metadata={})
    mark("Parquet and fsync")
    return sum(len(hits) for _, hits in batch)


def _baseline(root: Path, names: Sequence[str], out: Path) -> int:
    """What people write: one pass with mido, one uuid and one JSON line per note."""
    import mido

    n = 0
    with open(out / "events.jsonl", "w") as lines:
        for name in names:
            now, cc4 = 0.0, None
            for message in mido.MidiFile(root / name):
                now += message.time
                if message.type == "control_change" and message.control == 4:
                    cc4 = message.value
                elif message.type == "note_on" and message.velocity > 0:
                    row = {"event_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name}:{now:.6f}:{message.note}")), "onset_time": round(now, 6), "session_id": name,
                           "components": [{"label": message.note, "velocity": message.velocity / 127, "openness": cc4}], "techniques": []}  # fmt: skip
                    lines.write(json.dumps(row) + "\n")
                    n += 1
    return n


def _command(root: Path) -> int:
    """`source ingest groove` from nothing: with listing, digests, checks, provenance, verdict and receipt."""
    from beatsight_assets import sources
    from beatsight_assets.settings import load_settings

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "raw").mkdir()
        os.symlink(root, Path(folder, "raw", "groove_midi"))
        return int(sources.ingest(load_settings(Path(folder), "demo", {}), "groove").figures["hits"])


def _ids_s(frame_path: Path) -> float:
    """CPU seconds of the ids of a table."""
    import polars as pl

    from beatsight_assets.uuids import numbered_uuid5

    rows = pl.read_parquet(frame_path, columns=["session_id", "onset_time"])
    names = rows["session_id"].unique(maintain_order=True)
    which = rows["session_id"].cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
    onset_us = (rows["onset_time"] * 1e6).round().cast(pl.Int64).to_numpy()
    return median(lambda: numbered_uuid5(bytes(16), [f"{name}:" for name in names], which, onset_us), clock=cpu_seconds)


def _read_ours(files: list[bytes]) -> int:
    from beatsight_assets.midi import MidiFile, read_midis

    return sum(len(file.notes.note) for chunk in _chunks(files) for file in read_midis(chunk) if isinstance(file, MidiFile))


def _read_theirs(files: list[bytes]) -> int:
    import mido

    n = 0
    for data in files:
        now = 0.0
        for message in mido.MidiFile(file=io.BytesIO(data)):
            now += message.time
            n += message.type == "note_on" and message.velocity > 0
    return n


def run() -> list[Result]:
    """Hits per CPU second; a tenth of the files gives the growth."""
    with _files() as (root, names, what), tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        n_hits = _ours(root, names, out)
        assert _baseline(root, names, out) == n_hits, "both must find every hit"
        ours, theirs = alternate(lambda: _ours(root, names, out), lambda: _baseline(root, names, out))
        tenth = names[::10]
        small_hits = _ours(root, tenth, out)
        small = median(lambda: _ours(root, tenth, out), clock=cpu_seconds)
        spent: Counter[str] = Counter()
        for _ in range(3):
            _ours(root, names, out, spent)
        stages_ms = {stage: round(seconds / 3 * 1e3) for stage, seconds in spent.items()}
        notes = {"input": what, "stages_ms": stages_ms, "of_which_ids_ms": round(_ids_s(next(out.rglob("bench.parquet"))) * 1e3)}
        data = [(root / name).read_bytes() for name in names]
        results = [_reader(data, what)]
        ratio, due = theirs / ours, f">= {GOAL:.0f}x, 0 hits lost"
        results.append(Result("P1 midi ingest", "hits", n_hits, n_hits / ours, "mido + uuid5 + json", n_hits / theirs, ratio,
                              growth(small_hits, small, n_hits, ours), due, ratio >= GOAL, notes))  # fmt: skip
        if "Groove" in what:
            assert _command(root) == n_hits, "the command must find every hit"
            whole = median(lambda: _command(root), clock=cpu_seconds)
            results.append(Result("P1 whole command", "hits", n_hits, n_hits / whole, "mido + uuid5 + json", n_hits / theirs, theirs / whole,
                                  notes={"input": what, "share_without_counterpart": round(1 - ours / whole, 2)}))  # fmt: skip
    return results


def _reader(data: list[bytes], what: str) -> Result:
    """The reader alone, from bytes in memory."""
    n_hits, tenth = _read_ours(data), data[::10]
    read, read_mido = alternate(lambda: _read_ours(data), lambda: _read_theirs(data))
    small_read = median(lambda: _read_ours(tenth), clock=cpu_seconds)
    ratio = read_mido / read
    return Result("P1 midi reader", "hits", n_hits, n_hits / read, "mido", n_hits / read_mido, ratio,
                  growth(_read_ours(tenth), small_read, n_hits, read), f">= {GOAL:.0f}x", ratio >= GOAL, {"input": what})  # fmt: skip
