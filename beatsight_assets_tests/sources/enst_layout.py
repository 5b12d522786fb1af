"""Writes ENST-Drums as its owners lay it out: drummers, channels, piece names with apostrophes, annotation lines. No byte of it is theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from beatsight_assets.audio import write_wav
from beatsight_assets.units import rng_for

RATE_HZ = 44_100
PUBLIC = "ENST-drums-public"
CHANNELS = ("dry_mix", "wet_mix", "kick", "snare", "hi-hat", "overhead_L", "overhead_R", "tom_1", "tom_2")
N_TOMS = {"drummer_1": 2, "drummer_2": 3, "drummer_3": 3}
PIECES = {
    "drummer_1": ("001_hits_snare-drum_sticks_x6", "045_phrase_rock_simple_medium_sticks", "107_minus-one_salsa_sticks"),
    "drummer_2": ("121_MIDI-minus-one_bigband_brushes", "137_MIDI-minus-one_rock'n'roll-188_sticks"),
    "drummer_3": ("036_phrase_afro_complex_slow_mallets", "128_minus-one_rock-60s_sticks"),
}
Onset = tuple[float, str]


def hit_audio(onsets_s: Sequence[float], seconds: float, *, name: str = "hit") -> np.ndarray:
    """Mono noise bursts at the onsets, float64 [shape=(n_samples,)]."""
    burst = rng_for(11, name).normal(0.0, 0.25, 4_410) * np.exp(-np.arange(4_410) / 600)
    samples = np.zeros(round(seconds * RATE_HZ))
    for t in onsets_s:
        room = samples[round(t * RATE_HZ) :][: len(burst)]
        room += burst[: len(room)]
    return np.clip(samples, -1, 1)


def annotation(onsets: Sequence[Onset]) -> bytes:
    """Lines as in the release: seconds with six decimals, a blank, the token, a blank at the end."""
    return "".join(f"{t:.6f} {token} \n" for t, token in onsets).encode()


def techniques(rows: Sequence[tuple[float, int, float, str]]) -> bytes:
    """Lines of DrumPtDataset: start, index, duration, name, split by tabs."""
    return "".join(f"{start:.9f}\t{index}\t{length:.9f}\t{name}\n" for start, index, length, name in rows).encode()


def write_piece(
    root: Path, drummer: str, piece: str, onsets: Sequence[Onset], *, channels: Sequence[str] | None = None, seconds: float = 2.0
) -> str:
    """One piece: annotation and every channel of its drummer; returns the path of the annotation."""
    home = root / PUBLIC / drummer
    text = home / "annotation" / f"{piece}.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_bytes(annotation(onsets))
    toms = ("tom_3",) if N_TOMS[drummer] == 3 else ()
    extra = ("accompaniment",) if "minus-one" in piece else ()
    for channel in (*CHANNELS, *toms, *extra) if channels is None else channels:
        path = home / "audio" / channel / f"{piece}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = hit_audio([t for t, _ in onsets], seconds, name=f"{drummer}/{channel}")
        path.write_bytes(write_wav(np.stack([samples, 0.8 * samples], axis=1) if channel.endswith("mix") else samples, RATE_HZ))
    return text.relative_to(root).as_posix()


def write_enst(root: Path, tokens: Mapping[str, Sequence[Onset]]) -> None:
    """Every piece of `PIECES` with the onsets of its drummer."""
    for drummer, pieces in PIECES.items():
        for piece in pieces:
            write_piece(root, drummer, piece, tokens[drummer])
