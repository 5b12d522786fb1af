"""What a health report counts, how it is judged, and that people can read it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import EVENT_SCHEMA
from beatsight_assets.health import gates, html, report
from beatsight_assets.health.gates import HealthLimits, judge, read_names
from beatsight_assets.health.report import HealthOptions, measure, read_manifest
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.verdict import Problem

TAXONOMY = Taxonomy.shipped()
NEVER = HealthLimits(max_duplication_rate=0.005)


def hit(label: str, velocity: float | None = 0.6, bucket: str = "medium", openness: float | None = None) -> dict[str, object]:
    return {"label": label, "velocity": velocity, "dynamic_bucket": bucket, "openness": openness}


def manifest(*events: dict[str, object]) -> pl.DataFrame:
    rows = [
        {
            "event_id": f"e{i}", "session_id": "s", "source_set": "set", "group_id": "g", "is_synthetic": False, "onset_time": float(i), "components": [hit("kick")],
            "techniques": [], "mix_context": "drum_only", "negative_example": False, "extras": "{}", **event,
        }
        for i, event in enumerate(events)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


def test_hits_and_events_are_told_apart() -> None:
    """`total` counts hits, `events` counts events; real and rendered are split; sessions and groups are distinct."""
    found = measure(
        manifest(
            {"components": [hit("crash"), hit("crash")]},
            {"components": [hit("crash"), hit("kick")], "is_synthetic": True, "session_id": "t", "group_id": "h"},
        ),
        TAXONOMY,
    )
    assert found["per_class_counts"] == {
        "kick": {"total": 1, "real": 0, "synthetic": 1, "events": 1, "sessions": 1, "groups": 1},
        "crash": {"total": 3, "real": 2, "synthetic": 1, "events": 2, "sessions": 2, "groups": 2},
    }
    assert (found["summary"]["unique_sessions"], found["summary"]["events_synthetic"]) == (2, 1)


def test_aliases_drum_mix_and_negatives() -> None:
    """Aliases resolve before anything counts; drum_mix is no class; a negative window adds to no class."""
    found = measure(
        manifest(
            {"components": [hit("crash_1")]},
            {"components": [hit("drum_mix")]},
            {"components": [], "negative_example": True},
            {"components": [hit("gong")]},
        ),
        TAXONOMY,
    )
    assert {k: v["total"] for k, v in found["per_class_counts"].items()} == {"crash": 1, "gong": 1}
    assert found["unknown_labels"] == {"gong": 1}
    assert found["summary"]["negative_examples"] == {"positive": 1, "non_negative": 3}


def test_openness_histogram_and_conflicts() -> None:
    """Ten equal bins, the last one closed; a hat without openness is counted, and so is one that contradicts its label."""
    hats = [hit("hihat_open", openness=o) for o in (0.0, 0.1, 0.3, 0.95, 1.0)] + [
        hit("hihat_closed", openness=0.36),
        hit("hihat_closed"),
        hit("hihat_pedal"),
    ]
    found = measure(manifest(*({"components": [h]} for h in hats)), TAXONOMY)
    assert found["openness_histogram"] == [1, 1, 0, 2, 0, 0, 0, 0, 0, 2]
    assert found["openness_missing"] == 1
    assert found["openness_conflicts"] == {"open_at_zero": 1, "closed_above_0.35": 1}


def test_exclusive_members_of_one_event_are_counted() -> None:
    """Closed with open hat, and snare with rimshot, contradict each other; twice the same does not."""
    found = measure(
        manifest(
            {"components": [hit("hihat_closed"), hit("hihat_open")]},
            {"components": [hit("snare"), hit("rimshot")]},
            {"components": [hit("snare"), hit("snare")]},
        ),
        TAXONOMY,
    )
    assert list(found["exclusive_group_conflicts"].values()) == [1, 1]


def test_quantiles_interpolate_linearly() -> None:
    """Velocities 0, 0.25, 0.5, 1 have the 25th percentile at 0.1875."""
    found = measure(manifest(*({"components": [hit("kick", v)]} for v in (0.0, 0.25, 0.5, 1.0, None))), TAXONOMY)["velocity_stats"]
    assert (found["n"], found["p25"], found["p50"], found["min"], found["max"], found["mean"]) == (4, 0.1875, 0.375, 0.0, 1.0, 0.4375)


@pytest.mark.parametrize(("n", "repeats", "rate", "passes"), [(100, 99, 0.99, False), (200, 1, 0.005, True), (199, 1, 1 / 199, False)])
def test_duplication_rate(n: int, repeats: int, rate: float, passes: bool) -> None:
    """100 identical rows -> 0.99, fail; 200 with one repeat -> 0.005, pass; 199 with one -> 0.005025, fail."""
    rows = [{"event_id": f"e{max(0, i - repeats)}", "onset_time": float(max(0, i - repeats))} for i in range(n)]
    found = measure(manifest(*rows), TAXONOMY)
    assert found["summary"]["duplication_rate"] == pytest.approx(rate)
    assert judge(found, NEVER).passed is passes


def test_equal_content_under_new_ids_is_a_duplicate() -> None:
    """The larger of both rates is judged: equal (session, onset, sorted labels) with different ids; another session is none."""
    twins = [{"onset_time": 1.0, "components": [hit("kick"), hit("snare")]}, {"onset_time": 1.0, "components": [hit("snare"), hit("kick")]}]
    found = measure(
        manifest(*twins, {"onset_time": 1.0, "components": [hit("kick")]}, {"onset_time": 1.0, "session_id": "other"}), TAXONOMY
    )
    assert (found["summary"]["duplication_rate"], found["summary"]["content_duplication_rate"]) == (0.0, 0.25)
    assert found["duplicates"]["content_keys"] == [{"session_id": "s", "onset_time": 1.0, "labels": "kick + snare", "rows": 2}]
    assert not judge(found, NEVER).passed


def test_equal_audio_under_two_paths_is_named() -> None:
    """Duplicates list files of equal sha256 from the provenance; its issues are summed and its durations added."""
    provenance = pl.DataFrame(
        {"source_set": ["x", "x"], "hashes": [[{"path": "a.wav", "sha256": "1" * 64}], [{"path": "b.wav", "sha256": "1" * 64}]],
         "issues": ['{"unmapped_note": 2}', '{"unmapped_note": 3}'], "facts": ['{"duration_seconds": 1800.0}', "{}"]}
    )  # fmt: skip
    found = measure(manifest({}), TAXONOMY, provenance=provenance)
    assert found["duplicates"]["audio_files"] == [{"sha256": "1" * 64, "paths": ["x/a.wav", "x/b.wav"]}]
    assert found["issues"] == {"unmapped_note": 5}
    assert found["summary"]["duration_hours_total"] == 0.5


def test_broken_rows_are_counted_and_named_not_fatal(tmp_path: Path) -> None:
    """Malformed rows never stop the report; they are counted, the first 20 named, and judged by max_rejected_rows."""
    good = {"event_id": "a", "session_id": "s", "onset_time": 0.0, "components": [{"label": "kick"}]}
    lines = [
        good,
        good | {"event_id": "b", "components": None},
        good | {"components": [{"label": 3}]},
        good | {"components": "kick"},
        good | {"tempo_bpm": "fast"},
        [1],
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"onset_time": NaN\n')
    frame, rejected = read_manifest(path)
    found = measure(frame, TAXONOMY, rejected=rejected)
    assert found["summary"]["events_total"] == 1
    assert found["summary"]["rejected_rows"] == 6
    assert [p.line for p in rejected] == [2, 3, 4, 5, 6, 7]
    assert found["rejected_row_examples"][0].startswith("m.jsonl:2: row:")
    verdict = judge(found, HealthLimits(max_rejected_rows=0))
    assert [r.name for r in verdict.rules if not r.passed] == ["max_rejected_rows"]
    assert len(measure(frame, TAXONOMY, rejected=[Problem("m", i, "row", "x") for i in range(30)])["rejected_row_examples"]) == 20


def test_an_empty_manifest_fails_every_rule() -> None:
    """Empty input: every rule of every family fails, none crashes."""
    limits = HealthLimits(
        view="drums18",
        max_duplication_rate=0.005,
        min_class_count=1,
        min_counts={"kick": 1},
        required_labels=("kick",),
        required_techniques=("roll",),
        max_unknown_labels=0,
        max_rejected_rows=0,
    )
    verdict = judge(measure(manifest(), TAXONOMY), limits, view=TAXONOMY.view("drums18"))
    assert len(verdict.rules) == 1 + 1 + 17 + 1 + 1 + 1 + 2
    assert not any(r.passed for r in verdict.rules)
    assert json.dumps(verdict.to_json(), allow_nan=False)


def test_without_rules_there_is_nothing_to_judge() -> None:
    """--no-limits: a report without rules, verdict fail / nothing-to-judge."""
    verdict = judge(measure(manifest({}), TAXONOMY), None)
    assert (verdict.status, verdict.to_json()["reasons"][0]["code"]) == ("fail", "nothing-to-judge")


def test_class_floors_count_by_view_and_min_counts_take_their_place() -> None:
    """ride_edge counts as ride_bow, cowbell as aux_percussion; a label outside the view is judged by itself; min_counts replace the floor."""
    frame = manifest({"components": [hit("ride_edge"), hit("ride_bow"), hit("cowbell"), hit("gong")]})
    limits = HealthLimits(view="drums18", min_class_count=2, min_counts={"kick": 1, "aux_percussion": 1})
    rules = {r.name: (r.value, r.passed) for r in judge(measure(frame, TAXONOMY), limits, view=TAXONOMY.view("drums18")).rules}
    assert rules["min_class_count[ride_bow]"] == (2.0, True)
    assert rules["min_class_count[gong]"] == (1.0, False)
    assert rules["min_counts[aux_percussion]"] == (1.0, True)
    assert rules["min_counts[kick]"] == (0.0, False)
    assert "min_class_count[kick]" not in rules
    assert "min_class_count[ride_edge]" not in rules


def test_required_techniques_and_their_counts() -> None:
    """One event is enough unless min_technique_counts raises it."""
    found = measure(manifest({"techniques": ["roll"]}, {"techniques": ["flam", "roll"]}), TAXONOMY)
    assert found["technique_counts"]["roll"] == {"events": 2, "sessions": 1, "groups": 1}
    assert judge(found, HealthLimits(required_techniques=("flam", "roll"))).passed
    assert not judge(found, HealthLimits(required_techniques=("flam",), min_technique_counts={"roll": 3})).passed


def test_list_files(tmp_path: Path) -> None:
    """Comments, blanks and repeats are ignored; a file that lists nothing exits 2."""
    (tmp_path / "names").write_text("roll # fast\n\n# flam\nflam\nroll\n")
    (tmp_path / "none").write_text("# nothing\n")
    assert read_names(tmp_path / "names") == ("roll", "flam")
    with pytest.raises(ConfigError) as caught:
        read_names(tmp_path / "none")
    assert (caught.value.code, caught.value.exit_code) == ("empty-requirement", 2)


@pytest.mark.parametrize("content", [{"components": ["a", "b"]}, {"classes": ["a", {"id": "b"}]}, ["a", "b"]])
def test_component_files(tmp_path: Path, content: object) -> None:
    """--components takes three shapes."""
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert report.read_components(tmp_path / "c.json") == ("a", "b")


@pytest.mark.parametrize("content", [{"labels": ["a"]}, "a", [1], {"components": "a"}])
def test_other_component_files_are_refused(tmp_path: Path, content: object) -> None:
    """Any other shape exits 3."""
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        report.read_components(tmp_path / "c.json")
    assert caught.value.exit_code == 3


def test_a_label_outside_the_given_components_is_unknown() -> None:
    """One gong with the bundle's own components: unknown 1, fail."""
    found = measure(manifest({"components": [hit("gong")]}), TAXONOMY, known=["kick", "snare"])
    assert not judge(found, HealthLimits(max_unknown_labels=0)).passed
    assert measure(manifest({"components": [hit("gong")]}), TAXONOMY, known=["gong"])["unknown_labels"] == {}


