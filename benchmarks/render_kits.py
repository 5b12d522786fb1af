"""Groove takes rendered on sampled kits: seconds of audio for each CPU second of one core, against a sampler loop that decodes per hit."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.harness import Result, cpu_seconds, growth, shared_data

GOAL = 100.0
MAX_ERROR_MS = 3.0  # design ruling 14
MINUTES = 32.0
BASELINE_MINUTES = 1.0


def _minutes_of(seconds_budget: float, kits_folder: str = "oneshots") -> tuple[float, float, dict[str, float | int]]:
    """(seconds of audio, CPU seconds, figures of the onset check) of rendering that much Groove on the kits of a folder: MIDI in, MIDI
    and wav on disk, kits loaded anew."""
    from beatsight_assets.render import groove, sampled, stage
    from beatsight_assets.settings import DataLayout, Settings
    from beatsight_assets.stages import silent

    data = shared_data()
    assert data is not None
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(layout=DataLayout(Path(folder)), profile="dev")
        root, target = data / "groove_midi", settings.layout.raw("groove_rendered")
        figures: dict[str, float | int] = {}

        def work() -> None:
            sampled.read_shot.cache_clear()
            kits = stage.sampled_kits(settings, data / kits_folder, silent)
            of_groove = settings.datasets["groove_mididataset"].options
            jobs = groove.plan(root, of_groove, minutes=seconds_budget / 60, n_kits=5, renders=1, seed=7, kits_from=kits)
            made, _ = groove.write(root, target, jobs, store=settings.store, taxonomy_path=settings.config_path("taxonomy"), options=of_groove,
                                   seed=7, n_workers=1, progress=silent, kit_options=kits.options)  # fmt: skip
            figures.update(made)

        spent = cpu_seconds(work)
        return figures["minutes"] * 60, spent, dict(stage.matches_midi(settings, target, seed=0).figures)


def _baseline(seconds_budget: float) -> tuple[float, float]:
    """What people write: for each note decode the layer's wav, scale it, add it; then write the file. No room, no chokes."""
    import mido
    import numpy as np
    import soundfile

    data = shared_data()
    assert data is not None
    kit = data / "oneshots/avl-drumkits-1.1"
    by_key = {int(p.name[:2]): p.name[:-6] for p in sorted(kit.glob("*-1.wav"))}
    done = 0.0

    def work() -> None:
        nonlocal done
        for path in sorted((data / "groove_midi").rglob("*.mid"))[::37]:
            if done >= seconds_budget:
                break
            file = mido.MidiFile(path)
            now, hits = 0.0, []
            for message in file:
                now += message.time
                if message.type == "note_on" and message.velocity > 0 and message.note in by_key:
                    hits.append((now, message.note, message.velocity))
            if not hits:
                continue
            out = np.zeros(int((hits[-1][0] + 13) * 44_100))
            for at, note, velocity in hits:
                samples, _ = soundfile.read(kit / f"{by_key[note]}-{min(5, velocity // 26 + 1)}.wav")
                begin = int(at * 44_100)
                out[begin : begin + len(samples)] += samples * velocity / 127
            with tempfile.NamedTemporaryFile(suffix=".wav") as target:
                soundfile.write(target.name, out / np.abs(out).max(), 44_100)
            done += hits[-1][0] + 1.5

    spent = cpu_seconds(work)
    return done, spent


def run() -> list[Result]:
    """Seconds of audio per CPU second, and the worst onset error of 200 keyed hits on each folder of kits; a tenth gives the growth."""
    if shared_data() is None:
        return []
    seconds, spent, onsets = _minutes_of(MINUTES * 60)
    base_seconds, base_spent = _baseline(BASELINE_MINUTES * 60)
    small_seconds, small_spent, _ = _minutes_of(MINUTES * 6)
    multimic = _minutes_of(MINUTES * 30, "oneshots_multimic")[2]
    ours, theirs = seconds / spent, base_seconds / base_spent
    worst_ms = max(onsets["worst_onset_error_ms"], multimic["worst_onset_error_ms"])
    return [
        Result("render sampled kits", "s of audio", seconds, ours, "decode per hit, no room", theirs, ours / theirs,
               growth(small_seconds, small_spent, seconds, spent), f">= {GOAL:.0f} s, worst {worst_ms:.2f} <= {MAX_ERROR_MS:g} ms", ours >= GOAL and worst_ms <= MAX_ERROR_MS,
               {"input": "Groove MIDI on 5 AVL kits and 2 drum machines", "minutes": round(seconds / 60, 1), "onsets": onsets,
                "onsets_muldjord": multimic})
    ]  # fmt: skip
