"""Standard streams that nobody reads, that take nothing, or that are closed: all goes on, and ends in time."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from goreprox.process.log import MAX_QUOTED
from goreprox.process.log_writer import MAX_QUEUED_BYTES
from tests.e2e.roles import start_broker, start_edge, start_provider
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.sockets import HOST, closed_port
from tests.support.tls import Authority
from tests.support.waiting import DEADLINE_S, eventually

HOST_NAME = "a" * MAX_QUOTED
PATH = "/".ljust(MAX_QUOTED, "x")
LINE_BYTES = 600
"""At least, of the access log for a request of that path and host."""
IN_PIPES_BYTES = 1 << 18
"""At most, of a log that nobody reads: in the kernel, and read ahead by asyncio."""
BATCH = 50
FEW = 10 * BATCH
MANY = ((MAX_QUEUED_BYTES + IN_PIPES_BYTES) // LINE_BYTES // BATCH + 1) * BATCH + FEW
"""Whose lines are more than the queue and the pipes hold."""
SPARE_KIB = 24 << 10
"""What a process may grow by whatever it logs."""


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def request_often(made: Tunnel, port: int, requests: int) -> None:
    """Send requests, one batch when the one before has its responses."""
    reader, writer = await made.connect(port)
    for _ in range(requests // BATCH):
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: {HOST_NAME}\r\n\r\n".encode() * BATCH)
        for _ in range(BATCH):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
            assert head.startswith(b"HTTP/1.1 200 ")
    writer.close()


@contextlib.asynccontextmanager
async def serving(tmp: Path, role: str) -> AsyncIterator[tuple[Tunnel, Process, int]]:
    """A server, or an edge with workers, in front of a polite target."""
    with closed_port() as port:
        async with nothing_yet(tmp) as made:
            target = await made.target(polite)
            listen = f"http://{HOST}:{port}"
            if role == "server":
                process = await made.start("server", "--reuse-port", "--listen", listen, "--providers", f"{HOST}:0")
                await start_provider(made, process, target=target)
            else:
                broker = await start_broker(made)
                await start_provider(made, broker, target=target)
                process = await start_edge(made, broker, listen=listen, args=("--workers", "2"))
            yield made, process, port


async def unread(made: Tunnel, process: Process, port: int) -> None:
    """Have more logged than fits into the queue and the pipes, and nobody read it."""
    before = process.rss_kib
    await process.stop_reading()
    await request_often(made, port, MANY)
    assert process.rss_kib - before < SPARE_KIB


async def ends(process: Process) -> None:
    process.signal(signal.SIGTERM)
    await eventually(lambda: process.process.returncode is not None, "its end")
    assert process.process.returncode == 0


@pytest.mark.long
async def test_an_unread_log_of_workers_stalls_no_traffic_takes_little_memory_and_delays_no_shutdown(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, "workers") as (made, process, port):
        await request_often(made, port, FEW)
        await unread(made, process, port)
        await ends(process)


@pytest.mark.long
async def test_an_unread_log_of_a_server_does_neither_and_says_what_is_missing_once_it_is_read_again(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, "server") as (made, process, port):
        await request_often(made, port, FEW)
        await unread(made, process, port)
        process.go_on_reading()
        await eventually(lambda: any(entry.get("event") == "log_lost" for entry in process.log), "the count")
        await request_often(made, port, FEW)

        def told() -> int:
            lost = [entry["lines"] for entry in process.log if entry.get("event") == "log_lost"]
            assert all(isinstance(lines, int) for lines in lost)
            return sum(map(int, map(str, lost))) + sum(entry.get("event") == "access" for entry in process.log)

        await eventually(lambda: told() >= FEW + MANY + FEW, "as many as there were requests")
        await process.stop_reading()
        await request_often(made, port, FEW)
        await ends(process)


# -- streams that take nothing


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The end of a pipe into which nothing more goes, and from which nobody reads."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        for size in (1 << 16, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * size)
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def command(*args: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "goreprox", *args]


def test_a_fatal_error_ends_the_process_though_nobody_reads_stderr(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken, full_pipe() as stderr:
        where = f"{HOST}:{taken.getsockname()[1]}"
        args = command("server", "--insecure", "--listen", where, "--providers", f"{HOST}:0")
        ended = subprocess.run(args, cwd=tmp_path, stderr=stderr, timeout=DEADLINE_S, check=False)
        assert ended.returncode == 1


SERVER = ("server", "--insecure", "--listen", f"{HOST}:0", "--providers", f"{HOST}:0", "--runtime-dir", "run")
STATUS = ("status", "--runtime-dir", "run")


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_server_works_whatever_its_standard_streams_are(tmp_path: Path, closing: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(DEADLINE_S)
        with subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *command(*SERVER)],
            cwd=tmp_path,
            env=os.environ | {"NOTIFY_SOCKET": "notify"},
        ) as server:
            try:
                assert supervisor.recv(64).startswith(b"READY=1\n")
                server.terminate()
                assert server.wait(DEADLINE_S) == 0
            finally:
                server.kill()


@pytest.mark.parametrize(
    ("closing", "args", "code"),
    [
        *((closing, STATUS, 1) for closing in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-")),
        *(("<&- >&- 2>&-", args, code) for args, code in ((("--help",), 0), (("--version",), 0), (("-x",), 2))),
    ],
)
def test_commands_exit_as_usual_when_standard_streams_are_closed(
    tmp_path: Path, closing: str, args: tuple[str, ...], code: int
) -> None:
    shell = ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *command(*args)]
    ended = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("args", [("-x",), STATUS])
def test_an_error_that_cannot_be_written_keeps_its_exit_code(tmp_path: Path, args: tuple[str, ...]) -> None:
    shell = ["/bin/sh", "-c", 'exec "$@" 2>/dev/full', "sh", *command(*args)]
    ended = subprocess.run(shell, cwd=tmp_path, timeout=DEADLINE_S, check=False)
    assert ended.returncode == (2 if args == ("-x",) else 1)


@pytest.mark.parametrize(
    "module",
    ["goreprox.cli.main", "cyclopts", "goreprox.config.roles", "goreprox.roles.server", "zmq", "goreprox.keys.guard"],
)
def test_ctrl_c_while_modules_load_is_exit_code_130_and_no_traceback(tmp_path: Path, module: str) -> None:
    code = f"""
