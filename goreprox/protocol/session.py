"""All streams between one edge and one provider, over whatever path there is.

An epoch is one unbroken use of one path. It begins with pages of `Resume` from its initiator, which the other
end answers with its own; from then on everything flows in order. Any loss ends it, and the next one goes on
from the offsets that the pages name. Epochs count up; the opener takes even numbers, the acceptor odd ones, so
every epoch has one initiator and one path, and of two begun at once the higher wins.

Stream ids count up and Opens are sent in their order: so "seen before" is one number, `next_id`.

Sans-IO: the driver brings messages, paths and the time, takes messages (`flush`) and notices, and wakes us at
`deadline`. Rejected: several paths at once for one session, which needs reordering across them and wins nothing
where one link carries what Python can.
"""

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from goreprox.protocol import wire
from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.events import (
    Abort,
    Accept,
    Ack,
    Batch,
    Buffer,
    Code,
    Control,
    Data,
    Drain,
    Eof,
    Event,
    Goodbye,
    Live,
    Open,
    Probe,
    Refuse,
    Reset,
    Resume,
)
from goreprox.protocol.limits import (
    ALLOWANCE_S,
    LAST_WORDS_MAX,
    MAX_OFFSET,
    PATH_ACK_DELAY_S,
    RESET_LINGER_S,
    RESTART_MAX_S,
    RESTART_MIN_S,
    STREAM_ACK_DELAY_S,
)
from goreprox.protocol.outbox import Outbox
from goreprox.protocol.path import Path
from goreprox.protocol.resume import GONE, Beginning
from goreprox.protocol.state import OPEN, RESETTING, State, Step
from goreprox.protocol.stream import Stream

PROTOCOL_ERROR = "protocol error: "
"""How the goodbye of a session that has failed begins; its process goes on."""


class Kind(enum.Enum):
    """What the driver is told."""

    OPENED = enum.auto()
    """The peer wants a stream: dial."""
    ACCEPTED = enum.auto()
    REFUSED = enum.auto()
    UNSENT = enum.auto()
    """The path was lost before anything of this stream was sent: another session may carry it."""
    READABLE = enum.auto()
    """Bytes or an end of file wait for the socket."""
    WRITABLE = enum.auto()
    """The socket may be read again."""
    RESET = enum.auto()
    """Reset the socket after what waits for it."""
    ABORTED = enum.auto()
    """Reset the socket now."""
    CLOSED = enum.auto()
    """The stream ended well."""
    ESTABLISHED = enum.auto()
    """The peer answers: streams flow."""
    DRAINING = enum.auto()
    """The peer wants no new streams."""
    GOODBYE = enum.auto()
    """The peer has ended; its streams were aborted."""
    FAILED = enum.auto()
    """The peer broke the protocol, or something of ours did not work; its streams were aborted."""


READABLE = Kind.READABLE


@dataclass(slots=True)
class Notice:
    """One thing to do for the driver. Nobody changes one; a frozen one takes three times as long to make."""

    kind: Kind
    stream: Stream | None = None
    reason: str = ""
    code: Code = Code.OTHER
    """Of a refusal."""


@dataclass(slots=True)
class Counters:
    """What a session has been through, for people."""

    outages: int = 0
    """Epochs that were established and were lost."""
    replayed_bytes: int = 0
    """Payload that was sent again after outages."""
    opened: int = 0
    """Streams ever, refused ones included."""
    sent_bytes: int = 0
    """Payload of ended streams that local sockets were read; `Session.traffic` adds the live ones."""
    received_bytes: int = 0
    """Payload of ended streams that local sockets took."""


class Traffic(NamedTuple):
    """Payload of streams, each byte once however often it was sent."""

    sent_bytes: int
    received_bytes: int


