"""Where clients find which service, for log lines, for the peer list and for the status."""

from collections.abc import Iterable, Iterator

from goreprox.config.addresses import Listener, Scheme
from goreprox.config.clients import ClientConfig
from goreprox.endpoint import Endpoint
from goreprox.process.log import listing
from goreprox.tunnel.attributes import Port


def entrances(clients: ClientConfig, found: Iterable[tuple[Listener, int]]) -> str:
    """Describe, for log lines, which services clients find at which ports."""
    places = (
        f"{'' if listener.scheme is Scheme.TCP else f'{listener.scheme.value}://'}:{port} "
        f"({listing(clients.services_of(listener)) or 'published names'})"
        for listener, port in found
        if not listener.is_published
    )
    return f"clients on {', '.join(dict.fromkeys(places))}"


def announced(clients: ClientConfig, found: Iterable[tuple[Listener, Endpoint]]) -> Iterator[Port]:
    """Yield what the peer list shows: a listener with several addresses once, one with routes by their hosts."""
    for listener, address in dict(found).items():
        if listener.is_published:
            continue
        scheme, host, port = listener.scheme, listener.address.host or "", address.port
        routes = clients.routes_of(listener)
        if not routes:
            yield from (Port(service, scheme.value, host, port) for service in clients.services_of(listener))
            continue
        for route in routes:
            yield Port(route.service, scheme.value, host if "*" in route.host else route.host, port)


def by_service(clients: ClientConfig, found: Iterable[tuple[Listener, Endpoint]]) -> dict[str, list[str]]:
    """Return the addresses of each service."""
    services: dict[str, list[str]] = {}
    for listener, address in found:
        for service in clients.services_of(listener):
            services.setdefault(service, []).append(str(address))
    return services
