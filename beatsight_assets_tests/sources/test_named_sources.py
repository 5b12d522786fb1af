"""MUSDB, Cambridge, Telefunken, SignatureSounds: native layouts written here, read by their own names; one song has one group."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets import events, store
from beatsight_assets.audio import write_wav
from beatsight_assets.errors import ConfigError
from beatsight_assets.settings import Settings
from beatsight_assets.sources import (
    Recording,
    Rejected,
    Skipped,
    cambridge,
    ingest,
    mdb_drums,
    medleydb,
    musdb,
    signaturesounds,
    take_inventory,
    telefunken,
)
from beatsight_assets.stages import Report

RATE_HZ = 44_100


def sound(seconds: float = 0.5, *, seed: int = 3, lead_s: float = 0.0, channels: int = 2) -> bytes:
    """Noise that falls off, after `lead_s` of silence."""
    n = round(seconds * RATE_HZ)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (n, channels)) * np.linspace(1, 0.01, n)[:, None]
    noise[: round(lead_s * RATE_HZ)] = 0
    return write_wav(noise, RATE_HZ)


def put(root: Path, relpath: str, content: bytes | None = None) -> str:
    path = root / relpath
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sound(seed=sum(relpath.encode())) if content is None else content)
    return relpath


def rows(settings: Settings, source_set: str) -> pl.DataFrame:
    return events.read_events(settings.layout.events(source_set)).sort("session_id")


def refusals(settings: Settings, source_set: str) -> dict[str, str]:
    table = pl.read_parquet(settings.layout.quarantine(source_set))
    return dict(zip(table["path"].to_list(), table["code"].to_list(), strict=True))


def adds_up(report: Report) -> bool:
    f = report.figures
    return f["candidates"] == f["used"] + f["out_of_scope"] + f["rejected"] - f.get("rejected_not_candidates", 0)


SONGS = (
    "train/Actions - One Minute Smile",
    "train/Music Delta - 80s Rock",
    "test/Bobby Nobody - It's & Not...",
)


def musdb_tree(root: Path) -> None:
    for song in SONGS:
        for stem in ("mixture", "drums", "bass", "other", "vocals"):
            put(root, f"{song}/{stem}.wav")
    put(root, "train/Old - Release.stem.mp4", b"not read")


def test_musdb_is_one_row_per_song(settings: Settings) -> None:
    """The drum stem from 0 to its end, whole kit, with the official split; the official validation songs lie in train/."""
    musdb_tree(settings.layout.raw("musdb18_hq"))
    report = ingest(settings, "musdb")
    table = rows(settings, "musdb18_hq")
    assert table["session_id"].to_list() == sorted(f"{s}/drums.wav" for s in SONGS)
    assert dict(zip(table["group_id"], table["split_hint"], strict=True)) == {
        "song:actions|oneminutesmile": "val",
        "song:musicdelta|80srock": "train",
        "song:bobbynobody|itsandnot": "test",
    }
    first = table.row(0, named=True)
    assert (first["onset_time"], first["offset_time"], first["mix_context"], first["context_ms"]) == (
        0.0,
        0.5,
        "stem",
        {"pre": 0.0, "post": 0.0},
    )
    assert [c["label"] for c in first["components"]] == ["drum_mix"] and events.label_counts(table) == {}
    assert report.passed and adds_up(report)
    told = json.loads(settings.layout.report("ingest", "musdb18_hq.json").read_text())["out_of_scope_reasons"]
    assert told == {"non_drum_stem": 12, "other_release": 1}


def test_musdb_songs_without_their_drums(settings: Settings) -> None:
    """No drum stem: a session that says so. Silent, empty and unreadable stems: one refusal each."""
    root = settings.layout.raw("musdb18_hq")
    put(root, "train/A - No Drums/mixture.wav")
    put(root, "train/B - Silence/drums.wav", write_wav(np.zeros(4000), RATE_HZ))
    put(root, "train/C - Empty/drums.wav", write_wav(np.zeros(0), RATE_HZ))
    put(root, "train/D - Noise/drums.wav", b"RIFF nothing")
    ingest(settings, "musdb")
    assert rows(settings, "musdb18_hq").select("session_id", "offset_time").rows() == [("train/A - No Drums/drums.wav", None)]
    assert refusals(settings, "musdb18_hq") == {
        "train/B - Silence/drums.wav": "silent-audio",
        "train/C - Empty/drums.wav": "empty-audio",
        "train/D - Noise/drums.wav": "unreadable-audio",
    }


def test_the_validation_list_has_fourteen_songs() -> None:
    """The official list, each song once."""
    assert len(musdb.VALIDATION) == len(musdb._VALIDATION_GROUPS) == 14


CAMBRIDGE = {  # path -> label, or the code or reason it is set aside with
    "HeroesAndDisorder/01_Kick.wav": "kick",
    "Wednesday/05_Tom1.wav": "tom_high",
    "Band_Training/01_Kick.wav": "kick",
    "BigCarton/02_BassDI.wav": "not_drums: bass",
    "BigCarton/07_Bass Drum.wav": "kick",
    "BigCarton/09_OH_L.wav": "drum_mix",
    "BigCarton/30_Owl.wav": "unknown-label",
    "BigCarton/08_KickSnare.wav": "ambiguous-file-name",
    "Rock/Actions_OneMinuteSmile_Full/Drums/03_SnareTop.FLAC": "snare",
}


def test_cambridge_reads_names_and_only_names(settings: Settings) -> None:
    """Cases 28 and 29 of the event specification on disk: folder and session names never count; system files are ignored."""
    root = settings.layout.raw("cambridge")
    for path in CAMBRIDGE:
        put(root, path)
    put(root, "__MACOSX/BigCarton/01_Kick.wav")
    put(root, "BigCarton/._01_Kick.wav")
    report = ingest(settings, "cambridge")
    table = rows(settings, "cambridge_multitrack")
    labels = {r["session_id"]: r["components"][0]["label"] for r in table.iter_rows(named=True)}
    codes = {p: c for p, c in CAMBRIDGE.items() if c in ("unknown-label", "ambiguous-file-name")}
    assert refusals(settings, "cambridge_multitrack") == codes
    assert labels == {p: c for p, c in CAMBRIDGE.items() if p not in codes and not c.startswith("not_drums")}
    groups = dict(zip(table["session_id"], table["group_id"], strict=True))
    assert groups["Rock/Actions_OneMinuteSmile_Full/Drums/03_SnareTop.FLAC"] == "song:actions|oneminutesmile"
    positions = {r["session_id"]: json.loads(r["extras"]).get("mic_position") for r in table.iter_rows(named=True)}
    assert positions["BigCarton/09_OH_L.wav"] == "overhead left" and positions["Band_Training/01_Kick.wav"] is None
    assert adds_up(report) and report.figures["candidates"] == len(CAMBRIDGE)


def test_cambridge_sessions_in_two_folders(settings: Settings, tmp_path: Path) -> None:
    """Equal files count once; of two different files of one name the first root's is taken, the other is refused."""
    roots = [tmp_path / "a", tmp_path / "b"]
    put(roots[0], "X_Y/01_Kick.wav", sound(seed=1))
    put(roots[1], "X_Y/01_Kick.wav", sound(seed=1))
    put(roots[0], "X_Y/02_Snare.wav", sound(seed=2))
    put(roots[1], "X_Y/02_Snare.wav", sound(seed=4))
    put(roots[1], "Z_Z/01_Kick.wav", sound(seed=5))
    config = settings.datasets["cambridge_multitrack"].model_copy(update={"roots": tuple(str(r) for r in roots)})
    many = replace(settings)
    many.__dict__["datasets"] = settings.datasets | {"cambridge_multitrack": config}
    ingest(many, "cambridge")
    assert rows(settings, "cambridge_multitrack")["session_id"].to_list() == ["X_Y/01_Kick.wav", "X_Y/02_Snare.wav", "Z_Z/01_Kick.wav"]
    assert list(refusals(settings, "cambridge_multitrack").values()) == ["duplicate-session"]


