"""One end of a session: all streams between one edge and one provider, over whatever path there is.

Every epoch (`epochs`) begins with pages of `Resume` from its initiator, to which the other end responds with its own
(`resume`); from then on everything flows in order. A loss ends the epoch; the next one continues from the offsets that
the pages name. The streams are in the `multiplexer`, what they have to send is in the `outbox`.

Sans-IO: the driver brings messages, paths and the time; it takes messages (`flush`) and notices, and calls `tick` at
`deadline`. Whatever happens to a session is here, hence so long.
"""

from collections.abc import Callable, Sequence
from typing import assert_never

from goreprox.protocol import wire
from goreprox.protocol.budget import Budget
from goreprox.protocol.endings import Endings
from goreprox.protocol.epochs import ESTABLISHED, RESUMING, Epochs, Phase
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.events import (
    Abort,
    Accept,
    Ack,
    Batch,
    Buffer,
    Control,
    Data,
    Drain,
    Eof,
    Event,
    Goodbye,
    Open,
    Probe,
    Refuse,
    Reset,
    Resume,
    Served,
)
from goreprox.protocol.limits import LAST_WORDS_MAX, MAX_OFFSET
from goreprox.protocol.multiplexer import Multiplexer
from goreprox.protocol.notices import Kind, Notice
from goreprox.protocol.outbox import Outbox
from goreprox.protocol.path import Path
from goreprox.protocol.resume import Resumption
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode

PROTOCOL_ERROR = "protocol error: "
"""How the reason of a Goodbye begins that ends a failed session, not its process."""

BEFORE_ESTABLISHED = (Resume, Drain, Goodbye, Probe)
"""Events that may arrive before the peer's last page."""

