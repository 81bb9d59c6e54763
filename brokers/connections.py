"""The TCP connections of one ROUTER: which have said hello, how much memory they take, and how to end one.

libzmq can neither end a single connection nor bound the memory that it takes. But its monitor names the descriptor of
each connection that it accepts and closes, and each message that of its connection (ZMQ_SRCFD). shutdown(2) on a
duplicate of a descriptor ends one connection: libzmq reads an end of file and closes it.

No heartbeat or full pipe of libzmq ends a connection, on purpose: libzmq stops reading a connection whose pipe is full;
if that connection is then reset, sending a heartbeat or the response to one fails an assertion and aborts the process
(`out_event` in stream_engine_base.cpp). So the ROUTER sends no heartbeats, its pipes have no bound, and these apply:

- connections that have not said hello: 1,024, or fewer where descriptors are few, of at most 32 KiB each: 32 MiB
- bytes that have arrived and were not read: 128 MiB a connection, 256 MiB together

They are checked every 50 ms while any connection has not said hello or is read slowly, else every 250 ms. What arrives
between two checks comes on top.

libzmq never closes a connection that sends after a later connection has taken over its routing id. Its descriptor is
lost until the ROUTER is closed; `stuck` counts these.
"""

import contextlib
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from brokers.carrier import Buffer, LinkCondition
from brokers.relays import DESCRIPTORS, Relayed, Relays
from brokers.tcp_info import link_condition, received_bytes

GREETING_CONNECTIONS: Final = 1024
"""So many may connect at once after an outage. Of more from one address the oldest are ended, and dial again."""
GREETING_DESCRIPTORS: Final = 8
"""Connections without a hello, and the duplicates of their descriptors, take at most an eighth of all descriptors."""
GREETING_BYTES: Final = 32 * 1024
"""A handshake with keys takes less than 1 KiB, a hello at most 16 KiB."""
BACKLOG_BYTES: Final = 128 * 1024 * 1024
"""Of one connection: four sessions that keep 32 MiB in flight."""
BACKLOGS_BYTES: Final = 256 * 1024 * 1024
STUCK_S: Final = 10.0
"""libzmq closes what was shut down within milliseconds, or never."""
UNCOUNTED_BYTES_PER_S: Final = 64
"""What a connection may send besides messages: heartbeats of earlier versions are 42 bytes every 2 s."""
CURVE_BYTES: Final = 33
"""Command name, nonce, flags and authenticator of each frame (RFC 26)."""


@dataclass(slots=True, eq=False)
class Connection:
    """One accepted connection. `socket` has a duplicate of its descriptor, which stays ours when libzmq closes it."""

    socket: socket.socket
    address: str
    since: float
    relayed: Relayed | None = None
    """What carries it, if it comes from elsewhere in this process."""
    routing_id: bytes | None = None
    """Of the peer that said hello."""
    read_bytes: int = 0
    """Bytes that arrived before the hello, and those of all messages read since, as they are on the wire."""
    is_rejected: bool = False
    """Whether its peer was told that it may not be here."""
    ended_at: float | None = None

    def end(self) -> None:
        """Shut it down; what is queued for it is lost."""
        if self.ended_at is None:
            self.ended_at = time.monotonic()
        with contextlib.suppress(OSError):  # closed already
            self.socket.shutdown(socket.SHUT_RDWR)
        if self.relayed is not None:
            self.relayed.end()

    @property
    def condition(self) -> LinkCondition | None:
        """What the kernel says of the way to the peer; None if it is unknown."""
        local = link_condition(self.socket)
        return local if self.relayed is None or local is None else self.relayed.condition(local)


