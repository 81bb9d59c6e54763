"""Which peers are there, by their signs of life: the peer list that a broker would tell. Sans-IO: `now` is an argument.

A peer is up from its first `here`, for as long as it repeats that within a lease. What it may offer or open are the
claims that were heard of it within a lease; the server lets through only those that its key allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from brokers.cbor import decode_cbor
from brokers.envelope import MAX_ATTRIBUTES, MAX_DEPTH
from brokers.errors import BadMessage
from brokers.nats.subjects import BYE, HERE, SignOfLife, Station
from brokers.peers import PeerInfo, PeerName
from brokers.presence import Presence

MAX_PEERS: Final = 8192
"""With 4 KiB of attributes and 1 KiB of ours each: 40 MiB."""
MAX_OF_NAME: Final = 1024
"""Peers of one name, as replicas: so many of one key leave room for others."""
MAX_CLAIMS: Final = 512
"""Claims of a peer that are remembered; a key has 256 services and 32 grants at most."""


class Policy(Protocol):
    """What claims mean: the fabric's users know. Neither may raise."""

    def claims(self, attributes: Mapping[str, object], allowed: frozenset[str] | None) -> list[str] | str:
        """Return the claims to make with attributes of ours, or why they may not be announced.

        `allowed` are those that our key has; None: there are no keys.
        """

    def certified(
        self, name: PeerName, key: str, attributes: Mapping[str, object], claims: frozenset[str]
    ) -> Mapping[str, object] | None:
        """Return a peer's attributes as they count; None if the claims that were heard of it do not allow them."""


@dataclass(slots=True)
class _Peer:
    station: Station
    info: PeerInfo | None = None
    """Once it is up."""
    claims: dict[str, float] = field(default_factory=dict)
    """When each was heard last."""
    was_up: bool = False
    """Whether an earlier connection of it was up when this one took its place, so that it is still taken for up."""


class Up(NamedTuple):
    """A peer is up, is so again, or has other attributes (`Receiver.peer_up`)."""

    info: PeerInfo
    asks: bool
    """Whether it wants to know who is there, now."""


class Down(NamedTuple):
    """A peer is down."""

    peer_id: bytes
    reason: str


class Roster:
    """The peers of the other role, over one connection of ours after the other."""

    def __init__(self, lease_s: float, policy: Policy) -> None:
        """Grant leases of `lease_s` seconds; `policy` knows what claims allow."""
        self._lease_s = lease_s
        self._policy = policy
        self._presence = Presence(lease_s)
        self._peers: dict[bytes, _Peer] = {}
        self._by_place: dict[str, bytes] = {}
        self._of_name: dict[str, int] = {}

    def heard(self, subject: str, payload: bytes, now: float) -> Up | Down | None:
        """Take note of a sign of life.

        Raises:
            BadMessage: it is malformed.
        """
        sign = SignOfLife.parse(subject)
        peer = self._peer(sign.station, now)
        if peer is None:
            return None
        if sign.claim == BYE:
            return self._leave(sign.station.name.id, "left")
        if sign.claim != HERE:
            if sign.claim in peer.claims or len(peer.claims) < MAX_CLAIMS:
                peer.claims[sign.claim] = now
            return None
        asks, attributes = _parse(payload)
        return self._here(peer, asks=asks, attributes=attributes, now=now)

    def _here(self, peer: _Peer, *, asks: bool, attributes: Mapping[str, object], now: float) -> Up | Down | None:
        station = peer.station
        peer.claims = {claim: heard for claim, heard in peer.claims.items() if now - heard <= self._lease_s}
        told = self._policy.certified(station.name, station.key, attributes, frozenset(peer.claims))
        if told is None:
            return self._leave(station.name.id, "its key does not allow what it announces")
        if peer.info is None:
            epoch = self._presence.enter(station.name.id, now)
        else:
            epoch = peer.info.epoch
            self._presence.renew(station.name.id, now)
        peer.info = PeerInfo(station.name, epoch, told)
        return Up(peer.info, asks)

    def _peer(self, station: Station, now: float) -> _Peer | None:
        """Return the peer at a station; None if the station is not its present one, or there is no room for it."""
        peer_id = station.name.id
        peer, was_up = self._peers.get(peer_id), False
        if peer is not None:
            if peer.station == station:
                return peer
            was_up = peer.info is not None or peer.was_up
            known = peer.station
            if (known.name, known.key) != (station.name, station.key) or station.number < known.number:
                return None  # another key has taken this incarnation's number, or it is an earlier connection
            self._forget(peer_id)
        name = station.name.name
        if len(self._peers) >= MAX_PEERS or self._of_name.get(name, 0) >= MAX_OF_NAME:
            return None
        peer = self._peers[peer_id] = _Peer(station, was_up=was_up)
        self._by_place[station.place] = peer_id
        self._of_name[name] = self._of_name.get(name, 0) + 1
        self._presence.renew(peer_id, now)
        return peer

    def at(self, place: str) -> bytes | None:
        """Return the id of the peer that is up at a place."""
        peer_id = self._by_place.get(place)
        return None if peer_id is None or self._peers[peer_id].info is None else peer_id

    def place_of(self, peer_id: bytes) -> str | None:
        """Return where a peer is that is up."""
        peer = self._peers.get(peer_id)
        return None if peer is None or peer.info is None else peer.station.place

    def nobody_at(self, place: str) -> Down | None:
        """Take note that nobody has subscribed to the messages for a place."""
        peer_id = self._by_place.get(place)
        return None if peer_id is None else self._leave(peer_id, "nobody receives its messages")

    def named(self, role: str, name: str) -> list[bytes]:
        """Return the ids of all peers of a role and a name, as tokens of subjects."""
        beginning = f"{role}.{name}."
        return [peer_id for place, peer_id in self._by_place.items() if place.startswith(beginning)]

    def expire(self, now: float) -> list[Down]:
        """Return the peers whose lease is over; call it several times a lease."""
        expired = [peer_id for peer_id in self._presence.expired(now) if isinstance(peer_id, bytes)]
        downs = (self._leave(peer_id, "no sign of life") for peer_id in expired)
        return [down for down in downs if down is not None]

    def leave(self, peer_id: bytes, reason: str) -> Down | None:
        """Forget a peer; return what its user is to be told."""
        return self._leave(peer_id, reason) if peer_id in self._peers else None

    def clear(self) -> None:
        """Forget all peers, as the connection was lost; epochs go on."""
        for peer_id in list(self._peers):
            self._forget(peer_id)

    def _leave(self, peer_id: bytes, reason: str) -> Down | None:
        peer = self._peers[peer_id]
        self._forget(peer_id)
        return Down(peer_id, reason) if peer.info is not None or peer.was_up else None

    def _forget(self, peer_id: bytes) -> None:
        station = self._peers.pop(peer_id).station
        self._presence.leave(peer_id)
        del self._by_place[station.place]
        self._of_name[station.name.name] -= 1
        if not self._of_name[station.name.name]:
            del self._of_name[station.name.name]


def _parse(payload: bytes) -> tuple[bool, Mapping[str, object]]:
    match decode_cbor(payload, max_bytes=MAX_ATTRIBUTES + 16, max_depth=MAX_DEPTH, error=BadMessage):
        case [bool(asks), dict(attributes)] if all(isinstance(key, str) for key in attributes):
            return asks, attributes
        case _:
            raise BadMessage("a sign of life that is not a pair of a boolean and attributes")
