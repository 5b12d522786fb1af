"""Names: aliases, families, views and note maps say what spec/events.md sections 6 and 7 say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from beatsight_assets import midi
from beatsight_assets.errors import ConfigError
from beatsight_assets.safeyaml import YamlFile, read_yaml
from beatsight_assets.settings import SHIPPED_CONFIGS
from beatsight_assets.taxonomy import Taxonomy

TAXONOMY = Taxonomy.shipped()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("crash_1", ("crash", None)),
        ("hihat", ("hihat_closed", "unspecified")),
        ("HH", ("hihat_closed", "unspecified")),
        ("Bass Drum", ("kick", None)),
        ("snare-off", ("snare", "snares_off")),
        ("cymbal", ("crash", "unspecified")),
        ("crash3", ("crash2", "crash_3")),
        ("tom", ("tom_mid", "unspecified")),
        ("tom_low2", ("tom_low", "floor_2")),
        ("ride", ("ride_bow", None)),
        ("gong", None),
        ("drum_mix", None),
    ],
)
def test_aliases_resolve_to_component_and_variant(name: str, found: tuple[str, str | None] | None) -> None:
    """A label means one component, whatever its spelling."""
    assert TAXONOMY.canonical(name) == found


def test_the_23_components_are_in_the_order_of_the_spec() -> None:
    """Class order never depends on a file's order of keys."""
    assert TAXONOMY.labels[:4] == ("kick", "snare", "rimshot", "cross_stick")
    assert TAXONOMY.labels[17:] == ("tom_low", "cowbell", "tambourine", "clap", "shaker", "aux_percussion")
    assert len(TAXONOMY.labels) == 23


@pytest.mark.parametrize(
    ("view", "n_classes", "outside"),
    [
        ("drums3", 3, {"tom_high", "crash", "cowbell"}),
        ("drums5", 5, {"cowbell", "tambourine", "clap", "shaker", "aux_percussion"}),
        ("drums12", 12, {"cowbell", "aux_percussion"}),
        ("drums18", 18, set()),
        ("full23", 23, set()),
    ],
)
def test_views_have_the_classes_of_the_spec(view: str, n_classes: int, outside: set[str]) -> None:
    """A view names its classes and leaves out what it says it leaves out."""
    found = TAXONOMY.view(view)
    assert len(found.classes) == n_classes
    assert outside.isdisjoint(found.class_of)
    assert set(found.class_of.values()) == set(found.classes)
    assert len(found.class_of) == 23 if not outside else len(found.class_of) < 23


def test_an_unspecified_hat_is_positive_in_drums3_and_masked_in_drums12() -> None:
    """Case 27: an IDMT hat is no evidence between open, closed and pedal."""
    assert TAXONOMY.view("drums3").masked_by_unspecified(TAXONOMY, "hihat_closed") == ()
    assert TAXONOMY.view("drums12").masked_by_unspecified(TAXONOMY, "hihat_closed") == ("hihat_closed", "hihat_open", "hihat_pedal")


def test_an_unspecified_cymbal_masks_rides_too() -> None:
    """A track named cymbals may hold a ride."""
    assert TAXONOMY.view("drums12").masked_by_unspecified(TAXONOMY, "crash") == ("ride", "ride_bell", "crash", "china")


def test_coverage_is_by_component_or_by_family() -> None:
    """A source that knows only three families covers no cymbal."""
    assert TAXONOMY.view("drums12").covered(TAXONOMY, ("kick", "snare", "hihat")) == (
        "kick",
        "snare",
        "hihat_closed",
        "hihat_open",
        "hihat_pedal",
    )


@pytest.mark.parametrize(
    ("note", "label", "strike"),
    [
        (26, "hihat_open", "edge"),
        (55, "crash", "edge"),
        (52, "crash2", "edge"),
        (58, "tom_low", "rim"),
        (59, "ride_edge", "edge"),
        (22, "hihat_closed", "edge"),
    ],
)
def test_td11_notes_that_general_midi_gets_wrong(note: int, label: str, strike: str) -> None:
    """Case 7: one Groove hit in eight is wrong under a General MIDI table."""
    voice = TAXONOMY.note_map("td11")[note]
    assert (voice.label, voice.strike) == (label, strike)


