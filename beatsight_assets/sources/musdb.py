"""MUSDB18-HQ: 150 songs with their drum stems; the stems are inventory, their onsets are not annotated.

Layout      {train,test}/<Artist - Title>/{mixture,drums,bass,other,vocals}.wav, 44.1 kHz stereo
Labels      one row per song: `drums.wav` is `drum_mix`, from 0 to its end
Group       song key of artist and title (the first ` - ` parts them), the same key as in MedleyDB, MDB Drums and Cambridge
Traps       14 songs of `train` are the official validation set; about a dozen songs are takes that MedleyDB and MDB Drums hold too; names
            with `&`, apostrophes and trailing dots; `.stem.mp4` files belong to the other release and are not read
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beatsight_assets.events import Session
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, candidate_files
from beatsight_assets.sources.songs import song_group
from beatsight_assets.sources.stem_rows import stem_reading
from beatsight_assets.taxonomy import DRUM_MIX, Taxonomy, Voice

SOURCE = Source(
    name="musdb",
    licence="academic use only",
    citation="rafii2019",
    url="https://sigsep.github.io/datasets/musdb.html",
    suffixes=(".mp4", *AUDIO_SUFFIXES),
    official_split="folder, 14 songs of train are validation",
    chain=("multitrack_stems",),
)
FOLDERS = ("train", "test")
STEM = "drums"
# The list that ships with the dataset's own loader since 2019; variants of it circulate.
VALIDATION = (
    ("Actions", "One Minute Smile"),
    ("Clara Berry And Wooldog", "Waltz For My Victims"),
    ("Johnny Lokke", "Promises & Lies"),
    ("Patrick Talbot", "A Reason To Leave"),
    ("Triviul", "Angelsaint"),
    ("Alexander Ross", "Goodbye Bolero"),
    ("Fergessen", "Nos Palpitants"),
    ("Leaf", "Summerghost"),
    ("Skelpolu", "Human Mistakes"),
    ("Young Griffo", "Pennies"),
    ("ANiMAL", "Rockshow"),
    ("James May", "On The Line"),
    ("Meaxic", "Take A Step"),
    ("Traffic Experiment", "Sirens"),
)
_VALIDATION_GROUPS = frozenset(song_group(artist, title) for artist, title in VALIDATION)


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """The drum stem of every song, with or without audio, by path; everything else is skipped."""
    songs: dict[str, list[str]] = {}
    for path in candidate_files(root, SOURCE.suffixes)[0]:
        parts = path.split("/")
        if path.lower().endswith(".mp4"):
            yield Skipped(path, "other_release")
        elif len(parts) == 3 and parts[0] in FOLDERS:
            songs.setdefault("/".join(parts[:2]), []).append(path)
        else:
            yield Skipped(path, "outside_train_and_test")
    for folder, files in songs.items():
        stem = next((f for f in files if f.rpartition("/")[2].rpartition(".")[0] == STEM), None)
        yield _recording(folder, stem)
        yield from (Skipped(f, "non_drum_stem") for f in files if f != stem)


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """The row of one drum stem."""
    return stem_reading(root, recording, Voice(DRUM_MIX), taxonomy)


def _recording(folder: str, stem: str | None) -> Recording:
    split, _, song = folder.partition("/")
    artist, _, title = song.partition(" - ")
    group = song_group(artist, title or artist)
    path = stem or f"{folder}/{STEM}.wav"
    session = Session(
        path,
        group,
        audio_path=path,
        split_hint="val" if split == "train" and group in _VALIDATION_GROUPS else split,
        mix_context="stem",
        label_source="file_name",
        confidence=0.9,
    )
    return Recording(session, path, (path,) if stem else (), {"song": song})
