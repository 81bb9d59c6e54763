"""Networks of clients and proxies, and what counts as one client."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from goreprox.errors import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Client = ipaddress.IPv4Address | ipaddress.IPv6Address
LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
IPV6_CLIENT_BITS: Final = 64
"""Whoever has one IPv6 address has as many as fit into a /64: all of them are one client."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Clients from a network, at one place, which is a service or a port, or (None) at all."""

    place: str | None
    network: Network

    @classmethod
    def parse(cls, option: str, text: str) -> Self:
        """Read `[PLACE=]CIDR`, like `192.0.2.0/24`, `web=2001:db8::/32`, or `8080=192.0.2.1`.

        Raises:
            ConfigError: it is none of these.
        """
        place, separator, network = text.rpartition("=")
        try:
            return cls(place if separator else None, ipaddress.ip_network(network))
        except ValueError as exc:
            raise ConfigError(f"{option} {text!r}: {exc}; write a network like 192.0.2.0/24, or one address") from exc

    def covers(self, client: Client, places: Iterable[str]) -> bool:
        """Whether it is about a client at one of these places."""
        return (self.place is None or self.place in places) and client in self.network


def parse_client(address: str) -> Client:
    """Return an address as what it is: an IPv4 one that came in as IPv6 is IPv4."""
    parsed = ipaddress.ip_address(address.partition("%")[0])  # without the zone of a link-local one
    return getattr(parsed, "ipv4_mapped", None) or parsed


def client_key(client: Client) -> str:
    """Return what counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    if client.version == 4:
        return str(client)
    return str(ipaddress.IPv6Network((client, IPV6_CLIENT_BITS), strict=False))
