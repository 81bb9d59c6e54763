"""Checks of targets, good ones and hostile ones: what passes, what fails and why, and what a check may cost."""

import asyncio
import errno
import os
import ssl
import tracemalloc
from pathlib import Path

import pytest

from brokers import resolve
from goreprox.config.addresses import Address, ProxyVersion, Target, TargetAddress
from goreprox.net.certificates import target_context
from goreprox.roles.examination import MAX_RESPONSE, UnwellError, examine
from tests.support.servers import Handler, serving
from tests.support.sockets import HOST, closed_port, reset_now
from tests.support.tls import Authority
from tests.support.waiting import DEADLINE_S

SHORT_S = 0.3


async def check(
    port: int,
    path: str | None = None,
    *,
    timeout_s: float = DEADLINE_S,
    host: str = HOST,
    tls: bool = False,
    ca: Path | None = None,
    proxy: ProxyVersion | None = None,
) -> TargetAddress:
    where = Target("web", Address(host, port), tls=tls)
    return await examine(
        where,
        await resolve(host, port),
        timeout_s=timeout_s,
        context=lambda: target_context(ca, insecure=False),
        path=path,
        proxy_protocol=proxy,
    )


def responding(response: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await reader.read()

    return handler


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_connection_is_enough_and_ends_without_a_byte() -> None:
    seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(await reader.read())

    async with serving(handler) as port:
        assert await check(port) == Address(HOST, port)
        assert await asyncio.wait_for(seen, DEADLINE_S) == b""


async def test_what_is_requested() -> None:
    seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.0 204 No Content\r\n\r\n")

    async with serving(handler) as port:
        await check(port, "/healthz?a=b")
        expected = (
            f"GET /healthz?a=b HTTP/1.1\r\nHost: {HOST}:{port}\r\nUser-Agent: goreprox\r\nConnection: close\r\n\r\n"
        )
        assert seen.result() == expected.encode()


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 399 Odd\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nServer: x\n\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * (1 << 20),
    ],
)
async def test_responses_that_pass(response: bytes) -> None:
    async with serving(responding(response)) as port:
        await check(port, "/")


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (b"HTTP/1.1 500 Oh no\r\n\r\n", "status 500"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"HTTP/1.1 999 Odd\r\n\r\n", "status 999"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "it switches protocols"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "this is not HTTP"),
        (b"\x16\x03\x01\x02\x00", "this is not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "no HTTP response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no HTTP response"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_RESPONSE, "no HTTP response"),
        (b"HTTP/1.1 102 Wait\r\n\r\n" * MAX_RESPONSE, f"{MAX_RESPONSE:,} bytes without the end"),
    ],
)
async def test_responses_that_fail(response: bytes, why: str) -> None:
    async with serving(responding(response)) as port:
        with pytest.raises(UnwellError, match=why):
            await check(port, "/")


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: "])
async def test_a_response_that_ends_too_early_fails(begin: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begin)
        writer.write_eof()

    async with serving(handler) as port:
        with pytest.raises(UnwellError, match="no HTTP response: the head is truncated"):
            await check(port, "/")


async def test_a_reset_fails() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reset_now(writer)

    async with serving(handler) as port:
        with pytest.raises(UnwellError, match="no HTTP response: Connection reset by peer"):
            await check(port, "/")


@pytest.mark.parametrize("path", [None, "/"])
async def test_nobody_listens(path: str | None) -> None:
    with closed_port() as port, pytest.raises(UnwellError, match="Connection refused"):
        await check(port, path)


async def test_silence_fails_after_the_timeout() -> None:
    async with serving(silent) as port:
        with pytest.raises(UnwellError, match=r"no response within 0\.3 s"):
            await check(port, "/", timeout_s=SHORT_S)


async def test_a_target_that_drips_cannot_prolong_a_check() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.001)

    async with serving(handler) as port:
        with pytest.raises(UnwellError, match=r"no response within 0\.3 s"):
            await check(port, "/", timeout_s=SHORT_S)


async def test_a_flood_takes_little_memory() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(1000):
            writer.write(b"HTTP/1.1 102 Wait\r\n\r\n" * 5000)
            await writer.drain()

    async with serving(handler) as port:
        tracemalloc.start()
        try:
            with pytest.raises(UnwellError):
                await check(port, "/")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2 << 20, "the target's own buffers are in it: 160 KiB"


@pytest.mark.parametrize(
    ("version", "header"),
    [
        (ProxyVersion.V1, b"PROXY UNKNOWN\r\n"),
        (ProxyVersion.V2, b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"),
    ],
)
async def test_a_proxy_header_says_that_this_is_no_client(version: ProxyVersion, header: bytes) -> None:
    seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(await reader.readexactly(len(header)))
        await responding(b"HTTP/1.1 200 OK\r\n\r\n")(reader, writer)

    async with serving(handler) as port:
        await check(port, "/", proxy=version)
        assert seen.result() == header


async def test_certificates_are_checked_as_for_clients(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.cert, authority.key)
    async with serving(responding(b"HTTP/1.1 200 OK\r\n\r\n"), context) as port:
        for path in (None, "/"):
            await check(port, path, tls=True, ca=authority.ca_file)
            with pytest.raises(UnwellError, match="TLS: "):
                await check(port, path, tls=True, ca=other.ca_file)


async def test_a_target_that_never_shakes_hands_fails_after_the_timeout(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(silent) as port:
        with pytest.raises(UnwellError, match="no response within"):
            await check(port, tls=True, ca=authority.ca_file, timeout_s=SHORT_S)


async def test_without_a_descriptor_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.net.sockets.taken_from_spare", lambda _: True)
    async with serving(silent) as port:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await check(port)
