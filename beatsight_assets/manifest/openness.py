"""Is the hi-hat openness what it claims to be: in range, on hats only, and in agreement with the label? And openness from device curves.

Belongs here: figures about openness in a manifest, calibration curves of devices. Does not belong here: the pedal of the TD-11
(`events.openness_from_pedal`), and changing labels. A note that says open while the pedal says closed keeps its label and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import with_hits
from beatsight_assets.safejson import parse_json
from beatsight_assets.store import read_bytes
from beatsight_assets.taxonomy import HIHATS_WITH_OPENNESS

OPEN_FROM = 0.35  # spec/events.md section 4: above it a hat that is labelled closed disagrees; an open one disagrees at 0
SLACK = 1e-6
MAX_CURVES_BYTES = 1 << 20
RAW_MAX = 127  # a MIDI controller
DIRECTIONS = ("raw_up_closes", "raw_up_opens")
TD11 = "Roland/TD-11"  # the device of Groove, built in: CC4 90 is closed, 0 is open


@dataclass(frozen=True)
class OpennessFigures:
    """Hits of the hats. Medians are over known values, None where there are none."""

    n_closed: int
    n_open: int
    n_unknown: int
    n_conflicts: int  # open hits at 0 and closed hits above OPEN_FROM
    n_out_of_range: int  # below 0, above 1 or not a number
    n_not_on_hats: int  # values on components that have no openness
    closed_median: float | None
    open_median: float | None


class OpennessCounter:
    """Figures over pieces of a manifest with canonical labels; known values are kept (4 bytes each) for the medians."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._values: dict[str, list[NDArray[np.float32]]] = {"hihat_closed": [], "hihat_open": []}

    def add(self, events: pl.DataFrame) -> None:
        """Count one piece."""
        hits = events["components"].explode(empty_as_null=False, keep_nulls=False)
        value = hits.struct.field("openness")
        stated = value.is_not_null()
        label = hits.struct.field("label")
        on_hat = label.is_in(HIHATS_WITH_OPENNESS)
        self._counts["n_unknown"] += int((on_hat & ~stated).sum())
        self._counts["n_not_on_hats"] += int((stated & ~on_hat).sum())
        self._counts["n_out_of_range"] += int((stated & ~value.is_between(0.0, 1.0)).sum())
        for name, found in self._values.items():
            mine = value.filter(label == name)
            self._counts[name] += mine.len()
            found.append(mine.drop_nulls().to_numpy())

    def figures(self) -> OpennessFigures:
        """All pieces together."""
        values = {name: np.concatenate([*found, np.empty(0, np.float32)]) for name, found in self._values.items()}
        closed, opened = values["hihat_closed"], values["hihat_open"]
        return OpennessFigures(
            n_closed=self._counts["hihat_closed"],
            n_open=self._counts["hihat_open"],
            n_unknown=self._counts["n_unknown"],
            n_conflicts=int((opened <= SLACK).sum() + (closed > OPEN_FROM + SLACK).sum()),
            n_out_of_range=self._counts["n_out_of_range"],
            n_not_on_hats=self._counts["n_not_on_hats"],
            closed_median=float(np.median(closed)) if closed.size else None,
            open_median=float(np.median(opened)) if opened.size else None,
        )


def measure_openness(events: pl.DataFrame) -> OpennessFigures:
    """Figures over all hits of a manifest with canonical labels."""
    counter = OpennessCounter()
    counter.add(events)
    return counter.figures()


