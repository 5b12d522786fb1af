"""Export of a bundle: plan it or take up its plan, make the shards that are not done, seal. Repeating it after a kill is all there is to resuming.

Belongs here: new, resume and overwrite; what may have changed since the plan; which shards are made again and why; the stage `bundle`.
Does not belong here: planning (`plan`), samples (`cut`), one shard (`shard`), totals (`seal`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import clock, store, workers
from beatsight_assets.bundle import seal
from beatsight_assets.bundle.plan import (
    SLICER_VERSION,
    SPLITS,
    BundleOptions,
    Plan,
    Sources,
    bundle_folder,
    environment,
    make_plan,
    manifest_batches,
    manifest_digest,
    read_coverage,
    read_plan,
    read_signed,
    require_name,
    signed,
)
from beatsight_assets.bundle.roots import AudioRoots, Missing, audio_roots
from beatsight_assets.bundle.shard import ShardJob, ShardResult, make_shard, wav_file
from beatsight_assets.bundle.summary import of_export, plain
from beatsight_assets.errors import Busy, ConfigError, GateFailed, InputError
from beatsight_assets.manifest.splits import RATIOS, assign
from beatsight_assets.settings import Settings
from beatsight_assets.sources.pipeline import QUARANTINE_SCHEMA
from beatsight_assets.stages import Outcome, Progress, Report, Table, digest_of, run_stage, silent
from beatsight_assets.store import TMP_NAME, Store
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.verdict import Artifact, Reason, Rule, Verdict

STAGE = "bundle"
VERSION = "1"
SPACE_FACTOR = 1.1  # spec/bundle.md section 10: less free space than this share of the estimate is refused
BYTES_PER_SAMPLE = 2
SILENCE_DB = -95.0  # one step of 16 bits is -90.3 dBFS; what lies below holds zeros alone
OF_THE_MACHINE = ("seconds_elapsed", "workers")  # not part of a receipt: equal runs leave equal receipts
PART_OF_RUN = ("written_clips", "reused_clips", "healed_clips")


@dataclass(frozen=True)
class BundleRequest:
    """One call of the export.

    manifest : file of events; None = the annotated manifest, or on resume the one the plan was made from
    content : content options that were given; on resume the others come from the plan and these must agree with it
    mode : `new` (refuses an existing bundle), `resume` (refuses where none was begun), `overwrite`, or `update`: resume while the plan is true, else overwrite
    max_missing : clips without audio that are tolerated
    manifest_total : expected events, for progress alone
    """

    name: str
    manifest: Path | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    mode: str = "new"
    audio_root: str | None = None
    audio_root_maps: tuple[str, ...] = ()
    max_missing: int = 0
    manifest_total: int | None = None


@dataclass(frozen=True)
class Exported:
    """What an export came to: the sealed marker, metadata.json's durable part, and this invocation's blocks."""

    name: str
    plan: Plan
    marker: Mapping[str, Any]
    statistics: Mapping[str, Any]
    metadata: Mapping[str, Any]
    run: Mapping[str, Any]
    root_hits: Mapping[str, int]
    reasons: Mapping[str, str]  # shard -> why it was made again
    durations: Mapping[str, Mapping[str, tuple[int, float]]]  # expected, total, run, run_healed -> source -> clips, seconds


@contextmanager
def bundle_lock(settings: Settings, name: str) -> Iterator[None]:
    """One writer per bundle.

    Raises
    ------
    Busy
    """
    with settings.store.lock(settings.layout.receipts / "locks" / f"bundle.{require_name(name)}.writer", f"bundle {name}"):
        bundles = settings.layout.bundles
        if bundles.is_dir():
            settings.store.sweep(bundles)  # bundles that a killed writer was deleting
        yield


def finish_swap(settings: Settings, name: str) -> Path:
    """Folder of a bundle, after a kill between the two renames of an overwrite was made good. The caller holds the lock."""
    folder, made = bundle_folder(settings.layout, name), new_folder(settings, name)
    if not folder.exists() and (made / "BUNDLE.json").is_file():
        settings.store.put_in_place(made, folder)
    return folder


def settled_folder(settings: Settings, name: str) -> Path:
    """`finish_swap` for readers, who leave a writer at work alone."""
    folder = bundle_folder(settings.layout, name)
    if not folder.exists() and (new_folder(settings, name) / "BUNDLE.json").is_file():
        with suppress(Busy), bundle_lock(settings, name):
            finish_swap(settings, name)
    return folder


def new_folder(settings: Settings, name: str) -> Path:
    """Where an overwrite builds: bundles/.<name>.new."""
    return settings.layout.bundle(f".{require_name(name)}.new")


def read_sources(settings: Settings, manifest: Path, options: BundleOptions) -> Sources:
    """Splits, coverage and taxonomy that a plan rests on.

    Groups of another manifest than the annotated one that the split table does not know (own samples) go where their hints or their
    buckets say, with `val_ratio` of them as validation.

    Raises
    ------
    ConfigError `split-disagrees` : val_ratio is given and the split table was made with another one
    """
    taxonomy = Taxonomy.load(settings)
    layout = settings.layout
    if layout.splits.is_file():
        table = pl.read_parquet(layout.splits, columns=["group_id", "split"])
        _require_ratio(settings, options)
    elif manifest == layout.annotated and options.val_ratio is None:
        raise InputError("there is no split table. Run: beatsight events split", code="missing-input", where=layout.rel(layout.splits))
    else:
        table = pl.DataFrame(schema={"group_id": pl.String, "split": pl.String})
    if manifest != layout.annotated or not layout.splits.is_file():
        hints: dict[str, set[str]] = {}
        groups = pl.concat(
            [b.unique() for b in manifest_batches(manifest, ("group_id", "split_hint"))] or [table.with_columns(split_hint="split")]
        )
        for group, hint in groups.join(table, on="group_id", how="anti").select("group_id", "split_hint").iter_rows():
            hints.setdefault(group, set()).update({hint} - {None})
        val = RATIOS[1] if options.val_ratio is None else options.val_ratio
        found = assign({g: sorted(h) for g, h in sorted(hints.items())}, ratios=(0.9 - val, val, 0.1))
        new = pl.DataFrame({"group_id": list(found), "split": [a.split for a in found.values()]}, schema=table.schema)
        table = pl.concat([table, new])
    return Sources(taxonomy, table.sort("group_id"), read_coverage(settings))


def _require_ratio(settings: Settings, options: BundleOptions) -> None:
    from beatsight_assets.stages import read_receipt

    known = read_receipt(settings, "splits")
    if options.val_ratio is None or known is None:
        return
    ratio = known.options["ratios"][1]
    if abs(ratio - options.val_ratio) > 1e-9:
        raise ConfigError(
            f"--val-ratio is {options.val_ratio:g}, the split table was made with {ratio:g}. Leave it out, or run: beatsight events split --ratios …",
            code="split-disagrees",
        )


def export(settings: Settings, request: BundleRequest, *, progress: Progress = silent) -> Exported:
    """Bring a bundle to what its plan says, and seal it.

    Raises
    ------
    ConfigError : `bundle-exists`, no mode was given and it is there; `nothing-to-resume`; `cannot-resume`, manifest or an option changed; `audio-changed`
    GateFailed `no-space` : the disk holds less than 1.1 times the estimate
    InputError : as `make_plan`
    StoreError
    Busy
    """
    with bundle_lock(settings, request.name):
        started_s = clock.monotonic_s()
        roots = _roots(settings, request)  # wrong usage is told before there is a plan
        opened = _open(settings, request, progress)
        done = _make_shards(settings, opened.plan, roots, range(opened.plan.n_shards), progress)
        return _finish(settings, request, opened, done, started_s)


def plan_only(settings: Settings, request: BundleRequest, *, progress: Progress = silent) -> Plan:
    """The first step of an export alone: the plan, without a clip.

    Raises
    ------
    as `export`
    """
    with bundle_lock(settings, request.name):
        return _open(settings, request, progress).plan


def cut_shards(settings: Settings, request: BundleRequest, shards: Sequence[int], *, progress: Progress = silent) -> Plan:
    """The second step alone, for some shards; an export afterwards finds them done.

    Raises
    ------
    as `export`
    """
    with bundle_lock(settings, request.name):
        roots = _roots(settings, request)
        plan = _open(settings, request, progress).plan
        _make_shards(settings, plan, roots, [s for s in shards if s < plan.n_shards], progress)
        return plan


@dataclass(frozen=True)
class _Opened:
    """A plan that is true, and where it goes once it is whole."""

    plan: Plan
    sources: Sources
    manifest: Path
    place: Path  # differs from the plan's folder while an overwrite builds

    @property
    def is_swap(self) -> bool:
        return self.place != self.plan.folder


def _roots(settings: Settings, request: BundleRequest) -> AudioRoots:
    return audio_roots(settings, request.audio_root, request.audio_root_maps)


def _open(settings: Settings, request: BundleRequest, progress: Progress) -> _Opened:
    """Take up the plan of a bundle, or make one, by the mode of the request."""
    folder = finish_swap(settings, request.name)
    exists = folder.is_dir() and any(p.is_file() and TMP_NAME.match(p.name) is None for p in folder.rglob("*"))
    is_bundle = any((folder / name).is_file() for name in ("plan.json", "BUNDLE.json", "history/request.json"))
    if (exists and not is_bundle) or folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(
            f"bundles/{request.name} is there and is no bundle. Move it away or choose another name; it is never deleted", code="no-bundle"
        )
    if exists and request.mode == "new":
        raise ConfigError(
            f"bundle {request.name} exists. Give --resume to go on with it or --overwrite to replace it", code="bundle-exists"
        )
    if request.mode == "resume" and not folder.exists():  # a folder without a plan was begun and killed: that is gone on with
        raise ConfigError(
            f"there is no bundle {request.name} to go on with. Give the command without --resume to begin it", code="nothing-to-resume"
        )
    manifest = manifest_of(settings, request, folder if request.mode == "resume" else None)
    if not manifest.is_file():
        raise InputError("there is no manifest. Run the step that writes it first", code="missing-input", where=manifest.name)
    if request.mode == "update" and exists:
        try:
            found, problems = _taken_up(settings, request, folder, manifest, progress)
        except InputError:  # a plan that cannot be restored
            found, problems = None, []
        if found is not None and not problems:
            return _Opened(*found, manifest, folder)
    target = new_folder(settings, request.name) if exists and request.mode in ("overwrite", "update") else folder
    plan, sources = _open_plan(settings, request, target, manifest, progress)
    return _Opened(plan, sources, manifest, folder)


def _finish(settings: Settings, request: BundleRequest, opened: _Opened, done: _Done, started_s: float) -> Exported:
    """Seal, and put an overwrite in place of the old bundle."""
    plan = opened.plan
    exported = _seal(settings, request, plan, opened.sources, opened.manifest, done, started_s)
    if not opened.is_swap:
        return exported
    settings.store.put_in_place(plan.folder, opened.place)
    return replace(exported, plan=Plan(opened.place, plan.identity, plan.sha256))


def manifest_of(settings: Settings, request: BundleRequest, resumed: Path | None) -> Path:
    """The manifest of a request: the one named, else the one the bundle in `resumed` was planned from, else the annotated one."""
    if request.manifest is not None:
        return request.manifest
    note = _read_note(resumed) if resumed is not None else {}
    if note.get("path"):
        return settings.layout.resolve(note["path"])
    if note.get("name"):
        raise ConfigError(f"the plan was made from a file outside the data root, {note['name']!r}. Name it again", code="missing-argument")
    return settings.layout.annotated


def _read_note(folder: Path) -> dict[str, Any]:
    """history/request.json: what was asked for, from which file, and once there is a plan, a second copy of plan.json; no content."""
    return read_signed(folder / "history" / "request.json") or {}


def _taken_up(
    settings: Settings, request: BundleRequest, target: Path, manifest: Path, progress: Progress
) -> tuple[tuple[Plan, Sources] | None, list[str]]:
    """The plan that lies in a folder, and why it is no longer true. A damaged plan is restored first.

    Raises
    ------
    InputError `bad-bundle` : plan.json is damaged and so is its copy
    StoreError `plan-differs` : a table of the plan is damaged and comes out differently now
    """
    try:
        known = read_plan(target)
    except InputError:
        copy = _read_note(target).get("plan")
        if copy is None:
            raise InputError(
                "is damaged and there is no copy of it. Export under a new name or pass --overwrite",
                code="bad-bundle",
                where=f"{target.name}/plan.json",
            ) from None
        settings.store.publish_json(target / "plan.json", signed(copy))
        known = read_plan(target)
    if known is None:
        return None, []
    options = known.options
    goes_on = request.mode in ("resume", "update") and target != new_folder(settings, request.name)
    wanted = request.content if goes_on else asdict(BundleOptions(**request.content))  # an overwrite takes nothing over from its first half
    problems = [
        f"{key} {_shown(getattr(options, key))} -> {_shown(value)}" for key, value in wanted.items() if getattr(options, key) != value
    ]
    sources = read_sources(settings, manifest, options)
    problems = problems or _stale(settings, known, manifest, sources)
    if not problems and any(not _holds(settings.store, known.table(s), t["sha256"]) for s, t in enumerate(_tables(known))):
        known = make_plan(settings, target, manifest, sources, options, due=known, progress=progress)
    return (known, sources), problems


def _tables(plan: Plan) -> list[Mapping[str, Any]]:
    """Digest and clips of every table of the plan, by shard."""
    return [plan.identity["tables"][plan.shard_name(s)] for s in range(plan.n_shards)]


def _open_plan(settings: Settings, request: BundleRequest, target: Path, manifest: Path, progress: Progress) -> tuple[Plan, Sources]:
    """The plan of the folder if it is still true, a new one where there is none."""
    names = [f.name for f in fields(BundleOptions)]
    unknown = sorted(set(request.content) - set(names))
    if unknown:
        raise ConfigError.unknown_choice("content option", unknown[0], names)
    try:
        found, problems = _taken_up(settings, request, target, manifest, progress)
    except InputError:
        if request.mode == "resume":
            raise
        found, problems = None, []  # the half of an overwrite; it is begun again
    if found is not None and not problems:
        return found
    if problems and request.mode == "resume":
        raise ConfigError(
            f"cannot resume {request.name}: {'; '.join(problems)}; export under a new name or pass --overwrite", code="cannot-resume"
        )
    content = dict(request.content)
    asked = _read_note(target).get("options")
    if request.mode == "resume" and asked is not None:  # killed while planning: what was asked for then still holds
        before = BundleOptions.of(asked)
        differing = [f"{k} {_shown(getattr(before, k))} -> {_shown(v)}" for k, v in sorted(content.items()) if getattr(before, k) != v]
        if differing:
            raise ConfigError(f"cannot resume {request.name}: {'; '.join(differing)}; pass --overwrite", code="cannot-resume")
        content = asdict(before)
    options = BundleOptions(**content)
    options.validate(Taxonomy.load(settings))
    sources = read_sources(settings, manifest, options)
    if target.exists():  # a plan that was never finished, or an overwrite of something else
        settings.store.remove(target)
    note = {
        "name": manifest.name,
        "path": settings.layout.rel(manifest) if manifest.is_relative_to(settings.layout.root) else None,
        "options": options.to_json(),
    }
    place = target / "history" / "request.json"
    settings.store.publish_json(place, signed(note))
    file_sha256 = store.hash_file(manifest)
    plan = make_plan(settings, target, manifest, sources, options, n_expected=request.manifest_total, progress=progress)
    is_same = store.hash_file(manifest) == file_sha256  # else its rows are compared at each resume
    settings.store.publish_json(place, signed({**note, "file_sha256": file_sha256 if is_same else None, "plan": plan.identity}))
    return plan, sources


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _stale(settings: Settings, plan: Plan, manifest: Path, sources: Sources) -> list[str]:
    """What changed since the plan, in the words of the refusal; empty when it is still true."""
    problems = []
    identity = plan.identity
    note = _read_note(plan.folder)
    is_known = note.get("plan") == identity and note.get("file_sha256") == store.hash_file(manifest)
    digest = identity["manifest_sha256"] if is_known else manifest_digest(manifest)
    for what, old, new in (
        ("manifest digest", identity["manifest_sha256"], digest),
        ("splits digest", identity["splits_sha256"], sources.splits_sha256),
        ("coverage digest", identity["coverage_sha256"], sources.coverage_sha256),
        ("taxonomy digest", identity["taxonomy_sha256"], sources.taxonomy.digest),
    ):
        if old != new:
            problems.append(f"{what} {old[:8]} -> {new[:8]}")
    if identity["generated_wanted"] != (wanted := sorted(settings.generated_wanted)):
        problems.append(f"generated_wanted {_shown(tuple(identity['generated_wanted']))} -> {_shown(tuple(wanted))}")
    if identity["slicer_version"] != SLICER_VERSION:
        problems.append(f"slicer_version {identity['slicer_version']} -> {SLICER_VERSION}")
    now = environment()
    problems += [f"{k} {v} -> {now.get(k)}" for k, v in sorted(identity["environment"].items()) if now.get(k) != v]
    return problems


@dataclass
class _Done:
    """Shards as this invocation left them."""

    made: list[ShardResult] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)  # clips: written, reused, healed
    written_before: dict[int, pl.DataFrame] = field(default_factory=dict)
    shards: Counter[str] = field(default_factory=Counter)  # written, reused, repaired
    root_hits: Counter[str] = field(default_factory=Counter)


def _make_shards(settings: Settings, plan: Plan, roots: AudioRoots, shards: Sequence[int], progress: Progress) -> _Done:
    """Make every shard that is not done, with as many workers as the settings say.

    Raises
    ------
    ConfigError `audio-changed`; GateFailed `no-space`; StoreError
    """
    done = _Done()
    unmade: list[int] = []
    _sweep(settings.store, plan)
    for shard in shards:
        reason, damaged = _why_again(settings.store, plan, shard, roots)
        if reason is None:
            done.shards["reused"] += 1
            continue
        unmade.append(shard)
        if damaged is not None:
            done.reasons[plan.shard_name(shard)] = reason
            done.written_before[shard] = damaged
    _require_space(settings, plan, unmade)
    marker = plan.folder / "BUNDLE.json"
    if unmade and marker.exists():  # readers must not find clips of two versions while shards change
        settings.store.remove(marker)
    planned = sum(plan.identity["tables"][plan.shard_name(s)]["clips"] for s in unmade)
    started_s = clock.monotonic_s()
    n_clips = 0
    jobs = [ShardJob(settings.layout.root, plan.folder, shard, replace(roots, hits=Counter())) for shard in unmade]
    splits: Counter[str] = Counter()
    with workers.executor(settings.executor, settings.n_workers) as pool:
        for result in workers.ordered_map(pool, make_shard, jobs, n_workers=settings.n_workers):
            done.made.append(result)
            done.root_hits.update(result.root_hits)
            kind = "repaired" if result.shard in done.written_before else "written"
            done.shards[kind] += 1
            n_clips += plan.identity["tables"][plan.shard_name(result.shard)]["clips"]
            splits.update(result.split_clips)
            seconds = max(clock.monotonic_s() - started_s, 1e-3)
            left_s = (planned - n_clips) / max(n_clips / seconds, 1e-9)
            progress(
                f"{n_clips:,} of {planned:,} clips, train {splits['train']:,}, val {splits['val']:,}, test {splits['test']:,}, "
                f"{n_clips / seconds:,.0f} clips/s, {left_s:,.0f} s left"
            )
    return done


def _sweep(files: Store, plan: Plan) -> None:
    """Delete what a killed run left in any folder of the bundle: a shard that turns out to be done is not written again."""
    for pattern in (".", "plan", "history", "shards/*", "*/audio/*"):
        for folder in plan.folder.glob(pattern) if pattern != "." else (plan.folder,):
            if folder.is_dir():
                files.sweep(folder)


def _why_again(files: Store, plan: Plan, shard: int, roots: AudioRoots) -> tuple[str | None, pl.DataFrame | None]:
    """Why a shard has to be made, None when it is done; and the clips of the earlier making that are still as they were, if there was one."""
    found = seal.read_shard(plan, shard)
    folder = plan.shard_folder(shard)
    nothing = pl.DataFrame(schema={"clip": pl.String, "source_set": pl.String, "duration_seconds": pl.Float64})
    if found is None:
        return ("SHARD.json is damaged", nothing) if (folder / "SHARD.json").exists() else ("not made yet", None)
    bad = [w["name"] for w in found["files"] if not _holds(files, folder / w["name"], w["sha256"])]
    if "clips.parquet" in bad:
        return "clips.parquet is damaged", nothing
    columns = ["clip", "split", "source_set", "part", "duration_seconds", "clip_sha256", "n_samples"]
    clips = pl.read_parquet(folder / "clips.parquet", columns=columns)
    if plan.options.layout == "wav":
        sound = pl.Series(
            [
                wav_holds(plan, split, clip, n, digest)
                for split, clip, n, digest in clips.select("split", "clip", "n_samples", "clip_sha256").iter_rows()
            ],
            dtype=pl.Boolean,
        )
        kept = clips.filter(sound) if clips.height else clips
        if kept.height < clips.height:
            bad.append(f"{clips.height - kept.height:,} wav files")
    else:
        kept = clips.filter(~pl.col("part").is_in(bad))
    kept = kept.select(nothing.columns)
    for used in found["audio"]:
        place = roots.find(used["source_set"], used["audio_path"])
        now = "absent" if isinstance(place, Missing) else files.sha256(place)
        if now != used["sha256"] and (bad or now != "absent"):  # without its audio a sound shard stays, a damaged one cannot be repaired
            raise ConfigError(
                f"{used['source_set']}/{used['audio_path']} was {used['sha256'][:8]} when its clips were cut and is {now[:8]} now. "
                "Bring the old file back, export under a new name or pass --overwrite",
                code="audio-changed",
            )
    if bad:
        return f"{', '.join(bad)[:200]} absent or damaged", kept
    for lost in found["lost"]:
        place = roots.find(lost["source_set"], lost["audio_path"])
        if not isinstance(place, Missing) and files.sha256(place) != lost["sha256"]:
            return f"{lost['source_set']}/{lost['audio_path']} is there now", kept
    return None, None


def _holds(files: Store, path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256(path) == digest


def wav_holds(plan: Plan, split: str, clip: str, n_samples: int, clip_sha256: str) -> bool:
    """A clip's wav file is there and holds its samples."""
    from beatsight_assets.bundle.read import wav_header

    path = plan.folder / split / wav_file(clip)
    head = wav_header(n_samples, plan.options.sample_rate)
    try:
        content = store.read_bytes(path, max_bytes=len(head) + n_samples * BYTES_PER_SAMPLE)
    except InputError:
        return False
    return content.startswith(head) and sha256(content[len(head) :]).hexdigest() == clip_sha256


