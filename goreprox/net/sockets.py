"""How TCP sockets are prepared, used and closed, on Linux and macOS."""

import contextlib
import errno
import fcntl
import itertools
import os
import resource
import select
import socket
import struct
import sys
import termios
from collections.abc import Collection, Iterable
from typing import Protocol

from goreprox.protocol.events import Buffer

KEEPALIVE_IDLE_S = 60
UNSENT_BYTES = 128 * 1024
"""How much the kernel takes beyond what is in flight (TCP_NOTSENT_LOWAT): so a reader that stopped takes little memory,
and bytes count as delivered only when they nearly are. Downloads are no slower for it."""
SEND_CHUNKS = 64
"""Buffers in one sendmsg; IOV_MAX is 1024."""
SPARE_DESCRIPTORS = 32
"""Never used for clients and targets: links that reconnect, names and files need some. Without one for a connection
that waits to be accepted, libzmq tries again without a pause, on a whole core."""
STRANGERS_DESCRIPTORS = 2048
"""For connections to a broker before their hello, or an eighth of all descriptors (`brokers.connections`)."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_FINISH_ON_CLOSE = struct.pack("ii", 0, 0)
_KEEPIDLE: int = getattr(socket, "TCP_KEEPIDLE", 0x10)
"""macOS calls it TCP_KEEPALIVE, netinet/tcp.h."""
_SO_NWRITE = 0x1024
"""macOS, sys/socket.h: bytes not yet acknowledged by the other side."""


class Socket(Protocol):
    """What bridges and HTTP use of the sockets of clients and targets, with TLS or without."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def getsockopt(self, level: int, option: int, /) -> int:
        """Return an option."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """Set an option."""

    def recv_into(self, view: memoryview, most: int, /) -> int:
        """Read at most `most` bytes; return how many, 0 at the end of file."""

    def send(self, data: Buffer, /) -> int:
        """Send bytes; return how many. Give the rest, or all after BlockingIOError, again unchanged."""

    def sendmsg(self, buffers: Iterable[Buffer], /) -> int:
        """Send bytes of several buffers, as `send` does."""

    def shutdown(self, how: int, /) -> None:
        """Half-close; after BlockingIOError call it again once the socket is writable."""

    def close(self) -> None:
        """Close the socket: with RST, unless `finish` was called."""


def prepare(sock: socket.socket) -> None:
    """Prepare a socket: non-blocking, without delay, with keepalive, and such that its death is a reset.

    SO_LINGER(1, 0) makes close, and the kernel at the death of the process, send RST: without it `kill -9`
    would look like a clean end to the other side. `finish` takes it back. A Unix socket has no RST, nor the rest.
    """
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _KEEPIDLE, KEEPALIVE_IDLE_S)


def adopt(sock: socket.socket) -> None:
    """Prepare a socket that a prepared one has accepted: it has inherited all but being non-blocking."""
    sock.setblocking(False)


def restored(descriptor: int | None) -> socket.socket:
    """Return a prepared socket that this process has inherited, or a closed one for None."""
    if descriptor is None:
        sock = socket.socket()
        sock.close()
        return sock
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock


def spare_descriptors(most: int) -> int:
    """Return how many of `most` descriptors are not for clients; those that strangers can take are among them."""
    return SPARE_DESCRIPTORS + min(STRANGERS_DESCRIPTORS, most // 8)


def taken_from_spare(number: int) -> bool:
    """Whether the descriptor `number` is one of the spare ones: the kernel gives the lowest that is free."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most != resource.RLIM_INFINITY and number >= most - spare_descriptors(most)


def keep_spare_descriptors(listening: socket.socket) -> None:
    """Check, before a client is accepted, that more than the spare descriptors are left.

    Raises:
        OSError: EMFILE, only the spare ones are left; or what the kernel says.
    """
    number = os.dup(listening.fileno())
    os.close(number)
    if taken_from_spare(number):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def finish_on_close(sock: Socket) -> None:
    """Let what is queued go out when the socket, or one that it accepts, is closed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_ON_CLOSE)


def finish(sock: Socket) -> None:
    """Close a socket after both ends of file; what is queued still goes out."""
    with contextlib.suppress(OSError):  # the other side may have reset it meanwhile
        finish_on_close(sock)
    sock.close()


def send_some(sock: Socket, chunks: Collection[Buffer]) -> tuple[int, bool]:
    """Send the first of `chunks`, at most `SEND_CHUNKS`; return how many bytes went, and whether that was all of them.

    Raises:
        BlockingIOError: the socket takes none now.
        OSError: the connection failed.
    """
    if len(chunks) == 1:
        (chunk,) = chunks
        sent = sock.send(chunk)
        return sent, sent == len(chunk)
    buffers = list(itertools.islice(chunks, SEND_CHUNKS))
    sent = sock.sendmsg(buffers)
    return sent, sent == sum(map(len, buffers))


def unsent_bytes(sock: Socket) -> int:
    """Return how many bytes the other side has not acknowledged yet (SIOCOUTQ, tcp(7); SO_NWRITE on macOS)."""
    if sys.platform == "darwin":
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return count


def errors_among(fds: list[int]) -> list[int]:
    """Return the sockets that have failed. The reset of a socket that is not read shows only here."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, 0)
    return [fd for fd, events in poll.poll(0) if events & (select.POLLERR | select.POLLNVAL)]
