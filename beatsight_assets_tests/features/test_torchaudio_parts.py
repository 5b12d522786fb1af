"""torchaudio is imported in one place, with or without its native library, and is never needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from beatsight_assets.features import torchaudio_parts
from beatsight_assets.features.torchaudio_parts import torchaudio

REPOSITORY = Path(__file__).parent.parent.parent
IMPORTS = re.compile(r"""^\s*(?:from|import)\s+torchaudio\b|(?:import_module|importorskip)\(["']torchaudio""", re.MULTILINE)


def test_only_one_module_imports_it() -> None:
    """Ruling 17: whoever wants it asks `torchaudio_parts`, so that the stand-in is always there first."""
    files = [p for folder in ("beatsight_assets", "beatsight_assets_tests", "benchmarks") for p in (REPOSITORY / folder).rglob("*.py")]
    assert {p.name for p in files if IMPORTS.search(p.read_text())} == {"torchaudio_parts.py"}


def test_absent_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed is an answer, not an error."""
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    torchaudio.cache_clear()
    try:
        assert torchaudio() is None
    finally:
        torchaudio.cache_clear()


def test_its_transforms_work_beside_this_torch() -> None:
    """Native library or stand-in: masks come out, and what needs the native library says so by name."""
    library = torchaudio()
    if library is None:
        pytest.skip("torchaudio is not installed, or its transforms cannot be imported")
    import torch

    assert library.transforms.FrequencyMasking(4)(torch.ones(1, 16, 3)).shape == (1, 16, 3)
    aligned = torchaudio_parts._stand_in().fail_if_no_align(library.functional.forced_align)
    with pytest.raises(RuntimeError, match="native library"):
        aligned()
