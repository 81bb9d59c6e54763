"""Joins one non-blocking socket with one stream: what the far socket did, this socket does.

The same bytes, FIN for FIN, RST for RST. Reading stops when the stream has no room, so TCP slows the writer.

The socket, as long as the bridge owns it:

    OPEN --end of file read--> READ_CLOSED --shut down--> CLOSED, with FIN
         --shut down--> WRITE_CLOSED --end of file read--> CLOSED, with FIN
    any  --reset by its peer--> FAILED --what came before is passed on--> CLOSED
    any  --the stream was reset--> RESETTING --what came before is sent--> CLOSED, with RST
    any  --the stream was aborted--> CLOSED, with RST

`RESET_LINGER_S` bounds how long what came before a reset may wait without moving on.

All that may happen to one socket is in this module, its way to another process included, hence so long.
"""

import asyncio
import enum
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from goreprox.net import sockets
from goreprox.net.poller import READ, WRITE, Poller
from goreprox.net.sockets import Socket, send_some
from goreprox.net.tls import TlsSocket
from goreprox.protocol.errors import ExportError
from goreprox.protocol.events import Buffer
from goreprox.protocol.fields import Fields
from goreprox.protocol.limits import MIB, RESET_LINGER_S
from goreprox.protocol.notices import Kind
from goreprox.protocol.state import RESET, State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.tunnel.connections import Connections, StreamOwner
from goreprox.tunnel.pace import Pace, Turns

READ_BYTES = MIB
"""The size of a read: reads of 64 KiB reach a third of the throughput."""
WATCH_S = 0.5
"""The interval at which sockets that are not being read are checked for errors."""
LINGER_POLL_S = 0.02
"""The interval at which a send queue is checked: no event tells that it is empty."""
READABLE, WRITABLE = Kind.READABLE, Kind.WRITABLE


class Phase(enum.IntEnum):
    """The state of a bridge's socket. Before FAILED it is in use, before CLOSED it is ours."""

    OPEN = enum.auto()
    READ_CLOSED = enum.auto()
    """Its end of file was read."""
    WRITE_CLOSED = enum.auto()
    """It was shut down for writing."""
    RESETTING = enum.auto()
    """The stream was reset; bytes from before that are still to be sent."""
    FAILED = enum.auto()
    """It was reset by its peer; bytes from before that are still to be passed on."""
    CLOSED = enum.auto()
    """The stream is not over yet."""
    ENDED = enum.auto()
    """The stream is over, too."""


WRITE_CLOSED, RESETTING, FAILED, CLOSED = Phase.WRITE_CLOSED, Phase.RESETTING, Phase.FAILED, Phase.CLOSED
"""Looked up once: an attribute of an enum costs ten times as much as a global."""


class Watched(Protocol):
    """Owns a socket that is not being read."""

    def failed(self, reason: str) -> None:
        """Take note that the peer has reset the socket."""


class Bridges:
    """What all bridges of a process share; it checks the sockets that are not being read for errors."""

    def __init__(self, poller: Poller, *, clock: Callable[[], float], half_closed_timeout_s: float | None) -> None:
        """Belong to the running loop. A half-closed socket that is idle for `half_closed_timeout_s` is reset."""
        self.poller = poller
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.half_closed_timeout_s = half_closed_timeout_s
        self.pace_of: Callable[[str], Pace | None] = lambda _service: None
        """Returns the rates of a service; None: its streams are never limited."""
        self.view = memoryview(bytearray(READ_BYTES))
        self.connections = Connections[StreamOwner]()
        self._paused: dict[int, Watched] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, fd: int, bridge: Watched) -> None:
        """Check a socket for errors from now on, since a reset goes unseen while it is not being read."""
        self._paused[fd] = bridge
        if self._timer is None:
            self._timer = self.loop.call_later(WATCH_S, self._check)

    def unwatch(self, fd: int) -> None:
        """Check a socket no longer, if it was."""
        self._paused.pop(fd, None)

    def _check(self) -> None:
        self._timer = None
        for fd in sockets.errors_among(list(self._paused)):
            if (bridge := self._paused.get(fd)) is not None:
                bridge.failed("reset by the peer")
        if self._paused:
            self._timer = self.loop.call_later(WATCH_S, self._check)


