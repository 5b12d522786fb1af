"""Each form is read by the library it is for; equal bundles give equal bytes (`spec/bundle.md` section 11, row T136)."""

from __future__ import annotations

import gc
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beatsight_assets import interchange, store
from beatsight_assets.bundle.export import BundleRequest, export
from beatsight_assets.bundle.read import BundleIncomplete, open_bundle
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.interchange import InterchangeOptions, hf_parquet, lhotse, webdataset
from beatsight_assets.interchange import stage as engine
from beatsight_assets.interchange.clips import Clips, Fact, Row, open_clips
from beatsight_assets.settings import Settings
from beatsight_assets_tests.interchange.conftest import NAME

N_CLIPS = 207


def convert(settings: Settings, kind: str, name: str = NAME) -> Path:
    """The folder of a form that came back whole."""
    report = interchange.run(settings, InterchangeOptions(name, kind))
    assert report.passed, report.verdicts
    return settings.layout.at(f"bundles/{name}/interchange/{kind}")


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file of a form."""
    return {p.relative_to(folder).as_posix(): store.hash_file(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def truth(settings: Settings, name: str = NAME) -> dict[str, tuple[Row, np.ndarray]]:
    """Row and samples of every clip as the bundle itself gives them."""
    found = {row["clip"]: (row, samples.copy()) for row, samples in open_bundle(settings.layout.at(f"bundles/{name}")).clips()}
    assert len(found) == N_CLIPS
    return found


@pytest.mark.parametrize("kind", interchange.FORMS)
def test_every_form_comes_back_and_has_equal_bytes(lake: Settings, kind: str) -> None:
    """The round trip is judged, SOURCE.json names the bundle and every file, a second run keeps it, a new one makes the same bytes."""
    report = interchange.run(lake, InterchangeOptions(NAME, kind))
    folder = lake.layout.at(f"bundles/{NAME}/interchange/{kind}")
    (rule,) = report.verdicts[0].rules
    assert (rule.name, rule.passed, rule.value) == ("roundtrip", True, 0.0) and report.figures["items"] > 0
    said = store.read_json(folder / "SOURCE.json")
    assert said["bundle_sha256"] == open_bundle(lake.layout.at(f"bundles/{NAME}")).content_sha256
    first = contents(folder)
    assert {f["path"]: f["sha256"] for f in said["files"]} == {k: v for k, v in first.items() if k != "SOURCE.json"}
    assert interchange.run(lake, InterchangeOptions(NAME, kind)).reused
    (folder / "SOURCE.json").unlink()
    (folder / "left-over.tar").write_bytes(b"of another run")
    again = interchange.run(lake, InterchangeOptions(NAME, kind))
    assert not again.reused and contents(folder) == first


def test_a_form_that_does_not_come_back_is_red(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lost clip and one with another mask are two failures, and the rule names the first."""

    def damaged(folder: Path, clips: Clips) -> Iterator[tuple[str, Fact]]:
        (_, (name, said), *rest) = list(webdataset.read(folder, clips))
        yield from [(name, (*said[:3], ("kick",), *said[4:])), *rest]

    monkeypatch.setitem(engine.FORMS, "webdataset", engine.clip_form(webdataset.write, damaged))
    report = interchange.run(lake, InterchangeOptions(NAME, "webdataset"))
    assert not report.passed and report.verdicts[0].rules[0].value == 2.0
    assert "of 207, did not come back as they were; first " in report.verdicts[0].rules[0].detail


def test_what_cannot_be_converted_is_said(lake: Settings) -> None:
    """Unknown form: exit 2 with the nearest; a bundle that is not sealed: exit 1."""
    with pytest.raises(ConfigError, match="Did you mean webdataset") as caught:
        interchange.run(lake, InterchangeOptions(NAME, "webdatasets"))
    assert caught.value.exit_code == 2
    (lake.layout.at(f"bundles/{NAME}") / "BUNDLE.json").unlink()
    with pytest.raises(BundleIncomplete):
        interchange.run(lake, InterchangeOptions(NAME, "webdataset"))


