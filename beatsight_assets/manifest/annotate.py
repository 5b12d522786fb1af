"""The merged table with canonical labels and techniques: what everything after it reads.

Belongs here: the order of the steps and their gate. Does not belong here: the steps (aliases, crash_mapping, openness, techniques).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import polars as pl

from beatsight_assets import store
from beatsight_assets.errors import ConfigError, InputError, NothingToDo
from beatsight_assets.events import EVENT_SCHEMA, Manifest, parquet_metadata
from beatsight_assets.manifest import aliases, crash_mapping, openness, techniques
from beatsight_assets.settings import Settings, TechniqueConfig
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE = "annotated_manifest"
VERSION = "2"


@dataclass(frozen=True)
class AnnotateOptions:
    """recompute : take inferred techniques that the merged table brings back off before adding those found now."""

    recompute: bool = False


@dataclass
class Annotation:
    """What the steps counted; complete when the last piece was taken.

    n_unmoved : events that stand where they stood; n_tagged : events with a technique;
    n_crashes_changed : crashes whose label the crash mapping changed
    """

    n_rows: int = 0
    n_unmoved: int = 0
    n_tagged: int = 0
    n_crashes_changed: int = 0
    aliases: aliases.AliasReport = field(default_factory=aliases.AliasReport)
    openness: openness.OpennessCounter = field(default_factory=openness.OpennessCounter)
    technique_uses: list[pl.DataFrame] = field(default_factory=list)

    @property
    def technique_counts(self) -> pl.DataFrame:
        """See `count_techniques`."""
        return _summed(self.technique_uses)


def count_techniques(events: pl.DataFrame) -> pl.DataFrame:
    """Events, sessions and groups of each technique: columns technique, events, sessions, groups; most events first."""
    return _summed([technique_uses(events)])


def _summed(uses: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return (
        pl.concat([technique_uses(EVENT_SCHEMA.to_frame()), *uses])
        .group_by("technique")
        .agg(
            pl.col("events").sum(),
            pl.struct("source_set", "session_id").n_unique().alias("sessions"),
            pl.col("group_id").n_unique().alias("groups"),
        )
        .sort(["events", "technique"], descending=[True, False])
    )


@dataclass(frozen=True)
class Annotated:
    """An annotated table in memory and what each step counted."""

    frame: pl.DataFrame
    aliases: aliases.AliasReport
    openness: openness.OpennessFigures
    technique_counts: pl.DataFrame  # technique, events, sessions, groups; most events first
    n_crashes_changed: int = 0


def annotate_events(
    events: pl.DataFrame, taxonomy: Taxonomy, *, recompute: bool = False, crashes: Mapping[str, str] | None = None
) -> Annotated:
    """`annotated_pieces` of a table in memory."""
    found = Annotation()
    pieces = list(annotated_pieces(Manifest(events), taxonomy, found, recompute=recompute, crashes=crashes))
    frame = pl.concat(pieces) if pieces else events
    return Annotated(frame, found.aliases, found.openness.figures(), found.technique_counts, found.n_crashes_changed)


def annotated_pieces(
    manifest: Manifest, taxonomy: Taxonomy, found: Annotation, *, recompute: bool = False, crashes: Mapping[str, str] | None = None
) -> Iterator[pl.DataFrame]:
    """Canonical labels, then which crash is which (`crash_mapping`), then techniques, session by session.

    Same rows in the same order; running it on its own result changes nothing. Crashes come before techniques because two different ones
    close together are a technique.
    """
    for piece in manifest.sessions():
        frame, report = aliases.with_canonical_labels(piece, taxonomy)
        frame, n_changed = crash_mapping.with_crash_variants(frame, crashes or {})
        frame = techniques.with_techniques(frame, recompute=recompute)
        found.n_rows += frame.height
        found.n_unmoved += int((frame["event_id"] == piece["event_id"]).sum())
        found.n_tagged += int((frame["techniques"].list.len() > 0).sum())
        found.n_crashes_changed += n_changed
        found.aliases += report
        found.openness.add(frame)
        found.technique_uses.append(technique_uses(frame))
        yield frame


def technique_uses(events: pl.DataFrame) -> pl.DataFrame:
    """Events of each technique in each session: columns technique, source_set, session_id, group_id, events."""
    keys = ("technique", "source_set", "session_id", "group_id")
    tagged = events.filter(pl.col("techniques").list.len() > 0).select(*keys[1:], technique="techniques")
    return tagged.explode("technique", empty_as_null=False, keep_nulls=False).group_by(keys).agg(pl.len().alias("events"))


def run(settings: Settings, options: AnnotateOptions = AnnotateOptions(), *, progress: Progress = silent) -> Report:
    """manifest/merged.parquet, and manifest/crash_mapping.json where it is there -> manifest/annotated.parquet, judged as gate `annotate`.

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

    mapping = settings.layout.crash_mapping if settings.layout.crash_mapping.is_file() else None

    def work() -> Outcome:
        crashes = crash_mapping.read_mapping(mapping) if mapping else None
        merged = Manifest(settings.layout.merged)
        if not merged.n_rows:
            raise NothingToDo("the merged table is empty. Run: beatsight events merge", code="no-events")
        progress(f"annotating {merged.n_rows:,} events")
        found = Annotation()
        pieces = _known_only(annotated_pieces(merged, taxonomy, found, recompute=options.recompute, crashes=crashes), found, catalogue)
        settings.store.publish_frames(settings.layout.annotated, pieces, EVENT_SCHEMA, metadata=parquet_metadata(taxonomy))
        table = found.technique_counts
        counts = {name: {"events": n, "sessions": s, "groups": g} for name, n, s, g in table.iter_rows()}
        openness_figures = found.openness.figures()
        n_unknown = sum(found.aliases.unknown.values())
        rules = (
            Rule(
                "rows_unchanged",
                found.n_unmoved == found.n_rows == merged.n_rows,
                found.n_unmoved,
                merged.n_rows,
                "the same events in the same order",
            ),
            Rule.at_most("labels_canonical", n_unknown, max_unknown, f"unknown labels: {', '.join(found.aliases.unknown) or 'none'}"),
            Rule.at_most(
                "openness_range",
                openness_figures.n_out_of_range + openness_figures.n_not_on_hats,
                0,
                "openness lies within 0..1, and only on closed and open hats",
            ),
            *(
                Rule.at_least(f"required_techniques[{t}]", counts.get(t, {}).get("events", 0), n, f"at least {n} events")
                for t, n in sorted(required.items())
            ),
            *(() if required else (Rule.waive("required_techniques", f"profile {settings.profile} requires none"),)),
        )
        artifact = Artifact(
            "annotated",
            settings.layout.rel(settings.layout.annotated),
            settings.store.sha256(settings.layout.annotated),
            found.n_rows,
        )
        return Outcome(
            outputs=[("annotated", settings.layout.annotated, found.n_rows)],
            figures={
                "rows": found.n_rows,
                "tagged_events": found.n_tagged,
                "relabelled": sum(n for to in found.aliases.relabelled.values() for n in to.values()),
                "crashes_changed": found.n_crashes_changed,
                "unknown_labels": n_unknown,
                "openness_conflicts": openness_figures.n_conflicts,
            },
            facts={"techniques": counts, "aliases": found.aliases.to_json(), "openness": vars(openness_figures)},
            verdicts=[Verdict("annotate", rules, inputs=(artifact,), support={"events": found.n_rows}, profile=settings.profile)],
            table=Table(("technique", "events", "sessions", "groups"), tuple(table.head(24).iter_rows())),
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
        parents=[("merged", settings.layout.merged), *([("crash_mapping", mapping)] if mapping else [])],
        work=work,
    )


def _known_only(pieces: Iterator[pl.DataFrame], found: Annotation, catalogue: Mapping[str, TechniqueConfig]) -> Iterator[pl.DataFrame]:
    """The pieces, and an error in place of an end when an event carries a tag that the catalogue does not define."""
    yield from pieces
    strange = {name: n for name, n, *_ in found.technique_counts.iter_rows() if name not in catalogue}
    if strange:
        raise InputError(
            f"{', '.join(sorted(strange))} on {sum(strange.values()):,} events; not in the catalogue. Correct the source, or add the technique",
            code="unknown-technique",
            where="configs/techniques.yaml",
        )
