"""How often a group of clips is drawn in training: rare groups more often than their size, none without bounds.

Belongs here: weights by group, drawing probabilities, the stage `sampling_weights`. Does not belong here: the training loop.
`weight(g) = clamp((n_g + smoothing)^-exponent x boosts of the techniques that occur in g, min_weight, max_weight)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, GateFailed, InputError, NothingToDo
from beatsight_assets.events import EVENT_SCHEMA, read_events
from beatsight_assets.settings import SamplingProfile, Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.units import rng_for
from beatsight_assets.verdict import Artifact, Rule, Verdict

VERSION = "1"
SCHEMA = "beatsight.sampling/1"
GATE = "sampling"
FALLBACK_GROUP = "session_id"  # events without a value in the group field never vanish


@dataclass(frozen=True)
class SamplingOptions:
    """Which profile, and what a command changes in it."""

    profile: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    technique_filter: tuple[str, ...] = ()
    match_all: bool = False
    include_unmatched: bool = False


@dataclass(frozen=True)
class GroupWeight:
    """One group: events that count, its weight, and events by technique."""

    count: int
    weight: float
    technique_counts: Mapping[str, int]


@dataclass(frozen=True)
class Weights:
    """Weights by group, in the order of their names, and what was left out on the way.

    n_repeated : events left out because an equal one was counted; n_capped : events above the cap of their group
    dropped : groups with fewer events than `min_count`
    """

    groups: Mapping[str, GroupWeight]
    n_repeated: int
    n_capped: int
    dropped: tuple[str, ...]

    @property
    def technique_totals(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for group in self.groups.values():
            for name, n in group.technique_counts.items():
                totals[name] = totals.get(name, 0) + n
        return dict(sorted(totals.items()))


def checked(profile: SamplingProfile) -> SamplingProfile:
    """The profile, if its numbers make sense.

    Raises
    ------
    ConfigError `boost-below-one`, `attenuation-above-one`, `bad-option`
    """
    for name, value in profile.boosts.items():
        if not (math.isfinite(value) and value >= 1.0):
            raise ConfigError(f"boost {name}={value} is below 1; a boost raises. Use an attenuation to lower", code="boost-below-one")
    for name, value in profile.attenuations.items():
        if not 0.0 < value <= 1.0:
            raise ConfigError(f"attenuation {name}={value} is not in (0, 1]; it lowers. Use a boost to raise", code="attenuation-above-one")
    if not (math.isfinite(profile.max_weight) and profile.min_weight <= profile.max_weight):
        raise ConfigError(f"min_weight {profile.min_weight} is above max_weight {profile.max_weight}", code="bad-option")
    for name in (profile.group_field, *profile.dedupe_fields):
        if name not in EVENT_SCHEMA:
            raise ConfigError.unknown_choice("event field", name, list(EVENT_SCHEMA), where="configs/sampling.yaml")
    return profile


def derive(
    frame: pl.DataFrame,
    profile: SamplingProfile,
    *,
    technique_filter: Sequence[str] = (),
    match_all: bool = False,
    include_unmatched: bool = False,
) -> Weights:
    """Weights of the groups of a manifest.

    Parameters
    ----------
    frame : events [columns of EVENT_SCHEMA]
    technique_filter : only events that carry one of these count (with `match_all`: all of them); a group without any such event is
        left out, or counts all its events with `include_unmatched`

    Raises
    ------
    ConfigError : see `checked`
    NothingToDo `nothing-to-judge` : no group is left
    """
    checked(profile)
    rows = frame.with_columns(group=pl.coalesce(pl.col(profile.group_field).cast(pl.String), pl.col(FALLBACK_GROUP)))
    n_all = rows.height
    if profile.dedupe_fields:
        keys = [_dedupe_key(name).alias(f"key_{name}") for name in profile.dedupe_fields]
        rows = rows.with_columns(keys).unique([f"key_{n}" for n in profile.dedupe_fields], keep="first", maintain_order=True)
    n_repeated = n_all - rows.height
    if technique_filter:
        carried = [pl.col("techniques").list.contains(t) for t in technique_filter]
        hit = pl.all_horizontal(carried) if match_all else pl.any_horizontal(carried)
        rows = rows.filter(hit | ~hit.any().over("group") if include_unmatched else hit)
    cap = profile.max_per_group or rows.height
    counted = dict(rows.group_by("group").len().sort("group").iter_rows())
    tags: dict[str, dict[str, int]] = {}
    exploded = rows.select("group", pl.col("techniques").alias("technique")).explode("technique", empty_as_null=False, keep_nulls=False)
    for group, technique, n in exploded.group_by("group", "technique").len().sort("group", "technique").iter_rows():
        tags.setdefault(group, {})[technique] = n
    kept = {g: n for g, n in counted.items() if min(n, cap) >= profile.min_count}
    if not kept:
        raise NothingToDo("no group is left to weigh: the manifest is empty or the filter keeps nothing", code="nothing-to-judge")
    return Weights(
        groups={g: GroupWeight(min(n, cap), _weight(min(n, cap), tags.get(g, {}), profile), tags.get(g, {})) for g, n in kept.items()},
        n_repeated=n_repeated,
        n_capped=sum(max(0, n - cap) for n in counted.values()),
        dropped=tuple(g for g in counted if g not in kept),
    )


def _dedupe_key(name: str) -> pl.Expr:
    """Value that equal rows share: labels as a sorted set, times in whole microseconds."""
    if name == "components":
        return pl.col("components").list.eval(pl.element().struct.field("label").unique().sort()).list.join("\x1f")
    if EVENT_SCHEMA[name] == pl.Float64:
        return (pl.col(name) * 1e6).round().cast(pl.Int64)
    return pl.col(name)


def _weight(count: int, techniques: Mapping[str, int], profile: SamplingProfile) -> float:
    """Clamped weight of a group with `count` events. Factors are multiplied in the order of their names."""
    weight = (count + profile.smoothing) ** -profile.exponent
    for name, factor in sorted((*profile.boosts.items(), *profile.attenuations.items())):
        if name in techniques:
            weight *= factor
    return float(min(max(weight, profile.min_weight), profile.max_weight))


def to_json(weights: Weights, profile_name: str, parameters: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The weights file."""
    return {
        "schema": SCHEMA,
        "manifest": dict(manifest),
        "profile": profile_name,
        "parameters": dict(parameters),
        "totals": {
            "groups": len(weights.groups),
            "counted_events": sum(g.count for g in weights.groups.values()),
            "deduplicated_events": weights.n_repeated,
            "capped_events": weights.n_capped,
            "dropped_groups": len(weights.dropped),
        },
        "dropped_groups": list(weights.dropped),
        "groups": {
            name: {"count": g.count, "weight": g.weight, "technique_counts": dict(g.technique_counts)} for name, g in weights.groups.items()
        },
        "technique_totals": weights.technique_totals,
    }


