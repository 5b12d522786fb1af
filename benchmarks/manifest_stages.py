"""P2, P3, P4, P5, P13, P14: what is done to a manifest of three million events, against the loops over JSON lines that people use; one thread.

Each measurement is a process of its own that reports its CPU seconds and its peak memory, so nothing is warm but the page cache. Ours and
the loop run in turns and must give the same answer: counts, rows, techniques row by row, weights to the last bit. The ratio is that of the
full size; a tenth gives the growth. Memory is measured again, without the loops, at 7.4 million events.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, growth, pin_threads

N = 3_000_000
N_MEMORY = 7_400_000
MAX_MEMORY_GB = 4.0
WORDS = {"P2": "P2 scan and group", "P3": "P3 merge", "P4": "P4 techniques", "P5": "P5 sampling weights", "P13": "P13 health report"}
BASELINES = {
    "P2": "json line loop",
    "P3": "line copy, no check",
    "P4": "loop over rows, parsing not counted",
    "P5": "json line loop",
    "P13": "json line loop",
}
GOALS = {
    "P2": ">= 15x",
    "P3": "<= 1.5x time, <= 1 GB, bytes/10",
    "P4": ">= 5x, equal rows",
    "P5": ">= 20x, equal weights",
    "P13": ">= 10x",
}
AT_LEAST = {"P2": 15.0, "P3": 1 / 1.5, "P4": 5.0, "P5": 20.0, "P13": 10.0}
MEMORY_STAGES = ("P2", "P3", "annotate", "split", "P5", "P13", "metrics")
Answer = dict[str, Any]


def run(n: int = N, n_memory: int = N_MEMORY, rounds: int = 1) -> list[Result]:
    """Events per CPU second of each stage, and the peak memory of every stage."""
    with tempfile.TemporaryDirectory(prefix="beatsight-bench-") as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        for place, size in ((large, n), (small, n // 10)):
            _child("make", place, str(size))
        results = [_compared(name, small, large, rounds) for name in WORDS]
    with tempfile.TemporaryDirectory(prefix="beatsight-bench-") as folder:
        place = Path(folder)
        _child("make", place, str(n_memory), "--no-lines")
        results.append(_memory(place))
    return results


def _compared(name: str, small: Path, large: Path, rounds: int) -> Result:
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(_child(f"loop:{name}", large))
        ours.append(_child(name, large))
    if len({json.dumps(run["answer"], sort_keys=True) for run in (*ours, *theirs)}) != 1:
        raise AssertionError(f"{name}: the loop and the stage give different answers: {ours[0]['answer']} {theirs[0]['answer']}")
    small_ours = [_child(name, small) for _ in range(3)]
    small_theirs = _child(f"loop:{name}", small)
    ours_s, theirs_s, small_s = (statistics.median(run["cpu_s"] for run in runs) for runs in (ours, theirs, small_ours))
    ratio, n = theirs_s / ours_s, ours[0]["events"]
    peak_gb = max(run["peak_gb"] for run in ours)
    notes = {
        "ours_cpu_s": ours_s,
        "baseline_cpu_s": theirs_s,
        "peak_gb": peak_gb,
        "baseline_peak_gb": max(run["peak_gb"] for run in theirs),
        "ratio_at_a_tenth": small_theirs["cpu_s"] / small_s,
        "rounds": rounds,
    } | {k: v for k, v in ours[0].items() if k.startswith("note_")} | {k: v for k, v in theirs[0].items() if k.startswith("note_")}  # fmt: skip
    met = ratio >= AT_LEAST[name]
    if name == "P3":
        notes["bytes_ratio"] = theirs[0]["note_line_bytes"] / ours[0]["note_table_bytes"]
        met = met and peak_gb <= 1.0 and notes["bytes_ratio"] >= 10.0
    return Result(
        WORDS[name], "events", n, n / ours_s, BASELINES[name], n / theirs_s, ratio,
        growth(small_ours[0]["events"], small_s, n, ours_s), GOALS[name], met, notes,
    )  # fmt: skip


def _memory(place: Path) -> Result:
    runs = {name: _child(name, place) for name in MEMORY_STAGES}
    worst = max(run["peak_gb"] for run in runs.values())
    n = runs["P3"]["events"]
    notes = {f"{name}_{what}": run[what] for name, run in runs.items() for what in ("peak_gb", "cpu_s")}
    total_s = sum(run["cpu_s"] for run in runs.values())
    return Result(
        "P14 memory", "events", n, n / total_s, goal=f"every stage <= {MAX_MEMORY_GB:g} GB", met=worst <= MAX_MEMORY_GB, notes=notes
    )


def _child(work: str, place: Path, *more: str) -> dict[str, Any]:
    """One measurement in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.manifest_stages", work, str(place), *more], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{work} at {place.name} failed:\n{done.stderr[-2_000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {work:<10} {found['events']:>9,} events  {found['cpu_s']:7.2f} CPU s  {found['peak_gb']:.2f} GB", file=sys.stderr, flush=True)
    return dict(found)


