"""A drum kit made of numbers: all 23 components as sums of decaying modes and shaped noise, then a room and a bus.

Belongs here: kits drawn from a seed, one-shots, and the renderer that puts them on a time line.
Does not belong here: what is played (`grooves`), other sounds (`distractors`), files (`demo`).

A struck body is a sum of exponentially decaying partials. Heads have few (ratios of a circular membrane), a pitch glide and a
stick click; cymbals have hundreds, spread evenly in Hz, dying faster the higher they are; wires, claps and shakers are noise.
Kits differ in all of it, components keep their order (high tom above middle tom; crash2 lower, darker, longer than crash).
Sums are float64, so that rounding to 16 bit gives equal bytes whatever the number of BLAS threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from beatsight_assets.units import Decibels, Milliseconds, Seconds, rng_for

RATE_HZ = 44_100  # of everything that the platform renders

F64 = NDArray[np.float64]

HATS = ("hihat_closed", "hihat_open", "hihat_pedal", "hihat_foot_splash")
OPENNESS_UNKNOWN = {"hihat_closed": 0.05, "hihat_open": 0.75}  # what a hat sounds like when nobody said how open it is
PEAK_DBFS = -1.0  # loudest a rendered sample gets
PEAK_SPREAD_DB = 4.0  # takes peak between -5 and -1 dBFS, so that level says nothing about the take
N_LAYERS = 4  # brightness layers of velocity; loudness itself is continuous
N_VARIATIONS = 3  # different strokes per layer, like round robins of a sampler
OPENNESS_STEPS = 5  # layers of the hat between closed (0) and open (5)
CHOKE_S = 0.012  # a ringing hat dies within 12 ms of the pedal closing
RESTRIKE_S = 0.06  # a piece struck again loses its old ring within 60 ms: the stick damps it
SILENCE_TAUS = 6.9  # one-shots end at -60 dB
SHOT_MAX_S = 1.3  # longest one-shot
MEMBRANE = (1.0, 1.593, 2.136, 2.653, 3.155)  # circular membrane: zeros of Bessel functions over the first one
STRIKE_GAIN, STRIKE_S = 3.0, 0.02  # a struck plate starts 12 dB above its ring
BLOCK = 256  # samples per block of a modal sum, which makes it a matrix product
CONVOLUTION_BLOCK = 1 << 15


@dataclass(frozen=True)
class Drum:
    """A head, a rim or a block of wood: partials, pitch glide, stick click, wires."""

    f0_hz: float
    ratios: tuple[float, ...]
    gains: tuple[float, ...]
    decay_s: Seconds  # of the first partial; partial k dies faster by ratio^0.7
    glide: float  # first pitch over last pitch, minus one
    glide_s: Seconds
    click: float  # linear, against a body of 1
    click_hz: tuple[float, float]
    click_s: Seconds
    wires: float = 0.0
    wires_hz: tuple[float, float] = (2000.0, 9000.0)
    wires_s: Seconds = 0.1
    bursts_s: tuple[Seconds, ...] = (0.0,)  # starts of the noise bursts; a clap has several
    soft_s: Seconds = 0.0005  # attack of body and wires


@dataclass(frozen=True)
class Plate:
    """A cymbal or a bell: modes with their own gain and decay, a stick click, bloom and roughness."""

    freqs_hz: F64
    gains: F64
    decays_s: F64
    click: float
    click_hz: tuple[float, float]
    click_s: Seconds
    bloom_s: Seconds = 0.0  # time in which modes above 2 kHz build up
    soft_s: Seconds = 0.0  # attack; only what no stick hits is soft
    rough: float = 0.0  # depth of beating, 0..1
    rough_hz: float = 40.0


@dataclass(frozen=True)
class Bus:
    """What the sum of all hits goes through: EQ, room, drive, compressor, hiss."""

    low_db: Decibels  # shelf below 120 Hz
    mid_db: Decibels  # bell at mid_hz
    mid_hz: float
    tilt_db: Decibels  # at 16 kHz, falling from 1 kHz; 0..-10, real drum stems are far darker than close mics
    room: float  # reverberant energy over direct energy
    room_s: Seconds  # time to -60 dB
    predelay_s: Seconds
    drive: float
    ratio: float
    release_s: Seconds
    hiss: float  # rms against full scale


@dataclass
class Kit:
    """A kit: its pieces, its bus, and the one-shots made so far (each is made when first needed)."""

    kit_id: str
    seed: int
    drums: dict[str, Drum]
    plates: dict[str, Plate]
    hat_closed_s: Seconds
    hat_open_s: Seconds
    levels: dict[str, float]
    dynamics_db: Decibels  # how much quieter velocity 0 is than velocity 1
    brightness: float  # exponent of frequency per unit of velocity
    bus: Bus
    shots: dict[tuple[str, int, int, int, int], F64] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_seed(kit_id: str, seed: int, *, wide: bool = False) -> Kit:
        """Draw a kit; equal arguments give equal kits, different ones differ in every piece.

        `wide` draws rooms, dark tilts, dynamics and balances as different as on records: for many kits that are to prepare for real
        audio (design/model_plan.md, levers). Eight kits of the demo learn more from the narrow ones.
        """
        plates, hat_closed_s, hat_open_s = _draw_plates(_Draw(seed, kit_id, "plates"))
        draw = _Draw(seed, kit_id, "levels")
        return Kit(
            kit_id=kit_id,
            seed=seed,
            drums=_draw_drums(_Draw(seed, kit_id, "drums")),
            plates=plates,
            hat_closed_s=hat_closed_s,
            hat_open_s=hat_open_s,
            levels={name: 10 ** (db / 20) * (draw.db(-8, 4) if wide else draw.db(-2, 2)) for name, db in LEVELS_DB.items()},
            dynamics_db=draw.flat(16, 32) if wide else draw.flat(11, 17),
            brightness=draw.flat(0.4, 0.9),
            bus=_draw_bus(_Draw(seed, kit_id, "bus"), wide),
        )


LEVELS_DB = {  # peak level of velocity 1 in a balanced mix
    "kick": 0, "snare": -1, "rimshot": 0, "cross_stick": 0, "hihat_closed": -1, "hihat_open": -1, "hihat_pedal": 0,
    "hihat_foot_splash": -2, "ride_bow": -2, "ride_bell": 0, "ride_edge": -2, "crash": 0, "crash2": 0, "splash": 0,
    "china": 0, "tom_high": -2, "tom_mid": -2, "tom_low": -1, "cowbell": -3, "tambourine": -9, "clap": -4, "shaker": -12,
    "aux_percussion": -5,
}  # fmt: skip
COMPONENTS = tuple(LEVELS_DB)


@dataclass(frozen=True)
class Performance:
    """What `render` needs to know of a take: n hits in microseconds, components, velocity 0..1, openness 0..1 or nan."""

    take_id: str
    onsets_us: NDArray[np.int64]
    labels: Sequence[str]
    velocities: NDArray[np.float32]
    openness: NDArray[np.float32]


class _Draw:
    """Draws from one keyed generator."""

    def __init__(self, seed: int, kit_id: str, what: str) -> None:
        self.rng = rng_for(seed, "kit", kit_id, what)

    def flat(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def log(self, low: float, high: float) -> float:
        return math.exp(self.flat(math.log(low), math.log(high)))

    def db(self, low: float, high: float) -> float:
        return 10 ** (self.flat(low, high) / 20)

    def membrane(self, spread: float, fall_db: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Partials of a head: ratios off by up to `spread`, each about `fall_db` below the one before."""
        ratios = tuple(r if r == 1.0 else r * self.flat(1 - spread, 1 + spread) for r in MEMBRANE)
        return ratios, tuple(self.db(-fall_db * i - 3, -fall_db * i + 3) if i else 1.0 for i in range(len(ratios)))


