"""Audio probing by full decode, mono reading, lookup under other suffixes, and the wav writer."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from beatsight_assets.audio import FLOOR_DB, AudioError, find_audio, probe, read_mono, resample, write_wav
from beatsight_assets.errors import InputError
from beatsight_assets.units import rng_for

SHARED = Path(os.environ.get("BEATSIGHT_SHARED_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
ODD = SHARED / "audio_odd"
needs_data = pytest.mark.skipif(not ODD.is_dir(), reason=f"no shared data below {SHARED}")
RATE = 44_100


def tone(seconds: float = 0.5, level: float = 0.5, hz: float = 440.0, rate_hz: int = RATE) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def saved(path: Path, samples: np.ndarray, rate_hz: int = RATE, **options: str) -> Path:
    with io.BytesIO() as buffer:
        soundfile.write(buffer, samples, rate_hz, format=options.pop("format", "WAV"), **options)
        path.write_bytes(buffer.getvalue())
    return path


def refused(path: Path) -> str:
    with pytest.raises(AudioError) as caught:
        probe(path)
    with pytest.raises(AudioError, match=caught.value.code):
        read_mono(path, 16_000)
    return caught.value.code


def test_probe_says_what_was_decoded(tmp_path: Path) -> None:
    """Frames, rate, channels, peak and subtype of a whole file."""
    info = probe(saved(tmp_path / "a.wav", np.stack([tone(), tone(level=0.25)], axis=1), subtype="PCM_24"))
    assert (info.rate_hz, info.n_channels, info.n_frames, info.subtype, info.duration_s) == (RATE, 2, 22_050, "PCM_24", 0.5)
    assert info.peak_dbfs == pytest.approx(-6.0206, abs=0.01) and not info.is_silent


@pytest.mark.parametrize(
    "name",
    ["a.wav", "a.flac", "a.aiff", "a.ogg", "A.WAV", "rifx.wav", "rf64.wav"],
    ids=["wav", "flac", "aiff", "ogg", "upper-case suffix", "RIFX", "RF64"],
)
def test_containers_are_read(tmp_path: Path, name: str) -> None:
    """Header oddities of reliability.md section 5 are accepted."""
    options = {"flac": {"format": "FLAC"}, "aiff": {"format": "AIFF"}, "ogg": {"format": "OGG"}}.get(
        name.rpartition(".")[2], {"format": "WAV"}
    )
    if name == "rifx.wav":
        options = {"format": "WAV", "endian": "BIG"}
    if name == "rf64.wav":
        options = {"format": "RF64"}
    path = saved(tmp_path / name, tone(), **options)
    assert probe(path).n_frames == 22_050


def test_chunks_before_the_data_are_skipped(tmp_path: Path) -> None:
    """A LIST chunk of odd length in front of the samples, and an ID3 chunk behind them."""
    data = write_wav(tone(), RATE)
    path = tmp_path / "list.wav"
    path.write_bytes(
        data[:36] + b"LIST" + (5).to_bytes(4, "little") + b"INFO1\0" + data[36:] + b"id3 " + (4).to_bytes(4, "little") + b"abcd"
    )
    assert probe(path).n_frames == 22_050


@pytest.mark.parametrize("container", ["WAV", "AIFF", "FLAC", "RF64"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, container: str, share: float) -> None:
    """truncated-audio (or a decoder that gives up): fewer frames than the header says, whatever the library reports."""
    path = saved(tmp_path / "cut", tone(2.0) + rng_for(1, "noise").normal(0, 0.05, 2 * RATE).astype(np.float32), format=container)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert refused(path) in ("truncated-audio", "unreadable-audio") if container == "FLAC" else refused(path) == "truncated-audio"


def test_one_frame_or_a_thousandth_may_be_missing(tmp_path: Path) -> None:
    """The tolerance of bundle.md section 5 point 9 for lossless files."""
    data = write_wav(tone(1.0), RATE)
    path = tmp_path / "a.wav"
    path.write_bytes(data[: -2 * 44])
    assert probe(path).n_frames == RATE - 44
    path.write_bytes(data[: -2 * 46])
    assert refused(path) == "truncated-audio"
    path.write_bytes(write_wav(tone(0.001), RATE)[:-2])
    assert probe(path).n_frames == 43


def test_a_length_that_was_never_filled_in_is_no_promise(tmp_path: Path) -> None:
    """Streaming writers leave 0xFFFFFFFF in the data chunk."""
    data = write_wav(tone(), RATE)
    path = tmp_path / "a.wav"
    path.write_bytes(data[:40] + b"\xff\xff\xff\xff" + data[44:])
    assert probe(path).n_frames == 22_050


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty-file"),
        (b"RIFF\0\0\0\0WAVE", "unreadable-audio"),
        (b"not audio at all" * 10, "unreadable-audio"),
        (write_wav(np.zeros(0, np.int16), RATE), "empty-audio"),
        (write_wav(np.zeros(100, np.int16), RATE), "silent-audio"),
        (write_wav(np.full(100, 3, np.int16), RATE), "silent-audio"),
        (write_wav(np.full(100, 1_000, np.int16), 2_000), "unreadable-audio"),
        (write_wav(np.full((10, 65), 1_000, np.int16), RATE), "unreadable-audio"),
    ],
    ids=["0 bytes", "no chunks", "text", "0 frames", "zeros", "-80.8 dBFS", "2 kHz", "65 channels"],
)
def test_refused_with_its_code(tmp_path: Path, content: bytes, code: str) -> None:
    """events.md section 10 and reliability.md section 5: the code of each refusal."""
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert refused(path) == code


def test_the_quietest_sound_that_counts(tmp_path: Path) -> None:
    """-80 dBFS is silence, the next 16-bit step above it is not."""
    path = tmp_path / "a.wav"
    path.write_bytes(write_wav(np.full(100, 4, np.int16), RATE))
    assert -80.0 < probe(path).peak_dbfs < -78.0


def test_silence_can_be_left_to_the_caller(tmp_path: Path) -> None:
    """A silent stem is no damage when every onset lies past its end; no figure is infinite."""
    path = tmp_path / "a.wav"
    path.write_bytes(write_wav(np.zeros(100, np.int16), RATE))
    info = probe(path, silent_ok=True)
    assert info.is_silent and info.peak_dbfs == FLOOR_DB
    assert len(read_mono(path, silent_ok=True).samples) == 100


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_samples_are_refused(tmp_path: Path, value: float) -> None:
    """non-finite-audio: one sample is enough, wherever it stands."""
    samples = tone()
    samples[-1] = value
    assert refused(saved(tmp_path / "a.wav", samples, subtype="FLOAT")) == "non-finite-audio"


def test_more_than_two_hours_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """max_audio_hours: a length limit that holds before and while decoding."""
    monkeypatch.setattr("beatsight_assets.audio.MAX_HOURS", 0.5 / 3600)
    path = tmp_path / "a.wav"
    path.write_bytes(write_wav(tone(0.5), RATE))
    assert probe(path).n_frames == 22_050
    path.write_bytes(write_wav(tone(0.51), RATE))
    assert refused(path) == "resource-limit"


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """Absent files, folders and FIFOs: an error of ours, at once."""
    os.mkfifo(tmp_path / "fifo.wav")
    for name in ("absent.wav", "", "fifo.wav"):
        assert refused(tmp_path / name) == "unreadable-audio"


def test_damaged_files_get_a_verdict(tmp_path: Path) -> None:
    """R7 sample: 200 mutations of wav, flac and ogg; only AudioError, and what is accepted is finite and whole."""
    n_accepted = 0
    path = tmp_path / "a"
    for container in ("WAV", "FLAC", "OGG", "AIFF"):
        saved(path, np.stack([tone(0.1), tone(0.1, hz=70)], axis=1), format=container)
        good = path.read_bytes()
        for i in range(50):
            rng = rng_for(3, container, str(i))
            bad = bytearray(good)
            for at in rng.integers(0, len(bad) if i % 2 else min(len(bad), 120), 4).tolist():
                bad[at] = int(rng.integers(0, 256))
            path.write_bytes(bytes(bad[: len(bad) if i % 5 else int(rng.integers(1, len(bad)))]))
            try:
                info, clip = probe(path), read_mono(path)
            except AudioError:
                continue
            n_accepted += 1
            assert np.isfinite(clip.samples).all() and len(clip.samples) == info.n_frames > 0
            assert info.peak_dbfs > -80 and 4_000 <= info.rate_hz <= 384_000 and 1 <= info.n_channels <= 64
    assert n_accepted > 30


def test_channels_fold_by_plain_mean(tmp_path: Path) -> None:
    """Ruling 3: the mean of the channels, and the loss against the louder one."""
    left, right = tone(), tone(level=0.25)
    clip = read_mono(saved(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(clip.samples, (left + right) / 2, atol=1e-7)
    assert clip.samples.dtype == np.float32 and clip.fold_loss_db == pytest.approx(20 * np.log10(0.5 / 0.375), abs=1e-4)


@pytest.mark.parametrize(
    ("right", "loss_db"), [(1.0, 0.0), (0.0, 6.0206), (-0.5, 12.0412), (-1.0, 200.0)], ids=["equal", "one side", "half against", "cancels"]
)
def test_a_fold_says_what_it_loses(tmp_path: Path, right: float, loss_db: float) -> None:
    """Channels against each other are seen; the figure stays finite."""
    clip = read_mono(saved(tmp_path / "a.wav", np.stack([tone(), right * tone()], axis=1), subtype="FLOAT"), silent_ok=True)
    assert clip.fold_loss_db == pytest.approx(loss_db, abs=1e-3)


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading in blocks of any size gives the same samples and loss."""
    path = saved(tmp_path / "a.wav", rng_for(2, "stereo").normal(0, 0.1, (5_000, 2)).astype(np.float32), subtype="FLOAT")
    whole = read_mono(path)
    monkeypatch.setattr("beatsight_assets.audio.BLOCK_FRAMES", 777)
    parts = read_mono(path)
    np.testing.assert_array_equal(whole.samples, parts.samples)
    assert whole.fold_loss_db == pytest.approx(parts.fold_loss_db, abs=1e-9)


