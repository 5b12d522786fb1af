"""Where the audio of a manifest row lies: candidate roots in order, and never outside of them.

Belongs here: root maps, containment, why nothing was found. Does not belong here: decoding.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from beatsight_assets.audio import find_audio
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.settings import Settings

MAX_TRIED = 8  # candidates named in a report


@dataclass(frozen=True)
class Missing:
    """Why a recording has no audio, and the places that were looked at, named without machine paths."""

    code: str  # missing-audio, path-escape, no-permission
    message: str
    tried: tuple[str, ...] = ()


@dataclass
class AudioRoots:
    """Candidate roots of each dataset: (name for reports, folder), in the order in which they are tried."""

    of: Mapping[str, Sequence[tuple[str, Path]]]
    other: Sequence[tuple[str, Path]]  # for datasets that no config knows
    hits: Counter[str] = field(default_factory=Counter)  # files found per root

    def candidates(self, source_set: str) -> Sequence[tuple[str, Path]]:
        """Roots of one dataset."""
        return self.of.get(source_set, self.other)

    def find(self, source_set: str, audio_path: str) -> Path | Missing:
        """The first existing file, or why there is none."""
        if not audio_path:
            return Missing("missing-audio", "the manifest names no audio for this session")
        tried = []
        for name, root in self.candidates(source_set):
            try:
                found = find_audio([root], audio_path)
            except InputError as error:
                return Missing("path-escape", error.message, (f"{name}/{audio_path}"[:300],))
            except PermissionError:
                return Missing("no-permission", f"{name} may not be read", (f"{name}/{audio_path}",))
            if found is not None:
                self.hits[name] += 1
                if not os.access(found, os.R_OK):
                    return Missing("no-permission", "the file may not be read", (f"{name}/{audio_path}",))
                return found
            tried.append(f"{name}/{audio_path}" + ("" if root.is_dir() else " (the root is absent)"))
        return Missing("missing-audio", "no candidate path exists", tuple(tried[:MAX_TRIED]))


def parse_maps(settings: Settings, maps: Sequence[str]) -> dict[str, list[Path]]:
    """`SOURCE=PATH` options; a source that is repeated has fallback roots in the order given.

    Raises
    ------
    ConfigError `bad-option`, `unknown-choice`
    """
    found: dict[str, list[Path]] = {}
    for text in maps:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--audio-root-map is {text!r}; it must be SOURCE=PATH", code="bad-option")
        found.setdefault(settings.dataset(name)[0], []).append(Path(path).expanduser().absolute())
    return found


def audio_roots(settings: Settings, audio_root: str | Path | None = None, maps: Sequence[str] = ()) -> AudioRoots:
    """Candidates of every dataset: mapped roots, then the dataset's folder below the audio root (raw/), then the audio root itself.

    Raises
    ------
    ConfigError : as `parse_maps`
    """
    mapped = parse_maps(settings, maps)
    base = settings.layout.raw_root if audio_root is None else Path(audio_root).expanduser().absolute()
    shown = _shown(settings, base, "<audio-root>")
    of: dict[str, list[tuple[str, Path]]] = {}
    for source_set, config in settings.datasets.items():
        roots = [(_shown(settings, p, f"<audio-root-map {source_set} {n}>"), p) for n, p in enumerate(mapped.get(source_set, []), 1)]
        if audio_root is None:
            roots += [(_shown(settings, p, f"<root {source_set} {n}>"), p) for n, p in enumerate(settings.raw_roots(source_set), 1)]
        else:
            roots.append((f"{shown}/{config.raw_folder}", base / config.raw_folder))
        of[source_set] = [*roots, (shown, base)]
    return AudioRoots(of, [(shown, base)])


def _shown(settings: Settings, path: Path, otherwise: str) -> str:
    """A root as reports name it: no absolute path leaves the machine."""
    return settings.layout.rel(path) if path.is_relative_to(settings.layout.root) else otherwise
