"""Options of those that accept clients: of server and edge."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

from cyclopts import Parameter

from goreprox.config.acme import AcmeConfig
from goreprox.config.addresses import Address, Listener, Scheme
from goreprox.config.auth import AuthConfig
from goreprox.config.certificates import CertificateConfig
from goreprox.config.checks import check_count, check_distinct, check_ports, check_range, check_services
from goreprox.config.defaults import (
    CLIENT_PORT,
    DEFAULT_SERVICE,
    MAX_ALPN_BYTES,
    MAX_CONNECTIONS,
    MAX_ROUTES,
    MAX_RULES,
)
from goreprox.config.http import HttpConfig
from goreprox.config.limits import ServiceLimits
from goreprox.config.names import check_name
from goreprox.config.networks import LOOPBACK, Network, Rule, parse_network
from goreprox.config.options import ADDRESSES, GROUP, KEYS, LIMITS, Count, File, several
from goreprox.config.published import Ports
from goreprox.config.routes import Route
from goreprox.errors import ConfigError

LISTENERS: Final = (Listener(Address(None, CLIENT_PORT)),)


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig(CertificateConfig):
    """Options of TLS with clients."""

    client_ca: Annotated[File, Parameter(name="--tls-client-ca", group=KEYS)] = None
    """Reject TLS clients without a certificate signed by one of these CAs; PEM, reread when it changes."""
    alpn: Annotated[tuple[str, ...], several(str, "PROTOCOL"), Parameter(name="--tls-alpn", group=KEYS)] = ()
    """Offer this protocol at tls:// ports (ALPN), like h2 for gRPC. May be repeated. [default: none]"""

    def __post_init__(self) -> None:
        CertificateConfig.__post_init__(self)
        for protocol in self.alpn:
            if not (protocol.isascii() and protocol.isprintable() and 1 <= len(protocol) <= MAX_ALPN_BYTES):
                raise ConfigError(f"tls-alpn {protocol!r}: expected the name of a protocol, like h2")
        check_distinct("tls-alpn", self.alpn)

    def check(self, listeners: Sequence[Listener], *, by_acme: bool) -> None:
        """Require that listeners have the files that they need, and need those that are for clients alone.

        Certificates may come by ACME instead.

        Raises:
            ConfigError: a file is missing, or is for no listener.
        """
        wanting = next((listener for listener in listeners if listener.scheme.is_tls), None)
        if wanting is None and (self.certs or self.keys or self.client_ca):
            wanting = next((listener for listener in listeners if listener.scheme is Scheme.SNI), None)
        for option, paths in self.files.items():
            if wanting is not None and not paths and (not by_acme or len(self.certs) != len(self.keys)):
                raise ConfigError(
                    f"listen {wanting}: {option} is missing; give the certificate by "
                    "--tls-cert FILE and its private key by --tls-key FILE, or get certificates by --acme EMAIL"
                )
        if self.client_ca is not None and wanting is None:
            raise ConfigError(
                f"tls-client-ca {self.client_ca}: no port speaks TLS; write https:// or tls:// in --listen, or leave "
                "--tls-client-ca out"
            )
        if self.alpn and not any(listener.scheme is Scheme.TLS for listener in listeners):
            raise ConfigError("tls-alpn: there is no tls:// to listen on; https:// always offers http/1.1")


