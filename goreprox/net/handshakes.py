"""TLS handshakes with clients and targets: each ends with a socket that speaks TLS, or with a peer that is refused.

Knows sockets and the poller; what follows a handshake is not its matter. Meanwhile a client counts as a connection, and
nothing of it has reached anybody else. What it may say is bounded by OpenSSL: 128 KiB for its first message, 100 KiB
for its certificates (SSL_CTX_set_max_cert_list).
"""

import asyncio
import contextlib
import errno
import functools
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from goreprox.net import sockets
from goreprox.net.poller import READ, WRITE, Poller
from goreprox.net.tls import TlsSocket

HANDSHAKE_S: Final = 10.0
"""A client has so long: a lost segment is sent again three times by then."""


@dataclass(slots=True, eq=False)
class _Handshake:
    tls: TlsSocket
    admit: Callable[[TlsSocket], None]
    lose: Callable[[OSError], None]
    plaintext: bytes
    """What a client is told that speaks HTTP where TLS is expected."""
    events: int = READ
    """For what the poller watches."""


class Handshakes:
    """Owns the sockets of peers whose handshake goes on."""

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
    ) -> Callable[[], None]:
        """Take over a prepared socket. In the end `admit` takes it over, or `lose` is told why the peer is gone.

        That is ConnectionError if it left, or we do; anything else was refused. `host` is the name of a server, to
        which we are the client; `plaintext` is what a client is told that speaks HTTP. Return what ends it early.
        """
        shaking = _Handshake(TlsSocket(sock, context, self._poller, host=host), admit, lose, plaintext)
        late = TimeoutError(errno.ETIMEDOUT, f"not done within {self._timeout_s:g} s")
        self._timers[shaking] = self._loop.call_later(self._timeout_s, self._reset, shaking, late)
        self._poller.watch(sock.fileno(), READ, functools.partial(self._ready, shaking))
        if host is not None:
            self._ready(shaking, READ)
        return functools.partial(self._cancel, shaking)

    def _cancel(self, shaking: _Handshake) -> None:
        if shaking in self._timers:
            self._reset(shaking, ConnectionAbortedError(errno.ECONNABORTED, "nobody waits for it"))

    def close(self) -> None:
        """Reset them all."""
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
        """End the connection after the alert that says why, if there is one."""
        self._let_go(shaking)
        with contextlib.suppress(OSError):
            if why.reason == "HTTP_REQUEST":
                shaking.tls.say_plainly(shaking.plaintext)
            shaking.tls.flush()
        sockets.finish(shaking.tls)
        shaking.lose(why)

    def _reset(self, shaking: _Handshake, why: OSError) -> None:
        self._let_go(shaking)
        shaking.tls.close()
        shaking.lose(why)

    def _let_go(self, shaking: _Handshake) -> None:
        self._timers.pop(shaking).cancel()
        self._poller.forget(shaking.tls.fileno())