import os, runpy, signal, sys
class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a shell in the background has made of it
sys.meta_path.insert(0, Interrupts())
runpy.run_module("goreprox", run_name="__main__")
"""
    args = [sys.executable, "-c", code, *SERVER]
    ended = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


# -- strangers

ATTEMPTS = 300
MINUTE_BYTES = 160 * 1024
"""What docs/security.md says that strangers can have a server log in a minute, however many they are."""


async def refused_requests(port: int) -> None:
    """Ask for paths that need quoting, without a token, each another one."""
    for start in range(0, ATTEMPTS, BATCH):
        reader, writer = await asyncio.open_connection(HOST, port)
        for number in range(start, start + BATCH):
            writer.write(b"GET /%d%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (number, b'"' * 4000, b"a" * 200))
        for _ in range(BATCH):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
            await reader.readexactly(length)
        writer.close()


async def garbage(port: int) -> None:
    """Say what is neither TLS nor ZMTP nor the PROXY protocol, until the server hangs up."""

    async def once() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        with contextlib.suppress(OSError):
            writer.write(b"\x00\xff nonsense \x1b[2J" * 8)
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.transport.abort()

    for _ in range(ATTEMPTS // BATCH):
        await asyncio.gather(*(once() for _ in range(BATCH)))


async def test_strangers_cannot_fill_the_disk_through_the_log(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        (tmp_path / "tokens").write_text("")
        ports = {}
        with contextlib.ExitStack() as stack:
            for kind in ("http", "tls", "proxied"):
                ports[kind] = stack.enter_context(closed_port())
            args = (
                *("--reuse-port", "--auth-tokens", "tokens", "--providers", f"{HOST}:0"),
                *("--listen", f"http://{HOST}:{ports['http']}"),
                *("--listen", f"https://{HOST}:{ports['tls']}", *Authority(tmp_path).options),
                *("--listen", f"http://{HOST}:{ports['proxied']}"),
                *("--proxy-protocol-from", f"{ports['proxied']}=127.0.0.0/8"),
            )
            server = await made.start("server", *args)
            logged, began = len(server.log), time.monotonic()
            await refused_requests(ports["http"])
            for kind in ("tls", "proxied"):
                await garbage(ports[kind])
            await garbage(await server.port("providers"))
            server.signal(signal.SIGTERM)
            await server.wait()
            minutes = 1 + (time.monotonic() - began) // 60
            lines = [entry for entry in server.log[logged:] if entry["level"] not in ("debug", "trace")]
            size = sum(len(json.dumps(entry, ensure_ascii=False).encode()) for entry in lines)
            events = {entry.get("event") for entry in lines}
            assert {"access", "token_refused", "tls_failed", "no_proxy_header"} <= events
            assert size < MINUTE_BYTES * minutes
            print(f"{4 * ATTEMPTS} attempts, {len(lines)} lines, {size} bytes")