class Session:
    """One end of a session. `wake` is called once whenever the next `flush` has something to do."""

    def __init__(
        self, *, opener: bool, version: int, budget: Budget, grace_s: float, wake: Callable[[], None], now: float
    ) -> None:
        """Start without a path.

        `version` of the protocol is written, the newest that both ends understand; any that we understand is read.
        `grace_s`: how long streams are kept without a path, 0 to 86,400 s.
        """
        self.opener = opener
        self.established = False
        """Whether streams flow at this moment: the peer's resume has arrived."""
        self.streams: dict[int, Stream] = {}
        self.notices: list[Notice] = []
        self.counters = Counters()
        self.peer_draining = False
        self.failed: str | None = None
        self._version = version
        self._budget = budget
        self._grace_s = self._peer_grace_s = float(grace_s)
        self._peer_window = budget.floor_bytes
        self._wake_up = wake
        self._awake = False
        self._paths: dict[object, None] = {}
        self._path: Path | None = None
        self._epoch = 0
        self._lost_at: float | None = now
        self._restart_at: float | None = None
        self._restart_s = RESTART_MIN_S
        self._next_id = 1
        self._last_id_in = 0
        self._outbox = Outbox()
        self._acks: dict[int, Stream] = {}
        self._acks_due: float | None = None
        self._resetting: dict[int, float] = {}
        self._ended: dict[int, Control] = {}
        """Last words (Refuse, Abort) that the peer may not have heard yet."""
        self._beginning = Beginning()
        self._offered: dict[int, float] = {}
        """Streams that the peer has not accepted, and since when their Open has been on its way."""
        self._unflushed: list[int] = []
        """Those whose Open goes with the next flush."""
        self._draining = False
        self._goodbye: str | None = None

    # Paths.

    @property
    def round_trip_s(self) -> float:
        """Smoothed round-trip time of the path in use, seconds; 0.1 while none is known."""
        return self._path.srtt if self._path is not None and self._path.srtt else 0.1

    @property
    def path_id(self) -> object | None:
        """The path in use."""
        return self._path.path_id if self._path is not None else None

    @property
    def lost_at(self) -> float | None:
        """Since when nothing flows, or None."""
        return self._lost_at

    @property
    def stalled(self) -> bool:
        """Whether the peer was asked for an acknowledgement and has given none so far."""
        return self._path is not None and self._path.asked

    @property
    def unanswered(self) -> int:
        """Streams of ours that the peer has neither accepted nor refused."""
        return len(self._offered) + len(self._unflushed)

    @property
    def grace_s(self) -> float:
        """The smaller of the two graces, without the allowance."""
        return min(self._grace_s, self._peer_grace_s)

    @property
    def settled(self) -> bool:
        """Whether the peer has acknowledged all that we sent, or there is nobody to do it."""
        if self._restart_at is not None:
            return False
        return self._path is None or (
            self._path.peer_acked == self._path.seq
            and self._beginning.over
            and not self._outbox.control
            and not len(self._outbox.streams)
        )

    def path_up(self, path_id: object, now: float) -> None:
        """A path is there, perhaps again: it is used unless another one works."""
        if self.failed is not None:
            return
        self._paths[path_id] = None
        if self._path is None or self._path.path_id == path_id:
            self._lose(now)
            self._begin(path_id, now)

    def path_down(self, path_id: object, now: float) -> None:
        """A path is gone; another takes over if there is one."""
        self._paths.pop(path_id, None)
        if self._path is not None and self._path.path_id == path_id:
            self._lose(now)
            if self._paths:
                self._begin(next(iter(self._paths)), now)

    def _lose(self, now: float) -> None:
        if self.established:
            self.counters.outages += 1
        self.established = False
        self._path = None
        if self._lost_at is None:
            self._lost_at = now
        self._outbox.clear()
        self._beginning = Beginning()
        self._take_back()
        self._acks.clear()
        self._acks_due = None
        self._wake()

    def _take_back(self) -> None:
        """Give streams away whose Open has not been sent in this epoch, nor in an earlier one."""
        unsent = [self.streams[i] for i in self._unflushed if i in self.streams and i not in self._offered]
        self._unflushed.clear()
        for stream in unsent:
            if stream.state is State.OPENING:
                stream.receive_refusal()
                self._forget(stream)
                self.notices.append(Notice(Kind.UNSENT, stream))

    def _begin(self, path_id: object, now: float) -> None:
        """Begin an epoch of ours."""
        self._epoch += 1
        if self._epoch % 2 != (0 if self.opener else 1):
            self._epoch += 1
        self._enter(path_id, now)

    def _enter(self, path_id: object, now: float) -> None:
        self._path = Path(path_id, self._epoch, now=now)
        self._restart_at = None
        self._beginning = Beginning(self.streams)
        if self._draining:
            self._outbox.control.append(Drain())
        if self._goodbye is not None:
            self._outbox.control.append(Goodbye(self._goodbye))
        self._wake()

    def _restart(self, now: float) -> None:
        """Something was lost on a path that stays up: begin again, on another one if there is one."""
        path = self._path
        assert path is not None
        self._restart_s = RESTART_MIN_S if self.established else min(2 * self._restart_s, RESTART_MAX_S)
        self._lose(now)
        del self._paths[path.path_id]  # to the end: another one goes first
        self._paths[path.path_id] = None
        self._restart_at = now + self._restart_s

    # Time.

    def deadline(self) -> float | None:
        """When `tick` wants to be called next."""
        if self.failed is not None:
            return None
        times = [] if self._acks_due is None else [self._acks_due]
        if self._path is not None and (due := self._path.deadline) is not None:
            times.append(due)
        if self._lost_at is not None and self.streams:
            times.append(self._lost_at + self.grace_s + ALLOWANCE_S)
        if self._restart_at is not None:
            times.append(self._restart_at)
        if self._resetting and self.established:
            times.append(next(iter(self._resetting.values())))
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Do what is due; call `flush` afterwards."""
        path = self._path
        if self.failed is not None:
            return
        if path is not None and path.lost(now):
            self._restart(now)
        elif path is not None and path.probe_due(now):
            if path.stalled and self.established and len(self._paths) > 1:
                self._restart(now)
            else:
                self._outbox.control.append(Probe())
        if self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            if self._path is None and self._paths:
                self._begin(next(iter(self._paths)), now)
        if self.established:
            for stream_id, _ in list(itertools.takewhile(lambda item: item[1] <= now, self._resetting.items())):
                self._end(self.streams[stream_id], "the bytes before the reset could not be delivered in time")
        if self._lost_at is not None and now >= self._lost_at + self.grace_s + ALLOWANCE_S:
            self.abandon(f"no path to the peer for {self.grace_s:g} s")

    def abandon(self, reason: str) -> None:
        """End all streams: the peer is lost, or we are leaving."""
        self._outbox.streams.clear()
        for stream in list(self.streams.values()):
            self._end(stream, reason)

    def _end(self, stream: Stream, reason: str) -> None:
        stream.abort(reason)
        self.notices.append(Notice(Kind.ABORTED, stream, reason))

    # Commands.

    def open(self, stream: Stream) -> None:
        """Carry a stream of ours, with the bytes it has already taken from its client."""
        assert stream.state is State.OPENING, f"{stream.state.name} stream opened"
        stream.host = self
        stream.id = self._next_id
        self._next_id += 1
        stream.send.limit = self._peer_window
        self.streams[stream.id] = stream
        self.counters.opened += 1
        if self.established:
            self._offer(stream)
            self.stream_ready(stream)

    def _offer(self, stream: Stream) -> None:
        self._say(Open(stream.id, stream.service, stream.client, stream.destination, stream.receive.limit))
        self._unflushed.append(stream.id)

    def drain(self) -> None:
        """Ask the peer for no new streams."""
        self._draining = True
        if self._path is not None:
            self._say(Drain())

    def goodbye(self, reason: str) -> None:
        """Abort what is left and tell the peer that this process ends; wait for `settled`."""
        for stream in list(self.streams.values()):
            stream.abort(reason)
        self._goodbye = reason
        if self._path is not None:
            self._say(Goodbye(reason))

    # What streams ask for (stream.Host).

    def stream_ready(self, stream: Stream) -> None:
        """Schedule a stream that has something to send."""
        if self.established and stream.place is None and (stream.send.pending or stream.state is RESETTING):
            self._outbox.streams.add(stream)
            if not self._awake:
                self._wake()

    def stream_acks(self, stream: Stream, *, urgent: bool, now: float) -> None:
        """Acknowledge delivery, soon or with others."""
        if stream.state is not OPEN or not self.established:
            return
        if urgent:
            self._acks.pop(stream.id, None)
            self._say(Ack(stream.id, *stream.receive.take_ack()))
            self._finish_if_done(stream)
        else:
            self._acks[stream.id] = stream
            # A peer whose budget is used up keeps no more than its floor, whatever the window: it may be waiting.
            waits = stream.receive.unacknowledged >= self._peer_window // 2
            due = now + (PATH_ACK_DELAY_S if waits else STREAM_ACK_DELAY_S)
            if self._acks_due is None or due < self._acks_due:
                self._acks_due = due
                self._wake()

    def stream_accepted(self, stream: Stream) -> None:
        """Tell the opener, unless a page is about to."""
        if self._beginning.tells(stream.id):
            return
        if self.established:
            self._say(Accept(stream.id, stream.receive.limit))
        else:
            self._beginning.late.append(stream)

    def stream_refused(self, stream: Stream, code: Code, reason: str) -> None:
        """Tell the opener."""
        self._last_word(Refuse(stream.id, code, reason))
        stream.host = None
        stream.close(abort=None)
        self._forget(stream)

    def stream_resetting(self, stream: Stream, now: float) -> None:
        """Send what came before the reset, then the reset."""
        if self.established and stream.receive.ack_pending:  # so the peer knows what was not delivered before the reset
            self._say(Ack(stream.id, *stream.receive.take_ack()))
        self._resetting[stream.id] = now + RESET_LINGER_S
        self.stream_ready(stream)
        self._wake()

    def stream_closed(self, stream: Stream, *, abort: str | None) -> None:
        """Forget a stream."""
        if abort is not None and stream.id in self.streams:
            self._last_word(Abort(stream.id, Code.OTHER, abort))
        self.counters.sent_bytes += stream.sent_bytes
        self.counters.received_bytes += stream.received_bytes
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._acks.pop(stream.id, None)
        self._resetting.pop(stream.id, None)
        self._offered.pop(stream.id, None)
        self._outbox.streams.remove(stream)

    def _last_word(self, event: Refuse | Abort) -> None:
        """Say what ends a stream, again if need be, until the peer has it."""
        self._ended[event.stream] = event
        if self.established:
            self._say(event)

    def _finish_if_done(self, stream: Stream) -> None:
        if stream.done:
            if self._beginning.tells(stream.id):  # its page would have been the acknowledgement
                self._say(Ack(stream.id, *stream.receive.take_ack()))
            stream.step(Step.FINISH)
            stream.close(abort=None)
            self.notices.append(Notice(Kind.CLOSED, stream))

    # What arrives.

    def receive(self, path_id: object, frames: Sequence[Buffer], now: float) -> None:
        """Take one message. A peer that breaks the protocol loses its streams; nothing is raised."""
        if self.failed is not None or path_id not in self._paths:
            return
        try:
            _, batch = wire.decode(frames)
            self._receive(path_id, batch, sum(map(len, frames)), now)
        except RemoteProtocolError as exc:
            self.fail(str(exc), now)

    def fail(self, reason: str, now: float) -> None:
        """End the session for good: one end cannot be trusted with a single stream. Its last message says so."""
        self.abandon(f"{PROTOCOL_ERROR}{reason}")
        self._outbox.control.append(Goodbye(f"{PROTOCOL_ERROR}{reason}"))
        self.failed = reason
        self.established = False
        self._paths.clear()
        self._lost_at = now
        self.notices.append(Notice(Kind.FAILED, None, reason))
        self._wake()

    def _receive(self, path_id: object, batch: Batch, size: int, now: float) -> None:
        if batch.epoch < self._epoch or (batch.epoch == self._epoch and self._path is None):
            return  # superseded: inert
        if batch.epoch > self._epoch:
            if batch.epoch > MAX_OFFSET // 2:
                raise RemoteProtocolError(f"epoch {batch.epoch}, expected at most {MAX_OFFSET // 2}")
            self._lose(now)
            self._epoch = batch.epoch
            if batch.seq != 0 or not batch.events:
                self._begin(path_id, now)  # its beginning was lost
                return
            self._enter(path_id, now)
        path = self._path
        assert path is not None
        if path_id != path.path_id:
            return
        path.ack(batch.ack, now)
        self._heard(path.peer_acked)
        try:
            new = path.receive(batch.seq, size if batch.events else 0, now)
        except LookupError:
            self._restart(now)
            return
        if new:
            for event in batch.events:
                if isinstance(event, Data):
                    self._data(event)
                else:
                    self._apply(event, path, now)
        if self._outbox.control or self._outbox.streams or path.ack_due(now):
            self._wake()

    def _heard(self, acked: int) -> None:
        """Drop last words, and streams whose reset arrived, that the peer has acknowledged."""
        ends = self._outbox.ends
        while ends and ends[0][0] < acked:
            stream_id = ends.popleft()[1]
            self._ended.pop(stream_id, None)
            stream = self.streams.get(stream_id)
            if stream is not None and stream.state is State.RESETTING:
                self._reset_arrived(stream)

    def _reset_arrived(self, stream: Stream) -> None:
        stream.step(Step.FINISH)
        stream.close(abort=None)
        self.notices.append(Notice(Kind.CLOSED, stream))

    def _apply(self, event: Control, path: Path, now: float) -> None:  # noqa: C901, PLR0912 -- one arm an event
        if not self.established and not isinstance(event, Resume | Drain | Goodbye | Probe):
            raise RemoteProtocolError(f"{type(event).__name__} before the last page of the resume")
        match event:
            case Ack(stream_id, delivered, limit):
                if stream := self._stream(stream_id):
                    self._acked(stream, delivered, limit)
            case Open():
                self._opened(event)
            case Accept(stream_id, limit):
                if stream := self._stream(stream_id):
                    self._accepted(stream, limit)
            case Eof(stream_id, final):
                if (stream := self._stream(stream_id)) and stream.receive_eof(final):
                    self.notices.append(Notice(Kind.READABLE, stream))
            case Refuse(stream_id, code, reason):
                if stream := self._stream(stream_id):
                    self._refused(stream, code, reason)
            case Reset(stream_id, final, reason):
                if stream := self._stream(stream_id):
                    stream.receive_reset(final, reason)
                    kind = Kind.RESET if stream.state is State.RESET else Kind.CLOSED
                    self.notices.append(Notice(kind, stream, reason))
            case Abort(stream_id, code, reason):
                if stream := self._stream(stream_id):
                    self._aborted(stream, code, reason)
            case Resume():
                self._resume(event, now)
            case Drain():
                self.peer_draining = True
                self.notices.append(Notice(Kind.DRAINING))
            case Goodbye(reason):
                self.peer_draining = True
                self.abandon(reason)
                self.notices.append(Notice(Kind.GOODBYE, None, reason))
                path.hurry(now)
            case Probe():
                path.hurry(now)
            case _:
                assert_never(event)

    def _data(self, event: Data) -> None:
        if not self.established:
            raise RemoteProtocolError("Data before the last page of the resume")
        stream = self.streams.get(event.stream) or self._stream(event.stream)
        if stream is not None and stream.receive_data(event.offset, event.payload):
            self.notices.append(Notice(READABLE, stream))

    def _stream(self, stream_id: int) -> Stream | None:
        """Return a live stream, or None for one that has ended.

        Raises:
            RemoteProtocolError: it was never opened.
        """
        stream = self.streams.get(stream_id)
        if stream is None and stream_id >= (self._next_id if self.opener else self._last_id_in + 1):
            raise RemoteProtocolError(f"stream {stream_id} was never opened")
        return stream

    def _opened(self, event: Open) -> None:
        if self.opener:
            raise RemoteProtocolError("Open from the acceptor")
        if event.stream <= self._last_id_in:
            raise RemoteProtocolError(f"stream id {event.stream} used again, expected more than {self._last_id_in}")
        if len(self._ended) >= LAST_WORDS_MAX:
            raise RemoteProtocolError(f"Open, with the ends of {LAST_WORDS_MAX} streams not acknowledged")
        self._last_id_in = event.stream
        stream = Stream(
            opener=False,
            service=event.service,
            client=event.client,
            destination=event.destination,
            budget=self._budget,
        )
        stream.id = event.stream
        stream.host = self
        stream.send.limit = event.limit
        self.streams[stream.id] = stream
        self.counters.opened += 1
        self.notices.append(Notice(Kind.OPENED, stream))

    def _accepted(self, stream: Stream, limit: int) -> None:
        first = not stream.accepted
        stream.step(Step.RECEIVE_ACCEPT)
        stream.accepted = True
        self._offered.pop(stream.id, None)
        stream.send.limit = max(stream.send.limit, limit)
        if first and stream.state is State.OPEN:
            self.notices.append(Notice(Kind.ACCEPTED, stream))
            self.notices.append(Notice(Kind.WRITABLE, stream))
        self.stream_ready(stream)

    def _refused(self, stream: Stream, code: Code, reason: str) -> None:
        if stream.state is State.OPENING:
            stream.receive_refusal()
            self._forget(stream)
            self.notices.append(Notice(Kind.REFUSED, stream, reason, code))
        else:
            stream.receive_end(Step.RECEIVE_REFUSE, reason)
            self.notices.append(Notice(Kind.CLOSED, stream, reason))

    def _acked(self, stream: Stream, delivered: int, limit: int) -> None:
        writable = stream.receive_ack(delivered, limit)
        self.stream_ready(stream)
        if writable:
            self.notices.append(Notice(Kind.WRITABLE, stream))
            self._finish_if_done(stream)

    def _aborted(self, stream: Stream, code: Code, reason: str) -> None:
        well = stream.state is State.RESETTING or (code is Code.GONE and stream.passed)
        stream.receive_end(Step.RECEIVE_ABORT, reason)
        self.notices.append(Notice(Kind.CLOSED if well else Kind.ABORTED, stream, reason))

    # Resume.

    def _resume(self, event: Resume, now: float) -> None:
        if self.established:
            raise RemoteProtocolError("Resume in the midst of an epoch")
        self._peer_grace_s = event.grace_s
        self._peer_window = event.window
        most_ended = LAST_WORDS_MAX + self._budget.max_streams
        if not self.opener:
            most_ended = min(most_ended, self.counters.opened)
        for live in event.streams:
            self._beginning.take(
                live.stream, next_id=event.next_id, ours=self.streams, seen=self._may_have_ended, most_ended=most_ended
            )
            self._resume_stream(live)
        self._wake()
        if event.last:
            self._establish(event.next_id, now)

    def _may_have_ended(self, stream_id: int) -> bool:
        """Whether a stream that the peer lists and we do not have has ended.

        An opener that does not know a stream has forgotten it, with all of the session; an acceptor may be about to
        learn of it.
        """
        return self.opener or stream_id <= self._last_id_in

    def _resume_stream(self, live: Live) -> None:
        stream = self.streams.get(live.stream)
        if stream is None:
            return
        if stream.opener and live.accepted and not stream.accepted:
            self._accepted(stream, live.limit)
        if stream.state in (State.OPENING, State.DIALING, State.OPEN, State.RESETTING):
            self.counters.replayed_bytes += stream.send.rewind(live.received, eof_received=live.eof)
            stream.send.ack(live.delivered, live.limit)
            stream.reset_sent = False

    def _establish(self, peer_next_id: int, now: float) -> None:
        """The peer has told all it knows: go on from there."""
        self.established = True
        self._lost_at = None
        beginning = self._beginning
        # What the peer does not list, it knows.
        self._ended = {stream_id: word for stream_id, word in self._ended.items() if beginning.names(stream_id)}
        beginning.end(self.streams)
        for stream in beginning.late:
            if stream.id in self.streams:
                self._outbox.control.append(Accept(stream.id, stream.receive.limit))
        if self.opener:
            self._next_id = max(self._next_id, peer_next_id)
        for stream in list(self.streams.values()):
            if self.opener and stream.id >= peer_next_id:
                if stream.accepted or now > self._offered.get(stream.id, now) + self.grace_s + ALLOWANCE_S:
                    # The peer has forgotten our session altogether: it may have had bytes that must not come twice.
                    stream.receive_end(Step.RECEIVE_ABORT, GONE)
                    self.notices.append(Notice(Kind.ABORTED, stream, GONE))
                    continue
                stream.send.rewind(0, eof_received=False)
                stream.reset_sent = False
                self._offer(stream)
            elif stream.state is State.RESETTING and stream.id not in beginning.listed:
                self._reset_arrived(stream)
                continue
            if stream.state is State.OPEN:
                self.notices.append(Notice(Kind.WRITABLE, stream))
                if stream.receive.ack_pending:
                    self._outbox.control.append(Ack(stream.id, *stream.receive.take_ack()))
                self._finish_if_done(stream)
            self.stream_ready(stream)
        self._resetting = dict.fromkeys(self._resetting, now + RESET_LINGER_S)
        self.notices.append(Notice(Kind.ESTABLISHED))

    # What goes out.

    def _say(self, event: Control) -> None:
        self._outbox.control.append(event)
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake_up()

    def flush(self, now: float) -> list[tuple[object, list[Buffer]]]:
        """Return the messages to send now, each with its path. Payloads are shared with the replay buffers."""
        self._awake = False
        messages: list[tuple[object, list[Buffer]]] = []
        if self._acks_due is not None and now >= self._acks_due:
            self._flush_acks()
        path = self._path
        if path is None:
            return messages
        beginning = self._beginning
        if not beginning.told:
            page = beginning.page(
                self.streams,
                grace_s=self._grace_s,
                window=self._budget.floor_bytes,
                next_id=self._next_id if self.opener else self._last_id_in + 1,
            )
            messages.append(self._message(path, [page], now))
            self._wake()
            return messages
        if not beginning.answered:
            self._outbox.control.extend(beginning.answers(self._ended))
            if not beginning.answered:
                self._wake()
        if self._unflushed:
            self._offered |= dict.fromkeys(filter(self.streams.__contains__, self._unflushed), now)
            self._unflushed.clear()
        outbox = self._outbox
        while outbox.control or outbox.streams:
            events = outbox.batch(path, established=self.established)
            if not events:
                break
            messages.append(self._message(path, events, now))
        if path.ack_due(now):
            path.acknowledged()
            batch = Batch(path.epoch, path.seq, path.received, ())
            messages.append((path.path_id, wire.encode(batch, version=self._version)))
        return messages

    def _message(self, path: Path, events: Sequence[Event], now: float) -> tuple[object, list[Buffer]]:
        batch = Batch(path.epoch, path.seq, path.received, tuple(events))
        frames = wire.encode(batch, version=self._version)
        path.send(sum(map(len, frames)), now)
        return path.path_id, frames

    def _flush_acks(self) -> None:
        self._acks_due = None
        acks, self._acks = self._acks, {}
        for stream in acks.values():
            if stream.receive.ack_pending:
                self._outbox.control.append(Ack(stream.id, *stream.receive.take_ack()))

    # What people are shown.

    @property
    def epoch(self) -> int:
        """The latest epoch of ours or the peer's; 0 before the first."""
        return self._epoch

    @property
    def measured_round_trip_s(self) -> float | None:
        """Smoothed round-trip time of the path in use, seconds, or None while none was measured."""
        return self._path.srtt or None if self._path is not None else None

    @property
    def scheduled_streams(self) -> int:
        """Streams with something to send that wait for their turn."""
        return len(self._outbox.streams)

    @property
    def control_events(self) -> int:
        """Events without payload that wait to be sent."""
        return len(self._outbox.control)

    def traffic(self) -> Traffic:
        """Sum up ended and live streams: linear in the live ones."""
        streams = self.streams.values()
        return Traffic(
            self.counters.sent_bytes + sum(stream.sent_bytes for stream in streams),
            self.counters.received_bytes + sum(stream.received_bytes for stream in streams),
        )
