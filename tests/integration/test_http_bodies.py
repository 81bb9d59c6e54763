"""Bodies and upgraded connections through real sockets in one process, and what the access log says of requests."""

import asyncio

from goreprox.config.addresses import Listener
from tests.support.events import Events
from tests.support.sockets import HOST
from tests.support.tunnel import End, Tunnel
from tests.support.waiting import eventually

HTTP = {"listeners": (Listener.parse(f"http://{HOST}:0"),)}
SIZE = 8 << 20
"""More than all windows and buffers on the way."""
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % SIZE


async def received(end: End, size: int) -> bytes:
    """Read a header section, and a body of so many bytes."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await end.receive(1)
    return await end.receive(size)


async def test_a_body_longer_than_all_buffers_arrives_in_both_directions() -> None:
    body = bytes(range(256)) * (SIZE >> 8)
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        client = await tunnel.client()
        sending = asyncio.create_task(client.send(HEAD + body))
        target = await tunnel.targets.accept()
        assert (await received(target, SIZE)) == body
        await sending
        sending = asyncio.create_task(target.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + body))
        assert (await received(client, SIZE)) == body
        await sending


async def test_the_access_log_names_the_provider_of_a_request_that_it_lost(
    events: Events,
) -> None:
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        client = await tunnel.client()
        await client.send(HEAD)
        target = await tunnel.targets.accept()
        await received(target, 0)
        target.reset()
        assert (await client.receive(12)) == b"HTTP/1.1 502"
        await eventually(lambda: [each for each in events if each.get("event") == "access"])
        (record,) = [each for each in events if each.get("event") == "access"]
        assert (record["status"], record["provider"]) == (502, "provider")


async def test_an_upgraded_connection_is_forgotten_once_both_ends_have_closed(events: Events) -> None:
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        client = await tunnel.client()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        target = await tunnel.targets.accept()
        await received(target, 0)
        await target.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nearly")
        assert await received(client, 5) == b"early"
        await client.send(b"raw")
        assert await target.receive(3) == b"raw"
        assert tunnel.edge.connections == 1
        client.half_close()
        target.half_close()
        await eventually(lambda: not tunnel.edge.connections)
        (ended,) = [each for each in events if each.get("event") == "upgrade_ended"]
        assert (ended["bytes"], ended["bytes_in"], ended["error"]) == (0, 3, None)
