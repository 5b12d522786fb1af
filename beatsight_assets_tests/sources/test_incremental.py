"""A changed file changes what depends on it and nothing else, and the result is that of reading everything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beatsight_assets import sources
from beatsight_assets.settings import Settings
from beatsight_assets.sources import pipeline
from beatsight_assets.units import rng_for
from beatsight_assets_tests.sources.lake import NAME, at, put_table, put_take, with_config

N_TREES, N_EDITS = (40, 12) if os.environ.get("BEATSIGHT_EXHAUSTIVE") else (4, 5)
OUTPUTS = ("events", "provenance", "quarantine", "report")


def digests(report: sources.pipeline.Report) -> dict[str, str]:
    return {role: report.output(role).sha256 for role in OUTPUTS}


def n_read(settings: Settings, **options: Any) -> int:
    """How many recordings an ingest reads, by its own words. The receipt does not say it: it would depend on what was there before."""
    said: list[str] = []
    sources.ingest(settings, "demo", progress=said.append, **options)
    return int(said[-1].rpartition(", ")[2].split()[0])


def edit(root: Path, names: list[str], rng: np.random.Generator) -> str:
    """One random change of a dataset: what people and copying programs do to folders."""
    kind = str(rng.choice(["change", "add", "remove", "unlist", "touch", "damage", "sound", "mute", "swap", "note", "order"]))
    name = str(rng.choice(names))
    seed = int(rng.integers(1_000))
    if kind == "change":
        put_take(root, name, seed)
    elif kind == "add":
        names.append(f"n{seed:03d}")
        put_take(root, names[-1], seed)
    elif kind == "remove":
        (root / f"midi/{name}.mid").unlink(missing_ok=True)
    elif kind == "unlist" and len(names) > 2:
        names.remove(name)
    elif kind == "touch" and (root / f"midi/{name}.mid").exists():
        os.utime(root / f"midi/{name}.mid", (seed, seed))
    elif kind == "damage":
        (root / f"midi/{name}.mid").write_bytes(b"MThd broken")
    elif kind == "sound":
        (root / f"audio/{name}.wav").write_bytes(b"RIFF is only claimed")
    elif kind == "mute":
        (root / f"audio/{name}.wav").unlink(missing_ok=True)
    elif kind == "swap":
        other = root / f"midi/{rng.choice(names)}.mid"
        if other.exists():
            (root / f"midi/{name}.mid").write_bytes(other.read_bytes())
    elif kind == "note":
        (root / "midi/unlisted.txt").write_text(str(seed))
    else:
        rng.shuffle(names)
    put_table(root, names)
    return kind


@pytest.mark.parametrize("seed", range(N_TREES))
def test_incremental_equals_from_scratch(settings: Settings, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any edits of a folder, the tables are byte for byte those of an ingest that knows nothing of before."""
    monkeypatch.setattr(pipeline, "BATCH_EVENTS", 17)  # several batches, kept and fresh sessions in each
    rng = rng_for(seed, "edits of a dataset")
    root = settings.layout.raw(NAME)
    names = [f"t{i:02d}" for i in range(12)]
    for i, name in enumerate(names):
        put_take(root, name, i)
    put_table(root, names)
    sources.ingest(settings, "demo")
    told = []
    for n in range(N_EDITS):
        told += [edit(root, names, rng) for _ in range(int(rng.integers(1, 4)))]
        shutil.copytree(root, tmp_path / f"fresh{n}/raw/{NAME}")
        scratch = sources.ingest(at(settings, tmp_path / f"fresh{n}"), "demo")
        again = sources.ingest(settings, "demo")
        assert digests(again) == digests(scratch), told
        assert pl.read_parquet(settings.layout.events(NAME)).select("session_id", "onset_time").rows() == sorted(
            pl.read_parquet(settings.layout.events(NAME)).select("session_id", "onset_time").rows()
        )


