"""Peers and their names: for people (`name`), in messages (`id`), and for ZeroMQ (the routing id)."""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from brokers.errors import BadName

INCARNATION_BYTES: Final = 16
NONCE_BYTES: Final = 16
ID_BYTES: Final = 1 + INCARNATION_BYTES
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Role(enum.Enum):
    """On which side of the broker a peer is; the value is the first byte of its ids."""

    EDGE = b"e"
    PROVIDER = b"p"

    @property
    def other(self) -> "Role":
        """The role that peers of this one talk to."""
        return Role.PROVIDER if self is Role.EDGE else Role.EDGE

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class PeerName:
    """One process. Several of one `name` are replicas; each has an incarnation of its own (16 random bytes).

    Raises:
        BadName: the name is not 1 to 64 of `A-Za-z0-9._-`, or the incarnation not 16 bytes.
    """

    role: Role
    name: str
    incarnation: bytes
    id: bytes = field(init=False, repr=False, compare=False)
    """The address of this peer in messages, 17 bytes: its role and its incarnation."""

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise BadName(f"name {self.name[:80]!r}, expected 1 to 64 of A-Z a-z 0-9 . _ -")
        if len(self.incarnation) != INCARNATION_BYTES:
            raise BadName(f"incarnation of {len(self.incarnation)} bytes, expected {INCARNATION_BYTES}")
        object.__setattr__(self, "id", self.role.value + self.incarnation)

    def routing_id(self, nonce: bytes) -> bytes:
        """Return the ZeroMQ routing id: at most 97 of 255 bytes, never beginning with 0 (ZMQ_ROUTING_ID).

        The nonce (16 bytes) is secret: ROUTER_HANDOVER lets anyone who knows a routing id take over its connection,
        before any check of ours. The peer list has only `id`.
        """
        return self.id + nonce + self.name.encode()

    @classmethod
    def from_routing_id(cls, routing_id: bytes) -> "PeerName":
        """Return whose routing id this is.

        Raises:
            BadName: it has no valid role, incarnation or name.
        """
        try:
            role = Role(routing_id[:1])
            name = routing_id[ID_BYTES + NONCE_BYTES :].decode("ascii")
        except ValueError as exc:
            raise BadName("malformed routing id") from exc
        return cls(role, name, routing_id[1:ID_BYTES])


class LinkIdentity(NamedTuple):
    """What a broker knows a link by, beside the name of its peer."""

    nonce: bytes
    """Of the routing id, secret. A broker refuses a peer under another one while it takes the old one for alive."""
    attempt: int
    """Of the latest Hello; they count up."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """An entry of the peer list."""

    name: PeerName
    epoch: int
    """Grows with each hello at the broker: with a higher one, messages to or from this peer may have been lost."""
    attributes: Mapping[str, object]
    address: str | None = None
    """Of the peer's connection, as text; known in the broker's own process only."""
