"""Damaged files through the real ingest: no crash, no hang, one row per refusal, and nothing accepted that makes no sense."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import polars as pl
import pytest

from beatsight_assets import events, midi, sources
from beatsight_assets.errors import BeatSightError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Report
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import rng_for
from beatsight_assets_tests.sources.lake import HEADER, NAME, at, put_table, sound, take_bytes, with_config

MANY = bool(os.environ.get("BEATSIGHT_EXHAUSTIVE"))
N_MIDI, N_AUDIO, N_CSV = (2_000, 1_000, 500) if MANY else (300, 150, 60)
CPU_S_PER_FILE = 0.05
KNOWN_CODES = {
    "empty-file", "not-midi", "truncated-midi", "broken-midi", "unsupported-midi", "bad-time", "no-events", "resource-limit",
    "unreadable-audio", "empty-audio", "truncated-audio", "silent-audio", "non-finite-audio", "missing-midi", "path-escape",
    "duplicate-session", "bad-metadata", "changed-while-reading",
}  # fmt: skip

Damage = Callable[[bytes, np.random.Generator], bytes]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    found = bytearray(data)
    for at_byte in rng.integers(0, len(data), int(rng.integers(1, 6))).tolist():
        found[at_byte] = int(rng.integers(256))
    return bytes(found)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    at_byte = int(rng.integers(0, len(data)))
    return data[:at_byte] + rng.bytes(int(rng.integers(1, 40))) + data[at_byte:]


def remove(data: bytes, rng: np.random.Generator) -> bytes:
    at_byte = int(rng.integers(0, len(data)))
    return data[:at_byte] + data[at_byte + int(rng.integers(1, 20)) :]


def double(data: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:b] + data[a:b] + data[b:]


def zeros(data: bytes, rng: np.random.Generator) -> bytes:
    at_byte = int(rng.integers(0, len(data)))
    n = min(int(rng.integers(1, 64)), len(data) - at_byte)
    return data[:at_byte] + bytes(n) + data[at_byte + n :]


def number(data: bytes, rng: np.random.Generator) -> bytes:
    """A length or rate field of the head becomes an extreme value."""
    at_byte = int(rng.integers(0, min(44, len(data) - 4)))
    value = int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000]))
    return data[:at_byte] + struct.pack(str(rng.choice(["<I", ">I"])), value) + data[at_byte + 4 :]


def noise(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, 24))] + rng.bytes(int(rng.integers(0, 400)))


DAMAGES: tuple[Damage, ...] = (flip, cut, insert, remove, double, zeros, number, noise)


def require_sense(settings: Settings, max_seconds: float) -> dict[str, int]:
    """What an ingest accepted keeps reliability.md section 5, and what it refused is one row per file; returns the codes."""
    frame = pl.read_parquet(settings.layout.events(NAME))
    counts, violations = events.find_violations(frame, Taxonomy.load(settings))
    assert not any(counts.values()), violations
    assert frame.is_empty() or (float(frame["onset_time"].min()) >= 0 and float(frame["onset_time"].max()) < max_seconds)  # type: ignore[arg-type]
    provenance = pl.read_parquet(settings.layout.provenance(NAME))
    assert frame["session_id"].n_unique() == provenance.height and (provenance["hit_count"] > 0).all()
    for facts in map(json.loads, provenance["facts"]):
        assert all(np.isfinite(us) and 10_000 <= us <= 0xFFFFFF for _, us in facts["tempo_map"])
        if facts["audio_present"]:
            assert 0 < facts["duration_seconds"] <= 7_200 and 4_000 <= facts["rate_hz"] <= 384_000 and 1 <= facts["channels"] <= 64
    refused = pl.read_parquet(settings.layout.quarantine(NAME))
    assert refused["path"].n_unique() == refused.height
    assert set(refused["code"]) <= KNOWN_CODES, set(refused["code"]) - KNOWN_CODES
    report = json.loads(settings.layout.report("ingest", f"{NAME}.json").read_text())
    assert report["candidates"] == report["used"] + report["refused_files"] + report["out_of_scope"]
    assert report["hits"] == report["components"] + report["issues"].get("collapsed_hits", 0) and not report["unexplained_files"]
    return dict(Counter(refused["code"].to_list()))


def ingest_in_time(settings: Settings, n_files: int) -> Report:
    """The ingest of the damaged files; one that hangs, or grows with a length that a header claims, would be far above the limit."""
    before = process_time()
    report = sources.ingest(with_config(settings, max_reject_rate=1.0), "demo")
    assert process_time() - before < 2.0 + CPU_S_PER_FILE * n_files
    return report


def test_damaged_midi(settings: Settings) -> None:
    """Each MIDI file is a session or one row; onsets are within a day, tempos are music, no hit is lost."""
    root = settings.layout.raw(NAME)
    (root / "midi").mkdir(parents=True)
    names = [f"m{i:04d}" for i in range(N_MIDI)]
    long = midi.write_midi(
        [(i * 90_000, (36, 38, 42, 46)[i % 4], 1 + i % 127) for i in range(60)], pedal=[(i * 200_000, i % 128) for i in range(30)]
    )
    for i, name in enumerate(names):
        rng = rng_for(i, "damaged midi")
        data = DAMAGES[i % len(DAMAGES)](long if i % 3 else take_bytes(i), rng)
        (root / f"midi/{name}.mid").write_bytes(data)
    put_table(root, names)
    report = ingest_in_time(settings, N_MIDI)
    codes = require_sense(settings, 86_400)
    print(f"MIDI: {N_MIDI} damaged, {report.figures['recordings']} accepted, refused: {codes}")
    assert report.figures["recordings"] + sum(codes.values()) == N_MIDI and sum(codes.values()) > N_MIDI // 4
    assert report.passed, report.verdicts


def test_damaged_audio(settings: Settings, tmp_path: Path) -> None:
    """Each sound is used or one row, its take stays; durations, rates and channels make sense. wav, flac and ogg."""
    import soundfile

    root = settings.layout.raw(NAME)
    (root / "midi").mkdir(parents=True)
    (root / "audio").mkdir()
    originals = {"wav": sound(3)}
    samples = np.zeros((5_000, 2), np.float32)
    samples[::500] = 0.4
    for suffix in ("flac", "ogg", "aiff"):
        soundfile.write(tmp_path / f"x.{suffix}", samples, 8_000)
        originals[suffix] = (tmp_path / f"x.{suffix}").read_bytes()
    rows, kinds = [], list(originals)
    for i in range(N_AUDIO):
        name, suffix = f"a{i:04d}", kinds[i % len(kinds)]
        (root / f"midi/{name}.mid").write_bytes(take_bytes(i))
        data = DAMAGES[(i // len(kinds)) % len(DAMAGES)](originals[suffix], rng_for(i, "damaged audio"))
        (root / f"audio/{name}.{suffix}").write_bytes(data)
        rows.append(f"{name},midi/{name}.mid,audio/{name}.{suffix},kit,{name},train,drum_only\n")
    (root / "takes.csv").write_text(HEADER + "".join(rows))
    report = ingest_in_time(settings, N_AUDIO)
    codes = require_sense(settings, 86_400)
    facts = [json.loads(f) for f in pl.read_parquet(settings.layout.provenance(NAME))["facts"]]
    n_heard = sum(f["audio_present"] for f in facts)
    print(f"audio: {N_AUDIO} damaged, {n_heard} accepted, refused: {codes}")
    assert report.figures["recordings"] == N_AUDIO == n_heard + sum(codes.values()) and report.passed
    assert sum(codes.values()) > N_AUDIO // 4


def test_damaged_tables(settings: Settings, tmp_path: Path) -> None:
    """A table that cannot be read is an error with its file and line; one that can gives sessions or rows. Nothing is read outside."""
    outcomes: Counter[str] = Counter()
    good = (HEADER + "".join(f"t{i},midi/t{i}.mid,,kit,t{i},train,drum_only\n" for i in range(4))).encode()
    poison = (b"../../x", b'"', b"\0", b"\xff\xfe", b"/etc/passwd", b"\n\n", b",", b"\r", b"\xe2\x80\xae", b"~root", b"C:\\x", b"a" * 300)
    for n in range(N_CSV):
        rng = rng_for(n, "damaged table")
        here = at(settings, tmp_path / f"d{n % 2}" if MANY else tmp_path / f"d{n}")
        root = here.layout.raw(NAME)
        (root / "midi").mkdir(parents=True, exist_ok=True)
        for i in range(4):
            (root / f"midi/t{i}.mid").write_bytes(take_bytes(i))
        if n % 2:
            place = int(rng.integers(0, len(good)))
            data = good[:place] + poison[int(rng.integers(len(poison)))] + good[place:]
        else:
            data = DAMAGES[int(rng.integers(len(DAMAGES)))](good, rng)
        (root / "takes.csv").write_bytes(data)
        try:
            report = sources.ingest(with_config(here, max_reject_rate=1.0), "demo")
        except BeatSightError as error:
            outcomes[error.code] += 1
            assert (error.exit_code in (1, 3) and "takes.csv" in f"{error.where}{error.message}") or error.code == "no-recordings"
            continue
        outcomes["read"] += 1
        require_sense(here, 86_400)
        assert report.figures["recordings"] <= 4
    print(f"csv: {N_CSV} damaged: {dict(outcomes)}")
    assert set(outcomes) <= {"read", "no-recordings", "bad-metadata", "bad-encoding", "missing-metadata"}
    assert outcomes["read"] and outcomes["bad-metadata"]


@pytest.mark.parametrize(
    "name", [b"bad\xff.mid", b"with\x1bescape.mid", "right\u202eleft.mid".encode()], ids=["not UTF-8", "escape", "bidi"]
)
def test_names_that_are_no_text(settings: Settings, name: bytes) -> None:
    """A file whose name no table can hold is a row with its name escaped, or out of scope; it stops nothing."""
    root = settings.layout.raw(NAME)
    (root / "midi").mkdir(parents=True)
    (root / "midi/t0.mid").write_bytes(take_bytes(0))
    with open(os.path.join(os.fsencode(root), b"midi", name), "wb") as handle:
        handle.write(take_bytes(1))
    put_table(root, ["t0"])
    report = sources.ingest(with_config(settings, max_reject_rate=1.0), "demo")
    assert report.figures["recordings"] == 1 and report.passed
    for row in pl.read_parquet(settings.layout.quarantine(NAME)).to_dicts():
        assert row["path"].isprintable()