# --- inside of a measurement ------------------------------------------------------------------------------------------------


def _make(place: Path, n_events: int, with_lines: bool) -> Answer:
    """One table and one file of lines for each dataset, and the merged and annotated tables that later stages read."""
    from beatsight_assets.events import EVENT_SCHEMA, Manifest, to_jsonl
    from beatsight_assets.manifest.annotate import Annotation, annotated_pieces
    from beatsight_assets.store import Store
    from beatsight_assets.taxonomy import Taxonomy
    from beatsight_assets.testing.manifests import DATASETS, made_events

    place.mkdir(exist_ok=True)
    store = Store(place, remember=False)
    for dataset in DATASETS:
        store.publish_frames(place / f"{dataset.name}.parquet", made_events(dataset, round(n_events * dataset.share)), EVENT_SCHEMA)
        if with_lines:
            with (place / f"{dataset.name}.jsonl").open("wb") as out:
                for piece in Manifest(place / f"{dataset.name}.parquet").pieces():
                    out.write(to_jsonl(piece))
    merged = _merge(place)
    pieces = annotated_pieces(Manifest(place / "merged.parquet"), Taxonomy.shipped(), Annotation())
    store.publish_frames(place / "annotated.parquet", pieces, EVENT_SCHEMA)
    if with_lines:
        with (place / "annotated.jsonl").open("wb") as out:
            for piece in Manifest(place / "annotated.parquet").pieces():
                out.write(to_jsonl(piece))
    return merged


def _scan(place: Path) -> Answer:
    from beatsight_assets.events import Manifest, label_counts, sum_counts

    labels, sources = [], Counter()
    for piece in Manifest(place / "annotated.parquet").pieces(["source_set", "components"]):
        labels.append(label_counts(piece))
        sources.update(dict(piece["source_set"].value_counts().iter_rows()))
    return {"labels": sum_counts(labels), "sources": sources}


def _scan_loop(place: Path) -> Answer:
    labels: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for row in _rows(place / "annotated.jsonl"):
        sources[row["source_set"]] += 1
        for hit in row["components"]:
            labels[hit["label"]] += 1
    return {"labels": labels, "sources": sources}


def _inputs(place: Path, suffix: str) -> list[Path]:
    return sorted(place.glob(f"made_*.{suffix}"))


def _merge(place: Path) -> Answer:
    from beatsight_assets.events import EVENT_SCHEMA, Manifest
    from beatsight_assets.manifest.merge import MergeFigures, merged_pieces
    from beatsight_assets.store import Store

    figures = MergeFigures()
    manifests = [Manifest(path) for path in _inputs(place, "parquet")]
    target = place / "merged.parquet"
    Store(place, remember=False).publish_frames(target, merged_pieces(manifests, figures), EVENT_SCHEMA)
    return {"rows": figures.n_rows + figures.n_collapsed, "note_table_bytes": target.stat().st_size, "note_collapsed": figures.n_collapsed}


def _merge_loop(place: Path) -> Answer:
    n = 0
    target = place / "copied.jsonl"
    with target.open("w", encoding="utf-8") as out:
        for path in _inputs(place, "jsonl"):
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    out.write(line)
                    n += 1
    n_bytes = target.stat().st_size
    target.unlink()
    return {"rows": n, "note_line_bytes": n_bytes}


