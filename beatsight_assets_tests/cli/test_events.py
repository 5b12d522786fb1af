"""`beatsight events` on files the user names: what is counted, what is written, how it ends (T1, T21, T23, T24, T25, T49, T74, T79, T131)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beatsight_assets import cli
from beatsight_assets.events import read_events, to_jsonl
from beatsight_assets_tests.manifest.factory import event, frame, hit

Ran = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ran(data_root: Path, capsys: pytest.CaptureFixture[str]) -> Ran:
    """Runs `beatsight events ...` with --json; (exit code, the JSON object or {"error": stderr})."""

    def run(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--profile", "demo", "--data-root", str(data_root), "events", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out) if out else {"error": err}

    return run


def manifest(path: Path, *rows: dict[str, Any]) -> Path:
    """Rows as a file of the form that its suffix says."""
    if path.suffix == ".jsonl":
        path.write_bytes(to_jsonl(frame(rows)))
    else:
        frame(rows).write_parquet(path)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_alias_counts_are_true(tmp_path: Path, ran: Ran, suffix: str) -> None:
    """Three `crash_1` rows are three; doubles merge and the louder stays; unknown labels stay; a second run on its output changes 0."""
    source = manifest(
        tmp_path / f"in.{suffix}",
        *(event(float(i), hit("crash_1", 0.5)) for i in range(2)),
        event(2.0, hit("crash_1", 0.25), hit("crash", 0.5)),
        event(3.0, "gong"),
    )
    target = tmp_path / f"out.{suffix}"
    code, found = ran("alias", source, "--output", target)
    assert code == 0 and found["relabelled"] == {"crash_1": {"crash": 3}}
    assert (found["merged_duplicates"], found["unknown"], found["output"]["rows"]) == (1, {"gong": 1}, 4)
    assert read_events(target)["components"].to_list()[2] == [hit("crash", 0.5)]
    code, found = ran("alias", target, "--output", target, "--max-unknown", "0")
    assert code == 1 and found["relabelled"] == {} and found["merged_duplicates"] == 0
    assert ran("alias", target, "--output", target, "--max-unknown", "1")[0] == 0


def test_annotate_in_place_upgrades_rows_of_older_tools(tmp_path: Path, ran: Ran) -> None:
    """A six-note file with one bark tags 2 events, in place, with old rows brought into shape; a dry run and a second run change no byte."""
    path = tmp_path / "old.jsonl"
    labels = ["kick", "hihat_open", "hihat_closed", "snare", "kick", "snare"]
    rows = [
        {"sample_id": str(i), "session_id": "s", "onset_time": i * 0.15, "components": [{"label": x, "velocity": 0.6}], "room_id": "r"}
        for i, x in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    before = path.read_bytes()
    code, found = ran("annotate", path, "--dry-run")
    assert (code, found["dry_run"], path.read_bytes()) == (0, True, before)
    code, found = ran("annotate", path, "--in-place")
    assert code == 0 and found["techniques"]["hihat_bark"] == {"events": 2, "sessions": 1}
    after = read_events(path)
    assert after["techniques"].to_list() == [[], ["hihat_bark"], ["hihat_bark"], [], [], []]
    assert after["event_id"].to_list() == list("012345") and json.loads(after["extras"][0]) == {"room_id": "r"}
    once = path.read_bytes()
    assert ran("annotate", path, "--in-place")[0] == 0 and path.read_bytes() == once


def test_annotate_recompute_takes_inferred_tags_off(tmp_path: Path, ran: Ran) -> None:
    """Existing tags stay; with --recompute only those that the platform infers go; the input stays as it is."""
    source = manifest(tmp_path / "a.parquet", event(0.0, "kick", techniques=["cymbal_choke", "flam"]))
    ran("annotate", source, "--output", tmp_path / "b.parquet")
    ran("annotate", source, "--output", tmp_path / "c.parquet", "--recompute")
    assert [read_events(tmp_path / f"{x}.parquet")["techniques"][0].to_list() for x in "abc"] == [
        ["cymbal_choke", "flam"],
        ["cymbal_choke", "flam"],
        ["cymbal_choke"],
    ]


def test_a_tag_outside_the_catalogue_is_refused(tmp_path: Path, ran: Ran) -> None:
    """`--techniques-file` says what a technique is; without the file it is exit 2, and nothing is written."""
    source = manifest(tmp_path / "a.parquet", event(0.0, "kick", techniques=["stick_twirl"]))
    (tmp_path / "t.txt").write_text("Stick Twirl\n")
    out = tmp_path / "b.parquet"
    assert ran("annotate", source, "--output", out)[0] == 3
    assert ran("annotate", source, "--output", out, "--techniques-file", tmp_path / "none.yaml")[0] == 2
    assert not out.exists()
    assert ran("annotate", source, "--output", out, "--techniques-file", tmp_path / "t.txt")[0] == 0
    assert ran("validate", source)[1]["unknown_techniques"] == {"stick_twirl": 1}
    assert ran("validate", source, "--techniques", tmp_path / "t.txt")[0] == 0
    assert ran("validate", source, "--techniques", tmp_path / "none.yaml")[0] == 2


def test_merging_files(tmp_path: Path, ran: Ran) -> None:
    """The union sorted by set, session and onset; order of inputs does not change the digest; merge(a, a) = a; the output may be an input."""
    a = manifest(tmp_path / "a.parquet", event(1.0, "kick"), event(2.0, "snare"))
    b = manifest(tmp_path / "b.jsonl", event(0.0, "kick", session="z.mid"), event(2.0, "snare"))
    code, found = ran("merge", "--input", a, "--input", b, "--output", tmp_path / "c.parquet")
    assert code == 0 and (found["rows"], found["collapsed"], [i["rows"] for i in found["inputs"]]) == (3, 1, [2, 2])
    assert ran("merge", "--input", b, "--input", a, "--output", tmp_path / "d.parquet")[1]["output"]["sha256"] == found["output"]["sha256"]
    alone = ran("merge", "--input", a, "--output", tmp_path / "e.parquet")[1]["output"]["sha256"]
    assert ran("merge", "--input", a, "--input", a, "--output", tmp_path / "e.parquet")[1]["output"]["sha256"] == alone
    assert ran("merge", "--input", a, "--input", b, "--output", a)[0] == 0
    assert read_events(a).equals(read_events(tmp_path / "c.parquet"))
    assert read_events(a)["session_id"].to_list() == ["a.mid", "a.mid", "z.mid"]


def test_conflicts_are_listed_and_nothing_is_published(tmp_path: Path, ran: Ran) -> None:
    """One id with unequal content: exit 1, named in the report, the target keeps its bytes. --validate stops broken rows the same way."""
    a = manifest(tmp_path / "a.parquet", event(1.0, "kick"))
    b = manifest(tmp_path / "b.parquet", event(1.0, "snare"))
    before = a.read_bytes()
    code, found = ran("merge", "--input", a, "--input", b, "--output", a)
    assert code == 1 and len(found["conflicts"]) == 1 and found["conflicts"][0]["onset_time"] == 1.0 and a.read_bytes() == before
    broken = manifest(tmp_path / "broken.parquet", event(1.0, hit("kick", openness=0.5)))
    assert ran("merge", "--input", broken, "--output", a, "--validate")[0] == 1 and a.read_bytes() == before
    assert ran("merge", "--input", broken, "--output", a)[0] == 0


ON_FILES = {
    "alias": ["alias", "{}", "--output", "{out}"],
    "annotate": ["annotate", "{}", "--output", "{out}"],
    "openness": ["openness", "{}", "--output", "{out}"],
    "merge": ["merge", "--input", "{}", "--output", "{out}"],
    "compare": ["compare", "{}", "{}", "--json-output", "{out}"],
    "metrics": ["metrics", "{}", "--output", "{out}"],
    "hihat": ["hihat", "{}", "--output", "{out}"],
    "export": ["export", "{}", "--format", "jsonl", "--output", "{out}"],
    "validate": ["validate", "{}"],
}


@pytest.mark.parametrize("verb", ON_FILES)
def test_missing_is_3_and_empty_is_1_before_anything_is_written(tmp_path: Path, data_root: Path, ran: Ran, verb: str) -> None:
    """A missing input is exit 3, zero rows are exit 1; neither leaves a file."""
    empty = manifest(tmp_path / "empty.jsonl")
    for source, due in ((tmp_path / "none.jsonl", 3), (empty, 1)):
        out = tmp_path / "out.parquet"
        code, found = ran(*(x.replace("{out}", str(out)).replace("{}", str(source)) for x in ON_FILES[verb]))
        assert code == due, found
        assert not out.exists() and not any(data_root.rglob("*.parquet"))


def test_outputs_in_the_data_root_are_refused(tmp_path: Path, data_root: Path, ran: Ran) -> None:
    """A command cannot replace what a stage wrote: exit 2."""
    a = manifest(tmp_path / "a.parquet", event(1.0, "kick"))
    assert "would-overwrite" in ran("alias", a, "--output", data_root / "manifest/annotated.parquet")[1]["error"]
    assert ran("alias", a, "--output", tmp_path / "b.csv")[0] == 2
    assert ran("annotate", a)[0] == 2 and ran("merge", "--input", a)[0] == 2 and ran("openness", a)[0] == 2


def test_validate_names_row_field_rule_and_value(tmp_path: Path, ran: Ran) -> None:
    """The first 20 problems in row order, each with row, field, rule and value; exit 1."""
    rows = [event(float(i), hit("kick", openness=0.5), source="mdb_drums") for i in range(30)]
    rows[2]["onset_time"] = 90_000.0
    code, found = ran("validate", manifest(tmp_path / "a.parquet", *rows))
    assert code == 1 and len(found["problems"]) == 20
    assert found["problems"][2] == {
        "rule": "onset_range", "event_id": rows[2]["event_id"], "row": 3, "field": "onset_time", "value": "90000.0"
    }  # fmt: skip
    assert found["problems"][0]["field"] == "components[0].openness" and found["problems"][0]["value"] == "0.5"
    assert found["broken"] == {"onset_range": 1, "openness_on_hats": 30, "event_id_recomputes": 1}


def test_validate_recomputes_ids_of_platform_sources(tmp_path: Path, ran: Ran) -> None:
    """An id of a dataset that the platform reads is that of its session and onset; other sources may have their own."""
    wrong = event(1.0, "kick", source="mdb_drums") | {"event_id": "mine"}
    other = event(1.0, "kick", source="elsewhere") | {"event_id": "yours"}
    code, found = ran("validate", manifest(tmp_path / "a.parquet", wrong, other))
    assert code == 1 and found["broken"] == {"event_id_recomputes": 1}
    assert [(p["row"], p["value"]) for p in found["problems"]] == [(1, '"mine"')]
    assert ran("validate", manifest(tmp_path / "b.parquet", other))[0] == 0


def test_compare_fails_on_a_drop_only_when_asked(tmp_path: Path, ran: Ran) -> None:
    """Exit 0 whatever changed, unless a component lost more than --fail-on-drop; the JSON file holds the same comparison."""
    a = manifest(tmp_path / "a.parquet", *(event(float(i), "kick") for i in range(5)))
    b = manifest(tmp_path / "b.parquet", *(event(float(i), "kick") for i in range(3)))
    code, found = ran("compare", a, b, "--json-output", tmp_path / "diff.json")
    assert code == 0 and found["delta"]["components"] == {"kick": {"baseline": 5, "candidate": 3, "delta": -2}}
    assert json.loads((tmp_path / "diff.json").read_text())["delta"] == found["delta"]
    assert ran("compare", a, b, "--fail-on-drop", "2")[0] == 0 and ran("compare", a, b, "--fail-on-drop", "1")[0] == 1


def test_metrics_and_hihat_reports(tmp_path: Path, data_root: Path, ran: Ran) -> None:
    """The snapshot lies in reports/metrics under the manifest's name; several manifests give several hi-hat reports."""
    a = manifest(tmp_path / "a.parquet", event(1.0, "hihat_open"), event(1.2, "hihat_closed"))
    code, found = ran("metrics", a)
    assert code == 0 and json.loads((data_root / "reports/metrics/a_snapshot.json").read_text()) == found
    assert ran("hihat", a)[1]["bark_candidates"] == 1
    assert [m["bark_candidates"] for m in ran("hihat", a, a, "--window", "0.1")[1]["manifests"]] == [0, 0]