def test_cambridge_inventory_lists_every_track_of_every_folder(settings: Settings, tmp_path: Path) -> None:
    """Over two folders each track once per place: label, the word that decided, seconds, sha256. The ingest writes the same list."""
    roots = [tmp_path / "a", tmp_path / "b"]
    kick, sounds = sound(seed=1), {"02_BassDI.wav": sound(seed=2), "30_Owl.wav": sound(seed=3), "08_KickSnare.wav": b"RIFF nothing"}
    for root in roots:
        put(root, "Rock/A_Song_Full/Close/01_Kick.wav", kick)
    for name, content in sounds.items():
        put(roots[0], f"Rock/A_Song_Full/{name}", content)
    put(roots[1], "B_Tune/OH L.flac")
    config = settings.datasets["cambridge_multitrack"].model_copy(update={"roots": tuple(map(str, roots))})
    many = replace(settings)
    many.__dict__["datasets"] = settings.datasets | {"cambridge_multitrack": config}
    report = take_inventory(many, "cambridge")
    path = settings.layout.report("ingest", "cambridge_inventory.jsonl")
    content = path.read_bytes()
    found = [json.loads(line) for line in content.splitlines()]
    assert [(r["session_id"], r["root"], len(r["stems"])) for r in found] == [
        ("Rock/A_Song_Full", 1, 4),
        ("B_Tune", 2, 1),
        ("Rock/A_Song_Full", 2, 1),
    ]
    folder = "Rock/A_Song_Full"
    assert [tuple(s[k] for k in ("path", "label", "rule", "seconds", "sha256")) for s in found[0]["stems"]] == [
        (f"{folder}/02_BassDI.wav", None, "not_drums: bass", 0.5, sha256(sounds["02_BassDI.wav"]).hexdigest()),
        (f"{folder}/08_KickSnare.wav", None, "ambiguous-file-name: kick + snare", None, sha256(b"RIFF nothing").hexdigest()),
        (f"{folder}/30_Owl.wav", None, "unknown-label", 0.5, sha256(sounds["30_Owl.wav"]).hexdigest()),
        (f"{folder}/Close/01_Kick.wav", "kick", "kick", 0.5, sha256(kick).hexdigest()),
    ]
    assert report.figures == {"sessions": 2, "stems": 6, "drums": 3, "hashed": 6, "unreadable": 1, "in_two_roots": 1, "in_two_roots_differing": 0, "hours": round(2.5 / 3600, 4)}  # fmt: skip
    assert report.facts["labels"] == {"kick": 2, "drum_mix": 1} and report.facts["not_drums"] == {"not_drums: bass": 1}
    assert not settings.layout.events("cambridge_multitrack").exists() and take_inventory(many, "cambridge").reused
    path.unlink()
    assert ingest(many, "cambridge").output("inventory").path.endswith("cambridge_inventory.jsonl") and path.read_bytes() == content
    take_inventory(many, "cambridge", hash_audio=False, limit=1)
    assert [(r["session_id"], {s["sha256"] for s in r["stems"]}) for r in map(json.loads, path.read_text().splitlines())] == [
        (folder, {None}),
        ("B_Tune", {None}),
    ]
    with pytest.raises(ConfigError, match="no session folders"):
        put(settings.layout.raw("musdb18_hq"), "train/A - B/drums.wav")
        take_inventory(settings, "musdb")