def test_resampling_keeps_a_tone_and_removes_what_does_not_fit(tmp_path: Path) -> None:
    """soxr HQ: level and length stay, content above the new Nyquist frequency goes."""
    clip = read_mono(saved(tmp_path / "a.wav", tone(1.0, rate_hz=48_000), 48_000, subtype="FLOAT"), 22_050)
    assert (clip.rate_hz, len(clip.samples)) == (22_050, 22_050)
    np.testing.assert_allclose(clip.samples[2_000:-2_000], tone(1.0, rate_hz=22_050)[2_000:-2_000], atol=1e-4)
    assert np.abs(resample(tone(1.0, hz=18_000), RATE, 22_050)[2_000:-2_000]).max() < 1e-4


def test_find_audio_takes_the_first_root_then_the_given_suffix(tmp_path: Path) -> None:
    """sources.md section 0 rule 5: roots in order, same stem, another suffix."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first / "a/take.v2.FLAC", second / "a/take.v2.wav", second / "a/take.v2.mp3", second / "b.ogg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert find_audio([first, second], "a/take.v2.wav") == first / "a/take.v2.FLAC"
    assert find_audio([second, first], "a/take.v2.mp3") == second / "a/take.v2.mp3"
    assert find_audio([second], "a/take.v2.aif") == second / "a/take.v2.wav"
    assert find_audio([tmp_path / "absent", second], "b") == second / "b.ogg"
    assert find_audio([first], "b.wav") is None
    assert find_audio([first], "a/take.wav") is None


@pytest.mark.parametrize("name", ["../x.wav", "/etc/x.wav", "a/../../x.wav", "a\0.wav"])
def test_find_audio_never_leaves_a_root(tmp_path: Path, name: str) -> None:
    """path-escape."""
    with pytest.raises(InputError, match="path-escape"):
        find_audio([tmp_path], name)


def test_written_wav_is_plain_and_equal_for_equal_input(tmp_path: Path) -> None:
    """44 bytes of header, 16 bits, exact for int16 and for floats on the grid, clipped, read back by the decoder."""
    grid = rng_for(4, "grid").integers(-32_768, 32_768, 1_000).astype(np.int16)
    data = write_wav(grid, 48_000)
    assert data == write_wav(grid.astype(np.float32) / 32_768, 48_000) and len(data) == 44 + 2_000
    back, rate_hz = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate_hz == 48_000 and soundfile.info(io.BytesIO(data)).subtype == "PCM_16"
    np.testing.assert_array_equal(back, grid)
    stereo, _ = soundfile.read(io.BytesIO(write_wav(np.array([[2.0, -2.0], [0.5, 0.0]]), RATE)), dtype="int16")
    assert stereo.tolist() == [[32_767, -32_768], [16_384, 0]]
    with pytest.raises(AudioError, match="non-finite-audio"):
        write_wav(np.array([0.0, np.nan]), RATE)


@needs_data
@pytest.mark.data
def test_real_odd_files_have_their_verdict(capfd: pytest.CaptureFixture[str]) -> None:
    """R9, sources.md section 14: every file gets a verdict and no exception; those that no decoder build can change are pinned."""
    verdicts: dict[str, str] = {}
    for path in sorted(p for p in ODD.rglob("*") if p.is_file() and p.suffix != ".md"):
        try:
            verdicts[path.relative_to(ODD).as_posix()] = "read" if probe(path).n_frames else ""
        except AudioError as error:
            verdicts[path.relative_to(ODD).as_posix()] = error.code
    capfd.readouterr()  # the mp3 decoder writes remarks on stderr
    assert len(verdicts) == 58 and "" not in verdicts.values()
    pinned = {
        "hound/fuzz/crash-24728523ef4be15c838293b676f6853e73723bf4.wav": "unreadable-audio",
        "hound/fuzz/crash-b8447179832529c48f9c6bf17feab6337bbc78ea.wav": "unreadable-audio",
        "mutagen/52-overwritten-metadata.flac": "unreadable-audio",
        "mutagen/ooming-header.flac": "unreadable-audio",
        "scipy/test-44100Hz-le-1ch-4bytes-early-eof-no-data.wav": "unreadable-audio",
        "pydub/test1_empty.wav": "empty-audio",
        "mutagen/emptyfile.mp3": "empty-file",
        "mutagen/silence-2s-PCM-16000-08-ID3v23.wav": "silent-audio",
        "lhotse/common_voice_en_651325.mp3": "read",
    }
    assert {name: verdicts[name] for name in pinned} == pinned
    assert sum(verdict == "read" for verdict in verdicts.values()) >= 30


@needs_data
@pytest.mark.data
def test_drum_tracks_have_their_length() -> None:
    """sources.md section 11: seconds of audio of two MDB tracks, mono."""
    folder = SHARED / "mdb_drums/MDB Drums/audio/drum_only"
    for name, seconds in (("Rock", 13.0912), ("Hendrix", 19.8439)):
        info = probe(folder / f"MusicDelta_{name}_Drum.wav")
        assert (info.n_channels, info.rate_hz, info.subtype) == (1, RATE, "PCM_16") and abs(info.duration_s - seconds) < 1e-4
