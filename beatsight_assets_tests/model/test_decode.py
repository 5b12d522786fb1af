"""From outputs to hits."""

from __future__ import annotations

import numpy as np
import pytest

from beatsight_assets.errors import ConfigError
from beatsight_assets.features.definitions import definition
from beatsight_assets.model.checkpoint import Model
from beatsight_assets.model.decode import (
    decode_outputs,
    pick_peaks,
    refine_frames,
    scores_around,
    to_probabilities,
    transcribe_audio,
    transcribe_features,
)
from beatsight_assets.model.network import FrameOutputs, NetworkConfig, build_network

CLASSES = ("kick", "hihat_closed")


def model(threshold: float = 0.5, temperature: float = 1.0) -> Model:
    """An untrained model; enough for decoding."""
    import torch

    torch.manual_seed(1)
    network = build_network(NetworkConfig(CLASSES, 81))
    return Model(network, "frame", "drums18", CLASSES, definition("frames/1"), temperature, threshold, "", {})


def column(*values: float) -> np.ndarray:
    """Probabilities of one class."""
    return np.array(values, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("values", "frames"),
    [
        ((0.1, 0.9, 0.2, 0.1), [1]),
        ((0.9, 0.2, 0.1), [0]),
        ((0.1, 0.2, 0.9), [2]),
        ((0.1, 0.7, 0.7, 0.1), [1]),
        ((0.9, 0.1, 0.8, 0.1, 0.1), [0]),
        ((0.9, 0.1, 0.1, 0.8, 0.1), [0, 3]),
        ((0.4, 0.49, 0.4), []),
        ((0.5,), [0]),
    ],
    ids=[
        "a maximum",
        "at the start",
        "at the end",
        "first of a plateau",
        "two frames apart is one",
        "three apart are two",
        "below",
        "exactly the threshold",
    ],
)
def test_peaks(values: tuple[float, ...], frames: list[int]) -> None:
    """What is a peak and what is not."""
    assert pick_peaks(column(*values), 0.5)[0].tolist() == frames


def test_refinement_moves_towards_the_larger_neighbour_by_half_a_frame_at_most() -> None:
    """The vertex of a parabola; a peak at the edge stays."""
    logits = column(0.0, 2.0, 1.0, 0.0, 3.0)
    moved = refine_frames(logits, np.array([1, 4]), np.array([0, 0]))
    assert 1.0 < moved[0] <= 1.5 and moved[1] == 4.0


def test_hits_carry_time_score_velocity_and_openness() -> None:
    """Sorted by onset, whole microseconds, openness on hats only."""
    onset = np.full((30, 2), -6.0, dtype=np.float32)
    onset[20, 0], onset[10, 1] = 3.0, 2.0
    outputs = FrameOutputs(
        onset, np.full((30, 2), 0.25, dtype=np.float32), np.full(30, 0.75, dtype=np.float32), np.zeros(30, dtype=np.float32)
    )
    hits = decode_outputs(model(), outputs, lowest=0.5)
    assert hits.labels == ["hihat_closed", "kick"] and hits.onset_s.tolist() == [0.1, 0.2]
    assert hits.openness[0] == 0.75 and np.isnan(hits.openness[1]) and hits.velocity.tolist() == [0.25, 0.25]
    assert hits.score == pytest.approx(to_probabilities(np.array([2.0, 3.0], dtype=np.float32), 1.0))
    assert hits.above(0.9).labels == ["kick"]


def test_temperature_changes_scores_not_peaks() -> None:
    """Dividing logits keeps their order, so calibration moves no hit."""
    onset = np.random.default_rng(1).normal(0, 2, (100, 2)).astype(np.float32)
    outputs = FrameOutputs(onset, onset * 0, onset[:, 0] * 0, onset[:, 0])
    sharp, soft = (decode_outputs(model(temperature=t), outputs, lowest=0.0) for t in (0.5, 2.0))
    assert np.array_equal(sharp.onset_s, soft.onset_s) and not np.array_equal(sharp.score, soft.score)


def test_audio_and_its_features_give_the_same_hits() -> None:
    """Served equals judged: transcribing audio is transcribing its features with the same function."""
    samples = np.random.default_rng(2).normal(0, 0.1, 44_100).astype(np.float32)
    m = model(threshold=0.01)
    heard, judged = transcribe_audio(m, samples, 44_100), transcribe_features(m, m.definition.compute(samples).astype(np.float16))
    assert np.array_equal(heard.onset_s, judged.onset_s) and np.array_equal(heard.score, judged.score)


def test_audio_at_another_rate_is_refused() -> None:
    """Exit code 2: resampling is the reader's business, never a silent guess."""
    with pytest.raises(ConfigError) as caught:
        transcribe_audio(model(), np.zeros(100, dtype=np.float32), 48_000)
    assert caught.value.code == "wrong-rate"


def test_silence_has_no_hits() -> None:
    """An untrained network starts where most frames are silent."""
    assert len(transcribe_audio(model(), np.zeros(44_100, dtype=np.float32), 44_100).onset_s) == 0


def test_scores_around_an_instant() -> None:
    """The largest within 30 ms on both sides; frames outside the recording count as given."""
    values = np.zeros((20, 1), dtype=np.float32)
    values[13, 0] = 0.8
    found = scores_around(values, np.array([0.10, 0.09, 5.0]), 100.0)
    assert found[:, 0].round(2).tolist() == pytest.approx([0.8, 0.0, 0.0])
    assert scores_around(values, np.array([5.0]), 100.0, outside=-1.0)[0, 0] == -1.0
