"""Slakh: the traps of its metadata on tracks made here, and the golden facts of spec/sources.md section 3 on the real files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from beatsight_assets import events, midi
from beatsight_assets.audio import write_wav
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.settings import Settings
from beatsight_assets.sources import Reading, Recording, Skipped, ingest, slakh
from beatsight_assets.sources.performance import read_performance
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import rng_for

TAXONOMY = Taxonomy.shipped()
UUID = "0123456789abcdef" * 2
KIT = "session_kit_full.nkm"
NOTES = [(0, 36, 90), (500_000, 54, 90), (1_000_000, 46, 80)]
SOUND = write_wav(np.sin(np.arange(2 * 8_000) / 7).astype(np.float32) / 2, 8_000)


def metadata(stems: Mapping[str, Mapping[str, Any]], uuid: str = UUID) -> str:
    """A metadata.yaml in the form of the dataset."""
    full = {"audio_rendered": False, "integrated_loudness": -20.5, "midi_saved": False, "program_num": 128}
    facts = {name: full | {"inst_class": "Drums" if f["is_drum"] else "Bass"} | dict(f) for name, f in stems.items()}
    return yaml.safe_dump({"UUID": uuid, "audio_dir": "stems", "midi_dir": "MIDI", "normalized": True, "stems": facts})


def track(
    folder: Path,
    stems: Mapping[str, Mapping[str, Any]],
    uuid: str = UUID,
    notes: list[tuple[int, int, int]] = NOTES,
    sound: bytes = SOUND,
) -> Path:
    """A track with MIDI and sound of every stem, its mix and the MIDI of all."""
    (folder / "MIDI").mkdir(parents=True)
    (folder / "stems").mkdir()
    (folder / "metadata.yaml").write_text(metadata(stems, uuid))
    for name in stems:
        (folder / f"MIDI/{name}.mid").write_bytes(midi.write_midi(notes, channel=3))
        (folder / f"stems/{name}.wav").write_bytes(sound)
    (folder / "mix.wav").write_bytes(sound)
    (folder / "all_src.mid").write_bytes(midi.write_midi(notes))
    return folder


def drum(plugin: str | None = KIT) -> dict[str, Any]:
    return {"is_drum": True, "plugin_name": plugin}


BASS = {"is_drum": False, "plugin_name": "bass.nkm"}


def read_all(root: Path, options: Mapping[str, Any] = {}) -> list[Reading]:
    found = [slakh.read(root, r, TAXONOMY, options) for r in slakh.scan(root, options) if isinstance(r, Recording)]
    return [r for r in found if isinstance(r, Reading)]


def labels(reading: Reading) -> list[str]:
    return [reading.hits.voices[v].label for v in reading.hits.voice.tolist()]


def test_the_drum_stem_is_the_session_and_the_rest_is_out_of_scope(tmp_path: Path) -> None:
    """is_drum decides, not the number; the flags of the yaml do not count; every other file has its reason."""
    track(tmp_path / "slakh/train/Track00042", {"S00": BASS, "S03": drum()})
    found = list(slakh.scan(tmp_path, {}))
    (recording,) = (f for f in found if isinstance(f, Recording))
    session = recording.session
    assert session.session_id == session.midi_path == recording.timeline == "slakh/train/Track00042/MIDI/S03.mid"
    assert session.audio_path == "slakh/train/Track00042/stems/S03.wav"
    assert (session.group_id, session.kit_id, session.split_hint) == (f"slakh:{UUID}", KIT, "train")
    assert (session.is_synthetic, session.mix_context, session.label_source) == (True, "drum_only", "rendered_midi")
    assert recording.files == (session.midi_path, "slakh/train/Track00042/metadata.yaml", session.audio_path)
    reasons = {f.path.removeprefix("slakh/train/Track00042/"): f.reason for f in found if isinstance(f, Skipped)}
    assert reasons == {"MIDI/S00.mid": "stem that is no drums", "stems/S00.wav": "stem that is no drums", "mix.wav": "mix",
                       "all_src.mid": "other file of a track"}  # fmt: skip


def test_the_plugin_decides_what_a_note_is(tmp_path: Path) -> None:
    """Note 54 is a crash, a cowbell's neighbour or a ride bell by the plugin; unknown plugins are General MIDI with less confidence."""
    expected = {KIT: "crash2", "garage_kit_lite.nkm": "crash2", "pop_kit.nkm": "ride_bell", "strange.nkm": "tambourine", None: "tambourine"}
    for n, plugin in enumerate(expected):
        track(tmp_path / f"Track{n:05d}", {"S00": drum(plugin)}, uuid=f"{n:032x}".replace("0", "a"))
    readings = read_all(tmp_path)
    assert [labels(r)[1] for r in readings] == list(expected.values())
    assert [r.session.confidence for r in readings] == [1.0, 1.0, 1.0, 0.8, 0.8]
    assert [r.note_map for r in readings] == ["ni_studio", "ni_studio_cowbell", "kontakt_factory", *["general_midi (plugin unknown)"] * 2]
    assert [r.session.kit_id for r in readings] == [KIT, "garage_kit_lite.nkm", "pop_kit.nkm", "strange.nkm", None]
    off = read_all(tmp_path, {"plugins": {}})
    assert {labels(r)[1] for r in off} == {"tambourine"} and {r.session.confidence for r in off} == {0.8}
    own = read_all(tmp_path, {"plugins": {"strange.nkm": "kontakt_factory"}})
    assert [labels(r)[1] for r in own] == ["tambourine", "tambourine", "tambourine", "ride_bell", "tambourine"]


