"""MedleyDB: drum stems from the yaml, refusals, and the golden facts; its files are recognised in MDB Drums by their digests."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from beatsight_assets import events
from beatsight_assets.audio import probe, write_wav
from beatsight_assets.manifest.splits import content_keys, session_keys
from beatsight_assets.settings import Settings
from beatsight_assets.sources import Reading, Recording, Rejected, Skipped, ingest, medleydb
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.sources.idmt_layout import clip, put

TRACK = "MusicDelta_80sRock"
SOUND = write_wav(np.random.default_rng(5).normal(0, 0.1, (22_050, 2)), 44_100)


def described(track: str = TRACK, **changes: Any) -> dict[str, Any]:
    """A yaml as in the release: three stems, the second is the drums."""
    stems = {
        f"S{n:02}": {
            "component": "",
            "filename": f"{track}_STEM_{n:02}.wav",
            "instrument": instrument,
            "raw": {"R01": {"filename": f"{track}_RAW_{n:02}_01.wav", "instrument": instrument}},
        }
        for n, instrument in enumerate(("electric bass", "drum set", "tambourine"), start=1)
    }
    names = {"mix_filename": f"{track}_MIX.wav", "raw_dir": f"{track}_RAW", "stem_dir": f"{track}_STEMS"}
    return {"artist": "Music Delta", "genre": "Rock", "has_bleed": "no", **names, "stems": stems, **changes}


def write_track(root: Path, data: object, *, track: str = TRACK, home: str = "Audio/", meta: str = "", audio: str = "STEM RAW MIX") -> str:
    folder = f"{home}{track}"
    kinds = {
        "STEM": [f"{track}_STEMS/{track}_STEM_{n:02}.wav" for n in (1, 2, 3)],
        "RAW": [f"{track}_RAW/{track}_RAW_{n:02}_01.wav" for n in (1, 2, 3)],
        "MIX": [f"{track}_MIX.wav"],
    }
    for kind in audio.split():
        for name in kinds[kind]:
            put(root, f"{folder}/{name}", SOUND)
    content = data if isinstance(data, bytes) else yaml.safe_dump(data, sort_keys=False).encode()
    return put(root, f"{meta or folder}/{track}_METADATA.yaml", content)


def scanned(root: Path, **options: Any) -> list[Recording]:
    return [r for r in medleydb.scan(root, options) if isinstance(r, Recording)]


def read(root: Path, recording: Recording) -> Reading:
    found = medleydb.read(root, recording, Taxonomy.shipped(), {})
    assert isinstance(found, Reading)
    return found


@pytest.mark.parametrize(
    ("home", "meta"),
    [("Audio/", ""), ("Audio/", "Metadata"), ("", "Metadata"), ("", "")],
    ids=["audio", "metadata", "root and metadata", "root"],
)
def test_one_row_per_drum_stem_wherever_the_yaml_lies(tmp_path: Path, home: str, meta: str) -> None:
    """The yaml's stem number decides, not the file's; group and bleed from the track; raws and mix in the files for their digests."""
    path = write_track(tmp_path, described(), home=home, meta=meta)
    first, second = scanned(tmp_path)
    assert first.session.session_id == f"{home}{TRACK}/{TRACK}_STEMS/{TRACK}_STEM_02.wav"
    assert first.session.group_id == "song:musicdelta|80srock"
    assert first.facts["has_bleed"] is False and first.facts["non_drum_stems"] == 1
    assert [f.rpartition("/")[2] for f in first.files] == [
        f"{TRACK}_STEM_02.wav",
        path.rpartition("/")[2],
        f"{TRACK}_RAW_02_01.wav",
        f"{TRACK}_MIX.wav",
    ]
    drums, tambourine = read(tmp_path, first), read(tmp_path, second)
    assert (drums.hits.voices[0].label, tambourine.hits.voices[0].label) == ("drum_mix", "tambourine")
    assert (drums.session.mix_context, drums.session.context_ms, drums.session.label_source) == ("stem", (0.0, 0.0), "yaml")
    assert drums.hits.offset_us is not None and drums.hits.offset_us.tolist() == [500_000]
    assert Counter(s.reason for s in medleydb.scan(tmp_path, {}) if isinstance(s, Skipped)) == {
        "non_drum_stem": 1,
        "raw_of_non_drum_stem": 1,
    }


def test_raw_recordings_are_rows_when_asked_for(tmp_path: Path) -> None:
    """`include_raw` adds one row per raw recording of a drum stem, in the same group."""
    write_track(tmp_path, described())
    rows = scanned(tmp_path, include_raw=True)
    assert [(r.facts["level"], r.session.extras) for r in rows] == [
        ("stem", {"stem": "S02"}), ("raw", {"stem": "S02", "channel": "R01"}), ("stem", {"stem": "S03"}), ("raw", {"stem": "S03", "channel": "R01"})
    ]  # fmt: skip
    assert len({r.session.group_id for r in rows}) == 1 and all(len(read(tmp_path, r).hits) == 1 for r in rows)


@pytest.mark.parametrize(
    ("instrument", "label", "variant"),
    [
        ("drum machine", "drum_mix", None), ("bass drum", "kick", None), ("snare drum", "snare", None), ("high hat", "hihat_closed", "unspecified"),
        ("toms", "tom_mid", "unspecified"), ("cymbal", "crash", "unspecified"), ("ride cymbal", "ride_bow", None), ("claps", "clap", None),
        ("cabasa", "shaker", None), ("sleigh bells", "aux_percussion", "sleigh_bells"), (["snare drum", "kick drum"], "drum_mix", None),
        (["drum set"], "drum_mix", None), ("piano", None, None), (["drum set", "piano"], None, None), ([], None, None), (3, None, None),
    ],
    ids=str,
)  # fmt: skip
def test_instruments(instrument: object, label: str | None, variant: str | None) -> None:
    """The table of events.md section 8; lists of several drums are a mix of drums."""
    voice = medleydb.voice_of(instrument)
    assert (voice and voice.label, voice and voice.variant) == (label, variant)
    assert label is None or label == "drum_mix" or label in Taxonomy.shipped().labels


BAD = {
    "empty": b"",
    "a list": b"- 1\n",
    "stems null": described(stems=None),
    "stems a list": described(stems=[1]),
    "stem a text": described(stems={"S01": "drums"}),
    "no folder name": described(stem_dir=None),
    "a number as file name": described(stems={"S01": {"filename": 3, "instrument": "drum set"}}),
    "key twice": b"stems: {}\nstems: {}\n",
    "not UTF-8": b"artist: \xff\n",
    "a bomb": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(8)),
    "an object": b"stems: !!python/object/apply:os.system ['true']\n",
}


@pytest.mark.parametrize("case", list(BAD), ids=str)
def test_bad_yaml_is_one_refusal(settings: Settings, case: str) -> None:
    """`bad-metadata` at the yaml; the track beside it is read."""
    root = settings.layout.raw("medleydb")
    path = write_track(root, BAD[case])
    write_track(root, described("Other_Song"), track="Other_Song")
    report = ingest(settings, "medleydb")
    assert pl.read_parquet(settings.layout.quarantine("medleydb")).select("path", "code").rows() == [(path, "bad-metadata")]
    assert report.figures["recordings"] == 2
    assert report.figures["candidates"] == report.figures["used"] + 1 + report.figures["out_of_scope"]


@pytest.mark.parametrize("name", ["../../x.wav", "/etc/passwd", "a\\b.wav", "~/x.wav"])
def test_names_that_leave_the_track_are_refused(tmp_path: Path, name: str) -> None:
    """A yaml that names a file elsewhere is `path-escape`, and nothing of its track is read."""
    data = described()
    data["stems"]["S02"]["filename"] = name
    path = write_track(tmp_path, data)
    assert [(f.path, f.code) for f in medleydb.scan(tmp_path, {}) if isinstance(f, Rejected)] == [(path, "path-escape")]
    assert not scanned(tmp_path)


def test_what_is_absent_and_what_is_silent(settings: Settings) -> None:
    """Absent drum audio is a remark, absent other stems are no matter, silence and a track without yaml are refused."""
    root = settings.layout.raw("medleydb")
    write_track(root, described(), audio="")
    write_track(root, described("A_Silent"), track="A_Silent")
    silent = put(root, "Audio/A_Silent/A_Silent_STEMS/A_Silent_STEM_02.wav", write_wav(np.zeros((4_410, 2)), 44_100))
    write_track(root, described("A_Song", stems={}), track="A_Song")
    put(root, "Audio/B_Nothing/B_Nothing_MIX.wav", clip())
    report = ingest(settings, "medleydb")
    refused = pl.read_parquet(settings.layout.quarantine("medleydb")).select("path", "code").rows()
    assert (
        refused == [(silent, "silent-audio"), ("Audio/B_Nothing", "missing-metadata")]
        or refused
        == [
            (silent, "silent-audio"),
            ("Audio/B_Nothing", "missing-metadata"),
        ][::-1]
    )
    assert report.facts["issues"]["audio_absent"] == 2
    stored = json.loads(settings.layout.report("ingest", "medleydb.json").read_text())
    assert stored["out_of_scope_reasons"]["track_without_drums"] == 1
    frame = events.read_events(settings.layout.events("medleydb"))
    assert not sum(events.find_violations(frame, Taxonomy.shipped())[0].values()) and events.label_counts(frame) == {"tambourine": 2}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Settings:
    """MedleyDB and MDB Drums of the real data, ingested."""
    from beatsight_assets.settings import DataLayout

    settings = Settings(layout=DataLayout(tmp_path_factory.mktemp("data")), profile="demo")
    settings.layout.at("raw").mkdir()
    for name in ("medleydb", "mdb_drums"):
        settings.layout.raw(name).symlink_to(shared_data / name)
        ingest(settings, name)
    return settings


@pytest.mark.data
def test_golden_stems(real: Settings, shared_data: Path) -> None:
    """2 tracks, drums are S01 in Rock and S02 in Zeppelin; 2 rows drum_mix, 7 other stems, no bleed; 577,320 frames throughout Rock."""
    found = list(medleydb.scan(shared_data / "medleydb", {}))
    recordings = [r for r in found if isinstance(r, Recording)]
    assert [r.session.extras["stem"] for r in recordings] == ["S01", "S02"]
    assert Counter(s.reason for s in found if isinstance(s, Skipped))["non_drum_stem"] == 7
    assert [r.facts["has_bleed"] for r in recordings] == [False, False] and not [r for r in found if isinstance(r, Rejected)]
    frame = events.read_events(real.layout.events("medleydb"))
    assert events.hits_of(frame)["label"].to_list() == ["drum_mix"] * 2
    assert frame["offset_time"].to_list() == [13.091156, 17.475034]
    assert frame["group_id"].to_list() == ["song:musicdelta|rock", "song:musicdelta|zeppelin"]
    rock = [probe(p) for p in sorted((shared_data / "medleydb/Audio/MusicDelta_Rock").rglob("*.wav"))]
    assert len(rock) == 11 and {(i.n_frames, i.rate_hz) for i in rock} == {(577_320, 44_100)}
    assert Counter(i.n_channels for i in rock) == {2: 6, 1: 5}
    report = json.loads(real.layout.report("ingest", "medleydb.json").read_text())
    assert (report["candidates"], report["used"], report["out_of_scope"], report["rejected"]) == (15, 7, 8, 0)


@pytest.mark.data
def test_golden_equal_audio_across_datasets(real: Settings) -> None:
    """Three files of MedleyDB are byte for byte files of MDB Drums: the digests say so, and would join the groups if their names did not."""
    provenance = pl.concat([pl.read_parquet(real.layout.provenance(n)) for n in ("medleydb", "mdb_drums")])
    files = provenance.select("source_set", "hashes").explode("hashes").unnest("hashes").select("source_set", "path", "sha256").unique()
    pairs = files.filter(source_set="medleydb").join(files.filter(source_set="mdb_drums"), on="sha256")
    assert sorted((a.rpartition("/")[2], b.rpartition("/")[2]) for a, b in pairs.select("path", "path_right").iter_rows()) == [
        ("MusicDelta_Rock_MIX.wav", "MusicDelta_Rock_MIX.wav"),
        ("MusicDelta_Rock_RAW_01_01.wav", "MusicDelta_Rock_Drum.wav"),
        ("MusicDelta_Zeppelin_RAW_02_01.wav", "MusicDelta_Zeppelin_Drum.wav"),
    ]
    frames = [events.read_events(real.layout.events(n)) for n in ("medleydb", "mdb_drums")]
    assert set(frames[0]["group_id"]) <= set(frames[1]["group_id"])
    paths = pl.concat(frames).select(
        "source_set", "session_id", "audio_path", "midi_path", group_id=pl.concat_str("source_set", pl.lit(":"), "group_id")
    )
    shared = (
        content_keys(session_keys(provenance.drop("group_id"), paths.unique()))
        .group_by("key")
        .agg(pl.col("group_id"))
        .filter(pl.col("group_id").list.len() > 1)
    )
    assert shared.height == 3
