"""What operators choose of HTTP at the edge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from goreprox.config.defaults import MAX_HEAD_BYTES, MAX_HEAD_LINES, MIN_HEAD_BYTES, MIN_HEAD_LINES
from goreprox.config.routes import is_host
from goreprox.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """What the head of a request may be."""

    head_bytes: int = 16 * 1024
    lines: int = 100


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class HostHeader:
    """What targets get as Host, whatever the client has sent."""

    service: str | None
    """Whose targets; None: those of all services that no other names."""
    host: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SERVICE=]NAME`.

        Raises:
            ConfigError: it is no host.
        """
        service, separator, host = text.rpartition("=")
        if not host.isascii() or not is_host(host.encode()):
            raise ConfigError(
                f"host-header {text!r}: {host!r} is not a host; write [SERVICE=]NAME or [SERVICE=]NAME:PORT"
            )
        return cls(service if separator else None, host)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The same for all HTTP listeners of a process."""

    via: bool = False
    """Whether targets get a Via (RFC 9110, 7.6.3), for which many, nginx among them, do not compress responses."""
    hosts: tuple[HostHeader, ...] = ()
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        _check("max-header-bytes", self.limits.head_bytes, MIN_HEAD_BYTES, MAX_HEAD_BYTES)
        _check("max-header-lines", self.limits.lines, MIN_HEAD_LINES, MAX_HEAD_LINES)
        services = [each.service for each in self.hosts]
        for service in services:
            if services.count(service) > 1:
                raise ConfigError(f"host-header {service or 'for all services'}: given twice; once is enough")

    def check_services(self, known: Sequence[str]) -> None:
        """See that each service that is named can be asked for.

        Raises:
            ConfigError: one cannot.
        """
        for each in self.hosts:
            if each.service is not None and each.service not in known:
                raise ConfigError(
                    f"host-header {each.service}={each.host}: no client can ask for that service; "
                    f"services are {', '.join(known)}"
                )

    def host_for(self, service: str) -> bytes | None:
        """Return what targets of a service get as Host; None: what the client has sent."""
        if not self.hosts:
            return None
        hosts = {each.service: each.host for each in self.hosts}
        host = hosts.get(service, hosts.get(None))
        return None if host is None else host.encode()


def _check(option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{option} {value:,}: expected {least:,} to {most:,}")