def estimate_bytes(plan: Plan, shards: Sequence[int] | None = None) -> int:
    """Size of a bundle's samples, or of some of its shards: seconds x rate x 2 bytes."""
    counts = plan.identity["counts"]
    seconds = sum(counts["seconds_by_split"].values())
    share = 1.0
    if shards is not None and counts["planned_clips"]:
        share = sum(plan.identity["tables"][plan.shard_name(s)]["clips"] for s in shards) / counts["planned_clips"]
    return round(seconds * plan.options.sample_rate * BYTES_PER_SAMPLE * share)


def _require_space(settings: Settings, plan: Plan, unmade: Sequence[int]) -> None:
    needed = estimate_bytes(plan, unmade) * SPACE_FACTOR
    free = store.free_bytes(plan.folder)
    if free < needed:
        raise GateFailed(
            f"the clips need about {needed / 1e9:,.2f} GB and {free / 1e9:,.2f} GB are free. Make room or move the data root",
            code="no-space",
        )


def _seal(
    settings: Settings, request: BundleRequest, plan: Plan, sources: Sources, manifest: Path, done: _Done, started_s: float
) -> Exported:
    """Add up, write history, seal."""
    totals = seal.add_up(settings.store, plan)
    run, durations = _run_blocks(plan, done, totals, settings.n_workers)
    run["run_statistics"]["seconds_elapsed"] = round(clock.monotonic_s() - started_s, 3)
    history = _history(plan.folder)
    healed = {
        "healed_clips": run["run_statistics"]["healed_clips"] + sum(h["run_statistics"]["healed_clips"] for h in history),
        "healed_seconds": round(run["run_statistics"]["healed_seconds"] + sum(h["run_statistics"]["healed_seconds"] for h in history), 6),
        "healed_duration_seconds_by_source": _added(
            [run["run_healed_duration_seconds_by_source"], *(h["run_healed_duration_seconds_by_source"] for h in history)]
        ),
    }
    view = sources.taxonomy.view(plan.options.view)
    used = _used_splits(plan, sources.split_of)
    record = {**run, "mode": request.mode, "shards_made_again": done.reasons, "root_hits": dict(sorted(done.root_hits.items()))}
    settings.store.publish_json(_next_record(plan.folder), signed(record))  # before the seal, which counts what healed over all of them
    marker = seal.seal(settings.store, plan, totals, request.name, settings.layout.shown(manifest), view, used, run, healed)
    metadata = store.read_json(plan.folder / "metadata.json")
    _publish_quarantine(settings, request.name, plan, totals)
    return Exported(
        request.name, plan, marker, seal.statistics(plan, totals), metadata, record, dict(done.root_hits), dict(done.reasons), durations
    )


