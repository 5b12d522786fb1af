"""`beatsight demo --examples`: every file is read by the module that owns its form, and the files of the seeds have these forms too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from beatsight_assets import audio, cli, events
from beatsight_assets.bsm import read_bsm
from beatsight_assets.errors import ConfigError
from beatsight_assets.health import report
from beatsight_assets.manifest.openness import read_curves
from beatsight_assets.readiness.rows import read_samples
from beatsight_assets.readiness.run import judge_files
from beatsight_assets.render.examples import CLASSES, N_SAMPLES, STROKES, examples, write_examples
from beatsight_assets.settings import Settings
from beatsight_assets.sources import Recording, beatmap
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.transcribe.labels import read_labels, read_midi
from beatsight_assets.transcribe.score import score

TAXONOMY = Taxonomy.shipped()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All examples, written once."""
    root = tmp_path_factory.mktemp("examples")
    write_examples(root)
    return root


def test_equal_bytes_each_time_and_nothing_else(folder: Path) -> None:
    """The files are a function of the code: no clock, no order, no leftovers."""
    written = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert written == examples() and sum(map(len, written.values())) < 3_000_000


@pytest.mark.parametrize("gate", ["boundary", "openset", "bootstrap", "calibration"])
def test_truth_and_predictions_run_through_their_gate(settings: Settings, folder: Path, gate: str) -> None:
    """Each pair is judged green by the limits of the demo."""
    truth = folder / f"{gate}_{'labels' if gate == 'boundary' else 'ground_truth'}_example.jsonl"
    verdict = judge_files(settings, gate, truth, folder / f"{gate}_predictions_example.jsonl", first_release=True)
    assert verdict.passed, [r for r in verdict.rules if not r.passed]
    assert read_samples(truth).height == N_SAMPLES


def test_events_are_valid_and_old_rows_are_upgraded(folder: Path) -> None:
    """The manifest breaks no rule and recomputes its ids; rows of the older tools become the same labels."""
    frame, old = events.read_events(folder / "events_example.jsonl"), events.read_events(folder / "events_legacy_example.jsonl")
    counts, _ = events.find_violations(frame, TAXONOMY)
    assert not any(counts.values()) and frame.height == old.height == len(STROKES)
    ids = [events.event_id(s, n, round(t * 1e6)) for s, n, t in frame.select("source_set", "session_id", "onset_time").iter_rows()]
    assert frame["event_id"].to_list() == ids
    assert events.label_counts(frame) == events.label_counts(old)
    assert events.hits_of(frame)["openness"].drop_nulls().n_unique() == 2, "closed and partly open hats"


def test_beatmap_midi_and_labels_say_the_same(folder: Path) -> None:
    """Three forms of one performance agree stroke by stroke, and the map fits its audio."""
    played = read_midi((folder / "performance_example.mid").read_bytes(), TAXONOMY)
    mapped = read_bsm((folder / "beatmap_example.bsm").read_bytes(), TAXONOMY).hits
    marked = read_labels((folder / "labels_example.txt").read_bytes(), TAXONOMY)
    assert [h[:2] for h in played] == [h[:2] for h in mapped] == [h[:2] for h in marked]
    (recording,) = beatmap.scan(folder, {})
    assert isinstance(recording, Recording) and recording.session.audio_path == "sessions/session_001/snare_top.wav"
    assert not hasattr(beatmap.read(folder, recording, TAXONOMY, {}), "code"), "hash and hits are accepted"
    result = score(folder / "beatmap_example.bsm", folder / "labels_example.txt", TAXONOMY)
    assert result.n_reference == result.n_estimate == len(STROKES)


def test_the_session_manifest_names_microphones_that_are_there(folder: Path) -> None:
    """Four microphones with names, roles and files below the manifest's folder; the anchor is one of them."""
    found = json.loads((folder / "session_manifest_example.json").read_bytes())
    assert found["anchor"] in {m["name"] for m in found["mics"]} and len({m["name"] for m in found["mics"]}) == 4
    for mic in found["mics"]:
        assert mic["role"] in ("close", "overhead", "room", "trigger", "aligned")
        assert audio.probe(folder / mic["path"]).duration_s == pytest.approx(0.4 * (len(STROKES) + 2))


def test_tables_are_read(folder: Path) -> None:
    """Durations, components and pedal curves have the form that their commands read."""
    assert report.read_durations(folder / "metadata_health_example.json")["split_durations_seconds"] == {"train": 1800.0, "val": 600.0}
    assert report.read_components(folder / "components_example.json") == CLASSES
    assert list(read_curves(folder / "openness_curves_example.json")) == ["Roland/TD-11"]


def test_mined_candidates_have_truth(folder: Path) -> None:
    """Every predicted candidate has its event row, and one in twenty says another label."""
    truth, said = (read_samples(folder / f"hard_negative_{name}_example.jsonl") for name in ("events", "predictions"))
    assert truth["sample_id"].to_list() == said["sample_id"].to_list()
    best = [max(scores, key=lambda s: s["p"])["label"] for scores in said["scores"].to_list()]
    assert sum([b] != labels for b, labels in zip(best, truth["labels"].to_list(), strict=True)) == N_SAMPLES // 20


@pytest.mark.data
def test_golden_example_rows_of_the_seeds(shared_data: Path) -> None:
    """The example rows of the older tools that no gate test reads are read too, and the forms written here have their keys."""
    seeds = shared_data / "beatsight_formats/ai-pipeline/training/examples"
    assert read_samples(seeds / "hard_negative_events_example.jsonl")["labels"].to_list() == [["kick"]]
    assert read_samples(seeds / "hard_negative_predictions_example.jsonl").height == 2
    assert events.read_events(seeds / "events_health_example.jsonl").height == 5
    theirs, ours = (
        json.loads((seeds / "session_manifest_example.json").read_bytes()),
        json.loads(examples()["session_manifest_example.json"]),
    )
    assert set(theirs["mics"][0]) <= set(ours["mics"][0]) and {m["name"] for m in theirs["mics"]} == {m["name"] for m in ours["mics"]}
    for name in sorted(p.name for p in seeds.glob("*.jsonl") if "events_health" not in p.name):
        known, made = (set(json.loads(text.splitlines()[0])) for text in ((seeds / name).read_bytes(), examples()[name]))
        assert known - made <= {"openness", "openness_pred"}, f"{name}: hats alone have an openness here"


def test_the_command_writes_the_folder_and_never_into_the_data(settings: Settings, tmp_path: Path) -> None:
    """`demo --examples DIR` lists what it wrote and makes no demo; a folder among the data is refused."""
    words = ["--data-root", str(settings.layout.root), "demo", "--json", "--examples"]
    result = CliRunner().invoke(cli.build(), [*words, str(tmp_path / "here")], standalone_mode=False, catch_exceptions=False)
    assert {f["path"] for f in json.loads(result.stdout)["files"]} == set(examples())
    assert not list(settings.layout.root.iterdir())
    with pytest.raises(ConfigError, match="would-overwrite"):
        CliRunner().invoke(cli.build(), [*words, str(settings.layout.raw("x"))], standalone_mode=False, catch_exceptions=False)
