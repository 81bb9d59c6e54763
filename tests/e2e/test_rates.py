"""Rates of services through real processes: an upper bound that holds at every moment, and shares by bytes.

How fast it gets is not timed: a busy machine may be slower than any rate. Virtual time shows that a rate is used up and
that shares are exact (tests/unit/test_pace.py).
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from goreprox.control.client import ask_all
from tests.e2e.reloading import apply, configure
from tests.support.processes import Tunnel, nothing_yet, tunnel
from tests.support.sockets import HOST
from tests.support.tls import Authority
from tests.support.tls import Client as TlsClient
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S
from tests.support.web import head_of

MIB = 1 << 20
RATE_MIB = 2
BURST = RATE_MIB * MIB // 10
SIZE = 3 * MIB // 2
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


class Meter:
    """Checks what arrives, byte by byte, against the rate."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        self.count = 0

    def arrived(self, count: int) -> None:
        self.count += count
        allowed = BURST + RATE_MIB * MIB * (time.monotonic() - self.began_at)
        assert self.count <= allowed, f"{self.count} bytes, {allowed:.0f} are allowed by now"

    def whole(self, expected: int) -> None:
        assert self.count == expected
        assert time.monotonic() - self.began_at >= (expected - BURST) / (RATE_MIB * MIB)


