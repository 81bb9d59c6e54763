"""One request and its answer: who asks, for which service, and what the target is sent. Pure.

Knows what was asked, and neither how far it has come nor over which connections.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

import h11

from goreprox.config.http import HttpConfig
from goreprox.config.routes import Routes
from goreprox.http import requests
from goreprox.http.commands import LogRequest
from goreprox.http.forwarding import Forwarding, is_forwarding
from goreprox.http.requests import Fields, Rejected, with_dashes
from goreprox.http.writer import ResponseWriter, interim_head, request_head

_UPGRADE: Final = ("Upgrade", "-")
_STAND_INS: Final = {
    (head, upgrade): h11.Request(
        method="HEAD" if head else "GET", target="/", headers=[("Host", "-"), *[_UPGRADE] * upgrade]
    )
    for head in (False, True)
    for upgrade in (False, True)
}
"""What h11 has to know of a request to read its answer: whether it is HEAD, and whether it may leave HTTP."""


class Authenticator(Protocol):
    """Knows the tokens."""

    header: bytes
    """The field that brings one, in lower case."""

    def admit(self, fields: Fields, service: str | None, client: str) -> tuple[str, bytes]:
        """Return the name of the token among `fields`, names in lower case, and which of these has brought it.

        Raises:
            Rejected: there is none that is for `service`; None: none at all.
        """


def _draw_id() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Site:
    """What is the same for all clients of a listener."""

    service: str
    auth: Authenticator | None = None
    """None: whoever comes may come in."""
    forwarding: Forwarding = field(default_factory=Forwarding)
    routes: Routes | None = None
    """None: every request is for `service`."""
    closed: Callable[[str, str], bool] | None = None
    """Whether an address is kept from a service; None: nobody is."""
    settings: HttpConfig = field(default_factory=HttpConfig)
    logs: bool = False
    """Whether the access log has its requests."""
    draw_id: Callable[[], str] = _draw_id
    """Makes the id of a request that fails."""

    @property
    def secret(self) -> bytes | None:
        """The field that is not for targets."""
        return None if self.auth is None else self.auth.header

    def drops(self, name: bytes) -> bool:
        """Whether a field of a client is not for targets."""
        return with_dashes(name) == self.secret or is_forwarding(name)


class Exchange:
    """A request with one reading, and what has become of it."""

    __slots__ = ("client", "failed", "head", "heard", "request", "response", "service", "stand_in", "token")

    def __init__(self, request: h11.Request, site: Site, address: str) -> None:
        """Know nothing of the target yet."""
        self.request = request
        self.response = ResponseWriter(request)
        self.service = site.service
        self.client = site.forwarding.client_of(request, address) if site.forwarding.trusted else address
        """Its address, behind all trusted proxies."""
        self.token: str | None = None
        self.head = b""
        """As the target gets it."""
        self.stand_in = _STAND_INS[request.method == b"HEAD", requests.upgrade_of(request) is not None]
        """What h11 is told of it."""
        self.heard = False
        """Whether the target has said anything."""
        self.failed: tuple[int, str] | None = None
        """How the first try ended, if this is the second."""

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent twice."""
        return self.request.method in requests.SAFE and not requests.has_body(self.request)

    def admit(self, site: Site, *, address: str, authority: bytes, certificate: bytes = b"") -> None:
        """Find out where the request goes to; `authority` is for it if it names no host.

        `address` is its client's, and `certificate` what targets are told of that one's.

        Raises:
            Rejected: it may not go there.
        """
        request = self.request
        host = requests.value_of(request, b"host") or authority
        service = site.service if site.routes is None else site.routes.find(host)
        self.service = service or ""
        brought_by = b""
        if site.auth is not None:  # first of all, lest strangers find out which hosts there are
            seen = requests.fields_of(request)
            if any(name != site.auth.header == with_dashes(name) for name, _ in seen):
                raise Rejected(400, "a field has the name of another with _ for -")
            self.token, brought_by = site.auth.admit(seen, service, self.client)
        if service is None:
            raise Rejected(404, "this host is not known here")
        if site.routes is not None and site.closed is not None and site.closed(address, service):
            raise Rejected(403, "this address may not come in here")
        added = site.forwarding.fields(request, address, host=host, certificate=certificate)
        told = site.settings.host_for(self.service) or host
        fields = requests.passed_on(
            request, host=told, dropped=lambda name: site.drops(name) or name.lower() == brought_by, added=added
        )
        self.head = request_head(request, fields)

    # The response.

    def interim(self, event: h11.InformationalResponse) -> bytes:
        """Return the head of a 1xx response for the client; nothing for HTTP/1.0, which has none."""
        if self.request.http_version == b"1.0":
            return b""
        return interim_head(event, _without_length(requests.end_to_end(event)))

    def switch(self, event: h11.InformationalResponse) -> bytes:
        """Return the head of a 101 response for the client."""
        fields = [*requests.end_to_end(event), (b"Connection", b"upgrade")]
        upgrade = requests.value_of(event, b"upgrade")
        if upgrade is not None:
            fields.append((b"Upgrade", upgrade))
        self.response.status = event.status_code
        return interim_head(event, fields)

    def begin_response(self, event: h11.Response, *, last: bool) -> bytes:
        """Return the head of the final response for the client, the `last` one on its connection or not."""
        fields = requests.end_to_end(event)
        chunked = requests.value_of(event, b"transfer-encoding") is not None
        if chunked or event.status_code == HTTPStatus.NO_CONTENT:
            fields = _without_length(fields)
        return self.response.head(event.status_code, event.reason, fields, last=last)

    def log(self) -> LogRequest:
        """Return what the access log has of it."""
        return log_request(self.request, self.response, client=self.client, service=self.service, token=self.token)


def _without_length(fields: Fields) -> Fields:
    """Leave out what 1xx and 204 must not have (RFC 9110, 8.6), nor what is chunked (RFC 9112, 6.3)."""
    return [(name, value) for name, value in fields if name.lower() != b"content-length"]


def log_request(
    request: h11.Request | None, response: ResponseWriter, *, client: str, service: str = "", token: str | None = None
) -> LogRequest:
    """Return what the access log has of a request, or of what could not be read as one."""
    method, host, path = b"", b"", b""
    if request is not None:
        method, path = request.method, request.target.partition(b"?")[0]
        host = requests.value_of(request, b"host") or b""
    return LogRequest(
        client,
        service,
        token,
        method.decode("latin-1"),
        host.decode("latin-1"),
        path.decode("latin-1"),
        response.status,
        response.body_bytes,
    )
