"""Cambridge-MT multitracks: songs as folders of single tracks; its drum tracks are inventory, labelled by their file names.

Layout      one or more roots, in each session folders (`Artist_Title[_Full]`, at any depth) of wav, flac or aif files
Labels      from the file's own name, whole words only (configs/file_names.yaml; option `names` adds words for this dataset)
Group       song key of the session folder, parted at the first `_`; the same key as in MUSDB and MedleyDB. The session folder is the
            innermost folder with a `_` in its name that does not itself name drums, microphones or other instruments
Traps       session names hold words like Band, Heroes, BigCarton; BassDI is a bass, Bass Drum is not; the same session may lie below two
            roots; tracks of one session differ in length, start and sample rate; `__MACOSX` and `._*`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Skipped, Source, candidate_files, names
from beatsight_assets.sources.songs import song_group
from beatsight_assets.sources.stem_rows import named_reading, named_stems
from beatsight_assets.taxonomy import Taxonomy

SOURCE = Source(
    name="cambridge",
    licence="educational use, per session",
    citation="senior2011",
    url="https://cambridge-mt.com/ms/mtk/",
    suffixes=AUDIO_SUFFIXES,
    chain=("multitrack_stems",),
    options=("names",),
    configs=(names.CONFIG,),
    many_roots=True,
)
CONFIDENCE = 0.6  # the archive's layout was not at hand: names are hints


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected | Skipped]:
    """Every track whose name says a drum; other instruments are skipped by the word that says so."""
    rules = names.rules_of(options)
    yield from named_stems(candidate_files(root, SOURCE.suffixes)[0], rules, lambda path: group_of(path, rules), confidence=CONFIDENCE)


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """The row of one track."""
    return named_reading(root, recording, taxonomy)


def session_folder(path: str, rules: names.NameRules) -> str:
    """Path of the folder that is the song of a track; the empty string for a track that lies in no folder.

    >>> rules = names.shipped_rules()
    >>> session_folder("Rock/Actions_OneMinuteSmile_Full/Drums_Close/01_Kick.wav", rules), session_folder("Band/01_Kick.wav", rules)
    ('Rock/Actions_OneMinuteSmile_Full', 'Band')
    """
    parents = path.split("/")[:-1]
    told = [n for n, name in enumerate(parents) if names.label_of(name, rules).kind == "unknown"]
    found = [n for n in told if "_" in parents[n]] or told or list(range(len(parents)))
    return "/".join(parents[: found[-1] + 1]) if found else ""


def group_of(path: str, rules: names.NameRules) -> str:
    """Song key of the session folder of a track."""
    song = session_folder(path, rules).rpartition("/")[2] or path
    artist, _, title = song.partition("_")
    return song_group(artist, title or artist)
