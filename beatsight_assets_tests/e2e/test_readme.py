"""Every command in the README works as it stands there, in its order, on a fresh folder that holds the demo's data root."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from beatsight_assets_tests.e2e.conftest import Done, copy_of

REPOSITORY = Path(__file__).parents[2]
FIRST_ON_REAL_DATA = "source ingest groove"

pytestmark = pytest.mark.slow


def console_lines(text: str) -> list[str]:
    """Commands of all console blocks, without their comments."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.S)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [re.sub(r"\s+#.*$", "", line) for line in lines]


LINES = console_lines((REPOSITORY / "README.md").read_text())


def test_the_readme_has_commands_and_make_targets_exist() -> None:
    """The two commands and the UI are targets of the Makefile."""
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = [line.split()[1] for line in LINES if line.startswith("make ")]
    assert {"demo", "test", "dev"} <= set(targets)
    assert all(re.search(rf"^{t}:", makefile, flags=re.M) for t in targets)
    assert sum(line.startswith("beatsight ") for line in LINES) > 15


def test_every_beatsight_command_of_the_readme_runs(demo: tuple[Path, Done], tmp_path: Path, shared_data: Path) -> None:
    """As written: `export`, then each command, exit code 0. Long stages find their work done by the demo; real data joins at the end."""
    copy_of(demo[0], tmp_path / "data", with_dagster=False)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BEATSIGHT_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PWD"] = str(tmp_path)
    (tmp_path / "out").mkdir()
    ran = 0
    for line in LINES:
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            environment[name] = value.replace("$PWD", str(tmp_path))
        elif line.startswith("beatsight "):
            words = shlex.split(line)
            if FIRST_ON_REAL_DATA in line:
                for name in ("groove_midi", "mdb_drums"):
                    (tmp_path / "data/raw" / name).symlink_to(shared_data / name)
            if "render groove" in line:
                words = ["2" if w == "60" else w for w in words]  # two minutes prove the command
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran == sum(line.startswith("beatsight ") for line in LINES)
