"""Errors a user can act on, and the exit code each of them means.

Belongs here: the root class and its five branches. Does not belong here: errors about one recording
(those are values, see `sources.Rejected`) and gate verdicts (see `verdict`).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BeatSightError(Exception):
    """Root of everything this package raises on purpose.

    `code` is kebab-case and stable, `where` names a file, line or option, the message says the rule,
    the value received and the next step.
    """

    exit_code = 3

    def __init__(self, message: str, *, code: str, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.where = where

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.code}: {self.message}{place}"

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (_rebuild, (type(self), self.message, self.code, self.where))


def _rebuild(kind: type[BeatSightError], message: str, code: str, where: str) -> BeatSightError:
    """Errors cross process boundaries; keyword-only arguments do not survive the default protocol."""
    return kind(message, code=code, where=where)


class ConfigError(BeatSightError):
    """Wrong usage, option or configuration. Exit code 2."""

    exit_code = 2

    @classmethod
    def unknown_choice(cls, what: str, value: str, choices: Iterable[str], *, where: str = "") -> ConfigError:
        names = sorted(set(choices))
        near = get_close_matches(value, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return cls(f"{what} is {value!r}; it must be one of {', '.join(names)}.{hint}", code="unknown-choice", where=where)

    @classmethod
    def missing_extra(cls, package: str, install: str) -> ConfigError:
        return cls(f"{package} is not installed. Install it with: {install}", code="missing-extra")


class InputError(BeatSightError):
    """Input that cannot be read or is malformed. Exit code 3."""


class StoreError(BeatSightError):
    """The disk refuses, or what lies on it is not what was written. Exit code 3."""


class Busy(BeatSightError):
    """Another process holds the target. Nothing was changed. Exit code 2."""

    exit_code = 2


class GateFailed(BeatSightError):
    """A gate is not green, or something a step needs is missing. Exit code 1."""

    exit_code = 1


class NothingToDo(GateFailed):
    """Zero rows in: never an empty artefact with exit code 0. Exit code 1."""