@pytest.fixture
def five(settings: Settings) -> Path:
    """A dataset of five takes, ingested."""
    root = settings.layout.raw(NAME)
    for i in range(5):
        put_take(root, f"t{i}", i)
    put_table(root, [f"t{i}" for i in range(5)])
    assert n_read(settings) == 5
    return root


def test_only_what_changed_is_read(settings: Settings, five: Path) -> None:
    """One changed take: one is read. A row added to the table: one. A touched file, a take taken out: none."""
    put_take(five, "t3", 99)
    assert n_read(settings) == 1
    put_take(five, "t5", 5)
    put_table(five, [f"t{i}" for i in range(6)])
    assert n_read(settings) == 1
    os.utime(five / "midi/t0.mid", (5, 5))
    assert n_read(settings) == 0
    put_table(five, [f"t{i}" for i in range(5)])
    assert n_read(settings) == 0


def test_what_a_reading_may_depend_on_is_seen(settings: Settings, five: Path) -> None:
    """A file that belongs to no recording, an option, the licence and the user's name for the reading: each makes all be read again."""
    (five / "extra.txt").write_text("could be read by somebody")
    assert n_read(settings) == 5
    assert n_read(with_config(settings, options={"group_prefix": "other:"})) == 5
    assert n_read(settings, license_ref="CC0") == 5
    provenance = pl.read_parquet(settings.layout.provenance(NAME))
    assert set(provenance["license_ref"]) == {"CC0"} and set(provenance["code_version"]) == {pipeline.VERSION}
    assert n_read(settings, ingestion_version="lab-7") == 5
    assert set(pl.read_parquet(settings.layout.provenance(NAME))["code_version"]) == {f"{pipeline.VERSION}+lab-7"}


def test_other_code_reads_again(settings: Settings, five: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that other code made are made again; the digest follows what a module imports."""
    assert pipeline.code_digest("rendered") != pipeline.code_digest("groove")
    monkeypatch.setattr(pipeline, "code_digest", lambda module: "another version")
    assert n_read(settings) == 5


def test_damaged_tables_are_no_cache(settings: Settings, five: Path) -> None:
    """A flipped byte in the last table is not carried over: everything is read again."""
    path = settings.layout.events(NAME)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    put_take(five, "t3", 99)
    assert n_read(settings) == 5


def test_without_audio_digests(settings: Settings, five: Path) -> None:
    """`--no-hash-audio`: the sha256 of audio is null, size and time of change stand in for it."""
    report = sources.ingest(settings, "demo", hash_audio=False)
    rows = pl.read_parquet(settings.layout.provenance(NAME)).explode("hashes").unnest("hashes")
    assert report.passed and rows.height == 10
    assert rows.filter(pl.col("sha256").is_null())["path"].str.ends_with(".wav").all()
    assert rows["sha256"].null_count() == 5 and rows["bytes"].null_count() == 0
    os.utime(five / "audio/t1.wav", (5, 5))
    assert n_read(settings, hash_audio=False) == 1


def test_a_file_written_while_it_is_read_is_refused(settings: Settings, five: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hashed is what was read, else `changed-while-reading`; the next ingest has it."""
    from beatsight_assets.sources import rendered

    read = rendered.read

    def growing(root: Path, recording: sources.Recording, *rest: object) -> object:
        result = read(root, recording, *rest)  # type: ignore[arg-type]
        if recording.timeline == "midi/t2.mid":
            put_take(root, "t2", 77)
        return result

    put_take(five, "t2", 50)
    monkeypatch.setattr(rendered, "read", growing)
    report = sources.ingest(settings, "demo")
    assert report.facts["codes"] == {"changed-while-reading": 1}
    monkeypatch.undo()
    assert n_read(settings) == 1


def test_a_listing_that_fails_is_not_an_empty_one(settings: Settings, five: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed stops the ingest before anything is replaced."""
    from beatsight_assets.errors import StoreError

    before = settings.layout.events(NAME).read_bytes()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("midi"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match="cannot be listed"):
        sources.ingest(settings, "demo")
    monkeypatch.undo()
    assert settings.layout.events(NAME).read_bytes() == before
