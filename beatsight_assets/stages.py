"""A stage turns tables into tables or files, and leaves a receipt: what it made, from what, and what its gates said.

The receipt is what everything else rests on: unchanged work is skipped, Dagster's checks and the command line read their verdicts
from it, and promotion follows its digests from the model back to the raw events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from beatsight_assets import store
from beatsight_assets.errors import InputError
from beatsight_assets.settings import Settings
from beatsight_assets.verdict import Artifact, Verdict

SCHEMA = "beatsight.receipt/1"
# Stages that judge what they made; a receipt of one of them without a verdict breaks the chain.
STAGES_WITH_GATES = ("raw_integrity", "events", "provenance_audit", "annotation_alignment", "merged_manifest", "annotated_manifest", "splits", "manifest_health", "health_diff", "sampling_weights",
                     "recording_features", "feature_index", "bundle_plan", "bundle", "bundle_digests", "interchange", "baseline_model", "candidate_model", "evaluation", "readiness")  # fmt: skip

# Stages whose verdict depends on configs/gates: other limits, or another profile, make their receipts stale.
JUDGED_BY_LIMITS = ("annotation_alignment", "merged_manifest", "annotated_manifest", "splits", "manifest_health", "evaluation", "readiness")

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress that nobody reads."""


@dataclass(frozen=True)
class Table:
    """A small table for people: at most a few dozen rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "rows": [list(r) for r in self.rows]}


@dataclass(frozen=True)
class Outcome:
    """What a stage's work hands back: files already published, figures for plots, facts for the report, verdicts, a table."""

    outputs: Sequence[tuple[str, Path, int | None]]
    figures: Mapping[str, float | int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Sequence[Verdict] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Report:
    """One stage's result with three faces: Dagster metadata, `--json`, and the receipt file."""

    stage: str
    partition: str | None
    version: str
    options: Mapping[str, Any]
    outputs: tuple[Artifact, ...]
    parents: tuple[Artifact, ...]
    figures: Mapping[str, float | int]
    facts: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    table: Table | None
    reused: bool = False

    @property
    def digest(self) -> str:
        """sha256 over what was made: equal products have equal digests, whenever and wherever they were made."""
        return sha256(store.to_json_bytes([a.to_json() for a in self.outputs])).hexdigest()

    @property
    def passed(self) -> bool:
        return all(v.passed for v in self.verdicts)

    def output(self, role: str) -> Artifact:
        """The output of that role."""
        for artifact in self.outputs:
            if artifact.role == role:
                return artifact
        raise KeyError(role)

    def verdict(self, gate: str) -> Verdict | None:
        """The verdict of that gate."""
        return next((v for v in self.verdicts if v.gate == gate), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "stage": self.stage,
            "partition": self.partition,
            "version": self.version,
            "options": dict(self.options),
            "outputs": [a.to_json() for a in self.outputs],
            "parents": [a.to_json() for a in self.parents],
            "figures": dict(self.figures),
            "facts": dict(self.facts),
            "verdicts": [v.to_json() for v in self.verdicts],
            "table": self.table.to_json() if self.table else None,
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any], *, reused: bool = False) -> Report:
        table = obj["table"]
        return cls(
            stage=obj["stage"],
            partition=obj["partition"],
            version=obj["version"],
            options=obj["options"],
            outputs=tuple(Artifact(**a) for a in obj["outputs"]),
            parents=tuple(Artifact(**a) for a in obj["parents"]),
            figures=obj["figures"],
            facts=obj["facts"],
            verdicts=tuple(Verdict.from_json(v) for v in obj["verdicts"]),
            table=Table(tuple(table["columns"]), tuple(tuple(r) for r in table["rows"])) if table else None,
            reused=reused,
        )


def receipt_path(settings: Settings, stage: str, partition: str | None = None) -> Path:
    """receipts/<stage>.json or receipts/<stage>/<partition>.json."""
    return settings.layout.receipt(stage, partition)


