"""TLS on a socket of a client or a target: bridges and HTTP use it like a plain socket (RFC 8446, RFC 5246).

OpenSSL is given bytes in memory, not the socket: on the socket, Python's way to send close_notify would also read, and
discard what the client is still sending.

    FIN of the target    -> close_notify, FIN         close_notify of the client      -> FIN to the target
    reset of the target  -> RST, no close_notify      FIN or RST without close_notify -> reset of the target

Buffers of a connection beside its stream, where a record is 16 KiB of plaintext in at most 18,437 bytes (RFC 5246,
6.2.3):

    a part of a record, in OpenSSL     1
    decrypted, not yet read            2: before it is read, nothing more is received; one read may complete such a part
    encrypted, not yet sent            1
    two MemoryBIO                      1 and a third each (BUF_MEM_grow); they never shrink

so at most 128 KiB where both directions are stuck, and 48 KiB where the connection idles after much traffic. OpenSSL's
own state of a connection takes 22 KiB, 51 KiB during the handshake (measured: 1,000 connections, OpenSSL 3). None of it
is part of `--memory`: 10,000 idle connections, the default limit, would take most of its default.
"""

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from goreprox.net import client_hello
from goreprox.net.certificates import reason
from goreprox.net.client_hello import ClientHello, Malformed
from goreprox.net.identity import Identity
from goreprox.protocol.events import Buffer

PLAINTEXT_BYTES: Final = 16 * 1024
"""Plaintext of one record."""
RECORD_BYTES: Final = 5 + PLAINTEXT_BYTES + 2048
"""The largest record: header, plaintext, and what TLS 1.2 allows to be added (RFC 5246, 6.2.3)."""
_NO_TLS: Final = b"\x15\x03\x03\0\2\2\x46"
"""A fatal alert, protocol_version (RFC 8446, 6)."""
REPLIES_BYTES: Final = 64 * 1024
"""Replies to a peer's KeyUpdates (RFC 8446, 4.6.3) that may wait for it to read them."""


class Holder(Protocol):
    """Is told which sockets have something to read that the kernel knows nothing of (poller.Poller)."""

    def hold(self, fd: int, *, holds: bool) -> None:
        """Treat `fd` as readable, or no longer."""