@pytest.mark.data
def test_the_five_row_example_of_the_seed(shared_data: Path) -> None:
    """5 events, 1 synthetic, 4 sessions, 4 drummers, the stated hits, dynamics, openness, loudness; durations are copied."""
    folder = shared_data / "beatsight_formats/ai-pipeline/training/examples"
    frame, rejected = read_manifest(folder / "events_health_example.jsonl")
    found = measure(frame, TAXONOMY, rejected=rejected, dataset_metadata=report.read_durations(folder / "metadata_health_example.json"))
    summary = found["summary"]
    assert [
        summary[k] for k in ("events_total", "events_synthetic", "unique_sessions", "unique_drummers", "rejected_rows", "duplication_rate")
    ] == [5, 1, 4, 4, 0, 0.0]
    assert {k: v["total"] for k, v in found["per_class_counts"].items()} == {
        "crash": 3,
        "snare": 1,
        "hihat_closed": 1,
        "kick": 1,
        "ride_bow": 1,
        "ride_bell": 1,
    }
    assert {k: n for k, n in found["dynamic_bucket_counts"].items() if n} == {"medium": 5, "accent": 3}
    assert found["openness_histogram"][0] == 1
    assert found["loudness"]["LUFS_i"]["mean"] == pytest.approx(-20.52)
    assert found["bleed_level_distribution"] == {"med": 3, "high": 1, "low": 1}
    assert found["mix_context_distribution"] == {"full_mix": 3, "close_mic": 1, "overheads": 1}
    assert found["duration_seconds_by_source"]["ENST"] == 300.0
    assert found["summary"]["duration_hours_total"] == pytest.approx(2400 / 3600)


