"""Stem rows: one row per named audio file, refused where the audio says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from beatsight_assets import events
from beatsight_assets.audio import write_wav
from beatsight_assets.events import Session
from beatsight_assets.sources import Reading, Recording, Rejected
from beatsight_assets.sources.stem_rows import stem_reading
from beatsight_assets.taxonomy import DRUM_MIX, Taxonomy, Voice

NOISE = write_wav(np.random.default_rng(3).normal(0, 0.1, (44_100 * 2 + 1, 2)), 44_100)


def recording(root: Path, content: bytes | None) -> Recording:
    session = Session(
        "a/drums.wav", "song:a|b", audio_path="a/drums.wav", label_source="file_name", confidence=0.9, extras={"stem": "drums"}
    )
    if content is None:
        return Recording(session, "a/drums.wav", ())
    (root / "a").mkdir()
    (root / "a/drums.wav").write_bytes(content)
    return Recording(session, "a/drums.wav", ("a/drums.wav",))


def test_a_stem_is_one_row_from_0_to_its_end(tmp_path: Path) -> None:
    """Onset 0, offset = frames over rate rounded half up, context 0/0, stem; the row breaks no rule of the schema."""
    found = stem_reading(tmp_path, recording(tmp_path, NOISE), Voice("kick"), Taxonomy.shipped())
    assert isinstance(found, Reading) and found.audio is not None and found.audio.n_frames == 88_201
    frame = events.assemble("musdb18_hq", [(found.session, found.hits)], Taxonomy.shipped()).frame
    row = frame.row(0, named=True)
    assert (row["onset_time"], row["offset_time"], row["mix_context"]) == (0.0, 2.000023, "stem")
    assert row["context_ms"] == {"pre": 0.0, "post": 0.0} and json.loads(row["extras"])["stem"] == "drums"
    assert not sum(events.find_violations(frame, Taxonomy.shipped())[0].values())
    assert found.coverage == ("kick",)


def test_an_absent_stem_keeps_its_row_without_an_end(tmp_path: Path) -> None:
    """`audio_absent` is a remark, not a refusal; drum_mix is no class and covers none."""
    found = stem_reading(tmp_path, recording(tmp_path, None), Voice(DRUM_MIX), Taxonomy.shipped())
    assert isinstance(found, Reading) and found.audio is None and found.coverage == ()
    frame = events.assemble("musdb18_hq", [(found.session, found.hits)], Taxonomy.shipped()).frame
    assert frame["offset_time"].to_list() == [None] and events.label_counts(frame) == {}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (write_wav(np.zeros((4_410, 2)), 44_100), "silent-audio"),
        (write_wav(np.zeros((0, 2)), 44_100), "empty-audio"),
        (b"RIFF....WAVE no", "unreadable-audio"),
        (b"", "empty-file"),
    ],
    ids=["all zero", "no frames", "no wav", "no bytes"],
)
def test_audio_that_says_nothing_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    """One quarantine row at the audio's path, with the code of the probe."""
    found = stem_reading(tmp_path, recording(tmp_path, content), Voice("kick"), Taxonomy.shipped())
    assert isinstance(found, Rejected) and (found.path, found.stage, found.code) == ("a/drums.wav", "audio", code)
