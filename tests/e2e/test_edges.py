"""Edges and servers that are killed, frozen or cut off, beside others that are not."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.roles import ANY, Client, connected, echoed, meets, start_broker, start_edge, start_provider
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.relay import Relay
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

QUICK = ("--link-timeout", "1.5")


async def clients_of(made: Tunnel, edge: Process, count: int) -> list[Client]:
    clients = [await made.connect(await edge.port("clients")) for _ in range(count)]
    for client in clients:
        await echoed(client, b"hello")
    return clients


async def test_a_killed_edge_loses_only_its_own_clients_and_its_successor_resets_their_targets(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await echo(reader, writer)
            outcomes["end of file"] += 1
        except ConnectionResetError:
            outcomes["reset"] += 1

    async with nothing_yet(tmp_path) as made:
        target = await made.target(handler)
        broker = await start_broker(made)
        dies, stays = await asyncio.gather(
            *(start_edge(made, broker, args=("--name", name)) for name in ("dies", "stays"))
        )
        await start_provider(made, broker, target=target, args=("--name", "provider"))
        for edge in (dies, stays):
            await meets(edge, "provider")
        lost, untouched = await clients_of(made, dies, 10), await clients_of(made, stays, 10)
        dies.signal(signal.SIGKILL)
        for reader, _ in lost:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), DEADLINE_S)
        await dies.wait()
        await clients_of(made, stays, 1)
        assert not outcomes, "the provider keeps what may come back"
        successor = await start_edge(made, broker, args=("--name", "dies"))
        await eventually(lambda: outcomes.total() == len(lost), "their targets are reset")
        assert outcomes == Counter({"reset": len(lost)})
        await clients_of(made, successor, 1)
        for client in untouched:
            await echoed(client, b"untouched")


@pytest.mark.parametrize("role", ["edge", "server"])
async def test_a_frozen_edge_or_server_resumes_where_it_stopped(tmp_path: Path, role: str) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(echo)
        if role == "edge":
            broker = await start_broker(made)
            frozen = await start_edge(made, broker, args=QUICK)
        else:
            frozen = broker = await made.start("server", "--listen", ANY, "--providers", ANY, "--edges", ANY, *QUICK)
        other = await start_edge(made, broker, args=QUICK)
        provider = await start_provider(made, broker, target=target, args=("--name", "provider", *QUICK))
        for edge in (frozen, other):
            await meets(edge, "provider")
        kept, others = await clients_of(made, frozen, 10), await clients_of(made, other, 10)
        frozen.signal(signal.SIGSTOP)
        for _, writer in kept:
            writer.write(b"meanwhile")
        await eventually(lambda: provider.events("peer_down"), "the provider notices")
        if role == "edge":
            for client in others:
                await echoed(client, b"untouched")
        frozen.signal(signal.SIGCONT)
        for reader, _ in kept:
            assert await asyncio.wait_for(reader.readexactly(9), DEADLINE_S) == b"meanwhile"
        for client in others:
            await echoed(client, b"still here")


async def test_cutting_off_an_edge_or_a_whole_broker_breaks_no_connection(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(echo)
        broker = await start_broker(made)
        relays = [Relay(await broker.port(kind)) for kind in ("edges", "providers")]
        for relay in relays:
            await relay.start()
            made._stack.push_async_callback(relay.stop)
        to_edges, to_providers = relays
        edge = await made.start("edge", "--listen", ANY, "--broker", f"{HOST}:{to_edges.port}", *QUICK)
        server = ("--server", f"{HOST}:{to_providers.port}")
        provider = await made.start("provider", str(target), *server, "--name", "provider", *QUICK)
        await meets(edge, "provider")
        clients = await clients_of(made, edge, 10)

        async def go_on(times: int) -> None:
            for relay in relays:
                relay.cut()
                relay.resume()
            await connected(edge, to_edges.port, times)
            await connected(provider, to_providers.port, times)
            for reader, _ in clients:
                assert await asyncio.wait_for(reader.readexactly(9), DEADLINE_S) == b"meanwhile"

        def cut_off(*parts: Relay) -> None:
            for relay in parts:
                relay.silence()
            for _, writer in clients:
                writer.write(b"meanwhile")

        cut_off(to_edges)
        await eventually(lambda: edge.events("link_lost"), "the edge notices")
        await eventually(lambda: provider.events("peer_down"), "the provider hears of it")
        await go_on(2)
        cut_off(to_edges, to_providers)
        await eventually(lambda: provider.events("link_lost"), "both notice")
        await go_on(3)
