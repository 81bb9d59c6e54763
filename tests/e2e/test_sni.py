"""Where clients go by the name that they ask for: real clients through real processes."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from goreprox.process.log import ACCESS, ACCESS_TCP
from tests.e2e.roles import echoed
from tests.e2e.secured import secured
from tests.e2e.upgrading import start, upgrade
from tests.support.client_hellos import MODERN, OLD
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.programs import output_of, program
from tests.support.servers import Handler
from tests.support.sockets import HOST, closed_port
from tests.support.tls import NAME, Authority
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S
from tests.support.web import curl, polite

UPPER = "X.B.Test"
PATIENT = """
from goreprox.net.hellos import Hellos

Hellos.__init__.__kwdefaults__["timeout_s"] = 3600.0
"""
"""A `sitecustomize` by which a ClientHello may take as long as an upgrade does on a machine that is busy."""


class Targets:
    """Targets that speak TLS, each with a certificate of its own."""

    def __init__(self, made: Tunnel, authority: Authority) -> None:
        self._made, self._authority = made, authority

    async def serve(self, name: str, handler: Handler) -> int:
        """Serve a host; return the port."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.ca.issue_cert(name).configure_cert(context)

        async def contained(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handler(reader, writer)
            writer.transport.abort()

        server = await asyncio.start_server(contained, HOST, 0, ssl=context)
        self._made._stack.callback(server.close)
        port: int = server.sockets[0].getsockname()[1]
        return port


def named(authority: Authority, version: ssl.TLSVersion = MODERN) -> ssl.SSLContext:
    context = authority.trusting()
    context.minimum_version = context.maximum_version = version
    return context


async def tls_client(
    port: int, context: ssl.SSLContext, host: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect; without a host there is no name in the ClientHello, and the certificate may be any."""
    if host is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.open_connection(HOST, port, ssl=context, server_hostname=host or "")


async def test_hosts_with_a_certificate_are_terminated_and_others_passed_on_by_their_routes(tmp: Path) -> None:
    authority = Authority(tmp)
    async with nothing_yet(tmp) as made:
        made.scheme = "sni"
        targets = Targets(made, authority)
        await made.target(polite)
        routes = ("--route", "a.test=a", "--route", "*.b.test=b", "--route", f"{NAME}=default", "--route", "c.test=c")
        await made.serve(*routes, *authority.options, "--deny", f"c={HOST}")
        a, b = await targets.serve("a.test", polite), await targets.serve("*.b.test", echo)
        await made.provide(f"a={HOST}:{a}", f"b={HOST}:{b}")
        get = curl("--cacert", str(authority.ca_file))
        for host in ("a.test", NAME):
            url = f"https://{host}:{made.port}/{host}"
            assert await output_of(*get, "--resolve", f"{host}:{made.port}:{HOST}", url) == f"/{host}"
        assert f"{NAME}:{made.port}" in await made.server.logged(ACCESS)
        passed = await made.server.logged(ACCESS_TCP, service="a")
        assert f"connection of {HOST}:" in passed
        for version in (MODERN, OLD):
            client = await tls_client(made.port, named(authority, version), UPPER)
            await echoed(client, version.name.encode() * 5000)
            client[1].transport.abort()
            s_client = (program("openssl"), "s_client", "-connect", f"{HOST}:{made.port}", "-servername", UPPER)
            verified = ("-CAfile", str(authority.ca_file), "-verify_hostname", UPPER, "-verify_return_error")
            flag = "-" + version.name.lower().removesuffix("_0").replace("tlsv", "tls")
            assert "Verify return code: 0 (ok)" in await output_of(*s_client, *verified, flag)
            for nobodys in ("unknown.test", "b.test", None):
                with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
                    await tls_client(made.port, named(authority, version), nobodys)
        await made.server.logged("tls_failed")
        with pytest.raises(ConnectionResetError):
            await tls_client(made.port, named(authority), "c.test")
        await made.server.logged("client_denied")
        reader, writer = await made.connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == bytes.fromhex("15030300020232")  # decode_error


async def test_clients_without_a_name_go_to_the_service_of_the_port_and_old_sessions_are_resumed(tmp: Path) -> None:
    authority = Authority(tmp)
    async with nothing_yet(tmp) as made:
        targets = Targets(made, authority)
        made.target_port = await targets.serve("a.test", echo)
        listen = ("--listen", f"sni://{HOST}:0=default2", "--route", "b.test=b")
        made.server = await made.start("server", *listen, "--providers", f"{HOST}:0")
        await made.start(
            "provider",
            f"default2={HOST}:{made.target_port}",
            "--server",
            f"{HOST}:{await made.server.port('providers')}",
        )
        port = await made.server.port("clients")
        for host in ("a.test", "elsewhere.test", None):
            context = named(authority)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            client = await tls_client(port, context, host)
            await echoed(client, b"hello")
            client[1].transport.abort()


async def test_a_provider_publishes_a_host_whose_certificate_only_its_target_has(tmp: Path) -> None:
    authority = Authority(tmp)
    async with secured(tmp, echo, "--listen", f"sni://{HOST}:0", *authority.options) as it:
        ports = (await it.server.ready())["clients"]
        assert isinstance(ports, list)
        sni = ports[-1]
        await it.keys("add", "laptop", "--services", "none", "--address", HOST, "--publish", "tls://*.laptop.test")
        target = await Targets(it, authority).serve("app.laptop.test", polite)
        provider = await it.provide("--publish", "tls://app.laptop.test", join="laptop", target=target)
        said = await provider.logged("published", name="tls://app.laptop.test")
        assert said.endswith(f"clients find default at tls://app.laptop.test:{sni}")
        get = curl("--cacert", str(authority.ca_file), "--resolve", f"app.laptop.test:{sni}:{HOST}")
        assert await output_of(*get, f"https://app.laptop.test:{sni}/x") == "/x"
        await it.keys("set", "laptop", "--publish", f"tls://{NAME}")
        refused = await provider.logged("link_down", cause="refused")
        assert "does not allow to publish tls://app.laptop.test" in refused
        await it.keys("revoke", "laptop")
        await it.server.logged("unpublished", service="tls://app.laptop.test@laptop")
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            await tls_client(sni, named(authority), "app.laptop.test")


@contextlib.asynccontextmanager
async def half_heard(made: Tunnel, port: int, context: ssl.SSLContext, host: str) -> AsyncIterator[None]:
    """Be a client whose ClientHello is half read while the context lasts, and which is served afterwards."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=host)
    reader, writer = await made.connect(port)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    writer.write(hello[:100])
    yield
    writer.write(hello[100:])
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(1 << 16))
    writer.close()


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("--workers", "2"), marks=pytest.mark.long)], ids=["one", "workers"]
)
async def test_clients_go_on_through_an_upgrade_before_and_after_their_client_hello(
    tmp: Path, workers: tuple[str, ...]
) -> None:
    authority = Authority(tmp)
    async with nothing_yet(tmp) as made:
        port = made._stack.enter_context(closed_port())
        modules = tmp / "modules"
        modules.mkdir()
        (modules / "sitecustomize.py").write_text(PATIENT)
        targets = Targets(made, authority)
        passing, web = await targets.serve("a.test", echo), await made.target(polite)
        broker = await made.start("broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0")
        where = ("--broker", f"{HOST}:{await broker.port('edges')}")
        routes = ("--route", "a.test=a", "--route", f"{NAME}=web", "--drain", "3600", *authority.options)
        edge = await start(
            made, "edge", "--listen", f"sni://{HOST}:{port}", *routes, *where, *workers, path=str(modules)
        )
        services = (f"a={HOST}:{passing}", f"web={HOST}:{web}")
        await made.start("provider", *services, "--server", f"{HOST}:{await broker.port('providers')}")
        early = await tls_client(port, named(authority), "a.test")
        await echoed(early, b"before")
        async with contextlib.AsyncExitStack() as stack:
            for host in ("a.test", NAME):
                await stack.enter_async_context(half_heard(made, port, named(authority), host))
            await _upgraded(tmp, edge)
        await echoed(early, b"after" * 10_000)
        early[1].transport.abort()
        get = curl("--cacert", str(authority.ca_file), "--resolve", f"{NAME}:{port}:{HOST}")
        assert await output_of(*get, f"https://{NAME}:{port}/x") == "/x"


async def _upgraded(tmp: Path, edge: Process) -> None:
    code, _, err = await upgrade(tmp, "--role", "edge")
    assert not code, err
    assert not edge.events("restore_failed")


async def test_curl_follows_from_http_to_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with nothing_yet(tmp_path) as made:
        made.scheme = "http"
        await made.target(polite)
        await made.serve("--listen", f"https://{HOST}:0", "--http-redirect", *authority.options)
        await made.provide()
        ports = (await made.server.ready())["clients"]
        assert isinstance(ports, list)
        plain, secure = ports
        get = curl(
            "--location", "--cacert", str(authority.ca_file), "--write-out", " %{num_redirects} %{url_effective}"
        )
        names = [f"{NAME}:{port}:{HOST}" for port in (plain, secure)]
        resolved = [part for name in names for part in ("--resolve", name)]
        moved = await output_of(*get, *resolved, f"http://{NAME}:{plain}/a?b")
        assert moved == f"/a?b 1 https://{NAME}:{secure}/a?b"
        for url in (f"http://{HOST}:{plain}/a", f"http://{HOST}:{plain}/.well-known/acme-challenge/x"):
            assert (await output_of(*get, url)).endswith(f" 0 {url}")
