"""One request and its response: who asks, for which service, what the target is sent and the client gets. Sans-IO."""

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

from goreprox.config.http import HttpConfig
from goreprox.config.routes import Routes
from goreprox.http import requests
from goreprox.http.commands import CountRequest, LogRequest
from goreprox.http.forward_auth import SHOWN, Allowed, Guard, question
from goreprox.http.forwarding import FIELDS, Forwarding
from goreprox.http.login import Place, without_cookies
from goreprox.http.messages import Fields, Request, Response
from goreprox.http.observer import Inspector
from goreprox.http.reply import Reply
from goreprox.http.requests import Rejected, with_dashes
from goreprox.http.writer import ResponseWriter, interim_head, request_head

_CHALLENGES: Final = b"/.well-known/acme-challenge/"
"""Where authorities ask without TLS, as there may be no certificate yet (RFC 8555, 8.3)."""
_CACHING: Final = (b"cache-control", b"surrogate-control")
"""Ends of the names of fields that tell caches what to do (RFC 9111, 5.2; RFC 9213)."""


class Admitted(NamedTuple):
    """How a request was let in."""

    token: str
    """The name of its token."""
    field: bytes
    """The field that carried the token, which is only for us, in lower case; empty if a cookie did."""
    cookie: bytes = b""
    """What the client gets with the response (Set-Cookie); empty: nothing."""


class Authenticator(Protocol):
    """Knows the valid tokens."""

    header: bytes
    """The field that carries a token, in lower case."""

    def admit(self, fields: Fields, place: Place, service: str | None, client: str) -> Admitted:
        """Return how a request from a client with `fields`, names in lower case, is let in.

        `place` is where its cookies are valid.

        Raises:
            Rejected: there is no token that is for `service`; None: none at all.
        """


def _draw_id() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """What HTTP needs to know of a listener; a reload replaces it."""

    service: str
    auth: Authenticator | None = None
    """None: no tokens."""
    forwarding: Forwarding = field(default_factory=Forwarding)
    routes: Routes | None = None
    """None: every request is for `service`."""
    published: Callable[[bytes], str | None] | None = None
    """Returns the service that a host is published for; routes come first. None: no host is."""
    closed: Callable[[str, str], bool] | None = None
    """Whether access rules deny a service to an address; None: there are none for services."""
    settings: HttpConfig = field(default_factory=HttpConfig)
    secured: Callable[[bytes], bytes | None] | None = None
    """Returns host and port where requests for a host are led, as it has a certificate. None: nowhere."""
    guards: Mapping[str | None, Guard] = field(default_factory=dict)
    """The authentication service of each service, and of all others (None)."""
    copied: frozenset[bytes] = frozenset()
    """Fields, in lower case, that targets are told by these and never by clients."""
    challenge: Callable[[bytes], bytes | None] | None = None
    """Returns the response to a challenge of ACME, by its token (RFC 8555, 8.3). None: there are none."""
    logs: bool = False
    """Whether requests are logged."""
    inspector: Inspector | None = None
    """None: nobody sees requests."""
    draw_id: Callable[[], str] = _draw_id
    """Makes the ids of requests that fail."""

    @property
    def services(self) -> Iterable[str]:
        """The services that requests can be for."""
        return (self.service,) if self.routes is None else self.routes.services

    def service_of(self, host: bytes) -> str | None:
        """Return the service of a host; None: the host is unknown."""
        if self.routes is not None and (found := self.routes.find(host)) is not None:
            return found
        if self.published is not None and (found := self.published(host)) is not None:
            return found
        return self.service if self.routes is None else None

    def response_to(self, request: Request) -> bytes | None:
        """Return the response to a challenge of ACME; None if the request is for none that is ours."""
        if self.challenge is None or not request.target.startswith(_CHALLENGES) or request.method != b"GET":
            return None
        return self.challenge(request.target.removeprefix(_CHALLENGES))

    @property
    def secret(self) -> bytes | None:
        """The field of tokens, which is not for targets."""
        return None if self.auth is None else self.auth.header

    def drops(self, name: bytes) -> bool:
        """Whether a field of a client is not for targets."""
        name = with_dashes(name)
        return name == self.secret or name in FIELDS or name in self.copied


