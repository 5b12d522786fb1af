"""Real drums: one-shots of a sampled kit on a time line, each stroke where its MIDI note says.

Belongs here: samples to layers and round robins, what replaces a piece the kit lacks, chokes, the renderer. Does not belong here: which
file is which stroke (`sources.kits`), room and bus (`synth.master`), which takes (`groove`).

Onset      every sample is placed so that its first value at 5 % of its peak, as heard through the kit's EQ and room, falls on the note:
           the rule of the one-shots' own labels
Level      samples are brought to peak 1; level follows velocity without steps, layers change the sound. Balance and room are drawn
Labels     what the kit lacks is replaced by what `SUBSTITUTES` names, or left out, **before** the MIDI file is written: it says what sounds
Chance     the round robin and +-0.7 dB of each stroke are keyed by seed, take, microsecond and component, never by order
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets import audio
from beatsight_assets.errors import InputError
from beatsight_assets.events import CLOSED_PEDAL, openness_from_pedal
from beatsight_assets.render import synth
from beatsight_assets.sources.kits import Kit, Sample, list_kits
from beatsight_assets.sources.sample_rows import sample_onset
from beatsight_assets.sources.sfz import Region
from beatsight_assets.store import contain
from beatsight_assets.taxonomy import UNSPECIFIED, Taxonomy, Voice
from beatsight_assets.units import Decibels, Seconds

F32 = NDArray[np.float32]

NEEDED = ("kick", "snare", "hihat_closed")  # a kit without these plays no groove
# What sounds instead of a piece that a kit lacks, first one it has; nothing listed or nothing there: left out. The MIDI file says which.
SUBSTITUTES: Mapping[str, tuple[str, ...]] = {
    "rimshot": ("snare",),
    "cross_stick": ("rimshot", "snare"),
    "hihat_open": ("hihat_closed",),
    "hihat_pedal": ("hihat_closed",),
    "hihat_foot_splash": ("hihat_open", "hihat_pedal"),
    "ride_bow": ("ride_edge", "ride_bell"),
    "ride_bell": ("ride_bow", "ride_edge"),
    "ride_edge": ("ride_bow", "crash"),
    "crash": ("crash2",),
    "crash2": ("crash",),
    "splash": ("crash", "crash2"),
    "china": ("crash2", "crash"),
    "tom_high": ("tom_mid", "tom_low"),
    "tom_mid": ("tom_high", "tom_low"),
    "tom_low": ("tom_mid", "tom_high"),
}
CYMBALS = ("ride_bow", "ride_bell", "ride_edge", "crash", "crash2", "splash", "china")
TAIL_DB = -66.0  # below the peak: what follows is cut with a fade
SHOT_MAX_S = 5.0
FADE_S = 0.03
HEARD_SAMPLES = 1 << 14  # 0.37 s: strokes peak in the first half of it
HAND_CHOKE_S = 0.04  # a cymbal caught by hand
RING_S = 0.5  # a cymbal struck again: the old ring gives way slowly, real plates go on swinging
LUCK_DB = 1.4  # stroke to stroke, peak to peak
ERROR_WINDOW_MS = 12.0
RING_LIMIT = 0.5  # of the level that is an onset; above it an onset cannot be told
TAIL_S = 1.5  # audio after the last hit


@dataclass(frozen=True)
class Shot:
    """One recorded stroke, peak 1: float32 [shape=(n,)] at `synth.RATE_HZ`; `lead` samples come before its onset."""

    samples: F32
    lead: int


@dataclass(frozen=True)
class Instrument:
    """One piece of a kit: layers from soft to loud with the velocity 0..1 each begins at, several strokes each.

    group, off_by : SFZ choke groups, 0 none. openness : of a hat, 0 closed .. 1 open, None for the rest
    """

    label: str
    starts: tuple[float, ...]
    layers: tuple[tuple[Shot, ...], ...]
    openness: float | None = None
    group: int = 0
    off_by: int = 0


@dataclass(frozen=True)
class SampledKit:
    """What a kit can play in a studio: component -> its instruments (hats may have several, by openness).

    studio : levels, dynamics, room and bus; its own pieces are not used. The shots' `lead` is the one heard through it
    """

    kit_id: str
    studio: synth.Kit
    instruments: Mapping[str, tuple[Instrument, ...]]

    def sounding(self, label: str) -> str | None:
        """The component that sounds when `label` is played: itself, its first substitute that is there, or None (left out)."""
        return next((x for x in (label, *SUBSTITUTES.get(label, ())) if x in self.instruments), None)

    def instrument(self, label: str, openness: float) -> Instrument:
        """What plays a component the kit has: of several hats the one nearest in openness, nan = the usual openness."""
        choices = self.instruments[label]
        wanted = synth.OPENNESS_UNKNOWN.get(label, 0.5) if math.isnan(openness) else openness
        return min(choices, key=lambda i: abs((i.openness or 0.0) - wanted))

    def pedal(self, label: str, cc4: int) -> int:
        """Pedal value of what sounds, 90 closed .. 0 open: that of the recorded hat where it is known, else as played (-1 none)."""
        if label not in synth.OPENNESS_UNKNOWN:
            return cc4
        played = float(openness_from_pedal(np.array([cc4]))[0])
        openness = 0.0 if label == "hihat_closed" else self.instrument(label, played).openness
        return cc4 if openness is None else round((1 - openness) * CLOSED_PEDAL)

    @property
    def n_bytes(self) -> int:
        """Memory of the samples."""
        found = {id(s): s.samples.nbytes for i in self.instruments.values() for x in i for layer in x.layers for s in layer}
        return sum(found.values())


@dataclass(frozen=True)
class KitRef:
    """Where a playable kit lies: a kit folder, and one of its SFZ maps if it has any."""

    root: Path
    kit: str
    map: str | None

    @property
    def kit_id(self) -> str:
        return self.kit if self.map is None else f"{self.kit}_{self.map.rpartition('/')[2].removesuffix('.sfz')}"


@dataclass(frozen=True)
class _Stroke:
    """A sample that a renderer may use, and its region in the map (None without a map)."""

    voice: Voice
    sample: Sample
    region: Region | None

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """Plain strokes on the main piece first: no strike position, no variant, then by name."""
        return self.voice.strike is not None, self.voice.variant is not None, self.sample.piece


def find_kits(root: Path, options: Mapping[str, Any], taxonomy: Taxonomy) -> tuple[list[KitRef], dict[str, str]]:
    """(kits that can play a groove, kit -> why not) below a folder of kits, by name; each SFZ map is a kit of its own."""
    found: list[KitRef] = []
    refused: dict[str, str] = {}
    for kit in list_kits(root, options):
        names: list[str | None] = [m.path for m in kit.maps]
        for name in names or [None]:
            ref = KitRef(root, kit.name, name)
            lacking = [x for x in NEEDED if x not in {s.voice.label for s in _strokes(kit, name, taxonomy)}]
            if lacking:
                refused[ref.kit_id] = f"lacks {', '.join(lacking)}"
            else:
                found.append(ref)
    return sorted(found, key=lambda r: r.kit_id), refused


def load_kit(ref: KitRef, studio: synth.Kit, options: Mapping[str, Any], taxonomy: Taxonomy) -> SampledKit:
    """Samples of a kit, resampled once (soxr HQ), mono, trimmed, with their onsets as heard in the studio.

    Raises
    ------
    InputError `missing-input` : the kit is not there any more; those of `audio.read_mono`
    """
    kit = next((k for k in list_kits(ref.root, options) if k.name == ref.kit), None)
    if kit is None:
        raise InputError(f"kit {ref.kit} is not below the folder of kits", code="missing-input")
    by_piece: dict[tuple[str, str], list[_Stroke]] = {}
    for stroke in _strokes(kit, ref.map, taxonomy):
        by_piece.setdefault((stroke.voice.label, stroke.sample.piece), []).append(stroke)
    instruments: dict[str, list[Instrument]] = {}
    impulse = synth.impulse(studio, synth.RATE_HZ)
    for strokes in sorted(by_piece.values(), key=lambda of_piece: of_piece[0].rank):
        label = strokes[0].voice.label
        if label not in instruments or strokes[0].sample.openness is not None:
            instruments.setdefault(label, []).append(_instrument(ref.root, label, strokes, impulse))
    return SampledKit(ref.kit_id, studio, {label: tuple(instruments[label]) for label in taxonomy.labels if label in instruments})


def _strokes(kit: Kit, map_name: str | None, taxonomy: Taxonomy) -> list[_Stroke]:
    """Every sample that a renderer may use.

    Left out: microphones that are not the close one, choked strokes, and `unspecified` variants: a cymbal that may be a ride is no label.
    """
    regions = {r.sample: r for file in kit.maps if file.path == map_name for r in file.regions}
    found = []
    for sample in kit.samples:
        voice = kit.voice_of(sample, taxonomy)
        region = regions.get(sample.path.removeprefix(f"{kit.name}/"))
        is_plain = voice is not None and not voice.techniques and voice.variant != UNSPECIFIED
        if voice is not None and is_plain and sample.is_close and (map_name is None or region is not None):
            found.append(_Stroke(voice, sample, region))
    return found


def _instrument(root: Path, label: str, strokes: Sequence[_Stroke], impulse: NDArray[np.float64]) -> Instrument:
    """Layers by SFZ range, else by the layer in the name, else one layer per stroke from the softest recording to the loudest."""
    loaded = [(s, *_load(contain(root, s.sample.path), s.region)) for s in strokes]
    numbers = sorted({s.sample.layer for s in strokes if s.sample.layer is not None})
    layers: dict[float, list[Shot]] = {}
    for place, (stroke, shot, _) in enumerate(sorted(loaded, key=lambda x: (x[2], x[0].sample.path))):
        if all(s.region is not None and s.region.states_velocity for s in strokes):
            start = (stroke.region.lovel if stroke.region else 0) / 127
        elif all(s.sample.layer is not None for s in strokes):
            start = numbers.index(stroke.sample.layer or 0) / len(numbers)
        else:
            start = place / len(loaded)
        layers.setdefault(start, []).append(Shot(shot.samples, _heard_lead(shot, impulse)))
    starts = sorted(layers)
    first = strokes[0].region
    return Instrument(
        label, tuple(starts), tuple(tuple(layers[s]) for s in starts), strokes[0].sample.openness,
        first.group if first else 0, first.off_by if first else 0,
    )  # fmt: skip


@lru_cache(maxsize=2048)
def read_shot(path: Path, tune_cents: float, offset: int) -> tuple[Shot, Decibels]:
    """(stroke of a file at `synth.RATE_HZ`, mono, tuned, trimmed, peak 1; its peak in dBFS as recorded), read once per process."""
    clip = audio.read_mono(path)
    samples = clip.samples[offset:]
    rate_hz = clip.rate_hz * 2 ** (tune_cents / 1200)
    if rate_hz != synth.RATE_HZ:
        import soxr

        samples = np.asarray(soxr.resample(samples, rate_hz, synth.RATE_HZ, quality="HQ"), dtype=np.float32)
    level = np.abs(samples)
    peak = float(level.max(initial=0.0))
    lead = round(sample_onset(samples, synth.RATE_HZ) * synth.RATE_HZ / 1_000_000)
    heard = np.flatnonzero(level > peak * 10 ** (TAIL_DB / 20))
    end = min(int(heard[-1]) + 1, lead + int(SHOT_MAX_S * synth.RATE_HZ))
    shot = samples[:end] / np.float32(peak)
    fade = min(len(shot) - lead, int(FADE_S * synth.RATE_HZ))
    shot[len(shot) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return Shot(shot, lead), 20 * math.log10(peak)


def _heard_lead(shot: Shot, impulse: NDArray[np.float64]) -> int:
    """Where 5 % of the peak is reached behind EQ and room: a dark room swallows the quiet hiss before a pedal's chick, or raises it."""
    head = shot.samples[: shot.lead + HEARD_SAMPLES // 2]
    size = HEARD_SAMPLES * 2
    heard = np.abs(np.fft.irfft(np.fft.rfft(head, size) * np.fft.rfft(impulse[: HEARD_SAMPLES // 2], size), size)[: len(head)])
    return int(np.argmax(heard >= 0.05 * heard.max()))


def _load(path: Path, region: Region | None) -> tuple[Shot, Decibels]:
    return read_shot(path, region.tune_cents if region else 0.0, region.offset if region else 0)


def pick(kit: SampledKit, label: str, velocity: float, openness: float, luck: int) -> tuple[Instrument, Shot]:
    """The stroke that sounds: the hat nearest in openness (unknown: the usual one), the layer of the velocity, a round robin by luck."""
    instrument = kit.instrument(label, openness)
    at = max(0, int(np.searchsorted(instrument.starts, velocity + 1e-6, side="right")) - 1)
    shots = instrument.layers[at]
    return instrument, shots[luck % len(shots)]


def render(
    kit: SampledKit,
    onsets_us: NDArray[np.int64],
    labels: Sequence[str],
    velocities: NDArray[np.float32],
    openness: NDArray[np.float32],
    *,
    chokes: Sequence[tuple[int, str]] = (),
    seed: int,
    take_id: str,
    tail_s: Seconds = TAIL_S,
) -> F32:
    """A take on a sampled kit: float32 [shape=(n_samples,)], mono, 44.1 kHz, peak between -5 and -1 dBFS, ending `tail_s` after the last hit.

    Parameters
    ----------
    onsets_us : int64 [shape=(n,)], any order; the onset (5 % of the sample's peak) falls on `round(onset * rate)`
    labels : components the kit has, n of them (see `SampledKit.sounding`)
    velocities : float32 [shape=(n,)], 0..1; openness : float32 [shape=(n,)], nan = unknown
    chokes : (microsecond, component): a cymbal caught by hand
    """
    rate_hz, studio = synth.RATE_HZ, kit.studio
    places = (onsets_us.astype(np.int64) * rate_hz + 500_000) // 1_000_000
    n = int(places.max(initial=0)) + int(tail_s * rate_hz)
    gain_of = {label: studio.levels[label] for label in kit.instruments}
    strokes = []
    for i, label in enumerate(labels):
        luck = _luck(seed, take_id, int(onsets_us[i]), label)
        velocity = min(1.0, max(0.0, float(velocities[i])))
        instrument, shot = pick(kit, label, velocity, float(openness[i]), luck >> 16)
        level_db = studio.dynamics_db * (velocity - 1) + ((luck & 0xFFFF) / 0xFFFF - 0.5) * LUCK_DB
        strokes.append((int(places[i]), instrument, shot, gain_of[label] * 10 ** (level_db / 20)))
    stops = _stops(strokes, [((us * rate_hz + 500_000) // 1_000_000, label) for us, label in chokes])
    dry = np.zeros(n, np.float32)
    for i, (place, _, shot, gain) in enumerate(strokes):
        begin = place - shot.lead
        skip = max(0, -begin)
        stop, fade_s = stops.get(i, (n, 0.0))
        fade = int(fade_s * rate_hz)
        end = min(begin + len(shot.samples), n, stop + fade)
        piece = shot.samples[skip : end - begin] * np.float32(gain)
        if stop < end:
            piece[stop - begin - skip :] *= np.linspace(1, 0, fade, dtype=np.float32)[: end - stop]
        dry[begin + skip : end] += piece
    return synth.master(dry.astype(np.float64), studio, seed=seed, take_id=take_id)


def _luck(seed: int, take_id: str, onset_us: int, label: str) -> int:
    return int.from_bytes(blake2b(f"{seed}\x1f{take_id}\x1f{onset_us}\x1f{label}".encode(), digest_size=4).digest(), "big")


def _stops(strokes: Sequence[tuple[int, Instrument, Shot, float]], chokes: Sequence[tuple[int, str]]) -> dict[int, tuple[int, Seconds]]:
    """Stroke -> (sample, fade in s) where its ring is stopped: hats by any later hat that is not open, SFZ groups by what they name in
    `off_by`, cymbals by hand, and every piece by its own next stroke (slowly for cymbals)."""
    stops: dict[int, tuple[int, Seconds]] = {}
    ringing: dict[tuple[str, float | None], int] = {}  # instrument -> its last stroke
    order = sorted([(s[0], 1, i, "") for i, s in enumerate(strokes)] + [(place, 0, -1, label) for place, label in chokes])
    for place, _, i, choked in order:
        struck = strokes[i][1] if i >= 0 else None
        for key, j in list(ringing.items()):
            other = strokes[j][1]
            if strokes[j][0] >= place:
                continue
            if struck is None:
                fade_s = HAND_CHOKE_S if other.label == choked else None
            elif (struck.label, struck.openness) == key:
                fade_s = RING_S if other.label in CYMBALS else synth.RESTRIKE_S
            elif struck.group and other.off_by == struck.group:
                fade_s = synth.CHOKE_S
            elif other.label in synth.HATS and struck.label in synth.HATS:
                fade_s = synth.CHOKE_S if struck.label != "hihat_open" else synth.RESTRIKE_S
            else:
                fade_s = None
            if fade_s is not None:
                stops[j] = (place, fade_s)
                del ringing[key]
        if struck is not None:
            ringing[struck.label, struck.openness] = i
    return stops


def measure_onset_errors(samples: F32, rate_hz: int, onsets_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where each hit is heard against where it was asked for: float64 [shape=(n,)], ms, positive = late, nan = cannot be told.

    Heard = first sample within 12 ms before .. 60 ms after that reaches 5 % of the peak in that stretch (to the next onset at most): the
    definition of a one-shot's onset. A hit cannot be told when another lies within 30 ms, or when it rings 24 to 6 ms before louder
    than half of those 5 %: a ring that beats reaches them together with the stroke's own quiet beginning (0.8 took a snare for 3.4 ms
    early, 1 of 427 hits). `synth.measure_onset_errors` looks for the steepest slope instead, which the chick of a pedal reaches 20 ms late.
    """
    level = np.abs(samples)
    order = np.argsort(onsets_us, kind="stable")
    times = onsets_us[order].astype(np.int64)
    errors = np.full(times.size, np.nan)
    window, near, quiet = (int(ms * rate_hz / 1000) for ms in (ERROR_WINDOW_MS, 60.0, 24.0))
    groups = np.flatnonzero(np.diff(times, prepend=-(10**9)) > 0)
    for g, first in enumerate(groups.tolist()):
        last = int(groups[g + 1]) if g + 1 < groups.size else times.size
        before_us = times[first] - times[first - 1] if first else 10**9
        after_us = times[last] - times[first] if last < times.size else 10**9
        if min(before_us, after_us) < 30_000:
            continue
        place = int((times[first] * rate_hz + 500_000) // 1_000_000)
        begin, end = max(0, place - window), min(place + near, place + int(after_us * rate_hz // 1_000_000) - window)
        stretch = level[begin:end]
        threshold = 0.05 * float(stretch.max(initial=0.0))
        floor = float(level[max(0, begin - quiet + window) : begin + window // 2].max(initial=0.0))
        if threshold > 0 and floor < RING_LIMIT * threshold:
            errors[first:last] = (begin + int(np.argmax(stretch >= threshold)) - place) * 1000 / rate_hz
    unsorted = np.empty_like(errors)
    unsorted[order] = errors
    return unsorted
