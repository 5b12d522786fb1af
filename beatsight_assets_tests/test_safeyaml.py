"""YAML of others: refused fast, with the line, before anything is built (reliability.md section 6, S4)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from time import process_time

import pytest
import yaml

from beatsight_assets.errors import BeatSightError, ConfigError, InputError
from beatsight_assets.safeyaml import MAX_BYTES, read_yaml

REPOSITORY = Path(__file__).parent.parent
FAST_S = 5.0  # of processor time; reliability.md R7: no input takes longer

NESTED = "[" * 21 + "]" * 21
LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 3)}]\n" for n in range(1, 17))

REFUSED = {
    # name: (text, line, words of the message)
    "a key twice": ("a: 1\nb: 2\na: 3\n", 3, "key 'a' occurs twice"),
    "a key twice in depth": ("a:\n  b: 1\n  b: 2\n", 3, "key 'b' occurs twice"),
    "a key twice in a flow": ("x: {a: 1, a: 2}\n", 1, "key 'a' occurs twice"),
    "a key twice, once quoted": ("a: 1\n'a': 2\n", 2, "occurs twice"),
    "one key as number and as text": ("1: a\n'1': b\n", 2, "occurs twice"),
    "flow too deep": (f"a: 1\nb: {NESTED}\n", 2, "nested deeper than 20 levels"),
    "block too deep": ("\n".join("  " * n + f"k{n}:" for n in range(25)), 21, "nested deeper than 20 levels"),
    "100,000 brackets": ("[" * 100_000, 1, "nested deeper than 20 levels"),
    "100,000 braces": ("{a: " * 100_000, 1, "nested deeper than 20 levels"),
    "51 aliases": ("a: &a 1\nb: [" + ", ".join(["*a"] * 51) + "]\n", 2, "more than 50 aliases"),
    "billion laughs within 50 aliases": (LAUGHS, None, "more than 500,000 values after following its aliases"),
    "an alias of itself": ("a: &a\n  b: *a\n", None, "nested deeper than 20 levels"),
    "an unknown alias": ("a: *nobody\n", 1, "undefined alias"),
    "an object": ("a: 1\nb: !!python/object/apply:os.system ['touch MARKER']\n", 2, "could not determine a constructor"),
    "a name": ("b: !!python/name:os.system\n", 1, "could not determine a constructor"),
    "a module": ("b: !!python/module:os\n", 1, "could not determine a constructor"),
    "a tuple": ("b: !!python/tuple [1, 2]\n", 1, "could not determine a constructor"),
    "an own tag": ("b: !env HOME\n", 1, "could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2\n", 2, "but found another document"),
    "a tab": ("a:\n\tb: 1\n", 2, "cannot start any token"),
    "an open quote": ("a: 1\nb: 'open\n", 3, "unexpected end of stream"),
    "an open bracket": ("a: [1, 2\nb: 3\n", 2, "expected ',' or ']'"),
    "a control character": ("a: 1\nb: x\x07\n", 2, "is not allowed"),
    "not UTF-8": (b"a: 1\nb: \xff\xfe\n", 2, "not UTF-8"),
    "not a number": ("a: 1\nb: .nan\n", 2, "is not a finite number"),
    "infinite": ("a: .inf\n", 1, "is not a finite number"),
    "minus infinite": ("a: [1, -.INF]\n", 1, "is not a finite number"),
    "overflow": ("a: 1.0e+999\n", 1, "is not a finite number"),
    "an empty number": ('a: !!int ""\n', None, "does not fit its type"),
    "an empty decimal": ('a: !!float ""\n', None, ""),
    "no date": ("a: !!timestamp x\n", None, "does not fit its type"),
    "the 99th of a month": ("a: 2024-01-99\n", None, "does not fit its type"),
    "no truth value": ("a: !!bool perhaps\n", None, "does not fit its type"),
    "no base64": ("a: !!binary 'é'\n", None, ""),
    "a list as key": ("? [a]\n: 1\n", 1, "unhashable key"),
    "5,000 digits": ("a: " + "9" * 5_000 + "\n", None, "does not fit its type"),
    "merge of a number": ("a:\n  <<: 1\n", 2, "expected a mapping"),
}


def test_numbers_of_others_that_are_not_finite_read_as_null(tmp_path: Path) -> None:
    """`not_finite_as_null`: also through an alias; whoever reads the document never meets NaN or infinity."""
    path = tmp_path / "x.yaml"
    path.write_text("a: &silent -.inf\nb: [.nan, 1.0e+999, *silent]\nc: -20.5\n")
    assert read_yaml(path, error=InputError, not_finite_as_null=True).data == {"a": None, "b": [None, None, None], "c": -20.5}
    with pytest.raises(InputError, match="finite"):
        read_yaml(path, error=InputError)


@pytest.mark.parametrize(("text", "line", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_file_and_line(tmp_path: Path, text: str | bytes, line: int | None, words: str) -> None:
    """U7, S4: bad-config (exit 2) with file and line, in under 5 s, and nothing is run or built."""
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = process_time()
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, name="configs/x.yaml")
    assert process_time() - before < FAST_S
    assert caught.value.code == "bad-config"
    assert words in caught.value.message
    if line is None:
        assert caught.value.where.startswith("configs/x.yaml")
    else:
        assert caught.value.where == f"configs/x.yaml:{line}"
    assert not (tmp_path / "MARKER").exists()
    assert not (REPOSITORY / "MARKER").exists()


def test_more_than_a_megabyte_is_not_read(tmp_path: Path) -> None:
    """U7: the size is looked at before the content; a sparse file of 1 TB costs nothing."""
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: " + b"x" * MAX_BYTES)
    with pytest.raises(ConfigError, match=r"bad-config: .*1,000,003 bytes; at most 1,000,000 are read \(x\.yaml\)"):
        read_yaml(path)
    os.truncate(path, 10**12)
    with pytest.raises(ConfigError, match="1,000,000,000,000 bytes"):
        read_yaml(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """U4: absent is missing-config; a FIFO, a folder or a device is bad-config and does not hang."""
    with pytest.raises(ConfigError, match=r"^missing-config: "):
        read_yaml(tmp_path / "absent.yaml")
    os.mkfifo(tmp_path / "fifo.yaml")
    for path in (tmp_path / "fifo.yaml", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"^bad-config: .*not a regular file"):
            read_yaml(path)


def test_foreign_metadata_raises_the_error_of_its_reader(tmp_path: Path) -> None:
    """A broken file of a dataset is bad input (exit 3), not a wrong configuration."""
    (tmp_path / "metadata.yaml").write_text("a: [")
    with pytest.raises(InputError) as caught:
        read_yaml(tmp_path / "metadata.yaml", error=InputError)
    assert caught.value.exit_code == 3


def test_what_is_allowed_arrives_with_its_lines(tmp_path: Path) -> None:
    """A BOM, 50 aliases, merge keys, 20 levels and sexagesimal numbers are fine; every value knows its line."""
    path = tmp_path / "x.yaml"
    text = "a: &a {x: 1}\nb:\n  - *a\n  - <<: *a\n    y: 1:30.5\n3: [1,\n  2]\nempty:\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    file = read_yaml(path, name="x")
    assert file.data == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1, "y": 90.5}], 3: [1, 2], "empty": None}
    assert file.where(("b", 1, "y")) == "x:5"
    assert file.where((3, 1)) == "x:7"
    assert file.where(("b", 1, "nowhere", "else")) == "x:4"
    assert file.where(("unknown",)) == "x:1"
    path.write_text("&a 1")
    assert read_yaml(path).data == 1
    path.write_text("[" * 20 + "]" * 20)
    read_yaml(path)
    path.write_text("a: &a 1\nb: [" + ", ".join(["*a"] * 50) + "]\n")
    read_yaml(path)
    path.write_text("")
    assert read_yaml(path).data is None


def test_our_own_configs_can_be_read() -> None:
    """Every file that ships passes its own limits and says what PyYAML's safe loader says."""
    files = sorted((REPOSITORY / "configs").rglob("*.yaml"))
    assert files
    for path in files:
        assert read_yaml(path).data == yaml.safe_load(path.read_bytes())


