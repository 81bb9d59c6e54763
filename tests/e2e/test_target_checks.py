"""Health checks of targets: real processes withdraw services and offer them again, and no open stream notices."""

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goreprox.control.client import ask_all
from tests.e2e.reloading import apply, configure
from tests.e2e.roles import ANY, Client, echoed, start_broker, start_edge, start_provider
from tests.e2e.upgrading import provide, upgraded
from tests.support.processes import Tunnel, nothing_yet
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import head_of

PACE = ("--check-interval", "0.1", "--check-timeout", f"{DEADLINE_S:g}", "--check-failures", "2")
"""Checks follow each other at once, and none fails because the machine is busy."""
CHECKED = ("--check", "http:/healthz", *PACE)
SUCCESSES = 3


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


class Application:
    """A target that greets and echoes, or, if it is asked for `/healthz`, tells whether it is well."""

    def __init__(self, name: bytes = b"") -> None:
        self.name = name
        self.well = True
        self.told: list[bool] = []
        """What it has said of itself."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(1)
        if first == b"G":
            assert (await head_of(reader)).startswith("ET /healthz ")
            self.told.append(self.well)
            writer.write(b"HTTP/1.1 %d Told\r\nContent-Length: 0\r\n\r\n" % (200 if self.well else 503))
            writer.close()
        elif first:
            writer.write(self.name + first)
            await echo(reader, writer)


async def status(tmp: Path, role: str) -> Any:
    """Return the status document of the one process of a role."""
    (reply,) = await asyncio.to_thread(ask_all, [tmp / "run"], "status", roles=(role,), deadline_s=DEADLINE_S)
    return reply.result


async def offered(tmp: Path, *services: str, role: str = "server") -> None:
    """Wait until an edge, or a server, knows that its providers offer these services, and no others.

    If several provide, each is PROVIDER:SERVICE.
    """
    async with asyncio.timeout(DEADLINE_S):
        while True:
            peers = (await status(tmp, role))["peers"]
            named = [
                f"{peer['name']}:{each}" if len(peers) > 1 else each for peer in peers for each in peer["services"]
            ]
            if sorted(named) == sorted(services):
                return


async def waiting(tmp: Path, clients: int) -> None:
    """Wait until so many clients wait for a provider."""
    async with asyncio.timeout(DEADLINE_S):
        while (await status(tmp, "server"))["streams"]["waiting_clients"] != clients:
            pass


async def run(made: Tunnel, application: Application, *options: str) -> None:
    """Start a server, and a provider that checks its target and has offered it."""
    await made.target(application.serve)
    await made.serve()
    await made.provide(*CHECKED, *options)
    await offered(made.tmp, "default")


async def test_a_service_that_fails_is_withdrawn_and_offered_again_and_open_streams_go_on(tmp: Path) -> None:
    application = Application()
    async with nothing_yet(tmp) as made:
        await run(made, application)
        before = await made.connect()
        await echoed(before, b"before")
        application.well = False
        await made.provider.logged("service_withdrawn", service="default", problem="status 503")
        await offered(tmp)
        after = await made.connect()
        after[1].write(b"waits")
        await waiting(tmp, 1)
        await echoed(before, b"open")
        shown = (await status(tmp, "provider"))["checks"]["default"]
        assert (shown["check"], shown["condition"], shown["problem"]) == ("http:/healthz", "withdrawn", "status 503")
        application.well = True
        assert await asyncio.wait_for(after[0].readexactly(5), DEADLINE_S) == b"waits"
        await echoed(before, b"after")
        await eventually(lambda: made.provider.events("service_offered") == 2, "both are logged")
        shown = (await status(tmp, "provider"))["checks"]["default"]
        assert (shown["condition"], shown["problem"]) == ("well", None)
        assert made.server.events("peer_up") == 1, "the session went on"


async def test_new_clients_go_to_the_provider_whose_target_is_well_over_brokers_and_edges(tmp: Path) -> None:
    first, second = Application(b"first"), Application(b"second")
    async with nothing_yet(tmp) as made:
        broker = await start_broker(made)
        edge = await start_edge(made, broker)
        made.port = await edge.port("clients")
        for application in (first, second):
            target = await made.target(application.serve)
            name = application.name.decode()
            await start_provider(made, broker, target=f"{HOST}:{target}", args=("--name", name, *CHECKED))
        await offered(tmp, "first:default", "second:default", role="edge")
        first.well = False
        await offered(tmp, "second:default", role="edge")
        for _ in range(10):
            assert await served_by(made) == b"second"
        first.well, second.well = True, False
        await offered(tmp, "first:default", role="edge")
        for _ in range(10):
            assert await served_by(made) == b"first"


async def served_by(made: Tunnel) -> bytes:
    """Be a client for a moment; return the name of the application that it gets."""
    reader, writer = await made.connect()
    writer.write(b".")
    writer.write_eof()
    try:
        async with asyncio.timeout(DEADLINE_S):
            return (await reader.read()).removesuffix(b".")
    finally:
        writer.close()


class WebApplication(Application):
    """A target that speaks HTTP."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await head_of(reader)
            if head.startswith("GET /healthz "):
                self.told.append(self.well)
                writer.write(b"HTTP/1.1 %d Told\r\nContent-Length: 0\r\n\r\n" % (200 if self.well else 503))
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.name), self.name))


