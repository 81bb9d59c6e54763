"""The life of a process, from ready to its last signal: the first ends it politely, the second at once."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, Self

from loguru import logger

LINGER_S = 1.0
"""What is queued for others has so long to go out, unless a second signal comes."""
EXTEND_S = 60.0
"""A supervisor gives us so much longer to start, again and again: a server may be away for as long as it likes."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class End(Protocol):
    """What owns connections: an edge or a provider."""

    @property
    def connections(self) -> int:
        """How many there are at this moment."""

    async def close(self, *, drain_s: float) -> int:
        """Take no new connections, let those that are here end for `drain_s`, reset the rest; return how many."""


class Closable(Protocol):
    """A way to other processes."""

    async def close(self, *, linger_s: float) -> None:
        """Leave; what is queued has `linger_s` seconds to go out."""


class Connection(Protocol):
    """What a process is of no use without: its ways to brokers."""

    up: asyncio.Event
    """Set once there has been one."""
    changed: Callable[[], None]
    """Called whenever there is something else to `describe`."""

    def describe(self) -> str:
        """Say what is there and what is not, and why, in one line."""


class Lifetime:
    """SIGTERM and SIGINT as events of the loop, while in this context. SIGHUP, which ends other programs, is a line."""

    def __init__(self) -> None:
        """Belong to the running loop."""
        self.stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._extension: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._signalled)
        self._loop.add_signal_handler(signal.SIGHUP, _hung_up)
        return self

    def __exit__(self, *_: object) -> None:
        self._extend_no_more()
        for number in (*_SIGNALS, signal.SIGHUP):
            self._loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        (self._hurry if self.stop.is_set() else self.stop).set()

    @property
    def hurried(self) -> bool:
        """Whether the second signal has come."""
        return self._hurry.is_set()

    def start(self, text: str, **ports: object) -> None:
        """Say that all is done but what others have to do."""
        logger.bind(event="starting", **ports).info("{}", text)
        self.wait_for_ready(text)

    def wait_for_ready(self, text: str) -> None:
        """Let a supervisor wait until `ready`, however long, and know for what."""
        self.tell(f"STATUS={text}\nEXTEND_TIMEOUT_USEC={round(EXTEND_S * 1e6)}")
        self._extension = self._loop.call_later(EXTEND_S / 2, self.wait_for_ready, text)

    def ready(self, text: str, **ports: object) -> None:
        """Say that all is up, for people in `text`, for programs in `ports`, and to a supervisor."""
        self._extend_no_more()
        logger.bind(event="ready", **ports).info("ready: {}", text)
        self.tell("READY=1")

    def _extend_no_more(self) -> None:
        if self._extension is not None:
            self._extension.cancel()

    async def serve(
        self,
        end: End,
        ways: Sequence[Closable],
        *,
        drain_s: float,
        ready: str,
        connection: Connection | None = None,
        **ports: object,
    ) -> None:
        """Be ready, once there is a `connection`, until a signal comes; then close the end, then its ways to others."""
        with self:
            if connection is not None:
                await self._connect(connection, **ports)
            if not self.stop.is_set():
                self.ready(ready, **ports)
            await self.stop.wait()
            connections = end.connections
            _say_how_long(connections, drain_s)
            reset = await self.unless_hurried(end.close(drain_s=drain_s))
            if connections:
                _say_how_many(end.connections if reset is None else reset)
            for way in ways:
                await way.close(linger_s=0.0 if self.hurried else LINGER_S)

    async def _connect(self, connection: Connection, **ports: object) -> None:
        """Wait until there is a connection, or a signal; tell a supervisor how it is doing, then and later."""
        self.start(connection.describe(), **ports)
        connection.changed = lambda: self.tell(f"STATUS={connection.describe()}")
        waits = [asyncio.create_task(event.wait(), name="start") for event in (connection.up, self.stop)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()

    def tell(self, text: str) -> None:
        """Tell a supervisor that wants to know (sd_notify(3)), one assignment a line."""
        if address := os.environ.get("NOTIFY_SOCKET"):
            _notify(address, text)

    async def unless_hurried(self, work: Coroutine[Any, Any, int]) -> int | None:
        """Return what `work` does; drop it when the second signal comes, and return None."""
        task = asyncio.create_task(work, name="shutdown")
        hurry = asyncio.create_task(self._hurry.wait(), name="second signal")
        await asyncio.wait((task, hurry), return_when=asyncio.FIRST_COMPLETED)
        for pending in (task, hurry):
            pending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await task
        return None


def _hung_up() -> None:
    logger.bind(event="hangup").info(
        "SIGHUP: there is no reload; tokens, certificates and keys are reread whenever their files change"
    )


def _say_how_long(connections: int, drain_s: float) -> None:
    text = "no connections are open"
    if connections:
        has = "1 connection has" if connections == 1 else f"{connections} connections have"
        text = f"{has} {drain_s:g} s to end; a second Ctrl-C or SIGTERM resets at once"
    logger.bind(event="draining", connections=connections).info("shutting down: {}", text)


def _say_how_many(reset: int) -> None:
    if reset:
        text = "1 connection was reset" if reset == 1 else f"{reset} connections were reset"
        logger.bind(event="drained", reset=reset).warning("{}", text)
    else:
        logger.bind(event="drained", reset=0).info("all connections have ended")


def _notify(address: str, text: str) -> None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
    except OSError as exc:
        logger.bind(event="notify_failed", address=address).warning(
            "NOTIFY_SOCKET {}: {}; the supervisor does not know about this process", address, exc
        )
