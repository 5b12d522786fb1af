"""Manifests in the forms of other programs: CSV, JSON, plain Parquet, Audacity label tracks, layers of Sonic Visualiser; both ways.

Belongs here: what `events export` and `events import` write and read, and the per-session writers that a bundle's export calls.
Does not belong here: event tables and JSONL (`events`), how an SVL file is parsed (`sources.idmt`), MIDI (`transcribe.labels`).
"""

from __future__ import annotations

import csv
import html
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from beatsight_assets.errors import ConfigError, InputError, NothingToDo
from beatsight_assets.events import (
    BUCKET_LIMITS,
    BUCKETS,
    COMPONENT_STRUCT,
    DAY_S,
    EVENT_SCHEMA,
    LIMIT_SLACK,
    MAX_LINE_BYTES,
    SPLITS,
    Hits,
    Manifest,
    Session,
    assemble,
    event_id,
    hits_of,
    hits_with_onsets,
    json_texts,
    read_events,
    to_jsonl,
    upgraded_row,
)
from beatsight_assets.manifest.compare import with_split
from beatsight_assets.safejson import parse_json
from beatsight_assets.sources.idmt import read_points
from beatsight_assets.sources.pipeline import QUARANTINE_SCHEMA
from beatsight_assets.store import UNPRINTABLE, Receipt, Store, hash_file, is_plain_path, printable, read_bytes
from beatsight_assets.taxonomy import HIHATS_WITH_OPENNESS, Taxonomy, Voice

EXPORTS = ("csv", "json", "jsonl", "parquet", "audacity", "svl")
IMPORTS = ("csv", "json", "jsonl", "parquet", "audacity", "svl")
CSV_COLUMNS = ("event_id", "session_id", "source_set", "group_id", "split", "onset_time", "offset_time", "label", "velocity", "dynamic_bucket",
               "openness", "techniques", "tempo_bpm", "meter", "is_synthetic", "audio_path")  # fmt: skip
NEEDED = ("session_id", "onset_time", "label")  # of a CSV; the others may be absent
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
MAX_BYTES = 2_000_000_000
CONFIDENCE = 0.95  # of a hit that a person marked, as in the hand-annotated datasets
RATE_HZ = 44_100
SECONDS = re.compile(r"\d{1,6}(?:\.\d{1,18})?", re.ASCII)
PIECE_ROWS = 50_000  # written at once: about 35 MB of text
CONTROL = r"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]"  # what `store.printable` escapes


def condition(text: str) -> pl.Expr:
    """Rows with `column=value`, from text; columns of texts and truth values.

    Raises
    ------
    ConfigError `bad-option`, `unknown-choice`
    """
    name, equals, value = text.partition("=")
    known = [c for c, t in EVENT_SCHEMA.items() if t in (pl.String, pl.Boolean) and c != "extras"]
    if not equals:
        raise ConfigError(f"{text[:80]!r} is not COLUMN=VALUE", code="bad-option", where="--where")
    if name not in known:
        raise ConfigError.unknown_choice("column", name, known, where="--where")
    return pl.col(name).cast(pl.String) == value


def export(
    store: Store, target: Path, manifest: Manifest, form: str, columns: Sequence[str], splits: pl.DataFrame | None, rate_hz: int
) -> list[Receipt]:
    """Publish a manifest in a form of EXPORTS, piece by piece where the form allows it; one file, or one per layer of a session.

    Raises
    ------
    InputError `bad-label`, `many-sessions`, `bad-manifest`
    """
    if form == "parquet":
        schema = {c: EVENT_SCHEMA[c] for c in columns}
        return [store.publish_frames(target, manifest.pieces(columns), schema)]
    if form == "svl":
        return [store.publish(target / f"{label}.svl", content) for label, content in to_svl(manifest.read(), rate_hz).items()]
    if form == "audacity":
        return [store.publish(target, to_audacity(manifest.read()))]

    def write(out: IO[bytes]) -> None:
        for n, piece in enumerate(manifest.pieces(None if form == "csv" else columns, rows=PIECE_ROWS)):
            if form == "csv":
                out.write(to_csv(piece, splits, columns=columns, header=n == 0))
            elif form == "jsonl":
                out.write(to_jsonl(piece))
            else:
                out.write((b",\n" if n else b"[\n") + to_json(piece)[2:-3])
        if form == "json":
            out.write(b"\n]\n")

    return [store.publish(target, write)]


