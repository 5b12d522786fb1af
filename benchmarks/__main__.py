"""`python -m benchmarks [NAME ...]`: run the benchmarks, print one table, write benchmarks/results/latest.json."""

from __future__ import annotations

import importlib
import sys

from benchmarks.harness import HEADER, Result, pin_threads, save

NAMES = (
    "command_help",
    "midi_ingest",
    "ingest_scale",
    "frame_features",
    "clip_features",
    "training_feed",
    "near_duplicates",
    "manifest_stages",
    "transcription",
    "render_kits",
    "bundle_export",
    "interchange",
    "raw_hashing",
    "demo",
)


def main(names: list[str]) -> int:
    """Exit code 1 when a goal is missed."""
    pin_threads()
    results: list[Result] = []
    print(HEADER, flush=True)
    for name in names or NAMES:
        for result in importlib.import_module(f"benchmarks.{name}").run():
            print(result.line(), flush=True)
            results.append(result)
    print(f"-> {save(results)}")
    return 0 if all(r.met is not False for r in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
