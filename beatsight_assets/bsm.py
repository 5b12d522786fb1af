"""The beatmap file `.bsm` (JSON, version 1.1.0): hits of a song with lanes, tempo and difficulty, and back.

Belongs here: the form of `spec/model.md` section 10 and what `spec/sources.md` section 12 adds for reading; `.bs` is the same in PascalCase.
Does not belong here: finding hits (`transcribe`), beatmaps as training data (`sources.beatmap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.safejson import parse_json
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy

VERSION = "1.1.0"
VIEWS = ("bsm", "full23")  # names of components in the file: `bsm` knows one ride, full23 is the taxonomy
RIDE = "ride"  # what the view bsm calls the components of family ride; read back as ride_bow (an alias of the taxonomy)
DAY_MS = 86_400_000
N_LANES = 7
SNAP_DIVISOR = 4  # sixteenths: the editor's grid, hits are not moved onto it
VELOCITY_DIGITS = 4


class Hit(NamedTuple):
    """One hit of one recording, as every form of transcription holds it."""

    onset_us: int  # microseconds from the start of the audio
    label: str  # canonical component; a label outside the taxonomy stays as it was read
    velocity: float | None = None  # 0..1
    openness: float | None = None  # 0 closed .. 1 open, hi-hats only
    variant: str | None = None  # `unspecified`: the form knows the family only


class _LanesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int
    layout: str
    lanes: dict[Annotated[int, Field(ge=0, lt=N_LANES)], tuple[str, ...]]
    other: int = Field(ge=0, lt=N_LANES)


@dataclass(frozen=True)
class Lanes:
    """Where each component is drawn."""

    layout: str
    of_component: Mapping[str, int]
    other: int

    def of(self, component: str) -> int:
        """Lane 0..6 of a canonical component; labels that no lane names go to `other`."""
        return self.of_component.get(component, self.other)

    @classmethod
    def load(cls, settings: Settings) -> Lanes:
        """configs/lanes.yaml.

        Raises
        ------
        ConfigError `bad-config`, `unknown-choice` : not of this form; a lane names no component
        """
        file = settings.typed("lanes", _LanesFile)
        taxonomy = Taxonomy.load(settings)
        for lane, members in file.lanes.items():
            for name in members:
                if name not in taxonomy.order:
                    raise ConfigError.unknown_choice("component", name, taxonomy.labels, where=f"configs/lanes.yaml: lanes.{lane}")
        return cls(file.layout, {name: lane for lane, members in file.lanes.items() for name in members}, file.other)


@dataclass(frozen=True)
class Song:
    """What a beatmap says about the audio, and how its user calls it."""

    title: str
    artist: str
    creator: str
    filename: str  # last component only
    audio_sha256: str
    duration_ms: int
    rate_hz: int  # of the file
    bpm: float
    offset_ms: int = 0  # of the first beat
    time_signature: str = "4/4"
    stem_filename: str | None = None  # audio of the drums alone
    stem_sha256: str | None = None


class TimingPoint(NamedTuple):
    """Tempo and meter from here on."""

    onset_us: int  # may be negative: before the audio starts
    bpm: float
    time_signature: str


@dataclass(frozen=True)
class MadeBy:
    """Which model heard the hits."""

    model: str  # release or folder
    sha256: str  # of model.json, which names the digest of the weights
    classifier: str  # family
    confidence: float  # mean score of the hits, 0..1


@dataclass(frozen=True)
class Beatmap:
    """A beatmap as it was read."""

    version: str
    beatmap_id: str
    difficulty: float
    song: Song
    hits: tuple[Hit, ...]  # sorted by (onset, component)
    kit: tuple[str, ...]  # components that the map says it has, canonical where they are known
    is_machine_made: bool  # a model heard the hits and nobody corrected them: no truth to learn from
    is_handmade: bool = False  # no model took part at all
    timing: tuple[TimingPoint, ...] = ()  # sorted by time, of several at one time the last; never empty after reading


def difficulty(n_hits: int, n_components: int, duration_s: float, span_s: float) -> float:
    """Difficulty 0..10: density, number of parts, and how close hits follow each other.

    Parameters
    ----------
    duration_s : of the audio
    span_s : from the first hit to the last; the mean gap is this over (hits - 1)

    >>> difficulty(n_hits=32, n_components=3, duration_s=8.0, span_s=7.75), difficulty(0, 0, 8.0, 0.0)
    (8.5, 0.0)
    """
    if not n_hits:
        return 0.0
    per_s = n_hits / duration_s if duration_s > 0 else 0.0
    gap_s = span_s / (n_hits - 1) if n_hits > 1 else 1.0
    return round(min(2 * per_s, 4.0) + min(0.5 * n_components, 3.0) + min(5 * max(0.0, 1 - gap_s), 3.0), 2)


def beatmap_id(audio_sha256: str, model_sha256: str) -> str:
    """Id of what one model hears in one audio: equal for equal bytes of both."""
    return str(uuid5(NAMESPACE_URL, f"urn:beatsight:beatmap:{audio_sha256}:{model_sha256}"))


def write_bsm(
    hits: Sequence[Hit], song: Song, made_by: MadeBy, now: datetime, *, taxonomy: Taxonomy, lanes: Lanes, component_view: str = "bsm"
) -> bytes:
    """A `.bsm` file; equal input gives equal bytes. Hits that fall on one millisecond and one written component become the louder.

    Raises
    ------
    ConfigError `unknown-choice`, `bad-option` : the view is not of `VIEWS`; `now` has no time zone
    """
    if component_view not in VIEWS:
        raise ConfigError.unknown_choice("component view", component_view, VIEWS, where="--component-view")
    if now.tzinfo is None:
        raise ConfigError("the time of writing needs a time zone", code="bad-option")
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    objects: dict[tuple[int, int, str], dict[str, Any]] = {}
    for hit in hits:
        name = RIDE if component_view == "bsm" and taxonomy.family(hit.label) == "ride" else hit.label
        row: dict[str, Any] = {"time": round(hit.onset_us / 1000), "component": name, "lane": lanes.of(hit.label)}
        if hit.velocity is not None:
            row["velocity"] = round(min(max(hit.velocity, 0.0), 1.0), VELOCITY_DIGITS)
        key = (row["time"], taxonomy.order.get(hit.label, len(taxonomy.order)) if name != RIDE else taxonomy.order["ride_bow"], name)
        if key not in objects or row.get("velocity", -1.0) > objects[key].get("velocity", -1.0):
            objects[key] = row
    written = [objects[key] for key in sorted(objects)]
    names = sorted({(key[1], key[2]) for key in objects})
    span_s = (written[-1]["time"] - written[0]["time"]) / 1000 if written else 0.0
    return store.to_json_bytes(
        {
            "version": VERSION,
            "metadata": {
                "title": song.title,
                "artist": song.artist,
                "creator": song.creator,
                "tags": [],
                "difficulty": difficulty(len(written), len(names), song.duration_ms / 1000, span_s),
                "beatmapId": beatmap_id(song.audio_sha256, made_by.sha256),
                "createdAt": stamp,
                "modifiedAt": stamp,
            },
            "audio": {
                "filename": song.filename,
                "hash": f"sha256:{song.audio_sha256}",
                "duration": song.duration_ms,
                "sampleRate": song.rate_hz,
            },
            "timing": {
                "bpm": song.bpm,
                "offset": song.offset_ms,
                "timeSignature": song.time_signature,
                "timingPoints": [{"time": song.offset_ms, "bpm": song.bpm, "timeSignature": song.time_signature}],
            },
            "drumKit": {"components": [name for _, name in names], "layout": lanes.layout, "customSamples": None},
            "hitObjects": written,
            "editor": {
                "snapDivisor": SNAP_DIVISOR,
                "visualLanes": N_LANES,
                "bookmarks": [],
                "aiGenerationMetadata": {
                    "modelVersion": made_by.model,
                    "modelSha256": made_by.sha256,
                    "classifier": made_by.classifier,
                    "confidence": round(made_by.confidence, VELOCITY_DIGITS),
                    "processedAt": stamp,
                    "manualEdits": False,
                },
            },
        }
    )


class _Part(BaseModel):
    """An object of the file: keys that nobody knows are ignored, those named here must be there and of their type."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Metadata(_Part):
    title: str
    artist: str
    creator: str
    difficulty: float = Field(ge=0, le=10)
    beatmapId: str
    createdAt: str
    modifiedAt: str


