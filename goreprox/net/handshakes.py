"""TLS handshakes with clients and targets: each ends with a socket that speaks TLS, or the peer is rejected.

During a handshake a client counts as a connection, and nothing of it reaches anybody else. OpenSSL bounds what it may
send: 128 KiB for its first message, 100 KiB for its certificates (SSL_CTX_set_max_cert_list).
"""

import asyncio
import errno
import functools
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from goreprox.net import sockets
from goreprox.net.client_hello import ClientHello
from goreprox.net.poller import READ, WRITE, Poller
from goreprox.net.tls import TlsSocket

HANDSHAKE_S: Final = 10.0
"""Timeout of a client's handshake: a lost segment is sent again three times by then."""


MOST_HANDSHAKES: Final = 256
"""At a time, with links. Where there are more, the oldest of the address that has most of them is ended. Each takes
51 KiB, and what OpenSSL keeps of an unfinished message, at most 128 KiB: 45 MiB together."""


def crowding(addresses: Sequence[str]) -> int:
    """Return which one has to go where there are too many: the first of the address that is there most often."""
    [(most, _)] = Counter(addresses).most_common(1)
    return addresses.index(most)


@dataclass(slots=True, eq=False)
class _Handshake:
    tls: TlsSocket
    admit: Callable[[TlsSocket], None]
    lose: Callable[[OSError], None]
    plaintext: bytes
    """Sent to a client that speaks HTTP instead of TLS."""
    address: str | None
    """Of the peer, where `make_room` may end it."""
    events: int = READ
    """What the poller watches the socket for."""


class Handshakes:
    """Owns the sockets of peers during their handshakes."""

    def __init__(self, poller: Poller, *, timeout_s: float = HANDSHAKE_S) -> None:
        """Belong to the running loop."""
        self._poller = poller
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timers: dict[_Handshake, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def begin(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        admit: Callable[[TlsSocket], None],
        lose: Callable[[OSError], None],
        host: str | None = None,
        plaintext: bytes = b"",
        address: str | None = None,
        choose: Callable[[ClientHello], ssl.SSLContext | None] | None = None,
    ) -> Callable[[], None]:
        """Take over a prepared socket; return a function that cancels the handshake.

        At its end `admit` takes the socket over, or `lose` gets the reason: ConnectionError if the peer left or we are
        shutting down, anything else if the peer was rejected. With a `host` the peer is the server of that name.
        `plaintext` is sent to a client that speaks HTTP instead of TLS, and `choose` may return another context for
        one. With its `address`, `make_room` may end it.
        """
        tls = TlsSocket(sock, context, self._poller, host=host, choose=choose)
        shaking = _Handshake(tls, admit, lose, plaintext, address)
        late = TimeoutError(errno.ETIMEDOUT, f"not complete within {self._timeout_s:g} s")
        self._timers[shaking] = self._loop.call_later(self._timeout_s, self._reset, shaking, late)
        self._poller.watch(sock.fileno(), READ, functools.partial(self._ready, shaking))
        if host is not None:
            self._ready(shaking, READ)
        return functools.partial(self._cancel, shaking)

    def _cancel(self, shaking: _Handshake) -> None:
        if shaking in self._timers:
            self._reset(shaking, ConnectionAbortedError(errno.ECONNABORTED, "it was cancelled"))

    def make_room(self) -> None:
        """End one of those that have an address, if there are `MOST_HANDSHAKES` of them."""
        waiting = [(each.address, each) for each in self._timers if each.address is not None]
        if len(waiting) >= MOST_HANDSHAKES:
            _, crowded = waiting[crowding([address for address, _ in waiting])]
            self._reset(crowded, TimeoutError(errno.ETIMEDOUT, "others came meanwhile"))

    def close(self) -> None:
        """Reset all of them."""
        for shaking in list(self._timers):
            self._reset(shaking, ConnectionAbortedError(errno.ECONNABORTED, "the edge is shutting down"))

    def _ready(self, shaking: _Handshake, _: int) -> None:
        if shaking not in self._timers:
            return
        try:
            done = shaking.tls.shake_hands()
        except ssl.SSLError as exc:
            self._refuse(shaking, exc)
            return
        except OSError as exc:
            self._reset(shaking, exc)
            return
        if done:
            self._let_go(shaking)
            shaking.admit(shaking.tls)
            return
        before, shaking.events = shaking.events, WRITE if shaking.tls.stuck else READ
        self._poller.change(shaking.tls.fileno(), before, shaking.events, functools.partial(self._ready, shaking))

    def _refuse(self, shaking: _Handshake, why: ssl.SSLError) -> None:
        """Close the connection after the alert that OpenSSL has made, if any."""
        self._let_go(shaking)
        shaking.tls.tell(why, shaking.plaintext)
        sockets.finish(shaking.tls)
        shaking.lose(why)

    def _reset(self, shaking: _Handshake, why: OSError) -> None:
        self._let_go(shaking)
        shaking.tls.close()
        shaking.lose(why)

    def _let_go(self, shaking: _Handshake) -> None:
        self._timers.pop(shaking).cancel()
        self._poller.forget(shaking.tls.fileno())
