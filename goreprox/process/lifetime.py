"""The life of a process, from ready to its last signal: the first drains connections, the second resets them."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Protocol, Self, TypeVar

from loguru import logger

from goreprox.process import supervisor
from goreprox.process.log import counted
from goreprox.process.signals import SIGNALS, block_signals, unblock_signals

LINGER_S = 1.0
"""How long queued messages may take to be sent, unless there is a second signal."""
EXTEND_S = 60.0
"""How much longer a supervisor waits for `ready`. It is asked again in time: a server may be away for any time."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
T = TypeVar("T")


class Owner(Protocol):
    """The owner of connections: an edge or a provider."""

    drain_s: float
    """How long those that are open have to end."""

    @property
    def connections(self) -> int:
        """How many are open."""

    async def close(self, *, drain_s: float) -> int:
        """Accept no more connections, wait `drain_s` for those that are open, reset the rest; return how many."""


class Closable(Protocol):
    """A link or a router: what carries messages to other processes."""

    async def close(self, *, linger_s: float) -> None:
        """Close; queued messages have `linger_s` seconds to be sent."""


class Connection(Protocol):
    """What a process needs before it is ready: a link to a broker."""

    up: asyncio.Event
    """Set once a link has been up."""
    changed: Callable[[], None]
    """Called when the text of `describe` changes."""

    def describe(self) -> str:
        """Return which links are up, which are not and why, in one line."""