async def pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    async with asyncio.timeout(DEADLINE_S):
        while data := await reader.read(1 << 16):
            yield data


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send as much as is taken, once the client has sent a byte."""
    await reader.readexactly(1)
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def test_a_download_is_never_faster_than_the_rate(tmp: Path) -> None:
    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(bytes(SIZE))
        writer.close()

    async with tunnel(tmp, target, server=("--max-rate", f"{RATE_MIB}")) as made:
        meter = Meter()
        reader, writer = await made.connect()
        writer.write(b".")
        async for data in pieces(reader):
            meter.arrived(len(data))
        meter.whole(SIZE)


async def test_an_upload_is_never_faster_than_the_rate(tmp: Path) -> None:
    arrived: asyncio.Future[Meter] = asyncio.get_running_loop().create_future()
    meter = Meter()

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for data in pieces(reader):
            meter.arrived(len(data))
        writer.close()
        arrived.set_result(meter)

    async with tunnel(tmp, target, server=("--max-rate", f"default={RATE_MIB}MiB")) as made:
        meter.began_at = time.monotonic()
        reader, writer = await made.connect()
        writer.write(bytes(SIZE))
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
        (await asyncio.wait_for(arrived, DEADLINE_S)).whole(SIZE)


async def test_a_response_is_never_faster_than_the_rate(tmp: Path) -> None:
    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(HEAD + bytes(SIZE))
        await reader.read()

    async with nothing_yet(tmp) as made:
        made.scheme = "http"
        await made.target(target)
        await made.serve("--max-rate", f"{RATE_MIB}")
        await made.provide()
        meter = Meter()
        reader, writer = await made.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await head_of(reader)
        assert head.startswith("HTTP/1.1 200 ")
        while meter.count < SIZE:
            meter.arrived(len(await asyncio.wait_for(reader.read(1 << 16), DEADLINE_S)))
        meter.whole(SIZE)


async def test_a_request_is_never_faster_than_the_rate(tmp: Path) -> None:
    meter = Meter()

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        while meter.count < SIZE:
            meter.arrived(len(await reader.read(1 << 16)))
        meter.whole(SIZE)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await reader.read()

    async with nothing_yet(tmp) as made:
        made.scheme = "http"
        await made.target(target)
        await made.serve("--max-rate", f"{RATE_MIB}")
        await made.provide()
        meter.began_at = time.monotonic()
        reader, writer = await made.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % SIZE + bytes(SIZE))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert head.startswith(b"HTTP/1.1 204 ")


async def test_a_download_over_tls_is_never_faster_than_the_rate(tmp: Path) -> None:
    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(bytes(SIZE))
        writer.close()

    authority = Authority(tmp)
    async with nothing_yet(tmp) as made:
        made.scheme = "tls"
        await made.target(target)
        await made.serve("--max-rate", f"{RATE_MIB}", *authority.options)
        await made.provide()
        meter = Meter()
        client = await TlsClient(*await made.connect(), authority.trusting()).shake_hands()
        await client.write(b".")
        async with asyncio.timeout(DEADLINE_S):
            while data := await client.read():
                meter.arrived(len(data))
        meter.whole(SIZE)


async def test_the_streams_of_a_service_share_its_rate_and_those_of_others_have_none(tmp: Path) -> None:
    """The tolerance is half: each gets at least half of an equal share, by what the edge has written to its client."""
    async with nothing_yet(tmp) as made:
        slow, fast = await made.target(flood), await made.target(echo)
        made.server = await made.start(
            *("server", "--listen", f"{HOST}:0=slow", "--listen", f"{HOST}:0=fast"),
            *("--providers", f"{HOST}:0", "--max-rate", f"slow={RATE_MIB}"),
        )
        ports = await services(made)
        where = f"{HOST}:{await made.server.port('providers')}"
        await made.start("provider", f"slow={HOST}:{slow}", f"fast={HOST}:{fast}", "--server", where)
        began_at = time.monotonic()
        clients = [await made.connect(ports["slow"]) for _ in range(4)]
        readers = [asyncio.create_task(drop(reader)) for reader, _ in clients]
        for _, writer in clients:
            writer.write(b".")
        reader, writer = await made.connect(ports["fast"])
        echoed = asyncio.create_task(count(reader))
        for _ in range(64):
            writer.write(bytes(MIB))
            await writer.drain()
        writer.write_eof()
        assert await asyncio.wait_for(echoed, DEADLINE_S) == 64 * MIB, "the other service has no limit"
        async with asyncio.timeout(DEADLINE_S):
            while sum(shares := await received(made)) < 4 * MIB:
                pass
        allowed = BURST + RATE_MIB * MIB * (time.monotonic() - began_at)
        assert len(shares) == 4 and sum(shares) <= allowed
        assert min(shares) >= sum(shares) / 8, shares
        for task in readers:
            task.cancel()
        await asyncio.wait(readers)


async def drop(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


async def count(reader: asyncio.StreamReader) -> int:
    return sum([len(data) async for data in pieces(reader)])


async def document(made: Tunnel) -> Any:
    (reply,) = await asyncio.to_thread(ask_all, [made.tmp / "run"], "status", roles=("server",), deadline_s=DEADLINE_S)
    return reply.result


async def services(made: Tunnel) -> dict[str, int]:
    """Return the port of each service."""
    return {name: int(at[0].rpartition(":")[2]) for name, at in (await document(made))["services"].items()}


async def received(made: Tunnel) -> list[int]:
    """Return the bytes that clients of the slow service have got."""
    return [each["received_bytes"] for each in (await document(made))["connections"] if each["service"] == "slow"]


@pytest.mark.parametrize("after", [{"max_rate": ["1000"]}, {}])
async def test_a_reload_changes_the_rate_of_open_connections(tmp: Path, after: dict[str, object]) -> None:
    async with nothing_yet(tmp) as made:
        await made.target(echo)
        where = {"listen": [f"{HOST}:0"], "providers": f"{HOST}:0"}
        configure(tmp, "server", **where, max_rate=["0.001"])
        made.server = await made.start("server", "--config", "server.toml")
        made.port = await made.server.port("clients")
        server = f"{HOST}:{await made.server.port('providers')}"
        await made.start("provider", f"{HOST}:{made.target_port}", "--server", server)
        reader, writer = await made.connect()
        echoed = asyncio.create_task(count(reader))
        writer.write(bytes(8 * MIB))  # it would take two hours
        writer.write_eof()
        assert (await apply(tmp, "server", **where, **after))["kept"] == []
        assert await asyncio.wait_for(echoed, DEADLINE_S) == 8 * MIB
