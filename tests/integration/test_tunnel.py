"""The tunnel in one process: a real edge, broker and provider over ZeroMQ; tests play the clients and the targets."""

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

import pytest

from brokers import Link, PeerName, Role, Router, Timings
from goreprox.config.values import Address, Listener, ProviderConfig, ServerConfig, Target
from goreprox.net.poller import WRITE
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.roles.edge import Edge
from goreprox.roles.provider import Provider
from goreprox.tunnel.bridge import Bridge
from goreprox.tunnel.driver import clock
from tests.e2e.harness import Relay
from tests.helpers import HOST, Level, eventually

KIB, MIB = 1 << 10, 1 << 20
DEADLINE_S = 30.0
PROTOCOL: dict[str, object] = {"protocol": [VERSION_LEAST, VERSION]}
TIMINGS = Timings(reconnect_min_s=0.02, reconnect_max_s=0.1)


class End:
    """A plain socket at one end of the tunnel, a client's or a target's."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._loop.sock_sendall(self.sock, data)

    async def receive(self, count: int) -> bytes:
        """Receive `count` bytes, or fewer if an end of file comes before."""
        data = bytearray()
        async with asyncio.timeout(DEADLINE_S):
            while len(data) < count and (more := await self._some(count - len(data))):
                data += more
        return bytes(data)

    async def receive_all(self) -> bytes:
        """Receive to the end of file."""
        data = bytearray()
        async with asyncio.timeout(DEADLINE_S):
            while more := await self._some():
                data += more
        return bytes(data)

    async def _some(self, most: int = MIB) -> bytes:
        return await self._loop.sock_recv(self.sock, min(most, MIB))

    async def receive_to_reset(self) -> bytes:
        """Receive what comes before a reset; an end of file is none."""
        data = bytearray()
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(DEADLINE_S):
                while more := await self._some():
                    data += more
            raise AssertionError(f"end of file after {bytes(data)!r}, expected a reset")
        return bytes(data)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Targets:
    """A listening socket that a provider dials, and the connections that it got."""

    def __init__(self) -> None:
        self._listening = socket.create_server((HOST, 0), backlog=256)
        self._listening.setblocking(False)
        self._accepted: list[socket.socket] = []
        self.port: int = self._listening.getsockname()[1]

    async def accept(self) -> End:
        loop = asyncio.get_running_loop()
        sock, _ = await asyncio.wait_for(loop.sock_accept(self._listening), DEADLINE_S)
        self._accepted.append(sock)
        return End(sock)

    @property
    def nobody_waits(self) -> bool:
        """Whether the provider has dialled no more than was accepted."""
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return True
        sock.close()
        return False

    def close(self) -> None:
        for sock in (self._listening, *self._accepted):
            sock.close()


class Tunnel:
    """The wiring: an edge with a broker, providers with a link each through a relay, and what tests connect to them."""

    def __init__(self, **options: Any) -> None:
        """Take options of `ServerConfig`."""
        self.stack = contextlib.AsyncExitStack()
        self.targets = Targets()
        self.stack.callback(self.targets.close)
        where: dict[str, Any] = {"listeners": (Listener(Address(HOST, 0)),), "providers": Address(HOST, 0)}
        self.edge = Edge(ServerConfig(**where | options))
        self.router = Router(timings=TIMINGS)
        self._provider_port = self.router.bind(Role.PROVIDER, HOST, 0)
        self._local = self.router.attach(PeerName(Role.EDGE, "edge", os.urandom(16)), PROTOCOL, self.edge.driver)
        self.stack.push_async_callback(self._close)
        self.edge.listeners.start()

    async def __aenter__(self) -> Self:
        self.relay = Relay(self._provider_port)
        await self.relay.start()
        self.stack.push_async_callback(self.relay.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def _close(self) -> None:
        await self.edge.close(drain_s=0)
        await self._local.close(linger_s=0)
        await self.router.close(linger_s=0)

    async def provide(
        self,
        *,
        port: int | None = None,
        connect: bool = True,
        more: Mapping[str, object] = MappingProxyType({}),
        **options: Any,
    ) -> Provider:
        """Add a provider of the targets, or of another port; wait for its session.

        `more` are attributes of it in the fabric, options those of `ProviderConfig`.
        """
        server = Address(HOST, self.relay.port)
        target = Target("default", Address(HOST, port or self.targets.port))
        provider = Provider(ProviderConfig(targets=(target,), servers=(server,), **options))
        name = PeerName(Role.PROVIDER, "provider", os.urandom(16))
        attributes = {**PROTOCOL, "services": ["default"], **more}
        link = Link(name, attributes, HOST, self.relay.port, provider.driver, timings=TIMINGS)

        async def close() -> None:
            await provider.close(drain_s=0)
            await link.close(linger_s=0)

        self.stack.push_async_callback(close)
        link.start()
        if connect:
            peers = self.edge.driver.peers
            await eventually(lambda: name.id in peers and peers[name.id].session.established)
        return provider

    async def client(self) -> End:
        """Connect a client."""
        sock = socket.socket()
        self.stack.callback(sock.close)
        end = End(sock)
        await asyncio.get_running_loop().sock_connect(sock, (HOST, self.edge.listeners.ports[0]))
        return end

    async def pair(self) -> tuple[End, End]:
        """Connect a client, and give its target's end too."""
        client = await self.client()
        return client, await self.targets.accept()

    async def at_rest(self, *providers: Provider) -> None:
        """Wait until no connection is left at either end."""
        owners: list[Edge | Provider] = [self.edge, *providers]
        await eventually(lambda: not any(owner.bridges.connections for owner in owners))


