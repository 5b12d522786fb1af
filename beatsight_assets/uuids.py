"""uuid5 of many numbered names at once: SHA-1 in numpy, each message in a lane of its own.

Belongs here: message blocks, the compression function, the text of the ids. Does not belong here: what is named (`events`).
`uuid.uuid5` is the oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID, uuid5

import numpy as np
import polars as pl
from numpy.typing import NDArray

LANES = 8_192  # messages worked on together: enough to hide the cost of a numpy call, few enough for the cache
MAX_DIGITS = 11  # of a number: with the stop byte they fill three words; microseconds of a day have 11
_START = np.array([[0x67452301], [0xEFCDAB89], [0x98BADCFE], [0x10325476], [0xC3D2E1F0]], dtype=np.uint32)  # FIPS 180-4, 5.3.1
_ROUND_CONSTANTS = (0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6)
_FOUR_DIGITS = np.frombuffer(b"".join(b"%04d" % i for i in range(10_000)), dtype=">u4").astype(np.uint32)
# By the number of digits: which bytes of three words are digits, and where the stop byte stands [shape=(3, MAX_DIGITS + 1)].
_DIGITS_KEPT = np.frombuffer(b"".join(b"\xff" * n + b"\0" * (12 - n) for n in range(12)), dtype=">u4").reshape(12, 3).T.astype(np.uint32)
_STOP = np.frombuffer(b"".join(b"\0" * n + b"\x80" + b"\0" * (11 - n) for n in range(12)), dtype=">u4").reshape(12, 3).T.astype(np.uint32)
_POWERS = 10 ** np.arange(MAX_DIGITS + 2, dtype=np.int64)
_HEX = np.frombuffer(b"".join(b"%04x" % i for i in range(65_536)), dtype=np.uint32)
_TEXT = np.dtype({"names": [f"f{i}" for i in range(8)], "formats": [np.uint32] * 8, "offsets": [0, 4, 9, 14, 19, 24, 28, 32], "itemsize": 36})  # fmt: skip


def numbered_uuid5(namespace: bytes, names: Sequence[str], which: NDArray[np.int64], number: NDArray[np.int64]) -> pl.Series:
    """`uuid5(namespace, f"{names[which]}{number}")` of each row as text.

    Parameters
    ----------
    namespace : the 16 bytes of the uuid that the names live in
    which : index into `names` [shape=(n,)]
    number : whole numbers [shape=(n,)]; those outside 0 .. 10^11 - 1, which no onset is, cost ten times as much
    """
    odd = np.flatnonzero((number < 0) | (number >= 10**MAX_DIGITS))
    if len(odd):
        made = [str(uuid5(UUID(bytes=namespace), f"{names[i]}{k}")) for i, k in zip(which[odd].tolist(), number[odd].tolist(), strict=True)]
        ids = numbered_uuid5(namespace, names, which, np.where((number < 0) | (number >= 10**MAX_DIGITS), 0, number))
        return ids.scatter(odd, made)
    heads = [namespace + name.encode() for name in names]
    n_bytes = np.array([len(head) for head in heads], dtype=np.int64)
    state, rest = _digest_whole_blocks(heads, n_bytes)
    text = np.empty(len(which), dtype=_TEXT)
    text.view(np.uint8).reshape(-1, 36)[:, [8, 13, 18, 23]] = ord("-")
    for start in range(0, len(which), LANES):
        rows = slice(start, start + LANES)
        lane = which[rows]
        digest = _digest_tails(state.take(lane, axis=1), rest.take(lane, axis=1), n_bytes.take(lane), number[rows])
        digest[1] = digest[1] & 0xFFFF0FFF | 0x5000  # version 5, RFC 4122
        digest[2] = digest[2] & 0x3FFFFFFF | 0x80000000  # variant
        for i in range(8):
            text[f"f{i}"][rows] = _HEX.take(digest[i // 2] & 0xFFFF if i % 2 else digest[i // 2] >> 16)
    return pl.Series(text.view("S36")).cast(pl.String)  # a tenth of the time of slicing one long text


def _digest_whole_blocks(heads: Sequence[bytes], n_bytes: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """SHA-1 state behind the whole blocks of each head [shape=(5, n)], and what is left of it in big-endian words [shape=(16, n)]."""
    n_blocks = n_bytes // 64
    state = np.repeat(_START, len(heads), axis=1)
    for block in range(int(n_blocks.max(initial=0))):
        at = np.flatnonzero(n_blocks > block)
        for some in np.array_split(at, -(-len(at) // LANES)):
            words = _words([heads[i][64 * block : 64 * block + 64] for i in some.tolist()])
            state[:, some] = _compress(state[:, some], words)
    return state, _words([head[64 * (len(head) // 64) :] for head in heads])


def _words(blocks: Sequence[bytes]) -> NDArray[np.uint32]:
    """At most 64 bytes each, zeros behind them, as big-endian words [shape=(16, n)]."""
    return np.frombuffer(b"".join(block.ljust(64, b"\0") for block in blocks), dtype=">u4").reshape(-1, 16).T.astype(np.uint32)


def _digest_tails(
    state: NDArray[np.uint32], rest: NDArray[np.uint32], n_head: NDArray[np.int64], number: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """SHA-1 of heads of `n_head` bytes, known as state and rest, with the digits of a number behind them [shape=(5, n)]."""
    n_digits = np.maximum(_POWERS.searchsorted(number, side="right"), 1)
    left = number * _POWERS.take(MAX_DIGITS + 1 - n_digits)  # twelve digits, the number's own in front
    high = left // 10_000
    top = high // 10_000
    fours = (top, high - top * 10_000, left - high * 10_000)  # `%` is five times slower
    told = [_FOUR_DIGITS.take(four) & _DIGITS_KEPT[i].take(n_digits) | _STOP[i].take(n_digits) for i, four in enumerate(fours)]
    shift = (n_head % 4 * 8).astype(np.uint32)
    back = 24 - shift
    words = np.zeros((32, len(number)), dtype=np.uint32)
    words[:16] = rest
    flat, at = words.reshape(-1), (n_head % 64 // 4) * len(number) + np.arange(len(number))
    flat[at] |= told[0] >> shift
    for i in (1, 2):
        flat[at + i * len(number)] = told[i - 1] << 8 << back | told[i] >> shift
    flat[at + 3 * len(number)] = told[2] << 8 << back
    n_bits = ((n_head + n_digits) * 8).astype(np.uint32)
    is_long = n_head % 64 + n_digits > 55  # stop byte and length go into a block of their own
    words[15] |= np.where(is_long, 0, n_bits).astype(np.uint32)
    digest = _compress(state, words[:16])
    if is_long.any():
        words[31] = n_bits
        long = np.flatnonzero(is_long)
        digest[:, long] = _compress(digest[:, long], words[16:, long])
    return digest


def _compress(state: NDArray[np.uint32], block: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """SHA-1's compression function (FIPS 180-4, 6.1.2) in every lane: state [shape=(5, n)] after a block [shape=(16, n)]."""
    xor, either, both, add, left, right = np.bitwise_xor, np.bitwise_or, np.bitwise_and, np.add, np.left_shift, np.right_shift
    n = block.shape[1]
    words = np.empty((80, n), dtype=np.uint32)
    words[:16] = block
    spare = np.empty((6, n), dtype=np.uint32)
    # Beyond word 32 the schedule may look twice as far back, so that six words come from one call: the same words, turned by two bits.
    for t, k, by in [(t, min(3, 32 - t), 1) for t in range(16, 32, 3)] + [(t, 6, 2) for t in range(32, 80, 6)]:
        made, turned = words[t : t + k], spare[:k]
        xor(words[t - 3 * by : t - 3 * by + k], words[t - 8 * by : t - 8 * by + k], out=made)
        xor(made, words[t - 14 * by : t - 14 * by + k], out=made)
        xor(made, words[t - 16 * by : t - 16 * by + k], out=made)
        right(made, 32 - by, out=turned)
        left(made, by, out=made)
        either(made, turned, out=made)
    for i, constant in enumerate(_ROUND_CONSTANTS):
        words[20 * i : 20 * i + 20] += np.uint32(constant)
    a, b, c, d, e = state.copy()
    f, g = spare[:2]
    for t in range(80):
        if t < 20:  # choose
            xor(c, d, out=f)
            both(f, b, out=f)
            xor(f, d, out=f)
        elif 40 <= t < 60:  # majority
            xor(b, c, out=f)
            xor(c, d, out=g)
            both(f, g, out=f)
            xor(f, c, out=f)
        else:  # parity
            xor(b, c, out=f)
            xor(f, d, out=f)
        add(e, f, out=e)
        add(e, words[t], out=e)
        left(a, 5, out=f)
        right(a, 27, out=g)
        either(f, g, out=f)
        add(e, f, out=e)
        left(b, 30, out=f)
        right(b, 2, out=g)
        either(f, g, out=b)
        a, b, c, d, e = e, a, b, c, d
    return np.stack((a, b, c, d, e)) + state
