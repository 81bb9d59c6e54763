"""Traffic over a path, on a host of its own: what serves it, and what asks for it and prints what it saw.

python -m benchmarks.flows serve ADDRESS PORT            the first byte of a connection says what it is for: `D` a
                                                         download without end, `P` a response to each byte
python -m benchmarks.flows download ADDRESS PORT SECONDS bytes in each tenth of a second
python -m benchmarks.flows ping ADDRESS PORT SECONDS     seconds that each request took, one at a time

Results are one JSON list on standard output. `go` on standard output says that the first byte has arrived.
"""

import contextlib
import json
import socket
import socketserver
import sys
import time
from typing import Final

STEP_S: Final = 0.1
RESPONSE: Final = bytes(1000)
BLOCK: Final = bytes(64 << 10)
DEADLINE_S: Final = 60.0


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        sock: socket.socket = self.request
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # the other side may go at any time
            kind = sock.recv(1)
            while kind == b"D":
                sock.sendall(BLOCK)
            while kind == b"P" and sock.recv(1):
                sock.sendall(RESPONSE)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


def serve(address: str, port: int) -> None:
    """Serve both kinds."""
    with _Server((address, port), _Handler) as server:
        print("go", flush=True)
        server.serve_forever()


def _connect(address: str, port: int) -> socket.socket:
    sock = socket.create_connection((address, port), timeout=DEADLINE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def download(address: str, port: int, seconds: float) -> list[int]:
    """Read for `seconds` after the first byte; return the bytes of each step."""
    steps = [0] * round(seconds / STEP_S)
    with _connect(address, port) as sock:
        sock.sendall(b"D")
        steps[0] = len(sock.recv(1 << 20))
        began = time.monotonic()
        print("go", flush=True)
        while True:
            count = len(sock.recv(1 << 20))
            step = int((time.monotonic() - began) / STEP_S)
            if step >= len(steps) or not count:
                return steps
            steps[step] += count


def ping(address: str, port: int, seconds: float) -> list[float]:
    """Ask one thing at a time; return how long each took."""
    times: list[float] = []
    with _connect(address, port) as sock:
        sock.sendall(b"P")
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            sock.sendall(b"?")
            left = len(RESPONSE)
            while left:
                left -= len(sock.recv(left))
            if not times:
                print("go", flush=True)
            times.append(time.monotonic() - began)
            time.sleep(STEP_S / 2)  # the pace of requests, not a wait
    return times


def main(kind: str, address: str, port: str, seconds: str = "0") -> None:
    """Run one of the kinds."""
    if kind == "serve":
        serve(address, int(port))
    else:
        work = {"download": download, "ping": ping}[kind]
        print(json.dumps(work(address, int(port), float(seconds))), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
