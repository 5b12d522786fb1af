"""Sounds that are no drums: the accompaniment a model has to ignore, and the strangers of the open-set check.

Belongs here: single sounds of five families (ruling 27) and beds made of them. Does not belong here: drums (`synth`), files (`demo`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.errors import InputError
from beatsight_assets.units import Seconds, rng_for

F64 = NDArray[np.float64]

CLIP_S = 0.8  # length of a single sound
PEAK = 0.7  # of a single sound, linear
MIN_GAP_S, MAX_GAP_S = 0.15, 0.7  # between two sounds of a bed
VOWELS_HZ = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))  # Peterson and Barney 1952, men


def make(family: str, seed: int, name: str, rate_hz: int = 44_100) -> NDArray[np.float32]:
    """One sound of `FAMILIES`: float32 [shape=(CLIP_S * rate_hz,)], mono, peak 0.7, starting after at most 60 ms of silence.

    Raises
    ------
    InputError `unknown-choice` : no such family
    """
    if family not in _MAKERS:
        raise InputError(f"family is {family!r}; it must be one of {', '.join(FAMILIES)}", code="unknown-choice")
    rng = rng_for(seed, "distractor", family, name)
    sound = np.zeros(int(CLIP_S * rate_hz))
    start = int(rng.uniform(0.0, 0.06) * rate_hz)
    sound[start:] = _MAKERS[family](rng, np.arange(sound.size - start) / rate_hz, rate_hz)
    fade = int(0.02 * rate_hz)
    sound[-fade:] *= np.linspace(1, 0, fade)
    return (sound * (PEAK / np.max(np.abs(sound)))).astype(np.float32)


def make_bed(seed: int, name: str, duration_s: Seconds, rate_hz: int = 44_100, *, peak: float = 0.25) -> NDArray[np.float32]:
    """Accompaniment: single sounds of all families one after another and over each other; float32 [shape=(duration_s * rate_hz,)]."""
    rng = rng_for(seed, "bed", name)
    bed = np.zeros(int(duration_s * rate_hz), np.float32)
    at, i = float(rng.uniform(0, MAX_GAP_S)), 0
    while at < duration_s:
        family = FAMILIES[int(rng.integers(len(FAMILIES)))]
        sound = make(family, seed, f"{name}/{i}", rate_hz) * np.float32(10 ** (-float(rng.uniform(0, 15)) / 20))
        place = int(at * rate_hz)
        length = min(sound.size, bed.size - place)
        bed[place : place + length] += sound[:length]
        at, i = at + float(rng.uniform(MIN_GAP_S, MAX_GAP_S)), i + 1
    return bed * np.float32(peak / (np.max(np.abs(bed)) + 1e-9))


def _swell(rng: np.random.Generator, t: F64, attack_s: Seconds) -> F64:
    """Attack, hold, release, as played or sung notes have."""
    length = rng.uniform(0.2, 0.7)
    return np.minimum(1.0, t / attack_s) * np.clip((length - t) / 0.05 + 1, 0, 1)


def _band(rng: np.random.Generator, n: int, rate_hz: int, low_hz: float, high_hz: float) -> F64:
    """Noise between two frequencies, steep."""
    freqs = np.fft.rfftfreq(n, 1 / rate_hz)
    spectrum = np.fft.rfft(rng.standard_normal(n)) / np.sqrt(1 + (low_hz / (freqs + 1)) ** 8 + (freqs / high_hz) ** 8)
    return np.asarray(np.fft.irfft(spectrum, n))


def _click(rng: np.random.Generator, t: F64, rate_hz: int) -> F64:
    """Metronome beeps, vinyl pops and switch clicks, one to five of them at even distance."""
    out = np.zeros(t.size)
    hz, tau, gap = rng.uniform(900, 4000), rng.uniform(0.0004, 0.004), rng.uniform(0.06, 0.2)
    for i in range(int(rng.integers(1, 6))):
        since = t - i * gap
        out += np.where(since >= 0, np.sin(2 * np.pi * hz * since) * np.exp(-np.maximum(since, 0) / tau), 0.0)
    return out


def _tone(rng: np.random.Generator, t: F64, rate_hz: int) -> F64:
    """A chord of one to four harmonic notes, as of organ, strings or synth."""
    out = np.zeros(t.size)
    root = rng.uniform(110, 660)
    for step in rng.choice((0, 3, 4, 7, 10, 12, 16), int(rng.integers(1, 5)), replace=False):
        hz = root * 2 ** (step / 12) * (1 + 0.004 * np.sin(2 * np.pi * rng.uniform(4, 6) * t[0]))
        for k in range(1, int(rng.integers(3, 12))):
            out += np.sin(2 * np.pi * hz * k * t + rng.uniform(0, 6.28)) / k ** rng.uniform(1.0, 2.0)
    return out * _swell(rng, t, rng.uniform(0.01, 0.15))


def _bass(rng: np.random.Generator, t: F64, rate_hz: int) -> F64:
    """A plucked bass note: harmonics that die the faster the higher they are."""
    hz, decay = rng.uniform(41, 130), rng.uniform(0.3, 0.9)
    return sum(
        (np.sin(2 * np.pi * hz * k * t) * np.exp(-t * k**0.6 / decay) / k**1.1 for k in range(1, 14)), start=np.zeros(t.size)
    ) * np.minimum(1.0, t / 0.006)


def _voice(rng: np.random.Generator, t: F64, rate_hz: int) -> F64:
    """A sung vowel: pulses through three formants, with vibrato and breath."""
    hz = rng.uniform(95, 330)
    phase = 2 * np.pi * hz * (t + 0.004 * rng.uniform(0.3, 1.5) / (2 * np.pi * 5.5) * np.sin(2 * np.pi * 5.5 * t) * 5)
    formants = np.array(VOWELS_HZ[int(rng.integers(len(VOWELS_HZ)))]) * rng.uniform(0.9, 1.2)
    out = 0.02 * _band(rng, t.size, rate_hz, 1500, 5000)
    for k in range(1, int(6000 / hz)):
        gain = np.sum(np.array((1.0, 0.5, 0.25)) / (1 + ((k * hz - formants) / 90) ** 2))
        out += gain * np.sin(k * phase)
    return out * _swell(rng, t, rng.uniform(0.03, 0.12))


def _noise(rng: np.random.Generator, t: F64, rate_hz: int) -> F64:
    """Bursts that swell like surf, breath or steam; slow to start, unlike any drum."""
    low = rng.uniform(100, 4000)
    return _band(rng, t.size, rate_hz, low, low * rng.uniform(1.5, 4)) * _swell(rng, t, rng.uniform(0.1, 0.3))


_MAKERS: dict[str, Callable[[np.random.Generator, F64, int], F64]] = {
    "click": _click,
    "tone": _tone,
    "bass": _bass,
    "voice": _voice,
    "noise": _noise,
}
FAMILIES = tuple(_MAKERS)
