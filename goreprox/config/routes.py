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


@dataclass(frozen=True, slots=True)
class Route:
    """The service of a host, or of a pattern of hosts."""

    host: str
    """In lower case; `*.example.com` is every name below example.com, `*` every host."""
    service: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `HOST=SERVICE`.

        Raises:
            ConfigError: the host is malformed.
        """
        host, separator, service = text.partition("=")
        if not separator or not _PATTERN.fullmatch(host.lower()):
            raise ConfigError(f"route {text!r}: write HOST=SERVICE, HOST being a name, *.NAME or *, without a port")
        return cls(host.lower(), service)

    @property
    def text(self) -> str:
        """How it is written."""
        return f"{self.host}={self.service}"


class Routes:
    """Finds the service of a host."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._services = {route.host.encode(): route.service for route in routes}

    @property
    def services(self) -> Iterable[str]:
        """The services that hosts can have."""
        return self._services.values()

    def find(self, host: bytes) -> str | None:
        """Return the service of a Host field, ignoring its port and case; None if there is none."""
        name = name_of(host)
        if (found := self._services.get(name)) is not None:
            return found
        while b"." in name:
            name = name.partition(b".")[2]
            if (found := self._services.get(b"*." + name)) is not None:
                return found
        return self._services.get(b"*")


def name_of(host: bytes) -> bytes:
    """Return the name in a Host field, in lower case, without a port and a dot at the end."""
    return _PORT.sub(b"", host).lower().removesuffix(b".")


def is_host(value: bytes) -> bool:
    """Return whether the value of a Host field is valid, with or without a port."""
    match = HOST.fullmatch(value)
    return match is not None and int(match[2] or 0) <= MAX_PORT
