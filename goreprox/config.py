"""What a server and a provider are told to do, checked.

Plain values with their limits: knows neither the command line nor files nor sockets. Whoever gets one of
these need not check it again: everything wrong raises `ConfigError` when it is made.
"""

import ipaddress
import math
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from goreprox.errors import ConfigError
from goreprox.instance import default_runtime_dir

CLIENT_PORT: Final = 8080
PROVIDER_PORT: Final = 9887
DEFAULT_SERVICE: Final = "default"
DEFAULT_GRACE_S: Final = 60.0
DEFAULT_DRAIN_S: Final = 30.0
DEFAULT_MAX_CONNECTIONS: Final = 10_000
DEFAULT_MEMORY_MIB: Final = 256
DEFAULT_LINK_TIMEOUT_S: Final = 6.0
DEFAULT_DIAL_TIMEOUT_S: Final = 5.0

MIB: Final = 1 << 20
DAY_S: Final = 86_400.0
MAX_MEMORY_BYTES: Final = 1 << 40
MAX_CONNECTIONS: Final = 1_000_000
# A stream keeps a window of memory / (4 * max_connections) whatever happens: half of the memory is for
# floors, in two directions. 2 KiB is the least that still moves a request. With the defaults: 256 MiB /
# 40,000 = 6.5 KiB.
MIN_FLOOR_BYTES: Final = 2048
MAX_ENDPOINTS: Final = 64  # addresses of one kind in one process

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_PORT: Final = re.compile(r"[0-9]{1,5}")
_ADDRESS_FORMS: Final = "write PORT, :PORT, HOST:PORT or [IPV6]:PORT"


@dataclass(frozen=True, slots=True)
class Address:
    """A host, or None for all interfaces, and a port (0: any free one, for what is listened on)."""

    host: str | None
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Self:
        """Read `8080`, `:8080`, `host:8080` or `[::1]:8080`; with a default port also `host` and `[::1]`.

        Raises:
            ConfigError: it is none of these.
        """
        if _PORT.fullmatch(text):
            return cls(None, _port(text, text))
        host, separator, port = text.rpartition(":")
        if not separator or text.endswith("]"):
            if default_port is None:
                raise _bad_address(text, "the port is missing")
            return cls(_host(text, text), default_port)
        return cls(_host(host, text) if host else None, _port(port, text))

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine alone; a name other than `localhost` is taken for another."""
        if self.host is None or self.host == "localhost":
            return self.host is not None
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Listener:
    """An address on which clients are accepted, and the service they are routed to."""

    address: Address
    service: str = DEFAULT_SERVICE

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `ADDR[=SERVICE]`.

        Raises:
            ConfigError: the address or the name is malformed.
        """
        address, separator, service = text.partition("=")
        return cls(Address.parse(address), service if separator else DEFAULT_SERVICE)

    def __post_init__(self) -> None:
        check_name("service", self.service)


