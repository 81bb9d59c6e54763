"""The receiving half of a stream: bytes in order on their way to the local socket, and its window.

    delivered <= received <= limit

Duplicates are trimmed, gaps rejected. The window grows while the socket keeps up. Time is an argument.
"""

from collections import deque
from collections.abc import Iterable
from typing import Self

from goreprox.protocol.budget import Budget
from goreprox.protocol.chunks import add, part
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.events import Buffer
from goreprox.protocol.fields import Fields
from goreprox.protocol.limits import KIB

ACK_SHARE = 16
"""A sixteenth of a window is acknowledged at once. A peer with little memory may hold no more than an eighth of it: at
A bytes in each round trip the window grows to 8 A, as it doubles while half of it passes within two."""
ACK_LEAST = 8 * KIB
"""But no less than this, or a quarter of the window: most responses of a web server need no Ack of their own."""


class ReceiveHalf:
    """The peer's bytes on their way to the local socket."""

    __slots__ = (
        "_ack_from",
        "_acked",
        "_budget",
        "_mark",
        "_mark_at",
        "_window",
        "chunks",
        "delivered",
        "eof",
        "eof_delivered",
        "limit",
        "pool_used_bytes",
        "received",
    )

    def __init__(self, budget: Budget) -> None:
        """Start at offset 0 with the window that the budget has for new streams."""
        self._budget = budget
        self._set_window(budget.initial_window())
        self.pool_used_bytes = budget.account(used=0, holding=self._window)
        self.chunks: deque[Buffer] = deque()
        """What waits for the socket, in order; only `consume` takes from it."""
        self._mark = 0
        self._mark_at = 0.0
        self._acked = 0
        self.received = 0
        self.delivered = 0
        self.limit = self._window
        self.eof = False
        self.eof_delivered = False

    @property
    def eof_ready(self) -> bool:
        """Whether the socket is to be half-closed next: all bytes before the end of file were delivered."""
        return self.eof and not self.eof_delivered and self.delivered == self.received

    @property
    def ack_offset(self) -> int:
        """What `Ack.delivered` says: the end of file counts as one."""
        return self.delivered + self.eof_delivered

    @property
    def ack_pending(self) -> bool:
        """Whether something was delivered that the peer was not told of."""
        return self.ack_offset > self._acked

    @property
    def unacknowledged(self) -> int:
        """Bytes that were delivered, but that the peer still keeps."""
        return self.delivered - self._acked

    @property
    def ack_urgent(self) -> bool:
        """Whether the peer may be waiting for the acknowledgement: a part of its window, or the end."""
        return self.eof_delivered or self.delivered - self._acked >= self._ack_from

    def receive(self, offset: int, payload: Buffer) -> bool:
        """Take bytes, except those received before; return whether any were new.

        Raises:
            RemoteProtocolError: a gap, or bytes beyond the limit or the end of file.
        """
        end = offset + len(payload)
        if offset > self.received:
            raise RemoteProtocolError(f"data at offset {offset}, expected {self.received}")
        if end > self.limit:
            raise RemoteProtocolError(f"data up to offset {end}, expected at most {self.limit}")
        if end <= self.received:
            return False
        if self.eof:
            raise RemoteProtocolError(f"data up to offset {end} after the end of file at {self.received}")
        if offset < self.received:
            payload = part(payload, self.received - offset)
        add(self.chunks, payload)
        self.received = end
        return True

    def receive_eof(self, final: int) -> bool:
        """Note the end of file; return whether it is new.

        Raises:
            RemoteProtocolError: it is not where the bytes end.
        """
        if final != self.received:
            raise RemoteProtocolError(f"end of file at offset {final}, expected {self.received}")
        new = not self.eof
        self.eof = True
        return new

    def consume(self, count: int) -> None:
        """Note that the socket took `count` bytes."""
        self.delivered += count
        self._budget.totals.received_bytes += count
        chunks = self.chunks
        while count:
            size = len(chunks[0])
            if size > count:
                chunks[0] = part(chunks[0], count)
                break
            count -= size
            chunks.popleft()

    @property
    def pace_known(self) -> bool:
        """Whether the socket took half a window since the last `adapt`."""
        return self.delivered - self._mark >= self._window // 2

    def adapt(self, *, now: float, round_trip_s: float) -> None:
        """Double the window when half of it passed within two round trips: it, not the socket, sets the pace."""
        self._adapt(2 if now - self._mark_at <= 2 * round_trip_s else 1)
        self._mark, self._mark_at = self.delivered, now

    def _adapt(self, growth: int) -> None:
        """Let the window grow as far as the budget has room."""
        self._set_window(min(growth * self._window, self._budget.allowance(self.pool_used_bytes, moved=self.delivered)))

    def _set_window(self, window: int) -> None:
        self._window = window
        self._ack_from = max(window // ACK_SHARE, min(window // 4, ACK_LEAST))

    def deliver_eof(self) -> None:
        """Note that the socket was half-closed."""
        self.eof_delivered = True

    def take_ack(self) -> tuple[int, int]:
        """Return offset and limit for an Ack, and count them as sent."""
        if not self.eof:
            self._adapt(1)  # other windows may have grown meanwhile, as all do in an outage, before anything is granted
            self.limit = max(self.limit, self.delivered + self._window)
        self.pool_used_bytes = self._budget.account(used=self.pool_used_bytes, holding=self.limit - self.delivered)
        self._acked = self.ack_offset
        return self._acked, self.limit

    def discard(self) -> None:
        """Drop everything: the stream has ended."""
        self.chunks.clear()
        self.pool_used_bytes = self._budget.account(used=self.pool_used_bytes, holding=0)

    # Export.

    def export(self) -> dict[str, object]:
        """Return the marks; the bytes are in `chunks`."""
        return {
            "received": self.received,
            "delivered": self.delivered,
            "acked": self._acked,
            "limit": self.limit,
            "eof": self.eof,
            "eof_delivered": self.eof_delivered,
        }

    @classmethod
    def restore(cls, budget: Budget, marks: Fields, chunks: Iterable[bytes]) -> Self:
        """Make what was exported, with the bytes from `delivered` to `received`, or with none of them.

        The window is what was granted with the latest Ack; how fast the socket is, is measured anew.

        Raises:
            ExportError: it is not what `export` returns.
        """
        half = cls(budget)
        half.received, half.limit = marks.count("received"), marks.count("limit")
        half.delivered = half._mark = marks.count("delivered")
        half._acked = marks.count("acked")
        half.eof, half.eof_delivered = marks.flag("eof"), marks.flag("eof_delivered")
        half._set_window(max(half.limit - half._acked, budget.reserved_bytes))
        half.pool_used_bytes = budget.account(used=half.pool_used_bytes, holding=half.limit - half.delivered)
        for chunk in chunks:
            add(half.chunks, chunk)
        return half
