"""What a supervisor, such as systemd, is told about a process, and how often it wants to hear: sd_notify(3)."""

import os
import socket
import time
from typing import Final

from loguru import logger

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""By these a process finds its supervisor; its children are not to."""
READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1\nSTATUS=shutting down"
ALIVE: Final = "WATCHDOG=1"


def notify(text: str) -> None:
    """Tell the supervisor, if there is one; `text` has one assignment a line. What prevents it is logged."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
    except OSError as exc:
        logger.bind(event="notify_failed", address=address).warning(
            "NOTIFY_SOCKET {}: {}; the supervisor does not know about this process", address, exc
        )


def reloading(status: str) -> str:
    """Return what says that the process is not to be disturbed until it is ready again; `READY` has to follow."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}\nSTATUS={status}"


def extended(seconds: float) -> str:
    """Return what makes the supervisor wait for so long from now on, at least."""
    return f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}"


def watchdog_s() -> float | None:
    """Return how often this process has to say that it is `ALIVE` (sd_watchdog_enabled(3)); None if nobody asks."""
    interval, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not interval.isdecimal() or int(interval) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(interval) / 1e6
