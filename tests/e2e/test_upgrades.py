"""What an operator replaces under load: every provider and every broker, one version by the next."""

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.roles import connected, greeted, greeting, meets, start_broker, start_edge, start_provider
from tests.support.processes import Process, Tunnel, Versions, nothing_yet
from tests.support.waiting import DEADLINE_S, eventually

INTERVAL_S = 0.01
"""Between two new clients: 100 a second."""
EVERY = 20
"""So many clients come for one that takes `STEPS` steps, 2 s in all."""
STEPS, STEP_S = 20, 0.1
RESPONSE = b"served, whole and in order"
DRAIN_S = 30


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond at once or, if asked to, slowly."""
    steps = STEPS if await reader.readexactly(1) == b"l" else 1
    for step in range(steps):
        if step:
            await asyncio.sleep(STEP_S)
        writer.write(RESPONSE)
    writer.close()


class Crowd:
    """Clients that come at a steady pace, whatever happens to those before them."""

    def __init__(self, made: Tunnel, port: int) -> None:
        self._made, self._port = made, port
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False
        self.came = 0
        self.outcomes: Counter[str] = Counter()

    async def come(self) -> None:
        """Send clients until `leave`."""
        began = time.monotonic()
        while not self._over:
            if len(self._tasks) < 500:  # what this process and its machine can hold
                long = self.came % EVERY == 0
                task = asyncio.create_task(self._client(long=long), name="client")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self.came += 1
            await asyncio.sleep(max(began + self.came * INTERVAL_S - time.monotonic(), 0))
        await asyncio.gather(*self._tasks)

    async def _client(self, *, long: bool) -> None:
        expected = RESPONSE * (STEPS if long else 1)
        try:
            async with asyncio.timeout(DEADLINE_S):
                reader, writer = await self._made.connect(self._port)
                writer.write(b"l" if long else b"s")
                outcome = "served" if await reader.read(-1) == expected else "cut short"
                writer.close()
        except (OSError, TimeoutError) as exc:
            outcome = repr(exc)
        self.outcomes[outcome] += 1

    def leave(self) -> None:
        self._over = True


@pytest.mark.long
async def test_a_rolling_restart_of_providers_and_brokers_breaks_no_client(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(serve)
        brokers = list(await asyncio.gather(start_broker(made), start_broker(made)))
        ports = [(await broker.port("providers"), await broker.port("edges")) for broker in brokers]
        edge = await start_edge(made, *brokers)
        names = [f"provider{number}" for number in range(2)]

        async def provider(name: str) -> Process:
            args = ("--name", name, "--drain", f"{DRAIN_S}")
            started = await start_provider(made, *brokers, target=target, args=args)
            for for_providers, _ in ports:
                await connected(started, for_providers)
            return started

        providers = list(await asyncio.gather(*map(provider, names)))
        for name in names:
            await meets(edge, name)
        for _, for_edges in ports:
            await connected(edge, for_edges)
        crowd = Crowd(made, await edge.port("clients"))
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.come(), name="crowd")
            for number, name in enumerate(names):
                await progress(crowd)
                providers[number].signal(signal.SIGTERM)
                assert await providers[number].wait() == 0
                providers[number] = await provider(name)
            for number, (for_providers, for_edges) in enumerate(ports):
                await progress(crowd)
                brokers[number].signal(signal.SIGTERM)
                assert await brokers[number].wait() == 0
                brokers[number] = await start_broker(made, for_providers, for_edges)
                await connected(edge, for_edges, times=2)
                for each in providers:
                    await connected(each, for_providers, times=2)
            await progress(crowd)
            crowd.leave()
        assert crowd.outcomes == Counter({"served": crowd.came})


async def progress(crowd: Crowd) -> None:
    """Wait for as many responses as come in half a second."""
    before = crowd.outcomes.total()
    await eventually(lambda: crowd.outcomes.total() >= before + 50, "clients are served")


OURS: Versions = None
BOTH: Versions = ((1, 2), (1, 2))
"""As the next version will be."""
NEXT_SESSION: Versions = ((2, 3), (1, 2))
NEXT_FABRIC: Versions = ((1, 2), (2, 3))


async def test_adjacent_versions_interoperate_in_every_pair_of_roles(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        brokers = await asyncio.gather(*(start_broker(made, versions=each) for each in (OURS, BOTH)))
        edges = await asyncio.gather(*(start_edge(made, *brokers, versions=each) for each in (OURS, BOTH)))
        names = ("ours", "next")
        for name, versions in zip(names, (OURS, BOTH), strict=True):
            target = await made.target(greeting(name.encode()))
            provider = await start_provider(made, *brokers, target=target, args=("--name", name), versions=versions)
            for broker in brokers:
                await connected(provider, await broker.port("providers"))
        for edge in edges:
            for broker in brokers:
                await connected(edge, await broker.port("edges"))
            for name in names:
                await meets(edge, name)
            port = await edge.port("clients")
            held = [await made.connect(port) for _ in names]  # the least loaded gets the next
            assert {await reader.readexactly(4) for reader, _ in held} == {b"ours", b"next"}
        brokers[1].signal(signal.SIGKILL)
        for edge in edges:
            assert await greeted(made, await edge.port("clients")) in (b"ours", b"next")


@pytest.mark.long
async def test_peers_without_a_common_version_are_refused_and_both_sides_log_it(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(greeting(b"ours"))
        broker, late_broker = await asyncio.gather(start_broker(made), start_broker(made, versions=NEXT_FABRIC))
        both = (broker, late_broker)

        async def provider(name: str, versions: Versions) -> Process:
            return await start_provider(made, *both, target=target, args=("--name", name), versions=versions)

        async def edge(name: str, versions: Versions) -> Process:
            return await start_edge(made, *both, args=("--name", name), versions=versions)

        our_edge, next_edge, late_edge, our_provider, next_provider, late_provider = await asyncio.gather(
            edge("our", OURS),
            edge("next", NEXT_SESSION),
            edge("late", NEXT_FABRIC),
            provider("our", OURS),
            provider("next", NEXT_SESSION),
            provider("late", NEXT_FABRIC),
        )
        await meets(our_edge, "our")
        assert await greeted(made, await our_edge.port("clients")) == b"ours"
        session = "peer_incompatible"
        told = [
            (our_edge, session, "next", ("[2, 3]", "1 to 1")),
            (next_provider, session, "our", ("[1, 1]", "2 to 3")),
            (our_provider, session, "next", ("[2, 3]", "1 to 1")),
            (next_edge, session, "our", ("[1, 1]", "2 to 3")),
            *((each, "link_down", None, ("2 to 3", "1 to 1")) for each in (late_edge, late_provider)),
            (broker, "peer_refused", "late", ("2 to 3", "1 to 1")),
            *((each, "link_down", None, ("1 to 1", "2 to 3")) for each in (our_edge, our_provider)),
            (late_broker, "peer_refused", "our", ("1 to 1", "2 to 3")),
        ]
        for process, event, peer, versions in told:
            line = await process.logged(event, peer=peer)
            assert all(version in line for version in versions), line
