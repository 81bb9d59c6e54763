"""One end of a stream: a client connection joined to a target connection.

`state` has its life as a table; its bytes are in two halves, `sender` and `receiver`. The session hands over what
arrives and takes what is to be sent, whatever path it uses.
"""

from typing import Any, Protocol

from goreprox.protocol.budget import Budget
from goreprox.protocol.epochs import Epochs
from goreprox.protocol.errors import LocalProtocolError, RemoteProtocolError
from goreprox.protocol.events import Abort, Buffer, Code, Live, Refuse, Reset
from goreprox.protocol.fair import Place, client_key
from goreprox.protocol.receiver import ReceiveHalf
from goreprox.protocol.sender import SendHalf
from goreprox.protocol.state import FROM_PEER, OPEN, OPENING, RESET, RESETTING, TRANSITIONS, State, Step
from goreprox.protocol.totals import Counters, EndCode


class Host(Protocol):
    """What carries streams: the multiplexer of a session."""

    epochs: Epochs
    counters: Counters

    def stream_ready(self, stream: "Stream") -> None:
        """The stream has something to send."""

    def stream_acks(self, stream: "Stream", *, urgent: bool, now: float) -> None:
        """The stream has delivered something."""

    def stream_accepted(self, stream: "Stream") -> None:
        """The target has accepted."""

    def stream_resetting(self, stream: "Stream", now: float) -> None:
        """The local socket was reset."""

    def stream_closed(self, stream: "Stream", last_word: Refuse | Abort | None) -> None:
        """The stream has ended; `last_word` is what the peer is to be told, if anything."""


