"""Gate boundary: which hits lie at window edges, and how well they are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets.errors import ConfigError
from beatsight_assets.events import EVENT_SCHEMA
from beatsight_assets.readiness import boundary
from beatsight_assets.readiness.boundary import BoundaryLimits, PackOptions, find_edges, make_pack
from beatsight_assets.readiness.rows import SAMPLE_SCHEMA, read_samples
from beatsight_assets.settings import Settings


def edges(onset_ms: float, **options: float) -> list[tuple[str, int, float]]:
    found = find_edges(np.array([round(onset_ms * 1000)]), PackOptions(**options))  # type: ignore[arg-type]
    return [(boundary.EDGES[e], int(k), d / 1000) for e, k, d in zip(found.edge, found.window, found.distance_us, strict=True)]


@pytest.mark.parametrize(
    ("onset_ms", "expected"),
    [
        (0, [("leading", 0, 0)]),
        (10, [("leading", 0, 10)]),
        (40, [("leading", 0, 40)]),
        *((t, []) for t in (41, 500, 1990, 2007, 2089, 5000)),
        (2008, [("trailing", 0, 40)]),
        (2030, [("trailing", 0, 18)]),
        (2048, [("leading", 4, 0)]),
        (2060, [("leading", 4, 12)]),
        (2088, [("leading", 4, 40)]),
        (2540, [("trailing", 1, 20)]),
        (5100, [("trailing", 6, 20)]),
    ],
)
def test_edges_of_an_onset(onset_ms: float, expected: list[tuple[str, int, float]]) -> None:
    """Section 6.1: every row of its table for window 2048, hop 512, margin 40."""
    assert edges(onset_ms) == expected


def test_one_onset_can_lie_at_both_edges() -> None:
    """2060 ms with window 2078 is leading in window 4 and trailing in window 0."""
    assert edges(2060, window_ms=2078) == [("leading", 4, 12), ("trailing", 0, 18)]


def test_an_onset_between_windows_is_counted_as_uncovered() -> None:
    """450 ms with window 400 and hop 512 lies in no window."""
    found = find_edges(np.array([450_000, 100_000]), PackOptions(window_ms=400, hop_ms=512, force=True))
    assert (len(found.onset), found.n_uncovered) == (0, 1)


@pytest.mark.parametrize(
    ("onsets", "leading", "trailing"), [(137_000 * np.arange(1000), 81, 77), (120_000 * np.arange(5000) + 7000, 391, 390)]
)
def test_series_counts(onsets: np.ndarray, leading: int, trailing: int) -> None:
    """Section 6.1: the two series give the stated numbers of rows."""
    found = find_edges(onsets, PackOptions())
    assert np.bincount(found.edge).tolist() == [leading, trailing]


def test_edges_equal_a_slow_search_over_all_windows() -> None:
    """The vectorised search finds what trying every window finds, also with margins wider than the hop."""
    onsets = np.random.Generator(np.random.PCG64(3)).integers(0, 6_000_000, 300)
    for window, hop, margin in ((2048, 512, 40), (700, 512, 300), (300, 512, 100), (1000, 333, 400)):
        slow = []
        for i, t in enumerate(onsets.tolist()):
            for k in range(20):
                if k * hop * 1000 <= t < (k * hop + window) * 1000:
                    slow += [(i, 0, k)] if t - k * hop * 1000 <= margin * 1000 else []
                    slow += [(i, 1, k)] if (k * hop + window) * 1000 - t <= margin * 1000 else []
        found = find_edges(onsets, PackOptions(window_ms=window, hop_ms=hop, margin_ms=margin, force=True))
        assert sorted(slow) == sorted(zip(found.onset.tolist(), found.edge.tolist(), found.window.tolist(), strict=True))


@pytest.mark.parametrize("options", [{"margin_ms": 256.0}, {"window_ms": 400.0}, {"edges": ("left",)}, {"max_per_edge": 0}])
def test_options_that_find_no_edge_are_refused(options: dict[str, object]) -> None:
    """A margin of half a hop or more, or a window below the hop, needs --force (exit 2)."""
    with pytest.raises(ConfigError) as caught:
        PackOptions(**options).checked()  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def events(onsets_ms: list[float], labels: list[str] | None = None, audio: str = "a.wav") -> pl.DataFrame:
    labels = labels or ["kick"] * len(onsets_ms)
    rows = [
        {
            "event_id": f"e{i}", "session_id": "s", "source_set": "beatsight_demo", "group_id": f"g{i % 2}", "is_synthetic": True, "audio_path": audio, "onset_time": t / 1000,
            "components": [{"label": x}], "techniques": [], "mix_context": "drum_only", "negative_example": False, "extras": "{}",
        }
        for i, (t, x) in enumerate(zip(onsets_ms, labels, strict=True))
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


def test_pack_rows_carry_id_edge_and_distance() -> None:
    """Row form of section 6.1: sample_id is <event_id>:<edge>:<window_index>."""
    rows, n_uncovered = make_pack(events([2060, 2540, 500]))
    assert n_uncovered == 0
    assert rows.select("sample_id", "distance_ms", "labels").rows() == [("e0:leading:4", 12.0, ["kick"]), ("e1:trailing:1", 20.0, ["kick"])]


def test_pack_keeps_a_keyed_choice_not_the_first_rows() -> None:
    """max_per_edge keeps the rows with the smallest keyed hash, whatever the order of events."""
    frame = events([512.0 * i for i in range(60)])
    options = PackOptions(max_per_edge=5)
    chosen = make_pack(frame, options)[0]["sample_id"].to_list()
    assert len(chosen) == 5
    assert chosen != [f"e{i}:leading:{i}" for i in range(5)]
    assert sorted(chosen) == sorted(make_pack(frame.sample(fraction=1.0, shuffle=True, seed=1), options)[0]["sample_id"])


def test_pack_selects_labels() -> None:
    """--include-label and --exclude-label."""
    frame = events([0, 512, 1024], ["kick", "snare", "crash"])
    assert make_pack(frame, PackOptions(include_labels=("snare", "kick"), exclude_labels=("kick",)))[0]["event_id"].to_list() == ["e1"]


def test_an_empty_edge_fails_the_pack() -> None:
    """Rule both_edges: only leading hits is a fail."""
    assert not boundary.judge_pack(make_pack(events([0]))[0]).passed
    assert boundary.judge_pack(make_pack(events([0, 2030]))[0]).passed


def test_stage_takes_everything_that_is_not_train(settings: Settings) -> None:
    """The pack of the stage holds held-out hits whose audio is at hand, and a second run is reused."""
    settings.store.publish(settings.layout.raw("beatsight_demo") / "a.wav", b"RIFF")
    silent = events([0, 0, 2030, 2030], audio="gone.wav").with_columns(event_id=pl.lit("silent"))
    settings.store.publish_frame(settings.layout.annotated, pl.concat([events([0, 0, 2030, 2030]), silent]))
    settings.store.publish_frame(settings.layout.splits, pl.DataFrame({"group_id": ["g0", "g1"], "split": ["train", "test"]}))
    report = boundary.run(settings)
    rows = read_samples(settings.layout.root / report.output("boundary_pack").path)
    assert set(rows["group_id"]) == {"g1"}
    assert "silent" not in set(rows["event_id"])
    assert report.figures["recordings_without_audio"] == 1
    assert report.verdict("boundary_pack").passed  # type: ignore[union-attr]
    assert boundary.run(settings).reused
    settings.store.publish(settings.layout.raw("beatsight_demo") / "gone.wav", b"RIFF")
    assert not boundary.run(settings).reused


def samples(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame([{"line": i, **r} for i, r in enumerate(rows, 1)], schema=SAMPLE_SCHEMA, orient="row")


def scores(**p: float) -> list[dict[str, object]]:
    return [{"label": label, "p": value} for label, value in p.items()]


@pytest.mark.data
def test_example_files_of_the_seed(shared_data: Path) -> None:
    """The two-row example files give the stated rates."""
    folder = shared_data / "beatsight_formats/ai-pipeline/training/examples"
    truth, predictions = (read_samples(folder / f"boundary_{name}_example.jsonl") for name in ("labels", "predictions"))
    found = boundary.measure(truth, predictions)
    assert (found.overall.macro.recall, found.overall.macro.precision) == (1.0, 0.75)
    assert found.overall.macro.f1 == pytest.approx(0.8333, abs=5e-5)
    assert found.overall.micro.precision == pytest.approx(2 / 3)
    assert found.overall.micro.f1 == pytest.approx(0.8)
    assert boundary.judge(found, BoundaryLimits(macro_recall=0.95)).passed


def test_each_edge_is_judged() -> None:
    """A deaf trailing edge fails although the whole is above the limit."""
    rows = [{"sample_id": f"a{i}", "labels": ["kick"], "edge": "leading", "scores": scores(kick=0.9)} for i in range(39)]
    rows += [{"sample_id": "b", "labels": ["kick"], "edge": "trailing", "scores": scores(kick=0.1)}]
    table = samples(rows)
    verdict = boundary.judge(boundary.measure(table, table), BoundaryLimits(macro_recall=0.95))
    assert {r.name: r.passed for r in verdict.rules} == {
        "macro_recall": True,
        "macro_recall[leading]": True,
        "macro_recall[trailing]": False,
    }
    assert not verdict.passed


def test_nineteen_of_twenty_meets_the_limit_exactly() -> None:
    """Section 0.5: 19/20 meets 0.95."""
    table = samples([{"sample_id": f"s{i}", "labels": ["kick"], "scores": scores(kick=0.9 if i else 0.1)} for i in range(20)])
    assert boundary.judge(boundary.measure(table, table), BoundaryLimits(macro_recall=0.95)).passed


def test_a_missing_prediction_counts_as_empty_and_fails() -> None:
    """A sample without a prediction lowers recall and adds missing-prediction."""
    truth = samples([{"sample_id": "a", "labels": ["kick"]}, {"sample_id": "b", "labels": ["kick"]}])
    found = boundary.measure(truth, truth.head(1))
    verdict = boundary.judge(found, BoundaryLimits(micro_recall=0.5))
    assert found.overall.micro.recall == 0.5
    assert [r.code for r in verdict.reasons] == ["missing-prediction"]
    assert not verdict.passed


def test_without_any_label_there_is_nothing_to_judge() -> None:
    """No class with support: fail, never a pass, never a crash."""
    table = samples([{"sample_id": "a", "labels": [], "scores": scores(kick=0.1)}])
    for frame in (table, table.clear()):
        verdict = boundary.judge(boundary.measure(frame, frame), BoundaryLimits(macro_recall=0.0))
        assert not verdict.passed
        assert [r.code for r in verdict.reasons] == ["nothing-to-judge"]


def test_weights_count() -> None:
    """Counts are weighted by `weight`."""
    table = samples(
        [
            {"sample_id": "a", "labels": ["kick"], "weight": 3.0, "scores": scores(kick=1.0)},
            {"sample_id": "b", "labels": ["kick"], "scores": scores(kick=0.0)},
        ]
    )
    assert boundary.measure(table, table).overall.micro.recall == 0.75
