"""Whatever we pass on, nginx reads in the same bytes, too, and as we do."""

import asyncio
import random
import re
from dataclasses import replace
from pathlib import Path

import h11
import pytest

from tests.support.gateway import read_responses
from tests.support.malformed import ONE_READING
from tests.support.programs import nginx_that_tells
from tests.support.readings import REQUESTS, Reading, mutant, requests_by_us, same
from tests.support.sockets import HOST

pytestmark = pytest.mark.programs

MUTANTS = 2000
CONNECTIONS = 100
"""At once: nginx waits a second for the rest of what looks unfinished."""
END = b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def requests_by_nginx(port: int, raw: bytes) -> list[Reading]:
    """Return the requests that it has accepted."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(raw)
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
    free = asyncio.Semaphore(CONNECTIONS)

    async def one() -> None:
        async with free:
            await compare(port, mutant(chance, REQUESTS))

    async with nginx_that_tells(tmp_path) as port:
        await asyncio.gather(*(one() for _ in range(MUTANTS)))
