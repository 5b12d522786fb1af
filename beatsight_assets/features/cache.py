"""Stage `recording_features`: features of every recording that has audio, cached by content.

Belongs here: which recordings, one array file per audio content, the index that names them, the rules about them. Does not belong here:
the numbers (`definitions`), labels as targets (`model.data`).

A file is named after the sha256 of its audio and the digest of the definition: equal audio is computed once, renamed audio is not
computed again, other parameters never meet an old file. `index.parquet` comes after the arrays, `FEATURES.json` last.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import workers
from beatsight_assets.audio import AudioError, find_audio, read_mono
from beatsight_assets.errors import InputError
from beatsight_assets.events import read_events
from beatsight_assets.features.definitions import FrameDefinition, definition
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.store import Store
from beatsight_assets.verdict import Artifact, Rule, Verdict

VERSION = "1"
STAGE = "recording_features"
GATE = "recording_features"
SCHEMA = "beatsight.features/1"
CONTEXTS = (
    "full_mix",
    "drum_only",
    "close_mic",
    "overheads",
    "room",
    "unknown",
)  # stems, one-shots and MIDI have no time line of hits to learn

_INDEX_COLUMNS: dict[str, Any] = {
    "source_set": pl.String,
    "session_id": pl.String,
    "group_id": pl.String,
    "split": pl.String,
    "kit_id": pl.String,
    "is_synthetic": pl.Boolean,
    "audio_path": pl.String,  # relative to the dataset root
    "audio_sha256": pl.String,
    "coverage": pl.List(pl.String),
    "n_frames": pl.Int64,
    "feature_path": pl.String,  # relative to the data root
    "feature_sha256": pl.String,
}
INDEX_SCHEMA = pl.Schema(_INDEX_COLUMNS)


@dataclass(frozen=True)
class FeatureOptions:
    """Which definition is cached."""

    definition: str = "frames/1"


@dataclass(frozen=True)
class _Job:
    """One audio content to compute: everything a worker process needs."""

    root: str
    audio: str
    target: str
    definition: str


@dataclass(frozen=True)
class _Done:
    n_frames: int = 0
    sha256: str = ""
    error: str = ""  # "code: message" when the audio could not be read


@dataclass(frozen=True)
class _Audio:
    """Where the audio of a recording lies and what it is."""

    path: Path
    sha256: str


def index_path(settings: Settings, feature: FrameDefinition) -> Path:
    """features/<name>/index.parquet."""
    return settings.layout.features(feature.folder) / "index.parquet"


def feature_path(settings: Settings, feature: FrameDefinition, audio_sha256: str) -> Path:
    """Where the features of that audio lie, whether they exist or not."""
    return settings.layout.features(feature.folder) / audio_sha256[:2] / f"{audio_sha256}.{feature.digest[:8]}.npy"


def read_features(path: Path) -> NDArray[np.float16]:
    """One cached array, float16 [shape=(n_frames, n_bands)].

    Raises
    ------
    InputError : `bad-features`, the file is no array of that kind
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"not a readable array: {error}. Delete it and run the features stage again", code="bad-features", where=str(path)
        ) from error
    if array.dtype != np.float16 or array.ndim != 2:
        raise InputError(f"dtype {array.dtype}, shape {array.shape}; float16 with two axes is due", code="bad-features", where=str(path))
    return np.asarray(array)


def find_recordings(settings: Settings) -> pl.DataFrame:
    """Recordings of the annotated manifest that could have features: one row per (source_set, session_id) with split, kit and coverage.

    Columns source_set, session_id, group_id, split, kit_id, is_synthetic, audio_path, coverage; sorted. A recording whose group has no
    split is left out (the gate `splits` counts those). Coverage is null where there is no provenance. Left out too: sessions whose hits a
    model heard (`machine_made`; beatmap option `include_generated` takes them) and those where only some hits are marked (`partial`), for
    silence between hits is a negative here.
    """
    keys = ["source_set", "session_id"]
    sessions = (
        read_events(settings.layout.annotated)
        .filter(pl.col("audio_path").is_not_null() & pl.col("mix_context").is_in(CONTEXTS))
        .select(*keys, "group_id", "kit_id", "is_synthetic", "audio_path", "extras")
        .unique(keys, keep="first", maintain_order=True)
        .filter(~_is_true("partial") & ~(_is_true("machine_made") & ~pl.col("source_set").is_in(settings.generated_wanted)))
        .drop("extras")
    )
    splits = pl.read_parquet(settings.layout.splits).select("group_id", "split")
    known = [p for s in sessions["source_set"].unique().sort() if (p := settings.layout.provenance(s)).is_file()]
    parts = [pl.read_parquet(p, columns=[*keys, "coverage"]) for p in known]
    coverage = pl.concat(parts) if parts else pl.DataFrame(schema={k: INDEX_SCHEMA[k] for k in (*keys, "coverage")})
    joined = sessions.join(splits, on="group_id", how="inner").join(coverage.unique(keys), on=keys, how="left")
    return joined.sort(keys).select("source_set", "session_id", "group_id", "split", "kit_id", "is_synthetic", "audio_path", "coverage")


