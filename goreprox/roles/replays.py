"""Lets an edge serve a request that the inspector sends once more, like that of any client."""

import socket
from typing import Protocol

from goreprox.endpoint import Endpoint
from goreprox.errors import ControlError
from goreprox.http.client import ClientConnection
from goreprox.http.clients import ClientConnections
from goreprox.http.exchange import Origin
from goreprox.net.identity import Identity
from goreprox.roles.admission import Admission
from goreprox.tunnel.driver import Driver


class Parts(Protocol):
    """What it needs of an edge."""

    driver: Driver
    http_clients: ClientConnections
    admission: Admission

    @property
    def is_full(self) -> bool:
        """Whether the limit of connections is reached."""


def connect(edge: Parts, sock: socket.socket, origin: Origin) -> None:
    """Serve a client at the other end of `sock`, who comes from there; it counts like any other.

    Raises:
        ControlError: there is no room, or the edge is about to end.
    """
    if edge.driver.draining or edge.http_clients.paused:
        raise ControlError("it cannot be sent once more: this process is draining or being upgraded")
    if edge.is_full:
        raise ControlError("it cannot be sent once more: the limit of connections is reached")
    destination = Endpoint.parse(origin.authority.decode())
    assert destination is not None
    client = Endpoint(origin.address, 0)
    edge.admission.count(client)
    certificate = Identity(None, origin.certificate) if origin.certificate else None
    ClientConnection(edge.http_clients, sock, client, destination, origin.site, certificate=certificate)