def test_openness_is_what_the_key_states_and_else_unknown(tmp_path: Path) -> None:
    """Keys 76, 77, 78 and 80 say how open the hat is, raw null; a pedal of an unknown device is kept raw and not interpreted."""
    folder = track(tmp_path / "Track00001", {"S00": drum()})
    notes = [(i * 100_000, n, 90) for i, n in enumerate((76, 77, 78, 80, 79, 46, 42))]
    (folder / "MIDI/S00.mid").write_bytes(midi.write_midi(notes, pedal=[(0, 90)]))
    (reading,) = read_all(tmp_path)
    frame = events.assemble("slakh2100", [(reading.session, reading.hits)], TAXONOMY).frame
    hits = events.hits_of(frame)
    assert hits["openness"].to_list() == [0.25, 0.5, 0.75, 1.0, None, None, None]
    assert hits["openness_raw"].to_list() == [None, None, None, None, 90, 90, 90]
    assert hits["label"].to_list() == ["hihat_open"] * 6 + ["hihat_closed"]


def test_techniques_of_keys_are_stated(tmp_path: Path) -> None:
    """Flam, roll, snares off and choke keys carry their technique."""
    folder = track(tmp_path / "Track00001", {"S00": drum()})
    (folder / "MIDI/S00.mid").write_bytes(midi.write_midi([(i * 100_000, n, 90) for i, n in enumerate((62, 63, 64, 22, 38))]))
    (reading,) = read_all(tmp_path)
    frame = events.assemble("slakh2100", [(reading.session, reading.hits)], TAXONOMY).frame
    assert frame["techniques"].to_list() == [["flam"], ["roll"], ["snares_off"], ["cymbal_choke"], []]


def test_the_mix_has_the_hits_of_all_drum_stems(tmp_path: Path) -> None:
    """include_mix adds one session in the same group; two drum stems through two plugins are read each by its own."""
    folder = track(tmp_path / "test/Track01900", {"S00": drum(), "S01": BASS, "S02": drum("pop_kit.nkm")})
    (folder / "MIDI/S02.mid").write_bytes(
        midi.write_midi([(250_000, 54, 70), (300_000, 49, 70)], aftertouch=[(400_000, 49, 60)], meters=[(0, 3, 4)])
    )
    first, second, mix = read_all(tmp_path, {"include_mix": True})
    assert (mix.session.session_id, mix.session.mix_context) == ("test/Track01900/mix.wav", "full_mix")
    assert mix.session.group_id == first.session.group_id == second.session.group_id and mix.session.split_hint == "test"
    assert len(mix.hits) == len(first.hits) + len(second.hits) == 5
    assert mix.note_map == "ni_studio, kontakt_factory" and mix.session.kit_id is None and mix.session.midi_path is None
    frame = events.assemble("slakh2100", [(mix.session, mix.hits)], TAXONOMY).frame
    assert frame.select("onset_time", pl.col("components").list.eval(pl.element().struct.field("label"))).rows() == [
        (0.0, ["kick"]), (0.25, ["ride_bell"]), (0.3, ["crash"]), (0.5, ["crash2"]), (1.0, ["hihat_open"]),
    ]  # fmt: skip
    assert frame["meter"].to_list() == ["4/4", "3/4", "3/4", "4/4", "4/4"]
    assert frame["techniques"].to_list() == [[], [], ["cymbal_choke"], [], []]
    assert len(read_all(tmp_path)) == 2


