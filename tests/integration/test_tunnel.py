"""The tunnel in one process: a real edge, broker and provider over ZeroMQ; tests play the clients and the targets."""

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from goreprox.config.addresses import Address
from goreprox.net.poller import WRITE
from goreprox.process.clock import clock
from goreprox.roles.dial import Targets
from goreprox.roles.provider import Provider
from goreprox.tunnel.bridge import Bridge
from tests.support.events import Events, logged, matching
from tests.support.sockets import HOST
from tests.support.tunnel import KIB, MIB, End, Tunnel
from tests.support.waiting import DEADLINE_S, Level, eventually


def both_ways(pair: tuple[End, End], first: str) -> tuple[End, End]:
    """Order the ends of a connection: who acts, and who sees it."""
    client, target = pair
    return (client, target) if first == "client" else (target, client)


WHO = pytest.mark.parametrize("who", ["client", "target"])


# -- ends


@WHO
async def test_a_half_close_arrives_after_the_bytes_and_leaves_the_other_direction_open(
    tunnel: Tunnel, who: str
) -> None:
    provider = await tunnel.provide()
    one, other = both_ways(await tunnel.pair(), who)
    await one.send(b"question")
    one.half_close()
    assert await other.receive_all() == b"question"
    for part in (b"a first response", b"and a second"):
        await other.send(part)
        assert await one.receive(len(part)) == part
    other.half_close()
    assert await one.receive_all() == b""
    await tunnel.at_rest(provider)


@WHO
async def test_a_half_close_during_an_outage_arrives_after_it(tunnel: Tunnel, who: str) -> None:
    provider = await tunnel.provide()
    one, other = both_ways(await tunnel.pair(), who)
    await one.send(b"before")
    assert await other.receive(6) == b"before"
    tunnel.relay.refusing = True
    tunnel.relay.cut()
    (peer,) = tunnel.edge.driver.peers.values()
    await eventually(lambda: not peer.session.established)
    await one.send(b"meanwhile")
    one.half_close()
    tunnel.relay.resume()
    assert await other.receive_all() == b"meanwhile"
    await other.send(b"still here")
    other.half_close()
    assert await one.receive_all() == b"still here"
    await tunnel.at_rest(provider)


@WHO
async def test_a_reset_arrives_after_the_bytes_before_it(tunnel: Tunnel, who: str) -> None:
    provider = await tunnel.provide()
    one, other = both_ways(await tunnel.pair(), who)
    await one.send(b"last words")
    one.reset()
    assert await other.receive_to_reset() == b"last words"
    await tunnel.at_rest(provider)


@WHO
async def test_a_response_arrives_before_the_reset_that_unread_bytes_cause(tunnel: Tunnel, who: str) -> None:
    response = b"413 enough" * 500
    provider = await tunnel.provide()
    one, other = both_ways(await tunnel.pair(), who)
    sending = asyncio.create_task(one.send(bytes(64 * MIB)))
    (bridge,) = (provider if who == "client" else tunnel.edge).bridges.connections
    await eventually(lambda: isinstance(bridge, Bridge) and bool(bridge._watched & WRITE))
    other.sock.send(response)
    other.sock.close()  # with bytes unread: the kernel resets (RFC 2525, 2.17)
    assert await one.receive(len(response)) == response
    with pytest.raises(ConnectionError):  # reset, or broken pipe where the reading side was told of the reset
        await sending
    await tunnel.at_rest(provider)


@WHO
async def test_a_reset_after_a_half_close_of_the_peer_is_still_a_reset(tunnel: Tunnel, who: str) -> None:
    provider = await tunnel.provide()
    one, other = both_ways(await tunnel.pair(), who)
    other.half_close()
    assert await one.receive_all() == b""
    one.reset()
    assert await other.receive_to_reset() == b""
    await tunnel.at_rest(provider)


# -- who speaks, who reads


async def test_a_silent_client_receives_what_the_target_sends_first(tunnel: Tunnel) -> None:
    await tunnel.provide()
    (peer,) = tunnel.edge.driver.peers.values()
    await eventually(lambda: peer.session.deadline() is None)  # nothing but the new stream makes it talk
    client, target = await tunnel.pair()
    await target.send(b"220 ready\r\n")
    assert await client.receive(11) == b"220 ready\r\n"
    await client.send(b"HELO\r\n")
    assert await target.receive(6) == b"HELO\r\n"


