"""Sockets on loopback: ports, and ends of every kind."""

import asyncio
import contextlib
import os
import resource
import socket
import struct
from collections.abc import Iterator

from tests.support.waiting import DEADLINE_S

HOST = "127.0.0.1"


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """Hold a port that refuses connections, until somebody who shares it listens."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


def abort(writer: asyncio.StreamWriter) -> None:
    """Let go of a socket at once, sent or not, closed or not."""
    if writer.get_extra_info("socket").fileno() >= 0:  # aborting a closed one raises
        writer.transport.abort()


def reset_now(writer: asyncio.StreamWriter) -> None:
    """Send RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def stop_accepting(server: asyncio.Server) -> None:
    """Close a server; what it has accepted by now has got to its handler, which owns it, on return."""
    server.close()
    for _ in range(5):  # turns of the loop, and some to spare: the transport, the protocol, the handler's first step
        await asyncio.sleep(0)


@contextlib.contextmanager
def without_descriptors() -> Iterator[list[int]]:
    """Have no descriptor left but those yielded, for whoever closes them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield taken
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def read_to_end(sock: socket.socket, *, until: bytes | None = None) -> bytes:
    """Return what a socket receives until its other end is closed, or until it has received `until`."""
    sock.setblocking(False)
    loop, received = asyncio.get_running_loop(), b""
    async with asyncio.timeout(DEADLINE_S):
        while (until is None or until not in received) and (data := await loop.sock_recv(sock, 1 << 16)):
            received += data
    return received
