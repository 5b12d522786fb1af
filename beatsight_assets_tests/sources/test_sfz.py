"""SFZ: which sample sounds on which key, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from beatsight_assets.errors import InputError
from beatsight_assets.sources.sfz import parse_sfz, read_sfz

KIT = (
    "\ufeff// made by hand\r\n"
    "#define $KICK 36 #define $KICK_EDGE 35\r\n"
    "<control> default_path=..\\Samples\\ note_offset=0\r\n"
    "<global> volume=-6 loop_mode=one_shot\r\n"
    "<group> key=$KICK pan=-20 group=1 // the drum\r\n"
    "<region> lovel=1 hivel=63 sample=Big Kick - soft.wav\r\n"
    "<region> lovel=64\r\n"
    "sample=Big Kick - hard.wav volume=0 offset=12 seq_position=2\r\n"
    "<group> lokey=c2 hikey=c#2 off_by=1 off_mode=normal tune=-50\r\n"
    "<region> key=$KICK_EDGE sample=edge.wav\r\n"
    "<region> sample=hat.flac offby=7 pan=100\r\n"
    "<region> sample=*silence key=1\r\n"
    "<effect> dsp=none\r\n"
)


def test_a_region_inherits_from_group_and_global() -> None:
    """Keys, ranges, defaults, the longest define, blanks and backslashes in names: what one reads is what sounds."""
    file = parse_sfz(KIT.removeprefix("\ufeff"), "maps/kit.sfz")
    soft, hard, edge, hat = file.regions
    assert (soft.sample, soft.lokey, soft.hikey, soft.lovel, soft.hivel) == ("Samples/Big Kick - soft.wav", 36, 36, 1, 63)
    assert (soft.pan, soft.volume_db, soft.group, soft.off_by, soft.loop_mode) == (-20.0, -6.0, 1, 0, "one_shot")
    assert (hard.sample, hard.lovel, hard.hivel, hard.volume_db, hard.offset) == ("Samples/Big Kick - hard.wav", 64, 127, 0.0, 12)
    assert (soft.velocity * 127, hard.velocity * 127, soft.states_velocity) == (32.0, 95.5, True)
    assert (edge.lokey, edge.hikey, edge.group, edge.off_by, edge.off_mode, edge.tune_cents) == (36, 37, 0, 1, "normal", -50.0)
    assert (hat.lokey, hat.hikey, hat.off_by, hat.pan, hat.states_velocity) == (36, 37, 1, 100.0, False)
    assert file.ignored == {"<effect>": 1, "dsp": 1, "note_offset": 1, "region without a sample": 1, "seq_position": 1}


def test_a_file_is_read_below_its_kit(tmp_path: Path) -> None:
    """BOM, CRLF and Latin-1 names do no harm; a sample that is absent is named."""
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/kit.sfz").write_bytes(KIT.encode())
    (tmp_path / "Samples").mkdir()
    (tmp_path / "Samples/edge.wav").write_bytes(b"x")
    file = read_sfz(tmp_path, "maps/kit.sfz")
    assert len(file.regions) == 4
    assert file.missing(tmp_path) == ["Samples/Big Kick - hard.wav", "Samples/Big Kick - soft.wav", "Samples/hat.flac"]
    (tmp_path / "old.sfz").write_bytes("<region> sample=Bläser.wav key=1".encode("latin-1"))
    assert read_sfz(tmp_path, "old.sfz").regions[0].sample == "Bläser.wav"


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("<region> sample=../../etc/passwd.wav", "path-escape", 1),
        ("<region> sample=/etc/x.wav", "path-escape", 1),
        ("<region> sample=C:\\x.wav", "path-escape", 1),
        ("<control> default_path=../..\n<region> sample=/x.wav", "path-escape", 2),
        ("\n<region> sample=a.wav key=loud", "bad-metadata", 2),
        ("<region> sample=a.wav hivel=nan", "bad-metadata", 1),
        ("<region> sample=a.wav key=200", "bad-metadata", 1),
        ("<region> sample=a.wav lovel=90 hivel=10", "bad-metadata", 1),
        ('<group> key=3\n#include "more.sfz"', "bad-metadata", 2),
    ],
    ids=[
        "above the kit",
        "absolute",
        "drive",
        "default path above the kit",
        "a word for a key",
        "not a number",
        "no MIDI note",
        "empty range",
        "include",
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(text: str, code: str, line: int) -> None:
    """No sample outside the kit's folder, no number that is none, nothing passed over that would change the meaning."""
    with pytest.raises(InputError) as caught:
        parse_sfz(text, "maps/kit.sfz")
    assert (caught.value.code, caught.value.where) == (code, f"maps/kit.sfz:{line}")


def test_a_link_out_of_the_kit_is_not_followed(tmp_path: Path) -> None:
    """A sample that is a link to a file elsewhere is refused when it is looked up."""
    kit = tmp_path / "kit"
    kit.mkdir()
    (tmp_path / "secret.wav").write_bytes(b"x")
    (kit / "a.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(InputError) as caught:
        parse_sfz("<region> sample=a.wav", "kit.sfz").missing(kit)
    assert caught.value.code == "path-escape"


@pytest.mark.data
def test_the_five_avl_maps(shared_data: Path) -> None:
    """133 regions each, no missing sample, five wavs in no map (spec/sources.md section 13)."""
    kit = shared_data / "oneshots/avl-drumkits-1.1"
    maps = [read_sfz(kit, path.name) for path in sorted(kit.glob("*.sfz"))]
    assert [len(m.regions) for m in maps] == [133] * 5
    assert [m.missing(kit) for m in maps] == [[]] * 5 and [dict(m.ignored) for m in maps] == [{}] * 5
    unused = {p.name for p in kit.glob("*.wav")} - {r.sample for m in maps for r in m.regions}
    assert unused == {f"43-Ludwig18FloorTomEdge-{i}.wav" for i in range(1, 6)}
