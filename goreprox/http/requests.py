"""Which requests are passed on, and which of their fields. Pure functions.

Requests are smuggled past parsers that read one message differently (RFC 9112, 11.2): so what has two readings is
rejected, here and by `heads`, and what is passed on is written anew from what was parsed, never copied.
"""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from goreprox.config.http import DEFAULT_LIMITS, Limits
from goreprox.config.routes import is_host
from goreprox.http.messages import EndOfMessage, Fields, Message, Request

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


class Rejected(Exception):
    """A request is not passed on; the client is told why."""

    def __init__(
        self,
        status: int,
        text: str,
        fields: Fields | None = None,
        *,
        detail: str = "",
        content: tuple[Fields, bytes] | None = None,
    ) -> None:
        """Respond with `status`, one sentence and further header fields; `detail` is for the log alone.

        `content` takes the place of the sentence: a body, and the fields that describe it.
        """
        super().__init__(text)
        self.content = content
        self.detail = detail
        self.status = HTTPStatus(status)
        self.text = text
        self.fields = fields or []


def check(request: Request, limits: Limits = DEFAULT_LIMITS, *, scheme: bytes | None = None) -> Request:
    """Return a request that has one reading only, in origin form.

    `scheme` is the port's; None allows any, since a trusted proxy passes the request on.

    Raises:
        Rejected: it has several, or none.
    """
    if len(request.fields) > limits.lines:
        raise Rejected(431, f"more than {limits.lines} header lines")
    if request.method in (b"CONNECT", b"TRACE"):
        raise Rejected(405, f"{request.method.decode()} is not supported", [_ALLOW])
    hosts = request.values.get(b"host", ())
    if len(hosts) > 1 or (not hosts and request.version == b"1.1"):
        raise Rejected(400, "there must be one Host")
    request = _in_origin_form(request, scheme)
    if not _ORIGIN_FORM.fullmatch(request.target) and (request.method, request.target) != (b"OPTIONS", b"*"):
        raise Rejected(400, "the request target must be a path")
    _check_fields(request)
    return request


def _in_origin_form(request: Request, scheme: bytes | None) -> Request:
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
    if (ignored := request.first(b"host")) and not is_host(ignored):
        raise Rejected(400, "the Host is not a host")
    if not path.startswith(b"/"):
        path = b"*" if request.method == b"OPTIONS" and not path else b"/" + path
    fields = [(name, value) for name, value in request.fields if name.lower() != b"host"]
    return Request(request.method, path, request.version, [(b"Host", host), *fields])


def _check_fields(request: Request) -> None:
    if not all(map(is_host, request.values.get(b"host", ()))):
        raise Rejected(400, "the Host is not a host")
    if any(b"_" in name and with_dashes(name) in _NO_DISGUISE for name in request.values):
        raise Rejected(400, "a field name is that of another with _ for -")
    if any(value.lower() != b"100-continue" for value in request.values.get(b"expect", ())):
        raise Rejected(417, "the only supported expectation is 100-continue")
    if request.connection_options & _NOT_TO_BE_NAMED:
        raise Rejected(400, "Connection names a field that is not hop-by-hop")


def end_to_end(message: Message) -> Fields:
    """Return the fields without those of one connection only, names as they were written."""
    gone = HOP_BY_HOP | message.connection_options
    return [(name, value) for name, value in message.fields if name.lower() not in gone]


def with_dashes(name: bytes) -> bytes:
    """Return a name in lower case, with `_` read as `-`."""
    return name.lower().replace(b"_", b"-")


def upgrade_of(request: Request) -> bytes | None:
    """Return the protocols that a request offers to switch to, if all of them are allowed."""
    fields = request.values.get(b"upgrade")
    if fields is None or request.version != b"1.1" or b"upgrade" not in request.connection_options:
        return None
    wanted = [protocol.strip(b" \t") for value in fields for protocol in value.split(b",")]
    if any(not _PROTOCOL.fullmatch(each) or each.lower().startswith(_NO_UPGRADE) for each in wanted):
        return None
    return b", ".join(wanted)


def passed_on(request: Request, *, host: bytes, dropped: Callable[[bytes], bool], added: Fields) -> Fields:
    """Return the fields for the target: with this `host`, without `dropped` ones, with those `added`."""
    kept = [(name, value) for name, value in end_to_end(request) if not dropped(name) and name.lower() != b"host"]
    fields = [(b"Host", host), *kept, *added]
    if request.chunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if (protocol := upgrade_of(request)) is not None:
        fields += [(b"Connection", b"upgrade"), (b"Upgrade", protocol)]
    if request.version == b"1.0":  # which knows no Expect (RFC 9110, 10.1.1)
        fields = [(name, value) for name, value in fields if name.lower() != b"expect"]
    return fields


def trailers(end: EndOfMessage, *, dropped: Callable[[bytes], bool] = lambda _: False) -> Fields:
    """Return the trailers that are allowed and not `dropped`."""
    return [
        (name, value) for name, value in end.trailers if with_dashes(name) not in _NO_TRAILERS and not dropped(name)
    ]


def has_body(request: Request) -> bool:
    """Whether the request may have a body."""
    return request.chunked or bool(request.length)
