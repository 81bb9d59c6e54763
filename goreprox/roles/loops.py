"""Detects targets that lead back to this provider, such as the server's own port for clients.

An edge sends both addresses of each client's connection. Where they are those of one of our connections to a target,
the stream came through it, one hop further. Private addresses are not unique, so one match may be chance; a chain is
not. A loop through several replicas is detected only once a chain stays in one process.
"""

import contextlib
import socket
from typing import Final

from goreprox.endpoint import Endpoint
from goreprox.protocol.stream import Stream

HOPS: Final = 8
"""A chain of this length is a loop. With 1,000 connections to an address where clients of the edge connect, too, each
from one of 28,000 ports, chance makes such a chain once in 10^11 clients."""
_Addresses = tuple[str, str]
"""Of a connection: the near and the far one."""


class Loops:
    """The connections to targets, and the number of hops to each."""

    def __init__(self) -> None:
        self._hops: dict[_Addresses, int] = {}
        self._addresses: dict[Stream, _Addresses] = {}

    def hops(self, stream: Stream) -> int:
        """Return through how many of our connections in a row a stream came."""
        return self._hops.get((stream.client, stream.destination), 0)

    def add(self, stream: Stream, sock: socket.socket, far: tuple[str, int] | str) -> None:
        """Add the connection to `far` that is made for a stream, in place of an earlier one, until it is discarded.

        A Unix socket is not added: its connections have no addresses, and an edge listens on none.
        """
        if isinstance(far, str):
            return
        near = sock.getsockname()
        hops = self.hops(stream) + 1
        self.discard(stream)
        addresses = self._addresses[stream] = str(Endpoint(*near[:2])), str(Endpoint(*far[:2]))
        self._hops[addresses] = hops

    def found(self, stream: Stream, sock: socket.socket) -> None:
        """Add the connection that this process has inherited. How many hops led to it is counted anew."""
        with contextlib.suppress(OSError):  # it is closed, or was reset
            self.add(stream, sock, sock.getpeername())

    def discard(self, stream: Stream) -> None:
        """Remove the connection of a stream, if it has one."""
        addresses = self._addresses.pop(stream, None)
        if addresses is not None:
            self._hops.pop(addresses, None)
