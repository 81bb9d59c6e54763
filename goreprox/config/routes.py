"""Services by the host of a request: exact names come first, then `*.example.com`, then `*`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from goreprox.endpoint import MAX_PORT
from goreprox.errors import ConfigError

_NAME: Final = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_PATTERN: Final = re.compile(rf"(?=.{{1,253}}\Z)(\*|(\*\.)?{_NAME}(\.{_NAME})*)|\[[0-9a-f:.]+\]")
HOST: Final = re.compile(rb"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_PORT: Final = re.compile(rb":[0-9]*\Z")
_PASSED_ON: Final = "tls://"


@dataclass(frozen=True, slots=True)
class Route:
    """The service of a host, or of a pattern of hosts."""

    host: str
    """In lower case; `*.example.com` is every name below example.com, `*` every host."""
    service: str
    passes: bool = False
    """Whether it is for TLS at `sni://` ports alone, which is passed on even if there is a certificate."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `HOST=SERVICE` or `tls://HOST=SERVICE`.

        Raises:
            ConfigError: the host is malformed.
        """
        name, separator, service = text.partition("=")
        host = name.lower().removeprefix(_PASSED_ON)
        if not separator or not _PATTERN.fullmatch(host):
            raise ConfigError(
                f"route {text!r}: write [tls://]HOST=SERVICE, HOST being a name, *.NAME or *, without a port"
            )
        return cls(host, service, host != name.lower())

    @property
    def name(self) -> str:
        """How its host is written."""
        return f"{_PASSED_ON if self.passes else ''}{self.host}"

    @property
    def text(self) -> str:
        """How it is written."""
        return f"{self.name}={self.service}"


class Routes:
    """Finds the service of a host."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Know `routes`; of two for the same host the one that `passes` wins."""
        self._routes = {route.host.encode(): route for route in sorted(routes, key=lambda route: route.passes)}

    @property
    def services(self) -> Iterable[str]:
        """The services that hosts can have."""
        return [route.service for route in self._routes.values()]

    def find(self, host: bytes) -> str | None:
        """Return the service of a Host field, ignoring its port and case; None if there is none."""
        route = self.match(host)
        return None if route is None else route.service

    def match(self, host: bytes) -> Route | None:
        """Return the route of a Host field, ignoring its port and case, if there is one."""
        name = name_of(host)
        if (found := self._routes.get(name)) is not None:
            return found
        while b"." in name:
            name = name.partition(b".")[2]
            if (found := self._routes.get(b"*." + name)) is not None:
                return found
        return self._routes.get(b"*")


def name_of(host: bytes) -> bytes:
    """Return the name in a Host field, in lower case, without a port and a dot at the end."""
    return _PORT.sub(b"", host).lower().removesuffix(b".")


def is_host(value: bytes) -> bool:
    """Return whether the value of a Host field is valid, with or without a port."""
    match = HOST.fullmatch(value)
    return match is not None and int(match[2] or 0) <= MAX_PORT