class _Audio(_Part):
    filename: str
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    duration: float = Field(ge=0)
    sampleRate: int = Field(gt=0)
    drumStem: str | None = None
    drumStemHash: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")


class _TimingPoint(_Part):
    time: float = Field(gt=-DAY_MS, lt=DAY_MS)
    bpm: float = Field(gt=0)
    timeSignature: str | None = None


class _Timing(_Part):
    bpm: float = Field(gt=0)
    offset: float = Field(gt=-DAY_MS, lt=DAY_MS)
    timeSignature: str
    timingPoints: list[_TimingPoint] | None = None


class _Kit(_Part):
    components: list[str]


class _HitObject(_Part):
    time: float = Field(ge=0, lt=DAY_MS)  # may be fractional (spec/sources.md section 12)
    component: str
    velocity: float | None = Field(default=None, ge=0, le=1)
    lane: int | None = Field(default=None, ge=0, lt=N_LANES)


class _Generation(_Part):
    manualEdits: bool = True


class _Editor(_Part):
    aiGenerationMetadata: _Generation | None = None


class _File(_Part):
    version: str = Field(pattern=r"^1\.\d+(\.\d+)?$")
    metadata: _Metadata
    audio: _Audio
    timing: _Timing
    drumKit: _Kit
    hitObjects: list[_HitObject]
    editor: _Editor | None = None


