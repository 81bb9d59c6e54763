"""Links within TLS, for networks that let nothing else out: through outages, upgrades, reloads, proxies and keys."""

import asyncio
import contextlib
import json
import signal
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import upgrading
from tests.e2e.reloading import apply, configure, reloaded
from tests.e2e.roles import echoed, whole
from tests.e2e.secured import Secured
from tests.support.forks import run_command
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.programs import output_of, program
from tests.support.proxies import OwnProxy
from tests.support.relay import Relay
from tests.support.sockets import HOST, closed_port
from tests.support.tls import Authority
from tests.support.tls import Client as TlsClient
from tests.support.traffic import echo, read_digest, send_blocks
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import GET, curl, polite

ANY = f"tls://{HOST}:0"
BLOCKS = 256  # of 64 KiB, there and back


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


def trusting(authority: Authority, port: int, option: str = "--server") -> tuple[str, ...]:
    return (option, f"tls://{HOST}:{port}", "--server-ca", str(authority.ca_file))


async def before(made: Tunnel, port: int) -> Relay:
    """Start a relay before a port."""
    relay = Relay(port)
    await relay.start()
    made._stack.push_async_callback(relay.stop)
    return relay


async def cut(relay: Relay, provider: Process, *, fin: bool = False) -> None:
    """Break the link, and wait until it is up again."""
    ups = provider.events("link_up")
    relay.cut(fin=fin)
    await eventually(lambda: provider.events("link_up") > ups, "it is connected again")


async def status(tmp: Path, role: str) -> list[dict[str, Any]]:
    code, out, err = await run_command(tmp, "status", "--json", "--role", role, "--runtime-dir", str(tmp / "run"))
    assert not code, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


async def test_a_stream_loses_no_byte_through_outages_of_a_link_within_tls(tmp: Path) -> None:
    authority = Authority(tmp)
    async with nothing_yet(tmp) as made:
        await made.target(echo)
        server = await made.start("server", "--listen", f"{HOST}:0", "--providers", ANY, *authority.options)
        relay = await before(made, await server.port("providers"))
        provider = await made.start("provider", f"{HOST}:{made.target_port}", *trusting(authority, relay.port))
        assert f"tls://{HOST}:{relay.port}" in await provider.logged("link_up")
        reader, writer = await made.connect(await server.port("clients"))
        reading = asyncio.create_task(read_digest(reader))
        sending = asyncio.create_task(send_blocks(writer, BLOCKS))
        for fin in (False, True, False):
            await cut(relay, provider, fin=fin)
        relay.silence()
        await provider.logged("link_lost")
        relay.resume()
        digest = await asyncio.wait_for(sending, DEADLINE_S)
        writer.write_eof()
        assert await asyncio.wait_for(reading, DEADLINE_S) == (BLOCKS << 16, digest)
        ((link,),) = [each["links"] for each in await status(tmp, "provider")]
        assert link["label"] == f"tls://{HOST}:{relay.port}"
        writer.close()


@pytest.mark.programs
@pytest.mark.long
async def test_clients_and_links_share_a_port_and_links_come_in_while_it_is_full(tmp: Path) -> None:
    authority = Authority(tmp)
    with closed_port() as port:
        listen = ("--listen", f"https://{HOST}:{port}=web", "--providers", f"tls://{HOST}:{port}", *authority.options)
        async with nothing_yet(tmp) as made:
            target = await made.target(polite)
            server = await made.start("server", *listen, "--max-connections", "2")
            relay = await before(made, port)
            provider = await made.start("provider", f"web={HOST}:{target}", *trusting(authority, relay.port))
            await provider.logged("peer_up")
            there = ("--cacert", str(authority.ca_file), f"https://{HOST}:{port}/hello")
            assert await output_of(*curl("--http1.1", *there)) == "/hello"
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                for offered, chosen in ((["goreprox"], "goreprox"), (["h2", "http/1.1"], "http/1.1"), ([], None)):
                    assert await negotiated(authority, port, version, offered) == chosen
            for flag in ("-tls1_2", "-tls1_3"):
                assert "ALPN protocol: goreprox" in await s_client(authority, port, flag)

            context = authority.trusting()
            async with asyncio.timeout(DEADLINE_S):
                clients = [await admitted(made, port, context) for _ in range(2)]
            third = await TlsClient(*await made.connect(port), context).shake_hands()
            with pytest.raises((ConnectionResetError, EOFError)):
                await third.read()
            await server.logged("client_reset")
            await cut(relay, provider)
            for each in clients:
                await each.write(GET % b"second")
                assert b"/second" in await each.read()


