"""Dagster's home: made once under any number of processes, looked after, kept where the data is."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from beatsight_assets.dag import instance as home
from beatsight_assets.dag.storage import EnvSwitchedStorage, sqlite_home
from beatsight_assets.errors import ConfigError, StoreError
from beatsight_assets.settings import DataLayout, Settings

OPEN = """
import sys
from pathlib import Path
from beatsight_assets.dag.instance import open_instance
from beatsight_assets.settings import DataLayout, Settings
sys.stdin.read(1)
with open_instance(Settings(DataLayout(Path(sys.argv[1])), "demo")) as instance:
    print(instance.get_runs_count())
"""


@pytest.mark.parametrize("trial", range(5 if os.environ.get("BEATSIGHT_EXHAUSTIVE") else 1))
def test_fresh_home_opened_by_four_processes_at_once(data_root: Path, trial: int) -> None:
    """Four processes open a fresh home at the same moment; all four work and the home is whole (reliability R12)."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(data_root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("!")
        process.stdin.flush()
    said = [process.communicate(timeout=300) for process in started]
    assert [(p.returncode, out.strip()) for p, (out, _) in zip(started, said, strict=True)] == [(0, "0")] * 4, said
    databases = home.databases(data_root / "dagster")
    assert [len(home.schema_versions(db)) for db in databases] == [1, 1, 1]


@pytest.fixture
def made(settings: Settings) -> Settings:
    """A data root whose Dagster home is made."""
    home.init(settings)
    return settings


def problems(settings: Settings) -> list[str]:
    return [f.name for f in home.doctor(settings) if f.is_problem and f.name not in ("pins", "libraries", "free space")]


def test_init_is_repeatable(made: Settings) -> None:
    """The second init changes nothing, keeps edits of dagster.yaml, and the doctor is content."""
    yaml = made.layout.dagster_home / "dagster.yaml"
    yaml.write_text(yaml.read_text() + "\n# mine\n")
    again = home.init(made)
    assert (again.is_new, len(again.databases)) == (False, 3)
    assert yaml.read_text().endswith("# mine\n")
    assert problems(made) == []


def test_second_schema_version_is_found_and_repaired(made: Settings) -> None:
    """The damage of a parallel first open: init refuses, doctor names the database, repair leaves the newest version."""
    database = made.layout.dagster_home / "history" / "runs.db"
    good = home.schema_versions(database)
    with sqlite3.connect(database) as connection:
        connection.execute("insert into alembic_version values ('0123456789ab')")
    connection.close()
    assert problems(made) == ["history/runs.db"]
    with pytest.raises(StoreError, match=r"runs\.db has 2 schema versions"):
        home.init(made)
    assert len(home.repair(made)) == 1
    assert home.schema_versions(database) == good and problems(made) == []
    assert home.repair(made) == []


def test_torn_database_is_found(made: Settings) -> None:
    """A database of random bytes is named, with what to do."""
    (made.layout.dagster_home / "schedules" / "schedules.db").write_bytes(b"no database" * 1_000)
    finding = next(f for f in home.doctor(made) if f.name == "schedules/schedules.db")
    assert finding.is_problem and "beatsight init" in finding.text


def test_doctor_of_a_fresh_root_changes_nothing(tmp_path: Path) -> None:
    """Looking at a root that is not there does not make it."""
    found = home.doctor(Settings(DataLayout(tmp_path / "absent"), "demo"))
    assert not (tmp_path / "absent").exists()
    assert {"python", "libraries", "free space", "permissions", "file system", "dagster"} <= {f.name for f in found}


def test_synchronised_folder_is_found(tmp_path: Path) -> None:
    """SQLite inside Dropbox and its like loses data."""
    finding = next(f for f in home.doctor(Settings(DataLayout(tmp_path / "Dropbox" / "drums"))) if f.name == "file system")
    assert finding.is_problem and "synchronised" in finding.text


def test_unwritable_root_is_an_error_of_ours(tmp_path: Path) -> None:
    """A data root that is a file says so in our words."""
    (tmp_path / "root").write_text("a file")
    with pytest.raises(StoreError, match="cannot be used"):
        home.init(Settings(DataLayout(tmp_path / "root")))


def test_dev_starts_dagster_for_this_root(settings: Settings) -> None:
    """`dev` hands over the workspace, loopback, this data root and profile, as an argument list."""
    command, environment = home.dev_command(settings, port=3210, host="127.0.0.1")
    assert command[1:4] == ["-m", "dagster", "dev"] and Path(command[5]).is_file()
    assert command[6:] == ["-h", "127.0.0.1", "-p", "3210"]
    assert environment["DAGSTER_HOME"] == str(settings.layout.dagster_home)
    assert (environment["BEATSIGHT_DATA_ROOT"], environment["BEATSIGHT_PROFILE"]) == (str(settings.layout.root), "demo")
    with pytest.raises(ConfigError, match="--port is 70000"):
        home.dev(settings, port=70_000)


def test_settings_of_the_shipped_dagster_yaml(made: Settings) -> None:
    """The copied file is valid and says what the design says."""
    with home.open_instance(made) as instance:
        pools = instance.get_concurrency_config().pool_config
        assert (pools.default_pool_limit, pools.pool_granularity.value) == (1, "op")
        assert instance.run_monitoring_enabled and not instance.telemetry_enabled and not instance.nux_enabled
        assert instance.get_ref().storage_data.class_name == EnvSwitchedStorage.__name__
    assert "DAGSTER_HOME" not in os.environ


def test_home_of_the_databases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DAGSTER_HOME, else the data root's dagster/; without both a throw-away folder."""
    monkeypatch.setenv("BEATSIGHT_DATA_ROOT", str(tmp_path))
    assert sqlite_home() == tmp_path / "dagster"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "elsewhere"))
    assert sqlite_home() == tmp_path / "elsewhere"


def test_postgres_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """BEATSIGHT_DAGSTER_PG_URL switches the storage; where the driver is absent the message says how to get it."""
    monkeypatch.setenv("BEATSIGHT_DAGSTER_PG_URL", "postgresql+psycopg2://localhost/none")
    monkeypatch.setitem(sys.modules, "dagster_postgres", None)
    with pytest.raises(ConfigError, match="pip install dagster-postgres"):
        EnvSwitchedStorage.from_config_value(None, {})
