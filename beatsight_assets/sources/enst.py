"""ENST-Drums: three drummers on their own kits, annotated by hand; phrases, solos and pieces played to an accompaniment.

Layout      `ENST-drums-public/drummer_N/annotation/<piece>.txt`, `drummer_N/audio/<channel>/<piece>.wav`; channels dry_mix, wet_mix, kick,
            snare, hi-hat, overhead_L, overhead_R, tom_1 .. tom_3, accompaniment (minus-one pieces only)
Lines       `<seconds> <token>`, split on whitespace, no header
Labels      tokens per drummer, option `tokens`: public readings of them disagree, so they are config and their name is in the provenance
Group       `enst:drummer_N/<piece>`; fold = drummer_id `enst:drummer_N` (no official split; by drummer is customary)
Techniques  `Testing_set/drummer_N/NNN_{min,MID}.txt` of DrumPtDataset: flams, drags and rolls on the snare, below the root or in
            `../enst_drums_techniques`; every snare event inside one gets its tag, and inference leaves the snare of that piece alone
Traps       a `hits` piece strikes one instrument many times; names hold apostrophes; one technique line has the index of another name
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import HUMAN_STROKES, Hits, Session, anchors
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, candidate_files
from beatsight_assets.sources.onsets import microseconds, read_lines, read_rows, to_hits
from beatsight_assets.sources.stem_rows import stem_reading
from beatsight_assets.taxonomy import DRUM_MIX, STRIKES, UNSPECIFIED, Taxonomy, Voice

SOURCE = Source(
    name="enst",
    licence="own agreement, scientific use",
    citation="gillet2006",
    url="https://perso.telecom-paristech.fr/grichard/ENST-drums/",
    suffixes=(".txt", *AUDIO_SUFFIXES),
    chain=("audio_annotation",),
    companions=("enst_drums_techniques",),
    options=("mix", "include_channels", "tokens"),
)
MIXES = ("wet_mix", "dry_mix")
CHANNELS = {
    "kick": Voice("kick"),
    "snare": Voice("snare"),
    "hi-hat": Voice("hihat_closed", UNSPECIFIED),
    "overhead_L": Voice(DRUM_MIX),
    "overhead_R": Voice(DRUM_MIX),
    "tom_1": Voice("tom_high"),
    "tom_2": Voice("tom_mid"),
    "tom_3": Voice("tom_low"),
}
IMPLEMENTS = ("sticks", "brushes", "mallets", "rods", "hands")
TECHNIQUES = ("drag", "flam", "roll")  # the name decides: one of the 182 lines has the index of flam and the name drag
TECHNIQUE_LEAD_US = 10_000  # events from 10 ms before the stated start on
CONTEXT_MS = (60.0, 120.0)

_ANNOTATION = re.compile(r"(?P<home>(?:[^/]+/)*drummer_\d+)/annotation/(?P<piece>[^/]+)\.txt", re.IGNORECASE)
_AUDIO = re.compile(r"(?P<home>(?:[^/]+/)*drummer_\d+)/audio/(?P<channel>[^/]+)/(?P<piece>[^/]+)\.[^./]+")
_TECHNIQUES = re.compile(r"(?:[^/]+/)*Testing_set/(?P<drummer>drummer_\d+)/(?P<key>\d+_(?:min|MID))\.txt")
_KINDS = (("min", "minus-one"), ("MID", "MIDI-minus-one"))

Take = tuple[str, str]  # folder of the drummer, piece


@dataclass(frozen=True)
class _Stroke:
    """Snare technique over a span of time; both ends count."""

    name: str
    start_us: int
    end_us: int


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """The chosen mixes of every annotated piece, with or without audio, and with `include_channels` every microphone channel.

    A piece of which only the other mix is there is read from that one. A mix without annotation is refused.

    Raises
    ------
    ConfigError `bad-config`, `unknown-choice` : the options
    """
    chosen = _chosen_mixes(options)
    _token_table(options, "")
    candidates = candidate_files(root, SOURCE.suffixes)[0]
    pieces: dict[Take, str] = {}
    audio: dict[Take, dict[str, str]] = {}
    techniques: dict[tuple[str, str], str] = {}
    for path in candidates:
        if found := _ANNOTATION.fullmatch(path):
            pieces[found["home"], found["piece"]] = path
        elif found := _AUDIO.fullmatch(path):
            files = audio.setdefault((found["home"], found["piece"]), {})
            known = files.setdefault(found["channel"], path)
            if _suffix_rank(path) < _suffix_rank(known):
                files[found["channel"]] = path
        elif found := _TECHNIQUES.fullmatch(path):
            damage = _technique_damage(root, path)
            if damage:
                yield damage
            else:
                techniques[found["drummer"], found["key"]] = path
    used: set[str | None] = set()
    for take, timeline in pieces.items():
        files = audio.get(take, {})
        strokes = techniques.get((PurePosixPath(take[0]).name, _technique_key(take[1])))
        for mix in _mixes_at_hand(files, chosen) or chosen[:1]:
            used |= {files.get(mix), strokes}
            yield _recording(take, mix, timeline, tuple(f for f in (timeline, files.get(mix), strokes) if f), files.get(mix))
    for take, files in audio.items():
        for channel, path in files.items():
            if channel in CHANNELS and options.get("include_channels"):
                used.add(path)
                yield _recording(take, channel, path, (path,), path)
            elif take not in pieces and channel in _mixes_at_hand(files, chosen):
                used.add(path)
                yield Rejected(path, "scan", "missing-annotation", f"{take[0]}/annotation has no {take[1]}.txt")
    for path in candidates:
        found = _AUDIO.fullmatch(path)
        if found and path not in used:
            channel = found["channel"]
            yield Skipped(path, "other_mix" if channel in MIXES else channel if channel == "accompaniment" else "mic_channel")
        elif path in techniques.values() and path not in used:
            yield Skipped(path, "techniques_of_no_piece")


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """Onsets of one piece through its drummer's tokens, snare techniques where they are annotated; or the row of a microphone channel."""
    channel = str(recording.facts["channel"])
    if channel in CHANNELS:
        return stem_reading(root, recording, CHANNELS[channel], taxonomy)
    drummer = str(recording.facts["fold"]).removeprefix("enst:")
    table, name = _token_table(options, drummer)
    try:
        rows, n_bad = read_rows(root, recording.timeline)
    except InputError as error:
        return Rejected(recording.timeline, "read", error.code, error.message)
    kept = [row for row in rows if table.get(row[1], row[1]) is not None]
    voices = {token: voice for token, voice in table.items() if voice is not None}
    hits, n_unknown = to_hits(kept, voices, taxonomy)
    strokes, n_bad_strokes = _strokes_of(root, recording, drummer)
    facts: dict[str, Any] = {}
    session = recording.session
    if strokes is not None:
        hits = replace(hits, stated=_stated(hits, strokes, taxonomy))
        session = replace(session, extras={"annotation_history": [HUMAN_STROKES]})
        facts["techniques"] = dict(sorted(Counter(s.name for s in strokes).items()))
    issues = {"bad_time": n_bad, "unknown_label": n_unknown, "ignored_label": len(rows) - len(kept), "bad_value": n_bad_strokes}
    expressed = {voice.label for voice in voices.values()}
    coverage = tuple(label for label in taxonomy.labels if label in expressed)
    return Reading(session, hits, coverage, name, facts, {k: v for k, v in issues.items() if v})


