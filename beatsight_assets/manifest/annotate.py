"""The merged table with canonical labels and techniques: what everything after it reads.

Belongs here: the order of the steps and their gate. Does not belong here: the steps (aliases, openness, techniques).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import polars as pl

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError, NothingToDo
from beatsight_assets.events import parquet_metadata, read_events
from beatsight_assets.manifest import aliases, openness, techniques
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE = "annotated_manifest"
VERSION = "1"


@dataclass(frozen=True)
class AnnotateOptions:
    """recompute : take inferred techniques that the merged table brings back off before adding those found now."""

    recompute: bool = False


@dataclass(frozen=True)
class Annotated:
    """The annotated table and what each step counted."""

    frame: pl.DataFrame
    aliases: aliases.AliasReport
    openness: openness.OpennessFigures
    technique_counts: pl.DataFrame  # technique, events, sessions, groups; most events first


def annotate_events(events: pl.DataFrame, taxonomy: Taxonomy, *, recompute: bool = False) -> Annotated:
    """Canonical labels, then techniques. Same rows in the same order; running it on its own result changes nothing."""
    frame, report = aliases.with_canonical_labels(events, taxonomy)
    frame = techniques.with_techniques(frame, recompute=recompute)
    return Annotated(frame, report, openness.measure_openness(frame), count_techniques(frame))


def count_techniques(events: pl.DataFrame) -> pl.DataFrame:
    """Events, sessions and groups of each technique: columns technique, events, sessions, groups; most events first."""
    tagged = events.filter(pl.col("techniques").list.len() > 0).select("source_set", "session_id", "group_id", technique="techniques")
    return (
        tagged.explode("technique", empty_as_null=False, keep_nulls=False)
        .group_by("technique")
        .agg(
            pl.len().alias("events"),
            pl.struct("source_set", "session_id").n_unique().alias("sessions"),
            pl.col("group_id").n_unique().alias("groups"),
        )
        .sort(["events", "technique"], descending=[True, False])
    )


def run(settings: Settings, options: AnnotateOptions = AnnotateOptions(), *, progress: Progress = silent) -> Report:
    """manifest/merged.parquet -> manifest/annotated.parquet, judged as gate `annotate`.

    Raises
    ------
    InputError `missing-input` : nothing was merged yet
    InputError `unknown-technique` : an event carries a tag that configs/techniques.yaml does not define
    ConfigError `bad-config` : the catalogue is ambiguous or does not define what the rules find; `unknown-choice` : a limit names a
        technique that it does not define
    NothingToDo `no-events` : the merged table is empty
    """
    taxonomy = Taxonomy.load(settings)
    catalogue = techniques.catalogue(settings.techniques)
    health = settings.gates.health
    required = dict.fromkeys(health.get("required_techniques", []), 1) | dict(health.get("min_technique_counts", {}))
    if unheard := sorted(set(required) - set(catalogue)):
        raise ConfigError.unknown_choice(
            "required technique", unheard[0], catalogue, where=f"configs/gates/{settings.profile}.yaml: health"
        )
    max_unknown = int(health.get("max_unknown_labels", 0))

    def work() -> Outcome:
        merged = read_events(settings.layout.merged)
        if not merged.height:
            raise NothingToDo("the merged table is empty. Run: beatsight events merge", code="no-events")
        progress(f"annotating {merged.height:,} events")
        found = annotate_events(merged, taxonomy, recompute=options.recompute)
        counts = {name: {"events": n, "sessions": s, "groups": g} for name, n, s, g in found.technique_counts.iter_rows()}
        strange = sorted(set(counts) - set(catalogue))
        if strange:
            raise InputError(
                f"{', '.join(strange)} on {sum(counts[t]['events'] for t in strange):,} events; not in the catalogue. Correct the source, or add the technique",
                code="unknown-technique",
                where="configs/techniques.yaml",
            )
        settings.store.publish_frame(settings.layout.annotated, found.frame, metadata=parquet_metadata(taxonomy))
        n_unknown = sum(found.aliases.unknown.values())
        rules = (
            Rule(
                "rows_unchanged",
                found.frame["event_id"].equals(merged["event_id"]),
                found.frame.height,
                merged.height,
                "the same events in the same order",
            ),
            Rule.at_most("labels_canonical", n_unknown, max_unknown, f"unknown labels: {', '.join(found.aliases.unknown) or 'none'}"),
            Rule.at_most(
                "openness_range",
                found.openness.n_out_of_range + found.openness.n_not_on_hats,
                0,
                "openness lies within 0..1, and only on closed and open hats",
            ),
            *(
                Rule.at_least(f"required_techniques[{t}]", counts.get(t, {}).get("events", 0), n, f"at least {n} events")
                for t, n in sorted(required.items())
            ),
            *(() if required else (Rule.waive("required_techniques", f"profile {settings.profile} requires none"),)),
        )
        n_tagged = int((found.frame["techniques"].list.len() > 0).sum())
        artifact = Artifact(
            "annotated",
            settings.layout.rel(settings.layout.annotated),
            settings.store.sha256(settings.layout.annotated),
            found.frame.height,
        )
        return Outcome(
            outputs=[("annotated", settings.layout.annotated, found.frame.height)],
            figures={
                "rows": found.frame.height,
                "tagged_events": n_tagged,
                "relabelled": sum(n for to in found.aliases.relabelled.values() for n in to.values()),
                "unknown_labels": n_unknown,
                "openness_conflicts": found.openness.n_conflicts,
            },
            facts={"techniques": counts, "aliases": found.aliases.to_json(), "openness": vars(found.openness)},
            verdicts=[Verdict("annotate", rules, inputs=(artifact,), support={"events": found.frame.height}, profile=settings.profile)],
            table=Table(("technique", "events", "sessions", "groups"), tuple(found.technique_counts.head(24).iter_rows())),
        )

    return run_stage(
        settings,
        STAGE,
        version=f"{VERSION}.{techniques.VERSION}",
        options={
            "recompute": options.recompute,
            "taxonomy": taxonomy.digest,
            "techniques": sha256(store.to_json_bytes(settings.techniques.model_dump(mode="json"))).hexdigest(),
            "required": required,
            "max_unknown_labels": max_unknown,
        },
        parents=[("merged", settings.layout.merged)],
        work=work,
    )