def test_the_notes_of_a_mix_are_all_accounted_for(settings: Settings) -> None:
    """Ingest with mixes is green: notes of both stems are hits of the stems and of the mix, none is lost or counted twice."""
    track(settings.layout.raw("slakh2100") / "train/Track00001", {"S00": drum(), "S02": drum("pop_kit.nkm")})
    config = settings.datasets["slakh2100"].model_copy(update={"options": {"include_mix": True}})
    settings.__dict__["datasets"] = settings.datasets | {"slakh2100": config}
    report = ingest(settings, "slakh")
    assert report.passed and (report.figures["recordings"], report.figures["hits"]) == (3, 4 * len(NOTES))


def test_omitted_tracks_stay_out_unless_wanted(tmp_path: Path) -> None:
    """What the curators left out is counted out of scope; with include_omitted it has no split."""
    track(tmp_path / "omitted/Track00003", {"S00": drum()})
    found = list(slakh.scan(tmp_path, {}))
    assert {(type(f), f.reason) for f in found if isinstance(f, Skipped)} == {(Skipped, "omitted track")} and len(found) == 5
    (reading,) = read_all(tmp_path, {"include_omitted": True})
    assert reading.session.split_hint is None


DAMAGE = {
    "not yaml": ("metadata.yaml", b"UUID: [", "metadata.yaml", "bad-metadata"),
    "no uuid": ("metadata.yaml", b"stems: {S00: {is_drum: true}}\n", "metadata.yaml", "bad-metadata"),
    "uuid is no digest": ("metadata.yaml", metadata({"S00": drum()}, "../x").encode(), "metadata.yaml", "bad-metadata"),
    "is_drum is text": (
        "metadata.yaml",
        metadata({"S00": {"is_drum": "yes", "plugin_name": KIT}}).encode(),
        "metadata.yaml",
        "bad-metadata",
    ),
    "stems is a list": ("metadata.yaml", f"UUID: {UUID}\nstems: [S00]\n".encode(), "metadata.yaml", "bad-metadata"),
    "stem escapes": ("metadata.yaml", metadata({"../S00": drum()}).encode(), "metadata.yaml", "bad-metadata"),
    "no yaml": ("metadata.yaml", None, "", "missing-metadata"),
    "no midi": ("MIDI/S00.mid", None, "MIDI/S00.mid", "missing-midi"),
    "cut midi": ("MIDI/S00.mid", midi.write_midi(NOTES)[:-9], "MIDI/S00.mid", "truncated-midi"),
    "text as midi": ("MIDI/S00.mid", b"hello", "MIDI/S00.mid", "not-midi"),
}


@pytest.mark.parametrize("case", list(DAMAGE), ids=str)
def test_damage_is_one_row_and_the_next_track_is_read(settings: Settings, case: str) -> None:
    """Each damage has its code and exactly one row; the neighbour is read; every file is accounted for."""
    name, content, path, code = DAMAGE[case]
    root = settings.layout.raw("slakh2100")
    bad = track(root / "train/Track00001", {"S00": drum()})
    track(root / "train/Track00002", {"S00": drum(), "S01": BASS}, uuid="f" * 32)
    (bad / name).write_bytes(content) if content is not None else (bad / name).unlink()
    report = ingest(settings, "slakh")
    refused = pl.read_parquet(settings.layout.quarantine("slakh2100"))
    assert refused.select("path", "code").rows() == [(f"train/Track00001/{path}".rstrip("/"), code)]
    assert report.figures["recordings"] == 1
    f = report.figures
    assert f["candidates"] == f["used"] + f["rejected"] + f["out_of_scope"]


