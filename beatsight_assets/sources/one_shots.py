"""One-shots: folders of single drum hits, one kit per folder, some with SFZ maps, some with up to 16 microphones per hit.

Layout      <kit>/**/<sample>.wav, .flac, .aif, .ogg, .mp3; <kit>/*.sfz if the maker wrote them
Labels      configs/kits/<kit>.yaml; else SFZ keys through the note map in option `note_maps`; else the file name (see `kits`)
Velocity    centre of the SFZ range over 127, only where an SFZ states one; `velocity_layer` from the name or the SFZ range in extras
Microphones the close one of each hit is the session; option `all_mics` adds the others with `mix_context` and `mic_position`
Group       `kit:<kit>/<piece>`: layers, round robins and microphones of one piece together. Option `kit_splits` keeps whole kits in one
            split: takes rendered with a kit and the kit's own samples are the same sound
Traps       up to 16 ms of silence or noise before the stroke; kit makers' keys are rarely General MIDI; `Trigger` is no microphone
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from beatsight_assets.errors import ConfigError
from beatsight_assets.events import SPLITS
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, names
from beatsight_assets.sources.kits import SFZ_SUFFIX, TABLES, Kit, Sample, list_kits
from beatsight_assets.sources.sample_rows import sample_reading, sample_session
from beatsight_assets.taxonomy import Taxonomy, Voice

SOURCE = Source(
    name="one_shots",
    licence="per kit (configs/kits, or the file beside the samples)",
    citation="",
    url="",
    suffixes=(SFZ_SUFFIX, *AUDIO_SUFFIXES),
    chain=("sample_pack",),
    options=("all_mics", "note_maps", "kit_splits", "names"),
    configs=(names.CONFIG, TABLES),
)


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """The samples of every kit, in order of their paths; SFZ files and other microphones are counted."""
    splits = kit_splits(options)
    for kit in list_kits(root, options):
        yield from kit.refused
        yield from kit.skipped
        for file in kit.maps:
            prefix = f"{kit.name}/" if (root / kit.name).is_dir() else ""
            yield Skipped(prefix + file.path, "kit-map")
            for absent in file.missing(root / prefix):
                yield Rejected(prefix + absent, "scan", "missing-audio", f"{file.path} names a sample that is absent")
        for sample in kit.samples:
            if sample.is_close or options.get("all_mics"):
                yield _recording(kit, sample, splits.get(kit.name))
            else:
                yield Skipped(sample.path, "other-microphone")


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """The one hit of a sample."""
    facts = recording.facts
    if "key" in facts:
        voice = taxonomy.note_map(str(facts["note_map"])).get(int(facts["key"]))
    else:
        voice = Voice(str(facts["label"]), facts.get("variant"), facts.get("strike"), None, tuple(facts["techniques"]))
    if voice is None or taxonomy.canonical(voice.label) != (voice.label, None):
        said = f"SFZ key {facts['key']} is not in note map {facts['note_map']}" if voice is None else f"{voice.label!r} is no component"
        return Rejected(recording.timeline, "read", "unknown-label", said)
    return sample_reading(root, recording, voice, taxonomy, velocity=float(facts.get("velocity", math.nan)))


def _recording(kit: Kit, sample: Sample, split: str | None) -> Recording:
    session = sample_session(
        sample.path,
        f"kit:{kit.name}/{sample.piece}",
        kit_id=kit.name,
        confidence=kit.confidence,
        mix_context="one_shot" if sample.is_close else sample.mic_kind,
        velocity_layer=sample.layer,
        mic_position=sample.mic,
    )
    if kit.confidence == 1.0:
        session = replace(session, label_source="kit_table")
    facts: dict[str, Any] = {"kit": kit.name, "licence": kit.licence}
    if sample.voice is None:
        facts |= {"key": sample.key, "note_map": kit.note_map}
    else:
        voice = sample.voice
        facts |= {"label": voice.label, "variant": voice.variant, "strike": voice.strike, "techniques": list(voice.techniques)}
    if sample.velocity is not None:
        facts["velocity"] = sample.velocity
    return Recording(replace(session, split_hint=split), sample.path, (sample.path,), facts)


def kit_splits(options: Mapping[str, Any]) -> dict[str, str]:
    """Kit -> the one split that may hear it.

    Raises
    ------
    ConfigError `unknown-choice` : not a split
    """
    splits = {str(kit): str(split) for kit, split in options.get("kit_splits", {}).items()}
    for split in splits.values():
        if split not in SPLITS:
            raise ConfigError.unknown_choice("split", split, SPLITS, where="configs/datasets.yaml: one_shots.kit_splits")
    return splits
