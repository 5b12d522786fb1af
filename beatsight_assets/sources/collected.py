"""Own samples of `beatsight collect`: single hits that somebody marked in audio, or took over from a beatmap.

Layout      samples/<sha256 of the audio>.json and audio/<the same>.<suffix>; one file of samples for each audio
Timing      microseconds as they were given
Labels      canonical components
Group       `audio:` + sha256 of the audio, the same key as a beatmap of it
Traps       a session that also holds hits of a beatmap has the confidence of the least certain of them; without a beatmap only some of
            the hits are marked (`partial` in extras), so what lies between them is no negative
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beatsight_assets import audio
from beatsight_assets.bsm import Beatmap, Hit
from beatsight_assets.errors import ConfigError, GateFailed, InputError
from beatsight_assets.events import DAY_S, MIX_CONTEXTS, Hits, Session
from beatsight_assets.safejson import parse_json
from beatsight_assets.settings import Settings
from beatsight_assets.sources import AUDIO_SUFFIXES, Reading, Recording, Rejected, Source, candidate_files
from beatsight_assets.sources.beatmap import beside, confidence_of, read_beatmap
from beatsight_assets.store import contain, hash_file, open_regular, read_bytes
from beatsight_assets.taxonomy import Taxonomy, Voice

SOURCE = Source(
    name="collected",
    licence="that of the audio it was collected from",
    citation="",
    url="",
    suffixes=(".json", *AUDIO_SUFFIXES),
    chain=("audio_annotation",),
)
SOURCE_SET = "beatsight_collected"
CONFIDENCE = 0.95  # of a hit that a person marked, as in the hand-annotated datasets
MAX_BYTES = 64 * 1024 * 1024
MAX_DURATION_OFF_S = 0.05  # between what a beatmap says about its audio and what the audio is
# component -> (minimum, recommended) hits to collect; seed 002 says `ride` for ride_bow
WANTED = {"kick": (100, 500), "snare": (100, 500), "hihat_closed": (150, 750), "hihat_open": (50, 250), "crash": (75, 300),
          "ride_bow": (75, 300), "tom_high": (50, 200), "tom_mid": (50, 200), "tom_low": (50, 200)}  # fmt: skip
WANTED_OTHER = (100, 100)


class _Sample(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    onset_us: int = Field(ge=0, lt=int(DAY_S * 1e6))
    label: str
    variant: str | None = None
    velocity: float | None = Field(default=None, ge=0, le=1)
    source: str = Field(pattern=r"^(human|beatmap)$")
    confidence: float = Field(ge=0, le=1)
    machine_made: bool = False


class _Samples(BaseModel):
    """One file of samples."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    audio: str
    mix_context: str
    hits: list[_Sample]


def scan(root: Path, options: Mapping[str, Any]) -> Iterator[Recording | Rejected]:
    """Every file of samples by path, with its audio where that is there."""
    for timeline in candidate_files(root, (".json",))[0]:
        try:
            samples = _read_samples(root, timeline)
            has_audio = contain(root, samples.audio).is_file()
        except InputError as error:
            yield Rejected(timeline, "scan", error.code, error.message)
            continue
        session = Session(
            session_id=timeline,
            group_id=f"audio:{Path(timeline).stem}",
            audio_path=samples.audio,
            mix_context=samples.mix_context,
            label_source="human" if all(s.source == "human" for s in samples.hits) else "beatmap",
            confidence=min((s.confidence for s in samples.hits), default=CONFIDENCE),
            extras=_extras(samples),
        )
        yield Recording(session, timeline, (timeline, samples.audio) if has_audio else (timeline,))


def read(root: Path, recording: Recording, taxonomy: Taxonomy, options: Mapping[str, Any]) -> Reading | Rejected:
    """Hits of one file of samples; its audio must still be the audio."""
    samples = _read_samples(root, recording.timeline)
    if samples.audio in recording.files and f"audio:{hash_file(contain(root, samples.audio))}" != recording.session.group_id:
        return Rejected(recording.timeline, "read", "hash-mismatch", f"{samples.audio} is not the audio that the samples were marked in")
    voices = tuple(dict.fromkeys(Voice(s.label, s.variant) for s in samples.hits))
    hits = Hits(
        voices=voices,
        onset_us=np.array([s.onset_us for s in samples.hits], dtype=np.int64),
        voice=np.array([voices.index(Voice(s.label, s.variant)) for s in samples.hits], dtype=np.int64),
        velocity=np.array([np.nan if s.velocity is None else s.velocity for s in samples.hits], dtype=np.float32),
    )
    marked = {s.label for s in samples.hits}
    issues = {"unknown_label": sum(taxonomy.canonical(s.label) is None for s in samples.hits)}
    coverage = tuple(label for label in taxonomy.labels if label in marked)  # what nobody looked for is not absent
    return Reading(recording.session, hits, coverage, None, {}, {k: v for k, v in issues.items() if v})


