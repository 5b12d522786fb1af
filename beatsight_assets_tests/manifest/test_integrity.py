"""Raw data: checksum lists, what a lost or changed file looks like, what absent folders are called."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from beatsight_assets import sources, store
from beatsight_assets.cli import build
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.manifest.integrity import (
    IntegrityOptions,
    checksum_path,
    chosen_datasets,
    presence,
    read_checksums,
    run,
    write_checksums,
)
from beatsight_assets.settings import Settings
from beatsight_assets_tests.sources.lake import NAME, put_table, put_take, with_config

ODD_NAMES = ("two  blanks.txt", "#hash.txt", "é.txt", "deep/er/file.bin", "half.tmp", ".hidden")


@pytest.fixture
def raw(settings: Settings) -> Path:
    """Three takes and some odd names, with their checksum list."""
    root = settings.layout.raw(NAME)
    for i, name in enumerate("abc"):
        put_take(root, name, i)
    put_table(root, list("abc"))
    for name in ODD_NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    write_checksums(settings, root, checksum_path(settings, NAME))
    return root


def rules(settings: Settings, **options: object) -> Mapping[str, tuple[bool, float | None]]:
    verdict = run(settings, IntegrityOptions(NAME, **options)).verdict("raw_integrity")  # type: ignore[arg-type]
    assert verdict is not None
    return {r.name.partition("[")[0]: (r.passed, r.value) for r in verdict.rules}


def test_a_list_names_every_file_once_sorted_by_bytes(settings: Settings, raw: Path) -> None:
    """`<sha256>  <path>`, names with blanks and `#` whole, *.tmp and hidden files left out, and it reads back."""
    lines = checksum_path(settings, NAME).read_bytes().splitlines()
    paths = [line[66:].decode() for line in lines]
    assert paths == sorted(paths, key=str.encode) and len(paths) == 11
    assert {"two  blanks.txt", "#hash.txt", "é.txt", "deep/er/file.bin"} <= set(paths) and "half.tmp" not in paths
    assert read_checksums(checksum_path(settings, NAME)) == {p: store.hash_file(raw / p) for p in paths}


def test_a_list_inside_the_folder_does_not_list_itself(settings: Settings, raw: Path) -> None:
    """The same list, wherever it is written; writing it again changes no byte."""
    own = raw / "SHA256SUMS"
    for _ in range(2):
        write_checksums(settings, raw, own)
        assert own.read_bytes() == checksum_path(settings, NAME).read_bytes()


def test_update_reads_only_what_is_new(settings: Settings, raw: Path) -> None:
    """`--update` reads files whose size or time changed, and says how many; without it all are read."""
    path = checksum_path(settings, NAME)
    assert write_checksums(settings, raw, path, update=True)["read"] == 0
    put_take(raw, "b", 9)
    assert write_checksums(settings, raw, path, update=True)["read"] == 2
    data = (raw / "midi/c.mid").read_bytes()
    before = os.stat(raw / "midi/c.mid")
    (raw / "midi/c.mid").write_bytes(data[:-1] + b"\x01")
    os.utime(raw / "midi/c.mid", ns=(before.st_atime_ns, before.st_mtime_ns))
    kept = write_checksums(settings, raw, path, update=True)
    assert kept["read"] == 0 and read_checksums(path)["midi/c.mid"] != store.hash_file(raw / "midi/c.mid")
    assert write_checksums(settings, raw, path)["read"] == 11
    assert read_checksums(path)["midi/c.mid"] == store.hash_file(raw / "midi/c.mid")


def test_what_a_disk_loses_is_found(settings: Settings, raw: Path) -> None:
    """A removed file, a shorter one, a flipped byte with size and time kept, a new file: each by its rule."""
    sources.ingest(settings, "demo")
    assert rules(settings, verify_manifests=True) == {"root": (True, 0), "listed_files": (True, 0), "unlisted_files": (True, 0)}
    path = raw / "audio/b.wav"
    data, before = path.read_bytes(), path.stat()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rules(settings, verify_manifests=True)["listed_files"] == (True, 0)
    assert rules(settings, verify_manifests=True, recompute=True)["listed_files"] == (False, 1)
    path.write_bytes(data[:-10])
    assert rules(settings, verify_manifests=True)["listed_files"] == (False, 1)
    path.unlink()
    assert rules(settings, verify_manifests=True)["listed_files"] == (False, 1)
    (raw / "new.txt").write_text("x")
    assert rules(settings, verify_manifests=True)["unlisted_files"] == (False, 1)
    assert not run(settings, IntegrityOptions(NAME, verify_manifests=True, no_extra=True)).passed


def test_a_sample_is_the_same_every_time(settings: Settings, raw: Path) -> None:
    """`--max-checks N`: N files by the digest of seed and path; another seed, other files; the detail says N of M."""
    for path in raw.rglob("*"):
        if path.is_file() and path.name != "a.mid":
            path.unlink()
    found = {seed: rules(settings, verify_manifests=True, max_checks=4, seed=seed)["listed_files"][1] for seed in range(12)}
    assert set(found.values()) == {3, 4}  # the one file left is in some samples and not in others
    assert found == {seed: rules(settings, verify_manifests=True, max_checks=4, seed=seed)["listed_files"][1] for seed in range(12)}
    verdict = run(settings, IntegrityOptions(NAME, verify_manifests=True, max_checks=4)).verdict("raw_integrity")
    assert verdict is not None and "checked 4 of 11" in verdict.family("listed_files")[0].detail


@pytest.mark.parametrize("line", ["abc  x", "0" * 64 + " one blank", "0" * 64, "G" * 64 + "  x"])
def test_a_damaged_line_is_named(settings: Settings, raw: Path, line: str) -> None:
    """Exit code 3 with the line number."""
    path = checksum_path(settings, NAME)
    path.write_text(f"{'0' * 64}  fine\n{line}\n")
    with pytest.raises(InputError, match=r"txt:2") as failure:
        run(settings, IntegrityOptions(NAME, verify_manifests=True))
    assert (failure.value.code, failure.value.exit_code) == ("bad-checksum-line", 3)


def entry(root: Path, relpath: str) -> list[str]:
    """An entry of an index of mirdata."""
    return [relpath, hashlib.md5((root / relpath).read_bytes(), usedforsecurity=False).hexdigest()]


def mirdata_index(root: Path, prefix: str = "") -> dict[str, Any]:
    """Three takes as mirdata indexes them."""
    tracks = {n: {"audio": entry(root, f"audio/{n}.wav"), "midi": entry(root, f"midi/{n}.mid"), "chords": [None, None]} for n in "abc"}
    index = {"version": "1.0", "tracks": tracks, "metadata": {"note": entry(root, "#hash.txt")}}
    for one in (*tracks.values(), index["metadata"]):
        for pair in one.values():
            pair[0] = pair[0] and prefix + pair[0]
    return index


@pytest.mark.parametrize("prefix", ["", f"raw/{NAME}/"])
def test_an_index_of_mirdata_is_a_checksum_list(settings: Settings, raw: Path, tmp_path: Path, prefix: str) -> None:
    """Paths from the dataset's folder or from the data root: good, then a byte changed, then a file gone; what it lacks is not missing."""
    assert raw == settings.layout.root / "raw" / NAME
    path = tmp_path / "index.json"
    index = mirdata_index(raw, prefix)
    if prefix:
        index["tracks"]["of another dataset"] = {"audio": ["raw/elsewhere/x.wav", "0" * 32]}
        index["metadata"]["events"] = ["bundles/b/interchange/mirdata-index/x.jsonl", "0" * 32]
    path.write_text(json.dumps(index))
    options = {"verify_manifests": True, "recompute": True, "checksums": path}
    report = run(settings, IntegrityOptions(NAME, **options))  # type: ignore[arg-type]
    assert report.passed and (report.figures["lines"], report.figures["checked"], report.figures["unlisted"]) == (7, 7, 4)
    before = (raw / "audio/b.wav").stat()
    data = bytearray((raw / "audio/b.wav").read_bytes())
    data[60] ^= 1
    (raw / "audio/b.wav").write_bytes(data)
    os.utime(raw / "audio/b.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rules(settings, **options)["listed_files"] == (False, 1)
    assert rules(settings, verify_manifests=True, checksums=path)["listed_files"] == (True, 0)
    (raw / "midi/a.mid").unlink()
    assert rules(settings, **options)["listed_files"] == (False, 2)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ('{"tracks": {"a": {"audio": ["../../etc/passwd", "%s"]}}}', "path-escape"),
        ('{"tracks": {"a": {"audio": ["/etc/passwd", "%s"]}}}', "path-escape"),
        ('{"tracks": {"a": {"audio": ["C:\\\\x", "%s"]}}}', "path-escape"),
        ('{"tracks": {"a": {"audio": ["a\\u0000b", "%s"]}}}', "path-escape"),
        ('{"tracks": {"a": {"x": ["f", "%s"], "y": ["f", "11111111111111111111111111111111"]}}}', "bad-checksum-line"),
        ('{"tracks": {"a": {"audio": ["f", "abc"]}}, "x": "%s"}', "bad-checksum-line"),
        ('{"tracks": {"a": {"audio": [["f"], "%s"]}}}', "bad-checksum-line"),
        ('{"tracks": {"a": {"audio": "%s"}}}', "bad-checksum-line"),
        ('{"tracks": ["%s"]}', "bad-checksum-line"),
        ('["%s"]', "bad-checksum-line"),
        ('{"version": "%s"}', "bad-checksum-line"),
        ('{"tracks": {"a": {}, "a": {}}, "x": "%s"}', "bad-metadata"),
        ('{"tracks": "%s"', "bad-metadata"),
        ("[" * 100_000 + '"%s"', "bad-metadata"),
    ],
)
def test_a_hostile_index_is_refused_before_a_file_is_opened(settings: Settings, raw: Path, tmp_path: Path, content: str, code: str) -> None:
    """Paths that leave the folder, entries that are none, two digests of one file, JSON that is none: exit code 3 with a word for each."""
    path = tmp_path / "index.json"
    path.write_text(content % ("0" * 32))
    with pytest.raises(InputError) as failure:
        run(settings, IntegrityOptions(NAME, verify_manifests=True, recompute=True, checksums=path))
    assert (failure.value.code, failure.value.exit_code) == (code, 3)