def _publish_quarantine(settings: Settings, name: str, plan: Plan, totals: seal.Totals) -> None:
    """quarantine/bundle.<name>.parquet: one row per file whose events fell out although it is named; no table when there is none."""
    outside = {"code": "path-escape", "message": "the path leads out of its root; it was not opened", "digest": None}
    rows = totals.refused + [{"source_set": s, "path": p, **outside} for s, p in plan.identity["counts"].get("escaped", [])]
    target = settings.layout.quarantine(f"bundle.{name}")
    if rows:
        table = pl.DataFrame([{**r, "stage": STAGE} for r in rows], schema=QUARANTINE_SCHEMA).unique().sort("source_set", "path")
        settings.store.publish_frame(target, table)
    elif target.exists():
        settings.store.remove(target)


def _used_splits(plan: Plan, split_of: pl.DataFrame) -> pl.DataFrame:
    groups = [pl.scan_parquet(plan.table(s)).select("group_id").unique().collect() for s in range(plan.n_shards)]
    return split_of.join(pl.concat(groups).unique(), on="group_id", how="semi")


def _history(folder: Path) -> list[dict[str, Any]]:
    """Records of earlier invocations; a damaged one tells nothing and stops nothing."""
    found = [read_signed(p) for p in sorted((folder / "history").glob("run-*.json"))]
    return [f for f in found if f is not None]