def _techniques(place: Path) -> Answer:
    """The rules alone, as the loop has them: labels stay as they are."""
    from beatsight_assets.events import Manifest
    from beatsight_assets.manifest.techniques import with_techniques

    digest = hashlib.sha256()
    for piece in Manifest(place / "merged.parquet").sessions():
        found = with_techniques(piece)["techniques"]
        with Uncounted():
            _digest_tags(digest, found.to_list())
    return {"techniques": digest.hexdigest()}


def _techniques_loop(place: Path) -> Answer:
    from beatsight_assets.events import Manifest
    from beatsight_assets_tests.manifest.technique_oracle import tags_of_rows

    digest = hashlib.sha256()
    for piece in Manifest(place / "merged.parquet").sessions(rows=50_000):
        with Uncounted():
            rows = piece.to_dicts()
        found = tags_of_rows(rows)
        with Uncounted():
            _digest_tags(digest, [sorted(tags.union(row["techniques"])) for tags, row in zip(found, rows, strict=True)])
    return {"techniques": digest.hexdigest()}


def _digest_tags(digest: Any, lists: Iterable[list[str]]) -> None:
    digest.update("".join(",".join(tags) + "\n" for tags in lists).encode())


def _annotate(place: Path) -> Answer:
    from beatsight_assets.events import EVENT_SCHEMA, Manifest
    from beatsight_assets.manifest.annotate import Annotation, annotated_pieces
    from beatsight_assets.store import Store
    from beatsight_assets.taxonomy import Taxonomy

    found = Annotation()
    pieces = annotated_pieces(Manifest(place / "merged.parquet"), Taxonomy.shipped(), found)
    Store(place, remember=False).publish_frames(place / "again.parquet", pieces, EVENT_SCHEMA)
    return {"rows": found.n_rows}


def _split(place: Path) -> Answer:
    from beatsight_assets.events import Manifest
    from beatsight_assets.manifest.splits import Takes, assign

    takes = Takes.of(Manifest(place / "annotated.parquet"))
    hints: dict[str, list[str]] = {}
    for group, hint in takes.rows.select("group_id", "split_hint").unique().iter_rows():
        hints.setdefault(group, []).extend([hint] if hint else [])
    return {"groups": len(assign(hints))}


def _weights(place: Path) -> Answer:
    from beatsight_assets.events import Manifest
    from beatsight_assets.sampling import derive

    found = derive(Manifest(place / "annotated.parquet"), _profile())
    return _weights_answer({name: (g.count, g.weight) for name, g in found.groups.items()})


def _weights_loop(place: Path) -> Answer:
    profile = _profile()
    boosts = {**profile.boosts, **profile.attenuations}
    seen: set[tuple[Any, ...]] = set()
    counts: dict[str, int] = {}
    tags: dict[str, set[str]] = {}
    for row in _rows(place / "annotated.jsonl"):
        session = row["session_id"]
        key = (session, round(row["onset_time"] * 1e6), tuple(sorted({hit["label"] for hit in row["components"]})))
        if key in seen:
            continue
        seen.add(key)
        counts[session] = counts.get(session, 0) + 1
        tags.setdefault(session, set()).update(row["techniques"])
    weights = {}
    for session, n in counts.items():
        n = min(n, profile.max_per_group or n)
        factor = math.prod(f for name, f in sorted(boosts.items()) if name in tags[session])
        weights[session] = (
            n,
            float(min(max((n + profile.smoothing) ** -profile.exponent * factor, profile.min_weight), profile.max_weight)),
        )
    return _weights_answer(weights)


def _profile() -> Any:
    from beatsight_assets.settings import load_settings

    return load_settings(Path(tempfile.gettempdir()) / "none", environ={}).sampling.profiles["prod_combined"]


def _weights_answer(weights: dict[str, tuple[int, float]]) -> Answer:
    text = "\n".join(f"{name} {n} {weight!r}" for name, (n, weight) in sorted(weights.items()))
    return {"groups": len(weights), "weights": hashlib.sha256(text.encode()).hexdigest()}


