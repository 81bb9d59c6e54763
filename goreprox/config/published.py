"""Published names: by which host or TCP port clients find a service, and which of them a key may have.

A published name is a service to all who only pass it on, so it is one string, which says whose it is, too: two keys
never share clients.

    http://app.example.com@laptop      requests for this host
    http://*.example.com@laptop        requests for every host below example.com
    tls://app.example.com@laptop       TLS that is passed on for this host, or as above for those below it
    tcp://20003@laptop                 clients of this port
    tcp://*/ssh@laptop                 clients of a port that the edge chooses for the service ssh
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from goreprox.config.names import check_name
from goreprox.endpoint import MAX_PORT
from goreprox.errors import ConfigError

MAX_NAMES: Final = 64
"""Published names of a key, of all its providers together. They are among the services in the peer list: 64 of 46
characters, with a head of 2 bytes each, fill the 3 KiB that are for those."""
MAX_EDGE_NAMES: Final = 1024
"""Published names of an edge, each with at most two listening sockets."""
MAX_GRANTS: Final = 32
"""Patterns of a key. The broker tells edges the ranges of ports: 32 of 7 bytes."""
PRIVILEGED: Final = 1024
"""Ports below are granted, and opened, only where they are named apart from others."""
MAX_NAME: Final = 240
"""Characters of a published name: with https:// and a port there are at most the 256 that the protocol allows."""
GRANTED: Final = "granted"
"""The attribute by which a broker tells of a key that publishes: the key, and ranges of ports; of an edge whose key may
open everything, that it may serve published names. A broker with keys tells nobody what peers themselves say there."""
ANY_PORT: Final = [[1, 65535]]
"""What a provider without keys says there."""
PUBLISHES: Final = "publishes"
"""The attribute of an edge that serves published names."""
_HTTP: Final = "http://"
_TLS: Final = "tls://"
_TCP: Final = "tcp://"
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_MAX_HOST: Final = 253  # RFC 1035, 2.3.4, without the length of the first label and the root
_PORT: Final = re.compile(r"[0-9]{1,5}")
_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_FORMS: Final = "write http://HOST, http://*.HOST, tls://HOST, tls://*.HOST, tcp://PORT or tcp://PORT-PORT"


def is_published(service: str) -> bool:
    """Return whether a service is a published name: no other one has such characters."""
    return "://" in service


def parse_host(text: str) -> str:
    """Return a host, or a pattern `*.HOST`, as it is compared: lower case, ASCII (IDNA), without a dot at the end.

    Raises:
        ConfigError: it is no host name, or `*` alone, which nobody can publish.
    """
    if text in ("*", "*."):
        raise ConfigError(f"host {text!r}: all hosts cannot be published; name a domain, like *.example.com")
    wild = text.startswith("*.")
    name = text.removeprefix("*.")
    try:
        host = (name if name.isascii() else name.encode("idna").decode()).lower().removesuffix(".")
    except UnicodeError:
        raise ConfigError(
            f"host {text[:80]!r}: it cannot be written in ASCII (IDNA), so no client can ask for it"
        ) from None
    labels = host.split(".")
    if len(host) > _MAX_HOST or not all(map(_LABEL.fullmatch, labels)):
        raise ConfigError(f"host {text[:80]!r}: expected a name like app.example.com, or *.example.com, without a port")
    if labels[-1].isdigit():
        raise ConfigError(f"host {text!r}: it is an address; only names can be published")
    return f"*.{host}" if wild else host