class Stream:
    """One end of a stream: its owner passes on what the local socket does, its session what arrives.

    `owner` is set and read by its users, not here; `host` is None while no session carries the stream.
    It has a method for each step of `state.TRANSITIONS`, hence so many.
    """

    __slots__ = (
        "accepted",
        "client",
        "client_key",
        "deficit",
        "destination",
        "end_code",
        "end_reason",
        "host",
        "id",
        "number",
        "opener",
        "outages_before",
        "owner",
        "place",
        "receive",
        "reset_sent",
        "send",
        "service",
        "state",
    )

    def __init__(
        self,
        *,
        opener: bool,
        service: str,
        client: str,
        budget: Budget,
        destination: str = "",
        number: int | None = None,
    ) -> None:
        """Make a stream; it may buffer its reservation until a session carries it.

        `number` is that of a stream that an upgrade has handed over.
        """
        self.id = 0
        """Of the session that carries it."""
        self.number = budget.totals.next_number() if number is None else number
        """Of the process: no other stream has had it."""
        self.opener = opener
        self.service = service
        self.client = client
        self.client_key = client_key(client)
        self.destination = destination
        self.state = State.OPENING if opener else State.DIALING
        self.accepted = False
        self.send = SendHalf(budget, limit=budget.reserved_bytes)
        self.receive = ReceiveHalf(budget)
        self.reset_sent = False
        self.end_reason = ""
        """Why the stream ended, for logs; of a reset, what the peer is told."""
        self.end_code = EndCode.DONE
        self.host: Host | None = None
        self.owner: Any = None
        """Owns the socket; only the driver and those that set it know its type."""
        self.place: Place | None = None
        """In the queue of those that have something to send."""
        self.deficit = 0
        self.outages_before = 0
        """Those of its session before it carried the stream."""

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.state.value}>"

    def step(self, step: Step) -> None:
        """Take a step of `TRANSITIONS`.

        Raises:
            RemoteProtocolError, LocalProtocolError: the table does not allow it.
        """
        after = TRANSITIONS[self.state].get(step)
        if after is None:
            error = RemoteProtocolError if step in FROM_PEER else LocalProtocolError
            raise error(f"{step.value} in state {self.state.name} (stream {self.id})")
        self.state = after

    # What the local socket does.

    @property
    def room(self) -> int:
        """Bytes that the socket may be read for now."""
        return self.send.room if self.state is OPEN or self.state is OPENING else 0

    def write(self, data: bytes) -> None:
        """Send bytes that were read from the socket, at most `room`."""
        if self.state is not OPEN:
            self.step(Step.WRITE)
        if self.state is not RESET:
            self.send.write(data)
            if self.host is not None:
                self.host.counters.sent_bytes += len(data)
                self.host.stream_ready(self)

    def write_eof(self) -> None:
        """Pass on that the socket was half-closed by its peer."""
        self.step(Step.WRITE_EOF)
        if self.state is not State.RESET:
            self.send.write_eof()
            if self.host is not None:
                self.host.stream_ready(self)

    def reset(self, reason: str, *, now: float) -> None:
        """Pass on that the socket was reset by its peer, after what it sent."""
        self.step(Step.RESET)
        self.end_reason = reason
        self.end_code = EndCode.CLIENT_RESET if self.opener else EndCode.TARGET_RESET
        if self.host is None or self.state is State.CLOSED:
            self._close(None)
            return
        self.host.stream_resetting(self, now)
        self.receive.discard()

    def abort(self, reason: str, code: EndCode = EndCode.ABORTED) -> None:
        """End the stream at once, on both ends."""
        if self.state is State.CLOSED:
            return
        self.step(Step.ABORT)
        self._close(Abort(self.id, Code.OTHER, reason), reason, code)

    def accept(self) -> None:
        """Tell the opener that the target has accepted."""
        self.step(Step.ACCEPT)
        self.accepted = True
        if self.state is State.OPEN and self.host is not None:
            self.host.stream_accepted(self)

    def refuse(self, code: Code, reason: str) -> None:
        """Tell the opener that the stream is not served here."""
        self.step(Step.REFUSE)
        self._close(Refuse(self.id, code, reason), reason, EndCode.REFUSED)

    def consume(self, count: int, *, now: float) -> None:
        """Note that the socket took `count` bytes of `receive.chunks`."""
        host = self.host
        assert host is not None
        receive = self.receive
        receive.consume(count)
        host.counters.received_bytes += count
        if receive.pace_known:
            receive.adapt(now=now, round_trip_s=host.epochs.round_trip_s)
        if self.state is OPEN:
            host.stream_acks(self, urgent=receive.ack_urgent, now=now)

    def deliver_eof(self, *, now: float) -> None:
        """Note that the socket was half-closed after the last byte."""
        self.receive.deliver_eof()
        if self.host is not None:
            self.host.stream_acks(self, urgent=True, now=now)

    def finish_reset(self) -> None:
        """Note that the socket was reset, as the peer's was."""
        if self.state is State.RESET:
            self.finish()

    # What the session does.

    def attach(self, host: Host, stream_id: int, *, limit: int) -> None:
        """Let a session carry the stream; the peer takes bytes below `limit` before it has accepted."""
        self.host = host
        self.id = stream_id
        self.send.limit = limit
        self.outages_before = host.counters.outages

    def rewind(self) -> None:
        """Begin again at offset 0, as if the stream had never been opened."""
        self.send.rewind(0, eof_received=False)
        self.reset_sent = False

    def detach(self) -> None:
        """Rewind, ready for another session."""
        self.rewind()
        self.host = None

    def resume(self, live: Live) -> int:
        """Go on from what the peer has received; return how many bytes are sent again."""
        replayed = self.send.rewind(live.received, eof_received=live.eof)
        self.send.ack(live.delivered, live.limit)
        self.reset_sent = False
        return replayed

    def take_reset(self) -> Reset:
        """Return the event that follows the last byte of a stream in state RESETTING."""
        self.reset_sent = True
        return Reset(self.id, self.send.end, self.end_reason)

    def finish(self) -> None:
        """End a stream of which nothing is left to say."""
        self.step(Step.FINISH)
        self._close(None)

    # What arrives.

    def receive_data(self, offset: int, payload: Buffer) -> bool:
        """Take bytes; return whether there is something new for the socket."""
        if self.state is not OPEN:
            self.step(Step.RECEIVE_DATA)
        return self.state is not RESETTING and self.receive.receive(offset, payload)

    def receive_eof(self, final: int) -> bool:
        """Take the end of file; return whether there is something new for the socket."""
        self.step(Step.RECEIVE_EOF)
        return self.state is not State.RESETTING and self.receive.receive_eof(final)

    def receive_reset(self, final: int, reason: str) -> None:
        """Take a reset, which is applied once the bytes before it are delivered."""
        resetting = self.state is State.RESETTING
        self.step(Step.RECEIVE_RESET)
        if resetting:
            self._close(None)
            return
        if final != self.receive.received:
            raise RemoteProtocolError(f"reset at offset {final}, expected {self.receive.received} (stream {self.id})")
        self.end_reason = reason
        self.end_code = EndCode.TARGET_RESET if self.opener else EndCode.CLIENT_RESET
        self.send.stop()

    def receive_ack(self, delivered: int, limit: int) -> bool:
        """Take an acknowledgement; return whether the socket may be read again."""
        if self.state is not OPEN:
            self.step(Step.RECEIVE_ACK)
        if self.state is RESET:
            return False
        self.send.ack(delivered, limit)
        return self.state is OPEN

    def receive_accept(self, limit: int) -> bool:
        """Take the acceptor's Accept; return whether the stream is OPEN now."""
        self.step(Step.RECEIVE_ACCEPT)
        self.accepted = True
        self.send.limit = max(self.send.limit, limit)
        return self.state is State.OPEN

    def receive_refuse(self, reason: str) -> bool:
        """Take a refusal; return whether another session may carry the stream now. Otherwise it has ended."""
        self.step(Step.RECEIVE_REFUSE)
        if self.state is State.OPENING:
            self.detach()
            return True
        self._close(None, reason, EndCode.REFUSED)
        return False

    def receive_abort(self, reason: str, code: EndCode = EndCode.ABORTED) -> None:
        """Take an abort, which ends the stream."""
        self.step(Step.RECEIVE_ABORT)
        self._close(None, reason, code)

    @property
    def done(self) -> bool:
        """Whether both directions of an OPEN stream have ended, and the peer was told that ours delivered its bytes."""
        return self.send.finished and self.receive.eof_delivered and not self.receive.ack_pending

    @property
    def passed(self) -> bool:
        """Whether the peer can have forgotten this stream without harm: nothing is left but its last word."""
        return self.send.eof_sent and self.receive.eof_delivered

    def _close(self, last_word: Refuse | Abort | None, reason: str = "", code: EndCode = EndCode.DONE) -> None:
        """Drop everything and tell the session. The first reason of an end stays."""
        self.state = State.CLOSED
        self.end_reason = self.end_reason or reason
        if self.end_code is EndCode.DONE:
            self.end_code = code
        self.send.discard()
        self.receive.discard()
        if self.host is not None:
            self.host.stream_closed(self, last_word)

    # What people are shown.

    @property
    def sent_bytes(self) -> int:
        """Payload that the local socket was read, also after the end."""
        return self.send.end

    @property
    def received_bytes(self) -> int:
        """Payload that the local socket took, also after the end."""
        return self.receive.delivered

    @property
    def outages(self) -> int:
        """Outages of its session since it carries the stream; at the end of the stream at the latest."""
        return 0 if self.host is None else self.host.counters.outages - self.outages_before
