"""HTTP clients and servers of others, and raw ones of ours, through an HTTP listener of real processes."""

import asyncio
import contextlib
import hashlib
import random
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from httpx import AsyncClient, Limits
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.support.malformed import BODIES, NEXT, ONE_READING, REFUSED
from tests.support.processes import Tunnel, nothing_yet
from tests.support.programs import nginx, output_of, tunnel_to
from tests.support.servers import Handler
from tests.support.sockets import HOST, reset_now
from tests.support.tls import Authority
from tests.support.traffic import block
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import curl, head_of, polite

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ADMIN = "GET /admin HTTP/1.1"
"""The first line of `NEXT`."""
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read a response that has a length; return its status and its body."""
    head = await head_of(reader)
    length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
    return int(head[9:12]), await reader.readexactly(length)


@contextlib.asynccontextmanager
async def http_tunnel(
    tmp: Path, handler: Handler, *, server: tuple[str, ...] = (), provider: tuple[str, ...] = ()
) -> AsyncIterator[Tunnel]:
    """A tunnel to `handler` with an HTTP listener, up and connected; the handler's sockets end with it."""

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    async with nothing_yet(tmp) as made:
        made.scheme = "http"
        await made.target(closing)
        await made.serve(*server)
        await made.provide(*provider)
        yield made


# -- programs of others


