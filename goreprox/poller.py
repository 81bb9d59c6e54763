"""Readiness of all sockets of a process: asyncio watches one descriptor, and one callback serves all that are ready.

What asyncio does for each socket of its own (a handle, a context, an exception where no reader was before) costs as
much as a read; and only who serves them all knows when the last one is served.
"""

import asyncio
import selectors
from collections.abc import Callable

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Poller:
    """Level-triggered: whoever does not read or write is called again."""

    def __init__(self, batch: Callable[[Callable[[], None]], None]) -> None:
        """Belong to the running loop. Everybody who is ready is served inside one call of `batch`."""
        self._loop = asyncio.get_running_loop()
        self._batch = batch
        self._selector = selectors.DefaultSelector()
        self._loop.add_reader(self._selector.fileno(), self._dispatch)

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready(events)` whenever `fd`, not watched so far, is ready for `events`: READ, WRITE or both."""
        self._selector.register(fd, events, ready)

    def change(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Watch `fd` for other events."""
        self._selector.modify(fd, events, ready)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer; to be done before it is closed. A call that is due in this turn still comes."""
        self._selector.unregister(fd)

    def _dispatch(self) -> None:
        self._batch(self._serve)

    def _serve(self) -> None:
        for key, events in self._selector.select(0):
            try:
                key.data(events)
            except Exception as exc:  # noqa: BLE001 -- a fault of ours must not keep the others from being served
                self._loop.call_exception_handler({"message": f"serving {key.data}", "exception": exc})
