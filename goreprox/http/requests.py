"""Which requests are passed on, and which of their fields. Pure functions.

h11 parses, and accepts more than is safe. Requests are smuggled past parsers that read one message differently
(RFC 9112, 11.2): so what has two readings is rejected, and what is passed on is written anew from what was parsed,
never copied.
"""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import h11

from goreprox.config.http import DEFAULT_LIMITS, Limits
from goreprox.config.routes import is_host

MAX_LENGTH: Final = (1 << 63) - 1
"""The largest Content-Length: other parsers use signed integers of 64 bits."""
BAD_IN_HEAD: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]|(?<!\r)\n|\n[ \t]")
"""Control characters, a CR or LF alone, folded lines: h11 accepts some of each, others read them differently."""
_ORIGIN_FORM: Final = re.compile(rb"/[^#]*")
_ABSOLUTE_FORM: Final = re.compile(rb"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PROTOCOL: Final = re.compile(rb"%b(?:/%b)?" % (_TOKEN, _TOKEN))
_NO_UPGRADE: Final = (b"h2c", b"http", b"tls")
"""Protocols that would bypass our checks."""
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"http2-settings")
)
"""Fields of one connection only (RFC 9110, 7.6.1), besides those that `Connection` names."""
_NO_DISGUISE: Final = frozenset((b"host", b"content-length", b"expect")) | HOP_BY_HOP
"""Fields that no other may be taken for where `_` is read as `-`, as CGI and many servers do."""
_ALLOW: Final = (b"Allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH")
_NOT_TO_BE_NAMED: Final = frozenset((b"host", b"content-length"))
_NO_TRAILERS: Final = HOP_BY_HOP | frozenset(
    (
        *(b"host", b"content-length", b"content-encoding", b"content-type", b"content-range", b"trailer", b"expect"),
        *(b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"cache-control", b"max-forwards"),
        *(b"range", b"age", b"date", b"expires", b"location", b"retry-after", b"vary", b"warning"),
    )
)
"""Fields that frame, route, authenticate or modify, and are too late in trailers (RFC 9110, 6.5.1)."""
SAFE: Final = (b"GET", b"HEAD", b"OPTIONS")

Fields = list[tuple[bytes, bytes]]
Message = h11.Request | h11.Response | h11.InformationalResponse


class Rejected(Exception):
    """A request is not passed on; the client is told why."""

    def __init__(self, status: int, text: str, fields: Fields | None = None, *, detail: str = "") -> None:
        """Respond with `status`, one sentence and further header fields; `detail` is for the log alone."""
        super().__init__(text)
        self.detail = detail
        self.status = HTTPStatus(status)
        self.text = text
        self.fields = fields or []


def check(request: h11.Request, limits: Limits = DEFAULT_LIMITS, *, scheme: bytes | None = None) -> h11.Request:
    """Return a request that has one reading only, in origin form.

    `scheme` is the port's; None allows any, since a trusted proxy passes the request on.

    Raises:
        Rejected: it has several, or none.
    """
    if request.http_version not in (b"1.0", b"1.1"):
        raise Rejected(505, "only HTTP/1.1 and HTTP/1.0 are supported")
    if len(request.headers) > limits.lines:
        raise Rejected(431, f"more than {limits.lines} header lines")
    if request.method in (b"CONNECT", b"TRACE"):
        raise Rejected(405, f"{request.method.decode()} is not supported", [_ALLOW])
    request = _in_origin_form(request, scheme)
    if not _ORIGIN_FORM.fullmatch(request.target) and (request.method, request.target) != (b"OPTIONS", b"*"):
        raise Rejected(400, "the request target must be a path")
    _check_fields(request)
    return request


def _in_origin_form(request: h11.Request, scheme: bytes | None) -> h11.Request:
    """Convert absolute form into a path and a Host; a received Host is ignored (RFC 9112, 3.2.2).

    Raises:
        Rejected: it is for another scheme than the port's (RFC 9110, 7.4), or the Host is malformed (RFC 9112, 3.2).
    """
    absolute = _ABSOLUTE_FORM.fullmatch(request.target)
    if absolute is None:
        return request
    wanted, host, path = absolute.groups()
    if scheme is not None and wanted.lower() != scheme:
        raise Rejected(421, f"this port accepts {scheme.decode()}:// only")
    if (ignored := value_of(request, b"host")) and not is_host(ignored):
        raise Rejected(400, "the Host is not a host")
    if not path.startswith(b"/"):
        path = b"*" if request.method == b"OPTIONS" and not path else b"/" + path
    fields = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"host"]
    return h11.Request(
        method=request.method, target=path, headers=[(b"Host", host), *fields], http_version=request.http_version
    )


