"""P8 for whole recordings: log-filterbank frames against librosa's mel spectrogram of the same size, one thread."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Result, alternate, growth, median

SECONDS = 120


def run() -> list[Result]:
    """Seconds of audio per CPU second."""
    import librosa

    from beatsight_assets.features.definitions import definition

    feature = definition("frames/1")
    samples = np.random.default_rng(0).normal(0, 0.1, 44_100 * SECONDS).astype(np.float32)
    n_bands = feature.compute(samples[:44_100]).shape[1]

    def ours() -> None:
        feature.compute(samples)

    def baseline() -> None:
        librosa.power_to_db(librosa.feature.melspectrogram(y=samples, sr=44_100, n_fft=2048, hop_length=441, n_mels=n_bands))

    ours()
    baseline()
    a, b = alternate(ours, baseline)
    small = median(lambda: feature.compute(samples[: len(samples) // 10]))
    return [
        Result("P8 frame features", "s of audio", SECONDS, SECONDS / a, "librosa melspectrogram", SECONDS / b, b / a, growth(SECONDS / 10, small, SECONDS, a),
               "real-time factor <= 0.0021", a / SECONDS <= 0.0021, {"real_time_factor": a / SECONDS})
    ]  # fmt: skip
