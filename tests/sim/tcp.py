"""Simulated TCP sockets: on our side what the real code calls, on the far side what a `Far` reads and writes.

As on Linux: bytes that our side writes wait in a send queue, which drains as fast as the network carries them and the
far side has room; FIN comes after it, RST discards it; `SO_LINGER(1, 0)` makes close a reset; bytes that the far side
sent before it reset can still be read. Every byte that our side writes is at once compared with what the other far
side wrote.
"""

import asyncio
import errno
import select as real_select
import socket as real_socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tests.sim.far import Far, text
from tests.sim.world import Epoll, Process, Violation, World


class SimSocket:
    """Our side, with the methods of Python's socket that are used. Bytes are counted, not kept."""

    def __init__(self, net: "Sockets", process: Process) -> None:
        self.net = net
        self.process = process
        self.fd = process.allocate(self)
        self.family = real_socket.AF_INET
        self.far: Far | None = None
        self.listening = False
        self.dialed = False
        self.address = self.peer = ("0.0.0.0", 0)
        self.backlog: deque[tuple[SimSocket, tuple[str, int]]] = deque()
        self.connect_code: int | None = None
        self._linger = False
        self.taken = 0
        """Bytes that we have read."""
        self.out = 0
        """Bytes that we wrote; those from `out_arrived` on are in the send queue."""
        self.out_arrived = 0
        """Bytes that reached the far side's buffer."""
        self._drained_at = 0.0
        """Until when the network has carried what it could."""
        self._drain_timer = False
        self.our_fin = self.our_rst = self.closed = False

    # The far side and the kernel between.

    @property
    def in_room(self) -> int:
        assert self.far is not None
        return 0 if self.closed else self.far.buffer - (self.far.written - self.taken)

    @property
    def queued(self) -> int:
        return self.out - self.out_arrived

    def arrived(self, _: int) -> None:
        """Wake our side: bytes, FIN or RST have arrived."""
        if not self.closed:
            self.process.poke(self.fd)

    @property
    def transit_s(self) -> float:
        """How long the network needs for what it can carry now: as much of the queue as the far side has room for."""
        assert self.far is not None
        count = min(self.queued, self.far.buffer - (self.out_arrived - self.far.read))
        return count / self.net.rate - (self.net.world.now - self._drained_at) if count > 0 else 0.0

    def drain(self) -> None:
        """Move into the far side's buffer what the network has carried since the last time."""
        far, now = self.far, self.net.world.now
        assert far is not None
        queued, room = self.out - self.out_arrived, far.buffer - (self.out_arrived - far.read)
        carried = int((now - self._drained_at) * self.net.rate + 0.5)
        count = min(queued, room, carried)
        if count > 0:
            self.out_arrived += count
            if not self.closed:
                self.process.poke(self.fd)
        if count == carried:
            self._drained_at += count / self.net.rate
        else:
            self._drained_at = now

    def drain_later(self) -> None:
        """Drain as soon as the network has carried what it can, for far sides that read much later."""
        if not self._drain_timer:
            self._drain_timer = True
            self.net.world.after(self.transit_s, self._drain_on_time)

    def _drain_on_time(self) -> None:
        self._drain_timer = False
        self.drain()
        if self.transit_s > 0:
            self.drain_later()

    @property
    def failed(self) -> bool:
        return self.far is not None and self.far.did_reset

    @property
    def readable(self) -> bool:
        if self.listening:
            return bool(self.backlog)
        far = self.far
        return far is not None and (far.written > self.taken or far.fin_sent or far.did_reset)

    @property
    def writable(self) -> bool:
        far = self.far
        if far is None:
            return self.connect_code is not None
        return self.queued < far.buffer or far.did_reset

    # What the real code calls.

    def fileno(self) -> int:
        return -1 if self.closed else self.fd

    def detach(self) -> int:
        """Leave the descriptor to the code that takes over."""
        return self.fd

    def setblocking(self, _: bool) -> None:
        """Nothing blocks here."""

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        if (level, option) == (real_socket.SOL_SOCKET, real_socket.SO_LINGER):
            assert isinstance(value, bytes)
            self._linger = bool(struct.unpack("ii", value)[0])

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (real_socket.SOL_SOCKET, real_socket.SO_ERROR)
        return self.connect_code or 0

    def getsockname(self) -> tuple[str, int]:
        return self.address

    def getpeername(self) -> tuple[str, int]:
        return self.peer

    def bind(self, address: tuple[str, int]) -> None:
        self.address = address

    def listen(self, _: int) -> None:
        self.listening = True

    def accept(self) -> "tuple[SimSocket, tuple[str, int]]":
        if not self.backlog:
            raise BlockingIOError
        sock, address = self.backlog.popleft()
        sock._linger = self._linger  # as much as Linux passes on to accepted sockets
        return sock, address

    def connect_ex(self, address: tuple[str, int]) -> int:
        if self.dialed:
            return errno.EALREADY
        self.dialed = True
        self.peer = address
        self.net.dial(self, address)
        return errno.EINPROGRESS

    def recv_into(self, view: memoryview, count: int) -> int:
        far = self.far
        assert far is not None and not self.closed
        count = min(count, far.written - self.taken)
        if count > 0:
            view[:count] = text(far.program.seed, self.taken, count)
            self.taken += count
            far.write_later()
            return count
        if far.did_reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset by the far side")
        if far.fin_sent:
            return 0
        raise BlockingIOError

    def send(self, data: bytes | memoryview) -> int:
        return self.sendmsg([data])

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        far = self.far
        assert far is not None and not self.closed and not self.our_fin
        if far.did_reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset by the far side")
        self.drain()
        room = far.buffer - self.queued
        if room <= 0:
            raise BlockingIOError
        before = self.out
        for buffer in buffers:
            part = buffer[: before + room - self.out]
            self._verify(far, part)
            self.out += len(part)
        far.read_later()
        return self.out - before

    def _verify(self, far: Far, part: bytes | memoryview) -> None:
        other = far.other
        if other is None or self.out + len(part) > other.written:
            raise Violation(f"{far.who} gets bytes from {self.out} on that nobody wrote")
        if part != text(other.program.seed, self.out, len(part)):
            raise Violation(f"{far.who} gets other bytes at {self.out} than {other.who} wrote")

    def shutdown(self, how: int) -> None:
        assert how == real_socket.SHUT_WR
        assert self.far is not None
        if self.far.did_reset:
            raise OSError(errno.ENOTCONN, "reset by the far side")
        self.our_fin = True
        self._end_later()

    def _end_later(self) -> None:
        """Let the far side read an end, after what is queued before it."""
        assert self.far is not None
        self.drain()
        self.far.read_later()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.process.release(self.fd)
        for sock, _ in self.backlog:
            sock._linger = True  # never accepted, so the kernel resets it
            sock.close()
        if self.far is None:
            return
        if not self._linger and self.far.written == self.taken:
            self.our_fin = True
        else:
            self.our_rst = True
            self.drain()
            self.out = self.out_arrived
            if not self.far.over:
                self.far.on_reset(self.far)
        self._end_later()


