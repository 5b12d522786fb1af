"""Onsets that people wrote down: decimal seconds and a word per line, to sorted whole microseconds.

Belongs here: reading such lines, words to hits through a table, matching two annotations of one take. Does not belong here: which words a
dataset uses and what they mean (the source modules).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import numpy as np

from beatsight_assets.errors import InputError
from beatsight_assets.events import Hits
from beatsight_assets.sources import Rejected
from beatsight_assets.store import contain, read_bytes
from beatsight_assets.taxonomy import Taxonomy, Voice

MAX_TEXT_BYTES = 16 * 1024 * 1024  # the longest annotation of MDB Drums has 0.02 MB
DAY_US = 86_400_000_000  # an onset lies below one day (spec/events.md section 11)

Rows = list[tuple[int, str]]


def microseconds(text: str) -> int | None:
    """Whole microseconds, half up, of decimal seconds from 0 up to a day; None for anything else (signs, exponents, NaN).

    >>> microseconds("0.5284545"), microseconds("0.0000005"), microseconds("1e3"), microseconds("-1"), microseconds("86400")
    (528455, 1, None, None, None)
    """
    if not re.fullmatch(r"\d{1,6}(\.\d{1,12})?", text, re.ASCII):
        return None
    us = int((Decimal(text) * 1_000_000).to_integral_value(ROUND_HALF_UP))
    return us if us < DAY_US else None


def read_lines(path: Path, name: str) -> list[list[str]]:
    """Fields of every line that is not blank, split on whitespace. UTF-8, with or without BOM.

    Raises
    ------
    InputError `bad-encoding` : not UTF-8; and those of `store.read_bytes`
    """
    try:
        text = read_bytes(path, max_bytes=MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} of {name} is not UTF-8", code="bad-encoding") from error
    return list(filter(None, map(str.split, text.splitlines())))


def read_rows(root: Path, relpath: str) -> tuple[Rows, int]:
    """((microsecond, word) of each good line sorted by time, number of other lines).

    Raises
    ------
    InputError : see `read_lines`; `path-escape`
    """
    rows, n_bad = [], 0
    for fields in read_lines(contain(root, relpath), relpath):
        us = microseconds(fields[0]) if len(fields) == 2 else None
        if us is None:
            n_bad += 1
        else:
            rows.append((us, fields[1]))
    return sorted(rows, key=lambda row: row[0]), n_bad


def find_damage(root: Path, relpath: str) -> Rejected | None:
    """Why a text file beside the onsets (bars, a second annotation) cannot be read; None when it can."""
    try:
        read_lines(contain(root, relpath), relpath)
    except InputError as error:
        return Rejected(relpath, "scan", error.code, error.message)
    return None


def to_hits(rows: Rows, table: Mapping[str, Voice], taxonomy: Taxonomy) -> tuple[Hits, int]:
    """(hits without velocity, number of them whose word neither the table nor the taxonomy knows); such words stay labels as they are."""
    words = list(dict.fromkeys(word for _, word in rows))
    voices = tuple(dict.fromkeys(table.get(word, Voice(word)) for word in words))
    place = {word: voices.index(table.get(word, Voice(word))) for word in words}
    unknown = {word for word in words if word not in table and taxonomy.canonical(word) is None}
    hits = Hits(
        voices=voices,
        onset_us=np.array([us for us, _ in rows], dtype=np.int64),
        voice=np.array([place[word] for _, word in rows], dtype=np.int64),
        velocity=np.full(len(rows), np.nan, dtype=np.float32),
    )
    return hits, sum(word in unknown for _, word in rows)


def match_onsets(first_us: Sequence[int], second_us: Sequence[int], window_us: int) -> list[tuple[int, int]]:
    """Pairs (i, j) of onsets at most `window_us` apart, each onset used once, in time order. Both sequences are sorted.

    >>> match_onsets([0, 100, 900], [20, 500, 890], 30)
    [(0, 0), (2, 2)]
    """
    pairs = []
    a = b = 0
    while a < len(first_us) and b < len(second_us):
        distance_us = second_us[b] - first_us[a]
        if abs(distance_us) <= window_us:
            pairs.append((a, b))
        a += distance_us >= -window_us
        b += distance_us <= window_us
    return pairs
