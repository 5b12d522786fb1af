from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import Manifest
from beatsight_assets.manifest import annotate, merge, splits
from beatsight_assets.manifest.splits import SPLITS, SplitOptions, Takes, assign, content_keys, judge, measure, session_keys
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import bucket
from beatsight_assets_tests.manifest.factory import event, frame
from beatsight_assets_tests.manifest.lake import ingest_frame, make_lake

GROUPS = st.text("abcé/|", min_size=1, max_size=6)
HINTS = st.dictionaries(GROUPS, st.lists(st.sampled_from(SPLITS), max_size=3, unique=True), min_size=1, max_size=30)
LIMITS = {"max_share_deviation": 0.05, "min_free_groups": 50, "min_class_groups": 30}
VIEW = Taxonomy.shipped().view("drums18")


def test_bucket_values_of_the_specification() -> None:
    """The split rule is the published one: corpora.md section 9 gives these values, and the counts of 10,000 groups."""
    assert [round(bucket(0, g), 6) for g in ("song1", "song2", "song3")] == [0.335808, 0.278063, 0.909295]
    found = assign({f"g{i}": () for i in range(10_000)}, ratios=(0.70, 0.15, 0.15))
    assert [sum(a.split == s for a in found.values()) for s in SPLITS] == [6903, 1555, 1542]
    drums = assign({"drummer1": (), "drummer3": (), "song3": ()})
    assert [(drums[g].split, drums[g].reason) for g in ("drummer1", "drummer3", "song3")] == [
        ("val", "hash"),
        ("val", "hash"),
        ("test", "hash"),
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(HINTS, st.lists(st.tuples(GROUPS, st.sampled_from("xyz")), max_size=10), st.integers(0, 3))
def test_no_content_crosses_and_hints_protect(hints: dict[str, list[str]], links: list[tuple[str, str]], seed: int) -> None:
    """Groups that share a key share a split; a test hint is never left; without hint and key the bucket decides."""
    found = assign(hints, links, seed=seed)
    assert set(found) == set(hints)
    for key in "xyz":
        assert len({found[g].split for g, k in links if k == key and g in hints}) <= 1
    for group, official in hints.items():
        if "test" in official:
            assert found[group].split == "test"
        if "val" in official:
            assert found[group].split in ("val", "test")
        if not official and group not in {g for g, _ in links}:
            place = bucket(seed, group)
            assert found[group] == splits.Assignment("train" if place < 0.8 else "val" if place < 0.9 else "test", "hash")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(HINTS, HINTS, st.randoms(use_true_random=False))
def test_new_groups_move_no_old_group(old: dict[str, list[str]], new: dict[str, list[str]], order: Any) -> None:
    """Adding groups, in any order, leaves every old assignment as it was."""
    before = assign(old)
    items = [*old.items(), *((g, h) for g, h in new.items() if g not in old)]
    order.shuffle(items)
    after = assign(dict(items))
    assert {g: after[g] for g in old} == before


def test_joined_groups_take_the_bucket_of_the_smallest() -> None:
    """Copies under two ids go where the smaller id goes, or where an official split of either says."""
    assert bucket(0, "song1") < 0.8 and bucket(0, "song3") > 0.9
    together = assign({"song3": (), "song9": (), "song1": ()}, [("song3", "a"), ("song1", "a")])
    assert [(together[g].split, together[g].reason) for g in ("song1", "song3")] == [("train", "joined")] * 2
    assert together["song9"].reason == "hash" and together["song3"].joined_with == ("song1", "song3")
    official = assign({"song3": (), "song9": ("val",)}, [("song3", "a"), ("song9", "a")])
    assert [(official[g].split, official[g].reason) for g in ("song3", "song9")] == [("val", "joined"), ("val", "official")]


@pytest.mark.parametrize("ratios", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_bad_ratios(ratios: tuple[float, ...]) -> None:
    """Ratios that are no three shares of one whole are refused."""
    with pytest.raises(ConfigError, match="ratios"):
        assign({"a": ()}, ratios=ratios)


def keys(**digests: tuple[str, ...]) -> pl.DataFrame:
    rows = [(g, kind, key) for key, groups in digests.items() for g in groups for kind in (key.split("_")[0],)]
    return pl.DataFrame(rows, schema={"group_id": pl.String, "kind": pl.String, "key": pl.String}, orient="row")


def table(**where: str) -> pl.DataFrame:
    return pl.DataFrame({"group_id": list(where), "split": list(where.values()), "reason": ["hash"] * len(where)})


THREE = frame([event(0.0, "kick", session=f"{g}.mid", group_id=g, split_hint=h) for g, h in (("a", None), ("b", "val"), ("c", "test"))])


@pytest.mark.parametrize(
    ("where", "content", "red"),
    [
        ({"a": "train", "b": "val", "c": "test"}, keys(), []),
        ({"a": "train", "b": "val", "c": "test"}, keys(audio_x=("a", "b")), ["audio_digest_overlap"]),
        ({"a": "train", "b": "val", "c": "test"}, keys(midi_x=("a", "c")), ["duplicate_midi_overlap"]),
        ({"a": "test", "b": "val", "c": "train"}, keys(), ["official_split_respected"]),
        ({"a": "train", "b": "test", "c": "test"}, keys(), ["official_split_respected", "nothing-to-judge"]),
        ({"a": "val", "b": "test", "c": "test"}, keys(midi_x=("b", "c")), ["nothing-to-judge"]),
        ({"a": "train", "b": "val"}, keys(), ["unassigned_events", "nothing-to-judge"]),
    ],
)
def test_gate_sees_leaks_in_a_table_it_did_not_make(where: dict[str, str], content: pl.DataFrame, red: list[str]) -> None:
    """Shared content, moved official splits and unassigned events are found in any split table; an empty split fails."""
    verdict = judge(measure(Takes.of(Manifest(THREE)), table(**where), content, VIEW), LIMITS)
    assert [r.name for r in verdict.rules if r.blocking and not r.passed] + [r.code for r in verdict.reasons] == red


def test_group_in_two_splits_is_found() -> None:
    """A table that names one group twice with two splits is red."""
    figures = measure(Takes.of(Manifest(THREE)), pl.concat([table(a="train", b="val", c="test"), table(a="test")]), keys(), VIEW)
    assert [r.name for r in judge(figures, LIMITS).rules if not r.passed] == ["group_overlap"]


def test_shares_and_classes_warn_only() -> None:
    """With more than 50 free groups shares are judged, with 30 groups of a class its presence; both warn and do not block."""
    rows = frame([event(0.0, "kick" if i else "snare", session=f"{i}.mid", group_id=f"g{i}") for i in range(60)])
    where = {f"g{i}": "val" if i == 1 else "test" if i == 0 else "train" for i in range(60)}
    verdict = judge(measure(Takes.of(Manifest(rows)), table(**where), keys(), VIEW), LIMITS)
    assert verdict.passed
    assert [r.name for r in verdict.rules if not r.passed] == [
        "split_share[train]",
        "split_share[val]",
        "split_share[test]",
        "class_present[test][kick]",
    ]


def test_content_keys() -> None:
    """Digests of a session's audio and MIDI files and of its MIDI content count; other files, null digests, content without a MIDI file do not."""
    rows = [
        {"source_set": "s", "session_id": name, "hashes": [{"path": f"{name}.wav", "sha256": "A", "bytes": 1}, {"path": f"{name}.mid", "sha256": "M", "bytes": 1}],
         "facts": json.dumps({"midi_content": content})} for name, content in (("x", "m"), ("y", "m"), ("z", None))
    ]  # fmt: skip
    provenance = pl.DataFrame(rows)
    paths = pl.DataFrame(
        {
            "source_set": ["s"] * 3,
            "session_id": ["x", "y", "z"],
            "group_id": ["gx", "gy", "gz"],
            "audio_path": ["x.wav", None, "z.wav"],
            "midi_path": ["x.mid", None, "z.mid"],
        }
    )
    assert content_keys(session_keys(provenance, paths)).rows() == [
        ("gx", "audio", "A"),
        ("gy", "audio", "A"),
        ("gz", "audio", "A"),
        ("gx", "midi", "M"),
        ("gy", "midi", "M"),
        ("gz", "midi", "M"),
        ("gx", "midi", "m"),
    ]


def planted() -> tuple[pl.DataFrame, dict[str, str], dict[str, str]]:
    """60 takes: take 7 is a copy of take 3 by its MIDI, take 8 of take 9 by its audio, and take 5 has two official splits."""
    rows = []
    for i in range(60):
        hints = ["val", "test"] if i == 5 else [None, None]
        for k, label in enumerate(("hihat_open", "hihat_closed")):
            rows.append(
                event(0.1 * k, label, session=f"t{i:02}.mid", source="a_set", group_id=f"demo:t{i:02}", split_hint=hints[k],
                      audio_path=f"t{i:02}.wav", midi_path=f"t{i:02}.mid", drummer_id=f"d{i % 3}", is_synthetic=True)
            )  # fmt: skip
    midi = {f"t{i:02}.mid": f"m{3 if i == 7 else i}" for i in range(60)}
    audio = {f"t{i:02}.mid": f"a{9 if i == 8 else i}" for i in range(60)}
    return frame(rows), audio, midi


def test_stage_joins_copies_and_reports_conflicts(tmp_path: Path) -> None:
    """Ruling 26: a duplicate take is joined to its twin and reported, a conflicting official split goes to the most protected."""
    events, audio, midi = planted()
    lake = make_lake(tmp_path, {"a_set": ""})
    with pytest.raises(InputError, match="events annotate"):
        splits.run(lake)
    ingest_frame(lake, "a_set", events, audio=audio, midi=midi)
    merge.run(lake)
    annotate.run(lake)
    report = splits.run(lake)
    verdict = report.verdict("splits")
    assert verdict is not None and verdict.passed
    assert [j["groups"] for j in report.facts["joined"]] == [["demo:t03", "demo:t07"], ["demo:t08", "demo:t09"]]
    assert report.facts["conflicting_hints"] == {"demo:t05": {"hints": ["test", "val"], "split": "test"}}
    assert (report.figures["split_conflict"], report.figures["joined_groups"], report.figures["drummers_in_two_splits"]) == (1, 4, 3)
    stored = pl.read_parquet(lake.layout.splits)
    assert stored.schema == splits.SPLITS_SCHEMA and stored["events"].sum() == events.height
    assert dict(stored.group_by("reason").len().sort("reason").iter_rows()) == {"hash": 55, "joined": 4, "official": 1}
    assert splits.run(lake).reused
    other = splits.run(lake, SplitOptions(seed=1))
    assert other.output("splits").sha256 != report.output("splits").sha256
    assert splits.run(lake).output("splits").sha256 == report.output("splits").sha256


@pytest.mark.data
def test_groove_keeps_its_official_split(groove_lake: Settings) -> None:
    """The 992 real takes go 782 / 111 / 99 as published, every one by its official split, and every gate of the chain is green."""
    assert merge.run(groove_lake).passed
    annotated = annotate.run(groove_lake)
    assert annotated.passed, annotated.verdicts
    assert annotated.facts["openness"]["closed_median"] <= 0.05 and annotated.facts["openness"]["open_median"] >= 0.5
    report = splits.run(groove_lake)
    assert report.passed, report.verdicts
    assert report.table is not None
    assert {row[0]: row[1] for row in report.table.rows} == {"train": 782, "val": 111, "test": 99}
    assert (report.figures["events_train"], report.figures["events_val"], report.figures["events_test"]) == (151_370, 21_538, 16_939)