def _health(place: Path) -> Answer:
    from beatsight_assets.health.report import measure, read_manifest
    from beatsight_assets.taxonomy import Taxonomy

    frame, _ = read_manifest(place / "annotated.parquet")
    found = measure(frame, Taxonomy.shipped())
    return {
        "labels": {label: counts["total"] for label, counts in found["per_class_counts"].items() if counts["total"]},
        "dynamics": found["dynamic_bucket_counts"],
        "techniques": {name: counts["events"] for name, counts in found["technique_counts"].items()},
        "sessions": found["summary"]["unique_sessions"],
        "duplication_rate": found["summary"]["duplication_rate"],
        "content_duplication_rate": found["summary"]["content_duplication_rate"],
    }


def _health_loop(place: Path) -> Answer:
    """A part of the report, in the way such reports are written: counts, dynamics, techniques, sessions, both kinds of copies."""
    from beatsight_assets.taxonomy import Taxonomy

    taxonomy = Taxonomy.shipped()
    name_of: dict[str, str] = {}
    counters: dict[str, Counter[str]] = {name: Counter() for name in ("labels", "dynamics", "techniques")}
    per_class: dict[str, tuple[set[str], set[str]]] = {}
    sessions, ids, content = set(), set(), set()
    n = 0
    for row in _rows(place / "annotated.jsonl"):
        n += 1
        ids.add(row["event_id"])
        sessions.add((row["source_set"], row["session_id"]))
        labels = []
        for hit in row["components"]:
            label = hit["label"]
            if label not in name_of:
                name_of[label] = (taxonomy.canonical(label) or (label, None))[0]
            label = name_of[label]
            labels.append(label)
            counters["labels"][label] += 1
            counters["dynamics"][hit.get("dynamic_bucket") or "unknown"] += 1
            for members, member in zip(per_class.setdefault(label, (set(), set())), (row["session_id"], row["group_id"]), strict=True):
                members.add(member)
        content.add((row["session_id"], round(row["onset_time"] * 1e6), tuple(sorted(labels))))
        counters["techniques"].update(row["techniques"])
    return {
        **counters,
        "sessions": len(sessions),
        "duplication_rate": (n - len(ids)) / n,
        "content_duplication_rate": (n - len(content)) / n,
    }


def _metrics(place: Path) -> Answer:
    from beatsight_assets.events import Manifest
    from beatsight_assets.manifest.compare import COLUMNS, snapshot

    return {"events": snapshot(Manifest(place / "annotated.parquet").read(columns=COLUMNS))["num_events"]}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


class Uncounted:
    """CPU seconds that are no part of the work: turning tables into rows for a loop, digests of answers."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        Uncounted.seconds += time.process_time() - self._start


WORKS: dict[str, Callable[[Path], Answer]] = {
    "P2": _scan,
    "loop:P2": _scan_loop,
    "P3": _merge,
    "loop:P3": _merge_loop,
    "P4": _techniques,
    "loop:P4": _techniques_loop,
    "P5": _weights,
    "loop:P5": _weights_loop,
    "P13": _health,
    "loop:P13": _health_loop,
    "annotate": _annotate,
    "split": _split,
    "metrics": _metrics,
}


def measure(work: str, place: Path, *more: str) -> dict[str, Any]:
    """Answer, CPU seconds and peak memory of one work, in this process."""
    import polars as pl

    import beatsight_assets.manifest.annotate  # noqa: F401  # imports are no part of the work

    before = time.process_time()
    answer = _make(place, int(more[0]), "--no-lines" not in more) if work == "make" else WORKS[work](place)
    seconds = time.process_time() - before - Uncounted.seconds
    n = sum(int(pl.scan_parquet(path).select(pl.len()).collect().item()) for path in _inputs(place, "parquet"))
    notes = {key: answer.pop(key) for key in list(answer) if key.startswith("note_")}
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"answer": answer, "cpu_s": seconds, "peak_gb": peak_gb, "events": n, **notes}


if __name__ == "__main__":
    pin_threads()
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])))
