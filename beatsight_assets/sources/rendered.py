"""Takes that the platform renders itself: `beatsight_demo` and `groove_rendered`.

Layout      takes.csv, midi/<take>.mid, audio/<take>.wav (16-bit mono 44.1 kHz); written by beatsight_assets.render
csv         take_id, midi_filename, audio_filename, kit_id, group, split, mix_context (others are ignored)
Timing      exact: the audio was made from the MIDI file's own times
Labels      note map `beatsight` (one note for each component) or the map named in the csv column note_map; velocity as played
Group       option `group_prefix` + column group: all renders of one performance share it
Traps       two takes may be the same performance under two names; the split rule joins them by digest
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beatsight_assets.errors import InputError
from beatsight_assets.events import MIX_CONTEXTS, SPLITS, Session
from beatsight_assets.sources import AUDIO_SUFFIXES, MIDI_SUFFIXES, Reading, Recording, Rejected, Source
from beatsight_assets.sources.performance import read_performance
from beatsight_assets.sources.tables import read_csv
from beatsight_assets.store import contain, printable
from beatsight_assets.taxonomy import Taxonomy

SOURCE = Source(
    name="rendered",
    licence="made by this platform; the licence of the played performance applies",
    citation="",
    url="",
    suffixes=(*MIDI_SUFFIXES, *AUDIO_SUFFIXES),
    official_split="takes.csv:split",
    chain=("synthetic_render", "midi_import"),
    tables=("takes.csv",),
    options=("group_prefix",),
)
NOTE_MAP = "beatsight"


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected]:
    """Takes of takes.csv in csv order; a listed take without MIDI is `missing-midi`."""
    prefix = str(options.get("group_prefix", "rendered:"))
    for row in read_csv(root / "takes.csv", required=("take_id", "midi_filename", "audio_filename", "kit_id", "group", "split")):
        timeline, audio = row["midi_filename"], row["audio_filename"]
        try:
            is_present, has_audio = contain(root, timeline).is_file(), bool(audio) and contain(root, audio).is_file()
        except InputError as error:
            yield Rejected(printable(timeline), "scan", error.code, f"takes.csv: {error.message}")
            continue
        if not is_present:
            yield Rejected(timeline, "scan", "missing-midi", "takes.csv lists a take whose MIDI file is absent")
            continue
        context = row.get("mix_context") or "drum_only"
        session = Session(
            session_id=timeline,
            group_id=prefix + row["group"],
            drummer_id=row.get("drummer") or None,
            kit_id=row["kit_id"],
            is_synthetic=True,
            audio_path=audio or None,
            midi_path=timeline,
            split_hint=row["split"] if row["split"] in SPLITS else None,
            mix_context=context if context in MIX_CONTEXTS else "unknown",
            label_source="rendered_midi",
        )
        files = (timeline, audio) if has_audio else (timeline,)
        yield Recording(session, timeline, files, {"style": row.get("style", ""), "note_map": row.get("note_map") or NOTE_MAP})


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """Events of one take through its note map."""
    name = str(recording.facts["note_map"])
    performance = read_performance(contain(root, recording.timeline).read_bytes(), taxonomy, name)
    played = {voice.label for voice in performance.hits.voices}
    coverage = tuple(label for label in taxonomy.labels if label in played)
    return Reading(recording.session, performance.hits, coverage, name, performance.facts, performance.issues)
