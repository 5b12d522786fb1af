"""P16: audio to hits on one core, against a spectral-flux onset detector alone (librosa)."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Result, alternate, growth, median

SECONDS = 60
GOAL = 0.01


def run() -> list[Result]:
    """Seconds of audio per CPU second: features, network, peak picking; a rendered take as input."""
    import librosa
    import torch

    from beatsight_assets.features.definitions import definition
    from beatsight_assets.model import decode
    from beatsight_assets.model.learn import as_model
    from beatsight_assets.model.network import NetworkConfig, build_network
    from beatsight_assets.render import synth
    from beatsight_assets.taxonomy import Taxonomy
    from beatsight_assets.units import rng_for

    torch.set_num_threads(1)
    torch.manual_seed(0)
    feature = definition("frames/1")
    classes = Taxonomy.shipped().view("drums18").classes
    model = as_model(build_network(NetworkConfig(classes, feature.n_bands)), feature, "drums18")
    rng = rng_for(0, "bench")
    onsets = np.arange(0, SECONDS * 1_000_000, 150_000, dtype=np.int64)
    labels = rng.choice(["kick", "snare", "hihat_closed", "ride_bow", "tom_low"], len(onsets)).tolist()
    kit = synth.Kit.from_seed("bench", 1)
    nothing = np.full(len(onsets), np.nan, dtype=np.float32)
    samples = synth.render(kit, onsets, labels, np.full(len(onsets), 0.7, dtype=np.float32), nothing, seed=1, take_id="bench")[
        : SECONDS * 44_100
    ]

    def ours() -> None:
        decode.transcribe_audio(model, samples, 44_100)

    def baseline() -> None:
        librosa.onset.onset_detect(y=samples, sr=44_100, hop_length=441, units="time")

    ours()
    baseline()
    a, b = alternate(ours, baseline)
    small = median(lambda: decode.transcribe_audio(model, samples[: len(samples) // 10], 44_100))
    return [
        Result("P16 transcription", "s of audio", SECONDS, SECONDS / a, "librosa onsets only", SECONDS / b, b / a, growth(SECONDS / 10, small, SECONDS, a),
               f"real-time factor <= {GOAL}", a / SECONDS <= GOAL, {"real_time_factor": a / SECONDS})
    ]  # fmt: skip
