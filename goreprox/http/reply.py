"""Parses what a target sends in response to one request. Sans-IO.

    HEAD --a final head--> BODY --its end--> WHOLE
         --an interim one--> HEAD
         --101, where it was asked for--> SWITCHED

What cannot become a response is rejected at once, since a client waits. Blank lines before a head are skipped (RFC
9112, 2.2).
"""

import enum
import re
from http import HTTPStatus
from typing import Final

from goreprox.http.bodies import Body, Chunked, Sized, UntilClose
from goreprox.http.heads import parse_response
from goreprox.http.messages import EndOfMessage, Malformed, Response

MAX_HEAD: Final = 64 * 1024
"""Bytes of a head, and of the trailers of a chunked body."""
BODILESS: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_START: Final = b"HTTP/"
_END: Final = re.compile(rb"\n\r?\n")
_BLANK: Final = re.compile(rb"(?:\r?\n)+")


class _Phase(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    WHOLE = enum.auto()
    SWITCHED = enum.auto()


class Reply:
    """Parses a final response, and the interim ones before it."""

    def __init__(self, *, to_head: bool, may_switch: bool) -> None:
        """Expect a response to a request, `to_head` if its method is HEAD, which `may_switch` protocols."""
        self._to_head = to_head
        self._may_switch = may_switch
        self._phase = _Phase.HEAD
        self._raw = b""
        """What has been received and not parsed."""
        self._scanned = 0
        """Bytes of it that were searched for the end of a head."""
        self._body: Body = Sized(0)
        self._ended = False
        """Whether the target has ended its side."""
        self._last = False
        """Whether no other response may follow: the connection ends, or others see the end of this one elsewhere."""

    @property
    def reusable(self) -> bool:
        """Whether the response is whole, and another may follow; nothing has come of it, since nobody asked."""
        return self._phase is _Phase.WHOLE and not self._last and not self._raw

    @property
    def behind(self) -> bytes:
        """What has come behind all that was parsed."""
        return self._raw

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        self._raw = self._raw + data if self._raw else data

    def receive_eof(self) -> None:
        """Take note that the target has ended its side."""
        self._ended = True

    def next_event(self) -> Response | bytes | EndOfMessage | None:
        """Return the next head, part of a body or end, or None if there is none yet.

        Raises:
            Malformed: it is malformed or truncated; nothing else can be read.
        """
        if self._phase is _Phase.HEAD:
            return self._next_head()
        if self._phase is not _Phase.BODY:
            return None
        data, self._raw = self._body.take(self._raw)
        if data:
            return data
        if self._ended:
            self._body.take_eof()
        if not self._body.over:
            return None
        self._phase = _Phase.WHOLE
        return EndOfMessage(self._body.trailers)

    def _next_head(self) -> Response | None:
        if blank := _BLANK.match(self._raw):
            self._raw = self._raw[blank.end() :]
        raw = self._raw
        if not raw.startswith(_START[: len(raw)]) and raw != b"\r":
            raise Malformed("this is not HTTP")
        end = _END.search(raw, max(0, self._scanned - 2), MAX_HEAD)
        if end is None:
            if len(raw) >= MAX_HEAD:
                raise Malformed(f"a head of more than {MAX_HEAD} bytes")
            if self._ended:
                raise Malformed("the head is truncated")
            self._scanned = len(raw)
            return None
        response = parse_response(raw[: end.end()])
        self._raw = raw[end.end() :]
        self._scanned = 0
        self._begin(response)
        return response

    def _begin(self, response: Response) -> None:
        """Find out what follows a head (RFC 9112, 6.3)."""
        if response.switches:
            if not self._may_switch:
                raise Malformed("it switches protocols, which nobody asked for")
            self._phase = _Phase.SWITCHED
        elif not response.interim:
            self._phase = _Phase.BODY
            self._last = not response.keeps_alive or (response.chunked and response.length is not None)
            if self._to_head or response.status in BODILESS:
                self._body = Sized(0)
            elif response.chunked:
                self._body = Chunked(max_trailer=MAX_HEAD, lenient=True)
            elif response.length is not None:
                self._body = Sized(response.length)
            else:
                self._body = UntilClose()
                self._last = True
