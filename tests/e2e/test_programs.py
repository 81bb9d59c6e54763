"""Clients and servers that others wrote, through the tunnel and through its breaks."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.support.programs import nginx, output_of, program, redis, running, sshd, tunnel_to
from tests.support.relay import Relay
from tests.support.sockets import HOST
from tests.support.traffic import block
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.programs


async def break_link(relay: Relay) -> None:
    """Cut the link and wait until it is back."""
    before = relay.connections
    relay.cut()
    await eventually(lambda: relay.connections > before, "the link is back")


def curl(*args: str) -> tuple[str, ...]:
    return (program("curl"), "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*", *args)


async def test_curl_sends_two_requests_on_one_connection_to_nginx(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("a page\n")
    async with nginx(tmp_path, tmp_path) as port, tunnel_to(tmp_path, port) as made:
        url = f"http://{HOST}:{made.port}/page"
        printed = await output_of(*curl("--write-out", "%{num_connects}\n", url, url))
        assert printed == "a page\n1\na page\n0\n"


async def test_curl_reads_a_chunked_response_of_nginx(tmp_path: Path) -> None:
    body = b"".join(block(index) for index in range(16)).hex()  # 2 MiB
    (tmp_path / "body").write_text(body)
    async with nginx(tmp_path, tmp_path) as port, tunnel_to(tmp_path, port) as made:
        headers = tmp_path / "headers"
        url = f"http://{HOST}:{made.port}/chunked/body"
        assert await output_of(*curl("--dump-header", str(headers), url)) == body
        assert "transfer-encoding: chunked" in headers.read_text().lower()


async def test_curl_reads_a_range_of_nginx(tmp_path: Path) -> None:
    text = block(0).hex()
    (tmp_path / "text").write_text(text)
    async with nginx(tmp_path, tmp_path) as port, tunnel_to(tmp_path, port) as made:
        url = f"http://{HOST}:{made.port}/text"
        printed = await output_of(*curl("--range", "1000-99999", "--write-out", "\n%{http_code}", url))
        assert printed == text[1000:100000] + "\n206"


async def test_curl_reads_a_large_file_of_nginx_through_a_cut(tmp_path: Path) -> None:
    size = 1 << 28
    big = tmp_path / "big"
    with big.open("wb") as file:
        for index in range(32):  # a sparse file that is not the same everywhere
            file.seek(index * size // 32 + index)
            file.write(block(index))
        file.truncate(size)
    with big.open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()

    async with nginx(tmp_path, tmp_path) as port, tunnel_to(tmp_path, port) as made:
        digest = hashlib.sha256()
        total = 0
        cut: asyncio.Task[None] | None = None
        async with running(*curl(f"http://{HOST}:{made.port}/big")) as (process, stdout):
            while data := await stdout.read(1 << 20):
                digest.update(data)
                total += len(data)
                if cut is None and total >= size // 4:
                    cut = asyncio.create_task(break_link(made.relay), name="cut")
            assert await process.wait() == 0
        assert (total, digest.hexdigest()) == (size, expected)
        assert cut is not None
        await cut


async def test_a_websocket_survives_a_cut(tmp_path: Path) -> None:
    messages = 400
    connections: list[ServerConnection] = []

    def message(index: int) -> bytes | str:
        return block(index)[: 40 * index] if index % 2 else f"text {index}"

    async def echo(connection: ServerConnection) -> None:
        connections.append(connection)
        async for received in connection:
            await connection.send(received)

    async with serve(echo, HOST, 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with tunnel_to(tmp_path, port) as made:
            before = made.relay.connections
            async with connect(f"ws://{HOST}:{made.port}", proxy=None) as client:

                async def send() -> None:
                    for index in range(messages):
                        if index == messages // 2:
                            made.relay.cut()
                        await client.send(message(index))

                sending = asyncio.create_task(send(), name="send")
                for index in range(messages):
                    assert await asyncio.wait_for(client.recv(), DEADLINE_S) == message(index)
                await sending
            assert made.relay.connections > before
            assert len(connections) == 1


async def test_ssh_runs_a_command_and_returns_its_exit_code(tmp_path: Path) -> None:
    async with sshd(tmp_path) as server, tunnel_to(tmp_path, server.port) as made:
        ssh = (program("ssh"), *server.options, "-p", str(made.port), f"{server.user}@{HOST}")
        assert await output_of(*ssh, "echo from the other side") == "from the other side\n"
        await output_of(*ssh, "exit 7", code=7)


@pytest.mark.parametrize("direction", ["upload", "download"])
async def test_scp_survives_a_cut(tmp_path: Path, direction: str) -> None:
    content = os.urandom(8 << 20)
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(content)

    def copied() -> int:
        return copy.stat().st_size if copy.exists() else 0

    async with sshd(tmp_path) as server, tunnel_to(tmp_path, server.port) as made:
        there = f"{server.user}@{HOST}:"
        upload, download = (str(source), f"{there}{copy}"), (f"{there}{source}", str(copy))
        files = upload if direction == "upload" else download
        made.relay.bytes_per_s = 4 << 20  # about 2 s, so that there is a middle
        async with running(program("scp"), *server.options, "-P", str(made.port), *files) as (process, _):
            await eventually(lambda: copied() >= 1 << 20, "an eighth is copied")
            assert copied() < len(content)
            await break_link(made.relay)
            assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
        assert copy.read_bytes() == content


async def test_redis_replies_and_a_blocked_client_survives_a_cut(tmp_path: Path) -> None:
    async with redis(tmp_path) as port, tunnel_to(tmp_path, port) as made:
        cli = (program("redis-cli"), "-h", HOST, "-p")
        through, direct = (*cli, str(made.port)), (*cli, str(port))
        assert await output_of(*through, "SET", "key", "value") == "OK\n"
        assert await output_of(*through, "GET", "key") == "value\n"

        async def waiting() -> list[str]:
            """Return the ids of the connections that wait for an element of a list."""
            clients = (await output_of(*direct, "CLIENT", "LIST")).splitlines()
            return [line.split()[0] for line in clients if " cmd=blpop " in line and " flags=b " in line]

        async def someone_waiting() -> list[str]:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    if blocked := await waiting():
                        return blocked

        async with running(*through, "BLPOP", "queue", "0") as (process, stdout):
            blocked = await someone_waiting()
            await break_link(made.relay)
            assert await waiting() == blocked
            assert await output_of(*direct, "RPUSH", "queue", "element") == "1\n"
            assert await asyncio.wait_for(stdout.read(), DEADLINE_S) == b"queue\nelement\n"
            assert await process.wait() == 0


async def test_what_redis_publishes_during_an_outage_reaches_the_subscriber(tmp_path: Path) -> None:
    async with redis(tmp_path) as port, tunnel_to(tmp_path, port) as made:
        cli = (program("redis-cli"), "-h", HOST, "-p")
        async with running(*cli, str(made.port), "SUBSCRIBE", "news") as (_, stdout):
            assert await asyncio.wait_for(stdout.readuntil(b"1\n"), DEADLINE_S) == b"subscribe\nnews\n1\n"
            made.relay.refusing = True
            made.relay.cut()
            for item in ("first", "second"):
                assert await output_of(*cli, str(port), "PUBLISH", "news", item) == "1\n"
            made.relay.resume()
            expected = b"message\nnews\nfirst\nmessage\nnews\nsecond\n"
            assert (await asyncio.wait_for(stdout.readexactly(len(expected)), DEADLINE_S)) == expected