def _rules(option: str) -> Parameter:
    return several(functools.partial(Rule.parse, option), "[SCOPE=]CIDR")


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Options of listeners: addresses, routes, access rules, HTTP, tokens and TLS."""

    listeners: Annotated[
        tuple[Listener, ...],
        several(Listener.parse, "[SCHEME://]ADDR[=SERVICE]"),
        Parameter(name="--listen", group=ADDRESSES),
    ] = LISTENERS
    """Accept clients here, for this service. SCHEME is tcp (default) or http, or, with TLS, tls or https, or sni, which
    passes TLS on by its host. May be repeated. [default: 8080]"""
    reuse_port: Annotated[bool, Parameter(group=ADDRESSES)] = False
    """Share the ports with other processes that have this option."""
    routes: Annotated[
        tuple[Route, ...], several(Route.parse, "[tls://]HOST=SERVICE"), Parameter(name="--route", group=ADDRESSES)
    ] = ()
    """Route HTTP requests, and TLS at sni:// ports, for this host to a service; HOST is a name, *.NAME or *. With tls://
    only TLS, which is passed on whatever certificates there are. May be repeated."""
    publish_ports: Annotated[
        tuple[Ports, ...], several(Ports.parse, "PORT[-PORT]"), Parameter(name="--publish-ports", group=ADDRESSES)
    ] = ()
    """Let providers publish these ports, as far as their keys allow. Their clients need no token. May be repeated.
    [default: none]"""
    allow: Annotated[tuple[Rule, ...], _rules("allow"), Parameter(group=LIMITS)] = ()
    """Admit clients from this network only; SCOPE is a service or a port. May be repeated. [default: all]"""
    deny: Annotated[tuple[Rule, ...], _rules("deny"), Parameter(group=LIMITS)] = ()
    """Reject clients from this network, even if allowed. May be repeated."""
    max_connections_per_address: Annotated[
        Count | None, Parameter(group=LIMITS, metavar="NUMBER", show_default=False)
    ] = None
    """Limit connections at a time from one client address, in each process; 0: no limit.
    [default: a quarter of --max-connections; no limit for this machine]"""
    trusted_proxies: Annotated[
        tuple[Network, ...],
        several(functools.partial(parse_network, "trusted-proxies"), "CIDR"),
        Parameter(group=LIMITS),
    ] = ()
    """Trust X-Forwarded-For and Forwarded from proxies in this network. May be repeated."""
    proxy_protocol_from: Annotated[tuple[Rule, ...], _rules("proxy-protocol-from"), Parameter(group=LIMITS)] = ()
    """Expect a PROXY protocol header from proxies in this network. May be repeated."""
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    http: HttpConfig = field(default_factory=HttpConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    acme: AcmeConfig = field(default_factory=AcmeConfig)

    def __post_init__(self) -> None:
        if len(self.trusted_proxies) > MAX_RULES:
            raise ConfigError(f"trusted-proxies: expected at most {MAX_RULES}, got {len(self.trusted_proxies)}")
        _check_routes(self.routes, self.listeners)
        if len(self.publish_ports) > MAX_RULES:
            raise ConfigError(f"publish-ports: expected at most {MAX_RULES} of them, got {len(self.publish_ports)}")
        self.auth.check(self.listeners, self.services_of)
        self.tls.check(self.listeners, by_acme=self.acme.enabled)
        if self.acme.enabled:
            self._check_acme()
        ports = [str(listener.address.port) for listener in self.listeners if listener.address.port]
        for option, rules in (
            ("allow", self.allow),
            ("deny", self.deny),
            ("proxy-protocol-from", self.proxy_protocol_from),
        ):
            _check_rules(option, rules, [*self.services, *dict.fromkeys(ports)])
        if self.max_connections_per_address:
            check_range("max-connections-per-address", self.max_connections_per_address, 1, MAX_CONNECTIONS)
        check_count("listen", len(self.listeners))
        check_ports(self.ports)
        check_services(self.services)
        self.http.check_services(self.services)
        self.auth.check_services(self.services)
        schemes = [listener.scheme for listener in self.listeners]
        if self.http.redirect and not (Scheme.HTTP in schemes and {Scheme.HTTPS, Scheme.SNI} & set(schemes)):
            raise ConfigError(
                "http-redirect: it leads clients from one port to another; write both in --listen, like "
                "--listen http://80 --listen https://443"
            )
        if self.http.inspect is not None and not any(scheme.is_routed for scheme in schemes):
            raise ConfigError("inspect: there is no http:// or https:// to listen on; only there requests are known")
        self.limits.check_services(self.services)

    def _check_acme(self) -> None:
        if not self.speaks_tls:
            raise ConfigError("acme: no port speaks TLS; write https:// in --listen, like --listen https://443")
        if not self.publishes_with_tls and all("*" in route.host for route in self.web_routes):
            raise ConfigError(
                "acme: there is no host to get a certificate for; name each by --route HOST=SERVICE, or let providers "
                "publish some at an https:// or sni:// port that is for no service"
            )

    @property
    def speaks_tls(self) -> bool:
        """Whether any listener does, if only for hosts that have a certificate."""
        return any(listener.scheme.is_tls or listener.scheme is Scheme.SNI for listener in self.listeners)

    @property
    def ports(self) -> list[tuple[str, Address]]:
        """The addresses of all listeners, each with its option."""
        return [("listen", listener.address) for listener in self.listeners]

    def address_limit(self, max_connections: int) -> tuple[int | None, tuple[Network, ...]]:
        """Return how many of `max_connections` one address may have (None: any number), and networks not counted.

        By default one address cannot take more than a quarter, so that no single one keeps all others out; 16 are for a
        browser or two also where there are few. Trusted proxies are never counted, since they connect for others, and
        by default this machine is not: its proxies, and tests, look like one client.
        """
        match self.max_connections_per_address:
            case None:
                share = max(max_connections // 4, min(max_connections, 16))
                return share, (*LOOPBACK, *self.trusted_proxies)
            case 0:
                return None, ()
            case number:
                return number, self.trusted_proxies

    def publishes(self, listener: Listener) -> bool:
        """Return whether a listener serves published HTTP hosts: one that is not for a service does."""
        has_certificates = bool(self.tls.certs) or self.acme.enabled
        serves = listener.scheme.is_http or (listener.scheme is Scheme.SNI and has_certificates)
        return serves and listener.service == DEFAULT_SERVICE

    @property
    def publishes_with_tls(self) -> bool:
        """Whether published hosts are served with TLS."""
        return any(self.publishes(each) and each.scheme is not Scheme.HTTP for each in self.listeners)

    @property
    def web_routes(self) -> tuple[Route, ...]:
        """The routes of requests."""
        return tuple(route for route in self.routes if not route.passes)

    def routes_of(self, listener: Listener) -> tuple[Route, ...]:
        """Return the routes that apply at a listener."""
        if listener.scheme is Scheme.SNI:
            return self.routes
        return self.web_routes if listener.scheme.is_http else ()

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services that clients can ask for here."""
        return tuple(dict.fromkeys(name for listener in self.listeners for name in self.services_of(listener)))

    def services_of(self, listener: Listener) -> tuple[str, ...]:
        """Return the services that clients can ask for at a listener, without those that are published."""
        if listener.is_published:
            return ()
        own, routed = listener.service, tuple(dict.fromkeys(route.service for route in self.routes_of(listener)))
        if listener.scheme is Scheme.SNI:
            if own == DEFAULT_SERVICE and (routed or not self.tls.certs):
                return routed
            return tuple(dict.fromkeys((*routed, own)))
        return routed or (own,)


