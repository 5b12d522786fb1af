"""Writes IDMT-SMT-Drums V2 as its owners lay it out: XML and SVL annotations, `#` in names, mixes, channels, training clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from beatsight_assets.audio import write_wav
from beatsight_assets_tests.sources.enst_layout import RATE_HZ, hit_audio

Onset = tuple[str, str]  # seconds as written, instrument

XML_HEAD = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<instrumentRecording>
  <globalParameter>
    <audioFileName>{base}#MIX.wav</audioFileName>
    <recordingArtist>Nobody</recordingArtist>
    <audioTrainingFileName>{base}#HH#train.wav</audioTrainingFileName>
  </globalParameter>
  <transcription>
"""
SVL_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE sonic-visualiser>
<sv>
  <data>
    <model id="2" name="" sampleRate="{rate}" start="0" end="1000" type="sparse" dimensions="1" resolution="1" notifyOnAdd="true" dataset="1" />
    <dataset id="1" dimensions="1">
"""
SVL_TAIL = """    </dataset>
  </data>
  <display>
    <layer id="0" type="timeinstants" name="Time Instants" model="2"  plotStyle="0" colourName="Purple" colour="#c832ff" />
  </display>
</sv>
"""


def xml(base: str, onsets: Sequence[Onset]) -> bytes:
    """Annotation of a mix."""
    body = "".join(
        f"    <event>\n      <pitch>0</pitch>\n      <onsetSec>{t}</onsetSec>\n      <offsetSec>{t}</offsetSec>\n"
        f"      <instrument>{instrument}</instrument>\n    </event>\n"
        for t, instrument in onsets
    )
    return (XML_HEAD.format(base=base) + body + "  </transcription>\n</instrumentRecording>\n").encode()


def svl(frames: Sequence[int], rate: int | str = RATE_HZ) -> bytes:
    """Annotation of one drum."""
    points = "".join(f'      <point frame="{frame}" label="New Point" />\n' for frame in frames)
    return (SVL_HEAD.format(rate=rate) + points + SVL_TAIL).encode()


def put(root: Path, name: str, content: bytes) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def clip(onsets_s: Sequence[float] = (0.25, 0.75), seconds: float = 1.5) -> bytes:
    """A mono wav with hits."""
    return write_wav(hit_audio(onsets_s, seconds), RATE_HZ)
