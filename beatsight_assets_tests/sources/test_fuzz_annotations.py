"""Damaged annotations through the real ingest: no crash, no hang, one row for each file refused, and no accepted file that breaks a rule."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import polars as pl
import pytest
import yaml

from beatsight_assets import events
from beatsight_assets.settings import Settings
from beatsight_assets.sources import ingest
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import rng_for
from beatsight_assets_tests.sources.enst_layout import PUBLIC, annotation
from beatsight_assets_tests.sources.idmt_layout import put, svl, xml
from beatsight_assets_tests.sources.test_medleydb import described

N_FILES = 5_000 if os.environ.get("BEATSIGHT_EXHAUSTIVE") else 500  # of each of the families
CPU_S_PER_FILE = 0.1  # a hang would be far above; the whole ingest has this much for each of its files
CODES = {
    "empty-file", "bad-metadata", "bad-encoding", "bad-time", "no-events", "path-escape", "resource-limit", "missing-metadata", "missing-annotation",
}  # fmt: skip
NASTY = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"NaN", b"-1", b"-0.0", b"1e308", b"1e-9", b"99999999999999999999", b"86400",
    b"86399.9999999", b"0.00000049", b"\r", b"\n", b"\t\t", b"<", b"&amp;", b"&a;", b"]]>", b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"<!-- ", b"<![CDATA[",
    b"../../x", b"/etc/passwd", b"~", b"\\", b": ", b"- ", b"*a", b"&a ", b"!!python/object:os.system", b"{", b"}", b"[", b"null", b"drum_mix", b"hihat", b"'",
    b"\xc3\xa9", b"\xed\xa0\x80", b"kick kick", b"\x1b[31m", b"%" * 300,
)  # fmt: skip


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four of: flip a bit, cut, repeat or drop a span, put something nasty somewhere, swap lines, another encoding."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        kind, at = int(rng.integers(0, 8)), int(rng.integers(0, len(data) + 1))
        span = slice(at, at + int(rng.integers(1, 60)))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[span] * int(rng.integers(1, 30))
        elif kind == 3:
            del data[span]
        elif kind in (4, 5):
            data[span if kind == 4 else slice(at, at)] = NASTY[int(rng.integers(0, len(NASTY)))]
        elif kind == 6:
            lines = data.splitlines(keepends=True)
            rng.shuffle(lines)  # type: ignore[arg-type]
            data = bytearray(b"".join(lines))
        elif rng.random() < 0.2:
            data = bytearray(bytes(data).decode("utf-8", "replace").encode("utf-16"))
    return bytes(data)


def write_idmt(root: Path, n: int, rng: np.random.Generator) -> str:
    base = f"RealDrum{n:03}_00"
    times = np.sort(rng.uniform(0, 10, 12))
    if n % 2:
        drum = ("HH", "KD", "SD")[n % 3]
        return put(root, f"annotation_svl/{base}#{drum}.svl", mutate(svl([round(t * 44_100) for t in times]), rng))
    content = xml(base, [(f"{t:.6f}", ("HH", "KD", "SD")[i % 3]) for i, t in enumerate(times)])
    return put(root, f"annotation_xml/{base}#MIX.xml", mutate(content, rng))


def write_enst(root: Path, n: int, rng: np.random.Generator) -> str:
    onsets = [(t, ("bd", "sd", "chh", "c4", "sweep")[i % 5]) for i, t in enumerate(np.sort(rng.uniform(0, 10, 15)))]
    return put(root, f"{PUBLIC}/drummer_{n % 3 + 1}/annotation/{n:04}_phrase_rock_simple_fast_sticks.txt", mutate(annotation(onsets), rng))


def write_mdb(root: Path, n: int, rng: np.random.Generator) -> str:
    lines = "".join(f"{t:.6f} \t {('KD', 'SD', 'SDG', 'CHH')[i % 4]} \n" for i, t in enumerate(np.sort(rng.uniform(0, 10, 15))))
    kind, suffix = (("subclass", "subclass.txt"), ("class", "class.txt"), ("beats", "MIX.beats"))[n % 3]
    good = f"MDB Drums/annotations/subclass/MusicDelta_T{n}_subclass.txt"
    put(root, good, lines.encode())
    return put(root, f"MDB Drums/annotations/{kind}/MusicDelta_T{n}_{suffix}", mutate(lines.encode(), rng))


def write_medleydb(root: Path, n: int, rng: np.random.Generator) -> str:
    content = yaml.safe_dump(described(f"A{n}_Song"), sort_keys=False).encode()
    return put(root, f"Metadata/A{n}_Song_METADATA.yaml", mutate(content, rng))


FAMILIES: dict[str, tuple[str, Callable[[Path, int, np.random.Generator], str], int]] = {
    "XML and SVL": ("idmt_smt_drums_v2", write_idmt, N_FILES),
    "text of ENST": ("enst_drums", write_enst, N_FILES),
    "text of MDB Drums": ("mdb_drums", write_mdb, N_FILES),
    "YAML": ("medleydb", write_medleydb, N_FILES),
}


@pytest.mark.parametrize("family", list(FAMILIES), ids=str)
def test_damaged_files_are_refused_or_right(settings: Settings, family: str) -> None:
    """Every damaged file is read without breaking a rule, or is exactly one quarantine row with a code of the table."""
    source_set, write, n_files = FAMILIES[family]
    root = settings.layout.raw(source_set)
    damaged = {write(root, n, rng_for(20, family, str(n))) for n in range(n_files)}
    before = process_time()
    report = ingest(settings, source_set)
    assert process_time() - before < 2.0 + CPU_S_PER_FILE * n_files
    quarantine = pl.read_parquet(settings.layout.quarantine(source_set))
    assert quarantine["path"].is_unique().all() and set(quarantine["path"]) <= damaged
    assert set(quarantine["code"]) <= CODES, "internal-error among them is our bug"
    f = report.figures
    assert f["candidates"] == f["used"] + f["rejected"] + f["absent"] + f["out_of_scope"]
    frame = events.read_events(settings.layout.events(source_set))
    counts, first = events.find_violations(frame, Taxonomy.shipped())
    assert not sum(counts.values()), first
    verdict = report.verdict("ingest")
    assert verdict is not None
    bad = [r for r in verdict.rules if r.blocking and not r.passed and r.name != "accounted"]
    accounted = verdict.rule("accounted")
    assert not bad and accounted is not None and "unexplained" not in accounted.detail and "internal" not in accounted.detail
    accepted = damaged - set(quarantine["path"])
    assert accepted and quarantine.height, "the damage is neither always fatal nor never"
    counted = sorted(quarantine.group_by("code").len().iter_rows())
    print(f"{family}: {len(damaged)} files, {quarantine.height} refused {counted}, {frame.height} events, issues {report.facts['issues']}")
