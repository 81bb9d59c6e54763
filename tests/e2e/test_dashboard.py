"""The dashboard of real processes: every number moves by what it counts, and nobody gets in who should not."""

import asyncio
import contextlib
import datetime
import os
import pty
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from brokers import Link, PeerName, Role
from tests.e2e.roles import ANY, echoed
from tests.e2e.upgrading import run, upgraded
from tests.support.events import matching
from tests.support.forks import run_command
from tests.support.metrics import Scrape
from tests.support.processes import WAIT_S, Process, Tunnel, nothing_yet
from tests.support.sockets import HOST, closed_port, reset_now
from tests.support.tls import Authority
from tests.support.traffic import echo
from tests.support.waiting import eventually
from tests.support.web import fetch

NOBODY = 65534
EXPIRED = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
DASHBOARD = ("--dashboard", ANY)
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TOKEN = "0123456789abcdef"


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


async def port_of(process: Process, number: int = 1) -> int:
    """Return the port of a role's dashboard, of its `number`th one."""
    await eventually(lambda: process.events("dashboard") >= number, "the dashboard responds", deadline_s=WAIT_S)
    port = matching(process.log, "dashboard")[number - 1]["dashboard"]
    assert isinstance(port, int)
    return port


class Watched:
    """A dashboard that is asked again and again."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def value(self, name: str, /, **labels: str) -> float:
        return (await Scrape.of(self.port)).value(f"goreprox_{name}", **labels)

    async def until(self, what: Callable[[float], bool], name: str, /, **labels: str) -> float:
        """Wait for a value."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await self.value(name, **labels)
                if what(found):
                    return found
                await asyncio.sleep(0.05)

    async def is_(self, value: float, name: str, /, **labels: str) -> None:
        await self.until(lambda found: found == value, name, **labels)


async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(PAGE)


async def deploy(made: Tunnel, *server: str) -> Watched:
    """Start a server with a dashboard, and a provider of echo, web and a target that is down."""
    await made.target(page)
    web = made.target_port
    await made.target(echo)
    made.scheme = "tcp"
    listeners = [f"http://{ANY}=web", f"{ANY}=dead", f"{ANY}=closed", f"{ANY}=nobody"]
    listen = [word for each in listeners for word in ("--listen", each)]
    await made.serve(*listen, "--deny", f"closed={HOST}/32", *DASHBOARD, *server)
    dead = made._stack.enter_context(closed_port())
    await made.provide(f"web={HOST}:{web}", f"dead={HOST}:{dead}")
    return Watched(await port_of(made.server))


async def clients_port(made: Tunnel, index: int) -> int:
    ports = (await made.server.ready())["clients"]
    assert isinstance(ports, list)
    return int(ports[index])


async def ended(made: Tunnel, port: int) -> None:
    """Be a client that is reset, or whose connection ends."""
    reader, writer = await made.connect(port)
    with contextlib.suppress(ConnectionResetError):
        assert not await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()


