"""Crash variants (T5, T6): what a crash sounds like, which crash it is, and that the manifest follows the mapping."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets import cli
from beatsight_assets.events import Manifest, read_events
from beatsight_assets.manifest import annotate, crash_embeddings, crash_mapping, merge
from beatsight_assets.manifest.crash_mapping import AssignOptions, label_of_words, split_centroids
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.manifest.factory import event, frame, hit
from beatsight_assets_tests.manifest.lake import ingest_frame, make_lake

TAXONOMY = Taxonomy.shipped()
TWO_CRASHES = [750, 770, 800, 810, 840, 860, 1850, 1900, 1950, 2000, 2050, 2100]
RATE_HZ = 22_050


def assigned(rows: Sequence[dict[str, Any]], centroids: Sequence[float], **options: int) -> dict[str, Any]:
    """The mapping of these events with these centroids."""
    crashes = crash_embeddings.crash_events(Manifest(frame(rows)), TAXONOMY)
    sounds = pl.DataFrame({"event_id": [r["event_id"] for r in rows], "spectral_centroid": [float(c) for c in centroids]})
    return crash_mapping.assign(crashes, sounds, TAXONOMY, AssignOptions(**options)).to_json()


def labels(found: dict[str, Any]) -> Counter[str]:
    """How many events got each label."""
    return Counter(v["label"] for v in found["events"].values())


def test_two_groups_of_six_give_six_crash2() -> None:
    """Six at 750-860 Hz and six at 1850-2100 Hz in one session: the lower six are `crash2`; the report counts them; aliases count as crash."""
    rows = [event(float(i), "crash_1" if i % 2 else "crash") for i in range(12)]
    found = assigned(rows, TWO_CRASHES)
    assert labels(found) == {"crash": 6, "crash2": 6}
    assert [found["events"][r["event_id"]]["label"] for r in rows[:6]] == ["crash2"] * 6
    assert found["summary"] == {"total_crash_events": 12, "assigned_events": 12, "coverage": 1.0, "methods": {"centroid": 12}}
    assert set(found["events"][rows[0]["event_id"]]) == {"label", "method", "confidence", "session_id", "notes"}


def test_seven_events_are_too_few() -> None:
    """Below --min-events nothing is decided, however far apart the sounds are; two sessions do not add up."""
    rows = [event(float(i), "crash") for i in range(7)]
    assert assigned(rows, [750, 760, 770, 2000, 2010, 2020, 2030])["events"] == {}
    mixed = [event(float(i), "crash", session=f"{i % 2}.mid") for i in range(12)]
    assert assigned(mixed, TWO_CRASHES)["events"] == {}
    assert labels(assigned(rows, [750, 760, 770, 2000, 2010, 2020, 2030], min_events=7)) == {"crash2": 3, "crash": 4}


@pytest.mark.parametrize(
    ("values", "n_low"),
    [
        ([1000.0] * 4 + [1200.0] * 4, 4),  # 200 Hz is enough
        ([0, 100, 200, 300, 400, 599.9, 700, 800, 900, 1000], None),  # 199.9 Hz and a fifth of the range are not
        ([0, 30, 60, 90, 150, 180, 210, 240], 4),  # 60 Hz of 240 are a quarter
        ([0, 30, 60, 90, 149, 180, 210, 240], None),
        ([500, 500, 510, 510, 520, 520, 530, 5000], None),  # one stray sound is no second cymbal
        ([700.0] * 9, None),
    ],
)
def test_the_split_is_the_largest_gap_that_is_wide_enough(values: list[float], n_low: int | None) -> None:
    """Limits are inclusive: 200 Hz, or a quarter of the range; three events at least on either side."""
    found = split_centroids(np.array(values), AssignOptions())
    assert (None if found is None else found.n_low) == n_low


@given(st.lists(st.floats(100, 8_000), min_size=8, max_size=40), st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_order(values: list[float], shuffle: Any) -> None:
    """Any order gives the same split, and what is split has three on either side and nothing inside the gap."""
    mixed = list(values)
    shuffle.shuffle(mixed)
    one, other = (split_centroids(np.array(v), AssignOptions()) for v in (values, mixed))
    assert one == other
    if one:
        ordered = sorted(values)
        assert 3 <= one.n_low <= len(values) - 3 and ordered[one.n_low] - ordered[one.n_low - 1] == pytest.approx(one.gap_hz)


@pytest.mark.parametrize(
    ("text", "label"),
    [("low", "crash2"), ("dark_crash", "crash2"), ("crash 2", "crash2"), ("bright", "crash"), ("crash_1", "crash"), ("note_52", None), ("yellow", None), ("mid", None), ("crash_3", None), ("high/low", None)],
)  # fmt: skip
def test_words_are_whole_tokens(text: str, label: str | None) -> None:
    """`note_52` is not `_2`, `yellow` is not low, and two answers are none."""
    assert label_of_words(text) == label


def test_names_go_before_sound() -> None:
    """1. the variant of the hit, 2. a crash technique of the event, 3. the sound of the rest; each with its method."""
    rows = [
        event(0.0, hit("crash", instrument_variant="low")),
        event(1.0, "crash", techniques=["crash_dark"]),
        event(2.0, "crash", techniques=["flam"]),
        *(event(3.0 + i, "crash") for i in range(12)),
    ]
    found = assigned(rows, [9000, 9000, 9000, *TWO_CRASHES])
    methods = [found["events"][r["event_id"]]["method"] for r in rows]
    assert methods == ["variant", "technique", *["centroid"] * 13]
    assert labels(found)["crash2"] == 8


def test_a_dataset_that_knows_crash2_is_believed() -> None:
    """Where `crash2` occurs the labels are the dataset's: all its crashes are covered, none changes; `unspecified` may be a ride."""
    rows = [event(0.0, "crash2", session="other.mid"), *(event(1.0 + i, "crash") for i in range(12))]
    found = assigned(rows, [500, *TWO_CRASHES])
    assert found["events"] == {} and found["summary"]["methods"] == {"stated": 13}
    vague = [event(float(i), hit("crash", instrument_variant="unspecified")) for i in range(12)]
    assert assigned(vague, TWO_CRASHES)["summary"]["total_crash_events"] == 0


