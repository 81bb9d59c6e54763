"""Keys between real processes: who gets in and how, who does not and is told so, and what strangers cannot disturb."""

import asyncio
import contextlib
import os
import pty
import random
import resource
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from goreprox.config.addresses import Address
from goreprox.keys.join import Join
from tests.e2e.secured import Secured, number, secured
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

STREAMS = 50
HALF_OPEN = 2000
FLOOD_S = 4.0


def command_line(pid: int) -> str:
    """Return what the list of processes shows of one."""
    return subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True
    ).stdout


async def is_reset(reader: asyncio.StreamReader) -> bool:
    """Whether a connection ends in a reset, and not in an end of file."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while await reader.read(1 << 16):
                pass
    except ConnectionResetError:
        return True
    return False


# -- the two lines that are all it takes


async def test_a_server_and_its_join_string_suffice_and_no_secret_is_shown(tmp_path: Path) -> None:
    it = Secured(tmp_path)
    it.stdout = subprocess.PIPE
    async with it._stack:
        await it.target(echo)
        await it.serve()
        join = Join.parse(it.join_file("default").read_text())
        assert [address.port for address in join.addresses] == [it.providers]
        await it.provide()
        await it.transfers()
        for process in (it.provider, it.server):
            assert join.text[12:40] not in command_line(process.process.pid)
        shown = ""
        for process in (it.provider, it.server):
            process.signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert isinstance(process.process, asyncio.subprocess.Process) and process.process.stdout is not None
            shown += f"{process.log} {await process.process.stdout.read()!r}"
        assert str(it.join_file("default")) in shown
        text = it.join_file("default").read_text()
        assert not any(secret in shown for secret in (text[12:40], join.keys.secret.decode()))


@pytest.mark.parametrize("first", ["server", "keys add"])
async def test_the_command_printed_at_the_first_start_works_when_pasted(tmp_path: Path, first: str) -> None:
    it = Secured(tmp_path)
    async with it._stack:
        if first == "keys add":
            await it.keys("add", "laptop")
        ours, theirs = pty.openpty()
        it._stack.callback(os.close, ours)
        server = await it.start(
            *("server", "--listen", f"{HOST}:0", "--providers", ":0", "--state-dir", str(it.state)),
            *("--address", HOST),
            stdout=theirs,
        )
        os.close(theirs)
        await server.ready()
        it.port = await server.port("clients")
        shown = (await asyncio.to_thread(os.read, ours, 65536)).decode()
        command = shlex.split(next(line for line in shown.splitlines() if " goreprox provider 3000 " in line))
        assert command[:3] == ["goreprox", "provider", "3000"]
        target = await it.target(echo)
        provider = await it.start(command[1], str(target), *command[3:])
        await eventually(lambda: provider.events("peer_up"), "provider connected")
        await it.transfers()

        await it.keys("add", "another")
        added = Join.parse(it.join_file("another").read_text())
        assert added.addresses == (Address(HOST, await server.port("providers")),)


async def test_a_server_without_an_address_tells_how_to_give_one(tmp_path: Path) -> None:
    it = Secured(tmp_path)
    async with it._stack:
        server = await it.start("server", "--listen", f"{HOST}:0", "--providers", ":0", "--state-dir", str(it.state))
        await server.ready()
        assert "--address" in await server.logged("host_assumed")


@pytest.mark.parametrize("way", ["flag", "variable", "file flag", "file variable", "configuration"])
async def test_a_join_string_is_read_wherever_it_may_be_given(tmp_path: Path, way: str) -> None:
    async with secured(tmp_path) as it:
        path = it.join_file("default")
        args: tuple[str, ...] = ()
        env: dict[str, str] = {}
        match way:
            case "flag":
                args = ("--join", path.read_text().strip())
            case "variable":
                env = {"GOREPROX_JOIN": path.read_text()}
            case "file flag":
                args = ("--join-file", str(path))
            case "file variable":
                env = {"GOREPROX_JOIN_FILE": str(path)}
            case _:
                (tmp_path / "goreprox.toml").write_text(f'join-file = "{path}"\n')
        await it.provide(*args, join=None, env=env)
        await it.transfers()


async def test_a_standalone_broker_and_an_edge_connect_with_keys(tmp_path: Path) -> None:
    it = Secured(tmp_path)
    async with it._stack:
        await it.target(echo)
        state = ("--state-dir", str(it.state))
        broker = await it.start("broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0", *state)
        ready = await broker.ready()
        it.providers = number(ready["providers"])
        await it.keys("add", "front", "--role", "edge", "--address", f"{HOST}:{ready['edges']}")
        edge = await it.start("edge", "--listen", f"{HOST}:0", "--join-file", str(it.join_file("front")))
        clients = (await edge.ready())["clients"]
        assert isinstance(clients, list)
        it.port = clients[0]
        await it.provide()
        await it.transfers()


# -- who does not get in


async def test_an_unknown_key_is_logged_once_on_both_sides_and_accepted_once_authorised(tmp_path: Path) -> None:
    async with secured(tmp_path) as it:
        file = it.state / "authorized" / "default.toml"
        away = tmp_path / "default.toml"
        file.rename(away)
        provider = await it.provide(connect=False)
        await provider.logged("link_down", cause="unknown key")
        await it.server.logged("key_refused", port="provider")
        away.rename(file)
        await eventually(lambda: provider.events("peer_up"), "provider connected")
        await it.transfers()
        assert provider.events("link_down", cause="unknown key") == 1


async def test_a_provider_key_does_not_work_at_the_port_for_edges(tmp_path: Path) -> None:
    async with secured(tmp_path) as it:
        provider = await it.provide(connect=False, server=it.edges)
        await provider.logged("link_down", cause="unknown key")
        assert "default" in await it.server.logged("key_refused", port="edge")
        assert not provider.events("link_up")


async def test_a_service_that_the_key_does_not_allow_is_refused_and_logged_on_both_sides(tmp_path: Path) -> None:
    async with secured(tmp_path) as it:
        await it.keys("add", "laptop", "--services", "web")
        provider = await it.provide(connect=False, join="laptop")
        refusal = await provider.logged("link_down", cause="refused")
        assert "laptop" in refusal and "default" in refusal
        await it.server.logged("peer_refused", peer="laptop")
        file = it.state / "authorized" / "laptop.toml"
        file.write_text(file.read_text().replace('"web"', '"default"'))
        await eventually(lambda: provider.events("peer_up"), "provider connected")
        await it.transfers()


async def test_an_impostor_gets_no_provider(tmp_path: Path) -> None:
    async with secured(tmp_path) as it:
        port = it.providers
        it.server.process.kill()
        await it.server.wait()
        await it.serve(providers=port, state=tmp_path / "impostor")
        (tmp_path / "impostor/authorized/default.toml").write_bytes((it.state / "authorized/default.toml").read_bytes())
        provider = await it.provide(connect=False)
        await provider.logged("link_down", cause="other key")
        await it.server.logged("handshake_failed", cause="server key")
        assert not provider.events("link_up")


async def test_peers_with_and_without_keys_do_not_connect_and_both_sides_log_why(tmp_path: Path) -> None:
    async with secured(tmp_path) as it:
        plain = await it.provide("--insecure", join=None, connect=False)
        await plain.logged("link_down", cause="keys")
        await it.server.logged("handshake_failed", cause="keys")
        assert not plain.events("link_up")

        open_server = await it.start("server", "--listen", f"{HOST}:0", "--providers", f"{HOST}:0", "--insecure")
        provider = await it.provide(connect=False, server=number((await open_server.ready())["providers"]))
        assert "--insecure" in await provider.logged("link_down", cause="no keys")
        await open_server.logged("handshake_failed", cause="keys")
        assert not provider.events("link_up")


# -- revocation and rotation


async def test_revoking_ends_a_live_provider_and_its_streams_within_two_seconds(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        try:
            await reader.read()
        finally:
            ended.set()

    async with secured(tmp_path, hold) as it:
        await it.provide()
        reader, _ = await it.connect()
        assert await reader.readexactly(4) == b"here"
        await it.keys("revoke", "default")
        assert await is_reset(reader)
        await ended.wait()
        await eventually(lambda: it.server.events("peer_revoked", peer="default"), "the server says so")
        await it.server.logged("stream_ended", code="revoked")
        await it.provider.logged("link_down", cause="unknown key")


async def test_a_rotation_breaks_no_connection(tmp_path: Path) -> None:
    async with secured(tmp_path) as it:
        await it.provide()
        before = it.join_file("default").read_text()
        pairs = [await it.connect() for _ in range(8)]
        done = asyncio.Event()

        async def keep_busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
            count = 0
            while not done.is_set() or count == 0:
                data = count.to_bytes(8, "big") * 2048
                writer.write(data)
                assert await reader.readexactly(len(data)) == data
                count += 1
            return count

        tasks = [asyncio.create_task(keep_busy(*pair)) for pair in pairs]
        await it.keys("rotate")
        await eventually(lambda: it.server.events("rekeyed"), "the server has its next key")
        await eventually(lambda: it.provider.events("peer_up", outages=1), "it is back")
        # A join string from before one rotation still works, and so does the renewed one.
        assert it.join_file("default").read_text() != before
        (tmp_path / "old").write_text(before)
        (tmp_path / "old").chmod(0o600)
        for file in (tmp_path / "old", it.join_file("default")):
            replica = await it.provide("--join-file", str(file), join=None)
            replica.signal(signal.SIGTERM)
            assert await replica.wait() == 0
        done.set()
        counts = await asyncio.gather(*tasks)
        assert min(counts) > 0
        await it.transfers()


# -- strangers


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * HALF_OPEN:
        pytest.skip(f"needs {4 * HALF_OPEN} file descriptors, there are {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
async def test_half_open_connections_and_random_bytes_on_every_port_disturb_no_stream(
    tmp_path: Path, many_descriptors: None
) -> None:
    async with secured(tmp_path) as it:
        provider = await it.provide()
        loop = asyncio.get_running_loop()
        until = loop.time() + FLOOD_S

        async def transfer() -> int:
            count = 0
            while loop.time() < until or count == 0:
                await it.transfers(blocks=4)
                count += 1
            return count

        async def flood(port: int, seed: int) -> None:
            rng = random.Random(seed)
            while loop.time() < until:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(HOST, port)
                    writer.write(rng.randbytes(rng.randrange(1, 2000)))
                    await asyncio.sleep(0.01)
                    writer.transport.abort()

        strangers: list[socket.socket] = []
        try:
            transfers = [asyncio.create_task(transfer()) for _ in range(STREAMS)]
            floods = [
                asyncio.create_task(flood(port, seed))
                for port in (it.port, it.providers, it.edges)
                for seed in range(3)
            ]
            for index in range(HALF_OPEN):
                sock = socket.create_connection((HOST, it.providers))
                strangers.append(sock)
                if index % 2:
                    sock.send(b"\xff\0\0\0\0\0\0\0\x01\x7f\x03")
                if index % 50 == 0:
                    await asyncio.sleep(0)
            counts = await asyncio.gather(*transfers)
            await asyncio.gather(*floods)
        finally:
            for sock in strangers:
                sock.close()
        assert min(counts) > 0
        assert not provider.events("link_lost") and not it.server.events("peer_down")
        for process in (provider, it.server):
            assert process.process.returncode is None
        assert len(it.server.log) < 100_000


async def test_clients_denied_by_access_rules_are_reset(tmp_path: Path) -> None:
    async with secured(tmp_path, echo, "--deny", "127.0.0.2", "--max-connections-per-address", "2") as it:
        await it.provide()
        held = [await it.connect() for _ in range(2)]
        for reader, writer in held:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"

        async def let_in(source: str = HOST) -> bool:
            try:
                reader, writer = await asyncio.open_connection(HOST, it.port, local_addr=(source, 0))
            except ConnectionResetError:
                return False
            try:
                writer.write(b"x")
                return await reader.readexactly(1) == b"x"
            except ConnectionResetError:
                return False
            finally:
                writer.transport.abort()

        assert not await let_in()
        assert not await let_in("127.0.0.2")
        await eventually(lambda: any(e.get("event") == "client_denied" for e in it.server.log), "the log has it")
        held[0][1].close()
        async with asyncio.timeout(DEADLINE_S):
            while not await let_in():  # noqa: ASYNC110 -- until the server knows that the first is gone
                await asyncio.sleep(0.05)
