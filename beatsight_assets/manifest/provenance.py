"""Does every event of a manifest trace back to files, a licence and an importer (`spec/gates.md` section 4).

Belongs here: manifest against provenance. Does not belong here: writing provenance (`sources`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import store
from beatsight_assets.audio import find_audio
from beatsight_assets.errors import BeatSightError, InputError
from beatsight_assets.events import Manifest
from beatsight_assets.settings import Settings
from beatsight_assets.sources.types import AUDIO_SUFFIXES
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.verdict import Reason, Rule, Verdict

VERSION = "1"
STAGE = "provenance_audit"
COLUMNS = ("source_set", "session_id", "audio_path", "metadata_ref")  # of the manifest: all that is looked at
GATE = "provenance_audit"
# code of a problem -> what it means; each must be 0
MUST_BE_ZERO = {
    "sessions_without_provenance": "sessions of the manifest that no provenance row names",
    "metadata_ref_mismatches": "events whose metadata_ref is not their session's",
    "audio_paths_not_in_provenance": "sessions whose audio was there and is not among their files",
    "licence_missing": "sessions without a licence",
    "digest_mismatches": "files that are not what was ingested",
    "malformed_provenance": "provenance rows that cannot be read",
    "unknown_sources": "datasets that configs/datasets.yaml does not know",
}
NEEDED = ("session_id", "license_ref", "sample_paths", "hashes", "facts")
SHOWN = 20


@dataclass(frozen=True)
class AuditOptions:
    """`manifest`: merged, annotated, or a file; `baseline`: JSON list of known problems {source_set, session_id, code}."""

    manifest: str = "merged"
    baseline: Path | None = None
    recompute: bool = False


@dataclass(frozen=True)
class Audit:
    """Figures per dataset, and each problem as (dataset, session, code)."""

    sources: Mapping[str, Mapping[str, int]]
    problems: frozenset[tuple[str, str, str]] = field(default_factory=frozenset)


def audit(frame: pl.DataFrame, provenance: Mapping[str, pl.DataFrame | None], settings: Settings, *, recompute: bool = False) -> Audit:
    """Compare a manifest with the provenance tables of its datasets; None stands for a table that is absent or malformed."""
    sources: dict[str, dict[str, int]] = {}
    problems: set[tuple[str, str, str]] = set()
    sessions = frame.group_by("source_set", "session_id").agg(
        pl.len().alias("events"),
        pl.col("audio_path").first(),
        (pl.col("metadata_ref") != pl.lit("provenance:") + pl.col("session_id")).fill_null(True).sum().alias("wrong_refs"),
    )
    for source_set in sorted(sessions["source_set"].unique()):
        ours = sessions.filter(pl.col("source_set") == source_set).sort("session_id")
        if source_set not in settings.datasets:
            problems.add((source_set, "", "unknown_sources"))
        table = provenance.get(source_set)
        rows = {r["session_id"]: r for r in table.select(NEEDED).iter_rows(named=True)} if table is not None else {}
        found: list[tuple[str, str]] = []
        for session, audio, wrong in ours.select("session_id", "audio_path", "wrong_refs").iter_rows():
            found += [(session, "metadata_ref_mismatches")] * bool(wrong)
            if session not in rows:
                found.append((session, "sessions_without_provenance"))
            else:
                found += [(session, code) for code in _problems_of(rows[session], audio, settings, source_set, recompute)]
        problems |= {(source_set, session, code) for session, code in found}
        counts = Counter(code for _, code in found)
        known = set(ours["session_id"])
        sources[source_set] = {
            "event_count": int(ours["events"].sum()),
            "unique_sessions": ours.height,
            **{code: counts[code] for code in MUST_BE_ZERO if code != "unknown_sources"},
            "metadata_ref_mismatches": int(ours["wrong_refs"].sum()),
            "unreferenced_provenance_sessions": sum(s not in known for s in rows),
            "provenance_sessions": len(rows),
        }
    return Audit(sources, frozenset(problems))


def _problems_of(row: Mapping[str, Any], audio: str | None, settings: Settings, source_set: str, recompute: bool) -> list[str]:
    try:
        facts = json.loads(row["facts"])
        files = list(row["sample_paths"])
        is_present = bool(facts.get("audio_present"))
    except (TypeError, ValueError, AttributeError):
        return ["malformed_provenance"]
    found = []
    if audio is not None and is_present and audio not in files:
        found.append("audio_paths_not_in_provenance")
    if not row["license_ref"]:
        found.append("licence_missing")
    if recompute and source_set in settings.datasets and not _is_unchanged(row["hashes"], settings, source_set):
        found.append("digest_mismatches")
    return found


def _is_unchanged(hashes: Sequence[Mapping[str, Any]], settings: Settings, source_set: str) -> bool:
    """Every file of a session still has the digest that was noted; audio is looked up below all roots."""
    roots = settings.raw_roots(source_set)
    for one in hashes:
        if one["sha256"] is None:
            continue
        try:
            is_audio = one["path"].lower().endswith(AUDIO_SUFFIXES)
            path = (
                find_audio(roots, one["path"]) if is_audio else next((r / one["path"] for r in roots if (r / one["path"]).is_file()), None)
            )
            if path is None or settings.store.sha256(path, fresh=True) != one["sha256"]:
                return False
        except BeatSightError:
            return False
    return True


def read_baseline(path: Path | None) -> frozenset[tuple[str, str, str]]:
    """Known problems.

    Raises
    ------
    InputError `missing-input`, `bad-metadata` : not a list of {source_set, session_id, code}
    """
    if path is None:
        return frozenset()
    rows = store.read_json(path)
    try:
        known = frozenset((str(r["source_set"]), str(r["session_id"]), str(r["code"])) for r in rows)
        wrong = next((code for _, _, code in known if code not in MUST_BE_ZERO), None)
    except (TypeError, KeyError) as error:
        raise InputError("a baseline is a list of {source_set, session_id, code}", code="bad-metadata", where=str(path)) from error
    if wrong is not None:
        raise InputError(f"{wrong!r} is no code of a problem; known: {', '.join(MUST_BE_ZERO)}", code="bad-metadata", where=str(path))
    return known


def read_provenance(settings: Settings, source_set: str) -> pl.DataFrame | None:
    """Provenance of a dataset, None when there is none.

    Raises
    ------
    InputError `malformed-provenance`
    """
    path = settings.layout.provenance(source_set)
    if not path.is_file():
        return None
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"not a readable table: {error}", code="malformed-provenance", where=settings.layout.rel(path)) from error
    absent = [c for c in NEEDED if c not in frame.columns]
    if absent:
        raise InputError(f"column {absent[0]} is missing", code="malformed-provenance", where=settings.layout.rel(path))
    return frame


def run(settings: Settings, options: AuditOptions = AuditOptions(), *, progress: Progress = silent) -> Report:
    """Judge where the events of a manifest come from.

    Raises
    ------
    InputError `missing-input` : no manifest; `malformed-provenance`, `bad-metadata`
    """
    layout = settings.layout
    manifest = {"merged": layout.merged, "annotated": layout.annotated}.get(options.manifest) or Path(options.manifest)
    frame = Manifest(manifest).read(columns=COLUMNS)
    names = sorted(frame["source_set"].unique())
    known = [n for n in names if n in settings.datasets]
    tables = [("provenance", layout.provenance(n)) for n in known if layout.provenance(n).is_file()]
    baseline = read_baseline(options.baseline)
    progress(f"provenance of {len(names)} datasets")
    found = audit(frame, {n: read_provenance(settings, n) for n in known}, settings, recompute=options.recompute)

    def work() -> Outcome:
        verdict = judge(found, baseline, settings.profile)
        report: dict[str, Any] = {
            "sources": {k: dict(v) for k, v in found.sources.items()},
            "problems": [dict(zip(("source_set", "session_id", "code"), p, strict=True)) for p in sorted(found.problems - baseline)][
                :1_000
            ],
            "known": len(found.problems & baseline),
            "vanished": [dict(zip(("source_set", "session_id", "code"), p, strict=True)) for p in sorted(baseline - found.problems)],
        }
        path = settings.store.publish_json(layout.report("provenance", "audit.json"), report).path
        total = Counter(code for _, _, code in found.problems)
        return Outcome(
            outputs=[("report", path, None)],
            figures={"events": frame.height, "sources": len(names), "problems": sum(total.values()), "vanished": len(report["vanished"])},
            facts={"sources": report["sources"]},
            verdicts=[verdict],
            table=Table(
                ("dataset", "events", "sessions", "problems"),
                tuple(
                    (k, v["event_count"], v["unique_sessions"], sum(p[0] == k for p in found.problems)) for k, v in found.sources.items()
                ),
            ),
        )

    seen = sorted(found.problems) if options.recompute else []
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"manifest": options.manifest, "recompute": options.recompute, "baseline": sorted(baseline), "known": known, "seen": seen},
        parents=[("manifest", manifest), *tables],
        work=work,
    )


def judge(found: Audit, baseline: frozenset[tuple[str, str, str]], profile: str) -> Verdict:
    """Problems that the baseline does not know must not be there; one that vanished is reported."""
    new = found.problems - baseline
    rules = []
    for code, text in MUST_BE_ZERO.items():
        first = min((f"{s}/{session}" for s, session, c in new if c == code), default="")
        detail = text + (f"; first: {store.printable(first)}" if first else "")
        rules.append(Rule.at_most(code, float(sum(c == code for _, _, c in new)), 0.0, detail))
    unused = sum(v["unreferenced_provenance_sessions"] for v in found.sources.values())
    rules.append(
        Rule.at_most(
            "unreferenced_provenance_sessions", float(unused), 0.0, "provenance rows that no event of the manifest names", blocking=False
        )
    )
    n_rows = sum(v["provenance_sessions"] for v in found.sources.values())
    reasons = () if n_rows else (Reason("nothing-to-judge", "no dataset of the manifest has a provenance table"),)
    return Verdict(GATE, tuple(rules), reasons=reasons, profile=profile)


def to_markdown(report: Report) -> str:
    """The figures as a table for people."""
    sources: Mapping[str, Mapping[str, int]] = report.facts["sources"]
    columns = ("event_count", "unique_sessions", *(c for c in MUST_BE_ZERO if c != "unknown_sources"), "unreferenced_provenance_sessions")
    lines = ["| dataset | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {store.printable(name)} | " + " | ".join(f"{row[c]:,}" for c in columns) + " |" for name, row in sources.items()]
    return "\n".join(lines) + "\n"