def run(test: Callable[[Tunnel], Awaitable[None]], **options: Any) -> None:
    """Run a test with a tunnel that has no provider yet; options are those of `ServerConfig`."""

    async def main() -> None:
        async with asyncio.timeout(100), Tunnel(**options) as tunnel:
            await test(tunnel)

    asyncio.run(main())


def both_ways(pair: tuple[End, End], first: str) -> tuple[End, End]:
    """Order the ends of a connection: who acts, and who sees it."""
    client, target = pair
    return (client, target) if first == "client" else (target, client)


WHO = pytest.mark.parametrize("who", ["client", "target"])


# -- ends


@WHO
def test_half_close_comes_after_the_bytes_and_leaves_the_other_direction_open(who: str) -> None:
    async def test(it: Tunnel) -> None:
        provider = await it.provide()
        one, other = both_ways(await it.pair(), who)
        await one.send(b"question")
        one.half_close()
        assert await other.receive_all() == b"question"
        for part in (b"a first answer", b"and a second"):
            await other.send(part)
            assert await one.receive(len(part)) == part
        other.half_close()
        assert await one.receive_all() == b""
        await it.at_rest(provider)

    run(test)


@WHO
def test_half_close_during_an_outage_arrives_after_it(who: str) -> None:
    async def test(it: Tunnel) -> None:
        provider = await it.provide()
        one, other = both_ways(await it.pair(), who)
        await one.send(b"before")
        assert await other.receive(6) == b"before"
        it.relay.refusing = True
        it.relay.cut()
        (peer,) = it.edge.driver.peers.values()
        await eventually(lambda: not peer.session.established)
        await one.send(b"meanwhile")
        one.half_close()
        it.relay.resume()
        assert await other.receive_all() == b"meanwhile"
        await other.send(b"still here")
        other.half_close()
        assert await one.receive_all() == b"still here"
        await it.at_rest(provider)

    run(test)


@WHO
def test_a_reset_comes_after_the_bytes_before_it(who: str) -> None:
    async def test(it: Tunnel) -> None:
        provider = await it.provide()
        one, other = both_ways(await it.pair(), who)
        await one.send(b"last words")
        one.reset()
        assert await other.receive_to_reset() == b"last words"
        await it.at_rest(provider)

    run(test)


@WHO
def test_an_answer_to_unread_bytes_arrives_before_the_reset_that_they_cause(who: str) -> None:
    answer = b"413 enough" * 500

    async def test(it: Tunnel) -> None:
        provider = await it.provide()
        one, other = both_ways(await it.pair(), who)
        sending = asyncio.create_task(one.send(bytes(64 * MIB)))
        (bridge,) = (provider if who == "client" else it.edge).bridges.connections
        await eventually(lambda: isinstance(bridge, Bridge) and bool(bridge._watched & WRITE))
        other.sock.send(answer)
        other.sock.close()  # with bytes unread: the kernel resets (RFC 2525, 2.17)
        assert await one.receive(len(answer)) == answer
        with pytest.raises(ConnectionError):  # reset, or broken pipe where the reading side was told of the reset
            await sending
        await it.at_rest(provider)

    run(test)


