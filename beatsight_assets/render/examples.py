"""One small valid file of every form that the platform reads: to look at, to copy from, to try a command on.

Belongs here: what these files hold. Does not belong here: datasets to train on (`demo`), reading any of them (the modules that own the forms).
One made session stands behind most of them: 24 strokes heard by four microphones, its events, its beatmap, its labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets import events, midi, store
from beatsight_assets.audio import write_wav
from beatsight_assets.sources.performance import read_performance
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import rng_for

RATE_HZ = 22_050
SOURCE_SET, SESSION, GROUP = "beatsight_examples", "session_001/performance.mid", "example:session_001"
GAP_S = 0.4  # between strokes; they ring out inside it
STROKES = (36, 42, 38, 46, 36, 44, 38, 51) * 3  # notes of map `beatsight`: 24 strokes, enough for the 20 hits that alignment asks for
DELAY_S = {"snare_top": 0.0, "kick_in": 0.001, "overhead_l": 0.0024, "overhead_r": 0.0027}  # as heard in a real kit
ROLES = {"snare_top": "close", "kick_in": "close", "overhead_l": "overhead", "overhead_r": "overhead"}
N_SAMPLES = 160  # rows of each prediction file: 80 of either split, 4 classes
CLASSES = ("kick", "snare", "hihat_closed", "ride_bow")
WRONG_EVERY = 20  # one answer in 20 is wrong, so that 0.95 is a calibrated score
SURE, UNSURE = 0.95, 0.05


def write_examples(folder: Path) -> list[store.Receipt]:
    """Write every example below a folder, replacing files of the same name; equal bytes each time.

    Raises
    ------
    StoreError : the disk refuses
    """
    keep = store.Store(folder, remember=False)
    return [keep.publish(folder / name, content) for name, content in sorted(examples().items())]


def examples() -> dict[str, bytes]:
    """Content of every example by its path below the folder."""
    notes = [(round(GAP_S * 1e6) * (i + 1), note, 60 + 5 * (i % 9)) for i, note in enumerate(STROKES)]
    performance = midi.write_midi(notes, pedal=[(0, 90), (round(3.9 * GAP_S * 1e6), 18), (round(4.5 * GAP_S * 1e6), 90)])
    sounds = {name: write_wav(_heard(name, notes), RATE_HZ) for name in DELAY_S}
    found = {f"sessions/session_001/{name}.wav": sound for name, sound in sounds.items()}
    found |= _session(performance, sounds["snare_top"])
    return found | _predictions() | _tables()


def _session(performance: bytes, sound: bytes) -> dict[str, bytes]:
    """The made session as manifest, events, MIDI, beatmap and label track."""
    taxonomy = Taxonomy.shipped()
    hits = read_performance(performance, taxonomy, "beatsight").hits
    session = events.Session(
        SESSION, GROUP, "drummer_1", "kit_1", audio_path="session_001/snare_top.wav", midi_path=SESSION, split_hint="train"
    )
    frame = events.assemble(SOURCE_SET, [(session, hits)], taxonomy).frame
    names = [hits.voices[v].label for v in hits.voice.tolist()]
    strokes = list(zip(hits.onset_us.tolist(), names, hits.velocity.tolist(), strict=True))
    mics = [{"name": name, "path": f"sessions/session_001/{name}.wav", "role": role} for name, role in ROLES.items()]
    beatmap = {
        "version": "1.1.0",
        "metadata": {"title": "Example", "artist": "BeatSight", "creator": "BeatSight", "difficulty": 1.0, "beatmapId": "example",
                     "createdAt": "2026-01-01T00:00:00Z", "modifiedAt": "2026-01-01T00:00:00Z"},
        "audio": {"filename": "sessions/session_001/snare_top.wav", "hash": f"sha256:{sha256(sound).hexdigest()}",
                  "duration": round(1000 * _seconds()), "sampleRate": RATE_HZ},
        "timing": {"bpm": 150.0, "offset": 0, "timeSignature": "4/4", "timingPoints": [{"time": 0, "bpm": 150.0, "timeSignature": "4/4"}]},
        "drumKit": {"components": sorted(set(names), key=taxonomy.order.__getitem__)},
        "hitObjects": [{"time": onset / 1000, "component": name, "velocity": round(velocity, 4)} for onset, name, velocity in strokes],
    }  # fmt: skip
    labels = "".join(f"{onset / 1e6:.6f}\t{onset / 1e6:.6f}\t{name}\n" for onset, name, _ in strokes)
    legacy = [
        {"sample_id": f"sample_{i:04d}", "session_id": "session_001", "source_set": SOURCE_SET, "drummer_id": "drummer_1", "kit_id": "kit_1",
         "room_id": "room_1", "is_synthetic": True, "audio_path": "session_001/snare_top.wav", "onset_time": onset / 1e6,
         "components": [{"label": name, "velocity": round(velocity, 4)}], "techniques": [], "bleed_level": "low", "mix_context": "close_mic",
         "negative_example": False, "loudness": {"LUFS_i": -20.5, "peak_dbfs": -3.0}}
        for i, (onset, name, velocity) in enumerate(strokes)
    ]  # fmt: skip
    return {
        "session_manifest_example.json": store.to_json_bytes({"session_id": "session_001", "anchor": "snare_top", "mics": mics}),
        "events_example.jsonl": events.to_jsonl(frame),
        "events_legacy_example.jsonl": _lines(legacy),
        "performance_example.mid": performance,
        "beatmap_example.bsm": store.to_json_bytes(beatmap),
        "labels_example.txt": labels.encode(),
    }


def _predictions() -> dict[str, bytes]:
    """Truth and answers for every gate that judges them: one model, right 19 times in 20, and as sure as it is right."""
    rows = [(f"sample_{i:04d}", CLASSES[i % len(CLASSES)], CLASSES[(i + (i % WRONG_EVERY == 0)) % len(CLASSES)]) for i in range(N_SAMPLES)]
    scores = [{"sample_id": s, "scores": {c: SURE if c == said else UNSURE for c in CLASSES}} for s, _, said in rows]
    hats = {"hihat_closed": {"openness": 0.1}}
    measured = [{"velocity": round(0.2 + 0.6 * i / N_SAMPLES, 4), **hats.get(label, {})} for i, (_, label, _) in enumerate(rows)]
    grouped = [{"sample_id": s, "group_id": f"example:{i % 20}", "labels": [label]} for i, (s, label, _) in enumerate(rows)]
    known = [i % 4 > 0 for i in range(N_SAMPLES)]
    strange = [{"sample_id": s, "scores": dict.fromkeys(CLASSES, 0.1)} for s, _, _ in rows]
    return {
        "boundary_labels_example.jsonl": _lines([
            {"sample_id": s, "labels": [label], "edge": ("leading", "trailing")[i % 2], "window_index": i, "window_size": 2048, "hop_size": 512}
            for i, (s, label, _) in enumerate(rows)
        ]),
        "boundary_predictions_example.jsonl": _lines(scores),
        "openset_ground_truth_example.jsonl": _lines([{"sample_id": s, "is_known": k} for (s, _, _), k in zip(rows, known, strict=True)]),
        "openset_predictions_example.jsonl": _lines([a if k else b for a, b, k in zip(scores, strange, known, strict=True)]),
        "bootstrap_ground_truth_example.jsonl": _lines([g | m for g, m in zip(grouped, measured, strict=True)]),
        "bootstrap_predictions_example.jsonl": _lines([
            s | {"velocity_pred": m["velocity"]} | ({"openness_pred": m["openness"]} if "openness" in m else {})
            for s, m in zip(scores, measured, strict=True)
        ]),
        "calibration_ground_truth_example.jsonl": _lines([g | {"split": ("val", "test")[2 * i // N_SAMPLES]} for i, g in enumerate(grouped)]),
        "calibration_predictions_example.jsonl": _lines(scores),
        "hard_negative_events_example.jsonl": _lines([{"sample_id": s, "components": [{"label": label}]} for s, label, _ in rows]),
        "hard_negative_predictions_example.jsonl": _lines([
            {"sample_id": s["sample_id"], "session_id": "session_001", "audio_path": "session_001/snare_top.wav", "onset_time": i / 10,
             "predicted_labels": [said], "scores": s["scores"]}
            for i, (s, (_, _, said)) in enumerate(zip(scores, rows, strict=True))
        ]),
    }  # fmt: skip


def _tables() -> dict[str, bytes]:
    """What is given beside a manifest: durations, components, techniques, pedal curves."""
    durations = {
        "split_durations_seconds": {"train": 1_800.0, "val": 600.0},
        "run_split_durations_seconds": {"train": 120.0, "val": 45.0},
        "duration_seconds_by_source": {SOURCE_SET: 2_400.0},
        "run_duration_seconds_by_source": {SOURCE_SET: 165.0},
    }
    points = [{"raw": raw, "normalized": openness} for raw, openness in ((0, 1.0), (30, 0.7), (60, 0.3), (90, 0.0), (127, 0.0))]
    curve = {"curve_id": "example_td11", "direction": "raw_up_closes", "offset": 0.0, "breakpoints": points}
    return {
        "metadata_health_example.json": store.to_json_bytes(durations),
        "components_example.json": store.to_json_bytes({"components": list(CLASSES)}),
        "openness_curves_example.json": store.to_json_bytes({"vendors": {"Roland": {"TD-11": curve}}}),
    }


def _seconds() -> float:
    return GAP_S * (len(STROKES) + 2)


def _heard(microphone: str, notes: Sequence[tuple[int, int, int]]) -> NDArray[np.float32]:
    """What a microphone hears of the strokes: decaying noise, later by the way the sound has to go; float32 [shape=(n_samples,)]."""
    samples = np.zeros(round(_seconds() * RATE_HZ), dtype=np.float32)
    decay = np.exp(-np.arange(round(0.12 * RATE_HZ)) / (0.02 * RATE_HZ))
    for onset_us, note, velocity in notes:
        burst = rng_for(7, "example", f"{onset_us}/{note}").uniform(-1, 1, len(decay)) * decay * velocity / 160
        start = round((onset_us / 1e6 + DELAY_S[microphone]) * RATE_HZ)
        samples[start : start + len(burst)] += burst.astype(np.float32)
    return samples


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows).encode()