@pytest.mark.parametrize("loudness", ["-.inf", ".nan", "1.0e+999", "-inf"], ids=str)
def test_the_loudness_of_a_silent_stem_does_not_cost_the_track(settings: Settings, loudness: str) -> None:
    """A silent stem has a loudness that is no finite number: the drums of its track are read all the same."""
    folder = track(settings.layout.raw("slakh2100") / "train/Track00001", {"S00": drum(), "S01": BASS})
    text = (folder / "metadata.yaml").read_text()
    assert text.count("-20.5") == 2
    (folder / "metadata.yaml").write_text(text.replace("-20.5", loudness))
    report = ingest(settings, "slakh")
    assert report.passed and (report.figures["recordings"], report.figures["hits"], report.figures["rejected"]) == (1, len(NOTES), 0)


def test_reasons_of_files_out_of_scope_are_in_the_report(settings: Settings) -> None:
    """Nothing is skipped silently: used, refused and out of scope add up, by reason."""
    track(settings.layout.raw("slakh2100") / "train/Track00002", {"S00": drum(), "S01": BASS})
    report = ingest(settings, "slakh")
    stored = json.loads(settings.layout.report("ingest", "slakh2100.json").read_text())
    assert stored["out_of_scope_reasons"] == {"mix": 1, "other file of a track": 1, "stem that is no drums": 2}
    assert (report.figures["candidates"], report.figures["used"], report.figures["out_of_scope"]) == (7, 3, 4)


@pytest.mark.parametrize("options", [{"include_mix": "false"}, {"include_omitted": 1}, {"plugins": ["x"]}], ids=str)
def test_an_option_of_another_type_is_a_config_error(tmp_path: Path, options: dict[str, Any]) -> None:
    """ "false" is no truth value."""
    with pytest.raises(ConfigError):
        list(slakh.scan(tmp_path, options))


def test_mutated_metadata_never_stops_a_run(settings: Settings) -> None:
    """300 damaged metadata.yaml: every track is a session or has its rows, no internal error, every file is accounted for."""
    rng = rng_for(11, "slakh yaml")
    root = settings.layout.raw("slakh2100")
    good = metadata({"S00": drum(), "S01": BASS}).encode()
    for n in range(300):
        folder = track(root / f"train/Track{n:05d}", {"S00": drum(), "S01": BASS}, uuid=f"{n:032x}")
        (folder / "metadata.yaml").write_bytes(mutated(good, rng))
        for sound in folder.glob("**/*.wav"):
            sound.unlink()
    report = ingest(settings, "slakh")
    f = report.figures
    refused = pl.read_parquet(settings.layout.quarantine("slakh2100"))
    assert refused["path"].n_unique() == refused.height and set(refused["code"]) <= {"bad-metadata", "missing-midi", "path-escape"}
    assert f["rejected"] > 100 and f["recordings"] > 20, "the mutations do both"
    assert f["candidates"] == f["used"] + f["rejected"] + f["out_of_scope"] == 300 * 4
    stored = json.loads(settings.layout.report("ingest", "slakh2100.json").read_text())
    assert stored["unexplained_files"] == [] and sum(stored["out_of_scope_reasons"].values()) == f["out_of_scope"]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three bytes or pieces changed, cut, doubled or moved."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at, width = int(rng.integers(len(data))), int(rng.integers(1, 30))
        kind = rng.integers(5)
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            del data[at : at + width]
        elif kind == 2:
            data[at:at] = data[at : at + width]
        elif kind == 3:
            data[at:at] = bytes(
                rng.choice([b"- ", b": ", b"{", b"]", b"&a ", b"*a", b"!!int ", b".nan", b"\n", b"\t", b'"', b"NaN", b"1e999"])
            )
        else:
            to = int(rng.integers(len(data)))
            piece = data[at : at + width]
            del data[at : at + width]
            data[to:to] = piece
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.mark.data
@pytest.mark.parametrize("plugins", [True, False], ids=["plugin map", "plugins: {}"])
def test_golden_sessions(shared_data: Path, plugins: bool) -> None:
    """Two sessions of one group, 1,076 notes, 850 events, 15 collapsed, components with and without the plugin's map, tempo, onsets."""
    root, options = shared_data / "slakh", {} if plugins else {"plugins": {}}
    readings = read_all(root, options)
    assert [r.session.session_id for r in readings] == [
        "babyslakh_16k/Track00001/MIDI/S01.mid", "slakh2100_flac_redux/train/Track00001/MIDI/S01.mid",
    ]  # fmt: skip
    assert {r.session.group_id for r in readings} == {"slakh:1a81ae092884234f3264e2f45927f00a"}
    assert {r.session.kit_id for r in readings} == {KIT} and [r.session.split_hint for r in readings] == [None, "train"]
    counts = {"kick": 167, "snare": 73, "cross_stick": 57, "hihat_open": 49, "hihat_pedal": 114, "ride_bow": 412, "crash": 21}
    counts |= (
        {"crash2": 136, "china": 2, "tom_high": 4, "tom_mid": 14, "tom_low": 12}
        if plugins
        else {"crash2": 2, "tom_mid": 18, "tom_low": 12, "tambourine": 136}
    )
    for reading in readings:
        found = events.assemble("slakh2100", [(reading.session, reading.hits)], TAXONOMY)
        assert (int(found.n_hits[0]), found.frame.height, int(found.n_collapsed[0])) == (1_076, 850, 15)
        assert events.label_counts(found.frame) == counts
        assert found.frame["onset_time"].min() == pytest.approx(2.999624, abs=1e-6)
        assert found.frame["onset_time"].max() == pytest.approx(231.228828, abs=1e-6)
        assert found.frame["tempo_bpm"].unique().to_list() == [pytest.approx(80.010028, abs=1e-6)]
        assert reading.facts["tempo_map"] == [[0, 749_906]] and found.frame["components"].list.len().sum() == sum(counts.values())


