"""What libzmq has to be told and asked, the same for both ends of a link. The only user of its options.

Knows nothing of controls, peers or rosters.

A ZeroMQ socket is watched through one file descriptor, which is edge-triggered and shared by both directions:
any call may swallow the edge that the next message made. So after receiving and after sending, EVENTS is looked
at again. pyzmq's own asyncio sockets do this too, but cost a future per message.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from brokers.carrier import Buffer, Timings
from brokers.envelope import MAX_FRAME_BYTES, MAX_FRAMES, MAX_MESSAGE_BYTES

Socket = zmq.Socket[bytes]
Frame = bytes | zmq.Frame
"""As received: small ones are copied out, large ones are left where libzmq put them."""

RAW_BYTES: Final = 16 << 10
"""From this size on a frame is referenced rather than copied, both ways: below, the copy is cheaper."""
PIPE_MESSAGES: Final = 256
"""High-water mark per connection and direction. libzmq counts messages, not bytes: what bounds the bytes is the
flow control above us. Above this mark our own outboxes wait, which do count bytes."""
TURN_MESSAGES: Final = 512
TURN_BYTES: Final = 4 << 20
"""What one socket may receive before everything else in the event loop has its turn: a few milliseconds' worth."""


def milliseconds(seconds: float) -> int:
    """Return seconds as libzmq wants them: at least one millisecond, since 0 often means never."""
    return max(1, round(seconds * 1000))


def open_socket(context: zmq.Context[Socket], kind: int, timings: Timings) -> Socket:
    """Return a socket with all that ROUTERs and DEALERs have in common."""
    socket = context.socket(kind)
    socket.copy_threshold = RAW_BYTES
    timeout_s = timings.link_timeout_s
    for option, value in (
        (zmq.LINGER, 0),  # until it is closed in earnest
        (zmq.IPV6, 1),
        (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
        (zmq.SNDHWM, PIPE_MESSAGES),
        (zmq.RCVHWM, PIPE_MESSAGES),
        (zmq.HEARTBEAT_IVL, milliseconds(timeout_s / 3)),
        (zmq.HEARTBEAT_TIMEOUT, milliseconds(timeout_s * 2 / 3)),
        (zmq.HEARTBEAT_TTL, milliseconds(max(timeout_s, 0.1))),  # in steps of 0.1 s
        (zmq.HANDSHAKE_IVL, milliseconds(timeout_s)),
    ):
        socket.setsockopt(option, value)
    return socket


def open_router(context: zmq.Context[Socket], timings: Timings) -> Socket:
    """Return a ROUTER that says what it cannot deliver, and lets a peer take over its own half-dead connection."""
    socket = open_socket(context, zmq.ROUTER, timings)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.setsockopt(zmq.BACKLOG, 1024)
    return socket


def open_dealer(context: zmq.Context[Socket], timings: Timings, routing_id: bytes) -> Socket:
    """Return a DEALER that reconnects by itself, and has no queue while it is not connected.

    Without IMMEDIATE, what is sent during an outage would arrive before the next hello. The intervals of
    reconnection double from one value to the other; libzmq adds no jitter to that, so we do.
    """
    socket = open_socket(context, zmq.DEALER, timings)
    socket.setsockopt(zmq.ROUTING_ID, routing_id)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    first_s = timings.reconnect_min_s * random.uniform(0.8, 1.2)
    socket.setsockopt(zmq.RECONNECT_IVL, milliseconds(first_s))
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, milliseconds(timings.reconnect_max_s))
    socket.setsockopt(zmq.CONNECT_TIMEOUT, milliseconds(timings.connect_timeout_s))
    return socket


def send(socket: Socket, heads: Sequence[bytes], body: Sequence[Buffer | zmq.Frame]) -> None:
    """Send one message, without blocking. Only the first frame can fail: then none has been sent.

    Raises:
        zmq.Again: the pipe is full, or there is none.
        zmq.ZMQError: EHOSTUNREACH, a ROUTER has no connection with this routing id.
    """
    for head in heads:
        socket.send(head, zmq.NOBLOCK | zmq.SNDMORE)
    for frame in body[:-1]:
        socket.send(frame, zmq.NOBLOCK | zmq.SNDMORE, copy=False)
    socket.send(body[-1], zmq.NOBLOCK, copy=False)