def test_durations_may_be_numeric_strings(tmp_path: Path) -> None:
    """Numeric strings are read as numbers; other text exits 3."""
    (tmp_path / "m.json").write_text('{"split_durations_seconds": {"train": "12.5"}}')
    assert report.read_durations(tmp_path / "m.json") == {"split_durations_seconds": {"train": 12.5}}
    (tmp_path / "m.json").write_text('{"split_durations_seconds": {"train": "long"}}')
    with pytest.raises(InputError):
        report.read_durations(tmp_path / "m.json")


def page(found: dict[str, object], limits: HealthLimits | None = NEVER) -> str:
    return html.render(found, judge(found, limits))


def test_the_page_is_one_safe_file() -> None:
    """No script, no request, a CSP; a label that is markup appears as text; equal reports give equal bytes."""
    evil = "<script>alert(1)</script>"
    frame = manifest(
        {"components": [hit(evil)], "techniques": [evil], "source_set": evil, "session_id": evil, "onset_time": 0.0},
        {"techniques": ["roll"]},
    )
    found = measure(frame, TAXONOMY, splits=pl.DataFrame({"group_id": ["g"], "split": [evil]}))
    text = page(found, HealthLimits(min_class_count=1))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert not re.search(r"(?:src|href)\s*=|url\(|@import", text)
    assert text == page(
        measure(frame, TAXONOMY, splits=pl.DataFrame({"group_id": ["g"], "split": [evil]})), HealthLimits(min_class_count=1)
    )