def test_one_song_has_one_group_in_four_datasets(tmp_path: Path) -> None:
    """MUSDB, MedleyDB, MDB Drums and Cambridge: a song never stands in two splits because two datasets hold it."""
    put(tmp_path / "musdb", "train/Music Delta - 80s Rock/drums.wav")
    put(tmp_path / "cambridge", "MusicDelta_80sRock_Full/01_Kick.wav")
    annotations = "MDB Drums/annotations/subclass/MusicDelta_80sRock_subclass.txt"
    put(tmp_path / "mdb", annotations, b"0.1 \t KD \n")
    yaml = b"stem_dir: S\nraw_dir: R\nmix_filename: m.wav\nstems: {S01: {filename: a.wav, instrument: drum set}}\n"
    put(tmp_path / "medley", "MusicDelta_80sRock/MusicDelta_80sRock_METADATA.yaml", yaml)
    found = [
        next(r.session.group_id for r in module.scan(tmp_path / folder, {}) if isinstance(r, Recording))
        for module, folder in ((musdb, "musdb"), (cambridge, "cambridge"), (mdb_drums, "mdb"), (medleydb, "medley"))
    ]
    assert found == ["song:musicdelta|80srock"] * 4


def test_telefunken_microphones_stay_together(settings: Settings) -> None:
    """Positions are no toms; all microphones of a take share its group; a folder that says nothing is named in one line."""
    root = settings.layout.raw("telefunken")
    for name in ("01 Kick In.wav", "02 Snare Bottom Mic.wav", "Room.wav", "Floor Tom.wav"):
        put(root, f"Take 7/{name}")
    for name in ("a1.wav", "a2.wav"):
        put(root, f"Unsaid/{name}")
    ingest(settings, "telefunken")
    table = rows(settings, "telefunken_sessions")
    labels = {r["session_id"].partition("/")[2]: r["components"][0]["label"] for r in table.iter_rows(named=True)}
    assert labels == {"01 Kick In.wav": "kick", "02 Snare Bottom Mic.wav": "snare", "Room.wav": "drum_mix", "Floor Tom.wav": "tom_low"}
    assert set(table["group_id"]) == {"telefunken:Take 7"}
    messages = pl.read_parquet(settings.layout.quarantine("telefunken_sessions")).sort("path")
    assert messages["code"].to_list() == ["unknown-label"] * 2
    assert [m.startswith("no file of folder 'Unsaid'") for m in messages["message"]] == [True, False]


