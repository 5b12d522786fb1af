"""Every stage without torch, and promotion, are killed at their failpoints and refused by the disk: R3, R4 and R6 on the real writers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, GateFailed, InputError
from beatsight_assets.features import cache as features
from beatsight_assets.manifest.merge import find_red_sources
from beatsight_assets.model import promote as promotion
from beatsight_assets.model.promote import PromoteOptions
from beatsight_assets.settings import Settings
from beatsight_assets.stages import all_receipts, is_intact, read_receipt
from beatsight_assets_tests.crash import writers
from beatsight_assets_tests.crash.sweep import Forked, SweepResult, is_exhaustive, scratch, sweep, tree

EVERY_POINT = 10_000
SAMPLES = {"recording_features": EVERY_POINT, "ingest": 24}  # the cache is struck everywhere on every push; ingest has the most files
HISTORY = ("computed", "reused", "repaired")  # figures that tell how a run went, not what it made
READERS: dict[str, Callable[[Path], object]] = {".parquet": pl.read_parquet, ".npy": features.read_features, ".json": store.read_json}
_seen: set[str] = set()  # contents that could be read

Factory = Callable[[], Path]


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A folder for all data roots of this module; `first` went through every stage."""
    with scratch() as folder:
        first = folder / "first"
        first.mkdir()
        writers.make_data(first)
        writers.run_to(first)
        yield folder


@pytest.fixture(scope="module")
def factory(base: Path) -> Callable[[str], Factory]:
    """`factory(stage)` makes data roots in which version 1 went through everything and version 2 is due from that stage on."""
    numbers = count()

    @cache
    def template(stage: str) -> Factory:
        made = base / stage
        shutil.copytree(base / "first", made)
        writers.change_data(made)
        writers.run_to(made, stage)
        (made / "due").write_text(stage)
        return lambda: Path(shutil.copytree(made, base / f"root-{next(numbers)}"))

    return template


@pytest.fixture(scope="module")
def writer() -> Iterator[Forked]:
    """A warm process that runs what is due."""
    with Forked("beatsight_assets_tests.crash.writers:due") as warm:
        yield warm


def readers_view(root: Path) -> None:
    """Every receipt, table and document can be read whole; a dataset whose files and receipt do not agree is not merged."""
    settings = writers.settings_of(root)
    for receipt in all_receipts(settings):
        assert receipt.outputs
    for relpath, digest in tree(root).items():
        path = root / relpath
        if digest not in _seen and path.suffix in READERS:
            READERS[path.suffix](path)
            _seen.add(digest)
    events = read_receipt(settings, "events", "beatsight_demo")
    assert events is not None
    assert is_intact(settings, events) == (find_red_sources(settings, ["beatsight_demo"]) == {})


def without_history(root: Path) -> dict[str, str]:
    """`tree`, save that the receipt of the feature cache counts without what it tells of the run."""
    found = tree(root)
    path = root / "receipts" / "recording_features.json"
    if path.is_file():
        receipt = json.loads(path.read_bytes())
        receipt["figures"] = {k: v for k, v in receipt["figures"].items() if k not in HISTORY}
        found["receipts/recording_features.json"] = hashlib.sha256(store.to_json_bytes(receipt)).hexdigest()
    return found


def shown(stage: str, result: SweepResult, capsys: pytest.CaptureFixture[str]) -> SweepResult:
    """Print the figures, also when the test passes."""
    with capsys.disabled():
        print(f"\n  {stage}: {result}")
    return result


@pytest.mark.parametrize("stage", list(writers.STAGES))
def test_a_stage_killed_anywhere_resumes_to_equal_bytes(
    stage: str, writer: Forked, factory: Callable[[str], Factory], capsys: pytest.CaptureFixture[str]
) -> None:
    """R3: a reader finds whole old or new files after each kill, also of the resume; resuming gives the bytes of an uninterrupted run."""
    sample = SAMPLES.get(stage, 15)
    result = sweep(writer, factory(stage), check_after_kill=readers_view, view=without_history, sample=sample, n_double=1)
    shown(stage, result, capsys)
    assert result.n_points >= 15
    assert {"publish.half", "publish.rename"} <= set(result.names)


@pytest.mark.parametrize("stage", list(writers.STAGES))
def test_a_disk_that_refuses_a_stage_ends_with_exit_3(
    stage: str, writer: Forked, factory: Callable[[str], Factory], capsys: pytest.CaptureFixture[str]
) -> None:
    """R6: EIO or ENOSPC at the n-th write name the path and the bytes, leave no temporary file, and resuming gives equal bytes."""
    both = ("eio", "enospc")
    actions = both if is_exhaustive() else both[list(writers.STAGES).index(stage) % 2 :][:1]
    result = sweep(writer, factory(stage), actions=actions, check_after_kill=readers_view, view=without_history, sample=5)
    assert shown(stage, result, capsys).n_points >= 5


