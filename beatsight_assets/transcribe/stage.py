"""Stage `transcriptions`: the promoted model listens to reference takes, and its hits are held against what was played.

Belongs here: which takes, their files below reports/transcribe, the gate `transcription`. Does not belong here: promotion gates (those
judge all held-out recordings before a model serves; this shows, on few, what a user gets).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import store
from beatsight_assets.audio import find_audio
from beatsight_assets.errors import InputError, NothingToDo
from beatsight_assets.events import hits_with_onsets, read_events
from beatsight_assets.features.cache import find_recordings
from beatsight_assets.model.evaluate import COARSE_VIEW, Limits
from beatsight_assets.model.scoring import FINE_TOLERANCE_MS, Counts
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Progress, Report, Table, run_stage, silent
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets.transcribe import Hit
from beatsight_assets.transcribe.run import FORMATS, Served, TranscribeOptions, estimate_tempo, hear, promoted_model, to_files
from beatsight_assets.transcribe.score import Score, score_hits
from beatsight_assets.units import keyed_order
from beatsight_assets.verdict import Artifact, Rule, Verdict

STAGE = "transcriptions"
VERSION = "1"
GATE = "transcription"
FILES = ("bsm", "midi", "audacity")
DATA = ("source_set", "session_id")


@dataclass(frozen=True)
class ReferenceOptions:
    """takes : how many at most; seed : of the keyed choice."""

    takes: int = 2
    seed: int = 0


@dataclass(frozen=True)
class ReferenceTake:
    """A held-out recording whose truth is known."""

    name: str  # folder of its files
    source_set: str
    session_id: str
    kit_id: str | None
    is_synthetic: bool
    kit_in_training: bool | None  # None: the source does not say which kit it is
    audio: Path
    audio_sha256: str
    coverage: tuple[str, ...] | None
    truth: tuple[Hit, ...]


def choose_takes(settings: Settings, served: Served, options: ReferenceOptions, taxonomy: Taxonomy) -> list[ReferenceTake]:
    """Takes of the test split that have audio and that the model was not trained on, in keyed order, real and synthesised ones in turn.

    Takes of kits that training never heard come first; others are taken only when there is none of them.

    Raises
    ------
    NothingToDo `no-reference-takes` : there is no such take
    """
    recordings = find_recordings(settings)
    trained: Mapping[str, Any] = served.model.card["trained_on"]
    found: list[tuple[dict[str, Any], Path]] = []
    for row in recordings.filter((pl.col("split") == "test") & ~pl.col("group_id").is_in(trained["groups"])).iter_rows(named=True):
        roots = settings.raw_roots(row["source_set"]) if row["source_set"] in settings.datasets else []
        path = find_audio(roots, row["audio_path"])
        if path is not None:
            found.append((row, path))
    if not found:
        raise NothingToDo(f"no take of the test split has audio and is new to {served.name}", code="no-reference-takes")
    unseen = [f for f in found if f[0]["kit_id"] not in trained["kits"]] or found
    unseen.sort(key=lambda f: keyed_order(options.seed, f"{f[0]['source_set']}/{f[0]['session_id']}"))
    turns = {True: 0, False: 0}
    ranked = []
    for row, path in unseen:
        ranked.append((turns[row["is_synthetic"]], row["is_synthetic"], row, path))
        turns[row["is_synthetic"]] += 1
    chosen = [(row, path) for *_, row, path in sorted(ranked, key=lambda r: r[:2])[: options.takes]]
    truth = _truths(settings, [row for row, _ in chosen], taxonomy)
    return [
        ReferenceTake(
            name=_folder_name(row["source_set"], row["session_id"]),
            source_set=row["source_set"],
            session_id=row["session_id"],
            kit_id=row["kit_id"],
            is_synthetic=row["is_synthetic"],
            kit_in_training=None if row["kit_id"] is None else row["kit_id"] in trained["kits"],
            audio=path,
            audio_sha256=settings.store.sha256(path),
            coverage=None if row["coverage"] is None else tuple(row["coverage"]),
            truth=truth[(row["source_set"], row["session_id"])],
        )
        for row, path in chosen
    ]


def run(settings: Settings, options: ReferenceOptions = ReferenceOptions(), *, progress: Progress = silent) -> Report:
    """Transcribe the reference takes: reports/transcribe/<take>/{take.bsm, take.mid, take.txt, score.json}, judged as gate `transcription`.

    The files carry the time of the promotion, so that equal models and takes give equal bytes.

    Raises
    ------
    ConfigError, StoreError : as `run.promoted_model`
    InputError `missing-input` : no annotated manifest, splits or promotion record
    NothingToDo `no-reference-takes`
    """
    layout = settings.layout
    served = promoted_model(settings)
    release = layout.promoted / served.name
    parents = [("current", layout.current_model), ("model_card", release / "model.json"), ("model", release / "model.safetensors"),
               ("promotion", release / "promotion.json"), ("annotated", layout.annotated), ("splits", layout.splits)]  # fmt: skip
    for role, path in parents:
        if not path.is_file():
            raise InputError(f"there is no {role}. Run the step that writes it first", code="missing-input", where=layout.rel(path))
    taxonomy = Taxonomy.load(settings)
    takes = choose_takes(settings, served, options, taxonomy)
    parents += [("provenance", p) for s in sorted({t.source_set for t in takes}) if (p := layout.provenance(s)).is_file()]
    return run_stage(
        settings,
        STAGE,
        version=VERSION,
        options={"takes": options.takes, "seed": options.seed, "audio": [t.audio_sha256 for t in takes], "limit": _limit(settings)},
        parents=parents,
        work=lambda: _work(settings, served, takes, taxonomy, progress),
    )


def _work(settings: Settings, served: Served, takes: Sequence[ReferenceTake], taxonomy: Taxonomy, progress: Progress) -> Outcome:
    views = tuple(dict.fromkeys((served.model.view, COARSE_VIEW)))
    outputs: list[tuple[str, Path, int | None]] = []
    scores: list[Score] = []
    promoted_at = _promoted_at(settings, served)
    rows = []
    for take in takes:
        progress(f"{served.name} listens to {take.session_id}")
        heard = hear(served, take.audio, taxonomy)
        if heard.audio_sha256 != take.audio_sha256:
            raise InputError("the audio changed meanwhile. Run it again", code="changed-while-reading", where=take.audio.name)
        folder = settings.layout.report("transcribe", take.name)
        options = TranscribeOptions(take.audio, folder / "take.bsm", formats=FILES, title=take.session_id)
        for name, content in to_files(heard, served, estimate_tempo(heard.hits), options, promoted_at, settings).items():
            path = folder / f"take{FORMATS[name]}"
            settings.store.publish(path, content)
            outputs.append((f"{name}:{take.name}", path, len(heard.hits)))
        scored = score_hits(take.truth, heard.hits, taxonomy, views=views, coverage=take.coverage)
        about = {"data": _about(take), "model": served.name, "model_sha256": served.model.digest}
        settings.store.publish_json(folder / "score.json", {"schema": "beatsight.score/1", **about, **scored.to_json()})
        outputs.append((f"score:{take.name}", folder / "score.json", None))
        scores.append(scored)
        f1 = {view: scored.overall(view).f1 for view in views}
        rows.append(
            (take.session_id, take.source_set, take.kit_id or "unknown", len(take.truth), len(heard.hits), *(_digits(f1[v]) for v in views))
        )
    pooled = {view: sum((s.overall(view) for s in scores), Counts()) for view in views}
    fine = sum((s.overall(views[0], FINE_TOLERANCE_MS) for s in scores), Counts())
    figures = {f"onset_f_{view}": value for view, c in pooled.items() if (value := c.f1) is not None}
    figures |= {"takes": len(takes), "hits_played": pooled[views[0]].support, **({} if fine.f1 is None else {"onset_f_20_ms": fine.f1})}
    about_data = [_about(take) for take in takes]
    return Outcome(
        outputs=outputs,
        figures=figures,
        facts={"model": served.name, "data": about_data, "read_as": _sentence(about_data)},
        verdicts=[_judge(settings, served, pooled[views[0]], takes, _sentence(about_data))],
        table=Table(("take", "source", "kit", "played", "heard", *(f"F 50 ms {v}" for v in views)), tuple(rows)),
    )


def _judge(settings: Settings, served: Served, counts: Counts, takes: Sequence[ReferenceTake], sentence: str) -> Verdict:
    limit = _limit(settings)
    detail = f"within 50 ms, {served.model.view}, hits pooled; {sentence}"
    if limit is None:
        rule = Rule.waive("onset_f_measure", f"profile {settings.profile} has no limit for pooled F", counts.f1)
    else:
        rule = Rule.at_least("onset_f_measure", counts.f1, limit, detail, blocking=False)
    layout = settings.layout
    inputs = tuple(
        Artifact(role, layout.rel(p), settings.store.sha256(p))
        for role, p in (("current", layout.current_model), ("annotated", layout.annotated))
    )
    return Verdict(
        GATE,
        (rule,),
        inputs=inputs,
        figures=counts.to_json(),
        limits={} if limit is None else {"onset_f_measure": limit},
        support={"takes": len(takes), "hits": counts.support},
        profile=settings.profile,
    )


def _limit(settings: Settings) -> float | None:
    """What the gate `evaluation` asks of all held-out recordings: its pooled F, else the F that its precision and recall imply."""
    limits = Limits.read(settings)
    if limits.pooled_f1 is not None or limits.pooled_precision is None or limits.pooled_recall is None:
        return limits.pooled_f1
    return min(limits.pooled_precision, limits.pooled_recall)


def _about(take: ReferenceTake) -> dict[str, Any]:
    """Ruling 37: what the figure is about, and what of it training has heard."""
    return {
        "take": take.session_id,
        "source_set": take.source_set,
        "kit": take.kit_id,
        "is_synthetic": take.is_synthetic,
        "take_in_training": False,  # `choose_takes` takes no other
        "kit_in_training": take.kit_in_training,
    }


def _sentence(about: Sequence[dict[str, Any]]) -> str:
    kind = " and ".join(sorted({"synthesised audio" if a["is_synthetic"] else "real audio" for a in about}))
    kits = {a["kit_in_training"] for a in about}
    overlap = "kits also in training" if True in kits else "of unknown kits" if None in kits else "of kits not in training"
    return f"{len(about)} test takes ({kind}) of {', '.join(sorted({a['source_set'] for a in about}))}, takes not in training, {overlap}"


def _truths(settings: Settings, chosen: Sequence[dict[str, Any]], taxonomy: Taxonomy) -> dict[tuple[str, str], tuple[Hit, ...]]:
    keys = pl.DataFrame([{k: row[k] for k in DATA} for row in chosen])
    rows = hits_with_onsets(read_events(settings.layout.annotated).join(keys, on=list(DATA), how="semi")).sort(*DATA, "onset_s", "label")
    truth: dict[tuple[str, str], list[Hit]] = {(row["source_set"], row["session_id"]): [] for row in chosen}
    wanted = rows.select(*DATA, "onset_s", "label", "velocity", "openness", "instrument_variant")
    for source_set, session_id, onset_s, label, velocity, openness, variant in wanted.iter_rows():
        truth[(source_set, session_id)].append(Hit(round(onset_s * 1e6), label, velocity, openness, variant))
    return {key: tuple(hits) for key, hits in truth.items()}


def _promoted_at(settings: Settings, served: Served) -> datetime:
    path = settings.layout.promoted / served.name / "promotion.json"
    try:
        return datetime.fromisoformat(store.read_json(path)["created_at"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"created_at is no time: {error!r}", code="bad-metadata", where=settings.layout.rel(path)) from error


def _folder_name(source_set: str, session_id: str) -> str:
    """Readable, plain, and different for different takes."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", f"{source_set}_{Path(session_id).stem}")[:100].strip("_")
    return f"{plain}_{sha256(f'{source_set}/{session_id}'.encode()).hexdigest()[:8]}"


def _digits(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
