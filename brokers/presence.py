"""Who is up at this broker, and in which epoch.

Sans-IO: knows nothing of sockets, clocks or the wire; `now` is an argument, in seconds of any steady clock.

Epochs come from one counter of the whole broker. Counting per peer would say the same to everybody else, but
the counts of departed peers would have to be kept for ever.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field

from brokers.envelope import Control
from brokers.errors import NotAdmitted
from brokers.names import PeerInfo, PeerName, Role

Body = Control | Sequence[Sized]
"""What a message carries: a control, or frames, which only their receiver understands."""

CONTROL_BYTES = 1 << 10
"""What a waiting control is reckoned at; most of it is attributes, and most of these are small."""


class Outbox:
    """Messages that wait for one peer, in order. What bounds it is its user's business; it keeps the sums."""

    __slots__ = ("_messages", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self._messages: deque[tuple[bytes, Body, int]] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def push(self, source: bytes, body: Body) -> None:
        """Add a message at the end. Frames are referenced, not copied."""
        size = sum(map(len, body)) if isinstance(body, Sequence) else CONTROL_BYTES
        self._messages.append((source, body, size))
        self.size_bytes += size

    def first(self) -> tuple[bytes, Body]:
        """Return source and body of the message that is due."""
        source, body, _ = self._messages[0]
        return source, body

    def pop(self) -> tuple[bytes, Body]:
        """Remove and return the message that is due."""
        source, body, size = self._messages.popleft()
        self.size_bytes -= size
        return source, body

    def clear(self) -> int:
        """Forget all messages and return how many they were."""
        count = len(self._messages)
        self._messages.clear()
        self.size_bytes = 0
        return count


@dataclass(slots=True, eq=False)
class Peer:
    """The broker's record of a peer. `route` is its ZeroMQ routing id, or None for a peer in this process."""

    name: PeerName
    route: bytes | None
    attributes: Mapping[str, object]
    heard_s: float
    epoch: int = 0
    up: bool = False
    """False while the peer is here but told to others as down, because it does not take its messages."""
    attempt: int = 0
    version: int = 0
    outbox: Outbox = field(default_factory=Outbox)
    id: bytes = field(init=False)
    role: Role = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.name.id
        self.role = self.name.role

    @property
    def info(self) -> PeerInfo:
        """What others are told."""
        return PeerInfo(self.name, self.epoch, self.attributes)


class Presence:
    """The peers that said hello and have not left, been lost or expired: at most `max_peers`."""

    def __init__(self, *, lease_s: float, max_peers: int) -> None:
        self.lease_s = lease_s
        self._max_peers = max_peers
        self._last_epoch = 0
        self._checked_s: float | None = None
        self._by_id: dict[bytes, Peer] = {}
        self._by_route: dict[bytes, Peer] = {}
        self.find = self._by_id.get
        """Return the peer with this id, or None. (This and `at` are on the path of every message.)"""
        self.at = self._by_route.get
        """Return the remote peer with this routing id, or None."""

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_id.values())

    def __contains__(self, peer: Peer) -> bool:
        return self._by_id.get(peer.id) is peer

    def opposite(self, role: Role) -> list[Peer]:
        """Return the peers that are up on the other side."""
        return [peer for peer in self._by_id.values() if peer.role is not role and peer.up]

    def arrive(self, peer: Peer) -> Peer:
        """Take in a peer that said hello, in a new epoch, and return its record: the old one if it has one.

        Raises:
            NotAdmitted: there are too many, or this incarnation is here already by another route. The first
                one stays: a latecomer that knows an incarnation from a roster must not be able to take its place.
        """
        known = self._by_id.get(peer.id)
        if known is not None and (known.route != peer.route or peer.route is None):
            raise NotAdmitted(f"{peer.name} is connected to this broker already")
        if known is None and len(self._by_id) >= self._max_peers:
            raise NotAdmitted(f"the broker has {self._max_peers} peers, its maximum")
        if known is None:
            known = self._by_id[peer.id] = peer
            if peer.route is not None:
                self._by_route[peer.route] = peer
        known.attributes, known.heard_s = peer.attributes, peer.heard_s
        known.attempt, known.version = peer.attempt, peer.version
        self.renew_epoch(known)
        known.up = True
        return known

    def renew_epoch(self, peer: Peer) -> None:
        """Begin a new life of the way to a peer; nothing that waited for the old one is kept."""
        self._last_epoch += 1
        peer.epoch = self._last_epoch
        peer.outbox.clear()

    def depart(self, peer: Peer) -> None:
        """Forget a peer that is here."""
        del self._by_id[peer.id]
        if peer.route is not None:
            del self._by_route[peer.route]
        peer.up = False
        peer.outbox.clear()

    def expired(self, now: float) -> list[Peer]:
        """Return the remote peers whose lease is over. Call this several times per lease.

        A long time since the last call means that the broker itself slept: what the peers said meanwhile is
        still unread, so they all get a fresh lease instead.
        """
        slept = self._checked_s is not None and now - self._checked_s > self.lease_s / 2
        self._checked_s = now
        if slept:
            for peer in self._by_route.values():
                peer.heard_s = now
        return [peer for peer in self._by_route.values() if now - peer.heard_s > self.lease_s]
