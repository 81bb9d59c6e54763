"""Simulated TCP sockets: on our side what the real code calls, on the far side a program from a plan.

As on Linux: bytes that our side writes wait in a send queue, which drains as fast as the network carries them and the
far side has room; FIN comes after it, RST discards it; `SO_LINGER(1, 0)` makes close a reset; bytes that the far side
sent before it reset can still be read. Every byte that our side writes is at once compared with what the other far
side wrote.
"""

import asyncio
import errno
import random
import select as real_select
import socket as real_socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.sim.world import Process, Selector, Violation, World

KIB = 1024
PROMPT_S = 0.01
"""A far side that reads sooner drains the send queue by its reads, which saves an event for each write."""
_TEXT = random.Random(0).randbytes(1 << 20)
_TEXT = _TEXT + _TEXT


def text(seed: int, start: int, count: int) -> bytes:
    """Return bytes `start` to `start + count` (at most 1 MiB later) of the endless text of a seed."""
    offset = (seed * 104_729 + start) % (1 << 20)
    return _TEXT[offset : offset + count]


@dataclass(slots=True)
class Program:
    """What a far side does with its connection; times in seconds, sizes in bytes."""

    seed: int
    total: int = 0
    chunk: int = 16 * KIB
    pause: float = 0.0
    """Between two writes."""
    read_chunk: int = 1 << 30
    read_pause: float = 0.0
    stop_reading_at: int | None = None
    """After so many bytes, until the faults are over."""
    reset_at: float | None = None
    """After the connection was made."""
    eof: str = "written"
    """When to half-close: once the last byte is `written`, or the end of file of the other side is `read`."""
    lead: int = 0
    per_read: tuple[int, int] | None = None
    """In a dialogue (read, write): for each `read` bytes it may write `write` bytes, and `lead` before the first."""


class Far:
    """The far side of a connection: a client, or the server of a target."""

    def __init__(self, world: World, program: Program, who: str, buffer: int) -> None:
        self.world = world
        self.program = program
        self.who = who
        self.buffer = buffer
        self.sock: SimSocket | None = None
        self.other: Far | None = None
        """The far side at the other end of the tunnel."""
        self.written = 0
        self.read = 0
        self.fin_sent = self.fin_read = self.did_reset = self.was_reset = False
        self.reset_at = 0.0
        """When it did."""
        self.hurried = False
        self.on_reset: Callable[[Far], None] = lambda _: None
        """Called when our side resets it."""
        self.on_over: Callable[[], None] = lambda: None
        """Called after both ends of file."""
        self._write_timer = self._read_timer = False

    @property
    def over(self) -> bool:
        return self.was_reset or self.did_reset or (self.fin_sent and self.fin_read)

    @property
    def stopped(self) -> bool:
        """Whether it reads nothing for now."""
        stop_at = self.program.stop_reading_at
        return stop_at is not None and self.read >= stop_at and not self.hurried

    def connected(self, sock: "SimSocket") -> None:
        self.sock = sock
        sock.far = self
        self.world.after(self.program.pause, self._write)
        if self.program.reset_at is not None:
            self.world.after(self.program.reset_at, self.reset)

    def hurry(self) -> None:
        """Write and read without pauses from now on, so that everything ends."""
        self.hurried = True
        self.read_some()
        self._write()

    # Writing.

    def _write(self) -> None:
        self._write_timer = False
        sock = self.sock
        if sock is None or self.over or self.fin_sent:
            return
        program = self.program
        allowed = program.total
        if program.per_read is not None and not self.hurried:
            read, write = program.per_read
            allowed = min(allowed, program.lead + self.read // read * write)
        count = min(program.chunk, allowed - self.written, sock.in_room)
        if count > 0:
            self.written += count
            sock.arrived(count)
        if self.written < program.total:
            if sock.in_room > 0 and self.written < allowed:
                self.write_later()
        elif program.eof == "written" or self.fin_read:
            self.fin_sent = True
            self.world.note(f"{self.who} FIN after {self.written}")
            sock.arrived(0)
            if self.over:
                self.on_over()

    def write_later(self) -> None:
        """Write after the pause: there is room, or a reason to half-close."""
        if not self._write_timer and not self.fin_sent:
            self._write_timer = True
            self.world.after(0.0005 if self.hurried else self.program.pause, self._write)

    def reset(self) -> None:
        if self.sock is not None and not self.over:
            self.did_reset = True
            self.reset_at = self.world.now
            self.world.note(f"{self.who} RST after {self.written}")
            self.sock.arrived(0)

    # Reading.

    def read_later(self) -> None:
        """Read after the pause, at the earliest when something has arrived."""
        assert self.sock is not None
        pause_s, transit_s = 0.0002 if self.hurried else self.program.read_pause, self.sock.transit_s
        if not self._read_timer:
            self._read_timer = True
            self.world.after(max(pause_s, transit_s), self.read_some)
        if pause_s > PROMPT_S and transit_s > 0:
            self.sock.drain_later()

    def read_some(self) -> None:
        self._read_timer = False
        sock = self.sock
        if sock is None or (self.over and not self.fin_sent):
            return
        sock.drain()
        stop_at = self.program.stop_reading_at
        count = min(sock.out_arrived - self.read, 1 << 30 if self.hurried else self.program.read_chunk)
        if stop_at is not None and not self.hurried:
            count = min(count, max(stop_at - self.read, 0))
        if count > 0:
            self.read += count
            if self.program.per_read is not None:
                self.write_later()
        if sock.transit_s > 0 or (self.read < sock.out_arrived and count > 0):
            self.read_later()
        elif self.read == sock.out_arrived:
            self._read_end(sock)

    def _read_end(self, sock: "SimSocket") -> None:
        if sock.our_rst:
            if not self.over:
                self.was_reset = True
                self.world.note(f"{self.who} was reset after {self.read}")
        elif sock.our_fin and not sock.queued and not self.fin_read:
            self._end_of_file()

    def _end_of_file(self) -> None:
        other = self.other
        if other is None or not other.fin_sent or self.read != other.written:
            raise Violation(f"{self.who} got FIN after {self.read} bytes, which {other and other.who} did not send")
        self.fin_read = True
        self.world.note(f"{self.who} got FIN after {self.read}")
        self.write_later()
        if self.over:
            self.on_over()


class SimSocket:
    """Our side, with the methods of Python's socket that are used. Bytes are counted, not kept."""

    def __init__(self, net: "Sockets", process: Process) -> None:
        self.net = net
        self.process = process
        self.fd = process.allocate(self)
        self.far: Far | None = None
        self.listening = False
        self.dialed = False
        self.address: tuple[str, int] = ("0.0.0.0", 0)
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
    """Stands for the modules `socket`, `fcntl`, `select`, `os` and `selectors` in the processes of one world."""

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

    def DefaultSelector(self) -> Selector:  # noqa: N802 -- its name
        return Selector(self._process())

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
