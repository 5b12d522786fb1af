"""Transcribing a file with a model whose weights are set by hand: it runs through the real loader, network and decoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from beatsight_assets import audio, store
from beatsight_assets.errors import BeatSightError, ConfigError, InputError, StoreError
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.transcribe import Hit
from beatsight_assets.transcribe.run import TranscribeOptions, Transcription, estimate_tempo, find_model, hear, transcribe
from beatsight_assets.transcribe.score import read_hits, score_hits
from beatsight_assets_tests.transcribe.factory import promote, save_listener, song, write_song

TAXONOMY = Taxonomy.shipped()
NOW = datetime(2026, 1, 31, tzinfo=UTC)
PLAYED = [(0.5 * i, "kick", 0.8 if i % 2 else 0.2) for i in range(1, 8)] + [(0.25 + 0.5 * i, "hihat_closed", 0.5) for i in range(7)]
TRUTH = [Hit(round(at * 1e6), label) for at, label, _ in sorted(PLAYED)]


def run(settings: Settings, source: Path, output: Path, *, formats: Sequence[str] = ("bsm",), **options: object) -> Transcription:
    return transcribe(settings, TranscribeOptions(source, output, formats=tuple(formats), **options), now=NOW)  # type: ignore[arg-type]


def test_audio_becomes_hits_and_four_files_that_agree(settings: Settings, tmp_path: Path) -> None:
    """A song is heard at its own times; every form holds what was heard, to its own precision."""
    promote(settings)
    output = tmp_path / "out" / "a song.bsm"
    found = run(settings, write_song(tmp_path / "song.wav", PLAYED), output, formats=("bsm", "midi", "audacity", "jsonl"))
    assert found.exit_code == 0 and found.model == "demo-1" and found.classifier == "frame"
    assert found.counts == {"hihat_closed": 7, "kick": 7}
    assert score_hits(TRUTH, found.heard.hits, TAXONOMY).overall("drums18", 20.0).f1 == 1.0
    assert sorted(p.name for p in output.parent.iterdir() if not p.name.startswith(".")) == [
        "a song.bsm",
        "a song.jsonl",
        "a song.mid",
        "a song.txt",
    ]
    for kind, tolerance_us in (("bsm", 500), ("midi", 261), ("audacity", 0), ("jsonl", 0)):
        read = read_hits(found.files[kind], TAXONOMY)
        assert [h.label for h in read] == [h.label for h in found.heard.hits]
        assert max(abs(r.onset_us - h.onset_us) for r, h in zip(read, found.heard.hits, strict=True)) <= tolerance_us
    beatmap = json.loads(output.read_text())
    assert beatmap["metadata"]["title"] == "song" and beatmap["audio"]["hash"] == f"sha256:{store.hash_file(tmp_path / 'song.wav')}"
    assert beatmap["audio"]["duration"] == 4_000 and beatmap["timing"]["bpm"] == 120.0
    event = json.loads(found.files["jsonl"].read_text().splitlines()[0])
    assert event["extras"]["label_source"] == "detected" and event["group_id"].startswith("audio:")


def test_equal_input_gives_equal_bytes(settings: Settings, tmp_path: Path) -> None:
    """Audio, model and time of writing determine every byte."""
    promote(settings)
    source = write_song(tmp_path / "song.wav", PLAYED)
    first = run(settings, source, tmp_path / "1" / "x.bsm", formats=("bsm", "midi", "audacity", "jsonl"))
    second = run(settings, source, tmp_path / "2" / "x.bsm", formats=("bsm", "midi", "audacity", "jsonl"))
    assert [p.read_bytes() for p in first.files.values()] == [p.read_bytes() for p in second.files.values()]


def test_velocity_is_measured(settings: Settings, tmp_path: Path) -> None:
    """A louder stroke has a larger velocity; it is never a constant."""
    promote(settings)
    found = run(settings, write_song(tmp_path / "song.wav", PLAYED), tmp_path / "x.bsm")
    kicks = [h.velocity or 0.0 for h in found.heard.hits if h.label == "kick"]
    assert min(kicks[0::2]) > max(kicks[1::2]) > 0.0


@pytest.mark.parametrize("kind", ["48 kHz stereo flac", "22.05 kHz ogg"])
def test_rates_channels_and_containers_do_not_matter(kind: str, settings: Settings, tmp_path: Path) -> None:
    """Any audio that is read gives the same hits within 10 ms; the file's own rate and length are written."""
    import soundfile

    promote(settings)
    rate_hz = 48_000 if "48" in kind else 22_050
    samples = audio.resample(song(PLAYED), 44_100, rate_hz)
    path = tmp_path / f"song.{kind.split()[-1]}"
    soundfile.write(path, np.stack([samples, samples], axis=1) if "stereo" in kind else samples, rate_hz)
    found = hear(find_model(settings), path, TAXONOMY)
    assert found.rate_hz == rate_hz and found.duration_ms == pytest.approx(4_000, abs=1)
    assert [h.label for h in found.hits] == [h.label for h in TRUTH]
    assert max(abs(a.onset_us - b.onset_us) for a, b in zip(found.hits, TRUTH, strict=True)) < 25_000


