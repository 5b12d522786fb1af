"""Stages `feature_cache` and `feature_index`: features of every clip of a sealed bundle, one array for each of its parts.

Belongs here: keys, arrays, their forms, the index of a bundle, the rules about them, what may be deleted. Does not belong here: the numbers
(`definitions`), batches for training (`model.clips`).

An array is named after the content of its part, the digest of the definition and its form: two bundles with equal parts share it, renaming a
bundle changes nothing, other parameters never meet it. Arrays come first, then the receipt of their shard, then the index of the bundle.
Interrupted, an array that stands under its name is whole; it is kept when nothing touched it since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from beatsight_assets import store, workers
from beatsight_assets.bundle.plan import samples_of
from beatsight_assets.bundle.read import Bundle, Part, open_bundle
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.features.definitions import CLIP_FEATURE, ClipDefinition, clip_definition
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, read_receipt, run_stage, silent
from beatsight_assets.verdict import Artifact, Rule, Verdict

VERSION = "1"
STAGE = "feature_cache"  # one shard of a bundle
INDEX_STAGE = "feature_index"
GATE = "feature_index"
SCHEMA = "beatsight.clip-features/1"
SPLITS = ("train", "val", "test")
SUFFIXES = {"float32": "f32", "float16": "f16", "uint8": "u8"}  # from the widest to the narrowest
CHUNK_CLIPS = 256  # computed before they are written: 3 MB of float32
STEP_DB = 150.0 / 255.0  # of the 8-bit form: -100 to +50 dB; no clip of full-scale samples is louder


@dataclass(frozen=True)
class WarmOptions:
    """What is cached.

    bundle : its name below bundles/
    splits : of the bundle
    dtype : `float32` loses nothing. `float16` is off by at most 0.03 dB. `uint8`, a quarter of float32, is off by at most 0.33 dB, 0.15 dB on
        average (measured in the tests)
    convert : make the arrays from wider ones that are cached, and refuse where there is none
    """

    bundle: str
    splits: tuple[str, ...] = SPLITS
    dtype: str = "float16"
    convert: bool = False
    definition: str = CLIP_FEATURE

    def validate(self) -> None:
        """Raises ConfigError `unknown-choice` or `unknown-feature`."""
        if self.dtype not in SUFFIXES:
            raise ConfigError.unknown_choice("dtype", self.dtype, SUFFIXES)
        for split in self.splits:
            if split not in SPLITS:
                raise ConfigError.unknown_choice("split", split, SPLITS)
        clip_definition(self.definition)


@dataclass(frozen=True)
class _ShardJob:
    """Everything a worker needs to bring one shard up to date."""

    root: Path
    profile: str
    options: WarmOptions
    shard: int

    def __str__(self) -> str:
        return f"features of shard {self.shard:02d} of {self.options.bundle}"


@dataclass
class _Tally:
    """What became of the arrays of a shard."""

    computed: int = 0
    converted: int = 0
    reused: int = 0
    repaired: int = 0
    bad_values: int = 0


def index_path(settings: Settings, feature: ClipDefinition, bundle: str) -> Path:
    """features/<definition>/bundles/<bundle>/FEATURES.json."""
    return settings.layout.features(feature.folder) / "bundles" / bundle / "FEATURES.json"


def array_key(part_sha256: str, feature: ClipDefinition, dtype: str, first_sample: int = 0) -> str:
    """sha256 of the digest of the part, that of the definition, and the form; and where the window starts, in clips that are longer than it."""
    return sha256(f"{part_sha256}{feature.digest}{dtype}{f'+{first_sample}' if first_sample else ''}".encode()).hexdigest()


def array_path(settings: Settings, feature: ClipDefinition, shard: int, key: str, dtype: str) -> Path:
    """Where an array lies, whether it exists or not."""
    return settings.layout.features(feature.folder) / "shards" / f"{shard:02d}" / f"{key}.{SUFFIXES[dtype]}"


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """dB as they are stored. The 8-bit form is made from the float16 values, so that it can be made from either wider form."""
    if dtype == "uint8":
        rounded = np.round((_half(values).astype(np.float32) + np.float32(100.0)) / np.float32(STEP_DB))
        return np.clip(rounded, 0, 255).astype(np.uint8)
    stored = np.dtype(dtype).newbyteorder("<")
    return (_half(values) if stored == np.float16 else values).astype(stored, copy=False)


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """The nearest float16, ties to even: torch rounds eight at a time where numpy takes one after the other."""
    import torch

    found: NDArray[np.float16] = torch.from_numpy(np.ascontiguousarray(values)).half().numpy()
    return found


def decode(stored: NDArray[Any]) -> NDArray[np.float32]:
    """dB, float32, of stored values."""
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) * np.float32(STEP_DB) - np.float32(100.0)
    return stored.astype(np.float32)


def read_array(path: Path, n_clips: int, feature: ClipDefinition, dtype: str) -> NDArray[Any]:
    """One cached array, memory-mapped [shape=(n_clips, n_mels, n_frames)].

    Raises
    ------
    InputError `bad-features` : it is absent or has another size
    """
    stored = np.dtype(dtype).newbyteorder("<")
    due = n_clips * feature.n_mels * feature.n_frames * stored.itemsize
    if not path.is_file() or path.stat().st_size != due:
        raise InputError(f"absent, or not of {due:,} bytes. Run: beatsight features warm", code="bad-features", where=path.name)
    return np.asarray(np.memmap(path, dtype=stored, mode="r", shape=(n_clips, *feature.shape)))  # a plain array: taking a row costs half


def opened(settings: Settings, options: WarmOptions) -> Bundle:
    """The bundle, if its clips have the window of the definition.

    Raises
    ------
    BundleIncomplete : not there or not sealed
    ConfigError `window-too-short`, `feature-mismatch`
    """
    bundle, feature = open_bundle(settings.layout.bundle(options.bundle)), clip_definition(options.definition)
    if bundle.layout != "shards" or bundle.sample_rate != feature.rate_hz or bundle.plan.options.context != "fixed":
        raise ConfigError(
            f"bundle {bundle.name} has layout {bundle.layout}, {bundle.sample_rate:,} Hz and context {bundle.plan.options.context}; "
            f"{feature.name} reads layout shards, {feature.rate_hz:,} Hz and context fixed. Export such a bundle",
            code="feature-mismatch",
        )
    pre, n_samples = _window(bundle)
    if pre < feature.pre_samples or n_samples - pre < feature.post_samples:
        raise ConfigError(
            f"clips of bundle {bundle.name} have {pre:,} samples before the onset and {n_samples - pre:,} from it on; {feature.name} needs "
            f"{feature.pre_samples:,} and {feature.post_samples:,}. Export with --pre-ms 80 --post-ms 200",
            code="window-too-short",
        )
    return bundle


def _window(bundle: Bundle) -> tuple[int, int]:
    """Samples before the onset, and samples of a whole clip."""
    o = bundle.plan.options
    pre = samples_of(o.pre_ms, o.sample_rate)
    return pre, pre + samples_of(o.post_ms, o.sample_rate)


def chosen_parts(bundle: Bundle, splits: Sequence[str]) -> list[Part]:
    """Parts of some splits, in order."""
    return [p for p in bundle.parts() if p.split in splits]


def part_clips(bundle: Bundle, feature: ClipDefinition, part: Part) -> NDArray[np.int16]:
    """The window of the definition in every clip of a part, int16, memory-mapped [shape=(n_clips, n_samples)].

    Raises
    ------
    InputError `bad-bundle`
    """
    pre, n_samples = _window(bundle)
    if part.path.stat().st_size != 2 * part.n_clips * n_samples:
        raise InputError("ends before its clips do. Run: beatsight bundle export --resume", code="bad-bundle", where=part.name)
    first = pre - feature.pre_samples
    whole = np.memmap(part.path, dtype="<i2", mode="r", shape=(part.n_clips, n_samples))
    return whole[:, first : first + feature.n_samples]


def first_sample(bundle: Bundle, feature: ClipDefinition) -> int:
    """Where in a clip of the bundle the window of the definition starts; 0 in clips of 80 ms + 200 ms."""
    return _window(bundle)[0] - feature.pre_samples


def run_shard(settings: Settings, options: WarmOptions, shard: int) -> Report:
    """Stage `feature_cache[<bundle>.<NN>]`: every array of one shard, computed where it is absent or damaged.

    Raises
    ------
    InputError `bad-bundle`, a part is not what the bundle was sealed with; `not-cached`, converting without a wider array
    """
    bundle = opened(settings, options)
    feature = clip_definition(options.definition)
    parts = [p for p in chosen_parts(bundle, options.splits) if p.shard == shard]
    partition = f"{options.bundle}.{shard:02d}"
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        partition=partition,
        options={"definition_sha256": feature.digest, "dtype": options.dtype, "splits": [s for s in SPLITS if s in options.splits]},
        parents=[("shard", bundle.plan.shard_folder(shard) / "SHARD.json")],
        work=lambda: _make_shard(settings, options, bundle, feature, parts, partition),
    )


def _make_shard(
    settings: Settings, options: WarmOptions, bundle: Bundle, feature: ClipDefinition, parts: Sequence[Part], partition: str
) -> Outcome:
    try:
        before = read_receipt(settings, STAGE, partition)
    except InputError:
        before = None
    recorded = {} if before is None else {a.path: a.sha256 for a in before.outputs}
    tally, outputs = _Tally(), []
    for part in parts:
        path, dtype = _place(settings, bundle, feature, part, options.dtype), options.dtype
        with settings.store.lock(path.parent, STAGE):
            if _is_usable(settings, path, part, feature, dtype, recorded):
                tally.reused += 1
                tally.bad_values += not all(are_sound(feature, c) for c in _chunks(read_array(path, part.n_clips, feature, dtype)))
            else:
                tally.repaired += path.is_file()
                wider = _wider(settings, bundle, feature, part, dtype, recorded)
                if wider is None and options.convert:
                    raise InputError(
                        f"no wider form than {dtype} is cached. Run: beatsight features warm {options.bundle} --dtype {dtype}",
                        code="not-cached",
                        where=f"{part.shard:02d}/{part.name}",
                    )
                with bundle.one_version():  # what is mapped here stays as it is
                    source = part_clips(bundle, feature, part) if wider is None else wider
                if wider is None and settings.store.sha256(part.path) != part.sha256:
                    raise InputError(
                        f"is not what the bundle was sealed with. Run: beatsight bundle export {options.bundle} --resume",
                        code="bad-bundle",
                        where=f"{part.shard:02d}/{part.name}",
                    )
                tally.computed += wider is None
                tally.converted += wider is not None
                tally.bad_values += not _publish(settings, path, feature, source, dtype, part.n_clips)
        outputs.append((part.name, path, part.n_clips))
        store.failpoint("features.part")
    return Outcome(outputs=outputs, figures={**asdict(tally), "clips": sum(p.n_clips for p in parts)})


def _place(settings: Settings, bundle: Bundle, feature: ClipDefinition, part: Part, dtype: str) -> Path:
    key = array_key(part.sha256, feature, dtype, first_sample(bundle, feature))
    return array_path(settings, feature, part.shard, key, dtype)


def _is_usable(settings: Settings, path: Path, part: Part, feature: ClipDefinition, dtype: str, recorded: dict[str, str]) -> bool:
    """The bytes that the last receipt names; where it names none, a whole array that nobody touched since it was published."""
    try:
        read_array(path, part.n_clips, feature, dtype)
    except InputError:
        return False
    known = recorded.get(settings.store.rel(path))
    return settings.store.sha256(path) == known if known is not None else settings.store.n_remembered([path]) == 1


def _wider(
    settings: Settings, bundle: Bundle, feature: ClipDefinition, part: Part, dtype: str, recorded: dict[str, str]
) -> NDArray[Any] | None:
    """The same features in a wider form, if they are cached."""
    names = list(SUFFIXES)
    for wider in names[: names.index(dtype)]:
        path = _place(settings, bundle, feature, part, wider)
        if _is_usable(settings, path, part, feature, wider, recorded):
            return read_array(path, part.n_clips, feature, wider)
    return None


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), CHUNK_CLIPS):
        yield array[start : start + CHUNK_CLIPS]


def are_sound(feature: ClipDefinition, stored: NDArray[Any]) -> bool:
    """Finite numbers not below the floor; codes are always both."""
    if stored.dtype == np.uint8:
        return True
    if stored.dtype == np.float16:  # by its bits, which numpy compares ten times faster: sign and size, infinity and NaN beyond all numbers
        floor = np.float16(feature.floor_db).view(np.uint16)
        return bool(stored.view(np.uint16).max() <= floor and stored.view(np.int16).max() < np.float16(np.inf).view(np.int16))
    return bool(np.isfinite(stored).all() and (stored >= feature.floor_db).all())


def _publish(settings: Settings, path: Path, feature: ClipDefinition, source: NDArray[Any], dtype: str, n_clips: int) -> bool:
    """Write one array, a few clips at a time; whether all its values are sound."""
    sound = True

    def write(out: IO[bytes]) -> None:
        nonlocal sound
        for chunk in _chunks(source):
            values = feature.compute(chunk) if chunk.dtype == np.int16 else decode(chunk)
            stored = encode(values, dtype)
            sound &= are_sound(feature, stored)
            out.write(np.ascontiguousarray(stored).data)

    n_bytes = n_clips * feature.n_mels * feature.n_frames * np.dtype(dtype).itemsize
    settings.store.publish(path, write, expect_bytes=n_bytes, estimate_bytes=n_bytes)
    return sound


def _run_job(job: _ShardJob) -> Report:
    return run_shard(Settings(layout=DataLayout(job.root), profile=job.profile), job.options, job.shard)


def run_shards(settings: Settings, options: WarmOptions, shards: Sequence[int], *, progress: Progress = silent) -> list[Report]:
    """`run_shard` on some shards, in their order, with as many workers as the settings say.

    Raises
    ------
    as `run_shard`
    """
    jobs = [_ShardJob(settings.layout.root, settings.profile, options, shard) for shard in shards]
    reports = []
    with workers.executor(settings.executor, settings.n_workers) as pool:
        for report in workers.ordered_map(pool, _run_job, jobs, n_workers=settings.n_workers):
            reports.append(report)
            progress(f"features of {options.bundle}: {len(reports):,} of {len(jobs):,} shards")
    return reports


def run(settings: Settings, options: WarmOptions, *, progress: Progress = silent) -> Report:
    """Bring the features of a bundle up to date, shard by shard, and publish its index.

    Raises
    ------
    BundleIncomplete; ConfigError `unknown-choice`, `feature-mismatch`, `window-too-short`; InputError `bad-bundle`, `not-cached`
    """
    options.validate()
    shards = sorted({p.shard for p in chosen_parts(opened(settings, options), options.splits)})
    return run_index(settings, options, run_shards(settings, options, shards, progress=progress))


def run_index(settings: Settings, options: WarmOptions, reports: Sequence[Report]) -> Report:
    """Stage `feature_index[<bundle>]`: FEATURES.json of a bundle whose shards are done, and the rules about all its arrays."""
    bundle = opened(settings, options)
    feature = clip_definition(options.definition)
    parts = chosen_parts(bundle, options.splits)
    figures = {k: sum(int(r.figures[k]) for r in reports if not r.reused) for k in ("computed", "converted", "reused", "repaired")}
    figures["reused"] += sum(len(r.outputs) for r in reports if r.reused)
    arrays = [a for r in reports for a in r.outputs]
    return run_stage(
        settings,
        INDEX_STAGE,
        version=VERSION,
        partition=options.bundle,
        options={"definition_sha256": feature.digest, "dtype": options.dtype, "splits": [s for s in SPLITS if s in options.splits], "run": figures},
        parents=[("bundle", bundle.folder / "BUNDLE.json"), *(("array", settings.layout.root / a.path) for a in arrays)],
        work=lambda: _index(settings, options, bundle, feature, parts, arrays, reports, figures),
    )  # fmt: skip


def _index(
    settings: Settings,
    options: WarmOptions,
    bundle: Bundle,
    feature: ClipDefinition,
    parts: Sequence[Part],
    arrays: Sequence[Artifact],
    reports: Sequence[Report],
    figures: dict[str, int],
) -> Outcome:
    dtype, by_path = options.dtype, {a.path: a for a in arrays}
    wrong_shape = wrong_key = 0
    entries: dict[str, Any] = {}
    for part in parts:
        path = _place(settings, bundle, feature, part, dtype)
        array = by_path.get(settings.store.rel(path))
        due = part.n_clips * feature.n_mels * feature.n_frames * np.dtype(dtype).itemsize
        wrong_shape += not path.is_file() or path.stat().st_size != due
        if array is None or settings.store.sha256(path) != array.sha256:
            wrong_key += 1
            continue
        entries[path.stem] = {"part": f"{part.shard:02d}/{part.name}", "sha256": array.sha256, "shape": [part.n_clips, *feature.shape]}
    rules = (
        Rule.at_most("feature_shape", float(wrong_shape), 0.0, f"arrays that do not hold [clips, {feature.n_mels}, {feature.n_frames}]"),
        Rule.at_most("features_finite", float(sum(r.figures["bad_values"] for r in reports)), 0.0, "arrays with a value that is no level"),
        Rule.at_most("keyed_by_content", float(wrong_key), 0.0, "parts without the array that is named after them and was made for them"),
    )
    marker = bundle.folder / "BUNDLE.json"
    verdict = Verdict(
        gate=GATE,
        rules=rules if parts else (),
        inputs=(Artifact("bundle", settings.store.rel(marker), settings.store.sha256(marker)),),
        support={"clips": sum(p.n_clips for p in parts)},
        profile=settings.profile,
    )
    target = index_path(settings, feature, options.bundle)
    settings.store.publish_json(
        target,
        {
            "schema": SCHEMA,
            "bundle_sha256": bundle.content_sha256,
            "definition": asdict(feature),
            "digest": feature.digest,
            "dtype": dtype,
            "arrays": entries,
        },
    )
    clips = {s: sum(p.n_clips for p in parts if p.split == s) for s in SPLITS if s in options.splits}
    n_bytes = estimate_bytes(sum(clips.values()), feature, dtype)
    return Outcome(
        outputs=[("features", target, len(entries))],
        figures={"clips": sum(clips.values()), "arrays": len(entries), "bytes": n_bytes, **figures},
        facts={"definition": feature.name, "definition_sha256": feature.digest, "dtype": dtype},
        verdicts=[verdict],
        table=Table(("split", "clips"), tuple(clips.items())),
    )


def estimate_bytes(n_clips: int, feature: ClipDefinition, dtype: str) -> int:
    """clips x 128 x 25 x bytes of a value."""
    return n_clips * feature.n_mels * feature.n_frames * np.dtype(dtype).itemsize


def prune(settings: Settings, keep: Sequence[str], *, apply: bool, definition: str = CLIP_FEATURE) -> dict[str, Any]:
    """Arrays, and indexes, that none of the named bundles refers to; with `apply` they are deleted.

    Raises
    ------
    BundleIncomplete : a named bundle is not there or not sealed; nothing is deleted
    """
    feature = clip_definition(definition)
    folder = settings.layout.features(feature.folder)
    wanted = {index_path(settings, feature, name) for name in keep}
    for name in keep:
        bundle = opened(settings, WarmOptions(name, definition=definition))
        wanted |= {_place(settings, bundle, feature, p, dtype) for p in bundle.parts() for dtype in SUFFIXES}
    found = [*(p for s in SUFFIXES.values() for p in folder.glob(f"shards/*/*.{s}")), *folder.glob("bundles/*/FEATURES.json")]
    going = sorted(p for p in found if p not in wanted)
    n_bytes = sum(p.stat().st_size for p in going)
    for path in going if apply else ():
        settings.store.remove(path)
    return {"applied": apply, "files": [settings.store.rel(p) for p in going], "bytes": n_bytes, "kept": len(found) - len(going)}
