"""Slakh2100 and BabySlakh: multitracks rendered from MIDI files; the drum stem of a track with its MIDI is a session.

Layout      [<anything>/][train|validation|test|omitted/]TrackNNNNN/{metadata.yaml, MIDI/Sxx.mid, stems/Sxx.(flac|wav), mix.(flac|wav), all_src.mid}
Timing      exact: stems were rendered from these MIDI files; tempo changes are real
Labels      the plugin that played the stem decides what a note is (taxonomy.yaml `plugins`; option `plugins` replaces that table); every
            channel of a drum stem's MIDI is drums. A plugin that no table names is read as General MIDI, with confidence 0.8
Group       `slakh:` + UUID, the digest of the MIDI file all stems come from: 2,100 tracks are 1,710 pieces
Traps       `audio_rendered`, `midi_saved`, `audio_dir` and `midi_dir` of the yaml are wrong in places: only what is there counts; stem
            numbers mean nothing, `is_drum` does; stems may lack every file; all_src.mid has other drum notes than the stem's own MIDI;
            there is rarely a CC4, so openness is unknown, not 0
Options     include_mix (a session for the full mix too), include_omitted (tracks that the curators left out), plugins
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import Hits, Session
from beatsight_assets.safejson import parse_json
from beatsight_assets.safeyaml import read_yaml
from beatsight_assets.sources import AUDIO_SUFFIXES, MIDI_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, candidate_files
from beatsight_assets.sources.performance import Performance, read_performance
from beatsight_assets.store import contain, read_bytes
from beatsight_assets.taxonomy import Taxonomy, Voice

SOURCE = Source(
    name="slakh",
    licence="CC BY 4.0",
    citation="manilow2019",
    url="http://www.slakh.com",
    suffixes=(*MIDI_SUFFIXES, *AUDIO_SUFFIXES, ".yaml", ".json"),
    official_split="folder",
    chain=("synthetic_render", "midi_import"),
    options=("include_mix", "include_omitted", "plugins"),
)
NOTE_MAP = "general_midi"
UNKNOWN_PLUGIN = "general_midi (plugin unknown)"
UNKNOWN_PLUGIN_CONFIDENCE = 0.8
SPLITS = {"train": "train", "validation": "val", "test": "test"}
OMITTED = "omitted"
DUPLICATES = "duplicates.json"
OPTIONS_AT = "configs/datasets.yaml: slakh2100.options"
TRACK = re.compile(r"((?:.+/)?(Track\d{5}))/(.+)", re.DOTALL)
STEM = re.compile(r"S\d{2,3}")
MAX_MIDI_BYTES = 16 * 1024 * 1024  # the largest drum stem has 0.2 MB
DIGEST = re.compile(r"[0-9a-f]{32}")


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """Drum stems of every track folder by path, with the mix where it is wanted; all other files of a track are out of scope.

    Where slakh-utils' duplicates.json lies below the root, each session names the other tracks of its piece (fact `duplicates`).

    Raises
    ------
    ConfigError `bad-config` : an option of another type
    """
    for name in ("include_mix", "include_omitted"):
        if not isinstance(options.get(name, False), bool):
            raise ConfigError(f"{name} is {options[name]!r}; it must be true or false", code="bad-config", where=OPTIONS_AT)
    if not isinstance(options.get("plugins", {}), dict):
        raise ConfigError(
            f"plugins is {options['plugins']!r:.80}; it must map plugin names to note maps", code="bad-config", where=OPTIONS_AT
        )
    tracks: dict[str, set[str]] = {}
    duplicates: dict[str, tuple[str, ...]] = {}
    for path in candidate_files(root, SOURCE.suffixes)[0]:
        if path.rpartition("/")[2] == DUPLICATES:
            try:
                duplicates |= read_duplicates(read_bytes(contain(root, path), max_bytes=MAX_MIDI_BYTES), where=path)
                yield Skipped(path, "list of duplicates")
            except InputError as error:
                yield Rejected(path, "scan", error.code, error.message)
        elif match := TRACK.fullmatch(path):
            tracks.setdefault(match[1], set()).add(match[3])
    for folder in sorted(tracks, key=str.encode):
        yield from _scan_track(root, folder, tracks[folder], options, duplicates)


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """Hits of a drum stem, or of all drum stems for a mix, each through the note map of its plugin."""
    table = options.get("plugins", taxonomy.plugins)
    played, names, confidence = [], [], 1.0
    for midi, plugin in zip(recording.facts["drum_midi"], recording.facts["plugins"], strict=True):
        name = table.get(plugin, NOTE_MAP)
        try:
            played.append(read_performance(read_bytes(contain(root, midi), max_bytes=MAX_MIDI_BYTES), taxonomy, name))
        except InputError as error:
            return Rejected(midi, "read", error.code, error.message)
        names.append(name if plugin in table else UNKNOWN_PLUGIN)
        confidence = confidence if plugin in table else UNKNOWN_PLUGIN_CONFIDENCE
    hits, issues = _together([p.hits for p in played]), sum((Counter(dict(p.issues)) for p in played), Counter[str]())
    expressed = {v.label for name in names for v in taxonomy.note_map(name.partition(" ")[0]).values()}
    coverage = tuple(label for label in taxonomy.labels if label in expressed)
    session = replace(recording.session, confidence=confidence)
    return Reading(session, hits, coverage, ", ".join(dict.fromkeys(names)), _facts(played), dict(issues))


def _scan_track(
    root: Path, folder: str, files: set[str], options: Mapping[str, Any], duplicates: Mapping[str, tuple[str, ...]]
) -> Iterator[Recording | Rejected | Skipped]:
    """Sessions of one track; `files` are paths below its folder, `duplicates` the tracks of each piece."""
    parent = folder.rpartition("/")[0].rpartition("/")[2]
    media = sorted(files - {"metadata.yaml"}, key=str.encode)
    if parent == OMITTED and not options.get("include_omitted", False):
        yield from (Skipped(f"{folder}/{name}", "omitted track") for name in sorted(files, key=str.encode))
        return
    if "metadata.yaml" not in files:
        yield Rejected(folder, "scan", "missing-metadata", "the track has no metadata.yaml, so nobody knows which stem is the drums")
        yield from (Skipped(f"{folder}/{name}", "track without metadata") for name in media)
        return
    try:
        uuid, drums = _read_metadata(root, f"{folder}/metadata.yaml")
    except InputError as error:
        yield Rejected(f"{folder}/metadata.yaml", "scan", "bad-metadata", f"{error.message} ({error.where})")
        yield from (Skipped(f"{folder}/{name}", "track without metadata") for name in media)
        return
    base = Session(
        session_id="",
        group_id=f"slakh:{uuid}",
        is_synthetic=True,
        split_hint=SPLITS.get(parent),
        label_source="rendered_midi",
    )
    same = [track for track in duplicates.get(uuid, ()) if track != folder.rpartition("/")[2]]
    used = {"metadata.yaml"} if drums else set()
    orphans = set()
    present = []
    for stem, plugin in drums.items():
        midi = _first(files, f"MIDI/{stem}", MIDI_SUFFIXES)
        sound = _first(files, f"stems/{stem}", AUDIO_SUFFIXES)
        if midi is None:
            yield Rejected(
                f"{folder}/MIDI/{stem}.mid", "scan", "missing-midi", f"metadata.yaml says {stem} is the drums; its MIDI is absent"
            )
            orphans.add(sound)
            continue
        present.append((midi, plugin))
        used |= {midi} | ({sound} if sound else set())
        session = replace(
            base,
            session_id=f"{folder}/{midi}",
            midi_path=f"{folder}/{midi}",
            audio_path=f"{folder}/{sound or f'stems/{stem}.flac'}",
            kit_id=plugin or None,
            mix_context="drum_only",
        )
        yield _recording(session, folder, [(midi, plugin)], sound, same)
    mix = _first(files, "mix", AUDIO_SUFFIXES)
    if mix and present and options.get("include_mix", False):
        used.add(mix)
        kits = {plugin for _, plugin in present}
        session = replace(
            base,
            session_id=f"{folder}/{mix}",
            midi_path=f"{folder}/{present[0][0]}" if len(present) == 1 else None,
            audio_path=f"{folder}/{mix}",
            kit_id=(kits.pop() or None) if len(kits) == 1 else None,
            mix_context="full_mix",
        )
        yield _recording(session, folder, present, mix, same)
    for name in sorted(files - used, key=str.encode):
        yield Skipped(f"{folder}/{name}", "drums without MIDI" if name in orphans else _why_not(name))


def _recording(session: Session, folder: str, drums: Sequence[tuple[str, str]], sound: str | None, same: Sequence[str]) -> Recording:
    midi = [f"{folder}/{path}" for path, _ in drums]
    files = (*midi, f"{folder}/metadata.yaml", *([f"{folder}/{sound}"] if sound else []))
    return Recording(session, midi[0], files, {"drum_midi": midi, "plugins": [plugin for _, plugin in drums], "duplicates": list(same)})


def _read_metadata(root: Path, relpath: str) -> tuple[str, dict[str, str]]:
    """(UUID, {drum stem: plugin name, "" if it is not stated}) of a metadata.yaml.

    Raises
    ------
    InputError `bad-config` of `safeyaml.read_yaml`, `path-escape` : not YAML, or a value that is read here is absent or no text
    """
    file = read_yaml(contain(root, relpath), name="metadata.yaml", error=InputError, not_finite_as_null=True)
    data = file.data if isinstance(file.data, dict) else {}
    uuid, stems = data.get("UUID"), data.get("stems")
    if not isinstance(uuid, str) or not DIGEST.fullmatch(uuid):
        raise InputError(f"UUID is {uuid!r:.80}; it must be 32 hexadecimal digits", code="bad-config", where=file.where(("UUID",)))
    if not isinstance(stems, dict):
        raise InputError("stems must map stem names to their facts", code="bad-config", where=file.where(("stems",)))
    drums = {}
    for name, facts in stems.items():
        if not isinstance(name, str) or not STEM.fullmatch(name) or not isinstance(facts, dict):
            raise InputError(
                f"stem {name!r:.80} must be S and a number with its facts", code="bad-config", where=file.where(("stems", str(name)))
            )
        is_drum, plugin = facts.get("is_drum"), facts.get("plugin_name")
        if not isinstance(is_drum, bool) or not isinstance(plugin, str | None):
            raise InputError(
                f"is_drum must be true or false and plugin_name a text, got {is_drum!r:.40} and {plugin!r:.40}",
                code="bad-config",
                where=file.where(("stems", name, "is_drum")),
            )
        if is_drum:
            drums[name] = "" if plugin in (None, "None") else plugin
    return uuid, drums


def _first(files: set[str], stem: str, suffixes: Sequence[str]) -> str | None:
    """The file `<stem><suffix>` that is there, suffix in any case; the suffixes' order decides between several."""
    found = [f for suffix in suffixes for f in sorted(files) if f[: len(stem)] == stem and f[len(stem) :].lower() == suffix]
    return found[0] if found else None


