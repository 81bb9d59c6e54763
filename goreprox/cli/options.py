"""The options that several commands share, and what `goreprox.config` takes of them.

Each is declared once, for the roles that have it: flag, variable and key of the file come from here. Like
`goreprox.cli.main` it imports little at the top.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from cyclopts import Group, Parameter

from goreprox.cli import units
from goreprox.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cyclopts import Token

    from goreprox.config.networks import Network, Rule

Level = Literal["trace", "debug", "info", "warning", "error"]

MIB: Final = 1 << 20

ADDRESSES: Final = Group("Addresses", sort_key=1)
KEYS: Final = Group("Keys", sort_key=2)
LIFETIMES: Final = Group("Lifetimes", sort_key=3)
LIMITS: Final = Group("Limits", sort_key=4)
PROCESS: Final = Group("Process", sort_key=5)


def _reading(parse: "Callable[[str], object]") -> "Callable[[object, Sequence[Token]], object]":
    """Make a converter of a function that reads one text, and raises ValueError with what it expected."""
    return lambda _, tokens: parse(tokens[0].value)


def _reading_all(parse: "Callable[[str], object]") -> "Callable[[object, Sequence[Token]], object]":
    """Make the same for an option that may be repeated."""
    return lambda _, tokens: [parse(token.value) for token in tokens]


def _level(text: str) -> str:
    level = {"warn": "warning"}.get(text.lower(), text.lower())
    if level not in get_args(Level):
        raise ValueError(f"expected one of {', '.join(get_args(Level))}")
    return level


Seconds = Annotated[float, Parameter(converter=_reading(units.seconds), n_tokens=1, metavar="SECONDS")]
Mebibytes = Annotated[float, Parameter(converter=_reading(units.mebibytes), n_tokens=1, metavar="MIB")]
Count = Annotated[int, Parameter(converter=_reading(units.count), n_tokens=1, metavar="N")]
Number = Annotated[float, Parameter(converter=_reading(units.number), n_tokens=1, metavar="N")]
File = Annotated[Path | None, Parameter(metavar="FILE")]
Directory = Annotated[Path | None, Parameter(metavar="DIR")]
Text = Annotated[str | None, Parameter(metavar="NAME")]
Several = Annotated[list[str] | None, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Options of every command but keys and token."""

    config: Annotated[File, Parameter(group=PROCESS)] = None
    """Read options from this TOML file. [default: goreprox.toml in the current directory, if there is one]"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RoleOptions(FileOptions):
    """Options of every role. The defaults are those of `goreprox.config`."""

    log_level: Annotated[
        Level, Parameter(group=PROCESS, converter=_reading(_level), n_tokens=1, metavar="LEVEL", show_choices=False)
    ] = "info"
    """Log this and above: trace, debug, info, warning or error."""
    log_json: Annotated[bool, Parameter(group=PROCESS)] = False
    """Log one JSON object per line."""
    name: Annotated[Text, Parameter(group=PROCESS)] = None
    """Name shown to the other side; processes of one name are replicas. [default: this host's name]"""
    runtime_dir: Annotated[Directory, Parameter(group=PROCESS)] = None
    """Directory for lock files and the status socket. [default: goreprox in XDG_RUNTIME_DIR or /run, else in the
    temporary directory]"""
    insecure: Annotated[bool, Parameter(group=KEYS)] = False
    """Disable encryption and authentication of links; anyone who can reach the port can join."""
    link_timeout: Annotated[Seconds, Parameter(group=LIFETIMES)] = 6
    """Silence after which a link counts as broken."""

    def role(self) -> dict[str, Any]:
        """Give the arguments that `ProcessConfig` takes."""
        given = {"name": self.name, "runtime_dir": _expanded(self.runtime_dir)}
        return {key: value for key, value in given.items() if value is not None} | {"link_timeout_s": self.link_timeout}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EndOptions(RoleOptions):
    """Options of those that own connections: of server, edge and provider."""

    grace: Annotated[Seconds, Parameter(group=LIFETIMES)] = 60
    """How long connections outlive a broken link. The smaller value of the two sides counts."""
    drain: Annotated[Seconds, Parameter(group=LIFETIMES)] = 30
    """How long connections may take to end after SIGTERM or Ctrl-C; a second signal resets them at once."""
    half_closed_timeout: Annotated[Seconds, Parameter(group=LIFETIMES)] = 0
    """Reset a half-closed connection after so long without traffic; 0: never."""
    max_connections: Annotated[Count, Parameter(group=LIMITS)] = 10_000
    """Connections at a time. Further ones wait."""
    memory: Annotated[Mebibytes, Parameter(group=LIMITS)] = 256
    """Memory for data in transit, both directions together."""

    def end(self) -> dict[str, Any]:
        """Give the arguments that `EndConfig` takes."""
        return self.role() | {
            "grace_s": self.grace,
            "drain_s": self.drain,
            "half_closed_timeout_s": self.half_closed_timeout or None,
            "max_connections": self.max_connections,
            "memory_bytes": round(self.memory * MIB),
        }


_Rules = Annotated[Several, Parameter(group=LIMITS, metavar="[PLACE=]CIDR")]
_File = Annotated[File, Parameter(group=KEYS)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AcceptingOptions(EndOptions):
    """Options of those that accept clients: of server and edge."""

    listen: Annotated[Several, Parameter(group=ADDRESSES, metavar="[SCHEME://]ADDR[=SERVICE]")] = None
    """Accept clients here, for this service. SCHEME is tcp (default) or http, or, with TLS, tls or https. May be
    repeated. [default: 8080]"""
    reuse_port: Annotated[bool, Parameter(group=ADDRESSES)] = False
    """Let other processes with this option listen on the same ports."""
    route: Annotated[Several, Parameter(group=ADDRESSES, metavar="HOST=SERVICE")] = None
    """Service of HTTP requests for this host; HOST is a name, *.NAME or *. May be repeated."""
    allow: _Rules = None
    """Networks of clients that may connect; PLACE is a service or a port. May be repeated. [default: all]"""
    deny: _Rules = None
    """Networks of clients that are rejected, even if allowed. May be repeated."""
    max_connections_per_address: Annotated[Count | None, Parameter(group=LIMITS, metavar="NUMBER")] = None
    """Connections at a time from one client address, in each process; 0: any number.
    [default: a quarter of --max-connections; any number from this machine]"""
    trusted_proxies: Annotated[Several, Parameter(group=LIMITS, metavar="CIDR")] = None
    """Networks of proxies whose X-Forwarded-For and Forwarded are believed. May be repeated."""
    proxy_protocol_from: _Rules = None
    """Networks of proxies whose connections begin with a PROXY protocol header. May be repeated."""
    queue_timeout: Annotated[Seconds, Parameter(group=LIFETIMES)] = 10
    """How long an HTTP request waits for a provider."""
    auth_tokens: _File = None
    """Require a token from this file with each HTTP request; `goreprox token new` makes them."""
    auth_header: Annotated[str, Parameter(group=KEYS, metavar="NAME")] = "X-Goreprox-Auth"
    """HTTP header that carries the token."""
    without_tokens: Annotated[
        list[int] | None, Parameter(group=KEYS, negative="", metavar="PORT", converter=_reading_all(units.count))
    ] = None
    """Port of a tcp:// or tls:// listener beside --auth-tokens whose clients need none. May be repeated."""
    tls_cert: _File = None
    """PEM file with the certificate for tls:// and https:// and its chain. Reread when it changes."""
    tls_key: _File = None
    """PEM file with the certificate's private key."""
    tls_client_ca: _File = None
    """PEM file of CA certificates; clients without a certificate signed by one of them are rejected."""
    tls_alpn: Annotated[Several, Parameter(group=KEYS, metavar="PROTOCOL")] = None
    """Protocol that tls:// ports agree on with clients (ALPN), like h2 for gRPC. May be repeated. [default: none]"""
    via: Annotated[bool, Parameter(group=PROCESS)] = False
    """Add Via to HTTP requests. Targets may then no longer compress their responses, as nginx by default."""
    host_header: Annotated[Several, Parameter(group=ADDRESSES, metavar="[SERVICE=]NAME")] = None
    """Host that targets get in HTTP requests. May be repeated. [default: as the client sent it]"""
    max_header_bytes: Annotated[Count, Parameter(group=LIMITS)] = 16_384
    """Bytes that the header section of an HTTP request may have, 1024 to 262144."""
    max_header_lines: Annotated[Count, Parameter(group=LIMITS)] = 100
    """Header lines that an HTTP request may have, 10 to 1000."""
    access_log: Annotated[bool, Parameter(group=PROCESS)] = True
    """Log each HTTP request."""

    def accepting(self) -> dict[str, Any]:
        """Give the arguments that `AcceptingConfig` takes.

        Raises:
            ConfigError: one cannot be read.
        """
        from goreprox.config.addresses import Listener
        from goreprox.config.http import HostHeader, HttpSettings, Limits
        from goreprox.config.routes import Route

        listeners = {"listeners": tuple(map(Listener.parse, self.listen))} if self.listen else {}
        return (
            self.end()
            | listeners
            | {
                "reuse_port": self.reuse_port,
                "routes": tuple(map(Route.parse, self.route or ())),
                "allow": _rules("allow", self.allow),
                "deny": _rules("deny", self.deny),
                "max_connections_per_address": self.max_connections_per_address,
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
    from goreprox.config.networks import Rule

    return tuple(Rule.parse(option, text) for text in texts or ())
