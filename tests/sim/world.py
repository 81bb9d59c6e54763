"""Virtual time, and simulated processes: each is an event loop that the code under test takes for asyncio's.

Nothing waits: the clock jumps from event to event. Chance comes from one seed, so a seed is one history.
"""

import asyncio
import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from goreprox.net.poller import READ, WRITE

SPIN = 100_000
"""More events than this at one instant are a loop in which no time passes."""
TRACE = 400
CLOCKS_APART_S = 1000.0


class Violation(AssertionError):
    """The cluster has broken its promise."""


class Event:
    """Something that will happen, and the handle by which it is cancelled."""

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
        """Of timers: when, by the clock of the loop, which stands still during suspend."""
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """The clock, the events to come, and a trace of those that were."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.events = 0
        self.trace: deque[str] = deque(maxlen=TRACE)
        self.running: Process | None = None
        self.on_event: Callable[[Process], None] = lambda _: None
        """Called after every event of a process, to check what must always hold."""
        self._heap: list[tuple[float, int, Event]] = []
        self._count = itertools.count()
        self._digest = hashlib.blake2b(digest_size=8)
        self._instant = 0
        """The number of the first event of this instant."""

    @property
    def digest(self) -> str:
        """A hash of the whole trace."""
        return self._digest.hexdigest()

    def note(self, what: str) -> None:
        """Append a line to the trace."""
        line = f"{self.now:10.4f} {what}"
        self.trace.append(line)
        self._digest.update(line.encode())

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Event:
        """Schedule something outside of all processes."""
        return self.push(when, Event(callback, args))

    def after(self, delay: float, callback: Callable[..., object], *args: Any) -> Event:
        return self.push(self.now + delay, Event(callback, args))

    def push(self, when: float, event: Event) -> Event:
        heapq.heappush(self._heap, (when if when > self.now else self.now, next(self._count), event))
        return event

    def forget(self, process: "Process") -> None:
        """Cancel all events of a process."""
        for _, _, event in self._heap:
            if event.process is process:
                event.cancel()

    def run_until(self, end: float) -> None:
        """Let everything happen that is due until `end`."""
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
    """What a descriptor refers to."""

    @property
    def readable(self) -> bool: ...

    @property
    def writable(self) -> bool: ...


class Process:
    """A simulated process from start to death, and the loop on which its code runs."""

    def __init__(self, world: World, slot: str) -> None:
        self.world = world
        self.slot = slot
        """Its place in the cluster, such as `e0`, which its successor takes over."""
        self.died_at: float | None = None
        self.stopped_at = self.resumed_at = world.now
        self.state = "running"
        """`running`, `frozen` (the whole process), or `hung` (its loop; the threads of libzmq go on)."""
        self.files: dict[int, Any] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self._clock_offset = CLOCKS_APART_S * world.random.random()
        self._asleep_s = 0.0
        self._held: list[Event] = []
        self.epoll: Epoll | None = None
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
        """Since when its code has not run; None while it runs."""
        return None if self.running else self.stopped_at if self.died_at is None else self.died_at

    # Life.

    def happen(self, event: Event) -> None:
        """Run an event of this process, now or once it runs again."""
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
        """Become `frozen` or `hung`."""
        self.state = state
        self.stopped_at = self.world.now

    def resume(self, *, suspended_s: float = 0.0) -> None:
        """Run again; the loop's clock stood still for `suspended_s`."""
        if self.died_at is not None:
            return
        self._asleep_s += suspended_s
        self.state = "running"
        self.resumed_at = self.world.now
        held, self._held = self._held, []
        for event in held:
            self.world.push(self.world.now, event)

    def kill(self) -> None:
        """Die at once; the kernel closes its descriptors."""
        self.died_at = self.world.now
        self._end_tasks()
        for file in list(self.files.values()):
            file.close()

    def _end_tasks(self) -> None:
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                task.get_coro().close()

    def execve(self, kept: set[int]) -> None:
        """Forget all code and what it waits for; the kernel closes all descriptors but those that are `kept`."""
        self._end_tasks()
        self.world.forget(self)
        self.tasks, self._held = [], []
        self.epoll, self._polling = None, False
        for fd, file in list(self.files.items()):
            if isinstance(file, Epoll):
                self.release(fd)
            elif fd not in kept:
                file.close()

    # The methods of asyncio's loops that are used.

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

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: object = None) -> Event:
        return self.call_later(when - self.time(), callback, *args)

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
        """Return the lowest free descriptor for a file, as the kernel does."""
        if self._free_fds:
            fd = heapq.heappop(self._free_fds)
        else:
            fd, self._next_fd = self._next_fd, self._next_fd + 1
        self.files[fd] = file
        return fd

    def release(self, fd: int) -> None:
        if self.alive and self.epoll is not None and fd in self.epoll.watched:
            raise Violation(f"{self.slot}: descriptor {fd} was closed while the loop watches it")
        del self.files[fd]
        heapq.heappush(self._free_fds, fd)

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Call `callback` when `fd` is ready: an epoll, since the code under test adds nothing else."""
        self.epoll = self.files[fd]
        self._serve = callback

    def is_closed(self) -> bool:
        return False

    def remove_reader(self, fd: int) -> None:
        """Forget the epoll."""
        self.epoll = None

    def poke(self, fd: int) -> None:
        """Have the epoll look at a descriptor in the next turn of the loop."""
        if self.epoll is not None and fd in self.epoll.watched:
            self.epoll.poked[fd] = None
            self._poll_soon()

    def _poll_soon(self) -> None:
        if not self._polling:
            self._polling = True
            self.call_soon(self._poll)

    def _poll(self) -> None:
        self._polling = False
        assert self.epoll is not None
        if self.epoll.look():
            self._serve()
        if self.epoll.look():  # level-triggered
            self._poll_soon()


class Epoll:
    """As select.epoll."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._fd = process.allocate(self)
        self.watched: dict[int, int] = {}
        """Events by descriptor."""
        self.poked: dict[int, None] = {}
        """Descriptors that may be ready, in the order in which that happened."""
        self._ready: list[tuple[int, int]] = []

    readable = writable = False

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Do nothing: only the end of the process closes it."""

    def register(self, fd: int, events: int) -> None:
        if fd in self.watched:
            raise FileExistsError(fd)
        self.modify(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self.watched[fd] = events
        self._process.poke(fd)

    def unregister(self, fd: int) -> None:
        del self.watched[fd]
        self.poked.pop(fd, None)

    def look(self) -> bool:
        """Find the ready ones among the poked descriptors, and keep only these; return whether there are any."""
        self._ready = []
        for fd in self.poked:
            wanted, file = self.watched[fd], self._process.files[fd]
            readable = READ if wanted & READ and file.readable else 0
            events = readable | WRITE if wanted & WRITE and file.writable else readable
            if events:
                self._ready.append((fd, events))
        self.poked = {fd: None for fd, _ in self._ready}
        return bool(self._ready)

    def poll(self, _: float) -> list[tuple[int, int]]:
        return self._ready


def _raise(task: "asyncio.Task[None]") -> None:
    """Fail the run if a task has failed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