def judge(
    weights: Weights,
    profile: SamplingProfile,
    *,
    named_sha256: str,
    manifest_sha256: str,
    train_groups: Sequence[str],
    inputs: Sequence[Artifact],
    gate_profile: str,
) -> Verdict:
    """Verdict `sampling`: every weight lies in its bounds, and the weights belong to this manifest and cover its train split.

    Parameters
    ----------
    named_sha256, manifest_sha256 : the manifest the weights name, and the one at hand
    train_groups : values of the group field that occur in split train
    """
    outside = [
        g for g, w in weights.groups.items() if not (math.isfinite(w.weight) and profile.min_weight <= w.weight <= profile.max_weight)
    ]
    absent = sorted(set(train_groups) - set(weights.groups))
    fits = named_sha256 == manifest_sha256
    rules = (
        Rule.at_most(
            "weights_in_bounds",
            float(len(outside)),
            0.0,
            f"groups outside {profile.min_weight:g}..{profile.max_weight:g} {outside[:3] or ''}".strip(),
        ),
        Rule(
            "weights_match_manifest",
            fits and not absent and bool(train_groups),
            float(len(absent)),
            0.0,
            f"groups of split train without a weight {absent[:3] or ''}".strip() if fits else "the weights name another manifest",
        ),
    )
    values = [w.weight for w in weights.groups.values()]
    return Verdict(
        gate=GATE,
        rules=rules,
        inputs=tuple(inputs),
        figures={"min_weight": min(values), "max_weight": max(values), "groups_outside": len(outside), "groups_absent": len(absent)},
        limits={"min_weight": profile.min_weight, "max_weight": profile.max_weight},
        support={"groups": len(values), "train_groups": len(set(train_groups))},
        profile=gate_profile,
    )


