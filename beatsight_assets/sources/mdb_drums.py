"""MDB Drums: onsets of 23 MusicDelta takes of MedleyDB, written by hand on real recordings; MDB Drums++ beside it.

Layout      `MDB Drums/annotations/{subclass,class}/MusicDelta_<T>_<kind>.txt`, `.../beats/MusicDelta_<T>_MIX.beats`,
            `MDB Drums/audio/{drum_only/MusicDelta_<T>_Drum.wav, full_mix/MusicDelta_<T>_MIX.wav}`; the folder name holds a blank.
            `../mdb_drums_pp/annotations/midi/MusicDelta_<T>_Drum.mid`: the same takes re-annotated as MIDI, if that folder is there
Lines       `<seconds> <label>` and `<seconds> <position in bar>`, split on whitespace
Labels      21 subclass codes; the class file is a cross-check only. Velocity unknown; option `velocity_from: mdb_pp` fills matched hits
Group       `song:musicdelta|<t>`, the same key as in MedleyDB and MUSDB
Traps       76 % of the onsets lie on a 10 ms grid; brush strokes have soft onsets; side stick is OT in the class files; the full mix
            holds everything that the drum track holds
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets import midi
from beatsight_assets.errors import InputError
from beatsight_assets.events import Hits, Session
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Source, candidate_files
from beatsight_assets.sources.onsets import MAX_TEXT_BYTES, Rows, find_damage, match_onsets, read_rows, to_hits
from beatsight_assets.sources.songs import name_key
from beatsight_assets.store import read_bytes
from beatsight_assets.taxonomy import Taxonomy, Voice

SOURCE = Source(
    name="mdb_drums",
    licence="CC BY-NC-SA 4.0",
    citation="southall2017",
    url="https://github.com/CarlSouthall/MDBDrums",
    suffixes=(".txt", ".beats", *AUDIO_SUFFIXES),
    official_split="MIREX 2017",
    chain=("audio_annotation",),
    companions=("mdb_drums_pp",),
    options=("velocity_from",),
)
LABELS = {
    "KD": Voice("kick"),
    "SD": Voice("snare"),
    "SDB": Voice("snare", "brush"),
    "SDD": Voice("snare", techniques=("drag",)),
    "SDF": Voice("snare", techniques=("flam",)),
    "SDG": Voice("snare", bucket="ghost", techniques=("ghost_note",)),
    "SDNS": Voice("snare", "snares_off", techniques=("snares_off",)),
    "SST": Voice("cross_stick"),
    "CHH": Voice("hihat_closed"),
    "OHH": Voice("hihat_open"),
    "PHH": Voice("hihat_pedal"),
    "RDC": Voice("ride_bow"),
    "RDB": Voice("ride_bell"),
    "CRC": Voice("crash"),
    "CHC": Voice("china"),
    "SPC": Voice("splash"),
    "HIT": Voice("tom_high"),
    "MHT": Voice("tom_mid"),
    "HFT": Voice("tom_low", "floor_high"),
    "LFT": Voice("tom_low", "floor_low"),
    "TMB": Voice("tambourine"),
}
CLASS_OF = {
    **dict.fromkeys(("SD", "SDB", "SDD", "SDF", "SDG", "SDNS"), "SD"),
    **dict.fromkeys(("CHH", "OHH", "PHH"), "HH"),
    **dict.fromkeys(("RDC", "RDB", "CRC", "CHC", "SPC"), "CY"),
    **dict.fromkeys(("HIT", "MHT", "HFT", "LFT"), "TT"),
    **dict.fromkeys(("SST", "TMB"), "OT"),
    "KD": "KD",
}
SPLIT_OF = {
    **dict.fromkeys(
        [
            "80srock",
            "bebopjazz",
            "britpop",
            "cooljazz",
            "disco",
            "funkjazz",
            "fusionjazz",
            "reggae",
            "rock",
            "rockabilly",
            "shadows",
            "zeppelin",
            "zepplin",
        ],
        "train",
    ),
    **dict.fromkeys(
        ["beatles", "country1", "freejazz", "gospel", "grunge", "hendrix", "latinjazz", "modaljazz", "punk", "speedmetal", "swingjazz"],
        "test",
    ),
}
PP_NAMES = {"BebopJazz": "Bebop", "Country1": "Country"}  # track -> its name in MDB Drums++
PP_NOTE_MAP = "general_midi"
PP_WINDOW_US = 30_000  # onsets of the two annotations belong together within 30 ms
PP_MIN_SHARE = 0.5  # with fewer onsets matched the two are on different time lines (Disco: 6 %, the other twelve 82 % or more)
ANNOTATIONS, AUDIO = "MDB Drums/annotations", "MDB Drums/audio"


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected]:
    """The drum track of every annotated take, with or without audio, and the full mixes that are there; audio without onsets is refused."""
    candidates = set(candidate_files(root, SOURCE.suffixes)[0])
    annotated = {
        f"{ANNOTATIONS}/subclass/MusicDelta_{t}_subclass.txt": t for t in _titles(candidates, f"{ANNOTATIONS}/subclass", "_subclass.txt")
    }
    for timeline, title in annotated.items():
        key = name_key(title)
        texts = [timeline]
        for name in (_class_file(title), _beats_file(title)):
            damage = find_damage(root, name) if name in candidates else None
            if damage:
                yield damage  # the onsets stay: they need neither bars nor a cross-check
            texts += [name] if name in candidates and not damage else []
        for audio, context in ((_drum_track(title), "drum_only"), (_full_mix(title), "full_mix")):
            if audio in candidates or context == "drum_only":
                session = Session(
                    session_id=audio,
                    group_id=f"song:musicdelta|{key}",
                    audio_path=audio,
                    split_hint=SPLIT_OF.get(key),
                    mix_context=context,
                    label_source="human",
                    confidence=0.95,
                )
                yield Recording(session, timeline, tuple(f for f in (*texts, audio) if f in candidates), {"title": title})
    for kind, suffix in (("drum_only", "_Drum.wav"), ("full_mix", "_MIX.wav")):
        for title in _titles(candidates, f"{AUDIO}/{kind}", suffix):
            if title not in annotated.values():
                path = f"{AUDIO}/{kind}/MusicDelta_{title}{suffix}"
                yield Rejected(path, "scan", "missing-annotation", f"{ANNOTATIONS}/subclass has no onsets of this take")


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """Onsets of one take from its subclass file, bars and beats from its beats file, cross-checked where a second annotation exists."""
    title = str(recording.facts["title"])
    try:
        rows, n_bad = read_rows(root, recording.timeline)
        beats = _read_beats(root, _beats_file(title)) if _beats_file(title) in recording.files else []
        classes = _class_file(title)
        n_disagree = _count_class_disagreements(rows, read_rows(root, classes)[0]) if classes in recording.files else 0
    except InputError as error:
        return Rejected(recording.timeline, "read", error.code, error.message)
    hits, n_unknown = to_hits(rows, LABELS, taxonomy)
    bar, beat = _bars_and_beats(hits.onset_us, beats)
    hits = replace(hits, bar=bar, beat=beat)
    facts: dict[str, Any] = {"beats": len(beats), "mdb_pp": "absent"}
    second = root.parent / "mdb_drums_pp/annotations/midi" / f"MusicDelta_{PP_NAMES.get(title, title)}_Drum.mid"
    if second.is_file():
        velocity, n_unmatched = _compare_with_midi(hits, second, taxonomy)
        n_disagree += n_unmatched
        is_aligned = np.isfinite(velocity).mean() >= PP_MIN_SHARE
        facts["mdb_pp"] = "compared" if is_aligned else "other time line"
        if is_aligned and options.get("velocity_from") == "mdb_pp":
            hits = replace(hits, velocity=velocity)
    issues = {"bad_time": n_bad, "unknown_label": n_unknown, "annotation_disagreement": n_disagree}
    expressed = {voice.label for voice in LABELS.values()}
    coverage = tuple(label for label in taxonomy.labels if label in expressed)
    return Reading(recording.session, hits, coverage, None, facts, {k: v for k, v in issues.items() if v})


def _titles(candidates: set[str], folder: str, suffix: str) -> list[str]:
    """Titles `<T>` of the files `<folder>/MusicDelta_<T><suffix>`, by path."""
    start = f"{folder}/MusicDelta_"
    found = [
        c[len(start) : -len(suffix)] for c in candidates if c.startswith(start) and c.endswith(suffix) and len(c) > len(start + suffix)
    ]
    return sorted(title for title in found if "/" not in title)


def _class_file(title: str) -> str:
    return f"{ANNOTATIONS}/class/MusicDelta_{title}_class.txt"


def _beats_file(title: str) -> str:
    return f"{ANNOTATIONS}/beats/MusicDelta_{title}_MIX.beats"


def _drum_track(title: str) -> str:
    return f"{AUDIO}/drum_only/MusicDelta_{title}_Drum.wav"


def _full_mix(title: str) -> str:
    return f"{AUDIO}/full_mix/MusicDelta_{title}_MIX.wav"


def _read_beats(root: Path, relpath: str) -> list[tuple[int, int]]:
    """(microsecond, position in the bar from 1) of each beat."""
    return [(us, int(word)) for us, word in read_rows(root, relpath)[0] if re.fullmatch(r"[1-9]\d?", word, re.ASCII)]


def _bars_and_beats(onset_us: NDArray[np.int64], beats: list[tuple[int, int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(bar, beat in the bar) of the last beat at or before each onset, both from 0; -1 before the first. A pick-up is bar 0."""
    position = np.array([p for _, p in beats], dtype=np.int32)
    bar_of = np.cumsum(position == 1) - int(len(beats) > 0 and beats[0][1] == 1)
    last = np.searchsorted(np.array([us for us, _ in beats], dtype=np.int64), onset_us, side="right")
    bar = np.concatenate(([-1], bar_of)).astype(np.int32)[last]
    return bar, np.concatenate(([-1], position - 1)).astype(np.int32)[last]


