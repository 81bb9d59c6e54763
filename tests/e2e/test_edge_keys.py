"""What the key of an edge opens: its services and no others, whatever the edge itself tries."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from brokers import Link, PeerName, Role
from goreprox.config.addresses import Address, Listener
from goreprox.config.clients import ClientConfig
from goreprox.config.roles import EdgeConfig
from goreprox.keys.join import Join
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.roles.edge import Edge
from tests.e2e.roles import Client, echoed, greeted, greeting
from tests.e2e.secured import Secured, number, secured
from tests.support.processes import Process
from tests.support.sockets import HOST
from tests.support.waiting import DEADLINE_S, eventually

SERVICES = ("web", "secret")


class HostileEdge:
    """An edge in the hands of somebody who says one thing of it and does another."""

    def __init__(self, it: Secured, key: str, services: Sequence[str] | None) -> None:
        self._it = it
        join = Join.parse(it.join_file(key).read_text())
        broker = Address(HOST, it.edges)
        listeners = tuple(Listener(Address(HOST, 0), service) for service in SERVICES)
        self.edge = Edge(EdgeConfig(brokers=(broker,), clients=ClientConfig(listeners=listeners)))
        self.name = PeerName(Role.EDGE, key, os.urandom(16))
        attributes = self._attributes(services)
        self.link = Link(self.name, attributes, HOST, it.edges, self.edge.driver, security=join.security)

    def _attributes(self, services: Sequence[str] | None) -> dict[str, object]:
        named = {} if services is None else {"services": list(services)}
        return {"protocol": [VERSION_LEAST, VERSION], **named}

    def announce(self, *services: str) -> None:
        self.link.announce(self._attributes(services))

    async def meets_provider(self) -> None:
        peers = self.edge.driver.peers
        await eventually(lambda: any(peer.session.established for peer in peers.values()), "the hostile edge is in")

    async def opens(self, service: str) -> bytes:
        """Return which target a client of this service reached; b"" if it was reset."""
        try:
            reader, writer = await self._it.connect(self._port(service))
            async with asyncio.timeout(DEADLINE_S):
                word = await reader.readexactly(len(service))
            writer.transport.abort()
        except ConnectionResetError:
            return b""
        return word

    async def holds(self, service: str) -> Client:
        """Return a connection to the target of a service."""
        client = await self._it.connect(self._port(service))
        assert await client[0].readexactly(len(service)) == service.encode()
        return client

    def _port(self, service: str) -> int:
        return self.edge.listeners.ports[SERVICES.index(service)]


@contextlib.asynccontextmanager
async def hostile(it: Secured, key: str, services: Sequence[str] | None) -> AsyncIterator[HostileEdge]:
    made = HostileEdge(it, key, services)
    made.link.start()
    made.edge.listeners.start()
    try:
        yield made
    finally:
        await made.edge.close(drain_s=0)
        await made.link.close(linger_s=0)


@contextlib.asynccontextmanager
async def two_services(tmp: Path) -> AsyncIterator[tuple[Secured, Process]]:
    """A server and a provider of both services; each target says which it is, and echoes."""
    async with secured(tmp) as it:
        targets = [f"{service}={HOST}:{await it.target(greeting(service.encode()))}" for service in SERVICES]
        provider = await it.start(
            *("provider", *targets, "--server", f"{HOST}:{it.providers}", "--join-file", str(it.join_file("default")))
        )
        await eventually(lambda: provider.events("peer_up"), "provider connected")
        yield it, provider


async def honest(it: Secured, key: str, *services: str) -> tuple[Process, list[int]]:
    """Start an edge of ours for these services; return its ports, too."""
    listen = [text for service in services for text in ("--listen", f"{HOST}:0={service}")]
    edge = await it.start(
        "edge", *listen, "--broker", f"{HOST}:{it.edges}", "--name", key, "--join-file", str(it.join_file(key))
    )
    clients = (await edge.ready())["clients"]
    assert isinstance(clients, list)
    return edge, [number(port) for port in clients]


def denied(provider: Process, service: str = "secret") -> int:
    return provider.events("service_denied", peer="partner", service=service)


async def test_a_provider_refuses_and_logs_streams_of_services_that_the_edge_did_not_announce(tmp_path: Path) -> None:
    async with two_services(tmp_path) as (it, provider):
        await it.keys("add", "partner", "--role", "edge", "--services", "web")
        async with hostile(it, "partner", ["web"]) as edge:
            await edge.meets_provider()
            assert await edge.opens("web") == b"web"
            assert not denied(provider)
            assert await edge.opens("secret") == b""
            await eventually(lambda: denied(provider) == 1, "the provider says so")
            for _ in range(20):
                assert await edge.opens("secret") == b""
            assert await edge.opens("web") == b"web"
            provider.signal(signal.SIGTERM)
            assert await provider.wait() == 0
            assert denied(provider) == 1, "the log is bounded"


async def test_an_edge_that_announces_more_than_its_key_allows_or_nothing_is_refused(tmp_path: Path) -> None:
    async with two_services(tmp_path) as (it, provider):
        await it.keys("add", "partner", "--role", "edge", "--services", "web")
        seen = provider.events("peer_up")
        for refusals, services in enumerate((SERVICES, None)):
            async with hostile(it, "partner", services) as edge:
                await eventually(lambda: it.server.events("peer_refused") > refusals, "it is refused")  # noqa: B023
                assert not edge.edge.driver.peers
        assert provider.events("peer_up") == seen


async def test_an_unrestricted_key_opens_every_service_with_or_without_a_list(tmp_path: Path) -> None:
    async with two_services(tmp_path) as (it, provider):
        await it.keys("add", "partner", "--role", "edge")
        for services in (None, SERVICES):
            async with hostile(it, "partner", services) as edge:
                await edge.meets_provider()
                for service in SERVICES:
                    assert await edge.opens(service) == service.encode()
        assert not denied(provider)


async def test_a_later_announcement_of_an_edge_applies_to_new_streams_only(tmp_path: Path) -> None:
    async with two_services(tmp_path) as (it, provider):
        await it.keys("add", "partner", "--role", "edge", "--services", "web,secret")
        async with hostile(it, "partner", SERVICES) as edge:
            await edge.meets_provider()
            held = await edge.holds("secret")
            edge.announce("web")
            async with asyncio.timeout(DEADLINE_S):
                while await edge.opens("secret"):  # until the provider has heard it
                    pass
            await eventually(lambda: denied(provider) == 1, "the provider says so")
            await echoed(held, b"still there")
            edge.announce(*SERVICES)
            async with asyncio.timeout(DEADLINE_S):
                while not await edge.opens("secret"):
                    pass


async def test_restricting_a_key_disconnects_its_edge_which_reconnects_with_fewer_services(tmp_path: Path) -> None:
    async with two_services(tmp_path) as (it, provider):
        await it.keys("add", "partner", "--role", "edge", "--services", "web,secret")
        wide, ports = await honest(it, "partner", *SERVICES)
        await eventually(lambda: wide.events("peer_up"), "the edge is in")
        assert [await greeted(it, port) for port in ports] == [b"web", b"secret"]
        reader, writer = await it.connect(ports[1])
        assert await reader.readexactly(6) == b"secret"
        await it.keys("set", "partner", "--services", "web")
        with contextlib.suppress(ConnectionResetError):
            assert not await asyncio.wait_for(reader.read(), DEADLINE_S)
            raise AssertionError("an end of file, expected a reset")
        writer.close()
        await eventually(lambda: provider.events("peer_revoked", peer="partner"), "the provider says so")
        await wide.stop()

        narrow, ports = await honest(it, "partner", "web")
        await eventually(lambda: narrow.events("peer_up"), "the edge is in again")
        assert await greeted(it, ports[0]) == b"web"
        await narrow.stop()
        async with hostile(it, "partner", ["web"]) as edge:
            await edge.meets_provider()
            assert await edge.opens("secret") == b""
            await eventually(lambda: denied(provider) == 1, "the provider says so")
