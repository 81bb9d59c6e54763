"""Controls on the wire: golden vectors, and what is refused."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers import BadMessage
from brokers.envelope import (
    CONTROL,
    MAX_ATTRIBUTES,
    MAX_CONTROL,
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

INCARNATION = bytes(range(16))
PEER_ID = b"p" + INCARNATION

GOLDEN: list[tuple[Control, str]] = [
    (Hello(1, 1, 7, {"grace_s": 60}), "850001 01 07 a1 6767726163655f73 183c"),
    (Welcome(1, 7, 42), "84010107182a"),
    (
        Up(b"p", "web-1", INCARNATION, 42, {}),
        "86 02 4170 65 7765622d31 50 000102030405060708090a0b0c0d0e0f 182a a0",
    ),
    (Down(PEER_ID, 42, "lost"), "84 03 51 70000102030405060708090a0b0c0d0e0f 182a 64 6c6f7374"),
    (Announce({"draining": True}), "82 04 a1 68 647261696e696e67 f5"),
    (Renew(), "8105"),
    (Renewed(), "8106"),
    (Leave(), "8107"),
    (Refused("no"), "82 08 62 6e6f"),
]


@pytest.mark.parametrize(("message", "vector"), GOLDEN, ids=lambda value: type(value).__name__)
def test_a_control_message_has_exactly_these_bytes(message: Control, vector: str) -> None:
    assert control(message) == [CONTROL, bytes.fromhex(vector)]
    assert parse_control([CONTROL, bytes.fromhex(vector)]) == message


def test_every_control_message_has_a_golden_vector() -> None:
    assert {type(message) for message, _ in GOLDEN} == set(Control.__args__)


@pytest.mark.parametrize(
    "vector",
    [
        "",  # nothing
        "00",  # not an array
        "80",  # no kind
        "8109",  # a kind that does not exist
        "8120",  # a negative one
        "81f5",  # true is not 1
        "816100",  # a text
        "820500",  # a field too many
        "8407 01 02 03",
        "8100",  # fields missing
        "84 01 01 07 f5",  # true as a number
        "84 01 01 07 20",  # a negative epoch
        "84 01 01 07 1b8000000000000000",  # beyond 63 bits
        "84 01 01 07 f93c00",  # 1.0
        "8208 42 6e6f",  # bytes for text
        "84 03 6161 182a 64 6c6f7374",  # text for bytes
        "8204 80",  # a list for a map
        "8204 a10102",  # a key that is no text
        "82 08 7f 61 61 ff",  # an indefinite length
        "9f 05 ff",
        "8204 a2 6161 01 6161 02",  # a key twice
        "81",  # too short
        "8204 a1 6161 8181818181818180",  # too deep
        "c1 8105",  # a tag known to the decoder
        "d9d9f7 8105",
        "d90400 8105",  # one unknown to it
        "8204 a1 6161 c249 010000000000000000",  # a big number
        "8204 a1 6161 d823 61 2e",  # a regular expression
        "d81c 82 04 d81d 00",  # a value that contains itself
    ],
)
def test_malformed_control_messages_are_rejected(vector: str) -> None:
    with pytest.raises(BadMessage):
        parse_control([CONTROL, bytes.fromhex(vector)])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_control_message_has_exactly_two_frames(count: int) -> None:
    with pytest.raises(BadMessage, match=f"of {count} frames"):
        parse_control([CONTROL, b"\x81\x05", b""][:count])


def test_size_is_bounded_before_decoding() -> None:
    frame = cbor2.dumps([8, "x" * MAX_CONTROL])
    with pytest.raises(BadMessage, match="at most"):
        parse_control([CONTROL, frame])


@pytest.mark.parametrize(
    "message",
    [
        Refused("x" * 257),
        Down(b"x" * 33, 1, "lost"),
        Announce({"a": "x" * MAX_ATTRIBUTES}),
    ],
)
def test_fields_are_bounded(message: Control) -> None:
    with pytest.raises(BadMessage):
        parse_control(control(message))


def test_attributes_may_be_nested() -> None:
    message = Announce({"services": [{"name": "default", "load": 0.5}], "grace_s": None})
    assert parse_control(control(message)) == message


@given(st.binary(max_size=64))
def test_random_bytes_are_rejected_or_parsed(noise: bytes) -> None:
    try:
        message = parse_control([CONTROL, noise])
    except BadMessage:
        return
    assert parse_control(control(message)) == message


def test_bytes_after_a_control_message_are_rejected() -> None:
    with pytest.raises(BadMessage):
        parse_control([CONTROL, bytes.fromhex("8105 00")])


def test_the_hello_of_a_later_version_may_have_more_fields() -> None:
    message = parse_control([CONTROL, cbor2.dumps([0, 2, 1, 7, {}, "later"])])
    assert message == Hello(2, 1, 7, {})
