"""Ids made in numpy are those of the standard library."""

from __future__ import annotations

from uuid import NAMESPACE_URL, uuid5

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from beatsight_assets import uuids

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
NUMBERS = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(0, 10**11 - 1)
    | st.builds(lambda k, d: max(0, 10**k + d), st.integers(0, 12), st.integers(-1, 1))
)


@given(st.lists(st.tuples(NAMES, NUMBERS), min_size=1, max_size=40))
def test_any_names_and_numbers_give_the_ids_of_uuid5(rows: list[tuple[str, int]]) -> None:
    """Rows of any length and script, numbers of any size, equal uuid.uuid5."""
    made = uuids.numbered_uuid5(
        NAMESPACE_URL.bytes, [name for name, _ in rows], np.arange(len(rows))[::-1], np.array([n for _, n in rows[::-1]])
    )
    assert made.to_list() == [str(uuid5(NAMESPACE_URL, f"{name}{n}")) for name, n in rows[::-1]]


def test_every_place_of_the_number_in_a_block_gives_the_ids_of_uuid5() -> None:
    """Names of 0 to 160 bytes with numbers of 1 to 11 digits: every shift in a word and both padding cases, over several batches of lanes."""
    names = ["é" * (n // 2) + "x" * (n % 2) for n in range(161)]
    which, digits = (grid.ravel() for grid in np.meshgrid(np.arange(161), np.arange(11), indexing="ij"))
    number = np.concatenate([10**digits - (digits > 4), 9 * 10**digits, *(10**digits + i for i in range(8))])
    made = uuids.numbered_uuid5(NAMESPACE_URL.bytes, names, np.tile(which, 10), number)
    assert len(made) > 2 * uuids.LANES
    assert made.to_list() == [
        str(uuid5(NAMESPACE_URL, f"{names[i]}{n}")) for i, n in zip(np.tile(which, 10).tolist(), number.tolist(), strict=True)
    ]


def test_no_rows_give_no_ids() -> None:
    """An empty batch has no ids, with and without names."""
    nothing = np.empty(0, dtype=np.int64)
    assert uuids.numbered_uuid5(NAMESPACE_URL.bytes, [], nothing, nothing).to_list() == []
    assert uuids.numbered_uuid5(NAMESPACE_URL.bytes, ["a"], nothing, nothing).to_list() == []
