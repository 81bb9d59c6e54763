"""What is exposed: nginx with a small and a large file, and our server for echo and uploads."""

import contextlib
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

from benchmarks.local import HOST, find, free_port, wait_for_listener
from benchmarks.processes import Processes

SMALL_BYTES: Final = 1024
LARGE_BYTES: Final = 256 << 20
# Connections of a minute ago (TIME_WAIT) hold ports by pair of addresses: with several ports there are enough.
WEB_PORTS: Final = 8

NGINX: Final = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
worker_rlimit_nofile {descriptors}; events {{ worker_connections {connections}; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000000; keepalive_timeout 1h; client_header_timeout 1h;
send_timeout 1h; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
server {{ {listen} root {folder}/www; }} }}
"""


@dataclass(frozen=True)
class Target:
    """A server to expose, and how to check that it responds at a port."""

    port: int
    responds: Callable[[int], bool]


def _web_responds(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1) as sock:
        sock.sendall(b"HEAD /small HTTP/1.0\r\n\r\n")
        return sock.recv(16).startswith(b"HTTP/")
    return False


def _echo_responds(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1) as sock:
        sock.sendall(b"E!")
        return sock.recv(1) == b"!"
    return False


class Targets:
    """Both servers, running. They end with `processes`."""

    def __init__(self, processes: Processes, folder: Path, descriptors: int) -> None:
        web, echo = [free_port() for _ in range(WEB_PORTS)], free_port()
        (folder / "www").mkdir()
        (folder / "www" / "small").write_bytes(b"x" * SMALL_BYTES)
        with (folder / "www" / "large").open("wb") as file:
            file.truncate(LARGE_BYTES)
        with (folder / "www" / "large").open("rb") as file:
            while file.read(1 << 20):  # or the first download would wait for the disk
                pass
        listen = " ".join(f"listen {HOST}:{port} backlog=4096;" for port in web)
        config = NGINX.format(
            folder=folder, listen=listen, descriptors=descriptors, connections=min(descriptors - 100, 30_000)
        )
        (folder / "nginx.conf").write_text(config)
        processes.start(find("nginx") or "nginx", "-c", str(folder / "nginx.conf"))
        processes.start(sys.executable, "-m", "benchmarks.echo", str(echo))
        for port in (*web, echo):
            wait_for_listener(HOST, port, processes.check)
        self._web = cycle(web)
        self.echo: Final = Target(echo, _echo_responds)

    @property
    def web(self) -> Target:
        """Another port of nginx each time."""
        return Target(next(self._web), _web_responds)