@WHO
async def test_a_slow_reader_stalls_only_its_own_writer_and_gets_every_byte(who: str) -> None:
    async with Tunnel(memory_bytes=4 * MIB, max_connections=64) as tunnel:
        small: dict[str, Any] = {"memory_bytes": 4 * MIB, "max_connections": 64}
        await tunnel.provide(**small)
        writer, reader = both_ways(await tunnel.pair(), who)
        text = b"".join(hashlib.shake_128(index.to_bytes(4, "big")).digest(64 * KIB) for index in range(1024))
        sent = 0

        async def write() -> None:
            nonlocal sent
            for start in range(0, len(text), 64 * KIB):
                await asyncio.get_running_loop().sock_sendall(writer.sock, text[start : start + 64 * KIB])
                sent += 64 * KIB
            writer.half_close()

        writing = asyncio.create_task(write(), name="write")
        level = Level()
        await eventually(lambda: level.holds(sent))
        for _ in range(20):
            client, target = await tunnel.pair()
            await client.send(b"ping")
            assert await target.receive(4) == b"ping"
            await target.send(b"pong")
            assert await client.receive(4) == b"pong"
        assert not writing.done()
        assert sent < len(text) // 2
        assert await reader.receive_all() == text
        await writing


# -- targets that refuse


@contextlib.contextmanager
def nobodys_port() -> Iterator[int]:
    """A port that is taken, and on which nobody listens."""
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


async def test_a_refusing_target_resets_the_client_and_the_provider_logs_why(tunnel: Tunnel, events: Events) -> None:
    with nobodys_port() as port:
        provider = await tunnel.provide(port=port)
        client = await tunnel.client()
        await client.send(b"hello?")
        assert await client.receive_to_reset() == b""
        await tunnel.at_rest(provider)
    assert os.strerror(errno.ECONNREFUSED) in await logged(events, "target_failed", target=f"{HOST}:{port}")


async def test_a_stream_refused_by_one_provider_is_served_by_another_with_its_early_bytes(tunnel: Tunnel) -> None:
    with nobodys_port() as port:
        await tunnel.provide(port=port)
        await tunnel.provide()
        for index in range(8):  # ties go to either: each way about half of them
            client = await tunnel.client()
            await client.send(b"early %d" % index)
            target = await tunnel.targets.accept()
            assert await target.receive(7) == b"early %d" % index
            await target.send(b"response")
            assert await client.receive(8) == b"response"


async def _loses_its_target(it: Tunnel, provider: Provider) -> None:
    provider.dialer.targets = Targets({"default": Address(HOST, it.stack.enter_context(nobodys_port()))})


async def _withdraws(_: Tunnel, provider: Provider) -> None:
    provider.dialer.targets.by_service.clear()


async def _is_left_alone(it: Tunnel, provider: Provider) -> None:
    known = set(it.edge.driver.peers)
    await it.provide()
    (companion,) = set(it.edge.driver.peers) - known
    it.edge.driver.peers[companion].session.fail("nonsense", clock())
    await _loses_its_target(it, provider)


async def _fills_up(it: Tunnel, _: Provider) -> None:
    await it.pair()


async def _drains(_: Tunnel, provider: Provider) -> None:
    provider._draining = True  # before it has told anybody


@pytest.mark.parametrize(
    ("happens", "avoided", "waits"),
    [
        (_loses_its_target, True, False),
        (_withdraws, True, False),
        (_is_left_alone, True, False),
        (_fills_up, False, True),
        (_drains, False, True),
    ],
)
async def test_the_edge_handles_a_refusal_by_its_code(
    tunnel: Tunnel, happens: Callable[[Tunnel, Provider], Awaitable[None]], avoided: bool, waits: bool
) -> None:
    await happens(tunnel, await tunnel.provide(max_connections=1))
    client = await tunnel.client()
    if waits:
        await eventually(lambda: tunnel.edge.metrics().waiting_clients == 1)
        await tunnel.provide()
        await tunnel.targets.accept()
    else:
        assert await client.receive_to_reset() == b""
    assert bool(tunnel.edge.assignment._balancer._backoffs) == avoided


# -- clients that come before a provider


async def test_an_early_client_is_served_with_its_early_bytes_and_its_half_close(tunnel: Tunnel) -> None:
    client = await tunnel.client()
    await client.send(b"early")
    client.half_close()
    await eventually(lambda: len(tunnel.edge.bridges.connections) == 1)
    provider = await tunnel.provide()
    target = await tunnel.targets.accept()
    assert await target.receive_all() == b"early"
    await target.send(b"late")
    target.half_close()
    assert await client.receive_all() == b"late"
    await tunnel.at_rest(provider)


async def test_all_waiting_clients_are_served_except_those_that_left(tunnel: Tunnel) -> None:
    clients = [await tunnel.client() for _ in range(50)]
    for index, client in enumerate(clients):
        await client.send(b"%02d" % index)
    await eventually(lambda: len(tunnel.edge.bridges.connections) == len(clients))
    for client in clients[::5]:
        client.reset()
    await eventually(lambda: len(tunnel.edge.bridges.connections) == 40)
    await tunnel.provide()
    stayed = {b"%02d" % index: client for index, client in enumerate(clients) if index % 5}
    for _ in range(len(stayed)):
        target = await tunnel.targets.accept()
        word = await target.receive(2)
        await target.send(b"for " + word)
        assert await stayed.pop(word).receive(6) == b"for " + word
    assert not stayed
    assert tunnel.targets.nobody_waits