def _next_record(folder: Path) -> Path:
    """history/run-NNNN.json, one above the last."""
    numbers = [int(p.stem[4:]) for p in (folder / "history").glob("run-*.json") if p.stem[4:].isdecimal()]
    return folder / "history" / f"run-{max(numbers, default=0) + 1:04d}.json"


def _added(blocks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for block in blocks:
        total.update({k: float(v) for k, v in block.items()})  # type: ignore[arg-type]
    return {k: round(v, 6) for k, v in sorted(total.items())}


def _run_blocks(
    plan: Plan, done: _Done, totals: seal.Totals, n_workers: int
) -> tuple[dict[str, Any], dict[str, dict[str, tuple[int, float]]]]:
    """The blocks of metadata.json about this invocation, from the clips of the shards it made; and the durations table."""
    written: dict[str, list[pl.DataFrame]] = {"written": [], "healed": []}
    columns = ["clip", "split", "source_set", "duration_seconds", "labels"]
    for result in done.made:
        clips = pl.read_parquet(plan.shard_folder(result.shard) / "clips.parquet", columns=columns)
        before = done.written_before.get(result.shard)
        if before is None:
            written["written"].append(clips)
        else:
            written["healed"].append(clips.join(before.select("clip"), on="clip", how="anti"))
    empty = pl.DataFrame(
        schema={
            "clip": pl.String,
            "split": pl.String,
            "source_set": pl.String,
            "duration_seconds": pl.Float64,
            "labels": pl.List(pl.String),
        }
    )
    new, healed = (pl.concat([empty, *written[k]]) for k in ("written", "healed"))

    def seconds(frame: pl.DataFrame, column: str) -> dict[str, float]:
        rows = frame.group_by(column).agg(pl.col("duration_seconds").sum()).sort(column).iter_rows()
        return {name: round(value, 6) for name, value in rows}

    def clips_and_seconds(frame: pl.DataFrame) -> dict[str, tuple[int, float]]:
        rows = frame.group_by("source_set").agg(pl.len(), pl.col("duration_seconds").sum()).sort("source_set").iter_rows()
        return {name: (n, round(value, 6)) for name, n, value in rows}

    labels: dict[str, dict[str, int]] = {s: {} for s in SPLITS}
    both = pl.concat([new, healed])
    for split, label, n in (
        both.explode("labels").drop_nulls("labels").group_by("split", "labels").len().sort("split", "labels").iter_rows()
    ):
        labels[split][label] = n
    counts = plan.identity["counts"]
    durations = {
        "expected": {k: (n, counts["seconds_by_source"][k]) for k, n in counts["planned_by_source"].items()},
        "total": {k: (totals.source_clips[k], round(v, 6)) for k, v in sorted(totals.source_seconds.items())},
        "run": clips_and_seconds(new),
        "run_healed": clips_and_seconds(healed),
    }
    blocks = {
        "run_statistics": {
            "written_clips": new.height,
            "reused_clips": totals.n_clips - new.height - healed.height,
            "healed_clips": healed.height,
            "written_seconds": round(float(new["duration_seconds"].sum()), 6),
            "healed_seconds": round(float(healed["duration_seconds"].sum()), 6),
            "shards_written": done.shards["written"],
            "shards_reused": done.shards["reused"],
            "shards_repaired": done.shards["repaired"],
            "workers": n_workers,
        },
        "run_label_counts": labels,
        "run_split_durations_seconds": {s: seconds(both, "split").get(s, 0.0) for s in SPLITS},
        "run_duration_seconds_by_source": seconds(new, "source_set"),
        "run_healed_duration_seconds_by_source": seconds(healed, "source_set"),
    }
    return blocks, durations


def run(settings: Settings, request: BundleRequest, *, progress: Progress = silent) -> Report:
    """Stage `bundle`, partition = its name: export what is missing, seal, judge.

    Raises
    ------
    as `export`; InputError `changed-while-reading` : manifest or splits were replaced meanwhile
    """
    manifest = manifest_of(settings, request, bundle_folder(settings.layout, request.name) if request.mode == "resume" else None)
    inputs = (manifest, settings.layout.splits)
    before = [digest_of(settings, p) for p in inputs]
    exported = export(settings, request, progress=progress)
    for path, digest in zip(inputs, before, strict=True):
        if digest_of(settings, path) != digest:  # the receipt would say that the bundle rests on the new one
            raise InputError("was replaced while the bundle was made. Export again", code="changed-while-reading", where=path.name)
    plan = exported.plan
    outputs = [(n, plan.folder / n) for n in ("plan.json", "components.json", "splits.json", "metadata.json", "BUNDLE.json")]
    manifest = manifest_of(settings, request, plan.folder)
    parents = [("manifest", manifest)] if manifest.is_relative_to(settings.layout.root) else []
    if settings.layout.splits.is_file():
        parents.append(("splits", settings.layout.splits))
    figures = {k: v for k, v in exported.statistics.items() if not k.endswith("_seconds") or k == "written_seconds"}
    figures |= {f"run_{k}": v for k, v in exported.run["run_statistics"].items() if k in PART_OF_RUN}
    facts = {
        "complete": exported.marker["complete"],
        "missing": exported.metadata["missing"],
        "unreadable": exported.metadata["unreadable"],
        "durations": exported.durations,
        "split_durations_seconds": exported.metadata["split_durations_seconds"],
        "run_split_durations_seconds": exported.run["run_split_durations_seconds"],
        "run_statistics": {k: v for k, v in exported.run["run_statistics"].items() if k not in OF_THE_MACHINE},
        "root_hits": dict(exported.root_hits),
        "made_again": dict(exported.reasons),
        "options": asdict(plan.options),
    }
    log = plan.folder / "history" / f"run-{len(_history(plan.folder)):04d}.log"
    settings.store.publish(log, (plain(of_export(figures, facts)) + "\n").encode())
    rows = tuple(
        (
            source,
            seconds,
            exported.run["run_duration_seconds_by_source"].get(source, 0.0),
            exported.run["run_healed_duration_seconds_by_source"].get(source, 0.0),
        )
        for source, seconds in exported.metadata["duration_seconds_by_source"].items()
    )
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        partition=request.name,
        options={
            "plan_sha256": plan.sha256,
            "content_sha256": exported.marker["content_sha256"],
            "max_missing": request.max_missing,
            "run": {k: exported.run["run_statistics"][k] for k in PART_OF_RUN},
        },
        parents=parents,
        work=lambda: Outcome(
            outputs=[(n, p, None) for n, p in outputs],
            figures=figures,
            facts=facts,
            verdicts=[judge(settings, exported, request.max_missing)],
            table=Table(("source", "seconds", "seconds of this run", "seconds healed"), rows),
        ),
    )


