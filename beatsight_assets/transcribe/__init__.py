"""Audio to drum hits, and hits to files people use: `.bsm`, MIDI, label tracks, event rows.

Belongs here: the forms of transcriptions, serving the promoted model, scoring one transcription against another. Does not belong here:
decoding the network and matching onsets (`model`), reading datasets (`sources`).
"""

from __future__ import annotations

from typing import NamedTuple


class Hit(NamedTuple):
    """One hit of one recording, as every form of transcription holds it."""

    onset_us: int  # microseconds from the start of the audio
    label: str  # canonical component; a label outside the taxonomy stays as it was read
    velocity: float | None = None  # 0..1
    openness: float | None = None  # 0 closed .. 1 open, hi-hats only
    variant: str | None = None  # `unspecified`: the form knows the family only
