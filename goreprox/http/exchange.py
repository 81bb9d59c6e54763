"""One request and its answer: who asks, for which service, and what the target is sent. Pure.

Knows what was asked, and neither how far it has come nor over which connections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import h11

from goreprox.http import requests
from goreprox.http.commands import Answered
from goreprox.http.forwarding import Forwarding, is_forwarding
from goreprox.http.messages import Answer, request_head
from goreprox.http.requests import Refused, with_dashes
from goreprox.http.routes import Routes
from goreprox.http.settings import HttpSettings

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

    def admit(self, values: Sequence[bytes], service: str, client: str) -> str:
        """Return the name of the token among `values`, of all its fields.

        Raises:
            Refused: there is none that is for `service`.
        """


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
    settings: HttpSettings = field(default_factory=HttpSettings)
    logs: bool = False
    """Whether the access log has its requests."""

    @property
    def secret(self) -> bytes | None:
        """The field that is not for targets."""
        return None if self.auth is None else self.auth.header

    def drops(self, name: bytes) -> bool:
        """Whether a field of a client is not for targets."""
        return with_dashes(name) == self.secret or is_forwarding(name)


class Exchange:
    """A request with one reading, and what has become of it."""

    __slots__ = ("answer", "client", "failed", "head", "heard", "request", "service", "stand_in", "token")

    def __init__(self, request: h11.Request, site: Site, address: str) -> None:
        """Know nothing of the target yet."""
        self.request = request
        self.answer = Answer(request)
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
            Refused: it may not go there.
        """
        request = self.request
        host = requests.value_of(request, b"host") or authority
        if site.routes is not None:
            self.service = _route(site, site.routes, host, address)
        if site.auth is not None:
            fields = requests.fields_of(request)
            if any(name != site.auth.header == with_dashes(name) for name, _ in fields):
                raise Refused(400, "a field has the name of another with _ for -")
            values = [value for name, value in fields if name == site.auth.header]
            self.token = site.auth.admit(values, self.service, self.client)
        added = site.forwarding.fields(request, address, host=host, certificate=certificate)
        told = site.settings.host_for(self.service) or host
        self.head = request_head(request, requests.passed_on(request, host=told, dropped=site.drops, added=added))

    def answered(self) -> Answered:
        """Return what the access log has of it."""
        request = self.request
        return Answered(
            self.client,
            self.service,
            self.token,
            request.method.decode(),
            (requests.value_of(request, b"host") or b"").decode(),
            request.target.partition(b"?")[0].decode(),
            self.answer.status,
            self.answer.body_bytes,
        )


def _route(site: Site, routes: Routes, host: bytes, address: str) -> str:
    service = routes.find(host)
    if service is None:
        raise Refused(404, "this host is not known here")
    if site.closed is not None and site.closed(address, service):
        raise Refused(403, "this address may not come in here")
    return service
