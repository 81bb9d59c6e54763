"""Writes requests and responses from what was parsed. Sans-IO.

Nothing is checked again: fields are only those that were parsed or our own, and bodies have the lengths that were
counted.
"""

from http import HTTPStatus

from goreprox.http import own_responses
from goreprox.http.messages import Fields, Request, Response
from goreprox.http.observer import Observer
from goreprox.http.reply import BODILESS

CLOSE = (b"Connection", b"close")


def request_head(request: Request, fields: Fields) -> bytes:
    """Return the header section of a request that is passed on with these fields."""
    return _head(b"%b %b HTTP/1.1" % (request.method, request.target), fields)


def plain_head(request: Request, fields: Fields) -> bytes:
    """Return the header section of a request in its own version."""
    return _head(b"%b %b HTTP/%b" % (request.method, request.target, request.version), fields)


def interim_head(event: Response, fields: Fields) -> bytes:
    """Return the header section of a 1xx response that is passed on with these fields."""
    return _head(b"HTTP/1.1 %d %b" % (event.status, event.reason), fields)


def chunk(data: bytes) -> bytes:
    """Return a part of a body, not empty, as a chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: Fields) -> bytes:
    """Return the end of a chunked body."""
    return _head(b"0", trailers)


def _head(first: bytes, fields: Fields) -> bytes:
    return b"".join((first, b"\r\n", *[b"%b: %b\r\n" % field for field in fields], b"\r\n"))


def refusal(status: HTTPStatus, text: str) -> bytes:
    """Return a whole response to what cannot be read as a request."""
    fields, body = own_responses.body(status, text, b"")
    response = ResponseWriter(None)
    return response.head(status, status.phrase.encode(), fields, last=True) + response.body(body)


class ResponseWriter:
    """Writes the response to one request, or to what cannot be read as one, framed for its client (RFC 9112, 6.3)."""

    __slots__ = ("_bodiless", "_chunked", "_old", "begun", "body_bytes", "last", "observer", "status")

    def __init__(self, request: Request | None) -> None:
        self._bodiless = request is not None and request.method == b"HEAD"
        self._old = request is not None and request.version == b"1.0"
        self._chunked = False
        self.last = request is None or not request.keeps_alive
        """Whether the connection ends with the response."""
        self.begun = False
        """Whether the final response's header section is written."""
        self.status = 0
        self.body_bytes = 0
        self.observer: Observer | None = None

    def head(self, status: int, reason: bytes, fields: Fields, *, last: bool) -> bytes:
        """Return the header section. The connection ends with the `last` response, or if only that shows its end."""
        framing: Fields = []
        self.last = self.last or last
        self._bodiless = self._bodiless or status in BODILESS
        if status not in BODILESS and not any(name.lower() == b"content-length" for name, _ in fields):
            if self._old:
                self.last = True
            else:
                self._chunked = True
                framing.append((b"Transfer-Encoding", b"chunked"))
        if self.last:
            framing.append(CLOSE)
        self.begun = True
        self.status = status
        head = _head(b"HTTP/1.1 %d %b" % (status, reason), fields + framing)
        if self.observer is not None:
            self.observer.response_head(status, head)
        return head

    def body(self, data: bytes) -> bytes:
        """Return a part of the body, not empty."""
        if self._bodiless:
            return b""
        if self.observer is not None:
            self.observer.response_part(data)
        self.body_bytes += len(data)
        return chunk(data) if self._chunked else data

    def end(self, trailers: Fields) -> bytes:
        """Return the end of the body; trailers are for chunked ones only."""
        if trailers and self.observer is not None:
            self.observer.response_end(trailers)
        return last_chunk(trailers) if self._chunked and not self._bodiless else b""

    def switch(self, event: Response, fields: Fields) -> bytes:
        """Return the header section of a 101 response, behind which HTTP ends."""
        self.status = event.status
        head = interim_head(event, fields)
        if self.observer is not None:
            self.observer.response_head(event.status, head)
        return head
