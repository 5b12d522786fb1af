"""The real Groove takes, ingested once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from beatsight_assets.settings import Settings, load_settings
from beatsight_assets.sources import ingest


@pytest.fixture(scope="session")
def groove_lake(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data root with nothing but the ingested Groove takes; tests leave events/ alone."""
    root = tmp_path_factory.mktemp("groove")
    (root / "configs").mkdir()
    raw = shared_data / "groove_midi"
    (root / "configs" / "datasets.yaml").write_text(
        "datasets:\n  groove_mididataset:\n    {short: groove, raw_folder: groove_midi, module: groove, max_reject_rate: 1.0, "
        f'roots: ["{raw}"], options: {{devices: {{drummer2: td30_socal}}}}}}\n'
    )
    lake = load_settings(root, "dev", environ={})
    ingest(lake, "groove")
    return lake


@pytest.fixture(scope="session")
def groove_events(groove_lake: Settings) -> pl.DataFrame:
    """Events of the 992 Groove takes."""
    return pl.read_parquet(groove_lake.layout.events("groove_mididataset"))
