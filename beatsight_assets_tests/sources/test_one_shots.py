"""One-shots: kits of single hits, their labels, velocities, microphones and groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets import audio, store
from beatsight_assets.errors import ConfigError
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.sources import ingest, module_options
from beatsight_assets.sources.kits import kit_table
from beatsight_assets.stages import Report

RATE_HZ = 44_100


def write(root: Path, name: str, level: float = 0.5) -> None:
    samples = np.zeros(2_000, np.float32)
    samples[88:] = level * np.exp(-np.arange(1_912) / 300)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(audio.write_wav(samples, RATE_HZ))


def configure(settings: Settings, options: str = "{}", table: str | None = None) -> None:
    configs = settings.layout.root / "configs"
    (configs / "kits").mkdir(parents=True, exist_ok=True)
    entry = f"datasets:\n  one_shots: {{short: one_shots, raw_folder: one_shots, module: one_shots, options: {options}}}\n"
    (configs / "datasets.yaml").write_text(entry)
    if table is not None:
        (configs / "kits/mykit.yaml").write_text(table)


def rows(settings: Settings) -> list[dict[str, object]]:
    frame = pl.read_parquet(settings.layout.events("one_shots")).sort("session_id")
    return frame.select("session_id", "group_id", "mix_context", "extras", "techniques", "split_hint", pl.col("components").list.first()).unnest("components").to_dicts()  # fmt: skip


def test_a_kit_table_decides_before_maps_and_names(settings: Settings) -> None:
    """Label, variant, strike, choke and layer from the table; velocity from the SFZ range only; a changed table is a changed dataset."""
    root = settings.layout.raw("one_shots")
    for name in ("1-kick-1.wav", "1-kick-2.wav", "2-snare.wav", "3-x.wav"):
        write(root, f"mykit/{name}")
    (root / "mykit/a.sfz").write_text("<region> key=36 hivel=64 sample=1-kick-1.wav <region> key=36 lovel=65 sample=gone.wav")
    table = """{version: 1, licence: mine, stem: '(?P<piece>[^-]+-[^-]+?)(?:-(?P<layer>[12]))?', pieces: [
        {piece: 1-*, label: snare, strike: edge}, {piece: 2-*, label: crash, variant: crash_3, technique: cymbal_choke}]}"""
    configure(settings, "{kit_splits: {mykit: val}}", table)
    report = ingest(settings, "one_shots")
    first, second, choked = rows(settings)
    assert (first["label"], first["strike_position"], first["group_id"]) == ("snare", "edge", "kit:mykit/1-kick")
    assert (
        first["velocity"] == pytest.approx(32.5 / 127)
        and first["extras"] == '{"confidence":1.0,"label_source":"kit_table","velocity_layer":1}'
    )
    assert (second["velocity"], second["group_id"], second["split_hint"]) == (None, "kit:mykit/1-kick", "val")
    assert (choked["label"], choked["instrument_variant"], choked["techniques"]) == ("crash", "crash_3", ["cymbal_choke"])
    assert report.facts["codes"] == {"missing-audio": 1, "unknown-label": 1} and report.figures["out_of_scope"] == 1
    configure(settings, "{kit_splits: {mykit: val}}", table.replace("label: snare", "label: kick"))
    ingest(settings, "one_shots")
    assert rows(settings)[0]["label"] == "kick"


def test_maps_decide_before_names(settings: Settings) -> None:
    """Keys go through the note map the config names; a key outside it, or no key, is refused; the layer is the place of the range."""
    root = settings.layout.raw("one_shots")
    for name in ("soft.wav", "kick.wav", "other.wav", "odd.wav"):
        write(root, f"mykit/{name}")
    (root / "mykit/a.sfz").write_text(
        "<group> key=38 <region> hivel=40 sample=soft.wav <region> lovel=41 sample=kick.wav <region> key=3 sample=odd.wav"
    )
    configure(settings, "{note_maps: {mykit: general_midi}}")
    report = ingest(settings, "one_shots")
    loud, soft = rows(settings)
    assert (loud["label"], soft["label"], loud["group_id"]) == ("snare", "snare", "kit:mykit/key_38")
    assert (
        loud["velocity"] == pytest.approx(84 / 127)
        and '"velocity_layer":2' in str(loud["extras"])
        and '"confidence":0.8' in str(loud["extras"])
    )
    assert report.facts["codes"] == {"unknown-label": 2}


def test_microphones_of_one_hit_are_one_group(settings: Settings) -> None:
    """The close microphone is the session; `all_mics` adds the others with their place; a trigger is no microphone."""
    root = settings.layout.raw("one_shots")
    for mic in ("Near", "Far", "Trigger"):
        write(root, f"mykit/1-Snare-{mic}.wav")
    table = """{version: 1, licence: mine, stem: '(?P<hit>\\d+)-(?P<piece>\\w+)-(?P<mic>\\w+)', mics: {close_mic: [Near], room: [Far]},
        pieces: [{piece: Snare, label: snare, mic: Near}]}"""
    configure(settings, "{}", table)
    assert ingest(settings, "one_shots").figures["events"] == 1
    configure(settings, "{all_mics: true}", table)
    report = ingest(Settings(layout=settings.layout, profile="demo"), "one_shots")
    far, near = rows(settings)
    assert (far["mix_context"], near["mix_context"], far["group_id"]) == ("room", "one_shot", near["group_id"])
    assert '"mic_position":"Far"' in str(far["extras"]) and report.figures["out_of_scope"] == 1


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"version": 1, "licence": "x", "stem": "(?P<piece>.*", "pieces": [{"piece": "*", "label": "kick"}]}, "no regular expression"),
        ({"version": 1, "licence": "x", "stem": ".*", "pieces": [{"piece": "*", "label": "kick"}]}, "no group"),
        ({"version": 1, "licence": "x", "stem": "(?P<piece>.*)", "pieces": []}, "pieces"),
        ({"version": 1, "licence": "x", "stem": "(?P<piece>.*)", "pieces": [{"piece": "*", "lable": "kick"}]}, "lable"),
        (
            {"version": 1, "licence": "x", "stem": "(?P<piece>.*)", "mics": {"far": ["a"]}, "pieces": [{"piece": "*", "label": "kick"}]},
            "far",
        ),
    ],
    ids=["broken pattern", "pattern without piece", "no pieces", "misspelt key", "unknown microphone"],
)
def test_a_broken_kit_table_is_a_config_error(table: dict[str, object], said: str) -> None:
    """Exit 2 with the file's name, never a kit with half its labels."""
    with pytest.raises(ConfigError) as caught:
        kit_table("mykit", table)
    assert said in caught.value.message and caught.value.where == "configs/kits/mykit.yaml"


