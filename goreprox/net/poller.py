"""The readiness of all sockets of a process: asyncio watches one descriptor, one callback serves all that are ready.

What asyncio does for each socket (a handle, a context, an exception where no reader was before) costs as much as a
read, and it does not tell when the last one of a turn has been served.
"""

import asyncio
from collections.abc import Callable

from goreprox.net.epoll import READ, WRITE, Epoll

__all__ = ["READ", "WRITE", "Poller"]
Ready = Callable[[int], None]


class Poller:
    """Level-triggered: a callback that does not read or write is called again."""

    def __init__(self, batch: Callable[[Callable[[], None]], None]) -> None:
        """Belong to the running loop. All callbacks of a turn run inside one call of `batch`."""
        self._loop = asyncio.get_running_loop()
        self._batch = batch
        self._epoll = Epoll()
        self._watched: dict[int, tuple[int, Ready]] = {}
        """The events of each descriptor, and what to call."""
        self._holding: set[int] = set()
        """Descriptors with data to read that the kernel knows nothing of, as it is decrypted already."""
        self._awaited: set[int] = set()
        """Those of them that are watched for READ."""
        self._due: asyncio.Handle | None = None
        self._loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        """Call `ready(events)` whenever `fd` is ready for `events`, READ, WRITE or both; it must not be watched yet."""
        self._epoll.register(fd, events)
        self._watched[fd] = events, ready
        if fd in self._holding:
            self._await(fd, events)

    def change(self, fd: int, before: int, events: int, ready: Ready) -> None:
        """Watch `fd`, so far watched for the events `before`, for `events` instead; 0 is none."""
        if not events:
            if before:
                self.forget(fd)
        elif not before:
            self.watch(fd, events, ready)
        elif before != events:
            self._epoll.modify(fd, events)
            self._watched[fd] = events, ready
            if fd in self._holding:
                self._await(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, before it is closed. A call that is due in this turn is still made."""
        self._epoll.unregister(fd)
        del self._watched[fd]
        self._awaited.discard(fd)

    def hold(self, fd: int, *, holds: bool) -> None:
        """Treat `fd` as readable, whatever the kernel says, or no longer; the latter before it is closed, too."""
        if holds:
            self._holding.add(fd)
            watched = self._watched.get(fd)
            self._await(fd, 0 if watched is None else watched[0])
        else:
            self._holding.discard(fd)
            self._awaited.discard(fd)

    def close(self) -> None:
        """Watch nothing any more; the descriptors stay open. The loop may be over."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _await(self, fd: int, events: int) -> None:
        if events & READ:
            self._awaited.add(fd)
            self._dispatch_soon()
        else:
            self._awaited.discard(fd)

    def _dispatch_soon(self) -> None:
        if self._due is None:
            self._due = self._loop.call_soon(self._dispatch_due)

    def _dispatch_due(self) -> None:
        self._due = None
        self._dispatch()

    def _dispatch(self) -> None:
        self._batch(self._serve)

    def _serve(self) -> None:
        watched = self._watched
        due = [(*watched[fd], events) for fd, events in self._epoll.poll(0)]
        due += [(*watched[fd], READ) for fd in self._awaited]
        for wanted, ready, events in due:
            try:
                # A failed or closed connection (EPOLLERR, EPOLLHUP) is ready for whatever is wanted of it.
                ready(wanted & events if events & ~(READ | WRITE) == 0 else wanted)
            except Exception as exc:  # noqa: BLE001 -- a bug in one callback must not stop the others
                self._loop.call_exception_handler({"message": f"serving {ready}", "exception": exc})
        if self._awaited:
            self._dispatch_soon()
