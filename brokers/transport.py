"""Connections between peers and brokers that libzmq has not made: plain ones, and what puts TLS on them."""

import asyncio
import socket
from typing import Protocol

from brokers.carrier import Buffer


class Transport(Protocol):
    """A connection whose bytes are copied to or from a socket of libzmq."""

    @property
    def socket(self) -> socket.socket:
        """The TCP connection, for the kernel to be asked about it."""

    async def receive_into(self, view: memoryview) -> int:
        """Read at least one byte; return how many, 0 at the end.

        Raises:
            OSError: the connection failed.
        """

    async def send_all(self, data: Buffer) -> None:
        """Send all of these bytes.

        Raises:
            OSError: the connection failed.
        """

    def close(self) -> None:
        """Close it; nobody may be reading or sending. Idempotent."""


class Tls(Protocol):
    """What a link needs to speak TLS with its broker."""

    async def wrap(self, sock: socket.socket) -> Transport:
        """Take over a connection, and shake hands within a deadline.

        Raises:
            OpenError: the handshake failed, or the broker's certificate is not accepted; the connection is closed.
        """


class Plain:
    """A connection as it is."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a socket that does not block."""
        self.socket = sock
        self._loop = asyncio.get_running_loop()

    async def receive_into(self, view: memoryview) -> int:
        """Read at least one byte; return how many, 0 at the end."""
        return await self._loop.sock_recv_into(self.socket, view)

    async def send_all(self, data: Buffer) -> None:
        """Send all of these bytes."""
        await self._loop.sock_sendall(self.socket, data)

    def close(self) -> None:
        """Close it."""
        self.socket.close()
