"""P6, P7, P12: clips cut per CPU second against a loop that writes one wav per clip, also with features; verify-only against a loop over rows.

Sources are 16-bit wav files of 44.1 kHz, one mono and one stereo of each two, eight hits a second. Both sides begin with the manifest. Ours
includes the plan, the hits of every window, two sha256 (clip and part), peak and RMS, fsync and the seal. Memory is the peak of a fresh process that plans and verifies, at a tenth and at the whole size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Result, cpu_seconds, growth, wall_seconds

if TYPE_CHECKING:
    import polars as pl

    from beatsight_assets.settings import Settings

CLIPS = 120_000
BASELINE_CLIPS = 2_000
SECONDS_PER_FILE = 120.0
HITS_PER_S = 8.0
VERIFY_ROWS = 3_000_000
BASELINE_ROWS = 60_000
RATE_HZ = 44_100


def _settings(folder: Path) -> Settings:
    from beatsight_assets.settings import DataLayout, Settings

    return Settings(layout=DataLayout(folder), profile="dev")


def _make_takes(settings: Settings, n_clips: int) -> Path:
    """Noise bursts as audio, and a manifest with eight events a second; returns the manifest."""
    import numpy as np
    import soundfile

    from beatsight_assets import events
    from beatsight_assets.events import Hits, Session, assemble
    from beatsight_assets.taxonomy import Taxonomy, Voice

    per_file = int(SECONDS_PER_FILE * HITS_PER_S)
    rng = np.random.default_rng(7)
    noise = (rng.standard_normal(int(SECONDS_PER_FILE * RATE_HZ)) * 3000).astype(np.int16)
    voices = tuple(Voice(label) for label in ("kick", "snare", "hihat_closed", "crash"))
    root = settings.layout.raw("beatsight_demo")
    (root / "audio").mkdir(parents=True)
    batch = []
    for n in range(-(-n_clips // per_file)):
        line = np.roll(noise, n * 997)
        soundfile.write(root / f"audio/t{n}.wav", line if n % 2 else np.stack([line, line // 2], axis=1), RATE_HZ, subtype="PCM_16")
        onset = np.sort(rng.integers(0, int((SECONDS_PER_FILE - 0.3) * 1e6), per_file) // 11_000 * 11_000)
        onset = np.unique(onset)
        session = Session(session_id=f"t{n}", group_id=f"g{n}", audio_path=f"audio/t{n}.wav", split_hint=("train", "train", "val")[n % 3])
        batch.append((session, Hits(voices, onset, rng.integers(0, 4, len(onset)), np.full(len(onset), 0.5, np.float32))))
    taxonomy = Taxonomy.shipped()
    path = settings.layout.at("manifest/bench.parquet")
    settings.store.publish_frame(path, assemble("beatsight_demo", batch, taxonomy).frame, metadata=events.parquet_metadata(taxonomy))
    return path


def _as_lines(rows: pl.DataFrame, folder: Path) -> Path:
    """The form of a manifest that people read: one JSON object a line."""
    from beatsight_assets.events import to_jsonl

    path = folder / "manifest.jsonl"
    path.write_bytes(to_jsonl(rows))
    return path


def _one_wav_per_clip(manifest: Path, root: Path, out: Path) -> None:
    """What people write: parse a line, look for its file, read the window, average the channels, write a wav, collect labels, dump JSON."""
    import numpy as np
    import soundfile

    labels, pre, post = [], 3528, 8820
    for line in manifest.read_text().splitlines():
        row = json.loads(line)
        if not (root / row["audio_path"]).exists():
            continue
        start = round(row["onset_time"] * RATE_HZ) - pre
        audio, rate = soundfile.read(
            root / row["audio_path"], start=max(start, 0), frames=pre + post + min(start, 0), dtype="float32", always_2d=True
        )
        mono = audio.mean(axis=1)
        mono = np.pad(mono, (max(-start, 0), 0))
        mono = np.pad(mono, (0, pre + post - len(mono)))
        folder = out / "train" / "audio"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{row['event_id']}.wav", mono, rate, subtype="PCM_16")
        labels.append(
            {"file": f"audio/{row['event_id']}.wav", "labels": [c["label"] for c in row["components"]], "source": row["source_set"]}
        )
    (out / "train_labels.json").write_text(json.dumps(labels, indent=2))


def _one_tensor_per_clip(manifest: Path, root: Path, out: Path) -> None:
    """The same, then a log-mel of each clip from its wav, one file per clip."""
    import librosa
    import numpy as np
    import soundfile

    _one_wav_per_clip(manifest, root, out)
    for event_id in [json.loads(line)["event_id"] for line in manifest.read_text().splitlines()]:
        mono, rate = soundfile.read(out / "train/audio" / f"{event_id}.wav", dtype="float32")
        mel = librosa.feature.melspectrogram(y=mono, sr=rate, n_fft=2048, hop_length=512, n_mels=128, fmin=30.0, fmax=16_000.0)
        np.save(out / "train/audio" / f"{event_id}.npy", librosa.power_to_db(mel).astype(np.float16))


def _export(settings: Settings, manifest: Path, name: str, mode: str = "new") -> Any:
    from beatsight_assets.bundle.export import BundleRequest, export

    return export(settings, BundleRequest(name, manifest, mode=mode))


def _p6() -> list[Result]:
    from beatsight_assets.events import read_events

    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(Path(folder))
        manifest = _make_takes(settings, CLIPS)
        rows = read_events(manifest)
        n_clips = rows.height
        some = rows.gather_every(max(1, n_clips // BASELINE_CLIPS))
        lines = _as_lines(some, Path(folder))
        ours, theirs, walls = [], [], []
        for n in range(3):
            theirs.append(
                cpu_seconds(lambda n=n: _one_wav_per_clip(lines, settings.layout.raw("beatsight_demo"), Path(folder) / f"base{n}"))
                / some.height
            )
            walls.append(
                wall_seconds(lambda n=n: ours.append(cpu_seconds(lambda: _export(settings, manifest, f"b{n}")) / n_clips)) / n_clips
            )
        resume = cpu_seconds(lambda: _export(settings, manifest, "b0", "resume"))
        files = sum(1 for p in (settings.layout.at("bundles/b0")).rglob("*") if p.is_file())
        small = settings.layout.at("manifest/small.parquet")
        part = rows.filter(rows["session_id"].is_in([f"t{n}" for n in range(max(1, CLIPS // 10 // int(SECONDS_PER_FILE * HITS_PER_S)))]))
        settings.store.publish_frame(small, part)
        small_s = cpu_seconds(lambda: _export(settings, small, "small"))
    ours_s, theirs_s = sorted(ours)[1], sorted(theirs)[1]
    ratio = theirs_s / ours_s
    return [
        Result("bundle_export P6", "clips", n_clips, 1 / ours_s, "one wav per clip", 1 / theirs_s, ratio, growth(part.height, small_s, n_clips, ours_s * n_clips), ">= 18x", ratio >= 18,
               {"wall_clips_per_s": 1 / sorted(walls)[1], "files": files, "resume_without_work_share": resume / (ours_s * n_clips)}),
        Result("bundle_resume", "clips", n_clips, n_clips / resume, "the export itself", 1 / ours_s, ours_s * n_clips / resume, goal=">= 20x (at most 5 %)", met=resume <= 0.05 * ours_s * n_clips),
    ]  # fmt: skip


VERIFY = """
import json, sys
from pathlib import Path
from benchmarks.harness import cpu_seconds
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.bundle.export import BundleRequest
from beatsight_assets.bundle.plan import make_plan, BundleOptions
from beatsight_assets.bundle.verify import verify
settings = Settings(layout=DataLayout(Path(sys.argv[1])), profile="dev")
manifest = Path(sys.argv[2])
if sys.argv[3] == "verify":
    spent = cpu_seconds(lambda: verify(settings, BundleRequest("v", manifest), probe="header"))