def test_damaged_yaml_is_read_or_refused(tmp_path: Path) -> None:
    """R7 for YAML: 400 seeded damages of a real config end in a document or in our error, never in another, and in time."""
    source = (REPOSITORY / "configs" / "taxonomy.yaml").read_bytes()[:3_000]
    dice = random.Random(7)
    tokens = [
        b"!!int ",
        b"&a ",
        b"*a ",
        b"[",
        b"]",
        b"{",
        b"}",
        b": ",
        b"- ",
        b"\t",
        b"\0",
        b"\xff",
        b"'",
        b'"',
        b"|",
        b">",
        b"<<: ",
        b"\n---\n",
        b"!!set ",
    ]
    n_refused = 0
    path = tmp_path / "x.yaml"
    for _ in range(400):
        damaged = bytearray(source)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(damaged))
            kind = dice.randrange(4)
            if kind == 0:
                damaged[at] ^= 1 << dice.randrange(8)
            elif kind == 1:
                damaged[at:at] = dice.choice(tokens)
            elif kind == 2:
                del damaged[at : at + dice.randint(1, 30)]
            else:
                del damaged[at:]
                damaged += b"x"
        path.write_bytes(damaged)
        try:
            read_yaml(path)
        except BeatSightError as error:
            assert error.code == "bad-config"
            n_refused += 1
    assert n_refused > 100


BOMBS = """
import resource, sys
from pathlib import Path
from beatsight_assets import store
from beatsight_assets.errors import BeatSightError
from beatsight_assets.safeyaml import read_yaml
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        store.read_json(path) if path.suffix == ".json" else read_yaml(path)
    except BeatSightError as error:
        print(path.name, error.code)
"""


def test_bombs_are_refused_in_one_gibibyte(tmp_path: Path) -> None:
    """S4: alias, depth, digit and size bombs, YAML and JSON, are refused by a process that may not have more than 1 GiB of addresses."""
    bombs = {
        "aliases.yaml": LAUGHS.encode(),
        "deep.yaml": b"[" * 900_000,
        "deep.json": b"[" * 50_000_000,
        "digits.json": b"9" * 50_000_000,
        "huge.json": None,
        "huge.yaml": None,
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content or b"")
        if content is None:
            os.truncate(tmp_path / name, 10**12)
    command = [sys.executable, "-c", BOMBS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said == {name: {"huge.json": "resource-limit"}.get(name, "bad-metadata" if ".json" in name else "bad-config") for name in bombs}