@pytest.mark.data
def test_golden_ingest(settings: Settings, shared_data: Path) -> None:
    """Whole ingest of the folder: all 850 events lie past the 2 s of audio, one folder without metadata, silent stems are no damage."""
    root = settings.layout.raw("slakh2100")
    root.parent.mkdir(parents=True)
    root.symlink_to(shared_data / "slakh")
    report = ingest(settings, "slakh")
    refused = pl.read_parquet(settings.layout.quarantine("slakh2100"))
    assert refused.select("path", "code", "stage").rows() == [("babyslakh_16k/Track00007", "missing-metadata", "scan")]
    provenance = pl.read_parquet(settings.layout.provenance("slakh2100"))
    assert [json.loads(text)["past_audio_end"] for text in provenance["issues"]] == [850, 850]
    assert set(provenance["note_map"]) == {"ni_studio"} and (report.figures["recordings"], report.figures["events"]) == (2, 1_700)
    f = report.figures
    assert f["candidates"] == f["used"] + f["rejected"] + f["out_of_scope"]


@pytest.mark.data
def test_golden_metadata_traps(shared_data: Path) -> None:
    """What the yaml says is not what is there: flags are false, a stem has no file, all_src.mid counts other drum notes than the stem."""
    root = shared_data / "slakh/babyslakh_16k/Track00001"
    stems = yaml.safe_load((root / "metadata.yaml").read_text())["stems"]
    assert len(stems) == 11 and not any(s["audio_rendered"] or s["midi_saved"] for s in stems.values())
    assert len(list((root / "MIDI").glob("*.mid"))) == len(list((root / "stems").glob("*.wav"))) == 10
    whole, own = (midi.read_midi((root / name).read_bytes()) for name in ("all_src.mid", "MIDI/S01.mid"))
    assert int((whole.notes.channel == 9).sum()) == 1_078 and len(own.notes.note) == 1_076 and own.division == 96


@pytest.mark.data
def test_golden_tempo_map(shared_data: Path) -> None:
    """Track00007/S00.mid: four real tempo changes, 1,794 onsets, 756 events under General MIDI."""
    data = (shared_data / "slakh/babyslakh_16k/Track00007/MIDI/S00.mid").read_bytes()
    file = midi.read_midi(data)
    assert (file.format, file.division, len(file.notes.note)) == (1, 96, 1_794)
    np.testing.assert_allclose(file.tempos.onset_us / 1e6, [0, 237.575912, 238.587146, 241.848016], atol=1e-6)
    assert file.notes.onset_us[[0, -1]].tolist() == [2_424_244, 238_587_146]
    hits = read_performance(data, TAXONOMY, "general_midi").hits
    found = events.assemble("x", [(events.Session("s", "g"), hits)], TAXONOMY)
    assert (found.frame.height, int(found.n_collapsed[0])) == (756, 0)
    assert events.label_counts(found.frame) == {
        "aux_percussion": 482, "ride_bow": 328, "kick": 309, "snare": 196, "hihat_closed": 164, "hihat_pedal": 116, "ride_bell": 97,
        "cross_stick": 44, "hihat_open": 24, "crash2": 9, "tom_mid": 8, "tom_high": 7, "splash": 4, "china": 3, "tom_low": 3,
    }  # fmt: skip