async def test_requests_leave_their_connection_to_a_withdrawn_target(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        made.scheme = "http"
        await made.serve()
        both = WebApplication(b"first"), WebApplication(b"second")
        for application in both:
            target = await made.target(application.serve)
            await made.provide("--name", application.name.decode(), *CHECKED, target=target)
        await offered(tmp, "first:default", "second:default")
        client = await made.connect()
        ill = both[0] if await asked(client) == b"first" else both[1]
        assert await asked(client) == ill.name, "the connection to a target is used again"
        ill.well = False
        await offered(tmp, *(f"{each.name.decode()}:default" for each in both if each is not ill))
        assert await asked(client) not in (ill.name, b"")


async def asked(client: Client) -> bytes:
    """Make a request over an open connection; return the body of the response."""
    reader, writer = client
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await head_of(reader)
    assert head.startswith("HTTP/1.1 200 "), head
    length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
    return await asyncio.wait_for(reader.readexactly(length), DEADLINE_S)


async def test_a_target_that_is_not_there_yet_is_waited_for(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        with closed_port() as port:
            await made.serve()
            await made.provide("--check", "tcp", *PACE, target=port)
            await made.provider.logged("service_withdrawn", problem="Connection refused")
            client = await made.connect()
            client[1].write(b"waits")
            await waiting(tmp, 1)
            listening = socket.create_server((HOST, port), reuse_port=True)
        server = await asyncio.start_server(echo, sock=listening)
        assert await asyncio.wait_for(client[0].readexactly(5), DEADLINE_S) == b"waits"
        server.close()
        client[1].close()


async def test_a_reload_changes_checks_and_open_streams_go_on(tmp: Path) -> None:
    application = Application()
    async with nothing_yet(tmp) as made:
        target = f"{HOST}:{await made.target(application.serve)}"
        await made.serve("--listen", f"{ANY}=more")
        configure(tmp, "provider", target=[target])
        made.provider = await made.start(
            "provider", "--config", "provider.toml", "--server", f"{HOST}:{made.relay.port}"
        )
        await offered(tmp, "default")
        client = await made.connect()
        await echoed(client, b"before")
        application.well = False
        pace = {"check-interval": 0.1, "check-timeout": DEADLINE_S, "check-failures": 2}
        changes = await apply(tmp, "provider", target=[target, f"more={target}"], check=["more=http:/healthz"], **pace)
        assert changes["kept"] == [] and "+ check more=http:/healthz" in changes["applied"]
        await made.provider.logged("service_withdrawn", service="more")
        await offered(tmp, "default")
        await apply(tmp, "provider", target=[target, f"more={target}"], check=["http:/healthz", "more=tcp"], **pace)
        await made.provider.logged("service_withdrawn", service="default")
        await offered(tmp, "more")
        await apply(tmp, "provider", target=[target])
        await offered(tmp, "default")
        await echoed(client, b"after")


@pytest.mark.long
async def test_a_withdrawn_service_stays_so_through_an_upgrade(tmp: Path) -> None:
    application = Application()
    async with nothing_yet(tmp) as made:
        await made.target(application.serve)
        await made.serve("--grace", "600")  # longer than an upgrade takes on a busy machine
        options = (*CHECKED, "--check-successes", str(SUCCESSES))
        made.provider = await provide(made, *options)
        await offered(tmp, "default")
        before = await made.connect()
        await echoed(before, b"before")
        application.well = False
        await made.provider.logged("service_withdrawn")
        await offered(tmp)
        after = await made.connect()
        after[1].write(b"waits")
        await waiting(tmp, 1)
        await upgraded(tmp, 1)
        await echoed(before, b"on")
        assert (await status(tmp, "server"))["streams"]["waiting_clients"] == 1
        told = len(application.told)
        await eventually(lambda: len(application.told) > told, "checks go on")
        application.well = True
        assert await asyncio.wait_for(after[0].readexactly(5), DEADLINE_S) == b"waits"
        assert application.told.count(True) >= 1 + SUCCESSES
        assert application.told[-SUCCESSES:] == [True] * SUCCESSES
        await echoed(before, b"after")


@pytest.mark.long
async def test_an_offered_service_stays_so_through_an_upgrade(tmp: Path) -> None:
    application = Application()
    async with nothing_yet(tmp) as made:
        await made.target(application.serve)
        await made.serve()
        made.provider = await provide(made, "--check", "http:/healthz", "--check-interval", "1h")
        await offered(tmp, "default")
        application.well = False
        await upgraded(tmp, 0)
        await eventually(lambda: len(application.told) == 2, "the new code checks")
        assert (await status(tmp, "provider"))["checks"]["default"]["condition"] == "well"
        assert await served_by(made) == b""
        assert not made.provider.events("service_withdrawn")
