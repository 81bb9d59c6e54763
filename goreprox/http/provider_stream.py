"""One stream to a provider that carries one request after the other.

It may outlive the client for a moment, while its end is passed on.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from goreprox.protocol.limits import KIB
from goreprox.protocol.notices import Kind
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.tunnel.pace import Pace, Turns

CLOSING_S: Final = 5.0
"""Timeout for the target's end of file after ours."""
REUSED_FOR_S: Final = 4.0
"""A stream that is idle for longer carries no other request: many servers close such a connection after 5 s, and a
request that meets the close is lost. A new one takes a dial at the provider, no round trip of the link."""
RESEND_BYTES: Final = 64 * KIB
"""The longest request that is sent again: it is copied, and waits beside `--memory` for the new stream's window."""

_NOT_CLOSED: Final = "the target did not close its side of the connection"


class StreamUser(Protocol):
    """Sends requests over the stream."""

    def readable(self) -> None:
        """Take note that the target has sent something, or its end."""

    def writable(self) -> None:
        """Take note that the stream has room for more."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What is known of the client and its present request: `host`, `token`, `certificate`."""

    def lost(self, provider_stream: "ProviderStream", status: int, reason: str, *, again: bool) -> None:
        """Take note that the stream is over, and what was on it is lost; `again` if another provider may do better."""