@pytest.mark.programs
async def test_curl_and_nginx_use_every_feature_of_http_1_1(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("a page\n")
    big = b"".join(block(index) for index in range(64)).hex()  # 8 MiB
    (tmp_path / "big").write_text(big)
    async with nginx(tmp_path, tmp_path) as port, tunnel_to(tmp_path, port, scheme="http") as made:
        base = f"http://{HOST}:{made.port}"
        url = f"{base}/page"
        assert await output_of(*curl("--write-out", "%{num_connects}\n", url, url)) == "a page\n1\na page\n0\n"
        assert "Content-Length: 7" in await output_of(*curl("--head", url))
        assert await output_of(*curl("--http1.0", "--write-out", "%{http_version}", url)) == "a page\n1.1"
        assert await output_of(*curl(f"{base}/big")) == big
        assert await output_of(*curl(f"{base}/chunked/big")) == big
        assert await output_of(*curl("--range", "10-19", f"{base}/big")) == big[10:20]
        refused = await output_of(*curl("--write-out", "%{http_code}", "--request", "CONNECT", url))
        assert refused.endswith("405")
        # The body is still coming when nginx has responded: the response must get through all the same.
        late = curl("--data-binary", f"@{tmp_path}/big", "--output", "/dev/null", "--write-out", "%{http_code}")
        assert await output_of(*late, url) in ("405", "413")


@pytest.mark.programs
async def test_nginx_compresses_as_without_a_proxy_unless_it_sees_a_via_header(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("a page\n" * 1000)
    async with nginx(tmp_path, tmp_path) as port:
        for options, compressed in ((), True), (("--via",), False):
            async with tunnel_to(tmp_path, port, scheme="http", server=options) as made:
                url = f"http://{HOST}:{made.port}/page"
                head = await output_of(*curl("--compressed", "--output", "/dev/null", "--dump-header", "-", url))
                assert ("Content-Encoding: gzip" in head) == compressed


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_httpx_and_aiohttp_stream_bodies_both_ways_through_outages(tmp_path: Path, scheme: str) -> None:
    """One after the other, as httpx does, which reads nothing before its body is sent; and at once, as aiohttp does."""
    blocks = 128  # 8 MiB, as chunks
    authority = Authority(tmp_path)
    options, context = authority.options if scheme == "https" else (), authority.trusting()

    async def echo(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for part in request.content.iter_chunked(1 << 16):
            await response.write(part)
        await response.write_eof()
        return response

    async def give_back(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/echo", echo)
    app.router.add_route("*", "/back", give_back)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    port = runner.addresses[0][1]
    expected = hashlib.sha256(b"".join(block(index) for index in range(blocks))).digest()
    try:
        async with tunnel_to(tmp_path, port, scheme=scheme, server=options) as made:
            base = f"{scheme}://{HOST}:{made.port}"

            async def parts() -> AsyncIterator[bytes]:
                for index in range(blocks):
                    if index == blocks // 2:
                        made.relay.cut()
                    yield block(index)

            async def digest(body: AsyncIterator[bytes]) -> bytes:
                digest = hashlib.sha256()
                async for part in body:
                    digest.update(part)
                return digest.digest()

            async with AsyncClient(
                limits=Limits(max_connections=1), timeout=DEADLINE_S, trust_env=False, verify=context
            ) as client:
                async with client.stream("POST", f"{base}/back", content=parts()) as response:
                    made.relay.cut()
                    assert await digest(response.aiter_raw()) == expected
                assert (await client.get(f"{base}/nothing")).status_code == 404
                assert (await client.post(f"{base}/echo", content=b"short")).content == b"short"
            async with (
                ClientSession() as session,
                session.post(f"{base}/echo", data=parts(), ssl=context) as echoed,
            ):
                assert await digest(echoed.content.iter_any()) == expected
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_websocket_survives_an_outage(tmp_path: Path, scheme: str) -> None:
    authority = Authority(tmp_path)
    options, context = (authority.options, authority.trusting()) if scheme == "https" else ((), None)

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, HOST, 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with (
            tunnel_to(tmp_path, port, scheme=scheme, server=options) as made,
            connect(
                f"{scheme.replace('http', 'ws')}://{HOST}:{made.port}/",
                proxy=None,
                ping_interval=None,
                compression=None,
                ssl=context,
            ) as socket,
        ):
            for number in range(30):
                if number % 10 == 5:
                    made.relay.cut()
                await socket.send(f"message {number}" * 100)
                async with asyncio.timeout(DEADLINE_S):
                    assert await socket.recv() == f"message {number}" * 100
            await socket.close()
            assert socket.close_code == 1000
            await eventually(lambda: bool(logged(made, "upgrade_ended")), "its end is logged")
            (began,), (ended,) = access(made), logged(made, "upgrade_ended")
            assert (began["status"], ended["status"], ended["service"]) == (101, 101, "default")
            size = sum(len(f"message {number}" * 100) for number in range(30))
            for direction in ("bytes", "bytes_in"):  # beside the messages their frames' heads
                assert size < int(str(ended[direction])) < size + 30 * 16
            assert float(str(ended["duration_s"])) > float(str(began["duration_s"]))


# -- providers come and go


async def test_the_only_provider_is_killed_and_replaced_while_fifty_clients_send_requests(tmp_path: Path) -> None:
    """Ten each: in a POST, in a GET without a byte of the response, in a response; twenty between requests."""
    held: list[str] = []
    replaced = False

    async def responses(clients: list[Client]) -> list[tuple[int, bytes]]:
        return [await response(reader) for reader, _ in clients]

    def ask(clients: list[Client], request: bytes, path: bytes = b"/") -> None:
        for _, writer in clients:
            writer.write(request.replace(b"/", path, 1))

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            method, path, _ = (await head_of(reader)).split(" ", 2)
            if path == "/begun":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
            elif path == "/" or replaced:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            held.append(f"{method} {path}")
            await reader.read()
            return

    async with http_tunnel(tmp_path, target, server=("--queue-timeout", "30")) as made:
        clients = [await made.connect() for _ in range(50)]
        ask(clients, GET)
        assert await responses(clients) == [(200, b"ok")] * 50
        posting, getting, begun, between = clients[:10], clients[10:20], clients[20:30], clients[30:]
        ask(posting, POST, b"/hold")
        ask(getting, GET, b"/hold")
        ask(begun, GET, b"/begun")
        await eventually(lambda: len(held) == 30, "the target has them all")
        for reader, _ in begun:
            assert (await head_of(reader)).startswith("HTTP/1.1 200 ")
        replaced = True
        made.provider.process.kill()
        await made.provider.wait()
        await made.provide(connect=False)
        ask(between, GET)
        assert await responses(between) == [(200, b"ok")] * 20
        assert await responses(getting) == [(200, b"ok")] * 10  # asked once more
        assert [status for status, _ in await responses(posting)] == [502] * 10
        for reader, _ in begun:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), DEADLINE_S)
        alive = posting + getting + between
        ask(alive, GET)
        assert await responses(alive) == [(200, b"ok")] * 40
        assert sorted(held) == ["GET /begun"] * 10 + ["GET /hold"] * 10 + ["POST /hold"] * 10


async def test_a_draining_provider_is_replaced_between_requests(tmp_path: Path) -> None:
    async with http_tunnel(tmp_path, polite) as made:
        reader, writer = await made.connect()
        writer.write(GET)
        assert await response(reader) == (200, b"/")
        first = made.provider
        await made.provide(connect=False)
        second = made.provider
        await eventually(lambda: second.events("peer_up"), "the second is there")
        first.signal(signal.SIGTERM)
        assert await first.wait() == 0
        writer.write(GET)
        assert await response(reader) == (200, b"/")


async def test_a_missing_provider_or_target_is_a_gateway_error(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.target(polite)
        made.scheme = "http"
        await made.serve("--queue-timeout", "0.3")
        reader, writer = await made.connect()
        writer.write(GET)
        head = await head_of(reader)
        assert head.startswith("HTTP/1.1 503 ")
        assert "Retry-After: 5\r\n" in head
        writer.close()
        reader, writer = await made.connect()
        await made.provide(target=1)  # where nobody listens
        for request in (GET, POST):
            writer.write(request)
            assert (await response(reader))[0] == 502
        await made.provide(connect=False)
        await eventually(lambda: made.provider.events("peer_up"), "the other provider is there")
        writer.write(GET)  # the one that fails passes it on
        assert await response(reader) == (200, b"/")


async def test_a_provider_that_does_not_return_is_504_after_the_grace(tmp_path: Path) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with http_tunnel(tmp_path, hold, server=("--grace", "0.5")) as made:
        reader, writer = await made.connect()
        writer.write(POST)
        await eventually(lambda: len(made._writers) == 2, "the target has the request")
        made.relay.refusing = True
        made.relay.cut()
        assert (await response(reader))[0] == 504
        await eventually(lambda: len(access(made)) == 1, "it is logged")
        (entry,) = access(made)
        assert entry["status"] == 504
        assert made.server.events("peer_down", peer=entry["provider"]), "the log says whose fault it is"


# -- what is logged


def logged(made: Tunnel, event: str) -> list[dict[str, object]]:
    return [entry for entry in made.server.log if entry.get("event") == event]


def access(made: Tunnel) -> list[dict[str, object]]:
    return logged(made, "access")


async def test_the_access_log_records_client_request_and_survived_outages(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def in_two_parts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await go_on.wait()
            writer.write(b"cd")

    async with http_tunnel(tmp_path, in_two_parts) as made:
        reader, writer = await made.connect()
        writer.write(b"GET /path?secret HTTP/1.1\r\nHost: a\r\n\r\n")
        go_on.set()
        assert await response(reader) == (200, b"abcd")
        go_on.clear()
        writer.write(GET)
        await head_of(reader)
        before = made.relay.connections
        made.relay.cut()
        await eventually(lambda: made.relay.connections > before, "the link is back")
        go_on.set()
        assert await reader.readexactly(4) == b"abcd"
        await eventually(lambda: len(access(made)) == 2, "both are logged")
        first, second = access(made)
        assert first["message"] == "GET a/path"
        assert (first["status"], first["bytes"], first["client"]) == (200, 4, HOST)
        assert first["provider"] == second["provider"] is not None
        assert (first["outage_survived"], second["outage_survived"]) == (False, True)


# -- who may come in, and where to


async def test_the_host_header_selects_the_service(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        made.scheme = "http"
        await made.target(polite)
        await made.serve("--route", "a=default", "--route", "*.b=other", "--queue-timeout", "0.2")
        await made.provide()
        reader, writer = await made.connect()
        statuses = []
        for host in (b"a", b"x.b", b"c", b"a"):
            writer.write(GET.replace(b"Host: a", b"Host: " + host))
            statuses.append((await response(reader))[0])
        assert statuses == [200, 503, 404, 200]


async def test_a_token_of_the_tokens_command_is_valid_until_it_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    argv = (sys.executable, "-m", "goreprox", "token", "new", "alice", "--auth-tokens", str(path))
    token = (await output_of(*argv)).strip()
    async with http_tunnel(tmp_path, polite, server=("--auth-tokens", str(path))) as made:
        reader, writer = await made.connect()
        authorised = GET[:-2] + f"X-Goreprox-Auth: {token}\r\n\r\n".encode()
        statuses = []
        for request in (GET, authorised, GET, authorised):
            writer.write(request)
            statuses.append((await response(reader))[0])
        path.write_text("")
        writer.write(authorised)
        statuses.append((await response(reader))[0])
        assert statuses == [401, 200, 401, 200, 401]
        assert "default" in await made.server.logged("token_refused")
        made.server.signal(signal.SIGTERM)
        assert await made.server.wait() == 0
        assert token not in str(made.server.log)


# -- ends


async def test_a_truncated_response_ends_with_a_reset(tmp_path: Path) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        framing = {"/a": b"Content-Length: 90\r\n", "/b": b"Transfer-Encoding: chunked\r\n"}[head.split(" ")[1]]
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n4\r\nsome\r\n")
        writer.close()

    async with http_tunnel(tmp_path, break_off) as made:
        for path in (b"/a", b"/b"):
            reader, writer = await made.connect()
            writer.write(GET.replace(b"/", path, 1))
            assert "200" in await head_of(reader)
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def reads_little(port: int, buffer: int) -> socket.socket:
    """Be a client whose kernel takes no more than so many bytes ahead."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
    return sock


async def test_a_response_is_streamed_while_its_request_is_still_sent(tmp_path: Path) -> None:
    size = 8 << 20

    async def respond_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()

    async with http_tunnel(tmp_path, respond_at_once) as made:
        loop = asyncio.get_running_loop()
        dice = random.Random(1)
        with await reads_little(made.port, 1 << 15) as sock:
            await loop.sock_sendall(sock, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)

            async def upload() -> None:
                left = size
                while left:
                    left -= (count := min(left, dice.choice((100, 1000, 3000, 20_000))))
                    await loop.sock_sendall(sock, bytes(count))
                    if dice.random() < 0.2:
                        await asyncio.sleep(0.001)

            async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
                tasks.create_task(upload(), name="upload")
                got = 0
                while got < size:
                    got += len(await loop.sock_recv(sock, dice.choice((2000, 10_000, 60_000))))
                    if dice.random() < 0.1:
                        await asyncio.sleep(0.01)  # a client that reads a little slower than the target writes


async def test_a_client_that_does_not_read_is_reset_when_its_upgraded_stream_is_lost(tmp_path: Path) -> None:
    lost = asyncio.Event()

    async def switch_and_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + bytes(16 << 20))
        await lost.wait()
        reset_now(writer)

    async with http_tunnel(tmp_path, switch_and_reset) as made:
        loop = asyncio.get_running_loop()
        with await reads_little(made.port, 4096) as sock:

            async def read_to_the_end() -> None:
                while await loop.sock_recv(sock, 1 << 20):
                    pass

            await loop.sock_sendall(sock, GET.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"))
            assert await asyncio.wait_for(loop.sock_recv(sock, 1), DEADLINE_S) == b"H"
            lost.set()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(read_to_the_end(), DEADLINE_S)


async def test_server_sent_events_arrive_one_by_one_and_a_disconnect_is_noticed(tmp_path: Path) -> None:
    left = asyncio.Event()
    said = asyncio.Event()

    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        try:
            while True:
                writer.write(b"data: 1\n\n")
                await asyncio.wait_for(said.wait(), DEADLINE_S)
                said.clear()
                await writer.drain()
        finally:
            left.set()

    async with http_tunnel(tmp_path, events) as made:
        reader, writer = await made.connect()
        writer.write(GET)
        await head_of(reader)
        for _ in range(3):
            async with asyncio.timeout(DEADLINE_S):
                assert await reader.readuntil(b"\n\n\r\n") == b"9\r\ndata: 1\n\n\r\n"
            said.set()
        writer.transport.abort()
        async with asyncio.timeout(DEADLINE_S):
            while not left.is_set():
                said.set()
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"])
@pytest.mark.parametrize("request_", [GET, POST])
async def test_a_client_that_disconnects_during_silence_frees_its_connection_and_its_target(
    tmp_path: Path, how: str, said: bytes, request_: bytes
) -> None:
    """As with long polling, or events that are rare."""
    waiting = 0

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        if (await head_of(reader)).startswith("GET /last"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        if request_ is POST:
            await reader.readexactly(2)
        writer.write(said)
        waiting += 1
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        waiting -= 1

    async with http_tunnel(tmp_path, wait, server=("--max-connections", "3")) as made:
        clients = [await made.connect() for _ in range(3)]
        for _, writer in clients:
            writer.write(request_)
        await eventually(lambda: waiting == 3, "all places are taken")
        for reader, writer in clients:
            if said:
                await head_of(reader)
            writer.close() if how == "closes" else reset_now(writer)
        await eventually(lambda: waiting == 0, "the target is told")
        reader, writer = await made.connect()
        writer.write(GET.replace(b"/", b"/last", 1))
        assert await response(reader) == (200, b"ok")


async def test_a_slow_reader_stalls_only_its_own_target(tmp_path: Path) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if (await head_of(reader)).startswith("GET /flood"):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while sent < 1 << 30:
                writer.write(block(1))
                await writer.drain()
                sent += 1 << 16
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    limits = ("--memory", "16", "--max-connections", "64")
    async with http_tunnel(tmp_path, flood, server=limits, provider=limits) as made:
        _, slow = await made.connect()
        slow.write(GET.replace(b"/", b"/flood", 1))
        last, level = -1, 0
        async with asyncio.timeout(DEADLINE_S):
            while level < 10:
                level, last = (level + 1, last) if sent == last and sent else (0, sent)
                await asyncio.sleep(0.05)
        assert sent < 256 << 20
        reader, writer = await made.connect()
        writer.write(GET)
        assert await response(reader) == (200, b"ok")


async def test_a_server_that_shuts_down_finishes_responses_first(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with http_tunnel(tmp_path, hold) as made:
        idle, bored = await made.connect()
        reader, writer = await made.connect()
        writer.write(GET)
        await eventually(lambda: len(made._writers) == 3, "the target has the request")
        made.server.signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            assert await idle.read() == b""
        bored.close()
        release.set()
        assert "Connection: close" in await head_of(reader)
        assert await reader.read() == b"ok"
        writer.close()
        assert await made.server.wait() == 0


@pytest.mark.programs
async def test_nginx_sees_exactly_the_requests_that_the_gateway_saw(tmp_path: Path) -> None:
    """Whatever a client tries to hide in a body, in a head that has two readings, or behind either."""
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    head = b"POST /page HTTP/1.1\r\nHost: a\r\n"
    post, get = "POST /page HTTP/1.1", "GET /hidden HTTP/1.1"
    tries = {
        head + b"Content-Length: %d\r\n\r\n%b" % (len(hidden), hidden): [post],
        head + b"Transfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden): [post],
        head + b"Content-Length: 0\r\n\r\n" + hidden: [post, get],
        head + b"Transfer-Encoding: CHUNKED\r\n\r\n0\r\nHost: 35\r\n\r\n" + hidden: [post, get],
        **{request + NEXT: [f"{request.split()[0].decode()} / HTTP/1.1", ADMIN] for request, _ in ONE_READING.values()},
    }

    async def statuses(made: Tunnel, request: bytes) -> list[bytes]:
        reader, writer = await made.connect()
        writer.write(request)
        writer.write_eof()
        async with asyncio.timeout(DEADLINE_S):
            return re.findall(rb"HTTP/1\.1 (\d{3}) ", await reader.read())

    (tmp_path / "page").write_text("a page\n")
    expected: list[str] = []
    async with (
        nginx(tmp_path, tmp_path, log=tmp_path / "requests") as port,
        tunnel_to(tmp_path, port, scheme="http") as made,
    ):
        for name, (status, request) in REFUSED.items():
            assert await statuses(made, request + NEXT) == [b"%d" % status], name
        for request, lines in tries.items():
            responses = 0
            async with asyncio.timeout(DEADLINE_S):
                while responses < len(lines):  # a response before the body is whole is the last
                    responses = len(await statuses(made, request))
                    assert 1 <= responses <= len(lines), request
                    expected += lines[:responses]
        for body in BODIES.values():  # of which nginx may see the beginning, and respond to that
            await statuses(made, head + b"Transfer-Encoding: chunked\r\n\r\n" + body + NEXT)
    seen = (tmp_path / "requests").read_text().splitlines()
    assert seen[: len(expected)] == expected
    assert set(seen[len(expected) :]) <= {post}