def test_openness_by_a_curve(tmp_path: Path, ran: Ran) -> None:
    """A dry run counts and writes nothing; the real one writes; a curve without direction is exit 2."""
    source = manifest(tmp_path / "a.parquet", event(0.0, hit("hihat_open", openness_raw=45)))
    out = tmp_path / "b.parquet"
    code, found = ran("openness", source, "--device", "Roland/TD-11", "--dry-run")
    assert (code, found["changed"], out.exists()) == (0, 1, False)
    assert ran("openness", source, "--device", "Roland/TD-11", "--output", out)[0] == 0
    assert read_events(out)["components"][0][0]["openness"] == 0.5
    assert ran("openness", out, "--device", "Roland/TD-11", "--dry-run")[1]["changed"] == 0
    (tmp_path / "c.json").write_text('{"vendors": {"V": {"M": {"breakpoints": []}}}}')
    assert ran("openness", source, "--curves", tmp_path / "c.json", "--output", out)[0] == 2
    assert isinstance(read_events(out), pl.DataFrame)


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet", "txt", "svl"])
def test_export_and_import_are_inverse(tmp_path: Path, ran: Ran, form: str) -> None:
    """Every form by its suffix, there and back: equal ids, onsets and labels; the same bytes on a second export."""
    rows = [event(i * 0.3125, hit("kick", 0.5), hit("ride_bow", 0.25), session="s.wav", source="own") for i in range(20)]
    source = manifest(tmp_path / "a.parquet", *rows)
    for name in ("one", "two"):
        code, found = ran(
            "export",
            source,
            "--output",
            tmp_path / f"{name}.{form}",
            "--sample-rate",
            48_000,
            *(["--format", "audacity"] if form == "txt" else []),
        )
        assert code == 0 and found["events"] == 20, found
    ours = [(tmp_path / n).read_bytes() if (tmp_path / n).is_file() else None for n in (f"one.{form}", f"two.{form}")]
    assert ours[0] == ours[1]
    named = ["--session", "s.wav"] if form in ("txt", "svl") else []
    code, found = ran("import", tmp_path / f"one.{form}", "--source-set", "own", *named, "--output", tmp_path / "back.parquet")
    assert code == 0 and (found["events"], found["refused"], found["broken"]) == (20, [], {}), found
    back = read_events(tmp_path / "back.parquet")
    assert back["event_id"].to_list() == [r["event_id"] for r in rows]
    assert back["onset_time"].to_list() == [r["onset_time"] for r in rows]
    assert [[c["label"] for c in cs] for cs in back["components"].to_list()] == [["kick", "ride_bow"]] * 20


