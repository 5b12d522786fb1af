"""What workspace.yaml points at."""

from beatsight_assets.dag.build import build_defs

defs = build_defs()
