"""What HTTP listeners need to know to serve their clients (tokens, routes and access rules), and what they count."""

from collections.abc import Callable

from loguru import logger

from goreprox.config.addresses import Listener, Scheme
from goreprox.config.auth import AuthConfig
from goreprox.config.clients import ClientConfig
from goreprox.config.routes import Routes
from goreprox.http.auth import Auth
from goreprox.http.counters import BOUNDS_S, RequestCounters
from goreprox.http.exchange import Site
from goreprox.http.forwarding import Forwarding
from goreprox.net.access import Access
from goreprox.process.clock import clock
from goreprox.roles.publication import Publication
from goreprox.status.document import HttpStatus


def auth_of(config: AuthConfig) -> Auth | None:
    """Return what knows the tokens; None: requests need none.

    Raises:
        StartError: their file cannot be used.
    """
    return None if config.file is None else Auth(config.file, config.header, basic=config.basic, clock=clock)


def sites_of(
    clients: ClientConfig,
    access: Access,
    auth: Auth | None,
    publication: Publication,
    secured: Callable[[bytes], bytes | None],
) -> dict[Listener, Site]:
    """Return the site of each listener that HTTP clients may have, whose requests need a token if there is `auth`.

    `publication` knows the hosts that are published, and `secured` returns where requests for a host are redirected.
    """
    listeners = [listener for listener in clients.listeners if listener.scheme.is_routed]
    if auth is not None:
        plain = [listener.address for listener in listeners if listener.scheme is Scheme.HTTP]
        exposed = [str(address) for address in plain if not address.is_loopback]
        if exposed:
            logger.bind(event="plaintext_tokens").warning(
                "tokens arrive unencrypted on {}; listen with https://", ", ".join(exposed)
            )
    routes = Routes(clients.routes) if clients.routes else None
    closed = access.denies if access.has_rules else None
    return {
        listener: Site(
            listener.service,
            auth,
            Forwarding(clients.trusted_proxies, _proto(listener.scheme), clients.http.via),
            routes,
            publication.service_of_host if clients.publishes(listener) else None,
            closed,
            clients.http,
            secured if clients.http.redirect else None,
            logs=clients.http.access_log,
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
