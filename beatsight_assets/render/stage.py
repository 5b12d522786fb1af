"""The stage `rendered_audio`: what the platform renders itself, and whether audio and MIDI say the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beatsight_assets import audio
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.events import SPLITS
from beatsight_assets.render import demo, groove, sampled, synth
from beatsight_assets.settings import Settings
from beatsight_assets.sources import find_root, listing_digest, module_options, one_shots
from beatsight_assets.sources.tables import read_csv
from beatsight_assets.stages import Outcome, Progress, Report, run_stage, silent
from beatsight_assets.store import contain
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.units import keyed_order
from beatsight_assets.verdict import Reason, Rule, Verdict

VERSION = "2"
STAGE = "rendered_audio"
ONE_SHOTS = "one_shots"  # dataset whose options say how kits are read and which split hears them
CHECKED_HITS = 200  # design ruling 14
MAX_ONSET_ERROR_MS = 3.0  # design ruling 14
CHECKED_TAKES = 20  # spread over the set; 200 hits need no more


@dataclass(frozen=True)
class RenderOptions:
    """What to render: `beatsight_demo` (needs nothing) or `groove_rendered` (needs raw/groove_midi). The rest shapes the latter.

    kits_from : a folder of sampled kits, absolute; None: synthesised kits
    """

    source_set: str = demo.FOLDER
    seed: int = 7
    sessions: int = demo.SESSIONS
    minutes: float = 60.0
    kits: int = 8
    renders: int = 1
    kits_from: str | None = None


def run(settings: Settings, options: RenderOptions | None = None, *, progress: Progress = silent) -> Report:
    """Audio, MIDI and takes.csv of one rendered dataset below its raw folder.

    Raises
    ------
    ConfigError `unknown-choice`, `missing-root`, `no-kits` : not a rendered dataset; Groove or the kits are not there; no kit can play
    """
    options = options or RenderOptions()
    source_set, config = settings.dataset(options.source_set)
    if not config.rendered:
        names = [n for n, c in settings.datasets.items() if c.rendered]
        raise ConfigError.unknown_choice("rendered dataset", source_set, names)
    target = settings.layout.raw(config.raw_folder)
    identity: dict[str, Any] = asdict(options)
    if source_set == demo.FOLDER:
        work = _demo_work(settings, options, target, progress)
        identity = {k: identity[k] for k in ("source_set", "seed", "sessions")}
    else:
        root = find_root(settings, "groove_mididataset")
        if root is None:
            raise ConfigError("raw/groove_midi is not there. Put the unpacked Groove MIDI dataset there first", code="missing-root")
        del identity["kits_from"]  # what lies there counts, not where it lies
        kits = None
        if options.kits_from is not None:
            kits = sampled_kits(settings, Path(options.kits_from), progress)
            identity["kits_from"] = {"listing": listing_digest(Path(options.kits_from)), **kits.identity}
        recipe = json.dumps([VERSION, Taxonomy.load(settings).digest, identity.get("kits_from")], sort_keys=True, default=str)
        work = _groove_work(settings, options, root, target, kits, recipe, progress)
        identity["groove"] = listing_digest(root)
    return run_stage(settings, STAGE, partition=source_set, version=VERSION, options=identity, parents=(), work=work)


def _demo_work(settings: Settings, options: RenderOptions, target: Path, progress: Progress) -> Any:
    def work() -> Outcome:
        made = demo.write_demo(target.parent, store=settings.store, seed=options.seed, sessions=options.sessions,
                               n_workers=settings.n_workers, progress=progress)  # fmt: skip
        figures: dict[str, float | int] = {
            "takes": made.n_takes, "minutes": round(made.minutes, 3), "bytes": made.n_bytes, "written": made.n_written,
            "kept": made.n_kept, "kits": sum(made.kits.values()),
        }  # fmt: skip
        facts = {"faults": list(made.faults), "kits": dict(made.kits), "hits": {s: dict(h) for s, h in made.hits.items()}}
        return _outcome(settings, options.source_set, target, figures, facts)

    return work


def _groove_work(
    settings: Settings, options: RenderOptions, root: Path, target: Path, kits: groove.SampledKits | None, recipe: str, progress: Progress
) -> Any:
    def work() -> Outcome:
        of_groove = settings.datasets["groove_mididataset"].options
        jobs = groove.plan(root, of_groove, minutes=options.minutes, n_kits=options.kits, renders=options.renders, seed=options.seed,
                           kits_from=kits, recipe=recipe)  # fmt: skip
        figures, facts = groove.write(root, target, jobs, store=settings.store, taxonomy_path=settings.config_path("taxonomy"),
                                      options=of_groove, seed=options.seed, n_workers=settings.n_workers, progress=progress,
                                      kit_options=kits.options if kits else None)  # fmt: skip
        return _outcome(settings, options.source_set, target, figures, facts | (kits.facts if kits else {}))

    return work


def sampled_kits(settings: Settings, folder: Path, progress: Progress) -> groove.SampledKits:
    """Kits of a folder that can play, by the split the one-shots keep them in. A kit without a split plays nothing: its own samples may
    be in any split, and a take would carry them into another."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder. Give a folder with one folder of samples for each kit", code="missing-root")
    options = module_options(settings, ONE_SHOTS)
    found, refused = sampled.find_kits(folder, options, Taxonomy.load(settings))
    splits = one_shots.kit_splits(options)
    refused |= {ref.kit_id: "has no split in one_shots.kit_splits of configs/datasets.yaml" for ref in found if ref.kit not in splits}
    by_split = {split: [ref for ref in found if splits.get(ref.kit) == split] for split in SPLITS}
    for name, reason in refused.items():
        progress(f"kit {name} is not used: it {reason}")
    if not any(by_split.values()):
        said = "; ".join(f"{name} {reason}" for name, reason in refused.items()) or "there are no samples"
        raise ConfigError(f"no kit below {folder} can play: {said}", code="no-kits", where="--kits-from")
    return groove.SampledKits(by_split, options, refused)


