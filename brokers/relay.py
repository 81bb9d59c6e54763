"""Carries one connection of a DEALER over a socket that libzmq did not open, or on which there is TLS.

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
from collections.abc import Awaitable, Callable
from typing import Final

from brokers.carrier import Buffer, LinkCondition
from brokers.tcp_info import link_condition
from brokers.transport import Plain, Transport

CHUNK_BYTES: Final = 1 << 18
WINDOW_BYTES: Final = 1 << 17
LOOPBACK: Final = "127.0.0.1"
BACKLOG: Final = 8
"""Connections of others that may be in front of the DEALER's."""


class Copying:
    """Copies bytes between a socket of this process, whose other end is libzmq's, and a transport."""

    def __init__(self, near: socket.socket, far: Transport, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Hold at most `chunk_bytes` in each direction."""
        self._near, self._far = near, far
        self._chunk_bytes = chunk_bytes
        self._held = 0
        """Bytes from libzmq that are not sent yet."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes that have left libzmq's socket, and that the kernel has not got for the network yet."""
        if self._near.fileno() < 0:
            return 0
        waiting = array.array("i", [0])
        fcntl.ioctl(self._near, termios.FIONREAD, waiting)
        return self._held + waiting[0]

    def condition(self, local: LinkCondition) -> LinkCondition | None:
        """Return the condition of the whole way, where `local` is that of libzmq's connection; None if unknown."""
        far = link_condition(self._far.socket)
        waiting = local.unsent_bytes + self.unsent_bytes
        return None if far is None else far._replace(unsent_bytes=far.unsent_bytes + waiting)

    async def run(self) -> None:
        """Copy until either end is closed; `close` is to follow, however this ends."""
        near = Plain(self._near)
        self._near.setblocking(False)
        self._near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        directions = (
            self._copy(near.receive_into, self._send),
            self._copy(self._far.receive_into, near.send_all),
        )
        tasks = [asyncio.create_task(each, name="relay") for each in directions]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def close(self) -> None:
        """Close both ends."""
        self._near.close()
        self._far.close()

    async def _send(self, data: Buffer) -> None:
        self._held = len(data)
        await self._far.send_all(data)
        self._held = 0

    async def _copy(
        self, receive_into: Callable[[memoryview], Awaitable[int]], send_all: Callable[[Buffer], Awaitable[None]]
    ) -> None:
        """Copy until the source ends, or either is reset."""
        buffer = memoryview(bytearray(self._chunk_bytes))
        with contextlib.suppress(OSError):
            while count := await receive_into(buffer):
                await send_all(buffer[:count])
                await asyncio.sleep(0)  # the two above need not wait


class Relay:
    """A relay to `far`, which it owns."""

    def __init__(self, far: Transport) -> None:
        """Listen for the DEALER.

        Raises:
            OSError: no descriptors are left, or this machine has no loopback interface; `far` is closed.
        """
        self._far = far
        self._copying: Copying | None = None
        self._task: asyncio.Task[None] | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(far.close)
            self._listening = undo.enter_context(socket.socket())
            self._listening.setblocking(False)
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
            self._listening.bind((LOOPBACK, 0))
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
                if address == (LOOPBACK, port):
                    self._carry(Copying(near, self._far))
                    return True
                near.close()
        return False

    def _carry(self, copying: Copying) -> None:
        self._copying = copying
        self._task = asyncio.get_running_loop().create_task(copying.run(), name="relay")
        self._task.add_done_callback(lambda _: copying.close())  # even if it was ended before it began

    def condition(self, local: LinkCondition) -> LinkCondition | None:
        """Return the condition of the whole way, where `local` is that of libzmq's connection; None if unknown."""
        return None if self._copying is None else self._copying.condition(local)

    @property
    def unsent_bytes(self) -> int:
        """Bytes on their way to the broker that have left libzmq's socket and are not in the network's yet."""
        return 0 if self._copying is None else self._copying.unsent_bytes

    def close(self) -> None:
        """Close all sockets now, or in the next turns of the loop."""
        self._listening.close()
        if self._task is None:
            self._far.close()
        else:
            self._task.cancel()

    async def finish(self, within_s: float) -> None:
        """Wait until all is sent that the DEALER has sent before it disconnected; then close."""
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=within_s)
        self.close()
