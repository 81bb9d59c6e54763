"""What HTTP listeners need to know to serve their clients (tokens, routes and access rules), and what they count."""

from collections.abc import Callable
from typing import NamedTuple

from loguru import logger

from goreprox.config.addresses import Listener, Scheme
from goreprox.config.auth import AuthConfig
from goreprox.config.clients import ClientConfig
from goreprox.config.routes import Routes
from goreprox.http.auth import Auth
from goreprox.http.auth_service import AuthService
from goreprox.http.counters import BOUNDS_S, RequestCounters
from goreprox.http.exchange import Site
from goreprox.http.forward_auth import Guard
from goreprox.http.forwarding import Forwarding
from goreprox.http.observer import Inspector
from goreprox.net.access import Access
from goreprox.process.clock import clock
from goreprox.roles.publication import Publication
from goreprox.status.document import HttpStatus


class Doors(NamedTuple):
    """Who decides whether requests come in."""

    tokens: Auth | None
    """None: requests need no token."""
    guards: dict[str | None, Guard]
    """The authentication service of each service, and of all others (None)."""
    copied: frozenset[bytes]
    """Fields of their responses that targets are told, in lower case."""


def auth_of(config: AuthConfig) -> Doors:
    """Return who decides whether requests come in.

    Raises:
        StartError: a file cannot be used.
    """
    return Doors(tokens_of(config), guards_of(config), _copied(config))


def tokens_of(config: AuthConfig) -> Auth | None:
    """Return what knows the tokens; None: requests need none.

    Raises:
        StartError: their file cannot be used.
    """
    return None if config.file is None else Auth(config.file, config.header, basic=config.basic, clock=clock)


def guards_of(config: AuthConfig) -> dict[str | None, Guard]:
    """Return the authentication service of each service, and of all others (None).

    Raises:
        StartError: the file of --auth-ca cannot be used.
    """
    return {url.service: AuthService(url, _copied(config), ca=config.auth_ca) for url in config.urls}


def _copied(config: AuthConfig) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for name in config.copied)


def sites_of(
    clients: ClientConfig,
    access: Access,
    doors: Doors,
    publication: Publication,
    *,
    secured: Callable[[bytes], bytes | None],
    challenge: Callable[[bytes], bytes | None],
    inspector: Inspector,
) -> dict[Listener, Site]:
    """Return the site of each listener that HTTP clients may have, whose requests come in by these `doors`.

    `publication` knows the hosts that are published, `secured` returns where requests for a host are redirected, and
    `challenge` the responses to challenges of ACME, by their tokens. `inspector` sees requests if any are to be kept.
    """
    listeners = [listener for listener in clients.listeners if listener.scheme.is_routed]
    if doors.tokens is not None:
        plain = [listener.address for listener in listeners if listener.scheme is Scheme.HTTP]
        exposed = [str(address) for address in plain if not address.is_loopback]
        if exposed:
            logger.bind(event="plaintext_tokens").warning(
                "tokens arrive unencrypted on {}; listen with https://", ", ".join(exposed)
            )
    routes = Routes(clients.web_routes) if clients.web_routes else None
    closed = access.denies if access.has_rules else None
    return {
        listener: Site(
            listener.service,
            doors.tokens,
            Forwarding(clients.trusted_proxies, _proto(listener.scheme), clients.http.via),
            routes,
            publication.service_of_host if clients.publishes(listener) else None,
            closed,
            clients.http,
            secured if clients.http.redirect else None,
            guards=doors.guards,
            copied=doors.copied,
            challenge=challenge if clients.acme.enabled else None,
            logs=clients.http.access_log,
            inspector=None if clients.http.inspect is None else inspector,
        )
        for listener in listeners
    }


def _proto(scheme: Scheme) -> bytes:
    """Return how URLs of HTTP clients begin, which at `sni://` ports speak TLS with us."""
    return b"http" if scheme is Scheme.HTTP else b"https"


def requests_of(counters: RequestCounters) -> HttpStatus:
    """Return what the status shows of requests."""
    return {
        "requests": {service: counters.by_status(service) for service in counters.requests},
        "durations": {
            service: {"counts": list(each.counts), "sum_s": round(each.sum_s, 6)}
            for service, each in counters.durations.items()
        },
        "bounds_s": list(BOUNDS_S),
    }
