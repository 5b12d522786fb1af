"""`beatsight sampling`: every option reaches the weights, and how wrong input ends (T4)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beatsight_assets import cli
from beatsight_assets_tests.manifest.factory import event, frame

Ran = Callable[..., tuple[int, Any]]


@pytest.fixture
def ran(data_root: Path, capsys: pytest.CaptureFixture[str]) -> Ran:
    """Runs `beatsight sampling ...` with --json; (exit code, the JSON object or stderr)."""

    def run(*arguments: str | Path) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--profile", "demo", "--data-root", str(data_root), "sampling", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out) if out else err

    return run


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Session a: 100 kicks, one of them twice, the first with crash_dual_label; session b: 16 kicks of drummer d, one a flam."""
    rows = [event(i / 10, "kick", session="a", techniques=["crash_dual_label"] if i == 0 else []) for i in range(100)]
    rows += [{**rows[5], "event_id": "twin"}]
    rows += [event(i / 10, "kick", session="b", drummer_id="d", techniques=["flam"] if i == 3 else []) for i in range(16)]
    frame(rows).write_parquet(tmp_path / "m.parquet")
    return tmp_path / "m.parquet"


CASES: dict[str, tuple[list[str], dict[str, tuple[int, float]]]] = {
    "the default profile": ([], {"a": (100, 0.115), "b": (16, 0.25)}),
    "a profile under its seed's name": (["--profile", "flat"], {"a": (101, 1.0), "b": (16, 1.0)}),
    "a profile by --profile-name": (["--profile-name", "slakh"], {"a": (100, 0.1), "b": (16, 0.2)}),
    "no dedupe": (["--dedupe-fields", ""], {"a": (101, 1.15 * 101**-0.5), "b": (16, 0.25)}),
    "dedupe by id only": (["--dedupe-fields", "event_id"], {"a": (101, 1.15 * 101**-0.5), "b": (16, 0.25)}),
    "exponent": (["--exponent", "1", "--min-weight", "0.001"], {"a": (100, 0.0115), "b": (16, 0.0625)}),
    "smoothing": (["--smoothing", "9"], {"a": (100, 1.15 * 109**-0.5), "b": (16, 0.2)}),
    "cap": (["--max-per-group", "4"], {"a": (4, 0.5), "b": (4, 0.5)}),
    "min count": (["--min-count", "17"], {"a": (100, 0.115)}),
    "boost adds to the profile": (["--boost", "flam=1.2"], {"a": (100, 0.115), "b": (16, 0.3)}),
    "boost takes the place of the profile's": (["--boost", "crash_dual_label=1"], {"a": (100, 0.1), "b": (16, 0.25)}),
    "attenuation": (["--attenuate", "flam=0.5"], {"a": (100, 0.115), "b": (16, 0.125)}),
    "bounds": (["--min-weight", "0.2", "--max-weight", "0.22"], {"a": (100, 0.2), "b": (16, 0.22)}),
    "an option equal to a default still wins": (["--profile-name", "slakh", "--max-weight", "1"], {"a": (100, 0.1), "b": (16, 0.25)}),
    "groups by another field": (["--group-field", "drummer_id"], {"a": (100, 0.115), "d": (16, 0.25)}),
    "filter": (["--technique-filter", "flam,roll"], {"b": (1, 0.5)}),
    "filter, all": (["--technique-filter", "flam", "--technique-filter", "roll", "--match-all", "--include-unmatched"], {"a": (100, 0.115), "b": (16, 0.25)}),
    "filter, the rest stays": (["--technique-filter", "flam", "--include-unmatched"], {"a": (100, 0.115), "b": (1, 0.5)}),
}  # fmt: skip


