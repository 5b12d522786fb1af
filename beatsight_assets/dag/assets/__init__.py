"""The assets: each is one call of one stage. What an asset decides stands in its stage; what must hold stands in `checks.table`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import beatsight_assets

OWNERS = {"data": "team:data", "model": "team:model"}
VERSION_LINE = re.compile(r'^VERSION = "(.+)"', re.MULTILINE)


def version_of(module: str) -> str:
    """VERSION of a domain module, read as text: a code server that only shows the graph need not import what does the work."""
    base = Path(beatsight_assets.__file__).parent / module.replace(".", "/")
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    found = VERSION_LINE.search(path.read_text(encoding="utf-8"))
    if found is None:
        raise LookupError(f"{path.name} has no VERSION; an asset needs one")
    return found[1]


def labels(group: str, module: str, *kinds: str, owner: str = "data", heavy: bool = False, pool: str | None = None) -> Mapping[str, Any]:
    """What every asset states about itself: group, kinds, owner, cost, code version, pool."""
    return {
        "group_name": group,
        "kinds": set(kinds),
        "owners": [OWNERS[owner]],
        "tags": {"beatsight/cost": "heavy" if heavy else "cheap"},
        "code_version": version_of(module),
        "pool": pool,
    }
