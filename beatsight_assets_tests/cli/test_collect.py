"""`beatsight collect`: samples are kept once, by audio, and become events; what cannot be a sample is refused with its exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import polars as pl
import pytest
from click.testing import CliRunner

from beatsight_assets import cli, events
from beatsight_assets.bundle.read import open_bundle
from beatsight_assets.errors import BeatSightError, GateFailed, InputError
from beatsight_assets.features.cache import find_recordings
from beatsight_assets.manifest import annotate, merge, splits
from beatsight_assets.settings import Settings
from beatsight_assets.sources import beatmap, collected, ingest
from beatsight_assets_tests.sources.test_beatmap import SONG, STEM, document, put, sound

DIGEST = sha256(SONG).hexdigest()
SAMPLES = f"samples/{DIGEST}.json"


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "my song.WAV"
    path.write_bytes(SONG)
    return path


def run(settings: Settings, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a command; an error that is ours gives its exit code."""
    words = ["--data-root", str(settings.layout.root), "--profile", "demo", *map(str, arguments), "--json", "--quiet"]
    try:
        result = CliRunner().invoke(cli.build(), words, standalone_mode=False, catch_exceptions=False)
    except (BeatSightError, click.UsageError) as error:
        return error.exit_code, {}
    return int(result.return_value or 0), json.loads(result.stdout)


def table(settings: Settings) -> pl.DataFrame:
    return events.read_events(settings.layout.events("beatsight_collected"))


def test_a_marked_hit_is_an_event_of_its_audio(settings: Settings, song: Path) -> None:
    """An alias becomes its component, the group is the audio, the audio is kept by its digest, the same instant twice changes nothing."""
    code, first = run(settings, "collect", "add", song, "1.2500005", "bass_drum")
    assert (code, first["files"][0]["n_added"], first["files"][0]["session_id"]) == (0, 1, SAMPLES)
    before = {p: p.stat().st_mtime_ns for p in settings.layout.raw("beatsight_collected").rglob("*") if p.suffix in (".json", ".wav")}
    code, again = run(settings, "collect", "add", song, "1.2500005", "kick")
    assert (code, again["files"][0]["n_added"], again["files"][0]["n_known"]) == (0, 0, 1)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    run(settings, "collect", "add", song, "2", "tom")
    frame = table(settings)
    assert frame.select("session_id", "group_id", "audio_path", "mix_context").unique().rows() == [
        (SAMPLES, f"audio:{DIGEST}", f"audio/{DIGEST}.wav", "unknown")
    ]
    found = [(t, c[0]["label"], c[0]["instrument_variant"]) for t, c in frame.select("onset_time", "components").iter_rows()]
    assert found == [(1.250001, "kick", None), (2.0, "tom_mid", "unspecified")]
    assert [json.loads(e) for e in frame["extras"]] == [{"confidence": 0.95, "label_source": "human", "partial": True}] * 2


@pytest.mark.parametrize(
    ("time", "label", "code"),
    [
        pytest.param("3.0", "kick", 2, id="time at the end of the audio"),
        pytest.param("-1", "kick", 2, id="negative time"),
        pytest.param("1e3", "kick", 2, id="no plain number"),
        pytest.param("1.0", "gong", 2, id="unknown label"),
    ],
)
def test_what_cannot_be_a_sample_is_refused_and_nothing_is_written(
    settings: Settings, song: Path, time: str, label: str, code: int
) -> None:
    """Wrong times and labels are exit 2 and leave no file."""
    assert run(settings, "collect", "add", song, time, label)[0] == code
    assert not settings.layout.raw("beatsight_collected").exists()


def test_an_unreadable_audio_is_exit_3_and_a_dry_run_writes_nothing(settings: Settings, tmp_path: Path, song: Path) -> None:
    """What does not decode is no audio; --dry-run checks all of it."""
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    assert run(settings, "collect", "add", tmp_path / "x.wav", "1", "kick")[0] == 3
    code, payload = run(settings, "collect", "add", song, "1", "kick", "--dry-run")
    assert (code, payload["files"][0]["n_added"], payload["dry_run"]) == (0, 1, True)
    assert not settings.layout.raw("beatsight_collected").exists()


