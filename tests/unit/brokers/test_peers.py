"""Names of peers and their routing ids."""

import pytest

from brokers import BadName, PeerName, Role
from brokers.peers import NONCE_BYTES

INCARNATION = bytes(range(16))
NONCE = bytes(range(100, 100 + NONCE_BYTES))


@pytest.mark.parametrize("role", Role)
def test_each_role_is_the_other_of_its_other(role: Role) -> None:
    assert role.other is not role
    assert role.other.other is role


def test_the_id_is_role_and_incarnation() -> None:
    assert PeerName(Role.EDGE, "web-1", INCARNATION).id.hex() == "65000102030405060708090a0b0c0d0e0f"
    assert PeerName(Role.PROVIDER, "web-1", INCARNATION).id.hex() == "70000102030405060708090a0b0c0d0e0f"


def test_the_routing_id_keeps_its_form() -> None:
    routing_id = PeerName(Role.PROVIDER, "web-1", INCARNATION).routing_id(NONCE)
    assert routing_id.hex() == (
        "70" + "000102030405060708090a0b0c0d0e0f" + "6465666768696a6b6c6d6e6f70717273" + "7765622d31"
    )


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("text", ["a", "A-z_0.9", "x" * 64])
def test_a_routing_id_yields_the_name_that_made_it(role: Role, text: str) -> None:
    name = PeerName(role, text, INCARNATION)
    routing_id = name.routing_id(NONCE)
    assert PeerName.from_routing_id(routing_id) == name
    assert len(routing_id) <= 255
    assert routing_id[0] != 0, "such ids belong to ZeroMQ"


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a/b", "ä", "a\n", "\0", "٣"])
def test_an_invalid_name_is_rejected(text: str) -> None:
    with pytest.raises(BadName, match="expected 1 to 64"):
        PeerName(Role.EDGE, text, INCARNATION)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_an_incarnation_of_another_length_is_rejected(length: int) -> None:
    with pytest.raises(BadName, match=f"incarnation of {length} bytes, expected 16"):
        PeerName(Role.EDGE, "web", bytes(length))


@pytest.mark.parametrize(
    "routing_id",
    [
        b"",
        b"e",
        b"\0abcd",  # what a ROUTER gives to a peer without a routing id
        b"x" + INCARNATION + NONCE + b"web",  # no such role
        b"e" + INCARNATION + NONCE,  # no name
        b"e" + INCARNATION + NONCE + b"\xff",  # not ASCII
        b"e" + INCARNATION + NONCE + "ä".encode(),
        b"e" + INCARNATION + NONCE + b"x" * 65,
        b"e" + INCARNATION[:15],
    ],
)
def test_a_malformed_routing_id_is_rejected(routing_id: bytes) -> None:
    with pytest.raises(BadName):
        PeerName.from_routing_id(routing_id)