PARTS = (_File, _Metadata, _Audio, _Timing, _TimingPoint, _Kit, _HitObject, _Editor, _Generation)
KEYS = {key.casefold(): key for part in PARTS for key in part.model_fields}


def camel_case(obj: Any, *, where: str = "") -> Any:
    """What a `.bs` file holds, with the keys of a `.bsm` file: `HitObjects` is `hitObjects`.

    Raises
    ------
    InputError `bad-metadata` : two keys of one object are one key now
    """
    if isinstance(obj, list):
        return [camel_case(value, where=where) for value in obj]
    if not isinstance(obj, dict):
        return obj
    found = {KEYS.get(key.casefold(), key): camel_case(value, where=where) for key, value in obj.items()}
    if len(found) != len(obj):
        raise InputError("two keys of one object differ only in case", code="bad-metadata", where=where)
    return found


def read_bsm(content: bytes, taxonomy: Taxonomy, *, where: str = "") -> Beatmap:
    """A `.bsm` or (`where` ends in `.bs`) `.bs` file of version 1.x.

    Lanes are checked, not kept; an unknown component stays as it is written; no velocity stays None; times go half up to microseconds.

    Raises
    ------
    InputError `bad-metadata` : not JSON, another version, a required key is absent or of another type
    """
    obj = parse_json(content, where=where)
    if where.lower().endswith(".bs"):
        obj = camel_case(obj, where=where)
    try:
        file = _File.model_validate(obj)
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"]) or "the document"
        raise InputError(f"{place}: {first['msg']}, got {first.get('input')!r:.80}", code="bad-metadata", where=where) from failure
    hits = []
    for row in file.hitObjects:
        label, variant = taxonomy.canonical(row.component) or (row.component, None)
        hits.append(Hit(_microseconds(row.time), label, row.velocity, None, variant))
    song = Song(
        title=file.metadata.title,
        artist=file.metadata.artist,
        creator=file.metadata.creator,
        filename=file.audio.filename,
        audio_sha256=file.audio.hash.removeprefix("sha256:"),
        duration_ms=round(file.audio.duration),
        rate_hz=file.audio.sampleRate,
        bpm=file.timing.bpm,
        offset_ms=round(file.timing.offset),
        time_signature=file.timing.timeSignature,
        stem_filename=file.audio.drumStem or None,
        stem_sha256=file.audio.drumStemHash.removeprefix("sha256:") if file.audio.drumStemHash else None,
    )
    made = file.editor.aiGenerationMetadata if file.editor else None
    order = sorted(hits, key=lambda h: (h.onset_us, taxonomy.order.get(h.label, len(taxonomy.order)), h.label))
    return Beatmap(
        file.version,
        file.metadata.beatmapId,
        file.metadata.difficulty,
        song,
        tuple(order),
        tuple(dict.fromkeys((taxonomy.canonical(name) or (name, None))[0] for name in file.drumKit.components)),
        is_machine_made=made is not None and not made.manualEdits,
        is_handmade=made is None,
        timing=_timing_points(file.timing),
    )


def _timing_points(timing: _Timing) -> tuple[TimingPoint, ...]:
    """Tempo and meter over time; a file without timing points has one tempo from its offset on."""
    points = {_microseconds(timing.offset): TimingPoint(_microseconds(timing.offset), timing.bpm, timing.timeSignature)}
    if timing.timingPoints:
        points = {}
        meter = timing.timeSignature
        for point in sorted(timing.timingPoints, key=lambda p: p.time):
            meter = point.timeSignature or meter
            points[_microseconds(point.time)] = TimingPoint(_microseconds(point.time), point.bpm, meter)
    return tuple(points[at] for at in sorted(points))


def _microseconds(ms: float) -> int:
    """Half up, from the decimal digits as they are written."""
    return int((Decimal(repr(ms)) * 1000).to_integral_value(ROUND_HALF_UP))
