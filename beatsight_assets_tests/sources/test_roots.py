"""One dataset in several folders: what counts once, what is refused, where its audio is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beatsight_assets import sources
from beatsight_assets.errors import ConfigError
from beatsight_assets.settings import Settings
from beatsight_assets.sources import rendered
from beatsight_assets_tests.sources.lake import NAME, put_table, put_take, with_config
from beatsight_assets_tests.sources.test_incremental import n_read


@pytest.fixture
def two(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, Path, Path]:
    """A dataset in two parts: a, b, c in the first; b as it is, c as another take, d new in the second."""
    monkeypatch.setattr(rendered, "SOURCE", replace(rendered.SOURCE, many_roots=True))
    one, other = tmp_path / "one", tmp_path / "other"
    for i, name in enumerate("abc"):
        put_take(one, name, i)
    put_table(one, list("abc"))
    for name, seed in (("b", 1), ("c", 77), ("d", 3)):
        put_take(other, name, seed)
    put_table(other, list("bcd"))
    return with_config(settings, roots=(str(one), str(other)), max_reject_rate=0.5), one, other


def stored(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(settings.layout.report("ingest", f"{NAME}.json").read_text())
    return found


def test_equal_files_are_taken_once_and_different_ones_refused(two: tuple[Settings, Path, Path]) -> None:
    """Same path, equal digests: one session, counted. Different: the first root wins, one row for each other file."""
    settings, _, _ = two
    report = sources.ingest(settings, "demo")
    told = stored(settings)
    assert set(pl.read_parquet(settings.layout.provenance(NAME))["session_id"]) == {f"midi/{n}.mid" for n in "abcd"}
    rows = pl.read_parquet(settings.layout.quarantine(NAME)).select("path", "code").rows()
    assert rows == [("audio/c.wav", "duplicate-session"), ("midi/c.mid", "duplicate-session")]
    assert (told["taken_once"], told["roots"], told["out_of_scope_reasons"]) == (1, 2, {"same-in-an-earlier-root": 2})
    assert told["candidates"] == told["used"] + told["refused_files"] + told["out_of_scope"] == 12
    assert told["audio"] == {"root 1": 3, "root 2": 1}
    assert report.passed


def test_the_first_root_wins(two: tuple[Settings, Path, Path]) -> None:
    """Turned round, the other take c is the session."""
    settings, one, other = two
    first = sources.ingest(settings, "demo")
    turned = sources.ingest(with_config(settings, roots=(str(other), str(one))), "demo")
    assert first.output("events").sha256 != turned.output("events").sha256
    assert turned.figures["recordings"] == 4


def test_a_part_that_is_not_there_is_no_smaller_dataset(two: tuple[Settings, Path, Path]) -> None:
    """An unmounted part is exit code 2, unless the config says that any part will do."""
    settings, one, _ = two
    gone = with_config(settings, roots=(str(one), str(one / "nowhere")))
    with pytest.raises(ConfigError, match="nowhere"):
        sources.ingest(gone, "demo")
    assert sources.ingest(with_config(gone, roots=(str(one), str(one / "nowhere")), roots_needed="any"), "demo").passed


def test_moving_a_part_changes_no_byte(two: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    """No table or report holds the place of a root."""
    settings, one, other = two
    before = sources.ingest(settings, "demo")
    other.rename(tmp_path / "elsewhere")
    after = sources.ingest(with_config(settings, roots=(str(one), str(tmp_path / "elsewhere"))), "demo")
    assert before.digest == after.digest


def test_audio_is_found_below_the_roots_in_their_order(settings: Settings, tmp_path: Path) -> None:
    """First root, then the next; the same stem with another suffix counts, another stem does not; hits per root are told."""
    import soundfile

    from beatsight_assets.audio import find_audio

    midi_only, sound, more = tmp_path / "midi_only", tmp_path / "sound", tmp_path / "more"
    for i, name in enumerate("abcd"):
        put_take(midi_only, name, i, audio=name == "a")
    put_table(midi_only, list("abcd"))
    put_take(sound, "b", 1)
    put_take(more, "b", 50)
    put_take(more, "cc", 2)
    put_take(more, "x", 4)
    samples, rate = soundfile.read(more / "audio/x.wav", dtype="int16")
    soundfile.write(more / "audio/d.flac", samples, rate)
    settings = with_config(settings, roots=tuple(str(p) for p in (midi_only, sound, more)))
    sources.ingest(settings, "demo")
    assert stored(settings)["audio"] == {"absent": 1, "root 1": 1, "root 2": 1, "root 3": 1}
    rows = {r["session_id"]: r for r in pl.read_parquet(settings.layout.provenance(NAME)).to_dicts()}
    frame = pl.read_parquet(settings.layout.events(NAME))
    paths = dict(frame.select("session_id", "audio_path").unique().iter_rows())
    assert paths["midi/d.mid"] == "audio/d.flac" == rows["midi/d.mid"]["sample_paths"][1]
    assert json.loads(rows["midi/b.mid"]["facts"])["audio_root"] == 1
    for session, path in paths.items():  # later stages find the same file
        found = find_audio(settings.raw_roots(NAME), path)
        assert (found is None) == (session == "midi/c.mid")
    assert find_audio(settings.raw_roots(NAME), paths["midi/b.mid"]) == sound / "audio/b.wav"


def test_audio_of_another_root_is_part_of_the_key(settings: Settings, tmp_path: Path) -> None:
    """When the sound of a take appears, changes or goes away in a fallback root, that take is read again."""
    midi_only, sound = tmp_path / "midi_only", tmp_path / "sound"
    for i, name in enumerate("ab"):
        put_take(midi_only, name, i, audio=False)
    put_table(midi_only, list("ab"))
    sound.mkdir()
    (sound / "readme.txt").write_text("empty so far")
    settings = with_config(settings, roots=(str(midi_only), str(sound)))
    sources.ingest(settings, "demo")
    for seed in (1, 2):
        put_take(sound, "b", seed)
        assert n_read(settings) == 1
        assert stored(settings)["audio"] == {"absent": 1, "root 2": 1}
    (sound / "audio/b.wav").unlink()
    assert sources.ingest(settings, "demo").facts["audio"] == {"absent": 2}


def test_state_of_roots(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent, empty and unreadable roots have no state; one of several is enough only where the config says so."""
    import os

    from beatsight_assets.sources import read_state

    one, other = tmp_path / "one", tmp_path / "other"
    both = with_config(settings, roots=(str(one), str(other)))
    any_of = with_config(settings, roots=(str(one), str(other)), roots_needed="any")
    assert read_state(settings, NAME) is None and read_state(any_of, NAME) is None
    put_take(one, "a", 1)
    other.mkdir()
    assert read_state(both, NAME) is None
    partial = read_state(any_of, NAME)
    assert partial is not None
    put_take(other, "b", 2)
    whole = read_state(both, NAME)
    assert whole is not None and whole == read_state(any_of, NAME) != partial
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("other/midi"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert read_state(both, NAME) is None and read_state(any_of, NAME) is None
