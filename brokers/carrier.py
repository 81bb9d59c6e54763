"""The interface of the fabric to its users, the same for links and for peers in the broker's process."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from brokers.peers import LinkIdentity, PeerInfo

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Timings:
    """How fast a link notices an outage and reconnects."""

    link_timeout_s: float = 6.0
    """A silent link counts as lost within this time."""
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 0.25
    """Between two attempts, so also how long a broker that is back waits for us. Four SYNs a second cost little."""
    connect_timeout_s: float = 2.0

    @property
    def lease_s(self) -> float:
        """A peer that is silent for so long counts as gone. Checked every `renew_s`, so within the link timeout."""
        return self.link_timeout_s * 2 / 3

    @property
    def renew_s(self) -> float:
        """Between two keep-alive messages."""
        return self.link_timeout_s / 3


class LinkState(enum.Enum):
    """How far a link has got with its broker."""

    DOWN = enum.auto()
    """Not connected, or in the handshake."""
    GREETING = enum.auto()
    """Connected; the broker has not responded to our Hello."""
    UP = enum.auto()


class LinkCondition(NamedTuple):
    """The sending side of a connection, by the kernel."""

    unsent_bytes: int
    """Waiting in this machine, not yet sent for the first time."""
    round_trip_s: float
    """TCP's smoothed round trip: of the network and its queues, without what waits in this machine."""


class Carrier(Protocol):
    """The connection of one process to one broker."""

    label: str
    """For people: where the broker is."""

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        """Send without blocking; False if it was dropped. Buffers must never change afterwards."""

    def link_condition(self, peer_id: bytes) -> LinkCondition | None:
        """Return the condition of the connection by which messages for a peer leave this process; None if unknown."""

    def announce(self, attributes: Mapping[str, object]) -> None:
        """Replace our attributes in the peer list."""

    async def close(self, *, linger_s: float) -> None:
        """Leave; what is queued has `linger_s` seconds to go out."""


class RemoteCarrier(Carrier, Protocol):
    """A carrier to brokers elsewhere, which reconnects by itself: what its owner and the status need of it."""

    state: LinkState

    @property
    def up(self) -> bool:
        """Whether it is connected."""

    @property
    def problem(self) -> str | None:
        """Why it is down, for people; None if it is up, or nothing is known yet."""

    @property
    def since_s(self) -> float:
        """For how long it has been up, or down."""

    @property
    def identity(self) -> LinkIdentity | None:
        """What the process that replaces this one needs to be the same to the broker, if anything."""

    @property
    def proxied(self) -> str | None:
        """What it connects through, for people, if not directly."""

    def start(self) -> None:
        """Connect, and reconnect until it is closed."""


class Receiver(Protocol):
    """What the user of a carrier implements. Called from the event loop; must not raise."""

    def carrier_up(self, carrier: Carrier) -> None:
        """The broker has welcomed us; a `peer_up` for each peer follows."""

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        """The broker is out of reach, and so is every peer over it."""

    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None:
        """A peer is up: for the first time, again (a higher epoch), or with new attributes (the same epoch)."""

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        """A peer is out of reach over this carrier."""

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        """A message of a peer. The frames are immutable and may be kept."""
