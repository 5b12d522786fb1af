"""Settings: what is wrong is said with file, line, field, value and the way to set it; everything lies below one data root."""

from __future__ import annotations

from pathlib import Path

import pytest

from beatsight_assets import settings as settings_module
from beatsight_assets.errors import BeatSightError, ConfigError, InputError
from beatsight_assets.settings import PROFILES, DataLayout, Settings, load_settings

DATASETS = """\
# a comment
datasets:
  groove_mididataset:
    short: groove
    raw_folder: groove_midi
    module: groove
"""

BROKEN = {
    # name: (file, text, where, words of the message)
    "unknown key": ("datasets", DATASETS + "    enabeld: true\n", "configs/datasets.yaml:7", "enabeld: Extra inputs are not permitted"),
    "unknown key at the top": ("datasets", DATASETS + "extra: 1\n", "configs/datasets.yaml:7", "extra"),
    "missing key": ("datasets", DATASETS.replace("    module: groove\n", ""), "configs/datasets.yaml:3", "module: Field required"),
    "text for a truth value": ("datasets", DATASETS + "    enabled: 'false'\n", "configs/datasets.yaml:7", "valid boolean, got 'false'"),
    "text for a number": ("datasets", DATASETS + "    max_reject_rate: '0.1'\n", "configs/datasets.yaml:7", "valid number, got '0.1'"),
    "truth value for a number": ("datasets", DATASETS + "    max_reject_rate: true\n", "configs/datasets.yaml:7", "got True"),
    "number for text": ("datasets", DATASETS.replace("module: groove", "module: 3"), "configs/datasets.yaml:6", "valid string, got 3"),
    "share above 1": ("datasets", DATASETS + "    max_reject_rate: 1.5\n", "configs/datasets.yaml:7", "less than or equal to 1, got 1.5"),
    "wrong item of a list": ("datasets", DATASETS + "    roots:\n      - a\n      - {b: 1}\n", "configs/datasets.yaml:9", "roots.1"),
    "folder that leaves raw": (
        "datasets",
        DATASETS.replace("groove_midi\n", "../../etc\n"),
        "configs/datasets.yaml:5",
        "plain path below raw/",
    ),
    "absolute folder": ("datasets", DATASETS.replace("groove_midi\n", "/etc\n"), "configs/datasets.yaml:5", "plain path below raw/"),
    "name that leaves events": ("datasets", DATASETS.replace("groove_mididataset", "../x"), "configs/datasets.yaml:3", "match pattern"),
    "bad short name": ("datasets", DATASETS.replace("short: groove", "short: Groove MIDI"), "configs/datasets.yaml:4", "match pattern"),
    "repeated key": ("datasets", DATASETS + "    short: other\n", "configs/datasets.yaml:7", "key 'short' occurs twice"),
    "no YAML": ("datasets", DATASETS + "  : [\n", "configs/datasets.yaml:7", "did not find expected key"),
    "empty": ("datasets", "", "configs/datasets.yaml", "the document"),
    "a list": ("datasets", "- a\n", "configs/datasets.yaml:1", "the document"),
    "profile misses a section": ("gates/demo", "version: 1\nrequired: [boundary]\n", "configs/gates/demo.yaml:1", "Field required"),
    "profile requires no gate": ("gates/demo", "version: 1\nrequired: []\n", "configs/gates/demo.yaml:2", "at least 1 item"),
    "sampling below its minimum": (
        "sampling",
        "default: flat\nprofiles:\n  flat:\n    min_weight: 1.0\n    max_weight: 0.0\n",
        "configs/sampling.yaml:5",
        "greater than 0, got 0.0",
    ),
    "technique of no category": (
        "techniques",
        "version: 1\ntechniques:\n  - {id: flam, category: x, priority: often, scope: event, inferred: true, description: d}\n",
        "configs/techniques.yaml:3",
        "techniques.0.priority",
    ),
}
READERS = {"datasets": "datasets", "gates/demo": "gates", "sampling": "sampling", "techniques": "techniques"}


