"""Browsers and programs of others that log in, through real processes, their reloads and upgrades."""

import asyncio
import sys
from pathlib import Path

import pytest
from aiohttp import web

from tests.e2e.reloading import apply, configure
from tests.e2e.upgrading import BASIC, start, upgradable, upgrade
from tests.support.processes import nothing_yet
from tests.support.programs import output_of
from tests.support.sockets import HOST, closed_port
from tests.support.tls import Authority
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S
from tests.support.web import answered, chromium, curl, fetch, head_of, polite

PAGE = """<!DOCTYPE html><title>private</title><script>
const socket = new WebSocket(`wss://${location.host}/socket`)
let seen = 0
function see(text) {
  document.title += ` ${text}`
  if (++seen == 2) socket.send("seen")
}
socket.onmessage = event => see(event.data)
socket.onopen = () => fetch("/data").then(async response => see(await response.text()))
</script><img src="/done">"""


CODE = ("--output", "/dev/null", "--write-out", "%{http_code}")


class Site:
    """A target with a page that uses `fetch` and a WebSocket, and what it was sent."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        """Of the last request for each path."""
        self._seen = asyncio.Event()
        self.app = web.Application()
        for path in ("login", "", "data", "socket", "done"):
            self.app.router.add_get(f"/{path}", self._serve)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.headers[request.path] = str(dict(request.headers))
        match request.path:
            case "/login":
                return web.Response(status=302, headers={"Location": f"https://{request.host}/"})
            case "/":
                return web.Response(text=PAGE, content_type="text/html", headers={"Set-Cookie": "theirs=1"})
            case "/data":
                return web.Response(text="fetched")
            case "/socket":
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                await socket.send_str("from the socket")
                assert await socket.receive_str() == "seen"
                self._seen.set()
                await socket.receive()
                return socket
            case _:  # what the load of the page waits for
                await self._seen.wait()
                return web.Response(status=404)

    def begin(self) -> None:
        """Forget what was sent so far."""
        self.headers.clear()
        self._seen.clear()


async def new_token(path: Path, name: str = "alice") -> str:
    argv = (sys.executable, "-m", "goreprox", "token", "new", name, "--auth-tokens", str(path))
    return (await output_of(*argv)).strip()


@pytest.mark.programs
@pytest.mark.long
async def test_chromium_logs_in_and_its_cookie_is_enough_for_fetch_and_a_websocket(tmp_path: Path) -> None:
    authority, target, tokens = Authority(tmp_path), Site(), tmp_path / "tokens.toml"
    token = await new_token(tokens)
    runner = web.AppRunner(target.app)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    async with nothing_yet(tmp_path) as made:
        made.scheme = "https"
        await made.serve(*authority.options, "--auth-tokens", str(tokens), "--auth-basic")
        await made.provide(target=runner.addresses[0][1])
        where = f"{HOST}:{made.port}"
        for url in f"https://me:{token}@{where}/login", f"https://{where}/":  # then a new process, with its cookies
            target.begin()
            page = await output_of(*chromium(tmp_path, authority.fingerprint, url), deadline_s=120)
            assert "fetched" in page and "from the socket" in page
            assert {"/", "/data", "/socket", "/done"} <= target.headers.keys()
            for told in target.headers.values():
                assert "goreprox=" not in told and "'Authorization'" not in told
            assert "theirs=1" in target.headers["/socket"]
    await runner.cleanup()


@pytest.mark.long
@pytest.mark.programs
async def test_a_cookie_is_valid_in_every_worker_and_edge_and_after_an_upgrade_until_its_token_is_revoked(
    tmp: Path,
) -> None:
    tokens, jar = tmp / "tokens.toml", tmp / "jar"
    token = await new_token(tokens)
    login = ("--auth-tokens", str(tokens), "--auth-basic")
    async with nothing_yet(tmp) as made:
        with closed_port() as first, closed_port() as second:
            target = await made.target(polite)
            broker = await made.start("broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0")
            await made.start("provider", f"web={HOST}:{target}", "--server", f"{HOST}:{await broker.port('providers')}")
            brokers = ("--broker", f"{HOST}:{await broker.port('edges')}")
            await made.start("edge", "--listen", f"http://{HOST}:{first}=web", "--name", "one", *brokers, *login)
            parent = await start(
                made,
                *("edge", "--listen", f"http://{HOST}:{second}=web", "--name", "two", "--workers", "2"),
                *(*brokers, *login),
            )
            await parent.logged("ready")
            url = f"http://{HOST}:{first}/page"
            assert await output_of(*curl("--user", f":{token}", "--cookie-jar", str(jar), url)) == "/page"
            assert await output_of(*curl("--cookie", str(jar), url)) == "/page"
            name, value = jar.read_text().split()[-2:]
            assert name == "goreprox"

            async def statuses() -> set[int]:
                fields = (f"Host: {HOST}", f"Cookie: {name}={value}", "Connection: close")
                return {(await fetch(second, "/", *fields))[0] for _ in range(20)}  # of both workers

            assert await statuses() == {200}
            code, _, errors = await upgrade(tmp, "--role", "edge", "--name", "two")
            assert code == 0, errors
            assert await statuses() == {200}
            tokens.write_text("")
            assert await statuses() <= {401, 429}
            assert await output_of(*curl("--cookie", str(jar), *CODE, url)) == "401"
            assert await output_of(*curl("--user", f":{token}", *CODE, url)) == "401"


class Guard:
    """An authentication service that knows one session, and can be held."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """The header sections of all questions."""
        self.reached, self.released = asyncio.Event(), asyncio.Event()
        self.released.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await head_of(reader)
        self.asked.append(question)
        self.reached.set()
        await self.released.wait()
        if "session=alice" in question:
            writer.write(b"HTTP/1.1 200 OK\r\nX-User: alice\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\nSet-Cookie: state=1\r\n\r\n")
        writer.close()


async def tells(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond with the header section of each request."""
    while True:
        head = await head_of(reader)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(head)}\r\n\r\n{head}".encode())


