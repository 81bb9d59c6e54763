"""A target for what nginx cannot do: `python -m benchmarks.echo PORT`.

The first byte of a connection selects a mode: `E` echoes every byte; `S` consumes bytes and reports now and then how
many there were so far, as 8 bytes, big-endian.
"""

import contextlib
import socket
import socketserver
import sys
from typing import Final

from benchmarks.local import HOST

READ_BYTES: Final = 1 << 20


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        sock: socket.socket = self.request
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # the other side may leave at any time
            kind = sock.recv(1)
            if kind == b"E":
                while data := sock.recv(65536):
                    sock.sendall(data)
            elif kind == b"S":
                self._sink(sock)

    def _sink(self, sock: socket.socket) -> None:
        buffer = bytearray(READ_BYTES)
        total = told = 0
        while count := sock.recv_into(buffer):
            total += count
            if total - told >= READ_BYTES:
                told = total
                sock.sendall(total.to_bytes(8))


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024


if __name__ == "__main__":
    with _Server((HOST, int(sys.argv[1])), _Handler) as server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