def test_a_beatmap_is_taken_over_once(settings: Settings, tmp_path: Path) -> None:
    """Hits inside the audio are added with the map's velocity; those outside and unknown ones are counted; a second run adds 0."""
    hits = [{"time": 0, "component": "kick", "velocity": 0.5}, {"time": 0, "component": "ride"}, {"time": 2999, "component": "gong"},
            {"time": 3000, "component": "kick"}, {"time": 9000, "component": "snare"}]  # fmt: skip
    path = put(tmp_path, obj=document(hitObjects=hits))
    code, payload = run(settings, "collect", "from-beatmap", path)
    found = payload["files"][0]
    assert code == 0 and {k: found[k] for k in ("n_added", "n_known", "n_outside", "n_unknown", "warnings")} == {
        "n_added": 2, "n_known": 0, "n_outside": 2, "n_unknown": 1, "warnings": [],
    }  # fmt: skip
    code, payload = run(settings, "collect", "from-beatmap", path)
    assert (code, payload["files"][0]["n_added"], payload["files"][0]["n_known"]) == (0, 0, 2)
    frame = table(settings)
    assert [(c["label"], c["velocity"]) for c in frame["components"][0].to_list()] == [("kick", 0.5), ("ride_bow", None)]
    assert json.loads(frame["extras"][0]) == {"confidence": 0.9, "label_source": "beatmap"} and frame["mix_context"][0] == "full_mix"


def test_a_stem_beside_the_map_is_its_audio_and_a_given_audio_wins(settings: Settings, tmp_path: Path) -> None:
    """The drum stem is taken when it is there, in any case; AUDIO behind the map or --audio replaces it; --audio goes with one map only."""
    path = put(tmp_path, obj=document(drumStem="stem.wav"))
    (path.parent / "Stem.WAV").write_bytes(STEM)
    _, payload = run(settings, "collect", "from-beatmap", path, "--dry-run")
    assert payload["files"][0]["session_id"] == f"samples/{sha256(STEM).hexdigest()}.json"
    for more in ((path.parent / "song.wav",), ("--audio", path.parent / "song.wav")):
        _, payload = run(settings, "collect", "from-beatmap", path, *more, "--dry-run")
        assert payload["files"][0]["session_id"] == SAMPLES
    assert run(settings, "collect", "from-beatmap", path, path, "--audio", path.parent / "song.wav")[0] == 2
    assert run(settings, "collect", "from-beatmap", path.parent / "song.wav")[0] == 2


def test_another_audio_is_a_warning_and_with_strict_hash_an_error(settings: Settings, tmp_path: Path) -> None:
    """A wrong digest or length is said; --strict-hash adds nothing and exits 1."""
    path = put(tmp_path, obj=document(duration=4_000), song=STEM)
    code, payload = run(settings, "collect", "from-beatmap", path)
    assert code == 0 and len(payload["files"][0]["warnings"]) == 2 and payload["files"][0]["n_added"] == 3
    with pytest.raises(GateFailed) as failure:
        collected.add_beatmap(settings, path, strict_hash=True)
    assert (failure.value.code, failure.value.exit_code) == ("hash-mismatch", 1)


def test_a_map_that_names_audio_outside_its_folder_reads_nothing(settings: Settings, tmp_path: Path) -> None:
    """A stranger's map cannot make us copy a file from elsewhere."""
    (tmp_path / "secret.wav").write_bytes(SONG)
    path = put(tmp_path, obj=document(filename="../secret.wav"), song=None)
    with pytest.raises(InputError) as failure:
        collected.add_beatmap(settings, path)
    assert failure.value.code == "path-escape"


