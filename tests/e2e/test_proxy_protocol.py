"""The PROXY protocol through real processes: to targets, and from proxies."""

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from goreprox.config.addresses import ProxyVersion
from goreprox.endpoint import Endpoint
from goreprox.net.proxy_protocol import read, write
from tests.support.processes import Tunnel, nothing_yet
from tests.support.programs import daemon, nginx, output_of, program, reserved_port
from tests.support.servers import Handler
from tests.support.sockets import HOST
from tests.support.waiting import DEADLINE_S, eventually

CLIENT, THERE = Endpoint("198.51.100.7", 4711), Endpoint("203.0.113.1", 443)


def told(headers: list[bytes]) -> Handler:
    """A target that speaks first, and notes the line that a client's connection begins with."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome\n")
        data = b""
        while (header := read(data)) is None:
            data += await reader.read(1)
        headers.append(data[: header.size])
        writer.write(data[header.size :] + await reader.read())
        writer.close()

    return handler


async def newest(headers: list[bytes]) -> bytes:
    await eventually(lambda: bool(headers), "the target is told")
    return headers.pop()


async def until_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await reader.read()


async def is_reset(reader: asyncio.StreamReader) -> bool:
    try:
        await until_end(reader)
    except ConnectionResetError:
        return True
    return False


def ends(writer: asyncio.StreamWriter) -> tuple[Endpoint, Endpoint]:
    return Endpoint(*writer.get_extra_info("sockname")), Endpoint(*writer.get_extra_info("peername"))


async def serve(made: Tunnel, *listen: str, args: tuple[str, ...] = ()) -> list[int]:
    """Start a server on several ports; return them."""
    flags = [text for each in listen for text in ("--listen", each)]
    made.server = await made.start("server", *flags, "--providers", f"{HOST}:0", *args)
    ports = (await made.server.ready())["clients"]
    assert isinstance(ports, list)
    return ports


async def provide(made: Tunnel, *targets: str, args: tuple[str, ...] = ()) -> None:
    server = f"{HOST}:{await made.server.port('providers')}"
    process = await made.start("provider", *targets, "--server", server, *args)
    await eventually(lambda: process.events("peer_up"), "provider connected")


async def test_targets_receive_the_clients_address_before_its_first_byte(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        headers: list[bytes] = []
        target = await made.target(told(headers))
        ports = await serve(made, f"{HOST}:0=one", f"{HOST}:0=two")
        for service, flag in (("one", "v1"), ("two", "v2")):
            await provide(made, f"{service}={target}", args=("--proxy-protocol", flag))
        for port, version in zip(ports, ProxyVersion, strict=True):
            reader, writer = await made.connect(port)
            assert await reader.readline() == b"welcome\n"
            expected = write(version, *ends(writer))
            assert await newest(headers) == expected  # though the client has said nothing
            writer.write(b"bytes")
            writer.write_eof()
            assert await until_end(reader) == b"bytes"


async def test_limits_apply_to_the_client_behind_a_trusted_proxy(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        headers: list[bytes] = []
        target = await made.target(told(headers))
        options = ("--proxy-protocol-from", f"raw={HOST}", "--deny", "192.0.2.0/24")
        raw, open_to_all = await serve(
            made,
            f"{HOST}:0=raw",
            f"{HOST}:0=open",
            args=(*options, "--max-connections-per-address", "1"),
        )
        await provide(made, f"raw={target}", f"open={target}", args=("--proxy-protocol", "v1"))

        async def connect(header: bytes, port: int = raw) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await made.connect(port)
            writer.write(header)
            return reader, writer

        first = write(ProxyVersion.V2, CLIENT, THERE)
        reader, writer = await connect(first + b"bytes")
        assert await reader.readline() == b"welcome\n"
        assert await newest(headers) == write(ProxyVersion.V1, CLIENT, THERE)

        # One connection of an address; another client comes from the same proxy.
        assert await is_reset((await connect(first))[0])
        other, other_writer = await connect(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n")
        assert await other.readline() == b"welcome\n"
        assert await newest(headers) == b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"
        denied = write(ProxyVersion.V1, Endpoint("192.0.2.1", 1), THERE)
        assert await is_reset((await connect(denied))[0])
        assert await is_reset((await connect(b"GET / HTTP/1.1\r\n\r\n"))[0])
        missing = "no_proxy_header"
        await eventually(lambda: any(e.get("event") == missing for e in made.server.log), "it is logged")

        # Elsewhere nobody is asked: what looks like a header is the client's.
        plain, plain_writer = await connect(first, open_to_all)
        assert await plain.readline() == b"welcome\n"
        assert await newest(headers) == write(ProxyVersion.V1, *ends(plain_writer))
        for each, expected in ((writer, b"bytes"), (other_writer, b""), (plain_writer, first)):
            each.write_eof()
            stream = {writer: reader, other_writer: other, plain_writer: plain}[each]
            assert await until_end(stream) == expected


async def test_an_http_client_behind_a_trusted_proxy_is_forwarded_and_logged_with_its_own_address(
    tmp_path: Path,
) -> None:
    async def show(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + head)
        writer.close()

    async with nothing_yet(tmp_path) as made:
        target = await made.target(show)
        (port,) = await serve(made, f"http://{HOST}:0", args=("--proxy-protocol-from", "127.0.0.0/8"))
        await provide(made, str(target))
        reader, writer = await made.connect(port)
        header = write(ProxyVersion.V1, CLIENT, THERE)
        for part in (header[:9], header[9:] + b"GET / HT", b"TP/1.0\r\n\r\n"):
            writer.write(part)
            await writer.drain()
        seen = (await until_end(reader)).decode()
        assert "X-Forwarded-For: 198.51.100.7\r\n" in seen
        assert "\r\nHost: 203.0.113.1:443\r\n" in seen  # HTTP/1.0 without a Host: where it came to
        await eventually(lambda: any(each.get("event") == "access" for each in made.server.log), "it is logged")
        access = next(each for each in made.server.log if each.get("event") == "access")
        assert access["client"] == "198.51.100.7"


async def test_a_server_that_shuts_down_waits_for_pending_proxy_headers(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        headers: list[bytes] = []
        target = await made.target(told(headers))
        (port,) = await serve(made, f"{HOST}:0", args=("--proxy-protocol-from", HOST))
        await provide(made, str(target), args=("--proxy-protocol", "v2"))
        reader, writer = await made.connect(port)
        writer.write(b"PROXY TCP4 198.51.100.7")
        made.server.signal(signal.SIGTERM)
        await eventually(lambda: _refuses(port), "the server accepts nobody")
        writer.write(b" 203.0.113.1 4711 443\r\nbytes")
        writer.write_eof()
        assert await until_end(reader) == b"welcome\nbytes"
        assert headers == [write(ProxyVersion.V2, CLIENT, THERE)]
        writer.close()
        assert await made.server.wait() == 0


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


@pytest.mark.programs
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_haproxy_in_front_and_nginx_behind_interoperate(tmp_path: Path, version: str) -> None:
    send = "send-proxy" if version == "v1" else "send-proxy-v2"
    (tmp_path / "page").write_text("a page\n")
    async with nginx(tmp_path, tmp_path, behind=f"{HOST}/32") as target, nothing_yet(tmp_path) as made:
        (port,) = await serve(made, f"{HOST}:0", args=("--proxy-protocol-from", HOST))
        await provide(made, str(target), args=("--proxy-protocol", version))
        with reserved_port() as front:
            configuration = tmp_path / "haproxy.cfg"
            configuration.write_text(
                f"defaults\n timeout connect 30s\n timeout client 30s\n timeout server 30s\n"
                f"listen front\n bind {HOST}:{front}\n mode tcp\n server it {HOST}:{port} {send}\n"
            )
            async with daemon(tmp_path, front, program("haproxy"), "-db", "-f", str(configuration)):
                url = f"http://{HOST}:{front}/page"
                curl = (program("curl"), "--disable", "--silent", "--noproxy", "*", "--interface", "127.0.0.9")
                seen = await output_of(*curl, "--include", "--write-out", "\n%{local_port}", url)
    head, _, body = seen.replace("\r", "").partition("\n\n")
    page, _, local_port = body.rpartition("\n")
    assert page == "a page\n"
    assert f"Seen-Client: 127.0.0.9:{local_port}\n" in f"{head}\n"
    assert f"Seen-Destination: {HOST}:{front}\n" in f"{head}\n"
