"""Which clients a listener lets in, by their addresses. Knows neither sockets nor the loop.

A client that is not let in is reset at once, before anything is read from it. IPv4 addresses that come in through an
IPv6 socket count as what they are.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import Final

from goreprox.errors import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPV6_CLIENT_BITS: Final = 64
"""Whoever has one IPv6 address has as many as fit into a /64: all of them are one client."""


def parse_network(option: str, text: str) -> Network:
    """Read `192.0.2.0/24`, `2001:db8::/32`, or a single address.

    Raises:
        ConfigError: it is none of these.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        raise ConfigError(f"{option} {text}: {exc}; write a network like 192.0.2.0/24, or one address") from exc


class Doors:
    """Decides about clients and counts those inside.

    `deny` wins over `allow`; with no `allow` everybody is allowed who is not denied. `most` is how many connections one
    address may have at a time (for IPv6: one /64); None is any number. Memory: one count for each address inside.
    """

    def __init__(self, allow: Iterable[Network] = (), deny: Iterable[Network] = (), most: int | None = None) -> None:
        """Start with nobody inside."""
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._most = most
        self._inside: Counter[str] = Counter()
        self.refused = 0
        """Clients that were not let in."""

    def enter(self, address: str) -> bool:
        """Return whether a client may come in; if so, it is inside until `leave`."""
        client = _client(address)
        if self._closed_to(client) or (self._most is not None and self._inside[_key(client)] >= self._most):
            self.refused += 1
            return False
        if self._most is not None:
            self._inside[_key(client)] += 1
        return True

    def leave(self, address: str) -> None:
        """A client that came in is gone."""
        if self._most is not None:
            key = _key(_client(address))
            self._inside[key] -= 1
            if not self._inside[key]:
                del self._inside[key]

    def _closed_to(self, client: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        if any(client in network for network in self._deny):
            return True
        return bool(self._allow) and not any(client in network for network in self._allow)


def _client(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(address.partition("%")[0])  # without the zone of a link-local one
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _key(client: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if client.version == 4:
        return str(client)
    return str(ipaddress.IPv6Network((client, IPV6_CLIENT_BITS), strict=False))
