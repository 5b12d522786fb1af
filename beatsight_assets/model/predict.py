"""Stage `predictions`: what the candidate says about every event, for the readiness gates to judge.

Belongs here: scores of events, of windows at stream boundaries, of sounds that are no drums. Does not belong here: any limit
(`readiness`), peaks and matching (`evaluate`).

A score is the largest calibrated probability of a class within 30 ms of the event. Classes about which the annotation says nothing for
an event have neither label nor score. Boundary and open-set samples are cut from the audio: the network hears the window and silence
around it, as it would in a stream.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.audio import find_audio, read_mono
from beatsight_assets.errors import InputError
from beatsight_assets.events import read_events
from beatsight_assets.features.cache import index_path, read_features
from beatsight_assets.model.checkpoint import Model, load_model
from beatsight_assets.model.decode import HIHAT_CLASSES, SCORE_REACH_MS, scores_around, to_probabilities
from beatsight_assets.model.evaluate import candidate_folder
from beatsight_assets.model.network import apply_network, apply_windows
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.store import contain, read_lines
from beatsight_assets.taxonomy import UNSPECIFIED, Taxonomy, View
from beatsight_assets.units import keyed_order

VERSION = "1"
STAGE = "predictions"
SPLITS = ("val", "test")
MAX_KNOWN = 1_000  # hits of the test split that stand for "known" in the open-set gate, chosen by key
KNOWN_WINDOW_S = (0.08, 0.20)  # before and after the onset: the context of spec/events.md section 5
SCORE_STRUCT = pl.Struct({"label": pl.String, "p": pl.Float32})


@dataclass(frozen=True)
class PredictOptions:
    """Which candidate; default: the one trained last."""

    run: str | None = None


@dataclass(frozen=True)
class _Setup:
    """What every part needs."""

    settings: Settings
    model: Model
    view: View
    taxonomy: Taxonomy
    index: pl.DataFrame  # of the feature cache
    events: pl.DataFrame  # of val and test


def class_columns(
    view: View, taxonomy: Taxonomy, components: Sequence[Mapping[str, Any]], coverage: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    """(classes that are there, classes nothing is known about) of one event, as columns of the view (`spec/events.md` section 6)."""
    column = {name: i for i, name in enumerate(view.classes)}
    covered = set(view.classes) if coverage is None else set(view.covered(taxonomy, coverage))
    masked = {column[c] for c in view.classes if c not in covered}
    present = set()
    for component in components:
        unknown = view.masked_by_unspecified(taxonomy, component["label"]) if component["instrument_variant"] == UNSPECIFIED else ()
        masked |= {column[c] for c in unknown}
        if not unknown and component["label"] in view.class_of:
            present.add(column[view.class_of[component["label"]]])
    return sorted(present - masked), sorted(masked)


def score_column(probabilities: NDArray[np.float32], masked: Sequence[Sequence[int]], classes: Sequence[str]) -> pl.Series:
    """Scores as a list of {label, p} per row, without the masked classes. `probabilities` [shape=(n_rows, n_classes)]."""
    keep = np.ones(probabilities.shape, dtype=bool)
    for row, columns in zip(keep, masked, strict=True):
        row[list(columns)] = False
    at, column = np.nonzero(keep)
    flat = pl.DataFrame({"row": at, "label": pl.Series([classes[int(c)] for c in column], dtype=pl.String), "p": probabilities[at, column]})
    grouped = flat.group_by("row", maintain_order=True).agg(scores=pl.struct("label", pl.col("p").cast(pl.Float32)))
    every = pl.DataFrame({"row": np.arange(len(probabilities))}).join(grouped, on="row", how="left")
    return every["scores"].fill_null([]).cast(pl.List(SCORE_STRUCT))


def predict_split(setup: _Setup, split: str) -> pl.DataFrame:
    """One row per event of a split that has features."""
    settings, model = setup.settings, setup.model
    rows: list[dict[str, Any]] = []
    scores: list[NDArray[np.float32]] = []
    masked: list[list[int]] = []
    for recording in setup.index.filter(pl.col("split") == split).iter_rows(named=True):
        events = _events_of(setup, recording).filter(pl.col("onset_time") * model.definition.frames_per_s < recording["n_frames"])
        if not events.height:
            continue
        outputs = apply_network(model.network, read_features(settings.layout.resolve(recording["feature_path"])).astype(np.float32))
        probabilities = to_probabilities(outputs.onset, model.temperature)
        onsets = events["onset_time"].to_numpy()
        scores.append(scores_around(probabilities, onsets, model.definition.frames_per_s))
        for onset_s, row in zip(onsets, events.iter_rows(named=True), strict=True):
            present, unknown = class_columns(setup.view, setup.taxonomy, row["components"], recording["coverage"])
            masked.append(unknown)
            rows.append(
                {
                    **{k: row[k] for k in ("event_id", "session_id", "group_id", "source_set")},
                    "sample_id": row["event_id"],
                    "onset_time": onset_s,
                    "split": split,
                    "labels": [model.classes[c] for c in present],
                    **_loudest(row["components"]),
                    **_read_heads(setup, row["components"], outputs.velocity, outputs.openness, probabilities, float(onset_s)),
                }
            )
    schema: dict[str, Any] = {
        "sample_id": pl.String, "event_id": pl.String, "session_id": pl.String, "group_id": pl.String, "source_set": pl.String, "split": pl.String,
        "onset_time": pl.Float64, "labels": pl.List(pl.String), "dynamic_bucket": pl.String, "velocity": pl.Float32, "velocity_pred": pl.Float32,
        "openness": pl.Float32, "openness_pred": pl.Float32,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(scores=_joined(scores, masked, model.classes))


def _joined(scores: Sequence[NDArray[np.float32]], masked: Sequence[Sequence[int]], classes: Sequence[str]) -> pl.Series:
    matrix = np.concatenate(scores) if scores else np.zeros((0, len(classes)), dtype=np.float32)
    return score_column(matrix, masked, classes).alias("scores")


def _events_of(setup: _Setup, recording: Mapping[str, Any]) -> pl.DataFrame:
    return setup.events.filter((pl.col("source_set") == recording["source_set"]) & (pl.col("session_id") == recording["session_id"]))


def _loudest(components: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Bucket and velocity of the loudest hit, openness of the hi-hat; None where the source has none."""
    loud = max(components, key=lambda c: -1.0 if c["velocity"] is None else c["velocity"])
    opens = [c["openness"] for c in components if c["openness"] is not None]
    return {"dynamic_bucket": loud["dynamic_bucket"], "velocity": loud["velocity"], "openness": opens[0] if opens else None}


