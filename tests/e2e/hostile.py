"""What hostile peers put on the wire: ZMTP by hand (RFC 23 and its predecessors), and connections cut at any byte."""

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Coroutine

from tests.support.sockets import HOST

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MANY_PARTS = 50_000
"""Of one message: what takes long enough to be read in the process under test for something to happen meanwhile."""


def command(body: bytes, *, flags: int = 0x04) -> bytes:
    """A command frame; with `flags` 0 or 1 a message frame."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 0x02]) + len(body).to_bytes(8, "big") + body


def ready(kind: bytes, identity: bytes = b"") -> bytes:
    """The command that ends a NULL handshake."""
    names = ((b"Socket-Type", kind), (b"Identity", identity))
    return command(b"\x05READY" + b"".join(bytes([len(n)]) + n + struct.pack(">I", len(v)) + v for n, v in names))


def scripts() -> dict[str, list[bytes]]:
    """What may follow a greeting or a whole handshake, by name; written in pieces, then the connection is cut."""
    ping = command(b"\x04PING\x00\x01")
    part, last = command(b"a", flags=1), command(b"z", flags=0)
    return {
        "nothing": [],
        "noise": [bytes(range(256)) * 64],
        "an error": [command(b"\x05ERROR\x03400"), command(b"\x05ERROR\xffx"), command(b"\x05ERROR")],
        "unknown commands": [command(b"\x07UNKNOWN" + bytes(300)), command(b"\xff"), command(b"")],
        "commands that are too short": [command(b"\x04PING"), command(b"\x04PONG"), command(b"\x09SUBSCRIBE")],
        "pings with a context": [command(b"\x04PING\x00\x00" + b"c" * size) for size in (0, 1, 16, 17, 255, 5000)],
        "pings between messages": [(last * 20 + ping) * 400],
        "subscriptions": [command(b"\x09SUBSCRIBE" + b"s" * 10) * 2000, command(b"\x06CANCEL" + b"s") * 2000],
        "a length without a message": [b"\x02" + (1 << 20).to_bytes(8, "big") + b"x" * 1000],
        "a length beyond all bounds": [b"\x02" + (1 << 63).to_bytes(8, "big")],
        "a message without an end": [part * 5000],
        "a message of many parts": [part * MANY_PARTS + last],
        "commands within a message": [part + ping + part + command(b"\x09SUBSCRIBEx", flags=5) + last],
        "another handshake": [GREETING, ready(b"DEALER", b"x"), ready(b"ROUTER", b"x"), last],
        "flags that do not exist": [b"\xf8\x01x", b"\x07\x01x"],
    }


OPENINGS: dict[str, bytes] = {
    "not a greeting": b"GET / HTTP/1.1\r\n\r\n",
    "ZMTP 1.0": command(b"id", flags=0)[1:] + b"\x00" + b"\x02\x00m" * 10,
    "ZMTP 2.0": b"\xff" + bytes(8) + b"\x7f\x01\x05" + b"\x00\x02id" + b"\x01\x01a\x00\x01z" * 10,
    "ZMTP 2.0, an id that goes on": b"\xff" + bytes(8) + b"\x7f\x01\x05" + b"\x01\x02id" + b"\x04\x01c" * 10,
    "another mechanism": GREETING.replace(b"NULL\0\0\0\0\0", b"CURVE\0\0\0\0"),
    "a pair": GREETING + ready(b"PAIR"),
    "an empty READY": GREETING + command(b"\x05READY"),
    "a READY cut short": GREETING + command(b"\x05READY\x0bSocket-Type\x00\x00\xff\xffDEALER"),
    "an error at once": GREETING + command(b"\x05ERROR\x03nay"),
    "a long id": GREETING + ready(b"DEALER", b"i" * 70_000),
}
"""What may come in place of a handshake."""


def libzmq_ids(count: int) -> list[int]:
    """What the first ROUTER sockets of a process count from that never seeds `rand` (generate_random of libzmq)."""
    c = ctypes.CDLL(None)
    c.srand(1)
    try:
        return [c.rand() | c.rand() << 31 & 0xFFFFFFFF for _ in range(count)]
    finally:
        c.srand(int.from_bytes(os.urandom(4), "big"))


def end(sock: socket.socket, *, rst: bool) -> None:
    """Close with RST, or with FIN where nothing waits to be read."""
    if rst:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def read_some(sock: socket.socket, size: int, deadline_s: float = 1.0) -> int:
    """Read up to `size` bytes, as long as there are any within `deadline_s`; return how many."""
    loop = asyncio.get_running_loop()
    got = 0
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(deadline_s):
            while got < size and (data := await loop.sock_recv(sock, size - got)):
                got += len(data)
    return got


async def perform(
    sock: socket.socket, pieces: list[bytes], *, handshake: bytes | None, pause_s: float, rst: bool
) -> None:
    """Shake hands, if there is a `handshake`, write all pieces, and cut the connection after a pause."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    try:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5.0):
                if handshake is not None:
                    await loop.sock_sendall(sock, GREETING)
                    await read_some(sock, len(GREETING) + 2)
                    await loop.sock_sendall(sock, handshake)
                    await read_some(sock, 1 << 16, 0.05)
                for piece in pieces:
                    await loop.sock_sendall(sock, piece)
                await asyncio.sleep(pause_s)
    finally:
        end(sock, rst=rst)


class Cutter:
    """A relay that passes each connection on up to a byte of one direction, then cuts it on both sides."""

    def __init__(self, port: int, next_cut: Callable[[], tuple[int, int, bool] | None]) -> None:
        """Relay to `port`; `next_cut` returns of each connection its direction, its last byte, and whether to reset it.

        Direction 0 is to the server, 1 from it; None: the connection is not cut.
        """
        self._target = port
        self._next_cut = next_cut
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = socket.create_server((HOST, 0), backlog=128)
        self._server.setblocking(False)
        self.port = int(self._server.getsockname()[1])
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._server, self._accept)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name="cutter")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            near, _ = self._server.accept()
            near.setblocking(False)
            self._spawn(self._relay(near))

    async def _relay(self, near: socket.socket) -> None:
        direction, limit, rst = self._next_cut() or (0, 1 << 62, False)
        far = socket.socket()
        far.setblocking(False)
        try:
            with contextlib.suppress(OSError):
                await self._loop.sock_connect(far, (HOST, self._target))
                pumps = [
                    asyncio.create_task(_pump(near, far, limit if direction == 0 else 1 << 62), name="there"),
                    asyncio.create_task(_pump(far, near, limit if direction == 1 else 1 << 62), name="back"),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            end(near, rst=rst)
            end(far, rst=rst)

    async def stop(self) -> None:
        """Cut everything and accept no more."""
        self._loop.remove_reader(self._server)
        await asyncio.sleep(0)  # a task that is cancelled before its first step would not close what it was given
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.close()


async def _pump(source: socket.socket, sink: socket.socket, limit: int) -> None:
    """Copy up to `limit` bytes."""
    loop = asyncio.get_running_loop()
    while limit > 0 and (data := await loop.sock_recv(source, min(limit, 1 << 16))):
        limit -= len(data)
        await loop.sock_sendall(sink, data)
