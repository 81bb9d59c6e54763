"""The live streams of one session: what their sockets ask for, and what arrives for them.

Ids count up, and Opens are sent in their order. So `next_id`, the least id never seen, says of every stream that is not
live whether it has ended or never was.
"""

from collections import deque

from goreprox.protocol.budget import Budget
from goreprox.protocol.endings import Endings
from goreprox.protocol.epochs import ESTABLISHED, Epochs
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.events import Abort, Accept, Ack, Code, Data, Eof, Live, Open, Refuse, Reset, Served
from goreprox.protocol.limits import ALLOWANCE_S, LAST_WORDS_MAX, PATH_ACK_DELAY_S, STREAM_ACK_DELAY_S
from goreprox.protocol.notices import READABLE, Kind, Notice
from goreprox.protocol.openings import Openings
from goreprox.protocol.outbox import Outbox
from goreprox.protocol.resume import GONE, Resumption
from goreprox.protocol.state import OPEN, RESETTING, State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import Counters, EndCode


class Multiplexer:
    """Carries streams by id; the `Host` of each.

    It has a method for each thing that a stream may ask for and for each event that may arrive, hence so many.
    """

    def __init__(self, *, opener: bool, budget: Budget, epochs: Epochs, outbox: Outbox, endings: Endings) -> None:
        self.epochs = epochs
        self.streams: dict[int, Stream] = {}
        self.notices: deque[Notice] = deque()
        self.counters = Counters()
        self.openings = Openings()
        self.resumption = Resumption()
        """Of the present epoch."""
        self.next_id = 1
        """Opener: the next id to use. Acceptor: the least that the peer has not used."""
        self.peer_window = budget.reserved_bytes
        """The peer's reservation: what it buffers of each stream in any case."""
        self._opener = opener
        self._budget = budget
        self._outbox = outbox
        self._endings = endings

    # Commands.

    def open(self, stream: Stream) -> None:
        """Carry a stream of ours, with the bytes it has already taken from its client."""
        assert stream.state is State.OPENING, f"{stream.state.name} stream opened"
        stream.attach(self, self.next_id, limit=self.peer_window)
        self.next_id += 1
        self.streams[stream.id] = stream
        self.counters.opened += 1
        self.counters.sent_bytes += stream.sent_bytes
        if self.epochs.phase is ESTABLISHED:
            self._say_open(stream)
            self.stream_ready(stream)

    def _say_open(self, stream: Stream) -> None:
        self._outbox.say(Open(stream.id, stream.service, stream.client, stream.destination, stream.receive.limit))
        self.openings.add(stream.id)

    def abort(self, stream: Stream, reason: str, code: EndCode) -> None:
        """Abort a stream on both ends, and have its socket reset."""
        stream.abort(reason, code)
        self.notices.append(Notice(Kind.ABORTED, stream, reason))

    def give_up_unsent(self) -> None:
        """Detach the streams whose Open was never sent: the epoch is over."""
        for stream_id in self.openings.take_unsent():
            stream = self.streams.get(stream_id)
            if stream is not None and stream.state is State.OPENING:
                stream.detach()
                self._let_go(stream)
                self.notices.append(Notice(Kind.UNSENT, stream))

    def say_served(self, service: str, at: str, reason: str) -> None:
        """Tell the acceptor where clients find a published name. It is not repeated in the next epoch."""
        if self.epochs.phase is ESTABLISHED:
            self._outbox.say(Served(service, at, reason))

    # What streams ask for (stream.Host).

    def stream_ready(self, stream: Stream) -> None:
        """Schedule a stream that has something to send."""
        if (
            self.epochs.phase is ESTABLISHED
            and stream.place is None
            and (stream.send.pending or stream.state is RESETTING)
        ):
            outbox = self._outbox
            outbox.streams.add(stream)
            if not outbox.awake:
                outbox.wake()

    def stream_acks(self, stream: Stream, *, urgent: bool, now: float) -> None:
        """Acknowledge delivery, at once or with others."""
        if stream.state is not OPEN or self.epochs.phase is not ESTABLISHED:
            return
        outbox = self._outbox
        if urgent:
            outbox.say(Ack(stream.id, *stream.receive.take_ack()))
            self._finish_if_done(stream)
        else:
            # A peer that has used up its budget buffers only its reservation, whatever the window: it may be waiting.
            waits = stream.receive.unacknowledged >= self.peer_window // 2
            due = now + (PATH_ACK_DELAY_S if waits else STREAM_ACK_DELAY_S)
            outbox.acks[stream.id] = stream
            if outbox.acks_due is None or due < outbox.acks_due:
                outbox.acks_due = due
                outbox.wake()

    def stream_accepted(self, stream: Stream) -> None:
        """Tell the opener, unless a page is about to."""
        if self.resumption.will_list(stream.id):
            return
        if self.epochs.phase is ESTABLISHED:
            self._outbox.say(Accept(stream.id, stream.receive.limit))
        else:
            self.resumption.late.append(stream)

    def stream_resetting(self, stream: Stream, now: float) -> None:
        """Send the bytes before the reset, then the reset."""
        if self.epochs.phase is ESTABLISHED and stream.receive.ack_pending:
            # So the peer knows what was not delivered before the reset.
            self._outbox.say(Ack(stream.id, *stream.receive.take_ack()))
        self._endings.start_reset(stream.id, now)
        self.stream_ready(stream)
        self._outbox.wake()

    def stream_closed(self, stream: Stream, last_word: Refuse | Abort | None) -> None:
        """Forget a stream, but not its last word."""
        if last_word is not None:
            self._endings.last_words[stream.id] = last_word
            if self.epochs.phase is ESTABLISHED:
                self._outbox.say(last_word)
        self._forget(stream)

    def _let_go(self, stream: Stream) -> None:
        """Forget a stream that another session may carry. It has received nothing."""
        self.counters.sent_bytes -= stream.sent_bytes
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self.openings.remove(stream.id)
        self._endings.end_reset(stream.id)
        self._outbox.remove(stream)

    def _finish(self, stream: Stream) -> None:
        stream.finish()
        self.notices.append(Notice(Kind.CLOSED, stream))

    def _finish_if_done(self, stream: Stream) -> None:
        if stream.done:
            if self.resumption.will_list(stream.id):  # its page would have been the acknowledgement
                self._outbox.say(Ack(stream.id, *stream.receive.take_ack()))
            self._finish(stream)

    # What arrives.

    def find(self, stream_id: int) -> Stream | None:
        """Return a live stream, or None for one that has ended.

        Raises:
            RemoteProtocolError: it was never opened.
        """
        if stream_id >= self.next_id:
            raise RemoteProtocolError(f"stream {stream_id} was never opened")
        return self.streams.get(stream_id)

    def receive_data(self, event: Data) -> None:
        """Take bytes."""
        stream = self.streams.get(event.stream) or self.find(event.stream)
        if stream is not None and stream.receive_data(event.offset, event.payload):
            self.notices.append(Notice(READABLE, stream))

    def receive_served(self, event: Served) -> None:
        """Report where clients find a published name.

        Raises:
            RemoteProtocolError: the peer is the acceptor, which has no clients.
        """
        if self._opener:
            raise RemoteProtocolError("Served from the acceptor")
        self.notices.append(Notice(Kind.SERVED, served=event))

    def receive_open(self, event: Open) -> None:
        """Take a new stream.

        Raises:
            RemoteProtocolError: the peer is the acceptor, has used the id before, or ignores how its streams end.
        """
        if self._opener:
            raise RemoteProtocolError("Open from the acceptor")
        if event.stream < self.next_id:
            raise RemoteProtocolError(f"stream id {event.stream} used again, expected at least {self.next_id}")
        if len(self._endings.last_words) >= LAST_WORDS_MAX:
            raise RemoteProtocolError(f"Open, with the ends of {LAST_WORDS_MAX} streams not acknowledged")
        self.next_id = event.stream + 1
        stream = Stream(
            opener=False,
            service=event.service,
            client=event.client,
            destination=event.destination,
            budget=self._budget,
        )
        stream.attach(self, event.stream, limit=event.limit)
        self.streams[stream.id] = stream
        self.counters.opened += 1
        self.notices.append(Notice(Kind.OPENED, stream))

    def receive_accept(self, event: Accept) -> None:
        """Take the response to an Open."""
        if stream := self.find(event.stream):
            self._accept(stream, event.limit)

    def _accept(self, stream: Stream, limit: int) -> None:
        self.openings.remove(stream.id)
        if stream.receive_accept(limit):
            self.notices.append(Notice(Kind.ACCEPTED, stream))
            self.notices.append(Notice(Kind.WRITABLE, stream))
        self.stream_ready(stream)

    def receive_refuse(self, event: Refuse) -> None:
        """Take the response to an Open that is not served."""
        if stream := self.find(event.stream):
            if stream.receive_refuse(event.reason):
                self._let_go(stream)
                self.notices.append(Notice(Kind.REFUSED, stream, event.reason, event.code))
            else:
                self.notices.append(Notice(Kind.CLOSED, stream, event.reason))

    def receive_ack(self, event: Ack) -> None:
        """Take an acknowledgement of delivery."""
        if stream := self.find(event.stream):
            writable = stream.receive_ack(event.delivered, event.limit)
            self.stream_ready(stream)
            if writable:
                self.notices.append(Notice(Kind.WRITABLE, stream))
                self._finish_if_done(stream)

    def receive_eof(self, event: Eof) -> None:
        """Take an end of file."""
        if (stream := self.find(event.stream)) and stream.receive_eof(event.final):
            self.notices.append(Notice(READABLE, stream))

    def receive_reset(self, event: Reset) -> None:
        """Take a reset of the peer's socket."""
        if stream := self.find(event.stream):
            stream.receive_reset(event.final, event.reason)
            kind = Kind.RESET if stream.state is State.RESET else Kind.CLOSED
            self.notices.append(Notice(kind, stream, event.reason))

    def receive_abort(self, event: Abort) -> None:
        """Take the end of a stream that the peer has given up, or of which it knows nothing more."""
        if stream := self.find(event.stream):
            well = stream.state is State.RESETTING or (event.code is Code.GONE and stream.passed)
            if well:
                stream.receive_abort("", EndCode.DONE)
            else:
                code = EndCode.PEER_LOST if event.code is Code.GONE else EndCode.ABORTED
                stream.receive_abort(event.reason, code)
            self.notices.append(Notice(Kind.CLOSED if well else Kind.ABORTED, stream, event.reason))

    def reset_arrived(self, stream_id: int) -> None:
        """Note that the peer has a stream's last event; all but those in state RESETTING are forgotten already."""
        if stream := self.streams.get(stream_id):
            self._finish(stream)

    # Resuming.

    def resume(self, live: Live) -> None:
        """Take what the peer says of a stream; one that has ended here gets its response later."""
        stream = self.streams.get(live.stream)
        if stream is None:
            return
        if stream.opener and live.accepted and not stream.accepted:
            self._accept(stream, live.limit)
        if stream.state is not State.RESET:
            replayed = stream.resume(live)
            self.counters.replayed_bytes += replayed
            self.resumption.replayed_bytes += replayed
            self._budget.totals.replayed_bytes += replayed

    def establish(self, peer_next_id: int, now: float, *, down_s: float) -> None:
        """Go on from what the peer has told; `peer_next_id` is the least id that it has never seen.

        `down_s` is for how long no stream has flowed.
        """
        resumption = self.resumption
        if self.counters.outages and not self.epochs.moved:
            resumption.outage_s = down_s
            self._budget.totals.resumes += 1
            self._budget.totals.resume_s += down_s
        self._endings.keep_listed(resumption.lists)
        resumption.end(self.streams)
        for stream in resumption.late:
            if stream.id in self.streams:
                self._outbox.control.append(Accept(stream.id, stream.receive.limit))
        if self._opener:
            self.next_id = max(self.next_id, peer_next_id)
        for stream in list(self.streams.values()):
            self._go_on(stream, now, seen=not self._opener or stream.id < peer_next_id)
        self._endings.restart_resets(now)
        self.notices.append(Notice(Kind.ESTABLISHED))

    def _go_on(self, stream: Stream, now: float, *, seen: bool) -> None:
        """Go on with a stream that the peer has `seen`; open any other once more, unless it may have been opened."""
        if not seen:
            sent_at = self.openings.sent_at(stream.id)
            if stream.accepted or (sent_at is not None and now > sent_at + self.epochs.grace_s + ALLOWANCE_S):
                # The peer has forgotten our session altogether: it may have had bytes that must not come twice.
                stream.receive_abort(GONE, EndCode.PEER_LOST)
                self.notices.append(Notice(Kind.ABORTED, stream, GONE))
                return
            stream.rewind()
            self._say_open(stream)
        elif stream.state is State.RESETTING and stream.id not in self.resumption.listed:
            self._finish(stream)  # the reset had arrived
            return
        if stream.state is State.OPEN:
            self.notices.append(Notice(Kind.WRITABLE, stream))
            if stream.receive.ack_pending:
                self._outbox.control.append(Ack(stream.id, *stream.receive.take_ack()))
            self._finish_if_done(stream)
        self.stream_ready(stream)
