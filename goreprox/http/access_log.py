"""The access log: one line for each request, and one at the end of a connection that has left HTTP."""

import dataclasses
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self

from loguru import logger

from brokers import LimitedLog
from goreprox.http.commands import LogRequest
from goreprox.process.log import ACCESS, quoted
from goreprox.protocol.fields import Fields
from goreprox.protocol.stream import Stream

REJECTED_LINES: Final = 60
"""A minute, for requests that reach no provider."""


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A connection that has left HTTP, like a WebSocket."""

    text: str
    fields: dict[str, object]
    began: float
    sent: int
    """Bytes of the stream, to the target, that were HTTP."""
    received: int
    """And from it."""

    @classmethod
    def restore(cls, marks: Fields) -> Self:
        """Return what has been exported.

        Raises:
            ExportError: it is not what `export` returns.
        """
        return cls(
            marks.text("text"),
            marks.fields("fields").by_text(),
            marks.seconds("began"),
            marks.count("sent"),
            marks.count("received"),
        )

    def export(self) -> dict[str, object]:
        """Return it as values."""
        return dataclasses.asdict(self)

    def write_end(self, stream: Stream, *, now: float) -> None:
        """Write the line of the connection's end."""
        more = {
            "bytes": stream.received_bytes - self.received,
            "bytes_in": stream.sent_bytes - self.sent,
            "duration_s": round(now - self.began, 4),
            "error": stream.end_reason or None,
        }
        logger.bind(event="upgrade_ended", **self.fields | more).info("{} ended", self.text)


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
    upgraded: Upgraded | None = None

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
            self.upgraded = Upgraded(text, fields, self.began, stream.send.end, stream.receive.delivered)
        self.began = None
