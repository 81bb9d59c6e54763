"""Turning messages of a broker into calls of a receiver."""

from collections.abc import Callable

from brokers.carrier import Buffer, Carrier, Receiver
from brokers.envelope import CLOSING, CONTROL, Control, Down, Up, Welcome, parse_control
from brokers.errors import BadMessage, BadName
from brokers.peers import PeerInfo, PeerName, Role


class Inbox:
    """Passes on peers and messages to a receiver while the broker is up; shared by links and local peers."""

    def __init__(
        self, carrier: Carrier, receiver: Receiver, *, address_of: Callable[[bytes], str | None] = lambda _peer_id: None
    ) -> None:
        """Call `receiver` on behalf of `carrier`; `address_of` a peer's id is its network address, if known."""
        self._carrier = carrier
        self._receiver = receiver
        self._address_of = address_of
        self.up = False

    def receive(self, frames: list[Buffer]) -> Control | None:
        """Pass on a message; return it if it is a control message.

        Raises:
            BadMessage: it is malformed.
        """
        if len(frames) < 2:
            raise BadMessage(f"{len(frames)} frames, expected at least 2")
        if frames[0] != CONTROL:
            if self.up:
                self._receiver.message(self._carrier, bytes(frames[0]), frames[1:])
            return None
        message = parse_control(frames)
        match message:
            case Welcome():
                self.down("the peer list begins anew")
                self.up = True
                self._receiver.carrier_up(self._carrier)
            case Up(role, name, incarnation, epoch, attributes) if self.up:
                try:
                    peer = PeerName(Role(role), name, incarnation)
                except (ValueError, BadName) as exc:
                    raise BadMessage(f"a peer with a bad name: {exc}") from exc
                info = PeerInfo(peer, epoch, attributes, self._address_of(peer.id))
                self._receiver.peer_up(self._carrier, info)
            case Down(peer_id, _, reason) if self.up and reason != CLOSING:
                self._receiver.peer_down(self._carrier, peer_id, reason)
            case _:
                pass
        return message

    def down(self, reason: str) -> None:
        """Tell the receiver, once, that the broker is out of reach."""
        if self.up:
            self.up = False
            self._receiver.carrier_down(self._carrier, reason)
