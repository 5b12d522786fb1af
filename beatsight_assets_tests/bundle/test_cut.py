"""Samples of clips: each equals the exact samples of its window, whichever way the file is read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets.audio import AudioError, write_wav
from beatsight_assets.bundle import cut
from beatsight_assets.bundle.plan import sample_of, samples_of
from beatsight_assets_tests.bundle.conftest import RATE_HZ, ramp

PRE, POST = samples_of(80, RATE_HZ), samples_of(200, RATE_HZ)
MANY, FEW = 10**6, 1  # clips: dense files are decoded whole, sparse ones are sought


def starts(*onsets_s: float) -> np.ndarray:
    return sample_of(np.array([round(t * 1e6) for t in onsets_s], np.int64), RATE_HZ) - PRE


def clips_of(track: cut.Track, start: np.ndarray, n: int = PRE + POST) -> np.ndarray:
    return np.concatenate([c.samples for c in cut.cut(track, start, n)])


def expected(samples: np.ndarray, start: np.ndarray, n: int = PRE + POST) -> np.ndarray:
    """Window by window, by index: the slow and obvious way."""
    rows = []
    for s in start:
        index = s + np.arange(n)
        inside = (index >= 0) & (index < len(samples))
        rows.append(np.where(inside, samples[np.clip(index, 0, len(samples) - 1)], 0))
    return np.array(rows, np.int16)


def test_windows_of_a_ramp(tmp_path: Path) -> None:
    """Onsets 0.0, 0.05 and 1.0 s: sample j of each clip is ramp[start + j], and zero before the recording begins."""
    path = tmp_path / "ramp.wav"
    path.write_bytes(ramp(2 * RATE_HZ))
    at = starts(0.0, 0.02, 0.05, 1.0)
    found = clips_of(cut.open_track(path, RATE_HZ, "mean", MANY), at)
    line = np.arange(2 * RATE_HZ) % 32_768
    assert np.array_equal(found, expected(line, at))
    assert not found[0][:3528].any() and found[0][3528:3531].tolist() == [0, 1, 2]
    assert not found[1][:2646].any() and found[1][2647] == 1


def test_the_end_is_padded_and_told(tmp_path: Path) -> None:
    """A clip at the end of a file has zeros on the right, and both paddings are told."""
    path = tmp_path / "ramp.wav"
    path.write_bytes(ramp(RATE_HZ))
    at = starts(0.0, 0.9)
    chunks = list(cut.cut(cut.open_track(path, RATE_HZ, "mean", MANY), at, PRE + POST))
    left, right = (np.concatenate([getattr(c, k) for c in chunks]) for k in ("pad_left", "pad_right"))
    assert left.tolist() == [3528, 0] and right.tolist() == [0, round(0.9 * RATE_HZ) + POST - RATE_HZ]


@given(st.lists(st.integers(-PRE, 2 * RATE_HZ), min_size=1, max_size=40), st.integers(1, 20_000))
def test_any_windows(tmp_path_factory: pytest.TempPathFactory, places: list[int], n: int) -> None:
    """Property: whatever the windows, mapped samples equal the slow way."""
    path = tmp_path_factory.mktemp("any") / "ramp.wav"
    path.write_bytes(ramp(2 * RATE_HZ))
    at = np.sort(np.array(places, np.int64))
    assert np.array_equal(clips_of(cut.open_track(path, RATE_HZ, "mean", MANY), at, n), expected(np.arange(2 * RATE_HZ) % 32_768, at, n))


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_way_of_reading_gives_equal_samples(tmp_path: Path, rng: np.random.Generator, kind: str, channels: int, subtype: str) -> None:
    """Mapped, sought, whole and streamed reading of one file give the same clips."""
    path = tmp_path / f"noise.{kind.lower()}"
    soundfile.write(path, rng.uniform(-0.9, 0.9, (3 * RATE_HZ, channels)), RATE_HZ, subtype=subtype)
    at = starts(0.0, 0.4, 0.41, 1.5, 2.95)
    ways = [
        cut.open_track(path, RATE_HZ, "mean", FEW),
        cut.open_track(path, RATE_HZ, "mean", MANY),
        cut.open_track(path, RATE_HZ, "mean", MANY, long_samples=1000),
    ]
    found = [clips_of(track, at) for track in ways]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert len({type(t) for t in ways}) == (3 if subtype != "PCM_16" or kind == "FLAC" else 1)


def test_resampled_files_stream_to_equal_samples(tmp_path: Path, rng: np.random.Generator) -> None:
    """A 48 kHz file gives the same clips decoded whole and in blocks."""
    path = tmp_path / "noise.wav"
    soundfile.write(path, rng.uniform(-0.5, 0.5, 3 * 48_000), 48_000, subtype="PCM_16")
    at = starts(0.0, 0.7, 2.9)
    whole = clips_of(cut.open_track(path, RATE_HZ, "mean", MANY), at)
    assert np.array_equal(whole, clips_of(cut.open_track(path, RATE_HZ, "mean", MANY, long_samples=1000), at))


def test_an_impulse_keeps_its_time(tmp_path: Path) -> None:
    """An impulse at sample 24,000 of 48 kHz lies at 22,050 of 44.1 kHz."""
    line = np.zeros(48_000, np.float32)
    line[24_000] = 0.9
    path = tmp_path / "impulse.wav"
    soundfile.write(path, line, 48_000, subtype="PCM_16")
    track = cut.open_track(path, RATE_HZ, "mean", MANY)
    assert int(np.argmax(np.abs(track.window(0, track.n_samples)))) == 22_050


def test_sixteen_bit_mono_passes_through(tmp_path: Path, rng: np.random.Generator) -> None:
    """16-bit mono at the target rate gives its own bits, extremes included."""
    line = rng.integers(-32_768, 32_768, RATE_HZ).astype(np.int16)
    path = tmp_path / "noise.wav"
    path.write_bytes(write_wav(line, RATE_HZ))
    track = cut.open_track(path, RATE_HZ, "mean", MANY)
    assert np.array_equal(track.window(0, track.n_samples), line)


def test_channels_fold_by_plain_mean_and_loss_is_told(tmp_path: Path) -> None:
    """L = x and R = -x fold to silence and the loss is told; R = x loses nothing; channel 0 gives x."""
    x = (np.sin(np.arange(RATE_HZ) / 10) * 12_000).astype(np.int16)
    for name, right, loss in (("phase", -x, 150.0), ("same", x, 0.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.stack([x, right], axis=1), RATE_HZ, subtype="PCM_16")
        track = cut.open_track(tmp_path / f"{name}.wav", RATE_HZ, "mean", MANY)
        mono = track.window(0, RATE_HZ)
        assert np.array_equal(mono, x if loss == 0 else np.zeros_like(x))
        assert track.fold_loss_db == pytest.approx(loss, abs=51)
    first = cut.open_track(tmp_path / "phase.wav", RATE_HZ, "0", MANY)
    assert np.array_equal(first.window(0, RATE_HZ), x)
    with pytest.raises(AudioError, match="channel 2 of 2"):
        cut.open_track(tmp_path / "phase.wav", RATE_HZ, "2", MANY).window(0, 10)


def test_samples_beyond_full_scale_are_counted(tmp_path: Path) -> None:
    """A float file that goes beyond full scale saturates, and every such sample is counted."""
    line = np.zeros(RATE_HZ, np.float32)
    line[1000:1010] = 1.5
    soundfile.write(tmp_path / "loud.wav", line, RATE_HZ, subtype="FLOAT")
    (chunk,) = cut.cut(cut.open_track(tmp_path / "loud.wav", RATE_HZ, "mean", MANY), np.array([0], np.int64), 4000)
    assert chunk.n_clipped.tolist() == [10] and chunk.samples[0].max() == 32_767


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    """A FLAC without its end is refused whichever way it is read."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-0.5, 0.5, RATE_HZ * 4), RATE_HZ, format="FLAC")
    path = tmp_path / "short.flac"
    path.write_bytes(buffer.getvalue()[:-40_000])
    for n_clips in (FEW, MANY):
        with pytest.raises(AudioError):
            clips_of(cut.open_track(path, RATE_HZ, "mean", n_clips), starts(0.1, 3.5))


def test_real_recordings_sample_by_sample(shared_data: Path) -> None:
    """Clips of a real wav equal the samples that soundfile reads, hits at 0.0 s included."""
    path = next(iter(sorted(shared_data.rglob("*.wav"))), None)
    if path is None:
        pytest.skip("no real wav in the shared data")
    line, rate_hz = soundfile.read(path, dtype="float64", always_2d=True)
    at = np.array([-3528, 0, 1000, max(0, len(line) - 5000)], np.int64)
    found = clips_of(cut.open_track(path, rate_hz, "mean", MANY), np.sort(at), 4000)
    mono = np.clip(np.rint(line.mean(axis=1) * 32_768), -32_768, 32_767).astype(np.int16)
    assert np.abs(found.astype(int) - expected(mono, np.sort(at), 4000)).max() <= (0 if line.shape[1] == 1 else 1)