# ---- CSV ---------------------------------------------------------------------------------------------------------------------


def to_csv(events: pl.DataFrame, splits: pl.DataFrame | None = None, *, columns: Sequence[str] = CSV_COLUMNS, header: bool = True) -> bytes:
    """One row per hit; a cell that a spreadsheet would run as a formula gets a leading apostrophe, which `read_csv` takes off again.

    splits : group_id, split; without it `split` is the official one. Negative rows hold no hit and have no line.

    Raises
    ------
    InputError `bad-label` : a text cannot stand in a line (control characters, or `;` in a technique)
    """
    if events["techniques"].explode(empty_as_null=False, keep_nulls=False).str.contains(";", literal=True).any():
        raise InputError("a technique holds a semicolon; a CSV separates techniques by it", code="bad-label")
    wide = with_split(events, splits).with_columns(pl.col("techniques").list.join(";"))
    flat = hits_of(wide, *(c for c in CSV_COLUMNS if c in wide.columns)).with_columns(pl.col("is_synthetic").cast(pl.String))
    texts = [c for c in columns if flat.schema[c] == pl.String]
    for name in texts:
        if (bad := flat.filter(pl.col(name).str.contains(CONTROL))).height:
            raise InputError(f"{name} {printable(bad[name][0])[:80]!r} cannot stand in a CSV", code="bad-label")
    risky = [pl.col(c).str.slice(0, 1).is_in((*FORMULA_STARTS, "'")) for c in texts]
    guarded = [pl.when(bad).then(pl.lit("'") + pl.col(c)).otherwise(pl.col(c)).alias(c) for c, bad in zip(texts, risky, strict=True)]
    return flat.with_columns(guarded).select(columns).write_csv(include_header=header).encode()


@dataclass
class Imported:
    """Events of a file in another form, and what of it was refused: rows of the quarantine, each with its line."""

    events: pl.DataFrame
    quarantine: pl.DataFrame = field(default_factory=lambda: QUARANTINE_SCHEMA.to_frame())
    n_read: int = 0  # rows, labels or points of the file


def read_csv(path: Path, source_set: str) -> Imported:
    """Events of a CSV as `to_csv` writes it; other columns than session_id, onset_time and label may be absent. A bad row is set aside.

    Raises
    ------
    InputError `bad-metadata` : not UTF-8, no header, unknown columns, needed ones absent, a line of more than 1 MB
    """
    digest = hash_file(path)
    refused: list[dict[str, Any]] = []

    def refuse(line: int, code: str, message: str) -> None:
        refused.append(
            {
                "source_set": source_set,
                "path": f"{path.name}:{line}",
                "digest": digest,
                "stage": "read",
                "code": code,
                "message": f"line {line}: {message}",
            }
        )

    lines, rows, header = _csv_rows(path, refuse)
    cells = pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row").select(
        *(pl.col(c) if c in header else pl.lit(None, pl.String).alias(c) for c in CSV_COLUMNS)
    )
    typed, problems = _typed(cells, source_set)
    for at, code, message in problems:
        refuse(lines[at], code, message)
    good = np.ones(len(rows), dtype=bool)
    good[[at for at, *_ in problems]] = False
    typed = typed.with_columns(line=pl.Series(lines, dtype=pl.Int64)).filter(pl.Series(good, dtype=pl.Boolean))
    events, conflicts = _events_of(typed)
    for line in conflicts:
        refuse(line, "id-conflict", "other fields than the first row of this event has")
    table = pl.DataFrame(sorted(refused, key=lambda r: int(r["path"].rpartition(":")[2])), schema=QUARANTINE_SCHEMA)
    return Imported(events, table, len(rows) + table.filter(pl.col("message").str.contains("fields are due")).height)