def _count_class_disagreements(rows: Rows, classes: Rows) -> int:
    """Onsets that only one of the two files has; unknown subclass labels are counted elsewhere."""
    ours = Counter((us, CLASS_OF[label]) for us, label in rows if label in CLASS_OF)
    theirs = Counter(classes)
    return max(sum((ours - theirs).values()), sum((theirs - ours).values()))


def _compare_with_midi(hits: Hits, path: Path, taxonomy: Taxonomy) -> tuple[NDArray[np.float32], int]:
    """Match with MDB Drums++ (same family, 30 ms, in time order): velocity of each hit's partner or NaN, onsets without partner."""
    notes = midi.read_midi(read_bytes(path, max_bytes=MAX_TEXT_BYTES)).notes
    note_map = taxonomy.note_map(PP_NOTE_MAP)
    velocity = np.full(len(hits), np.nan, dtype=np.float32)
    family_of_note = [taxonomy.family(note_map[n].label) if n in note_map else None for n in notes.note.tolist()]
    family_of_hit = [taxonomy.family(hits.voices[v].label) for v in hits.voice.tolist()]
    for family in sorted({f for f in family_of_hit if f}):
        ours = [i for i, f in enumerate(family_of_hit) if f == family]
        theirs = [i for i, f in enumerate(family_of_note) if f == family]
        ours_us, theirs_us = hits.onset_us[ours].tolist(), notes.onset_us[theirs].tolist()
        for a, b in match_onsets(ours_us, theirs_us, PP_WINDOW_US):
            velocity[ours[a]] = notes.velocity[theirs[b]] / 127
    n_matched = int(np.isfinite(velocity).sum())
    return velocity, len(hits) + len(family_of_note) - 2 * n_matched
