"""Promotion: a candidate becomes the served model only when every verdict about it is green and about it.

Belongs here: the decision and the copy. Does not belong here: measuring anything (evaluation, readiness).
The Dagster asset and `beatsight model promote` call the same function, so both refuse for the same reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beatsight_assets import clock, store
from beatsight_assets.errors import ConfigError, GateFailed, InputError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Link, Outcome, Progress, Report, read_receipt, run_stage, silent, trace
from beatsight_assets.verdict import Artifact, Rule, Verdict

VERSION = "1"
STAGE = "promoted_model"
JUDGED_BY = ("evaluation", "readiness", "health_diff", "manifest_health")
MODEL_FILES = ("model.safetensors", "model.json")


@dataclass(frozen=True)
class PromoteOptions:
    """`release` names the folder below models/promoted; by default `<profile>-<first 8 of the model's sha256>`."""

    release: str | None = None


def run(settings: Settings, options: PromoteOptions | None = None, *, progress: Progress = silent) -> Report:
    """Publish the judged candidate as models/promoted/<release> and point CURRENT.json at it.

    Raises
    ------
    GateFailed `not-promotable` : a verdict is missing, red, stale or about something else; nothing is written
    InputError `digest-mismatch` : the candidate's bytes are not those that were judged
    ConfigError `release-exists` : the release name holds another model
    """
    options = options or PromoteOptions()
    candidate = read_receipt(settings, "candidate_model")
    if candidate is None:
        raise GateFailed("there is no candidate. Train one: beatsight model train", code="no-candidate")
    model = candidate.output("model")
    card = candidate.output("model_card")
    links = trace(settings, JUDGED_BY)
    problems = [f"{link.name}: {p}" for link in links for p in link.problems] + _missing_verdicts(settings, candidate)
    if problems:
        mismatch = settings.store.sha256(settings.layout.root / model.path) != model.sha256 if (settings.layout.root / model.path).is_file() else True
        if mismatch:
            raise InputError(f"{model.path} is not the file that was judged. Train and judge again", code="digest-mismatch", where=model.path)
        raise GateFailed(
            f"{len(problems)} reasons against promotion: " + "; ".join(problems[:8]) + ("; …" if len(problems) > 8 else ""), code="not-promotable"
        )
    release = options.release or f"{settings.profile}-{model.sha256[:8]}"
    store.contain(settings.layout.promoted, release)
    judged = [r.output(role) for r, role in _judged(settings)]
    parents = [("model", settings.layout.root / model.path), ("model_card", settings.layout.root / card.path)]
    parents += [(a.role, settings.layout.root / a.path) for a in judged]
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"release": release, "profile": settings.profile},
        parents=parents,
        work=lambda: _publish(settings, release, candidate, links, judged, progress),
    )


def previous_release(settings: Settings, candidate_sha256: str | None) -> Mapping[str, Any] | None:
    """CURRENT.json of the champion a candidate is compared with; None for a first release.

    A candidate that is itself the current model is compared with the release before it, so judging again changes nothing.
    """
    path = settings.layout.current_model
    if path.is_file():
        current: Mapping[str, Any] = store.read_json(path)
        if current["model_sha256"] != candidate_sha256:
            return current
        promotion = store.read_json(settings.layout.promoted / current["release"] / "promotion.json")
        previous: Mapping[str, Any] | None = promotion["previous"]
        return previous
    return None


def _judged(settings: Settings) -> list[tuple[Report, str]]:
    found = []
    for stage, role in (("evaluation", "evaluation"), ("readiness", "readiness"), ("health_diff", "health_diff")):
        report = read_receipt(settings, stage)
        if report is not None:
            found.append((report, role))
    return found


def _missing_verdicts(settings: Settings, candidate: Report) -> list[str]:
    """Required gates without a pass, and verdicts that judged another model than the candidate."""
    problems = []
    readiness, evaluation = read_receipt(settings, "readiness"), read_receipt(settings, "evaluation")
    for gate in settings.gates.required:
        verdict = readiness.verdict(gate) if readiness else None
        if verdict is None:
            problems.append(f"readiness: {gate} is required by profile {settings.profile} and has no verdict")
    weights = candidate.output("model").sha256
    for name, report in (("evaluation", evaluation), ("predictions", read_receipt(settings, "predictions"))):
        if report is not None and weights not in {a.sha256 for a in report.parents}:
            problems.append(f"{name}: stale-verdict, it judged another model than the candidate. Run it again")
    return problems


def _publish(
    settings: Settings, release: str, candidate: Report, links: list[Link], judged: list[Artifact], progress: Progress
) -> Outcome:
    folder = settings.layout.promoted / release
    source = settings.layout.root / candidate.output("model").path
    weights = source.read_bytes()
    card = (settings.layout.root / candidate.output("model_card").path).read_bytes()
    content = dict(zip(MODEL_FILES, (weights, card), strict=True))
    for name, expected in zip(MODEL_FILES, ("model", "model_card"), strict=True):
        path = folder / name
        if path.is_file() and settings.store.sha256(path) != candidate.output(expected).sha256:
            raise ConfigError(f"release {release} already holds another model. Choose another --release", code="release-exists")
    progress(f"promoting {candidate.facts.get('run')} as {release}")
    receipts = {name: settings.store.publish(folder / name, data) for name, data in content.items()}
    for name, expected in zip(MODEL_FILES, ("model", "model_card"), strict=True):
        if receipts[name].sha256 != candidate.output(expected).sha256:
            raise InputError(f"{name} changed while it was copied", code="digest-mismatch", where=name)
    previous = previous_release(settings, candidate.output("model").sha256)
    evaluation = read_receipt(settings, "evaluation")
    record = {
        "schema": "beatsight.promotion/1",
        "release": release,
        "family": candidate.facts.get("family", "frame"),
        "run": candidate.facts.get("run"),
        "model_sha256": candidate.output("model").sha256,
        "model_card_sha256": candidate.output("model_card").sha256,
        "profile": settings.profile,
        "chain": [{"stage": link.stage, "partition": link.partition, "sha256": link.sha256} for link in links],
        "verdicts": [a.to_json() for a in judged],
        "figures": dict(evaluation.figures) if evaluation else {},
        "waivers": _waivers(settings),
        "previous": dict(previous) if previous else None,
        "created_at": clock.utc_now().isoformat(),
        "version": 1,
    }
    known = folder / "promotion.json"
    if not known.is_file():
        settings.store.publish_json(known, record)
    settings.store.publish(folder / "MODEL_CARD.md", _card_text(record, candidate).encode())
    pointer = {"release": release, "family": record["family"], "model_sha256": record["model_sha256"], "model_card_sha256": record["model_card_sha256"]}
    _bless_health(settings, release)
    settings.store.publish_json(settings.layout.current_model, pointer)
    same = all(settings.store.sha256(folder / n) == candidate.output(r).sha256 for n, r in zip(MODEL_FILES, ("model", "model_card"), strict=True))
    verdict = Verdict(
        "promotion",
        (Rule("served_equals_judged", same, float(same), 1.0, "the promoted files are byte for byte those that were judged"),),
        inputs=(candidate.output("model"), *judged),
        profile=settings.profile,
    )
    layout = settings.layout
    return Outcome(
        outputs=[("model", folder / MODEL_FILES[0], None), ("model_card", folder / MODEL_FILES[1], None), ("promotion", known, None), ("current", layout.current_model, None)],
        figures={k: v for k, v in record["figures"].items() if isinstance(v, (int, float))},
        facts={"release": release, "run": record["run"], "family": record["family"], "waivers": record["waivers"], "chain": [link.name for link in links]},
        verdicts=(verdict,),
    )


def _waivers(settings: Settings) -> list[str]:
    found = []
    for stage in JUDGED_BY:
        report = read_receipt(settings, stage)
        for verdict in report.verdicts if report else ():
            found += [f"{verdict.gate}/{r.name}: {r.detail}" for r in verdict.rules if r.waived]
    return found


def _bless_health(settings: Settings, release: str) -> None:
    """The health report a release rests on is what the next one is compared with."""
    report = read_receipt(settings, "manifest_health")
    if report is not None:
        health = store.read_json(settings.layout.root / report.output("health").path)
        settings.store.publish_json(settings.layout.report("health", "baseline.json"), health | {"blessed_by": release})


def _card_text(record: Mapping[str, Any], candidate: Report) -> str:
    figures = "\n".join(f"| {k} | {v:.4g} |" for k, v in sorted(record["figures"].items()) if isinstance(v, (int, float)))
    waivers = "\n".join(f"- {w}" for w in record["waivers"]) or "- none"
    return f"""# {record["release"]}

Family {record["family"]}, run `{record["run"]}`, judged by the limits of profile `{record["profile"]}`.
Weights sha256 `{record["model_sha256"]}`.

| figure (held-out data: {candidate.facts.get("test_data", "test split")}) | value |
|---|---|
{figures}

Waived
{waivers}
"""
