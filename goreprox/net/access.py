"""Access rules: which clients are admitted, by their addresses and where they connect.

A client that is not admitted is reset at once, before anything is read from it.
"""

from collections import Counter
from collections.abc import Iterable

from goreprox.config.networks import Network, Rule
from goreprox.endpoint import IP, client_network, ip_of


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
        client = ip_of(address)
        if self._counts(client):
            self._inside[client_network(client)] += 1
        return True

    def objection(self, address: str, *places: str) -> str | None:
        """Return why a client may not come in at these places, or None if it may."""
        client = ip_of(address)
        if self._closed_to(client, places):
            return "--allow and --deny keep it out"
        if self._most is not None and self._counts(client) and self._inside[client_network(client)] >= self._most:
            return (
                f"it has {self._most} connections, as many as one address may (--max-connections-per-address; a proxy "
                "is not counted if it is among --trusted-proxies)"
            )
        return None

    def _counts(self, client: IP) -> bool:
        return self._most is not None and not any(client in network for network in self._uncounted)

    def closed_to(self, address: str, service: str) -> bool:
        """Whether rules keep an address, which may be inside for another service, from this one."""
        return self._closed_to(ip_of(address), (service,))

    def leave(self, address: str) -> None:
        """A client that came in is gone."""
        client = ip_of(address)
        if self._counts(client):
            key = client_network(client)
            self._inside[key] -= 1
            if not self._inside[key]:
                del self._inside[key]

    def _closed_to(self, client: IP, places: tuple[str, ...]) -> bool:
        if any(rule.covers(client, places) for rule in self._deny):
            return True
        allow = [rule for rule in self._allow if rule.place is None or rule.place in places]
        return bool(allow) and not any(rule.covers(client, places) for rule in allow)
