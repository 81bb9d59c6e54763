"""A path in user space: relays TCP with a delay, a limited rate, and cuts.

`python -m benchmarks.relay LISTEN HOST:PORT DELAY_MS MBIT` relays from port LISTEN of loopback; MBIT 0 is no limit.
It models a link of one delay each way and one rate each way, shared by all connections, without loss:

- the handshake of a connection takes its round trip, as on a real path: nothing that a client writes leaves before;
- bytes leave one after the other at the rate (a queue, first in first out), and arrive a delay later;
- one connection has at most 5 ms, or 64 KiB, in that queue; the rest waits in its sender, as congestion control has it.

It does not model loss and slow start: sides that open new connections get full speed at once.

On standard input it takes `cut SECONDS`: reset all connections, stop listening, and listen again after so long; then
it prints the time (`time.monotonic`, in s) at which it could be reached again. It ends with its standard input.
"""

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from benchmarks.local import HOST, BenchmarkError, free_port, wait_for_listener

CHUNK_BYTES: Final = 16 << 10  # 1.3 ms at 100 Mbit/s: what shares the line waits no longer for one chunk
SEGMENT_BYTES: Final = 1448  # of Ethernet, less the headers
MIN_QUEUE_BYTES: Final = 64 << 10
QUEUE_S: Final = 0.005  # several ticks of the event loop's clock (1 ms), so that the line never runs dry
UNLIMITED_BYTES: Final = 4 << 20  # on its way at once without a rate
RESET: Final = struct.pack("ii", 1, 0)


class Line:
    """One direction of the link, shared by all connections."""

    def __init__(self, delay_s: float, rate: float) -> None:
        self.delay_s: Final = delay_s
        self.rate: Final = rate
        """Bytes a second; 0: no limit."""
        self.free_at = 0.0
        self.queue_bytes: Final = max(MIN_QUEUE_BYTES, int(rate * QUEUE_S))
        self.held_bytes: Final = int(rate * delay_s) + 2 * self.queue_bytes if rate else UNLIMITED_BYTES

    def depart(self, now: float, count: int) -> float:
        """Return when `count` bytes that come now have left."""
        if not self.rate:
            return now
        self.free_at = max(now, self.free_at) + count / self.rate
        return self.free_at