@dataclass(frozen=True)
class Curve:
    """Openness of a device's hi-hat by controller value, piecewise linear between its points and constant beyond them.

    raw : rising [shape=(n,)]; openness : 0 closed .. 1 open, monotone [shape=(n,)]
    """

    curve_id: str
    device: str  # vendor/model
    raw: tuple[float, ...]
    openness: tuple[float, ...]

    def at(self, raw: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Openness at controller values, float32 [shape=(n,)]."""
        return np.interp(raw, self.raw, self.openness).astype(np.float32)


TD11_CURVE = Curve("roland_td11_cc4", TD11, (0.0, 90.0), (1.0, 0.0))


@dataclass(frozen=True)
class OpennessReport:
    """Hits of closed and open hats.

    changed : openness is another number than before; by_curve : hits with a curve and a raw value, by curve
    without_raw, without_curve : left untouched
    """

    n_hats: int
    changed: int
    by_curve: Mapping[str, int]
    without_raw: int
    without_curve: int

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"by_curve": dict(self.by_curve)}


def read_curves(path: Path) -> dict[str, Curve]:
    """Curves of a calibration file `{vendors: {V: {M: {curve_id, direction, offset, breakpoints: [{raw, normalized}]}}}}` by `V/M`.

    `normalized` is openness, 1 = fully open; `offset` is added and the result clipped to 0..1.

    Raises
    ------
    ConfigError `bad-curve` : no direction, points that do not rise, openness that is not monotone in that direction, out-of-range numbers
    InputError `missing-input` : no such file
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist", code="missing-input", where=path.name)
    try:
        data = parse_json(read_bytes(path, max_bytes=MAX_CURVES_BYTES), where=path.name)
    except InputError as error:
        raise ConfigError(error.message, code="bad-curve", where=error.where) from error
    vendors = data.get("vendors") if isinstance(data, dict) else None
    if not isinstance(vendors, dict) or not all(isinstance(models, dict) for models in vendors.values()):
        raise ConfigError("a calibration file has an object `vendors` of objects by model", code="bad-curve", where=path.name)
    return {f"{v}/{m}": _curve(f"{v}/{m}", entry, path.name) for v, models in vendors.items() for m, entry in models.items()}


def _curve(device: str, entry: Any, where: str) -> Curve:
    def refused(message: str) -> ConfigError:
        return ConfigError(f"{device}: {message}", code="bad-curve", where=where)

    if not isinstance(entry, dict) or entry.get("direction") not in DIRECTIONS:
        given = entry.get("direction") if isinstance(entry, dict) else entry
        raise refused(f"direction is {given!r}. Say which way this device counts: {' or '.join(DIRECTIONS)} (Roland sends 90 when closed)")
    points = entry.get("breakpoints")
    numbers = [
        (p.get("raw"), p.get("normalized")) if isinstance(p, dict) else (None, None) for p in (points if isinstance(points, list) else [])
    ]
    offset = entry.get("offset", 0.0)
    if len(numbers) < 2 or not all(_is_number(x) for pair in numbers for x in pair) or not _is_number(offset):
        raise refused("breakpoints are at least two {raw, normalized} with numbers, offset is a number")
    raw, openness = (tuple(float(x) for x in column) for column in zip(*numbers, strict=True))
    if not (raw[0] >= 0 and raw[-1] <= RAW_MAX and all(a < b for a, b in pairwise(raw))):
        raise refused(f"raw values {raw} must rise within 0..{RAW_MAX}")
    if not all(-SLACK <= x <= 1 + SLACK for x in openness):
        raise refused(f"normalized values {openness} must lie within 0..1")
    sign = 1 if entry["direction"] == "raw_up_opens" else -1
    if any(sign * (b - a) < 0 for a, b in pairwise(openness)) or openness[0] == openness[-1]:
        raise refused(f"it declares {entry['direction']} but normalized runs {openness[0]:g} .. {openness[-1]:g}")
    return Curve(str(entry.get("curve_id") or device), device, raw, tuple(min(max(x + float(offset), 0.0), 1.0) for x in openness))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def with_openness(events: pl.DataFrame, curves: Mapping[str, Curve], *, device: str | None = None) -> tuple[pl.DataFrame, OpennessReport]:
    """Events whose closed and open hats have the openness that their device's curve gives for `openness_raw`, which stays as it is.

    device : `vendor/model` of every event; None: what each event says itself (`extras.device_vendor` and `extras.device_model`, else
        `kit_id`). Hits without a raw value or without a curve are untouched and counted. A second run changes nothing.

    Raises
    ------
    ConfigError `unknown-choice` : no curve for `device`
    """
    if device is not None and device not in curves:
        raise ConfigError.unknown_choice("device", device, curves, where="--device")
    extras = pl.col("extras")
    stated = pl.concat_str(
        extras.str.json_path_match("$.device_vendor"), pl.lit("/"), extras.str.json_path_match("$.device_model")
    )  # null when either is
    devices = events.select(pl.lit(device) if device else pl.coalesce(stated, "kit_id")).to_series()
    if devices.len() != events.height:
        devices = devices.new_from_index(0, events.height)
    event = np.repeat(np.arange(events.height), events["components"].list.len().to_numpy())
    hits = events["components"].explode(empty_as_null=False, keep_nulls=False)
    on_hat = hits.struct.field("label").is_in(HIHATS_WITH_OPENNESS).to_numpy()
    raw = hits.struct.field("openness_raw").fill_null(-1).to_numpy()
    before = hits.struct.field("openness").to_numpy()
    device_of = devices.gather(event)
    after, has_curve = before.copy(), np.zeros(len(hits), dtype=bool)
    by_curve: dict[str, int] = {}
    for name, curve in sorted(curves.items()):
        own = (device_of == name).fill_null(False).to_numpy() & on_hat
        has_curve |= own
        own &= raw >= 0
        if own.any():
            after[own] = curve.at(raw[own])
            by_curve[curve.curve_id] = by_curve.get(curve.curve_id, 0) + int(own.sum())
    changed = ~((before == after) | (np.isnan(before) & np.isnan(after)))
    report = OpennessReport(
        n_hats=int(on_hat.sum()),
        changed=int(changed.sum()),
        by_curve=by_curve,
        without_raw=int((on_hat & has_curve & (raw < 0)).sum()),
        without_curve=int((on_hat & ~has_curve).sum()),
    )
    if not changed.any():
        return events, report
    renewed = pl.DataFrame({"hit": hits}).select(pl.col("hit").struct.with_fields(openness=pl.Series(after, nan_to_null=True)))
    return with_hits(events, renewed["hit"]), report