def test_a_map_that_is_a_source_already_adds_nothing(settings: Settings, tmp_path: Path) -> None:
    """The same labels are not learnt twice: audio that source beatmap has is said and skipped."""
    put(settings.layout.raw("beatmaps"))
    ingest(settings, "beatmap")
    code, payload = run(settings, "collect", "from-beatmap", put(tmp_path))
    assert code == 0 and payload["files"][0]["n_added"] == 0 and "already there" in payload["files"][0]["warnings"][0]
    assert not settings.layout.raw("beatsight_collected").exists()


def test_samples_and_beatmap_of_one_song_share_a_group(settings: Settings, song: Path) -> None:
    """A hit marked in a song and a map of that song have the same key, so they are in one split."""
    put(settings.layout.raw("beatmaps"), obj=document(hitObjects=[{"time": 10, "component": "kick"}]))
    ingest(settings, "beatmap")
    run(settings, "collect", "add", song, "1", "snare")
    merge.run(settings)
    annotate.run(settings)
    splits.run(settings)
    found = pl.read_parquet(settings.layout.splits)
    assert found.select("group_id", "sessions").rows() == [(f"audio:{DIGEST}", 2)]
    kept = find_recordings(settings)["source_set"].to_list()
    assert kept == ["beatmap"], "where only some hits are marked, what lies between them is no negative"


@pytest.mark.parametrize(("wanted", "kept"), [(False, []), (True, ["beatmap"])])
def test_machine_made_maps_train_nobody_unless_asked(settings: Settings, wanted: bool, kept: list[str]) -> None:
    """Recordings for training and evaluation leave out what a model heard, unless include_generated says otherwise."""
    put(settings.layout.raw("beatmaps"), obj=document(editor={"aiGenerationMetadata": {"manualEdits": False}}, hitObjects=HITS))
    config = settings.datasets["beatmap"].model_copy(update={"options": {"include_generated": wanted}})
    settings.__dict__["datasets"] = settings.datasets | {"beatmap": config}
    ingest(settings, "beatmap")
    merge.run(settings)
    annotate.run(settings)
    splits.run(settings)
    assert find_recordings(settings)["source_set"].to_list() == kept


HITS = [{"time": 10, "component": "kick"}]


def test_one_file_of_a_machine_made_map_marks_the_whole_session(settings: Settings, tmp_path: Path, song: Path) -> None:
    """The least certain hit decides: samples of a machine's map carry its confidence and its mark."""
    run(settings, "collect", "add", song, "1", "snare")
    path = put(tmp_path, obj=document(editor={"aiGenerationMetadata": {"manualEdits": False}}, hitObjects=HITS))
    run(settings, "collect", "from-beatmap", path)
    assert set(table(settings)["extras"]) == {'{"confidence":0.5,"label_source":"beatmap","machine_made":true}'}


def test_stats_name_what_is_missing(settings: Settings, song: Path) -> None:
    """Count, minimum and recommended number per component; exit 1 while a minimum is missed."""
    for n in range(3):
        collected.add(settings, song, n * 100_000, "kick")
    code, payload = run(settings, "collect", "stats")
    rows: dict[str, Mapping[str, Any]] = {r["label"]: r for r in payload["components"]}
    assert code == 1 and payload["below_minimum"] == len(rows) == 23
    assert rows["kick"] == {"label": "kick", "count": 3, "minimum": 100, "recommended": 500, "missing": 97}
    expected = {"kick": (100, 500), "snare": (100, 500), "hihat_closed": (150, 750), "hihat_open": (50, 250), "crash": (75, 300),
                "ride_bow": (75, 300), "tom_high": (50, 200), "tom_mid": (50, 200), "tom_low": (50, 200)}  # fmt: skip
    assert {label: (r["minimum"], r["recommended"]) for label, r in rows.items()} == dict.fromkeys(rows, (100, 100)) | expected


