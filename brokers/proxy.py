"""Connections to brokers that libzmq does not make: for probes, through proxies, and with TLS.

libzmq has a SOCKS5 client (ZMQ_SOCKS_PROXY), but a proxy that refuses makes it abort the process, it reports no reason,
and its handshake has no deadline.
"""

import socket
from typing import Protocol

from brokers.causes import Cause
from brokers.connect import connect
from brokers.errors import FabricError
from brokers.resolver import SocketAddress, resolve
from brokers.transport import Plain, Tls, Transport


class Proxy(Protocol):
    """What a link needs of a proxy."""

    @property
    def resolves(self) -> bool:
        """Whether it is given host names, and resolves them."""

    async def open(self, address: SocketAddress) -> socket.socket:
        """Return a connection to an address through the proxy, within its deadlines.

        Raises:
            OpenError: there is none.
        """


class OpenError(FabricError):
    """There is no connection to a broker; the text says which step has failed, and why."""

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(text)
        self.cause = cause


async def addresses(host: str, port: int, proxy: Proxy | None) -> list[SocketAddress]:
    """Return the addresses of a broker: those of its name, or the name itself if the proxy resolves it.

    Raises:
        OSError: it has no address, or no name server responds.
        UnicodeError: it is not a valid host name.
    """
    if proxy is not None and proxy.resolves:
        return [(socket.AF_UNSPEC, (host, port))]
    return await resolve(host, port)


async def open_connection(
    address: SocketAddress, proxy: Proxy | None, tls: Tls | None, *, timeout_s: float
) -> Transport:
    """Return a connection to a broker, through a proxy and with TLS where there are any, with deadlines of their own.

    Raises:
        OSError: it cannot be reached; TimeoutError: no response within `timeout_s`.
        OpenError: the proxy gives us none, or there is no TLS.
    """
    sock = await (connect([address], timeout_s=timeout_s) if proxy is None else proxy.open(address))
    return Plain(sock) if tls is None else await tls.wrap(sock)
