"""Out of file descriptors: clients wait, dials are refused, links still come back, nothing spins."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import sys
from pathlib import Path

import pytest

from goreprox.net.sockets import spare_descriptors
from tests.support.events import matching
from tests.support.processes import Process, Tunnel, tunnel
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits another process with prlimit")

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]

LIMIT = 160
CLIENTS = 120
"""More than the limit has room for, and not twice as many."""
LOOK_S = 3.0
BUSY_S = 1.0
"""CPU time in `LOOK_S` that tells waiting from spinning, which takes all of a core."""


def limit(process: Process) -> None:
    """Let a process have `LIMIT` descriptors, as if it had been started under `ulimit -n`."""
    resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


def cpu_s(process: Process) -> float:
    """Return the CPU time of all threads of a process so far (proc_pid_stat(5))."""
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def in_use(process: Process) -> int:
    """Count the open descriptors of a process."""
    return len(list(Path(f"/proc/{process.process.pid}/fd").iterdir()))


async def waits(process: Process) -> None:
    """Check that a process at its limit keeps some descriptors back and does next to nothing."""
    assert in_use(process) <= LIMIT - spare_descriptors(LIMIT)
    before = cpu_s(process)
    await asyncio.sleep(LOOK_S)  # the subject: what it does meanwhile
    assert cpu_s(process) - before < BUSY_S


async def ask(client: Client, word: bytes) -> None:
    """Have an echo."""
    reader, writer = client
    writer.write(word)
    assert await asyncio.wait_for(reader.readexactly(len(word)), DEADLINE_S) == word


class Queue:
    """Clients that each wait for their echo."""

    def __init__(self, made: Tunnel) -> None:
        self._made = made
        self._responses: set[asyncio.Task[None]] = set()
        self.served: list[Client] = []
        self.reset = 0

    async def join(self, count: int) -> None:
        for _ in range(count):
            reader, writer = await self._made.connect()
            writer.write(b"x")
            response = asyncio.create_task(self._respond(reader, writer), name="response")
            self._responses.add(response)
            response.add_done_callback(self._responses.discard)

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.read(1) == b"x"
        except ConnectionResetError:
            self.reset += 1
        else:
            self.served.append((reader, writer))


async def go_on_after_a_cut(made: Tunnel, clients: list[Client]) -> None:
    """Check that the link comes back, and the streams with it."""
    links = made.relay.connections
    made.relay.cut()
    await eventually(lambda: made.relay.connections > links, "the link is back")
    for client in clients:
        await ask(client, b"after the cut")


async def test_a_server_without_descriptors_queues_clients_and_keeps_its_links(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo) as made:
        limit(made.server)
        queue = Queue(made)
        await queue.join(CLIENTS)
        await made.server.logged("no_descriptors")
        await waits(made.server)
        early = list(queue.served)
        assert 0 < len(early) < CLIENTS
        assert queue.reset == 0

        await go_on_after_a_cut(made, early)
        await made.provide()  # one more needs one more descriptor

        for _, writer in early:
            writer.close()
        await eventually(lambda: len(queue.served) == CLIENTS, "those that waited are served")
        assert queue.reset == 0
        await made.server.logged("no_descriptors")


async def test_a_provider_without_descriptors_refuses_streams_logs_why_and_recovers(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo) as made:
        limit(made.provider)
        queue = Queue(made)
        await queue.join(CLIENTS)
        await eventually(lambda: len(queue.served) + queue.reset == CLIENTS, "every client has its response")
        early = list(queue.served)
        assert 0 < len(early) < CLIENTS
        assert os.strerror(errno.EMFILE) in await made.provider.logged("target_failed")
        failed = matching(made.provider.log, "target_failed")
        assert len(failed) <= queue.reset
        assert {entry["target"] for entry in failed if "more" not in entry} == {f"{HOST}:{made.target_port}"}
        await waits(made.provider)
        await go_on_after_a_cut(made, early)

        for _, writer in early:
            writer.close()
        ended = "stream_ended"
        await eventually(lambda: made.provider.events(ended) >= len(early), "they have ended at the provider")
        refused = queue.reset
        later = len(early) // 2
        await queue.join(later)
        await eventually(lambda: len(queue.served) == len(early) + later, "later clients are served")
        assert queue.reset == refused


async def test_strangers_that_fill_the_provider_port_do_not_keep_providers_out(tmp_path: Path) -> None:
    """With clients at the limit, too: the number of strangers is bounded, and they have a share of their own."""
    async with tunnel(tmp_path, echo) as made:
        limit(made.server)
        queue = Queue(made)
        await queue.join(CLIENTS)
        await made.server.logged("no_descriptors")
        with contextlib.ExitStack() as strangers:
            for _ in range(CLIENTS):
                stranger = await asyncio.to_thread(socket.create_connection, (HOST, made.relay.target))
                strangers.callback(stranger.close)
            await go_on_after_a_cut(made, list(queue.served))
            before = cpu_s(made.server)
            await asyncio.sleep(LOOK_S)  # the subject: what it does meanwhile
            assert cpu_s(made.server) - before < BUSY_S