@pytest.mark.parametrize(("options", "expected"), CASES.values(), ids=CASES)
def test_every_option_reaches_the_weights(options: list[str], expected: dict[str, tuple[int, float]], ran: Ran, events: Path) -> None:
    """Counts and weights of hand-counted groups under each option."""
    target = events.parent / "w.json"
    code, found = ran("derive", events, "--output", target, *options)
    assert code == 0, found
    written = json.loads(target.read_text())
    assert {g: (w["count"], pytest.approx(w["weight"])) for g, w in written["groups"].items()} == expected
    assert written["totals"]["counted_events"] == sum(n for n, _ in expected.values())
    assert ran("derive", events, "--output", events.parent / "again.json", *options)[0] == 0
    assert (events.parent / "again.json").read_bytes() == target.read_bytes()


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "boost below one": (["--boost", "roll=0.9"], 2, "boost-below-one"),
    "boost that is no number": (["--boost", "roll=nan"], 2, "boost-below-one"),
    "boost without a factor": (["--boost", "roll"], 2, "bad-option"),
    "attenuation above one": (["--attenuate", "roll=1.1"], 2, "attenuation-above-one"),
    "unknown profile": (["--profile", "prod_combned"], 2, "Did you mean prod_combined"),
    "unknown field": (["--group-field", "sessoin_id"], 2, "unknown-choice"),
    "unknown dedupe field": (["--dedupe-fields", "onset"], 2, "unknown-choice"),
    "negative exponent": (["--exponent=-1"], 2, "exponent"),
    "endless exponent": (["--exponent", "inf"], 2, "exponent"),
    "smoothing that is no number": (["--smoothing", "nan"], 2, "smoothing"),
    "a cap of nothing": (["--max-per-group", "0"], 2, "max_per_group"),
    "swapped bounds": (["--min-weight", "1", "--max-weight", "0.5"], 2, "min_weight"),
    "a filter that keeps nothing": (["--technique-filter", "polka"], 1, "nothing-to-judge"),
}


@pytest.mark.parametrize(("options", "code", "word"), REFUSED.values(), ids=REFUSED)
def test_wrong_options_write_nothing(options: list[str], code: int, word: str, ran: Ran, events: Path) -> None:
    """The exit code and the word that says why; no file appears."""
    ended, said = ran("derive", events, "--output", events.parent / "w.json", *options)
    assert (ended, word in said) == (code, True), said
    assert not (events.parent / "w.json").exists()


def test_empty_absent_and_broken_manifests(ran: Ran, events: Path) -> None:
    """No rows exit 1, no file and a damaged file exit 3, the manifest as its own output exits 2 and stays as it was."""
    empty, broken = events.parent / "empty.parquet", events.parent / "broken.parquet"
    frame([]).write_parquet(empty)
    broken.write_bytes(events.read_bytes()[:2_000])
    assert ran("derive", empty)[0] == 1
    assert ran("derive", events.parent / "absent.parquet")[0] == 3
    assert ran("derive", broken)[0] == 3
    before = events.read_bytes()
    assert ran("derive", events, "--output", events)[0] == 2
    assert events.read_bytes() == before
    jsonl = events.parent / "m.jsonl"
    jsonl.write_text('{"event_id":"x","session_id":"s","onset_time":NaN,"components":[]}\n')
    assert "m.jsonl:1" in ran("derive", jsonl)[1]


def test_show_says_what_the_file_holds(ran: Ran, events: Path, data_root: Path) -> None:
    """`sampling show` prints the document; without a name that of the manifest; another file exits 3."""
    code, found = ran("derive", events)
    target = data_root / "reports" / "sampling" / "m_weights.json"
    assert (code, found["output"]) == (0, str(target))
    assert ran("show", target)[1] == json.loads(target.read_text())
    target.write_text('{"groups": {}}')
    assert ran("show", target)[0] == 3
    assert ran("show", data_root / "none.json")[0] == 3


def test_parquet_and_jsonl_give_equal_weights(ran: Ran, events: Path) -> None:
    """Both forms of one manifest have the same groups and weights."""
    from beatsight_assets.events import to_jsonl

    other = events.with_suffix(".jsonl")
    other.write_bytes(to_jsonl(pl.read_parquet(events)))
    for path in (events, other):
        assert ran("derive", path, "--output", events.parent / f"{path.suffix[1:]}.json")[0] == 0
    found = [json.loads((events.parent / f"{form}.json").read_text())["groups"] for form in ("parquet", "jsonl")]
    assert found[0] == found[1]
