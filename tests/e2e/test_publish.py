"""Published names between real processes: the walk of docs/publish.md, outages, reloads, upgrades, workers."""

import asyncio
import json
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.roles import Client, addresses, echoed, start_broker
from tests.e2e.secured import secured
from tests.e2e.upgrading import start, upgrade
from tests.support.forks import run_command
from tests.support.processes import Process, nothing_yet
from tests.support.relay import Relay
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import fetch, head_of

WALK = (Path(__file__).parents[2] / "docs/publish.md").read_text(encoding="utf-8")
APP = "app.laptop.example.com"


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def port() -> Iterator[int]:
    """A port at which only this test may listen."""
    with closed_port() as held:
        yield held


async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond to one request with what it asked for, and close."""
    text = (await head_of(reader)).split(" ")[1].encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
    writer.close()


async def where(provider: Process, name: str) -> str:
    """Wait until a provider prints where clients find a name."""
    return (await provider.logged("published", name=name)).rpartition(" at ")[2]


async def test_the_walk_through_the_document(tmp_path: Path, port: int) -> None:
    grants = re.findall(r"--publish '?([a-z]+://[^\s']+)", WALK.partition("The key allows")[0])
    assert grants == ["http://*.laptop.example.com", "tcp://20000-20009"]
    async with secured(tmp_path, page, "--listen", f"http://{HOST}:0", "--publish-ports", str(port)) as it:
        clients = (await it.server.ready())["clients"]
        assert isinstance(clients, list)
        web = clients[-1]
        given = [text for grant in (grants[0], f"tcp://{port}") for text in ("--publish", grant)]
        await it.keys("add", "laptop", "--services", "none", "--address", HOST, *given)
        provider = await it.provide("--publish", f"http://{APP}", "--publish", "tcp://", join="laptop")
        assert await where(provider, f"http://{APP}") == f"http://{APP}:{web}"
        assert (await where(provider, "tcp://")).endswith(f":{port}")
        assert await fetch(web, "/hello", f"Host: {APP.upper()}.", "Connection: close") == (200, "/hello")
        assert await fetch(port, "/hello", "Host: any", "Connection: close") == (200, "/hello")
        code, out, err = await run_command(tmp_path, "status", "--runtime-dir", str(tmp_path / "run"))
        assert code == 0, err
        assert out.count(f"  http://{APP}@laptop <- http://{APP}:{web}\n") == 2, "both sides show it"
        listed = json.loads(await it.keys("list", "--json"))
        assert next(key["publish"] for key in listed if key["name"] == "laptop") == [grants[0], f"tcp://{port}"]
        await it.keys("revoke", "laptop")
        await it.server.logged("unpublished", service=f"http://{APP}@laptop")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, port)


async def test_what_a_key_does_not_allow_is_refused_with_what_to_do(tmp_path: Path) -> None:
    async with secured(tmp_path, page, "--listen", f"http://{HOST}:0") as it:
        await it.keys("add", "laptop", "--publish", "http://*.laptop.example.com")
        provider = await it.provide("--publish", "http://app.example.com", join="laptop", connect=False)
        refused = await provider.logged("link_down", cause="refused")
        assert "the key laptop does not allow to publish http://app.example.com; `goreprox keys set laptop" in refused
        await it.keys("set", "laptop", "--publish", "http://app.example.com")
        assert (await where(provider, "http://app.example.com")).startswith("http://app.example.com:")


async def test_names_and_their_connections_survive_outage_reload_upgrade_and_a_killed_provider(
    tmp: Path, port: int
) -> None:

    async def client() -> Client:
        return await made.connect(port)

    async with nothing_yet(tmp) as made:
        await made.target(echo)
        listen = ("--listen", f"http://{HOST}:0", "--publish-ports", str(port), "--address", HOST)
        server = await start(made, "server", *listen, "--providers", f"{HOST}:0")
        made.relay = Relay(await server.port("providers"))
        await made.relay.start()
        made._stack.push_async_callback(made.relay.stop)
        asked = (f"{HOST}:{made.target_port}", "--publish", "tcp://", "--server", f"{HOST}:{made.relay.port}")
        provider = await start(made, "provider", *asked)
        assert await where(provider, "tcp://") == f"{HOST}:{port}"
        before = await client()
        await echoed(before, b"before")

        made.relay.cut()
        during = await client()
        during[1].write(b"during")
        await server.logged("peer_down")
        assert await asyncio.wait_for(during[0].readexactly(6), DEADLINE_S) == b"during"
        server.signal(signal.SIGHUP)
        await server.logged("reloaded")
        await echoed(before, b"reloaded")

        code, out, err = await upgrade(tmp)
        assert not code, err
        assert out.count("; 2 connections went on") == 2
        for each in (before, during, await client()):
            await echoed(each, b"upgraded")

        downs = server.events("peer_down")
        provider.signal(signal.SIGKILL)
        await eventually(lambda: server.events("peer_down") > downs, "the server has lost it")
        waits = await client()
        waits[1].write(b"again")
        again = await start(made, "provider", *asked)
        assert await asyncio.wait_for(waits[0].readexactly(5), DEADLINE_S) == b"again"
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(before[0].readexactly(1), DEADLINE_S)
        assert await where(again, "tcp://") == f"{HOST}:{port}"


@pytest.mark.long
async def test_workers_serve_the_same_names_through_an_upgrade(tmp: Path, port: int) -> None:
    async with nothing_yet(tmp) as made:
        web = made._stack.enter_context(closed_port())
        broker = await start_broker(made)
        await made.target(page)
        edges = await addresses([broker], "edges", "--broker")
        listen = ("--listen", f"http://{HOST}:{web}", "--publish-ports", str(port), "--address", HOST)
        await start(made, "edge", *listen, *edges, "--workers", "2")
        servers = await addresses([broker], "providers", "--server")
        names = ("--publish", f"http://{APP}", "--publish", "tcp://")
        provider = await made.start("provider", f"{HOST}:{made.target_port}", *servers, *names)
        await eventually(lambda: provider.events("peer_up") == 2, "both workers are known")
        assert await where(provider, "tcp://") == f"{HOST}:{port}"
        await where(provider, f"http://{APP}")

        async def fetch_often() -> None:
            for _ in range(8):  # the kernel gives them to either
                assert await fetch(port, "/hello", "Host: any", "Connection: close") == (200, "/hello")
                assert await fetch(web, "/hello", f"Host: {APP}", "Connection: close") == (200, "/hello")

        await fetch_often()
        code, _, err = await upgrade(tmp, "--role", "edge")
        assert not code, err
        await fetch_often()
        assert provider.events("not_published") == 0
