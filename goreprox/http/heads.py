"""Parses heads, by httptools. Pure functions of a whole head each.

A head is bounded, and its end known, before httptools has it; bodies are ours (`bodies`). So it is never asked what it
cannot be told or does not tell: that no body follows, where one ends, or that the input has ended. What it says once
the fields are complete concerns the body, and is ignored. It finds what is malformed in lines and fields by itself:
what it lets through, and has to be judged here, are lines that are not exactly as it has read them (HTTP/0.9, other
protocols, several spaces, blank lines first), versions, codings, and control characters of a reason phrase.
"""

import re
from typing import Final

import httptools

from goreprox.http.bodies import MAX_LENGTH
from goreprox.http.messages import Fields, Malformed, Message, Request, Response
from goreprox.http.requests import Rejected

BAD_IN_HEAD: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]|(?<!\r)\n|\n[ \t]")
"""What is in no head of a request: control characters, a CR or LF alone, folded lines."""
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")
_BAD_IN_REASON: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_VERSIONS: Final = ("1.0", "1.1")
_CHUNKED: Final = [b"chunked"]
_SHOWN: Final = 200
"""Bytes of a malformed response that are logged."""


class _Parsed:
    """What httptools calls back with."""

    __slots__ = ("fields", "start", "whole")

    def __init__(self) -> None:
        self.start = b""
        """The target of a request, the reason phrase of a response."""
        self.fields: Fields = []
        self.whole = False

    def on_url(self, url: bytes) -> None:
        self.start = url

    on_status = on_url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.whole = True


def parse_request(head: bytes) -> Request:
    """Parse the head of a request, given to the end of its blank line, without any before it.

    Raises:
        Rejected: it is malformed, or what follows it cannot be read.
    """
    parsed = _Parsed()
    parser = httptools.HttpRequestParser(parsed)
    parser.set_dangerous_leniencies(lenient_version=True)  # others are told that it is the version
    error = _feed(parser, head)
    method, version = parser.get_method(), parser.get_http_version()
    as_read = head.startswith(b"%b %b HTTP/%b\r\n" % (method, parsed.start, version.encode()))
    if not (parsed.whole and as_read and version in _VERSIONS):
        if BAD_IN_HEAD.search(head):
            raise Rejected(400, "the header section is malformed")
        if as_read and version not in _VERSIONS:
            raise Rejected(505, "only HTTP/1.1 and HTTP/1.0 are supported")
        if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(head):
            raise Rejected(501, "the method is unknown")
        raise Rejected(400, "the header section is malformed")
    request = Request(method, parsed.start, version.encode(), parsed.fields)
    request.raw = head
    if _too_long(request):
        raise Rejected(400, "the Content-Length is too large")
    if request.chunked:
        if request.length is not None:
            raise Rejected(400, "the body has both a Content-Length and a Transfer-Encoding")
        if request.version == b"1.0":
            raise Rejected(400, "HTTP/1.0 has no Transfer-Encoding")
        if not _only_chunked(request):
            raise Rejected(501, "the only supported Transfer-Encoding is chunked")
    return request


def parse_response(head: bytes) -> Response:
    """Parse the head of a response, given to the end of its blank line, without any before it.

    What real servers send is accepted: lines that end with LF alone, and a length beside chunks, which wins.

    Raises:
        Malformed: it is malformed, or what follows it cannot be read.
    """
    parsed = _Parsed()
    parser = httptools.HttpResponseParser(parsed)
    parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_chunked_length=True)
    error = _feed(parser, head)
    status, version = parser.get_status_code(), parser.get_http_version()
    if not (parsed.whole and version in _VERSIONS and head.startswith(b"HTTP/") and status >= 100):
        shown = b"\n".join(head.split(b"\n")[len(parsed.fields) :][:3])[:_SHOWN]
        raise Malformed(f"{error or 'unknown version or status'}, in or before {shown!r}")
    if _BAD_IN_REASON.search(parsed.start):
        raise Malformed("control characters in the reason phrase")
    response = Response(status, parsed.start, version.encode(), parsed.fields)
    if _too_long(response):
        raise Malformed("the Content-Length is too large")
    if response.chunked:
        if response.version != b"1.1":
            raise Malformed("Transfer-Encoding in HTTP/1.0")
        if not _only_chunked(response):
            raise Malformed("a Transfer-Encoding other than chunked")
    return response


def _feed(parser: httptools.HttpRequestParser | httptools.HttpResponseParser, head: bytes) -> Exception | None:
    """Parse; return what the parser has to say against it."""
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
        return exc
    return None


def _too_long(message: Message) -> bool:
    """Whether there is a length that is too large; leading zeros count, since Python takes 4,300 digits at most."""
    value = message.first(b"content-length")
    return value is not None and (len(value) > len(str(MAX_LENGTH)) or int(value) > MAX_LENGTH)


def _only_chunked(message: Message) -> bool:
    return [coding.lower() for coding in message.values[b"transfer-encoding"]] == _CHUNKED
