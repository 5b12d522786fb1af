"""frames/1: what a frame is, and that nothing but the samples around it matters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from beatsight_assets.errors import ConfigError
from beatsight_assets.features.definitions import FrameDefinition, definition

FRAMES = definition("frames/1")
RATE_HZ = FRAMES.rate_hz


def sine(hz: float, seconds: float = 0.5, amplitude: float = 0.5) -> np.ndarray:
    """A sine as float32 samples."""
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def test_the_definition_has_the_shape_it_promises() -> None:
    """100 frames per second, bands from 30 Hz to at least 16 kHz, none of them empty."""
    assert FRAMES.frames_per_s == 100.0
    assert FRAMES.n_bands == 81
    assert FRAMES.centres_hz[0] < 60 and FRAMES.corners[-1] * RATE_HZ / FRAMES.window_samples >= 16_000
    assert np.allclose(FRAMES.filterbank.sum(axis=0), 1.0, atol=1e-5)
    assert (np.diff(FRAMES.corners) > 0).all()


@pytest.mark.parametrize(("n_samples", "n_frames"), [(0, 0), (1, 1), (441, 1), (442, 2), (44_100, 100)])
def test_one_frame_per_started_hop(n_samples: int, n_frames: int) -> None:
    """Every recording length has one number of frames, and compute returns as many."""
    assert FRAMES.n_frames(n_samples) == n_frames
    assert FRAMES.compute(np.zeros(n_samples, dtype=np.float32)).shape == (n_frames, 81)


def test_silence_is_zero() -> None:
    """The minimum of the features is 0: what masks and padding fill with."""
    assert not FRAMES.compute(np.zeros(4_410, dtype=np.float32)).any()


@pytest.mark.parametrize("hz", [60.0, 440.0, 4_000.0, 12_000.0])
def test_a_sine_peaks_in_the_band_of_its_frequency(hz: float) -> None:
    """Bands lie where their centres say."""
    middle = FRAMES.compute(sine(hz))[25]
    best = int(np.argmax(middle))
    nearest = int(np.argmin(np.abs(FRAMES.centres_hz - hz)))
    assert abs(best - nearest) <= 1


def test_frames_are_centred_on_their_time() -> None:
    """A click at 100 ms is loudest in frame 10."""
    samples = np.zeros(RATE_HZ // 2, dtype=np.float32)
    samples[RATE_HZ // 10] = 1.0
    assert int(np.argmax(FRAMES.compute(samples).sum(axis=1))) == 10


def test_a_plain_loop_gives_the_same_values() -> None:
    """The fast path against frame, window, transform, filter, log, one after the other, in float64."""
    rng = np.random.default_rng(3)
    samples = rng.normal(0, 0.1, 6_000).astype(np.float32)
    found = FRAMES.compute(samples)
    half = FRAMES.window_samples // 2
    padded = np.concatenate([np.zeros(half), samples.astype(np.float64), np.zeros(FRAMES.window_samples)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAMES.window_samples) / FRAMES.window_samples)
    for i in range(FRAMES.n_frames(len(samples))):
        frame = padded[i * 441 : i * 441 + FRAMES.window_samples] * window * (2.0 / half)
        spectrum = np.abs(np.fft.rfft(frame))[FRAMES.corners[0] : FRAMES.corners[-1]]
        expected = np.log1p(FRAMES.gain * (spectrum @ FRAMES.filterbank))
        assert np.allclose(found[i], expected, atol=6e-3)  # half a float16 step at 8, plus float32


def test_a_frame_depends_only_on_its_window() -> None:
    """Cutting the recording elsewhere changes no frame whose window lies inside, beyond one float16 step."""
    rng = np.random.default_rng(4)
    samples = rng.normal(0, 0.1, RATE_HZ * 2).astype(np.float32)
    whole, part = FRAMES.compute(samples), FRAMES.compute(samples[40 * 441 : 160 * 441])
    assert np.abs(part[3:-3] - whole[43 : 160 - 3]).max() <= 4e-3


def test_values_survive_float16() -> None:
    """The cache stores float16 and loses nothing, so cache on and off are equal bit by bit."""
    found = FRAMES.compute(np.random.default_rng(5).normal(0, 0.3, 20_000).astype(np.float32))
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert found.min() >= 0 and np.isfinite(found).all()


def test_the_digest_is_that_of_the_parameters() -> None:
    """Equal parameters, equal digest; any other parameter, another digest."""
    assert FrameDefinition("frames/1").digest == FRAMES.digest
    others = [replace(FRAMES, hop_samples=512), replace(FRAMES, gain=1_000.0), replace(FRAMES, name="frames/2")]
    assert len({FRAMES.digest, *(o.digest for o in others)}) == 4


def test_an_unknown_definition_is_a_wrong_option() -> None:
    """Exit code 2, and the message lists what there is."""
    with pytest.raises(ConfigError, match="frames/1") as caught:
        definition("frames/99")
    assert caught.value.code == "unknown-feature" and caught.value.exit_code == 2


def test_frames_next_to_a_cut_are_those_of_a_cut_recording() -> None:
    """What is computed beforehand equals cutting the audio and computing again; no fourth frame on either side is touched."""
    samples = np.random.default_rng(6).normal(0, 0.1, 441 * 64 + 100).astype(np.float32)
    offsets = np.arange(9) * 50
    cuts = FRAMES.compute_cuts(samples, 8, offsets)
    whole = FRAMES.compute(samples)
    assert cuts.shape == (9, 6, 81)
    for k in (1, 3, 8):
        at = k * 8
        ended, begun = FRAMES.compute(samples[: at * 441 - offsets[k]]), FRAMES.compute(samples[at * 441 :])
        assert len(ended) == at
        assert np.abs(ended[-3:] - cuts[k, :3]).max() <= 4e-3 and np.abs(begun[:3] - cuts[k, 3 : 3 + len(begun)]).max() <= 4e-3
        assert np.abs(ended[-4] - whole[at - 4]).max() <= 4e-3
        assert len(begun) < 4 or np.abs(begun[3] - whole[at + 3]).max() <= 4e-3
