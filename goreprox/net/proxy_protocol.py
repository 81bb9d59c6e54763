"""Headers of the PROXY protocol, versions 1 and 2: written and read. Sans-IO.

The header is what a proxy sends first on a connection: whose connection it passes on. The rules are those of
haproxy.org/download/3.0/doc/proxy-protocol.txt. A receiver must not guess whether there is one, so anything else
raises, and is never taken for the first bytes of a client.
"""

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Final

from goreprox.config.addresses import ProxyVersion
from goreprox.endpoint import MAX_PORT, Endpoint

MAX_BYTES: Final = 4096
"""The longest header. Senders should keep it within the smallest segment, 536 bytes, but names of certificates and of
clouds come on top. Version 2 can announce 65,551."""
_V1_MAX_BYTES: Final = 107
_V1_BEGIN: Final = b"PROXY "
_PORT: Final = rb"(0|[1-9][0-9]{0,4})"
_V1: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP(?:4 ([0-9.]+) ([0-9.]+)|6 ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+)) %b %b)\r\n"
    % (_PORT, _PORT)
)
_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD: Final = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
"""Version 2, and the command."""
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21
"""Family and transport."""
_MAX_FAMILY, _MAX_TRANSPORT = 3, 2
"""Unix sockets and datagrams: beyond these nothing is assigned."""
_ADDRESSES: Final = {_TCP4: struct.Struct("!4s4sHH"), _TCP6: struct.Struct("!16s16sHH")}


class Malformed(Exception):
    """A connection does not begin with a header; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header as it was read."""

    size: int
    """Bytes of the header."""
    endpoints: tuple[Endpoint, Endpoint] | None
    """The client, and where it connected to. None: it is the proxy's own connection, or of an unknown kind."""


def write(version: ProxyVersion, client: Endpoint | None, destination: Endpoint | None) -> bytes:
    """Return the header for a client that connected to `destination`.

    It says that the connection is of an unknown kind if one of them is unknown, or they differ in their version of IP.
    """
    if client is None or destination is None or client.address.version != destination.address.version:
        return b"PROXY UNKNOWN\r\n" if version is ProxyVersion.V1 else _V2_HEAD.pack(_SIGNATURE, _PROXY, _UNSPEC, 0)
    source, target = client.address, destination.address
    if version is ProxyVersion.V1:
        return f"PROXY TCP{source.version} {source} {target} {client.port} {destination.port}\r\n".encode()
    kind = _TCP4 if source.version == 4 else _TCP6
    layout = _ADDRESSES[kind]
    addresses = layout.pack(source.packed, target.packed, client.port, destination.port)
    return _V2_HEAD.pack(_SIGNATURE, _PROXY, kind, layout.size) + addresses


def read(data: bytes) -> Header | None:
    """Return the header at the start of `data`; None if it is longer than that.

    Raises:
        Malformed: there is none, or one that is longer than `MAX_BYTES`.
    """
    if _SIGNATURE.startswith(data[: len(_SIGNATURE)]):
        return _read_v2(data)
    if _V1_BEGIN.startswith(data[: len(_V1_BEGIN)]):
        return _read_v1(data)
    raise Malformed("the connection begins with something else")


def _read_v1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, _V1_MAX_BYTES)
    if end < 0 and len(data) < _V1_MAX_BYTES:
        return None
    match = _V1.fullmatch(data, 0, end + 2)
    if match is None:
        raise Malformed("its line is malformed")
    *addresses, source_port, target_port = [field and field.decode() for field in match.groups()]
    if source_port is None:
        return Header(end + 2, None)
    make = ipaddress.IPv4Address if addresses[0] else ipaddress.IPv6Address
    try:
        source, target = [make(address) for address in addresses if address]
    except ValueError as exc:
        raise Malformed(str(exc)) from exc
    ports = int(source_port), int(target_port)
    if max(ports) > MAX_PORT:
        raise Malformed("a port is beyond 65535")
    return Header(end + 2, (Endpoint(str(source), ports[0]), Endpoint(str(target), ports[1])))


def _read_v2(data: bytes) -> Header | None:
    if len(data) < _V2_HEAD.size:
        return None
    _, command, kind, length = _V2_HEAD.unpack_from(data)
    size = _V2_HEAD.size + length
    if size > MAX_BYTES:
        raise Malformed(f"it has {size:,} bytes, expected at most {MAX_BYTES:,}")
    if command not in (_LOCAL, _PROXY):
        raise Malformed(f"version and command are 0x{command:02x}, expected 0x20 or 0x21")
    if command == _PROXY and (kind >> 4 > _MAX_FAMILY or kind & 0xF > _MAX_TRANSPORT):
        raise Malformed(f"family and transport are 0x{kind:02x}, which is not assigned")
    layout = _ADDRESSES.get(kind) if command == _PROXY else None
    if layout is not None and length < layout.size:
        raise Malformed(f"its addresses have {length} bytes, expected {layout.size}")
    if len(data) < size:
        return None
    if layout is None:
        return Header(size, None)
    source, target, source_port, target_port = layout.unpack_from(data, _V2_HEAD.size)
    hosts = str(ipaddress.ip_address(source)), str(ipaddress.ip_address(target))
    return Header(size, (Endpoint(hosts[0], source_port), Endpoint(hosts[1], target_port)))
