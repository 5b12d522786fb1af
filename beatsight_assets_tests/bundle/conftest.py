"""A data root with three takes that went through every stage before bundles, and small manifests made by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets import cli, events
from beatsight_assets.audio import write_wav
from beatsight_assets.events import Hits, Session, assemble
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets_tests.crash import writers

SOURCE = "beatsight_demo"
RATE_HZ = 44_100
Take = tuple[str, Sequence[tuple[float, str]]]  # session, (onset in seconds, label)
MakeManifest = Callable[..., Path]


@pytest.fixture(scope="session")
def finished_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three takes, ingested, merged, annotated and split."""
    root = tmp_path_factory.mktemp("bundle") / "root"
    root.mkdir()
    writers.make_data(root)
    writers.run_to(root, "recording_features")
    return root


@pytest.fixture
def made(finished_root: Path, tmp_path: Path) -> Settings:
    """A copy of `finished_root` that a test may change."""
    shutil.copytree(finished_root, tmp_path / "copy")
    return Settings(layout=DataLayout(tmp_path / "copy"), profile="demo")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Beatsight = Callable[..., Ended]


@pytest.fixture
def beatsight(made: Settings, capsys: pytest.CaptureFixture[str]) -> Beatsight:
    """Runs a command on the data root of `made`, as the program `beatsight` does, and tells how it ended."""

    def run(*arguments: str | Path) -> Ended:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--profile", "demo", "--data-root", str(made.layout.root), *map(str, arguments)])
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


def ramp(n_samples: int, rate_hz: int = RATE_HZ) -> bytes:
    """A 16-bit wav whose sample value is its index modulo 2^15."""
    return write_wav((np.arange(n_samples) % 32_768).astype(np.int16), rate_hz)


@pytest.fixture
def make_manifest(settings: Settings) -> MakeManifest:
    """`make_manifest({session: [(onset, label), ..]}, seconds=2.0)` writes events and ramps as audio; returns the manifest's path."""

    def make(takes: dict[str, Sequence[tuple[float, str]]], *, seconds: float = 2.0, audio: bool = True, **changes: Any) -> Path:
        taxonomy = Taxonomy.load(settings)
        batch = []
        for name, hits in takes.items():
            voices = {label: Voice(label) for _, label in hits}
            order = tuple(voices.values())
            onset = np.array([round(t * 1e6) for t, _ in hits], np.int64)
            index = np.array([list(voices).index(label) for _, label in hits], np.int64)
            session = Session(session_id=name, group_id=f"g:{name}", audio_path=f"audio/{name}.wav", is_synthetic=True, split_hint="train")
            batch.append((session, Hits(order, onset, index, np.full(len(hits), 0.5, np.float32))))
            if audio:
                settings.store.publish(settings.layout.raw(SOURCE) / "audio" / f"{name}.wav", ramp(round(seconds * RATE_HZ)))
        frame = assemble(SOURCE, batch, taxonomy).frame
        if changes:
            frame = frame.with_columns(**{k: v if isinstance(v, pl.Expr) else pl.lit(v) for k, v in changes.items()})
        path = settings.layout.at("manifest/hand.parquet")
        settings.store.publish_frame(path, frame, metadata=events.parquet_metadata(taxonomy))
        return path

    return make


def content_of(folder: Path) -> dict[str, bytes]:
    """Every content file of a bundle: not BUNDLE.json's companions of invocations."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "history" not in p.parts and p.name != "metadata.json"
    }