def _draw_drums(draw: _Draw) -> dict[str, Drum]:
    """Kick, snare with its three strokes, three toms, and the aux pieces that are no plates."""
    ratios, gains = draw.membrane(0.06, 9)
    drums = {
        "kick": Drum(
            f0_hz=draw.log(44, 60), ratios=ratios, gains=gains, decay_s=draw.log(0.05, 0.22), glide=draw.flat(1.0, 2.5),
            glide_s=draw.log(0.008, 0.03), click=draw.db(-13, -4), click_hz=(draw.log(1000, 2200), draw.log(4000, 9000)),
            click_s=draw.log(0.002, 0.006),
        )
    }  # fmt: skip
    ratios, gains = draw.membrane(0.08, 5)
    stick_hz = (draw.log(1500, 3000), draw.log(7000, 14000))
    snare = Drum(
        f0_hz=draw.log(155, 265), ratios=ratios, gains=gains, decay_s=draw.log(0.035, 0.11), glide=draw.flat(0.05, 0.25),
        glide_s=0.012, click=draw.db(-8, 0), click_hz=stick_hz, click_s=draw.log(0.002, 0.005), wires=draw.db(-9, 1),
        wires_hz=(draw.log(1200, 3000), draw.log(6000, 12000)), wires_s=draw.log(0.04, 0.13),
    )  # fmt: skip
    drums["snare"] = snare
    ring = draw.log(550, 690) / snare.f0_hz  # the rim rings metallic between 0.5 and 4 kHz
    drums["rimshot"] = replace(
        snare,
        f0_hz=snare.f0_hz * draw.flat(1.01, 1.06),
        ratios=(*ratios[:3], *(ring * r * draw.flat(0.95, 1.05) for r in (1.0, 1.72, 2.61, 3.9, 5.6))),
        gains=(*gains[:3], draw.db(0, 4), draw.db(0, 4), draw.db(-3, 2), draw.db(-5, 0), draw.db(-8, -3)),
        decay_s=draw.log(0.13, 0.24),
        click=snare.click * 1.6,
        wires=snare.wires * 0.8,
    )
    wood = draw.log(425, 525)
    drums["cross_stick"] = Drum(
        f0_hz=wood, ratios=(1.0, draw.flat(2.15, 2.5), draw.flat(3.6, 4.2), draw.flat(5.6, 6.6)),
        gains=(draw.db(-6, 0), 1.0, draw.db(-7, -2), draw.db(-12, -6)), decay_s=draw.log(0.035, 0.055), glide=0.0, glide_s=0.01,
        click=draw.db(-10, -3), click_hz=(1500, 6000), click_s=0.002, wires=draw.db(-30, -22), wires_hz=snare.wires_hz, wires_s=0.03,
    )  # fmt: skip
    ratios, gains = draw.membrane(0.07, 8)
    head = draw.flat(0.94, 1.06)  # one tuning habit for the whole set
    decay, glide, click = draw.log(0.08, 0.17), draw.flat(0.08, 0.3), draw.db(-14, -5)
    for name, low, high, longer in (("tom_high", 195, 235, 0.7), ("tom_mid", 126, 148, 1.0), ("tom_low", 78, 92, 1.4)):
        drums[name] = Drum(
            f0_hz=draw.log(low, high) * head, ratios=ratios, gains=gains, decay_s=decay * longer, glide=glide * draw.flat(0.8, 1.2),
            glide_s=draw.log(0.02, 0.06), click=click, click_hz=(1200, draw.log(4000, 8000)), click_s=0.003,
        )  # fmt: skip
    palm = (draw.log(700, 1000), draw.log(1600, 2600))
    gaps = np.cumsum(draw.rng.uniform(0.008, 0.013, 3))
    drums["clap"] = Drum(
        f0_hz=1000.0, ratios=(1.0,), gains=(0.05,), decay_s=0.01, glide=0.0, glide_s=0.01, click=draw.db(-6, 0), click_hz=palm,
        click_s=0.004, wires=1.0, wires_hz=palm, wires_s=draw.log(0.03, 0.08), bursts_s=(0.0, *(float(g) for g in gaps)),
    )  # fmt: skip
    drums["shaker"] = Drum(
        f0_hz=6000.0, ratios=(1.0,), gains=(0.02,), decay_s=0.005, glide=0.0, glide_s=0.01, click=draw.db(-14, -8), click_hz=(4000, 9000),
        click_s=0.003, wires=1.0, wires_hz=(draw.log(3500, 5500), draw.log(8000, 11000)), wires_s=draw.log(0.015, 0.035), soft_s=0.002,
    )  # fmt: skip
    drums["aux_percussion"] = Drum(
        f0_hz=draw.log(260, 900), ratios=(1.0, draw.flat(1.5, 2.6), draw.flat(2.8, 4.2)), gains=(1.0, draw.db(-12, -3), draw.db(-18, -8)),
        decay_s=draw.log(0.03, 0.1), glide=draw.flat(0.0, 0.08), glide_s=0.02, click=draw.db(-18, -8), click_hz=(1500, 5000), click_s=0.002,
    )  # fmt: skip
    return drums


