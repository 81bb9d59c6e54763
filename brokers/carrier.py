"""One process's way into one broker, as its user sees it: the same whether the broker is remote or embedded.

Knows what a user is told and in which order; knows nothing of sockets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from brokers.envelope import Down, Up
from brokers.names import PeerInfo

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Timings:
    """How patient the fabric is, in seconds. Both ends of a link need about the same values.

    `link_timeout_s` is how soon a silent link is noticed, by whichever means is first: ZeroMQ's heartbeats (every
    third of it, with two thirds to answer), which notice a dead network; or leases (two thirds of it, renewed
    every sixth), which also notice a process that hangs while ZeroMQ's own thread goes on answering.
    """

    link_timeout_s: float = 6.0
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 1.0
    connect_timeout_s: float = 2.0

    @property
    def lease_s(self) -> float:
        """How long a silent process counts as alive."""
        return self.link_timeout_s * 2 / 3

    @property
    def renewal_s(self) -> float:
        """How often a lease is renewed."""
        return self.link_timeout_s / 6


class Carrier(Protocol):
    """A way into one broker: a `Link` or a `LocalPeer`."""

    @property
    def label(self) -> str:
        """What people call it: `tcp://host:9887` or `embedded`."""

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        """Send one message of 1 to 130 frames (2 MiB each, 4 MiB together at most) to a peer. Never blocks.

        The buffers must never change after: large ones are referenced until they are sent, not copied.
        Return False if the message was dropped: carrier down, peer not up here, too much waiting already.
        """

    def announce(self, attributes: Mapping[str, object]) -> None:
        """Replace our attributes; the roster tells the others.

        Raises:
            BadMessage: they are not plain values, or more than 4 KiB.
        """

    async def close(self, *, linger_s: float) -> None:
        """Say that we leave, and wait at most `linger_s` until what was sent has gone out.

        The receiver is not called any more, from the moment this is.
        """


class Receiver(Protocol):
    """The user of a carrier. Called from the event loop, never from within a call to the carrier; must not raise."""

    def carrier_up(self, carrier: Carrier) -> None:
        """Tell that the broker has taken us in. The peers follow."""

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        """Tell that the way to the broker is gone, and with it every peer over it.

        Also called for a carrier that never was up: once when its broker cannot be reached, and once for each new
        reason that the broker gives for refusing us.
        """

    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None:
        """Tell that a peer is new, or has a new epoch, or in the same epoch new attributes."""

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        """Tell that a peer is gone; the reason is one of `Reason`."""

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        """Take a message of a peer that is up. The frames are immutable and may be kept."""


class Roster:
    """What the user of a carrier has been told: whether it is up, in which epoch, and which peers are."""

    def __init__(self, carrier: Carrier, receiver: Receiver) -> None:
        self.epoch: int | None = None
        self.peers: dict[bytes, PeerInfo] = {}
        self._carrier = carrier
        self._receiver = receiver

    def enter(self, epoch: int) -> None:
        """Begin an epoch of our own with an empty roster, ending the one before."""
        if self.epoch is not None:
            self.leave("the broker dropped messages for us, which we took too slowly")
        self.epoch = epoch
        self._receiver.carrier_up(self._carrier)

    def leave(self, reason: str) -> None:
        """End our epoch, if there is one; in any case the user learns the reason."""
        self.epoch = None
        self.peers.clear()
        self._receiver.carrier_down(self._carrier, reason)

    def up(self, up: Up) -> None:
        """Take in a peer, or its new epoch or attributes."""
        info = PeerInfo(up.name, up.epoch, up.attributes)
        self.peers[up.name.id] = info
        self._receiver.peer_up(self._carrier, info)

    def down(self, down: Down) -> None:
        """Take out a peer, unless the news is of an epoch before the one we know."""
        known = self.peers.get(down.peer_id)
        if known is not None and known.epoch <= down.epoch:
            del self.peers[down.peer_id]
            self._receiver.peer_down(self._carrier, down.peer_id, down.reason)

    def message(self, source: bytes, frames: list[Buffer]) -> None:
        """Pass on a message, unless its sender is not up."""
        if source in self.peers:
            self._receiver.message(self._carrier, source, frames)
