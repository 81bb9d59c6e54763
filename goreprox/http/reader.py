"""Parses what an HTTP client sends: one request after the other. Sans-IO.

    HEAD --a whole head--> BODY --its end was read--> WHOLE --advance--> HEAD
                                --malformed--> BROKEN

Whatever is asked in a phase that it is not for gets nothing, or False.
"""

import enum
import re
from typing import Final

from goreprox.config.http import DEFAULT_LIMITS, Limits
from goreprox.http.bodies import Body, Chunked, Sized
from goreprox.http.heads import BAD_IN_HEAD, parse_request
from goreprox.http.messages import EndOfMessage, Malformed, Request
from goreprox.http.requests import Rejected

AHEAD: Final = 16 * 1024
"""Bytes of later requests that are read before a response is whole, and by which the end of a client is noticed. They
fit into the two reservations, 13 KiB by default, that a client without a stream does not use."""
CHUNKED_READ: Final = 64 * 1024
"""Bytes of a chunked body that are read at once: any number of them may be of later requests."""
_END: Final = b"\r\n\r\n"
_BLANK: Final = re.compile(rb"(?:\r\n)+")


class _Phase(enum.Enum):
    HEAD = enum.auto()
    """No whole head has come."""
    BODY = enum.auto()
    """The request's end has not been read, which it may be before an empty body, too."""
    WHOLE = enum.auto()
    """It has; what is behind it is kept for the next request."""
    BROKEN = enum.auto()
    """Nothing else can be read."""


class Reader:
    """Parses one client's bytes: a request by `head`, then `body` until its end; `advance` continues with the next."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._most = limits.head_bytes
        self._phase = _Phase.HEAD
        self._raw = b""
        """What has been received and not parsed."""
        self._scanned = 0
        """Bytes of it that were searched for the end of the head."""
        self._body: Body = Sized(0)
        """Of the request whose head is complete."""

    @property
    def empty(self) -> bool:
        """Whether not even the first byte of a request is here."""
        return self._phase is _Phase.HEAD and not self._raw

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and not ended."""
        return self._phase is _Phase.HEAD and bool(self._raw)

    @property
    def begun(self) -> bytes:
        """What has come of the next request, no byte of which was used."""
        return self._raw if self._phase is _Phase.HEAD else b""

    @property
    def in_body(self) -> bool:
        """Whether the request's end has not been read, which it may be before an empty body, too."""
        return self._phase is _Phase.BODY

    @property
    def full(self) -> bool:
        """Whether enough of later requests was read."""
        return len(self.ahead) >= AHEAD

    @property
    def wanted(self) -> int:
        """How many bytes to read at once at most: of later requests no more than `CHUNKED_READ` are ever held."""
        if not self.in_body:
            return self._most
        return self._body.left + AHEAD if isinstance(self._body, Sized) else CHUNKED_READ

    @property
    def chunked(self) -> bool:
        """Whether the body of the request is chunked."""
        return isinstance(self._body, Chunked)

    @property
    def ahead(self) -> bytes:
        """What was read behind the request."""
        return self._raw if self._phase is _Phase.WHOLE else b""

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        self._raw = self._raw + data if self._raw else data

    def head(self) -> Request | None:
        """Return the next request, once its head is there.

        Raises:
            Rejected: it is malformed or too long; nothing else can be read.
        """
        if self._phase is not _Phase.HEAD:
            return None
        if blank := _BLANK.match(self._raw):  # RFC 9112, 2.2
            self._raw = self._raw[blank.end() :]
        raw, most = self._raw, self._most
        end = raw.find(_END, max(0, self._scanned - len(_END)), most)
        if end < 0:
            if BAD_IN_HEAD.search(raw, max(0, self._scanned - 1), most):  # no head comes: do not wait for it
                raise Rejected(400, "the header section is malformed")
            if len(raw) >= most:
                raise Rejected(431, f"the header section has more than {most} bytes")
            self._scanned = len(raw)
            return None
        end += len(_END)
        request = parse_request(raw[:end])
        self._raw = raw[end:]
        self._scanned = 0
        self._body = Chunked(max_trailer=most) if request.chunked else Sized(request.length or 0)
        self._phase = _Phase.BODY
        return request

    def body(self) -> tuple[bytes, EndOfMessage | None]:
        """Return what has arrived of the body, and its end if that has; nothing after its end.

        Raises:
            Rejected: it is malformed; nothing else can be read.
        """
        if self._phase is not _Phase.BODY:
            return b"", None
        try:
            body, self._raw = self._body.take(self._raw)
        except Malformed as exc:
            self._phase = _Phase.BROKEN
            raise Rejected(400, "the body is malformed") from exc
        if not self._body.over:
            return body, None
        self._phase = _Phase.WHOLE
        return body, EndOfMessage(self._body.trailers)

    def skip(self) -> bool:
        """Skip the rest of the request; return whether all of it is here and sound: else no other can be found."""
        try:
            self.body()
        except Rejected:
            return False
        return self._phase is _Phase.WHOLE

    def advance(self) -> bool:
        """Go on to the next request; return whether there can be one: the present one was read to its end."""
        if self._phase is not _Phase.WHOLE:
            return False
        self._phase = _Phase.HEAD
        return True
