"""logmel128-1: its numbers against independent references, and that a clip's features depend on that clip alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beatsight_assets.errors import ConfigError
from beatsight_assets.features import definitions
from beatsight_assets.features.definitions import clip_definition, definition
from beatsight_assets.features.torchaudio_parts import torchaudio

CLIPS = clip_definition("logmel128-1")


def librosa_db(samples: np.ndarray) -> np.ndarray:
    """The same spectrogram by librosa, in float32."""
    import librosa

    mel = librosa.feature.melspectrogram(y=samples, sr=44_100, n_fft=2048, hop_length=512, pad_mode="constant", n_mels=128, fmin=30.0, fmax=16_000.0)  # fmt: skip
    return np.asarray(10.0 * np.log10(np.maximum(mel, 1e-10)))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 0.05 dB above -80 dB. Below, float32 is heard: the residue of a full-scale tone, 110 dB under it, within 0.5 dB."""
    error = np.abs(found - expected)
    assert error[expected > -80.0].max() <= 0.05 and error.max() <= 0.5


def sine(hz: float) -> np.ndarray:
    """A clip of a sine of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(CLIPS.n_samples) / CLIPS.rate_hz)).astype(np.float32)


def clips_of_every_kind() -> np.ndarray:
    """Noise, silence, an impulse, a decaying burst, a full-scale square wave and sines."""
    rng = np.random.default_rng(5)
    t = np.arange(CLIPS.n_samples)
    impulse = np.zeros(CLIPS.n_samples)
    impulse[3_528] = 1.0
    burst = rng.normal(0, 0.3, CLIPS.n_samples) * np.where(t < 3_528, 0.0, np.exp(-(t - 3_528) / 2_000.0))
    kinds = [rng.normal(0, 0.1, CLIPS.n_samples), t * 0.0, impulse, burst, np.sign(np.sin(t / 70.0)), sine(60.0), sine(15_900.0)]
    return np.stack(kinds).astype(np.float32)


def test_the_definition_has_the_shape_it_promises() -> None:
    """12,348 samples, 128 bands, 25 frames; no band is empty; the largest value of all lies below the top of the 8-bit scale."""
    assert (CLIPS.n_samples, CLIPS.shape, CLIPS.floor_db) == (12_348, (128, 25), -100.0)
    assert (CLIPS.filterbank.max(axis=1) > 0).all()
    assert CLIPS.compute(clips_of_every_kind()).max() < 50.0


def test_the_filterbank_is_librosas() -> None:
    """Slaney scale and area normalisation, weight by weight."""
    import librosa

    theirs = librosa.filters.mel(sr=44_100, n_fft=2048, n_mels=128, fmin=30.0, fmax=16_000.0)
    used = slice(CLIPS.first_bin, CLIPS.first_bin + CLIPS.filterbank.shape[1])
    assert np.abs(theirs[:, used] - CLIPS.filterbank).max() < 1e-7
    assert np.count_nonzero(theirs) == np.count_nonzero(theirs[:, used])


@pytest.mark.parametrize(("hz", "row", "db"), [(60, 0, 33.36), (100, 1, 32.61), (1_000, 33, 33.29), (8_000, 104, 24.74)])
def test_golden_values_of_sines(hz: float, row: int, db: float) -> None:
    """Frame 12 of a sine of amplitude 0.5 peaks in this row at this level."""
    frame = CLIPS.compute(sine(hz)[None])[0, :, 12]
    assert int(np.argmax(frame)) == row
    assert frame[row] == pytest.approx(db, abs=0.05)


def test_silence_and_an_impulse_on_the_onset() -> None:
    """Silence is -100 everywhere; an impulse on sample 3,528 sounds in frames 5 to 8 alone, loudest in frame 7."""
    silence, impulse = CLIPS.compute(clips_of_every_kind()[1:3])
    assert (silence == -100.0).all()
    assert [int(i) for i in np.flatnonzero((impulse > -100.0).any(axis=0))] == [5, 6, 7, 8]
    assert int(np.argmax(impulse.max(axis=0))) == 7


def test_librosa_agrees() -> None:
    """Every value of every kind of clip agrees with the first oracle."""
    clips = clips_of_every_kind()
    assert_close(CLIPS.compute(clips), np.stack([librosa_db(c) for c in clips]))


@pytest.mark.data
def test_real_drums_agree_with_librosa(shared_data: Path) -> None:
    """The same on clips cut from a recorded drum track."""
    from beatsight_assets.audio import read_mono

    samples = read_mono(min(shared_data.rglob("*_MIX.wav")), 44_100).samples
    clips = np.stack([CLIPS.cut(samples, int(s)) for s in np.linspace(0, len(samples), 12)])
    assert_close(CLIPS.compute(clips), np.stack([librosa_db(c) for c in clips]))


def test_torchaudio_agrees() -> None:
    """The second oracle, where it is installed, told to use Slaney's scale and norm."""
    library = torchaudio()
    if library is None:
        pytest.skip("torchaudio is not installed, or its transforms cannot be imported")
    import torch

    mel = library.transforms.MelSpectrogram(44_100, n_fft=2048, hop_length=512, f_min=30.0, f_max=16_000.0, n_mels=128, power=2.0, norm="slaney", mel_scale="slaney", pad_mode="constant")  # fmt: skip
    clips = clips_of_every_kind()
    theirs = 10.0 * np.log10(np.maximum(mel(torch.from_numpy(clips)).numpy(), 1e-10))
    error = np.abs(CLIPS.compute(clips) - theirs)
    loudest = theirs.max(axis=(1, 2), keepdims=True)  # 105 dB under it both transforms round, each in its own way
    assert error[theirs > np.maximum(-80.0, loudest - 105.0)].max() <= 0.05 and error.max() <= 0.5


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 64])
def test_no_batch_size_changes_a_bit(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, in any batch, in any order: the same float32 values."""
    clips = np.random.default_rng(6).normal(0, 0.1, (11, CLIPS.n_samples)).astype(np.float32)
    expected = CLIPS.compute(clips)
    monkeypatch.setattr(definitions, "BATCH_CLIPS", batch)
    assert np.array_equal(CLIPS.compute(clips), expected)
    assert np.array_equal(CLIPS.compute(clips[::-1])[::-1], expected)
    assert np.array_equal(CLIPS.compute(clips[4:7]), expected[4:7])


def test_clips_are_transformed_on_one_thread_of_torch() -> None:
    """Also where torch has more, as in training, which keeps its own; blocks of four clips took ten times the CPU time on two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []

        class Watched(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                seen.append(torch.get_num_threads())
                return function(*args, **(kwargs or {}))

        with Watched():
            clip_definition().compute(np.zeros((5, clip_definition().n_samples), np.int16))
        assert 1 in seen and 2 not in seen[seen.index(1) :], seen
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_16_bit_samples_are_those_divided_by_32768() -> None:
    """int16 clips and their float32 form have equal features; no clips give no features."""
    clips = (np.random.default_rng(7).normal(0, 3_000, (3, CLIPS.n_samples))).astype(np.int16)
    assert np.array_equal(CLIPS.compute(clips), CLIPS.compute(clips.astype(np.float32) / 32_768))
    assert CLIPS.compute(clips[:0]).shape == (0, 128, 25)


def test_half_the_amplitude_is_6_db_less() -> None:
    """No value above the floor is scaled by anything but its level."""
    clips = clips_of_every_kind()
    whole, half = CLIPS.compute(clips), CLIPS.compute(clips * 0.5)
    above = whole > -90.0
    assert np.abs(whole - half - 6.0206)[above].max() < 0.01


def test_a_clip_is_cut_around_its_onset() -> None:
    """The onset lies on sample 3,528; what the recording does not have is zero, before and after."""
    ramp = np.arange(1, 20_001, dtype=np.float32)
    assert CLIPS.cut(ramp, 5_000)[3_528] == 5_001 and CLIPS.cut(ramp, 5_000)[0] == 5_000 - 3_528 + 1
    early = CLIPS.cut(ramp, 0)
    assert not early[:3_528].any() and early[3_528] == 1
    late = CLIPS.cut(ramp, 19_999)
    assert late[3_528] == 20_000 and not late[3_529:].any()
    assert not CLIPS.cut(ramp, 90_000).any() and not CLIPS.cut(ramp[:0], 0).any()


def test_a_network_reads_128_columns() -> None:
    """Columns 0 and 2 read frame 0, column 3 frame 0.18359, 64 frame 12.09766, 127 frame 24."""
    read = np.arange(25, dtype=np.float32) @ CLIPS.column_weights
    assert read.shape == (128,)
    assert read[[0, 2, 3, 64, 127]] == pytest.approx([0.0, 0.0, 0.18359, 12.09766, 24.0], abs=1e-5)


def test_names_belong_to_one_kind() -> None:
    """A name of the other kind is refused with the names there are; any other number is another digest."""
    from dataclasses import replace

    with pytest.raises(ConfigError, match="frames/1"):
        definition("logmel128-1")
    with pytest.raises(ConfigError, match="logmel128-1"):
        clip_definition("frames/1")
    assert replace(CLIPS, n_mels=64).digest != CLIPS.digest == clip_definition().digest
