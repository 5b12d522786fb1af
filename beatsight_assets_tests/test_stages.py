"""Stages and receipts: unchanged work is skipped, changed work is not, and a receipt never says more than is true (U2, U9, U10)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beatsight_assets import store
from beatsight_assets.errors import BeatSightError, Busy, ConfigError, InputError
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.stages import Outcome, Report, Table, changed_outputs, is_intact, read_receipt, receipt_path, run_stage
from beatsight_assets.verdict import Rule, Verdict
from beatsight_assets_tests.crash.sweep import tree


@dataclass(frozen=True)
class Options:
    """Options as a stage has them: tuples, paths of choices, numbers."""

    names: tuple[str, ...] = ("kick", "snare")
    limits: tuple[tuple[str, float], ...] = (("kick", 0.5),)
    seed: int = 7
    note: str | None = None


class Stage:
    """A stage that copies its parent, and counts how often it really worked."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.n_worked = 0
        self.parent = settings.layout.root / "events" / "a.json"
        self.target = settings.layout.root / "manifest" / "b.bin"
        settings.store.publish_json(self.parent, {"n": 1})
        self.meanwhile: Callable[[], object] = lambda: None

    def work(self) -> Outcome:
        """Copy the parent."""
        self.n_worked += 1
        content = self.parent.read_bytes() * 50
        self.meanwhile()
        self.settings.store.publish(self.target, content)
        passed = Verdict("copy", (Rule.at_least("n_bytes", len(content), 1.0),), profile=self.settings.profile)
        table = Table(("a", "b"), (("x", 1), ("y", None)))
        return Outcome([("copy", self.target, 3)], {"n_bytes": len(content)}, {"who": ["x"]}, [passed], table)

    def run(self, *, version: str = "1", options: Mapping[str, Any] | None = None, partition: str | None = None) -> Report:
        """Run or reuse."""
        wanted = asdict(Options()) if options is None else options
        parents = [("events", self.parent)]
        return run_stage(self.settings, "copy", version=version, options=wanted, parents=parents, work=self.work, partition=partition)


@pytest.fixture
def stage(settings: Settings) -> Stage:
    """A stage whose parent is there."""
    return Stage(settings)


def test_unchanged_work_is_skipped(stage: Stage) -> None:
    """The second run reads the receipt, does nothing, writes nothing, and reports the same, also from another process's settings."""
    first = stage.run()
    before = tree(stage.settings.layout.root)
    second = stage.run()
    stage.settings = replace(stage.settings)
    third = stage.run()
    assert stage.n_worked == 1
    assert (first.reused, second.reused, third.reused) == (False, True, True)
    assert replace(second, reused=False).to_json() == first.to_json()
    assert first.digest == second.digest
    assert tree(stage.settings.layout.root) == before


CHANGES: dict[str, Callable[[Stage], object]] = {
    "another version": lambda s: s.run(version="2"),
    "another option": lambda s: s.run(options=asdict(Options(seed=8))),
    "an option more": lambda s: s.run(options=asdict(Options()) | {"new": None}),
    "another tuple": lambda s: s.run(options=asdict(Options(names=("snare", "kick")))),
    "another parent": lambda s: (s.settings.store.publish_json(s.parent, {"n": 2}), s.run()),
    "output deleted": lambda s: (s.target.unlink(), s.run()),
    "output changed": lambda s: (s.settings.store.publish(s.target, b"edited"), s.run()),
    "output is a folder now": lambda s: (
        s.target.unlink(),
        s.target.mkdir(),
        (s.target / "x").write_text("x"),
        s.settings.store.remove(s.target),
        s.run(),
    ),
    "receipt deleted": lambda s: (receipt_path(s.settings, "copy").unlink(), s.run()),
    "receipt damaged": lambda s: (receipt_path(s.settings, "copy").write_text('{"schema": '), s.run()),
    "receipt is a list": lambda s: (receipt_path(s.settings, "copy").write_text("[1]"), s.run()),
    "receipt of another schema": lambda s: (edit_receipt(s, "schema", "beatsight.receipt/0"), s.run()),
    "receipt with a wrong type": lambda s: (edit_receipt(s, "options", [1]), s.run()),
    "receipt without verdicts": lambda s: (edit_receipt(s, "verdicts", None), s.run()),
}


def edit_receipt(stage: Stage, key: str, value: object) -> None:
    """Change one field of the stored receipt."""
    path = receipt_path(stage.settings, "copy")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_work_is_done_again(stage: Stage, change: Callable[[Stage], object]) -> None:
    """Version, options, parents, outputs, receipt: whatever differs, the work is done again and the receipt is right afterwards."""
    stage.run()
    change(stage)
    assert stage.n_worked == 2
    known = read_receipt(stage.settings, "copy")
    assert known is not None
    assert is_intact(stage.settings, known, fresh=True)


def test_the_receipt_does_not_depend_on_when_and_where(stage: Stage, tmp_path: Path) -> None:
    """U9: equal inputs and options in another data root give a byte-equal receipt and output."""
    stage.run()
    other = Stage(Settings(layout=DataLayout(tmp_path / "elsewhere"), profile="demo"))
    other.run()
    assert tree(other.settings.layout.root) == tree(stage.settings.layout.root)


