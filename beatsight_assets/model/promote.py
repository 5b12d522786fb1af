"""Promotion: a candidate becomes the served model only when every verdict about it is green and about it.

Belongs here: the decision and the copy. Does not belong here: measuring anything (evaluation, readiness).
The Dagster asset and `beatsight model promote` call the same function, so both refuse for the same reasons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from beatsight_assets import clock, store
from beatsight_assets.errors import ConfigError, GateFailed, InputError
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Link, Outcome, Progress, Report, digest_of, read_receipt, run_stage, silent, trace
from beatsight_assets.verdict import Artifact, Rule, Verdict

VERSION = "1"
STAGE = "promoted_model"
JUDGED_BY = ("evaluation", "readiness", "health_diff", "manifest_health")
MODEL_FILES = {"model.safetensors": "model", "model.json": "model_card"}  # file of a release -> role in the candidate's receipt
# Without a receipt of each of these the chain ends somewhere between the model and the raw data, and nobody can say what it rests on.
CHAIN = ("candidate_model", "recording_features", "splits", "annotated_manifest", "merged_manifest", "events", "predictions")


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
    ConfigError `release-exists` : the release name holds another model; `bad-option`, `path-escape` : it is no name
    """
    options = options or PromoteOptions()
    candidate = read_receipt(settings, "candidate_model")
    if candidate is None:
        raise GateFailed("there is no candidate. Train one: beatsight model train", code="no-candidate")
    release = options.release or f"{settings.profile}-{candidate.output('model').sha256[:8]}"
    folder = settings.layout.release(release)
    if (
        not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", release)
        or folder.parent != settings.layout.promoted
        or folder == settings.layout.current_model
    ):
        raise ConfigError(
            f"{release!r} is no release name: letters, digits, '.', '_' and '-'. Choose another --release",
            code="bad-option",
            where="--release",
        )
    links = trace(settings, JUDGED_BY)
    problems = [f"{link.name}: {p}" for link in links for p in link.problems if not _is_own_blessing(settings, release, link, p)]
    problems += _missing_verdicts(settings, candidate)
    problems.sort(key=lambda text: "not what this stage wrote" not in text)  # the cause before its consequences
    problems = problems or _missing_links(links)  # a stale link ends the walk, so what lies behind it says nothing
    content = {name: _judged_bytes(settings, candidate.output(role)) for name, role in MODEL_FILES.items()}
    if problems:
        raise GateFailed(
            f"{len(problems)} reasons against promotion: " + "; ".join(problems[:8]) + ("; …" if len(problems) > 8 else ""),
            code="not-promotable",
        )
    judged = [r.output(role) for r, role in _judged(settings)]
    parents = [(a.role, settings.layout.root / a.path) for a in (*(candidate.output(role) for role in MODEL_FILES.values()), *judged)]
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"release": release, "profile": settings.profile},
        parents=parents,
        work=lambda: _publish(settings, release, candidate, content, links, judged, progress),
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


def _missing_links(links: list[Link]) -> list[str]:
    found = {link.stage for link in links}
    return [
        f"{stage}: no-receipt, the chain from the model to the raw data is broken here. Run it again"
        for stage in CHAIN
        if stage not in found
    ]


def _is_own_blessing(settings: Settings, release: str, link: Link, problem: str) -> bool:
    """The baseline was replaced after `health_diff` by this very promotion, which was killed later on or is repeated."""
    baseline = settings.layout.report("health", "baseline.json")
    if link.stage != "health_diff" or not problem.startswith(f"stale: it read another version of {settings.store.rel(baseline)} "):
        return False
    blessing = _blessing(settings, release)
    return blessing is not None and digest_of(settings, baseline) == sha256(store.to_json_bytes(blessing)).hexdigest()


def _judged_bytes(settings: Settings, artifact: Artifact) -> bytes:
    """Content of one of the candidate's files, every byte as it was judged."""
    path = settings.layout.root / artifact.path
    content = store.read_bytes(path, max_bytes=store.MAX_JSON_BYTES) if path.is_file() else b""
    if sha256(content).hexdigest() != artifact.sha256:
        raise InputError(
            f"{artifact.path} is {'not the file that was judged' if path.is_file() else 'absent'}. Train and judge again",
            code="digest-mismatch",
            where=artifact.path,
        )
    return content


