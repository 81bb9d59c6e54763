"""Whatever we pass on, requests or responses, nginx reads in the same bytes, too, and as we do."""

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from pathlib import Path

import h11
import pytest

from tests.support.gateway import read_responses
from tests.support.malformed import ONE_READING
from tests.support.programs import nginx_before, nginx_that_tells
from tests.support.readings import (
    REQUESTS,
    RESPONSES,
    Reading,
    mutant,
    requests_by_us,
    response_by_us,
    same,
    whole_response,
)
from tests.support.sockets import HOST

pytestmark = pytest.mark.programs

MUTANTS = 2000
CONNECTIONS = 100
"""At once."""
END = b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def requests_by_nginx(port: int, raw: bytes) -> list[Reading]:
    """Return the requests that it has accepted."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(raw)
        writer.write_eof()  # so nginx does not wait for the rest of what looks unfinished
        responses = read_responses(await reader.read())
    finally:
        writer.close()
    heads = [event for event in responses if isinstance(event, h11.Response) and event.status_code == 200]
    return [Reading(*dict(head.headers)[b"seen"].split(b"|", 3)) for head in heads]


def as_nginx_tells(ours: Reading) -> Reading:
    """Name the host as nginx does, in lower case without its port, and only bodies that fit into a field."""
    body = b"?" if re.search(rb"[\x00-\x20\x7f]", ours.body) else ours.body
    return replace(ours, host=re.sub(rb":\d+\Z", b"", ours.host.lower()), body=body)


async def compare(port: int, raw: bytes) -> None:
    """Compare requests.

    Only we accept a tab around a length, as RFC 9110 (5.6.3) has it, and nginx finds `close` anywhere in `Connection`.
    """
    ours = [as_nginx_tells(each) for each in requests_by_us(raw + END)]
    theirs = await requests_by_nginx(port, raw + END)
    if b"\t" not in raw:
        assert len(ours) <= len(theirs) or b"close" in raw, raw
        assert all(map(same, ours, theirs)), (raw, ours, theirs)


async def test_nginx_reads_what_we_accept_as_we_do(tmp_path: Path) -> None:
    async with nginx_that_tells(tmp_path) as port:
        for raw, _ in ONE_READING.values():
            await compare(port, raw)
        for raw in REQUESTS:
            await compare(port, raw)


async def test_no_target_gets_a_request_that_nginx_reads_otherwise(tmp_path: Path) -> None:
    chance = random.Random(1)
    async with nginx_that_tells(tmp_path) as port:
        await at_once(compare(port, mutant(chance, REQUESTS)) for _ in range(MUTANTS))


async def at_once(comparisons: Iterable[Awaitable[None]]) -> None:
    """Make some at a time."""
    free = asyncio.Semaphore(CONNECTIONS)

    async def one(comparison: Awaitable[None]) -> None:
        async with free:
            await comparison

    await asyncio.gather(*map(one, comparisons))


async def test_no_client_gets_a_response_that_nginx_reads_otherwise(tmp_path: Path) -> None:
    """But for two: blank lines first are HTTP/0.9 to nginx, and interim responses final ones."""
    chance = random.Random(1)
    raws = [*RESPONSES, *(mutant(chance, RESPONSES) for _ in range(MUTANTS))]

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(raws[int(head.split()[1][1:])])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async def compare(port: int, index: int, method: bytes) -> None:
        raw = raws[index]
        ours = response_by_us(raw, method)
        if ours is None or raw.startswith((b"\r\n", b"\n")) or b"HTTP/1.1 1" in raw:
            return
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"%b /%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % (method, index))
        received = await reader.read()
        writer.close()
        assert whole_response(read_responses(received, [method])) == ours, raw

    async with (
        await asyncio.start_server(respond, HOST, 0) as server,
        nginx_before(tmp_path, server.sockets[0].getsockname()[1]) as port,
    ):
        await at_once(compare(port, index, chance.choice([b"GET", b"HEAD"])) for index in range(len(raws)))
