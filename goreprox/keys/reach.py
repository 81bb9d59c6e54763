"""The addresses of a server that its join strings contain.

The server stores them in `reach.toml` in its state directory at each start, so that `goreprox keys add` knows the ports
and the address given by `--address`, also while no server runs.
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
    """The addresses given by `--address`, and those where the server listens for peers."""

    given: tuple[Address, ...] = ()
    """Hosts, each with the port for providers as seen from outside, or SAME_PORT."""
    providers: Address = PROVIDERS
    edges: Address = EDGES

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the content of `reach.toml`.

        Raises:
            ValueError: it is malformed.
        """
        document = tomllib.loads(text)
        try:
            return cls(
                tuple(Address.parse_link(address) for address in document["address"]),
                Address.parse_link(document["providers"]),
                Address.parse_link(document["edges"]),
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
        """The name of this machine, if join strings contain it for lack of a configured address."""
        return own_host() if not self.given and self.providers.host in WILDCARDS else None

    def addresses(self, role: Role) -> tuple[Address, ...]:
        """Return the addresses for join strings of `role`."""
        if role is Role.PROVIDER:
            return self._named(self.providers)
        return tuple(Address(address.host, self.edges.port, self.edges.tls) for address in self._named(self.edges))

    def _named(self, listening: Address) -> tuple[Address, ...]:
        if self.given:
            named = (Address(address.host, address.port or listening.port, address.tls) for address in self.given)
            return tuple(each.within_tls if listening.tls else each for each in named)
        host = own_host() if listening.host in WILDCARDS else listening.host
        return (Address(host, listening.port, listening.tls),)


def own_host() -> str:
    """Return the name of this machine, which other machines may or may not be able to resolve."""
    try:
        return str(Address.parse(f"{socket.gethostname()}:1").host)
    except ConfigError:  # not a valid host name
        return "localhost"
