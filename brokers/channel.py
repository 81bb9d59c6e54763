"""A ZeroMQ socket on the asyncio loop, without a future per message.

ZMQ_FD is edge-triggered and shared by both directions (zmq_getsockopt(3)): after every send and every drain
the events are looked at again. A drain stops at its cap and schedules its own continuation.
"""

import asyncio
from collections.abc import Callable, Sequence

import zmq

from brokers.carrier import Buffer
from brokers.envelope import RAW_BYTES

DRAIN_MESSAGES = 256
DRAIN_BYTES = 8 * 1024 * 1024
"""Per turn of the loop: 8 MiB at 1 GB/s are 8 ms."""


class Channel:
    """Owns a socket: reads it as long as it is open, sends without blocking."""

    def __init__(self, socket: "zmq.Socket[bytes]", receive: Callable[[list[Buffer]], None]) -> None:
        """Call `receive` with every message; its frames are immutable and may be kept."""
        self.socket = socket
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._fd = int(socket.getsockopt(zmq.FD))
        self.on_drained: Callable[[], None] | None = None
        """Called after each drain: room for sending may be there again."""
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
            flags = zmq.NOBLOCK if index == last else zmq.NOBLOCK | zmq.SNDMORE
            send(frame, flags, copy=len(frame) < RAW_BYTES)
        self._look_again()

    @property
    def readable(self) -> bool:
        """Whether a message waits."""
        return not self.socket.closed and bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _look_again(self) -> None:
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
        size = 0
        for _ in range(DRAIN_MESSAGES):
            if self.socket.closed or size > DRAIN_BYTES:
                break
            frames: list[Buffer] = []
            try:
                more = True
                while more:
                    frame = self.socket.recv(zmq.NOBLOCK, copy=False)
                    buffer = frame.buffer
                    size += len(buffer)
                    frames.append(buffer if len(buffer) >= RAW_BYTES else bytes(buffer))
                    more = frame.more
            except zmq.Again:
                break
            self._receive(frames)
        if self.on_drained is not None and not self.socket.closed:
            self.on_drained()
        self._look_again()

    def close(self, linger_s: float) -> None:
        """Stop reading; what is queued has `linger_s` seconds to go out once the context is terminated."""
        if self.socket.closed:
            return
        self._loop.remove_reader(self._fd)
        self.socket.close(linger=int(linger_s * 1000))