def split_after(content: bytes) -> dict[str, str]:
    """{track: split} after the actions of splits_v2.json (moves) or redux.json (omissions) on the ranges of the first release."""
    actions = json.loads(content)
    split = {t: a.get("destination_split") or first_split(t) for t, a in actions.items() if a["action"] in (None, "move")}
    assert {a["action"] for a in actions.values()} <= {None, "move", "omit"}
    return split


def first_split(name: str) -> str:
    number = int(name.removeprefix("Track"))
    return "train" if number <= 1_500 else "validation" if number <= 1_875 else "test"


@pytest.mark.data
def test_golden_duplicates_and_splits(shared_data: Path) -> None:
    """1,710 pieces in 2,100 tracks; the first release has 146 of them in two splits, the two repaired ones have none."""
    folder = shared_data / "slakh/_slakh_utils/splits"
    found = slakh.read_duplicates((folder / "duplicates.json").read_bytes())
    names = [t for tracks in found.values() for t in tracks]
    shared = {digest: tracks for digest, tracks in found.items() if len(tracks) > 1}
    assert (len(names), len(found), len(shared)) == (2_100, 1_710, 308)
    assert (max(map(len, shared.values())), sum(map(len, shared.values()))) == (6, 698)
    redux, second = (split_after((folder / name).read_bytes()) for name in ("redux.json", "splits_v2.json"))
    in_two = [
        sum(len({split[t] for t in tracks if t in split}) > 1 for tracks in shared.values())
        for split in ({t: first_split(t) for t in names}, redux, second)
    ]
    assert in_two == [146, 0, 0]
    assert Counter(redux.values()) == {"train": 1_289, "validation": 270, "test": 151}
    assert Counter(second.values()) == {"train": 1_500, "validation": 375, "test": 225}


def test_each_session_names_the_other_tracks_of_its_piece(settings: Settings) -> None:
    """Slakh's own list of duplicates is in the provenance of what it is about; a list that is damaged is one row and stops nothing."""
    root = settings.layout.raw("slakh2100")
    track(root / "train/Track00001", {"S00": drum()})
    track(root / "test/Track01900", {"S00": drum()}, uuid="f" * 32)
    listed = {"Track00001": ["Track00077"], "Track00077": ["Track00001"]}
    facts = {t: {"midi_md5": UUID, "midi_duplicates": same} for t, same in listed.items()}
    (root / "splits").mkdir()
    (root / "splits/duplicates.json").write_text(json.dumps(facts | {"Track01900": {"midi_md5": "f" * 32, "midi_duplicates": []}}))
    report = ingest(settings, "slakh")
    rows = pl.read_parquet(settings.layout.provenance("slakh2100")).sort("session_id")["facts"]
    assert [json.loads(text)["duplicates"] for text in rows] == [[], ["Track00077"]] and report.figures["rejected"] == 0
    (root / "splits/duplicates.json").write_text("{}}")
    assert ingest(settings, "slakh").figures["recordings"] == 2
    refused = pl.read_parquet(settings.layout.quarantine("slakh2100"))
    assert refused.select("path", "code").rows() == [("splits/duplicates.json", "bad-metadata")]


@pytest.mark.parametrize(
    "content",
    [b"[]", b'{"Track00001": {}}', b'{"Track00001": 3}', b'{"Track00001": {"midi_md5": "a"}}', b'{"Track00001": {"midi_md5": "a", "midi_duplicates": [{}]}}',
     b'{"Track00001": {"midi_md5": "a", "midi_duplicates": ["Track00002"]}, "Track00002": {"midi_md5": "b", "midi_duplicates": []}}'],
)  # fmt: skip
def test_a_duplicate_list_that_contradicts_itself_is_refused(content: bytes) -> None:
    """Whom to believe is not guessed."""
    with pytest.raises(InputError):
        slakh.read_duplicates(content)
