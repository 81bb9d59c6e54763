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
from goreprox.roles.admission import Admission
from goreprox.roles.assignment import Assignment
from goreprox.roles.publication import Publication
from goreprox.roles.publish_rules import Opening

_USUAL_PORTS = {"http": 80, "https": 443, "tls": 443}
_URLS = {Scheme.HTTPS: "https", Scheme.HTTP: "http", Scheme.SNI: "https"}
"""How those of published HTTP hosts begin, the best first."""


def opening_of(clients: ClientConfig, covers: Callable[[str], bool]) -> Opening:
    """Return what an edge opens for publishing, where an option `covers` some hosts by a certificate (Admission)."""
    return Opening(
        Routes(clients.routes) if clients.routes else None,
        any(map(clients.publishes, clients.listeners)),
        any(listener.scheme is Scheme.SNI for listener in clients.listeners),
        covers,
        clients.publish_ports,
        tuple(listener.address for listener in clients.listeners),
    )


def publication_of(config: EdgeConfig | ServerConfig, admission: Admission, assignment: Assignment) -> Publication:
    """Return the publication of an edge with these clients and providers."""
    listeners = admission.listeners
    publication = Publication(
        opening_of(config.clients, admission.covers),
        trusted=isinstance(config, ServerConfig) or config.security is None,
        grace_s=config.connections.grace_s,
        listen=listeners.publish,
        at=Whereabouts(_public_host(config), lambda: listeners.found).of,
    )
    assignment.changed = publication.update
    admission.published = publication.service_of_tls
    return publication


def _public_host(config: EdgeConfig | ServerConfig) -> str:
    """Return the host by which others reach this machine: `--address`, now or at an earlier start, or its name."""
    addresses = config.peers.addresses if isinstance(config, ServerConfig) else config.addresses
    state_dir = config.keys_dir if isinstance(config, ServerConfig) else None
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
        urls = {Scheme.SNI: "tls"} if name.tls else _URLS
        found = {listener.scheme: port for listener, port in reversed(self._listeners())}
        for scheme, url in urls.items():
            if scheme in found:
                number = found[scheme]
                return f"{url}://{name.host}{'' if number == _USUAL_PORTS[url] else f':{number}'}"
        return ""
