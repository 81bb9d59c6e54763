"""Sockets of proxies, real ones: headers in any pieces, and what comes instead of them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from loguru import logger

from goreprox.config.addresses import Address, Listener, ProxyVersion
from goreprox.endpoint import Endpoint
from goreprox.net.poller import Poller
from goreprox.net.proxies import Proxies
from goreprox.net.proxy_protocol import write
from tests.support.waiting import DEADLINE_S, eventually

PROXY, HERE = Endpoint("192.0.2.1", 5), Endpoint("192.0.2.2", 80)
CLIENT, THERE = Endpoint("198.51.100.7", 4711), Endpoint("203.0.113.1", 443)
LISTENER = Listener(Address(None, 80))


@dataclass
class Made:
    """Proxies, and what came of them."""

    proxies: Proxies
    loop: asyncio.AbstractEventLoop
    log: list[str]
    welcomed: list[tuple[socket.socket, Endpoint, Endpoint]] = field(default_factory=list)
    left: int = 0
    refused: int = 0
    ends: list[socket.socket] = field(default_factory=list)

    def hear(self) -> socket.socket:
        """Be a proxy that connects."""
        theirs, ours = socket.socketpair()
        for end in (theirs, ours):
            end.setblocking(False)
            self.ends.append(end)
        self.proxies.hear(ours, PROXY, HERE, LISTENER)
        return theirs

    async def closed(self, theirs: socket.socket) -> bool:
        """Whether nothing came but the end."""
        try:
            return await asyncio.wait_for(self.loop.sock_recv(theirs, 1), DEADLINE_S) == b""
        except ConnectionResetError:
            return True


@contextlib.asynccontextmanager
async def made(timeout_s: float = 30.0) -> AsyncIterator[Made]:
    log: list[str] = []
    sink = logger.add(lambda message: log.append(message.record["message"]))

    def welcome(sock: socket.socket, client: Endpoint, destination: Endpoint, listener: Listener) -> None:
        assert listener is LISTENER
        it.welcomed.append((sock, client, destination))

    def left() -> None:
        it.left += 1

    def refused() -> None:
        it.refused += 1

    def batch(serve: Callable[[], None]) -> None:
        serve()

    loop = asyncio.get_running_loop()
    poller = Poller(batch)
    it = Made(Proxies(poller, accepted=welcome, left=left, refused=refused, timeout_s=timeout_s), loop, log)
    try:
        yield it
    finally:
        it.proxies.close()
        loop.remove_reader(poller._epoll.fileno())
        poller._epoll.close()
        logger.remove(sink)
        for end in it.ends:
            end.close()


@pytest.mark.parametrize("version", ProxyVersion)
async def test_a_header_in_single_bytes_is_read_and_not_a_byte_more(version: ProxyVersion) -> None:
    async with made() as it:
        header = write(version, CLIENT, THERE)
        theirs = it.hear()
        (arrival,) = it.proxies._timers
        for size in range(1, len(header)):
            theirs.send(header[size - 1 : size])
            await eventually(lambda size=size: len(arrival.head) == size)  # type: ignore[misc]
        assert len(it.proxies) == 1
        theirs.send(header[-1:] + b"the client's")
        await eventually(lambda: it.welcomed)
        sock, client, destination = it.welcomed[0]
        assert (client, destination) == (CLIENT, THERE)
        assert sock.recv(100) == b"the client's"
        assert (len(it.proxies), it.left, it.log) == (0, 1, [])


async def test_a_header_without_addresses_leaves_those_of_the_connection() -> None:
    async with made() as it:
        it.hear().send(b"PROXY UNKNOWN\r\n")
        await eventually(lambda: it.welcomed)
        assert it.welcomed[0][1:] == (PROXY, HERE)


async def test_a_connection_without_a_header_is_reset_and_logged() -> None:
    async with made() as it:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1\r\n", b"\r\n\r\n\x01"):
            theirs = it.hear()
            theirs.send(data)
            assert await it.closed(theirs)
        assert (it.welcomed, len(it.proxies), it.left) == ([], 0, 3)
        assert all(str(PROXY) in line for line in it.log)
        assert [line.rpartition(": ")[2] for line in it.log] == [
            "the connection begins with something else",
            "its line is malformed",
        ]


async def test_a_header_that_does_not_arrive_in_time_is_a_reset() -> None:
    async with made(timeout_s=0.05) as it:
        silent, half = it.hear(), it.hear()
        half.send(b"PROXY TCP4 ")
        assert await it.closed(silent)
        assert await it.closed(half)
        assert (it.welcomed, len(it.proxies), it.left) == ([], 0, 2)
        assert "it did not arrive within 0.05 s" in it.log[0]


async def test_a_health_check_without_a_byte_is_not_logged() -> None:
    async with made() as it:
        it.hear().close()
        await eventually(lambda: it.left == 1)
        assert (it.welcomed, len(it.proxies), it.log) == ([], 0, [])