def _csv_rows(path: Path, refuse: Any) -> tuple[list[int], list[tuple[str | None, ...]], list[str]]:
    """(line, cells) of every row with as many cells as the header, and the header."""
    text = _text(path)

    def short_lines() -> Iterator[str]:
        for number, line in enumerate(io.StringIO(text, newline=""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"line of {len(line):,} characters; at most {MAX_LINE_BYTES:,}", code="bad-metadata", where=f"{path}:{number}"
                )
            yield line

    reader = csv.reader(short_lines(), strict=True)
    lines: list[int] = []
    rows: list[tuple[str | None, ...]] = []
    header: list[str] = []
    at = 1  # a quoted cell may span lines: a row's line is where it begins
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(f"not CSV: {error}", code="bad-metadata", where=f"{path}:{reader.line_num}") from error
        if row is None:
            break
        line, at = at, reader.line_num + 1
        if not header:
            header = row
            continue
        if not row:
            continue
        if len(row) != len(header):
            refuse(line, "bad-metadata", f"{len(row)} fields; {len(header)} fields are due")
            continue
        lines.append(line)
        rows.append(tuple(_unguarded(cell) or None for cell in row))
    if not header:
        raise InputError("no header line", code="bad-metadata", where=str(path))
    unknown = [c for c in header if c not in CSV_COLUMNS]
    absent = [c for c in NEEDED if c not in header]
    if unknown or absent or len(set(header)) != len(header):
        told = (
            f"unknown columns {', '.join(map(printable, unknown))[:200]}"
            if unknown
            else f"columns {', '.join(absent) or 'twice'} are not as due"
        )
        raise InputError(f"{told}; known are {', '.join(CSV_COLUMNS)}", code="bad-metadata", where=f"{path}:1")
    return lines, rows, header


def _unguarded(cell: str) -> str:
    """A cell without the apostrophe of `to_csv`, safe on a terminal."""
    bare = cell[1:] if cell[:1] == "'" and cell[1:2] in (*FORMULA_STARTS, "'") and len(cell) > 1 else cell
    return bare if bare.isprintable() else printable(bare)


def _text(path: Path) -> str:
    content = read_bytes(path, max_bytes=MAX_BYTES)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        n_lines = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"not UTF-8: {error.reason}", code="bad-encoding", where=f"{path}:{n_lines}") from error


