from __future__ import annotations

import numpy as np
import pytest

from beatsight_assets.render import synth
from beatsight_assets.units import rng_for

RATE = 44_100


@pytest.fixture(scope="module")
def kit() -> synth.Kit:
    return synth.Kit.from_seed("maple", 7)


def play(kit: synth.Kit, hits: list[tuple[int, str, float]], *, openness: float = np.nan, take_id: str = "take") -> np.ndarray:
    onsets, labels, velocities = zip(*hits, strict=True)
    return synth.render(
        kit, np.array(onsets), labels, np.array(velocities, np.float32), np.full(len(hits), openness, np.float32), seed=7, take_id=take_id
    )


def centroid_hz(sound: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float(np.sum(power * np.fft.rfftfreq(sound.size, 1 / RATE)) / np.sum(power))


def rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))


@pytest.mark.parametrize("label", synth.COMPONENTS)
def test_every_component_sounds_at_once(kit: synth.Kit, label: str) -> None:
    """Promise: all 23 components make sound, finite, with the attack in the first 3 ms."""
    shot = synth.one_shot(kit, label, 0.9)
    assert np.all(np.isfinite(shot))
    slope = np.abs(np.diff(shot, prepend=0.0))
    assert np.flatnonzero(slope > 0.2 * slope[: RATE // 50].max())[0] <= 0.003 * RATE


def test_equal_inputs_give_equal_bytes(kit: synth.Kit) -> None:
    """Promise: a take rendered again, on the kit drawn again, has the same bytes."""
    hits = [(100_000, "kick", 0.8), (350_000, "hihat_open", 0.5), (600_000, "snare", 0.7)]
    again = synth.Kit.from_seed("maple", 7)
    assert play(kit, hits).tobytes() == play(again, hits).tobytes()


def test_kits_differ_in_more_than_level(kit: synth.Kit) -> None:
    """Promise: two kits give audibly different spectra for every gate component."""
    other = synth.Kit.from_seed("birch", 7)
    for label in synth.COMPONENTS[:18]:
        mine, theirs = (np.abs(np.fft.rfft(synth.one_shot(k, label, 0.8)[: RATE // 5], RATE // 5)) for k in (kit, other))
        assert np.corrcoef(mine, theirs)[0, 1] < 0.99, label


def test_repeated_strokes_differ(kit: synth.Kit) -> None:
    """Promise: two strokes of equal velocity are not the same samples (round robin), and take_id keys which they are."""
    hits = [(i * 500_000, "snare", 0.8) for i in range(1, 7)]
    audio = play(kit, hits)
    strokes = [audio[i * RATE // 2 : i * RATE // 2 + 2000] for i in range(1, 7)]
    assert len({s.tobytes() for s in strokes}) == 6
    assert not np.array_equal(audio, play(kit, hits, take_id="another"))


@pytest.mark.parametrize("label", ["kick", "snare", "tom_mid", "hihat_closed", "ride_bow", "crash"])
def test_velocity_drives_level_and_brightness(kit: synth.Kit, label: str) -> None:
    """Promise: a hard stroke is louder and brighter than a soft one."""
    soft, hard = synth.one_shot(kit, label, 0.2), synth.one_shot(kit, label, 1.0)
    assert np.max(np.abs(hard)) > 2 * np.max(np.abs(soft))
    assert centroid_hz(hard) > centroid_hz(soft)


def test_openness_lengthens_the_hat(kit: synth.Kit) -> None:
    """Promise: the share of energy after 60 ms grows with openness."""
    late = [rms(s[int(0.06 * RATE) :]) * np.sqrt(s.size) / (rms(s) * np.sqrt(s.size)) for s in
            (synth.one_shot(kit, "hihat_open", 0.8, openness=o) for o in (0.0, 0.4, 0.7, 1.0))]  # fmt: skip
    assert late == sorted(late)


@pytest.mark.parametrize("choker", ["hihat_closed", "hihat_pedal", "hihat_foot_splash"])
def test_a_closing_hat_chokes_the_open_one(kit: synth.Kit, choker: str) -> None:
    """Promise: what rings of an open hat before a closed or pedal stroke is gone after it, up to the room and the choker's own sound."""
    dry = synth.Kit.from_seed("maple", 7)
    dry.levels = {**kit.levels, choker: 1e-6}
    choked = play(dry, [(100_000, "hihat_open", 1.0), (250_000, choker, 0.5)], openness=1.0)
    ringing = play(dry, [(100_000, "hihat_open", 1.0)], openness=1.0)
    window = slice(int(0.28 * RATE), int(0.38 * RATE))
    assert rms(choked[window]) / np.max(np.abs(choked)) < 0.3 * rms(ringing[window]) / np.max(np.abs(ringing))


def test_no_sample_clips_and_the_file_outlasts_the_last_note(kit: synth.Kit) -> None:
    """Promise (ruling 14): peak at or below -1 dBFS however many hits pile up; 1.5 s after the last onset."""
    audio = play(kit, [(1_000_000, label, 1.0) for label in synth.COMPONENTS])
    assert np.max(np.abs(audio)) <= 10 ** (-1 / 20) + 1e-6
    assert audio.size == RATE + int(1.5 * RATE)


def test_200_keyed_hits_sound_within_3_ms() -> None:
    """Promise (ruling 14): hits of all gate components on two kits are heard within 3 ms of their MIDI time."""
    errors: list[float] = []
    for name in ("maple", "birch"):
        kit = synth.Kit.from_seed(name, 7)
        for label in synth.COMPONENTS[:18]:
            onsets = np.arange(1, 8) * 1_400_000 + rng_for(7, "onsets", name, label).integers(0, 50_000, 7)
            audio = play(kit, [(int(us), label, 0.4 + 0.08 * i) for i, us in enumerate(onsets)])
            errors.extend(synth.measure_onset_errors(audio, RATE, onsets))
    heard = np.array(errors)[np.isfinite(errors)]
    assert heard.size >= 200
    assert np.max(np.abs(heard)) <= 3.0


def test_onset_check_sees_a_late_hit(kit: synth.Kit) -> None:
    """Promise: the check is no rubber stamp; audio that is 5 ms late is measured 5 ms late."""
    onsets = np.arange(1, 6) * 900_000
    audio = play(kit, [(int(us), "snare", 0.8) for us in onsets])
    late = np.concatenate([np.zeros(int(0.005 * RATE), np.float32), audio])
    assert np.allclose(synth.measure_onset_errors(late, RATE, onsets), 5.0, atol=0.5)


def test_a_masked_hit_is_told_apart_from_a_good_one(kit: synth.Kit) -> None:
    """Promise: a hit right behind another gives nan instead of an invented figure; the order of the onsets does not matter."""
    onsets = np.array([1_010_000, 1_000_000, 2_500_000])
    audio = play(kit, [(int(us), "snare", 0.8) for us in onsets])
    errors = synth.measure_onset_errors(audio, RATE, onsets)
    assert np.isnan(errors[0])
    assert abs(errors[2]) <= 3.0


def test_toms_keep_their_order_in_every_kit() -> None:
    """Promise: high above middle above low tom, kick below all of them, in 40 kits."""
    for i in range(40):
        drums = synth.Kit.from_seed(f"kit{i}", 7).drums
        pitches = [drums[name].f0_hz for name in ("kick", "tom_low", "tom_mid", "tom_high")]
        assert pitches == sorted(pitches)


def test_no_hits_give_a_quiet_file(kit: synth.Kit) -> None:
    """Promise: a take without hits renders to its tail, finite and not clipped."""
    audio = synth.render(kit, np.array([], np.int64), [], np.array([], np.float32), np.array([], np.float32), seed=7, take_id="empty")
    assert audio.size == int(1.5 * RATE)
    assert np.all(np.isfinite(audio))
    assert np.max(np.abs(audio)) <= 10 ** (-1 / 20) + 1e-6