def _check_fields(request: h11.Request) -> None:
    named = _named_by_connection(request)
    framing = set()
    for name, value in fields_of(request):
        if name == b"host" and not is_host(value):
            raise Rejected(400, "the Host is not a host")
        if name in (b"content-length", b"transfer-encoding"):
            framing.add(name)
        if name == b"content-length" and int(value) > MAX_LENGTH:
            raise Rejected(400, "the Content-Length is too large")
        if b"_" in name and with_dashes(name) in _NO_DISGUISE:
            raise Rejected(400, "a field name is that of another with _ for -")
        if name == b"expect" and value.lower() != b"100-continue":
            raise Rejected(417, "the only supported expectation is 100-continue")
    if len(framing) > 1:
        raise Rejected(400, "the body has both a Content-Length and a Transfer-Encoding")
    if b"transfer-encoding" in framing and request.http_version == b"1.0":
        raise Rejected(400, "HTTP/1.0 has no Transfer-Encoding")
    if named & _NOT_TO_BE_NAMED:
        raise Rejected(400, "Connection names a field that is not hop-by-hop")


def _named_by_connection(message: Message) -> set[bytes]:
    return {
        option.strip().lower()
        for name, value in message.headers.raw_items()
        if name.lower() == b"connection"
        for option in value.split(b",")
    }


def keeps_alive(request: h11.Request) -> bool:
    """Whether another request may follow (RFC 9112, 9.3); never with HTTP/1.0."""
    return request.http_version == b"1.1" and b"close" not in _named_by_connection(request)


def fields_of(message: Message) -> Fields:
    """Return the fields, names in lower case.

    Iterating over `headers` itself takes four times as long.
    """
    return [(name.lower(), value) for name, value in message.headers.raw_items()]


def value_of(message: Message, wanted: bytes) -> bytes | None:
    """Return the value of the first field of this name, given in lower case."""
    return next((value for name, value in message.headers.raw_items() if name.lower() == wanted), None)


def end_to_end(message: Message) -> Fields:
    """Return the fields without those of one connection only, names as they were written."""
    gone = HOP_BY_HOP | _named_by_connection(message)
    return [(name, value) for name, value in message.headers.raw_items() if name.lower() not in gone]


def with_dashes(name: bytes) -> bytes:
    """Return a name in lower case, with `_` read as `-`."""
    return name.lower().replace(b"_", b"-")


def upgrade_of(request: h11.Request) -> bytes | None:
    """Return the protocols that a request offers to switch to, if all of them are allowed."""
    if value_of(request, b"upgrade") is None or request.http_version != b"1.1":
        return None
    if b"upgrade" not in _named_by_connection(request):
        return None
    fields = [value for name, value in fields_of(request) if name == b"upgrade"]
    wanted = [protocol.strip(b" \t") for value in fields for protocol in value.split(b",")]
    if any(not _PROTOCOL.fullmatch(each) or each.lower().startswith(_NO_UPGRADE) for each in wanted):
        return None
    return b", ".join(wanted)


def passed_on(request: h11.Request, *, host: bytes, dropped: Callable[[bytes], bool], added: Fields) -> Fields:
    """Return the fields for the target: with this `host`, without `dropped` ones, with those `added`."""
    kept = [(name, value) for name, value in end_to_end(request) if not dropped(name) and name.lower() != b"host"]
    fields = [(b"Host", host), *kept, *added]
    if value_of(request, b"transfer-encoding") is not None:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if (protocol := upgrade_of(request)) is not None:
        fields += [(b"Connection", b"upgrade"), (b"Upgrade", protocol)]
    if request.http_version == b"1.0":  # which knows no Expect (RFC 9110, 10.1.1)
        fields = [(name, value) for name, value in fields if name.lower() != b"expect"]
    return fields


def trailers(end: h11.EndOfMessage, *, dropped: Callable[[bytes], bool] = lambda _: False) -> Fields:
    """Return the trailers that are allowed and not `dropped`; their values were checked by `chunks`."""
    return [(name, value) for name, value in end.headers if with_dashes(name) not in _NO_TRAILERS and not dropped(name)]


def has_body(request: h11.Request) -> bool:
    """Whether the request may have a body."""
    length = value_of(request, b"content-length")
    return value_of(request, b"transfer-encoding") is not None or (length is not None and int(length) > 0)
