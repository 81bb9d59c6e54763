"""Options of publishing: the names that a provider asks for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self

from cyclopts import Parameter

from goreprox.config.defaults import DEFAULT_SERVICE
from goreprox.config.names import NAME
from goreprox.config.options import ADDRESSES, GROUP, several
from goreprox.config.published import MAX_NAME, MAX_NAMES, Ports, PublishedName, parse_host
from goreprox.errors import ConfigError

_FORMS: Final = "write [SERVICE=]http://HOST, [SERVICE=]tls://HOST, [SERVICE=]tcp://PORT, or tcp:// for any port"


@dataclass(frozen=True, slots=True)
class Publish:
    """A name that a provider asks for, for one of its services; neither host nor port: any port."""

    service: str | None = None
    """None: the only service, or the default one."""
    host: str | None = None
    port: int | None = None
    tls: bool = False
    """Of a host: whether clients speak TLS, which is passed on, and not HTTP."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SERVICE=]http://HOST`, `[SERVICE=]tls://HOST`, `[SERVICE=]tcp://PORT` or `[SERVICE=]tcp://`.

        Raises:
            ConfigError: it is none of these.
        """
        scheme, separator, where = text.partition("://")
        name, is_named, scheme = scheme.rpartition("=")
        if not separator or (is_named and not NAME.fullmatch(name)):
            raise ConfigError(f"publish {text[:80]!r}: {_FORMS}")
        service = name if is_named else None
        try:
            match scheme:
                case "http" | "tls":
                    return cls(service, host=parse_host(where), tls=scheme == "tls")
                case "tcp" if not where:
                    return cls(service)
                case "tcp" if "-" not in where:
                    return cls(service, port=Ports.parse(where).first)
        except ConfigError as exc:
            raise ConfigError(f"publish {text[:80]}: {exc}") from None
        hint = "; https:// comes of an https:// port of the server" if scheme == "https" else ""
        raise ConfigError(f"publish {text[:80]!r}: {_FORMS}{hint}")

    @property
    def text(self) -> str:
        """How it is written."""
        url = f"tcp://{self.port or ''}" if self.host is None else f"{'tls' if self.tls else 'http'}://{self.host}"
        return url if self.service is None else f"{self.service}={url}"

    def name(self, services: Sequence[str], owner: str) -> tuple[PublishedName, str]:
        """Return the name that the key `owner` asks for, and its service, which is one of `services`.

        Raises:
            ConfigError: it is none of them, or may be several, or the name is too long.
        """
        service = self.service
        if service is None:
            service = services[0] if len(services) == 1 else DEFAULT_SERVICE
            if service not in services:
                raise ConfigError(f"publish {self.text}: for which service? Write {services[0]}={self.text}")
        if service not in services:
            raise ConfigError(f"publish {self.text}: that service is not offered; services are {', '.join(services)}")
        is_any = self.host is None and self.port is None
        name = PublishedName(owner, self.host, self.port, service if is_any else None, self.tls)
        if len(name.text) > MAX_NAME:
            raise ConfigError(
                f"publish {self.text[:80]}: with the name {owner} it has {len(name.text)} characters, expected at most "
                f"{MAX_NAME}"
            )
        return name, service


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class PublishConfig:
    """Options of what a provider publishes."""

    names: Annotated[
        tuple[Publish, ...],
        several(Publish.parse, "[SERVICE=]NAME"),
        Parameter(name="--publish", group=ADDRESSES),
    ] = ()
    """Let clients find a service at this name, as far as the key allows: http://HOST, tls://HOST, each also for *.HOST,
    tcp://PORT, or tcp:// for any port. May be repeated. [default: where the server has a port or a route for it]"""

    def by_name(self, services: Sequence[str], owner: str) -> dict[PublishedName, str]:
        """Return the service of each name that the key `owner` asks for; it is one of `services`.

        Raises:
            ConfigError: it is none of them, or names are too many, or given twice.
        """
        if len(self.names) > MAX_NAMES:
            raise ConfigError(f"publish: expected at most {MAX_NAMES} of them, got {len(self.names)}")
        found = [asked.name(services, owner) for asked in self.names]
        for name, times in Counter(name for name, _ in found).items():
            if times > 1:
                raise ConfigError(f"publish {name.url}: given twice; once is enough")
        return dict(found)