def test_half_written_features_are_made_again(factory: Callable[[str], Factory], writer: Forked) -> None:
    """Whatever part of an array a crash of the machine left under its final name, the next run ends with the bytes of a clean one."""
    clean, torn = factory("recording_features")(), factory("recording_features")()
    for root in (clean, torn):
        shutil.rmtree(root / "features")
        (root / "receipts" / "recording_features.json").unlink()
    assert writer(clean, None).code == 0
    arrays = sorted(clean.glob("features/*/*/*.npy"))
    assert len(arrays) == 3
    for path, n_bytes in zip(arrays, (0, 5, arrays[2].stat().st_size // 2), strict=True):
        target = torn / path.relative_to(clean)
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes()[:n_bytes])
    assert writer(torn, None).code == 0
    assert without_history(torn) == without_history(clean)


# Promotion


def promotable(root: Path, run: str = "run-a") -> Settings:
    """Everything is green for the candidate `run` on the data at hand."""
    for name in writers.STAGES:
        writers.STAGES[name](root)
    writers.make_candidate(root, run)
    return writers.settings_of(root)


def served_is_whole(root: Path) -> None:
    """CURRENT.json, where there is one, names a release with the weights and the card it says, and with the record of its promotion."""
    readers_view(root)
    promoted = root / "models" / "promoted"
    if not (promoted / "CURRENT.json").is_file():
        return
    current = store.read_json(promoted / "CURRENT.json")
    folder = promoted / current["release"]
    assert store.hash_file(folder / "model.safetensors") == current["model_sha256"]
    assert store.hash_file(folder / "model.json") == current["model_card_sha256"]
    assert store.read_json(folder / "promotion.json")["model_sha256"] == current["model_sha256"]


@pytest.fixture(scope="module")
def green(base: Path) -> Path:
    """A data root whose candidate run-a may be promoted."""
    root = base / "green"
    shutil.copytree(base / "first", root)
    promotable(root)
    (root / "due").write_text("promote")
    return root


@pytest.fixture(scope="module")
def second(base: Path, green: Path) -> Path:
    """run-a is served, the data changed, run-b may be promoted."""
    root = base / "second"
    shutil.copytree(green, root)
    promotion.run(writers.settings_of(root))
    writers.change_data(root)
    promotable(root, "run-b")
    return root


@pytest.fixture
def root(green: Path, tmp_path: Path) -> Path:
    """A copy of `green` that a test may change."""
    return Path(shutil.copytree(green, tmp_path / "root"))


@pytest.mark.parametrize("release", ["green", "second"])
def test_promotion_killed_anywhere_serves_a_whole_model(
    release: str, base: Path, request: pytest.FixtureRequest, writer: Forked, capsys: pytest.CaptureFixture[str]
) -> None:
    """R4: killed at any point, CURRENT.json names a whole model, the old or the new; resuming gives equal bytes."""
    template = request.getfixturevalue(release)
    numbers = count()

    def new_root() -> Path:
        return Path(shutil.copytree(template, base / f"{release}-{next(numbers)}"))

    sample = EVERY_POINT if release == "second" else 12  # the second also replaces a pointer and a baseline
    result = sweep(writer, new_root, check_after_kill=served_is_whole, sample=sample, n_double=2)
    shown(f"promotion, {release}", result, capsys)
    assert result.n_struck["kill"] >= (20 if release == "second" else 12)


def test_promoting_again_does_nothing(root: Path) -> None:
    """The same candidate a second time: nothing is written, and the report says so. Also after a second release, which blessed a baseline."""
    settings = writers.settings_of(root)
    first = promotion.run(settings)
    before = tree(root)
    again = promotion.run(settings)
    assert (first.reused, again.reused) == (False, True) and first.digest == again.digest
    assert tree(root) == before


def test_the_second_release_remembers_the_first(second: Path, tmp_path: Path) -> None:
    """promotion.json of release 2 names release 1, the health baseline is that of release 2, and repeating it is a no-op."""
    root = Path(shutil.copytree(second, tmp_path / "root"))
    settings = writers.settings_of(root)
    before = store.read_json(settings.layout.current_model)
    report = promotion.run(settings)
    record = store.read_json(settings.layout.promoted / report.facts["release"] / "promotion.json")
    assert record["previous"] == before and record["run"] == "run-b"
    assert store.read_json(settings.layout.current_model)["release"] == report.facts["release"] != before["release"]
    assert store.read_json(settings.layout.report("health", "baseline.json"))["blessed_by"] == report.facts["release"]
    assert [v["role"] for v in record["verdicts"]] == ["evaluation", "readiness", "health_diff"]
    assert {link["stage"] for link in record["chain"]} >= set(promotion.CHAIN)
    again = promotion.run(settings)
    assert again.reused and again.digest == report.digest


def test_a_damaged_release_is_made_whole_again(root: Path) -> None:
    """Bit rot in the served weights: promoting the same candidate again brings back the judged bytes and keeps the record."""
    settings = writers.settings_of(root)
    report = promotion.run(settings)
    before = tree(root)
    served = settings.layout.root / report.output("model").path
    served.write_bytes(b"rotten")
    assert not promotion.run(settings).reused
    assert tree(root) == before


def _without_receipt(stage: str) -> Callable[[Path], object]:
    return lambda root: (root / "receipts" / f"{stage}.json").unlink()


def _remade_events(root: Path) -> None:
    """The raw data changed and were read again; nothing downstream was."""
    writers.change_data(root)
    writers.ingest(root)


def _remade_manifest(root: Path) -> None:
    """Everything up to the features was made again from new raw data; the candidate and its verdicts are the old ones."""
    writers.change_data(root)
    writers.run_to(root)


def _touched(relpath: str) -> Callable[[Path], object]:
    return lambda root: (root / relpath).write_bytes(b"something else")


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "evaluation was never run": (_without_receipt("evaluation"), "evaluation: never-run"),
    "readiness was never run": (_without_receipt("readiness"), "readiness: never-run"),
    "health was never compared": (_without_receipt("health_diff"), "health_diff: never-run"),
    "health was never judged": (_without_receipt("manifest_health"), "manifest_health: never-run"),
    "nobody predicted": (_without_receipt("predictions"), "predictions: no-receipt"),
    "the merge has no receipt": (_without_receipt("merged_manifest"), "merged_manifest: no-receipt"),
    "a required gate has no verdict": (lambda root: writers.ready(root, without="openset"), "openset is required by profile demo"),
    "readiness is red": (lambda root: writers.ready(root, red="boundary"), "boundary/held"),
    "evaluation is red": (lambda root: writers.evaluate(root, passed=False), "evaluation/held"),
    "evaluation judged by other limits": (lambda root: writers.evaluate(root, profile="dev"), "by the limits of dev, this is demo"),
    "the candidate is red": (lambda root: writers.train(root, passed=False), "candidate/held"),
    "events were made again after the merge": (_remade_events, "merged_manifest: stale"),
    "everything was made again after training": (_remade_manifest, "candidate_model: stale"),
    "the evaluation file was changed": (_touched("reports/evaluation/run-a.json"), "evaluation: stale"),
    "the splits were changed": (_touched("manifest/splits.parquet"), "evaluation: stale: it read another version of manifest/splits.parquet"),
    "evaluation is about another model": (lambda root: (writers.train(root, "run-b"), writers.predict(root, "run-b"), writers.ready(root, "run-b")), "evaluation: stale-verdict"),
    "readiness is about another model": (lambda root: (writers.train(root, "run-b"), writers.predict(root, "run-b"), writers.evaluate(root, "run-b")), "readiness: stale-verdict"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSALS), ids=str)
