"""Reading the csv tables that datasets bring: encodings, line ends, column names.

Belongs here: turning a csv file into rows of text. Does not belong here: what a column means (the source modules).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from beatsight_assets.errors import InputError

ENCODINGS = ("utf-8-sig", "cp949", "cp1252")  # in this order; spreadsheet programs save Groove's info.csv in the last two
MAX_BYTES = 256 * 1024 * 1024
MAX_SHARED = 12  # characters of a value that is likely to come again; longer ones are paths and ids


def read_csv(path: Path, *, required: Sequence[str] = (), encodings: Sequence[str] = ENCODINGS) -> list[dict[str, str]]:
    """Rows of a csv file by column name, values as text without surrounding blanks.

    Raises
    ------
    InputError `missing-metadata`, `bad-encoding`, `bad-metadata` : naming the file and the line or column
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read: {error.strerror}. Is this the root of the dataset?", code="missing-metadata", where=path.name
        ) from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{len(data):,} bytes; at most {MAX_BYTES:,}", code="bad-metadata", where=path.name)
    text = _decode(data, path.name, encodings)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise InputError("the table is empty", code="bad-metadata", where=path.name)
        names = [n.strip() for n in header]
        absent = [n for n in required if n not in names]
        if absent:
            other = next((sign for sign in (";", "\t") if len(names) == 1 and sign in names[0]), None)
            saved = (
                f". It is parted by {other!r}: a spreadsheet program saved it anew. Take the file as the dataset brings it" if other else ""
            )
            raise InputError(
                f"column {absent[0]!r} is missing; found {', '.join(names[:12])}{saved}", code="bad-metadata", where=f"{path.name}:1"
            )
        rows = []
        shared: dict[str, str] = {}  # values that many rows have are held once
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise InputError(
                    f"{len(row)} fields where the header has {len(names)}", code="bad-metadata", where=f"{path.name}:{reader.line_num}"
                )
            values = (v.strip() for v in row)
            rows.append({n: shared.setdefault(v, v) if len(v) <= MAX_SHARED else v for n, v in zip(names, values, strict=True)})
    except csv.Error as error:
        raise InputError(f"not a csv table: {error}", code="bad-metadata", where=f"{path.name}:{reader.line_num}") from error
    return rows


def _decode(data: bytes, name: str, encodings: Sequence[str]) -> str:
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise InputError(f"not text in any of {', '.join(encodings)}. Take the file as the dataset brings it", code="bad-encoding", where=name)
