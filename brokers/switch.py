"""The routing of a broker: takes one message, returns messages. Sans-IO; knows nothing of streams.

A peer is known by a key (its routing id, or an object for one in this process), has one role, and reaches only peers of
the other role. Its id in messages is derived from its key, never from what it says.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
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
from brokers.peers import PeerInfo, PeerName
from brokers.presence import Presence

Output = tuple[Hashable, list[Buffer]]
"""Key of the receiver, frames."""
NO_HELLO: Final = 0
"""The attempt of a Welcome that responds to no Hello."""
Objection = Callable[[Hashable, Mapping[str, object]], str | None]
"""Returns why the peer with this key may not announce these attributes, or None if it may."""
Certified = Callable[[Hashable, Mapping[str, object]], Mapping[str, object]]
"""Returns what others are told of the peer with this key, which announces these attributes."""


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
        self._peers: dict[Hashable, PeerInfo] = {}
        self._keys: dict[bytes, Hashable] = {}
        self.messages = 0
        self.dropped = 0

    @property
    def peers(self) -> list[PeerInfo]:
        """The peers that are up."""
        return list(self._peers.values())

    def peer(self, key: Hashable) -> PeerInfo | None:
        """Return the peer with this key, if it is up."""
        return self._peers.get(key)

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
        self, key: Hashable, name: PeerName, peer: PeerInfo | None, message: Control, now: float
    ) -> list[Output]:
        if isinstance(message, Hello):
            return self._hello(key, name, message, now)
        if peer is None:
            return []
        self._presence.renew(key, now)
        match message:
            case Renew():
                return [(key, control(Renewed()))]
            case Announce(attributes):
                objection = self._objection(key, attributes)
                if objection is not None:
                    return [(key, control(Refused(objection))), *self.lost(key, REVOKED)]
                return self._retell(key, peer, self._certified(key, attributes))
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
        info = PeerInfo(name, epoch, self._certified(key, hello.attributes))
        self._peers[key] = info
        self._keys[name.id] = key
        version = min(hello.version, FABRIC_VERSION)
        welcome = (key, control(Welcome(version, hello.attempt, epoch)))
        return [welcome, *self._peer_list(key, name), *self._tell(name, _up(info))]

    def recertify(self) -> list[Output]:
        """Ask again what others are told of each peer; return what tells them where that has changed."""
        outputs: list[Output] = []
        for key, peer in list(self._peers.items()):
            attributes = self._certified(key, peer.attributes)
            if attributes != peer.attributes:
                outputs += self._retell(key, peer, attributes)
        return outputs

    def _retell(self, key: Hashable, peer: PeerInfo, attributes: Mapping[str, object]) -> list[Output]:
        self._peers[key] = replace(peer, attributes=attributes)
        return self._tell(peer.name, _up(self._peers[key]))

    def _peer_list(self, key: Hashable, name: PeerName) -> list[Output]:
        return [(key, control(_up(other))) for other in self._peers.values() if other.name.role is name.role.other]

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
        return None

    def lost(self, key: Hashable, reason: str) -> list[Output]:
        """Remove a peer, if it is up; return what its correspondents are told."""
        peer = self._peers.pop(key, None)
        if peer is None:
            return []
        self._presence.leave(key)
        del self._keys[peer.name.id]
        return self._tell(peer.name, Down(peer.name.id, peer.epoch, reason))

    def overflow(self, key: Hashable, now: float) -> list[Output]:
        """Messages to a peer were dropped: begin a new epoch of it, so that its correspondents notice.

        Ups and Downs may have been among them. So a Welcome that responds to no Hello voids what the peer knows, and it
        gets the peer list again.
        """
        peer = self._peers.get(key)
        if peer is None:
            return []
        again = self._peers[key] = replace(peer, epoch=self._presence.enter(key, now))
        others = [
            *self._tell(peer.name, Down(peer.name.id, peer.epoch, "overflow")),
            *self._tell(peer.name, _up(again)),
        ]
        welcome = (key, control(Welcome(FABRIC_VERSION, NO_HELLO, again.epoch)))
        return [*others, welcome, *self._peer_list(key, peer.name)]

    def expired(self, now: float) -> list[Hashable]:
        """Return the keys of the peers whose leases have expired, to be passed to `lost`."""
        return self._presence.expired(now)

    def renewals(self) -> list[Output]:
        """Return a keep-alive for every peer. Sending them shows which peers cannot be reached."""
        return [(key, control(Renewed())) for key in self._peers]

    def closing(self) -> list[Output]:
        """Return what tells every peer that this broker is being shut down."""
        return [(key, control(Down(peer.name.id, peer.epoch, CLOSING))) for key, peer in self._peers.items()]

    def _tell(self, name: PeerName, message: Up | Down) -> list[Output]:
        frames = control(message)
        return [(key, list(frames)) for key, other in self._peers.items() if other.name.role is name.role.other]


def _up(peer: PeerInfo) -> Up:
    return Up(peer.name.role.value, peer.name.name, peer.name.incarnation, peer.epoch, peer.attributes)
