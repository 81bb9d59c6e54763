"""The PROXY protocol: golden vectors, whatever may not be believed, and headers in any pieces."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.config.addresses import ProxyVersion
from goreprox.endpoint import Endpoint
from goreprox.net.proxy_protocol import MAX_BYTES, Header, Malformed, read, write

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4, V6 = ("192.0.2.1:56324", "198.51.100.7:443"), ("[2001:db8::1]:1", "[::1]:65535")
GOLDEN: list[tuple[ProxyVersion, tuple[str, str], bytes]] = [
    (ProxyVersion.V1, V4, b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"),
    (ProxyVersion.V1, V6, b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"),
    (ProxyVersion.V2, V4, SIGNATURE + bytes.fromhex("2111000cc0000201c6336407dc0401bb")),
    (
        ProxyVersion.V2,
        V6,
        SIGNATURE + bytes.fromhex("2121002420010db8000000000000000000000001000000000000000000000000000000010001ffff"),
    ),
]
UNKNOWN = {ProxyVersion.V1: b"PROXY UNKNOWN\r\n", ProxyVersion.V2: SIGNATURE + bytes.fromhex("21000000")}


def texts(header: Header) -> tuple[str, ...] | None:
    return None if header.endpoints is None else tuple(map(str, header.endpoints))


def v2(command: int, kind: int, body: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body) if length is None else length) + body


V4_BODY = bytes(range(12))
V4_ENDS = ("0.1.2.3:2057", "4.5.6.7:2571")
MAPPED = tuple(
    f"[{ipaddress.IPv6Address(text)}]:{port}" for port, text in enumerate(("::ffff:1.2.3.4", "::ffff:5.6.7.8"))
)


@pytest.mark.parametrize(("version", "ends", "expected"), GOLDEN)
def test_headers_are_written_as_specified_and_read_again(
    version: ProxyVersion, ends: tuple[str, str], expected: bytes
) -> None:
    assert write(version, *map(Endpoint.parse, ends)) == expected
    header = read(expected + b"more")
    assert header is not None
    assert (header.size, texts(header)) == (len(expected), ends)


@pytest.mark.parametrize(
    "ends",
    [
        ("test", ""),
        (V4[0], ""),
        ("", V4[1]),
        (V4[0], V6[1]),
        ("192.0.2.1:x", V4[1]),
        ("192.0.2.1:65536", V4[1]),
        ("192.0.2.1:-1", V4[1]),
        ("example.org:1", V4[1]),
    ],
)
def test_unknown_addresses_are_written_as_unknown(ends: tuple[str, str]) -> None:
    for version, header in UNKNOWN.items():
        assert write(version, *map(Endpoint.parse, ends)) == header
        assert read(header) == Header(len(header), None)


def test_zones_of_addresses_are_removed() -> None:
    header = write(ProxyVersion.V1, Endpoint("fe80::1%eth0", 1), Endpoint("fe80::2%eth0", 2))
    assert header == b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"


READ = {
    "a line of an unknown kind with addresses": (b"PROXY UNKNOWN ff:: ff:: 1 2\r\n", None),
    "a line of an unknown kind with anything": (b"PROXY UNKNOWN \xff\x00 TCP4\r\n", None),
    "the longest line": (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None),
    "the longest line for IPv6": (
        b"PROXY TCP6 %b %b 65535 65535\r\n" % ((b":".join([b"ffff"] * 8),) * 2),
        ("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",) * 2,
    ),
    "an IPv4 address in IPv6": (b"PROXY TCP6 ::ffff:1.2.3.4 ::FFFF:5.6.7.8 0 1\r\n", MAPPED),
    "the proxy's own connection": (v2(0x20, 0x00, b""), None),
    "the proxy's own connection with addresses": (v2(0x20, 0x11, V4_BODY), None),
    "the proxy's own connection of a kind not assigned": (v2(0x20, 0xFF, b"more"), None),
    "further fields": (v2(0x21, 0x11, V4_BODY + b"\x03\x00\x04abcd\x04\x00"), V4_ENDS),
    "as many further fields as may be": (v2(0x21, 0x11, V4_BODY.ljust(MAX_BYTES - 16)), V4_ENDS),
    "datagrams": (v2(0x21, 0x12, V4_BODY), None),
    "a Unix socket": (v2(0x21, 0x31, bytes(216)), None),
    "an unknown transport": (v2(0x21, 0x10, V4_BODY), None),
}


@pytest.mark.parametrize("name", READ)
def test_all_specified_headers_are_read(name: str) -> None:
    header, ends = READ[name]
    found = read(header + b"GET / HTTP/1.1\r\n")
    assert found is not None
    assert found.size == len(header)
    assert texts(found) == ends


REFUSED = {
    "a request": b"GET / HTTP/1.1\r\n",
    "a TLS hello": b"\x16\x03\x01",
    "lower case": b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "a space first": b" PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "an LF alone": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\nmore\r\n",
    "a CR alone": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\rmore\r\n",
    "an LF in an unknown kind": b"PROXY UNKNOWN \nmore\r\n",
    "no end": b"PROXY UNKNOWN " + b"f" * 93,
    "an end that is late by one": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "another kind": b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "a longer word": b"PROXY UNKNOWNS\r\n",
    "two spaces": b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "a space at the end": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
    "a port less": b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    "no ends": b"PROXY TCP4\r\n",
    "a zero before a number": b"PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n",
    "a zero before a port": b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
    "a signed port": b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
    "a port beyond any": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
    "an address that is too short": b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
    "a name": b"PROXY TCP4 a.example.org 5.6.7.8 1 2\r\n",
    "IPv6 that says IPv4": b"PROXY TCP4 ::1 ::2 1 2\r\n",
    "IPv4 that says IPv6": b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
    "both": b"PROXY TCP6 ::1 5.6.7.8 1 2\r\n",
    "a zone": b"PROXY TCP6 fe80::1%1 ::1 1 2\r\n",
    "digits of others": "PROXY TCP4 1.2.3.4 5.6.7.8 \u0661 2\r\n".encode(),
    "a signature that is not": SIGNATURE[:-1] + b"\r",
    "version 1 in binary": v2(0x11, 0x11, V4_BODY),
    "version 3": v2(0x31, 0x11, V4_BODY),
    "a command that is not assigned": v2(0x22, 0x11, V4_BODY),
    "a family that is not assigned": v2(0x21, 0x41, V4_BODY),
    "a transport that is not assigned": v2(0x21, 0x13, V4_BODY),
    "addresses that are too short": v2(0x21, 0x11, V4_BODY[:-1]),
    "IPv6 addresses that are too short": v2(0x21, 0x21, V4_BODY),
    "more than may be": v2(0x21, 0x11, V4_BODY, length=MAX_BYTES - 15),
    "as much as can be said": v2(0x20, 0x00, b"", length=0xFFFF),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_rejected_at_once(name: str) -> None:
    with pytest.raises(Malformed):
        read(REFUSED[name])


ENDS = st.one_of(
    st.tuples(*[st.tuples(st.ip_addresses(v=4), st.integers(0, 65_535))] * 2),
    st.tuples(*[st.tuples(st.ip_addresses(v=6), st.integers(0, 65_535))] * 2),
)


@given(ENDS, st.sampled_from(ProxyVersion), st.binary(max_size=30))
def test_a_header_is_complete_with_its_last_byte_and_not_before(
    ends: tuple[tuple[object, int], ...], version: ProxyVersion, more: bytes
) -> None:
    client, destination = (Endpoint(str(address), port) for address, port in ends)
    header = write(version, client, destination)
    for size in range(len(header)):
        assert read(header[:size]) is None
    found = read(header + more)
    assert found is not None
    assert found.size == len(header)
    assert found.endpoints is not None
    assert write(version, *found.endpoints) == header


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 1.2.3.4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00"]), st.binary())
def test_any_bytes_are_a_header_none_or_a_part_of_one(begin: bytes, rest: bytes) -> None:
    try:
        found = read(begin + rest)
    except Malformed:
        return
    assert found is None or 0 < found.size <= len(begin + rest)