@pytest.mark.programs
async def test_curl_comes_in_only_as_an_authentication_service_says_and_a_reload_changes_that(tmp: Path) -> None:
    guard, hanging = Guard(), Guard()
    hanging.released.clear()
    async with nothing_yet(tmp) as made:
        target = await made.target(tells)
        urls = [f"site=http://{HOST}:{await made.target(guard.serve)}/verify"]
        urls += [f"late=http://{HOST}:{await made.target(hanging.serve)}/"]
        with closed_port() as nobody:
            urls += [f"gone=http://{HOST}:{nobody}/"]
            services = ("site", "late", "gone", "open")
            plain = {
                "listen": [f"http://{HOST}:0"],
                "providers": f"{HOST}:0",
                "route": [f"{service}.test={service}" for service in services],
                "queue_timeout": 100,
            }
            configure(tmp, "server", **plain, auth_url=urls, auth_response_header=["X-User"])
            server = await made.start("server", "--config", "server.toml")
            port = await server.port("clients")
            where = f"{HOST}:{await server.port('providers')}"
            await made.start("provider", *(f"{service}={HOST}:{target}" for service in services), "--server", where)

            def ask(service: str, *args: str) -> tuple[str, ...]:
                return curl(*args, "--resolve", f"{service}.test:{port}:{HOST}", f"http://{service}.test:{port}/a?b")

            seen = await output_of(*ask("site", *CODE[:2], "--dump-header", "-"))
            assert seen.startswith("HTTP/1.1 302 Found") and "Location: http://login.test/" in seen
            assert "Set-Cookie: state=1" in seen
            seen = await output_of(*ask("site", "--cookie", "session=alice", "--header", "X-User: root"))
            assert "X-User: alice" in seen and "root" not in seen and "Cookie: session=alice" in seen
            assert "X-Forwarded-Uri: /a?b" in guard.asked[-1] and "root" not in guard.asked[-1]
            late = asyncio.create_task(output_of(*ask("late", *CODE)))
            await asyncio.wait_for(hanging.reached.wait(), DEADLINE_S)
            assert "X-User" not in await output_of(*ask("open", "--header", "X-User: root"))  # which waits for nobody
            assert await output_of(*ask("gone", *CODE)) == "503"
            hanging.released.set()
            assert await late == "302"
            await apply(tmp, "server", **plain, auth_url=[f"late={urls[0][5:]}"])
            assert await output_of(*ask("site", *CODE)) == "200"
            assert await output_of(*ask("gone", *CODE)) == "200"
            assert await output_of(*ask("late", *CODE)) == "302"
            assert "X-User: root" in await output_of(*ask("open", "--header", "X-User: root"))


@pytest.mark.long
async def test_a_request_that_is_asked_about_goes_on_in_an_upgrade_and_so_does_its_connection(tmp: Path) -> None:
    guard = Guard()
    guard.released.clear()
    async with nothing_yet(tmp) as outside:
        url = f"web=http://{HOST}:{await outside.target(guard.serve)}/"
        options = (*BASIC, "--drain", "3600", "--auth-url", url)
        async with upgradable(tmp, "server", echo, *options, web=polite) as made:
            client = await made.connect(made.web)
            request = b"GET /%b HTTP/1.1\r\nHost: a\r\nCookie: session=alice\r\n\r\n"
            client[1].write(request % b"before")
            await asyncio.wait_for(guard.reached.wait(), DEADLINE_S)
            upgrading = asyncio.create_task(made.upgraded())
            await made.entrance.logged("upgrading")
            guard.released.set()
            await answered(client, b"before")
            await upgrading
            client[1].write(request % b"after")
            await answered(client, b"after")
            assert len(guard.asked) == 2
            client[1].close()
