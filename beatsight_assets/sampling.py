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
from pydantic import ValidationError

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, GateFailed, InputError, NothingToDo
from beatsight_assets.events import EVENT_SCHEMA, LIST_SEPARATOR, NO_TEXT, Manifest, TextCodes, find_repeats, instants
from beatsight_assets.settings import SamplingProfile, Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.units import rng_for
from beatsight_assets.verdict import Artifact, Rule, Verdict

VERSION = "1"
SCHEMA = "beatsight.sampling/1"
GATE = "sampling"
MOST_BINS = 1 << 24  # 128 MB of counters
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
    numbers = {k: v for k, v in profile.model_dump().items() if isinstance(v, float)}
    strange = [k for k, v in numbers.items() if not math.isfinite(v)]
    if strange:
        raise ConfigError(f"{strange[0]} is {numbers[strange[0]]}; it must be a finite number", code="bad-option")
    if profile.min_weight > profile.max_weight:
        raise ConfigError(f"min_weight {profile.min_weight} is above max_weight {profile.max_weight}", code="bad-option")
    for name in (profile.group_field, *profile.dedupe_fields):
        if name not in EVENT_SCHEMA:
            raise ConfigError.unknown_choice("event field", name, list(EVENT_SCHEMA), where="configs/sampling.yaml")
    if EVENT_SCHEMA[profile.group_field].is_nested():
        raise ConfigError(
            f"group_field {profile.group_field} holds several values for one event; group by a field that holds one, as session_id",
            code="bad-option",
        )
    return profile


def derive(
    events: Manifest | pl.DataFrame,
    profile: SamplingProfile,
    *,
    technique_filter: Sequence[str] = (),
    match_all: bool = False,
    include_unmatched: bool = False,
) -> Weights:
    """Weights of the groups of a manifest, which is read a row group at a time; 20 to 30 bytes of each event are kept.

    Parameters
    ----------
    technique_filter : only events that carry one of these count (with `match_all`: all of them); a group without any such event is
        left out, or counts all its events with `include_unmatched`

    Raises
    ------
    ConfigError : see `checked`
    NothingToDo `nothing-to-judge` : no group is left
    """
    checked(profile)
    manifest = events if isinstance(events, Manifest) else Manifest(events)
    columns = sorted({profile.group_field, FALLBACK_GROUP, "techniques", *profile.dedupe_fields} - {"components"})
    groups, tag_sets, keys, labels = TextCodes(), TextCodes(), TextCodes(), TextCodes()
    grouped = FALLBACK_GROUP if profile.group_field == FALLBACK_GROUP else None  # its codes are those of the group
    parts = [
        pl.DataFrame(
            {
                "group": groups.of(_group_of(piece, profile.group_field)),
                "tags": tag_sets.of_lists(piece["techniques"].fill_null([])),
                **{
                    f"key_{name}": _dedupe_key(piece[name], labels if name == "components" else keys)
                    for name in profile.dedupe_fields
                    if name != grouped
                },
            }
        )
        for piece in (manifest.pieces_with_hits(columns, ["label"]) if "components" in profile.dedupe_fields else manifest.pieces(columns))
    ]
    rows = pl.concat(parts) if parts else pl.DataFrame({"group": [], "tags": []}, schema={"group": pl.UInt32, "tags": pl.UInt32})
    n_all = rows.height
    if "key_components" in rows.columns:
        rows = rows.with_columns(key_components=_as_sets(rows["key_components"].to_numpy(), labels))
    rows = _first_of_equals(rows, [f"key_{name}" if name != grouped else "group" for name in profile.dedupe_fields])
    n_repeated = n_all - rows.height
    counted = _counts_of_pairs(rows)
    names_of = {code: tuple(text.split(LIST_SEPARATOR)) if text else () for code, text in tag_sets.names().items()}
    group_names = groups.names()
    if technique_filter:
        wanted = set(technique_filter)
        fits = [code for code, names in names_of.items() if (wanted <= set(names) if match_all else wanted & set(names))]
        hit = pl.col("tags").is_in(fits)
        counted = counted.filter(hit | ~hit.any().over("group") if include_unmatched else hit)
    counts = {str(group_names[group]): n for group, n in counted.group_by("group").agg(pl.col("len").sum()).iter_rows()}
    techniques = pl.DataFrame(
        {"tags": list(names_of), "technique": list(names_of.values())}, schema={"tags": pl.UInt32, "technique": pl.List(pl.String)}
    ).explode("technique", empty_as_null=False, keep_nulls=False)
    uses = counted.join(techniques, on="tags").group_by("group", "technique").agg(pl.col("len").sum())
    tags: dict[str, dict[str, int]] = {}
    for group, technique, n in uses.sort("technique").iter_rows():
        tags.setdefault(str(group_names[group]), {})[technique] = n
    cap = profile.max_per_group or n_all
    kept = {g: min(counts[g], cap) for g in sorted(counts) if min(counts[g], cap) >= profile.min_count}
    if not kept:
        raise NothingToDo("no group is left to weigh: the manifest is empty or the filter keeps nothing", code="nothing-to-judge")
    return Weights(
        groups={g: GroupWeight(n, _weight(n, tags.get(g, {}), profile), tags.get(g, {})) for g, n in kept.items()},
        n_repeated=n_repeated,
        n_capped=sum(max(0, n - cap) for n in counts.values()),
        dropped=tuple(sorted(set(counts) - set(kept))),
    )


