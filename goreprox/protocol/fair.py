"""Whose turn it is: fair between clients, then between the streams of each; streams that had nothing to send go first.

Deficit round robin with new flows first, as in FQ-CoDel (RFC 8290, 4.1.1), so that a small response never waits for a
download. There new flows go first without a bound, and enough of them starve the others. Here they do so within their
share: when `n` wait for another turn and `k` for their first one, those may send `k / n` bytes for each byte of the
others. So each gets its part, `1 / (n + k)`, whatever comes and goes, and waits for one round of turns at most.
"""

from collections import deque
from typing import Any, Generic, Protocol, TypeVar

from goreprox.endpoint import Endpoint, client_network, ip_of

Place = deque[Any]
"""The queue that an item is in; queues hold streams or clients, and only take the item out by it."""


class Item(Protocol):
    """What takes turns: it carries its own place and credit."""

    place: Place | None
    deficit: int


class Flow(Item, Protocol):
    """What can be scheduled."""

    client_key: str
    """What counts as one client."""


T = TypeVar("T", bound=Item)
F = TypeVar("F", bound=Flow)


def client_key(client: str) -> str:
    """Return what counts as one client of `ADDRESS:PORT`; text with another address counts as a client of its own."""
    address = client.rpartition(":")[0]
    if address and not address.startswith("["):
        return address  # IPv4, unless the peer says anything; parsing takes a fifth of what a short stream costs
    endpoint = Endpoint.parse(client)
    return client if endpoint is None else client_network(ip_of(endpoint.host))


class Turns(Generic[T]):
    """Items that share alike."""

    __slots__ = ("_credit", "_first", "_quantum", "new", "old")

    def __init__(self) -> None:
        """Start empty."""
        self.new: deque[T] = deque()
        """Items that wait for their first turn."""
        self.old: deque[T] = deque()
        """Items that wait for another one."""
        self._credit = 0.0
        """Bytes that new items may send before the next turn of an old one; a turn may begin while there are any.
        No more are saved up than one turn takes, or than were earned at once."""
        self._first = False
        """Whether the present turn is the first one of its item."""
        self._quantum = 0

    def add(self, item: T) -> None:
        """Enter an item that has something new to send, or bring forward one that waits for another turn."""
        if item.place is not self.new:
            if item.place is not None:
                self.old.remove(item)
            item.deficit = 0
            item.place = self.new
            self.new.append(item)

    def turn(self, quantum: int) -> T | None:
        """Return the item whose turn it is, about `quantum` bytes of it; `done` must follow before anything else."""
        self._quantum = quantum
        self._first = bool(self.new) and (self._credit > 0 or not self.old)
        queue = self.new if self._first else self.old
        while queue:
            item = queue[0]
            if item.deficit <= 0:
                item.deficit += quantum
            if item.deficit > 0:
                return item
            queue.rotate(-1)
        return None

    def done(self, item: T, sent: int, *, more: bool) -> None:
        """End the turn: an item with more to send continues while it has credit, then waits behind the others."""
        item.deficit -= sent
        old = self.old
        if self._first:
            self.new.popleft()
            if old:
                self._credit -= sent
            else:  # an item that waits now, or comes next, may have its first turn before this one has another
                self._credit = max(self._credit, self._quantum * (len(self.new) or 1))
        else:
            earned = sent * (len(self.new) or 1) / len(old)
            self._credit = min(self._credit + earned, max(earned, self._quantum))
            old.popleft()
        if not more:
            item.place = None
            return
        item.place = old
        if item.deficit > 0:
            old.appendleft(item)
        else:
            old.append(item)

    def remove(self, item: T) -> None:
        """Take out an item that is here."""
        assert item.place is not None
        item.place.remove(item)
        item.place = None

    def clear(self) -> list[T]:
        """Take out all items, and return them."""
        items = [*self.new, *self.old]
        for item in items:
            item.place = None
        self.new.clear()
        self.old.clear()
        return items


class _Client(Turns[F]):
    """The flows of one client, which takes turns itself."""

    __slots__ = ("deficit", "place")

    def __init__(self) -> None:
        super().__init__()
        self.place: Place | None = None
        self.deficit = 0


class FairQueue(Generic[F]):
    """Flows with something to send."""

    __slots__ = ("_clients", "_served", "_size", "_turns")

    def __init__(self) -> None:
        """Start empty."""
        self._clients: dict[str, _Client[F]] = {}
        self._turns: Turns[_Client[F]] = Turns()
        self._served: _Client[F] | None = None
        """Whose turn it is."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, flow: F) -> None:
        """Enter a flow that has something to send; one that is here already stays where it is."""
        if flow.place is None:
            client = self._clients.get(flow.client_key)
            if client is None:
                client = self._clients[flow.client_key] = _Client()
            client.add(flow)
            self._turns.add(client)
            self._size += 1

    def turn(self, quantum: int) -> F | None:
        """Return the flow whose turn it is, about `quantum` bytes of it; `done` must follow before anything else."""
        self._served = client = self._turns.turn(quantum)
        return None if client is None else client.turn(quantum)

    def done(self, flow: F, sent: int, *, more: bool) -> None:
        """End the turn of a flow that has sent so many bytes, and leaves unless it has more."""
        client = self._served
        assert client is not None
        client.done(flow, sent, more=more)
        if not more:
            self._size -= 1
        if client.new or client.old:
            self._turns.done(client, sent, more=True)
        else:
            self._turns.done(client, sent, more=False)
            del self._clients[flow.client_key]

    def remove(self, flow: F) -> None:
        """Take out a flow that goes elsewhere or ends."""
        if flow.place is not None:
            client = self._clients[flow.client_key]
            client.remove(flow)
            self._size -= 1
            if not (client.new or client.old):
                self._turns.remove(client)
                del self._clients[flow.client_key]

    def clear(self) -> None:
        """Forget all flows."""
        for client in self._turns.clear():
            client.clear()
        self._clients.clear()
        self._size = 0
