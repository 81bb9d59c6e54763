"""Access rules: which clients are admitted, by their addresses and where they connect.

A client that is not admitted is reset at once, before anything is read from it.
"""

import enum
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from goreprox.config.networks import Network, Rule
from goreprox.endpoint import IP, client_network, ip_of


class Cause(enum.Enum):
    """Why a client was not admitted, for programs."""

    DENIED = "denied"
    """By `--allow` or `--deny`."""
    ADDRESS_LIMIT = "address_limit"
    TLS = "tls"
    """Its handshake failed."""
    PROXY_HEADER = "proxy_header"
    """There was none, or a malformed one."""


class Objection(NamedTuple):
    """Why a client is not admitted."""

    cause: Cause
    text: str


class Access:
    """Admits clients, and counts the connections of each address.

    `deny` wins over `allow`; a scope without any `allow` is open to all clients that are not denied. `limit` is the
    number of connections that one address may have at a time (for IPv6: one /64), over all scopes; None is any number,
    and so it is for the networks that are `uncounted`. `refused` counts clients that were
    not admitted, by cause. Memory: one count for each address that has connections.
    """

    def __init__(
        self,
        allow: Iterable[Rule] = (),
        deny: Iterable[Rule] = (),
        limit: int | None = None,
        uncounted: Iterable[Network] = (),
        *,
        refused: Counter[str] | None = None,
    ) -> None:
        self._connections: Counter[str] = Counter()
        self.refused: Counter[str] = Counter() if refused is None else refused
        self.reconfigure(allow, deny, limit, uncounted)

    def reconfigure(
        self, allow: Iterable[Rule], deny: Iterable[Rule], limit: int | None, uncounted: Iterable[Network]
    ) -> None:
        """Apply other rules to clients from now on; those that were admitted stay, and count."""
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._limit = limit
        self._uncounted = tuple(uncounted)
        self.has_rules = bool(self._allow or self._deny)

    def admit(self, address: str, *scopes: str) -> bool:
        """Return whether a client is admitted in these scopes; if so, it counts until `release`."""
        objection = self.objection(address, *scopes)
        if objection is not None:
            self.refuse(objection.cause)
            return False
        self.count(address)
        return True

    def count(self, address: str) -> None:
        """Count a client until `release`, whatever the rules say."""
        self._connections[client_network(ip_of(address))] += 1

    def refuse(self, cause: Cause) -> None:
        """Count a client that is refused."""
        self.refused[cause.value] += 1

    def objection(self, address: str, *scopes: str) -> Objection | None:
        """Return why a client is not admitted in these scopes, or None if it is."""
        client, limit = ip_of(address), self._limit
        if self._denies(client, scopes):
            return Objection(Cause.DENIED, "denied by --allow or --deny")
        if limit is not None and self._is_limited(client) and self._connections[client_network(client)] >= limit:
            return Objection(
                Cause.ADDRESS_LIMIT,
                f"it has {limit} connections, as many as one address may (--max-connections-per-address; a proxy "
                "is not counted if it is among --trusted-proxies)",
            )
        return None

    def denies(self, address: str, service: str) -> bool:
        """Return whether rules deny a service to an address, which may be admitted for another one."""
        return self._denies(ip_of(address), (service,))

    def release(self, address: str) -> None:
        """Count a client that was admitted no longer."""
        key = client_network(ip_of(address))
        self._connections[key] -= 1
        if not self._connections[key]:
            del self._connections[key]

    def _is_limited(self, client: IP) -> bool:
        return not any(client in network for network in self._uncounted)

    def _denies(self, client: IP, scopes: tuple[str, ...]) -> bool:
        if any(rule.covers(client, scopes) for rule in self._deny):
            return True
        allow = [rule for rule in self._allow if rule.scope is None or rule.scope in scopes]
        return bool(allow) and not any(rule.covers(client, scopes) for rule in allow)
