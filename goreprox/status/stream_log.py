"""What the log and the feed say of streams: which have begun, and why they have ended. Counts the ends, too."""

import time
from collections import deque
from typing import Final

from loguru import logger

from goreprox.process.clock import iso
from goreprox.protocol.stream import Stream
from goreprox.status.document import EndedStreamStatus
from goreprox.tunnel.driver import Driver

LAST_ENDED: Final = 20
"""Ended streams that are kept; each takes at most 1 KiB: two names of 64 characters, an address, a reason of 256."""


class StreamLog:
    """Tells of the streams of a process, once each."""

    def __init__(self, driver: Driver) -> None:
        """Take the names of peers, the counters and the feed from `driver`."""
        self._by_code = driver.budget.totals.ends
        self._last: deque[tuple[float, Stream, str | None, str]] = deque(maxlen=LAST_ENDED)
        self._driver = driver

    def opened(self, stream: Stream) -> None:
        """Tell of a stream that has begun."""
        self._driver.feed.add(
            "stream_opened",
            f"connection of {stream.client} to {stream.service} opened",
            {"number": stream.number, "client": stream.client, "service": stream.service},
        )

    def ended(self, stream: Stream) -> None:
        """Count a stream that has ended, and tell of it."""
        peer = self._driver.peer_of(stream)
        name = peer.info.name.name if peer is not None else None
        reason = stream.end_reason or "done"
        code = stream.end_code.value
        self._by_code[code] += 1
        self._last.append((time.time(), stream, name, reason))
        fields = {
            "number": stream.number,
            "client": stream.client,
            "service": stream.service,
            "peer": name,
            "sent_bytes": stream.sent_bytes,
            "received_bytes": stream.received_bytes,
            "reason": reason,
            "code": code,
            "outages": stream.outages,
        }
        text = f"connection of {stream.client} to {stream.service} ended: {reason}"
        self._driver.feed.add("stream_ended", text, fields)
        logger.debug("{}", text, event="stream_ended", **fields)

    @property
    def count(self) -> int:
        """How many have ended."""
        return self._by_code.total()

    @property
    def last(self) -> list[EndedStreamStatus]:
        """The last ones that have ended, the oldest first."""
        return [
            {
                "ended_at": iso(at),
                "client": stream.client,
                "service": stream.service,
                "peer": peer,
                "sent_bytes": stream.sent_bytes,
                "received_bytes": stream.received_bytes,
                "reason": reason,
                "code": stream.end_code.value,
            }
            for at, stream, peer, reason in self._last
        ]
