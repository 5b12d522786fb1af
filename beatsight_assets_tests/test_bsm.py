"""Beatmap files: what is written, what is read, what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from beatsight_assets.bsm import Lanes, MadeBy, Song, beatmap_id, difficulty, read_bsm, write_bsm
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.transcribe import Hit

TAXONOMY = Taxonomy.shipped()
NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
SONG = Song("A Song", "Somebody", "BeatSight", "song.wav", "ab" * 32, 8_000, 44_100, 120.5, 250)
MADE_BY = MadeBy("demo-1", "cd" * 32, "frame", 0.87654)
REQUIRED = (
    *("version", "metadata", "audio", "timing", "drumKit", "hitObjects"),
    *(f"metadata.{k}" for k in ("title", "artist", "creator", "difficulty", "beatmapId", "createdAt", "modifiedAt")),
    *(f"audio.{k}" for k in ("filename", "hash", "duration", "sampleRate")),
    *(f"timing.{k}" for k in ("bpm", "offset", "timeSignature")),
    *("drumKit.components", "hitObjects.0.time", "hitObjects.0.component"),
)
HITS = (
    Hit(500, "kick", 0.5),
    Hit(499_501, "hihat_closed", 0.25, 0.1),
    Hit(500_499, "ride_bell", 1.0),
    Hit(750_000, "aux_percussion", None),
)


@pytest.fixture
def lanes(settings: Settings) -> Lanes:
    return Lanes.load(settings)


def write(hits: tuple[Hit, ...], lanes: Lanes, **changes: Any) -> dict[str, Any]:
    content = write_bsm(hits, SONG, MADE_BY, changes.pop("now", NOW), taxonomy=TAXONOMY, lanes=lanes, **changes)
    parsed: dict[str, Any] = json.loads(content)
    return parsed


def test_every_required_key_of_the_spec_is_written(lanes: Lanes) -> None:
    """A file has the keys, types and values of spec/model.md section 10."""
    obj = write(HITS, lanes)
    assert obj["version"] == "1.1.0"
    assert obj["audio"] == {"filename": "song.wav", "hash": "sha256:" + "ab" * 32, "duration": 8_000, "sampleRate": 44_100}
    assert obj["timing"]["bpm"] == 120.5 and obj["timing"]["offset"] == 250 and obj["timing"]["timeSignature"] == "4/4"
    assert obj["metadata"]["createdAt"] == obj["metadata"]["modifiedAt"] == "2026-01-31T12:00:00Z"
    assert obj["metadata"]["beatmapId"] == beatmap_id("ab" * 32, "cd" * 32)
    assert obj["editor"]["visualLanes"] == 7
    assert obj["editor"]["aiGenerationMetadata"] == {
        "modelVersion": "demo-1", "modelSha256": "cd" * 32, "classifier": "frame", "confidence": 0.8765,
        "processedAt": "2026-01-31T12:00:00Z", "manualEdits": False,
    }  # fmt: skip
    assert obj["drumKit"]["components"] == ["kick", "hihat_closed", "ride", "aux_percussion"]
    for key in REQUIRED:
        place: Any = obj
        for part in key.split("."):
            place = place[int(part) if part.isdigit() else part]


def test_times_are_whole_milliseconds_and_hits_sorted(lanes: Lanes) -> None:
    """time = round(1000 * onset); velocity as measured, absent when unknown; lane of the table."""
    assert write(tuple(reversed(HITS)), lanes)["hitObjects"] == [
        {"time": 0, "component": "kick", "lane": 3, "velocity": 0.5},
        {"time": 500, "component": "hihat_closed", "lane": 1, "velocity": 0.25},
        {"time": 500, "component": "ride", "lane": 5, "velocity": 1.0},
        {"time": 750, "component": "aux_percussion", "lane": 6},
    ]


def test_equal_input_gives_equal_bytes_and_any_time_zone_is_written_as_utc(lanes: Lanes) -> None:
    """The file is a function of its arguments."""
    first, second = (
        write_bsm(HITS, SONG, MADE_BY, now, taxonomy=TAXONOMY, lanes=lanes) for now in (NOW, NOW.astimezone(timezone(timedelta(hours=9))))
    )
    assert first == second
    with pytest.raises(ConfigError, match="time zone"):
        write(HITS, lanes, now=datetime(2026, 1, 31))


def test_the_view_bsm_has_one_ride_and_full23_has_three(lanes: Lanes) -> None:
    """Ride components are written as `ride` in the view bsm; two of them at one instant are one, the louder."""
    hits = (Hit(0, "ride_bow", 0.3), Hit(200, "ride_bell", 0.6), Hit(1_000_000, "ride_edge", 0.2))
    assert [(h["component"], h["velocity"]) for h in write(hits, lanes)["hitObjects"]] == [("ride", 0.6), ("ride", 0.2)]
    named = write(hits, lanes, component_view="full23")
    assert [h["component"] for h in named["hitObjects"]] == ["ride_bow", "ride_bell", "ride_edge"]
    assert {h["lane"] for h in named["hitObjects"]} == {5}
    with pytest.raises(ConfigError, match="component view"):
        write(hits, lanes, component_view="drums5")


@pytest.mark.parametrize(
    ("n_hits", "n_components", "duration_s", "span_s", "expected"),
    [
        pytest.param(32, 3, 8.0, 7.75, 8.5, id="the example of the spec"),
        pytest.param(0, 0, 8.0, 0.0, 0.0, id="no hits"),
        pytest.param(1, 1, 10.0, 0.0, 0.7, id="one hit has no gap"),
        pytest.param(9_000, 23, 60.0, 59.0, 10.0, id="never above 10"),
    ],
)
def test_difficulty(n_hits: int, n_components: int, duration_s: float, span_s: float, expected: float) -> None:
    """Difficulty follows the formula of the spec."""
    assert difficulty(n_hits, n_components, duration_s, span_s) == expected


def test_what_was_written_is_read_back(lanes: Lanes) -> None:
    """Writing and reading keep hits to 1 ms and 1e-4 of velocity; a machine made it."""
    content = write_bsm(HITS, SONG, MADE_BY, NOW, taxonomy=TAXONOMY, lanes=lanes, component_view="full23")
    found = read_bsm(content, TAXONOMY)
    assert found.song == SONG and found.is_machine_made and found.version == "1.1.0"
    assert [(h.onset_us, h.label, h.velocity) for h in found.hits] == [
        (0, "kick", 0.5), (500_000, "hihat_closed", 0.25), (500_000, "ride_bell", 1.0), (750_000, "aux_percussion", None),
    ]  # fmt: skip


def test_a_reader_ignores_what_it_does_not_know(lanes: Lanes) -> None:
    """Unknown keys, other 1.x versions, fractional times, unknown components: all read."""
    obj = write(HITS, lanes) | {"version": "1.7", "mods": {"x": 1}}
    obj["metadata"]["mood"] = "blue"
    obj["hitObjects"] = [{"time": 12.5, "component": "gong", "sparkle": True}, {"time": 12, "component": "ride"}]
    obj.pop("editor")
    found = read_bsm(json.dumps(obj).encode(), TAXONOMY)
    assert found.hits == (Hit(12_000, "ride_bow"), Hit(12_500, "gong")) and not found.is_machine_made


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_required_key_is_exit_3(key: str, lanes: Lanes) -> None:
    """Every required key is missed by name."""
    obj = write(HITS, lanes)
    *path, last = (int(p) if p.isdigit() else p for p in key.split("."))
    place: Any = obj
    for part in path:
        place = place[part]
    del place[last]
    with pytest.raises(InputError, match=key.replace(".", r"\.")) as caught:
        read_bsm(json.dumps(obj).encode(), TAXONOMY, where="x.bsm")
    assert (caught.value.code, caught.value.exit_code, caught.value.where) == ("bad-metadata", 3, "x.bsm")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", "2.0.0"), ("version", "1.x"), ("hitObjects", {}), ("audio", {"hash": "md5:0"}),
        ("hitObjects", [{"time": -1, "component": "kick"}]), ("hitObjects", [{"time": 86_400_000, "component": "kick"}]),
        ("hitObjects", [{"time": True, "component": "kick"}]), ("hitObjects", [{"time": 1, "component": "kick", "velocity": 80}]),
        ("hitObjects", [{"time": 1, "component": 7}]), ("hitObjects", [{"time": 1, "component": "kick", "lane": 7}]),
    ],
)  # fmt: skip
def test_values_of_another_type_or_range_are_exit_3(key: str, value: Any, lanes: Lanes) -> None:
    """Another version, and values outside their ranges, are refused, never clipped."""
    with pytest.raises(InputError):
        read_bsm(json.dumps(write(HITS, lanes) | {key: value}).encode(), TAXONOMY)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"version": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_exit_3(content: bytes) -> None:
    """Garbage is a clean error."""
    with pytest.raises(InputError) as caught:
        read_bsm(content, TAXONOMY)
    assert caught.value.exit_code == 3


def test_every_component_has_a_lane_and_unknown_ones_go_to_the_last(lanes: Lanes) -> None:
    """The table covers the taxonomy; what it does not name is lane 6."""
    assert set(lanes.of_component) == set(TAXONOMY.labels)
    assert lanes.of("gong") == 6 and lanes.layout == "standard_7"


def test_a_lane_that_names_no_component_is_exit_2(data_root: Path, settings: Settings) -> None:
    """A typing error in lanes.yaml does not move hits silently."""
    (data_root / "configs").mkdir()
    (data_root / "configs" / "lanes.yaml").write_text("version: 1\nlayout: mine\nlanes: {0: [kicc]}\nother: 6\n")
    with pytest.raises(ConfigError, match="Did you mean kick"):
        Lanes.load(settings)


@pytest.mark.data
def test_the_handmade_example_agrees_with_our_lanes(shared_data: Path, lanes: Lanes) -> None:
    """56 of 56 hits of simple_beat.bsm are read and carry the lane of our table."""
    content = (shared_data / "beatsight_formats" / "shared" / "formats" / "simple_beat.bsm").read_bytes()
    found = read_bsm(content, TAXONOMY)
    raw = json.loads(content)["hitObjects"]
    assert len(found.hits) == len(raw) == 56
    assert sum(lanes.of((TAXONOMY.canonical(h["component"]) or ("", None))[0]) == h["lane"] for h in raw) == 56
    labels = [h.label for h in found.hits]
    assert {name: labels.count(name) for name in set(labels)} == {
        "hihat_closed": 32, "kick": 8, "snare": 8, "ride_bow": 4, "crash": 2, "tom_mid": 1, "tom_low": 1,
    }  # fmt: skip
    assert not found.is_machine_made and max(h.onset_us for h in found.hits) == 7_750_000
