"""TLS around links: at a provider or an edge, and as what a broker copies bytes from and to (brokers.Transport).

Keys still authenticate both ends, inside of it: TLS is for networks that let nothing else out. A certificate tells that
nobody else has responded there.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from loguru import logger

from brokers import Buffer, Cause, LimitedLog, OpenError
from goreprox.config.addresses import Address
from goreprox.errors import ConfigError, StartError
from goreprox.net import sockets
from goreprox.net.certificates import link_context, reason
from goreprox.net.tls import TlsSocket
from goreprox.process.reloaded import Reloaded

HANDSHAKE_S: Final = 10.0
"""Of a handshake, at either end: a lost segment is sent again three times by then."""


class LinkTransport:
    """A connection with TLS (brokers.Transport)."""

    def __init__(self, tls: TlsSocket) -> None:
        """Take over the socket of a connection, before or after the handshake; no poller watches it any more."""
        self._tls = tls
        self._loop = asyncio.get_running_loop()

    @property
    def socket(self) -> socket.socket:
        """The TCP connection."""
        return self._tls.raw

    async def shake_hands(self) -> None:
        """Shake hands.

        Raises:
            OSError: that failed; TimeoutError: it is not complete within `HANDSHAKE_S`.
        """
        async with asyncio.timeout(HANDSHAKE_S):
            while not self._tls.shake_hands():
                await (self._writable() if self._tls.stuck else self._readable())

    async def receive_into(self, view: memoryview) -> int:
        """Read at least one byte; return how many, 0 at the end."""
        while True:
            try:
                return self._tls.recv_into(view, len(view))
            except BlockingIOError:
                await self._readable()

    async def send_all(self, data: Buffer) -> None:
        """Send all of these bytes."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._tls.send(rest) :]
            except BlockingIOError:
                await self._writable()

    async def _readable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_reader(self._tls.fileno(), _set, ready)
        try:
            await ready
        finally:
            self._loop.remove_reader(self._tls.fileno())

    async def _writable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(self._tls.fileno(), _set, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(self._tls.fileno())

    def refuse(self, why: OSError) -> None:
        """Close the connection after a handshake that failed, and let the peer know why where TLS can."""
        self._tls.tell(why)
        self.close()

    def close(self) -> None:
        """Close it, with what is queued still to go out."""
        if self._tls.fileno() >= 0:
            sockets.finish(self._tls)


class Trust:
    """Whose certificates of brokers are accepted; the file is read again when it has changed."""

    def __init__(self, ca: Path | None, brokers: tuple[Address, ...]) -> None:
        """Trust those in the file `ca`, by default the system's, where any of the `brokers` speaks TLS.

        Raises:
            StartError: the file cannot be used.
        """
        self._log = LimitedLog()
        self._ca = ca
        self._context = self._reloaded(ca, brokers)

    def reconfigured(self, ca: Path | None, brokers: tuple[Address, ...]) -> Callable[[], None]:
        """Prepare for another file; return what applies it, to handshakes from then on, and cannot fail.

        Raises:
            StartError: the file cannot be used; nothing has changed.
        """
        context = self._reloaded(ca, brokers)

        def apply() -> None:
            self._ca, self._context = ca, context

        return apply

    @staticmethod
    def _reloaded(ca: Path | None, brokers: tuple[Address, ...]) -> "Reloaded[ssl.SSLContext | None]":
        files = [] if ca is None else [ca]
        found = Reloaded[ssl.SSLContext | None](lambda: files, lambda _: link_context(ca), None)
        if any(each.has_certificate for each in brokers):
            try:
                found.refresh()
            except ConfigError as exc:
                raise StartError(str(exc)) from exc
        return found

    @property
    def context(self) -> ssl.SSLContext:
        """The present context, of which there is one if any broker speaks TLS."""
        try:
            if self._context.refresh():
                logger.bind(event="server_ca").info("server-ca {}: read again", self._ca)
        except ConfigError as exc:
            self._log.say("server_ca", f"{exc}; keeping the certificates read before")
        assert self._context.value is not None
        return self._context.value


class LinkTls:
    """TLS with the broker of one host (brokers.Tls)."""

    def __init__(self, host: str, trust: Trust) -> None:
        """Require a certificate for `host` that `trust` accepts."""
        self._host = host.rstrip(".")
        self._trust = trust

    async def wrap(self, sock: socket.socket) -> LinkTransport:
        """Take over a connection, and shake hands.

        Raises:
            OpenError: there is no TLS, or the certificate is not accepted; the connection is closed.
        """
        transport = LinkTransport(TlsSocket(sock, self._trust.context, UNWATCHED, host=self._host))
        try:
            await transport.shake_hands()
        except OSError as exc:
            transport.refuse(exc)
            raise _failed(exc) from exc
        except BaseException:
            transport.close()
            raise
        return transport


def tls_of(broker: Address, trust: Trust) -> LinkTls | None:
    """Return the TLS with a broker, if it speaks any."""
    return LinkTls(broker.host or "127.0.0.1", trust) if broker.tls else None


class _Unwatched:
    """What a socket tells that no poller watches (tls.Holder)."""

    def hold(self, fd: int, *, holds: bool) -> None:
        """Ignore it: it is read until it would block."""


UNWATCHED: Final = _Unwatched()


def _failed(exc: OSError) -> OpenError:
    match exc:
        case ssl.SSLCertVerificationError():
            return OpenError(Cause.CERTIFICATE, reason(exc))
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return OpenError(Cause.TLS, "it does not speak TLS")
        case ssl.SSLError():
            return OpenError(Cause.TLS, f"the handshake fails: {reason(exc)}")
        case TimeoutError():
            return OpenError(Cause.TLS, f"the handshake is not complete within {HANDSHAKE_S:g} s")
        case _:
            return OpenError(Cause.TLS, "it disconnects in the handshake")


def _set(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
