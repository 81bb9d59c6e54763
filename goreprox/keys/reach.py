"""The addresses at which peers reach a server, as its join strings name them.

The server writes them to `reach.toml` in its state directory at each start, so that `goreprox keys add` knows its
ports and the address that `--address` gave, on any later day and without a running server.
"""

import socket
import tomllib
from dataclasses import dataclass
from typing import Self

from brokers import Role
from goreprox.config.addresses import EDGES, PROVIDERS, WILDCARDS, Address
from goreprox.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Reach:
    """What `--address` gave, and where the server listens for peers."""

    given: tuple[Address, ...] = ()
    """Hosts with the port for providers, which a port forwarding may have changed, or SAME_PORT."""
    providers: Address = PROVIDERS
    edges: Address = EDGES

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `text` gave.

        Raises:
            ValueError: it did not.
        """
        document = tomllib.loads(text)
        try:
            return cls(
                tuple(Address.parse(address) for address in document["address"]),
                Address.parse(document["providers"]),
                Address.parse(document["edges"]),
            )
        except (KeyError, TypeError, AttributeError, ConfigError) as exc:
            raise ValueError("expected `address`, `providers` and `edges`") from exc

    @property
    def text(self) -> str:
        """The content of `reach.toml`."""
        given = ", ".join(f'"{address}"' for address in self.given)
        return f'address = [{given}]\nproviders = "{self.providers}"\nedges = "{self.edges}"\n'

    @property
    def assumed_host(self) -> str | None:
        """The name of this machine, if join strings name it for want of a better one: others may not know it."""
        return own_host() if not self.given and self.providers.host in WILDCARDS else None

    def addresses(self, role: Role) -> tuple[Address, ...]:
        """Return what join strings for `role` name."""
        if role is Role.PROVIDER:
            return self._named(self.providers)
        return tuple(Address(address.host, self.edges.port) for address in self._named(self.edges))

    def _named(self, listening: Address) -> tuple[Address, ...]:
        if self.given:
            return tuple(Address(address.host, address.port or listening.port) for address in self.given)
        host = own_host() if listening.host in WILDCARDS else listening.host
        return (Address(host, listening.port),)


def own_host() -> str:
    """Give the name by which others may know this machine; whether they do, it cannot know."""
    try:
        return str(Address.parse(f"{socket.gethostname()}:1").host)
    except ConfigError:  # no name that a resolver would take
        return "localhost"