@pytest.mark.parametrize("label", ["kick\tsnare", "kick\nsnare", "\x1b[31mkick", "\u202ekick"])
def test_hostile_labels_are_refused(lake: Settings, label: str) -> None:
    """A label that would break a line or a terminal is no label: InputError, and no SOURCE.json."""
    clips = open_clips(lake, NAME)
    hit = pl.col("hits").list.eval(
        pl.struct(label=pl.lit(label), **{k: pl.element().struct.field(k) for k in ("offset_ms", "velocity", "openness")})
    )
    hostile = replace(clips, tables=[t.with_columns(hits=hit) for t in clips.tables])
    for kind in ("webdataset", "hf-parquet", "croissant", "lhotse"):
        with pytest.raises(InputError, match="bad-label"):
            engine.convert(lake, hostile, kind)
        assert not (lake.layout.at(f"bundles/{NAME}/interchange/{kind}") / "SOURCE.json").exists()


def test_hostile_clip_names_are_refused(lake: Settings) -> None:
    """A clip's name becomes a file name: a bundle of a stranger cannot choose it freely."""
    clips = open_clips(lake, NAME)
    hostile = replace(clips, tables=[t.with_columns(clip=pl.lit("../../../x")) for t in clips.tables])
    with pytest.raises(InputError, match="bad-bundle"):
        engine.convert(lake, hostile, "webdataset")


def test_the_order_of_clips_is_keyed_and_does_not_depend_on_their_tables(lake: Settings) -> None:
    """Sessions are mixed, every clip comes once, and a bundle in other shards gives the same order and the same tars."""
    export(lake, BundleRequest("other", None, {"layout": "wav", "shards": 5}))
    one, other = open_clips(lake, NAME), open_clips(lake, "other")
    order = [row["clip"] for row, _ in one.clips("train")]
    assert order == [row["clip"] for row, _ in other.clips("train")]
    assert order == sorted(order, key=lambda clip: sha256(f"0:{clip}".encode()).hexdigest())
    assert len(set(order)) == one.n_clips("train") == 69
    samples = [{row["clip"]: s.tobytes() for row, s in clips.clips("val")} for clips in (one, other)]
    assert samples[0] == samples[1]
    for kind in ("webdataset", "croissant", "lhotse"):
        convert(lake, kind, "other")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves archives to the garbage collector
def test_webdataset_reads_the_tars(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gives back ids, samples and labels of every clip, over several archives."""
    library = pytest.importorskip("webdataset", reason="webdataset is not installed")
    monkeypatch.setattr(webdataset, "TAR_BYTES", 600_000)
    folder = convert(lake, "webdataset")
    expected = truth(lake)
    urls = sorted(str(p) for p in folder.glob("*.tar"))
    assert len(urls) == 12
    seen = set()
    for sample in library.WebDataset(urls, shardshuffle=False, empty_check=False):
        row, samples = expected[sample["__key__"]]
        said = json.loads(sample["json"])
        assert np.frombuffer(sample["wav"][44:], "<i2").tolist() == samples.tolist()
        assert (said["labels"], said["session_id"], said["split"]) == (
            row["labels"],
            row["session_id"],
            Path(sample["__url__"]).name.split("-")[0],
        )
        seen.add(sample["__key__"])
    assert seen == expected.keys()
    gc.collect()


def test_archives_say_nothing_of_the_machine(lake: Settings) -> None:
    """ustar, mtime 0, uid and gid 0 without names, mode 0644; the index counts every clip; GNU tar lists it."""
    folder = convert(lake, "webdataset")
    with tarfile.open(folder / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}
    assert [Path(m.name).suffix for m in members[:4]] == [".wav", ".json"] * 2
    assert (folder / "train-000000.tar").read_bytes()[257:265] == b"ustar\x0000"
    assert all(m.tobuf(tarfile.USTAR_FORMAT) == (folder / "train-000000.tar").read_bytes()[m.offset :][:512] for m in members[:6])
    index = store.read_json(folder / "index.json")
    assert {(s["name"], s["clips"]) for s in index["shards"]} == {(f"{s}-000000.tar", 69) for s in ("train", "val", "test")}
    assert all(store.hash_file(folder / s["name"]) == s["sha256"] for s in index["shards"])
    listed = subprocess.run(["tar", "-tf", str(folder / "val-000000.tar")], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 138 and not listed.stderr


def test_datasets_knows_audio_and_classes(lake: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are Audio and ClassLabel without decoding; every row has the clip's samples, classes, mask and hits."""
    library = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(hf_parquet, "FILE_CLIPS", 50)
    folder = convert(lake, "hf-parquet")
    expected = truth(lake)
    loaded = library.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in loaded.items()} == {"train": 69, "validation": 69, "test": 69}
    features = loaded["train"].features
    assert isinstance(features["audio"], library.Audio) and features["audio"].sampling_rate == 44_100
    classes = features["labels"].feature
    assert isinstance(classes, library.ClassLabel) and classes.names == open_bundle(lake.layout.at(f"bundles/{NAME}")).components
    seen = set()
    for part in loaded.values():
        for found in part.cast_column("audio", library.Audio(decode=False)):
            row, samples = expected[found["clip"]]
            assert np.frombuffer(found["audio"]["bytes"][44:], "<i2").tolist() == samples.tolist()
            assert classes.int2str(found["labels"]) == row["labels"] and classes.int2str(found["masked"]) == row["masked"]
            assert [h["label"] for h in found["hits"]] == [h["label"] for h in row["hits"]]
            seen.add(found["clip"])
    assert seen == expected.keys()


