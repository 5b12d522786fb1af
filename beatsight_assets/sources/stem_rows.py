"""One row for a whole stem: inventory of audio that has a name and no onsets (`spec/events.md` section 5).

Belongs here: from a named audio file to its single row. Does not belong here: what a file's name or its yaml says (the source modules).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from beatsight_assets.audio import AudioError, probe
from beatsight_assets.events import Hits, Session
from beatsight_assets.sources import Reading, Recording, Rejected, Skipped
from beatsight_assets.sources.names import NameRules, label_of
from beatsight_assets.taxonomy import Taxonomy, Voice

STEM_CONTEXT_MS = (0.0, 0.0)  # a stem row is never cut into clips


def named_stems(
    paths: Iterable[str], rules: NameRules, group_of: Callable[[str], str], *, confidence: float
) -> Iterator[Recording | Rejected | Skipped]:
    """One recording for every audio file whose own name says a drum; other instruments are skipped by the word that says so.

    Names that say nothing (`unknown-label`) or two things (`ambiguous-file-name`) are refused, so that somebody looks at them.
    """
    for path in paths:
        said = label_of(PurePosixPath(path).stem, rules)
        if said.code is not None:
            why = f"its name says {said.rule}" if said.rule else "no word of its name is a drum, a microphone or another instrument"
            yield Rejected(path, "scan", said.code, f"{why}. Add the words to option `names` of this dataset, or rename the file")
        elif said.voice is None:
            yield Skipped(path, f"not_drums: {said.rule}")
        else:
            session = Session(
                path,
                group_of(path),
                audio_path=path,
                mix_context="stem",
                label_source="file_name",
                confidence=confidence,
                extras={"mic_position": said.mic_position} if said.mic_position else {},
            )
            yield Recording(session, path, (path,), {"label": said.voice.label, "variant": said.voice.variant, "rule": said.rule})


def named_reading(root: Path, recording: Recording, taxonomy: Taxonomy) -> Reading | Rejected:
    """The row of a recording of `named_stems`."""
    variant = recording.facts["variant"]
    return stem_reading(root, recording, Voice(str(recording.facts["label"]), None if variant is None else str(variant)), taxonomy)


def stem_reading(root: Path, recording: Recording, voice: Voice, taxonomy: Taxonomy) -> Reading | Rejected:
    """The row of a stem: onset 0, end = duration of its audio, `mix_context` stem, context 0/0; facts are those of the recording.

    The audio is decoded here, once. A stem whose audio is not among the recording's files keeps its row without an end (`ingest` counts
    `audio_absent`); audio that is silent, empty or unreadable is refused with the code of `audio.probe`.

    Parameters
    ----------
    voice : what the stem holds; `drum_mix` for the whole kit, which is no class and covers none
    """
    session = replace(recording.session, context_ms=STEM_CONTEXT_MS, mix_context="stem")
    coverage = (voice.label,) if voice.label in taxonomy.order else ()
    if session.audio_path is None or session.audio_path not in recording.files:
        return Reading(session, Hits.single(voice), coverage)
    try:
        info = probe(root / session.audio_path)
    except AudioError as error:
        return Rejected(session.audio_path, "audio", error.code, error.message)
    end_us = (2 * info.n_frames * 1_000_000 + info.rate_hz) // (2 * info.rate_hz)  # half up
    return Reading(session, Hits.single(voice, 0, end_us), coverage, audio=info)
