"""Transcribe a recording with the promoted model: audio in, `.bsm`, MIDI, label track and event rows out.

Belongs here: which model serves, tempo from hits, where files go. Does not belong here: decoding (`model.decode`, the function that
evaluation judged), the forms of the files (`bsm`, `labels`).

There is no fallback: without a model nothing is transcribed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets import audio, clock, store
from beatsight_assets.bsm import VIEWS, Lanes, MadeBy, Song, write_bsm
from beatsight_assets.errors import ConfigError, InputError, StoreError
from beatsight_assets.events import Hits, Session, assemble, to_jsonl
from beatsight_assets.model.checkpoint import Model, load_model
from beatsight_assets.model.decode import transcribe_audio
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Progress, silent
from beatsight_assets.store import Store, contain, is_below, is_plain_path, printable
from beatsight_assets.taxonomy import Taxonomy, Voice
from beatsight_assets.transcribe import Hit
from beatsight_assets.transcribe.labels import write_labels, write_midi

FORMATS = {"bsm": ".bsm", "midi": ".mid", "audacity": ".txt", "jsonl": ".jsonl"}
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl")
TEMPO_RANGE_BPM = (60.0, 200.0)
PREFERRED_BPM, PREFERENCE_OCTAVES = 120.0, 0.7  # of several metrical levels that fit, the one nearest to walking pace
MIN_TEMPO_HITS = 8  # two bars of a backbeat; below, hits say nothing about a beat
GRID_HZ = 200  # 5 ms, about the spread of played onsets
WHOLE_BPM_SHARE = 0.995  # a whole number of bpm that fits this well is the tempo: clicks have whole numbers
FIRST_BEAT_MS = 15  # a first beat this little before the start is at the start
CREATOR = "BeatSight"


@dataclass(frozen=True)
class Served:
    """A model ready to transcribe, and what it is called."""

    model: Model
    name: str


@dataclass(frozen=True)
class Heard:
    """What a model hears in one audio file."""

    hits: tuple[Hit, ...]  # sorted by (onset, class)
    confidence: float  # mean score of the hits, 0 without any
    filename: str  # last component
    audio_sha256: str
    duration_ms: int
    rate_hz: int  # of the file
    fold_loss_db: float  # see `audio.AudioClip`


@dataclass(frozen=True)
class Tempo:
    """Beats per minute, the first beat, and where they come from: `option`, `hits`, or `default` (nothing to estimate from)."""

    bpm: float
    offset_ms: int
    source: str


@dataclass(frozen=True)
class TranscribeOptions:
    """What to transcribe and what to write.

    output : names the folder and the file; formats other than .bsm go beside it with their own suffix
    model : release, run, or folder of a model; None: BEATSIGHT_ML_MODEL_PATH, else the promoted one
    confidence : score from which a peak is a hit, 0..1; None: the threshold stored with the model
    tempo_bpm : None: estimated from the hits
    """

    input: Path
    output: Path
    model: str | None = None
    confidence: float | None = None
    formats: tuple[str, ...] = ("bsm",)
    title: str | None = None
    artist: str = "unknown"
    creator: str = CREATOR
    component_view: str = "bsm"
    tempo_bpm: float | None = None


@dataclass(frozen=True)
class Transcription:
    """What was heard and written. No hits is a complete, honest result with exit code 1 (`nothing-detected`)."""

    heard: Heard
    tempo: Tempo
    model: str
    model_sha256: str
    classifier: str  # family of the model that heard the hits
    files: Mapping[str, Path]  # by format
    notices: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0, or 1 when nothing was detected."""
        return 0 if self.heard.hits else 1

    @cached_property
    def counts(self) -> dict[str, int]:
        """Hits by component, most frequent first."""
        labels = [h.label for h in self.heard.hits]
        return {name: labels.count(name) for name in sorted(set(labels), key=lambda x: (-labels.count(x), x))}

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "schema": "beatsight.transcription/1",
            "status": "done" if self.heard.hits else "nothing-detected",
            "n_hits": len(self.heard.hits),
            "counts": self.counts,
            "confidence": self.heard.confidence,
            "duration_s": self.heard.duration_ms / 1000,
            "audio": self.heard.filename,
            "audio_sha256": self.heard.audio_sha256,
            "bpm": self.tempo.bpm,
            "tempo_source": self.tempo.source,
            "classifier": self.classifier,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "files": {name: str(path) for name, path in self.files.items()},
            "notices": list(self.notices),
        }