def _why_not(name: str) -> str:
    """Why a file of a track is out of scope."""
    if "/" not in name:
        return "mix" if name.lower().startswith("mix.") else "no drums" if name == "metadata.yaml" else "other file of a track"
    return "stem that is no drums" if name.startswith(("stems/", "MIDI/")) else "other file of a track"


def _together(parts: Sequence[Hits]) -> Hits:
    """Hits of several stems of one track as one; they share tempo and meter."""
    if len(parts) == 1:
        return parts[0]
    voices: tuple[Voice, ...] = tuple(dict.fromkeys(v for p in parts for v in p.voices))
    meters = tuple(dict.fromkeys(m for p in parts for m in p.meters))
    starts = np.cumsum([0, *(len(p) for p in parts)]).tolist()

    def joined(name: str) -> Any:
        return np.concatenate([getattr(p, name) for p in parts])

    def renumbered(p: Hits) -> Any:
        of_all: Any = np.array([*(meters.index(m) for m in p.meters), -1], dtype=np.int64)
        return of_all[p.meter]

    return Hits(
        voices=voices,
        onset_us=joined("onset_us"),
        voice=np.concatenate([np.array([voices.index(v) for v in p.voices], dtype=np.int64)[p.voice] for p in parts]),
        velocity=joined("velocity"),
        openness=joined("openness"),
        openness_raw=joined("openness_raw"),
        tempo_bpm=joined("tempo_bpm"),
        meters=meters,
        meter=np.concatenate([renumbered(p) for p in parts]),
        bar=joined("bar"),
        beat=joined("beat"),
        stated={start + i: names for start, p in zip(starts, parts, strict=False) for i, names in p.stated.items()},
    )


