"""SignatureSounds one-shot packs: single drum hits, labelled by their file names.

Layout      any tree of audio files; the first folder is the pack
Labels      from the file's own name (configs/file_names.yaml with its one-shot words; option `names` adds words). Option
            `category_folders` names folders that say a label for files whose name says none, such as {Kicks: kick}
Group       `kit:<pack>/<piece>`: the file name without trailing numbers and layer, take and round-robin words, so that layers and takes
            of one drum stay together
Traps       folder names lie: `kicks_and_more/Snare 01.wav` is a snare, a folder called `tom` makes no toms; files longer than 30 s are loops
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from beatsight_assets.audio import stated_duration_s
from beatsight_assets.errors import ConfigError
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, candidate_files, names
from beatsight_assets.sources.sample_rows import sample_reading, sample_session
from beatsight_assets.taxonomy import DRUM_MIX, Taxonomy, Voice
from beatsight_assets.units import Seconds

SOURCE = Source(
    name="signaturesounds",
    licence="pack licence",
    citation="",
    url="https://signaturesounds.org",
    suffixes=AUDIO_SUFFIXES,
    chain=("sample_pack",),
    options=("names", "category_folders"),
    configs=(names.CONFIG,),
)
CONFIDENCE = 0.7
LOOP_S: Seconds = 30.0  # spec/sources.md section 9: longer files of a pack are loops
COUNTERS = frozenset(("v", "vel", "velocity", "layer", "take", "rr", "hit", "sample", "hard", "med", "medium", "soft", "alt"))


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """Every file whose name says one drum; loops, whole kits and other instruments are skipped."""
    rules, folders = names.rules_of(options), category_folders(options)
    for path in candidate_files(root, SOURCE.suffixes)[0]:
        file = PurePosixPath(path)
        said = names.label_of(file.stem, rules, one_shots=True)
        voice = said.voice or (folders.get(file.parent.name) if said.kind == "unknown" else None)
        if stated_duration_s(root / path) > LOOP_S:
            yield Skipped(path, "loop")
        elif voice is not None and voice.label == DRUM_MIX:
            yield Skipped(path, f"whole_kit: {said.rule}")
        elif voice is not None:
            facts = {"label": voice.label, "variant": voice.variant, "rule": said.rule or f"folder {file.parent.name}"}
            yield Recording(sample_session(path, group_of(path), confidence=CONFIDENCE), path, (path,), facts)
        elif said.code is not None:
            why = f"its name says {said.rule}" if said.rule else "no word of its name is a drum"
            yield Rejected(
                path, "scan", said.code, f"{why}. Add the words to option `names`, its folder to `category_folders`, or rename it"
            )
        else:
            yield Skipped(path, f"not_drums: {said.rule}")


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """The one hit of a file, its onset measured."""
    variant = recording.facts["variant"]
    voice = Voice(str(recording.facts["label"]), None if variant is None else str(variant))
    return sample_reading(root, recording, voice, taxonomy)


def group_of(path: str) -> str:
    """Group of a file: pack and piece.

    >>> group_of("Pack A/Snares/Snare Big 01 Hard.wav"), group_of("Pack A/Snares/Snare Big 02.wav"), group_of("Pack A/808.wav")
    ('kit:Pack A/snare big', 'kit:Pack A/snare big', 'kit:Pack A/808')
    """
    tokens = names.split_name(PurePosixPath(path).stem, keep_number=True)
    piece = list(tokens)
    while len(piece) > 1 and (piece[-1].isdecimal() or piece[-1] in COUNTERS):
        piece.pop()
    return f"kit:{path.partition('/')[0] if '/' in path else '.'}/{' '.join(piece)}"


def category_folders(options: Mapping[str, Any]) -> dict[str, Voice]:
    """Exact folder name -> what the files in it are.

    Raises
    ------
    ConfigError `unknown-choice` : not a component
    """
    known = Taxonomy.shipped().labels
    found = {str(folder): str(label) for folder, label in (options.get("category_folders") or {}).items()}
    for label in found.values():
        if label not in known:
            raise ConfigError.unknown_choice("component", label, known, where="configs/datasets.yaml: signaturesounds.category_folders")
    return {folder: Voice(label) for folder, label in found.items()}
