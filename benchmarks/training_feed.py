"""P9: shuffled training batches out of the feature cache against one tensor file per clip; equal tensors, features, targets and masks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, alternate, growth, median

TAKES = 5
HITS = 1_000  # of each take
BASELINE_CLIPS = 1_000
BATCH = 256
EPOCHS = 20  # in one measurement: the clock of CPU time ticks every 10 ms


class _Files:
    """What people write: a dataset that loads one tensor file, and a DataLoader around it. Worker processes made it slower."""

    def __init__(self, folder: Path, rows: list[int]) -> None:
        self.folder, self.rows = folder, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        import torch

        return torch.load(self.folder / f"{self.rows[i]}.pt", weights_only=True)


def run() -> list[Result]:
    """Samples per CPU second; the files of both sides are in the page cache."""
    import torch
    from torch.utils.data import DataLoader

    from beatsight_assets.features import clip_cache
    from beatsight_assets.features.clip_cache import WarmOptions
    from beatsight_assets.model.clips import load_clips
    from beatsight_assets.settings import DataLayout, Settings
    from beatsight_assets_tests.features.factories import make_bundle

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(layout=DataLayout(folder), profile="demo")
        make_bundle(settings, n_takes=TAKES, hits_per_take=HITS, part_clips=4_096)
        clip_cache.run(settings, WarmOptions("b"))
        clips = load_clips(settings, "b", ("train", "val"))
        first = clips.order(0, 0)[:BASELINE_CLIPS]
        for batch in clips.batches(first, BATCH):
            for i, row in enumerate(batch.rows.tolist()):
                torch.save((batch.features[i].clone(), batch.target[i].clone(), batch.judged[i].clone()), folder / f"{row}.pt")
        files = _Files(folder, first.tolist())
        resident = clips.resident("cpu")
        epoch = iter(range(1_000_000))

        def ours() -> None:
            for _ in range(EPOCHS):
                for _ in clips.batches(clips.order(0, next(epoch)), BATCH):
                    pass

        def held() -> None:
            for _ in range(EPOCHS):
                for _ in clips.batches(clips.order(0, next(epoch)), BATCH, resident=resident):
                    pass

        def baseline() -> None:
            for _ in DataLoader(files, batch_size=BATCH, shuffle=True):  # type: ignore[arg-type]
                pass

        assert all(torch.equal(files[i][0], b) for i, b in enumerate(next(clips.batches(first[:BATCH], BATCH)).features))
        for warm_up in (ours, held, baseline):
            warm_up()
        a, b = alternate(ours, baseline)
        r = median(held)
        some = clips.order(0, 0)[: len(clips) // 10]

        def tenth() -> None:
            for _ in range(10 * EPOCHS):
                for _ in clips.batches(some, BATCH):
                    pass

        small = median(tenth) / 10
    n = EPOCHS * len(clips)
    theirs = len(first) / b
    return [
        Result("P9 training feed", "samples", n, n / a, "one tensor file per clip", theirs, n / a / theirs, growth(n / 10, small, n, a), ">= 100x", n / a / theirs >= 100, {"batch": BATCH}),
        Result("P9 feed, in memory", "samples", n, n / r, "one tensor file per clip", theirs, n / r / theirs),
    ]  # fmt: skip
