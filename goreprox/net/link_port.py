"""A port of a broker where links come within TLS."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from brokers import LimitedLog
from goreprox.config.addresses import Address, Scheme
from goreprox.config.certificates import CertificateConfig
from goreprox.endpoint import Endpoint
from goreprox.net import sockets
from goreprox.net.certificates import LINK_ALPN, Certificates, StoredFile, reason
from goreprox.net.handshakes import MOST_HANDSHAKES, crowding
from goreprox.net.link_tls import UNWATCHED, LinkTransport
from goreprox.net.listeners import bound
from goreprox.net.tls import TlsSocket

ACCEPTS: Final = 16
"""Connections accepted in one turn of the loop."""
PAUSE_S: Final = 0.5
"""While there are no file descriptors."""
Accepted = Callable[[LinkTransport, str], None]
"""Takes over a connection after its handshake, with the peer's address."""


class LinkCertificates:
    """What peers are shown in handshakes."""

    def __init__(self, tls: CertificateConfig, *, needed: bool, stored: StoredFile | None = None) -> None:
        """Read the files, if they are needed; others are `stored` (`Certificates`).

        Raises:
            StartError: a file cannot be used.
        """
        self._tls, self._needed, self._stored = tls, needed, stored
        self._certificates = self._read(tls, stored)

    def _read(self, tls: CertificateConfig, stored: StoredFile | None) -> Certificates | None:
        return Certificates(tls.pairs, None, alpn=(LINK_ALPN,), stored=stored) if self._needed else None

    def reconfigured(self, tls: CertificateConfig, stored: StoredFile | None = None) -> Callable[[], None]:
        """Prepare for other files; return what applies them, to handshakes from then on, and cannot fail.

        Raises:
            StartError: a file cannot be used; nothing has changed.
        """
        is_same = (tls.pairs, stored) == (self._tls.pairs, self._stored)
        certificates = self._certificates if is_same else self._read(tls, stored)

        def apply() -> None:
            self._tls, self._stored, self._certificates = tls, stored, certificates

        return apply

    def context(self) -> ssl.SSLContext:
        """Return the context for a handshake, if they are needed."""
        assert self._certificates is not None
        return self._certificates.context(Scheme.TLS)


class LinkPort:
    """Accepts links, and shakes hands with them."""

    def __init__(
        self,
        option: str,
        address: Address,
        context: Callable[[], ssl.SSLContext],
        accepted: Accepted,
        inherited: Sequence[int] = (),
    ) -> None:
        """Listen on `address`, the value of `option`, or with the sockets of these descriptors, which do already.

        `context` returns that for the next handshake.

        Raises:
            StartError: the address cannot be listened on.
        """
        self._option = option
        self._context = context
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._log = LimitedLog()
        self._handshakes: dict[asyncio.Task[None], str] = {}
        """With the peers' addresses, in the order in which they began."""
        self._sockets = [sockets.restored(each) for each in inherited] or bound(
            option, address, reuse_port=False, listening=True
        )
        self._start()

    @property
    def number(self) -> int:
        """The port."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def descriptors(self) -> list[int]:
        """Those of the listening sockets."""
        return [sock.fileno() for sock in self._sockets]

    def _start(self) -> None:
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _pause(self) -> None:
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = listening.accept()
            except ConnectionAbortedError:
                continue  # others may be waiting behind this one
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                text = f"no link is accepted at the port for {self._option}: {exc.strerror}; raise ulimit -n"
                self._log.say("no_descriptors", text)
                self._pause()
                self._loop.call_later(PAUSE_S, self._start)
                return
            sockets.adopt(sock)
            self._begin(sock, Endpoint(*address[:2]))

    def _begin(self, sock: socket.socket, peer: Endpoint) -> None:
        if len(self._handshakes) >= MOST_HANDSHAKES:
            crowded = list(self._handshakes)[crowding(list(self._handshakes.values()))]
            del self._handshakes[crowded]
            crowded.cancel()
        transport = LinkTransport(TlsSocket(sock, self._context(), UNWATCHED))
        task = self._loop.create_task(self._shake_hands(transport, peer), name="shake hands with a link")
        self._handshakes[task] = peer.host

        def ended(_: "asyncio.Task[None]") -> None:
            self._handshakes.pop(task, None)
            if task.cancelled():  # maybe before it has begun
                transport.close()

        task.add_done_callback(ended)

    async def _shake_hands(self, transport: LinkTransport, peer: Endpoint) -> None:
        try:
            await transport.shake_hands()
        except OSError as exc:
            if not isinstance(exc, ConnectionError):  # which is one that has left
                why = "it took too long" if isinstance(exc, TimeoutError) else reason(exc)
                text = f"a TLS handshake with {peer} at the port for {self._option} failed: {why}"
                self._log.say("handshake_failed", text, cause="tls", address=peer.host)
            transport.refuse(exc)
        else:
            self._accepted(transport, peer.host)

    async def close(self, *, linger_s: float) -> None:
        """Close the port; links that were accepted are not affected."""
        self._pause()
        for sock in self._sockets:
            sock.close()
        self._sockets = []
        for task in self._handshakes:
            task.cancel()