def test_the_page_shows_gates_first_with_a_word() -> None:
    """The gate table stands before the class table; every rule carries the word pass or fail, failures first."""
    text = page(measure(manifest({}), TAXONOMY), HealthLimits(view="drums18", min_class_count=1))
    assert text.index("<h2>Gates</h2>") < text.index("<h2>Class balance</h2>")
    words = re.findall(r'<td class="word (\w+)">(\w+)</td><td>min_class_count', text)
    assert [w for w, _ in words] == sorted(w for w, _ in words)
    assert {a == b for a, b in words} == {True}


def test_an_empty_report_has_a_page_too() -> None:
    """Nothing in, a readable page out."""
    assert "no hits" in page(measure(manifest(), TAXONOMY), None)


@pytest.mark.parametrize("profile", ["demo", "dev", "prod"])
def test_shipped_limits_are_read(settings: Settings, profile: str) -> None:
    """The health section of every profile is spelled right, and its classes are classes of its view."""
    shipped = Settings(layout=settings.layout, profile=profile)
    limits = HealthLimits.from_config(shipped.gates.health, profile)
    assert limits.view is not None
    assert set(limits.min_counts) <= set(TAXONOMY.view(limits.view).classes)
    assert set(limits.required_techniques) <= {t.id for t in shipped.techniques.techniques}


@pytest.mark.parametrize(
    "bad", [{"min_clas_count": 3}, {"min_class_count": -1}, {"max_duplication_rate": "0.1"}, {"min_counts": {"kick": True}}]
)
def test_misspelt_limits_are_refused(bad: dict[str, object]) -> None:
    """An unknown limit or a value that is no number exits 2."""
    with pytest.raises(ConfigError):
        HealthLimits.from_config(bad, "configs/gates/demo.yaml")


def test_stage_reports_judges_and_is_reused(settings: Settings) -> None:
    """The stage writes JSON and HTML, its verdict names the digests it judged, and a second run is reused."""
    frame = manifest({"components": [hit("kick")]}, {"components": [hit("snare")], "group_id": "h"})
    settings.store.publish_frame(settings.layout.annotated, frame)
    settings.store.publish_frame(settings.layout.splits, pl.DataFrame({"group_id": ["g", "h"], "split": ["train", "test"]}))
    done = report.run(settings, HealthOptions(limits=HealthLimits(required_labels=("kick",))))
    found = store.read_json(settings.layout.report("health", "annotated_health.json"))
    assert done.passed
    assert found["splits"]["test"]["classes"] == {"snare": 1}
    assert [r["name"] for r in found["gating_results"]] == ["events_present", "require_label[kick]"]
    assert {a.role: a.sha256 for a in done.verdicts[0].inputs}["manifest"] == settings.store.sha256(settings.layout.annotated)
    assert report.run(settings, HealthOptions(limits=HealthLimits(required_labels=("kick",)))).reused
    failing = report.run(settings)
    assert not failing.passed
    assert gates.GATE == failing.verdicts[0].gate == "health"
