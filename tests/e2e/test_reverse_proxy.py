"""nginx in front of a server, configured as docs/reverse-proxy.md prints it: only files and ports are of the test."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from aiohttp import WSMsgType, web
from websockets.asyncio.client import connect

from tests.support.processes import nothing_yet
from tests.support.programs import daemon, output_of, program, reserved_port
from tests.support.sockets import HOST
from tests.support.tls import Authority
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import curl

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs/reverse-proxy.md").read_text(encoding="utf-8")
SITE: Final = "example.org"


def configuration(replacements: dict[str, str]) -> str:
    """Return the configuration of nginx that the page prints, with other files and ports, each of which it has."""
    section = PAGE.split("\n## nginx\n")[1].split("\n## ")[0]
    text = "\n".join(line.removeprefix("    ") for line in section.splitlines() if line.startswith("    "))
    for printed, ours in replacements.items():
        assert printed in text, printed
        text = text.replace(printed, ours)
    return text


class Application:
    """A target that says what it was asked, and notes the paths."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        if request.headers.get("Upgrade") == "websocket":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                assert message.type is WSMsgType.TEXT
                await socket.send_str(f"{request.headers['X-Forwarded-Proto']}: {message.data}")
            return socket
        told = {name: value for name, value in request.headers.items() if "orwarded" in name}
        version = f"{request.version.major}.{request.version.minor}"
        return web.json_response({"path": request.path, "http": version, "filler": "a" * 4096, **told})


@contextlib.asynccontextmanager
async def application() -> AsyncIterator[tuple[Application, int]]:
    made = Application()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.serve)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    try:
        yield made, runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say what the PROXY header of the provider says."""
    writer.write(await reader.readline())
    writer.close()


@pytest.mark.programs
async def test_nginx_in_front_speaks_http_2_compresses_caches_and_serves_files(tmp_path: Path) -> None:
    authority = Authority(tmp_path, SITE)
    (tmp_path / "static").mkdir()
    (tmp_path / "static/file").write_text("from the disk")
    async with nothing_yet(tmp_path) as made, application() as (app, target):
        ssh = await made.target(greet)
        listen = ("--listen", f"http://{HOST}:0=web", "--listen", f"{HOST}:0=ssh", "--providers", f"{HOST}:0")
        trust = ("--trusted-proxies", HOST, "--proxy-protocol-from", f"ssh={HOST}")
        server = await made.start("server", *listen, *trust)
        ports = (await server.ready())["clients"]
        assert isinstance(ports, list)
        link = f"{HOST}:{await server.port('providers')}"
        for service, args in ((f"web={target}", ()), (f"ssh={ssh}", ("--proxy-protocol", "v1"))):
            await made.start("provider", service, "--server", link, *args)
        await eventually(lambda: server.events("peer_up") == 2, "both providers are there")

        with reserved_port() as plain, reserved_port() as secure, reserved_port() as raw:
            temporary = " ".join(
                f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            text = configuration(
                {
                    "events {}": f"daemon off; master_process off; error_log stderr; pid {tmp_path}/pid; events {{}}",
                    "http {": f"http {{ access_log off; {temporary}",
                    "/var/cache/nginx": str(tmp_path),
                    "listen 80;": f"listen {HOST}:{plain};",
                    "listen 443 ": f"listen {HOST}:{secure} ",
                    "listen 22022;": f"listen {HOST}:{raw};",
                    "127.0.0.1:8080": f"{HOST}:{ports[0]}",
                    "127.0.0.1:2222": f"{HOST}:{ports[1]}",
                    f"/etc/letsencrypt/live/{SITE}/fullchain.pem": str(authority.cert),
                    f"/etc/letsencrypt/live/{SITE}/privkey.pem": str(authority.key),
                    "/srv/www": str(tmp_path),
                }
            )
            (tmp_path / "nginx.conf").write_text(text)
            argv = (program("nginx"), "-e", "stderr", "-c", str(tmp_path / "nginx.conf"))
            async with daemon(tmp_path, secure, *argv):
                await _ask(authority, app, plain=plain, secure=secure, raw=raw)


async def _ask(authority: Authority, app: Application, *, plain: int, secure: int, raw: int) -> None:
    there = ("--resolve", f"{SITE}:{secure}:{HOST}", "--cacert", str(authority.ca_file))

    async def fetched(path: str, *args: str) -> str:
        url = f"https://{SITE}:{secure}{path}"
        return await output_of(*curl(*there, "--include", *args, url), deadline_s=DEADLINE_S)

    moved = await output_of(*curl("--include", "--header", f"Host: {SITE}", f"http://{HOST}:{plain}/a"))
    assert "301" in moved.splitlines()[0] and f"Location: https://{SITE}/a" in moved

    claims = ("--header", "X-Forwarded-For: 6.6.6.6", "--header", "Forwarded: for=6.6.6.6")
    page = await fetched("/page", "--http2", *claims)
    assert page.startswith("HTTP/2 200")
    assert '"http": "1.1"' in page and "6.6.6.6" not in page, "the target is told what nginx says"
    assert f'"X-Forwarded-For": "{HOST}, {HOST}"' in page and '"X-Forwarded-Proto": "https"' in page
    assert re.search(r'"Forwarded": "[^\n]*proto=https', page)

    assert "content-encoding: gzip" in await fetched("/page", "--compressed")
    assert '"path": "/v2/users"' in await fetched("/api/users")
    assert (await fetched("/static/file")).endswith("from the disk")
    states = [re.findall("x-cache-status: (.+)", await fetched("/assets/logo"))[0].strip() for _ in range(2)]
    assert states == ["MISS", "HIT"]
    assert app.paths == ["/page", "/page", "/v2/users", "/assets/logo"]

    context: ssl.SSLContext = authority.trusting()
    url = f"wss://{SITE}:{secure}/socket"
    async with connect(url, ssl=context, host=HOST, port=secure, open_timeout=DEADLINE_S, proxy=None) as socket:
        await socket.send("hello")
        assert await asyncio.wait_for(socket.recv(), DEADLINE_S) == "https: hello"

    reader, writer = await asyncio.open_connection(HOST, raw)
    writer.write(b"\n")
    near = writer.get_extra_info("sockname")[1]
    line = await asyncio.wait_for(reader.readline(), DEADLINE_S)
    assert line.startswith(f"PROXY TCP4 {HOST} {HOST} {near} {raw}".encode()), "the client that nginx had, and its port"
    writer.close()
    await writer.wait_closed()
