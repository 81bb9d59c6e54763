"""HTTP on the wire: a target, and a client that others wrote."""

import asyncio

from tests.support.programs import program
from tests.support.waiting import DEADLINE_S


def curl(*args: str) -> tuple[str, ...]:
    return (program("curl"), "--disable", "--silent", "--show-error", "--noproxy", "*", *args)


async def head_of(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(DEADLINE_S):
        return (await reader.readuntil(b"\r\n\r\n")).decode()


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """ResponseWriter every request with what it asked for."""
    while True:
        head = await head_of(reader)
        if head.startswith("POST"):
            await reader.readexactly(2)
        text = head.split(" ")[1].encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
