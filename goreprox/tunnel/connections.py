"""The registry of a process's open connections: who owns a stream at this moment.

An owner is a bridge, or an HTTP request. It is added when it takes its stream and removed once: when the stream is
over, or goes to another owner.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode

T = TypeVar("T")


class StreamOwner(Protocol):
    """Owns a stream, and the socket or request that it is joined to."""

    stream: Stream
    began_at: float
    """Seconds, by the clock of `Bridges`."""

    def abort(self, reason: str, code: EndCode) -> None:
        """Reset both now."""


class Connections(Generic[T]):
    """Members, in the order in which they were added; they may be added and removed while iterating."""

    __slots__ = ("_members",)

    def __init__(self) -> None:
        self._members: dict[T, None] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._members))

    def latest(self, most: int) -> list[T]:
        """Return those that were added last, at most so many, the last one first."""
        return list(islice(reversed(self._members), most))

    def add(self, member: T) -> None:
        """Add one that is not a member yet."""
        assert member not in self._members
        self._members[member] = None

    def remove(self, member: T) -> None:
        """Remove a member."""
        del self._members[member]