def test_promotion_refuses(root: Path, case: str) -> None:
    """A verdict that is absent, red, stale or about something else: refused with the reason, and nothing is written."""
    spoil, reason = REFUSALS[case]
    spoil(root)
    before = tree(root)
    with pytest.raises(GateFailed) as refusal:
        promotion.run(writers.settings_of(root))
    assert refusal.value.code == "not-promotable" and refusal.value.exit_code == 1
    assert reason in refusal.value.message
    assert tree(root) == before


def test_promotion_refuses_another_profile(root: Path) -> None:
    """What was judged by the limits of demo is not released by those of dev."""
    with pytest.raises(GateFailed, match="limits of demo, this is dev"):
        promotion.run(replace(writers.settings_of(root), profile="dev"))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("keep_times", [False, True])
def test_one_flipped_byte_is_not_promoted(root: Path, name: str, keep_times: bool) -> None:
    """A byte of the candidate that was not judged is found, also when size and time of the file tell nothing; nothing is written."""
    path = root / "models" / "candidates" / "run-a" / name
    info = path.stat()
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    before = tree(root)
    with pytest.raises(InputError) as refusal:
        promotion.run(writers.settings_of(root))
    assert (refusal.value.code, refusal.value.where) == ("digest-mismatch", f"models/candidates/run-a/{name}")
    assert tree(root) == before


def test_a_release_name_holds_one_model(second: Path, tmp_path: Path) -> None:
    """Another model under a known release name is refused; the served model stays."""
    root = Path(shutil.copytree(second, tmp_path / "root"))
    settings = writers.settings_of(root)
    release = store.read_json(settings.layout.current_model)["release"]
    before = tree(root)
    with pytest.raises(ConfigError) as refusal:
        promotion.run(settings, PromoteOptions(release))
    assert refusal.value.code == "release-exists"
    assert tree(root) == before


@pytest.mark.parametrize("release", ["../elsewhere", "a/b", "CURRENT.json", "/tmp/x", ".."])
def test_a_release_name_is_a_name(root: Path, release: str) -> None:
    """A name that is a path or the pointer itself is wrong usage; nothing is written."""
    before = tree(root)
    with pytest.raises(ConfigError):
        promotion.run(writers.settings_of(root), PromoteOptions(release))
    assert tree(root) == before


def test_there_is_no_promotion_without_a_candidate(base: Path) -> None:
    """Data alone cannot be promoted."""
    with pytest.raises(GateFailed) as refusal:
        promotion.run(writers.settings_of(base / "first"))
    assert refusal.value.code == "no-candidate"
