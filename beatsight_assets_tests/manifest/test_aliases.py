from __future__ import annotations

import json

import polars as pl

from beatsight_assets.manifest.aliases import with_canonical_labels
from beatsight_assets.manifest.openness import measure_openness
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.manifest.factory import event, frame, hit, random_events

TAXONOMY = Taxonomy.shipped()


def labels(events: pl.DataFrame) -> list[list[tuple[str, str | None]]]:
    return [[(c["label"], c["instrument_variant"]) for c in row] for row in events["components"].to_list()]


def test_names_become_components_and_counts_are_true() -> None:
    """Case 26: crash_1 -> crash, hihat -> hihat_closed unspecified, gong stays and is counted; counts are hits."""
    rows = [event(float(i), "crash_1") for i in range(3)] + [
        event(3.0, "hihat"),
        event(4.0, "gong"),
        event(5.0, "kick"),
        event(6.0, "drum_mix"),
    ]
    found, report = with_canonical_labels(frame(rows), TAXONOMY)
    assert labels(found) == [[("crash", None)]] * 3 + [
        [("hihat_closed", "unspecified")],
        [("gong", None)],
        [("kick", None)],
        [("drum_mix", None)],
    ]
    assert report.relabelled == {"crash_1": {"crash": 3}, "hihat": {"hihat_closed": 1}}
    assert (report.unknown, report.unchanged, report.merged_duplicates) == ({"gong": 1}, 3, 0)


def test_doubles_after_relabelling_become_one() -> None:
    """The louder of two hits of one piece stays, on a tie the earlier; components stand in taxonomy order with their own offsets."""
    rows = [
        event(0.0, hit("crash_1", 0.4), hit("kick", 0.5), hit("crash", 0.9), extras={"offsets_us": [0, 3000, 5000]}),
        event(1.0, hit("sd", 0.5, strike_position="rim"), hit("snare", 0.5, strike_position="head"), extras={"collapsed_hits": 1}),
        event(2.0, hit("crash", 0.4), hit("crash", 0.5, instrument_variant="crash_5")),
        event(3.0),
    ]
    found, report = with_canonical_labels(frame(rows), TAXONOMY)
    assert labels(found) == [[("kick", None), ("crash", None)], [("snare", None)], [("crash", None), ("crash", "crash_5")], []]
    assert report.merged_duplicates == 2
    first, second = (json.loads(e) for e in found["extras"].to_list()[:2])
    assert first == {"collapsed_hits": 1, "offsets_us": [3000, 5000]} and second == {"collapsed_hits": 2}
    assert round(found["components"].to_list()[0][1]["velocity"], 6) == 0.9
    assert found["components"].to_list()[1][0]["strike_position"] == "rim"


def test_second_run_changes_nothing() -> None:
    """The step is idempotent, and a table with canonical labels comes back as it is."""
    found, _ = with_canonical_labels(frame([event(0.0, "crash_1", "crash"), event(1.0, "hh"), event(2.0, "gong")]), TAXONOMY)
    again, report = with_canonical_labels(found, TAXONOMY)
    assert again.equals(found) and not report.relabelled and not report.merged_duplicates
    plain = random_events(500)
    assert with_canonical_labels(plain, TAXONOMY)[0] is plain


def test_openness_figures() -> None:
    """Values out of range or off the hats are found; a label that disagrees with the pedal is counted and kept."""
    rows = [
        event(0.0, hit("hihat_open", openness=0.0)),
        event(1.0, hit("hihat_closed", openness=0.36)),
        event(2.0, hit("hihat_closed", openness=0.35)),
        event(3.0, hit("hihat_open", openness=1.5)),
        event(4.0, hit("hihat_pedal", openness=0.5)),
        event(5.0, hit("hihat_open")),
    ]
    figures = measure_openness(frame(rows))
    assert (figures.n_closed, figures.n_open, figures.n_unknown, figures.n_conflicts) == (2, 3, 1, 2)
    assert (figures.n_out_of_range, figures.n_not_on_hats, figures.open_median) == (1, 1, 0.75)
