"""HTTP on the wire: a target, and a client that others wrote."""

import asyncio

from tests.support.programs import program
from tests.support.sockets import HOST
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


async def fetch(port: int, target: str = "/", *fields: str, host: str = HOST) -> tuple[int, str]:
    """GET a target, with these header fields, over a connection of its own; return status and body."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        lines = [f"GET {target} HTTP/1.1", *(fields or (f"Host: {host}",)), "", ""]
        writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(DEADLINE_S):
            response = (await reader.read()).decode()
    finally:
        writer.close()
    head, separator, body = response.partition("\r\n\r\n")
    assert separator, f"no response to {target}: {response!r}"
    return int(head.split(" ")[1]), body
