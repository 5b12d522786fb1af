"""The command line: help of everything, the table of exit codes, and what `--json` and `--report` promise (R16)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from beatsight_assets import cli, midi, sources
from beatsight_assets.manifest import merge
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.store import Store
from beatsight_assets.testing import tiny_dataset, tiny_gates

PATHS = [[name] for name in cli.ALONE] + [[group, verb] for group, (_, verbs) in cli.COMMANDS.items() for verb in verbs]
# What help must not touch: style.md section 9 and ruling 34.
NOT_FOR_HELP = {"polars", "pydantic", "numpy", "torch", "dagster", "librosa", "wandb", "pandas", "scipy", "pyarrow", "soundfile"}


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Beatsight = Callable[..., Ended]


@pytest.fixture
def beatsight(data_root: Path, capsys: pytest.CaptureFixture[str]) -> Beatsight:
    """Runs a command on `data_root` with profile demo, as the program `beatsight` does, and tells how it ended."""

    def run(*arguments: str, root: Path | None = data_root, profile: str = "demo") -> Ended:
        before = ["--profile", profile] + (["--data-root", str(root)] if root else [])
        with pytest.raises(SystemExit) as ended:
            cli.main([*before, *arguments])
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the tiny dataset, ingested and merged."""
    root = tmp_path_factory.mktemp("ingested") / "data"
    root.mkdir()
    settings = Settings(layout=DataLayout(root), profile="demo")
    tiny_gates(settings)
    tiny_dataset(settings, seconds=1.0)
    sources.ingest(settings, "demo")
    merge.run(settings)
    return root


@pytest.fixture
def data(ingested: Path, data_root: Path) -> Path:
    """A copy of `ingested` at `data_root` that a test may change."""
    return Path(shutil.copytree(ingested, data_root, dirs_exist_ok=True))


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_explains_itself(path: list[str]) -> None:
    """`--help` of each command loads it, shows its options, and the table of commands names no command that is not there."""
    done = CliRunner().invoke(cli.build(), [*path, "--help"])
    assert done.exit_code == 0, done.output
    assert {"--data-root", "--profile", "--json", "--quiet", "--report"} <= set(re.findall(r"--[a-z-]+", done.output))
    assert done.output.startswith("Usage: ") and "Options:" in done.output


def test_every_group_lists_its_commands() -> None:
    """`beatsight --help` and each group's help name every command with one line."""
    tree = cli.build()
    for path, names in [([], [*cli.COMMANDS, *cli.ALONE]), *(([g], list(verbs)) for g, (_, verbs) in cli.COMMANDS.items())]:
        out = CliRunner().invoke(tree, [*path, "--help"]).output
        assert all(re.search(rf"^  {name}  +\S", out, re.MULTILINE) for name in names), out


def test_no_module_of_commands_holds_one_that_is_not_listed() -> None:
    """A command that no table names cannot be reached: there is none."""
    import importlib

    listed = {f"{g}.{v}": None for g, (_, verbs) in cli.COMMANDS.items() for v in verbs} | {f"alone.{n}": None for n in cli.ALONE}
    for name in (*cli.COMMANDS, "alone"):
        module = importlib.import_module(f"beatsight_assets.cli.{name}")
        found = {n for n, value in vars(module).items() if isinstance(value, click.Command)}
        assert {f"{name}.{n.removesuffix('_command').replace('_', '-')}" for n in found} <= set(listed)


