"""A ZeroMQ socket on the asyncio loop, without a future per message.

ZMQ_FD is edge-triggered and shared by both directions (zmq_getsockopt(3)), so ZMQ_EVENTS is checked after every send
and every message. It also tells when the socket is empty: the exception for that costs more than a message.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401 -- else at the end, which waits for libzmq in a thread
from collections.abc import Callable, Sequence
from typing import Final

import zmq
import zmq.utils.garbage
from zmq.utils.monitor import parse_monitor_message

from brokers.carrier import Buffer

NOBLOCK, MORE, EVENTS, POLLIN = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.EVENTS), int(zmq.POLLIN)
"""Plain integers: an operation on enum members costs as much as a message."""
REFERENCED_BYTES: Final = 128 * 1024
"""Larger frames are referenced until libzmq has sent them. Smaller ones are copied: that takes 10 us at most, less than
the notice from another thread that a frame is no longer needed."""
KEPT_BYTES: Final = 16 * 1024
"""Received frames of at least this size are used in place, smaller ones are copied."""
DRAIN_MESSAGES: Final = 256
DRAIN_BYTES: Final = 8 * 1024 * 1024
"""Read in one turn of the loop at most: 8 MiB at 1 GB/s take 8 ms."""


class Channel:
    """Owns a socket: reads it until it is closed, sends without blocking."""

    def __init__(
        self, socket: "zmq.Socket[bytes]", receive: Callable[[list[Buffer]], None], *, authenticated: bool = False
    ) -> None:
        """Call `receive` with every message; its frames are immutable and may be kept."""
        self.socket = socket
        self.user_id = ""
        """Where peers are `authenticated`: the user id of the present message's sender, from the ZAP handler."""
        self._receive = receive
        self._authenticated = authenticated
        self._loop = asyncio.get_running_loop()
        self._scheduled = self._closed = False
        self._fd = int(socket.getsockopt(zmq.FD))
        self.on_drained: Callable[[], None] | None = None
        """Called after each series of messages: there may be room for sending again."""
        self.on_behind: Callable[[], None] | None = None
        """Called when a turn ends with messages left to read."""
        self._first: zmq.Frame | None = None
        socket.copy_threshold = 0
        self._loop.add_reader(self._fd, self._drain)
        self._schedule()

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send one message.

        Raises:
            zmq.Again: the pipe is full.
            zmq.ZMQError: EHOSTUNREACH, a ROUTER knows no such peer.
        """
        send = self.socket.send
        last = len(frames) - 1
        for index, frame in enumerate(frames):
            send(frame, NOBLOCK if index == last else MORE, len(frame) < REFERENCED_BYTES)
        self.look_again()

    @property
    def descriptor(self) -> int:
        """Of the connection that the present message came from; libzmq may have closed it. -1: unknown (ZMTP 2)."""
        assert self._first is not None
        try:
            return int(self._first.get(zmq.SRCFD))
        except zmq.ZMQError:
            return -1

    def drain(self) -> None:
        """Read what waits now instead of in the next turn of the loop."""
        self._drain()

    @property
    def readable(self) -> bool:
        """Whether a message waits to be read."""
        return not self._closed and int(self.socket.getsockopt(EVENTS)) & POLLIN != 0

    def look_again(self) -> None:
        """Read soon if a message waits. Call it after every use of the socket, which may consume the edge of ZMQ_FD."""
        if self.readable:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain_again)

    def _drain_again(self) -> None:
        self._scheduled = False
        self._drain()

    def _drain(self) -> None:
        size = messages = 0
        while self.readable:
            if messages >= DRAIN_MESSAGES or size > DRAIN_BYTES:
                self._schedule()
                if self.on_behind is not None:
                    self.on_behind()
                break
            frames: list[Buffer] = []
            more = True
            while more:
                frame = self.socket.recv(NOBLOCK, False)
                if not frames:
                    self._first = frame
                    if self._authenticated:
                        self.user_id = _user_id(frame)
                length = len(frame)
                size += length
                frames.append(frame.buffer if length >= KEPT_BYTES else frame.bytes)
                more = frame.more
            messages += 1
            try:
                self._receive(frames)
            except Exception as exc:  # noqa: BLE001 -- a fault in handling one message must not stop the others
                self._loop.call_exception_handler({"message": "receiving a message", "exception": exc})
        if self.on_drained is not None and not self._closed:
            self.on_drained()

    def close(self, linger_s: float) -> None:
        """Stop reading; what is queued has `linger_s` seconds to go out once the context is terminated."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        self.socket.close(linger=int(linger_s * 1000))


class Monitor:
    """Reports events of a socket's connections (zmq_socket_monitor(3)).

    The queue has no bound: if it were full, libzmq's I/O thread would wait with a lock that `close` needs, too.
    Two thousand connections in one turn of the loop made `close` hang. An event takes 100 bytes.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", events: int, report: Callable[[int, int], None]) -> None:
        """Call `report` with each of `events` and its value.

        Raises:
            zmq.ZMQError: EMFILE, no descriptors are left.
        """
        self._socket = socket
        own: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
        try:
            own.setsockopt(zmq.RCVHWM, 0)
            endpoint = f"inproc://monitor-{id(own)}"
            socket.monitor(endpoint, events)
            own.connect(endpoint)
        except zmq.ZMQError:
            own.close(0)
            raise
        self._report = report
        self._channel = Channel(own, self._receive)

    def _receive(self, frames: list[Buffer]) -> None:
        event = parse_monitor_message([bytes(frame) for frame in frames])
        self._report(event["event"], event["value"])

    def drain(self) -> None:
        """Report what there is now instead of in the next turn of the loop."""
        self._channel.drain()

    def close(self) -> None:
        """Stop reporting; call it before the socket itself is closed."""
        self._socket.disable_monitor()
        self._channel.close(0)


def _user_id(frame: zmq.Frame) -> str:
    """Return the user id that the ZAP handler gave to a frame's connection; "" without a handshake."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""
