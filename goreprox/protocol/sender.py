"""The sending half of a stream: a replay buffer with three marks.

    acked <= sent <= end,   end - acked <= window

Bytes below `acked` are dropped, those up to `sent` are on their way (or lost: a rewind sends them again), those up to
`end` wait.
"""

from collections import deque
from collections.abc import Iterable
from typing import Self

from goreprox.protocol.budget import Budget
from goreprox.protocol.chunks import add, part
from goreprox.protocol.errors import LocalProtocolError, RemoteProtocolError
from goreprox.protocol.events import Buffer
from goreprox.protocol.fields import Fields
from goreprox.protocol.limits import RAW_PAYLOAD


class SendHalf:
    """The local socket's bytes on their way to the peer.

    Chunks are immutable, as queued messages may refer to them. `finished` once the peer's socket took everything, the
    end of file included.
    """

    __slots__ = (
        "_budget",
        "_unacked",
        "_unsent",
        "acked",
        "end",
        "eof",
        "eof_sent",
        "finished",
        "limit",
        "pool_used_bytes",
        "sent",
    )

    def __init__(self, budget: Budget, *, limit: int) -> None:
        """Start at offset 0; the peer accepts bytes below `limit`."""
        self._budget = budget
        self.pool_used_bytes = 0
        self._unacked: deque[Buffer] = deque()
        self._unsent: deque[Buffer] = deque()
        self.acked = 0
        self.sent = 0
        self.end = 0
        self.limit = limit
        self.eof = False
        self.eof_sent = False
        self.finished = False

    @property
    def room(self) -> int:
        """Bytes that may be written now, as far as the peer's window and our budget have room."""
        if self.eof:
            return 0
        limit = self.acked + self._budget.allowance(self.pool_used_bytes, moved=self.acked)
        if limit > self.limit:
            limit = self.limit
        return limit - self.end if limit > self.end else 0

    @property
    def sendable(self) -> int:
        """Bytes that wait and that the peer has room for."""
        return (self.end if self.end < self.limit else self.limit) - self.sent

    @property
    def pending(self) -> bool:
        """Whether anything can be sent now."""
        sent = self.sent
        if sent < self.end:
            return sent < self.limit
        return self.eof and not self.eof_sent

    def write(self, data: bytes) -> None:
        """Take bytes from the socket, and ownership of the buffer.

        Raises:
            LocalProtocolError: after `write_eof`, or beyond the peer's window.
        """
        end = self.end + len(data)
        if self.eof or end > self.limit:
            raise LocalProtocolError(f"write of {len(data)} bytes, expected at most {self.room}")
        add(self._unsent, data)
        self.end = end
        self._budget.totals.sent_bytes += len(data)
        if end - self.acked > self._budget.reserved_bytes:
            self._account()

    def write_eof(self) -> None:
        """Note that the socket was half-closed by its peer."""
        self.eof = True

    def take_eof(self) -> int:
        """Return the final offset, and count the end of file as sent."""
        self.eof_sent = True
        return self.end

    def take(self, max_bytes: int) -> tuple[int, Buffer]:
        """Return offset and payload of what is to be sent next, at most `max_bytes`; small chunks are joined.

        1 <= max_bytes <= sendable.
        """
        offset = self.sent
        payload = self._unsent.popleft()
        if len(payload) > max_bytes:
            self._unsent.appendleft(part(payload, max_bytes))
            payload = part(payload, 0, max_bytes)
        elif self._unsent and len(payload) < RAW_PAYLOAD:
            payload = self._join(payload, max_bytes)
        add(self._unacked, payload)
        self.sent = offset + len(payload)
        return offset, payload

    def _join(self, first: Buffer, max_bytes: int) -> Buffer:
        parts = [first]
        size = len(first)
        while self._unsent and size + len(self._unsent[0]) <= min(max_bytes, RAW_PAYLOAD):
            parts.append(self._unsent.popleft())
            size += len(parts[-1])
        return first if len(parts) == 1 else b"".join(parts)

    def ack(self, delivered: int, limit: int) -> None:
        """Drop what the peer's socket took; an older acknowledgement changes nothing.

        Raises:
            RemoteProtocolError: bytes acknowledged that were never sent.
        """
        if delivered > self.sent + self.eof_sent:
            raise RemoteProtocolError(f"ack at offset {delivered}, expected at most {self.sent + self.eof_sent}")
        if delivered > self.end:
            self.finished = True
            delivered = self.end
        acked, unacked = self.acked, self._unacked
        while unacked and (end := acked + len(unacked[0])) <= delivered:
            unacked.popleft()
            acked = end
        if delivered > acked:
            unacked[0] = part(unacked[0], delivered - acked)
            acked = delivered
        self.acked = acked
        if limit > self.limit:
            self.limit = limit
        self._account()

    def rewind(self, received: int, *, eof_received: bool) -> int:
        """Send again from `received`; return how many bytes that is.

        Raises:
            RemoteProtocolError: the offset is not within what was sent and is still kept.
        """
        if not self.acked <= received <= self.sent or (eof_received and not (self.eof and received == self.end)):
            raise RemoteProtocolError(f"resume at offset {received}, expected {self.acked} to {self.sent}")
        replayed = self.sent - received
        while self.sent > received:
            chunk = self._unacked.pop()
            start = self.sent - len(chunk)
            if start < received:
                self._unacked.append(part(chunk, 0, received - start))
                chunk = part(chunk, received - start)
                start = received
            self._unsent.appendleft(chunk)
            self.sent = start
        self.eof_sent = eof_received
        return replayed

    def since(self, offset: int) -> bytes:
        """Return the bytes from `offset` on, none of which may be acknowledged."""
        assert self.acked <= offset <= self.end
        return b"".join((*self._unacked, *self._unsent))[offset - self.acked :]

    def stop(self) -> None:
        """Count everything as sent: the peer takes no more. What it has not acknowledged is kept for `since`."""
        self._unacked.extend(self._unsent)
        self._unsent.clear()
        self.sent = self.end

    def discard(self) -> None:
        """Drop everything: the stream has ended."""
        self._unacked.clear()
        self._unsent.clear()
        self.acked = self.sent = self.end
        self._account()

    # Export.

    def export(self) -> dict[str, object]:
        """Return the marks; `chunks` has the bytes."""
        return {
            "acked": self.acked,
            "sent": self.sent,
            "end": self.end,
            "limit": self.limit,
            "eof": self.eof,
            "eof_sent": self.eof_sent,
            "finished": self.finished,
        }

    @property
    def chunks(self) -> tuple[deque[Buffer], deque[Buffer]]:
        """The bytes from `acked` on, in order: those that are on their way, then those that wait."""
        return self._unacked, self._unsent

    @classmethod
    def restore(cls, budget: Budget, marks: Fields, chunks: Iterable[bytes]) -> Self:
        """Make what was exported, with the bytes from `acked` to `end`, or with none of them.

        Raises:
            ExportError: it is not what `export` returns.
        """
        half = cls(budget, limit=marks.count("limit"))
        half.acked = half.sent = marks.count("acked")
        for chunk in chunks:
            add(half._unsent, chunk)
        sent = marks.count("sent")
        while half._unsent and half.sent < sent:
            half.take(sent - half.sent)
        half.sent = sent
        half.end = marks.count("end")
        half.eof, half.eof_sent, half.finished = marks.flag("eof"), marks.flag("eof_sent"), marks.flag("finished")
        half._account()
        return half

    def _account(self) -> None:
        self.pool_used_bytes = self._budget.account(used=self.pool_used_bytes, holding=self.end - self.acked)