def _typed(cells: pl.DataFrame, source_set: str) -> tuple[pl.DataFrame, list[tuple[int, str, str]]]:
    """Cells with their types, and (row, code, message) of the first thing wrong with each bad row."""
    numbers = ("onset_time", "offset_time", "velocity", "openness", "tempo_bpm")
    cast = cells.with_columns(
        *(pl.col(c).cast(pl.Float64, strict=False).alias(f"{c}_number") for c in numbers),
        source_set=pl.col("source_set").fill_null(source_set),
    )
    onset, offset, velocity, openness, tempo = (pl.col(f"{c}_number") for c in numbers)
    due = pl.coalesce(
        pl.when(velocity.is_null()).then(pl.lit("unknown")),
        *(pl.when(velocity <= top + LIMIT_SLACK).then(pl.lit(name)) for name, top in BUCKET_LIMITS),
    )
    bucket = pl.col("dynamic_bucket")

    def within(number: pl.Expr, name: str, low: float, high: float) -> pl.Expr:
        """True where a cell holds something else than a finite number within the limits."""
        return pl.col(name).is_not_null() & ~number.is_between(low, high).fill_null(False)

    paths = {name: [v for v in cells[name].unique().drop_nulls() if not is_plain_path(v)] for name in ("session_id", "audio_path")}
    rules: list[tuple[str, str, pl.Expr, str]] = [
        *((c, "bad-metadata", pl.col(c).is_null(), "is empty") for c in NEEDED),
        ("source_set", "bad-metadata", pl.col("source_set") != source_set, f"is not {source_set}"),
        *((c, "path-escape", pl.col(c).is_in(paths[c]), "is no plain relative path") for c in paths),
        ("onset_time", "bad-time", ~((onset >= 0) & (onset < DAY_S)).fill_null(False), "is no number within 0 .. 86,400 s"),
        ("offset_time", "bad-time", within(offset, "offset_time", 0, DAY_S) | (offset <= onset).fill_null(False), "is no time after onset_time"),
        ("velocity", "bad-metadata", within(velocity, "velocity", 0, 1), "is no number within 0 .. 1"),
        ("openness", "bad-metadata", within(openness, "openness", 0, 1), "is no number within 0 .. 1"),
        ("openness", "bad-metadata", openness.is_not_null() & ~pl.col("label").is_in(HIHATS_WITH_OPENNESS), "goes with closed and open hats"),
        ("tempo_bpm", "bad-metadata", within(tempo, "tempo_bpm", 1e-3, 1e6), "is no tempo"),
        ("meter", "bad-metadata", ~pl.col("meter").str.contains(r"^[0-9]{1,3}/[0-9]{1,3}$").fill_null(True), "is not n/d"),
        ("is_synthetic", "bad-metadata", ~pl.col("is_synthetic").is_in(["true", "false"]).fill_null(True), "is neither true nor false"),
        ("split", "bad-metadata", ~pl.col("split").is_in(SPLITS).fill_null(True), f"is not one of {', '.join(SPLITS)}"),
        ("dynamic_bucket", "bad-metadata", ~bucket.is_in(BUCKETS).fill_null(True), f"is not one of {', '.join(BUCKETS)}"),
        (
            "dynamic_bucket",
            "bad-metadata",
            (bucket != due).fill_null(False) & ~(velocity.is_null() & (bucket == "ghost").fill_null(False)),
            "does not fit velocity",
        ),
    ]  # fmt: skip
    broken = cast.select(
        pl.coalesce(*(pl.when(bad.fill_null(False)).then(pl.lit(i)) for i, (_, _, bad, _) in enumerate(rules))).alias("rule")
    )
    problems = []
    for at in np.flatnonzero(broken["rule"].is_not_null().to_numpy()).tolist():
        name, code, _, message = rules[broken["rule"][at]]
        found = cells[name][at]
        problems.append((at, code, f"{name} {'' if found is None else repr(found[:80]) + ' '}{message}"))
    typed = cast.with_columns(
        onset_time=pl.Series(np.rint(cast["onset_time_number"].to_numpy() * 1e6) / 1e6, nan_to_null=True),  # polars divides by multiplying
        offset_time=offset,
        velocity=velocity.cast(pl.Float32),
        openness=openness.cast(pl.Float32),
        tempo_bpm=tempo,
        dynamic_bucket=bucket.fill_null(due),
        is_synthetic=(pl.col("is_synthetic") == "true").fill_null(False),
        techniques=pl.col("techniques").str.split(";").list.eval(pl.element().filter(pl.element() != "")).list.unique().list.sort().fill_null([]),
        split_hint="split",
    )  # fmt: skip
    return typed, problems


def _events_of(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[int]]:
    """Events of typed hit rows, sorted by session and onset, and the lines of rows that disagree with the first row of their event."""
    missing = rows["event_id"].is_null()
    if missing.any():
        made = [
            event_id(*key)
            for key in rows.filter(missing)
            .select("source_set", "session_id", (pl.col("onset_time") * 1e6).round().cast(pl.Int64))
            .iter_rows()
        ]
        rows = rows.with_columns(rows["event_id"].scatter(np.flatnonzero(missing.to_numpy()), made))
    # what all rows of one event must agree in
    shared = ["session_id", "group_id", "split_hint", "onset_time", "offset_time", "techniques", "tempo_bpm", "meter", "is_synthetic", "audio_path"]  # fmt: skip
    firsts = rows.group_by("event_id", maintain_order=True).agg(pl.col(shared).first())
    joined = rows.select("event_id", "line", *shared).join(firsts, on="event_id", how="left", maintain_order="left", suffix="_first")
    differs = joined.select(pl.any_horizontal([pl.col(c).ne_missing(pl.col(f"{c}_first")) for c in shared]).alias("bad"))["bad"]
    kept = rows.filter(~differs)
    hits = pl.struct(
        *(pl.col(f).cast(t) if f in kept.columns else pl.lit(None, t).alias(f) for f, t in COMPONENT_STRUCT.to_schema().items())
    )
    frame = kept.group_by("event_id", maintain_order=True).agg(pl.col([*shared, "source_set"]).first(), hits.alias("components"))
    full = frame.with_columns(
        group_id=pl.coalesce("group_id", pl.concat_str("source_set", pl.lit(":"), "session_id")),
        context_ms=pl.struct(pre=pl.lit(80.0), post=pl.lit(200.0)),
        mix_context=pl.lit("unknown"),
        negative_example=pl.lit(False),
        metadata_ref=pl.lit("provenance:") + pl.col("session_id"),
        extras=pl.lit("{}"),
    )
    columns = [(pl.col(c) if c in full.columns else pl.lit(None)).cast(t).alias(c) for c, t in EVENT_SCHEMA.items()]
    return full.select(columns).sort("session_id", "onset_time", maintain_order=True), rows.filter(differs)["line"].to_list()


