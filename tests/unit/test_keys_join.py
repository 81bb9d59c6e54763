"""Join strings: parsing restores them, damage is detected, and nothing shows the secret."""

import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from brokers import KeyPair, Role
from goreprox.config.addresses import Address
from goreprox.errors import ConfigError
from goreprox.keys.join import SCHEME, Join

KEYS = KeyPair.generate()
SERVERS = tuple(KeyPair.generate().public for _ in range(2))
JOIN = Join(Role.PROVIDER, "laptop", KEYS, SERVERS, (Address("tunnel.example.org", 9887), Address("2001:db8::1", 1234)))


@given(
    role=st.sampled_from(Role),
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True),
    servers=st.integers(1, 8),
    hosts=st.lists(st.sampled_from(["a.example", "192.0.2.1", "::1", "x-1.example.org"]), min_size=1, max_size=64),
    port=st.integers(1, 65535),
)
def test_parsing_restores_what_was_written(role: Role, name: str, servers: int, hosts: list[str], port: int) -> None:
    addresses = tuple(Address(host, port) for host in hosts)
    join = Join(role, name, KEYS, (SERVERS * 4)[:servers], addresses)
    assert Join.parse(f"  {join.text}\n") == join


def test_a_join_string_needs_no_quoting_in_urls_shells_and_toml() -> None:
    assert re.fullmatch(r"goreprox://[A-Za-z0-9_-]+@tunnel\.example\.org:9887,\[2001:db8::1\]:1234", JOIN.text)


def test_every_truncated_join_string_is_reported_as_such() -> None:
    text = JOIN.text
    for end in range(len(text)):
        with pytest.raises(ConfigError, match=r"join string: (it is not whole|expected goreprox://)"):
            Join.parse(text[:end])
    for start in range(1, len(text)):
        with pytest.raises(ConfigError, match="join string"):
            Join.parse(text[start:])


@given(position=st.integers(0, len(JOIN.text) - 1), letter=st.characters(codec="ascii"))
def test_a_changed_letter_is_detected_and_no_error_shows_the_secret(position: int, letter: str) -> None:
    text = JOIN.text[:position] + letter + JOIN.text[position + 1 :]
    try:
        join = Join.parse(text)
    except ConfigError as exc:
        assert_silent(exc)
    else:
        assert join == JOIN  # the letter itself, or unused bits of the last one of the payload


def assert_silent(exc: BaseException) -> None:
    secret = JOIN.text.removeprefix(SCHEME).partition("@")[0]
    shown = repr(exc) + repr(exc.__cause__)
    assert exc.__suppress_context__ or exc.__context__ is None
    for piece in (secret[i : i + 8] for i in range(len(secret) - 8)):
        assert piece not in shown
    assert KEYS.secret.decode() not in shown


def test_a_join_string_of_a_later_version_is_reported_as_such() -> None:
    body = b"\x02" + bytes(100)
    payload = base64.urlsafe_b64encode(body).rstrip(b"=").decode()
    with pytest.raises(ConfigError, match="it is of version 2, expected 1; upgrade the older side"):
        Join.parse(f"{SCHEME}{payload}@host:9887")


def test_no_representation_shows_the_secret() -> None:
    assert KEYS.secret.decode() not in repr(JOIN) + str(JOIN) + repr(JOIN.security) + repr(KEYS)


@pytest.mark.parametrize(
    ("body", "addresses"),
    [
        (b"x" + z85.decode(KEYS.secret) + b"\x01" + z85.decode(SERVERS[0]) + b"name", "host:1"),
        (b"p" + z85.decode(KEYS.secret) + b"\x00" + b"name", "host:1"),
        (b"p" + z85.decode(KEYS.secret) + b"\xff" + z85.decode(SERVERS[0]) + b"name", "host:1"),
        (b"p" + z85.decode(KEYS.secret) + b"\x01" + z85.decode(SERVERS[0]), "host:1"),
        (b"p" + z85.decode(KEYS.secret) + b"\x01" + z85.decode(SERVERS[0]) + b"na/me", "host:1"),
        (b"p" + z85.decode(KEYS.secret) + b"\x01" + z85.decode(SERVERS[0]) + b"n\xffme", "host:1"),
        (b"p" + z85.decode(KEYS.secret) + b"\x01" + z85.decode(SERVERS[0]) + b"name", "host:1:2"),
        (b"p" + z85.decode(KEYS.secret) + b"\x01" + z85.decode(SERVERS[0]) + b"name", ",".join(["host:1"] * 65)),
    ],
    ids=["role", "no-server-key", "too-many-server-keys", "no-name", "bad-name", "not-ascii", "address", "addresses"],
)
def test_a_malformed_join_string_with_a_right_checksum_is_rejected(body: bytes, addresses: str) -> None:
    body = b"\x01" + body
    checksum = hashlib.blake2b(body + b"@" + addresses.encode(), digest_size=4).digest()
    payload = base64.urlsafe_b64encode(body + checksum).rstrip(b"=").decode()
    with pytest.raises(ConfigError) as caught:
        Join.parse(f"{SCHEME}{payload}@{addresses}")
    assert_silent(caught.value)
