"""`python -m benchmarks`: goreprox beside HAProxy (one hop), ssh -R and no tunnel at all, in interleaved rounds.

Read ratios within a round, not figures: everything, load generator included, shares one machine. What is not on
PATH is named and left out. Needs nginx and wrk.
"""

import asyncio
import contextlib
import getpass
import json
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

HOST = "127.0.0.1"
ROUNDS = 5
SECONDS = 2
BULK_BYTES = 1 << 30
PINGS = 2000
START_S = 15.0
ROWS = ["requests/s, 32", "requests/s, 256", "connections/s", "p50 ms", "p99 ms", "bulk MB/s"]

NGINX = """
daemon off; master_process off; pid {tmp}/nginx.pid; error_log {tmp}/nginx.log; events {{ worker_connections 4096; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000000;
client_body_temp_path {tmp}/b; proxy_temp_path {tmp}/p;
fastcgi_temp_path {tmp}/f; uwsgi_temp_path {tmp}/u; scgi_temp_path {tmp}/s;
server {{ listen {host}:{port} backlog=4096; root {tmp}/www; }} }}
"""
HAPROXY = """
global
    maxconn 4096
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen tunnel
    bind {host}:{port}
    server target {host}:{target}
"""
SSHD = """
Port {port}
ListenAddress {host}
HostKey {tmp}/host
AuthorizedKeysFile {tmp}/user.pub
StrictModes no
UsePAM no
PidFile none
"""


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until somebody answers on `port` with an HTTP response."""
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1) as sock:
            sock.sendall(b"HEAD /1k HTTP/1.0\r\n\r\n")
            if sock.recv(16).startswith(b"HTTP/"):
                return
        time.sleep(0.05)  # nothing to be told by: another program is starting
    sys.exit(f"nothing answers on port {port} within {START_S:g} s")


@contextlib.contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for as long as the context lasts."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.terminate()


Start = Callable[[contextlib.ExitStack, Path, int, int], None]


def start_goreprox(stack: contextlib.ExitStack, tmp: Path, port: int, target: int) -> None:
    """Server and provider."""
    providers = free_port()
    common = ["--insecure", "--runtime-dir", str(tmp / "run")]
    me = [sys.executable, "-m", "goreprox"]
    where = f"{HOST}:{providers}"
    stack.enter_context(process(*me, "server", "--listen", f"{HOST}:{port}", "--providers", where, *common))
    stack.enter_context(process(*me, "provider", f"{HOST}:{target}", "--server", where, *common))


def start_haproxy(stack: contextlib.ExitStack, tmp: Path, port: int, target: int) -> None:
    """One hop in C."""
    config = tmp / "haproxy.cfg"
    config.write_text(HAPROXY.format(host=HOST, port=port, target=target))
    stack.enter_context(process("haproxy", "-f", str(config)))


def start_ssh(stack: contextlib.ExitStack, tmp: Path, port: int, target: int) -> None:
    """A tunnel by OpenSSH, with a server of its own."""
    sshd_port = free_port()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp / name)], check=True)
    (tmp / "sshd_config").write_text(SSHD.format(host=HOST, port=sshd_port, tmp=tmp))
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or "sshd"
    stack.enter_context(process(sshd, "-D", "-f", str(tmp / "sshd_config")))
    options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={tmp}/known", "ExitOnForwardFailure=yes"]
    options += ["ConnectionAttempts=10", "LogLevel=ERROR"]
    flags = [flag for option in options for flag in ("-o", option)]
    forward = f"{HOST}:{port}:{HOST}:{target}"
    who = f"{getpass.getuser()}@{HOST}"
    stack.enter_context(process("ssh", *flags, "-i", str(tmp / "user"), "-p", str(sshd_port), "-N", "-R", forward, who))


SIDES: dict[str, tuple[str, Start | None]] = {
    "direct": ("nginx", None),
    "haproxy": ("haproxy", start_haproxy),
    "ssh -R": ("ssh", start_ssh),
    "goreprox": (sys.executable, start_goreprox),
}


def wrk(port: int, connections: int, *extra: str) -> float:
    """Return requests a second."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", *extra, f"http://{HOST}:{port}/1k"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    return float(found[1]) if found else 0.0


def pings(port: int) -> tuple[float, float]:
    """Return median and 99th percentile, in ms, of one request at a time on one connection."""
    times: list[float] = []
    with socket.create_connection((HOST, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            began = time.perf_counter()
            sock.sendall(b"GET /1k HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + 1024:
                data += sock.recv(65536)
            times.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


async def bulk(port: int) -> float:
    """Return MB/s of one download of 1 GiB."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (HOST, port))
        await loop.sock_sendall(sock, b"GET /1g HTTP/1.0\r\n\r\n")
        buffer = bytearray(1 << 20)
        began, total = time.perf_counter(), 0
        while count := await loop.sock_recv_into(sock, buffer):
            total += count
        if total < BULK_BYTES:
            sys.exit(f"a download on port {port} ended after {total} bytes")
        return total / 1e6 / (time.perf_counter() - began)


def measure(port: int) -> dict[str, float]:
    """Return one round's figures of one side."""
    p50, p99 = pings(port)
    figures = [
        wrk(port, 32),
        wrk(port, 256),
        wrk(port, 64, "-H", "Connection: close"),
        p50,
        p99,
        asyncio.run(bulk(port)),
    ]
    return dict(zip(ROWS, figures, strict=True))


def main() -> None:
    """Measure and print."""
    console = Console()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing: install it by your system's package manager")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with contextlib.ExitStack() as stack:
        tmp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="goreprox-bench-")))
        (tmp / "www").mkdir()
        tmp.chmod(0o755)
        (tmp / "www" / "1k").write_bytes(b"x" * 1024)
        with (tmp / "www" / "1g").open("wb") as file:
            file.truncate(BULK_BYTES)
        target = free_port()
        (tmp / "nginx.conf").write_text(NGINX.format(tmp=tmp, host=HOST, port=target))
        stack.enter_context(process("nginx", "-c", str(tmp / "nginx.conf")))
        ports = {}
        for name, (program, start) in SIDES.items():
            if shutil.which(program) is None:
                console.print(f"left out: {name} ({program} is not on PATH)")
                continue
            ports[name] = target if start is None else free_port()
            if start is not None:
                start(stack, tmp, ports[name], target)
            wait_for(ports[name])
        results: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
        for number in range(rounds):
            for name, port in ports.items():
                console.print(f"round {number + 1} of {rounds}: {name}", style="dim")
                results[name].append(measure(port))
    report(console, results)


def report(console: Console, results: dict[str, list[dict[str, float]]]) -> None:
    """Print medians of all rounds as a table, and everything as JSON."""
    table = Table("row", *results)
    for row in ROWS:
        table.add_row(row, *(f"{statistics.median(r[row] for r in rounds):,.2f}" for rounds in results.values()))
    console.print(table)
    machine = {"python": platform.python_version(), "system": platform.platform()}
    print(json.dumps({"machine": machine, "results": results}))


main()