class Bridge:
    """Owns a socket and its stream, until both are over.

    It has a method for each thing that may happen to one of them, hence so many.
    """

    __slots__ = (
        "_active_at",
        "_bridges",
        "_down",
        "_failure",
        "_fd",
        "_on_end",
        "_phase",
        "_reset_by",
        "_sock",
        "_timer",
        "_up",
        "_watched",
        "began_at",
        "stream",
    )

    def __init__(
        self,
        bridges: Bridges,
        sock: Socket,
        stream: Stream,
        on_end: "Callable[[Bridge], None]",
        *,
        phase: Phase = Phase.OPEN,
    ) -> None:
        """Take over `sock`, prepared and connected, and begin to read it. `on_end` is called once both are over."""
        self.stream = stream
        self.began_at = bridges.clock()
        self._bridges = bridges
        self._sock = sock
        self._fd = sock.fileno()
        self._on_end = on_end
        self._watched = 0
        """READ while the stream has room, WRITE while the socket has none."""
        self._phase = phase
        self._failure = ""
        """Why the socket FAILED."""
        self._reset_by = 0.0
        """When a reset waits no longer for what came before it."""
        self._active_at = 0.0
        """When a half-closed socket was last read or written."""
        self._timer: asyncio.TimerHandle | None = None
        """For the half-closed timeout, or a reset that waits."""
        pace = bridges.pace_of(stream.service)
        self._up = None if pace is None else Turns(pace.up, self._turn_to_read)
        """Where the rate of the service is limited: when the socket may be read."""
        self._down = None if pace is None else Turns(pace.down, self._turn_to_write)
        stream.owner = self
        bridges.connections.add(self)
        if phase is not FAILED:
            self._read()

    @classmethod
    def restore(
        cls,
        bridges: Bridges,
        sock: Socket,
        stream: Stream,
        on_end: "Callable[[Bridge], None]",
        marks: Fields,
    ) -> "Bridge":
        """Go on with what another process has exported; `sock` is closed if it was closed there.

        Raises:
            ExportError: it is not what `export` returns.
        """
        phase = Phase(marks.count("phase", CLOSED))
        if (phase < CLOSED) != (sock.fileno() >= 0):
            raise ExportError("a socket in the export is open, and has no descriptor, or the reverse")
        bridge = cls(bridges, sock, stream, on_end, phase=phase)
        bridge.began_at, bridge._failure = marks.seconds("began_at"), marks.text("failure")
        bridge._reset_by, bridge._active_at = marks.seconds("reset_by"), marks.seconds("active_at")
        if bridge._phase is FAILED:
            bridge._pass_on_rest()
        elif bridge.open:
            if bridge._phase in (Phase.READ_CLOSED, WRITE_CLOSED) and bridges.half_closed_timeout_s is not None:
                bridge._check_half_closed()
            bridge._write()
        return bridge

    def export(self, *, payload: bool) -> dict[str, object]:
        """Return how far the socket has come.

        With `payload` let go of its descriptor without closing it; nothing may follow.
        """
        descriptor = self.descriptor if payload else None
        if descriptor is not None and isinstance(self._sock, socket.socket):
            self._sock.detach()
        return {
            "descriptor": descriptor,
            "phase": int(self._phase),
            "began_at": self.began_at,
            "failure": self._failure,
            "reset_by": self._reset_by,
            "active_at": self._active_at,
        }

    @property
    def portable(self) -> bool:
        """Whether another process could go on with the socket: not with TLS, whose state is in OpenSSL."""
        return not self.open or isinstance(self._sock, socket.socket)

    @property
    def descriptor(self) -> int | None:
        """Of the socket; None if it was closed."""
        return self._fd if self.open else None

    @property
    def facts(self) -> dict[str, str]:
        """What is known of a client, besides its address."""
        identity = self._sock.identity if self.open and isinstance(self._sock, TlsSocket) else None
        return {} if identity is None or identity.name is None else {"certificate": identity.name}

    @property
    def open(self) -> bool:
        """Whether the socket is still ours."""
        return self._phase < CLOSED

    def notice(self, kind: Kind) -> None:
        """Do what the session says about the stream."""
        if kind is READABLE:
            if self._phase < FAILED and not self._watched & WRITE:
                self._write()
        elif self._phase is FAILED:
            self._pass_on_rest()
        elif kind is WRITABLE:
            if not self._watched & READ:
                self._read()
        elif kind is Kind.RESET and not self.open:
            self.stream.finish_reset()  # both ends of file had passed here before the peer's socket was reset
        elif kind is Kind.RESET:
            self._phase = RESETTING
            self._reset_by = self._bridges.clock() + RESET_LINGER_S
            self._write()
        elif kind is Kind.ABORTED:
            self._close()
        if self._phase is CLOSED:
            self._end_if_over()

    def abort(self, reason: str, code: EndCode) -> None:
        """Reset both now."""
        self.stream.abort(reason, code)
        self._close()
        self._end_if_over()

    def failed(self, reason: str) -> None:
        """Pass on what the peer of the socket sent before it reset it, then the reset."""
        everything_read = self._phase is Phase.READ_CLOSED
        self._phase, self._failure = FAILED, reason
        self._watch(0)
        self._bridges.unwatch(self._fd)
        if everything_read:
            self._pass_on_reset()
        else:
            self._reset_by = self._bridges.clock() + RESET_LINGER_S
            self._pass_on_rest()

    # Socket to stream.

    def _read(self) -> None:
        """Have the socket read whenever it is readable, as long as the stream has room."""
        if self._phase < FAILED and self.stream.room > 0:
            self._bridges.unwatch(self._fd)
            self._watch(self._watched | READ)
        elif self.open:
            self._bridges.watch(self._fd, self)

    def _pause(self) -> None:
        self._watch(self._watched & ~READ)
        self._bridges.watch(self._fd, self)

    def _watch(self, events: int) -> None:
        watched, self._watched = self._watched, events
        self._bridges.poller.change(self._fd, watched, events, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if events & self._watched & READ:
                self._readable()
            if events & self._watched & WRITE:
                self._writable()
        except Exception:  # such as MemoryError: bytes that were read may be in no buffer
            self.abort("a fault in this process, which is in its log", EndCode.FAILED)
            raise

    def _readable(self) -> None:
        room = self.stream.room
        if room <= 0:
            self._pause()
            return
        most = room if room < READ_BYTES else READ_BYTES
        if self._up is not None and not (most := self._up.take(most)):
            self._pause()
            return
        view = self._bridges.view
        count = 0
        try:
            count = self._sock.recv_into(view, most)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self.failed(exc.strerror or str(exc))
            return
        finally:
            if self._up is not None:
                self._up.give_back(most - count)
        if count:
            if self._phase is WRITE_CLOSED:
                self._active_at = self._bridges.clock()
            self.stream.write(bytes(view[:count]))
            if count == room:
                self._pause()
        else:
            self._pause()
            self.stream.write_eof()
            self._half_close(Phase.READ_CLOSED)

    def _turn_to_read(self) -> None:
        if self._phase is FAILED:
            self._pass_on_rest()
        elif self._phase < FAILED:
            self._read()
            if self._watched & READ:
                self._readable()

    def _pass_on_rest(self) -> None:
        """Pass on what came before a reset, as far as there is room in time, then the reset."""
        now = self._bridges.clock()
        if self._read_rest() or now >= self._reset_by:
            self._pass_on_reset()
        else:
            self._call_later(self._reset_by - now, self._pass_on_rest)

    def _read_rest(self) -> bool:
        """Read as long as the stream has room; return whether nothing is left.

        A write may have failed first, so there may be bytes that were never read.
        """
        view, stream = self._bridges.view, self.stream
        while stream.state in (State.OPENING, State.OPEN):
            if (room := stream.room) <= 0:
                return False
            most = min(room, READ_BYTES)
            if self._up is not None and not (most := self._up.take(most)):
                return False
            count = 0
            try:
                count = self._sock.recv_into(view, most)
            except OSError:
                return True
            finally:
                if self._up is not None:
                    self._up.give_back(most - count)
            if not count:  # the error was reported already, so this is no end of file
                return True
            stream.write(bytes(view[:count]))
            self._reset_by = self._bridges.clock() + RESET_LINGER_S
        return True

    def _pass_on_reset(self) -> None:
        self._close()
        if self.stream.state is not State.CLOSED:
            self.stream.reset(self._failure, now=self._bridges.clock())
        self._end_if_over()

    # Stream to socket.

    def _writable(self) -> None:
        self._watch(self._watched & ~WRITE)
        self._write()
        self._end_if_over()

    def _write(self) -> None:
        """Write what the stream has received, as far as the socket takes it."""
        stream = self.stream
        receive = stream.receive
        chunks = receive.chunks
        try:
            while chunks:
                if (moved := self._send(chunks)) is None:
                    if self._phase is RESETTING:
                        self._reset_later()
                    return
                sent, complete = moved
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
        if self._phase is RESETTING:
            self._reset_when_sent()
        elif receive.eof and receive.eof_ready and stream.state is not RESET:
            self._shut_down()

    def _send(self, chunks: deque[Buffer]) -> tuple[int, bool] | None:
        """Send some bytes; return how many, and whether the socket may take more. None: another stream's turn is first.

        Raises:
            BlockingIOError: the socket takes none now.
            OSError: the connection failed.
        """
        if self._down is None:
            return send_some(self._sock, chunks)
        part = memoryview(chunks[0])
        most, sent = self._down.take(len(part)), 0
        if not most:
            return None
        try:
            sent = self._sock.send(part[:most])
        finally:
            self._down.give_back(most - sent)
        return sent, sent == most

    def _turn_to_write(self) -> None:
        if self._phase < FAILED and not self._watched & WRITE:
            self._write()
            self._end_if_over()

    def _wait_writable(self) -> None:
        self._watch(self._watched | WRITE)
        if self._phase is RESETTING:
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
        self._half_close(WRITE_CLOSED)
        self.stream.deliver_eof(now=self._bridges.clock())

    def _half_close(self, phase: Phase) -> None:
        """Take note of one end of file: after both the socket is done, after one it may be idle only for so long."""
        if self._phase is not Phase.OPEN:
            self._close(finish=True)
            return
        self._phase = phase
        if self._bridges.half_closed_timeout_s is not None:
            self._active_at = self._bridges.clock()
            self._check_half_closed()

    def _check_half_closed(self) -> None:
        timeout_s = self._bridges.half_closed_timeout_s
        assert timeout_s is not None
        idle_s = self._bridges.clock() - self._active_at
        if idle_s < timeout_s:
            self._call_later(timeout_s - idle_s, self._check_half_closed)
        else:
            self.abort(f"half-closed and silent for {timeout_s:g} s", EndCode.TIMEOUT)

    # Ends.

    def _reset_when_sent(self) -> None:
        """Reset the socket once its peer has the bytes before: RST discards what is still queued (RFC 9293, 3.10.7)."""
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
        self._call_later(LINGER_POLL_S, self._reset_when_sent)

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._bridges.loop.call_later(delay_s, callback)

    def _close(self, *, finish: bool = False) -> None:
        """Close the socket, if it is still ours: with RST, unless both ends of file have passed (`finish`)."""
        if not self.open:
            return
        self._phase = CLOSED
        self._watch(0)
        self._bridges.unwatch(self._fd)
        if self._up is not None and self._down is not None:
            self._up.leave()
            self._down.leave()
        if self._timer is not None:
            self._timer.cancel()
        if finish:
            sockets.finish(self._sock)
        else:
            self._sock.close()

    def _end_if_over(self) -> None:
        if self._phase is CLOSED and self.stream.state is State.CLOSED:
            self._phase = Phase.ENDED
            self._bridges.connections.remove(self)
            self._on_end(self)
