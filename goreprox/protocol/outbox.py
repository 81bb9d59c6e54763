"""What one end of a session has to send: control events in their order, then payload, each stream in its turn.

It fills batches, within the bounds of a message and of the path.
"""

from collections import deque
from collections.abc import Callable

from goreprox.protocol.endings import Endings
from goreprox.protocol.events import Abort, Ack, Control, Data, Eof, Event, Open, Refuse, Served
from goreprox.protocol.fair import FairQueue
from goreprox.protocol.limits import (
    BATCH_BYTES,
    BATCH_EVENTS,
    BATCH_INLINE,
    MAX_PAYLOAD,
    QUANTUM_MIN,
    RAW_PAYLOAD,
)
from goreprox.protocol.path import Path
from goreprox.protocol.state import RESETTING
from goreprox.protocol.stream import Stream

EVENT_BYTES = 48
"""At most, of an event without payload and texts."""


class Outbox:
    """Everything that waits to be sent in the present epoch."""

    __slots__ = ("_endings", "_wake", "acks", "acks_due", "awake", "control", "streams")

    def __init__(self, endings: Endings, wake: Callable[[], None]) -> None:
        """`wake` is called once whenever there is something to flush; `endings` learn which messages they are in."""
        self._endings = endings
        self._wake = wake
        self.awake = False
        """Whether `wake` was called since the last flush."""
        self.control: deque[Control] = deque()
        """Events without payload: they go first, and are never held back by what is in flight."""
        self.acks: dict[int, Stream] = {}
        """Streams whose delivery is acknowledged when `acks_due`, by id."""
        self.acks_due: float | None = None
        self.streams: FairQueue[Stream] = FairQueue()
        """Streams with payload to send, or an end."""

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self.control and not len(self.streams)

    def wake(self) -> None:
        """Have the session flushed."""
        if not self.awake:
            self.awake = True
            self._wake()

    def say(self, event: Control) -> None:
        """Queue an event, and have it flushed."""
        self.control.append(event)
        self.wake()

    def queue_acks(self) -> None:
        """Queue the acknowledgements that were delayed."""
        self.acks_due = None
        for stream in self.acks.values():
            if stream.receive.ack_pending:
                self.control.append(Ack(stream.id, *stream.receive.take_ack()))
        self.acks.clear()

    def remove(self, stream: Stream) -> None:
        """Drop what a stream has to send, but not its events: it ends, or goes elsewhere."""
        self.acks.pop(stream.id, None)
        self.streams.remove(stream)

    def clear(self) -> None:
        """Drop everything: the epoch is over."""
        self.control.clear()
        self.acks.clear()
        self.acks_due = None
        self.streams.clear()
        self._endings.carried.clear()

    def batch(self, path: Path) -> list[Event]:
        """Return the events of the next message."""
        events: list[Event] = []
        size = 0
        while self.control and len(events) < BATCH_EVENTS and size < BATCH_INLINE:
            event = self.control.popleft()
            events.append(event)
            size += EVENT_BYTES
            if isinstance(event, Open):
                size += len(event.service) + len(event.client) + len(event.destination)
            elif isinstance(event, Served):
                size += 4 * (len(event.service) + len(event.at) + len(event.reason))
            elif isinstance(event, (Refuse, Abort)):
                size += 4 * len(event.reason)  # UTF-8 at its longest
                self._endings.carried.append((path.seq, event.stream))
        if waiting := len(self.streams):
            self._fill(events, size, path, waiting)
        return events

    def _fill(self, events: list[Event], size: int, path: Path, waiting: int) -> None:
        """Add payload of the `waiting` streams, each in its turn, as far as the path has room."""
        inline = size
        share = path.congestion.message_bytes
        quantum = min(max(share // waiting, QUANTUM_MIN), MAX_PAYLOAD)
        room = path.room
        most = min(BATCH_BYTES, share)
        while len(events) < BATCH_EVENTS and inline < BATCH_INLINE and size < most:
            if room - size < QUANTUM_MIN:
                break
            stream = self.streams.turn(quantum)
            if stream is None:
                break
            before = size
            send = stream.send
            more = send.sendable
            if more > 0:
                offset, payload = send.take(min(more, quantum, room - size))
                count = len(payload)
                events.append(Data(stream.id, offset, payload))
                more -= count
                size += count + EVENT_BYTES
                if count < RAW_PAYLOAD:
                    inline += count + EVENT_BYTES
            if send.sent == send.end and (send.eof or stream.state is RESETTING):
                size += self._tail(stream, events, path)
            self.streams.done(stream, size - before, more=more > 0)

    def _tail(self, stream: Stream, events: list[Event], path: Path) -> int:
        """Add how the stream ends, after its last byte."""
        if stream.state is RESETTING:
            if stream.reset_sent:
                return 0
            events.append(stream.take_reset())
            self._endings.carried.append((path.seq, stream.id))
            return EVENT_BYTES
        if acks := stream.receive.ack_pending:  # so the peer knows what was not delivered before the end
            events.append(Ack(stream.id, *stream.receive.take_ack()))
        events.append(Eof(stream.id, stream.send.take_eof()))
        return EVENT_BYTES * (1 + acks)
