"""A role that is ready has imported all that it will ever need: it can do without the files of Python."""

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from goreprox.cli import main as cli
from goreprox.process.log import ACCESS
from tests.e2e.roles import whole
from tests.support.events import matching
from tests.support.forks import run_command
from tests.support.processes import Process, Tunnel, logging_to, nothing_yet
from tests.support.relay import Relay
from tests.support.sockets import HOST, closed_port
from tests.support.tls import Authority, Client
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

NOTING = Path(__file__).parents[1] / "support/imports"
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def start(made: Tunnel, *arguments: str) -> Process:
    """Start a role whose imports are noted from `ready` on."""
    noted = made.tmp / "imports"
    noted.mkdir(exist_ok=True)
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "goreprox", *arguments, *logging_to(made.tmp)),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(NOTING), "IMPORTS": str(noted)},
        cwd=made.tmp,
    )
    process = Process(started)
    made._stack.push_async_callback(process.stop)
    await process.ready()
    return process


async def imported(made: Tunnel, process: Process) -> list[str]:
    """Stop a role; return what it and its workers have imported since they were ready."""
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    pids = [process.process.pid, *(entry["pid"] for entry in matching(process.log, "worker_ready"))]
    return [name for pid in pids for name in json.loads((made.tmp / f"imports/{pid}").read_text(encoding="utf-8"))]


def workers(parent: Process, event: str) -> set[object]:
    """Return the workers that have logged this."""
    return {entry["worker"] for entry in matching(parent.log, event)}


async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(PAGE)


async def get(made: Tunnel, port: int) -> None:
    reader, writer = await made.connect(port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), DEADLINE_S)).endswith(b"ok")
    writer.close()


async def reload(made: Tunnel, *files: str) -> None:
    """Reload all roles with each of these files."""
    for text in files:
        (made.tmp / "goreprox.toml").write_text(text)
        await ask(made, "reload")


async def ask(made: Tunnel, command: str) -> None:
    """Run a command for all roles, whatever they reply."""
    await run_command(made.tmp, command, "--runtime-dir", str(made.tmp / "run"))


def _reloaded(process: Process, *, failed: int, done: int) -> bool:
    return (process.events("reload_failed"), process.events("reloaded")) == (failed, done)


@pytest.mark.long
async def test_a_server_and_a_provider_import_nothing_once_they_are_ready(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with nothing_yet(tmp_path) as made:
        raw, web, guard = await made.target(echo), await made.target(page), await made.target(page)
        server = await start(
            made,
            *("server", "--listen", f"{HOST}:0=raw", "--listen", f"http://{HOST}:0=web"),
            *("--listen", f"https://{HOST}:0=web", *authority.options, "--auth-url", f"web=http://localhost:{guard}/"),
            *("--providers", f"{HOST}:0", "--state-dir", str(tmp_path / "state")),
        )
        clients = (await server.ready())["clients"]
        assert isinstance(clients, list)
        relay = Relay(await server.port("providers"))
        await relay.start()
        made._stack.push_async_callback(relay.stop)
        provider = await start(
            made,
            *("provider", f"raw=localhost:{raw}", f"web={web}", "--server", f"localhost:{relay.port}"),
            *("--join-file", str(tmp_path / "state/join/default.join")),
        )
        await whole(made, clients[0])
        await get(made, clients[1])
        reader, writer = await made.connect(clients[2])
        secure = await Client(reader, writer, authority.trusting()).shake_hands()
        await secure.write(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
        assert (await secure.read_all()).endswith(b"ok")
        writer.close()
        relay.cut()
        await eventually(lambda: server.events("peer_up") > 1, "the link is back")
        await whole(made, clients[0])
        _, status, _ = await run_command(tmp_path, "status", "--json", "--runtime-dir", str(tmp_path / "run"))
        assert len(json.loads(status)) == 2
        await reload(
            made,
            *("x = 1", "size = 1", "[server]\nx = 1", 'grace = "60q"\n[status]\nrole = "x"\n[demo]\nx = 1'),
            f'[server]\nauth-tokens = "{tmp_path}/none"\n[provider]\nweight = 0',
            f'[server]\nvia = true\nallow = ["web=127.0.0.1"]\ntls-client-ca = "{authority.ca_file}"\n'
            '[provider]\nweight = 2\nproxy-protocol = "v1"',
            "",
        )
        (made.tmp / "goreprox.toml").write_text("x = 1")
        await ask(made, "upgrade")
        await provider.logged("upgrade_failed")
        for process in (server, provider):
            await eventually(functools.partial(_reloaded, process, failed=5, done=2), "all reloads are logged")
        assert not await imported(made, provider)
        assert not await imported(made, server)


async def test_a_broker_and_an_edge_import_nothing_once_they_are_ready(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        target, state = await made.target(echo), str(tmp_path / "state")
        broker = await start(made, "broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0", "--state-dir", state)
        for role in ("edge", "provider"):
            assert cli.main(["keys", "add", f"new-{role}", "--role", role, "--state-dir", state]) == 0
        edges, providers = [await broker.port(kind) for kind in ("edges", "providers")]
        join = {role: str(tmp_path / f"state/join/new-{role}.join") for role in ("edge", "provider")}
        edge = await start(
            made, "edge", "--listen", f"{HOST}:0", "--broker", f"{HOST}:{edges}", "--join-file", join["edge"]
        )
        provider = await start(
            made, "provider", str(target), "--server", f"{HOST}:{providers}", "--join-file", join["provider"]
        )
        await whole(made, await edge.port("clients"))
        for process in (provider, edge, broker):
            assert not await imported(made, process)


@pytest.mark.long
async def test_workers_and_their_parent_import_nothing_once_they_are_ready(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        raw, web = await made.target(echo), await made.target(page)
        broker = await start(made, "broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0", "--insecure")
        edges, providers = [await broker.port(kind) for kind in ("edges", "providers")]
        await start(made, "provider", f"raw={raw}", f"web={web}", "--server", f"{HOST}:{providers}", "--insecure")
        with closed_port() as port, closed_port() as web_port:
            listen = ("--listen", f"{HOST}:{port}=raw", "--listen", f"http://{HOST}:{web_port}=web")
            parent = await start(made, "edge", *listen, "--workers", "2", "--broker", f"{HOST}:{edges}", "--insecure")
            await eventually(lambda: parent.events("ready"), "all workers are ready")
            while any(len(workers(parent, event)) < 2 for event in ("stream_ended", ACCESS)):
                await whole(made, port)
                await get(made, web_port)
            await reload(made, "[edge]\nx = 1", "[edge]\ndrain = 3", '[edge]\nauth-tokens = "none"', "memory = 'x'")
            await parent.logged("reloaded")
            assert not await imported(made, parent)
