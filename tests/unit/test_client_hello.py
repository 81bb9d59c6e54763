"""The first message of TLS clients: real ones, in any pieces, and whatever may not be believed."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.net.client_hello import (
    DECODE_ERROR,
    MAX_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_RECORDS,
    UNRECOGNIZED_NAME,
    ClientHello,
    Malformed,
    fatal_alert,
    read,
)
from tests.support.client_hellos import (
    MODERN,
    OLD,
    alpn,
    extension,
    first_bytes,
    message,
    records,
    server_name,
    vector,
)

HOST = server_name(b"example.com")
LONGEST = b".".join([b"a" * 62] * 4) + b"b"
NAMED = ClientHello("example.com", (), has_ech=False)


@pytest.mark.parametrize("version", [MODERN, OLD])
@pytest.mark.parametrize("protocols", [(), ("h2", "http/1.1"), ("acme-tls/1",)])
@pytest.mark.parametrize("host", ["Example.COM", None])
def test_what_openssl_sends_is_read(version: ssl.TLSVersion, protocols: tuple[str, ...], host: str | None) -> None:
    data = first_bytes(host, *protocols, version=version)
    name = None if host is None else "example.com"
    assert read(data + b"early data") == ClientHello(name, tuple(map(str.encode, protocols)), has_ech=False)
    assert [read(data[:size]) for size in range(len(data))] == [None] * len(data)


@given(st.lists(st.integers(1, 500), max_size=MAX_RECORDS - 1), st.booleans())
def test_fragments_of_any_size_are_put_together(sizes: list[int], padded: bool) -> None:
    data = records(message(HOST, *([extension(21, bytes(9000))] if padded else [])), sizes)
    assert read(data) == NAMED
    assert read(bytearray(data)) == NAMED
    assert read(data[:-1]) is None
    assert len(data) <= MAX_BYTES


READ = {
    "no extensions": (message()[:-2].replace(message()[1:4], (len(message()) - 6).to_bytes(3), 1), None),
    "an empty list of extensions": (message(), None),
    "a dot at the end": (message(server_name(b"example.com.")), "example.com"),
    "an underscore": (message(server_name(b"_a.b_c")), "_a.b_c"),
    "an IPv4 address, which may not be": (message(server_name(b"127.0.0.1")), "127.0.0.1"),
    "a name in punycode": (message(server_name(b"xn--Mnchen-3ya.example")), "xn--mnchen-3ya.example"),
    "the longest name": (message(server_name(LONGEST + b".")), LONGEST.decode()),
    "extensions that nobody knows": (message(extension(0x0A0A, b""), HOST, extension(0xFAFA, b"x")), "example.com"),
    "TLS 1.0": (message(HOST, version=0x0301), "example.com"),
    "the longest message": (message(HOST, extension(21, bytes(MAX_MESSAGE_BYTES - 105))), "example.com"),
    "another message after it": (message(HOST) + message(), "example.com"),
}


@pytest.mark.parametrize("name", READ)
def test_all_that_a_client_may_send_is_read(name: str) -> None:
    data, host = READ[name]
    assert read(records(data)) == ClientHello(host, (), has_ech=False)


def test_a_client_hello_with_another_encrypted_in_it_is_known_by_the_outer_name() -> None:
    assert read(records(message(HOST, extension(0xFE0D, b"\0" + bytes(200)), alpn(b"h2")))) == ClientHello(
        "example.com", (b"h2",), has_ech=True
    )


REFUSED = {
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "a greeting of ZMTP": b"\xff" + bytes(8) + b"\x7f",
    "a ClientHello of SSL 2": b"\x80\x2e\x01\x03\x01",
    "another type of record": b"\x17",
    "another version of records": b"\x16\x04",
    "an empty record": b"\x16\x03\x01\x00\x00",
    "a record that is too long": b"\x16\x03\x01\x40\x01",
    "another type of the second record": records(message(HOST)[:50]) + b"\x15",
    "another message": records(b"\x02"),
    "a message that is too long": records(b"\x01" + (MAX_MESSAGE_BYTES - 3).to_bytes(3)),
    "too many fragments": records(message(HOST, extension(21, bytes(100))), [1] * MAX_RECORDS),
    "another major version": records(message(HOST, version=0x0203)),
    "nothing in it": records(b"\x01\x00\x00\x00"),
    "something after the extensions": records(message(HOST, after=b"\0")),
    "extensions that are longer than the message": records(b"\x01\x00\x00\x2b" + message()[4:45] + b"\xff\xff"),
    "an extension that is longer than all of them": records(message(b"\x00\x00\x00\x01")),
    "half an extension": records(message(b"\x00\x00\x00")),
    "an extension twice": records(message(HOST, HOST)),
    "an unknown extension twice": records(message(HOST, extension(99, b""), extension(99, b""))),
    "an empty server name": records(message(extension(0, b""))),
    "no names": records(message(extension(0, b"\0\0"))),
    "two names": records(message(server_name(b"a", b"b"))),
    "a name of another type": records(message(server_name(b"a", kind=1))),
    "an empty name": records(message(server_name(b""))),
    "a dot alone": records(message(server_name(b"."))),
    "two dots at the end": records(message(server_name(b"a.."))),
    "a dot first": records(message(server_name(b".a"))),
    "a NUL in a name": records(message(server_name(b"a\0.example.com"))),
    "a space in a name": records(message(server_name(b"a b"))),
    "a line break in a name": records(message(server_name(b"a\n"))),
    "an IPv6 address for a name": records(message(server_name(b"::1"))),
    "a name beyond ASCII": records(message(server_name("münchen".encode()))),
    "a name that is too long": records(message(server_name(LONGEST + b"b"))),
    "a label that is too long": records(message(server_name(b"a" * 64))),
    "something after the names": records(message(extension(0, vector(2, b"\0" + vector(2, b"a")) + b"x"))),
    "a list that is longer than its extension": records(message(extension(0, b"\x00\x05\x00\x00\x01a"))),
    "empty ALPN": records(message(extension(16, b""))),
    "no protocols": records(message(alpn())),
    "an empty protocol": records(message(alpn(b"h2", b""))),
    "something after the protocols": records(message(extension(16, vector(2, b"\x02h2") + b"x"))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_client_hello_is_rejected_by_its_first_bytes(name: str) -> None:
    data = REFUSED[name]
    with pytest.raises(Malformed) as caught:
        read(data)
    assert len(str(caught.value)) < 100
    rejected = [size for size in range(len(data)) if _is_rejected(data[:size])]
    assert rejected == list(range(rejected[0] if rejected else len(data), len(data)))


def _is_rejected(data: bytes) -> bool:
    try:
        read(data)
    except Malformed:
        return True
    return False


def test_bytes_that_never_end_are_rejected_at_the_limit() -> None:
    longest = records(
        b"\x01" + (MAX_MESSAGE_BYTES - 4).to_bytes(3) + bytes(MAX_MESSAGE_BYTES - 4), [1] * (MAX_RECORDS - 1)
    )
    assert read(longest[:-1]) is None
    assert len(longest) == MAX_BYTES
    with pytest.raises(Malformed):
        read(longest)


@pytest.mark.parametrize(("alert", "name"), [(UNRECOGNIZED_NAME, "UNRECOGNIZED_NAME"), (DECODE_ERROR, "DECODE_ERROR")])
@pytest.mark.parametrize("version", [MODERN, OLD])
def test_openssl_understands_the_alerts(alert: int, name: str, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    incoming = ssl.MemoryBIO()
    client = context.wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(fatal_alert(alert))
    with pytest.raises(ssl.SSLError, match=name):
        client.do_handshake()
