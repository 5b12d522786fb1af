"""Truth and predictions as tables: one strict reader for JSONL and Parquet, and who predicted which label.

Belongs here: reading and checking rows, turning scores into labels, reading limits. Does not belong here: any gate.
A row that cannot be trusted is named by file, line and field, and stops the command (exit 3): a NaN, a string where a number is due,
`"false"`, a `sample_id` that occurs twice.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.verdict import Problem

THRESHOLD = 0.5  # spec/gates.md section 6.2, where no calibrated one is given
MAX_SHOWN = 20
SCORE_STRUCT = pl.Struct({"label": pl.String, "p": pl.Float64})
SAMPLE_SCHEMA: dict[str, Any] = {
    "line": pl.Int64,
    "sample_id": pl.String,
    "event_id": pl.String,
    "session_id": pl.String,
    "group_id": pl.String,
    "edge": pl.String,
    "family": pl.String,
    "split": pl.String,
    "dynamic_bucket": pl.String,
    "labels": pl.List(pl.String),
    "scores": pl.List(SCORE_STRUCT),
    "weight": pl.Float64,
    "is_known": pl.Boolean,
    "openness": pl.Float64,
    "velocity": pl.Float64,
    "openness_pred": pl.Float64,
    "velocity_pred": pl.Float64,
    "rejection_score": pl.Float64,
}

Limits = TypeVar("Limits")


def read_samples(path: Path) -> pl.DataFrame:
    """Rows of a truth or prediction file [columns of SAMPLE_SCHEMA]; what a file does not state is null. Unknown fields are ignored.

    `components` stands in for `labels`, `probabilities` for `scores`, `is_unknown` for the opposite of `is_known`.

    Raises
    ------
    InputError `missing-input`, `bad-rows` : every problem as file:line: field: message
    """
    if not path.is_file():
        raise InputError("file does not exist. Run the step that writes it first", code="missing-input", where=str(path))
    frame, problems = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
    if not problems:
        problems = validate(frame, path.name)
    if problems:
        more = f"\n... and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise InputError("\n".join(str(p) for p in problems[:MAX_SHOWN]) + more, code="bad-rows", where=str(path))
    return frame


def validate(frame: pl.DataFrame, file: str = "rows") -> list[Problem]:
    """Problems of a table of samples: absent or repeated ids, numbers that are not finite."""
    problems = [Problem(file, line, "sample_id", "is missing") for line in frame.filter(pl.col("sample_id").is_null())["line"]]
    repeated = frame.filter(
        pl.col("sample_id").is_not_null() & pl.col("sample_id").is_duplicated() & ~pl.col("sample_id").is_first_distinct()
    )
    problems += [
        Problem(file, line, "sample_id", f"{name!r} occurs twice") for line, name in repeated.select("line", "sample_id").iter_rows()
    ]
    for name, kind in SAMPLE_SCHEMA.items():
        if kind == pl.Float64:
            bad = frame.filter(pl.col(name).is_not_null() & ~pl.col(name).is_finite())
            problems += [Problem(file, line, name, f"{value} is no finite number") for line, value in bad.select("line", name).iter_rows()]
    scores = exploded_scores(frame)
    bad = scores.filter(pl.col("p").is_null() | ~pl.col("p").is_finite() | pl.col("label").is_null())
    problems += [
        Problem(file, line, f"scores.{label}", f"{p} is no finite number")
        for line, label, p in bad.select("line", "label", "p").iter_rows()
    ]
    return sorted(problems, key=lambda p: p.line)


def exploded_scores(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """One row per sample and scored label: `line`, the named columns, `label`, `p`."""
    return frame.select("line", *columns, "scores").explode("scores", empty_as_null=False, keep_nulls=False).unnest("scores")


def _read_jsonl(path: Path) -> tuple[pl.DataFrame, list[Problem]]:
    def refuse(token: str) -> None:
        raise ValueError(f"{token} is no JSON number")

    problems: list[Problem] = []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(path.name, number, _field_near(line), f"not a JSON object: {error}"))
            continue
        if not isinstance(row, dict):
            problems.append(Problem(path.name, number, "row", f"must be an object, not {type(row).__name__}"))
            continue
        rows.append(_checked_row(row, path.name, number, problems))
    return pl.DataFrame(rows, schema=SAMPLE_SCHEMA, orient="row"), problems


def _field_near(line: bytes) -> str:
    """Name of the key in front of the first NaN or Infinity of a line, else `row`."""
    text = line.decode(errors="replace")
    for token in ("NaN", "-Infinity", "Infinity"):
        head, found, _ = text.partition(f" {token}") if f" {token}" in text else text.partition(token)
        if found:
            quoted = head.rstrip(" :").split('"')
            return quoted[-2] if len(quoted) > 2 else "row"
    return "row"


def _checked_row(row: Mapping[str, Any], file: str, line: int, problems: list[Problem]) -> dict[str, Any]:
    found: dict[str, Any] = {"line": line}

    def take(target: str, source: str, convert: Callable[[Any], Any]) -> None:
        if row.get(source) is None:
            return
        try:
            found[target] = convert(row[source])
        except (TypeError, ValueError) as error:
            problems.append(Problem(file, line, source, str(error)))

    for name, kind in SAMPLE_SCHEMA.items():
        if kind == pl.String:
            take(name, name, _text)
        elif kind == pl.Float64:
            take(name, name, _number)
        elif kind == pl.Boolean:
            take(name, name, _boolean)
    take("labels", "labels" if row.get("labels") is not None else "components", _labels)
    take("scores", "scores" if row.get("scores") is not None else "probabilities", _scores)
    if row.get("is_unknown") is not None:
        known = found.get("is_known")
        take("is_known", "is_unknown", lambda value: not _boolean(value))
        if known is not None and known != found["is_known"]:
            problems.append(Problem(file, line, "is_unknown", "says the same as is_known; one sample cannot be both"))
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a string, got {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"must be a finite number, got {value!r}")
    return float(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be true or false, got {value!r}")
    return value


def _labels(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"must be a list, got {value!r}")
    names = [_text(item.get("label") if isinstance(item, dict) else item) for item in value]
    return list(dict.fromkeys(names))


def _scores(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        pairs = [(_text(item["label"]), item["p"]) if isinstance(item, dict) and {"label", "p"} <= set(item) else None for item in value]
        if None in pairs:
            raise TypeError("a list of scores must hold objects {label, p}")
        value = dict(pair for pair in pairs if pair)
    if not isinstance(value, dict):
        raise TypeError(f"must map labels to numbers, got {value!r}")
    return [{"label": label, "p": _number(p)} for label, p in value.items()]


def _read_parquet(path: Path) -> tuple[pl.DataFrame, list[Problem]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"not a readable Parquet file: {error}", code="bad-rows", where=str(path)) from error
    if "components" in frame.columns and "labels" not in frame.columns:
        frame = frame.with_columns(labels=pl.col("components").list.eval(pl.element().struct.field("label")))
    if "is_unknown" in frame.columns and "is_known" not in frame.columns:
        frame = frame.with_columns(is_known=~pl.col("is_unknown"))
    frame = frame.with_columns(line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    problems = []
    columns = []
    for name, kind in SAMPLE_SCHEMA.items():
        if name not in frame.columns:
            columns.append(pl.lit(None, dtype=kind).alias(name))
        elif _fits(frame.schema[name], kind):
            columns.append(pl.col(name).cast(kind))
        else:
            problems.append(Problem(path.name, 0, name, f"column is {frame.schema[name]}, it must be {kind}"))
    return frame.select(columns) if not problems else frame.clear(), problems


def _fits(found: pl.DataType, wanted: pl.DataType) -> bool:
    """Columns keep their kind: numbers may be of any width, nothing is parsed from text."""
    if found == pl.Null:
        return True
    if wanted == pl.Float64:
        return found.is_numeric()
    if isinstance(wanted, pl.List) and isinstance(found, pl.List):
        return _fits(found.inner, wanted.inner)  # type: ignore[arg-type]
    if isinstance(wanted, pl.Struct) and isinstance(found, pl.Struct):
        have = {f.name: f.dtype for f in found.fields}
        return all(f.name in have and _fits(have[f.name], f.dtype) for f in wanted.fields)  # type: ignore[arg-type]
    return found == wanted


@dataclass(frozen=True)
class Decisions:
    """Truth and prediction by sample and class.

    truth, predicted : bool [shape=(n_samples, n_classes)]; weight : float64 [shape=(n_samples,)]
    missing : samples of the truth without a prediction (they count as the empty set); n_ignored : predictions without truth
    """

    classes: tuple[str, ...]
    truth: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    weight: NDArray[np.float64]
    samples: pl.DataFrame
    missing: tuple[str, ...]
    n_ignored: int


def decide(
    truth: pl.DataFrame, predictions: pl.DataFrame, *, thresholds: float | Mapping[str, float] = THRESHOLD, top_k: int | None = None
) -> Decisions:
    """Which labels were predicted for the samples of the truth: scores at or above the threshold, or the `top_k` highest, else the listed labels.

    Predictions are not cut down to the classes of the truth: an extra label is a false positive. Ties of `top_k` go by label.
    Samples come in the order of `sample_id`, so the order of rows changes nothing.
    """
    truth = truth.sort("sample_id").with_row_index("sample")
    answers = predictions.with_columns(answered=pl.lit(True)).join(truth.select("sample", "sample_id"), on="sample_id", how="inner")
    scored = exploded_scores(answers, "sample")
    if top_k is not None:
        scored = scored.sort(["sample", "p", "label"], descending=[False, True, False]).filter(
            pl.int_range(pl.len()).over("sample") < top_k
        )
    elif isinstance(thresholds, Mapping):
        limit = pl.col("label").replace_strict(dict(thresholds), default=THRESHOLD, return_dtype=pl.Float64)
        scored = scored.filter(pl.col("p") >= limit)
    else:
        scored = scored.filter(pl.col("p") >= thresholds)
    listed = answers.filter(pl.col("scores").is_null()).select("sample", label=pl.col("labels"))
    predicted = pl.concat([scored.select("sample", "label"), _exploded(listed)])
    labelled = _exploded(truth.select("sample", label=pl.col("labels")))
    classes = tuple(sorted({*labelled["label"], *predicted["label"]}))
    missing = truth.join(predictions.select("sample_id"), on="sample_id", how="anti")["sample_id"].to_list()
    return Decisions(
        classes=classes,
        truth=_matrix(labelled, truth.height, classes),
        predicted=_matrix(predicted, truth.height, classes),
        weight=truth["weight"].fill_null(1.0).to_numpy(),
        samples=truth,
        missing=tuple(missing),
        n_ignored=predictions.height - answers.height,
    )


def _exploded(table: pl.DataFrame) -> pl.DataFrame:
    return table.explode("label", empty_as_null=False, keep_nulls=False).filter(pl.col("label").is_not_null())


def _matrix(pairs: pl.DataFrame, n_samples: int, classes: tuple[str, ...]) -> NDArray[np.bool_]:
    matrix = np.zeros((n_samples, len(classes)), dtype=bool)
    if pairs.height:
        column = pairs["label"].replace_strict({c: i for i, c in enumerate(classes)}, return_dtype=pl.Int64)
        matrix[pairs["sample"].to_numpy(), column.to_numpy()] = True
    return matrix


def read_limits(kind: type[Limits], values: Mapping[str, Any], where: str) -> Limits:
    """Limits of a gate as its config section writes them.

    Raises
    ------
    ConfigError `unknown-choice`, `bad-config`
    """
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise ConfigError.unknown_choice("limit", name, known, where=where)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)):
            raise ConfigError(f"{name} must be a number, got {value!r}", code="bad-config", where=where)
    return kind(**values)


def asked_for(limits: Any) -> dict[str, float]:
    """The limits that are set, as a verdict stores them."""
    return {k: v for k, v in vars(limits).items() if v is not None}
