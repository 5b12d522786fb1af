"""Audio to drum hits, and hits to files people use: `.bsm`, MIDI, label tracks, event rows.

Belongs here: the forms of transcriptions, serving the promoted model, scoring one transcription against another. Does not belong here:
decoding the network and matching onsets (`model`), reading datasets (`sources`), the beatmap file itself (`bsm`).
"""

from __future__ import annotations

from beatsight_assets.bsm import Hit

__all__ = ["Hit"]
