"""The broker's decisions: one message in, messages out.

Sans-IO: knows nothing of sockets or clocks. Whoever carries the messages calls `receive` or `forward`, sends
every `Output`, and comes back with what happened: `hold` if the pipe was full, `lost` if there is no such
connection, `drained` when everything held for a peer has gone out.

The rules: nobody is heard before its hello. A message goes to a peer of the other role or nowhere. Its source is
derived from the connection it came by, never from what it says. A message that cannot go on is dropped and
counted, and its sender is not told: it has been told before, in order, that the destination went down.

A peer that takes its messages too slowly overflows its outbox: all that waited is dropped, the others are told
that it is down, and it waits alone, with nothing but a new `Welcome` in its outbox. When that has gone out, it
gets the roster anew and the others are told that it is up, in a new epoch. So nobody fills an outbox that does
not empty, and both sides know that something is missing.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import NamedTuple

from brokers.envelope import (
    FABRIC_VERSION, Announce, Down, Hello, Leave, Reason, Refused, Renew, Renewed, Up, Welcome, decode,
)  # fmt: skip
from brokers.errors import BadMessage, BadName, NotAdmitted, VersionMismatch
from brokers.names import PeerName, Role
from brokers.presence import Body, Outbox, Peer, Presence

OUTBOX_MESSAGES = 2048
"""Per peer. More than a roster, which is one message for each of at most 1024 peers."""
OUTBOX_BYTES = 8 << 20
"""Per peer: two messages of the largest kind, and many of the usual ones."""
OUTBOXES_BYTES = 64 << 20
"""All together: eight peers may stand still with a full outbox before one of them loses it to the others."""


class Output(NamedTuple):
    """Send this to that peer. `source` is empty if `body` is a control, else the id of the peer that sent it."""

    to: Peer
    source: bytes
    body: Body


@dataclass(slots=True)
class Counters:
    """What a broker has done since it began."""

    messages: int = 0
    dropped: int = 0
    refused: int = 0
    overflows: int = 0


def has_room(outbox: Outbox) -> bool:
    """Return whether an outbox is within the bounds for one peer."""
    return len(outbox) <= OUTBOX_MESSAGES and outbox.size_bytes <= OUTBOX_BYTES


class Switch:
    """The broker of one incarnation (16 bytes), with its peers and what waits for them."""

    def __init__(self, *, incarnation: bytes, lease_s: float, max_peers: int) -> None:
        self.presence = Presence(lease_s=lease_s, max_peers=max_peers)
        self.counters = Counters()
        self._incarnation = incarnation
        self._find = self.presence.find
        self._at = self.presence.at

    # -- messages

    def receive(self, role: Role, frames: Sequence[Sized], now: float) -> list[Output]:
        """Take a message as a ROUTER for peers of `role` gives it: routing id, destination, body.

        The first three frames must be bytes. Never raises on what a peer sends.
        """
        route = frames[0]
        assert isinstance(route, bytes)
        peer = self._at(route)
        if peer is not None:
            if peer.role is not role:
                return self._drop()
            peer.heard_s = now
        if len(frames) < 3:  # a body has at least one frame
            return self._drop()
        destination = frames[1]
        assert isinstance(destination, bytes)
        if not destination:
            return self._control(role, route, peer, frames[2:], now)
        if peer is None:
            return self._drop()
        return self.forward(peer, destination, frames[2:])

    def forward(self, peer: Peer, destination: bytes, body: Sequence[Sized]) -> list[Output]:
        """Pass on a message of a peer that is here. An empty result means that it was dropped."""
        to = self._find(destination)
        if to is None or not to.up or not peer.up or to.role is peer.role:
            return self._drop()
        self.counters.messages += 1
        return [Output(to, peer.id, body)]

    def _drop(self, count: int = 1) -> list[Output]:
        self.counters.dropped += count
        return []

    # -- controls

    def _control(
        self, role: Role, route: bytes, peer: Peer | None, body: Sequence[Sized], now: float
    ) -> list[Output]:
        try:
            if len(body) != 1 or not isinstance(body[0], bytes):
                raise BadMessage(f"control of {len(body)} frames, expected one")
            control = decode(body[0])
            match control:
                case Hello():
                    return self._hello(role, route, control, now)
                case Renew():
                    return self._renew(route, peer, control, now)
                case Announce() if peer is not None:
                    return self.announce(peer, control.attributes)
                case Leave() if peer is not None:
                    return self.depart(peer, Reason.LEFT)
                case Announce() | Leave():
                    return self._drop()
                case _:
                    raise BadMessage(f"{type(control).__name__} is the broker's to say")
        except VersionMismatch as exc:
            return self._refuse(route, peer, str(exc), now)
        except BadMessage as exc:
            # To strangers, silence: their garbage shall not cost an answer each.
            return self._refuse(route, peer, str(exc), now) if peer is not None else self._drop()

    def _hello(self, role: Role, route: bytes, hello: Hello, now: float) -> list[Output]:
        try:
            name = PeerName.from_routing_id(route)
        except BadName:
            return self._drop()
        peer = Peer(name, route, hello.attributes, now)
        peer.attempt, peer.version = hello.attempt, min(hello.version, FABRIC_VERSION)
        if name.role is not role:
            return self._refusal(peer, f"this address is for {role.name.lower()}s, not for {name}")
        try:
            return self._enter(peer)
        except NotAdmitted as exc:
            return self._refusal(peer, str(exc))

    def attach(self, name: PeerName, attributes: Mapping[str, object], now: float) -> tuple[Peer, list[Output]]:
        """Take in a peer of this process, which needs no hello and no lease.

        Raises:
            NotAdmitted: it is here already, or there are too many.
        """
        peer = Peer(name, None, attributes, now, version=FABRIC_VERSION)
        return peer, self._enter(peer)

    def _enter(self, peer: Peer) -> list[Output]:
        peer = self.presence.arrive(peer)
        return [self._welcome(peer), *self._introduce(peer)]

    def _welcome(self, peer: Peer) -> Output:
        lease_s = self.presence.lease_s
        return Output(peer, b"", Welcome(peer.version, self._incarnation, peer.attempt, peer.epoch, lease_s))

    def _introduce(self, peer: Peer) -> list[Output]:
        """Tell a peer of all others, and all others of it."""
        others = self.presence.opposite(peer.role)
        up = Up(peer.name, peer.epoch, peer.attributes)
        return [
            *(Output(peer, b"", Up(other.name, other.epoch, other.attributes)) for other in others),
            *(Output(other, b"", up) for other in others),
        ]

    def announce(self, peer: Peer, attributes: Mapping[str, object]) -> list[Output]:
        """Replace the attributes of a peer and tell the others."""
        peer.attributes = attributes
        if not peer.up:
            return []
        up = Up(peer.name, peer.epoch, attributes)
        return [Output(other, b"", up) for other in self.presence.opposite(peer.role)]

    def _renew(self, route: bytes, peer: Peer | None, renew: Renew, now: float) -> list[Output]:
        if peer is not None:
            return [Output(peer, b"", Renewed())]
        try:
            stranger = Peer(PeerName.from_routing_id(route), route, {}, now)
        except BadName:
            return self._drop()
        return [Output(stranger, b"", Down(stranger.id, renew.epoch, Reason.EXPIRED))]

    def _refuse(self, route: bytes, peer: Peer | None, reason: str, now: float) -> list[Output]:
        """Answer a message that breaks the rules; if a peer sent it, that was its last one."""
        try:
            stranger = Peer(PeerName.from_routing_id(route), route, {}, now)
        except BadName:
            return self._drop()
        return [*self._refusal(stranger, reason), *(self.depart(peer, Reason.REFUSED) if peer is not None else ())]

    def _refusal(self, peer: Peer, reason: str) -> list[Output]:
        self.counters.refused += 1
        return [Output(peer, b"", Refused(reason))]

    # -- what became of the outputs

    def hold(self, peer: Peer, source: bytes, body: Body) -> list[Output]:
        """Keep a message for a peer whose pipe is full. The frames are referenced, not copied."""
        if peer not in self.presence or not (peer.up or isinstance(body, Welcome)):
            return self._drop()
        peer.outbox.push(source, body)
        if not has_room(peer.outbox):
            return self._overflow(peer)
        if self.held_bytes > OUTBOXES_BYTES:
            return self._overflow(max(self.presence, key=lambda other: other.outbox.size_bytes))
        return []

    @property
    def held_bytes(self) -> int:
        """What waits in all outboxes."""
        return sum(peer.outbox.size_bytes for peer in self.presence)

    def _overflow(self, peer: Peer) -> list[Output]:
        self.counters.overflows += 1
        self._drop(len(peer.outbox))
        down = Down(peer.id, peer.epoch, Reason.OVERFLOW)
        self.presence.renew_epoch(peer)
        peer.up = False
        welcome = self._welcome(peer)
        peer.outbox.push(welcome.source, welcome.body)
        return [Output(other, b"", down) for other in self.presence.opposite(peer.role)]

    def drained(self, peer: Peer) -> list[Output]:
        """Go on after everything that waited for a peer has gone out."""
        if peer.up or peer not in self.presence:
            return []
        peer.up = True
        return self._introduce(peer)

    def lost(self, peer: Peer) -> list[Output]:
        """Give up a peer whose connection does not exist any more."""
        return self.depart(peer, Reason.LOST) if peer in self.presence else []

    def expire(self, now: float) -> list[Output]:
        """Give up the peers that have been silent for too long. Call this several times per lease."""
        return [output for peer in self.presence.expired(now) for output in self.depart(peer, Reason.EXPIRED)]

    def depart(self, peer: Peer, reason: Reason) -> list[Output]:
        """Give up a peer that is here, tell the others, and, should it still be there, the peer itself."""
        down = Down(peer.id, peer.epoch, reason)
        others = self.presence.opposite(peer.role) if peer.up else []
        self.presence.depart(peer)
        return [Output(peer, b"", down), *(Output(other, b"", down) for other in others)]