def _missing_verdicts(settings: Settings, candidate: Report) -> list[str]:
    """Required gates without a pass, and verdicts that judged another model than the candidate."""
    problems = []
    readiness, evaluation = read_receipt(settings, "readiness"), read_receipt(settings, "evaluation")
    for gate in settings.gates.required:
        verdict = readiness.verdict(gate) if readiness else None
        if verdict is None:
            problems.append(f"readiness: {gate} is required by profile {settings.profile} and has no verdict")
    weights = candidate.output("model").sha256
    for name, report in (("evaluation", evaluation), ("predictions", read_receipt(settings, "predictions")), ("readiness", readiness)):
        if report is not None and weights not in {a.sha256 for a in report.parents}:
            problems.append(f"{name}: stale-verdict, it judged another model than the candidate. Run it again")
    return problems


def _publish(
    settings: Settings,
    release: str,
    candidate: Report,
    content: Mapping[str, bytes],
    links: list[Link],
    judged: list[Artifact],
    progress: Progress,
) -> Outcome:
    """Weights and card, then the record of the decision, then the pointer: a reader of CURRENT.json always finds a whole release."""
    folder = settings.layout.promoted / release
    record_path = folder / "promotion.json"
    known = store.read_json(record_path) if record_path.is_file() else None
    model, card = (candidate.output(role) for role in MODEL_FILES.values())
    if known is not None and (known["model_sha256"], known["model_card_sha256"]) != (model.sha256, card.sha256):
        raise ConfigError(f"release {release} already holds another model. Choose another --release", code="release-exists")
    progress(f"promoting {candidate.facts.get('run')} as {release}")
    for name, data in content.items():
        settings.store.publish(folder / name, data)
    previous = previous_release(settings, model.sha256)
    evaluation = read_receipt(settings, "evaluation")
    record = {
        "schema": "beatsight.promotion/1",
        "release": release,
        "family": candidate.facts.get("family", "frame"),
        "run": candidate.facts.get("run"),
        "model_sha256": model.sha256,
        "model_card_sha256": card.sha256,
        "profile": settings.profile,
        "chain": [{"stage": link.stage, "partition": link.partition, "sha256": link.sha256} for link in links],
        "verdicts": [a.to_json() for a in judged],
        "figures": dict(evaluation.figures) if evaluation else {},
        "waivers": _waivers(settings),
        "previous": dict(previous) if previous else None,
        "created_at": clock.utc_now().isoformat(),
        "version": 1,
    }
    if known is not None:
        record = known  # a release is decided once; told again, it stays as it was told first
    settings.store.publish_json(record_path, record)
    settings.store.publish(folder / "MODEL_CARD.md", _card_text(record, candidate).encode())
    pointer = {
        "release": release,
        "family": record["family"],
        "model_sha256": record["model_sha256"],
        "model_card_sha256": record["model_card_sha256"],
    }
    blessing = _blessing(settings, release)
    if blessing is not None:
        settings.store.publish_json(settings.layout.report("health", "baseline.json"), blessing)
    settings.store.publish_json(settings.layout.current_model, pointer)
    same = all(settings.store.sha256(folder / n, fresh=True) == candidate.output(role).sha256 for n, role in MODEL_FILES.items())
    verdict = Verdict(
        "promotion",
        (Rule("served_equals_judged", same, float(same), 1.0, "the promoted files are byte for byte those that were judged"),),
        inputs=(model, *judged),
        profile=settings.profile,
    )
    layout = settings.layout
    return Outcome(
        outputs=[
            *((role, folder / name, None) for name, role in MODEL_FILES.items()),
            ("promotion", record_path, None),
            ("current", layout.current_model, None),
        ],
        figures={k: v for k, v in record["figures"].items() if isinstance(v, (int, float))},
        facts={
            "release": release,
            "run": record["run"],
            "family": record["family"],
            "waivers": record["waivers"],
            "chain": [link.name for link in links],
        },
        verdicts=(verdict,),
    )


def _waivers(settings: Settings) -> list[str]:
    found = []
    for stage in JUDGED_BY:
        report = read_receipt(settings, stage)
        for verdict in report.verdicts if report else ():
            found += [f"{verdict.gate}/{r.name}: {r.detail}" for r in verdict.rules if r.waived]
    return found


def _blessing(settings: Settings, release: str) -> dict[str, Any] | None:
    """The health report that the release rests on, as the baseline of the next one."""
    report = read_receipt(settings, "manifest_health")
    path = settings.layout.root / report.output("health").path if report else None
    if path is None or not path.is_file():
        return None
    health: dict[str, Any] = store.read_json(path)
    return health | {"blessed_by": release}


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
