"""The parts of torchaudio that need no native library: transforms and functional, imported here and nowhere else.

Belongs here: how torchaudio is imported. Does not belong here: what is done with it (`model.data` masks spectrograms, a test compares ours).

The wheel of the registry is linked to CUDA and does not load beside a CPU build of torch. Its transforms are torch code that asks
`torchaudio._extension` only whether the native library is there, so where that module fails another one answers no.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any, NoReturn

NATIVE = "torchaudio._extension"


@lru_cache(maxsize=1)
def torchaudio() -> ModuleType | None:
    """The package torchaudio, None where it is not installed or cannot be imported. Nothing may depend on which of the two it is."""
    if importlib.util.find_spec("torchaudio") is None:
        return None
    try:
        return importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):  # built for another torch
        sys.modules[NATIVE] = _stand_in()
    try:
        return importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError, AttributeError):
        del sys.modules[NATIVE]
        return None


def _stand_in() -> ModuleType:
    """What `torchaudio._extension` says where there is no native library."""
    module = ModuleType(NATIVE)
    vars(module).update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=_refused)
    return module


def _refused(function: Any) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{function.__name__} needs torchaudio's native library, which does not load beside this torch")

    return refuse