def test_signaturesounds_reads_the_file_not_its_folder(settings: Settings) -> None:
    """`kicks_and_more/Snare 01.wav` is a snare, `home/tom/packs` makes nothing a tom; layers and takes share a piece; loops are skipped."""
    root = settings.layout.raw("signaturesounds")
    put(root, "kicks_and_more/Snare 01.wav", sound(lead_s=0.01))
    put(root, "kicks_and_more/Snare 02 Hard.wav")
    put(root, "home/tom/packs/Blip.wav")
    put(root, "home/tom/packs/Closed Hat 3.wav")
    put(root, "home/tom/packs/Drum Loop 120.wav")
    put(root, "home/tom/packs/Kick Long.wav", write_wav(np.tile(np.linspace(-0.5, 0.5, 8000), 31), 8000))
    put(root, "home/tom/packs/Kick Silent.wav", write_wav(np.zeros(4000), RATE_HZ))
    ingest(settings, "signaturesounds")
    table = rows(settings, "signaturesounds")
    found = {r["session_id"]: (r["components"][0]["label"], r["group_id"]) for r in table.iter_rows(named=True)}
    assert found == {
        "home/tom/packs/Closed Hat 3.wav": ("hihat_closed", "kit:home/closed hat"),
        "kicks_and_more/Snare 01.wav": ("snare", "kit:kicks_and_more/snare"),
        "kicks_and_more/Snare 02 Hard.wav": ("snare", "kit:kicks_and_more/snare"),
    }
    assert refusals(settings, "signaturesounds") == {
        "home/tom/packs/Blip.wav": "unknown-label",
        "home/tom/packs/Kick Silent.wav": "silent-audio",
    }
    first = table.filter(pl.col("session_id") == "kicks_and_more/Snare 01.wav").row(0, named=True)
    assert abs(first["onset_time"] - 0.01) < 0.001 and first["mix_context"] == "one_shot"
    told = json.loads(settings.layout.report("ingest", "signaturesounds.json").read_text())["out_of_scope_reasons"]
    assert told == {"loop": 1, "whole_kit: drum + loop": 1}


def test_signaturesounds_folders_speak_only_when_asked(tmp_path: Path) -> None:
    """A folder named in `category_folders` labels the files whose names say nothing, no others; a wrong label there is an error."""
    put(tmp_path, "Kicks/Deep 1.wav")
    put(tmp_path, "Kicks/Snare 1.wav")
    found = list(signaturesounds.scan(tmp_path, {"category_folders": {"Kicks": "kick"}}))
    assert [f.facts["label"] for f in found if isinstance(f, Recording)] == ["kick", "snare"]
    assert [type(f) for f in signaturesounds.scan(tmp_path, {})] == [Rejected, Recording]
    with pytest.raises(ConfigError, match="kik"):
        list(signaturesounds.scan(tmp_path, {"category_folders": {"Kicks": "kik"}}))


HOSTILE = (
    "Kick\x07.wav",
    "Kick\u202egnp.wav",
    "Snare \"x\" 'y'.wav",
    "#Snare#.wav",
    "Owl\n.wav",
    "Tom;rm -rf.wav",
    "K" * 240 + ".wav",
    "=Kick.wav",
)


@pytest.mark.parametrize(
    ("module", "source_set"), [(cambridge, "cambridge"), (telefunken, "telefunken"), (signaturesounds, "signaturesounds")]
)
def test_hostile_names_are_only_names(settings: Settings, module: object, source_set: str) -> None:
    """Control characters, bidirectional marks, quotes, line ends: each file is used, skipped or refused once, and tables print safely."""
    full, config = settings.dataset(source_set)
    for name in HOSTILE:
        put(settings.layout.raw(config.raw_folder), f"A_B/{name}")
    report = ingest(settings, source_set)
    refused = pl.read_parquet(settings.layout.quarantine(full))
    assert report.figures["candidates"] == len(HOSTILE) == report.figures["used"] + report.figures["out_of_scope"] + refused.height
    assert all(text == store.printable(text) for column in ("path", "message") for text in refused[column])
    assert "internal-error" not in set(refused["code"])


def test_skipped_files_say_by_which_word(tmp_path: Path) -> None:
    """The report's count of other instruments goes by the words that named them."""
    for name in ("Bass.wav", "Lead Vox.wav", "Gtr L.wav"):
        put(tmp_path, f"A_B/{name}")
    reasons = sorted(f.reason for f in cambridge.scan(tmp_path, {}) if isinstance(f, Skipped))
    assert reasons == ["not_drums: bass", "not_drums: gtr", "not_drums: vox"]
    assert [type(f) for f in telefunken.scan(tmp_path, {})] == [Skipped] * 3
