"""Addresses to listen on, to connect to and to expose, and the protocol that is spoken there."""

import enum
import ipaddress
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from goreprox.config.defaults import DEFAULT_SERVICE, EDGE_PORT, NATS_PORT, PROVIDER_PORT
from goreprox.config.names import NAME, check_name
from goreprox.config.published import is_published
from goreprox.endpoint import MAX_PORT
from goreprox.errors import ConfigError

_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TLS: Final = "tls://"
_NATS: Final = "nats://"
_UNIX: Final = "unix:"
_PORT: Final = re.compile(r"[0-9]{1,5}")
WILDCARDS: Final = (None, "0.0.0.0", "::")
_ADDRESS_FORMS: Final = "write PORT, :PORT, HOST:PORT or [IPV6]:PORT"


@dataclass(frozen=True, slots=True)
class Address:
    """A host, or None for all interfaces, and a port; 0 is any free port to listen on."""

    host: str | None
    port: int
    tls: bool = False
    """Whether there is TLS around the links there."""
    nats: bool = False
    """Whether a NATS server is there, and no broker of ours."""

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Self:
        """Read `8080`, `:8080`, `host:8080` or `[::1]:8080`; with a default port also `host` and `[::1]`.

        Raises:
            ConfigError: it is none of these.
        """
        if scheme := _SCHEME.match(text):
            raise _bad_address(text, f"leave {scheme[0]} out")
        if _PORT.fullmatch(text):
            return cls(None, _port(text, text))
        host, separator, port = text.rpartition(":")
        if not separator or text.endswith("]"):
            if default_port is None:
                raise _bad_address(text, "the port is missing")
            return cls(_host(text, text), default_port)
        return cls(_host(host, text) if host else None, _port(port, text))

    @classmethod
    def parse_link(cls, text: str, default_port: int | None = None) -> Self:
        """Read the address of links: as `parse`, after `tls://` if they are within TLS.

        Raises:
            ConfigError: it is malformed.
        """
        found = cls.parse(text.removeprefix(_TLS), default_port)
        return cls(found.host, found.port, tls=text.startswith(_TLS))

    @classmethod
    def parse_remote(cls, text: str, default_port: int | None = None) -> Self:
        """Read the address of a broker to connect to: as `parse_link`, or after `nats://` that of a NATS server.

        Raises:
            ConfigError: it is malformed.
        """
        if not text.startswith(_NATS):
            return cls.parse_link(text, default_port)
        return replace(cls.parse(text.removeprefix(_NATS), NATS_PORT), nats=True)

    @property
    def has_certificate(self) -> bool:
        """Whether who responds there has to show a certificate; NATS servers need none on loopback."""
        return self.tls or self.nats

    @property
    def within_tls(self) -> Self:
        """The same for links within TLS."""
        return replace(self, tls=True)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it; of names, only `localhost` counts."""
        if self.host is None or self.host == "localhost":
            return self.host is not None
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def overlaps(self, other: "Address") -> bool:
        """Return whether one cannot listen on both; names are not resolved."""
        if not self.port or self.port != other.port:
            return False
        if self.host == other.host:
            return True
        wild = self.host in WILDCARDS or other.host in WILDCARDS
        return wild and bool(_families(self.host) & _families(other.host))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in (self.host or "") else self.host or ""
        return f"{_NATS if self.nats else _TLS if self.tls else ''}{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixPath:
    """The path of a Unix socket."""

    path: str

    def __post_init__(self) -> None:
        most = 103 if sys.platform == "darwin" else 107  # sun_path has a zero byte, too: unix(4) and unix(7)
        if not Path(self.path).is_absolute() or "\0" in self.path:
            raise ConfigError(f"address {str(self)!r}: expected an absolute path, like {_UNIX}/run/app.sock")
        if len(os.fsencode(self.path)) > most:
            raise ConfigError(
                f"address {str(self)!r}: a socket's path has at most {most} bytes; link to it from a shorter one"
            )

    def __str__(self) -> str:
        return f"{_UNIX}{self.path}"


TargetAddress = Address | UnixPath
PROVIDERS: Final = Address(None, PROVIDER_PORT)
EDGES: Final = Address(None, EDGE_PORT)
"""Where providers and edges are accepted by default."""


class Scheme(enum.Enum):
    """The protocol of clients."""

    TCP = "tcp"
    """Any protocol: bytes are passed on unchanged."""
    HTTP = "http"
    TLS = "tls"
    """Any protocol in TLS, which is terminated here."""
    HTTPS = "https"
    SNI = "sni"
    """TLS that is passed on by the host that a client asks for, or terminated as by HTTPS if that has a certificate."""

    @property
    def is_routed(self) -> bool:
        """Whether the service may depend on the host that a client asks for."""
        return self.is_http or self is Scheme.SNI

    @property
    def is_http(self) -> bool:
        """Whether requests are parsed."""
        return self in (Scheme.HTTP, Scheme.HTTPS)

    @property
    def is_tls(self) -> bool:
        """Whether a TLS handshake comes first."""
        return self in (Scheme.TLS, Scheme.HTTPS)


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to accept clients on, their protocol, and the service that they are for.

    That of a published port has no service: who has the port may change.
    """

    address: Address
    service: str = DEFAULT_SERVICE
    scheme: Scheme = Scheme.TCP

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SCHEME://]ADDR[=SERVICE]`.

        Raises:
            ConfigError: the scheme, the address or the name is malformed.
        """
        scheme, separator, rest = text.rpartition("://")
        try:
            parsed = Scheme(scheme) if separator else Scheme.TCP
        except ValueError:
            known = ", ".join(f"{each.value}://" for each in Scheme)
            raise ConfigError(f"listen {text!r}: {scheme!r} is not known; write one of {known}") from None
        address, separator, service = rest.partition("=")
        if _PORT.fullmatch(service.rpartition(":")[2]) and NAME.fullmatch(address) and not address.isdigit():
            raise ConfigError(
                f"listen {text!r}: the port comes first: {service}={address} (in targets the service does)"
            )
        if separator:
            check_name("service", service)
        return cls(Address.parse(address), service if separator else DEFAULT_SERVICE, parsed)

    @classmethod
    def restore(cls, text: str) -> Self:
        """Read `text` of any listener, of a published port, too.

        Raises:
            ConfigError: it is malformed.
        """
        return cls(Address.parse(text[:-1]), "") if text.endswith("=") else cls.parse(text)

    @property
    def is_published(self) -> bool:
        """Whether this is a published port."""
        return not self.service

    def __post_init__(self) -> None:
        if self.service:
            check_name("service", self.service)

    def __str__(self) -> str:
        return f"{self.scheme.value}://{self.address}"

    @property
    def text(self) -> str:
        """How it is written."""
        scheme = "" if self.scheme is Scheme.TCP else f"{self.scheme.value}://"
        service = "" if self.service == DEFAULT_SERVICE else f"={self.service}"
        return f"{scheme}{str(self.address).removeprefix(':')}{service}"


@dataclass(frozen=True, slots=True)
class Target:
    """A service that is offered, and the address of its server."""

    service: str
    address: TargetAddress
    tls: bool = False
    """Whether to connect with TLS."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SERVICE=][tls://]ADDR` or `[SERVICE=]unix:PATH`; without a host it is 127.0.0.1.

        Raises:
            ConfigError: the address or the name is malformed.
        """
        named, is_unix, path = text.partition(_UNIX)
        if is_unix and named[-1:] in ("", "="):
            check_name("service", named[:-1] or DEFAULT_SERVICE)
            return cls(named[:-1] or DEFAULT_SERVICE, UnixPath(path))
        service, separator, address = text.rpartition("=")
        if separator and NAME.fullmatch(address) and not address.isdigit() and _PORT.fullmatch(service):
            raise ConfigError(
                f"target {text!r}: the service comes first: {address}={service} (in --listen the port does)"
            )
        if text == "=" or (separator and not address):
            raise ConfigError(f"target {text!r}: write SERVICE=PORT without blanks, like web=3000")
        try:
            parsed = Address.parse(address.removeprefix(_TLS))
        except ConfigError as exc:
            raise ConfigError(
                f"target {text!r}: {exc}, each after SERVICE= if it is not of the default service"
            ) from exc
        if separator:
            check_name("service", service)
        address_given = Address(parsed.host or "127.0.0.1", parsed.port)
        return cls(service if separator else DEFAULT_SERVICE, address_given, address.startswith(_TLS))

    def __str__(self) -> str:
        return f"{_TLS}{self.address}" if self.tls else str(self.address)

    @property
    def text(self) -> str:
        """How it is written."""
        return str(self) if self.service == DEFAULT_SERVICE else f"{self.service}={self}"

    def __post_init__(self) -> None:
        if not is_published(self.service):
            check_name("service", self.service)
        if isinstance(self.address, Address):
            check_dialable("target", self.address)


class ProxyVersion(enum.Enum):
    """The form of PROXY protocol headers."""

    V1 = "v1"
    """A line of text."""
    V2 = "v2"
    """Binary."""


def check_dialable(option: str, address: Address) -> None:
    """Require an address that can be connected to.

    Raises:
        ConfigError: host or port is missing.
    """
    if address.host is None or not address.port:
        raise ConfigError(f"{option} {address}: expected a host and a port other than 0, like 192.0.2.1:9887")


def _host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _bad_address(text, f"{host[1:-1]!r} is not an IPv6 address") from None
    if ":" in host:
        raise _bad_address(text, "an IPv6 address needs brackets")
    if host.isdigit():
        raise _bad_address(text, f"{host} is a number and no host")
    if not _HOST_NAME.fullmatch(host):
        raise _bad_address(text, f"{host!r} is neither a host name nor an IP address")
    return host


def _port(port: str, text: str) -> int:
    if not _PORT.fullmatch(port) or int(port) > MAX_PORT:
        raise _bad_address(text, f"{port!r} is not a port (0 to 65535)")
    return int(port)


def _bad_address(text: str, cause: str) -> ConfigError:
    return ConfigError(f"address {text!r}: {cause}; {_ADDRESS_FORMS}")


def _families(host: str | None) -> set[int]:
    """Return the versions of IP that a host can have: both, unless it is an address."""
    try:
        return {ipaddress.ip_address(host or "").version}
    except ValueError:
        return {4, 6}