@pytest.mark.long
async def test_streams_bytes_ends_and_refusals_move_by_what_they_count(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        watched = await deploy(made)
        for role in ("server", "provider"):
            assert await watched.value("up", role=role) == 1
            assert await watched.value("ready", role=role) == 1
            assert await watched.value("draining", role=role) == 0
            assert await watched.value("streams_open", role=role) == 0
            assert await watched.value("streams_total", role=role) == 0
            assert await watched.value("streams_limit", role=role) == 10_000
            assert time.time() - 600 < await watched.value("start_time_seconds", role=role) <= time.time()
        labels = (await Scrape.of(watched.port)).labels("goreprox_build_info", "build")
        assert labels <= {"pure Python", "compiled"} and len(labels) == 1
        client = await made.connect()
        await echoed(client, b"x" * 1000)
        for role in ("server", "provider"):
            await watched.is_(1, "streams_open", role=role)
            await watched.is_(1, "streams_total", role=role)
            await watched.is_(1000, "stream_sent_bytes_total", role=role)
            await watched.is_(1000, "stream_received_bytes_total", role=role)
            assert await watched.value("stream_ends_total", role=role) == 0
        client[1].close()
        for role in ("server", "provider"):
            await watched.is_(1, "stream_ends_total", role=role, code="done")
            assert await watched.value("streams_open", role=role) == 0
        await ended(made, await clients_port(made, 2))
        await watched.is_(1, "dial_failures_total", role="provider", service="dead")
        await watched.until(lambda found: found >= 1, "stream_ends_total", role="server", code="refused")
        await ended(made, await clients_port(made, 3))
        await watched.is_(1, "refused_clients_total", role="server")
        assert len((await Scrape.of(watched.port)).labels("goreprox_refused_clients_total", "cause")) == 1
        waiting = await made.connect(await clients_port(made, 4))
        await watched.is_(1, "waiting_clients", role="server")
        reset_now(waiting[1])
        await watched.is_(0, "waiting_clients", role="server")


@pytest.mark.long
async def test_outages_are_counted_with_their_duration_and_what_was_replayed(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        watched = await deploy(made)
        client = await made.connect()
        await echoed(client, b"before")
        for role in ("server", "provider"):
            for counter in ("outages", "resumes", "resume_seconds", "replayed_bytes"):
                assert await watched.value(f"{counter}_total", role=role) == 0
        made.relay.silence()
        client[1].write(b"lost on the way")
        await watched.is_(len(b"before" + b"lost on the way"), "stream_sent_bytes_total", role="server")
        made.relay.cut()
        made.relay.unsilence()
        assert await asyncio.wait_for(client[0].readexactly(15), WAIT_S) == b"lost on the way"
        for role in ("server", "provider"):
            await watched.is_(1, "outages_total", role=role)
            await watched.is_(1, "resumes_total", role=role)
            assert 0 < await watched.value("resume_seconds_total", role=role) < WAIT_S
        assert await watched.value("replayed_bytes_total", role="server") == 15
        client[1].close()


@pytest.mark.long
async def test_requests_are_counted_with_their_durations(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        watched = await deploy(made)
        port = await clients_port(made, 1)
        assert await watched.value("http_requests_total") == 0
        for _ in range(3):
            assert await fetch(port, "/", "Host: a", "Connection: close") == (200, "ok")
        assert (await fetch(port, "/", "Host: a", "Host: b", "Connection: close"))[0] == 400
        await watched.is_(3, "http_requests_total", service="web", status="200")
        await watched.is_(1, "http_requests_total", status="400")
        duration = "http_request_duration_seconds"
        assert await watched.value(f"{duration}_count", service="web") == 3
        assert await watched.value(f"{duration}_bucket", service="web", le="+Inf") == 3
        assert 0 < await watched.value(f"{duration}_sum", service="web") < WAIT_S


async def test_peers_paths_links_and_messages_are_those_of_the_moment(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        watched = await deploy(made)
        await watched.is_(1, "broker_peers", peer_role="provider")
        assert await watched.value("broker_peers", peer_role="edge") == 1
        assert await watched.value("service_providers", service="web") == 1
        assert await watched.value("service_providers", service="nobody") == 0
        assert await watched.value("peers", role="provider", state="up") == 1
        assert await watched.value("peers", role="server", state="down") == 0
        where = f"{HOST}:{made.relay.port}"
        assert await watched.value("link_up", role="provider", broker=where) == 1
        assert await watched.value("path_in_use", role="provider", broker=where) == 1
        client = await made.connect()
        before = await watched.value("broker_messages_total")
        await echoed(client, b"measured")
        await watched.until(lambda found: found > before, "broker_messages_total")
        await watched.until(lambda found: 0 < found < 1, "path_round_trip_seconds", role="provider", broker=where)
        made.relay.refusing = True
        made.relay.cut()
        await watched.is_(0, "link_up", role="provider", broker=where)
        await watched.is_(1, "peers", role="server", state="down")
        assert await watched.value("peers", role="server", state="up") == 0
        await watched.is_(0, "service_providers", service="web")
        assert "goreprox_path_in_use" not in {each.name for each in (await Scrape.of(watched.port)).samples}
        client[1].close()


@pytest.mark.long
async def test_messages_to_nobody_are_counted_as_dropped(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        watched = await deploy(made)
        before = await watched.value("broker_dropped_messages_total")
        name = PeerName(Role.PROVIDER, "stranger", secrets.token_bytes(16))
        link = Link(name, {}, HOST, await made.server.port("providers"), Silent())
        link.start()
        await eventually(lambda: link.up, "it is a peer")
        assert link.send(bytes(17), [b"to nobody"])
        await watched.is_(before + 1, "broker_dropped_messages_total")
        await link.close(linger_s=0)


class Silent:
    """Receives for a link, and does nothing with it."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


async def test_memory_that_a_stopped_reader_holds_shows(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        watched = await deploy(made)
        assert await watched.value("memory_pool_bytes", role="server") == 128 << 20
        _, writer = await made.connect()
        writer.write(bytes(32 << 20))  # it echoes, and nobody reads that
        await watched.until(lambda found: found > 0, "memory_pool_used_bytes", role="server")


@pytest.mark.long
async def test_the_expiry_of_a_certificate_follows_its_file(tmp: Path) -> None:
    authority = Authority(tmp)
    async with nothing_yet(tmp) as made:
        watched = await deploy(made, "--listen", f"https://{ANY}=web", *authority.options)
        expires = "certificate_expiry_timestamp_seconds"
        assert await watched.value(expires, option="tls-cert", file=str(authority.cert)) > time.time()
        short = authority.ca.issue_cert("a.test", not_after=EXPIRED)
        authority.cert.write_bytes(b"".join(blob.bytes() for blob in short.cert_chain_pems))
        authority.key.write_bytes(short.private_key_pem.bytes())
        await watched.is_(EXPIRED.timestamp(), expires, file=str(authority.cert))


async def test_a_draining_or_stopped_process_is_seen_as_such(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        watched = await deploy(made)
        client = await made.connect()
        await echoed(client, b"stays")
        made.provider.signal(signal.SIGSTOP)
        await watched.is_(0, "up", role="provider")
        assert await watched.value("ready", role="provider") == 0
        assert await fetch(watched.port, "/live") == (503, "not live\n")
        made.provider.signal(signal.SIGCONT)
        await watched.is_(1, "up", role="provider")
        made.provider.signal(signal.SIGTERM)
        await watched.is_(1, "draining", role="provider")
        assert await watched.value("ready", role="provider") == 0
        assert await fetch(watched.port, "/ready") == (503, "not ready\n")
        assert await fetch(watched.port, "/live") == (200, "live\n")
        await echoed(client, b"to the last")
        client[1].close()
        await made.provider.wait()


# Its life.


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def gone(port: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await fetch(port, "/live")
            except (ConnectionError, AssertionError):
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_dashboard_ends_with_its_role_however_that_ends(tmp: Path, number: signal.Signals) -> None:
    async with nothing_yet(tmp) as made:
        broker = await made.start("broker", "--providers", ANY, "--edges", ANY, *DASHBOARD)
        port = await port_of(broker)
        assert await fetch(port, "/ready") == (200, "ready\n")
        broker.signal(number)
        await gone(port)


@pytest.mark.long
async def test_a_dashboard_that_fails_is_started_again_and_its_role_goes_on(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        broker = await made.start("broker", "--providers", ANY, "--edges", ANY, *DASHBOARD)
        await port_of(broker)
        (child,) = children(broker.process.pid)
        os.kill(child, signal.SIGKILL)
        assert await fetch(await port_of(broker, 2), "/ready") == (200, "ready\n")
        assert broker.events("dashboard_ended") == 1
        broker.signal(signal.SIGTERM)
        assert await broker.wait() == 0


@pytest.mark.long
async def test_an_upgrade_starts_the_dashboard_anew_and_leaves_no_child(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo, *DASHBOARD)
        watched = Watched(await port_of(made.provider))
        client = await made.connect()
        await echoed(client, b"before")
        await watched.is_(6, "stream_sent_bytes_total", role="provider")
        await upgraded(tmp, 1)
        watched = Watched(await port_of(made.provider, 2))
        await echoed(client, b"after")
        await watched.is_(11, "stream_sent_bytes_total", role="provider")
        assert len(children(made.provider.process.pid)) == 1
        client[1].close()
        made.provider.signal(signal.SIGTERM)
        assert await made.provider.wait() == 0


@pytest.mark.long
async def test_workers_have_one_dashboard_for_all(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        broker = await made.start("broker", "--providers", ANY, "--edges", ANY)
        with closed_port() as listen:
            where = ("--listen", f"{HOST}:{listen}", "--broker", f"{HOST}:{await broker.port('edges')}")
            edge = await made.start("edge", "--workers", "2", *where, *DASHBOARD)
            watched = Watched(await port_of(edge))
            await watched.is_(2, "ready", role="edge")
            assert (await Scrape.of(watched.port)).labels("goreprox_up", "slot") == {"0", "1"}
            edge.signal(signal.SIGTERM)
            assert await edge.wait() == 0


async def test_the_command_serves_what_runs_until_a_signal(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await made.start("broker", "--providers", ANY, "--edges", ANY)
        command = ("-m", "goreprox", "dashboard", "--listen", ANY, "--runtime-dir", str(tmp / "run"), "--log-json")
        started = await asyncio.create_subprocess_exec(
            sys.executable, *command, stderr=asyncio.subprocess.PIPE, env={**os.environ, "GOREPROX_LISTEN": "1"}
        )
        process = Process(started)
        watched = Watched(await port_of(process))
        assert await watched.value("up", role="broker") == 1
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_the_command_prints_a_url_that_opens_the_page_on_a_terminal_and_when_it_is_asked_for_one(
    tmp: Path,
) -> None:
    where = ("--runtime-dir", str(tmp / "run"))
    terminal, child = pty.openpty()
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "goreprox", "dashboard", "--listen", ANY, *where, "--log-json"),
        stdout=child,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(child)
    process = Process(started)
    port = await port_of(process)
    printed = await asyncio.to_thread(os.read, terminal, 4096)
    os.close(terminal)
    code, out, err = await run_command(tmp, "dashboard", "invite", *where)
    assert (code, err) == (0, "")
    for url in (printed.decode().split()[-1], out.strip()):
        origin, _, secret = url.partition("/#")
        assert origin == f"http://{HOST}:{port}"
        async with httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as http:
            sent = await http.post(f"{origin}/api/session", json={"secret": secret}, headers={"Origin": origin})
            assert sent.status_code == 200
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    code, _, err = await run_command(tmp, "dashboard", "invite", *where)
    assert code == 1
    assert "no dashboard runs in" in err


# Who is not to get in.


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_gets_neither_metrics_nor_the_token_nor_to_the_processes(tmp: Path) -> None:
    tmp.chmod(0o755)
    token = tmp / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    async with nothing_yet(tmp) as made:
        server = await made.serve(*DASHBOARD, "--dashboard-token-file", str(token))
        port = await port_of(server)
        controls = list((tmp / "run").glob("*.sock"))
        assert len(controls) == 2

        async def tried(code: str) -> str:
            done = await asyncio.to_thread(
                subprocess.run,
                [str(Path(sys.executable).resolve()), "-c", code],  # our environment may be for root alone
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
            )
            return done.stdout + done.stderr

        for control in controls:
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(control)!r})"
            assert "PermissionError" in await tried(connect)
        assert "PermissionError" in await tried(f"print(open({str(token)!r}).read())")
        ask = f"import urllib.request; print(urllib.request.urlopen('http://{HOST}:{port}/metrics').read())"
        assert "401" in await tried(ask)
        assert "goreprox_up" not in await tried(ask)
        assert "401" in await tried(ask.replace("/metrics", "/api/streams"))
        assert "401" in await tried(ask.replace("/metrics", "/api/live"))
        invite = ["dashboard", "invite", "--runtime-dir", str(tmp / "run")]
        code = f"import sys; sys.path[:] = {sys.path!r}; from goreprox.cli.main import main; sys.exit(main({invite!r}))"
        assert "another user's" in await tried(code)
        authorized = await Scrape.of(port, f"Authorization: Bearer {TOKEN}")
        assert authorized.value("goreprox_up") == 1


async def test_no_other_address_of_this_machine_leads_to_a_dashboard_at_loopback(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        broker = await made.start("broker", "--providers", ANY, "--edges", ANY, *DASHBOARD)
        port = await port_of(broker)
        with pytest.raises(ConnectionRefusedError):
            await fetch(port, "/metrics", host="127.0.0.2")


async def test_a_dashboard_for_other_machines_needs_a_token(tmp: Path) -> None:
    process = await Process.start(tmp, "broker", "--providers", ANY, "--edges", ANY, "--dashboard", "0")
    assert await process.wait() == 2
    assert "name a file with a token by --dashboard-token-file" in str(process.log[-1]["message"])
    token = tmp / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    async with nothing_yet(tmp) as made:
        given = ("--dashboard", "0.0.0.0:0", "--dashboard-token-file", str(token))
        broker = await made.start("broker", "--providers", ANY, "--edges", ANY, *given)
        port = await port_of(broker)
        assert (await fetch(port, "/metrics", host="127.0.0.2"))[0] == 401
        assert (await fetch(port, "/metrics", f"Authorization: Bearer {TOKEN}", host="127.0.0.2"))[0] == 200
        assert (await fetch(port, "/ready", host="127.0.0.2"))[0] == 200
