"""Options of HTTP at the edge."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Self

from cyclopts import Parameter

from goreprox.config.checks import check_range, check_seconds
from goreprox.config.defaults import (
    DEFAULT_HEAD_BYTES,
    DEFAULT_HEAD_LINES,
    DEFAULT_QUEUE_TIMEOUT_S,
    MAX_HEAD_BYTES,
    MAX_HEAD_LINES,
    MIN_HEAD_BYTES,
    MIN_HEAD_LINES,
)
from goreprox.config.options import ADDRESSES, GROUP, LIFETIMES, LIMITS, PROCESS, Count, Seconds, several
from goreprox.config.routes import is_host
from goreprox.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HostHeader:
    """The Host field of requests to targets, whatever the client has sent."""

    service: str | None
    """The service of these targets; None: all services that have no Host of their own."""
    host: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SERVICE=]NAME`.

        Raises:
            ConfigError: the host is malformed.
        """
        service, separator, host = text.rpartition("=")
        if not host.isascii() or not is_host(host.encode()):
            raise ConfigError(
                f"host-header {text!r}: {host!r} is not a host; write [SERVICE=]NAME or [SERVICE=]NAME:PORT"
            )
        return cls(service if separator else None, host)

    @property
    def text(self) -> str:
        """How it is written."""
        return self.host if self.service is None else f"{self.service}={self.host}"


@GROUP
@dataclass(frozen=True, slots=True)
class Limits:
    """How long the header section of a request may be."""

    head_bytes: Annotated[Count, Parameter(name="--max-header-bytes", group=LIMITS)] = DEFAULT_HEAD_BYTES
    """Limit the bytes of the header section of HTTP requests, 1024 to 262144."""
    lines: Annotated[Count, Parameter(name="--max-header-lines", group=LIMITS)] = DEFAULT_HEAD_LINES
    """Limit the header lines of HTTP requests, 10 to 1000."""

    def __post_init__(self) -> None:
        check_range("max-header-bytes", self.head_bytes, MIN_HEAD_BYTES, MAX_HEAD_BYTES)
        check_range("max-header-lines", self.lines, MIN_HEAD_LINES, MAX_HEAD_LINES)


DEFAULT_LIMITS: Final = Limits()
ALL_SERVICES: Final = "*"


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Options of all HTTP listeners of a process."""

    queue_timeout_s: Annotated[Seconds, Parameter(name="--queue-timeout", group=LIFETIMES)] = DEFAULT_QUEUE_TIMEOUT_S
    """Respond to an HTTP request with 503 after so long without a provider."""
    redirect: Annotated[bool, Parameter(name="--http-redirect", group=ADDRESSES)] = False
    """Redirect HTTP requests to https:// if a certificate has their host."""
    via: Annotated[bool, Parameter(group=PROCESS)] = False
    """Add Via to HTTP requests. Many targets, nginx by default, then no longer compress their responses."""
    hosts: Annotated[
        tuple[HostHeader, ...],
        several(HostHeader.parse, "[SERVICE=]NAME"),
        Parameter(name="--host-header", group=ADDRESSES),
    ] = ()
    """Replace the Host of HTTP requests to targets. May be repeated. [default: as the client sent it]"""
    limits: Limits = field(default_factory=Limits)
    access_log: Annotated[bool, Parameter(group=PROCESS)] = True
    """Log each HTTP request, and each other connection at its end."""
    inspect: Annotated[
        tuple[str, ...] | None,
        several(str, "[SERVICE]"),
        Parameter(group=PROCESS, consume_multiple=True),
    ] = None
    """Keep the last 500 HTTP requests and responses, or those for SERVICE, in memory, for `goreprox requests`. May be
    repeated. [default: none]"""

    def __post_init__(self) -> None:
        check_seconds("queue-timeout", self.queue_timeout_s, least=0.1)
        if self.inspect == ():  # the flag alone
            object.__setattr__(self, "inspect", (ALL_SERVICES,))
        services = [each.service for each in self.hosts]
        for service in services:
            if services.count(service) > 1:
                raise ConfigError(f"host-header {service or 'for all services'}: given twice; once is enough")

    def check_services(self, known: Sequence[str]) -> None:
        """Require that clients can ask for each service that is named.

        Raises:
            ConfigError: one cannot.
        """
        for each in self.hosts:
            if each.service is not None and each.service not in known:
                raise ConfigError(
                    f"host-header {each.service}={each.host}: no client can ask for that service; "
                    f"services are {', '.join(known)}"
                )

        for service in self.inspect or ():
            if service != ALL_SERVICES and service not in known:
                raise ConfigError(
                    f"inspect {service}: no client can ask for that service; "
                    f"services are {', '.join(known)}, and {ALL_SERVICES} is all of them"
                )

    def inspects(self, service: str) -> bool:
        """Return whether requests for a service are kept; the empty one is that of hosts that are unknown."""
        return self.inspect is not None and (ALL_SERVICES in self.inspect or service in self.inspect)

    def host_for(self, service: str) -> bytes | None:
        """Return the Host for targets of a service; None: that of the client."""
        if not self.hosts:
            return None
        hosts = {each.service: each.host for each in self.hosts}
        host = hosts.get(service, hosts.get(None))
        return None if host is None else host.encode()