def test_import_of_a_plain_parquet(tmp_path: Path, ran: Ran) -> None:
    """A table of another tool has the names of JSONL as columns and need not have all; a row that is no event is named by its place."""
    table = pl.DataFrame(
        {
            "sample_id": ["0", "1"],
            "session_id": ["s.wav", "s.wav"],
            "onset_time": [0.5, 1.0],
            "components": [[{"label": "kick", "velocity": 0.5}], [{"label": "snare", "velocity": None}]],
            "room": ["r1", None],
            "extras": ['{"take": 3}', None],
        }
    )
    table.write_parquet(tmp_path / "plain.parquet")
    code, found = ran("import", tmp_path / "plain.parquet", "--source-set", "own", "--output", tmp_path / "back.jsonl")
    assert code == 0 and found["events"] == 2, found
    back = read_events(tmp_path / "back.jsonl")
    assert back["event_id"].to_list() == ["0", "1"] and back["source_set"].to_list() == ["own", "own"]
    assert [json.loads(text) for text in back["extras"]] == [{"room": "r1", "take": 3}, {}]
    assert [c[0]["dynamic_bucket"] for c in back["components"].to_list()] == ["light", "unknown"]
    for wrong, code in (
        (table.with_columns(onset_time=pl.Series([0.5, -1.0])), "bad-time"),
        (table.with_columns(room=pl.Series([b"x", None])), "bad-manifest"),
        (table.with_columns(extras=pl.Series(["{}", "{"])), "bad-metadata"),
        (table.drop("session_id"), "bad-manifest"),
    ):
        wrong.write_parquet(tmp_path / "wrong.parquet")
        ended, said = ran("import", tmp_path / "wrong.parquet", "--source-set", "own", "--output", tmp_path / "no.jsonl")
        assert ended == 3 and code in said["error"] and not (tmp_path / "no.jsonl").exists(), (code, said)
    (tmp_path / "wrong.parquet").write_bytes(b"PAR1 not quite")
    assert ran("import", tmp_path / "wrong.parquet", "--source-set", "own", "--output", tmp_path / "no.jsonl")[0] == 3


