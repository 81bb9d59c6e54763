"""What each role is told to do, checked: everything wrong raises `ConfigError` when a configuration is made."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goreprox.config.addresses import WILDCARDS, Address, Listener, ProxyVersion, Scheme, Target, check_dialable
from goreprox.config.defaults import (
    CLIENT_PORT,
    DAY_S,
    DEFAULT_AUTH_HEADER,
    DEFAULT_DIAL_TIMEOUT_S,
    DEFAULT_DRAIN_S,
    DEFAULT_GRACE_S,
    DEFAULT_LINK_TIMEOUT_S,
    DEFAULT_MAX_CONNECTIONS,
    DEFAULT_MAX_PEERS,
    DEFAULT_MEMORY_MIB,
    DEFAULT_QUEUE_TIMEOUT_S,
    DEFAULT_SERVICE,
    EDGE_PORT,
    MAX_ALPN_BYTES,
    MAX_CONNECTIONS,
    MAX_ENDPOINTS,
    MAX_MEMORY_BYTES,
    MAX_PEERS,
    MAX_ROUTES,
    MAX_RULES,
    MAX_SERVICES_BYTES,
    MAX_WEIGHT,
    MAX_WORKERS,
    MIB,
    MIN_FLOOR_BYTES,
    MIN_WEIGHT,
    PROVIDER_PORT,
)
from goreprox.config.http import HttpSettings
from goreprox.config.names import check_name, default_name
from goreprox.config.networks import LOOPBACK, Network, Rule
from goreprox.config.paths import default_runtime_dir
from goreprox.config.routes import Route
from goreprox.errors import ConfigError

if TYPE_CHECKING:
    from brokers import LinkSecurity


PROVIDERS: Final = Address(None, PROVIDER_PORT)
EDGES: Final = Address(None, EDGE_PORT)
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
# Fields that mean something to every recipient cannot bring a token, too.
_NO_AUTH_HEADERS: Final = ("host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "expect")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """What all roles have in common. Times in seconds."""

    name: str = field(default_factory=default_name)
    link_timeout_s: float = DEFAULT_LINK_TIMEOUT_S
    runtime_dir: Path = field(default_factory=default_runtime_dir)

    def __post_init__(self) -> None:
        check_name("name", self.name)
        _check_seconds("link-timeout", self.link_timeout_s, least=0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndConfig(ProcessConfig):
    """What those have in common that own sockets of clients or of targets. Memory in bytes."""

    grace_s: float = DEFAULT_GRACE_S
    drain_s: float = DEFAULT_DRAIN_S
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    memory_bytes: int = DEFAULT_MEMORY_MIB * MIB
    half_closed_timeout_s: float | None = None

    def __post_init__(self) -> None:
        ProcessConfig.__post_init__(self)  # not super(): a dataclass with slots is not the class that was written
        _check_seconds("grace", self.grace_s, least=0.1)
        _check_seconds("drain", self.drain_s, least=0)
        if self.half_closed_timeout_s is not None:
            _check_seconds("half-closed-timeout", self.half_closed_timeout_s, least=0.1)
        _check_range("max-connections", self.max_connections, 1, MAX_CONNECTIONS)
        _check_memory(self.memory_bytes, max_connections=self.max_connections)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptingConfig(EndConfig):
    """Where clients are accepted: of an edge, and of a server."""

    listeners: tuple[Listener, ...] = (Listener(Address(None, CLIENT_PORT)),)
    reuse_port: bool = False
    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    max_connections_per_address: int | None = None
    """0: any number; None: a share of `max_connections`."""
    queue_timeout_s: float = DEFAULT_QUEUE_TIMEOUT_S
    """How long an HTTP request waits for a provider."""
    auth_tokens: Path | None = None
    """The file of tokens, one of which each request must bring; None: requests need none."""
    auth_header: str = DEFAULT_AUTH_HEADER
    without_tokens: tuple[int, ...] = ()
    """Ports beside those that demand tokens whose clients cannot bring any: said one by one, lest one be forgotten."""
    trusted_proxies: tuple[Network, ...] = ()
    """Who is believed about the clients behind it."""
    proxy_protocol_from: tuple[Rule, ...] = ()
    """Whose connections begin with a header of the PROXY protocol."""
    access_log: bool = True
    http: HttpSettings = field(default_factory=HttpSettings)
    routes: tuple[Route, ...] = ()
    """Which service the Host of an HTTP request is; empty: that of the listener."""
    tls_cert: Path | None = None
    """The certificate that TLS clients are shown, and its chain; PEM."""
    tls_key: Path | None = None
    """Its private key; PEM."""
    tls_client_ca: Path | None = None
    """Who signs the certificates that TLS clients must have; None: they need none. PEM."""
    tls_alpn: tuple[str, ...] = ()
    """Protocols that `tls://` listeners agree on with clients (ALPN), the best first."""

    def __post_init__(self) -> None:
        EndConfig.__post_init__(self)
        _check_seconds("queue-timeout", self.queue_timeout_s, least=0.1)
        if len(self.trusted_proxies) > MAX_RULES:
            raise ConfigError(f"trusted-proxies: expected at most {MAX_RULES}, got {len(self.trusted_proxies)}")
        _check_routes(self.routes, self.listeners)
        _check_auth(self.auth_tokens, self.auth_header, self.without_tokens, self.listeners)
        _check_tls(self.tls_cert, self.tls_key, self.tls_client_ca, self.listeners)
        _check_alpn(self.tls_alpn, self.listeners)
        for option, rules in (
            ("allow", self.allow),
            ("deny", self.deny),
            ("proxy-protocol-from", self.proxy_protocol_from),
        ):
            ports = [str(listener.address.port) for listener in self.listeners if listener.address.port]
            _check_rules(option, rules, [*self.services, *dict.fromkeys(ports)])
        if self.max_connections_per_address:
            _check_range("max-connections-per-address", self.max_connections_per_address, 1, MAX_CONNECTIONS)
        _check_count("listen", len(self.listeners))
        _check_ports([("listen", listener.address) for listener in self.listeners])
        _check_services(self.services)
        self.http.check_services(self.services)

    @property
    def address_limit(self) -> tuple[int | None, tuple[Network, ...]]:
        """How many connections one client address may have (None: any number), and the networks that are not counted.

        By default one address cannot take more than a quarter of the places, so that no single one keeps all others
        out; 16 are for a browser or two also where there are few places. Trusted proxies are never counted, since they
        come for others, and by default this machine is not: its proxies, and tests, look like one client.
        """
        match self.max_connections_per_address:
            case None:
                share = max(self.max_connections // 4, min(self.max_connections, 16))
                return share, (*LOOPBACK, *self.trusted_proxies)
            case 0:
                return None, ()
            case number:
                return number, self.trusted_proxies

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services that clients can ask for here."""
        return tuple(dict.fromkeys(name for listener in self.listeners for name in self.services_of(listener)))

    def services_of(self, listener: Listener) -> tuple[str, ...]:
        """Return what clients can ask for at a listener."""
        if listener.scheme.is_http and self.routes:
            return tuple(dict.fromkeys(route.service for route in self.routes))
        return (listener.service,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(AcceptingConfig):
    """A server: where clients, where providers, and where further edges, if any, are accepted."""

    providers: Address = PROVIDERS
    edges: Address | None = None
    max_peers: int = DEFAULT_MAX_PEERS
    addresses: tuple[Address, ...] = ()
    """What join strings name; port 0: the one listened on. Empty: what earlier starts were given."""
    state_dir: Path | None = None
    """Where the keys are; None: links without keys."""

    def __post_init__(self) -> None:
        AcceptingConfig.__post_init__(self)
        ports = [("listen", listener.address) for listener in self.listeners] + [("providers", self.providers)]
        _check_ports(ports if self.edges is None else [*ports, ("edges", self.edges)])
        _check_range("max-peers", self.max_peers, 1, MAX_PEERS)
        _check_reach(self.addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig(AcceptingConfig):
    """An edge: its brokers, and how many processes share its ports."""

    brokers: tuple[Address, ...]
    workers: int = 1
    security: "LinkSecurity | None" = None
    """The keys of the links; None: links without keys."""

    def __post_init__(self) -> None:
        AcceptingConfig.__post_init__(self)
        _check_remotes("broker", self.brokers)
        _check_range("workers", self.workers, 1, MAX_WORKERS)
        if self.workers > 1 and not all(listener.address.port for listener in self.listeners):
            raise ConfigError(f"listen port 0: {self.workers} workers share their ports; choose which with --listen")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig(ProcessConfig):
    """A broker: where providers and where edges are accepted."""

    providers: Address = PROVIDERS
    edges: Address = EDGES
    max_peers: int = DEFAULT_MAX_PEERS
    addresses: tuple[Address, ...] = ()
    """What join strings name; port 0: the one listened on. Empty: what earlier starts were given."""
    state_dir: Path | None = None
    """Where the keys are; None: links without keys."""

    def __post_init__(self) -> None:
        ProcessConfig.__post_init__(self)
        _check_ports([("providers", self.providers), ("edges", self.edges)])
        _check_range("max-peers", self.max_peers, 1, MAX_PEERS)
        _check_reach(self.addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig(EndConfig):
    """A provider: what it offers, and to which servers or brokers."""

    targets: tuple[Target, ...]
    servers: tuple[Address, ...]
    dial_timeout_s: float = DEFAULT_DIAL_TIMEOUT_S
    weight: float = 1.0
    proxy_protocol: ProxyVersion | None = None
    """How targets are told of the client, before its first byte; None: they are not."""
    target_ca: Path | None = None
    """Who signs the certificates of targets that speak TLS; None: those whom the system trusts. PEM."""
    target_insecure: bool = False
    """Whether these targets may have any certificate."""
    security: "LinkSecurity | None" = None
    """The keys of the links; None: links without keys."""

    def __post_init__(self) -> None:
        EndConfig.__post_init__(self)
        _check_count("target", len(self.targets))
        _check_target_tls(self.targets, self.target_ca, insecure=self.target_insecure)
        _check_targets(self.targets)
        _check_services(self.services)
        _check_remotes("server", self.servers)
        _check_seconds("dial-timeout", self.dial_timeout_s, least=0.1)
        _check_range("weight", self.weight, MIN_WEIGHT, MAX_WEIGHT)

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services that are offered."""
        return tuple(target.service for target in self.targets)


def _check_seconds(option: str, value: float, *, least: float) -> None:
    if not (math.isfinite(value) and least <= value <= DAY_S):
        raise ConfigError(f"{option} {value:g}: expected {least:g} to {DAY_S:g} seconds")


def _check_count(option: str, count: int) -> None:
    if not 1 <= count <= MAX_ENDPOINTS:
        raise ConfigError(f"{option}: expected 1 to {MAX_ENDPOINTS} of them, got {count}")


def _check_range(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{option} {value:,}: expected {least:,g} to {most:,.0f}")


def _check_rules(option: str, rules: Sequence[Rule], places: Sequence[str]) -> None:
    if len(rules) > MAX_RULES:
        raise ConfigError(f"{option}: expected at most {MAX_RULES} of them, got {len(rules)}")
    for rule in rules:
        if rule.place is not None and rule.place not in places:
            raise ConfigError(
                f"{option} {rule.place}={rule.network}: no client can come in there; "
                f"services and ports are {', '.join(places)}"
            )


def _check_routes(routes: Sequence[Route], listeners: Sequence[Listener]) -> None:
    if len(routes) > MAX_ROUTES:
        raise ConfigError(f"route: expected at most {MAX_ROUTES} of them, got {len(routes)}")
    _check_distinct("route", [route.host for route in routes])
    for route in routes:
        check_name("service", route.service)
    web = [listener for listener in listeners if listener.scheme.is_http]
    if routes and not web:
        raise ConfigError("route: there is no http:// or https:// to listen on; only there hosts are known")
    for listener in web:
        if routes and listener.service != DEFAULT_SERVICE:
            raise ConfigError(
                f"listen {listener}={listener.service}: with routes the host decides; "
                f"leave ={listener.service} out, or add --route '*={listener.service}'"
            )


def _check_auth(path: Path | None, header: str, exempt: Sequence[int], listeners: Sequence[Listener]) -> None:
    if not _FIELD_NAME.fullmatch(header) or header.lower() in _NO_AUTH_HEADERS:
        raise ConfigError(f"auth-header {header!r}: expected the name of a header field, like {DEFAULT_AUTH_HEADER}")
    raw = {listener.address.port: listener for listener in listeners if not listener.scheme.is_http}
    for port in exempt:
        if path is None:
            raise ConfigError(f"without-tokens {port}: there are no --auth-tokens that a port could be without")
        if port not in raw:
            raise ConfigError(f"without-tokens {port}: no tcp:// or tls:// listener has this port")
    for port, listener in raw.items():
        if path is not None and port not in exempt:
            web = Scheme.HTTPS if listener.scheme.is_tls else Scheme.HTTP
            raise ConfigError(
                f"auth-tokens: listen {listener.address} passes bytes on unread and cannot check them; write "
                f"{web.value}://{listener.address}, or --without-tokens {port} if its clients need none"
            )


def _check_tls(cert: Path | None, key: Path | None, client_ca: Path | None, listeners: Sequence[Listener]) -> None:
    given = {"tls-cert": cert, "tls-key": key}
    wanting = next((listener for listener in listeners if listener.scheme.is_tls), None)
    for option, path in given.items():
        if wanting is not None and path is None:
            raise ConfigError(
                f"listen {wanting}: {option} is missing; give the certificate by "
                "--tls-cert FILE and its private key by --tls-key FILE"
            )
    for option, path in (given | {"tls-client-ca": client_ca}).items():
        if wanting is None and path is not None:
            raise ConfigError(
                f"{option} {path}: no port speaks TLS; write https:// or tls:// in --listen, or leave --{option} out"
            )


def _check_alpn(protocols: Sequence[str], listeners: Sequence[Listener]) -> None:
    for protocol in protocols:
        if not (protocol.isascii() and protocol.isprintable() and 1 <= len(protocol) <= MAX_ALPN_BYTES):
            raise ConfigError(f"tls-alpn {protocol!r}: expected the name of a protocol, like h2")
    if protocols and not any(listener.scheme is Scheme.TLS for listener in listeners):
        raise ConfigError("tls-alpn: there is no tls:// to listen on; https:// always offers http/1.1")
    _check_distinct("tls-alpn", protocols)


def _check_distinct(option: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{option} {name}: given twice; once is enough")


def _check_target_tls(targets: Sequence[Target], ca: Path | None, *, insecure: bool) -> None:
    for option, given in (("target-ca", ca is not None), ("target-insecure", insecure)):
        if given and not any(target.tls for target in targets):
            raise ConfigError(
                f"{option}: no target speaks TLS; write tls:// before its address, or leave --{option} out"
            )
    if ca is not None and insecure:
        raise ConfigError("target-insecure: there is a target-ca, too; leave one of them out")


def _check_targets(targets: Sequence[Target]) -> None:
    for first, second in itertools.combinations(targets, 2):
        if first.service == second.service:
            hint = f"web={first.address.port} ssh={second.address.port}"
            raise ConfigError(
                f"targets {first.address} and {second.address}: both are of the service {first.service}; give each its "
                f"own name, like {hint}"
            )


def _check_remotes(option: str, addresses: Sequence[Address]) -> None:
    _check_count(option, len(addresses))
    _check_distinct(option, [str(address) for address in addresses])
    for address in addresses:
        check_dialable(option, address)


def _check_reach(addresses: Sequence[Address]) -> None:
    if len(addresses) > MAX_ENDPOINTS:
        raise ConfigError(f"address: expected at most {MAX_ENDPOINTS}, got {len(addresses)}")
    for address in addresses:
        if address.host in WILDCARDS:
            raise ConfigError(f"address {address}: expected the host that peers connect to, like tunnel.example.org")


def _check_ports(ports: Sequence[tuple[str, Address]]) -> None:
    for (option, address), (other_option, other) in itertools.combinations(ports, 2):
        if address.overlaps(other):
            raise ConfigError(
                f"{option} {address} and {other_option} {other}: one port for two; choose another one for either"
            )


def _check_services(names: Sequence[str]) -> None:
    size = sum(len(name) + 2 for name in names)  # with the head that CBOR puts before each
    if size > MAX_SERVICES_BYTES:
        raise ConfigError(
            f"services: their names take {size:,} bytes, expected at most {MAX_SERVICES_BYTES:,}; choose shorter ones"
        )


def _check_memory(memory_bytes: int, *, max_connections: int) -> None:
    least = 4 * max_connections * MIN_FLOOR_BYTES
    if memory_bytes < least:
        raise ConfigError(
            f"memory {memory_bytes / MIB:g} MiB: {max_connections:,} connections need at least "
            f"{math.ceil(least / MIB)} MiB; raise --memory or lower --max-connections"
        )
    if memory_bytes > MAX_MEMORY_BYTES:
        raise ConfigError(f"memory {memory_bytes / MIB:g} MiB: expected at most {MAX_MEMORY_BYTES // MIB:,} MiB")
