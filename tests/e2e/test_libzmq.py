"""libzmq aborts the whole process where an assertion of it fails: what peers and networks do must reach none.

What is tried here either was an abort, or is what libzmq has assertions about; see `docs/reliability.md`.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path

import pytest

from tests.e2e.hostile import GREETING, OPENINGS, Cutter, libzmq_ids, perform, ready, scripts
from tests.e2e.secured import Secured
from tests.support.processes import Process, Tunnel
from tests.support.sockets import HOST
from tests.support.traffic import echo, read_digest, send_blocks
from tests.support.waiting import eventually

LINKS = 40
"""That are cut at a time: each pauses for a quarter of a second between two attempts."""
HANDSHAKE_BYTES = {"with keys": (700, 350), "without keys": (200, 150)}
"""To the server and from it: a little more than all of the handshake."""
AT_ONCE = 16
MANY_PARTS_S = [step * 0.01 for step in range(24)]
"""From the last byte of a message of many parts to the reset: some of these fall into the time in which it is read."""


@contextlib.asynccontextmanager
async def serving(tmp: Path, keys: str = "without keys") -> AsyncIterator[tuple[Tunnel, int, tuple[str, ...]]]:
    """A server, its port for providers, and what lets a provider in; it has a target that echoes."""
    made = Secured(tmp) if keys == "with keys" else Tunnel(tmp)
    async with made._stack:
        await made.target(echo)
        server = await made.serve()
        joined = ("--join-file", str(made.join_file("default"))) if isinstance(made, Secured) else ()
        yield made, await server.port("providers"), joined


async def provide(made: Tunnel, ports: list[int], *args: str) -> Process:
    servers = [text for port in ports for text in ("--server", f"{HOST}:{port}")]
    return await made.start("provider", f"{HOST}:{made.target_port}", *servers, *args)


async def serves(made: Tunnel, *processes: Process) -> None:
    """Fail unless all processes live and a client is served."""
    for process in processes:
        assert process.process.returncode is None, process.log[-3:]
    reader, writer = await made.connect()
    sent, (size, got) = await asyncio.gather(send_blocks(writer, 16), read_digest(reader, size=16 << 16))
    assert (size, got) == (16 << 16, sent)
    writer.close()


async def while_alive(work: Coroutine[object, object, None], *processes: Process) -> None:
    """Do the work; fail as soon as a process ends."""
    ends = [asyncio.create_task(process.process.wait(), name="end of a process") for process in processes]
    working = asyncio.create_task(work, name="work")
    try:
        await asyncio.wait([working, *ends], return_when=asyncio.FIRST_COMPLETED)
        for process in processes:
            assert process.process.returncode is None, process.log[-3:]
        await working
    finally:
        for task in (working, *ends):
            task.cancel()
        await asyncio.gather(working, *ends, return_exceptions=True)


async def together(work: Iterator[Coroutine[object, object, None]]) -> None:
    """Do all the work, so much of it at once."""

    async def one_after_the_other() -> None:
        for each in work:
            await each

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_the_other())


@pytest.mark.long
@pytest.mark.parametrize("keys", HANDSHAKE_BYTES)
async def test_a_handshake_cut_at_any_byte_is_survived_in_both_roles(tmp_path: Path, keys: str) -> None:
    async with serving(tmp_path, keys) as (made, port, joined):
        cuts = deque(
            (direction, limit, rst)
            for direction, size in enumerate(HANDSHAKE_BYTES[keys])
            for limit in range(size)
            for rst in (False, True)
        )
        cutters = [Cutter(port, lambda: cuts.popleft() if cuts else None) for _ in range(LINKS)]
        try:
            provider = await provide(made, [port, *(cutter.port for cutter in cutters)], *joined)
            await eventually(lambda: provider.events("peer_up"), "the provider is connected")
            await serves(made, made.server, provider)
            await eventually(lambda: not cuts, "all cuts are made", deadline_s=100)
            other = await provide(made, [cutters[0].port], *joined)
            await eventually(lambda: other.events("peer_up"), "another provider is connected")
            await serves(made, made.server, provider)
        finally:
            for cutter in cutters:
                await cutter.stop()


async def test_a_hostile_server_does_not_crash_a_provider(tmp_path: Path) -> None:
    async with serving(tmp_path) as (made, port, _):
        loop = asyncio.get_running_loop()
        plays: deque[tuple[list[bytes], bytes | None, bool, float]] = deque()
        for rst in (False, True):
            plays += [
                (pieces, ready(b"ROUTER"), rst, pause_s) for pieces in scripts().values() for pause_s in (0.0, 0.05)
            ]
            plays += [([opening], None, rst, 0.01) for opening in OPENINGS.values()]
        parts = scripts()["a message of many parts"]
        plays += [(parts, ready(b"ROUTER"), True, pause_s) for pause_s in MANY_PARTS_S]

        async def play(listener: socket.socket) -> None:
            while plays:
                pieces, handshake, rst, pause_s = plays.popleft()
                sock, _ = await loop.sock_accept(listener)
                await perform(sock, pieces, handshake=handshake, pause_s=pause_s, rst=rst)

        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(AT_ONCE)]
            provider = await provide(made, [port, *(each.getsockname()[1] for each in listeners)])
            await eventually(lambda: provider.events("peer_up"), "the provider is connected")
            for listener in listeners:
                listener.setblocking(False)
            await while_alive(together(map(play, listeners)), provider)
        await serves(made, made.server, provider)


@pytest.mark.parametrize("keys", HANDSHAKE_BYTES)
async def test_strangers_do_not_crash_a_server(tmp_path: Path, keys: str) -> None:
    async with serving(tmp_path, keys) as (made, port, joined):
        provider = await provide(made, [port], *joined)
        await eventually(lambda: provider.events("peer_up"), "the provider is connected")
        loop = asyncio.get_running_loop()

        async def play(pieces: list[bytes], handshake: bytes | None, rst: bool) -> None:
            sock = socket.socket()
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                await loop.sock_connect(sock, (HOST, port))
            await perform(sock, pieces, handshake=handshake, pause_s=0.02, rst=rst)

        plays: list[tuple[list[bytes], bytes | None]] = [([opening], None) for opening in OPENINGS.values()]
        plays += [
            (pieces, ready(b"DEALER", identity))
            for pieces in scripts().values()
            for identity in (b"", b"same", b"p" + bytes(32) + b"web")
        ]
        work = together(play(*each, rst) for each in plays for rst in (False, True))
        await while_alive(work, made.server, provider)
        await serves(made, made.server, provider)


async def test_no_peer_can_claim_the_routing_id_that_libzmq_assigns_next(tmp_path: Path) -> None:

    async def serves_after(made: Tunnel, port: int) -> None:
        provider = await provide(made, [port])
        await eventually(lambda: provider.events("peer_up"), "the provider is connected")
        await serves(made, made.server, provider)

    async with serving(tmp_path) as (made, port, _):
        claimed = [
            b"\0" + (first + ahead & 0xFFFFFFFF).to_bytes(4, "big") for first in libzmq_ids(4) for ahead in range(2)
        ]
        loop = asyncio.get_running_loop()
        socks = []
        for identity in (*claimed, b"", b"", b""):
            sock = socket.create_connection((HOST, port))
            socks.append(sock)
            sock.setblocking(False)
            await loop.sock_sendall(sock, GREETING + ready(b"DEALER", identity))
        for sock in socks:
            await loop.sock_recv(sock, 1)
        await serves_after(made, port)
        for sock in socks:
            sock.close()
