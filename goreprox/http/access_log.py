"""The access log: one line for each request, and one at the end of a connection that has left HTTP."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from loguru import logger

from brokers import LimitedLog
from goreprox.http.commands import LogRequest
from goreprox.process.log import ACCESS, quoted
from goreprox.protocol.stream import Stream

REJECTED_LINES: Final = 60
"""A minute, for requests that reach no provider."""


@dataclass(frozen=True, slots=True)
class _Upgraded:
    """A connection that has left HTTP, like a WebSocket."""

    text: str
    fields: dict[str, object]
    began: float
    sent: int
    """Bytes of the stream, to the target, that were HTTP."""
    received: int
    """And from it."""


@dataclass(slots=True)
class AccessLog:
    """One client's lines, and what they need to know of its present request."""

    rejected: LimitedLog
    """Writes the lines of requests that reached no provider; shared by all clients."""
    certificate: str | None
    """The name in the client's certificate."""
    began: float | None = None
    """When the request came; None if it has reached no provider."""
    provider: str | None = None
    """The one that had the request last."""
    outages: int | None = None
    """Of its provider, when the request came."""
    upgraded: _Upgraded | None = None

    def write(self, done: LogRequest, *, outages: int | None, stream: Stream | None, now: float) -> None:
        """Write the line of a request; `outages` of its provider, and the `stream` that it is on, are those by now."""
        text = "a request that cannot be read"
        if done.method:
            text = f"{quoted(done.method, 16)} {quoted(done.host)}{quoted(done.path)}"
        fields = {
            "status": done.status,
            "bytes": done.body_bytes,
            "duration_s": 0.0 if self.began is None else round(now - self.began, 4),
            "client": done.client,
            "service": done.service or None,
            "provider": self.provider,
            "token": done.token,
            "certificate": self.certificate,
            "error": done.error or None,
            "request_id": done.request_id or None,
            "outage_survived": self.outages is not None and outages != self.outages,
        }
        if self.began is None:  # it cost the target nothing, so a client may send many of them
            self.rejected.say(ACCESS, text, "INFO", **fields)
            return
        logger.bind(event=ACCESS, **fields).info("{}", text)
        if done.status == HTTPStatus.SWITCHING_PROTOCOLS and stream is not None:
            self.upgraded = _Upgraded(text, fields, self.began, stream.send.end, stream.receive.delivered)
        self.began = None

    def write_end(self, stream: Stream, *, now: float) -> None:
        """Write the line of an upgraded connection at its end, if it was logged."""
        upgraded = self.upgraded
        if upgraded is None:
            return
        more = {
            "bytes": stream.received_bytes - upgraded.received,
            "bytes_in": stream.sent_bytes - upgraded.sent,
            "duration_s": round(now - upgraded.began, 4),
            "error": stream.end_reason or None,
        }
        logger.bind(event="upgrade_ended", **upgraded.fields | more).info("{} ended", upgraded.text)
