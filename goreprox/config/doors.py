"""Which clients are let in, by their addresses and where they come in. Knows neither sockets nor the loop.

A client that is not let in is reset at once, before anything is read from it. IPv4 addresses that come in through an
IPv6 socket count as what they are.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from goreprox.errors import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Client = ipaddress.IPv4Address | ipaddress.IPv6Address
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


class Doors:
    """Decides about clients and counts those inside.

    `deny` wins over `allow`; a place without any `allow` is open to everybody who is not denied. `most` is how many
    connections one address may have at a time (for IPv6: one /64), over all places; None is any number, and so it is
    for the networks that are `uncounted`. Memory: one count for each address inside.
    """

    def __init__(
        self,
        allow: Iterable[Rule] = (),
        deny: Iterable[Rule] = (),
        most: int | None = None,
        uncounted: Iterable[Network] = (),
    ) -> None:
        """Start with nobody inside."""
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._most = most
        self._uncounted = tuple(uncounted)
        self.has_rules = bool(self._allow or self._deny)
        self.guarded = self.has_rules or most is not None
        """Whether anybody could be refused: otherwise nobody need be asked."""
        self._inside: Counter[str] = Counter()
        self.refused = 0
        """Clients that were not let in."""

    def enter(self, address: str, *places: str) -> bool:
        """Return whether a client may come in at these places; if so, it is inside until `leave`."""
        if self.objection(address, *places) is not None:
            self.refused += 1
            return False
        client = parse_client(address)
        if self._counts(client):
            self._inside[_key(client)] += 1
        return True

    def objection(self, address: str, *places: str) -> str | None:
        """Return why a client may not come in at these places, or None if it may."""
        client = parse_client(address)
        if self._closed_to(client, places):
            return "--allow and --deny keep it out"
        if self._most is not None and self._counts(client) and self._inside[_key(client)] >= self._most:
            return (
                f"it has {self._most} connections, as many as one address may (--max-connections-per-address; a proxy "
                "is not counted if it is among --trusted-proxies)"
            )
        return None

    def _counts(self, client: Client) -> bool:
        return self._most is not None and not any(client in network for network in self._uncounted)

    def closed_to(self, address: str, service: str) -> bool:
        """Whether rules keep an address, which may be inside for another service, from this one."""
        return self._closed_to(parse_client(address), (service,))

    def leave(self, address: str) -> None:
        """A client that came in is gone."""
        client = parse_client(address)
        if self._counts(client):
            key = _key(client)
            self._inside[key] -= 1
            if not self._inside[key]:
                del self._inside[key]

    def _closed_to(self, client: Client, places: tuple[str, ...]) -> bool:
        if any(rule.covers(client, places) for rule in self._deny):
            return True
        allow = [rule for rule in self._allow if rule.place is None or rule.place in places]
        return bool(allow) and not any(rule.covers(client, places) for rule in allow)


def parse_client(address: str) -> Client:
    """Return an address as what it is: an IPv4 one that came in as IPv6 is IPv4."""
    parsed = ipaddress.ip_address(address.partition("%")[0])  # without the zone of a link-local one
    return getattr(parsed, "ipv4_mapped", None) or parsed


def client_key(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    return _key(parse_client(address))


def _key(client: Client) -> str:
    if client.version == 4:
        return str(client)
    return str(ipaddress.IPv6Network((client, IPV6_CLIENT_BITS), strict=False))
