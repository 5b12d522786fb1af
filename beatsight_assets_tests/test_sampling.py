"""Sampling weights: golden numbers of spec/gates.md section 11, against a slow reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets import sampling, store
from beatsight_assets.errors import ConfigError, GateFailed, NothingToDo
from beatsight_assets.events import EVENT_SCHEMA, Manifest
from beatsight_assets.manifest.techniques import with_techniques
from beatsight_assets.sampling import SamplingOptions, derive, draw, draw_probabilities
from beatsight_assets.settings import SamplingProfile, Settings
from beatsight_assets.testing.manifests import made_manifest

UNBOUNDED = SamplingProfile(min_weight=1e-9, max_weight=1e9)
# name -> (dedupe fields, cap, boosts, clamp) as section 11 prints them
PROFILES = {
    "slakh": (("session_id", "onset_time"), None, {"hihat_bark": 1.25}, (0.05, 0.2)),
    "groove": (("session_id", "onset_time"), 256, {"hihat_bark": 1.25}, (0.05, 0.5)),
    "enst": ((), None, {"hihat_bark": 1.25}, (0.075, 0.4)),
    "prod_combined": (("session_id", "onset_time", "components"), 512, {"crash_dual_label": 1.15}, (0.05, 0.5)),
    "flat": ((), None, {}, (1.0, 1.0)),
}


def manifest(groups: dict[str, list[dict[str, object]]]) -> pl.DataFrame:
    """Events by session; each event is a dict of what differs from a plain kick at its index in seconds."""
    rows = []
    for session, found in groups.items():
        for i, event in enumerate(found):
            labels = event.get("labels", ["kick"])
            rows.append(
                {
                    "event_id": f"{session}-{i}", "session_id": session, "source_set": "set", "group_id": f"group:{session}", "is_synthetic": False,
                    "onset_time": float(i), "components": [{"label": x} for x in labels], "techniques": [], "mix_context": "drum_only",
                    "negative_example": False, "extras": "{}", **{k: v for k, v in event.items() if k != "labels"},
                }
            )  # fmt: skip
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


def plain(n: int, *techniques: str) -> list[dict[str, object]]:
    return [{"techniques": list(techniques) if i == 0 else []} for i in range(n)]


@pytest.fixture
def profiles(settings: Settings) -> dict[str, SamplingProfile]:
    return settings.sampling.profiles


def test_shipped_profiles_are_those_of_the_spec(profiles: dict[str, SamplingProfile]) -> None:
    """Every profile of section 11 with its numbers: exponent 0.5, smoothing 0, min_count 1 everywhere."""
    assert set(profiles) == set(PROFILES)
    for name, (dedupe, cap, boosts, clamp) in PROFILES.items():
        p = profiles[name]
        assert (p.dedupe_fields, p.max_per_group, p.boosts, (p.min_weight, p.max_weight)) == (dedupe, cap, boosts, clamp)
        assert (p.group_field, p.exponent, p.smoothing, p.min_count, p.attenuations) == ("session_id", 0.5, 0.0, 1, {})


@pytest.mark.parametrize(
    ("n", "boosted", "expected"),
    [(1, False, 0.5), (2, False, 0.5), (2, True, 0.5), (4, False, 0.5), (16, False, 0.25), (100, False, 0.1), (100, True, 0.115), (400, False, 0.05), (401, False, 0.05), (10_000, False, 0.05)],
)  # fmt: skip
def test_golden_weights_of_prod_combined(profiles: dict[str, SamplingProfile], n: int, boosted: bool, expected: float) -> None:
    """The table of section 11."""
    found = derive(manifest({"s": plain(n, *(["crash_dual_label"] if boosted else []))}), profiles["prod_combined"])
    assert found.groups["s"].weight == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "boost", "expected"), [(2, 1.0, 0.707107), (2, 1.15, 0.813173), (512, 1.0, 0.044194)])
def test_unclamped_weights(n: int, boost: float, expected: float) -> None:
    """n 2 -> 0.707107, boosted 0.813173; n 512 -> 0.044194."""
    profile = UNBOUNDED.model_copy(update={"boosts": {"roll": boost}})
    assert derive(manifest({"s": plain(n, "roll")}), profile).groups["s"].weight == pytest.approx(expected, abs=1e-6)


def slow(frame: pl.DataFrame, profile: SamplingProfile) -> dict[str, tuple[int, float]]:
    """Count and weight by group, row by row."""
    seen: set[tuple[object, ...]] = set()
    counts: dict[str, int] = {}
    techniques: dict[str, set[str]] = {}
    for row in frame.select("session_id", "drummer_id", "onset_time", "components", "techniques").iter_rows(named=True):
        group = row[profile.group_field] if row[profile.group_field] is not None else row["session_id"]
        row["components"] = tuple(sorted({c["label"] for c in row["components"]}))
        key = tuple(row[f] for f in profile.dedupe_fields)
        if profile.dedupe_fields and key in seen:
            continue
        seen.add(key)
        counts[group] = counts.get(group, 0) + 1
        techniques.setdefault(group, set()).update(row["techniques"])
    weights = {}
    for group, n in counts.items():
        n = min(n, profile.max_per_group or n)
        if n < profile.min_count:
            continue
        factor = math.prod(f for t, f in {**profile.boosts, **profile.attenuations}.items() if t in techniques[group])
        weights[group] = (n, min(max(1 / (n + profile.smoothing) ** profile.exponent * factor, profile.min_weight), profile.max_weight))
    return weights


EVENT = st.fixed_dictionaries({
    "onset_time": st.sampled_from([0.0, 0.5, 1.0]),
    "labels": st.lists(st.sampled_from(["kick", "snare", "crash"]), min_size=1, max_size=3),
    "techniques": st.lists(st.sampled_from(["flam", "roll"]), max_size=2, unique=True),
    "drummer_id": st.sampled_from([None, "d1", "d2"]),
})  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(EVENT, min_size=1, max_size=6), min_size=1),
    st.sampled_from([(), ("session_id", "onset_time"), ("session_id", "onset_time", "components")]),
    st.sampled_from([None, 1, 3]),
    st.sampled_from(["session_id", "drummer_id"]),
    st.sampled_from([0.0, 1.5]),
)
def test_weights_equal_a_slow_reference(
    groups: dict[str, list[dict[str, object]]], dedupe: tuple[str, ...], cap: int | None, group_field: str, smoothing: float
) -> None:
    """The vectorised derivation equals a loop over rows; events without a group value fall into their session."""
    profile = SamplingProfile(
        group_field=group_field,
        dedupe_fields=dedupe,
        max_per_group=cap,
        smoothing=smoothing,
        boosts={"flam": 1.3},
        attenuations={"roll": 0.7},
        min_weight=0.01,
        max_weight=5,
    )
    frame = manifest(groups)
    found = derive(frame, profile)
    expected = slow(frame, profile)
    assert {g: w.count for g, w in found.groups.items()} == {g: n for g, (n, _) in expected.items()}
    assert [w.weight for _, w in sorted(found.groups.items())] == pytest.approx([w for _, (_, w) in sorted(expected.items())])


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.lists(EVENT, min_size=1, max_size=8), min_size=1),
    st.sampled_from([(), ("session_id", "onset_time")]),
    st.sampled_from([None, 2]),
    st.sampled_from([1, 2]),
    st.tuples(st.floats(0.01, 1.0), st.floats(1.0, 3.0)),
)
def test_weights_lie_in_their_bounds_and_no_event_vanishes(
    groups: dict[str, list[dict[str, object]]], dedupe: tuple[str, ...], cap: int | None, min_count: int, bounds: tuple[float, float]
) -> None:
    """Every weight in [min, max]; counted + repeated + capped + those of dropped groups = all events; probabilities of all clips sum to 1."""
    profile = SamplingProfile(
        dedupe_fields=dedupe, max_per_group=cap, min_count=min_count, boosts={"flam": 9.0}, attenuations={"roll": 0.001},
        min_weight=bounds[0], max_weight=bounds[1],
    )  # fmt: skip
    frame = manifest(groups)
    everything = slow(frame, profile.model_copy(update={"min_count": 0, "max_per_group": None}))
    if all(min(n, cap or n) < min_count for n, _ in everything.values()):
        with pytest.raises(NothingToDo):
            derive(frame, profile)
        return
    found = derive(frame, profile)
    weights = {name: g.weight for name, g in found.groups.items()}
    assert all(bounds[0] <= w <= bounds[1] for w in weights.values())
    counted = sum(g.count for g in found.groups.values())
    assert counted + found.n_repeated + found.n_capped + sum(everything[name][0] for name in found.dropped) == frame.height
    clips = [name for name, g in found.groups.items() for _ in range(g.count)]
    assert float(draw_probabilities(clips, weights).sum()) == pytest.approx(1.0, abs=1e-12)


class SmallPieces(Manifest):
    """1,700 rows at a time."""

    def pieces(self, columns: Sequence[str] | None = None, *, rows: int = 1_700) -> Iterator[pl.DataFrame]:
        return super().pieces(columns, rows=rows)


def test_equals_the_plain_loop_on_generated_events(profiles: dict[str, SamplingProfile]) -> None:
    """20,000 generated events with copies, read in small pieces: the counts and weights of the plain loop, to the last bit, for every profile."""
    frame = with_techniques(made_manifest(20_000, seed=4))
    for profile in profiles.values():
        found = derive(frame, profile)
        assert {g: w.count for g, w in found.groups.items()} == {g: n for g, (n, _) in slow(frame, profile).items()}
        assert [w.weight for _, w in sorted(found.groups.items())] == pytest.approx(
            [w for _, (_, w) in sorted(slow(frame, profile).items())]
        )


@pytest.mark.data
def test_groove_weights_equal_the_plain_loop(groove_events: pl.DataFrame, profiles: dict[str, SamplingProfile]) -> None:
    """189,847 real events: counts and weights of every take are those of the plain loop, whatever the order of rows."""
    profile = profiles["prod_combined"]
    frame = with_techniques(groove_events)
    found = derive(frame, profile)
    expected = slow(frame, profile)
    assert {g: w.count for g, w in found.groups.items()} == {g: n for g, (n, _) in expected.items()}
    assert [w.weight for _, w in sorted(found.groups.items())] == pytest.approx([w for _, (_, w) in sorted(expected.items())], abs=1e-15)
    assert derive(frame.reverse(), profile) == found


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"boosts": {"roll": 0.9}}, "boost-below-one"),
        ({"attenuations": {"roll": 1.1}}, "attenuation-above-one"),
        ({"attenuations": {"roll": 0.0}}, "attenuation-above-one"),
        ({"min_weight": 2.0, "max_weight": 1.0}, "bad-option"),
        ({"group_field": "sessoin_id"}, "unknown-choice"),
        ({"group_field": "components"}, "bad-option"),
    ],
)
def test_profiles_that_make_no_sense_are_refused(change: dict[str, object], code: str) -> None:
    """The wrong side of 1, swapped bounds and unknown fields exit 2."""
    with pytest.raises(ConfigError) as caught:
        derive(manifest({"s": plain(2)}), UNBOUNDED.model_copy(update=change))
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_small_groups_are_dropped_and_listed() -> None:
    """Groups below min_count are listed; none left is nothing to judge (exit 1)."""
    found = derive(manifest({"a": plain(3), "b": plain(1)}), UNBOUNDED.model_copy(update={"min_count": 2}))
    assert (list(found.groups), found.dropped) == (["a"], ("b",))
    for frame in (manifest({"a": plain(1)}), manifest({})):
        with pytest.raises(NothingToDo):
            derive(frame, UNBOUNDED.model_copy(update={"min_count": 2}))


def test_technique_filter() -> None:
    """Any of the techniques counts, all with match_all; unmatched groups vanish, or keep all their events."""
    frame = manifest({"a": [{"techniques": ["flam"]}, {"techniques": ["flam", "roll"]}, {}], "b": plain(4)})
    counts = {
        k: {g: w.count for g, w in derive(frame, UNBOUNDED, technique_filter=("flam", "roll"), **o).groups.items()}
        for k, o in (("any", {}), ("all", {"match_all": True}), ("rest", {"include_unmatched": True}))
    }
    assert counts == {"any": {"a": 2}, "all": {"a": 1}, "rest": {"a": 2, "b": 4}}


def test_what_was_left_out_is_counted() -> None:
    """Repeats and events above the cap are in the totals."""
    found = derive(
        manifest({"a": [{"onset_time": 0.0}] * 3 + plain(5)[1:]}),
        UNBOUNDED.model_copy(update={"dedupe_fields": ("session_id", "onset_time"), "max_per_group": 4}),
    )
    assert (found.groups["a"].count, found.n_repeated, found.n_capped) == (4, 2, 1)


def test_draws_follow_the_weights() -> None:
    """Group A 4 clips x 0.5, group B 16 x 0.25: share of A 1/3; 9,000 draws give 3,000 +- 140."""
    groups = ["A"] * 4 + ["B"] * 16
    p = draw_probabilities(groups, {"A": 0.5, "B": 0.25})
    assert p[:4].sum() == pytest.approx(1 / 3)
    drawn = draw(p, 9000, seed=1337, epoch=0)
    assert abs(int((drawn < 4).sum()) - 3000) <= 140
    assert sampling.realised_shares(groups, drawn) == {"B": pytest.approx(2 / 3, abs=0.016), "A": pytest.approx(1 / 3, abs=0.016)}
    assert np.array_equal(drawn, draw(p, 9000, seed=1337, epoch=0))
    assert not np.array_equal(drawn, draw(p, 9000, seed=1337, epoch=1))


def test_weights_of_one_and_zero_draw_only_the_first() -> None:
    """Hand-made weights A 1, B 0: only clips of A are drawn; a group without weight exits 1."""
    groups = ["A", "B", "B"]
    assert set(draw(draw_probabilities(groups, {"A": 1.0, "B": 0.0}), 500, 0, 0).tolist()) == {0}
    for weights in ({"A": 1.0}, {"A": 0.0, "B": 0.0}):
        with pytest.raises(GateFailed) as caught:
            draw_probabilities(groups, weights)
        assert caught.value.code == "group-without-weight"


def publish(settings: Settings, frame: pl.DataFrame, splits: dict[str, str]) -> None:
    settings.store.publish_frame(settings.layout.annotated, frame)
    settings.store.publish_frame(settings.layout.splits, pl.DataFrame({"group_id": list(splits), "split": list(splits.values())}))


def test_stage_writes_weights_that_name_their_manifest(settings: Settings) -> None:
    """The file names the manifest's digest, equal inputs give equal bytes, another manifest refuses the weights (exit 2)."""
    publish(settings, manifest({"a": plain(4), "b": plain(9)}), {"group:a": "train", "group:b": "test"})
    report = sampling.run(settings)
    path = settings.layout.report("sampling", "annotated_weights.json")
    assert report.passed
    assert {r.name for r in report.verdicts[0].rules} == {"weights_in_bounds", "weights_match_manifest"}
    written = path.read_bytes()
    assert sampling.run(settings).reused
    path.unlink()
    sampling.run(settings)
    assert path.read_bytes() == written
    digest = settings.store.sha256(settings.layout.annotated)
    assert sampling.read_weights(path, digest) == ("session_id", {"a": 0.5, "b": pytest.approx(1 / 3)})
    with pytest.raises(ConfigError) as caught:
        sampling.read_weights(path, "0" * 64)
    assert caught.value.code == "weights-for-another-manifest"
    assert store.read_json(path)["totals"] == {
        "groups": 2,
        "counted_events": 13,
        "deduplicated_events": 0,
        "capped_events": 0,
        "dropped_groups": 0,
    }


def test_a_train_group_without_weight_fails(settings: Settings) -> None:
    """weights_match_manifest: every group of the train split has a weight."""
    publish(settings, manifest({"a": plain(1), "b": plain(9)}), {"group:a": "train", "group:b": "train"})
    report = sampling.run(settings, SamplingOptions(overrides={"min_count": 2}))
    assert [r.name for r in report.verdicts[0].rules if not r.passed] == ["weights_match_manifest"]


def test_an_override_wins_over_the_profile(settings: Settings) -> None:
    """A command-line option overrides the profile even when it equals a default; an unknown profile exits 2."""
    publish(settings, manifest({"a": plain(4)}), {"group:a": "train"})
    sampling.run(settings, SamplingOptions(profile="slakh", overrides={"max_weight": 0.3}))
    assert store.read_json(settings.layout.report("sampling", "annotated_weights.json"))["groups"]["a"]["weight"] == 0.3
    with pytest.raises(ConfigError, match="slakh"):
        sampling.run(settings, SamplingOptions(profile="slak"))