class End(asyncio.BufferedProtocol):
    """One socket. What it reads is sent over its line to the other end."""

    def __init__(self, relay: "Relay", line: Line, opens_at: float) -> None:
        self.relay = relay
        self.line = line
        self.other: End | None = None
        self.transport: asyncio.Transport | None = None
        self.opens_at = opens_at
        self.on_way: deque[tuple[float, bytes | None]] = deque()  # when it arrives; None: end of file
        self.queued: deque[tuple[float, int]] = deque()  # what has not left yet: until when, how much
        self.queued_bytes = self.held = 0
        self.may_write = self.reading = True
        self.eof_written = False
        self.timer: asyncio.TimerHandle | None = None
        self.buffer = memoryview(bytearray(CHUNK_BYTES))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=MIN_QUEUE_BYTES)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio leaves it out where `proto` is 0
        self.relay.ends.add(self)
        if self.other is None:
            self.relay.dial(self)
        else:
            self.other.deliver()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._send(bytes(self.buffer[:nbytes]))

    def eof_received(self) -> bool:
        self._send(None)
        return True

    def _send(self, data: bytes | None) -> None:
        count = len(data) if data else 0
        left = self.line.depart(max(time.monotonic(), self.opens_at), count)
        self.on_way.append((left + self.line.delay_s, data))
        if self.line.rate:
            self.queued.append((left, count))
            self.queued_bytes += count
        self.held += count
        self._schedule()

    def deliver(self) -> None:
        """Write what has arrived to the other socket; continue or stop reading."""
        self.timer = None
        other, now = self.other, time.monotonic()
        while self.queued and self.queued[0][0] <= now:
            self.queued_bytes -= self.queued.popleft()[1]
        if other is not None and other.transport is not None:
            while self.on_way and self.on_way[0][0] <= now and other.may_write:
                data = self.on_way.popleft()[1]
                if data is None:
                    self._end(other)
                else:
                    self.held -= len(data)
                    other.transport.write(data)
        self._schedule()

    def _end(self, other: "End") -> None:
        assert self.transport is not None
        assert other.transport is not None
        if not other.transport.is_closing():
            with contextlib.suppress(OSError):  # reset, and not yet told so
                other.transport.write_eof()
        other.eof_written = True
        if self.eof_written:
            self.transport.close()
            other.transport.close()

    def _schedule(self) -> None:
        full = self.queued_bytes >= self.line.queue_bytes or self.held >= self.line.held_bytes
        if self.transport is not None and not self.transport.is_closing() and self.reading == full:
            self.reading = not full
            (self.transport.resume_reading if self.reading else self.transport.pause_reading)()
        moments = [self.queued[len(self.queued) // 2][0]] if full and self.queued else []
        if self.on_way and self.other is not None and self.other.transport is not None and self.other.may_write:
            moments.append(self.on_way[0][0])
        if moments:
            moment, loop = min(moments), asyncio.get_running_loop()  # whose clock is `time.monotonic`
            if self.timer is not None and self.timer.when() > moment:
                self.timer.cancel()
                self.timer = None
            if self.timer is None:
                self.timer = loop.call_at(moment, self.deliver)

    def pause_writing(self) -> None:
        self.may_write = False

    def resume_writing(self) -> None:
        self.may_write = True
        if self.other is not None:
            self.other.deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        self.relay.ends.discard(self)
        if self.timer is not None:
            self.timer.cancel()
        if self.other is not None and self.other.transport is not None and not self.other.transport.is_closing():
            if exc is None:
                self.other.transport.close()
            else:
                self.other.reset()

    def reset(self) -> None:
        """End the connection by RST."""
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()


class Relay:
    """The relay's process: one listener, its connections, its two lines."""

    def __init__(self, *, listen: int, to: tuple[str, int], delay_s: float, rate: float) -> None:
        self.listen, self.to, self.delay_s = listen, to, delay_s
        self.lines = Line(delay_s, rate), Line(delay_s, rate)
        self.ends: set[End] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    def dial(self, client: End) -> None:
        """Connect `client` to the other side, once the handshake's last packet would be there."""
        task = asyncio.get_running_loop().create_task(self._dial(client))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _dial(self, client: End) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(3 * self.delay_s)
        sock = self._socket()
        try:
            await loop.sock_connect(sock, self.to)
        except OSError:
            sock.close()
            client.reset()
            return
        if client.transport is None or client.transport.is_closing():  # cut meanwhile
            sock.close()
            return
        end = End(self, self.lines[1], 0.0)
        end.other = client
        client.other = end
        await loop.create_connection(lambda: end, sock=sock)

    def _socket(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        # Loopback's segments of 64 KiB make acknowledgements wait where a buffer holds only two of them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
        if self.lines[0].rate:
            # Otherwise the kernel takes megabytes that the line has not carried. It doubles the number.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.lines[0].queue_bytes)
        return sock

    async def serve(self) -> asyncio.Server:
        sock = self._socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, self.listen))
        loop = asyncio.get_running_loop()

        def accepted() -> End:
            return End(self, self.lines[0], time.monotonic() + 2 * self.delay_s)

        return await loop.create_server(accepted, sock=sock, backlog=4096)

    async def run(self) -> None:
        server = await self.serve()
        loop = asyncio.get_running_loop()
        commands = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        while line := await commands.readline():
            outage_s = float(line.split()[1])
            server.close()
            for end in list(self.ends):
                end.reset()
            await asyncio.sleep(outage_s)
            server = await self.serve()
            print(time.monotonic(), flush=True)


class Path:
    """The handle of a relay's process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port: Final = port
        """Where it listens."""
        self._process = process

    def cut(self, outage_s: float) -> float:
        """Reset all connections, be away for `outage_s`, and return when it was back, by `time.monotonic`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"cut {outage_s}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the relay has ended")
        return float(line)


@contextlib.contextmanager
def relay(to: tuple[str, int], *, round_trip_s: float, mbit: float, listen: int = 0) -> Iterator[Path]:
    """Run a relay to an address."""
    port = listen or free_port()
    command = [sys.executable, "-m", "benchmarks.relay", str(port), f"{to[0]}:{to[1]}"]
    command += [str(round_trip_s * 500), str(mbit)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for_listener(HOST, port)
            yield Path(process, port)
        finally:
            process.kill()


def main(listen: str, to: str, delay_ms: str, mbit: str) -> None:
    """Run the process."""
    host, port = to.rsplit(":", 1)
    rate = float(mbit) * 1e6 / 8
    asyncio.run(Relay(listen=int(listen), to=(host, int(port)), delay_s=float(delay_ms) / 1000, rate=rate).run())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