class Connections:
    """The connections of one ROUTER, by descriptor and, once they have said hello, by routing id."""

    def __init__(self, port: int, *, secure: bool, greeting_s: float, relays: Relays | None = None) -> None:
        """Track the ROUTER that listens on `port`; a connection has `greeting_s` seconds to say hello.

        With `relays` it listens for theirs alone.
        """
        self._port = port
        self._relays = relays
        self._overhead = CURVE_BYTES if secure else 0
        self._greeting_s = greeting_s
        self._accepted: dict[int, Connection] = {}
        self._greeting: dict[int, Connection] = {}
        """In the order in which they came."""
        self._peers: dict[bytes, Connection] = {}

    @property
    def greeting(self) -> int:
        """How many have not said hello."""
        return len(self._greeting)

    def stuck(self, now: float) -> int:
        """Return how many connections were ended `STUCK_S` ago or earlier, and libzmq has not closed."""
        return sum(1 for each in self._accepted.values() if each.ended_at is not None and now - each.ended_at > STUCK_S)

    def accepted(self, descriptor: int, now: float) -> None:
        """Note a new connection; where there are too many, end the oldest of the address that has the most.

        Without a descriptor for a duplicate it is ended at once: untracked, it could neither greet nor be ended later.
        """
        self.closed(descriptor)
        try:
            duplicate = socket.socket(fileno=os.dup(descriptor))
        except OSError:  # no descriptors, or closed meanwhile
            self._end_untracked(descriptor)
            return
        try:
            is_at_port, there = self._is_at_port(duplicate), duplicate.getpeername()
        except OSError:
            duplicate.close()
            return
        if not is_at_port:  # closed meanwhile, and the number reused
            duplicate.close()
            return
        connection = Connection(duplicate, str(there[0]).removeprefix("::ffff:"), now)
        if self._relays is not None:
            connection.relayed = self._relays.of((connection.address, there[1]))
            if connection.relayed is None:
                connection.end()
                duplicate.close()
                return
            connection.address = connection.relayed.address
        self._accepted[descriptor] = self._greeting[descriptor] = connection
        if len(self._greeting) > _most_greeting(1 if self._relays is None else DESCRIPTORS // 2):
            [(address, _)] = Counter(each.address for each in self._greeting.values()).most_common(1)
            oldest = next(fd for fd, each in self._greeting.items() if each.address == address)
            self._greeting.pop(oldest).end()

    def _end_untracked(self, descriptor: int) -> None:
        """End a connection that libzmq may close meanwhile; at worst its number is then that of a later one here."""
        with contextlib.suppress(OSError), _borrowed(descriptor) as connection:
            if self._is_at_port(connection):
                connection.shutdown(socket.SHUT_RDWR)

    def _is_at_port(self, connection: socket.socket) -> bool:
        here = connection.getsockname()
        return len(here) >= 2 and here[1] == self._port

    def closed(self, descriptor: int) -> None:
        """Forget a connection that libzmq has closed."""
        self._greeting.pop(descriptor, None)
        connection = self._accepted.pop(descriptor, None)
        if connection is None:
            return
        connection.socket.close()
        if connection.relayed is not None:
            connection.relayed.part()
        if connection.routing_id is not None and self._peers.get(connection.routing_id) is connection:
            del self._peers[connection.routing_id]

    def greeted(self, descriptor: int, routing_id: bytes) -> bool:
        """Note a hello, and end the connection that had this routing id before. False if it is not tracked."""
        connection = self._accepted.get(descriptor)
        if connection is None:
            return False
        before = self._peers.get(routing_id)
        if before is not connection:
            if before is not None:
                before.end()
            self._greeting.pop(descriptor, None)
            connection.routing_id = routing_id
            connection.read_bytes = received_bytes(connection.socket)
            self._peers[routing_id] = connection
        return True

    def read(self, routing_id: bytes, frames: Sequence[Buffer]) -> None:
        """Count a message of a peer that has been read."""
        connection = self._peers.get(routing_id)
        if connection is None:
            return
        overhead = self._overhead
        for frame in frames:
            size = len(frame) + overhead
            connection.read_bytes += size + 2 if size < 256 else size + 9  # RFC 23: short and long frames

    def of_descriptor(self, descriptor: int) -> Connection | None:
        """Return the connection with this descriptor, if it is tracked."""
        return self._accepted.get(descriptor)

    def of_peer(self, routing_id: bytes) -> Connection | None:
        """Return the connection of a peer that has said hello, if it is still open."""
        return self._peers.get(routing_id)

    def backlogs(self) -> Iterator[tuple[bytes, int]]:
        """Yield the bytes that each peer has sent and nobody has read yet; 0 where the kernel does not tell (macOS)."""
        for routing_id, connection in self._peers.items():
            yield routing_id, max(0, received_bytes(connection.socket) - connection.read_bytes)

    def enforce(self, now: float, *, elapsed_s: float) -> list[tuple[str, str]]:
        """End the connections that exceed a bound; return their addresses and why. Linear in all connections."""
        ended: list[tuple[str, str]] = []
        for descriptor, connection in list(self._greeting.items()):
            if received_bytes(connection.socket) > GREETING_BYTES:
                ended.append((connection.address, f"it sent more than {GREETING_BYTES} bytes before its hello"))
            elif now - connection.since > self._greeting_s:
                ended.append((connection.address, f"it did not say hello within {self._greeting_s:g} s"))
            else:
                continue
            self._greeting.pop(descriptor).end()
        backlogs: list[tuple[int, Connection]] = []
        for connection in self._peers.values():
            backlog = received_bytes(connection.socket) - connection.read_bytes
            connection.read_bytes += max(0, min(backlog, int(UNCOUNTED_BYTES_PER_S * elapsed_s)))
            backlogs.append((backlog, connection))
        total = sum(backlog for backlog, _ in backlogs if backlog > 0)
        for backlog, connection in sorted(backlogs, key=lambda item: item[0], reverse=True):
            if backlog <= BACKLOG_BYTES and total <= BACKLOGS_BYTES:
                break
            total -= backlog
            connection.end()
            ended.append((connection.address, f"{backlog >> 20} MiB from it wait to be read"))
        return ended

    def close(self) -> None:
        """Close all duplicates; the connections stay open."""
        for descriptor in list(self._accepted):
            self.closed(descriptor)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Have a descriptor of somebody else as a socket, and leave it open."""
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _most_greeting(share: int) -> int:
    """Return how many connections without a hello there may be; a `share` of that where they take more."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return GREETING_CONNECTIONS // share
    return max(1, min(GREETING_CONNECTIONS, most // GREETING_DESCRIPTORS // 2) // share)