@WHO
def test_a_reset_after_the_others_half_close_is_still_a_reset(who: str) -> None:
    async def test(it: Tunnel) -> None:
        provider = await it.provide()
        one, other = both_ways(await it.pair(), who)
        other.half_close()
        assert await one.receive_all() == b""
        one.reset()
        assert await other.receive_to_reset() == b""
        await it.at_rest(provider)

    run(test)


# -- who speaks, who reads


def test_a_server_that_speaks_first_is_heard_by_a_silent_client() -> None:
    async def test(it: Tunnel) -> None:
        await it.provide()
        (peer,) = it.edge.driver.peers.values()
        await eventually(lambda: peer.session.deadline() is None)  # nothing but the new stream makes it talk
        client, target = await it.pair()
        await target.send(b"220 ready\r\n")
        assert await client.receive(11) == b"220 ready\r\n"
        await client.send(b"HELO\r\n")
        assert await target.receive(6) == b"HELO\r\n"

    run(test)


@WHO
def test_a_slow_reader_stops_its_writer_and_nobody_else_and_gets_every_byte(who: str) -> None:
    async def test(it: Tunnel) -> None:
        small: dict[str, Any] = {"memory_bytes": 4 * MIB, "max_connections": 64}
        await it.provide(**small)
        writer, reader = both_ways(await it.pair(), who)
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
            client, target = await it.pair()
            await client.send(b"ping")
            assert await target.receive(4) == b"ping"
            await target.send(b"pong")
            assert await client.receive(4) == b"pong"
        assert not writing.done()
        assert sent < len(text) // 2
        assert await reader.receive_all() == text
        await writing

    run(test, memory_bytes=4 * MIB, max_connections=64)


# -- targets that refuse


@contextlib.contextmanager
def nobodys_port() -> Iterator[int]:
    """A port that is taken, and on which nobody listens."""
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


def test_a_refusing_target_resets_the_client_and_the_provider_says_why(warnings: list[str]) -> None:
    async def test(it: Tunnel) -> None:
        with nobodys_port() as port:
            provider = await it.provide(port=port)
            client = await it.client()
            await client.send(b"hello?")
            assert await client.receive_to_reset() == b""
            await it.at_rest(provider)
        assert any(f"cannot reach the target {HOST}:{port}" in line and "refused" in line for line in warnings)

    run(test)


def test_what_one_provider_refuses_another_serves_with_the_early_bytes() -> None:
    async def test(it: Tunnel) -> None:
        with nobodys_port() as port:
            await it.provide(port=port)
            await it.provide()
            for index in range(8):  # ties go to either: each way about half of them
                client = await it.client()
                await client.send(b"early %d" % index)
                target = await it.targets.accept()
                assert await target.receive(7) == b"early %d" % index
                await target.send(b"answer")
                assert await client.receive(6) == b"answer"

    run(test)


async def _loses_its_target(it: Tunnel, provider: Provider) -> None:
    provider.targets.targets["default"] = Address(HOST, it.stack.enter_context(nobodys_port()))


async def _withdraws(_: Tunnel, provider: Provider) -> None:
    provider.targets.targets.clear()


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
def test_what_the_edge_does_about_a_refusal_follows_its_code(
    happens: Callable[[Tunnel, Provider], Awaitable[None]], avoided: bool, waits: bool
) -> None:
    async def test(it: Tunnel) -> None:
        await happens(it, await it.provide(max_connections=1))
        client = await it.client()
        if waits:
            await eventually(lambda: it.edge.gauges().waiting_clients == 1)
            await it.provide()
            await it.targets.accept()
        else:
            assert await client.receive_to_reset() == b""
        assert bool(it.edge.dispatcher._balancer._backoffs) == avoided

    run(test)


# -- clients that come before a provider


def test_an_early_client_is_served_with_its_early_bytes_and_its_half_close() -> None:
    async def test(it: Tunnel) -> None:
        client = await it.client()
        await client.send(b"early")
        client.half_close()
        await eventually(lambda: len(it.edge.bridges.connections) == 1)
        provider = await it.provide()
        target = await it.targets.accept()
        assert await target.receive_all() == b"early"
        await target.send(b"late")
        target.half_close()
        assert await client.receive_all() == b"late"
        await it.at_rest(provider)

    run(test)


