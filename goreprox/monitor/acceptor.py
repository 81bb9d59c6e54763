"""Accepts the clients of programs that watch processes, and of browsers: only so many at a time."""

import asyncio
import socket
from typing import Final

from goreprox.config.addresses import Address
from goreprox.net import listeners, sockets

CLIENTS: Final = 64
"""At a time: with 16 KiB for a request below 1 MiB, and a response each."""
ACCEPTS: Final = 16
"""Connections accepted in one turn of the loop."""
PAUSE_S: Final = 0.5
"""How long accepting pauses when there is no file descriptor."""
CLOSE_S: Final = 0.25
"""How long the end of a process, or an upgrade, may wait for clients that have connected: a request takes less."""


class Acceptor:
    """Accepts the clients of listening sockets, which stay the caller's. What serves a client is a subclass."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening: set[socket.socket] = set()
        self._clients: dict[asyncio.Task[None], None] = {}
        """In the order in which they came."""
        self._kept: set[asyncio.Task[None]] = set()

    async def serve_client(self, sock: socket.socket) -> None:
        """Serve one client, whose socket is closed at the end."""
        raise NotImplementedError

    def serve(self, listening: socket.socket) -> None:
        """Serve those who connect to a socket."""
        self._listening.add(listening)
        self._loop.add_reader(listening, self._accept, listening)

    def leave(self, listening: socket.socket) -> None:
        """Serve nobody else who connects to a socket: they wait in its backlog."""
        self._listening.discard(listening)
        self._loop.remove_reader(listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # no descriptor is left
                self._loop.remove_reader(listening)
                self._loop.call_later(PAUSE_S, self._go_on, listening)
                return
            sock.setblocking(False)
            self._accepted(sock)

    def _go_on(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self.serve(listening)

    def _accepted(self, sock: socket.socket) -> None:
        if len(self._clients) >= CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.cancel()
        task = self._loop.create_task(self.serve_client(sock), name="responder")
        self._clients[task] = None

        def ended(_: "asyncio.Task[None]") -> None:
            """Let go of it, even if it was ended before it began."""
            self._clients.pop(task, None)
            self._kept.discard(task)
            sock.close()

        task.add_done_callback(ended)

    def retain(self, client: asyncio.Task[None]) -> None:
        """Let no other take the place of this client. The caller bounds how many such clients there are."""
        if client in self._clients:
            del self._clients[client]
            self._kept.add(client)

    async def close(self) -> None:
        """Serve those who have connected, if that takes no longer than `CLOSE_S`, and nobody else."""
        for listening in list(self._listening):
            self.leave(listening)
        if clients := [*self._clients, *self._kept]:
            await asyncio.wait(clients, timeout=CLOSE_S)
        for client in clients:
            client.cancel()


def listening(option: str, address: Address) -> list[socket.socket]:
    """Return listening sockets for an address, the value of `option`.

    Raises:
        StartError: it cannot be listened on.
    """
    socks = listeners.bound(option, address, reuse_port=False, listening=True)
    for sock in socks:
        sockets.finish_on_close(sock)
    return socks