def implement_of(piece: str) -> str | None:
    """What a piece is played with: the last `_` token that is not `xN`.

    >>> implement_of("001_hits_snare-drum_sticks_x6"), implement_of("121_MIDI-minus-one_bigband_brushes"), implement_of("x")
    ('sticks', 'brushes', None)
    """
    tokens = [t for t in piece.split("_") if not re.fullmatch(r"x\d+", t)]
    return tokens[-1] if tokens and tokens[-1] in IMPLEMENTS else None


def read_strokes(path: Path, name: str) -> tuple[list[_Stroke], int]:
    """(techniques of one file, number of lines that are none): start, index, duration, name.

    Raises
    ------
    InputError : see `onsets.read_lines`
    """
    strokes, n_bad = [], 0
    for fields in read_lines(path, name):
        start_us, length_us = (microseconds(fields[0]), microseconds(fields[2])) if len(fields) == 4 else (None, None)
        if start_us is None or length_us is None or fields[3] not in TECHNIQUES:
            n_bad += 1
        else:
            strokes.append(_Stroke(fields[3], start_us, start_us + length_us))
    return strokes, n_bad


def _chosen_mixes(options: Mapping[str, Any]) -> tuple[str, ...]:
    mix = options.get("mix", MIXES[0])
    if mix not in MIXES:
        raise ConfigError.unknown_choice("mix", str(mix), MIXES, where="configs/datasets.yaml: enst_drums")
    return MIXES[: MIXES.index(mix) + 1]


def _mixes_at_hand(files: Mapping[str, str], chosen: Sequence[str]) -> list[str]:
    """The chosen mixes that are there; else the other one, if that is there."""
    return [m for m in chosen if m in files] or [m for m in MIXES if m in files]