def _modes(
    draw: _Draw, n: int, low: float, high: float, centre: float, octaves: float, decay_s: Seconds, slope: float
) -> tuple[F64, F64, F64]:
    """Frequencies, gains and decays of a plate: n modes spread over low..high Hz, loudest at `centre`, decay `decay_s` at 1 kHz."""
    steps = (np.arange(n) + draw.rng.uniform(0, 1, n)) / n
    freqs = low + (high - low) * steps**1.25
    gains = np.exp2(-((np.log2(freqs / centre) / octaves) ** 2)) * draw.rng.rayleigh(0.8, n)
    decays = decay_s * (freqs / 1000) ** -slope * draw.rng.lognormal(0, 0.2, n)
    return freqs, gains, decays


def _join(*parts: tuple[F64, F64, F64]) -> tuple[F64, F64, F64]:
    freqs, gains, decays = (np.concatenate(column) for column in zip(*parts, strict=True))
    return freqs, gains, decays


def _tones(draw: _Draw, f0_hz: float, ratios: Sequence[float], gain: float, fall_db: float, decay_s: Seconds) -> tuple[F64, F64, F64]:
    """Clear partials on top of a wash."""
    ratio = np.array([r * draw.flat(0.985, 1.015) for r in ratios])
    gains = np.array([gain * draw.db(-fall_db * i - 2, -fall_db * i + 2) for i in range(len(ratio))])
    return f0_hz * ratio, gains, decay_s / ratio**0.5