def test_export_narrows_by_column_value_and_number(tmp_path: Path, ran: Ran) -> None:
    """--where, --limit and --columns; a name that no column has is exit 2, no such event exit 1, two sessions in one track exit 3."""
    source = manifest(tmp_path / "a.jsonl", *(event(float(i), "kick", session=s) for s in ("a.mid", "b.mid") for i in range(4)))
    out = tmp_path / "out.csv"
    assert ran("export", source, "--output", out, "--where", "session_id=b.mid", "--limit", "3", "--columns", "onset_time,label")[0] == 0
    assert out.read_text() == "onset_time,label\n0.0,kick\n1.0,kick\n2.0,kick\n"
    assert ran("export", source, "--output", out, "--where", "session_id=b.mid", "--where", "is_synthetic=true")[0] == 1
    for wrong in (["--where", "colour=red"], ["--where", "red"], ["--columns", "colour"], ["--format", "xls"]):
        assert ran("export", source, "--output", out, *wrong)[0] == 2, wrong
    assert ran("export", source, "--format", "audacity", "--output", tmp_path / "a.txt")[0] == 3 and not (tmp_path / "a.txt").exists()


def test_import_sets_bad_rows_aside(tmp_path: Path, data_root: Path, ran: Ran) -> None:
    """The good rows are the events, the bad one a quarantine row that `quarantine list` shows; exit 1. A dataset's table is not replaced."""
    (tmp_path / "a.csv").write_text("session_id,onset_time,label\ns,0.5,kick\ns,soon,kick\ns,1.5,gong\n")
    code, found = ran("import", tmp_path / "a.csv", "--source-set", "own")
    assert code == 1 and (found["events"], found["unknown_labels"], len(found["refused"])) == (2, {"gong": 1}, 1)
    assert read_events(data_root / "events/own.parquet")["onset_time"].to_list() == [0.5, 1.5]
    assert pl.read_parquet(data_root / "quarantine/own.parquet")["message"].to_list() == [
        "line 3: onset_time 'soon' is no number within 0 .. 86,400 s"
    ]
    assert "would-overwrite" in ran("import", tmp_path / "a.csv", "--source-set", "mdb_drums")[1]["error"]
    assert ran("import", tmp_path / "a.csv", "--source-set", "own", "--audio", tmp_path / "a.csv")[0] == 2
    (tmp_path / "b.csv").write_text("session_id,onset_time,label\ns,soon,kick\n")
    assert ran("import", tmp_path / "b.csv", "--source-set", "other")[0] == 1 and not (data_root / "events/other.parquet").exists()