@dataclass(frozen=True)
class Collected:
    """What adding hits did."""

    session_id: str
    n_added: int
    n_known: int = 0  # were there before: nothing changed for them
    n_outside: int = 0  # at or past the end of the audio
    n_unknown: int = 0  # labels outside the taxonomy
    warnings: tuple[str, ...] = ()


def add(settings: Settings, path: Path, onset_us: int, label: str, *, dry_run: bool = False) -> Collected:
    """Add one hit that a person marked; adding the same instant twice changes nothing.

    Raises
    ------
    ConfigError `unknown-choice` : no component or alias of that name; `bad-option` : the time is outside the audio
    InputError : the audio cannot be read, codes of `audio.probe`
    """
    taxonomy = Taxonomy.load(settings)
    known = taxonomy.canonical(label)
    if known is None:
        raise ConfigError.unknown_choice("label", label, taxonomy.labels, where="LABEL")
    duration_s = audio.probe(path).duration_s
    if not 0 <= onset_us < round(duration_s * 1e6):
        raise ConfigError(f"{onset_us / 1e6} s is outside {path.name}, which has {duration_s:.6f} s", code="bad-option", where="TIME")
    sample = _Sample(onset_us=onset_us, label=known[0], variant=known[1], source="human", confidence=CONFIDENCE)
    return _keep(settings, path, hash_file(path), [sample], "unknown", dry_run)


