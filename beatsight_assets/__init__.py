"""BeatSight assets: drum-transcription training data as a Dagster asset platform."""

from __future__ import annotations

__version__ = "0.1.0"
