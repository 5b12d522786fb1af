"""Reading YAML that somebody else wrote: safe, bounded, and with the line of every value.

Used for our own configs/ and for foreign metadata (MedleyDB, Slakh).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from beatsight_assets import store
from beatsight_assets.errors import BeatSightError, ConfigError, InputError

MAX_BYTES = 1_000_000  # design/reliability.md section 6
MAX_DEPTH = 20
MAX_ALIASES = 50
MAX_VALUES = 500_000  # what 1 MB can hold without aliases; 16 lists of 3 aliases each stay below 50 and would be 43 million

# libyaml reads a config in a tenth of the time, where PyYAML was built with it.
LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Place = tuple[str | int, ...]

# What PyYAML's safe constructors raise on a value that its tag does not fit (`!!int ""`, `!!timestamp x`), besides its own errors.
CONSTRUCTOR_ERRORS = (ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class YamlFile:
    """A document and where in the file each of its values stands (1-based lines)."""

    path: str
    data: Any
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """`configs/x.yaml:12`, or the nearest enclosing value that has a line."""
        names = tuple(map(str, place))
        for length in range(len(names), -1, -1):
            if names[:length] in self.lines:
                return f"{self.path}:{self.lines[names[:length]]}"
        return self.path


def read_yaml(
    path: Path, *, name: str | None = None, error: type[BeatSightError] = ConfigError, not_finite_as_null: bool = False
) -> YamlFile:
    """Document of a YAML file.

    `not_finite_as_null` : a number that is not finite reads as null. For metadata of others, where the loudness of a silent stem is
    `-.inf` and must not cost the track; in our own files such a number is an error

    Raises
    ------
    `error` (default ConfigError) : `missing-config`; `bad-config` for text that is not YAML or not UTF-8, larger than 1 MB, deeper than
        20 levels, with more than 50 aliases or more than 500,000 values after following them, with a repeated key, with a number that is
        not finite, or with a tag that would build an object; `where` names the line
    """
    shown = name or path.name
    try:
        content = store.read_bytes(path, max_bytes=MAX_BYTES)
    except InputError as failure:
        code = "missing-config" if failure.code == "missing-input" else "bad-config"
        raise error(f"cannot be read: {failure.message}", code=code, where=shown) from failure
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = content.count(b"\n", 0, failure.start) + 1
        raise error(f"not UTF-8: {failure.reason}", code="bad-config", where=f"{shown}:{line}") from failure
    reader = _Reader(shown, error, not_finite_as_null)
    try:
        reader.check_events(text)
        loader = LOADER(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return YamlFile(shown, None)
            reader.walk(node, ())
            data = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        where = f"{shown}:{mark.line + 1}" if mark else shown
        raise error(failure.problem or "not YAML", code="bad-config", where=where) from failure
    except yaml.reader.ReaderError as failure:
        line = text.count("\n", 0, failure.position) + 1
        raise error(f"character {failure.character!r} is not allowed", code="bad-config", where=f"{shown}:{line}") from failure
    except (yaml.YAMLError, *CONSTRUCTOR_ERRORS) as failure:
        raise error(f"a value does not fit its type: {failure}", code="bad-config", where=shown) from failure
    return YamlFile(shown, data, reader.lines)


class _Reader:
    """The limits, checked before anything is built."""

    def __init__(self, shown: str, error: type[BeatSightError], not_finite_as_null: bool) -> None:
        self.shown = shown
        self.error = error
        self.not_finite_as_null = not_finite_as_null
        self.lines: dict[tuple[str, ...], int] = {}
        self.n_values = 0

    def refuse(self, message: str, mark: Any) -> BeatSightError:
        """The error, with its line."""
        return self.error(message, code="bad-config", where=f"{self.shown}:{mark.line + 1}" if mark else self.shown)

    def check_events(self, text: str) -> None:
        """Depth and aliases, from the flat list of events: a bomb is refused before its tree exists."""
        depth = n_aliases = 0
        for event in yaml.parse(text, Loader=LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            n_aliases += isinstance(event, yaml.AliasEvent)
            if depth > MAX_DEPTH:
                raise self.refuse(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
            if n_aliases > MAX_ALIASES:
                raise self.refuse(f"more than {MAX_ALIASES} aliases", event.start_mark)

    def walk(self, node: yaml.Node, place: tuple[str, ...]) -> None:
        """Lines of all values; repeated keys, endless aliases and, in our own files, numbers that are not finite are refused."""
        self.lines.setdefault(place, node.start_mark.line + 1)
        self.n_values += 1
        if len(place) > MAX_DEPTH:
            raise self.refuse(f"nested deeper than {MAX_DEPTH} levels", node.start_mark)
        if self.n_values > MAX_VALUES:
            raise self.refuse(f"more than {MAX_VALUES:,} values after following its aliases", node.start_mark)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                if name in seen:
                    raise self.refuse(f"key {name[:80]!r} occurs twice", key.start_mark)
                seen.add(name)
                self.lines.setdefault((*place, name), key.start_mark.line + 1)
                self.walk(value, (*place, name))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self.walk(value, (*place, str(i)))
        elif node.tag == "tag:yaml.org,2002:float" and not _is_finite(node.value):
            if not self.not_finite_as_null:
                raise self.refuse(f"{node.value[:40]} is not a finite number", node.start_mark)
            node.tag, node.value = "tag:yaml.org,2002:null", ""


def _is_finite(text: str) -> bool:
    """False for .inf and .nan and for what overflows; sexagesimal numbers (1:30.5) are finite."""
    try:
        return math.isfinite(float(text.replace("_", "")))
    except ValueError:
        return text.lower().lstrip("+-") not in (".inf", ".nan")
