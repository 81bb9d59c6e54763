"""The clock of sessions, streams and clients; how times of day are written."""

import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime

clock: Callable[[], float] = functools.partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Seconds that never go back and count suspend where the system can (CLOCK_BOOTTIME, Linux)."""


def iso(seconds: float) -> str:
    """Return a time in `seconds` since 1970 as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
