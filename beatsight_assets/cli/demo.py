"""What `beatsight demo` prints at its end: what was built, every gate, the planted faults, what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from beatsight_assets.settings import Settings
from beatsight_assets.verdict import shown

if TYPE_CHECKING:
    from beatsight_assets.dag.demo import DemoSummary
    from beatsight_assets.stages import Report

SHOWN_GATES = ("evaluation", "boundary", "openset", "bootstrap", "calibration", "health", "splits")


def text_of(settings: Settings, summary: DemoSummary) -> str:
    """The closing words, from the receipts alone."""
    reports = summary.reports
    n_reused = sum(r.reused for r in reports.values())
    lines = [""]
    colour = "green" if summary.passed else "RED"
    lines.append(f"The demo is {colour}: {len(reports)} stages, {summary.n_checks} checks, {summary.seconds:.0f} s.")
    if n_reused:
        lines.append(f"Nothing had changed for {n_reused} of {len(reports)} stages; what they had made was kept.")
    lines += ["", "Built", *_built(reports), "", "Gates                              value       limit", *_gates(reports)]
    lines += ["", "Planted faults", *_faults(reports)]
    lines += [f"  warning  {text}" for text in summary.warnings]
    if summary.failures:
        lines += ["", "Not green", *(f"  {text}" for text in summary.failures)]
    lines += ["", "Next", *_next(settings, reports)]
    return "\n".join(lines)


def _built(reports: dict[str, Report]) -> list[str]:
    lines = []
    render, events, evaluation = reports.get("rendered_audio"), reports.get("events"), reports.get("evaluation")
    if render:
        lines.append(
            f"  {render.figures['takes']} takes, {render.figures['minutes']:.1f} minutes of audio on {render.figures['kits']} synthesised kits"
        )
    if events:
        lines.append(f"  {events.figures['events']:,} events, {events.figures['hits']:,} hits, {len(events.facts['labels'])} components")
    if candidate := reports.get("candidate_model"):
        lines.append(
            f"  model of {candidate.figures['parameters']:,} parameters, trained on {candidate.figures['train_minutes']:.1f} minutes"
        )
    if evaluation:
        f = evaluation.figures
        lines.append(
            f"  pooled F {f['pooled_f1']:.3f} over 18 classes, {f['pooled_f1_drums5']:.3f} over 5, at 50 ms, on held-out takes of unseen kits"
        )
        lines.append("  (synthesised audio: it shows that the path works, not how good the model is on records; see docs/real_audio.md)")
    if promoted := reports.get("promoted_model"):
        lines.append(f"  promoted as {promoted.facts['release']}")
    if bundle := reports.get("bundle"):
        lines.append(f"  bundle training: {bundle.figures['written_clips']:,} clips for models that classify single hits")
    return lines


def _gates(reports: dict[str, Report]) -> list[str]:
    lines = []
    for report in reports.values():
        for verdict in report.verdicts:
            if verdict.gate not in SHOWN_GATES:
                continue
            rules = [r for r in verdict.rules if r.blocking and not r.waived and "[" not in r.name] or [
                r for r in verdict.rules if not r.passed
            ][:3]
            hidden = [r for r in verdict.rules if r not in rules and r.blocking and not r.waived]
            for rule in rules:
                lines.append(
                    f"  {'ok  ' if rule.passed else 'FAIL'} {verdict.gate + '/' + rule.name:<26} {shown(rule.value):>7}  {shown(rule.limit):>10}"
                )
            if hidden:
                bad = [r.name for r in hidden if not r.passed]
                lines.append(
                    f"  {'FAIL' if bad else 'ok  '} {verdict.gate}: {len(hidden)} rules by class or split"
                    + (f", red: {', '.join(bad[:4])}" if bad else "")
                )
            lines += [f"  note {verdict.gate}/{r.name} {r.detail}" for r in verdict.rules if r.waived][:1]
    return lines


def _faults(reports: dict[str, Report]) -> list[str]:
    lines = []
    if events := reports.get("events"):
        codes = ", ".join(f"{code} {n}" for code, n in events.facts["codes"].items())
        lines.append(f"  damaged file           {events.figures['rejected']} quarantine row ({codes})")
    if splits := reports.get("splits"):
        joined = "; ".join(f"{' + '.join(found['groups'])} -> {found['split']}" for found in splits.facts["joined"])
        lines.append(
            f"  duplicate take         joined to its twin before splitting: {joined}" if joined else "  duplicate take         NOT FOUND"
        )
        lines.append(f"  conflicting hints      split_conflict {splits.figures['split_conflict']}, the most protected split won")
    return lines


def _next(settings: Settings, reports: dict[str, Report]) -> list[str]:
    root = settings.layout.root
    lines = [f"  look      {settings.layout.report('health', 'annotated_health.html')}"]
    if transcriptions := reports.get("transcriptions"):
        folders = sorted({str(Path(a.path).parent) for a in transcriptions.outputs})
        lines += [
            f"  listen    {root / folder} (transcription of a take on an unseen kit: .bsm, MIDI, label track)" for folder in folders[:1]
        ]
    where = f"--data-root {shlex.quote(str(root))} --profile {settings.profile}"
    return [
        *lines,
        f"  open      beatsight {where} dev          (Dagster UI: lineage, checks, plots)",
        f"  refused   beatsight {where} quarantine list",
        f"  your song beatsight {where} transcribe run --input SONG.wav --output song.bsm",
        "            (this model has heard synthesised drums only: on records trust its onsets, not its classes)",
        f"  real data put Groove MIDI into raw/groove_midi, then: beatsight {where} source ingest groove",
    ]
