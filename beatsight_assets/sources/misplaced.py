"""What to tell somebody whose dataset is not where it was looked for: one folder too high, one too low, another folder.

Belongs here: words for an error. Does not belong here: reading a dataset from anywhere but its root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from beatsight_assets.errors import BeatSightError
from beatsight_assets.sources.trees import Tree
from beatsight_assets.sources.types import Recording, Rejected, Skipped, SourceModule

MAX_TRIED = 50  # folders; each is scanned


def advice(module: SourceModule, tree: Tree, options: Mapping[str, Any]) -> str:
    """Where it was looked, what the module's docstring says lies there, and the folder that looks like it."""
    layout = re.search(r"^Layout\s+(.*?)(?=^\S|\Z)", module.__doc__ or "", re.DOTALL | re.MULTILINE)
    found = better_root(module, tree, options)
    texts = [
        f"Looked in {tree.root}",
        f", where it should be: {' '.join(layout[1].split())}" if layout else "",
        f". {found} looks like it: give --root, or set `roots` in configs/datasets.yaml to that folder" if found else "",
    ]
    return "".join(texts)


def better_root(module: SourceModule, tree: Tree, options: Mapping[str, Any]) -> Path | None:
    """The first folder one or two levels below a root in which the module finds recordings, else the parent if it holds the module's table."""
    folders = {"/".join(parts[:n]) for rel in tree.files if (parts := rel.split("/")[:-1]) for n in (1, 2)}
    for folder in sorted(folders, key=lambda f: (f.count("/"), f))[:MAX_TRIED]:
        with suppress(BeatSightError, OSError):
            if any(isinstance(one, Recording) or _is_listed(one) for one in module.scan(tree.root / folder, options)):
                return tree.root / folder
    above = tree.root.parent  # not scanned: it may be a whole disk
    return above if any(next(above.glob(table), None) for table in module.SOURCE.tables) else None


def _is_listed(one: Rejected | Skipped) -> bool:
    """A table speaks of it: this is the root, although the file is absent."""
    return isinstance(one, Rejected) and one.is_absent
