"""What every source module promises, for whatever modules there are in sources/."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from beatsight_assets import sources
from beatsight_assets.errors import BeatSightError
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.sources.pipeline import module_options
from beatsight_assets.sources.types import Source
from beatsight_assets.taxonomy import Taxonomy

FOLDER = Path(sources.__file__).parent
SECTIONS = ("Layout", "Labels", "Group", "Traps")
CHAINS = {"midi_import", "synthetic_render", "audio_annotation", "multitrack_stems", "sample_pack", "beatmap_import"}
REAL = {
    "slakh2100": "slakh",
    "beatmap": "beatsight_formats",
    "extended_groove_mididataset": "e_gmd/e-gmd-v1.0.0",
    "one_shots": "oneshots",
}  # other names there
OPTION_USE = re.compile(r"""options(?:\.get\(|\[)["'](\w+)["']""")


def source_modules() -> dict[str, ModuleType]:
    """Every module of sources/ that has a SOURCE."""
    found = {
        p.stem: importlib.import_module(f"beatsight_assets.sources.{p.stem}") for p in sorted(FOLDER.glob("*.py")) if p.stem != "__init__"
    }
    return {name: m for name, m in found.items() if isinstance(vars(m).get("SOURCE"), Source)}


MODULES = source_modules()


def configured(settings: Settings) -> dict[str, list[str]]:
    """source_sets of each module."""
    found: dict[str, list[str]] = {}
    for source_set, config in settings.datasets.items():
        found.setdefault(config.module, []).append(source_set)
    return found


def test_there_are_modules() -> None:
    """The search below finds the modules at all."""
    assert {"groove", "mdb_drums", "rendered"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_the_docstring_says_layout_labels_group_and_traps(name: str) -> None:
    """A person who meets the dataset for the first time finds its layout, labels, leakage unit and traps in the first lines."""
    text = MODULES[name].__doc__ or ""
    absent = [s for s in SECTIONS if not re.search(rf"^{s}\s+\S", text, re.MULTILINE)]
    assert not absent, f"the docstring of sources/{name}.py lacks {absent}"


@pytest.mark.parametrize("name", MODULES)
def test_source_is_filled_in(name: str) -> None:
    """Name, licence, suffixes in lower case, a known processing chain."""
    source = MODULES[name].SOURCE
    assert source.name == name and source.licence and source.suffixes
    assert all(s.startswith(".") and s == s.lower() for s in source.suffixes)
    assert source.chain and set(source.chain) <= CHAINS


@pytest.mark.parametrize("name", MODULES)
def test_scan_and_read_have_the_form_that_ingest_calls(name: str) -> None:
    """scan(root, options) and read(root, recording, taxonomy, options)."""
    assert list(inspect.signature(MODULES[name].scan).parameters) == ["root", "options"]
    assert list(inspect.signature(MODULES[name].read).parameters) == ["root", "recording", "taxonomy", "options"]


@pytest.mark.parametrize("name", MODULES)
def test_every_option_it_uses_is_declared(name: str, settings: Settings) -> None:
    """An option that the module asks for and does not declare could never be set; one that configs/datasets.yaml sets must be declared."""
    declared = {*MODULES[name].SOURCE.options, "configs"}
    used = set(OPTION_USE.findall((FOLDER / f"{name}.py").read_text()))
    assert used <= declared, f"sources/{name}.py uses options it does not declare: {sorted(used - declared)}"
    for source_set in configured(settings).get(name, []):
        assert set(settings.datasets[source_set].options) <= set(MODULES[name].SOURCE.options)


@pytest.mark.parametrize("name", MODULES)
def test_it_has_an_entry_in_the_config(name: str, settings: Settings) -> None:
    """A module that no dataset of configs/datasets.yaml names is never used; the config files it asks for exist."""
    assert configured(settings).get(name), f"no entry of configs/datasets.yaml has module: {name}"
    for source_set in configured(settings)[name]:
        for path in module_options(settings, source_set).get("configs", {}).values():
            assert Path(path).is_file()


def test_every_entry_names_a_module(settings: Settings) -> None:
    """No dataset of configs/datasets.yaml names a module that is not there."""
    assert set(configured(settings)) <= set(MODULES)


# ---- what reading opens --------------------------------------------------------------------------------------------------------

_watching: list[set[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], (str, bytes)):
        _watching[-1].add(str(arguments[0]))


@contextmanager
def opened() -> Iterator[set[str]]:
    """Paths that Python opens meanwhile."""
    if not getattr(sys, "_beatsight_hook", False):
        sys.addaudithook(_hook)
        sys._beatsight_hook = True  # type: ignore[attr-defined]  # hooks cannot be taken out, so there is one per process
    _watching.append(set())
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


@pytest.mark.data
@pytest.mark.parametrize("name", MODULES)
def test_reading_opens_no_candidate_that_the_recording_does_not_list(name: str, settings: Settings, shared_data: Path) -> None:
    """A file that decides the rows of a recording is in its `files`, so that changing it has the recording read again."""
    lake = Settings(DataLayout(settings.layout.root), "demo")
    found = [
        (s, r)
        for s in configured(settings).get(name, [])
        for r in (shared_data / settings.datasets[s].raw_folder, shared_data / REAL.get(s, s))
        if r.is_dir()
    ]
    if not found:
        pytest.skip(f"no real data of {name}")
    source_set, root = found[0]
    taxonomy, options, n_read = Taxonomy.load(settings), module_options(lake, source_set), 0
    for one in MODULES[name].scan(root, options):
        if isinstance(one, sources.Recording) and n_read < 40:
            n_read += 1
            with opened() as paths:
                try:
                    MODULES[name].read(root, one, taxonomy, options)
                except BeatSightError:
                    continue
            below = {p[len(str(root)) + 1 :] for p in paths if p.startswith(f"{root}/")}
            hidden = {p for p in below if p.lower().endswith(MODULES[name].SOURCE.suffixes)} - set(one.files)
            assert not hidden, f"{one.timeline}: {sorted(hidden)}"
    assert n_read or name == "egmd"  # no take of E-GMD is there