def test_note_maps_have_their_notes() -> None:
    """22 notes of the TD-11, one note per component for our own files, General MIDI 35-81."""
    assert len(TAXONOMY.note_map("td11")) == 22
    assert {v.label for v in TAXONOMY.note_map("beatsight").values()} == set(TAXONOMY.labels)
    assert sorted(TAXONOMY.note_map("general_midi")) == list(range(35, 82))


def test_an_alias_of_two_components_is_a_config_error_with_its_line(tmp_path: Path) -> None:
    """Two meanings of one name are refused at reading, not discovered in the data."""
    text = (SHIPPED_CONFIGS / "taxonomy.yaml").read_text().replace("aliases: [bass_drum,", "aliases: [snare_drum, bass_drum,")
    path = tmp_path / "taxonomy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="snare_drum") as failure:
        Taxonomy(read_yaml(path))
    assert ":" in failure.value.where


def test_an_unknown_note_map_and_view_name_the_nearest() -> None:
    """A typing error gets the right word back."""
    with pytest.raises(ConfigError, match="td11"):
        TAXONOMY.note_map("td1")
    with pytest.raises(ConfigError, match="drums12"):
        TAXONOMY.view("drum12")


def test_the_digest_ignores_comments_and_notices_meaning() -> None:
    """The digest stamps meaning, not formatting."""
    file = read_yaml(SHIPPED_CONFIGS / "taxonomy.yaml")
    assert Taxonomy(file).digest == TAXONOMY.digest
    changed = {**file.data, "version": 2}
    assert Taxonomy(YamlFile("x", changed)).digest != TAXONOMY.digest


STUDIO = TAXONOMY.note_map("ni_studio")


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ((39,), ("rimshot", None, None, ())), ((40, 81, 83, 84, 86), ("snare", None, None, ())), ((41, 43), ("tom_low", None, None, ())),
        ((45,), ("tom_mid", None, None, ())), ((47,), ("tom_high", None, None, ())), ((48, 49, 50), ("crash", None, None, ())),
        ((51,), ("ride_bow", None, None, ())), ((52,), ("ride_edge", None, None, ())), ((53,), ("ride_bell", None, None, ())),
        ((54, 55, 56), ("crash2", None, None, ())), ((57, 58), ("china", None, None, ())), ((59,), ("splash", None, None, ())),
        ((36, 60, 82), ("kick", None, None, ())), ((37, 61), ("cross_stick", None, None, ())), ((62,), ("snare", None, None, ("flam",))),
        ((63,), ("snare", None, None, ("roll",))), ((64,), ("snare", "snares_off", None, ("snares_off",))),
        ((65, 67), ("tom_low", None, "rim", ())), ((69,), ("tom_mid", None, "rim", ())), ((71,), ("tom_high", None, "rim", ())),
        ((42, 66, 68, 85, 87, 90, 92, 94, 97), ("hihat_closed", None, None, ())), ((70,), ("hihat_foot_splash", None, None, ())),
        ((46, 76, 77, 78, 79, 80), ("hihat_open", None, None, ())), ((88, 89, 91, 93), ("tom_low", None, None, ())),
        ((95, 96), ("tom_mid", None, None, ())), ((98, 100), ("tom_high", None, None, ())), ((22,), ("crash", None, None, ("cymbal_choke",))),
        ((23,), ("ride_bow", None, None, ("cymbal_choke",))), ((24,), ("crash2", None, None, ("cymbal_choke",))),
        ((25,), ("china", None, None, ("cymbal_choke",))), ((26,), ("splash", None, None, ("cymbal_choke",))),
        ((31, 32), ("tambourine", None, None, ())), ((33, 34), ("clap", None, None, ())), ((35,), ("aux_percussion", "sticks", None, ())),
        ((27, 28, 29, 30), ("aux_percussion", None, None, ())),
    ],
    ids=str,
)  # fmt: skip
def test_studio_kits_follow_the_key_chart(notes: tuple[int, ...], expected: tuple[str, str | None, str | None, tuple[str, ...]]) -> None:
    """Each key of the studio kits is what spec/events.md section 7 says, with strike, variant and technique."""
    assert {(v.label, v.variant, v.strike, v.techniques) for v in (STUDIO[n] for n in notes)} == {expected}