def test_help_imports_nothing_heavy() -> None:
    """`beatsight --help` answers before polars, torch or dagster are touched, in a fresh interpreter."""
    command = [sys.executable, "-X", "importtime", "-m", "beatsight_assets", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported and not imported & NOT_FOR_HELP


# The table of exit codes


def _write(relpath: str, text: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        (root / relpath).parent.mkdir(parents=True, exist_ok=True)
        (root / relpath).write_text(text)

    return make


def _nothing(root: Path) -> None:
    """The data root as it is."""


def _empty_dataset(root: Path) -> None:
    _write("raw/beatsight_demo/takes.csv", "take_id,midi_filename,audio_filename,kit_id,group,split\n")(root)


UNKNOWN_MAP = "take_id,midi_filename,audio_filename,kit_id,group,split,note_map\na,midi/take_0.mid,,k,g,train,nix\n"

EMPTY: dict[str, tuple[Callable[[Path], object], str, int, str]] = {
    "unknown dataset": (_nothing, "source ingest nix", 2, "unknown-choice"),
    "a near miss is named": (_nothing, "source ingest groov", 2, "Did you mean groove?"),
    "no dataset named": (_nothing, "source ingest", 2, "no-dataset"),
    "missing root": (_nothing, "source ingest demo", 2, "missing-root"),
    "missing root, scan": (_nothing, "source scan demo", 2, "missing-root"),
    "unknown command": (_nothing, "events nix", 2, "No such command"),
    "unknown option": (_nothing, "events merge --nix", 2, "No such option"),
    "option of the wrong kind": (_nothing, "events split --seed nix", 2, "not a valid integer"),
    "ratios of the wrong kind": (_nothing, "events split --ratios 1,2", 2, "bad-option"),
    "missing manifest, annotate": (_nothing, "events annotate", 3, "manifest/merged.parquet"),
    "missing manifest, split": (_nothing, "events split", 3, "manifest/annotated.parquet"),
    "missing manifest, validate": (_nothing, "events validate annotated", 3, "missing-input"),
    "missing manifest, export": (_nothing, "events export merged --output x.csv", 3, "missing-input"),
    "missing manifest, health": (_nothing, "health report", 3, "manifest/annotated.parquet"),
    "missing report": (_nothing, "health compare", 3, "annotated_health.json"),
    "missing report, bless": (_nothing, "health bless", 3, "annotated_health.json"),
    "missing manifest, weights": (_nothing, "sampling derive", 3, "manifest/annotated.parquet"),
    "missing manifest, features": (_nothing, "features warm", 3, "manifest/annotated.parquet"),
    "missing manifest, pack": (_nothing, "readiness boundary-pack", 3, "manifest/annotated.parquet"),
    "nothing to merge": (_nothing, "events merge", 1, "no-events"),
    "nothing to judge": (_nothing, "readiness run", 1, "nothing-to-judge"),
    "no candidate": (_nothing, "model promote", 1, "no-candidate"),
    "no model": (_nothing, "model describe", 2, "no-model"),
    "a model folder outside": (_nothing, "model describe ../x", 3, "path-escape"),
    "no model to transcribe with": (_nothing, "transcribe run --input x.wav --output y.bsm", 2, "no-model"),
    "not in quarantine": (_nothing, "quarantine show demo x.mid", 1, ""),
    "empty dataset": (_empty_dataset, "source ingest demo", 1, "no-recordings"),
    "not the folder of a dataset": (_write("raw/beatsight_demo/readme.txt", "hello"), "source ingest demo", 3, "takes.csv"),
    "no YAML": (_write("configs/datasets.yaml", "datasets:\n  demo: [1,\n"), "source list", 2, "configs/datasets.yaml:3"),
    "YAML of the wrong kind": (
        _write("configs/datasets.yaml", "datasets:\n  beatsight_demo:\n    short: demo\n    raw_folder: 7\n    module: rendered\n"),
        "source list",
        2,
        "configs/datasets.yaml:4",
    ),
    "unknown key": (
        _write("configs/datasets.yaml", "datasets:\n  d:\n    short: d\n    raw_folder: d\n    module: rendered\n    colour: red\n"),
        "source list",
        2,
        "configs/datasets.yaml:6",
    ),
    "unknown source module": (
        _write("configs/datasets.yaml", "datasets:\n  d:\n    short: d\n    raw_folder: d\n    module: nix\n"),
        "source list",
        2,
        "unknown-source-module",
    ),
    "unknown health limit": (
        _write("configs/gates/demo.yaml", "version: 1\n"),
        "health report",
        2,
        "configs/gates/demo.yaml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(EMPTY), ids=str)
def test_exit_codes(case: str, beatsight: Beatsight, data_root: Path) -> None:
    """Wrong usage is 2, unreadable or absent input 3, nothing to work on 1; one line on stderr says what and where, stdout stays empty."""
    make, command, code, text = EMPTY[case]
    make(data_root)
    ended = beatsight(*command.split())
    assert ended.code == code, ended
    assert text in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == "" or case == "not in quarantine"


def test_without_a_data_root_nothing_runs(beatsight: Beatsight) -> None:
    """No data root is wrong usage, and the message says how to give one."""
    ended = beatsight("events", "merge", root=None)
    assert ended.code == 2
    assert "--data-root" in ended.err and "BEATSIGHT_DATA_ROOT" in ended.err


@pytest.mark.parametrize("arguments", [["--profile", "nix", "events", "merge"], ["events", "merge", "--profile", "nix"]])
def test_an_unknown_profile_is_wrong_usage(arguments: list[str], beatsight: Beatsight) -> None:
    """Before or after the command, the message names the profiles there are."""
    ended = beatsight(*arguments)
    assert ended.code == 2
    assert all(name in ended.err for name in ("demo", "dev", "prod"))


def test_a_data_root_given_twice_takes_the_nearer(beatsight: Beatsight, data: Path, tmp_path: Path) -> None:
    """Options before the group are defaults of the commands below."""
    ended = beatsight("source", "list", "--json", "--data-root", str(data), root=tmp_path)
    shown = {row["source_set"]: row["present"] for row in json.loads(ended.out)["datasets"]}
    assert shown["beatsight_demo"]


def test_a_red_gate_is_1(beatsight: Beatsight, data: Path) -> None:
    """A gate that fails: the work is done and shown, the exit code is 1."""
    (data / "raw/beatsight_demo/midi/take_1.mid").write_bytes(b"no midi")
    ended = beatsight("source", "ingest", "demo")
    assert ended.code == 1
    assert re.search(r"ingest +FAIL", ended.out) and "accounted" in ended.out
    assert beatsight("events", "merge").code == 1
    listed = beatsight("quarantine", "list", "--json")
    assert [r["path"] for r in json.loads(listed.out)["rows"]] == ["midi/take_1.mid"]
    assert beatsight("quarantine", "show", "demo", "midi/take_1.mid").code == 0


def test_an_unknown_note_map_is_no_hit(beatsight: Beatsight, data: Path) -> None:
    """A note map that the taxonomy does not have, named by a table of the data, refuses that take with the code of the error."""
    (data / "raw/beatsight_demo/takes.csv").write_text(UNKNOWN_MAP)
    ended = beatsight("source", "ingest", "demo", "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["facts"]["codes"] == {"unknown-choice": 1}


def test_an_unknown_note_map_on_the_command_line_is_wrong_usage(beatsight: Beatsight, tmp_path: Path) -> None:
    """`transcribe score --note-map nix` names the maps there are."""
    for name in ("a.mid", "b.mid"):
        (tmp_path / name).write_bytes(midi.write_midi([(0, 36, 90)]))
    ended = beatsight("transcribe", "score", str(tmp_path / "a.mid"), str(tmp_path / "b.mid"), "--note-map", "nix")
    assert ended.code == 2
    assert "note map is 'nix'" in ended.err and "beatsight" in ended.err


def test_a_step_that_another_process_runs_is_busy(beatsight: Beatsight, data: Path) -> None:
    """Exit 2, who holds it, and nothing was changed; when the other one is gone the same command works."""
    folder = data / "receipts" / "locks" / "annotated_manifest"
    script = (
        "import sys; from pathlib import Path; from beatsight_assets.store import Store\n"
        "with Store(Path(sys.argv[1])).lock(Path(sys.argv[2]), 'the other one'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(data), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        ended = beatsight("events", "annotate")
        other.communicate("")
    assert ended.code == 2
    assert "busy" in ended.err and f'"pid": {other.pid}' in ended.err and "the other one" in ended.err
    assert not (data / "manifest" / "annotated.parquet").exists()
    assert beatsight("events", "annotate").code == 0


# What is printed

WORKING = (
    "env",
    "doctor --failpoints",
    "source list",
    "source scan demo",
    "source ingest demo",
    "source ingest demo beatsight_demo",
    "source ingest --all",
    "events validate merged",
    "events merge",
    "events annotate",
    "quarantine list",
)


@pytest.mark.parametrize("command", WORKING)
def test_json_is_one_object_on_stdout_and_the_report_is_the_same(command: str, beatsight: Beatsight, data: Path, tmp_path: Path) -> None:
    """stdout holds one line, one JSON object; progress goes to stderr; `--report` writes the same and leaves nothing else in its folder."""
    folder = tmp_path / "reports"
    ended = beatsight(*command.split(), "--json", "--report", str(folder / "r.json"))
    assert ended.code == 0, ended
    assert ended.out.endswith("\n") and ended.out.count("\n") == 1
    printed = json.loads(ended.out)
    assert isinstance(printed, dict)
    assert json.loads((folder / "r.json").read_text()) == printed
    assert [p.name for p in folder.iterdir()] == ["r.json"]


@pytest.mark.parametrize("command", WORKING)
def test_text_is_for_people(command: str, beatsight: Beatsight, data: Path) -> None:
    """Without --json something is said, and it is no JSON."""
    ended = beatsight(*command.split(), "--quiet")
    assert ended.code == 0 and ended.err == ""
    assert ended.out.strip() and not ended.out.startswith("{")


def test_a_red_gate_is_reported_as_json_too(beatsight: Beatsight, data: Path, tmp_path: Path) -> None:
    """The exit code is 1 and the object says which gate and rule."""
    (data / "raw/beatsight_demo/midi/take_1.mid").write_bytes(b"")
    ended = beatsight("source", "ingest", "demo", "--json", "--report", str(tmp_path / "r.json"))
    assert ended.code == 1
    verdict = json.loads(ended.out)["verdicts"][0]
    assert verdict["status"] == "fail" and [r["name"] for r in verdict["rules"] if r["blocking"] and not r["passed"]] == ["accounted"]
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(ended.out)


def test_repeating_a_command_says_that_nothing_changed(beatsight: Beatsight, data: Path) -> None:
    """Unchanged work is skipped, in words and in the object."""
    assert "nothing changed" in beatsight("events", "merge").out
    assert json.loads(beatsight("events", "merge", "--json").out)["reused"] is True


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_export_leaves_nothing_else_in_the_folder(suffix: str, beatsight: Beatsight, data: Path, tmp_path: Path) -> None:
    """A folder of the user's holds the file that was asked for, and no digests of ours."""
    target = tmp_path / "out" / f"events.{suffix}"
    assert beatsight("events", "export", "merged", "--output", str(target)).code == 0
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    assert target.stat().st_size > 1_000


def test_an_unknown_form_of_export_is_wrong_usage(beatsight: Beatsight, data: Path, tmp_path: Path) -> None:
    """`--output x.doc` names the forms there are and writes nothing."""
    ended = beatsight("events", "export", "merged", "--output", str(tmp_path / "out" / "x.doc"))
    assert ended.code == 2 and "csv, json, jsonl" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_store_that_does_not_remember_leaves_no_cache(tmp_path: Path) -> None:
    """`remember=False` publishes and digests as always, without .cache."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    keep = Store(folder, remember=False)
    receipt = keep.publish(folder / "x", b"content")
    assert keep.sha256(folder / "x") == receipt.sha256
    assert [p.name for p in folder.iterdir()] == ["x"]
