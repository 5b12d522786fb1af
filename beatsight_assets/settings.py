"""Where everything lies and what the user configured: one data root, one profile, typed YAML.

Belongs here: the only code that reads the environment and knows path names. Does not belong here: what the files contain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from beatsight_assets import safeyaml
from beatsight_assets.errors import ConfigError
from beatsight_assets.store import Store, contain, is_plain_path, printable
from beatsight_assets.workers import require_kind

PROFILES = ("demo", "dev", "prod")
SHIPPED_CONFIGS = next(p for p in (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs") if p.is_dir())

Model = TypeVar("Model", bound=BaseModel)


class _Config(BaseModel):
    """Base of every config file: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _plain_path(value: str) -> str:
    if not is_plain_path(value):
        raise ValueError("must be a plain path below raw/")
    return value


class DatasetConfig(_Config):
    """One entry of configs/datasets.yaml."""

    short: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    raw_folder: Annotated[str, AfterValidator(_plain_path)]
    module: str
    enabled: bool = True
    rendered: bool = False
    owner: str = "team:data"
    roots: tuple[str, ...] = ()
    roots_needed: str = Field(default="all", pattern=r"^(all|any)$")
    checksum_manifest: Annotated[str, AfterValidator(_plain_path)] | None = None
    optional: bool = False
    max_reject_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    options: dict[str, Any] = Field(default_factory=dict)


class DatasetsFile(_Config):
    """configs/datasets.yaml: every dataset the platform knows."""

    datasets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")], DatasetConfig]


class SplitLimits(_Config):
    """Limits on splits (`spec/gates.md` section 12)."""

    view: str
    max_share_deviation: float = Field(ge=0.0, le=1.0)
    min_free_groups: int = Field(ge=0)
    min_class_groups: int = Field(ge=0)


class EvaluationLimits(_Config):
    """Limits on a candidate's figures on held-out recordings; what is not set is not judged."""

    pooled_f1: float | None = Field(default=None, ge=0.0, le=1.0)
    pooled_f1_drums5: float | None = Field(default=None, ge=0.0, le=1.0)
    pooled_precision: float | None = Field(default=None, ge=0.0, le=1.0)
    pooled_recall: float | None = Field(default=None, ge=0.0, le=1.0)
    class_recall: float | None = Field(default=None, ge=0.0, le=1.0)
    min_class_hits: int | None = Field(default=None, ge=0)
    class_f1_drop: float | None = Field(default=None, ge=0.0, le=1.0)
    pooled_f1_drop: float | None = Field(default=None, ge=0.0, le=1.0)
    every_class: bool | None = None


class GatesFile(_Config):
    """configs/gates/<profile>.yaml: limits by gate, and which gates a release needs."""

    version: int
    required: tuple[str, ...] = Field(min_length=1)
    readiness: dict[str, dict[str, Any]]
    health: dict[str, Any]
    splits: SplitLimits
    evaluation: EvaluationLimits
    max_missing_datasets: int = 0


class SamplingProfile(_Config):
    """One profile of configs/sampling.yaml (`spec/gates.md` section 11)."""

    group_field: str = "session_id"
    dedupe_fields: tuple[str, ...] = ()
    max_per_group: int | None = Field(default=None, ge=1)
    exponent: float = Field(default=0.5, ge=0.0)
    smoothing: float = Field(default=0.0, ge=0.0)
    min_count: int = Field(default=1, ge=1)
    boosts: dict[str, float] = Field(default_factory=dict)
    attenuations: dict[str, float] = Field(default_factory=dict)
    min_weight: float = Field(gt=0.0)
    max_weight: float = Field(gt=0.0)


class SamplingFile(_Config):
    """configs/sampling.yaml."""

    default: str
    profiles: dict[str, SamplingProfile]