def _group_of(events: pl.DataFrame, field: str) -> pl.Series:
    """Value of the group field as text; events without one fall into their session."""
    return events.select(pl.coalesce(pl.col(field).cast(pl.String), pl.col(FALLBACK_GROUP)).alias("group"))["group"]


def _counts_of_pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of each pair of codes `group` and `tags`, as `len`."""
    groups, tags = rows["group"].to_numpy(), rows["tags"].to_numpy()
    width = 1 + int(tags.max(initial=0))
    n_bins = (1 + int(groups.max(initial=0))) * width
    key = groups.astype(np.uint64)
    key *= np.uint64(width)
    key += tags
    if n_bins <= MOST_BINS:
        counts = np.bincount(key.view(np.int64))
        pairs = np.flatnonzero(counts)
        n = counts[pairs]
    else:  # groups or sets of techniques without end
        pairs, n = np.unique(key, return_counts=True)
    return pl.DataFrame({"group": (pairs // width).astype(np.uint32), "tags": (pairs % width).astype(np.uint32), "len": n})


def _first_of_equals(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Rows without those that equal an earlier one in all key columns."""
    if not keys or not rows.height:
        return rows
    if "key_onset_time" in keys[1:2]:  # of one session and instant: few are; the number rises along a manifest in its order
        suspects = find_repeats(instants(rows[keys[0]], rows[keys[1]]))
    else:
        suspects = find_repeats(rows.select(keys).hash_rows().to_numpy())
    if not suspects.size:
        return rows
    again = ~rows.select(keys)[suspects].select(pl.struct(keys).is_first_distinct()).to_series().to_numpy()
    keep = np.ones(rows.height, dtype=bool)
    keep[suspects[again]] = False
    return rows.filter(pl.Series(keep))


def _dedupe_key(values: pl.Series, texts: TextCodes) -> pl.Series:
    """Numbers that equal values share: labels in their order (see `_as_sets`), times in whole microseconds."""
    if values.name == "components":
        return pl.Series(texts.of_lists(values.list.eval(pl.element().struct.field("label"))))
    if values.dtype == pl.Float64:
        return (values * 1e6).round().cast(pl.Int64)
    if values.dtype == pl.String:
        return pl.Series(texts.of(values))
    if isinstance(values.dtype, pl.List):
        return pl.Series(texts.of_lists(values))
    return pl.Series(texts.of(values.struct.json_encode())) if isinstance(values.dtype, pl.Struct) else values


