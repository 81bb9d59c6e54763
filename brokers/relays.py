"""Carries connections of peers that were accepted elsewhere, such as those with TLS, to the ROUTER of a port.

Such a ROUTER listens on loopback for them alone: a connection of another process of this machine is ended at once. Each
of ours comes from an address of its own in 127.0.0.0/8 (Linux), so that the log can name the peer's where libzmq tells
the address alone.

One takes four descriptors, and, beside what its transport takes, two buffers of `CHUNK_BYTES` and the kernel's.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from typing import Final

from brokers.carrier import LinkCondition
from brokers.peers import Role
from brokers.relay import LOOPBACK, WINDOW_BYTES, Copying
from brokers.transport import Transport

CHUNK_BYTES: Final = 16 * 1024
"""A record of TLS."""
DESCRIPTORS: Final = 4
"""Of a connection: two of ours, libzmq's, and its duplicate."""
PART_S: Final = 10.0
"""For what libzmq has sent before it closed a connection."""


class Relayed:
    """One connection."""

    def __init__(self, address: str, copying: Copying, task: "asyncio.Task[None]") -> None:
        """Have the `address` of the peer."""
        self.address = address
        self._copying = copying
        self._task = task

    def condition(self, local: LinkCondition) -> LinkCondition | None:
        """Return the condition of the way to the peer, where `local` is that of libzmq's connection."""
        return self._copying.condition(local)

    def end(self) -> None:
        """End it now."""
        self._task.cancel()

    def part(self) -> None:
        """End it once all is sent, or in `PART_S`."""
        if not self._task.done():
            asyncio.get_running_loop().call_later(PART_S, self._task.cancel)


class Relays:
    """The connections that are carried to the ports of a broker."""

    def __init__(self, port_of: Callable[[Role], int]) -> None:
        """Connect to the port on loopback that `port_of` returns for a role."""
        self._port_of = port_of
        self._relayed: dict[tuple[str, int], Relayed] = {}
        """By the address and port that they come from."""
        self._tasks: set[asyncio.Task[None]] = set()

    def carry(self, role: Role, far: Transport, address: str) -> None:
        """Take over a connection of the peer of `role` at `address`."""
        try:
            near = _bound()
        except OSError:  # no descriptors
            far.close()
            return
        copying = Copying(near, far, chunk_bytes=CHUNK_BYTES)
        source: tuple[str, int] = near.getsockname()
        task = asyncio.get_running_loop().create_task(self._carry(role, copying, near), name="carry a link")
        self._relayed[source] = Relayed(address, copying, task)
        self._tasks.add(task)

        def ended(_: "asyncio.Task[None]") -> None:
            """Let go of it, even if it was ended before it began."""
            self._tasks.discard(task)
            self._relayed.pop(source, None)
            copying.close()

        task.add_done_callback(ended)

    async def _carry(self, role: Role, copying: Copying, near: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the port is being opened again: the peer connects again, too
            await asyncio.get_running_loop().sock_connect(near, (LOOPBACK, self._port_of(role)))
            await copying.run()

    def of(self, source: tuple[str, int]) -> Relayed | None:
        """Return the connection that comes from this address and port; None: it is somebody else's."""
        return self._relayed.get(source)

    def address_of(self, host: str) -> str:
        """Return the address of the peer whose connection comes from `host`: that itself, unless it is one of ours."""
        return next((each.address for (source, _), each in self._relayed.items() if source == host), host)

    async def finish(self, linger_s: float) -> None:
        """Wait until all is sent that libzmq has sent before it closed its connections; then end them."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=linger_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _bound() -> socket.socket:
    """Return a socket that is bound to an address of its own, or where there are no such ones, to a port of its own.

    Raises:
        OSError: there are no descriptors, or no ports.
    """
    sock = socket.socket()
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
        own = secrets.randbits(22) + 1
        with contextlib.suppress(OSError):
            sock.bind((f"127.{64 + (own >> 16)}.{own >> 8 & 255}.{own & 255}", 0))
            return sock
        sock.bind((LOOPBACK, 0))
    except BaseException:
        sock.close()
        raise
    return sock