class TechniqueConfig(_Config):
    """One technique of the catalogue."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    category: str
    priority: str = Field(pattern=r"^(core|common|rare)$")
    scope: str = Field(pattern=r"^(event|session)$")
    inferred: bool
    aliases: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    description: str


class TechniquesFile(_Config):
    """configs/techniques.yaml."""

    version: int
    techniques: tuple[TechniqueConfig, ...]


@dataclass(frozen=True)
class DataLayout:
    """Every path below the data root. Nothing is created here."""

    root: Path

    def at(self, relpath: str) -> Path:
        """Path below the root from names that a user or a config gave. Links are followed (raw/ may lie on another disk).

        Raises
        ------
        ConfigError `path-escape` : absolute, `..`, `~`, backslash, control characters
        """
        if not is_plain_path(relpath):
            raise ConfigError(f"{printable(relpath)[:200]!r} is no plain path below the data root", code="path-escape")
        return self.root / relpath

    @property
    def raw_root(self) -> Path:
        return self.root / "raw"

    def raw(self, folder: str) -> Path:
        return self.at(f"raw/{folder}")

    def events(self, source_set: str) -> Path:
        return self.at(f"events/{source_set}.parquet")

    def provenance(self, source_set: str) -> Path:
        return self.at(f"provenance/{source_set}.parquet")

    def quarantine(self, source_set: str) -> Path:
        return self.at(f"quarantine/{source_set}.parquet")

    def alignment(self, source_set: str) -> Path:
        return self.at(f"alignment/{source_set}.parquet")

    @property
    def provenance_tables(self) -> list[Path]:
        """Those that are there, sorted."""
        return sorted((self.root / "provenance").glob("*.parquet"))

    @property
    def quarantine_tables(self) -> list[Path]:
        """Those that are there, sorted."""
        return sorted((self.root / "quarantine").glob("*.parquet"))

    @property
    def merged(self) -> Path:
        return self.root / "manifest" / "merged.parquet"

    @property
    def annotated(self) -> Path:
        return self.root / "manifest" / "annotated.parquet"

    @property
    def splits(self) -> Path:
        return self.root / "manifest" / "splits.parquet"

    @property
    def crash_embeddings(self) -> Path:
        return self.root / "manifest" / "crash_embeddings.parquet"

    @property
    def crash_mapping(self) -> Path:
        return self.root / "manifest" / "crash_mapping.json"

    @property
    def near_duplicates(self) -> Path:
        return self.root / "manifest" / "near_duplicates.parquet"

    def features(self, name: str) -> Path:
        return self.at(f"features/{name}")

    def manifest_forms(self, name: str) -> Path:
        """Folder of a manifest in the forms of other programs, one folder each."""
        return self.at(f"manifest/interchange/{name}")

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    def bundle(self, name: str) -> Path:
        return self.at(f"bundles/{name}")

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def run_dir(self, run: str) -> Path:
        return self.at(f"runs/{run}")

    @property
    def logged_runs(self) -> dict[str, Path]:
        """Folders of the training runs that keep a log, by name."""
        return {path.parent.name: path.parent for path in sorted(self.runs.glob("*/events.jsonl"))}

    @property
    def candidates(self) -> Path:
        return self.root / "models" / "candidates"

    def candidate(self, run: str) -> Path:
        return self.at(f"models/candidates/{run}")

    @property
    def promoted(self) -> Path:
        return self.root / "models" / "promoted"

    def release(self, name: str) -> Path:
        return self.at(f"models/promoted/{name}")

    @property
    def current_model(self) -> Path:
        return self.promoted / "CURRENT.json"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def report(self, area: str, name: str) -> Path:
        return self.at(f"reports/{area}/{name}")

    @property
    def receipts(self) -> Path:
        return self.root / "receipts"

    def receipt(self, stage: str, partition: str | None = None) -> Path:
        return self.at(f"receipts/{stage}.json" if partition is None else f"receipts/{stage}/{partition}.json")

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster"

    def rel(self, path: Path) -> str:
        """POSIX path below the data root."""
        return path.relative_to(self.root).as_posix()

    def shown(self, path: Path) -> str:
        """A file as reports name it: its path below the data root; of one that lies elsewhere the name alone, for no absolute path leaves a machine."""
        return self.rel(path) if path.is_relative_to(self.root) else path.name

    def resolve(self, relpath: str) -> Path:
        """Path below the data root; refuses to leave it (`path-escape`)."""
        return contain(self.root, relpath)


@dataclass(frozen=True)
class SmokeVariables:
    """Variables of `bundle smoke` as they were set; read as numbers only where they are used, for other programs may use the names."""

    export_limit: str = ""
    raw_primary: str = ""
    raw_secondary: str = ""
    keep_smoke_output: str = ""


@dataclass(frozen=True)
class Settings:
    """Resolved settings of one invocation."""

    layout: DataLayout
    profile: str = "dev"
    executor: str = "inline"
    n_workers: int = 1
    model_path: str | None = None
    poll_s: int = 60  # how often sensors look, in seconds
    smoke: SmokeVariables = SmokeVariables()

    @cached_property
    def store(self) -> Store:
        return Store(self.layout.root)

    @cached_property
    def datasets(self) -> dict[str, DatasetConfig]:
        """Datasets of configs/datasets.yaml by source_set name, in file order."""
        return self.typed("datasets", DatasetsFile).datasets

    @cached_property
    def gates(self) -> GatesFile:
        """Limits of this profile."""
        return self.typed(f"gates/{self.profile}", GatesFile)

    @cached_property
    def sampling(self) -> SamplingFile:
        return self.typed("sampling", SamplingFile)

    @cached_property
    def techniques(self) -> TechniquesFile:
        return self.typed("techniques", TechniquesFile)

    def dataset(self, name: str) -> tuple[str, DatasetConfig]:
        """(source_set, config) of a dataset named by its source_set or its short name."""
        for source_set, config in self.datasets.items():
            if name in (source_set, config.short):
                return source_set, config
        known = [n for s, c in self.datasets.items() for n in (s, c.short)]
        raise ConfigError.unknown_choice("dataset", name, known, where="configs/datasets.yaml")

    def raw_roots(self, source_set: str) -> list[Path]:
        """Where a dataset may lie: `roots` of its config in their order, else its folder below raw/."""
        config = self.datasets[source_set]
        return [Path(r) if Path(r).is_absolute() else self.layout.root / r for r in config.roots] or [self.layout.raw(config.raw_folder)]

    @property
    def generated_wanted(self) -> list[str]:
        """Datasets whose option `include_generated` is set: hits that a model heard are taken too."""
        return [name for name, config in self.datasets.items() if config.options.get("include_generated") is True]

    def config_path(self, name: str) -> Path:
        """configs/<name>.yaml of the data root if it is there, else the one that ships with the package."""
        own = self.layout.root / "configs" / f"{name}.yaml"
        return own if own.is_file() else SHIPPED_CONFIGS / f"{name}.yaml"

    def config_names(self, folder: str) -> list[str]:
        """Names of all config files in a folder `<name>/` of configs/, the data root's and the shipped ones, sorted."""
        places = (SHIPPED_CONFIGS / folder, self.layout.root / "configs" / folder)
        return sorted({folder + path.stem for place in places for path in place.glob("*.yaml")})

    def config(self, name: str) -> safeyaml.YamlFile:
        """A config file as it is written."""
        return safeyaml.read_yaml(self.config_path(name), name=f"configs/{name}.yaml")

    def user_output(self, path: Path) -> Path:
        """A file that the user asks for by name: anywhere, but below the data root only in reports/, so that no input or product is lost.

        Raises
        ------
        ConfigError `would-overwrite`
        """
        full = path.expanduser().absolute()
        root = self.layout.root.resolve()
        if full.resolve().is_relative_to(root) and not full.resolve().is_relative_to(root / "reports"):
            raise ConfigError(
                f"{path} lies in the data root, where only reports/ takes files from the command line. Choose another place",
                code="would-overwrite",
            )
        return full

    def typed(self, name: str, model: type[Model]) -> Model:
        """A config file checked against its model. Types are strict ("false" is no truth value, "5" no number), lists may stand for tuples.

        Raises
        ------
        ConfigError `bad-config` : names the file, the line, the field and the value
        """
        return checked(self.config(name), model)

    def with_datasets(self, datasets: Mapping[str, DatasetConfig]) -> Settings:
        """The same settings with other datasets than those of configs/datasets.yaml."""
        changed = replace(self)
        changed.__dict__["datasets"] = dict(datasets)
        return changed


