"""Ingest at the scale of E-GMD: 45,000 MIDI files generated here, without audio; time, peak memory, and what an unchanged tree costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Result, growth, shared_data

N_FILES = int(os.environ.get("BEATSIGHT_BENCH_FILES", "45000"))
GOAL = 100.0  # unchanged tree, CPU seconds
TEMPO = b"\xff\x51\x03"
HEADER = "drummer,session,id,style,bpm,beat_type,time_signature,midi_filename,audio_filename,duration,split\n"
CHILD = """
import json, resource, sys
from benchmarks.harness import cpu_seconds
from beatsight_assets import sources
from beatsight_assets.settings import load_settings
settings = load_settings(sys.argv[1], "demo", {})
settings.datasets
found = []
first = cpu_seconds(lambda: found.append(sources.ingest(settings, "groove")))
again = cpu_seconds(lambda: [found.append(sources.ingest(settings, "groove")) for _ in range(20)]) / 20  # the clock ticks every 10 ms
assert not found[0].reused and found[-1].reused
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"first": first, "again": again, "peak": peak, "hits": found[0].figures["hits"], "events": found[0].figures["events"], "passed": found[0].passed}))
"""


def _bases() -> list[bytes]:
    folder = shared_data()
    if folder is not None and (folder / "groove_midi").is_dir():
        return [p.read_bytes() for p in sorted((folder / "groove_midi").rglob("*.mid"))]
    from benchmarks.midi_ingest import made_files

    return made_files()


def make_tree(root: Path, n_files: int) -> None:
    """A tree in the layout of Groove: real takes at other tempos, so that every file has other onsets."""
    bases = _bases()
    rows = []
    for i in range(n_files):
        data = bases[i % len(bases)]
        at = data.find(TEMPO)
        if at >= 0:
            us = int.from_bytes(data[at + 3 : at + 6], "big") + i // len(bases)
            data = data[: at + 3] + us.to_bytes(3, "big") + data[at + 6 :]
        name = f"drummer{i % 9 + 1}/session{i // 1000}/{i}_rock_100_beat_4-4.mid"
        path = root / name
        if i < 9 or i % 1000 < 9:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        rows.append(f"drummer{i % 9 + 1},s,drummer{i % 9 + 1}/s/{i},rock,100,beat,4-4,{name},,10.0,train\n")
    (root / "info.csv").write_text(HEADER + "".join(rows))


def _measure(n_files: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        make_tree(Path(folder) / "raw" / "groove_midi", n_files)
        done = subprocess.run([sys.executable, "-c", CHILD, folder], capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found


def run() -> list[Result]:
    """Files per CPU second, and how much cheaper the second run is; a tenth of the files gives the growth of time and memory."""
    small, large = _measure(N_FILES // 10), _measure(N_FILES)
    ratio = large["first"] / large["again"]
    notes = {
        "hits": large["hits"],
        "events": large["events"],
        "peak_mb": round(large["peak"] / 1e6),
        "peak_mb_at_a_tenth": round(small["peak"] / 1e6),
        "first_cpu_s": round(large["first"], 2),
        "unchanged_cpu_s": round(large["again"], 4),
        "unchanged_ratio_at_a_tenth": round(small["first"] / small["again"], 1),
    }
    return [
        Result("P11 unchanged tree", "files", N_FILES, N_FILES / large["again"], "first ingest", N_FILES / large["first"], ratio,
               growth(N_FILES // 10, small["first"], N_FILES, large["first"]), f">= {GOAL:.0f}x", ratio >= GOAL, notes)
    ]  # fmt: skip
