"""The routing of a broker: takes one message, returns messages. Sans-IO; knows nothing of streams.

A peer is known by a key (its routing id, or an object for one in this process), has one role, and reaches only peers of
the other role. Its id in messages is derived from its key, never from what it says.

While they are few, all peers hear of all of the other role, so that a misspelt service shows. Once they are more than
`FEW`, a peer hears only of those with which it shares an interest (`interest`): else what it is told, and keeps, would
grow with the whole fleet.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from brokers.carrier import Buffer
from brokers.envelope import (
    CLOSING,
    CONTROL,
    FABRIC_VERSION,
    FABRIC_VERSION_LEAST,
    MAX_FRAMES,
    REVOKED,
    Announce,
    Control,
    Down,
    Hello,
    Leave,
    Refused,
    Renew,
    Renewed,
    Up,
    Welcome,
    control,
    parse_control,
)
from brokers.errors import BadMessage
from brokers.interest import INTEREST, interest_of, shared, united
from brokers.peers import PeerInfo, PeerName, Role
from brokers.presence import Presence

Output = tuple[Hashable, list[Buffer]]
"""Key of the receiver, frames."""
FEW: Final = 128
LIST_BYTES: Final = 8 * 1024 * 1024
"""Of all Ups: half of what a broker keeps for a peer that reads slowly (`outboxes.OUTBOX_BYTES`)."""
RENEWED: Final = control(Renewed())
NO_HELLO: Final = 0
"""The attempt of a Welcome that responds to no Hello."""
Objection = Callable[[Hashable, Mapping[str, object]], str | None]
"""Returns why the peer with this key may not announce these attributes, or None if it may."""
Certified = Callable[[Hashable, Mapping[str, object]], Mapping[str, object]]
"""Returns what others are told of the peer with this key, which announces these attributes."""


@dataclass(slots=True)
class _Member:
    """A peer that is up."""

    key: Hashable
    info: PeerInfo
    interest: int | None
    up: list[Buffer]
    """What others are told of it, encoded once."""


class Switch:
    """Routes between the peers that have said hello. `max_peers` bounds the peer list."""

    def __init__(
        self,
        *,
        lease_s: float,
        max_peers: int,
        objection: Objection = lambda _key, _attributes: None,
        certified: Certified = lambda _key, attributes: attributes,
        refused: Callable[[Hashable, PeerName, str], None] = lambda _key, _name, _reason: None,
    ) -> None:
        """Start without peers, with leases of `lease_s` seconds. Call `refused` for each refused hello."""
        self._objection = objection
        self._certified = certified
        self._refused = refused
        self._presence = Presence(lease_s)
        self.max_peers = max_peers
        """Peers that are up stay, however many they are."""
        self._members: dict[Role, dict[Hashable, _Member]] = {role: {} for role in Role}
        self._peers: dict[Hashable, _Member] = {}
        self._keys: dict[bytes, Hashable] = {}
        self._list_bytes = 0
        self._selective = False
        self.messages = 0
        self.dropped = 0

    @property
    def peers(self) -> list[PeerInfo]:
        """The peers that are up."""
        return [member.info for member in self._peers.values()]

    def peer(self, key: Hashable) -> PeerInfo | None:
        """Return the peer with this key, if it is up."""
        member = self._peers.get(key)
        return None if member is None else member.info

    def key(self, peer_id: bytes) -> Hashable | None:
        """Return the key of the peer with this id, if it is up."""
        return self._keys.get(peer_id)

    def receive(self, key: Hashable, name: PeerName, frames: Sequence[Buffer], now: float) -> list[Output]:
        """Take one message of the peer `name`; return the messages to send.

        Raises:
            BadMessage: it is dropped; the peer stays.
        """
        if len(frames) < 2 or len(frames) > MAX_FRAMES:
            raise BadMessage(f"{len(frames)} frames, expected 2 to {MAX_FRAMES}")
        peer = self._peers.get(key)
        if frames[0] == CONTROL:
            return self._control(key, name, peer, parse_control(frames), now)
        if peer is None:
            self.dropped += 1  # of an earlier epoch; its Hello is on its way
            return []
        self._presence.renew(key, now)
        destination = bytes(frames[0])
        target = self._keys.get(destination)
        source = name.id
        if target is None or destination[0] == source[0]:
            self.dropped += 1
            return []
        self.messages += 1
        return [(target, [source, *frames[1:]])]

    def _control(
        self, key: Hashable, name: PeerName, member: _Member | None, message: Control, now: float
    ) -> list[Output]:
        if isinstance(message, Hello):
            return self._hello(key, name, message, now)
        if member is None:
            return []
        self._presence.renew(key, now)
        match message:
            case Renew():
                return [(key, list(RENEWED))]
            case Announce(attributes):
                objection = self._objection(key, attributes)
                if objection is not None:
                    return [(key, control(Refused(objection))), *self.lost(key, REVOKED)]
                return self._widen(member, interest_of(attributes)) + self._retell(member, attributes)
            case Leave():
                return self.lost(key, "left")
            case _:
                raise BadMessage(f"{type(message).__name__} is for peers, not for brokers")

    def _hello(self, key: Hashable, name: PeerName, hello: Hello, now: float) -> list[Output]:
        refusal = self._refusal(key, name, hello)
        if refusal is not None:
            self._refused(key, name, refusal)
            return [(key, control(Refused(refusal)))]
        epoch = self._presence.enter(key, now)
        chosen = self._choose() if len(self._peers) >= FEW else []
        member = _Member(key, PeerInfo(name, epoch, {}), interest_of(hello.attributes), [])
        if (before := self._remove(key)) is not None:
            member.interest = united(before.interest, member.interest)
        self._peers[key] = self._members[name.role][key] = member
        self._keys[name.id] = key
        version = min(hello.version, FABRIC_VERSION)
        welcome = (key, control(Welcome(version, hello.attempt, epoch)))
        return [*chosen, welcome, *self._peer_list(member), *self._retell(member, hello.attributes)]

    def recertify(self) -> list[Output]:
        """Ask again what others are told of each peer; return what tells them where that has changed."""
        outputs: list[Output] = []
        for key, member in list(self._peers.items()):
            if self._certified(key, member.info.attributes) != member.info.attributes:
                outputs += self._retell(member, member.info.attributes)
        return outputs

    def _retell(self, member: _Member, announced: Mapping[str, object]) -> list[Output]:
        """Tell others what a peer announces, and its key adds."""
        attributes = self._certified(member.key, announced)
        if INTEREST in attributes:
            attributes = {name: value for name, value in attributes.items() if name != INTEREST}
        self._change(member, replace(member.info, attributes=attributes))
        return self._tell(member, member.up)

    def _change(self, member: _Member, info: PeerInfo) -> None:
        self._list_bytes -= sum(map(len, member.up))
        member.info, member.up = info, control(_up(info))
        self._list_bytes += sum(map(len, member.up))

    def _widen(self, member: _Member, interest: int | None) -> list[Output]:
        """Add to a peer's interest, which never shrinks, as sessions depend on it; return whom it hears of now."""
        before, member.interest = member.interest, united(member.interest, interest)
        return [
            (member.key, list(other.up))
            for other in self._correspondents(member)
            if self._selective and not shared(before, other.interest)
        ]

    def _choose(self) -> list[Output]:
        """Tell peers from now on only of those with which they share an interest; take back what else they know."""
        if self._selective:
            return []
        strangers = [
            (member, other)
            for member in self._peers.values()
            for other in self._correspondents(member)
            if not shared(member.interest, other.interest)
        ]
        self._selective = True
        return [(one.key, control(Down(other.info.name.id, other.info.epoch, "many"))) for one, other in strangers]

    def _correspondents(self, member: _Member) -> Iterator[_Member]:
        """Yield the peers that hear of this one, and of which it hears."""
        for other in self._members[member.info.name.role.other].values():
            if not self._selective or shared(member.interest, other.interest):
                yield other

    def _peer_list(self, member: _Member) -> list[Output]:
        return [(member.key, list(other.up)) for other in self._correspondents(member)]

    def _refusal(self, key: Hashable, name: PeerName, hello: Hello) -> str | None:
        if hello.least > FABRIC_VERSION or hello.version < FABRIC_VERSION_LEAST:
            return (
                f"{name.name} speaks fabric versions {hello.least} to {hello.version}, this broker "
                f"{FABRIC_VERSION_LEAST} to {FABRIC_VERSION}: upgrade the older one"
            )
        objection = self._objection(key, hello.attributes)
        if objection is not None:
            return objection
        if self._keys.get(name.id, key) != key:
            return "another connection uses this incarnation"
        if key not in self._peers and len(self._peers) >= self.max_peers:
            return f"this broker has its {self.max_peers} peers already; raise --max-peers there"
        if key not in self._peers and self._list_bytes >= LIST_BYTES:
            return f"the peer list of this broker takes {LIST_BYTES >> 20} MiB already; use more brokers"
        return None

    def lost(self, key: Hashable, reason: str) -> list[Output]:
        """Remove a peer, if it is up; return what its correspondents are told."""
        member = self._remove(key)
        if member is None:
            return []
        self._presence.leave(key)
        return self._tell(member, control(Down(member.info.name.id, member.info.epoch, reason)))

    def _remove(self, key: Hashable) -> _Member | None:
        member = self._peers.pop(key, None)
        if member is not None:
            del self._members[member.info.name.role][key], self._keys[member.info.name.id]
            self._list_bytes -= sum(map(len, member.up))
        return member

    def overflow(self, key: Hashable, now: float) -> list[Output]:
        """Messages to a peer were dropped: begin a new epoch of it, so that its correspondents notice.

        Ups and Downs may have been among them. So a Welcome that responds to no Hello voids what the peer knows, and it
        gets the peer list again.
        """
        member = self._peers.get(key)
        if member is None:
            return []
        before = member.info
        self._change(member, replace(before, epoch=self._presence.enter(key, now)))
        others = [
            *self._tell(member, control(Down(before.name.id, before.epoch, "overflow"))),
            *self._tell(member, member.up),
        ]
        welcome = (key, control(Welcome(FABRIC_VERSION, NO_HELLO, member.info.epoch)))
        return [*others, welcome, *self._peer_list(member)]

    def expired(self, now: float) -> list[Hashable]:
        """Return the keys of the peers whose leases have expired, to be passed to `lost`."""
        return self._presence.expired(now)

    def renewals(self, silent_since: float | None = None) -> list[Output]:
        """Return a keep-alive for every peer, or for those only that were not heard after `silent_since`.

        Sending them shows which peers cannot be reached. The others get one as the response to each of theirs.
        """
        keys = self._peers if silent_since is None else self._presence.silent(silent_since)
        return [(key, list(RENEWED)) for key in keys]

    def closing(self) -> list[Output]:
        """Return what tells every peer that this broker is being shut down."""
        return [
            (member.key, control(Down(member.info.name.id, member.info.epoch, CLOSING)))
            for member in self._peers.values()
        ]

    def _tell(self, member: _Member, frames: Sequence[Buffer]) -> list[Output]:
        return [(other.key, list(frames)) for other in self._correspondents(member)]


def _up(peer: PeerInfo) -> Up:
    return Up(peer.name.role.value, peer.name.name, peer.name.incarnation, peer.epoch, peer.attributes)