def test_only_the_stepped_hat_keys_state_an_openness() -> None:
    """76, 77, 78, 80 are 0.25, 0.5, 0.75, 1.0; no other key of any map knows."""
    stated = {(m, n): v.openness for m in TAXONOMY.plugins.values() for n, v in TAXONOMY.note_map(m).items() if v.openness is not None}
    assert {n: v for (m, n), v in stated.items() if m == "ni_studio"} == {76: 0.25, 77: 0.5, 78: 0.75, 80: 1.0}
    assert {m for m, _ in stated} == {"ni_studio", "ni_studio_cowbell"}


def test_the_other_plugin_maps_differ_where_the_charts_do() -> None:
    """Garage and stadium kits have cowbells at 27-30 and nothing else of their own; factory kits start loops at 60-71, which are no strokes."""
    cowbell, factory, gm = (TAXONOMY.note_map(n) for n in ("ni_studio_cowbell", "kontakt_factory", "general_midi"))
    assert {n for n in cowbell if cowbell[n] != STUDIO[n]} == {27, 28, 29, 30} == {n for n in cowbell if cowbell[n].label == "cowbell"}
    assert set(gm) - set(factory) == set(range(60, 72)) and set(factory) < set(gm)
    changed = {n: factory[n].label for n in factory if factory[n].label != gm[n].label}
    assert changed == {39: "rimshot", 52: "tom_high", 53: "tom_high", 54: "ride_bell", 58: "splash"}
    assert factory[40] == factory[38] != gm[40] and factory[55].label == "splash"


def test_every_technique_of_a_note_map_is_in_the_catalogue() -> None:
    """A source cannot state a gesture that validation would refuse."""
    known = {t["id"] for t in read_yaml(SHIPPED_CONFIGS / "techniques.yaml").data["techniques"]}
    maps = read_yaml(SHIPPED_CONFIGS / "taxonomy.yaml").data["note_maps"]
    assert {t for name in maps for v in TAXONOMY.note_map(name).values() for t in v.techniques} <= known


def test_general_midi_names_every_percussion_sound() -> None:
    """Equal components of the key map are told apart by their variant, so a flam of two toms is no double."""
    gm = TAXONOMY.note_map("general_midi")
    told = [(v.label, v.variant) for n, v in gm.items() if n not in (35, 36, 69, 70)]
    assert len(set(told)) == len(told) and gm[69].label == gm[70].label == "shaker" and gm[35] == gm[36]


@pytest.mark.data
def test_golden_general_midi(shared_data: Path) -> None:
    """183 channel-9 notes 27-87 of the percussion test file: 42 unmapped, components as counted in spec/events.md section 7."""
    data = (shared_data / "midi_misc/wellformed/jazz-soft/test-all-gm-percussion.mid").read_bytes()
    notes = midi.read_midi(data).notes
    played, gm = notes.note[notes.channel == 9].tolist(), TAXONOMY.note_map("general_midi")
    assert (len(played), min(played), max(played), sum(n not in gm for n in played)) == (183, 27, 87, 42)
    counts = Counter(gm[n].label for n in played if n in gm)
    expected = {"aux_percussion": 63} | dict.fromkeys(("kick", "snare", "ride_bow", "tom_high", "tom_mid", "tom_low", "shaker"), 6)
    assert {label: n for label, n in counts.items() if label in expected} == expected
    assert {n for label, n in counts.items() if label not in expected} == {3} and len(counts) == 8 + 12


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [("funk_kit.nkm: kontakt_factory", "funk_kit.nkm: kontakt_factry", "kontakt_factory"), ("  td11: 90", "  td12: 90", "td11"),
     ("openness: 0.25", "openness: 1.25", "less than or equal to 1"), ("98: {component", "198: {component", "less than or equal to 127")],
    ids=["plugin to no map", "pedal of no map", "openness above 1", "note above 127"],
)  # fmt: skip
def test_a_wrong_map_is_a_config_error(tmp_path: Path, old: str, new: str, word: str) -> None:
    """A typing error in the maps is found when the taxonomy is read."""
    text = (SHIPPED_CONFIGS / "taxonomy.yaml").read_text()
    assert old in text
    (tmp_path / "taxonomy.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=word):
        Taxonomy(read_yaml(tmp_path / "taxonomy.yaml"))