def test_applying_a_mapping_is_idempotent() -> None:
    """Only the crash changes, only where it differs, with the technique; two crashes in one event stay; a second run changes nothing."""
    rows = frame(
        [
            event(0.0, hit("kick", 0.5), hit("crash", 0.5), techniques=["flam"]),
            event(1.0, "crash", "crash2"),
            event(2.0, "crash"),
            event(3.0, "snare"),
        ]
    )
    mapping = dict(zip(rows["event_id"], ["crash2", "crash2", "crash", "crash2"], strict=True))
    changed, n = crash_mapping.with_crash_variants(rows, mapping)
    assert n == 1 and changed[1:].equals(rows[1:])
    assert [c["label"] for c in changed["components"][0]] == ["kick", "crash2"] and changed["components"][0][1]["velocity"] == 0.5
    assert changed["techniques"][0].to_list() == ["crash_dual_label", "flam"]
    assert crash_mapping.with_crash_variants(changed, mapping) == (changed, 0)


def ringing(folder: Path, name: str, pitches_hz: Sequence[float]) -> Path:
    """A file with one decaying tone a second, from 1 s on."""
    t = np.arange(RATE_HZ) / RATE_HZ
    tones = [0.5 * np.sin(2 * np.pi * f * t) * np.exp(-8 * t) for f in pitches_hz]
    soundfile.write(folder / name, np.concatenate([np.zeros(RATE_HZ), *tones]).astype(np.float32), RATE_HZ)
    return folder / name


@pytest.fixture
def lake(tmp_path: Path) -> Any:
    """A data root with one session of twelve crashes, six low and six high, their audio, and a session without audio."""
    settings = make_lake(tmp_path, {"own": ""}, profile="demo")
    rows = [event(1.0 + i, "crash", session="a", source="own", audio_path="a.wav") for i in range(12)]
    rows += [event(1.0, "crash", session="b", source="own", audio_path="b.wav")]
    ringing(settings.layout.raw("own"), "a.wav", TWO_CRASHES)
    ingest_frame(settings, "own", frame(rows))
    merge.run(settings)
    return settings


