"""Which of many descriptors are ready: epoll(7), or by its interface whatever `selectors` chooses elsewhere."""

import select
import selectors
import sys
from typing import Final

READ: Final = 0x1
WRITE: Final = 0x4
"""The values of EPOLLIN and EPOLLOUT."""


class SelectorEpoll:
    """The part of `select.epoll` that is used here, for systems without it (macOS).

    Linux could use it, too, but `selectors` takes twice as long to tell what is ready.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def fileno(self) -> int:
        """Return the descriptor, which is readable while any other is ready."""
        return self._selector.fileno()

    def register(self, fd: int, events: int) -> None:
        """Watch a descriptor."""
        self._selector.register(fd, _to_selectors(events))

    def modify(self, fd: int, events: int) -> None:
        """Watch it for other events."""
        self._selector.modify(fd, _to_selectors(events))

    def unregister(self, fd: int) -> None:
        """Stop watching it."""
        self._selector.unregister(fd)

    def close(self) -> None:
        """Close the descriptor."""
        self._selector.close()

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Return the descriptors that are ready, and for which events."""
        return [(key.fd, _from_selectors(events)) for key, events in self._selector.select(timeout_s)]


def _to_selectors(events: int) -> int:
    return (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)


def _from_selectors(events: int) -> int:
    return (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0)


if sys.platform == "linux":
    Epoll = select.epoll
else:
    Epoll = SelectorEpoll
