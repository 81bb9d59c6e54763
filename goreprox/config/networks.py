"""Networks of clients and proxies."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from goreprox.endpoint import IP
from goreprox.errors import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


@dataclass(frozen=True, slots=True)
class Rule:
    """Clients from a network, in one scope: a service or a port, or (None) everywhere."""

    scope: str | None
    network: Network

    @classmethod
    def parse(cls, option: str, text: str) -> Self:
        """Read `[SCOPE=]CIDR`, like `192.0.2.0/24`, `web=2001:db8::/32`, or `8080=192.0.2.1`.

        Raises:
            ConfigError: it is none of these.
        """
        scope, separator, network = text.rpartition("=")
        try:
            return cls(scope if separator else None, ipaddress.ip_network(network))
        except ValueError as exc:
            raise ConfigError(f"{option} {text!r}: {exc}; write a network like 192.0.2.0/24, or one address") from exc

    @property
    def text(self) -> str:
        """How it is written."""
        return str(self.network) if self.scope is None else f"{self.scope}={self.network}"

    def covers(self, client: IP, scopes: Iterable[str]) -> bool:
        """Return whether it applies to a client in one of these scopes."""
        return (self.scope is None or self.scope in scopes) and client in self.network


def parse_network(option: str, text: str) -> Network:
    """Read a network that is the same for all services.

    Raises:
        ConfigError: it is none.
    """
    rule = Rule.parse(option, text)
    if rule.scope is not None:
        raise ConfigError(f"{option} {rule.scope}={rule.network}: it is the same for all services")
    return rule.network
