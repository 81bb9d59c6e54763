"""What a receiver is told of what a broker sends."""

import pytest

from brokers import BadMessage, Buffer, Carrier, PeerInfo, PeerName, Role
from brokers.envelope import CLOSING, FABRIC_VERSION, Control, Down, Renewed, Up, Welcome, control
from brokers.inbox import Inbox
from brokers.switch import NO_HELLO

PEER = PeerName(Role.EDGE, "front", bytes(16))
WELCOME = Welcome(FABRIC_VERSION, 1, 1)
UP = Up(b"e", "front", bytes(16), 7, {"grace_s": 60})


class Listening:
    """A receiver that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def carrier_up(self, carrier: Carrier) -> None:
        self.told.append("up")

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        self.told.append(reason)

    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None:
        self.told.append(peer)

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        self.told.append((peer_id, reason))

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        self.told.append((peer_id, frames))


class NoCarrier:
    """A carrier that nobody uses."""

    label = "test"

    def send(self, peer_id: bytes, frames: object) -> bool:
        raise AssertionError

    def link_condition(self, peer_id: bytes) -> None:
        raise AssertionError

    def announce(self, attributes: object) -> None:
        raise AssertionError

    async def close(self, *, linger_s: float) -> None:
        raise AssertionError


def inbox() -> tuple[Inbox, list[object]]:
    receiver = Listening()
    return Inbox(NoCarrier(), receiver), receiver.told


def test_peers_and_their_messages_are_passed_on_after_the_welcome() -> None:
    box, told = inbox()
    for message in (WELCOME, UP):
        assert box.receive(control(message)) == message
    assert box.receive([PEER.id, b"head", b"payload"]) is None
    box.receive(control(Renewed()))
    box.receive(control(Down(PEER.id, 7, "left")))
    assert told == [
        "up",
        PeerInfo(PEER, 7, {"grace_s": 60}),
        (PEER.id, [b"head", b"payload"]),
        (PEER.id, "left"),
    ]


def test_a_peer_has_its_network_address_where_that_is_known() -> None:
    receiver = Listening()
    box = Inbox(NoCarrier(), receiver, address_of={PEER.id: "192.0.2.7"}.get)
    for message in (WELCOME, UP):
        box.receive(control(message))
    assert receiver.told == ["up", PeerInfo(PEER, 7, {"grace_s": 60}, "192.0.2.7")]


def test_nothing_is_passed_on_before_the_welcome_or_after_the_loss() -> None:
    box, told = inbox()
    later: list[list[Buffer]] = [control(UP), control(Down(PEER.id, 7, "left")), [PEER.id, b"x"]]
    for frames in later:
        box.receive(frames)
    assert told == []
    box.receive(control(WELCOME))
    for _ in range(2):
        box.down("the connection was lost")
    for frames in later:
        box.receive(frames)
    assert told == ["up", "the connection was lost"]


def test_a_closing_broker_is_not_reported_as_a_peer() -> None:
    box, told = inbox()
    box.receive(control(WELCOME))
    message = Down(b"p" + bytes(16), 1, CLOSING)
    assert box.receive(control(message)) == message
    assert told == ["up"]


def test_a_welcome_that_responds_to_no_hello_voids_the_peer_list() -> None:
    box, told = inbox()
    for _ in range(2):
        box.receive(control(Welcome(FABRIC_VERSION, NO_HELLO, 1)))
    assert told == ["up", "the peer list begins anew", "up"]


@pytest.mark.parametrize(
    "message",
    [Up(b"x", "front", bytes(16), 7, {}), Up(b"e", "no name", bytes(16), 7, {}), Up(b"e", "front", b"", 7, {})],
)
def test_a_peer_with_a_bad_name_is_an_error(message: Control) -> None:
    box, told = inbox()
    box.receive(control(WELCOME))
    with pytest.raises(BadMessage, match="bad name"):
        box.receive(control(message))
    assert told == ["up"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_message_without_a_body_is_an_error(count: int) -> None:
    box, _ = inbox()
    with pytest.raises(BadMessage, match=f"{count} frames"):
        box.receive([b"x"] * count)