Message = tuple[object, list[Buffer]]
"""A path, and the frames to send on it."""


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
        self.failed: str | None = None
        """Why the session has failed."""
        self.peer_draining = False
        self.version = version
        self._budget = budget
        self._grace_s = float(grace_s)
        self.epochs = Epochs(opener=opener, grace_s=self._grace_s, now=now)
        self.endings = Endings()
        self._outbox = Outbox(self.endings, wake)
        self.multiplexer = Multiplexer(
            opener=opener, budget=budget, epochs=self.epochs, outbox=self._outbox, endings=self.endings
        )
        self.streams = self.multiplexer.streams
        """Live ones, by id."""
        self.notices = self.multiplexer.notices
        """For the driver, which takes them from the left."""
        self.counters = self.multiplexer.counters
        self.draining = False
        self._goodbye: str | None = None

    # How it stands.

    def set_grace(self, grace_s: float) -> None:
        """Keep streams for `grace_s` (0 to 86,400 s) once an epoch has begun that the peer is told so in."""
        self._grace_s = float(grace_s)
        self.epochs.set_grace(self._grace_s)

    @property
    def established(self) -> bool:
        """Whether streams flow at this moment."""
        return self.epochs.phase is ESTABLISHED

    @property
    def path(self) -> Path | None:
        """The path in use."""
        return self.epochs.path

    def uses(self, path_id: object) -> bool:
        """Whether this path is in use."""
        return self.path is not None and self.path.path_id == path_id

    @property
    def stalled(self) -> bool:
        """Whether the peer was probed and has not acknowledged anything since."""
        return self.path is not None and self.path.probed

    @property
    def unanswered(self) -> int:
        """Streams of ours that the peer has neither accepted nor refused."""
        return len(self.multiplexer.openings)

    @property
    def settled(self) -> bool:
        """Whether the peer has acknowledged all that we sent, or there is nobody to do it."""
        path = self.path
        if path is None:
            return self.epochs.phase is not Phase.PAUSED
        return path.peer_acked == path.seq and self.multiplexer.resumption.over and self._outbox.empty

    @property
    def scheduled_streams(self) -> int:
        """Streams with something to send that wait for their turn."""
        return len(self._outbox.streams)

    @property
    def control_events(self) -> int:
        """Events without payload that wait to be sent."""
        return len(self._outbox.control)

    # Paths.

    def path_up(self, path_id: object, now: float, *, rank: int = 0) -> None:
        """Add a path, or note that it has come up anew; it is used unless another one is.

        Once it has settled, it takes over from one of lower `rank`.
        """
        if self.failed is None and self.epochs.add_path(path_id, rank, now):
            self._end_epoch(now)
            self._begin(now, path_id=path_id)

    def path_down(self, path_id: object, now: float) -> None:
        """Remove a path; another one takes over if there is one."""
        if self.epochs.remove_path(path_id, now):
            self._end_epoch(now)
            if len(self.epochs):
                self._begin(now)

    def _end_epoch(self, now: float, *, pause: bool = False, moves: bool = False) -> None:
        """Drop all that belongs to the epoch in progress; if the session `moves`, the next one takes over at once."""
        epochs = self.epochs
        if (epochs.phase is ESTABLISHED and not moves) or (epochs.phase is RESUMING and epochs.moved):
            self.counters.outages += 1
            self._budget.totals.outages += 1
        if pause:
            epochs.pause(now)
        else:
            epochs.end(now)
        self._outbox.clear()
        if not moves:
            self.multiplexer.give_up_unsent()
        self._outbox.wake()

    def _begin(self, now: float, *, path_id: object | None = None, above: int = 0, moved: bool = False) -> None:
        self.epochs.begin(now, path_id=path_id, above=above, moved=moved)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        """Prepare what is said first in the epoch that has begun."""
        self.multiplexer.resumption = Resumption(self.streams)
        if self.draining:
            self._outbox.control.append(Drain())
        if self._goodbye is not None:
            self._outbox.control.append(Goodbye(self._goodbye))

    # Time.

    def deadline(self) -> float | None:
        """Return when to call `tick` next."""
        if self.failed is not None:
            return None
        times = self.epochs.deadlines(streams=bool(self.streams))
        if self._outbox.acks_due is not None:
            times.append(self._outbox.acks_due)
        if self.established and (due := self.endings.deadline) is not None:
            times.append(due)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Do what is due; call `flush` afterwards."""
        if self.failed is not None:
            return
        epochs, path = self.epochs, self.path
        if path is not None and path.lost(now):
            self._end_epoch(now, pause=True)
        elif path is not None and path.probe_due(now):
            if path.stalled and (self.established or epochs.moved) and len(epochs) > 1:
                self._end_epoch(now, pause=True)
            else:
                self._outbox.control.append(Probe())
        if epochs.pause_over(now):
            self._begin(now)
        elif (better := epochs.better) is not None and now >= better[1]:
            self._end_epoch(now, moves=True)
            self._begin(now, path_id=better[0], moved=True)
        if self.established:
            for stream_id in self.endings.overdue(now):
                reason = "the bytes before the reset could not be delivered in time"
                self.multiplexer.abort(self.streams[stream_id], reason, EndCode.TIMEOUT)
        if epochs.grace_over(now):
            self.abandon(f"no path to the peer for {epochs.grace_s:g} s", EndCode.PEER_LOST)

    # Commands.

    def open(self, stream: Stream) -> None:
        """Carry a stream of ours, with the bytes it has already taken from its client."""
        self.multiplexer.open(stream)

    def abandon(self, reason: str, code: EndCode) -> None:
        """Abort all streams: the peer is lost, or we are leaving."""
        self._outbox.streams.clear()
        for stream in list(self.streams.values()):
            self.multiplexer.abort(stream, reason, code)

    def drain(self) -> None:
        """Ask the peer for no new streams."""
        self.draining = True
        if self.path is not None:
            self._outbox.say(Drain())

    def goodbye(self, reason: str) -> None:
        """Abort what is left and tell the peer that this process ends; wait for `settled`."""
        for stream in list(self.streams.values()):
            stream.abort(reason, EndCode.SHUTDOWN)
        self._goodbye = reason
        if self.path is not None:
            self._outbox.say(Goodbye(reason))

    def fail(self, reason: str, now: float) -> None:
        """End the session for good: one end cannot be trusted with a single stream. Its last message says so."""
        self.abandon(f"{PROTOCOL_ERROR}{reason}", EndCode.FAILED)
        self._outbox.control.append(Goodbye(f"{PROTOCOL_ERROR}{reason}"))
        self.failed = reason
        self.epochs.fail(now)
        self.notices.append(Notice(Kind.FAILED, None, reason))
        self._outbox.wake()

    # What arrives.

    def receive(self, path_id: object, frames: Sequence[Buffer], now: float) -> None:
        """Take one message. A peer that breaks the protocol loses its streams; nothing is raised."""
        if path_id not in self.epochs:
            return
        try:
            _, batch = wire.decode(frames)
            self._receive(path_id, batch, sum(map(len, frames)), now)
        except RemoteProtocolError as exc:
            self.fail(str(exc), now)

    def _receive(self, path_id: object, batch: Batch, size: int, now: float) -> None:
        path = self._path_of(path_id, batch, now)
        if path is None:
            return
        path.ack(batch.ack, now)
        carried = self.endings.carried
        if carried and carried[0][0] < batch.ack:
            for stream_id in self.endings.acknowledge(batch.ack):
                self.multiplexer.reset_arrived(stream_id)
        try:
            new = path.receive(batch.seq, size if batch.events else 0, now)
        except LookupError:
            self._end_epoch(now, pause=True)
            return
        if new:
            epochs, receive_data = self.epochs, self.multiplexer.receive_data
            for event in batch.events:
                if epochs.phase is not ESTABLISHED and not isinstance(event, BEFORE_ESTABLISHED):
                    raise RemoteProtocolError(f"{type(event).__name__} before the last page of the resume")
                if isinstance(event, Data):
                    receive_data(event)
                else:
                    self._dispatch(event, path, now)
        if self._outbox.streams or path.ack_due(now):
            self._outbox.wake()

    def _path_of(self, path_id: object, batch: Batch, now: float) -> Path | None:
        """Return the path in use if a message belongs to its epoch; a higher epoch of the peer's is adopted first."""
        epochs = self.epochs
        if batch.epoch > epochs.number:
            if batch.epoch > MAX_OFFSET // 2:
                raise RemoteProtocolError(f"epoch {batch.epoch}, expected at most {MAX_OFFSET // 2}")
            lost = batch.seq != 0 or not batch.events
            moves = not lost and epochs.is_moved_by(path_id)
            self._end_epoch(now, moves=moves)
            if lost:
                self._begin(now, path_id=path_id, above=batch.epoch)  # its beginning was lost
                return None
            epochs.adopt(batch.epoch, path_id, now, moved=moves)
            self._begin_epoch()
        path = epochs.path
        return path if path is not None and path.epoch == batch.epoch and path.path_id == path_id else None

    def _dispatch(self, event: Control, path: Path, now: float) -> None:  # noqa: C901, PLR0912 -- a case for each event
        multiplexer = self.multiplexer
        match event:
            case Ack():
                multiplexer.receive_ack(event)
            case Open():
                multiplexer.receive_open(event)
            case Accept():
                multiplexer.receive_accept(event)
            case Eof():
                multiplexer.receive_eof(event)
            case Refuse():
                multiplexer.receive_refuse(event)
            case Reset():
                multiplexer.receive_reset(event)
            case Abort():
                multiplexer.receive_abort(event)
            case Served():
                multiplexer.receive_served(event)
            case Resume():
                self._resume(event, now)
            case Drain():
                self.peer_draining = True
                self.notices.append(Notice(Kind.DRAINING))
            case Goodbye(reason):
                self.peer_draining = True
                self.abandon(reason, EndCode.PEER_LEFT)
                self.notices.append(Notice(Kind.GOODBYE, None, reason))
                path.acknowledge_now(now)
            case Probe():
                path.acknowledge_now(now)
            case _:
                assert_never(event)

    def _resume(self, page: Resume, now: float) -> None:
        """Take one page of what the peer knows; after the last one streams flow."""
        if self.established:
            raise RemoteProtocolError("Resume in the midst of an epoch")
        multiplexer = self.multiplexer
        self.epochs.take_grace(page.grace_s)
        multiplexer.peer_window = page.window
        most_ended = LAST_WORDS_MAX + self._budget.max_streams
        if not self.opener:
            most_ended = min(most_ended, self.counters.opened)
        # An opener that does not know a stream has forgotten it, with all of the session. An acceptor knows those that
        # have ended; it may be about to learn of others.
        ended_below = page.next_id if self.opener else multiplexer.next_id
        for live in page.streams:
            multiplexer.resumption.take(
                live.stream, next_id=page.next_id, ours=self.streams, ended_below=ended_below, most_ended=most_ended
            )
            multiplexer.resume(live)
        self._outbox.wake()
        if page.last:
            down_s = self.epochs.establish(now)
            multiplexer.establish(page.next_id, now, down_s=down_s)

    # What goes out.

    def flush(self, now: float) -> list[Message]:
        """Return the messages to send now. Payloads are shared with the replay buffers."""
        outbox = self._outbox
        outbox.awake = False
        messages: list[Message] = []
        if outbox.acks_due is not None and now >= outbox.acks_due:
            outbox.queue_acks()
        path = self.epochs.path
        if path is None:
            return messages
        multiplexer = self.multiplexer
        resumption = multiplexer.resumption
        if not resumption.told:
            page = resumption.page(
                self.streams, grace_s=self._grace_s, window=self._budget.reserved_bytes, next_id=multiplexer.next_id
            )
            messages.append(_message(path, [page], version=self.version, now=now))
            outbox.wake()
            return messages
        if not resumption.all_responded:
            outbox.control.extend(resumption.endings(self.endings.last_words))
            if not resumption.all_responded:
                outbox.wake()
        multiplexer.openings.mark_sent(self.streams, now)
        while not outbox.empty:
            events = outbox.batch(path)
            if not events:
                break
            messages.append(_message(path, events, version=self.version, now=now))
        if path.ack_due(now):
            path.acknowledged()
            batch = Batch(path.epoch, path.seq, path.received, ())
            messages.append((path.path_id, wire.encode(batch, version=self.version)))
        return messages


def _message(path: Path, events: Sequence[Event], *, version: int, now: float) -> Message:
    """Make the next message of a path, and count it as sent."""
    batch = Batch(path.epoch, path.seq, path.received, tuple(events))
    frames = wire.encode(batch, version=version)
    path.send(sum(map(len, frames)), now)
    return path.path_id, frames
