"""Beatmaps: `.bsm` files (`.bs`: the same in PascalCase) with the audio that they are for.

Layout      any folders of .bsm files; audio and drum stem are named in the file, relative to it
Timing      milliseconds, fractions allowed; tempo and meter from the timing points
Labels      component names; a missing velocity is unknown; lanes are drawing, not data
Group       `audio:` + sha256 of the song that the file names, so that several maps of one song stay together
Traps       the file may name audio that is not there, or that is another file by now; hits that a model heard and nobody corrected must not
            train the next model unnoticed: confidence 0.5, `machine_made` in extras, left out of bundles unless `include_generated`
Options     include_generated (read where bundles are planned)
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets.bsm import Beatmap, Hit, TimingPoint, read_bsm
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import Hits, Session
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Source, candidate_files
from beatsight_assets.store import contain, hash_file, printable, read_bytes
from beatsight_assets.taxonomy import Taxonomy, Voice

SOURCE = Source(
    name="beatmap",
    licence="per map",
    citation="",
    url="",
    suffixes=(".bsm", ".bs", *AUDIO_SUFFIXES),
    chain=("beatmap_import",),
    options=("include_generated",),
)
SUFFIXES = (".bsm", ".bs")
CONFIDENCE, HANDMADE_CONFIDENCE, MACHINE_CONFIDENCE = 0.7, 0.9, 0.5
METER = re.compile(r"[1-9]\d?/(1|2|4|8|16|32|64)", re.ASCII)
MAX_BYTES = 16 * 1024 * 1024  # an hour of dense drumming has 5 MB


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected]:
    """Every beatmap by path, with the audio it names where that is there; one that cannot be read is refused.

    Raises
    ------
    ConfigError `bad-config` : an option of another type
    """
    if not isinstance(options.get("include_generated", False), bool):
        raise ConfigError("include_generated must be true or false", code="bad-config", where="configs/datasets.yaml: beatmap.options")
    taxonomy = Taxonomy.shipped()  # names of components do not matter yet
    for timeline in candidate_files(root, SUFFIXES)[0]:
        try:
            beatmap = read_beatmap(contain(root, timeline), taxonomy)
            song, stem = (beside(root, timeline, name) for name in (beatmap.song.filename, beatmap.song.stem_filename))
        except InputError as error:
            yield Rejected(timeline, "scan", error.code, error.message)
            continue
        is_stem = stem is not None and (contain(root, stem).is_file() or song is None or not contain(root, song).is_file())
        session = Session(
            session_id=timeline,
            group_id=f"audio:{beatmap.song.audio_sha256}",
            audio_path=stem if is_stem else song,
            mix_context="drum_only" if is_stem else "full_mix",
            label_source="beatmap",
        )
        found = tuple(dict.fromkeys(path for path in (song, stem) if path and contain(root, path).is_file()))
        yield Recording(session, timeline, (timeline, *found), {"song": song, "stem": stem})


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """Hits of one beatmap; the audio that is there must be the audio that it was made for."""
    beatmap = read_beatmap(contain(root, recording.timeline), taxonomy)
    for path, stated in ((recording.facts["song"], beatmap.song.audio_sha256), (recording.facts["stem"], beatmap.song.stem_sha256)):
        if stated and path in recording.files and hash_file(contain(root, path)) != stated:
            message = f"{printable(path)} is not the audio that the beatmap was made for: its sha256 does not begin with {stated[:12]}"
            return Rejected(recording.timeline, "read", "hash-mismatch", message)
    extras = {"machine_made": True} if beatmap.is_machine_made else {}
    session = replace(recording.session, confidence=confidence_of(beatmap), extras=extras)
    issues = {
        "unknown_label": sum(taxonomy.canonical(hit.label) is None for hit in beatmap.hits),
        "bad_value": sum(METER.fullmatch(point.time_signature) is None for point in beatmap.timing),
    }
    facts = {
        "title": beatmap.song.title,
        "artist": beatmap.song.artist,
        "beatmap_id": beatmap.beatmap_id,
        "stated_duration_seconds": beatmap.song.duration_ms / 1000,
        "machine_made": beatmap.is_machine_made,
    }
    expressed = {*beatmap.kit, *(hit.label for hit in beatmap.hits)}
    coverage = tuple(label for label in taxonomy.labels if label in expressed)
    return Reading(session, hits_of(beatmap), coverage, None, facts, {k: v for k, v in issues.items() if v})


def read_beatmap(path: Path, taxonomy: Taxonomy) -> Beatmap:
    """A beatmap file.

    Raises
    ------
    InputError `bad-metadata` of `bsm.read_bsm`; `resource-limit` and others of `store.read_bytes`
    """
    return read_bsm(read_bytes(path, max_bytes=MAX_BYTES), taxonomy, where=path.name)


def confidence_of(beatmap: Beatmap) -> float:
    """How far the hits of a map are to be believed: made by hand, corrected by hand, or heard by a model alone."""
    return MACHINE_CONFIDENCE if beatmap.is_machine_made else HANDMADE_CONFIDENCE if beatmap.is_handmade else CONFIDENCE


def hits_of(beatmap: Beatmap) -> Hits:
    """Hits as columns, with tempo and meter of the timing point in force; before the first point its values hold."""
    voices = tuple(dict.fromkeys(_voice(hit) for hit in beatmap.hits))
    onset_us = np.array([hit.onset_us for hit in beatmap.hits], dtype=np.int64)
    at = np.searchsorted([point.onset_us for point in beatmap.timing], onset_us, side="right").clip(1) - 1
    meters = tuple(dict.fromkeys(point.time_signature for point in beatmap.timing if METER.fullmatch(point.time_signature)))
    return Hits(
        voices=voices,
        onset_us=onset_us,
        voice=np.array([voices.index(_voice(hit)) for hit in beatmap.hits], dtype=np.int64),
        velocity=np.array([np.nan if hit.velocity is None else hit.velocity for hit in beatmap.hits], dtype=np.float32),
        tempo_bpm=np.array([point.bpm for point in beatmap.timing], dtype=np.float64)[at],
        meters=meters,
        meter=np.array([_index(meters, point) for point in beatmap.timing], dtype=np.int64)[at],
    )


def _voice(hit: Hit) -> Voice:
    return Voice(hit.label, hit.variant)


def _index(meters: Sequence[str], point: TimingPoint) -> int:
    return meters.index(point.time_signature) if point.time_signature in meters else -1


def beside(root: Path, timeline: str, name: str | None) -> str | None:
    """Path below the root of a file that a beatmap names, relative to the beatmap; as it is spelled on the disk.

    Maps come from systems that do not tell `Song.WAV` from `song.wav`, nor an umlaut in one character from one in two.

    Raises
    ------
    InputError `path-escape`
    """
    if not name:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(timeline), name.replace("\\", "/")))
    place = contain(root, path)
    if place.is_file() or not place.parent.is_dir():
        return path
    alike = sorted(p.name for p in place.parent.iterdir() if _alike(p.name) == _alike(place.name))
    if alike:
        path = posixpath.join(posixpath.dirname(path), alike[0])
        contain(root, path)
    return path


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
