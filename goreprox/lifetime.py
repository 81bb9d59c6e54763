"""The life of a process, from ready to its last signal: the first ends it politely, the second at once."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, Self

from loguru import logger

LINGER_S = 1.0
"""What is queued for others has so long to go out, unless a second signal comes."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class End(Protocol):
    """What owns connections: an edge or a provider."""

    async def close(self, *, drain_s: float) -> None:
        """Take no new connections, let those that are here end for `drain_s`, reset the rest."""


class Closable(Protocol):
    """A way to other processes."""

    async def close(self, *, linger_s: float) -> None:
        """Leave; what is queued has `linger_s` seconds to go out."""


class Lifetime:
    """SIGTERM and SIGINT as events of the loop, while in this context."""

    def __init__(self) -> None:
        """Belong to the running loop."""
        self.stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        (self._hurry if self.stop.is_set() else self.stop).set()

    @property
    def hurried(self) -> bool:
        """Whether the second signal has come."""
        return self._hurry.is_set()

    def ready(self, text: str, **ports: object) -> None:
        """Say that all is up, for people in `text`, for programs in `ports`, and to systemd if it wants to know."""
        logger.bind(event="ready", **ports).info("ready: {}", text)
        if address := os.environ.get("NOTIFY_SOCKET"):
            _notify(address)

    async def serve(self, end: End, ways: Sequence[Closable], *, drain_s: float, ready: str, **ports: object) -> None:
        """Be ready until a signal comes; then close the end, and after it its ways to others."""
        with self:
            self.ready(ready, **ports)
            await self.stop.wait()
            logger.info("shutting down: connections have {:g} s to end", drain_s)
            await self.unless_hurried(end.close(drain_s=drain_s))
            for way in ways:
                await way.close(linger_s=0.0 if self.hurried else LINGER_S)

    async def unless_hurried(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, but drop it when the second signal comes."""
        task = asyncio.create_task(work, name="shutdown")
        hurry = asyncio.create_task(self._hurry.wait(), name="second signal")
        await asyncio.wait((task, hurry), return_when=asyncio.FIRST_COMPLETED)
        for pending in (task, hurry):
            pending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _notify(address: str) -> None:
    """Tell a supervisor that we are ready (sd_notify(3))."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", address.replace("@", "\0", 1) if address.startswith("@") else address)
    except OSError as exc:
        logger.warning("NOTIFY_SOCKET {}: {}; the supervisor does not know that this process is ready", address, exc)
