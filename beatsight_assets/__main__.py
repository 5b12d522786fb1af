"""`python -m beatsight_assets` is `beatsight`."""

from __future__ import annotations

from beatsight_assets.cli import main

main()
