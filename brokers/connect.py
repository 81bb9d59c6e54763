"""Connections to the first of several addresses that accepts one (Happy Eyeballs, RFC 8305)."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Sequence
from typing import Final

from brokers.resolver import SocketAddress

NEXT_ADDRESS_S: Final = 0.25
"""How long an address may be silent until the next one is tried, too (RFC 8305, 8: the connection attempt delay)."""


def interleaved(addresses: Sequence[SocketAddress]) -> list[SocketAddress]:
    """Return addresses in their order, but each of another family than the one before, as long as there are two.

    A family that does not work here costs one attempt, then, however many addresses of it come first (RFC 8305, 4).
    """
    of_first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    pairs = itertools.zip_longest(of_first, others)
    return [each for pair in pairs for each in pair if each is not None]


async def connect(addresses: Sequence[SocketAddress], *, timeout_s: float) -> socket.socket:
    """Return a connection, which does not block, to one of these addresses; there is at least one.

    The next address is tried as soon as one has failed, or has been silent for `NEXT_ADDRESS_S`; the first that accepts
    wins.

    Raises:
        OSError: why the last of them has failed; TimeoutError: `timeout_s` are over.
    """
    attempts: set[asyncio.Task[socket.socket]] = set()
    reasons: list[OSError] = []
    try:
        async with asyncio.timeout(timeout_s):
            rest = interleaved(addresses)
            while rest or attempts:
                if rest:
                    attempts.add(asyncio.create_task(_connect(rest.pop(0)), name="connect"))
                wait_s = NEXT_ADDRESS_S if rest else None
                done, _ = await asyncio.wait(attempts, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    attempts.remove(attempt)
                    try:
                        return attempt.result()
                    except OSError as exc:
                        reasons.append(exc)
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_discard)
            attempt.cancel()
    raise reasons[-1]


async def _connect(address: SocketAddress) -> socket.socket:
    family, sockaddr = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _discard(attempt: "asyncio.Task[socket.socket]") -> None:
    """Close the connection of an attempt that came too late."""
    with contextlib.suppress(OSError, asyncio.CancelledError):
        attempt.result().close()