def _outcome(settings: Settings, source_set: str, target: Path, figures: dict[str, float | int], facts: dict[str, Any]) -> Outcome:
    table = target / "takes.csv"
    return Outcome(outputs=[("takes", table, None)], figures=figures, facts=facts, verdicts=(matches_midi(settings, target, seed=0),))


def matches_midi(settings: Settings, target: Path, *, seed: int) -> Verdict:
    """Does the audio say what the MIDI says (ruling 14): keyed hits within 3 ms, no sample at full scale, the file outlasts the last note."""
    takes = sorted(read_csv(target / "takes.csv"), key=lambda r: keyed_order(seed, r["take_id"]))
    errors: list[tuple[str, float]] = []
    n_clipped = n_short = 0
    for row in takes:
        try:
            played = demo.read_performance(row["take_id"], contain(target, row["midi_filename"]).read_bytes())
        except InputError:
            continue  # a damaged file is the ingest's business: it becomes a quarantine row
        clip = audio.read_mono(contain(target, row["audio_filename"]), synth.RATE_HZ)
        n_clipped += int(np.abs(clip.samples).max(initial=0.0) >= 32_767 / 32_768)
        n_short += int(len(played.onsets_us) > 0 and played.onsets_us[-1] / 1e6 >= len(clip.samples) / synth.RATE_HZ)
        if row.get("mix_context") == "full_mix":
            continue  # accompaniment has onsets of its own, which no MIDI names
        measure = sampled.measure_onset_errors if row.get("kit_source") == groove.SAMPLED else synth.measure_onset_errors
        found = measure(clip.samples, synth.RATE_HZ, played.onsets_us)
        errors += [(f"{row['take_id']}:{i}", float(e)) for i, e in enumerate(found) if np.isfinite(e)]
        if len(errors) >= 4 * CHECKED_HITS and len(takes) > CHECKED_TAKES:
            break
    errors.sort(key=lambda e: keyed_order(seed, e[0]))
    checked = errors[:CHECKED_HITS]
    worst = max((abs(e) for _, e in checked), default=float("nan"))
    reasons = () if checked else (Reason("nothing-to-judge", "no hit could be measured"),)
    rules = (
        Rule.at_most("render_matches_midi", worst if checked else None, MAX_ONSET_ERROR_MS, f"worst of {len(checked)} keyed hits, ms"),
        Rule.at_most("render_matches_midi[clipped]", float(n_clipped), 0.0, "files with a sample at full scale"),
        Rule.at_most("render_matches_midi[short]", float(n_short), 0.0, "files that end before their last note"),
    )
    return Verdict(
        "render", rules, figures={"worst_onset_error_ms": worst, "hits_checked": len(checked)}, reasons=reasons, profile=settings.profile
    )