def run_shards(settings: Settings, request: BundleRequest, shards: Sequence[int], *, progress: Progress = silent) -> Report:
    """Stage `clips`: some shards of a bundle, whichever are not done; `run` finds them done and seals.

    Raises
    ------
    as `export`
    """
    plan = cut_shards(settings, request, shards, progress=progress)
    done = [s for s in shards if s < plan.n_shards]
    receipts = [plan.shard_folder(s) / "SHARD.json" for s in done]
    n_clips = sum(pl.scan_parquet(plan.shard_folder(s) / "clips.parquet").select(pl.len()).collect().item() for s in done)
    return run_stage(
        settings,
        "clips",
        version=VERSION,
        partition=f"{request.name}.{'-'.join(plan.shard_name(s) for s in shards)[:100]}",
        options={"plan_sha256": plan.sha256, "shards": [settings.store.sha256(r) for r in receipts]},
        parents=[],
        work=lambda: Outcome(
            outputs=[(plan.shard_name(s), path, None) for s, path in zip(done, receipts, strict=True)],
            figures={"shards": len(done), "clips": n_clips},
        ),
    )


def _why_empty(exported: Exported) -> Reason:
    """A bundle without a clip is no bundle to train on; says where the events went."""
    skipped = {
        k.removeprefix("skipped_"): n for k, n in exported.statistics.items() if k.startswith("skipped_") and k != "skipped_total" and n
    }
    went = ", ".join(f"{n:,} {k}" for k, n in skipped.items()) or "the manifest holds none"
    first = next(iter(exported.metadata["unreadable"]["examples"]), None)
    told = f"; first {first['source_set']}/{first['audio_path']}: {first['code']}: {first['message']}" if first else ""
    return Reason(
        "nothing-written", f"no event became a clip ({went}{told}). Look closer: beatsight bundle verify", f"bundles/{exported.name}"
    )


