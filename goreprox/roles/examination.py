"""Examines a target: connects to it as a stream would, and may ask it something.

A target may be hostile: the time is bounded, and so is what is read of it.
"""

import asyncio
import errno
import os
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from brokers import SocketAddress
from goreprox.config.addresses import Address, ProxyVersion, Target, TargetAddress, UnixPath
from goreprox.net.outgoing import UnreachableError, connect
from goreprox.net.proxy_protocol import write

MAX_RESPONSE: Final = 64 * 1024
"""Bytes that are read of a response, interim ones included. A stream's reader holds at most three times as much."""
_READ: Final = 16 * 1024
_WELL: Final = range(200, 400)


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
            tls, host = None, None
            if target.tls and isinstance(target.address, Address):
                tls, host = context, target.address.host
            (reader, writer), at = await connect(
                addresses, timeout_s=timeout_s, limit=_READ, header=header, tls=tls, host=host
            )
            try:
                if path is not None:
                    await _request(reader, writer, target.address, path)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise UnwellError(f"no response within {timeout_s:g} s") from None
    except UnreachableError as exc:
        raise UnwellError(str(exc)) from exc
    return target.address if isinstance(target.address, UnixPath) else Address(str(at[1][0]), target.address.port)


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