def test_stats_are_green_when_every_minimum_is_there(settings: Settings, song: Path) -> None:
    """Enough of everything is exit 0."""
    root = settings.layout.raw("beatsight_collected")
    labels = [row.label for row in collected.stats(settings) for _ in range(row.minimum)]
    hits = [{"onset_us": i * 10, "label": label, "source": "human", "confidence": 0.95} for i, label in enumerate(labels)]
    (root / "samples").mkdir(parents=True)
    (root / SAMPLES).write_text(json.dumps({"audio": f"audio/{DIGEST}.wav", "mix_context": "unknown", "hits": hits}))
    assert run(settings, "collect", "stats")[0] == 0


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"{", "bad-metadata", id="no JSON"),
        pytest.param(b'{"audio": "../x.wav", "mix_context": "unknown", "hits": []}', "path-escape", id="audio outside"),
        pytest.param(b'{"audio": "x.wav", "mix_context": "loud", "hits": []}', "bad-metadata", id="unknown context"),
        pytest.param(b'{"audio": "x.wav", "mix_context": "unknown", "hits": [{"onset_us": 1.5}]}', "bad-metadata", id="half a microsecond"),
        pytest.param(b'{"audio": "x.wav", "mix_context": "unknown", "hits": []}', "no-events", id="no hits"),
        pytest.param(
            b'{"audio": "audio/%s.wav", "mix_context": "unknown", "hits": [{"onset_us": 1, "label": "kick", "source": "human", "confidence": 1}]}'
            % DIGEST.encode(),
            "hash-mismatch",
            id="another audio",
        ),
    ],
)
def test_a_damaged_file_of_samples_is_one_row(settings: Settings, song: Path, content: bytes, code: str) -> None:
    """Samples edited by hand are refused by code, the others are read."""
    collected.add(settings, song, 1_000, "kick")
    root = settings.layout.raw("beatsight_collected")
    (root / "samples/0.json").write_bytes(content)
    report = ingest(settings, "collected")
    refused = pl.read_parquet(settings.layout.quarantine("beatsight_collected"))
    assert refused.select("path", "code").rows() == [("samples/0.json", code)] and report.figures["recordings"] == 1


@pytest.mark.data
def test_golden_example(settings: Settings, shared_data: Path) -> None:
    """56 of 56 hits of simple_beat.bsm are accepted, a second run adds 0, and source beatmap gives the same events."""
    path = shared_data / "beatsight_formats/shared/formats/simple_beat.bsm"
    code, payload = run(settings, "collect", "from-beatmap", path)
    assert (code, payload["files"][0]["n_added"], payload["files"][0]["warnings"]) == (0, 56, [])
    assert run(settings, "collect", "from-beatmap", path)[1]["files"][0]["n_added"] == 0
    frame = table(settings)
    (recording,) = beatmap.scan(path.parent, {})
    assert (frame.height, frame["group_id"][0]) == (34, recording.session.group_id)  # type: ignore[union-attr]


def test_collected_hits_become_a_bundle_of_wav_files(settings: Settings, tmp_path: Path) -> None:
    """One wav per collected hit, all hits of one audio in one split; nothing collected is exit 3, a bundle that is there exit 2."""
    assert run(settings, "collect", "export", "mine")[0] == 3
    for n in range(12):
        path = tmp_path / f"{n}.wav"
        path.write_bytes(sound(0.05 + 0.01 * n))
        for t in (0.5, 1.0):
            collected.add(settings, path, round(t * 1e6), "kick")
    ingest(settings, "collected")
    code, report = run(settings, "collect", "export", "mine")
    folder = settings.layout.at("bundles/mine")
    clips = open_bundle(folder).table(["group_id", "split", "file", "label"])
    assert (code, report["figures"]["written_clips"], clips["label"].unique().to_list()) == (0, 24, ["kick"])
    assert all((folder / split / file).is_file() for split, file in clips.select("split", "file").iter_rows())
    assert clips.group_by("group_id").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 12 and clips["split"].n_unique() > 1
    assert run(settings, "collect", "export", "mine")[0] == 2
    code, report = run(settings, "collect", "export", "mine", "--resume")
    assert (code, report["figures"]["run_written_clips"], report["figures"]["run_reused_clips"]) == (0, 0, 24)
    assert run(settings, "collect", "export", "mine", "--resume", "--overwrite")[0] == 2
