"""One-shots: where they begin, and what their row says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beatsight_assets import audio, events
from beatsight_assets.sources import Reading, Recording, Rejected
from beatsight_assets.sources.sample_rows import sample_onset, sample_reading, sample_session
from beatsight_assets.taxonomy import Taxonomy, Voice

RATE_HZ = 44_100


def write(root: Path, name: str, samples: np.ndarray) -> Recording:
    (root / name).write_bytes(audio.write_wav(samples, RATE_HZ))
    session = sample_session(name, f"kit:test/{name}", confidence=0.7, mic_position=None, velocity_layer=3)
    return Recording(session, name, (name,))


def test_the_onset_is_the_first_sample_at_5_percent_of_the_peak() -> None:
    """4.9 % does not count, 5 % does, whatever the sign and the level; whole microseconds, half up."""
    samples = np.zeros(4_410, np.float32)
    samples[[100, 441, 1_000]] = 0.0098, -0.0100001, 0.2
    assert sample_onset(samples, RATE_HZ) == 10_000
    assert sample_onset(samples / 100, RATE_HZ) == 10_000
    assert [sample_onset(np.eye(1, 8, k, dtype=np.float32)[0], 16_000) for k in (0, 1, 2)] == [0, 63, 125]


def test_a_one_shot_is_one_hit_at_its_measured_onset(tmp_path: Path) -> None:
    """Window 20/480 ms, no velocity, the file decoded once; extras that are unknown are left out."""
    samples = np.zeros((RATE_HZ, 2), np.float32)
    samples[441:600, 0] = 0.8
    recording = write(tmp_path, "Kick 01.wav", samples)
    reading = sample_reading(tmp_path, recording, Voice("kick"), Taxonomy.shipped())
    assert isinstance(reading, Reading) and reading.audio is not None and reading.audio.n_channels == 2
    assert "hihat_foot_splash" not in reading.coverage and len(reading.coverage) == 22
    row = events.assemble("pack", [(reading.session, reading.hits)], Taxonomy.shipped()).frame.to_dicts()[0]
    assert (row["onset_time"], row["offset_time"], row["mix_context"]) == (0.01, None, "one_shot")
    assert row["context_ms"] == {"pre": 20.0, "post": 480.0} and row["components"][0]["velocity"] is None
    assert row["extras"] == '{"confidence":0.7,"label_source":"file_name","velocity_layer":3}'


@pytest.mark.parametrize(
    ("samples", "code"),
    [
        (np.zeros(RATE_HZ, np.float32), "silent-audio"),
        (np.stack([np.full(900, 0.5), np.full(900, -0.5)], axis=1).astype(np.float32), "silent-audio"),
        (np.zeros(0, np.float32), "empty-audio"),
    ],
    ids=["silence", "channels that cancel each other", "no frames"],
)
def test_a_one_shot_without_sound_is_refused(tmp_path: Path, samples: np.ndarray, code: str) -> None:
    """A label without a sound never becomes a row."""
    refused = sample_reading(tmp_path, write(tmp_path, "Kick.wav", samples), Voice("kick"), Taxonomy.shipped())
    assert isinstance(refused, Rejected) and (refused.path, refused.stage, refused.code) == ("Kick.wav", "audio", code)


@pytest.mark.data
def test_golden_lead_in_of_the_avl_kits(shared_data: Path) -> None:
    """226 files: median 1.08, 95th percentile 6.38, slowest 15.60 ms from the first sample to 5 % of the peak."""
    files = sorted((shared_data / "oneshots/avl-drumkits-1.1").rglob("*.wav"))
    clips = [audio.read_mono(path) for path in files]
    lead_ms = np.array([sample_onset(clip.samples, clip.rate_hz) for clip in clips]) / 1_000
    assert len(files) == 226
    np.testing.assert_allclose([np.median(lead_ms), np.quantile(lead_ms, 0.95), lead_ms.max()], [1.08, 6.38, 15.60], atol=0.3)
