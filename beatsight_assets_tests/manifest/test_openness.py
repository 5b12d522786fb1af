"""Openness from device curves (T79)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import hits_of
from beatsight_assets.manifest.openness import TD11, TD11_CURVE, measure_openness, read_curves, with_openness
from beatsight_assets_tests.manifest.factory import event, frame, hit

POINTS = [{"raw": 0, "normalized": 1.0}, {"raw": 50, "normalized": 0.5}, {"raw": 127, "normalized": 0.0}]


def curves(folder: Path, **entry: Any) -> Path:
    """A calibration file with one device."""
    path = folder / "curves.json"
    full = {"curve_id": "c1", "direction": "raw_up_closes", "offset": 0.0, "breakpoints": POINTS} | entry
    path.write_text(json.dumps({"vendors": {"V": {"M": {k: v for k, v in full.items() if v is not None}}}}))
    return path


def test_a_curve_sets_openness_and_keeps_the_raw_value(tmp_path: Path) -> None:
    """Hats with a raw value get the curve's openness, 1 = open; everything else is untouched and counted; a second run changes 0."""
    rows = frame(
        [
            event(0.0, hit("hihat_open", openness_raw=25), "kick"),
            event(1.0, hit("hihat_closed", openness_raw=127), hit("snare", openness_raw=3)),
            event(2.0, hit("hihat_open", openness=0.3)),
            event(3.0, hit("hihat_pedal", openness_raw=50)),
        ]
    )
    known = read_curves(curves(tmp_path))
    found, report = with_openness(rows, known, device="V/M")
    hits = hits_of(found)
    assert hits["openness"].to_list() == [0.75, None, 0.0, None, pytest.approx(0.3), None]
    assert hits["openness_raw"].to_list() == hits_of(rows)["openness_raw"].to_list()
    assert report.to_json() == {"n_hats": 3, "changed": 2, "by_curve": {"c1": 2}, "without_raw": 1, "without_curve": 0}
    assert found.drop("components").equals(rows.drop("components"))
    again, second = with_openness(found, known, device="V/M")
    assert second.changed == 0 and again.equals(found)


def test_each_event_names_its_own_device(tmp_path: Path) -> None:
    """Without --device the vendor and model of older rows, else the kit, choose the curve; an event without one is counted."""
    rows = frame(
        [
            event(0.0, hit("hihat_open", openness_raw=127), extras={"device_vendor": "V", "device_model": "M"}),
            event(1.0, hit("hihat_open", openness_raw=127), kit_id="V/M"),
            event(2.0, hit("hihat_open", openness_raw=127), kit_id="other"),
        ]
    )
    found, report = with_openness(rows, read_curves(curves(tmp_path)))
    assert hits_of(found)["openness"].to_list() == [0.0, 0.0, None]
    assert (report.changed, report.without_curve) == (2, 1)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"direction": None}, "direction is None"),
        ({"direction": "up"}, "direction is 'up'"),
        ({"direction": "raw_up_opens"}, "raw_up_opens but normalized runs 1 .. 0"),
        ({"breakpoints": [POINTS[0]]}, "at least two"),
        ({"breakpoints": [POINTS[1], POINTS[0]]}, "must rise"),
        ({"breakpoints": [POINTS[0], {"raw": 9, "normalized": 1.5}]}, "within 0..1"),
        ({"breakpoints": [POINTS[0], {"raw": 9, "normalized": 0.2}, {"raw": 10, "normalized": 0.3}]}, "raw_up_closes"),
        ({"breakpoints": [POINTS[0], {"raw": "9", "normalized": 0.2}]}, "numbers"),
    ],
)
def test_a_curve_that_cannot_be_right_is_a_configuration_error(tmp_path: Path, entry: dict[str, Any], word: str) -> None:
    """Without a direction, or not monotone that way, nothing is converted: exit 2."""
    with pytest.raises(ConfigError, match=word) as refused:
        read_curves(curves(tmp_path, **entry))
    assert (refused.value.exit_code, refused.value.code) == (2, "bad-curve")


def test_a_missing_file_is_input_and_an_unknown_device_is_usage(tmp_path: Path) -> None:
    """Exit 3 and exit 2."""
    with pytest.raises(InputError):
        read_curves(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="V/M"):
        with_openness(frame([event(0.0, "kick")]), read_curves(curves(tmp_path)), device="V/N")


@pytest.mark.data
def test_the_calibration_file_at_hand_is_refused(shared_data: Path) -> None:
    """It states no direction, and for Roland its numbers run the wrong way."""
    path = shared_data / "beatsight_formats/ai-pipeline/training/calibration/openness_curves.json"
    with pytest.raises(ConfigError, match="direction"):
        read_curves(path)


@pytest.mark.data
def test_openness_of_real_hats(groove_events: pl.DataFrame) -> None:
    """Groove: closed hits have median openness at most 0.05, open ones at least 0.5; the TD-11 curve changes nothing."""
    figures = measure_openness(groove_events)
    assert figures.closed_median is not None and figures.closed_median <= 0.05
    assert figures.open_median is not None and figures.open_median >= 0.5
    _, report = with_openness(groove_events, {TD11: TD11_CURVE}, device=TD11)
    assert report.n_hats > 40_000 and report.changed == 0
    raw = hits_of(groove_events.head(20_000)).filter(pl.col("openness_raw").is_not_null())
    wiped = groove_events.head(20_000).with_columns(
        components=pl.col("components").list.eval(pl.element().struct.with_fields(openness=pl.lit(None, pl.Float32)))
    )
    restored, _ = with_openness(wiped, {TD11: TD11_CURVE}, device=TD11)
    again = hits_of(restored).filter(pl.col("openness_raw").is_not_null())
    assert (again["openness"] - raw["openness"]).abs().max() <= 1e-6