def _read_heads(
    setup: _Setup,
    components: Sequence[Mapping[str, Any]],
    velocity: NDArray[np.float32],
    openness: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    onset_s: float,
) -> dict[str, float | None]:
    """Velocity of the loudest hit and openness of the hi-hat, read where its class is most probable within reach."""
    loud = max(components, key=lambda c: -1.0 if c["velocity"] is None else c["velocity"])
    hat = next((c for c in components if c["openness"] is not None), None)
    found: dict[str, float | None] = {"velocity_pred": None, "openness_pred": None}
    reach = round(SCORE_REACH_MS / 1000.0 * setup.model.definition.frames_per_s)
    centre = round(onset_s * setup.model.definition.frames_per_s)
    first, last = max(centre - reach, 0), min(centre + reach + 1, len(probabilities))
    for name, component in (("velocity_pred", loud), ("openness_pred", hat)):
        label = setup.view.class_of.get(component["label"]) if component else None
        if label is None or first >= last:
            continue
        column = setup.view.classes.index(label)
        frame = first + int(np.argmax(probabilities[first:last, column]))
        if name == "velocity_pred":
            found[name] = float(velocity[frame, column])
        elif label in HIHAT_CLASSES:
            found[name] = float(openness[frame])
    return found


def cut_window(samples: NDArray[np.float32], start: int, length: int) -> NDArray[np.float32]:
    """`length` samples from `start` (may be negative), zeros where the recording has none."""
    window = np.zeros(length, dtype=np.float32)
    first, last = max(start, 0), min(start + length, len(samples))
    if first < last:
        window[first - start : last - start] = samples[first:last]
    return window


def _audio_of(setup: _Setup, source_set: str, relpath: str) -> NDArray[np.float32]:
    path = find_audio(setup.settings.raw_roots(source_set), relpath)
    if path is None:
        raise InputError("audio of a recording with features is gone. Run the features stage again", code="missing-input", where=relpath)
    return read_mono(path, setup.model.definition.rate_hz).samples