def checked(file: safeyaml.YamlFile, model: type[Model]) -> Model:
    """`Settings.typed` of a file that lies anywhere."""
    try:
        return model.model_validate_json(json.dumps(file.data, default=str), strict=True)
    except ValidationError as failure:
        found = failure.errors(include_url=False)
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a misspelt key explains the missing one
        place = tuple(first["loc"])
        shown = ".".join(str(p) for p in place) or "the document"
        value = repr(first.get("input"))[:80]
        raise ConfigError(f"{shown}: {first['msg']}, got {value}", code="bad-config", where=file.where(place)) from failure


def wandb_host(environ: Mapping[str, str] | None = None) -> tuple[str, bool]:
    """Host of Weights & Biases, and whether the environment holds a key for it; the key itself stays there."""
    env = os.environ if environ is None else environ
    return urlsplit(env.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "", bool(env.get("WANDB_API_KEY"))


def load_settings(data_root: str | Path | None = None, profile: str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from options, else the environment.

    Raises
    ------
    ConfigError `no-data-root`, `unknown-choice`, `bad-option` : with the way to set it
    """
    env = os.environ if environ is None else environ
    root = data_root or env.get("BEATSIGHT_DATA_ROOT")
    if not root:
        raise ConfigError(
            "no data root is set. Give --data-root DIR or export BEATSIGHT_DATA_ROOT=DIR (a folder that holds raw/)", code="no-data-root"
        )
    name = profile or env.get("BEATSIGHT_PROFILE") or "dev"
    if name not in PROFILES:
        raise ConfigError.unknown_choice("profile", name, PROFILES, where="--profile or BEATSIGHT_PROFILE")
    executor = require_kind(env.get("BEATSIGHT_EXECUTOR") or "inline", where="BEATSIGHT_EXECUTOR")
    workers = env.get("BEATSIGHT_WORKERS") or str(os.cpu_count() or 1)
    if not workers.isdecimal() or int(workers) < 1:
        raise ConfigError(f"BEATSIGHT_WORKERS is {workers!r}; it must be a whole number of at least 1", code="bad-option")
    poll = env.get("BEATSIGHT_POLL_S") or "60"
    if not poll.isdecimal() or int(poll) < 1:
        raise ConfigError(f"BEATSIGHT_POLL_S is {poll!r}; it must be a whole number of seconds of at least 1", code="bad-option")
    try:
        folder = Path(root).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"data root {str(root)!r} names no home folder of this machine", code="no-data-root") from error
    return Settings(
        layout=DataLayout(folder),
        profile=name,
        executor=executor,
        n_workers=int(workers),
        model_path=env.get("BEATSIGHT_ML_MODEL_PATH"),
        poll_s=int(poll),
        smoke=SmokeVariables(*(env.get(f.name.upper(), "").strip() for f in fields(SmokeVariables))),
    )
