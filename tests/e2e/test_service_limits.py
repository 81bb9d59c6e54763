"""Limits of connections to a service, through real processes: further clients wait, and those of others do not."""

import asyncio
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.reloading import apply, configure
from tests.e2e.roles import Client, echoed
from tests.e2e.upgrading import start as upgradable
from tests.support.processes import Tunnel, nothing_yet
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import head_of

ANY = f"{HOST}:0"


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


async def start(made: Tunnel, **options: object) -> tuple[int, int]:
    """Start a server of the services `few` and `many`, and a provider; return their ports."""
    target = f"{HOST}:{await made.target(echo)}"
    listen = {"listen": [f"{ANY}=few", f"{ANY}=many"], "providers": ANY}
    configure(made.tmp, "server", **listen, **options)
    made.server = await made.start("server", "--config", "server.toml")
    ready = await made.server.ready()
    where = f"{HOST}:{await made.server.port('providers')}"
    await made.start("provider", f"few={target}", f"many={target}", "--server", where)
    await eventually(lambda: made.server.events("peer_up"), "the server knows the provider")
    clients = ready["clients"]
    assert isinstance(clients, list)
    return clients[0], clients[1]


async def sent(made: Tunnel, port: int) -> Client:
    """Be a client that has sent something, and not been answered yet."""
    client = await made.connect(port)
    client[1].write(b"word")
    return client


async def served(client: Client) -> bool:
    return await asyncio.wait_for(client[0].readexactly(4), DEADLINE_S) == b"word"


async def test_clients_beyond_the_limit_wait_and_keep_no_place_from_other_services(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        few, many = await start(made, max_connections=6, max_connections_per_service=["few=2"])
        first = [await sent(made, few) for _ in range(2)]
        assert all([await served(client) for client in first])
        waiting = [await sent(made, few) for _ in range(20)]
        others = [await sent(made, many) for _ in range(4)]
        assert all([await served(client) for client in others]), "all other places are for them"
        for client in first:
            await echoed(client, b"go on")
        assert not any(client[0]._buffer for client in waiting)  # type: ignore[attr-defined] # nothing has come
        for client in (*first, *others):
            client[1].close()
        while waiting:
            pair, waiting = waiting[:2], waiting[2:]
            for client in pair:
                assert await served(client)
                client[1].close()


async def test_a_reload_lets_those_in_who_wait(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        few, _ = await start(made, max_connections_per_service=["1"])
        first, second = await sent(made, few), await sent(made, few)
        assert await served(first)
        listen = {"listen": [f"{ANY}=few", f"{ANY}=many"], "providers": ANY}
        changes = await apply(tmp, "server", **listen, max_connections_per_service=["few=2", "7"])
        assert changes["kept"] == []
        assert await served(second)
        await echoed(first, b"on")


@pytest.mark.long
async def test_connections_that_an_upgrade_hands_over_keep_their_places(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(echo)
        limit = ("--max-connections-per-service", "1")
        made.server = await upgradable(made, "server", "--listen", ANY, "--providers", ANY, *limit)
        made.port = await made.server.port("clients")
        where = f"{HOST}:{await made.server.port('providers')}"
        await made.start("provider", f"{HOST}:{target}", "--server", where)
        first = await sent(made, made.port)
        assert await served(first)
        made.server.signal(signal.SIGUSR2)
        await made.server.logged("upgraded")
        second = await sent(made, made.port)
        await echoed(first, b"its place is taken")
        assert not second[0]._buffer  # type: ignore[attr-defined] # nothing has come
        first[1].close()
        assert await served(second)


async def test_requests_beyond_the_limit_wait_and_take_the_places_of_idle_connections(tmp: Path) -> None:
    now = most = 0

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            while True:
                await head_of(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        finally:
            now -= 1
            writer.close()

    async def ask(times: int) -> None:
        reader, writer = await made.connect()
        for _ in range(times):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ") and await reader.readexactly(2) == b"ok"
        # and stays, idle

    async with nothing_yet(tmp) as made:
        made.scheme = "http"
        await made.target(target)
        await made.serve("--max-connections-per-service", "2", "--queue-timeout", f"{DEADLINE_S:g}")
        await made.provide()
        async with asyncio.timeout(DEADLINE_S):  # if idle connections kept their places, 4 s each: 200 s
            await asyncio.gather(*(ask(20) for _ in range(5)))
        assert most == 2
