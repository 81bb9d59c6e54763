"""What each role is told to do, checked: everything wrong raises `ConfigError` when a configuration is made."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from goreprox.config.addresses import (
    EDGES,
    PROVIDERS,
    WILDCARDS,
    Address,
    Listener,
    ProxyVersion,
    Target,
    check_dialable,
)
from goreprox.config.certificates import CertificateConfig
from goreprox.config.checks import (
    check_count,
    check_distinct,
    check_ports,
    check_range,
    check_seconds,
    check_services,
)
from goreprox.config.clients import ClientConfig
from goreprox.config.defaults import (
    DEFAULT_DIAL_TIMEOUT_S,
    DEFAULT_MAX_PEERS,
    DEFAULT_SERVICE,
    DEFAULT_WEIGHT,
    DEFAULT_WORKERS,
    MAX_ENDPOINTS,
    MAX_PEERS,
    MAX_WEIGHT,
    MAX_WORKERS,
    MIN_WEIGHT,
    SAME_PORT,
)
from goreprox.config.options import (
    ADDRESSES,
    GROUP,
    KEYS,
    LIFETIMES,
    LIMITS,
    Count,
    File,
    LinkPort,
    Seconds,
    member_of,
    one,
    several,
)
from goreprox.config.process import ConnectionConfig, ProcessConfig
from goreprox.config.proxy import ProxyConfig
from goreprox.config.publish import PublishConfig
from goreprox.config.published import PublishedName
from goreprox.config.target_checks import CheckConfig
from goreprox.errors import ConfigError

if TYPE_CHECKING:
    from brokers import LinkSecurity


Addresses = Annotated[
    tuple[Address, ...],
    several(functools.partial(Address.parse_link, default_port=SAME_PORT), "[tls://]HOST[:PORT]"),
    Parameter(name="--address", group=ADDRESSES),
]
"""How others reach this machine."""


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """Options of roles that accept peers: server and broker."""

    providers: Annotated[LinkPort, Parameter(group=ADDRESSES)] = PROVIDERS
    """Accept providers here, in TLS if it begins with tls://; at a server, it may be the port of https:// clients."""
    addresses: Addresses = ()
    """Put this address of the machine into join strings, and into those of published ports. It is remembered. May be
    repeated. [default: this machine's name]"""
    max_peers: Annotated[Count, Parameter(group=LIMITS)] = DEFAULT_MAX_PEERS
    """Limit providers and edges at a time."""

    def __post_init__(self) -> None:
        check_range("max-peers", self.max_peers, 1, MAX_PEERS)
        _check_addresses(self.addresses)


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class DialConfig:
    """How a provider connects to its targets."""

    timeout_s: Annotated[Seconds, Parameter(name="--dial-timeout", group=LIFETIMES)] = DEFAULT_DIAL_TIMEOUT_S
    """Give up connecting to a target after so long."""
    proxy_protocol: Annotated[
        ProxyVersion | None,
        one(member_of(ProxyVersion), "VERSION", show_default=False),
        Parameter(group=ADDRESSES),
    ] = None
    """Send targets the client's address in a PROXY protocol header."""
    ca: Annotated[File, Parameter(name="--target-ca", group=KEYS)] = None
    """Trust these CAs for tls:// targets; PEM, reread when it changes. [default: those of the system]"""
    insecure: Annotated[bool, Parameter(name="--target-insecure", group=KEYS)] = False
    """Accept any certificate of tls:// targets."""

    def __post_init__(self) -> None:
        check_seconds("dial-timeout", self.timeout_s, least=0.1)

    def check(self, targets: Sequence[Target]) -> None:
        """Require that options of TLS are for a target, and do not contradict each other.

        Raises:
            ConfigError: they are for none, or do.
        """
        for option, given in (("target-ca", self.ca is not None), ("target-insecure", self.insecure)):
            if given and not any(target.tls for target in targets):
                raise ConfigError(
                    f"{option}: no target speaks TLS; write tls:// before its address, or leave --{option} out"
                )
        if self.ca is not None and self.insecure:
            raise ConfigError("target-insecure: there is a target-ca, too; leave one of them out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A server: where clients, where providers, and where further edges, if any, are accepted."""

    process: ProcessConfig = field(default_factory=ProcessConfig)
    connections: ConnectionConfig = field(default_factory=ConnectionConfig)
    clients: ClientConfig = field(default_factory=ClientConfig)
    peers: PeerConfig = field(default_factory=PeerConfig)
    edges: Address | None = None
    state_dir: Path | None = None
    """The directory of the keys, unless links are without, and of certificates."""

    @property
    def keys_dir(self) -> Path | None:
        """The directory of the keys; None: links without keys."""
        return None if self.process.insecure else self.state_dir

    def __post_init__(self) -> None:
        links = [("providers", self.peers.providers), *([] if self.edges is None else [("edges", self.edges)])]
        tls = self.clients.tls
        if not self.clients.acme.enabled:
            tls.check_links(links)
        tls.check_used(any(address.tls for _, address in links) or self.clients.speaks_tls)
        if self.shared is not None:
            del links[0]
            if tls.client_ca is not None:
                raise ConfigError(
                    f"providers {self.peers.providers}: clients of this port need certificates by --tls-client-ca, and "
                    "providers have none; give providers another port"
                )
        check_ports([*self.clients.ports, *links, *self.process.ports])

    @property
    def shared(self) -> Listener | None:
        """The listener whose port is that of providers, too."""
        address = self.peers.providers
        found = (each for each in self.clients.listeners if each.scheme.is_tls and address == each.address.within_tls)
        return next(found, None) if address.port else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig:
    """An edge: its brokers, and how many processes share its ports."""

    brokers: tuple[Address, ...]
    security: "LinkSecurity | None" = None
    """The keys of the links; None: links without keys."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    connections: ConnectionConfig = field(default_factory=ConnectionConfig)
    clients: ClientConfig = field(default_factory=ClientConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    workers: int = DEFAULT_WORKERS
    addresses: tuple[Address, ...] = ()
    state_dir: Path | None = None
    """The directory of certificates."""

    def __post_init__(self) -> None:
        _check_remotes("broker", self.brokers)
        _check_addresses(self.addresses)
        self.proxy.check("broker", self.brokers)
        self.clients.tls.check_used(self.clients.speaks_tls)
        check_range("workers", self.workers, 1, MAX_WORKERS)
        check_ports([*self.clients.ports, *self.process.ports])
        if self.workers > 1 and not all(listener.address.port for listener in self.clients.listeners):
            raise ConfigError(f"listen port 0: {self.workers} workers share their ports; choose which with --listen")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """A broker: where providers and where edges are accepted."""

    process: ProcessConfig = field(default_factory=ProcessConfig)
    peers: PeerConfig = field(default_factory=PeerConfig)
    edges: Address = EDGES
    state_dir: Path | None = None
    """The directory of the keys, unless links are without."""
    tls: CertificateConfig = field(default_factory=CertificateConfig)

    @property
    def keys_dir(self) -> Path | None:
        """The directory of the keys; None: links without keys."""
        return None if self.process.insecure else self.state_dir

    def __post_init__(self) -> None:
        links = [("providers", self.peers.providers), ("edges", self.edges)]
        self.tls.check_links(links)
        self.tls.check_used(any(address.tls for _, address in links))
        check_ports([*links, *self.process.ports])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """A provider: what it offers, and to which servers or brokers."""

    targets: tuple[Target, ...]
    servers: tuple[Address, ...]
    security: "LinkSecurity | None" = None
    """The keys of the links; None: links without keys."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    connections: ConnectionConfig = field(default_factory=ConnectionConfig)
    dial: DialConfig = field(default_factory=DialConfig)
    checks: CheckConfig = field(default_factory=CheckConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    weight: float = DEFAULT_WEIGHT

    def __post_init__(self) -> None:
        check_count("target", len(self.targets))
        self.dial.check(self.targets)
        _check_targets(self.targets)
        check_services(list(self.announced))
        _check_published(self.published, self.targets)
        self.checks.check_services(self.services)
        _check_remotes("server", self.servers)
        self.proxy.check("server", self.servers)
        check_range("weight", self.weight, MIN_WEIGHT, MAX_WEIGHT)

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services that are offered."""
        return tuple(target.service for target in self.targets)

    @property
    def published(self) -> dict[PublishedName, str]:
        """The service of each name that is published."""
        return self.publish.by_name(self.services, self.process.own_name)

    @property
    def announced(self) -> dict[str, str]:
        """The service behind each name in the peer list: services themselves, then published names.

        A target without the name of a service that is published is found by its published names alone.
        """
        published = self.published
        plain = [each for each in self.services if each != DEFAULT_SERVICE or each not in published.values()]
        return {each: each for each in plain} | {name.text: service for name, service in published.items()}


def _check_addresses(addresses: Sequence[Address]) -> None:
    if len(addresses) > MAX_ENDPOINTS:
        raise ConfigError(f"address: expected at most {MAX_ENDPOINTS}, got {len(addresses)}")
    for address in addresses:
        if address.host in WILDCARDS:
            raise ConfigError(f"address {address}: expected the host that peers connect to, like tunnel.example.org")


def _check_published(published: Mapping[PublishedName, str], targets: Sequence[Target]) -> None:
    speaking = {target.service: target for target in targets if target.tls}
    for name, service in published.items():
        if name.tls and service in speaking:
            raise ConfigError(
                f"publish {name.url}: clients speak TLS with the target itself, so write {speaking[service].address} "
                "without tls://"
            )


def _check_targets(targets: Sequence[Target]) -> None:
    for first, second in itertools.combinations(targets, 2):
        if first.service == second.service:
            hint = f"web={_short(first)} ssh={_short(second)}"
            raise ConfigError(
                f"targets {first.address} and {second.address}: both are of the service {first.service}; give each its "
                f"own name, like {hint}"
            )


def _short(target: Target) -> str:
    return str(target.address.port if isinstance(target.address, Address) else target.address)


def _check_remotes(option: str, addresses: Sequence[Address]) -> None:
    check_count(option, len(addresses))
    check_distinct(option, [str(address) for address in addresses])
    for address in addresses:
        check_dialable(option, address)