def test_nothing_detected_is_exit_1_and_the_file_is_there(settings: Settings, tmp_path: Path) -> None:
    """Silence is an honest, complete result: no hit, difficulty 0, exit code 1."""
    promote(settings)
    found = run(settings, write_song(tmp_path / "song.wav", []), tmp_path / "x.bsm", formats=("bsm", "midi", "audacity", "jsonl"))
    assert found.exit_code == 1 and found.to_json()["status"] == "nothing-detected" and any("nothing-detected" in n for n in found.notices)
    beatmap = json.loads((tmp_path / "x.bsm").read_text())
    assert beatmap["hitObjects"] == [] and beatmap["metadata"]["difficulty"] == 0.0 and beatmap["drumKit"]["components"] == []
    assert (tmp_path / "x.txt").read_bytes() == b"" and read_hits(tmp_path / "x.mid", TAXONOMY) == []


def test_confidence_raises_the_bar(settings: Settings, tmp_path: Path) -> None:
    """--confidence replaces the threshold stored with the model; outside 0..1 it is refused."""
    promote(settings)
    source = write_song(tmp_path / "song.wav", [(0.5, "kick", 0.8), (1.0, "kick", 0.004)])
    every = run(settings, source, tmp_path / "x.bsm", confidence=0.001)
    strict = run(settings, source, tmp_path / "x.bsm", confidence=0.9999)
    assert len(strict.heard.hits) < len(every.heard.hits)
    for value in (0.0, 1.5, -1.0):
        with pytest.raises(ConfigError, match="--confidence"):
            run(settings, source, tmp_path / "x.bsm", confidence=value)


def test_the_tempo_may_be_given(settings: Settings, tmp_path: Path) -> None:
    """--tempo is written as it is given and moves no hit."""
    promote(settings)
    source = write_song(tmp_path / "song.wav", PLAYED)
    found = run(settings, source, tmp_path / "x.bsm", tempo_bpm=97.0)
    assert found.tempo.source == "option" and json.loads((tmp_path / "x.bsm").read_text())["timing"]["bpm"] == 97.0
    assert found.heard.hits == run(settings, source, tmp_path / "x.bsm").heard.hits


def test_a_coarse_model_writes_components(settings: Settings, tmp_path: Path) -> None:
    """KD is written as kick and HH as hihat_closed: files hold components, never classes of a view."""
    promote(settings, view="drums5")
    found = run(settings, write_song(tmp_path / "song.wav", PLAYED), tmp_path / "x.bsm")
    assert found.counts == {"hihat_closed": 7, "kick": 7}


def test_the_model_is_chosen_by_option_then_environment_then_pointer(settings: Settings, data_root: Path) -> None:
    """--model wins over BEATSIGHT_ML_MODEL_PATH, which wins over CURRENT.json; names, paths and files all work."""
    promote(settings, "current-1")
    by_env = save_listener(settings.layout.candidate("run-env"))
    by_option = save_listener(settings.layout.candidate("run-option"))
    assert find_model(settings).name == "current-1"
    with_env = replace(settings, model_path="models/candidates/run-env")
    assert find_model(with_env).name == "run-env"
    assert find_model(with_env, "run-option").name == "run-option"
    for name in (
        "current-1",
        "models/promoted/current-1",
        str(by_option),
        str(by_env / "model.safetensors"),
        "models/candidates/run-env/model.json",
    ):
        assert find_model(settings, name).model.family == "frame"


@pytest.mark.parametrize("name", ["absent", "../outside", "models/promoted", "/nowhere/model", "a\nb"])
def test_a_named_model_that_is_missing_is_exit_2(name: str, settings: Settings) -> None:
    """A name that names nothing is never replaced by the promoted model."""
    promote(settings)
    for chosen in (settings, replace(settings, model_path=name)):
        with pytest.raises(ConfigError, match="There are demo-1") as caught:
            find_model(chosen, None if chosen.model_path else name)
        assert (caught.value.code, caught.value.exit_code) == ("missing-model", 2)


def test_a_pickle_is_never_opened(settings: Settings, tmp_path: Path) -> None:
    """A .pth is exit 2 with the next step, also when it is there."""
    promote(settings)
    (tmp_path / "model.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ConfigError, match=r"model\.safetensors and model\.json") as caught:
        find_model(settings, str(tmp_path / "model.pth"))
    assert (caught.value.code, caught.value.exit_code) == ("unsafe-model", 2)


def test_without_a_model_nothing_is_transcribed(settings: Settings, tmp_path: Path) -> None:
    """No silent heuristic: exit 2, and the way to a model."""
    with pytest.raises(ConfigError, match=r"beatsight demo.*model promote") as caught:
        run(settings, write_song(tmp_path / "song.wav", PLAYED), tmp_path / "x.bsm")
    assert caught.value.code == "no-model" and not (tmp_path / "x.bsm").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_one_flipped_byte_of_the_promoted_model_is_noticed(name: str, settings: Settings) -> None:
    """What serves is byte for byte what was judged; bit rot that keeps size and time is found too."""
    import os

    path = promote(settings) / name
    find_model(settings)
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StoreError) as caught:
        find_model(settings)
    assert (caught.value.code, caught.value.exit_code) == ("digest-mismatch", 3)