class Sockets:
    """Stands for the modules `socket`, `fcntl`, `select` and `os` in the processes of one world."""

    POLLERR = real_select.POLLERR
    POLLNVAL = real_select.POLLNVAL

    def __init__(self, world: World, *, rate: float) -> None:
        self.world = world
        self.rate = rate
        """How many bytes a second leave each send queue."""
        self.dial: Callable[[SimSocket, tuple[str, int]], None] = lambda *_: None

    def __getattr__(self, name: str) -> Any:
        """Return constants of the real module."""
        return getattr(real_socket, name)

    def _process(self) -> Process:
        assert self.world.running is not None
        return self.world.running

    def socket(self, *_: object) -> SimSocket:
        return SimSocket(self, self._process())

    def getaddrinfo(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        return [(real_socket.AF_INET, real_socket.SOCK_STREAM, 6, "", (host, port))]

    async def resolve(self, host: str, port: int) -> list[tuple[int, Any]]:
        await asyncio.sleep(0.002)
        return [(real_socket.AF_INET, (host, port))]

    def ioctl(self, sock: SimSocket, request: int, _: bytes) -> bytes:
        assert request == termios.TIOCOUTQ
        sock.drain()
        return struct.pack("i", sock.queued)

    def dup(self, _: int) -> int:
        return 0

    def close(self, _: int) -> None:
        """Do nothing: `dup` opens nothing."""

    def restored(self, fd: int | None) -> SimSocket:
        """Return the socket of a descriptor, or a closed one."""
        if fd is None:
            sock = self.socket()
            sock.close()
            return sock
        found = self._process().files[fd]
        assert isinstance(found, SimSocket)
        return found

    def epoll(self) -> Epoll:
        return Epoll(self._process())

    def poll(self) -> "_Poll":
        return _Poll(self._process())


class _Poll:
    """Finds failed sockets, as select.poll does."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._fds: list[int] = []

    def register(self, fd: int, _: int) -> None:
        self._fds.append(fd)

    def poll(self, _: int) -> list[tuple[int, int]]:
        files = self._process.files
        return [
            (fd, real_select.POLLERR if fd in files else real_select.POLLNVAL)
            for fd in self._fds
            if fd not in files or files[fd].failed
        ]