# ---- JSON --------------------------------------------------------------------------------------------------------------------


def to_json(events: pl.DataFrame) -> bytes:
    """A list of events, one in a line, with the names of JSONL."""
    return b"[\n" + json_texts(events).str.join(",\n").item().encode() + b"\n]\n" if events.height else b"[]\n"


def read_json(path: Path) -> pl.DataFrame:
    """Events of a JSON list.

    Raises
    ------
    InputError `bad-metadata` : no JSON; `bad-manifest`, `bad-time` : an event is not one, with its place in the list
    """
    found = parse_json(read_bytes(path, max_bytes=MAX_BYTES), where=str(path))
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError("a list of events is due", code="bad-manifest", where=str(path))
    return _upgraded(found, path)


def _upgraded(found: Sequence[dict[str, Any]], path: Path) -> pl.DataFrame:
    try:
        rows = [upgraded_row(row, f"{path}: event {n}") for n, row in enumerate(found, 1)]
        return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row", strict=True)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"a field has another type than an event has: {error}", code="bad-manifest", where=str(path)) from error


def read_parquet(path: Path) -> pl.DataFrame:
    """Events of a Parquet file: an event table as it is, any other with the names of JSONL as columns; a null is a field that is not there.

    Raises
    ------
    InputError `bad-manifest`, `bad-time`, `path-escape` : no Parquet; a row is no event, with its place in the table
    """
    try:
        is_table = list(pl.read_parquet_schema(path).items()) == list(EVENT_SCHEMA.items())
        rows = [] if is_table else pl.read_parquet(path).to_dicts()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"not a readable Parquet file: {error}", code="bad-manifest", where=str(path)) from error
    if is_table:
        return read_events(path)
    for n, row in enumerate(rows, 1):
        if isinstance(row.get("extras"), str):
            row["extras"] = parse_json(row["extras"].encode(), where=f"{path}: event {n}, extras")
    return _upgraded([{name: value for name, value in row.items() if value is not None} for row in rows], path)


# ---- label tracks and layers: hits of ONE session, each at its own onset ------------------------------------------------------


def session_hits(events: pl.DataFrame) -> list[tuple[int, str]]:
    """(onset_us, label) of every hit of one session, sorted; each at its own onset, not that of its event.

    Raises
    ------
    InputError `many-sessions` : the rows are of more than one session
    """
    if events.select("source_set", "session_id").n_unique() > 1:
        names = events["session_id"].unique().sort()
        raise InputError(
            f"{names.len():,} sessions; a label track holds one. Give --where session_id={names[0]}", code="many-sessions", where="--where"
        )
    hits = hits_with_onsets(events)
    return sorted(zip((hits["onset_s"] * 1e6).round().cast(pl.Int64).to_list(), hits["label"].to_list(), strict=True))


def to_audacity(events: pl.DataFrame) -> bytes:
    """The label track of one session; see `label_track`, `session_hits`."""
    return label_track(session_hits(events))


