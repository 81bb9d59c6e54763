"""What programs that watch a process find at --health: /live and /ready, through its whole life."""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.roles import ANY, addresses, echoed, start_broker
from tests.e2e.upgrading import provide, run, start, upgrade, upgraded
from tests.support.events import matching
from tests.support.processes import WAIT_S, Process, nothing_yet
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import fetch

HEALTH = ("--health", ANY)
LIVE = (200, "live\n")
READY = (200, "ready\n")
NOT_READY = (503, "not ready\n")


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


async def port_of(process: Process) -> int:
    """Return the port where it responds, the latest."""
    await eventually(lambda: process.events("health"), "it responds somewhere", deadline_s=WAIT_S)
    port = matching(process.log, "health")[-1]["health"]
    assert isinstance(port, int)
    return port


async def becomes(port: int, target: str, wanted: tuple[int, str]) -> None:
    """Wait for a response."""
    async with asyncio.timeout(WAIT_S):
        while (found := await fetch(port, target)) != wanted:
            assert found[1].split("\n")[0] in ("ready", "not ready"), found
            await asyncio.sleep(0.01)


async def drains(process: Process, port: int, client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """End it, while its last client is there: it is alive to its end, but not ready."""
    process.signal(signal.SIGTERM)
    await process.logged("draining")
    assert await fetch(port, "/live") == LIVE
    status, text = await fetch(port, "/ready?verbose")
    assert (status, text.split("\n")[:2]) == (503, ["not ready", "reason: it is shutting down"])
    assert await fetch(port, "/ready") == NOT_READY
    await echoed(client, b"to the last")
    client[1].close()
    assert await process.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        await fetch(port, "/live")


async def test_a_server_is_ready_without_a_provider_and_names_the_services_that_have_none(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.target(echo)
        server = await made.serve("--listen", f"{ANY}=web", *HEALTH)
        port = await port_of(server)
        assert await fetch(port, "/live") == LIVE
        await becomes(port, "/ready", READY)
        assert await fetch(port, "/ready?verbose") == (200, "ready\nno provider: default\nno provider: web\n")
        await made.provide("--drain", "60")
        await becomes(port, "/ready?verbose", (200, "ready\nno provider: web\n"))
        client = await made.connect()
        await echoed(client, b"hello")
        made.provider.signal(signal.SIGTERM)
        await becomes(port, "/ready?verbose", (200, "ready\nno provider: default\nno provider: web\n"))
        await echoed(client, b"the provider drains")
        await drains(server, port, client)


@pytest.mark.parametrize("role", ["edge", "provider"])
async def test_a_process_is_ready_while_it_has_or_within_the_grace_had_a_link(tmp_path: Path, role: str) -> None:
    async with nothing_yet(tmp_path) as made:
        target = await made.target(echo)
        with closed_port() as where:
            command = {
                "provider": ("provider", f"{HOST}:{target}", "--server", f"{HOST}:{where}"),
                "edge": ("edge", "--listen", ANY, "--broker", f"{HOST}:{where}"),
            }[role]
            process = await made.start(*command, *HEALTH, "--grace", "2")
            port = await port_of(process)
            assert await fetch(port, "/live") == LIVE
            assert await fetch(port, "/ready?verbose") == (
                503,
                "not ready\nreason: it is starting\n" + ("no provider: default\n" if role == "edge" else ""),
            )
            listen = ("--providers", "--edges") if role == "provider" else ("--edges", "--providers")
            broker = await made.start("broker", listen[0], f"{HOST}:{where}", listen[1], ANY, *HEALTH)
            assert await fetch(await port_of(broker), "/ready?verbose") == READY
            await becomes(port, "/ready", READY)
            broker.signal(signal.SIGKILL)
            await process.logged("link_lost")
            lost_at = asyncio.get_running_loop().time()
            found = [await fetch(port, "/ready")]
            while found[-1] == READY:
                found.append(await fetch(port, "/ready"))
                await asyncio.sleep(0.01)
            assert found[0] == READY or asyncio.get_running_loop().time() > lost_at + 2
            assert found[-1] == NOT_READY
            assert (await fetch(port, "/ready?verbose"))[1].split("\n")[1] in (
                f"reason: no link to a broker for {seconds} s" for seconds in range(2, 60)
            )
            assert await fetch(port, "/live") == LIVE
            await made.start("broker", listen[0], f"{HOST}:{where}", listen[1], ANY)
            await becomes(port, "/ready", READY)


async def test_workers_are_ready_together_and_their_parent_responds_for_them(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        broker = await start_broker(made)
        with closed_port() as listen:
            brokers = await addresses([broker], "edges", "--broker")
            edge = await made.start("edge", "--listen", f"{HOST}:{listen}", "--workers", "2", *brokers, *HEALTH)
            port = await port_of(edge)
            await becomes(port, "/ready?verbose", (200, "ready\nno provider: default\n"))
            pid = matching(edge.log, "worker_ready")[0]["pid"]
            assert isinstance(pid, int)
            with stopped(pid):
                status, text = await fetch(port, "/ready?verbose")
                assert (status, text.split("\n")[1]) == (503, "reason: no worker runs, or one of them does not respond")
                assert await fetch(port, "/live") == LIVE
            await becomes(port, "/ready", READY)
            edge.signal(signal.SIGTERM)
            assert await edge.wait() == 0


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_reload_keeps_the_port_moves_it_or_changes_nothing(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        with closed_port() as first, closed_port() as second:

            async def reload(text: str, event: str) -> None:
                (tmp / "goreprox.toml").write_text(text)
                before = broker.events(event)
                broker.signal(signal.SIGHUP)
                await eventually(lambda: broker.events(event) > before, event)

            (tmp / "goreprox.toml").write_text(f'health = "{HOST}:{first}"\n')
            broker = await start_broker(made)
            reader, writer = await asyncio.open_connection(HOST, first)  # accepted before, and served after
            await reload(f'health = "{HOST}:{first}"\nmax-peers = 9\n', "reloaded")
            writer.write(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), DEADLINE_S)).endswith(b"\r\n\r\nlive\n")
            writer.close()
            with socket.create_server((HOST, 0)) as taken:
                await reload(f'health = "{HOST}:{taken.getsockname()[1]}"\n', "reload_failed")
            assert await fetch(first, "/ready") == READY
            await reload(f'health = "{HOST}:{second}"\n', "reloaded")
            assert await fetch(second, "/ready") == READY
            with pytest.raises(ConnectionRefusedError):
                await fetch(first, "/ready")
            await reload("", "reloaded")
            with pytest.raises(ConnectionRefusedError):
                await fetch(second, "/ready")


@pytest.mark.long
async def test_upgrades_keep_the_port_open_and_the_process_ready(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo, *HEALTH)
        port = await port_of(made.provider)
        client = await made.connect()
        await echoed(client, b"before")
        over, found = asyncio.Event(), list[tuple[int, str]]()

        async def watch() -> None:
            while not over.is_set():
                found.append(await fetch(port, "/live"))
                found.append(await fetch(port, "/ready"))
                await asyncio.sleep(0.02)  # or the upgrade has to wait for our load

        watching = asyncio.create_task(watch())
        for _ in range(2):
            await upgraded(tmp, 1)
        over.set()
        await watching
        assert set(found) == {LIVE, READY}
        assert await port_of(made.provider) == port
        await echoed(client, b"after")
        await drains(made.provider, port, client)


@pytest.mark.parametrize(
    "role", ["server", *(pytest.param(each, marks=pytest.mark.long) for each in ("edge", "broker"))]
)
async def test_an_upgrade_of_any_role_keeps_the_port_open_and_the_process_ready(tmp: Path, role: str) -> None:
    async with nothing_yet(tmp) as made:
        command: list[str] = {
            "server": ["--listen", ANY, "--providers", ANY],
            "edge": ["--listen", ANY],
            "broker": ["--providers", ANY, "--edges", ANY],
        }[role]
        if role == "edge":
            command += await addresses([await start_broker(made)], "edges", "--broker")
        process = await start(made, role, *command, *HEALTH)
        port = await port_of(process)
        await becomes(port, "/ready", READY)
        over, found = asyncio.Event(), list[tuple[int, str]]()

        async def watch() -> None:
            while not over.is_set():
                found.append(await fetch(port, "/live"))
                found.append(await fetch(port, "/ready"))
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        code, _, errors = await upgrade(tmp, "--role", role)
        over.set()
        await watching
        assert (code, errors) == (0, "")
        assert set(found) == {LIVE, READY}
        assert await port_of(process) == port


@pytest.mark.long
async def test_an_upgrade_may_move_the_port_but_not_to_one_that_is_taken(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await made.target(echo)
        await made.serve()
        with closed_port() as first, closed_port() as second, socket.create_server((HOST, 0)) as taken:
            file = tmp / "provider.toml"
            file.write_text(f'health = "{HOST}:{first}"\n')
            made.provider = await provide(made, "--config", str(file))
            await eventually(lambda: made.server.events("peer_up"), "the server knows the provider")
            file.write_text(f'health = "{HOST}:{taken.getsockname()[1]}"\n')
            made.provider.signal(signal.SIGUSR2)
            assert "cannot listen for health" in await made.provider.logged("upgrade_failed")
            assert await fetch(first, "/ready") == READY
            file.write_text(f'health = "{HOST}:{second}"\n')
            await upgraded(tmp, 0)
            assert await fetch(second, "/ready") == READY
            with pytest.raises(ConnectionRefusedError):
                await fetch(first, "/ready")


async def test_a_port_that_is_taken_ends_the_start(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        process = await Process.start(
            tmp_path, "server", "--listen", ANY, "--providers", ANY, "--health", f"{HOST}:{port}"
        )
        assert await process.wait() == 1
        assert f"cannot listen for health on {HOST}:{port}: " in str(process.log[-1]["message"])
        assert "choose another port with --health" in str(process.log[-1]["message"])
