"""All gates of a candidate at once: read its predictions, judge each, write one report per gate and one for the release.

Belongs here: which gates a release needs, where their inputs lie, the stage `readiness`. Does not belong here: any figure or rule.
Every verdict names the digests of the predictions and of the model it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import store
from beatsight_assets.errors import BeatSightError, ConfigError, InputError, NothingToDo
from beatsight_assets.readiness import bootstrap, boundary, calibration, openset
from beatsight_assets.readiness.rows import THRESHOLD, read_limits, read_samples
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, digest_of, read_receipt, run_stage, silent
from beatsight_assets.verdict import Artifact, Reason, Verdict

VERSION = "1"
SCHEMA = "beatsight.readiness/1"
GATES = ("alignment", "boundary", "openset", "bootstrap", "calibration")  # in the order they run
PREDICTIONS = ("val", "test", "boundary", "openset")
NEEDS: dict[str, tuple[str, ...]] = {
    "boundary": ("boundary",),
    "openset": ("openset",),
    "bootstrap": ("test",),
    "calibration": ("val", "test"),
}
CHECK_ERRORS = (
    BeatSightError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    OSError,
    pl.exceptions.PolarsError,
)


@dataclass(frozen=True)
class ReadinessOptions:
    """Which candidate (default: the one predicted last), under which release name (default: the run's), and which gates."""

    release: str | None = None
    run: str | None = None
    checks: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    halt_on_first_failure: bool = False


@dataclass(frozen=True)
class Champion:
    """What readiness said about the promoted model, when it was judged."""

    model_sha256: str
    folder: Path | None
    run: str | None

    def report(self, gate: str) -> dict[str, Any] | None:
        """The `report` part of one of its gate files."""
        path = self.folder / f"{gate}.json" if self.folder else None
        found = store.read_json(path).get("report") if path and path.is_file() else None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Candidate:
    """Everything the gates read about one candidate."""

    settings: Settings
    run: str
    champion: Champion | None

    @property
    def model(self) -> Path:
        return self.settings.layout.candidate(self.run) / "model.json"

    @property
    def weights(self) -> Path:
        return self.settings.layout.candidate(self.run) / "model.safetensors"

    @property
    def pack(self) -> Path:
        return self.settings.layout.report("readiness", "boundary_pack") / "labels.jsonl"

    def predictions(self, name: str) -> Path:
        return self.settings.layout.run_dir(self.run) / "predictions" / f"{name}.parquet"

    @cached_property
    def threshold(self) -> float | dict[str, float]:
        """Score from which a label counts as predicted, as the model serves it."""
        return _threshold(self.model)

    @cached_property
    def limits(self) -> Mapping[str, Mapping[str, Any]]:
        return self.settings.gates.readiness

    @property
    def where(self) -> str:
        return f"configs/gates/{self.settings.profile}.yaml: readiness"

    def inputs(self, *names: str) -> tuple[Artifact, ...]:
        """Artifacts of the model and of the named predictions."""
        files = [("model", self.model), ("weights", self.weights), *((f"predictions_{n}", self.predictions(n)) for n in names)]
        files += [("boundary_pack", self.pack)] if "boundary" in names and self.pack.is_file() else []
        return tuple(Artifact(role, self.settings.store.rel(p), self.settings.store.sha256(p)) for role, p in files)


def _threshold(model: Path) -> float | dict[str, float]:
    card = store.read_json(model)
    found = card.get("thresholds") or card.get("threshold")
    if isinstance(found, Mapping):
        return {str(label): float(t) for label, t in found.items()}
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise InputError("the model states no threshold", code="bad-checkpoint", where=str(model))
    return float(found)


def check_boundary(candidate: Candidate) -> tuple[Verdict, dict[str, Any]]:
    """Gate `boundary`: predictions on the pack, overall and by edge. A row of the pack without a prediction counts against it."""
    samples = read_samples(candidate.predictions("boundary"))
    if samples["edge"].is_null().all():
        samples = samples.with_columns(edge=pl.col("sample_id").str.extract(r":(leading|trailing):\d+$"))
    truth = samples
    if candidate.pack.is_file():
        pack = read_samples(candidate.pack)
        truth = pl.concat([samples, pack.join(samples.select("sample_id"), on="sample_id", how="anti")])
    figures = boundary.measure(truth, samples, thresholds=candidate.threshold)
    limits = read_limits(boundary.BoundaryLimits, candidate.limits.get("boundary", {}), candidate.where)
    verdict = boundary.judge(figures, limits, inputs=candidate.inputs("boundary"), profile=candidate.settings.profile)
    parts = {"overall": figures.overall, **figures.edges}
    return verdict, {
        name: {"micro": vars(s.micro), "macro": vars(s.macro), "per_class": {c: vars(r) for c, r in s.per_class.items()}}
        for name, s in parts.items()
    }


def check_openset(candidate: Candidate) -> tuple[Verdict, dict[str, Any]]:
    """Gate `openset`."""
    samples = read_samples(candidate.predictions("openset"))
    figures = openset.measure(samples, samples)
    limits = read_limits(openset.OpenSetLimits, candidate.limits.get("openset", {}), candidate.where)
    verdict = openset.judge(figures, limits, inputs=candidate.inputs("openset"), profile=candidate.settings.profile)
    return verdict, {"fpr_by_family": dict(figures.fpr_by_family), "threshold_at_95_tpr": figures.threshold_at_95_tpr}


def check_bootstrap(candidate: Candidate) -> tuple[Verdict, dict[str, Any]]:
    """Gate `bootstrap`: intervals on the test split, and the comparison with the promoted release when there is one."""
    samples = read_samples(candidate.predictions("test"))
    figures = bootstrap.measure(samples, samples, thresholds=candidate.threshold)
    champion = candidate.champion
    stored = champion.report("bootstrap") if champion else None
    baseline = bootstrap.BootstrapFigures.from_json(stored["figures"], "bootstrap.json") if stored else None
    limits = read_limits(bootstrap.BootstrapLimits, candidate.limits.get("bootstrap", {}), candidate.where)
    verdict = bootstrap.judge(
        figures,
        limits,
        baseline=baseline,
        first_release=champion is None,
        inputs=candidate.inputs("test"),
        profile=candidate.settings.profile,
    )
    paired = _paired(candidate, samples, champion) if champion and baseline and baseline.truth_sha256 == figures.truth_sha256 else None
    return verdict, {"figures": figures.to_json(), "paired_difference": paired}


def _paired(candidate: Candidate, samples: pl.DataFrame, champion: Champion) -> dict[str, Any] | None:
    """Difference to the champion on the same resamples, when its predictions are still there."""
    if champion.run is None:
        return None
    other = Candidate(candidate.settings, champion.run, None)
    if not (other.predictions("test").is_file() and other.model.is_file()):
        return None
    before = read_samples(other.predictions("test"))
    found = bootstrap.paired_difference(samples, samples, before, thresholds=(candidate.threshold, other.threshold))
    return {name: interval.to_json() for name, interval in found.items()} if found else None


def check_calibration(candidate: Candidate) -> tuple[Verdict, dict[str, Any]]:
    """Gate `calibration` on val and test."""
    splits = {name: calibration.measure(read_samples(candidate.predictions(name))) for name in ("val", "test")}
    stored = candidate.champion.report("calibration") if candidate.champion else None
    limits = read_limits(calibration.CalibrationLimits, candidate.limits.get("calibration", {}), candidate.where)
    verdict = calibration.judge(
        splits,
        limits,
        baseline_brier=stored["test"]["brier"] if stored else None,
        first_release=candidate.champion is None,
        inputs=candidate.inputs("val", "test"),
        profile=candidate.settings.profile,
    )
    return verdict, {name: c.to_json() for name, c in splits.items()}


CHECKS: dict[str, Callable[[Candidate], tuple[Verdict, dict[str, Any]]]] = {
    "boundary": check_boundary,
    "openset": check_openset,
    "bootstrap": check_bootstrap,
    "calibration": check_calibration,
}


def judge_files(
    settings: Settings,
    gate: str,
    ground_truth: Path,
    predictions: Path,
    *,
    threshold: float = THRESHOLD,
    top_k: int | None = None,
    score_field: str = "max",
    iterations: int = bootstrap.ITERATIONS,
    seed: int = bootstrap.SEED,
    baseline: Path | None = None,
    first_release: bool = False,
) -> Verdict:
    """Verdict of one gate on two files anywhere (JSONL or Parquet), by the limits of the profile. `baseline` is an earlier gate file.

    Raises
    ------
    ConfigError `unknown-choice`, `bad-option`
    InputError `missing-input`, `bad-rows`, `bad-report`
    """
    if gate not in CHECKS:
        raise ConfigError.unknown_choice("readiness gate", gate, CHECKS)
    truth, samples = read_samples(ground_truth), read_samples(predictions)
    inputs = tuple(
        Artifact(role, settings.store.rel(p), settings.store.sha256(p))
        for role, p in (("ground_truth", ground_truth), ("predictions", predictions))
    )
    asked, where, profile = settings.gates.readiness.get(gate, {}), f"configs/gates/{settings.profile}.yaml: readiness", settings.profile
    stored = store.read_json(baseline).get("report") if baseline else None
    if gate == "boundary":
        limits = read_limits(boundary.BoundaryLimits, asked, where)
        return boundary.judge(boundary.measure(truth, samples, thresholds=threshold, top_k=top_k), limits, inputs=inputs, profile=profile)
    if gate == "openset":
        return openset.judge(
            openset.measure(truth, samples, score_field), read_limits(openset.OpenSetLimits, asked, where), inputs=inputs, profile=profile
        )
    if gate == "bootstrap":
        figures = bootstrap.measure(truth, samples, thresholds=threshold, iterations=iterations, seed=seed)
        before = bootstrap.BootstrapFigures.from_json(stored["figures"], str(baseline)) if stored else None
        limits_b = read_limits(bootstrap.BootstrapLimits, asked, where)
        return bootstrap.judge(figures, limits_b, baseline=before, first_release=first_release, inputs=inputs, profile=profile)
    together = truth.drop("scores").join(samples.select("sample_id", "scores"), on="sample_id", how="left").select(truth.columns)
    parts = {name: calibration.measure(part) for name in ("val", "test") if (part := together.filter(pl.col("split") == name)).height}
    limits_c = read_limits(calibration.CalibrationLimits, asked, where)
    brier = stored["test"]["brier"] if stored else None
    return calibration.judge(parts, limits_c, baseline_brier=brier, first_release=first_release, inputs=inputs, profile=profile)


def find_run(settings: Settings) -> str:
    """The run that was predicted last, by the receipt of stage `predictions`.

    Raises
    ------
    NothingToDo `nothing-to-judge` : no candidate has predictions
    """
    receipt = read_receipt(settings, "predictions")
    for artifact in receipt.outputs if receipt else ():
        parts = artifact.path.split("/")
        if len(parts) > 2 and parts[0] == "runs":
            return parts[1]
    raise NothingToDo(
        "no candidate has predictions: nothing for boundary, openset, bootstrap and calibration to judge. Run: beatsight model predict, or give --run",
        code="nothing-to-judge",
    )


def find_champion(settings: Settings, candidate_sha256: str | None) -> Champion | None:
    """The promoted model and what readiness said about it, found by its digest; None before the first release.

    A candidate that is itself the promoted model is compared with the release before it, so judging again changes nothing.

    Raises
    ------
    InputError `bad-metadata`
    """
    if not settings.layout.current_model.is_file():
        return None
    current = store.read_json(settings.layout.current_model)
    if current["model_sha256"] == candidate_sha256:
        current = store.read_json(settings.layout.promoted / current["release"] / "promotion.json")["previous"]
        if current is None:
            return None
    digest = str(current["model_sha256"])
    for path in sorted(settings.layout.reports.glob("readiness/*/readiness.json")):
        known = store.read_json(path)
        if digest in (known.get("model_sha256"), known.get("weights_sha256")):
            return Champion(digest, path.parent, known.get("run"))
    return Champion(digest, None, None)


def wanted_gates(settings: Settings, options: ReadinessOptions) -> tuple[str, ...]:
    """Gates to run in their order: those asked for, else those the profile requires.

    Raises
    ------
    ConfigError `unknown-choice`
    """
    for name in (*options.checks, *options.skip):
        if name not in GATES:
            raise ConfigError.unknown_choice("readiness gate", name, GATES)
    asked = options.checks or settings.gates.required
    return tuple(g for g in GATES if g in asked)


def judge_all(
    candidate: Candidate, gates: tuple[str, ...], options: ReadinessOptions, progress: Progress = silent
) -> list[tuple[Verdict, dict[str, Any]]]:
    """Verdict and details of each gate. A gate that raises fails with the message, the others still run."""
    done: list[tuple[Verdict, dict[str, Any]]] = []
    for gate in gates:
        if options.halt_on_first_failure and any(not v.passed for v, _ in done):
            done.append((_refused(candidate, gate, "not-run", "an earlier gate failed"), {}))
            continue
        if gate in options.skip:
            done.append((_refused(candidate, gate, "skipped", "left out by --skip; a release needs it"), {}))
            continue
        absent = [n for n in NEEDS.get(gate, ()) if not candidate.predictions(n).is_file()]
        if gate not in CHECKS or absent:
            needed = ", ".join(f"{n}.parquet" for n in absent) if absent else "recordings with several microphones"
            done.append((_refused(candidate, gate, "no-input", f"needs {needed}, which the candidate does not have"), {}))
            continue
        try:
            done.append(CHECKS[gate](candidate))
        except CHECK_ERRORS as error:
            done.append((_refused(candidate, gate, "error", f"{type(error).__name__}: {error}"), {}))
        progress(f"{gate}: {done[-1][0].status}")
    return done


def _refused(candidate: Candidate, gate: str, code: str, message: str) -> Verdict:
    names = [n for n in NEEDS.get(gate, ()) if candidate.predictions(n).is_file()]
    return Verdict(gate, (), candidate.inputs(*names), reasons=(Reason(code, message),), profile=candidate.settings.profile)


def run(settings: Settings, options: ReadinessOptions = ReadinessOptions(), *, progress: Progress = silent) -> Report:
    """Publish reports/readiness/<release>/{<gate>,readiness}.json with one verdict per gate.

    Raises
    ------
    NothingToDo `nothing-to-judge` : no candidate, or no gate to run
    ConfigError `unknown-choice`, `bad-config`; `path-escape` : the release's name leads elsewhere
    InputError `missing-input` : the candidate has no model
    """
    gates = wanted_gates(settings, options)
    if not gates:
        raise NothingToDo("no gate to run: the profile requires none. Give --checks", code="nothing-to-judge")
    name = options.run or find_run(settings)
    release = options.release or name
    folder = settings.layout.report("readiness", release)
    weights = settings.layout.candidate(name) / "model.safetensors"
    candidate = Candidate(settings, name, find_champion(settings, digest_of(settings, weights)))
    champion_files = sorted(candidate.champion.folder.glob("*.json")) if candidate.champion and candidate.champion.folder else []
    if candidate.champion and candidate.champion.folder == folder:
        raise ConfigError(f"reports/readiness/{release} is about the promoted model. Choose another --release", code="release-exists")
    parents = [("model", candidate.model), ("weights", candidate.weights)]
    parents += [(f"predictions_{n}", candidate.predictions(n)) for n in PREDICTIONS if candidate.predictions(n).is_file()]
    parents += [("boundary_pack", candidate.pack)] if candidate.pack.is_file() else []
    parents += [(f"champion_{p.stem}", p) for p in champion_files]

    def work() -> Outcome:
        done = judge_all(candidate, gates, options, progress)
        outputs: list[tuple[str, Path, int | None]] = []
        checks = []
        for verdict, details in done:
            target = folder / f"{verdict.gate}.json"
            receipt = settings.store.publish_json(target, {**verdict.to_json(), "report": details})
            outputs.append((verdict.gate, target, None))
            codes = {r.code for r in verdict.reasons}
            status = next((c for c in ("skipped", "not-run") if c in codes), verdict.status)
            checks.append({"gate": verdict.gate, "status": status, "report": settings.store.rel(target), "sha256": receipt.sha256})
        passed = all(v.passed for v, _ in done) and set(settings.gates.required) & set(GATES) <= {v.gate for v, _ in done}
        summary = {
            "schema": SCHEMA,
            "release": release,
            "run": name,
            "profile": settings.profile,
            "model_sha256": settings.store.sha256(candidate.model),
            "weights_sha256": settings.store.sha256(candidate.weights),
            "checks": checks,
            "passed": passed,
        }
        settings.store.publish_json(folder / "readiness.json", summary)
        outputs.append(("readiness", folder / "readiness.json", None))
        numbers = {f"{v.gate}/{k}": n for v, _ in done for k, n in v.figures.items() if isinstance(n, (int, float))}
        return Outcome(
            outputs=outputs,
            figures=numbers,
            facts={"release": release, "run": name, "first_release": candidate.champion is None, "passed": passed},
            verdicts=[v for v, _ in done],
            table=Table(("gate", "status", "why"), tuple((v.gate, v.status, "; ".join(v.failures)) for v, _ in done)),
        )

    return run_stage(
        settings,
        "readiness",
        version=VERSION,
        options={
            "release": release,
            "run": name,
            "gates": list(gates),
            "skip": list(options.skip),
            "halt_on_first_failure": options.halt_on_first_failure,
            "profile": settings.profile,
            "required": list(settings.gates.required),
            "limits": settings.gates.readiness,
            "champion": candidate.champion.model_sha256 if candidate.champion else None,
        },
        parents=parents,
        work=work,
    )
