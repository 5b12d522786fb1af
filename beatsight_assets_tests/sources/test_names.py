"""File names: the cases of the specification, the real sample packs, and what must never matter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets.errors import ConfigError
from beatsight_assets.safeyaml import YamlFile, read_yaml
from beatsight_assets.settings import SHIPPED_CONFIGS, Settings
from beatsight_assets.sources.names import Named, NameRules, label_of, rules_of, shipped_rules, split_name
from beatsight_assets.taxonomy import Taxonomy

RULES = shipped_rules()
PARSED = read_yaml(SHIPPED_CONFIGS / "file_names.yaml").data


def said(named: Named) -> str:
    """Label with its variant, else the kind."""
    return f"{named.voice.label}{'/' + named.voice.variant if named.voice.variant else ''}" if named.voice else named.kind


CASES = {
    # events.md section 12, cases 28 and 29
    "01_Kick": ("kick", None),
    "05_Tom1": ("tom_high", None),
    "02_BassDI": ("not_drums", "di"),
    "07_Bass Drum": ("kick", None),
    "09_OH_L": ("drum_mix", "overhead left"),
    "30_Owl": ("unknown", None),
    "08_KickSnare": ("ambiguous", None),
    # every row of the table, and how names are written
    "03_SnareTop": ("snare", "top"),
    "HHat": ("hihat_closed/unspecified", None),
    "KDrum": ("kick", None),
    "KdrumL": ("kick", "left"),
    "Kick-Sub": ("kick", "sub"),
    "bd": ("kick", None),
    "Snare Rim": ("rimshot", None),
    "rim_shot": ("rimshot", None),
    "Side Stick": ("cross_stick", None),
    "rim": ("cross_stick", None),
    "Hi-Hat Closed": ("hihat_closed", None),
    "closed hats": ("hihat_closed", None),
    "HiHat_SemiOpen": ("hihat_open", None),
    "Semi Open Hi Hat": ("hihat_open", None),
    "foot hh": ("hihat_pedal", None),
    "Ride": ("ride_bow", None),
    "Bell Ride": ("ride_bell", None),
    "Ride Edge L": ("ride_edge", "left"),
    "Ride Cymbal": ("ride_bow", None),
    "Crash Cymbals": ("crash", None),
    "Cyms": ("crash/unspecified", None),
    "Crash2": ("crash2", None),
    "Floor Tom 1": ("tom_low", None),
    "TOMs": ("tom_mid/unspecified", None),
    "Rack Tom 2": ("tom_mid", None),
    "Rack": ("tom_mid/unspecified", None),
    "FT_btm": ("tom_low", "bottom"),
    "Tom 01": ("tom_mid/unspecified", None),  # sample number 1, not the first tom
    "Tom 6": ("tom_low", None),
    "Conga": ("aux_percussion", None),
    "Drums": ("drum_mix", None),
    "Room": ("drum_mix", "room"),
    "Amb R": ("drum_mix", "ambience right"),
    "Kick Room": ("kick", "room"),
    "Drum Kick": ("kick", None),
    "Vox Room": ("not_drums", "room"),
    "Kick Click": ("ambiguous", None),
    "Snare Rim Click": ("ambiguous", None),
    "Bottom Mic": ("unknown", "bottom"),
    "Kickstarter": ("unknown", None),
    "Tomorrow": ("unknown", None),
    "Bassoon": ("unknown", None),
    "Ｋｉｃｋ": ("kick", None),  # full-width letters: NFKC
    "": ("unknown", None),
    "12": ("unknown", None),
    "808": ("unknown", None),
}


@pytest.mark.parametrize("name", CASES)
def test_names_say_what_the_table_says(name: str) -> None:
    """Whole words, longest phrase first, two components are ambiguous, microphone words are no label."""
    named = label_of(name, RULES)
    assert (said(named), named.mic_position) == CASES[name]
    assert (named.code, named.voice is None) == (
        {"ambiguous": "ambiguous-file-name", "unknown": "unknown-label"}.get(named.kind),
        named.kind not in ("component", "drum_mix"),
    )


def test_l_is_a_low_tom_in_sample_packs_only() -> None:
    """In a multitrack session `l` is the left channel."""
    assert said(label_of("tr505-tom-l", RULES, one_shots=True)) == "tom_low"
    assert said(label_of("Tom L", RULES)) == "tom_mid/unspecified" and label_of("Tom L", RULES).mic_position == "left"
    assert said(label_of("Snare L", RULES, one_shots=True)) == "snare"


def test_every_phrase_of_the_table_means_its_own_label() -> None:
    """No phrase is hidden by another, in small letters, capitals and title case."""
    for label, phrases in PARSED["labels"].items():
        for phrase in phrases:
            for words in ("hihat", "hi hats", "hh") if "HAT" in phrase else ("",):
                name = phrase.replace("HAT", words)
                for written in (name, name.upper(), name.title(), name.replace(" ", "_"), f"07_{name} 03"):
                    assert said(label_of(written, RULES)) == label, written


TOKENS = sorted(
    {t for t in " ".join(p for ps in PARSED["labels"].values() for p in ps).split() if t.islower()} | {"l", "room", "bass", "owl"}
)
NAMES = st.lists(st.sampled_from(TOKENS), min_size=1, max_size=5).map(" ".join)


@given(NAMES, st.sampled_from([" ", "_", "-", ".", "  ", " - "]))
def test_case_and_separators_do_not_matter(name: str, separator: str) -> None:
    """A name of separate words says the same in any case, with any separator, behind a track number, and in its own tokens."""
    expected = label_of(name, RULES) if not name[0].isdecimal() else label_of("1 " + name, RULES)
    for written in (name, name.upper(), name.title(), name.replace(" ", separator), " ".join(split_name("1 " + name))):
        numbered = f"01{separator}{written}"
        assert label_of(numbered, RULES) == expected


@given(st.text(max_size=60))
def test_any_text_gets_an_answer(name: str) -> None:
    """Whatever characters a name holds: one of five kinds, and tokens of letters and digits only."""
    named = label_of(name, RULES, one_shots=True)
    assert named.kind in ("component", "drum_mix", "not_drums", "ambiguous", "unknown")
    assert named.voice is None or named.voice.label in (*Taxonomy.shipped().labels, "drum_mix")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": {"kik": ["kick"]}}, "kick"),
        ({"labels": {"kick": ["kick"], "snare": ["kick"]}}, "something else"),
        ({"labels": {"kick": ["a b c d e"]}}, "1 to 4 words"),
        ({"labels": {"kick": ["Kick-Drum"]}}, "1 to 4 words"),
        ({"positions": {"top": ["bass"]}}, "something else"),
        ({"colour": []}, "colour"),
    ],
    ids=["no component", "two meanings", "too long", "not in tokens", "position and instrument", "unknown key"],
)
def test_a_wrong_table_is_a_config_error(change: dict[str, object], word: str) -> None:
    """A typing error in configs/file_names.yaml is found when it is read, never a silent relabelling."""
    with pytest.raises(ConfigError, match=word) as failure:
        NameRules(YamlFile("configs/file_names.yaml", PARSED | change))
    assert failure.value.exit_code == 2


def test_a_dataset_adds_names_of_its_own(settings: Settings) -> None:
    """Option `names` adds phrases for one dataset; it cannot give a word a second meaning."""
    assert said(label_of("KTrig 2", rules_of({"names": {"kick": ["k trig"]}}))) == "kick"
    assert said(label_of("KTrig 2", RULES)) == "unknown"
    with pytest.raises(ConfigError, match="something else"):
        rules_of({"names": {"kick": ["snare"]}})
    with pytest.raises(ConfigError, match="list of phrases"):
        rules_of({"names": {"kick": "ktrig"}})


@pytest.mark.data
@pytest.mark.parametrize(
    ("kit", "expected"),
    [
        (
            "MRK-2",
            {"aux_percussion": 3, "crash/unspecified": 2, "hihat_closed": 1, "hihat_open": 1, "kick": 1, "snare": 1, "tom_mid/unspecified": 1},
        ),
        (
            "TR-505",
            {
                "aux_percussion": 3, "cowbell": 2, "clap": 1, "crash": 1, "hihat_closed": 1, "hihat_open": 1, "kick": 1, "ride_bow": 1,
                "cross_stick": 1, "snare": 1, "tom_high": 1, "tom_mid": 1, "tom_low": 1,
            },
        ),
    ],
)  # fmt: skip
def test_golden_names_of_two_kits(shared_data: Path, kit: str, expected: dict[str, int]) -> None:
    """10 and 16 files, every one with a label (sources.md section 13)."""
    stems = [path.stem for path in (shared_data / "oneshots" / kit).rglob("*.wav")]
    assert Counter(said(label_of(stem, RULES, one_shots=True)) for stem in stems) == expected