def _is_true(key: str) -> pl.Expr:
    """Whether the extras of a row say `key: true`."""
    return (pl.col("extras").str.json_path_match(f"$.{key}") == "true").fill_null(False)


def _locate(settings: Settings, recordings: pl.DataFrame) -> list[_Audio | None]:
    found: list[_Audio | None] = []
    for source_set, relpath in recordings.select("source_set", "audio_path").iter_rows():
        roots = settings.raw_roots(source_set) if source_set in settings.datasets else []
        path = find_audio(roots, relpath)
        found.append(None if path is None else _Audio(path, settings.store.sha256(path)))
    return found


def _compute(job: _Job) -> _Done:
    """Read, compute, publish; runs in a worker process."""
    feature = definition(job.definition)
    try:
        clip = read_mono(Path(job.audio), feature.rate_hz)
    except AudioError as error:
        return _Done(error=f"{error.code}: {error.message}")
    values = feature.compute(clip.samples).astype(np.float16)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    receipt = Store(Path(job.root)).publish(Path(job.target), buffer.getvalue())
    return _Done(len(values), receipt.sha256)


def run(settings: Settings, options: FeatureOptions = FeatureOptions(), *, progress: Progress = silent) -> Report:
    """Bring the feature cache up to date with the annotated manifest; publish `index.parquet` and `FEATURES.json`.

    Raises
    ------
    ConfigError : `unknown-feature`
    InputError : `missing-input`, no annotated manifest or no splits
    """
    feature = definition(options.definition)
    layout = settings.layout
    parents = [("manifest", layout.annotated), ("splits", layout.splits)]
    for role, path in parents:
        if not path.is_file():
            raise InputError(f"there is no {role}. Run the step that writes it first", code="missing-input", where=settings.store.rel(path))
    recordings = find_recordings(settings)
    parents += [(f"provenance:{s}", p) for s in recordings["source_set"].unique().sort() if (p := layout.provenance(s)).is_file()]
    audio = _locate(settings, recordings)
    content = sha256("".join(f"{s}\n" for s in (a.sha256 if a else "absent" for a in audio)).encode()).hexdigest()
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={**asdict(options), "definition_sha256": feature.digest, "audio_sha256": content},
        parents=parents,
        work=lambda: _work(settings, feature, recordings, audio, progress),
    )


