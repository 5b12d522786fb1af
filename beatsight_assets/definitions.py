"""What workspace.yaml points at."""

from beatsight_assets.workers import one_thread_per_call

one_thread_per_call()

from beatsight_assets.dag.build import build_defs  # noqa: E402

defs = build_defs()