def _draw_plates(draw: _Draw) -> tuple[dict[str, Plate], Seconds, Seconds]:
    """Cymbals, hats, cowbell, tambourine; and the decay of the hat at 1 kHz, closed and open."""
    size = draw.log(0.9, 1.12)  # the drummer's taste: larger than 1 is smaller, higher cymbals
    ring = draw.log(0.8, 1.25)
    plates: dict[str, Plate] = {}

    low, centre, width = draw.log(320, 480) * size, draw.log(6600, 8800), draw.flat(1.2, 1.6)
    closed_s, open_s = draw.log(0.02, 0.034), draw.log(0.15, 0.24) * ring
    click, click_hz = draw.db(-12, -4), (draw.log(3000, 5000), draw.log(9000, 15000))
    hat = Plate(*_modes(draw, 260, low, 16500, centre, width, 1.0, 0.12), click, click_hz, draw.log(0.0015, 0.004))
    plates["hihat_closed"] = plates["hihat_open"] = hat
    chup = _tones(draw, draw.log(420, 520), (1.0, 1.37, 1.9), draw.flat(8, 12), 3, 0.035)
    pedal = _join(_modes(draw, 200, low, 12000, draw.log(3200, 4200), 1.2, draw.log(0.03, 0.045), 0.1), chup)
    plates["hihat_pedal"] = Plate(*pedal, 0.0, click_hz, 0.001, soft_s=draw.flat(0.001, 0.002))
    splash = _join(_modes(draw, 240, low, 14500, draw.log(3400, 5200), 1.8, draw.log(0.08, 0.13) * ring, 0.2), chup)
    plates["hihat_foot_splash"] = Plate(
        *splash, 0.0, click_hz, 0.001, bloom_s=draw.flat(0.012, 0.03), soft_s=0.0012, rough=draw.flat(0.4, 0.7), rough_hz=draw.flat(24, 42)
    )

    ride_hz = draw.log(300, 430) * size
    wash = _modes(draw, 280, ride_hz * 0.8, 15000, draw.log(3200, 5200), 1.9, draw.log(0.18, 0.28) * ring, 0.45)
    ping = _modes(draw, 20, 2600, 5600, 3900, 1.0, 1.0, 0.0)
    ping = (ping[0], ping[1] * draw.flat(6, 9), np.full(20, draw.log(0.04, 0.07)))
    stick_hz = (draw.log(2500, 4000), draw.log(9000, 14000))
    plates["ride_bow"] = Plate(*_join((wash[0], wash[1] * draw.db(-4, 2), wash[2]), ping), draw.db(-6, 0), stick_hz, 0.003)
    bell = _tones(draw, draw.log(910, 1020), (1.0, 1.49, 2.03, 2.71, 3.42, 4.3), draw.flat(22, 30), 1.5, draw.log(0.2, 0.35) * ring)
    plates["ride_bell"] = Plate(
        *_join((wash[0], wash[1] * 0.4, wash[2]), (ping[0], ping[1] * 0.3, ping[2]), bell), draw.db(-14, -8), stick_hz, 0.002
    )
    edge = _modes(draw, 280, ride_hz * 0.6, 12500, draw.log(2200, 3200), 1.5, draw.log(0.26, 0.4) * ring, 0.35)
    hum = _tones(draw, ride_hz * 1.1, (1.0, 1.43, 2.1), draw.flat(3, 5), 3, 0.35)
    plates["ride_edge"] = Plate(
        *_join(edge, hum, (ping[0], ping[1] * 0.7, ping[2])), draw.db(-18, -12), stick_hz, 0.003, bloom_s=draw.flat(0.008, 0.02)
    )

    crash = _modes(draw, 340, draw.log(340, 460) * size, 16500, draw.log(3200, 4400) * size, 1.7, draw.log(0.22, 0.32) * ring, 0.35)
    plates["crash"] = Plate(*crash, draw.db(-14, -6), stick_hz, 0.003, bloom_s=draw.flat(0.002, 0.006))
    large = _modes(draw, 340, draw.log(140, 190) * size, 13000, draw.log(1100, 1600) * size, 1.5, draw.log(0.32, 0.48) * ring, 0.4)
    gong = _tones(draw, draw.log(120, 170) * size, (1.0, 1.31, 1.77, 2.2), draw.flat(2.5, 4.5), 2, 0.5)
    plates["crash2"] = Plate(*_join(large, gong), draw.db(-10, -4), stick_hz, 0.003, bloom_s=draw.flat(0.008, 0.016))
    small = _modes(draw, 220, draw.log(900, 1400) * size, 17500, draw.log(4600, 6200) * size, 1.2, draw.log(0.1, 0.15) * ring, 0.25)
    chime = _tones(draw, draw.log(1150, 1500) * size, (1.0, 1.34, 1.83, 2.4), draw.flat(6, 9), 1.5, 0.14)
    plates["splash"] = Plate(*_join(small, chime), draw.db(-14, -6), stick_hz, 0.002)
    trash = _modes(draw, 280, draw.log(260, 360) * size, 12000, draw.log(1900, 2600) * size, 0.8, draw.log(0.15, 0.22) * ring, 0.2)
    growl = _tones(draw, draw.log(260, 380) * size, (1.0, 1.09, 1.52, 1.63, 2.3), draw.flat(6, 9), 1.5, 0.22)
    plates["china"] = Plate(*_join(trash, growl), draw.db(-16, -8), stick_hz, 0.003, rough=draw.flat(0.6, 0.85), rough_hz=draw.flat(45, 85))

    cow = draw.log(535, 590)
    plates["cowbell"] = Plate(*_tones(draw, cow, (1.0, 1.48, 2.4, 3.3, 4.5), 1.0, 4, draw.log(0.1, 0.18)), draw.db(-6, 0), stick_hz, 0.003)
    jingle = _modes(draw, 60, 4200, 15000, draw.log(7000, 10000), 0.9, draw.log(0.12, 0.25), 0.5)
    plates["tambourine"] = Plate(*jingle, 0.5, (5000, 12000), 0.004, rough=0.8, rough_hz=draw.flat(25, 45))
    return plates, closed_s, open_s


