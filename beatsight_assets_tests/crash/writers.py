"""What the sweep strikes: every stage that needs no torch, and promotion of a candidate that is a few bytes.

Each writer is a function of the data root, so that a forked child can run it. Does not belong here: the striking (`sweep`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from beatsight_assets import clock, midi, sampling, sources, testing
from beatsight_assets.features import cache
from beatsight_assets.features.definitions import definition
from beatsight_assets.health import compare
from beatsight_assets.health import report as health
from beatsight_assets.manifest import annotate, merge, splits
from beatsight_assets.model import promote as promotion
from beatsight_assets.readiness import boundary
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.stages import Outcome, Report, run_stage
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.verdict import Rule, Verdict

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PACK = boundary.PackOptions(window_ms=400.0, hop_ms=200.0, margin_ms=40.0)  # the takes are a second long
SECONDS = 1.0
for _name in ("pandas", "scipy.fft", "beatsight_assets.sources.rendered"):  # what the first call would import, once for all children
    importlib.import_module(_name)


def settings_of(root: Path) -> Settings:
    """Settings of the demo profile on a data root, one inline worker."""
    return Settings(layout=DataLayout(root), profile="demo")


def ingest(root: Path) -> Report:
    """Raw files -> events, provenance, quarantine, report."""
    return sources.ingest(settings_of(root), "demo")


def merged_manifest(root: Path) -> Report:
    return merge.run(settings_of(root))


def annotated_manifest(root: Path) -> Report:
    return annotate.run(settings_of(root))


def split_groups(root: Path) -> Report:
    return splits.run(settings_of(root))


def manifest_health(root: Path) -> Report:
    return health.run(settings_of(root))


def health_diff(root: Path) -> Report:
    return compare.run(settings_of(root))


def sampling_weights(root: Path) -> Report:
    return sampling.run(settings_of(root))


def recording_features(root: Path) -> Report:
    return cache.run(settings_of(root))


def boundary_pack(root: Path) -> Report:
    return boundary.run(settings_of(root), PACK)


STAGES: dict[str, Callable[[Path], Report]] = {
    f.__name__: f
    for f in (
        ingest,
        merged_manifest,
        annotated_manifest,
        split_groups,
        manifest_health,
        health_diff,
        sampling_weights,
        recording_features,
        boundary_pack,
    )
}  # in the order in which they follow each other


def due(root: Path) -> object:
    """What the file `due` names: one warm process serves every writer."""
    name = (root / "due").read_text()
    return promote(root) if name == "promote" else STAGES[name](root)


def make_data(root: Path) -> None:
    """Three takes and limits that they keep."""
    settings = settings_of(root)
    testing.tiny_gates(settings)
    testing.tiny_dataset(settings, seconds=SECONDS)


def change_data(root: Path) -> None:
    """Version 2 of the raw data: one take plays more of everything and gets other audio."""
    raw = root / "raw" / "beatsight_demo"
    notes = sorted(Taxonomy.load(settings_of(root)).note_map("beatsight")) * (testing.HITS_PER_CLASS + 1)
    hits = [(40_000 + 9_000 * n, note, 100) for n, note in enumerate(notes)]
    (raw / "midi" / "take_1.mid").write_bytes(midi.write_midi(hits))
    audio = (raw / "audio" / "take_0.wav").read_bytes()
    (raw / "audio" / "take_1.wav").write_bytes(audio[:44] + bytes(200) + audio[44:-200])  # later by 100 samples


def run_to(root: Path, last: str | None = None) -> None:
    """Every stage up to and without `last`."""
    for name, stage in STAGES.items():
        if name == last:
            return
        stage(root)


def weights_of(run: str) -> bytes:
    """Weights of a fake run: nobody loads them, only their digest counts."""
    return sha256(run.encode()).digest() * 200


def judge(gate: str, *, passed: bool = True, profile: str = "demo") -> Verdict:
    """A verdict of one rule."""
    return Verdict(gate, (Rule("held", passed, float(passed), 1.0),), profile=profile)


def fake_stage(
    settings: Settings,
    stage: str,
    files: dict[str, tuple[Path, bytes]],
    parents: Sequence[tuple[str, Path]],
    verdicts: Sequence[Verdict],
    run: str,
) -> Report:
    """A stage whose work is to publish given bytes, with given verdicts."""

    def work() -> Outcome:
        for path, content in files.values():
            settings.store.publish(path, content)
        outputs = [(role, path, None) for role, (path, _) in files.items()]
        return Outcome(outputs, figures={"pooled_f1": 0.9}, facts={"run": run, "family": "frame"}, verdicts=verdicts)

    options = {"run": run, "verdicts": [v.to_json() for v in verdicts]}
    return run_stage(settings, stage, version="1", options=options, parents=parents, work=work)


def train(root: Path, run: str = "run-a", *, weights: bytes | None = None, passed: bool = True) -> Report:
    """A candidate that rests on the data at hand."""
    settings = settings_of(root)
    layout, folder = settings.layout, settings.layout.candidate(run)
    content = weights_of(run) if weights is None else weights
    parents = [
        ("manifest", layout.annotated),
        ("splits", layout.splits),
        ("feature_index", cache.index_path(settings, definition("frames/1"))),
        ("sampling_weights", layout.report("sampling", "annotated_weights.json")),
    ]
    files = {"model": (folder / "model.safetensors", content), "model_card": (folder / "model.json", f'{{"run": "{run}"}}\n'.encode())}
    return fake_stage(settings, "candidate_model", files, parents, [judge("candidate", passed=passed)], run)


def predict(root: Path, run: str = "run-a") -> Report:
    settings = settings_of(root)
    layout, folder = settings.layout, settings.layout.candidate(run)
    parents = [("model", folder / "model.safetensors"), ("manifest", layout.annotated), ("splits", layout.splits)]
    files = {"predictions_test": (layout.run_dir(run) / "predictions" / "test.bin", run.encode())}
    return fake_stage(settings, "predictions", files, parents, [], run)


def evaluate(root: Path, run: str = "run-a", *, passed: bool = True, profile: str = "demo") -> Report:
    settings = settings_of(root)
    layout, folder = settings.layout, settings.layout.candidate(run)
    parents = [("model", folder / "model.safetensors"), ("manifest", layout.annotated), ("splits", layout.splits)]
    files = {"evaluation": (layout.report("evaluation", f"{run}.json"), f'{{"run": "{run}"}}\n'.encode())}
    return fake_stage(settings, "evaluation", files, parents, [judge("evaluation", passed=passed, profile=profile)], run)


def ready(root: Path, run: str = "run-a", *, red: str | None = None, without: str | None = None) -> Report:
    settings = settings_of(root)
    layout, folder = settings.layout, settings.layout.candidate(run)
    parents = [("weights", folder / "model.safetensors"), ("predictions_test", layout.run_dir(run) / "predictions" / "test.bin")]
    files = {"readiness": (layout.report("readiness", run) / "readiness.json", f'{{"run": "{run}"}}\n'.encode())}
    verdicts = [judge(gate, passed=gate != red) for gate in settings.gates.required if gate != without]
    return fake_stage(settings, "readiness", files, parents, verdicts, run)


def make_candidate(root: Path, run: str = "run-a") -> None:
    """A trained, predicted and judged candidate, everything green."""
    train(root, run)
    predict(root, run)
    evaluate(root, run)
    ready(root, run)


def promote(root: Path) -> Report:
    """Promotion at a moment that does not pass: what two runs write can be compared."""
    clock.utc_now = lambda: NOW  # this process ends with the call
    return promotion.run(settings_of(root))