def _as_sets(codes: NDArray[np.uint32], lists: TextCodes) -> pl.Series:
    """Codes of lists of labels as codes that lists with equal sets of labels share; there are few lists, and millions of codes."""
    first: dict[str, int] = {}
    names = {code: text for code, text in lists.names().items() if text is not None}
    table = np.empty(len(names), dtype=np.uint32)
    for code, text in names.items():
        table[code] = first.setdefault(LIST_SEPARATOR.join(sorted(set(text.split(LIST_SEPARATOR)))), code)
    absent = codes == NO_TEXT
    return pl.Series(np.where(absent, NO_TEXT, table[np.where(absent, 0, codes)]))


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
    absent = sorted(set(train_groups) - set(weights.groups))
    fits = named_sha256 == manifest_sha256
    in_bounds = _in_bounds(weights, profile)
    rules = (
        in_bounds,
        Rule(
            "weights_match_manifest",
            fits and not absent and bool(train_groups),
            float(len(absent)),
            0.0,
            f"groups of split train without a weight {absent[:3] or ''}".strip() if fits else "the weights name another manifest",
        ),
    )
    return Verdict(
        gate=GATE,
        rules=rules,
        inputs=tuple(inputs),
        figures=_figures(weights) | {"groups_outside": int(in_bounds.value or 0), "groups_absent": len(absent)},
        limits=_limits(profile),
        support={"groups": len(weights.groups), "train_groups": len(set(train_groups))},
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
    try:
        if found["schema"] != SCHEMA:
            raise KeyError("schema")
        named = str(found["manifest"]["sha256"])
        field_name, weights = str(found["parameters"]["group_field"]), {g: w["weight"] for g, w in found["groups"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"this is no sampling weights file ({error}). Write one with: beatsight sampling derive", code="bad-metadata", where=str(path)
        ) from error
    strange = [g for g, w in weights.items() if isinstance(w, bool) or not isinstance(w, (int, float)) or not 0 <= w < math.inf]
    if strange:
        raise InputError(
            f"the weight of group {strange[0]!r} is {weights[strange[0]]!r}; it must be a number from 0 on",
            code="bad-metadata",
            where=str(path),
        )
    if named != manifest_sha256:
        raise ConfigError(
            f"the weights were derived from manifest {named[:12]}…, the data come from {manifest_sha256[:12]}…. "
            "Derive them again with: beatsight sampling derive",
            code="weights-for-another-manifest",
            where=str(path),
        )
    return field_name, {g: float(w) for g, w in weights.items()}


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


def resolved(settings: Settings, options: SamplingOptions) -> tuple[str, SamplingProfile]:
    """Name of the profile, and the profile with what the command changes in it; boosts and attenuations are added by technique.

    Raises
    ------
    ConfigError `unknown-choice`; `bad-option` : a number outside its range; those of `checked`
    """
    name = options.profile or settings.sampling.default
    if name not in settings.sampling.profiles:
        raise ConfigError.unknown_choice("sampling profile", name, settings.sampling.profiles, where="configs/sampling.yaml")
    base = settings.sampling.profiles[name]
    changes = dict(options.overrides)
    for field_name in ("boosts", "attenuations"):
        if field_name in changes:
            changes[field_name] = getattr(base, field_name) | dict(changes[field_name])
    try:
        profile = SamplingProfile.model_validate(base.model_dump() | changes)
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        shown = ".".join(str(p) for p in first["loc"])
        raise ConfigError(f"{shown}: {first['msg']}, got {first.get('input')!r}", code="bad-option") from failure
    return name, checked(profile)


def _parameters(profile: SamplingProfile, options: SamplingOptions) -> dict[str, Any]:
    return profile.model_dump(mode="json") | {
        "technique_filter": list(options.technique_filter),
        "match_all": options.match_all,
        "include_unmatched": options.include_unmatched,
    }


def derive_file(settings: Settings, path: Path, target: Path, options: SamplingOptions = SamplingOptions()) -> tuple[Weights, Verdict]:
    """Weights of any manifest, published at `target` with the verdict on their bounds; no split table is asked.

    Raises
    ------
    as `run`
    """
    name, profile = resolved(settings, options)
    events = Manifest(path)
    found = derive(
        events,
        profile,
        technique_filter=options.technique_filter,
        match_all=options.match_all,
        include_unmatched=options.include_unmatched,
    )
    digest = store.hash_file(path)
    shown = settings.store.rel(path)
    document = to_json(found, name, _parameters(profile, options), {"path": shown, "sha256": digest})
    store.Store(target.parent, remember=False).publish_json(target, document)
    artifact = Artifact("manifest", shown, digest, events.n_rows)
    figures = _figures(found)
    verdict = Verdict(GATE, (_in_bounds(found, profile),), (artifact,), figures, _limits(profile), profile=settings.profile)
    return found, verdict


def _in_bounds(weights: Weights, profile: SamplingProfile) -> Rule:
    low, high = profile.min_weight, profile.max_weight
    outside = [g for g, w in weights.groups.items() if not (math.isfinite(w.weight) and low <= w.weight <= high)]
    return Rule.at_most("weights_in_bounds", float(len(outside)), 0.0, f"groups outside {low:g}..{high:g} {outside[:3] or ''}".strip())


def _figures(weights: Weights) -> dict[str, float]:
    values = [w.weight for w in weights.groups.values()]
    return {"min_weight": min(values), "max_weight": max(values)}


def _limits(profile: SamplingProfile) -> dict[str, float]:
    return {"min_weight": profile.min_weight, "max_weight": profile.max_weight}


def run(settings: Settings, options: SamplingOptions = SamplingOptions(), *, progress: Progress = silent) -> Report:
    """Publish reports/sampling/annotated_weights.json with the verdict `sampling`.

    Raises
    ------
    ConfigError `unknown-choice` and those of `checked`
    InputError `missing-input`, `bad-manifest`
    NothingToDo `nothing-to-judge`
    """
    name, profile = resolved(settings, options)
    manifest, splits = settings.layout.annotated, settings.layout.splits
    parameters = _parameters(profile, options)

    def work() -> Outcome:
        events = Manifest(manifest)
        progress(f"weighing groups of {events.n_rows:,} events")
        weights = derive(
            events,
            profile,
            technique_filter=options.technique_filter,
            match_all=options.match_all,
            include_unmatched=options.include_unmatched,
        )
        digest = settings.store.sha256(manifest)
        target = settings.layout.report("sampling", "annotated_weights.json")
        settings.store.publish_json(target, to_json(weights, name, parameters, {"path": settings.store.rel(manifest), "sha256": digest}))
        train = set(pl.read_parquet(splits).filter(pl.col("split") == "train")["group_id"])
        groups = {
            group
            for piece in events.pieces(sorted({"group_id", profile.group_field, FALLBACK_GROUP}))
            for leak, group in piece.select("group_id", _group_of(piece, profile.group_field).alias("group")).unique().iter_rows()
            if leak in train
        }
        verdict = judge(
            weights,
            profile,
            named_sha256=store.read_json(target)["manifest"]["sha256"],
            manifest_sha256=digest,
            train_groups=sorted(groups),
            inputs=(
                Artifact("manifest", settings.store.rel(manifest), digest, events.n_rows),
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
