"""One non-blocking socket <-> one stream: what the far socket did, this socket does.

The same bytes, FIN for FIN, RST for RST. Reading stops when the stream has no room, so TCP slows the writer.
It knows nothing of sessions and paths.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from goreprox.net import sockets
from goreprox.net.poller import READ, WRITE, Poller
from goreprox.net.sockets import Socket, send_some
from goreprox.protocol.limits import MIB, RESET_LINGER_S
from goreprox.protocol.session import Kind
from goreprox.protocol.state import RESET, State
from goreprox.protocol.stream import Stream
from goreprox.tunnel.connections import Connections, StreamOwner

READ_BYTES = MIB
"""One read at most: 64 KiB reads carry a third of what these do."""
WATCH_S = 0.5
"""Between two looks for resets at sockets that are not being read."""
LINGER_POLL_S = 0.02
READABLE, WRITABLE = Kind.READABLE, Kind.WRITABLE


class Watched(Protocol):
    """A socket that is not being read."""

    def failed(self, reason: str) -> None:
        """Take note that it was reset by its peer."""


class Bridges:
    """What all bridges of a process share: the poller, the clock, a read buffer, and a watch over silent sockets."""

    def __init__(self, poller: Poller, *, clock: Callable[[], float], half_closed_timeout_s: float | None) -> None:
        """Serve bridges on the running loop."""
        self.poller = poller
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.half_closed_timeout_s = half_closed_timeout_s
        self.view = memoryview(bytearray(READ_BYTES))
        self.connections = Connections[StreamOwner]()
        self._paused: dict[int, Watched] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, fd: int, bridge: Watched) -> None:
        """Look for errors on a socket that is not being read."""
        self._paused[fd] = bridge
        if self._timer is None:
            self._timer = self.loop.call_later(WATCH_S, self._look)

    def unwatch(self, fd: int) -> None:
        """Look no longer."""
        self._paused.pop(fd, None)

    def _look(self) -> None:
        self._timer = None
        for fd in sockets.errors_among(list(self._paused)):
            if (bridge := self._paused.get(fd)) is not None:
                bridge.failed("reset by the peer")
        if self._paused:
            self._timer = self.loop.call_later(WATCH_S, self._look)


class Bridge:
    """Owns the socket; the stream's owner. Ends once, when both the socket and the stream are over."""

    __slots__ = (
        "_active_at",
        "_bridges",
        "_ended",
        "_failure",
        "_fd",
        "_on_end",
        "_read_done",
        "_reset_by",
        "_sock",
        "_timer",
        "_watched",
        "_write_done",
        "began_at",
        "stream",
    )

    def __init__(self, bridges: Bridges, sock: Socket, stream: Stream, on_end: "Callable[[Bridge], None]") -> None:
        """Take over `sock`, prepared and connected, and begin to read it. `on_end` is called once."""
        self.stream = stream
        self.began_at = bridges.clock()
        self._bridges = bridges
        self._sock = sock
        self._fd = sock.fileno()
        self._on_end = on_end
        self._watched = 0
        """For what the socket is polled: READ as long as the stream has room, WRITE while the socket has none."""
        self._read_done = self._write_done = self._ended = False
        self._failure: str | None = None
        """Why the socket is of no more use, as long as bytes that came before it are still to be passed on."""
        self._reset_by = 0.0
        self._active_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        stream.owner = self
        bridges.connections.add(self)
        self._read()

    @property
    def open(self) -> bool:
        """Whether the socket is still ours."""
        return self._fd >= 0

    def notice(self, kind: Kind) -> None:
        """Do what the session says of our stream."""
        if kind is READABLE:
            if self._fd >= 0 and not self._watched & WRITE and self._failure is None:
                self._write()
        elif self._failure is not None and self.open and kind is not Kind.ABORTED:
            self._pass_on_rest()
        elif kind is WRITABLE:
            if not self._watched & READ:
                self._read()
        elif kind is Kind.RESET and not self.open:
            self.stream.finish_reset()  # both ends of file had passed here; the peer's socket was reset after its own
        elif kind is Kind.RESET:
            self._reset_by = self._bridges.clock() + RESET_LINGER_S
            self._pause()
            if self._watched & WRITE:
                self._reset_later()
            elif self.open:
                self._write()
        elif kind is Kind.ABORTED:
            self._close()
        if self._fd < 0:
            self._end_if_over()

    def abort(self, reason: str) -> None:
        """Reset the socket and the stream now."""
        self.stream.abort(reason)
        self._close()
        self._end_if_over()

    def failed(self, reason: str) -> None:
        """Take note that the socket was reset by its peer, after what it has said."""
        if self.open:
            self._failure = reason
            self._watch(0)
            self._bridges.unwatch(self._fd)
            self._reset_by = self._bridges.clock() + RESET_LINGER_S
            self._pass_on_rest()
        else:
            self._end_if_over()

    # Socket to stream.

    def _read(self) -> None:
        """Read whenever there is something, as long as the stream has room."""
        if self._fd >= 0 and not self._read_done and self.stream.room > 0:
            self._bridges.unwatch(self._fd)
            self._watch(self._watched | READ)
        elif self.open and not self._watched & READ:
            self._bridges.watch(self._fd, self)

    def _pause(self) -> None:
        if self.open:
            self._watch(self._watched & ~READ)
            self._bridges.watch(self._fd, self)

    def _watch(self, events: int) -> None:
        watched, self._watched = self._watched, events
        self._bridges.poller.change(self._fd, watched, events, self._ready)

    def _ready(self, events: int) -> None:
        if events & self._watched & READ:
            self._readable()
        if events & self._watched & WRITE:
            self._writable()

    def _readable(self) -> None:
        room = self.stream.room
        if room <= 0:
            self._pause()
            return
        view = self._bridges.view
        try:
            count = self._sock.recv_into(view, room if room < READ_BYTES else READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self.failed(exc.strerror or str(exc))
            return
        if count:
            if self._write_done:
                self._active_at = self._bridges.clock()
            self.stream.write(bytes(view[:count]))
            if count == room:
                self._pause()
        else:
            self._read_done = True
            self._pause()
            self.stream.write_eof()
            self._half_closed()

    def _pass_on_rest(self) -> None:
        """Pass on what came before a reset, then the reset. It waits for room for `RESET_LINGER_S` after the last."""
        now = self._bridges.clock()
        if not self._read_rest() and now < self._reset_by:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._bridges.loop.call_later(self._reset_by - now, self._pass_on_rest)
            return
        self._close()
        if self.stream.state is not State.CLOSED:
            self.stream.reset(str(self._failure), now=now)
        self._end_if_over()

    def _read_rest(self) -> bool:
        """Read as far as the stream has room, and return whether that was all: who sends hears of a reset first."""
        view, stream = self._bridges.view, self.stream
        while not self._read_done and stream.state in (State.OPENING, State.OPEN):
            if (room := stream.room) <= 0:
                return False
            try:
                count = self._sock.recv_into(view, min(room, READ_BYTES))
            except OSError:
                return True
            if not count:  # the error was told already, so this is no end of file
                return True
            stream.write(bytes(view[:count]))
            self._reset_by = self._bridges.clock() + RESET_LINGER_S
        return True

    # Stream to socket.

    def _writable(self) -> None:
        self._watch(self._watched & ~WRITE)
        self._write()
        self._end_if_over()

    def _write(self) -> None:
        """Give the socket what it takes."""
        stream = self.stream
        receive = stream.receive
        chunks = receive.chunks
        try:
            while chunks:
                sent, complete = send_some(self._sock, chunks)
                self._active_at = self._bridges.clock()
                stream.consume(sent, now=self._active_at)
                if not complete:
                    self._wait_writable()
                    return
        except (BlockingIOError, InterruptedError):
            self._wait_writable()
            return
        except OSError as exc:
            self.failed(exc.strerror or str(exc))
            return
        if stream.state is RESET:
            self._reset_when_sent()
        elif receive.eof and receive.eof_ready:
            self._shut_down()

    def _wait_writable(self) -> None:
        self._watch(self._watched | WRITE)
        if self.stream.state is State.RESET:
            self._reset_later()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self._wait_writable()
            return
        except OSError as exc:
            self.failed(exc.strerror or str(exc))
            return
        self._write_done = True
        self._half_closed()
        self.stream.deliver_eof(now=self._bridges.clock())

    def _half_closed(self) -> None:
        """After both ends of file the socket is done; after one, its silence may be bounded."""
        if self._read_done and self._write_done:
            self._close(finish=True)
        elif (timeout_s := self._bridges.half_closed_timeout_s) is not None:
            self._active_at = self._bridges.clock()
            self._timer = self._bridges.loop.call_later(timeout_s, self._check_half_closed, timeout_s)

    def _check_half_closed(self, timeout_s: float) -> None:
        idle_s = self._bridges.clock() - self._active_at
        if idle_s < timeout_s:
            self._timer = self._bridges.loop.call_later(timeout_s - idle_s, self._check_half_closed, timeout_s)
        else:
            self.abort(f"half-closed and silent for {timeout_s:g} s")

    # Ends.

    def _reset_when_sent(self) -> None:
        """Reset once the peer has the bytes before it: RST throws away what is still queued (RFC 9293, 3.10.7)."""
        try:
            waiting = bool(self.stream.receive.chunks) or sockets.unsent_bytes(self._sock) > 0
        except OSError:
            waiting = False
        if waiting and self._bridges.clock() < self._reset_by:
            self._reset_later()
            return
        self._close()
        self.stream.finish_reset()
        self._end_if_over()

    def _reset_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._bridges.loop.call_later(LINGER_POLL_S, self._reset_when_sent)

    def _close(self, *, finish: bool = False) -> None:
        """Let go of the socket: with RST, unless it is finished."""
        if not self.open:
            return
        self._watch(0)
        self._bridges.unwatch(self._fd)
        if self._timer is not None:
            self._timer.cancel()
        self._fd = -1
        if finish:
            sockets.finish(self._sock)
        else:
            self._sock.close()

    def _end_if_over(self) -> None:
        if not self.open and self.stream.state is State.CLOSED and not self._ended:
            self._ended = True
            self._bridges.connections.remove(self)
            self._on_end(self)