def test_the_card_names_licences_splits_and_sizes(lake: Settings) -> None:
    """The hub's own reader finds what it shows; a licence that it does not know is `other` and stands in the text."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    folder = convert(lake, "hf-parquet")
    card = hub.DatasetCard((folder / "README.md").read_text())
    licence = open_clips(lake, NAME).licences["beatsight_demo"]
    assert card.data.license == [hf_parquet.LICENCES.get(licence, "other")]
    assert f"| beatsight_demo | {licence} |" in card.content
    splits = {s["name"]: s["num_examples"] for s in card.data["dataset_info"]["splits"]}
    assert splits == {"train": 69, "validation": 69, "test": 69} and card.data.size_categories == ["n<1K"]


def test_lhotse_cuts_every_clip(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own cuts of recordings and supervisions are the clips, sample by sample, with labels as custom fields."""
    library = pytest.importorskip("lhotse", reason="lhotse is not installed")
    monkeypatch.setattr(lhotse, "PACK_CLIPS", 40)
    folder = convert(lake, "lhotse")
    expected = truth(lake)
    seen = set()
    for split in ("train", "val", "test"):
        recordings = library.RecordingSet.from_file(folder / f"recordings-{split}.jsonl.gz")
        supervisions = library.SupervisionSet.from_file(folder / f"supervisions-{split}.jsonl.gz")
        library.validate_recordings_and_supervisions(recordings, supervisions)
        assert len(list(recordings)) == 2
        cuts = library.CutSet.from_manifests(recordings=recordings.with_path_prefix(folder), supervisions=supervisions)
        for cut in cuts.trim_to_supervisions(keep_overlapping=False):
            row, samples = expected[cut.supervisions[0].id]
            assert (np.rint(cut.load_audio()[0] * 32_768).astype(int) == samples).all()
            assert cut.supervisions[0].custom["labels"] == row["labels"] and row["split"] == split
            seen.add(cut.supervisions[0].id)
    assert seen == expected.keys()
    assert (folder / "recordings-val.jsonl.gz").read_bytes()[3:8] == bytes(5), "gzip holds a name or a time"


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")  # how the library calls rdflib
def test_croissant_validates_and_its_records_are_the_clips(lake: Settings) -> None:
    """The reference library finds no error offline, and reads a record per clip through the document alone."""
    library = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    folder = convert(lake, "croissant")
    expected = truth(lake)
    dataset = library.Dataset(jsonld=folder / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    assert len(dataset.metadata.distribution) == 1 + len(open_clips(lake, NAME).parts) > 4
    seen = set()
    for record in dataset.records("clips"):
        row, _ = expected[record["clips/clip"].decode()]
        assert [label.decode() for label in record["clips/labels"]] == row["labels"]
        assert record["clips/onset_time"] == row["onset_time"] and record["clips/split"].decode() == row["split"]
        seen.add(row["clip"])
    assert seen == expected.keys()


def test_a_changed_part_is_red(lake: Settings) -> None:
    """One flipped sample of the bundle: croissant's digests and the round trip see it."""
    part = next(iter(sorted(lake.layout.at(f"bundles/{NAME}").glob("shards/*/train-0000.pcm"))))
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    for kind in ("croissant", "webdataset"):
        assert not interchange.run(lake, InterchangeOptions(NAME, kind)).passed
