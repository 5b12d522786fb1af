"""Bundles in the forms of other programs, under bundles/<name>/interchange/<kind>/.

Belongs here: writers with equal bytes for equal bundles, and readers that prove each of them. Does not belong here: the bundle itself
(`bundle`), label tracks and layers (`manifest.forms`), MIDI bytes (`midi`).
"""

from __future__ import annotations

from beatsight_assets.interchange.stage import FORMS, InterchangeOptions, run

__all__ = ["FORMS", "InterchangeOptions", "run"]