def judge(settings: Settings, exported: Exported, max_missing: int) -> Verdict:
    """Verdict of gate `bundle` over what lies on disk."""
    plan, found = exported.plan, exported.statistics
    totals = seal.add_up(settings.store, plan)
    wrong_sums = len(seal.broken_identities(plan, totals, found))
    bad_shape, overlap, n_clips = 0, 0, 0
    seen: list[pl.DataFrame] = []
    for shard in range(plan.n_shards):
        receipt = seal.read_shard(plan, shard)
        clips = pl.read_parquet(
            plan.shard_folder(shard) / "clips.parquet",
            columns=["split", "part", "pre_ms", "post_ms", "n_samples", "peak_dbfs", "clip_sha256"],
        )
        n_clips += clips.height
        rate = plan.options.sample_rate
        due = (pl.col("pre_ms").cast(pl.Float64) * rate / 1000 + 0.5).floor() + (
            pl.col("post_ms").cast(pl.Float64) * rate / 1000 + 0.5
        ).floor()
        bad_shape += clips.filter(pl.col("n_samples") != due.cast(pl.Int64)).height
        sizes = dict(clips.drop_nulls("part").group_by("part").agg(pl.col("n_samples").cast(pl.Int64).sum() * 2).iter_rows())
        bad_shape += sum(w["bytes"] != sizes.get(w["name"], 0) for w in (receipt or {"files": []})["files"] if w["name"].endswith(".pcm"))
        heard = clips.filter(pl.col("peak_dbfs") > SILENCE_DB)
        seen.append(
            heard.select(
                pl.col("clip_sha256").str.head(16).str.to_integer(base=16, dtype=pl.UInt64).alias("key"),
                pl.col("split").cast(pl.Categorical),
            ).unique()
        )
    spread = pl.concat(seen).unique().group_by("key").len()
    overlap = spread.filter(pl.col("len") > 1).height
    missing = found["skipped_missing_audio"]
    return Verdict(
        gate=STAGE,
        rules=(
            Rule.at_most("bundle_complete", float(missing), float(max_missing), "planned clips without audio"),
            Rule.at_most("bundle_counts", float(wrong_sums), 0.0, "sums over splits, sources and outcomes that do not hold"),
            Rule.at_most("clip_shape", float(bad_shape), 0.0, "clips and parts that are not as long as the plan says"),
            Rule.at_most("clip_digest_overlap", float(overlap), 0.0, "equal clips in more than one split; digital silence is left out"),
        )
        if n_clips
        else (),
        reasons=() if n_clips else (_why_empty(exported),),
        inputs=(Artifact("bundle", settings.store.rel(plan.folder / "BUNDLE.json"), settings.store.sha256(plan.folder / "BUNDLE.json")),),
        support={"clips": n_clips, "planned": found["planned_clips"]},
        profile=settings.profile,
    )
