"""Providers and edges behind proxies: connections survive, errors name the hop, secrets stay hidden."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import upgrading
from tests.e2e.roles import echoed, start_broker, whole
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.proxies import HTTP, SECRETS, SOCKS, OwnProxy, proxy, url_of
from tests.support.relay import Relay
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo
from tests.support.waiting import eventually

KINDS = (*SOCKS, *HTTP)
WITH_PASSWORD = ("microsocks", *HTTP)
SECRET = "Tr0ub4dor"


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket, and that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


async def provide(made: Tunnel, *args: str, env: dict[str, str] | None = None, connect: bool = True) -> Process:
    """Start a provider of the target at the server itself."""
    server = f"{HOST}:{await made.server.port('providers')}"
    made.provider = await Process.start(
        made.tmp, "provider", f"{HOST}:{made.target_port}", "--server", server, *args, env=env
    )
    made._stack.push_async_callback(made.provider.stop)
    await made.provider.ready()
    if connect:
        await eventually(lambda: made.provider.events("peer_up"), "provider connected")
    return made.provider


@pytest.mark.programs
@pytest.mark.parametrize(
    ("kind", "password", "remote"),
    [*((kind, False, False) for kind in KINDS), *((kind, True, False) for kind in WITH_PASSWORD)]
    + [(kind, False, True) for kind in SOCKS],
)
async def test_connections_go_through_a_proxy_and_survive_its_outage(
    tmp: Path, kind: str, password: bool, remote: bool
) -> None:
    async with proxy(kind, tmp, password=password) as port, nothing_yet(tmp) as made:
        before = Relay(port)
        await before.start()
        made._stack.push_async_callback(before.stop)
        await made.target(echo)
        await made.serve()
        url = url_of(kind, before.port, secret=SECRETS[kind] if password else "", remote=remote)
        await provide(made, env={"GOREPROX_PROXY": url})
        client = await made.connect()
        await echoed(client, b"before")
        await whole(made, made.port)
        for fin in (False, True):
            ups = made.provider.events("link_up")
            before.cut(fin=fin)
            await eventually(lambda: made.provider.events("link_up") > ups, "it is connected again")  # noqa: B023
            await echoed(client, b"after")
        assert before.connections >= 3


@pytest.mark.programs
@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_is_down_behind_a_proxy_is_reported_as_that(tmp: Path, kind: str) -> None:
    with closed_port() as closed:
        async with proxy(kind, tmp) as port, nothing_yet(tmp) as made:
            provider = await made.start("provider", "1", "--server", f"{HOST}:{closed}", "--proxy", url_of(kind, port))
            text = await provider.logged("link_down", cause="unreached")
            assert f"the proxy {url_of(kind, port)} cannot reach {HOST}:{closed}" in text


@pytest.mark.programs
@pytest.mark.parametrize("kind", ["dante", *HTTP])
async def test_a_proxy_that_does_not_allow_the_port_is_reported_with_what_to_do(tmp: Path, kind: str) -> None:
    with closed_port() as closed:
        async with proxy(kind, tmp, ports=(443,)) as port, nothing_yet(tmp) as made:
            provider = await made.start("provider", "1", "--server", f"{HOST}:{closed}", "--proxy", url_of(kind, port))
            text = await provider.logged("link_down", cause="proxy refused")
            assert f"ask its operator to allow port {closed}" in text and "--providers 443" in text


@pytest.mark.programs
@pytest.mark.parametrize("kind", WITH_PASSWORD)
async def test_a_missing_and_a_wrong_password_are_reported(tmp: Path, kind: str) -> None:
    async with proxy(kind, tmp, password=True) as port, nothing_yet(tmp) as made:
        for secret, text in (("", "wants a password"), (f"user:{SECRET}", "rejects our user or password")):
            url = url_of(kind, port, secret=secret)
            provider = await made.start("provider", "1", "--server", f"{HOST}:1", "--proxy", url)
            said = await provider.logged("link_down", cause="proxy password")
            assert text in said and "USER:PASSWORD@HOST:PORT" in said
            assert SECRET not in json.dumps(provider.log)


@pytest.mark.long
async def test_an_edge_and_its_workers_go_through_proxies_each_broker_its_own(tmp: Path) -> None:
    async with OwnProxy().serving() as first, OwnProxy().serving() as second, nothing_yet(tmp) as made:
        await made.target(echo)
        brokers = [await start_broker(made) for _ in range(3)]
        edges = [await each.port("edges") for each in brokers]
        where = [text for port in edges for text in ("--broker", f"{HOST}:{port}")]
        proxies = (
            "--proxy",
            f"{HOST}:{edges[0]}=socks5://{HOST}:{first.port}",
            "--proxy",
            f"http://{HOST}:{second.port}",
        )
        with closed_port() as listen:
            edge = await made.start("edge", "--listen", f"{HOST}:{listen}", *where, *proxies, "--workers", "2")
        del edge
        servers = [text for each in brokers for text in ("--server", f"{HOST}:{await each.port('providers')}")]
        await made.start("provider", f"{HOST}:{made.target_port}", *servers)
        for own, ports in ((first, edges[:1]), (second, edges[1:])):
            wanted = {f"{HOST}:{port}": 2 for port in ports}  # two workers
            await eventually(lambda: {each: own.asked.count(each) for each in own.asked} == wanted)  # noqa: B023
        await whole(made, listen)


async def test_a_proxy_that_ends_idle_connections_costs_no_connection(tmp: Path) -> None:
    async with OwnProxy().serving() as own, nothing_yet(tmp) as made:
        await made.target(echo)
        await made.serve()
        own.idle_s = 0.5  # signs of life come less often
        await provide(made, "--proxy", f"http://{HOST}:{own.port}", "--link-timeout", "30")
        client = await made.connect()
        for word in (b"first", b"second", b"third"):
            ended = own.ended_idle
            await echoed(client, word)
            await eventually(lambda: own.ended_idle > ended, "it was idle for too long")  # noqa: B023
        await whole(made, made.port)


@pytest.mark.long
async def test_a_provider_behind_a_proxy_is_upgraded_with_its_connections(tmp: Path) -> None:
    async with OwnProxy().serving() as own, nothing_yet(tmp) as made:
        own.login = ("user", SECRET)
        await made.target(echo)
        await made.serve()
        made.provider = await upgrading.start(
            made,
            *("provider", f"{HOST}:{made.target_port}", "--server", f"{HOST}:{await made.server.port('providers')}"),
            *("--proxy", f"socks5h://user:{SECRET}@{HOST}:{own.port}"),
        )
        await eventually(lambda: made.server.events("peer_up"))
        listed = Path(f"/proc/{made.provider.process.pid}/cmdline")
        assert f"socks5h://…@{HOST}:{own.port}" in listed.read_text() and SECRET not in listed.read_text()
        clients = [await made.connect() for _ in range(3)]
        for client in clients:
            await echoed(client, b"before")
        for _ in range(3):
            await upgrading.upgraded(tmp, len(clients))
            for client in clients:
                await echoed(client, b"after")
            assert SECRET not in listed.read_text()
        await whole(made, made.port)
        assert made.provider.events("upgraded") == 3 and not made.provider.events("restore_failed")
        assert len(own.asked) >= 4
        assert not made.server.events("peer_restarted")


async def test_a_reload_changes_the_proxy_and_keeps_connections(tmp: Path) -> None:
    async with OwnProxy().serving() as first, OwnProxy().serving() as second, nothing_yet(tmp) as made:
        await made.target(echo)
        await made.serve()
        file = tmp / "provider.toml"
        file.write_text(f'proxy = "socks5://{HOST}:{first.port}"')
        await provide(made, "--config", str(file))
        client = await made.connect()
        await echoed(client, b"before")
        for text, used in (
            (f'proxy = "http://user:{SECRET}@{HOST}:{second.port}"', second),
            ("", None),
            (f'proxy = "socks5h://{HOST}:{first.port}"', first),
        ):
            file.write_text(text)
            asked = 0 if used is None else len(used.asked)
            ups = made.provider.events("link_up")
            made.provider.signal(signal.SIGHUP)
            await eventually(lambda: made.provider.events("link_up") > ups)  # noqa: B023
            await echoed(client, b"after")
            assert used is None or len(used.asked) == asked + 1
        assert made.provider.events("reloaded") == 3
        assert SECRET not in json.dumps(made.provider.log)


async def command(tmp: Path, *arguments: str, env: dict[str, str], code: int = 0) -> str:
    """Run a command; return all that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "goreprox", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "GOREPROX_RUNTIME_DIR": str(tmp / "run"), **env},
        cwd=tmp,
    )
    output, _ = await process.communicate()
    assert process.returncode == code, output
    return output.decode()