def find_model(settings: Settings, name: str | None = None) -> Served:
    """The model to serve: the one named, else that of BEATSIGHT_ML_MODEL_PATH, else the promoted one after checking its digests.

    A name is an absolute path, a path below the data root, a release, or a run. A path may point at the folder or at a file in it.

    Raises
    ------
    ConfigError `missing-model`, `unsafe-model`, `no-model` : not there; a file that may hold code; nothing is promoted
    StoreError `digest-mismatch` : the promoted files are not those that were judged
    InputError : as `checkpoint.load_model`
    """
    layout = settings.layout
    wanted, origin = (name, "--model") if name else (settings.model_path, "BEATSIGHT_ML_MODEL_PATH")
    if not wanted:
        return promoted_model(settings)
    if wanted.lower().endswith(PICKLES):
        message = f"{printable(wanted)[:200]} may hold code and is not opened. Give a folder with model.safetensors and model.json"
        raise ConfigError(message, code="unsafe-model", where=origin)
    places = [Path(wanted).expanduser()] if Path(wanted).expanduser().is_absolute() else []
    if not places and is_plain_path(wanted):
        places = [layout.root / wanted, layout.promoted / wanted, layout.candidates / wanted]
    for place in places:
        folder = place.parent if place.is_file() else place
        if (folder / "model.json").is_file():
            return Served(load_model(folder), folder.name)
    known = sorted(p.parent.name for area in (layout.promoted, layout.candidates) for p in area.glob("*/model.json"))
    there = f"There are {', '.join(known)}" if known else "No model is there: run `beatsight model train`"
    raise ConfigError(
        f"{printable(wanted)[:200]} is no folder with a model.json, no release and no run. {there}", code="missing-model", where=origin
    )


def promoted_model(settings: Settings) -> Served:
    """The model that CURRENT.json points at, byte for byte the one that was promoted; its name is that of the release.

    Raises
    ------
    as `find_model`
    """
    layout = settings.layout
    if not layout.current_model.is_file():
        raise ConfigError(
            "no model is promoted. Run `beatsight demo`, or train and judge one and run `beatsight model promote`; or name one with --model",
            code="no-model",
            where=layout.rel(layout.current_model),
        )
    current = store.read_json(layout.current_model)
    try:
        release = str(current["release"])
        due = {"model.safetensors": current["model_sha256"], "model.json": current["model_card_sha256"]}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"CURRENT.json has no {error}. Run `beatsight model promote`", code="bad-metadata", where=layout.rel(layout.current_model)
        ) from error
    folder = contain(layout.promoted, release)
    for file, digest in due.items():
        path = folder / file
        if not path.is_file():
            raise ConfigError("the promoted model is gone. Run `beatsight model promote`", code="missing-model", where=layout.rel(path))
        found = settings.store.sha256(path, fresh=True)
        if found != digest:
            message = f"sha256 is {found[:12]}…, CURRENT.json says {str(digest)[:12]}…. Promote a model again"
            raise StoreError(message, code="digest-mismatch", where=layout.rel(path))
    return Served(load_model(folder), release)


