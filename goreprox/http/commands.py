"""What a gateway wants done, in order, by whoever has the sockets."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Connect:
    """Have a stream to a provider of `service` for what follows: one that was released, unless it is to be `fresh`."""

    service: str
    fresh: bool


@dataclass(frozen=True, slots=True)
class ToClient:
    """Bytes for the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ToProvider:
    """Bytes for the provider."""

    data: bytes


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Tell the target that nothing follows the request that it is answering: the client has half-closed or left."""


@dataclass(frozen=True, slots=True)
class Release:
    """The exchange is over; the stream may carry another one."""


@dataclass(frozen=True, slots=True)
class Discard:
    """The stream is of no more use: end it well, or, if something on it is unfinished, with a reset."""

    reset: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """End the client's connection once it has all that was written."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Reset the client's connection now: what it got is not whole, and must not look so."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Join client and stream byte by byte from here on: they have left HTTP. Follows what is still to be written."""


@dataclass(frozen=True, slots=True)
class LogRequest:
    """One request, for the access log; `status` is 0 if the client was reset before an answer began."""

    client: str
    """Its address, behind all trusted proxies."""
    service: str
    """What it was for."""
    token: str | None
    method: str
    host: str
    path: str
    """Without the query, which may hold secrets."""
    status: int
    body_bytes: int
    error: str = ""
    """Why the response is ours, or the client was reset. Not for clients: they may be anybody."""
    request_id: str = ""
    """What such a response tells the client to ask for."""


Command = LogRequest | Connect | ToClient | ToProvider | HalfClose | Release | Discard | Finish | Abort | Switch
Commands = list[Command]
