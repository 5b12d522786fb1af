"""`python -m beatsight_assets_tests.regen NAME …`: write goldens again. Nothing else writes them; look at the difference before it is kept."""

from __future__ import annotations

import importlib
import sys

GOLDENS = {"graph": "beatsight_assets_tests.dag.graph"}  # name -> module with regenerate() -> paths


def main(names: list[str]) -> int:
    """Regenerate the goldens named."""
    unknown = [n for n in names if n not in GOLDENS]
    if unknown or not names:
        print(f"usage: python -m beatsight_assets_tests.regen {{{','.join(GOLDENS)}}} …", file=sys.stderr)
        return 2
    for name in names:
        for path in importlib.import_module(GOLDENS[name]).regenerate():
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
