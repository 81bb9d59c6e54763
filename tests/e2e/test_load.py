"""Many streams at once, with the memory that they may take; `LOAD=full` runs the numbers that the documents give."""

import asyncio
import contextlib
import hashlib
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.processes import FULL_LOAD, MIB_KIB, WAIT_S, Process, Tunnel, descriptors, nothing_yet
from tests.support.sockets import HOST
from tests.support.traffic import block
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

IDLE, BUSY = (10_000, 1_000) if FULL_LOAD else (1_500, 150)
IDLE_KIB = 24
"""An idle stream costs less than this, in each process: its objects, a socket, a poll entry."""
FROZEN_BLOCKS = 64 if FULL_LOAD else 32
"""Of each of 20 streams: 40 MiB in all are more than the processes have for streams."""
GRACE_S = 900
"""More than the whole test takes."""
AT_ONCE = 100
BLOCK = block(7)
TARGET = """
import asyncio, contextlib, resource
from tests.support.sockets import HOST
from tests.support.traffic import echo
async def serve(reader, writer):
    with contextlib.suppress(OSError):
        await echo(reader, writer)
async def main():
    server = await asyncio.start_server(serve, HOST, 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """Let this process hold clients by the thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + BUSY + 200:
        pytest.skip(f"{IDLE + BUSY} streams need as many descriptors in a process; `ulimit -Hn` says {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def echoing(tmp: Path, *options: str, providers: int = 1) -> AsyncIterator[tuple[Tunnel, list[Process]]]:
    """A tunnel to an echo in a process of its own: one process has not enough descriptors for both sides."""
    target = await asyncio.create_subprocess_exec(sys.executable, "-c", TARGET, stdout=asyncio.subprocess.PIPE)
    try:
        assert target.stdout is not None
        port = int(await asyncio.wait_for(target.stdout.readline(), DEADLINE_S))
        async with nothing_yet(tmp) as made:
            await made.serve(*options)
            made.target_port = port
            yield made, [await made.provide(*options, "--name", f"p{index}") for index in range(providers)]
    finally:
        target.kill()
        await target.communicate()


async def client(made: Tunnel) -> socket.socket:
    """Connect, and have one echo: so the stream is open at both ends. It is closed with the tunnel at the latest."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    made._stack.callback(sock.close)
    sock.setblocking(False)
    await loop.sock_connect(sock, (HOST, made.port))
    await echoed(sock)
    return sock


async def echoed(sock: socket.socket) -> None:
    """Expect an echo."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"x")
    assert await asyncio.wait_for(loop.sock_recv(sock, 1), WAIT_S) == b"x"


async def clients(made: Tunnel, count: int) -> list[socket.socket]:
    found: list[socket.socket] = []
    for start in range(0, count, AT_ONCE):
        found += await asyncio.gather(*(client(made) for _ in range(min(AT_ONCE, count - start))))
    return found


async def all_echoed(socks: list[socket.socket]) -> None:
    for start in range(0, len(socks), AT_ONCE):
        await asyncio.gather(*(echoed(sock) for sock in socks[start : start + AT_ONCE]))


async def there_and_back(sock: socket.socket, blocks: int) -> None:
    """Send blocks of 64 KiB through the echo and compare what comes back."""
    loop = asyncio.get_running_loop()
    sent, got = hashlib.sha256(), hashlib.sha256()

    async def send() -> None:
        for _ in range(blocks):
            sent.update(BLOCK)
            await loop.sock_sendall(sock, BLOCK)

    sending = asyncio.create_task(send(), name="send")
    left = blocks * len(BLOCK)
    while left:
        data = await asyncio.wait_for(loop.sock_recv(sock, min(left, 1 << 16)), WAIT_S)
        assert data
        got.update(data)
        left -= len(data)
    await sending
    assert got.digest() == sent.digest()


async def test_idle_streams_use_little_memory_and_do_not_slow_busy_ones(tmp_path: Path) -> None:
    options = ("--max-connections", "12000")
    async with echoing(tmp_path, *options) as (made, providers):
        processes = [made.server, *providers]
        socks = await clients(made, AT_ONCE)  # what only the first ones cost
        before = {process: process.rss_kib for process in processes}
        socks += await clients(made, IDLE - AT_ONCE)
        for process in processes:
            each = (process.rss_kib - before[process]) / (IDLE - AT_ONCE)
            print(f"an idle stream takes {each:.1f} KiB")
            assert each < IDLE_KIB
        idle = {process: len(descriptors(process)) for process in processes}
        busy = await clients(made, BUSY)
        began = time.monotonic()
        await asyncio.gather(*(there_and_back(sock, 4) for sock in busy))
        took_s = time.monotonic() - began
        print(f"{BUSY} busy streams moved {BUSY / 2:.0f} MiB in {took_s:.1f} s")  # 256 KiB there, and back
        made.relay.cut()
        await all_echoed(socks)
        for sock in busy:
            sock.close()
        await eventually(
            lambda: all(len(descriptors(p)) <= idle[p] + 8 for p in processes), "they are gone", deadline_s=WAIT_S
        )
        for process in processes:
            print(f"at most {process.peak_rss_kib // MIB_KIB} MiB resident")
            assert process.peak_rss_kib < before[process] + IDLE * IDLE_KIB + 256 * MIB_KIB


async def test_a_frozen_provider_stalls_only_its_own_streams_and_memory_stays_bounded(tmp_path: Path) -> None:
    options = ("--memory", "32", "--max-connections", "1000", "--grace", str(GRACE_S))
    async with echoing(tmp_path, *options, providers=2) as (made, providers):
        frozen = providers[0]
        socks = await clients(made, 40)
        frozen.signal(signal.SIGSTOP)
        transfers = [asyncio.create_task(there_and_back(sock, FROZEN_BLOCKS), name="transfer") for sock in socks]
        half = len(socks) // 2
        await eventually(lambda: sum(task.done() for task in transfers) >= half, "half are done", deadline_s=WAIT_S)
        assert sum(task.done() for task in transfers) == half, "the frozen half did more than it can"
        print(f"{made.server.rss_kib // MIB_KIB} MiB resident while it is frozen")
        assert made.server.rss_kib < (32 + 80) * MIB_KIB
        frozen.signal(signal.SIGCONT)
        await asyncio.wait_for(asyncio.gather(*transfers), WAIT_S)


async def test_every_stream_keeps_its_reservation_when_the_memory_budget_is_used_up(tmp_path: Path) -> None:
    """Streams that are not read hold their part of the shared pool; the others still get everything through."""
    stopped, going = 20, 100
    options = ("--memory", "8", "--max-connections", "500")
    async with echoing(tmp_path, *options) as (made, providers):
        loop = asyncio.get_running_loop()
        hogs = await clients(made, stopped)

        async def fill(sock: socket.socket) -> None:
            """Write until nothing moves: the echo fills both directions."""
            with contextlib.suppress(TimeoutError):
                while True:
                    await asyncio.wait_for(loop.sock_sendall(sock, BLOCK), 2.0)

        for sock in hogs:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, 1 << 14)
        await asyncio.gather(*(fill(sock) for sock in hogs))
        others = await clients(made, going)
        await asyncio.gather(*(there_and_back(sock, 4) for sock in others))
        for process in (made.server, *providers):
            assert process.process.returncode is None
            print(f"at most {process.peak_rss_kib // MIB_KIB} MiB resident")
            assert process.peak_rss_kib < (8 + 80) * MIB_KIB