async def test_links_come_in_at_a_shared_port_while_its_clients_drain(tmp: Path) -> None:
    authority = Authority(tmp)
    with closed_port() as port:
        listen = ("--listen", f"tls://{HOST}:{port}", "--providers", f"tls://{HOST}:{port}", *authority.options)
        async with nothing_yet(tmp) as made:
            await made.target(echo)
            server = await made.start("server", *listen, "--drain", "3600")
            relay = await before(made, port)
            provider = await made.start("provider", f"{HOST}:{made.target_port}", *trusting(authority, relay.port))
            await provider.logged("peer_up")
            client = await TlsClient(*await made.connect(port), authority.trusting()).shake_hands()
            await echoed_by(client, b"before")
            server.signal(signal.SIGTERM)
            await server.logged("draining")
            await cut(relay, provider)
            await echoed_by(client, b"after")
            late = await TlsClient(*await made.connect(port), authority.trusting()).shake_hands()
            with pytest.raises((ConnectionResetError, EOFError)):
                await late.read()
            await client.say_goodbye()
            assert await client.read_all() == b""
            assert await server.wait() == 0


async def admitted(made: Tunnel, port: int, context: ssl.SSLContext) -> TlsClient:
    """Be a client, once there is room: those that have left may still count."""
    while True:
        with contextlib.suppress(ConnectionResetError, EOFError):
            client = await TlsClient(*await made.connect(port), context).shake_hands()
            await client.write(GET % b"first")
            assert b"/first" in await client.read()
            return client


async def echoed_by(client: TlsClient, word: bytes) -> None:
    await client.write(word)
    assert await client.read() == word


async def negotiated(authority: Authority, port: int, version: ssl.TLSVersion, offered: list[str]) -> str | None:
    """Shake hands as Python does; return the protocol that is chosen."""
    context = authority.trusting()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(offered)
    _, writer = await asyncio.wait_for(asyncio.open_connection(HOST, port, ssl=context), DEADLINE_S)
    try:
        tls = writer.get_extra_info("ssl_object")
        assert tls.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]
        chosen: str | None = tls.selected_alpn_protocol()
        return chosen
    finally:
        writer.transport.abort()


