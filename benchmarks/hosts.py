"""Two hosts joined by a link of a given rate, delay, queue and loss, with the kernel's TCP on both sides (Linux, root).

Each host is a network namespace with one end of the link, a TUN device whose packets this module carries: a queue that
drops what it has no room for (first in, first out), a rate at which packets leave it, a delay until they arrive, and
loss at random from a seed. (`tc netem` does the same where the kernel has it.)

`python -m benchmarks.hosts FIRST SECOND` runs the link. On standard input it takes one JSON object a line: what `Shape`
has, for both directions or, with `"direction": 0` or `1`, for one. It ends with its standard input.
"""

import contextlib
import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.local import BenchmarkError, find

TUNSETIFF: Final = 0x400454CA
IFF_TUN_NO_PI: Final = 0x1001
MTU: Final = 1500
ADDRESSES: Final = ("10.77.0.1", "10.77.0.2")
"""Of the hosts, in namespaces that nobody else sees."""
PORTS_KEPT: Final = "10000 60000"
BATCH: Final = 64
"""Packets read at once, before those that are due leave."""


@dataclass(frozen=True)
class Shape:
    """What a direction of the link does to packets."""

    mbit: float = 100.0
    delay_ms: float = 0.5
    queue_bytes: int = 256 << 10
    loss: float = 0.0
    """How probable it is that a packet is lost, 0 to 1."""


class Direction:
    """One direction: packets in, the same packets out, later."""

    def __init__(self, shape: Shape, source: int, sink: int, seed: int) -> None:
        self.shape = shape
        self.source, self.sink = source, sink
        self._random = random.Random(seed)
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._free_at = 0.0
        """When the packet that is leaving has left."""
        self._under_way: list[tuple[float, int, bytes]] = []
        self._count = 0

    def read(self, now: float) -> None:
        """Take what the host sends."""
        for _ in range(BATCH):
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                break
            if self._queued + len(packet) > self.shape.queue_bytes:
                continue
            if not self._queue and self._free_at < now:
                self._free_at = now
            self._queue.append(packet)
            self._queued += len(packet)

    def run(self, now: float) -> float:
        """Let leave and arrive what is due; return when to come again."""
        shape = self.shape
        while self._queue and self._free_at <= now:
            packet = self._queue.popleft()
            self._queued -= len(packet)
            self._free_at += len(packet) * 8 / (shape.mbit * 1e6)
            if not shape.loss or self._random.random() >= shape.loss:
                self._count += 1
                heapq.heappush(self._under_way, (self._free_at + shape.delay_ms / 1000, self._count, packet))
        under_way = self._under_way
        while under_way and under_way[0][0] <= now:
            with contextlib.suppress(OSError):  # the host's end is down
                os.write(self.sink, heapq.heappop(under_way)[2])
        due = under_way[0][0] if under_way else float("inf")
        return min(due, self._free_at) if self._queue else due


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN_NO_PI))
    return descriptor


def _ip(*words: str) -> None:
    subprocess.run([find("ip") or "ip", *words], check=True, stdout=subprocess.DEVNULL)


def main(first: str, second: str) -> None:
    """Run the link between two namespaces that are there."""
    devices: list[int] = []
    for number, (host, address) in enumerate(zip((first, second), ADDRESSES, strict=True)):
        name = f"gpx{os.getpid()}{'ab'[number]}"
        devices.append(_tun(name))
        _ip("link", "set", name, "netns", host)
        _ip("-n", host, "link", "set", name, "mtu", str(MTU), "txqueuelen", "100", "up")
        _ip("-n", host, "address", "add", address, "peer", ADDRESSES[1 - number], "dev", name)
    directions = [Direction(Shape(), devices[i], devices[1 - i], seed=i) for i in range(2)]
    selector = selectors.DefaultSelector()
    for direction in directions:
        selector.register(direction.source, selectors.EVENT_READ, direction)
    os.set_blocking(0, False)
    selector.register(0, selectors.EVENT_READ, None)
    print("ready", flush=True)
    due = float("inf")
    while True:
        now = time.monotonic()
        for key, _ in selector.select(min(max(due - now, 0), 1.0)):
            if key.data is not None:
                key.data.read(time.monotonic())
                continue
            lines = os.read(0, 65536)
            if not lines:
                return
            for line in lines.splitlines():
                order = json.loads(line)
                chosen = order.pop("direction", None)
                for direction in directions if chosen is None else [directions[chosen]]:
                    direction.shape = replace(direction.shape, **order)
            print("done", flush=True)
        now = time.monotonic()
        due = min(direction.run(now) for direction in directions)


class Link:
    """The handle of a link between two hosts."""

    def __init__(self, hosts: tuple[str, str], process: subprocess.Popen[str]) -> None:
        self.hosts: Final = hosts
        self._process = process

    def shape(self, shape: Shape, direction: int | None = None) -> None:
        """Change both directions, or the one from host number `direction`."""
        order = asdict(shape) if direction is None else {**asdict(shape), "direction": direction}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise BenchmarkError("the link has ended")

    def command(self, host: int, *words: str) -> list[str]:
        """Return what runs a program on one of the hosts."""
        return [find("nsenter") or "nsenter", f"--net=/run/netns/{self.hosts[host]}", *words]


@contextlib.contextmanager
def joined(shape: Shape, *, congestion: str = "cubic") -> Iterator[Link]:
    """Make two hosts and the link between them.

    Raises:
        BenchmarkError: this machine or user cannot.
    """
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        raise BenchmarkError("it needs root and /dev/net/tun")
    hosts = f"gpx{os.getpid()}a", f"gpx{os.getpid()}b"
    with contextlib.ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host)
            stack.callback(_ip, "netns", "del", host)
            _ip("-n", host, "link", "set", "lo", "up")
            for name, value in (("tcp_congestion_control", congestion), ("ip_local_port_range", PORTS_KEPT)):
                line = f"echo '{value}' >/proc/sys/net/ipv4/{name}"
                subprocess.run([find("nsenter") or "nsenter", f"--net=/run/netns/{host}", "sh", "-c", line], check=True)
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.hosts", *hosts],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BenchmarkError("the link did not start")
        link = Link(hosts, process)
        link.shape(shape)
        yield link


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
