"""Virtual time, one seed, and processes: each an event loop that real code takes for asyncio's.

Knows nothing of sockets' contents, brokers or streams. Nothing here waits: the world jumps from event to event.
"""

import asyncio
import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from goreprox.net.poller import READ, WRITE

SPIN = 100_000
"""Events at one instant: more is a loop that goes round without time passing."""
TRACE = 400
CLOCKS_APART_S = 1000.0


class Violation(AssertionError):
    """The cluster did what it must never do."""


class Event:
    """Something that will happen; what a loop returns as a handle."""

    __slots__ = ("args", "callback", "cancelled", "loop_time", "process")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        process: "Process | None" = None,
        loop_time: float | None = None,
    ) -> None:
        self.callback = callback
        self.args = args
        self.process = process
        self.loop_time = loop_time
        """Of timers: when, by the clock of the loop, which stands still while the machine is suspended."""
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """The clock, what is to come, and what has been."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.events = 0
        self.trace: deque[str] = deque(maxlen=TRACE)
        self.running: Process | None = None
        self.on_event: Callable[[Process], None] = lambda _: None
        """Called after every event of a process: what must hold always is checked here."""
        self._heap: list[tuple[float, int, Event]] = []
        self._count = itertools.count()
        self._digest = hashlib.blake2b(digest_size=8)
        self._instant = 0
        """How many events there had been at the first one of this instant."""

    @property
    def digest(self) -> str:
        """A hash of all that was noted, with its times."""
        return self._digest.hexdigest()

    def note(self, what: str) -> None:
        """Put one line into the trace."""
        line = f"{self.now:10.4f} {what}"
        self.trace.append(line)
        self._digest.update(line.encode())

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Event:
        """Let something happen in the world outside of processes."""
        return self.push(when, Event(callback, args))

    def after(self, delay: float, callback: Callable[..., object], *args: Any) -> Event:
        return self.push(self.now + delay, Event(callback, args))

    def push(self, when: float, event: Event) -> Event:
        heapq.heappush(self._heap, (when if when > self.now else self.now, next(self._count), event))
        return event

    def run_until(self, end: float) -> None:
        """Go on until `end`."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            when, _, event = pop(heap)
            if event.cancelled:
                continue
            self.events += 1
            if when > self.now:
                self.now = when
                self._instant = self.events
            elif self.events - self._instant > SPIN:
                raise Violation(f"{SPIN} events at one instant: {event.callback}")
            if event.process is None:
                event.callback(*event.args)
            else:
                event.process.happen(event)
        self.now = max(self.now, end)


class File(Protocol):
    """What a descriptor stands for."""

    @property
    def readable(self) -> bool: ...

    @property
    def writable(self) -> bool: ...


