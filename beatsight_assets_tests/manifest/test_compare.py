"""Snapshots, differences, hi-hat figures and technique catalogues (T9, T24, T25, T49)."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets.errors import ConfigError, NothingToDo
from beatsight_assets.manifest import techniques
from beatsight_assets.manifest.compare import compare, drift, drops, run, run_diff, snapshot
from beatsight_assets.manifest.hihat import measure_hihats
from beatsight_assets.settings import Settings
from beatsight_assets_tests.manifest.factory import event, frame, hit, random_events

ROWS = [
    event(0.0, hit("kick", 0.5), hit("hihat_open", 0.25, openness=0.5), techniques=["hihat_bark"], split_hint="train"),
    event(0.5, hit("snare", 1.0), techniques=["flam", "hihat_bark"], split_hint="train"),
    event(0.0, "kick", session="b.mid", split_hint="test"),
]


def test_snapshot_counts_everything_once() -> None:
    """Events, sessions, groups, labels, techniques by event and session, splits; statistics over known values only."""
    found = snapshot(frame(ROWS))
    assert (found["num_events"], found["num_sessions"], found["num_groups"]) == (3, 2, 2)
    assert found["label_counts"] == {"kick": 2, "hihat_open": 1, "snare": 1}
    assert found["technique_counts"] == {"hihat_bark": {"events": 2, "sessions": 1}, "flam": {"events": 1, "sessions": 1}}
    assert found["split_counts"] == {"test": 1, "train": 2} and found["source_set_counts"] == {"test_set": 3}
    assert {k: found["velocity_stats"][k] for k in ("n", "min", "p50", "max")} == {"n": 3, "min": 0.25, "p50": 0.5, "max": 1.0}
    assert found["openness_stats"] == {"n": 1} | dict.fromkeys(("p05", "p25", "p50", "p75", "p95", "min", "max", "mean"), 0.5)


def test_snapshot_takes_assigned_splits_over_hints_and_ignores_row_order() -> None:
    """The split table wins where it knows the group; shuffled rows give the same snapshot."""
    rows = frame(ROWS)
    table = pl.DataFrame({"group_id": ["g:a.mid"], "split": ["val"]})
    assert snapshot(rows, table)["split_counts"] == {"test": 1, "val": 2}
    many = random_events(2_000)
    assert snapshot(many) == snapshot(many.sample(fraction=1.0, shuffle=True, seed=3))


def test_snapshot_stage_writes_one_file_and_refuses_nothing_to_count(settings: Settings) -> None:
    """reports/metrics/annotated_snapshot.json names its manifest and digest; an empty manifest is exit 1."""
    settings.store.publish_frame(settings.layout.annotated, frame(ROWS))
    report = run(settings)
    written = json.loads((settings.layout.root / "reports/metrics/annotated_snapshot.json").read_text())
    assert written["sha256"] == settings.store.sha256(settings.layout.annotated) and written["num_events"] == 3
    assert report.figures["num_sessions"] == 2 and run(settings).reused
    settings.store.publish_frame(settings.layout.annotated, frame([]))
    with pytest.raises(NothingToDo):
        run(settings)


def test_comparison_lists_what_changed_largest_first() -> None:
    """Entries hold baseline, candidate and delta, sorted by size of delta then name; equal things are not listed."""
    after = [*ROWS[1:], event(1.0, "crash"), event(2.0, "crash"), event(3.0, "china", session="c.mid")]
    found = compare(frame(ROWS), frame(after))
    delta = found["delta"]
    assert delta["total_events"] == {"baseline": 3, "candidate": 5, "delta": 2}
    assert delta["unique_sessions"] == {"baseline": 2, "candidate": 3, "delta": 1}
    assert [(k, v["delta"]) for k, v in delta["components"].items()] == [("crash", 2), ("china", 1), ("hihat_open", -1), ("kick", -1)]
    assert delta["techniques"] == {"hihat_bark": {"baseline": 2, "candidate": 1, "delta": -1}}
    assert list(delta["sessions"]) == ["test_set/a.mid", "test_set/c.mid"]
    assert found["baseline"]["component_counts"]["kick"] == 2 and found["candidate"]["session_counts"]["test_set/c.mid"] == 1
    assert drops(delta, 0) == {"hihat_bark": 1, "hihat_open": 1, "kick": 1} and drops(delta, 1) == {}


def test_comparing_a_manifest_with_itself_changes_nothing() -> None:
    """No entry in any table."""
    rows = random_events(500)
    delta = compare(rows, rows)["delta"]
    assert not delta["sessions"] and not delta["components"] and not delta["techniques"]


def test_a_bark_at_exactly_200_ms_counts() -> None:
    """0.200 s is inside the window, 0.210 s is not; row order does not matter; sessions are ranked by barks."""
    rows = [
        event(1.0, "hihat_open"),
        event(1.2, "hihat_closed"),
        event(2.0, "hihat_open"),
        event(2.21, "hihat_pedal"),
        event(3.0, "hihat_open", session="b.mid"),
        event(3.1, "hihat_pedal", session="b.mid"),
        event(4.0, "hihat_open", session="b.mid"),
        event(4.1, "hihat_closed", session="b.mid"),
    ]
    found = measure_hihats(frame(rows))
    assert found == measure_hihats(frame(rows[::-1]))
    assert (found["total_open_events"], found["bark_candidates"], found["bark_ratio"], found["total_sessions"]) == (4, 3, 0.75, 2)
    assert [(s["session_id"], s["open_events"], s["bark_candidates"]) for s in found["top_sessions"]] == [("b.mid", 2, 2), ("a.mid", 2, 1)]
    assert measure_hihats(frame(rows), window_us=210_000)["bark_candidates"] == 4
    assert measure_hihats(frame([event(0.0, "kick")]))["bark_ratio"] is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("techniques.yaml", "version: 1\ntechniques: [flam, {id: press_roll}]\n"),
        ("techniques.json", '{"techniques": ["flam", {"id": "press_roll"}]}'),
        ("techniques.json", '["flam", {"id": "press_roll", "category": "snare"}, "flam"]'),
        ("techniques.txt", "# strokes\nFlam\npress roll  # buzz\n\nPress-Roll\n"),
    ],
)
def test_every_form_of_a_catalogue_is_read(tmp_path: Path, name: str, text: str) -> None:
    """YAML, JSON object, JSON list, text: the same ids in file order, repeats dropped."""
    (tmp_path / name).write_text(text)
    assert techniques.read_names(tmp_path / name) == ("flam", "press_roll")
    assert techniques.read_names(tmp_path) == ("flam", "press_roll")


def test_yaml_is_preferred_over_json_over_text(tmp_path: Path) -> None:
    """A folder with all three is read in that order."""
    for name, text in (("txt", "c\n"), ("json", '["b"]'), ("yaml", "techniques: [a]\n")):
        (tmp_path / f"techniques.{name}").write_text(text)
        assert techniques.read_names(tmp_path) == ({"txt": "c", "json": "b", "yaml": "a"}[name],)


@pytest.mark.parametrize(
    ("text", "code"), [(None, "missing-catalogue"), ("[]", "missing-catalogue"), ('["No Id"]', "bad-config"), ("{", "bad-config"), ("3", "bad-config")]
)  # fmt: skip
def test_a_catalogue_is_never_empty(tmp_path: Path, text: str | None, code: str) -> None:
    """No file, an empty one, or one that cannot be read: exit 2."""
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        techniques.read_names(path)
    assert (refused.value.code, refused.value.exit_code) == (code, 2)


def test_drift_is_against_the_version_before_and_warns(settings: Settings) -> None:
    """The first snapshot is waived; a later one is compared with the one before, also when it is made again; a large change warns only."""
    layout = settings.layout

    def rule_of(rows: list[dict[str, object]]) -> tuple[bool, bool, float | None, bool]:
        settings.store.publish_frame(layout.annotated, frame(rows))
        report = run(settings)
        verdict = report.verdict("metrics")
        assert verdict is not None and report.passed
        rule = verdict.rules[0]
        return rule.waived, rule.passed, rule.value, rule.blocking

    four = [event(float(i), "kick" if i < 3 else "snare") for i in range(4)]
    assert rule_of(four) == (True, True, None, True)
    assert rule_of([*four, *(r | {"event_id": f"x{n}", "session_id": "b"} for n, r in enumerate(four))]) == (False, True, 0.0, False)
    assert rule_of([event(float(i), "snare") for i in range(4)]) == (False, False, 0.75, False)
    target = layout.root / "reports/metrics/annotated_snapshot.json"
    once = target.read_bytes()
    (layout.root / "receipts/manifest_metrics.json").unlink()
    run(settings)
    assert target.read_bytes() == once
    target.write_text("torn")
    assert run(settings).verdicts[0].rules[0].waived
    assert drift({}, {"kick": 1}) == 0.5 and drift({"kick": 1}, {"snare": 1}) == 1.0


def test_diff_stage_keeps_the_version_before(settings: Settings) -> None:
    """reports/metrics/annotated_diff.json: first nothing changed, then what changed since; made again it says the same."""
    layout = settings.layout
    settings.store.publish_frame(layout.annotated, frame(ROWS))
    assert run_diff(settings).figures["events_delta"] == 0
    settings.store.publish_frame(layout.annotated, frame([*ROWS, event(9.0, "china", techniques=["flam"])]))
    report = run_diff(settings)
    assert report.figures == {
        "events_delta": 1,
        "sessions_delta": 0,
        "sessions_changed": 1,
        "components_changed": 1,
        "techniques_changed": 1,
    }
    written = json.loads((layout.root / "reports/metrics/annotated_diff.json").read_text())
    assert written["delta"]["components"] == {"china": {"baseline": 0, "candidate": 1, "delta": 1}} and not written["is_first"]
    assert run_diff(settings).reused
    (layout.root / "receipts/manifest_diff.json").unlink()
    assert run_diff(settings).digest == report.digest
    settings.store.publish_frame(layout.annotated, frame([]))
    with pytest.raises(NothingToDo):
        run_diff(settings)
