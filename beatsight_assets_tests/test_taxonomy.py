"""Names: aliases, families, views and note maps say what spec/events.md sections 6 and 7 say."""

from __future__ import annotations

from pathlib import Path

import pytest

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