@pytest.mark.parametrize(("name", "text", "where", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config_is_named_with_its_line(settings: Settings, name: str, text: str, where: str, words: str) -> None:
    """ConfigError bad-config (exit 2) says file, line, field and value; the data root's file is the one that is read."""
    path = settings.layout.root / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        getattr(settings, READERS[name])
    assert caught.value.code == "bad-config"
    assert caught.value.exit_code == 2
    assert caught.value.where == where
    assert words in caught.value.message


@pytest.mark.parametrize("profile", PROFILES)
def test_what_ships_is_valid(tmp_path: Path, profile: str) -> None:
    """Every shipped config fits its model, for every profile, without any file in the data root."""
    settings = load_settings(tmp_path / "nothing-here", profile, environ={})
    assert settings.gates.version >= 1
    assert settings.sampling.default in settings.sampling.profiles
    assert settings.datasets
    assert settings.techniques.techniques
    assert not settings.layout.root.exists()


def test_no_data_root_says_how_to_set_one() -> None:
    """Exit 2 with both ways to set it; an empty variable is no root."""
    for environ in ({}, {"BEATSIGHT_DATA_ROOT": ""}):
        with pytest.raises(ConfigError) as caught:
            load_settings(environ=environ)
        assert caught.value.exit_code == 2
        assert str(caught.value) == (
            "no-data-root: no data root is set. Give --data-root DIR or export BEATSIGHT_DATA_ROOT=DIR (a folder that holds raw/)"
        )


BAD_ENVIRONMENT = {
    "profile": ({"BEATSIGHT_PROFILE": "prd"}, "unknown-choice: profile is 'prd'; it must be one of demo, dev, prod. Did you mean prod?"),
    "executor": ({"BEATSIGHT_EXECUTOR": "dask"}, "unknown-choice: executor is 'dask'; it must be one of dask:ADDRESS, inline, processes."),
    "no workers": ({"BEATSIGHT_WORKERS": "0"}, "bad-option: BEATSIGHT_WORKERS is '0'"),
    "minus one worker": ({"BEATSIGHT_WORKERS": "-1"}, "bad-option: BEATSIGHT_WORKERS is '-1'"),
    "half a worker": ({"BEATSIGHT_WORKERS": "1.5"}, "bad-option: BEATSIGHT_WORKERS is '1.5'"),
    "workers in superscript": ({"BEATSIGHT_WORKERS": "²"}, "bad-option: BEATSIGHT_WORKERS is '²'"),
    "nobody's home": (
        {"BEATSIGHT_DATA_ROOT": "~no-such-user-here/data"},
        "no-data-root: data root '~no-such-user-here/data' names no home",
    ),
}


@pytest.mark.parametrize(("environ", "message"), BAD_ENVIRONMENT.values(), ids=BAD_ENVIRONMENT.keys())
def test_a_wrong_variable_is_named(environ: dict[str, str], message: str) -> None:
    """Exit 2 with the variable, its value and what it may be."""
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={"BEATSIGHT_DATA_ROOT": "data", **environ})
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(message)


def test_options_win_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--data-root and --profile before BEATSIGHT_*; a relative root is made absolute once, at the start."""
    monkeypatch.chdir(tmp_path)
    environ = {
        "BEATSIGHT_DATA_ROOT": "from-environment",
        "BEATSIGHT_PROFILE": "prod",
        "BEATSIGHT_WORKERS": "3",
        "BEATSIGHT_EXECUTOR": "processes",
    }
    settings = load_settings(environ=environ)
    assert (settings.layout.root, settings.profile) == (tmp_path / "from-environment", "prod")
    assert (settings.n_workers, settings.executor) == (3, "processes")
    settings = load_settings("from-option", "demo", environ=environ)
    assert (settings.layout.root, settings.profile) == (tmp_path / "from-option", "demo")


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell exports is used when nothing else is said."""
    monkeypatch.setenv("BEATSIGHT_DATA_ROOT", str(tmp_path))
    assert load_settings().layout.root == tmp_path


def test_datasets_are_found_by_either_name(settings: Settings) -> None:
    """source_set and short name lead to the same entry; a wrong one is answered with the nearest."""
    source_set, config = next(iter(settings.datasets.items()))
    assert settings.dataset(source_set) == settings.dataset(config.short) == (source_set, config)
    with pytest.raises(ConfigError, match=r"unknown-choice: dataset is 'grove'.*Did you mean groove\? \(configs/datasets\.yaml\)"):
        settings.dataset("grove")


def test_raw_roots_are_the_configured_ones_or_the_folder_below_raw(settings: Settings) -> None:
    """`roots` in their order, absolute or below the data root; without them raw/<raw_folder>."""
    path = settings.layout.root / "configs" / "datasets.yaml"
    path.parent.mkdir()
    path.write_text(DATASETS + "    roots: [/mnt/groove, archive/groove]\n  other: {short: other, raw_folder: other, module: groove}\n")
    assert settings.raw_roots("groove_mididataset") == [Path("/mnt/groove"), settings.layout.root / "archive" / "groove"]
    assert settings.raw_roots("other") == [settings.layout.root / "raw" / "other"]


def test_every_path_lies_below_the_root() -> None:
    """One data root: no property or method of the layout leads elsewhere, and stored paths are relative POSIX."""
    layout = DataLayout(Path("/data"))
    names = ("merged", "annotated", "splits", "promoted", "current_model", "receipts", "dagster_home")
    paths = [getattr(layout, name) for name in names]
    paths += [layout.raw("a"), layout.events("a"), layout.provenance("a"), layout.quarantine("a"), layout.features("a")]
    paths += [layout.run_dir("a"), layout.candidate("a"), layout.report("a", "b"), layout.resolve("a/b")]
    assert all(path.is_relative_to("/data") and path != Path("/data") for path in paths)
    assert len(set(paths)) == len(paths)
    assert layout.rel(layout.events("a")) == "events/a.parquet"
    with pytest.raises(InputError, match="path-escape"):
        layout.resolve("../a")


def test_the_environment_is_read_in_one_place_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of reading are ours, also when the shipped configs are gone."""
    monkeypatch.setattr(settings_module, "SHIPPED_CONFIGS", Path("/nowhere"))
    with pytest.raises(BeatSightError, match=r"^missing-config: .*\(configs/datasets\.yaml\)"):
        _ = load_settings("/also-nowhere", environ={}).datasets
