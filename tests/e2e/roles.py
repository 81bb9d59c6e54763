"""Brokers, edges and providers, each a process of its own, and what their clients do."""

import asyncio

from tests.support.processes import Process, Tunnel, Versions
from tests.support.servers import Handler
from tests.support.sockets import HOST
from tests.support.traffic import echo, read_digest, send_blocks
from tests.support.waiting import DEADLINE_S, eventually

ANY = f"{HOST}:0"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def greeting(name: bytes) -> Handler:
    """A target that says who it is, and echoes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name)
        await echo(reader, writer)

    return handler


async def greeted(made: Tunnel, port: int | None = None) -> bytes:
    """Be a client for a moment; return who served it, b"" if nobody did."""
    reader, writer = await made.connect(port)
    writer.write_eof()
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def whole(made: Tunnel, port: int, blocks: int = 16) -> None:
    """Send a lot through an echo, and get it back."""
    reader, writer = await made.connect(port)
    reading = asyncio.create_task(read_digest(reader))
    sent = await send_blocks(writer, blocks)
    writer.write_eof()
    assert await asyncio.wait_for(reading, DEADLINE_S) == (blocks << 16, sent)
    writer.close()


async def echoed(client: Client, word: bytes, deadline_s: float = DEADLINE_S) -> None:
    """Expect an echo."""
    reader, writer = client
    writer.write(word)
    assert await asyncio.wait_for(reader.readexactly(len(word)), deadline_s) == word


async def start_broker(made: Tunnel, providers: int = 0, edges: int = 0, *, versions: Versions = None) -> Process:
    where = ("--providers", f"{HOST}:{providers}", "--edges", f"{HOST}:{edges}")
    return await made.start_as(versions, "broker", *where)


async def addresses(brokers: list[Process], kind: str, option: str) -> list[str]:
    return [text for each in brokers for text in (option, f"{HOST}:{await each.port(kind)}")]


async def start_edge(
    made: Tunnel, *brokers: Process, listen: str = ANY, args: tuple[str, ...] = (), versions: Versions = None
) -> Process:
    where = await addresses(list(brokers), "edges", "--broker")
    return await made.start_as(versions, "edge", "--listen", listen, *where, *args)


async def start_provider(
    made: Tunnel, *brokers: Process, target: str | int, args: tuple[str, ...] = (), versions: Versions = None
) -> Process:
    servers = await addresses(list(brokers), "providers", "--server")
    return await made.start_as(versions, "provider", str(target), *servers, *args)


async def meets(edge: Process, name: str) -> None:
    await eventually(lambda: edge.events("peer_up", peer=name), f"{name} is there")


async def connected(process: Process, port: int, times: int = 1) -> None:
    """Wait until an edge or a provider has reached the broker at a port so many times."""
    where = f"{HOST}:{port}"
    await eventually(lambda: process.events("link_up", broker=where) >= times, f"link up to {where}, {times} times")
