"""Responses of our own, where a target gives none: text, JSON or a small page, as the client accepts."""

import html
import json
from http import HTTPStatus
from typing import Final

from goreprox.http.messages import Fields
from goreprox.http.requests import Rejected

RETRY_AFTER_S: Final = 5
"""Retry-After of a 503, by which a provider that was restarted is back."""
_FAILURES: Final = {
    HTTPStatus.BAD_GATEWAY: "the server behind this one could not be reached, or gave no valid response",
    HTTPStatus.SERVICE_UNAVAILABLE: "the server behind this one is not available at the moment",
    HTTPStatus.GATEWAY_TIMEOUT: "the server behind this one gave no response in time",
}
"""What clients are told. The reason, with addresses and what targets have sent, is for the log alone."""
_PAGE: Final = "<!doctype html><title>{title}</title><h1>{title}</h1><p>{text}</p>\n"


def failure(status: int, reason: str) -> Rejected:
    """Return what a client is told of a request that failed, and what the log has beside it."""
    text = _FAILURES.get(HTTPStatus(status))
    return Rejected(status, reason) if text is None else Rejected(status, text, detail=reason)


def body(status: HTTPStatus, text: str, accept: bytes) -> tuple[Fields, bytes]:
    """Return header fields and body of a response, of the type that `accept` names first."""
    accept = accept.lower()
    places = {kind: accept.find(kind) for kind in (b"application/json", b"text/html", b"text/plain")}
    kind = min((kind for kind, place in places.items() if place >= 0), key=places.__getitem__, default=b"text/plain")
    title = f"{status.value} {status.phrase}"
    if kind == b"application/json":
        content = json.dumps({"status": status.value, "error": status.phrase, "detail": text}) + "\n"
    elif kind == b"text/html":
        content = _PAGE.format(title=html.escape(title), text=html.escape(text))
    else:
        content = f"{title}: {text}\n"
    encoded = content.encode()
    fields = [(b"Content-Type", kind + b"; charset=utf-8"), (b"Content-Length", str(len(encoded)).encode())]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        fields.append((b"Retry-After", str(RETRY_AFTER_S).encode()))
    return [*fields, (b"Cache-Control", b"no-store")], encoded