class Process:
    """One life of a simulated process, and the loop on which its code runs."""

    def __init__(self, world: World, slot: str) -> None:
        self.world = world
        self.slot = slot
        """Its place in the cluster, which a successor takes over."""
        self.died_at: float | None = None
        self.stopped_at = self.resumed_at = world.now
        self.state = "running"
        """Or `frozen` (the whole process), or `hung` (its loop; libzmq's threads go on)."""
        self.files: dict[int, Any] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self._clock_offset = CLOCKS_APART_S * world.random.random()
        self._asleep_s = 0.0
        self._held: list[Event] = []
        self.selector: Selector | None = None
        self._polling = False
        self._free_fds: list[int] = []
        self._next_fd = 3

    @property
    def alive(self) -> bool:
        return self.died_at is None

    @property
    def running(self) -> bool:
        return self.died_at is None and self.state == "running"

    @property
    def silent_since(self) -> float | None:
        """Since when its code does nothing, if so."""
        return None if self.running else self.stopped_at if self.died_at is None else self.died_at

    # Life.

    def happen(self, event: Event) -> None:
        """Run an event of ours: now, or once we go on."""
        if self.died_at is not None:
            return
        if self.state != "running":
            self._held.append(event)
        elif event.loop_time is not None and event.loop_time > self.time() + 1e-9:
            self.world.push(self.world.now + event.loop_time - self.time(), event)
        else:
            self.run(event.callback, *event.args)

    def run(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call something as code of this process."""
        before, self.world.running = self.world.running, self
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            result = callback(*args)
        finally:
            self.world.running = before
            asyncio._set_running_loop(before)  # type: ignore[arg-type]
        if before is None:
            self.world.on_event(self)
        return result

    def stop(self, state: str) -> None:
        """Freeze, or hang."""
        self.state = state
        self.stopped_at = self.world.now

    def resume(self, *, suspended_s: float = 0.0) -> None:
        """Go on; after a suspend the loop's clock knows nothing of the time between."""
        if self.died_at is not None:
            return
        self._asleep_s += suspended_s
        self.state = "running"
        self.resumed_at = self.world.now
        held, self._held = self._held, []
        for event in held:
            self.world.push(self.world.now, event)

    def kill(self) -> None:
        """End without a word: the kernel closes what it had."""
        self.died_at = self.world.now
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                task.get_coro().close()
        for file in list(self.files.values()):
            file.close()

    # What asyncio offers, as far as it is used.

    def time(self) -> float:
        """The monotonic clock, which stands still while the machine is suspended."""
        return self.world.now - self._asleep_s + self._clock_offset

    def boot_time(self) -> float:
        """The clock that counts suspend."""
        return self.world.now + self._clock_offset

    def call_soon(self, callback: Callable[..., object], *args: Any, context: object = None) -> Event:
        return self.world.push(self.world.now, Event(callback, args, self))

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: object = None) -> Event:
        return self.world.push(self.world.now + delay, Event(callback, args, self, self.time() + delay))

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(self, work: Coroutine[Any, Any, None], *, name: str | None = None) -> "asyncio.Task[None]":
        task = asyncio.Task(work, loop=self, name=name)  # type: ignore[arg-type]
        task.add_done_callback(_raise)
        self.tasks = [task, *(other for other in self.tasks if not other.done())]
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise Violation(f"{self.slot}: {context.get('message')}") from context.get("exception")

    # Descriptors.

    def allocate(self, file: File) -> int:
        """Give a file the least free descriptor, as the kernel does."""
        if self._free_fds:
            fd = heapq.heappop(self._free_fds)
        else:
            fd, self._next_fd = self._next_fd, self._next_fd + 1
        self.files[fd] = file
        return fd

    def release(self, fd: int) -> None:
        if self.alive and self.selector is not None and fd in self.selector.keys:
            raise Violation(f"{self.slot}: descriptor {fd} was closed while the loop watches it")
        del self.files[fd]
        heapq.heappush(self._free_fds, fd)

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Call `callback` when the selector `fd`, the only thing that the code under test adds, is ready."""
        self.selector = self.files[fd]
        self._serve = callback

    def poke(self, fd: int) -> None:
        """Let the selector look at a descriptor in the next turn."""
        if self.selector is not None and fd in self.selector.keys:
            self.selector.poked[fd] = None
            self._poll_soon()

    def _poll_soon(self) -> None:
        if not self._polling:
            self._polling = True
            self.call_soon(self._poll)

    def _poll(self) -> None:
        self._polling = False
        assert self.selector is not None
        if self.selector.look():
            self._serve()
        if self.selector.look():  # level-triggered
            self._poll_soon()


class Key(NamedTuple):
    """What is watched, as selectors.SelectorKey."""

    fd: int
    events: int
    data: Any


class Selector:
    """selectors.DefaultSelector, as a process sees it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._fd = process.allocate(self)
        self.keys: dict[int, Key] = {}
        self.poked: dict[int, None] = {}
        """Descriptors that may be ready, in the order of their events."""
        self._ready: list[tuple[Key, int]] = []

    readable = writable = False

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """At the end of its process."""

    def register(self, fd: int, events: int, data: object) -> None:
        if fd in self.keys:
            raise KeyError(fd)
        self.modify(fd, events, data)

    def modify(self, fd: int, events: int, data: object) -> None:
        self.keys[fd] = Key(fd, events, data)
        self._process.poke(fd)

    def unregister(self, fd: int) -> None:
        del self.keys[fd]
        self.poked.pop(fd, None)

    def look(self) -> bool:
        """Find out which descriptors are ready, and forget those that are not; return whether one is."""
        self._ready = []
        for fd in self.poked:
            key, file = self.keys[fd], self._process.files[fd]
            readable = READ if key.events & READ and file.readable else 0
            events = readable | WRITE if key.events & WRITE and file.writable else readable
            if events:
                self._ready.append((key, events))
        self.poked = {key.fd: None for key, _ in self._ready}
        return bool(self._ready)

    def select(self, _: float) -> list[tuple[Key, int]]:
        return self._ready


def _raise(task: "asyncio.Task[None]") -> None:
    """A task that fails is a failure of the run."""
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