def _check_rules(option: str, rules: Sequence[Rule], scopes: Sequence[str]) -> None:
    if len(rules) > MAX_RULES:
        raise ConfigError(f"{option}: expected at most {MAX_RULES} of them, got {len(rules)}")
    for rule in rules:
        if rule.scope is not None and rule.scope not in scopes:
            raise ConfigError(
                f"{option} {rule.scope}={rule.network}: no client can connect there; "
                f"services and ports are {', '.join(scopes)}"
            )


def _check_routes(routes: Sequence[Route], listeners: Sequence[Listener]) -> None:
    if len(routes) > MAX_ROUTES:
        raise ConfigError(f"route: expected at most {MAX_ROUTES} of them, got {len(routes)}")
    check_distinct("route", [route.name for route in routes])
    for route in routes:
        check_name("service", route.service)
    if routes and not any(listener.scheme.is_routed for listener in listeners):
        raise ConfigError("route: there is no http://, https:// or sni:// to listen on; only there hosts are known")
    passing = next((route for route in routes if route.passes), None)
    if passing is not None and not any(listener.scheme is Scheme.SNI for listener in listeners):
        raise ConfigError(f"route {passing.text}: there is no sni:// to listen on; only there TLS is passed on")
    for listener in (listener for listener in listeners if listener.scheme.is_http):
        if not all(route.passes for route in routes) and listener.service != DEFAULT_SERVICE:
            raise ConfigError(
                f"listen {listener}={listener.service}: with routes the host decides; "
                f"leave ={listener.service} out, or add --route '*={listener.service}'"
            )