class Lifetime:
    """Turns SIGTERM and SIGINT into events while in this context, and SIGHUP into a call."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hung_up: Callable[[], None] = lambda: None
        """Called on SIGHUP, which means a reload; to be set before."""
        self.upgrade_asked: Callable[[], None] = lambda: None
        """Called on SIGUSR2, which means an upgrade; to be set before."""
        self.replaced = False
        """Whether other code is to take over."""
        self.was_ready = False
        """Whether it has been of use, be it before an upgrade: a supervisor is not to wait for it again."""
        self._force = asyncio.Event()
        self._status = ""
        """What a supervisor shows of the process."""
        self._extension: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        if (interval_s := supervisor.watchdog_s()) is not None:
            self._stay_alive(interval_s / 2)
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._take_signal, number)
        self._loop.add_signal_handler(signal.SIGHUP, self.hung_up)
        self._loop.add_signal_handler(signal.SIGUSR2, self.upgrade_asked)
        unblock_signals()
        return self

    def __exit__(self, *_: object) -> None:
        self._extend_no_more()
        if self._watchdog is not None:
            self._watchdog.cancel()
        for number in SIGNALS:
            self._loop.remove_signal_handler(number)

    def _take_signal(self, number: signal.Signals) -> None:
        if self.replaced:
            signal.raise_signal(number)  # it is blocked by now, and waits for the code that takes over
        else:
            self._signalled()

    def _signalled(self) -> None:
        if self.stop.is_set():
            self._force.set()
        else:
            self.tell(supervisor.STOPPING)
            self.stop.set()

    def _stay_alive(self, pause_s: float) -> None:
        """Tell the supervisor's watchdog that the loop turns, again and again."""
        self.tell(supervisor.ALIVE)
        self._watchdog = self._loop.call_later(pause_s, self._stay_alive, pause_s)

    @property
    def forced(self) -> bool:
        """Whether there was a second signal."""
        return self._force.is_set()

    def replace(self) -> None:
        """End without a drain: other code takes over, and handles what signals come from now on."""
        block_signals()
        self.tell(supervisor.reloading("upgrading"))
        self.replaced = True
        self.stop.set()

    def start(self, text: str, **ports: object) -> None:
        """Log that the process has started, and waits for others."""
        logger.bind(event="starting", **ports).info("{}", text)
        if self.was_ready:
            self._tell_status(text, supervisor.READY)
        else:
            self.wait_for_ready(text)

    def wait_for_ready(self, text: str) -> None:
        """Make a supervisor wait until `ready`, however long, and tell it for what."""
        self._tell_status(text, supervisor.extended(EXTEND_S))
        self._extension = self._loop.call_later(EXTEND_S / 2, self.wait_for_ready, text)

    def ready(self, text: str, **ports: object) -> None:
        """Log that the process is of use now, with its `ports`, and tell a supervisor."""
        self._extend_no_more()
        logger.bind(event="ready", **ports).info("ready: {}", text)
        self.was_ready = True
        self._tell_status(text, supervisor.READY)

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Tell a supervisor that a reload begins, and at its end that the process is ready again."""
        if not self.was_ready or self.stop.is_set():
            yield  # READY would tell a supervisor that a start, or an end, is over
            return
        self.tell(supervisor.reloading("reloading"))
        try:
            yield
        finally:
            if not self.stop.is_set():
                self._tell_status(self._status, supervisor.READY)

    def _extend_no_more(self) -> None:
        if self._extension is not None:
            self._extension.cancel()

    async def serve(
        self,
        owner: Owner,
        links: Sequence[Closable],
        *,
        ready: str,
        connection: Connection | None = None,
        **ports: object,
    ) -> None:
        """Be ready, once there is a `connection`, until a signal; then close `owner`, then its links."""
        with self:
            if connection is not None:
                await self._connect(connection, **ports)
            if not self.stop.is_set():
                self.ready(ready, **ports)
            await self.stop.wait()
            if self.replaced:
                for link in links:
                    await link.close(linger_s=0.0)
                return
            connections, drain_s = owner.connections, owner.drain_s
            _log_drain(connections, drain_s)
            self.tell(supervisor.extended(drain_s + EXTEND_S))  # whatever its own limit is
            reset = await self.unless_forced(owner.close(drain_s=drain_s))
            if connections:
                _log_drained(owner.connections if reset is None else reset)
            for link in links:
                await link.close(linger_s=0.0 if self.forced else LINGER_S)

    async def _connect(self, connection: Connection, **ports: object) -> None:
        """Wait for a connection or a signal; tell a supervisor about the links, now and whenever they change."""
        self.start(connection.describe(), **ports)
        connection.changed = lambda: self._tell_status(connection.describe())
        waits = [asyncio.create_task(event.wait(), name="start") for event in (connection.up, self.stop)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()

    def _tell_status(self, text: str, *more: str) -> None:
        self._status = text
        self.tell("\n".join((*more, f"STATUS={text}")))

    def tell(self, text: str) -> None:
        """Notify the supervisor, if there is one (sd_notify(3)); `text` has one assignment a line."""
        supervisor.notify(text)

    async def unless_forced(self, work: Coroutine[object, object, int]) -> int | None:
        """Return the result of `work`; at a second signal cancel it, and return None."""
        return await _unless(self._force, work)

    async def unless_stopped(self, work: Coroutine[object, object, None]) -> None:
        """Finish `work`, or cancel it at a first signal."""
        await _unless(self.stop, work)


async def _unless(event: asyncio.Event, work: Coroutine[object, object, T]) -> T | None:
    """Return the result of `work`; once the event is set, cancel it and return None."""
    task = asyncio.create_task(work, name="until a signal")
    signalled = asyncio.create_task(event.wait(), name="signal")
    await asyncio.wait((task, signalled), return_when=asyncio.FIRST_COMPLETED)
    for pending in (task, signalled):
        pending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return None


def _log_drain(connections: int, drain_s: float) -> None:
    text = "no connections are open"
    if connections:
        open_ = f"{counted(connections, 'connection')} {'has' if connections == 1 else 'have'}"
        text = f"{open_} {drain_s:g} s to end; a second Ctrl-C or SIGTERM resets at once"
    logger.bind(event="draining", connections=connections).info("shutting down: {}", text)


def _log_drained(reset: int) -> None:
    if reset:
        text = f"{counted(reset, 'connection')} {'was' if reset == 1 else 'were'} reset"
        logger.bind(event="drained", reset=reset).warning("{}", text)
    else:
        logger.bind(event="drained", reset=0).info("all connections have ended")
