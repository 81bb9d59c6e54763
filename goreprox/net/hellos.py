"""Connections of TLS clients until their ClientHello is read, which says where they go.

Nothing is taken from a socket: the bytes stay in the kernel for what gets the connection. So an upgrade hands over
the socket alone, and they are read once more.
"""

import asyncio
import contextlib
import errno
import functools
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from goreprox.config.addresses import Listener
from goreprox.endpoint import Endpoint
from goreprox.net import sockets
from goreprox.net.client_hello import DECODE_ERROR, MAX_BYTES, ClientHello, Malformed, fatal_alert, read
from goreprox.net.poller import READ, Poller
from goreprox.protocol.fields import Fields

HELLO_S: Final = 10.0
"""Timeout of a ClientHello: a lost segment is sent again three times by then."""


@dataclass(slots=True, eq=False)
class Arrival:
    """A client that was admitted by its address."""

    sock: socket.socket
    address: Endpoint
    destination: Endpoint
    """Where it connected to."""
    listener: Listener
    seen: int = 0
    """Bytes that are in the socket, and not enough; it is ready once there are more."""


class Hellos:
    """Owns the sockets of clients whose ClientHello is awaited. Memory: none but the kernel's."""

    def __init__(
        self,
        poller: Poller,
        *,
        heard: Callable[[Arrival, ClientHello], bool],
        lose: Callable[[Endpoint, OSError], None],
        timeout_s: float = HELLO_S,
    ) -> None:
        """Belong to the running loop.

        `heard` takes a connection over, or returns False: then it stays here for the code that takes our place. `lose`
        gets the reason why one is gone: ConnectionError if the client left or we are shutting down, anything else if it
        was rejected.
        """
        self._poller = poller
        self._heard = heard
        self._lose = lose
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timers: dict[Arrival, asyncio.TimerHandle] = {}
        self._kept: list[Arrival] = []
        """Those that are for the code that takes our place."""

    def __len__(self) -> int:
        return len(self._timers) + len(self._kept)

    def hear(self, arrival: Arrival) -> None:
        """Take over the prepared socket of a client, and read its ClientHello."""
        late = TimeoutError(errno.ETIMEDOUT, f"no ClientHello within {self._timeout_s:g} s")
        self._timers[arrival] = self._loop.call_later(self._timeout_s, self._reset, arrival, late)
        self._poller.watch(arrival.sock.fileno(), READ, functools.partial(self._ready, arrival))

    def reject(self, arrival: Arrival, alert: int, why: str) -> None:
        """Close a connection after an alert (client_hello.fatal_alert)."""
        with contextlib.suppress(OSError):
            arrival.sock.recv(MAX_BYTES)  # closing it with unread bytes would be a reset, which may overtake the alert
            arrival.sock.send(fatal_alert(alert))
        sockets.finish(arrival.sock)
        self._lose(arrival.address, OSError(errno.EPROTO, why))

    @property
    def _all(self) -> list[Arrival]:
        return [*self._timers, *self._kept]

    @property
    def descriptors(self) -> list[int]:
        """Those of their sockets."""
        return [arrival.sock.fileno() for arrival in self._all]

    def export(self, *, payload: bool) -> Iterator[object]:
        """Yield what is known of each, with `payload` also its descriptor."""
        for arrival in self._all:
            yield {
                "descriptor": arrival.sock.fileno() if payload else None,
                "client": str(arrival.address),
                "destination": str(arrival.destination),
                "listener": arrival.listener.text,
            }

    def release(self) -> None:
        """Leave the sockets to the code that takes over; nothing may follow."""
        for timer in self._timers.values():
            timer.cancel()
        for arrival in self._all:
            arrival.sock.detach()

    def restore(self, sock: socket.socket, listener: Listener, marks: Fields) -> None:
        """Begin anew with a connection that `export` has yielded, as one of `listener`.

        Raises:
            ExportError: it is something else.
        """
        client, destination = marks.endpoint("client"), marks.endpoint("destination")
        _await(sock, 1)
        self.hear(Arrival(sock, client, destination, listener))

    def close(self) -> None:
        """Reset all of them."""
        kept, self._kept = self._kept, []
        for arrival in list(self._timers):
            self._reset(arrival, ConnectionAbortedError(errno.ECONNABORTED, "the edge is shutting down"))
        for arrival in kept:
            arrival.sock.close()

    def _ready(self, arrival: Arrival, _: int) -> None:
        if arrival not in self._timers:
            return
        sock = arrival.sock
        try:
            data = sock.recv(MAX_BYTES, socket.MSG_PEEK)
            hello = read(data)
            if hello is None:
                if len(data) <= arrival.seen:  # what it is ready for is the end
                    raise ConnectionAbortedError(errno.ECONNABORTED, "the client left before its ClientHello was whole")
                arrival.seen = len(data)
            if arrival.seen:
                _await(sock, 1 if hello is not None else arrival.seen + 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._reset(arrival, exc)
            return
        except Malformed as exc:
            self._let_go(arrival)
            self.reject(arrival, DECODE_ERROR, f"no ClientHello: {exc}")
            return
        if hello is not None:
            self._let_go(arrival)
            if not self._heard(arrival, hello):
                self._kept.append(arrival)

    def _reset(self, arrival: Arrival, why: OSError) -> None:
        self._let_go(arrival)
        arrival.sock.close()
        self._lose(arrival.address, why)

    def _let_go(self, arrival: Arrival) -> None:
        self._timers.pop(arrival).cancel()
        self._poller.forget(arrival.sock.fileno())


def _await(sock: socket.socket, least: int) -> None:
    """Have a socket ready to be read only when so many bytes are there, or its end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
