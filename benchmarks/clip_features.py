"""P8: log-mel of clips against librosa and torchaudio, clip by clip, as people write it; one thread, the largest difference beside it."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Result, cpu_seconds, growth, median

CLIPS = 4_000
BASELINE_CLIPS = 150
ROUNDS = 5
MEL = {"n_fft": 2048, "hop_length": 512, "n_mels": 128}


def run() -> list[Result]:
    """Clips per CPU second."""
    import statistics

    import librosa
    import torch

    from beatsight_assets.features.definitions import clip_definition
    from beatsight_assets.features.torchaudio_parts import torchaudio

    torch.set_num_threads(1)
    feature = clip_definition()
    clips = np.random.default_rng(0).normal(0, 3_000, (CLIPS, feature.n_samples)).astype(np.int16)
    floats = clips[:BASELINE_CLIPS].astype(np.float32) / 32_768

    def with_librosa() -> list[np.ndarray]:
        mels = (librosa.feature.melspectrogram(y=c, sr=44_100, fmin=30.0, fmax=16_000.0, pad_mode="constant", **MEL) for c in floats)
        return [10.0 * np.log10(np.maximum(m, 1e-10)) for m in mels]

    baselines = {"librosa per clip": with_librosa}
    if library := torchaudio():
        mel = library.transforms.MelSpectrogram(
            44_100, f_min=30.0, f_max=16_000.0, norm="slaney", mel_scale="slaney", pad_mode="constant", **MEL
        )
        baselines["torchaudio per clip"] = lambda: [10.0 * torch.log10(mel(torch.from_numpy(c)).clamp(min=1e-10)).numpy() for c in floats]
    expected = feature.compute(clips[:BASELINE_CLIPS])
    worst = {name: float(np.abs(expected - np.stack(work())).max()) for name, work in baselines.items()}
    times: dict[str, list[float]] = {name: [] for name in ("ours", *baselines)}
    for _ in range(ROUNDS):
        times["ours"].append(cpu_seconds(lambda: feature.compute(clips)))
        for name, work in baselines.items():
            times[name].append(cpu_seconds(work))
    ours = statistics.median(times["ours"])
    small = median(lambda: feature.compute(clips[: CLIPS // 10]), rounds=ROUNDS)
    results = []
    for name in baselines:
        rate = BASELINE_CLIPS / statistics.median(times[name])
        ratio = CLIPS / ours / rate
        goal, met = (">= 15x, <= 0.05 dB", ratio >= 15 and worst[name] <= 0.05) if name.startswith("librosa") else ("", None)
        results.append(Result("P8 clip features", "clips", CLIPS, CLIPS / ours, name, rate, ratio, growth(CLIPS / 10, small, CLIPS, ours), goal, met, {"max_difference_db": worst[name]}))  # fmt: skip
    return results