async def test_a_client_without_a_provider_is_reset_after_the_grace() -> None:
    async with Tunnel(grace_s=0.3) as tunnel:
        client = await tunnel.client()
        await client.send(b"is anybody there?")
        assert await client.receive_to_reset() == b""
        await tunnel.at_rest()


# -- limits


async def test_clients_beyond_the_servers_limit_wait_until_a_connection_ends(events: Events) -> None:
    async with Tunnel(max_connections=2) as tunnel:
        await tunnel.provide()
        pairs = [await tunnel.pair() for _ in range(2)]
        third, fourth = await tunnel.client(), await tunnel.client()
        for client in (third, fourth):
            await client.send(b"patient")
        await logged(events, "full")
        assert len(tunnel.edge.bridges.connections) == 2
        assert tunnel.targets.nobody_waits
        for (client, target), _ in zip(pairs, (third, fourth), strict=True):
            client.reset()
            assert await target.receive_to_reset() == b""
            assert await (await tunnel.targets.accept()).receive(7) == b"patient"
        assert len(matching(events, "full")) == 1


async def test_clients_beyond_the_providers_limit_wait_until_a_connection_ends(
    tunnel: Tunnel, events: list[dict[str, object]]
) -> None:
    await tunnel.provide(max_connections=1)
    client, target = await tunnel.pair()
    waiting = [await tunnel.client() for _ in range(3)]
    await eventually(lambda: tunnel.edge.metrics().waiting_clients == 3)
    assert [entry for entry in events if entry.get("event") == "no_provider"]
    await client.send(b"goes on")
    assert await target.receive(7) == b"goes on"
    for number, later in enumerate(waiting, 1):
        client.half_close()
        target.half_close()
        client, target = later, await tunnel.targets.accept()
        assert tunnel.edge.metrics().waiting_clients == 3 - number, "one for each that ends, and no more"
        await client.send(b"again")
        assert await target.receive(5) == b"again"


# -- drain


async def test_a_draining_provider_finishes_its_streams_and_new_clients_go_elsewhere(tunnel: Tunnel) -> None:
    leaving = await tunnel.provide()
    client, target = await tunnel.pair()
    closing = asyncio.create_task(leaving.close(drain_s=DEADLINE_S), name="drain")
    (peer,) = tunnel.edge.driver.peers.values()
    await eventually(lambda: peer.session.peer_draining)

    late = await tunnel.client()
    await late.send(b"late")
    await eventually(lambda: len(tunnel.edge.bridges.connections) == 2)
    assert tunnel.targets.nobody_waits
    await tunnel.provide()
    assert await (await tunnel.targets.accept()).receive(4) == b"late"

    await client.send(b"one more thing")
    assert await target.receive(14) == b"one more thing"
    assert not closing.done()
    client.half_close()
    assert await target.receive_all() == b""
    target.half_close()
    assert await client.receive_all() == b""
    await asyncio.wait_for(closing, DEADLINE_S)


async def test_a_draining_server_accepts_no_client_and_finishes_its_streams(tunnel: Tunnel) -> None:
    await tunnel.provide()
    client, target = await tunnel.pair()
    port = tunnel.edge.listeners.ports[0]
    closing = asyncio.create_task(tunnel.edge.close(drain_s=DEADLINE_S), name="drain")
    await eventually(lambda: not tunnel.edge.listeners.ports)
    with socket.socket() as sock:
        assert sock.connect_ex((HOST, port)) != 0
    await target.send(b"one more thing")
    assert await client.receive(14) == b"one more thing"
    assert not closing.done()
    target.half_close()
    assert await client.receive_all() == b""
    client.half_close()
    assert await target.receive_all() == b""
    await asyncio.wait_for(closing, DEADLINE_S)


@pytest.mark.parametrize("which", ["server", "provider"])
async def test_streams_left_after_the_drain_are_reset_on_both_sides(tunnel: Tunnel, which: str) -> None:
    provider = await tunnel.provide()
    client, target = await tunnel.pair()
    await client.send(b"then")
    assert await target.receive(4) == b"then"
    owner = tunnel.edge if which == "server" else provider
    closing = asyncio.create_task(owner.close(drain_s=0.1), name="drain")
    assert await client.receive_to_reset() == b""
    assert await target.receive_to_reset() == b""
    await asyncio.wait_for(closing, DEADLINE_S)