def _facts(played: Sequence[Performance]) -> dict[str, Any]:
    """Tempo and meter of the first stem, the end of the last, the notes of all."""
    together = {"end_seconds": max(p.facts["end_seconds"] for p in played), "note_ons": sum(p.facts["note_ons"] for p in played)}
    return {**played[0].facts, **together}


def read_duplicates(content: bytes, *, where: str = DUPLICATES) -> dict[str, tuple[str, ...]]:
    """Digest of a MIDI file (the UUID of metadata.yaml) -> tracks made from it, sorted, of duplicates.json of slakh-utils.

    The file maps each track to `{midi_md5, midi_duplicates}`; the digest decides, the listed duplicates must agree with it.

    Raises
    ------
    InputError `bad-metadata` : another form, or a track that names a duplicate of another digest
    """
    data = parse_json(content, where=where)
    tracks: dict[str, list[str]] = {}
    for track, facts in sorted(data.items()) if isinstance(data, dict) else [("the document", None)]:
        if not isinstance(facts, dict) or not isinstance(facts.get("midi_md5"), str) or not isinstance(facts.get("midi_duplicates"), list):
            raise InputError(f"{track!r:.40} has no midi_md5 or no midi_duplicates", code="bad-metadata", where=where)
        tracks.setdefault(facts["midi_md5"], []).append(track)
    for track, facts in data.items():
        if sorted([track, *map(str, facts["midi_duplicates"])]) != tracks[facts["midi_md5"]]:
            raise InputError(f"midi_duplicates of {track!r:.40} are not the tracks of its midi_md5", code="bad-metadata", where=where)
    return {digest: tuple(found) for digest, found in sorted(tracks.items())}