def label_track(hits: Sequence[tuple[int, str]]) -> bytes:
    """An Audacity label track of (onset_us, label): `<start>\\t<end>\\t<label>` per hit with 6 decimals, sorted; exact to 1 us.

    Raises
    ------
    InputError `bad-label` : a label holds a tab, a line end or another control character
    """
    lines = []
    for onset_us, label in sorted(hits):
        if not label or any(unicodedata.category(c) in UNPRINTABLE for c in label):
            raise InputError(f"label {printable(label)[:80]!r} cannot stand in a label track", code="bad-label")
        at = f"{onset_us // 1_000_000}.{onset_us % 1_000_000:06d}"
        lines.append(f"{at}\t{at}\t{label}\n")
    return "".join(lines).encode()


def to_svl(events: pl.DataFrame, rate_hz: int = RATE_HZ) -> dict[str, bytes]:
    """{label: a Sonic Visualiser layer} of one session: time instants at frames of the audio's rate, half up.

    Raises
    ------
    InputError `bad-label` : a label cannot name a file; `many-sessions`
    """
    layers: dict[str, list[int]] = {}
    for onset_us, label in session_hits(events):
        if not is_plain_path(label) or "/" in label:
            raise InputError(f"label {printable(label)[:80]!r} cannot name a layer", code="bad-label")
        layers.setdefault(label, []).append((2 * onset_us * rate_hz + 1_000_000) // 2_000_000)
    return {label: _layer(label, frames, rate_hz) for label, frames in sorted(layers.items())}


def _layer(label: str, frames: Sequence[int], rate_hz: int) -> bytes:
    name = html.escape(label)
    points = "".join(f'      <point frame="{f}" label="{name}" />\n' for f in frames)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE sonic-visualiser>\n<sv>\n  <data>\n'
        f'    <model id="1" name="{name}" sampleRate="{rate_hz}" start="{frames[0]}" end="{frames[-1] + 1}" type="sparse" '
        'dimensions="1" resolution="1" notifyOnAdd="true" dataset="0" />\n'
        f'    <dataset id="0" dimensions="1">\n{points}    </dataset>\n  </data>\n  <display>\n'
        f'    <layer id="2" type="timeinstants" name="{name}" model="1" plotStyle="0" />\n  </display>\n</sv>\n'
    ).encode()


