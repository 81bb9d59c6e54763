"""Carries one connection of a DEALER over a socket that libzmq did not open.

libzmq can only be told an address. So the relay listens on loopback until the DEALER has connected, and copies bytes
between the two sockets until either is closed. It accepts the DEALER's connection and no other, since any process of
this machine can connect there.

It holds at most `CHUNK_BYTES` in each direction, and the kernel at most `WINDOW_BYTES` between libzmq and the relay:
what waits for the network is to wait where `unsent_bytes` sees it, and congestion control asks.
"""

import array
import asyncio
import contextlib
import fcntl
import socket
import termios
from typing import Final

CHUNK_BYTES: Final = 1 << 18
WINDOW_BYTES: Final = 1 << 17
_HOST: Final = "127.0.0.1"
BACKLOG: Final = 8
"""Connections of others that may be in front of the DEALER's."""


class Relay:
    """A relay to `far`, which it owns and which does not block."""

    def __init__(self, far: socket.socket) -> None:
        """Listen for the DEALER.

        Raises:
            OSError: no descriptors are left, or this machine has no loopback interface; `far` is closed.
        """
        self.far = far
        self._near: socket.socket | None = None
        self._held = 0
        """Bytes on their way to the broker that are in neither socket."""
        self._task: asyncio.Task[None] | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(far.close)
            self._listening = undo.enter_context(socket.socket())
            self._listening.setblocking(False)
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
            self._listening.bind((_HOST, 0))
            self._listening.listen(BACKLOG)
            undo.pop_all()
        self.endpoint = "tcp://{}:{}".format(*self._listening.getsockname())

    def start(self, port: int) -> bool:
        """Carry the connection that comes from this port, the DEALER's; False if there is none."""
        with self._listening:
            for _ in range(BACKLOG + 1):
                try:
                    near, address = self._listening.accept()
                except OSError:
                    break
                if address == (_HOST, port):
                    self._near = near
                    self._task = asyncio.get_running_loop().create_task(self._carry(near), name="relay")
                    return True
                near.close()
        return False

    @property
    def unsent_bytes(self) -> int:
        """Bytes on their way to the broker that have left libzmq's socket and are not in `far` yet."""
        if self._near is None or self._near.fileno() < 0:
            return 0
        waiting = array.array("i", [0])
        fcntl.ioctl(self._near, termios.FIONREAD, waiting)
        return self._held + waiting[0]

    def close(self) -> None:
        """Close all sockets now, or in the next turns of the loop."""
        self._listening.close()
        if self._task is None:
            self.far.close()
        else:
            self._task.cancel()

    async def finish(self, within_s: float) -> None:
        """Wait until all is sent that the DEALER has sent before it disconnected; then close."""
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=within_s)
        self.close()

    async def _carry(self, near: socket.socket) -> None:
        near.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with near, self.far:
            directions = (self._copy(near, self.far), self._copy(self.far, near))
            tasks = [asyncio.create_task(each, name="relay") for each in directions]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        """Copy until `source` ends, or either is reset."""
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with contextlib.suppress(OSError):
            while count := await loop.sock_recv_into(source, buffer):
                if sink is self.far:
                    self._held = count
                await loop.sock_sendall(sink, buffer[:count])
                if sink is self.far:
                    self._held = 0
                await asyncio.sleep(0)  # the two above need not wait
