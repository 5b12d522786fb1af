"""What each crash sounds like: a few numbers per crash event, from its audio.

Belongs here: features of the window around every crash, the stage `crash_embeddings` (manifest/crash_embeddings.parquet). Does not belong
here: what follows from them (`crash_mapping`), decoding (`audio`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beatsight_assets import workers
from beatsight_assets.audio import AudioError, find_audio, read_mono
from beatsight_assets.errors import ConfigError
from beatsight_assets.events import Manifest
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.store import printable
from beatsight_assets.taxonomy import Taxonomy

STAGE = "crash_embeddings"
VERSION = "1"
CRASHES = ("crash", "crash2")
N_FFT, HOP = 2048, 512
BATCH = 32  # windows transformed at once: about 60 MB
LISTED = 50  # absent or damaged files named in the receipt
MIN_RATE_HZ = 4_000

_COLUMNS: dict[str, Any] = {
    "event_id": pl.String, "session_id": pl.String, "audio_path": pl.String, "onset_time": pl.Float64,
    "rms": pl.Float64, "spectral_centroid": pl.Float64, "spectral_bandwidth": pl.Float64, "spectral_rolloff": pl.Float64,
    "zero_crossing_rate": pl.Float64, "mfcc_mean": pl.List(pl.Float64), "mfcc_std": pl.List(pl.Float64),
}  # fmt: skip
EMBEDDINGS_SCHEMA = pl.Schema(_COLUMNS)


@dataclass(frozen=True)
class EmbedOptions:
    """The window is `window_ms` long and begins `pre_ms` before the onset. audio_roots : {source_set: folder}, before the configured ones."""

    rate_hz: int = 22_050
    window_ms: float = 800.0
    pre_ms: float = 120.0
    n_mfcc: int = 13
    audio_roots: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.rate_hz >= MIN_RATE_HZ and 0.0 <= self.pre_ms < self.window_ms and 1 <= self.n_mfcc <= 64):
            raise ConfigError(
                f"{self.rate_hz} Hz, {self.window_ms:g} ms from -{self.pre_ms:g} ms, {self.n_mfcc} coefficients; "
                f"at least {MIN_RATE_HZ} Hz, 0 <= pre < window and 1 .. 64 coefficients are due",
                code="bad-option",
            )


@dataclass(frozen=True)
class Embedded:
    """A row per crash event whose audio was read, in manifest order; and `path: reason` of every file that was not."""

    table: pl.DataFrame
    n_crashes: int
    unread: dict[str, str]


@dataclass(frozen=True)
class _Job:
    """One file, decoded once."""

    path: Path
    onset_s: NDArray[np.float64]
    options: EmbedOptions

    def __str__(self) -> str:
        return self.path.name


def crash_events(manifest: Manifest, taxonomy: Taxonomy) -> pl.DataFrame:
    """Events with a crash, in manifest order: event_id, source_set, session_id, audio_path, onset_time, components, techniques.

    Labels need not be canonical. A hit of variant `unspecified` may be a ride and is no crash here.
    """
    columns = ["event_id", "source_set", "session_id", "audio_path", "onset_time", "components", "techniques"]
    found = [manifest.read(0, 0, columns)]
    for piece in manifest.pieces(columns):
        labels = piece["components"].explode(empty_as_null=False, keep_nulls=False).struct.field("label").unique()
        names = [x for x in labels if (taxonomy.canonical(x) or ("",))[0] in CRASHES]
        found.append(piece.filter(pl.col("components").list.eval(pl.element().struct.field("label").is_in(names)).list.any()))
    return pl.concat(found)


def embed(crashes: pl.DataFrame, audio: Mapping[tuple[str, str], Path | None], settings: Settings, options: EmbedOptions, progress: Progress = silent) -> Embedded:  # fmt: skip
    """Features of crash events; each audio file is decoded once.

    Parameters
    ----------
    crashes : `crash_events`
    audio : {(source_set, audio_path): file or None}, see `locate`
    """
    rows = crashes.drop_nulls("audio_path").with_row_index("row")
    groups = rows.group_by("source_set", "audio_path", maintain_order=True).agg("row", "onset_time")
    unread = {
        printable(f"{s}/{p}"): "no such file" for s, p in groups.select("source_set", "audio_path").iter_rows() if audio[s, p] is None
    }
    present = [(s, p, at, onsets) for s, p, at, onsets in groups.iter_rows() if audio[s, p] is not None]
    jobs = [_Job(path, np.array(onsets), options) for s, p, _, onsets in present if (path := audio[s, p])]
    places: list[int] = []
    features: list[dict[str, Any]] = []
    with workers.executor(settings.executor, settings.n_workers) as pool:
        for i, found in enumerate(workers.ordered_map(pool, _embed_file, jobs, n_workers=settings.n_workers)):
            source_set, name, at, _ = present[i]
            if isinstance(found, str):
                unread[printable(f"{source_set}/{name}")] = found
            else:
                places += at
                features += found
            progress(f"crashes: {i + 1:,} of {len(jobs):,} files")
    facts = rows.select("event_id", "session_id", "audio_path", "onset_time")[places]
    table = pl.concat([facts, pl.DataFrame(features, schema=dict(list(EMBEDDINGS_SCHEMA.items())[4:]))], how="horizontal")
    table = table[np.argsort(places, kind="stable")] if places else EMBEDDINGS_SCHEMA.to_frame()
    return Embedded(table.select(EMBEDDINGS_SCHEMA.names()), crashes.height, dict(sorted(unread.items())))


def locate(crashes: pl.DataFrame, settings: Settings, roots: Mapping[str, Path]) -> dict[tuple[str, str], Path | None]:
    """Where the audio of each (source_set, audio_path) lies: below the given root of its dataset, else below the configured ones.

    Raises
    ------
    InputError `path-escape`
    """
    found = {}
    for source_set, path in crashes.drop_nulls("audio_path").select("source_set", "audio_path").unique(maintain_order=True).iter_rows():
        own = [roots[source_set]] if source_set in roots else []
        found[source_set, path] = find_audio(own + (settings.raw_roots(source_set) if source_set in settings.datasets else []), path)
    return found


def _embed_file(job: _Job) -> list[dict[str, Any]] | str:
    """Features of each onset of a file, or `code: message` when it cannot be read; runs in a worker process."""
    options = job.options
    try:
        samples = read_mono(job.path, options.rate_hz, silent_ok=True).samples
    except AudioError as error:
        return f"{error.code}: {error.message}"
    size = round(options.window_ms * options.rate_hz / 1000.0)
    pre = round(options.pre_ms * options.rate_hz / 1000.0)
    padded = np.concatenate([np.zeros(pre, np.float32), samples, np.zeros(size, np.float32)])
    starts = np.minimum(np.rint(job.onset_s * options.rate_hz).astype(np.int64), len(padded) - size)
    rows = []
    for first in range(0, len(starts), BATCH):
        windows = np.stack([padded[s : s + size] for s in starts[first : first + BATCH]])
        rows += describe(windows, options.rate_hz, options.n_mfcc)
    return rows


def describe(windows: NDArray[np.float32], rate_hz: int, n_mfcc: int) -> list[dict[str, Any]]:
    """Features of windows [shape=(n, n_samples)], each the mean over the frames of the window; Hz for the spectral ones."""
    from librosa import feature, power_to_db, stft

    spectrum = np.abs(stft(windows, n_fft=N_FFT, hop_length=HOP))
    mels = feature.melspectrogram(S=spectrum**2, sr=rate_hz, n_fft=N_FFT)
    mfcc = feature.mfcc(S=power_to_db(mels, ref=1.0), n_mfcc=n_mfcc)
    means = {
        "rms": feature.rms(S=spectrum, frame_length=N_FFT),
        "spectral_centroid": feature.spectral_centroid(S=spectrum, sr=rate_hz),
        "spectral_bandwidth": feature.spectral_bandwidth(S=spectrum, sr=rate_hz),
        "spectral_rolloff": feature.spectral_rolloff(S=spectrum, sr=rate_hz),
        "zero_crossing_rate": feature.zero_crossing_rate(windows, frame_length=N_FFT, hop_length=HOP),
    }
    flat = {name: values.mean(axis=(1, 2), dtype=np.float64) for name, values in means.items()}
    mean, std = mfcc.mean(axis=2, dtype=np.float64), mfcc.std(axis=2, dtype=np.float64)
    return [
        {**{k: float(v[i]) for k, v in flat.items()}, "mfcc_mean": mean[i].tolist(), "mfcc_std": std[i].tolist()}
        for i in range(len(windows))
    ]


def run(settings: Settings, options: EmbedOptions = EmbedOptions(), *, progress: Progress = silent) -> Report:
    """manifest/merged.parquet -> manifest/crash_embeddings.parquet. Files that are absent or damaged are listed; no gate judges them.

    Raises
    ------
    InputError `missing-input` : nothing was merged yet
    """
    layout = settings.layout
    crashes = crash_events(Manifest(layout.merged), Taxonomy.load(settings))
    audio = locate(crashes, settings, options.audio_roots)
    digests = "".join(f"{s}/{p} {settings.store.sha256(at) if at else None}\n" for (s, p), at in audio.items())

    def work() -> Outcome:
        found = embed(crashes, audio, settings, options, progress)
        settings.store.publish_frame(layout.crash_embeddings, found.table)
        return Outcome(
            outputs=[("crash_embeddings", layout.crash_embeddings, found.table.height)],
            figures={"crash_events": found.n_crashes, "embedded": found.table.height, "unread_files": len(found.unread)},
            facts={"unread": dict(list(found.unread.items())[:LISTED])},
        )

    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={
            "rate_hz": options.rate_hz,
            "window_ms": options.window_ms,
            "pre_ms": options.pre_ms,
            "n_mfcc": options.n_mfcc,
            "audio_sha256": sha256(digests.encode()).hexdigest(),
            "taxonomy": Taxonomy.load(settings).digest,
        },
        parents=[("merged", layout.merged)],
        work=work,
    )


def read_roots(pairs: Sequence[str]) -> dict[str, Path]:
    """{source_set: folder} of `--audio-root-map SOURCE=FOLDER`.

    Raises
    ------
    ConfigError `bad-option`
    """
    found = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and Path(folder).is_dir()):
            raise ConfigError(
                f"{printable(pair)[:80]!r} is not SOURCE=FOLDER with a folder that is there", code="bad-option", where="--audio-root-map"
            )
        found[name] = Path(folder)
    return found
