"""Unit aliases for signatures, and the one way to draw keyed randomness."""

from __future__ import annotations

from hashlib import blake2b, sha256

import numpy as np

Seconds = float
Milliseconds = float
Microseconds = int
Ticks = int
Decibels = float
Velocity = float  # 0..1


def rng_for(seed: int, *words: str) -> np.random.Generator:
    """Generator keyed by what it is about (`rng_for(7, "kit", "maple")`), never by call order: equal for any worker count."""
    key = blake2b("\x1f".join((str(seed), *words)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))


def keyed_order(seed: int, name: str) -> str:
    """Sort key of every keyed choice (limits, caps, subsets): sha256 of `<seed>:<id>` (`spec/gates.md` section 12)."""
    return sha256(f"{seed}:{name}".encode()).hexdigest()


def bucket(seed: int, group_id: str) -> float:
    """Place of a group in 0..1 that never moves: first 8 bytes, big-endian, of sha256 over `<seed>:<group_id>`, over 2^64."""
    return int.from_bytes(sha256(f"{seed}:{group_id}".encode()).digest()[:8], "big") / 2**64
