"""Parses what an HTTP client sends: header sections, checked before h11 has them, and bodies. Sans-IO.

h11 parses, with a new connection for each request. What h11 accepts, others read differently, and only the bytes show,
is rejected before h11 has it: header sections here, in chunked bodies by `chunks`.
"""

from typing import Final

import h11

from goreprox.config.http import DEFAULT_LIMITS, Limits
from goreprox.http.chunks import Chunks
from goreprox.http.requests import BAD_IN_HEAD, Rejected, value_of

AHEAD: Final = 16 * 1024
"""Bytes of later requests that are read before a response is whole, and by which the end of a client is noticed. They
fit into the two reservations, 13 KiB by default, that a client without a stream does not use."""
CHUNKED_READ: Final = 64 * 1024
"""Bytes of a chunked body that are read at once: any number of them may be of later requests."""
_END: Final = b"\r\n\r\n"
_BLANK: Final = b"\r\n"
_LAST: Final = (h11.SEND_BODY, h11.MUST_CLOSE, h11.ERROR)
"""States of h11 after which no other request can be read."""


class Reader:
    """Parses one client's bytes: a request by `head`, then `body` until its end; `advance` continues with the next."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._most = limits.head_bytes
        self._head = bytearray()
        self._scanned = 0
        self._message: h11.Connection | None = None
        """Parses the request whose header section is complete."""
        self._chunks: Chunks | None = None
        """Checks its body, if that is chunked."""
        self._left = 0
        """Bytes of its body that have not arrived, if its length is known."""

    @property
    def empty(self) -> bool:
        """Whether not even the first byte of a request is here."""
        return self._message is None and not self._head

    @property
    def in_head(self) -> bool:
        """Whether a header section has begun and not ended."""
        return self._message is None and bool(self._head)

    @property
    def in_body(self) -> bool:
        """Whether the request's end has not been read, which it may be before an empty body, too."""
        return self._message is not None and self._message.their_state is h11.SEND_BODY

    @property
    def full(self) -> bool:
        """Whether enough of later requests was read."""
        return self._message is not None and not self.in_body and len(self.ahead) >= AHEAD

    @property
    def wanted(self) -> int:
        """How many bytes to read at once at most: of later requests no more than `CHUNKED_READ` are ever held."""
        if not self.in_body:
            return self._most
        return CHUNKED_READ if self.chunked else self._left + AHEAD

    @property
    def chunked(self) -> bool:
        """Whether the body of the request is chunked."""
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
        """Return the next request, once its header section is there.

        Raises:
            Rejected: it is malformed or too long; nothing else can be read.
        """
        head, most = self._head, self._most
        while head.startswith(_BLANK):  # RFC 9112, 2.2
            del head[: len(_BLANK)]
        end = head.find(_END, max(0, self._scanned - len(_END)), most)
        seen = most if end < 0 else end + len(_END)
        if BAD_IN_HEAD.search(head, max(0, self._scanned - 2), seen):
            raise Rejected(400, "the header section is malformed")
        if end < 0:
            if len(head) >= most:
                raise Rejected(431, f"the header section has more than {most} bytes")
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
            raise Rejected(exc.error_status_hint, "the header section is malformed") from exc
        assert isinstance(request, h11.Request)
        chunked = value_of(request, b"transfer-encoding") is not None
        self._chunks = Chunks(max_trailer=most) if chunked else None
        self._left = int(value_of(request, b"content-length") or 0)
        self._to_h11(message, behind)
        return request

    def body(self) -> tuple[bytes, h11.EndOfMessage | None]:
        """Return what has arrived of the body, and its end if that has; nothing after its end.

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
        """Skip the rest of the request; return whether all of it is here and sound: else no other can be found."""
        if self._message is None:
            return False
        try:
            self.body()
        except Rejected:
            return False
        return self._message.their_state not in _LAST

    def advance(self) -> bool:
        """Continue with the next request; return whether one may follow."""
        message = self._message
        if message is None:
            return False
        assert message.their_state not in _LAST  # else its response was the last
        self._head += self.ahead
        self._message = None
        return True