@dataclass(frozen=True, slots=True)
class Target:
    """A service offered, and the address of the local TCP server that gives it."""

    service: str
    address: Address

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SERVICE=]ADDR`; without a host it is 127.0.0.1.

        Raises:
            ConfigError: the address or the name is malformed.
        """
        service, separator, address = text.rpartition("=")
        parsed = Address.parse(address)
        return cls(service if separator else DEFAULT_SERVICE, Address(parsed.host or "127.0.0.1", parsed.port))

    def __post_init__(self) -> None:
        check_name("service", self.service)
        _check_dialable("target", self.address)


def check_name(what: str, name: str) -> None:
    """Accept 1 to 64 of `A-Z a-z 0-9 . _ -`.

    Raises:
        ConfigError: it is anything else.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r}: expected 1 to 64 of A-Z a-z 0-9 . _ -")


def default_name() -> str:
    """Give the host's name, every character that a name may not hold replaced by `-`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "unnamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonConfig:
    """What a server and a provider have in common. Times in seconds, memory in bytes."""

    name: str = field(default_factory=default_name)
    grace_s: float = DEFAULT_GRACE_S
    drain_s: float = DEFAULT_DRAIN_S
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    memory_bytes: int = DEFAULT_MEMORY_MIB * MIB
    half_closed_timeout_s: float | None = None
    link_timeout_s: float = DEFAULT_LINK_TIMEOUT_S
    runtime_dir: Path = field(default_factory=default_runtime_dir)

    def __post_init__(self) -> None:
        check_name("name", self.name)
        _check_seconds("grace", self.grace_s, least=0.1)
        _check_seconds("drain", self.drain_s, least=0)
        _check_seconds("link-timeout", self.link_timeout_s, least=0.3)
        if self.half_closed_timeout_s is not None:
            _check_seconds("half-closed-timeout", self.half_closed_timeout_s, least=0.1)
        if not 1 <= self.max_connections <= MAX_CONNECTIONS:
            raise ConfigError(f"max-connections {self.max_connections}: expected 1 to {MAX_CONNECTIONS:,}")
        _check_memory(self.memory_bytes, max_connections=self.max_connections)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(CommonConfig):
    """A server: where clients and where providers are accepted."""

    listeners: tuple[Listener, ...] = (Listener(Address(None, CLIENT_PORT)),)
    providers: Address = Address(None, PROVIDER_PORT)

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)  # not super(): a dataclass with slots is not the class that was written
        _check_count("listen", len(self.listeners))
        addresses = [listener.address for listener in self.listeners]
        _check_distinct("listen", [str(address) for address in addresses if address.port])
        if self.providers.port and self.providers in addresses:
            raise ConfigError(
                f"providers {self.providers}: clients are accepted there, too; choose another port for one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig(CommonConfig):
    """A provider: what it offers, and to which servers."""

    targets: tuple[Target, ...]
    servers: tuple[Address, ...]
    dial_timeout_s: float = DEFAULT_DIAL_TIMEOUT_S

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        _check_count("target", len(self.targets))
        _check_distinct("service", [target.service for target in self.targets])
        _check_count("server", len(self.servers))
        _check_distinct("server", [str(server) for server in self.servers])
        for server in self.servers:
            _check_dialable("server", server)
        _check_seconds("dial-timeout", self.dial_timeout_s, least=0.1)


def _host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _bad_address(text, f"{host[1:-1]!r} is not an IPv6 address") from None
    if ":" in host:
        raise _bad_address(text, "an IPv6 address needs brackets")
    if not _HOST_NAME.fullmatch(host):
        raise _bad_address(text, f"{host!r} is neither a host name nor an IP address")
    return host


def _port(port: str, text: str) -> int:
    if not _PORT.fullmatch(port) or int(port) > 65_535:
        raise _bad_address(text, f"{port!r} is not a port (0 to 65535)")
    return int(port)


def _bad_address(text: str, cause: str) -> ConfigError:
    return ConfigError(f"address {text!r}: {cause}; {_ADDRESS_FORMS}")


def _check_dialable(option: str, address: Address) -> None:
    if address.host is None or not address.port:
        raise ConfigError(f"{option} {address}: expected a host and a port other than 0, like 192.0.2.1:9887")


def _check_seconds(option: str, value: float, *, least: float) -> None:
    if not (math.isfinite(value) and least <= value <= DAY_S):
        raise ConfigError(f"{option} {value:g}: expected {least:g} to {DAY_S:g} seconds")


def _check_count(option: str, count: int) -> None:
    if not 1 <= count <= MAX_ENDPOINTS:
        raise ConfigError(f"{option}: expected 1 to {MAX_ENDPOINTS} of them, got {count}")


def _check_distinct(option: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{option} {name}: given twice; once is enough")


def _check_memory(memory_bytes: int, *, max_connections: int) -> None:
    least = 4 * max_connections * MIN_FLOOR_BYTES
    if memory_bytes < least:
        raise ConfigError(
            f"memory {memory_bytes / MIB:g} MiB: {max_connections:,} connections need at least "
            f"{math.ceil(least / MIB)} MiB; raise --memory or lower --max-connections"
        )
    if memory_bytes > MAX_MEMORY_BYTES:
        raise ConfigError(f"memory {memory_bytes / MIB:g} MiB: expected at most {MAX_MEMORY_BYTES // MIB:,} MiB")
