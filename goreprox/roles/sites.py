"""What HTTP listeners need to know to serve their clients: tokens, routes and access rules."""

from loguru import logger

from goreprox.config.addresses import Listener, Scheme
from goreprox.config.clients import ClientConfig
from goreprox.config.routes import Routes
from goreprox.http.auth import Auth
from goreprox.http.exchange import Site
from goreprox.http.forwarding import Forwarding
from goreprox.net.access import Access
from goreprox.process.clock import clock


def sites_of(clients: ClientConfig, access: Access) -> dict[Listener, Site]:
    """Return the site of each HTTP listener.

    Raises:
        StartError: the file of tokens cannot be used.
    """
    listeners = [listener for listener in clients.listeners if listener.scheme.is_http]
    auth = None
    if clients.tokens.file is not None:
        auth = Auth(clients.tokens.file, clients.tokens.header, clock=clock)
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
            Forwarding(clients.trusted_proxies, listener.scheme.value.encode(), clients.http.via),
            routes,
            closed,
            clients.http,
            logs=clients.http.access_log,
        )
        for listener in listeners
    }