class TlsSocket:
    """Owns the prepared socket of a client or a target, and puts TLS on it (sockets.Socket).

    `send` and `sendmsg` count what the kernel has taken in whole records. Give the rest again, unchanged, once the
    socket is writable: its record is made already.
    """

    __slots__ = (
        "_choose",
        "_encrypted",
        "_end",
        "_fd",
        "_hello",
        "_incoming",
        "_outgoing",
        "_owed",
        "_plaintext",
        "_poller",
        "_said_goodbye",
        "_sock",
        "_tls",
        "was_chosen",
    )

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        poller: Holder,
        *,
        host: str | None = None,
        choose: Callable[[ClientHello], ssl.SSLContext | None] | None = None,
    ) -> None:
        """Take over `sock`; call `shake_hands` next. With a `host` the peer is the server of that name.

        `choose` may return another context for a client, after its first message.
        """
        self._sock = sock
        self._fd = sock.fileno()
        self._poller = poller
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._choose = choose
        self._hello = bytearray()
        """The first message of a client as long as it is not whole, if there is a choice."""
        self.was_chosen = False
        """Whether there was another context for it."""
        self._plaintext = memoryview(b"")
        """Decrypted, not yet read."""
        self._end: OSError | bool = False
        """What follows: an error, or (True) the end of file."""
        self._encrypted = memoryview(b"")
        self._owed = 0
        """Bytes of plaintext whose records wait there, and were not counted as sent."""
        self._said_goodbye = False

    def shake_hands(self) -> bool:
        """Continue the handshake as far as the socket is ready; return whether it is complete.

        Raises:
            OSError: it failed, or the client is gone.
        """
        while True:
            done = True
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            sent = self.flush()
            if done and sent:
                self._decrypt()
                self._note_readable()
                return True
            if not sent:
                return False
            data = self._receive()
            if data is None:
                return False
            self._incoming.write(data if self._choose is None else self._look(data, self._choose))

    def _look(self, data: bytes, choose: Callable[[ClientHello], ssl.SSLContext | None]) -> bytes:
        """Keep what comes of the client's first message until it is whole; return what OpenSSL gets of it."""
        self._hello += data
        try:
            hello = client_hello.read(self._hello)
        except Malformed:
            hello = None  # which OpenSSL says in its own way
        else:
            if hello is None:
                return b""
            context = choose(hello)
            if context is not None:
                self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
                self.was_chosen = True
        self._choose, data = None, bytes(self._hello)
        self._hello.clear()
        return data

    def tell(self, why: OSError, plaintext: bytes = b"") -> None:
        """Tell the peer why the handshake failed, as far as its socket takes it.

        That is `plaintext` to a client that speaks HTTP instead, and to one that speaks neither an alert, of which
        OpenSSL makes none then.
        """
        with contextlib.suppress(OSError):  # the peer is gone
            match why:
                case ssl.SSLError(reason="HTTP_REQUEST"):
                    self._sock.send(plaintext)
                case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
                    self._sock.send(_NO_TLS)
                case _:
                    pass
            self.flush()

    @property
    def stuck(self) -> bool:
        """Whether encrypted bytes wait until the socket is writable."""
        return bool(self._encrypted)

    @property
    def raw(self) -> socket.socket:
        """The socket itself, for the kernel to be asked about it."""
        return self._sock

    @property
    def protocol(self) -> str | None:
        """The protocol that both have chosen by ALPN, if any."""
        return self._tls.selected_alpn_protocol()

    @property
    def identity(self) -> Identity | None:
        """What the peer's certificate says, if one was required."""
        der = self._tls.getpeercert(binary_form=True)
        return None if der is None else Identity.of(self._tls.getpeercert(), der)

    # What a socket can do (sockets.Socket).

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._sock.fileno()

    def getsockopt(self, level: int, option: int, /) -> int:
        """Return an option of the socket."""
        return self._sock.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """Set an option of the socket."""
        self._sock.setsockopt(level, option, value)

    def recv_into(self, view: memoryview, most: int, /) -> int:
        """Read at most `most` bytes of plaintext into `view`; return how many, 0 after the peer's close_notify.

        Raises:
            BlockingIOError: there are none yet.
            OSError: the connection failed, or ended without close_notify.
        """
        taken, more = 0, True
        while True:
            count = min(len(self._plaintext), most - taken)
            if count:
                view[taken : taken + count] = self._plaintext[:count]
                self._plaintext = self._plaintext[count:]
                taken += count
            if taken == most or self._end or not more:
                break
            more = self._read()
        if taken:
            self._note_readable()
            return taken
        self._poller.hold(self._fd, holds=False)
        if isinstance(self._end, OSError):
            raise self._end
        if self._end:
            return 0
        raise _not_now()

    def send(self, data: Buffer, /) -> int:
        """Send plaintext; return how many bytes of it.

        Raises:
            BlockingIOError: the socket takes none now.
            OSError: the connection failed.
        """
        return self.sendmsg((data,))

    def sendmsg(self, buffers: Iterable[Buffer], /) -> int:
        """Send plaintext; return how many bytes of it.

        Raises:
            BlockingIOError: the socket takes none now.
            OSError: the connection failed.
        """
        if not self.flush():
            return self._owe(self._owed, 0)
        if self._owed:
            return self._owe(self._owed, self._owed)
        made = sent = 0
        for plaintext in _plaintexts(buffers):
            made += self._tls.write(plaintext)
            try:
                flushed = self.flush()
            except OSError:
                if not sent:
                    raise
                flushed = False  # the next call raises it again; what went out before it counts
            if not flushed:
                break
            sent = made
        return self._owe(made, sent)

    def _owe(self, made: int, sent: int) -> int:
        """Note that `made` bytes are in records, `sent` of them with the kernel; return these."""
        self._owed = made - sent
        if not sent:
            raise _not_now()
        return sent

    def shutdown(self, how: int, /) -> None:
        """Send close_notify, then FIN; `how` is SHUT_WR.

        Raises:
            BlockingIOError: call again once the socket is writable.
            OSError: the connection failed.
        """
        assert how == socket.SHUT_WR
        if not self._said_goodbye:
            self._said_goodbye = True
            # All that was received is decrypted, so it discards nothing; what it wants is the peer's close_notify.
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
        if not self.flush():
            raise _not_now()
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket without close_notify."""
        self._poller.hold(self._fd, holds=False)
        self._sock.close()

    # Records.

    def _read(self) -> bool:
        """Receive once, and decrypt; return whether there may be more."""
        try:
            data = self._receive()
        except OSError as exc:
            self._end = exc
            return False
        if data is None:
            return False
        self._incoming.write(data)
        self._decrypt()
        return len(data) == RECORD_BYTES

    def _receive(self) -> bytes | None:
        """Return what the socket has received, or None if there is nothing yet.

        Raises:
            OSError: the connection failed, or ended without close_notify.
        """
        try:
            data = self._sock.recv(RECORD_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the peer left without close_notify")
        return data

    def _decrypt(self) -> None:
        """Decrypt all that was received."""
        parts: list[Buffer] = [self._plaintext] if self._plaintext else []
        try:
            while data := self._tls.read(PLAINTEXT_BYTES):
                parts.append(data)
            self._end = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end = True
        except ssl.SSLError as exc:
            self._end = ConnectionAbortedError(errno.ECONNABORTED, f"TLS: {reason(exc)}")
        self._plaintext = memoryview(b"".join(parts))
        if self._outgoing.pending:  # a reply to a KeyUpdate, or an alert
            with contextlib.suppress(OSError):  # the next read or write raises it again
                self.flush()
        if self._outgoing.pending > REPLIES_BYTES:
            self._end = ConnectionAbortedError(errno.ECONNABORTED, "the peer does not read replies to its KeyUpdates")

    def _note_readable(self) -> None:
        """Tell the poller whether there is something to read here: the kernel knows nothing of it."""
        self._poller.hold(self._fd, holds=bool(self._plaintext) or bool(self._end))

    def flush(self) -> bool:
        """Send what is encrypted; return whether the kernel has all of it.

        Raises:
            OSError: the connection failed.
        """
        while True:
            if not self._encrypted:
                if not self._outgoing.pending:
                    return True
                self._encrypted = memoryview(self._outgoing.read())
            try:
                sent = self._sock.send(self._encrypted)
            except BlockingIOError:
                return False
            self._encrypted = self._encrypted[sent:]


def _plaintexts(buffers: Iterable[Buffer]) -> Iterator[Buffer]:
    """Yield the plaintext of one record after the other, from buffers that are cut and joined for it.

    A peer reads nothing of a record of which it has only a part: so what `send` does not count, it does not know.
    """
    parts: list[Buffer] = []
    size = 0
    for buffer in buffers:
        rest = memoryview(buffer)
        while size + len(rest) >= PLAINTEXT_BYTES:
            parts.append(rest[: PLAINTEXT_BYTES - size])
            rest = rest[PLAINTEXT_BYTES - size :]
            yield b"".join(parts) if size else parts[0]
            parts.clear()
            size = 0
        if rest:
            parts.append(rest)
            size += len(rest)
    if parts:
        yield b"".join(parts)


def _not_now() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