@dataclass(frozen=True, slots=True, order=True)
class Ports:
    """A range of TCP ports, both ends included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `PORT` or `PORT-PORT`, all below 1024 or none.

        Raises:
            ConfigError: it is neither.
        """
        match = _RANGE.fullmatch(text)
        if match is None:
            raise ConfigError(f"ports {text[:80]!r}: write PORT or PORT-PORT, like 20000-20999")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if not 1 <= first <= last <= MAX_PORT:
            raise ConfigError(f"ports {text}: expected 1 to {MAX_PORT}, the lower one first")
        if first < PRIVILEGED <= last:
            raise ConfigError(
                f"ports {text}: those below {PRIVILEGED} are for services of the system; if they are meant, name them "
                f"apart: {first}-{PRIVILEGED - 1} and {PRIVILEGED}-{last}"
            )
        return cls(first, last)

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    @property
    def text(self) -> str:
        """How it is written."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class PublishedName:
    """A name, and the key that asks for it. Exactly one of host, port and service is given."""

    owner: str
    """The name of the key."""
    host: str | None = None
    """As `parse_host` returns it."""
    port: int | None = None
    service: str | None = None
    """The service that any port is for."""
    tls: bool = False
    """Of a host: whether clients speak TLS, which is passed on, and not HTTP."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `service`'s own form.

        Raises:
            ConfigError: it is malformed, or not as `text` writes it.
        """
        url, _, owner = text.rpartition("@")
        check_name("owner", owner)
        name = cls._parse(url, owner)
        if name is None or name.text != text or len(text) > MAX_NAME:
            raise ConfigError(
                f"published name {text[:80]!r}: expected http://HOST@KEY, tls://HOST@KEY, tcp://PORT@KEY or "
                "tcp://*/SERVICE@KEY"
            )
        return name

    @classmethod
    def _parse(cls, url: str, owner: str) -> Self | None:
        for prefix in (_HTTP, _TLS):
            if url.startswith(prefix):
                return cls(owner, host=parse_host(url.removeprefix(prefix)), tls=prefix == _TLS)
        where = url.removeprefix(_TCP)
        if where == url:
            return None
        if where.startswith("*/"):
            check_name("service", where[2:])
            return cls(owner, service=where[2:])
        return cls(owner, port=int(where)) if _PORT.fullmatch(where) and 1 <= int(where) <= MAX_PORT else None

    @property
    def url(self) -> str:
        """What is published, for people: `tcp://` is any port."""
        if self.host is not None:
            return f"{_TLS if self.tls else _HTTP}{self.host}"
        return f"{_TCP}{'' if self.port is None else self.port}"

    @property
    def text(self) -> str:
        """The service that it is in the protocol."""
        return f"{_TCP}*/{self.service}@{self.owner}" if self.service is not None else f"{self.url}@{self.owner}"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key may publish: a host, or hosts, or ports."""

    host: str | None = None
    ports: Ports | None = None
    tls: bool = False
    """Of hosts: for TLS that is passed on, and not for HTTP."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `http://HOST`, `http://*.HOST`, the same with `tls://`, `tcp://PORT` or `tcp://PORT-PORT`.

        Raises:
            ConfigError: it is none of these.
        """
        try:
            for prefix in (_HTTP, _TLS):
                if text.startswith(prefix):
                    return cls(host=parse_host(text.removeprefix(prefix)), tls=prefix == _TLS)
            if text.startswith(_TCP):
                return cls(ports=Ports.parse(text.removeprefix(_TCP)))
        except ConfigError as exc:
            raise ConfigError(f"publish {text[:80]}: {exc}") from None
        raise ConfigError(f"publish {text[:80]!r}: {_FORMS}")

    @property
    def text(self) -> str:
        """How it is written."""
        if self.ports is not None:
            return f"{_TCP}{self.ports.text}"
        return f"{_TLS if self.tls else _HTTP}{self.host}"

    def allows(self, name: PublishedName) -> bool:
        """Return whether it covers a name; any port needs one that is not below 1024."""
        if self.ports is None:
            if name.host is None or self.host is None:
                return False
            return name.tls == self.tls and _covers(self.host, name.host)
        if name.port is not None:
            return name.port in self.ports
        return name.service is not None and self.ports.first >= PRIVILEGED

    def overlaps(self, other: "Grant") -> bool:
        """Return whether there is a port or a host that both cover, whether by HTTP or by TLS."""
        if self.ports is not None and other.ports is not None:
            return self.ports.first <= other.ports.last and other.ports.first <= self.ports.last
        if self.host is None or other.host is None:
            return False
        return _covers(self.host, other.host) or _covers(other.host, self.host)


def _covers(pattern: str, host: str) -> bool:
    """Return whether a pattern has all hosts that another one, or a host, has."""
    return pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def parse_grants(texts: Iterable[str]) -> tuple[Grant, ...]:
    """Return the grants in several texts, each once.

    Raises:
        ConfigError: one is malformed, or there are more than MAX_GRANTS.
    """
    grants = tuple(dict.fromkeys(map(Grant.parse, texts)))
    if len(grants) > MAX_GRANTS:
        raise ConfigError(
            f"publish: expected at most {MAX_GRANTS} of them, got {len(grants)}; *.HOST and ranges are one"
        )
    return grants


def overlapping(grants: Sequence[Grant], others: Sequence[Grant]) -> tuple[Grant, Grant] | None:
    """Return the first two that have a name in common, or None."""
    return next(((one, other) for one in grants for other in others if one.overlaps(other)), None)