def add_beatmap(
    settings: Settings, path: Path, audio_path: Path | None = None, *, strict_hash: bool = False, dry_run: bool = False
) -> Collected:
    """Add the hits of a beatmap that lie inside its audio; a map whose audio is there as source `beatmap` adds nothing.

    audio_path : by default the drum stem that the map names, if it is there, else the song, beside the map

    Raises
    ------
    InputError : the map or the audio cannot be read; `path-escape` : the map names audio outside its folder
    GateFailed `hash-mismatch` : `strict_hash`, and the audio is not the one that the map was made for
    """
    taxonomy = Taxonomy.load(settings)
    beatmap = read_beatmap(path, taxonomy)
    is_stem = False
    if audio_path is None:
        audio_path, is_stem = _audio_beside(path, beatmap)
    info = audio.probe(audio_path)
    digest = hash_file(audio_path)
    is_stem = is_stem or (digest == beatmap.song.stem_sha256 and digest != beatmap.song.audio_sha256)
    warnings = []
    stated = beatmap.song.stem_sha256 if is_stem else beatmap.song.audio_sha256
    if stated is not None and digest != stated:
        message = f"{audio_path.name} is not the audio that {path.name} was made for: sha256 {digest[:12]}.. instead of {stated[:12]}.."
        if strict_hash:
            raise GateFailed(message, code="hash-mismatch", where=path.name)
        warnings.append(message)
    if abs(info.duration_s - beatmap.song.duration_ms / 1000) > MAX_DURATION_OFF_S:
        warnings.append(f"{audio_path.name} has {info.duration_s:.3f} s, {path.name} says {beatmap.song.duration_ms / 1000:.3f} s")
    if digest in _digests_of_beatmaps(settings):
        said = f"{audio_path.name} is already there as source beatmap; nothing was added"
        return Collected(_session_id(digest), 0, n_known=len(beatmap.hits), warnings=(*warnings, said))
    end_us = round(info.duration_s * 1e6)
    known = [hit for hit in beatmap.hits if taxonomy.canonical(hit.label)]
    inside = [hit for hit in known if hit.onset_us < end_us]
    samples = [_sample_of(hit, beatmap) for hit in inside]
    kept = _keep(settings, audio_path, digest, samples, "drum_only" if is_stem else "full_mix", dry_run)
    return replace(
        kept,
        n_outside=len(known) - len(inside),
        n_unknown=len(beatmap.hits) - len(known),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class Want:
    """How many hits of a component there are and should be."""

    label: str
    count: int
    minimum: int
    recommended: int

    @property
    def missing(self) -> int:
        return max(0, self.minimum - self.count)


def stats(settings: Settings) -> list[Want]:
    """Collected hits by component against what a model needs, in taxonomy order.

    Raises
    ------
    InputError `bad-metadata` : a file of samples cannot be read
    """
    root = settings.raw_roots(SOURCE_SET)[0]
    counts: dict[str, int] = {}
    for timeline in candidate_files(root, (".json",))[0]:
        for sample in _read_samples(root, timeline).hits:
            counts[sample.label] = counts.get(sample.label, 0) + 1
    labels = Taxonomy.load(settings).labels
    return [Want(label, counts.get(label, 0), *WANTED.get(label, WANTED_OTHER)) for label in labels]


def _sample_of(hit: Hit, beatmap: Beatmap) -> _Sample:
    return _Sample(
        onset_us=hit.onset_us,
        label=hit.label,
        variant=hit.variant,
        velocity=hit.velocity,
        source="beatmap",
        confidence=confidence_of(beatmap),
        machine_made=beatmap.is_machine_made,
    )


def _extras(samples: _Samples) -> dict[str, bool]:
    """What training must know: whether a model heard hits, and whether all hits of the audio are marked."""
    found = {
        "machine_made": any(s.machine_made for s in samples.hits),
        "partial": all(s.source == "human" for s in samples.hits),
    }
    return {key: True for key, value in found.items() if value}


def _session_id(digest: str) -> str:
    return f"samples/{digest}.json"


def _read_samples(root: Path, timeline: str) -> _Samples:
    content = read_bytes(contain(root, timeline), max_bytes=MAX_BYTES)
    try:
        samples = _Samples.model_validate(parse_json(content, where=timeline))
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"]) or "the document"
        raise InputError(f"{place}: {first['msg']}, got {first.get('input')!r:.80}", code="bad-metadata", where=timeline) from failure
    if samples.mix_context not in MIX_CONTEXTS:
        raise InputError(
            f"mix_context {samples.mix_context!r:.40} is none of {', '.join(MIX_CONTEXTS)}", code="bad-metadata", where=timeline
        )
    return samples


def _keep(settings: Settings, path: Path, digest: str, new: Sequence[_Sample], mix_context: str, dry_run: bool) -> Collected:
    """Write the samples that are not there yet, and the audio if it is new. Audio first: samples never name audio that is not there."""
    root, keep = settings.raw_roots(SOURCE_SET)[0], settings.store
    timeline = _session_id(digest)
    with nullcontext() if dry_run else keep.lock(root, "collect"):
        if (root / timeline).is_file():
            old = _read_samples(root, timeline)
        else:
            old = _Samples(audio=f"audio/{digest}{path.suffix.lower()}", mix_context=mix_context, hits=[])
        hits = {(s.onset_us, s.label, s.variant or ""): s for s in old.hits}
        n_before = len(hits)
        for sample in new:
            hits.setdefault((sample.onset_us, sample.label, sample.variant or ""), sample)
        n_added = len(hits) - n_before
        if n_added and not dry_run:
            target = contain(root, old.audio)
            if not target.is_file():
                with open_regular(path) as source:

                    def copy(out: IO[bytes]) -> None:
                        shutil.copyfileobj(source, out)

                    receipt = keep.publish(target, copy, expect_bytes=path.stat().st_size)
                if receipt.sha256 != digest:
                    keep.remove(target)
                    raise InputError("the file changed while it was copied. Repeat when nobody writes it", code="changed-while-reading")
            written = _Samples(audio=old.audio, mix_context=old.mix_context, hits=[hits[key] for key in sorted(hits)])
            keep.publish_json(root / timeline, written.model_dump(mode="json", exclude_defaults=True))
    return Collected(timeline, n_added, n_known=len(new) - n_added)


def _audio_beside(path: Path, beatmap: Beatmap) -> tuple[Path, bool]:
    """(audio that a map names, whether it is the drum stem); the stem if it is there."""
    song, stem = (beside(path.parent, path.name, name) for name in (beatmap.song.filename, beatmap.song.stem_filename))
    if stem is not None and contain(path.parent, stem).is_file():
        return contain(path.parent, stem), stem != song
    return contain(path.parent, song or ""), False


def _digests_of_beatmaps(settings: Settings) -> set[str]:
    """Digests of all files of the source `beatmap` as it was last ingested."""
    provenance = settings.layout.provenance("beatmap")
    if not provenance.is_file():
        return set()
    hashes = pl.read_parquet(provenance, columns=["hashes"])["hashes"].explode(empty_as_null=False, keep_nulls=False)
    return set(hashes.struct.field("sha256"))
