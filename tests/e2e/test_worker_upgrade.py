"""Upgrades in place of an edge with workers: the parent goes first, then one worker after the other."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.roles import Client, echoed, start_broker, start_provider
from tests.e2e.upgrading import NO_EXECVE, start, upgrade
from tests.support.events import matching
from tests.support.processes import Process, Tunnel
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo
from tests.support.waiting import eventually

pytestmark = pytest.mark.long
WORKERS = 2
CLIENTS = 16
NOT_FOR_WORKERS = """
import os, sys
if sys.orig_argv[1] == "-c" and os.environ.get("_GOREPROX_HANDOVER", "").startswith("trial"):
    sys.stderr.write("half installed\\n")
    sys.stderr.flush()
    os._exit(1)
"""
"""A `sitecustomize` by which the new code of a worker does not start."""


class Edge(Tunnel):
    """A tunnel through an edge with workers, which has clients."""

    parent: Process
    clients: list[Client]

    def workers(self) -> dict[object, int]:
        """Return the process id of each worker, the latest if there were several."""
        return {entry["worker"]: int(str(entry["pid"])) for entry in matching(self.parent.log, "worker_ready")}

    async def upgraded(self) -> None:
        code, out, err = await upgrade(self.tmp, "--role", "edge")
        assert not code, err
        assert out.startswith("workers-") and f"; {len(self.clients)} connections" in out and out.count("\n") == 1

    async def all_echo(self, word: bytes) -> None:
        for client in self.clients:
            await echoed(client, word)

    async def end(self) -> None:
        """Drain the edge, whose clients leave."""
        self.parent.signal(signal.SIGTERM)
        await eventually(lambda: self.parent.events("draining") == WORKERS, "all workers are told")
        await self.all_echo(b"draining")
        for _, writer in self.clients:
            writer.close()
        assert await self.parent.wait() == 0


@pytest.fixture
def program() -> tuple[str, ...]:
    """What the interpreter of the parent runs."""
    return ("-m", "goreprox")


@pytest.fixture
async def edge(program: tuple[str, ...]) -> AsyncIterator[Edge]:
    """An edge whose modules are searched in `modules` first, and with `edge.toml` as its configuration."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as tmp, closed_port() as port:
        made = Edge(Path(tmp))
        async with made._stack:
            broker = await start_broker(made)
            made.provider = await start_provider(made, broker, target=await made.target(echo))
            (made.tmp / "modules").mkdir()
            (made.tmp / "edge.toml").write_text(f'[edge]\nlisten = ["{HOST}:{port}"]\n')
            made.port = port
            made.parent = await start(
                made,
                *("edge", "--config", "edge.toml", "--workers", f"{WORKERS}"),
                *("--broker", f"{HOST}:{await broker.port('edges')}"),
                path=str(made.tmp / "modules"),
                program=program,
            )
            await made.parent.logged("ready")
            made.clients = [await made.connect() for _ in range(CLIENTS)]
            await made.all_echo(b"before")
            yield made


async def test_connections_go_on_and_the_parent_still_leads_its_workers(edge: Edge) -> None:
    pid, pids = edge.parent.process.pid, edge.workers()
    await edge.upgraded()
    await edge.all_echo(b"after")
    assert edge.parent.process.pid == pid and edge.workers() == pids
    assert not edge.provider.events("peer_restarted")
    os.kill(pids[0], signal.SIGKILL)
    await edge.provider.logged("peer_restarted")
    await eventually(lambda: edge.workers()[0] != pids[0], "another one")
    edge.clients = [client for client in edge.clients if await goes_on(client)]
    assert 0 < len(edge.clients) < CLIENTS
    os.kill(pids[1], signal.SIGUSR2)
    await edge.parent.logged("upgrade_failed", worker=1)
    edge.parent.signal(signal.SIGUSR2)
    await edge.parent.logged("upgraded", connections=len(edge.clients))
    await edge.all_echo(b"again")
    with (edge.tmp / "edge.toml").open("a") as file:
        file.write("drain = 3600\n")
    edge.parent.signal(signal.SIGHUP)
    await edge.parent.logged("reloaded", applied=1)
    await edge.end()


async def goes_on(client: Client) -> bool:
    try:
        await echoed(client, b"here?")
    except (ConnectionResetError, asyncio.IncompleteReadError):
        return False
    return True


async def test_a_worker_whose_new_code_does_not_start_stays_with_the_old_code(edge: Edge) -> None:
    broken = edge.tmp / "modules/sitecustomize.py"
    broken.write_text(NOT_FOR_WORKERS)
    code, out, err = await upgrade(edge.tmp, "--role", "edge")
    assert (code, out) == (1, "") and "of 2 workers 0 were upgraded; worker 0: the new code cannot take over" in err
    assert err.count("half installed") == WORKERS
    await edge.all_echo(b"after")
    edge.parent.signal(signal.SIGHUP)
    assert "runs the code before the upgrade" in await edge.parent.logged("reload_failed")
    broken.unlink()
    await edge.upgraded()
    edge.parent.signal(signal.SIGHUP)
    await edge.parent.logged("reloaded")
    edge.parent.signal(signal.SIGKILL)
    await eventually(lambda: edge.parent.events("draining") == WORKERS, "they end, as their parent has")
    await edge.all_echo(b"draining")
    for _, writer in edge.clients:
        writer.close()
    await edge.parent.wait()  # until nobody holds its standard error any more


@pytest.mark.parametrize("program", [("-c", NO_EXECVE)])
async def test_new_code_of_a_parent_that_does_not_start_leaves_the_old_code_with_its_workers(edge: Edge) -> None:
    right, pids = (edge.tmp / "edge.toml").read_text(), edge.workers()
    (edge.tmp / "edge.toml").write_text("[edge]\nx = 1")
    code, out, err = await upgrade(edge.tmp, "--role", "edge")
    assert (code, out) == (1, "") and "the new code cannot take over" in err
    (edge.tmp / "edge.toml").write_text(right)
    code, out, err = await upgrade(edge.tmp, "--role", "edge")
    assert (code, out) == (1, "") and "the code before it goes on" in err
    await edge.all_echo(b"after")
    edge.parent.signal(signal.SIGHUP)
    await edge.parent.logged("reloaded")
    assert edge.workers() == pids
    await edge.end()


@pytest.mark.parametrize("at", [{}, {"worker": 0}], ids=["parent", "worker"])
async def test_a_signal_to_end_that_comes_in_the_midst_of_an_upgrade_drains_all_workers(
    edge: Edge, at: dict[str, object]
) -> None:
    edge.parent.signal(signal.SIGUSR2)
    await edge.parent.logged("upgrading", **at)
    await edge.end()