class ProviderStream:
    """Owns a stream (tunnel.connections.StreamOwner). `on_end` is called once it is over."""

    def __init__(
        self,
        stream: Stream,
        user: StreamUser | None,
        *,
        clock: Callable[[], float],
        pace: Pace | None = None,
        on_end: "Callable[[ProviderStream], None]",
    ) -> None:
        """Serve `user` until one of the two lets go, within the rates of the service, if it has some.

        Without a user, `finish` or `reset` is to follow.
        """
        self.stream = stream
        self.began_at = clock()
        self.assigned_at = self.began_at
        """When a provider was found for it."""
        self.idle_since: float | None = None
        """When the last request on it was over; None while it carries one."""
        self._user = user
        self._clock = clock
        self._on_end = on_end
        self._pending: deque[bytes] = deque()
        self._begins = 0
        """The offset of the present request."""
        self._half_closing = False
        """Whether the end of file follows what was written."""
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._up = None if pace is None else Turns(pace.up, self._turn_to_send)
        self._down = None if pace is None else Turns(pace.down, self._turn_to_take)
        stream.owner = self

    # For the user.

    @property
    def room(self) -> int:
        """Bytes that the stream accepts now; 0 while earlier ones wait here."""
        if self._pending:
            return 0
        return self.stream.room if self._up is None else min(self.stream.room, self._up.turn_bytes)

    @property
    def settled(self) -> bool:
        """Whether the stream has all that was written."""
        return not self._pending

    @property
    def finished(self) -> bool:
        """Whether it carries no request, and the stream has all of the last one."""
        return self.settled and (self._user is None or self.idle_since is not None)

    def begin(self) -> None:
        """Begin another request with what is written next."""
        self.idle_since = None
        self._begins = self.stream.send.end + sum(map(len, self._pending))

    @property
    def unsent_request(self) -> bytes | None:
        """What was written of the present request, unless its target has got some of it, or it is too long."""
        send = self.stream.send
        size = send.end + sum(map(len, self._pending)) - self._begins
        if send.acked > self._begins or size > RESEND_BYTES:
            return None
        earlier = max(0, self._begins - send.end)  # of a request whose response came before its target had all of it
        return send.since(self._begins - earlier) + b"".join(self._pending)[earlier:]

    def write(self, data: bytes) -> None:
        """Send bytes; those beyond `room` wait here."""
        self._pending.append(data)
        self._send()

    def write_eof(self) -> None:
        """Half-close the target's connection after what was written."""
        self._half_closing = True
        self._send()

    def take(self, most: int) -> bytes:
        """Return up to `most` bytes that the target has sent; b"" if there are none."""
        chunks = self.stream.receive.chunks
        if not chunks:
            return b""
        if self._down is not None:
            most = self._down.take(min(most, len(chunks[0])))
        data = bytes(chunks[0][:most])
        if not data:
            return b""
        self.stream.consume(len(data), now=self._clock())
        return data

    def take_eof(self) -> bool:
        """Return, once, that the target has ended its side and everything before that was taken."""
        if not self.stream.receive.eof_ready or self.stream.state is State.CLOSED:
            return False
        self.stream.deliver_eof(now=self._clock())
        return True

    def release(self) -> Stream:
        """Give the stream to another owner; it has all that was written."""
        self._user = None
        self._ended = True
        self._leave()
        return self.stream

    def finish(self) -> None:
        """End the stream: what was written still arrives, then the end of file."""
        self._user = None
        if self.stream.state in (State.OPENING, State.OPEN) and not self._pending:
            if not self.stream.send.eof:
                self.stream.write_eof()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CLOSING_S, self.reset, _NOT_CLOSED, EndCode.TIMEOUT)
            self._drop_input()
        else:
            self.reset("ended in the middle of a request", EndCode.INCOMPLETE)
        self._end_if_over()

    def reset(self, reason: str, code: EndCode) -> None:
        """End the stream, and reset the target's connection."""
        self._user = None
        self._pending.clear()
        self.stream.abort(reason, code)
        self._end_if_over()

    # For the edge and the driver.

    @property
    def facts(self) -> Mapping[str, str]:
        """What is known of the client and its present request."""
        return {} if self._user is None else self._user.facts

    def assigned(self) -> None:
        """Take note that a provider was found, after it has waited for one."""
        self.assigned_at = self._clock()

    def abort(self, reason: str, code: EndCode, *, status: int = 502) -> None:
        """End the stream: no provider accepts it, or the edge is shutting down."""
        user, self._user = self._user, None
        self.reset(reason, code)
        if user is not None:
            user.lost(self, status, reason, again=False)

    def notice(self, kind: Kind) -> None:
        """Do what the session says about the stream."""
        user = self._user
        if kind is Kind.WRITABLE:
            self._send()
            if user is not None:
                user.writable()
        elif kind is Kind.READABLE or kind is Kind.RESET:
            if user is not None:
                user.readable()
            else:
                self._drop_input()
            self.finish_reset()
        elif user is not None:
            self._user = None
            user.lost(self, *self._why(), again=True)
        self._end_if_over()

    def finish_reset(self) -> None:
        """End a stream that was reset, once the user has taken what came before."""
        if self.stream.state is not State.RESET or (self._user is not None and self.stream.receive.chunks):
            return
        user, self._user = self._user, None
        if user is not None:
            user.lost(self, 502, "the target reset the connection", again=True)
        self.stream.finish_reset()
        self._end_if_over()

    def _why(self) -> tuple[int, str]:
        """Return status and reason for a stream that was aborted."""
        epochs = self.stream.host.epochs if self.stream.host is not None else None
        if epochs is not None and epochs.lost_at is not None and self._clock() - epochs.lost_at >= epochs.grace_s:
            return 504, f"the provider was out of reach for {epochs.grace_s:g} s"
        return 502, "the connection to the target was lost"

    def _send(self) -> None:
        stream = self.stream
        while self._pending and stream.state in (State.OPENING, State.OPEN) and (room := stream.room) > 0:
            room = min(room, len(self._pending[0]))
            if self._up is not None and not (room := self._up.take(room)):
                return
            data = self._pending.popleft()
            if len(data) > room:
                self._pending.appendleft(data[room:])
                data = data[:room]
            stream.write(data)
        if self._half_closing and not self._pending and stream.state in (State.OPENING, State.OPEN):
            self._half_closing = False
            stream.write_eof()

    def _turn_to_send(self) -> None:
        self._send()
        if self._user is not None:
            self._user.writable()
        self._end_if_over()

    def _turn_to_take(self) -> None:
        if self._user is not None:
            self._user.readable()
        self._end_if_over()

    def _leave(self) -> None:
        """Wait for no turn any more."""
        if self._up is not None and self._down is not None:
            self._up.leave()
            self._down.leave()

    def _drop_input(self) -> None:
        self._leave()
        self._down = None  # what nobody gets counts nowhere
        while self.stream.state is State.OPEN and self.take(1 << 20):
            pass
        self.take_eof()

    def _end_if_over(self) -> None:
        if self.stream.state is State.CLOSED and not self._ended:
            self._ended = True
            self._leave()
            if self._timer is not None:
                self._timer.cancel()
            self._on_end(self)
