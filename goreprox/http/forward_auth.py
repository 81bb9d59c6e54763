"""What an authentication service is told of a request, and what its response means for it. Sans-IO.

It is told what Traefik and Caddy tell one: a GET without a body, with the fields of the request, and its method,
scheme, host, path and client in fields of their own. Everything else that services take for these is removed.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

from goreprox.http import own_responses, requests
from goreprox.http.forwarding import FIELDS
from goreprox.http.messages import Fields, Request, Response
from goreprox.http.requests import Rejected, with_dashes

MAX_BODY: Final = 64 * 1024
"""Bytes of a response's body that are passed on to the client."""
_NOT_TOLD: Final = frozenset(
    (
        *(b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"trailer"),
        *(b"range", b"if-range", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"),
        *(b"x-auth-request-redirect", b"x-http-method", b"x-http-method-override", b"x-method-override"),
    )
)
"""Fields of the body and of the connection, conditions that concern the target, and those that would override ours."""
_OVERRIDING: Final = (b"x-forwarded-", b"x-original-", b"x-rewrite-")
"""How fields begin that would override ours, unless they are ours."""
SHOWN: Final = (b"authorization",)
"""What it sees of the client even if targets get its own in place of it."""
_KNOWN: Final = frozenset(HTTPStatus)
_NO_CONTENT: Final = (b"content-length", b"trailer")


class Allowed(NamedTuple):
    """A request may go on to its target."""

    fields: Fields
    """What the target is told beside the fields of the client."""
    cookies: list[bytes]
    """What the client is told to keep (Set-Cookie)."""


Verdict = Allowed | Rejected


class Guard(Protocol):
    """An authentication service."""

    host: bytes
    path: bytes
    """With its query."""
    copied: frozenset[bytes]
    """Fields of its responses that targets are told, in lower case."""

    def ask(self, question: bytes, then: Callable[[Verdict], None]) -> Callable[[], object]:
        """Send a question; call `then` with the verdict, unless what this returns was called before."""


def question(guard: Guard, request: Request, fields: Fields) -> bytes:
    """Return what to ask about a request that goes on to its target with `fields` like these, if it does."""

    def is_told(name: bytes) -> bool:
        name = with_dashes(name)
        return name not in _NOT_TOLD and (name in FIELDS or not name.startswith(_OVERRIDING))

    told = [
        (b"Host", guard.host),
        *((name, value) for name, value in fields if is_told(name)),
        (b"X-Forwarded-Method", request.method),
        (b"X-Forwarded-Uri", request.target),
        (b"Connection", b"close"),
    ]
    lines = [b"GET %b HTTP/1.1\r\n" % guard.path, *(b"%b: %b\r\n" % field for field in told), b"\r\n"]
    return b"".join(lines)


def verdict(guard: Guard, response: Response, body: bytes) -> Verdict:
    """Return what a response means: 2xx lets a request in, 3xx and 4xx are for the client, nothing else is known."""
    fields = requests.end_to_end(response)
    if response.status in range(200, 300):
        copied = [(name, value) for name, value in fields if name.lower() in guard.copied]
        return Allowed(copied, response.values.get(b"set-cookie", []))
    if response.status not in range(300, 500) or response.status == 304 or response.status not in _KNOWN:
        return failure(502, f"responded with {response.status}")
    kept = [(name, value) for name, value in fields if name.lower() not in _NO_CONTENT]
    if response.first(b"cache-control") is None:
        kept.append((b"Cache-Control", b"no-store"))
    length = (b"Content-Length", b"%d" % len(body))
    text = f"the authentication service responded with {response.status}"
    return Rejected(response.status, text, content=([*kept, length], body))


def failure(status: int, reason: str) -> Rejected:
    """Return how a request is rejected about which there was no verdict; `reason` is for the log."""
    return own_responses.failure(status, f"the authentication service {reason}")