def test_an_index_may_stand_in_the_config(settings: Settings, raw: Path) -> None:
    """`checksum_manifest: manifest/demo_index.json`."""
    settings.store.publish_json(settings.layout.at("manifest/demo_index.json"), mirdata_index(raw))
    assert rules(with_config(settings, checksum_manifest="manifest/demo_index.json"), verify_manifests=True, recompute=True)[
        "listed_files"
    ][0]


def test_absent_optional_and_several_roots(settings: Settings, raw: Path, tmp_path: Path) -> None:
    """Absent fails; absent and optional is listed as that; an empty root is none; `all` and `any` of several."""
    gone = with_config(settings, roots=("raw/nowhere",), optional=False)
    assert rules(gone) == {"root": (False, 1)}
    waived = run(with_config(gone, roots=("raw/nowhere",), optional=True), IntegrityOptions(NAME)).verdict("raw_integrity")
    assert waived is not None and waived.passed and waived.rules[0].waived
    (tmp_path / "empty").mkdir()
    both = (str(raw), str(tmp_path / "empty"))
    assert rules(with_config(settings, roots=both)) == {"root": (False, 1)}
    assert rules(with_config(settings, roots=both, roots_needed="any"))["root"][0]


def test_a_configured_list_must_be_there(settings: Settings, raw: Path) -> None:
    """A list that the config names and that is absent is exit code 3, never a check of nothing."""
    with pytest.raises(InputError):
        run(with_config(settings, checksum_manifest="reports/none.txt"), IntegrityOptions(NAME, verify_manifests=True))