else:
    from beatsight_assets.bundle.export import plan_only
    spent = cpu_seconds(lambda: plan_only(settings, BundleRequest("p" + manifest.stem, manifest)))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss counts the parent's pages
print(json.dumps([spent, peak / 1024]))
"""


def _fresh(root: Path, manifest: Path, what: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of a fresh process."""
    run = subprocess.run([sys.executable, "-c", VERIFY, str(root), str(manifest), what], capture_output=True, text=True, check=True)
    seconds, peak = json.loads(run.stdout.splitlines()[-1])
    return seconds, peak


def _check_every_row(rows: pl.DataFrame, root: Path) -> None:
    """What people write: for each row look whether its file is there, count labels and seconds."""
    from collections import Counter

    labels: Counter[str] = Counter()
    missing, seconds = [], 0.0
    for row in rows.iter_rows(named=True):
        if not any((base / row["audio_path"]).exists() for base in (root / row["source_set"], root)):
            missing.append(row["event_id"])
        seconds += (row["context_ms"]["pre"] + row["context_ms"]["post"]) / 1000
        labels.update(c["label"] for c in row["components"])


def _p7() -> list[Result]:
    from beatsight_assets.events import read_events
    from beatsight_assets.features.clip_cache import WarmOptions
    from beatsight_assets.features.clip_cache import run as warm

    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(Path(folder))
        manifest = _make_takes(settings, CLIPS // 2)
        rows = read_events(manifest)
        some = rows.gather_every(max(1, rows.height // (BASELINE_CLIPS // 4)))
        lines = _as_lines(some, Path(folder))
        ours, theirs = [], []

        def work(name: str) -> None:
            _export(settings, manifest, name)
            warm(settings, WarmOptions(name))

        for n in range(3):
            theirs.append(
                cpu_seconds(lambda n=n: _one_tensor_per_clip(lines, settings.layout.raw("beatsight_demo"), Path(folder) / f"base{n}"))
            )
            settings.store.remove(settings.layout.at("features")) if settings.layout.at("features").exists() else None
            ours.append(cpu_seconds(lambda n=n: work(f"b{n}")))
    ours_s, theirs_s = sorted(ours)[1] / rows.height, sorted(theirs)[1] / some.height
    ratio = theirs_s / ours_s
    return [
        Result(
            "export + log-mel P7",
            "clips",
            rows.height,
            1 / ours_s,
            "one wav, one tensor",
            1 / theirs_s,
            ratio,
            goal=">= 20x",
            met=ratio >= 20,
        )
    ]


def _p12(n_rows: int) -> list[Result]:
    import os

    import polars as pl

    from beatsight_assets import events
    from beatsight_assets.taxonomy import Taxonomy
    from beatsight_assets.testing.manifests import DATASETS, made_events

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = _settings(root)
        metadata = events.parquet_metadata(Taxonomy.shipped())
        path = settings.layout.at("manifest/bench.parquet")

        def pieces() -> Any:
            for d in sorted(DATASETS, key=lambda d: d.name):
                for piece in made_events(d, round(n_rows * d.share)):
                    yield piece.unique("event_id", keep="first", maintain_order=True).with_columns(audio_path=pl.col("session_id") + ".wav")

        settings.store.publish_frames(path, pieces(), events.EVENT_SCHEMA, metadata=metadata)
        small = settings.layout.at("manifest/small.parquet")
        settings.store.publish_frame(small, pl.scan_parquet(path).head(n_rows // 10).collect(), metadata=metadata)
        audio = pl.scan_parquet(path).select("source_set", "audio_path").unique().collect()
        one = root / "one.wav"
        import numpy as np
        import soundfile

        soundfile.write(one, np.zeros(4410, np.int16) + 5, RATE_HZ, subtype="PCM_16")
        for (name,) in audio.select("audio_path").unique().iter_rows():
            target = root / "raw" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.link(one, target)
        rows = pl.scan_parquet(path).head(BASELINE_ROWS).collect()
        theirs = cpu_seconds(lambda: _check_every_row(rows, root / "raw")) / rows.height
        total = pl.scan_parquet(path).select(pl.len()).collect().item()
        small_s, small_mib = _fresh(root, small, "verify")
        ours, peak = _fresh(root, path, "verify")
        plan_small_s, plan_small_mib = _fresh(root, small, "plan")
        plan_s, plan_mib = _fresh(root, path, "plan")
    ratio = theirs / (ours / total)
    return [
        Result("bundle_verify P12", "rows", total, total / ours, "a look per row", 1 / theirs, ratio, growth(total / 10, small_s, total, ours), ">= 20x", ratio >= 20,
               {"peak_mib": peak, "peak_mib_at_a_tenth": small_mib, "recordings": audio.height}),
        Result("bundle_plan", "rows", total, total / plan_s, growth=growth(total / 10, plan_small_s, total, plan_s), goal="<= 1536 MiB", met=plan_mib <= 1536,
               notes={"peak_mib": plan_mib, "peak_mib_at_a_tenth": plan_small_mib}),
    ]  # fmt: skip


def run(n_rows: int = VERIFY_ROWS) -> list[Result]:
    """Figures of export, resume, verify and plan."""
    return [*_p6(), *_p7(), *_p12(n_rows)]