def _draw_bus(draw: _Draw, wide: bool) -> Bus:
    if wide:  # dark tilt 0..-17 dB at the top, rooms, compression and drive: the levers that helped on real audio
        return Bus(
            low_db=draw.flat(-6, 6),
            mid_db=draw.flat(-6, 6),
            mid_hz=draw.log(200, 4000),
            tilt_db=draw.flat(-17, 0),
            room=draw.db(-30, -8),
            room_s=draw.log(0.15, 1.0),
            predelay_s=draw.flat(0.002, 0.02),
            drive=draw.log(0.2, 3.0),
            ratio=draw.flat(1.0, 4.0),
            release_s=draw.log(0.06, 0.25),
            hiss=draw.db(-88, -54),
        )
    return Bus(
        low_db=draw.flat(-3, 3),
        mid_db=draw.flat(-3, 3),
        mid_hz=draw.log(300, 3000),
        tilt_db=draw.flat(-10, 0),
        room=draw.db(-36, -17) if draw.flat(0, 1) < 0.8 else 0.0,
        room_s=draw.log(0.15, 0.7),
        predelay_s=draw.flat(0.002, 0.012),
        drive=draw.log(0.2, 1.2),
        ratio=draw.flat(1.0, 2.2),
        release_s=draw.log(0.06, 0.25),
        hiss=draw.db(-88, -66),
    )


def _noise(rng: np.random.Generator, n: int, rate_hz: int, band_hz: tuple[float, float]) -> F64:
    """White noise through slopes of 12 dB per octave outside `band_hz`, rms 1."""
    size = 1 << max(4, (n - 1).bit_length())
    freqs = np.fft.rfftfreq(size, 1 / rate_hz) + 1e-3
    shape = 1 / np.sqrt((1 + (band_hz[0] / freqs) ** 4) * (1 + (freqs / band_hz[1]) ** 4))
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * shape, size)[:n]
    return noise / (np.sqrt(np.mean(noise**2)) + 1e-12)


def _decaying(n: int, rate_hz: int, tau_s: Seconds, soft_s: Seconds = 0.0) -> F64:
    t = np.arange(n) / rate_hz
    envelope = np.exp(-t / tau_s)
    return envelope * (1 - np.exp(-(t + 1 / rate_hz) / soft_s)) if soft_s > 0 else envelope