def test_without_a_list_nothing_was_compared_and_that_is_said(settings: Settings, raw: Path) -> None:
    """`--verify-manifests` where nobody wrote a checksum list: the rule is waived on record with the way to a list, never left out."""
    checksum_path(settings, NAME).unlink()
    verdict = run(settings, IntegrityOptions(NAME, verify_manifests=True)).verdict("raw_integrity")
    assert verdict is not None and verdict.passed
    (rule,) = verdict.family("listed_files")
    assert rule.waived and f"beatsight raw checksums {NAME}" in rule.detail
    assert set(rules(settings)) == {"root"}, "and without the option there is no such rule"


def test_nothing_configured(settings: Settings) -> None:
    """No enabled dataset is exit code 2."""
    settings.__dict__["datasets"] = {}
    with pytest.raises(ConfigError) as failure:
        chosen_datasets(settings, ())
    assert failure.value.code == "nothing-configured"


def test_sessions_that_no_root_holds(settings: Settings, raw: Path) -> None:
    """T96: after a pack is gone, its sessions are named."""
    sources.ingest(settings, "demo")
    assert presence(settings, NAME)["missing"] == 0
    (raw / "midi/b.mid").unlink()
    found = presence(settings, NAME)
    assert (found["sessions"], found["missing"], found["missing_sessions"]) == (3, 1, ["midi/b.mid"])


