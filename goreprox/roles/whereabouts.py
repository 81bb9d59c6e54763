"""What an edge opens for publishing, and where clients find what is published there."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from goreprox.config.addresses import Address, Listener, Scheme
from goreprox.config.clients import ClientConfig
from goreprox.config.published import PublishedName
from goreprox.config.roles import EdgeConfig, ServerConfig
from goreprox.config.routes import Routes
from goreprox.errors import GoreproxError
from goreprox.keys.reach import own_host
from goreprox.keys.state import StateDir
from goreprox.net.listeners import Listeners
from goreprox.roles.assignment import Assignment
from goreprox.roles.publication import Publication
from goreprox.roles.publish_rules import Opening

_USUAL_PORTS = {Scheme.HTTP: 80, Scheme.HTTPS: 443}


def opening_of(clients: ClientConfig) -> Opening:
    """Return what an edge opens for publishing."""
    return Opening(
        Routes(clients.routes) if clients.routes else None,
        any(map(clients.publishes, clients.listeners)),
        clients.publish_ports,
        tuple(listener.address for listener in clients.listeners),
    )


def publication_of(config: EdgeConfig | ServerConfig, listeners: Listeners, assignment: Assignment) -> Publication:
    """Return the publication of an edge with these listeners and providers."""
    publication = Publication(
        opening_of(config.clients),
        trusted=isinstance(config, ServerConfig) or config.security is None,
        grace_s=config.connections.grace_s,
        listen=listeners.publish,
        at=Whereabouts(_public_host(config), lambda: listeners.found).of,
    )
    assignment.changed = publication.update
    return publication


def _public_host(config: EdgeConfig | ServerConfig) -> str:
    """Return the host by which others reach this machine: `--address`, now or at an earlier start, or its name."""
    addresses = config.peers.addresses if isinstance(config, ServerConfig) else config.addresses
    state_dir = config.state_dir if isinstance(config, ServerConfig) else None
    if not addresses and state_dir is not None and state_dir.exists():
        with suppress(GoreproxError):  # the broker says what is wrong with the directory
            addresses = StateDir(state_dir).reach().given
    return next((address.host for address in addresses if address.host is not None), None) or own_host()


class Whereabouts:
    """Knows the URLs of published names."""

    def __init__(self, host: str, listeners: Callable[[], Sequence[tuple[Listener, int]]]) -> None:
        """Ports are at `host`; `listeners` returns the present ones, each with its port."""
        self._host = host
        self._listeners = listeners

    def of(self, name: PublishedName, port: int | None) -> str:
        """Return a URL of a host, with TLS if there is a port for it, or the address of a port; empty if there is none.

        Usual ports are left out.
        """
        if port is not None:
            return str(Address(self._host, port))
        web = [(listener.scheme, port) for listener, port in self._listeners() if listener.scheme.is_http]
        for scheme, number in sorted(web, key=lambda each: each[0] is not Scheme.HTTPS):
            return f"{scheme.value}://{name.host}{'' if number == _USUAL_PORTS[scheme] else f':{number}'}"
        return ""
