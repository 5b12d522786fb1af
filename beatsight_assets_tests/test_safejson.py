"""JSON of others: strict, bounded, with the line of what is refused (reliability.md section 6, S4)."""

from __future__ import annotations

import json
import random
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets.errors import InputError
from beatsight_assets.safejson import parse_json
from beatsight_assets.store import to_json_bytes

FAST_S = 5.0  # of processor time; reliability.md R7: no input takes longer

REFUSED = {
    # name: (text, line, words of the message)
    "a key twice": ('{"a": 1,\n "b": 2,\n "a": 3}', 3, 'key "a" occurs twice'),
    "a key twice in depth": ('{"x": [{"a": 1,\n "a": 2}]}', 2, "occurs twice"),
    "a key twice, spelled in two ways": ('{"a": 1,\n "\\u0061": 2}', 2, "occurs twice"),
    "an empty key twice": ('{"": 1, "": 2}', 1, "occurs twice"),
    "not a number": ('{"a": 1,\n "b": NaN}', 2, "NaN is no JSON number"),
    "infinite": ("[1,\n\n Infinity]", 3, "Infinity is no JSON number"),
    "minus infinite": ("[-Infinity]", 1, "-Infinity is no JSON number"),
    "overflow": ("[1,\n 1e999]", 2, "larger than a number can be"),
    "minus overflow": ("-1.5E+400", 1, "larger than a number can be"),
    "19 digits": ("[1234567890123456789]", 1, "an integer of more than 18 digits"),
    "minus 19 digits": ("[\n-1234567890123456789]", 2, "an integer of more than 18 digits"),
    "a million digits": ("9" * 1_000_000, 1, "an integer of more than 18 digits"),
    "65 lists": ("[" * 65 + "]" * 65, 1, "nested deeper than 64 levels"),
    "65 objects": ('{"a":\n' * 65 + "1" + "}" * 65, 65, "nested deeper than 64 levels"),
    "65 lists, full": ("[" * 65 + "1" + "]" * 65, 1, "nested deeper than 64 levels"),
    "a million brackets": ("[" * 1_000_000, 1, "nested deeper than 64 levels"),
    "a million braces": ('{"a":' * 1_000_000, 1, "nested deeper than 64 levels"),
    "nothing": ("", 1, "not JSON"),
    "two documents": ("{}\n{}", 2, "not JSON"),
    "a comma too many": ("[1,\n2,]", 2, "not JSON"),
    "single quotes": ("{'a': 1}", 1, "not JSON"),
    "a comment": ('{"a": 1} // x', 1, "not JSON"),
    "an open text": ('["a', 1, "not JSON"),
    "a control character in a text": ('["a\x01"]', 1, "not JSON"),
    "a leading zero": ("[01]", 1, "not JSON"),
    "not UTF-8": (b'["a",\n"\xff"]', 2, "not UTF-8"),
    "UTF-16": ("[1]".encode("utf-16"), 1, "not UTF-8"),
    "quotes that never end, after a number that is too long": ("[1234567890123456789, " + '"\\' * 500_000, 1, "18 digits"),
}


@pytest.mark.parametrize(("text", "line", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_its_line(text: str | bytes, line: int, words: str) -> None:
    """U7, S4: bad-metadata with file and line, in under 5 s."""
    before = process_time()
    with pytest.raises(InputError) as caught:
        parse_json(text if isinstance(text, bytes) else text.encode(), where="meta.json")
    assert process_time() - before < FAST_S
    assert caught.value.code == "bad-metadata"
    assert caught.value.where == "meta.json"
    assert caught.value.message.startswith(f"line {line}: ")
    assert words in caught.value.message
    assert len(caught.value.message) < 300


def test_what_is_allowed_arrives() -> None:
    """A BOM, 18 digits, 64 levels, many shallow lists and one name in two objects are fine."""
    assert parse_json(b'\xef\xbb\xbf{"a": [1.5, null, true, "\\u00e9"]}', where="x") == {"a": [1.5, None, True, "é"]}
    assert parse_json(b"-999999999999999999", where="x") == -999999999999999999
    assert parse_json(b"[" * 64 + b"]" * 64, where="x")
    assert parse_json(b"[" * 64 + b"1" + b"]" * 64, where="x")
    assert parse_json(b'[{"a": 1}, {"a": 2}, {"a": {"a": 3}}]', where="x")[1] == {"a": 2}
    assert len(parse_json(b"[" + b"[]," * 1_000 + b"[]]", where="x")) == 1_001


numbers = st.integers(-(10**18) + 1, 10**18 - 1) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"]))
documents = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4))


@given(documents)
def test_what_we_write_we_read(document: Any) -> None:
    """R10: writing and reading is identity, indented or in one line, for everything below the limits."""
    content, line = to_json_bytes(document), to_json_bytes(document, indent=None)
    assert parse_json(content, where="x") == parse_json(line, where="x") == document
    assert line.count(b"\n") == 1


def test_damaged_json_is_read_or_refused() -> None:
    """R7 for JSON: 1,000 seeded damages end in a document or in our error, never in another; what is read, Python's reader reads too."""
    source = to_json_bytes({"rules": [{"name": f"r{n}", "value": n / 7, "limit": None, "ok": True} for n in range(8)], "text": 'a"\\é'})
    dice = random.Random(7)
    tokens = [b"NaN", b"1e999", b'"rules": 1,', b"[" * 70, b"9" * 30, b"\0", b"\xff", b'"', b"\\", b"\\ud800", b"{", b"}", b"-", b","]
    n_refused = 0
    for _ in range(1_000):
        damaged = bytearray(source)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(damaged))
            if dice.random() < 0.5:
                damaged[at:at] = dice.choice(tokens)
            else:
                damaged[at] ^= 1 << dice.randrange(8)
        try:
            assert parse_json(bytes(damaged), where="x") == json.loads(damaged.decode())
        except InputError as error:
            assert error.code == "bad-metadata"
            n_refused += 1
    assert n_refused > 500
