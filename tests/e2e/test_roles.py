"""Brokers, edges, providers and workers as processes of their own; which provider gets a client."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.e2e.roles import (
    ANY,
    connected,
    echoed,
    greeted,
    greeting,
    meets,
    start_broker,
    start_edge,
    start_provider,
    whole,
)
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo, read_digest, send_blocks
from tests.support.waiting import DEADLINE_S, eventually

CHUNK = 4096
BURST = 300
"""More clients than are accepted in a few turns of the loop."""


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """Hold a port where connections are neither accepted nor refused, since its backlog is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((HOST, 0))
        listening.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


async def test_edges_and_providers_find_each_other_through_a_broker(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(echo)
        broker = await start_broker(made)
        edges = [await start_edge(made, broker) for _ in range(2)]
        for name in "ab":
            await start_provider(made, broker, target=target, args=("--name", name))
        for edge in edges:
            port = await edge.port("clients")
            await asyncio.gather(*(whole(made, port) for _ in range(4)))
        broker.signal(signal.SIGTERM)
        assert await broker.wait() == 0


async def test_streams_continue_over_the_second_broker_and_a_restarted_broker_is_used_again(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(echo)
        brokers = [await start_broker(made) for _ in range(2)]
        ports = [[await broker.port(kind) for kind in ("providers", "edges")] for broker in brokers]
        edge = await start_edge(made, *brokers)
        provider = await start_provider(made, *brokers, target=target)
        port = await edge.port("clients")

        async def both(broker: int, times: int) -> None:
            for process, where in zip((provider, edge), ports[broker], strict=True):
                await connected(process, where, times)

        await both(0, times=1)
        await both(1, times=1)
        client = await made.connect(port)
        await echoed(client, b"over either")
        brokers[0].signal(signal.SIGKILL)
        await echoed(client, b"over the second")
        await echoed(await made.connect(port), b"new")
        await start_broker(made, *ports[0])
        await both(0, times=2)
        brokers[1].signal(signal.SIGKILL)
        await echoed(client, b"over the one that returned")
        await echoed(await made.connect(port), b"new again")


async def test_an_additional_edge_can_join_a_server(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.target(echo)
        server = await made.serve("--edges", ANY)
        edge = await start_edge(made, server)
        await made.provide()
        await whole(made, await server.port("clients"))
        await whole(made, await edge.port("clients"))


async def test_every_port_reaches_its_own_service(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        targets = {name: await made.target(greeting(name.encode())) for name in ("web", "ssh")}
        server = await made.start("server", "--listen", f"{ANY}=web", "--listen", f"{ANY}=ssh", "--providers", ANY)
        offers = [f"{name}={HOST}:{port}" for name, port in targets.items()]
        await made.start("provider", *offers, "--server", f"{HOST}:{await server.port('providers')}")
        clients = (await server.ready())["clients"]
        assert isinstance(clients, list)
        assert [await greeted(made, port) for port in clients] == [b"web", b"ssh"]


async def test_clients_of_a_service_without_providers_wait_and_both_sides_log_it(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(greeting(b"late"))
        broker = await start_broker(made)
        edge = await start_edge(made, broker, listen=f"{ANY}=web")
        other = await start_provider(made, broker, target=f"wbe={HOST}:{target}", args=("--name", "other"))
        await meets(edge, "other")
        client = asyncio.create_task(greeted(made, await edge.port("clients")))
        await eventually(lambda: edge.events("unknown_service", service="web"), "the edge's warning")
        assert "web" in await other.logged("not_listened", service="wbe")
        right = await start_provider(made, broker, target=f"web={HOST}:{target}")
        assert await client == b"late"
        await right.logged("serving", service="web")
        assert await greeted(made, await edge.port("clients")) == b"late"
        await eventually(lambda: right.events("stream_ended") == 2, "later lines have come")
        assert not right.events("not_listened")


async def test_a_service_with_an_unreachable_provider_is_not_reported_as_misspelt(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(greeting(b"back"))
        broker = await start_broker(made)
        edge = await start_edge(made, broker, listen=f"{ANY}=web")
        gone = await start_provider(made, broker, target=f"web={HOST}:{target}", args=("--name", "gone"))
        await meets(edge, "gone")
        await start_provider(made, broker, target=f"wbe={HOST}:{target}", args=("--name", "other"))
        await meets(edge, "other")
        gone.signal(signal.SIGKILL)
        await eventually(lambda: edge.events("peer_down", peer="gone"), "the edge notices")
        client = asyncio.create_task(greeted(made, await edge.port("clients")))
        await eventually(lambda: edge.events("no_provider", service="web"), "a client waits")
        await start_provider(made, broker, target=f"web={HOST}:{target}", args=("--name", "gone"))
        assert await client == b"back"
        await edge.logged("stream_ended")
        assert not edge.events("unknown_service")


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (3, 1, 1, 1)])
async def test_clients_are_distributed_by_weight(tmp_path: Path, weights: tuple[int, ...]) -> None:
    async with nothing_yet(tmp_path) as made:
        broker = await start_broker(made)
        edge = await start_edge(made, broker)
        port = await edge.port("clients")
        for number, weight in enumerate(weights):
            target = await made.target(greeting(b"%d" % number))
            args = ("--weight", str(weight), "--name", f"provider{number}")
            await start_provider(made, broker, target=target, args=args)
            await meets(edge, f"provider{number}")
        share = 15
        served: Counter[bytes] = Counter()
        for _ in range(share * sum(weights)):  # one by one: a provider that owes many responses gets no more
            reader, _ = await made.connect(port)
            served[await asyncio.wait_for(reader.readexactly(1), DEADLINE_S)] += 1
        for number, weight in enumerate(weights):
            assert 0.75 * share * weight <= served[b"%d" % number] <= 1.25 * share * weight


@pytest.mark.parametrize("port", [closed_port, silent_port])
async def test_a_client_is_moved_with_its_early_bytes_from_a_provider_whose_target_is_down(
    tmp_path: Path, port: Callable[[], AbstractContextManager[int]]
) -> None:
    with port() as bad:
        async with nothing_yet(tmp_path) as made:
            arrived: list[tuple[int, str]] = []

            async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                arrived.append(await read_digest(reader))
                writer.write(b"got it")
                writer.close()

            target = await made.target(handler)
            server = await made.serve()
            address = f"{HOST}:{await server.port('providers')}"
            args = ("--server", address, "--dial-timeout", "0.3", "--weight")
            preferred = await made.start("provider", f"{bad}", *args, "1000", "--name", "preferred")
            await made.start("provider", f"{target}", *args, "0.01", "--name", "spare")
            await meets(server, "preferred")
            await meets(server, "spare")
            reader, writer = await made.connect()
            sent = await send_blocks(writer, 4)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b"got it"
            assert arrived == [(4 << 16, sent)]
            await preferred.logged("target_failed")


async def test_a_client_is_reset_when_all_providers_have_refused(tmp_path: Path) -> None:
    with closed_port() as bad:
        async with nothing_yet(tmp_path) as made:
            server = await made.serve()
            address = f"{HOST}:{await server.port('providers')}"
            providers = [await made.start("provider", f"{bad}", "--server", address, "--name", name) for name in "ab"]
            for name in "ab":
                await meets(server, name)
            assert await greeted(made) == b""
            for provider in providers:
                await provider.logged("target_failed")


async def test_a_target_that_recovers_is_used_again(tmp_path: Path) -> None:
    with closed_port() as port:
        async with nothing_yet(tmp_path) as made:
            target = await made.target(greeting(b"spare"))
            server = await made.serve()
            args = ("--server", f"{HOST}:{await server.port('providers')}", "--weight")
            await made.start("provider", f"{port}", *args, "1000", "--name", "preferred")
            await made.start("provider", f"{target}", *args, "0.01", "--name", "spare")
            await meets(server, "preferred")
            await meets(server, "spare")
            assert await greeted(made) == b"spare"
            back = await asyncio.start_server(greeting(b"preferred"), HOST, port, reuse_port=True)
            async with back:
                served = b""
                while served != b"preferred":  # within the deadline of the test
                    served = await greeted(made)
                    assert served in (b"spare", b"preferred")
                    await asyncio.sleep(0.1)


async def frozen_beside_a_spare(made: Tunnel, *, link_timeout_s: int) -> tuple[Process, Process]:
    """Return a server and a provider that gets nearly all clients and has just stopped; another one runs."""
    timeout = ("--link-timeout", str(link_timeout_s))
    server = await made.serve(*timeout)
    args = ("--server", f"{HOST}:{await server.port('providers')}", *timeout, "--weight")
    started = [
        await made.start("provider", str(await made.target(greeting(name))), *args, weight, "--name", name.decode())
        for name, weight in ((b"preferred", "1000"), (b"spare", "0.01"))
    ]
    await meets(server, "preferred")
    await meets(server, "spare")
    started[0].signal(signal.SIGSTOP)
    return server, started[0]


async def test_a_silent_provider_keeps_its_streams_and_new_clients_go_elsewhere(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        server, frozen = await frozen_beside_a_spare(made, link_timeout_s=1)
        reader, writer = await made.connect()
        writer.write(b" once")
        await eventually(lambda: server.events("peer_down", peer="preferred"), "the silence is noticed")
        assert await greeted(made) == b"spare"
        frozen.signal(signal.SIGCONT)
        assert await asyncio.wait_for(reader.readexactly(14), DEADLINE_S) == b"preferred once"


async def test_new_clients_avoid_a_silent_provider_long_before_its_link_is_lost(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        server, frozen = await frozen_beside_a_spare(made, link_timeout_s=300)
        served: set[asyncio.Task[bytes]] = set()
        waiting: set[asyncio.Task[bytes]] = set()
        async with asyncio.timeout(DEADLINE_S):
            while len(served) < 10:
                reader, _ = await made.connect()
                waiting.add(asyncio.create_task(reader.readexactly(5)))
                done, waiting = await asyncio.wait(waiting, timeout=1.0)  # whose Open was sent before may wait on
                served |= done
        assert {each.result() for each in served} == {b"spare"}
        assert not server.events("peer_down", peer="preferred")
        frozen.signal(signal.SIGCONT)


async def test_clients_of_a_full_provider_are_given_to_another(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        small, large = await made.target(greeting(b"small")), await made.target(greeting(b"large"))
        server = await made.serve()
        args = ("--server", f"{HOST}:{await server.port('providers')}", "--weight")
        await made.start("provider", f"{small}", *args, "1000", "--max-connections", "1", "--name", "small")
        await made.start("provider", f"{large}", *args, "0.01", "--name", "large")
        await meets(server, "small")
        await meets(server, "large")
        (reader, writer), (other, _) = await made.connect(), await made.connect()
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE_S) == b"small"
        assert await asyncio.wait_for(other.readexactly(5), DEADLINE_S) == b"large"
        assert [await greeted(made) for _ in range(3)] == [b"large"] * 3
        await eventually(lambda: bool(server.events("stream_refused")), "the full one was asked")
        writer.close()
        while await greeted(made) != b"small":  # within the deadline of the test
            pass


async def test_providers_are_replaced_without_a_failed_client(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(greeting(b"served"))
        broker = await start_broker(made)
        edge = await start_edge(made, broker)
        port = await edge.port("clients")
        provider = await start_provider(made, broker, target=target)
        served: list[bytes] = []
        over = asyncio.Event()

        async def clients() -> None:
            while not over.is_set():
                served.append(await greeted(made, port))

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(clients(), name=f"client {number}")
            for _ in range(3):
                before = len(served)
                await eventually(lambda: len(served) >= before + 20, "clients are served")  # noqa: B023
                provider.signal(signal.SIGTERM)
                assert await provider.wait() == 0  # for a moment there is none: clients wait
                provider = await start_provider(made, broker, target=target)
            over.set()
        assert set(served) == {b"served"}


async def test_a_client_assigned_to_a_draining_provider_is_given_to_the_next(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.target(greeting(b"served"))
        server = await made.serve("--max-connections", "1")
        provider = await made.provide()
        made.relay.silence()
        client = asyncio.create_task(greeted(made))
        await server.logged("full")  # the client has been given to the provider
        provider.signal(signal.SIGTERM)
        await provider.logged("draining")
        made.relay.resume()
        assert await provider.wait() == 0
        await made.provide()
        assert await client == b"served"


async def test_a_draining_edge_serves_the_clients_in_its_backlog(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.target(greeting(b"served"))
        server = await made.serve()
        await made.provide()
        server.signal(signal.SIGSTOP)
        clients = [await made.connect() for _ in range(BURST)]
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGCONT)
        for reader, writer in clients:
            assert await asyncio.wait_for(reader.readexactly(6), DEADLINE_S) == b"served"
            writer.close()
        assert await server.wait() == 0


async def test_two_edges_share_a_port(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(greeting(b"served"))
        broker = await start_broker(made)
        first = await start_edge(made, broker, args=("--reuse-port",))
        port = await first.port("clients")
        second = await start_edge(made, broker, listen=f"{HOST}:{port}", args=("--reuse-port",))
        await start_provider(made, broker, target=target)
        assert await asyncio.gather(*(greeted(made, port) for _ in range(64))) == [b"served"] * 64
        for edge in (first, second):
            await eventually(lambda: edge.events("stream_ended", reason="done"), "each has served some")  # noqa: B023


def workers(parent: Process) -> dict[str, int]:
    """Return the process id of each worker, the latest if there were several."""
    ready = (entry for entry in parent.log if entry.get("event") == "worker_ready")
    return {str(entry["worker"]): int(str(entry["pid"])) for entry in ready}


async def start_workers(made: Tunnel, count: int, port: int) -> Process:
    broker = await start_broker(made)
    target = await made.target(greeting(b"served"))
    await start_provider(made, broker, target=target)
    edge = await start_edge(made, broker, listen=f"{HOST}:{port}", args=("--workers", f"{count}"))
    assert len(workers(edge)) == count
    return edge


async def test_a_killed_worker_is_replaced_and_a_signal_drains_all(tmp_path: Path) -> None:
    with closed_port() as port:
        async with nothing_yet(tmp_path) as made:
            edge = await start_workers(made, 3, port)
            before = workers(edge)
            for number, kill in (("1", signal.SIGKILL), ("2", signal.SIGTERM)):
                os.kill(before[number], kill)
                await eventually(lambda: workers(edge)[number] != before[number], "another one")  # noqa: B023
            assert await asyncio.gather(*(greeted(made, port) for _ in range(32))) == [b"served"] * 32

            clients = [await made.connect(port) for _ in range(16)]
            for reader, _ in clients:
                assert await asyncio.wait_for(reader.readexactly(6), DEADLINE_S) == b"served"
            edge.signal(signal.SIGTERM)
            await eventually(lambda: edge.events("draining") >= 4, "the one told before, and all three")
            for client in clients:
                await echoed(client, b"still here")
                client[1].close()
            assert await edge.wait() == 0


@pytest.mark.long
async def test_a_second_signal_ends_all_workers_at_once(tmp_path: Path) -> None:
    with closed_port() as port:
        async with nothing_yet(tmp_path) as made:
            edge = await start_workers(made, 2, port)
            reader, _ = await made.connect(port)
            assert await asyncio.wait_for(reader.readexactly(6), DEADLINE_S) == b"served"
            edge.signal(signal.SIGTERM)
            await edge.logged("draining")
            edge.signal(signal.SIGTERM)
            assert await edge.wait(20) == 0  # the drain would be 30 s
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), DEADLINE_S)


@pytest.mark.long
async def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path) -> None:
    with closed_port() as port:
        async with nothing_yet(tmp_path) as made:
            edge = await start_workers(made, 2, port)
            edge.signal(signal.SIGKILL)
            await edge.wait()  # until nobody holds its standard error any more
            with pytest.raises(ConnectionRefusedError):
                await made.connect(port)


@pytest.mark.long
def test_workers_that_cannot_start_exit_with_one_line(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        ended = goreprox("edge", "--listen", f"{HOST}:{port}", "--broker", HOST, "--workers", "3", cwd=tmp_path)
    assert ended.returncode == 1
    *_, last = ended.stderr.splitlines()
    assert last.startswith(f"goreprox: cannot listen for clients on {HOST}:{port}: ")
    assert ended.stderr.count("cannot listen") == 1


def goreprox(*args: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "goreprox", *args, "--insecure", "--runtime-dir", str(cwd / "run")]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.mark.parametrize("option", ["--providers", "--edges"])
def test_a_broker_whose_port_is_in_use_reports_it(tmp_path: Path, option: str) -> None:
    with socket.create_server((HOST, 0)) as taken:
        where = f"{HOST}:{taken.getsockname()[1]}"
        other = "--edges" if option == "--providers" else "--providers"
        ended = goreprox("broker", option, where, other, ANY, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"goreprox: cannot listen for {option[2:]} on {where}: Address already in use; ")
    assert ended.stderr.endswith(f"choose another port with {option}\n")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("server", "--edges", "9887"), "providers :9887 and edges :9887: one port for two"),
        (("edge", "--broker", "h", "--listen", "8080=a", "--listen", "0.0.0.0:8080=b"), "one port for two"),
        (("provider", "web=1", "web=2", "--server", "h"), "both are of the service web; give each its own name"),
        (("broker", "--drain", "1"), "Unknown option"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    ended = goreprox(*args, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