def test_a_kit_split_is_a_split(settings: Settings) -> None:
    """A misspelt split stops the ingest instead of freeing the kit for every split."""
    write(settings.layout.raw("one_shots"), "mykit/kick.wav")
    configure(settings, "{kit_splits: {mykit: trian}}")
    with pytest.raises(ConfigError) as caught:
        ingest(settings, "one_shots")
    assert caught.value.code == "unknown-choice"
    assert {"file_names", "kits/MuldjordKit"} <= set(module_options(settings, "one_shots")["configs"])


def read_real(data_root: Path, folder: Path) -> tuple[Report, pl.DataFrame]:
    """Ingest a folder of real kits with the shipped configuration."""
    settings = Settings(layout=DataLayout(data_root), profile="demo")
    (data_root / "raw").mkdir()
    (data_root / "raw/one_shots").symlink_to(folder)
    report = ingest(settings, "one_shots")
    return report, pl.read_parquet(settings.layout.events("one_shots"))


def labels(frame: pl.DataFrame, kit: str) -> dict[str, int]:
    of_kit = frame.filter(pl.col("kit_id") == kit).select(pl.col("components").list.first().struct.field("label"))
    return dict(of_kit["label"].value_counts().iter_rows())


@pytest.mark.data
def test_the_real_kits(shared_data: Path, data_root: Path) -> None:
    """Counts of AVL, MRK-2 and TR-505, AVL's pieces, layers, chokes, velocities and lead-in (spec/sources.md section 13)."""
    report, frame = read_real(data_root, shared_data / "oneshots")
    told = pl.read_parquet(data_root / "provenance/one_shots.parquet").filter(pl.col("session_id").str.starts_with("avl"))
    seconds = told["facts"].str.json_path_match("$.duration_seconds").cast(pl.Float64)
    assert (told.height, seconds.min(), seconds.max()) == (226, pytest.approx(0.192, abs=5e-4), pytest.approx(12.005, abs=5e-4))
    assert report.facts["codes"] == {} and report.figures["candidates"] == 226 + 5 + 10 + 16
    assert labels(frame, "avl-drumkits-1.1") == {
        "kick": 10, "snare": 30, "cross_stick": 10, "hihat_closed": 5, "hihat_open": 10, "hihat_pedal": 5, "ride_bow": 12, "ride_bell": 10,
        "ride_edge": 10, "crash": 17, "crash2": 12, "splash": 5, "tom_high": 25, "tom_mid": 10, "tom_low": 35, "cowbell": 5,
        "tambourine": 5, "clap": 5, "shaker": 5,
    }  # fmt: skip
    assert labels(frame, "MRK-2") == {
        "aux_percussion": 3, "crash": 2, "hihat_closed": 1, "hihat_open": 1, "kick": 1, "snare": 1, "tom_mid": 1,
    }  # fmt: skip
    assert labels(frame, "TR-505") == {
        "aux_percussion": 3, "cowbell": 2, "clap": 1, "crash": 1, "hihat_closed": 1, "hihat_open": 1, "kick": 1, "ride_bow": 1,
        "cross_stick": 1, "snare": 1, "tom_high": 1, "tom_mid": 1, "tom_low": 1,
    }  # fmt: skip
    unspecified = frame.filter(pl.col("components").list.first().struct.field("instrument_variant") == "unspecified")
    assert labels(unspecified, "MRK-2") == {"crash": 2, "tom_mid": 1}
    avl = frame.filter(pl.col("kit_id") == "avl-drumkits-1.1").with_columns(
        layer=pl.col("extras").str.json_path_match("$.velocity_layer"), velocity=pl.col("components").list.first().struct.field("velocity")
    )
    assert avl["group_id"].n_unique() == 50 and avl["techniques"].explode().drop_nulls().value_counts().rows() == [("cymbal_choke", 6)]
    assert sorted(avl["layer"].value_counts().iter_rows(), key=str) == [("1", 44), ("2", 44), ("3", 44), ("4", 44), ("5", 44), (None, 6)]
    assert avl["velocity"].null_count() == 5 + 6
    by_layer = avl.drop_nulls("velocity").group_by("layer").agg(pl.col("velocity").unique()).sort("layer")["velocity"].to_list()
    assert [round(v[0] * 127, 1) for v in by_layer] == [13.5, 39.5, 65.0, 90.0, 115.0] and all(len(v) == 1 for v in by_layer)
    lead_in_ms = avl["onset_time"].to_numpy() * 1000
    assert [round(float(np.percentile(lead_in_ms, q)), 2) for q in (50, 95, 100)] == [1.08, 6.38, 15.6]


