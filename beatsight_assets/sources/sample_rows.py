"""Sample rows: one row per one-shot file, its onset measured, its label from its name or its kit's table (`spec/events.md` section 5).

Belongs here: where a one-shot begins and what its row looks like. Does not belong here: what a file name means (`names`), kit layouts
(`one_shots`), packs (`signaturesounds`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets import audio
from beatsight_assets.errors import BeatSightError
from beatsight_assets.events import Hits, Session
from beatsight_assets.sources import Reading, Recording, Rejected
from beatsight_assets.store import contain
from beatsight_assets.taxonomy import Taxonomy, Voice

CONTEXT_MS = (20.0, 480.0)
ONSET_SHARE = 0.05  # of the peak: the AVL kits need up to 15.6 ms from the first sample to there
NOT_IN_NAMES = ("hihat_foot_splash",)  # no file name says it, so its absence says nothing


def sample_session(
    path: str, group_id: str, *, kit_id: str | None = None, confidence: float, mix_context: str = "one_shot", **extras: Any
) -> Session:
    """The session of a one-shot file at `path` (relative to the dataset root); extras that are None are left out."""
    return Session(
        session_id=path,
        group_id=group_id,
        kit_id=kit_id,
        audio_path=path,
        context_ms=CONTEXT_MS,
        mix_context=mix_context,
        label_source="file_name",
        confidence=confidence,
        extras={k: v for k, v in extras.items() if v is not None},
    )


def sample_onset(samples: NDArray[np.float32], rate_hz: int) -> int:
    """Microsecond (half up) of the first sample that reaches 5 % of the peak.

    Parameters
    ----------
    samples : float32 [shape=(n_samples,)], the plain mean of the channels

    Raises
    ------
    AudioError `silent-audio` : no sample differs from 0
    """
    level = np.abs(samples)
    peak = float(level.max(initial=0.0))
    if peak == 0.0:
        raise audio.AudioError("the mean of the channels is silent: they are empty or cancel each other", code="silent-audio")
    first = int(np.argmax(level >= np.float32(ONSET_SHARE * peak)))
    return (2 * first * 1_000_000 + rate_hz) // (2 * rate_hz)


def sample_reading(
    root: Path,
    recording: Recording,
    voice: Voice,
    taxonomy: Taxonomy,
    *,
    velocity: float = math.nan,
    coverage: tuple[str, ...] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Reading | Rejected:
    """One hit at the measured onset of the session's audio; a file that does not decode, is empty or silent is refused.

    `velocity` 0..1 only where the kit states it. `coverage` defaults to every component that a file name can say.
    """
    path = recording.session.audio_path or recording.timeline
    try:
        clip = audio.read_mono(contain(root, path))
        onset_us = sample_onset(clip.samples, clip.rate_hz)
    except BeatSightError as error:
        return Rejected(path, "audio", error.code, error.message)
    said = tuple(label for label in taxonomy.labels if label not in NOT_IN_NAMES) if coverage is None else coverage
    return Reading(recording.session, Hits.single(voice, onset_us, velocity=velocity), said, facts=dict(facts or {}), audio=clip.info)