def _work(
    settings: Settings, feature: FrameDefinition, recordings: pl.DataFrame, audio: Sequence[_Audio | None], progress: Progress
) -> Outcome:
    folder = settings.layout.features(feature.folder)
    with settings.store.lock(folder, STAGE):
        before = _recorded_digests(index_path(settings, feature))
        contents = {a.sha256: a.path for a in audio if a}
        targets = {digest: feature_path(settings, feature, digest) for digest in contents}
        kept = {d: t for d, t in targets.items() if t.is_file() and _is_usable(settings, t, before.get(settings.store.rel(t)))}
        n_repaired = sum(t.is_file() and d not in kept for d, t in targets.items())
        unmade = [d for d in sorted(targets) if d not in kept]
        done = {d: _Done(len(read_features(t)), settings.store.sha256(t)) for d, t in kept.items()}
        jobs = [_Job(str(settings.layout.root), str(contents[d]), str(targets[d]), feature.name) for d in unmade]
        with workers.executor(settings.executor, settings.n_workers) as pool:
            for i, result in enumerate(workers.ordered_map(pool, _compute, jobs, n_workers=settings.n_workers)):
                done[unmade[i]] = result
                progress(f"features {feature.name}: {i + 1:,} of {len(unmade):,} new, {len(kept):,} kept")
        index = _index(settings, feature, recordings, audio, done)
        verdict = _judge(settings, feature, index)
        target = index_path(settings, feature)
        receipt = settings.store.publish_frame(target, index, metadata={"schema": SCHEMA, "definition_sha256": feature.digest})
        marker = folder / "FEATURES.json"
        settings.store.publish_json(
            marker,
            {
                "schema": SCHEMA,
                "definition": asdict(feature),
                "digest": feature.digest,
                "index_sha256": receipt.sha256,
                "rows": index.height,
            },
        )
    absent = [str(s) for s, a in zip(recordings["session_id"], audio, strict=True) if a is None]
    refused = sorted(f"{settings.store.rel(contents[d])} {r.error}" for d, r in done.items() if r.error)
    seconds = float(index["n_frames"].sum()) / feature.frames_per_s
    by_split = index.group_by("source_set", "split").agg(pl.len(), pl.col("n_frames").sum()).sort("source_set", "split")
    rows = tuple((s, p, n, round(f / feature.frames_per_s / 60.0, 2)) for s, p, n, f in by_split.iter_rows())
    return Outcome(
        outputs=[("feature_index", target, index.height), ("features", marker, None)],
        figures={
            "recordings": index.height,
            "audio_seconds": seconds,
            "computed": sum(not done[d].error for d in unmade),
            "reused": len(kept),
            "repaired": n_repaired,
            "audio_absent": len(absent),
            "audio_refused": len(refused),
        },
        facts={"definition": feature.name, "definition_sha256": feature.digest, "absent": absent[:20], "refused": refused[:20]},
        verdicts=[verdict],
        table=Table(("source", "split", "recordings", "minutes"), rows),
    )


def _is_usable(settings: Settings, path: Path, recorded: str | None) -> bool:
    """The bytes that the last index names; where it names none (the run before was killed), an array that can be read."""
    if recorded is not None:
        return settings.store.sha256(path) == recorded
    try:
        read_features(path)
    except InputError:
        return False
    return True


def _recorded_digests(path: Path) -> dict[str, str]:
    """feature_path -> sha256 of the last index; empty when there is none."""
    if not path.is_file():
        return {}
    return dict(pl.read_parquet(path, columns=["feature_path", "feature_sha256"]).iter_rows())


def _index(
    settings: Settings, feature: FrameDefinition, recordings: pl.DataFrame, audio: Sequence[_Audio | None], done: dict[str, _Done]
) -> pl.DataFrame:
    usable = [a is not None and not done[a.sha256].error for a in audio]
    digests = [a.sha256 for a, use in zip(audio, usable, strict=True) if a is not None and use]
    columns: dict[str, list[Any]] = {
        "audio_sha256": digests,
        "n_frames": [done[d].n_frames for d in digests],
        "feature_path": [settings.store.rel(feature_path(settings, feature, d)) for d in digests],
        "feature_sha256": [done[d].sha256 for d in digests],
    }
    chosen = recordings.filter(pl.Series(usable, dtype=pl.Boolean))
    return chosen.with_columns(pl.Series(k, v, dtype=INDEX_SCHEMA[k]) for k, v in columns.items()).select(list(INDEX_SCHEMA))


def _judge(settings: Settings, feature: FrameDefinition, index: pl.DataFrame) -> Verdict:
    """Rules about every array of the index; no arrays, no rules, no pass."""
    wrong_shape = bad_values = wrong_key = 0
    for digest, relpath, n_frames, stored in (
        index.select("audio_sha256", "feature_path", "n_frames", "feature_sha256").unique().iter_rows()
    ):
        path = settings.layout.resolve(relpath)
        values = read_features(path)
        wrong_shape += values.shape != (n_frames, feature.n_bands)
        bad_values += not bool(np.isfinite(values).all() and (values >= 0).all())
        wrong_key += path != feature_path(settings, feature, digest) or settings.store.sha256(path) != stored
    rules = (
        Rule.at_most("feature_shape", float(wrong_shape), 0.0, f"arrays that are not [n_frames, {feature.n_bands}]"),
        Rule.at_most("features_finite", float(bad_values), 0.0, "arrays with a value that is not a finite number >= 0"),
        Rule.at_most(
            "keyed_by_content", float(wrong_key), 0.0, "arrays whose name is not that of their audio, or whose bytes are not those recorded"
        ),
    )
    return Verdict(
        gate=GATE,
        rules=rules if index.height else (),
        inputs=(Artifact("manifest", settings.store.rel(settings.layout.annotated), settings.store.sha256(settings.layout.annotated)),),
        support={"recordings": index.height},
        profile=settings.profile,
    )
