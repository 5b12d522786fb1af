"""The code location as a whole: it loads anywhere, it says what the golden says, and every asset keeps the contract."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml

from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.checks.table import CHECKS
from beatsight_assets.settings import PROFILES, load_settings
from beatsight_assets_tests.dag import graph

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "beatsight_assets"
LOADS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchaudio", "librosa", "wandb", "dask", "matplotlib", "pandas", "scipy"):
            raise ImportError(f"{name} must not be imported to show the graph")
sys.meta_path.insert(0, Blocked())
import warnings
warnings.simplefilter("error")
import dagster as dg
warnings.filterwarnings("ignore", category=DeprecationWarning, module="dagster")
from beatsight_assets.definitions import defs
dg.Definitions.validate_loadable(defs)
print(len(defs.resolve_asset_graph().get_all_asset_keys()))
"""


def load_in_fresh_process(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOADS],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=False,
    )


@pytest.mark.parametrize("environment", [{}, {"BEATSIGHT_PROFILE": "prod"}], ids=["no environment", "profile prod"])
def test_loads_without_heavy_libraries(environment: dict[str, str]) -> None:
    """The graph can be looked at where torch, librosa, matplotlib and pandas are not even installed, without any setting."""
    found = load_in_fresh_process(environment)
    assert (found.returncode, found.stdout.strip()) == (0, "33"), found.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads(profile: str) -> None:
    """No profile has a job, check or condition that Dagster refuses."""
    defs = build_defs(settings=load_settings("/nowhere", profile, environ={}))
    dg.Definitions.validate_loadable(defs)
    assert len(defs.resolve_asset_graph().get_all_asset_keys()) == 33


@pytest.mark.parametrize("profile", PROFILES)
def test_graph_is_the_golden(profile: str) -> None:
    """Nothing in the graph changes unseen; after a meant change: python -m beatsight_assets_tests.regen graph."""
    assert graph.snapshot(profile) == json.loads(graph.golden_path(profile).read_text(encoding="utf-8"))


def test_building_writes_nothing(tmp_path: Path) -> None:
    """Looking at the graph makes no folder."""
    build_defs(settings=load_settings(tmp_path / "root", "demo", environ={}))
    assert not (tmp_path / "root").exists()


def test_every_asset_keeps_the_contract() -> None:
    """Every asset that is made here has a group, kinds, an owner, a code version, a description and a pool; one dataset is one run."""
    nodes = build_defs(settings=load_settings("/nowhere", "demo", environ={})).resolve_asset_graph()
    for key in nodes.materializable_asset_keys:
        node = nodes.get(key)
        facts = (node.group_name != "default", node.kinds, node.owners, node.code_version, node.description, node.pools)
        assert all(facts), f"{key.to_user_string()}: {facts}"
        assert 1 <= len(node.kinds) <= 3
        assert node.backfill_policy is None or key.to_user_string() in ("clips", "feature_cache")  # all shards of a bundle are one run


def test_what_starts_runs_says_when() -> None:
    """Sensors, schedules and jobs have a sentence in the UI."""
    repository = build_defs(settings=load_settings("/nowhere", "demo", environ={})).get_repository_def()
    starters = [*repository.sensor_defs, *repository.schedule_defs, *repository.get_all_jobs()]
    silent = [s.name for s in starters if not s.description and not s.name.startswith("__")]
    assert len(starters) > 10 and not silent


def test_every_check_keeps_the_contract() -> None:
    """A check has the partitions of its asset, a sentence that says what must hold, and the blocking flag of the table."""
    nodes = build_defs(settings=load_settings("/nowhere", "demo", environ={})).resolve_asset_graph()
    keys = {c.key: c for c in CHECKS}
    assert nodes.asset_check_keys == set(keys)
    for key, check in keys.items():
        node = nodes.get(key)
        assert node.partitions_def == nodes.get(key.asset_key).partitions_def, key
        assert node.blocking is check.blocking
        assert check.must_hold.endswith("."), key
    judged = {c.asset for c in CHECKS}
    assert {k.to_user_string() for k in nodes.materializable_asset_keys} - judged == {
        "clips",  # judged by the bundle
        "bundle_archive",  # a copy of what was judged
        "feature_cache",  # judged by its index
        "crash_embeddings",  # judged by the mapping
        "manifest_diff",
        "near_duplicates",  # judged by the splits
        "predictions",  # its gates are readiness's
    }


def test_only_dag_imports_dagster() -> None:
    """A domain function never knows that Dagster exists."""
    outside = [p for p in PACKAGE.rglob("*.py") if "dag" not in p.relative_to(PACKAGE).parts[:1] and p.name != "definitions.py"]
    guilty = [
        str(p)
        for p in outside
        for line in p.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("import dagster", "from dagster"))
    ]
    assert guilty == []


def test_one_location_name() -> None:
    """workspace.yaml and pyproject agree, and no [tool.dagster] block overrules them."""
    workspace = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text(encoding="utf-8"))
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    names = [entry["python_module"]["location_name"] for entry in workspace["load_from"]]
    assert names == ["beatsight_assets"] == [tools["dg"]["project"]["code_location_name"]]
    assert "dagster" not in tools


def test_presets_of_training_jobs() -> None:
    """Each training job carries its preset, the gpu tag, and a step in the gpu pool."""
    defs = build_defs(settings=load_settings("/nowhere", "demo", environ={}))
    found = {}
    for name in ("train_warmup", "train_baseline", "train_long", "demo_job"):
        job = defs.resolve_job_def(name)
        assert job.tags["gpu"] == "true"
        found[name] = job.run_config["ops"]["candidate_model"]["config"]["preset"]
    assert found == {"train_warmup": "warmup", "train_baseline": "baseline", "train_long": "long", "demo_job": "demo"}
    known = {p.stem for p in (REPOSITORY / "configs" / "presets").glob("*.yaml")}
    assert set(found.values()) <= known


def test_run_without_data_root_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without BEATSIGHT_DATA_ROOT fails with the name of that variable."""
    monkeypatch.delenv("BEATSIGHT_DATA_ROOT", raising=False)
    with dg.instance_for_test() as instance, pytest.raises(Exception, match="BEATSIGHT_DATA_ROOT"):
        build_defs().resolve_job_def("merge_job").execute_in_process(instance=instance)


def test_materialize_all_renders_before_it_ingests() -> None:
    """Rendered datasets are ingested from what was rendered: an explicit dependency by partition (design ruling 31)."""
    nodes = build_defs(settings=load_settings("/nowhere", "demo", environ={})).resolve_asset_graph()
    mapping = nodes.get_partition_mapping(dg.AssetKey("events"), dg.AssetKey("rendered_audio"))
    assert dg.AssetKey("rendered_audio") in nodes.get(dg.AssetKey("events")).parent_keys
    assert isinstance(mapping, dg.StaticPartitionMapping)
