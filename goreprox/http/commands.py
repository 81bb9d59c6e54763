"""The commands of a gateway, to be obeyed in order by the owner of the sockets."""

from dataclasses import dataclass

from goreprox.http.forward_auth import Guard
from goreprox.http.observer import Observer


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a stream to a provider of `service`, or reuse a released one unless it is to be `fresh`."""

    service: str
    fresh: bool
    observer: Observer | None = None
    """Who is to be told which provider has carried the request."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask an authentication service about a request; its verdict is for `Gateway.judged`."""

    guard: Guard
    question: bytes


@dataclass(frozen=True, slots=True)
class ToClient:
    """Send bytes to the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ToProvider:
    """Send bytes over the stream."""

    data: bytes


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Half-close the target's connection: the client has half-closed its own, or left."""


@dataclass(frozen=True, slots=True)
class Release:
    """Keep the stream for another exchange; this one is over."""


@dataclass(frozen=True, slots=True)
class Discard:
    """End the stream: with its end of file or, if something on it is unfinished, with a reset."""

    reset: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """End the client's connection once everything is written."""


@dataclass(frozen=True, slots=True)
class ResetClient:
    """Reset the client's connection now: its response is truncated, and must not look whole."""


@dataclass(frozen=True, slots=True)
class SwitchProtocols:
    """Join client and stream byte by byte once everything is written: they have left HTTP."""


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Log a request; `status` is 0 if the client was reset before a response began."""

    client: str
    """The client's address, behind all trusted proxies."""
    service: str
    """Empty if none was found."""
    token: str | None
    method: str
    host: str
    path: str
    """Without the query, which may hold secrets."""
    status: int
    body_bytes: int
    error: str = ""
    """Why the response is ours, or the client was reset. Not to be told to clients."""
    request_id: str = ""
    """The id that such a response contains."""


@dataclass(frozen=True, slots=True)
class CountRequest:
    """Count a request that is not logged; `LogRequest` counts, too."""

    service: str
    status: int


ForBackend = Ask | Connect | ToProvider | HalfClose | Release | Discard
Command = LogRequest | CountRequest | ToClient | ForBackend | Finish | ResetClient | SwitchProtocols
Commands = list[Command]
