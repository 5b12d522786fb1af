"""Which events become clips, and with which labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.bundle.plan import BundleOptions, clip_name, manifest_digest, shard_of
from beatsight_assets.bundle.read import Bundle, open_bundle
from beatsight_assets.bundle.summary import formatted_duration
from beatsight_assets.bundle.verify import verify
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import read_events, to_jsonl
from beatsight_assets.settings import Settings
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.bundle.conftest import MakeManifest

TAKES: dict[str, Sequence[tuple[float, str]]] = {"one": [(1.0, "kick"), (1.0, "hihat_closed"), (1.125, "snare")]}


def exported(settings: Settings, manifest: Path, **content: Any) -> Bundle:
    return open_bundle(export(settings, BundleRequest("b", manifest, content, "overwrite")).plan.folder)


def test_labels_of_a_window(settings: Settings, make_manifest: MakeManifest) -> None:
    """Kick and closed hat at one instant are one clip with two targets; the snare 125 ms later is a hit of its window, not the other way round."""
    both, snare = exported(settings, make_manifest(TAKES)).table().sort("onset_time").iter_rows(named=True)
    assert both["labels"] == ["kick", "hihat_closed"] and snare["labels"] == ["snare"]
    assert sorted((h["label"], round(h["offset_ms"], 3)) for h in both["hits"]) == [("hihat_closed", 0.0), ("kick", 0.0), ("snare", 125.0)]
    assert [h["label"] for h in snare["hits"]] == ["snare"]
    assert both["window_labels"] == ["kick", "snare", "hihat_closed"]
    assert (both["label"], both["component_idx"]) == (None, None) and (snare["label"], snare["component_idx"]) == ("snare", 1)


def test_index_order_is_that_of_the_view(settings: Settings, make_manifest: MakeManifest) -> None:
    """components.json lists the classes of the view in its order, whatever the bundle holds."""
    bundle = exported(settings, make_manifest({"a": [(0.5, "crash")]}))
    assert bundle.components == list(Taxonomy.load(settings).view("drums18").classes)
    assert bundle.table()["component_idx"].to_list() == [bundle.components.index("crash")]


def test_what_was_marked_in_part_says_nothing_of_the_rest(settings: Settings, make_manifest: MakeManifest) -> None:
    """Hits marked by hand here and there (`partial`): a clip knows its target alone; a whole session and a marked negative know every class."""
    takes = {"part": [*TAKES["one"], (1.5, "kick")], "whole": TAKES["one"]}
    manifest = make_manifest(takes)
    frame = read_events(manifest).with_columns(
        extras=pl.when(pl.col("session_id") == "part").then(pl.lit('{"partial":true}')).otherwise("extras"),
        negative_example=(pl.col("session_id") == "part") & (pl.col("onset_time") == 1.5),
    )
    settings.store.publish_frame(manifest, frame)
    bundle = exported(settings, manifest)
    for row in bundle.table().iter_rows(named=True):
        known = set(bundle.components) - set(row["masked"])
        assert known == (set(row["labels"]) if row["session_id"] == "part" and not row["negative_example"] else set(bundle.components))
    counts = bundle.metadata["label_counts"]
    assert {c: n for c in bundle.components if (n := sum(by[c] for by in counts.values()))} == {"kick": 2, "snare": 2, "hihat_closed": 2}


def test_a_masked_class_is_not_counted(settings: Settings, make_manifest: MakeManifest) -> None:
    """A hat that nobody names hides the open hat 100 ms before it: that clip is no example of an open hat, in no count."""
    manifest = make_manifest({"a": [(1.0, "hihat_open"), (1.1, "hihat_closed"), (1.5, "hihat_open")]})
    vague = pl.when(pl.col("onset_time") == 1.1).then(
        pl.col("components").list.eval(pl.element().struct.with_fields(instrument_variant=pl.lit("unspecified")))
    )
    settings.store.publish_frame(manifest, read_events(manifest).with_columns(components=vague.otherwise("components")))
    bundle = exported(settings, manifest)
    first = bundle.table().sort("onset_time").row(0, named=True)
    assert first["labels"] == ["hihat_open"] and "hihat_open" in first["masked"]
    assert sum(by["hihat_open"] for by in bundle.metadata["label_counts"].values()) == 1


def test_outcomes_add_up(settings: Settings, make_manifest: MakeManifest) -> None:
    """Every event ends in exactly one outcome: onsets past the audio, unknown labels, stems, filters and missing audio are counted."""
    takes = {"a": [(0.1, "kick"), (1.97, "snare"), (1.985, "crash")], "b": [(0.5, "kick")], "c": [(0.5, "kick")]}
    manifest = make_manifest(takes)
    (settings.layout.raw("beatsight_demo") / "audio" / "b.wav").unlink()
    frame = read_events(manifest).with_columns(
        mix_context=pl.when(pl.col("session_id") == "c").then(pl.lit("stem")).otherwise("mix_context")
    )
    settings.store.publish_frame(manifest, frame)
    found = export(settings, BundleRequest("b", manifest)).statistics
    assert {k: v for k, v in found.items() if k.startswith("skipped_") and v} == {
        "skipped_not_a_hit": 1,
        "skipped_missing_audio": 1,
        "skipped_past_audio_end": 1,
        "skipped_total": 3,
    }
    assert (found["total_events"], found["planned_clips"], found["written_clips"]) == (5, 4, 2)


def test_an_unknown_label_alone_is_no_clip(settings: Settings, make_manifest: MakeManifest) -> None:
    """A hit of an unknown label has no component; it is excluded and counted."""
    manifest = make_manifest({"a": [(0.5, "gong"), (1.0, "kick")]})
    assert export(settings, BundleRequest("b", manifest)).statistics["skipped_no_components"] == 1


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "C:/x.wav", "a\\b.wav", "~/x.wav", "a/../../b.wav"])
def test_paths_never_leave_their_root(settings: Settings, make_manifest: MakeManifest, path: str) -> None:
    """A path that leads out of its root is counted as path_escape and never opened."""
    manifest = make_manifest({"a": [(0.5, "kick")], "b": [(0.5, "kick")]})
    frame = read_events(manifest).with_columns(audio_path=pl.when(pl.col("session_id") == "b").then(pl.lit(path)).otherwise("audio_path"))
    settings.store.publish_frame(manifest, frame)
    found = export(settings, BundleRequest("b", manifest)).statistics
    assert (found["skipped_path_escape"], found["written_clips"]) == (1, 1)


def test_a_link_out_of_the_root_is_an_escape(settings: Settings, make_manifest: MakeManifest, tmp_path: Path) -> None:
    """Audio behind a link that leaves the root is not read."""
    manifest = make_manifest({"a": [(0.5, "kick")]})
    audio = settings.layout.raw("beatsight_demo") / "audio" / "a.wav"
    audio.rename(tmp_path / "outside.wav")
    audio.symlink_to(tmp_path / "outside.wav")
    assert export(settings, BundleRequest("b", manifest)).statistics["skipped_path_escape"] == 1


def test_a_hostile_id_stays_inside(settings: Settings, make_manifest: MakeManifest) -> None:
    """An event id that is a path is stored under 32 digits of its digest, in layout wav too."""
    manifest = make_manifest({"a": [(0.5, "kick")]}, event_id="../../../x")
    bundle = exported(settings, manifest, layout="wav")
    (row,) = bundle.table().iter_rows(named=True)
    assert row["file"] == f"audio/{clip_name('../../../x')[:2]}/{clip_name('../../../x')}.wav"
    assert (bundle.folder / "train" / row["file"]).is_file()
    assert not any(p.name == "x" or p.name.startswith("x.") for p in settings.layout.root.rglob("*"))


def test_limit_is_a_keyed_sample(settings: Settings, make_manifest: MakeManifest) -> None:
    """--limit keeps the events with the smallest keyed digest; the others are not_selected; a larger limit keeps all of a smaller one."""
    manifest = make_manifest({f"t{n}": [(0.3, "kick"), (0.8, "snare"), (1.3, "crash")] for n in range(6)})
    few, more = (set(exported(settings, manifest, limit=n).table()["event_id"]) for n in (5, 9))
    assert len(few) == 5 and few < more
    assert export(settings, BundleRequest("b", manifest, {"limit": 5}, "overwrite")).statistics["skipped_not_selected"] == 13


def test_filters(settings: Settings, make_manifest: MakeManifest) -> None:
    """Label and synthetic filters choose events; what they drop is counted as not selected."""
    manifest = make_manifest({"a": [(0.3, "kick"), (0.8, "snare"), (1.3, "crash")]})
    only = exported(settings, manifest, include_labels=("snare",)).table()
    assert only["label"].to_list() == ["snare"]
    assert exported(settings, manifest, exclude_labels=("snare",)).table().height == 2
    assert export(settings, BundleRequest("c", manifest, {"synthetic": "none"})).statistics["skipped_not_selected"] == 3


def test_equal_rows_have_equal_digests(settings: Settings, make_manifest: MakeManifest, tmp_path: Path) -> None:
    """The same rows as Parquet, as JSON lines and in another order are one manifest; one onset moved by 1 ms is another."""
    manifest = make_manifest({"a": [(0.3, "kick"), (0.8, "snare")], "b": [(0.4, "crash")]})
    frame = read_events(manifest)
    lines = tmp_path / "m.jsonl"
    lines.write_bytes(to_jsonl(frame))
    frame.reverse().write_parquet(tmp_path / "reversed.parquet")
    moved = frame.with_columns(onset_time=pl.col("onset_time") + pl.when(pl.col("session_id") == "b").then(0.001).otherwise(0.0))
    moved.write_parquet(tmp_path / "moved.parquet")
    digest = manifest_digest(manifest)
    assert digest == manifest_digest(lines) == manifest_digest(tmp_path / "reversed.parquet")
    assert digest != manifest_digest(tmp_path / "moved.parquet")


def test_verify_counts_both_and_names_the_missing_one(settings: Settings, make_manifest: MakeManifest) -> None:
    """Two events, one file missing: resolved 1, missing 1, expected 0.56 s, labels of both, and nothing is written."""
    manifest = make_manifest({"a": [(0.5, "kick")], "b": [(0.5, "snare")]})
    (settings.layout.raw("beatsight_demo") / "audio" / "b.wav").unlink()
    before = sorted(settings.layout.root.rglob("*"))
    found = verify(settings, BundleRequest("v", manifest))
    stats = found.to_json()["statistics"]
    assert (stats["resolved_audio"], stats["missing_audio"], stats["expected_seconds"]) == (1, 1, 0.56)
    assert found.label_counts == {"kick": 1, "snare": 1} and not found.passed(0) and found.passed(1)
    assert (
        found.examples[0]["audio_path"] == "audio/b.wav" and "missing-audio" in found.examples[0]["reason"] and found.examples[0]["tried"]
    )
    assert sorted(p for p in settings.layout.root.rglob("*") if ".cache" not in p.parts) == [p for p in before if ".cache" not in p.parts]


def test_verify_and_export_plan_the_same(made: Settings) -> None:
    """The counts of verify are those of the export."""
    found = verify(made, BundleRequest("v"))
    done = export(made, BundleRequest("b"))
    assert found.n_planned == done.statistics["planned_clips"] and found.total_events == done.statistics["total_events"]
    assert sum(found.seconds.values()) == pytest.approx(done.statistics["written_seconds"])


@pytest.mark.parametrize(
    "content",
    [{"layout": "index"}, {"channel": "left"}, {"sample_rate": 12}, {"post_ms": 0}, {"val_ratio": 0.95}, {"limit": 0}, {"view": "drums99"}],
)
def test_options_that_no_bundle_can_have(content: dict[str, Any]) -> None:
    """A content option out of range is a usage error before anything is read."""
    with pytest.raises(ConfigError):
        BundleOptions(**content).validate(Taxonomy.shipped())


def test_a_group_without_a_split_is_refused(made: Settings) -> None:
    """A group of the annotated manifest that the split table lacks stops the plan, with the command that helps."""
    table = pl.read_parquet(made.layout.splits)
    made.store.publish_frame(made.layout.splits, table.head(table.height - 1))
    with pytest.raises(InputError, match=r"unassigned-groups.*events split"):
        export(made, BundleRequest("b"))


def test_all_clips_of_a_recording_lie_in_one_shard(settings: Settings, make_manifest: MakeManifest) -> None:
    """The shard of a clip is that of its recording."""
    bundle = exported(settings, make_manifest({f"t{n}": [(0.3, "kick"), (0.8, "snare")] for n in range(9)}), shards=4)
    for shard in range(4):
        for source, path in bundle.shard_table(shard).select("source_set", "audio_path").unique().collect().iter_rows():
            assert shard_of(source, path, 4) == shard
    assert bundle.table().height == 18


def test_durations_are_readable() -> None:
    """Hours, minutes, seconds, milliseconds."""
    assert [formatted_duration(s) for s in (0.56, 3661.28)] == ["0:00:00.560", "1:01:01.280"]
