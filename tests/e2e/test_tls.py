"""TLS that ends at the edge: clients of others and a raw one of ours, through real processes."""

import asyncio
import contextlib
import hashlib
import re
import signal
import ssl
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from httpx import AsyncClient

from goreprox.process.log import ACCESS
from tests.support.events import matching, message
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.programs import output_of
from tests.support.servers import Handler
from tests.support.sockets import HOST, reset_now
from tests.support.tls import Authority, Client
from tests.support.traffic import block, echo
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import chromium, curl, polite

BLOCKS = 320  # of 64 KiB: 20 MiB


@contextlib.asynccontextmanager
async def tls_tunnel(
    tmp: Path, handler: Handler, authority: Authority, *server: str, scheme: str = "tls"
) -> AsyncIterator[Tunnel]:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await handler(reader, writer)

    async with nothing_yet(tmp) as made:
        made.scheme = scheme
        await made.target(closing)
        await made.serve(*authority.options, *server)
        await made.provide()
        yield made


async def client(made: Tunnel, context: ssl.SSLContext) -> Client:
    return await Client(*await made.connect(), context).shake_hands()


async def test_every_way_of_ending_a_tls_connection_is_passed_through(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    seen: dict[bytes, str] = {}

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do what the first byte says; note how the client's side ended."""
        what = await reader.readexactly(1)
        if what == b"f":  # the target ends first
            writer.write(b"bye")
            writer.write_eof()
        if what == b"g":  # a reset discards what is still on its way
            writer.write(b"here")
        if what == b"r":
            writer.write(b"some")
            await writer.drain()
            await reader.readexactly(1)
            reset_now(writer)
            return
        digest = hashlib.sha256()
        try:
            while data := await reader.read(1 << 18):
                digest.update(data)
        except ConnectionResetError:
            seen[what] = "reset"
            return
        seen[what] = digest.hexdigest()
        if what == b"c":
            writer.write(b"all of it: " + digest.hexdigest().encode())
        writer.close()

    context = authority.trusting()
    body = b"".join(block(index) for index in range(32))  # 2 MiB
    digest = hashlib.sha256(body).hexdigest()
    async with tls_tunnel(tmp_path, target, authority) as made:
        first = await client(made, context)
        await first.write(b"c" + body)
        await first.say_goodbye()
        assert await first.read_all() == f"all of it: {digest}".encode()

        first = await client(made, context)
        await first.write(b"f")
        assert await first.read_all() == b"bye"
        await first.write(body)
        await first.say_goodbye()
        await eventually(lambda: b"f" in seen, "the target has the rest")

        truncated = await client(made, context)
        await truncated.write(b"t" + body)
        truncated.writer.write_eof()
        gone = await client(made, context)
        await gone.write(b"g")
        assert await gone.read() == b"here"
        await gone.write(body)
        reset_now(gone.writer)
        await eventually(lambda: len(seen) == 4, "both are seen")
        assert seen == {b"c": digest, b"f": digest, b"t": "reset", b"g": "reset"}

        reset = await client(made, context)
        await reset.write(b"r")
        assert await reset.read() == b"some"
        await reset.write(b"!")
        with pytest.raises(ConnectionResetError):
            await reset.read()


async def test_20_mib_arrive_both_ways_over_tls_despite_a_cut_and_a_slow_reader(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def exchange(made: Tunnel, context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
        context.minimum_version = context.maximum_version = version
        connected = await client(made, context)
        assert connected.tls.version() == version.name.replace("_", ".")
        sent, received = hashlib.sha256(), hashlib.sha256()
        written = total = 0
        going = asyncio.Event()

        async def send() -> None:
            nonlocal written
            for index in range(BLOCKS):
                sent.update(block(index))
                await connected.write(block(index))
                written += 1
                if index == BLOCKS // 8:
                    going.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(send(), name="send")
            await going.wait()  # until then nothing is read: windows and buffers fill
            made.relay.cut()
            while total < BLOCKS << 16:
                data = await connected.read()
                received.update(data)
                total += len(data)
        assert received.digest() == sent.digest()
        await connected.say_goodbye()
        assert await connected.read() == b""

    async with tls_tunnel(tmp_path, echo, authority) as made:
        before = made.relay.connections
        async with asyncio.TaskGroup() as group:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                group.create_task(exchange(made, authority.trusting(), version), name=version.name)
        assert made.relay.connections > before


async def test_only_clients_with_a_trusted_certificate_are_accepted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other")
    connections = 0

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await echo(reader, writer)

    def old() -> ssl.SSLContext:
        context = authority.trusting(name="alice.test")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        return context

    async def refused(made: Tunnel, context: ssl.SSLContext) -> str:
        """Return what the client is told: in TLS 1.3 its own handshake is over before the server has looked."""
        with pytest.raises(ssl.SSLError) as error:
            await (await client(made, context)).read()
        return str(error.value.reason)

    strange = authority.trusting()
    stranger.ca.issue_cert("mallory.test").configure_cert(strange)
    async with tls_tunnel(tmp_path, target, authority, "--tls-client-ca", str(authority.ca_file)) as made:
        assert await refused(made, authority.trusting()) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert await refused(made, strange) == "TLSV1_ALERT_UNKNOWN_CA"
        assert await refused(made, old()) == "TLSV1_ALERT_PROTOCOL_VERSION"
        reader, writer = await made.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP" not in await reader.read()  # an alert, and the end
        assert connections == 0

        known = await client(made, authority.trusting(name="alice.test"))
        await known.write(b"hello")
        assert await known.read() == b"hello"
        assert "alice.test" in await made.server.logged("client_certificate")
        await made.server.logged("tls_failed")


async def test_a_proxy_protocol_header_precedes_the_tls_handshake(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    heads: list[str] = []

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    rule = ("--proxy-protocol-from", HOST)
    async with tls_tunnel(tmp_path, target, authority, *rule, scheme="https") as made:
        reader, writer = await made.connect()
        writer.write(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n")
        connected = await Client(reader, writer, authority.trusting()).shake_hands()
        await connected.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await connected.read()).startswith(b"HTTP/1.1 200 OK")
    assert "\r\nX-Forwarded-For: 192.0.2.1\r\n" in heads[0]
    assert "\r\nX-Forwarded-Host: 192.0.2.2:443\r\n" in heads[0]


async def test_a_client_without_a_tls_handshake_counts_as_a_connection(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with tls_tunnel(tmp_path, echo, authority, "--max-connections", "1") as made:
        _, silent = await made.connect()
        await made.server.logged("full")
        waiting = asyncio.create_task(client(made, authority.trusting()), name="second client")
        silent.transport.abort()
        second = await waiting
        await second.write(b"hello")
        assert await second.read() == b"hello"
        second.writer.close()
        await made.server.logged("stream_ended")
        assert not made.server.events("tls_failed"), "it left by itself"


async def test_a_tls_port_negotiates_the_configured_alpn_protocols(tmp_path: Path) -> None:
    """As gRPC clients demand, which speak HTTP/2 with the target."""
    authority = Authority(tmp_path)

    async def agreed(made: Tunnel, *offered: str) -> str | None:
        context = authority.trusting()
        context.set_alpn_protocols(offered)
        reader, writer = await asyncio.open_connection(HOST, made.port, ssl=context)
        writer.write(b"PRI")
        assert await reader.readexactly(3) == b"PRI"
        found: str | None = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.transport.abort()
        return found

    async with tls_tunnel(tmp_path, echo, authority, "--tls-alpn", "h2", "--tls-alpn", "x") as made:
        assert [await agreed(made, *each) for each in (("h2",), ("x", "h2"), ("y",))] == ["h2", "h2", None]


async def test_plain_http_gets_an_error_page_at_an_https_port_but_not_at_a_tls_port(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for scheme, told in (("https", True), ("tls", False)):
        async with tls_tunnel(tmp_path, polite, authority, scheme=scheme) as made:
            for request in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\n" + 1000 * b"X: 1\r\n"):
                reader, writer = await made.connect()
                writer.write(request)
                async with asyncio.timeout(DEADLINE_S):
                    said = await reader.read()
                assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n") == told
                assert (b"https://" in said) == told
                writer.close()


@contextlib.asynccontextmanager
async def tls_target(handler: Handler, authority: Authority) -> AsyncIterator[int]:
    """Serve `handler` by TLS alone; give the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.cert, authority.key)
    running = 0

    async def contained(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running
        running += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        running -= 1

    async with await asyncio.start_server(contained, HOST, 0, ssl=context, limit=1 << 20) as server:
        yield server.sockets[0].getsockname()[1]
        await eventually(lambda: not running, "connections have ended with their clients")


def failures(provider: Process) -> str:
    """Return what the log has of targets that could not be reached."""
    return str([entry["message"] for entry in provider.log if entry.get("event") == "target_failed"])


async def offer(made: Tunnel, target: str, *options: str) -> Process:
    """Add a provider of a target, and wait until it is known."""
    before = made.server.events("peer_up")
    provider = await made.start("provider", target, "--server", f"{HOST}:{made.relay.port}", *options)
    await eventually(lambda: made.server.events("peer_up") > before, "the server knows it")
    return provider


@pytest.mark.parametrize("how", ["--target-ca", "--target-insecure"])
async def test_a_tls_target_is_reached_through_outages(tmp_path: Path, how: str) -> None:
    authority = Authority(tmp_path)
    options = (how, str(authority.ca_file)) if how == "--target-ca" else (how,)
    async with tls_target(echo, authority) as port, nothing_yet(tmp_path) as made:
        await made.serve()
        await offer(made, f"tls://{'localhost' if how == '--target-insecure' else HOST}:{port}", *options)
        reader, writer = await made.connect()
        sent = b"".join(block(index) for index in range(64))

        async def send() -> None:
            for start in range(0, len(sent), 1 << 16):
                if start == len(sent) // 2:
                    made.relay.cut()
                writer.write(sent[start : start + (1 << 16)])
                await writer.drain()

        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(send(), name="upload")
            assert await reader.readexactly(len(sent)) == sent
        writer.write_eof()
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""


@pytest.mark.parametrize(
    ("host", "trusted", "cause"),
    [
        (HOST, False, "its certificate does not count: "),
        ("localhost", True, "certificate is not valid for 'localhost'"),
    ],
    ids=["signed by a stranger", "for another name"],
)
async def test_a_target_with_an_untrusted_certificate_receives_nothing(
    tmp_path: Path, host: str, trusted: bool, cause: str
) -> None:
    authority = Authority(tmp_path)
    options = ("--target-ca", str(authority.ca_file)) if trusted else ()
    reached: list[bytes] = []

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.read(1))

    async with tls_target(target, authority) as port, nothing_yet(tmp_path) as made:
        made.scheme = "http"
        await made.serve()
        provider = await offer(made, f"tls://{host}:{port}", *options)
        reader, writer = await made.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
        await eventually(lambda: cause in failures(provider), "the log says why")
    assert not any(reached)


async def test_a_changed_target_ca_is_used_from_the_next_connection_on(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    trusted = tmp_path / "trusted.pem"

    def trust(content: bytes) -> None:
        (tmp_path / "new.pem").write_bytes(content)
        (tmp_path / "new.pem").replace(trusted)

    async with tls_target(echo, authority) as port, nothing_yet(tmp_path) as made:
        await made.serve()
        trust(other.ca_file.read_bytes())
        provider = await offer(made, f"tls://{HOST}:{port}", "--target-ca", str(trusted))
        reader, _ = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        for content in (authority.ca_file.read_bytes(), b"nonsense"):
            trust(content)
            reader, writer = await made.connect()
            writer.write(b"word")
            assert await asyncio.wait_for(reader.readexactly(4), DEADLINE_S) == b"word"
        await eventually(lambda: provider.events("target_ca") == 2, "it was read again, then kept")


@pytest.mark.parametrize(
    ("greeting", "options", "cause"),
    [(b"", ("--dial-timeout", "0.5"), "no response within 0.5 s"), (b"220 this is no TLS\r\n", (), "TLS: ")],
    ids=["says nothing", "says something else"],
)
async def test_a_target_without_tls_is_reported_as_unreachable(
    tmp_path: Path, greeting: bytes, options: tuple[str, ...], cause: str
) -> None:
    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()

    async with nothing_yet(tmp_path) as made:
        made.scheme = "http"
        await made.target(target)
        await made.serve()
        provider = await offer(made, f"tls://{HOST}:{made.target_port}", "--target-insecure", *options)
        reader, writer = await made.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
        await eventually(lambda: cause in failures(provider), "the log says why")


@pytest.mark.programs
async def test_curl_and_httpx_use_https_and_the_target_learns_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    heads: list[str] = []

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    issued = authority.ca.issue_cert("alice.test")
    pem = tmp_path / "alice.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
    demands = ("--tls-client-ca", str(authority.ca_file))
    async with tls_tunnel(tmp_path, target, authority, *demands, scheme="https") as made:
        url = f"https://{HOST}:{made.port}/page"
        forged = ("--header", "X-Forwarded-Client-Cert: Hash=0", "--header", "X_Forwarded_Client_Cert: Hash=0")
        asked = curl(*forged, "--cacert", str(authority.ca_file), "--cert", str(pem), "--write-out", " %{http_version}")
        assert await output_of(*asked, "--http2", url, url) == "ok 1.1ok 1.1"
        assert await output_of(*curl("--cacert", str(authority.ca_file), url), code=56) == ""  # no certificate
        context = authority.trusting(name="bob.test")
        async with AsyncClient(verify=context, trust_env=False) as browser:
            assert [(await browser.get(url)).text for _ in range(3)] == ["ok"] * 3
        await eventually(lambda: made.server.events(ACCESS) == 5, "all are logged")
    assert len(heads) == 5
    for head in heads:
        assert "\r\nX-Forwarded-Proto: https\r\n" in head
        assert f'Forwarded: for={HOST};host="{HOST}:{made.port}";proto=https\r\n' in head
    told = [
        re.findall("(?i)x.forwarded.client.cert: Hash=([0-9a-f]{64});Subject=.*;DNS=(.*)\r", head) for head in heads
    ]
    assert [each[1] for (each,) in told] == ["alice.test"] * 2 + ["bob.test"] * 3
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    assert told[0][0][0] == hashlib.sha256(der).hexdigest()
    logged = [entry["certificate"] for entry in matching(made.server.log, ACCESS)]
    assert logged == ["alice.test"] * 2 + ["bob.test"] * 3


async def test_a_new_certificate_is_used_for_new_clients_and_a_damaged_one_is_ignored(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def ask(connected: Client) -> None:
        await connected.write(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while not got.endswith(b"\r\n\r\n/page"):
            got += await connected.read()

    context = authority.trusting()
    async with tls_tunnel(tmp_path, polite, authority, scheme="https") as made:

        async def shown() -> bytes | None:
            new = await client(made, context)
            new.writer.close()
            return new.tls.getpeercert(binary_form=True)

        old = await client(made, context)
        await ask(old)
        before = old.tls.getpeercert(binary_form=True)
        assert await shown() == before
        authority.key.write_text("no key")
        assert await shown() == before
        assert await shown() == before
        authority.renew()
        assert await shown() != before
        await ask(old)
        await made.server.logged("certificate_read")  # later lines have come, so earlier ones have
        kept = [message(entry) for entry in matching(made.server.log, "certificate_kept")]
        assert len(kept) == 1
        assert "not a private key in PEM form" in kept[0]
        made.server.signal(signal.SIGTERM)
        assert await old.read() == b""  # close_notify
        old.writer.close()
        assert await made.server.wait() == 0


async def test_tokens_cause_a_warning_in_plaintext_and_none_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "tokens.toml").write_text("")
    async with nothing_yet(tmp_path) as made:
        listeners = ("--listen", "http://0.0.0.0:0", "--listen", "https://0.0.0.0:0=b")
        tokens = ("--auth-tokens", str(tmp_path / "tokens.toml"))
        server = await made.start("server", *listeners, *tokens, *authority.options, "--providers", f"{HOST}:0")
        assert [entry["message"] for entry in server.log if entry.get("event") == "plaintext_tokens"] == [
            "tokens arrive unencrypted on 0.0.0.0:0; listen with https://"
        ]


PAGE = """<!DOCTYPE html><title>many</title><script>
var arrived = 0
addEventListener("load", () => document.body.textContent = `${arrived} have arrived`)
</script><body>"""


@pytest.mark.long
@pytest.mark.programs
async def test_chromium_loads_a_page_with_fifty_images_and_scripts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    served: list[str] = []
    images, scripts = ([f"/{kind}{index}" for index in range(25)] for kind in ("image", "script"))

    async def serve(request: web.Request) -> web.Response:
        served.append(request.path)
        if request.path in images:
            picture = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><!--{"x" * 20_000}--></svg>'
            return web.Response(text=picture, content_type="image/svg+xml")
        if request.path in scripts:
            return web.Response(text=f"arrived++ //{'x' * 20_000}", content_type="text/javascript")
        if request.path != "/":
            return web.Response(status=404)
        elements = [f'<img src="{path}" onload="arrived++">' for path in images]
        elements += [f'<script src="{path}" async></script>' for path in scripts]
        return web.Response(text=PAGE + "".join(elements), content_type="text/html")

    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/{tail:.*}", serve)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    async with nothing_yet(tmp_path) as made:
        made.scheme = "https"
        await made.serve(*authority.options)
        await made.provide(target=runner.addresses[0][1])
        argv = chromium(tmp_path, authority.fingerprint, f"https://{HOST}:{made.port}/")
        assert "50 have arrived" in await output_of(*argv, deadline_s=DEADLINE_S)
    await runner.cleanup()
    assert sorted(path for path in served if path != "/favicon.ico") == sorted(["/", *images, *scripts])
