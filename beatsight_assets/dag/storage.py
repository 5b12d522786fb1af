"""Where Dagster keeps its own records: SQLite in DAGSTER_HOME, or Postgres when BEATSIGHT_DAGSTER_PG_URL is set."""

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import dagster as dg
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData

from beatsight_assets.errors import ConfigError
from beatsight_assets.settings import DataLayout

POSTGRES_URL = "BEATSIGHT_DAGSTER_PG_URL"  # postgresql+psycopg2://…; SQLAlchemy 2.1 maps the bare scheme to psycopg 3


class EnvSwitchedStorage(DagsterSqliteStorage):
    """One dagster.yaml for both: named there, decided by the environment."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> DagsterStorage:  # type: ignore[override, type-arg]
        url = dg.EnvVar(POSTGRES_URL).get_value()
        if not url:
            return cls(str(sqlite_home()), inst_data=inst_data)
        try:
            from dagster_postgres import DagsterPostgresStorage
        except ModuleNotFoundError as error:
            raise ConfigError.missing_extra("dagster-postgres", "pip install dagster-postgres psycopg2-binary") from error
        storage: DagsterStorage[Any] = DagsterPostgresStorage(url, should_autocreate_tables=True, inst_data=inst_data)
        return storage


def sqlite_home() -> Path:
    """DAGSTER_HOME, else the data root's dagster/; without either nothing can run, and a throw-away folder lets the graph be looked at."""
    home, root = dg.EnvVar("DAGSTER_HOME").get_value(), dg.EnvVar("BEATSIGHT_DATA_ROOT").get_value()
    if home or root:
        return Path(home) if home else DataLayout(Path(str(root)).expanduser().absolute()).dagster_home
    return Path(mkdtemp(prefix="beatsight-dagster-"))