def read_weights(path: Path, manifest_sha256: str) -> tuple[str, dict[str, float]]:
    """(group field, weight by group) of a weights file that was made for this manifest.

    Raises
    ------
    InputError `missing-input`, `bad-metadata`
    ConfigError `weights-for-another-manifest`
    """
    found = store.read_json(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(
            "this is no sampling weights file. Write one with: beatsight sampling derive", code="bad-metadata", where=str(path)
        )
    if found["manifest"]["sha256"] != manifest_sha256:
        raise ConfigError(
            f"the weights were derived from manifest {found['manifest']['sha256'][:12]}…, the data come from {manifest_sha256[:12]}…. "
            "Derive them again with: beatsight sampling derive",
            code="weights-for-another-manifest",
            where=str(path),
        )
    return str(found["parameters"]["group_field"]), {g: float(w["weight"]) for g, w in found["groups"].items()}


def draw_probabilities(groups: Sequence[str], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Probability of each clip: w(g(i)) over the sum of all.

    Parameters
    ----------
    groups : group of each clip [shape=(n,)]

    Returns
    -------
    float64 [shape=(n,)], sums to 1

    Raises
    ------
    GateFailed `group-without-weight` : a clip's group has none, or no clip has a positive weight
    """
    absent = sorted(set(groups) - set(weights))
    if absent:
        raise GateFailed(f"{len(absent)} groups have no weight, first {absent[:3]}. Derive the weights again", code="group-without-weight")
    values = np.array([weights[g] for g in groups], dtype=np.float64)
    if not values.sum() > 0.0:
        raise GateFailed("no clip has a positive weight", code="group-without-weight")
    return values / values.sum()


def draw(probabilities: NDArray[np.float64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Indices of `n` clips drawn with replacement, keyed by (seed, epoch)."""
    return rng_for(seed, "sampling", str(epoch)).choice(len(probabilities), size=n, p=probabilities).astype(np.int64)


def realised_shares(groups: Sequence[str], drawn: NDArray[np.int64]) -> dict[str, float]:
    """Share of the draws by group, largest first."""
    names, counts = np.unique(np.asarray(groups, dtype=object)[drawn].astype(str), return_counts=True)
    order = np.lexsort((names, -counts))
    return {str(names[i]): float(counts[i] / len(drawn)) for i in order}


def run(settings: Settings, options: SamplingOptions = SamplingOptions(), *, progress: Progress = silent) -> Report:
    """Publish reports/sampling/annotated_weights.json with the verdict `sampling`.

    Raises
    ------
    ConfigError `unknown-choice` and those of `checked`
    InputError `missing-input`, `bad-manifest`
    NothingToDo `nothing-to-judge`
    """
    name = options.profile or settings.sampling.default
    if name not in settings.sampling.profiles:
        raise ConfigError.unknown_choice("sampling profile", name, settings.sampling.profiles, where="configs/sampling.yaml")
    profile = checked(settings.sampling.profiles[name].model_copy(update=dict(options.overrides)))
    manifest, splits = settings.layout.annotated, settings.layout.splits
    parameters = profile.model_dump(mode="json") | {
        "technique_filter": list(options.technique_filter),
        "match_all": options.match_all,
        "include_unmatched": options.include_unmatched,
    }

    def work() -> Outcome:
        frame = read_events(manifest)
        progress(f"weighing groups of {frame.height:,} events")
        weights = derive(
            frame,
            profile,
            technique_filter=options.technique_filter,
            match_all=options.match_all,
            include_unmatched=options.include_unmatched,
        )
        digest = settings.store.sha256(manifest)
        target = settings.layout.report("sampling", "annotated_weights.json")
        settings.store.publish_json(target, to_json(weights, name, parameters, {"path": settings.store.rel(manifest), "sha256": digest}))
        train = frame.join(
            pl.read_parquet(splits).filter(pl.col("split") == "train").select("group_id").unique(), on="group_id", how="semi"
        )
        groups = (
            train.select(pl.coalesce(pl.col(profile.group_field).cast(pl.String), pl.col(FALLBACK_GROUP)).unique()).to_series().to_list()
        )
        verdict = judge(
            weights,
            profile,
            named_sha256=store.read_json(target)["manifest"]["sha256"],
            manifest_sha256=digest,
            train_groups=groups,
            inputs=(
                Artifact("manifest", settings.store.rel(manifest), digest, frame.height),
                Artifact("splits", settings.store.rel(splits), settings.store.sha256(splits)),
            ),
            gate_profile=settings.profile,
        )
        top = sorted(weights.groups.items(), key=lambda item: (-item[1].weight, item[0]))[:20]
        return Outcome(
            outputs=[("sampling_weights", target, len(weights.groups))],
            figures={
                "groups": len(weights.groups),
                "repeated_events": weights.n_repeated,
                "capped_events": weights.n_capped,
                **verdict.figures,
            },
            facts={"profile": name, "dropped_groups": list(weights.dropped[:20])},
            verdicts=[verdict],
            table=Table(("group", "events", "weight"), tuple((g, w.count, w.weight) for g, w in top)),
        )

    return run_stage(
        settings,
        "sampling_weights",
        version=VERSION,
        options={"name": name, "gate_profile": settings.profile, **parameters},
        parents=[("manifest", manifest), ("splits", splits)],
        work=work,
    )
