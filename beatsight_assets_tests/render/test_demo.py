from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from beatsight_assets import audio
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.render import demo
from beatsight_assets.render.synth import COMPONENTS
from beatsight_assets.store import Store


def make(root: Path, **options: int) -> demo.DemoSummary:
    return demo.write_demo(root / "raw", store=Store(root), sessions=4, n_workers=1, **options)


def digests(root: Path) -> dict[str, str]:
    folder = root / "raw" / demo.FOLDER
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(root: Path, name: str) -> list[dict[str, str]]:
    with open(root / "raw" / demo.FOLDER / name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, demo.DemoSummary]:
    """The smallest demo: four takes and the four planted ones."""
    root = tmp_path_factory.mktemp("demo")
    return root, make(root)


def test_the_default_plan_keeps_ruling_25() -> None:
    """Promise (ruling 25): at least 24 takes, 6 training kits, 2 test-only kits, 20 hits of each gate component in val and test."""
    rows = demo.plan_rows(demo.SESSIONS, 7)
    assert len(rows) >= 24
    kits = {split: {r.kit_id for r in rows if ("test" if r.group == "pair" else r.split) == split} for split in demo.KITS}
    assert (len(kits["train"]), len(kits["val"]), len(kits["test"])) == (8, 2, 2)
    assert not kits["train"] & kits["val"] | kits["train"] & kits["test"] | kits["val"] & kits["test"]
    for split in ("val", "test"):
        counts = Counter(hit.label for r in rows if r.split == split and r.group != "pair" and not r.damaged for hit in r.take.hits)
        assert min(counts[name] for name in COMPONENTS[:18]) >= 20
    minutes = sum(r.take.hits[-1].onset_us / 1e6 + demo.TAIL_S for r in rows) / 60
    assert 6 <= minutes <= 8


def test_files_and_tables_agree(small: tuple[Path, demo.DemoSummary]) -> None:
    """Promise: every listed file is there, nothing else is, and durations and hit counts are those of the files."""
    root, summary = small
    rows, strangers = table(root, "takes.csv"), table(root, "openset.csv")
    listed = (
        {r[c] for r in rows for c in ("midi_filename", "audio_filename")} | {r["file"] for r in strangers} | {"takes.csv", "openset.csv"}
    )
    assert listed == set(digests(root))
    assert summary.n_takes == len(rows) == 8
    assert {r["family"] for r in strangers} == {"click", "tone", "bass", "voice", "noise"}
    assert {r["is_known"] for r in strangers} == {"false"}
    for row in rows:
        clip = audio.read_mono(root / "raw" / demo.FOLDER / row["audio_filename"], 44_100)
        assert float(row["duration"]) == pytest.approx(len(clip.samples) / 44_100, abs=1e-6)
        assert np.max(np.abs(clip.samples)) < 0.9


def test_midi_says_what_was_played(small: tuple[Path, demo.DemoSummary]) -> None:
    """Promise: the MIDI of a take holds its hits, labels, velocities and pedal, within half a tick of what was written."""
    root, _ = small
    row = demo.plan_rows(4, 7)[0]
    played = demo.read_performance(row.take_id, (root / "raw" / demo.FOLDER / "midi" / f"{row.take_id}.mid").read_bytes())
    assert Counter(played.labels) == Counter(h.label for h in row.take.hits)
    written = {label: sorted(h.onset_us for h in row.take.hits if h.label == label) for label in set(played.labels)}
    for label, onsets in written.items():
        found = sorted(int(t) for t, name in zip(played.onsets_us, played.labels, strict=True) if name == label)
        assert np.allclose(found, onsets, atol=1_000)
    hats = [h for h in row.take.hits if h.label in ("hihat_open", "hihat_closed")]
    expected = sorted(round(1 - (h.cc4 or 0) / 90, 4) for h in hats)
    heard = [o for o, name in zip(played.openness, played.labels, strict=True) if name in ("hihat_open", "hihat_closed")]
    assert np.allclose(sorted(heard), expected, atol=1e-3)


def test_the_three_planted_faults(small: tuple[Path, demo.DemoSummary]) -> None:
    """Promise (ruling 26): one MIDI is refused as truncated, one take is there twice, one group has the hints train and test."""
    root, summary = small
    folder = root / "raw" / demo.FOLDER
    refused = []
    for row in table(root, "takes.csv"):
        try:
            demo.read_performance(row["take_id"], (folder / row["midi_filename"]).read_bytes())
        except InputError as error:
            refused.append((row["take_id"], error.code))
    assert [code for _, code in refused] == ["truncated-midi"]
    by_digest: dict[str, list[str]] = {}
    for name, digest in digests(root).items():
        by_digest.setdefault(digest, []).append(name)
    twins = sorted(names for names in by_digest.values() if len(names) > 1)
    assert [[Path(n).parent.name for n in names] for names in twins] == [["audio", "audio"], ["midi", "midi"]]
    first, second = (next(r for r in table(root, "takes.csv") if r["audio_filename"] == n) for n in twins[0])
    assert (first["split"], second["split"]) == ("train", "")
    assert first["group"] != second["group"]
    pair = [r for r in table(root, "takes.csv") if r["group"] == "pair"]
    assert [r["split"] for r in pair] == ["train", "test"]
    assert len(summary.faults) == 3


def test_made_again_nothing_is_rewritten(small: tuple[Path, demo.DemoSummary]) -> None:
    """Promise: the same seed gives the same bytes, files that are there stay, a damaged one is made good, a stale one goes."""
    root, first = small
    before = digests(root)
    victim = root / "raw" / demo.FOLDER / "audio" / "t01.wav"
    victim.write_bytes(victim.read_bytes()[:-2])
    stale = root / "raw" / demo.FOLDER / "midi" / "t99.mid"
    stale.write_bytes(b"of a larger demo")
    again = make(root)
    assert (again.n_written, again.n_kept) == (1, first.n_written - 1)
    assert digests(root) == before


def test_another_seed_sounds_different(small: tuple[Path, demo.DemoSummary], tmp_path: Path) -> None:
    """Promise: the seed reaches playing and sound; no audio file is equal."""
    root, _ = small
    make(tmp_path, seed=8)
    mine, theirs = digests(root), digests(tmp_path)
    assert not {v for k, v in mine.items() if k.startswith("audio/")} & {v for k, v in theirs.items() if k.startswith("audio/")}


def test_too_few_sessions_are_refused(tmp_path: Path) -> None:
    """Promise: a demo in which a split would be empty is a usage error."""
    with pytest.raises(ConfigError, match="at least 4"):
        demo.write_demo(tmp_path, store=Store(tmp_path), sessions=3)
