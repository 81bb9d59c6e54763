"""Examines a target: connects to it as a stream would, and may ask it something.

A target may be hostile: the time is bounded, and so is what is read of it.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from brokers import SocketAddress
from goreprox.config.addresses import Address, ProxyVersion, Target, TargetAddress, UnixPath
from goreprox.errors import GoreproxError
from goreprox.net.certificates import reason
from goreprox.net.proxy_protocol import write
from goreprox.net.sockets import taken_from_spare

MAX_RESPONSE: Final = 64 * 1024
"""Bytes that are read of a response, interim ones included. A stream's reader holds at most three times as much."""
_READ: Final = 16 * 1024
_WELL: Final = range(200, 400)
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class UnwellError(Exception):
    """A target is not well; the message says why."""


async def examine(
    target: Target,
    addresses: Sequence[SocketAddress],
    *,
    timeout_s: float,
    context: Callable[[], ssl.SSLContext],
    path: str | None = None,
    proxy_protocol: ProxyVersion | None = None,
) -> TargetAddress:
    """Connect to the first of the `addresses` of a target that accepts; return it.

    With a `path` request it by HTTP, and expect a status from 200 to 399. With `proxy_protocol` the target gets a
    header that says that this is no client's connection. `context` returns that of TLS, for a target that speaks it;
    all together may take `timeout_s`.

    Raises:
        UnwellError: the target is not well.
        OSError: this process or machine has no descriptor left, so nothing is known of the target.
    """
    header = b"" if proxy_protocol is None else write(proxy_protocol, None, None)
    try:
        async with asyncio.timeout(timeout_s):
            (reader, writer), address = await _connect(target, addresses, timeout_s, context, header)
            try:
                if path is not None:
                    await _request(reader, writer, target.address, path)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise UnwellError(f"no response within {timeout_s:g} s") from None
    return address


async def _connect(
    target: Target,
    addresses: Sequence[SocketAddress],
    timeout_s: float,
    context: Callable[[], ssl.SSLContext],
    header: bytes,
) -> tuple[_Connection, TargetAddress]:
    why = "the name has no address"
    for each in addresses:
        try:
            async with asyncio.timeout(timeout_s / len(addresses)):
                return await _connect_to(each, target, context, header), _reached(target.address, each)
        except TimeoutError:
            why = f"no response within {timeout_s:g} s"
        except GoreproxError as exc:
            why = str(exc)
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise
            why = f"TLS: {reason(exc)}" if isinstance(exc, ssl.SSLError) else os.strerror(exc.errno or errno.EIO)
    raise UnwellError(why)


def _reached(target: TargetAddress, address: SocketAddress) -> TargetAddress:
    return target if isinstance(target, UnixPath) else Address(str(address[1][0]), target.port)


async def _connect_to(
    address: SocketAddress, target: Target, context: Callable[[], ssl.SSLContext], header: bytes
) -> _Connection:
    family, sockaddr = address
    loop = asyncio.get_running_loop()
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if taken_from_spare(sock.fileno()):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock.setblocking(False)
        await loop.sock_connect(sock, sockaddr)
        if sock.getsockname() == sockaddr:  # connected to itself: nobody listens (dial)
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        await loop.sock_sendall(sock, header)
        tls, host = None, None
        if target.tls and isinstance(target.address, Address):
            tls, host = context(), target.address.host
        return await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=host, limit=_READ)
    except BaseException:
        sock.close()
        raise


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: TargetAddress, path: str
) -> None:
    """Request a path; of the response only the header section is read.

    Raises:
        UnwellError: there is no response, or one that says that the target is not well.
    """
    from goreprox.http.messages import Malformed, Response  # noqa: PLC0415 -- other providers need no HTTP
    from goreprox.http.reply import Reply  # noqa: PLC0415

    host = "localhost" if isinstance(address, UnixPath) else address
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: goreprox\r\nConnection: close\r\n\r\n".encode())
    reply, left = Reply(to_head=False, may_switch=False), MAX_RESPONSE
    try:
        while not (isinstance(event := reply.next_event(), Response) and not event.interim):
            if event is None:
                data = await reader.read(min(_READ, left))
                left -= len(data)
                if not left:
                    raise UnwellError(f"no HTTP response: {MAX_RESPONSE:,} bytes without the end of its header section")
                reply.receive(data)
                if not data:
                    reply.receive_eof()
    except Malformed as exc:
        raise UnwellError(f"no HTTP response: {exc}") from exc
    except OSError as exc:
        raise UnwellError(f"no HTTP response: {os.strerror(exc.errno or errno.EIO)}") from exc
    if event.status not in _WELL:
        raise UnwellError(f"status {event.status}")
