"""Whose turn it is: deficit round robin with new flows first, as in FQ-CoDel (RFC 8290, 4.1.1).

A stream that had nothing to send goes before those that have been sending, for one quantum: so a small
response never waits for a download. It knows nothing of what is sent.
"""

from collections import deque
from typing import Generic, Protocol, TypeVar


class Flow(Protocol):
    """What can be scheduled: it carries its own place and credit."""

    queued: bool
    deficit: int


F = TypeVar("F", bound=Flow)


class FairQueue(Generic[F]):
    """Flows with something to send."""

    __slots__ = ("_new", "_old")

    def __init__(self) -> None:
        """Start empty."""
        self._new: deque[F] = deque()
        self._old: deque[F] = deque()

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def add(self, flow: F) -> None:
        """Enter a flow that has something to send; one that is here already stays where it is."""
        if not flow.queued:
            flow.queued = True
            flow.deficit = 0
            self._new.append(flow)

    def turn(self, quantum: int) -> F | None:
        """Return the flow whose turn it is, with some credit in `deficit`. It must be given back by `done`."""
        while True:
            queue = self._new or self._old
            if not queue:
                return None
            flow = queue.popleft()
            if flow.deficit > 0:
                return flow
            flow.deficit += quantum
            if queue is self._new:
                return flow
            self._old.append(flow)

    def done(self, flow: F, *, more: bool) -> None:
        """End the turn: a flow with more to send goes on while it has credit, then waits behind the others."""
        if not more:
            flow.queued = False
        elif flow.deficit > 0:
            self._old.appendleft(flow)
        else:
            self._old.append(flow)

    def remove(self, flow: F) -> None:
        """Take out a flow that goes elsewhere or ends."""
        if flow.queued:
            flow.queued = False
            (self._new if flow in self._new else self._old).remove(flow)

    def clear(self) -> None:
        """Forget all flows."""
        for queue in (self._new, self._old):
            for flow in queue:
                flow.queued = False
            queue.clear()