async def s_client(authority: Authority, port: int, *args: str) -> str:
    """Shake hands as OpenSSL does; return what it says."""
    where = ("-connect", f"{HOST}:{port}", "-CAfile", str(authority.ca_file), "-verify_return_error")
    process = await asyncio.create_subprocess_exec(
        *(program("openssl"), "s_client", *where, "-alpn", "goreprox", *args),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    return out.decode(errors="replace")


async def test_join_strings_say_tls_and_keys_authenticate_inside(tmp: Path) -> None:
    authority = Authority(tmp)
    made = Secured(tmp)
    async with made._stack:
        await made.target(echo)
        where = ("--listen", f"{HOST}:0", "--providers", ANY, "--address", HOST, "--state-dir", str(made.state))
        server = await made.start("server", *where, *authority.options)
        port = await server.port("providers")
        shown = made.join_file("default").read_text()
        assert f"@tls://{HOST}:{port}" in shown
        joined = ("--join-file", str(made.join_file("default")), "--server-ca", str(authority.ca_file))
        provider = await made.start("provider", f"{HOST}:{made.target_port}", *joined)
        await provider.logged("peer_up")
        client = await made.connect(await server.port("clients"))
        await echoed(client, b"with keys")
        assert server.events("peer_up", address=HOST) == 1
        ups = provider.events("link_up")
        await made.keys("rotate")
        await eventually(lambda: provider.events("link_up") > ups, "with the next key of the server")
        await echoed(client, b"with its next key")
        await made.keys("revoke", "default")
        await provider.logged("link_down", cause="unknown key")
        await server.logged("key_refused", address=HOST)


async def test_a_link_within_tls_goes_through_a_proxy(tmp: Path) -> None:
    authority = Authority(tmp)
    async with OwnProxy().serving() as own, nothing_yet(tmp) as made:
        await made.target(echo)
        server = await made.start("server", "--listen", f"{HOST}:0", "--providers", ANY, *authority.options)
        port = await server.port("providers")
        proxy = ("--proxy", f"http://{HOST}:{own.port}")
        provider = await made.start("provider", f"{HOST}:{made.target_port}", *trusting(authority, port), *proxy)
        await provider.logged("peer_up")
        assert own.asked == [f"{HOST}:{port}"]
        await whole(made, await server.port("clients"))


@pytest.mark.long
async def test_edges_with_workers_and_brokers_speak_tls(tmp: Path) -> None:
    authority = Authority(tmp)
    async with nothing_yet(tmp) as made:
        await made.target(echo)
        broker = await made.start("broker", "--providers", ANY, "--edges", ANY, *authority.options)
        edges, providers = await broker.port("edges"), await broker.port("providers")
        with closed_port() as listen:
            where = trusting(authority, edges, "--broker")
            edge = await made.start("edge", "--listen", f"{HOST}:{listen}", "--workers", "2", *where)
        await made.start("provider", f"{HOST}:{made.target_port}", *trusting(authority, providers))
        await eventually(lambda: edge.events("peer_up") == 2, "both workers know the provider")
        await whole(made, listen)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.long
async def test_a_server_and_a_provider_are_upgraded_and_get_other_certificates(tmp: Path, shared: bool) -> None:
    (tmp / "other").mkdir()
    authority, other = Authority(tmp), Authority(tmp / "other")
    with closed_port() as port:
        listen = [f"{HOST}:0", *([f"https://{HOST}:{port}=web"] if shared else [])]
        options: dict[str, object] = {"listen": listen, "providers": f"tls://{HOST}:{port}"}
        certified = {"tls-cert": str(authority.cert), "tls-key": str(authority.key)}
        configure(tmp, "server", **options, **certified)
        async with nothing_yet(tmp) as made:
            await made.target(echo)
            server = await upgrading.start(made, "server", "--config", str(tmp / "server.toml"))
            relay = await before(made, port)
            at = {"target": f"{HOST}:{made.target_port}", "server": f"tls://{HOST}:{relay.port}"}
            configure(tmp, "provider", **at, server_ca=str(authority.ca_file))
            provider = await upgrading.start(made, "provider", "--config", str(tmp / "provider.toml"))
            await provider.logged("peer_up")
            client = await made.connect(await server.port("clients"))
            await echoed(client, b"first")
            for process, role in ((server, "server"), (provider, "provider")):
                ups = provider.events("link_up")
                code, out, err = await upgrading.upgrade(tmp, "--role", role)
                assert not code and "; 1 connection" in out, err
                await eventually(lambda: provider.events("link_up") > ups)  # noqa: B023
                assert process.events("upgraded") == 1 and not process.events("restore_failed")
                await echoed(client, role.encode())

            authority.renew()  # in place
            await cut(relay, provider)
            await echoed(client, b"renewed")

            applied = await apply(tmp, "server", **options, **{"tls-cert": str(other.cert), "tls-key": str(other.key)})
            assert len(applied["applied"]) == 4, applied
            relay.cut()
            assert "unable to get" in await provider.logged("link_down", cause="certificate")
            await apply(tmp, "provider", **at, server_ca=str(other.ca_file))
            await eventually(lambda: provider.events("link_up") > ups, "it trusts the other authority")
            await echoed(client, b"by another authority")


async def test_a_reload_does_not_change_whether_a_port_is_shared(tmp: Path) -> None:
    authority = Authority(tmp)
    with closed_port() as port:
        certified = {"tls-cert": str(authority.cert), "tls-key": str(authority.key)}
        alone: dict[str, object] = {"listen": [f"{HOST}:0"], "providers": f"tls://{HOST}:{port}", **certified}
        both = {**alone, "listen": [f"{HOST}:0", f"https://{HOST}:{port}=web"]}
        for first, second in ((alone, both), (both, alone)):
            configure(tmp, "server", **first)
            async with nothing_yet(tmp) as made:
                await made.start("server", "--config", str(tmp / "server.toml"))
                configure(tmp, "server", **second)
                assert "restart the process" in str((await reloaded(tmp, "server")).problem)