def _modal_sum(freqs_hz: F64, amplitudes: NDArray[np.complex128], taus_s: F64, n: int, rate_hz: int) -> F64:
    """Sum of decaying partials, `Re(sum a_k exp(s_k t))`, as matrix products of block starts and places in a block.

    The products are cut to 8 rows, small enough for BLAS to stay on one thread: worker processes that start BLAS threads
    on the same cores made the demo eight times slower (41 s against 5 s).
    """
    s: NDArray[np.complex128] = (-1 / taus_s + 2j * np.pi * freqs_hz).astype(np.complex128)
    n_stacks = -(-n // (BLOCK * 8))
    starts = (_powers(s * (BLOCK / rate_hz), n_stacks * 8) * amplitudes[:, None]).T.reshape(n_stacks, 8, s.size)
    inside = _powers(s / rate_hz, BLOCK)
    return (starts.real @ inside.real - starts.imag @ inside.imag).reshape(-1)[:n]


def _powers(s: NDArray[np.complex128], n: int) -> NDArray[np.complex128]:
    """`exp(s_k j)` for j < n, shape (k, n), by doubling: twenty times faster than n calls of exp per mode."""
    out = np.ones((s.size, n), np.complex128)
    have = 1
    while have < n:
        take = min(have, n - have)
        out[:, have : have + take] = out[:, :take] * np.exp(s * have)[:, None]
        have += take
    return out


def _strike_drum(drum: Drum, layer: float, brightness: float, rng: np.random.Generator, rate_hz: int) -> F64:
    longest = max(drum.decay_s, drum.wires_s if drum.wires else 0.0, drum.click_s) * SILENCE_TAUS + max(drum.bursts_s)
    n = int(min(longest, SHOT_MAX_S) * rate_hz)
    t = np.arange(n) / rate_hz
    f0 = drum.f0_hz * rng.normal(1, 0.004)
    turns = f0 * (t + drum.glide * (0.5 + 0.5 * layer) * drum.glide_s * (1 - np.exp(-t / drum.glide_s)))
    shot = np.zeros(n)
    for ratio, gain in zip(drum.ratios, drum.gains, strict=True):
        strength = gain * ratio ** (brightness * (layer - 1)) * rng.normal(1, 0.12 if ratio != 1.0 else 0.03)
        tau = drum.decay_s / ratio**0.7 * rng.normal(1, 0.03)
        m = min(n, int(tau * 8 * rate_hz))
        shot[:m] += strength * np.sin(2 * np.pi * ratio * turns[:m] + 0.9) * _decaying(m, rate_hz, tau, drum.soft_s)
    hard = 10 ** (14 * brightness * (layer - 1) / 20)  # clicks grow faster with velocity than bodies do
    m = min(n, int(drum.click_s * 8 * rate_hz))
    shot[:m] += 0.5 * drum.click * hard * _noise(rng, m, rate_hz, drum.click_hz) * _decaying(m, rate_hz, drum.click_s)
    if drum.wires:
        top = drum.wires_hz[1] * (0.55 + 0.45 * layer)
        for i, start in enumerate(drum.bursts_s):
            last = i == len(drum.bursts_s) - 1
            begin = int(start * rate_hz)
            tau = drum.wires_s if last else 0.004
            m = min(n - begin, int(tau * 8 * rate_hz))
            noise = _noise(rng, m, rate_hz, (drum.wires_hz[0], top))
            shot[begin : begin + m] += 0.4 * drum.wires * (0.6 + 0.4 * layer) * noise * _decaying(m, rate_hz, tau, drum.soft_s)
    return shot


def _strike_plate(plate: Plate, layer: float, brightness: float, rng: np.random.Generator, rate_hz: int, decay_s: Seconds | None) -> F64:
    """One stroke; `decay_s` scales the decays of a hat, whose plate is drawn for a decay of 1 s."""
    keep = plate.freqs_hz < 0.46 * rate_hz
    freqs = plate.freqs_hz[keep] * rng.normal(1, 0.001)
    taus = plate.decays_s[keep] * (1.0 if decay_s is None else decay_s)
    gains = plate.gains[keep] * (freqs / 3000) ** (brightness * (layer - 1)) * rng.normal(1, 0.25, freqs.size)
    n = int(min(float(np.quantile(taus, 0.9)) * SILENCE_TAUS, SHOT_MAX_S) * rate_hz)
    amplitudes = gains * np.exp(2j * np.pi * rng.uniform(0, 1, freqs.size))
    shot = _modal_sum(freqs, amplitudes, taus, n, rate_hz)
    if plate.bloom_s > 0:
        upper = freqs > 2000
        m = min(n, int(plate.bloom_s * 8 * rate_hz))
        shot[:m] -= 0.85 * _modal_sum(freqs[upper], amplitudes[upper], 1 / (1 / taus[upper] + 1 / plate.bloom_s), m, rate_hz)
    t = np.arange(n) / rate_hz
    if plate.soft_s == 0:
        shot *= 1 + STRIKE_GAIN * np.exp(-t / STRIKE_S)
    if plate.rough > 0:
        wobble = 0.5 + 0.5 * np.cos(2 * np.pi * plate.rough_hz * t * rng.normal(1, 0.05) + rng.uniform(-0.6, 0.6))
        shot *= 1 - plate.rough * (1 - wobble**2) * np.exp(-t / 0.25)
    if plate.soft_s > 0:
        shot *= 1 - np.exp(-(t + 1 / rate_hz) / plate.soft_s)
    if plate.click > 0:
        m = min(n, int(plate.click_s * 8 * rate_hz))
        rms = float(np.sqrt(np.mean(shot[: int(0.01 * rate_hz)] ** 2)))
        hard = 10 ** (10 * brightness * (layer - 1) / 20)
        shot[:m] += plate.click * hard * rms * _noise(rng, m, rate_hz, plate.click_hz) * _decaying(m, rate_hz, plate.click_s)
    fade = n // 8
    shot[n - fade :] *= np.linspace(1, 0, fade)
    return shot


def _shot(kit: Kit, label: str, layer: int, open_step: int, variation: int, rate_hz: int) -> F64:
    """One-shot of a component, peak 1, from the kit's cache or made now."""
    key = (label, layer, open_step, variation, rate_hz)
    if key not in kit.shots:
        rng = rng_for(kit.seed, "shot", kit.kit_id, label, str(layer), str(open_step), str(variation))
        loud = (layer + 1) / N_LAYERS
        if label in kit.drums:
            shot = _strike_drum(kit.drums[label], loud, kit.brightness, rng, rate_hz)
        else:
            plate, decay_s = kit.plates[label], None
            if label in OPENNESS_UNKNOWN:
                share = open_step / OPENNESS_STEPS
                decay_s = kit.hat_closed_s * (kit.hat_open_s / kit.hat_closed_s) ** (share**0.8)
                plate = replace(plate, rough=0.5 * share * (1 - share) * 2, rough_hz=55.0, bloom_s=0.003 * share)
            shot = _strike_plate(plate, loud, kit.brightness, rng, rate_hz, decay_s)
        kit.shots[key] = shot / (np.max(np.abs(shot)) + 1e-12)
    return kit.shots[key]


def one_shot(kit: Kit, label: str, velocity: float, *, openness: float = math.nan, variation: int = 0, rate_hz: int = RATE_HZ) -> F64:
    """A single dry stroke without bus: float64 [shape=(n,)], onset at sample 0, peak = level of the velocity in this kit."""
    return _shot(kit, label, _layer(velocity), _open_step(label, openness), variation % N_VARIATIONS, rate_hz) * _gain(kit, label, velocity)


def _layer(velocity: float) -> int:
    return min(N_LAYERS - 1, max(0, int(velocity * N_LAYERS)))


def _open_step(label: str, openness: float) -> int:
    if label not in OPENNESS_UNKNOWN:
        return 0
    share = OPENNESS_UNKNOWN[label] if math.isnan(openness) else openness
    return round(min(1.0, max(0.0, share)) * OPENNESS_STEPS)


def _gain(kit: Kit, label: str, velocity: float) -> float:
    return kit.levels[label] * 10 ** (kit.dynamics_db * (min(1.0, max(0.0, velocity)) - 1) / 20)


def impulse(kit: Kit, rate_hz: int) -> F64:
    """EQ (minimum phase, so nothing sounds before the hit) and room of the kit as one impulse response."""
    bus, size = kit.bus, 2048
    freqs = np.fft.rfftfreq(size, 1 / rate_hz) + 1.0
    gain_db = bus.low_db / (1 + (freqs / 120) ** 2) + bus.mid_db * np.exp2(-((np.log2(freqs / bus.mid_hz) / 0.9) ** 2))
    gain_db += bus.tilt_db * np.clip(np.log2(freqs / 1000) / 4, 0, 1.1)
    cepstrum = np.fft.irfft(gain_db * (math.log(10) / 20), size)
    cepstrum[1 : size // 2] *= 2
    cepstrum[size // 2 + 1 :] = 0
    eq = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), size)[: size // 4]
    if bus.room == 0.0:
        return eq
    rng = rng_for(kit.seed, "kit", kit.kit_id, "room")
    n = int(min(bus.room_s, 0.6) * rate_hz)
    t = np.arange(n) / rate_hz
    tail = _noise(rng, n, rate_hz, (150, 5000)) * np.exp(-SILENCE_TAUS * t / bus.room_s) * (1 - np.exp(-t / 0.004))
    late = int(bus.predelay_s * rate_hz)
    room = np.zeros(late + n)
    room[0] = 1.0
    room[late:] += tail * bus.room / np.sqrt(np.sum(tail**2))
    return _convolve(room, eq)


def _convolve(signal: F64, impulse: F64) -> F64:
    """Full convolution by overlap-add; memory stays at one block whatever the length."""
    size = max(CONVOLUTION_BLOCK, 1 << (2 * impulse.size - 1).bit_length())
    step = size - impulse.size + 1
    spectrum = np.fft.rfft(impulse, size)
    out = np.zeros(signal.size + impulse.size - 1 + size)
    for start in range(0, signal.size, step):
        out[start : start + size] += np.fft.irfft(np.fft.rfft(signal[start : start + step], size) * spectrum, size)
    return out[: signal.size + impulse.size - 1]


def _compress(signal: F64, ratio: float, release_s: Seconds, rate_hz: int) -> F64:
    """Peak compressor above -18 dBFS with an attack of one 5 ms frame."""
    if ratio <= 1.05:
        return signal
    frame = int(0.005 * rate_hz)
    n = -(-signal.size // frame)
    peaks = np.abs(np.pad(signal, (0, n * frame - signal.size))).reshape(n, frame).max(axis=1)
    keep, held, envelope = math.exp(-0.005 / release_s), 0.0, np.empty(n)
    for i, peak in enumerate(peaks.tolist()):
        held = max(0.5 * (peak + held), held * keep)
        envelope[i] = held
    gain = np.minimum(1.0, (np.maximum(envelope, 1e-6) / 0.125) ** (1 / ratio - 1))
    return signal * np.interp(np.arange(signal.size), np.arange(n) * frame + frame / 2, gain)


def _stops(places: NDArray[np.int64], labels: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Hit index -> (sample, fade in s) where its ring is stopped: by the same piece struck again, an open hat by the foot or a closed stroke."""
    stops: dict[int, tuple[int, float]] = {}
    last: dict[str, int] = {}
    for i in np.argsort(places, kind="stable").tolist():
        label, place = labels[i], int(places[i])
        if label in last and places[last[label]] < place:
            stops[last[label]] = (place, RESTRIKE_S)
        if label in HATS and label != "hihat_open":
            for other in HATS:
                j = last.pop(other, None)
                if j is not None and places[j] < place:
                    stops[j] = (place, CHOKE_S)
        last[label] = i
    return stops


def render(
    kit: Kit,
    onsets_us: NDArray[np.int64],
    labels: Sequence[str],
    velocities: NDArray[np.float32],
    openness: NDArray[np.float32],
    *,
    rate_hz: int = RATE_HZ,
    seed: int,
    take_id: str,
    tail_s: Seconds = 1.5,
    accompaniment: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """A take played on a kit: float32 [shape=(n_samples,)], mono, peak between -5 and -1 dBFS, ending `tail_s` after the last hit.

    Parameters
    ----------
    onsets_us : int64 [shape=(n,)], microseconds, any order; a hit starts at `round(onset * rate)`, sample exact
    labels : components, n of them
    velocities : float32 [shape=(n,)], 0..1; drives level and brightness
    openness : float32 [shape=(n,)], 0 closed .. 1 open, nan = unknown; only hats look at it
    accompaniment : float32, mono, mixed behind the drums after the room (level relative to a drum peak of 1)

    Equal inputs give equal bytes. The small variation of each hit is keyed by (seed, take_id) and its index.
    """
    places = (onsets_us.astype(np.int64) * rate_hz + 500_000) // 1_000_000
    n = int(places.max(initial=0)) + int(tail_s * rate_hz)
    luck = rng_for(seed, "render", kit.kit_id, take_id).random((len(labels), 2))
    stops = _stops(places, labels)
    dry = np.zeros(n)
    for i, (place, label) in enumerate(zip(places.tolist(), labels, strict=True)):
        velocity = float(velocities[i])
        shot = _shot(kit, label, _layer(velocity), _open_step(label, float(openness[i])), int(luck[i, 0] * N_VARIATIONS), rate_hz)
        length = min(shot.size, n - place)
        gain = _gain(kit, label, velocity) * 10 ** ((luck[i, 1] - 0.5) * 1.4 / 20)
        stop, fade_s = stops.get(i, (n, 0.0))
        if stop < place + length:
            fade = min(int(fade_s * rate_hz), place + length - stop)
            kept = stop - place + fade
            piece = shot[:kept] * gain
            piece[kept - fade :] *= np.linspace(1, 0, fade)
            dry[place : place + kept] += piece
        else:
            dry[place : place + length] += shot[:length] * gain
    return master(dry, kit, rate_hz=rate_hz, seed=seed, take_id=take_id, accompaniment=accompaniment)


def master(
    dry: F64, kit: Kit, *, rate_hz: int = RATE_HZ, seed: int, take_id: str, accompaniment: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """The dry sum of a take through the kit's room and bus: float32 [shape=(n,)], peak between -5 and -1 dBFS, last 50 ms faded.

    Nothing sounds before it does in `dry`. `accompaniment` as in `render`.
    """
    n = dry.size
    wet = _convolve(dry, impulse(kit, rate_hz))[:n]
    wet /= np.max(np.abs(wet)) + 1e-12
    if accompaniment is not None:
        m = min(n, accompaniment.size)
        wet[:m] += accompaniment[:m]
        wet /= np.max(np.abs(wet))
    wet = _compress(np.tanh(kit.bus.drive * wet), kit.bus.ratio, kit.bus.release_s, rate_hz)
    rng = rng_for(seed, "hiss", kit.kit_id, take_id)
    wet = wet / (np.max(np.abs(wet)) + 1e-12) + kit.bus.hiss * rng.standard_normal(n)
    fade = min(n, int(0.05 * rate_hz))
    wet[n - fade :] *= np.linspace(1, 0, fade)
    peak = 10 ** ((PEAK_DBFS - PEAK_SPREAD_DB * rng.random()) / 20)
    return (wet * (peak / np.max(np.abs(wet)))).astype(np.float32)


def measure_onset_errors(audio: NDArray[np.float32], rate_hz: int, onsets_us: NDArray[np.int64], *, window_ms: Milliseconds = 12.0) -> F64:
    """Where each hit is heard against where it was asked for: float64 [shape=(n,)], ms, positive = late, nan = cannot be told.

    Heard = first sample within `window_ms` whose slope exceeds 20 % of the window's steepest.
    A hit cannot be told when another lies within 2 windows before or one window after it, or when that slope is not 1.6 times the steepest before.
    """
    slope = np.abs(np.diff(audio.astype(np.float64), prepend=0.0))
    order = np.argsort(onsets_us, kind="stable")
    times = onsets_us[order].astype(np.int64)
    window = int(window_ms * rate_hz / 1000)
    errors = np.full(times.size, np.nan)
    groups = np.flatnonzero(np.diff(times, prepend=-(10**9)) > 0)
    for g, first in enumerate(groups.tolist()):
        before_us = times[first] - times[groups[g - 1]] if g else 10**9
        after_us = times[groups[g + 1]] - times[first] if g + 1 < groups.size else 10**9
        if before_us < 2000 * window_ms or after_us < 1000 * window_ms:
            continue
        place = int((times[first] * rate_hz + 500_000) // 1_000_000)
        begin = max(0, place - window)
        near = slope[begin : place + window]
        floor = float(slope[max(0, begin - window) : begin].max(initial=0.0))
        level = 0.2 * float(near.max(initial=0.0))
        above = np.flatnonzero(near > level)
        if above.size and level > 1.6 * floor:
            last = groups[g + 1] if g + 1 < groups.size else times.size
            errors[first:last] = (begin + int(above[0]) - place) * 1000 / rate_hz
    unsorted = np.empty_like(errors)
    unsorted[order] = errors
    return unsorted
