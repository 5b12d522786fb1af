"""Bad input of `beatsight events`: every verb says what is wrong, where, and how it ends, and leaves everything as it was (issue 4)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets import cli
from beatsight_assets.events import read_events, to_jsonl
from beatsight_assets_tests.manifest.factory import event, frame, hit

GOOD = event(1.0, hit("crash", 0.5), hit("kick", 0.5), audio_path="a.wav")
# Every verb that takes a manifest; {} is the input, {out} what it writes.
VERBS = {
    "alias": "alias {} --output {out}",
    "annotate": "annotate {} --output {out}",
    "openness": "openness {} --output {out}",
    "merge": "merge --input {} --output {out}",
    "compare": "compare {} {} --json-output {out}",
    "metrics": "metrics {} --output {out}",
    "hihat": "hihat {} --output {out}",
    "export": "export {} --format csv --output {out}",
    "validate": "validate {}",
    "crash-embed": "crash-embed {} --output {out}",
    "crash-assign": "crash-assign {} --output {out}",
    "near-duplicates": "near-duplicates {} --output {out}",
    "import": "import {} --source-set own --output {out}",
}
WRITERS = ("alias", "annotate", "openness", "merge", "import")  # of a manifest: the output may be the input


def line(**changes: object) -> bytes:
    """One JSONL row with some fields changed; None takes a field away."""
    row = json.loads(to_jsonl(frame([GOOD]))) | changes
    return json.dumps({k: v for k, v in row.items() if v is not None}).encode() + b"\n"


def parquet(**columns: pl.Expr | None) -> bytes:
    """The good row as Parquet with some columns changed; None takes a column away."""
    import io

    table = frame([GOOD]).with_columns(**{k: v for k, v in columns.items() if v is not None})
    file = io.BytesIO()
    table.drop([k for k, v in columns.items() if v is None]).write_parquet(file)
    return file.getvalue()


GOOD_LINE = line()
# name -> (suffix, bytes, exit code, code, what the message holds); read by every verb in the same way
UNREADABLE: dict[str, tuple[str, bytes, int, str, str]] = {
    "empty file": ("jsonl", b"", 1, "nothing-to-do", "no event"),
    "zero rows": ("parquet", b"", 1, "nothing-to-do", "no event"),
    "only blank lines": ("jsonl", b"\n\n", 1, "nothing-to-do", "no event"),
    "NaN onset": ("jsonl", GOOD_LINE + line(onset_time=float("nan")), 3, "bad-time", "in.jsonl:2"),
    "NaN onset in Parquet": ("parquet", parquet(onset_time=pl.lit(float("nan"))), 3, "bad-time", "row 1"),
    "infinite tempo": ("jsonl", line(tempo_bpm=float("inf")), 3, "bad-manifest", "Infinity"),
    "onset of a day": ("jsonl", line(onset_time=86_400), 3, "bad-time", "86,400 s"),
    "negative onset": ("jsonl", line(onset_time=-0.5), 3, "bad-time", "-0.5"),
    "no session": ("jsonl", GOOD_LINE + line(session_id=None), 3, "bad-manifest", "in.jsonl:2"),
    "no id": ("jsonl", line(event_id=None), 3, "bad-manifest", "event_id"),
    "no onset": ("jsonl", line(onset_time=None), 3, "bad-time", "onset_time"),
    "a column is absent": ("parquet", parquet(meter=None), 3, "bad-manifest", "meter"),
    "onset as text": ("jsonl", line(onset_time="1.0"), 3, "bad-time", "'1.0'"),
    "velocity as text": ("jsonl", line(components=[{"label": "kick", "velocity": "loud"}]), 3, "bad-manifest", ""),
    "label as number": ("jsonl", line(components=[{"label": 3}]), 3, "bad-manifest", "label"),
    "components as text": ("jsonl", line(components="kick"), 3, "bad-manifest", "components"),
    "techniques as number": ("jsonl", line(techniques=3), 3, "bad-manifest", ""),
    "context as text": ("jsonl", line(context_ms={"pre": "long", "post": 1}), 3, "bad-manifest", ""),
    "a column of another type": ("parquet", parquet(onset_time=pl.lit("1.0")), 3, "bad-manifest", "onset_time"),
    "a list": ("jsonl", b"[1, 2]\n", 3, "bad-manifest", "object"),
    "no JSON": ("jsonl", GOOD_LINE + b"{\n", 3, "bad-manifest", "in.jsonl:2"),
    "torn last line": ("jsonl", GOOD_LINE + GOOD_LINE[:40], 3, "bad-manifest", "in.jsonl:2"),
    "huge line": ("jsonl", GOOD_LINE + line(drummer_id="x" * 1_000_001), 3, "bad-manifest", "in.jsonl:2"),
    "no UTF-8": ("jsonl", GOOD_LINE.replace(b"kick", b"ki\xff"), 3, "bad-manifest", ""),
    "path outside": ("jsonl", line(audio_path="../../x.wav"), 3, "path-escape", "audio_path"),
    "no Parquet": ("parquet", b"PAR1 but no more", 3, "bad-manifest", ""),
    "a folder": ("parquet", b"", 3, "missing-input", ""),
}  # fmt: skip
PAIRS = [(v, n) for v in VERBS for n, (suffix, *_) in UNREADABLE.items() if v != "import" or suffix != "parquet"]  # import reads no Parquet


@pytest.fixture
def ran(data_root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """Runs `beatsight events ...`; (exit code, everything it said)."""

    def run(words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--profile", "demo", "--data-root", str(data_root), "events", *words.split()])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


@pytest.mark.parametrize(("verb", "name"), PAIRS)
def test_bad_manifests(tmp_path: Path, data_root: Path, ran: Callable[[str], tuple[int, str]], verb: str, name: str) -> None:
    """Exit 3 for what cannot be read, 1 for nothing to do; code, place and value in one message, no traceback, no file, input untouched."""
    suffix, content, due, code, words = UNREADABLE[name]
    source = tmp_path / f"in.{suffix}"
    if name == "a folder":
        source.mkdir()
    elif name == "zero rows":
        frame([]).write_parquet(source)
    else:
        source.write_bytes(content)
    ended, said = ran(VERBS[verb].replace("{out}", str(tmp_path / "out.jsonl")).replace("{}", str(source)))
    assert ended == due, said
    assert code in said and words in said and "Traceback" not in said
    assert not (tmp_path / "out.jsonl").exists() and not list(data_root.rglob("*.parquet"))
    assert source.is_dir() or name == "zero rows" or source.read_bytes() == content


@pytest.mark.parametrize("verb", VERBS)
def test_a_manifest_that_is_not_there(tmp_path: Path, ran: Callable[[str], tuple[int, str]], verb: str) -> None:
    """Exit 3 and the name of the file, before anything is written."""
    ended, said = ran(VERBS[verb].replace("{out}", str(tmp_path / "out.jsonl")).replace("{}", str(tmp_path / "none.jsonl")))
    assert ended == 3 and "missing-input" in said and "none.jsonl" in said and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("verb", [v for v in VERBS if v != "validate"])
def test_the_output_may_be_the_input_only_where_it_is_a_manifest_again(
    tmp_path: Path, ran: Callable[[str], tuple[int, str]], verb: str
) -> None:
    """Writers of manifests replace their input whole and lose no row; a report onto its manifest is refused, which keeps its bytes."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(to_jsonl(frame([GOOD | {"source_set": "own"}])))
    before = source.read_bytes()
    ended, said = ran(VERBS[verb].replace("{out}", str(source)).replace("{}", str(source)))
    if verb in WRITERS:
        assert ended == 0 and read_events(source)["event_id"].to_list() == [GOOD["event_id"]], said
    else:
        assert ended == 2 and "would-overwrite" in said and source.read_bytes() == before, said


