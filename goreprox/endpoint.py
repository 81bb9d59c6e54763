"""One end of a TCP connection as a value, and what counts as one client."""

import ipaddress
from dataclasses import dataclass
from typing import Final, Self

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_PORT: Final = 65_535
IPV6_CLIENT_BITS: Final = 64
"""A host with one IPv6 address can use every address of its /64, so all of these count as one client."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IP address, without brackets and perhaps with a zone (RFC 4007), and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `ADDRESS:PORT` or `[ADDRESS]:PORT`; None for anything else, as a peer may say anything."""
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        try:
            ip_of(host)
            number = int(port)
        except ValueError:
            return None
        return cls(host, number) if 0 <= number <= MAX_PORT else None

    @property
    def address(self) -> IP:
        """The address without its zone."""
        return ipaddress.ip_address(self.host.partition("%")[0])

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ip_of(host: str) -> IP:
    """Return the address of a host without its zone; one of IPv4 that is mapped to IPv6 (RFC 4291) as IPv4.

    Raises:
        ValueError: it is none.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def client_network(address: IP) -> str:
    """Return a key of what counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    return str(address) if address.version == 4 else str(int(address) >> IPV6_CLIENT_BITS)
