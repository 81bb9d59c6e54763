"""Recognises targets that lead back here, such as the server's own port: clients are our own connections then.

The edge tells of each client both ends of its connection. Where these are the two ends of one of ours, the stream comes
from it, one hop further. Machines may share private addresses, so one match may be chance; a chain of them is not.
"""

from typing import Final

from goreprox.endpoint import Endpoint
from goreprox.protocol.stream import Stream

HOPS: Final = 8
"""So many in a row are a loop. With 1,000 connections to an address that clients of the edge come to, too, from one of
28,000 ports each, chance makes them once in 10^11 clients."""
_Ends = tuple[str, str]


class Loops:
    """Knows the two ends of each connection to a target, and how many hops it has come."""

    def __init__(self) -> None:
        self._hops: dict[_Ends, int] = {}
        self._ends: dict[Stream, _Ends] = {}

    def hops(self, stream: Stream) -> int:
        """Return how many of our connections in a row a stream has come by."""
        return self._hops.get((stream.client, stream.destination), 0)

    def add(self, stream: Stream, near: tuple[str, int], far: tuple[str, int]) -> None:
        """Note the connection that is made for a stream, in place of an earlier one; to be discarded."""
        hops = self.hops(stream) + 1
        self.discard(stream)
        ends = self._ends[stream] = str(Endpoint(*near)), str(Endpoint(*far))
        self._hops[ends] = hops

    def discard(self, stream: Stream) -> None:
        """Forget the connection of a stream."""
        ends = self._ends.pop(stream, None)
        if ends is not None:
            self._hops.pop(ends, None)
