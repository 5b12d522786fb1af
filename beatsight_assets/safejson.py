"""Reading JSON that somebody else may have written: strict, bounded, and with the line of what is refused.

Does not belong here: writing JSON (`store.to_json_bytes`) and files (`store.read_json`).
"""

from __future__ import annotations

import json
import re
from typing import Any

from beatsight_assets.errors import InputError

MAX_DEPTH = 64  # design/reliability.md section 6
MAX_DIGITS = 18  # what every JSON reader with 64-bit integers keeps exactly
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\]:,]|-?[A-Za-z0-9.+][A-Za-z0-9.+-]*+|\n', re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


class _Refused(ValueError):
    """JSON that the standard allows and we do not."""


def parse_json(content: bytes, *, where: str) -> Any:
    """JSON that somebody else may have written: UTF-8, with or without BOM.

    Raises
    ------
    InputError `bad-metadata` : no JSON, a key twice in one object, NaN or Infinity (also as 1e999), an integer of more than 18 digits,
        or deeper than 64; the message names the line
    """

    def constant(token: str) -> None:
        raise _Refused

    def integer(token: str) -> int:
        if len(token.lstrip("-")) > MAX_DIGITS:
            raise _Refused
        return int(token)

    def decimal(token: str) -> float:
        if (value := float(token)) in (float("inf"), float("-inf")):
            raise _Refused
        return value

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _Refused
        return found

    try:
        text = content.decode("utf-8-sig")
        try:
            value = json.loads(text, parse_constant=constant, parse_int=integer, parse_float=decimal, object_pairs_hook=no_repeats)
            if content.count(b"[") + content.count(b"{") > MAX_DEPTH and _is_deep(value):
                raise _Refused
            return value
        except (_Refused, RecursionError):
            line, reason = _first_refusal(text)
            raise InputError(f"line {line}: {reason}", code="bad-metadata", where=where) from None
    except json.JSONDecodeError as error:
        raise InputError(f"line {error.lineno}: not JSON, {error.msg} at column {error.colno}", code="bad-metadata", where=where) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"line {line}: not UTF-8, {error.reason}", code="bad-metadata", where=where) from error


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [v for v in level if isinstance(v, (dict, list))]
        if not level:
            return False
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return True


def _first_refusal(text: str) -> tuple[int, str]:
    """(line, reason) of the first token that `parse_json` refuses. Slow, so it runs only when something is refused."""
    line, scopes, word = 1, [], ""
    for match in TOKEN.finditer(text):
        token = match.group()
        line += token.count("\n")
        if token in "{[":
            scopes.append(set[str]())
            if len(scopes) > MAX_DEPTH:
                return line, f"nested deeper than {MAX_DEPTH} levels"
        elif token in "}]":
            del scopes[-1:]
        elif token == ":":
            if scopes and word in scopes[-1]:
                return line, f"key {ascii(word)[1:-1][:80]} occurs twice in one object"
            if scopes:
                scopes[-1].add(word)
        elif token.lstrip("-") in ("NaN", "Infinity"):
            return line, f"{token} is no JSON number"
        elif token.lstrip("-").isdigit() and len(token.lstrip("-")) > MAX_DIGITS:
            return line, f"an integer of more than {MAX_DIGITS} digits"
        elif NUMBER.fullmatch(token) and abs(float(token)) == float("inf"):
            return line, f"{token[:40]} is larger than a number can be"
        word = token if token.strip() else word
    return line, "a key occurs twice in one object, spelled in two ways"
