"""The one place that reads the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """Wall clock in UTC, whole seconds. Never part of content that is digested."""
    return datetime.now(UTC).replace(microsecond=0)


def monotonic_s() -> float:
    """Seconds for measuring durations; only differences mean anything."""
    return time.monotonic()