def read_receipt(settings: Settings, stage: str, partition: str | None = None) -> Report | None:
    """Receipt of the last finished run of a stage, or None. Files may have changed since: see `is_intact`."""
    path = receipt_path(settings, stage, partition)
    if not path.exists():
        return None
    obj = store.read_json(path)
    try:
        if obj["schema"] != SCHEMA:
            raise KeyError(obj["schema"])
        return Report.from_json(obj)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"receipt was written by another version ({error!r}). Run the stage again",
            code="bad-receipt",
            where=settings.layout.rel(path),
        ) from error


def limits_digest(settings: Settings) -> str:
    """Digest of the profile's name and all its limits, as `options.gate_limits` of the stages that judge by them."""
    return sha256(store.to_json_bytes([settings.profile, settings.gates.model_dump(mode="json")])).hexdigest()


def digest_of(settings: Settings, path: Path) -> str | None:
    """Digest of a file below the data root, None when it is absent."""
    return settings.store.sha256(path) if path.is_file() else None


def changed_outputs(settings: Settings, report: Report, *, fresh: bool = False) -> list[Artifact]:
    """Outputs that are absent or no longer have the digest that the receipt names. `fresh` reads every byte: bit rot keeps size and mtime."""
    changed = []
    for artifact in report.outputs:
        path = settings.layout.root / artifact.path
        if not path.is_file() or settings.store.sha256(path, fresh=fresh) != artifact.sha256:
            changed.append(artifact)
    return changed


def is_intact(settings: Settings, report: Report, *, fresh: bool = False) -> bool:
    """Every output still has the digest that the receipt names (see `changed_outputs`)."""
    return not changed_outputs(settings, report, fresh=fresh)


