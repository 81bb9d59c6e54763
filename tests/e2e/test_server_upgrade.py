"""Upgrades in place of servers, edges and brokers: clients of every kind go on, and new ones wait at most."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.e2e.course import Course, Target
from tests.e2e.reloading import apply, configure
from tests.e2e.roles import Client, echoed, whole
from tests.e2e.upgrading import BASIC, NO_EXECVE, Refusal, Upgradable, start, upgradable, upgrade
from tests.support.processes import Process, descriptors
from tests.support.sockets import HOST
from tests.support.tls import Authority
from tests.support.tls import Client as TlsClient
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import GET, answered, asked, head_of, polite

UPGRADES = 2
IDLE = 20


@pytest.mark.parametrize(
    "role", ["server", *(pytest.param(each, marks=pytest.mark.long) for each in ("edge", "provider"))]
)
async def test_connections_go_on_through_upgrades(tmp: Path, role: str) -> None:
    target = Target()
    course = Course(target)
    async with upgradable(tmp, role, target.serve) as made:
        pid = made.process.process.pid
        await course.begin(made, made.port, idle=IDLE)
        before = kinds(made.process)
        for _ in range(UPGRADES):
            code, out, err = await upgrade(tmp, "--role", role)
            assert not code, err
            assert f"; {course.connections} connections" in out
            await course.go_on()
            await whole(made, made.port)
        # pyzmq makes a context of its own, of seven, once it has referred to a large frame.
        most = before - Counter({"socket": 3}) + Counter({"anon_inode": 7})
        await course.end()
        await eventually(lambda: kinds(made.process) <= most, "it has no more descriptors than before")
        assert made.process.process.pid == pid and made.process.events("upgraded") == UPGRADES
        assert not made.other.events("peer_restarted") and not made.process.events("restore_failed")
        made.process.signal(signal.SIGTERM)
        assert await made.process.wait() == 0


def kinds(process: Process) -> Counter[str]:
    """Count the kinds of descriptors."""
    return Counter(each.partition(":")[0] for each in descriptors(process))


async def test_http_clients_go_on_between_two_requests(tmp: Path) -> None:
    async with upgradable(tmp, "server", echo, web=polite) as made:
        idle, fresh = [await made.connect(made.web) for _ in range(2)]
        await asked(idle, b"before")
        upgrading = asyncio.create_task(made.upgraded())
        asking = [await made.connect(made.web) for _ in range(8)]
        await asyncio.gather(*(asked(client, b"meanwhile") for client in asking))
        await upgrading
        await asked(idle, b"after")
        await asked(fresh, b"first")
        for _, writer in (idle, fresh, *asking):
            writer.close()


async def test_requests_never_fail_while_a_server_is_upgraded(tmp: Path) -> None:
    over = asyncio.Event()

    async def ask(client: Client, count: int = 0) -> int:
        while not over.is_set():
            await asked(client, b"%d" % count)
            count += 1
        client[1].close()
        return count

    async with upgradable(tmp, "server", echo, web=polite) as made:
        clients = [asyncio.create_task(ask(await made.connect(made.web))) for _ in range(3)]
        for _ in range(UPGRADES):
            await made.upgraded()
        over.set()
        assert min(await asyncio.gather(*clients)) >= UPGRADES


@pytest.mark.long
async def test_requests_in_progress_have_the_time_of_a_drain(tmp: Path) -> None:
    reached, released = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await head_of(reader)).startswith("GET /slow"):
            reached.set()
            await released.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n/slow")

    async with upgradable(tmp, "server", echo, *BASIC, "--drain", "3600", web=slow) as made:
        waiting, idle = await made.connect(made.web), await made.connect(made.web)
        waiting[1].write(GET % b"slow")
        await asyncio.wait_for(reached.wait(), DEADLINE_S)
        upgrading = asyncio.create_task(made.upgraded())
        await made.entrance.logged("upgrading")
        released.set()
        await answered(waiting, b"slow")
        await upgrading
        await asked(idle, b"slow")
        for _, writer in (waiting, idle):
            writer.close()


@pytest.mark.long
async def test_a_request_that_outlasts_the_drain_is_reset(tmp: Path) -> None:
    reached = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        reached.set()
        await reader.read()
        writer.close()

    async with upgradable(tmp, "server", echo, *BASIC, "--drain", "0.2", web=silent) as made:
        client, other = await made.connect(made.web), await made.connect()
        await echoed(other, b"before")
        client[1].write(GET % b"never")
        await asyncio.wait_for(reached.wait(), DEADLINE_S)
        await made.upgraded()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client[0].read(), DEADLINE_S)
        await echoed(other, b"after")
        other[1].close()


@pytest.mark.long
async def test_a_websocket_goes_on_and_its_end_is_in_the_access_log(tmp: Path) -> None:
    async def talk(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(talk, HOST, 0, ping_interval=None) as target:
        made = Upgradable(tmp)
        async with made._stack:
            made.target_of_web = next(iter(target.sockets)).getsockname()[1]
            await made.target(echo)
            await made.serve_at("server", *BASIC, "--access-log")
            await made.provide_both()
            async with connect(f"ws://{HOST}:{made.web}/", ping_interval=None) as client:
                for word in ("one", "two"):
                    await client.send(word)
                    assert await asyncio.wait_for(client.recv(), DEADLINE_S) == word
                    await made.upgraded()
                await client.send("three")
                assert await asyncio.wait_for(client.recv(), DEADLINE_S) == "three"
            await made.entrance.logged("upgrade_ended", status=101)


@pytest.mark.long
async def test_clients_without_a_provider_wait_on(tmp: Path) -> None:
    made = Upgradable(tmp)
    async with made._stack:
        made.target_of_web = await made.target(polite)
        await made.target(echo)
        await made.serve_at("server", *BASIC)
        waiting = [await made.connect() for _ in range(3)]
        for number, (_, writer) in enumerate(waiting):
            writer.write(b"waiting %d" % number)
        await made.entrance.logged("no_provider")
        await made.upgraded()
        await made.provide_both()
        for number, (reader, writer) in enumerate(waiting):
            text = b"waiting %d" % number
            assert await asyncio.wait_for(reader.readexactly(len(text)), DEADLINE_S) == text
            writer.close()


@pytest.mark.parametrize("drain_s", [0.2, pytest.param(3600.0, marks=pytest.mark.long)])
async def test_tls_clients_have_time_to_end_and_new_ones_wait(tmp: Path, drain_s: float) -> None:
    authority = Authority(tmp)
    listen = ("--listen", f"tcp://{HOST}:0", "--listen", f"tls://{HOST}:0")
    async with upgradable(tmp, "server", echo, *listen, *authority.options, "--drain", f"{drain_s:g}") as made:
        context = authority.trusting()

        async def client() -> TlsClient:
            return await TlsClient(*await made.connect(made.web), context).shake_hands()

        async def repeated(client: TlsClient, word: bytes) -> None:
            await client.write(word)
            assert await client.read() == word

        plain, early = await made.connect(), await client()
        await echoed(plain, b"before")
        await repeated(early, b"before")
        upgrading = asyncio.create_task(made.upgraded())
        await made.entrance.logged("upgrading")
        late = asyncio.create_task(client())
        if drain_s < 1:
            with pytest.raises(ConnectionResetError):
                await early.read()
        else:
            await repeated(early, b"meanwhile")
            await echoed(plain, b"meanwhile")
            assert not late.done()
        early.writer.close()
        await upgrading
        await echoed(plain, b"after")
        waited = await asyncio.wait_for(late, DEADLINE_S)
        await repeated(waited, b"late")
        waited.writer.close()
        plain[1].close()


@pytest.mark.long
async def test_a_broker_takes_part(tmp: Path) -> None:
    made = Upgradable(tmp)
    async with made._stack:
        await made.target(echo)
        broker = await start(made, "broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0")
        edges, providers = await broker.port("edges"), await broker.port("providers")
        edge = await made.start("edge", "--listen", f"{HOST}:0", "--broker", f"{HOST}:{edges}")
        provider = await made.start("provider", f"{HOST}:{made.target_port}", "--server", f"{HOST}:{providers}")
        await eventually(lambda: edge.events("peer_up"), "the edge knows the provider")
        client = await made.connect(await edge.port("clients"))
        await echoed(client, b"before")
        for count in (1, 2):
            code, out, err = await upgrade(tmp, "--role", "broker")
            assert not code, err
            assert "; 0 connections" in out
            await echoed(client, b"after %d" % count)
        assert await broker.port("edges") == edges and not edge.events("peer_restarted")
        assert provider.process.returncode is None and broker.events("upgraded") == 2
        client[1].close()


@pytest.mark.long
async def test_code_that_goes_missing_leaves_the_old_code_of_a_server_at_work(tmp: Path) -> None:
    configure(tmp, "server", max_connections=500)
    options = (*BASIC, "--config", str(tmp / "server.toml"))
    async with upgradable(tmp, "server", echo, *options, web=polite, program=("-c", NO_EXECVE)) as made:
        client, web = await made.connect(), await made.connect(made.web)
        await apply(tmp, "server", max_connections=600)
        for word in (b"one", b"two"):
            await echoed(client, word)
            await asked(web, word)
            code, out, err = await upgrade(tmp, "--role", "server")
            assert (code, out) == (1, "")
            assert err.endswith(" could not be started: No such file or directory; the code before it goes on\n")
        await echoed(client, b"three")
        await asked(web, b"three")
        await whole(made, made.port)
        assert await apply(tmp, "server", max_connections=700) == {
            "applied": ["~ max-connections: 600 -> 700"],
            "kept": [],
        }, "what was reloaded before is in force"
        for _, writer in (client, web):
            writer.close()


@pytest.mark.long
async def test_memory_that_is_refused_leaves_the_old_code_of_a_server_at_work(tmp: Path) -> None:
    refusal = Refusal(tmp, "os memfd_create 2", "goreprox.tunnel.bridge Bridge.export 2", "os pwrite 2")
    async with upgradable(tmp, "server", echo, web=polite, program=refusal.program) as made:
        client, idle = await made.connect(), await made.connect(made.web)
        await echoed(client, b"before")
        await asked(idle, b"before")
        for step in refusal.steps:
            refusal.at(step)
            code, out, err = await upgrade(tmp, "--role", "server")
            assert (code, out) == (1, "") and "memory" in err, step
            await echoed(client, b"after")
            await asked(idle, b"after")
            await whole(made, made.port)
        refusal.over()
        await made.upgraded()
        await echoed(client, b"later")
        await asked(idle, b"later")
        for _, writer in (client, idle):
            writer.close()
