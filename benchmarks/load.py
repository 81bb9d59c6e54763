"""What is done to a side, and how it is timed."""

import re
import selectors
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.local import HOST, BenchmarkError, find
from benchmarks.targets import LARGE_BYTES, SMALL_BYTES

TIMEOUT_S: Final = 15.0  # a side that does not respond for so long has failed
GET: Final = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n"
GET_LARGE: Final = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD: Final = b"HEAD /small HTTP/1.1\r\nHost: x\r\n\r\n"
# So many pipelined downloads are 128 GiB, more than any side moves in the seconds of one measurement.
PIPELINED: Final = (128 << 30) // LARGE_BYTES
BLOCK: Final = memoryview(bytes(1 << 20))
RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Requests:
    """What wrk counted."""

    per_s: float
    count: int
    errors: str
    """Empty if there were none."""


def requests(port: int, *, connections: int, seconds: int, close: bool = False) -> Requests:
    """Ask for the small file as often as possible; `close`: on a new connection each time."""
    extra = ["-H", "Connection: close"] if close else []
    command = [find("wrk") or "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *extra]
    command.append(f"http://{HOST}:{port}/small")
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    count = re.search(r"(\d+) requests in", done.stdout)
    if rate is None or count is None or not int(count[1]):
        raise BenchmarkError(f"wrk had no response: {' '.join(done.stdout.split())[-200:]}")
    errors = re.findall(r"Socket errors: .*|Non-2xx.*", done.stdout)
    return Requests(float(rate[1]), int(count[1]), "; ".join(errors))


def connect(port: int) -> socket.socket:
    """Return a connection without Nagle's delay, and with a deadline on everything."""
    sock = socket.create_connection((HOST, port), timeout=TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ask(sock: socket.socket) -> None:
    """Ask for the small file, and read all of it."""
    sock.sendall(GET)
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0 or len(data) < end + 4 + SMALL_BYTES:
        more = sock.recv(65536)
        if not more:
            raise BenchmarkError("a connection ended within a response")
        data += more


def pings(port: int, *, count: int, seconds: float) -> list[float]:
    """Return the times, in ms, of one request at a time on one connection: at most `count`, for about `seconds`."""
    times: list[float] = []
    with connect(port) as sock:
        ask(sock)  # the connection itself is not what is timed
        end = time.perf_counter() + seconds
        while len(times) < count and time.perf_counter() < end:
            began = time.perf_counter()
            ask(sock)
            times.append((time.perf_counter() - began) * 1000)
    return times


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile from 1 to 99."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def first_bytes(port: int, *, count: int) -> list[float]:
    """Return the times, in ms, from a new connection's first step to the first byte of a response."""
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        with connect(port) as sock:
            sock.sendall(GET)
            if not sock.recv(1):
                raise BenchmarkError("a new connection ended without a response")
            times.append((time.perf_counter() - began) * 1000)
    return times


def large(port: int) -> socket.socket:
    """Return a connection with a download that nobody reads."""
    sock = connect(port)
    sock.sendall(GET_LARGE * PIPELINED)
    return sock


def download(port: int, *, streams: int, warm_up_s: float, seconds: float) -> tuple[int, float]:
    """Return how many bytes arrived, and in how many seconds, after the warm-up."""
    buffer = bytearray(1 << 20)
    with selectors.DefaultSelector() as selector:
        socks = [large(port) for _ in range(streams)]
        try:
            for sock in socks:
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ)
            total = 0
            first, last = None, time.perf_counter()
            start = last + warm_up_s
            while first is None or last < first + seconds:
                ready = selector.select(TIMEOUT_S)
                if not ready:
                    raise BenchmarkError(f"a download stood still for {TIMEOUT_S:g} s")
                count = sum(_read(key.fileobj, buffer) for key, _ in ready)
                last = time.perf_counter()
                if first is not None:
                    total += count
                elif last >= start:
                    first = last  # what came up to now does not count, nor does its time
            return total, last - first
        finally:
            for sock in socks:
                hang_up(sock)


def _read(sock: object, buffer: bytearray) -> int:
    assert isinstance(sock, socket.socket)
    try:
        count = sock.recv_into(buffer)
    except BlockingIOError:
        return 0
    if not count:
        raise BenchmarkError("a download ended early")
    return count


def upload(port: int, *, warm_up_s: float, seconds: float) -> tuple[int, float]:
    """Return how many bytes the echo target has taken, and in how many seconds, after the warm-up."""
    with selectors.DefaultSelector() as selector:
        sock = connect(port)
        try:
            sock.sendall(b"S")
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            told: list[tuple[float, int]] = []
            unread = b""
            began = time.perf_counter()
            while not told or told[-1][0] < began + warm_up_s + seconds:
                ready = selector.select(TIMEOUT_S)
                if not ready or time.perf_counter() > began + warm_up_s + seconds + TIMEOUT_S:
                    raise BenchmarkError(f"an upload stood still for {TIMEOUT_S:g} s")
                if ready[0][1] & selectors.EVENT_READ:
                    more = sock.recv(65536)
                    if not more:
                        raise BenchmarkError("an upload ended early")
                    unread += more
                    whole = len(unread) // 8 * 8
                    if whole and (now := time.perf_counter()) >= began + warm_up_s:
                        told.append((now, int.from_bytes(unread[whole - 8 : whole])))
                    unread = unread[whole:]
                if ready[0][1] & selectors.EVENT_WRITE:
                    sock.send(BLOCK)
            return told[-1][1] - told[0][1], told[-1][0] - told[0][0]
        finally:
            hang_up(sock)


def stall(sock: socket.socket, back_at: float) -> float | None:
    """Return the seconds from `back_at` (`time.monotonic`) to a response of the echo, or None if the stream is lost."""
    try:
        sock.sendall(b"x")
        if not sock.recv(1):
            return None
    except (ConnectionError, TimeoutError):
        return None
    return max(0.0, time.monotonic() - back_at)


def stall_of(port: int, start: Callable[[], subprocess.Popen[str]]) -> float:
    """Return the longest time, in s, of one request at a time on one connection while the command of `start` runs.

    Raises:
        BenchmarkError: the command failed, or the connection ended.
    """
    times: list[float] = []
    with connect(port) as sock:
        ask(sock)
        with start() as command:
            while command.poll() is None:
                began = time.perf_counter()
                ask(sock)
                times.append(time.perf_counter() - began)
            errors = command.stderr.read() if command.stderr is not None else ""
        if command.returncode:
            raise BenchmarkError(errors.strip()[:200])
    return max(times)


def idle(port: int, count: int) -> list[socket.socket]:
    """Open streams that reach the target, then stay silent. The caller closes them."""
    socks: list[socket.socket] = []
    try:
        while len(socks) < count:
            batch = [connect(port) for _ in range(min(64, count - len(socks)))]
            socks += batch
            for sock in batch:
                sock.sendall(HEAD)
            for sock in batch:
                if not sock.recv(4096):
                    raise BenchmarkError(f"stream {len(socks)} of {count} ended")
    except BaseException:
        for sock in socks:
            hang_up(sock)
        raise
    return socks


def hang_up(sock: socket.socket) -> None:
    """End a connection by RST, so that no port waits for a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
