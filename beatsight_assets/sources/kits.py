"""Sample kits: which file of a folder is which stroke of which piece.

Belongs here: the kit table, SFZ velocity ranges and choke groups, microphones of one hit. Does not belong here: onsets and rows
(one_shots), playing the samples (render).

Kit        the first folder below the root; files in the root itself are a kit of the root's name, and so is all below a root that has the
           name of a kit of the configuration
Meaning    configs/kits/<kit>.yaml; else the keys of its SFZ files through the note map that the option `note_maps` names for the kit; else
           the file name (names)
Piece      what a recording of one stroke is called in the kit table; without a table all samples of one component are one piece
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.safeyaml import read_yaml
from beatsight_assets.settings import SHIPPED_CONFIGS
from beatsight_assets.sources import AUDIO_SUFFIXES, Rejected, Skipped, candidate_files, names
from beatsight_assets.sources.sfz import Region, SfzFile, read_sfz
from beatsight_assets.store import printable
from beatsight_assets.taxonomy import Taxonomy, Voice

SFZ_SUFFIX = ".sfz"
TABLES = "kits/"  # folder of configs/ that holds the kit tables
CLOSE_MIC, OTHER_MICS = "close_mic", ("close_mic", "overheads", "room")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PieceRow(_File):
    """What a piece is: `piece` is a pattern with `*`; `mic` its close microphone; `openness` 0..1 serves the renderer only."""

    piece: str
    label: str
    variant: str | None = None
    strike: str | None = None
    technique: str | None = None
    openness: float | None = Field(default=None, ge=0.0, le=1.0)
    mic: str | None = None


class KitTable(_File):
    """configs/kits/<kit>.yaml. `stem` is a regular expression over a file's stem with the group `piece`, and `layer`, `hit`, `mic` as it has them."""

    version: int
    licence: str
    stem: str
    mics: dict[str, tuple[str, ...]] = {}
    pieces: tuple[PieceRow, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Sample:
    """One audio file of a kit, `path` below the root. `voice` is None while only an SFZ key is known: see `voice_of`.

    hit : the same stroke on several microphones shares it; mic_kind : close_mic, overheads, room; "" for a kit without microphones
    velocity : centre of the SFZ range over 127, None where no SFZ states one (or two SFZ files disagree)
    """

    kit: str
    path: str
    piece: str
    voice: Voice | None = None
    key: int | None = None
    layer: int | None = None
    hit: str | None = None
    mic: str | None = None
    mic_kind: str = ""
    is_close: bool = True
    velocity: float | None = None
    openness: float | None = None


@dataclass(frozen=True)
class Kit:
    """A folder of samples. `confidence` of its labels: kit table 1.0, else 0.8. `refused` and `skipped` are its other audio files."""

    name: str
    samples: tuple[Sample, ...]
    maps: tuple[SfzFile, ...]
    note_map: str | None
    confidence: float
    licence: str | None = None
    refused: tuple[Rejected, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def voice_of(self, sample: Sample, taxonomy: Taxonomy) -> Voice | None:
        """What a sample is; None for an SFZ key outside the kit's note map."""
        if sample.voice is not None or self.note_map is None or sample.key is None:
            return sample.voice
        return taxonomy.note_map(self.note_map).get(sample.key)


def list_kits(root: Path, options: Mapping[str, Any]) -> list[Kit]:
    """The kits below a root in order of their paths; every audio file is a sample, refused or skipped.

    Parameters
    ----------
    options : `configs` (paths of the kit tables under `kits/<kit>`, as `sources.module_options` hands them over; without it the shipped
        ones), `note_maps` (kit name -> note map of the taxonomy for its SFZ keys), and those of `names.rules_of`

    Raises
    ------
    ConfigError `bad-config` : a kit table that is not one, or a list of names that is not one
    InputError `misplaced-kit` : a kit of the configuration lies deeper than right below the root
    """
    files, _ = candidate_files(root, (SFZ_SUFFIX, *AUDIO_SUFFIXES))
    shipped = {f"{TABLES}{path.stem}": str(path) for path in (SHIPPED_CONFIGS / TABLES).glob("*.yaml")}
    configs, note_maps, rules = options.get("configs", shipped), options.get("note_maps", {}), names.rules_of(options)
    known = {*(c.removeprefix(TABLES) for c in configs if c.startswith(TABLES)), *note_maps, *options.get("kit_splits", {})}
    for path in files:
        if deep := known.intersection(path.split("/")[1:-1]):
            kit = min(deep)
            raise InputError(
                f"{kit} is told in the configuration and lies in {path.partition(f'/{kit}/')[0]}: a kit is a folder right below the root, and "
                "here its table and its split would count for nothing. Move it up, or give the folder it lies in as the root",
                code="misplaced-kit",
                where=f"{path.partition(f'/{kit}/')[0]}/{kit}",
            )
    by_kit: dict[str, list[str]] = {}
    for path in files:
        is_inside = "/" in path and root.name not in known
        by_kit.setdefault(path.partition("/")[0] if is_inside else root.name, []).append(path)
    kits = []
    for name, paths in by_kit.items():
        place = configs.get(TABLES + name)
        table = None if place is None else kit_table(name, read_yaml(Path(place), name=f"configs/{TABLES}{name}.yaml").data)
        kits.append(_read_kit(root, name, paths, table, note_maps.get(name), rules))
    return kits


def kit_table(name: str, content: Any) -> KitTable:
    """A kit table checked: labels are the taxonomy's business, the pattern must have a `piece`.

    Raises
    ------
    ConfigError `bad-config`
    """
    where = f"configs/kits/{name}.yaml"
    try:
        table = KitTable.model_validate(content)
        groups = re.compile(table.stem).groupindex
    except ValidationError as failure:
        found = failure.errors(include_url=False)
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a misspelt key explains the missing one
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", code="bad-config", where=where) from failure
    except re.error as failure:
        raise ConfigError(f"stem is no regular expression: {failure}", code="bad-config", where=where) from failure
    if "piece" not in groups:
        raise ConfigError("stem has no group `piece`: (?P<piece>...)", code="bad-config", where=where)
    for kind in table.mics:
        if kind not in OTHER_MICS:
            raise ConfigError.unknown_choice("kind of microphone", kind, OTHER_MICS, where=where)
    return table


def _read_kit(root: Path, name: str, paths: Sequence[str], table: KitTable | None, note_map: str | None, rules: names.NameRules) -> Kit:
    folder = root / name if (root / name).is_dir() else root
    prefix = f"{name}/" if folder != root else ""
    maps: list[SfzFile] = []
    refused: list[Rejected] = []
    for path in paths:
        if path.lower().endswith(SFZ_SUFFIX):
            try:
                maps.append(read_sfz(folder, path.removeprefix(prefix)))
            except InputError as error:
                refused.append(Rejected(path, "scan", error.code, error.message))
    regions: dict[str, list[Region]] = {}
    for file in maps:
        for region in file.regions:
            regions.setdefault(prefix + region.sample, []).append(region)
    audio = [p for p in paths if not p.lower().endswith(SFZ_SUFFIX)]
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for path in audio:
        if table is not None:
            found: Sample | Rejected | Skipped = _by_table(name, path, table)
        elif note_map is not None:
            found = _by_key(name, path, regions.get(path, []))
        else:
            found = _by_name(name, path, rules)
        if isinstance(found, Sample):
            velocity, layer = _velocity(regions.get(path, []), maps)
            samples.append(replace(found, velocity=velocity, layer=found.layer or layer))
        elif isinstance(found, Rejected):
            refused.append(found)
        else:
            skipped.append(found)
    keyed = note_map if table is None else None
    licence = None if table is None else table.licence
    return Kit(name, tuple(samples), tuple(maps), keyed, 0.8 if table is None else 1.0, licence, tuple(refused), tuple(skipped))


def _by_table(kit: str, path: str, table: KitTable) -> Sample | Rejected | Skipped:
    stem = PurePosixPath(path).stem
    match = re.fullmatch(table.stem, stem)
    row = next((r for r in table.pieces if match is not None and fnmatchcase(match["piece"], r.piece)), None)
    if match is None or row is None:
        return Rejected(path, "scan", "unknown-label", f"configs/kits/{kit}.yaml has no piece for {printable(stem)!r}")
    said = match.groupdict()
    mic = said.get("mic")
    kind = next((k for k, mics in table.mics.items() if mic in mics), "")
    if mic is not None and not kind:
        return Skipped(path, "no-microphone")
    voice = Voice(row.label, row.variant, row.strike, None, (row.technique,) if row.technique else ())
    layer = said.get("layer")
    return Sample(
        kit, path, match["piece"], voice,
        layer=None if layer is None else int(layer), hit=said.get("hit"), mic=mic, mic_kind=kind, is_close=mic is None or mic == row.mic,
        openness=row.openness,
    )  # fmt: skip


def _by_key(kit: str, path: str, regions: Sequence[Region]) -> Sample | Rejected:
    keys = sorted({r.lokey for r in regions})
    if len(keys) != 1:
        message = f"{len(keys)} SFZ keys sound this file; one is needed to know what it is"
        return Rejected(path, "scan", "unknown-label" if not keys else "ambiguous-file-name", message)
    return Sample(kit, path, f"key_{keys[0]}", key=keys[0])


def _by_name(kit: str, path: str, rules: names.NameRules) -> Sample | Rejected | Skipped:
    named = names.label_of(PurePosixPath(path).stem, rules, one_shots=True)
    if named.kind == "component" and named.voice is not None:
        return Sample(kit, path, named.voice.label, named.voice, mic=named.mic_position)
    if named.code is not None:
        return Rejected(path, "scan", named.code, f"{printable(PurePosixPath(path).stem)!r} says {named.rule or 'no drum'}")
    return Skipped(path, "whole-kit" if named.kind == "drum_mix" else "not-drums")


def _velocity(regions: Sequence[Region], maps: Sequence[SfzFile]) -> tuple[float | None, int | None]:
    """(centre of the stated range over 127, place of that range among those of its key from 1); None where the maps say nothing or disagree."""
    stated = {r.velocity: r for r in regions if r.states_velocity}
    if len(stated) != 1:
        return None, None
    ((velocity, region),) = stated.items()
    file = next(m for m in maps if region in m.regions)
    ranges = sorted({r.lovel for r in file.regions if r.lokey == region.lokey})
    return velocity, ranges.index(region.lovel) + 1