@pytest.mark.long
async def test_user_and_password_are_shown_nowhere(tmp: Path) -> None:
    async with OwnProxy().serving() as own, nothing_yet(tmp) as made:
        await made.target(echo)
        await made.serve()
        own.login = ("somebody", SECRET)
        env = {"GOREPROX_PROXY": f"http://somebody:{SECRET}@{HOST}:{own.port}"}
        await provide(made, env=env)
        own.login = ("somebody", "changed")
        own.cut()
        await made.provider.logged("link_down", cause="proxy password")
        role = (
            "provider",
            str(made.target_port),
            "--insecure",
            "--server",
            f"{HOST}:{await made.server.port('providers')}",
        )
        shown = json.dumps(made.provider.log)
        for arguments in (("status",), ("status", "--json"), ("status", "--verbose")):
            shown += await command(tmp, *arguments, env={})
        assert f"http://{HOST}:{own.port}" in shown
        check = await command(tmp, "check", *role, "--show", env=env)
        assert f"http://…@{HOST}:{own.port}" in check
        shown += check + await command(tmp, "check", *role, "--show", "--json", env=env)
        doctor = await command(tmp, "doctor", *role, env=env, code=1)
        assert "rejects our user or password" in doctor
        own.login = ("somebody", SECRET)
        shown += doctor + await command(tmp, "doctor", *role, env=env)
        assert SECRET not in shown and "somebody" not in shown


@pytest.mark.long
async def test_the_doctor_says_which_hop_is_at_fault(tmp: Path) -> None:
    async with OwnProxy().serving() as own, nothing_yet(tmp) as made:
        await made.target(echo)
        await made.serve()
        port = await made.server.port("providers")

        async def checks(url: str, server: int, code: int) -> dict[str, str]:
            role = ("provider", str(made.target_port), "--insecure", "--server", f"{HOST}:{server}", "--proxy", url)
            found = json.loads((await command(tmp, "doctor", *role, "--json", env={}, code=code)).splitlines()[0])
            return {each["check"]: each["state"] for each in found["checks"]}

        url = f"socks5://{HOST}:{own.port}"
        well = await checks(url, port, 0)
        assert (well["proxy"], well["tcp"], well["zmtp"], well["join"]) == ("ok",) * 4
        own.socks_reply = 5
        behind = await checks(url, port, 1)
        assert (behind["proxy"], behind["tcp"]) == ("ok", "failed")
        own.socks_reply = 2
        refused = await checks(url, port, 1)
        assert refused["proxy"] == "failed" and "tcp" not in refused
        with closed_port() as closed:
            down = await checks(f"socks5://{HOST}:{closed}", port, 1)
            assert down["proxy"] == "failed" and "tcp" not in down
