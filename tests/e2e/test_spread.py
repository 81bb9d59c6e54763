"""Several brokers: each pair of an edge and a provider prefers one, and returns there after it was restarted."""

import asyncio
import signal
import tempfile
from pathlib import Path

import pytest

from brokers import Role
from goreprox.protocol.paths import rank
from goreprox.status.query import ask_all
from tests.e2e.roles import Client, connected, echoed, start_broker, start_edge, start_provider
from tests.support.processes import Tunnel, nothing_yet
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S

EDGES, PROVIDERS, BROKERS = ("e0", "e1"), ("p0", "p1", "p2", "p3"), 4
Places = dict[tuple[str, str], str]
"""Which broker the session of each pair of an edge and a provider uses."""


def peer_id(made: Tunnel, role: Role, name: str) -> bytes:
    """Return the id of a process as a peer: its incarnation is in its lock."""
    return role.value + bytes.fromhex((made.tmp / "run" / f"{role}-{name}.0").read_text())


def preferred(made: Tunnel, brokers: list[str]) -> Places:
    ids = {name: peer_id(made, Role.EDGE if name in EDGES else Role.PROVIDER, name) for name in EDGES + PROVIDERS}
    return {
        (edge, provider): max(brokers, key=lambda label: rank(ids[edge], ids[provider], label))
        for edge in EDGES
        for provider in PROVIDERS
    }


async def places(made: Tunnel) -> Places:
    told = await asyncio.to_thread(ask_all, [made.tmp / "run"], role="edge")
    return {
        (document["name"], peer["name"]): path["label"]
        for document in told.documents
        for peer in document["peers"]
        for path in peer["paths"]
        if path["in_use"]
    }


async def become(made: Tunnel, expected: Places) -> None:
    """Wait until all sessions are where they are expected."""
    async with asyncio.timeout(DEADLINE_S):
        while await places(made) != expected:  # noqa: ASYNC110 -- other processes tell only when they are asked
            await asyncio.sleep(0.2)


class Talk:
    """A client who says something and hears it, again and again, until it is told to end."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._over = False
        self._task = asyncio.create_task(self._talk(), name="talk")

    async def _talk(self) -> None:
        number = 0
        while not self._over:
            await echoed(self._client, number.to_bytes(8) * 512)
            number += 1
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._over = True
        await self._task


@pytest.mark.long
async def test_sessions_return_to_their_brokers_after_each_of_a_rolling_restart() -> None:
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:  # leaves room for the names of control sockets
        async with nothing_yet(Path(path)) as made:
            target = await made.target(echo)
            brokers = list(await asyncio.gather(*(start_broker(made) for _ in range(BROKERS))))
            ports = [(await broker.port("providers"), await broker.port("edges")) for broker in brokers]
            edges = await asyncio.gather(*(start_edge(made, *brokers, args=("--name", name)) for name in EDGES))
            providers = await asyncio.gather(
                *(start_provider(made, *brokers, target=target, args=("--name", name)) for name in PROVIDERS)
            )
            for process in (*edges, *providers):
                await process.ready()
            expected = preferred(made, [f"{HOST}:{for_edges}" for _, for_edges in ports])
            await become(made, expected)
            talks = [Talk(await made.connect(await edge.port("clients"))) for edge in edges for _ in range(4)]
            for index, (for_providers, for_edges) in enumerate(ports):
                brokers[index].signal(signal.SIGKILL)
                await brokers[index].wait()
                brokers[index] = await start_broker(made, for_providers, for_edges)
                for process in (*edges, *providers):
                    await connected(process, for_edges if process in edges else for_providers, times=2)
                await become(made, expected)
            for talk in talks:
                await talk.end()
            moved = sum(edge.events("peer_moved") for edge in edges)
            most = 2 * (BROKERS - 1) * len(expected)
            assert moved <= most, "at the start and after its restart, each to every better path once that has settled"
            assert not any(edge.events("stream_ended", code="peer_lost") for edge in edges)
