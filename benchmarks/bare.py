"""What Python and ZeroMQ can carry at most: a relay without any of goreprox's promises.

`python -m benchmarks.bare server PORT LINK` and `python -m benchmarks.bare provider TARGET LINK`: ports of loopback.
It moves bytes in the way that goreprox does (raw sockets on the loop, one message a turn, large payloads as frames of
their own) and nothing else: no resume, acknowledgement, scheduling, memory budget, authentication, limit or log.
The difference to goreprox is the cost of its promises.
"""

import asyncio
import contextlib
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import cbor2
import zmq

from benchmarks.local import HOST

RAW_BYTES: Final = 16 * 1024
WINDOW_BYTES: Final = 4 * 1024 * 1024
NOBLOCK, MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
EVENTS, POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
OPEN, DATA, CREDIT, END, HELLO = range(5)
VIEW: Final = memoryview(bytearray(1 << 20))


class Relay:
    """One of the two processes."""

    def __init__(self, link: "zmq.Socket[bytes]", opened: Callable[["Relay", int], None]) -> None:
        """Speak over `link`; `opened` is called for each connection that the other process begins."""
        self.loop = asyncio.get_running_loop()
        self.pipes: dict[int, Pipe] = {}
        self.peer = asyncio.Event()
        self._link = link
        self._address: list[bytes] = []
        self._opened = opened
        self._events: list[list[object]] = []
        self._frames: list[bytes] = []
        link.copy_threshold = 0
        self.loop.add_reader(int(link.getsockopt(zmq.FD)), self._drain)

    def say(self, *event: object, frame: bytes | None = None) -> None:
        """Send an event with all others of this turn."""
        if not self._events:
            self.loop.call_soon(self._flush)
        self._events.append(list(event))
        if frame is not None:
            self._frames.append(frame)

    def _flush(self) -> None:
        frames = [*self._address, cbor2.dumps(self._events), *self._frames]
        self._events, self._frames = [], []
        for frame in frames[:-1]:
            self._link.send(frame, MORE, len(frame) < RAW_BYTES)
        self._link.send(frames[-1], NOBLOCK, len(frames[-1]) < RAW_BYTES)
        self._drain()

    def _drain(self) -> None:
        while int(self._link.getsockopt(EVENTS)) & POLLIN:
            frames = self._link.recv_multipart(NOBLOCK, copy=False)
            if self._link.socket_type == zmq.ROUTER:
                self._address = [frames.pop(0).bytes]
            events, *raw = frames
            payloads = iter([frame.buffer for frame in raw])
            for event in cbor2.loads(events.bytes):
                self._take(event, payloads)

    def _take(self, event: list[Any], payloads: Iterator[Any]) -> None:
        kind = event[0]
        if kind == OPEN:
            self._opened(self, event[1])
        elif kind == HELLO:
            self.peer.set()
        elif kind == DATA:
            payload = next(payloads) if type(event[2]) is int else event[2]
            if (pipe := self.pipes.get(event[1])) is not None:
                pipe.write(payload)
        elif (pipe := self.pipes.get(event[1])) is not None:
            if kind == CREDIT:
                pipe.credit(event[2])
            else:
                pipe.end()


class Pipe:
    """One connection of this process."""

    __slots__ = ("_ended", "_fd", "_id", "_queue", "_read_done", "_relay", "_room", "_sock", "_taken")

    def __init__(self, relay: Relay, sock: socket.socket, number: int) -> None:
        """Take over a connected socket."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._relay, self._sock, self._fd, self._id = relay, sock, sock.fileno(), number
        self._queue: deque[Any] = deque()
        self._room = WINDOW_BYTES
        self._taken = 0
        self._read_done = self._ended = False
        relay.pipes[number] = self
        relay.loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            count = self._sock.recv_into(VIEW)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._relay.loop.remove_reader(self._fd)
            self._read_done = True
            self._relay.say(END, self._id)
            self._close_if_over()
            return
        data = bytes(VIEW[:count])
        if count < RAW_BYTES:
            self._relay.say(DATA, self._id, data)
        else:
            self._relay.say(DATA, self._id, count, frame=data)
        self._room -= count
        if self._room <= 0:
            self._relay.loop.remove_reader(self._fd)

    def credit(self, count: int) -> None:
        """Read on: the other side has taken bytes."""
        stopped = self._room <= 0
        self._room += count
        if stopped and self._room > 0 and not self._read_done:
            self._relay.loop.add_reader(self._fd, self._read)

    def write(self, data: Any) -> None:
        """Send bytes that came from the other side."""
        if not self._queue:
            sent = self._send(data)
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._relay.loop.add_writer(self._fd, self._write_on)
        self._queue.append(data)

    def _send(self, data: Any) -> int:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            sent = len(data)  # nobody is left to read it
        self._taken += sent
        if self._taken >= WINDOW_BYTES // 4:
            self._relay.say(CREDIT, self._id, self._taken)
            self._taken = 0
        return sent

    def _write_on(self) -> None:
        while self._queue:
            data = self._queue.popleft()
            sent = self._send(data)
            if sent < len(data):
                self._queue.appendleft(data[sent:])
                return
        self._relay.loop.remove_writer(self._fd)
        if self._ended:
            self.end()

    def end(self) -> None:
        """Half-close, after what waits."""
        self._ended = True
        if not self._queue:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            self._close_if_over()

    def _close_if_over(self) -> None:
        if self._read_done and self._ended and not self._queue and self._relay.pipes.pop(self._id, None) is not None:
            self._sock.close()


async def serve(port: int, link: int) -> None:
    """Accept clients, once the provider is there."""
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    router.bind(f"tcp://{HOST}:{link}")
    relay = Relay(router, lambda *_: None)
    await relay.peer.wait()
    listening = socket.create_server((HOST, port), backlog=1024)
    listening.setblocking(False)
    numbers = iter(range(1, sys.maxsize))

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = listening.accept()
                number = next(numbers)
                relay.say(OPEN, number)
                Pipe(relay, sock, number)

    relay.loop.add_reader(listening.fileno(), accept)
    await asyncio.Event().wait()


async def provide(target: int, link: int) -> None:
    """Dial the target for each client."""
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(f"tcp://{HOST}:{link}")

    def dial(relay: Relay, number: int) -> None:
        Pipe(relay, socket.create_connection((HOST, target)), number)

    Relay(dealer, dial).say(HELLO)
    await asyncio.Event().wait()


if __name__ == "__main__":
    role, first, second = sys.argv[1:]
    asyncio.run({"server": serve, "provider": provide}[role](int(first), int(second)))