def test_from_audio_to_the_annotated_manifest(lake: Any) -> None:
    """Centroids follow the sound, each file is decoded once, the absent one is listed; the mapping reaches the labels, with its technique."""
    opened: list[str] = []

    class Counted(soundfile.SoundFile):  # type: ignore[misc]
        def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
            opened.append(Path(file).name)
            super().__init__(file, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soundfile, "SoundFile", Counted)
        report = crash_embeddings.run(lake)
    assert opened == ["a.wav"]
    assert (report.figures["crash_events"], report.figures["embedded"]) == (13, 12)
    assert report.facts["unread"] == {"own/b.wav": "no such file"}
    table = pl.read_parquet(lake.layout.crash_embeddings)
    assert table.schema == crash_embeddings.EMBEDDINGS_SCHEMA and table["mfcc_mean"].list.len().unique().to_list() == [13]
    assert np.corrcoef(table["spectral_centroid"], TWO_CRASHES)[0, 1] > 0.99
    mapping = crash_mapping.run(lake)
    verdict = mapping.verdict("crash_mapping")
    assert verdict and verdict.passed and verdict.rule("crash_coverage").value == pytest.approx(12 / 13)  # type: ignore[union-attr]
    annotated = annotate.run(lake)
    assert annotated.figures["crashes_changed"] == 6 and "crash_mapping" in [p.role for p in annotated.parents]
    events = read_events(lake.layout.annotated)
    assert [c[0]["label"] for c in events["components"].to_list()] == ["crash2"] * 6 + ["crash"] * 7
    assert events["techniques"].to_list() == [["crash_dual_label"]] * 6 + [[]] * 7
    assert crash_embeddings.run(lake).reused and crash_mapping.run(lake).reused and annotate.run(lake).reused
    ringing(lake.layout.raw("own"), "b.wav", [900])
    assert crash_embeddings.run(lake).figures["embedded"] == 13


def test_low_coverage_warns_and_does_not_block(tmp_path: Path) -> None:
    """The rule `crash_coverage` informs: few crashes told apart are no reason to stop; no crash at all is waived."""
    settings = make_lake(tmp_path, {"own": ""}, profile="demo")
    ingest_frame(settings, "own", frame([event(1.0, "crash", source="own")]))
    merge.run(settings)
    crash_embeddings.run(settings)
    rule = crash_mapping.run(settings).verdicts[0].rules[0]
    assert (rule.name, rule.passed, rule.blocking, rule.value) == ("crash_coverage", False, False, 0.0)


def test_the_commands(lake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`events crash-embed` and `crash-assign` on the data root and on files; a missing file is exit 1, wrong options exit 2."""

    def ran(*words: str | Path) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--profile", "demo", "--data-root", str(lake.layout.root), "events", *map(str, words), "--json"])
        out = capsys.readouterr().out
        return int(ended.value.code or 0), json.loads(out) if out else {}

    code, found = ran("crash-embed")
    assert code == 1 and found["facts"]["unread"] == {"own/b.wav": "no such file"}
    assert ran("crash-assign")[0] == 0
    elsewhere = tmp_path.parent / f"{tmp_path.name}_elsewhere"
    elsewhere.mkdir()
    ringing(elsewhere, "b.wav", [900])
    table, mapping = elsewhere / "e.parquet", elsewhere / "m.json"
    code, found = ran("crash-embed", "merged", "--output", table, "--audio-root-map", f"own={elsewhere}")
    assert code == 0 and found["unread"] == {} and pl.read_parquet(table).height == 13
    assert ran("crash-assign", "merged", "--embeddings", table, "--output", mapping)[1]["summary"]["methods"] == {"centroid": 12}
    code, found = ran("alias", "merged", "--crash-mapping", mapping, "--output", elsewhere / "x.jsonl")
    assert code == 0 and found["crashes_changed"] == 6
    assert ran("annotate", "merged", "--crash-mapping", mapping, "--output", elsewhere / "x.jsonl")[1]["crashes_changed"] == 6
    assert ran("alias", "merged", "--crash-mapping", elsewhere / "none.json", "--output", elsewhere / "x.jsonl")[0] == 3
    mapping.write_text('{"events": {"a": {"label": "gong"}}}')
    assert ran("alias", "merged", "--crash-mapping", mapping, "--output", elsewhere / "x.jsonl")[0] == 3
    for wrong in (["--pre-ms", "900"], ["--mfcc", "0"], ["--audio-root-map", "own"], ["merged"], ["--output", elsewhere / "y.parquet"]):
        assert ran("crash-embed", *wrong)[0] == 2, wrong