def test_waiting_clients_are_all_served_but_those_that_left() -> None:
    async def test(it: Tunnel) -> None:
        clients = [await it.client() for _ in range(50)]
        for index, client in enumerate(clients):
            await client.send(b"%02d" % index)
        await eventually(lambda: len(it.edge.bridges.connections) == len(clients))
        for client in clients[::5]:
            client.reset()
        await eventually(lambda: len(it.edge.bridges.connections) == 40)
        await it.provide()
        stayed = {b"%02d" % index: client for index, client in enumerate(clients) if index % 5}
        for _ in range(len(stayed)):
            target = await it.targets.accept()
            word = await target.receive(2)
            await target.send(b"for " + word)
            assert await stayed.pop(word).receive(6) == b"for " + word
        assert not stayed
        assert it.targets.nobody_waits

    run(test)


def test_a_client_that_waited_for_the_grace_in_vain_is_reset() -> None:
    async def test(it: Tunnel) -> None:
        client = await it.client()
        await client.send(b"is anybody there?")
        assert await client.receive_to_reset() == b""
        await it.at_rest()

    run(test, grace_s=0.3)


# -- limits


def test_beyond_the_servers_connections_clients_wait_until_one_ends(warnings: list[str]) -> None:
    async def test(it: Tunnel) -> None:
        await it.provide()
        pairs = [await it.pair() for _ in range(2)]
        third, fourth = await it.client(), await it.client()
        for client in (third, fourth):
            await client.send(b"patient")
        await eventually(lambda: warnings)
        assert len(it.edge.bridges.connections) == 2
        assert it.targets.nobody_waits
        for (client, target), _ in zip(pairs, (third, fourth), strict=True):
            client.reset()
            assert await target.receive_to_reset() == b""
            assert await (await it.targets.accept()).receive(7) == b"patient"
        assert [line for line in warnings if "connections are open" in line] == warnings[:1]

    run(test, max_connections=2)


def test_beyond_the_providers_connections_clients_wait_until_one_ends(events: list[dict[str, object]]) -> None:
    async def test(it: Tunnel) -> None:
        await it.provide(max_connections=1)
        client, target = await it.pair()
        waiting = [await it.client() for _ in range(3)]
        await eventually(lambda: it.edge.gauges().waiting_clients == 3)
        assert [entry for entry in events if entry.get("event") == "no_provider"]
        await client.send(b"goes on")
        assert await target.receive(7) == b"goes on"
        for number, later in enumerate(waiting, 1):
            client.half_close()
            target.half_close()
            client, target = later, await it.targets.accept()
            assert it.edge.gauges().waiting_clients == 3 - number, "one for each that ends, and no more"
            await client.send(b"again")
            assert await target.receive(5) == b"again"

    run(test)


# -- drain


def test_a_draining_provider_ends_its_streams_well_and_new_clients_go_elsewhere() -> None:
    async def test(it: Tunnel) -> None:
        leaving = await it.provide()
        client, target = await it.pair()
        closing = asyncio.create_task(leaving.close(drain_s=DEADLINE_S), name="drain")
        (peer,) = it.edge.driver.peers.values()
        await eventually(lambda: peer.session.peer_draining)

        late = await it.client()
        await late.send(b"late")
        await eventually(lambda: len(it.edge.bridges.connections) == 2)
        assert it.targets.nobody_waits
        await it.provide()
        assert await (await it.targets.accept()).receive(4) == b"late"

        await client.send(b"one more thing")
        assert await target.receive(14) == b"one more thing"
        assert not closing.done()
        client.half_close()
        assert await target.receive_all() == b""
        target.half_close()
        assert await client.receive_all() == b""
        await asyncio.wait_for(closing, DEADLINE_S)

    run(test)


def test_a_draining_server_accepts_nobody_and_ends_its_streams_well() -> None:
    async def test(it: Tunnel) -> None:
        await it.provide()
        client, target = await it.pair()
        port = it.edge.listeners.ports[0]
        closing = asyncio.create_task(it.edge.close(drain_s=DEADLINE_S), name="drain")
        await eventually(lambda: not it.edge.listeners.ports)
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

    run(test)


@pytest.mark.parametrize("which", ["server", "provider"])
def test_what_is_left_after_the_drain_is_reset_on_both_sides(which: str) -> None:
    async def test(it: Tunnel) -> None:
        provider = await it.provide()
        client, target = await it.pair()
        await client.send(b"then")
        assert await target.receive(4) == b"then"
        owner = it.edge if which == "server" else provider
        closing = asyncio.create_task(owner.close(drain_s=0.1), name="drain")
        assert await client.receive_to_reset() == b""
        assert await target.receive_to_reset() == b""
        await asyncio.wait_for(closing, DEADLINE_S)

    run(test)
