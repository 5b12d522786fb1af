"""Which group of recordings is trained on, which is validated on, which is tested on (`spec/gates.md` section 12).

Belongs here: the one split rule and its gate. Does not belong here: what a group is (the sources say that).
A group never moves when others come, unless a newcomer proves to be a copy of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets.errors import ConfigError, InputError, NothingToDo
from beatsight_assets.events import EVENT_SCHEMA, Manifest
from beatsight_assets.manifest import near_duplicates
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.taxonomy import UNSPECIFIED, Taxonomy, View
from beatsight_assets.units import bucket
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

STAGE = "splits"
VERSION = "3"
SPLITS = ("train", "val", "test")
PROTECTION = {split: i for i, split in enumerate(SPLITS)}  # the most protected of several hints wins
RATIOS = (0.8, 0.1, 0.1)
AUDIO_NAME = r"(?i)\.(wav|flac|aiff?|ogg|mp3)$"  # every audio file of a session counts: raw recordings and mixes lie beside a stem
MIDI_NAME = r"(?i)\.midi?$"
SESSION = ("source_set", "session_id", "group_id")
KEYS_SCHEMA = pl.Schema(dict.fromkeys((*SESSION, "kind", "key"), pl.String()))  # of `session_keys`
LISTED_SESSIONS = 5  # of one repeated take
LISTED = 50  # joined groups named in the receipt
TAKE_FIELDS = (
    *("source_set", "session_id", "group_id", "drummer_id", "kit_id", "is_synthetic", "audio_path", "midi_path"),
    *("split_hint", "mix_context"),
)
SPLITS_SCHEMA = pl.Schema(
    {
        "group_id": pl.String(),
        "split": pl.String(),
        "reason": pl.String(),
        "source_sets": pl.List(pl.String),
        "events": pl.Int64(),
        "sessions": pl.Int64(),
    }
)


@dataclass(frozen=True)
class SplitOptions:
    """seed : of the bucket; ratios : shares of train, val, test."""

    seed: int = 0
    ratios: tuple[float, float, float] = RATIOS


@dataclass(frozen=True)
class Assignment:
    """Where a group goes and why: its official split, its bucket, or that of the groups it is joined with."""

    split: str
    reason: str  # official, hash, joined
    joined_with: tuple[str, ...] = ()  # the whole component in byte order, empty for a group alone


def assign(
    hints: Mapping[str, Iterable[str]], links: Iterable[tuple[str, str]] = (), *, seed: int = 0, ratios: Sequence[float] = RATIOS
) -> dict[str, Assignment]:
    """Split of every group.

    Parameters
    ----------
    hints : {group_id: official splits of its events, possibly none, possibly several}
    links : (group_id, content key); groups that share a key hold the same content and are joined

    Raises
    ------
    ConfigError `bad-option` : ratios are negative or do not sum to 1
    """
    if len(ratios) != 3 or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-9:
        raise ConfigError(
            f"ratios are {tuple(ratios)}; three shares for train, val and test that sum to 1", code="bad-option", where="--ratios"
        )
    found: dict[str, Assignment] = {}
    for members in components(hints, links):
        official = [h for g in members for h in hints[g]]
        if official:
            split = max(official, key=PROTECTION.__getitem__)
        else:
            place = bucket(seed, members[0])
            split = "train" if place < ratios[0] else "val" if place < ratios[0] + ratios[1] else "test"
        for group in members:
            own = max(hints[group], key=PROTECTION.__getitem__, default=None)
            reason = "official" if own == split else "joined" if len(members) > 1 else "hash"
            found[group] = Assignment(split, reason, tuple(members) if len(members) > 1 else ())
    return found


def components(groups: Iterable[str], links: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups that share content, directly or through others; members and components in byte order. Links of other groups do not count."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    owner: dict[str, str] = {}
    for group, key in links:
        if group not in parent:
            continue
        first, second = root(owner.setdefault(key, group)), root(group)
        parent[max(first, second, key=str.encode)] = min(first, second, key=str.encode)
    members: dict[str, list[str]] = {}
    for group in sorted(parent, key=str.encode):
        members.setdefault(root(group), []).append(group)
    return list(members.values())


def session_keys(provenance: pl.DataFrame, paths: pl.DataFrame) -> pl.DataFrame:
    """What each session holds: columns source_set, session_id, group_id, kind (audio, midi), key; nothing for a session without digests.

    Parameters
    ----------
    provenance : source_set, session_id, hashes, facts
    paths : source_set, session_id, group_id, audio_path, midi_path of the sessions that have events. Without a MIDI file there is no MIDI
        content: all samples that hold one stroke at 0 s would be "equal". A MIDI file counts by its bytes too, for two note maps read
        different hits from it. Audio that `ingest` found to hold nothing (facts `no_content`) is no content: silence of one length is one
        file for all who hold it
    """
    sessions = provenance.join(paths, on=["source_set", "session_id"], how="inner")
    path = pl.col("hashes").struct.field("path")
    files = sessions.explode("hashes", empty_as_null=False, keep_nulls=False).select(
        *SESSION,
        path=path,
        kind=pl.when(path.str.contains(AUDIO_NAME)).then(pl.lit("audio")).when(path.str.contains(MIDI_NAME)).then(pl.lit("midi")),
        key=pl.col("hashes").struct.field("sha256"),
    )
    without = sessions.filter(pl.col("facts").str.contains('"no_content"', literal=True)).select("source_set", "session_id", "facts")
    named = [(source, session, path) for source, session, facts in without.iter_rows() for path in json.loads(facts).get("no_content", ())]
    empty = pl.DataFrame(named, schema={"source_set": pl.String, "session_id": pl.String, "path": pl.String}, orient="row")
    files = files.join(empty, on=["source_set", "session_id", "path"], how="anti").drop("path")
    played = sessions.drop_nulls("midi_path").select(
        *SESSION, kind=pl.lit("midi"), key=pl.col("facts").str.json_path_match("$.midi_content")
    )
    return pl.concat([files, played]).drop_nulls().unique()


def content_keys(sessions: pl.DataFrame) -> pl.DataFrame:
    """What each group holds, from `session_keys`: columns group_id, kind, key; sorted."""
    return sessions.select("group_id", "kind", "key").unique().sort("kind", "key", "group_id")


def repeats(sessions: pl.DataFrame) -> pl.DataFrame:
    """Content that more than one session holds, from `session_keys`: kind, sessions (`source_set/session_id`, sorted), source_sets, groups.

    A take found twice is one row, whether its sessions share a group (the sources know that they are one) or are joined by this step.
    """
    found = (
        sessions.group_by("kind", "key")
        .agg(
            pl.concat_str("source_set", "session_id", separator="/").unique().sort().alias("sessions"),
            pl.col("source_set").unique().sort().alias("source_sets"),
            pl.col("group_id").unique().sort().alias("groups"),
        )
        .filter(pl.col("sessions").list.len() > 1)
    )
    found = found.drop("key").unique(["kind", "sessions"])
    order = [pl.col("source_sets").list.len(), pl.col("groups").list.len(), "kind", pl.col("sessions").list.join("\n")]
    return found.sort(order, descending=[True, True, False, False])


@dataclass(frozen=True)
class SplitFigures:
    """What a split table does to the events; counted from the tables, not from how the split was made."""

    n_events: Mapping[str, int]  # by split
    group_overlap: int  # groups that stand in two splits
    audio_overlap: int  # audio digests
    midi_overlap: int  # MIDI contents
    events_moved: int  # out of their official split
    events_unassigned: int
    free_groups: Mapping[str, int]  # groups without an official split, by split
    class_groups: Mapping[str, Mapping[str, int]]  # class -> split -> groups
    drummers_in_two_splits: int
    kits_in_two_splits: int
    synthetic_share: Mapping[str, float]


@dataclass(frozen=True)
class Takes:
    """What a split needs to know of the events, in thousands of rows instead of millions.

    rows : one per distinct row of TAKE_FIELDS, and `events`, how many events it stands for
    classes : (group_id, label) pairs that occur, without stems and without hits of an unspecified piece
    """

    rows: pl.DataFrame
    classes: pl.DataFrame

    @classmethod
    def of(cls, manifest: Manifest) -> Takes:
        """Takes of a manifest, read a row group at a time."""
        rows, classes = [], []
        for piece in manifest.pieces((*TAKE_FIELDS, "components")):
            rows.append(piece.group_by(TAKE_FIELDS).agg(pl.len().cast(pl.Int64).alias("events")))
            classes.append(_classes(piece))
        empty = EVENT_SCHEMA.to_frame()
        rows.append(empty.group_by(TAKE_FIELDS).agg(pl.len().cast(pl.Int64).alias("events")))
        classes.append(_classes(empty))
        return cls(
            pl.concat(rows).group_by(TAKE_FIELDS).agg(pl.col("events").sum()).sort(TAKE_FIELDS),
            pl.concat(classes).unique().sort("group_id", "label"),
        )


def _classes(events: pl.DataFrame) -> pl.DataFrame:
    """Distinct (group_id, label) of the hits that say what was struck."""
    hits = events["components"].explode(empty_as_null=False, keep_nulls=False)
    per_event = events["components"].list.len().fill_null(0).to_numpy()
    groups = events["group_id"].cast(pl.Categorical)
    pairs = pl.DataFrame(
        {
            "group": groups.to_physical().to_numpy().repeat(per_event),
            "label": hits.struct.field("label").cast(pl.Categorical),
            "stem": (events["mix_context"] == "stem").fill_null(False).to_numpy().repeat(per_event),
        }
    ).filter(~pl.col("stem") & (hits.struct.field("instrument_variant").ne_missing(UNSPECIFIED)))
    names = pl.DataFrame({"group": groups.to_physical(), "group_id": events["group_id"]}).unique("group")
    return pairs.select("group", "label").unique().join(names, on="group").select("group_id", pl.col("label").cast(pl.String))


def measure(takes: Takes, table: pl.DataFrame, keys: pl.DataFrame, view: View) -> SplitFigures:
    """Figures of a split table about the takes it is for and their content keys (`content_keys`)."""
    split = table.select("group_id", "split")
    rows = takes.rows.join(split.unique("group_id", keep="first"), on="group_id", how="left")
    known = rows.filter(pl.col("split").is_in(SPLITS))
    events = pl.col("events")
    counts = dict(known.group_by("split").agg(events.sum()).iter_rows())
    test_groups = set(rows.filter(pl.col("split_hint") == "test")["group_id"].unique())
    protected = [g for members in components(table["group_id"].unique(), _links(keys)) if test_groups & set(members) for g in members]
    hint, at = pl.col("split_hint"), pl.col("split")
    moved = ((hint == "test") & (at != "test")) | (
        (hint == "val") & (at != "val") & ~((at == "test") & pl.col("group_id").is_in(protected))
    )
    hits = (
        takes.classes.join(known.select("group_id", "split").unique(), on="group_id")
        .with_columns(pl.col("label").replace_strict(dict(view.class_of), default=None, return_dtype=pl.String).alias("class"))
        .drop_nulls("class")
        .group_by("class", "split")
        .agg(pl.col("group_id").n_unique())
    )
    class_groups: dict[str, dict[str, int]] = {c: {} for c in view.classes}
    for name, where, n in hits.iter_rows():
        class_groups[name][where] = n
    hinted = rows.filter(hint.is_not_null()).select("group_id").unique()
    free = dict(table.join(hinted, on="group_id", how="anti").group_by("split").len().iter_rows())
    synthetic = known.group_by("split").agg((events * pl.col("is_synthetic")).sum() / events.sum())
    return SplitFigures(
        n_events={s: counts.get(s, 0) for s in SPLITS},
        group_overlap=_in_two_splits(split, "group_id"),
        audio_overlap=_in_two_splits(keys.filter(pl.col("kind") == "audio").join(split, on="group_id"), "key"),
        midi_overlap=_in_two_splits(keys.filter(pl.col("kind") == "midi").join(split, on="group_id"), "key"),
        events_moved=int(known.filter(moved.fill_null(False))["events"].sum()),
        events_unassigned=int(rows["events"].sum()) - int(known["events"].sum()),
        free_groups={s: free.get(s, 0) for s in SPLITS},
        class_groups=class_groups,
        drummers_in_two_splits=_in_two_splits(known, "drummer_id"),
        kits_in_two_splits=_in_two_splits(known, "kit_id"),
        synthetic_share={s: round(float(v), 6) for s, v in sorted(synthetic.iter_rows())},
    )


def judge(
    figures: SplitFigures,
    limits: Mapping[str, Any],
    *,
    ratios: Sequence[float] = RATIOS,
    inputs: Sequence[Artifact] = (),
    profile: str = "dev",
) -> Verdict:
    """Verdict of gate `splits`. Overlap, moves and gaps block; shares and classes warn."""
    deviation, min_free, min_groups = float(limits["max_share_deviation"]), int(limits["min_free_groups"]), int(limits["min_class_groups"])
    n_free = sum(figures.free_groups.values())
    rules = [
        Rule.at_most("group_overlap", figures.group_overlap, 0, "groups in two splits"),
        Rule.at_most("audio_digest_overlap", figures.audio_overlap, 0, "equal audio in two splits"),
        Rule.at_most("duplicate_midi_overlap", figures.midi_overlap, 0, "equal MIDI content in two splits"),
        Rule.at_most("official_split_respected", figures.events_moved, 0, "events moved out of their official split"),
        Rule.at_most("unassigned_events", figures.events_unassigned, 0, "events without a split"),
    ]
    for split, ratio in zip(SPLITS, ratios, strict=True):
        if n_free > min_free:
            share = figures.free_groups[split] / n_free
            passed = abs(share - ratio) <= deviation + 1e-9
            rules.append(
                Rule(f"split_share[{split}]", passed, share, ratio, f"share of {n_free} free groups, within {deviation:g}", blocking=False)
            )
        else:
            rules.append(Rule.waive(f"split_share[{split}]", f"{n_free} groups are free to move, judged above {min_free}"))
    for name, by_split in figures.class_groups.items():
        if sum(by_split.values()) >= min_groups:
            for split in SPLITS:
                rules.append(
                    Rule.at_least(
                        f"class_present[{split}][{name}]", by_split.get(split, 0), 1, "groups with a hit of this class", blocking=False
                    )
                )
    empty = [split for split in SPLITS if not figures.n_events[split]]
    reasons = (Reason("nothing-to-judge", f"no event in {', '.join(empty)}. Add groups, or give --ratios or --seed"),) if empty else ()
    return Verdict(
        "splits",
        tuple(rules),
        inputs=tuple(inputs),
        figures={f"events_{s}": n for s, n in figures.n_events.items()}
        | {f"synthetic_share_{s}": v for s, v in figures.synthetic_share.items()},
        limits={k: v for k, v in limits.items() if isinstance(v, (int, float))},
        reasons=reasons,
        support={"free_groups": n_free, "events": sum(figures.n_events.values())},
        profile=profile,
    )


@dataclass(frozen=True)
class Material:
    """What a manifest gives to split by.

    groups : group_id, sources, events, sessions, by group_id; hints : official splits by group
    keys : `content_keys` of its sessions; repeated : takes that are there more than once (`repeats`)
    """

    takes: Takes
    groups: pl.DataFrame
    hints: Mapping[str, Sequence[str]]
    keys: pl.DataFrame
    repeated: pl.DataFrame

    @staticmethod
    def of(manifest: Manifest, provenance: Sequence[Path], near: Path | None) -> Material:
        """
        Parameters
        ----------
        provenance : tables of its datasets; equal files and equal MIDI content are known from there
        near : pairs of `near_duplicates`, which count as equal audio

        Raises
        ------
        NothingToDo `no-events`
        InputError `bad-manifest` : a hint is no split
        """
        if not manifest.n_rows:
            raise NothingToDo("the manifest is empty", code="no-events")
        takes = Takes.of(manifest)
        groups = (
            takes.rows.group_by("group_id")
            .agg(
                pl.col("split_hint").drop_nulls().unique().sort().alias("hints"),
                pl.col("source_set").unique().sort().alias("source_sets"),
                pl.col("events").sum(),
                pl.struct("source_set", "session_id").n_unique().cast(pl.Int64).alias("sessions"),
            )
            .sort("group_id")
        )
        hints = dict(groups.select("group_id", "hints").iter_rows())
        if strange := sorted({h for found in hints.values() for h in found} - set(SPLITS)):
            raise InputError(f"split_hint {strange[0]!r} is not one of {', '.join(SPLITS)}", code="bad-manifest", where=manifest.where)
        sessions = takes.rows.select(*SESSION, "audio_path", "midi_path").unique()
        columns = ["source_set", "session_id", "hashes", "facts"]
        tables = [pl.read_parquet(path, columns=columns) for path in provenance]
        held = [session_keys(pl.concat(tables, how="vertical_relaxed"), sessions)] if tables else []
        if near:
            alike = near_duplicates.content_keys(pl.read_parquet(near)).join(sessions, on=SESSION, how="semi")
            held.append(alike.select(KEYS_SCHEMA.names()))
        keys = pl.concat([pl.DataFrame(schema=KEYS_SCHEMA), *held])
        return Material(takes, groups, hints, content_keys(keys), repeats(keys))

    def table(self, options: SplitOptions) -> tuple[pl.DataFrame, dict[str, Assignment]]:
        """The split table (SPLITS_SCHEMA), and why each group is where it is."""
        found = assign(self.hints, _links(self.keys), seed=options.seed, ratios=options.ratios)
        columns = {"split": [found[g].split for g in self.hints], "reason": [found[g].reason for g in self.hints]}
        table = pl.DataFrame({**self.groups.select("group_id", "source_sets", "events", "sessions").to_dict(), **columns})
        return table.select(pl.col(c).cast(t) for c, t in SPLITS_SCHEMA.items()), found


def run(settings: Settings, options: SplitOptions = SplitOptions(), *, progress: Progress = silent) -> Report:
    """manifest/annotated.parquet, and manifest/near_duplicates.parquet where it is there -> manifest/splits.parquet, judged as gate `splits`.

    Near duplicates are equal audio: their groups are joined, and the rule `audio_digest_overlap` counts them.

    Raises
    ------
    InputError `missing-input` : nothing was annotated yet, or a dataset has no provenance
    ConfigError `bad-option` : ratios do not sum to 1
    NothingToDo `no-events`
    """
    layout = settings.layout
    if not layout.annotated.is_file():
        raise InputError("file does not exist. Run: beatsight events annotate", code="missing-input", where=layout.rel(layout.annotated))
    manifest = Manifest(layout.annotated)
    provenance_paths = [layout.provenance(name) for name in _sources_of(manifest)]
    near = layout.near_duplicates if layout.near_duplicates.is_file() else None
    limits = settings.gates.splits.model_dump()
    taxonomy = Taxonomy.load(settings)

    def work() -> Outcome:
        progress(f"splitting {manifest.n_rows:,} events")
        material = Material.of(manifest, provenance_paths, near)
        table, found = material.table(options)
        settings.store.publish_frame(layout.splits, table, metadata={"schema": "beatsight.splits/1", "seed": str(options.seed)})
        figures, verdict = _judged(settings, material, table, options.ratios, layout.splits)
        conflicts = [(g, h) for g, h in material.hints.items() if len(h) > 1]
        joined = sorted({a.joined_with for a in found.values() if a.joined_with})
        per_split = table.group_by("split").agg(pl.len(), pl.col("sessions").sum(), pl.col("events").sum())
        shares = {s: (n, sessions, n_events) for s, n, sessions, n_events in per_split.iter_rows()}
        progress(f"{table.height:,} groups: " + ", ".join(f"{s} {shares.get(s, (0,))[0]:,}" for s in SPLITS))
        return Outcome(
            outputs=[("splits", layout.splits, table.height)],
            figures={
                "groups": table.height,
                **{f"events_{s}": n for s, n in figures.n_events.items()},
                "split_conflict": len(conflicts),
                "joined_groups": sum(len(j) for j in joined),
                "repeated_content": material.repeated.height,
                "repeated_across_datasets": material.repeated.filter(pl.col("source_sets").list.len() > 1).height,
                "drummers_in_two_splits": figures.drummers_in_two_splits,
                "kits_in_two_splits": figures.kits_in_two_splits,
            },
            facts={
                "joined": [{"groups": list(j), "split": found[j[0]].split} for j in joined[:LISTED]],
                "repeated": [
                    {"kind": kind, "sessions": names[:LISTED_SESSIONS], "n_sessions": len(names), "groups": in_groups}
                    for kind, names, in_groups in material.repeated.head(LISTED).select("kind", "sessions", "groups").iter_rows()
                ],
                "conflicting_hints": {g: {"hints": h, "split": found[g].split} for g, h in conflicts[:LISTED]},
                "synthetic_share": dict(figures.synthetic_share),
                "class_groups": {c: dict(sorted(n.items())) for c, n in figures.class_groups.items()},
            },
            verdicts=[verdict],
            table=Table(("split", "groups", "sessions", "events"), tuple((s, *shares.get(s, (0, 0, 0))) for s in SPLITS)),
        )

    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"seed": options.seed, "ratios": list(options.ratios), "limits": dict(limits), "taxonomy": taxonomy.digest},
        parents=[
            ("annotated", layout.annotated),
            *(("provenance", p) for p in provenance_paths),
            *([("near_duplicates", near)] if near else []),
        ],
        work=work,
    )


def split_manifest(settings: Settings, manifest: Path, options: SplitOptions = SplitOptions()) -> tuple[pl.DataFrame, Verdict]:
    """The split table of any manifest and its verdict; nothing is written. Datasets without provenance are split by hints and groups alone.

    Raises
    ------
    as `run`
    """
    material = _material(settings, manifest)
    table, _ = material.table(options)
    return table, _judged(settings, material, table, options.ratios, None)[1]


def check(settings: Settings, manifest: Path, table_path: Path, options: SplitOptions = SplitOptions()) -> Verdict:
    """The gate `splits` on a table that lies there, against the manifest as it is now; nothing is assigned and nothing is written.

    Raises
    ------
    InputError `missing-input`; `bad-metadata` : the table holds no group_id and split
    as `Material.of`
    """
    if not table_path.is_file():
        raise InputError(
            "there is no split table. Run: beatsight events split", code="missing-input", where=settings.layout.shown(table_path)
        )
    try:
        table = pl.read_parquet(table_path, columns=["group_id", "split"]).cast(pl.String)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"is no split table: {error}", code="bad-metadata", where=settings.layout.shown(table_path)) from error
    return _judged(settings, _material(settings, manifest), table, options.ratios, table_path)[1]


def _material(settings: Settings, path: Path) -> Material:
    manifest, layout = Manifest(path), settings.layout
    provenance = [p for p in map(layout.provenance, _sources_of(manifest)) if p.is_file()]
    return Material.of(manifest, provenance, layout.near_duplicates if layout.near_duplicates.is_file() else None)


def _sources_of(manifest: Manifest) -> list[str]:
    return sorted({name for piece in manifest.pieces(["source_set"]) for name in piece["source_set"].unique()})


def _judged(
    settings: Settings, material: Material, table: pl.DataFrame, ratios: Sequence[float], path: Path | None
) -> tuple[SplitFigures, Verdict]:
    limits = settings.gates.splits.model_dump()
    figures = measure(material.takes, table, material.keys, Taxonomy.load(settings).view(limits.get("view", "drums18")))
    inputs = (Artifact("splits", settings.layout.shown(path), settings.store.sha256(path), table.height),) if path else ()
    return figures, judge(figures, limits, ratios=ratios, inputs=inputs, profile=settings.profile)


def _links(keys: pl.DataFrame) -> list[tuple[str, str]]:
    return [(group, f"{kind}:{key}") for group, kind, key in keys.select("group_id", "kind", "key").iter_rows()]


def _in_two_splits(rows: pl.DataFrame, column: str) -> int:
    """Values of a column that stand in more than one split; null is no value."""
    spread = rows.drop_nulls(column).group_by(column).agg(pl.col("split").n_unique().alias("n"))
    return int((spread["n"] > 1).sum())
