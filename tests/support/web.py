"""HTTP on the wire: a target, and a client that others wrote."""

import asyncio
from pathlib import Path

from tests.support.programs import program
from tests.support.sockets import HOST
from tests.support.waiting import DEADLINE_S

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def curl(*args: str) -> tuple[str, ...]:
    return (program("curl"), "--disable", "--silent", "--show-error", "--noproxy", "*", *args)


def chromium(tmp: Path, key: str, url: str) -> tuple[str, ...]:
    """Load a page whose server has the public key of that fingerprint, print it, and keep its cookies in `tmp`."""
    return (
        *("env", f"HOME={tmp}", program("chromium")),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--no-proxy-server", f"--user-data-dir={tmp / 'profile'}"),
        *(f"--ignore-certificate-errors-spki-list={key}", "--dump-dom", url),
    )


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


GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"


async def asked(client: Client, path: bytes) -> None:
    """Expect the response of `polite` to a request."""
    client[1].write(GET % path)
    await answered(client, path)


async def answered(client: Client, path: bytes) -> None:
    """Expect the response of `polite` to what was asked."""
    assert (await head_of(client[0])).startswith("HTTP/1.1 200 ")
    assert await asyncio.wait_for(client[0].readexactly(len(path) + 1), DEADLINE_S) == b"/" + path


async def fetch(port: int, target: str = "/", *fields: str, host: str = HOST) -> tuple[int, str]:
    """GET a target, with these header fields, over a connection of its own; return status and body."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        named = () if any(field.startswith("Host:") for field in fields) else (f"Host: {host}",)
        lines = [f"GET {target} HTTP/1.1", *named, *fields, "", ""]
        writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(DEADLINE_S):
            response = (await reader.read()).decode()
    finally:
        writer.close()
    head, separator, body = response.partition("\r\n\r\n")
    assert separator, f"no response to {target}: {response!r}"
    return int(head.split(" ")[1]), body
