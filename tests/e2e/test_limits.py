"""What a server and a provider may use, under the heaviest of loads: memory, sockets, descriptors."""

import asyncio
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import FULL_LOAD, MIB_KIB, WAIT_S, Process, Tunnel, descriptors, tunnel
from tests.support.sockets import HOST
from tests.support.traffic import block, read_digest, send_blocks
from tests.support.waiting import Level, eventually

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

SHORT = 100_000 if FULL_LOAD else 5_000
AT_ONCE = 100
MSS = 1440
QUEUE_BYTES = 1 << 16
"""Stalled clients speak as if over Ethernet, and they and their targets have small queues in the kernel: with what
it gives them on loopback, over 1 MiB each, the four sockets of each connection, here all on one machine, use up
what the kernel has for TCP (tcp_mem), and everyone is slow, whatever we do."""


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """Let this process hold clients and targets by the thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def in_close_wait(process: Process) -> int:
    """Count the sockets of `process` whose other end is closed and they are not."""
    own = set(descriptors(process))
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process.process.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            count += fields[3] == "08" and f"socket:[{fields[9]}]" in own
    return count


class _Null:
    def write(self, _: bytes) -> None:
        """Take and forget."""

    async def drain(self) -> None:
        """Be ready."""


async def stall(sock: socket.socket, port: int, read: int) -> None:
    """Ask for a download without end, read `read` bytes of it, and never read again."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MSS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)
    await loop.sock_connect(sock, (HOST, port))
    await loop.sock_sendall(sock, (0).to_bytes(4, "big"))
    while read > 0:
        data = await loop.sock_recv(sock, min(read, 1 << 18))
        assert data
        read -= len(data)


@pytest.mark.parametrize(
    ("stalled", "read", "memory_mib", "options", "blocks"),
    [
        pytest.param(1000, 1 << 16, 64, ("--memory", "64", "--max-connections", "2000"), 512, id="1000 after a start"),
        pytest.param(100, 5 << 20, 256, (), 128, id="100 with grown windows"),  # and with all options left alone
    ],
)
async def test_clients_that_stop_reading_neither_exhaust_memory_nor_stall_others(
    *, tmp_path: Path, stalled: int, read: int, memory_mib: int, options: tuple[str, ...], blocks: int
) -> None:
    sent = 0

    async def download(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if count := int.from_bytes(await reader.readexactly(4), "big"):
            await send_blocks(writer, count)
            writer.close()
            return
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        endless = block(0)
        while True:
            writer.write(endless)
            await writer.drain()
            sent += len(endless)

    clients = [socket.socket() for _ in range(stalled)]
    try:
        async with tunnel(tmp_path, download, server=options, provider=options) as made:
            for start in range(0, stalled, AT_ONCE):
                some = clients[start : start + AT_ONCE]
                await asyncio.gather(*(stall(sock, made.port, read) for sock in some))
            level = Level()
            await eventually(lambda: level.holds(sent), "all buffers are full", deadline_s=WAIT_S)

            digest = await send_blocks(_Null(), blocks)  # type: ignore[arg-type]
            reader, writer = await made.connect()
            writer.write(blocks.to_bytes(4, "big"))
            assert await read_digest(reader) == (blocks << 16, digest)
            writer.close()
            for process in (made.server, made.provider):
                print(f"at most {process.peak_rss_kib // MIB_KIB} MiB resident")
                assert process.peak_rss_kib < (memory_mib + 64) * MIB_KIB
    finally:
        for sock in clients:
            sock.close()


async def short(port: int, *, kind: bytes) -> None:
    """Be a client that asks once; `t`: the target closes first, `c`: the client does."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(kind + b" is a small request")
    if kind == b"t":
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b"a small response"
    else:
        assert await asyncio.wait_for(reader.readexactly(16), WAIT_S) == b"a small response"
    writer.close()
    await writer.wait_closed()


async def many_short(port: int, count: int) -> None:
    async def one_after_another() -> None:
        for index in range(count // AT_ONCE):
            await short(port, kind=b"tc"[index % 2 :][:1])

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_another(), name="short connections")


async def settled(made: Tunnel, *, idle: dict[Process, int]) -> dict[Process, int]:
    """Wait until nothing is left of any connection; return the resident KiB of each process."""
    await eventually(lambda: not any(map(in_close_wait, idle)), "no socket in CLOSE_WAIT", deadline_s=WAIT_S)
    await eventually(
        lambda: all(len(descriptors(process)) <= idle[process] for process in idle),
        "few descriptors",
        deadline_s=WAIT_S,
    )
    return {process: process.rss_kib for process in idle}


async def test_many_short_connections_leak_neither_memory_nor_descriptors(tmp_path: Path) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(20)
        writer.write(b"a small response")
        if request[:1] == b"c":
            assert await reader.read() == b""
        writer.close()

    async with tunnel(tmp_path, respond) as made:
        processes = (made.server, made.provider)
        idle = {process: len(descriptors(process)) for process in processes}
        await many_short(made.port, SHORT // 4)
        early = await settled(made, idle=idle)
        await many_short(made.port, SHORT - SHORT // 4)
        late = await settled(made, idle=idle)
        for process in processes:
            print(f"{SHORT} connections: {early[process]} KiB resident after a quarter, {late[process]} at the end")
            assert late[process] - early[process] <= 8 * MIB_KIB, (early, late)
