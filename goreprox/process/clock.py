"""The clock of sessions, streams and clients."""

import functools
import time
from collections.abc import Callable

clock: Callable[[], float] = functools.partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Seconds that never go back and count suspend where the system can (CLOCK_BOOTTIME, Linux)."""