def _as_json(obj: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back: tuples are lists, so that a receipt can be compared."""
    read: dict[str, Any] = json.loads(store.to_json_bytes(dict(obj)))
    return read


def run_stage(
    settings: Settings,
    stage: str,
    *,
    version: str,
    options: Mapping[str, Any],
    parents: Sequence[tuple[str, Path]],
    work: Callable[[], Outcome],
    partition: str | None = None,
) -> Report:
    """Do `work`, unless its receipt says that the same version did it with the same options on the same inputs and nothing changed since.

    Raises
    ------
    InputError `missing-input` : a parent file does not exist; `changed-while-reading` : a parent was replaced while `work` ran
    Busy : another process runs this stage
    """
    if stage in JUDGED_BY_LIMITS:
        options = {**options, "gate_limits": limits_digest(settings)}
    artifacts = _digest_parents(settings, parents)
    wanted = _as_json(options)
    target = receipt_path(settings, stage, partition)
    with settings.store.lock(settings.layout.receipts / "locks" / (stage if partition is None else f"{stage}.{partition}"), stage):
        try:
            known = read_receipt(settings, stage, partition)
        except InputError:
            known = None
        if (
            known is not None
            and (known.version, known.options, known.parents) == (version, wanted, artifacts)
            and is_intact(settings, known)
        ):
            return Report.from_json(known.to_json(), reused=True)
        store.failpoint(f"{stage}.begin")
        outcome = work()
        store.failpoint(f"{stage}.made")
        written = {path for _, path, _ in outcome.outputs}  # a table that replaces its own input changed it on purpose
        kept = [(n, parent) for n, parent in enumerate(parents) if parent[1] not in written]
        if _digest_parents(settings, [parent for _, parent in kept]) != tuple(artifacts[n] for n, _ in kept):
            raise InputError("a file that this step reads was replaced meanwhile. Run it again", code="changed-while-reading", where=stage)
        report = Report(
            stage=stage,
            partition=partition,
            version=version,
            options=wanted,
            outputs=tuple(_artifact(settings, role, path, rows) for role, path, rows in outcome.outputs),
            parents=artifacts,
            figures=dict(outcome.figures),
            facts=dict(outcome.facts),
            verdicts=tuple(outcome.verdicts),
            table=outcome.table,
        )
        settings.store.publish_json(target, report.to_json())
        store.failpoint(f"{stage}.end")
        return report


@dataclass(frozen=True)
class Link:
    """One step of the digest chain: a stage, and what is wrong with it (empty when nothing is)."""

    stage: str
    partition: str | None
    sha256: str
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.stage if self.partition is None else f"{self.stage}[{self.partition}]"


def _limit_problems(settings: Settings, report: Report) -> list[str]:
    """Verdicts by the limits of another profile, or by limits that configs/gates no longer holds, are no verdicts."""
    if report.stage not in JUDGED_BY_LIMITS:
        return []
    others = sorted({v.profile for v in report.verdicts} - {settings.profile})
    if others:
        return [f"stale-limits: it was judged by the limits of {others[0]}, this is {settings.profile}. Run {report.stage} again"]
    if report.options.get("gate_limits") != limits_digest(settings):
        return [f"stale-limits: it was judged by other limits than configs/gates holds now. Run {report.stage} again"]
    return []


def all_receipts(settings: Settings) -> list[Report]:
    """Every receipt of the data root, in path order; files that no stage writes are passed over.

    Raises
    ------
    InputError `bad-receipt` : a receipt is damaged or of another version; names the file
    """
    found = []
    for path in sorted(settings.layout.receipts.rglob("*.json")):
        parts = path.relative_to(settings.layout.receipts).with_suffix("").parts
        if len(parts) > 2 or (parts[0] not in STAGES_WITH_GATES and not _looks_like_a_receipt(path)):
            continue
        report = read_receipt(settings, parts[0], parts[1] if len(parts) == 2 else None)
        if report is not None:
            found.append(report)
    return found


def _looks_like_a_receipt(path: Path) -> bool:
    try:
        found = store.read_json(path)
    except InputError:
        return False
    return isinstance(found, dict) and found.get("schema") == SCHEMA


def trace(settings: Settings, stages: Sequence[str]) -> list[Link]:
    """The digest chain from some stages back to the raw events: every receipt on the way, each with what breaks it.

    A link breaks when a file is no longer what its receipt says, when a receipt rests on a version of a file that is not the one
    at hand (stale), or when one of its verdicts is not a pass. Which stages a chain must hold is for the caller to say.
    """
    receipts = all_receipts(settings)
    made = {a.path: r for r in receipts for a in r.outputs}
    by_stage = {r.stage: r for r in receipts if r.partition is None}
    links: dict[tuple[str, str | None], Link] = {}
    waiting = [by_stage[s] for s in stages if s in by_stage]
    for name in stages:
        if name not in by_stage:
            links[(name, None)] = Link(name, None, "", (f"never-run: {name} has no receipt. Run it first",))
    while waiting:
        report = waiting.pop(0)
        key = (report.stage, report.partition)
        if key in links:
            continue
        problems = []
        for artifact in report.outputs:
            now = digest_of(settings, settings.layout.root / artifact.path)
            if now != artifact.sha256:
                problems.append(f"stale: {artifact.path} is {'absent' if now is None else 'not what this stage wrote'}")
        for parent in report.parents:
            now = digest_of(settings, settings.layout.root / parent.path)
            maker = made.get(parent.path)
            if now != parent.sha256:
                problems.append(f"stale: it read another version of {parent.path} than is there now. Run {report.stage} again")
            elif maker is not None:
                waiting.append(maker)
        if not report.verdicts and report.stage in STAGES_WITH_GATES:
            problems.append("nothing-to-judge: the receipt holds no verdict")
        problems += _limit_problems(settings, report)
        for verdict in report.verdicts:
            if not verdict.passed:
                problems += [f"failed: {verdict.gate}/{text}" for text in verdict.failures]
        links[key] = Link(report.stage, report.partition, report.digest, tuple(problems))
    return list(links.values())


def _artifact(settings: Settings, role: str, path: Path, rows: int | None) -> Artifact:
    return Artifact(role, settings.store.rel(path), settings.store.sha256(path), rows)


def _digest_parents(settings: Settings, parents: Sequence[tuple[str, Path]]) -> tuple[Artifact, ...]:
    artifacts = []
    for role, path in parents:
        digest = digest_of(settings, path)
        if digest is None:
            raise InputError("file does not exist. Run the step that writes it first", code="missing-input", where=settings.store.rel(path))
        artifacts.append(Artifact(role, settings.store.rel(path), digest))
    return tuple(artifacts)
