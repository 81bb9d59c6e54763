"""What users of the fabric see, whichever way they reach a broker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from brokers.peers import PeerInfo

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Timings:
    """How fast a link notices and repairs."""

    link_timeout_s: float = 6.0
    """A silent link is noticed within this."""
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 0.25
    """Between two attempts: what a listener that is back waits for us. Four SYNs a second cost nobody anything."""
    connect_timeout_s: float = 2.0

    @property
    def lease_s(self) -> float:
        """A peer whose loop is silent for so long counts as gone; looked at every `renew_s`, so in the link timeout."""
        return self.link_timeout_s * 2 / 3

    @property
    def renew_s(self) -> float:
        """Between two signs of life."""
        return self.link_timeout_s / 3


class Carrier(Protocol):
    """One process's way into one broker."""

    label: str
    """For people: where the broker is."""

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        """Send without blocking; False if it was dropped. Buffers must never change afterwards."""

    def announce(self, attributes: Mapping[str, object]) -> None:
        """Replace what the roster says of us."""

    async def close(self, *, linger_s: float) -> None:
        """Leave, waiting at most `linger_s` for what is queued."""


class Receiver(Protocol):
    """What the user of a carrier implements. Called from the event loop; must not raise."""

    def carrier_up(self, carrier: Carrier) -> None:
        """The broker answered."""

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        """The broker is out of reach, and with it every peer over it."""

    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None:
        """A peer is there: for the first time, again (a higher epoch), or with new attributes (the same epoch)."""

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        """A peer is out of reach."""

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        """A message. The frames are immutable and may be kept."""
