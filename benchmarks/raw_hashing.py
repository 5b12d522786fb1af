"""P11: sha256 of raw data with two threads against one thread and against reading alone; and of an unchanged tree.

Wall clock, for threads are what this is about. The files lie in the page cache: a cold disk only makes both sides slower.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from benchmarks.harness import Result, alternate, wall_seconds

N_FILES = 128
FILE_BYTES = 16 << 20
BLOCK = 1 << 20


def _one_thread(root: Path, *, hashed: bool) -> None:
    for path in sorted(root.iterdir()):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as handle:
            while block := handle.read(BLOCK):
                if hashed:
                    digest.update(block)
        digest.hexdigest()


def run() -> list[Result]:
    """Figures of a first and of a second look."""
    from beatsight_assets.manifest.integrity import write_checksums
    from beatsight_assets.settings import DataLayout, Settings

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        raw = base / "raw/some"
        raw.mkdir(parents=True)
        content = os.urandom(FILE_BYTES)
        for n in range(N_FILES):
            (raw / f"{n:03d}.wav").write_bytes(content[n:] + content[:n])
        n_bytes = N_FILES * FILE_BYTES

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=base) as fresh:
                settings = Settings(layout=DataLayout(Path(fresh)), profile="dev")
                write_checksums(settings, raw, Path(fresh) / "sums.txt")

        ours_s, theirs_s = alternate(ours, lambda: _one_thread(raw, hashed=True), clock=wall_seconds)
        read_s = sorted(wall_seconds(lambda: _one_thread(raw, hashed=False)) for _ in range(3))[1]
        (base / "kept").mkdir()
        settings = Settings(layout=DataLayout(base / "kept"), profile="dev")
        first_s = wall_seconds(lambda: write_checksums(settings, raw, base / "sums.txt"))
        again_s = wall_seconds(lambda: write_checksums(settings, raw, base / "sums.txt", update=True))
    return [
        Result("raw_hashing P11", "GB", n_bytes / 1e9, n_bytes / 1e9 / ours_s, "one thread", n_bytes / 1e9 / theirs_s, theirs_s / ours_s,
               goal="2 threads beat a cold disk", notes={"read_from_page_cache_gb_per_s": n_bytes / 1e9 / read_s}),
        Result("raw_unchanged P11", "files", N_FILES, N_FILES / again_s, "the first look", N_FILES / first_s, first_s / again_s, goal=">= 100x", met=first_s / again_s >= 100),
    ]  # fmt: skip
