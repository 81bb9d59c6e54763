"""Connections from proxies until their header of the PROXY protocol is read.

Nothing behind the header is read: the bytes of the client stay in the socket.
"""

import asyncio
import functools
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from brokers import LimitedLog
from goreprox.config.addresses import Listener
from goreprox.endpoint import Endpoint
from goreprox.net.poller import READ, Poller
from goreprox.net.proxy_protocol import MAX_BYTES, Malformed, read
from goreprox.protocol.fields import Fields

HEADER_S: Final = 10.0
"""Timeout of a header: a lost segment is sent again three times by then."""

Accepted = Callable[[socket.socket, Endpoint, Endpoint, Listener], None]
"""Takes over a client's socket, with its address, the one it connected to, and the listener that accepted it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Arrival:
    sock: socket.socket
    proxy: Endpoint
    destination: Endpoint
    listener: Listener
    head: bytearray
    """What was read of the header so far."""


class Proxies:
    """Owns the sockets of connections whose header is awaited. Memory: at most `MAX_BYTES` each."""

    def __init__(
        self,
        poller: Poller,
        *,
        accepted: Accepted,
        left: Callable[[], None],
        refused: Callable[[], None],
        timeout_s: float = HEADER_S,
    ) -> None:
        """Belong to the running loop.

        `left` is called whenever one of the connections is gone from here, `refused` for one without a header.
        """
        self._poller = poller
        self._accepted = accepted
        self._left = left
        self._refused = refused
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timers: dict[_Arrival, asyncio.TimerHandle] = {}
        self._log = LimitedLog()

    def __len__(self) -> int:
        return len(self._timers)

    def hear(self, sock: socket.socket, proxy: Endpoint, destination: Endpoint, listener: Listener) -> None:
        """Take over the socket of a proxy, and read its header."""
        arrival = _Arrival(sock, proxy, destination, listener, bytearray())
        self._hear(arrival, self._loop.time() + self._timeout_s)

    def _hear(self, arrival: _Arrival, until: float) -> None:
        late = f"it did not arrive within {self._timeout_s:g} s"
        self._timers[arrival] = self._loop.call_at(until, self._refuse, arrival, late)
        self._poller.watch(arrival.sock.fileno(), READ, functools.partial(self._ready, arrival))

    @property
    def descriptors(self) -> list[int]:
        """Those of their sockets."""
        return [arrival.sock.fileno() for arrival in self._timers]

    def export(self, *, payload: bool) -> Iterator[object]:
        """Yield what was read of each, with `payload` also its descriptor."""
        for arrival, timer in self._timers.items():
            yield {
                "descriptor": arrival.sock.fileno() if payload else None,
                "proxy": str(arrival.proxy),
                "destination": str(arrival.destination),
                "listener": arrival.listener.text,
                "head": bytes(arrival.head),
                "until": timer.when(),
            }

    def release(self) -> None:
        """Leave the sockets to the code that takes over; nothing may follow."""
        for arrival, timer in self._timers.items():
            timer.cancel()
            arrival.sock.detach()

    def restore(self, sock: socket.socket, listener: Listener, marks: Fields) -> None:
        """Go on with a connection that `export` has yielded, as one of `listener`.

        Raises:
            ExportError: it is something else.
        """
        proxy, destination = marks.endpoint("proxy"), marks.endpoint("destination")
        arrival = _Arrival(sock, proxy, destination, listener, bytearray(marks.data("head")))
        self._hear(arrival, marks.seconds("until"))

    def close(self) -> None:
        """Reset all of them."""
        for arrival in list(self._timers):
            self._let_go(arrival)
            arrival.sock.close()

    def _ready(self, arrival: _Arrival, _: int) -> None:
        if arrival not in self._timers:
            return
        sock, head = arrival.sock, arrival.head
        try:
            ahead = sock.recv(MAX_BYTES, socket.MSG_PEEK)
            header = read(bytes(head) + ahead)
            head += sock.recv(len(ahead) if header is None else header.size - len(head))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(arrival)
            return
        except Malformed as exc:
            self._refuse(arrival, str(exc))
            return
        if not ahead:
            self._drop(arrival)  # it has left: a health check of a balancer
        elif header is not None:
            self._let_go(arrival)
            self._accepted(sock, *(header.endpoints or (arrival.proxy, arrival.destination)), arrival.listener)
            self._left()

    def _refuse(self, arrival: _Arrival, reason: str) -> None:
        self._drop(arrival)
        self._refused()
        self._log.say(
            "no_proxy_header",
            f"reset {arrival.proxy}: --proxy-protocol-from requires a PROXY protocol header first: {reason}",
        )

    def _drop(self, arrival: _Arrival) -> None:
        """Reset a connection."""
        self._let_go(arrival)
        arrival.sock.close()
        self._left()

    def _let_go(self, arrival: _Arrival) -> None:
        self._timers.pop(arrival).cancel()
        self._poller.forget(arrival.sock.fileno())