class Origin(NamedTuple):
    """Where a request came from."""

    site: Site
    address: str
    """The client's, or that of a proxy that is trusted."""
    authority: bytes
    """Host and port that it connected to."""
    certificate: bytes
    """What targets are told of its certificate."""


class Exchange:
    """A checked request, and the state of its response."""

    __slots__ = (
        *("_fields", "client", "cookies", "failed", "guard", "head", "heard"),
        *("question", "request", "response", "service", "token"),
    )

    def __init__(self, request: Request, site: Site, address: str) -> None:
        self.request = request
        self.response = ResponseWriter(request)
        self.service = site.service
        self.client = site.forwarding.client_of(request, address) if site.forwarding.trusted else address
        """The client's address, behind all trusted proxies."""
        self.token: str | None = None
        self.cookies: list[bytes] = []
        """What the client is told to keep (Set-Cookie), besides what the target says."""
        self.guard: Guard | None = None
        """Who decides whether the request goes on to its target, once it was asked the `question`; None: nobody."""
        self.question = b""
        self._fields: Fields = []
        """For the target."""
        self.head = b""
        """The header section for the target."""
        self.heard = False
        """Whether the target has sent anything."""
        self.failed: tuple[int, str] | None = None
        """Status and reason of the first attempt's failure, if this is the second."""

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent twice."""
        return self.request.method in requests.SAFE and not requests.has_body(self.request)

    def admit(self, site: Site, *, address: str, authority: bytes, certificate: bytes = b"") -> None:
        """Find the service of the request, and write the header section for its target, or the question for its guard.

        `authority` takes the place of a missing host, `address` is the client's, and `certificate` is what targets are
        told about the client's certificate.

        Raises:
            Rejected: it is not for a target: a challenge of ACME, or there is no such service for this client.
        """
        try:
            self._admit(site, address=address, authority=authority, certificate=certificate)
        finally:
            if site.inspector is not None:
                origin = Origin(site, address, authority, certificate)
                self.response.observer = site.inspector.observer(self, origin)

    def _admit(self, site: Site, *, address: str, authority: bytes, certificate: bytes) -> None:
        request = self.request
        host = request.first(b"host") or authority
        service = site.service_of(host)
        if (proof := site.response_to(request)) is not None:  # who knows its token need not have ours
            self.service = ""
            length = (b"Content-Length", b"%d" % len(proof))
            raise Rejected(200, "", content=([(b"Content-Type", b"application/octet-stream"), length], proof))
        self.service = service or ""
        self._require_tls(site, host, address)
        brought_by = b""
        if site.auth is not None:  # first of all, so that strangers do not learn which hosts there are
            brought_by = self._authenticate(site.auth, host, service, secure=site.forwarding.is_https(request, address))
        if service is None:
            raise Rejected(404, "unknown host")
        if site.routes is not None and site.closed is not None and site.closed(address, service):
            raise Rejected(403, "access from this address is denied")
        added = site.forwarding.fields(request, address, host=host, certificate=certificate)
        told = site.settings.host_for(self.service) or host
        self.guard = site.guards.get(service, site.guards.get(None))
        if self.guard is not None:
            self.question = question(self.guard, request, self._passed_on(site, told, added, brought_by, shown=SHOWN))
        self._fields = self._passed_on(site, told, added, brought_by)
        self.head = request_head(request, self._fields)

    def allow(self, allowed: Allowed) -> None:
        """Let the request go on to its target, as its guard has decided."""
        self.head = request_head(self.request, [*self._fields, *allowed.fields])
        self.cookies += allowed.cookies

    def _passed_on(
        self, site: Site, host: bytes, added: Fields, brought_by: bytes, *, shown: Collection[bytes] = ()
    ) -> Fields:
        """Return the fields of the request without those that are for us alone, but with those that are `shown`."""

        def dropped(name: bytes) -> bool:
            lowered = name.lower()
            return lowered == brought_by or (lowered not in shown and site.drops(name))

        fields = requests.passed_on(self.request, host=host, dropped=dropped, added=added)
        return fields if site.auth is None else without_cookies(fields)

    def _authenticate(self, auth: Authenticator, host: bytes, service: str | None, *, secure: bool) -> bytes:
        """Require a token; return the name of the field that carries it, in lower case.

        Raises:
            Rejected: there is none for this service.
        """
        seen = [(name.lower(), value) for name, value in self.request.fields]
        if any(name != auth.header == with_dashes(name) for name, _ in seen):
            raise Rejected(400, "a field name is that of another with _ for -")
        admitted = auth.admit(seen, Place(host, service or "", secure), service, self.client)
        self.token = admitted.token
        if admitted.cookie:
            self.cookies.append(admitted.cookie)
        return admitted.field

    def _require_tls(self, site: Site, host: bytes, address: str) -> None:
        """Lead the client to https:// if its host has a certificate.

        Raises:
            Rejected: it has.
        """
        path = self.request.target
        if site.secured is None or path.startswith(_CHALLENGES) or site.forwarding.is_https(self.request, address):
            return
        if (where := site.secured(host)) is not None:
            location = b"https://" + where + (path if path.startswith(b"/") else b"")
            raise Rejected(308, "this host is served with TLS", [(b"Location", location)])

    # The response.

    def expect_reply(self) -> Reply:
        """Return a parser for the target's response."""
        request = self.request
        return Reply(to_head=request.method == b"HEAD", may_switch=requests.upgrade_of(request) is not None)

    def interim(self, event: Response) -> bytes:
        """Return the header section of a 1xx response for the client; nothing for HTTP/1.0, which has none."""
        if self.request.version == b"1.0":
            return b""
        return interim_head(event, _without_length(requests.end_to_end(event)))

    def switch(self, event: Response) -> bytes:
        """Return the header section of a 101 response for the client."""
        fields = [*self._with_cookies(requests.end_to_end(event)), (b"Connection", b"upgrade")]
        upgrade = event.first(b"upgrade")
        if upgrade is not None:
            fields.append((b"Upgrade", upgrade))
        return self.response.switch(event, fields)

    def begin_response(self, event: Response, *, last: bool) -> bytes:
        """Return the header section of the final response for the client, the `last` one on its connection or not."""
        fields = self._with_cookies(requests.end_to_end(event))
        if event.chunked or event.status == HTTPStatus.NO_CONTENT:
            fields = _without_length(fields)
        return self.response.head(event.status, event.reason, fields, last=last)

    def _with_cookies(self, fields: Fields) -> Fields:
        """Add our cookies to the fields of a response, which then no cache may give to others."""
        if not self.cookies:
            return fields
        kept = [(name, value) for name, value in fields if not name.lower().endswith(_CACHING)]
        return [*kept, (b"Cache-Control", b"no-store"), *((b"Set-Cookie", cookie) for cookie in self.cookies)]

    def over(self, error: str) -> None:
        """Take note that nothing else follows, and why if it is not what the target has sent."""
        observer = self.response.observer
        if observer is not None:
            self.response.observer = None
            observer.over(error)

    def count(self) -> CountRequest:
        """Return the command that counts the request, and does not log it."""
        return CountRequest(self.service, self.response.status)

    def log(self) -> LogRequest:
        """Return the command that logs the request."""
        return log_request(self.request, self.response, client=self.client, service=self.service, token=self.token)


def _without_length(fields: Fields) -> Fields:
    """Leave out what 1xx and 204 must not have (RFC 9110, 8.6), nor what is chunked (RFC 9112, 6.3)."""
    return [(name, value) for name, value in fields if name.lower() != b"content-length"]


def log_request(
    request: Request | None, response: ResponseWriter, *, client: str, service: str = "", token: str | None = None
) -> LogRequest:
    """Return the command that logs a request, or what could not be read as one."""
    method, host, path = b"", b"", b""
    if request is not None:
        method, path = request.method, request.target.partition(b"?")[0]
        host = request.first(b"host") or b""
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