def component_names(model: Model, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Component that each class of a model is written as: itself, or the first component that its class stands for (KD -> kick)."""
    class_of = taxonomy.view(model.view).class_of
    return tuple(name if name in taxonomy.order else next(c for c, owner in class_of.items() if owner == name) for name in model.classes)


def hear(served: Served, path: Path, taxonomy: Taxonomy, *, confidence: float | None = None) -> Heard:
    """Hits of an audio file. Silence has none and is no error.

    Raises
    ------
    audio.AudioError : the file is not readable audio
    InputError `changed-while-reading`
    """
    model = served.model
    digest = store.hash_file(path) if path.is_file() else ""
    clip = audio.read_mono(path, silent_ok=True)
    if store.hash_file(path) != digest:
        raise InputError("the file was replaced while it was read", code="changed-while-reading", where=path.name)
    samples = audio.resample(clip.samples, clip.rate_hz, model.definition.rate_hz)
    found = transcribe_audio(model, samples, model.definition.rate_hz, lowest=confidence)
    names = component_names(model, taxonomy)
    onset_us = np.round(found.onset_s * 1e6).astype(np.int64).tolist()
    rows = zip(onset_us, found.class_index.tolist(), found.velocity.tolist(), found.openness.tolist(), strict=True)
    hits = tuple(Hit(at, names[i], velocity, None if is_open != is_open else is_open) for at, i, velocity, is_open in rows)
    return Heard(
        hits=hits,
        confidence=float(found.score.mean(dtype=np.float64)) if hits else 0.0,
        filename=printable(path.name),
        audio_sha256=digest,
        duration_ms=round(1000 * len(clip.samples) / clip.rate_hz),
        rate_hz=clip.rate_hz,
        fold_loss_db=clip.fold_loss_db,
    )


def estimate_tempo(hits: Sequence[Hit]) -> Tempo:
    """One tempo for the whole recording, and the first beat.

    Hits weighted by velocity lie on a 5 ms grid; a tempo from 60 to 200 bpm is as good as the autocorrelation at one, two and four beats,
    times a preference for 120 bpm (log-normal, 0.7 octaves). The best one is refined by turning the hits into phases of its sixteenth
    and maximising how well they agree; the phase of the beat gives the offset. Tempo changes are not followed.

    Within 4 % on 54 % of the first 300 takes of Groove MIDI (fills included), at a related metrical level on 79 %.
    """
    if len(hits) < MIN_TEMPO_HITS or hits[-1].onset_us - hits[0].onset_us < 2_000_000:
        return Tempo(PREFERRED_BPM, 0, "default")
    at = np.array([h.onset_us for h in hits]) / 1e6
    weight = np.array([0.5 if h.velocity is None else 0.1 + h.velocity for h in hits])
    train = np.zeros(int(at[-1] * GRID_HZ) + 2)
    np.add.at(train, np.round(at * GRID_HZ).astype(np.int64), weight)
    train = np.convolve(train, np.array([1, 2, 3, 4, 3, 2, 1]) / 16, mode="same")  # 15 ms on both sides
    spectrum = np.fft.rfft(train, 2 * len(train))
    likeness = np.fft.irfft(spectrum * np.conj(spectrum))[: len(train)]
    bpm = np.geomspace(*TEMPO_RANGE_BPM, 600)
    lags = 60 / bpm * GRID_HZ
    fit = np.mean([np.interp(lags * beats, np.arange(len(likeness)), likeness, right=0.0) for beats in (1, 2, 4)], axis=0)
    coarse = float(bpm[np.argmax(fit * np.exp(-0.5 * (np.log2(bpm / PREFERRED_BPM) / PREFERENCE_OCTAVES) ** 2))])
    near = np.append(coarse * np.linspace(0.97, 1.03, 601), round(coarse))
    agreement = np.abs(np.exp(2j * np.pi * at * near[:, None] / 15) @ weight)
    best = float(near[-1] if agreement[-1] >= WHOLE_BPM_SHARE * agreement.max() else round(near[np.argmax(agreement)], 2))
    phase = float(np.angle(np.sum(weight * np.exp(2j * np.pi * at * best / 60)))) / (2 * np.pi) % 1.0
    offset_ms, beat_ms = round(phase * 60_000 / best), 60_000 / best
    return Tempo(best, 0 if beat_ms - offset_ms < FIRST_BEAT_MS else offset_ms, "hits")


def to_files(heard: Heard, served: Served, tempo: Tempo, options: TranscribeOptions, now: datetime, settings: Settings) -> dict[str, bytes]:
    """Content of every format asked for; equal input gives equal bytes."""
    taxonomy = Taxonomy.load(settings)
    song = Song(
        title=printable(options.title or Path(heard.filename).stem),
        artist=printable(options.artist),
        creator=printable(options.creator),
        filename=heard.filename,
        audio_sha256=heard.audio_sha256,
        duration_ms=heard.duration_ms,
        rate_hz=heard.rate_hz,
        bpm=tempo.bpm,
        offset_ms=tempo.offset_ms,
    )
    made_by = MadeBy(served.name, served.model.digest, served.model.family, heard.confidence)
    made = {
        "bsm": lambda: write_bsm(
            heard.hits, song, made_by, now, taxonomy=taxonomy, lanes=Lanes.load(settings), component_view=options.component_view
        ),
        "midi": lambda: write_midi(heard.hits, taxonomy, tempos=((0, round(60e6 / tempo.bpm)),)),
        "audacity": lambda: write_labels(heard.hits),
        "jsonl": lambda: _to_event_lines(heard, taxonomy),
    }
    return {name: made[name]() for name in options.formats}


def _to_event_lines(heard: Heard, taxonomy: Taxonomy) -> bytes:
    voices = tuple(Voice(label) for label in sorted({h.label for h in heard.hits}))
    index = {voice.label: i for i, voice in enumerate(voices)}
    missing = float("nan")
    hits = Hits(
        voices=voices,
        onset_us=np.array([h.onset_us for h in heard.hits], dtype=np.int64),
        voice=np.array([index[h.label] for h in heard.hits], dtype=np.int64),
        velocity=np.array([missing if h.velocity is None else h.velocity for h in heard.hits], dtype=np.float32),
        openness=np.array([missing if h.openness is None else h.openness for h in heard.hits], dtype=np.float32),
    )
    session = Session(
        heard.filename, f"audio:{heard.audio_sha256}", audio_path=heard.filename, mix_context="unknown", label_source="detected",
        confidence=round(heard.confidence, 4),
    )  # fmt: skip
    return to_jsonl(assemble("transcription", [(session, hits)], taxonomy).frame)


def transcribe(
    settings: Settings, options: TranscribeOptions, *, now: datetime | None = None, progress: Progress = silent
) -> Transcription:
    """Hear one audio file and publish what was heard in the folder of `options.output`. The files are written also when nothing was heard.

    `now` stands in the .bsm file; None: the clock.

    Raises
    ------
    ConfigError `bad-option`, `unknown-choice`, `would-overwrite` : before anything is read; those of `find_model`
    InputError, StoreError : of `find_model`, `hear` and `Store.publish`
    """
    targets = _targets(settings, options)
    served = find_model(settings, options.model)
    progress(f"{served.name} listens to {printable(options.input.name)}")
    heard = hear(served, options.input, Taxonomy.load(settings), confidence=options.confidence)
    tempo = Tempo(options.tempo_bpm, 0, "option") if options.tempo_bpm else estimate_tempo(heard.hits)
    contents = to_files(heard, served, tempo, options, now or clock.utc_now(), settings)
    folder = options.output.absolute().parent
    is_ours = folder == settings.layout.root or is_below(settings.layout.root, folder)
    where = settings.store if is_ours else Store(folder, remember=False)
    for name, content in contents.items():
        where.publish(targets[name], content)
    notices = []
    trained_on = served.model.card.get("trained_on", {})
    if trained_on.get("recordings") and trained_on.get("synthetic") == trained_on["recordings"]:
        notices.append("the model has heard synthesised drums only: on recordings its classes are unreliable")
    if heard.fold_loss_db > audio.FOLD_LIMIT_DB:
        notices.append(f"the channels cancel each other: mono is {heard.fold_loss_db:.1f} dB below the louder one")
    if tempo.source == "default":
        notices.append(f"too few hits for a tempo; {tempo.bpm:g} bpm is a default")
    if not heard.hits:
        notices.append("nothing-detected: no hit reached the threshold")
    return Transcription(heard, tempo, served.name, served.model.digest, served.model.family, targets, tuple(notices))


def _targets(settings: Settings, options: TranscribeOptions) -> dict[str, Path]:
    """File of each format; refuses what cannot be meant."""
    if not options.formats:
        raise ConfigError(f"no format is asked for. Give one of {', '.join(FORMATS)}", code="bad-option", where="--format")
    for name in options.formats:
        if name not in FORMATS:
            raise ConfigError.unknown_choice("format", name, FORMATS, where="--format")
    if options.component_view not in VIEWS:
        raise ConfigError.unknown_choice("component view", options.component_view, VIEWS, where="--component-view")
    if options.confidence is not None and not 0.0 < options.confidence <= 1.0:
        raise ConfigError(f"--confidence is {options.confidence}; it must be above 0 and at most 1", code="bad-option")
    if options.tempo_bpm is not None and not 10.0 <= options.tempo_bpm <= 1_000.0:
        raise ConfigError(f"--tempo is {options.tempo_bpm}; it must be 10..1000 bpm", code="bad-option")
    name = options.output.name
    stem = Path(name).stem if Path(name).suffix in FORMATS.values() else name
    if not is_plain_path(stem or ".."):
        raise ConfigError(f"{printable(str(options.output))[:200]!r} names no file", code="bad-option", where="--output")
    folder = options.output.absolute().parent
    targets = {f: folder / f"{stem}{FORMATS[f]}" for f in options.formats}
    for target in targets.values():
        if target.resolve() == options.input.resolve():
            raise ConfigError("the transcription would replace the audio. Give another --output", code="would-overwrite", where="--output")
        settings.user_output(target)
    return targets
