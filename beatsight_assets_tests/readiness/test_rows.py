"""Reading truth and predictions strictly."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.readiness.boundary import BoundaryLimits
from beatsight_assets.readiness.rows import decide, read_limits, read_samples


def written(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("lines", "field", "line"),
    [
        (['{"sample_id": "a", "weight": NaN}'], "weight", 1),
        (['{"sample_id": "a"}', '{"sample_id": "b", "scores": {"kick": NaN}}'], "kick", 2),
        (['{"sample_id": "a", "scores": {"kick": "0.5"}}'], "scores", 1),
        (['{"sample_id": "a", "is_known": "false"}'], "is_known", 1),
        (['{"sample_id": "a", "is_known": 1}'], "is_known", 1),
        (['{"sample_id": "a", "is_known": true, "is_unknown": true}'], "is_unknown", 1),
        (['{"sample_id": "a"}', '{"sample_id": "a"}'], "sample_id", 2),
        (['{"labels": ["kick"]}'], "sample_id", 1),
        (['{"sample_id": "a", "openness": true}'], "openness", 1),
        (['{"sample_id": "a", "labels": "kick"}'], "labels", 1),
        (['{"sample_id": "a"', "[1]"], "row", 1),
    ],
)
def test_a_row_that_cannot_be_trusted_is_named_by_file_line_and_field(tmp_path: Path, lines: list[str], field: str, line: int) -> None:
    """Section 0.6: NaN, text where a number is due, "false" and repeated ids stop the command with exit 3."""
    with pytest.raises(InputError, match=rf"rows\.jsonl:{line}: {field}:") as caught:
        read_samples(written(tmp_path, *lines))
    assert caught.value.exit_code == 3


def test_every_bad_row_is_listed_at_once(tmp_path: Path) -> None:
    """A file with two bad rows names both."""
    with pytest.raises(InputError) as caught:
        read_samples(written(tmp_path, '{"sample_id": 3}', '{"sample_id": "b", "velocity": "x"}'))
    assert "rows.jsonl:1: sample_id" in str(caught.value)
    assert "rows.jsonl:2: velocity" in str(caught.value)


def test_parquet_and_jsonl_are_read_alike(tmp_path: Path) -> None:
    """Every readiness command reads Parquet and JSONL: the same rows give the same table."""
    rows = [
        {"sample_id": "a", "labels": ["kick"], "scores": {"kick": 0.5, "snare": 0.25}},
        {"sample_id": "b", "labels": [], "scores": {"snare": 1.0}},
    ]
    from_lines = read_samples(written(tmp_path, *(json.dumps(r) for r in rows)))
    table = pl.DataFrame({"sample_id": ["a", "b"], "labels": [["kick"], []], "scores": [
        [{"label": "kick", "p": 0.5}, {"label": "snare", "p": 0.25}], [{"label": "snare", "p": 1.0}]]}, schema_overrides={"labels": pl.List(pl.String)})  # fmt: skip
    table.write_parquet(tmp_path / "rows.parquet")
    assert from_lines.equals(read_samples(tmp_path / "rows.parquet"))


def test_parquet_with_text_scores_or_nan_is_refused(tmp_path: Path) -> None:
    """Nothing is parsed from text, and a NaN is found in Parquet as in JSONL."""
    pl.DataFrame({"sample_id": ["a"], "is_known": ["false"]}).write_parquet(tmp_path / "text.parquet")
    pl.DataFrame({"sample_id": ["a"], "scores": [[{"label": "kick", "p": float("nan")}]]}).write_parquet(tmp_path / "nan.parquet")
    with pytest.raises(InputError, match="is_known"):
        read_samples(tmp_path / "text.parquet")
    with pytest.raises(InputError, match=r"nan\.parquet:1: scores\.kick"):
        read_samples(tmp_path / "nan.parquet")


def test_labels_come_from_threshold_top_k_or_the_listed_ones(tmp_path: Path) -> None:
    """A label is predicted at or above its threshold; top k goes by score and then by name; listed labels are taken as they are."""
    path = written(
        tmp_path,
        '{"sample_id": "a", "scores": {"x": 0.5, "y": 0.49, "z": 0.5}}',
        '{"sample_id": "b", "labels": ["x"]}',
        '{"sample_id": "stray", "labels": []}',
    )
    predictions = read_samples(path)
    truth = predictions.filter(pl.col("sample_id") != "stray").with_columns(labels=pl.Series([["y"], ["x"]]))

    def predicted(**options: object) -> list[list[str]]:
        made = decide(truth, predictions, **options)  # type: ignore[arg-type]
        assert made.n_ignored == 1
        return [[c for c, hit in zip(made.classes, row, strict=True) if hit] for row in made.predicted]

    assert predicted() == [["x", "z"], ["x"]]
    assert predicted(thresholds={"x": 0.6, "y": 0.4}) == [["y", "z"], ["x"]]
    assert predicted(top_k=1) == [["x"], ["x"]]


def test_an_unknown_limit_is_a_config_error() -> None:
    """A misspelt limit in configs/gates never passes silently."""
    with pytest.raises(ConfigError, match="macro_recall"):
        read_limits(BoundaryLimits, {"macro_recal": 0.9}, "configs/gates/demo.yaml")
    with pytest.raises(ConfigError, match="must be a number"):
        read_limits(BoundaryLimits, {"macro_recall": "0.9"}, "configs/gates/demo.yaml")