@pytest.mark.parametrize(("needed", "complete"), [("all", False), ("any", True)])
def test_a_root_that_is_not_there_is_told(settings: Settings, raw: Path, tmp_path: Path, needed: str, complete: bool) -> None:
    """T96: before anything was ingested, a disk that is not mounted is named; whether that is a failure is for `roots_needed` to say."""
    here = with_config(settings, roots=(str(raw), str(tmp_path / "not mounted")), roots_needed=needed)
    found = presence(here, NAME)
    assert (found["absent_roots"], found["complete"], [r["root"] for r in found["roots"]]) == ([2], complete, [1])
    assert not presence(with_config(settings, roots=(str(tmp_path / "not mounted"),), roots_needed=needed), NAME)["complete"]


def test_the_commands_tell_the_truth(settings: Settings, raw: Path) -> None:
    """checksums, integrity and presence on the command line: 0, then 1 after a file is lost, and JSON on request."""

    def call(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(build(), ["--data-root", str(settings.layout.root), *arguments], standalone_mode=False)
        assert done.exception is None, done.exception
        return done.return_value, done.stdout

    sources.ingest(settings, "demo")
    assert call("raw", "checksums", "demo", "--json")[0] == 0
    assert call("raw", "integrity", "demo", "--recompute-digests", "--no-extra")[0] == 0
    assert call("raw", "presence", "--all")[0] == 0
    (raw / "index.json").write_text(json.dumps(mirdata_index(raw)))
    assert call("raw", "integrity", "demo", "--recompute-digests", "--checksums", str(raw / "index.json"))[0] == 0
    (raw / "midi/b.mid").unlink()
    assert call("raw", "integrity", "demo", "--checksums", str(raw / "index.json"))[0] == 1
    assert call("raw", "integrity", "demo", "--verify-manifests")[0] == 1
    code, out = call("raw", "presence", "demo", "--json")
    assert code == 1 and json.loads(out)["datasets"][0]["missing_sessions"] == ["midi/b.mid"]
    assert json.loads(settings.layout.report("ingest", "integrity.json").read_text())["passed"] is False


def test_another_list_of_datasets(settings: Settings, raw: Path, tmp_path: Path) -> None:
    """--config F is read in place of configs/datasets.yaml: its datasets alone are judged; an empty or misspelt one is exit code 2."""
    listed = tmp_path / "mine.yaml"

    def call(text: str) -> tuple[int, list[str]]:
        listed.write_text(text)
        words = ["--data-root", str(settings.layout.root), "raw", "integrity", "--config", str(listed), "--json", "--quiet"]
        try:
            done = CliRunner().invoke(build(), words, standalone_mode=False, catch_exceptions=False)
        except ConfigError as error:
            return error.exit_code, [error.code]
        return done.return_value, [d["partition"] for d in json.loads(done.stdout)["datasets"]]

    entry = f"{{short: x, raw_folder: x, module: rendered, roots: [{json.dumps(str(raw))}]}}"
    assert call(f"datasets: {{mine: {entry}}}") == (0, ["mine"])
    assert call(f"datasets: {{mine: {entry}, gone: {{short: g, raw_folder: g, module: rendered}}}}") == (1, ["mine", "gone"])
    assert call("datasets: {}") == (2, ["nothing-configured"])
    assert call("datasets: {mine: {shrt: x}}") == (2, ["bad-config"])