def test_partitions_have_their_own_receipts(stage: Stage) -> None:
    """receipts/<stage>/<partition>.json beside receipts/<stage>.json."""
    stage.run(partition="groove_mididataset")
    assert read_receipt(stage.settings, "copy") is None
    assert (stage.settings.layout.receipts / "copy" / "groove_mididataset.json").is_file()
    assert stage.run(partition="groove_mididataset").reused
    assert stage.run(partition="other").reused is False


def test_a_partition_cannot_leave_the_receipts(stage: Stage) -> None:
    """S1: names of partitions are plain."""
    for bad in ("../../x", "/etc/x", "a\0"):
        with pytest.raises(ConfigError, match="path-escape"):
            stage.run(partition=bad)


def test_a_missing_parent_says_what_to_do(stage: Stage) -> None:
    """InputError missing-input (exit 3) names the file below the data root; nothing is written."""
    stage.parent.unlink()
    with pytest.raises(InputError) as caught:
        stage.run()
    assert (caught.value.code, caught.value.where, caught.value.exit_code) == ("missing-input", "events/a.json", 3)
    assert not tree(stage.settings.layout.root)


def test_a_parent_that_changes_meanwhile_leaves_no_receipt(stage: Stage) -> None:
    """The receipt would say that the output came from the new parent: refused, and the next run makes it right."""
    stage.meanwhile = lambda: stage.settings.store.publish_json(stage.parent, {"n": 2})
    with pytest.raises(InputError, match="changed-while-reading"):
        stage.run()
    assert read_receipt(stage.settings, "copy") is None
    stage.meanwhile = lambda: None
    assert stage.run().reused is False


def test_a_stage_may_replace_its_own_input(stage: Stage) -> None:
    """A table named by --output is replaced whole, also when it is an input (spec/tools.md section 0)."""
    stage.target = stage.parent
    assert stage.run().output("copy").path == "events/a.json"


def test_a_running_stage_is_busy_and_changes_nothing(stage: Stage) -> None:
    """U8: the second one says who runs it (exit 2); another partition runs."""
    seen: list[BeatSightError] = []

    def second() -> None:
        with pytest.raises(Busy) as caught:
            stage.run(partition="a")
        seen.append(caught.value)
        inner = Stage(stage.settings)
        inner.run(partition="b")

    stage.meanwhile = second
    stage.run(partition="a")
    assert seen[0].exit_code == 2
    assert f'"pid": {os.getpid()}' in seen[0].message


def test_an_error_of_the_work_leaves_the_old_receipt(stage: Stage) -> None:
    """What was true before stays on record; the error arrives as it is."""
    stage.run()
    before = receipt_path(stage.settings, "copy").read_bytes()

    def fail() -> None:
        raise InputError("no", code="bad-time")

    stage.meanwhile = fail
    with pytest.raises(InputError, match="bad-time"):
        stage.run(version="2")
    assert receipt_path(stage.settings, "copy").read_bytes() == before


def test_300_of_300_flipped_bits_are_found_and_located(stage: Stage, rng: np.random.Generator) -> None:
    """U10, R15: one flipped bit in any output, size and mtime kept, is found by reading afresh, and the file is named."""
    settings = stage.settings
    outputs = [settings.layout.root / "parts" / f"{n}.bin" for n in range(5)]

    def work() -> Outcome:
        for n, path in enumerate(outputs):
            settings.store.publish(path, bytes(np.random.default_rng(n).integers(0, 256, 2_000, dtype=np.uint8)))
        return Outcome([(f"part {n}", path, None) for n, path in enumerate(outputs)])

    report = run_stage(settings, "parts", version="1", options={}, parents=[], work=work)
    assert is_intact(settings, report, fresh=True)
    n_found = 0
    for _ in range(300):
        path = outputs[rng.integers(len(outputs))]
        at, bit = int(rng.integers(2_000)), int(rng.integers(8))
        info = path.stat()
        flip(path, at, bit)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        n_found += [a.path for a in changed_outputs(settings, report, fresh=True)] == [settings.layout.rel(path)]
        flip(path, at, bit)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert n_found == 300
    assert is_intact(settings, report, fresh=True)


def flip(path: Path, at: int, bit: int) -> None:
    """Flip one bit in place, as a dying disk does."""
    with open(path, "r+b") as handle:
        handle.seek(at)
        (value,) = handle.read(1)
        handle.seek(at)
        handle.write(bytes([value ^ (1 << bit)]))


def test_an_edit_is_found_without_reading_every_byte(stage: Stage) -> None:
    """Skipping work does not trust a file whose size or mtime moved."""
    report = stage.run()
    info = stage.target.stat()
    flip(stage.target, 3, 0)
    os.utime(stage.target, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert [a.role for a in changed_outputs(stage.settings, report)] == ["copy"]


def test_a_report_has_three_equal_faces(stage: Stage) -> None:
    """What is stored is what was returned: options, figures, facts, verdicts, table."""
    report = stage.run()
    read = read_receipt(stage.settings, "copy")
    assert read == report
    assert report.passed
    assert report.output("copy").rows == 3
    assert report.verdict("copy") is not None
    assert report.verdict("nobody") is None
    with pytest.raises(KeyError):
        report.output("nobody")
    assert store.to_json_bytes(report.to_json()) == receipt_path(stage.settings, "copy").read_bytes()
