"""What an HTTP client sends: heads, each looked at before h11 sees it, and bodies. Pure: bytes in, messages out.

h11 parses, by a new connection for each request. What it puts up with, and others read otherwise, is refused before h11
has it where it can only be seen in the bytes: in heads here, in chunked bodies by `chunks`.
"""

from typing import Final

import h11

from goreprox.config.http import DEFAULT_LIMITS, Limits
from goreprox.http.chunks import Chunks
from goreprox.http.requests import BAD_IN_HEAD, Rejected, value_of

AHEAD: Final = 16 * 1024
"""Bytes of later requests that are read while one is being answered; also how the end of a client is noticed. A client
without a stream does not use its two floors, 13 KiB with default limits."""
CHUNKED_READ: Final = 64 * 1024
"""Bytes of a chunked body that are read at once, since nobody knows how many of them are of later requests."""
_END: Final = b"\r\n\r\n"
_BLANK: Final = b"\r\n"
_LAST: Final = (h11.SEND_BODY, h11.MUST_CLOSE, h11.ERROR)
"""The states of a client after which no other request can be read."""


class Reader:
    """One client's bytes. A request is read by `head`, then `body` until its end; `advance` lets go of it."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        """Begin with nothing read."""
        self._most = limits.head_bytes
        self._head = bytearray()
        self._scanned = 0
        self._message: h11.Connection | None = None
        """Of the request whose head was read."""
        self._chunks: Chunks | None = None
        """Looks at its body, if that is chunked."""
        self._left = 0
        """Bytes of its body that have not come, if their number is known."""

    @property
    def empty(self) -> bool:
        """Whether there is no request, not even the first byte of one."""
        return self._message is None and not self._head

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and not ended."""
        return self._message is None and bool(self._head)

    @property
    def in_body(self) -> bool:
        """Whether a body has not ended, though it may be empty so far."""
        return self._message is not None and self._message.their_state is h11.SEND_BODY

    @property
    def full(self) -> bool:
        """Whether enough was read of later requests."""
        return self._message is not None and not self.in_body and len(self.ahead) >= AHEAD

    @property
    def wanted(self) -> int:
        """How many bytes to read at once at most: of later requests no more than `CHUNKED_READ` are ever held."""
        if not self.in_body:
            return self._most
        return CHUNKED_READ if self.chunked else self._left + AHEAD

    @property
    def chunked(self) -> bool:
        """Whether the body of the request comes in chunks."""
        return self._chunks is not None

    @property
    def ahead(self) -> bytes:
        """What was read behind the request."""
        assert self._message is not None
        return self._message.trailing_data[0]

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        if self._message is None:
            self._head += data
            return
        self._to_h11(self._message, data)

    def _to_h11(self, message: h11.Connection, data: bytes) -> None:
        if self._chunks is not None and self.in_body:
            data = self._chunks.take(data)
        if data:
            message.receive_data(data)

    def head(self) -> h11.Request | None:
        """Return the next request, once its head is there.

        Raises:
            Rejected: it is malformed or too long; nothing else can be read.
        """
        head, most = self._head, self._most
        while head.startswith(_BLANK):  # RFC 9112, 2.2
            del head[: len(_BLANK)]
        end = head.find(_END, max(0, self._scanned - len(_END)), most)
        seen = most if end < 0 else end + len(_END)
        if BAD_IN_HEAD.search(head, max(0, self._scanned - 2), seen):
            raise Rejected(400, "the head of the request is malformed")
        if end < 0:
            if len(head) >= most:
                raise Rejected(431, f"the head of the request has more than {most} bytes")
            self._scanned = len(head)
            return None
        message = self._message = h11.Connection(h11.SERVER, max_incomplete_event_size=most)
        message.receive_data(bytes(head[:seen]))
        behind = bytes(head[seen:])
        self._head = bytearray()
        self._scanned = 0
        try:
            request = message.next_event()
        except h11.RemoteProtocolError as exc:
            raise Rejected(exc.error_status_hint, "the head is malformed") from exc
        assert isinstance(request, h11.Request)
        chunked = value_of(request, b"transfer-encoding") is not None
        self._chunks = Chunks(max_trailer=most) if chunked else None
        self._left = int(value_of(request, b"content-length") or 0)
        self._to_h11(message, behind)
        return request

    def body(self) -> tuple[bytes, h11.EndOfMessage | None]:
        """Return what has come of the body, and its end if it has come, too; nothing once that was returned.

        Raises:
            Rejected: it is malformed; nothing else can be read.
        """
        message = self._message
        assert message is not None
        if not self.in_body:
            return b"", None  # what follows the last request of a connection is ignored (RFC 9112, 9.6); h11 raises
        parts: list[bytes] = []
        try:
            while isinstance(event := message.next_event(), h11.Data):
                parts.append(event.data)
        except h11.RemoteProtocolError as exc:
            raise Rejected(400, "the body is malformed") from exc
        if self._chunks is not None and self._chunks.malformed:
            raise Rejected(400, "the body is malformed")
        end = event if isinstance(event, h11.EndOfMessage) else None
        body = b"".join(parts)
        self._left -= len(body)
        return body, end

    def skip(self) -> bool:
        """Whether what is left of the request is here, and skipped; else it is not known where the next one begins."""
        if self._message is None:
            return False
        try:
            self.body()
        except Rejected:
            return False
        return not self.in_body

    def advance(self) -> bool:
        """Let go of the request, and return whether another one may follow."""
        message = self._message
        if message is None or message.their_state in _LAST:
            return False
        self._head += self.ahead
        self._message = None
        return True