CONTENT = {
    "duplicate id": ([GOOD, GOOD], "validate {}", 1, "event_ids_unique"),
    "one id, two contents": ([GOOD, event(1.0, "snare")], "merge --input {} --output {out}", 1, "id-conflict"),
    "unknown label": ([event(1.0, "gong")], "validate {}", 1, "unknown label gong"),
    "unknown label, none allowed": ([event(1.0, "gong")], "alias {} --output {out} --max-unknown 0", 1, "unknown gong"),
    "unknown technique": ([event(1.0, "kick", techniques=["stick_twirl"])], "annotate {} --output {out}", 3, "unknown-technique"),
    "velocity above 1": ([event(1.0, hit("kick", 1.5))], "validate {}", 1, "velocity_range"),
    "NaN velocity": ([event(1.0, hit("kick", float("nan"), dynamic_bucket="unknown"))], "validate {}", 1, "velocity_range"),
    "path outside": ([event(1.0, "kick", audio_path="../x.wav")], "validate {}", 1, "plain_audio_path"),
    "hostile label": ([event(1.0, "ki\tck")], "export {} --format csv --output {out}", 3, "bad-label"),
    "no crash": ([event(1.0, "kick")], "crash-assign {} --output {out}", 1, "nothing-to-do"),
    "no audio named": ([event(1.0, "kick")], "near-duplicates {} --output {out}", 1, "nothing-to-do"),
}


@pytest.mark.parametrize("name", CONTENT)
def test_bad_content(tmp_path: Path, ran: Callable[[str], tuple[int, str]], name: str) -> None:
    """What is readable and wrong is named with its rule and ends with the exit code of the table; no output holds it unnoticed."""
    rows, words, due, told = CONTENT[name]
    source = tmp_path / "in.parquet"
    frame(rows).write_parquet(source)
    ended, said = ran(words.replace("{out}", str(tmp_path / "out.jsonl")).replace("{}", str(source)))
    assert ended == due and told in said and "Traceback" not in said, said
    assert (tmp_path / "out.jsonl").exists() == words.startswith("alias")
