"""What a gate decided, about what, and by which limits: one object for files, `--json`, Dagster and promotion.

Belongs here: the form of verdicts and the comparison rules of `spec/gates.md` section 0. Does not belong here: any gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from beatsight_assets import store

SCHEMA = "beatsight.verdict/1"
SLACK = 1e-9  # a value this close to its limit counts as equal to it (spec/gates.md section 0.5)


@dataclass(frozen=True)
class Artifact:
    """A file that was read or written: role, path below the data root, sha256, rows if it is a table."""

    role: str
    path: str
    sha256: str
    rows: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "path": self.path, "sha256": self.sha256, "rows": self.rows}


@dataclass(frozen=True)
class Rule:
    """One limit and how the value stood against it. `waived` rules count as passed and say why in `detail`."""

    name: str
    passed: bool
    value: float | None
    limit: float | str | None
    detail: str = ""
    blocking: bool = True
    waived: bool = False

    @classmethod
    def at_least(cls, name: str, value: float | None, limit: float, detail: str = "", *, blocking: bool = True) -> Rule:
        """Passes when value >= limit (equal within 1e-9); a missing value fails."""
        return cls(name, value is not None and value >= limit - SLACK, value, limit, detail or f"at least {limit:g}", blocking)

    @classmethod
    def above(cls, name: str, value: float | None, limit: float, detail: str = "", *, blocking: bool = True) -> Rule:
        """Passes when value > limit; equal within 1e-9 fails."""
        return cls(name, value is not None and value > limit + SLACK, value, limit, detail or f"above {limit:g}", blocking)

    @classmethod
    def at_most(cls, name: str, value: float | None, limit: float, detail: str = "", *, blocking: bool = True) -> Rule:
        """Passes when value <= limit (equal within 1e-9); a missing value fails."""
        return cls(name, value is not None and value <= limit + SLACK, value, limit, detail or f"at most {limit:g}", blocking)

    @classmethod
    def waive(cls, name: str, reason: str, value: float | None = None) -> Rule:
        """A rule that a section of the spec lets pass unjudged, on record."""
        return cls(name, True, value, None, f"waived: {reason}", True, True)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "passed": self.passed,
            "value": finite(self.value),
            "limit": self.limit,
            "detail": self.detail,
            "blocking": self.blocking,
            "waived": self.waived,
        }


@dataclass(frozen=True)
class Reason:
    """Why a verdict is not a pass: a kebab-case code, a sentence, a place."""

    code: str
    message: str
    where: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "where": self.where}


@dataclass(frozen=True)
class Verdict:
    """A gate's result about named digests. Nothing to judge (no rules) is a fail."""

    gate: str
    rules: tuple[Rule, ...]
    inputs: tuple[Artifact, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    support: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "dev"

    @property
    def waived(self) -> bool:
        """Every rule was waived."""
        return bool(self.rules) and all(r.waived for r in self.rules) and not self.reasons

    @property
    def passed(self) -> bool:
        """All blocking rules hold, no reason against it, and there was something to judge."""
        return bool(self.rules) and not self.reasons and all(r.passed for r in self.rules if r.blocking)

    @property
    def status(self) -> str:
        return "waived" if self.waived else "pass" if self.passed else "fail"

    def rule(self, name: str) -> Rule | None:
        """The rule of that name."""
        return next((r for r in self.rules if r.name == name), None)

    def family(self, name: str) -> list[Rule]:
        """Rules of a family: `min_counts` finds `min_counts[kick]`."""
        return [r for r in self.rules if r.name == name or r.name.startswith(f"{name}[")]

    @property
    def failures(self) -> list[str]:
        """One sentence per failed blocking rule and per reason."""
        bad = [f"{r.name}: {shown(r.value)}, limit {shown(r.limit)}. {r.detail}" for r in self.rules if r.blocking and not r.passed]
        return bad + [f"{r.code}: {r.message}" for r in self.reasons] + ([] if self.rules or self.reasons else ["nothing-to-judge"])

    def to_json(self) -> dict[str, Any]:
        """The form of `spec/gates.md` section 0; equal inputs give equal JSON (no clock)."""
        reasons = self.reasons or (() if self.rules else (Reason("nothing-to-judge", "no rule had anything to judge"),))
        return {
            "schema": SCHEMA,
            "gate": self.gate,
            "status": self.status,
            "passed": self.passed,
            "inputs": [a.to_json() for a in self.inputs],
            "figures": {k: finite(v) for k, v in self.figures.items()},
            "limits": dict(self.limits),
            "rules": [r.to_json() for r in self.rules],
            "reasons": [r.to_json() for r in reasons],
            "support": dict(self.support),
            "profile": self.profile,
            "version": 1,
        }

    @property
    def digest(self) -> str:
        return sha256(store.to_json_bytes(self.to_json())).hexdigest()

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Verdict:
        """Inverse of `to_json`; `passed` is computed again, never believed."""
        return cls(
            gate=obj["gate"],
            rules=tuple(Rule(**r) for r in obj["rules"]),
            inputs=tuple(Artifact(**a) for a in obj["inputs"]),
            figures=obj["figures"],
            limits=obj["limits"],
            reasons=tuple(Reason(**r) for r in obj["reasons"]),
            support=obj["support"],
            profile=obj["profile"],
        )


@dataclass(frozen=True)
class Problem:
    """A malformed input row: where it is and what is wrong. Any problem makes the command exit 3."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.message}"


def finite(value: Any) -> Any:
    """A figure as JSON may hold it: an undefined number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: float | str | None) -> str:
    """A figure as people read it."""
    return "none" if value is None else value if isinstance(value, str) else f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def failures_of(verdicts: Sequence[Verdict]) -> list[str]:
    """Every failure of several verdicts, with the gate's name in front."""
    return [f"{v.gate}/{text}" for v in verdicts for text in v.failures if not v.passed]