def _token_table(options: Mapping[str, Any], drummer: str) -> tuple[dict[str, Voice | None], str]:
    """(token -> voice, None for tokens that are no event; name of the table) of a drummer."""
    tables = options.get("tokens")
    if not isinstance(tables, Mapping) or not isinstance(tables.get("default"), Mapping):
        raise ConfigError(
            "options.tokens.default is missing. Copy it from the configs/datasets.yaml that ships with the package",
            code="bad-config",
            where="configs/datasets.yaml: enst_drums",
        )
    own = tables.get(drummer)
    merged = {**tables["default"], **(own or {})}
    return {str(token): _voice(token, entry) for token, entry in merged.items()}, f"enst:default+{drummer}" if own else "enst:default"


def _voice(token: Any, entry: Any) -> Voice | None:
    if entry is None:
        return None
    try:
        voice = Voice(entry["label"], entry.get("variant"), entry.get("strike"), None, tuple(entry.get("techniques", ())))
        is_known = all(isinstance(x, str) for x in (voice.label, *voice.techniques)) and voice.strike in (None, *STRIKES)
    except (TypeError, KeyError, AttributeError):
        is_known = False
    if not is_known or set(entry) - {"label", "variant", "strike", "techniques"}:
        raise ConfigError(
            f"token {token!r}: {entry!r} is not {{label, variant?, strike?, techniques?}} or null",
            code="bad-config",
            where="configs/datasets.yaml: enst_drums: tokens",
        )
    return voice


def _recording(take: Take, channel: str, timeline: str, files: Sequence[str], audio: str | None) -> Recording:
    home, piece = take
    drummer = f"enst:{PurePosixPath(home).name}"
    is_mix = channel in MIXES
    session = Session(
        session_id=f"{home}/audio/{channel}/{piece}.wav",
        group_id=f"{drummer}/{piece}",
        drummer_id=drummer,
        audio_path=audio or f"{home}/audio/{channel}/{piece}.wav",
        context_ms=CONTEXT_MS,
        mix_context="drum_only",
        label_source="human" if is_mix else "file_name",
        confidence=0.95 if is_mix else 0.9,
        extras={} if is_mix else {"stem": channel, "mic_position": channel.casefold()},
    )
    kind = piece.split("_")[1] if piece.count("_") else ""
    facts = {"channel": channel, "piece": piece, "kind": kind, "implement": implement_of(piece), "fold": drummer}
    return Recording(session, timeline, tuple(files), facts)


def _suffix_rank(path: str) -> int:
    return AUDIO_SUFFIXES.index(PurePosixPath(path).suffix.lower())


def _technique_key(piece: str) -> str:
    """`107_minus-one_salsa_sticks` -> `107_min`, `121_MIDI-minus-one_…` -> `121_MID`; the piece itself where there are no techniques."""
    number, _, rest = piece.partition("_")
    return next((f"{number}_{short}" for short, kind in _KINDS if rest.startswith(f"{kind}_")), piece)


def _technique_damage(root: Path, relpath: str) -> Rejected | None:
    try:
        read_strokes(root / relpath, relpath)
    except InputError as error:
        return Rejected(relpath, "scan", error.code, error.message)
    return None


def _strokes_of(root: Path, recording: Recording, drummer: str) -> tuple[list[_Stroke] | None, int]:
    """(annotated techniques of a piece, lines that are none); None where nobody annotated them."""
    own = next((f for f in recording.files if _TECHNIQUES.fullmatch(f)), None)
    key = _technique_key(str(recording.facts["piece"]))
    path = root / own if own else root.parent / "enst_drums_techniques/Testing_set" / drummer / f"{key}.txt"
    if not own and not path.is_file():
        return None, 0
    try:
        return read_strokes(path, path.name)
    except InputError:
        return None, 1  # a damaged file outside this dataset: counted, its piece stays


def _stated(hits: Hits, strokes: Sequence[_Stroke], taxonomy: Taxonomy) -> dict[int, tuple[str, ...]]:
    """Techniques of each snare hit whose event lies in a stroke."""
    event_us = hits.onset_us[np.flatnonzero(opens := anchors(np.zeros(len(hits), np.int64), hits.onset_us))][np.cumsum(opens) - 1]
    is_snare = np.array([taxonomy.family(v.label) == "snare" for v in hits.voices], dtype=bool)[hits.voice]
    stated: dict[int, tuple[str, ...]] = {}
    for stroke in strokes:
        inside = is_snare & (event_us >= stroke.start_us - TECHNIQUE_LEAD_US) & (event_us <= stroke.end_us)
        for i in np.flatnonzero(inside).tolist():
            stated[i] = (*stated.get(i, ()), stroke.name)
    return stated
