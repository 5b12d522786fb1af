"""Names of drum components: canonical labels, aliases, families, class views and note maps.

Belongs here: what a label or a MIDI note means. Does not belong here: reading MIDI or text files.
The data is configs/taxonomy.yaml; `Taxonomy.digest` stamps what was used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beatsight_assets import safeyaml, store
from beatsight_assets.errors import ConfigError
from beatsight_assets.settings import SHIPPED_CONFIGS, Settings

HIHATS_WITH_OPENNESS = ("hihat_closed", "hihat_open")  # the pedal of the other two is moving (spec/events.md section 4)
UNSPECIFIED = "unspecified"  # variant of a hit whose source knows only the family
DRUM_MIX = "drum_mix"  # marks whole-kit stems; not a class
STRIKES = ("head", "rim", "edge", "bow", "bell", "center")


@dataclass(frozen=True, slots=True)
class Voice:
    """What one note or text label stands for: component, variant, strike position, stated dynamic bucket, techniques and openness."""

    label: str
    variant: str | None = None
    strike: str | None = None
    bucket: str | None = None
    techniques: tuple[str, ...] = ()
    openness: float | None = None  # 0 closed .. 1 open where the key itself says so


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ComponentFile(_File):
    family: str
    aliases: tuple[str, ...] = ()
    variants: dict[str, str] = {}


class _NoteFile(_File):
    component: str
    strike: str | None = None
    variant: str | None = None
    technique: str | None = None
    openness: float | None = Field(default=None, ge=0.0, le=1.0)


class _TaxonomyFile(_File):
    version: int
    components: dict[str, _ComponentFile]
    super_families: dict[str, tuple[str, ...]]
    exclusive_groups: tuple[tuple[str, ...], ...]
    views: dict[str, dict[str, tuple[str, ...]]]
    note_maps: dict[str, dict[Annotated[int, Field(ge=0, le=127)], _NoteFile | None]]
    pedals: dict[str, Annotated[int, Field(ge=1, le=127)]] = {}
    plugins: dict[str, str] = {}


@dataclass(frozen=True)
class View:
    """A list of training classes and the components each of them stands for."""

    name: str
    classes: tuple[str, ...]
    class_of: Mapping[str, str]

    def masked_by_unspecified(self, taxonomy: Taxonomy, label: str) -> tuple[str, ...]:
        """Classes a hit with variant `unspecified` says nothing about: all classes of its family, unless the family is one class.

        For crash the family meant is `cymbal`: a track named cymbals may hold a ride.
        """
        family = taxonomy.families_meant(label)
        classes = sorted(
            {self.class_of[c] for c in taxonomy.labels if taxonomy.family(c) in family and c in self.class_of}, key=self.classes.index
        )
        return tuple(classes) if len(classes) > 1 else ()

    def covered(self, taxonomy: Taxonomy, coverage: Iterable[str]) -> tuple[str, ...]:
        """Classes a source can express. `coverage` lists components and families; a class counts when any of its components is covered."""
        known = set(coverage)
        return tuple(
            c for c in self.classes if any(self.class_of[x] == c and (x in known or taxonomy.family(x) in known) for x in self.class_of)
        )


class Taxonomy:
    """Components in their order, and every table that speaks about them."""

    def __init__(self, file: safeyaml.YamlFile) -> None:
        try:
            parsed = _TaxonomyFile.model_validate(file.data)
        except ValidationError as failure:
            first = failure.errors(include_url=False)[0]
            raise ConfigError(f"{first['msg']}", code="bad-config", where=file.where(tuple(first["loc"]))) from failure
        self._file = parsed
        self.version = parsed.version
        self.labels: tuple[str, ...] = tuple(parsed.components)
        self.order: dict[str, int] = {label: i for i, label in enumerate(self.labels)}
        self.exclusive_groups = parsed.exclusive_groups
        self._names: dict[str, tuple[str, str | None]] = {}
        for label, component in parsed.components.items():
            named: list[tuple[str, str | None]] = [(label, None), *((a, None) for a in component.aliases), *component.variants.items()]
            for name, variant in named:
                if name in self._names:
                    raise ConfigError(
                        f"alias {name!r} names both {self._names[name][0]} and {label}",
                        code="bad-config",
                        where=file.where(("components", label)),
                    )
                self._names[name] = (label, variant)
        for place, used in (
            *((("views", v, c), x) for v, classes in parsed.views.items() for c, members in classes.items() for x in members),
            *((("note_maps", m, str(n)), note.component) for m, notes in parsed.note_maps.items() for n, note in notes.items() if note),
        ):
            if used not in self.order:
                raise ConfigError.unknown_choice("component", used, self.labels, where=file.where(place))
        for table, maps in (("pedals", {m: m for m in parsed.pedals}), ("plugins", parsed.plugins)):
            for key, used in maps.items():
                if used not in parsed.note_maps:
                    raise ConfigError.unknown_choice("note map", used, parsed.note_maps, where=file.where((table, key)))

    @cached_property
    def digest(self) -> str:
        """sha256 of the parsed file: formatting and comments do not count."""
        return sha256(store.to_json_bytes(self._file.model_dump(mode="json"))).hexdigest()

    def canonical(self, name: str) -> tuple[str, str | None] | None:
        """(component, variant) of a label or alias; None if unknown. Case, `-` and blanks do not matter.

        >>> Taxonomy.shipped().canonical("Hi-Hat") is None, Taxonomy.shipped().canonical("crash-1"), Taxonomy.shipped().canonical("hihat")
        (True, ('crash', None), ('hihat_closed', 'unspecified'))
        """
        return self._names.get(name.casefold().replace("-", "_").replace(" ", "_"))

    def family(self, label: str) -> str | None:
        """Family of a canonical label; None for a label outside the taxonomy."""
        component = self._file.components.get(label)
        return component.family if component else None

    def families_meant(self, label: str) -> tuple[str, ...]:
        """Families an `unspecified` hit of this label may belong to."""
        family = self.family(label)
        if label == "crash":
            return self._file.super_families["cymbal"]
        return (family,) if family else ()

    def family_members(self, family: str) -> tuple[str, ...]:
        """Components of a family or super family, in taxonomy order."""
        families = self._file.super_families.get(family, (family,))
        return tuple(label for label in self.labels if self.family(label) in families)

    def view(self, name: str) -> View:
        """Classes of a view. Every taxonomy has `full23`, the identity."""
        if name == "full23":
            return View(name, self.labels, {label: label for label in self.labels})
        if name not in self._file.views:
            raise ConfigError.unknown_choice("view", name, [*self._file.views, "full23"], where="configs/taxonomy.yaml: views")
        classes = self._file.views[name]
        return View(name, tuple(classes), {component: c for c, members in classes.items() for component in members})

    def note_map(self, name: str) -> dict[int, Voice]:
        """MIDI note -> voice. Notes outside the map are counted as `unmapped_note`, they are no error."""
        if name not in self._file.note_maps:
            raise ConfigError.unknown_choice("note map", name, self._file.note_maps, where="configs/taxonomy.yaml: note_maps")
        return {
            number: Voice(note.component, note.variant, note.strike, None, (note.technique,) if note.technique else (), note.openness)
            for number, note in self._file.note_maps[name].items()
            if note
        }

    def closed_pedal(self, note_map: str) -> int | None:
        """CC4 of a closed hat on the device of a note map; None where no device is known, so that openness stays unknown."""
        return self._file.pedals.get(note_map)

    @property
    def plugins(self) -> Mapping[str, str]:
        """Instrument plugin -> note map of what it plays."""
        return self._file.plugins

    @classmethod
    def shipped(cls) -> Taxonomy:
        """The taxonomy that ships with the package."""
        return _load(SHIPPED_CONFIGS / "taxonomy.yaml")

    @classmethod
    def load(cls, settings: Settings) -> Taxonomy:
        """The taxonomy of a data root: its own configs/taxonomy.yaml, else the shipped one."""
        return _load(settings.config_path("taxonomy"))

    @classmethod
    def at(cls, path: Path) -> Taxonomy:
        """The taxonomy of a file, read once per process."""
        return _load(path)

    def to_json(self) -> dict[str, Any]:
        """Version and digest, as stamped into artefacts."""
        return {"version": self.version, "sha256": self.digest}


@lru_cache(maxsize=4)
def _load(path: Path) -> Taxonomy:
    return Taxonomy(safeyaml.read_yaml(path, name="configs/taxonomy.yaml"))
