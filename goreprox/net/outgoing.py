"""Connections that we make by asyncio, for a question and its response: to targets that are checked, and the like."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence

from brokers import SocketAddress
from goreprox.errors import GoreproxError
from goreprox.net import sockets
from goreprox.net.certificates import reason

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class UnreachableError(Exception):
    """There is no connection; the message says why."""


async def connect(
    addresses: Sequence[SocketAddress],
    *,
    timeout_s: float,
    limit: int,
    header: bytes = b"",
    tls: Callable[[], ssl.SSLContext] | None = None,
    host: str | None = None,
    resets: bool = False,
) -> tuple[Connection, SocketAddress]:
    """Connect to the first address that accepts, and return it; each of them has an equal part of `timeout_s`.

    `header` is sent first, then the handshake with `host` follows, if `tls` returns a context for it. If the connection
    `resets`, that is how it ends when we close it. `limit` is that of `asyncio.StreamReader`.

    Raises:
        UnreachableError: none does.
        OSError: this process or machine has no descriptor left, so nothing is known of the other end.
    """
    why = "the name has no address"
    for each in addresses:
        try:
            async with asyncio.timeout(timeout_s / len(addresses)):
                return await _connect_to(each, limit, header, tls, host, resets=resets), each
        except TimeoutError:
            why = f"no response within {timeout_s:g} s"
        except GoreproxError as exc:
            why = str(exc)
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise
            why = f"TLS: {reason(exc)}" if isinstance(exc, ssl.SSLError) else os.strerror(exc.errno or errno.EIO)
    raise UnreachableError(why)


async def _connect_to(
    address: SocketAddress,
    limit: int,
    header: bytes,
    tls: Callable[[], ssl.SSLContext] | None,
    host: str | None,
    *,
    resets: bool,
) -> Connection:
    family, sockaddr = address
    loop = asyncio.get_running_loop()
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sockets.taken_from_spare(sock.fileno()):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if resets:
            sockets.prepare(sock)
        sock.setblocking(False)
        await loop.sock_connect(sock, sockaddr)
        if sock.getsockname() == sockaddr:  # connected to itself: nobody listens (dial)
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        await loop.sock_sendall(sock, header)
        context = None if tls is None else tls()
        return await asyncio.open_connection(sock=sock, ssl=context, server_hostname=host, limit=limit)
    except BaseException:
        sock.close()
        raise