def read_label_track(content: bytes, taxonomy: Taxonomy, *, where: str = "") -> list[tuple[int, Voice]]:
    """(onset_us, voice) of an Audacity label track, sorted; a region counts from its start, aliases become components, other labels stay.

    Lines that start with a backslash (the frequencies of a spectral selection) belong to the label before them and are skipped.

    Raises
    ------
    InputError `bad-label` : not UTF-8, not three fields, a time that is no number below 24 h; `where` names the line
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        n_lines = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"not UTF-8: {error.reason}", code="bad-label", where=f"{where}:{n_lines}") from error
    hits = []
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.rstrip("\r").split("\t", 2)
        if not line.strip() or line.startswith("\\"):
            continue
        place = f"{where}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"line of {len(line):,} characters; at most {MAX_LINE_BYTES:,}", code="bad-label", where=place)
        if len(fields) != 3 or not fields[2].strip():
            raise InputError("a line is start, end and label with a tab between them", code="bad-label", where=place)
        start_us, end_us = (_microseconds(f.strip(), place) for f in fields[:2])
        if end_us < start_us:
            raise InputError(f"the label ends at {fields[1]} s, before its start at {fields[0]} s", code="bad-label", where=place)
        hits.append((start_us, _voice(fields[2].strip(), taxonomy)))
    return sorted(hits, key=lambda h: (h[0], h[1].label))


def _microseconds(text: str, where: str) -> int:
    if not SECONDS.fullmatch(text) or Decimal(text) >= Decimal(int(DAY_S)):
        raise InputError(f"time {printable(text)[:40]!r} is not a number of seconds below 86,400", code="bad-label", where=where)
    return int((Decimal(text) * 1_000_000).to_integral_value(ROUND_HALF_UP))


def _voice(label: str, taxonomy: Taxonomy) -> Voice:
    name = printable(label)
    return Voice(*(taxonomy.canonical(name) or (name, None)))


def read_svl(path: Path, taxonomy: Taxonomy) -> list[tuple[int, Voice]]:
    """(onset_us, voice) of a layer, or of all layers (*.svl) of a folder, sorted; the label is the name of the file.

    Raises
    ------
    InputError `missing-input` : a folder without layers; `bad-metadata` : see `sources.idmt.read_points`; `bad-time` : a point without a frame
    """
    files = sorted(path.glob("*.svl")) if path.is_dir() else [path]
    if not files:
        raise InputError("the folder holds no .svl file", code="missing-input", where=str(path))
    hits = []
    for file in files:
        points, n_bad = read_points(file, str(file), "")
        if n_bad:
            raise InputError(f"{n_bad} points without a frame within a day", code="bad-time", where=str(file))
        hits += [(onset_us, _voice(file.stem, taxonomy)) for onset_us, _ in points]
    return sorted(hits, key=lambda h: (h[0], h[1].label))


def events_of_hits(
    hits: Sequence[tuple[int, Voice]], source_set: str, session_id: str, taxonomy: Taxonomy, *, group_id: str | None = None, audio_path: str | None = None
) -> pl.DataFrame:  # fmt: skip
    """Events of hits that a person marked in one recording.

    Raises
    ------
    InputError `bad-time` : an onset is not within one day
    """
    voices = {voice: i for i, voice in enumerate(dict.fromkeys(voice for _, voice in hits))}
    session = Session(
        session_id, group_id or f"{source_set}:{session_id}", audio_path=audio_path, mix_context="unknown", label_source="human", confidence=CONFIDENCE
    )  # fmt: skip
    columns = Hits(
        tuple(voices),
        np.array([us for us, _ in hits], np.int64),
        np.array([voices[voice] for _, voice in hits], np.int64),
        np.full(len(hits), np.nan, np.float32),
    )
    return assemble(source_set, [(session, columns)], taxonomy).frame


@dataclass(frozen=True)
class ImportOptions:
    """source_set : of rows that name none; form : see IMPORTS; audio : the recording of a label track or layers; session_id : its name."""

    source_set: str
    form: str
    audio: Path | None = None
    session_id: str | None = None


def read_form(path: Path, options: ImportOptions, taxonomy: Taxonomy) -> Imported:
    """Events of a file in any form of IMPORTS.

    Raises
    ------
    InputError : missing-input, bad-metadata, bad-manifest, bad-label, bad-encoding, bad-time, path-escape
    NothingToDo `nothing-to-do` : the file holds no event
    """
    if not path.exists():
        raise InputError("file does not exist", code="missing-input", where=str(path))
    if options.form == "csv":
        found = read_csv(path, options.source_set)
    elif options.form in ("json", "jsonl", "parquet"):
        readers = {"json": read_json, "jsonl": read_events, "parquet": read_parquet}
        events = readers[options.form](path)
        events = events.with_columns(pl.col("source_set").replace("unknown", options.source_set))
        if strange := sorted(set(events["source_set"].unique()) - {options.source_set}):
            raise InputError(
                f"the rows name {', '.join(strange)[:200]} and --source-set names {options.source_set}. Give the name that stands in the rows, or change it there",
                code="bad-manifest",
                where=str(path),
            )
        found = Imported(events, n_read=events.height)
    else:
        if options.form == "audacity":
            hits = read_label_track(read_bytes(path, max_bytes=MAX_BYTES), taxonomy, where=str(path))
        else:
            hits = read_svl(path, taxonomy)
        session = options.session_id or (options.audio or path).name
        if not is_plain_path(session):
            raise InputError(f"{printable(session)[:80]!r} is no plain relative path", code="path-escape", where="--session")
        group = None if options.audio is None else f"audio:{hash_file(options.audio)}"
        name = None if options.audio is None else options.audio.name
        found = Imported(events_of_hits(hits, options.source_set, session, taxonomy, group_id=group, audio_path=name), n_read=len(hits))
    if not found.n_read:
        raise NothingToDo(f"{path.name} holds no event; nothing was written", code="nothing-to-do")
    return found