@pytest.mark.parametrize(
    ("pointer", "kind"),
    [({"release": "../x", "model_sha256": "", "model_card_sha256": ""}, InputError), ({"release": "demo-1"}, InputError), ([], InputError)],
)
def test_a_pointer_that_points_nowhere_is_refused(pointer: object, kind: type[BeatSightError], settings: Settings) -> None:
    """CURRENT.json cannot lead out of models/promoted."""
    promote(settings)
    settings.store.publish_json(settings.layout.current_model, pointer)
    with pytest.raises(kind):
        find_model(settings)


def test_outputs_stay_where_they_belong(settings: Settings, tmp_path: Path) -> None:
    """The audio is never replaced, raw/ is never written, an output needs a name."""
    promote(settings)
    source = write_song(tmp_path / "song.bsm", PLAYED)
    inside = write_song(settings.layout.raw("demo") / "song.wav", PLAYED)
    for output, code in ((source, "would-overwrite"), (inside.with_suffix(".bsm"), "would-overwrite"), (tmp_path / "..", "bad-option")):
        with pytest.raises(ConfigError) as caught:
            run(settings, source, output)
        assert caught.value.code == code
    for options in ({"formats": ()}, {"formats": ("svl",)}, {"component_view": "x"}, {"tempo_bpm": 1.0}):
        with pytest.raises(ConfigError):
            run(settings, inside, tmp_path / "x.bsm", **options)  # type: ignore[arg-type]


def test_names_and_texts_of_users_are_made_safe(settings: Settings, tmp_path: Path) -> None:
    """Only the last component of the audio's path is written, and no control characters."""
    promote(settings)
    source = write_song(tmp_path / "deep" / "so\u202eng.wav", PLAYED)
    run(settings, source, tmp_path / "x.bsm", title="a\x1b[31m", artist="b\nc")
    beatmap = json.loads((tmp_path / "x.bsm").read_text())
    assert beatmap["audio"]["filename"] == "so\\u202eng.wav"
    assert (beatmap["metadata"]["title"], beatmap["metadata"]["artist"]) == ("a\\x1b[31m", "b\\nc")


@pytest.mark.parametrize("content", [b"", b"no audio", None])
def test_audio_that_cannot_be_read_is_exit_3(content: bytes | None, settings: Settings, tmp_path: Path) -> None:
    """No file, an empty one, garbage: exit 3, nothing written."""
    promote(settings)
    if content is not None:
        (tmp_path / "song.wav").write_bytes(content)
    with pytest.raises(InputError) as caught:
        run(settings, tmp_path / "song.wav", tmp_path / "x.bsm")
    assert caught.value.exit_code == 3 and not (tmp_path / "x.bsm").exists()


def test_channels_that_cancel_are_reported(settings: Settings, tmp_path: Path) -> None:
    """A stereo file in antiphase gives a notice, not a mystery."""
    promote(settings)
    samples = song(PLAYED)
    (tmp_path / "song.wav").write_bytes(audio.write_wav(np.stack([samples, -0.9 * samples], axis=1), 44_100))
    assert any("cancel" in n for n in run(settings, tmp_path / "song.wav", tmp_path / "x.bsm").notices)


@pytest.mark.parametrize(("bpm", "read_as"), [(72, 144), (90, 90), (100.5, 100.5), (128, 128), (150, 150)])
def test_the_tempo_of_a_backbeat_is_found(bpm: float, read_as: float) -> None:
    """Kick, snare and eighth hats with 5 ms of human spread: within 0.5 % and 30 ms of the beat. Eighths at 72 are quarters at 144."""
    from beatsight_assets.units import rng_for

    rng = rng_for(1, "tempo", str(bpm))
    hits = []
    for eighth in range(96):
        at = 0.2 + eighth * 30 / bpm
        labels = ["hihat_closed", *(["kick"] if eighth % 8 in (0, 5) else []), *(["snare"] if eighth % 4 == 2 else [])]
        hits += [Hit(round((at + rng.normal(0, 0.005)) * 1e6), x, 0.9 if x != "hihat_closed" else 0.5) for x in labels]
    found = estimate_tempo(sorted(hits))
    assert found.bpm == pytest.approx(read_as, rel=0.005) and found.source == "hits"
    assert abs((found.offset_ms - 200 + 15_000 / bpm) % (30_000 / bpm) - 15_000 / bpm) < 30


def test_too_few_hits_have_no_tempo() -> None:
    """One stroke is no beat: a default, and it says so."""
    assert estimate_tempo([]).source == estimate_tempo([Hit(0, "kick")] * 3).source == "default"
