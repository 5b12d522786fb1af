"""What is played in the demo: short takes of drumming in seven styles, written from a seed, humanised, within reach of two hands.

Belongs here: takes as hits in microseconds with tempo and meter maps, and the plan that spreads rare components over a split.
Does not belong here: sound (`synth`), MIDI bytes (`midi`), files (`demo`).

A take is a chain of sections of one to three seconds. Each section has a lead voice (what keeps time), a backbeat voice, accents,
ghost notes and perhaps a fill. Leads come from a shuffled deck per split, so every gate component leads somewhere in every split,
while kick, backbeat and hats go on around it as in real playing. Accents, fills and displaced strokes fall anywhere: position
alone does not give a component away.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from beatsight_assets.units import Seconds, rng_for

T = TypeVar("T")

FEET = frozenset({"kick", "hihat_pedal", "hihat_foot_splash"})
HATS = frozenset({"hihat_closed", "hihat_open", "hihat_pedal", "hihat_foot_splash"})
SNARES = frozenset({"snare", "rimshot", "cross_stick"})
TOMS = ("tom_high", "tom_mid", "tom_low")
CYMBALS = ("crash", "crash2", "splash", "china")

LEADS = (
    *("hihat_closed",) * 4, *("hihat_open",) * 2, *("ride_bow",) * 3, *("ride_bell",) * 2, "ride_edge", "ride_edge", "crash", "crash2",
    "china", "china", "splash", "splash", "hihat_pedal", "hihat_foot_splash", "hihat_foot_splash", "cowbell", "toms",
)  # fmt: skip
BACKBEATS = (*("snare",) * 5, *("rimshot",) * 3, *("cross_stick",) * 3)
NEEDED = tuple(dict.fromkeys((*LEADS[:-1], *TOMS, *BACKBEATS)))  # what a split must hold enough of
SPARE = 1.5  # planned over required hits: a section may yield fewer than it promised
ATTEMPTS = 25  # plans tried until every component has its hits; one costs 6 ms
SAME_DRUM_US = 22_000  # two strokes of one component are at least this far apart (a tight flam)
EXCLUSIVE_US = 30_000  # hats, or strokes on the snare, closer than this would contradict each other
TOGETHER_US = 15_000  # within this, two hands play at most two hits
HANDS = 2
CLOSED_CC4 = 90  # TD-11: pedal down; openness = 1 - cc4 / 90
MIN_VELOCITY = 10
GHOST = 0.3  # strokes softer than this are ghost notes


@dataclass(frozen=True)
class Style:
    """How a style moves: tempo range, subdivision of the lead in quarters, swing, densities, dynamics."""

    tempo_bpm: tuple[int, int]
    step: float
    swing: float  # share of a step by which every second one is late
    ghosts: float
    kicks: float  # chance of a kick on a free eighth (sixteenth when double)
    double_kick: bool
    loudness: float
    cowbell: float  # chance that a section has a cowbell beside its lead


STYLES = {
    "rock": Style((88, 138), 0.5, 0.0, 0.12, 0.35, False, 1.0, 0.05),
    "funk": Style((88, 112), 0.25, 0.06, 0.4, 0.3, False, 0.9, 0.25),
    "shuffle": Style((92, 128), 0.5, 0.33, 0.2, 0.25, False, 0.9, 0.1),
    "jazz": Style((112, 170), 0.5, 0.3, 0.25, 0.15, False, 0.8, 0.0),
    "metal": Style((118, 168), 0.5, 0.0, 0.0, 0.75, True, 1.08, 0.0),
    "latin": Style((92, 124), 0.25, 0.0, 0.15, 0.3, False, 0.9, 0.6),
    "tomgroove": Style((84, 130), 0.5, 0.0, 0.1, 0.3, False, 1.0, 0.3),
}


@dataclass(frozen=True)
class Hit:
    """One stroke: microseconds from the start, MIDI velocity 1..127, pedal position for hats (90 = closed)."""

    onset_us: int
    label: str
    velocity: int
    cc4: int | None = None


@dataclass(frozen=True)
class Take:
    """A performance: hits sorted by time, tempo map (us, us per quarter), meter map (us, numerator, denominator)."""

    take_id: str
    style: str
    tempo_bpm: int
    hits: tuple[Hit, ...]
    tempos: tuple[tuple[int, int], ...]
    meters: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Section:
    """What carries a section: lead voice, backbeat voice, cymbal on its first beat, fill at its end."""

    lead: str
    backbeat: str
    opener: str | None
    fill: bool
    linear: bool  # the kick, ghost notes and the pedal stay out of the way of the other voices


def make_split(split: str, take_ids: Sequence[str], styles: Sequence[str], *, seed: int, min_hits: int, n_sections: int) -> list[Take]:
    """Takes of one split, each of the 18 gate components at least `min_hits` times where the number of takes allows it.

    The second of every six takes has a 7/8 passage, the third goes from 120 to 180 beats per minute.
    """
    best: tuple[int, list[Take]] = (-1, [])
    for attempt in range(ATTEMPTS):
        takes = _deal_split(rng_for(seed, "plan", split, str(attempt)), take_ids, styles, seed, min_hits, n_sections)
        counts = Counter(hit.label for take in takes for hit in take.hits)
        best = max(best, (min(counts[name] for name in NEEDED), takes), key=lambda found: found[0])
        if best[0] >= min_hits:
            break
    return best[1]


def _deal_split(
    rng: np.random.Generator, take_ids: Sequence[str], styles: Sequence[str], seed: int, min_hits: int, n_sections: int
) -> list[Take]:
    """Take by take: what is behind its share of `min_hits` gets sections to lead, shuffled decks deal the rest."""
    leads, backbeats = _deck(LEADS, rng), _deck(BACKBEATS, rng)
    openers = _deck((*CYMBALS, *CYMBALS, None, None), rng)
    counts: Counter[str] = Counter()
    takes: list[Take] = []
    for i, (take_id, style) in enumerate(zip(take_ids, styles, strict=True)):
        due = min_hits * SPARE * (i + 1) / len(take_ids)
        short = sorted((counts[name] - due, name) for name in NEEDED if counts[name] < due)
        need_leads = [name for _, name in short if name not in SNARES][: n_sections - 2]
        need_backbeats = [name for _, name in short if name in SNARES] * 2
        voices = [*need_leads, *(next(leads) for _ in range(n_sections - len(need_leads)))]
        backs = [*need_backbeats, *(next(backbeats) for _ in range(n_sections))][:n_sections]
        sections = [
            Section(
                "toms" if voices[j] in TOMS else voices[j], backs[k], next(openers), bool(rng.random() < 0.55), bool(rng.random() < 0.4)
            )
            for j, k in zip(rng.permutation(n_sections), rng.permutation(n_sections), strict=True)
        ]
        takes.append(make_take(take_id, style, sections, seed=seed, odd_meter=i % 6 == 1, modulate=i % 6 == 2))
        counts.update(hit.label for hit in takes[-1].hits)
    return takes


def _deck(cards: Sequence[T], rng: np.random.Generator) -> Iterator[T]:
    while True:
        for i in rng.permutation(len(cards)):
            yield cards[i]


@dataclass
class _Score:
    """Strokes in quarters while a take is being written; lower rank wins when two cannot both be played."""

    rng: np.random.Generator
    loudness: float
    strokes: list[tuple[int, float, str, float, float]] = field(default_factory=list)  # rank, quarter, label, velocity, shift in s

    def add(self, rank: int, at: float, label: str, velocity: float, shift_s: Seconds = 0.0) -> None:
        self.strokes.append((rank, at, label, velocity * self.loudness * float(self.rng.lognormal(0, 0.1)), shift_s))

    def make_linear(self, start: float) -> None:
        """From `start` on, drop kicks, ghost notes and pedal strokes that fall on a stroke of the hands."""
        hands = {at for _, at, label, velocity, _ in self.strokes if label not in FEET and velocity > GHOST}
        self.strokes = [s for s in self.strokes if s[1] < start or s[1] not in hands or (s[2] not in FEET and s[3] > GHOST)]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, *items: str) -> str:
        return items[int(self.rng.integers(len(items)))]


def make_take(
    take_id: str,
    style: str,
    sections: Sequence[Section],
    *,
    seed: int,
    section_s: Seconds = 1.8,
    odd_meter: bool = False,
    modulate: bool = False,
) -> Take:
    """Write a take; equal arguments give equal takes.

    `odd_meter` puts a 7/8 passage between 4/4 ones; `modulate` plays the first half at 120 and the second at 180 beats per minute.
    """
    rng = rng_for(seed, "take", take_id)
    how = STYLES[style]
    tempo = 120 if modulate else int(rng.integers(*how.tempo_bpm, endpoint=True))
    score = _Score(rng, how.loudness)
    at, tempos, meters = 0.0, [(0.0, tempo)], [(0.0, 4, 4)]
    for i, section in enumerate(sections):
        seven = odd_meter and len(sections) // 3 <= i < 2 * len(sections) // 3
        meter = (7, 8) if seven else (4, 4)
        if meter != meters[-1][1:]:
            meters.append((at, *meter))
        if modulate and i == len(sections) // 2:
            tempos.append((at, 180))
        bar = meter[0] * 4 / meter[1]
        n_bars = max(1, round(section_s * tempos[-1][1] / 60 / bar))
        _write_section(score, how, section, at, bar, n_bars)
        at += n_bars * bar
    score.add(0, at, "kick", 0.9)
    last = score.pick(*CYMBALS)
    score.add(0, at, last, 0.9)
    if score.chance(0.4):
        score.add(0, at, "crash2" if last == "crash" else "crash", 0.9)
    clock = _Clock(tempos)
    return Take(
        take_id=take_id,
        style=style,
        tempo_bpm=tempo,
        hits=tuple(_play(score, clock, how)),
        tempos=tuple((clock.us(q), round(60e6 / bpm)) for q, bpm in tempos),
        meters=tuple((clock.us(q), n, d) for q, n, d in meters),
    )


def _write_section(score: _Score, how: Style, section: Section, start: float, bar: float, n_bars: int) -> None:
    end = start + bar * n_bars
    fill_from = end - (score.rng.choice((1.0, 1.5, 2.0)) if section.fill else 0.0)
    if section.opener is not None:
        score.add(0, start, section.opener, 0.88)
        score.add(0, start, "kick", 0.85)
        if score.chance(0.15):
            score.add(0, start, "crash2" if section.opener == "crash" else "crash", 0.85)
    _write_lead(score, how, section.lead, start, fill_from)
    _write_kick_and_backbeat(score, how, section.backbeat, start, fill_from)
    _write_colours(score, how, section, start, fill_from)
    if section.linear:
        score.make_linear(start)
    if section.fill:
        _write_fill(score, fill_from, end)


def _write_lead(score: _Score, how: Style, lead: str, start: float, end: float) -> None:
    step = (
        how.step
        if lead in ("hihat_closed", "ride_bow", "toms")
        else float(score.rng.choice((1.0,) if lead == "hihat_pedal" else (0.5, 0.5, 1.0)))
    )
    keep = float(score.rng.uniform(0.75, 1.0))
    tom = score.rng.permutation(3)
    bark = lead == "hihat_closed"
    offbeat = 0.5 if lead in FEET and score.chance(0.6) else 0.0
    at, i, opened = start + offbeat, 0, False
    while at < end - 1e-6:
        late = how.swing * step if i % 2 else 0.0
        strong = (at - start) % 1.0 < 1e-6
        velocity = 0.72 if strong else 0.52
        if lead == "toms":
            if score.chance(0.85):
                score.add(2, at + late, TOMS[tom[int(score.rng.integers(3))]], velocity + 0.1)
        elif opened:
            score.add(1, at, score.pick("hihat_closed", "hihat_pedal"), 0.6)
            opened = False
        elif bark and not strong and score.chance(0.14):
            score.add(1, at + late, "hihat_open", 0.75)
            opened = step <= 0.25
            if not opened:
                score.add(1, at + late + 0.25, score.pick("hihat_closed", "hihat_pedal"), 0.6)
        elif strong or score.chance(keep):
            label = lead
            if lead == "ride_bow" and score.chance(0.12):
                label = "ride_bell"
            elif lead in CYMBALS and score.chance(0.08):
                label = score.pick(*CYMBALS)
            score.add(2, at + late, label, velocity + (0.12 if lead in CYMBALS or lead == "ride_bell" else 0.0))
        at, i = at + step, i + 1


def _write_kick_and_backbeat(score: _Score, how: Style, backbeat: str, start: float, end: float) -> None:
    grid = 0.25 if how.double_kick else 0.5
    for i in range(round((end - start) / grid)):
        at = start + i * grid
        beat = at - start
        if beat % 2.0 == 1.0:
            moved = score.rng.choice((-0.5, -0.25, 0.25, 0.5)) if score.chance(0.1) else 0.0
            if score.chance(0.93) and start <= at + moved < end:
                _stroke(score, at + moved, backbeat, 0.82)
            if how.double_kick:
                score.add(3, at, "kick", 0.75)
        elif score.chance(0.8 if beat % 2.0 == 0.0 else how.kicks * 0.8):
            score.add(1, at + (how.swing * grid if i % 2 else 0.0), "kick", 0.8 if beat % 1.0 == 0.0 else 0.65)


def _stroke(score: _Score, at: float, label: str, velocity: float) -> None:
    """A main stroke, now and then with a flam or a drag."""
    score.add(1, at, label, velocity)
    if label == "cross_stick":
        return
    luck = score.rng.random()
    if luck < 0.05:
        score.add(1, at, label, 0.4 * velocity, -float(score.rng.uniform(0.026, 0.04)))
    elif luck < 0.08:
        gap = float(score.rng.uniform(0.045, 0.06))
        score.add(1, at, label, 0.4 * velocity, -gap)
        score.add(1, at, label, 0.35 * velocity, -2 * gap)


def _write_colours(score: _Score, how: Style, section: Section, start: float, end: float) -> None:
    """Ghost notes, feet, accents anywhere, a cowbell."""
    pedal = section.lead not in HATS and score.chance(0.5)
    pedal_beat = 0.5 if score.chance(0.4) else 1.0
    cowbell = score.chance(how.cowbell)
    for i in range(round((end - start) * 4)):
        at = start + i * 0.25
        if section.backbeat != "cross_stick" and score.chance(how.ghosts * 0.5):
            score.add(4, at, "snare", 0.22)
        if pedal and (at - start) % (2.0 * pedal_beat) == pedal_beat:
            score.add(3, at, "hihat_foot_splash" if score.chance(0.25) else "hihat_pedal", 0.6)
        if i % 2 == 0 and score.chance(0.035):
            score.add(1, at, score.pick(*CYMBALS, "ride_edge", "ride_bell", "splash"), 0.82)
            if score.chance(0.5):
                score.add(1, at, "kick", 0.8)
        if score.chance(0.012):
            score.add(1, at, score.pick("rimshot", "cross_stick", *TOMS), 0.75)
        if cowbell and i % 2 == 0 and score.chance(0.6):
            score.add(5, at, "cowbell", 0.65)


def _write_fill(score: _Score, start: float, end: float) -> None:
    """A run over snare, rim and toms in sixteenths, triplets or eighths, downwards more often than not."""
    step = float(score.rng.choice((0.25, 0.25, 1 / 3, 0.5)))
    voices = [score.pick("snare", "rimshot"), *TOMS] if score.chance(0.7) else [*TOMS[::-1], score.pick("snare", "rimshot")]
    place, n = 0, max(1, round((end - start) / step))
    for i in range(n):
        at = start + i * step
        place = min(3, max(0, round(4 * i / n + float(score.rng.normal(-0.4, 0.5)))))
        if score.chance(0.92):
            _stroke(score, at, voices[place], 0.62 + 0.3 * i / n)
        if i % 2 == 0 and score.chance(0.4):
            score.add(3, at, "kick", 0.7)


@dataclass(frozen=True)
class _Clock:
    """Quarters to microseconds over a tempo map."""

    tempos: Sequence[tuple[float, int]]

    def us(self, quarter: float) -> int:
        total = 0.0
        i = bisect_right([q for q, _ in self.tempos], quarter) - 1
        for (q0, bpm), (q1, _) in zip(self.tempos[:i], self.tempos[1 : i + 1], strict=True):
            total += (q1 - q0) * 60e6 / bpm
        q, bpm = self.tempos[max(0, i)]
        return round(total + (quarter - q) * 60e6 / bpm)


def _play(score: _Score, clock: _Clock, how: Style) -> Iterator[Hit]:
    """Strokes as hits: late or early by some milliseconds, without what two hands and two feet cannot play."""
    lead_in_us = 120_000  # room before the first stroke, so that nobody plays before zero
    taken: list[Hit] = []
    rng = score.rng
    for _, at, label, velocity, shift_s in sorted(score.strokes, key=lambda s: (s[0], s[1])):
        human_s = max(-0.012, min(0.012, float(rng.normal(0, 0.004))))
        us = lead_in_us + clock.us(max(0.0, at)) + round(1e6 * (shift_s + human_s))
        hit = Hit(us, label, max(MIN_VELOCITY, min(127, round(127 * velocity))), _pedal(label, rng))
        if us >= 0 and _playable(hit, taken):
            taken.append(hit)
    yield from sorted(taken, key=lambda h: (h.onset_us, h.label))


def _pedal(label: str, rng: np.random.Generator) -> int | None:
    """Pedal position of a hat stroke: closed ones are shut or nearly, open ones anywhere from 0.4 on."""
    if label == "hihat_closed":
        openness = float(rng.uniform(0.0, 0.2)) if rng.random() < 0.3 else 0.0
    elif label == "hihat_open":
        openness = float(rng.uniform(0.4, 1.0))
    elif label in HATS:
        openness = 0.0 if label == "hihat_pedal" else 0.3
    else:
        return None
    return round(CLOSED_CC4 * (1 - openness))


def _playable(hit: Hit, taken: Sequence[Hit]) -> bool:
    hands = 0
    for other in taken:
        gap = abs(other.onset_us - hit.onset_us)
        if gap >= EXCLUSIVE_US:
            continue
        if other.label == hit.label:
            if gap < SAME_DRUM_US:
                return False
        elif (hit.label in HATS and other.label in HATS) or (hit.label in SNARES and other.label in SNARES):
            return False
        hands += gap < TOGETHER_US and other.label not in FEET
    return hit.label in FEET or hands < HANDS
