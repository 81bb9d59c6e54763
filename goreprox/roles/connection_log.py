"""The access log of connections whose bytes are passed on: one line for each, at its end."""

from loguru import logger

from brokers import LimitedLog
from goreprox.http.access_log import REJECTED_LINES
from goreprox.process.log import ACCESS_TCP
from goreprox.tunnel.bridge import Bridge


class ConnectionLog:
    """Writes the lines of a process."""

    def __init__(self) -> None:
        self._unserved = LimitedLog(burst=REJECTED_LINES)
        """For those that no provider has accepted: they cost no target anything, so a client may make many of them."""

    def write(self, bridge: Bridge, *, certificate: str | None, provider: str | None, now: float) -> None:
        """Write the line of a client's connection that has ended; its stream was at `provider`, if at any."""
        stream = bridge.stream
        text = f"connection of {stream.client} to {stream.service} ended"
        fields = {
            "client": stream.client,
            "service": stream.service,
            "provider": provider,
            "bytes": stream.received_bytes,
            "bytes_in": stream.sent_bytes,
            "duration_s": round(now - bridge.began_at, 4),
            "certificate": certificate,
            "code": stream.end_code.value,
            "reason": stream.end_reason or "done",
            "outages": stream.outages,
        }
        if stream.accepted:
            logger.bind(event=ACCESS_TCP, **fields).info("{}", text)
        else:
            self._unserved.say(ACCESS_TCP, text, "INFO", **fields)
