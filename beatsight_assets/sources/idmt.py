"""IDMT-SMT-Drums V2: drum loops, recorded (RealDrum), from drum samples (WaveDrum) and from drum machines (TechnoDrum).

Layout      `audio/<base>#MIX.wav`, `audio/<base>#{HH,KD,SD}#train.wav`, for some `audio/<base>#{HH,KD,SD}.wav`;
            `annotation_xml/<base>#MIX.xml`; `annotation_svl/<base>#{HH,KD,SD}.svl`. The `#` belongs to the names
XML         `instrumentRecording/transcription/event/{onsetSec, instrument}`; pitch is always 0 and offsetSec is the onset
SVL         Sonic Visualiser: `model@sampleRate`, `dataset/point@frame`; the instrument is in the file name; `model@end` and labels mean nothing
Labels      KD, SD, HH; HH says nothing about open or closed. Velocity unknown
Group       `idmt:<base>`: mix and channels of one loop
Traps       SVL times are those of the MIX, not of the training clip; one SVL alone says nothing about the other drums of a mix; where
            XML and SVL differ the XML wins and the difference is counted
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beatsight_assets.errors import InputError
from beatsight_assets.events import Session
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, candidate_files
from beatsight_assets.sources.onsets import DAY_US, Rows, match_onsets, microseconds, to_hits
from beatsight_assets.sources.safexml import read_xml
from beatsight_assets.taxonomy import UNSPECIFIED, Taxonomy, Voice

SOURCE = Source(
    name="idmt",
    licence="CC BY-NC-ND 4.0",
    citation="dittmar2014",
    url="https://www.idmt.fraunhofer.de/en/publications/datasets/drums.html",
    suffixes=(".xml", ".svl", *AUDIO_SUFFIXES),
    chain=("audio_annotation",),
)
LABELS = {"KD": Voice("kick"), "SD": Voice("snare"), "HH": Voice("hihat_closed", UNSPECIFIED)}
FAMILIES = {"KD": "kick", "SD": "snare", "HH": "hihat"}
AGREE_US = 10_000  # XML and SVL tell of one stroke within 10 ms
CONTEXT_MS = (40.0, 120.0)
RATE_RANGE_HZ = (4_000, 384_000)

_FILE = re.compile(
    r"(?P<home>(?:[^/]+/)*)(?P<folder>annotation_xml|annotation_svl|audio)/"
    r"(?P<base>[^/#]+)#(?P<channel>MIX|HH|KD|SD)(?P<train>#train)?\.(?P<suffix>[^./]+)"
)

Files = dict[tuple[str, str], str]  # (folder, channel) -> path


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """The mix of every loop whose drums are all annotated, and the single channels that are annotated; training clips are skipped.

    Damaged SVL files are refused here: they are small, and whether a mix can be read depends on all of them.
    """
    loops: dict[tuple[str, str], Files] = {}
    for path in candidate_files(root, SOURCE.suffixes)[0]:
        found = _FILE.fullmatch(path)
        if found and found["train"]:
            yield Skipped(path, "training_clip")
        elif found and (found["folder"] != "annotation_svl" or found["channel"] != "MIX"):
            files = loops.setdefault((found["home"], found["base"]), {})
            damage = _svl_damage(root, path) if found["folder"] == "annotation_svl" else None
            if damage:
                yield damage
            else:
                files.setdefault((found["folder"], found["channel"]), path)
    for (home, base), files in loops.items():
        xml = files.get(("annotation_xml", "MIX"))
        svls = {c: files["annotation_svl", c] for c in LABELS if ("annotation_svl", c) in files}
        has_mix = xml is not None or len(svls) == len(LABELS)
        if has_mix:
            yield _recording(home, base, "MIX", (*([xml] if xml else []), *svls.values()), files)
        for channel in LABELS:
            if channel in svls and (("audio", channel) in files or not xml):
                yield _recording(home, base, channel, (svls[channel],), files)
        for channel in ("MIX", *LABELS):
            audio = files.get(("audio", channel))
            if audio and not (has_mix if channel == "MIX" else channel in svls):
                needed = "an XML, or an SVL for each of the three drums" if channel == "MIX" else "an SVL of this drum"
                yield Rejected(audio, "scan", "missing-annotation", f"it takes {needed}")


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """Onsets of one mix or one channel; XML and SVL compared where both are there."""
    channel = str(recording.facts["channel"])
    svls = {found["channel"]: f for f in recording.files if (found := _FILE.fullmatch(f)) and found["folder"] == "annotation_svl"}
    n_bad = n_disagree = 0
    try:
        if recording.timeline.lower().endswith(".xml"):
            rows, n_bad = read_transcription(root / recording.timeline, recording.timeline)
            for drum, path in svls.items():
                ours, theirs = [us for us, word in rows if word == drum], [us for us, _ in read_points(root / path, path, drum)[0]]
                n_disagree += len(ours) + len(theirs) - 2 * len(match_onsets(ours, theirs, AGREE_US))
        else:
            read_svls = [read_points(root / path, path, drum) for drum, path in svls.items()]
            rows = sorted((row for found, _ in read_svls for row in found), key=lambda row: row[0])
            n_bad = sum(n for _, n in read_svls)
    except InputError as error:
        return Rejected(recording.timeline, "read", error.code, error.message)
    hits, n_unknown = to_hits(rows, LABELS, taxonomy)
    coverage = tuple(FAMILIES.values()) if channel == "MIX" else (FAMILIES[channel],)
    issues = {"bad_time": n_bad, "unknown_label": n_unknown, "annotation_disagreement": n_disagree}
    return Reading(recording.session, hits, coverage, None, {}, {k: v for k, v in issues.items() if v})


def read_transcription(path: Path, name: str) -> tuple[Rows, int]:
    """((microsecond, instrument) of each event of an XML, sorted by time; number of events without a time or an instrument).

    Raises
    ------
    InputError : see `safexml.read_xml`
    """
    rows, n_bad = [], 0
    for event in read_xml(path, root="instrumentRecording", name=name).find_all("transcription", "event"):
        us, instrument = microseconds(event.first_text("onsetSec")), event.first_text("instrument")
        if us is None or len(instrument.split()) != 1:
            n_bad += 1
        else:
            rows.append((us, instrument))
    return sorted(rows, key=lambda row: row[0]), n_bad


def read_points(path: Path, name: str, drum: str) -> tuple[Rows, int]:
    """((microsecond, drum) of each point of an SVL, sorted, times half up; number of points without a frame within a day).

    Raises
    ------
    InputError `bad-metadata` : no sample rate, one out of range, or two; and those of `safexml.read_xml`
    """
    data = list(read_xml(path, root="sv", name=name).find_all("data"))
    rates = {model.attributes.get("sampleRate", "") for part in data for model in part.find_all("model")}
    rate = next(iter(rates)) if len(rates) == 1 else ""
    if not re.fullmatch(r"\d{1,6}", rate, re.ASCII) or not RATE_RANGE_HZ[0] <= int(rate) <= RATE_RANGE_HZ[1]:
        shown = ", ".join(sorted(rates))[:80] or "none"
        raise InputError(f"sampleRate {shown}; one of {RATE_RANGE_HZ[0]}..{RATE_RANGE_HZ[1]} Hz is due", code="bad-metadata", where=name)
    rows, n_bad = [], 0
    for point in (p for part in data for p in part.find_all("dataset", "point")):
        frame = point.attributes.get("frame", "")
        us = (2 * int(frame) * 1_000_000 + int(rate)) // (2 * int(rate)) if re.fullmatch(r"\d{1,12}", frame, re.ASCII) else DAY_US
        if us < DAY_US:
            rows.append((us, drum))
        else:
            n_bad += 1
    return sorted(rows, key=lambda row: row[0]), n_bad


def _svl_damage(root: Path, relpath: str) -> Rejected | None:
    try:
        read_points(root / relpath, relpath, "")
    except InputError as error:
        return Rejected(relpath, "scan", error.code, error.message)
    return None


def _recording(home: str, base: str, channel: str, annotations: tuple[str, ...], files: Files) -> Recording:
    audio = files.get(("audio", channel))
    name = f"{home}audio/{base}#{channel}.wav"
    session = Session(
        session_id=name,
        group_id=f"idmt:{base}",
        audio_path=audio or name,
        context_ms=CONTEXT_MS,
        mix_context="drum_only" if channel == "MIX" else "close_mic",
        label_source="human",
        confidence=0.95,
    )
    facts = {"channel": channel, "kit_family": base.partition("_")[0]}
    return Recording(session, annotations[0], (*annotations, *([audio] if audio else [])), facts)