def test_imported_labels_are_grouped_by_their_audio(tmp_path: Path, ran: Ran) -> None:
    """Labels made in an editor belong to the recording by its content: a copy of it under another name is the same group."""
    (tmp_path / "a.txt").write_text("0.5\t0.6\tSnare Drum\n1.000001\t1.000001\tbd\n")
    for name in ("one.wav", "two.wav"):
        (tmp_path / name).write_bytes(b"sound")
        assert (
            ran("import", tmp_path / "a.txt", "--source-set", "own", "--audio", tmp_path / name, "--output", tmp_path / f"{name}.jsonl")[0]
            == 0
        )
    one, two = (read_events(tmp_path / f"{name}.jsonl") for name in ("one.wav", "two.wav"))
    assert one["group_id"].to_list() == two["group_id"].to_list() and one["group_id"][0].startswith("audio:")
    assert one["session_id"].to_list() == ["one.wav"] * 2 and one["onset_time"].to_list() == [0.5, 1.000001]
    assert [c[0]["label"] for c in one["components"].to_list()] == ["snare", "kick"]


def test_split_of_a_named_manifest_and_its_check(tmp_path: Path, ran: Ran) -> None:
    """T129: the groups of any manifest into --output; --check judges a table that lies there, writes nothing, and names what does not hold."""
    rows = [event(0.1 * i, "kick", session=f"{i}.mid", group_id=f"g{i}", split_hint=("test" if i == 3 else None)) for i in range(40)]
    source, table = manifest(tmp_path / "in.parquet", *rows), tmp_path / "splits.parquet"
    code, found = ran("split", source, "--output", table)
    assert code == 0 and found["gate"] == "splits"
    made = dict(pl.read_parquet(table).select("group_id", "split").iter_rows())
    assert made["g3"] == "test" and set(made) == {f"g{i}" for i in range(40)}
    before = table.read_bytes()
    code, found = ran("split", source, "--check", "--splits", table)
    assert code == 0 and found["status"] == "pass" and table.read_bytes() == before
    pl.read_parquet(table).with_columns(split=pl.when(pl.col("group_id") == "g3").then(pl.lit("train")).otherwise("split")).head(
        39
    ).write_parquet(table)
    code, found = ran("split", source, "--check", "--splits", table)
    failed = {
        r["name"]: r["value"] for r in found["rules"] if not r["passed"] and not r["name"].startswith(("split_share", "class_present"))
    }
    assert code == 1 and failed == {"official_split_respected": 1.0, "unassigned_events": 1.0}
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    assert ran("split", source, "--check", "--splits", tmp_path / "no.parquet")[0] == 3
    assert "beatsight events split" in ran("split", source, "--check")[1]["error"]
    for wrong in (["--output", table, "--check"], [], ["--output", source], ["--splits", table]):
        assert ran("split", source, *wrong)[0] == 2
    assert ran("split", "--output", table)[0] == 2
