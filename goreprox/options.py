"""The options that several commands share, and what `goreprox.config` takes of them.

Each is declared once, for the roles that have it: flag, variable and key of the file come from here. Like
`goreprox.cli` it imports little at the top.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from cyclopts import Group, Parameter

from goreprox.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token

    from goreprox.doors import Network, Rule

Level = Literal["trace", "debug", "info", "warning", "error"]


def _level(_: object, tokens: "Sequence[Token]") -> str:
    """Read a level in any case; `warn` is one, too, as elsewhere.

    Raises:
        ValueError: it is none.
    """
    text = tokens[0].value.lower()
    level = "warning" if text == "warn" else text
    if level not in get_args(Level):
        raise ValueError(f"{tokens[0].value!r} is none of {', '.join(get_args(Level))}")
    return level


ADDRESSES: Final = Group("Addresses", sort_key=1)
KEYS: Final = Group("Keys", sort_key=2)
LIFETIMES: Final = Group("Lifetimes", sort_key=3)
LIMITS: Final = Group("Limits", sort_key=4)
PROCESS: Final = Group("Process", sort_key=5)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Options of every command."""

    config: Annotated[Path | None, Parameter(group=PROCESS)] = None
    """Read options from this TOML file. [default: goreprox.toml, if there is one]"""
    log_level: Annotated[Level, Parameter(group=PROCESS, converter=_level)] = "info"
    """Log from this level on."""
    log_json: Annotated[bool, Parameter(group=PROCESS)] = False
    """Log JSON, one object a line."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RoleOptions(ProcessOptions):
    """Options of every role. The defaults are those of `goreprox.config`."""

    name: Annotated[str | None, Parameter(group=PROCESS)] = None
    """Name for the other side; processes of one name are replicas. [default: the host's name]"""
    runtime_dir: Annotated[Path | None, Parameter(group=PROCESS)] = None
    """Directory for lock files. [default: goreprox in XDG_RUNTIME_DIR, /run or the temporary one]"""
    insecure: Annotated[bool, Parameter(group=KEYS)] = False
    """Have links in plaintext and without keys: whoever reaches the port can join."""
    link_timeout: Annotated[float, Parameter(group=LIFETIMES)] = 6
    """Seconds of silence after which a link counts as broken."""

    def role(self) -> dict[str, Any]:
        """Give the arguments that `ProcessConfig` takes."""
        given = {"name": self.name, "runtime_dir": _expanded(self.runtime_dir)}
        return {key: value for key, value in given.items() if value is not None} | {"link_timeout_s": self.link_timeout}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EndOptions(RoleOptions):
    """Options of those that own connections: of server, edge and provider."""

    grace: Annotated[float, Parameter(group=LIFETIMES)] = 60
    """Seconds for which connections outlive a broken link. The smaller one of the two sides counts."""
    drain: Annotated[float, Parameter(group=LIFETIMES)] = 30
    """Seconds that connections have to end after SIGTERM."""
    half_closed_timeout: Annotated[float, Parameter(group=LIFETIMES)] = 0
    """Seconds without traffic after which a half-closed connection is reset; 0: never."""
    max_connections: Annotated[int, Parameter(group=LIMITS)] = 10_000
    """Connections at a time; further ones wait in the kernel's backlog."""
    memory: Annotated[int, Parameter(group=LIMITS)] = 256
    """MiB for what is on its way, both directions together."""

    def end(self) -> dict[str, Any]:
        """Give the arguments that `EndConfig` takes."""
        return self.role() | {
            "grace_s": self.grace,
            "drain_s": self.drain,
            "half_closed_timeout_s": self.half_closed_timeout or None,
            "max_connections": self.max_connections,
            "memory_bytes": self.memory << 20,
        }


_Addresses = Annotated[list[str] | None, Parameter(group=ADDRESSES, negative="")]
_Rules = Annotated[list[str] | None, Parameter(group=LIMITS, negative="")]
_File = Annotated[Path | None, Parameter(group=KEYS)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AcceptingOptions(EndOptions):
    """Options of those that accept clients: of server and edge."""

    listen: _Addresses = None
    """[SCHEME://]ADDR[=SERVICE] for clients; SCHEME is tcp, http, or after TLS tls, https; may be repeated.
    [default: 8080, on all interfaces]"""
    reuse_port: Annotated[bool, Parameter(group=ADDRESSES)] = False
    """Let other processes with this option listen on the same ports."""
    route: _Addresses = None
    """HOST=SERVICE for HTTP requests; HOST is a name, *.NAME or *; may be repeated."""
    allow: _Rules = None
    """[SERVICE=]CIDR or [PORT=]CIDR of clients that are let in; may be repeated. [default: all]"""
    deny: _Rules = None
    """[SERVICE=]CIDR or [PORT=]CIDR of clients that are reset; may be repeated."""
    max_connections_per_address: Annotated[int, Parameter(group=LIMITS)] = 0
    """Connections at a time of one client address, in each process; 0: any number."""
    trusted_proxies: _Rules = None
    """CIDR of proxies that are believed about the HTTP clients behind them; may be repeated."""
    proxy_protocol_from: _Rules = None
    """[SERVICE=]CIDR or [PORT=]CIDR of proxies whose connections begin with a PROXY header; may be repeated."""
    queue_timeout: Annotated[float, Parameter(group=LIFETIMES)] = 10
    """Seconds that an HTTP request waits for a provider."""
    auth_tokens: _File = None
    """File of tokens, one of which each HTTP request must bring; `goreprox token new` makes them."""
    auth_header: Annotated[str, Parameter(group=KEYS)] = "X-Goreprox-Auth"
    """Name of the header that brings it."""
    without_tokens: Annotated[list[int] | None, Parameter(group=KEYS, negative="")] = None
    """Port of a tcp:// or tls:// listener beside --auth-tokens whose clients need none; may be repeated."""
    tls_cert: _File = None
    """PEM file with the certificate for tls:// and https://, and its chain. Read again when it changes."""
    tls_key: _File = None
    """PEM file with its private key."""
    tls_client_ca: _File = None
    """PEM file with who signs the certificates of clients; those without one are refused."""
    tls_alpn: Annotated[list[str] | None, Parameter(group=KEYS, negative="")] = None
    """Protocol that tls:// ports agree on with clients (ALPN), like h2 for gRPC; may be repeated. [default: none]"""
    via: Annotated[bool, Parameter(group=PROCESS)] = False
    """Add Via to HTTP requests. Targets may then no longer compress their responses, as nginx by default."""
    host_header: Annotated[list[str] | None, Parameter(group=ADDRESSES, negative="")] = None
    """[SERVICE=]NAME that targets get as Host in HTTP requests; may be repeated. [default: as the client sent it]"""
    max_header_bytes: Annotated[int, Parameter(group=LIMITS)] = 16_384
    """Bytes that the header section of an HTTP request may have, 1024 to 262144."""
    max_header_lines: Annotated[int, Parameter(group=LIMITS)] = 100
    """Header lines that an HTTP request may have, 10 to 1000."""
    access_log: Annotated[bool, Parameter(group=PROCESS)] = True
    """Log each HTTP request."""

    def accepting(self) -> dict[str, Any]:
        """Give the arguments that `AcceptingConfig` takes.

        Raises:
            ConfigError: one cannot be read.
        """
        from goreprox.config import Listener
        from goreprox.http.requests import Limits
        from goreprox.http.routes import Route
        from goreprox.http.settings import HostHeader, HttpSettings

        listeners = {"listeners": tuple(map(Listener.parse, self.listen))} if self.listen else {}
        return (
            self.end()
            | listeners
            | {
                "reuse_port": self.reuse_port,
                "routes": tuple(map(Route.parse, self.route or ())),
                "allow": _rules("allow", self.allow),
                "deny": _rules("deny", self.deny),
                "max_connections_per_address": self.max_connections_per_address or None,
                "trusted_proxies": _networks("trusted-proxies", self.trusted_proxies),
                "proxy_protocol_from": _rules("proxy-protocol-from", self.proxy_protocol_from),
                "queue_timeout_s": self.queue_timeout,
                "auth_tokens": _expanded(self.auth_tokens),
                "auth_header": self.auth_header,
                "without_tokens": tuple(self.without_tokens or ()),
                "tls_cert": _expanded(self.tls_cert),
                "tls_key": _expanded(self.tls_key),
                "tls_client_ca": _expanded(self.tls_client_ca),
                "tls_alpn": tuple(self.tls_alpn or ()),
                "access_log": self.access_log,
                "http": HttpSettings(
                    via=self.via,
                    hosts=tuple(map(HostHeader.parse, self.host_header or ())),
                    limits=Limits(self.max_header_bytes, self.max_header_lines),
                ),
            }
        )


def _expanded(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser()


def _networks(option: str, texts: list[str] | None) -> tuple["Network", ...]:
    """Read CIDRs that are for every service."""
    rules = _rules(option, texts)
    for rule in rules:
        if rule.place is not None:
            raise ConfigError(f"{option} {rule.place}={rule.network}: it is the same for all services")
    return tuple(rule.network for rule in rules)


def _rules(option: str, texts: list[str] | None) -> "tuple[Rule, ...]":
    from goreprox.doors import Rule

    return tuple(Rule.parse(option, text) for text in texts or ())