def receive(socket: Socket, heads: int) -> tuple[list[Frame], int]:
    """Return one message and its size in bytes; its first `heads` frames are bytes.

    Raises:
        zmq.Again: there is none.
    """
    frame = socket.recv(zmq.NOBLOCK)
    frames: list[Frame] = [frame]
    size = len(frame)
    more = socket.get(zmq.RCVMORE)
    while more and len(frames) < heads:
        frame = socket.recv(zmq.NOBLOCK)
        frames.append(frame)
        size += len(frame)
        more = socket.get(zmq.RCVMORE)
    while more:
        raw = socket.recv(zmq.NOBLOCK, copy=False)
        more = raw.more
        size += len(raw)
        frames.append(raw if len(raw) >= RAW_BYTES else raw.bytes)
    return frames, size


def buffers(frames: Sequence[Buffer | zmq.Frame]) -> list[Buffer]:
    """Return received frames as the user of the fabric gets them. The views keep libzmq's memory alive."""
    return [frame.buffer if isinstance(frame, zmq.Frame) else frame for frame in frames]


class Pump:
    """Empties a socket whenever something arrives, a bounded part per turn of the event loop.

    `on_message(frames, size_bytes)` gets every message within the limits, of whose frames the first `heads` are bytes;
    `on_turn()` is called after every turn, when full pipes may have room again.
    """

    def __init__(
        self,
        socket: Socket,
        *,
        heads: int,
        on_message: Callable[[list[Frame], int], None],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self.discarded = 0
        """Messages beyond the limits."""
        self._socket = socket
        self._heads = heads
        self._on_message = on_message
        self._on_turn = on_turn
        self._loop = asyncio.get_running_loop()
        self._fd: int = socket.get(zmq.FD)
        self._soon: asyncio.Handle | None = None
        self._stopped = False
        self._loop.add_reader(self._fd, self._turn)
        self.touch()

    def touch(self) -> None:
        """Look at the socket in the next turn of the loop. To be called after sending to it."""
        if self._soon is None and not self._stopped:
            self._soon = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        """End watching; the socket can be closed then."""
        if not self._stopped:
            self._stopped = True
            self._loop.remove_reader(self._fd)
            if self._soon is not None:
                self._soon.cancel()

    def _turn(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        try:
            self._drain()
            if not self._stopped:
                self._on_turn()
        finally:  # should a callback raise, the loop reports it, and the socket must not fall silent
            if not self._stopped and self._socket.get(zmq.EVENTS) & zmq.POLLIN:
                self.touch()

    def _drain(self) -> None:
        messages, size = TURN_MESSAGES, TURN_BYTES
        while messages > 0 and size > 0 and not self._stopped:
            try:
                frames, got = receive(self._socket, self._heads)
            except zmq.Again:
                return
            messages -= 1
            size -= got
            if got <= MAX_MESSAGE_BYTES and len(frames) <= MAX_FRAMES + self._heads:
                self._on_message(frames, got)
            else:
                self.discarded += 1


class Monitor:
    """Calls `on_event(event, endpoint)` for a socket's own news of its connections."""

    def __init__(self, socket: Socket, events: int, on_event: Callable[[int, str], None]) -> None:
        self._socket = socket
        self._on_event = on_event
        self._pump = Pump(socket.get_monitor_socket(events), heads=2, on_message=self._parse)

    def _parse(self, frames: list[Any], _size: int) -> None:
        news = parse_monitor_message(frames)
        self._on_event(news["event"], news["endpoint"].decode())

    def stop(self) -> None:
        """End watching. To be called before the socket is closed."""
        self._pump.stop()
        self._socket.disable_monitor()


async def terminate(context: zmq.Context[Socket]) -> None:
    """Wait until all that lingers in the closed sockets of a context has gone out, and end it.

    zmq_ctx_term blocks, so it has a thread to itself (the loop's own ones may all be resolving names). That is
    why each `Router` and each `Link` has its own context: its end is the only sign that the last message is out.
    """
    executor = ThreadPoolExecutor(1, "zmq-term")
    try:
        await asyncio.get_running_loop().run_in_executor(executor, context.term)
    finally:
        executor.shutdown(wait=False)
