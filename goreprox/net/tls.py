"""TLS on a socket of a client or a target: what bridges and HTTP call is that of a socket, what the peer sees is TLS.

Knows sockets and records (RFC 8446, RFC 5246 with OpenSSL's SSLObject); neither streams nor where certificates are
from. OpenSSL is given bytes in memory, not the socket: on the socket, Python's way to say close_notify would also read,
and throw away what the client is still sending.

    FIN of the target    -> close_notify, FIN         close_notify of the client      -> FIN to the target
    reset of the target  -> RST, no close_notify      FIN or RST without close_notify -> reset of the target

Memory of a connection beyond its stream, where a record is 16 KiB of text in at most 18,437 bytes (RFC 5246, 6.2.3):

    a part of a record, in OpenSSL     1
    decrypted, not yet taken           2: before it is taken, nothing is read; one read completes such a part, too
    encrypted, not yet sent            1
    two MemoryBIO                      1 and a third each (BUF_MEM_grow); they never shrink

so at most 128 KiB where both directions are stuck, and 48 KiB where the connection idles after much traffic.
"""

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from typing import Final

from goreprox.net.certificates import Identity, reason
from goreprox.net.poller import Poller
from goreprox.protocol.events import Buffer

TEXT_BYTES: Final = 16 * 1024
"""In one record."""
RECORD_BYTES: Final = 5 + TEXT_BYTES + 2048
"""The largest: header, text, and what TLS 1.2 allows to be added (RFC 5246, 6.2.3)."""
REPLIES_BYTES: Final = 64 * 1024
"""Of replies to the client's KeyUpdates (RFC 8446, 4.6.3) that it does not read."""


class TlsSocket:
    """A prepared socket of a client, or of a target, with TLS (sockets.Socket). Owns it.

    `send` and `sendmsg` return what the kernel has in whole records. What did not fit is to be given again, as it was,
    once the socket is writable: its record is made already.
    """

    __slots__ = (
        "_encrypted",
        "_end",
        "_fd",
        "_incoming",
        "_outgoing",
        "_owed",
        "_poller",
        "_said_goodbye",
        "_sock",
        "_text",
        "_tls",
    )

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, poller: Poller, *, host: str | None = None
    ) -> None:
        """Take over `sock`; `shake_hands` is next. With a `host`, its name, the peer is a server and we the client."""
        self._sock = sock
        self._fd = sock.fileno()
        self._poller = poller
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._text = memoryview(b"")
        """Decrypted, not yet taken."""
        self._end: OSError | bool = False
        """What comes after it: an error, or (True) the end of file."""
        self._encrypted = memoryview(b"")
        self._owed = 0
        """How many bytes of text are in records there."""
        self._said_goodbye = False

    def shake_hands(self) -> bool:
        """Go on with the handshake, as far as the socket is ready; return whether it is over.

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
                self._note_text()
                return True
            if not sent:
                return False
            data = self._receive()
            if data is None:
                return False
            self._incoming.write(data)

    def say_plainly(self, data: bytes) -> None:
        """Tell a client without TLS, which is to end now, as much as its socket takes.

        Raises:
            OSError: it is gone.
        """
        self._sock.send(data)

    @property
    def stuck(self) -> bool:
        """Whether something waits until the socket is writable."""
        return bool(self._encrypted)

    @property
    def identity(self) -> Identity | None:
        """What the client's certificate says, if it had to have one."""
        der = self._tls.getpeercert(binary_form=True)
        return None if der is None else Identity.of(self._tls.getpeercert(), der)

    # What a socket can do.

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
        """Read text into `view`; return how much, 0 after the client's close_notify.

        Raises:
            BlockingIOError: there is none yet.
            OSError: the connection failed, or ended without close_notify.
        """
        taken, more = 0, True
        while True:
            count = min(len(self._text), most - taken)
            if count:
                view[taken : taken + count] = self._text[:count]
                self._text = self._text[count:]
                taken += count
            if taken == most or self._end or not more:
                break
            more = self._read()
        if taken:
            self._note_text()
            return taken
        self._poller.hold(self._fd, holds=False)
        if isinstance(self._end, OSError):
            raise self._end
        if self._end:
            return 0
        raise _not_now()

    def send(self, data: Buffer, /) -> int:
        """Send text; return how much of it.

        Raises:
            BlockingIOError: none for now.
            OSError: the connection failed.
        """
        return self.sendmsg((data,))

    def sendmsg(self, buffers: Iterable[Buffer], /) -> int:
        """Send text; return how much of it.

        Raises:
            BlockingIOError: none for now.
            OSError: the connection failed.
        """
        if not self.flush():
            return self._owe(self._owed, 0)
        if self._owed:
            return self._owe(self._owed, self._owed)
        made = sent = 0
        for text in _texts(buffers):
            made += self._tls.write(text)
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
        """Keep in mind how much text is in records that wait; return how much does not."""
        self._owed = made - sent
        if not sent:
            raise _not_now()
        return sent

    def shutdown(self, how: int, /) -> None:
        """Say close_notify, and FIN after it (SHUT_WR).

        Raises:
            BlockingIOError: to be called again once the socket is writable.
            OSError: the connection failed.
        """
        assert how == socket.SHUT_WR
        if not self._said_goodbye:
            self._said_goodbye = True
            # All that came is decrypted, so it throws nothing away; what it wants is the client's close_notify.
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
        if not self.flush():
            raise _not_now()
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket, without a word."""
        self._poller.hold(self._fd, holds=False)
        self._sock.close()

    # Records.

    def _read(self) -> bool:
        """Read from the socket once, and decrypt; return whether there may be more."""
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
        """Return bytes of the socket, or None if there are none yet.

        Raises:
            OSError: the connection failed, or ended.
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
        parts: list[Buffer] = [self._text] if self._text else []
        try:
            while data := self._tls.read(TEXT_BYTES):
                parts.append(data)
            self._end = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end = True
        except ssl.SSLError as exc:
            self._end = ConnectionAbortedError(errno.ECONNABORTED, f"TLS: {reason(exc)}")
        self._text = memoryview(b"".join(parts))
        if self._outgoing.pending:  # a reply to a KeyUpdate, or an alert
            with contextlib.suppress(OSError):  # whoever reads or writes next is told
                self.flush()
        if self._outgoing.pending > REPLIES_BYTES:
            self._end = ConnectionAbortedError(errno.ECONNABORTED, "the client does not read what it asked for")

    def _note_text(self) -> None:
        """Have what is held here, or the end of it, read as soon as somebody will: the kernel knows nothing of it."""
        self._poller.hold(self._fd, holds=bool(self._text) or bool(self._end))

    def flush(self) -> bool:
        """Send what is encrypted; return whether all of it is with the kernel.

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


def _texts(buffers: Iterable[Buffer]) -> Iterator[Buffer]:
    """Divide and join buffers into the texts of one record each.

    The peer reads nothing of a record that it has only a part of: so what `send` does not count, it does not know.
    """
    parts: list[Buffer] = []
    size = 0
    for buffer in buffers:
        rest = memoryview(buffer)
        while size + len(rest) >= TEXT_BYTES:
            parts.append(rest[: TEXT_BYTES - size])
            rest = rest[TEXT_BYTES - size :]
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