def _window_probabilities(model: Model, windows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Calibrated probabilities of equally long windows of audio, float32 [shape=(n, n_frames, n_classes)]."""
    features = np.stack([model.definition.compute(w) for w in windows])
    return to_probabilities(apply_windows(model.network, features), model.temperature)


def predict_boundary(setup: _Setup, pack: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per row of the boundary pack whose recording has audio; scores from the window alone."""
    model, rate_hz = setup.model, setup.model.definition.rate_hz
    known = setup.index.select("source_set", "session_id", "audio_path", "coverage").rows_by_key(
        ["source_set", "session_id"], named=True, unique=True
    )
    components = {row["event_id"]: row["components"] for row in setup.events.select("event_id", "components").iter_rows(named=True)}
    by_session: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in pack:
        key = (row["source_set"], row["session_id"])
        if key in known and row["event_id"] in components:
            by_session.setdefault(key, []).append(row)
    rows: list[dict[str, Any]] = []
    scores: list[NDArray[np.float32]] = []
    masked: list[list[int]] = []
    for key, wanted in sorted(by_session.items()):
        samples = _audio_of(setup, key[0], known[key]["audio_path"])
        starts = sorted({(r["window_index"] * r["hop_size_ms"], r["window_size_ms"]) for r in wanted})
        heard: dict[tuple[float, float], NDArray[np.float32]] = {}
        for batch in _batches(starts):
            cuts = [cut_window(samples, round(at * rate_hz / 1000.0), round(size * rate_hz / 1000.0)) for at, size in batch]
            heard |= dict(zip(batch, _window_probabilities(model, cuts), strict=True))
        for row in wanted:
            start_ms = row["window_index"] * row["hop_size_ms"]
            inside = np.array([(row["onset_ms"] - start_ms) / 1000.0])
            present, unknown = class_columns(setup.view, setup.taxonomy, components[row["event_id"]], known[key]["coverage"])
            scores.append(scores_around(heard[(start_ms, row["window_size_ms"])], inside, model.definition.frames_per_s))
            masked.append(unknown)
            rows.append(
                {
                    **{k: row[k] for k in ("sample_id", "event_id", "session_id", "group_id", "source_set", "edge", "distance_ms")},
                    "onset_time": row["onset_ms"] / 1000.0,
                    "labels": [model.classes[c] for c in present],
                }
            )
    schema: dict[str, Any] = {
        "sample_id": pl.String, "event_id": pl.String, "session_id": pl.String, "group_id": pl.String, "source_set": pl.String, "edge": pl.String,
        "distance_ms": pl.Float64, "onset_time": pl.Float64, "labels": pl.List(pl.String),
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(scores=_joined(scores, masked, model.classes)).sort("sample_id")


def _batches(items: Sequence[tuple[float, float]], size: int = 32) -> Iterator[list[tuple[float, float]]]:
    """Runs of at most `size` windows of equal length."""
    for length in sorted({n for _, n in items}):
        equal = [i for i in items if i[1] == length]
        for start in range(0, len(equal), size):
            yield equal[start : start + size]


def predict_openset(setup: _Setup, listings: Sequence[Path]) -> pl.DataFrame:
    """Known: windows around hits of the test split. Unknown: the clips that the listings (`id, is_known, family, file`) name.

    A known sample scores within reach of its onset, an unknown one anywhere in its clip: every moment at which the model could be fooled counts.
    """
    model, rate_hz = setup.model, setup.model.definition.rate_hz
    rows: list[dict[str, Any]] = []
    scores: list[NDArray[np.float32]] = []
    test = setup.index.filter(pl.col("split") == "test")
    events = setup.events.join(
        test.select("source_set", "session_id", "audio_path"), on=["source_set", "session_id"], how="inner", suffix="_found"
    )
    chosen = sorted(events["event_id"], key=lambda name: keyed_order(0, name))[:MAX_KNOWN]
    wanted = events.filter(pl.col("event_id").is_in(chosen)).sort("source_set", "session_id", "onset_time")
    before, after = (round(s * rate_hz) for s in KNOWN_WINDOW_S)
    for (source_set, relpath), part in wanted.group_by(["source_set", "audio_path_found"], maintain_order=True):
        samples = _audio_of(setup, str(source_set), str(relpath))
        onsets = part["onset_time"].to_numpy()
        for start in range(0, part.height, 64):
            cuts = [cut_window(samples, round(t * rate_hz) - before, before + after) for t in onsets[start : start + 64]]
            at = np.array([KNOWN_WINDOW_S[0]])
            scores += [scores_around(p, at, model.definition.frames_per_s)[0] for p in _window_probabilities(model, cuts)]
        rows += [{"sample_id": e, "event_id": e, "session_id": s, "group_id": g, "is_known": True, "family": "drums"}
                 for e, s, g in part.select("event_id", "session_id", "group_id").iter_rows()]  # fmt: skip
    for listing in listings:
        for row in csv.DictReader(io.StringIO(listing.read_text(encoding="utf-8"))):
            if row["is_known"] not in ("true", "false"):
                raise InputError(
                    f"is_known is {row['is_known']!r}; true or false is due", code="bad-metadata", where=f"{listing.name}: {row['id']}"
                )
            clip = read_mono(contain(listing.parent, row["file"]), rate_hz).samples
            scores.append(_window_probabilities(model, [clip])[0].max(axis=0))
            rows.append(
                {
                    "sample_id": row["id"],
                    "event_id": None,
                    "session_id": None,
                    "group_id": None,
                    "is_known": row["is_known"] == "true",
                    "family": row["family"],
                }
            )
    schema: dict[str, Any] = {
        "sample_id": pl.String, "event_id": pl.String, "session_id": pl.String, "group_id": pl.String, "is_known": pl.Boolean, "family": pl.String,
    }  # fmt: skip
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.with_columns(scores=_joined([s[None, :] for s in scores], [[]] * len(scores), model.classes))


def find_listings(settings: Settings) -> list[Path]:
    """openset.csv of every enabled dataset that has one."""
    roots = [r for name, config in settings.datasets.items() if config.enabled for r in settings.raw_roots(name)]
    return [path for r in roots if (path := r / "openset.csv").is_file()]


def run(settings: Settings, options: PredictOptions = PredictOptions(), *, progress: Progress = silent) -> Report:
    """Publish runs/<run>/predictions/{val,test,boundary,openset}.parquet; boundary and openset only when their input exists.

    Raises
    ------
    GateFailed : `no-candidate`
    InputError : `missing-input`, `bad-metadata`, `bad-checkpoint`
    """
    folder = candidate_folder(settings, options.run)
    layout = settings.layout
    model = load_model(folder)
    pack = layout.report("readiness", "boundary_pack") / "labels.jsonl"
    listings = find_listings(settings)
    parents = [
        ("model", folder / "model.safetensors"),
        ("model_card", folder / "model.json"),
        ("manifest", layout.annotated),
        ("splits", layout.splits),
        ("feature_index", index_path(settings, model.definition)),
    ]
    parents += [("boundary_pack", pack)] if pack.is_file() else []
    parents += [("openset", p) for p in listings if p.is_relative_to(layout.root)]

    def work() -> Outcome:
        taxonomy = Taxonomy.load(settings)
        view = taxonomy.view(model.view)
        index = pl.read_parquet(index_path(settings, model.definition)).filter(pl.col("split").is_in(list(SPLITS)))
        events = read_events(layout.annotated).filter(~pl.col("negative_example") & (pl.col("components").list.len() > 0))
        events = events.join(index.select("source_set", "session_id"), on=["source_set", "session_id"], how="semi")
        setup = _Setup(settings, model, View(view.name, model.classes, view.class_of), taxonomy, index, events)
        tables = {split: predict_split(setup, split) for split in SPLITS}
        progress(f"{folder.name}: {', '.join(f'{t.height:,} events of {s}' for s, t in tables.items())} scored")
        if pack.is_file():
            rows, _ = read_lines(pack)
            tables["boundary"] = predict_boundary(setup, rows)
            progress(f"{folder.name}: {tables['boundary'].height:,} boundary windows scored")
        if listings:
            tables["openset"] = predict_openset(setup, listings)
            progress(f"{folder.name}: {tables['openset'].height:,} open-set samples scored")
        metadata = {"schema": "beatsight.predictions/1", "model_sha256": model.digest}
        outputs: list[tuple[str, Path, int | None]] = []
        for name, table in tables.items():
            target = layout.run_dir(folder.name) / "predictions" / f"{name}.parquet"
            settings.store.publish_frame(target, table, metadata=metadata)
            outputs.append((f"predictions_{name}", target, table.height))
        labelled = {name: hits for name, t in tables.items() if "labels" in t.columns and (hits := int(t["labels"].list.len().sum() or 0))}
        return Outcome(
            outputs=outputs,
            figures={f"rows_{name}": t.height for name, t in tables.items()},
            facts={"run": folder.name, "labels": labelled, "absent": [n for n in ("boundary", "openset") if n not in tables]},
            table=Table(("part", "rows"), tuple((name, t.height) for name, t in tables.items())),
        )

    return run_stage(settings, STAGE, version=VERSION, options={"run": folder.name}, parents=parents, work=work)