@pytest.mark.data
def test_the_real_multi_microphone_kit(shared_data: Path, data_root: Path) -> None:
    """175 hits of 280 files; the other microphones and the triggers are counted."""
    report, frame = read_real(data_root, shared_data / "oneshots_multimic")
    assert labels(frame, "MuldjordKit") == {
        "kick": 39, "snare": 28, "tom_low": 21, "hihat_closed": 20, "hihat_open": 18, "tom_mid": 10, "tom_high": 9, "crash": 6, "crash2": 6,
        "china": 6, "ride_bow": 6, "ride_bell": 6,
    }  # fmt: skip
    assert (report.figures["candidates"], report.figures["used"], report.figures["out_of_scope"]) == (280, 175, 105)
    assert frame["group_id"].n_unique() == 15 and report.facts["codes"] == {}


CLOSE = {"HihatClosed": "Hihat", "KdrumL": "KdrumL", "Snare": "Snare_top", "Tom1": "Tom1", "Tom4": "Tom4"}


def arrival_ms(clip: audio.AudioClip) -> float:
    """When a recording first reaches a tenth of its peak."""
    level = np.abs(clip.samples)
    return float(np.argmax(level >= 0.1 * level.max())) / RATE_HZ * 1e3


@pytest.mark.data
def test_the_sixteen_microphones_of_a_hit(shared_data: Path) -> None:
    """280 mono files of 24 bit; 7 hits by 16 microphones, equally long; when the sound reaches which of them; a trigger hears its kick only."""
    hits: dict[tuple[str, str], dict[str, Path]] = {}
    paths = sorted((shared_data / "oneshots_multimic").rglob("*.flac"))
    for path in paths:
        number, piece, mic = path.stem.split("-")
        hits.setdefault((piece, number), {})[mic] = path
    whole = {hit: mics for hit, mics in hits.items() if len(mics) == 16}
    assert (len(paths), len(hits), sum(len(m) == 1 for m in hits.values())) == (280, 175, 168)
    assert sorted(whole) == [
        ("HihatClosed", "10"),
        ("KdrumL", "10"),
        ("KdrumL", "20"),
        ("Snare", "10"),
        ("Snare", "40"),
        ("Tom1", "5"),
        ("Tom4", "5"),
    ]
    room_ms = {}
    for (piece, number), mics in whole.items():
        clips = {mic: audio.read_mono(path, silent_ok=True) for mic, path in mics.items()}
        assert len({len(clip.samples) for clip in clips.values()}) == 1
        late = {mic: arrival_ms(clip) - arrival_ms(clips[CLOSE[piece]]) for mic, clip in clips.items()}
        room_ms |= {(piece, number, mic): late[mic] for mic in ("AmbL", "AmbR")}
        assert (np.abs(clips["Trigger"].samples).max() < 1e-4) == (piece != "KdrumL")
        if (piece, number) == ("Snare", "10"):
            assert [round(late[mic], 2) for mic in ("OHL", "OHR", "AmbL", "AmbR")] == [2.38, 2.68, 7.66, 7.66]
    worst = max(room_ms, key=lambda hit: room_ms[hit])
    assert (worst, round(room_ms[worst], 1)) == (("Tom4", "5", "AmbL"), 11.6)


@pytest.mark.data
def test_no_two_files_of_the_kits_are_equal(shared_data: Path) -> None:
    """532 files, no two byte for byte the same."""
    paths = [p for folder in ("oneshots", "oneshots_multimic") for p in (shared_data / folder).rglob("*") if p.suffix in (".wav", ".flac")]
    assert len(paths) == len({store.hash_file(p) for p in paths}) == 532
