"""MedleyDB: multitrack recordings of songs; its drum stems are inventory, their onsets are not annotated.

Layout      `[Audio/]<Artist_Title>/{<t>_METADATA.yaml, <t>_MIX.wav, <t>_STEMS/<t>_STEM_SS.wav, <t>_RAW/<t>_RAW_SS_RR.wav}`; the yaml files
            may lie in `Metadata/` instead
yaml        stem_dir, raw_dir, mix_filename, has_bleed ("yes", "no"), stems{S01{filename, instrument, component, raw{R01{filename, instrument}}}};
            `instrument` is a name or a list of names
Labels      from `instrument`; a stem of several drums is `drum_mix`. One row per drum stem, with `include_raw` one per raw recording of it
Group       song key of the folder name, the same key as in MUSDB and MDB Drums
Traps       the number of the drum stem differs per track; files lie where the yaml says and nowhere else; raw recordings and mixes are
            byte-equal to files of MDB Drums, so their digests go into the provenance of the drum stem
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beatsight_assets import safeyaml
from beatsight_assets.errors import InputError
from beatsight_assets.events import Session
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, candidate_files
from beatsight_assets.sources.songs import song_group
from beatsight_assets.sources.stem_rows import stem_reading
from beatsight_assets.store import contain, is_plain_path, printable
from beatsight_assets.taxonomy import DRUM_MIX, UNSPECIFIED, Taxonomy, Voice

SOURCE = Source(
    name="medleydb",
    licence="CC BY-NC-SA 4.0",
    citation="bittner2014",
    url="https://medleydb.weebly.com",
    suffixes=(".yaml", ".yml", *AUDIO_SUFFIXES),
    chain=("multitrack_stems",),
    options=("include_raw",),
)
AUX = ("auxiliary percussion", "bongo", "conga", "tabla", "darbuka", "doumbek", "guiro", "castanet", "sleigh bells", "gong", "triangle", "chimes",
       "snaps")  # fmt: skip
INSTRUMENTS = {
    **dict.fromkeys(("drum set", "drum machine"), Voice(DRUM_MIX)),
    **dict.fromkeys(("kick drum", "bass drum"), Voice("kick")),
    "snare drum": Voice("snare"),
    **dict.fromkeys(("high hat", "hi-hat"), Voice("hihat_closed", UNSPECIFIED)),
    "toms": Voice("tom_mid", UNSPECIFIED),
    "cymbal": Voice("crash", UNSPECIFIED),
    "ride cymbal": Voice("ride_bow"),
    "claps": Voice("clap"),
    "tambourine": Voice("tambourine"),
    "cowbell": Voice("cowbell"),
    **dict.fromkeys(("shaker", "maracas", "cabasa"), Voice("shaker")),
    **{name: Voice("aux_percussion", name.replace(" ", "_")) for name in AUX},
}

_YAML = re.compile(r"(?P<folder>(?:[^/]+/)*)(?P<track>[^/]+)_METADATA\.ya?ml", re.IGNORECASE)
_TRACK_FILE = re.compile(r"(?P<home>(?:[^/]+/)*?)(?P<track>[^/]+)/(?P=track)_(?:MIX\.|STEMS/|RAW/)")


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """Drum stems of every track with a yaml, with or without audio; stems of other instruments are skipped."""
    candidates = candidate_files(root, SOURCE.suffixes)[0]
    homes: dict[str, str] = {}  # track -> its folder, by the first of its audio files
    for path in candidates:
        if found := _TRACK_FILE.match(path):
            homes.setdefault(found["track"], f"{found['home']}{found['track']}")
    described = {found["track"]: path for path in candidates if (found := _YAML.fullmatch(path))}
    for track, path in described.items():
        try:
            yield from _stems(root, track, path, homes.get(track, f"Audio/{track}"), set(candidates), bool(options.get("include_raw")))
        except InputError as error:
            yield Rejected(path, "scan", "path-escape" if error.code == "path-escape" else "bad-metadata", error.message)
    for track, home in homes.items():
        if track not in described:
            yield Rejected(home, "scan", "missing-metadata", f"{track}_METADATA.yaml is neither in this folder nor in Metadata/")


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """The row of one stem or raw recording."""
    voice = voice_of(recording.facts["instrument"])
    if voice is None:
        return Rejected(recording.timeline, "read", "unknown-label", f"{recording.facts['instrument']!r} is no drum")
    return stem_reading(root, recording, voice, taxonomy)


def voice_of(instrument: object) -> Voice | None:
    """What a stem holds: several different drums are `drum_mix`; None for other instruments, alone or among drums.

    >>> voice_of("drum set").label, voice_of(["bongo", "shaker"]).label, voice_of(["Kick Drum"]).label
    ('drum_mix', 'drum_mix', 'kick')
    >>> voice_of(["drum set", "male singer"]), voice_of("drums"), voice_of(None)
    (None, None, None)
    """
    names = [instrument] if isinstance(instrument, str) else instrument if isinstance(instrument, list) else []
    voices = {INSTRUMENTS.get(name.strip().casefold()) if isinstance(name, str) else None for name in names}
    if not voices or None in voices:
        return None
    return next(iter(voices)) if len(voices) == 1 else Voice(DRUM_MIX)


def _stems(root: Path, track: str, path: str, home: str, candidates: set[str], include_raw: bool) -> Iterator[Recording | Skipped]:
    """Recordings and skipped stems of one track.

    Raises
    ------
    InputError : what the yaml says has another form, or names a file outside the track's folder
    """
    data = _mapping(safeyaml.read_yaml(root / path, name=path, error=InputError, not_finite_as_null=True).data, "the document")
    stem_dir, raw_dir = (_name(data, key) for key in ("stem_dir", "raw_dir"))
    mix = f"{home}/{_name(data, 'mix_filename')}"
    bleed = {"yes": True, "no": False, True: True, False: False}.get(data.get("has_bleed"))  # type: ignore[arg-type]
    stems: list[Recording | Skipped] = []
    n_other = 0
    for number, entry in _mapping(data.get("stems"), "stems").items():
        stem = _mapping(entry, f"stems.{number}")
        file = f"{home}/{stem_dir}/{_name(stem, 'filename')}"
        raws = [_mapping(raw, f"stems.{number}.raw") for raw in _mapping(stem.get("raw") or {}, f"stems.{number}.raw").values()]
        raw_files = [f"{home}/{raw_dir}/{_name(raw, 'filename')}" for raw in raws]
        for name in (file, *raw_files, mix):
            contain(root, name)
        if voice_of(stem.get("instrument")) is None:
            n_other += 1
            stems.append(Skipped(file, "non_drum_stem"))
            stems += [Skipped(f, "raw_of_non_drum_stem") for f in raw_files]
            continue
        facts = {
            "instrument": stem["instrument"],
            "component": stem.get("component") or None,
            "has_bleed": bleed,
            "genre": data.get("genre"),
        }
        facts = {k: v for k, v in facts.items() if v is None or isinstance(v, (str, bool, list))}
        files = [f for f in (file, path, *raw_files, mix) if f in candidates]
        stems.append(_recording(track, file, files, {**facts, "level": "stem"}, {"stem": str(number)}))
        for (key, _), raw, raw_file in zip(_mapping(stem.get("raw") or {}, "raw").items(), raws, raw_files, strict=True):
            if include_raw and voice_of(raw.get("instrument")) is not None:
                raw_facts = {**facts, "instrument": raw["instrument"], "level": "raw"}
                own = [f for f in (raw_file, path) if f in candidates]
                stems.append(_recording(track, raw_file, own, raw_facts, {"stem": str(number), "channel": str(key)}))
    if not any(isinstance(s, Recording) for s in stems):
        yield Skipped(path, "track_without_drums")
    for found in stems:
        yield (
            found
            if isinstance(found, Skipped)
            else Recording(found.session, found.timeline, found.files, {**found.facts, "non_drum_stems": n_other})
        )


def _recording(track: str, file: str, files: list[str], facts: Mapping[str, Any], extras: Mapping[str, Any]) -> Recording:
    artist, _, title = track.partition("_")
    session = Session(file, song_group(artist, title or artist), audio_path=file, mix_context="stem", label_source="yaml", confidence=0.9,
                      extras=dict(extras))  # fmt: skip
    return Recording(session, file, tuple(files), facts)


def _mapping(value: object, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{what} is {type(value).__name__}, not a mapping", code="bad-metadata")
    return value


def _name(data: Mapping[Any, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{key} is {printable(repr(value))[:80]}, not a name", code="bad-metadata")
    if not is_plain_path(value):
        raise InputError(f"{key} is {printable(repr(value))[:80]}, no path below the track's folder", code="path-escape")
    return value
